"""Which candidates of a pool start now, and what the others wait for. pool.py explains the limits."""

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from itertools import chain, islice

from gpusharing.planning.pools.canary import find_canary, proven_at, wait_for_canaries
from gpusharing.planning.pools.candidates import (
    Candidate,
    Order,
    Queue,
    Selection,
    find_candidate,
    try_start,
)
from gpusharing.planning.pools.holds import find_hold, wait_for
from gpusharing.planning.pools.keepers import is_for_a_person, name_keepers
from gpusharing.planning.pools.ledger import LAST_PLACE, PassState, find_mates
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.pools.waves import find_following, group, try_wave
from gpusharing.planning.snapshot.looks import FIRST_LOOKS
from gpusharing.planning.transition.attempts import is_tried_again
from gpusharing.planning.transition.guard import not_judged
from gpusharing.planning.transition.startgate import is_newcomer
from gpusharing.planning.transition.verdict import NodeCase
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.planning.vocabulary.reasons import Reason

LOOKAHEAD = 2
"""How many candidates beyond the free slots have their pods listed, so that blocked nodes do not stop the pool."""


def select(
    pool: Pool, queue: Queue, cap: int, state: PassState, past: AbstractSet[Reason] = frozenset()
) -> Selection:
    """Return which candidates of a pool start, and what the others wait for. Starts are recorded in `state`.

    `queue` must have all candidates, and the pool its hours. `cap` is how many more nodes the operator-wide cap allows. Holds whose reason is in `past` have been checked already.
    """
    policy = pool.policy
    if not pool.candidates or policy.spec is None:
        return Selection()
    if (hold := find_hold(pool, past)) is None:
        return _choose(pool, queue, cap, state)
    free: list[NodeCase] = []
    match hold.reason:  # some holds let a few nodes through
        case Reason.HALTED:  # failed nodes that a person wants tried again
            free = [one for one in pool.candidates if is_tried_again(one.node, policy)]
        case Reason.CANARY_TOO_LARGE:  # newcomers, from which no pod is evicted
            free = [one for one in pool.candidates if is_newcomer(one.node, one.gpunode)]
        case Reason.CANARY_NOT_SERVING | Reason.CANARY_SOAK:  # canaries that have drifted
            free = [one for one in pool.candidates if proven_at(one.node, policy) is not None]
    if not free:
        return Selection(waiting=[(hold, False, pool.candidates)])
    names = {one.node.name for one in free}
    others = [one for one in pool.candidates if one.node.name not in names]
    chosen = select(replace(pool, candidates=free), queue, cap, state, past | {hold.reason})
    chosen.waiting.append((hold, False, others))
    return chosen


def _choose(pool: Pool, queue: Queue, cap: int, state: PassState) -> Selection:
    left, chosen, listed = _find_room(pool, cap, state), Selection(), 0
    candidates = _in_order(pool, queue, state, left, chosen)
    waves = group(candidates) if left.room > 0 else {}
    for candidate in candidates:
        case, newcomer, look = candidate.case, candidate.newcomer, candidate.look
        if case.node.name in chosen.verdicts:
            continue  # its verdict was given together with its wave
        if left.room > 0 and (wave := waves.get(case.node.name)):
            taken = try_wave(wave, left.room, left.most, left.full, state=state, chosen=chosen)
            left.room, left.cap = left.room - taken, left.cap - taken
            continue
        slots = left.cap if newcomer else left.room
        beyond = left.lookahead is None or listed >= slots + left.lookahead
        if slots <= 0 or (candidate.needs_list and beyond):
            verdict = wait_for(case, left.capped if newcomer else left.full, for_slot=True)
        else:
            verdict, look = try_start(candidate, state)
            listed += candidate.needs_list and verdict.wants_pods
        if chosen.put(case, verdict, look):
            left.cap -= 1
            left.room = min(left.room - (not newcomer), left.cap)
        elif candidate.follows and not newcomer and look is None:
            left.room -= 1  # nobody takes the slot of the rest of a gang while its pods are looked at
    if state.places is not None:
        state.places.open.difference_update(chosen.claims)
    return chosen


@dataclass(slots=True)
class Room:
    """How many candidates of a pool may still start or have their pods listed in this pass."""

    room: int
    """How many nodes may start now, newcomers excluded."""
    most: int
    """The most nodes that can ever start together, newcomers excluded."""
    cap: int
    """How many nodes may start now, newcomers included."""
    full: Finding
    """Why nodes wait for which there is no room."""
    capped: Finding
    """Why newcomers wait for which there is no room."""
    lookahead: int | None
    """How many candidates beyond the room have their pods listed, or None if no further pods are listed now."""


def _find_room(pool: Pool, cap: int, state: PassState) -> Room:
    why, keeper = name_keepers(state.keepers)
    message = f"the cap on nodes in flight (chart value operator.maxInFlight) has been reached{why}; waiting for a slot"
    capped = full = Finding(Reason.BUDGET_FULL, message, keeper=keeper)
    most = min(pool.limit - pool.used, cap)
    if cap >= pool.limit - pool.used:
        why, keeper = name_keepers(pool.keepers)
        message = (
            f"spec.rollout.maxUnavailable allows {pool.limit} of {counted(pool.total, 'node')} to be unavailable at"
            f" once{why}; waiting for a slot"
        )
        # Nothing is changing, and no node that occupies a slot is returned to service by itself.
        stands = pool.used >= pool.limit and not pool.moving and all(map(is_for_a_person, pool.keepers))
        full = Finding(Reason.BUDGET_FULL, message, keeper=keeper, stands=stands)
    room, most, canaries = max(0, most), most + pool.moving, find_canary(pool)
    if isinstance(canaries, Finding) and canaries.reason is Reason.CANARY_TOO_LARGE:
        # Only newcomers pass that hold, and one of them may have pods nevertheless, so it needs room.
        room, most, full = 0, 0, canaries
    if isinstance(canaries, int):
        waits = wait_for_canaries(pool)
        if canaries < cap:
            cap, capped = canaries, waits
        if canaries < room:
            # A larger gang does not wait for its canaries: it may consist of nothing else.
            room, most, full = canaries, canaries, waits
    spare = None if state.places is None else state.places.spare(pool.candidates)
    if spare is not None:
        most = min(most, max(1, spare + pool.opening))
        if spare < room:
            room, full = spare, Finding(Reason.BUDGET_FULL, LAST_PLACE)
    return Room(room, most, cap, full, capped, None if state.recent >= FIRST_LOOKS else LOOKAHEAD)


def _in_order(pool: Pool, queue: Queue, state: PassState, left: Room, chosen: Selection) -> list[Candidate]:
    """Return the candidates that may start or have their pods listed, in the order in which they start. The others wait in `chosen`."""
    policy, cases = pool.policy, {case.node.name: case for case in pool.candidates}
    following = find_following(policy, pool.members, (case.node for case in pool.candidates))
    unknown = (cases.keys() & queue.unlisted.keys()) - state.looks.keys() - following

    def find(names: Iterable[str]) -> Iterator[tuple[Order, Candidate]]:
        for name in names:
            try:
                candidate = find_candidate(cases[name], policy, state, follows=name in following)
                yield candidate.order, candidate
            except Exception as error:  # noqa: BLE001 - one node must not stop the others (guard.py)
                chosen.put(cases[name], not_judged(cases[name].node, policy.name, error))

    ranked = list(find(name for name in cases if name not in unknown))
    listed = (candidate.case for _, candidate in ranked if candidate.pods is not None)
    looked_at = unknown.intersection(chain.from_iterable(map(find_mates, listed)))
    looks = 0 if left.lookahead is None or left.room <= 0 else left.room + left.lookahead
    looked_at.update(islice(filter(unknown.__contains__, queue.unlisted), looks))
    ranked += find(sorted(looked_at))
    rest = [case for name, case in cases.items() if name in unknown and name not in looked_at]
    chosen.waiting.append((left.full, True, rest))
    return [candidate for _, candidate in sorted(ranked, key=lambda row: row[0])]
