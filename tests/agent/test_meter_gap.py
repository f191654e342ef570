"""What a restart of an agent costs, worked out from the settings as they ship, is what the pages tell."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import accumulate, pairwise

import pytest
import yaml
from hack.generate import ROOT

from gpusharing.agent.allotment import Allotment
from gpusharing.agent.loop import LoopSettings
from gpusharing.agent.meter import LAG, Meter
from gpusharing.api.times import parse_duration
from kubectl_gpusharing.usage.windows import UNITS

VALUES = yaml.safe_load((ROOT / "deploy/helm/gpu-sharing-operator/values.yaml").read_text())
EVERY = VALUES["monitoring"]["podMonitor"]["interval"]
SCRAPE = float(int(EVERY[:-1]) * {"s": 1, **UNITS}[EVERY[-1]])
TURN = parse_duration(VALUES["agent"]["interval"]).total_seconds() * (1 + LoopSettings().jitter)
"""Seconds between two turns, at most."""
RESOURCE = "nvidia.com/gpu"
IDLE = Allotment("pool-b", {}, {RESOURCE: Fraction(1)}, Fraction(0), Fraction(0))
HELD = Allotment("pool-b", {("team-a", RESOURCE): Fraction(1)}, {}, Fraction(0), Fraction(0))


def losses(every: float, comes: int) -> Iterator[tuple[float, float]]:
    """GPU-seconds that Prometheus has not when an agent ends just before its next scrape: of the GPU, and of a tenant that has it from the turn `comes` on. Scrapes and turns fall on each other in all ways."""
    for phase in range(round(SCRAPE)):
        meter, since = Meter(LAG), sum([every] * comes)
        times = accumulate([0.0, *[every] * (comes + 3), *[TURN] * 60])
        turns = [(at, HELD if at >= since else IDLE) for at in times]
        scrapes = [phase + 0.5 + number * SCRAPE for number in range(50)]
        for scraped, ended in pairwise(scrapes):
            while turns and turns[0][0] <= scraped:
                meter.turn(*turns.pop(0))
            if meter.metered["gpus"] and scraped > LAG + TURN:
                tenant = meter.metered["allocated"].get(("pool-b", "team-a", RESOURCE), 0.0)
                yield ended - meter.metered["gpus"]["pool-b",], max(0.0, ended - since) - tenant


def worst(comes: int) -> tuple[float, float]:
    found = [loss for tenths in (270, 285, 299, 300, 315, 330) for loss in losses(tenths / 10, comes)]
    return max(whole for whole, _ in found), max(tenant for _, tenant in found)


def test_the_agent_turns_as_often_as_the_chart_says() -> None:
    assert parse_duration(VALUES["agent"]["interval"]).total_seconds() == LoopSettings().interval


@pytest.mark.parametrize(
    ("comes", "most"),
    [(0, TURN + SCRAPE), (12, LAG + TURN + SCRAPE)],
    ids=["all the same for long", "a tenant that has just come"],
)
def test_a_restart_loses_as_much_as_the_pages_tell_and_no_more(comes: int, most: float) -> None:
    whole, tenant = worst(comes)
    assert most - 2 < tenant < most, "the bound is one, and is reached"
    assert whole < most
    for page in ("docs/how-to/cost.md", "docs/adr/0043-the-meter.md"):
        assert f"at most {most:.0f} s" in " ".join((ROOT / page).read_text().split()), page
