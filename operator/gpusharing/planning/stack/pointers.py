"""When does the operator set the two fields of ClusterPolicy that name our ConfigMaps, and why not?

They are called pointers. Chart value gpuOperator.configure switches this on.
"""

from collections.abc import Collection, Mapping

from gpusharing.api.names import LABEL_MIG_CONFIG, LABEL_PLUGIN_CONFIG
from gpusharing.planning.snapshot.actions import SetPointers
from gpusharing.planning.snapshot.nvidia import MIG_MANAGER_SWITCH, ClusterPolicyView, StackView, StartChange
from gpusharing.planning.snapshot.views import GPUNodeView, NodeView, PlanSettings
from gpusharing.planning.stack.drastack import is_complete
from gpusharing.planning.stack.installationviews import Fields
from gpusharing.planning.stack.mig import find_unusable_manager, runs_mig_manager
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.migfile import ALL_DISABLED, parse, parse_admin, resolve, well_known
from gpusharing.planning.wanted.pluginconfig import NEUTRAL_KEY

PLUGIN_POINTER, MIG_POINTER = "devicePlugin.config.name", "migManager.config.name"
"""The two pointers: the fields of ClusterPolicy that name our ConfigMaps, by their paths."""
UPSTREAM_MIG_CONFIG = "default-mig-parted-config"
"""The default that the CRD filled in for migManager.config.name up to v25.10.1.

So nobody chose it (docs/design/nvidia.md#d6).
"""
VALUE = "chart value gpuOperator.configure"
"""The chart value that allows the operator to set pointers, for messages."""


@value
class Pointer:
    """One field of ClusterPolicy that names the ConfigMap of the device plugin or of mig-manager."""

    field: str
    ours: str
    """The ConfigMap that it should name."""
    now: str
    """The ConfigMap that it names, or an empty string."""
    setter: str = ""
    """Who set it, according to its managed fields, or an empty string."""
    without_default: str = ""
    """ClusterPolicy's default entry for nodes without a label, if our ConfigMap lacks it."""
    missing_entries: tuple[str, ...] = ()
    """Entries that Nodes name and our ConfigMap lacks."""
    absent_entries: frozenset[str] = frozenset()
    """Those of `missing_entries` that the ConfigMap that it names now is known to lack, too."""
    missing_nodes: tuple[str, ...] = ()
    """The nodes on which mig-manager would fail. Empty also if they are unknown."""
    start_changes: tuple[StartChange, ...] = ()

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
        return not self.is_free and not self.absent_entries.issuperset(self.stops)

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
        if self.missing_nodes:
            where = f" ({some(self.missing_nodes)})"
            why = " for their GPUs, or their agent has not reported"
        return (
            f"; Nodes use {some(self.stops)}{where}, which {lackers} not contain{why}: {first}, or {effect}"
            " (kubectl gpusharing import)"
        )

    @property
    def patch(self) -> Fields:
        block, _, _ = self.field.partition(".")
        config = {"name": self.ours} | ({"default": None} if self.without_default else {})
        return {block: {"config": config}}


def plugin_pointer(
    policy: ClusterPolicyView,
    ours: str,
    our_keys: Collection[str],
    missing: tuple[str, ...] = (),
    named_keys: Collection[str] | None = None,
) -> Pointer:
    """Return the device plugin's pointer.

    `named_keys` are the keys of the ConfigMap that it names now, None if unknown.
    """
    default = policy.plugin_default
    return Pointer(
        PLUGIN_POINTER,
        ours,
        policy.plugin_config_name,
        policy.plugin_config_setter,
        default if default and default not in our_keys else "",
        missing,
        frozenset() if named_keys is None else frozenset({*missing, default}) - frozenset(named_keys),
    )


def mig_pointer(
    policy: ClusterPolicyView,
    ours: str,
    missing: Collection[str] = (),
    nodes: Collection[str] = (),
    *,
    merged: bool = False,  # whether ours has the entries of the admin's ConfigMap already
    start_changes: tuple[StartChange, ...] = (),
) -> Pointer:
    return Pointer(
        MIG_POINTER,
        ours,
        policy.mig_config_name,
        policy.mig_config_setter,
        missing_entries=tuple(sorted({*missing})),
        absent_entries=frozenset(missing) if merged else frozenset(),
        missing_nodes=tuple(sorted(nodes)),
        start_changes=start_changes,
    )


def find_unresolved(
    nodes: Mapping[str, NodeView], gpunodes: Mapping[str, GPUNodeView], stack: StackView
) -> dict[str, str]:
    """Return, by node, the configuration in its label with which mig-manager would fail or do nothing.

    That is so if it reads our file.
    """
    entries, admins = parse(stack.mig_file), parse_admin(stack.admin_mig_file)[0]

    def resolves(config: str, gpunode: GPUNodeView | None) -> bool:
        entry = entries.get(config)
        if entry and config in {ALL_DISABLED, *admins}:
            return True
        if gpunode is None or gpunode.observed is None:
            return False
        if not (gpus := [gpu for gpu in gpunode.observed.gpus if gpu.mig_capable]):
            return True  # mig-parted applies an entry only to GPUs that its rows match (docs/design/nvidia.md#a8)
        # An entry with the name of one of NVIDIA's must mean the same as that.
        meaning, usual = resolve(entry or [], gpus), well_known(gpus, config)
        return not isinstance(meaning, str) and (isinstance(usual, str) or meaning == usual)

    named = {
        name: node.labels.get(LABEL_MIG_CONFIG, "") for name, node in nodes.items() if runs_mig_manager(node, gpunodes)
    }
    return {name: config for name, config in named.items() if config and not resolves(config, gpunodes.get(name))}


def find_other_namespace(policy: ClusterPolicyView, ours: str) -> str:
    """Return a message with the chart value to set if NVIDIA's pods run outside namespace `ours`."""
    if policy.namespace in ("", ours):
        return ""
    return (
        f"{policy.name}: NVIDIA's pods run in namespace {policy.namespace} (status.namespace) and cannot mount the"
        f" operator's ConfigMaps in namespace {ours}: set chart value gpuOperator.namespace={policy.namespace}"
    )


def plan_pointers(stack: StackView, settings: PlanSettings, *, quiet: bool) -> SetPointers | None:
    """Return the write that sets ClusterPolicy's pointers to our ConfigMaps, or None if none is due.

    Each pointer is set once per ClusterPolicy, and only if nobody has set it to anything else. An annotation in the
    same write remembers that. If somebody sets a pointer back, the operator leaves it alone. `quiet` says whether no
    node is in the middle of a change and our ConfigMaps need no write.
    """
    policy = stack.cluster_policy
    if not settings.configure_gpu_operator or policy is None or policy.plain is not None:
        return None
    written = stack.plugin_map_exists and NEUTRAL_KEY in stack.plugin_configs and bool(stack.mig_file)
    apart = stack.foreign_map or find_other_namespace(policy, settings.gpu_operator_namespace)
    if not quiet or not written or apart or stack.rival_policies:
        return None
    if stack.by_dra and not is_complete(stack, settings):
        return None
    plugin = plugin_pointer(policy, settings.plugin_config_map, stack.plugin_configs, stack.missing_entries)
    mig = mig_pointer(policy, settings.mig_config_map, stack.unresolved_mig.values(), start_changes=stack.start_changes)
    wanted = {
        pointer.field: pointer.ours
        for pointer in ((mig,) if stack.by_dra else (plugin, mig))
        if pointer.is_free
        and not pointer.without_default
        and not pointer.missing_entries
        and not pointer.start_changes
        and pointer.field not in policy.configured
    }
    return SetPointers(policy, wanted) if wanted else None


def may_start_manager(stack: StackView, settings: PlanSettings) -> bool:
    policy = stack.cluster_policy
    if not stack.serves_our_mig_file or (stack.by_dra and not is_complete(stack, settings)):
        return True
    if policy is None or policy.plain is None:
        return policy is not None and policy.is_off(MIG_MANAGER_SWITCH)
    return find_unusable_manager(policy.plain, policy.mig_manager_version) is not None


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
    if pointer.start_changes:
        return f"{stays} until every node's GPUs are known to have what its label {LABEL_MIG_CONFIG} says"
    if error:
        return f"; the operator could not set it ({VALUE}): {error}"
    return (
        f"; the operator will set it ({VALUE}) once both ConfigMaps have been written and no node is in the middle of"
        " a change"
    )
