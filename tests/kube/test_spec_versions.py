"""Versions of specs in records: written as operators read and write them that keep UID and generation apart, so that
an upgrade and its way back may meet changes in flight."""

import json
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.kube.test_fence import FENCE, NOW

from gpusharing.kube import fence as records
from gpusharing.planning.snapshot.records import Claim, Deferred, FailedNode, Fence, SpecVersion, Verified

OURS, THEIRS = SpecVersion("uid-b", 7), SpecVersion("uid-c", 7)
BEGUN = replace(FENCE, version=OURS)
FLAT: dict[str, Any] = {"generation": 7, "policyUid": "uid-b"}
VERSIONS = st.builds(SpecVersion, uid=st.text(max_size=3), generation=st.integers(1))


def keys(text: str) -> dict[str, Any]:
    """What the text says of versions."""
    named = ("generation", "policyUid", "failedGeneration", "failedVersion", "version")
    return {key: value for key, value in json.loads(text).items() if key in named}


@given(VERSIONS, st.none() | VERSIONS)
def test_whatever_failed_under_whatever_policy_is_read_back(
    version: SpecVersion, failed: SpecVersion | None
) -> None:
    fence = replace(FENCE, version=version, failed_version=failed)
    assert records.parse_record(Fence, records.record_text(fence)) == (fence, "")
    proof = Verified("pool-b", "x", "y", version=version, failed_version=failed)
    assert records.parse_record(Verified, records.record_text(proof)) == (proof, "")
    given = Deferred(1, NOW, "PDB", version, failed_version=failed)
    assert records.parse_record(Deferred, records.record_text(given)) == (given, "")


def test_a_failure_under_the_same_policy_is_written_as_older_operators_write_it() -> None:
    failed = replace(BEGUN, failed_version=SpecVersion("uid-b", 6))
    assert keys(records.record_text(failed)) == {**FLAT, "failedGeneration": 6}
    assert keys(records.record_text(BEGUN)) == {**FLAT, "failedGeneration": 0}


def test_an_older_operator_counts_no_failure_under_another_policy_as_one_of_this() -> None:
    """It takes every generation for one of the policy that the record names."""
    text = records.record_text(replace(BEGUN, failed_version=THEIRS))
    assert keys(text) == {**FLAT, "failedGeneration": 0, "failedVersion": {"uid": "uid-c", "generation": 7}}


def test_a_failure_that_an_older_operator_recorded_since_counts_more_than_the_one_it_could_not_read() -> None:
    """It keeps in a fence what it does not know."""
    record = json.loads(records.record_text(replace(BEGUN, failed_version=THEIRS)))
    fence, _ = records.parse_record(Fence, json.dumps({**record, "failedGeneration": 7}))
    assert fence is not None
    assert fence.failed_version == OURS


def test_a_fence_from_before_policies_were_named_by_uid_is_readable() -> None:
    record = json.loads(records.record_text(BEGUN))
    del record["policyUid"]
    assert records.parse_record(Fence, json.dumps(record)) == (replace(BEGUN, version=SpecVersion("", 7)), "")


MISSING = {"fence": partial(records.parse_record, Fence), "deferral": partial(records.parse_record, Deferred)}


@pytest.mark.parametrize("what", MISSING)
def test_what_names_no_generation_cannot_be_read(what: str) -> None:
    given = Deferred(1, NOW, "PDB", OURS)
    record = json.loads(records.record_text(BEGUN if what == "fence" else given))
    del record["generation"]
    assert MISSING[what](json.dumps(record))[1].endswith("generation is missing")


def test_claims_and_failures_that_an_older_operator_left_on_the_lease_are_read_and_written_as_they_were() -> (
    None
):
    slot = {"nodeUid": "u7", "policy": "pool-b", "op": "op-1"}
    failed = {"node": "gpu-09", "policyUid": "uid-b", "generation": 7}
    text = json.dumps(
        {"v": 1, "claims": {"gpu-07": {**slot, **FLAT}, "gpu-08": slot}, "failedNodes": {"u9": failed}}
    )
    claims, nodes = records.parse_claims(text)[0], records.parse_failed_nodes(text)[0]
    begun = Claim("u7", "pool-b", "op-1", version=OURS)
    assert claims == {"gpu-07": begun, "gpu-08": replace(begun, version=None)}
    assert nodes == {"u9": FailedNode("gpu-09", OURS)}
    assert json.loads(records.claims_text(claims, failed_nodes=nodes)) == json.loads(text)
