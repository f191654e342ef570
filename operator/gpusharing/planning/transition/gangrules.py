"""The drain rules that apply to each member of a gang. The policy of the member's own node sets them, even if another
policy governs the node that is being changed. If that policy cannot be read, or the member's node cannot be judged,
the members there must stay.

Specification: docs/adr/0039-a-wave-stays-within-its-policy.md.

Terms: docs/design/glossary.md#gang, docs/design/glossary.md#wave.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from gpusharing.api.policy import Drain
from gpusharing.planning.snapshot.podviews import GangView
from gpusharing.planning.snapshot.views import ClusterSnapshot, PolicyView
from gpusharing.planning.stack.acceptance import find_spec
from gpusharing.planning.transition.guard import find_fault
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.wanted.target import PolicyTargets


class _Rules(NamedTuple):
    """What the policy of a node says about the gang members there."""

    policy: str
    """The name of the policy."""
    drain: Drain | None
    """The policy's spec.drain, or None if it is unknown."""
    unruled: Finding | None
    """Why `drain` is unknown, or None if it is known."""


def with_rules(
    snapshot: ClusterSnapshot,
    followed: Mapping[str, PolicyTargets | None],
    owners: Mapping[str, str],
    failed: Mapping[str, Exception],
) -> ClusterSnapshot:
    """Return the snapshot in which each member of a gang has the spec.drain of the policy that its own node follows,
    or the reason why that is unknown. A member gets neither if its node has the same rules as the node whose pods
    were listed, or follows no policy. The snapshot is unchanged if no member gets either, or if there are fewer
    than two policies and every node can be judged.

    `followed` has the terms that each node is compared with, `owners` the policy that owns each node, and `failed` the
    errors of the nodes that cannot be judged.
    """
    if len(snapshot.policies) < 2 and not failed:
        return snapshot

    def find_rules(node: str) -> _Rules | None:
        """Return the rules for one node, or None if the node follows no policy. They are unknown if the node cannot be
        judged."""
        if (error := failed.get(node)) is not None:
            return _unruled(owners.get(node, ""), find_fault(error))
        terms = followed.get(node)
        return _rules_of(terms.policy) if terms is not None else None

    ruled = {}
    for name, work in snapshot.work.items():
        own_rules = find_rules(name)
        views = [_with_rules(view, own_rules, find_rules) for view in work.gangs]
        if any(view is not before for view, before in zip(views, work.gangs, strict=True)):
            ruled[name] = replace(work, gangs=tuple(views))
    return replace(snapshot, work={**snapshot.work, **ruled}) if ruled else snapshot


def _with_rules(
    view: GangView, own_rules: _Rules | None, find_rules: Callable[[str], _Rules | None]
) -> GangView:
    """Return the gang in which the members on other nodes have the rules of their own nodes, where these differ from
    `own_rules` and their spec.drain differs too or is unknown. Unchanged if there are no such members."""
    own_drain = own_rules.drain if own_rules is not None else None
    others = {
        node: rules
        for node in {member.node for member in view.members}
        if (rules := find_rules(node)) is not None and rules != own_rules
        if rules.unruled is not None or rules.drain != own_drain
    }
    if not others:
        return view
    members = (
        one
        if (rules := others.get(one.node)) is None
        else replace(one, policy=rules.policy, drain=rules.drain, unruled=rules.unruled)
        for one in view.members
    )
    return replace(view, members=tuple(members))


def _rules_of(policy: PolicyView) -> _Rules:
    """Return the rules of a policy. If its spec cannot be read, they are unknown rules with the reason why."""
    spec = find_spec(policy)
    if isinstance(spec, Finding):
        return _unruled(
            policy.name, replace(spec, message=f"policy {policy.name} cannot be read: {spec.message}")
        )
    return _Rules(policy.name, spec.drain, None)


def _unruled(policy: str, why: Finding) -> _Rules:
    """Return the rules of a policy whose spec.drain is unknown, with the reason."""
    message = f"The drain rules for the pod's node are unknown and may forbid evicting the pod: {why.message}"
    return _Rules(policy, None, replace(why, message=message))
