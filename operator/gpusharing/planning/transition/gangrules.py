"""The drain rules of each member of a gang: those of the policy of the member's own node, even if another policy governs the node that is being changed (docs/adr/0039-a-wave-stays-within-its-policy.md)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

from gpusharing.api.policy import Drain
from gpusharing.planning.snapshot.podviews import GangView
from gpusharing.planning.snapshot.views import ClusterSnapshot
from gpusharing.planning.stack.acceptance import find_spec
from gpusharing.planning.transition.guard import find_fault
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.wanted.target import PolicyTargets

Rules: TypeAlias = tuple[str, Drain | None, Finding | None]
"""A policy, and its spec.drain or why that is unknown."""


def with_rules(
    snapshot: ClusterSnapshot,
    followed: Mapping[str, PolicyTargets | None],
    owners: Mapping[str, str],
    failed: Mapping[str, Exception],
) -> ClusterSnapshot:
    """Return the snapshot in which each member of a gang on a node with other rules has the spec.drain of its own node's policy."""
    if len(snapshot.policies) < 2 and not failed:
        return snapshot

    def find_rules(node: str) -> Rules | None:
        if (error := failed.get(node)) is not None:
            policy, why = owners.get(node, ""), find_fault(error)
        elif (terms := followed.get(node)) is not None:
            policy, spec = terms.policy.name, find_spec(terms.policy)
            if not isinstance(spec, Finding):
                return policy, spec.drain, None
            why = replace(spec, message=f"policy {policy} cannot be read: {spec.message}")
        else:
            return None
        message = (
            f"The drain rules for the pod's node are unknown and may forbid evicting the pod: {why.message}"
        )
        return policy, None, replace(why, message=message)

    ruled = {}
    for name, work in snapshot.work.items():
        own_rules = find_rules(name)
        views = [_with_rules(view, own_rules, find_rules) for view in work.gangs]
        if any(view is not before for view, before in zip(views, work.gangs, strict=True)):
            ruled[name] = replace(work, gangs=tuple(views))
    return replace(snapshot, work={**snapshot.work, **ruled}) if ruled else snapshot


def _with_rules(
    view: GangView, own_rules: Rules | None, find_rules: Callable[[str], Rules | None]
) -> GangView:
    own_drain = own_rules[1] if own_rules is not None else None
    rules = {node: find_rules(node) for node in {member.node for member in view.members}}
    others = {
        node: found
        for node, found in rules.items()
        if found is not None and found != own_rules and (found[2] is not None or found[1] != own_drain)
    }
    if not others:
        return view
    members = (
        replace(one, policy=found[0], drain=found[1], unruled=found[2]) if found else one
        for one, found in ((one, others.get(one.node)) for one in view.members)
    )
    return replace(view, members=tuple(members))
