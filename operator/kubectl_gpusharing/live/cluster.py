"""A live snapshot of a cluster, gathered by the operator's own code with the user's own rights.

Nothing is written: all calls go through a client that raises an error for every write (`Onlooker`).
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from gpusharing.kube.client import GPUNODES, JSON
from gpusharing.kube.clock import wall_time
from gpusharing.kube.crew import Crew
from gpusharing.kube.errors import Forbidden, NotFound, one_error
from gpusharing.kube.gather import Gatherer
from gpusharing.kube.sources import Sources
from gpusharing.planning.report.proposal import configured
from gpusharing.planning.rollout import RolloutPlan, plan_rollout
from gpusharing.planning.snapshot.looks import PassMemory
from gpusharing.planning.snapshot.records import Claim
from gpusharing.planning.snapshot.views import ClusterSnapshot
from kubectl_gpusharing.live.installed import InstalledOperator, read_installed
from kubectl_gpusharing.live.onlooker import Onlooker
from kubectl_gpusharing.shell.drawing import length
from kubectl_gpusharing.shell.session import Session
from kubectl_gpusharing.shell.troubles import INSTALL, Denied, Trouble, error_text, explained

MAX_LISTED = 100
"""How many nodes at most have their pods listed, because each takes a call."""
PATIENCE = 30.0
"""Seconds within which all sources must be listed."""
CHECKED_EVERY = 0.02
MARKERS = ("medik8s nodemaintenances", "nvidia nodemaintenances")
"""The names of sources without which a plan is less precise but not wrong."""


@dataclass(frozen=True, slots=True)
class LivePlan:
    plan: RolloutPlan
    snapshot: ClusterSnapshot
    now: datetime
    notes: tuple[str, ...]
    """What could not be read or is uncertain."""

    def simulated(self, nodes: Iterable[str] | None = None) -> tuple[str, ...]:
        """Return which of `nodes`, or of all nodes if None, have SIMULATED GPUs."""
        reports = self.snapshot.gpunodes
        known = (reports[name] for name in (reports if nodes is None else nodes) if name in reports)
        return tuple(sorted(one.name for one in known if one.observed is not None and one.observed.simulated))


@dataclass(slots=True)
class Cluster:
    """A cluster that is followed while the context of `gathered` is open."""

    gatherer: Gatherer
    installed: InstalledOperator
    """It may be `missing` even without `beforehand`, and policies and reports that it left behind are then still read."""
    notes: list[str]
    now: Callable[[], datetime] = wall_time
    foresee: Callable[[ClusterSnapshot], ClusterSnapshot] = lambda snapshot: snapshot
    """Changes each snapshot so that it shows the cluster for which the plan is made."""
    memory: PassMemory = field(default_factory=PassMemory)

    async def decide(self, policies: Iterable[str] | None = None, nodes: Iterable[str] = ()) -> LivePlan:
        """Return the plan of a leader that has been running for longer than the drift grace.

        The pods are listed on `nodes` and on those that a policy in `policies` (all if None) would cordon. A leader
        first writes the configuration and cordons later; the plan is for the time after the write, with a note.
        """
        now, only = self.now(), None if policies is None else frozenset(policies)
        snapshot = await self._snapshot(frozenset(nodes), now)
        plan = plan_rollout(snapshot, now)
        # This process sees each drift for the first time; a leader would have seen it for longer than the grace.
        grace = timedelta(seconds=snapshot.settings.drift_grace)
        since = {name: min(moment, now - grace) for name, moment in plan.memory.drifting_since.items()}
        self.memory = PassMemory(drifting_since=since)
        wanted = [
            verdict.node
            for verdict in plan.verdicts.values()
            if verdict.disruption.cordons and (only is None or verdict.policy in only)
        ]
        notes = list(self.notes)
        if len(wanted) > MAX_LISTED:
            notes.append(
                f"{len(wanted)} nodes will change, but only the pods of the first {MAX_LISTED} were counted"
            )
        snapshot = await self._snapshot(frozenset([*wanted[:MAX_LISTED], *nodes]), now)
        plan = plan_rollout(snapshot, now)
        wait = timedelta(seconds=snapshot.settings.config_propagation)
        if wanted and (later := configured(snapshot, plan, now - wait)) is not None:
            notes.append(
                f"the operator writes the configuration first; the first node starts to change {length(wait)} later"
            )
            snapshot, plan = later, plan_rollout(later, now)
        return LivePlan(plan, snapshot, now, tuple(notes))

    async def _snapshot(self, wanted: frozenset[str], now: datetime) -> ClusterSnapshot:
        claims, failed_nodes = self.installed.claims, self.installed.failed_nodes
        with one_error():
            snapshot = await self.gatherer.snapshot(wanted, self.memory, claims, failed_nodes, now)
        if not claims:
            claims = {
                name: Claim.of(node.uid, node.fence)
                for name, node in snapshot.nodes.items()
                if node.fence is not None
            }
            snapshot = replace(snapshot, claims=claims)
        return self.foresee(snapshot)


@asynccontextmanager
async def gathered(
    session: Session, proposed: tuple[JSON, ...] = (), *, beforehand: bool = False
) -> AsyncIterator[Cluster]:
    """Yield the cluster as it would be with the proposed policies applied. Raises Trouble, or Denied if a right is missing.

    With `beforehand`, the operator need not be installed.
    """
    with explained(session.where), one_error():
        installed = await read_installed(session.client)
        missing = beforehand and installed.missing
        # A user without a right to a kind gets Forbidden even if it is not served; discovery tells whether it is.
        bare = missing and not await session.client.served(GPUNODES)
        client = Onlooker(session.client, proposed, beforehand=bare)
        sources = Sources(client, installed.settings, lambda: None)
        gatherer = Gatherer(client, sources, crew=Crew(8), silent=True)
        async with asyncio.TaskGroup() as group:
            following = group.create_task(sources.run())
            try:
                notes = [*installed.notes, *await _listed(sources, session.where, missing=missing, bare=bare)]
                try:
                    await gatherer.pending.count()
                except Forbidden as error:
                    notes.append(f"pods that are waiting for a GPU were not counted: {error_text(error)}")
                yield Cluster(gatherer, installed, notes, session.now)
            finally:
                following.cancel()
                await gatherer.close()


async def _listed(sources: Sources, where: str, *, missing: bool, bare: bool) -> list[str]:
    every = {**sources.required, **sources.optional}
    try:
        async with asyncio.timeout(PATIENCE):
            while not all(  # noqa: ASYNC110 - an error sets no event
                one.synced.is_set() or isinstance(one.error, Forbidden | NotFound) for one in every.values()
            ):
                await asyncio.sleep(CHECKED_EVERY)
    except TimeoutError:
        why = "; ".join(f"{name}: {text}" for name, text in sorted(sources.missing().items()))
        raise Trouble(f"{where} could not be read within {PATIENCE:g} s: {why}") from None
    if not missing and isinstance(sources.gpunodes.error, NotFound):
        raise Trouble(
            f"{where} has no gpunodes.gpusharing.dev, so the operator is not installed. To install: {INSTALL}"
        )
    if bare:
        del every["gpunodes"]
    refused = {name: one.error for name, one in every.items() if isinstance(one.error, Forbidden)}
    needed = [error_text(error) for name, error in refused.items() if name not in MARKERS]
    if needed:
        roles = "the permissions named here" if missing else "the gpusharing-planner ClusterRole"
        raise Denied(
            f"you lack permissions in {where} that a plan requires. Ask for the view ClusterRole in all namespaces and"
            f" for {roles}: {'; '.join(needed)}"
        )
    return [f"{name} were not read: {error_text(error)}" for name, error in refused.items()]
