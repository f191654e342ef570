"""Why does a pool start no further node: pauses, canaries, approvals and failures?

Nodes in flight go on, and some holds let a few nodes through (`select`).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import datetime
from hashlib import sha256

from gpusharing.api import names
from gpusharing.api.names import WAY, DisruptionClass, Phase
from gpusharing.api.times import parse_duration, to_rfc3339
from gpusharing.api.validation import allowance
from gpusharing.planning.pools.candidates import CAP
from gpusharing.planning.pools.pool import Pool, goes_on, is_for_a_person, name_keepers
from gpusharing.planning.snapshot.records import (
    DIGEST,
    LEASE_ROOM,
    ApprovedChange,
    Claim,
    Consent,
    FailedNode,
    digest_of,
    digests_in,
)
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView, PolicyView
from gpusharing.planning.transition.attempts import failed_before, has_ended, owed_for
from gpusharing.planning.transition.cases import Member, is_begun, judge_held
from gpusharing.planning.transition.gates import tell_pause
from gpusharing.planning.transition.judge import judge
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.commands import Command
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import counted, some
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.verify import name_gpus

LENGTH = 7
"""How many characters a hash has: enough to tell two plans apart, and few enough to read aloud."""


@value
class Approvable:
    """The plan of a policy as a person can approve it."""

    hash: str
    changes: tuple[ApprovedChange, ...]
    """What the approval covers. It may be more than is left to do."""
    approved: bool
    differs: tuple[str, ...] = ()
    """How the plan goes beyond what was approved last, for people. Empty if nothing was approved."""

    @property
    def size(self) -> int:
        """How many characters of the Lease an approval takes."""
        return sum(len(change.nodes) for change in self.changes)


def propose(pool: Pool) -> Approvable:
    """Return the approved plan as long as nothing goes beyond it, else the present one."""
    policy, consent = pool.policy, pool.agreed
    if consent.changes and consent.approved:
        differs = tuple(_find_excess(consent, pool))
        if not differs:
            return Approvable(consent.approved, consent.changes, policy.approved == consent.approved)
    else:
        differs = (
            (f"that plan is done, or the policy asks for something else, revision {consent.revision}",)
            if consent.approved
            else ()
        )
    changes = _collect(pool.members, policy)
    text = f"{policy.uid}/{policy.version.revision}/{consent.approved}/{changes}"
    shown = sha256(text.encode()).hexdigest()[:LENGTH]
    return Approvable(shown, changes, policy.approved == shown, differs)


def _collect(members: Sequence[Member], policy: PolicyView) -> tuple[ApprovedChange, ...]:
    nodes: dict[tuple[DisruptionClass, str], list[str]] = {}
    for member in members:
        if (row := _find_change(member, policy)) is not None:
            nodes.setdefault(row, []).append(digest_of(member.node.uid))
    rows = sorted(nodes.items(), key=lambda row: (row[0][0].severity, row[0][1]))
    return tuple(ApprovedChange(*change, "".join(sorted(digests))) for change, digests in rows)


def _find_change(member: Member, policy: PolicyView) -> tuple[DisruptionClass, str] | None:
    fence, assessed = member.node.fence, member.case.assessed
    if assessed is None:  # a node in flight whose GPU or agent is gone for now
        ours = fence is not None and fence.version == policy.version and fence.approved
        return _row(fence.planned, fence.approved, fence.gpus) if fence is not None and ours else None
    now, gpus = member.case.extent
    classes = [DisruptionClass.NONE if assessed.mismatch is None else now]
    if fence is not None:
        classes.append(fence.planned)
    elif assessed.mismatch is None:
        return None
    return _row(max(classes, key=lambda one: one.severity), owed_for(assessed.target), gpus)


_GPUS = " gpus="


def _row(disruption: DisruptionClass, target: str, gpus: Sequence[int]) -> tuple[DisruptionClass, str]:
    partly = disruption is DisruptionClass.CHANGED_GPUS
    return disruption, f"{target}{_GPUS}{','.join(map(str, gpus))}" if partly else target


def _find_excess(consent: Consent, pool: Pool) -> Iterator[str]:
    """Yield what nodes that have yet to begin would need beyond the consent. The fences of those in flight say theirs.

    A node whose run for another revision or policy has ended without a proof has yet to begin another.
    """
    approved = {digest: change for change in consent.changes for digest in digests_in(change.nodes)}
    joined = []
    for member in pool.members:
        case, fence, name = member.case, member.node.fence, member.node.name
        if (assessed := case.assessed) is None or assessed.mismatch is None:
            continue
        ours = fence is not None and (fence.rolls_back or fence.version == pool.policy.version)
        if ours or (fence is not None and not has_ended(case)):
            continue
        change = approved.get(digest_of(member.node.uid))
        disruption, emptied = case.extent
        target, _, gpus = change.target.partition(_GPUS) if change is not None else ("", "", "")
        more = [gpu for gpu in emptied if str(gpu) not in gpus.split(",")]
        if change is None:
            joined.append(name)
        elif disruption.severity > change.disruption.severity:
            yield f"{name} needs {disruption} instead of {change.disruption}"
        elif owed_for(assessed.target) != target:
            yield f"{name} would get another layout, {assessed.target.text}"
        elif gpus and more:
            yield f"{name_gpus(more)} of {name} would be emptied too"
    if joined:
        yield f"{some(sorted(joined))} {'was' if len(joined) == 1 else 'were'} not in it"


def find_canary(pool: Pool) -> int | Finding | None:
    """Return how many more nodes may start as canaries, why no node may start, or None if the canary keeps none back.

    The fences and proofs for this revision on the Nodes identify the canaries, so neither a restart nor a pause changes
    them. A canary larger than its pool starts no node in service; if the pool shrank after the canary began, the first
    remaining node in service stands for it (docs/adr/0055-a-canary-larger-than-its-pool.md). Until another node has
    started, a proven canary that no longer serves holds the others and is not replaced, because otherwise one node
    after another would be used up.
    """
    canary, policy, members = pool.spec.rollout.canary, pool.policy, pool.members
    if canary is None or not members or canary.nodes == len(members):
        return None
    nodes, large = canary.nodes, outnumbers(pool)
    if large:
        nodes, members = 1, [one for one in members if not _is_apart(one, policy)]
    proofs = ((proven_at(one.node, policy), one.node.name, one) for one in members)
    proven = sorted((at, name, one) for at, name, one in proofs if at is not None)
    end = proven[nodes - 1][0] + parse_duration(canary.soak) if len(proven) >= nodes else None
    if broken := _find_broken(pool, [one for _, _, one in proven[:nodes]], members, end):
        return broken
    if end is not None:
        message = (
            f"the canary of {counted(nodes, 'node')} (spec.rollout.canary) has been proven; the other nodes follow once"
            f" it has been in service for {canary.soak}, at {to_rfc3339(end)}"
        )
        return None if pool.now >= end else Finding(Reason.CANARY_SOAK, message, end)
    begun = [one for one in members if _has_begun(one, policy)]
    left = nodes - len(proven) - len(begun)
    if left > 0 and large:
        message = (
            f"policy {policy.name}: {_sizes(pool, canary.nodes)}, so the operator does not change any node in service."
            f" Set that field to {len(pool.members)} or less, for example canary: {{nodes: 1, soak: {canary.soak}}}"
        )
        return Finding(Reason.CANARY_TOO_LARGE, message)
    message = f"waiting for the canary of {counted(nodes, 'node')} (spec.rollout.canary) to be proven"
    return left if left > 0 else _unproven(message, begun)


def outnumbers(pool: Pool) -> bool:
    """Whether the canary has more nodes than the pool, in a policy that somebody can still correct."""
    canary = pool.spec.rollout.canary
    return canary is not None and 0 < len(pool.members) < canary.nodes and not pool.policy.resetting


def proven_at(node: NodeView, policy: PolicyView) -> datetime | None:
    """Return when a change to this revision was proven on the node. None if none was or the time is unknown."""
    verified = node.verified
    if verified is None or verified.rolled_back or verified.version != policy.version:
        return None
    return verified.changed_at


def _is_apart(member: Member, policy: PolicyView) -> bool:
    # A canary that is too large does not affect newcomers and changes that began under another revision.
    fence, verified = member.node.fence, member.node.verified
    if fence is not None:
        return fence.newcomer or fence.turned or fence.version != policy.version
    return verified is not None and verified.apart


def _has_begun(member: Member, policy: PolicyView) -> bool:
    fence = member.node.fence
    if fence is None or fence.stage == "yielded":
        return False
    if fence.version.uid != policy.uid:  # of another policy, whose run has ended
        return fence.stage == "actuating" and fence.policy == policy.name and member.verdict.phase in WAY
    if proven_at(member.node, policy) is not None:
        return False
    return fence.version == policy.version or member.verdict.phase in WAY  # the next run is for this revision


def _find_broken(
    pool: Pool, canaries: Sequence[Member], members: Sequence[Member], end: datetime | None
) -> Finding | None:
    policy = pool.policy
    if policy.resetting:  # nobody can correct such a policy any more
        return None
    for canary in sorted(canaries, key=lambda canary: canary.node.name):
        if why := _why_not_serving(canary):
            break
    else:
        return None
    known = {one.node.name for one in canaries}
    for member in members:
        fence, proof = member.node.fence, proven_at(member.node, policy)
        if end is None or member.node.name in known:
            continue
        began = fence is not None and fence.since >= end and _has_begun(member, policy)
        if began or (proof is not None and proof > end):
            return None  # once another node has started, the canaries hold nobody back
    message = (
        f"{canary.node.name}, a canary (spec.rollout.canary), no longer serves the layout that was proven there:"
        f" {why}. No other node starts until the canary serves it again or leaves the pool, or the policy asks for"
        " something else"
    )
    return Finding(Reason.CANARY_NOT_SERVING, message, keeper=f"node/{canary.node.name}")


def _why_not_serving(member: Member) -> str:
    node, verdict = member.node, member.verdict
    if is_begun(node):  # every waiting node shows this, so the steps of the change are not named
        return "it has failed" if verdict.phase is Phase.FAILED else "it is being changed"
    if node.deleting:
        return "its Node is being deleted"
    if not node.ready:
        return "it is not Ready"
    if node.unschedulable:
        return "it is cordoned"
    proven = verdict.phase is Phase.SYNCED and verdict.reason is Reason.SYNCED
    return "" if proven else str(verdict.reason)


def _unproven(message: str, begun: Sequence[Member]) -> Finding:
    kept = [one for one in begun if not goes_on(one.verdict)]
    why, keeper = name_keepers(kept)
    stands = any(map(is_for_a_person, kept))
    return Finding(Reason.CANARY_SOAK, message + why, keeper=keeper, stands=stands)


def wait_for_canaries(pool: Pool) -> Finding:
    canary, policy = pool.spec.rollout.canary, pool.policy
    nodes = counted(canary.nodes if canary is not None else 0, "node")
    begun = [one for one in pool.members if _has_begun(one, policy)]
    return _unproven(f"the canary of {nodes} (spec.rollout.canary) goes before this node", begun)


def find_note(pool: Pool) -> str:
    """Return a note for people if the canary has at least as many nodes as the pool, else an empty string."""
    canary, total = pool.spec.rollout.canary, len(pool.members)
    if canary is None or not total or canary.nodes < total:
        return ""
    sizes = _sizes(pool, canary.nodes)
    if not outnumbers(pool):
        return f"{sizes}, so the whole pool is the canary"
    state = find_canary(pool)
    if isinstance(state, Finding) and state.reason is Reason.CANARY_TOO_LARGE:
        return state.message
    return f"{sizes} by now, so the first of the remaining nodes is the canary"


def _sizes(pool: Pool, nodes: int) -> str:
    return f"spec.rollout.canary.nodes is {nodes}, and the pool has {counted(len(pool.members), 'node')}"


MOST_SHOWN = 3
"""The most differences between two plans that a message names."""
_SHOWN = 64
"""The maximum number of characters shown of an annotation that allows nothing."""


def find_hold(pool: Pool, past: AbstractSet[Reason] = frozenset()) -> Finding | None:
    return next((hold for hold in _find_holds(pool) if hold.reason not in past), None)


def _find_holds(pool: Pool) -> Iterator[Finding]:
    # Holds that a person has to end come before those that the clock ends.
    policy, rollout = pool.policy, pool.spec.rollout
    if allowance(rollout.max_unavailable, 1) == 0:
        message = "spec.rollout.maxUnavailable is 0, so the operator does not start a change"
        yield Finding(Reason.FROZEN, message)
    if (halt := find_halt(pool)) is not None and policy.resumed != halt[0]:
        yield halt[1]
    canary = found if isinstance(found := find_canary(pool), Finding) else None
    if canary is not None and canary.reason is Reason.CANARY_TOO_LARGE:
        yield canary
    if pool.oversize is not None:
        yield pool.oversize
    if rollout.approval == "Manual" and not (plan := propose(pool)).approved:
        if plan.differs:
            old = f", and the plan goes beyond {pool.agreed.approved}, which was approved: {'; '.join(plan.differs[:MOST_SHOWN])}"
        else:
            old = f"; {policy.approved[:_SHOWN]} is the hash of another plan" if policy.approved else ""
        approve = Command.of(f"kubectl annotate gsp {policy.name} --overwrite {names.ANNOTATION_APPROVE}={plan.hash}")
        message = f"spec.rollout.approval is Manual{old}. To approve the plan in status.plan, run {approve}"
        yield Finding(Reason.APPROVAL_NEEDED, message, commands=(approve,))
    if canary is not None and canary.reason is Reason.CANARY_NOT_SERVING:
        yield canary
    if pool.hours.closed is not None:
        yield pool.hours.closed
    if canary is not None and canary.reason is Reason.CANARY_SOAK:
        yield canary


def has_failed(member: Member, policy: PolicyView) -> bool:
    """Whether the node's records say that it failed after the point of no return in this revision."""
    fence = member.node.fence
    if fence is not None:
        fails = member.verdict.phase is Phase.FAILED or fence.failed is not None
        fails = fails and fence.stage == "actuating"
        if (fails and fence.version == policy.version) or fence.failed_version == policy.version:
            return True
    return failed_before(member.node, policy)


def find_halt(pool: Pool) -> tuple[str, Finding] | None:
    """Return why no further node starts until a person has seen the failures of this revision, if there are enough.

    Before it comes the value of the annotation gpusharing.dev/resume that ends this halt and no other.
    """
    policy, most, consent = pool.policy, pool.spec.rollout.max_failures, pool.agreed
    failed, seen = find_failed(pool), digests_in(consent.seen)
    unseen = sorted(name for uid, name in failed.items() if digest_of(uid) not in seen)
    if len(unseen) < most:
        return None
    text = f"{policy.uid}/{consent.revision}/{consent.resumed}/{sorted(failed)}"
    shown = sha256(text.encode()).hexdigest()[:LENGTH]
    old = f' ({names.ANNOTATION_RESUME} "{policy.resumed[:_SHOWN]}" is not for this halt)' if policy.resumed else ""
    resume = Command.of(f"kubectl annotate gsp {policy.name} --overwrite {names.ANNOTATION_RESUME}={shown}")
    message = (
        f"{some(unseen)} failed in this revision of the policy, and spec.rollout.maxFailures is {most}{old}: no"
        f" further node starts. When the cause is fixed, run {resume}"
    )
    return shown, Finding(Reason.HALTED, message, commands=(resume,))


def find_failed(pool: Pool) -> dict[str, str]:
    """Return the names of the nodes that have failed in this revision, as messages show them, by UID."""
    failing = {one.node.uid: one.node.name for one in pool.members if one.marked and has_failed(one, pool.policy)}
    return {**pool.failed_before, **failing}


DIGESTS_SHARE = 2
"""The part of the Lease for nodes that are on record as approved or seen: at most one in so many characters."""


def agree(pool: Pool, room: int = LEASE_ROOM // DIGESTS_SHARE) -> Consent | None:
    """Return what people have agreed to after this pass. `pool.consent` is what they had agreed to before it.

    What needs more characters than `room` is not remembered, and `find_oversize` says so first.
    """
    policy = pool.policy
    if policy.spec is None or not (pool.consent is not None or policy.approved or policy.resumed):
        return pool.consent
    failed, consent = find_failed(pool), pool.agreed
    seen = digests_in(consent.seen) & {digest_of(uid) for uid in failed}
    new = consent = replace(consent, seen="".join(sorted(seen)))
    plan = propose(pool) if _asks(pool) else None
    if plan is not None and plan.approved and plan.changes:
        new = replace(new, approved=plan.hash, changes=plan.changes)
    if (halt := find_halt(pool)) is not None and policy.resumed == halt[0]:
        new = replace(new, resumed=halt[0], seen="".join(sorted(map(digest_of, failed))))
    if _size(new) > room:  # of what is known already, the approval goes last
        new = consent if _size(consent) <= room else replace(consent, changes=())
    return None if new == Consent(new.revision) else new


def _asks(pool: Pool) -> bool:
    return pool.policy.spec is not None and pool.spec.rollout.approval == "Manual"


def _is_done(member: Member) -> bool:
    assessed = member.case.assessed
    return member.node.fence is None and assessed is not None and assessed.mismatch is None


def find_oversize(pool: Pool, room: int) -> Finding | None:
    """Return why an approval of the policy's plan could not be kept in `room` characters of the Lease, if so."""
    if not _asks(pool) or pool.agreed.changes:
        return None
    if len(pool.members) * DIGEST <= room or (plan := propose(pool)).size <= room:
        return None
    message = (
        f"spec.rollout.approval is Manual, and the plan has {counted(plan.size // DIGEST, 'node')}; the operator can"
        f" remember an approval of {max(0, room // DIGEST)} more. Split the pool into several policies, or set"
        " spec.rollout.approval to Automatic"
    )
    return Finding(Reason.APPROVAL_TOO_LARGE, message)


def _size(consent: Consent) -> int:
    return len(consent.seen) + sum(len(change.nodes) for change in consent.changes)


def find_stop(pool: Pool) -> Finding | None:
    """Return why no node of the pool starts before a person, the clock or another node acts; None if one may start."""
    if pool.policy.spec is None:
        return None
    if pool.spec.rollout.paused:
        return Finding(Reason.PAUSED, tell_pause(pool.policy))
    return find_hold(pool)


_HELD = Finding(Reason.PAUSED, "not counted yet")


def find_ended(members: Mapping[str, Member], fences: Iterable[str]) -> dict[str, Member]:
    """Return, as held, the nodes whose run has ended and that are about to start another because of an edit."""
    over = {name: members[name] for name in fences if name in members and has_ended(members[name].case)}
    waits = Reason.WAITS_FOR_WAVE
    held = {name: judge_held(one, _HELD) for name, one in over.items() if one.verdict.reason is not waits}
    return {name: one for name, one in held.items() if one.verdict != judge(replace(one.case, held=None))}


def let_start(
    ended: Mapping[str, Member], members: Mapping[str, Member], pools: Mapping[str, Pool]
) -> dict[str, Member]:
    """Return each node of `ended` as in `members` if its policy may start it, else with why it may not."""
    found, begun = {}, Counter[str]()
    for name, member in sorted(ended.items()):
        pool = pools.get(member.policy)
        stop = find_stop(pool) if pool is not None else None
        if stop is None and pool is not None and isinstance(canaries := find_canary(pool), int):
            begun[pool.policy.name] += 1
            stop = wait_for_canaries(pool) if begun[pool.policy.name] > canaries else None
        found[name] = members[name] if stop is None else judge_held(member, stop)
    return found


def find_full(pool: Pool) -> Finding:
    """Return that no slot of the pool is free; it stands if only a person can free one."""
    stands = pool.used >= pool.limit and not pool.moving and all(map(is_for_a_person, pool.keepers))
    nodes = counted(pool.total, "node")
    text = f"spec.rollout.maxUnavailable allows {pool.limit} of {nodes} to be unavailable at once"
    return _tell_full(text, pool.keepers, stands=stands)


def find_capped(snapshot: ClusterSnapshot, members: Mapping[str, Member], *, reserved: int) -> Finding:
    """Return the same of the operator-wide cap, of which `reserved` slots are kept."""
    fences = snapshot.fences.items()
    in_flight = [members[name] for name, fence in fences if fence.stage != "yielded" and name in members]
    stands = all(one.keeps_slot and is_for_a_person(one) for one in in_flight)
    stands = stands and not reserved and len(in_flight) >= snapshot.settings.max_in_flight
    return _tell_full(CAP, [one for one in in_flight if one.keeps_slot], stands=stands)


def _tell_full(text: str, keepers: Iterable[Member], *, stands: bool) -> Finding:
    why, keeper = name_keepers(keepers)
    remedy = f". How to free one: kubectl gpusharing why {keeper.removeprefix('node/')}" if stands and keeper else ""
    return Finding(Reason.BUDGET_FULL, f"{text}{why}; waiting for a slot{remedy}", keeper=keeper, stands=stands)


def wait_for(case: NodeCase, why: Finding, *, for_slot: bool) -> Verdict:
    """Return the verdict of a candidate that waits for a slot or a hold. It depends only on the arguments."""
    phase, until = (Phase.PENDING, None) if for_slot else (why.reason.waiting_phase, why.until)
    found = case.show(phase, why, wake=until, candidate=for_slot)
    return replace(found, deadline=until, keeper=why.keeper)


MOST = 150
"""The most failures on record, over all policies. The Lease's annotations may have at most 256 KiB (kube.fence)."""


def find_gone(claims: Mapping[str, Claim], nodes: Mapping[str, NodeView]) -> dict[str, FailedNode]:
    """Return the nodes that were deleted or replaced past the point of no return and unproven, by their former UID."""
    return {
        claim.node_uid: FailedNode(name, claim.version, gone=True)
        for name, claim in claims.items()
        if claim.version is not None and ((node := nodes.get(name)) is None or node.uid != claim.node_uid)
    }


def count_failures(pool: Pool, recorded: Mapping[str, FailedNode]) -> tuple[dict[str, FailedNode], dict[str, str]]:
    """Return the failures of the policy after this pass, and `Pool.failed_before`; both by UID of the Node.

    A failure counts until its node is proven or the policy gets a new revision, even if the node is gone by then.
    """
    version, marked = pool.policy.version, (one for one in pool.members if one.marked)
    shown = {one.node.uid: FailedNode(one.node.name, version) for one in marked if has_failed(one, pool.policy)}
    lost = {uid: one for uid, one in recorded.items() if one.version == version and uid not in shown}
    for member in pool.members if lost else ():
        fence = member.node.fence
        aside = fence is not None and fence.stage == "yielded" and fence.proven is not None
        if aside or member.verdict.phase is Phase.SYNCED:
            lost.pop(member.node.uid, None)
    gone = " (deleted in the middle of its change)"
    return lost | shown, {uid: one.node + (gone if one.gone else "") for uid, one in lost.items()}


def with_records(
    pools: Mapping[str, Pool], snapshot: ClusterSnapshot
) -> tuple[dict[str, Pool], dict[str, FailedNode], dict[str, Consent]]:
    """Return the pools with what is on record about them, and the failures and consents to record after this pass."""
    recorded = {**find_gone(snapshot.claims, snapshot.nodes), **snapshot.failed_nodes}
    found, failures, consents = dict[str, Pool](), dict[str, FailedNode](), dict[str, Consent]()
    for name, bare in pools.items():
        failed, earlier = count_failures(bare, recorded)
        failures |= dict(sorted(failed.items())[: MOST - len(failures)])
        found[name] = replace(bare, failed_before=earlier, consent=snapshot.consents.get(bare.policy.uid))
    room = snapshot.lease_room // DIGESTS_SHARE
    crowded = sum(_size(one.agreed) or len(one.members) * DIGEST for one in found.values() if _asks(one)) > room

    def last(name: str) -> tuple[bool, bool]:
        # An approval that has nothing left to allow but corrections of drift gets what the others leave.
        pool = found[name]
        return crowded and all(map(_is_done, pool.members)), not pool.agreed.changes

    for name in sorted(found, key=last):
        pool = replace(found[name], oversize=find_oversize(found[name], room))
        if (consent := agree(pool, room)) is not None:
            consents[pool.policy.uid] = consent
            room -= _size(consent)
        found[name] = replace(pool, consent=consent)
    return found, failures, consents
