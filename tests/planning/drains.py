"""gpu-07 on its way to an idle node, before the point of no return, for tests of that way."""

from typing import Any

from tests.build import NOW, at, make_fence, make_pod, make_policy, make_work
from tests.planning.cases import EVENT, FULL, MIXED, make_case, quiet_report

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass
from gpusharing.planning.snapshot.actions import Release
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.snapshot.views import GPUNodeView, PolicyView
from gpusharing.planning.transition.verdict import NodeCase, Verdict


def asked(seconds: float) -> str:
    return f"op-1:quiet:{EVENT}:{int(at(seconds).timestamp() * 1000)}"


EARLIER = at(-600)
FENCE = make_fence(since=EARLIER, deadline=at(300), disruption=DisruptionClass.RESET)
IDLE = make_work(listed_at=NOW, empty_since=at(-3))
RESTART = make_fence(since=EARLIER, deadline=at(300), disruption=DisruptionClass.PLUGIN_RESTART)
STRICT = make_policy(mode="TimeSlicing", timeSlicing={"replicas": 4, "failRequestsGreaterThanOne": True})
REQUEST = asked(-2)
MIG_CONFIG, MIG_STATE, PLUGIN = names.LABEL_MIG_CONFIG, names.LABEL_MIG_STATE, names.LABEL_PLUGIN_CONFIG


def fenced(policy: PolicyView | None = MIXED, fence: Fence = FENCE, **fields: Any) -> NodeCase:
    """gpu-07, whole until now, fenced and cordoned ten minutes ago on its way to `policy`; no pod holds a GPU."""
    node = {"unschedulable": True, **fields.pop("node", {})}
    work = fields.pop("work", IDLE)
    return make_case(policy, fence=fence, node=node, work=work, **fields)


def silent(**fields: Any) -> GPUNodeView:
    return quiet_report(FULL, REQUEST, **fields)


HELD = make_work(make_pod("stays", owner=None))


def released(verdict: Verdict) -> Release:
    (action,) = verdict.actions
    assert isinstance(action, Release)
    return action
