"""What GPUSharingPolicies and GPUNodes say, as raw JSON makes it: no models, for a thousand nodes are read in a moment.

Everything here was written by the operator. A field that an older or newer one does not write is empty, and a phase
that is not known here is shown as it comes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from typing import Any

from gpusharing.api.gpunode import Transition
from gpusharing.api.names import Phase
from gpusharing.api.policystatus import Summary
from gpusharing.api.records import from_wire
from gpusharing.api.times import from_rfc3339
from gpusharing.cli.shell.drawing import Glyph, Ink
from gpusharing.kube.client import JSON
from gpusharing.kube.raw import entries, part, section, text, whole


class State(Enum):
    """How a node stands, in one word; in the order in which a bar shows them."""

    DONE = Glyph("█", "#", Ink.GOOD, "done")
    MOVES = Glyph("▒", ">", Ink.BUSY, "under way")
    WAITS = Glyph("░", ".", Ink.WAITING, "to go")
    BLOCKED = Glyph("!", "!", Ink.BAD, "blocked")
    FAILED = Glyph("x", "x", Ink.BAD, "failed")


_STATES = {Phase.SYNCED: State.DONE, Phase.BLOCKED: State.BLOCKED, Phase.SKIPPED: State.BLOCKED}
_PHASES: Mapping[str, Phase] = {str(phase): phase for phase in Phase}


def known_phase(word: str) -> Phase | None:
    """Return the phase of this name, or None if this version does not know it because another version of the operator
    gave it."""
    return _PHASES.get(word)


def state_of(word: str) -> State:
    """How a node in this phase stands."""
    phase = known_phase(word)
    if phase is Phase.FAILED:
        return State.FAILED
    if phase is not None and phase.in_flight:
        return State.MOVES
    return _STATES.get(phase, State.WAITS) if phase is not None else State.WAITS


@dataclass(frozen=True, slots=True)
class Seen(Transition):
    """One GPUNode as people see it: its transition, and what its agent and its condition say. The phase is empty until
    the operator has looked at the node."""

    name: str = ""
    """Name of the node."""
    gpus: int = 0
    """How many GPUs its agent reports."""
    pods: int | None = None
    """Pods that hold a GPU; None: unknown."""
    unhealthy: str = ""
    """What the condition Healthy says where it is False; empty: nothing is known to be wrong."""
    simulated: bool = False
    """Its agent says that the GPUs are SIMULATED."""

    @property
    def entered(self) -> datetime | None:
        """When the phase began; None: unknown."""
        return from_rfc3339(self.since)

    @property
    def state(self) -> State:
        """How it stands."""
        return state_of(self.phase)


@dataclass(frozen=True, slots=True)
class PoolStatus(Summary):
    """One policy as people see it: its summary, and the nodes that it owns. The status is empty until the operator has
    looked at the policy."""

    name: str = ""
    """Name of the policy."""
    unseen: int = 0
    """The generation that the operator has not looked at yet; 0: it has."""
    members: tuple[Seen, ...] = ()
    """Its nodes, by name."""
    plan: Mapping[str, Any] = field(default_factory=dict)
    """`status.plan`; empty: there is none."""
    paused: bool = False
    """Whether `rollout.paused` is true."""
    max_unavailable: str = ""
    """`rollout.maxUnavailable` as written."""

    @property
    def changing(self) -> tuple[Seen, ...]:
        """Those that are not as wanted yet, the ones that need a person first."""
        order = (State.FAILED, State.BLOCKED, State.MOVES, State.WAITS)
        return tuple(
            sorted((m for m in self.members if m.state in order), key=lambda m: order.index(m.state))
        )


def read_pools(
    policies: Iterable[JSON], gpunodes: Iterable[JSON]
) -> tuple[tuple[PoolStatus, ...], tuple[Seen, ...]]:
    """The pools by name, and the GPU nodes without an existing policy."""
    by_policy: dict[str, list[Seen]] = {}
    for raw in gpunodes:
        seen = read_node(raw)
        by_policy.setdefault(seen.policy, []).append(seen)
    pools = tuple(_pool(raw, by_policy) for raw in policies)
    names = {pool.name for pool in pools}
    loose = [seen for policy, nodes in by_policy.items() if policy not in names for seen in nodes]
    return pools, tuple(sorted(loose, key=lambda seen: seen.name))


def _pool(raw: JSON, nodes: Mapping[str, list[Seen]]) -> PoolStatus:
    name, status = text(raw, "metadata", "name"), section(raw, "status")
    generation = whole(raw, "metadata", "generation")
    limit = part(raw, "spec", "rollout", "maxUnavailable")
    summary = from_wire(PoolStatus, section(status, "summary"))
    return replace(
        summary,
        name=name,
        mode=summary.mode or text(raw, "spec", "mode"),
        unseen=generation if whole(status, "observedGeneration") < generation else 0,
        members=tuple(sorted(nodes.get(name, ()), key=lambda seen: seen.name)),
        plan=section(status, "plan"),
        paused=part(raw, "spec", "rollout", "paused") is True,
        max_unavailable="" if limit is None else str(limit),
    )


def read_node(raw: JSON) -> Seen:
    """One GPUNode."""
    observed = section(raw, "status", "observed")
    healthy = next((row for row in entries(raw, "status", "conditions") if row.get("type") == "Healthy"), {})
    beside = {
        "name": text(raw, "metadata", "name"),
        "gpus": len(entries(observed, "gpus")),
        "pods": observed.get("pods"),
        "unhealthy": text(healthy, "message") if healthy.get("status") == "False" else "",
        "simulated": observed.get("simulated"),
    }
    return from_wire(Seen, section(raw, "status", "transition") | beside)


def simulated_nodes(pools: Iterable[PoolStatus], loose: Iterable[Seen]) -> list[str]:
    """Names of those whose GPUs are SIMULATED, of these pools and of the nodes of none."""
    every = (*loose, *(seen for pool in pools for seen in pool.members))
    return sorted(seen.name for seen in every if seen.simulated)
