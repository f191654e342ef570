"""ClusterPolicy's two pointers to our ConfigMaps: which of them the operator sets itself, and why not the others.

Chart value gpuOperator.configure. Each is set once per ClusterPolicy, and only if nobody has set anything else; an
annotation in the same write remembers it. If somebody sets one back, the operator leaves it alone.
"""

from collections.abc import Callable, Collection

from gpusharing.api.names import LABEL_PLUGIN_CONFIG
from gpusharing.planning.snapshot.actions import SetPointers
from gpusharing.planning.snapshot.stackviews import ClusterPolicyView, StackView
from gpusharing.planning.snapshot.views import PlanSettings
from gpusharing.planning.stack.commands import Fields
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.pluginconfig import NEUTRAL_KEY

PLUGIN_POINTER, MIG_POINTER = "devicePlugin.config.name", "migManager.config.name"
"""Fields of ClusterPolicy's spec."""
UPSTREAM_MIG_CONFIG = "default-mig-parted-config"
"""The CRD's default for an empty migManager.config.name up to v25.10.1: nobody chose it (docs/design/nvidia.md#d6)."""
VALUE = "chart value gpuOperator.configure"


@value
class Pointer:
    """One of the two pointers."""

    field: str
    """PLUGIN_POINTER or MIG_POINTER."""
    ours: str
    """The ConfigMap that it should name."""
    now: str
    """What it names; empty: nothing."""
    setter: str = ""
    """The field manager that last wrote it; empty when unknown."""
    without_default: str = ""
    """A default in the same block that our ConfigMap does not hold; with it, device plugins could not start."""
    lacking: tuple[str, ...] = ()
    """Entries that Nodes name and our ConfigMap lacks: with the pointer there, their device plugins could not start."""
    nowhere: frozenset[str] = frozenset()
    """Those of them that the ConfigMap which it names also lacks, as far as known."""

    @property
    def said(self) -> str:
        """The ConfigMap that the pointer names and who set that, for people."""
        if not self.now:
            return "not set"
        return f"{self.now} (set by {self.setter})" if self.setter else self.now

    @property
    def is_free(self) -> bool:
        """Whether nobody has chosen a ConfigMap, so that the operator may set its own."""
        return self.now in ("", UPSTREAM_MIG_CONFIG if self.field == MIG_POINTER else "")

    @property
    def stops(self) -> tuple[str, ...]:
        """Entries that device plugins use and our ConfigMap lacks: with the pointer there, they would not start.

        A default without a ConfigMap does not count: nothing uses it, and the patch removes it.
        """
        default = {self.without_default} if self.without_default and self.now else set()
        return tuple(sorted({*self.lacking, *default}))

    @property
    def merges(self) -> bool:
        """Whether any of `stops` can come from the ConfigMap that it names."""
        return bool(self.now) and not self.nowhere.issuperset(self.stops)

    @property
    def merge_first(self) -> str:
        """What has to be done before the pointer is set, for people, after a semicolon; empty if nothing has to be."""
        if not self.stops:
            return ""
        if self.merges:
            first = f"set chart value gpuOperator.adminPluginConfigMap={self.now} first"
        else:
            first = f"take the label {LABEL_PLUGIN_CONFIG} off first"
        lackers = f"{self.ours} does" if self.merges or not self.now else f"{self.ours} and {self.now} do"
        return (
            f"; Nodes use {some(self.stops)}, which {lackers} not hold: {first}, or their device plugins do"
            " not start (kubectl gpusharing import)"
        )

    @property
    def patch(self) -> Fields:
        """The patch of ClusterPolicy, below `spec`, that sets the pointer and removes a default that we lack."""
        block, _, _ = self.field.partition(".")
        config = {"name": self.ours} | ({"default": None} if self.without_default else {})
        return {block: {"config": config}}


def plugin_pointer(
    policy: ClusterPolicyView,
    ours: str,
    held: Collection[str],
    missing: tuple[str, ...] = (),
    theirs: Collection[str] | None = None,
) -> Pointer:
    """Return the device plugin's pointer. `held`: the keys of our ConfigMap; `missing`: further keys that Nodes name;
    `theirs`: the keys of the ConfigMap that the pointer names, or None if they were not read."""
    default = policy.plugin_default
    return Pointer(
        PLUGIN_POINTER,
        ours,
        policy.plugin_config_name,
        policy.plugin_config_setter,
        default if default and default not in held else "",
        missing,
        frozenset() if theirs is None else frozenset({*missing, default}) - frozenset(theirs),
    )


def mig_pointer(policy: ClusterPolicyView, ours: str) -> Pointer:
    """Return mig-manager's pointer."""
    return Pointer(MIG_POINTER, ours, policy.mig_config_name, policy.mig_config_setter)


def elsewhere(policy: ClusterPolicyView, ours: str) -> str:
    """Return why NVIDIA's pods cannot mount ConfigMaps in namespace `ours`, and which chart value to set; empty if they
    can, or if their namespace is unknown."""
    if policy.namespace in ("", ours):
        return ""
    return (
        f"{policy.name}: NVIDIA's pods run in namespace {policy.namespace} (status.namespace) and cannot mount the"
        f" operator's ConfigMaps in namespace {ours}: set chart value gpuOperator.namespace={policy.namespace}"
    )


def plan_pointers(stack: StackView, settings: PlanSettings, *, quiet: bool) -> SetPointers | None:
    """Return the pointers to write now; None if there are none. `quiet`: no node is in the middle of a change.

    Nothing is written before both ConfigMaps exist, because a pod that mounts a missing one cannot start. Nor during
    our change of a node, because every operand restarts on every node when ClusterPolicy changes. A pointer that
    somebody else has set, or that we have set once before, is left alone.
    """
    policy = stack.cluster_policy
    if not settings.configure_gpu_operator or policy is None or policy.plain is not None:
        return None
    written = stack.plugin_map_exists and NEUTRAL_KEY in stack.plugin_configs and bool(stack.mig_file)
    apart = stack.foreign_map or elsewhere(policy, settings.gpu_operator_namespace)
    if not quiet or not written or apart or stack.gpu_cluster or stack.rival_policies:
        return None
    found = (
        plugin_pointer(policy, settings.plugin_config_map, stack.plugin_configs, stack.missing_entries),
        mig_pointer(policy, settings.mig_config_map),
    )
    wanted = {
        one.field: one.ours
        for one in found
        if one.is_free and not one.without_default and not one.lacking and one.field not in policy.configured
    }
    return SetPointers(policy, wanted) if wanted else None


def why_not_set(pointer: Pointer, policy: ClusterPolicyView, *, asked: bool, error: str = "") -> str:
    """Why the operator has not set a pointer that is not ours, the first of RESTRAINTS; empty if it was not `asked` to.

    `error`: why it could not.
    """
    if not asked:
        return ""
    for restraint in RESTRAINTS:
        if why := restraint.find(pointer, policy, error):
            return why
    return (
        f"; the operator sets it ({VALUE}) when both ConfigMaps are written and no node is in the middle of"
        " a change"
    )


@value
class Restraint:
    """What keeps the operator from setting a pointer although it was asked to."""

    find: Callable[[Pointer, ClusterPolicyView, str], str]
    """What is said of it; the last argument is why a write failed. Empty: it does not apply."""


def _set_back(pointer: Pointer, policy: ClusterPolicyView, error: str) -> str:
    """It is set once, whatever it names now."""
    if pointer.field not in policy.configured:
        return ""
    return f"; the operator set it once ({VALUE}); somebody has changed it since, and it stays as it is"


def _taken(pointer: Pointer, policy: ClusterPolicyView, error: str) -> str:
    """What our ConfigMap lacks is of no interest where somebody else's is named."""
    return "" if pointer.is_free else f"; the operator never overwrites what somebody else has set ({VALUE})"


def _default_unheld(pointer: Pointer, policy: ClusterPolicyView, error: str) -> str:
    """It would stop the device plugins of all nodes that no label names an entry for."""
    if not pointer.without_default:
        return ""
    return (
        f"; the operator does not set it ({VALUE}) because devicePlugin.config.default is"
        f" {pointer.without_default}, which {pointer.ours} does not hold"
    )


def _entries_unheld(pointer: Pointer, policy: ClusterPolicyView, error: str) -> str:
    """It would stop the device plugins of the nodes that name such an entry."""
    if not pointer.lacking:
        return ""
    return f"; the operator does not set it ({VALUE}) before {pointer.ours} holds what Nodes name"


def _failed(pointer: Pointer, policy: ClusterPolicyView, error: str) -> str:
    """An error counts only where the operator would write: it may be of an earlier try."""
    return f"; the operator could not set it ({VALUE}): {error}" if error else ""


RESTRAINTS: tuple[Restraint, ...] = (
    Restraint(_set_back),
    Restraint(_taken),
    Restraint(_default_unheld),
    Restraint(_entries_unheld),
    Restraint(_failed),
)
