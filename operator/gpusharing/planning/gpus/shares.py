"""What part of a GPU a MIG instance is, for bills: the larger one of its parts of compute and of memory.

The larger one counts, because a pod that takes all of one resource leaves no use for the other. Parts of one GPU may
then add up to more than the GPU (4g.40gb and 3g.40gb on an 80 GB card: 4/7 and 4/8), and are reduced in proportion.
"""

from collections.abc import Sequence
from fractions import Fraction

from gpusharing.planning.vocabulary.values import value

WHOLE = Fraction(1)


@value
class Extent:
    """The size of a MIG instance or of a whole card."""

    slices: int
    """Compute slices."""
    memory: int
    """Memory, in the same unit as the card's largest profile."""


def shares(instances: Sequence[Extent], card: Extent) -> tuple[Fraction, ...]:
    """Return the share of each instance of one GPU, in their order. Together they are at most 1; the rest is nobody's.

    `card`: the size of the largest profile. An instance of unknown size has no share, and neither has any on a card of
    unknown size.
    """
    parts = [max(_part(each.slices, card.slices), _part(each.memory, card.memory)) for each in instances]
    most = max(WHOLE, sum(parts, Fraction(0)))
    return tuple(part / most for part in parts)


def _part(part: int, whole: int) -> Fraction:
    """Return the quotient, or 0 if the whole is unknown (not above 0)."""
    return Fraction(part, whole) if whole > 0 else Fraction(0)
