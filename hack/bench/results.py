"""The aims of `make bench`, its table and `build/bench.json`."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

REFERENCE_PACE_MS = 70.0
"""The pace of two cores that nothing else uses, at which the aims apply (docs/adr/0051-aims-at-a-pace.md)."""


@dataclass(frozen=True, slots=True)
class Aim:
    limit: float
    at_least: bool = False
    """Whether the value should be `limit` or more, instead of `limit` or less."""
    cpu: bool = False
    """Whether the value is CPU milliseconds, so that it is converted to REFERENCE_PACE_MS before it is compared."""

    def met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"


AIMS: Mapping[str, Aim] = {
    "node_writes_per_transition": Aim(3),
    "api_writes_per_transition_0pods": Aim(13),
    "api_writes_per_transition_4pods": Aim(23),
    "api_reads_per_transition": Aim(2),
    "idle_writes_60s": Aim(0),
    "edit_to_first_write_p50_s": Aim(0.25),
    "edit_to_first_write_p99_s": Aim(0.5),
    "rss_idle_mib": Aim(65),
    "rss_1000_nodes_mib": Aim(75),
    "rss_5000_nodes_mib": Aim(100),
    "start_5000_nodes_s": Aim(30),
    "lease_late_flooded_s": Aim(2),
    "peak_large_pods_mib": Aim(128),
    "peak_large_budgets_mib": Aim(128),
    "cpu_ms_per_transition": Aim(32, cpu=True),
    "plan_5000_nodes_full_ms": Aim(250, cpu=True),
    "plan_5000_nodes_incremental_ms": Aim(20, cpu=True),
    "plan_5000_nodes_incremental_rolling_ms": Aim(25, cpu=True),
    "plan_5000_nodes_windows_full_ms": Aim(250, cpu=True),
    "plan_5000_nodes_windows_incremental_ms": Aim(20, cpu=True),
    "layout_fit_ms": Aim(1, cpu=True),
    "cli_help_ms": Aim(150, cpu=True),
    "cli_status_1000_nodes_ms": Aim(700, cpu=True),
    "cli_free_1000_nodes_ms": Aim(700, cpu=True),
    "cost_30_days_1000_nodes_ms": Aim(10_000, cpu=True),
    "cost_30_days_1000_nodes_mib": Aim(100),
    "roll_efficiency": Aim(0.8, at_least=True),
    "roll_efficiency_60s": Aim(0.95, at_least=True),
    "roll_60s_vs_plain_loop": Aim(1.15),
    "relabel_1000_nodes_vs_raw_patch": Aim(1.5),
    "agent_rss_mib": Aim(45),
    "agent_cpu_ms_per_cycle": Aim(1.75, cpu=True),
}
"""The aim of each metric. A metric without an aim is only reported, to explain another one."""


@dataclass(frozen=True, slots=True)
class Measured:
    name: str
    value: float
    how: str
    pace_ms: float | None = None
    """The machine's pace while it was measured (machine.pace_ms), or None if that was not measured."""

    @property
    def compared(self) -> float:
        """The value to compare with the aim: CPU time as it would have been at REFERENCE_PACE_MS."""
        aim = AIMS.get(self.name)
        if aim is None or not aim.cpu or self.pace_ms is None:
            return self.value
        return self.value * REFERENCE_PACE_MS / self.pace_ms


@dataclass(frozen=True, slots=True)
class Lost:
    metrics: tuple[str, ...]
    """All metrics of the part that failed, including those that it yielded before it failed."""
    why: str


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest of the values such that at least `percent` percent of all values are not larger."""
    if not values:
        raise ValueError("no values")
    rank = math.ceil(len(values) * percent / 100)
    return sorted(values)[max(rank, 1) - 1]


def failures(results: Iterable[Measured], lost: Iterable[Lost]) -> dict[str, str]:
    """Return why each metric of a failed part has no result, by metric."""
    there = {result.name for result in results}
    return {name: part.why for part in lost for name in part.metrics if name not in there}


def table(results: Sequence[Measured], lost: Sequence[Lost] = ()) -> str:
    """Return the results as a plain-text table; failed metrics come last, and each of them must have an aim."""
    rows = [("METRIC", "VALUE", "AT PACE", "AIM", "RESULT", "HOW")]
    for result in results:
        aim = AIMS.get(result.name)
        reached = "" if aim is None else "ok" if aim.met(result.compared) else "MISSED"
        paced = f"{result.compared:.4g}" if aim is not None and aim.cpu and result.pace_ms is not None else ""
        rows.append((result.name, f"{result.value:.4g}", paced, str(aim or ""), reached, result.how))
    for name, why in failures(results, lost).items():
        rows.append((name, "-", "", str(AIMS[name]), "FAILED", why))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    shown = []
    for name, value, at_pace, aim_text, reached, how in rows:
        numbers = (name.ljust(widths[0]), value.rjust(widths[1]), at_pace.rjust(widths[2]))
        shown.append("  ".join((*numbers, aim_text.ljust(widths[3]), reached.ljust(widths[4]), how)))
    return "\n".join(shown)


def write(
    path: Path, results: Sequence[Measured], machine: Mapping[str, str | int | float], lost: Sequence[Lost] = ()
) -> None:
    flat: dict[str, str | int | float] = {result.name: round(result.value, 5) for result in results}
    flat |= {f"{result.name}.pace_ms": round(result.pace_ms) for result in results if result.pace_ms is not None}
    flat |= {f"{name}.failed": why for name, why in failures(results, lost).items()}
    flat |= {f"machine.{key}": value for key, value in machine.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(flat, indent=2) + "\n")
