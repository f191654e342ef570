"""Which nodes' GPUs are SIMULATED, as their agents tell Prometheus, and how any answer says so. Pure."""

from collections.abc import Iterable, Sequence

from gpusharing.cli.drawing import Ink, Line, Paper, prose
from gpusharing.cli.matchers import OF_TARGETS, braced, of_others
from gpusharing.cli.prometheus import Series
from gpusharing.planning.words.lengths import some

METRIC = "gpusharing_agent_simulated"
"""1 where the agent reads a SIMULATED driver library (gpusharing/agent/metrics.py)."""
_OF_OTHER_SERIES = OF_TARGETS | {"policy", "resource", "exported_namespace"}


def simulated_query(selector: str, seconds: int) -> str:
    """Nodes that said so at some time. Who chooses tenants, pools or devices by `selector` is told all the same."""
    return f"max by (node) (max_over_time({METRIC}{braced(of_others(selector, _OF_OTHER_SERIES))}[{seconds}s])) > 0"


def nodes_of(found: Iterable[Series]) -> frozenset[str]:
    """In an answer to that; the empty text: nobody tells which node it is."""
    return frozenset(one.labels.get("node", "") for one in found)


def sentence(nodes: Sequence[str]) -> str:
    """What is told of these; empty: nothing."""
    if not nodes:
        return ""
    have, them = ("have", "them") if len(nodes) > 1 else ("has", "it")
    names = some([node or "a node without a name" for node in nodes])
    return f"SIMULATED: {names} {have} no real GPUs, and the numbers about {them} here come from a simulator"


def describe_simulated(nodes: Sequence[str], paper: Paper) -> list[Line]:
    """The same as lines."""
    return prose(f"{sentence(nodes)}.", paper, hang="  ", ink=Ink.WAITING) if nodes else []
