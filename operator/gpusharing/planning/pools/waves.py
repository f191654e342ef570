"""Which nodes of a pool share a gang and therefore start and return to service together, as one wave?

Otherwise another pod would take the GPUs of half a gang (docs/design/drain.md#waves). The fences record the wave's id,
so the wave survives a restart.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from gpusharing.api.names import Phase
from gpusharing.api.times import parse_duration
from gpusharing.planning.drain.plan import crowding, due_under
from gpusharing.planning.pools.candidates import (
    Candidate,
    PassState,
    Selection,
    blocked,
    find_mates,
    look_at,
    looking,
    op_of,
    start,
)
from gpusharing.planning.pools.holds import wait_for
from gpusharing.planning.snapshot.actions import Release, UpdateFence
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView, PolicyView
from gpusharing.planning.transition.cases import Member
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.findings import Finding, merge
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.reasons import Reason

MAX_MATES = 20
"""The most nodes of a wave that a fence records as left behind."""


# --- which nodes change together -------------------------------------------------------------------------------


def find_waves(order: Sequence[str], mates: Mapping[str, frozenset[str]]) -> dict[str, tuple[str, ...]]:
    """Return the sets of nodes that share gangs, directly or through others, by their first node in `order`."""
    places = {name: place for place, name in enumerate(order)}
    linked: dict[str, set[str]] = {}
    for name, others in mates.items():
        for other in others & places.keys() if name in places else ():
            linked.setdefault(name, set()).add(other)
            linked.setdefault(other, set()).add(name)
    waves: dict[str, tuple[str, ...]] = {}
    taken: set[str] = set()
    for name in sorted(linked, key=places.__getitem__):
        if name in taken:
            continue
        wave, edge = {name}, {name}
        while edge:
            edge = set().union(*(linked[one] for one in edge)) - wave
            wave |= edge
        taken |= wave
        waves[name] = tuple(sorted(wave, key=places.__getitem__))
    return waves


def group(candidates: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    """Return the waves among the candidates whose changes cordon their nodes, by their first node."""
    mates = {
        candidate.case.node.name: others
        for candidate in candidates
        if candidate.pods is not None and candidate.cordons and (others := find_mates(candidate.case))
    }
    if not mates:
        return {}
    cordoning = {candidate.case.node.name: candidate for candidate in candidates if candidate.cordons}
    waves = find_waves(tuple(cordoning), mates)
    return {first: [cordoning[name] for name in names] for first, names in waves.items()}


def find_following(policy: PolicyView, members: Iterable[Member], candidates: Iterable[NodeView]) -> frozenset[str]:
    """Return the names of the candidates whose gang mates have started without them in this revision."""
    begun: set[str] = set()
    proofs = []
    for one in members:
        if one.node.fence is not None:
            begun.update(one.node.fence.mates)
        if (proof := one.node.verified) is not None and proof.mates and proof.version == policy.version:
            proofs.append(proof)
    following = set()
    for node in candidates if begun or proofs else ():
        changed = node.verified.changed_at if node.verified is not None else None
        left_by = (proof.changed_at for proof in proofs if node.name in proof.mates)
        if node.name in begun or any(not changed or not at or changed < at for at in left_by):
            following.add(node.name)
    return frozenset(following)


# --- how they start ----------------------------------------------------------------------------------------------


def try_wave(
    wave: Sequence[Candidate], room: int, most: int, full: Finding, *, state: PassState, chosen: Selection
) -> int:
    """Start all nodes of a wave without known blockers, or none, and put their verdicts into `chosen`.

    Return how many slots the wave takes, or reserves until it can start. If more than `most` can never change together,
    only the first `most` start. Blocked nodes are left behind, but listed once more before if `most` has room for them.
    """
    # Nodes whose pods were listed come first, before the cost decides: only a LIST shows the real cost of a gang. If
    # cost came first, each pass of a wave that cannot start as a whole would ask for the pods of yet another node, and
    # none would ever start.
    free = [candidate for candidate in wave if candidate.look is None]
    free.sort(key=lambda candidate: (*candidate.order[:3], candidate.pods is None))
    free = free[: max(1, most)]
    stale = [candidate for candidate in wave if candidate.look is not None and candidate.pods is None]
    stale = stale[: max(0, most - len(free))]
    going = {candidate.case.node.name for candidate in free}
    pods = [candidate.pods for candidate in free if candidate.pods is not None]
    unknown = len(pods) < len(free) or (not state.crowd_known and any(map(due_under, pods)))
    crowded = () if unknown else merge(one for found in pods for one in crowding(found, state.crowd))
    waits = unknown or bool(crowded) or room < len(free)
    again = state.due if waits or not free else {candidate.case.node.name for candidate in stale}
    for candidate in wave:
        case, look, listed = candidate.case, candidate.look, candidate.pods
        if look is not None:
            chosen.put(case, blocked(case, look, state.now, again=listed is None and case.node.name in again), look)
        elif case.node.name not in going:
            chosen.put(case, wait_for(case, full, for_slot=True))
        elif crowded and listed is not None:
            # Such a wait takes seconds, so the pods of the wave are listed again at every poll.
            look = look_at(case, None, listed, crowded)
            chosen.put(case, blocked(case, look, state.now, again=True))
        elif waits and not unknown:
            gang = next((view.gang.ref for view in case.gangs), "a gang")
            message = (
                f"{gang} runs on {len(free)} nodes, which change together so that it is interrupted only once;"
                f" waiting for {len(free)} slots"
            )
            verdict = case.verdict(Phase.PENDING, Reason.BUDGET_FULL, message, candidate=True)
            chosen.put(case, replace(verdict, wants_pods=True))
        elif waits or stale:
            chosen.put(case, looking(case))
    if free and not waits and not stale:
        names = (candidate.case.node.name for candidate in wave)
        left = tuple(name for name in names if name not in going)[:MAX_MATES]
        resumed = (state.claimed_waves.get(candidate.case.node.name) for candidate in free)
        anew = f"{op_of(free[0].case)}.{free[0].case.node.name}" if len(free) > 1 else ""
        wave_id = next(filter(None, resumed), anew)
        for candidate, found in zip(free, pods, strict=True):
            # Within a wave, the server decides which pod leaves first under a budget.
            chosen.put(candidate.case, *start(candidate, found, state, wave_id, left))
    return min(room, len(free))


# --- how they return to service --------------------------------------------------------------------------------


def hold_together(members: Mapping[str, Member], snapshot: ClusterSnapshot, now: datetime) -> dict[str, Member]:
    """Return the proven nodes that wait for the others of their wave, with their new verdicts, by name.

    They wait no longer than `timeouts.verification` after the first proof, and not for nodes that failed or are rolled
    back.
    """
    fences, waves = snapshot.fences, defaultdict[str, list[str]](list)
    for name, fence in fences.items():
        in_wave = name in members and fence.wave and fence.stage != "yielded"
        if in_wave and fence.node_uid == snapshot.nodes[name].uid:
            waves[fence.wave].append(name)
    policies = {policy.name: policy for policy in snapshot.policies} if waves else {}
    waiting: dict[str, Member] = {}
    for wave in waves.values():
        verdicts = {name: members[name].verdict for name in wave}
        ends = {name: any(isinstance(one, Release) for one in verdicts[name].actions) for name in wave}
        others = sorted(name for name in wave if not ends[name])
        if not others or any(verdicts[name].phase is Phase.FAILED or fences[name].rolls_back for name in others):
            continue
        proven = [name for name in wave if returns_proven(verdicts[name])]
        known = (policy for name in proven if (policy := policies.get(fences[name].policy)) is not None)
        policy = next(known, None)
        if policy is None or policy.spec is None:
            continue
        first = min((moment for name in proven if (moment := fences[name].proven) is not None), default=now)
        until = first + parse_duration(policy.spec.rollout.timeouts.verification)
        for name in proven if until > now else ():
            verdict, fence = verdicts[name], fences[name]
            actions = tuple(action for action in verdict.actions if not isinstance(action, Release))
            if fence.proven is None:
                actions = (*actions, UpdateFence(snapshot.nodes[name], replace(fence, proven=now)))
            verdict = replace(
                verdict,
                reason=Reason.WAITS_FOR_WAVE,
                message=f"{verdict.message}; the node returns to service together with {some(others)}, which ran the"
                " same gang",
                actions=actions,
                wake=until,
                deadline=until,
                keeper=f"node/{others[0]}",
            )
            waiting[name] = replace(members[name], verdict=verdict)
    return waiting


def returns_proven(verdict: Verdict) -> bool:
    """Whether this pass releases the node with its new layout proven, even if a cordon stays."""
    given = (action.verified for action in verdict.actions if isinstance(action, Release))
    return any(record is not None and not record.rolled_back for record in given)
