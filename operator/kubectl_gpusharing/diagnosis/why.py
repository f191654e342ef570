"""`why NODE|KIND/NAME`: explain the state of a node, of a policy's worst node, or of a pod on one screen: which sources
disagree, what blocks it, and what to do.

The published state of a node needs only the viewer's rights. The sources of proof need those of `plan`; if the user
lacks them, the answer says what more rights would add.
"""

from argparse import Namespace
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import cast

from gpusharing.api.selectors import matches
from gpusharing.kube.client import GPUNODES, JSON, NODES, PODS, POLICIES, Resource
from gpusharing.kube.convert_pods import rows_of
from gpusharing.kube.raw import entries, part, section, text, texts
from gpusharing.planning.vocabulary.lengths import counted
from kubectl_gpusharing.diagnosis.node import NodeAnswer, describe_node, node_answer
from kubectl_gpusharing.diagnosis.pod import MORE, PodAnswer, describe_pod, pod_answer, published_answer
from kubectl_gpusharing.diagnosis.rooms import NodeRoom, find_room
from kubectl_gpusharing.live.cluster import gathered
from kubectl_gpusharing.pools.fleet import read_node, read_pools
from kubectl_gpusharing.pools.status import describe_pool, find_pool, pool_data
from kubectl_gpusharing.shell.documents import NodeExplanationData, PodExplanationData, PoolExplanationData
from kubectl_gpusharing.shell.drawing import BLANK, prose
from kubectl_gpusharing.shell.session import Session, find_subject, object_name
from kubectl_gpusharing.shell.terminal import Terminal
from kubectl_gpusharing.shell.troubles import DONE, Denied, Trouble


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """Explain what the user named, and return DONE (see VerbModule). For a policy, show its pool and explain the most
    urgent of its `changing` nodes, if it has any. For a workload, explain one of its pods (`_pod_of`). Any other object
    is a node or a pod, and is explained itself (`find_subject`). Raises Trouble if the object does not exist or cannot
    be read, or if a workload has no pods."""
    kind, name, namespace = find_subject(typed.subject, getattr(typed, "namespace", session.namespace))
    now, names = session.now(), [object_name(kind, name)]
    if kind is POLICIES:
        policies, nodes = await session.lists(POLICIES, GPUNODES)
        pool = find_pool(read_pools(policies, map(read_node, nodes))[0], name, session.where)
        worst = await _node(session, pool.changing[0].name) if pool.changing else None
        terminal.answer(
            PoolExplanationData,
            lambda: {**pool_data(pool, now), "worst": worst.as_data() if worst else None},
            lambda paper: (
                describe_pool(pool, now, paper)
                + ([BLANK, *describe_node(worst, now, paper)] if worst else [])
            ),
            names=names,
        )
    elif kind is NODES:
        answer = await _node(session, name)
        lines = partial(describe_node, answer, now)
        terminal.answer(NodeExplanationData, answer.as_data, lines, names=names)
    else:
        raw = await session.get(kind, name, namespace)
        pod, workload = (raw, "") if kind is PODS else await _pod_of(session, kind, raw)
        explained = await _pod(session, pod)
        terminal.answer(
            PodExplanationData,
            lambda: cast(PodExplanationData, {"workload": workload, **asdict(explained)}),
            lambda paper: [*prose(workload, paper), *describe_pod(explained, paper)],
            names=names,
        )
    return DONE


async def _pod_of(session: Session, kind: Resource, workload: JSON) -> tuple[JSON, str]:
    """Return the pod to explain of those in the workload's namespace that its selector matches: the first by name
    without a node, or else the first that is neither Running nor Succeeded, or else the first of all. Owners are not
    compared. Also return a sentence with the numbers of pods and of those without a node. Raises Trouble if there are
    none, with the messages of the workload's conditions, or if they cannot be read."""
    named = f"{kind.plural}/{text(workload, 'metadata', 'name')}"
    selector = section(workload, "spec", "selector")
    labels, rows = texts(selector.get("matchLabels")), rows_of(entries(selector, "matchExpressions"))
    pods = await session.all(PODS, namespace=text(workload, "metadata", "namespace"))
    pods = [pod for pod in pods if matches(texts(part(pod, "metadata", "labels")), labels, rows)]
    if not pods:
        why = [text(row, "message").rstrip(".") for row in entries(workload, "status", "conditions")]
        raise Trouble(". ".join(filter(None, (f"{named} has no pods", *why))))
    waiting = [pod for pod in pods if not text(pod, "spec", "nodeName")]
    stuck = [pod for pod in pods if text(pod, "status", "phase") not in ("Running", "Succeeded")]
    sentence = f"{named}: {counted(len(pods), 'pod')}, {len(waiting)} of them without a node"
    return [*waiting, *stuck, *pods][0], sentence


async def _pod(session: Session, pod: JSON) -> PodAnswer:
    """Return the answer about a pod: from a plan or, if the user lacks a permission for one, from policies and GPUNodes
    or, if these may not be read either, from the pod alone. Raises Trouble for all errors but missing permissions."""
    try:
        async with gathered(session) as cluster:
            live, rooms = await cluster.decide(()), dict[str, NodeRoom]()
            async for nodes in session.each_page(NODES):
                found = (find_room(pod, raw, live) for raw in nodes)
                rooms |= {room.node: room for room in found if room is not None}
        labels = await session.namespace_labels(text(pod, "metadata", "namespace"))
        return pod_answer(pod, rooms, live, labels)
    except Denied:
        with suppress(Denied):
            return published_answer(pod, *await session.lists(POLICIES, GPUNODES))
        return published_answer(pod, (), ())


async def _node(session: Session, name: str) -> NodeAnswer:
    """Return what the operator published about a node, and what each source of proof says now or, if the sources cannot
    be read, why not (MORE if the user lacks a permission). A Node that the plan shows without a GPUNode is explained
    from the plan alone. Raises Trouble if the GPUNode cannot be read, also because there is none and the plan does not
    show the Node."""
    live, missing = None, ""
    try:
        async with gathered(session) as cluster:
            live = await cluster.decide((), [name])
    except Denied:
        missing = MORE
    except Trouble as error:
        missing = str(error)
    bare = live is not None and name in live.snapshot.nodes and name not in live.snapshot.gpunodes
    return node_answer(name, None if bare else await session.get(GPUNODES, name), live, missing)
