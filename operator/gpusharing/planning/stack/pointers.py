"""The two fields of ClusterPolicy that name our ConfigMaps, called pointers here: when the operator sets one of them
itself, and why it does not.

Chart value gpuOperator.configure switches this on. Each pointer is set once per ClusterPolicy, and only if nobody has
set it to anything else. An annotation in the same write remembers that. If somebody sets a pointer back, the operator
leaves it alone.
"""

from collections.abc import Collection, Mapping

from gpusharing.api.names import LABEL_MIG_CONFIG, LABEL_PLUGIN_CONFIG
from gpusharing.planning.snapshot.actions import SetPointers
from gpusharing.planning.snapshot.stackviews import (
    MIG_MANAGER_SWITCH,
    ClusterPolicyView,
    StackView,
    StartChange,
)
from gpusharing.planning.snapshot.views import GPUNodeView, NodeView, PlanSettings
from gpusharing.planning.stack.commands import Fields
from gpusharing.planning.stack.drastack import find_dra_stack, is_complete
from gpusharing.planning.stack.migstart import runs_mig_manager
from gpusharing.planning.stack.plainmig import find_unusable_manager
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.migfile import ALL_DISABLED, parse, parse_admin, resolve, well_known
from gpusharing.planning.wanted.pluginconfig import NEUTRAL_KEY

PLUGIN_POINTER, MIG_POINTER = "devicePlugin.config.name", "migManager.config.name"
"""The two fields, by their paths below ClusterPolicy's spec."""
UPSTREAM_MIG_CONFIG = "default-mig-parted-config"
"""The default that the CRD filled in for migManager.config.name up to v25.10.1, so that nobody chose it
(docs/design/nvidia.md#d6)."""
VALUE = "chart value gpuOperator.configure"
"""The chart value that allows the operator to set pointers, for messages."""


@value
class Pointer:
    """One field of ClusterPolicy that names the ConfigMap of the device plugin or of mig-manager."""

    field: str
    """PLUGIN_POINTER or MIG_POINTER."""
    ours: str
    """The ConfigMap that it should name."""
    now: str
    """The ConfigMap that it names. Empty if it is not set."""
    setter: str = ""
    """The field manager that last wrote it. Empty if it is unknown."""
    without_default: str = ""
    """The default entry that ClusterPolicy names, if our ConfigMap lacks it, so that device plugins could not start
    with our ConfigMap. Empty otherwise."""
    missing_entries: tuple[str, ...] = ()
    """Entries that Nodes name and our ConfigMap lacks. With our ConfigMap, the device plugins of these Nodes could not
    start, or mig-manager would fail there."""
    absent_entries: frozenset[str] = frozenset()
    """The missing entries, and the default, as far as the ConfigMap that the pointer names now is known to lack them
    too."""
    missing_nodes: tuple[str, ...] = ()
    """The Nodes on which mig-manager would fail, sorted. Empty for the device plugin, and if the Nodes are unknown; the
    ConfigMap then lacks the missing entries themselves."""
    start_changes: tuple[StartChange, ...] = ()
    """The nodes whose GPUs mig-manager would or may change, because a change of the pointer restarts it. Empty for the
    device plugin."""

    @property
    def text(self) -> str:
        """The ConfigMap that the pointer names, such as `X (set by Y)`, for messages. Without the parentheses if it is
        unknown who set it; `not set` if the pointer names none."""
        if not self.now:
            return "not set"
        return f"{self.now} (set by {self.setter})" if self.setter else self.now

    @property
    def is_free(self) -> bool:
        """Whether nobody has chosen a ConfigMap, so that the operator may set its own: the pointer is not set, or
        mig-manager's names the GPU Operator's default."""
        return self.now in ("", UPSTREAM_MIG_CONFIG if self.field == MIG_POINTER else "")

    @property
    def stops(self) -> tuple[str, ...]:
        """The entries that Nodes use and our ConfigMap lacks, sorted. Their device plugins could not start, or
        mig-manager would fail there, if the pointer named our ConfigMap. A default does not count if the pointer is not
        set, because then nothing uses it and the patch removes it."""
        default = {self.without_default} if self.without_default and self.now else set()
        return tuple(sorted({*self.missing_entries, *default}))

    @property
    def merges(self) -> bool:
        """Whether some of `stops` may be in the ConfigMap that the pointer names now, so that merging its entries into
        ours helps."""
        return not self.is_free and not self.absent_entries.issuperset(self.stops)

    @property
    def merge_first(self) -> str:
        """What must be done before the pointer is set, and why, as a clause that begins with a semicolon: to set the
        chart value that merges the ConfigMap that the pointer names now, if that helps (`merges`). Otherwise it is to
        remove the label of the device plugin from Nodes, or for mig-manager, to wait for the agents or to correct the
        label. Empty if `stops` is empty."""
        if not self.stops:
            return ""
        mig = self.field == MIG_POINTER
        kind, effect = (
            ("Mig", "mig-manager will fail") if mig else ("Plugin", "their device plugins will not start")
        )
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
        """The fields of ClusterPolicy, below `spec`, that set the pointer and remove a default that our ConfigMap
        lacks."""
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
    """Return the device plugin's pointer as ClusterPolicy has it. `ours` is the name of our ConfigMap and `our_keys`
    are its keys. `missing` are the keys that Nodes name and our ConfigMap lacks. `named_keys` are the keys of the
    ConfigMap that the pointer names, or None if they were not read; then no entry counts as absent from it."""
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
    merged: bool = False,
    start_changes: tuple[StartChange, ...] = (),
) -> Pointer:
    """Return mig-manager's pointer as ClusterPolicy has it. `ours` is the name of our ConfigMap, `missing` are the
    entries that Nodes name and our ConfigMap lacks, and `nodes` are these Nodes, if they are known. `merged` says
    whether the admin's ConfigMap is merged into ours already, so that merging it would not add them. `start_changes`
    are the nodes whose GPUs mig-manager would change at its start."""
    absent = frozenset(missing) if merged else frozenset[str]()
    return Pointer(
        MIG_POINTER,
        ours,
        policy.mig_config_name,
        policy.mig_config_setter,
        missing_entries=tuple(sorted({*missing})),
        absent_entries=absent,
        missing_nodes=tuple(sorted(nodes)),
        start_changes=start_changes,
    )


def find_unresolved(
    nodes: Mapping[str, NodeView], gpunodes: Mapping[str, GPUNodeView], stack: StackView
) -> dict[str, str]:
    """Return the nodes on which mig-manager would fail, or do nothing, with our mig-parted file as it is now, each with
    the name in its label nvidia.com/mig.config: the file has no entry of that name, or the entry does not cover all
    GPUs of the node that support MIG, or means something else there than NVIDIA's name does, or no agent has reported
    the GPUs yet.

    For all-disabled and the admin's own entries it is enough that the file has them. Nodes without the label, nodes of
    which no GPU supports MIG, and nodes that have no GPUNode and whose label nvidia.com/gpu.deploy.mig-manager is
    missing or false, such as nodes without GPUs, are left out. A node with a GPUNode counts whatever that label
    says."""
    named = (
        (name, node.labels.get(LABEL_MIG_CONFIG, ""))
        for name, node in nodes.items()
        if runs_mig_manager(node, gpunodes)
    )
    return {
        name: config for name, config in named if config and not _resolves(config, gpunodes.get(name), stack)
    }


def _resolves(config: str, gpunode: GPUNodeView | None, stack: StackView) -> bool:
    """Whether mig-manager can work with the configuration `config` of our file as it is now, on the node of `gpunode`,
    as `find_unresolved` describes it."""
    entry = parse(stack.mig_file).get(config)
    if entry and config in {ALL_DISABLED, *parse_admin(stack.admin_mig_file).entries}:
        return True
    if gpunode is None or gpunode.observed is None:
        return False
    if not (gpus := [gpu for gpu in gpunode.observed.gpus if gpu.mig_capable]):
        return True  # mig-parted applies an entry only to GPUs that its rows match (docs/design/nvidia.md#a8)
    meaning, usual = resolve(entry or [], gpus), well_known(gpus, config)
    return not isinstance(meaning, str) and (isinstance(usual, str) or meaning == usual)


def find_other_namespace(policy: ClusterPolicyView, ours: str) -> str:
    """Return a message with the chart value to set if NVIDIA's pods run outside namespace `ours`, where they cannot
    mount our ConfigMaps. Empty if they run there, or if their namespace is unknown."""
    if policy.namespace in ("", ours):
        return ""
    return (
        f"{policy.name}: NVIDIA's pods run in namespace {policy.namespace} (status.namespace) and cannot mount the"
        f" operator's ConfigMaps in namespace {ours}: set chart value gpuOperator.namespace={policy.namespace}"
    )


def plan_pointers(stack: StackView, settings: PlanSettings, *, quiet: bool) -> SetPointers | None:
    """Return the write that sets ClusterPolicy's pointers to our ConfigMaps, or None if none must be set now. `quiet`
    says whether no node is in the middle of a change and our ConfigMaps need no write.

    None unless chart value gpuOperator.configure is on, the operator has written both ConfigMaps and neither belongs to
    somebody else, and it is `quiet`. It is also None if there is no ClusterPolicy, if several
    exist and it is unknown which one counts, or if its pods run in another namespace. Where NVIDIA's DRA stack serves
    the GPUs, only mig-manager's pointer is set, and only once the stack is complete.

    A pointer is left alone if somebody else has set it, if we have set it once before, or if our ConfigMap lacks an
    entry that Nodes or ClusterPolicy's default name. mig-manager's waits, too, while the restart would change GPUs.
    """
    policy = stack.cluster_policy
    if not settings.configure_gpu_operator or policy is None or policy.plain is not None:
        return None
    written = stack.plugin_map_exists and NEUTRAL_KEY in stack.plugin_configs and bool(stack.mig_file)
    apart = stack.foreign_map or find_other_namespace(policy, settings.gpu_operator_namespace)
    dra = find_dra_stack(stack, settings)
    if not quiet or not written or apart or stack.rival_policies or (dra.serves and not is_complete(dra)):
        return None
    plugin = plugin_pointer(policy, settings.plugin_config_map, stack.plugin_configs, stack.missing_entries)
    mig = mig_pointer(
        policy,
        settings.mig_config_map,
        stack.unresolved_mig.values(),
        start_changes=stack.start_changes,
    )
    pointers = (mig,) if dra.serves else (plugin, mig)
    wanted = {
        pointer.field: pointer.ours
        for pointer in pointers
        if pointer.is_free
        and not pointer.without_default
        and not pointer.missing_entries
        and not pointer.start_changes
        and pointer.field not in policy.configured
    }
    return SetPointers(policy, wanted) if wanted else None


def may_start_manager(stack: StackView, settings: PlanSettings) -> bool:
    """Whether something that the operator writes or prints may start or restart mig-manager: it does not read our
    ConfigMap, is switched off, missing or too old, or NVIDIA's DRA stack lacks something."""
    policy = stack.cluster_policy
    if not stack.serves_our_mig_file or (stack.by_dra and not is_complete(find_dra_stack(stack, settings))):
        return True
    if policy is None or policy.plain is None:
        return policy is not None and policy.is_off(MIG_MANAGER_SWITCH)
    return find_unusable_manager(policy.plain, policy.mig_manager_version) is not None


def why_not_set(pointer: Pointer, policy: ClusterPolicyView, *, configure: bool, error: str = "") -> str:
    """Return why the operator has not set a pointer that does not name our ConfigMap, as a clause that begins with a
    semicolon. The clause comes from the first of RESTRAINTS that applies; if none does, it says when the operator
    will set the pointer. Empty if `configure` (the chart value) is off. `error` is the error of the last write, or
    empty if that did not fail."""
    if not configure:
        return ""
    for restraint in RESTRAINTS:
        if why := restraint(pointer, policy, error):
            return why
    return (
        f"; the operator will set it ({VALUE}) once both ConfigMaps have been written and no node is in the middle of"
        " a change"
    )


def _set_back(pointer: Pointer, policy: ClusterPolicyView, error: str) -> str:
    """Return a clause if the operator has set this pointer once before, which means that somebody has changed it
    since, else an empty string. `error` is not used; all RESTRAINTS have the same arguments."""
    if pointer.field not in policy.configured:
        return ""
    return (
        f"; the operator set it once ({VALUE}); someone has changed it since, so the operator leaves it alone"
    )


def _taken(pointer: Pointer, policy: ClusterPolicyView, error: str) -> str:
    """Return a clause if somebody else has set this pointer, that is, if it is not free (`Pointer.is_free`), else an
    empty string. This is checked before the missing entries, which do not matter then. Only `pointer` is used."""
    return "" if pointer.is_free else f"; the operator never overwrites what someone else has set ({VALUE})"


def _default_unheld(pointer: Pointer, policy: ClusterPolicyView, error: str) -> str:
    """Return a clause if our ConfigMap lacks the default entry that ClusterPolicy names, else an empty string. With our
    ConfigMap, the device plugins of all nodes without a label could not start. Only `pointer` is used."""
    if not pointer.without_default:
        return ""
    return (
        f"; the operator does not set it ({VALUE}) because devicePlugin.config.default is"
        f" {pointer.without_default}, which {pointer.ours} does not contain"
    )


def _entries_unheld(pointer: Pointer, policy: ClusterPolicyView, error: str) -> str:
    """Return a clause if our ConfigMap lacks entries that Nodes name, else an empty string. With our ConfigMap, the
    device plugins of these nodes could not start, or mig-manager would fail there. Only `pointer` is used."""
    if not pointer.missing_entries:
        return ""
    return (
        f"; the operator does not set it ({VALUE}) until {pointer.ours} contains the entries that Nodes use"
    )


def _would_change(pointer: Pointer, policy: ClusterPolicyView, error: str) -> str:
    if not pointer.start_changes:
        return ""
    return (
        f"; the operator does not set it ({VALUE}) until every node's GPUs are known to have what its label"
        f" {LABEL_MIG_CONFIG} says"
    )


def _failed(pointer: Pointer, policy: ClusterPolicyView, error: str) -> str:
    """Return a clause with the error of the last write, or an empty string if that did not fail. This is checked last,
    because the error may be about a pointer that the operator no longer wants to set. Only `error` is used."""
    return f"; the operator could not set it ({VALUE}): {error}" if error else ""


RESTRAINTS = (
    _set_back,
    _taken,
    _default_unheld,
    _entries_unheld,
    _would_change,
    _failed,
)
"""The first match wins."""
