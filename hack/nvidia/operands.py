"""The DaemonSets of NVIDIA's operands, and the programs in their pods and in the agent's pod, as tasks in the
sandbox."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path

from gpusharing.api.names import LABEL_DEPLOY_PREFIX
from gpusharing.kube.raw import entries, section, text
from hack.cluster.api import Api, ApiError, Credentials, Object
from hack.cluster.install import GPU_OPERATOR_NAMESPACE
from hack.cluster.kubeconfig import pod_bound_token, write_kubeconfig
from hack.launch import LaunchedProcess
from hack.nvidia import build, dradriver
from hack.nvidia.kubelet import Mount
from hack.nvidia.migmanager import MigManagerProgram
from hack.nvidia.sandbox import WITHOUT_SYS_ADMIN, ProcessView, Sandbox
from hack.nvidia.tasks import PodProcesses, SandboxTask, Task
from hack.sim.dra import KUBELET_PLUGIN, LABEL_DRA, device_classes

MIG_MANAGER, PLUGIN, GFD = "nvidia-mig-manager", "nvidia-device-plugin-daemonset", "gpu-feature-discovery"
PLAIN_PLUGIN = "nvidia-device-plugin"
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
"""An annotation that keeps kwok from ending a pod: the node deletes it once its processes have ended."""
INIT_SECONDS = 20.0
GFD_SECONDS = "10s"
"""The interval of GFD's own loop, which is 60 s by default."""
MPS_FOLDER = "mps"


def daemon_set(name: str) -> Object:
    """Return the DaemonSet `name`, a key of SELECTORS, as the GPU Operator would create it; nothing is created."""
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


def install(api: Api, *, dra: bool = False) -> None:
    """Create those of the GPU Operator's DaemonSets (SELECTORS) that do not exist yet."""
    off = (PLUGIN, MPS) if dra else ()
    wanted = [daemon_set(name) for name in SELECTORS if name not in off]
    if dra:
        wanted.append(dradriver.daemon_set(HOLD))
        for body in device_classes():
            api.ensure("/apis/resource.k8s.io/v1/deviceclasses", body)
    for body in wanted:
        api.ensure(f"/apis/apps/v1/namespaces/{GPU_OPERATOR_NAMESPACE}/daemonsets", body)


@dataclass
class PodPrograms:
    """Creates the processes of one node's pods."""

    api: Api
    node: str
    kubeconfig: Path
    sandbox: Sandbox
    plugin_configs: Mount
    mig_config: Mount
    podresources: Path
    pod_logs: Path

    def __post_init__(self) -> None:
        config = self.mig_config.folder / "config.yaml"
        self.mig_manager = MigManagerProgram(self.sandbox, self.node, self.kubeconfig, config)
        self.labels = self.sandbox.folder / "labels"
        self._logs: dict[str, Path] = {}

    def of(self, pod: Object) -> PodProcesses | None:
        """Return the processes of a pod, not started yet, or None if it is neither NVIDIA's nor ours."""
        labels = pod["metadata"].get("labels") or {}
        makers: Mapping[str, Callable[[Object], PodProcesses]] = {
            MIG_MANAGER: self._mig_manager, PLUGIN: self._plugin, GFD: self._gfd, MPS: self._mps, AGENT: self._agent,
            f"{PLAIN_PLUGIN}-ctr": self._plugin, f"{GFD}-ctr": self._gfd,
            KUBELET_PLUGIN: self._kubelet_plugin,
        }  # fmt: skip
        containers = (text(container, "name") for container in entries(pod, "spec", "containers"))
        keys = (*(labels.get(key, "") for key in ("app", "app.kubernetes.io/name", LABEL_DRA)), *containers)
        return next((makers[key](pod) for key in keys if key in makers), None)

    def log_of(self, pod: str) -> Path | None:
        """Return the log file of a mig-manager pod, which may be gone."""
        return self._logs.get(pod)

    def _mig_manager(self, pod: Object) -> PodProcesses:
        name = str(pod["metadata"]["name"])
        self.mig_manager.log = self._logs[name] = self.sandbox.folder / f"{name}.log"
        return PodProcesses(_uid(pod), [self.mig_manager], lambda: self.mig_config.exists)

    def _kubelet_plugin(self, pod: Object) -> PodProcesses:
        plugin = dradriver.kubelet_plugin(self.sandbox, self.node, self.kubeconfig)
        return PodProcesses(_uid(pod), [plugin], lambda: True)

    def _plugin(self, pod: Object) -> PodProcesses:
        flags = ("--mps-root", "/run/nvidia/mps")
        return self._configured(pod, "nvidia-device-plugin", *flags, added=True)

    def _gfd(self, pod: Object) -> PodProcesses:
        output = ("--use-node-feature-api=false", "--output-file", str(self.labels))
        return self._configured(pod, "gpu-feature-discovery", *output, "--sleep-interval", GFD_SECONDS)

    def _mps(self, pod: Object) -> PodProcesses:
        return self._configured(pod, "mps-control-daemon", added=True)

    def _configured(self, pod: Object, program: str, *flags: str, added: bool = False) -> PodProcesses:
        """Return `program` with config-manager as init container and sidecar, or alone if ClusterPolicy names no
        ConfigMap (docs/design/nvidia.md#b4). With `added` it needs MPS_FOLDER."""
        name = f"pods/{program}-{_uid(pod)[:8]}"
        config = self.sandbox.folder / name / "config.yaml"
        # As with `shareProcessNamespace`: config-manager searches all processes for the one to signal, and ends at the
        # first that it cannot read.
        proc = self.sandbox.process_view(f"{name}/proc")
        policy = read_cluster_policy(self.api)
        settings = section(policy, "devicePlugin", "config")
        alone = policy is not None and not text(settings, "name")
        strategy = text(policy, "mig", "strategy")
        main = SandboxTask(
            self.sandbox, program, *(() if alone else ("--config-file", str(config))), *flags,
            log=self.sandbox.folder / f"{program}.log",
            extra={"NODE_NAME": self.node, **({"MIG_STRATEGY": strategy} if strategy else {})},
            added=[MPS_FOLDER] if added else (), proc=proc,
        )  # fmt: skip
        if alone:
            return PodProcesses(_uid(pod), [main], lambda: True)
        default = text(settings, "default")
        fallback = ("--default-config", default) if default else ()
        # NVIDIA's chart sets other strategies than the GPU Operator.
        rows = (row for one in entries(pod, "spec", "initContainers") for row in entries(one, "env"))
        strategies = {text(row, "name"): text(row, "value") for row in rows}.get("FALLBACK_STRATEGIES", "empty")
        strategy_flag = ("--fallback-strategies", strategies)
        manager = partial(self._config_manager, program, config, proc, *fallback, *strategy_flag)

        def init() -> bool:
            return self.plugin_configs.exists and manager("--oneshot", "--send-signal=false").run(INIT_SECONDS) == 0

        tasks: list[Task] = [main, manager("--send-signal=true", "--signal", "1")]
        return PodProcesses(_uid(pod), tasks, init)

    def _config_manager(self, program: str, config: Path, proc: ProcessView, *flags: str) -> SandboxTask:
        return SandboxTask(
            self.sandbox, "config-manager", "--node-name", self.node, "--kubeconfig", str(self.kubeconfig),
            "--config-file-srcdir", str(self.plugin_configs.folder), "--config-file-dst", str(config),
            "--process-to-signal", str(build.program(program)), *flags,
            log=self.sandbox.folder / f"config-manager-{program}.log", proc=proc,
        )  # fmt: skip

    def _agent(self, pod: Object) -> PodProcesses:
        metadata = pod["metadata"]
        path = self.sandbox.folder / "agent.kubeconfig"
        log = self.sandbox.folder / "agent.log"
        environment = {**self.sandbox.simulator.environment(), "NODE_NAME": self.node, "KUBECONFIG": str(path)}
        flags = ("--pod-resources-socket", str(self.podresources), "--pod-logs", str(self.pod_logs))
        program = ("-m", "gpusharing.agent.main", *flags, "--metrics-addr", "127.0.0.1:0", "--interval", "5s")
        task = LaunchedProcess(program, environment, log, command_around(pod))

        def init() -> bool:
            token = pod_bound_token(self.api, metadata["namespace"], metadata["name"])
            write_kubeconfig(path, self.api.url, self.api.ca_pem, "agent", Credentials(token=token))
            return True

        return PodProcesses(_uid(pod), [task], init)


def read_cluster_policy(api: Api) -> Object | None:
    """Return the spec of the first ClusterPolicy that the API server lists, empty if it has none."""
    try:
        listed = api.list("/apis/nvidia.com/v1/clusterpolicies")
    except ApiError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        listed = []
    return section(listed[0], "spec") if listed else None


def _uid(pod: Object) -> str:
    return str(pod["metadata"]["uid"])


OWN_PID_NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child=SIGTERM")
WITHOUT_CAPABILITIES = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--ambient-caps", "-all")


def command_around(pod: Object) -> tuple[str, ...]:
    """Return the command that gives a program the rights of its container, as far as NVML checks them: capabilities,
    and a PID namespace."""
    spec = pod["spec"]
    namespace = () if spec.get("hostPID") else OWN_PID_NAMESPACE
    return (*namespace, *_capabilities(spec["containers"][0].get("securityContext") or {}))


def _capabilities(context: Object) -> tuple[str, ...]:
    capabilities = context.get("capabilities") or {}
    added, dropped = capabilities.get("add") or [], capabilities.get("drop") or []
    if context.get("privileged") or not {"SYS_ADMIN", "ALL"}.isdisjoint(added):
        return ()
    # Container runtimes grant no SYS_ADMIN by default.
    return WITHOUT_CAPABILITIES if "ALL" in dropped else WITHOUT_SYS_ADMIN
