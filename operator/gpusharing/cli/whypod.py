"""Why a pod waits for a GPU: which pools serve what it asks for, now or after their changes, and what they wait for.
Pure."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gpusharing.api.names import LABEL_MODE, LABEL_POLICY, RESOURCE_GPU, Phase, is_gpu_resource
from gpusharing.cli.cluster import Decided
from gpusharing.cli.drawing import BLANK, Column, Ink, Line, Paper, TextSpan, fold, line, prose, shows, table
from gpusharing.cli.fractions import NOTE, find_fraction
from gpusharing.cli.placement import find_obstacle, find_overlooked
from gpusharing.cli.simulated import describe_simulated
from gpusharing.kube.client import JSON
from gpusharing.kube.convert_pods import pod_view
from gpusharing.kube.raw import entries, text
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView, routing_label
from gpusharing.planning.stack.otherplugins import name_resources
from gpusharing.planning.told.status import policy_status
from gpusharing.planning.wanted.verify import served
from gpusharing.planning.way.verdict import Verdict
from gpusharing.planning.words.lengths import some

COLUMNS = (
    Column("POOL"),
    Column("RESOURCE", drop=1),
    Column("NOW"),
    Column("FREE"),
    Column("AFTER"),
    Column("BUT"),
)
Clauses = Mapping[str, str]
"""By node, why the pod may not go there; empty: it may."""


@dataclass(frozen=True, slots=True)
class Service:
    """One pool and one resource that the pod asks for."""

    pool: str
    """Name of the policy."""
    resource: str
    """The resource name."""
    now: int
    """How many the pool offers, on nodes that the pod may go to."""
    free: int | None
    """How many of them are free; None: unknown."""
    after: int
    """How many after the changes."""
    but: str
    """Why that does not help the pod at once; empty: it should."""
    kept: tuple[str, ...] = ()
    """From which nodes of the pool the pod is kept, and by which rule."""


@dataclass(frozen=True, slots=True)
class PodAnswer:
    """All that is known."""

    pod: str
    """`namespace/name`."""
    phase: str
    """The pod's, as the API has it."""
    node: str
    """The node that it is on; empty: none."""
    asks: Mapping[str, int]
    """GPU resources."""
    scheduler: str
    """What the scheduler said last."""
    services: tuple[Service, ...]
    """Which pools could serve it."""
    others: tuple[str, ...]
    """GPU resource names that nodes which the pod may go to offer after the changes, where none offers what it asks
    for."""
    conclusion: str
    """The answer in a sentence."""
    notes: tuple[str, ...]
    """What could not be read, and what that makes uncertain."""
    simulated: tuple[str, ...] = ()
    """Nodes of the cluster whose GPUs are SIMULATED."""
    fraction: str = ""
    """The fraction that it asks KAI-Scheduler for; empty: none."""

    def as_data(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


class Obstacles:
    """What keeps a pod from nodes. Nothing else of a Node is kept: there may be thousands."""

    def __init__(self, raw: JSON, decided: Decided) -> None:
        """For a pod; no Node has been examined yet."""
        self._raw, self._decided = raw, decided
        self._specs = {policy.name: policy.spec for policy in decided.snapshot.policies}
        self.now: dict[str, str] = {}
        """By node, why the pod may not go there; empty: it may."""
        self.later: dict[str, str] = {}
        """The same for when the changes are done."""

    def look(self, nodes: Iterable[JSON]) -> None:
        """Examine Nodes, with their taints."""
        for node in nodes:
            name = text(node, "metadata", "name")
            self.now[name] = find_obstacle(self._raw, node)
            self.later[name] = find_obstacle(self._raw, node, self._becomes(name))

    def _becomes(self, node: str) -> Mapping[str, str] | None:
        """Labels that the change of a node sets at its end; None: no change is to come."""
        verdict = self._decided.plan.verdicts.get(node)
        if verdict is None or verdict.phase is Phase.SYNCED:
            return None
        spec = self._specs.get(verdict.policy)
        if spec is None:
            return None
        routing = routing_label(spec.mode, time_slicing=spec.time_slicing is not None)
        return {LABEL_POLICY: verdict.policy, LABEL_MODE: routing}


def pod_answer(raw: JSON, obstacles: Obstacles, decided: Decided) -> PodAnswer:
    """The answer for one pod, for which all Nodes were examined."""
    pod = pod_view(raw, {})
    asks = {name: count for name, count in pod.resources.items() if is_gpu_resource(name)}
    fraction, devices = find_fraction(raw)
    asks = asks or ({RESOURCE_GPU: devices} if devices else {})
    services = tuple(_services(asks, obstacles, decided))
    node = text(raw, "spec", "nodeName")
    others = () if any(one.after for one in services) else _in_the_end(obstacles.later, decided)
    return PodAnswer(
        pod=pod.ref,
        phase=pod.phase,
        node=node,
        asks=asks,
        scheduler=_scheduler(raw),
        services=services,
        others=others,
        conclusion=_conclusion(PodCase(node, asks, services, decided.plan.verdicts.get(node))),
        notes=(
            *decided.notes,
            *((NOTE,) if fraction else ()),
            *name_resources(asks, {name: one.other_plugin for name, one in decided.snapshot.nodes.items()}),
            *(_overlooked(raw) if asks and not node else ()),
        ),
        simulated=decided.simulated(),
        fraction=fraction,
    )


def _overlooked(raw: JSON) -> Iterator[str]:
    if found := find_overlooked(raw):
        yield f"{', '.join(found)} of the pod may keep it from nodes that are counted here: this was not checked"


def _in_the_end(obstacles: Clauses, decided: Decided) -> tuple[str, ...]:
    """What the nodes that the pod may go to offer when all changes are done."""
    targets = decided.plan.targets
    near = {node: view for node, view in decided.snapshot.nodes.items() if not obstacles.get(node)}
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


def _services(asks: Mapping[str, int], obstacles: Obstacles, decided: Decided) -> Iterator[Service]:
    """For each pool that has, or will have, some of what is asked for."""
    snapshot, plan = decided.snapshot, decided.plan
    for policy in snapshot.policies:
        nodes = [snapshot.nodes[name] for name in plan.pools[policy.name].names]
        near = [node for node in nodes if not obstacles.now.get(node.name)]
        ready = [node for node in nodes if not obstacles.later.get(node.name)]
        for resource in asks:
            then = {node.name: plan.targets.get(node.name, served(node)).get(resource, 0) for node in nodes}
            if not any(then[node.name] or served(node).get(resource) for node in nodes):
                continue
            kept = tuple(_kept([node for node in nodes if then[node.name]], obstacles.later))
            now = sum(served(node).get(resource, 0) for node in near)
            after = sum(then[node.name] for node in ready)
            free = _free(near, resource, snapshot)
            said = policy_status(policy, plan, snapshot, {}, decided.now)["summary"]
            status = f"{said['status']}: {said['message']}"
            but = _but(resource, near, free=free, after=after, wanted=asks[resource], status=status)
            but = but if near or not kept else _all_of(kept)
            yield Service(policy.name, resource, now, free, after, but, kept)


def _kept(nodes: Sequence[NodeView], obstacles: Clauses) -> Iterator[str]:
    """Each rule with the nodes that will offer what is asked for and from which the rule keeps the pod."""
    by_rule: dict[str, list[str]] = {}
    for node in nodes:
        if why := obstacles.get(node.name):
            by_rule.setdefault(why, []).append(node.name)
    for why, names in sorted(by_rule.items()):
        yield f"{some(sorted(names))}: {why}"


def _all_of(kept: Sequence[str]) -> str:
    """For a pool that the pod may not go to at all; a single rule applies to all its nodes, so they are not named."""
    return "; ".join(kept) if len(kept) > 1 else kept[0].partition(": ")[2]


def _is_closed(node: NodeView) -> bool:
    """It takes no pod for now, whatever the pod says."""
    return node.unschedulable or not node.ready or node.gate is not None


def _free(nodes: Sequence[NodeView], resource: str, snapshot: ClusterSnapshot) -> int | None:
    """What is free on nodes that take pods, as the agents report it; None: one did not report."""
    free = 0
    for node in nodes:
        if _is_closed(node) or resource not in served(node):
            continue
        gpunode = snapshot.gpunodes.get(node.name)
        held = gpunode.observed.allocated if gpunode and gpunode.observed else None
        if held is None:
            return None
        free += max(0, served(node)[resource] - held.get(resource, 0))
    return free


def _but(
    resource: str, near: Sequence[NodeView], *, free: int | None, after: int, wanted: int, status: str
) -> str:
    """`near`: the nodes of the pool that the pod may go to."""
    offering = [node for node in near if resource in served(node)]
    if not offering:
        return f"not yet; {status}" if after else "not offered on the nodes that it may go to"
    if all(map(_is_closed, offering)):
        gated = any(node.gate is not None for node in offering)
        return f"every node that offers it is cordoned{', not proven yet' if gated else ''} or not Ready"
    if free is not None and free < wanted:
        return (
            "all are held by other pods"
            if not after or after <= sum(served(node)[resource] for node in offering)
            else f"all are held by other pods, more to come; {status}"
        )
    return ""


@dataclass(frozen=True, slots=True)
class PodCase:
    """What a conclusion about a pod is drawn from."""

    node: str
    """The node that it is on; empty: none."""
    asks: Mapping[str, int]
    """GPU resources."""
    services: Sequence[Service]
    """Which pools could serve it."""
    verdict: Verdict | None
    """Of that node; None: it has none, or the operator knows nothing of it."""

    @property
    def resources(self) -> str:
        """Names of what it asks for, for people."""
        return ", ".join(sorted(self.asks))


def _conclusion(case: PodCase) -> str:
    """The first of CONCLUSIONS; else no pool has to do with it."""
    return next((found for conclude in CONCLUSIONS if (found := conclude(case))), "") or (
        f"no pool offers {case.resources}, nor will any under the existing policies: ask for a name that is offered,"
        " or change a policy (kubectl gpusharing plan -f FILE shows what that would do)"
    )


def _asks_nothing(case: PodCase) -> str:
    """Whatever it waits for is none of ours."""
    return "" if case.asks else "it asks for no GPU resource, so no GPU pool is in its way"


def _on_changing(case: PodCase) -> str:
    """It may have to leave, whatever pools offer."""
    if case.verdict is None or case.verdict.phase is Phase.SYNCED:
        return ""
    return f"it has a node, {case.node}, which is {case.verdict.phase}: kubectl gpusharing why {case.node}"


def _on_quiet(case: PodCase) -> str:
    """It has what it asked for, whatever pools offer."""
    return f"it has a node, {case.node}, which the operator is not changing now" if case.node else ""


def _offered(case: PodCase) -> str:
    """Nothing is in its way at one pool at least."""
    if all(one.but for one in case.services):
        return ""
    return "a pool offers what it asks for; the scheduler says above why it is not placed"


def _to_come(case: PodCase) -> str:
    """Waiting helps, or what is shown beside the pool."""
    if not any(one.after for one in case.services):
        return ""
    return (
        "a pool serves what it asks for, now or once its changes are done; what is in the way is shown"
        " beside the pool"
    )


def _ruled_out(case: PodCase) -> str:
    """Nodes will offer it, and the pod's own rules keep it from them: no wait ends that."""
    if not any(one.kept for one in case.services):
        return ""
    return (
        f"no node that it may go to will offer {case.resources}: change the rule shown beside the pool, or"
        " ask for what is offered where it may go"
    )


def _withdrawn(case: PodCase) -> str:
    """It is offered today and not after the changes."""
    if not any(one.now for one in case.services):
        return ""
    return f"no pool will offer {case.resources} once the changes are done: ask for a resource that is offered then"


CONCLUSIONS: tuple[Callable[[PodCase], str], ...] = (
    _asks_nothing,
    _on_changing,
    _on_quiet,
    _offered,
    _to_come,
    _ruled_out,
    _withdrawn,
)
"""What is said of a pod; the first that has a text."""


# --- in words ------------------------------------------------------------------------------------------------


def describe_pod(answer: PodAnswer, paper: Paper) -> list[Line]:
    """One screen."""
    asked = ", ".join(f"{count} {name}" for name, count in sorted(answer.asks.items()))
    asks = answer.fraction or asked or "no GPU"
    ink = Ink.GOOD if answer.node else Ink.WAITING
    title = line(TextSpan(answer.pod, Ink.TITLE), "  ", TextSpan(answer.phase, ink), f"  asks for {asks}")
    lines = [*describe_simulated(answer.simulated, paper), *fold(title, paper)]
    if answer.scheduler:
        lines += prose(f"Scheduler: {answer.scheduler}", paper, hang="  ")
    if answer.services:
        lines += [BLANK, *_service_lines(answer.services, paper)]
    if answer.others:
        lines += prose(f"Offered once the changes are done: {', '.join(answer.others)}", paper, hang="  ")
    lines += [BLANK, *prose(answer.conclusion[:1].upper() + answer.conclusion[1:] + ".", paper)]
    for note in answer.notes:
        lines += prose(f"Note: {note}", paper, hang="  ", ink=Ink.FAINT)
    return lines


def _service_lines(services: Sequence[Service], paper: Paper) -> list[Line]:
    rows = [
        [
            TextSpan(one.pool),
            TextSpan(one.resource),
            TextSpan(str(one.now)),
            TextSpan("?" if one.free is None else str(one.free)),
            TextSpan(str(one.after)),
            TextSpan(one.but, Ink.WAITING),
        ]
        for one in services
    ]
    drawn = table(COLUMNS, rows, paper)
    lines = [*drawn]
    for one, row in zip(services, drawn[1:], strict=True):
        if not shows(row, one.but):
            lines += prose(f"{one.pool}: {one.but}", paper, hang="  ", ink=Ink.WAITING)
    partly = {one.pool: one.kept for one in services if one.kept and one.but != _all_of(one.kept)}
    for pool, kept in partly.items():
        lines += prose(f"{pool}, not on {'; '.join(kept)}", paper, hang="  ", ink=Ink.WAITING)
    return lines
