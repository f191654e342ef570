"""What the queries of docs/how-to/usage.md answer, played by promtool on what a SIMULATED agent tells of a node."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.chart.test_monitoring import filled_in
from tests.chart.test_recording import PAGE, play_series

pytestmark = pytest.mark.tools

HOUR = {"[30d]": "[1h]", "[1d]": "[1h]", "86400": "3600"}
ON = 'node="n", gpu="0", uuid="GPU-0"'
SHARED = 'resource="nvidia.com/gpu.shared"'
BUSY, LAZY = f'{ON}, namespace="a", pod="busy"', f'{ON}, namespace="b", pod="lazy"'
TOLD = {
    f"gpusharing_device_slices{{{ON}, {SHARED}}}": "4x70",
    f"gpusharing_device_slices_allocated{{{ON}, {SHARED}}}": "3x70",
    f"gpusharing_device_memory_bytes{{{ON}}}": "80x70",
    f"gpusharing_device_memory_used_bytes{{{ON}}}": "60x70",
    f"gpusharing_device_unattributed_processes{{{ON}}}": "0x70",
    'gpusharing_device_unattributed_processes{node="n", gpu="1", uuid="GPU-1"}': "2x70",
    f"gpusharing_device_sm_ratio{{{ON}}}": "0.9x70",
    f"gpusharing_pod_slices{{{BUSY}, {SHARED}}}": "2x70",
    f"gpusharing_pod_slices{{{LAZY}, {SHARED}}}": "1x70",
    f"gpusharing_pod_memory_used_bytes{{{BUSY}}}": "40x70",
    f"gpusharing_pod_memory_used_bytes{{{LAZY}}}": "0x70",
    f"gpusharing_pod_processes{{{BUSY}}}": "3x70",
    f"gpusharing_pod_processes{{{LAZY}}}": "0x70",
    f"gpusharing_pod_sm_ratio{{{BUSY}}}": "0.9x70",
    'gpusharing_xid_errors_total{node="n", gpu="0", xid="31"}': "0x30 1x40",
    'gpusharing_agent_gpu_info{node="n", gpu="0"}': "1x70",
    'gpusharing_gpu_seconds_total{node="n", policy="p"}': "0+60x70",
    f'gpusharing_slice_seconds_total{{node="n", policy="p", namespace="a", {SHARED}}}': "0+30x70",
    f'gpusharing_idle_slice_seconds_total{{node="n", policy="p", {SHARED}}}': "0+15x70",
    'gpusharing_stranded_slice_seconds_total{node="n", policy="p"}': "0+9x70",
    'gpusharing_transition_slice_seconds_total{node="n", policy="p"}': "0+6x70",
}
"""A GPU of four replicas: a pod that computes holds two, one that does nothing one."""


def of(labels: str, metric: str = "") -> str:
    """A sample as promtool writes it, with the name that some queries keep."""
    return f"{metric}{{{labels}}}"


ANSWERS: dict[str, Mapping[str, float]] = {
    "memory by pod, also on a shared GPU": {
        of('namespace="a", pod="busy"'): 40, of('namespace="b", pod="lazy"'): 0
    },
    "slices that nobody holds": {of(f'node="n", {SHARED}'): 1},
    "how full each GPU or MIG device is": {of(ON): 0.75},
    "which pods compute on a GPU without MIG": {of(BUSY, "gpusharing_pod_sm_ratio"): 0.9},
    "processes that belong to no known pod": {
        of('node="n", gpu="1", uuid="GPU-1"', "gpusharing_device_unattributed_processes"): 2
    },
    "faults of the card that the driver reported": {of('node="n", gpu="0", xid="31"'): 1},
    "how busy each slice is, MIG included": {
        of(f'{ON}, source="agent"', "gpusharing:slice_utilization:ratio"): 0.9
    },
    "memory in use on each slice": {
        of(f'{ON}, source="agent"', "gpusharing:slice_memory_used_bytes"): 60
    },
    "memory by pod, slice by slice": {
        of(BUSY, "gpusharing:pod_memory_used_bytes"): 40, of(LAZY, "gpusharing:pod_memory_used_bytes"): 0
    },
    "how busy the slices of a team are": {
        of(f'node="n", uuid="GPU-0", namespace="{team}"'): 0.9 for team in "ab"
    },
    "slices that are held and do nothing": {of(f"{LAZY}, {SHARED}", "gpusharing:pod_slices"): 1},
    "the share of slices that is idle, by node and profile": {of(f'node="n", {SHARED}'): 0.25},
    "GPU-hours of each namespace in a month": {of('namespace="a"'): 0.5},
    "GPU-hours of slices that nobody held": {of('policy="p"'): 0.25},
    "GPU-hours that the layout strands": {of('policy="p"'): 0.15},
    "GPU-hours that changes took": {of('policy="p"'): 0.1},
    "what these four add up to": {of('policy="p"'): 1},
    "which part of the time was metered at all": {of(""): 1},
}  # fmt: skip
"""By what one wants to know."""


def asked() -> dict[str, str]:
    """The queries of the page, of an hour each."""
    rows = re.findall(r"^\| ([^|]*) \| `([^`]+)` \|$", PAGE.read_text(), re.MULTILINE)
    return {wish: filled_in(query, HOUR) for wish, query in rows}


def test_every_query_of_the_page_answers_what_it_is_for(tmp_path: Path) -> None:
    queries = asked()
    assert queries.keys() == ANSWERS.keys(), "every query is tried"
    play_series(tmp_path, TOLD, {queries[wish]: rows for wish, rows in ANSWERS.items()}, "65m")
