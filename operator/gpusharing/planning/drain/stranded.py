"""Which pods could not run after the planned changes: by resource name, by number of devices, and by the labels that a
change rewrites.

Everything here describes the cluster after all planned changes, never a moment in between: a node counts with its
target even while its change is under way (docs/design/drain.md#stranded).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, replace
from functools import cached_property

from gpusharing.api.names import LABEL_MODE
from gpusharing.api.selectors import Row, holds, matches
from gpusharing.api.validation import is_rewritten
from gpusharing.planning.drain.holders import gpu_groups, gpu_resources, is_reservation
from gpusharing.planning.drain.isolation import describe_guard, explain_refusal
from gpusharing.planning.snapshot.podviews import PodView
from gpusharing.planning.vocabulary.blockers import Blocker
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value


@value(eq=False, slots=False)  # no slots, because `labels` is a cached property
class FutureNode:
    """One node before and after the planned changes."""

    node: str
    before: Mapping[str, int]
    """Once its change has begun, these are the counts of `after`."""
    after: Mapping[str, int]
    in_use: Mapping[str, int]
    emptied: bool
    open: bool
    devices: Mapping[str, str] = field(default_factory=dict)
    """The devices that NVIDIA's DRA driver publishes for the node now (`NodeDevices.names`)."""
    find_labels: Callable[[], tuple[Mapping[str, str], ...]] = lambda: ({},)
    """Computes the label sets, which `labels` caches."""

    @cached_property
    def labels(self) -> tuple[Mapping[str, str], ...]:
        """The labels that the node will have, including its name as a field (FIELD)."""
        return self.find_labels()

    def serves(self, pod: PodView) -> bool:
        """Whether the node will advertise at least as many devices of each resource name as the pod asks for."""
        return all(self.after.get(name, 0) >= count for name, count in _wanted(pod).items())

    def accepts(self, pod: PodView) -> bool:
        """Whether the pod could be scheduled on the node after the changes if no other pod were there."""
        terms = pod.node_terms or ((),)
        return (self.open and self.serves(pod)) and any(
            matches(labels, pod.node_selector, term) for labels in self.labels for term in terms
        )


@value
class DeviceDemand:
    """The devices of one resource name: how many of them running and Pending pods request, and how many there are."""

    requested: int = 0
    remain: int = 0
    before: int = 0

    @property
    def waiting(self) -> int:
        """How many of the requested devices will be missing after the changes."""
        return max(0, self.requested - self.remain)

    @property
    def text(self) -> str:
        """The demand and the shortage in words, such as `pods request 6, but only 4 will remain`; also if none will."""
        return f"pods request {self.requested}, but only {self.remain} will remain"


@value(eq=False, slots=False)  # no slots, because it has cached properties
class Afterwards:
    """The cluster as it will be when all planned changes are done."""

    find_places: Callable[[], Iterable[FutureNode]]
    pending: Mapping[str, int] = field(default_factory=dict)
    _placed: dict[object, bool] = field(default_factory=dict)
    """`_has_place` fills this cache."""

    @cached_property
    def _places(self) -> Mapping[str, FutureNode]:
        return {place.node: place for place in self.find_places()}

    @cached_property
    def _demands(self) -> Mapping[str, DeviceDemand]:
        requested, remain, before = Counter(self.pending), Counter[str](), Counter[str]()
        for place in self._places.values():
            for name in {*place.in_use, *place.before, *place.after}:
                in_use = place.in_use.get(name, 0)
                kept_devices = 0 if place.emptied else in_use
                requested[name] += in_use
                remain[name] += max(kept_devices, place.after.get(name, 0)) if place.open else kept_devices
                before[name] += max(in_use, place.before.get(name, 0)) if place.open else in_use
        return {
            name: DeviceDemand(requested[name], remain[name], before[name]) for name in {*requested, *before}
        }

    def find_node(self, name: str) -> FutureNode | None:
        """Return the node with this name, or None if its state after the changes is unknown."""
        return self._places.get(name)

    def find_demand(self, name: str) -> DeviceDemand:
        """Return the demand for devices of this resource name in the whole cluster."""
        return self._demands.get(name, DeviceDemand())

    def find_labels(self) -> frozenset[tuple[str, str]]:
        """Return all labels that any node will have or may have, as pairs of key and value, each pair once."""
        found = (labels for place in self._places.values() for labels in place.labels)
        return frozenset(pair for labels in found for pair in labels.items())

    def find_stranded(self, node: str, pods: Iterable[PodView]) -> tuple[Blocker, ...]:
        """Return a blocker (STRANDED_PODS) for each of these pods of `node`, in their order, that would have to wait after all changes if it were evicted."""
        own = self.find_node(node)
        devices = own.devices if own is not None else {}
        wanting = ((pod, _with_claims(pod, devices)) for pod in pods if not is_reservation(pod))
        found = ((pod, self._explain(wants, own)) for pod, wants in wanting)
        return tuple(Blocker(Reason.STRANDED_PODS, (pod.ref,), message=why) for pod, why in found if why)

    def _explain(self, pod: PodView, own: FutureNode | None) -> str:
        wanted = _wanted(pod)
        if lost := [name for name in wanted if not self.find_demand(name).remain]:
            return f"No node would advertise {', '.join(lost)}{_indirect(pod)}"
        if own is None or not wanted:
            return ""
        if not self._has_place(pod, own) and (broken := _find_broken(pod, own)):
            return broken
        had = {name: max(own.before.get(name, 0), own.in_use.get(name, 0)) for name in wanted}
        fewer = [name for name in wanted if own.after.get(name, 0) < had[name]]
        demands = {name: self.find_demand(name) for name in fewer}
        # More devices would be missing after the changes than without them.
        worse = (pair for pair in demands.items() if pair[1].remain < min(pair[1].requested, pair[1].before))
        return "; ".join(f"{name}: {one.text}" for name, one in worse)

    def _has_place(self, pod: PodView, own: FutureNode) -> bool:
        if own.accepts(pod):
            return True
        needs = tuple(pod.node_selector.items()), pod.node_terms, tuple(pod.resources.items())
        if needs not in self._placed:
            self._placed[needs] = any(place.accepts(pod) for place in self._places.values())
        return self._placed[needs]


def claimed(devices: Mapping[str, str], names: Iterable[str]) -> Counter[str]:
    """Return how many of the devices with these names there are of each extended resource."""
    return Counter(devices[name] for name in names if name in devices)


def _with_claims(pod: PodView, devices: Mapping[str, str]) -> PodView:
    held = claimed(devices, pod.devices)
    return replace(pod, resources=Counter(pod.resources) + held) if held else pod


def _indirect(pod: PodView) -> str:
    if gpu_groups(pod.labels):
        return ", a fraction of which KAI-Scheduler assigns to the pod"
    return ", a device of which a ResourceClaim of the pod holds" if pod.devices else ""


def _wanted(pod: PodView) -> Mapping[str, int]:
    return {name: pod.resources.get(name, 1) for name in gpu_resources(pod)}


def _find_broken(pod: PodView, own: FutureNode) -> str:
    labels = own.labels[0]
    rows: list[Row] = [(key, "In", (wanted,)) for key, wanted in sorted(pod.node_selector.items())]
    if not any(matches(labels, {}, term) for term in pod.node_terms):
        rows += [row for term in pod.node_terms for row in term]
    broken = next((row for row in rows if is_rewritten(row[0]) and not holds(labels, row)), None)
    if broken is not None:
        return _explain_row(pod, broken, labels.get(broken[0], "absent"))
    if own.serves(pod):
        return ""
    requested = ", ".join(f"{count} {name}" for name, count in _wanted(pod).items())
    return f"No node that the pod may run on would advertise {requested}"


def _explain_row(pod: PodView, row: Row, label: str) -> str:
    key, operator, values = row
    guard = describe_guard(pod.namespace, pod.namespace_labels or {}) if key == LABEL_MODE else ""
    if guard and not values:
        return explain_refusal(pod.namespace, pod.namespace_labels or {})
    equals = operator == "In" and len(values) == 1
    rule = f"{key}={values[0]}" if equals else " ".join((key, operator, ",".join(values))).rstrip()
    return "; ".join(filter(None, (f"The pod requires {rule}, but this label will be {label}", guard)))
