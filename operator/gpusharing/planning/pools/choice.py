"""Which nodes start in this pass, within the allowance of each pool and the operator-wide cap?"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain, islice

from gpusharing.api.names import Phase
from gpusharing.planning.drain.stranded import Afterwards
from gpusharing.planning.pools.candidates import (
    LAST_PLACE,
    Candidate,
    Order,
    PassState,
    Selection,
    Waiting,
    find_candidate,
    find_mates,
    find_unlisted,
    op_of,
    spare,
    stand,
    try_start,
)
from gpusharing.planning.pools.holds import (
    find_canary,
    find_capped,
    find_full,
    find_hold,
    proven_at,
    wait_for,
    wait_for_canaries,
)
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.pools.waves import find_following, group, try_wave
from gpusharing.planning.pools.writes import claim_size
from gpusharing.planning.snapshot.memo import Memo
from gpusharing.planning.snapshot.memory import FIRST_LOOKS, Look
from gpusharing.planning.snapshot.records import LEASE_ROOM, Claim
from gpusharing.planning.snapshot.views import ClusterSnapshot
from gpusharing.planning.transition.attempts import is_tried_again
from gpusharing.planning.transition.cases import Member, not_judged
from gpusharing.planning.transition.requests import with_gpunode
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason

LONGEST_CLAIM = 1300
"""How many characters a claim has at most: the names of a node, which the wave repeats, and of a policy have 253."""
NO_SPACE = Finding(
    Reason.BUDGET_FULL,
    f"the leader's Lease has no room for another claim, because its annotations may have {LEASE_ROOM // 1024} KiB;"
    " waiting for a slot",
)
LOOKAHEAD = 2
"""How many candidates beyond the free slots have their pods listed. With them, blocked nodes do not stop the pool."""


def select(
    pool: Pool, unlisted: Sequence[str], cap: int, state: PassState, past: AbstractSet[Reason] = frozenset()
) -> Selection:
    """Return which candidates of a pool start, and what the others wait for. Starts are recorded in `state`.

    `unlisted` are those of `find_unlisted`; the pool must have its hours. Holds whose reason is in `past` have been checked already.
    """
    policy = pool.policy
    if not pool.candidates or policy.spec is None:
        return Selection()
    if (hold := find_hold(pool, past)) is None:
        return _choose(pool, unlisted, cap, state)
    exempt: list[NodeCase] = []
    match hold.reason:  # any other hold exempts no node
        case Reason.HALTED:  # failed nodes that a person wants tried again
            exempt = [one for one in pool.candidates if is_tried_again(one.node, policy)]
        case Reason.CANARY_TOO_LARGE:  # newcomers, from which no pod is evicted
            exempt = [one for one in pool.candidates if one.newcomer]
        case Reason.CANARY_NOT_SERVING | Reason.CANARY_SOAK:  # canaries that have drifted
            exempt = [one for one in pool.candidates if proven_at(one.node, policy) is not None]
    if not exempt:
        return Selection(waiting=[Waiting(hold, for_slot=False, cases=pool.candidates)])
    names = {one.node.name for one in exempt}
    others = [one for one in pool.candidates if one.node.name not in names]
    chosen = select(replace(pool, candidates=exempt), unlisted, cap, state, past | {hold.reason})
    chosen.waiting.append(Waiting(hold, for_slot=False, cases=others))
    return chosen


@dataclass(slots=True)
class Room:
    """How many more nodes of a pool may start in this pass, and what the others wait for."""

    slots: int
    """How many may start now. A newcomer needs no slot, and takes none."""
    most: int
    """How many could ever start together, with the slots that become free by themselves."""
    full: Finding
    """What a node without a slot waits for."""
    cap: int
    """How many may start now, newcomers included."""
    capped: Finding
    """What a newcomer beyond the cap waits for."""


def _find_room(pool: Pool, cap: int, state: PassState) -> Room:
    """`cap` is how many nodes the operator-wide cap still lets start."""
    unused, canaries = pool.limit - pool.used, find_canary(pool)
    slots, full = min(unused, cap), find_full(pool) if cap >= unused else state.capped
    room = Room(max(0, slots), slots + pool.moving, full, cap, state.capped)
    if isinstance(canaries, Finding) and canaries.reason is Reason.CANARY_TOO_LARGE:
        # Only newcomers pass that hold. One that has pods nevertheless needs a slot, and finds none.
        room.slots, room.most, room.full = 0, 0, canaries
    if isinstance(canaries, int):
        waits = wait_for_canaries(pool)
        if canaries < room.cap:
            room.cap, room.capped = canaries, waits
        if canaries < room.slots:
            # A larger gang does not wait for its canaries: it may consist of nothing else.
            room.slots, room.most, room.full = canaries, canaries, waits
    if (left := spare(state.places, pool.candidates)) is not None:
        room.most = min(room.most, max(1, left + pool.opening))
        if left < room.slots:
            room.slots, room.full = left, Finding(Reason.BUDGET_FULL, LAST_PLACE)
    return room


def _choose(pool: Pool, unlisted: Sequence[str], cap: int, state: PassState) -> Selection:
    chosen, room, listed = Selection(), _find_room(pool, cap, state), 0
    lists = state.recent < FIRST_LOOKS
    looks = room.slots + LOOKAHEAD if lists and room.slots > 0 else 0
    candidates = _in_order(pool, unlisted, state, looks, room.full, chosen)
    waves = group(candidates) if room.slots > 0 else {}
    for candidate in candidates:
        case, newcomer, look = candidate.case, candidate.newcomer, candidate.look
        if case.node.name in chosen.verdicts:
            continue  # its verdict was given together with its wave
        if room.slots > 0 and (wave := waves.get(case.node.name)):
            taken = try_wave(wave, room.slots, room.most, room.full, state=state, chosen=chosen)
            room.slots, room.cap = room.slots - taken, room.cap - taken
            continue
        free = room.cap if newcomer else room.slots
        beyond = not lists or listed >= free + LOOKAHEAD
        if free <= 0 or (candidate.needs_list and beyond):
            verdict = wait_for(case, room.capped if newcomer else room.full, for_slot=True)
        elif look is not None and candidate.pods is None:
            chosen.looks[case.node.name] = look
            chosen.standing[case.node.name] = case, look, case.node.name in state.due
            continue
        else:
            verdict, look = try_start(candidate, state)
            listed += candidate.needs_list and verdict.wants_pods
        if chosen.put(case, verdict, look):
            room.cap -= 1
            room.slots = min(room.slots - (not newcomer), room.cap)
        elif candidate.follows and not newcomer and look is None:
            room.slots -= 1  # nobody takes the slot of the rest of a gang while its pods are looked at
    if state.places is not None:
        state.places.difference_update(chosen.claims)
    return chosen


def _in_order(
    pool: Pool, unlisted: Sequence[str], state: PassState, looks: int, full: Finding, chosen: Selection
) -> list[Candidate]:
    """Return the candidates that may start or have their pods listed, in order. The others wait in `chosen`.

    At most `looks` are new to a LIST.
    """
    policy, cases = pool.policy, {case.node.name: case for case in pool.candidates}
    following = find_following(policy, pool.members, (case.node for case in pool.candidates))
    unknown = (cases.keys() & unlisted) - state.looks.keys() - following

    def find(names: Iterable[str]) -> Iterator[tuple[Order, Candidate]]:
        for name in names:
            try:
                candidate = find_candidate(cases[name], state, follows=name in following)
                yield candidate.order, candidate
            except Exception as error:  # noqa: BLE001 - one node must not stop the others
                chosen.put(cases[name], not_judged(cases[name].node, policy.name, error))

    ranked = list(find(name for name in cases if name not in unknown))
    listed = (candidate.case for _, candidate in ranked if candidate.pods is not None)
    looked_at = unknown.intersection(chain.from_iterable(map(find_mates, listed)))
    looked_at.update(islice(filter(unknown.__contains__, unlisted), looks))
    ranked += find(sorted(looked_at))
    rest = [case for name, case in cases.items() if name in unknown and name not in looked_at]
    chosen.waiting.append(Waiting(full, for_slot=True, cases=rest))
    return [candidate for _, candidate in sorted(ranked, key=lambda row: row[0])]


MOST_VAIN = 60
"""How many passes without progress, while nodes wait, are a fault of the planner: looks lead to starts or blockers."""


def choose(
    snapshot: ClusterSnapshot,
    now: datetime,
    pools: Mapping[str, Pool],
    members: Mapping[str, Member],
    afterwards: Afterwards,
    *,
    reserved: int,
    space: int,
    memo: Memo,
) -> tuple[Selection, bool]:
    """Let every pool choose its next nodes, in the order of the policies' names.

    Also return whether the coming evictions on all nodes in flight are known; while they are not, candidates with a pod
    that a budget guards wait. `reserved` slots of the operator-wide cap are kept, and `space` characters of the Lease
    are left for claims.
    """
    chosen = Selection()
    waiting = [pool for _, pool in sorted(pools.items()) if pool.candidates]
    if not waiting:
        memo.each(find_unlisted, ())  # so that the memo drops what it has of nodes that waited before
        _find_waits(chosen, memo)
        return chosen, True
    failed: dict[str, Exception] = {}
    rows = ((pool.policy.name, (tuple(pool.candidates),)) for pool in waiting)
    unlisted = memo.each(find_unlisted, rows, failed=failed)
    in_flight = {name for name, fence in snapshot.fences.items() if fence.stage != "yielded"}
    looked_at = [
        case
        for pool in waiting
        for case in pool.candidates
        if case.node.name in snapshot.memory.looks and (pool.limit > pool.used or case.newcomer)
    ]
    state = PassState.of(snapshot, now, afterwards, looked_at)
    capped = find_capped(snapshot, members, reserved=reserved)
    for name in sorted(in_flight):
        if (look := state.add_in_flight(snapshot, members[name])) is not None:
            chosen.looks[name] = look
    for pool in waiting:
        started = in_flight | chosen.claims.keys()
        cap = snapshot.settings.max_in_flight - len(started) - reserved
        left = space - sum(claim_size(name, claim) for name, claim in chosen.claims.items())
        fitting = _count_fitting(pool, cap, left)
        if not started and not reserved:
            fitting = max(1, fitting)  # the server decides; otherwise none would ever start
        cap, state.capped = (cap, capped) if cap <= fitting else (fitting, NO_SPACE)
        try:
            if (error := failed.get(pool.policy.name)) is not None:
                raise error
            chosen.add(select(pool, unlisted[pool.policy.name], cap, state))
        except Exception as error:  # noqa: BLE001 - an error in one pool must not stop the others
            for case in pool.candidates:
                chosen.put(case, not_judged(case.node, pool.policy.name, error))
    chosen.verdicts |= _find_waits(chosen, memo)
    for case in (case for pool in waiting for case in pool.candidates):
        # The few candidates whose verdict from before the choice has actions need that write to their GPUNode still.
        if members[case.node.name].verdict.actions:
            chosen.verdicts[case.node.name] = with_gpunode(chosen.verdicts[case.node.name], case)
    return chosen, state.crowd_known


def _count_fitting(pool: Pool, cap: int, space: int) -> int:
    """Return how many claims of the pool's candidates, each as long as the longest can become, fit into `space`."""
    if cap * LONGEST_CLAIM <= space:
        return cap
    first = max(pool.candidates, key=lambda case: len(case.node.name))
    name, op = first.node.name, op_of(first)
    version = pool.policy.version
    return max(0, space // claim_size(name, Claim(first.node.uid, first.owner_name, op, f"{op}.{name}", version)))


def _find_waits(chosen: Selection, memo: Memo) -> dict[str, Verdict]:
    """Return the verdicts of the candidates that wait or that their last look blocks, which mostly stay the same."""
    waits: dict[str, tuple[Finding, bool]] = {}
    cases = {name: case for name, (case, _, _) in chosen.standing.items()}
    for number, (why, for_slot, waiting) in enumerate(chosen.waiting):
        by_name = {case.node.name: case for case in waiting}
        waits |= dict.fromkeys(by_name, memo.same(f"wait {number}", (why, for_slot)))
        cases |= by_name
    looks = {name: look for name, (_, look, _) in chosen.standing.items()}
    again = {name for name, (_, _, listed) in chosen.standing.items() if listed}
    failed: dict[str, Exception] = {}

    def find(name: str) -> Verdict:
        if name in looks:
            return stand(cases[name], looks[name], again=name in again)
        return wait_for(cases[name], waits[name][0], for_slot=waits[name][1])

    verdicts = memo.table(find, cases, columns=[waits, cases, looks, again], key=_find_waits, failed=failed)
    return verdicts | {
        name: not_judged(cases[name].node, cases[name].owner_name, error) for name, error in failed.items()
    }


def count_vain(
    pools: Mapping[str, Pool], verdicts: Mapping[str, Verdict], looks: Mapping[str, Look], snapshot: ClusterSnapshot
) -> dict[str, int]:
    """Return by policy how many passes in a row, at most MOST_VAIN, made no progress, if any.

    The count starts anew while the API server delays a LIST.
    """
    counts, before = {}, snapshot.memory
    vain = before.vain_passes if before.wants_pods <= snapshot.work.keys() else {}
    for name, pool in pools.items():
        own = {case.node.name: verdicts[case.node.name] for case in pool.candidates}
        news = any(one.actions for one in own.values()) or own.keys() & looks.keys() - before.looks.keys()
        unknown = [own[case.node.name].phase for case in pool.candidates if case.work is None]
        if len(unknown) < len(own) and not news and Phase.PREFLIGHT in unknown:
            counts[name] = min(vain.get(name, 0) + 1, MOST_VAIN)
    return counts
