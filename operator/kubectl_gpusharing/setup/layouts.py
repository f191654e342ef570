"""`layouts [CARD] [--fits 3g.40gb,1g.10gb]`: which MIG layouts can a card have?

Each is drawn as slices, and no cluster is contacted. The card comes from our table (`planning/gpus/cards.py`). Whether
instances fit is decided as for a policy (`planning/gpus/geometry.py`).
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpusharing.api.nearest import nearest
from gpusharing.planning.gpus.cards import CARDS, Card, Profile, extent, find_card
from gpusharing.planning.gpus.geometry import Layout, maximal_layouts, normalize, place, tell_misfit
from gpusharing.planning.gpus.geometry import describe as layout_text
from gpusharing.planning.vocabulary.lengths import counted
from kubectl_gpusharing.shell.arguments import Arguments
from kubectl_gpusharing.shell.documents import CardListData, LayoutListData
from kubectl_gpusharing.shell.drawing import (
    BLANK,
    Ink,
    Line,
    PrintOptions,
    Span,
    columns,
    line,
    prose,
    prose_of_each,
    table,
)
from kubectl_gpusharing.shell.terminal import Terminal
from kubectl_gpusharing.shell.troubles import DONE, FAILED, Trouble

CARD_WIDTH = 40
_INKS = (Ink.GOOD, Ink.BUSY)
NOTES = {
    "unknown": "The placements of instances on this card are unknown, so no layout is drawn and mixed layouts are not"
    " listed.",
    "family": "Instance placements are taken from cards of the same family; if the driver reports different ones, those"
    " apply.",
}
"""Remarks about the placements of a card, by where they are from."""


@dataclass(frozen=True, slots=True)
class LegalLayouts:
    """The layouts of one card that contain the wanted instances, or why there are none."""

    card: Card
    wanted: Layout
    layouts: tuple[Layout, ...]
    misfit: str
    """Why the wanted instances do not fit; empty if they do."""
    hidden: bool = False
    """Whether profiles with attributes were left out."""


def describe(answer: LegalLayouts, options: PrintOptions) -> list[Line]:
    card = answer.card
    whole, _ = extent(card.profiles)
    slices = f"{whole} compute slices" if card.profiles else ""
    size = ", ".join(filter(None, (f"{card.memory_gb} GB" if card.memory_gb or not slices else "", slices)))
    lines = prose(f"{', '.join(card.products) or card.key}: {size}", options, ink=Ink.TITLE)
    if answer.misfit:
        return [*lines, *prose(f"{answer.misfit}.", options, ink=Ink.BAD)]
    if not card.profiles:
        return [*lines, *prose("This card has no MIG: use mode TimeSlicing or MPS to share it.", options)]
    with_what = f" with {layout_text(answer.wanted)}" if answer.wanted else ""
    title = f"{counted(len(answer.layouts), 'layout')}{with_what} to which nothing can be added"
    lines += [*prose(title, options), BLANK]
    name = max((len(layout_text(layout)) for layout in answer.layouts), default=0)
    for layout in answer.layouts:
        picture = draw(layout, card.profiles, options)
        taken = sum(profile.slices * dict(layout).get(profile.name, 0) for profile in card.profiles)
        used = f"{taken}/{whole} slices"
        if options.width is not None and name + CARD_WIDTH + len(used) + 4 > options.width:
            lines += [*prose(f"{layout_text(layout)} {used}", options), line("  ", *picture)]
        else:
            lines.append(line(layout_text(layout).ljust(name), "  ", *picture, "  ", Span(used, Ink.FAINT)))
    notes = [NOTES[card.source.placements]] if card.source.placements in NOTES else []
    notes += ["--all also shows profiles with attributes, such as +me."] * answer.hidden
    return [*lines, *([BLANK] * bool(notes)), *prose_of_each(notes, options, hang="", ink=Ink.FAINT)]


def draw(layout: Layout, profiles: Sequence[Profile], options: PrintOptions) -> Line:
    """Draw one card with this layout, from its first memory unit to its last; empty if placements are unknown."""
    (_, units), sizes = extent(profiles), {profile.name: profile.size for profile in profiles}
    placements = place(layout, profiles)
    if not units or not placements:
        return ()
    room = CARD_WIDTH if options.width is None else min(CARD_WIDTH, options.width - 2)
    cell = max(3, room // units)
    spans: list[Span] = []
    free = "·" if options.glyphs else "."
    at = 0
    for number, (name, start) in enumerate(sorted(placements, key=lambda placed: placed[1])):
        spans.append(Span(free * ((start - at) * cell), Ink.FAINT))
        width = sizes[name] * cell - 2
        label = next((text for text in (name, name.partition(".")[0]) if len(text) <= width), "")
        spans.append(Span(f"[{label.center(width)}]", _INKS[number % len(_INKS)]))
        at = start + sizes[name]
    spans.append(Span(free * ((units - at) * cell), Ink.FAINT))
    return tuple(span for span in spans if span.text)


CARDS_TABLE = columns(CARD=0, PRODUCT=1, LARGEST=0, SMALLEST=0)


def describe_cards(options: PrintOptions) -> list[Line]:
    rows = []
    for card in (one for one in CARDS if one.profiles):
        plain = [one for one in card.profiles if one.is_plain]
        large = max(plain, key=lambda one: one.slices)
        small = min(plain, key=lambda one: (one.slices, one.memory_gb))
        most = f"{small.name} (max {small.max_count})"
        rows.append(line(card.key, card.products[0] if card.products else "", large.name, most))
    title = "Cards with MIG (kubectl gpusharing layouts CARD draws the layouts of one card):"
    return [*prose(title, options), *table(CARDS_TABLE, rows, options)]


def as_data(answer: LegalLayouts) -> LayoutListData:
    card = answer.card
    return {
        "card": card.key,
        "products": list(card.products),
        "memoryGB": card.memory_gb,
        "slices": extent(card.profiles)[0],
        "fits": not answer.misfit,
        "refusal": answer.misfit,
        "layouts": [
            {
                "layout": layout_text(layout),
                "profiles": dict(layout),
                "placements": [{"profile": name, "start": start} for name, start in place(layout, card.profiles)],
            }
            for layout in answer.layouts
        ],
    }


def run_offline(typed: Arguments, terminal: Terminal) -> int:
    if not typed.product:
        keys = [card.key for card in CARDS if card.profiles]
        terminal.answer(CardListData, lambda: {"cards": keys}, describe_cards)
        return DONE
    answer = find_answer(pick(typed.product), wanted_of(typed.fits), everything=typed.all)
    terminal.answer(LayoutListData, lambda: as_data(answer), lambda options: describe(answer, options))
    return FAILED if answer.misfit else DONE


def pick(word: str) -> Card:
    """Return the card that `word` names: by NVML's or GPU Feature Discovery's name, our key, or a part of one.

    A part may be followed by the memory, as in h20-96gb. Raises Trouble unless exactly one card matches.
    """
    plain = _plain(word)
    model, _, size = plain.rpartition("-")
    forms: tuple[Callable[[str, Card], bool], ...] = (
        lambda name, _: plain in (name, name.removeprefix("nvidia-").removeprefix("tesla-")),
        lambda name, _: f"-{plain}-" in f"-{name}-",
        lambda name, card: size == f"{card.memory_gb}gb" and f"-{model}-" in f"-{name}-",
        lambda name, _: plain in name,
    )
    names = {card: [_plain(name) for name in (card.key, *card.products)] for card in CARDS}
    found = ([card for card in CARDS if any(form(name, card) for name in names[card])] for form in forms)
    exact = find_card(word)
    matches = [exact] if exact is not None else next(filter(None, found), [])
    if len(matches) == 1:
        return matches[0]
    bare = {name.removeprefix("nvidia-").removeprefix("tesla-"): card.key for card in CARDS for name in names[card]}
    model = plain.removeprefix("nvidia-").removeprefix("tesla-").partition("-")[0]
    alike = matches or [card for card in CARDS if any(f"-{model}-" in f"-{name}-" for name in names[card])]
    keys = [card.key for card in alike] or [*dict.fromkeys(bare[name] for name in nearest(plain, bare))]
    if not keys:
        raise Trouble(f"no card is named {word}; kubectl gpusharing layouts lists those with MIG")
    if matches:
        raise Trouble(f"several cards match {word}; pass one of: {', '.join(keys)}")
    raise Trouble(f"no card matches {word}; did you mean: {', '.join(keys)}")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def wanted_of(text: str) -> Layout:
    """Parse the value of `--fits`, such as `3g.40gb,2x1g.10gb`. Raises Trouble."""
    counts: Counter[str] = Counter()
    for part in filter(None, (one.strip() for one in re.split(r",|\+(?=\d)", text))):
        count, times, profile = part.partition("x")
        if not times or "." in count:  # no x, or only that of a suffix such as +gfx
            count, profile = "1", part
        if not count.isdecimal():
            raise Trouble(f"--fits {part} is not a list of profiles; pass one such as 3g.40gb,2x1g.10gb")
        if not int(count):
            raise Trouble(f"--fits {part}: a count must be at least 1; pass a list such as 3g.40gb,2x1g.10gb")
        counts[profile] += int(count)
    return normalize(counts)


def find_answer(card: Card, wanted: Layout, *, everything: bool) -> LegalLayouts:
    """Find the full layouts of the card that contain the wanted instances.

    Without `everything`, profiles with attributes are used only if they are wanted.
    """
    profiles = card.profiles
    if not everything:
        named = {name for name, _ in wanted}
        profiles = tuple(one for one in profiles if one.name in named or one.is_plain)
    if wanted and (misfit := tell_misfit(wanted, card.profiles)):
        return LegalLayouts(card, wanted, (), misfit)
    layouts = tuple(
        layout
        for layout in (maximal_layouts(profiles) if profiles else ())
        if all(dict(layout).get(name, 0) >= count for name, count in wanted)
    )
    return LegalLayouts(card, wanted, layouts, "", hidden=len(profiles) < len(card.profiles))
