"""Policies for a cluster that was configured by hand, checked with the planner before they are shown. Pure.

The snapshot is changed to what it will become: the admin's ConfigMaps merged into ours, ClusterPolicy's pointers at
ours, the policies in place. Nodes that the planner would not simply adopt are left out, and the others are examined
again.
"""

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from gpusharing.api.names import DisruptionClass
from gpusharing.api.validation import validate_policy
from gpusharing.cli.live.onlooker import applied
from gpusharing.cli.setup.handmade import Handmade, find_handmade, find_unserved, find_unsettled, presume
from gpusharing.cli.setup.likeness import Proposed, propose
from gpusharing.kube.convert import policy_view
from gpusharing.kube.sources import NO_MAPS, AdminMaps
from gpusharing.planning.report.proposal import configured
from gpusharing.planning.rollout import RolloutPlan, plan_rollout
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView
from gpusharing.planning.stack.commands import helm_install, kubectl_patch
from gpusharing.planning.stack.nodesymptoms import PluginEntries
from gpusharing.planning.stack.pointers import (
    UPSTREAM_MIG_CONFIG,
    find_other_namespace,
    mig_pointer,
    plugin_pointer,
)
from gpusharing.planning.stack.requirements import plain_upgrade
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.assess import Assessed, has_gpu
from gpusharing.planning.wanted.migfile import ALL_DISABLED, parse, parse_admin
from gpusharing.planning.wanted.ownership import Owners, find_contenders
from gpusharing.planning.wanted.pluginconfig import NEUTRAL_KEY

NO_LABEL = (
    "no label that names a pool distinguishes these nodes from others; give them one, such as"
    " gpusharing.dev/pool, and run import again"
)

NOT_TOLD = (
    "its labels and what it offers do not show what GPUs it has and how they are divided; the operator's"
    " agent reads that, so run import again once the operator is installed"
)


@dataclass(frozen=True, slots=True)
class AdminConfigMaps:
    """The ConfigMaps that ClusterPolicy names instead of ours, and what they hold."""

    maps: AdminMaps = NO_MAPS
    """The names of these ConfigMaps."""
    plugin_configs: Mapping[str, str] | None = None
    """None: there is none of that name, or nobody named one."""
    mig_file: str | None = None
    """The mig-parted file; None: there is no such ConfigMap, or nobody named one."""
    elsewhere: Sequence[str] = ()
    """Other namespaces with a ConfigMap of the device plugin's name, if there is none where it has to be."""


@dataclass(frozen=True, slots=True)
class AdoptionStep:
    """What has to be done before the policies take effect."""

    command: str
    """The command, complete."""
    about: str
    """What the command is for."""


@dataclass(frozen=True, slots=True)
class Import:
    """The policies to apply, the steps before that, and the nodes that are left out."""

    proposed: tuple[Proposed, ...]
    """The policies that take the nodes over as they are."""
    left_out: Mapping[str, str]
    """Nodes with GPUs that no policy would leave as they are, and why."""
    owned: int
    """Nodes that a policy has already."""
    steps: tuple[AdoptionStep, ...]
    """The steps to take before the policies are applied, in their order."""
    presumed: bool = False
    """Whether no agent has read the GPUs, so that they were inferred from labels and from what Nodes advertise."""


def named_maps(snapshot: ClusterSnapshot) -> AdminMaps:
    """Return the names of the admin's ConfigMaps to which ClusterPolicy points. A name is empty if the ConfigMap is
    ours, or the default that nobody chose (docs/design/nvidia.md#d6)."""
    policy, settings = snapshot.stack.cluster_policy, snapshot.settings
    if policy is None:
        return NO_MAPS
    plugin, mig = policy.plugin_config_name, policy.mig_config_name
    ours = settings.plugin_config_map, settings.mig_config_map
    return AdminMaps(
        plugin if plugin not in ("", ours[0]) else "",
        mig if mig not in ("", ours[1], UPSTREAM_MIG_CONFIG) else "",
    )


def find_import(
    snapshot: ClusterSnapshot,
    given: AdminConfigMaps,
    merged: AdminMaps,
    now: datetime,
    *,
    missing: bool = False,
) -> Import:
    """Propose policies for every node that no policy owns, until the planner would adopt all nodes that are left.

    `merged`: the ConfigMaps whose entries the operator merges already. `missing`: no operator is installed yet.
    """
    pointed = with_pointers(snapshot, given)
    if missing:
        pointed = with_presumed(pointed)
    owners = Owners(find_contenders(snapshot.policies))
    ours = {name for name, node in pointed.nodes.items() if owners.owner(node)}
    left_out: dict[str, str] = {}
    found: dict[str, Handmade] = {}
    for name, node in sorted(pointed.nodes.items()):
        if name in ours or not _has_gpu(node, pointed):
            continue
        one = _read(node, pointed, given, missing=missing)
        if isinstance(one, str):
            left_out[name] = one
        else:
            found[name] = one
    taken = [policy.name for policy in snapshot.policies]
    proposed, unnamed = propose(found.values(), pointed.nodes, taken)
    while refused := _refused(pointed, proposed, now):
        left_out |= refused
        found = {name: one for name, one in found.items() if name not in refused}
        proposed, unnamed = propose(found.values(), pointed.nodes, taken)
    left_out |= dict.fromkeys(unnamed, NO_LABEL)
    steps = tuple((first_steps if missing else find_steps)(snapshot, given, merged))
    return Import(proposed, dict(sorted(left_out.items())), len(ours), steps, missing)


def _has_gpu(node: NodeView, snapshot: ClusterSnapshot) -> bool:
    gpunode = snapshot.gpunodes.get(node.name)
    return has_gpu(node) or bool(gpunode and gpunode.observed and gpunode.observed.gpus)


def _read(
    node: NodeView, snapshot: ClusterSnapshot, given: AdminConfigMaps, *, missing: bool
) -> Handmade | str:
    """Return what the node serves now, or why that is unknown or no policy can take it over. `missing`: no operator is
    installed, so there are no agents either."""
    gpunode = snapshot.gpunodes.get(node.name)
    observed = gpunode.observed if gpunode is not None else None
    if node.fence is not None:
        return "the operator is changing it"
    namespace = snapshot.settings.gpu_operator_namespace
    plugin = PluginEntries(given.maps.plugin, namespace, given.plugin_configs, given.elsewhere)
    if observed is None and missing:
        return find_unsettled(node) or find_unserved(node, snapshot.stack, plugin) or NOT_TOLD
    if observed is None:
        return "no agent has reported its GPUs: look at the DaemonSet gpusharing-agent"
    if not observed.gpus:
        return f"the agent sees no GPU: {observed.error or 'check the driver on the node'}"
    return find_handmade(node, observed, snapshot.stack, plugin)


# --- the cluster as it will be -----------------------------------------------------------------------------------


def with_pointers(snapshot: ClusterSnapshot, given: AdminConfigMaps) -> ClusterSnapshot:
    """Return the snapshot with the admin's entries merged and both pointers at our ConfigMaps."""
    stack, settings = snapshot.stack, snapshot.settings
    if (policy := stack.cluster_policy) is None:
        return snapshot
    mig_map = policy.mig_config_name if policy.plain is not None else settings.mig_config_map
    policy = replace(policy, plugin_config_name=settings.plugin_config_map, mig_config_name=mig_map)
    theirs = stack.admin_plugin_configs if given.plugin_configs is None else given.plugin_configs
    stack = replace(
        stack,
        cluster_policy=policy,
        serves_our_mig_file=policy.plain is None,
        admin_plugin_configs=theirs,
        plugin_configs={**stack.plugin_configs, **theirs},
        admin_mig_file=stack.admin_mig_file if given.mig_file is None else given.mig_file,
    )
    return replace(snapshot, stack=stack)


def with_presumed(snapshot: ClusterSnapshot) -> ClusterSnapshot:
    """Return the snapshot with agents' reports inferred from labels and allocatable resources (`presume`)."""
    found = {name: presume(node, snapshot.stack) for name, node in snapshot.nodes.items()}
    gpunodes = {name: one for name, one in found.items() if one is not None}
    return replace(snapshot, gpunodes=gpunodes, agents=frozenset(gpunodes))


def _refused(snapshot: ClusterSnapshot, proposed: Sequence[Proposed], now: datetime) -> dict[str, str]:
    """The nodes that would not be adopted, each with the reason that validation or the planner gives. If validation
    refuses any of the policies, only the nodes of those are returned and the planner is not asked."""
    invalid = {
        node: f"no policy can say it: {found[0]}"
        for one in proposed
        if isinstance(found := validate_policy(one.manifest), tuple)
        for node in one.nodes
    }
    if invalid:
        return invalid
    plan = _plan(snapshot, proposed, now)
    return {
        node: _why(plan, one.name, node)
        for one in proposed
        for node in one.nodes
        if (verdict := plan.verdicts[node]).policy != one.name
        or verdict.disruption is not DisruptionClass.NONE
        or verdict.reason not in (Reason.ADOPTABLE, Reason.SYNCED)
    }


def _why(plan: RolloutPlan, policy: str, node: str) -> str:
    """What differs, before what keeps the change from beginning."""
    members = plan.pools[policy].members if policy in plan.pools else ()
    assessed = next((member.assessment for member in members if member.node.name == node), None)
    verdict = plan.verdicts[node]
    if isinstance(assessed, Assessed) and assessed.mismatch is not None:
        return f"it would be changed (class {verdict.disruption}): {assessed.mismatch.message}"
    return f"{verdict.reason}: {verdict.message}"


def _plan(snapshot: ClusterSnapshot, proposed: Iterable[Proposed], now: datetime) -> RolloutPlan:
    """What the operator would decide once the configuration has been in place for a long time."""
    views = [*snapshot.policies, *(policy_view(applied(None, one.manifest)) for one in proposed)]
    snapshot = replace(snapshot, policies=tuple(sorted(views, key=lambda view: view.name)))
    plan = plan_rollout(snapshot, now)
    since = now - timedelta(seconds=snapshot.settings.config_propagation)
    later = configured(snapshot, plan, since)
    return plan if later is None else plan_rollout(later, now)


# --- what has to come first -----------------------------------------------------------------------------------------


def find_steps(
    snapshot: ClusterSnapshot, given: AdminConfigMaps, merged: AdminMaps
) -> Iterator[AdoptionStep]:
    """The steps that bring the cluster there. A device plugin whose Node names an entry that our ConfigMap lacks does
    not start, so the pointers move last."""
    if values := ",".join(_values(given, merged)):
        upgrade = f"helm upgrade gpusharing CHART -n {snapshot.settings.namespace} --reset-then-reuse-values"
        about = "Merge the entries that Nodes name into the operator's ConfigMaps"
        yield AdoptionStep(f"{upgrade} --set {values}", about)
    if command := _point(snapshot, given):
        if waiting := _wait(snapshot, given):
            yield AdoptionStep(waiting, "Wait until the operator has written its ConfigMaps")
        policy = snapshot.stack.cluster_policy
        plain = policy is not None and policy.plain is not None
        who = (
            "NVIDIA's device plugin at the operator's ConfigMap"
            if plain
            else "ClusterPolicy at the operator's ConfigMaps"
        )
        about = (
            f"Point {who}; until then no policy is accepted. NVIDIA's operands restart once on every GPU node; running"
            " pods keep their devices"
        )
        yield AdoptionStep(command, about)


def first_steps(
    snapshot: ClusterSnapshot, given: AdminConfigMaps, merged: AdminMaps
) -> Iterator[AdoptionStep]:
    """The steps where there is no operator: install it with the admin's ConfigMaps named, then run import again. The
    steps that move the pointers follow then, when the agents have read the GPUs."""
    settings = snapshot.settings
    values = _values(given, merged)
    yield AdoptionStep(
        helm_install("gpusharing", settings.namespace, settings.gpu_operator_namespace, values),
        "Install the operator. It changes no node until there is a policy",
    )
    again = "kubectl gpusharing import > policies.yaml"
    yield AdoptionStep(
        again, "Run import again before you apply anything: by then the agents have read the GPUs"
    )


def _values(given: AdminConfigMaps, merged: AdminMaps) -> list[str]:
    """Values of the chart that name the ConfigMaps whose entries are not merged yet."""
    values = {
        "adminPluginConfigMap": (given.maps.plugin, merged.plugin, given.plugin_configs),
        "adminMigConfigMap": (given.maps.mig, merged.mig, given.mig_file),
    }
    return [
        f"gpuOperator.{name}={wanted}"
        for name, (wanted, now, held) in values.items()
        if held is not None and wanted not in ("", now)
    ]


def _wait(snapshot: ClusterSnapshot, given: AdminConfigMaps) -> str:
    """Ends once each of our ConfigMaps has an entry that it did not have; all entries of one are written at once."""
    stack, settings = snapshot.stack, snapshot.settings
    plugin = sorted({NEUTRAL_KEY, *(given.plugin_configs or {})} - stack.plugin_configs.keys())
    theirs = parse_admin(given.mig_file or "").entries
    mig = sorted({ALL_DISABLED, *theirs} - parse(stack.mig_file).keys())
    asked = []
    if plugin:
        asked.append((settings.plugin_config_map, plugin[0].replace(".", "\\."), "-q ."))
    if mig:
        asked.append((settings.mig_config_map, "config\\.yaml", f"-qF {shlex.quote(mig[0] + ':')}"))
    where = settings.gpu_operator_namespace
    reads = [
        f"kubectl get configmap {name} -n {where} -o jsonpath='{{.data.{key}}}' | grep {options}"
        for name, key, options in asked
    ]
    return f"until {' && '.join(reads)}; do sleep 2; done" if reads else ""


def _point(snapshot: ClusterSnapshot, given: AdminConfigMaps) -> str:
    """Return the command that points NVIDIA's programs at our ConfigMaps. Empty if they point there already, or if our
    ConfigMaps are in a namespace where those programs cannot mount them."""
    policy, settings = snapshot.stack.cluster_policy, snapshot.settings
    if policy is None or find_other_namespace(policy, settings.gpu_operator_namespace):
        return ""
    held = {*snapshot.stack.plugin_configs, *(given.plugin_configs or {})}
    plugin = plugin_pointer(policy, settings.plugin_config_map, held)
    if policy.plain is None:
        found = (plugin, mig_pointer(policy, settings.mig_config_map))
        parts = [one.patch for one in found if one.now != one.ours]
        return kubectl_patch(policy.name, *parts) if parts else ""
    if plugin.now == plugin.ours:
        return ""
    return plain_upgrade(policy.plain, settings.gpu_operator_namespace, f"config.name={plugin.ours}")
