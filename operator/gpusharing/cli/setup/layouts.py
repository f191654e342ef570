"""`layouts [CARD] [--fits 3g.40gb,1g.10gb]`: every MIG layout of a card, drawn as slices. It contacts no cluster.

The card is the table's (`planning/gpus/cards.py`); what fits is decided as for a policy (`planning/gpus/geometry.py`).
"""

from argparse import Namespace
from collections import Counter

from gpusharing.cli.setup.layoutstext import LegalLayouts, as_data, describe, describe_cards
from gpusharing.cli.shell.terminal import Terminal
from gpusharing.cli.shell.troubles import DONE, FAILED, Trouble, nearest
from gpusharing.planning.gpus.cards import CARDS, Card, find_card
from gpusharing.planning.gpus.geometry import Layout, Refusal, find_fit, maximal_layouts, normalise


def tell(typed: Namespace, terminal: Terminal) -> int:
    """See Offline."""
    if not typed.product:
        terminal.answer(
            lambda: [card.key for card in CARDS if card.profiles], lambda paper: describe_cards(CARDS, paper)
        )
        return DONE
    answer = find_answer(pick(typed.product), wanted_of(typed.fits), everything=typed.all)
    terminal.answer(lambda: as_data(answer), lambda paper: describe(answer, paper))
    return FAILED if answer.refusal is not None else DONE


def pick(word: str) -> Card:
    """The card that is meant: by NVML's name, GFD's label, the table's key, or a word that only one begins with or
    contains. Raises Trouble."""
    exact = find_card(word) or next((card for card in CARDS if card.key == word.lower()), None)
    if exact is not None:
        return exact
    plain = _plain(word)
    found = [card for card in CARDS if any(plain in _plain(name) for name in (card.key, *card.products))]
    first = [card for card in found if _plain(card.key).startswith(plain)]
    found = first or found
    if len(found) == 1:
        return found[0]
    keys = [card.key for card in found] or nearest(word.lower(), [card.key for card in CARDS])
    if not keys:
        raise Trouble(f"no card is called {word}; kubectl gpusharing layouts lists those with MIG")
    raise Trouble(
        f"{'several cards match' if found else 'no card matches'} {word}; one of: {', '.join(keys)}"
    )


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def wanted_of(text: str) -> Layout:
    """`3g.40gb,1g.10gb` and `2x3g.40gb` as a layout. Raises Trouble for anything else."""
    counts: Counter[str] = Counter()
    for part in filter(None, (one.strip() for one in text.split(","))):
        count, times, profile = part.partition("x")
        if times and not count.isdecimal():
            raise Trouble(f"--fits {part}: write 3g.40gb or 2x3g.40gb, with commas between")
        counts[profile if times else part] += int(count) if times else 1
    return normalise(counts)


def find_answer(card: Card, wanted: Layout, *, everything: bool) -> LegalLayouts:
    """The layouts to which nothing can be added and in which the wanted instances are."""
    profiles = card.profiles
    if not everything:
        named = {name for name, _ in wanted}
        profiles = tuple(one for one in profiles if one.name in named or not {"+", "-"} & set(one.name))
    if wanted and isinstance(fit := find_fit(wanted, card.profiles), Refusal):
        return LegalLayouts(card, wanted, (), fit)
    least = dict(wanted)
    layouts = tuple(
        layout
        for layout in (maximal_layouts(profiles) if profiles else ())
        if all(dict(layout).get(name, 0) >= count for name, count in least.items())
    )
    return LegalLayouts(card, wanted, layouts, None, hidden=len(profiles) < len(card.profiles))
