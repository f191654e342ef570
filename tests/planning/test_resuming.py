"""A person lets a rollout go on after these failures, by the annotation that a message names, and after no others."""

from dataclasses import replace

import pytest
from tests.planning.cases import agreed
from tests.planning.test_holds import ACTUATING, POOL, member, pooled
from tests.wording import lacks

from gpusharing.api.names import Phase
from gpusharing.planning.pools.holds import agree, find_halt, find_hold
from gpusharing.planning.snapshot.records import Consent
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.transition.cases import Member
from gpusharing.planning.vocabulary.reasons import Reason

FAILED = tuple(member(f"n{number}", Phase.FAILED, fence=ACTUATING) for number in range(1, 7))


def resumed(*failed: Member, most: int = 1, consent: Consent | None = None) -> tuple[PolicyView, Consent]:
    pool = pooled(*failed, maxFailures=most)
    pool.consent = consent
    halt = find_halt(pool)
    assert halt is not None
    assert halt[1].message.endswith(f"gpusharing.dev/resume={halt[0]}")
    policy = replace(POOL, resumed=halt[0])
    return policy, agreed(replace(pooled(*failed, policy=policy, maxFailures=most), consent=consent))


def halts(*failed: Member, policy: PolicyView, consent: Consent, most: int = 1) -> bool:
    pool = pooled(*failed, policy=policy, maxFailures=most)
    pool.consent = agree(replace(pool, consent=consent))
    return find_hold(pool) is not None


@pytest.mark.parametrize(("most", "first"), [(1, 1), (1, 4), (2, 2), (2, 3), (3, 3)])
def test_a_resume_lets_the_rollout_go_on_until_as_many_have_failed_again(most: int, first: int) -> None:
    policy, consent = resumed(*FAILED[:first], most=most)
    assert not halts(*FAILED[: first + most - 1], policy=policy, consent=consent, most=most)
    assert halts(*FAILED[: first + most], policy=policy, consent=consent, most=most)
    again, consent = resumed(*FAILED[: first + most], most=most, consent=consent)
    assert again.resumed != policy.resumed
    assert not halts(*FAILED[: first + most], policy=again, consent=consent, most=most)


def test_a_node_that_was_repaired_and_fails_again_halts_again() -> None:
    policy, consent = resumed(FAILED[0])
    repaired = agreed(replace(pooled(policy=policy), consent=consent))
    assert halts(FAILED[0], policy=policy, consent=repaired)


def test_a_resume_does_not_serve_the_next_halt_of_the_same_size() -> None:
    policy, consent = resumed(FAILED[0])
    repaired = agreed(replace(pooled(policy=policy), consent=consent))
    assert halts(FAILED[1], policy=policy, consent=repaired)


def test_a_higher_limit_counts_from_what_was_seen() -> None:
    policy, consent = resumed(FAILED[0])
    assert not halts(*FAILED[:3], policy=policy, consent=consent, most=3)
    assert halts(*FAILED[:4], policy=policy, consent=consent, most=3)


@pytest.mark.parametrize("value", ["3", POOL.version.revision, f"{POOL.version.revision}.7", "0123456"])
def test_a_value_that_is_not_for_this_halt_has_no_effect_and_is_named(value: str) -> None:
    hold = find_hold(pooled(FAILED[0], policy=replace(POOL, resumed=value)))
    assert hold is not None
    assert hold.reason is Reason.HALTED
    assert not lacks(hold.message, f'gpusharing.dev/resume "{value}"', "not for this halt")
