"""Brute force over placements: which layouts a card can hold, sharing only types with planning/gpus/geometry.py."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product

from gpusharing.planning.gpus.cards import Profile
from gpusharing.planning.gpus.geometry import Layout, normalize


def placement_sets(profiles: Sequence[Profile]) -> Iterator[tuple[Profile, ...]]:
    """Every set of placements that do not overlap, as the profiles it holds."""
    spots = [(p, set(range(start, start + p.size))) for p in profiles for start in p.starts]

    def extend(index: int, chosen: tuple[Profile, ...], used: set[int]) -> Iterator[tuple[Profile, ...]]:
        yield chosen
        for i in range(index, len(spots)):
            profile, units = spots[i]
            if not units & used:
                yield from extend(i + 1, (*chosen, profile), used | units)

    return extend(0, (), set())


def media_engines_allow(names: Sequence[str]) -> bool:
    """The guide's words: one +me per GPU; +me.all only together with -me."""
    everything = [name for name in names if name.endswith("+me.all")]
    if everything:
        return len(everything) == 1 and all(n.endswith("-me") for n in names if n != everything[0])
    return sum(name.endswith("+me") for name in names) <= 1


@lru_cache(maxsize=32)
def brute_force(profiles: tuple[Profile, ...]) -> frozenset[Layout]:
    """Every layout that can be placed, the empty one included."""
    most = {p.name: p.max_count for p in profiles}
    multisets = {tuple(sorted(p.name for p in chosen)) for chosen in placement_sets(profiles)}
    counted = [(names, Counter(names)) for names in multisets if media_engines_allow(names)]
    return frozenset(normalize(c) for _, c in counted if all(c[name] <= most[name] for name in c))


def every_multiset(profiles: Sequence[Profile]) -> Iterator[Layout]:
    """Every layout with no more of each profile than fit alone."""
    for counts in product(*(range(p.max_count + 1) for p in profiles)):
        yield normalize({p.name: n for p, n in zip(profiles, counts, strict=True)})
