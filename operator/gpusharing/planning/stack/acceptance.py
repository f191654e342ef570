"""Decides whether a policy can be carried out in this cluster at all. OBJECTIONS are checked in order, and the first
that applies is reported.

Everything that depends on the card of a node is decided for each node in `wanted/target.py`.
"""

from collections.abc import Callable
from functools import wraps
from itertools import dropwhile

from gpusharing.api import names
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning.snapshot.stackviews import ClusterPolicyView, StackView
from gpusharing.planning.snapshot.views import PlanSettings, PolicyView
from gpusharing.planning.stack.commands import Fields, kubectl_patch, plain_upgrade
from gpusharing.planning.stack.drastack import find_dra_stack, refuse
from gpusharing.planning.stack.migstart import after_labels, is_safe, label_commands, tell_changes
from gpusharing.planning.stack.migstrategy import tell_strategy_users
from gpusharing.planning.stack.plainmig import find_mig_obstacle
from gpusharing.planning.stack.pointers import (
    Pointer,
    find_other_namespace,
    mig_pointer,
    plugin_pointer,
    why_not_set,
)
from gpusharing.planning.stack.requirements import OPERANDS, NeededProgram, lacks, tell_off
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import MAX_TEXT, cut
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.target import PolicyTargets, Request, find_request

MOST_LABELS = 400
"""The most characters of commands that label nodes in one message. `kubectl gpusharing import` prints more."""


@value
class Objection:
    """A reason to refuse a policy."""

    find: Callable[[PolicyView, StackView, PlanSettings], str | Finding]
    """Returns the message, or a Finding if the refusal has a reason of its own. Empty if the objection does not
    apply."""
    reason: Reason
    """The reason with which the policy is refused, unless its Finding has one of its own."""


@value
class WrongField:
    """A field of ClusterPolicy whose value overrides what a policy asks for."""

    message: str
    """What the field is set to and what that overrides, as a clause for people."""
    patch: Fields
    """The fields of ClusterPolicy to set, below `spec`. Empty if they must not be set yet."""
    hint: str = ""
    """A remark that is appended to the command, such as how to do the same with Helm."""
    starts: bool = False
    """Whether the patch starts or restarts mig-manager."""


@value
class FieldCheck:
    """A check of one field of the ClusterPolicy that the GPU Operator follows."""

    find: Callable[[GPUSharingPolicySpec, ClusterPolicyView, StackView, PlanSettings], WrongField | None]
    """Returns how the field keeps a spec from taking effect, or None if it does not."""
    reason: Reason
    """The reason with which a policy is refused because of this field."""


def find_objection(policy: PolicyView, stack: StackView, settings: PlanSettings) -> Finding | None:
    """Return the first of OBJECTIONS that applies to the policy, or None if the policy can be carried out in this
    cluster. The Finding has the reason of that row, unless the row's check returned a Finding with a reason of its own.
    """
    for objection in OBJECTIONS:
        if refusal := objection.find(policy, stack, settings):
            return Finding.of(refusal, objection.reason)
    return None


def find_spec(policy: PolicyView) -> GPUSharingPolicySpec | Finding:
    """Return the spec of the policy. If it cannot be read, return a Finding with the reason INVALID_SPEC and the first
    three problems, separated by semicolons, or `the spec cannot be read` if none are known."""
    if policy.spec is not None:
        return policy.spec
    text = "; ".join(map(str, policy.problems[:3]))
    return Finding(Reason.INVALID_SPEC, text or "the spec cannot be read")


def _against(
    find: Callable[[GPUSharingPolicySpec, ClusterPolicyView, StackView, PlanSettings], str],
) -> Callable[[PolicyView, StackView, PlanSettings], str]:
    """Turn a check of a spec against a ClusterPolicy into a function that fits `Objection.find`. The function returns
    an empty string if the spec or the ClusterPolicy is missing, because an earlier row of OBJECTIONS reports that."""

    @wraps(find)
    def both(policy: PolicyView, stack: StackView, settings: PlanSettings) -> str:
        """Return the result of the check, or an empty string if the spec or the ClusterPolicy is missing."""
        if policy.spec is None or stack.cluster_policy is None:
            return ""
        return find(policy.spec, stack.cluster_policy, stack, settings)

    return both


def _readable(policy: PolicyView, stack: StackView, settings: PlanSettings) -> str:
    """Return why the spec cannot be read (`find_spec`), or an empty string if it can. Only `policy` is used;
    `Objection.find` fixes the other arguments."""
    spec = find_spec(policy)
    return spec.message if isinstance(spec, Finding) else ""


def _selector(policy: PolicyView, stack: StackView, settings: PlanSettings) -> str:
    """Return a message if nodeSelector, in matchLabels or matchExpressions, uses a label of chart value
    operator.neighbourLabels, which the operator sets during a change; only the alphabetically first is named. Empty
    otherwise, and also if the spec cannot be read. The CRD refuses only the labels that are built in."""
    if policy.spec is None or not settings.neighbour_labels:
        return ""
    ours = {entry.partition("=")[0] for entry in settings.neighbour_labels}
    selector = policy.spec.node_selector
    keys = sorted(ours & {*selector.match_labels, *(row.key for row in selector.match_expressions)})
    if not keys:
        return ""
    return (
        f"spec.nodeSelector uses {keys[0]}, a label that the operator sets during a change (chart value"
        " operator.neighbourLabels): a node would drop out of the policy in the middle of its change. Select nodes by"
        " a label of your own"
    )


def _dra_stack(policy: PolicyView, stack: StackView, settings: PlanSettings) -> str:
    """Return why the policy cannot be carried out in a cluster whose GPUs NVIDIA's DRA stack serves, with what is
    missing (`refuse`). Empty if that stack does not serve them, if it can carry out the policy and nothing is missing,
    or if the spec cannot be read."""
    if policy.spec is None:
        return ""
    return refuse(policy.spec, find_dra_stack(stack, settings))


def _cluster_policy(policy: PolicyView, stack: StackView, settings: PlanSettings) -> str:
    """Return a message if there is neither a ClusterPolicy nor NVIDIA's device-plugin chart, and NVIDIA's DRA stack
    does not serve the GPUs either. Empty otherwise. The answer is the same for every policy."""
    if stack.cluster_policy is not None or stack.by_dra:
        return ""
    return (
        "no ClusterPolicy found, and no device plugin from NVIDIA's chart in namespace"
        f" {settings.gpu_operator_namespace} (chart value gpuOperator.namespace): install the NVIDIA GPU Operator, or"
        " allow this operator to list and watch clusterpolicies.nvidia.com (chart value rbac.create)"
    )


def _one_cluster_policy(policy: PolicyView, stack: StackView, settings: PlanSettings) -> str:
    """Return a message with the names of all ClusterPolicies among which the GPU Operator may choose, if there are
    several and it is unknown which one it follows. Empty otherwise. The answer is the same for every policy."""
    if not stack.rival_policies:
        return ""
    return (
        "the GPU Operator follows only one ClusterPolicy, but has not marked any of these as ignored (status.state):"
        f" {', '.join(stack.rival_policies)}. No policy is applied until it does. Check that the GPU Operator is"
        " running, or remove the one that you do not want: kubectl delete clusterpolicy NAME"
    )


def _one_of_each(policy: PolicyView, stack: StackView, settings: PlanSettings) -> str:
    """Return the message that two DaemonSets run device plugins, or two run mig-manager, on the same nodes. Empty if
    that is not certain of any two. The answer is the same for every policy."""
    return stack.twins


@_against
def _plugin_config(
    spec: GPUSharingPolicySpec, cluster_policy: ClusterPolicyView, stack: StackView, settings: PlanSettings
) -> str:
    """Return a message with the remedy if NVIDIA's pods run in a namespace where they cannot mount our ConfigMap, or
    else if the device plugin does not read our ConfigMap. Empty otherwise; where NVIDIA's DRA driver serves the GPUs,
    only the namespace counts.

    With a ClusterPolicy, the message about the device plugin also names the wrong fields that FIELDS lists after it.
    With NVIDIA's chart, it has no command while our ConfigMap lacks entries that device plugins use.
    """
    ours = settings.plugin_config_map  # nobody reads it where NVIDIA's DRA driver serves the GPUs
    if apart := find_other_namespace(cluster_policy, settings.gpu_operator_namespace):
        return apart
    if cluster_policy.plugin_config_name == ours or stack.by_dra:
        return ""
    if (plain := cluster_policy.plain) is not None:
        pointer = plugin_pointer(cluster_policy, ours, stack.plugin_configs, stack.missing_entries)
        message = (
            f"DaemonSet {plain.daemon_set}: config.name in NVIDIA's device-plugin chart is"
            f" {pointer.now or 'not set'}, so {ours} is not read{_unmerged(pointer, stack)}"
        )
        if pointer.stops:
            return message
        return (
            f"{message}; run: {plain_upgrade(plain, settings.gpu_operator_namespace, f'config.name={ours}')}"
        )
    return _explain_from(Reason.PLUGIN_CONFIG_NOT_OURS, spec, cluster_policy, stack, settings)


def _plugin_field(
    spec: GPUSharingPolicySpec, cluster_policy: ClusterPolicyView, stack: StackView, settings: PlanSettings
) -> WrongField | None:
    """Return what is wrong with ClusterPolicy's `devicePlugin.config.name`, or None if it names our ConfigMap or
    NVIDIA's DRA driver serves the GPUs. The WrongField has the patch that corrects the field; it is empty if the field
    must not be set yet, because device plugins would not start. `spec` is not used: every mode needs the field."""
    ours = settings.plugin_config_map
    if cluster_policy.plugin_config_name == ours or stack.by_dra:
        return None
    pointer = plugin_pointer(cluster_policy, ours, stack.plugin_configs, stack.missing_entries)
    configure = settings.configure_gpu_operator
    why = why_not_set(pointer, cluster_policy, configure=configure, error=stack.pointer_error)
    message = f"ClusterPolicy {pointer.field} is {pointer.text}, so {ours} is not read{why}{_unmerged(pointer, stack)}"
    return WrongField(message, {} if pointer.stops else pointer.patch)


def _unmerged(pointer: Pointer, stack: StackView) -> str:
    """Return what must be done before the field of ClusterPolicy in `pointer` may name our ConfigMap, as clauses that
    each begin with a semicolon. Empty if there is nothing to do. There is one clause for each ConfigMap that a chart
    value names but that does not exist. If our ConfigMap lacks entries that device plugins use, the last clause says
    how to correct that. If it is not known to lack any, the last clause says to merge the ConfigMap that the field
    names now, unless the field is not set or the admin's entries are being merged already."""
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


@_against
def _discovery_missing(
    spec: GPUSharingPolicySpec, cluster_policy: ClusterPolicyView, stack: StackView, settings: PlanSettings
) -> str:
    """Return a message with the remedy if the policy's mode needs GPU Feature Discovery and NVIDIA's device-plugin
    chart, for which `cluster_policy` then stands, does not run it. Empty if it runs, if the mode does not need it, or
    if `cluster_policy` is a real ClusterPolicy."""
    plain = cluster_policy.plain
    if plain is None or not lacks(_DISCOVERY, spec.mode, stack):
        return ""
    command = plain_upgrade(plain, settings.gpu_operator_namespace, _DISCOVERY.helm_value)
    return f"{tell_off(_DISCOVERY, cluster_policy)}; run: {command}"


def _plain_mig(policy: PolicyView, stack: StackView, settings: PlanSettings) -> str | Finding:
    """Return a Finding with the remedy if the policy has mode MIG and cannot be carried out alongside NVIDIA's
    device-plugin chart. Empty if it can, if its mode is not MIG, if its spec cannot be read, or if the cluster has
    a ClusterPolicy or no such chart."""
    if policy.spec is None or stack.cluster_policy is None:
        return ""
    ours, namespace = settings.mig_config_map, settings.gpu_operator_namespace
    obstacle = find_mig_obstacle(policy.spec, stack.cluster_policy, ours, namespace, stack.strategy_users)
    if obstacle is None:
        return ""
    changes = stack.start_changes if obstacle.starts else ()
    command = after_labels(obstacle.command, changes)
    message = obstacle.message + tell_changes(changes)
    return Finding(obstacle.reason, f"{message}; run: {command}" if command else message)


def _config_maps(policy: PolicyView, stack: StackView, settings: PlanSettings) -> str:
    """Return a message if somebody else created a ConfigMap that has the name of one of ours and has entries, with the
    commands that hand it over or remove it. Empty otherwise. The answer is the same for every policy."""
    if not stack.foreign_map:
        return ""
    where = f"configmap {stack.foreign_map} -n {settings.gpu_operator_namespace}"
    return (
        f"someone else created ConfigMap {stack.foreign_map} and it has entries, so the operator does not write to it."
        " To hand"
        f" it over to the operator: kubectl label {where} --overwrite {names.LABEL_MANAGED_BY}={names.MANAGED_BY}"
        " (entries"
        f" that no Node uses are then removed). To let the operator create a new one: kubectl delete {where}"
    )


def _switched_off(row: NeededProgram) -> FieldCheck:
    """Return a check of the ClusterPolicy field that can turn off the program of this row. The check returns a
    WrongField with the patch that turns the program on. It returns None if the program is not off, if there is no
    ClusterPolicy, if the policy's mode does not need the program, or if NVIDIA's DRA driver takes its place."""
    return FieldCheck(
        lambda spec, policy, stack, _: (
            WrongField(tell_off(row, policy), row.patch, starts=row.disabled is Reason.MIG_MANAGER_DISABLED)
            if policy.plain is None and lacks(row, spec.mode, stack)
            else None
        ),
        row.disabled,
    )


def _strategy_field(
    spec: GPUSharingPolicySpec, cluster_policy: ClusterPolicyView, stack: StackView, settings: PlanSettings
) -> WrongField | None:
    """Return ClusterPolicy's MIG strategy as a WrongField if it overrides that of the policy. The patch removes the
    field from ClusterPolicy, unless other nodes would lose their MIG devices."""
    fixed = "" if stack.by_dra else cluster_policy.mig_strategy
    if cluster_policy.plain is not None or spec.mig is None or not fixed or fixed == spec.mig.strategy:
        return None
    message = f"ClusterPolicy mig.strategy is {fixed} and overrides spec.mig.strategy {spec.mig.strategy} on every node"
    if users := stack.strategy_users:
        return WrongField(f"{message}{tell_strategy_users(users, fixed)}", {})
    return WrongField(message, {"mig": {"strategy": None}}, " (helm: --set mig.strategy=)")


def _layouts_field(
    spec: GPUSharingPolicySpec, cluster_policy: ClusterPolicyView, stack: StackView, settings: PlanSettings
) -> WrongField | None:
    """Return what is wrong with ClusterPolicy's `migManager.config.name` if the policy has spec.mig.layouts and
    mig-manager does not read our ConfigMap. None otherwise, and always without a ClusterPolicy. The WrongField has the
    patch that corrects the field; it is empty while mig-manager would fail on Nodes because our ConfigMap lacks their
    entries."""
    if cluster_policy.plain is not None or spec.mig is None or spec.mig.layouts is None:
        return None
    if stack.serves_our_mig_file:
        return None
    merged = bool(stack.admin_mig_file)
    lost = stack.unresolved_mig
    pointer = mig_pointer(
        cluster_policy,
        settings.mig_config_map,
        lost.values(),
        lost,
        merged=merged,
        start_changes=stack.start_changes,
    )
    configure = settings.configure_gpu_operator
    why = why_not_set(pointer, cluster_policy, configure=configure, error=stack.pointer_error)
    message = (
        f"spec.mig.layouts has no effect unless ClusterPolicy {pointer.field} is {pointer.ours}; it is now"
        f" {pointer.text}{why}{pointer.merge_first}"
    )
    return WrongField(message, {} if pointer.stops else pointer.patch, starts=True)


_PLUGIN, _DISCOVERY, _MIG_MANAGER = OPERANDS

FIELDS = (
    _switched_off(_PLUGIN),
    _switched_off(_DISCOVERY),
    FieldCheck(_plugin_field, Reason.PLUGIN_CONFIG_NOT_OURS),
    _switched_off(_MIG_MANAGER),
    FieldCheck(_strategy_field, Reason.MIG_STRATEGY_SET),
    FieldCheck(_layouts_field, Reason.LAYOUTS_NEED_CONFIG_MAP),
)
"""Checks of the fields with which a ClusterPolicy can stop a policy, in the order of their OBJECTIONS. The first wrong
field provides the reason. The message names all of them, with one command that corrects all."""


def _explain_from(
    first: Reason,
    spec: GPUSharingPolicySpec,
    cluster_policy: ClusterPolicyView,
    stack: StackView,
    settings: PlanSettings,
) -> str:
    """Return a message about the wrong field that FIELDS lists with the reason `first`, and about all wrong fields
    after it there, with one command that corrects them. Empty if the field with that reason is not wrong, even if a
    later one is. There is no command if no field has a patch. If the message would be longer than MAX_TEXT, the
    text before the command is cut, but never the command. Raises IndexError if FIELDS has no such reason."""
    rows = dropwhile(lambda row: row.reason is not first, FIELDS)
    answers = [row.find(spec, cluster_policy, stack, settings) for row in rows]
    if answers[0] is None:
        return ""
    wrong = [field for field in answers if field is not None]
    message = "; ".join(field.message for field in wrong)
    changes = stack.start_changes if any(field.starts for field in wrong) else ()
    message += tell_changes(changes)
    labels = "".join(f"{command} && " for command in label_commands(changes))
    if not is_safe(changes) or len(labels) > MOST_LABELS:
        message += "; kubectl gpusharing import prints the commands" if is_safe(changes) else ""
        wrong, labels = [field for field in wrong if not field.starts], ""  # all other fields may be set
    hints = "".join(field.hint for field in wrong)
    patches = [field.patch for field in wrong if field.patch]
    command = f"; run: {labels}{kubectl_patch(cluster_policy.name, *patches)}{hints}" if patches else ""
    # People might paste a truncated command, so the message before it is cut instead.
    return cut(message, MAX_TEXT - len(command)) + command


def _to_field(reason: Reason) -> Objection:
    """Return the objection to the field that FIELDS lists with this reason. Its message also names the wrong fields
    that follow it there (`_explain_from`). It does not apply to a policy whose spec cannot be read, or in a cluster
    without a ClusterPolicy."""
    return Objection(
        _against(lambda spec, cluster_policy, *read: _explain_from(reason, spec, cluster_policy, *read)),
        reason,
    )


OBJECTIONS = (
    Objection(_readable, Reason.INVALID_SPEC),
    Objection(_selector, Reason.INVALID_SPEC),
    Objection(_dra_stack, Reason.UNSUPPORTED_STACK),
    Objection(_cluster_policy, Reason.CLUSTER_POLICY_MISSING),
    Objection(_one_cluster_policy, Reason.SEVERAL_CLUSTER_POLICIES),
    Objection(_one_of_each, Reason.SEVERAL_STACKS),
    _to_field(Reason.PLUGIN_DISABLED),
    _to_field(Reason.FEATURE_DISCOVERY_DISABLED),
    Objection(_plugin_config, Reason.PLUGIN_CONFIG_NOT_OURS),
    Objection(_discovery_missing, Reason.FEATURE_DISCOVERY_MISSING),
    Objection(_config_maps, Reason.CONFIG_MAP_TAKEN),
    Objection(_plain_mig, Reason.MIG_MANAGER_MISSING),  # or another reason for which it is of no use
    _to_field(Reason.MIG_MANAGER_DISABLED),
    _to_field(Reason.MIG_STRATEGY_SET),
    _to_field(Reason.LAYOUTS_NEED_CONFIG_MAP),
)
"""The first match wins."""


def request_of(policy: PolicyView) -> Request | Finding:
    """Return what a policy asks of every node, or a Finding if its spec cannot be read."""
    spec = find_spec(policy)
    return spec if isinstance(spec, Finding) else find_request(policy.name, spec)


def find_targets(
    policy: PolicyView, request: Request | Finding, stack: StackView, settings: PlanSettings
) -> PolicyTargets:
    """Return the targets of a policy in this cluster. `request` is the result of `request_of`."""
    objection = None if isinstance(request, Finding) else find_objection(policy, stack, settings)
    return PolicyTargets(policy, objection or request, stack)
