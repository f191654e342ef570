"""When does the operator set the two fields of ClusterPolicy that name our ConfigMaps, and why not?

They are called pointers. Chart value gpuOperator.configure switches this on.
"""

from collections.abc import Collection
from dataclasses import replace

from gpusharing.api.names import LABEL_MIG_CONFIG, LABEL_PLUGIN_CONFIG
from gpusharing.planning.snapshot.actions import SetPointers
from gpusharing.planning.snapshot.nvidia import ClusterPolicyView, StackView
from gpusharing.planning.snapshot.views import PlanSettings
from gpusharing.planning.stack.drastack import is_complete
from gpusharing.planning.stack.effects import MIG_POINTER, PLUGIN_POINTER, UPSTREAM_MIG_CONFIG, effects_of, tell_effects
from gpusharing.planning.vocabulary.commands import Change, Effect, Loss
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.pluginconfig import NEUTRAL_KEY

VALUE = "chart value gpuOperator.configure"
"""The chart value that allows the operator to set pointers, for messages."""


@value
class Pointer:
    """One field of ClusterPolicy that names the ConfigMap of the device plugin or of mig-manager."""

    field: str
    ours: str
    """The ConfigMap that it should name."""
    now: str
    setter: str = ""
    """Who set it, according to its managed fields, or an empty string."""
    without_default: str = ""
    """ClusterPolicy's default entry for nodes without a label, if our ConfigMap lacks it."""
    effects: tuple[Effect, ...] = ()
    """What nodes would lose if it named our ConfigMap."""
    named_keys: frozenset[str] | None = None
    """The entries of the ConfigMap that it names now, or None if they are unknown."""

    @property
    def missing_entries(self) -> tuple[str, ...]:
        return tuple(sorted({effect.missing for effect in self.effects} - {""}))

    @property
    def victims(self) -> tuple[Effect, ...]:
        return tuple(
            effect for effect in self.effects if effect.why and (self.field == MIG_POINTER or not effect.missing)
        )

    @property
    def text(self) -> str:
        if not self.now:
            return "not set"
        return f"{self.now} (set by {self.setter})" if self.setter else self.now

    @property
    def is_free(self) -> bool:
        """Whether nobody has chosen a ConfigMap, so that the operator may set its own."""
        return self.now in ("", UPSTREAM_MIG_CONFIG if self.field == MIG_POINTER else "")

    @property
    def stops(self) -> tuple[str, ...]:
        """The entries that Nodes use and our ConfigMap lacks, so that the pointer must not name it yet."""
        # Nothing uses a default while the pointer is not set, and the patch removes it.
        default = {self.without_default} if self.without_default and self.now else set()
        return tuple(sorted({*self.missing_entries, *default}))

    @property
    def merges(self) -> bool:
        """Whether merging the ConfigMap that the pointer names now may provide some of `stops`."""
        return not self.is_free and (self.named_keys is None or not self.named_keys.isdisjoint(self.stops))

    @property
    def merge_first(self) -> str:
        """What must be done before the pointer may be set, as a clause that begins with a semicolon."""
        if not self.stops:
            return ""
        mig = self.field == MIG_POINTER
        kind, effect = ("Mig", "mig-manager will fail") if mig else ("Plugin", "their device plugins will not start")
        if self.merges:
            first = f"first set chart value gpuOperator.admin{kind}ConfigMap={self.now}"
        elif mig:
            first = f"wait until the agents have reported their GPUs, or correct the label {LABEL_MIG_CONFIG}"
        else:
            first = f"first remove the label {LABEL_PLUGIN_CONFIG}"
        lackers = f"{self.ours} does" if self.merges or self.is_free else f"{self.ours} and {self.now} do"
        where, why = "", ""
        if mig:
            where = f" ({some(sorted(effect.node for effect in self.effects if effect.missing))})"
            why = " for their GPUs, or their agent has not reported"
        return (
            f"; Nodes use {some(self.stops)}{where}, which {lackers} not contain{why}: {first}, or {effect}"
            " (kubectl gpusharing import)"
        )

    @property
    def change(self) -> Change:
        """The change that sets it, with a default that our ConfigMap lacks removed."""
        removed = (("devicePlugin.config.default", None),) if self.without_default else ()
        return Change(fields=((self.field, self.ours), *removed))


def plugin_pointer(policy: ClusterPolicyView, settings: PlanSettings, our_keys: Collection[str]) -> Pointer:
    default = "" if policy.plugin_default in our_keys else policy.plugin_default
    now = policy.plugin_config_name, policy.plugin_config_setter
    return Pointer(PLUGIN_POINTER, settings.plugin_config_map, *now, without_default=default)


def mig_pointer(policy: ClusterPolicyView, settings: PlanSettings) -> Pointer:
    return Pointer(MIG_POINTER, settings.mig_config_map, policy.mig_config_name, policy.mig_config_setter)


def find_other_namespace(policy: ClusterPolicyView, ours: str) -> str:
    """Return a message with the chart value to set if NVIDIA's pods run outside namespace `ours`."""
    if policy.namespace in ("", ours):
        return ""
    return (
        f"{policy.name}: NVIDIA's pods run in namespace {policy.namespace} (status.namespace) and cannot mount the"
        f" operator's ConfigMaps in namespace {ours}: set chart value gpuOperator.namespace={policy.namespace}"
    )


def _are_written(stack: StackView) -> bool:
    return stack.plugin_map_exists and NEUTRAL_KEY in stack.plugin_configs and bool(stack.mig_file)


def find_held(stack: StackView, settings: PlanSettings) -> tuple[Effect, ...]:
    """Return the harm for which the operator does not set pointers that it would set otherwise."""
    policy = stack.cluster_policy
    if not settings.configure_gpu_operator or policy is None or policy.plain is not None or not _are_written(stack):
        return ()
    free = (one for one in find_pointers(stack, settings) if one.is_free and one.field not in policy.configured)
    return tuple(dict.fromkeys(effect for pointer in free for effect in pointer.victims if effect.known))


def plan_pointers(stack: StackView, settings: PlanSettings, *, quiet: bool) -> SetPointers | None:
    """Return the write that sets ClusterPolicy's pointers to our ConfigMaps, or None if none is due.

    Each pointer is set once per ClusterPolicy, and only if nobody has set it to anything else. An annotation in the
    same write remembers that. If somebody sets a pointer back, the operator leaves it alone. `quiet` says whether no
    node is in the middle of a change and our ConfigMaps need no write.
    """
    policy = stack.cluster_policy
    if not settings.configure_gpu_operator or policy is None or policy.plain is not None:
        return None
    apart = stack.foreign_maps or find_other_namespace(policy, settings.gpu_operator_namespace)
    if not quiet or not _are_written(stack) or apart or stack.rival_policies:
        return None
    if stack.by_dra and not is_complete(stack, settings):
        return None
    wanted = {
        pointer.field: pointer.ours
        for pointer in find_pointers(stack, settings)
        if pointer.is_free
        and not pointer.without_default
        and not pointer.effects
        and pointer.field not in policy.configured
    }
    return SetPointers(policy, wanted) if wanted else None


def find_pointers(stack: StackView, settings: PlanSettings) -> list[Pointer]:
    """Return the pointers that do not name our ConfigMaps and that concern this installation, with their effects."""
    policy, pointers = stack.cluster_policy, list[Pointer]()
    if policy is None:
        return []
    if policy.plugin_config_name != settings.plugin_config_map and not stack.by_dra:
        pointer = plugin_pointer(policy, settings, stack.plugin_configs)
        pointers.append(replace(pointer, named_keys=stack.named_keys))
    if policy.plain is None and not stack.serves_our_mig_file:
        merged = frozenset[str]() if stack.admin_mig_file else None  # ours has the entries of the admin's already
        pointers.append(replace(mig_pointer(policy, settings), named_keys=merged))
    return [replace(pointer, effects=effects_of(pointer.change, stack)) for pointer in pointers]


def why_not_set(pointer: Pointer, policy: ClusterPolicyView, *, configure: bool, error: str = "") -> str:
    """Return why the operator has not set the pointer, as a clause, if it may set it at all.

    The clause begins with a semicolon. `error` is that of the last write. It comes last, because it may be about a
    pointer that the operator no longer wants to set.
    """
    if not configure:
        return ""
    if pointer.field in policy.configured:
        return f"; the operator set it once ({VALUE}); someone has changed it since, so the operator leaves it alone"
    if not pointer.is_free:
        return f"; the operator never overwrites what someone else has set ({VALUE})"
    stays = f"; the operator does not set it ({VALUE})"
    if pointer.without_default:
        default = pointer.without_default
        return f"{stays} because devicePlugin.config.default is {default}, which {pointer.ours} does not contain"
    if pointer.missing_entries:
        return f"{stays} until {pointer.ours} contains the entries that Nodes use"
    if any(effect.loss is Loss.GPUS for effect in pointer.victims):
        return f"{stays} until every node's GPUs are known to have what its label {LABEL_MIG_CONFIG} says"
    if pointer.victims:
        return f"{stays} while nodes would lose by it{tell_effects(pointer.victims)}"
    if error:
        return f"; the operator could not set it ({VALUE}): {error}"
    return (
        f"; the operator will set it ({VALUE}) once both ConfigMaps have been written and no node is in the middle of"
        " a change"
    )
