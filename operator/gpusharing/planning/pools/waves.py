"""Nodes of one pool that share a gang change as one wave: those that nothing blocks start in one pass, or wait until
they can, and they return to service together, so that no other pod takes the GPUs of half a gang. The fences of a
wave's nodes record its id, so it survives a restart.

Specification: docs/design/drain.md#waves.

Terms: docs/design/glossary.md#gang, docs/design/glossary.md#wave, docs/design/glossary.md#fence,
docs/design/glossary.md#slot, docs/design/glossary.md#drift.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial

from gpusharing.api.names import Phase
from gpusharing.api.validation import parse_duration
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
from gpusharing.planning.snapshot.actions import Release, UpdateFence
from gpusharing.planning.snapshot.records import Fence, Verified
from gpusharing.planning.snapshot.views import NodeView, PolicyView
from gpusharing.planning.transition.members import Member
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.blockers import Blocker, merge
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.reasons import Reason

MAX_MATES = 20
"""The most nodes of a wave that a fence records as left behind."""


# --- which nodes change together -------------------------------------------------------------------------------


def find_waves(order: Sequence[str], mates: Mapping[str, frozenset[str]]) -> dict[str, tuple[str, ...]]:
    """Return the waves, by the name of the first node of each wave. A wave has the nodes that share gangs, directly or
    through others, sorted as in `order`. `mates` has the nodes with which each node shares a gang; nodes that are not
    in `order` are ignored. A node that shares no gang is in no wave."""
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
    """Return the names of the node `first` and of all nodes that are linked to it, directly or through others."""
    reached, edge = {first}, {first}
    while edge:
        edge = set().union(*(linked[name] for name in edge)) - reached
        reached |= edge
    return reached


def group(candidates: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    """Return the waves among the candidates whose changes cordon their nodes, by the name of the first node of each
    wave. A wave has the candidates that share gangs, in their order. Empty if the LISTs of this pass show no gang on
    any of them."""
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


def find_following(
    policy: PolicyView, members: Iterable[Member], candidates: Iterable[NodeView]
) -> frozenset[str]:
    """Return the names of the candidates that share a gang with a node of the pool that started without them, because
    they were blocked or there was no room. They are returned while that node is in flight and, after its proof, until
    they have been changed too. A new revision of the policy ends the second period, because all
    nodes then start anew."""
    begun = {mate for one in members if (fence := one.node.fence) is not None for mate in fence.mates}
    verified = (one.node.verified for one in members)
    proofs = [proof for proof in verified if proof is not None and proof.mates]
    if not begun and not proofs:
        return frozenset()
    standing = [proof for proof in proofs if proof.version == policy.version]
    return frozenset(node.name for node in candidates if node.name in begun or _is_left(node, standing))


def _is_left(node: NodeView, proofs: Iterable[Verified]) -> bool:
    """Whether one of these proofs of other nodes names this node as left behind, and the node has not been changed
    since that proof. If the time of either change is unknown, the node counts as not changed since."""
    changed = node.verified.changed_at if node.verified is not None else None
    return any(
        node.name in proof.mates
        and (changed is None or proof.changed_at is None or changed < proof.changed_at)
        for proof in proofs
    )


# --- how they start ----------------------------------------------------------------------------------------------


def try_wave(
    wave: Sequence[Candidate], room: int, most: int, full: Finding, *, ledger: Ledger, chosen: Selection
) -> int:
    """Start, in this pass, either all nodes of a wave that have no known blockers, or none of them. If they are more
    than `most`, the number of nodes that can ever change together, only the first `most` start, but at least one. Put
    the verdict of every node of the wave into `chosen`, and return how many slots the wave takes, or reserves until it
    can start.

    `full` is the Finding for nodes for which there will be no room. Blocked nodes are left behind; before the others
    start without them, the pods of as many as `most` has room for are listed once more. A start adds the evictions of
    its nodes to `ledger.crowd`.
    """
    # Nodes whose pods were listed come first, before the cost decides: only a LIST shows the real cost of a gang. If
    # cost came first, each pass of a wave that cannot start as a whole would ask for the pods of yet another node, and
    # none would ever start.
    free = [candidate for candidate in wave if candidate.look is None]
    free.sort(key=lambda candidate: (*candidate.order[:3], candidate.pods is None))
    free = free[: max(1, most)]
    stale = [candidate for candidate in wave if candidate.look is not None and candidate.pods is None]
    stale = stale[: max(0, most - len(free))]
    going, wait = _names(free), _find_wait(free, room, ledger)
    starts = bool(free) and wait is None and not stale
    again = _names(stale) if wait is None and free else ledger.due
    for candidate in wave:
        case, name = candidate.case, candidate.case.node.name
        if candidate.look is not None:
            unlisted = candidate.pods is None and name in again
            chosen.put(case, blocked(case, candidate.look, again=unlisted), candidate.look)
        elif name not in going:
            chosen.put(case, Wait(full).verdict(case))
        elif not starts:
            chosen.put(case, (wait or looking)(candidate))
    if starts:
        _start(free, wave, ledger, chosen)
    return min(room, len(free))


def _names(candidates: Iterable[Candidate]) -> frozenset[str]:
    """Return the names of the candidates' nodes."""
    return frozenset(candidate.case.node.name for candidate in candidates)


def _find_wait(free: Sequence[Candidate], room: int, ledger: Ledger) -> Callable[[Candidate], Verdict] | None:
    """Return a function that makes the verdict of each node while the wave cannot start, or None if it can start. It
    cannot start while pods of its nodes are unknown, or while `room` is smaller than the number of `free` nodes, the
    nodes that would start. If budgets guard the wave's pods, it also waits while pods of nodes in flight are unknown
    or use up one of these budgets."""
    pods = [candidate.pods for candidate in free if candidate.pods is not None]
    if len(pods) < len(free) or (not ledger.crowd_known and any(map(budget_room, pods))):
        return looking
    if crowded := merge(blocker for found in pods for blocker in crowding(found, ledger.crowd)):
        return partial(_crowded, blockers=crowded)
    return partial(_gathering, size=len(free)) if room < len(free) else None


def _crowded(candidate: Candidate, blockers: tuple[Blocker, ...]) -> Verdict:
    """Return the Blocked verdict, with these blockers, of a node of a wave that waits until other nodes leave room
    under a budget. Such a wait takes seconds, so the pods of the wave are listed again at every poll. The pods of the
    node must have been listed in this pass."""
    assert candidate.pods is not None, "it was looked at"
    case = candidate.case
    look = look_at(case, candidate.policy, None, candidate.pods, blockers, slower=False)
    return blocked(case, look, again=True)


def _gathering(candidate: Candidate, size: int) -> Verdict:
    """Return the Pending verdict, with the reason BudgetFull, of a node whose wave waits until `size` slots are free,
    one for each of its nodes. The message names the node's first gang, if it has one. The node stays a candidate, and
    its pods are listed again in the next pass."""
    case = candidate.case
    gang = next((view.gang.ref for view in case.gangs), "a gang")
    message = (
        f"{gang} runs on {size} nodes, which change together so that it is interrupted only once; waiting for"
    )
    verdict = case.verdict(Phase.PENDING, Reason.BUDGET_FULL, f"{message} {size} slots", candidate=True)
    return replace(verdict, wants_pods=True)


def _start(free: Sequence[Candidate], wave: Sequence[Candidate], ledger: Ledger, chosen: Selection) -> None:
    """Start the `free` nodes of a wave and put their verdicts into `chosen`. The pods of each of these nodes must have
    been listed in this pass. The fences record the id of the wave, unless only one node starts and it does not
    resume an earlier wave. They also record up to MAX_MATES other nodes of the wave as left behind. The evictions
    are added to `ledger.crowd` without a check, because within a wave the server decides which pod leaves first
    under a budget."""
    first, going, names = free[0], _names(free), [candidate.case.node.name for candidate in wave]
    left = tuple(name for name in names if name not in going)[:MAX_MATES]
    begun = next(filter(None, (ledger.resumed_wave(candidate.case) for candidate in free)), "")
    anew = f"{op_of(first.case, first.policy)}.{first.case.node.name}" if len(free) > 1 else ""
    for candidate in free:
        assert candidate.pods is not None, (
            "the pods of each node in the wave must have been listed in this pass"
        )
        ledger.crowd.update(budget_room(candidate.pods))
        chosen.put(
            candidate.case, begin(candidate, begun or anew, left), begun_look(candidate, candidate.pods)
        )


# --- how they return to service --------------------------------------------------------------------------------


def hold_together(
    verdicts: Mapping[str, Verdict],
    fences: Mapping[str, Fence],
    nodes: Mapping[str, NodeView],
    policies: Iterable[PolicyView],
    now: datetime,
) -> dict[str, Verdict]:
    """Return the new verdicts of proven nodes that wait for the others of their wave, by name. Unchanged verdicts are
    left out.

    The nodes wait until all nodes of the wave are proven, but no longer than `timeouts.verification` after the first
    proof. They stop waiting once one of the others has failed or is being rolled back, because then the gang could not
    come back whole. If that time-out is unknown, they do not wait.
    """
    waves = _group_by_wave({name: fence for name, fence in fences.items() if name in verdicts}, nodes)
    if not waves:
        return {}
    by_name = {policy.name: policy for policy in policies}
    waiting: dict[str, Verdict] = {}
    for names in waves.values():
        proven = [name for name in names if returns_proven(verdicts[name])]
        others = _find_awaited(names, verdicts, fences)
        until = _until(proven, fences, by_name, now) if others else now
        for name in proven if until > now else ():
            waiting[name] = _await_wave(
                verdicts[name], nodes[name], fences[name], others=others, until=until, now=now
            )
    return waiting


def _find_awaited(
    names: Iterable[str], verdicts: Mapping[str, Verdict], fences: Mapping[str, Fence]
) -> list[str]:
    """Return the nodes of a wave that this pass does not release, proven or not, sorted by name. Empty if one of them
    is Failed or is being rolled back."""
    others = []
    for name in sorted(names):
        verdict = verdicts[name]
        if any(isinstance(action, Release) for action in verdict.actions):
            continue
        if verdict.phase is Phase.FAILED or fences[name].rolls_back:
            return []
        others.append(name)
    return others


def _group_by_wave(fences: Mapping[str, Fence], nodes: Mapping[str, NodeView]) -> dict[str, list[str]]:
    """Return the nodes whose change in a wave is still under way, by the id of the wave and in the order of `fences`.
    Nodes whose fence names no wave or is yielded are left out, and so is a Node that was deleted and created again."""
    waves: dict[str, list[str]] = {}
    for name, fence in fences.items():
        if fence.wave and fence.stage != "yielded" and fence.node_uid == nodes[name].uid:
            waves.setdefault(fence.wave, []).append(name)
    return waves


def returns_proven(verdict: Verdict) -> bool:
    """Whether this pass releases the node with its new layout proven, even if a cordon stays because somebody else
    works on the node. False if it was rolled back."""
    given = (action.verified for action in verdict.actions if isinstance(action, Release))
    return any(record is not None and not record.rolled_back for record in given)


def _until(
    proven: Iterable[str], fences: Mapping[str, Fence], policies: Mapping[str, PolicyView], now: datetime
) -> datetime:
    """Return when the first of the proven nodes has waited for timeouts.verification, or `now` if that time is
    unknown. The time-out is read from the policy of the first of these nodes whose policy exists. A node whose fence
    does not record a proof yet was proven now."""
    first = min((moment for name in proven if (moment := fences[name].proven) is not None), default=now)
    spec = next((p.spec for name in proven if (p := policies.get(fences[name].policy)) is not None), None)
    return now if spec is None else first + parse_duration(spec.rollout.timeouts.verification)


def _await_wave(
    verdict: Verdict, node: NodeView, fence: Fence, *, others: Sequence[str], until: datetime, now: datetime
) -> Verdict:
    """Return the verdict of a proven node that waits for `others` until `until`, with the reason WaitsForWave: it is
    not released, and its fence records when it was first proven. `others` must not be empty; the first of them is shown
    as the keeper."""
    actions = tuple(action for action in verdict.actions if not isinstance(action, Release))
    if fence.proven is None:
        actions = (*actions, UpdateFence(node, replace(fence, proven=now)))
    message = f"{verdict.message}; the node returns to service together with {some(others)}, which ran the same gang"
    waits = replace(verdict, reason=Reason.WAITS_FOR_WAVE, message=message, actions=actions)
    return replace(waits, wake=until, deadline=until, keeper=f"node/{others[0]}")
