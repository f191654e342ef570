"""Which settings of NVIDIA's installation keep policies from having an effect, and what corrects them?

The condition Accepted, `doctor` and `helm test` report the same rows.
"""

from collections.abc import Collection, Iterable, Iterator

from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning.snapshot.nvidia import ClusterPolicyView, PlainStackView, StackView
from gpusharing.planning.snapshot.views import PlanSettings
from gpusharing.planning.stack.drastack import renew_mig_manager
from gpusharing.planning.stack.effects import (
    FREE_STRATEGY,
    MIG_POINTER,
    PLUGIN_POINTER,
    REQUIRE_CLIENT,
    START_MIG_MANAGER,
    effects_of,
    tell_strategy_users,
)
from gpusharing.planning.stack.installationviews import plain_upgrade
from gpusharing.planning.stack.pointers import Pointer, find_pointers, why_not_set
from gpusharing.planning.stack.requirements import EVERY_MODE, OPERANDS, find_unusable_manager
from gpusharing.planning.vocabulary.commands import Change, Command, Effects, is_safe
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.actuators import find_actuator

_PLUGIN, _DISCOVERY, _MIG_MANAGER = OPERANDS


@value
class WrongField:
    """A field of ClusterPolicy, or a setting of NVIDIA's device-plugin chart, that must be corrected."""

    reason: Reason
    text: str
    change: Change | None = None
    """The fields of ClusterPolicy to set. None beside NVIDIA's chart."""
    command: Command | None = None
    """The command beside NVIDIA's chart. None also if it must not be run."""
    effects: Effects = ()
    """What the correction takes from nodes, as far as the text does not say it."""
    blocked: bool = False
    """Whether the correction must not be made yet, as the text says."""
    needed: bool = True
    """Whether one of the specs needs it. Otherwise it may matter to policies to come."""
    pointer: Pointer | None = None


def find_wrong_fields(
    specs: Collection[GPUSharingPolicySpec], stack: StackView, settings: PlanSettings
) -> Iterator[WrongField]:
    """Yield what is wrong for these specs, in the order in which it has to be corrected, and for specs to come."""
    if (policy := stack.cluster_policy) is not None:
        find = _find_in_chart if policy.plain is not None else _find_in_cluster_policy
        yield from find(specs, policy, stack, settings)


def find_due(rows: Iterable[WrongField]) -> list[WrongField]:
    """Return the rows that may be corrected now, each for itself."""
    return [row for row in rows if row.needed and not row.blocked and is_safe(row.effects)]


def join(rows: Iterable[WrongField]) -> Change:
    """Return the change that all of their patches together make, which may take more than each alone."""
    changes = (row.change for row in rows if row.change is not None)
    return Change(fields=tuple(dict.fromkeys(field for change in changes for field in change.fields)))


def _find_in_cluster_policy(
    specs: Collection[GPUSharingPolicySpec], policy: ClusterPolicyView, stack: StackView, settings: PlanSettings
) -> Iterator[WrongField]:
    modes, migs = {spec.mode for spec in specs}, [spec.mig for spec in specs if spec.mig is not None]
    pointers = {pointer.field: pointer for pointer in find_pointers(stack, settings)}
    needs = find_actuator(stack).needs

    def why(pointer: Pointer) -> str:
        return why_not_set(pointer, policy, configure=settings.configure_gpu_operator, error=stack.pointer_error)

    for row in OPERANDS:
        if row is _MIG_MANAGER and (pointer := pointers.get(PLUGIN_POINTER)) is not None:
            text = f"ClusterPolicy {pointer.field} is {pointer.text}, so {pointer.ours} is not read{why(pointer)}"
            yield WrongField(
                Reason.PLUGIN_CONFIG_NOT_OURS,
                text + _tell_entries(pointer, stack),
                pointer.change,
                effects=pointer.victims,
                blocked=bool(pointer.stops),
                pointer=pointer,
            )
        if row.is_off(policy) and row.label in needs:
            needed = row.modes == EVERY_MODE or not row.modes.isdisjoint(modes)
            effects = effects_of(row.change, stack)
            yield WrongField(row.disabled, row.off, row.change, effects=effects, needed=needed)
    if (fixed := policy.mig_strategy) and not stack.by_dra:
        others = sorted({mig.strategy for mig in migs} - {fixed})
        effects = effects_of(FREE_STRATEGY, stack) if others else ()
        users = tell_strategy_users(effects, fixed)
        whose = f"spec.mig.strategy {others[0]} on every node" if others else "spec.mig.strategy of every policy"
        yield WrongField(
            Reason.MIG_STRATEGY_SET,
            f"ClusterPolicy mig.strategy is {fixed} and overrides {whose}{users}",
            FREE_STRATEGY,
            effects=() if users else effects,
            blocked=bool(users),
            needed=bool(others),
        )
    if (pointer := pointers.get(MIG_POINTER)) is not None:
        yield WrongField(
            Reason.LAYOUTS_NEED_CONFIG_MAP,
            f"spec.mig.layouts has no effect unless ClusterPolicy {pointer.field} is {pointer.ours}; it is now"
            f" {pointer.text}{why(pointer)}{pointer.merge_first}",
            pointer.change,
            effects=pointer.victims,
            blocked=bool(pointer.stops),
            needed=any(mig.layouts is not None for mig in migs),
            pointer=pointer,
        )


def _find_in_chart(
    specs: Collection[GPUSharingPolicySpec], policy: ClusterPolicyView, stack: StackView, settings: PlanSettings
) -> Iterator[WrongField]:
    plain, ours, namespace = policy.plain, settings.plugin_config_map, settings.gpu_operator_namespace
    if plain is None:
        return
    for pointer in find_pointers(stack, settings):
        yield WrongField(
            Reason.PLUGIN_CONFIG_NOT_OURS,
            f"DaemonSet {plain.daemon_set}: config.name in NVIDIA's device-plugin chart is"
            f" {pointer.now or 'not set'}, so {ours} is not read{_tell_entries(pointer, stack)}",
            command=plain_upgrade(plain, namespace, f"config.name={ours}", effects=pointer.victims),
            effects=pointer.victims,
            blocked=bool(pointer.stops),
            pointer=pointer,
        )
    if _DISCOVERY.is_off(policy) and _DISCOVERY.label in find_actuator(stack).needs:
        # GPU Feature Discovery is a DaemonSet of its own, so no pod of the device plugin restarts.
        command = plain_upgrade(plain, namespace, f"{_DISCOVERY.switch}=true", effects=())
        text = f"{_DISCOVERY.operand} does not run alongside the device plugin from NVIDIA's chart"
        yield WrongField(Reason.FEATURE_DISCOVERY_MISSING, f"{text}, so {_DISCOVERY.consequence}", command=command)
    strategies = [spec.mig.strategy for spec in specs if spec.mig is not None]
    rows = (_find_mig_obstacle(strategy, policy, plain, stack, settings) for strategy in strategies)
    yield from dict.fromkeys(row for row in rows if row is not None)


def _find_mig_obstacle(
    strategy: str, policy: ClusterPolicyView, plain: PlainStackView, stack: StackView, settings: PlanSettings
) -> WrongField | None:
    """Return why mode MIG cannot be carried out alongside NVIDIA's device-plugin chart.

    mig-manager can change the GPUs of a node only while no other program uses them. The GPU Operator's programs stop
    for it by their deploy labels. Those of the chart stop only if they require nvidia.com/gpu.deploy.client=true of
    their nodes, and mig-manager pauses that label since v0.15 (docs/design/nvidia.md#a1).
    """
    namespace, ours = settings.gpu_operator_namespace, settings.mig_config_map
    starts = effects_of(START_MIG_MANAGER, stack)
    if (found := find_unusable_manager(plain, policy.mig_manager_version)) is not None:
        effects = starts
        if found.reason is Reason.PLUGIN_NOT_PAUSED:
            selector, effects = r"nodeSelector.nvidia\.com/gpu\.deploy\.client=true", effects_of(REQUIRE_CLIENT, stack)
            command = plain_upgrade(plain, namespace, selector, option="--set-string", effects=effects)
        elif found.reason is Reason.MIG_MANAGER_MISSING:
            command = Command.if_safe("kubectl apply -k deploy/mig-manager", effects=starts)
        else:
            command = renew_mig_manager(namespace, plain.mig_manager, starts)
        return WrongField(found.reason, found.message, command=command, effects=effects)
    if policy.mig_strategy not in ("", strategy):
        effects = effects_of(FREE_STRATEGY, stack)
        users = tell_strategy_users(effects, policy.mig_strategy)
        return WrongField(
            Reason.MIG_STRATEGY_SET,
            f"migStrategy in NVIDIA's device-plugin chart is {policy.mig_strategy} and overrides spec.mig.strategy"
            f" {strategy} on every node{users}",
            command=None if users else plain_upgrade(plain, namespace, "migStrategy=null", effects=effects),
            effects=() if users else effects,
            blocked=bool(users),
        )
    if policy.mig_config_name != ours:
        return WrongField(
            Reason.LAYOUTS_NEED_CONFIG_MAP,
            f"mode MIG has no effect unless DaemonSet {plain.mig_manager} mounts ConfigMap {ours} in"
            f" the directory of its CONFIG_FILE; it mounts {policy.mig_config_name or 'none'}",
            command=Command.if_safe(f"kubectl -n {namespace} edit daemonset {plain.mig_manager}", effects=starts),
            effects=starts,
        )
    return None


def _tell_entries(pointer: Pointer, stack: StackView) -> str:
    absent = "".join(
        f"; ConfigMap {name}, which is set in a chart value, does not exist" for name in stack.missing_maps
    )
    if pointer.stops:
        return absent + pointer.merge_first
    if not pointer.now or stack.admin_plugin_configs or stack.named_keys == frozenset():
        return absent
    return absent + (
        f"; if Nodes use entries of {pointer.now}, first set chart value"
        f" gpuOperator.adminPluginConfigMap={pointer.now}, or their device plugins will not start (kubectl gpusharing"
        " import)"
    )
