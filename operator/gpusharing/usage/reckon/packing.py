"""On how few GPUs do these instances fit? Exact: over legal layouts of the card, never over sums of slices alone.

Two 3g.40gb and a 1g.10gb have 7 compute slices together, as many as the card, and do not fit; so GPUs are filled one
by one with layouts that `geometry` calls legal. A GPU is only ever filled until nothing more of what is left fits on
it: because a legal layout stays legal without one of its instances, no solution is lost.
"""

from collections.abc import Collection, Iterator
from functools import cache

from gpusharing.planning.gpus.capacity import plain_profiles
from gpusharing.planning.gpus.cards import Card
from gpusharing.planning.gpus.geometry import Layout, legal_layouts, maximal_layouts, normalise

Counts = tuple[int, ...]
"""Instances of each profile, in the order of the packer's profiles."""


class Packer:
    """Answers for one card. It remembers its results, so reuse the same packer."""

    def __init__(self, card: Card) -> None:
        self.profiles = plain_profiles(card)
        self._index = {profile.name: index for index, profile in enumerate(self.profiles)}
        # How many slices a card has is known by its largest profile alone, so that one is asked about, too.
        largest = max((one.slices for one in card.profiles), default=0)
        asked = (*self.profiles, *(one for one in card.profiles if one.slices == largest))
        self._legal = frozenset(self._counts(one) for one in legal_layouts(asked) if self._is_ours(one))
        self._full = tuple(one for one in maximal_layouts(asked) if self._is_ours(one))
        self._slices = largest
        self._units = max((max(one.starts) + one.size for one in card.profiles if one.starts), default=0)
        self._fills = cache(self._find_fills)
        self._fits = cache(self._find_fit)

    def fewest(self, wanted: Counts, most: int) -> int | None:
        """The fewest GPUs that hold `wanted`; None: more than `most`."""
        return next((gpus for gpus in range(self.least(wanted), most + 1) if self._fits(wanted, gpus)), None)

    def pack(self, wanted: Counts, gpus: int) -> tuple[Layout, ...]:
        """A layout for each of `gpus` GPUs that together hold `wanted`; fewer if fewer suffice. If possible, a GPU has
        only one profile, which is easier to read. ValueError: that many do not hold it."""
        layouts = []
        while any(wanted):
            gpus -= 1
            plain = sorted(self._fills(self._clip(wanted)), key=lambda fill: sum(map(bool, fill)))
            chosen = next((fill for fill in plain if self._left(wanted, fill, gpus)), None)
            if chosen is None:
                raise ValueError(f"{wanted} does not fit on so few GPUs")
            layouts.append(self._layout(chosen))
            wanted = _minus(wanted, chosen)
        return tuple(layouts)

    def least(self, wanted: Counts) -> int:
        """A lower bound for the number of GPUs, by slices, memory units and maxima."""
        alone = [-(-count // one.max_count) for count, one in zip(wanted, self.profiles, strict=True)]
        slices = -(-self._sum(wanted, "slices") // self._slices) if self._slices else 0
        units = -(-self._sum(wanted, "size") // self._units) if self._units else 0
        return max(slices, units, *alone, 0)

    def fill_up(self, layout: Layout, wanted: Collection[str]) -> Layout:
        """The layout with whatever else fits on its GPU: as many instances as possible of wanted profiles, then of as
        few profiles as possible, then with as little stranded as possible."""
        counts = self._counts(layout)
        asked = {self._index[name] for name in wanted}

        def worth(one: Layout) -> tuple[int, int, int, int, Layout]:
            more = _minus(self._counts(one), counts)
            of_use = sum(count for index, count in enumerate(more) if index in asked)
            return -of_use, len(one), *self.stranded(one), one

        fuller = [one for one in self._full if _within(counts, self._counts(one))]
        return min(fuller, key=worth, default=layout)

    def stranded(self, layout: Layout) -> tuple[int, int]:
        """Memory units and compute slices of a GPU that no instance of the layout covers."""
        counts = self._counts(layout)
        return self._units - self._sum(counts, "size"), self._slices - self._sum(counts, "slices")

    def rank(self, layout: Layout) -> tuple[tuple[int, int], ...]:
        """A key that sorts layouts: those with the largest instances first, then those with more of them."""
        return tuple((-self._index[name], -count) for name, count in layout)

    def _is_ours(self, layout: Layout) -> bool:
        return all(name in self._index for name, _ in layout)

    def _left(self, wanted: Counts, fill: Counts, gpus: int) -> bool:
        return gpus >= 0 and self._fits(_minus(wanted, fill), gpus)

    def _find_fit(self, wanted: Counts, gpus: int) -> bool:
        if self.least(wanted) > gpus:
            return False
        if not any(wanted):
            return True
        return any(self._left(wanted, fill, gpus - 1) for fill in self._fills(self._clip(wanted)))

    def _clip(self, wanted: Counts) -> Counts:
        """No GPU takes more of a profile than its maximum."""
        return tuple(min(count, one.max_count) for count, one in zip(wanted, self.profiles, strict=True))

    def _find_fills(self, wanted: Counts) -> tuple[Counts, ...]:
        """How one GPU can be filled: with the largest instance that is left, until nothing more fits; fullest first."""
        if not any(wanted):
            return ()
        largest = max(index for index, count in enumerate(wanted) if count)
        fits = {one for one in self._legal if _within(one, wanted)}
        found = [one for one in fits if one[largest] and fits.isdisjoint(_one_more(one))]
        return tuple(sorted(found, key=lambda one: (-self._sum(one, "size"), -self._sum(one, "slices"), one)))

    def _sum(self, counts: Counts, what: str) -> int:
        return sum(count * int(getattr(one, what)) for count, one in zip(counts, self.profiles, strict=True))

    def _counts(self, layout: Layout) -> Counts:
        found = [0] * len(self.profiles)
        for name, count in layout:
            found[self._index[name]] = count
        return tuple(found)

    def _layout(self, counts: Counts) -> Layout:
        return normalise({one.name: count for one, count in zip(self.profiles, counts, strict=True)})


def _within(part: Counts, whole: Counts) -> bool:
    return all(one <= other for one, other in zip(part, whole, strict=True))


def _minus(whole: Counts, part: Counts) -> Counts:
    return tuple(one - other for one, other in zip(whole, part, strict=True))


def _one_more(counts: Counts) -> Iterator[Counts]:
    for index in range(len(counts)):
        yield (*counts[:index], counts[index] + 1, *counts[index + 1 :])
