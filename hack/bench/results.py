"""The aims, the table and `build/bench.json`."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Aim:
    """What a metric should reach."""

    limit: float
    at_least: bool = False
    """The value should be `limit` or more; else `limit` or less."""

    def met(self, value: float) -> bool:
        """Whether the value reaches the aim."""
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"


AIMS: Mapping[str, Aim] = {
    "node_writes_per_transition": Aim(3),
    "api_writes_per_transition_0pods": Aim(11),
    "api_writes_per_transition_4pods": Aim(19),
    "api_reads_per_transition": Aim(2),
    "idle_writes_60s": Aim(0),
    "edit_to_first_write_p50_s": Aim(0.25),
    "edit_to_first_write_p99_s": Aim(0.5),
    "rss_idle_mib": Aim(65),
    "rss_1000_nodes_mib": Aim(75),
    "rss_5000_nodes_mib": Aim(100),
    "start_5000_nodes_s": Aim(30),
    "cpu_ms_per_transition": Aim(32),
    "plan_5000_nodes_full_ms": Aim(250),
    "plan_5000_nodes_incremental_ms": Aim(20),
    "plan_5000_nodes_windows_full_ms": Aim(250),
    "plan_5000_nodes_windows_incremental_ms": Aim(20),
    "layout_verdict_ms": Aim(1),
    "cli_help_ms": Aim(150),
    "cli_status_1000_nodes_ms": Aim(700),
    "roll_efficiency": Aim(0.8, at_least=True),
    "roll_efficiency_60s": Aim(0.95, at_least=True),
    "roll_60s_vs_plain_loop": Aim(1),
    "relabel_1000_nodes_vs_raw_patch": Aim(1.5),
    "agent_rss_mib": Aim(45),
    "agent_cpu_ms_per_cycle": Aim(1.75),
}
"""By metric; a metric that is not here is reported without a verdict, to explain another one."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One number and how it came about."""

    name: str
    value: float
    how: str


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that at least `percent` of them do not exceed. ValueError when there are none."""
    if not values:
        raise ValueError("no values")
    rank = math.ceil(len(values) * percent / 100)
    return sorted(values)[max(rank, 1) - 1]


def table(results: Iterable[Measured]) -> str:
    """Metric, value, aim, verdict, how measured."""
    rows = [("METRIC", "VALUE", "AIM", "VERDICT", "HOW")]
    for result in results:
        aim = AIMS.get(result.name)
        verdict = "" if aim is None else "ok" if aim.met(result.value) else "MISSED"
        rows.append((result.name, f"{result.value:.4g}", str(aim or ""), verdict, result.how))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(
            (
                row[0].ljust(widths[0]),
                row[1].rjust(widths[1]),
                row[2].ljust(widths[2]),
                row[3].ljust(widths[3]),
            )
        )
        + f"  {row[4]}"
        for row in rows
    )


def write(path: Path, results: Iterable[Measured], machine: Mapping[str, str | int | float]) -> None:
    """One flat JSON object: metric to number, and the machine's facts under `machine.`."""
    flat: dict[str, str | int | float] = {result.name: round(result.value, 5) for result in results}
    flat |= {f"machine.{key}": value for key, value in machine.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(flat, indent=2) + "\n")
