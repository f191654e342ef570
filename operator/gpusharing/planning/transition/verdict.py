"""What is known of one node in a pass, and what is the verdict on it?"""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from functools import cached_property

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning.drain.plan import DrainPlan, ending_gangs, plan_drain
from gpusharing.planning.drain.pods import find_unplaced, find_unreported, scope_of
from gpusharing.planning.drain.standing import find_standings
from gpusharing.planning.gpus.health import is_healthy
from gpusharing.planning.snapshot.actions import Action, FenceNode
from gpusharing.planning.snapshot.nvidia import Operand
from gpusharing.planning.snapshot.podviews import GangView, NodeWork, Scope
from gpusharing.planning.snapshot.records import UNRECORDED, Fence, SpecVersion
from gpusharing.planning.snapshot.views import GPUNodeView, ObservedView, PolicyView
from gpusharing.planning.stack.mps import find_mps_pod
from gpusharing.planning.vocabulary.commands import Command
from gpusharing.planning.vocabulary.findings import Blocker, Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.actuators import Actuator, ActuatorCase
from gpusharing.planning.wanted.assess import Assessed, Assessment, Untargeted
from gpusharing.planning.wanted.verify import (
    describe_observed,
    find_unhealthy,
    name_gpus,
    tell_unhealthy,
    tell_withdrawn,
)


@value
class Verdict:
    """The decision about one node."""

    node: str
    policy: str
    """The policy whose change is in flight, else the owner; empty if no policy owns the node."""
    phase: Phase
    reason: Reason
    message: str
    disruption: DisruptionClass = DisruptionClass.NONE
    gpus: tuple[int, ...] = ()
    """The only GPUs that the change empties. Empty if it empties all of the node, or none."""
    wanted: str = ""
    """The layout that the GPUs will get; empty if unknown."""
    observed: str = ""
    """The layout that the GPUs have now; empty if unknown."""
    pods: int = 0
    needs: tuple[tuple[str, int], ...] = ()
    """How many pods the drain evicts next under each PodDisruptionBudget (`namespace/name`)."""
    blockers: tuple[Blocker, ...] = ()
    leaving: str = ""
    """The first pod that still has to leave, and how many more there are, such as `namespace/name +2`."""
    deadline: datetime | None = None
    """The deadline of the fence or, before there is one, when the wait ends by itself; None if it does not."""
    attempt: int = 0
    step: str = ""
    """The number of the step and how many there are, such as `1/2`; empty if no change is in flight."""
    actions: tuple[Action, ...] = ()
    wake: datetime | None = None
    """When the node has to be judged again; None if only an event can change the verdict."""
    wants_pods: bool = False
    candidate: bool = False
    """Whether the node waits only for a slot of the budget."""
    health: Finding | None = None
    """The health of the node's GPUs, as last reported. None while no GPU was reported."""
    mps_pod: Operand | None = None
    """The pod of the MPS daemon, while a restart of it would end MPS clients (`count_lapses`)."""
    keeper: str = ""
    """The object that holds the node back, as in `Finding.keeper`. Empty if the reason says enough."""
    stands: bool = False
    """Whether only a person can end the wait, although waits with this reason may end by themselves."""
    commands: tuple[Command, ...] = ()
    """The commands that the message tells people to run."""

    @property
    def starts(self) -> bool:
        return any(isinstance(action, FenceNode) for action in self.actions)

    def then(self, *actions: Action) -> "Verdict":
        return replace(self, actions=actions)


def find_health(gpunode: GPUNodeView | None) -> Finding | None:
    """Return the worst finding about the GPUs. NO_TROUBLE if all are healthy, None while no GPU was reported."""
    hardware = gpunode.observed.hardware if gpunode and gpunode.observed else None
    return hardware.health if hardware is not None and hardware.gpus else None


@value(slots=False)  # without slots, for `drain`
class NodeCase(ActuatorCase):
    """Everything on which the decisions about one node depend in this pass."""

    owner: PolicyView | None
    """The policy that owns the node according to the selectors."""
    work: NodeWork | None
    """The pods of the node. None if they were not listed, or were listed for a smaller change than the present one."""
    agent_ready: bool
    agent_trouble: Finding | None
    """Why no agent is Ready; None also if the cause is unknown."""
    claimed: bool
    actuator: Actuator
    held: Finding | None = None
    """Why the policy may not start a node now. Only set for a node whose run has ended without a proof."""
    old_views: str = ""
    """The kinds of objects whose cached state is stale."""
    unserved: str = ""
    """As in the snapshot."""
    widened: str = ""
    """Why the last look at the pods made a change of some GPUs one of the whole node, or empty."""
    assessment: Assessment | None = None
    """The result of `compare`. None before the comparison, or if no policy drives the node."""

    @property
    def owner_name(self) -> str:
        return self.owner.name if self.owner is not None else ""

    @property
    def policy(self) -> PolicyView | None:
        return self.assessment.policy if self.assessment is not None else None

    @property
    def spec(self) -> GPUSharingPolicySpec | None:
        return self.assessment.policy.spec if self.assessment is not None else None

    @property
    def version(self) -> SpecVersion:
        return self.policy.version if self.policy is not None else UNRECORDED

    @property
    def assessed(self) -> Assessed | None:
        return self.assessment if isinstance(self.assessment, Assessed) else None

    @property
    def objection(self) -> Finding | None:
        """Why the node has no target, unless only its GPUs are unknown."""
        found = self.assessment
        return found.objection if isinstance(found, Untargeted) and not found.unobserved else None

    @property
    def fence(self) -> Fence:
        """The fence of a node that has one; `node.fence` is for any node."""
        assert self.node.fence is not None, f"{self.node.name} has no fence"
        return self.node.fence

    @property
    def answer(self) -> ObservedView | None:
        """The agent's report if it answers our last request."""
        return self.gpunode.answer if self.gpunode is not None else None

    @property
    def newcomer(self) -> bool:
        """Whether no workload depends on the node yet (docs/adr/0034-the-start-up-gate.md)."""
        node = self.node
        if node.fence is not None:
            return node.fence.newcomer
        if node.gate is None or node.verified is not None or node.devices is not None:  # the agent counts no claims
            return False
        return self.observed is None or self.observed.pods == 0

    def no_agent(self, consequence: str) -> Finding:
        if (trouble := self.agent_trouble) is not None:
            return replace(trouble, message=f"no agent runs on {self.node.name}: {trouble.message}")
        return Finding(Reason.AGENT_NOT_READY, f"no Ready agent pod runs on {self.node.name}{consequence}")

    @property
    def mps_pod(self) -> Operand | None:
        return find_mps_pod(self.node, self.operands, self.stack)

    @property
    def health(self) -> Finding | None:
        """The health of the GPUs according to the agent, else to the device plugin; None if neither reports any."""
        health, node = find_health(self.gpunode), self.node
        if not node.unhealthy or (health is not None and not is_healthy(health)):
            return health
        unhealthy = find_unhealthy(node, self.assessed.target.resources) if self.assessed is not None else {}
        unhealthy = unhealthy or {name: count for name, count in node.unhealthy.items() if name in node.resources}
        return Finding(Reason.DEVICE_UNHEALTHY, tell_unhealthy(node, unhealthy)) if unhealthy else health

    @property
    def unhealthy(self) -> Finding | None:
        health = self.health
        return None if health is None or is_healthy(health) else health

    @property
    def disruption(self) -> DisruptionClass:
        if self.node.fence is not None:
            return self.node.fence.disruption
        now = self.assessed.disruption if self.assessed is not None else DisruptionClass.NONE
        return DisruptionClass.GPU_PODS if now is DisruptionClass.CHANGED_GPUS and self.unplaced else now

    @property
    def edited(self) -> bool:
        """Whether the policy asks for something else than the fence records, or another policy owns the change."""
        return self.version != self.fence.version

    @property
    def excess(self) -> str:
        """What the target needs to be empty beyond what the fence records, as a clause, or empty."""
        fence, assessed = self.fence, self.assessed
        if assessed is None or fence.covers(assessed.disruption, assessed.gpus):
            return ""
        others = [index for index in assessed.gpus if index not in fence.gpus]
        if assessed.whole or not others:
            return assessed.whole or f"the change is now one of class {assessed.disruption}"
        return f"the change now concerns {name_gpus(others)} as well"

    @property
    def asked_excess(self) -> str:
        """The excess if an edit asks for it, and not a reading of this moment, else empty."""
        if self.assessed is None or not self.edited:
            return ""
        another = self.assessed.target.text != self.fence.to_layout and not self.assessed.doubt
        return self.excess if self.assessed.whole or another else ""

    @property
    def extent(self) -> tuple[DisruptionClass, tuple[int, ...]]:
        """The class and the only GPUs of the change, with what an edit asks for beyond the fence's record."""
        if self.node.fence is None or self.assessed is None or not self.edited:
            return self.disruption, self.gpus
        return self.joined(self.assessed.disruption, self.assessed.gpus)

    def joined(self, disruption: DisruptionClass, gpus: Iterable[int]) -> tuple[DisruptionClass, tuple[int, ...]]:
        """Return the class and the only GPUs of a change that empties what the fence records and this as well."""
        fence, part = self.fence, DisruptionClass.CHANGED_GPUS
        worse = max(fence.disruption, disruption, key=lambda one: one.severity)
        emptied = tuple(sorted({*fence.gpus, *gpus}))
        if worse is not part or (self.observed is not None and len(emptied) < len(self.observed.gpus)):
            return worse, emptied if worse is part else ()
        return DisruptionClass.GPU_PODS, ()

    @property
    def overreach(self) -> Finding | None:
        """Why a run now might disturb more than the fence records, or None. It may be over in a moment."""
        why = self.excess or (self.assessed.doubt if self.assessed is not None else "")
        if not why:
            return None
        only = f"only {name_gpus(self.fence.gpus)} may be emptied" if self.fence.gpus else "no more may be emptied"
        message = f"{why}, but {only}, so the operator waits until that is over"
        return Finding(Reason.WIDER_DRAIN_NEEDED, message)

    @property
    def unplaced(self) -> str:
        """Why the pods need a change of the whole node although their GPUs do not, or empty."""
        if self.work is None or self.work.error:
            return self.widened
        holders = self.observed.holders if self.observed is not None else None
        return find_unplaced(self.work.pods, self._scope_of_all, holders) or (self.widened if self.unreported else "")

    @property
    def unreported(self) -> str:
        """What the agent has yet to report before only some GPUs can be emptied, or empty."""
        if self.work is None or self.observed is None:
            return ""
        return find_unreported(self.work.pods, self._scope_of_all, self.observed.holders)

    @property
    def _scope_of_all(self) -> Scope:
        return scope_of(self.node, self.settings, self.stack, DisruptionClass.GPU_PODS)

    @property
    def gpus(self) -> tuple[int, ...]:
        """The only GPUs that the change empties. Empty if it empties all of the node, or none."""
        if self.disruption is not DisruptionClass.CHANGED_GPUS:
            return ()
        return self.node.fence.gpus if self.node.fence is not None else self.assessed.gpus if self.assessed else ()

    @property
    def scope(self) -> Scope:
        disruption, gpunode = self.disruption, self.gpunode
        return scope_of(self.node, self.settings, self.stack, disruption, gpunode=gpunode, gpus=self.gpus)

    @property
    def gangs(self) -> tuple[GangView, ...]:
        return ending_gangs(self.work, self.scope) if self.work is not None and self.work.gangs else ()

    @cached_property
    def drain(self) -> DrainPlan | None:
        """The drain of a fenced node. None if its pods were not listed or no readable policy says how to drain."""
        spec, fence = self.spec, self.fence
        if self.work is None or spec is None:
            return None
        found = find_standings(self.work, spec.drain, self.now, scope=self.scope)
        # No pod is deleted by force after the point of no return, while jobs still have time to end, or on a node that
        # is not Ready, where a deletion would remove the object while its containers keep running.
        forcible = fence.stage == "fenced" and not fence.jobs and self.node.ready
        return plan_drain(found, self.now, fence.deadline if forcible else None)

    def show(
        self, phase: Phase, found: Finding, *actions: Action, wake: datetime | None = None, candidate: bool = False
    ) -> Verdict:
        verdict = self.verdict(phase, found.reason, found.message, *actions, wake=wake, candidate=candidate)
        return replace(verdict, commands=found.commands, stands=found.stands)

    def verdict(
        self,
        phase: Phase,
        reason: Reason,
        message: str,
        *actions: Action,
        wake: datetime | None = None,
        wants_pods: bool = False,
        candidate: bool = False,
    ) -> Verdict:
        """Return a verdict with every other field filled in from the case."""
        assessment, fence = self.assessment, self.node.fence
        target = assessment.target if isinstance(assessment, Assessed) else None
        if self.node.gate is not None and phase.part == "before":
            gated = f"no workload starts on this node until it is proven (taint {names.TAINT_UNPROVEN})"
            message = f"{gated}: {message}"
        health, withdrawn = self.health, tell_withdrawn(self.node) if reason is Reason.GPU_UNHEALTHY else ""
        if withdrawn and (health is None or is_healthy(health)):  # earlier, the device plugin may just have restarted
            health = Finding(Reason.DEVICE_UNHEALTHY, withdrawn)
        disruption, gpus = self.extent
        ends = phase in (Phase.ABORTING, Phase.UNCORDONING)  # no further pod is evicted
        drain = self.drain if fence and fence.disruption.cordons and not ends else None
        return Verdict(
            node=self.node.name,
            policy=fence.policy if fence else self.owner_name,
            phase=phase,
            reason=reason,
            message=message,
            disruption=disruption,
            gpus=gpus,
            wanted=target.text if target else fence.to_layout if fence else "",
            observed=assessment.observed_text if assessment else describe_observed(self.node, self.observed),
            deadline=fence.deadline if fence else None,
            attempt=fence.attempt if fence else 0,
            step=f"{fence.step}/{fence.steps}" if fence else "",
            needs=drain.needs if drain is not None else (),
            actions=actions,
            wake=wake,
            wants_pods=wants_pods,
            candidate=candidate,
            health=health,
            mps_pod=self.mps_pod,
        )
