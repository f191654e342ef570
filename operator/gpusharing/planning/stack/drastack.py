"""What is missing or wrong where NVIDIA's DRA driver serves the GPUs to ResourceClaims?

That is DRA with static partitions: mig-manager divides the GPUs. It needs a ClusterPolicy whose devicePlugin.enabled is
false, a GPUCluster, or neither (docs/adr/0078-dra-with-static-partitions.md).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from gpusharing.api.names import Mode
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning.snapshot.nvidia import MIG_MANAGER_SWITCH, PLUGIN_SWITCH, DeviceClassView, StackView
from gpusharing.planning.snapshot.views import NodeView, PlanSettings
from gpusharing.planning.stack.effects import (
    SERVE_CLAIMS,
    SHOW_LABELS,
    START_MIG_MANAGER,
    UNPLUG,
    effects_of,
    tell_effects,
)
from gpusharing.planning.stack.installationviews import (
    Installation,
    Symptom,
    Topic,
    error,
    kubectl_patch,
    plain_upgrade,
    warning,
)
from gpusharing.planning.vocabulary.commands import Command, Effects
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import MAX_TEXT, some
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.objects import find_doubtful
from gpusharing.planning.wanted.target import is_plugin_resource, pauses_clients

NEW_MIG_MANAGER = "v0.15.1"
_IN_USE = "keeps the GPUs in use, so mig-manager could not change them"
REFUSED_GATES = {
    "ConsumableShares": "gives one device to several independent pods, so modes Full and MIG would not isolate them",
    "DynamicMIG": _IN_USE,
    "NVMLDeviceHealthCheck": _IN_USE,
}
"""What the kubelet plugin does with each feature gate that is refused. As of dra-driver-nvidia-gpu v0.5.0,
cmd/gpu-kubelet-plugin/consumable_shares.go, nvlib.go and device_health.go. With the last two it keeps NVML open, so
that mig-parted may find the GPUs in use."""


def find_doubles(nodes: Mapping[str, NodeView], published_for: Iterable[str]) -> tuple[str, ...]:
    """Return the sorted names of the nodes of `published_for` whose GPUs a device plugin advertises, too."""
    published = (nodes[name] for name in sorted(published_for) if name in nodes)
    return tuple(
        node.name
        for node in published
        if any(count and is_plugin_resource(name) for name, count in node.resources.items())
    )


def find_missing_parts(stack: StackView, settings: PlanSettings) -> Iterator[tuple[str, Command | None]]:
    """Yield what is wrong with NVIDIA's DRA stack, if it serves the GPUs, and the remedy; None while it would harm."""
    if not stack.by_dra:
        return
    policy, dra, driver = stack.cluster_policy, stack.dra, stack.dra.driver
    namespace = settings.gpu_operator_namespace
    if dra.unread:
        kinds = "resourceslices.v1.resource.k8s.io,deviceclasses.v1.resource.k8s.io"
        yield dra.unread, Command.of("kubectl get", kinds)
    twice = effects_of(SERVE_CLAIMS, stack)
    drain = f"{tell_effects(twice)}; drain these nodes first" if twice else ""
    if driver is None:
        install = f"helm install dra-driver-nvidia-gpu CHART -n {namespace} --set gpuResourcesEnabledOverride=true"
        yield (
            f"no DaemonSet in namespace {namespace} runs NVIDIA's DRA driver, whose kubelet plugin serves the GPUs"
            f"{drain}",
            Command.if_safe(install, effects=twice),
        )
    else:
        name = f"NVIDIA's DRA driver (DaemonSet {driver.name})"
        upgrade = f"helm upgrade {driver.release or 'RELEASE'} CHART -n {namespace} --reset-then-reuse-values --set"
        if not driver.serves_gpus:
            values = "resources.gpus.enabled=true,gpuResourcesEnabledOverride=true"
            yield (
                f"{name} serves only compute domains, not GPUs{drain}",
                Command.if_safe(upgrade, values, effects=twice),
            )
        if gate := min(driver.gates & REFUSED_GATES.keys(), default=""):
            message = f"{name} has the {gate} feature gate enabled and {REFUSED_GATES[gate]}"
            if gate == "NVMLDeviceHealthCheck":
                # Pods keep their devices while its kubelet plugin restarts (docs/how-to/dra.md).
                yield message, Command.of(upgrade, f"featureGates.{gate}=false", effects=())
            else:
                yield (
                    f"{message}. Devices that claims hold by it would no longer be published: once no pod holds one, set"
                    f" featureGates.{gate} to false in the driver's chart. To see the claims",
                    Command.of("kubectl get resourceclaims -A"),
                )
    if policy is not None and policy.plain is not None:
        lost, release = effects_of(UNPLUG, stack), policy.plain.release
        remove = Command.if_safe(f"helm uninstall {release or 'RELEASE'} -n {namespace}", effects=lost)
        if any(release in ("", finder.release) for finder in stack.finders):
            # The release may have installed Node Feature Discovery, whose labels would go with it.
            remove = plain_upgrade(policy.plain, namespace, "devicePlugin.enabled=false", effects=lost)
        yield (
            f"NVIDIA's device-plugin chart (DaemonSet {policy.plain.daemon_set}) is installed alongside NVIDIA's DRA"
            f" stack{tell_effects(lost)}",
            remove,
        )
    elif policy is not None and not policy.is_off(PLUGIN_SWITCH):
        lost = effects_of(UNPLUG, stack)
        yield (
            f"ClusterPolicy {policy.name} runs a device plugin alongside NVIDIA's DRA stack{tell_effects(lost)}",
            kubectl_patch(policy.name, UNPLUG.fields, effects=lost),
        )
    elif policy is not None and stack.gpu_cluster:
        yield (
            f"ClusterPolicy {policy.name} and a GPUCluster both install NVIDIA's components; keep one of them",
            Command.of("kubectl get clusterpolicies,gpuclusters"),
        )
    elif dra.doubles:
        yield (
            f"a device plugin and NVIDIA's DRA driver both manage the GPUs on {some(dra.doubles)}",
            Command.of(f"kubectl get pods -A --field-selector spec.nodeName={dra.doubles[0]}"),
        )
    # Each of these commands starts or restarts mig-manager.
    starts = effects_of(START_MIG_MANAGER, stack)
    none, old, told = "so nothing would partition the GPUs", "which is older than v0.15", tell_effects(starts)
    if policy is not None and policy.plain is None and not stack.gpu_cluster:
        if policy.is_off(MIG_MANAGER_SWITCH):
            patch = kubectl_patch(policy.name, START_MIG_MANAGER.fields, effects=starts)
            yield f"ClusterPolicy {MIG_MANAGER_SWITCH} is false, {none}{told}", patch
        if not pauses_clients(policy.mig_manager_version):
            yield (
                f"ClusterPolicy {policy.name} runs mig-manager {policy.mig_manager_version}, {old}{told}",
                kubectl_patch(policy.name, [("migManager.version", NEW_MIG_MANAGER)], effects=starts),
            )
        return
    if not dra.mig_manager:
        yield (
            f"mig-manager does not run in namespace {namespace}, {none}; set {namespace} and your registry in"
            f" deploy/mig-manager/kustomization.yaml first{told}",
            Command.if_safe("kubectl apply -k deploy/mig-manager", effects=starts),
        )
    if not pauses_clients(dra.mig_manager_version):
        yield (
            f"DaemonSet {dra.mig_manager} runs mig-manager {dra.mig_manager_version}, {old}{told}",
            renew_mig_manager(namespace, dra.mig_manager, starts),
        )
    if dra.mig_manager and dra.mig_config_map != settings.mig_config_map:
        yield (
            f"DaemonSet {dra.mig_manager} must mount ConfigMap {settings.mig_config_map} in the directory of its"
            f" CONFIG_FILE; it mounts {dra.mig_config_map or 'none'}{told}",
            Command.if_safe(f"kubectl -n {namespace} edit daemonset {dra.mig_manager}", effects=starts),
        )


def renew_mig_manager(namespace: str, daemon_set: str, effects: Effects) -> Command | None:
    """Return the command that updates a mig-manager without the GPU Operator; None if it must not be run."""
    image = f"nvidia-mig-manager=REPOSITORY/k8s-mig-manager:{NEW_MIG_MANAGER}"
    return Command.if_safe(f"kubectl -n {namespace} set image daemonset/{daemon_set} {image}", effects=effects)


def is_complete(stack: StackView, settings: PlanSettings) -> bool:
    """Whether NVIDIA's DRA stack serves the GPUs of the cluster and lacks nothing."""
    return stack.by_dra and next(find_missing_parts(stack, settings), None) is None


def find_refusal(spec: GPUSharingPolicySpec, stack: StackView, settings: PlanSettings) -> Finding | None:
    """Return why NVIDIA's DRA stack, if it serves the GPUs, cannot carry out a policy, within MAX_TEXT."""
    if not stack.by_dra:
        return None
    serves = "NVIDIA's DRA stack manages the GPUs in this cluster"
    if spec.mig is not None and spec.mig.strategy == "single" and spec.time_slicing is None:
        return Finding(
            Reason.UNSUPPORTED_STACK,
            f"{serves}, and that stack does not support spec.mig.strategy single, because pods request each profile by"
            " its own name; use mixed",
        )
    if spec.mode in (Mode.TIME_SLICING, Mode.MPS) or spec.time_slicing is not None:
        mode = f"mode {spec.mode}" if spec.mode is not Mode.MIG else "mode MIG with spec.timeSlicing"
        return Finding(
            Reason.UNSUPPORTED_STACK,
            f"{serves}, and sharing a device among independent pods ({mode}) would require consumable capacity, an"
            " alpha feature of NVIDIA's DRA driver (ConsumableShares); use mode Full or MIG, or select nodes whose GPUs"
            " the device plugin manages",
        )
    message, printed = "", list[Command]()
    for missing, command in find_missing_parts(stack, settings):
        begins = "; " if message else f"{serves}, but "
        clause = f"{begins}{missing}{f'; run: {command}' if command else ''}"
        if len(message) + len(clause) <= MAX_TEXT:  # people might paste a truncated command
            message += clause
            printed += [command] if command else []
        elif not message:
            message = f"{begins}{missing}"
    return Finding(Reason.UNSUPPORTED_STACK, message, commands=tuple(printed)) if message else None


def find_dra_symptoms(view: Installation) -> Iterator[Symptom]:
    stack = view.stack
    if stack.by_dra:
        asked = (SERVE_CLAIMS, START_MIG_MANAGER, UNPLUG)
        stack = replace(stack, effects={change: view.effects(change) for change in asked})
    for message, command in find_missing_parts(stack, view.place):
        yield error(Topic.CLUSTER_POLICY, "UnsupportedStack", message, command or SHOW_LABELS)


def find_class_symptoms(classes: Sequence[DeviceClassView]) -> Iterator[Symptom]:
    for name, why in find_doubtful(classes, {one.resource for one in classes}).items():
        command = Command.of(f"kubectl get deviceclass {name} -o yaml")
        yield warning(Topic.CLUSTER_POLICY, "DeviceClassDoubtful", why, command)
