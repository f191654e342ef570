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
"""One PromQL matcher: label, operator and quoted value. Group 1 is the label."""
_MATCHERS = re.compile(f"{MATCHER.pattern}(?:,{MATCHER.pattern})*")


def selector_of(selector: str) -> str:
    """Return the matchers of `--selector` as they were typed, without white space and one brace at either end, even if
    only one of the braces was typed. Return an empty string if no matcher is left. Raises Trouble if the flag contains
    anything other than PromQL matchers separated by commas. Labels and regular expressions are not checked beyond this
    form."""
    matchers = selector.strip().removeprefix("{").removesuffix("}").strip()
    if matchers and not _MATCHERS.fullmatch(matchers):
        raise Trouble(f'--selector {selector}: use matchers such as cluster="east",prometheus_replica="a"')
    return matchers


def labels_of(selector: str) -> list[str]:
    """Return the label name of each matcher in `selector`, in the same order, also if a label occurs twice."""
    return [match[1] for match in MATCHER.finditer(selector)]


def of_others(selector: str, targets: frozenset[str] = OF_TARGETS) -> str:
    """Return those matchers of `selector` that also apply to series of other exporters: the matchers whose label is not
    in `targets`, in their order. The result is comma-separated and may be empty."""
    return ",".join(match[0].strip() for match in MATCHER.finditer(selector) if match[1] not in targets)


def braced(*matchers: str) -> str:
    """Join the matchers that are not empty and put them in braces, to be appended to a metric's name. Return an empty
    string if all are empty."""
    joined = ",".join(filter(None, matchers))
    return f"{{{joined}}}" if joined else ""


def matcher_of(nodes: Iterable[str]) -> str:
    """Return the regular-expression matcher for the series of these nodes, and perhaps of others whose names are
    similar: a dot in a name matches any character. Without nodes, it selects only series that have no node; so does an
    empty name among others. The result is an empty string, which means all nodes, if the joined names have more than
    1500 characters, which is too long for a URL, or if one contains anything other than lower-case letters, digits,
    dots and dashes."""
    names = "|".join(sorted(nodes))
    return f'node=~"{names}"' if re.fullmatch(r"[a-z0-9.|-]{0,1500}", names) else ""


def state_label(key: str) -> str:
    """Return the label in which kube-state-metrics exports the label `key` of a Node or a Namespace; it begins with
    `label_`.

    Characters that Prometheus does not allow become `_`. Then a `_` is put before each capital that follows a
    lower-case letter or a digit, and all letters become lower-case (kubernetes/kube-state-metrics
    internal/store/utils.go, labelName, v2.20.0, unchanged since v2.0.0). Where two keys lead to the same name,
    kube-state-metrics appends `_conflict1` and so on; such labels are not found.
    """
    plain = re.sub("[^a-zA-Z0-9_]", "_", key)
    snake = re.sub("([a-z0-9])([A-Z])", r"\1_\2", plain)
    return f"label_{snake.lower()}"


def nodes_of(answer: Iterable[Series]) -> frozenset[str]:
    """Return the names of the nodes in an answer; an empty string stands for a series without the label `node`."""
    return frozenset(series.node for series in answer)
