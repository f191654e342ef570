"""The share of a GPU that a MIG instance counts for on a bill: its fraction of the compute slices or of the memory, whichever is larger.

The larger one counts, because a pod that takes all of one resource leaves no use for the other. The shares of one GPU
may then add up to more than 1 (4g.40gb and 3g.40gb on an 80 GB card: 4/7 and 4/8), and are reduced in proportion.
"""

from collections.abc import Sequence
from fractions import Fraction

from gpusharing.planning.vocabulary.values import value

WHOLE = Fraction(1)


@value
class Extent:
    """The size of a MIG instance or of a whole card."""

    slices: int
    memory: int
    """In any unit, as long as it is the same for the instances and the card."""


def shares(instances: Sequence[Extent], card: Extent) -> tuple[Fraction, ...]:
    """Return the share of each instance of one GPU, in the order of `instances`."""
    parts = [max(_part(each.slices, card.slices), _part(each.memory, card.memory)) for each in instances]
    most = max(WHOLE, sum(parts, Fraction(0)))
    return tuple(part / most for part in parts)


def _part(part: int, whole: int) -> Fraction:
    return Fraction(part, whole) if whole > 0 else Fraction(0)
