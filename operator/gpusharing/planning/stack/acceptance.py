"""Can a policy be carried out in this cluster at all?

What depends on the card of a node is decided for each node by `PolicyTargets`.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from gpusharing.api import names
from gpusharing.api.names import Mode
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning.snapshot.memo import Memo
from gpusharing.planning.snapshot.nvidia import PLUGIN_SWITCH, ClusterPolicyView, StackView
from gpusharing.planning.snapshot.views import ClusterSnapshot, PlanSettings, PolicyView
from gpusharing.planning.stack.drastack import find_refusal
from gpusharing.planning.stack.effects import (
    FREE_STRATEGY,
    HOST_PROGRAMS,
    REQUIRE_CLIENT,
    RESTART_PLUGIN,
    SERVE_CLAIMS,
    START_MIG_MANAGER,
    STRATEGY,
    UNPLUG,
    Foresee,
    effects_of,
    find_effects,
    tell_effects,
)
from gpusharing.planning.stack.installationviews import kubectl_patch
from gpusharing.planning.stack.pointers import find_other_namespace, mig_pointer, plugin_pointer
from gpusharing.planning.stack.requirements import OPERANDS, REQUIREMENTS, restart_of
from gpusharing.planning.stack.wrongfields import WrongField, find_due, find_wrong_fields, join
from gpusharing.planning.vocabulary.commands import Change, Command, Effect, Loss, is_safe, label_commands
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import MAX_TEXT, cut
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.target import PolicyTargets, Request, find_deafness, find_request

MOST_LABELS = 400
"""The most characters of commands that label nodes in one message. `kubectl gpusharing doctor` prints more."""
LEAST_TEXT = 200
"""How many characters of a message say at least what is wrong."""


def find_spec(policy: PolicyView) -> GPUSharingPolicySpec | Finding:
    if policy.spec is not None:
        return policy.spec
    return Finding(Reason.INVALID_SPEC, "; ".join(map(str, policy.problems[:3])) or "the spec cannot be read")


def find_objection(policy: PolicyView, stack: StackView, settings: PlanSettings) -> Finding | None:
    """Return the first reason why the policy cannot be carried out in this cluster, or None if it can."""
    spec = find_spec(policy)
    return spec if isinstance(spec, Finding) else next(_find_objections(spec, stack, settings), None)


def tell_no_stack(settings: PlanSettings) -> str:
    return (
        "there is neither a ClusterPolicy nor a device plugin from NVIDIA's chart in namespace"
        f" {settings.gpu_operator_namespace} (chart value gpuOperator.namespace)"
    )


# Each of these returns a message, whose last clause leads to a command, and that command.


def explain_rivals(stack: StackView) -> tuple[str, Command]:
    return (
        "the GPU Operator follows only one ClusterPolicy, but status.state does not say which of these:"
        f" {', '.join(stack.rival_policies)}. No policy is applied until it does. Restart the GPU Operator, or remove the"
        " one whose programs run nowhere; whatever the other one runs would go with it. To see them",
        Command.of("kubectl get clusterpolicies"),
    )


def explain_taken(name: str, settings: PlanSettings) -> tuple[str, Command]:
    return (
        f"someone else created ConfigMap {name} and it has entries, so the operator does not write to it. Hand it over"
        " to the operator, which then removes entries that no Node uses",
        Command.of(
            f"kubectl label configmap {name} -n {settings.gpu_operator_namespace} --overwrite"
            f" {names.LABEL_MANAGED_BY}={names.MANAGED_BY}",
            effects=(),  # the operator keeps every entry that a Node's label names
        ),
    )


def _tell(reason: Reason, message: str, command: Command) -> Finding:
    return Finding(reason, f"{message}: {command}", commands=(command,))


def _find_objections(spec: GPUSharingPolicySpec, stack: StackView, settings: PlanSettings) -> Iterator[Finding]:
    cluster_policy, namespace = stack.cluster_policy, settings.gpu_operator_namespace
    ours = {entry.partition("=")[0] for entry in settings.neighbor_labels}
    selector = spec.node_selector
    if keys := sorted(ours & {*selector.match_labels, *(row.key for row in selector.match_expressions)}):
        # The CRD refuses only the labels that are built in.
        yield Finding(
            Reason.INVALID_SPEC,
            f"spec.nodeSelector uses {keys[0]}, a label that the operator sets during a change (chart value"
            " operator.neighborLabels): a node would drop out of the policy in the middle of its change. Select nodes"
            " by a label of your own",
        )
    if (refusal := find_refusal(spec, stack, settings)) is not None:
        yield refusal
    if cluster_policy is None and not stack.by_dra:
        yield Finding(
            Reason.CLUSTER_POLICY_MISSING,
            f"{tell_no_stack(settings)}: install the NVIDIA GPU Operator, or allow this operator to list and watch"
            " clusterpolicies.nvidia.com (chart value rbac.create)",
        )
    if stack.rival_policies:
        yield _tell(Reason.SEVERAL_CLUSTER_POLICIES, *explain_rivals(stack))
    if stack.twins:
        yield Finding(Reason.SEVERAL_STACKS, stack.twins)
    wrong = [row for row in find_wrong_fields((spec,), stack, settings) if row.needed]
    if cluster_policy is not None:
        first = wrong[0].reason if wrong else None
        if first in (Reason.PLUGIN_DISABLED, Reason.FEATURE_DISCOVERY_DISABLED):
            yield _explain(wrong, cluster_policy, stack)
        if apart := find_other_namespace(cluster_policy, namespace):
            yield Finding(Reason.GPU_OPERATOR_ELSEWHERE, apart)
        if first in (Reason.PLUGIN_CONFIG_NOT_OURS, Reason.FEATURE_DISCOVERY_MISSING):
            yield _explain(wrong, cluster_policy, stack)
    if stack.foreign_maps:
        yield _tell(Reason.CONFIG_MAP_TAKEN, *explain_taken(stack.foreign_maps[0], settings))
    if cluster_policy is not None and wrong:
        yield _explain(wrong, cluster_policy, stack)


def _explain(wrong: Sequence[WrongField], cluster_policy: ClusterPolicyView, stack: StackView) -> Finding:
    """Return what is wrong with one command for all of it, or for the first row if all at once would do harm."""
    wrong = wrong if cluster_policy.plain is None else wrong[:1]
    due, left = find_due(wrong), [row for row in wrong if row not in find_due(wrong)]
    effects = due[0].effects if due else ()
    if len(due) > 1:
        joint = effects_of(join(due), stack)
        due, effects = (due, joint) if is_safe(joint) else (due[:1], effects)
    text, doctor = "; ".join(row.text for row in wrong), "kubectl gpusharing doctor"
    told = tell_effects([*dict.fromkeys([*effects, *(effect for row in left for effect in row.effects)])])
    if sum(len(f"{one} && ") for one in label_commands(effects)) > MOST_LABELS:
        told += f"; {doctor} prints the commands"
        due = [row for row in due if not label_commands(row.effects)]
        effects = tuple(effect for effect in effects if not effect.label)
    fields = join(due).fields
    command = kubectl_patch(cluster_policy.name, fields, effects=effects) if fields else None
    command = command or next((row.command for row in due), None)
    hint = " (helm: --set mig.strategy=)" if STRATEGY in dict(fields) else ""
    run = f"; run: {command}{hint}" if command is not None else ""
    # People might paste a truncated command, or run one whose victims were cut, so the text before these is cut.
    if len(told) + len(run) > MAX_TEXT - LEAST_TEXT:
        told, run, command = f"; {doctor} names the nodes that would lose by it", f"; run: {doctor}", None
    text = cut(text, MAX_TEXT - len(told) - len(run)) + told + run
    return Finding(wrong[0].reason, text, commands=(command,) if command is not None else ())


def find_due_changes(wanted: Collection[tuple[Mode | None, str]], snapshot: ClusterSnapshot) -> Iterator[Change]:
    """Yield the changes of the installation that a message may ask for, or that the operator may make.

    `wanted` are the modes that policies want, with their MIG strategies.
    """
    stack, settings = snapshot.stack, snapshot.settings
    policy = stack.cluster_policy
    if stack.by_dra or policy is None or policy.plain is not None:
        yield START_MIG_MANAGER
    if stack.by_dra and (stack.dra.driver is None or not stack.dra.driver.serves_gpus):
        yield SERVE_CLAIMS
    if policy is not None and policy.plain is not None and not policy.plain.pausable:
        yield REQUIRE_CLIENT
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
        yield plugin_pointer(policy, settings, stack.plugin_configs).change
    if policy.plain is None and not stack.serves_our_mig_file:
        yield mig_pointer(policy, settings).change
    if policy.mig_strategy and {strategy for _, strategy in wanted} - {"", policy.mig_strategy}:
        yield FREE_STRATEGY
    mps = any(mode is Mode.MPS for mode, _ in wanted)
    if mps and policy.mps_daemon is not None and find_deafness(policy.mps_daemon):
        yield RESTART_PLUGIN


def with_effects(
    snapshot: ClusterSnapshot,
    memo: Memo,
    failed: Mapping[str, Exception],
    unread: dict[str, Exception],
    foresee: Foresee | None = None,
) -> ClusterSnapshot:
    """Return the snapshot with the effects of all changes that are due.

    Nodes in `failed` may lose anything. Policies that cannot be read are in `unread`, to which this adds.
    """
    policies = {one.name: one for one in snapshot.policies if one.name not in unread}
    wanted = memo.each(find_wanted, ((name, (one,)) for name, one in policies.items()), failed=unread)
    effects: dict[Change, tuple[Effect, ...]] = {}
    if due := tuple(find_due_changes(wanted.values(), snapshot)):
        nodes = {name: node for name, node in snapshot.nodes.items() if name not in failed}
        readable = replace(snapshot, nodes=nodes, policies=tuple(policies[name] for name in wanted))
        unknown = tuple(Effect(name, Loss.GPUS, "the operator cannot judge it", known=False) for name in failed)
        effects = {change: find_effects(change, readable, foresee) + unknown for change in due}
        # The patches of one policy may take more together than each alone.
        stack = replace(snapshot.stack, effects=effects)
        rows = ((one.name, (one, stack, snapshot.settings)) for one in readable.policies)
        joined = memo.each(_find_joined, rows, failed=unread)
        effects |= {
            change: find_effects(change, readable, foresee) + unknown
            for change in {*joined.values()} - {None}
            if change
        }
    return replace(snapshot, stack=memo.same("stack", replace(snapshot.stack, effects=effects)))


def _find_joined(policy: PolicyView, stack: StackView, settings: PlanSettings) -> Change | None:
    specs = () if policy.spec is None else (policy.spec,)
    due = find_due(row for row in find_wrong_fields(specs, stack, settings) if row.needed)
    return join(due) if len(due) > 1 else None


def find_wanted(policy: PolicyView) -> tuple[Mode | None, str]:
    spec = policy.spec
    return (None, "") if spec is None else (spec.mode, spec.mig.strategy if spec.mig is not None else "")


def request_of(policy: PolicyView) -> Request | Finding:
    spec = find_spec(policy)
    return spec if isinstance(spec, Finding) else find_request(policy.name, spec)


def find_targets(
    policy: PolicyView, request: Request | Finding, stack: StackView, settings: PlanSettings
) -> PolicyTargets:
    objection = None if isinstance(request, Finding) else find_objection(policy, stack, settings)
    return PolicyTargets(policy, objection or request, stack)
