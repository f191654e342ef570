"""Explain whether and why a pod waits for a GPU: which nodes have everything that it requests, now or after their
changes, and what those changes wait for. Pure."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter, ge

from gpusharing.api.names import RESOURCE_GPU, Phase
from gpusharing.kube.client import JSON
from gpusharing.kube.convert import policy_view
from gpusharing.kube.convert_pods import pod_view, resource_claim_names
from gpusharing.kube.podrequests import pod_requests, requests_by_class
from gpusharing.kube.raw import entries, text
from gpusharing.planning.gpus.capacity import fits
from gpusharing.planning.report.status import policy_status
from gpusharing.planning.snapshot.stackviews import StackView
from gpusharing.planning.stack.otherplugins import name_resources
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.wanted.target import PolicyTargets, find_request
from kubectl_gpusharing.diagnosis.rooms import (
    NOTE,
    NodeRoom,
    explain_guard,
    find_fraction,
    find_overlooked,
    read_room,
)
from kubectl_gpusharing.live.cluster import LivePlan
from kubectl_gpusharing.pools.fleet import read_node, read_pools, simulated_nodes
from kubectl_gpusharing.shell.drawing import (
    BLANK,
    Ink,
    Line,
    Paper,
    Span,
    columns,
    describe_simulated,
    fold,
    line,
    prose,
    prose_of_each,
    shows,
    table,
)
from kubectl_gpusharing.shell.troubles import nearest

BARE = StackView(
    None, gpu_cluster=False, plugin_configs={}, mig_file="", written={}, serves_our_mig_file=True
)
"""NVIDIA's software as it is assumed to be without a plan: mig-manager reads the operator's file."""
_PROFILE = re.compile(r"mig-(\d+)g\.(\d+)gb")
"""The compute slices and the memory in the name of a MIG resource."""
MORE = (
    "ClusterRole gpusharing-viewer would add what GPUNodes say, and gpusharing-planner a plan with its proofs"
)
"""What more rights would add to an answer without a plan."""
COLUMNS = columns(POOL=0, NODE=2, RESOURCE=1, NOW=0, FREE=0, AFTER=0, OBSTACLE=0)


@dataclass(frozen=True, slots=True)
class Service:
    """One resource that the pod requests, as provided by the best node of a pool: the node that comes nearest to the
    whole request."""

    pool: str
    """Name of the policy; empty for the nodes that no policy selects."""
    node: str
    """Name of the node; empty if the pod may use no node of the pool."""
    resource: str
    """The resource name."""
    now: int
    """The number of these devices that are allocatable on the node."""
    free: int | None
    """How many of these allocatable devices are free, or None if that is unknown."""
    after: int
    """The number of these devices that will be allocatable after the changes."""
    but: str
    """Why the node does not help the pod at once; empty if it should."""
    kept: tuple[str, ...] = ()
    """For each rule that excludes the pod from nodes of the pool, the nodes and the rule, such as `gpu-1:
    spec.nodeSelector …`."""


@dataclass(frozen=True, slots=True)
class PodAnswer:
    """Everything that `why` shows about one pod."""

    pod: str
    """`namespace/name`."""
    phase: str
    """The pod's `status.phase`."""
    node: str
    """The node that the pod is bound to; empty if there is none."""
    asks: Mapping[str, int]
    """The GPU resources that the pod requests from one node."""
    status: str
    """The reason and message of the pod's status, such as a kubelet's refusal; empty if it has none."""
    scheduler: str
    """The scheduler's last message about the pod; empty if there is none or the pod is scheduled."""
    services: tuple[Service, ...]
    """What the best node of each pool has for the pod."""
    others: tuple[str, ...]
    """Other GPU resources that will be advertised after the changes by nodes that the pod may use. Empty if one of them
    will have what the pod requests."""
    guard: str
    """Sentences about the guard for tenants; empty if it does not concern the pod."""
    conclusion: str
    """The answer in a sentence."""
    notes: tuple[str, ...]
    """Sentences about what could not be read or is uncertain."""
    simulated: tuple[str, ...] = ()
    """The names of all nodes of the cluster whose GPUs are SIMULATED."""
    fraction: str = ""
    """A description of the fraction of a GPU that the pod requests from KAI-Scheduler; empty if it requests none."""


def pod_answer(
    pod: JSON, rooms: Mapping[str, NodeRoom], live: LivePlan, namespace_labels: Mapping[str, str]
) -> PodAnswer:
    """Return the answer about a pod from a plan. Its notes are those of the plan and of `_answer`, and one if other
    device plugins serve what the pod requests. `rooms` has what each Node of the plan has for it, by the name of the
    Node. `namespace_labels` are the labels of the pod's namespace, empty if they could not be read. They are used only
    for what the answer says about the isolation of tenants, not to find room."""
    statuses: dict[str, str] = {}
    for policy in live.snapshot.policies:
        summary = policy_status(policy, live.plan, live.snapshot, {}, live.now)["summary"]
        statuses[policy.name] = f"{summary['status']}: {summary['message']}"
    phases = {name: str(verdict.phase) for name, verdict in live.plan.verdicts.items()}
    answer = _answer(pod, rooms, statuses, phases)
    plugins = {name: one.other_plugin for name, one in live.snapshot.nodes.items()}
    notes = (*live.notes, *answer.notes, *name_resources(answer.asks, plugins))
    guard = explain_guard(pod, rooms, live, namespace_labels)
    return replace(answer, guard=guard, notes=notes, simulated=live.simulated())


def published_answer(raw: JSON, policies: Sequence[JSON], gpunodes: Sequence[JSON]) -> PodAnswer:
    """Return the answer about a pod from what the policies and the GPUNodes show. Both are empty if they could not be
    read. A policy whose spec is invalid has no targets, so its nodes have no room (`read_room`). A note says what may
    exclude the pod from nodes and was not considered, and what more rights would add."""
    nodes, views = [*map(read_node, gpunodes)], map(policy_view, policies)
    targets = {
        one.name: PolicyTargets(one, find_request(one.name, one.spec), BARE) for one in views if one.spec
    }
    rooms = {node.name: read_room(raw, one, targets) for node, one in zip(nodes, gpunodes, strict=True)}
    statuses = {one.name: f"{one.status}: {one.message}" for one in read_pools(policies, nodes)[0]}
    answer = _answer(raw, rooms, statuses, {node.name: node.phase for node in nodes})
    note = (
        "rules and taints that may exclude this pod from nodes, the guard for tenants and the devices of ResourceClaims"
        f" were not considered. {MORE}"
    )
    return replace(answer, notes=(*answer.notes, note), simulated=tuple(simulated_nodes((), nodes)))


def _answer(
    raw: JSON, found: Mapping[str, NodeRoom], statuses: Mapping[str, str], phases: Mapping[str, str]
) -> PodAnswer:
    """Return an answer about a pod, without its `guard` and the SIMULATED nodes. `found` has the room on each node, and
    is empty if nothing is known about nodes. `statuses` has the status and message of each policy, and `phases` the
    phase of each managed node. A pod that requests only a fraction of a GPU is treated as one that requests whole GPUs,
    and a note says what that means. For a pod that requests GPUs and has no node, another note names the fields that
    were not evaluated (`find_overlooked`)."""
    pod, asks = pod_view(raw, {}), dict(sorted(pod_requests(raw).items()))
    fraction, devices = find_fraction(raw)
    asks = asks or ({RESOURCE_GPU: devices} if devices else {})
    rooms = [found[name] for name in sorted(found)]
    services = tuple(
        service
        for pool, status in {**statuses, "": ""}.items()
        for service in _services(pool, status, asks, [room for room in rooms if room.pool == pool])
    )
    node = text(raw, "spec", "nodeName")
    case = PodCase(raw, node, asks, services, rooms, phases.get(node, ""))
    lasting = any(fits(asks, room.after) for room in rooms)
    later = {name for room in rooms for name in room.after}
    unchecked = ", ".join(find_overlooked(raw)) if asks and not node else ""
    note = f"this answer ignores the pod's {unchecked}, which may exclude nodes that are counted here"
    placed = [row for row in entries(raw, "status", "conditions") if row.get("type") == "PodScheduled"]
    return PodAnswer(
        pod=pod.ref,
        phase=pod.phase,
        node=node,
        asks=asks,
        status=": ".join(filter(None, (text(raw, "status", key) for key in ("reason", "message")))),
        scheduler=next((text(row, "message") for row in placed if row.get("status") == "False"), ""),
        services=services,
        others=() if lasting else tuple(sorted(later - asks.keys())),
        guard="",
        conclusion=next(sentence for conclude in CONCLUSIONS if (sentence := conclude(case))),
        notes=(*((NOTE,) if fraction else ()), *((note,) if unchecked else ())),
        fraction=fraction,
    )


def _services(
    pool: str, status: str, asks: Mapping[str, int], members: Sequence[NodeRoom]
) -> Iterator[Service]:
    """Yield, for each requested resource that a member advertises or will advertise, even if a rule excludes the pod
    there, what the best node of the pool provides (`NodeRoom.rank`). All nodes without a policy count as one pool, with
    an empty name. `status` is the status of the policy as shown to people. The best node is chosen once for the whole
    request. Only members that have something for the pod, now or later, can be the best. If there are none, the node's
    name is empty and the counts are 0. `Service.kept` has each rule (`NodeRoom.later`) that will exclude the pod from
    members with the resource once the changes are done: the first three of these nodes, the number of the others, a
    colon, and the rule. It is sorted by rule."""
    reached = (room for room in members if room.now or room.after)
    none = NodeRoom("", pool, {}, {}, {}, "", "", "", {}, frozenset())
    best = max(reached, key=lambda room: room.rank(asks), default=none)
    rule = attrgetter("later")
    for resource, wanted in asks.items():
        if not any(resource in room.names for room in members):
            continue
        excluded = sorted((room for room in members if room.later and room.planned.get(resource)), key=rule)
        alike = groupby(excluded, rule)
        rules = tuple(f"{some([room.node for room in rooms])}: {why}" for why, rooms in alike)
        yield _service(best, resource, wanted, rules, status)


def _service(best: NodeRoom, resource: str, wanted: int, rules: tuple[str, ...], status: str) -> Service:
    """Return what the best node of a pool has of a resource, and the first obstacle that prevents it from running at
    once a pod that requests `wanted` devices: too few devices before or after the changes, a node that is closed to
    pods, or devices that other pods use; empty if there is none. `status`, that of the policy, is added where the
    changes will help. If the pod may use no node, so that the name of `best` is empty, the obstacle is the `rules` that
    exclude the pod, if there are any; a single one applies to all nodes, so their names are left out."""
    free = None if best.free is None else best.free.get(resource, 0)
    now, after = best.now.get(resource, 0), best.after.get(resource, 0)
    more = f", but there will be more once the changes are done; {status}" if after > now else ""
    but = ""
    if rules and not best.node:
        but = "; ".join(rules) if len(rules) > 1 else rules[0].partition(": ")[2]
    elif now < wanted <= after:
        but = f"only once the changes are done; {status}"
    elif now < wanted and not max(now, after):
        but = "no node that the pod may use advertises it"
    elif now < wanted:
        but = f"no node has more than {max(now, after)} of the {wanted}"
    elif best.closed:
        but = f"the node is {best.closed}"
    elif free is not None and free < wanted:
        but = (f"other pods use {now - free} of {now}" if free else "other pods use all of them") + more
    return Service(best.pool, best.node, resource, now, free, after, but, rules)


@dataclass(frozen=True, slots=True)
class PodCase:
    """The facts from which a conclusion about a pod is drawn."""

    raw: JSON
    """The pod, as the API server returned it."""
    node: str
    """Name of the node that the pod is on; empty if it has none."""
    asks: Mapping[str, int]
    """The GPU resources that the pod requests from one node."""
    services: Sequence[Service]
    """What the best node of each pool has for the pod."""
    rooms: Sequence[NodeRoom]
    """What each node has for the pod."""
    phase: str
    """The phase of the pod's node; empty if the pod has no node, or the operator is not known to manage it."""


def _ended(case: PodCase) -> str:
    """Explain a pod that has ended and will not start again. If the kubelet rejected it (UnexpectedAdmissionError) and
    the device plugin of its node refuses the number of shares that it requests, say so. Empty for any other pod."""
    phase = text(case.raw, "status", "phase")
    if phase not in ("Succeeded", "Failed"):
        return ""
    refusal = next((room.refusal for room in case.rooms if room.node == case.node), "")
    if refusal and text(case.raw, "status", "reason") == "UnexpectedAdmissionError":
        return f"the kubelet on {case.node} rejected this pod: {refusal}"
    return f"this pod has {phase.lower()}, so it uses no GPU and will not start again"


def _asks_nothing(case: PodCase) -> str:
    """Explain a pod that requests no GPU resource and no fraction of a GPU, so that it does not wait because of a GPU
    pool. If it requests devices through ResourceClaims, also by the name of a DeviceClass, say that these are not
    compared with the pools. Empty for any other pod."""
    if case.asks:
        return ""
    # A request by the name of a DeviceClass becomes a ResourceClaim only when the pod gets a node.
    if resource_claim_names(case.raw) or requests_by_class(case.raw):
        return (
            "this pod requests devices only through ResourceClaims, which are not compared with the GPU pools; see the"
            " scheduler's message and: kubectl get resourceclaims,resourceslices"
        )
    return "this pod requests no GPU resource, so it is not waiting for a GPU pool"


def _on_node(case: PodCase) -> str:
    """Explain a pod that has a node already. If the node is managed and in any phase but Synced, even if no change has
    begun there, name the phase and the command that explains it. Otherwise, if anything is known about nodes, add that
    the operator is not changing this one. Empty for a pod without a node."""
    if not case.node:
        return ""
    if case.phase not in ("", Phase.SYNCED):
        what = f"this pod is on node {case.node}, which is {case.phase}"
        return f"{what}; to see why: kubectl gpusharing why {case.node}"
    stays = ", which the operator is not changing now" if case.rooms else ""
    return f"this pod is on node {case.node}{stays}"


def _unadvertised(case: PodCase) -> str:
    """Explain a pod that requests resources which no node advertises or will advertise, so that waiting does not help.
    All of them are named, each with the question of `_suggest`. If nothing is known about nodes, say so instead. Empty
    if there is no such resource."""
    if not case.rooms:
        return "it is unknown which nodes have what this pod requests"
    absent = sorted(case.asks.keys() - {name for room in case.rooms for name in room.names})
    if not absent:
        return ""
    return (
        f"no node advertises {' or '.join(absent)}, and none will under the existing policies."
        f"{''.join(_suggest(case, name) for name in absent)} Request a resource that is advertised, or change a policy"
        " (kubectl gpusharing plan -f FILE shows what that would do)"
    )


def _suggest(case: PodCase, absent: str) -> str:
    """Return a question, preceded by a space, whether another resource that the pod may use was meant instead of
    `absent`. It ends with how many of it are known to be free on all nodes, which may be 0. For a MIG profile it is the
    smallest with at least as many slices and as much memory, for any other name the most similar (`nearest`). The
    prefix before the slash is not compared. Empty if there is none."""
    bare = {name.partition("/")[2]: name for room in case.rooms for name in (*room.now, *room.after)}
    word = absent.partition("/")[2]
    sizes = {one: tuple(map(int, size.groups())) for one in (word, *bare) if (size := _PROFILE.match(one))}
    larger = [one for one, size in sizes.items() if all(map(ge, size, sizes.get(word, ()))) and one != word]
    similar = sorted(larger, key=lambda one: sizes[one]) if word in sizes else nearest(word, bare)
    if not similar:
        return ""
    free = sum((room.free or {}).get(bare[similar[0]], 0) for room in case.rooms)
    return f" Did you mean {bare[similar[0]]}? {free} {'is' if free == 1 else 'are'} known to be free."


def _available(case: PodCase) -> str:
    """Explain a pod for which at least one node has everything free (`has_free`), so that only the scheduler knows why
    the pod waits; or else one for which some node will have everything after the changes, whether or not it has
    everything now, so that the pod must wait, or a person must remove the obstacle that the table shows. Empty if there
    is no such node."""
    free = [room.node for room in case.rooms if room.has_free(case.asks)]
    nodes = free or [room.node for room in case.rooms if fits(case.asks, room.after)]
    if not nodes:
        return ""
    have = f"{some(nodes)} {'has' if len(nodes) == 1 else 'have'}"
    if free:
        return f"{have} enough free for this pod; see the scheduler's message for why it is not placed there"
    return (
        f"{have} everything that this pod requests, or will have it once the changes are done; the OBSTACLE column"
        " shows what is in the way"
    )


def _too_large(case: PodCase) -> str:
    """Explain a pod that requests more of one resource than any single node has, now or after the changes, or several
    resources that no single node has together, so that waiting does not help. Empty if a node has everything now. If
    the pod can get one resource from no node at all, the result is empty too, unless another resource is too scarce.
    There must be at least one node, which `_unadvertised` ensures."""
    nowhere = "no node that this pod may use" if any(one.kept for one in case.services) else "no node"
    most = {name: max(room.most(name) for room in case.rooms) for name in case.asks}
    for name, wanted in case.asks.items():
        if 0 < most[name] < wanted:
            return f"{nowhere} has more than {most[name]} of the {wanted} {name} that this pod requests"
    if not all(most.values()) or any(fits(case.asks, room.now) for room in case.rooms):
        return ""
    requests = " and ".join(f"{n} {name}" for name, n in case.asks.items())
    return f"{nowhere} has everything that this pod requests: {requests}"


def _never(case: PodCase) -> str:
    """Explain a pod to which no earlier conclusion applies. The first of these reasons is returned: the device plugin
    would refuse it, rules exclude it from all nodes that will have what it requests, or no node will have it. Waiting
    does not help. Never empty."""
    names = ", ".join(case.asks)
    if refusals := sorted({room.later for room in case.rooms if room.refusal and room.later == room.refusal}):
        return f"kubelets would reject this pod: {'; '.join(refusals)}"
    if any(one.kept for one in case.services):
        return (
            f"no node that this pod may use will advertise {names}: change the rule that excludes it from other nodes,"
            " or request a resource that those nodes advertise"
        )
    return f"no pool will advertise {names} once the changes are done; request a resource that will be advertised then"


CONCLUSIONS: tuple[Callable[[PodCase], str], ...] = (
    _ended,
    _asks_nothing,
    _on_node,
    _unadvertised,
    _available,
    _too_large,
    _never,
)
"""The possible conclusions about a pod, in order. The first that is not empty is shown; the last one never
is empty."""


# --- in words ------------------------------------------------------------------------------------------------


def describe_pod(answer: PodAnswer, paper: Paper) -> list[Line]:
    """Draw the answer: the pod with its request, its status, the scheduler's message, what each pool has for it, the
    other resources that will be advertised, the guard for tenants, the conclusion, and the notes. Empty parts are left
    out. Nodes with SIMULATED GPUs are named above it."""
    requests = ", ".join(f"{count} {name}" for name, count in sorted(answer.asks.items()))
    asks = answer.fraction or requests or "no GPU"
    ink = Ink.GOOD if answer.node else Ink.WAITING
    title = line(Span(answer.pod, Ink.TITLE), "  ", Span(answer.phase, ink), f"  requests {asks}")
    lines = [*describe_simulated(answer.simulated, paper), *fold(title, paper)]
    for whose, message in (("Status", answer.status), ("Scheduler", answer.scheduler)):
        lines += prose(f"{whose}: {message}", paper, hang="  ") if message else []
    if answer.services:
        lines += [BLANK, *_service_lines(answer.services, paper)]
    if answer.others:
        lines += prose(f"Advertised once the changes are done: {', '.join(answer.others)}", paper, hang="  ")
    if answer.guard:
        lines += prose(f"Guard: {answer.guard}.", paper, hang="  ", ink=Ink.WAITING)
    lines += [BLANK, *prose(answer.conclusion[:1].upper() + answer.conclusion[1:] + ".", paper)]
    return lines + prose_of_each((f"Note: {note}" for note in answer.notes), paper, ink=Ink.FAINT)


def _service_lines(services: Sequence[Service], paper: Paper) -> list[Line]:
    """Draw a table with one row for each service. Below it, draw the obstacles that were cut off in the table. For a
    pool in which the pod may use some nodes, also draw the rules that exclude it from the others; if they differ
    between resources, those of the last one."""
    rows = []
    for one in services:
        counts = str(one.now), "?" if one.free is None else str(one.free), str(one.after)
        place = one.pool or "no policy", one.node or "-", one.resource
        rows.append(line(*place, *counts, Span(one.but, Ink.WAITING)))
    drawn = table(COLUMNS, rows, paper)
    lines = [*drawn]
    for service, row in zip(services, drawn[len(drawn) - len(rows) :], strict=True):
        if not shows(row, service.but):
            lines += prose(f"{service.pool or 'no policy'}: {service.but}", paper, hang="  ", ink=Ink.WAITING)
    partly = {one.pool: one.kept for one in services if one.kept and one.node}
    rules = (f"{pool or 'no policy'}, not on {'; '.join(kept)}" for pool, kept in partly.items())
    return lines + prose_of_each(rules, paper, ink=Ink.WAITING)
