"""Why a pod waits for a GPU: which nodes have everything that it requests, now or after their changes, and what those
changes wait for. Pure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from gpusharing.api.names import RESOURCE_GPU, Phase
from gpusharing.cli.diagnosis.rooms import NOTE, NodeRoom, RoomSearch, find_fraction, find_overlooked
from gpusharing.cli.live.cluster import Decided
from gpusharing.cli.shell.drawing import (
    BLANK,
    Column,
    Ink,
    Line,
    Paper,
    Span,
    describe_simulated,
    fold,
    line,
    prose,
    shows,
    table,
)
from gpusharing.kube.client import JSON
from gpusharing.kube.convert_pods import pod_view, resource_claim_names
from gpusharing.kube.podrequests import pod_requests
from gpusharing.kube.raw import entries, text
from gpusharing.planning.gpus.capacity import fits
from gpusharing.planning.report.status import policy_status
from gpusharing.planning.stack.otherplugins import name_resources
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.lengths import some

COLUMNS = (
    Column("POOL"),
    Column("NODE", drop=2),
    Column("RESOURCE", drop=1),
    Column("NOW"),
    Column("FREE"),
    Column("AFTER"),
    Column("BUT"),
)


@dataclass(frozen=True, slots=True)
class Service:
    """One resource that the pod requests, on the node of a pool that comes nearest to all that it requests."""

    pool: str
    """Name of the policy; empty: the nodes that no policy selects."""
    node: str
    """Name of the node; empty: the pod may go to no node of the pool."""
    resource: str
    """The resource name."""
    now: int
    """How many are allocatable on the node."""
    free: int | None
    """How many of them are free; None: unknown."""
    after: int
    """How many will be allocatable after the changes."""
    but: str
    """Why that does not help the pod at once; empty: it should."""
    kept: tuple[str, ...] = ()
    """From which nodes of the pool the pod is kept, and by which rule."""


@dataclass(frozen=True, slots=True)
class PodAnswer:
    """Everything that is known about one pod and why it waits."""

    pod: str
    """`namespace/name`."""
    phase: str
    """The pod's phase, as the API has it."""
    node: str
    """The node that the pod is bound to; empty if there is none."""
    asks: Mapping[str, int]
    """The GPU resources that it requests of one node."""
    status: str
    """Reason and message of the pod's status, such as a kubelet's refusal; empty: it has none."""
    scheduler: str
    """The scheduler's last message about the pod; empty if it has none or has placed the pod."""
    services: tuple[Service, ...]
    """What the best node of each pool has for it."""
    others: tuple[str, ...]
    """Other GPU resource names that nodes which the pod may go to offer after the changes, where no node has what it
    requests then."""
    conclusion: str
    """The answer in a sentence."""
    notes: tuple[str, ...]
    """What could not be read, and what that makes uncertain."""
    simulated: tuple[str, ...] = ()
    """Nodes of the cluster whose GPUs are SIMULATED."""
    fraction: str = ""
    """The fraction that the pod asks KAI-Scheduler for; empty if it asks for none."""


def pod_answer(search: RoomSearch) -> PodAnswer:
    """Draw the conclusion about the pod of a search that has examined all Nodes."""
    raw, decided = search.pod, search.decided
    pod, asks = pod_view(raw, {}), dict(sorted(pod_requests(raw).items()))
    fraction, devices = find_fraction(raw)
    asks = asks or ({RESOURCE_GPU: devices} if devices else {})
    rooms = [search.rooms[name] for name in sorted(search.rooms)]
    services = tuple(_services(asks, rooms, decided))
    node = text(raw, "spec", "nodeName")
    case = PodCase(raw, node, asks, services, rooms, decided.plan.verdicts.get(node))
    lasting = any(fits(asks, room.after) for room in rooms)
    offered = {name for room in rooms for name in room.after}
    unchecked = ", ".join(find_overlooked(raw)) if asks and not node else ""
    note = f"{unchecked} of the pod may keep it from nodes that are counted here: this was not checked"
    placed = [row for row in entries(raw, "status", "conditions") if row.get("type") == "PodScheduled"]
    return PodAnswer(
        pod=pod.ref,
        phase=pod.phase,
        node=node,
        asks=asks,
        status=": ".join(filter(None, (text(raw, "status", key) for key in ("reason", "message")))),
        scheduler=next((text(row, "message") for row in placed if row.get("status") == "False"), ""),
        services=services,
        others=() if lasting else tuple(sorted(offered - asks.keys())),
        conclusion=next(found for conclude in CONCLUSIONS if (found := conclude(case))),
        notes=(
            *decided.notes,
            *((NOTE,) if fraction else ()),
            *name_resources(asks, {name: one.other_plugin for name, one in decided.snapshot.nodes.items()}),
            *((note,) if unchecked else ()),
        ),
        simulated=decided.simulated(),
        fraction=fraction,
    )


def _services(asks: Mapping[str, int], rooms: Sequence[NodeRoom], decided: Decided) -> Iterator[Service]:
    """Yield what the best node of each pool has of each requested resource. Pools that neither have nor will have the
    resource are left out; the nodes that no policy selects count as one pool."""
    for policy in (*decided.snapshot.policies, None):
        pool, status = "", ""
        if policy is not None:
            said = policy_status(policy, decided.plan, decided.snapshot, {}, decided.now)["summary"]
            pool, status = policy.name, f"{said['status']}: {said['message']}"
        yield from _services_of(pool, status, asks, [room for room in rooms if room.pool == pool])


def _services_of(
    pool: str, status: str, asks: Mapping[str, int], members: Sequence[NodeRoom]
) -> Iterator[Service]:
    """Yield, for each requested resource that a member has or will have, what the best node of the pool offers. The
    best node is chosen once for the whole request. If no member has any resource now or later, the node's name is
    empty and the counts are 0. `status`: the policy's status as shown to people."""
    reached = (room for room in members if room.now or room.after)
    none = NodeRoom("", pool, {}, {}, {}, "", "", "", {}, frozenset())
    best = max(reached, key=lambda room: room.rank(asks), default=none)
    for resource, wanted in asks.items():
        if not any(resource in room.names for room in members):
            continue
        kept = tuple(_kept([room for room in members if room.planned.get(resource)]))
        free = None if best.free is None else best.free.get(resource, 0)
        now, after = best.now.get(resource, 0), best.after.get(resource, 0)
        but = _but(best, now=now, free=free, after=after, wanted=wanted, status=status)
        but = _all_of(kept) if kept and best is none else but
        yield Service(pool, best.node, resource, now, free, after, but, kept)


def _kept(rooms: Sequence[NodeRoom]) -> Iterator[str]:
    """Yield each rule that excludes the pod from nodes, with the names of those nodes before it."""
    by_rule: dict[str, list[str]] = {}
    for room in rooms:
        if room.later:
            by_rule.setdefault(room.later, []).append(room.node)
    for why, names in sorted(by_rule.items()):
        yield f"{some(names)}: {why}"


def _all_of(kept: Sequence[str]) -> str:
    """Return the rules that exclude the pod from a whole pool. A single rule applies to all nodes of the pool, so they
    are not named."""
    return "; ".join(kept) if len(kept) > 1 else kept[0].partition(": ")[2]


def _but(room: NodeRoom, *, now: int, free: int | None, after: int, wanted: int, status: str) -> str:
    """Return why the devices on the best node of a pool do not help the pod at once; empty if they should."""
    most = max(now, after)
    if now < wanted <= after:
        return f"not yet; {status}"
    if now < wanted:
        return (
            f"only {most} of {wanted} on one node" if most else "not offered on the nodes that it may go to"
        )
    if room.closed:
        return f"the node is {room.closed}"
    if free is not None and free < wanted:
        held = f"other pods hold {now - free} of {now}" if free else "all are held by other pods"
        return held if after <= now else f"{held}, more to come; {status}"
    return ""


@dataclass(frozen=True, slots=True)
class PodCase:
    """The facts from which a conclusion about a pod is drawn."""

    raw: JSON
    """The pod."""
    node: str
    """The node that it is on; empty: none."""
    asks: Mapping[str, int]
    """GPU resources that it requests of one node."""
    services: Sequence[Service]
    """What the best node of each pool has for it."""
    rooms: Sequence[NodeRoom]
    """What each node has for it."""
    verdict: Verdict | None
    """The verdict on the pod's node; None if the pod has no node, or the operator does not manage it."""


def _ended(case: PodCase) -> str:
    """Explain a pod that has finished: it never starts again. If the kubelet refused it for its number of shares, say
    so. Empty for any other pod."""
    phase = text(case.raw, "status", "phase")
    if phase not in ("Succeeded", "Failed"):
        return ""
    refusal = next((room.refusal for room in case.rooms if room.node == case.node), "")
    if refusal and text(case.raw, "status", "reason") == "UnexpectedAdmissionError":
        return f"the kubelet of {case.node} refused it: {refusal}"
    return f"it has {phase.lower()}, so it holds no GPU and does not start again"


def _asks_nothing(case: PodCase) -> str:
    """Explain a pod that requests no GPU resource: it is waiting for something that this operator does not manage."""
    if case.asks:
        return ""
    if resource_claim_names(case.raw):
        return "it asks for devices only by ResourceClaims, which a DRA driver serves and no GPU pool does"
    return "it asks for no GPU resource, so no GPU pool is in its way"


def _on_changing(case: PodCase) -> str:
    """Explain a pod on a node that is being changed: it may have to leave that node."""
    if case.verdict is None or case.verdict.phase is Phase.SYNCED:
        return ""
    return f"it has a node, {case.node}, which is {case.verdict.phase}: kubectl gpusharing why {case.node}"


def _on_quiet(case: PodCase) -> str:
    """Explain a pod that has a node already: no pool is holding it up."""
    return f"it has a node, {case.node}, which the operator is not changing now" if case.node else ""


def _unadvertised(case: PodCase) -> str:
    """Explain a pod that requests a resource which no node advertises or will advertise, so that waiting does not help.
    Empty if there is no such resource."""
    absent = sorted(case.asks.keys() - {name for room in case.rooms for name in room.names})
    if not absent:
        return ""
    return (
        f"of what it asks for, {', '.join(absent)} {'is' if len(absent) == 1 else 'are'} advertised by no node, nor"
        " will be under the existing policies: ask for a name that is offered, or change a policy (kubectl gpusharing"
        " plan -f FILE shows what that would do)"
    )


def _offered(case: PodCase) -> str:
    """Explain a pod for which at least one node has everything free, so that only the scheduler knows why it waits.
    Empty if there is no such node."""
    nodes = [room.node for room in case.rooms if room.has_free(case.asks)]
    if not nodes:
        return ""
    return f"all that it asks for is available on {some(nodes)}; the scheduler says above why it is not placed there"


def _to_come(case: PodCase) -> str:
    """Explain a pod for which some node will have everything once the changes are done: it has to wait, or somebody has
    to remove the obstacle that is shown beside the pool. Empty if there is no such node."""
    nodes = [room.node for room in case.rooms if fits(case.asks, room.after)]
    if not nodes:
        return ""
    return (
        f"all that it asks for is on {some(nodes)}, now or once the changes are done; what is in the way is shown"
        " beside the pool"
    )


def _too_large(case: PodCase) -> str:
    """Explain a pod that requests more than any single node has, so that waiting does not help. Empty if one node has
    enough, or if one of the resources is on no node that the pod may go to."""
    nowhere = "no node that it may go to" if any(one.kept for one in case.services) else "no node"
    most = {
        name: max(max(room.now.get(name, 0), room.after.get(name, 0)) for room in case.rooms)
        for name in case.asks
    }
    for name, wanted in case.asks.items():
        if 0 < most[name] < wanted:
            return f"{nowhere} has more than {most[name]} of the {wanted} {name} that it requests"
    if not all(most.values()) or any(fits(case.asks, room.now) for room in case.rooms):
        return ""
    return (
        f"{nowhere} has all that it requests: {' and '.join(f'{n} {name}' for name, n in case.asks.items())}"
    )


def _never(case: PodCase) -> str:
    """Explain every pod that is left: its own rules or the device plugin exclude it from all nodes that will have what
    it requests, or no node will. Waiting does not help. Never empty."""
    names = ", ".join(case.asks)
    if refusals := sorted({room.later for room in case.rooms if room.refusal and room.later == room.refusal}):
        return f"kubelets would refuse it: {'; '.join(refusals)}"
    if any(one.kept for one in case.services):
        return (
            f"no node that it may go to will offer {names}: change the rule shown beside the pool, or"
            " ask for what is offered where it may go"
        )
    return f"no pool will offer {names} once the changes are done: ask for a resource that is offered then"


CONCLUSIONS: tuple[Callable[[PodCase], str], ...] = (
    _ended,
    _asks_nothing,
    _on_changing,
    _on_quiet,
    _unadvertised,
    _offered,
    _to_come,
    _too_large,
    _never,
)
"""The conclusions about a pod, in order. The first that returns a text is shown; the last one always does."""


# --- in words ------------------------------------------------------------------------------------------------


def describe_pod(answer: PodAnswer, paper: Paper) -> list[Line]:
    """Draw the answer: the pod and its status, what each pool has for it, the conclusion, and the notes."""
    asked = ", ".join(f"{count} {name}" for name, count in sorted(answer.asks.items()))
    asks = answer.fraction or asked or "no GPU"
    ink = Ink.GOOD if answer.node else Ink.WAITING
    title = line(Span(answer.pod, Ink.TITLE), "  ", Span(answer.phase, ink), f"  asks for {asks}")
    lines = [*describe_simulated(answer.simulated, paper), *fold(title, paper)]
    for whose, said in (("Status", answer.status), ("Scheduler", answer.scheduler)):
        lines += prose(f"{whose}: {said}", paper, hang="  ") if said else []
    if answer.services:
        lines += [BLANK, *_service_lines(answer.services, paper)]
    if answer.others:
        lines += prose(f"Offered once the changes are done: {', '.join(answer.others)}", paper, hang="  ")
    lines += [BLANK, *prose(answer.conclusion[:1].upper() + answer.conclusion[1:] + ".", paper)]
    for note in answer.notes:
        lines += prose(f"Note: {note}", paper, hang="  ", ink=Ink.FAINT)
    return lines


def _service_lines(services: Sequence[Service], paper: Paper) -> list[Line]:
    """Draw one table row for each service. Below the table come the obstacles that were cut off in their row, and the
    nodes of a pool from which the pod is kept while other nodes of it are open."""
    rows = [
        [
            Span(one.pool or "no policy"),
            Span(one.node or "-"),
            Span(one.resource),
            Span(str(one.now)),
            Span("?" if one.free is None else str(one.free)),
            Span(str(one.after)),
            Span(one.but, Ink.WAITING),
        ]
        for one in services
    ]
    drawn = table(COLUMNS, rows, paper)
    lines = [*drawn]
    for one, row in zip(services, drawn[1:], strict=True):
        if not shows(row, one.but):
            lines += prose(f"{one.pool or 'no policy'}: {one.but}", paper, hang="  ", ink=Ink.WAITING)
    partly = {one.pool: one.kept for one in services if one.kept and one.but != _all_of(one.kept)}
    for pool, kept in partly.items():
        lines += prose(f"{pool or 'no policy'}, not on {'; '.join(kept)}", paper, hang="  ", ink=Ink.WAITING)
    return lines
