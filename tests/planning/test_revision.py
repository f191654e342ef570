"""planning/snapshot/records.py: which edits make another revision of a policy."""

import re
from dataclasses import replace

import pytest
from hack.crdschema import structural_schema
from tests.build import make_policy

from gpusharing.api.policy import GPUSharingPolicySpec, Rollout
from gpusharing.api.policystatus import GPUSharingPolicyStatus
from gpusharing.planning.snapshot.records import INTENT
from gpusharing.planning.snapshot.views import PolicyView

POLICY = make_policy(drain={"timeout": "15m", "rules": [{"behavior": "Evict"}]})
REVISION = POLICY.version.revision
DRAIN = {"rules": [{"behavior": "Evict"}]}
NIGHT = {"schedule": "0 22 * * *", "duration": "6h"}

SAME: dict[str, PolicyView] = {
    "its generation rises": replace(POLICY, generation=9),
    "it is paused": make_policy(drain=DRAIN, rollout={"paused": True}),
    "it would be paused otherwise": make_policy(drain=DRAIN, rollout={"whenPaused": "Hold"}),
    "its budget changes": make_policy(drain=DRAIN, rollout={"maxUnavailable": 2}),
    "it gets a window": make_policy(drain=DRAIN, rollout={"windows": [NIGHT]}),
    "it gets a blackout": make_policy(drain=DRAIN, rollout={"blackouts": [NIGHT]}),
    "it gets a canary": make_policy(drain=DRAIN, rollout={"canary": {"nodes": 2}}),
    "it asks for approvals": make_policy(drain=DRAIN, rollout={"approval": "Manual"}),
    "it treats failures otherwise": make_policy(drain=DRAIN, rollout={"onFailure": "Rollback", "maxFailures": 3}),
    "it gets a price": make_policy(drain=DRAIN, cost={"gpuHourlyPrice": "3.20"}),
    "its deletion would reset": make_policy(drain=DRAIN, deletionPolicy="Reset"),
    "it is being deleted": replace(POLICY, deleting=True),
    "defaults are written down": make_policy(
        drain={"timeout": "15m", "jobs": {"timeout": "1h"}, "rules": [{"behavior": "Evict", "order": 0}]},
        rollout={"timeouts": {"actuation": "30m"}},
        priority=0,
        products=[],
    ),
    "durations are spelled otherwise": make_policy(
        drain={"timeout": "900s", "jobs": {"timeout": "60m"}, "rules": [{"behavior": "Evict"}]},
        rollout={"timeouts": {"verification": "9m60s"}},
    ),
}


@pytest.mark.parametrize("policy", SAME.values(), ids=SAME.keys())
def test_a_policy_keeps_its_revision_while(policy: PolicyView) -> None:
    assert policy.version.revision == REVISION != ""


OTHER: dict[str, PolicyView] = {
    "it is another policy of this name": replace(POLICY, uid="made anew"),
    "it resets its nodes": replace(POLICY, resetting=True),
    "its nodes change": make_policy(drain=DRAIN, nodeSelector={"matchLabels": {"pool": "c"}}),
    "its products change": make_policy(drain=DRAIN, products=["NVIDIA-H100-80GB-HBM3"]),
    "its priority changes": make_policy(drain=DRAIN, priority=1),
    "its mode changes": make_policy(mode="TimeSlicing", drain=DRAIN),
    "its layout changes": make_policy(drain=DRAIN, mig={"layouts": [{"profiles": {"1g.10gb": 7}}]}),
    "it shares in time": make_policy(drain=DRAIN, timeSlicing={"replicas": 2}),
    "it is for MPS": make_policy(mode="MPS", drain=DRAIN),
    "its clients change": make_policy(mode="MPS", mps={"replicas": 5}, drain=DRAIN),
    "its drain changes": make_policy(drain={**DRAIN, "timeout": "7m"}),
    "a rule of its drain changes": make_policy(drain={"rules": [{"behavior": "Block"}]}),
    "its timeouts change": make_policy(drain=DRAIN, rollout={"timeouts": {"actuation": "31m"}}),
}


@pytest.mark.parametrize("policy", OTHER.values(), ids=OTHER.keys())
def test_a_policy_has_another_revision_when(policy: PolicyView) -> None:
    assert policy.version.revision != REVISION


def test_the_order_of_keys_and_the_spelling_of_never_do_not_count() -> None:
    one, other = {"1g.10gb": 1, "3g.40gb": 1}, {"3g.40gb": 1, "1g.10gb": 1}
    assert list(one) != list(other)
    rules = {"rules": [{"behavior": "WaitCompleted", "timeout": "Never"}]}
    policies = [make_policy(mig={"layouts": [{"profiles": way}]}, drain=rules) for way in (one, other)]
    assert policies[0].version == policies[1].version


def test_a_revision_is_the_same_after_a_restart_and_an_upgrade() -> None:
    assert make_policy(mode="Full").version.revision == "f9647f880851"
    assert REVISION == "7ce1d696dbc8"


def test_a_spec_that_cannot_be_read_has_no_revision() -> None:
    assert replace(POLICY, spec=None).version.revision == ""


def test_every_field_of_a_policy_is_known_to_ask_for_something_or_not() -> None:
    assert GPUSharingPolicySpec.model_fields.keys() == {*INTENT, "rollout", "deletion_policy", "cost"}
    assert Rollout.model_fields.keys() == {
        "max_unavailable", "paused", "when_paused", "windows", "blackouts", "canary", "approval", "max_failures",
        "on_failure", "timeouts",
    }  # fmt: skip


def test_the_description_of_the_revision_names_the_fields_that_make_it_up() -> None:
    """`kubectl explain gsp.status.revision` shows it."""
    described = structural_schema(GPUSharingPolicyStatus, written_by_us=True)["properties"]["revision"]["description"]
    named = set(re.findall(r"[\w.]+\b", described))
    fields = {field.alias for field in GPUSharingPolicySpec.model_fields.values()}
    assert named & fields == {GPUSharingPolicySpec.model_fields[name].alias for name in INTENT}
    assert "rollout.timeouts" in named
