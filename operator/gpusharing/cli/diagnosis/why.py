"""`why NODE|KIND/NAME`: explain the state of a node, of a policy's worst node, or of a pod on one screen: which sources
disagree, what blocks it, and what to do.

The published state of a node needs only the viewer's rights. The sources of proof need those of `plan`; if the user
lacks them, the answer says what more rights would add.
"""

from argparse import Namespace
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace

from gpusharing.api.selectors import matches
from gpusharing.cli.diagnosis.node import NodeAnswer, describe_node, node_answer
from gpusharing.cli.diagnosis.pod import PodAnswer, describe_pod, pod_answer, published_answer
from gpusharing.cli.diagnosis.rooms import RoomSearch
from gpusharing.cli.live.cluster import gathered
from gpusharing.cli.pools.fleet import read_node, read_pools
from gpusharing.cli.pools.status import describe_pool, find_pool, pool_data
from gpusharing.cli.shell.drawing import BLANK
from gpusharing.cli.shell.session import Session, no_such
from gpusharing.cli.shell.terminal import Terminal
from gpusharing.cli.shell.troubles import DONE, Denied, Trouble, trouble
from gpusharing.kube.client import DAEMON_SETS, DEPLOYMENTS, GPUNODES, JSON, NODES, PODS, POLICIES, Resource
from gpusharing.kube.convert_pods import rows_of
from gpusharing.kube.errors import KubeError, NotFound
from gpusharing.kube.raw import entries, part, section, text, texts
from gpusharing.planning.vocabulary.lengths import counted

KINDS: Mapping[Resource, str] = {
    NODES: "node nodes no gpunode gpunodes gpun",
    PODS: "pod pods po",
    POLICIES: "gpusharingpolicy gpusharingpolicies gsp",
    DEPLOYMENTS: "deployment deployments deploy",
    DAEMON_SETS: "daemonset daemonsets ds",
    Resource("apps", "v1", "statefulsets", namespaced=True): "statefulset statefulsets sts",
    Resource("apps", "v1", "replicasets", namespaced=True): "replicaset replicasets rs",
    Resource("batch", "v1", "jobs", namespaced=True): "job jobs",
}
"""The kinds that a user may name, and how kubectl spells each. A group may follow, as in `deployment.apps`."""
MORE = "ClusterRole gpusharing-planner, and view in all namespaces, would add what each source of proof says"


def find_subject(word: str, namespace: str) -> tuple[Resource, str, str]:
    """Parse the argument: `gpu-07` names a node, `KIND/NAME` an object of one of KINDS, and `NAMESPACE/NAME` a pod.
    `KIND/NAMESPACE/NAME` is accepted for kinds in namespaces. Return the kind, where a GPUNode counts as its node, the
    name, and the namespace, which is `namespace` by default and ignored for other kinds. Raises Trouble for any other
    word with a slash."""
    kind, _, rest = word.partition("/")
    if not rest:
        return NODES, word, namespace
    spelling = kind.partition(".")[0].lower()
    resource = next((one for one, spellings in KINDS.items() if spelling in spellings.split()), None)
    first, _, name = (word if resource is None else rest).rpartition("/")
    if "/" in first or not name or (first and resource is not None and not resource.namespaced):
        raise Trouble(f"{word} names nothing that can be explained: write NODE, KIND/NAME or NAMESPACE/NAME")
    return resource or PODS, name, first or namespace


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """Explain what the user named, and return DONE (see VerbModule). For a policy, show its pool and explain the most
    urgent of its nodes that are not done. Raises Trouble if the object does not exist or cannot be read."""
    kind, name, namespace = find_subject(typed.subject, getattr(typed, "namespace", session.namespace))
    now = session.now()
    if kind is POLICIES:
        policies, nodes = await session.lists(POLICIES, GPUNODES)
        pool = find_pool(read_pools(policies, map(read_node, nodes))[0], name, session.where)
        worst = await _node(session, pool.changing[0].name) if pool.changing else None
        terminal.answer(
            lambda: pool_data(pool, now) | {"worst": worst and worst.as_data()},
            lambda paper: [
                *describe_pool(pool, now, paper),
                *((BLANK, *describe_node(worst, now, paper)) if worst else ()),
            ],
        )
    elif kind is NODES:
        answer = await _node(session, name)
        terminal.answer(answer.as_data, lambda paper: describe_node(answer, now, paper))
    else:
        raw = await session.get(kind, name, namespace)
        pod, workload = (raw, "") if kind is PODS else await _pod_of(session, kind, raw)
        explained = replace(await _pod(session, pod), workload=workload)
        terminal.answer(lambda: asdict(explained), lambda paper: describe_pod(explained, paper))
    return DONE


async def _pod_of(session: Session, kind: Resource, workload: JSON) -> tuple[JSON, str]:
    """Return the pod to explain of those that the selector of a workload matches: preferably one without a node, or
    else one that is neither running nor done. Also return a sentence about how many have no node. Raises Trouble if
    there are no pods, with the messages of the workload's conditions, or if pods cannot be read."""
    selector, named = (
        section(workload, "spec", "selector"),
        f"{kind.plural}/{text(workload, 'metadata', 'name')}",
    )
    labels, rows = texts(selector.get("matchLabels")), rows_of(entries(selector, "matchExpressions"))
    pods = await session.all(PODS, text(workload, "metadata", "namespace"))
    pods = [pod for pod in pods if matches(texts(part(pod, "metadata", "labels")), labels, rows)]
    if not pods:
        why = [text(row, "message").rstrip(".") for row in entries(workload, "status", "conditions")]
        raise Trouble(". ".join(filter(None, (f"{named} has no pods", *why))))
    waiting = [pod for pod in pods if not text(pod, "spec", "nodeName")]
    stuck = [pod for pod in pods if text(pod, "status", "phase") not in ("Running", "Succeeded")]
    have = "has" if len(waiting) == 1 else "have"
    return [*waiting, *stuck, *pods][
        0
    ], f"{named}: {len(waiting)} of {counted(len(pods), 'pod')} {have} no node"


async def _pod(session: Session, pod: JSON) -> PodAnswer:
    """Return the answer about a pod: from a plan or, if the user lacks the rights for one, from policies and GPUNodes
    or, if these cannot be read either, from the pod alone. Raises Trouble for all errors but missing permissions."""
    try:
        async with gathered(session) as cluster:
            search = RoomSearch(pod, await cluster.decide(()))
            async for nodes in session.each_page(NODES):
                search.look(nodes)
        return pod_answer(search, await session.namespace_labels(text(pod, "metadata", "namespace")))
    except Denied:
        with suppress(Denied):
            return published_answer(pod, *await session.lists(POLICIES, GPUNODES))
        return published_answer(pod, [], None)


async def _node(session: Session, name: str) -> NodeAnswer:
    """Return what the operator published about a node, and what each source of proof says now or, if the sources
    cannot be read, why not. Raises Trouble if the node has no GPUNode and either does not exist or cannot be looked
    up, because Nodes cannot be read, or if the GPUNode cannot be read."""
    published, live, missing = None, None, ""
    try:
        published = read_node(await session.client.get(GPUNODES, name))
    except NotFound:
        pass
    except KubeError as error:
        raise trouble(error, session.where) from error
    try:
        async with gathered(session) as cluster:
            live = await cluster.decide((), [name])
    except Denied as error:
        missing = MORE if published is not None else str(error)
    except Trouble as error:
        missing = str(error)
    if published is None and live is None:
        # Nodes could not be read, so it is unknown whether this one exists; it has no GPUNode.
        names = []
        with suppress(Trouble):  # before the installation there are no GPUNodes to list
            names = [raw["metadata"]["name"] for raw in await session.all(GPUNODES)]
        raise Trouble(no_such(GPUNODES, name, names, session.where) if names else missing)
    if published is None and live is not None and name not in live.snapshot.nodes:
        raise Trouble(no_such(NODES, name, sorted(live.snapshot.nodes), session.where))
    return node_answer(name, published, live, missing)
