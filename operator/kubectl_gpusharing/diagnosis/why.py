"""`why NODE|KIND/NAME`: explain the state of a node, of a policy's worst node, or of a pod on one screen: which sources disagree, what blocks it, and what to do.

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
    """Explain what the user named: of a policy its worst node, of a workload one of its pods."""
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
