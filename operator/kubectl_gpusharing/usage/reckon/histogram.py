"""Reduce days of samples to a few hundred numbers: a histogram whose buckets grow by 5 % and whose weights halve every day.

The scheme is that of the Vertical Pod Autoscaler 1.7.1 (kubernetes/autoscaler, pkg/recommender/model/aggregations_config.go and util/decaying_histogram.go: growth 0.05, half-life 24 h). In VPA the width of a bucket grows by 5 %, here its upper bound does, so that no value is reported more than 5 % too high. Histograms are built anew for each recommendation, because Prometheus stores the samples (docs/adr/0048).
"""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from math import ceil, fsum, inf, isfinite, log
from typing import NamedTuple

from gpusharing.planning.vocabulary.values import value

GROWTH = 1.05
HALF_LIFE = timedelta(hours=24)
_NEGLIGIBLE = 2.0**-60
"""A bucket whose weight is below this fraction of the heaviest one's is dropped, because it changes no percentile."""


class Sample(NamedTuple):
    at: datetime
    value: float


@value
class Scale:
    """The buckets for one kind of measurement."""

    name: str
    first: float
    """Upper bound of the first bucket; smaller values are reported as this one."""
    last: float
    """The highest bound; larger values are reported as this one."""

    def bucket(self, value: float) -> int:
        """Return the index of the bucket for `value`: 0 up to `first`, and n up to first x GROWTH^n."""
        if value <= self.first:
            return 0
        return max(1, ceil(log(min(value, self.last) / self.first) / log(GROWTH) - 1e-9))

    def bound(self, bucket: int) -> float:
        return min(self.first * GROWTH**bucket, self.last)


MEMORY = Scale("memory", 10e6, 1e12)
"""The scale of memory use, in bytes: from 10 MB to 1 TB as in VPA, with 237 buckets."""
ACTIVITY = Scale("activity", 0.001, 1.0)
"""The scale of activity, as a part of a whole card: from a thousandth to 1, with 143 buckets."""


@value
class Histogram:
    """The distribution of samples, in which newer samples weigh more."""

    scale: Scale
    weights: tuple[tuple[int, float], ...] = ()
    """The index and weight of each bucket, ascending. The newest sample weighs 1, and one a half-life earlier 0.5."""
    samples: int = 0
    lowest: float = inf
    """However old; infinite without samples."""
    highest: float = 0.0
    """However old; 0 without samples."""

    def percentile(self, part: float) -> float:
        """Return the smallest bucket bound up to which the samples have the fraction `part` of the weight, at most the highest sample; 0 without samples. Raises ValueError if `part` is not between 0 and 1."""
        if not 0 <= part <= 1:
            raise ValueError(f"a percentile is a number from 0 to 1, for example 0.99, not {part}")
        wanted = part * fsum(weight for _, weight in self.weights)
        reached = 0.0
        for bucket, weight in self.weights:
            reached += weight
            if reached >= wanted * (1 - 1e-12):
                return min(self.scale.bound(bucket), self.highest)
        return self.highest


def build(scale: Scale, samples: Sequence[Sample]) -> Histogram:
    """Return the histogram of samples, which may be in any order. Raises ValueError if a value is negative, infinite or NaN."""
    if not samples:
        return Histogram(scale)
    wrong = next((sample for sample in samples if not isfinite(sample.value) or sample.value < 0), None)
    if wrong is not None:
        time = f"{wrong.at:%Y-%m-%d %H:%M}"
        raise ValueError(f"{scale.name}: {wrong.value} at {time} is not a finite number of at least 0")
    last, values = max(sample.at for sample in samples), [sample.value for sample in samples]
    weights = defaultdict[int, list[float]](list)
    for sample in samples:
        weights[scale.bucket(sample.value)].append(float(0.5 ** ((last - sample.at) / HALF_LIFE)))
    sums = {bucket: fsum(parts) for bucket, parts in weights.items()}
    least = max(sums.values()) * _NEGLIGIBLE
    kept = tuple(sorted((bucket, weight) for bucket, weight in sums.items() if weight >= least))
    return Histogram(scale, kept, len(values), min(values), max(values))
