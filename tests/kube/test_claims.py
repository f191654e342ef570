"""Claims and failures on the leader Lease: what a newer operator wrote lasts, and what cannot be read is said."""

import json
from dataclasses import replace

import pytest
from tests.chart.charts import CHART
from tests.kube.test_fence import NEWER

from gpusharing.api.names import DisruptionClass
from gpusharing.kube import fence as records
from gpusharing.planning.pools.holds import MOST, MOST_DIGESTS
from gpusharing.planning.snapshot.records import DIGEST, ApprovedChange, Claim, Consent, FailedNode, SpecVersion


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


def test_the_claims_of_all_nodes_that_may_be_in_flight_fit_onto_the_lease() -> None:
    """With names as long as clouds make them, and all nodes in waves."""
    name, policy = "ip-10-100-200-100.ap-southeast-2.compute.internal", "p" * 50
    op = f"{policy[:40]}.19a5f0b2c3d"
    claims = {
        f"{name}{number:03}": Claim("0" * 36, policy, op, f"{op}.{name}{number:03}", SpecVersion("0" * 36, "0" * 12))
        for number in range(records.MOST_CLAIMS)
    }
    failed = {
        f"{number:036}": FailedNode(f"{name}{number:03}", SpecVersion("0" * 36, "0" * 12)) for number in range(MOST)
    }
    digests = "0" * DIGEST * (MOST_DIGESTS // 25)
    changes = (ApprovedChange(DisruptionClass.GPU_PODS, "t" * 60, digests),)
    consents = {f"{number:036}": Consent("0" * 12, "0" * 7, changes, "0" * 7) for number in range(25)}
    assert len(records.claims_text(claims, "", failed, consents)) < 256 * 1024
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema["properties"]["operator"]["properties"]["maxInFlight"]["maximum"] == records.MOST_CLAIMS


def test_the_claim_of_a_wave_names_it_and_that_of_a_lone_node_is_as_ever() -> None:
    claims = {"gpu-07": Claim("u7", "pool-b", "op-1", "op-1.gpu-07"), "gpu-08": Claim("u8", "pool-b", "op-1")}
    text = records.claims_text(claims)
    assert records.parse_claims(text) == (claims, "")
    assert json.loads(text)["claims"]["gpu-08"] == {"nodeUid": "u8", "policy": "pool-b", "op": "op-1"}
    out_of_it = {**claims, "gpu-07": replace(claims["gpu-07"], wave="")}
    assert records.parse_claims(records.claims_text(out_of_it, text)) == (out_of_it, "")
