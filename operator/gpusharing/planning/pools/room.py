"""Which candidates of a pool start now, and what the others wait for. pool.py explains the limits.

Terms: docs/design/glossary.md#slot, docs/design/glossary.md#newcomer, docs/design/glossary.md#look,
docs/design/glossary.md#gang, docs/design/glossary.md#wave.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
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
from gpusharing.planning.pools.holds import Wait, find_hold
from gpusharing.planning.pools.keepers import explain_keepers, first_keeper, is_for_a_person
from gpusharing.planning.pools.ledger import Ledger, find_mates
from gpusharing.planning.pools.places import LAST_PLACE
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.pools.waves import find_following, group, try_wave
from gpusharing.planning.snapshot.looks import FIRST_LOOKS, Look
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.transition.attempts import is_tried_again
from gpusharing.planning.transition.guard import not_judged
from gpusharing.planning.transition.startgate import is_newcomer
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.planning.vocabulary.reasons import Reason

LOOKAHEAD = 2
"""How many candidates beyond the free slots have their pods listed, so that blocked nodes do not stop the pool."""


def _proven(policy: PolicyView) -> Callable[[NodeCase], bool]:
    """Return the test whether a change to the present revision of the policy was proven on a node."""
    return lambda case: proven_at(case.node, policy) is not None


_PASSES: Mapping[Reason, Callable[[PolicyView], Callable[[NodeCase], bool]]] = {
    Reason.HALTED: lambda policy: lambda case: is_tried_again(case.node, policy),
    Reason.CANARY_TOO_LARGE: lambda policy: lambda case: is_newcomer(case.node, case.gpunode),
    Reason.CANARY_NOT_SERVING: _proven,
    Reason.CANARY_SOAK: _proven,
}
"""For each hold that lets some nodes through, a function that returns, for a policy, the test that decides whether it
lets a node through. Such nodes are failed nodes that a person wants tried again; newcomers, from which no pod is
evicted; and canaries that have drifted, for which the other nodes wait."""


def select(
    pool: Pool, queue: Queue, cap: int, ledger: Ledger, past: AbstractSet[Reason] = frozenset()
) -> Selection:
    """Return which candidates of a pool start, and what the others wait for. `queue` must have all candidates of the
    pool. `cap` is how many more nodes the operator-wide cap allows. Empty if there are no candidates or the policy
    cannot be read. Starts are recorded in `ledger`, as in `_choose`. The pool must come from `with_hours`.

    Holds whose reason is in `past` have been checked already. If a further hold applies, the candidates that it does
    not let through (`_PASSES`) wait for it; often these are all. The remaining holds are checked only for the
    candidates that got through.
    """
    if not pool.candidates or pool.policy.spec is None:
        return Selection()
    if (hold := find_hold(pool, past)) is None:
        return _choose(pool, queue, cap, ledger)
    passes = _PASSES.get(hold.reason)
    free = [] if passes is None else list(filter(passes(pool.policy), pool.candidates))
    if not free:
        return Selection(waiting=[(Wait.for_hold(hold), pool.candidates)])
    names = {case.node.name for case in free}
    others = [case for case in pool.candidates if case.node.name not in names]
    chosen = select(replace(pool, candidates=free), queue, cap, ledger, past | {hold.reason})
    chosen.waiting.append((Wait.for_hold(hold), others))
    return chosen


def _choose(pool: Pool, queue: Queue, cap: int, ledger: Ledger) -> Selection:
    """Return which candidates of a pool start when no hold applies to them; `queue` may have further candidates. The
    others get a verdict, or are listed in `waiting`. The nodes that start are removed from the places for our own pod
    in `ledger`, and their evictions are added to `ledger.crowd`."""
    left, chosen = _find_room(pool, cap, ledger), Selection()
    candidates = _in_order(pool, queue, ledger, left, chosen)
    waves = group(candidates) if left.room > 0 else {}
    for candidate in candidates:
        case = candidate.case
        if case.node.name in chosen.verdicts:
            continue  # its verdict was given together with its wave
        if left.room > 0 and (wave := waves.get(case.node.name)):
            taken = try_wave(wave, left.room, left.most, left.full, ledger=ledger, chosen=chosen)
            left.room, left.cap = left.room - taken, left.cap - taken
            continue
        verdict, look = _try(candidate, left, ledger)
        if chosen.put(case, verdict, look):
            left.cap -= 1
            left.room = min(left.room - (not candidate.newcomer), left.cap)
        elif candidate.follows and not candidate.newcomer and look is None:
            left.room -= 1  # nobody takes the slot of the rest of a gang while its pods are looked at
    if ledger.places is not None:
        ledger.places.open.difference_update(chosen.claims)
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
    """The Finding for nodes for which there is no room."""
    capped: Finding
    """The Finding for newcomers for which there is no room."""
    lookahead: int | None
    """How many candidates beyond the room have their pods listed, or None if no further pods are listed now."""
    listed: int = 0
    """How many candidates have asked so far in this pass for their pods to be listed in the next one."""

    @property
    def looks(self) -> int:
        """The most candidates that take slots of the policy's own budget and may have their pods listed: `room` plus
        `lookahead`. 0 if there is no room or `lookahead` is None."""
        return 0 if self.lookahead is None or self.room <= 0 else self.room + self.lookahead

    def find_wait(self, candidate: Candidate) -> Wait | None:
        """Return the wait of a candidate for which no slot is left, or whose pods must be listed first (`needs_list`)
        while no further pods are listed. None for any other candidate: it may start or have its pods listed. A newcomer
        needs a slot of `cap` and waits with `capped`; any other candidate needs one of `room` and waits with `full`. No
        count is changed."""
        slots = self.cap if candidate.newcomer else self.room
        beyond = self.lookahead is None or self.listed >= slots + self.lookahead
        if slots <= 0 or (candidate.needs_list and beyond):
            return Wait(self.capped if candidate.newcomer else self.full)
        return None


def _try(candidate: Candidate, left: Room, ledger: Ledger) -> tuple[Verdict, Look | None]:
    """Return the verdict of a candidate that is not part of a wave, and the look to record or None. A candidate for
    which there is no room waits and keeps the look that it has; any other gets the result of `try_start`. A candidate
    whose pods must be listed first is counted in `left.listed`."""
    if (wait := left.find_wait(candidate)) is not None:
        return wait.verdict(candidate.case), candidate.look
    verdict, look = try_start(candidate, ledger)
    left.listed += candidate.needs_list and verdict.wants_pods
    return verdict, look


def _find_room(pool: Pool, cap: int, ledger: Ledger) -> Room:
    """Return how many nodes of the pool may start now, and the Findings for the nodes that may not. The smallest of
    these limits counts: maxUnavailable, the operator-wide cap, the canaries, and the nodes that must stay open for our
    own pod. All of them count for `Room.room`; newcomers, which `Room.cap` includes, are limited only by the cap and
    the canaries. If the canary is larger than the pool, only newcomers may start. No further pods are listed
    (`lookahead` is None) once FIRST_LOOKS blocked nodes were looked at within one poll interval."""
    most = min(pool.limit - pool.used, cap)
    room, most, full = max(0, most), most + pool.moving, _find_full(pool, cap, ledger)
    capped = _find_capped(ledger)
    canaries = find_canary(pool)
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
    spare = None if ledger.places is None else ledger.places.spare(pool.candidates)
    if spare is not None and spare < room:
        room, full = spare, Finding(Reason.BUDGET_FULL, LAST_PLACE)
    if spare is not None:
        most = min(most, max(1, spare + pool.opening))
    return Room(room, most, cap, full, capped, None if ledger.recent >= FIRST_LOOKS else LOOKAHEAD)


def _find_capped(ledger: Ledger) -> Finding:
    """Return the BudgetFull Finding for a node of any policy for which the operator-wide cap leaves no slot. The
    Finding names the nodes that occupy slots until somebody acts (`ledger.keepers`); the first of them by name is its
    `keeper`."""
    keepers = explain_keepers(ledger.keepers)
    told = f" ({keepers})" if keepers else ""
    message = (
        f"the cap on nodes in flight (chart value operator.maxInFlight) has been reached{told};"
        " waiting for a slot"
    )
    return Finding(Reason.BUDGET_FULL, message, keeper=first_keeper(ledger.keepers))


def _find_full(pool: Pool, cap: int, ledger: Ledger) -> Finding:
    """Return the BudgetFull Finding for the next node of the pool for which there is no slot. The Finding says whether
    the policy's limit or the operator-wide cap is the cause, and which nodes occupy slots until somebody acts. The cap
    is the cause if it leaves fewer slots (`cap`) than the limit. `stands` is set if the limit is the cause and only a
    person can free a slot (`is_for_a_person`). The message does not say how many slots are in use, because that changes
    often."""
    if cap < pool.limit - pool.used:
        return _find_capped(ledger)
    keepers = explain_keepers(pool.keepers)
    told = f" ({keepers})" if keepers else ""
    message = (
        f"spec.rollout.maxUnavailable allows {pool.limit} of {counted(pool.total, 'node')} to be unavailable at"
        f" once{told}; waiting for a slot"
    )
    # No node of the pool is changing, and none of those that occupy a slot is returned to service by itself.
    stands = pool.used >= pool.limit and not pool.moving and all(map(is_for_a_person, pool.keepers))
    return Finding(Reason.BUDGET_FULL, message, keeper=first_keeper(pool.keepers), stands=stands)


def _in_order(pool: Pool, queue: Queue, ledger: Ledger, left: Room, chosen: Selection) -> list[Candidate]:
    """Return the candidates that may start or have their pods listed, in the order in which they start. A candidate
    that needs a cordon, takes a slot, and has neither listed pods nor a look on record is included only in three cases:
    it is among the first `left.looks` of such candidates, it shares a gang with a candidate whose pods were listed, or
    its gang has started without it.

    The others are put into `chosen`, as waiting or, if judging them raised an error, with a verdict that says so.
    """
    policy, cases = pool.policy, {case.node.name: case for case in pool.candidates}
    following = find_following(policy, pool.members, (case.node for case in pool.candidates))
    unknown = (cases.keys() & queue.unlisted.keys()) - ledger.looks.keys() - following

    def find(names: Iterable[str]) -> Iterator[tuple[Order, Candidate]]:
        """Yield each of these candidates with its order. A candidate whose computation fails gets a verdict in
        `chosen` instead."""
        for name in names:
            try:
                candidate = find_candidate(cases[name], policy, ledger, follows=name in following)
                yield candidate.order, candidate
            except Exception as error:  # noqa: BLE001 - one node must not stop the others (guard.py)
                chosen.put(cases[name], not_judged(cases[name].node, policy.name, error))

    ranked = list(find(name for name in cases if name not in unknown))
    listed = (candidate.case for _, candidate in ranked if candidate.pods is not None)
    looked_at = unknown.intersection(chain.from_iterable(map(find_mates, listed)))
    looked_at.update(islice(filter(unknown.__contains__, queue.unlisted), left.looks))
    ranked += find(sorted(looked_at))
    rest = [case for name, case in cases.items() if name in unknown and name not in looked_at]
    chosen.waiting.append((Wait(left.full), rest))
    return [candidate for _, candidate in sorted(ranked, key=lambda row: row[0])]
