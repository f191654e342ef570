"""What a card reports of its MIG profiles against our table: the card wins, and the difference is named."""

from dataclasses import replace

import pytest
from tests.build import H100, NOW, make_gpu, make_gpunode, make_node, make_policy, make_snapshot, make_spec

from gpusharing.planning.gpus.cards import CARDS, Profile, find_card, find_doubt
from gpusharing.planning.report.status import policy_status
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.views import GpuView
from gpusharing.planning.vocabulary.reasons import Reason

CARD = find_card(H100)
assert CARD is not None
PROFILES = CARD.profiles


def with_profile(name: str, **fields: object) -> tuple[Profile, ...]:
    return tuple(replace(p, **fields) if p.name == name else p for p in PROFILES)  # type: ignore[arg-type]  # any field


DIFFERENT: dict[str, tuple[tuple[Profile, ...], str]] = {
    "an unknown profile": (
        (*PROFILES, replace(PROFILES[0], name="5g.50gb")),
        "5g.50gb, which the operator's table does not have",
    ),
    "other places": (
        with_profile("3g.40gb", starts=(0,)),
        "3g.40gb at 0 (size 4), but the operator's table has 0, 4 (size 4)",
    ),
    "another size": (with_profile("3g.40gb", size=3), "3g.40gb at 0, 4 (size 3)"),
    "another number": (with_profile("1g.10gb", max_count=8), "at most 8 of 1g.10gb, but the operator's table has 7"),
}


@pytest.mark.parametrize(("listed", "told"), DIFFERENT.values(), ids=DIFFERENT.keys())
def test_the_card_contradicts_the_table(listed: tuple[Profile, ...], told: str) -> None:
    doubt = find_doubt(H100, listed)
    assert doubt is not None
    assert doubt.reason is Reason.CARD_DIFFERS
    assert told in doubt.message


def test_a_driver_that_lists_no_profiles_leaves_them_to_the_table() -> None:
    doubt = find_doubt(H100, ())
    assert doubt is not None
    assert doubt.reason is Reason.PROFILES_FROM_TABLE


def test_what_one_of_them_leaves_open_is_no_contradiction() -> None:
    assert find_doubt(H100, PROFILES[:2]) is None
    assert find_doubt(H100, with_profile("3g.40gb", starts=())) is None
    assert find_doubt("NVIDIA X9000", PROFILES) is None
    assert find_doubt("NVIDIA L40S", ()) is None


def test_no_card_contradicts_itself_and_one_that_counts_wrong_is_not_asked() -> None:
    named = [card for card in CARDS if card.profiles and card.products]
    assert [card.key for card in named if find_doubt(card.products[0], card.profiles)] == []
    wrong = next(card for card in CARDS if card.nvml_counts_wrong)
    assert find_doubt(wrong.products[0], tuple(replace(p, max_count=99) for p in wrong.profiles)) is None


def accepted(gpu: GpuView, mode: str) -> tuple[str, str, str]:
    """Status, reason and message of the condition Accepted of a policy over one node with this GPU."""
    policy = replace(make_policy(), spec=make_spec(mode))
    snapshot = make_snapshot([make_node()], [policy], gpunodes=[make_gpunode(gpus=[gpu])])
    status = policy_status(policy, plan_rollout(snapshot, NOW), snapshot, {}, NOW)
    row = next(row for row in status["conditions"] if row["type"] == "Accepted")
    return row["status"], row["reason"], row["message"]


def test_the_policy_tells_it_where_mig_is_wanted_and_is_accepted_all_the_same() -> None:
    doubt = find_doubt(H100, DIFFERENT["an unknown profile"][0])
    status, reason, message = accepted(replace(make_gpu(), doubt=doubt), "MIG")
    assert (status, reason) == ("True", "CardDiffers")
    assert "5g.50gb" in message
    assert accepted(replace(make_gpu(), doubt=doubt), "Full")[:2] == ("True", "Valid")
    assert accepted(make_gpu(), "MIG")[:2] == ("True", "Valid")
