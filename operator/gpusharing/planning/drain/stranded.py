"""Which pods could no node run after the changes that need nobody else?

A node counts with its target even while its change is under way, and with the fewer devices of now and then if that
change waits for somebody else (docs/design/drain.md#stranded). Which pod could start on which node, `placement.py` says.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import field, replace
from functools import cached_property

from gpusharing.api.names import LABEL_ISOLATION, LABEL_MODE
from gpusharing.api.times import NEVER
from gpusharing.api.validation import is_rewritten
from gpusharing.planning.drain.placement import Kind, Needs, Offer, could_start, find_obstacles, needs_of
from gpusharing.planning.drain.pods import is_reservation
from gpusharing.planning.snapshot.podviews import PodView
from gpusharing.planning.vocabulary.findings import Blocker, Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value

ADMITTED: Mapping[str, tuple[str, ...]] = {"hardware": ("full", "mig"), "memory": ("full", "mig", "mps")}
"""The values of the routing label that each level of isolation admits.

The chart's admission policies (templates/admission-guard.yaml) follow the same table (docs/how-to/isolate-tenants.md).
In `mig-time-slicing` nothing separates the pods that share one instance.
"""


def find_admitted(namespace_labels: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the routing-label values of the nodes on which a namespace's GPU pods may run.

    None if the namespace has no isolation label; empty if that label's value is not a level, so no GPU pod is admitted.
    """
    level = namespace_labels.get(LABEL_ISOLATION)
    return None if level is None else ADMITTED.get(level, ())


def with_guard(pod: PodView, *, adds: bool = True) -> PodView:
    """Return the pod as the chart's guard for tenants, if it is on, would admit its replacement.

    No node meets the guard's requirement if the isolation label is invalid, or if the guard does not add requirements
    (`adds`) and would refuse the replacement because it lacks one.
    """
    admitted = find_admitted(pod.namespace_labels or {})
    if admitted is None or not pod.resources:
        return pod
    # As the guard's validating policy checks it: the node selector, or each term of the node affinity.
    required = pod.node_selector.get(LABEL_MODE) in admitted or (
        bool(pod.node_terms)
        and all(
            any(key == LABEL_MODE and operator == "In" and {*values} <= {*admitted} for key, operator, values in term)
            for term in pod.node_terms
        )
    )
    row = (LABEL_MODE, "In", admitted if adds or required else ())
    return replace(pod, node_terms=tuple((*term, row) for term in pod.node_terms or ((),)))


def describe_guard(namespace: str, namespace_labels: Mapping[str, str]) -> str:
    """Return a clause about the namespace's isolation label and the modes that it admits. Empty without the label."""
    admitted = find_admitted(namespace_labels)
    if admitted is None:
        return ""
    clause = f"namespace {namespace} has the label {LABEL_ISOLATION}={namespace_labels[LABEL_ISOLATION]}"
    if admitted:
        return f"{clause}, which admits its GPU pods only on nodes in mode {' or '.join(admitted)}"
    return (
        f"{clause}, which is not an isolation level, so none of its GPU pods are admitted: set it to"
        f" {' or '.join(ADMITTED)}"
    )


@value
class FutureNode:
    """One node before and after the planned changes."""

    offer: Offer
    """What it will have for new pods after the changes, as far as no person has to let its own change begin."""
    before: Mapping[str, int]
    """How many devices it advertises now, by resource name; those of `after` once its change has begun."""
    in_use: Mapping[str, int]
    """How many devices its pods hold, by resource name and as far as known, without pods that are being deleted."""
    kept: Mapping[str, int]
    """Those of `in_use` that pods keep through the change, which need not leave for it."""
    open: bool
    """Whether pods can be scheduled on the node after the changes."""
    devices: Mapping[str, str] = field(default_factory=dict)
    """The devices that NVIDIA's DRA driver publishes for the node now (`NodeDevices.names`)."""
    unchanged: Offer | None = None
    """`offer` with the labels that the node has without its change; None if nothing is in the way of the change."""
    planned: Offer | None = None
    """What it will have once its change takes place after all; None if nothing is in the way of the change."""
    wait: Finding | None = None
    """What is in the way of the change; its message is a clause that names the node."""
    held: str = ""
    """The policy whose hold, such as a missing approval, is in the way; empty if it is none."""

    @property
    def node(self) -> str:
        return self.offer.node

    @property
    def after(self) -> Mapping[str, int]:
        return self.offer.devices

    def accepts(self, needs: Needs) -> bool:
        offers = (self.offer,) if self.unchanged is None else (self.offer, self.unchanged)
        return self.open and all(could_start(needs, offer) for offer in offers)

    def once_changed(self) -> "FutureNode":
        """Return the node as it will be if nothing is in the way of its change."""
        return self if self.planned is None else replace(self, offer=self.planned, unchanged=None, planned=None)


@value
class DeviceDemand:
    """How many devices of one resource name running and Pending pods request, and how many there are."""

    requested: int = 0
    remain: int = 0
    """How many devices there will be after the changes. Pods that stay on their node keep their devices."""
    before: int = 0

    @property
    def waiting(self) -> int:
        return max(0, self.requested - self.remain)

    @property
    def text(self) -> str:
        return f"pods request {self.requested}, but only {self.remain} will remain"


@value(eq=False, slots=False)  # no slots, because it has cached properties
class Afterwards:
    """The cluster as it will be when all changes are done that wait for nobody else."""

    find_places: Callable[[], Iterable[FutureNode]]
    """Return all nodes. Called once, when they are first needed."""
    pending: Mapping[str, int] = field(default_factory=dict)
    """How many devices Pending pods without a node request, by resource name."""
    _placed: dict[Needs, bool] = field(default_factory=dict)
    """Whether some node accepts a pod, by the pod's needs."""
    _once: dict[str, "Afterwards"] = field(default_factory=dict)

    @cached_property
    def _places(self) -> Mapping[str, FutureNode]:
        return {place.node: place for place in self.find_places()}

    @cached_property
    def _held(self) -> frozenset[str]:
        return frozenset(place.held for place in self._places.values())

    @cached_property
    def _demands(self) -> Mapping[str, DeviceDemand]:
        requested, remain, before = Counter(self.pending), Counter[str](), Counter[str]()
        for place in self._places.values():
            for name in {*place.in_use, *place.before, *place.after}:
                in_use = place.in_use.get(name, 0)
                kept = place.kept.get(name, 0)
                requested[name] += in_use
                remain[name] += max(kept, place.after.get(name, 0)) if place.open else kept
                before[name] += max(in_use, place.before.get(name, 0)) if place.open else in_use
        return {name: DeviceDemand(requested[name], remain[name], before[name]) for name in {*requested, *before}}

    def once(self, policy: str) -> "Afterwards":
        """Return the cluster as it will be if the hold of this policy, such as a missing approval, ends."""
        if policy not in self._held:
            return self  # in _once it would be a cycle, which only a full collection frees
        if policy not in self._once:
            places = [one.once_changed() if one.held == policy else one for one in self._places.values()]
            self._once[policy] = Afterwards(lambda: places, self.pending)
        return self._once[policy]

    def find_node(self, name: str) -> FutureNode | None:
        return self._places.get(name)

    def find_demand(self, name: str) -> DeviceDemand:
        return self._demands.get(name, DeviceDemand())

    def advertises(self, name: str, *, outside: Container[str]) -> bool:
        """Whether a node that is not one of `outside` will have devices of this name for new pods."""
        return any(node.open and node.after.get(name) for node in self._places.values() if node.node not in outside)

    def find_labels(self) -> frozenset[tuple[str, str]]:
        found = (labels for node in self._places.values() for labels in node.offer.labels)
        return frozenset(pair for labels in found for pair in labels.items())

    def find_stranded(self, node: str, pods: Iterable[PodView]) -> tuple[Blocker, ...]:
        """Return a blocker (STRANDED_PODS) for each pod of `node` that would have to wait after its eviction."""
        own = self.find_node(node)
        own = own.once_changed() if own is not None else None
        devices = own.devices if own is not None else {}
        blockers = []
        for pod in pods:
            held = claimed(devices, pod.devices)
            wants = replace(pod, resources=Counter(pod.resources) + held) if held else pod
            if not is_reservation(pod) and (why := self._explain(wants, own)):
                text, wait = why
                text, until = (text, None) if wait is None else (f"{text} before {wait.message}", wait.until)
                blockers.append(Blocker(Reason.STRANDED_PODS, (pod.ref,), message=text, until=until))
        return tuple(blockers)

    def _find_waiting(self, pod: PodView) -> Finding | None:
        for name, _ in needs_of(pod).devices:
            demand = self.find_demand(name)
            missing = min(demand.requested, demand.before) - demand.remain
            missing = missing if demand.remain else max(1, missing)
            for count, wait in self._waiting.get(name, ()) if missing > 0 else ():
                missing -= count
                if missing <= 0:
                    return wait
        return None

    @cached_property
    def _waiting(self) -> Mapping[str, Sequence[tuple[int, Finding]]]:
        """By resource name: how many more devices each change that waits brings, those first that the clock lets go."""
        found = defaultdict[str, list[tuple[int, Finding]]](list)
        waits = ((one.wait, one) for one in self._places.values() if one.wait is not None)
        for wait, one in sorted(waits, key=lambda row: (row[0].until or NEVER, row[1].node)):
            for name, count in one.planned.devices.items() if one.planned is not None else ():
                if (more := count - one.after.get(name, 0)) > 0:
                    found[name].append((more, wait))
        return found

    def _explain(self, pod: PodView, own: FutureNode | None) -> tuple[str, Finding | None] | None:
        """Return why the pod could not run after the changes, and what the change waits for that would end that.

        If `own` is unknown (None), only a resource that no node would advertise is found.
        """
        needs = needs_of(pod)
        if lost := [name for name, _ in needs.devices if not self.find_demand(name).remain]:
            how = ", a device of which a ResourceClaim of the pod holds" if pod.devices else ""
            if needs.fraction:
                how = ", a fraction of which KAI-Scheduler assigns to the pod"
            return f"No node would advertise {', '.join(lost)}{how}", self._find_waiting(pod)
        if own is None or not needs.devices:
            return None
        if not self._has_place(needs, own) and (broken := _find_broken(pod, needs, own.offer)):
            return broken, None
        # Of what its node loses, more devices would be missing after the changes than without them.
        worse = [
            (name, demand)
            for name, _ in needs.devices
            if own.after.get(name, 0) < max(own.before.get(name, 0), own.in_use.get(name, 0))
            and (demand := self.find_demand(name)).remain < min(demand.requested, demand.before)
        ]
        text = "; ".join(f"{name}: {demand.text}" for name, demand in worse)
        return (text, self._find_waiting(pod)) if worse else None

    def _has_place(self, needs: Needs, own: FutureNode) -> bool:
        if own.accepts(needs):
            return True
        if needs not in self._placed:
            self._placed[needs] = any(node.accepts(needs) for node in self._places.values())
        return self._placed[needs]


def claimed(devices: Mapping[str, str], names: Iterable[str]) -> Counter[str]:
    """Return how many of the named devices there are of each extended resource. Unknown names do not count."""
    return Counter(devices[name] for name in names if name in devices)


def _find_broken(pod: PodView, needs: Needs, own: Offer) -> str:
    """Return a sentence about the first requirement of the pod that the change of its own node leaves unmet.

    Empty if there is none: taints and other labels than those that changes rewrite stay as they are.
    """
    obstacles = tuple(find_obstacles(needs, own))
    unmet = (row for obstacle in obstacles for row in obstacle.unmet)
    if (broken := next((row for row in unmet if is_rewritten(row[0])), None)) is None:
        lasting = (one for one in obstacles if one.kind not in (Kind.LABELS, Kind.TAINT))
        first = next(lasting, None)
        if first is None or first.kind is not Kind.COUNT:
            return f"{first.text[:1].upper()}{first.text[1:]}" if first is not None else ""
        requests = ", ".join(f"{count} {name}" for name, count in needs.devices)
        return f"No node that the pod may run on would advertise {requests}"
    key, operator, values = broken
    guard = describe_guard(pod.namespace, pod.namespace_labels or {}) if key == LABEL_MODE else ""
    if guard and not values:
        lacks = "; the pod does not require that, so its replacement would be refused"
        return f"{guard[:1].upper()}{guard[1:]}{lacks if find_admitted(pod.namespace_labels or {}) else ''}"
    equals = operator == "In" and len(values) == 1
    rule = f"{key}={values[0]}" if equals else " ".join((key, operator, ",".join(values))).rstrip()
    label = own.labels[0].get(key, "absent")
    return "; ".join(filter(None, (f"The pod requires {rule}, but this label will be {label}", guard)))
