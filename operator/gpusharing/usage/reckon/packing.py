"""Find out on how few GPUs a number of instances fit. The result is exact: it is based on legal layouts of the card,
not only on sums of slices.

Two 3g.40gb and a 1g.10gb have 7 compute slices together, as many as the card, and do not fit. So GPUs are filled one
by one with layouts that `geometry` calls legal. Each GPU is filled until none of the remaining instances fits on it:
because a legal layout stays legal without one of its instances, no solution is lost.
"""

from collections.abc import Collection, Iterator
from functools import cache

from gpusharing.planning.gpus.capacity import plain_profiles
from gpusharing.planning.gpus.cards import Card
from gpusharing.planning.gpus.geometry import Layout, legal_layouts, maximal_layouts, normalize

Counts = tuple[int, ...]
"""The number of instances of each profile, in the order of the packer's profiles."""


class Packer:
    """Packs instances on GPUs of one card. It caches its results, so use one packer for all questions about a card."""

    def __init__(self, card: Card) -> None:
        """Prepare to pack instances of the card's plain profiles: compute all legal layouts, the full ones among them,
        and the card's size."""
        self.profiles = plain_profiles(card)
        self._most = tuple(profile.max_count for profile in self.profiles)
        self._index = {profile.name: index for index, profile in enumerate(self.profiles)}
        # Only the largest profile shows how many slices the card has, so it is always included.
        largest = max((each.slices for each in card.profiles), default=0)
        profiles = (*self.profiles, *(each for each in card.profiles if each.slices == largest))
        self._legal = frozenset(self._counts(each) for each in legal_layouts(profiles) if self._is_ours(each))
        self._full = tuple(each for each in maximal_layouts(profiles) if self._is_ours(each))
        self._slices = largest
        self._units = max((max(each.starts) + each.size for each in card.profiles if each.starts), default=0)
        self._fills = cache(self._find_fills)
        self._fits = cache(self._find_fit)

    def fewest(self, wanted: Counts, most: int) -> int | None:
        """Return the smallest number of GPUs that can hold the `wanted` instances, or None if that is more than
        `most`."""
        return next((gpus for gpus in range(self.least(wanted), most + 1) if self._fits(wanted, gpus)), None)

    def pack(self, wanted: Counts, gpus: int) -> tuple[Layout, ...]:
        """Return at most `gpus` layouts, one for each GPU, that together hold exactly the `wanted` instances. Where
        possible, a GPU gets instances of only one profile, which is easier to read. Raises ValueError if the instances
        do not fit."""
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
        """Return a lower bound for the number of GPUs that the `wanted` instances need, computed from their slices,
        their memory units and the maximum of each profile on one GPU."""
        alone = [-(-count // most) for count, most in zip(wanted, self._most, strict=True)]
        slices = -(-self._sum(wanted, "slices") // self._slices) if self._slices else 0
        units = -(-self._sum(wanted, "size") // self._units) if self._units else 0
        return max(slices, units, *alone, 0)

    def fill_up(self, layout: Layout, wanted: Collection[str]) -> Layout:
        """Return the layout with more instances added until its GPU is full. The full layout with the most additional
        instances of the `wanted` profiles is preferred, then the one with the fewest profiles, then the one that
        strands the fewest memory units and then compute slices. A layout that no full layout contains is returned
        unchanged. Raises KeyError if `layout` or `wanted` has a profile that the packer does not use."""
        counts = self._counts(layout)
        useful = {self._index[name] for name in wanted}

        def worth(candidate: Layout) -> tuple[int, int, int, int, Layout]:
            """Return a sort key for full layouts; the best one has the lowest."""
            more = _minus(self._counts(candidate), counts)
            of_use = sum(count for index, count in enumerate(more) if index in useful)
            return -of_use, len(candidate), *self.stranded(candidate), candidate

        fuller = [candidate for candidate in self._full if _within(counts, self._counts(candidate))]
        return min(fuller, key=worth, default=layout)

    def stranded(self, layout: Layout) -> tuple[int, int]:
        """Return two numbers: the memory units and the compute slices of a GPU that no instance of the layout covers.
        Raises KeyError if the layout has a profile that the packer does not use."""
        counts = self._counts(layout)
        return self._units - self._sum(counts, "size"), self._slices - self._sum(counts, "slices")

    def rank(self, layout: Layout) -> tuple[tuple[int, int], ...]:
        """Return a sort key that puts layouts with larger instances first and, among layouts with equally large ones,
        those with more of them. Raises KeyError if the layout has a profile that the packer does not use."""
        return tuple((-self._index[name], -count) for name, count in layout)

    def _is_ours(self, layout: Layout) -> bool:
        """Whether all profiles of the layout are among those that the packer uses."""
        return all(name in self._index for name, _ in layout)

    def _left(self, wanted: Counts, fill: Counts, gpus: int) -> bool:
        """Whether the instances of `wanted` that are not in `fill` fit on `gpus` GPUs; False if `gpus` is negative."""
        return gpus >= 0 and self._fits(_minus(wanted, fill), gpus)

    def _find_fit(self, wanted: Counts, gpus: int) -> bool:
        """Whether the `wanted` instances fit on `gpus` GPUs."""
        if self.least(wanted) > gpus:
            return False
        if not any(wanted):
            return True
        return any(self._left(wanted, fill, gpus - 1) for fill in self._fills(self._clip(wanted)))

    def _clip(self, wanted: Counts) -> Counts:
        """Return the counts, each limited to the number of instances of its profile that fit on one GPU."""
        return tuple(map(min, wanted, self._most))

    def _find_fills(self, wanted: Counts) -> tuple[Counts, ...]:
        """Return all ways to fill one GPU with some of the `wanted` instances until no further one fits. Each includes
        at least one instance of the largest wanted profile. Those that use the most memory units come first, and of
        these those with the most slices. Empty if nothing is wanted."""
        if not any(wanted):
            return ()
        largest = max(index for index, count in enumerate(wanted) if count)
        fits = {fill for fill in self._legal if _within(fill, wanted)}
        fills = [fill for fill in fits if fill[largest] and fits.isdisjoint(_one_more(fill))]
        return tuple(
            sorted(fills, key=lambda fill: (-self._sum(fill, "size"), -self._sum(fill, "slices"), fill))
        )

    def _sum(self, counts: Counts, what: str) -> int:
        """Return the sum, over all instances, of the profile attribute `what`: `slices` or `size`."""
        return sum(
            count * int(getattr(profile, what)) for count, profile in zip(counts, self.profiles, strict=True)
        )

    def _counts(self, layout: Layout) -> Counts:
        """Return the number of instances of each of the packer's profiles in the layout. Raises KeyError if the layout
        has another profile."""
        counts = [0] * len(self.profiles)
        for name, count in layout:
            counts[self._index[name]] = count
        return tuple(counts)

    def _layout(self, counts: Counts) -> Layout:
        """Return the layout that has these counts of the packer's profiles."""
        return normalize({profile.name: count for profile, count in zip(self.profiles, counts, strict=True)})


def _within(part: Counts, whole: Counts) -> bool:
    """Whether `part` has at most as many instances of each profile as `whole`."""
    return all(each <= other for each, other in zip(part, whole, strict=True))


def _minus(whole: Counts, part: Counts) -> Counts:
    """Return the counts of `whole` reduced by those of `part`; they may become negative."""
    return tuple(each - other for each, other in zip(whole, part, strict=True))


def _one_more(counts: Counts) -> Iterator[Counts]:
    """Yield, for each profile, the counts with one more instance of that profile."""
    for index in range(len(counts)):
        yield (*counts[:index], counts[index] + 1, *counts[index + 1 :])
