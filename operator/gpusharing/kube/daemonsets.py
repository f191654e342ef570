"""Read NVIDIA's programs and Node Feature Discovery from their DaemonSets and pods.

Where NVIDIA's device-plugin chart runs without the GPU Operator, its DaemonSets say what a ClusterPolicy would say;
those of the GPU Operator say what ClusterPolicy does not. Names are those of the chart in k8s-device-plugin,
deployments/helm/nvidia-device-plugin (v0.19.3); tests/nvidia compares what is read here with its rendered templates.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from posixpath import dirname

from gpusharing.api.names import LABEL_DEPLOY_CLIENT
from gpusharing.kube.client import CLUSTER_POLICIES, DAEMON_SETS, JSON, KubeClient
from gpusharing.kube.convert import daemon_set_state
from gpusharing.kube.dra import GPU_PROGRAM, GPUS, dra_driver_view, starts
from gpusharing.kube.errors import Forbidden, NotFound
from gpusharing.kube.lists import list_of
from gpusharing.kube.raw import entries, has_condition, is_true, part, section, strings, text, texts, variable, whole
from gpusharing.planning.snapshot.nvidia import (
    MIG_MANAGER_SWITCH,
    ClusterPolicyView,
    DaemonSetState,
    DraView,
    MpsDaemonView,
    Operand,
    PlainStackView,
    Program,
)
from gpusharing.planning.stack.plugins import Role, Server
from gpusharing.planning.stack.requirements import find_unusable_manager

PLUGIN, DISCOVERY = "nvidia-device-plugin-ctr", "gpu-feature-discovery-ctr"
"""Containers by which the chart's DaemonSets are recognized; the GPU Operator's have other names."""
MPS, MANAGER = "mps-control-daemon-ctr", "config-manager"
"""Containers of the GPU Operator's MPS daemon. Without the second, the daemon follows no label."""
MIG_MANAGER = "nvidia-mig-manager"
"""Name of mig-manager's container, in the GPU Operator and in mig-parted's example of a DaemonSet."""
SIGNALLED = "PROCESS_TO_SIGNAL"
"""The environment variable of config-manager that names the process to notify."""

_UNNAMED = DaemonSetState("")


@dataclass(frozen=True, slots=True)
class DaemonSetView:
    """The parts that we use of one DaemonSet in the namespace of NVIDIA's components."""

    state: DaemonSetState = _UNNAMED
    """Its name and tolerations; set only if it is the chart's, or runs mig-manager without GPU Operator."""
    chart: str = ""
    """The version of NVIDIA's device-plugin chart, from the label helm.sh/chart."""
    plugin: bool = False
    discovery: bool = False
    config_map: str = ""
    """Name of the ConfigMap that it mounts for config-manager or mig-manager; empty if it mounts none."""
    default: str = ""
    """Name of the configuration for nodes without the label; empty if there is none."""
    mig_strategy: str = ""
    """MIG_STRATEGY of the device plugin's container; empty if there is none."""
    version: str = ""
    """Tag of the device plugin's or mig-manager's image; empty if there is none, or only a digest."""
    mps_daemon: MpsDaemonView | None = None
    """The GPU Operator's MPS daemon, or None if it does not run here together with config-manager."""
    finder: DaemonSetState | None = None
    """The state of Node Feature Discovery's workers, or None if the DaemonSet does not run them."""
    pausable: bool = False
    """Whether its pods need nvidia.com/gpu.deploy.client=true, a label that mig-manager pauses."""
    mig_manager: bool = False
    with_reboot: bool = False
    """Whether this mig-manager reboots the node when a GPU cannot be reset (env WITH_REBOOT)."""
    dra: DaemonSetState | None = None
    """NVIDIA's DRA driver, or None if the DaemonSet does not run it."""
    server: Server | None = None
    """What its pods do with GPUs, also as a part of the GPU Operator; None if they do nothing."""


_OTHER = DaemonSetView()


def daemon_set_view(raw: JSON) -> DaemonSetView:
    """Convert a raw DaemonSet, recognized by its containers and programs.

    Of one that a ClusterPolicy owns, which is the GPU Operator's, only the MPS daemon and `server` are read.
    """
    view = DaemonSetView(server=gpu_server(raw))
    template = section(raw, "spec", "template", "spec")
    containers = {text(container, "name"): container for container in entries(template, "containers")}
    if any(owner.get("kind") == "ClusterPolicy" for owner in entries(raw, "metadata", "ownerReferences")):
        daemon = _mps_daemon(raw, containers) if containers.keys() >= {MPS, MANAGER} else None
        return replace(view, mps_daemon=daemon)
    if (manager := containers.get(MIG_MANAGER)) is not None:
        # Its ConfigMap is the one mounted in the folder of CONFIG_FILE (mig-parted v0.15.1,
        # deployments/container/nvidia-mig-manager-example.yaml).
        folder = dirname(variable(manager, "CONFIG_FILE"))
        mounts = (row for row in entries(manager, "volumeMounts") if text(row, "mountPath") == folder)
        return replace(
            view,
            state=daemon_set_state(raw),
            config_map=_config_map(template, text(next(mounts, {}), "name")),
            version=_version(manager),
            mig_manager=True,
            with_reboot=is_true(variable(manager, "WITH_REBOOT")),
        )
    if (driver := dra_driver_view(raw, containers)) is not None:
        return replace(view, dra=driver)
    if not containers.keys() & {PLUGIN, DISCOVERY}:
        # Node Feature Discovery's worker (templates/worker.yaml)
        finds = any("nfd-worker" in strings(container.get("command")) for container in containers.values())
        return replace(view, finder=daemon_set_state(raw) if finds else None)
    main, init = containers.get(PLUGIN, {}), entries(template, "initContainers")
    return replace(
        view,
        state=daemon_set_state(raw),
        chart=text(raw, "metadata", "labels", "helm.sh/chart").partition("nvidia-device-plugin-")[2].replace("_", "+"),
        plugin=PLUGIN in containers,
        discovery=DISCOVERY in containers,
        config_map=_config_map(template, "available-configs"),
        default=next((name for container in init if (name := variable(container, "DEFAULT_CONFIG"))), ""),
        mig_strategy=variable(main, "MIG_STRATEGY"),
        version=_version(main),
        pausable=text(template, "nodeSelector", LABEL_DEPLOY_CLIENT) == "true",
    )


def _config_map(template: JSON, volume: str) -> str:
    volumes = entries(template, "volumes")
    return next((text(row, "configMap", "name") for row in volumes if text(row, "name") == volume), "")


def _mps_daemon(raw: JSON, containers: Mapping[str, JSON]) -> MpsDaemonView:
    daemon, uid = containers[MPS], text(raw, "metadata", "uid")
    rows = [row for row in entries(containers[MANAGER], "env") if row.get("name") == SIGNALLED]
    is_plain = bool(rows) and rows[-1].get("valueFrom") is None
    return MpsDaemonView(
        version=_version(daemon),
        program=next(iter(strings(daemon.get("command"))), ""),
        signalled=text(rows[-1], "value") if is_plain else None,
        sees_host=section(raw, "spec", "template", "spec").get("hostPID") is True,
        name=text(raw, "metadata", "name"),
        namespace=text(raw, "metadata", "namespace"),
        state=f"{uid}/{whole(raw, 'metadata', 'generation')}" if uid else "",
    )


def signal(raw: JSON, program: str) -> JSON:
    """Return a merge patch for this version of the MPS DaemonSet that lets its config-manager notify `program`."""
    containers = entries(raw, "spec", "template", "spec", "containers")
    for index, container in enumerate(containers):
        if text(container, "name") == MANAGER:
            env = entries(container, "env")
            env = [{**row, "value": program} if row.get("name") == SIGNALLED else row for row in env]
            containers[index] = {**container, "env": env}
    return {
        "metadata": {"resourceVersion": text(raw, "metadata", "resourceVersion")},
        "spec": {"template": {"spec": {"containers": containers}}},
    }


def _version(container: JSON) -> str:
    tagged = text(container, "image").partition("@")[0].rpartition("/")[2]
    return tagged.partition(":")[2]


def plain_stack(sets: Iterable[DaemonSetView]) -> ClusterPolicyView | None:
    """Return what a ClusterPolicy would say, from the DaemonSets of NVIDIA's chart; None without its device plugin."""
    views = sorted(sets, key=lambda row: row.state.name)
    chart = [row for row in views if row.plugin or row.discovery]
    plugin = next((row for row in chart if row.plugin), None)
    if plugin is None:
        return None
    manager = next((row for row in views if row.mig_manager), _OTHER)
    pausable = all(row.pausable for row in chart)
    plain = PlainStackView(plugin.state.name, plugin.state.release, manager.state.name, pausable, plugin.chart)
    switches = {}
    if find_unusable_manager(plain, manager.version) is not None:
        switches[MIG_MANAGER_SWITCH] = False
    if not any(row.discovery and row.config_map == plugin.config_map for row in chart):
        switches["gfd.enabled"] = False
    narrow = next((row.state for row in chart if not row.state.tolerates_gate), plugin.state)
    return ClusterPolicyView(
        plugin_config_name=plugin.config_map,
        mig_strategy=plugin.mig_strategy,
        mig_config_name=manager.config_map,
        switches=switches,
        plugin_default=plugin.default,
        with_reboot=manager.with_reboot,
        plugin_version=plugin.version,
        mig_manager_version=manager.version,
        tolerates_gate=narrow.tolerates_gate,
        tolerations=narrow.tolerations,
        plain=plain,
    )


def with_mps_daemon(policy: ClusterPolicyView, sets: Iterable[DaemonSetView]) -> ClusterPolicyView:
    daemon = next((row.mps_daemon for row in sets if row.mps_daemon is not None), None)
    return replace(policy, mps_daemon=daemon)


def find_dra(sets: Iterable[DaemonSetView]) -> DraView:
    """Return NVIDIA's DRA driver, best one that serves GPUs, and a mig-manager without the GPU Operator."""
    views = list(sets)
    drivers = (row.dra for row in views if row.dra is not None)
    managers = (row for row in views if row.mig_manager)
    manager = min(managers, key=lambda row: row.state.name, default=_OTHER)
    return DraView(
        driver=min(drivers, key=lambda row: (not row.serves_gpus, row.name), default=None),
        mig_manager=manager.state.name,
        mig_manager_version=manager.version,
        mig_config_map=manager.config_map,
        with_reboot=manager.with_reboot,
    )


def gpu_server(raw: JSON) -> Server | None:
    """Convert a raw DaemonSet that serves or partitions GPUs, known by its containers; None for others."""
    template = section(raw, "spec", "template", "spec")
    role = next(filter(None, map(_role, entries(template, "containers"))), None)
    if role is None:
        return None
    metadata = section(raw, "metadata")
    annotations, owners = texts(metadata.get("annotations")), entries(metadata, "ownerReferences")
    managed = text(metadata, "labels", "app.kubernetes.io/managed-by") == "Helm"
    namespace = text(metadata, "namespace")
    affinity = section(template, "affinity")
    return Server(
        namespace=namespace,
        name=text(metadata, "name"),
        role=role,
        of_gpu_operator=any(owner.get("kind") == "ClusterPolicy" for owner in owners),
        release=annotations.get("meta.helm.sh/release-name", "") if managed else "",
        release_namespace=annotations.get("meta.helm.sh/release-namespace", namespace),
        owned=bool(owners),
        wanted=0 if "deletionTimestamp" in metadata else whole(raw, "status", "desiredNumberScheduled"),
        selector=texts(part(template, "nodeSelector")),
        affinity=json.dumps(affinity, sort_keys=True) if affinity else "",
        tolerations=frozenset(json.dumps(row, sort_keys=True) for row in entries(template, "tolerations")),
        stale=0 < whole(raw, "status", "observedGeneration") < whole(metadata, "generation"),
    )


def _role(container: JSON) -> Role | None:
    name = text(container, "name")
    # Left out of the chart with `resources.gpus.enabled=false` (k8s-dra-driver-gpu, templates/kubeletplugin.yaml at
    # 12d2af7).
    if name == GPUS and starts(container, GPU_PROGRAM):
        return Role.DRIVER
    # The GPU Operator's (assets/state-device-plugin/0500_daemonset.yaml), NVIDIA's chart and static manifest, and
    # HAMi's, which serves nvidia.com/gpu too (charts/hami of Project-HAMi/HAMi v2.10.0).
    if name in ("nvidia-device-plugin", PLUGIN) or "projecthami/hami:" in text(container, "image"):
        return Role.PLUGIN
    return Role.MIG_MANAGER if name == MIG_MANAGER else None


async def find_gpu_operator(client: KubeClient, default: str) -> str:
    """Return the namespace of the GPU Operator, or `default` if no object that we may read shows it."""
    try:
        states = [section(raw, "status") for raw in await list_of(client, CLUSTER_POLICIES)]
        reported = [text(state, "namespace") for state in states if text(state, "state") != "ignored"]
        sets = [] if any(reported) else await list_of(client, DAEMON_SETS)
    except (Forbidden, NotFound):
        return default
    owned = (row.namespace for raw in sets if (row := gpu_server(raw)) is not None and row.of_gpu_operator)
    return next(filter(None, reported), "") or next(owned, default)


def operand_view(raw: JSON) -> Operand:
    """Convert a raw pod of NVIDIA's components; the chart's MPS daemon, which has no label `app`, gets one here."""
    app = text(raw, "metadata", "labels", "app")
    containers = {text(container, "name") for container in entries(raw, "spec", "containers")}
    statuses = entries(raw, "status", "containerStatuses")
    runs = {text(row, "name") for row in statuses if row.get("ready") is True}
    ready = has_condition(raw, "Ready")
    if text(raw, "metadata", "labels", Program.KUBELET_PLUGIN.label) == Program.KUBELET_PLUGIN:
        app = Program.KUBELET_PLUGIN if GPUS in containers else ""  # not one for compute domains only
        ready = ready or GPUS in runs  # the container for compute domains may fail alone
    restarts, cause, settling = lone_restarts(raw) if app == Program.MPS_DAEMON else (0, "", False)
    if MPS in containers:
        app = Program.MPS_DAEMON
    deleting = "deletionTimestamp" in section(raw, "metadata")
    namespace, name, uid = (text(raw, "metadata", key) for key in ("namespace", "name", "uid"))
    return Operand(
        namespace,
        name,
        uid,
        ready=ready and not deleting,
        deleting=deleting,
        lone_restarts=restarts,
        restart_cause=cause,
        settling=settling,
        # The MPS daemon is not running, so it does not set the compute mode of the GPUs back when its pod goes.
        down=app == Program.MPS_DAEMON and not ready and MPS not in runs,
        node=text(raw, "spec", "nodeName"),
        app=app,
    )


def unknown_operand(raw: JSON, _: str) -> Operand:
    namespace, name, uid = (text(raw, "metadata", key) for key in ("namespace", "name", "uid"))
    node, app = text(raw, "spec", "nodeName"), text(raw, "metadata", "labels", "app")
    return Operand(namespace, name, uid, ready=False, node=node, app=app)


def lone_restarts(pod: JSON) -> tuple[int, str, bool]:
    """Return how many more restarts config-manager has than the MPS daemon, why it last ended, and whether it is down.

    A rise means that it restarted alone, because a reboot restarts both. Times would be those of the node's clock.
    """
    states = {text(row, "name"): row for row in entries(pod, "status", "containerStatuses")}
    manager, daemon = states.get(MANAGER, {}), states.get(MPS, {})
    count = whole(manager, "restartCount") - whole(daemon, "restartCount")
    settling = bool(section(manager, "state").keys() & {"waiting", "terminated"})
    ended = section(manager, "lastState", "terminated")
    if not ended:
        return count, "", settling
    reason = text(ended, "reason")
    return count, f"{reason + ', ' if reason else ''}exit code {whole(ended, 'exitCode')}", settling


def by_node(pods: Iterable[Operand], app: str) -> dict[str, Operand]:
    """Return the pod of NVIDIA's component `app` on each node, by node name; of several, a Ready one."""
    operands: dict[str, Operand] = {}
    for pod in pods:
        if pod.app == app and pod.node and (pod.node not in operands or pod.ready):
            operands[pod.node] = pod
    return operands
