"""Nodes of one pool that share a gang change as one wave: they start in one pass, or wait until they can.

Specification: docs/design/drain.md#waves.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from gpusharing.api.names import Phase
from gpusharing.planning.drain.plan import budget_room, crowding
from gpusharing.planning.pools.candidates import (
    Candidate,
    Selection,
    begin,
    begun_look,
    blocked,
    look_at,
    looking,
    op_of,
)
from gpusharing.planning.pools.holds import Wait
from gpusharing.planning.pools.ledger import Ledger, find_mates
from gpusharing.planning.snapshot.records import Verified
from gpusharing.planning.snapshot.views import NodeView, PolicyView
from gpusharing.planning.transition.members import Member
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.blockers import Blocker, merge
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.revision import find_revision, is_of

MAX_MATES = 20
"""The most nodes of a wave that a fence records as left behind."""


# --- who goes together -----------------------------------------------------------------------------------------


def find_waves(order: Sequence[str], mates: Mapping[str, frozenset[str]]) -> dict[str, tuple[str, ...]]:
    """By the first node in `order`: the nodes that share gangs, directly or through others. No wave of a single
    node."""
    places = {name: place for place, name in enumerate(order)}
    linked: dict[str, set[str]] = {}
    for name, others in mates.items():
        for other in others & places.keys() if name in places else ():
            linked.setdefault(name, set()).add(other)
            linked.setdefault(other, set()).add(name)
    waves: dict[str, tuple[str, ...]] = {}
    taken: set[str] = set()
    for name in sorted(linked, key=places.__getitem__):
        if name not in taken:
            wave = _reached(name, linked)
            taken |= wave
            waves[name] = tuple(sorted(wave, key=places.__getitem__))
    return waves


def _reached(first: str, linked: Mapping[str, set[str]]) -> set[str]:
    reached, edge = {first}, {first}
    while edge:
        edge = set().union(*(linked[name] for name in edge)) - reached
        reached |= edge
    return reached


def group(candidates: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    """By the first of them: candidates that share gangs. If no gang was seen this costs next to nothing."""
    mates = {
        one.case.node.name: found
        for one in candidates
        if one.pods is not None and one.cordons and (found := find_mates(one.case))
    }
    if not mates:
        return {}
    cordoning = {one.case.node.name: one for one in candidates if one.cordons}
    waves = find_waves(tuple(cordoning), mates)
    return {first: [cordoning[name] for name in names] for first, names in waves.items()}


def find_following(
    policy: PolicyView, members: Iterable[Member], candidates: Iterable[NodeView]
) -> frozenset[str]:
    """The candidates that share a gang with another node of the pool for which there was no room at its start: while
    that one is in flight, and after its proof until they were changed too. An edit of the policy ends that, as all its
    nodes begin anew."""
    begun = {mate for one in members if (fence := one.node.fence) is not None for mate in fence.mates}
    verified = (one.node.verified for one in members)
    proofs = [proof for proof in verified if proof is not None and proof.mates]
    if not begun and not proofs:
        return frozenset()
    revision = find_revision(policy)
    standing = [proof for proof in proofs if is_of(proof, policy, revision)]
    return frozenset(node.name for node in candidates if node.name in begun or _is_left(node, standing))


def _is_left(node: NodeView, proofs: Iterable[Verified]) -> bool:
    """Whether one of these proofs of other nodes names this one as left behind, and it was not changed since."""
    return any(node.name in proof.mates and not _is_later(node, proof) for proof in proofs)


def _is_later(node: NodeView, proof: Verified) -> bool:
    """Whether the node was changed since this proof of another one; drift of it is no longer the rest of that gang."""
    changed = node.verified.changed_at if node.verified is not None else None
    return changed is not None and proof.changed_at is not None and changed >= proof.changed_at


# --- how they start ----------------------------------------------------------------------------------------------


def try_wave(
    wave: Sequence[Candidate], room: int, most: int, full: Finding, *, ledger: Ledger, chosen: Selection
) -> int:
    """Start as many nodes of a wave as can ever go at once (`most`), all of them in one pass or none. What becomes of
    them is added to `chosen`; return the slots that the wave takes, or that are kept for it until it can start.

    `full`: the finding for nodes for which there will be no room. Blocked nodes stay behind; before the others start
    without them, their pods are listed once more.
    """
    free = sorted((one for one in wave if one.look is None), key=_listed_first)[: max(1, most)]
    stale = [one for one in wave if one.look is not None and one.pods is None][: max(0, most - len(free))]
    going = frozenset(one.case.node.name for one in free)
    wait = _find_wait(free, room, ledger)
    starts = bool(free) and wait is None and not stale
    again = frozenset(one.case.node.name for one in stale) if wait is None and free else ledger.due
    for one in wave:
        name = one.case.node.name
        if one.look is not None:
            chosen.put(
                one.case, blocked(one.case, one.look, again=one.pods is None and name in again), one.look
            )
        elif name not in going:
            chosen.put(one.case, Wait(full).verdict(one.case))
        elif not starts:
            chosen.put(one.case, (wait or _look_first)(one))
    if starts:
        _start(free, [one for one in wave if one.case.node.name not in going], ledger, chosen)
    return min(room, len(free))


def _listed_first(one: Candidate) -> tuple[bool, ...]:
    """A gang is only counted once a LIST shows it, so a node that was listed comes after those that were not: where not
    all can go, each pass would ask for another one's pods, and none would ever start."""
    return (*one.order[:3], one.pods is None)


def _find_wait(free: Sequence[Candidate], room: int, ledger: Ledger) -> Callable[[Candidate], Verdict] | None:
    """The verdict of each node of the wave while it cannot start; None: it can."""
    pods = [one.pods for one in free if one.pods is not None]
    if len(pods) < len(free) or (not ledger.crowd_known and any(map(budget_room, pods))):
        return _look_first
    if crowded := merge(blocker for found in pods for blocker in crowding(found, ledger.crowd)):
        return partial(_crowded, blockers=crowded)
    return partial(_gathering, size=len(free)) if room < len(free) else None


def _look_first(one: Candidate) -> Verdict:
    return looking(one.case)


def _crowded(one: Candidate, blockers: tuple[Blocker, ...]) -> Verdict:
    """Others make room within seconds: all nodes of the wave are looked at again at every poll."""
    assert one.pods is not None, "it was looked at"
    return blocked(
        one.case, look_at(one.case, one.policy, None, one.pods, blockers, slower=False), again=True
    )


def _gathering(one: Candidate, size: int) -> Verdict:
    """Room enough for the whole wave is on its way."""
    case = one.case
    gang = next((view.gang.ref for view in case.gangs), "a gang")
    message = (
        f"{gang} runs on {size} nodes, which change together so that it is interrupted only once; waiting for"
    )
    verdict = case.verdict(Phase.PENDING, Reason.BUDGET_FULL, f"{message} {size} slots", candidate=True)
    return replace(verdict, wants_pods=True)


def _start(free: Sequence[Candidate], behind: Sequence[Candidate], ledger: Ledger, chosen: Selection) -> None:
    """Start these nodes of a wave, and leave the others behind. Within a wave the server decides which pod goes first
    under a budget."""
    left, first = tuple(one.case.node.name for one in behind)[:MAX_MATES], free[0]
    begun = next(filter(None, (ledger.resumed_wave(one.case) for one in free)), "")
    anew = f"{op_of(first.case, first.policy)}.{first.case.node.name}" if len(free) > 1 else ""
    for one in free:
        assert one.pods is not None, "all nodes of a wave that starts were looked at"
        ledger.crowd.update(budget_room(one.pods))
        chosen.put(one.case, begin(one, begun or anew, left), begun_look(one, one.pods))
