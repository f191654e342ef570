"""What is the state of the pools?

The operator published all of it. GPUSharingPolicies and GPUNodes are read from raw JSON without pydantic models, so
that a thousand nodes are read in a moment. A field that is missing, because an older or newer version wrote the object,
is empty; an unknown phase is shown as it is.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from typing import Any

from gpusharing.api.gpunode import Transition
from gpusharing.api.names import Phase, WaitingFor
from gpusharing.api.nearest import nearest
from gpusharing.api.policystatus import Summary
from gpusharing.api.records import from_wire
from gpusharing.api.times import from_rfc3339
from gpusharing.kube.client import JSON, POLICIES
from gpusharing.kube.raw import entries, has_condition, part, section, text, whole
from gpusharing.planning.gpus.cards import find_memory
from gpusharing.planning.vocabulary.lengths import counted
from kubectl_gpusharing.shell.arguments import Arguments
from kubectl_gpusharing.shell.drawing import Glyph, Ink
from kubectl_gpusharing.shell.session import no_such
from kubectl_gpusharing.shell.troubles import Trouble


class State(Enum):
    """The state of a node in one word, in the order of the cells in a bar."""

    DONE = Glyph("█", "#", Ink.GOOD, "done")
    MOVES = Glyph("▒", ">", Ink.BUSY, "under way")
    WAITS = Glyph("░", ".", Ink.WAITING, "to go")
    BLOCKED = Glyph("!", "!", Ink.BAD, "blocked")
    FAILED = Glyph("x", "x", Ink.BAD, "failed")


URGENCY = (State.FAILED, State.BLOCKED, State.MOVES, State.WAITS, State.DONE)
Known = Sequence[Sequence[JSON]]
"""The policies, the GPUNodes and, if they are shown, the Events."""
NOT_SEEN = (
    "The operator has not processed generation {} of this policy yet. If this persists, check that the operator is"
    " running."
)
_STATES: Mapping[str, State] = {
    **{phase: State.MOVES for phase in Phase if phase.in_flight},
    Phase.SYNCED: State.DONE,
    Phase.BLOCKED: State.BLOCKED,
    Phase.SKIPPED: State.BLOCKED,
    Phase.FAILED: State.FAILED,
}


def state_of(word: str) -> State:
    return _STATES.get(word, State.WAITS)


@dataclass(frozen=True, slots=True)
class NodeStatus(Transition):
    """One GPUNode: its transition, and what its agent and its conditions report."""

    name: str = ""
    pods: int | None = None
    gpus: int | None = None
    """None before its agent has reported."""
    unhealthy: str = ""
    """The message of the condition Healthy if it is False."""
    simulated: bool = False

    @property
    def entered(self) -> datetime | None:
        return from_rfc3339(self.since)

    @property
    def state(self) -> State:
        return state_of(self.phase)

    @property
    def phases(self) -> list[tuple[datetime, str, str]]:
        """When the node entered each phase of its history, the phase, and the reason; the oldest first."""
        found = []
        for entry in self.history:
            at, _, rest = entry.partition(" ")
            phase, _, reason = rest.partition(" ")
            if (moment := from_rfc3339(at)) is not None:
                found.append((moment, phase, reason))
        return found


@dataclass(frozen=True, slots=True)
class PoolStatus(Summary):
    """One policy: its summary, and the nodes that it owns."""

    name: str = ""
    gpus: int | None = None  # type: ignore[assignment]  # unknown before the operator has published a summary
    pending_pods: int | None = None  # type: ignore[assignment]  # likewise
    unseen: int = 0
    """The generation of the policy, if the operator has not processed it yet."""
    members: tuple[NodeStatus, ...] = ()
    plan: Mapping[str, Any] = field(default_factory=dict)
    paused: bool = False
    stalled: bool = False
    """Whether a person has to act, by its condition."""
    events: tuple[JSON, ...] | None = None
    """The Events about the policy, the oldest first; None if they were not read."""

    @property
    def state(self) -> State:
        """The most urgent state of its nodes (URGENCY), but at least BLOCKED if a node waits for a person."""
        states = {node.state for node in self.members}
        if self.stalled or any(node.waiting_for == WaitingFor.PERSON for node in self.members):
            states.add(State.BLOCKED)
        if states <= {State.DONE} and (self.status != "Synced" or self.unseen):
            goes_on = self.unseen or self.status in ("", "Deleting", *Phase)
            states.add(State.WAITS if goes_on else State.BLOCKED)
        return min(states, key=URGENCY.index, default=State.DONE)

    @property
    def memory_gb(self) -> int | None:
        """The memory of its GPUs together; None if unknown, as with cards of several sizes."""
        products = filter(None, self.product.split(", "))
        sizes = {find_memory({product: self.gpus or 0}) for product in products}
        return sizes.pop() if len(sizes) == 1 else None

    @property
    def news(self) -> str:
        """The most urgent sentence about the pool; empty if it is as its policy wants it."""
        return NOT_SEEN.format(self.unseen) if self.unseen else self.message if self.status != "Synced" else ""

    @property
    def changing(self) -> tuple[NodeStatus, ...]:
        """The nodes that are not done, or wait for a person, by urgency."""
        shown = (node for node in self.members if node.state is not State.DONE or node.waiting_for == WaitingFor.PERSON)
        return tuple(sorted(shown, key=lambda node: URGENCY.index(node.state)))


Pools = Sequence[PoolStatus]


def tell_gpus(count: int, memory_gb: int | None) -> str:
    return f"{counted(count, 'GPU')}{f' with {memory_gb} GB of memory' if memory_gb else ''}"


def tell_extent(plan: Mapping[str, Any]) -> str:
    """Return how many nodes a plan in a policy's status changes, and how many pods it evicts."""
    nodes, pods = plan.get("nodeCount"), plan.get("pods")
    change = f"up to {counted(nodes, 'node')}" if nodes else "an unknown number of nodes"
    evicted = "an unknown number of pods" if pods is None else f"up to {counted(pods, 'pod')}"
    return f"{change} will change and {evicted} be evicted"


def read_pools(
    policies: Iterable[JSON], nodes: Iterable[NodeStatus], events: Iterable[JSON] | None = None
) -> tuple[tuple[PoolStatus, ...], tuple[NodeStatus, ...]]:
    """Return a pool for each policy, the most urgent first, and the nodes that belong to none, sorted by name."""
    by_name = sorted(nodes, key=lambda node: node.name)
    members: dict[str, list[NodeStatus]] = {}
    for node in by_name:
        members.setdefault(node.policy, []).append(node)
    ordered = None if events is None else sorted(events, key=lambda event: text(event, "eventTime"))
    pools: list[PoolStatus] = []
    for raw in policies:
        name, status = text(raw, "metadata", "name"), section(raw, "status")
        generation = whole(raw, "metadata", "generation")
        published = section(status, "summary")
        summary = from_wire(PoolStatus, ({"gpus": 0, "pendingPods": 0} | published) if published else {})
        about = (event for event in ordered or () if text(event, "regarding", "name") == name)
        pool = replace(
            summary,
            name=name,
            mode=summary.mode or text(raw, "spec", "mode"),
            unseen=generation if whole(status, "observedGeneration") < generation else 0,
            members=tuple(members.get(name, ())),
            plan=section(status, "plan"),
            paused=part(raw, "spec", "rollout", "paused") is True,
            stalled=has_condition(raw, "Stalled"),
            events=None if ordered is None else tuple(about),
        )
        pools.append(pool)
    pools.sort(key=lambda pool: URGENCY.index(pool.state))
    unowned = members.keys() - {pool.name for pool in pools}
    return tuple(pools), tuple(node for node in by_name if node.policy in unowned)


def read_node(raw: JSON) -> NodeStatus:
    observed = section(raw, "status", "observed")
    healthy = next((row for row in entries(raw, "status", "conditions") if row.get("type") == "Healthy"), {})
    more = {
        "name": text(raw, "metadata", "name"),
        "pods": observed.get("pods"),
        "gpus": len(entries(observed, "gpus")) if observed else None,
        "unhealthy": text(healthy, "message") if healthy.get("status") == "False" else "",
        "simulated": observed.get("simulated"),
    }
    return from_wire(NodeStatus, section(raw, "status", "transition") | more)


def simulated_nodes(pools: Iterable[PoolStatus], unowned: Iterable[NodeStatus]) -> list[str]:
    every = (*unowned, *(node for pool in pools for node in pool.members))
    return sorted(node.name for node in every if node.simulated)


def choose(
    typed: Arguments, where: str, policies: Iterable[JSON], nodes: Iterable[NodeStatus], events: Known = ()
) -> tuple[Pools, Sequence[NodeStatus]]:
    """Return the pools that the user named by themselves or by a node, or all, and the nodes without a policy.

    Raises Trouble, which has all names that are wrong.
    """
    if typed.policies and typed.selector:
        raise Trouble("pass either names of policies or -l LABELS, not both")
    pools, unowned = read_pools(policies, nodes, *events)
    if not typed.policies:
        return pools, () if typed.selector else unowned
    names, by_name = dict.fromkeys(typed.policies), {pool.name: pool for pool in pools}
    wrong: list[str] = []
    owners = {node.name: pool for pool in pools for node in pool.members}
    bare = [node for node in unowned if node.name in names]
    chosen: dict[str, PoolStatus] = {}
    for name in names:
        found = [pool for pool in (by_name.get(name), owners.get(name)) if pool is not None]
        for pool in found:
            members = tuple(node for node in pool.members if pool.name in names or node.name in names)
            chosen[pool.name] = replace(pool, members=members)
        if not found and name not in {node.name for node in bare}:
            wrong.append(no_such(POLICIES, name, [*by_name, *nearest(name, owners)], where))
    if wrong:
        raise Trouble("; ".join(wrong))
    return [*chosen.values()], bare


def lists_nodes(typed: Arguments, pools: Pools, unowned: Iterable[NodeStatus]) -> bool:
    """Whether the user named a node, so that pools may have only some of their nodes."""
    return any(node.name in typed.policies for node in (*unowned, *(node for pool in pools for node in pool.members)))


def find_pool(pools: Pools, name: str, where: str) -> PoolStatus:
    named = {pool.name: pool for pool in pools}
    if name not in named:
        raise Trouble(no_such(POLICIES, name, list(named), where))
    return named[name]
