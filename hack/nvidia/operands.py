"""What NVIDIA's pods, and the agent's, run on a node: DaemonSets, and the programs of each as tasks in the sandbox."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path

from gpusharing.api.names import LABEL_DEPLOY_PREFIX
from gpusharing.kube.raw import section, text
from hack.cluster.api import Api, ApiError, Credentials, Object
from hack.cluster.install import GPU_OPERATOR_NAMESPACE
from hack.cluster.kubeconfig import pod_bound_token, write_kubeconfig
from hack.launch import LaunchedProcess
from hack.nvidia import build
from hack.nvidia.kubelet import Mount
from hack.nvidia.migmanager import MigManagerProgram
from hack.nvidia.sandbox import WITHOUT_SYS_ADMIN, ProcessView, Sandbox
from hack.nvidia.tasks import PodProcesses, SandboxTask, Task

MIG_MANAGER, PLUGIN, GFD = "nvidia-mig-manager", "nvidia-device-plugin-daemonset", "gpu-feature-discovery"
MPS, AGENT = "nvidia-device-plugin-mps-control-daemon", "gpusharing-agent"
_DEPLOY_PLUGIN = {f"{LABEL_DEPLOY_PREFIX}device-plugin": "true"}
SELECTORS = {
    MIG_MANAGER: {f"{LABEL_DEPLOY_PREFIX}mig-manager": "true"},
    PLUGIN: _DEPLOY_PLUGIN,
    GFD: {f"{LABEL_DEPLOY_PREFIX}gpu-feature-discovery": "true"},
    MPS: {**_DEPLOY_PLUGIN, "nvidia.com/mps.capable": "true"},
}
"""Node selectors of the GPU Operator's DaemonSets, by the `app` label of their pods (assets/state-*)."""
HOLD = {"simulate.gpusharing.dev/stop": "never"}
"""kwok must not end these pods: we do when their processes have ended."""
INIT_SECONDS = 20.0
GFD_SECONDS = "10s"
"""GFD's own loop; shipped: 60 s."""
MPS_FOLDER = "mps"


def daemon_set(name: str) -> Object:
    """One of SELECTORS, as the GPU Operator would create it. Nobody pulls its image."""
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name, "namespace": GPU_OPERATOR_NAMESPACE, "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels, "annotations": HOLD},
                "spec": {
                    "nodeSelector": SELECTORS[name],
                    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
                    "containers": [{"name": name, "image": "simulated"}],
                },
            },
        },
    }


def install(api: Api) -> None:
    """Create the DaemonSets that are missing."""
    for name in SELECTORS:
        api.ensure(f"/apis/apps/v1/namespaces/{GPU_OPERATOR_NAMESPACE}/daemonsets", daemon_set(name))


@dataclass
class PodPrograms:
    """Builds what the pods of one node run. `plugin_configs` and `mig_config` are the mounted ConfigMaps."""

    api: Api
    node: str
    kubeconfig: Path
    sandbox: Sandbox
    plugin_configs: Mount
    mig_config: Mount
    podresources: Path

    def __post_init__(self) -> None:
        """One mig-manager for the life of the node: it keeps its D-Bus."""
        config = self.mig_config.folder / "config.yaml"
        self.mig_manager = MigManagerProgram(self.sandbox, self.node, self.kubeconfig, config)
        self.labels = self.sandbox.folder / "labels"
        self._logs: dict[str, Path] = {}

    def of(self, pod: Object) -> PodProcesses | None:
        """What this pod runs; None for a pod that is none of ours."""
        labels = pod["metadata"].get("labels") or {}
        makers: Mapping[str, Callable[[Object], PodProcesses]] = {
            MIG_MANAGER: self._mig_manager, PLUGIN: self._plugin, GFD: self._gfd, MPS: self._mps, AGENT: self._agent,
        }  # fmt: skip
        maker = makers.get(labels.get("app", "")) or makers.get(labels.get("app.kubernetes.io/name", ""))
        return maker(pod) if maker else None

    def log_of(self, pod: str) -> Path | None:
        """The log of a mig-manager pod."""
        return self._logs.get(pod)

    def _mig_manager(self, pod: Object) -> PodProcesses:
        name = str(pod["metadata"]["name"])
        self.mig_manager.log = self._logs[name] = self.sandbox.folder / f"{name}.log"
        return PodProcesses(_uid(pod), [self.mig_manager], lambda: self.mig_config.exists)

    def _plugin(self, pod: Object) -> PodProcesses:
        flags = ("--mps-root", "/run/nvidia/mps")
        return self._configured(pod, "nvidia-device-plugin", *flags, added=True)

    def _gfd(self, pod: Object) -> PodProcesses:
        output = ("--use-node-feature-api=false", "--output-file", str(self.labels))
        return self._configured(pod, "gpu-feature-discovery", *output, "--sleep-interval", GFD_SECONDS)

    def _mps(self, pod: Object) -> PodProcesses:
        return self._configured(pod, "mps-control-daemon", added=True)

    def _configured(self, pod: Object, program: str, *flags: str, added: bool = False) -> PodProcesses:
        """A program with config-manager as its init container and as its sidecar, as in NVIDIA's three DaemonSets;
        alone where ClusterPolicy names no ConfigMap (docs/design/nvidia.md#b4). Its `mig.strategy` is a variable, which
        wins (docs/design/nvidia.md#b2).

        The pod has `shareProcessNamespace`: config-manager goes through all processes to find the one to signal, and
        gives up at the first one that it cannot read. It must not meet those of other pods.
        """
        name = f"pods/{program}-{_uid(pod)[:8]}"
        config = self.sandbox.folder / name / "config.yaml"
        proc = self.sandbox.process_view(f"{name}/proc")
        said = self._cluster_policy()
        settings = section(said, "devicePlugin", "config")
        alone = said is not None and not text(settings, "name")
        strategy = text(said, "mig", "strategy")
        main = SandboxTask(
            self.sandbox, program, *(() if alone else ("--config-file", str(config))), *flags,
            log=self.sandbox.folder / f"{program}.log",
            extra={"NODE_NAME": self.node, **({"MIG_STRATEGY": strategy} if strategy else {})},
            added=[MPS_FOLDER] if added else (), proc=proc,
        )  # fmt: skip
        if alone:
            return PodProcesses(_uid(pod), [main], lambda: True)
        default = text(settings, "default")
        chosen = ("--default-config", default) if default else ()
        manager = partial(self._config_manager, program, config, proc, *chosen)

        def init() -> bool:
            return (
                self.plugin_configs.exists
                and manager("--oneshot", "--send-signal=false").run(INIT_SECONDS) == 0
            )

        tasks: list[Task] = [main, manager("--send-signal=true", "--signal", "1")]
        return PodProcesses(_uid(pod), tasks, init)

    def _cluster_policy(self) -> Object | None:
        """The spec of the one that there is, as the GPU Operator reads it when it makes the pod; None also where its
        kind is not served."""
        try:
            listed = self.api.list("/apis/nvidia.com/v1/clusterpolicies")
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            listed = []
        return section(listed[0], "spec") if listed else None

    def _config_manager(self, program: str, config: Path, proc: ProcessView, *flags: str) -> SandboxTask:
        return SandboxTask(
            self.sandbox, "config-manager", "--node-name", self.node, "--kubeconfig", str(self.kubeconfig),
            "--config-file-srcdir", str(self.plugin_configs.folder), "--config-file-dst", str(config),
            "--fallback-strategies", "empty", "--process-to-signal", str(build.program(program)), *flags,
            log=self.sandbox.folder / f"config-manager-{program}.log", proc=proc,
        )  # fmt: skip

    def _agent(self, pod: Object) -> PodProcesses:
        """The shipped agent as a process, with the token that the kubelet would give to its pod."""
        metadata = pod["metadata"]
        path = self.sandbox.folder / "agent.kubeconfig"
        log = self.sandbox.folder / "agent.log"
        environment = {
            **self.sandbox.simulator.environment(),
            "NODE_NAME": self.node,
            "KUBECONFIG": str(path),
        }
        flags = ("--pod-resources-socket", str(self.podresources), "--metrics-addr", "127.0.0.1:0")
        program = ("-m", "gpusharing.agent.main", *flags, "--interval", "5")
        task = LaunchedProcess(program, environment, log, command_around(pod))

        def init() -> bool:
            token = pod_bound_token(self.api, metadata["namespace"], metadata["name"])
            write_kubeconfig(path, self.api.url, self.api.ca_pem, "agent", Credentials(token=token))
            return True

        return PodProcesses(_uid(pod), [task], init)


def _uid(pod: Object) -> str:
    return str(pod["metadata"]["uid"])


OWN_PID_NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child=SIGTERM")
WITHOUT_CAPABILITIES = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--ambient-caps", "-all")


def command_around(pod: Object) -> tuple[str, ...]:
    """The command that runs the program of the pod's first container. Only what NVML asks for is played."""
    spec = pod["spec"]
    namespace = () if spec.get("hostPID") else OWN_PID_NAMESPACE
    return (*namespace, *_capabilities(spec["containers"][0].get("securityContext") or {}))


def _capabilities(context: Object) -> tuple[str, ...]:
    capabilities = context.get("capabilities") or {}
    added, dropped = capabilities.get("add") or [], capabilities.get("drop") or []
    if context.get("privileged") or not {"SYS_ADMIN", "ALL"}.isdisjoint(added):
        return ()
    # A container runtime gives SYS_ADMIN to nobody by default.
    return WITHOUT_CAPABILITIES if "ALL" in dropped else WITHOUT_SYS_ADMIN
