"""The matchers of --selector, and the labels of nodes in queries and answers. Pure."""

import re
from collections.abc import Iterable

from kubectl_gpusharing.shell.troubles import Trouble
from kubectl_gpusharing.usage.prometheus.client import Series

TARGET = ("__name__", "instance", "pod", "container", "endpoint", "uid")
"""Labels by which an agent's series differ from those of its successor on the same node."""
OF_TARGETS = frozenset((*TARGET, "job", "namespace", "node", "service"))
"""Labels that name the scrape target. Prices, owners and labels of namespaces come from other targets."""
MATCHER = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(?:=~|!~|!=|=)\s*"(?:[^"\\\n]|\\.)*"\s*')
"""One PromQL matcher: label (group 1), operator and quoted value."""


def selector_of(selector: str) -> str:
    """Return the matchers of `--selector` as they were typed, without enclosing braces. Raises Trouble if it has anything but PromQL matchers separated by commas."""
    matchers = selector.strip().removeprefix("{").removesuffix("}").strip()
    if matchers and not re.fullmatch(f"{MATCHER.pattern}(?:,{MATCHER.pattern})*", matchers):
        raise Trouble(f'--selector {selector}: use matchers such as cluster="east",prometheus_replica="a"')
    return matchers


def labels_of(selector: str) -> list[str]:
    return [match[1] for match in MATCHER.finditer(selector)]


def of_others(selector: str, targets: frozenset[str] = OF_TARGETS) -> str:
    """Return those matchers of `selector` that also apply to series of other exporters: those whose label is not in `targets`, comma-separated."""
    return ",".join(match[0].strip() for match in MATCHER.finditer(selector) if match[1] not in targets)


def braced(*matchers: str) -> str:
    """Join the matchers that are not empty in braces, to be appended to a metric's name; empty without any."""
    joined = ",".join(filter(None, matchers))
    return f"{{{joined}}}" if joined else ""


def matcher_of(nodes: Iterable[str]) -> str:
    """Return the matcher for the series of these nodes, and perhaps of others with similar names: a dot matches any character. Empty, which means all nodes, if it would be too long for a URL or a name has unusual characters."""
    names = "|".join(sorted(nodes))
    return f'node=~"{names}"' if re.fullmatch(r"[a-z0-9.|-]{0,1500}", names) else ""


def state_label(key: str) -> str:
    """Return the label in which kube-state-metrics exports the label `key` of a Node or a Namespace (kubernetes/kube-state-metrics internal/store/utils.go, labelName, v2.20.0, unchanged since v2.0.0).

    Where two keys lead to the same name, kube-state-metrics appends `_conflict1` and so on; such labels are not found.
    """
    plain = re.sub("[^a-zA-Z0-9_]", "_", key)
    snake = re.sub("([a-z0-9])([A-Z])", r"\1_\2", plain)
    return f"label_{snake.lower()}"


def nodes_of(answer: Iterable[Series]) -> frozenset[str]:
    """An empty name stands for series without the label `node`."""
    return frozenset(series.node for series in answer)
