"""`why NODE|POD`: explain the state of a node or pod on one screen: which sources disagree, what blocks it, and what
to do.

The published state of a node needs only the viewer's rights. The sources of proof need those of `plan`; if the user
lacks them, the screen names them.
"""

from argparse import Namespace
from contextlib import suppress
from dataclasses import asdict

from gpusharing.cli.diagnosis.node import NodeAnswer, describe_node, node_answer
from gpusharing.cli.diagnosis.pod import describe_pod, pod_answer
from gpusharing.cli.diagnosis.rooms import RoomSearch
from gpusharing.cli.live.cluster import LivePlan, gathered
from gpusharing.cli.pools.fleet import read_node
from gpusharing.cli.shell.session import Session, no_such
from gpusharing.cli.shell.terminal import Terminal
from gpusharing.cli.shell.troubles import DONE, Trouble
from gpusharing.kube.client import GPUNODES, NODES, PODS
from gpusharing.kube.errors import KubeError, NotFound


def find_subject(word: str, namespace: str) -> tuple[str, str | None]:
    """Parse the argument: `gpu-07` and `node/gpu-07` name a node; `pod/llm-0`, `team-a/llm-0` and `pod/team-a/llm-0`
    name a pod. Return the name, and the namespace of a pod (by default `namespace`) or None for a node. Raises
    Trouble if the word has two slashes or more and does not begin with the kind of a node or pod."""
    kind, _, rest = word.partition("/")
    if not rest:
        return word, None
    if kind in ("node", "nodes", "gpunode", "gpunodes", "gpun"):
        return rest, None
    if kind in ("pod", "pods", "po"):
        first, _, last = rest.rpartition("/")
        return last, first or namespace
    if "/" in rest:
        raise Trouble(f"{word} is neither a node nor a pod: write NODE, pod/NAME or NAMESPACE/NAME")
    return rest, kind


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """Explain the node or the pod that the user named, and return DONE (see VerbModule). Raises Trouble if it does not
    exist or cannot be read. For a pod, Trouble is also raised if no plan can be made, for example because the user
    lacks the rights."""
    name, namespace = find_subject(typed.subject, getattr(typed, "namespace", session.namespace))
    if namespace is not None:
        pod = await session.get(PODS, name, namespace)
        async with gathered(session) as cluster:
            live = await cluster.decide(())
            search = RoomSearch(pod, live)
            async for nodes in session.each_page(NODES):
                search.look(nodes)
            explained = pod_answer(search, await session.namespace_labels(namespace))
        terminal.answer(lambda: asdict(explained), lambda paper: describe_pod(explained, paper))
        return DONE
    answer = await _node(session, name)
    terminal.answer(answer.as_data, lambda paper: describe_node(answer, session.now(), paper))
    return DONE


async def _node(session: Session, name: str) -> NodeAnswer:
    """Return what the operator published about a node, and what each source of proof says now or, if the sources
    cannot be read, why not. Raises Trouble if the node has no GPUNode and either does not exist or cannot be looked
    up, because Nodes cannot be read. Any error but NotFound while the GPUNode is read is raised as Trouble too,
    unless a second attempt succeeds."""
    try:
        published = read_node(await session.client.get(GPUNODES, name))
    except NotFound:
        published = None
    except KubeError:
        published = read_node(await session.get(GPUNODES, name))  # turns the error into a Trouble
    live: LivePlan | None = None
    trouble = ""
    try:
        async with gathered(session) as cluster:
            live = await cluster.decide((), [name])
    except Trouble as error:
        trouble = str(error)
    if published is None and live is None:
        # Nodes could not be read, so it is unknown whether this one exists; it has no GPUNode.
        names = []
        with suppress(Trouble):  # before the installation there are no GPUNodes to list
            names = [raw["metadata"]["name"] for raw in await session.all(GPUNODES)]
        raise Trouble(no_such(GPUNODES, name, names, session.where) if names else trouble)
    if published is None and live is not None and name not in live.snapshot.nodes:
        raise Trouble(no_such(NODES, name, sorted(live.snapshot.nodes), session.where))
    return node_answer(name, published, live, trouble)
