"""Can a policy be carried out in this cluster at all? An ordered chain; the first objection is the answer.

What depends on the card of a node is not judged here but in target.py, node by node.
"""

from collections.abc import Callable

from gpusharing.api import names
from gpusharing.api.names import Mode
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning.snapshot.stackviews import ClusterPolicyView, PlainStackView, StackView
from gpusharing.planning.snapshot.views import PlanSettings, PolicyView
from gpusharing.planning.stack.commands import patch_command
from gpusharing.planning.stack.pointers import Pointer, mig_pointer, plugin_pointer, why_not_set
from gpusharing.planning.words.findings import Finding
from gpusharing.planning.words.reasons import Reason


def find_objection(policy: PolicyView, stack: StackView, settings: PlanSettings) -> Finding | None:
    """The first objection in the order of the chain; None: accepted."""
    if policy.spec is None:
        text = "; ".join(f"{problem.field}: {problem.message}" for problem in policy.problems[:3])
        return Finding(Reason.INVALID_SPEC, text or "the spec cannot be read")
    if stack.gpu_cluster:
        return Finding(
            Reason.UNSUPPORTED_STACK,
            "a GPUCluster (NVIDIA's DRA stack) serves the GPUs of this cluster; device-plugin and mig-manager"
            " labels have no effect there. Use this operator with a ClusterPolicy instead",
        )
    if stack.cluster_policy is None:
        return Finding(
            Reason.CLUSTER_POLICY_MISSING,
            "no ClusterPolicy found: install the NVIDIA GPU Operator, or grant this operator list and watch on"
            " clusterpolicies.nvidia.com (chart value rbac.create); nor is there a device plugin of NVIDIA's chart in"
            f" namespace {settings.gpu_operator_namespace} (chart value gpuOperator.namespace)",
        )
    if stack.rival_policies:
        return Finding(
            Reason.SEVERAL_CLUSTER_POLICIES,
            "the GPU Operator follows only one ClusterPolicy, and has marked none of these as ignored (status.state):"
            f" {', '.join(stack.rival_policies)}. Nothing is changed until it does. Check that the GPU Operator runs,"
            " or remove the one that you do not want: kubectl delete clusterpolicy NAME",
        )
    for check in CHECKS:
        if (objection := check(policy.spec, stack.cluster_policy, stack, settings)) is not None:
            return objection
    return None


def passes(reason: Reason) -> bool:
    """What may be gone for a moment, and changes nothing of what a node in flight goes to: it holds until its deadline.

    A ClusterPolicy that is deleted comes back with the next reconciliation of who deploys the GPU Operator, which also
    says soon which of two it ignores.
    """
    return reason in (Reason.CLUSTER_POLICY_MISSING, Reason.SEVERAL_CLUSTER_POLICIES)


def _plugin_config(
    spec: GPUSharingPolicySpec, cluster_policy: ClusterPolicyView, stack: StackView, settings: PlanSettings
) -> Finding | None:
    ours = settings.plugin_config_map
    if cluster_policy.plugin_config_name == ours:
        return None
    if (plain := cluster_policy.plain) is not None:
        return Finding(
            Reason.PLUGIN_CONFIG_NOT_OURS,
            f"DaemonSet {plain.daemon_set}: config.name of NVIDIA's device-plugin chart is"
            f" {cluster_policy.plugin_config_name or 'not set'}, so {ours} is not read; run:"
            f" {plain_upgrade(plain, settings.gpu_operator_namespace, f'config.name={ours}')}",
        )
    pointer = plugin_pointer(cluster_policy, ours, stack.plugin_configs)
    return Finding(
        Reason.PLUGIN_CONFIG_NOT_OURS,
        f"ClusterPolicy {pointer.field} is {pointer.said}, so {ours} is not read"
        f"{_why_not_set(pointer, cluster_policy, stack, settings)}; run: {pointer.command(cluster_policy.name)}",
    )


def _why_not_set(
    pointer: Pointer, cluster_policy: ClusterPolicyView, stack: StackView, settings: PlanSettings
) -> str:
    asked = settings.configure_gpu_operator
    return why_not_set(pointer, cluster_policy, asked=asked, error=stack.pointer_error)


def plain_upgrade(plain: PlainStackView, namespace: str, value: str) -> str:
    """The command that sets one value of NVIDIA's device-plugin chart."""
    release = plain.release or "RELEASE"
    return f"helm upgrade {release} nvdp/nvidia-device-plugin -n {namespace} --reuse-values --set {value}"


def _discovery(
    spec: GPUSharingPolicySpec, cluster_policy: ClusterPolicyView, stack: StackView, settings: PlanSettings
) -> Finding | None:
    plain = cluster_policy.plain
    if plain is None or plain.discovers:
        return None
    return Finding(
        Reason.FEATURE_DISCOVERY_MISSING,
        "GPU Feature Discovery does not run beside the device plugin, so no change could be proven; run:"
        f" {plain_upgrade(plain, settings.gpu_operator_namespace, 'gfd.enabled=true')}",
    )


def _config_maps(
    spec: GPUSharingPolicySpec, cluster_policy: ClusterPolicyView, stack: StackView, settings: PlanSettings
) -> Finding | None:
    if not stack.foreign_map:
        return None
    where = f"configmap {stack.foreign_map} -n {settings.gpu_operator_namespace}"
    return Finding(
        Reason.CONFIG_MAP_TAKEN,
        f"ConfigMap {stack.foreign_map} was made by somebody else and holds entries; nothing is written to it. To hand"
        f" it over: kubectl label {where} --overwrite {names.LABEL_MANAGED_BY}={names.MANAGED_BY} (entries that no Node"
        f" names then go); or to have a new one: kubectl delete {where}",
    )


def _mig_manager(
    spec: GPUSharingPolicySpec, cluster_policy: ClusterPolicyView, stack: StackView, settings: PlanSettings
) -> Finding | None:
    if spec.mode is not Mode.MIG or cluster_policy.mig_manager_enabled:
        return None
    if cluster_policy.plain is not None:
        return Finding(
            Reason.MIG_MANAGER_MISSING,
            "mode MIG needs mig-manager, which NVIDIA's device-plugin chart does not bring: install the NVIDIA GPU"
            " Operator in its place, or use mode Full, TimeSlicing or MPS",
        )
    command = patch_command(cluster_policy.name, '{"spec":{"migManager":{"enabled":true}}}')
    return Finding(Reason.MIG_MANAGER_DISABLED, f"ClusterPolicy migManager.enabled is false; run: {command}")


def _strategy(
    spec: GPUSharingPolicySpec, cluster_policy: ClusterPolicyView, stack: StackView, settings: PlanSettings
) -> Finding | None:
    fixed = cluster_policy.mig_strategy
    if spec.mig is None or not fixed or fixed == spec.mig.strategy:
        return None
    command = patch_command(cluster_policy.name, '{"spec":{"mig":{"strategy":null}}}')
    return Finding(
        Reason.MIG_STRATEGY_SET,
        f"ClusterPolicy mig.strategy is {fixed} and overrides spec.mig.strategy {spec.mig.strategy} on every node;"
        f" run: {command} (helm: --set mig.strategy=)",
    )


def _layouts(
    spec: GPUSharingPolicySpec, cluster_policy: ClusterPolicyView, stack: StackView, settings: PlanSettings
) -> Finding | None:
    if spec.mig is None or spec.mig.layouts is None or stack.serves_our_mig_file:
        return None
    pointer = mig_pointer(cluster_policy, settings.mig_config_map)
    return Finding(
        Reason.LAYOUTS_NEED_CONFIG_MAP,
        f"spec.mig.layouts needs ClusterPolicy {pointer.field}={pointer.ours} (now {pointer.said})"
        f"{_why_not_set(pointer, cluster_policy, stack, settings)}; run: {pointer.command(cluster_policy.name)}",
    )


CHECKS: tuple[
    Callable[[GPUSharingPolicySpec, ClusterPolicyView, StackView, PlanSettings], Finding | None], ...
] = (_plugin_config, _discovery, _config_maps, _mig_manager, _strategy, _layouts)
"""First wins; a test pins the order. Before them comes whether there is a spec, and one ClusterPolicy to ask."""
