"""Which policy speaks for each member of a gang: that of the node on which it runs, also where that is another one than
that of the node in work. A policy that cannot be read, and a node that cannot be judged, may forbid anything.

Specification: docs/adr/0039-a-wave-stays-within-its-policy.md.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from gpusharing.planning.snapshot.podviews import GangMember, GangView
from gpusharing.planning.snapshot.views import ClusterSnapshot, PolicyView
from gpusharing.planning.stack.acceptance import find_spec
from gpusharing.planning.way.guard import UnjudgedPolicyError, find_fault
from gpusharing.planning.way.nodefacts import NodeFacts
from gpusharing.planning.words.findings import Finding


class _Rules(NamedTuple):
    """Whose rules hold on each node, and where nobody can tell."""

    snapshot: ClusterSnapshot
    facts: Mapping[str, NodeFacts]
    owners: Mapping[str, str]
    failed: Mapping[str, Exception]

    def on(self, node: str) -> PolicyView | Finding | None:
        """The policy that a node follows, or why it is not known; None: it follows none."""
        error = self.failed.get(node)
        if error is None:
            known = self.facts.get(node)
            return known.policy if known is not None else None
        if isinstance(error, UnjudgedPolicyError) or node not in self.owners:
            return find_fault(error)
        fence, policies = self.snapshot.nodes[node].fence, {one.name: one for one in self.snapshot.policies}
        return policies.get(fence.policy if fence is not None else self.owners[node])


def with_rules(
    snapshot: ClusterSnapshot,
    facts: Mapping[str, NodeFacts],
    owners: Mapping[str, str],
    failed: Mapping[str, Exception],
) -> ClusterSnapshot:
    """The same, and each member of a gang has the spec.drain of the policy that its own node follows, where that says
    something else than the one of the node in work, or why nobody can tell what it says.

    `owners` has the policy of each node by its selectors, `failed` why nodes cannot be judged.
    """
    if len(snapshot.policies) < 2 and not failed:
        return snapshot
    rules, ruled = _Rules(snapshot, facts, owners, failed), {}
    for name, work in snapshot.work.items():
        known = facts.get(name)
        views = [_with_rules(view, known.policy if known is not None else None, rules) for view in work.gangs]
        if any(view is not before for view, before in zip(views, work.gangs, strict=True)):
            ruled[name] = replace(work, gangs=tuple(views))
    return replace(snapshot, work={**snapshot.work, **ruled}) if ruled else snapshot


def _with_rules(view: GangView, mine: PolicyView | None, rules: _Rules) -> GangView:
    others = {node: rules.on(node) for node in {member.node for member in view.members}}
    members = tuple(
        _ruled(one, others[one.node], mine, rules.owners.get(one.node, "")) for one in view.members
    )
    return view if members == view.members else replace(view, members=members)


def _ruled(
    member: GangMember, policy: PolicyView | Finding | None, mine: PolicyView | None, owner: str
) -> GangMember:
    if isinstance(policy, Finding):
        return _unruled(member, owner, policy)
    if policy is None or policy is mine:
        return member
    spec = find_spec(policy)
    if isinstance(spec, Finding):
        why = replace(spec, message=f"policy {policy.name} cannot be read: {spec.message}")
        return _unruled(member, policy.name, why)
    ours = mine.spec.drain if mine is not None and mine.spec is not None else None
    return member if spec.drain == ours else replace(member, policy=policy.name, drain=spec.drain)


def _unruled(member: GangMember, policy: str, why: Finding) -> GangMember:
    message = f"The rules of its node are not known, and may keep it: {why.message}"
    return replace(member, policy=policy, unruled=replace(why, message=message))
