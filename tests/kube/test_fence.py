"""Records on Nodes and on the Lease: what is written is read back, and nothing that is read raises."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.kube.objects import node

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass
from gpusharing.api.times import NEVER, from_rfc3339, to_rfc3339
from gpusharing.kube import fence as records
from gpusharing.kube.convert import node_view
from gpusharing.planning.snapshot.actions import Actuate, FenceNode, LabelNode, Release, UpdateFence
from gpusharing.planning.snapshot.records import EARLIEST, Claim, Deferred, Fence, SpecVersion, Verified

NOW = datetime(2026, 11, 20, 10, 2, 11, tzinfo=UTC)
FENCE = Fence(
    op="op-1",
    policy="pool-b",
    version=SpecVersion("uid-b", "r7"),
    node_uid="u1",
    prior_unschedulable=False,
    added=("nvidia.com/gpu-driver-upgrade.skip",),
    disruption=DisruptionClass.RESET,
    to_layout="2x3g.40gb",
    stage="fenced",
    step=1,
    steps=2,
    attempt=1,
    since=NOW,
    stage_since=NOW,
    deadline=NOW + timedelta(minutes=15),
)
TEXTS = st.text(max_size=20)
VERSIONS = st.builds(SpecVersion, uid=TEXTS, revision=TEXTS)
NUMBERS = st.integers(0, 10**10)
MOMENTS = st.datetimes(EARLIEST.replace(tzinfo=None), NEVER.replace(tzinfo=None), timezones=st.just(UTC))


@given(
    st.builds(
        Fence,
        op=TEXTS,
        policy=TEXTS,
        version=VERSIONS,
        failed_version=st.none() | VERSIONS,
        node_uid=TEXTS,
        prior_unschedulable=st.booleans(),
        added=st.lists(TEXTS, max_size=3).map(tuple),
        disruption=st.sampled_from(DisruptionClass),
        to_layout=TEXTS,
        stage=st.sampled_from(["fenced", "actuating"]),
        step=NUMBERS,
        steps=NUMBERS,
        attempt=NUMBERS,
        since=MOMENTS,
        stage_since=MOMENTS,
        deadline=MOMENTS,
    )
)
def test_a_fence_is_read_back_as_it_was_written(fence: Fence) -> None:
    assert records.parse_record(Fence, records.record_text(fence)) == (fence, "")


def test_a_record_of_another_version_is_left_to_a_newer_operator() -> None:
    assert "version 2" in records.parse_record(Fence, records.record_text(FENCE).replace('"v":1', '"v":2'))[1]
    assert "version 2" in records.parse_record(Deferred, '{"v":2}')[1]
    assert "version 2" in records.parse_record(Verified, '{"v":2}')[1]
    assert "version 2" in records.parse_claims('{"v":2,"claims":{}}')[1]


@given(
    st.builds(
        Verified,
        TEXTS,
        TEXTS,
        TEXTS,
        TEXTS,
        layout=TEXTS,
        gpus=NUMBERS,
        version=VERSIONS,
        failed_version=st.none() | VERSIONS,
    )
)
def test_a_proof_is_read_back_as_it_was_written(verified: Verified) -> None:
    assert records.parse_record(Verified, records.record_text(verified)) == (verified, "")


@given(st.builds(Deferred, NUMBERS, MOMENTS, TEXTS, VERSIONS, TEXTS, st.none() | VERSIONS))
def test_a_deferral_is_read_back_as_it_was_written(deferred: Deferred) -> None:
    assert records.parse_record(Deferred, records.record_text(deferred)) == (deferred, "")


@given(st.dictionaries(TEXTS, st.builds(Claim, TEXTS, TEXTS, TEXTS), max_size=4))
def test_claims_are_read_back_as_they_were_written(claims: dict[str, Claim]) -> None:
    assert records.parse_claims(records.claims_text(claims)) == (claims, "")


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(json.loads(records.record_text(FENCE)))), JUNK)
def test_a_fence_with_one_damaged_field_is_read_or_explained(field: str, junk: object) -> None:
    damaged = {**json.loads(records.record_text(FENCE)), field: junk}
    fence, error = records.parse_record(Fence, json.dumps(damaged))
    assert (fence is None) == bool(error)


@given(TEXTS | JUNK.map(json.dumps))
def test_any_text_is_read_or_explained_by_every_reader(text: str) -> None:
    for parsed, error in (records.parse_record(Fence, text), records.parse_record(Deferred, text)):
        assert (parsed is None) == bool(error)
    claims, error = records.parse_claims(text)
    assert not claims or not error


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"v": 4}, "version 4"),
        ({"v": True}, "version True"),
        ({"stage": "draining"}, "stage cannot be 'draining'"),
        ({"disruption": "Gentle"}, "disruption cannot be 'Gentle'"),
        ({"attempt": True}, "attempt cannot be True"),
        ({"version": {"uid": "uid-b"}}, "version.revision is missing"),
        ({"version": {"uid": 7, "revision": "r7"}}, "version cannot be {'uid': 7, 'revision': 'r7'}"),
        ({"failedVersion": "x"}, "failedVersion cannot be 'x'"),
        ({"since": "2026-11-20T10:02:11"}, "since cannot be '2026-11-20T10:02:11'"),
        ({"added": "x"}, "added cannot be 'x'"),
        ({"added": ["x", 1]}, "added cannot be ['x', 1]"),
        ({"since": 1763632931}, "since cannot be 1763632931"),
        ({"op": "\ud800"}, "cannot be read (Invalid JSON"),
    ],
    ids=[
        "newer version",
        "flag as version",
        "unknown stage",
        "unknown class",
        "flag as number",
        "no revision",
        "number as UID",
        "text as a version",
        "time without zone",
        "no list",
        "number in a list of texts",
        "time as number",
        "half a character",
    ],
)
def test_the_error_of_a_damaged_fence_names_the_annotation_and_the_field(change: dict[str, object], part: str) -> None:
    fence, error = records.parse_record(Fence, json.dumps({**json.loads(records.record_text(FENCE)), **change}))
    assert fence is None
    assert error.startswith("annotation gpusharing.dev/fence: ")
    assert part in error


@pytest.mark.parametrize(
    "field",
    [
        *['"took":-1', '"took":1000000000000000000', '"gpus":-1'],
        *['"changedAt":"9999-12-31T23:59:59Z"', '"changedAt":"0001-01-02T00:00:00Z"'],
    ],
)
def test_a_number_or_time_that_nothing_can_be_added_to_is_no_proof(field: str) -> None:
    """Windows and canaries go by the proofs of all nodes of a pool: one annotation must not end the pass for all."""
    text = records.record_text(Verified("pool-b", "x", "y", layout="1x full", gpus=1))
    assert records.parse_record(Verified, text)[0] is not None
    found, why = records.parse_record(Verified, f"{text[:-1]},{field}}}")
    assert found is None
    assert f"{field.split(chr(34))[1]} cannot be" in why


def test_a_deadline_that_never_comes_is_read_back() -> None:
    fence = replace(FENCE, deadline=NEVER)
    assert records.parse_record(Fence, records.record_text(fence)) == (fence, "")


def test_a_record_may_lack_only_fields_with_a_default() -> None:
    data = json.loads(records.record_text(FENCE))
    shorter = {key: value for key, value in data.items() if key not in ("drift", "restartUid", "gfdTimestamp")}
    assert records.parse_record(Fence, json.dumps(shorter)) == (FENCE, "")
    del shorter["op"]
    assert records.parse_record(Fence, json.dumps(shorter))[1].endswith("op is missing")


NEWER = {"gang": {"name": "train", "nodes": ["gpu-07", "gpu-08"]}, "unknown": "a key, not our field", "ring": 2}


def test_what_a_newer_operator_wrote_in_a_fence_survives_every_write_of_this_one() -> None:
    newer = json.dumps({**json.loads(records.record_text(FENCE)), **NEWER})
    fence, error = records.parse_record(Fence, newer)
    assert fence is not None, error
    later = json.loads(records.record_text(replace(fence, stage="actuating", attempt=2)))
    assert {key: later[key] for key in NEWER} == NEWER
    assert (later["stage"], later["attempt"]) == ("actuating", 2), "ours are written anew"
    assert replace(fence, unknown="") == FENCE


@given(TEXTS | JUNK.map(json.dumps))
def test_claims_are_written_whatever_they_replace(before: str) -> None:
    claims = {"gpu-07": Claim("u7", "pool-b", "op-1")}
    assert records.parse_claims(records.claims_text(claims, before)) == (claims, "")


def test_times_are_written_in_utc_with_a_z() -> None:
    berlin = NOW.astimezone(timezone(timedelta(hours=1)))
    assert to_rfc3339(berlin) == "2026-11-20T10:02:11Z"
    assert from_rfc3339("2026-11-20T11:02:11+01:00") == NOW


VIEW = node_view(node())
UID = VIEW.uid
VERIFIED = Verified("pool-b", "all-disabled", "pool-b-3f9c2a1", layout="1x full", gpus=1)


def test_the_fence_patch_cordons_fences_and_drops_the_routing_label_at_once() -> None:
    action = FenceNode(VIEW, FENCE, cordon=True, labels={"gpusharing.dev/mode": None})
    assert records.patch_for(action, "41") == {
        "metadata": {
            "uid": UID,
            "resourceVersion": "41",
            "labels": {"gpusharing.dev/mode": None},
            "annotations": {"gpusharing.dev/fence": records.record_text(FENCE)},
        },
        "spec": {"unschedulable": True},
    }


def test_a_plugin_restart_is_fenced_without_a_cordon() -> None:
    assert "spec" not in records.patch_for(FenceNode(VIEW, FENCE, cordon=False, labels={}), "41")


def test_the_point_of_no_return_is_stage_and_labels_in_one_patch() -> None:
    fence = replace(FENCE, stage="actuating")
    labels = {"nvidia.com/mig.config": "x", "nvidia.com/mig.config.state": None}
    assert records.patch_for(Actuate(VIEW, fence, labels), "41")["metadata"] == {
        "uid": UID,
        "resourceVersion": "41",
        "labels": labels,
        "annotations": {"gpusharing.dev/fence": records.record_text(fence)},
    }


def test_an_attempt_is_recorded_and_a_lifted_cordon_restored() -> None:
    patch = records.patch_for(UpdateFence(VIEW, FENCE, cordon=True), "41")
    assert patch["spec"] == {"unschedulable": True}
    assert patch["metadata"]["resourceVersion"] == "41"


@pytest.mark.parametrize("uncordon", [True, False], ids=["our cordon goes", "somebody's cordon stays"])
def test_a_release_takes_the_fence_off_in_one_conditional_patch(uncordon: bool) -> None:
    patch = records.patch_for(Release(VIEW, uncordon, {"gpusharing.dev/mode": "mig"}, VERIFIED), "41")
    assert patch["metadata"]["labels"] == {"gpusharing.dev/mode": "mig"}
    assert patch["metadata"]["annotations"] == {
        "gpusharing.dev/deferred": None,
        "gpusharing.dev/fence": None,
        "gpusharing.dev/verified": records.record_text(VERIFIED),
        **({names.ANNOTATION_UPGRADE_CORDONED: None} if uncordon else {}),
    }
    assert patch["metadata"]["resourceVersion"] == "41"
    assert patch.get("spec") == ({"unschedulable": None} if uncordon else None)


def test_a_proof_under_somebody_elses_work_leaves_the_fence_that_remembers_our_cordon() -> None:
    aside = replace(FENCE, stage="yielded", added=(), proven=NOW)
    patch = records.patch_for(Release(VIEW, False, {}, VERIFIED, fence=aside), "41")
    assert patch["metadata"]["annotations"] == {
        "gpusharing.dev/deferred": None,
        "gpusharing.dev/fence": records.record_text(aside),
        "gpusharing.dev/verified": records.record_text(VERIFIED),
    }
    assert "spec" not in patch
    assert records.parse_record(Fence, records.record_text(aside)) == (aside, "")


def test_an_abort_leaves_when_to_try_again_and_keeps_the_earlier_proof() -> None:
    deferred = Deferred(1, NOW, "PDB", SpecVersion("uid-b", "r7"))
    patch = records.patch_for(Release(VIEW, True, {}, deferred=deferred), "41")
    assert patch["metadata"]["annotations"] == {
        "gpusharing.dev/deferred": records.record_text(deferred),
        "gpusharing.dev/fence": None,
        names.ANNOTATION_UPGRADE_CORDONED: None,
    }


def test_our_own_labels_are_written_without_a_resource_version_but_with_the_uid() -> None:
    action = LabelNode(VIEW, {"gpusharing.dev/policy": "pool-b"}, VERIFIED)
    assert records.patch_for(action, "41") == {
        "metadata": {
            "uid": UID,
            "labels": {"gpusharing.dev/policy": "pool-b"},
            "annotations": {"gpusharing.dev/verified": records.record_text(VERIFIED)},
        }
    }


def test_a_node_that_is_forgotten_keeps_no_record_and_only_as_it_was_seen() -> None:
    labels: dict[str, str | None] = dict.fromkeys((names.LABEL_POLICY, names.LABEL_PLUGIN_CONFIG))
    metadata = records.patch_for(LabelNode(VIEW, labels, forget=True), "41")["metadata"]
    gone = dict.fromkeys((names.ANNOTATION_VERIFIED, names.ANNOTATION_DEFERRED))
    assert (metadata["labels"], metadata["annotations"], metadata["resourceVersion"]) == (labels, gone, "41")


def test_a_persons_requests_are_written_only_to_the_node_that_was_read() -> None:
    requests = {names.ANNOTATION_RETRY: "now"}
    metadata = records.patch_for(LabelNode(VIEW, {}, requests=requests), "41")["metadata"]
    assert (metadata["annotations"], metadata["resourceVersion"]) == (requests, "41")
    assert "resourceVersion" not in records.patch_for(LabelNode(VIEW, {"a": "b"}), "41")["metadata"]
