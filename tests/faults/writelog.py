"""The log of a run: every state that the API server committed, and every write of an operator with its answer.
The states come from watches that go past the fault proxy: the API server delivers every version of an object, in the order of its resourceVersions, which are one counter for all kinds in one etcd. The writes come from the proxy, which knows from which process each came. Nothing here asks a server: a fold over the log is pure."""

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from hack.sim.fakestore import merged

from gpusharing.kube.client import JSON

WATCHED = ("nodes", "pods", "resourceclaims", "resourceslices", "gpusharingpolicies", "gpunodes", "leases")


@dataclass(frozen=True, slots=True)
class State:
    """What one object became at one moment."""

    version: int
    """resourceVersion: the moment."""
    kind: str
    """Plural: `nodes`."""
    name: str
    """With its namespace where it has one: `default/job-1`."""
    after: JSON | None
    """None: it was deleted."""


@dataclass(frozen=True, slots=True)
class LoggedCall:
    """One write that an operator sent and the server answered, whether the operator heard it or not."""

    identity: str
    """Which process: the door of the proxy that only it knows."""
    method: str
    kind: str
    """With its subresource: `pods/eviction`."""
    name: str
    """As in State. Of a POST to a collection the name in its body, empty where the server makes one."""
    status: int
    body: JSON
    since: int
    """The newest resourceVersion that the server had told to anybody when the write was sent."""
    version: int = 0
    """resourceVersion in the answer; 0 where it has none."""

    @property
    def accepted(self) -> bool:
        return self.status < 300

    @property
    def conditional(self) -> bool:
        """The server refuses it where the object is not the one that was read."""
        options = self.body.get("deleteOptions") or self.body
        return bool(options.get("preconditions") or (self.body.get("metadata") or {}).get("resourceVersion"))

    @property
    def what(self) -> str:
        return f"{self.method} {self.kind} {self.name} by {self.identity}"


@dataclass(frozen=True, slots=True)
class Step:
    """One change of one object, and whose it was."""

    version: int
    kind: str
    name: str
    before: JSON | None
    after: JSON | None
    call: LoggedCall | None
    """The operator's write that made it; None when somebody else did."""


@dataclass
class Objects:
    objects: dict[str, dict[str, JSON]] = field(default_factory=lambda: {kind: {} for kind in WATCHED})

    machines: dict[str, tuple[str, str, int]] = field(default_factory=dict)
    """By node its UID, card and number of GPUs as it said when it joined: later labels follow the layout."""
    came: dict[str, int] = field(default_factory=dict)
    """By node the version of its first state under the UID that it has now."""

    def put(self, state: State) -> JSON | None:
        """Take over a state; returns the one before."""
        known = self.objects[state.kind]
        before = known.pop(state.name, None)
        if state.after is None:
            return before
        known[state.name] = state.after
        uid, labels = state.after["metadata"]["uid"], state.after["metadata"].get("labels") or {}
        if state.kind == "nodes" and self.machines.get(state.name, ("",))[0] != uid:
            product, count = labels.get("nvidia.com/gpu.product", ""), labels.get("nvidia.com/gpu.count", "0")
            self.machines[state.name] = (uid, product, int(count))
            self.came[state.name] = state.version
        return before

    def pods_on(self, node: str) -> Iterator[JSON]:
        return (pod for pod in self.objects["pods"].values() if pod["spec"].get("nodeName") == node)

    def slices_of(self, node: str) -> Iterator[JSON]:
        """ResourceSlices that a DRA driver has published for a node."""
        slices = self.objects["resourceslices"].values()
        return (one for one in slices if one["spec"].get("nodeName") == node)


class Leaders:
    """Who held the Lease when, and which process bears which name there."""

    def __init__(self, states: Iterable[State], calls: Iterable[LoggedCall]) -> None:
        """`states` in the order of their versions."""
        leases = [state for state in states if state.kind == "leases"]
        self._versions = [state.version for state in leases]
        self._holders = [_holder(state.after) for state in leases]
        self.names: Mapping[str, str] = {
            call.identity: holder for call in calls if call.kind == "leases" and (holder := _holder(call.body))
        }
        """The holderIdentity under which a process asked for the Lease."""

    def at(self, version: int) -> str:
        """Who held it then; empty: nobody."""
        at = bisect_right(self._versions, version)
        return self._holders[at - 1] if at else ""


@dataclass(frozen=True)
class WriteLog:
    states: tuple[State, ...]
    """By version, those from before the run first: they are the world that it began in."""
    calls: tuple[LoggedCall, ...]
    began: int = 0
    """Up to this version everything is the world before."""
    interrupted: frozenset[str] = frozenset()
    """Processes that were frozen in the middle of a step: what one of them was about to send leaves when it wakes."""

    def steps(self) -> Iterator[tuple[Objects, Step]]:
        """Each change of the run with the objects after it. It is one object that goes on changing."""
        world, authors = Objects(), self._authors()
        for state in self.states:
            before = world.put(state)
            if state.version <= self.began:
                continue
            call = authors.get((state.kind, state.name, state.version))
            if call is not None and not would_change(before, call):
                call = None  # it changed nothing: the server answered with the version that was there
            yield world, Step(state.version, state.kind, state.name, before, state.after, call)

    def sendings(self) -> Iterator[tuple[Objects, LoggedCall]]:
        """Each write with the objects at the moment in which it was sent, and they go on changing."""
        world = Objects()
        states = iter(self.states)
        coming = next(states, None)
        for call in sorted(self.calls, key=lambda one: one.since):
            while coming is not None and coming.version <= call.since:
                world.put(coming)
                coming = next(states, None)
            yield world, call

    def _authors(self) -> dict[tuple[str, str, int], LoggedCall]:
        return {
            (call.kind.split("/")[0], call.name, call.version): call
            for call in self.calls
            if call.accepted and call.version
        }


def would_change(before: JSON | None, call: LoggedCall) -> bool:
    """Whether a merge patch changes anything; every other write does."""
    if before is None or call.method != "PATCH":
        return True
    body = json.loads(json.dumps(call.body))
    metadata = body.get("metadata")
    if isinstance(metadata, dict):
        for key in ("resourceVersion", "uid"):
            metadata.pop(key, None)
    return bool(merged(before, body) != before)


def _holder(lease: JSON | None) -> str:
    return str(((lease or {}).get("spec") or {}).get("holderIdentity") or "")
