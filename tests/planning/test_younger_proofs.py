"""A proof is younger than the event that it is about: a run of mig-manager, a cordon, the last pod (docs/adr/0004)."""

from dataclasses import replace
from typing import Any

import pytest
from tests.build import at
from tests.planning.cases import EVENT, FULL, MIXED, MPS, pair_of, quiet_report
from tests.planning.changes import MIG_CONFIG, MIG_STATE, changing, emptied, fence_to

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.snapshot.actions import Action, Actuate, EnsureGPUNode
from gpusharing.planning.snapshot.views import GPUNodeView, PolicyView
from gpusharing.planning.transition.after import after_pnr
from gpusharing.planning.transition.verdict import Verdict

STUCK = 1300.0
"""Seconds after which mig-manager counts as stuck, so that the node may turn to another target."""


def asked_by(verdict: Verdict) -> str:
    (request,) = (action for action in verdict.actions if isinstance(action, EnsureGPUNode))
    return request.request_id


def answer(request: str, seen: PolicyView) -> GPUNodeView:
    """The agent has closed NVML for this request, and what it saw before is the layout of this policy."""
    return quiet_report(seen, request)


def labels_of(actions: tuple[Action, ...]) -> dict[str, str | None]:
    (actuate,) = actions
    assert isinstance(actuate, Actuate)
    return dict(actuate.labels)


def turned_to_mps(seconds: float, state: str | None, gpunode: GPUNodeView) -> Verdict:
    """The verdict about a node whose policy asks for MPS by now, so long after it went to MIG."""
    fence = fence_to(MIXED, deadline=at(4000), disruption=DisruptionClass.RESET)
    labels: dict[str, str | None] = {MIG_STATE: state}
    work = emptied(seconds)
    return after_pnr(changing(MPS, fence=fence, labels=labels, now=seconds, work=work, gpunode=gpunode))


def test_a_reading_from_before_mig_managers_success_leads_to_no_mps_on_mig() -> None:
    """mig-manager counts as stuck, the agent reads whole GPUs, and then mig-manager ends its run after all."""
    older = asked_by(turned_to_mps(STUCK, "pending", answer("op-1:older", FULL)))
    ended = turned_to_mps(STUCK + 4, "success", answer(older, FULL))
    renewed = asked_by(ended)
    assert renewed != older
    labels = labels_of(turned_to_mps(STUCK + 8, "success", answer(renewed, MIXED)).actions)
    assert labels[MIG_CONFIG] == "all-disabled"
    assert labels[names.LABEL_PLUGIN_CONFIG] == pair_of(FULL)[1], "whole GPUs come first"


def test_a_step_that_somebody_undid_meanwhile_is_not_proven_any_more() -> None:
    """The GPU Operator wrote another mig.config, and mig-manager applied it, while the next step was being prepared."""
    stop = fence_to(FULL, to_layout="1x full", steps=2, deadline=at(4000), disruption=DisruptionClass.RESET)
    at_the_stop: dict[str, str | None] = {MIG_CONFIG: "all-disabled", MIG_STATE: "success"}
    at_the_stop[names.LABEL_PLUGIN_CONFIG] = stop.target_plugin_config

    def seen(seconds: float, gpunode: GPUNodeView, **fields: str) -> Verdict:
        labels = {**at_the_stop, **fields}
        case = changing(MPS, was=FULL, fence=stop, labels=labels, gpunode=gpunode, now=seconds, work=emptied(seconds))
        return after_pnr(case)

    verify = asked_by(seen(60, answer("op-1:older", FULL)))
    open_again = replace(answer(verify, FULL), quiet=False)
    assert open_again.observed is not None
    open_again = replace(open_again, observed=replace(open_again.observed, quiet=False))
    older = asked_by(seen(64, open_again))
    assert "after-1" in older
    assert isinstance(seen(68, answer(older, FULL)).actions[0], Actuate), "nothing happened in between"
    undone = seen(68, answer(older, FULL), **{MIG_CONFIG: "all-1g.10gb"})
    assert not any(isinstance(action, Actuate) for action in undone.actions)


@pytest.mark.parametrize("state", ["pending", None], ids=["at work", "not begun"])
def test_while_mig_manager_may_still_divide_the_gpus_the_way_to_mps_has_two_steps(state: str | None) -> None:
    older = asked_by(turned_to_mps(STUCK, state, answer("op-1:older", FULL)))
    labels = labels_of(turned_to_mps(STUCK + 4, state, answer(older, FULL)).actions)
    assert labels[MIG_CONFIG] == "all-disabled"
    assert labels[names.LABEL_PLUGIN_CONFIG] == pair_of(FULL)[1]


def test_a_clock_that_is_set_back_by_an_hour_costs_one_request() -> None:
    ahead = fence_to(MIXED, since=at(3600), deadline=at(6000), disruption=DisruptionClass.RESET)

    def seen(seconds: float, request: str) -> Verdict:
        open_again = replace(answer("op-1:older", MIXED), request_id=request)
        fields: dict[str, Any] = {"work": emptied(seconds), "gpunode": open_again, "now": seconds}
        return after_pnr(changing(MPS, fence=ahead, **fields))

    renewed = asked_by(seen(60, f"op-1:quiet:{EVENT}:{int(at(3660).timestamp() * 1000)}"))
    for seconds in (60.2, 65, 3600, 3700):
        later = seen(seconds, renewed)
        assert (later.phase, later.actions) == (Phase.VERIFYING_IDLE, ()), seconds
