"""What agents tell Prometheus of nodes whose GPUs are SIMULATED. Pure; in words: `simulated.py`."""

from collections.abc import Iterable

from gpusharing.cli.matchers import OF_TARGETS, braced, of_others
from gpusharing.cli.prometheus import Series

METRIC = "gpusharing_agent_simulated"
"""1 where the agent reads a SIMULATED driver library (gpusharing/agent/metrics.py)."""
_OF_OTHER_SERIES = OF_TARGETS | {"policy", "resource", "exported_namespace"}


def simulated_query(selector: str, seconds: int) -> str:
    """Nodes that said so at some time. Who chooses tenants, pools or devices by `selector` is told all the same."""
    return f"max by (node) (max_over_time({METRIC}{braced(of_others(selector, _OF_OTHER_SERIES))}[{seconds}s])) > 0"


def nodes_of(found: Iterable[Series]) -> frozenset[str]:
    """In an answer to that; the empty text: nobody tells which node it is."""
    return frozenset(one.labels.get("node", "") for one in found)
