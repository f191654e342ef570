"""What Prometheus has from agents about nodes whose GPUs are SIMULATED. Pure; the words are in `simulated.py`."""

from collections.abc import Iterable

from gpusharing.usage.prometheus.client import Series
from gpusharing.usage.prometheus.matchers import OF_TARGETS, braced, of_others

METRIC = "gpusharing_agent_simulated"
"""1 where the agent reads a SIMULATED driver library (gpusharing/agent/metrics.py)."""
_OF_OTHER_SERIES = OF_TARGETS | {"policy", "resource", "exported_namespace"}


def simulated_query(selector: str, seconds: int) -> str:
    """Nodes that said so at some time, even when `selector` chooses tenants, pools or devices."""
    return f"max by (node) (max_over_time({METRIC}{braced(of_others(selector, _OF_OTHER_SERIES))}[{seconds}s])) > 0"


def nodes_of(found: Iterable[Series]) -> frozenset[str]:
    """In an answer to that; the empty text: a node without a name."""
    return frozenset(one.labels.get("node", "") for one in found)
