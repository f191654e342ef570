"""On how few GPUs do these instances fit? Exact: it uses legal layouts of the card, not only sums of slices.

Two 3g.40gb and a 1g.10gb have 7 compute slices together, as many as the card, and do not fit. So GPUs are filled
one by one with layouts that `geometry` calls legal. A GPU is always filled until nothing more of what is left fits
on it: because a legal layout stays legal without one of its instances, no solution is lost.
"""

from collections.abc import Collection, Iterator
from functools import cache

from gpusharing.planning.gpus.capacity import plain_profiles
from gpusharing.planning.gpus.cards import Card
from gpusharing.planning.gpus.geometry import Layout, legal_layouts, maximal_layouts, normalize

Counts = tuple[int, ...]
"""Instances of each profile, in the order of the packer's profiles."""


class Packer:
    """Packs instances on GPUs of one card. It remembers its results, so reuse the same packer."""

    def __init__(self, card: Card) -> None:
        self.profiles = plain_profiles(card)
        self._index = {profile.name: index for index, profile in enumerate(self.profiles)}
        # How many slices a card has is known by its largest profile alone, so that one is asked about, too.
        largest = max((each.slices for each in card.profiles), default=0)
        profiles = (*self.profiles, *(each for each in card.profiles if each.slices == largest))
        self._legal = frozenset(self._counts(each) for each in legal_layouts(profiles) if self._is_ours(each))
        self._full = tuple(each for each in maximal_layouts(profiles) if self._is_ours(each))
        self._slices = largest
        self._units = max((max(each.starts) + each.size for each in card.profiles if each.starts), default=0)
        self._fills = cache(self._find_fills)
        self._fits = cache(self._find_fit)

    def fewest(self, wanted: Counts, most: int) -> int | None:
        """Return the fewest GPUs that hold `wanted`, or None if that is more than `most`."""
        return next((gpus for gpus in range(self.least(wanted), most + 1) if self._fits(wanted, gpus)), None)

    def pack(self, wanted: Counts, gpus: int) -> tuple[Layout, ...]:
        """Return a layout for each of at most `gpus` GPUs that together hold `wanted`. If possible, a GPU has only
        one profile, which is easier to read. Raises ValueError if they do not fit."""
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
        """Return a lower bound for the number of GPUs, by slices, memory units and maxima of the profiles."""
        alone = [-(-count // profile.max_count) for count, profile in zip(wanted, self.profiles, strict=True)]
        slices = -(-self._sum(wanted, "slices") // self._slices) if self._slices else 0
        units = -(-self._sum(wanted, "size") // self._units) if self._units else 0
        return max(slices, units, *alone, 0)

    def fill_up(self, layout: Layout, wanted: Collection[str]) -> Layout:
        """Return the layout with everything else that fits on its GPU: as many instances of the `wanted` profiles
        as possible, then of as few profiles as possible, then with as little stranded as possible."""
        counts = self._counts(layout)
        useful = {self._index[name] for name in wanted}

        def worth(candidate: Layout) -> tuple[int, int, int, int, Layout]:
            """Return the key by which the best of the larger layouts is the least."""
            more = _minus(self._counts(candidate), counts)
            of_use = sum(count for index, count in enumerate(more) if index in useful)
            return -of_use, len(candidate), *self.stranded(candidate), candidate

        fuller = [candidate for candidate in self._full if _within(counts, self._counts(candidate))]
        return min(fuller, key=worth, default=layout)

    def stranded(self, layout: Layout) -> tuple[int, int]:
        """Return the memory units and the compute slices of a GPU that no instance of the layout covers."""
        counts = self._counts(layout)
        return self._units - self._sum(counts, "size"), self._slices - self._sum(counts, "slices")

    def rank(self, layout: Layout) -> tuple[tuple[int, int], ...]:
        """Return a key that sorts layouts: those with the largest instances first, then those with more of them."""
        return tuple((-self._index[name], -count) for name, count in layout)

    def _is_ours(self, layout: Layout) -> bool:
        """Whether a layout has only the profiles that the packer offers."""
        return all(name in self._index for name, _ in layout)

    def _left(self, wanted: Counts, fill: Counts, gpus: int) -> bool:
        """Whether what `fill` leaves of `wanted` fits on this many further GPUs."""
        return gpus >= 0 and self._fits(_minus(wanted, fill), gpus)

    def _find_fit(self, wanted: Counts, gpus: int) -> bool:
        """Whether `wanted` fits on this many GPUs."""
        if self.least(wanted) > gpus:
            return False
        if not any(wanted):
            return True
        return any(self._left(wanted, fill, gpus - 1) for fill in self._fills(self._clip(wanted)))

    def _clip(self, wanted: Counts) -> Counts:
        """Return the counts, none above the most instances of its profile that one GPU can have."""
        return tuple(
            min(count, profile.max_count) for count, profile in zip(wanted, self.profiles, strict=True)
        )

    def _find_fills(self, wanted: Counts) -> tuple[Counts, ...]:
        """Return how one GPU can be filled with some of `wanted`: with the largest profile in it, until nothing
        more fits; the fullest first."""
        if not any(wanted):
            return ()
        largest = max(index for index, count in enumerate(wanted) if count)
        fits = {fill for fill in self._legal if _within(fill, wanted)}
        fills = [fill for fill in fits if fill[largest] and fits.isdisjoint(_one_more(fill))]
        return tuple(
            sorted(fills, key=lambda fill: (-self._sum(fill, "size"), -self._sum(fill, "slices"), fill))
        )

    def _sum(self, counts: Counts, what: str) -> int:
        """Return the sum of an attribute of the profiles, `slices` or `size`, over all instances."""
        return sum(
            count * int(getattr(profile, what)) for count, profile in zip(counts, self.profiles, strict=True)
        )

    def _counts(self, layout: Layout) -> Counts:
        counts = [0] * len(self.profiles)
        for name, count in layout:
            counts[self._index[name]] = count
        return tuple(counts)

    def _layout(self, counts: Counts) -> Layout:
        return normalize({profile.name: count for profile, count in zip(self.profiles, counts, strict=True)})


def _within(part: Counts, whole: Counts) -> bool:
    """Whether `part` has at most as many instances of each profile as `whole`."""
    return all(each <= other for each, other in zip(part, whole, strict=True))


def _minus(whole: Counts, part: Counts) -> Counts:
    return tuple(each - other for each, other in zip(whole, part, strict=True))


def _one_more(counts: Counts) -> Iterator[Counts]:
    """Yield the counts with one more instance of each profile in turn."""
    for index in range(len(counts)):
        yield (*counts[:index], counts[index] + 1, *counts[index + 1 :])
