"""`import`: which policies describe a cluster that was configured by hand, and change nothing in it?

The policies go to standard output, for `kubectl apply -f -`. The steps to take first, and the nodes that are left out,
are comments there. The exit status is 0 if the policies cover every GPU node, 2 if some nodes are left out, 1 if all
are.
"""

import json
import re
import sys
from collections.abc import Iterator, Sequence

from gpusharing.kube.client import NODES, PODS
from gpusharing.kube.installation import read_entries
from gpusharing.kube.raw import text
from gpusharing.planning.drain.pods import LABELS
from gpusharing.planning.snapshot.views import ClusterSnapshot
from gpusharing.planning.stack.plugins import has_system_plugin
from gpusharing.planning.vocabulary.lengths import counted, some
from gpusharing.planning.wanted.migfile import MIG_KEY
from kubectl_gpusharing.live.cluster import gathered
from kubectl_gpusharing.setup.adoption import AdminConfigMaps, Import, find_import, named_maps
from kubectl_gpusharing.shell.arguments import Arguments
from kubectl_gpusharing.shell.drawing import printable, simulated_sentence
from kubectl_gpusharing.shell.manifests import comment
from kubectl_gpusharing.shell.session import Session
from kubectl_gpusharing.shell.terminal import Terminal
from kubectl_gpusharing.shell.troubles import CHANGES, DONE, FAILED, Denied, explained

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
