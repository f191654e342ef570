"""What part of a GPU a MIG instance is, for bills: the larger of its parts of compute and of memory.

The larger, because a pod that takes all of one resource leaves no use for the other. Parts of one GPU may then add up
to more than the GPU (4g.40gb and 3g.40gb on an 80 GB card: 4/7 and 4/8), and are reduced in proportion.
"""

from collections.abc import Sequence
from fractions import Fraction

from gpusharing.planning.vocabulary.values import value

WHOLE = Fraction(1)


@value
class Extent:
    """How much a profile has, in units of its card."""

    slices: int
    """Compute slices."""
    memory: int
    """Memory, in the same unit as the card's largest profile."""


def shares(instances: Sequence[Extent], card: Extent) -> tuple[Fraction, ...]:
    """The share of each instance of one GPU, in their order: at most 1 together; the rest belongs to nobody.

    `card` is the largest profile. An instance of an unknown size has no share.
    """
    parts = [max(_part(each.slices, card.slices), _part(each.memory, card.memory)) for each in instances]
    most = max(WHOLE, sum(parts, Fraction(0)))
    return tuple(part / most for part in parts)


def _part(part: int, whole: int) -> Fraction:
    return Fraction(part, whole) if whole > 0 else Fraction(0)
