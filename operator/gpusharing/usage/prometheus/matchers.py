"""Which series are meant: --selector as matchers of PromQL, labels as kube-state-metrics names them, and the nodes
whose GPUs are SIMULATED. Pure."""

import re
from collections.abc import Iterable

from gpusharing.cli.shell.troubles import Trouble
from gpusharing.usage.prometheus.client import Series

TARGET = ("__name__", "instance", "pod", "container", "endpoint", "uid")
"""Labels by which an agent's series differ from those of its successor on the same node."""
OF_TARGETS = frozenset((*TARGET, "job", "namespace", "node", "service"))
"""Labels that say who was scraped: prices, owners and labels of namespaces are exported by others."""
MATCHER = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(?:=~|!~|!=|=)\s*"(?:[^"\\\n]|\\.)*"\s*')
"""Of PromQL: label, operator, value."""


def selector_of(selector: str) -> str:
    """Matchers of PromQL, as they were typed. Raises Trouble for anything else."""
    rest = selector.strip().removeprefix("{").removesuffix("}").strip()
    at = 0
    while rest and (found := MATCHER.match(rest, at)):
        at = found.end()
        if at == len(rest):
            return rest
        if rest[at] != ",":
            break
        at += 1
    if rest:
        raise Trouble(f'--selector {selector}: write matchers such as cluster="east",prometheus_replica="a"')
    return ""


def labels_of(selector: str) -> list[str]:
    """Those that matchers name, in their order."""
    return [one[1] for one in MATCHER.finditer(selector)]


def of_others(selector: str, targets: frozenset[str] = OF_TARGETS) -> str:
    """The matchers that apply to series that others export: those without labels of `targets`."""
    return ",".join(one[0].strip() for one in MATCHER.finditer(selector) if one[1] not in targets)


def braced(*matchers: str) -> str:
    """A selector for behind a name, of what is not empty; empty: none is needed."""
    told = ",".join(filter(None, matchers))
    return f"{{{told}}}" if told else ""


def state_label(key: str) -> str:
    """The label of a series that holds the label `key` of a Node or a Namespace.

    What a label of Prometheus cannot have becomes `_`; then comes a `_` before each capital after a lower-case letter
    or a digit, and all is lower case (kubernetes/kube-state-metrics internal/store/utils.go, labelName, v2.20.0, and
    the same since v2.0.0). Keys that become the same get a suffix `_conflict1` and so on there: they are not found.
    """
    plain = re.sub("[^a-zA-Z0-9_]", "_", key)
    snake = re.sub("([a-z0-9])([A-Z])", r"\1_\2", plain)
    return f"label_{snake.lower()}"


METRIC = "gpusharing_agent_simulated"
"""1 where the agent reads a SIMULATED driver library (gpusharing/agent/metrics.py)."""
_OF_OTHER_SERIES = OF_TARGETS | {"policy", "resource", "exported_namespace"}


def simulated_query(selector: str, seconds: int) -> str:
    """Nodes that said so at some time, even when `selector` chooses tenants, pools or devices."""
    return f"max by (node) (max_over_time({METRIC}{braced(of_others(selector, _OF_OTHER_SERIES))}[{seconds}s])) > 0"


def nodes_of(found: Iterable[Series]) -> frozenset[str]:
    """In an answer to that; the empty text: a node without a name."""
    return frozenset(one.labels.get("node", "") for one in found)
