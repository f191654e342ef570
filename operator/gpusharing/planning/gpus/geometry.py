"""Does a MIG layout fit one GPU, which is the nearest, which are possible, and how are they named?"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias

from gpusharing.api.names import RESOURCE_MIG_PREFIX
from gpusharing.api.nearest import nearest
from gpusharing.planning.gpus.cards import Profile, extent
from gpusharing.planning.vocabulary.values import value

Layout: TypeAlias = tuple[tuple[str, int], ...]
"""The instances of one GPU as pairs of profile and count, largest first, each count above 0. An empty tuple means that
MIG is on without instances. A GPU with MIG off has no layout, for which None is used."""

# "1g.10gb+me", "1g.24gb-me", "1c.3g.40gb" (a compute instance smaller than its GPU instance).
_NAME = re.compile(r"(?:\d+c\.)?(\d+)g\.(\d+)gb((?:[+-][a-z.,]+)*)")


def normalize(counts: Mapping[str, int]) -> Layout:
    """Return the layout with these counts by profile, largest profile first. Raises ValueError for a negative count."""
    for name, count in counts.items():
        if count < 0:
            raise ValueError(f"count of profile {name} is negative: {count}")
    return tuple(sorted(((n, c) for n, c in counts.items() if c), key=lambda item: _large_first(item[0])))


def describe(layout: Layout) -> str:
    return "+".join(f"{count}x{name}" for name, count in layout) or "empty"


def find_misfit(layout: Layout, profiles: Sequence[Profile]) -> str:
    """Return why a GPU with these profiles cannot hold the layout, as a clause; empty if it can.

    As NVIDIA's MIG user guide and mig-parted have it, a layout is legal when:

    - every profile is offered, and none more often than its maximum;
    - the instances can be placed without overlap, using only the listed starts, within the compute slices;
    - at most one instance has the media engines (``+me``); next to a ``+me.all`` there are only ``-me`` ones.

    Taking an instance away from a legal layout leaves a legal layout. The answer is exact, by a search of placements,
    unless the placements of the profiles are unknown.

        {3g.40gb: 1, 1g.10gb: 4}   legal on an H100 80 GB: the 3g at unit 4, the 1g at 0, 1, 2, 3
        {1g.20gb: 7}               refused: the card has room for at most 4x1g.20gb
        {3g.40gb: 2, 1g.10gb: 1}   refused: 7 compute slices, but 9 of 8 memory units
    """
    offer = _Offer.of(profiles)
    unknown = ", ".join(name for name, _ in layout if name not in offer.by_name)
    if unknown:
        return f"this card has no profile {unknown}"
    return f"{describe(layout)} does not fit: {misfit}" if (misfit := offer.why_not(layout)) else ""


def tell_misfit(layout: Layout, profiles: Sequence[Profile]) -> str:
    """Return the clause of `find_misfit` with the card's offer and the nearest legal layout."""
    if not (why := find_misfit(layout, profiles)):
        return ""
    if not profiles:
        return f"{why}; the card has no MIG profiles"
    offers = ", ".join(f"{profile.name} (max {profile.max_count})" for profile in profiles)
    nearest = nearest_layout(layout, profiles)
    near = "" if nearest is None else f"; nearest legal layout: {describe(nearest)}"
    return f"{why}; the card offers {offers}{near}"


def place(layout: Layout, profiles: Sequence[Profile]) -> tuple[tuple[str, int], ...]:
    """Return one placement of a legal layout, as pairs of profile and start; empty if the card's are unknown.

    The driver may choose another placement.
    """
    return _Offer.of(profiles).place(layout)


def nearest_layout(layout: Layout, profiles: Sequence[Profile]) -> Layout | None:
    """Return the legal layout nearest to ``layout``, or None if no profile of the card is like one in it.

    A profile that the card does not offer becomes the one with the closest number of compute slices, then the nearest
    memory, then the same attribute: 1g.20gb becomes 1g.18gb on an H200. Then as few instances as possible are dropped
    or replaced by one with fewer compute slices.
    """
    if not profiles or not find_misfit(layout, profiles):
        return layout if profiles else None
    offer = _Offer.of(profiles)
    wanted: Counter[str] = Counter()
    for name, count in layout:
        if match := offer.closest(name):
            wanted[match] += count

    def rank(candidate: Layout) -> tuple[int, int, int, Layout]:
        rows = [(offer.by_name[name], count) for name, count in candidate]
        slices = sum(profile.slices * count for profile, count in rows)
        memory = sum(profile.memory_gb * count for profile, count in rows)
        return sum(count for _, count in rows), slices, memory, candidate

    return max(offer.substitutes(wanted), key=rank) if wanted else None


def legal_layouts(profiles: Sequence[Profile]) -> tuple[Layout, ...]:
    return tuple(_Offer.of(profiles).legal_layouts({profile.name: profile.max_count for profile in profiles}))


def maximal_layouts(profiles: Sequence[Profile]) -> tuple[Layout, ...]:
    legal = set(legal_layouts(profiles))
    names = [profile.name for profile in profiles]
    full = [a for a in legal if not any(normalize(Counter(dict(a)) + Counter([n])) in legal for n in names)]
    return tuple(sorted(full, key=lambda layout: [(_large_first(name), -count) for name, count in layout]))


def generated_layouts(profiles: Sequence[Profile]) -> dict[str, Layout | None]:
    """Return the layouts of the configurations that mig-manager from v0.14 generates, by name.

    A profile with a max_count of 0 has none: mig-parted refuses a whole file for an entry whose counts are all 0.
    """
    profiles = [profile for profile in profiles if profile.max_count > 0]
    if not profiles:
        return {}
    layouts: dict[str, Layout | None] = {"all-disabled": None, "all-enabled": ()}
    base: dict[int, Profile] = {}
    for profile in sorted(profiles, key=lambda p: -p.max_count):
        if not _attribute(profile.name):
            base.setdefault(profile.slices, profile)
        layouts["all-" + profile.name.replace("+", ".")] = ((profile.name, profile.max_count),)
    # How many instances of each number of compute slices, by that of the card (mig-parted v0.15.0
    # pkg/mig/builder/balanced.go).
    balanced = {7: {1: 2, 2: 1, 3: 1}, 4: {1: 2, 2: 1}}
    formula = balanced.get(max(base, default=0), {})
    if formula and formula.keys() <= base.keys():
        layouts["all-balanced"] = normalize({base[g].name: count for g, count in formula.items()})
    return dict(sorted(layouts.items()))


def parse_profile(name: str) -> tuple[int, int, str] | None:
    """Return the compute slices, the GB and the attribute in the name of a profile, or None if it is not one."""
    match = _NAME.fullmatch(name)
    return None if match is None else (int(match[1]), int(match[2]), match[3])


def resource_name(profile: str, *, shared: bool = False) -> str:
    """Return the resource of this profile with strategy mixed, as device plugins name it from v0.20."""
    return f"{RESOURCE_MIG_PREFIX}{profile.replace('+', '.')}{'.shared' if shared else ''}"


def _large_first(name: str) -> tuple[int, int, str]:
    slices, gb, _ = parse_profile(name) or (0, 0, "")
    return -slices, -gb, name


def _attribute(name: str) -> str:
    return (parse_profile(name) or (0, 0, ""))[2]


@value
class _Offer:
    """The profiles of one card, prepared for many checks."""

    by_name: Mapping[str, Profile]
    slices: int  # compute slices of the card: those of its largest profile
    units: int  # memory units of the card

    @classmethod
    def of(cls, profiles: Sequence[Profile]) -> "_Offer":
        return cls({profile.name: profile for profile in profiles}, *extent(profiles))

    def why_not(self, layout: Layout) -> str:
        for name, count in layout:
            if count > (most := self.by_name[name].max_count):
                return f"the card has room for at most {most}x{name}"
        attributes = {name: _attribute(name) for name, _ in layout}
        totals = Counter[str]()
        for name, count in layout:
            totals[attributes[name]] += count
        if totals["+me"] > 1:
            return "only one instance on a GPU can have the media engines (+me)"
        everything = next((name for name, attribute in attributes.items() if attribute == "+me.all"), None)
        others = [name for name, attribute in attributes.items() if attribute not in ("-me", "+me.all")]
        if everything and others:
            return f"only -me profiles can be combined with {everything}, not {', '.join(others)}"
        if totals["+me.all"] > 1:
            return "only one instance on a GPU can have all media engines (+me.all)"
        slices = sum(self.by_name[name].slices * count for name, count in layout)
        if slices > self.slices:
            return f"it needs {slices} compute slices, but the card has {self.slices}"
        if any(not self.by_name[name].starts for name, _ in layout):
            if len(layout) == 1:
                return ""
            return "placements on this card are unknown, so profiles cannot be mixed"
        units = sum(self.by_name[name].size * count for name, count in layout)
        if units > self.units:
            return f"it needs {units} memory units, but the card has {self.units}"
        if _place(self._shapes(layout)) is None:
            return "its instances overlap in every placement that the card allows"
        return ""

    def place(self, layout: Layout) -> tuple[tuple[str, int], ...]:
        shapes = self._shapes(layout)
        free = {shape[:2]: list(starts) for shape, starts in zip(shapes, _place(shapes) or (), strict=False)}
        placed = []
        for name, count in layout:
            starts = free.get((self.by_name[name].starts, self.by_name[name].size), [])
            placed += [(name, starts.pop(0)) for _ in range(count) if starts]
        return tuple(placed)

    def _shapes(self, layout: Layout) -> "tuple[_Shape, ...]":
        shapes: Counter[tuple[tuple[int, ...], int]] = Counter()
        for name, count in layout:
            shapes[self.by_name[name].starts, self.by_name[name].size] += count
        return tuple(sorted(((*s, n) for s, n in shapes.items()), key=lambda shape: (-shape[1], shape)))

    def legal_layouts(self, most: Mapping[str, int]) -> Iterator[Layout]:
        def extend(names: Sequence[str], chosen: Layout) -> Iterator[Layout]:
            if not names:
                yield chosen
                return
            yield from extend(names[1:], chosen)
            for count in range(1, min(most[names[0]], self.by_name[names[0]].max_count) + 1):
                more = (*chosen, (names[0], count))
                if self.why_not(more):
                    return  # larger counts are not legal either
                yield from extend(names[1:], more)

        return extend(sorted(most, key=_large_first), ())

    def substitutes(self, wanted: Mapping[str, int]) -> Iterator[Layout]:
        """Yield every legal layout with at most these instances, or some with the same memory and fewer slices."""
        of, room = self.by_name, Counter[object]()
        kinds = {name: (one.memory_gb or name, _attribute(name)) for name, one in of.items()}
        most: Counter[str] = Counter()
        for name, count in wanted.items():
            room[kinds[name]] += count
            for other, one in of.items():
                if kinds[other] == kinds[name] and one.slices <= of[name].slices:
                    most[other] += count
        for layout in self.legal_layouts(most):
            taken = Counter[object]()
            for name, count in layout:
                taken[kinds[name]] += count
            if taken <= room:
                yield layout

    def closest(self, name: str) -> str | None:
        if name in self.by_name:
            return name
        if (parsed := parse_profile(name)) is None:
            return next(iter(nearest(name.lower(), self.by_name)), None)
        slices, gb, attribute = parsed

        def distance(profile: Profile) -> tuple[int, int, bool, int, str]:
            far = abs(profile.slices - slices), abs(profile.memory_gb - gb)
            return (*far, _attribute(profile.name) != attribute, profile.memory_gb, profile.name)

        return min(self.by_name.values(), key=distance).name


_Shape: TypeAlias = tuple[tuple[int, ...], int, int]  # starts, size, how many


@lru_cache(maxsize=4096)
def _place(shapes: tuple[_Shape, ...], taken: int = 0) -> tuple[tuple[int, ...], ...] | None:
    """Return starts for the instances of each shape so that nothing overlaps; ``taken`` is a bit mask of units."""
    if not shapes:
        return ()
    rest = shapes[1:]
    for chosen, bits in _choices(shapes[0], taken):
        others = _place(rest, bits)
        if others is not None:
            return (chosen, *others)
    return None


def _choices(shape: _Shape, taken: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """Yield each choice of starts for one shape, with the units in use afterwards, abandoned at the first overlap."""
    starts, size, count = shape
    if not count:
        yield (), taken
        return
    for index, start in enumerate(starts[: len(starts) - count + 1]):
        unit = ((1 << size) - 1) << start
        if not taken & unit:
            for others, bits in _choices((starts[index + 1 :], size, count - 1), taken | unit):
                yield (start, *others), bits
