"""Reads the DaemonSets of NVIDIA's components and of Node Feature Discovery. Where NVIDIA's device-plugin chart runs
without the GPU Operator, its DaemonSets say what a ClusterPolicy would say; those of the GPU Operator say what
ClusterPolicy does not.

Names are those of the chart in k8s-device-plugin, deployments/helm/nvidia-device-plugin (v0.19.3); tests/nvidia
compares what is read here with its rendered templates.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from posixpath import dirname

from gpusharing.api.names import LABEL_DEPLOY_CLIENT
from gpusharing.kube.client import CLUSTER_POLICIES, DAEMON_SETS, JSON, KubeClient
from gpusharing.kube.dra import GPU_PROGRAM, GPUS, dra_driver_view, starts
from gpusharing.kube.errors import Forbidden, NotFound
from gpusharing.kube.paging import list_of
from gpusharing.kube.raw import (
    entries,
    has_condition,
    is_true,
    part,
    section,
    strings,
    text,
    texts,
    variable,
    whole,
)
from gpusharing.kube.taints import rows_text, tolerates
from gpusharing.planning.snapshot.draviews import DraDriverView, DraView
from gpusharing.planning.snapshot.stackviews import (
    MIG_MANAGER_SWITCH,
    ClusterPolicyView,
    FinderState,
    MpsDaemonView,
    PlainStackView,
)
from gpusharing.planning.stack.plainmig import find_unusable_manager
from gpusharing.planning.stack.rivals import Role, Server

PLUGIN, DISCOVERY = "nvidia-device-plugin-ctr", "gpu-feature-discovery-ctr"
"""Names of the containers by which the chart's DaemonSets are recognized; the GPU Operator's have other names."""
MPS, MANAGER = "mps-control-daemon-ctr", "config-manager"
"""Containers of the GPU Operator's MPS daemon."""
MIG_MANAGER = "nvidia-mig-manager"
"""Name of mig-manager's container, in the GPU Operator and in mig-parted's example of a DaemonSet."""
SIGNALLED = "PROCESS_TO_SIGNAL"
"""The environment variable of config-manager that names the process to notify."""
CONFIGS = "available-configs"
"""Name of the volume from which config-manager reads configurations."""


@dataclass(frozen=True, slots=True)
class DaemonSetView:
    """The parts that we use of one DaemonSet in the namespace of NVIDIA's components."""

    name: str
    """Name of the DaemonSet; empty unless it is one of the chart, or runs mig-manager without the GPU Operator."""
    release: str
    plugin: bool
    discovery: bool
    config_map: str
    """Name of the ConfigMap that it mounts for config-manager or mig-manager; empty if it mounts none."""
    default: str = ""
    """Name of the configuration for nodes without the label; empty if there is none."""
    mig_strategy: str = ""
    """MIG_STRATEGY of the device plugin's container; empty if that is not set, or there is no such container."""
    version: str = ""
    """Tag of the device plugin's or mig-manager's image; empty if it has only a digest, or no such container runs."""
    tolerates_gate: bool = True
    tolerations: str = "[]"
    mps_daemon: MpsDaemonView | None = None
    """The GPU Operator's MPS daemon, or None if the DaemonSet does not run it together with config-manager."""
    finder: FinderState | None = None
    """The state of Node Feature Discovery's workers, or None if the DaemonSet does not run them."""
    pausable: bool = False
    """Whether its pods run only on nodes with nvidia.com/gpu.deploy.client=true, a label that mig-manager pauses."""
    mig_manager: bool = False
    """Whether it runs mig-manager without the GPU Operator; `config_map` is then that of its configurations, and `version` that of mig-manager's image."""
    with_reboot: bool = False
    dra: DraDriverView | None = None
    """NVIDIA's DRA driver, or None if the DaemonSet does not run it."""
    server: Server | None = None
    """What its pods do with GPUs, also as a part of the GPU Operator (`gpu_server`); None if they do nothing."""


_OTHER = DaemonSetView("", "", False, False, "")


def daemon_set_view(raw: JSON) -> DaemonSetView:
    """Convert a raw DaemonSet."""
    return replace(_component(raw), server=gpu_server(raw))


def _component(raw: JSON) -> DaemonSetView:
    owners = entries(raw, "metadata", "ownerReferences")
    template = section(raw, "spec", "template", "spec")
    containers = {text(container, "name"): container for container in entries(template, "containers")}
    if any(owner.get("kind") == "ClusterPolicy" for owner in owners):
        return (
            replace(_OTHER, mps_daemon=_mps_daemon(raw, containers))
            if containers.keys() >= {MPS, MANAGER}
            else _OTHER
        )
    if MIG_MANAGER in containers:
        return _mig_manager(raw, containers[MIG_MANAGER])
    if (driver := dra_driver_view(raw, containers)) is not None:
        return replace(_OTHER, dra=driver)
    if not containers.keys() & {PLUGIN, DISCOVERY}:
        finder = finder_state(raw)
        return _OTHER if finder is None else replace(_OTHER, finder=finder)
    main = containers.get(PLUGIN, {})
    init = entries(template, "initContainers")
    volumes = (volume for volume in entries(template, "volumes") if volume.get("name") == CONFIGS)
    return DaemonSetView(
        name=text(raw, "metadata", "name"),
        release=texts(raw.get("metadata", {}).get("labels")).get("app.kubernetes.io/instance", ""),
        plugin=PLUGIN in containers,
        discovery=DISCOVERY in containers,
        config_map=next((text(volume, "configMap", "name") for volume in volumes), ""),
        default=next((name for container in init if (name := variable(container, "DEFAULT_CONFIG"))), ""),
        mig_strategy=variable(main, "MIG_STRATEGY"),
        version=_version(main),
        tolerates_gate=tolerates(entries(template, "tolerations")),
        tolerations=rows_text(entries(template, "tolerations")),
        pausable=texts(part(template, "nodeSelector")).get(LABEL_DEPLOY_CLIENT) == "true",
    )


def _mig_manager(raw: JSON, container: JSON) -> DaemonSetView:
    template = section(raw, "spec", "template", "spec")
    file = variable(container, "CONFIG_FILE")
    mounts = (
        mount for mount in entries(container, "volumeMounts") if text(mount, "mountPath") == dirname(file)
    )
    volume = text(next(mounts, {}), "name")
    maps = (
        text(row, "configMap", "name") for row in entries(template, "volumes") if text(row, "name") == volume
    )
    return replace(
        _OTHER,
        name=text(raw, "metadata", "name"),
        config_map=next(maps, ""),
        version=_version(container),
        mig_manager=True,
        with_reboot=is_true(variable(container, "WITH_REBOOT")),
    )


def finder_state(daemon_set: JSON) -> FinderState | None:
    """Return the name, the Helm release and the tolerations of a raw DaemonSet that runs Node Feature Discovery's worker, and whether it tolerates the start-up taint."""
    template = section(daemon_set, "spec", "template", "spec")
    containers = entries(template, "containers")
    if not any("nfd-worker" in strings(container.get("command")) for container in containers):
        return None
    tolerations = entries(template, "tolerations")
    return FinderState(
        name=text(daemon_set, "metadata", "name"),
        release=texts(part(daemon_set, "metadata", "labels")).get("app.kubernetes.io/instance", ""),
        tolerates_gate=tolerates(tolerations),
        tolerations=rows_text(tolerations),
    )


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


def lone_restarts(pod: JSON) -> tuple[int, str, bool]:
    """Return how many more restarts config-manager has than the daemon's container in a raw pod of an MPS daemon, why config-manager ended the last time, such as `Error, exit code 1`, and whether config-manager is not running."""
    states = {text(row, "name"): row for row in entries(pod, "status", "containerStatuses")}
    manager, daemon = states.get(MANAGER, {}), states.get(MPS, {})
    count = whole(manager, "restartCount") - whole(daemon, "restartCount")
    settling = bool(section(manager, "state").keys() & {"waiting", "terminated"})
    ended = section(manager, "lastState", "terminated")
    if not ended:
        return count, "", settling
    reason = text(ended, "reason")
    return count, f"{reason + ', ' if reason else ''}exit code {whole(ended, 'exitCode')}", settling


def is_daemon_down(pod: JSON) -> bool:
    """Whether the daemon's container in a raw pod of an MPS daemon is not running."""
    states = {text(row, "name"): row for row in entries(pod, "status", "containerStatuses")}
    return part(states.get(MPS, {}), "ready") is not True and not has_condition(pod, "Ready")


def signal(raw: JSON, program: str) -> JSON:
    """Return a merge patch for a raw DaemonSet of MPS daemons that sets PROCESS_TO_SIGNAL of its config-manager to `program`."""
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
    """Return what a ClusterPolicy would say, read from the DaemonSets of NVIDIA's chart among `sets`, or None if none of them runs the chart's device plugin."""
    views = sorted(sets, key=lambda row: row.name)
    chart = [row for row in views if row.plugin or row.discovery]
    plugin = next((row for row in chart if row.plugin), None)
    if plugin is None:
        return None
    manager = next((row for row in views if row.mig_manager), _OTHER)
    plain = PlainStackView(plugin.name, plugin.release, manager.name, all(row.pausable for row in chart))
    discovers = any(row.discovery and row.config_map == plugin.config_map for row in chart)
    divides = find_unusable_manager(plain, manager.version) is None
    narrow = next((row for row in chart if not row.tolerates_gate), plugin)
    return ClusterPolicyView(
        plugin_config_name=plugin.config_map,
        mig_strategy=plugin.mig_strategy,
        mig_config_name=manager.config_map,
        switches=({} if divides else {MIG_MANAGER_SWITCH: False})
        | ({} if discovers else {"gfd.enabled": False}),
        plugin_default=plugin.default,
        with_reboot=manager.with_reboot,
        plugin_version=plugin.version,
        mig_manager_version=manager.version,
        tolerates_gate=narrow.tolerates_gate,
        tolerations=narrow.tolerations,
        plain=plain,
    )


def with_mps_daemon(policy: ClusterPolicyView, sets: Iterable[DaemonSetView]) -> ClusterPolicyView:
    """Return the policy with the MPS daemon of the first DaemonSet that runs one, or with None if no DaemonSet does."""
    daemon = next((row.mps_daemon for row in sets if row.mps_daemon is not None), None)
    return replace(policy, mps_daemon=daemon)


def find_dra(sets: Iterable[DaemonSetView]) -> DraView:
    """Return NVIDIA's DRA driver among `sets`, and the mig-manager that runs without the GPU Operator."""
    views = list(sets)
    drivers = sorted(
        (row.dra for row in views if row.dra is not None), key=lambda row: (not row.serves_gpus, row.name)
    )
    managers = sorted((row for row in views if row.mig_manager), key=lambda row: row.name)
    manager = next(iter(managers), _OTHER)
    return DraView(
        driver=next(iter(drivers), None),
        mig_manager=manager.name,
        mig_manager_version=manager.version,
        mig_config_map=manager.config_map,
        with_reboot=manager.with_reboot,
    )


PLUGINS = frozenset({PLUGIN, "nvidia-device-plugin"})
HAMI = "projecthami/hami:"


def gpu_server(raw: JSON) -> Server | None:
    """Convert a raw DaemonSet that serves or partitions GPUs, or return None if it is not known to do either."""
    template = section(raw, "spec", "template", "spec")
    role = next(filter(None, map(_role, entries(template, "containers"))), None)
    if role is None:
        return None
    metadata = section(raw, "metadata")
    annotations, owners = texts(metadata.get("annotations")), entries(metadata, "ownerReferences")
    managed = texts(metadata.get("labels")).get("app.kubernetes.io/managed-by") == "Helm"
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
    if name == GPUS and starts(container, GPU_PROGRAM):
        return Role.DRIVER
    if name in PLUGINS or HAMI in text(container, "image"):
        return Role.PLUGIN
    return Role.MIG_MANAGER if name == MIG_MANAGER else None


async def find_gpu_operator(client: KubeClient, default: str) -> str:
    """Return the namespace of the GPU Operator's pods: the namespace in the status of the first ClusterPolicy that names one and is not ignored, else the namespace of the first DaemonSet that serves or partitions GPUs (`gpu_server`) and is owned by a ClusterPolicy, else `default`."""
    try:
        states = [section(raw, "status") for raw in await list_of(client, CLUSTER_POLICIES)]
        reported = [text(state, "namespace") for state in states if text(state, "state") != "ignored"]
        sets = [] if any(reported) else await list_of(client, DAEMON_SETS)
    except (Forbidden, NotFound):
        return default
    owned = (row.namespace for raw in sets if (row := gpu_server(raw)) is not None and row.of_gpu_operator)
    return next(filter(None, reported), "") or next(owned, default)
