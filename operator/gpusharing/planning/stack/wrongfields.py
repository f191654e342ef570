"""Which settings of NVIDIA's installation keep policies from having an effect, and what corrects them?

The condition Accepted, `doctor` and `helm test` report the same rows.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import field

from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning.snapshot.nvidia import ClusterPolicyView, StackView
from gpusharing.planning.snapshot.views import PlanSettings
from gpusharing.planning.stack.effects import (
    FREE_STRATEGY,
    MIG_POINTER,
    PLUGIN_POINTER,
    effects_of,
    tell_strategy_users,
)
from gpusharing.planning.stack.installationviews import Fields, plain_upgrade
from gpusharing.planning.stack.pointers import (
    Pointer,
    find_pointers,
    mig_change,
    plugin_change,
    plugin_pointer,
    why_not_set,
)
from gpusharing.planning.stack.requirements import EVERY_MODE, OPERANDS, find_mig_obstacle, tell_off
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
    patch: Fields = field(default_factory=dict)
    """The fields of ClusterPolicy to set. Empty beside NVIDIA's chart."""
    change: Change | None = None
    """What the patch changes."""
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
                pointer.patch,
                plugin_change(policy, settings, stack.plugin_configs),
                effects=pointer.victims,
                blocked=bool(pointer.stops),
                pointer=pointer,
            )
        if row.is_off(policy) and row.label in needs:
            needed = row.modes == EVERY_MODE or not row.modes.isdisjoint(modes)
            effects, text = effects_of(row.change, stack), tell_off(row, policy)
            yield WrongField(row.disabled, text, row.patch, row.change, effects=effects, needed=needed)
    if (fixed := policy.mig_strategy) and not stack.by_dra:
        others = sorted({mig.strategy for mig in migs} - {fixed})
        effects = effects_of(FREE_STRATEGY, stack) if others else ()
        users = tell_strategy_users(effects, fixed)
        whose = f"spec.mig.strategy {others[0]} on every node" if others else "spec.mig.strategy of every policy"
        yield WrongField(
            Reason.MIG_STRATEGY_SET,
            f"ClusterPolicy mig.strategy is {fixed} and overrides {whose}{users}",
            {"mig": {"strategy": None}},
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
            pointer.patch,
            mig_change(settings),
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
    if policy.plugin_config_name != ours and not stack.by_dra:
        effects = effects_of(plugin_change(policy, settings, stack.plugin_configs), stack)
        pointer = plugin_pointer(policy, settings, stack.plugin_configs, effects, stack.named_keys)
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
        command = plain_upgrade(plain, namespace, _DISCOVERY.helm_value, effects=())
        yield WrongField(Reason.FEATURE_DISCOVERY_MISSING, tell_off(_DISCOVERY, policy), command=command)
    told: set[tuple[Reason, str]] = set()
    for spec in specs:
        if (found := find_mig_obstacle(spec, policy, stack, settings)) is None:
            continue
        obstacle, command, effects = found
        if (obstacle.reason, obstacle.message) not in told:
            told.add((obstacle.reason, obstacle.message))
            blocked = command is None and is_safe(effects)
            yield WrongField(obstacle.reason, obstacle.message, command=command, effects=effects, blocked=blocked)


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
