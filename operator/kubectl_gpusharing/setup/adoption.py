"""Propose policies for a cluster that was configured by hand, and check them with the planner. Pure.

The check runs on a snapshot of the cluster as it will be: with the admin's ConfigMaps merged into ours, ClusterPolicy
naming ours, and the policies applied. Nodes that the planner would not adopt unchanged are left out, and the rest is
checked again.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache

from gpusharing.api.names import LABEL_MIG_CONFIG, PREFIX, DisruptionClass
from gpusharing.api.validation import validate_policy
from gpusharing.kube.convert import policy_view
from gpusharing.kube.sources import NO_MAPS, AdminMaps
from gpusharing.planning.report.proposal import configured
from gpusharing.planning.rollout import RolloutPlan, plan_rollout
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView, PolicyView
from gpusharing.planning.stack.commands import helm_install, kubectl_patch, plain_upgrade
from gpusharing.planning.stack.installationviews import InstallationView, Place, Severity
from gpusharing.planning.stack.migstart import find_start_changes, is_safe, label_commands, tell_changes
from gpusharing.planning.stack.nodesymptoms import PluginEntries, find_node_symptoms
from gpusharing.planning.stack.otherplugins import OTHERS, explain_plugin
from gpusharing.planning.stack.pointers import (
    find_other_namespace,
    find_unresolved,
    mig_pointer,
    plugin_pointer,
)
from gpusharing.planning.vocabulary.lengths import counted, some
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.assess import Assessed, has_gpu
from gpusharing.planning.wanted.migfile import ALL_DISABLED, parse, parse_admin
from gpusharing.planning.wanted.ownership import Owners, find_contenders
from gpusharing.planning.wanted.pluginconfig import NEUTRAL_KEY
from gpusharing.planning.wanted.verify import is_told_mps
from kubectl_gpusharing.live.onlooker import applied
from kubectl_gpusharing.setup.handmade import Handmade, find_handmade, find_unserved, find_unsettled, presume
from kubectl_gpusharing.setup.likeness import ProposedPolicy, propose
from kubectl_gpusharing.shell.manifests import policy_manifest

NO_LABEL = (
    "no pool label distinguishes these nodes from others; label them, for example with gpusharing.dev/pool,"
    " and run import again"
)

NOT_SHOWN = (
    "its labels and the resources that it advertises do not show which GPUs it has or how they are divided. The"
    " operator's agent can read this from the GPUs, so run import again once the operator is installed"
)


@dataclass(frozen=True, slots=True)
class AdminConfigMaps:
    """The ConfigMaps that ClusterPolicy names instead of ours, and their contents."""

    plugin: PluginEntries
    """The device plugin's ConfigMap. Its name is empty if ClusterPolicy names none."""
    mig: str = ""
    """The name of mig-manager's ConfigMap; empty if ClusterPolicy names none."""
    mig_file: str | None = None
    """The content of mig-manager's ConfigMap, or None if ClusterPolicy names none or it does not exist."""


@dataclass(frozen=True, slots=True)
class Import:
    """The policies to apply, the steps before that, and the nodes that are left out."""

    proposed: tuple[ProposedPolicy, ...]
    """The policies that adopt nodes as they are."""
    left_out: Mapping[str, str]
    """The nodes with GPUs that no policy would leave as they are, each with the reason."""
    owned: int
    """How many nodes are owned by a policy already."""
    steps: tuple[tuple[str, str], ...]
    """The steps to take before the policies are applied, in order: the purpose and the complete command of each."""
    presumed: bool = False
    """True if no agent has read the GPUs, so that they were inferred from labels and from what Nodes advertise."""


def named_maps(snapshot: ClusterSnapshot) -> AdminMaps:
    """Return the names of the admin's ConfigMaps to which ClusterPolicy points. A name is empty if ClusterPolicy names
    no ConfigMap, names ours, or names the default that nobody chose (docs/design/nvidia.md#d6). Both are empty without
    a ClusterPolicy."""
    policy, settings = snapshot.stack.cluster_policy, snapshot.settings
    if policy is None:
        return NO_MAPS
    plugin = plugin_pointer(policy, settings.plugin_config_map, ())
    mig = mig_pointer(policy, settings.mig_config_map)
    return AdminMaps(*("" if one.is_free or one.now == one.ours else one.now for one in (plugin, mig)))


def find_import(
    snapshot: ClusterSnapshot,
    admin: AdminConfigMaps,
    merged: AdminMaps,
    now: datetime,
    *,
    missing: bool = False,
) -> Import:
    """Propose policies for those GPU nodes without a policy that the planner would adopt unchanged. Return these
    policies, the nodes that are left out, sorted and each with a reason, the number of nodes that a policy owns
    already, and the steps to take first.

    `merged` names the ConfigMaps whose entries the operator merges already. `missing` is true if no operator is
    installed yet; the GPUs are then inferred from labels and advertised resources."""
    pointed = with_pointers(snapshot, admin)
    if missing:
        pointed = with_presumed(pointed)
    owners = Owners(find_contenders(snapshot.policies))
    ours = {name for name, node in pointed.nodes.items() if owners.owner(node)}
    read = {
        name: _read(node, pointed, admin, missing=missing)
        for name, node in sorted(pointed.nodes.items())
        if name not in ours
    }
    left_out = {name: why for name, why in read.items() if isinstance(why, str)}
    nodes = {name: handmade for name, handmade in read.items() if isinstance(handmade, Handmade)}
    taken = [policy.name for policy in snapshot.policies]
    proposed, unnamed = propose(nodes.values(), pointed.nodes, taken)
    while refused := _refused(pointed, proposed, now):
        left_out |= refused
        nodes = {name: handmade for name, handmade in nodes.items() if name not in refused}
        proposed, unnamed = propose(nodes.values(), pointed.nodes, taken)
    left_out |= dict.fromkeys(unnamed, NO_LABEL)
    steps = tuple(find_steps(snapshot, admin, merged, now, missing=missing))
    return Import(proposed, dict(sorted(left_out.items())), len(ours), steps, missing)


def _read(
    node: NodeView, snapshot: ClusterSnapshot, admin: AdminConfigMaps, *, missing: bool
) -> Handmade | str | None:
    """Return the node with the policy settings that match what it serves now (`find_handmade`), or a clause that says
    why there are none: it is being changed (it has a fence, docs/design/glossary.md#fence), no policy could take effect
    there (`_rejection`), its GPUs are unknown or its agent sees none, or its configuration fits no policy. The first of
    these that applies is returned. Return None if the node has GPUs neither according to its labels and resources
    (`has_gpu`) nor to its agent. `missing` is true if no operator is installed, so that there are no agents either.
    """
    gpunode = snapshot.gpunodes.get(node.name)
    observed = gpunode.observed if gpunode is not None else None
    if not has_gpu(node) and (observed is None or not observed.gpus):
        return None
    if node.fence is not None:
        return "the operator is changing it"
    if why := _rejection(node, snapshot):
        return why
    if observed is None and missing:
        return find_unsettled(node) or find_unserved(node, snapshot.stack, admin.plugin) or NOT_SHOWN
    if observed is None:
        return "no agent has reported its GPUs: check the gpusharing-agent DaemonSet"
    if not observed.gpus:
        return f"the agent sees no GPU: {observed.error or 'check the driver on the node'}"
    return find_handmade(node, observed, snapshot.stack, admin.plugin)


@cache
def _everywhere() -> PolicyView:
    """Return a policy of mode Full, called `everywhere`, that selects every node. It is made once and then cached."""
    selector = {"matchExpressions": [{"key": f"{PREFIX}nowhere", "operator": "DoesNotExist"}]}
    return policy_view(policy_manifest("everywhere", {"nodeSelector": selector, "mode": "Full"}))


def _rejection(node: NodeView, snapshot: ClusterSnapshot) -> str:
    """Return why no policy could take effect on the node: another device plugin serves its GPUs, or `doctor` would
    report an error about it if a policy selected it (the first one, with its command). Empty otherwise."""
    if node.other_plugin:
        own = ", ".join(f"{prefix}*" for prefix in OTHERS[node.other_plugin].resources)
        beyond = f". A policy cannot describe {own}, so these resources are not imported" if own else ""
        return explain_plugin(node.other_plugin, [node.name]) + beyond
    place = Place(gpu_operator_namespace=snapshot.settings.gpu_operator_namespace)
    stack = snapshot.stack.cluster_policy
    view = InstallationView(
        place, plain=stack, nodes=(node,), policies=(_everywhere(),), gpunodes=snapshot.gpunodes
    )
    errors = (one for one in find_node_symptoms(view, {}) if one.severity is Severity.ERROR)
    return next((f"{one.message}. Run: {one.command}" for one in errors), "")


# --- the cluster as it will be -----------------------------------------------------------------------------------


def with_pointers(snapshot: ClusterSnapshot, admin: AdminConfigMaps) -> ClusterSnapshot:
    """Return the snapshot as it will be once the admin's entries, as far as the ConfigMaps with them exist, have been
    merged into our ConfigMaps and ClusterPolicy names these for the device plugin and for mig-manager. If the device
    plugin comes from NVIDIA's own chart, mig-manager's ConfigMap stays as it is. Without a ClusterPolicy the snapshot
    is returned unchanged."""
    stack, settings = snapshot.stack, snapshot.settings
    if (policy := stack.cluster_policy) is None:
        return snapshot
    mig_map = policy.mig_config_name if policy.plain is not None else settings.mig_config_map
    policy = replace(policy, plugin_config_name=settings.plugin_config_map, mig_config_name=mig_map)
    theirs = stack.admin_plugin_configs if admin.plugin.texts is None else admin.plugin.texts
    stack = replace(
        stack,
        cluster_policy=policy,
        serves_our_mig_file=policy.plain is None,
        admin_plugin_configs=theirs,
        plugin_configs={**stack.plugin_configs, **theirs},
        admin_mig_file=stack.admin_mig_file if admin.mig_file is None else admin.mig_file,
    )
    return replace(snapshot, stack=stack)


def with_presumed(snapshot: ClusterSnapshot) -> ClusterSnapshot:
    """Return the snapshot with reports of agents that are inferred from labels and allocatable resources (`presume`).
    They replace all reports it had, and `agents` then has exactly the nodes with such a report. A node for which
    nothing can be inferred has none."""
    presumed = {name: presume(node, snapshot.stack) for name, node in snapshot.nodes.items()}
    gpunodes = {name: gpunode for name, gpunode in presumed.items() if gpunode is not None}
    return replace(snapshot, gpunodes=gpunodes, agents=frozenset(gpunodes))


def _refused(snapshot: ClusterSnapshot, proposed: Sequence[ProposedPolicy], now: datetime) -> dict[str, str]:
    """Return the nodes that would not be adopted, each with the reason (`_why`); empty if all would be. The planner
    makes a plan for the snapshot's policies and the proposed ones together, as if the operator had already written its
    ConfigMaps for them, and these had reached all nodes. A node is not adopted either if mig-manager would not find its
    configuration in our file (`find_unresolved`). If some policies do not pass validation, only their nodes are
    returned, and the planner does not run."""
    invalid = {
        node: f"no policy can express its configuration: {errors[0]}"
        for policy in proposed
        if isinstance(errors := validate_policy(policy.manifest), tuple)
        for node in policy.nodes
    }
    if invalid:
        return invalid
    views = [*snapshot.policies, *(policy_view(applied(None, one.manifest)) for one in proposed)]
    snapshot = replace(snapshot, policies=tuple(sorted(views, key=lambda view: view.name)))
    plan = plan_rollout(snapshot, now)
    since = now - timedelta(seconds=snapshot.settings.config_propagation)
    if (later := configured(snapshot, plan, since)) is not None:
        snapshot, plan = later, plan_rollout(later, now)
    lost = _lost(snapshot)
    found = {node: _why(plan, policy.name, node) for policy in proposed for node in policy.nodes}
    found |= {node: _unheld(lost[node]) for node in found.keys() & lost.keys()}
    return {node: why for node, why in found.items() if why}


def _lost(snapshot: ClusterSnapshot) -> dict[str, str]:
    """Return the nodes whose configuration mig-manager would not find in our file, each with its name
    (`find_unresolved`). Empty if mig-manager does not read our file in this snapshot."""
    stack = snapshot.stack
    return find_unresolved(snapshot.nodes, snapshot.gpunodes, stack) if stack.serves_our_mig_file else {}


def _unheld(config: str) -> str:
    """Return a clause for people: the operator's file will not contain the mig-manager configuration `config`."""
    return (
        f"{LABEL_MIG_CONFIG} is {config}, which the operator's ConfigMap will not contain for its GPUs. Put the entry"
        " into a ConfigMap of your own (gpuOperator.adminMigConfigMap)"
    )


def _why(plan: RolloutPlan, policy: str, node: str) -> str:
    """Return why the planner would not adopt the node under `policy`: what differs from the policy, with the class of
    the change, or if nothing does, the reason and message of its verdict. Empty if the planner would adopt the node: it
    assigns it to the policy, plans no disruption, and gives Adoptable or Synced as the reason."""
    verdict = plan.verdicts[node]
    adopted = verdict.reason in (Reason.ADOPTABLE, Reason.SYNCED)
    if adopted and verdict.policy == policy and verdict.disruption is DisruptionClass.NONE:
        return ""
    members = plan.pools[policy].members if policy in plan.pools else ()
    assessed = next((member.assessment for member in members if member.node.name == node), None)
    if isinstance(assessed, Assessed) and assessed.mismatch is not None:
        return f"it would be changed (disruption class {verdict.disruption}): {assessed.mismatch.message}"
    return f"{verdict.reason}: {verdict.message}"


# --- what has to come first -----------------------------------------------------------------------------------------


def find_steps(
    snapshot: ClusterSnapshot,
    admin: AdminConfigMaps,
    merged: AdminMaps,
    now: datetime,
    *,
    missing: bool = False,
) -> Iterator[tuple[str, str]]:
    """Yield the purpose and the command of each step that remains: merge the admin's entries into the operator's
    ConfigMaps (`helm upgrade`), wait until they are written, label the nodes whose GPUs differ from their label, and
    name these ConfigMaps in ClusterPolicy or in NVIDIA's own chart (`_point`). Each step that is not needed is left
    out, and there is no wait without the last step. The last step names the nodes whose MPS clients would end, and
    those on which mig-manager would fail. While mig-manager's restart would change GPUs that no label can protect, its
    ConfigMap is not named, and the last step is to run import again.

    If the operator is `missing`, the only steps are to install it, with the values that name the admin's ConfigMaps,
    and to run import again.
    """
    if missing:
        settings = snapshot.settings
        names = settings.namespace, settings.gpu_operator_namespace
        install = helm_install("gpusharing", *names, _values(admin, merged))
        yield "Install the operator. It will not change any node until there is a policy", install
        about = "Run import again before you apply anything: by then the agents will have read the GPUs"
        yield about, "kubectl gpusharing import > policies.yaml"
        return
    if values := ",".join(_values(admin, merged)):
        upgrade = f"helm upgrade gpusharing CHART -n {snapshot.settings.namespace} --reset-then-reuse-values"
        about = "Merge the entries used by node labels into the operator's ConfigMaps"
        yield about, f"{upgrade} --set {values}"
    if not _point(snapshot, admin)[1]:
        return
    pointed = with_pointers(snapshot, admin)
    later = configured(pointed, plan_rollout(pointed, now), now) or pointed
    now_read = snapshot.stack.cluster_policy
    assert now_read is not None, "_point has no command otherwise"
    # Only a new pointer restarts mig-manager.
    restarts = now_read.plain is None and now_read.mig_config_name != snapshot.settings.mig_config_map
    changes = find_start_changes(later.nodes, later.gpunodes, later.stack, later.agents) if restarts else ()
    lost = _lost(later)
    coming = {name: config for name, config in _lost(pointed).items() if config not in lost.values()}
    mig = _awaited_mig(snapshot, admin, {*coming.values()})
    if waiting := _wait(snapshot, admin, mig):
        yield "Wait until the operator has written its ConfigMaps", waiting
    for config in sorted({change.config for change in changes} - {""}):
        alike = [change for change in changes if change.config == config]
        about = (
            f"Label {counted(len(alike), 'node')} with the MIG layout that the GPUs have{tell_changes(alike)}"
        )
        yield about, label_commands(alike)[0]
    who, command = _point(snapshot, admin, with_mig=is_safe(changes))
    if command:
        shown = {change.node for change in changes}
        lost = {name: config for name, config in lost.items() if name not in shown}
        about = (
            f"Point {who}; until then no policy is accepted. NVIDIA's operands restart once on every GPU node; running"
            f" pods keep their devices{_end_clients(snapshot, pointed)}{_warn(lost, {} if mig else coming, snapshot)}"
        )
        yield about, command
    if not is_safe(changes):
        rest = tell_changes([change for change in changes if not change.config])
        about = f"Run import again before mig-manager may read the operator's ConfigMap{rest}"
        yield about, "kubectl gpusharing import > policies.yaml"


def _values(admin: AdminConfigMaps, merged: AdminMaps) -> list[str]:
    """Return the chart values that name the admin's ConfigMaps, such as `gpuOperator.adminMigConfigMap=NAME`.
    ConfigMaps that do not exist, and those that the operator merges already (`merged`), are left out."""
    values = {
        "adminPluginConfigMap": (admin.plugin.config_map, merged.plugin, admin.plugin.texts),
        "adminMigConfigMap": (admin.mig, merged.mig, admin.mig_file),
    }
    return [
        f"gpuOperator.{name}={wanted}"
        for name, (wanted, now, content) in values.items()
        if content is not None and wanted not in ("", now)
    ]


def _end_clients(snapshot: ClusterSnapshot, pointed: ClusterSnapshot) -> str:
    """Return the end of a sentence that excepts the MPS clients of the nodes with MPS in `pointed`, the snapshot as it
    will be: the new ConfigMap restarts all MPS daemons (docs/design/nvidia.md#b5). If PROCESS_TO_SIGNAL is exactly the
    daemon's process name today, a second sentence says to check it afterwards, because the GPU Operator may reset it.
    Empty without such nodes, and if the device plugin reads our ConfigMap already."""
    policy, settings = snapshot.stack.cluster_policy, snapshot.settings
    nodes = sorted(name for name, node in pointed.nodes.items() if is_told_mps(node, pointed.stack))
    if policy is None or policy.plugin_config_name == settings.plugin_config_map or not nodes:
        return ""
    text = (
        f", except MPS clients: all those on {counted(len(nodes), 'node')} ({some(nodes)}) end, so drain these nodes"
        " first or choose a maintenance window"
    )
    if (daemon := policy.mps_daemon) is None or daemon.signalled != daemon.program:
        return text
    return f"{text}. Afterwards check PROCESS_TO_SIGNAL in DaemonSet {daemon.name}: the GPU Operator may have reset it"


def _warn(lost: Mapping[str, str], changing: Mapping[str, str], snapshot: ClusterSnapshot) -> str:
    """Return the end of a sentence that warns of the nodes on which mig-manager would fail or do nothing, and says what
    to do first: to wait for their agents or to correct the label, for the nodes in `lost`, and to run import again
    later, for those in `changing`. For these, the operator's file has an entry whose content the operator is about to
    change, which no command can await. Empty if there are none."""
    if not lost and not changing:
        return ""
    reports = {name: snapshot.gpunodes[name].observed for name in lost if name in snapshot.gpunodes}
    unread = [name for name in sorted(lost) if reports.get(name) is None]
    unknown = [f"{name} ({lost[name]})" for name in sorted(lost) if name not in unread]
    parts = []
    if unread:
        parts.append(f"no agent has reported the GPUs of {some(unread)}; wait for that and run import again")
    if unknown:
        parts.append(
            f"the operator's file will not have the {LABEL_MIG_CONFIG} of {some(unknown)}; correct it"
        )
    if changing:
        rows = [f"{name} ({changing[name]})" for name in sorted(changing)]
        parts.append(
            f"the operator's file does not have the {LABEL_MIG_CONFIG} of {some(rows)} for their GPUs yet; run import"
            " again in a minute"
        )
    nodes = counted(len(lost) + len(changing), "node")
    return f". First see to {nodes} on which mig-manager would fail: {'; '.join(parts)}"


def _awaited_mig(snapshot: ClusterSnapshot, admin: AdminConfigMaps, coming: Set[str]) -> list[str]:
    """Return the entries that our mig-parted file lacks now and the operator will write, sorted: all-disabled and the
    admin's or, if none of these is missing, those of `coming`, the names of configurations in the labels of Nodes."""
    theirs = parse_admin(admin.mig_file or "").entries
    present = parse(snapshot.stack.mig_file).keys()
    return sorted({ALL_DISABLED, *theirs} - present) or sorted(coming - present)


def _wait(snapshot: ClusterSnapshot, admin: AdminConfigMaps, mig: Sequence[str]) -> str:
    """Return a shell loop that ends when the operator has written its ConfigMaps: each must have one entry that it
    lacks now, the first by name. `mig` are those of mig-manager's (`_awaited_mig`). A ConfigMap that lacks none is not
    awaited; empty if neither lacks an entry. One entry each is enough, because all are written at once."""
    stack, settings = snapshot.stack, snapshot.settings
    plugin = sorted({NEUTRAL_KEY, *(admin.plugin.texts or {})} - stack.plugin_configs.keys())
    awaited = []
    if plugin:
        awaited.append((settings.plugin_config_map, plugin[0].replace(".", "\\."), "-q ."))
    if mig:
        awaited.append((settings.mig_config_map, "config\\.yaml", f"-qF {shlex.quote(mig[0] + ':')}"))
    where = settings.gpu_operator_namespace
    reads = [
        f"kubectl get configmap {name} -n {where} -o jsonpath='{{.data.{key}}}' | grep {options}"
        for name, key, options in awaited
    ]
    return f"until {' && '.join(reads)}; do sleep 2; done" if reads else ""


def _point(snapshot: ClusterSnapshot, admin: AdminConfigMaps, *, with_mig: bool = True) -> tuple[str, str]:
    """Return what has to be pointed at which ConfigMaps of ours, and the command that does it: `kubectl patch` with
    those fields of ClusterPolicy that do not name ours or, for the device plugin of NVIDIA's own chart, `helm upgrade`.
    Without `with_mig`, mig-manager's field is left out. The command is empty if they name ours already, if there is no
    ClusterPolicy, or if our ConfigMaps are in a namespace where NVIDIA's programs cannot mount them."""
    policy, settings = snapshot.stack.cluster_policy, snapshot.settings
    who = "ClusterPolicy at the operator's ConfigMaps"
    if policy is None or find_other_namespace(policy, settings.gpu_operator_namespace):
        return who, ""
    entries = {*snapshot.stack.plugin_configs, *(admin.plugin.texts or {})}
    plugin = plugin_pointer(policy, settings.plugin_config_map, entries)
    if policy.plain is None:
        pointers = (plugin, mig_pointer(policy, settings.mig_config_map))
        parts = [
            pointer.patch
            for pointer in (pointers if with_mig else pointers[:1])
            if pointer.now != pointer.ours
        ]
        return who, kubectl_patch(policy.name, *parts) if parts else ""
    upgrade = plain_upgrade(policy.plain, settings.gpu_operator_namespace, f"config.name={plugin.ours}")
    return "NVIDIA's device plugin at the operator's ConfigMap", "" if plugin.now == plugin.ours else upgrade
