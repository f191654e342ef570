"""The layouts of a card, drawn as slices (kubectl_gpusharing/setup/layouts.py)."""

import pytest
from tests.cli.desk import Desk
from tests.wording import lacks

from gpusharing.planning.gpus.cards import CARDS, Card
from gpusharing.planning.gpus.geometry import describe as layout_text
from gpusharing.planning.gpus.geometry import find_misfit, maximal_layouts, normalize
from kubectl_gpusharing.setup.layouts import as_data, describe, draw, find_answer, pick, wanted_of
from kubectl_gpusharing.shell.drawing import PrintOptions, plain
from kubectl_gpusharing.shell.troubles import DONE, FAILED, Trouble

H100 = pick("h100-80gb")
OPTIONS = PrintOptions(100)


def test_the_layouts_with_two_profiles_are_drawn() -> None:
    answer = find_answer(H100, wanted_of("3g.40gb,1g.20gb"), everything=False)
    assert (
        plain(describe(answer, OPTIONS))
        == """\
NVIDIA H100 80GB HBM3, NVIDIA H100 PCIe, NVIDIA H800, NVIDIA H800 PCIe: 80 GB, 7 compute slices
3 layouts with 1x3g.40gb+1x1g.20gb to which nothing can be added

1x3g.40gb+1x2g.20gb+1x1g.20gb  [     3g.40gb      ][2g.20gb ][1g.20gb ]  6/7 slices
1x3g.40gb+2x1g.20gb            [     3g.40gb      ][1g.20gb ][1g.20gb ]  5/7 slices
1x3g.40gb+1x1g.20gb+2x1g.10gb  [     3g.40gb      ][ 1g][ 1g][1g.20gb ]  6/7 slices

--all also shows profiles with attributes, such as +me.
"""
    )


def test_what_does_not_fit_is_refused_with_the_reason_and_the_nearest_that_does() -> None:
    answer = find_answer(H100, wanted_of("7x1g.20gb"), everything=False)
    text = plain(describe(answer, OPTIONS))
    assert not lacks(text, "7x1g.20gb does not fit", "4x1g.20gb")
    assert "nearest legal layout: 4x1g.20gb" in " ".join(text.split())


def test_what_is_free_is_drawn_as_free() -> None:
    assert (
        plain([draw(normalize({"3g.40gb": 1}), H100.profiles, OPTIONS)]) == "[     3g.40gb      ]····················\n"
    )


@pytest.mark.parametrize("card", [card for card in CARDS if card.profiles], ids=lambda card: card.key)
def test_each_picture_has_every_instance_once_and_is_as_wide_as_the_card(card: Card) -> None:
    answer = find_answer(card, (), everything=True)
    assert answer.layouts == maximal_layouts(answer.card.profiles)
    pictures = [(layout, draw(layout, answer.card.profiles, OPTIONS)) for layout in answer.layouts]
    drawn = [(layout, "".join(span.text for span in one)) for layout, one in pictures if one]
    assert len({len(text) for _, text in drawn}) <= 1
    assert all(text.count("[") == sum(dict(layout).values()) for layout, text in drawn)


@pytest.mark.parametrize("width", [40, 80])
def test_a_narrow_terminal_gets_the_picture_on_a_line_of_its_own(width: int) -> None:
    answer = find_answer(H100, wanted_of("3g.40gb,1g.20gb"), everything=False)
    lines = plain(describe(answer, PrintOptions(width))).splitlines()
    assert max(map(len, lines)) <= width
    assert sum("3g.40gb " in one and "[" in one for one in lines) == 3


def test_data_can_go_into_a_policy_as_it_is() -> None:
    (first, *_) = as_data(find_answer(H100, wanted_of("2x3g.40gb"), everything=False))["layouts"]
    assert first["profiles"] == {"3g.40gb": 2}
    assert not find_misfit(normalize(first["profiles"]), H100.profiles)


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", "h100-80gb"),
        ("A30", "a30"),
        ("h200", "h200-141gb"),
        ("h20", "hopper-96gb"),
        ("H100 PCIe", "h100-80gb"),
        ("b300", "b300-269gb"),
        ("H100-80", "h100-80gb"),
        ("4090", "rtx-4090"),
        ("L40S", "l40s"),
        ("h20-96gb", "hopper-96gb"),
        ("H20 96GB", "hopper-96gb"),
        ("gh200-96gb", "hopper-96gb"),
        ("a800-40gb", "a100-40gb"),
    ],
)
def test_a_card_is_found_by_the_names_that_people_have_for_it(word: str, key: str) -> None:
    assert pick(word).key == key


@pytest.mark.parametrize(("word", "keys"), [("h20-141gb", "hopper-96gb"), ("A100-SXM9", "a100-40gb, a100-80gb")])
def test_cards_of_the_model_are_suggested_before_those_that_are_spelled_alike(word: str, keys: str) -> None:
    with pytest.raises(Trouble, match=f"did you mean: {keys}$"):
        pick(word)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.key)
def test_every_name_of_a_card_means_that_card(card: Card) -> None:
    for name in (card.key, *card.products):
        assert pick(name) is card
        assert pick(name.lower().replace(" ", "-")) is card


@pytest.mark.parametrize(
    ("word", "keys"),
    [
        ("a100", "a100-40gb, a100-80gb"),
        ("h100", "h100-80gb, h100-nvl-94gb, hopper-96gb"),
        ("gh200", "hopper-96gb, gh200-144gb"),
        ("h2", "hopper-96gb, gh200-144gb, h200-141gb"),
    ],
)
def test_a_word_that_means_several_cards_is_answered_with_their_names(word: str, keys: str) -> None:
    with pytest.raises(Trouble, match=f"several cards match {word}; pass one of: {keys}$"):
        pick(word)


def test_a_card_that_there_is_not_is_never_taken_for_another(desk: Desk) -> None:
    with pytest.raises(Trouble, match="no card matches h300"):
        pick("h300")
    with pytest.raises(Trouble, match=r"no card matches h20-80gb; did you mean: .*hopper-96gb"):
        pick("h20-80gb")
    assert "NVIDIA H20: 96 GB" in desk.type("layouts", "h20").out
    assert "3g.48gb" in desk.type("advise", "--card", "h20", "--memory", "35Gi", "--promise").out


@pytest.mark.parametrize("card", [card for card in CARDS if card.profiles], ids=lambda card: card.key)
def test_fits_takes_every_layout_as_it_is_printed(card: Card) -> None:
    for layout in maximal_layouts(card.profiles):
        assert wanted_of(layout_text(layout)) == layout


def test_the_nearest_layout_of_a_mistyped_profile_has_the_profile_that_was_meant(desk: Desk) -> None:
    told = desk.type("layouts", "h100-80gb", "--fits", "1x3g.40+1x1g.20gb")
    assert told.status == FAILED
    assert "nearest legal layout: 1x3g.40gb+1x1g.20gb" in " ".join(told.out.split())


@pytest.mark.parametrize("text", ["ax1g.10gb", "x1g.10gb"])
def test_what_must_fit_and_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(Trouble, match=r"is not a list of profiles"):
        wanted_of(text)


@pytest.mark.parametrize("text", ["0x3g.40gb", "00x1g.24gb+gfx", "3g.40gb,0x1g.10gb"])
def test_an_instance_that_is_to_fit_no_times_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(Trouble, match=r"^--fits 0.*: a count must be at least 1; pass a list such as (.*)$") as refused:
        wanted_of(text)
    assert wanted_of(str(refused.value).rpartition(" ")[2])


def test_no_cluster_is_needed_and_a_card_without_mig_says_so(desk: Desk) -> None:
    desk.kubeconfig.unlink()
    assert desk.type("layouts", "h100-80gb").status == DONE
    assert "rtx-pro-6000-blackwell" in desk.type("layouts").out
    assert "This card has no MIG" in desk.type("layouts", "l40s").out
    assert desk.type("layouts", "h100-80gb", "--fits", "7x1g.20gb").status == FAILED


def test_a_profile_whose_suffix_has_an_x_needs_no_count() -> None:
    assert wanted_of("1g.24gb+gfx") == (("1g.24gb+gfx", 1),)
    assert wanted_of("2x1g.24gb+gfx,1g.24gb+gfx") == (("1g.24gb+gfx", 3),)
