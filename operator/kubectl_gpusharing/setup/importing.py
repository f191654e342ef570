"""`import`: which policies describe a cluster that was configured by hand, and change nothing in it?

The policies go to standard output, for `kubectl apply -f -`. The steps to take first, and the nodes that are left out,
are comments there. The exit status is 0 if the policies cover every GPU node, 2 if some nodes are left out, 1 if all
are.

The planner checks the policies on a snapshot of the cluster as it will be: with the admin's ConfigMaps merged into
ours, ClusterPolicy naming ours, and the policies applied. Nodes that it would not adopt unchanged are left out, and the
rest is checked again.
"""

import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from gpusharing.api.names import LABEL_MIG_CONFIG, PREFIX, DisruptionClass
from gpusharing.api.validation import validate_policy
from gpusharing.kube.client import NODES, PODS
from gpusharing.kube.convert import policy_view
from gpusharing.kube.installation import read_entries
from gpusharing.kube.raw import text
from gpusharing.kube.sourcesettings import NO_MAPS, AdminMaps
from gpusharing.planning.drain.pods import LABELS
from gpusharing.planning.report.proposal import configured
from gpusharing.planning.rollout import RolloutPlan, plan_rollout
from gpusharing.planning.snapshot.nvidia import ClusterPolicyView
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView
from gpusharing.planning.stack.effects import find_effects, is_unresolved, tell_effects
from gpusharing.planning.stack.installationviews import helm_install, kubectl_patch, plain_upgrade, upgrade
from gpusharing.planning.stack.nodesymptoms import PluginEntries, find_node_symptoms
from gpusharing.planning.stack.plugins import OTHERS, explain_plugin, has_system_plugin
from gpusharing.planning.stack.pointers import (
    find_other_namespace,
    mig_pointer,
    plugin_pointer,
)
from gpusharing.planning.vocabulary.commands import Change, Command, Effect, Effects, Loss, is_safe, label_commands
from gpusharing.planning.vocabulary.lengths import counted, some
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.assess import Assessed, has_gpu
from gpusharing.planning.wanted.migfile import ALL_DISABLED, MIG_KEY, parse, parse_admin
from gpusharing.planning.wanted.ownership import Owners, find_contenders
from gpusharing.planning.wanted.pluginconfig import NEUTRAL_KEY
from kubectl_gpusharing.live.cluster import applied, gathered
from kubectl_gpusharing.live.files import comment, policy_manifest
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
from kubectl_gpusharing.shell.arguments import Arguments
from kubectl_gpusharing.shell.drawing import printable, simulated_sentence
from kubectl_gpusharing.shell.session import Session
from kubectl_gpusharing.shell.terminal import Terminal
from kubectl_gpusharing.shell.troubles import CHANGES, DONE, FAILED, Denied, explained

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
    """Return the admin's ConfigMaps that ClusterPolicy names, empty if none was chosen (docs/design/nvidia.md#d6)."""
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
        return "the operator's change is unfinished"
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
    fields = plugin_pointer(now_read, snapshot.settings, later.stack.plugin_configs).change.fields
    if now_read.plain is None:
        fields += mig_pointer(now_read, snapshot.settings).change.fields
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
        fields = [field for pointer in pointers if pointer.now != pointer.ours for field in pointer.change.fields]
        return who, kubectl_patch(policy.name, fields, effects=effects) if fields else None
    who, value = "NVIDIA's device plugin at the operator's ConfigMap", f"config.name={plugin.ours}"
    if plugin.now == plugin.ours:
        return who, None
    return who, plain_upgrade(policy.plain, settings.gpu_operator_namespace, value, effects=effects)


PROVEN = "Proposed by kubectl gpusharing import: the operator's planner adopts these nodes without any disruption."
PRESUMED = (
    "Proposed by kubectl gpusharing import before the operator is installed, so nothing has been proven yet. No agent"
    " has read these GPUs; their layout is inferred from the labels and the advertised resources of the nodes."
)
MOST = 8
"""How many nodes a comment names."""


async def run(session: Session, _: Arguments, terminal: Terminal) -> int:
    """Print the policies, with comments about what to do first; with JSON, these go to standard error."""
    async with gathered(session, beforehand=True) as cluster:
        live = await cluster.decide(())
        admin = await read_admin_maps(session, live.snapshot)
        merged = cluster.gatherer.sources.settings.admin_maps
        answer = find_import(live.snapshot, admin, merged, live.now, missing=cluster.installed.missing)
    # Without an operator the notes would say that the chart's settings are assumed; PRESUMED says more.
    unsure = [PRESUMED] if answer.presumed else live.notes
    remarks = [*filter(None, [simulated_sentence(live.simulated())]), *unsure, *find_remarks(answer)]
    remarks += await find_others(session)
    if terminal.structured and terminal.output != "yaml":
        remarks += [] if answer.proposed or answer.left_out else [summary(answer)]
        manifests = [policy.manifest for policy in answer.proposed]
        # kubectl apply takes a List.
        terminal.document({"apiVersion": "v1", "kind": "List", "items": manifests})
    else:
        terminal.stream.write(as_yaml(answer, remarks))
        remarks = [summary(answer)]
    for remark in remarks:
        print(printable(" ".join(remark.splitlines())), file=sys.stderr)
    if answer.left_out:
        return CHANGES if answer.proposed else FAILED
    return DONE


async def find_others(session: Session) -> list[str]:
    """Return remarks about what else divides GPUs in the cluster and cannot be taken over."""
    kai: set[str] = set()
    remarks: list[str] = []
    try:
        for label in sorted(LABELS):
            async for page in session.each_page(PODS, label_selector=label):
                kai |= {text(raw, "spec", "nodeName") for raw in page} - {""}
    except Denied:
        remarks.append("You may not list pods, so it is unknown whether KAI-Scheduler divides GPUs here.")
    if kai:
        remarks.append(
            f"KAI-Scheduler gives pods fractions of GPUs on {some(sorted(kai), MOST)}. Policies cannot express these"
            " fractions, so they are not taken over: KAI goes on dividing the GPUs of these nodes, which must stay in"
            " mode Full."
        )
    own = [
        text(raw, "metadata", "name")
        async for page in session.each_page(NODES)
        for raw in page
        if has_system_plugin(text(raw, "status", "nodeInfo", "osImage"))
    ]
    if own:
        remarks.append(
            f"{some(sorted(own), MOST)} {'runs' if len(own) == 1 else 'run'} Bottlerocket, whose settings"
            " (settings.kubelet-device-plugins.nvidia) can share GPUs and divide them with MIG at each boot. The"
            " Kubernetes API does not show these settings, so they are not taken over. Disable Bottlerocket's device"
            " plugin before you apply a policy for such a node; kubectl gpusharing doctor shows the command."
        )
    return remarks


async def read_admin_maps(session: Session, snapshot: ClusterSnapshot) -> AdminConfigMaps:
    """Read the admin's ConfigMaps that ClusterPolicy names. Raises Trouble if one cannot be read."""
    names, namespace = named_maps(snapshot), snapshot.settings.gpu_operator_namespace
    with explained(session.where):
        plugin = await read_entries(session.client, names.plugin, namespace, search=True)
        mig = (await read_entries(session.client, names.mig, namespace, search=False)).texts
    return AdminConfigMaps(plugin, names.mig, None if mig is None else mig.get(MIG_KEY, ""))


# --- in words ------------------------------------------------------------------------------------------------------


def summary(answer: Import) -> str:
    if not answer.proposed and not answer.left_out:
        every = "There is nothing to propose: every GPU node already has a policy."
        return every if answer.owned else "There is no GPU node."
    nodes = counted(sum(len(policy.nodes) for policy in answer.proposed), "node")
    policies = counted(len(answer.proposed), "policy", "policies")
    before = f"{counted(len(answer.steps), 'step')} to take first, {counted(len(answer.left_out), 'node')} left out"
    return f"{policies} for {nodes}, {before}. The comments in the output say what to do, and why."


def find_remarks(answer: Import) -> Iterator[str]:
    """Yield what the user must know, one line each. The steps to take first are each followed by their command."""
    for number, (about, command) in enumerate(answer.steps, 1):
        yield f"{number}. {about}:"
        yield f"   {command}"
    by_reason: dict[str, dict[str, str]] = {}
    for node, why in answer.left_out.items():
        by_reason.setdefault(re.sub(rf"(?<![\w.-]){re.escape(node)}(?![\w.-])", "NODE", why), {})[node] = why
    for why, nodes in by_reason.items():
        reason = why if len(nodes) > 1 else next(iter(nodes.values()))
        yield f"{some(list(nodes), MOST)} {'is' if len(nodes) == 1 else 'are'} left out: {reason}"
    by_name = [policy.name for policy in answer.proposed if "matchExpressions" in policy.selector]
    if by_name:
        yield (
            f"In {some(by_name, MOST)}, nodes are named one by one, because no pool label is on exactly these nodes. A"
            " node that joins the pool later may not be selected, or selected by the wrong policy: give nodes that"
            " belong together a label of their own, for example gpusharing.dev/pool."
        )
    beyond: dict[tuple[str, ...], list[str]] = {}
    for policy in answer.proposed:
        if paths := sorted({path for member in policy.members for path in member.inexpressible}):
            beyond.setdefault(tuple(paths), []).append(policy.name)
    for fields, names in beyond.items():
        yield (
            f"The device plugin's configuration on the nodes of {some(names, MOST)} has {', '.join(fields)}, which a"
            " policy cannot express. That part stays in force until the operator first changes the node."
        )


def as_yaml(answer: Import, remarks: Sequence[str]) -> str:
    import yaml  # importing it takes as long as a short command

    proven = [PROVEN] if answer.proposed and not answer.presumed else []
    parts = ["".join(map(comment, [*proven, *remarks]))]
    for policy in answer.proposed:
        first = policy.members[0]
        cards = f"{first.gpus}x {' and '.join(first.products)}"
        nodes = f"{counted(len(policy.nodes), 'node')} ({some(policy.nodes, MOST)})"
        about = f"{nodes} with {cards}: {first.text}"
        # In the copy, equal parts are no longer the same object, so there are no aliases.
        manifest = json.loads(json.dumps(policy.manifest))
        parts.append(comment(about) + yaml.safe_dump(manifest, sort_keys=False))
    return "---\n".join(parts)
