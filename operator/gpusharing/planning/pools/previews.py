"""What a held pool would disturb, for people who approve it or wait for its window: read from pods, decides nothing.

Nodes in work show their own pods. While all of a pool waits its pods are not listed, and `status.plan` could only
count nodes. The first nodes of such a pool are looked at, seldom, and a few at a time over all pools
(docs/design/drain.md#preview).
"""

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import field
from datetime import datetime, timedelta

from gpusharing.api.names import DisruptionClass
from gpusharing.planning.drain.gangs import describe_gang
from gpusharing.planning.drain.holders import scope_of
from gpusharing.planning.drain.plan import preflight
from gpusharing.planning.drain.standing import find_standings
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.snapshot.looks import LOOKS, Preview
from gpusharing.planning.snapshot.podviews import NodeWork
from gpusharing.planning.snapshot.views import ClusterSnapshot, PlanSettings, PolicyView
from gpusharing.planning.way.guard import explain_error
from gpusharing.planning.way.verdict import Verdict
from gpusharing.planning.words.blockers import Blocker
from gpusharing.planning.words.reasons import Reason
from gpusharing.planning.words.values import value

AGAIN = timedelta(minutes=5)
"""Between two looks at one node."""
MAX_NODES = 20
"""The most nodes of a pool that are looked at; `status.plan` names no more."""
HELD = frozenset(
    {
        Reason.APPROVAL_NEEDED,
        Reason.WINDOW_CLOSED,
        Reason.WINDOW_TOO_SHORT,
        Reason.INVALID_WINDOW,
        Reason.CANARY_SOAK,
        Reason.CANARY_TOO_LARGE,
        Reason.HALTED,
        Reason.PAUSED,
        Reason.FROZEN,
    }
)
"""What keeps every node of a pool from starting, whatever its pods are."""


@value
class Previews:
    """The known previews, and what the next pass needs for further ones."""

    known: Mapping[str, Preview] = field(default_factory=dict)
    """By node."""
    wants_pods: frozenset[str] = frozenset()
    """Nodes whose pods are to be listed."""
    wake: datetime | None = None
    """Look again then; None: no node waits for its first look."""


def find_previews(
    pools: Mapping[str, Pool],
    verdicts: Mapping[str, Verdict],
    snapshot: ClusterSnapshot,
    offered: AbstractSet[str],
    now: datetime,
) -> Previews:
    """What the held pools would disturb. `offered`: see `preflight`."""
    known: dict[str, Preview] = {}
    missing: list[str] = []
    for policy, verdict in _held(pools, verdicts):
        name = verdict.node
        before = _standing(snapshot.previews.get(name), policy)
        work = snapshot.work.get(name)
        if work is not None and (before is None or work.listed_at > before.at):
            try:
                known[name] = preview_of(policy, verdict, work, offered, snapshot.settings)
            except Exception as error:  # noqa: BLE001 - whatever one node holds, the others are shown (guard.py)
                why = Blocker(Reason.NODE_NOT_JUDGED, message=explain_error(error))
                known[name] = Preview(policy.uid, policy.generation, work.listed_at, blockers=(why,))
        elif before is not None:
            known[name] = before
        else:
            missing.append(name)
    return _pace(known, missing, now, timedelta(seconds=snapshot.settings.poll))


def _pace(known: Mapping[str, Preview], missing: Sequence[str], now: datetime, poll: timedelta) -> Previews:
    """The clock alone asks only for the first looks: any change of pods wakes the operator anyway."""
    old = sorted((one.at, name) for name, one in known.items() if one.at + AGAIN <= now)
    due = [*missing, *(name for _, name in old)]
    left = max(0, LOOKS - sum(now - poll < one.at for one in known.values()))
    return Previews(known, frozenset(due[:left]), now + poll if missing else None)


def _held(pools: Mapping[str, Pool], verdicts: Mapping[str, Verdict]) -> Iterator[tuple[PolicyView, Verdict]]:
    """The first nodes of each pool that are held and would have to be drained."""
    for _, pool in sorted(pools.items()):
        spec = pool.policy.spec
        if spec is None or pool.policy.deleting or not (pool.candidates or spec.rollout.paused):
            continue  # no node waits there: most pools, most of the time
        found = 0
        for member in pool.members:
            verdict = verdicts[member.node.name]
            if verdict.reason not in HELD or not verdict.disruption.cordons:
                continue
            yield pool.policy, verdict
            found += 1
            if found == MAX_NODES:
                break


def _standing(preview: Preview | None, policy: PolicyView) -> Preview | None:
    if preview is None or (preview.policy_uid, preview.generation) != (policy.uid, policy.generation):
        return None
    return preview


def preview_of(
    policy: PolicyView, verdict: Verdict, work: NodeWork, offered: AbstractSet[str], settings: PlanSettings
) -> Preview:
    """What the change of one node would disturb, by the last list of its pods. The policy has a spec."""
    assert policy.spec is not None, "a policy without a spec has no held nodes"
    drain = policy.spec.drain
    scope = scope_of(settings, all_pods=verdict.disruption is DisruptionClass.REBOOT, node=verdict.node)
    pods = find_standings(work, drain, work.listed_at, scope=scope, cordoned=False)
    leaving = (*pods.leaving, *pods.staying)
    return Preview(
        policy.uid,
        policy.generation,
        work.listed_at,
        tuple(sorted(one.pod.ref for one in leaving)),
        tuple(sorted({f"{pdb.namespace}/{pdb.name}" for one in leaving for pdb in one.budgets})),
        tuple(describe_gang(view) for view in work.gangs if not view.error),
        preflight(pods, drain, offered, work.listed_at),
    )
