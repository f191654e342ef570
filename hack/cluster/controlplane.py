"""One control plane as an object: etcd, API server, controller-manager, scheduler, and kwok for the nodes.

with ControlPlane() as plane:
    plane.api.get("/api/v1/nodes")
    plane.kubectl("get", "nodes")
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

from hack.cache import private_directory, state_root
from hack.cluster import commands, process, state, toolchain
from hack.cluster.api import Api, ApiError, Credentials
from hack.cluster.certs import SERVICE_ADDRESS, create_pki, kubelet_user
from hack.cluster.commands import Layout
from hack.cluster.kubeconfig import write_kubeconfig, write_token_kubeconfig
from hack.cluster.process import Component, ComponentError, wait_until

READY_SECONDS = 120.0
START_ATTEMPTS = 3
PORT_TAKEN = "address already in use"
AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
"""


@dataclass(frozen=True)
class Options:
    """Which programs a control plane consists of, and how they are configured."""

    kwok: bool = True
    """Whether kwok plays the kubelet of every node with the annotation `kwok.x-k8s.io/node: fake`."""
    scheduler: bool = True
    audit: bool = False
    """Whether every request is logged to `audit_log`: who, verb, resource and time, but no bodies."""
    address: str = commands.HOST
    """The address that the API server listens on; real kubelets cannot reach our loopback."""
    kubelets: tuple[str, ...] = ()
    """Names of nodes with a real kubelet; a kubeconfig is written for each (`kubelet_kubeconfig`)."""
    apiserver_flags: tuple[str, ...] = ()
    """Further flags for kube-apiserver; if a flag is set twice, the last one wins."""
    feature_gates: str = ""
    """Feature gates of all programs of Kubernetes, such as `DRADeviceTaintRules=true`; empty for the defaults."""
    environment: Mapping[str, str] = field(default_factory=dict)
    detached: bool = False
    """Whether the programs outlive this process (`make cluster`). Otherwise a later run stops them if we are killed."""


class ControlPlane:
    """etcd, API server, controller-manager, scheduler and kwok; without `directory` in a temporary folder."""

    def __init__(self, directory: Path | None = None, options: Options | None = None) -> None:
        self.options = options or Options()
        self._chosen_directory = directory
        self._layout: Layout | None = None
        self._api: Api | None = None
        self._components: dict[str, Component] = {}
        self._commands: dict[str, list[str]] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- what callers use ------------------------------------------------------------------------------

    @property
    def layout(self) -> Layout:
        if self._layout is None:
            raise RuntimeError("the control plane is not started: call start() or use `with`")
        return self._layout

    @property
    def url(self) -> str:
        return self.layout.url

    @property
    def directory(self) -> Path:
        return self.layout.directory

    @property
    def ca(self) -> Path:
        """The path of the certificate (PEM) of the authority that clients must trust."""
        return self.layout.pki.ca

    @property
    def kubeconfig(self) -> Path:
        """The path of the admin's kubeconfig (group system:masters)."""
        return self.layout.kubeconfig("admin")

    def kubelet_kubeconfig(self, node: str) -> Path:
        return self.layout.kubeconfig(kubelet_user(node))

    @property
    def audit_log(self) -> Path:
        return self.layout.audit_log

    @property
    def api(self) -> Api:
        if self._api is None:
            raise RuntimeError("the control plane is not started: call start() or use `with`")
        return self._api

    @property
    def kubectl_program(self) -> Path:
        """The path of the kubectl of this control plane's version, which is built if it is not cached."""
        return self._programs.kubectl

    def pids(self) -> dict[str, int]:
        """Return the process ids of the programs that were started and not stopped, by component name."""
        return {name: component.pid for name, component in self._components.items()}

    def log(self, name: str) -> Path:
        """Return the path of a component's log file, which need not exist."""
        return self.directory / f"{name}.log"

    def kubectl(self, *arguments: str, kubeconfig: Path | None = None, stdin: str | None = None) -> str:
        """Run kubectl, as admin unless `kubeconfig` is given, and return its standard output."""
        done = subprocess.run(
            [str(self.kubectl_program), *arguments],
            env=self.environment(kubeconfig),
            input=stdin,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def environment(self, kubeconfig: Path | None = None) -> dict[str, str]:
        """Return the environment for kubectl, with a cache of discovery of this cluster's own."""
        own = {"KUBECONFIG": str(kubeconfig or self.kubeconfig), "KUBECTL_KUBERC": "false"}
        return {**os.environ, **own, "KUBECACHEDIR": str(self.directory / "kubecache")}

    def service_account_kubeconfig(self, namespace: str, name: str) -> Path:
        """Write a kubeconfig that acts as an existing service account, under its RBAC, and return its path."""
        path = self.directory / f"{namespace}-{name}.kubeconfig"
        return write_token_kubeconfig(self.api, path, namespace, name)

    # --- life ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start all programs and wait until they are ready. Raises UnavailableError or ComponentError."""
        programs = self._programs
        kwok = toolchain.program("kwok") if self.options.kwok else None
        options = self.options
        if self._chosen_directory is not None:
            directory = private_directory(self._chosen_directory.resolve())
        else:
            state.sweep(root := private_directory(state_root()))
            directory = Path(tempfile.mkdtemp(dir=root, prefix="run-")).resolve()
        addresses = (options.address, SERVICE_ADDRESS) if options.kubelets else (options.address,)
        create_pki(directory / "pki", addresses=addresses, kubelets=options.kubelets)
        (directory / "audit-policy.yaml").write_text(AUDIT_POLICY)
        for attempt in range(1, START_ATTEMPTS + 1):
            etcd, peer, apiserver = process.free_ports(3)
            self._layout = Layout(directory, etcd, peer, apiserver, options.address)
            self._prepare_clients()
            self._commands = self._command_lines(programs, kwok)
            try:
                self._start_all()
                return
            except ComponentError as error:
                self._stop_components()
                if PORT_TAKEN not in str(error) or attempt == START_ATTEMPTS:
                    raise
                shutil.rmtree(directory / "etcd", ignore_errors=True)
            except BaseException:
                self._stop_components()
                raise

    def stop(self) -> None:
        """Stop every program and remove the record, or the whole temporary folder."""
        self._stop_components()
        if self._api is not None:
            self._api.close()
        if self._layout is None:
            return
        (self.directory / state.FILE).unlink(missing_ok=True)
        if self._chosen_directory is None:
            shutil.rmtree(self.directory, ignore_errors=True)

    def kill_component(self, name: str) -> None:
        """Kill one program with SIGKILL, like a crash, and close the connections of `api`."""
        self._components.pop(name).stop(kill=True)
        self.api.close()

    def start_component(self, name: str) -> None:
        """Start one program, which must not be running, on the ports of this control plane, and record its pid."""
        environment = self.options.environment
        self._components[name] = process.start(name, self._commands[name], self.log(name), environment)
        self._record()

    def restart_component(self, name: str, *flags: str) -> None:
        """Start a program anew with further flags, which later starts have too. Returns before it is ready."""
        self.kill_component(name)
        self._commands[name] = [*self._commands[name], *flags]
        self.start_component(name)

    def wait_ready(self) -> None:
        """Wait until the API server answers /readyz, and then until the `default` service account exists."""
        self._await("the API server", self._answers("/readyz"), "kube-apiserver")
        path = "/api/v1/namespaces/default/serviceaccounts/default"
        self._await("the default service account", self._answers(path), "kube-controller-manager")

    def check(self) -> None:
        """Raise ComponentError for the first program that has ended on its own."""
        for component in self._components.values():
            component.check()

    # --- inside ----------------------------------------------------------------------------------------

    @cached_property
    def _programs(self) -> toolchain.Programs:
        return toolchain.control_plane_programs()

    def _prepare_clients(self) -> None:
        layout, pki = self.layout, self.layout.pki
        ca_pem = pki.ca.read_text()
        nodes = map(kubelet_user, self.options.kubelets)
        for user in ("admin", "controller-manager", "scheduler", "kwok", *nodes):
            credentials = Credentials(cert=pki.cert(user), key=pki.key(user))
            write_kubeconfig(layout.kubeconfig(user), layout.url, ca_pem, user, credentials)
        self._api = Api(layout.url, ca_pem, Credentials(cert=pki.cert("admin"), key=pki.key("admin")))

    def _command_lines(self, programs: toolchain.Programs, kwok: Path | None) -> dict[str, list[str]]:
        layout, options = self.layout, self.options
        access = commands.kubelet_access(layout) if options.kubelets else []
        gates = [f"--feature-gates={options.feature_gates}"] if options.feature_gates else []
        lines = {
            "etcd": commands.etcd(programs, layout),
            "kube-apiserver": commands.apiserver(
                programs, layout, audit=options.audit, extra=(*access, *gates, *options.apiserver_flags)
            ),
            "kube-controller-manager": [*commands.controller_manager(programs, layout), *gates],
        }
        if options.scheduler:
            lines["kube-scheduler"] = [*commands.scheduler(programs, layout), *gates]
        if kwok is not None:
            lines["kwok"] = commands.kwok(kwok, layout.kubeconfig("kwok"))
        return lines

    def _start_all(self) -> None:
        self._record()  # before the first program starts, so that a sweep knows whose folder this is
        for name in self._commands:
            self.start_component(name)
            if name == "kube-apiserver":
                # The other programs give up if no API server answers within seconds.
                self._await("the API server", self._answers("/readyz"), name)
        self.wait_ready()

    def _await(self, what: str, condition: Callable[[], bool], component: str) -> None:
        try:
            wait_until(condition, READY_SECONDS, what, self.check)
        except TimeoutError as error:
            log = self.log(component)
            raise ComponentError(f"{error}; the last lines of {log}:\n{process.tail(log)}") from None

    def _answers(self, path: str) -> Callable[[], bool]:
        def ask() -> bool:
            with contextlib.suppress(ApiError, OSError):
                self.api.get(path)
                return True
            return False

        return ask

    def _record(self) -> None:
        owner = None if self.options.detached else os.getpid()
        state.ClusterState(owner, self.url, self.pids()).write(self.directory)

    def _stop_components(self) -> None:
        for name in reversed(list(self._components)):
            self._components.pop(name).stop()
