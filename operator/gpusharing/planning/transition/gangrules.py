"""Which policy speaks for each member of a gang: that of the node on which it runs, also where that is another one than
that of the node in work. A policy that cannot be read, and a node that cannot be judged, may forbid anything.

Specification: docs/adr/0039-a-wave-stays-within-its-policy.md.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from gpusharing.api.policy import Drain
from gpusharing.planning.snapshot.podviews import GangMember, GangView
from gpusharing.planning.snapshot.views import ClusterSnapshot, PolicyView
from gpusharing.planning.stack.acceptance import Terms, find_spec
from gpusharing.planning.transition.guard import find_fault
from gpusharing.planning.vocabulary.findings import Finding


class _Rules(NamedTuple):
    """What the policy of a node says of the members of a gang there."""

    policy: str
    """Its name."""
    drain: Drain | None
    """Its spec.drain; None: nobody knows it."""
    unruled: Finding | None
    """Why nobody does."""


def with_rules(
    snapshot: ClusterSnapshot,
    followed: Mapping[str, Terms | None],
    owners: Mapping[str, str],
    failed: Mapping[str, Exception],
) -> ClusterSnapshot:
    """The same, and each member of a gang has the spec.drain of the policy that its own node follows, where that says
    something else than the one of the node in work, or why nobody can tell what it says.

    `followed` has the terms that each node is compared with, `owners` its policy by selectors, and `failed` why nodes
    have no terms.
    """
    if len(snapshot.policies) < 2 and not failed:
        return snapshot

    def find_rules(node: str) -> _Rules | None:
        """Of one node; None: it follows no policy."""
        if (error := failed.get(node)) is not None:
            return _unruled(owners.get(node, ""), find_fault(error))
        terms = followed.get(node)
        return _rules_of(terms.policy) if terms is not None else None

    ruled = {}
    for name, work in snapshot.work.items():
        mine = find_rules(name)
        views = [_with_rules(view, mine, find_rules) for view in work.gangs]
        if any(view is not before for view, before in zip(views, work.gangs, strict=True)):
            ruled[name] = replace(work, gangs=tuple(views))
    return replace(snapshot, work={**snapshot.work, **ruled}) if ruled else snapshot


def _with_rules(view: GangView, mine: _Rules | None, find_rules: Callable[[str], _Rules | None]) -> GangView:
    ours = mine.drain if mine is not None else None
    others = {
        node: rules
        for node in {member.node for member in view.members}
        if (rules := find_rules(node)) is not None and rules != mine
        if rules.unruled is not None or rules.drain != ours
    }
    if not others:
        return view
    return replace(view, members=tuple(_ruled(one, others.get(one.node)) for one in view.members))


def _ruled(member: GangMember, rules: _Rules | None) -> GangMember:
    if rules is None:
        return member
    return replace(member, policy=rules.policy, drain=rules.drain, unruled=rules.unruled)


def _rules_of(policy: PolicyView) -> _Rules:
    spec = find_spec(policy)
    if isinstance(spec, Finding):
        return _unruled(
            policy.name, replace(spec, message=f"policy {policy.name} cannot be read: {spec.message}")
        )
    return _Rules(policy.name, spec.drain, None)


def _unruled(policy: str, why: Finding) -> _Rules:
    message = f"The rules of its node are not known, and may keep it: {why.message}"
    return _Rules(policy, None, replace(why, message=message))
