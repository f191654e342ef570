"""How far a person lets a rollout go on after failures, by the annotation that a message names (pools/holds.py)."""

from dataclasses import replace

import pytest
from tests.planning.test_holds import ACTUATING, POOL, member, pooled

from gpusharing.api.names import Phase
from gpusharing.planning.pools.holds import find_hold, read_value
from gpusharing.planning.vocabulary.reasons import Reason

FAILED_NOW = tuple(member(f"n{number}", Phase.FAILED, fence=ACTUATING) for number in range(1, 7))
RESUMED: dict[str, tuple[str, int, int, str, str]] = {
    "nobody": ("", 1, 1, "3", ""),
    "nobody, after several at once": ("", 1, 4, "3.4", ""),
    "nobody, after more than one batch": ("", 2, 5, "3.2", ""),
    "a person once, as many again ago": (
        "3", 1, 2, "3.2", ' (gpusharing.dev/resume "3" allows the rollout to continue until 2 nodes have failed)'),
    "a person twice": (
        "3.2", 2, 6, "3.3", ' (gpusharing.dev/resume "3.2" allows the rollout to continue until 6 nodes have failed)'),
    "a person in an earlier generation": (
        "2.7", 1, 1, "3", ' (gpusharing.dev/resume "2.7" is not for generation 3)'),
    "a person who mistyped": ("3.x", 1, 1, "3", ' (gpusharing.dev/resume "3.x" is not for generation 3)'),
    "a person who allowed nothing": (
        "3.0", 1, 1, "3", ' (gpusharing.dev/resume "3.0" is not for generation 3)'),
}  # fmt: skip


@pytest.mark.parametrize(("resumed", "most", "count", "value", "told"), RESUMED.values(), ids=RESUMED)
def test_a_halt_names_the_value_that_ends_it_where_it_was_resumed_by(
    resumed: str, most: int, count: int, value: str, told: str
) -> None:
    failed, policy = FAILED_NOW[:count], replace(POOL, resumed=resumed)
    hold = find_hold(pooled(*failed, policy=policy, maxFailures=most))
    assert hold is not None
    assert hold.reason is Reason.HALTED
    assert (
        f"failed in this generation, and spec.rollout.maxFailures is {most}{told}: no further" in hold.message
    )
    assert read_value(hold.message) == value
    assert find_hold(pooled(*failed, policy=replace(POOL, resumed=value), maxFailures=most)) is None
