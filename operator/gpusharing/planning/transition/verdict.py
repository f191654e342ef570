"""The verdict on one node: how far it is, why, what to do about it now, and when to judge it again.

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#slot, docs/design/glossary.md#gang,
docs/design/glossary.md#point-of-no-return.
"""

from dataclasses import fields, replace
from datetime import datetime
from functools import cached_property

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.drain.gangs import ending_gangs
from gpusharing.planning.drain.holders import scope_of
from gpusharing.planning.drain.plan import DrainPlan, plan_drain
from gpusharing.planning.drain.standing import find_standings
from gpusharing.planning.gpus.health import is_healthy
from gpusharing.planning.snapshot.actions import Action
from gpusharing.planning.snapshot.podviews import GangView, NodeWork, Scope
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.snapshot.views import GPUNodeView, PolicyView
from gpusharing.planning.stack.mpsdaemon import MpsLapses, find_lapses
from gpusharing.planning.vocabulary.blockers import Blocker
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.actuators.actuator import Actuator, ActuatorCase
from gpusharing.planning.wanted.assess import Assessed, Assessment
from gpusharing.planning.wanted.verify import describe_observed


@value
class Verdict:
    """The decision about one node. A node gets one, even if there is nothing to do, if a policy selects it or if it has
    a GPU, our fence, or the label that names its owner."""

    node: str
    """Name of the node."""
    policy: str
    """The owner, or the policy whose change is in flight; empty when no policy owns the node."""
    phase: Phase
    """How far the node's change has come."""
    reason: Reason
    """Why the node is in this phase."""
    message: str
    """The situation, its cause, and what to do. The text stays the same as long as nothing changes."""
    disruption: DisruptionClass = DisruptionClass.NONE
    """What the change disturbs, or would disturb. NONE means that there is nothing to change."""
    wanted: str = ""
    """The layout that the GPUs will get, as shown to people; empty if unknown."""
    observed: str = ""
    """The layout that the GPUs have now, as shown to people; empty if unknown."""
    pods: int = 0
    """How many pods hold a GPU, as far as listed."""
    needs: tuple[tuple[str, int], ...] = ()
    """How many pods the drain of the node still has to evict under each PodDisruptionBudget (`namespace/name`),
    according to the last LIST. Empty if the node is not being drained, or if no policy says how to drain it."""
    blockers: tuple[Blocker, ...] = ()
    """Why pods have not left or cannot leave, before and during a drain."""
    leaving: str = ""
    """The first pod that still has to leave in a drain, and how many more there are, such as `namespace/name +2`.
    Empty if there is none."""
    deadline: datetime | None = None
    """The deadline of the fence or, before there is a fence, the time at which the wait ends by itself. None if the
    wait ends in another way."""
    attempt: int = 0
    """The number of the attempt, from the fence, or 0 if no change is in flight."""
    step: str = ""
    """The number of the step and how many steps there are, such as `1/2`. Empty if no change is in flight."""
    actions: tuple[Action, ...] = ()
    """What to do about the node now, in this order."""
    wake: datetime | None = None
    """When the node has to be judged again even if nothing happens, or None if only an event can change the
    verdict."""
    wants_pods: bool = False
    """Whether the next pass needs the pods of this node."""
    candidate: bool = False
    """Whether the node waits only for a slot of the budget."""
    health: Finding | None = None
    """The health of the node's GPUs, as last reported; None while no GPU was reported."""
    lapses: MpsLapses | None = None
    """How often the node's MPS clients ended although nobody changed the node. None if that is not counted
    (`NodeCase.lapses`)."""
    keeper: str = ""
    """The object that holds the node back (see `Finding`). Empty if the reason says enough."""
    stands: bool = False
    """Whether only a person can end the wait here, although waits with this reason may end by themselves."""

    def then(self, *actions: Action) -> "Verdict":
        """Return a copy of the verdict with these actions in place of its own."""
        return replace(self, actions=actions)


def find_health(gpunode: GPUNodeView | None) -> Finding | None:
    """Return the Finding about the health of a node's GPUs, which is NO_TROUBLE if all are healthy. None if the agent
    has reported no GPU."""
    hardware = gpunode.observed.hardware if gpunode and gpunode.observed else None
    return hardware.health if hardware is not None and hardware.gpus else None


@value
class NodeCase(ActuatorCase):
    """Everything on which the decisions about one node depend in this pass.

    Two cases are equal if they differ only in the time, so a case is also the key by which the memo finds the last
    verdict.
    """

    owner: PolicyView | None
    """The policy that owns the node according to the selectors, or None if none does."""
    work: NodeWork | None
    """The pods of the node, or None if they were not listed, or were listed for a smaller change than the present one.
    """
    agent_ready: bool
    """Whether the agent's pod on the node is Ready."""
    agent_trouble: Finding | None
    """Why no agent is Ready, or None if one is or the cause is unknown."""
    claimed: bool
    """Whether the node holds a slot of the budget through a claim."""
    drifting_since: datetime | None
    """Since when this process has seen the node differ from its target, or None if it has seen no difference."""
    at_work_since: datetime | None
    """Since when this process has seen the actuator at work although we are not changing the node, or None if it is
    not at work."""
    actuator: Actuator
    """The actuator that changes this node."""
    old_views: str = ""
    """The kinds of objects whose cached state is stale; empty if there are none."""
    assessment: Assessment | None = None
    """The result of `compare`: the node compared with what its policy wants. None before the comparison, or if no
    policy drives the node."""

    @property
    def owner_name(self) -> str:
        """The name of the policy that owns the node according to the selectors; empty if none does."""
        return self.owner.name if self.owner is not None else ""

    @property
    def policy(self) -> PolicyView | None:
        """The policy with which the node was compared, or None if it was not compared."""
        return self.assessment.policy if self.assessment is not None else None

    def no_agent(self, consequence: str) -> Finding:
        """Return the Finding that no agent is Ready on the node. If the cause is known, the Finding has the cause's
        reason and message. Otherwise its reason is AgentNotReady, and `consequence` is added to the message."""
        if (trouble := self.agent_trouble) is not None:
            return Finding(trouble.reason, f"no agent runs on {self.node.name}: {trouble.message}")
        return Finding(Reason.AGENT_NOT_READY, f"no Ready agent pod runs on {self.node.name}{consequence}")

    @property
    def lapses(self) -> MpsLapses | None:
        """How often the node's MPS clients ended although nobody changed the node. None if the node has no pod of the
        MPS daemon, is not configured for MPS or has our fence, or if its daemon follows no label."""
        return find_lapses(self.node, self.operands, self.stack)

    @property
    def unhealthy(self) -> Finding | None:
        """What makes a GPU of the node unhealthy, or None if nothing does or nothing is known."""
        health = find_health(self.gpunode)
        return None if health is None or is_healthy(health) else health

    @property
    def disruption(self) -> DisruptionClass:
        """What the change disturbs, or NONE if the node has neither a target nor a fence. For a fenced node this is the
        worst class seen so far, because a recorded class is never lowered."""
        fence, assessment = self.node.fence, self.assessment
        now = assessment.disruption if isinstance(assessment, Assessed) else DisruptionClass.NONE
        return max(fence.disruption, now, key=lambda disruption: disruption.severity) if fence else now

    @property
    def scope(self) -> Scope:
        """Which pods must be gone before the change, and which must not be touched."""
        return scope_of(self.node, self.settings, self.stack, self.disruption)

    @property
    def gangs(self) -> tuple[GangView, ...]:
        """The gangs that the change interrupts: those with a pod that must leave the node. Empty if the pods were not
        listed."""
        return ending_gangs(self.work, self.scope) if self.work is not None and self.work.gangs else ()

    def verdict(
        self,
        phase: Phase,
        reason: Reason,
        message: str,
        *,
        wake: datetime | None = None,
        candidate: bool = False,
    ) -> Verdict:
        """Return a verdict with this phase, reason and message, and with every other field that follows from the case
        filled in. It has no actions, pods or blockers. On a fenced node, the policy, the deadline, the attempt and the
        step are those of the fence; on another node the policy is the owner. `candidate` says whether the node waits
        only for a slot. With `wake` None, only an event has the node judged again. On a node behind the start-up taint
        whose change has not begun, the message begins with the fact that the taint keeps workloads off the node."""
        assessment = self.assessment
        fence = self.node.fence
        target = assessment.target if isinstance(assessment, Assessed) else None
        if self.node.gate is not None and phase.part == "before":
            gated = f"no workload starts on this node until it is proven (taint {names.TAINT_UNPROVEN})"
            message = f"{gated}: {message}"
        observed = self.gpunode.observed if self.gpunode is not None else None
        return Verdict(
            node=self.node.name,
            policy=fence.policy if fence else self.owner_name,
            phase=phase,
            reason=reason,
            message=message,
            disruption=self.disruption,
            wanted=target.text if target else fence.to_layout if fence else "",
            observed=assessment.observed_text if assessment else describe_observed(self.node, observed),
            deadline=fence.deadline if fence else None,
            attempt=fence.attempt if fence else 0,
            step=f"{fence.step}/{fence.steps}" if fence else "",
            needs=self.needs(phase) if isinstance(self, FencedCase) else (),
            wake=wake,
            candidate=candidate,
            health=find_health(self.gpunode),
            lapses=self.lapses,
        )


@value(kw_only=True, slots=False)  # without slots, for `drain`
class FencedCase(NodeCase):
    """The case of a node that carries our fence."""

    fence: Fence
    """The fence, which equals `node.fence`."""

    @cached_property
    def drain(self) -> DrainPlan | None:
        """Which pods must leave and what holds them back, or None if the pods were not listed or no readable policy
        says how to drain. If the LIST failed and there is such a policy, the plan has only the failure. The plan
        deletes pods by force only before the point of no return, on a Ready node, and while the drain does not wait for
        jobs. Planned at the first use and then cached."""
        spec = self.assessment.policy.spec if self.assessment is not None else None
        if self.work is None or spec is None:
            return None
        found, fence = find_standings(self.work, spec.drain, self.now, scope=self.scope), self.fence
        # No pod is deleted by force after the point of no return, while jobs still have time to end, or on a node that
        # is not Ready, where a deletion would remove the object while its containers keep running.
        forcible = fence.stage == "fenced" and not fence.jobs and self.node.ready
        return plan_drain(found, self.now, fence.deadline if forcible else None)

    def needs(self, phase: Phase) -> tuple[tuple[str, int], ...]:
        """Return how many pods the drain still has to evict under each PodDisruptionBudget, without the pods that
        several budgets guard. Empty while that is unknown, if the change does not cordon the node, and in the phases
        Aborting and Uncordoning, in which no further pod is evicted."""
        ends = phase in (Phase.ABORTING, Phase.UNCORDONING)  # no further pod is evicted
        drains = not ends and self.fence.disruption.cordons
        return self.drain.needs if drains and self.drain is not None else ()

    @staticmethod
    def of(case: NodeCase, fence: Fence) -> "FencedCase":
        """Return a FencedCase with all fields of `case` and with `fence`, which must be the fence of the case's own
        node."""
        return FencedCase(**{one.name: getattr(case, one.name) for one in fields(NodeCase)}, fence=fence)
