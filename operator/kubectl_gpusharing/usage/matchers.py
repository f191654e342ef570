"""Which PromQL matchers select the series of some nodes, of other exporters, or those that the user chose?"""

import re
from collections.abc import Iterable

from kubectl_gpusharing.shell.troubles import Trouble

TARGET = ("__name__", "instance", "pod", "container", "endpoint", "uid")
"""Labels by which an agent's series differ from those of its successor on the same node."""
OF_TARGETS = frozenset((*TARGET, "job", "namespace", "node", "service"))
"""Labels that name the scrape target. Prices, owners and labels of namespaces come from other targets."""
MATCHER = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(?:=~|!~|!=|=)\s*"(?:[^"\\\n]|\\.)*"\s*')
"""One PromQL matcher: label (group 1), operator and quoted value."""


def selector_of(selector: str) -> str:
    """Return the PromQL matchers of `--match`, separated by commas, without enclosing braces. Raises Trouble."""
    matchers = selector.strip().removeprefix("{").removesuffix("}").strip()
    if matchers and not re.fullmatch(f"{MATCHER.pattern}(?:,{MATCHER.pattern})*", matchers):
        raise Trouble(f'--match {selector}: use matchers such as cluster="east",prometheus_replica="a"')
    return matchers


def labels_of(selector: str) -> list[str]:
    return [match[1] for match in MATCHER.finditer(selector)]


def without_labels(selector: str, targets: frozenset[str] = OF_TARGETS) -> str:
    """Return the matchers of `selector` for labels not in `targets`, which other exporters' series have too."""
    return ",".join(match[0].strip() for match in MATCHER.finditer(selector) if match[1] not in targets)


def braced(*matchers: str) -> str:
    """Join the matchers that are not empty in braces, to be appended to a metric's name; empty without any."""
    joined = ",".join(filter(None, matchers))
    return f"{{{joined}}}" if joined else ""


def matcher_of(nodes: Iterable[str]) -> str:
    """Return the matcher for the series of these nodes, and of any whose name differs only where theirs has a dot.

    It is empty, which means all nodes, if it would be too long for a URL or a name has unusual characters.
    """
    names = "|".join(sorted(nodes))
    return f'node=~"{names}"' if re.fullmatch(r"[a-z0-9.|-]{0,1500}", names) else ""


def state_label(key: str) -> str:
    """Return the label in which kube-state-metrics exports the label `key` of a Node or a Namespace.

    It is computed as in kubernetes/kube-state-metrics internal/store/utils.go, labelName, v2.20.0, unchanged since
    v2.0.0. Two keys with the same result get `_conflict1` and so on there; such labels are not found.
    """
    plain = re.sub("[^a-zA-Z0-9_]", "_", key)
    snake = re.sub("([a-z0-9])([A-Z])", r"\1_\2", plain)
    return f"label_{snake.lower()}"
