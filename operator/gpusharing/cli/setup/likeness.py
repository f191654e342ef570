"""Group nodes that are alike, and find a selector that matches the nodes of a group and no others. Pure."""

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
"""The label that our documentation recommends. The operator neither reads nor writes it."""
MAX_NAMES = 64
"""How many values one row of a selector may have."""
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
    selector: Mapping[str, Any]
    """The `spec.nodeSelector` of the policy."""
    by_name: bool = False
    """Whether the selector lists the nodes, because no label that names a pool distinguishes them from others."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """The sorted names of the nodes."""
        return tuple(member.node for member in self.members)

    @property
    def manifest(self) -> JSON:
        """The policy as an object that can be applied."""
        return policy_manifest(self.name, {"nodeSelector": dict(self.selector), **self.members[0].spec})


def propose(
    handmade: Iterable[Handmade], nodes: Mapping[str, NodeView], taken: Collection[str] = ()
) -> tuple[tuple[ProposedPolicy, ...], tuple[str, ...]]:
    """Return a policy for each group of nodes that have the same cards and settings, and the names of the nodes in
    groups for which there is no selector; both are sorted by name. `nodes` has all Nodes of the cluster. `taken`
    has the names of existing policies; no new policy gets one of them."""
    groups: dict[tuple[object, ...], list[Handmade]] = {}
    for member in sorted(handmade, key=lambda member: member.node):
        key = (member.products, member.gpus, json.dumps(member.spec, sort_keys=True))
        groups.setdefault(key, []).append(member)
    proposed: list[ProposedPolicy] = []
    unnamed: list[str] = []
    used = set(taken)
    for members in groups.values():
        chosen = find_label([member.node for member in members], nodes)
        selector = {"matchLabels": dict([chosen])} if chosen else _by_name(members, nodes)
        if selector is None:
            unnamed += [member.node for member in members]
            continue
        name = _free(_name(chosen, members[0]), used)
        used.add(name)
        proposed.append(ProposedPolicy(name, tuple(members), selector, by_name=chosen is None))
    return tuple(sorted(proposed, key=lambda policy: policy.name)), tuple(sorted(unnamed))


def find_label(members: Sequence[str], nodes: Mapping[str, NodeView]) -> tuple[str, str] | None:
    """Return the key and value of a label that names a pool and that all these nodes but no others have; None if there
    is none. Labels that a mode change rewrites, and labels that describe a machine or its location (_CHANCE), are
    never returned. The label gpusharing.dev/pool is preferred, then labels that are not ids. `members` must not be
    empty."""
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
    return min(
        usable, key=lambda label: (label[0] != LABEL_POOL, label[0].endswith("id"), label), default=None
    )


def _by_name(members: Sequence[Handmade], nodes: Mapping[str, NodeView]) -> Mapping[str, Any] | None:
    """Return a selector that lists the host names of the nodes. Return None if a host name is missing or also belongs
    to a node outside the group, or if there are more than MAX_NAMES."""
    own = {member.node for member in members}
    hosts = {nodes[name].labels.get(LABEL_HOSTNAME, "") for name in own}
    others = {view.labels.get(LABEL_HOSTNAME, "") for name, view in nodes.items() if name not in own}
    if "" in hosts or hosts & others or len(hosts) > MAX_NAMES:
        return None
    hosts_in_order = sorted(hosts)
    return {"matchExpressions": [{"key": LABEL_HOSTNAME, "operator": "In", "values": hosts_in_order}]}


def _name(label: tuple[str, str] | None, member: Handmade) -> str:
    """Return a name for the policy, made from the pool that the label names. If there is no label, or no name can be
    made from its value, the name is made from the member's card and mode."""
    if label is not None and (named := pool_name(label[1])):
        return named
    card = find_card(member.products[0])
    return _slug(f"{card.key if card else member.products[0]}-{_MODES[member.spec['mode']]}")


def pool_name(text: str) -> str:
    """Return a name for a policy, made from the name of a pool. A name of one or two characters gets the prefix
    `pool-`. Empty if the pool's name contains no ASCII letters or digits."""
    slug = _slug(text)
    return slug if len(slug) > 2 else f"pool-{slug}" if slug else ""


def _slug(text: str) -> str:
    """Convert a name to lower case, replace each run of characters other than ASCII letters and digits with one dash,
    and cut the result to 50 characters. There are no dashes at its beginning and end."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:50].strip("-")


def _free(name: str, used: Collection[str]) -> str:
    """Return the name if it is not in `used`, otherwise with the first free number appended, such as `name-2`."""
    if name not in used:
        return name
    return next(other for number in range(2, len(used) + 3) if (other := f"{name}-{number}") not in used)
