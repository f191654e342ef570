"""Why a pod waits for a GPU: which pools serve what it asks for, now or in the end, and what they wait for. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gpusharing.api.names import Phase, is_gpu_resource
from gpusharing.cli.cluster import Decided
from gpusharing.cli.drawing import BLANK, Column, Ink, Line, Paper, TextSpan, fold, line, prose, shows, table
from gpusharing.kube.client import JSON
from gpusharing.kube.convert_pods import pod_view
from gpusharing.kube.raw import entries, part, text
from gpusharing.planning.proof.verify import served
from gpusharing.planning.snapshot.podviews import PodView
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView
from gpusharing.planning.told.status import policy_status

REQUIRED_AFFINITY = ("spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution")
"""What keeps a pod from nodes besides its nodeSelector (core/v1 NodeAffinity)."""
OVERLOOKED = (
    "affinity and taints are not looked at: spec.affinity.nodeAffinity of the pod may keep it from nodes that are"
    " counted here"
)
COLUMNS = (
    Column("POOL"),
    Column("RESOURCE", drop=1),
    Column("NOW"),
    Column("FREE"),
    Column("AFTER"),
    Column("BUT"),
)


@dataclass(frozen=True, slots=True)
class Service:
    """One pool and one resource that the pod asks for."""

    pool: str
    resource: str
    now: int
    """How many the pool offers, on nodes that the pod may go to."""
    free: int | None
    """How many of them nobody holds; None: not known."""
    after: int
    """How many in the end."""
    but: str
    """Why that does not help the pod at once; empty: it should."""


@dataclass(frozen=True, slots=True)
class PodAnswer:
    """All that is known."""

    pod: str
    phase: str
    node: str
    asks: Mapping[str, int]
    """GPU resources."""
    scheduler: str
    """What the scheduler said last."""
    services: tuple[Service, ...]
    others: tuple[str, ...]
    """GPU resource names that nodes which the pod may go to offer in the end, where none offers what it asks for."""
    conclusion: str
    notes: tuple[str, ...]

    def as_data(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def pod_answer(raw: JSON, decided: Decided) -> PodAnswer:
    """What is to be said about one pod."""
    pod = pod_view(raw, {})
    asks = {name: count for name, count in pod.resources.items() if is_gpu_resource(name)}
    services = tuple(_services(pod, asks, decided))
    node = text(raw, "spec", "nodeName")
    others = () if any(one.after for one in services) else _in_the_end(pod, decided)
    return PodAnswer(
        pod=pod.ref,
        phase=pod.phase,
        node=node,
        asks=asks,
        scheduler=_scheduler(raw),
        services=services,
        others=others,
        conclusion=_conclusion(pod, node, asks, services, decided),
        notes=(*decided.notes, *_overlooked(raw, node, asks)),
    )


def _overlooked(raw: JSON, node: str, asks: Mapping[str, int]) -> Iterator[str]:
    """What else decides about where the pod may go, and is not looked at."""
    if asks and not node and part(raw, *REQUIRED_AFFINITY):
        yield OVERLOOKED


def _in_the_end(pod: PodView, decided: Decided) -> tuple[str, ...]:
    """What the nodes that the pod may go to offer when all changes are done."""
    nodes, targets = decided.snapshot.nodes, decided.plan.targets
    near = {node: view for node, view in nodes.items() if _may_go(pod, view)}
    return tuple(sorted({name for node, view in near.items() for name in targets.get(node, served(view))}))


def _scheduler(raw: JSON) -> str:
    rows = entries(raw, "status", "conditions")
    return next(
        (
            text(row, "message")
            for row in rows
            if row.get("type") == "PodScheduled" and row.get("status") == "False"
        ),
        "",
    )


def _services(pod: PodView, asks: Mapping[str, int], decided: Decided) -> Iterator[Service]:
    """Of each pool that has, or will have, something of what is asked for."""
    snapshot, plan = decided.snapshot, decided.plan
    for policy in snapshot.policies:
        nodes = [snapshot.nodes[name] for name in plan.pools[policy.name].names]
        for resource in asks:
            near = [node for node in nodes if _may_go(pod, node)]
            now = sum(served(node).get(resource, 0) for node in near)
            after = sum(plan.targets.get(node.name, served(node)).get(resource, 0) for node in near)
            everywhere = sum(served(node).get(resource, 0) for node in nodes)
            if not (now or after or everywhere):
                continue
            free = _free(near, resource, snapshot)
            said = policy_status(policy, plan, snapshot, {}, decided.now)["summary"]
            but = _but(resource, near, free, after, asks[resource], f"{said['status']}: {said['message']}")
            yield Service(policy.name, resource, now, free, after, but)


def _may_go(pod: PodView, node: NodeView) -> bool:
    return all(node.labels.get(key) == value for key, value in pod.node_selector.items())


def _free(nodes: Sequence[NodeView], resource: str, snapshot: ClusterSnapshot) -> int | None:
    """What nobody holds on nodes that take pods, by what the agents told; None: one did not."""
    free = 0
    for node in nodes:
        if node.unschedulable or not node.ready or resource not in served(node):
            continue
        gpunode = snapshot.gpunodes.get(node.name)
        held = gpunode.observed.allocated if gpunode and gpunode.observed else None
        if held is None:
            return None
        free += max(0, served(node)[resource] - held.get(resource, 0))
    return free


def _but(
    resource: str, near: Sequence[NodeView], free: int | None, after: int, wanted: int, status: str
) -> str:
    if not near:
        return "spec.nodeSelector of the pod matches no node of the pool"
    offering = [node for node in near if resource in served(node)]
    if not offering:
        return f"not yet; {status}" if after else "not offered"
    if all(node.unschedulable or not node.ready for node in offering):
        return "every node that offers it is cordoned or not Ready"
    if free is not None and free < wanted:
        return (
            "all are held by other pods"
            if not after or after <= sum(served(node)[resource] for node in offering)
            else f"all are held by other pods, more to come; {status}"
        )
    return ""


def _conclusion(
    pod: PodView, node: str, asks: Mapping[str, int], services: Sequence[Service], decided: Decided
) -> str:
    if not asks:
        return "it asks for no GPU resource, so no pool of ours is in its way"
    if node:
        verdict = decided.plan.verdicts.get(node)
        if verdict is None or verdict.phase is Phase.SYNCED:
            return f"it has a node, {node}, which nothing of ours changes now"
        return f"it has a node, {node}, which is {verdict.phase}: kubectl gpusharing why {node}"
    if any(not one.but for one in services):
        return "a pool offers what it asks for; why it is not placed, the scheduler says above"
    if any(one.after for one in services):
        return "a pool serves what it asks for, now or once its changes are done; what is in the way stands beside it"
    names = ", ".join(sorted(asks))
    if any(one.now for one in services):
        return (
            f"no pool will offer {names} once the changes are done: ask for a resource that is offered then"
        )
    return (
        f"no pool offers {names}, nor will by the policies that there are: ask for a name that is offered, or change a"
        " policy (kubectl gpusharing plan -f FILE says what that would do)"
    )


# --- in words ------------------------------------------------------------------------------------------------


def describe_pod(answer: PodAnswer, paper: Paper) -> list[Line]:
    """One screen."""
    asks = ", ".join(f"{count} {name}" for name, count in sorted(answer.asks.items())) or "no GPU"
    ink = Ink.GOOD if answer.node else Ink.WAITING
    title = line(TextSpan(answer.pod, Ink.TITLE), "  ", TextSpan(answer.phase, ink), f"  asks for {asks}")
    lines = fold(title, paper)
    if answer.scheduler:
        lines += prose(f"Scheduler: {answer.scheduler}", paper, hang="  ")
    if answer.services:
        rows = [
            [
                TextSpan(one.pool),
                TextSpan(one.resource),
                TextSpan(str(one.now)),
                TextSpan("?" if one.free is None else str(one.free)),
                TextSpan(str(one.after)),
                TextSpan(one.but, Ink.WAITING),
            ]
            for one in answer.services
        ]
        drawn = table(COLUMNS, rows, paper)
        lines += [BLANK, *drawn]
        for one, row in zip(answer.services, drawn[1:], strict=True):
            if not shows(row, one.but):
                lines += prose(f"{one.pool}: {one.but}", paper, hang="  ", ink=Ink.WAITING)
    if answer.others:
        lines += prose(f"Offered once the changes are done: {', '.join(answer.others)}", paper, hang="  ")
    lines += [BLANK, *prose(answer.conclusion[:1].upper() + answer.conclusion[1:] + ".", paper)]
    for note in answer.notes:
        lines += prose(f"Note: {note}", paper, hang="  ", ink=Ink.FAINT)
    return lines
