"""Which series are meant: --selector, as matchers of PromQL. Pure."""

import re

from gpusharing.cli.shell.troubles import Trouble

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
