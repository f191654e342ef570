"""What the agent reports is what the wire types allow, and what it reads is what it wrote."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hack.sim.gpu import SimulatedGPUs
from pydantic import TypeAdapter

from gpusharing.agent.gpunode import Observation, gpu_status, request_of
from gpusharing.agent.library import GPU, Reading
from gpusharing.agent.podresources import Holdings
from gpusharing.agent.processes import MPS_SERVER
from gpusharing.api.gpunode import MAX_PROGRAMS, GPUNodeSpec, GPUStatus, ModelStatus, Observed, Request
from gpusharing.api.records import to_wire
from gpusharing.kube.client import JSON

OPERATOR = Path(__file__).parents[2] / "operator"
REPORT = TypeAdapter(Observed)
NOTHING_KNOWN = Observation.of({})


@pytest.fixture
def reading() -> Reading:
    """A node on which every field has a value somewhere, and null elsewhere."""
    gpus = SimulatedGPUs("gpu-01", ["NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-40GB", "Tesla T4"])
    gpus.set_mig_mode(0, on=True)
    device = gpus.create(0, "3g.40gb").uuid
    gpus.add_process(0, "python3", 42, device)
    with gpus.client():
        gpus.set_mig_mode(1, on=True)
    gpus.set_health(1, 3, (True, True))
    gpus.set_health(2, None, None)
    return gpus.read()


@pytest.fixture
def observation(reading: Reading) -> Observation:
    """The answer to a quiet request on that node."""
    answer = Observation.after(Request("r1", quiet=True), reading, simulated=True)
    return answer.held_by(Holdings({"nvidia.com/gpu": 2}, 1))


def node_with(observed: Any) -> dict[str, Any]:
    """A GPUNode as the server holds it."""
    return {"metadata": {"name": "gpu-01"}, "status": {"observed": observed}}


def stored_of(observation: Observation) -> dict[str, Any]:
    """What the server holds once this was written, its nulls among it."""
    patch = observation.patch({})
    assert patch is not None
    stored: dict[str, Any] = patch["status"]["observed"]
    return stored


def test_what_goes_over_the_wire_is_exactly_the_wire_type(observation: Observation) -> None:
    sent = to_wire(observation)
    stored = Observation.of(node_with(stored_of(observation)))
    assert REPORT.validate_python(sent) == REPORT.validate_python(to_wire(stored))
    assert to_wire(stored) == sent
    (first, second, third) = sent["gpus"]
    assert first.pop("mig").startswith("1x3g.40gb@")
    assert {"uuid"} == first.keys()
    flags = {"migPending": True, "eccErrors": True, "remapPending": True, "remapFailed": True, "mig": "Disabled"}
    assert flags.items() <= second.items()
    assert {"uuid"} == third.keys()
    assert sent["programs"] == "0 python3"
    assert sent["requestID"] == "r1"


def test_the_agent_does_not_pay_for_pydantic() -> None:
    """10 MiB on every GPU node: the records that it shares with the operator must not import it."""
    code = "import sys, gpusharing.agent.main; sys.exit('pydantic' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(OPERATOR)})


def test_the_defaults_are_a_valid_report_too() -> None:
    sent = to_wire(NOTHING_KNOWN.failing("NVMLNotLoaded: no driver", simulated=False))
    assert REPORT.dump_python(REPORT.validate_python(sent), mode="json", by_alias=True) == sent


def test_what_was_sent_is_understood_after_a_restart(observation: Observation) -> None:
    assert Observation.of(node_with(stored_of(observation))) == observation


def test_who_holds_devices_is_null_while_nobody_knows(observation: Observation) -> None:
    unknown = observation.held_by(None)
    stored = stored_of(observation) | {"allocated": {"nvidia.com/gpu": 2}}
    patch = unknown.patch(node_with(stored))
    assert patch is not None
    assert (patch["status"]["observed"]["allocated"], patch["status"]["observed"]["pods"]) == (None, None)
    assert unknown.patch(node_with(stored_of(unknown) | {"allocated": {"nvidia.com/gpu": 2}})) is not None
    dropped = {key: value for key, value in stored_of(unknown).items() if value is not None}
    assert unknown.patch(node_with(dropped)) is None
    assert Observation.of(node_with(dropped)) == unknown
    assert REPORT.validate_python(dropped).allocated is None


@pytest.mark.parametrize(
    "node",
    [
        {},
        {"status": None},
        {"status": {"observed": []}},
        {"status": {"observed": {"requestID": 7, "quiet": "yes", "gpus": "none"}}},
    ],
    ids=["nothing", "an empty status", "a list", "wrong types"],
)
def test_a_status_that_makes_no_sense_is_nothing_known(node: dict[str, Any]) -> None:
    assert Observation.of(node) == NOTHING_KNOWN


def test_the_request_is_read_as_the_wire_type_has_it() -> None:
    spec = {"request": {"id": "r7", "quiet": True}}
    assert TypeAdapter(GPUNodeSpec).validate_python(spec).request == request_of({"spec": spec})
    assert request_of({"spec": spec}) == Request("r7", quiet=True)
    assert request_of({}) == Request() == Request("", quiet=False)


def test_the_patch_names_every_key(observation: Observation) -> None:
    patch = observation.patch({})
    assert patch is not None
    assert set(patch["status"]["observed"]) == set(REPORT.json_schema(by_alias=True)["properties"])


def test_what_somebody_else_wrote_in_another_shape_is_written_anew(observation: Observation) -> None:
    assert observation.patch(node_with({**stored_of(observation), "pods": []})) is not None


def test_a_resource_that_is_gone_is_named_with_null(observation: Observation) -> None:
    stored = stored_of(observation) | {"allocated": {"nvidia.com/gpu": 2, "nvidia.com/mig-1g.10gb": 7}}
    patch = observation.patch(node_with(stored))
    assert patch is not None
    assert patch["status"]["observed"]["allocated"] == {"nvidia.com/gpu": 2, "nvidia.com/mig-1g.10gb": None}


def test_an_error_keeps_what_was_known_and_is_never_quiet(observation: Observation) -> None:
    failing = observation.failing("NVMLHung: x", simulated=True)
    assert (failing.gpus, failing.request_id, failing.quiet) == (observation.gpus, "r1", False)


@pytest.mark.parametrize(
    ("request_", "closed"),
    [(Request("r1", True), True), (Request("r1", False), False), (Request("r2", True), False)],
    ids=["the quiet request that was answered", "the same one, no longer quiet", "another quiet one"],
)
def test_the_library_stays_closed_for_the_answered_quiet_request_only(
    observation: Observation, request_: Request, closed: bool
) -> None:
    assert observation.keeps_closed(request_) is closed
    failing = observation.failing("NVMLHung: x", simulated=True)
    assert not failing.keeps_closed(request_), "it may be open after all"


def test_wire_names_are_camel_case_and_what_is_at_its_default_is_left_out_of_lists_only() -> None:
    assert to_wire((ModelStatus("a", "0-1", ""),)) == [{"product": "a", "gpus": "0-1", "profiles": ""}]
    assert to_wire((GPUStatus("GPU-0", mig_pending=True),)) == [{"uuid": "GPU-0", "migPending": True}]
    assert to_wire(GPUStatus())["recoveryAction"] is None


@pytest.mark.parametrize(
    ("before", "after", "sent"),
    [(3, 4, False), (0, 1, True), (None, 0, False), (5, 0, True)],
    ids=["more errors", "the first error", "a count where there was none", "a reset"],
)
def test_a_count_of_errors_that_only_grows_is_not_written_anew(
    reading: Reading, before: int | None, after: int, sent: bool
) -> None:
    def observed(errors: int | None) -> Observation:
        gpus = tuple(replace(gpu, ecc_uncorrected=errors) for gpu in reading.gpus)
        return Observation.after(Request("r1"), replace(reading, gpus=gpus), simulated=True)

    patch = observed(after).patch(node_with(stored_of(observed(before))))
    assert (patch is not None) is sent


def test_a_lost_gpu_keeps_what_was_known_of_it_and_says_that_it_is_lost(reading: Reading) -> None:
    before = Observation.after(Request("r1"), reading, simulated=True)
    gone = replace(reading, gpus=(GPU(0, access="Lost"), *reading.gpus[1:]), models=reading.models[1:])
    after = Observation.after(Request("r2"), gone, simulated=True, last=before)
    assert after.gpus[0] == replace(before.gpus[0], access="Lost")
    assert (after.programs, after.compute_modes) == (before.programs, before.compute_modes)
    assert after.gpus[1:] == before.gpus[1:]
    assert {model.product: model for model in after.models} == {model.product: model for model in before.models}
    assert REPORT.validate_python(to_wire(after)).gpus[0].access == "Lost"


def test_a_gpu_that_was_never_seen_is_reported_by_its_index(reading: Reading) -> None:
    gone = replace(reading, gpus=(GPU(0, access="ResetRequired"),), models=())
    report = REPORT.validate_python(to_wire(Observation.after(Request("r1"), gone, simulated=True)))
    assert report.models == ()
    assert report.gpus == (GPUStatus(access="ResetRequired"),)
    assert report.compute_modes == "0 NotSupported"


def test_only_under_a_driver_without_a_recovery_action_does_a_critical_xid_count(reading: Reading) -> None:
    """It is remembered, whereas the driver's action goes away with the problem."""
    for action, xid in (("None", None), ("Reset", None), (None, 79)):
        sick = replace(reading.gpus[0], xid=79, recovery_action=action)  # type: ignore[arg-type]  # words of the table
        status = gpu_status(sick)
        assert (status.recovery_action, status.xid) == ("Reset" if action == "Reset" else None, xid)


def test_a_model_names_its_gpus_also_while_one_is_lost() -> None:
    reading = SimulatedGPUs("gpu-01", ["Tesla T4"] * 2).read()
    both = Observation.after(Request("r1"), reading, simulated=True)
    assert [(model.product, model.gpus) for model in both.models] == [("Tesla T4", "0-1")]
    lost = replace(reading, gpus=(GPU(0, access="Lost"), reading.gpus[1]))
    again = Observation.after(Request("r1"), lost, simulated=True, last=both)
    assert (again.models, again.gpus) == (both.models, (replace(both.gpus[0], access="Lost"), both.gpus[1]))
    known = Observation.after(Request("r1"), lost, simulated=True)
    assert [model.gpus for model in known.models] == ["1"], "nobody knows the first one's"


def test_programs_are_told_with_their_gpus_and_none_crowds_out_the_daemons_of_mps() -> None:
    gpus = SimulatedGPUs("gpu-01", ["Tesla T4"] * 4)
    for number in range(20):
        gpus.add_process(number % 3, f"a{number:02}", number + 1)
    for index in (0, 1, 3):
        gpus.add_process(index, MPS_SERVER, 99)
    found = Observation.after(Request("r1"), gpus.read(), simulated=True).programs
    first, *_, last = found.split("; ")
    assert len(found.split("; ")) == MAX_PROGRAMS
    assert first == f"0-1,3 {MPS_SERVER}"
    assert last == "0-2", "those that are not named count as busy"


def test_an_observation_in_which_nothing_changed_is_the_same_object(reading: Reading) -> None:
    request, holdings = Request("r1"), Holdings({"nvidia.com/gpu": 1}, 1)
    before = Observation.after(request, reading, simulated=True).held_by(holdings)
    assert before.again(request).held_by(Holdings({"nvidia.com/gpu": 1}, 1)) is before
    assert before.again(Request("r2")).request_id == "r2"
    assert before.held_by(Holdings({"nvidia.com/gpu": 2}, 1)).allocated == {"nvidia.com/gpu": 2}
    assert before.held_by(None).allocated is None
    assert before.failing("NVMLFailed: x", simulated=True).again(request).error == ""


def test_a_lost_gpu_is_not_named_once_indices_have_shifted(reading: Reading) -> None:
    """GPU 0 is gone altogether, the next one is lost, and the last one shows that it moved."""
    before = Observation.after(Request("r1"), reading, simulated=True)
    last = replace(reading.gpus[2], index=1)
    shifted = replace(reading, gpus=(GPU(0, access="Lost"), last))
    after = Observation.after(Request("r2"), shifted, simulated=True, last=before)
    assert after.gpus[0] == GPUStatus(access="Lost")
    assert [(model.product, model.gpus) for model in after.models] == [(last.product, "1")]
    fewer = replace(reading, gpus=(GPU(0, access="Lost"), GPU(1, access="Lost")))
    gone = Observation.after(Request("r2"), fewer, simulated=True, last=before).gpus
    assert [gpu.uuid for gpu in gone] == ["", ""]
    moved = replace(reading, gpus=(replace(reading.gpus[1], index=0), GPU(1, access="Lost"), reading.gpus[2]))
    unknown = Observation.after(Request("r2"), moved, simulated=True, last=before).gpus[1]
    assert unknown.uuid == "", "GPU 0 or another one"


OTHER_FORMS: dict[str, Callable[[Observation], JSON]] = {
    "without programs": lambda one: {key: value for key, value in stored_of(one).items() if key != "programs"},
    "models without GPUs": lambda one: stored_of(one) | {"models": [{"product": "NVIDIA A30", "profiles": ["1g.6gb"]}]},
    "GPUs with an index": lambda one: stored_of(one) | {"gpus": [{"index": 0, "uuid": "GPU-0", "mig": "Disabled"}]},
    "a word for a number": lambda one: stored_of(one) | {"pods": "2"},
}


@pytest.mark.parametrize("stored", OTHER_FORMS.values(), ids=OTHER_FORMS.keys())
def test_a_report_of_another_form_answers_no_request_and_is_not_written_again(
    observation: Observation, stored: Callable[[Observation], JSON]
) -> None:
    quiet = replace(observation, request_id="r1", quiet=True)
    assert Observation.of(node_with(stored_of(quiet))).keeps_closed(Request("r1", quiet=True))
    node = node_with(stored(quiet))
    assert not Observation.of(node).keeps_closed(Request("r1", quiet=True))
    written = Observation.of(node).failing("NVMLNotLoaded: no driver", simulated=False)
    assert REPORT.validate_python(to_wire(written)).error == "NVMLNotLoaded: no driver"
