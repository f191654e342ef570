"""Why does a pod not start, and which node could run it, now or after the changes?

Each node is judged alone (`NodeRoom`), because a pod runs on one node. Whether it could start there is decided by
planning/drain/placement.py, as for the drain.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from operator import ge

from gpusharing.api.names import LABEL_MODE, CordonedBy, Phase, WaitingFor
from gpusharing.api.nearest import nearest
from gpusharing.kube.client import JSON
from gpusharing.kube.convert import gpunode_view, policy_view
from gpusharing.kube.pods import (
    DEFAULT_SCHEDULER,
    gpu_fractions,
    node_terms,
    pod_requests,
    pod_view,
    requests_by_class,
    resource_claim_names,
)
from gpusharing.kube.raw import entries, part, section, text, texts
from gpusharing.planning.drain.evictions import budgets_of
from gpusharing.planning.drain.placement import Kind, Needs, Obstacle, Offer, could_start, find_obstacles, needs_of
from gpusharing.planning.drain.stranded import describe_guard, find_admitted
from gpusharing.planning.gpus.cards import remaining
from gpusharing.planning.pools.afterwards import find_holdings, find_present_offer, find_target_offer
from gpusharing.planning.report.status import policy_status
from gpusharing.planning.report.transition import cordoned_by
from gpusharing.planning.snapshot.nvidia import StackView
from gpusharing.planning.snapshot.podviews import PdbView
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.stack.plugins import name_resources
from gpusharing.planning.vocabulary.commands import Command
from gpusharing.planning.vocabulary.lengths import counted, some
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.target import PolicyTargets, Target, find_request
from kubectl_gpusharing.live.cluster import LivePlan
from kubectl_gpusharing.pools.fleet import NodeStatus, read_node, read_pools, simulated_nodes
from kubectl_gpusharing.shell.drawing import (
    BLANK,
    Ink,
    Line,
    PrintOptions,
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
from kubectl_gpusharing.shell.troubles import tell_rights

_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def find_overlooked(pod: JSON) -> tuple[str, ...]:
    """Return the paths of the pod's fields that the scheduler evaluates and this module does not.

    Because of these fields the scheduler may exclude further nodes.
    """
    spec = section(pod, "spec")
    volumes, spreads = entries(spec, "volumes"), entries(spec, "topologySpreadConstraints")
    ports = [port for container in entries(spec, "containers") for port in entries(container, "ports")]
    overlooked: dict[str, object] = {
        "spec.affinity.podAffinity": entries(spec, "affinity", "podAffinity", _REQUIRED),
        "spec.affinity.podAntiAffinity": entries(spec, "affinity", "podAntiAffinity", _REQUIRED),
        "spec.resourceClaims": entries(spec, "resourceClaims"),
        "spec.topologySpreadConstraints": {text(one, "whenUnsatisfiable") for one in spreads} - {"ScheduleAnyway"},
        "spec.volumes[].persistentVolumeClaim": any("persistentVolumeClaim" in volume for volume in volumes),
        "spec.volumes[].ephemeral": any("ephemeral" in volume for volume in volumes),
        "spec.schedulerName": text(spec, "schedulerName") not in DEFAULT_SCHEDULER,
        "spec.containers[].ports[].hostPort": any("hostPort" in port for port in ports),
    }
    return tuple(field for field, applies in overlooked.items() if applies)


MOST_FENCES = 3
"""The most changes that are explained to a pod which waits for them."""
_WAITS_FOR_BUDGET = re.compile(rf"({Reason.PDB}|{Reason.PDB_IN_USE}) [^ :]+:")
"""The beginning of a line of GPUNode's status.transition.blockers about one budget."""
ENDS = {"Person": "a person acts", "Others": "others are done"}
"""When a wait ends that no clock ends, by `waitingFor`."""
_EMPTYING = frozenset(phase for phase in Phase if phase.part == "emptying")
"""The phases in which `abort` gives a change up at once."""
NOTE = (
    "KAI-Scheduler allocates this fraction from a whole GPU on a node without MIG: a free nvidia.com/gpu, or one that"
    " it has reserved already. A reserved GPU is not counted as free here, although it may have free capacity"
)


@dataclass(frozen=True)  # no slots, because of the cached properties
class NodeRoom:
    """What one node has for a pod, now and after the changes. All counts are by resource name."""

    needs: Needs
    node: str
    pool: str
    """The policy that selects the node; empty if none does."""
    present: Offer | None
    future: Offer | None
    """What the node has for new pods now, and once all changes are done; None if unknown."""
    closed: str = ""
    """Why the node accepts no pods now, as a clause; empty if it does."""
    held: Mapping[str, int] | None = None
    """The devices that pods hold now; None if unknown."""
    fenced: bool = False
    """Whether it is the operator that keeps new pods off the node, for its change."""

    @cached_property
    def now(self) -> Mapping[str, int] | None:
        """The devices that are allocatable now; empty if a rule excludes the pod from the node, None if unknown."""
        return self._usable(self.present)

    @cached_property
    def after(self) -> Mapping[str, int] | None:
        """The same as `now`, once all changes are done."""
        return self._usable(self.future)

    def _usable(self, offer: Offer | None) -> Mapping[str, int] | None:
        return None if offer is None else {} if find_rule(self.needs, offer) else offer.devices

    @cached_property
    def free(self) -> Mapping[str, int] | None:
        """The part of `now` that no pod holds; empty while the node accepts no pods, None if unknown."""
        if self.closed or self.now == {}:
            return {}
        return None if self.held is None or self.now is None else remaining(self.now, self.held)

    @cached_property
    def later(self) -> Obstacle | None:
        return None if self.future is None else find_rule(self.needs, self.future)

    @property
    def names(self) -> frozenset[str]:
        """The resources that the node advertises now or will advertise, even if a rule excludes the pod."""
        return frozenset(name for offer in (self.present, self.future) if offer for name in offer.devices)

    @cached_property
    def starts_free(self) -> bool:
        """Whether the pod could start on the devices that are free, as far as is known."""
        if self.present is None or self.free is None:
            return self.starts_now
        return could_start(self.needs, replace(self.present, devices=self.free))

    @property
    def full(self) -> bool:
        """Whether the node accepts pods, but others hold what this pod requests."""
        return self.starts_now and not self.closed and not self.starts_free

    @cached_property
    def starts_now(self) -> bool:
        return self.present is not None and could_start(self.needs, self.present)

    @cached_property
    def lasts(self) -> bool:
        return self.future is not None and could_start(self.needs, self.future)

    def most(self, resource: str) -> int:
        return max((counts.get(resource, 0) for counts in (self.now, self.after) if counts is not None), default=0)

    def rank(self) -> tuple[bool, bool, bool, bool, int]:
        """Return a sort key: the node with the greatest comes nearest to what is requested."""
        most = sum(min(n, self.most(name)) for name, n in self.needs.devices)
        return self.starts_free, self.lasts, self.starts_now, not self.closed, most


def find_rule(needs: Needs, offer: Offer) -> Obstacle | None:
    """Return the first rule that excludes the pod from the node, however many devices the node has."""
    return next((one for one in find_obstacles(needs, offer) if one.kind is not Kind.COUNT), None)


def find_room(needs: Needs, node: NodeView, live: LivePlan) -> NodeRoom:
    becomes, present = live.plan.afterwards.find_node(node.name), find_present_offer(node, live.snapshot.stack)
    future = present if becomes is None else becomes.planned or becomes.offer
    gated = node.gate is not None
    tainted = node.fence is not None and node.fence.tainted
    shut = gated or node.unschedulable or not node.ready or tainted
    ours = tainted or cordoned_by(node) == CordonedBy.OPERATOR
    why = f"{'fenced' if tainted else 'cordoned'}{', not proven yet' if gated else ''} or not Ready"
    if ours and node.ready:
        why = f"{'fenced' if tainted else 'cordoned'} by the operator"
    held, verdict = find_holdings(node, live.snapshot), live.plan.verdicts.get(node.name)
    pool = "" if verdict is None else verdict.policy
    return NodeRoom(needs, node.name, pool, present, future, why if shut else "", held, fenced=ours)


def read_room(needs: Needs, raw: JSON, targets: Mapping[str, PolicyTargets]) -> NodeRoom:
    """Return what a node has for the pod, as its GPUNode shows it. The labels and taints of the Node are unknown."""
    node, observed = read_node(raw), gpunode_view(raw).observed
    policy = targets.get(node.policy)
    target = policy.find(node.name, observed.hardware) if policy and observed and observed.gpus else None
    future = find_target_offer(node.name, target, node.policy) if isinstance(target, Target) else None
    present = future if node.phase == Phase.SYNCED else None
    held = None if observed is None else observed.allocated
    ours = node.cordoned_by == CordonedBy.OPERATOR
    closed = "cordoned by the operator" if ours else "cordoned" if node.cordoned_by else ""
    return NodeRoom(needs, node.name, node.policy, present, future, closed, held, fenced=ours)


# --- behind the operator's own cordon ------------------------------------------------------------------------


def find_fenced(pod: JSON, rooms: Iterable[NodeRoom]) -> list[NodeRoom]:
    """Return all nodes that have the GPUs which the pod requests, if the operator keeps new pods off each of them.

    A node that is full counts as one without them.
    """
    waits = not text(pod, "spec", "nodeName") and text(pod, "status", "phase") == "Pending"
    if not waits or not needs_of(pod_view(pod, {})).devices:
        return []
    rooms = tuple(rooms)
    fits = [room for room in rooms if (room.starts_now or room.lasts) and not room.full]
    return fits if all(room.fenced for room in rooms if room in fits or room.now is None) else []


def explain_fences(
    pod: JSON,
    rooms: Sequence[NodeRoom],
    nodes: Mapping[str, NodeStatus],
    budgets: Iterable[PdbView] | None,
    full: Sequence[str] = (),
) -> str:
    """Return sentences about the changes that keep a pod from its only nodes (`find_fenced`); empty without `rooms`.

    A drain may wait for a budget that waits for this very pod, which waits for the drain or for a `full` node. Without
    `budgets` the user may not list them.
    """
    view = pod_view(pod, {})
    guards = [budget.ref for budget in budgets_of(view, budgets or ())]
    names = [room.node for room in rooms]
    if not names:
        return ""
    but = f", apart from {some(full)}, where other pods hold it" if full else ""
    sentences = [f"only {some(names)} {'has' if len(names) == 1 else 'have'} what this pod requests{but}"]
    for room in rooms[:MOST_FENCES]:
        node = nodes.get(room.node, NodeStatus(name=room.node))
        end = ENDS.get(node.waiting_for or "", "")
        until = f"deadline {node.deadline}" if node.deadline else f"until {end}" if end else ""
        state = ", ".join(filter(None, (node.phase, until)))
        change = f"policy {room.pool} changes it{f' to {node.wanted}' if node.wanted else ''}"
        sentences.append(f"The operator keeps new pods off {room.node} while {change}{f' ({state})' if state else ''}")
        waits = [line.partition(":")[0].split()[-1] for line in node.blockers if _WAITS_FOR_BUDGET.match(line)]
        guard = next((guard for guard in guards if guard in waits), "")
        lasting = f"let {guard} allow one more eviction, or give this pod another node"
        if guard:
            deadlock = f"Its drain waits for PodDisruptionBudget {guard}, and that budget for this pod"
            ends = f"before {some(full)} has room for it" if full else "by itself"
            sentences.append(f"{deadlock}, so neither goes on {ends}")
        elif budgets is None and (unread := next((one for one in waits if one.startswith(f"{view.namespace}/")), "")):
            sentences.append(f"Its drain waits for PodDisruptionBudget {unread}")
            sentences.append("The right to list poddisruptionbudgets would tell whether that budget waits for this pod")
        elif room.lasts:
            sentences.append(f"This pod can start on {room.node} once the change is done")
        if not room.lasts:
            sentences.append(f"{room.node} will not have what this pod requests after the change")
            lasting = f"to keep the node as it is: {Command.of('kubectl gpusharing skip', room.node)}"
        if room.starts_now and node.phase in _EMPTYING and (guard or not room.lasts):
            remedy = Command.of("kubectl gpusharing abort", room.node)
            sentences.append(f"To give the change up, so that this pod can start there: {remedy}")
            sentences.append(f"The operator tries again later; before that, {lasting}")
        elif guard:
            sentences.append(f"To end this, {lasting}")
        elif node.waiting_for == WaitingFor.PERSON:
            sentences.append(f"To see what to do: {Command.of('kubectl gpusharing why', room.node)}")
    return ". ".join(sentences)


# --- the guard for tenants -----------------------------------------------------------------------------------


def explain_guard(raw: JSON, rooms: Mapping[str, NodeRoom], live: LivePlan, namespace_labels: Mapping[str, str]) -> str:
    """Return sentences about the guard for tenants (docs/how-to/isolate-tenants.md); empty if it is of no concern."""
    asks, admitted = pod_requests(raw), find_admitted(namespace_labels)
    required = {*texts(part(raw, "spec", "nodeSelector")), *(row[0] for term in node_terms(raw) for row in term)}
    if admitted is None or not asks or text(raw, "spec", "nodeName") or LABEL_MODE not in required:
        return ""
    guard = describe_guard(text(raw, "metadata", "namespace"), namespace_labels)
    sentences = [guard[:1].upper() + guard[1:]]
    modes: dict[str, set[str]] = {}
    for name in sorted(rooms):
        becomes = live.plan.afterwards.find_node(name)
        labels = (live.snapshot.nodes[name].labels, *(() if becomes is None else becomes.offer.labels))
        if found := {one[LABEL_MODE] for one in labels if one.get(LABEL_MODE) in admitted}:
            modes[name] = found
    if admitted and not modes:
        sentences.append(f"No node has mode {' or '.join(admitted)}, and none will under the existing policies")
    lacking: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, found in modes.items():
        absent = sorted(asks.keys() - rooms[name].names)
        if absent:
            lacking[", ".join(absent), " or ".join(sorted(found))].append(name)
    for (resources, mode), nodes in sorted(lacking.items()):
        verb = "does" if len(nodes) == 1 else "do"
        sentences.append(f"{some(nodes)} (mode {mode}) {verb} not advertise {resources}")
    return ". ".join(sentences)


BARE = StackView(None, gpu_cluster=False, plugin_configs={}, mig_file="", written={}, serves_our_mig_file=True)
"""NVIDIA's software as it is assumed to be without a plan: mig-manager reads the operator's file."""
_PROFILE = re.compile(r"mig-(\d+)g\.(\d+)gb")
"""The compute slices and the memory in the name of a MIG resource."""
COLUMNS = columns(POOL=0, NODE=2, RESOURCE=1, NOW=0, FREE=0, AFTER=0, OBSTACLE=0)


@dataclass(frozen=True, slots=True)
class Service:
    """What the node of a pool that comes nearest to the pod's whole request has of one resource."""

    pool: str
    """The name of the policy; empty for the nodes that no policy selects."""
    node: str
    """The name of the best node; empty if the pod may use no node of the pool."""
    resource: str
    now: int | None
    free: int | None
    after: int | None
    """How many of these devices there are now, are free now, and will be after the changes; None if unknown."""
    but: str
    """Why the node does not help the pod at once; empty if it should."""
    kept: tuple[str, ...] = ()
    """For each rule that excludes the pod from nodes of the pool, the nodes and the rule: `gpu-1: spec.nodeSelector …`."""


@dataclass(frozen=True, slots=True)
class PodAnswer:
    """Everything that `why` shows about one pod. A text that does not concern it is empty."""

    pod: str
    """`namespace/name`."""
    phase: str
    node: str
    asks: Mapping[str, int]
    status: str
    """The reason and message of the pod's status, such as a kubelet's refusal."""
    scheduler: str
    """The scheduler's last message about the pod, while it is not scheduled."""
    services: tuple[Service, ...]
    others: tuple[str, ...]
    """Other GPU resources that will be advertised. It is empty if a node will have what the pod requests."""
    guard: str
    conclusion: str
    notes: tuple[str, ...]
    simulated: tuple[str, ...] = ()
    fraction: str = ""


def pod_answer(
    pod: JSON, rooms: Mapping[str, NodeRoom], live: LivePlan, namespace_labels: Mapping[str, str], fences: str = ""
) -> PodAnswer:
    """Return the answer about a pod from a plan; `fences` is what `explain_fences` says."""
    statuses: dict[str, str] = {}
    for policy in live.snapshot.policies:
        summary = policy_status(policy, live.plan, live.snapshot, {}, live.now)["summary"]
        statuses[policy.name] = f"{summary['status']}: {summary['message']}"
    phases = {name: str(verdict.phase) for name, verdict in live.plan.verdicts.items()}
    answer = _answer(pod, rooms, statuses, phases)
    plugins = {name: one.other_plugin for name, one in live.snapshot.nodes.items()}
    notes = (*live.notes, *answer.notes, *name_resources(answer.asks, plugins))
    guard = explain_guard(pod, rooms, live, namespace_labels)
    conclusion = fences or answer.conclusion
    return replace(answer, guard=guard, conclusion=conclusion, notes=notes, simulated=live.simulated())


GONE = "Gone"


def gone_answer(pod: str, event: JSON) -> PodAnswer:
    """Return the answer about a pod that the operator evicted, from the Event that tells of it."""
    when = text(event, "eventTime").partition(".")[0].replace("T", " ")
    conclusion = f"there is no pod of this name now. The last Event about one ({when} UTC): {text(event, 'message')}"
    return PodAnswer(pod, GONE, "", {}, "", "", (), (), "", conclusion, ())


def published_answer(
    raw: JSON,
    policies: Sequence[JSON],
    gpunodes: Sequence[JSON],
    lacking: Iterable[str],
    budgets: Iterable[PdbView] | None = (),
) -> PodAnswer:
    """Return the answer about a pod from what the policies and the GPUNodes show, to a user who lacks these rights."""
    nodes, views = [*map(read_node, gpunodes)], map(policy_view, policies)
    targets = {one.name: PolicyTargets(one, find_request(one.name, one.spec), BARE) for one in views if one.spec}
    needs = needs_of(pod_view(raw, {}))
    rooms = {node.name: read_room(needs, one, targets) for node, one in zip(nodes, gpunodes, strict=True)}
    statuses = {one.name: f"{one.status}: {one.message}" for one in read_pools(policies, nodes)[0]}
    answer = _answer(raw, rooms, statuses, {node.name: node.phase for node in nodes})
    note = (
        "rules and taints that may exclude this pod from nodes, the guard for tenants and the devices of ResourceClaims"
        f" were not considered, because you may not {tell_rights(lacking)}"
    )
    full = [room.node for room in rooms.values() if room.full]
    fenced = find_fenced(raw, rooms.values())
    fences = explain_fences(raw, fenced, {node.name: node for node in nodes}, budgets, full)
    simulated = tuple(simulated_nodes((), nodes))
    return replace(answer, conclusion=fences or answer.conclusion, notes=(*answer.notes, note), simulated=simulated)


def _answer(
    raw: JSON, found: Mapping[str, NodeRoom], statuses: Mapping[str, str], phases: Mapping[str, str]
) -> PodAnswer:
    pod = pod_view(raw, {})
    needs = needs_of(pod)
    asks = dict(needs.devices)
    share, count = gpu_fractions(raw)
    whole = "a GPU" if count == 1 else f"each of {counted(count, 'GPU')}"
    fraction = f"{share} of {whole} from KAI-Scheduler" if count else ""
    rooms = [found[name] for name in sorted(found)]
    services = tuple(
        service
        for pool, status in {**statuses, "": ""}.items()
        for service in _services(pool, status, asks, [room for room in rooms if room.pool == pool])
    )
    node = text(raw, "spec", "nodeName")
    lasting = not asks or any(room.lasts for room in rooms)
    later = {name for room in rooms for name in room.after or ()}
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
        conclusion=_conclude(raw, needs, services, rooms, phases.get(node, "")),
        notes=(*((NOTE,) if fraction else ()), *((note,) if unchecked else ())),
        fraction=fraction,
    )


def _services(pool: str, status: str, asks: Mapping[str, int], members: Sequence[NodeRoom]) -> Iterator[Service]:
    reached = (room for room in members if room.now != {} or room.after != {})
    none = NodeRoom(Needs(()), "", pool, Offer("", {}), Offer("", {}), held={})
    best = max(reached, key=NodeRoom.rank, default=none)  # once for the whole request

    def rule(room: NodeRoom) -> str:
        return room.later.text if room.later else ""

    for resource, wanted in asks.items():
        if not any(resource in room.names for room in members):
            continue
        planned = (room for room in members if room.future and room.future.devices.get(resource))
        excluded = sorted((room for room in planned if room.later), key=rule)
        alike = groupby(excluded, rule)
        rules = tuple(f"{some([room.node for room in rooms])}: {why}" for why, rooms in alike)
        now, free, after = (
            None if counts is None else counts.get(resource, 0) for counts in (best.now, best.free, best.after)
        )
        later = after or 0
        but = ""
        if rules and not best.node:
            but = "; ".join(rules) if len(rules) > 1 else rules[0].partition(": ")[2]
        elif now is None:
            but = "it is unknown what the node has now"
            but += f"; it will have enough once the changes are done; {status}" if wanted <= later else ""
        elif now < wanted <= later:
            but = f"only once the changes are done; {status}"
        elif now < wanted:
            most = max(now, later)
            but = (
                f"no node has more than {most} of the {wanted}"
                if most
                else "no node that the pod may use advertises it"
            )
        elif best.closed:
            but = f"the node is {best.closed}"
        elif free is None:
            but = "it is unknown how many of them other pods hold"
        elif free < wanted:
            but = f"other pods use {now - free} of {now}" if free else "other pods use all of them"
            but += f", but there will be more once the changes are done; {status}" if later > now else ""
        yield Service(best.pool, best.node, resource, now, free, after, but, rules)


def _conclude(raw: JSON, needs: Needs, services: Sequence[Service], rooms: Sequence[NodeRoom], phase: str) -> str:
    """Return the answer as a clause. `phase` is that of the pod's node; empty if the operator does not manage it."""
    node, ended, asks = text(raw, "spec", "nodeName"), text(raw, "status", "phase"), dict(needs.devices)
    if ended in ("Succeeded", "Failed"):
        offers = (offer for room in rooms if room.node == node for offer in (room.present, room.future) if offer)
        obstacles = (one for offer in offers for one in find_obstacles(needs, offer) if one.kind is Kind.SHARES)
        refusal = next(obstacles, None)
        if refusal and text(raw, "status", "reason") == "UnexpectedAdmissionError":
            return f"the kubelet on {node} rejected this pod: {refusal.text}"
        return f"this pod has {ended.lower()}, so it uses no GPU and will not start again"
    if not asks:
        # A request by the name of a DeviceClass becomes a ResourceClaim only when the pod gets a node.
        if resource_claim_names(raw) or requests_by_class(raw):
            return (
                "this pod requests devices only through ResourceClaims, which are not compared with the GPU pools; see"
                " the scheduler's message and: kubectl get resourceclaims,resourceslices"
            )
        return "this pod requests no GPU resource, so it is not waiting for a GPU pool"
    if node and phase not in ("", Phase.SYNCED):
        return f"this pod is on node {node}, which is {phase}; to see why: kubectl gpusharing why {node}"
    if node:
        return f"this pod is on node {node}{', which the operator is not changing now' if rooms else ''}"
    if not rooms:
        return "it is unknown which nodes have what this pod requests"
    absent = sorted(asks.keys() - {name for room in rooms for name in room.names})
    unknown = [room.node for room in rooms if room.now is None]
    if unknown and not any(room.starts_free or room.lasts for room in rooms):
        meant = "".join(_suggest(rooms, name) for name in absent)
        why = f"because it is unknown what {some(unknown)} can offer it"
        return f"it is unknown whether this pod can start, {why}.{meant}".rstrip(".")
    if absent:
        return (
            f"no node advertises {' or '.join(absent)}, and none will under the existing policies."
            f"{''.join(_suggest(rooms, name) for name in absent)} Request a resource that is advertised, or change a"
            " policy (kubectl gpusharing plan -f FILE shows what that would do)"
        )
    free = [room.node for room in rooms if room.starts_free and room.free is not None]
    unsure = [room.node for room in rooms if room.starts_free and room.free is None]
    nodes = free or unsure or [room.node for room in rooms if room.lasts]
    have = f"{'node' if len(nodes) == 1 else 'each of'} {some(nodes)} has"
    if free:
        return f"{have} enough free for this pod; see the scheduler's message for why it is not placed there"
    if unsure:
        return f"{have} what this pod requests, but it is unknown how much of it other pods hold"
    if nodes:
        return (
            f"{have} everything that this pod requests, or will have it once the changes are done; the OBSTACLE column"
            " shows what is in the way"
        )
    return _explain_shortage(asks, rooms, excluded=any(one.kept for one in services))


def _suggest(rooms: Sequence[NodeRoom], absent: str) -> str:
    """Ask whether another resource was meant, of those that are there after the changes.

    For a MIG profile it is the smallest that is large enough, for any other name the most similar one.
    """
    lasting = [room.now if room.after is None else room.after for room in rooms]
    bare = {name.partition("/")[2]: name for devices in lasting for name in devices or ()}
    word = absent.partition("/")[2]
    sizes = {one: tuple(map(int, size.groups())) for one in (word, *bare) if (size := _PROFILE.match(one))}
    larger = [one for one, size in sizes.items() if all(map(ge, size, sizes.get(word, ()))) and one != word]
    similar = sorted(larger, key=lambda one: sizes[one]) if word in sizes else nearest(word, bare)
    if not similar:
        return ""
    counts = [room.free for room in rooms if bare[similar[0]] in room.names]
    free = sum(one.get(bare[similar[0]], 0) for one in counts if one is not None)
    known = f"{free} {'is' if free == 1 else 'are'} known to be free"
    return f" Did you mean {bare[similar[0]]}? {known if free or None not in counts else 'It is unknown how many are free'}."


def _explain_shortage(asks: Mapping[str, int], rooms: Sequence[NodeRoom], *, excluded: bool) -> str:
    nowhere = "no node that this pod may use" if excluded else "no node"
    most = {name: max(room.most(name) for room in rooms) for name in asks}
    for name, wanted in asks.items():
        if 0 < most[name] < wanted:
            return f"{nowhere} has more than {most[name]} of the {wanted} {name} that this pod requests"
    if all(most.values()) and not any(room.starts_now for room in rooms):
        requests = " and ".join(f"{n} {name}" for name, n in asks.items())
        return f"{nowhere} has everything that this pod requests: {requests}"
    names = ", ".join(asks)
    laters = [room.later for room in rooms if room.later is not None]
    if refusals := sorted({one.text for one in laters if one.kind is Kind.SHARES}):
        return f"kubelets would reject this pod: {'; '.join(refusals)}"
    if refusals := sorted({one.text for one in laters if one.kind is Kind.KAI}):
        return f"this pod cannot start: {'; '.join(refusals)}"
    if excluded:
        return (
            f"no node that this pod may use will advertise {names}: change the rule that excludes it from other nodes,"
            " or request a resource that those nodes advertise"
        )
    return f"no pool will advertise {names} once the changes are done; request a resource that will be advertised then"


# --- in words ------------------------------------------------------------------------------------------------


def describe_pod(answer: PodAnswer, options: PrintOptions) -> list[Line]:
    requests = ", ".join(f"{count} {name}" for name, count in sorted(answer.asks.items()))
    asks = answer.fraction or requests or "no GPU"
    ink = Ink.GOOD if answer.node else Ink.WAITING
    asks = "" if answer.phase == GONE else f"  requests {asks}"
    title = line(Span(answer.pod, Ink.TITLE), "  ", Span(answer.phase, ink), asks)
    lines = [*describe_simulated(answer.simulated, options), *fold(title, options)]
    for whose, message in (("Status", answer.status), ("Scheduler", answer.scheduler)):
        lines += prose(f"{whose}: {message}", options, hang="  ") if message else []
    rows = []
    for one in answer.services:
        counts = ("?" if count is None else str(count) for count in (one.now, one.free, one.after))
        place = one.pool or "no policy", one.node or "-", one.resource
        rows.append(line(*place, *counts, Span(one.but, Ink.WAITING)))
    if rows:
        drawn = table(COLUMNS, rows, options)
        lines += [BLANK, *drawn]
        # A text that was cut off in the table follows below.
        for one, row in zip(answer.services, drawn[len(drawn) - len(rows) :], strict=True):
            if not shows(row, one.but):
                but = f"{one.pool or 'no policy'}: {one.but}"
                lines += prose(but, options, hang="  ", ink=Ink.WAITING)
        partly = {one.pool: one.kept for one in answer.services if one.kept and one.node}
        rules = (f"{pool or 'no policy'}, not on {'; '.join(kept)}" for pool, kept in partly.items())
        lines += prose_of_each(rules, options, ink=Ink.WAITING)
    if answer.others:
        lines += prose(f"Advertised once the changes are done: {', '.join(answer.others)}", options, hang="  ")
    if answer.guard:
        lines += prose(f"Guard: {answer.guard}.", options, hang="  ", ink=Ink.WAITING)
    lines += [BLANK, *prose(answer.conclusion[:1].upper() + answer.conclusion[1:] + ".", options)]
    return lines + prose_of_each((f"Note: {note}" for note in answer.notes), options, ink=Ink.FAINT)
