"""What the changes of waiting nodes would disturb, for people who approve a plan or wait for it.

The pods on nodes that are being changed are listed anyway. The pods on waiting nodes are not, so `status.plan` could
only count nodes. Therefore the pods on the first waiting nodes are listed too, but seldom, and only a few at a time
over all pools (docs/design/drain.md#preview).
"""

from collections.abc import Iterator, Mapping
from dataclasses import field
from datetime import datetime, timedelta
from itertools import islice

from gpusharing.planning.drain import pdb
from gpusharing.planning.drain.gangkeepers import describe_gang
from gpusharing.planning.drain.gangs import ending_gangs, with_gangs
from gpusharing.planning.drain.holders import scope_of
from gpusharing.planning.drain.plan import preflight
from gpusharing.planning.drain.standing import find_standings
from gpusharing.planning.drain.stranded import Afterwards
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.snapshot.looks import LOOKS, Preview
from gpusharing.planning.snapshot.podviews import NodeWork
from gpusharing.planning.snapshot.views import ClusterSnapshot, PolicyView
from gpusharing.planning.transition.guard import explain_error
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.blockers import Blocker
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value

AGAIN = timedelta(minutes=5)
"""The time between two looks at one node."""
MAX_NODES = 20
"""The most nodes of a pool that are looked at. `status.plan` does not name more nodes than that."""


@value
class Previews:
    """The known previews, and what the next pass needs to make further ones."""

    known: Mapping[str, Preview] = field(default_factory=dict)
    wants_pods: frozenset[str] = frozenset()
    """The nodes whose pods the next pass must list."""
    wake: datetime | None = None
    """When to wake for the first look at nodes that have no preview yet, or None if there are none."""


def find_previews(
    pools: Mapping[str, Pool],
    verdicts: Mapping[str, Verdict],
    snapshot: ClusterSnapshot,
    afterwards: Afterwards,
    now: datetime,
) -> Previews:
    """Return what the changes of waiting nodes would disturb, and the nodes whose pods must be listed next.

    A preview is computed anew whenever the node's pods were listed, even if that LIST failed; otherwise it is kept while
    the policy's spec has the same version. Nodes with known blockers get no LIST for a first preview.
    """
    known: dict[str, Preview] = {}
    missing: list[str] = []
    ours: dict[str, datetime] = {}
    for policy, verdict in _to_go(pools, verdicts):
        name = verdict.node
        before = snapshot.memory.previews.get(name)
        if before is not None and before.version != policy.version:
            before = None
        work = snapshot.work.get(name)
        if work is not None and (before is None or work.listed_at > before.at):
            try:
                known[name] = preview_of(policy, verdict, work, afterwards, snapshot)
            except Exception as error:  # noqa: BLE001 - one node must not hide the others (guard.py)
                why = Blocker(Reason.NODE_NOT_JUDGED, message=explain_error(error))
                known[name] = Preview(policy.version, work.listed_at, blockers=(why,))
        elif before is not None:
            known[name] = before
        elif not verdict.blockers:
            missing.append(name)
        if name in known and not verdict.blockers:  # looks.py has the pods of blocked nodes listed
            ours[name] = known[name].at
    poll = timedelta(seconds=snapshot.settings.poll)
    old = sorted((at, name) for name, at in ours.items() if at + AGAIN <= now)
    due = [*missing, *(name for _, name in old)]
    left = max(0, LOOKS - sum(now - poll < at for at in ours.values()))
    # Any change to pods starts a pass anyway, so an old preview is no reason to wake.
    return Previews(known, frozenset(due[:left]), now + poll if missing else None)


def _to_go(
    pools: Mapping[str, Pool], verdicts: Mapping[str, Verdict]
) -> Iterator[tuple[PolicyView, Verdict]]:
    for _, pool in sorted(pools.items()):
        if pool.policy.spec is None or pool.policy.deleting:
            continue
        waiting = (verdicts[name] for name in pool.to_go)
        yield from islice(
            ((pool.policy, verdict) for verdict in waiting if not verdict.phase.in_flight), MAX_NODES
        )


def preview_of(
    policy: PolicyView, verdict: Verdict, work: NodeWork, afterwards: Afterwards, snapshot: ClusterSnapshot
) -> Preview:
    """Return what the change of one node would disturb, according to the last LIST of its pods. The policy must have a spec.

    Pods that must not be evicted, and gangs whose members cannot be listed, show only as blockers.
    """
    assert policy.spec is not None, "only a policy with a spec has a preview"
    if not verdict.disruption.cordons:
        return Preview(policy.version, work.listed_at)
    drain, node = policy.spec.drain, snapshot.nodes.get(verdict.node)
    scope = scope_of(node, snapshot.settings, snapshot.stack, verdict.disruption)
    pods = find_standings(work, drain, work.listed_at, scope=scope, cordoned=False)
    leaving = (*pods.leaving, *pods.remaining)
    blockers = preflight(pods, drain, afterwards, work.listed_at)
    return Preview(
        policy.version,
        work.listed_at,
        tuple(sorted(one.pod.ref for one in leaving)),
        tuple(sorted({pdb.ref(budget) for one in leaving for budget in one.budgets})),
        tuple(describe_gang(view) for view in ending_gangs(work, scope) if not view.error),
        with_gangs(blockers, work, drain, now=work.listed_at, scope=scope),
    )
