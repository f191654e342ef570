"""Which policies would adopt the nodes of a cluster that was configured by hand, unchanged?

The planner checks them on a snapshot of the cluster as it will be: with the admin's ConfigMaps merged into ours,
ClusterPolicy naming ours, and the policies applied. Nodes that it would not adopt unchanged are left out, and the rest
is checked again.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from gpusharing.api.names import LABEL_MIG_CONFIG, PREFIX, DisruptionClass
from gpusharing.api.validation import validate_policy
from gpusharing.kube.convert import policy_view
from gpusharing.kube.sources import NO_MAPS, AdminMaps
from gpusharing.planning.report.proposal import configured
from gpusharing.planning.rollout import RolloutPlan, plan_rollout
from gpusharing.planning.snapshot.nvidia import ClusterPolicyView
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView
from gpusharing.planning.stack.effects import find_effects, is_unresolved, tell_effects
from gpusharing.planning.stack.installationviews import helm_install, kubectl_patch, plain_upgrade, upgrade
from gpusharing.planning.stack.nodesymptoms import PluginEntries, find_node_symptoms
from gpusharing.planning.stack.plugins import OTHERS, explain_plugin
from gpusharing.planning.stack.pointers import (
    find_other_namespace,
    mig_change,
    mig_pointer,
    plugin_change,
    plugin_pointer,
)
from gpusharing.planning.vocabulary.commands import Change, Command, Effect, Effects, Loss, is_safe, label_commands
from gpusharing.planning.vocabulary.lengths import counted, some
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.assess import Assessed, has_gpu
from gpusharing.planning.wanted.migfile import ALL_DISABLED, parse, parse_admin
from gpusharing.planning.wanted.ownership import Owners, find_contenders
from gpusharing.planning.wanted.pluginconfig import NEUTRAL_KEY
from kubectl_gpusharing.live.cluster import applied
from kubectl_gpusharing.setup.handmade import (
    Handmade,
    ProposedPolicy,
    find_handmade,
    find_unserved,
    find_unsettled,
    presume,
    propose,
    tell_misfit,
)
from kubectl_gpusharing.shell.manifests import policy_manifest

EVERYWHERE = policy_view(
    policy_manifest(
        "everywhere",
        {
            "nodeSelector": {"matchExpressions": [{"key": f"{PREFIX}nowhere", "operator": "DoesNotExist"}]},
            "mode": "Full",
        },
    )
)


@dataclass(frozen=True, slots=True)
class AdminConfigMaps:
    """The ConfigMaps that ClusterPolicy names instead of ours; a name is empty if it names none."""

    plugin: PluginEntries
    mig: str = ""
    mig_file: str | None = None
    """The content of mig-manager's ConfigMap. It is None if ClusterPolicy names none, or it does not exist."""


@dataclass(frozen=True, slots=True)
class Import:
    """The policies to apply, the steps before that, and the nodes that are left out."""

    proposed: tuple[ProposedPolicy, ...]
    left_out: Mapping[str, str]
    owned: int
    steps: tuple[tuple[str, str], ...]
    """The purpose and the command of each step to take before the policies are applied."""
    presumed: bool = False
    """Whether the GPUs were inferred from labels, because the operator is not installed."""


def named_maps(snapshot: ClusterSnapshot) -> AdminMaps:
    """Return the names of the admin's ConfigMaps to which ClusterPolicy points.

    A name is empty if ClusterPolicy names none, ours, or the default that nobody chose (docs/design/nvidia.md#d6).
    """
    policy, settings = snapshot.stack.cluster_policy, snapshot.settings
    if policy is None:
        return NO_MAPS
    plugin = plugin_pointer(policy, settings, ())
    mig = mig_pointer(policy, settings)
    return AdminMaps(*("" if one.is_free or one.now == one.ours else one.now for one in (plugin, mig)))


def find_import(
    snapshot: ClusterSnapshot, admin: AdminConfigMaps, merged: AdminMaps, now: datetime, *, missing: bool = False
) -> Import:
    """Propose policies for those GPU nodes without a policy that the planner would adopt unchanged."""
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
    left_out |= dict.fromkeys(
        unnamed,
        "no pool label distinguishes these nodes from others; label them, for example with gpusharing.dev/pool, and run"
        " import again",
    )
    steps = tuple(find_steps(snapshot, admin, merged, now, missing=missing))
    return Import(proposed, dict(sorted(left_out.items())), len(ours), steps, missing)


def _read(node: NodeView, snapshot: ClusterSnapshot, admin: AdminConfigMaps, *, missing: bool) -> Handmade | str | None:
    gpunode = snapshot.gpunodes.get(node.name)
    observed = gpunode.observed if gpunode is not None else None
    if not has_gpu(node) and (observed is None or not observed.gpus):
        return None
    if node.fence is not None:
        return "the operator is changing it"
    if node.other_plugin:
        own = ", ".join(f"{prefix}*" for prefix in OTHERS[node.other_plugin].resources)
        beyond = f". A policy cannot describe {own}, so these resources are not imported" if own else ""
        return explain_plugin(node.other_plugin, [node]).message + beyond
    for symptom in find_node_symptoms(replace(snapshot, nodes={node.name: node}, policies=(EVERYWHERE,)), {}):
        # `find_handmade` tells an unknown entry with the ConfigMap that the plugin reads now, and not with ours.
        if symptom.severity == "ERROR" and symptom.reason != "PluginConfigUnknown":
            return f"{symptom.message}. Run: {symptom.command}"
    if observed is None and (why := find_unsettled(node) or tell_misfit(node, snapshot)):
        return why
    if observed is None and missing:
        return (
            find_unserved(node, snapshot.stack, admin.plugin)
            or "its labels and the resources that it advertises do not show which GPUs it has or how they are divided."
            " The operator's agent can read this from the GPUs, so run import again once the operator is installed"
        )
    if observed is None:
        return "no agent has reported its GPUs: check the gpusharing-agent DaemonSet"
    if not observed.gpus:
        return f"the agent sees no GPU: {observed.error or 'check the driver on the node'}"
    return find_handmade(node, observed, snapshot, admin.plugin)


# --- the cluster as it will be -----------------------------------------------------------------------------------


def with_pointers(snapshot: ClusterSnapshot, admin: AdminConfigMaps) -> ClusterSnapshot:
    """Return the snapshot with ClusterPolicy naming our ConfigMaps, into which the admin's entries are merged."""
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
    """Return the snapshot with reports of agents inferred from labels and resources (`presume`) in place of its own."""
    presumed = {name: presume(node, snapshot.stack) for name, node in snapshot.nodes.items()}
    gpunodes = {name: gpunode for name, gpunode in presumed.items() if gpunode is not None}
    return replace(snapshot, gpunodes=gpunodes, agents=frozenset(gpunodes))


def _refused(snapshot: ClusterSnapshot, proposed: Sequence[ProposedPolicy], now: datetime) -> dict[str, str]:
    """Return why the planner would not adopt nodes unchanged under these policies."""
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
    found |= {
        node: f"{LABEL_MIG_CONFIG} is {lost[node]}, which the operator's ConfigMap will not contain for its GPUs. Put the"
        " entry into a ConfigMap of your own (gpuOperator.adminMigConfigMap)"
        for node in found.keys() & lost.keys()
    }
    return {node: why for node, why in found.items() if why}


def _lost(snapshot: ClusterSnapshot) -> dict[str, str]:
    if not snapshot.stack.serves_our_mig_file:
        return {}
    lost = (node for node in snapshot.nodes.values() if is_unresolved(node, snapshot))
    return {node.name: node.labels[LABEL_MIG_CONFIG] for node in lost}


def _why(plan: RolloutPlan, policy: str, node: str) -> str:
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
    snapshot: ClusterSnapshot, admin: AdminConfigMaps, merged: AdminMaps, now: datetime, *, missing: bool = False
) -> Iterator[tuple[str, str]]:
    """Yield the purpose and the command of each step that remains before the policies may be applied."""
    if missing:
        settings = snapshot.settings
        install = helm_install(
            "gpusharing", settings.namespace, settings.gpu_operator_namespace, _values(admin, merged)
        )
        yield "Install the operator. It will not change any node until there is a policy", str(install)
        about = "Run import again before you apply anything: by then the agents will have read the GPUs"
        yield about, "kubectl gpusharing import > policies.yaml"
        return
    if values := ",".join(_values(admin, merged)):
        about = "Merge the entries used by node labels into the operator's ConfigMaps"
        yield about, str(upgrade("gpusharing", snapshot.settings.namespace, values))
    if _point(snapshot, admin)[1] is None:
        return
    pointed = with_pointers(snapshot, admin)
    later = configured(pointed, plan_rollout(pointed, now), now) or pointed
    now_read = snapshot.stack.cluster_policy
    assert now_read is not None, "_point has no command otherwise"
    unpointed = replace(later.stack, cluster_policy=now_read, serves_our_mig_file=snapshot.stack.serves_our_mig_file)
    fields = plugin_change(now_read, snapshot.settings, later.stack.plugin_configs).fields
    if now_read.plain is None:
        fields += mig_change(snapshot.settings).fields
    effects = find_effects(Change(fields=fields), replace(later, stack=unpointed))
    changes = [effect for effect in effects if effect.loss is Loss.GPUS and effect.why]
    lost = _lost(later)
    coming = {name: config for name, config in _lost(pointed).items() if config not in lost.values()}
    present = parse(snapshot.stack.mig_file).keys()
    theirs = {ALL_DISABLED, *parse_admin(admin.mig_file or "")[0]}
    mig = sorted(theirs - present) or sorted({*coming.values()} - present)
    if waiting := _wait(snapshot, admin, mig):
        yield "Wait until the operator has written its ConfigMaps", waiting
    for label in sorted({change.label for change in changes} - {""}):
        alike = [change for change in changes if change.label == label]
        about = f"Label {counted(len(alike), 'node')} with the MIG layout that the GPUs have{tell_effects(alike)}"
        yield about, str(label_commands(alike)[0])
    kept = tuple(effect for effect in effects if effect.loss in (Loss.CLIENTS, Loss.REPLACED))
    who, command = _point(snapshot, admin, kept, with_mig=is_safe(changes))
    if devices := [effect for effect in effects if effect.loss is Loss.DEVICES]:
        about = f"Run import again once no node would lose devices when you point {who}{tell_effects(devices)}"
        yield about, "kubectl gpusharing import > policies.yaml"
        return
    if command is not None:
        shown = {change.node for change in changes}
        lost = {name: config for name, config in lost.items() if name not in shown}
        about = (
            f"Point {who}; until then no policy is accepted. NVIDIA's operands restart once on every GPU node; running"
            f" pods keep their devices{_end_clients(effects, now_read)}{_warn(lost, {} if mig else coming, snapshot)}"
        )
        yield about, str(command)
    if not is_safe(changes):
        rest = tell_effects([change for change in changes if not change.label])
        about = f"Run import again before mig-manager may read the operator's ConfigMap{rest}"
        yield about, "kubectl gpusharing import > policies.yaml"


def _values(admin: AdminConfigMaps, merged: AdminMaps) -> list[str]:
    values = {
        "adminPluginConfigMap": (admin.plugin.config_map, merged.plugin, admin.plugin.texts),
        "adminMigConfigMap": (admin.mig, merged.mig, admin.mig_file),
    }
    return [
        f"gpuOperator.{name}={wanted}"
        for name, (wanted, now, content) in values.items()
        if content is not None and wanted not in ("", now)
    ]


def _end_clients(effects: Sequence[Effect], policy: ClusterPolicyView) -> str:
    nodes = [effect.node for effect in effects if effect.loss is Loss.CLIENTS]
    if not nodes:
        return ""
    text = (
        f", except MPS clients: all those on {counted(len(nodes), 'node')} ({some(nodes)}) end, so drain these nodes"
        " first or choose a maintenance window"
    )
    if (daemon := policy.mps_daemon) is None or daemon.signalled != daemon.program:
        return text
    return f"{text}. Afterwards check PROCESS_TO_SIGNAL in DaemonSet {daemon.name}: the GPU Operator may have reset it"


def _warn(lost: Mapping[str, str], changing: Mapping[str, str], snapshot: ClusterSnapshot) -> str:
    reports = {name: gpunode.observed for name, gpunode in snapshot.gpunodes.items()}
    parts = []
    if unread := [name for name in sorted(lost) if reports.get(name) is None]:
        parts.append(f"no agent has reported the GPUs of {some(unread)}; wait for that and run import again")
    if unknown := [f"{name} ({lost[name]})" for name in sorted(lost) if name not in unread]:
        parts.append(f"the operator's file will not have the {LABEL_MIG_CONFIG} of {some(unknown)}; correct it")
    if rows := [f"{name} ({changing[name]})" for name in sorted(changing)]:
        parts.append(
            f"the operator's file does not have the {LABEL_MIG_CONFIG} of {some(rows)} for their GPUs yet; run import"
            " again in a minute"
        )
    nodes = counted(len(lost) + len(changing), "node")
    return f". First see to {nodes} on which mig-manager would fail: {'; '.join(parts)}" if parts else ""


def _wait(snapshot: ClusterSnapshot, admin: AdminConfigMaps, mig: Sequence[str]) -> str:
    stack, settings = snapshot.stack, snapshot.settings
    awaited = []
    if plugin := sorted({NEUTRAL_KEY, *(admin.plugin.texts or {})} - stack.plugin_configs.keys()):
        awaited.append((settings.plugin_config_map, plugin[0].replace(".", "\\."), "-q ."))
    if mig:
        awaited.append((settings.mig_config_map, "config\\.yaml", f"-qF {shlex.quote(mig[0] + ':')}"))
    where = settings.gpu_operator_namespace
    reads = [
        f"kubectl get configmap {name} -n {where} -o jsonpath='{{.data.{key}}}' | grep {options}"
        for name, key, options in awaited
    ]
    return f"until {' && '.join(reads)}; do sleep 2; done" if reads else ""


def _point(
    snapshot: ClusterSnapshot, admin: AdminConfigMaps, effects: Effects = (), *, with_mig: bool = True
) -> tuple[str, Command | None]:
    """Return what to point at the operator's ConfigMaps, and the command, None if nothing is left to do."""
    policy, settings = snapshot.stack.cluster_policy, snapshot.settings
    who = "ClusterPolicy at the operator's ConfigMaps"
    if policy is None or find_other_namespace(policy, settings.gpu_operator_namespace):
        return who, None
    entries = {*snapshot.stack.plugin_configs, *(admin.plugin.texts or {})}
    plugin = plugin_pointer(policy, settings, entries)
    if policy.plain is None:
        pointers = [plugin, *([mig_pointer(policy, settings)] if with_mig else [])]
        parts = [pointer.patch for pointer in pointers if pointer.now != pointer.ours]
        return who, kubectl_patch(policy.name, *parts, effects=effects) if parts else None
    who, value = "NVIDIA's device plugin at the operator's ConfigMap", f"config.name={plugin.ours}"
    if plugin.now == plugin.ours:
        return who, None
    return who, plain_upgrade(policy.plain, settings.gpu_operator_namespace, value, effects=effects)
