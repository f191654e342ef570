"""Which pods could not run after the planned changes: by resource name, by number of devices, and by the labels that a
change rewrites.

Everything here is about the end of all planned changes, never about a moment in between: a node counts with what it is
to become, also while its change is under way (docs/design/drain.md#stranded).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from functools import cached_property

from gpusharing.api.selectors import Row, holds, matches
from gpusharing.api.validation import is_rewritten
from gpusharing.planning.drain.holders import gpu_groups, gpu_resources, is_reservation
from gpusharing.planning.snapshot.podviews import PodView
from gpusharing.planning.vocabulary.blockers import Blocker
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value


@value(eq=False, slots=False)  # without slots, for labels, which are worked out when somebody asks
class FutureNode:
    """One node, before and after the planned changes."""

    node: str
    """Name of the node."""
    before: Mapping[str, int]
    """Devices that it advertises, by resource name. Once its change has begun, these are those of `after`."""
    after: Mapping[str, int]
    """Devices that it will advertise."""
    in_use: Mapping[str, int]
    """Devices that the pods of the node hold, as far as known; a pod that is being deleted no longer counts."""
    emptied: bool
    """Whether the pods of the node have to leave for the change. Otherwise they keep their devices."""
    open: bool
    """Whether pods can be scheduled there afterwards."""
    find_labels: Callable[[], tuple[Mapping[str, str], ...]] = lambda: ({},)
    """Returns the label sets that `labels` caches."""

    @cached_property
    def labels(self) -> tuple[Mapping[str, str], ...]:
        """The labels of the node afterwards, with its name as a field (FIELD). If there are several sets, the node
        will have one of them, and it is unknown which."""
        return self.find_labels()

    def serves(self, pod: PodView) -> bool:
        """Whether the node will advertise at least as many devices as the pod asks for, of every name."""
        return all(self.after.get(name, 0) >= count for name, count in _wanted(pod).items())

    def accepts(self, pod: PodView) -> bool:
        """Whether the pod could be scheduled on the node afterwards if no other pod were there: by its devices, its
        node selector and its node affinity."""
        terms = pod.node_terms or ((),)
        return (self.open and self.serves(pod)) and any(
            matches(labels, pod.node_selector, term) for labels in self.labels for term in terms
        )


@value
class DeviceDemand:
    """How many devices of one resource name pods ask for, running or Pending, and how many there are for them."""

    requested: int = 0
    """Devices that pods ask for."""
    remain: int = 0
    """Devices that there will be. Pods that stay bound keep theirs."""
    before: int = 0
    """Devices that there are now."""

    @property
    def waiting(self) -> int:
        """How many of the requested devices there will not be."""
        return max(0, self.requested - self.remain)

    @property
    def worsens(self) -> bool:
        """Whether pods will wait for more devices than they would without the changes."""
        return self.remain < min(self.requested, self.before)

    @property
    def text(self) -> str:
        """The demand and the shortage in words, for people."""
        return f"{self.requested} ask, {self.remain} remain: {self.waiting} will wait"


@value(eq=False, slots=False)  # without slots, for what is worked out when somebody asks
class Afterwards:
    """The cluster when all planned changes are done."""

    find_places: Callable[[], Iterable[FutureNode]]
    """Returns all nodes."""
    pending: Mapping[str, int] = field(default_factory=dict)
    """By resource name: devices that Pending pods without a node ask for."""
    _placed: dict[object, bool] = field(default_factory=dict)
    """Whether some node takes pods with these requirements, as far as asked."""

    @cached_property
    def _places(self) -> Mapping[str, FutureNode]:
        """All nodes by name."""
        return {place.node: place for place in self.find_places()}

    @cached_property
    def _demands(self) -> Mapping[str, DeviceDemand]:
        """The demand by resource name, over all nodes. A node to which no pod can be scheduled offers only the devices
        that its pods keep."""
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
        """Return the node of this name, or None if it is unknown what becomes of it."""
        return self._places.get(name)

    def find_demand(self, name: str) -> DeviceDemand:
        """Return the demand for devices of this resource name in the whole cluster; all zero if nobody uses it."""
        return self._demands.get(name, DeviceDemand())

    def find_labels(self) -> frozenset[tuple[str, str]]:
        """Return all labels that nodes will have, as pairs of key and value."""
        found = (labels for place in self._places.values() for labels in place.labels)
        return frozenset(pair for labels in found for pair in labels.items())

    def find_stranded(self, node: str, pods: Iterable[PodView]) -> tuple[Blocker, ...]:
        """Return a blocker for each of these pods of `node` that, once evicted, would still wait when all changes are
        done. KAI's reservation pods get none."""
        own = self.find_node(node)
        found = ((pod, self._explain(pod, own)) for pod in pods if not is_reservation(pod))
        return tuple(Blocker(Reason.STRANDED_PODS, (pod.ref,), message=why) for pod, why in found if why)

    def _explain(self, pod: PodView, own: FutureNode | None) -> str:
        """Return why the pod would wait afterwards once it has left its `own` node; empty if it would not. Without
        that node, only a resource name that no node would advertise is found."""
        wanted = _wanted(pod)
        if lost := [name for name in wanted if not self.find_demand(name).remain]:
            of_kai = ", of which KAI-Scheduler gives it a fraction" if gpu_groups(pod.labels) else ""
            return f"No node would offer {', '.join(lost)}{of_kai}"
        if own is None or not wanted:
            return ""
        if not self._has_place(pod, own) and (broken := _find_broken(pod, own)):
            return broken
        had = {name: max(own.before.get(name, 0), own.in_use.get(name, 0)) for name in wanted}
        fewer = [name for name in wanted if own.after.get(name, 0) < had[name]]
        demands = {name: self.find_demand(name) for name in fewer}
        return "; ".join(f"{name}: {one.text}" for name, one in demands.items() if one.worsens)

    def _has_place(self, pod: PodView, own: FutureNode) -> bool:
        """Whether the pod's own node, or any other, takes it if no other pod is there. Remembers the answer."""
        if own.accepts(pod):
            return True
        needs = tuple(pod.node_selector.items()), pod.node_terms, tuple(pod.resources.items())
        if needs not in self._placed:
            self._placed[needs] = any(place.accepts(pod) for place in self._places.values())
        return self._placed[needs]


def _wanted(pod: PodView) -> Mapping[str, int]:
    """Return the devices that one node must have for the pod. A fraction from KAI-Scheduler counts as one GPU."""
    return {name: pod.resources.get(name, 1) for name in gpu_resources(pod)}


def _find_broken(pod: PodView, own: FutureNode) -> str:
    """Return the first requirement of the pod that its own node will not meet, in words; empty if it will meet all.
    Only requirements about labels that our changes rewrite, and about devices, are considered."""
    labels = own.labels[0]
    rows: list[Row] = [(key, "In", (wanted,)) for key, wanted in sorted(pod.node_selector.items())]
    if not any(matches(labels, {}, term) for term in pod.node_terms):
        rows += [row for term in pod.node_terms for row in term]
    broken = next((row for row in rows if is_rewritten(row[0]) and not holds(labels, row)), None)
    if broken is not None:
        key, operator, values = broken
        equals = operator == "In" and len(values) == 1
        rule = f"{key}={values[0]}" if equals else " ".join((key, operator, ",".join(values))).rstrip()
        return f"It requires {rule}, and this label will be {labels.get(key, 'absent')}"
    if own.serves(pod):
        return ""
    requested = ", ".join(f"{count} {name}" for name, count in _wanted(pod).items())
    return f"No node that it may run on would offer {requested}"
