"""On how few GPUs instances fit, against brute force over placements."""

from collections import Counter
from functools import cache
from itertools import combinations_with_replacement, product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.planning.histories import BY_KEY, H100
from tests.planning.placing import brute_force

from gpusharing.planning.gpus.cards import CARDS, Card
from gpusharing.planning.gpus.geometry import Layout, describe, find_misfit, normalize
from kubectl_gpusharing.usage.packing import Counts, Packer

PACKERS = {card.key: Packer(card) for card in CARDS if card.profiles and card.memory_gb}
PLACED = [card for card in CARDS if card.key in PACKERS and card.source.placements != "unknown"]


def counts(packer: Packer, text: str) -> Counts:
    """`2x3g.40gb 1x1g.10gb` in the packer's order."""
    found = dict.fromkeys((profile.name for profile in packer.profiles), 0)
    for part in text.split():
        number, _, name = part.partition("x")
        found[name] += int(number)
    return tuple(found.values())


@cache
def supplies(card: Card, gpus: int) -> frozenset[Counts]:
    names = [profile.name for profile in PACKERS[card.key].profiles]
    single = [dict(one) for one in brute_force(card.profiles) if {name for name, _ in one} <= set(names)]
    vectors = {tuple(one.get(name, 0) for name in names) for one in single}
    full = [one for one in vectors if not any(one != more and within(one, more) for more in vectors)]
    sets = combinations_with_replacement(sorted(full), gpus)
    return frozenset(tuple(map(sum, zip(*chosen, strict=True))) for chosen in sets)


def within(part: Counts, whole: Counts) -> bool:
    return all(one <= other for one, other in zip(part, whole, strict=True))


def fewest_by_force(card: Card, wanted: Counts, most: int) -> int | None:
    if not any(wanted):
        return 0
    fits = (gpus for gpus in range(1, most + 1) if any(within(wanted, supply) for supply in supplies(card, gpus)))
    return next(fits, None)


def fewest(packer: Packer, wanted: Counts, most: int) -> int | None:
    return next((gpus for gpus in range(most + 1) if packer.fits(wanted, gpus)), None)


SMALL = ["a30", "h100-80gb", "rtx-pro-6000-blackwell"]


@pytest.mark.parametrize("key", SMALL)
@given(st.data())
def test_no_brute_force_finds_fewer_gpus(key: str, data: st.DataObject) -> None:
    packer, card = PACKERS[key], BY_KEY[key]
    most = [2 * profile.max_count for profile in packer.profiles]
    wanted = data.draw(st.tuples(*(st.integers(0, count) for count in most)))
    assert fewest(packer, wanted, 3) == fewest_by_force(card, wanted, 3)


@pytest.mark.parametrize("card", PLACED, ids=lambda card: card.key)
def test_on_one_gpu_it_is_the_geometry(card: Card) -> None:
    packer = PACKERS[card.key]
    for wanted in product(*(range(min(profile.max_count, 3) + 2) for profile in packer.profiles)):
        layout = normalize({one.name: count for one, count in zip(packer.profiles, wanted, strict=True)})
        legal = not find_misfit(layout, card.profiles)
        assert (fewest(packer, wanted, 1) is not None) == legal, describe(layout)


wanted_of_many = st.tuples(*(st.integers(0, 4 * profile.max_count) for profile in PACKERS[H100.key].profiles))


@given(wanted_of_many, st.integers(1, 16))
def test_what_is_packed_is_what_was_wanted_on_legal_layouts(wanted: Counts, most: int) -> None:
    packer = PACKERS[H100.key]
    gpus = fewest(packer, wanted, most)
    if gpus is None:
        assert packer.least(wanted) > most or fewest(packer, wanted, 64) is not None
        return
    assert packer.least(wanted) <= gpus <= most
    layouts = packer.pack(wanted, gpus)
    assert len(layouts) == gpus
    held: Counter[str] = Counter()
    for layout in layouts:
        assert not find_misfit(layout, H100.profiles)
        held.update(dict(layout))
    assert tuple(held[profile.name] for profile in packer.profiles) == wanted


def test_slices_that_add_up_do_not_make_a_layout() -> None:
    packer = PACKERS[H100.key]
    wanted = counts(packer, "2x3g.40gb 1x1g.10gb")
    assert fewest(packer, wanted, 1) is None
    assert fewest(packer, wanted, 2) == 2


def test_what_does_not_fit_is_not_packed() -> None:
    packer = PACKERS[H100.key]
    with pytest.raises(ValueError, match="does not fit on so few GPUs"):
        packer.pack(counts(packer, "3x3g.40gb"), 1)


@pytest.mark.parametrize(
    ("layout", "wanted", "full", "lost"),
    [
        ("3x2g.20gb", (), "3x2g.20gb 1x1g.20gb", (0, 0)),
        ("1x3g.40gb", ("1g.10gb", "1g.20gb"), "1x3g.40gb 4x1g.10gb", (0, 0)),
        ("2x3g.40gb", ("1g.10gb",), "2x3g.40gb", (0, 1)),
        ("7x1g.10gb", (), "7x1g.10gb", (1, 0)),
    ],
    ids=str,
)
def test_what_fits_for_nothing_is_added_and_the_rest_is_stranded(
    layout: str, wanted: tuple[str, ...], full: str, lost: tuple[int, int]
) -> None:
    packer = PACKERS[H100.key]

    def read(text: str) -> Layout:
        found = counts(packer, text)
        return normalize({one.name: count for one, count in zip(packer.profiles, found, strict=True)})

    filled = packer.fill_up(read(layout), set(wanted))
    assert filled == read(full)
    assert packer.stranded(filled) == lost


def test_where_placements_are_unknown_profiles_are_not_mixed() -> None:
    packer = PACKERS["rtx-pro-5000-blackwell"]
    assert fewest(packer, (2,), 1) == 1
    assert fewest(packer, (5,), 3) == 3
