"""Events: one when something happens to a node, none while nothing happens, none because the operator restarted."""

from collections import Counter
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.build import DEFAULT_CLUSTER_POLICY, NOW, make_fence, make_node, make_policy
from tests.planning.machines import NodeMachine
from tests.planning.told import CHANGING, DRAINING, FAILED, PENDING, STUCK, SYNCED, verdict
from tests.planning.world import World
from tests.wording import lacks

from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.gpus.health import NO_TROUBLE
from gpusharing.planning.report.events import MAX_NOTE, Event, cordon_event, node_events, refusal_event, shared_event
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.actions import Actuate, SetPointers
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.findings import Blocker, Finding, explain_blockers
from gpusharing.planning.vocabulary.reasons import Reason

PHASES = (Phase.PENDING, Phase.BLOCKED, Phase.DRAINING, Phase.RECONFIGURING, Phase.FAILED, Phase.ABORTING)

BUDGET = Blocker(Reason.PDB, ("team-b/ranker-0",), "team-b/ranker", "0 of 2 may go")
LONER = Blocker(Reason.UNMANAGED, ("team-a/notebook",))
LISTED = replace(DRAINING, pods=2)
VERIFYING = replace(CHANGING, phase=Phase.VERIFYING, reason=Reason.LABEL_MISMATCH)
DONE = replace(SYNCED, node="gpu-08")
IDLE = replace(CHANGING, phase=Phase.VERIFYING_IDLE, reason=Reason.SETTLING)
BEGINNING = CHANGING.then(Actuate(make_node("gpu-08"), make_fence(), {}))
LOST = Finding(Reason.GPU_LOST, "GPU 1: fell off the bus")
WORSE = Finding(Reason.ROW_REMAP_FAILED, "GPU 2: replace the card")
SICK, HEALED = replace(DONE, health=LOST), replace(DONE, health=NO_TROUBLE)
BLOCKED = replace(LISTED, blockers=(BUDGET,))


def warned(reason: str, note: str) -> tuple[str, str, str]:
    return "Warning", reason, f"gpu-08: {note}"


DRAINS = ("Normal", "DrainStarted", "gpu-08: 2 GPU pods will be evicted before the change to 2x3g.40gb")
BEGINS = ("Normal", "Reconfiguring", "gpu-08: 7x1g.10gb -> 2x3g.40gb (class Reset)")
SICKENS = warned("GPUUnhealthy", "GPULost: GPU 1: fell off the bus")
BLOCKS = warned("PodEvictionBlocked", f"Unmanaged: Pod team-a/notebook. Remedy: {Reason.UNMANAGED.remedy}")


class Transition(NamedTuple):
    before: Verdict
    after: Verdict
    told: tuple[str, str, str] | None = None


TRANSITIONS = {
    "waiting is no event": Transition(PENDING, replace(PENDING, reason=Reason.PROGRESSING, message="other")),
    "a cordon is no event": Transition(PENDING, verdict(Phase.CORDONED, Reason.SETTLING, "gpu-08")),
    "a drain that does not know its pods yet": Transition(PENDING, DRAINING),
    "pods are counted, and no drain begins": Transition(PENDING, replace(PENDING, pods=2)),
    "a drain that goes on": Transition(LISTED, replace(LISTED, pods=1, reason=Reason.PDB)),
    "the point of no return is planned": Transition(IDLE, BEGINNING),
    "the write of the point of no return is refused": Transition(BEGINNING, IDLE),
    "another attempt is planned and begins": Transition(replace(BEGINNING, attempt=2), replace(CHANGING, attempt=2)),
    "a node is proven idle once more, and a pod of the actuator is restarted": Transition(
        replace(IDLE, deadline=NOW), replace(CHANGING, deadline=NOW, observed="2x3g.40gb")
    ),
    "a proof begins": Transition(CHANGING, VERIFYING),
    "a proof falls back": Transition(VERIFYING, CHANGING),
    "the restart begins": Transition(
        replace(CHANGING, phase=Phase.VERIFYING_IDLE, attempt=2), replace(CHANGING, attempt=2)
    ),
    "a node in its second attempt that nobody can judge": Transition(
        CHANGING, verdict(Phase.BLOCKED, Reason.NODE_NOT_JUDGED, "gpu-08", attempt=2)
    ),
    "a node is as wanted before its change began": Transition(replace(PENDING, disruption=DisruptionClass.RESET), DONE),
    "the first attempt is no restart": Transition(replace(CHANGING, attempt=0), CHANGING),
    "a node is adopted": Transition(PENDING, DONE),
    "the trouble lasts": Transition(SICK, replace(DONE, health=LOST, observed="1x full")),
    "the report goes missing": Transition(SICK, DONE),
    "a first report that every GPU is healthy": Transition(DONE, HEALED),
    "a blocker goes": Transition(replace(LISTED, blockers=(BUDGET, LONER)), replace(LISTED, blockers=(LONER,))),
    "a blocker holds other pods": Transition(
        BLOCKED, replace(LISTED, blockers=(replace(BUDGET, pods=("team-b/ranker-1",), message="still"),))
    ),
    "a drain that learns its pods": Transition(DRAINING, LISTED, DRAINS),
    "a drain that begins with its pods": Transition(PENDING, LISTED, DRAINS),
    "a drain whose pods were counted before": Transition(
        verdict(Phase.PREFLIGHT, Reason.PROGRESSING, "gpu-08", pods=2), LISTED, DRAINS
    ),
    "the point of no return is passed": Transition(
        BEGINNING, replace(CHANGING, observed="", disruption=DisruptionClass.NONE), BEGINS
    ),
    "the point of no return is passed, and the proof begins": Transition(BEGINNING, VERIFYING, BEGINS),
    "the point of no return was written by a pass that got no answer": Transition(
        replace(IDLE, deadline=NOW), replace(CHANGING, deadline=NOW + timedelta(minutes=25)), BEGINS
    ),
    "mig-manager is restarted": Transition(
        replace(CHANGING, message="mig-manager hangs; restarting mig-manager"),
        replace(CHANGING, phase=Phase.VERIFYING_IDLE, attempt=2),
        warned("ActuatorRestarted", "mig-manager hangs; restarting mig-manager"),
    ),
    "a cordon is put back": Transition(
        FAILED,
        replace(CHANGING, reason=Reason.CORDON_RESTORED, message="somebody lifted the cordon"),
        warned("CordonRestored", "somebody lifted the cordon"),
    ),
    "our cordon stays for somebody else": Transition(
        VERIFYING,
        verdict(Phase.UNCORDONING, Reason.CORDON_KEPT, "gpu-08", "kured is working on gpu-08"),
        warned("CordonKept", "kured is working on gpu-08"),
    ),
    "the change is proven": Transition(VERIFYING, DONE, ("Normal", "LayoutVerified", "gpu-08: 2x3g.40gb proven")),
    "the change is given up": Transition(
        LISTED,
        verdict(Phase.ABORTING, Reason.DRAIN_TIMEOUT, "gpu-08", "no end in 15m"),
        warned("ChangeGivenUp", "DrainTimeout: no end in 15m"),
    ),
    "the node fails": Transition(
        CHANGING, replace(FAILED, node="gpu-08"), warned("NodeFailed", "ActuatorFailed: something is so")
    ),
    "a failure is told once, whatever its reason": Transition(
        CHANGING,
        replace(FAILED, node="gpu-08", reason=Reason.ORPHAN_FENCE),
        warned("NodeFailed", "OrphanFence: something is so"),
    ),
    "a GPU becomes unhealthy": Transition(HEALED, SICK, SICKENS),
    "a node joins with an unhealthy GPU": Transition(DONE, SICK, SICKENS),
    "another trouble is graver": Transition(
        SICK, replace(DONE, health=WORSE), warned("GPUUnhealthy", "RowRemapFailed: GPU 2: replace the card")
    ),
    "the GPU is healthy again": Transition(
        SICK, HEALED, ("Normal", "GPUHealthy", "gpu-08: every GPU is healthy again")
    ),
    "drift": Transition(
        DONE, verdict(Phase.PENDING, Reason.DRIFTED, "gpu-08", "MIG is off"), warned("Drifted", "MIG is off")
    ),
    "drift comes back": Transition(
        DONE,
        verdict(Phase.BLOCKED, Reason.DRIFT_RETURNED, "gpu-08", "MIG is off"),
        warned("DriftReturned", "MIG is off"),
    ),
    "a blocker appears": Transition(LISTED, replace(LISTED, blockers=(LONER,)), BLOCKS),
    "the first of two new blockers is told": Transition(
        LISTED,
        replace(LISTED, blockers=(LONER, BUDGET)),
        warned("PodEvictionBlocked", f"{explain_blockers((LONER, BUDGET))[0]}"),
    ),
    "the new one of two blockers is told": Transition(BLOCKED, replace(LISTED, blockers=(BUDGET, LONER)), BLOCKS),
    "another budget blocks": Transition(
        BLOCKED,
        replace(LISTED, blockers=(replace(BUDGET, pdb="team-b/other"),)),
        warned(
            "PodEvictionBlocked", f"PDB team-b/other: Pod team-b/ranker-0. 0 of 2 may go. Remedy: {Reason.PDB.remedy}"
        ),
    ),
}


@pytest.mark.parametrize("change", TRANSITIONS)
def test_each_transition_is_told_once(change: str) -> None:
    before, after, told = TRANSITIONS[change]
    found = [(event.type, event.reason, event.note) for event in node_events(before, after)]
    assert found == ([] if told is None else [told])
    assert node_events(after, replace(after)) == (), "and not again"
    assert node_events(None, after) == (), "nor by a restarted operator"


def test_an_adoption_out_of_a_change_that_disturbs_nothing_is_no_event() -> None:
    before = verdict(Phase.UNCORDONING, node="gpu-08", disruption=DisruptionClass.NONE)
    assert node_events(before, DONE) == ()


@given(
    text=st.text(max_size=3000) | st.text("é准", min_size=990, max_size=1010),
    pods=st.lists(st.text(min_size=300, max_size=600), max_size=5),
)
def test_every_note_fits_into_an_event(text: str, pods: list[str]) -> None:
    blocked = replace(STUCK, blockers=(Blocker(Reason.EVICTION_ERROR, tuple(pods), text, text),))
    events = [
        *node_events(PENDING, blocked),
        *node_events(CHANGING, replace(FAILED, message=text)),
        *node_events(LISTED, replace(CHANGING, observed=text, wanted=text, deadline=NOW)),
    ]
    assert len(events) == 3
    assert MAX_NOTE <= 1024, "the API server's limit"
    assert all(event.note and len(event.note.encode()) <= MAX_NOTE for event in events)


def test_a_note_is_cut_only_where_it_would_not_fit() -> None:
    lead = "gpu-08: ActuatorFailed: "
    fits = "x" * (MAX_NOTE - len(lead))
    for text, note in ((fits, lead + fits), (fits + "x", lead + fits[:-3] + "...")):
        (event,) = node_events(CHANGING, replace(FAILED, node="gpu-08", message=text))
        assert event.note == note
        assert len(note) == MAX_NOTE


def test_what_we_set_on_the_cluster_policy_is_told_field_by_field_with_what_it_sets_off() -> None:
    wanted = {"migManager.config.name": "ours-mig", "devicePlugin.config.name": "ours"}
    event = shared_event(SetPointers(DEFAULT_CLUSTER_POLICY, wanted))
    assert (event.type, event.reason) == ("Normal", "PointersSet")
    assert not lacks(event.note, "devicePlugin.config.name=ours", "migManager.config.name=ours-mig")
    assert not lacks(event.note, "gpuOperator.configure", "every GPU node")


def answered(status: str, reason: str = "PluginConfigNotOurs", message: str = "it is x; run: y") -> dict[str, Any]:
    rows = [("Ready", "False", "NotAccepted", "no"), ("Accepted", status, reason, message)]
    keys = ("type", "status", "reason", "message")
    return {"conditions": [dict(zip(keys, row, strict=True)) for row in rows]}


@pytest.mark.parametrize(
    "before",
    [{}, answered("True", "Valid", "fine"), answered("False", "InvalidSpec"), answered("False", message="it was z")],
    ids=["a new policy", "one that was accepted", "one refused for another reason", "one refused in other words"],
)
def test_a_refusal_is_a_warning_about_the_policy_with_reason_and_message(before: dict[str, Any]) -> None:
    assert refusal_event(before, answered("False")) == Event("Warning", "PluginConfigNotOurs", "it is x; run: y")


def test_of_a_refusal_that_lasts_and_of_one_that_ended_nothing_is_told() -> None:
    assert refusal_event(answered("False"), answered("False")) is None
    assert refusal_event(answered("False"), answered("True", "Valid", "fine")) is None


def test_a_whole_change_is_told_by_three_events_a_node() -> None:
    world = World()
    for name in ("gpu-07", "gpu-08"):
        world.add_node(name, NodeMachine(name))
    world.set_policy(make_policy(mode="Full"))
    world.settle()
    for name in world.nodes:
        world.add_pod(name)
    world.set_policy(make_policy(drain={"strandedPods": "Allow"}))
    told: list[Event] = []
    known: dict[str, Verdict] = {}
    for _ in range(300):
        for node in world.nodes:
            world.act(node)
        for name, after in plan_rollout(world.snapshot(), world.now).verdicts.items():
            told += node_events(known.get(name), after)
            known[name] = after
        world.step()
        world.now += timedelta(seconds=1)
    assert {after.phase for after in known.values()} == {Phase.SYNCED}
    counts = Counter((event.reason, event.note.split(":")[0]) for event in told)
    reasons = ("DrainStarted", "Reconfiguring", "LayoutVerified")
    assert counts == {(reason, node): 1 for reason in reasons for node in world.nodes}


OPEN, FENCED = make_node(), make_node(unschedulable=True, fence=make_fence())
HUMAN = make_node(unschedulable=True)
CHANGE = "the change to 2x3g.40gb under policy pool-b"
ENDED = f"the operator has released the node after {CHANGE}"
RESTARTING = make_node(fence=make_fence(disruption=DisruptionClass.PLUGIN_RESTART))
CORDONED_BEFORE = make_node(unschedulable=True, fence=make_fence(prior_unschedulable=True))
CORDONS = {
    "the operator cordons": (OPEN, FENCED, ("NodeCordoned", f"the operator has cordoned the node for {CHANGE}")),
    "the change ends": (FENCED, OPEN, ("NodeReleased", f"{ENDED}; it accepts pods again")),
    "the change ends and the cordon stays": (FENCED, HUMAN, ("NodeReleased", f"{ENDED}; it stays cordoned by others")),
    "a person cordons": (OPEN, HUMAN, None),
    "a person uncordons": (HUMAN, OPEN, None),
    "the change goes on": (FENCED, make_node(unschedulable=True, fence=make_fence("actuating")), None),
    "a change that needs no cordon": (OPEN, RESTARTING, None),
    "a change on a node that a person had cordoned": (HUMAN, CORDONED_BEFORE, None),
}


@pytest.mark.parametrize("case", CORDONS)
def test_a_node_is_told_of_the_operators_own_cordon_alone_when(case: str) -> None:
    before, after, wanted = CORDONS[case]
    assert cordon_event(before, after) == (wanted and Event("Normal", *wanted))


def test_a_point_of_no_return_that_is_refused_again_and_again_is_told_once() -> None:
    told: list[str] = []
    passes = (IDLE, BEGINNING, IDLE, BEGINNING, replace(BEGINNING, message="refused"), CHANGING, CHANGING, VERIFYING)
    for before, after in pairwise(passes):
        told += [event.reason for event in node_events(before, after)]
    assert told == ["Reconfiguring"]


@pytest.mark.parametrize("reason", Reason)
def test_no_reason_is_told_twice_while_nothing_but_its_words_change(reason: Reason) -> None:
    blocker = Blocker(reason, ("a/1", "a/2"), message="said once")
    for phase in PHASES:
        entered = verdict(phase, reason, "gpu-08", pods=2, blockers=(blocker,), attempt=2)
        told = node_events(PENDING, entered)
        assert len({(event.reason, event.note) for event in told}) == len(told)
        said_anew = replace(blocker, pods=("a/2",), message="said otherwise")
        again = replace(entered, message="other words", pods=1, blockers=(said_anew,), deadline=NOW)
        assert node_events(entered, replace(entered)) == ()
        assert node_events(entered, again) == ()
