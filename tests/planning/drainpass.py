"""One pass of a drain: how the pods of a node stand, and what is planned for them."""

from dataclasses import dataclass, replace
from datetime import datetime

from tests.build import NOW

from gpusharing.api.policy import Drain
from gpusharing.planning.drain.placement import Offer
from gpusharing.planning.drain.plan import DrainPlan, plan_drain, preflight
from gpusharing.planning.drain.standing import Standings, find_standings
from gpusharing.planning.drain.stranded import Afterwards, FutureNode
from gpusharing.planning.snapshot.podviews import NodeWork, PodView, Scope
from gpusharing.planning.vocabulary.findings import Blocker

OPERATOR = "gpu-operator"
SCOPE = Scope(OPERATOR)


def roomy(*names: str) -> Afterwards:
    """A cluster in which another node will advertise plenty of these resources, and no other one."""
    node = FutureNode(Offer("elsewhere", dict.fromkeys(names, 1000)), {}, {}, kept={}, open=True)
    return Afterwards(lambda: [node])


GPU = roomy("nvidia.com/gpu")


@dataclass(frozen=True)
class DrainPass:
    found: Standings
    plan: DrainPlan

    @property
    def waiting(self) -> tuple[PodView, ...]:
        """Pods for which there is nothing to do but to look again."""
        return tuple(one.pod for one in self.found.leaving)

    @property
    def later(self) -> tuple[PodView, ...]:
        """Pods to evict in a later pass; nothing but our own pace holds them back."""
        named = {ref for blocker in self.plan.blockers for ref in blocker.pods}
        staying = (one.pod for one in self.found.remaining)
        return tuple(pod for pod in staying if pod not in self.plan.evict and pod.ref not in named)


def drain_pass(
    work: NodeWork, options: Drain | None = None, now: datetime = NOW, cordoned: datetime | None = None
) -> DrainPass:
    scope = replace(SCOPE, cordoned_at=cordoned)
    found = find_standings(work, options or Drain(), now, scope=scope)
    return DrainPass(found, plan_drain(found, now))


def planned(work: NodeWork, options: Drain | None = None, now: datetime = NOW) -> DrainPlan:
    return drain_pass(work, options, now).plan


def foreseen(
    work: NodeWork, now: datetime = NOW, *, options: Drain | None = None, afterwards: Afterwards = GPU
) -> tuple[Blocker, ...]:
    """What is found before the cordon."""
    options = options or Drain()
    found = find_standings(work, options, now, scope=SCOPE, cordoned=False)
    return preflight(found, options, afterwards, now)
