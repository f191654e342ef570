"""Can a policy be carried out in this cluster at all?

What depends on the card of a node is decided for each node by `PolicyTargets`.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias

from gpusharing.api import names
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning.snapshot.memo import Memo
from gpusharing.planning.snapshot.nvidia import (
    PLUGIN_SWITCH,
    Change,
    ClusterPolicyView,
    Effect,
    StackView,
)
from gpusharing.planning.snapshot.views import ClusterSnapshot, PlanSettings, PolicyView
from gpusharing.planning.stack.drastack import refuse
from gpusharing.planning.stack.effects import (
    FREE_STRATEGY,
    HOST_PROGRAMS,
    MIG_POINTER,
    PLUGIN_POINTER,
    START_MIG_MANAGER,
    UNPLUG,
    after_labels,
    effects_of,
    find_effects,
    is_safe,
    label_commands,
    tell_effects,
    tell_strategy_users,
)
from gpusharing.planning.stack.installationviews import Fields, kubectl_patch, plain_upgrade
from gpusharing.planning.stack.mig import find_mig_obstacle
from gpusharing.planning.stack.pointers import (
    Pointer,
    find_other_namespace,
    find_pointers,
    mig_change,
    plugin_change,
    plugin_pointer,
    why_not_set,
)
from gpusharing.planning.stack.requirements import OPERANDS, REQUIREMENTS, lacks, restart_of, tell_off
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import MAX_TEXT, cut
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.target import PolicyTargets, Request, find_request

MOST_LABELS = 400
"""The most characters of commands that label nodes in one message. `kubectl gpusharing import` prints more."""
_PLUGIN, _DISCOVERY, _MIG_MANAGER = OPERANDS
_WrongField: TypeAlias = tuple[Reason, str, Fields, tuple[Effect, ...]]
"""A field of ClusterPolicy that overrides a spec: reason, text, and the patch with what that takes from nodes.

The patch is empty if it must not be made yet.
"""


def find_spec(policy: PolicyView) -> GPUSharingPolicySpec | Finding:
    if policy.spec is not None:
        return policy.spec
    text = "; ".join(map(str, policy.problems[:3]))
    return Finding(Reason.INVALID_SPEC, text or "the spec cannot be read")


def find_objection(policy: PolicyView, stack: StackView, settings: PlanSettings) -> Finding | None:
    """Return the first reason why the policy cannot be carried out in this cluster, or None if it can."""
    spec = find_spec(policy)
    return spec if isinstance(spec, Finding) else next(_find_objections(spec, stack, settings), None)


def _find_objections(spec: GPUSharingPolicySpec, stack: StackView, settings: PlanSettings) -> Iterator[Finding]:
    cluster_policy, namespace = stack.cluster_policy, settings.gpu_operator_namespace
    ours = {entry.partition("=")[0] for entry in settings.neighbour_labels}
    selector = spec.node_selector
    if keys := sorted(ours & {*selector.match_labels, *(row.key for row in selector.match_expressions)}):
        # The CRD refuses only the labels that are built in.
        yield Finding(
            Reason.INVALID_SPEC,
            f"spec.nodeSelector uses {keys[0]}, a label that the operator sets during a change (chart value"
            " operator.neighbourLabels): a node would drop out of the policy in the middle of its change. Select nodes"
            " by a label of your own",
        )
    if refusal := refuse(spec, stack, settings):
        yield Finding(Reason.UNSUPPORTED_STACK, refusal)
    if cluster_policy is None and not stack.by_dra:
        yield Finding(
            Reason.CLUSTER_POLICY_MISSING,
            f"no ClusterPolicy found, and no device plugin from NVIDIA's chart in namespace {namespace} (chart value"
            " gpuOperator.namespace): install the NVIDIA GPU Operator, or allow this operator to list and watch"
            " clusterpolicies.nvidia.com (chart value rbac.create)",
        )
    if stack.rival_policies:
        yield Finding(
            Reason.SEVERAL_CLUSTER_POLICIES,
            "the GPU Operator follows only one ClusterPolicy, but has not marked any of these as ignored"
            f" (status.state): {', '.join(stack.rival_policies)}. No policy is applied until it does. Check that the"
            " GPU Operator is running, or remove the one that you do not want: kubectl delete clusterpolicy NAME",
        )
    if stack.twins:
        yield Finding(Reason.SEVERAL_STACKS, stack.twins)
    wrong = [] if cluster_policy is None else [*_find_wrong_fields(spec, cluster_policy, stack, settings)]
    if cluster_policy is not None:
        first = wrong[0][0] if wrong else None
        if first in (Reason.PLUGIN_DISABLED, Reason.FEATURE_DISCOVERY_DISABLED):
            yield _explain(wrong, cluster_policy)
        if apart := find_other_namespace(cluster_policy, namespace):
            yield Finding(Reason.GPU_OPERATOR_ELSEWHERE, apart)
        if first is Reason.PLUGIN_CONFIG_NOT_OURS:
            yield _explain(wrong, cluster_policy)
        yield from _find_flaws_of_chart(spec, cluster_policy, stack, settings)
    if stack.foreign_map:
        where = f"configmap {stack.foreign_map} -n {namespace}"
        yield Finding(
            Reason.CONFIG_MAP_TAKEN,
            f"someone else created ConfigMap {stack.foreign_map} and it has entries, so the operator does not write to"
            f" it. To hand it over to the operator: kubectl label {where} --overwrite"
            f" {names.LABEL_MANAGED_BY}={names.MANAGED_BY} (entries that no Node uses are then removed). To let the"
            f" operator create a new one: kubectl delete {where}",
        )
    if cluster_policy is not None:
        obstacle, command = find_mig_obstacle(spec, cluster_policy, stack, settings)
        if obstacle is not None:
            remedy = f"; run: {command}" if command else ""
            yield Finding(obstacle.reason, obstacle.message + remedy)
        if wrong:
            yield _explain(wrong, cluster_policy)


def _find_flaws_of_chart(
    spec: GPUSharingPolicySpec, cluster_policy: ClusterPolicyView, stack: StackView, settings: PlanSettings
) -> Iterator[Finding]:
    plain, ours, namespace = cluster_policy.plain, settings.plugin_config_map, settings.gpu_operator_namespace
    if plain is None:
        return
    if cluster_policy.plugin_config_name != ours and not stack.by_dra:
        effects = effects_of(plugin_change(cluster_policy, settings, stack.plugin_configs), stack)
        pointer = plugin_pointer(cluster_policy, settings, stack.plugin_configs, effects)
        command = after_labels(plain_upgrade(plain, namespace, f"config.name={ours}"), pointer.victims)
        yield Finding(
            Reason.PLUGIN_CONFIG_NOT_OURS,
            f"DaemonSet {plain.daemon_set}: config.name in NVIDIA's device-plugin chart is"
            f" {pointer.now or 'not set'}, so {ours} is not read{_tell_entries(pointer, stack)}"
            f"{tell_effects(pointer.victims)}{f'; run: {command}' if command and not pointer.stops else ''}",
        )
    if lacks(_DISCOVERY, spec.mode, stack):
        command = plain_upgrade(plain, namespace, _DISCOVERY.helm_value)
        yield Finding(Reason.FEATURE_DISCOVERY_MISSING, f"{tell_off(_DISCOVERY, cluster_policy)}; run: {command}")


def _find_wrong_fields(
    spec: GPUSharingPolicySpec, cluster_policy: ClusterPolicyView, stack: StackView, settings: PlanSettings
) -> Iterator[_WrongField]:
    if cluster_policy.plain is not None:
        return
    configure, error = settings.configure_gpu_operator, stack.pointer_error
    for row in (_PLUGIN, _DISCOVERY):
        if lacks(row, spec.mode, stack):
            yield row.disabled, tell_off(row, cluster_policy), row.patch, effects_of(row.change, stack)
    pointers = {pointer.field: pointer for pointer in find_pointers(stack, settings)}
    if (pointer := pointers.get(PLUGIN_POINTER)) is not None:
        why = why_not_set(pointer, cluster_policy, configure=configure, error=error)
        message = f"ClusterPolicy {pointer.field} is {pointer.text}, so {pointer.ours} is not read{why}"
        patch = {} if pointer.stops else pointer.patch
        yield Reason.PLUGIN_CONFIG_NOT_OURS, message + _tell_entries(pointer, stack), patch, pointer.victims
    if lacks(_MIG_MANAGER, spec.mode, stack):
        text, effects = tell_off(_MIG_MANAGER, cluster_policy), effects_of(_MIG_MANAGER.change, stack)
        yield _MIG_MANAGER.disabled, text, _MIG_MANAGER.patch, effects
    if spec.mig is None:
        return
    fixed = "" if stack.by_dra else cluster_policy.mig_strategy
    if fixed not in ("", spec.mig.strategy):
        effects = effects_of(FREE_STRATEGY, stack)
        users = tell_strategy_users(effects, fixed)
        yield (
            Reason.MIG_STRATEGY_SET,
            f"ClusterPolicy mig.strategy is {fixed} and overrides spec.mig.strategy {spec.mig.strategy} on every node"
            f"{users}",
            {} if users else {"mig": {"strategy": None}},
            () if users else effects,
        )
    if spec.mig.layouts is not None and (pointer := pointers.get(MIG_POINTER)) is not None:
        yield (
            Reason.LAYOUTS_NEED_CONFIG_MAP,
            f"spec.mig.layouts has no effect unless ClusterPolicy {pointer.field} is {pointer.ours}; it is now"
            f" {pointer.text}{why_not_set(pointer, cluster_policy, configure=configure, error=error)}"
            f"{pointer.merge_first}",
            {} if pointer.stops else pointer.patch,
            pointer.victims,
        )


def _tell_entries(pointer: Pointer, stack: StackView) -> str:
    absent = "".join(
        f"; ConfigMap {name}, which is set in a chart value, does not exist" for name in stack.missing_maps
    )
    if pointer.stops:
        return absent + pointer.merge_first
    if not pointer.now or stack.admin_plugin_configs:
        return absent
    return absent + (
        f"; if Nodes use entries of {pointer.now}, first set chart value"
        f" gpuOperator.adminPluginConfigMap={pointer.now}, or their device plugins will not start (kubectl gpusharing"
        " import)"
    )


def _explain(wrong: Sequence[_WrongField], cluster_policy: ClusterPolicyView) -> Finding:
    message = "; ".join(text for _, text, _, _ in wrong)
    message += tell_effects([*dict.fromkeys(effect for _, _, _, effects in wrong for effect in effects)])
    due = [row for row in wrong if row[2] and is_safe(row[3])]
    labels = "".join(f"{one} && " for one in label_commands(dict.fromkeys(e for row in due for e in row[3])))
    if len(labels) > MOST_LABELS:
        message += "; kubectl gpusharing import prints the commands"
        labels, due = "", [row for row in due if not label_commands(row[3])]
    hint = " (helm: --set mig.strategy=)" if any(row[0] is Reason.MIG_STRATEGY_SET for row in due) else ""
    patch = kubectl_patch(cluster_policy.name, *(row[2] for row in due))
    command = f"; run: {labels}{patch}{hint}" if due else ""
    # People might paste a truncated command, so the message before it is cut instead.
    return Finding(wrong[0][0], cut(message, MAX_TEXT - len(command)) + command)


def find_due_changes(policies: Collection[PolicyView], snapshot: ClusterSnapshot) -> Iterator[Change]:
    """Yield the changes of the installation that a message may ask for, or that the operator may make."""
    stack, settings = snapshot.stack, snapshot.settings
    policy = stack.cluster_policy
    if stack.by_dra or policy is None or policy.plain is not None:
        yield START_MIG_MANAGER
    if policy is None:
        return
    if not policy.is_off(PLUGIN_SWITCH) and (stack.gpu_cluster or stack.dra.driver is not None):
        yield UNPLUG
    yield from (row.change for row in OPERANDS if row.is_off(policy))
    hosts = [row.change for row in REQUIREMENTS if row.switch in HOST_PROGRAMS and row.is_off(policy)]
    if hosts and (
        snapshot.agent_troubles or any(one.observed and one.observed.error for one in snapshot.gpunodes.values())
    ):
        yield from hosts
    if not policy.tolerates_gate and any(node.gate is not None for node in snapshot.nodes.values()):
        yield restart_of(policy)
    if policy.plugin_config_name != settings.plugin_config_map:
        yield plugin_change(policy, settings, stack.plugin_configs)
    if policy.plain is None and not stack.serves_our_mig_file:
        yield mig_change(settings)
    strategies = {one.spec.mig.strategy for one in policies if one.spec is not None and one.spec.mig is not None}
    if policy.mig_strategy and strategies - {policy.mig_strategy}:
        yield FREE_STRATEGY


def with_effects(snapshot: ClusterSnapshot, policies: Collection[PolicyView], memo: Memo) -> ClusterSnapshot:
    """Return the snapshot with the effects of all changes that are due; `policies` are the readable ones."""
    asked = replace(snapshot, policies=tuple(policies))
    effects = {change: find_effects(change, asked) for change in find_due_changes(policies, snapshot)}
    return replace(snapshot, stack=memo.same("stack", replace(snapshot.stack, effects=effects)))


def request_of(policy: PolicyView) -> Request | Finding:
    spec = find_spec(policy)
    return spec if isinstance(spec, Finding) else find_request(policy.name, spec)


def find_targets(
    policy: PolicyView, request: Request | Finding, stack: StackView, settings: PlanSettings
) -> PolicyTargets:
    objection = None if isinstance(request, Finding) else find_objection(policy, stack, settings)
    return PolicyTargets(policy, objection or request, stack)
