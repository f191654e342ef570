"""Which series are meant: the matchers of --selector, labels as kube-state-metrics names them, and nodes with
SIMULATED GPUs. Pure."""

import re
from collections.abc import Iterable

from gpusharing.cli.shell.troubles import Trouble
from gpusharing.usage.prometheus.client import Series

TARGET = ("__name__", "instance", "pod", "container", "endpoint", "uid")
"""Labels by which an agent's series differ from those of its successor on the same node."""
OF_TARGETS = frozenset((*TARGET, "job", "namespace", "node", "service"))
"""Labels that name the scrape target. Prices, owners and labels of namespaces come from other targets."""
MATCHER = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(?:=~|!~|!=|=)\s*"(?:[^"\\\n]|\\.)*"\s*')
"""A matcher of PromQL: label, operator, value."""


def selector_of(selector: str) -> str:
    """Return the PromQL matchers of `--selector` as they were typed, without braces; empty if there are none.
    Raises Trouble for anything else."""
    rest = selector.strip().removeprefix("{").removesuffix("}").strip()
    at = 0
    while rest and (match := MATCHER.match(rest, at)):
        at = match.end()
        if at == len(rest):
            return rest
        if rest[at] != ",":
            break
        at += 1
    if rest:
        raise Trouble(f'--selector {selector}: write matchers such as cluster="east",prometheus_replica="a"')
    return ""


def labels_of(selector: str) -> list[str]:
    """Return the labels that the matchers name, in their order."""
    return [match[1] for match in MATCHER.finditer(selector)]


def of_others(selector: str, targets: frozenset[str] = OF_TARGETS) -> str:
    """Return the matchers that apply to series of other exporters: those that name none of the labels in
    `targets`."""
    return ",".join(match[0].strip() for match in MATCHER.finditer(selector) if match[1] not in targets)


def braced(*matchers: str) -> str:
    """Return the matchers that are not empty in braces, to append to a metric's name; empty if there are none."""
    joined = ",".join(filter(None, matchers))
    return f"{{{joined}}}" if joined else ""


def state_label(key: str) -> str:
    """Return the label in which kube-state-metrics exports the label `key` of a Node or a Namespace.

    Characters that Prometheus does not allow become `_`. Then a `_` is put before each capital after a lower-case
    letter or a digit, and all becomes lower case (kubernetes/kube-state-metrics internal/store/utils.go,
    labelName, v2.20.0, unchanged since v2.0.0). Keys that become equal get a suffix `_conflict1` and so on there;
    these are not found.
    """
    plain = re.sub("[^a-zA-Z0-9_]", "_", key)
    snake = re.sub("([a-z0-9])([A-Z])", r"\1_\2", plain)
    return f"label_{snake.lower()}"


METRIC = "gpusharing_agent_simulated"
"""1 where the agent reads a SIMULATED driver library (gpusharing/agent/metrics.py)."""
_OF_OTHER_SERIES = OF_TARGETS | {"policy", "resource", "exported_namespace"}


def simulated_query(selector: str, seconds: int) -> str:
    """Return the query for nodes that reported SIMULATED GPUs at some time in the last `seconds`, even when
    `selector` chooses tenants, pools or devices."""
    return f"max by (node) (max_over_time({METRIC}{braced(of_others(selector, _OF_OTHER_SERIES))}[{seconds}s])) > 0"


def nodes_of(answer: Iterable[Series]) -> frozenset[str]:
    """Return the nodes in the answer to `simulated_query`; an empty text stands for a node without a name."""
    return frozenset(series.labels.get("node", "") for series in answer)
