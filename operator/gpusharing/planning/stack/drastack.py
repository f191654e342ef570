"""DRA with static partitions: mig-manager divides the GPUs, and NVIDIA's DRA driver serves them to ResourceClaims in
place of the device plugin.

A policy needs everything in NEEDS, in a cluster with a ClusterPolicy whose devicePlugin.enabled is false, with a
GPUCluster, or with neither (docs/adr/0078-dra-with-static-partitions.md).
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from gpusharing.api.names import Mode
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning.snapshot.draviews import DraDriverView, DraView
from gpusharing.planning.snapshot.stackviews import (
    MIG_MANAGER_SWITCH,
    PLUGIN_SWITCH,
    ClusterPolicyView,
    StackView,
    StartChange,
    is_served_by_dra,
)
from gpusharing.planning.snapshot.views import NodeView, PlanSettings
from gpusharing.planning.stack.commands import kubectl_patch
from gpusharing.planning.stack.installationviews import InstallationView, Symptoms, Topic, error
from gpusharing.planning.stack.migstart import SHOW_LABELS, after_labels, start_changes_of, tell_changes
from gpusharing.planning.vocabulary.lengths import MAX_TEXT, some
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.target import is_plugin_resource
from gpusharing.planning.wanted.toolversions import pauses_clients

NEW_MIG_MANAGER = "v0.15.1"
_IN_USE = "keeps the GPUs in use, so mig-manager could not change them"
REFUSED_GATES = {
    "ConsumableShares": "gives one device to several independent pods, so modes Full and MIG would not isolate them",
    "DynamicMIG": _IN_USE,
    "NVMLDeviceHealthCheck": _IN_USE,
}
"""What the kubelet plugin does with each feature gate that is refused (dra-driver-nvidia-gpu v0.5.0,
cmd/gpu-kubelet-plugin/consumable_shares.go, nvlib.go and device_health.go). With the last two it keeps NVML open, so
that mig-parted may find the GPUs in use."""


@value
class DraStack:
    """The facts that decide whether NVIDIA's DRA stack is there and complete."""

    gpu_cluster: bool
    """Whether there is a GPUCluster."""
    cluster_policy: ClusterPolicyView | None
    """The ClusterPolicy, or the view of NVIDIA's device-plugin chart that takes its place. None without either."""
    dra: DraView
    """The DRA driver, its ResourceSlices, and a mig-manager without the GPU Operator."""
    namespace: str
    """The namespace of NVIDIA's components."""
    mig_config_map: str = ""
    """Name of our ConfigMap of mig-parted configurations."""
    start_changes: tuple[StartChange, ...] = ()
    """The nodes whose GPUs mig-manager would or may change at its start."""

    @property
    def serves(self) -> bool:
        """Whether NVIDIA's DRA stack serves the GPUs of the cluster (`is_served_by_dra`)."""
        return is_served_by_dra(self.gpu_cluster, self.cluster_policy, self.dra)

    @property
    def partitioner(self) -> ClusterPolicyView | None:
        """The ClusterPolicy whose mig-manager divides the GPUs. None where mig-manager has to run by itself: with a
        GPUCluster, with NVIDIA's device-plugin chart, or without a ClusterPolicy."""
        policy = self.cluster_policy
        return policy if policy is not None and policy.plain is None and not self.gpu_cluster else None


def find_dra_stack(stack: StackView, settings: PlanSettings) -> DraStack:
    """Return the facts about NVIDIA's DRA stack in the operator's view, with the namespace and the name of our
    mig-parted ConfigMap from the settings."""
    namespace, ours = settings.gpu_operator_namespace, settings.mig_config_map
    return DraStack(stack.gpu_cluster, stack.cluster_policy, stack.dra, namespace, ours, stack.start_changes)


def dra_stack_of(view: InstallationView) -> DraStack:
    """Return the facts about NVIDIA's DRA stack in what was read of an installation, with the namespace and the name of
    our mig-parted ConfigMap. Of several ClusterPolicies, the first that the GPU Operator does not ignore counts."""
    namespace, ours = view.place.gpu_operator_namespace, view.place.mig_config_map
    return DraStack(view.gpu_cluster, view.followed_policy, view.dra, namespace, ours)


def find_doubles(nodes: Mapping[str, NodeView], published_for: Iterable[str]) -> tuple[str, ...]:
    """Return the sorted names of the nodes whose GPUs are served twice: NVIDIA's DRA driver publishes devices for the
    node, and its allocatable has a GPU resource with a count above 0, which only a device plugin advertises.
    `published_for` are the names of the nodes for which the driver publishes devices; names without a Node are
    ignored."""
    published = (nodes[name] for name in sorted(published_for) if name in nodes)
    return tuple(
        node.name
        for node in published
        if any(count and is_plugin_resource(name) for name, count in node.resources.items())
    )


@value
class Lack:
    """One thing that NVIDIA's DRA stack lacks in this cluster."""

    message: str
    """What is wrong, and what follows from it."""
    command: str
    """The command that corrects it, or that shows it. Words in CAPITALS are for a person to fill in. Empty if it must
    not be printed yet, because mig-manager would change GPUs at its start."""
    starts: bool = False
    """Whether the command starts or restarts mig-manager."""


def _not_readable(stack: DraStack) -> Lack | None:
    """Return a Lack that says why the ResourceSlices or DeviceClasses cannot be read. None if they can be read or need
    not be."""
    return (
        Lack(
            stack.dra.unread, "kubectl get resourceslices.v1.resource.k8s.io,deviceclasses.v1.resource.k8s.io"
        )
        if stack.dra.unread
        else None
    )


def _no_driver(stack: DraStack) -> Lack | None:
    """Return a Lack that says that no DaemonSet in NVIDIA's namespace runs its DRA driver, or None if the driver is
    there."""
    if stack.dra.driver is not None:
        return None
    return Lack(
        f"no DaemonSet in namespace {stack.namespace} runs NVIDIA's DRA driver, whose kubelet plugin serves the GPUs",
        f"helm install dra-driver-nvidia-gpu CHART -n {stack.namespace} --set gpuResourcesEnabledOverride=true",
    )


def _without_gpus(stack: DraStack) -> Lack | None:
    """Return a Lack that says that the DRA driver serves no GPUs. None if it does, or if there is no driver."""
    driver = stack.dra.driver
    if driver is None or driver.serves_gpus:
        return None
    return Lack(
        f"NVIDIA's DRA driver (DaemonSet {driver.name}) serves only compute domains, not GPUs",
        _upgrade(stack, driver, "resources.gpus.enabled=true,gpuResourcesEnabledOverride=true"),
    )


def _bad_gate(stack: DraStack) -> Lack | None:
    """Return a Lack about a feature gate of the DRA driver that is one of REFUSED_GATES. None if no such gate is on, or
    if there is no driver. Only the first such gate by name is reported."""
    driver = stack.dra.driver
    gates = sorted(driver.gates & REFUSED_GATES.keys()) if driver is not None else []
    if driver is None or not gates:
        return None
    return Lack(
        f"NVIDIA's DRA driver (DaemonSet {driver.name}) has the {gates[0]} feature gate enabled and"
        f" {REFUSED_GATES[gates[0]]}",
        _upgrade(stack, driver, f"featureGates.{gates[0]}=false"),
    )


def _upgrade(stack: DraStack, driver: DraDriverView, values: str) -> str:
    """Return the Helm command that sets `values`, which are pairs NAME=VALUE separated by commas, in the release of
    the DRA driver. If the name of the release is unknown, the command has RELEASE in its place."""
    release = driver.release or "RELEASE"
    return f"helm upgrade {release} CHART -n {stack.namespace} --reset-then-reuse-values --set {values}"


def _served_twice(stack: DraStack) -> Lack | None:
    """Return a Lack about a device plugin that runs alongside the DRA driver, because a GPU could then be given to two
    pods at once. The first of these counts: the plugin of NVIDIA's chart; that of ClusterPolicy; a ClusterPolicy beside
    a GPUCluster, even without a device plugin; one that is known only from the nodes that both serve. None if there is
    no sign of one."""
    policy = stack.cluster_policy
    if policy is not None and policy.plain is not None:
        plugin = policy.plain.daemon_set
        return Lack(
            f"NVIDIA's device-plugin chart (DaemonSet {plugin}) is installed alongside NVIDIA's DRA stack",
            f"helm uninstall {policy.plain.release or 'RELEASE'} -n {stack.namespace}",
        )
    if policy is not None and not policy.is_off(PLUGIN_SWITCH):
        return Lack(
            f"ClusterPolicy {policy.name} runs a device plugin alongside NVIDIA's DRA stack",
            kubectl_patch(policy.name, {"devicePlugin": {"enabled": False}}),
        )
    if policy is not None and stack.gpu_cluster:
        return Lack(
            f"ClusterPolicy {policy.name} and a GPUCluster both install NVIDIA's components; keep one of them",
            "kubectl get clusterpolicies,gpuclusters",
        )
    if not (doubles := stack.dra.doubles):
        return None
    return Lack(
        f"a device plugin and NVIDIA's DRA driver both manage the GPUs on {some(doubles)}",
        f"kubectl get pods -A --field-selector spec.nodeName={doubles[0]}",
    )


def _no_mig_manager(stack: DraStack) -> Lack | None:
    """Return a Lack that says that nothing divides the GPUs. Where a ClusterPolicy is responsible for mig-manager, this
    is the case if it switches mig-manager off; elsewhere, if no mig-manager runs in NVIDIA's namespace. None otherwise.
    """
    if (policy := stack.partitioner) is not None:
        if not policy.is_off(MIG_MANAGER_SWITCH):
            return None
        command = kubectl_patch(policy.name, {"migManager": {"enabled": True}})
        return Lack(
            f"ClusterPolicy {MIG_MANAGER_SWITCH} is false, so nothing would partition the GPUs",
            command,
            starts=True,
        )
    if stack.dra.mig_manager:
        return None
    return Lack(
        f"mig-manager does not run in namespace {stack.namespace}, so nothing would partition the GPUs",
        "kubectl apply -k deploy/mig-manager",
        starts=True,
    )


def _old_mig_manager(stack: DraStack) -> Lack | None:
    """Return a Lack that says that mig-manager is older than v0.15, or None if it is not. A version that is empty or
    cannot be parsed counts as new enough."""
    policy, dra = stack.partitioner, stack.dra
    version = policy.mig_manager_version if policy is not None else dra.mig_manager_version
    if pauses_clients(version):
        return None
    old = f"runs mig-manager {version}, which is older than v0.15"
    if policy is not None:
        command = kubectl_patch(policy.name, {"migManager": {"version": NEW_MIG_MANAGER}})
        return Lack(f"ClusterPolicy {policy.name} {old}", command, starts=True)
    image = f"nvidia-mig-manager=REPOSITORY/k8s-mig-manager:{NEW_MIG_MANAGER}"
    command = f"kubectl -n {stack.namespace} set image daemonset/{dra.mig_manager} {image}"
    return Lack(f"DaemonSet {dra.mig_manager} {old}", command, starts=True)


def _other_config_map(stack: DraStack) -> Lack | None:
    """Return a Lack if mig-manager mounts another ConfigMap than ours, or none. None if it mounts ours, if there is no
    mig-manager, or if a ClusterPolicy is responsible for it."""
    dra, ours = stack.dra, stack.mig_config_map
    if stack.partitioner is not None or not dra.mig_manager or dra.mig_config_map == ours:
        return None
    return Lack(
        f"DaemonSet {dra.mig_manager} must mount ConfigMap {ours} in the directory of its CONFIG_FILE; it mounts"
        f" {dra.mig_config_map or 'none'}",
        f"kubectl -n {stack.namespace} edit daemonset {dra.mig_manager}",
        starts=True,
    )


NEEDS = (
    _not_readable,
    _no_driver,
    _without_gpus,
    _bad_gate,
    _served_twice,
    _no_mig_manager,
    _old_mig_manager,
    _other_config_map,
)
"""What DRA with static partitions needs, in the order in which people should check it."""


def find_lacks(stack: DraStack) -> tuple[Lack, ...]:
    """Return what this cluster lacks of NEEDS: a Lack for each need that is not met, in their order. Empty if it lacks
    nothing, or if NVIDIA's DRA stack does not serve the GPUs."""
    if not stack.serves:
        return ()
    lacks = (lack for need in NEEDS if (lack := need(stack)) is not None)
    return tuple(_guarded(lack, stack.start_changes) if lack.starts else lack for lack in lacks)


def _guarded(lack: Lack, changes: tuple[StartChange, ...]) -> Lack:
    command = after_labels(lack.command, changes)
    return replace(lack, message=lack.message + tell_changes(changes), command=command)


def is_complete(stack: DraStack) -> bool:
    """Whether NVIDIA's DRA stack serves the GPUs of the cluster and lacks nothing."""
    return stack.serves and not find_lacks(stack)


def find_unshared(spec: GPUSharingPolicySpec) -> str:
    """Return why the policy's mode cannot exist with NVIDIA's DRA stack, or an empty string if it can. Mode Full can,
    and so can mode MIG with any strategy but single. Modes TimeSlicing and MPS cannot, and no mode can with
    spec.timeSlicing."""
    if spec.mig is not None and spec.mig.strategy == "single" and spec.time_slicing is None:
        return (
            "that stack does not support spec.mig.strategy single, because pods request each profile by its own name;"
            " use mixed"
        )
    if spec.mode not in (Mode.TIME_SLICING, Mode.MPS) and spec.time_slicing is None:
        return ""
    mode = f"mode {spec.mode}" if spec.mode is not Mode.MIG else "mode MIG with spec.timeSlicing"
    return (
        f"sharing a device among independent pods ({mode}) would require consumable capacity, an alpha feature of"
        " NVIDIA's DRA driver (ConsumableShares); use mode Full or MIG, or select nodes whose GPUs the device"
        " plugin manages"
    )


def refuse(spec: GPUSharingPolicySpec, stack: DraStack) -> str:
    """Return why a policy cannot be carried out where NVIDIA's DRA stack serves the GPUs: its mode cannot exist there
    or, if it can, what is missing, with the commands that correct it. To keep the message within MAX_TEXT, later
    clauses that do not fit are left out, and a first one loses only its command. Empty if the DRA stack does not serve
    the GPUs, or if the mode can exist and nothing is missing."""
    if not stack.serves:
        return ""
    if unshared := find_unshared(spec):
        return f"NVIDIA's DRA stack manages the GPUs in this cluster, and {unshared}"
    message = ""
    for lack in find_lacks(stack):
        begins = "; " if message else "NVIDIA's DRA stack manages the GPUs in this cluster, but "
        clause = f"{begins}{lack.message}{lack.command and f'; run: {lack.command}'}"
        if len(message) + len(clause) <= MAX_TEXT:  # people might paste a truncated command
            message += clause
        elif not message:
            message = f"{begins}{lack.message}"
    return message


def find_dra_symptoms(view: InstallationView) -> Symptoms:
    """Yield an error for everything that NVIDIA's DRA stack lacks; one of the inspections of `installation.py`. Yields
    nothing if the device plugin serves the GPUs."""
    stack = dra_stack_of(view)
    if stack.serves:
        stack = replace(stack, start_changes=start_changes_of(view))
    for lack in find_lacks(stack):
        yield error(Topic.CLUSTER_POLICY, "UnsupportedStack", lack.message, lack.command or SHOW_LABELS)
