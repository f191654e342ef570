"""Records on Nodes and on the Lease: what is written is read back, and nothing that is read raises. And the start-up taint: how it is
seen, what tolerates it, and the PATCH that takes it away."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.build import make_fence
from tests.chart.charts import CHART
from tests.kube.objects import node

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass
from gpusharing.api.times import NEVER, from_rfc3339, to_rfc3339
from gpusharing.kube import fence as records
from gpusharing.kube.client import JSON
from gpusharing.kube.convert import cluster_policy_view, node_view, tolerates
from gpusharing.kube.daemonsets import daemon_set_view, plain_stack
from gpusharing.kube.fence import parse_record, patch_for, record_text
from gpusharing.planning.pools.choice import LONGEST_CLAIM
from gpusharing.planning.pools.holds import MOST
from gpusharing.planning.pools.writes import claim_size, size_of
from gpusharing.planning.snapshot.actions import Actuate, FenceNode, LabelNode, Release, UpdateFence
from gpusharing.planning.snapshot.records import (
    DIGEST,
    EARLIEST,
    LEASE_ROOM,
    ApprovedChange,
    Claim,
    Consent,
    Deferred,
    FailedNode,
    Fence,
    SpecVersion,
    Verified,
)

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
        pytest.param({"v": 4}, "version 4", id="newer version"),
        pytest.param({"v": True}, "version True", id="flag as version"),
        pytest.param({"stage": "draining"}, "stage cannot be 'draining'", id="unknown stage"),
        pytest.param({"disruption": "Gentle"}, "disruption cannot be 'Gentle'", id="unknown class"),
        pytest.param({"attempt": True}, "attempt cannot be True", id="flag as number"),
        pytest.param({"version": {"uid": "uid-b"}}, "version.revision is missing", id="no revision"),
        pytest.param(
            {"version": {"uid": 7, "revision": "r7"}},
            "version cannot be {'uid': 7, 'revision': 'r7'}",
            id="number as UID",
        ),
        pytest.param({"failedVersion": "x"}, "failedVersion cannot be 'x'", id="text as a version"),
        pytest.param({"since": "2026-11-20T10:02:11"}, "since cannot be '2026-11-20T10:02:11'", id="time without zone"),
        pytest.param({"added": "x"}, "added cannot be 'x'", id="no list"),
        pytest.param({"added": ["x", 1]}, "added cannot be ['x', 1]", id="number in a list of texts"),
        pytest.param({"since": 1763632931}, "since cannot be 1763632931", id="time as number"),
        pytest.param({"op": "\ud800"}, "cannot be read (Invalid JSON", id="half a character"),
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


def test_what_a_newer_operator_wrote_of_a_claim_lasts_as_long_as_the_claim() -> None:
    claims = {name: Claim(f"u-{name}", "pool-b", f"op-{name}") for name in ("gpu-07", "gpu-08")}
    record = json.loads(records.claims_text(claims))
    record["claims"]["gpu-07"] |= NEWER
    record["claims"]["gpu-08"] |= NEWER
    record["waves"] = [["gpu-07"], ["gpu-08"]]
    read, error = records.parse_claims(json.dumps(record))
    assert (read, error) == (claims, "")
    other = {"gpu-07": claims["gpu-07"], "gpu-08": replace(claims["gpu-08"], op="op-9"), "gpu-09": claims["gpu-07"]}
    after = json.loads(records.claims_text(other, json.dumps(record)))
    assert after["waves"] == record["waves"]
    assert after["claims"]["gpu-07"] == record["claims"]["gpu-07"]
    assert after["claims"]["gpu-08"].keys() == after["claims"]["gpu-09"].keys() == {"nodeUid", "policy", "op"}


def test_a_claim_past_the_point_of_no_return_is_the_same_claim() -> None:
    claim = Claim("u7", "pool-b", "op-1")
    record = json.loads(records.claims_text({"gpu-07": claim}))
    record["claims"]["gpu-07"] |= NEWER
    begun = replace(claim, version=SpecVersion("uid-b", "r3"))
    text = records.claims_text({"gpu-07": begun}, json.dumps(record))
    assert json.loads(text)["claims"]["gpu-07"].keys() >= NEWER.keys()
    assert records.parse_claims(text) == ({"gpu-07": begun}, "")
    assert records.parse_claims(records.claims_text({"gpu-07": claim}, text)) == ({"gpu-07": claim}, "")


def test_failures_are_on_record_beside_the_claims_and_an_older_operator_reads_only_those() -> None:
    claims, failed = (
        {"gpu-07": Claim("u7", "pool-b", "op-1")},
        {"u9": FailedNode("gpu-09", SpecVersion("uid-b", "r3"))},
    )
    text = records.claims_text(claims, failed_nodes=failed)
    assert records.parse_claims(text) == (claims, "")
    assert records.parse_failed_nodes(text) == (failed, "")
    assert json.loads(text)["failedNodes"] == {"u9": {"node": "gpu-09", "version": {"uid": "uid-b", "revision": "r3"}}}
    change = ApprovedChange(DisruptionClass.RESET, "all-balanced x 1x full", 'a}&"\\')
    consents = {"uid-b": Consent("r3", "3f9c2a1", (change,), "4a38df3", "vwxyz")}
    agreed = records.claims_text(claims, text, failed, consents)
    assert records.parse_consents(agreed) == (consents, "")
    assert records.parse_consents(records.claims_text(claims, agreed)) == ({}, "")
    assert records.parse_consents('{"v":1,"consents":{"uid-b":7}}')[1].endswith("it is 7, not an object")
    nothing = records.parse_failed_nodes(records.claims_text(claims, text))
    assert nothing == ({}, ""), "all of them are replaced"


def test_what_a_newer_operator_wrote_of_a_failure_lasts_as_long_as_the_failure() -> None:
    failed = {uid: FailedNode(f"gpu-{uid}", SpecVersion("uid-b", "r3")) for uid in ("u7", "u8", "u9")}
    record = json.loads(records.claims_text({}, failed_nodes=failed))
    for uid in failed:
        record["failedNodes"][uid] |= NEWER
    now = {
        "u7": failed["u7"],
        "u8": replace(failed["u8"], gone=True),
        "u9": replace(failed["u9"], version=SpecVersion("uid-b", "r4")),
    }
    text = records.claims_text({}, json.dumps(record), now)
    assert records.parse_failed_nodes(text) == (now, "")
    after = json.loads(text)["failedNodes"]
    assert after["u7"] == record["failedNodes"]["u7"]
    assert after["u8"] == {**record["failedNodes"]["u8"], "gone": True}, "the same failure of a Node that went"
    assert after["u9"].keys() == {"node", "version"}, "another failure"


@pytest.mark.parametrize(
    ("damaged", "why"),
    [
        ('{"v":1,"failedNodes":7}', "failedNodes is 7, not an object"),
        ("[]", "not a JSON object"),
        ("{", "not JSON"),
        ('{"failedNodes":{}}', "has version None"),
        ('{"v":1,"failedNodes":{"u1":7}}', "the failure of the Node with UID u1: it is 7, not an object"),
        ('{"v":1,"failedNodes":{"u2":{"node":"x"}}}', "the failure of the Node with UID u2: version is missing"),
    ],
)
def test_a_failure_that_cannot_be_read_is_left_out_and_said(damaged: str, why: str) -> None:
    failed, error = records.parse_failed_nodes(damaged)
    assert failed == {}
    assert error.startswith("annotation gpusharing.dev/claims: ")
    assert why in error


def test_a_failure_that_cannot_be_read_hides_no_other() -> None:
    failed = {"u9": FailedNode("gpu-09", SpecVersion("uid-b", "r3"))}
    record = json.loads(records.claims_text({}, failed_nodes=failed))
    record["failedNodes"]["u1"] = {"node": "gpu-01"}
    assert records.parse_failed_nodes(json.dumps(record))[0] == failed


NAMED = ("ip-10-100-200-100.ap-southeast-2.compute.internal", "p" * 50)
"""A node and a policy with names as long as clouds and people make them."""
LONGEST = ("n" * 250, "p" * 253)


def full_record(
    name: str, policy: str, count: int
) -> tuple[dict[str, Claim], dict[str, FailedNode], dict[str, Consent]]:
    """The largest records of so many nodes, all in waves and past the point of no return."""
    op, version = f"{policy[:40]}.19a5f0b2c3d", SpecVersion("0" * 36, "0" * 12)
    nodes = [f"{name}{number:03}" for number in range(count)]
    claims = {node: Claim("0" * 36, policy, op, f"{op}.{node}", version) for node in nodes}
    failed = {f"{number:036}": FailedNode(f"{name}{number:03}", version, gone=True) for number in range(MOST)}
    changes = (ApprovedChange(DisruptionClass.GPU_PODS, "t" * 60, "0" * DIGEST * 100),)
    consents = {f"{number:036}": Consent("0" * 12, "0" * 7, changes, "0" * 7, "0" * DIGEST) for number in range(25)}
    return claims, failed, consents


def test_the_claims_of_all_nodes_that_may_be_in_flight_fit_onto_the_lease() -> None:
    assert size_of(*full_record(*NAMED, records.MOST_CLAIMS)) < LEASE_ROOM
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema["properties"]["operator"]["properties"]["maxInFlight"]["maximum"] == records.MOST_CLAIMS


@pytest.mark.parametrize("named", [NAMED, LONGEST, ("a", "b")])
def test_the_planner_knows_how_long_the_record_on_the_lease_becomes(named: tuple[str, str]) -> None:
    claims, failed, consents = full_record(*named, 20)
    assert 0 <= size_of(claims, failed, consents) - len(records.claims_text(claims, "", failed, consents)) <= 30, (
        "commas"
    )
    assert max(claim_size(node, claim) for node, claim in claims.items()) <= LONGEST_CLAIM
    shorter = {node: replace(claim, wave="", version=None) for node, claim in claims.items()}
    assert size_of(shorter, {}, {}) >= len(records.claims_text(shorter))


def test_the_claim_of_a_wave_names_it_and_that_of_a_lone_node_is_as_ever() -> None:
    claims = {"gpu-07": Claim("u7", "pool-b", "op-1", "op-1.gpu-07"), "gpu-08": Claim("u8", "pool-b", "op-1")}
    text = records.claims_text(claims)
    assert records.parse_claims(text) == (claims, "")
    assert json.loads(text)["claims"]["gpu-08"] == {"nodeUid": "u8", "policy": "pool-b", "op": "op-1"}
    out_of_it = {**claims, "gpu-07": replace(claims["gpu-07"], wave="")}
    assert records.parse_claims(records.claims_text(out_of_it, text)) == (out_of_it, "")


GATE = {"key": "gpusharing.dev/unproven", "effect": "NoSchedule"}
OTHER = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
LATER = {"key": "dedicated", "effect": "NoExecute", "timeAdded": "2026-11-20T10:00:00Z"}
PROVEN = Verified("pool-b", "", "key", layout="1x full", gpus=1)


def tainted(*taints: JSON) -> JSON:
    return {"metadata": {"name": "gpu-07", "uid": "u"}, "spec": {"taints": list(taints)}}


SEEN: dict[str, tuple[tuple[JSON, ...], bool]] = {
    "no taint": ((), False),
    "another taint": ((OTHER,), False),
    "the taint": ((GATE,), True),
    "the taint with a value": (({**GATE, "value": "true"},), True),
    "the taint among others": ((OTHER, GATE, LATER), True),
    "the key with another effect": (({**GATE, "effect": "NoExecute"},), False),
}


@pytest.mark.parametrize(("taints", "gated"), SEEN.values(), ids=SEEN)
def test_a_node_waits_behind_the_taint(taints: tuple[JSON, ...], gated: bool) -> None:
    assert (node_view(tainted(*taints)).gate is not None) is gated


def test_a_node_with_a_spec_that_nobody_can_read_does_not_wait() -> None:
    assert node_view({"metadata": {"name": "x"}, "spec": {"taints": "none"}}).gate is None


def test_a_change_of_any_other_taint_is_another_node_to_decide_about() -> None:
    assert node_view(tainted(GATE)) != node_view(tainted(GATE, OTHER)), "or the PATCH would undo it"


TOLERATIONS: dict[str, tuple[list[JSON], bool]] = {
    "none": ([], False),
    "of another taint": ([{"key": "nvidia.com/gpu", "operator": "Exists"}], False),
    "of the key": ([{"key": "gpusharing.dev/unproven", "operator": "Exists"}], True),
    "of the key with its effect": ([{**GATE, "operator": "Exists"}], True),
    "of the key with a value": ([{**GATE, "value": "true"}], True),
    "of the key with another effect": ([{**GATE, "operator": "Exists", "effect": "NoExecute"}], False),
    "of everything": ([{"operator": "Exists"}], True),
    "without a key and an operator": ([{"value": "true"}], False),
    "of everything that ends pods": ([{"operator": "Exists", "effect": "NoExecute"}], False),
}


@pytest.mark.parametrize(("tolerations", "fine"), TOLERATIONS.values(), ids=TOLERATIONS)
def test_pods_start_behind_the_taint_with_a_toleration(tolerations: list[JSON], fine: bool) -> None:
    assert tolerates(tolerations) is fine


def test_operands_have_the_gpu_operators_own_toleration_where_cluster_policy_lists_none() -> None:
    view = cluster_policy_view({"metadata": {"name": "x"}, "spec": {}})
    assert not view.tolerates_gate
    assert view.tolerations == '[{"key":"nvidia.com/gpu","operator":"Exists","effect":"NoSchedule"}]'


def test_the_list_of_cluster_policy_is_the_whole_list() -> None:
    view = cluster_policy_view({"spec": {"daemonsets": {"tolerations": [{**GATE, "operator": "Exists"}]}}})
    assert view.tolerates_gate


def daemon_set(container: str, *tolerations: JSON) -> JSON:
    template = {"containers": [{"name": container}], "tolerations": list(tolerations)}
    return {"metadata": {"name": container}, "spec": {"template": {"spec": template}}}


def test_both_daemon_sets_of_the_plain_chart_must_tolerate_it() -> None:
    wide = daemon_set("nvidia-device-plugin-ctr", GATE)
    narrow = daemon_set("gpu-feature-discovery-ctr", OTHER)
    both, one = plain_stack(map(daemon_set_view, [wide])), plain_stack(map(daemon_set_view, [wide, narrow]))
    assert both is not None
    assert one is not None
    assert (both.tolerates_gate, one.tolerates_gate) == (True, False)
    assert OTHER["key"] in one.tolerations


# --- what takes it away -------------------------------------------------------------------------------------


def test_a_release_after_a_proof_takes_the_taint_and_leaves_the_others_as_they_are() -> None:
    view = node_view(tainted(OTHER, GATE, LATER))
    patch = patch_for(Release(view, uncordon=True, labels={}, verified=PROVEN), "41")
    assert patch["spec"] == {"unschedulable": None, "taints": [OTHER, LATER]}
    assert patch["metadata"]["resourceVersion"] == "41"


def test_the_last_taint_takes_its_list_with_it() -> None:
    patch = patch_for(Release(node_view(tainted(GATE)), uncordon=False, labels={}, verified=PROVEN), "41")
    assert patch["spec"] == {"taints": None}


def test_taking_a_node_over_takes_the_taint_and_is_conditional_then() -> None:
    gated, free = node_view(tainted(GATE)), node_view(tainted())
    patch = patch_for(LabelNode(gated, {names.LABEL_MODE: "full"}, verified=PROVEN), "41")
    assert (patch["spec"], patch["metadata"]["resourceVersion"]) == ({"taints": None}, "41")
    before = patch_for(LabelNode(free, {names.LABEL_MODE: "full"}, verified=PROVEN), "41")
    assert "spec" not in before
    assert "resourceVersion" not in before["metadata"]


KEEPING: dict[str, Any] = {
    "an abort": Release(node_view(tainted(GATE)), uncordon=True, labels={}),
    "a former owner's mark that goes": LabelNode(node_view(tainted(GATE)), {names.LABEL_POLICY: None}),
    "a proof while somebody else works on the node": Release(
        node_view(tainted(GATE)),
        uncordon=False,
        labels={},
        verified=PROVEN,
        fence=replace(make_fence(), stage="yielded"),
    ),
}


@pytest.mark.parametrize("action", KEEPING.values(), ids=KEEPING)
def test_the_taint_stays_until_a_node_is_proven_and_given_back(action: Release | LabelNode) -> None:
    assert "taints" not in patch_for(action, "41").get("spec", {})


def test_a_fence_remembers_that_the_node_took_no_slot() -> None:
    written = record_text(make_fence(newcomer=True))
    fence, problem = parse_record(Fence, written)
    assert fence is not None, problem
    assert fence.newcomer
    older, _ = parse_record(Fence, written.replace(',"newcomer":true', ""))
    assert older is not None, "an older operator wrote it without"
    assert not older.newcomer
