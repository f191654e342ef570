"""Carry out a plan: one API call per action, with preconditions on every write that follows a check.

A failed call ends the actions of its node for this pass. The node waits, and the failure is shown if it lasts. Only a
lost Lease, lost credentials or a server that is away end the pass itself. A pass does not wait for a slow call: the
node is left alone until the call has ended. Only the newest plan is carried out, and only while it is fresh
(docs/design/transition.md#newest-plan). The cache takes the object that the server returns, never what we meant to
write (docs/design/faults.md#d12).
"""

import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Set
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from itertools import groupby
from typing import assert_never

import structlog

from gpusharing.api import names
from gpusharing.controller.complaints import Complaints
from gpusharing.controller.evict import Evictor
from gpusharing.controller.nodewrites import NodeWrites
from gpusharing.controller.sharedwrites import SharedWrites, subject_of
from gpusharing.kube.callmemory import CallMemory
from gpusharing.kube.client import JSON, ApiRequest, KubeClient, PassingClient
from gpusharing.kube.clock import loop_time
from gpusharing.kube.errors import REFUSALS, CallFailed, HeldBack, ServerAway, Unauthorized, Unavailable, Undone
from gpusharing.kube.fanout import Workers
from gpusharing.kube.fence import NodePatch
from gpusharing.kube.lease import LeaseLost
from gpusharing.kube.sources import Sources
from gpusharing.planning.drain.evictions import FIRST_WAIT
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.actions import (
    Action,
    Actuate,
    ClearRequests,
    EnsureGPUNode,
    Evict,
    FenceNode,
    ForceDelete,
    LabelNode,
    Release,
    RepairMps,
    RestartOperand,
    SetClaims,
    SetFinalizer,
    SetPointers,
    UpdateFence,
    WriteClasses,
    WriteConfig,
    WriteRules,
)
from gpusharing.planning.snapshot.memory import CLAIMS, failed_again
from gpusharing.planning.snapshot.records import Claim, Consent, FailedNode
from gpusharing.planning.snapshot.views import ClusterSnapshot
from gpusharing.planning.transition.cases import is_moot
from gpusharing.planning.transition.verdict import Verdict

log = structlog.get_logger()

PLAN_VALID = 10.0
"""Seconds for which a plan is carried out on nodes. After that its idle proofs and its view of the pods are too old."""
SHARED_PATIENCE = 6.0
"""Seconds for which a pass waits for shared writes of one kind; a write of claims gives up after five.

If a pass waited for less, no node would ever start on a server that takes longer for each call."""
SHARED_AT_ONCE = 4
"""Shared writes of one kind under way at most: half of all calls (`Limits`), so that hung ones leave room."""
FATAL = (Unauthorized, ServerAway, LeaseLost)
"""Errors that concern all calls and not only those about one object."""
HARMLESS = (EnsureGPUNode, ClearRequests, LabelNode, UpdateFence, Release)
"""Actions that neither close a node nor end anything on it."""
SetClaimsCall = Callable[[Mapping[str, Claim], Mapping[str, FailedNode], Mapping[str, Consent]], Awaitable[None]]
"""Writes all claims, failures and consents to the Lease (LeaderLease.set_claims)."""


class PlanOutdated(Exception):
    """An action was decided by a plan that is not carried out any more, so its call was not sent."""


before_send: ContextVar[Callable[[], None]] = ContextVar("before a write of this task is sent")
wish: ContextVar[object] = ContextVar("what people ask of the object of this task's write")


class _PlanClient(PassingClient):
    """Asks when a write is sent, perhaps after a long wait or a 409, whether its action is still wanted."""

    async def call(self, request: ApiRequest) -> JSON:
        return await self.client.call(replace(request, before_send=before_send.get(), wish=wish.get()))


@dataclass(slots=True)
class Outcome:
    """How many writes the server accepted, and when to try the rest again."""

    done: int = 0
    again: datetime | None = None


@dataclass(slots=True)
class Executor:
    """Carries out the actions of plans. A new kind of action without a branch in `_perform` fails type checking."""

    client: KubeClient
    sources: Sources
    set_claims: SetClaimsCall
    now: Callable[[], datetime]
    jitter: Callable[[], float] = random.random
    workers: Workers = field(default_factory=lambda: Workers(16))
    eviction_wait: float = FIRST_WAIT
    on_action: Callable[[Action, str], None] = lambda action, result: None
    """Called after each action with its result, `done` or what prevented it; for metrics."""
    event_of: Callable[[RepairMps], JSON] = lambda action: {}
    calls: CallMemory = field(default_factory=CallMemory)
    _nodes: NodeWrites = field(init=False)
    _shared: SharedWrites = field(init=False)
    _evictor: Evictor = field(init=False)
    _complaints: Complaints = field(default_factory=Complaints)
    _wishes: dict[str, object] = field(default_factory=dict)
    """What people asked for at the last failed call (`find_wish`), by subject; an edit ends the wait after it."""
    _newest: ClusterSnapshot | None = None
    """The snapshot that the newest plan was made from."""
    _newest_plan: RolloutPlan = field(init=False)
    _fencing: dict[str, str] = field(default_factory=dict)
    """The policies of nodes whose fence is being written, or was until a moment ago, by node."""
    _valid_until: float = 0.0
    """When the newest plan becomes too old to be carried out on nodes, by `loop_time`."""

    def __post_init__(self) -> None:
        client = _PlanClient(self.client)
        self._nodes = NodeWrites(client, self.sources)
        self._shared = SharedWrites(client, self.sources, self.now, self.event_of)
        self._evictor = Evictor(client, self.now, self.jitter, self.eviction_wait, self.calls, self.on_action)

    async def execute(self, plan: RolloutPlan, snapshot: ClusterSnapshot, unseen: Set[str] = frozenset()) -> Outcome:
        """Carry out a plan: shared writes, then several nodes at once, each node's actions until one fails.

        Nodes in `unseen`, which were being written to when the snapshot was begun, are left to the next pass. Only
        errors that concern all calls (FATAL) are raised, in a group.
        """
        outcome = Outcome()
        self._newest, self._newest_plan = snapshot, plan
        self._valid_until = loop_time() + PLAN_VALID
        self._evictor.forget(snapshot)
        for name in self._nodes.created.keys() - plan.verdicts.keys():
            del self._nodes.created[name]
        wanted = {subject_of(action) for action in plan.shared}
        for subject in self.calls.failures.keys() - wanted - self.workers.busy:
            verdict = plan.verdicts.get(subject)
            if verdict is None or is_moot(verdict):
                self._note_success(subject)
        blocked = await self._write_shared(plan.shared, snapshot, outcome)
        if snapshot.policies_error:
            blocked.add("*")
        # The snapshot lacks these fences, so the plan may have given their slots to other nodes.
        unfenced = unseen - snapshot.fences.keys()
        self._fencing = {node: policy for node, policy in self._fencing.items() if node in unfenced}
        blocked |= set(self._fencing.values())
        due = {
            v.node: v.actions
            for v in plan.verdicts.values()
            if v.actions and v.node not in unseen and not self._is_suspended(v.node, v.actions[0], snapshot)
        }

        async def node(name: str) -> None:
            await self._node(name, due[name], snapshot, blocked, outcome)

        # Nodes in flight come first, because their proofs would grow old behind the others on a server that admits few
        # calls.
        await self.workers.each(sorted(due, key=lambda name: not plan.verdicts[name].phase.in_flight), node)
        if outcome.again is None:
            held_back = [f.next_try for f in self.calls.failures.values() if f.holds(self.now())]
            outcome.again = min(held_back, default=None)
        return outcome

    def _is_suspended(self, subject: str, action: Action, snapshot: ClusterSnapshot) -> bool:
        failure = self.calls.failures.get(subject)
        if failure is None or not failure.holds(self.now()):
            return False
        return self._wishes.get(subject) == self._find_wish(subject, action, snapshot)

    def _find_wish(self, subject: str, action: Action, snapshot: ClusterSnapshot) -> object:
        return find_wish(subject, action, snapshot, self._newest_plan.verdicts.get(subject))

    async def _write_shared(self, actions: tuple[Action, ...], snapshot: ClusterSnapshot, outcome: Outcome) -> set[str]:
        blocked: set[str] = set()
        if not any(isinstance(action, WriteConfig) for action in actions):
            self.calls.write_error = ""
        for _, alike in groupby(actions, type):
            by_subject = {subject_of(action): action for action in alike}
            for subject in by_subject.keys() - await self._write_alike(by_subject, snapshot, outcome):
                action = by_subject[subject]
                if isinstance(action, SetFinalizer):
                    blocked |= {action.policy, subject}
                # A ConfigMap that the server refused blocks only its own nodes, by a gate. One that is still being
                # written may lose an entry.
                elif isinstance(action, SetClaims) or (
                    isinstance(action, WriteConfig) and subject in self.workers.busy
                ):
                    blocked |= {"*", subject}
        return blocked

    async def _write_alike(
        self, actions: Mapping[str, Action], snapshot: ClusterSnapshot, outcome: Outcome
    ) -> set[str]:
        accepted: set[str] = set()

        async def write(subject: str) -> None:
            error = await self._attempt(subject, actions[subject], snapshot, outcome)
            if error is None:
                accepted.add(subject)
            if isinstance(actions[subject], WriteConfig) and not isinstance(error, PlanOutdated):
                failure = self.calls.failures.get(subject)
                lasts = isinstance(error, REFUSALS) or (failure is not None and failure.lasts)
                self.calls.write_error = f"ConfigMap {self._shared.writing}: {error}" if lasts else ""

        busy = self.workers.busy & actions.keys()
        due = [
            subject
            for subject, action in actions.items()
            if subject not in busy and not self._is_suspended(subject, action, snapshot)
        ]
        await self.workers.each(due[: max(0, SHARED_AT_ONCE - len(busy))], write, SHARED_PATIENCE)
        return accepted

    async def _node(
        self, node: str, actions: Iterable[Action], snapshot: ClusterSnapshot, blocked: set[str], outcome: Outcome
    ) -> None:
        decided_on = snapshot.nodes.get(node)
        for action in actions:
            # The failure would be forgotten if the Node were deleted now (docs/adr/0044).
            if isinstance(action, Actuate) and CLAIMS in blocked:
                return
            if isinstance(action, FenceNode) and not blocked.isdisjoint({"*", action.fence.policy}):
                return
            if not self._is_valid(snapshot):
                outcome.again = self.now()
                return
            # The cache may have moved on since the decision, and with it the version that a conditional write names:
            # a cordon that arrived in the meantime would be overridden without a 409.
            latest = self.sources.seen_node(node)
            if None not in (latest, decided_on) and latest != decided_on:
                log.info(
                    "the node has changed since this pass read it; the next pass will evaluate it again",
                    node=node,
                    action=type(action).__name__,
                )
                return
            if isinstance(action, FenceNode):
                self._fencing[node] = action.fence.policy
            if isinstance(action, NodePatch):
                decided_on = None  # the write itself changes the node; the actions after it expect that
            if await self._attempt(node, action, snapshot, outcome) is not None:
                return

    def _is_valid(self, snapshot: ClusterSnapshot) -> bool:
        # A plan from before a stop, or before its end, is not carried out any further.
        unchanged = snapshot.stop == self.sources.stop()
        return snapshot is self._newest and unchanged and loop_time() < self._valid_until

    def _before_send(self, subject: str, action: Action, snapshot: ClusterSnapshot) -> None:
        # A slow server makes calls wait for longer than a plan is the newest, so what harms nobody needs only be
        # wanted.
        verdict = self._newest_plan.verdicts.get(subject)
        wanted = verdict.actions if verdict and isinstance(action, HARMLESS) else self._newest_plan.shared
        if isinstance(action, RepairMps) and any(isinstance(one, RepairMps) for one in wanted):
            return  # its first write makes the next plan want only the rest of it
        if action not in wanted and not self._is_valid(snapshot):
            raise PlanOutdated

    async def _attempt(
        self, subject: str, action: Action, snapshot: ClusterSnapshot, outcome: Outcome
    ) -> CallFailed | PlanOutdated | None:
        before_send.set(partial(self._before_send, subject, action, snapshot))
        wish.set(self._find_wish(subject, action, snapshot))
        try:
            changed = await self._perform(action, snapshot)
        except PlanOutdated as error:
            outcome.again = self.now()
            return error
        except CallFailed as error:
            self.on_action(action, type(error).__name__)
            if not isinstance(error, HeldBack):  # else nothing was sent
                self._note_failure(subject, action, error)
            return error
        if changed:
            outcome.done += 1
            self.on_action(action, "done")
        self._note_success(subject, called(action))
        return None

    def _note_failure(self, subject: str, action: Action, error: CallFailed) -> None:
        kind, words = type(action).__name__, str(error) or repr(error)
        if isinstance(action, WriteConfig):
            words = f"ConfigMap {self._shared.writing}: {words}"
        if isinstance(error, Unavailable):
            self.calls.unsure.add(subject)
        before, self._wishes[subject] = self.calls.failures.get(subject), wish.get()
        self.calls.failures[subject] = failed_again(
            before,
            f"{kind} failed: {words}",
            self.now(),
            self.jitter(),
            called(action),
            refused=isinstance(error, REFUSALS),
            at_once=isinstance(error, Undone),
        )
        self._complaints.begins(
            subject, "an action failed; trying again", f"{kind} {type(error).__name__}", action=kind, error=words
        )

    def _note_success(self, subject: str, call: str = "") -> None:
        failure = self.calls.failures.get(subject)
        if failure is None or call in ("", failure.call):
            self.calls.failures.pop(subject, None)
            self._wishes.pop(subject, None)
            self._complaints.ends(subject)

    async def _perform(self, action: Action, snapshot: ClusterSnapshot) -> bool:
        """Make the call of an action; False if nothing was changed, because the object has changed or is gone."""
        match action:
            case EnsureGPUNode():
                await self._nodes.ensure_gpunode(action)
            case ClearRequests():
                return await self._nodes.clear_requests(action)
            case FenceNode() | Actuate() | UpdateFence() | Release() | LabelNode():
                return await self._nodes.patch(action)
            case Evict() | ForceDelete():
                return await self._evictor.send(action)
            case RestartOperand():
                return await self._nodes.restart(action)
            case WriteConfig():
                await self._shared.write_config(action, snapshot)
            case SetFinalizer():
                await self._shared.set_finalizer(action)
            case SetClaims():
                await self.set_claims(action.claims, action.failed_nodes, action.consents)
            case SetPointers():
                await self._shared.set_pointers(action)
            case RepairMps():
                await self._shared.repair_mps(action, snapshot)
            case WriteClasses():
                await self._shared.write_classes(action)
            case WriteRules():
                await self._shared.write_rules(action)
            case _:
                assert_never(action)
        return True


def find_wish(subject: str, action: Action, snapshot: ClusterSnapshot, verdict: Verdict | None) -> object:
    """Return what people ask of the object that an action writes to; after an edit of it no write waits."""
    if isinstance(action, WriteConfig):
        return action
    policies, asked = {action.policy} if isinstance(action, SetFinalizer) else set(), list[object]()
    if (node := snapshot.nodes.get(subject)) is not None:
        asked += node.retry, node.abort, node.labels.get(names.LABEL_SKIP)
        policies |= {verdict.policy} if verdict is not None else set()
        policies |= {node.fence.policy} if node.fence is not None else set()
    for one in snapshot.policies:
        if one.name in policies:
            asked += one.uid, one.generation, one.approved, one.resumed, one.force_release
    return tuple(asked)


def called(action: Action) -> str:
    """Return what an action writes to, by which failures are told apart."""
    return "Node" if isinstance(action, NodePatch) else type(action).__name__
