"""Verdicts and the status that follows from them, without a planner."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter
from tests.build import NOW, make_gpunode, make_node, make_policy, make_snapshot, make_stack

from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.api.policystatus import GPUSharingPolicyStatus
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.report.status import policy_status
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.memory import CallFailure, PassMemory
from gpusharing.planning.snapshot.podviews import NodeWork
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView, PolicyView
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason

STATUS = TypeAdapter(GPUSharingPolicyStatus)

POOL = make_policy(generation=7)
LAYOUT = "2x3g.40gb"
HALVES = {"nvidia.com/mig-3g.40gb": 2}
BAD_SPEC = Finding(Reason.INVALID_SPEC, "spec.mode: unknown")


def verdict(
    phase: Phase,
    reason: Reason = Reason.PROGRESSING,
    node: str = "gpu-07",
    message: str = "something is so",
    **fields: Any,
) -> Verdict:
    known: dict[str, Any] = {"wanted": LAYOUT} | fields
    if phase.in_flight:
        known.setdefault("disruption", DisruptionClass.RESET)
    return Verdict(node, "pool-b", phase, reason, message, **known)


SYNCED = verdict(Phase.SYNCED, Reason.SYNCED, message="2x3g.40gb proven")
DRAINING = verdict(Phase.DRAINING, Reason.PODS_LEAVING, "gpu-08")
CHANGING = verdict(Phase.RECONFIGURING, Reason.ACTUATION_IN_PROGRESS, "gpu-08", observed="7x1g.10gb", attempt=1)
PENDING = verdict(Phase.PENDING, Reason.BUDGET_FULL, "gpu-08")
FAILED = verdict(Phase.FAILED, Reason.ACTUATOR_FAILED, "gpu-09")
STUCK = verdict(Phase.BLOCKED, Reason.UNMANAGED, "gpu-10")
REFUSED = verdict(Phase.SKIPPED, Reason.NOT_MIG_CAPABLE, "gpu-11", "Tesla T4 has no MIG", wanted="")
PASSED_OVER = verdict(Phase.SKIPPED, Reason.PRODUCT_SKIPPED, "gpu-12", "Tesla T4 is not in spec.products", wanted="")


@dataclass
class StatusInput:
    verdicts: Sequence[Verdict] = ()
    policy: PolicyView = POOL
    objection: Finding | None = None
    nodes: Mapping[str, NodeView] = field(default_factory=dict)
    targets: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    reports: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    pending: Mapping[str, int] = field(default_factory=dict)
    work: Mapping[str, NodeWork] = field(default_factory=dict)
    coming: tuple[str, ...] = ()
    vain_passes: Mapping[str, int] = field(default_factory=dict)
    call_failures: Mapping[str, CallFailure] = field(default_factory=dict)

    def status(self, previous: Mapping[str, Any] | None = None, now: datetime = NOW) -> dict[str, Any]:
        status = policy_status(self.policy, *self.found(now), previous or {}, now)
        STATUS.validate_python(status)
        return status

    def found(self, now: datetime = NOW) -> tuple[RolloutPlan, ClusterSnapshot]:
        own = [one.node for one in self.verdicts if one.policy == self.policy.name]
        plan = RolloutPlan(
            verdicts={one.node: one for one in self.verdicts},
            pools={self.policy.name: Pool(self.policy, names=own).with_hours(now)},
            objections={self.policy.name: self.objection} if self.objection else {},
            shared=(),
            targets=self.targets,
            memory=PassMemory(vain_passes=self.vain_passes),
            coming={self.policy.name: self.coming},
            wake_at=None,
        )
        names = [one.node for one in self.verdicts]
        return plan, make_snapshot(
            [self.nodes.get(name) or make_node(name) for name in names],
            [self.policy],
            gpunodes=[make_gpunode(name, **self.reports.get(name, {})) for name in names],
            stack=make_stack(POOL),
            pending=self.pending,
            work=self.work,
            call_failures=self.call_failures,
        )


def answers(status: Mapping[str, Any]) -> dict[str, str]:
    """`True Synced` by condition."""
    return {row["type"]: f"{row['status']} {row['reason']}" for row in status["conditions"]}


def message(status: Mapping[str, Any], kind: str) -> str:
    (text,) = (row["message"] for row in status["conditions"] if row["type"] == kind)
    assert isinstance(text, str)
    return text
