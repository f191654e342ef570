"""gpu-07 in the middle of a change, after the point of no return, for tests of what follows it."""

from dataclasses import replace
from datetime import datetime
from typing import Any

from tests.build import NOW, at, make_fence, make_work
from tests.planning.cases import EVENT, MIXED, make_case, pair_of, quiet_report

from gpusharing.api import names
from gpusharing.planning.snapshot.podviews import NodeWork, PodView
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.snapshot.views import GPUNodeView, PolicyView
from gpusharing.planning.transition.verdict import NodeCase, Verdict

MIG_CONFIG, MIG_STATE, PLUGIN = names.LABEL_MIG_CONFIG, names.LABEL_MIG_STATE, names.LABEL_PLUGIN_CONFIG
PAUSED: dict[str, str | None] = {f"{names.LABEL_DEPLOY_PREFIX}device-plugin": names.PAUSED_FOR_MIG}
FAILED: dict[str, str | None] = {MIG_STATE: "failed"}
VERIFY = f"op-1:verify:{EVENT}:{int(NOW.timestamp() * 1000)}"


def fence_to(policy: PolicyView, since: datetime = NOW, **fields: Any) -> Fence:
    """The record of a change to this policy whose point of no return was at `since`."""
    mig, plugin = pair_of(policy)
    known = {"target_mig_config": mig, "target_plugin_config": plugin}
    return make_fence("actuating", since=since, **{"deadline": at(2400), **known, **fields})


FENCE = fence_to(MIXED)


def answering(request: str = VERIFY, was: PolicyView = MIXED, **fields: Any) -> GPUNodeView:
    """The agent reads again, and has answered this request."""
    return replace(quiet_report(was, request, **{"quiet": False, **fields}), quiet=False)


def changing(policy: PolicyView | None = MIXED, *, fence: Fence = FENCE, now: float = 60, **fields: Any) -> NodeCase:
    """gpu-07, one minute after the PNR; labels, GPUs and resources are those of 2x3g.40gb unless said otherwise."""
    node = {"unschedulable": True, **fields.pop("node", {})}
    known: dict[str, Any] = {"was": MIXED, "gpunode": answering(), **fields}
    return make_case(policy, fence=fence, node=node, now=at(now), **known)


def only(verdict: Verdict) -> Any:
    (action,) = verdict.actions
    return action


def asked_at(seconds: float, kind: str = "") -> str:
    return f"op-1:quiet:{kind}{EVENT}:{int(at(seconds).timestamp() * 1000)}"


def emptied(now: float, *pods: PodView) -> NodeWork:
    """Two LISTs without a holder, the second of them now; with pods, one LIST that shows these."""
    return make_work(*pods, listed_at=at(now), empty_since=None if pods else at(now - 4))


def proven_idle(now: float, was: PolicyView = MIXED, **fields: Any) -> dict[str, Any]:
    """What a NodeCase has at that time when the node is proven idle."""
    return {"now": now, "work": emptied(now), "gpunode": quiet_report(was, asked_at(now - 3), **fields)}
