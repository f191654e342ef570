"""Measure what the operator and the agent cost, print a table and write build/bench.json. `--only NAME,...` picks
metrics, `--quick` uses small sizes."""

import argparse
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from hack.bench import agent, bill, edits, flood, large, plain, planner, results, small, start, tenants, terminal
from hack.bench.machine import facts, pace_ms, stolen_s
from hack.bench.results import AIMS, Lost, Measured
from hack.bench.testbed import FACTOR, LOOP_FACTOR, ROLL_FACTOR, Testbed, open_testbed

OUTPUT = Path("build/bench.json")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How long the bench measures, and over how many edits and nodes."""

    idle_seconds: float = 60
    edits: int = 50
    roll_nodes: int = 200
    fleet_nodes: int = 1000
    planned_nodes: int = 5000
    """Nodes for the planner's measurements, and for the start of an operator."""
    flood_seconds: float = 300


QUICK = Sizes(idle_seconds=10, edits=10, roll_nodes=40, fleet_nodes=200, planned_nodes=1000, flood_seconds=30)


@dataclass(frozen=True, slots=True)
class BenchPart:
    """Measurements that are taken together, in one run on a testbed."""

    metrics: tuple[str, ...]
    """The metrics with an aim that `run` yields; it may yield others as well."""
    run: Callable[[Testbed, Sizes], Iterator[Measured]]
    factor: float = FACTOR
    """How many times as fast as in reality the SIMULATED hardware and the operator's waits run."""
    node_software: bool = True
    """Whether `run` needs the SIMULATED node software."""
    arguments: tuple[str, ...] = ()
    """Further command-line arguments of the node software."""

    @property
    def kind(self) -> tuple[float, bool, tuple[str, ...]]:
        """The (factor, node software, arguments) of the testbed that this part needs."""
        return self.factor, self.node_software, self.arguments


Opened = AbstractContextManager[Testbed]
PLANNED = (
    "plan_5000_nodes_full_ms",
    "plan_5000_nodes_incremental_ms",
    "plan_5000_nodes_incremental_rolling_ms",
    "plan_5000_nodes_windows_full_ms",
    "plan_5000_nodes_windows_incremental_ms",
    "layout_fit_ms",
)
BILLED = ("cost_30_days_1000_nodes_ms", "cost_30_days_1000_nodes_mib")
TYPED = ("cli_help_ms", "cli_status_1000_nodes_ms", "cli_free_1000_nodes_ms")
PARTS = (
    BenchPart(
        (
            "node_writes_per_transition",
            "api_writes_per_transition_0pods",
            "api_writes_per_transition_4pods",
            "api_reads_per_transition",
        ),
        lambda testbed, sizes: small.transitions(testbed),
    ),
    BenchPart(("idle_writes_60s", "rss_idle_mib"), lambda testbed, sizes: small.idle(testbed, sizes.idle_seconds)),
    BenchPart(("agent_rss_mib", "agent_cpu_ms_per_cycle"), lambda testbed, sizes: agent.agent(testbed)),
    BenchPart(
        ("edit_to_first_write_p50_s", "edit_to_first_write_p99_s"),
        lambda testbed, sizes: edits.reaction(testbed, sizes.edits),
    ),
    BenchPart(
        ("rss_1000_nodes_mib", "relabel_1000_nodes_vs_raw_patch"),
        lambda testbed, sizes: large.fleet(testbed, sizes.fleet_nodes),
    ),
    BenchPart(
        ("roll_efficiency", "cpu_ms_per_transition"),
        lambda testbed, sizes: large.roll(testbed, sizes.roll_nodes),
        factor=ROLL_FACTOR,
    ),
    BenchPart(
        ("roll_efficiency_60s", "roll_60s_vs_plain_loop"),
        lambda testbed, sizes: plain.compared(testbed),
        factor=LOOP_FACTOR,
        arguments=plain.SOFTWARE,
    ),
    BenchPart(
        ("peak_large_pods_mib", "peak_large_budgets_mib"),
        lambda testbed, sizes: tenants.large_objects(testbed),
    ),
    BenchPart(
        ("start_5000_nodes_s", "rss_5000_nodes_mib", "lease_late_flooded_s"),
        lambda testbed, sizes: chain(
            start.start(testbed, sizes.planned_nodes), flood.flooded(testbed, sizes.flood_seconds)
        ),
        node_software=False,
    ),
)


def measure(wanted: frozenset[str], sizes: Sizes, lost: list[Lost]) -> Iterator[Measured]:
    """Yield the results of the parts that measure a `wanted` metric. The parts that fail go to `lost`."""
    if wanted & set(PLANNED):
        yield from planner.planning(sizes.planned_nodes)
    if wanted & set(TYPED):
        yield from terminal.terminal(sizes.fleet_nodes)
    if wanted & set(BILLED):
        yield from bill.bill(sizes.fleet_nodes)
    chosen = [part for part in PARTS if wanted & set(part.metrics)]
    for kind in dict.fromkeys(part.kind for part in chosen):
        waiting = [part for part in chosen if part.kind == kind]
        while waiting:
            yield from on_one_testbed(waiting, sizes, lost)


def on_one_testbed(
    waiting: list[BenchPart], sizes: Sizes, lost: list[Lost], open_bed: Callable[..., Opened] = open_testbed
) -> Iterator[Measured]:
    """Yield the results of parts of one kind, each removed from `waiting` before it runs, until one fails."""
    factor, software, arguments = waiting[0].kind
    with open_bed(factor, node_software=software, arguments=arguments) as testbed:
        while waiting:
            part = waiting.pop(0)
            try:
                yield from part.run(testbed, sizes)
            except Exception as error:  # noqa: BLE001 - any error: the other parts can still be measured
                lost.append(Lost(part.metrics, f"{type(error).__name__}: {error}"))
                return


def paced(results: Iterable[Measured], pace: Callable[[], float]) -> Iterator[Measured]:
    """Yield each result with the mean of the machine's pace before and after it."""
    before = pace()
    for result in results:
        after = pace()
        yield replace(result, pace_ms=(before + after) / 2)
        before = after


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hack.bench", description=__doc__)
    parser.add_argument("--only", default=",".join(AIMS), help="metrics, separated by commas")
    parser.add_argument("--quick", action="store_true", help="small sizes: a first impression, not a result")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the JSON goes")
    return parser.parse_args()


def main() -> int:
    """Measure, print the table and write the JSON. A missed aim is a result and not an error."""
    options = arguments()
    wanted = frozenset(options.only.split(","))
    if unknown := sorted(wanted - set(AIMS)):
        print(f"hack.bench: there is no metric {unknown[0]}; choose from {', '.join(AIMS)}", file=sys.stderr)
        return 2
    machine, begun, stolen = facts(), time.monotonic(), stolen_s()
    measured, lost = list[Measured](), list[Lost]()
    for result in paced(measure(wanted, QUICK if options.quick else Sizes(), lost), pace_ms):
        print(f"{result.name} {result.value:.4g}", file=sys.stderr, flush=True)
        measured.append(result)
    order = list(AIMS)
    measured.sort(key=lambda result: order.index(result.name) if result.name in order else len(order))
    machine |= {
        "pace_ms": round(statistics.median([result.pace_ms or 0.0 for result in measured] or [pace_ms()])),
        "stolen_s": round(stolen_s() - stolen, 1),
        "quick": int(options.quick),
        "seconds": round(time.monotonic() - begun, 1),
    }
    print(results.table(measured, lost))
    print(f"\n{', '.join(f'{key} {value}' for key, value in machine.items())}")
    results.write(options.output, measured, machine, lost)
    return 1 if lost else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that control planes end with us
    sys.exit(main())
