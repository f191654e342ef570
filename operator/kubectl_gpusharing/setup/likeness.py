"""Group nodes that are alike, and find a selector that matches the nodes of a group and no others. Pure."""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

from gpusharing.api.names import LABEL_HOSTNAME, PREFIX
from gpusharing.api.rules import MAX_NAME
from gpusharing.api.validation import is_rewritten
from gpusharing.kube.client import JSON
from gpusharing.planning.gpus.cards import find_card
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.wanted.assess import has_gpu
from kubectl_gpusharing.setup.handmade import Handmade
from kubectl_gpusharing.shell.manifests import policy_manifest

LABEL_POOL = f"{PREFIX}pool"
"""The label that our documentation recommends."""
MAX_NAMES, MAX_ROWS = 64, 16
"""How many values one row of a selector may have, and how many rows a selector."""
Label = tuple[str, str]
"""Key and value of a label."""
Selector = Mapping[str, Any]
_POOL = re.compile(r"[\w.-]*(pool|node-?group|instance-?group)([-_.]?(name|id))?", re.IGNORECASE)
"""Matches names of labels, without their domains, by which people, clouds and autoscalers distinguish pools."""
_CHANCE = re.compile(
    r"topology|zone|region|image|hash|capacity|hostname|machine|version|network|subnet|address|storage",
    re.IGNORECASE,
)
"""Matches parts of keys that match _POOL but describe a machine or its location, such as the pool of its addresses."""
_MODES = {"Full": "full", "MIG": "mig", "MPS": "mps", "TimeSlicing": "time-slicing"}


@dataclass(frozen=True, slots=True)
class ProposedPolicy:
    name: str
    members: tuple[Handmade, ...]
    selector: Selector
    """The `spec.nodeSelector` of the policy."""

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(member.node for member in self.members)

    @property
    def manifest(self) -> JSON:
        return policy_manifest(self.name, {"nodeSelector": dict(self.selector), **self.members[0].spec})


def propose(
    handmade: Iterable[Handmade], nodes: Mapping[str, NodeView], taken: Collection[str] = ()
) -> tuple[tuple[ProposedPolicy, ...], tuple[str, ...]]:
    """Return policies, one for each pool of nodes with the same products, number of GPUs and settings, and the names of nodes for which there is no selector; both are sorted by name."""
    alike: dict[tuple[object, ...], dict[str, Handmade]] = {}
    for member in sorted(handmade, key=lambda member: member.node):
        key = (member.products, member.gpus, json.dumps(member.spec, sort_keys=True))
        alike.setdefault(key, {})[member.node] = member
    pools = find_pools(nodes)
    proposed: list[ProposedPolicy] = []
    unnamed: list[str] = []
    used = set(taken)
    for members in alike.values():
        rest = frozenset(members)
        parts: list[tuple[Label | None, frozenset[str]]] = []
        for whole in (True, False):  # first the pools that have no other nodes
            for known, bearers in pools.items():
                if bearers & rest and (bearers <= rest or not whole):
                    parts.append((known, bearers & rest))
                    rest -= bearers
        for label, part in [*parts, *([(None, rest)] if rest else [])]:
            selectors = _selectors(label, sorted(part), pools, nodes)
            unnamed += [] if selectors else part
            for names, selector in selectors:
                name = _name(label, members[names[0]], used)
                used.add(name)
                proposed.append(ProposedPolicy(name, tuple(members[node] for node in names), selector))
    return tuple(sorted(proposed, key=lambda policy: policy.name)), tuple(sorted(unnamed))


def find_pools(nodes: Mapping[str, NodeView]) -> dict[Label, frozenset[str]]:
    """Return the names of the nodes with each label whose key names a pool (_POOL)."""
    pools: dict[Label, set[str]] = {}
    for name, node in nodes.items():
        for key, value in node.labels.items():
            if _POOL.fullmatch(key.rpartition("/")[2]) and not is_rewritten(key) and not _CHANCE.search(key):
                pools.setdefault((key, value), set()).add(name)
    order = sorted(pools, key=lambda label: (label[0] != LABEL_POOL, label[0].endswith("id"), label))
    return {label: frozenset(pools[label]) for label in order}


def _selectors(
    label: Label | None,
    members: Sequence[str],
    pools: Mapping[Label, frozenset[str]],
    nodes: Mapping[str, NodeView],
) -> list[tuple[Sequence[str], Selector]]:
    hosts = {name: node.labels.get(LABEL_HOSTNAME, "") for name, node in nodes.items()}
    bearers = Counter(hosts.values())
    named = {name for name, host in hosts.items() if host and bearers[host] == 1}
    if label is not None:
        pool, others = {"matchLabels": dict([label])}, sorted(pools[label] - set(members))
        if not others:
            return [(members, pool)]
        excludable = named.issuperset(others) and all(has_gpu(nodes[name]) for name in others)
        if excludable and len(others) < min(len(members), MAX_NAMES * MAX_ROWS):
            return [(members, {**pool, "matchExpressions": _rows("NotIn", others, hosts)})]
    if not named.issuperset(members) or (label is None and len(members) > MAX_NAMES):
        return []
    return [
        (members[at * MAX_NAMES : (at + 1) * MAX_NAMES], {"matchExpressions": [row]})
        for at, row in enumerate(_rows("In", members, hosts))
    ]


def _rows(operator: str, names: Sequence[str], hosts: Mapping[str, str]) -> list[dict[str, object]]:
    values = [hosts[name] for name in names]
    parts = [values[at : at + MAX_NAMES] for at in range(0, len(values), MAX_NAMES)]
    return [{"key": LABEL_HOSTNAME, "operator": operator, "values": part} for part in parts]


def _name(label: Label | None, member: Handmade, used: Collection[str]) -> str:
    card = find_card(member.products[0])
    other = _slug(f"{card.key if card else member.products[0]}-{_MODES[member.spec['mode']]}")
    name = (pool_name(label[1]) if label else "") or other
    endings = (f"-{number}" for number in count(2))
    numbered = (name[: MAX_NAME - len(ending)].rstrip("-") + ending for ending in endings)
    return next(one for one in chain([name], numbered) if one not in used)


def pool_name(text: str) -> str:
    """Return a name for a policy, made from the name of a pool; empty if that has no letter and no digit."""
    slug = _slug(text)
    return slug if len(slug) > 2 else f"pool-{slug}" if slug else ""


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:MAX_NAME].strip("-")
