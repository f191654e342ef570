"""The nodes of one policy, as what keeps them from starting is asked about them: holds, approval, canary."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning.pools.hours import Hours
from gpusharing.planning.proof.assess import Assessment
from gpusharing.planning.snapshot.views import NodeView, PolicyView
from gpusharing.planning.way.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Member:
    """One node of a policy that its budget is about."""

    node: NodeView
    verdict: Verdict
    """What it is told before the pools choose."""
    assessment: Assessment | None
    """Against the policy; None: nobody knows."""


@dataclass(frozen=True, slots=True)
class Pooled:
    """All that a hold may look at."""

    policy: PolicyView
    spec: GPUSharingPolicySpec
    """The policy's."""
    members: Sequence[Member]
    frozen: bool
    """The limit is 0, whatever the pool has."""
    hours: Hours
    """What the windows say."""
    now: datetime
