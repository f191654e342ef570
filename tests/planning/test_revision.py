"""planning/wanted/revision.py: which edits make another revision of a policy, and whose record is of which."""

from dataclasses import replace
from typing import Any

import pytest
from tests.build import make_fence, make_policy

from gpusharing.planning.snapshot.records import Verified
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.wanted.revision import find_revision, is_of

POLICY = make_policy(rollout={"maxUnavailable": 2})

SAME: dict[str, PolicyView] = {
    "it is paused": make_policy(rollout={"maxUnavailable": 2, "paused": True}),
    "it is paused otherwise": make_policy(rollout={"maxUnavailable": 2, "whenPaused": "Hold"}),
    "a default is written down": make_policy(rollout={"maxUnavailable": 2, "approval": "Automatic"}),
    "its generation rises": replace(POLICY, generation=9),
}


@pytest.mark.parametrize("policy", SAME.values(), ids=SAME.keys())
def test_a_policy_keeps_its_revision_while(policy: PolicyView) -> None:
    assert find_revision(policy) == find_revision(POLICY) != ""


OTHER: dict[str, dict[str, Any]] = {
    "its budget changes": {"rollout": {"maxUnavailable": 3}},
    "nothing is left of its rollout": {},
    "its mode changes": {"mode": "TimeSlicing", "rollout": {"maxUnavailable": 2}},
    "its drain changes": {"drain": {"timeout": "7m"}, "rollout": {"maxUnavailable": 2}},
}


@pytest.mark.parametrize("fields", OTHER.values(), ids=OTHER.keys())
def test_a_policy_has_another_revision_when(fields: dict[str, Any]) -> None:
    assert find_revision(make_policy(**fields)) != find_revision(POLICY)


def test_a_pause_alone_is_no_rollout_of_its_own() -> None:
    assert find_revision(make_policy(rollout={"paused": True})) == find_revision(make_policy())


def test_a_price_is_no_rollout_of_its_own() -> None:
    assert find_revision(make_policy(cost={"gpuHourlyPrice": "3.20"})) == find_revision(make_policy())


def test_a_spec_that_cannot_be_read_has_no_revision() -> None:
    assert find_revision(replace(POLICY, spec=None)) == ""


def test_a_record_is_of_the_revision_that_it_names_and_an_older_one_of_its_generation() -> None:
    now = find_revision(POLICY)
    fence = make_fence(version=POLICY.version)
    proof = Verified("pool-b", "x", "y", version=POLICY.version)
    for record in (fence, proof):
        assert is_of(record, POLICY, now)
        assert not is_of(record, replace(POLICY, generation=9), now)
        assert is_of(replace(record, revision=now), replace(POLICY, generation=9), now)
        assert not is_of(replace(record, revision="other"), POLICY, now)
        assert not is_of(replace(record, revision=now), replace(POLICY, uid="made anew"), now)
