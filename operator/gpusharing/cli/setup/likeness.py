"""Groups of like nodes, and the selector that matches them and no others. Pure."""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpusharing.api.names import LABEL_HOSTNAME, PREFIX
from gpusharing.api.validation import is_rewritten
from gpusharing.cli.setup.handmade import Handmade
from gpusharing.cli.shell.manifests import policy_manifest
from gpusharing.kube.client import JSON
from gpusharing.planning.gpus.cards import find_card
from gpusharing.planning.snapshot.views import NodeView

LABEL_POOL = f"{PREFIX}pool"
"""What we tell people to use; nothing of ours reads or writes it."""
MAX_NAMES = 64
"""Values that one row of a selector may have."""
_POOL = re.compile(r"[\w.-]*(pool|node-?group|instance-?group)([-_.]?(name|id))?", re.IGNORECASE)
"""Whole names of labels, without their domains, by which people, clouds and autoscalers distinguish pools: a node that
joins with one belongs to the pool. With any other label, such as a zone or a price, it is chance that no other node has
it today."""
_CHANCE = re.compile(
    r"topology|zone|region|image|hash|capacity|hostname|machine|version|network|subnet|address|storage",
    re.IGNORECASE,
)
"""Parts of a key that describes a machine or its place nevertheless, such as the pool that its addresses are from."""
_MODES = {"Full": "full", "MIG": "mig", "MPS": "mps", "TimeSlicing": "time-slicing"}


@dataclass(frozen=True, slots=True)
class Proposed:
    """A policy for nodes that are alike."""

    name: str
    """Name of the policy."""
    members: tuple[Handmade, ...]
    """In the order of their names."""
    selector: Mapping[str, Any]
    """Its `spec.nodeSelector`."""
    by_name: bool = False
    """No label that names a pool distinguishes the nodes from others, so the selector lists them."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names."""
        return tuple(member.node for member in self.members)

    @property
    def manifest(self) -> JSON:
        """The object to apply."""
        return policy_manifest(self.name, {"nodeSelector": dict(self.selector), **self.members[0].spec})


def propose(
    found: Iterable[Handmade], nodes: Mapping[str, NodeView], taken: Collection[str] = ()
) -> tuple[tuple[Proposed, ...], tuple[str, ...]]:
    """A policy for each group, and the nodes of groups that no selector can name. `taken`: names of policies that are
    there; `nodes`: all of the cluster."""
    groups: dict[tuple[object, ...], list[Handmade]] = {}
    for one in sorted(found, key=lambda one: one.node):
        key = (one.products, one.gpus, json.dumps(one.spec, sort_keys=True))
        groups.setdefault(key, []).append(one)
    proposed: list[Proposed] = []
    unnamed: list[str] = []
    used = set(taken)
    for members in groups.values():
        chosen = find_label([one.node for one in members], nodes)
        selector = {"matchLabels": dict([chosen])} if chosen else _by_name(members, nodes)
        if selector is None:
            unnamed += [one.node for one in members]
            continue
        name = _free(_name(chosen, members[0]), used)
        used.add(name)
        proposed.append(Proposed(name, tuple(members), selector, by_name=chosen is None))
    return tuple(sorted(proposed, key=lambda one: one.name)), tuple(sorted(unnamed))


def find_label(members: Sequence[str], nodes: Mapping[str, NodeView]) -> tuple[str, str] | None:
    """A label that names a pool, which all of these nodes carry with one value, and no other node: ours first, then one
    that people can read."""
    common = set(nodes[members[0]].labels.items())
    for name in members[1:]:
        common &= set(nodes[name].labels.items())
    for name in nodes.keys() - set(members):
        common -= set(nodes[name].labels.items())
    usable = [
        (key, value)
        for key, value in common
        if _POOL.fullmatch(key.rpartition("/")[2]) and not is_rewritten(key) and not _CHANCE.search(key)
    ]
    return min(usable, key=lambda one: (one[0] != LABEL_POOL, one[0].endswith("id"), one), default=None)


def _by_name(members: Sequence[Handmade], nodes: Mapping[str, NodeView]) -> Mapping[str, Any] | None:
    mine = {one.node for one in members}
    hosts = {nodes[name].labels.get(LABEL_HOSTNAME, "") for name in mine}
    others = {view.labels.get(LABEL_HOSTNAME, "") for name, view in nodes.items() if name not in mine}
    if "" in hosts or hosts & others or len(hosts) > MAX_NAMES:
        return None
    hosts_in_order = sorted(hosts)
    return {"matchExpressions": [{"key": LABEL_HOSTNAME, "operator": "In", "values": hosts_in_order}]}


def _name(label: tuple[str, str] | None, member: Handmade) -> str:
    """By the pool's name, else by card and mode."""
    if label is not None and (named := pool_name(label[1])):
        return named
    card = find_card(member.products[0])
    return _slug(f"{card.key if card else member.products[0]}-{_MODES[member.spec['mode']]}")


def pool_name(text: str) -> str:
    """Return a name for a policy by the name of its pool; empty if no letter or digit is in that."""
    slug = _slug(text)
    return slug if len(slug) > 2 else f"pool-{slug}" if slug else ""


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:50].strip("-")


def _free(name: str, used: Collection[str]) -> str:
    if name not in used:
        return name
    return next(other for number in range(2, len(used) + 3) if (other := f"{name}-{number}") not in used)
