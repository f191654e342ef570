"""The planner alone, in this process: 5000 nodes, 50 policies. CPU time, so that neighbours do not count."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import product

from gpusharing.api.names import Phase
from gpusharing.controller.main import settle_heap
from gpusharing.planning.gpus.geometry import find_fit, normalise
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.memo import Memo
from gpusharing.planning.snapshot.views import ClusterSnapshot
from hack.bench.fleet import GPUS, NOW, POLICIES, card, fleet
from hack.bench.results import Measured

REPEATS, CHANGES = 5, 20
_TIER = {"podSelector": {"matchLabels": {"tier": "training"}}}
RULED: Mapping[str, object] = {
    "drain": {
        "rules": [
            {**_TIER, "namespaceSelector": {"matchLabels": {"team": "a"}}, "behavior": "Block"},
            {**_TIER, "behavior": "WaitCompleted", "timeout": "8h"},
            {"podSelector": {"matchLabels": {"tier": "serving"}}, "behavior": "Evict", "order": 5},
        ]
    },
    "rollout": {
        "windows": [
            {"schedule": "0 8 * * *", "duration": "10h", "timeZone": "Europe/Berlin"},
            {"schedule": "0 22 * * 6", "duration": "8h"},
        ],
        "blackouts": [{"schedule": "0 0 24 12 *", "duration": "72h", "timeZone": "America/New_York"}],
    },
}
"""What holds nodes and pods, in every policy; the windows are open at NOW."""


def planning(count: int) -> Iterator[Measured]:
    """A pass that knows nothing yet, and passes after one node changed: in a settled fleet and in one that rolls."""
    shared = {"mode": "TimeSlicing", "timeSlicing": {"replicas": 4}}
    settled, rolling = fleet(count, mode="Full"), fleet(count, **shared)
    held_settled, held = fleet(count, mode="Full", **RULED), fleet(count, **shared, **RULED)
    settle_heap()  # as the operator does when it has read the cluster
    size = f"{count} nodes x {GPUS} GPUs, {POLICIES} policies"
    how = f"plan_rollout, {size}, empty memo, every node has to change; median of {REPEATS}, CPU time"
    full = [_cpu_ms(lambda: plan_rollout(rolling, NOW, Memo())) for _ in range(REPEATS)]
    yield Measured("plan_5000_nodes_full_ms", statistics.median(full), how)
    how = f"{size}, settled, one node changed since the last pass; median of {CHANGES}, CPU time"
    yield Measured("plan_5000_nodes_incremental_ms", _incremental(settled), how)
    how = "the same while every node waits for its turn"
    yield Measured("plan_5000_nodes_incremental_rolling_ms", _incremental(rolling), how)
    how = f"{size} with windows, a blackout and rules each, empty memo, every node has to change; CPU time"
    full = [_cpu_ms(lambda: plan_rollout(held, NOW, Memo())) for _ in range(REPEATS)]
    yield Measured("plan_5000_nodes_windows_full_ms", statistics.median(full), how)
    how = "the same policies, settled, one node changed since the last pass"
    yield Measured("plan_5000_nodes_windows_incremental_ms", _incremental(held_settled), how)
    how = "the same policies while every node waits for its turn"
    yield Measured("plan_5000_nodes_windows_incremental_rolling_ms", _incremental(held), how)
    yield fits()


def fits() -> Measured:
    """Can a GPU hold this layout? Asked of every combination of an H100's profiles, as few as fit alone at most."""
    profiles = card().profiles
    counts = product(*(range(profile.max_count + 1) for profile in profiles))
    layouts = [
        normalise({profile.name: number for profile, number in zip(profiles, numbers, strict=True)})
        for numbers in counts
    ]

    def ask() -> None:
        for layout in layouts:
            find_fit(layout, profiles)

    how = f"mean of {len(layouts)} layouts of an H100, possible or not, CPU time"
    return Measured("layout_fit_ms", _cpu_ms(ask) / len(layouts), how)


def _incremental(snapshot: ClusterSnapshot) -> float:
    memo = Memo()
    plan = plan_rollout(snapshot, NOW, memo)
    assert {verdict.phase for verdict in plan.verdicts.values()} <= {
        Phase.SYNCED,
        Phase.PENDING,
        Phase.PREFLIGHT,
    }
    order = sorted(snapshot.nodes)
    times = []
    for index in range(CHANGES):
        snapshot = _changed(snapshot, order[index * 37 % len(order)])
        times.append(_cpu_ms(partial(plan_rollout, snapshot, NOW + timedelta(seconds=index + 1), memo)))
    return statistics.median(times)


def _changed(snapshot: ClusterSnapshot, name: str) -> ClusterSnapshot:
    before = snapshot.nodes[name]
    after = replace(before, labels={**before.labels, "team": "other"})
    return replace(snapshot, nodes={**snapshot.nodes, name: after})


def _cpu_ms(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return (time.process_time() - begin) * 1000
