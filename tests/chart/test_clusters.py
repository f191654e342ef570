"""Every panel shows the chosen cluster and no other, played by promtool on series of one cluster."""

import re
from pathlib import Path

import pytest
import yaml
from tests.chart.test_monitoring import FOR_NOW, filled_in, promtool, queries

pytestmark = pytest.mark.tools

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
