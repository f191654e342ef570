"""What part of a GPU a MIG instance is, on every card and in every layout that the table knows."""

from fractions import Fraction

import pytest

from gpusharing.planning.gpus.cards import CARDS, Card, shares
from gpusharing.planning.gpus.geometry import maximal_layouts

H100 = (7, 8)
EXTENTS = {"1g": (1, 1), "1g.20gb": (1, 2), "2g": (2, 2), "3g": (3, 4), "4g": (4, 4)}


@pytest.mark.parametrize(
    ("layout", "told"),
    [
        (["1g"] * 7, [Fraction(1, 7)] * 7),
        (["1g.20gb"] * 4, [Fraction(1, 4)] * 4),
        (["3g", "3g"], [Fraction(1, 2)] * 2),
        (["2g"] * 3, [Fraction(2, 7)] * 3),
        (["4g", "3g"], [Fraction(8, 15), Fraction(7, 15)]),
        ([], []),
    ],
    ids=lambda value: " ".join(map(str, value)) or "nothing",
)
def test_the_larger_of_compute_and_memory_counts_and_no_gpu_is_billed_more_than_once(
    layout: list[str], told: list[Fraction]
) -> None:
    assert list(shares([EXTENTS[name] for name in layout], H100)) == told


def test_an_instance_whose_size_nobody_knows_has_no_share() -> None:
    assert shares([(0, 0), (3, 4)], H100) == (Fraction(0), Fraction(1, 2))
    assert shares([(1, 1)], (0, 0)) == (Fraction(0),)


@pytest.mark.parametrize("card", [card for card in CARDS if card.profiles], ids=lambda card: card.key)
def test_no_layout_of_any_card_is_more_than_its_gpu_and_none_is_free(card: Card) -> None:
    whole = (max(p.slices for p in card.profiles), max(p.size for p in card.profiles))
    profiles = {profile.name: (profile.slices, profile.size) for profile in card.profiles}
    for layout in maximal_layouts(card.profiles):
        parts = shares([profiles[name] for name, count in layout for _ in range(count)], whole)
        assert 0 < sum(parts) <= 1
        assert min(parts) > 0
