"""Carry out a plan: one API call per action, preconditions on every check-then-act write.

A failed call ends the actions of that node for this pass; the node waits, and the failure is shown if it lasts. Only a
lost Lease, lost credentials or a server that is away end the pass itself. A pass does not wait for a slow call: its
node is left alone until the call has ended. The cache takes the server's answer, never what we meant to write
(docs/design/faults.md#d12).
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from datetime import datetime
from typing import assert_never

import structlog

from gpusharing.api import names
from gpusharing.controller.complaints import Complaints
from gpusharing.controller.evict import Evictor
from gpusharing.controller.sharedwrites import (
    TRIES,
    Claims,
    ClusterPolicies,
    PolicyStore,
    ReflectorCache,
    SharedWrites,
    subject_of,
)
from gpusharing.kube.callmemory import CallMemory
from gpusharing.kube.client import GPUNODES, JSON, NODES, PODS, KubeClient
from gpusharing.kube.convert import node_view
from gpusharing.kube.crew import Crew
from gpusharing.kube.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    HeldBack,
    Invalid,
    KubeError,
    NotFound,
    ServerAway,
    Unauthorized,
    Unavailable,
)
from gpusharing.kube.fence import NodePatch, patch_for
from gpusharing.kube.lease import LeaseLost
from gpusharing.planning.drain.evictions import FIRST_WAIT, ODD_AFTER
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.actions import (
    Action,
    Actuate,
    EnsureGPUNode,
    Evict,
    FenceNode,
    ForceDelete,
    LabelNode,
    Release,
    RestartOperand,
    SetClaims,
    SetFinalizer,
    SetPointers,
    UpdateFence,
    WriteConfig,
)
from gpusharing.planning.snapshot.callfailures import CLAIMS, failed_again
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView
from gpusharing.planning.transition.callverdicts import is_moot

log = structlog.get_logger()

FATAL = (Unauthorized, ServerAway, LeaseLost)
"""What concerns all calls, not one object."""

SHARED_PATIENCE = 6.0
"""Seconds for a write that fences wait for: claims are given up after five. With less, no node would ever start on a
server that takes longer for each call."""


@dataclass(slots=True)
class Outcome:
    """What a pass did."""

    done: int = 0
    """Writes that the server accepted."""
    surprises: dict[str, str] = field(default_factory=dict)
    """By node or subject: what did not work, for the log and the next pass."""
    again: datetime | None = None
    """When the first failed call may be tried again."""


@dataclass(slots=True)
class Executor:
    """Matches on the Action union; a new action without a branch fails type checking."""

    client: KubeClient
    nodes: ReflectorCache
    gpunodes: ReflectorCache
    policies: PolicyStore
    claims: Claims
    now: Callable[[], datetime]
    jitter: Callable[[], float] = random.random
    parallel: int = 16
    eviction_wait: float = FIRST_WAIT
    """Seconds after the first refusal."""
    config_maps: ReflectorCache | None = None
    cluster_policies: ClusterPolicies | None = None
    calls: CallMemory = field(default_factory=CallMemory)
    deleted: set[str] = field(default_factory=set)
    """UIDs of mig-manager pods whose deletion the server accepted; a few in a process's life."""
    missed: Counter[str] = field(default_factory=Counter)
    """By UID of a mig-manager pod: how often the server said that it is gone or replaced."""
    on_action: Callable[[Action, str], None] = lambda action, result: None
    """Called after each action: for metrics."""
    view: Callable[[JSON], NodeView] = node_view
    """A Node as the plan sees it."""
    on_late: Callable[[], None] = lambda: None
    """Called when a call ends for which no pass waited."""
    seen: Callable[[str], NodeView | None] = lambda name: None
    """The latest known view of a Node, by name; None if there is none."""
    made: dict[str, str] = field(default_factory=dict)
    """UIDs of the Nodes for which a GPUNode was created, by name; in memory only."""
    crew: Crew = field(init=False)
    shared: SharedWrites = field(init=False)
    evictor: Evictor = field(init=False)
    _complaints: Complaints = field(default_factory=Complaints)

    def __post_init__(self) -> None:
        """Create the parts that share its fields."""
        self.crew = Crew(self.parallel, self.on_late)
        self.evictor = Evictor(
            self.client, self.now, self.jitter, self.eviction_wait, self.calls, self.on_action
        )
        self.shared = SharedWrites(
            self.client, self.policies, self.claims, self.now, self.config_maps, self.cluster_policies
        )

    def under_way(self) -> frozenset[str]:
        """Nodes that are being written to. Ask before a snapshot begins: it does not show the result of these
        writes."""
        return frozenset(self.crew.busy)

    async def execute(
        self, plan: RolloutPlan, snapshot: ClusterSnapshot, unseen: Set[str] = frozenset()
    ) -> Outcome:
        """Shared writes first; then every node's actions, nodes side by side, one node's in order.

        `unseen`: the nodes that were `under_way` when the snapshot was begun. Whatever the result of their calls, the
        plan was made without it, so they are left to the next pass, even if the calls have ended since.

        Raises a group with what concerns all calls, and nothing else.
        """
        outcome = Outcome()
        self.evictor.forget(snapshot)
        self._forget_failures(plan)
        blocked = await self._shared(plan.shared, snapshot, outcome)
        if snapshot.policies_error:
            blocked.add("*")
        due = {
            v.node: v.actions
            for v in plan.verdicts.values()
            if v.actions and v.node not in unseen and not self._held(v.node)
        }

        async def node(name: str) -> None:
            await self._node(name, due[name], snapshot.nodes.get(name), blocked, outcome)

        # Where the server admits few calls, a proof under way must not grow old behind nodes that can wait.
        await self.crew.each(sorted(due, key=lambda name: not plan.verdicts[name].phase.in_flight), node)
        outcome.again = min(
            (f.next_try for f in self.calls.failures.values() if f.holds(self.now())), default=None
        )
        return outcome

    def _held(self, subject: str) -> bool:
        failure = self.calls.failures.get(subject)
        return failure is not None and failure.holds(self.now())

    def _forget_failures(self, plan: RolloutPlan) -> None:
        """Forget the failures of what is no longer wanted, and Nodes that are gone."""
        for name in self.made.keys() - plan.verdicts.keys():
            del self.made[name]
        wanted = {subject_of(action) for action in plan.shared}
        for subject in self.calls.failures.keys() - wanted - self.crew.busy:
            verdict = plan.verdicts.get(subject)
            if verdict is None or is_moot(verdict):
                self._worked(subject)

    async def _shared(
        self, actions: tuple[Action, ...], snapshot: ClusterSnapshot, outcome: Outcome
    ) -> set[str]:
        """What must wait: the policies without a new fence, `*` for all, and CLAIMS for points of no return.

        A refused entry keeps its own nodes away (`transition/gates.py`, PROPAGATION); a write under way may take one
        away.
        """
        blocked: set[str] = set()
        if not any(isinstance(action, WriteConfig) for action in actions):
            self.calls.write_error = ""
        for action in actions:
            if await self._shared_one(action, snapshot, outcome) or isinstance(action, SetPointers):
                continue
            if not isinstance(action, WriteConfig) or subject_of(action) in self.crew.busy:
                blocked.add(action.policy if isinstance(action, SetFinalizer) else "*")
                blocked.add(subject_of(action))
        return blocked

    async def _shared_one(self, action: Action, snapshot: ClusterSnapshot, outcome: Outcome) -> bool:
        """Whether this shared write is done now. One that hangs does not hold up the nodes in flight."""
        subject, before = subject_of(action), outcome.done
        if self._held(subject):
            return False

        async def write(_: str) -> None:
            try:
                await self.shared.perform(action, snapshot)
            except FATAL:
                raise
            except KubeError as error:
                self._failed(subject, action, error, outcome)
                if isinstance(action, WriteConfig):
                    failure = self.calls.failures.get(subject)
                    lasts = isinstance(error, Forbidden | Invalid) or (failure is not None and failure.lasts)
                    self.calls.write_error = f"ConfigMap {self.shared.writing}: {error}" if lasts else ""
            else:
                if isinstance(action, WriteConfig):
                    self.calls.write_error = ""
                self._worked(subject)
                outcome.done += 1
                self.on_action(action, "done")

        await self.crew.each([subject], write, SHARED_PATIENCE)
        return outcome.done > before

    async def _node(
        self,
        node: str,
        actions: Iterable[Action],
        decided_on: NodeView | None,
        blocked: set[str],
        outcome: Outcome,
    ) -> None:
        """The actions of one node in order, as long as the node is as it was when they were decided.

        The cache may have moved on since, and with it the version that a conditional write carries: without this check
        a cordon that arrived meanwhile would be overridden without a 409.
        """
        for action in actions:
            if isinstance(action, FenceNode) and blocked & {"*", action.fence.policy}:
                return
            if isinstance(action, Actuate) and CLAIMS in blocked:
                return  # nobody would know of the failure if the Node went now (docs/adr/0044)
            if decided_on is not None and not same_node(self.seen(node) or decided_on, decided_on):
                log.info("node changed meanwhile, deciding again", node=node, action=type(action).__name__)
                return
            if isinstance(action, NodePatch):
                decided_on = None  # the write itself changes the node; the actions after it expect that
            try:
                if await self._perform(action):
                    outcome.done += 1
                    self.on_action(action, "done")
            except FATAL:
                raise
            except KubeError as error:
                self._failed(node, action, error, outcome)
                return
            else:
                self._worked(node, called(action))

    def _failed(self, subject: str, action: Action, error: KubeError, outcome: Outcome) -> None:
        """Note a failure: the subject waits, longer each time, and the log gets one line."""
        kind, words = type(action).__name__, str(error) or repr(error)
        if isinstance(action, WriteConfig):
            words = f"ConfigMap {self.shared.writing}: {words}"
        outcome.surprises[subject] = f"{kind}: {type(error).__name__}: {error}"
        self.on_action(action, type(error).__name__)
        if isinstance(error, HeldBack):
            return  # nothing was sent
        if isinstance(error, Unavailable):
            self.calls.unsure.add(subject)
        failure = failed_again(
            self.calls.failures.get(subject),
            f"{kind} failed: {words}",
            self.now(),
            self.jitter(),
            called(action),
        )
        self.calls.failures[subject] = failure
        self._complaints.begins(
            subject, "action failed", f"{kind} {type(error).__name__}", action=kind, error=words
        )

    def _worked(self, subject: str, call: str = "") -> None:
        """Note a success: a call about the subject was answered, although perhaps not the one that failed before."""
        failure = self.calls.failures.get(subject)
        if failure is None or call in ("", failure.call):
            self.calls.failures.pop(subject, None)
            self._complaints.ends(subject)

    async def _perform(self, action: Action) -> bool:
        """True when the server changed something."""
        match action:
            case EnsureGPUNode():
                await self._ensure_gpunode(action)
            case FenceNode() | Actuate() | UpdateFence() | Release() | LabelNode():
                return await self._patch_node(action)
            case Evict():
                return await self.evictor.evict(action)
            case ForceDelete():
                return await self.evictor.delete(action)
            case RestartOperand():
                return await self._restart(action)
            case WriteConfig() | SetClaims() | SetFinalizer() | SetPointers():
                raise TypeError(f"{type(action).__name__} belongs to no node")
            case _:
                assert_never(action)
        return True

    # --- nodes -------------------------------------------------------------------------------------------

    async def _patch_node(self, action: NodePatch) -> bool:
        """Patch with the newest resourceVersion; after a 409 go on only if the node is still as it was when we decided.

        `_node` has compared the node with the one that the plan saw, without a pause in between.
        """
        name, version = action.node.name, self.nodes.resource_version(action.node.name)
        for _ in range(TRIES):
            try:
                self.nodes.accept(await self.client.patch(NODES, name, patch_for(action, version)))
            except Conflict:
                raw = await self.client.get(NODES, name)
                self.nodes.accept(raw)
                if not same_node(self.view(raw), action.node):
                    log.info(
                        "node changed meanwhile, deciding again", node=name, action=type(action).__name__
                    )
                    return False
                version = str(raw["metadata"]["resourceVersion"])
            else:
                return True
        raise Conflict(f"node {name} changed {TRIES} times while we wrote to it")

    async def _ensure_gpunode(self, action: EnsureGPUNode) -> None:
        spec = {"request": {"id": action.request_id, "quiet": action.quiet}}
        try:
            if self.gpunodes.resource_version(action.node):
                raw = await self.client.patch(GPUNODES, action.node, {"spec": spec})
            else:
                raw = await self._new_gpunode(action, spec)
        except AlreadyExists:
            raw = await self.client.patch(GPUNODES, action.node, {"spec": spec})
        except NotFound:
            raw = await self._new_gpunode(action, spec)
        self.gpunodes.accept(raw)

    async def _new_gpunode(self, action: EnsureGPUNode, spec: JSON) -> JSON:
        """Create one. If there was one already, only if its Node really exists, which a late watch does not show: an
        object whose Node is gone is deleted at once, and we would create it again as fast as we can.

        Raises:
            NotFound: that Node is gone.
        """
        name, uid = action.node, action.node_uid
        if self.made.get(name) == uid and (await self.client.get(NODES, name))["metadata"]["uid"] != uid:
            raise NotFound(f"the Node {name} was created again")
        self.made[name] = uid
        owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}
        metadata = {"name": name, "ownerReferences": [owner]}
        manifest = {"apiVersion": names.API_VERSION, "kind": "GPUNode", "metadata": metadata, "spec": spec}
        return await self.client.create(GPUNODES, manifest)

    async def _restart(self, action: RestartOperand) -> bool:
        """Delete a pod, once: the watch may not have shown yet that it is being deleted."""
        if action.uid in self.deleted:
            return False
        try:
            await self.client.delete(PODS, action.name, namespace=action.namespace, uid=action.uid)
        except (NotFound, Conflict):
            self.missed[action.uid] += 1
            if self.missed[action.uid] >= ODD_AFTER:
                raise  # a pod that the watch still shows is neither
            return False
        self.deleted.add(action.uid)
        return True


def called(action: Action) -> str:
    """The object that an action writes to."""
    return "Node" if isinstance(action, NodePatch) else type(action).__name__


def same_node(now: NodeView, then: NodeView) -> bool:
    """Whether everything that a plan reads from a Node is still the same."""
    return now is then or now == then
