"""`import`: policies for a cluster that was configured by hand, which change nothing when they are applied.

What is found goes to standard output, for `kubectl apply -f -`; what has to be done first, and what is left out, into
comments there and to standard error.

Exit status: 0 every GPU node is under a policy then, 2 some are left out, 1 there is nothing to apply.
"""

import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpusharing.cli.live.cluster import gathered
from gpusharing.cli.setup.adoption import AdminConfigMaps, Import, find_import, named_maps
from gpusharing.cli.setup.likeness import Proposed
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
    "Proposed by kubectl gpusharing import before the operator is installed: nothing is proven yet. No agent has read"
    " these GPUs; what they are is inferred from labels of Nodes and from what the Nodes offer."
)
MOST = 8
"""Nodes that a comment names."""


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """See VerbModule."""
    async with gathered(session, beforehand=True) as cluster:
        decided = await cluster.decide(())
        given = await read_given(session, decided.snapshot)
        merged = cluster.gatherer.sources.settings.admin_maps
        found = find_import(decided.snapshot, given, merged, decided.now, missing=cluster.missing)
    # Without an operator there are the chart's settings, and another sentence says so.
    unsure = [PRESUMED] if found.presumed else decided.notes
    remarks = [*filter(None, [simulated_sentence(decided.simulated())]), *unsure, *find_remarks(found)]
    for remark in remarks:
        print(printable(" ".join(remark.splitlines())), file=sys.stderr)
    if terminal.output == "json":
        manifests = [one.manifest for one in found.proposed]
        terminal.data({"apiVersion": "v1", "kind": "List", "items": manifests})  # as kubectl apply takes it
    else:
        terminal.stream.write(as_yaml(found, remarks))
    if found.left_out:
        return CHANGES if found.proposed else FAILED
    return DONE


async def read_given(session: Session, snapshot: ClusterSnapshot) -> AdminConfigMaps:
    """Read the ConfigMaps of the admin that ClusterPolicy names, and where the device plugin's is if it is absent from
    the namespace of NVIDIA's pods. Raises Trouble if one may not be read."""
    maps = named_maps(snapshot)
    plugin = await _data(session, snapshot, maps.plugin)
    mig = await _data(session, snapshot, maps.mig)
    file = mig.get(MIG_KEY, "") if mig is not None else None
    absent = maps.plugin if plugin is None else ""
    return AdminConfigMaps(maps, plugin, file, await find_namespaces(session.client, absent))


async def _data(session: Session, snapshot: ClusterSnapshot, name: str) -> Mapping[str, str] | None:
    """Read a ConfigMap in the namespace of NVIDIA's pods; None without a name, or if it does not exist. Raises Trouble
    for any other error."""
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


def find_remarks(found: Import) -> Iterator[str]:
    """What a person has to know besides the policies, a line each."""
    for number, step in enumerate(found.steps, 1):
        yield f"{number}. {step.about}:"
        yield f"   {step.command}"
    by_reason: dict[str, list[str]] = {}
    for node, why in found.left_out.items():
        by_reason.setdefault(why, []).append(node)
    for why, nodes in by_reason.items():
        yield f"Left out: {some(nodes, MOST)}: {why}"
    if not found.proposed and not found.left_out:
        yield (
            "Nothing to propose: every GPU node is under a policy" if found.owned else "There is no GPU node"
        )


def as_yaml(found: Import, remarks: Sequence[str]) -> str:
    """A file for `kubectl apply -f -`."""
    proven = [PROVEN] if found.proposed and not found.presumed else []
    parts = ["".join(map(comment, [*proven, *remarks]))]
    parts += [_document(one) for one in found.proposed]
    return "---\n".join(parts)


def _document(one: Proposed) -> str:
    import yaml  # as in terminal.py: it costs as much as a short command

    first = one.members[0]
    cards = f"{first.gpus}x {' and '.join(first.products)}"
    lines = [f"{counted(len(one.nodes), 'node')} ({some(one.nodes, MOST)}) with {cards}: {first.text}"]
    if one.by_name:
        lines.append(
            "No label that names a pool distinguishes these nodes from others, so they are listed. With a"
            " label of your own, new nodes would join automatically."
        )
    unsaid = sorted({path for member in one.members for path in member.unsaid})
    if unsaid:
        lines.append(
            f"A policy cannot express {', '.join(unsaid)} of the device plugin's configuration. That part stays in"
            " force until the node's first change."
        )
    return "".join(map(comment, lines)) + yaml.safe_dump(_plain(one.manifest), sort_keys=False)


def _plain(value: Any) -> Any:
    """Without aliases: equal parts are written out each time."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
