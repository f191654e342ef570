"""`import`: propose policies for a cluster that was configured by hand, which change nothing when they are applied.

The policies go to standard output, for `kubectl apply -f -`. The steps to take first, and the nodes that are left out,
go to standard error and into comments on standard output.

Exit status: 0 if the policies cover every GPU node, 2 if some nodes are left out, 1 if all are.
"""

import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpusharing.cli.live.cluster import gathered
from gpusharing.cli.setup.adoption import AdminConfigMaps, Import, find_import, named_maps
from gpusharing.cli.setup.likeness import ProposedPolicy
from gpusharing.cli.shell.drawing import printable, simulated_sentence
from gpusharing.cli.shell.manifests import comment
from gpusharing.cli.shell.session import Session
from gpusharing.cli.shell.terminal import Terminal
from gpusharing.cli.shell.troubles import CHANGES, DONE, FAILED, Trouble, sentence
from gpusharing.kube.client import CONFIG_MAPS
from gpusharing.kube.errors import KubeError, NotFound
from gpusharing.kube.installation import find_namespaces
from gpusharing.kube.raw import section, texts
from gpusharing.kube.sources import MIG_KEY
from gpusharing.planning.snapshot.views import ClusterSnapshot
from gpusharing.planning.vocabulary.lengths import counted, some

PROVEN = (
    "Proposed by kubectl gpusharing import: the operator's planner adopts these nodes without any disruption."
)
PRESUMED = (
    "Proposed by kubectl gpusharing import before the operator is installed, so nothing has been proven yet. No agent"
    " has read these GPUs; their layout is inferred from the labels and the advertised resources of the nodes."
)
MOST = 8
"""How many nodes a comment names."""


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """Print the policies on standard output, as YAML or with -o json as JSON, and the remarks about them on standard
    error and in comments of the YAML (see VerbModule). Returns DONE if no GPU node is left out, CHANGES if some
    are, and FAILED if some are and no policy is proposed. Raises Trouble if the cluster cannot be read."""
    async with gathered(session, beforehand=True) as cluster:
        live = await cluster.decide(())
        admin = await read_admin_maps(session, live.snapshot)
        merged = cluster.gatherer.sources.settings.admin_maps
        answer = find_import(live.snapshot, admin, merged, live.now, missing=cluster.missing)
    # Without an operator the notes would say that the chart's settings are assumed; PRESUMED says more.
    unsure = [PRESUMED] if answer.presumed else live.notes
    remarks = [*filter(None, [simulated_sentence(live.simulated())]), *unsure, *find_remarks(answer)]
    for remark in remarks:
        print(printable(" ".join(remark.splitlines())), file=sys.stderr)
    if terminal.output == "json":
        manifests = [policy.manifest for policy in answer.proposed]
        terminal.data(
            {"apiVersion": "v1", "kind": "List", "items": manifests}
        )  # the form that kubectl apply takes
    else:
        terminal.stream.write(as_yaml(answer, remarks))
    if answer.left_out:
        return CHANGES if answer.proposed else FAILED
    return DONE


async def read_admin_maps(session: Session, snapshot: ClusterSnapshot) -> AdminConfigMaps:
    """Read the ConfigMaps of the admin that ClusterPolicy names. If the device plugin's ConfigMap does not exist in
    the namespace of NVIDIA's pods, also find the namespaces that have one with this name, as far as the user may
    list ConfigMaps. Raises Trouble if a ConfigMap cannot be read."""
    maps = named_maps(snapshot)
    plugin = await _data(session, snapshot, maps.plugin)
    mig = await _data(session, snapshot, maps.mig)
    file = mig.get(MIG_KEY, "") if mig is not None else None
    absent = maps.plugin if plugin is None else ""
    try:
        namespaces = await find_namespaces(session.client, absent)
    except KubeError as error:
        raise Trouble(sentence(error, session.where)) from error
    return AdminConfigMaps(maps, plugin, file, namespaces)


async def _data(session: Session, snapshot: ClusterSnapshot, name: str) -> Mapping[str, str] | None:
    """Return the data of the ConfigMap `name` in the namespace of NVIDIA's pods, or None if the name is empty or the
    ConfigMap does not exist. Raises Trouble for any other error."""
    if not name:
        return None
    try:
        namespace = snapshot.settings.gpu_operator_namespace
        return texts(section(await session.client.get(CONFIG_MAPS, name, namespace=namespace), "data"))
    except NotFound:
        return None
    except KubeError as error:
        raise Trouble(sentence(error, session.where)) from error


# --- in words ------------------------------------------------------------------------------------------------------


def find_remarks(answer: Import) -> Iterator[str]:
    """Yield what the user must know in addition to the policies, one line each: the steps to take first, each followed
    by its command, which nodes are left out and why, and, if there is nothing to propose and nothing left out, why."""
    for number, step in enumerate(answer.steps, 1):
        yield f"{number}. {step.about}:"
        yield f"   {step.command}"
    by_reason: dict[str, list[str]] = {}
    for node, why in answer.left_out.items():
        by_reason.setdefault(why, []).append(node)
    for why, nodes in by_reason.items():
        yield f"{some(nodes, MOST)} {'is' if len(nodes) == 1 else 'are'} left out: {why}"
    if not answer.proposed and not answer.left_out:
        yield (
            "There is nothing to propose: every GPU node already has a policy"
            if answer.owned
            else "There is no GPU node"
        )


def as_yaml(answer: Import, remarks: Sequence[str]) -> str:
    """Return a YAML file for `kubectl apply -f -`: the remarks as comments, then the policies."""
    proven = [PROVEN] if answer.proposed and not answer.presumed else []
    parts = ["".join(map(comment, [*proven, *remarks]))]
    parts += [_document(policy) for policy in answer.proposed]
    return "---\n".join(parts)


def _document(policy: ProposedPolicy) -> str:
    """Return one policy as YAML, preceded by comments that say which nodes it is for and what it does not express."""
    import yaml  # importing it takes as long as a short command

    first = policy.members[0]
    cards = f"{first.gpus}x {' and '.join(first.products)}"
    lines = [f"{counted(len(policy.nodes), 'node')} ({some(policy.nodes, MOST)}) with {cards}: {first.text}"]
    if policy.by_name:
        lines.append(
            "No pool label distinguishes these nodes from others, so the policy lists them by name. If it"
            " selected them by a label, new nodes with that label would join automatically."
        )
    inexpressible = sorted({path for member in policy.members for path in member.inexpressible})
    if inexpressible:
        lines.append(
            f"The device plugin's configuration has {', '.join(inexpressible)}, which a policy cannot express. That"
            " part stays in force until the operator first changes the node."
        )
    return "".join(map(comment, lines)) + yaml.safe_dump(_plain(policy.manifest), sort_keys=False)


def _plain(value: Any) -> Any:
    """Convert all mappings and sequences in the value to new dicts and lists, so that equal parts are written out each
    time instead of as YAML aliases."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
