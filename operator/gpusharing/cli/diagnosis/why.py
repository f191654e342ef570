"""`why NODE|POD`: one screen that says what state it is in, which sources disagree, what blocks, and what to do about
it.

A node's published state needs the viewer's rights only; what each source of proof says needs those of `plan`; if they
are missing, the screen names them.
"""

from argparse import Namespace
from dataclasses import dataclass

from gpusharing.cli.diagnosis.node import NodeAnswer, describe_node, node_answer
from gpusharing.cli.diagnosis.pod import describe_pod, pod_answer
from gpusharing.cli.diagnosis.rooms import RoomSearch
from gpusharing.cli.live.cluster import Decided, gathered
from gpusharing.cli.pools.fleet import read_node
from gpusharing.cli.shell.session import Session, no_such
from gpusharing.cli.shell.terminal import Terminal
from gpusharing.cli.shell.troubles import DONE, Trouble
from gpusharing.kube.client import GPUNODES, NODES, PODS
from gpusharing.kube.errors import KubeError, NotFound


@dataclass(frozen=True, slots=True)
class Subject:
    """What is asked about."""

    name: str
    """Name of the node or of the pod."""
    namespace: str | None
    """Of a pod; None: it is a node."""


def find_subject(word: str, namespace: str) -> Subject:
    """`gpu-07`, `node/gpu-07`, `pod/llm-0`, `team-a/llm-0` or `pod/team-a/llm-0`. Raises Trouble for anything else."""
    kind, _, rest = word.partition("/")
    if not rest:
        return Subject(word, None)
    if kind in ("node", "nodes", "gpunode", "gpunodes", "gpun"):
        return Subject(rest, None)
    if kind in ("pod", "pods", "po"):
        first, _, last = rest.rpartition("/")
        return Subject(last, first or namespace)
    if "/" in rest:
        raise Trouble(f"{word} names neither a node nor a pod: write NODE, pod/NAME or NAMESPACE/NAME")
    return Subject(rest, kind)


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """See Verb."""
    subject = find_subject(typed.subject, getattr(typed, "namespace", session.namespace))
    if subject.namespace is not None:
        pod = await session.one(PODS, subject.name, subject.namespace)
        async with gathered(session) as cluster:
            decided = await cluster.decide(())
            search = RoomSearch(pod, decided)
            async for nodes in session.each_page(NODES):
                search.look(nodes)
            told = pod_answer(search)
        terminal.answer(told.as_data, lambda paper: describe_pod(told, paper))
        return DONE
    answer = await _node(session, subject.name)
    terminal.answer(answer.as_data, lambda paper: describe_node(answer, session.now(), paper))
    return DONE


async def _node(session: Session, name: str) -> NodeAnswer:
    """What was published about it and, with the rights for that, what each source says now."""
    try:
        seen = read_node(await session.client.get(GPUNODES, name))
    except NotFound:
        seen = None
    except KubeError:
        seen = read_node(await session.one(GPUNODES, name))  # raises what it means
    decided: Decided | None = None
    trouble = ""
    try:
        async with gathered(session) as cluster:
            decided = await cluster.decide((), [name])
    except Trouble as error:
        trouble = str(error)
    if seen is None and decided is None:
        # Whether there is such a Node nobody could tell; of those that are published it is none.
        names = await _published(session)
        raise Trouble(no_such(GPUNODES, name, names, session.where) if names else trouble)
    if seen is None and decided is not None and name not in decided.snapshot.nodes:
        raise Trouble(no_such(NODES, name, sorted(decided.snapshot.nodes), session.where))
    return node_answer(name, seen, decided, trouble)


async def _published(session: Session) -> list[str]:
    """Names of nodes that have a GPUNode; none where they cannot be listed, as before an installation."""
    try:
        return [raw["metadata"]["name"] for raw in await session.all(GPUNODES)]
    except Trouble:
        return []
