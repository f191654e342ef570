"""Group nodes that are alike, and find a selector that matches the nodes of a group and no others. Pure."""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
"""The label that our documentation recommends. The operator neither reads nor writes it."""
MAX_NAMES, MAX_ROWS = 64, 16
"""How many values one row of a selector may have, and how many rows a selector."""
Label = tuple[str, str]
"""Key and value of a label."""
Selector = Mapping[str, Any]
"""The `spec.nodeSelector` of a policy."""
_POOL = re.compile(r"[\w.-]*(pool|node-?group|instance-?group)([-_.]?(name|id))?", re.IGNORECASE)
"""Matches names of labels, without their domains, by which people, clouds and autoscalers distinguish pools: a node
that joins with such a label belongs to the pool. With any other label, such as a zone, it is mere chance that no
other node has it today."""
_CHANCE = re.compile(
    r"topology|zone|region|image|hash|capacity|hostname|machine|version|network|subnet|address|storage",
    re.IGNORECASE,
)
"""Matches parts of keys that match _POOL but describe a machine or its location, such as the pool of its addresses."""
_MODES = {"Full": "full", "MIG": "mig", "MPS": "mps", "TimeSlicing": "time-slicing"}


@dataclass(frozen=True, slots=True)
class ProposedPolicy:
    """A proposed policy for nodes that are alike."""

    name: str
    """Name of the policy."""
    members: tuple[Handmade, ...]
    """The nodes, sorted by name."""
    selector: Selector
    """The `spec.nodeSelector` of the policy."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """The sorted names of the nodes."""
        return tuple(member.node for member in self.members)

    @property
    def manifest(self) -> JSON:
        """The policy as an object that can be applied, with the settings of the first member, which all share."""
        return policy_manifest(self.name, {"nodeSelector": dict(self.selector), **self.members[0].spec})


def propose(
    handmade: Iterable[Handmade], nodes: Mapping[str, NodeView], taken: Collection[str] = ()
) -> tuple[tuple[ProposedPolicy, ...], tuple[str, ...]]:
    """Return policies for the nodes in `handmade`, one for each pool of nodes with the same products, number of GPUs
    and settings, and the names of nodes for which there is no selector; both are sorted by name. A pool has the nodes
    with one pool label (`find_pools`), or those without any. It gets a policy for each of its `_selectors`. `nodes` are
    all Nodes; no policy gets a name in `taken` or of another one (`_name`)."""
    alike: dict[tuple[object, ...], dict[str, Handmade]] = {}
    for member in sorted(handmade, key=lambda member: member.node):
        key = (member.products, member.gpus, json.dumps(member.spec, sort_keys=True))
        alike.setdefault(key, {})[member.node] = member
    pools = find_pools(nodes)
    proposed: list[ProposedPolicy] = []
    unnamed: list[str] = []
    used = set(taken)
    for members in alike.values():
        for label, part in _by_pool(members.keys(), pools):
            selectors = _selectors(label, sorted(part), pools, nodes)
            unnamed += [] if selectors else part
            for names, selector in selectors:
                name = _name(label, members[names[0]], used)
                used.add(name)
                proposed.append(ProposedPolicy(name, tuple(members[node] for node in names), selector))
    return tuple(sorted(proposed, key=lambda policy: policy.name)), tuple(sorted(unnamed))


def find_pools(nodes: Mapping[str, NodeView]) -> dict[Label, frozenset[str]]:
    """Return, for each label whose key names a pool (_POOL) and each of its values, the names of all nodes that have
    it. Labels that a mode change rewrites, and labels that describe a machine or its location (_CHANCE), are left out.
    The label gpusharing.dev/pool comes first, and labels whose key ends with `id` come last; otherwise they are sorted.
    """
    pools: dict[Label, set[str]] = {}
    for name, node in nodes.items():
        for key, value in node.labels.items():
            if _POOL.fullmatch(key.rpartition("/")[2]) and not is_rewritten(key) and not _CHANCE.search(key):
                pools.setdefault((key, value), set()).add(name)
    order = sorted(pools, key=lambda label: (label[0] != LABEL_POOL, label[0].endswith("id"), label))
    return {label: frozenset(pools[label]) for label in order}


def _by_pool(
    members: Collection[str], pools: Mapping[Label, frozenset[str]]
) -> Iterator[tuple[Label | None, frozenset[str]]]:
    """Divide `members` by their pools, and yield the label of each pool with its members. Pools without any other node
    come first, then those that have others too, both in the order of `pools`. Last is None with the nodes that are in
    no pool. A node in several pools is yielded only with the first."""
    rest = frozenset(members)
    for whole in (True, False):
        for label, bearers in pools.items():
            if bearers & rest and (bearers <= rest or not whole):
                yield label, bearers & rest
                rest -= bearers
    if rest:
        yield None, rest


def _selectors(
    label: Label | None,
    members: Sequence[str],
    pools: Mapping[Label, frozenset[str]],
    nodes: Mapping[str, NodeView],
) -> list[tuple[Sequence[str], Selector]]:
    """Return selectors that together match `members` and no other node, each with the nodes that it matches. The pool's
    label suffices if no other node has it. Otherwise the other nodes are excluded by host name if all have GPUs and
    unique host names, and there are fewer of them than members and than MAX_NAMES * MAX_ROWS. `label` is None for nodes
    that are in no pool.

    Else each selector lists at most MAX_NAMES host names, so that there can be several. Empty if a member's host name
    is missing or not unique, or if more than MAX_NAMES members are in no pool.
    """
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
    """Return rows of a selector with this operator and the host names of these nodes, in their order and at most
    MAX_NAMES in each."""
    values = [hosts[name] for name in names]
    parts = [values[at : at + MAX_NAMES] for at in range(0, len(values), MAX_NAMES)]
    return [{"key": LABEL_HOSTNAME, "operator": operator, "values": part} for part in parts]


def _name(label: Label | None, member: Handmade, used: Collection[str]) -> str:
    """Return a name for the policy, made from the value of the pool's label (`pool_name`). If there is no label, or its
    value contains no ASCII letter or digit, the name is made from the member's first card and its mode, and cut to
    MAX_NAME characters. If that is in `used`, the first free number from 2 on is appended, such as `name-2`; a name
    that would become too long is cut before the number."""
    card = find_card(member.products[0])
    other = _slug(f"{card.key if card else member.products[0]}-{_MODES[member.spec['mode']]}")
    name = (pool_name(label[1]) if label else "") or other
    endings = (f"-{number}" for number in count(2))
    numbered = (name[: MAX_NAME - len(ending)].rstrip("-") + ending for ending in endings)
    return next(one for one in chain([name], numbered) if one not in used)


def pool_name(text: str) -> str:
    """Return a name for a policy, made from the name of a pool (`_slug`). A name of one or two characters gets the
    prefix `pool-`. Empty if the pool's name contains no ASCII letters or digits."""
    slug = _slug(text)
    return slug if len(slug) > 2 else f"pool-{slug}" if slug else ""


def _slug(text: str) -> str:
    """Convert a name to lower case, replace each run of characters other than ASCII letters and digits with one dash,
    and cut the result to MAX_NAME characters. There are no dashes at its beginning and end."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:MAX_NAME].strip("-")
