"""What a Prometheus makes of one node's meter."""

from dataclasses import dataclass, field

from gpusharing.agent.meter import Meter
from gpusharing.agent.metrics import of_meter

PARTS = ("slice", "idle_slice", "stranded_slice", "transition_slice")
GPUS = "gpu"


@dataclass
class CountingPrometheus:
    """Scrapes counters, as increase() sees them: a first value is no increase, one that fell began anew."""

    seen: dict[tuple[str, tuple[tuple[str, str], ...]], float] = field(default_factory=dict)
    increase: dict[tuple[str, tuple[tuple[str, str], ...]], float] = field(default_factory=dict)
    """By metric and labels."""
    present: int = 0

    def scrape(self, meter: Meter) -> None:
        self.present = 0
        for family in of_meter(meter.metered):
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                before = self.seen.get(key)
                grown = 0.0 if before is None else sample.value - (before if sample.value >= before else 0.0)
                self.increase[key] = self.increase.get(key, 0.0) + grown
                self.seen[key] = sample.value
                self.present += 1

    def policies(self) -> set[str]:
        return {dict(labels)["policy"] for _, labels in self.increase}

    def grown(self, *parts: str, policy: str | None = None) -> float:
        """GPU-seconds of these parts together; None: of all policies."""
        names = {f"gpusharing_{part}_seconds_total" for part in parts}
        return sum(
            seconds
            for (name, labels), seconds in self.increase.items()
            if name in names and policy in (None, dict(labels)["policy"])
        )
