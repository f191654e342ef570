"""What did a person approve of a policy, and does the present plan go beyond it?

What was approved is written down at once (`Consent`) and compared from then on, so no progress makes an approval void
(docs/design/drain.md#approval).
"""

from collections.abc import Iterator, Sequence
from hashlib import sha256

from gpusharing.api.names import DisruptionClass
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.snapshot.records import ApprovedChange, Consent, digest_of, digests_in
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.transition.attempts import has_ended, owed_for
from gpusharing.planning.transition.cases import Member
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.assess import Assessed

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


def consent_to(policy: PolicyView, recorded: Consent | None) -> Consent:
    """Return what is still agreed to in the present revision of the policy."""
    revision = policy.version.revision
    if recorded is None:
        return Consent(revision)
    return recorded if recorded.revision == revision else Consent(revision, recorded.approved, (), recorded.resumed)


def propose(pool: Pool) -> Approvable:
    """Return the approved plan as long as nothing goes beyond it, else the present one."""
    policy, consent = pool.policy, consent_to(pool.policy, pool.consent)
    if consent.changes and consent.approved:
        differs = tuple(_find_excess(consent, pool))
        if not differs:
            return Approvable(consent.approved, consent.changes, policy.approved == consent.approved)
    else:
        differs = (f"the policy asks for something else, revision {consent.revision}",) if consent.approved else ()
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
    fence, assessed = member.node.fence, member.assessment
    if not isinstance(assessed, Assessed):  # a node in flight whose GPU or agent is gone for now
        ours = fence is not None and fence.version == policy.version and fence.approved
        return (fence.planned, fence.approved) if fence is not None and ours else None
    now = member.case.disruption if member.case is not None and fence is None else assessed.disruption
    classes = [DisruptionClass.NONE if assessed.mismatch is None else now]
    if fence is not None:
        classes.append(fence.planned)
    elif assessed.mismatch is None:
        return None
    return max(classes, key=lambda one: one.severity), owed_for(assessed.target)


def _find_excess(consent: Consent, pool: Pool) -> Iterator[str]:
    """Yield what nodes that have yet to begin would need beyond the consent. The fences of those in flight say theirs.

    A node whose run for another revision or policy has ended without a proof has yet to begin another.
    """
    approved = {digest: change for change in consent.changes for digest in digests_in(change.nodes)}
    joined = []
    for member in pool.members:
        assessed, name = member.assessment, member.node.name
        if not isinstance(assessed, Assessed) or assessed.mismatch is None:
            continue
        fence, case = member.node.fence, member.case
        ours = fence is not None and (fence.rolls_back or fence.version == pool.policy.version)
        if ours or (fence is not None and (case is None or not has_ended(case))):
            continue
        change = approved.get(digest_of(member.node.uid))
        disruption = case.disruption if case is not None and fence is None else assessed.disruption
        if change is None:
            joined.append(name)
        elif fence is None and disruption.severity > change.disruption.severity:
            yield f"{name} needs {disruption} instead of {change.disruption}"
        elif owed_for(assessed.target) != change.target:
            yield f"{name} would get another layout, {assessed.target.text}"
    if joined:
        yield f"{some(sorted(joined))} {'was' if len(joined) == 1 else 'were'} not in it"
