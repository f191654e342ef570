"""Days of samples in a few hundred numbers: a histogram with buckets that grow by 5 % and weights that halve in a day.

The scheme is that of the Vertical Pod Autoscaler 1.7.1 (kubernetes/autoscaler, pkg/recommender/model/
aggregations_config.go and util/decaying_histogram.go: growth 0.05, half-life 24 h for memory and CPU). One difference:
there the width of a bucket grows by 5 %, here its bounds do, so that no value is reported more than 5 % too high.

They are built anew for each question: what lasts is Prometheus' (docs/adr/0048).
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from math import ceil, fsum, inf, isfinite, log
from typing import NamedTuple

from gpusharing.planning.vocabulary.values import value

GROWTH = 1.05
HALF_LIFE = timedelta(hours=24)
_NEGLIGIBLE = 2.0**-60
"""Relative to the heaviest bucket: a lighter one changes no percentile and is dropped (after two months)."""


class Sample(NamedTuple):
    """A value at a time."""

    at: datetime
    """With a time zone."""
    value: float
    """In the unit of its scale."""


@value
class Scale:
    """What is measured."""

    name: str
    """What is measured, in one word."""
    first: float
    """The first bucket is from 0 to here; smaller values are reported as this."""
    last: float
    """Larger values are reported as this."""

    def bucket(self, value: float) -> int:
        """Return the number of the bucket for `value`: 0 up to `first`, else n for values above first x GROWTH^(n-1),
        up to first x GROWTH^n. Values above `last` count as `last`."""
        if value <= self.first:
            return 0
        index = ceil(log(min(value, self.last) / self.first) / log(GROWTH) - 1e-9)
        return max(1, index)

    def bound(self, bucket: int) -> float:
        """The upper bound of a bucket."""
        return min(self.first * GROWTH**bucket, self.last)


MEMORY = Scale("memory", 10e6, 1e12)
"""Bytes, from 10 MB to 1 TB as in VPA: 237 buckets."""
ACTIVITY = Scale("activity", 0.001, 1.0)
"""Of a whole card, from a thousandth: 143 buckets."""


@value
class Histogram:
    """The samples seen, with newer ones weighing more. Bounded: at most one weight for each bucket of the scale."""

    scale: Scale
    """What is measured."""
    weights: tuple[tuple[int, float], ...] = ()
    """By bucket, in ascending order; a sample at `last` weighs 1, one of a half-life before 0.5."""
    samples: int = 0
    """How many samples were seen."""
    first: datetime | None = None
    """When the oldest sample was taken; None: there is none."""
    last: datetime | None = None
    """When the newest sample was taken; None: there is none."""
    lowest: float = inf
    """Of all samples, however old; exact, as `highest`."""
    highest: float = 0.0
    """Of all samples; 0 without any."""

    def percentile(self, part: float) -> float:
        """The least value that at least `part` of the weight does not exceed, reported up to 5 % too high and never
        above the highest sample; 0 without samples. ValueError: `part` is not within 0 to 1."""
        if not 0 <= part <= 1:
            raise ValueError(f"a percentile is a number from 0 to 1, for example 0.99, not {part}")
        wanted = part * fsum(weight for _, weight in self.weights)
        reached = 0.0
        for bucket, weight in self.weights:
            reached += weight
            if reached >= wanted * (1 - 1e-12):
                return min(self.scale.bound(bucket), self.highest)
        return self.highest


def build(scale: Scale, samples: Iterable[Sample | tuple[datetime, float]]) -> Histogram:
    """A histogram of samples in any order. ValueError: a sample is negative or not a number."""
    found = [Sample(*one) for one in samples]
    if not found:
        return Histogram(scale)
    wrong = next((one for one in found if not isfinite(one.value) or one.value < 0), None)
    if wrong is not None:
        raise ValueError(f"{scale.name}: {wrong.value} at {wrong.at:%Y-%m-%d %H:%M} is not a measured value")
    last = max(one.at for one in found)
    weights: dict[int, list[float]] = {}
    for one in found:
        weights.setdefault(scale.bucket(one.value), []).append(float(0.5 ** ((last - one.at) / HALF_LIFE)))
    return Histogram(
        scale,
        _kept({bucket: fsum(parts) for bucket, parts in weights.items()}),
        len(found),
        min(one.at for one in found),
        last,
        min(one.value for one in found),
        max(one.value for one in found),
    )


def _kept(weights: Mapping[int, float]) -> tuple[tuple[int, float], ...]:
    least = max(weights.values()) * _NEGLIGIBLE
    return tuple(sorted((bucket, weight) for bucket, weight in weights.items() if weight >= least))
