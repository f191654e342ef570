"""The DeviceTaintRules that take the place of cordons: one for each node whose fence says so (docs/adr/0079).

A fence is written before its rule and removed before it. So the fences alone say which rules must exist, and an
operator that was killed in between is followed by one that creates or removes the rest.

Terms: docs/design/glossary.md#fence.
"""

from collections.abc import Collection

from gpusharing.planning.snapshot.actions import WriteRules
from gpusharing.planning.snapshot.views import ClusterSnapshot


def plan_rules(snapshot: ClusterSnapshot, busy: Collection[str]) -> WriteRules | None:
    """Return the writes of our DeviceTaintRules for nodes: create those that are missing although a fence needs them,
    and remove those that no fence needs or that differ from what they should be. None if there is nothing to write. A
    fence needs a rule if its field `tainted` is True.

    `busy` are the nodes that this pass writes to; their rules are left to the next pass, because the fence may change.
    The rule of a node whose fence cannot be read stays too. A rule that differs is created anew in a later pass, so
    that its creation time says since when it keeps pods off.
    """
    fenced = {name for name, node in snapshot.nodes.items() if node.fence is not None and node.fence.tainted}
    left = {name for name, node in snapshot.nodes.items() if node.fence_error} | set(busy)
    rules = [rule for rule in snapshot.taint_rules if rule.node]
    writes = WriteRules(
        create=tuple(sorted(fenced - {rule.node for rule in rules} - left)),
        remove=tuple(
            rule for rule in rules if rule.node not in left and (rule.node not in fenced or not rule.since)
        ),
    )
    return None if writes == WriteRules() else writes
