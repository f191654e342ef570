"""How far a person lets a rollout go on after failures, by the annotation that a message names (pools/holds.py)."""

from dataclasses import replace

import pytest
from tests.planning.test_holds import ACTUATING, POOL, member, pooled

from gpusharing.api.names import Phase
from gpusharing.planning.pools.holds import find_hold, read_value
from gpusharing.planning.vocabulary.reasons import Reason

FAILED_NOW = tuple(member(f"n{number}", Phase.FAILED, fence=ACTUATING) for number in range(1, 7))
NOW_ASKED, ELSE = POOL.version.revision, "0123456789ab"
RESUMED: dict[str, tuple[str, int, int, str, str]] = {
    "nobody": ("", 1, 1, "REV", ""),
    "nobody, after several at once": ("", 1, 4, "REV.4", ""),
    "nobody, after more than one batch": ("", 2, 5, "REV.2", ""),
    "a person once, as many again ago": (
        "REV", 1, 2, "REV.2",
        ' (gpusharing.dev/resume "REV" allows the rollout to continue until 2 nodes have failed)'),
    "a person twice": (
        "REV.2", 2, 6, "REV.3",
        ' (gpusharing.dev/resume "REV.2" allows the rollout to continue until 6 nodes have failed)'),
    "a person in another revision": (
        f"{ELSE}.7", 1, 1, "REV", f' (gpusharing.dev/resume "{ELSE}.7" is not for revision REV)'),
    "a person who wrote a generation": ("3", 1, 1, "REV", ' (gpusharing.dev/resume "3" is not for revision REV)'),
    "a person who mistyped": ("REV.x", 1, 1, "REV", ' (gpusharing.dev/resume "REV.x" is not for revision REV)'),
    "a person who allowed nothing": (
        "REV.0", 1, 1, "REV", ' (gpusharing.dev/resume "REV.0" is not for revision REV)'),
}  # fmt: skip
"""REV stands for the present revision."""


@pytest.mark.parametrize(("resumed", "most", "count", "value", "told"), RESUMED.values(), ids=RESUMED)
def test_a_halt_names_the_value_that_ends_it_where_it_was_resumed_by(
    resumed: str, most: int, count: int, value: str, told: str
) -> None:
    resumed, value, told = (text.replace("REV", NOW_ASKED) for text in (resumed, value, told))
    failed, policy = FAILED_NOW[:count], replace(POOL, resumed=resumed)
    hold = find_hold(pooled(*failed, policy=policy, maxFailures=most))
    assert hold is not None
    assert hold.reason is Reason.HALTED
    assert (
        f"failed in this revision of the policy, and spec.rollout.maxFailures is {most}{told}: no further"
        in hold.message
    )
    assert read_value(hold.message) == value
    assert find_hold(pooled(*failed, policy=replace(POOL, resumed=value), maxFailures=most)) is None
