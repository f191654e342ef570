"""What the changes of waiting nodes would disturb, for people who approve a plan or wait for it.

The pods on nodes that are being changed are listed anyway. The pods on waiting nodes are not, so `status.plan` could
only count nodes. Therefore the pods on the first waiting nodes are listed too, but seldom, and only a few at a time
over all pools (docs/design/drain.md#preview).

Terms: docs/design/glossary.md#look, docs/design/glossary.md#gang.
"""

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import field
from datetime import datetime, timedelta
from itertools import islice

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
"""The most nodes of a pool that are looked at."""


@value
class Previews:
    """The known previews, and what the next pass needs to make further ones."""

    known: Mapping[str, Preview] = field(default_factory=dict)
    wants_pods: frozenset[str] = frozenset()
    wake: datetime | None = None
    """When to wake for the first look at nodes that have no preview yet, or None if there are none."""


def find_previews(
    pools: Mapping[str, Pool],
    verdicts: Mapping[str, Verdict],
    snapshot: ClusterSnapshot,
    afterwards: Afterwards,
    now: datetime,
) -> Previews:
    """Return what the changes of waiting nodes would disturb, and the nodes whose pods must be listed next."""
    known: dict[str, Preview] = {}
    missing: list[str] = []
    looked_at: set[str] = set()
    for policy, verdict in _to_go(pools, verdicts):
        name = verdict.node
        before = _standing(snapshot.memory.previews.get(name), policy)
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
        if name in known and verdict.blockers:
            looked_at.add(name)
    return _pace(known, missing, looked_at, now, timedelta(seconds=snapshot.settings.poll))


def _pace(
    known: Mapping[str, Preview],
    missing: Sequence[str],
    looked_at: AbstractSet[str],
    now: datetime,
    poll: timedelta,
) -> Previews:
    ours = {name: one.at for name, one in known.items() if name not in looked_at}
    old = sorted((at, name) for name, at in ours.items() if at + AGAIN <= now)
    due = [*missing, *(name for _, name in old)]
    left = max(0, LOOKS - sum(now - poll < at for at in ours.values()))
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


def _standing(preview: Preview | None, policy: PolicyView) -> Preview | None:
    return None if preview is None or preview.version != policy.version else preview


def preview_of(
    policy: PolicyView, verdict: Verdict, work: NodeWork, afterwards: Afterwards, snapshot: ClusterSnapshot
) -> Preview:
    """Return what the change of one node would disturb, according to the last LIST of its pods."""
    assert policy.spec is not None, "only a policy with a spec has a preview"
    if not verdict.disruption.cordons:
        return Preview(policy.version, work.listed_at)
    drain = policy.spec.drain
    node = snapshot.nodes.get(verdict.node)
    scope = scope_of(node, snapshot.settings, snapshot.stack, verdict.disruption)
    pods = find_standings(work, drain, work.listed_at, scope=scope, cordoned=False)
    leaving = (*pods.leaving, *pods.remaining)
    blockers = preflight(pods, drain, afterwards, work.listed_at)
    return Preview(
        policy.version,
        work.listed_at,
        tuple(sorted(one.pod.ref for one in leaving)),
        tuple(sorted({f"{pdb.namespace}/{pdb.name}" for one in leaving for pdb in one.budgets})),
        tuple(describe_gang(view) for view in ending_gangs(work, scope) if not view.error),
        with_gangs(blockers, work, drain, now=work.listed_at, scope=scope),
    )
