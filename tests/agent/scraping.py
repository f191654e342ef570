"""What a Prometheus makes of one node's meter."""

from dataclasses import dataclass, field
from typing import Any

from gpusharing.agent.meter import Meter
from gpusharing.agent.metrics import of_meter

PARTS = ("slice", "idle_slice", "stranded_slice", "transition_slice")
GPUS = "gpu"


@dataclass
class CountingPrometheus:
    """Scrapes counters, as increase() sees them: a first value is no increase, one that fell began anew."""

    seen: dict[tuple[str, Any], float] = field(default_factory=dict)
    increase: dict[tuple[str, str], float] = field(default_factory=dict)
    """By metric and policy."""
    present: int = 0

    def scrape(self, meter: Meter) -> None:
        self.present = 0
        for family in of_meter(meter.metered):
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                before = self.seen.get(key)
                grown = 0.0 if before is None else sample.value - (before if sample.value >= before else 0.0)
                whose = sample.name, sample.labels["policy"]
                self.increase[whose] = self.increase.get(whose, 0.0) + grown
                self.seen[key] = sample.value
                self.present += 1

    def policies(self) -> set[str]:
        return {policy for _, policy in self.increase}

    def grown(self, *parts: str, policy: str | None = None) -> float:
        """GPU-seconds of these parts together; None: of all policies."""
        names = {f"gpusharing_{part}_seconds_total" for part in parts}
        return sum(
            seconds for (name, whose), seconds in self.increase.items() if name in names and policy in (None, whose)
        )
