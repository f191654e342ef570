"""Restarts of config-manager alone: they end MPS clients, are said and counted, and drain nobody (docs/design/transition.md#lapse)."""

from dataclasses import replace
from typing import Any

import pytest
from tests.build import make_cluster_policy, make_stack
from tests.planning.cases import MPS, SLICED, judged, make_case
from tests.wording import lacks

from gpusharing.api.names import Phase
from gpusharing.planning.report.events import node_events
from gpusharing.planning.snapshot.nvidia import Operand
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.stack.mps import count_lapses
from gpusharing.planning.transition.verdict import NodeCase
from gpusharing.planning.wanted.target import RELEASED_DAEMON

POD = Operand("gpu-operator", "mps-x", "uid-1", ready=True)
TEXT = (
    "the config-manager container in pod mps-x restarted once (OOMKilled, exit code 137) while the MPS daemon kept"
    " running; every such restart ends the MPS clients on the node"
)


def at_rest(restarts: int, policy: PolicyView = MPS, cause: str = "", **fields: Any) -> NodeCase:
    """A node that is as its policy wants it, beside an MPS daemon whose config-manager has restarted."""
    pod = replace(POD, lone_restarts=restarts, restart_cause=cause)
    return make_case(policy, was=policy, mps_daemon=pod, **fields)


def test_a_node_that_serves_again_stays_as_it_is_and_says_what_ended_its_clients() -> None:
    calm, verdict = judged(at_rest(0)), judged(at_rest(1, cause="OOMKilled, exit code 137"))
    assert (verdict.phase, verdict.actions) == (calm.phase, calm.actions)
    assert verdict.phase in (Phase.SYNCED, Phase.PENDING)
    assert verdict.message.endswith(f"; {TEXT}")
    assert verdict.message.removesuffix(f"; {TEXT}") == calm.message
    assert verdict.mps_pod == replace(POD, lone_restarts=1, restart_cause="OOMKilled, exit code 137")
    settling = judged(make_case(MPS, was=MPS, mps_daemon=replace(POD, settling=True)))
    assert settling.mps_pod == lapse(0, settling=True)


def test_several_restarts_are_counted_and_an_unknown_cause_is_left_out() -> None:
    assert "restarted 3 times while" in judged(at_rest(3)).message
    assert not lacks(judged(at_rest(2, cause="exit code 1")).message, "2 times", "exit code 1")
    assert judged(at_rest(-1, cause="exit code 1")).message == judged(at_rest(0)).message


NOBODY: dict[str, NodeCase] = {
    "no daemon": make_case(MPS, was=MPS),
    "another mode": at_rest(1, SLICED),
    "a daemon that follows no label": at_rest(
        1, stack=make_stack(MPS, cluster_policy=make_cluster_policy(mps_daemon=RELEASED_DAEMON))
    ),
}


@pytest.mark.parametrize("what", NOBODY)
def test_nothing_is_counted_where_no_client_can_have_ended(what: str) -> None:
    assert NOBODY[what].mps_pod is None


def lapse(count: int, pod: str = "uid-1", *, settling: bool = False) -> Operand:
    return replace(POD, uid=pod, lone_restarts=count, settling=settling)


SEEN: dict[str, tuple[Operand | None, Operand | None, int]] = {
    "a restart": (lapse(0), lapse(1), 1),
    "two between two passes": (lapse(1), lapse(3), 2),
    "none": (lapse(1), lapse(1), 0),
    "a new pod": (lapse(2), lapse(0, "uid-2"), 0),
    "one in a new pod": (lapse(2), lapse(1, "uid-2"), 1),
    "a daemon that was not there before": (None, lapse(1), 0),
    "both containers restarted": (lapse(1), lapse(0), 0),
    "no daemon any more": (lapse(1), None, 0),
    "the daemon alone": (lapse(0), lapse(-1), 0),
    "config-manager after the daemon": (lapse(-1), lapse(0), 1),
    "config-manager twice after the daemon": (lapse(-3), lapse(-1), 2),
    "the daemon alone in a new pod": (lapse(2), lapse(-1, "uid-2"), 0),
    "config-manager not running yet": (lapse(-3), lapse(0, settling=True), 0),
    "config-manager running again, first seen without": (lapse(-4, settling=True), lapse(-3), 0),
}


@pytest.mark.parametrize("what", SEEN)
def test_each_restart_is_an_event_once(what: str) -> None:
    before, after, count = SEEN[what]
    verdict = judged(at_rest(0))
    told = node_events(replace(verdict, mps_pod=before), replace(verdict, mps_pod=after))
    assert [(event.type, event.reason) for event in told] == [("Warning", "MPSClientsEnded")] * bool(count)
    shown = max(count, after.lone_restarts) if after is not None else 0
    times = "once" if shown == 1 else f"{shown} times"
    assert not any(lacks(one.note, "gpu-07", "config-manager", "pod mps-x", times) for one in told)
    assert (count_lapses(before, after) if after is not None else 0) == count
