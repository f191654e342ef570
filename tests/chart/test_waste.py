"""What the panels of the dashboard of waste and cost show, played by promtool on what SIMULATED agents metered."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.chart.charts import CHART
from tests.chart.test_monitoring import filled_in
from tests.chart.test_recording import play_series

pytestmark = pytest.mark.tools

HOUR = {"$__rate_interval": "5m", "$__range": "1h", "$price": "2"}
Rows = Mapping[str, float]


def metered(part: str, growth: int, **labels: str) -> dict[str, str]:
    """A counter of the meter, and by how many seconds it grows in a minute."""
    told = ", ".join(f'{key}="{value}"' for key, value in labels.items())
    return {f"gpusharing_{part}seconds_total{{{told}}}": f"0+{growth}x70"}


UNSEEN = {"policy": "unseen", "node": "n1"}
"""A node with one MIG GPU of which the agent may not see the instances (docs/adr/0043): nothing is idle or held."""
SHARED = {"policy": "shared", "node": "n2"}
"""One with two, of which a team holds one; half of the other was free, until the node was changed."""
GPU = {"resource": "nvidia.com/gpu"}
OF_UNSEEN = {
    'gpusharing_agent_gpu_info{node="n1"}': "1x70",
    **metered("gpu_", 60, **UNSEEN),
    **metered("stranded_slice_", 60, **UNSEEN),
    **metered("transition_slice_", 0, **UNSEEN),
}
OF_SHARED = {
    'gpusharing_agent_gpu_info{node="n2", gpu="0"}': "1x70",
    'gpusharing_agent_gpu_info{node="n2", gpu="1"}': "1x70",
    **metered("gpu_", 120, **SHARED),
    **metered("slice_", 60, **SHARED, **GPU, namespace="team-a"),
    **metered("idle_slice_", 30, **SHARED, **GPU),
    **metered("stranded_slice_", 6, **SHARED),
    **metered("transition_slice_", 24, **SHARED),
}
BOTH: dict[str, Rows] = {
    "GPU-hours": {"": 3},
    "Held": {"": 1 / 3},
    "Idle": {"": 0.5 / 3},
    "Stranded": {"": 66 / 180},
    "In transition": {"": 0.4 / 3},
    "Metered": {"": 1},
    "How GPUs are used": {
        'part="held"': 1, 'part="idle"': 0.5, 'part="stranded"': 1.1, 'part="transition"': 0.4
    },
    "What each use costs": {
        'part="held"': 2, 'part="idle"': 1, 'part="stranded"': 2.2, 'part="transition"': 0.8
    },
    "Idle GPUs by policy": {'policy="shared", resource="nvidia.com/gpu"': 0.5},
    "Stranded GPUs by policy": {'policy="unseen"': 1, 'policy="shared"': 0.1},
    "Cost by namespace": {'namespace="team-a"': 2},
    "Cost of unused GPUs, by policy": {'policy="unseen"': 2, 'policy="shared"': 2},
}  # fmt: skip
ALONE: dict[str, Rows] = {
    "GPU-hours": {"": 1},
    "Held": {"": 0},
    "Idle": {"": 0},
    "Stranded": {"": 1},
    "In transition": {"": 0},
    "Metered": {"": 1},
    "How GPUs are used": {'part="stranded"': 1, 'part="transition"': 0},
    "What each use costs": {'part="stranded"': 2, 'part="transition"': 0},
    "Idle GPUs by policy": {},
    "Stranded GPUs by policy": {'policy="unseen"': 1},
    "Cost by namespace": {},
    "Cost of unused GPUs, by policy": {'policy="unseen"': 2},
}


def asked() -> dict[str, str]:
    model = json.loads((CHART / "files" / "dashboards" / "waste.json").read_text())
    return {panel["title"]: filled_in(panel["targets"][0]["expr"], HOUR) for panel in model["panels"]}


@pytest.mark.parametrize(
    ("series", "shown"),
    [(OF_UNSEEN | OF_SHARED, BOTH), (OF_UNSEEN, ALONE)],
    ids=["a policy without idle slices beside one with some", "nothing is idle or held anywhere"],
)
def test_every_panel_shows_all_that_was_metered(
    tmp_path: Path, series: Mapping[str, str], shown: Mapping[str, Rows]
) -> None:
    queries = asked()
    assert queries.keys() == shown.keys(), "every panel is tried"
    expected = {
        queries[title]: {f"{{{labels}}}": value for labels, value in rows.items()} for title, rows in shown.items()
    }
    play_series(tmp_path, series, expected, "65m")
