"""What panels show, played by promtool: those of waste and cost on what SIMULATED agents metered, and every panel the chosen cluster and no other."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from tests.chart.charts import CHART
from tests.chart.test_monitoring import FOR_NOW, filled_in, promtool, queries
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


LABELS = 'cluster="west", node="n", uuid="u", namespace="a", pod="p", policy="x", resource="r", profile="1g"'
SPLIT = {
    "gpusharing_policy_nodes": ("phase", ["Blocked", "Failed", "Cordoned"]),
    "gpusharing_phase_seconds_bucket": ("le", ["1", "+Inf"]),
    "gpusharing_pass_seconds_bucket": ("le", ["1", "+Inf"]),
}
"""Metrics of which panels ask for some values of a label."""
ZERO = {"gpusharing_agent_gpu_healthy", "gpusharing:pod_processes"}
"""Metrics of which panels ask where they are 0."""


def stored() -> list[dict[str, str]]:
    """A series, or some, of each metric that panels ask for, in one cluster."""
    found = []
    for name in sorted({name for query in queries() for name in re.findall(r"\bgpusharing[_:][\w:]+", query)}):
        label, values = SPLIT.get(name, ("", []))
        grows = name.endswith(("_total", "_bucket"))
        for text in [f', {label}="{value}"' for value in values] or [""]:
            told = "0+1x400" if grows else f"{int(name not in ZERO)}x400"
            found.append({"series": f"{name}{{{LABELS}{text}}}", "values": told})
    return found


def test_every_panel_shows_the_chosen_cluster_and_no_other(tmp_path: Path) -> None:
    def shows(query: str, cluster: str) -> str:
        return f"count(({filled_in(query, {**FOR_NOW, '$cluster': cluster})}) != 0) > bool 0"

    tests = [
        {"expr": shows(query, cluster), "eval_time": "390m", "exp_samples": samples}
        for query in queries()
        for cluster, samples in (("west", [{"labels": "{}", "value": 1}]), ("east", []))
    ]
    case = {"interval": "1m", "input_series": stored(), "promql_expr_test": tests}
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"evaluation_interval": "1m", "tests": [case]}))
    assert "SUCCESS" in promtool("test", "rules", str(path))
