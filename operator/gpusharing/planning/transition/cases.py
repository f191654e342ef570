"""What is the verdict on each node in this pass, and what of those that need more than one node?

An error about one node or one policy must not end the pass: the node, or all nodes of the policy, show it. The readers
of input do not raise (`parse_yaml`, `kube.convert`), so only faults in our own code are caught; without that, the
process would end, restart, and fail on the same object again.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TypeAlias

from gpusharing.api.names import LABEL_POLICY, DisruptionClass, Phase
from gpusharing.api.policy import Drain
from gpusharing.planning.gpus.cards import Profile
from gpusharing.planning.snapshot.actions import Actuate, EnsureGPUNode, Release, RestartOperand, UpdateFence
from gpusharing.planning.snapshot.agents import ALL_OTHERS
from gpusharing.planning.snapshot.memo import Column, Memo
from gpusharing.planning.snapshot.memory import (
    CLAIMS,
    DRIFTS,
    LONGEST_WAIT,
    TAINT_RULE,
    WITHDRAWN,
    CallFailure,
    Look,
    policy_subject,
)
from gpusharing.planning.snapshot.nvidia import Program
from gpusharing.planning.snapshot.podviews import GangView
from gpusharing.planning.snapshot.records import Claim, Fence, SpecVersion
from gpusharing.planning.snapshot.views import ClusterSnapshot, GPUNodeView, GpuView, Hardware, NodeView
from gpusharing.planning.stack.acceptance import find_spec
from gpusharing.planning.transition.judge import differs_from_target, find_traces, judge
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.findings import Blocker, Finding
from gpusharing.planning.vocabulary.reasons import Mark, Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.actuators import find_actuator
from gpusharing.planning.wanted.assess import Assessment, assess
from gpusharing.planning.wanted.target import PolicyTargets
from gpusharing.planning.wanted.verify import tell_withdrawn


@value
class Member:
    """One node as the pool of its policy counts it."""

    case: NodeCase
    """The case at the time when it was judged. It has no assessment if the node cannot be judged."""
    verdict: Verdict
    """The verdict before the pools choose."""
    policy: str
    """The policy with which the node is compared, else the policy that its verdict names."""
    away: bool
    """Whether the node is unavailable, or somebody else has begun to work on it and may drain it.

    A required driver upgrade that has not begun may wait for weeks and takes no slot (docs/design/nvidia.md#d4).
    """
    marked: bool
    """Whether the Node has a fence or a record of a failed change. Any other node cannot have failed."""
    to_go: bool
    """Whether the node has yet to be drained. Its change needs an idle node, is not skipped and has not begun."""
    outside: bool
    """Whether the policy selects the node but has nothing to change there, such as a node without a GPU."""
    seen: tuple[tuple[str, str], ...] = ()
    """What is seen of the node, as in `PassMemory.seen_since`."""
    heir: str = ""
    """The policy that owns the node by now, while it is still in a change of another one."""

    @property
    def keeps_slot(self) -> bool:
        """Whether the node, in a change, occupies its slot of the operator-wide cap until somebody acts."""
        held = self.verdict.phase is Phase.FAILED or self.verdict.reason is Reason.DRAIN_HELD
        return held or not self.verdict.phase.in_flight

    @property
    def node(self) -> NodeView:
        return self.case.node

    @property
    def assessment(self) -> Assessment | None:
        return self.case.assessment


def find_member(case: NodeCase, verdict: Verdict, seen: tuple[tuple[str, str], ...] = ()) -> Member:
    node, records = case.node, (case.node.verified, case.node.deferred)
    waits = verdict.phase.part == "before" and verdict.phase is not Phase.SKIPPED
    policy = case.policy.name if case.policy is not None else verdict.policy
    return Member(
        case,
        verdict,
        policy=policy,
        away=is_unavailable(node) or (bool(node.foreign) and not node.foreign_waits),
        marked=node.fence is not None or any(record and record.failed_version for record in records),
        to_go=verdict.disruption.cordons and waits and node.fence is None,
        outside=Mark.OUTSIDE in verdict.reason.marks and not is_begun(node),
        seen=(*seen, WITHDRAWN) if tell_withdrawn(node) else seen,
        heir=case.owner_name if node.fence is not None and case.owner_name != policy else "",
    )


def is_begun(node: NodeView) -> bool:
    """Whether a change has begun on the node and has not ended, even if its fence cannot be read."""
    return node.fence is not None or bool(node.fence_error)


def is_unavailable(node: NodeView) -> bool:
    """Whether the node is not Ready, cordoned, being deleted, or in a change, even one without a cordon."""
    return not node.ready or node.unschedulable or node.deleting or is_begun(node)


def compare(case: NodeCase, terms: PolicyTargets | None) -> NodeCase:
    """Return the case with its assessment, and without pods that were listed for less than the present reboot."""
    if terms is not None:
        found = assess(case.node, case.gpunode, terms, actuator=case.actuator)
        case = replace(case, assessment=found)
    unread = case.work is not None and case.scope.all_pods and not case.work.scope.all_pods
    return replace(case, work=None) if unread else case


def judge_case(case: NodeCase, terms: PolicyTargets | None) -> Member | None:
    """Return the node as its pool counts it, or None if it does not concern us."""
    case = compare(case, terms)
    node, verdict = case.node, judge(case)
    if verdict is None:
        return None
    # A candidate differs from its target, or it would not be one.
    differs = node.fence is None and node.ready and (verdict.candidate or differs_from_target(case))
    traces = [(node.boot_id, trace.claim) for trace in find_traces(case)]
    return find_member(case, verdict, (*traces, *([DRIFTS] if differs else ())))


def judge_held(member: Member, why: Finding) -> Member:
    """Return the node as if its policy might not start a node now, for this reason."""
    case = replace(member.case, held=why)
    return find_member(case, judge(case) or member.verdict)


def keeps_verdict(member: Member | None) -> bool:
    """Whether `judge_case` gives the same answer until something other than the time changes."""
    if member is None:
        return True
    return not is_begun(member.node) and member.verdict.wake is None and not member.verdict.actions


def find_widened(members: Mapping[str, Member], looks: Mapping[str, Look]) -> dict[str, tuple[SpecVersion, str]]:
    """Return what the last LIST of the pods of each node found in the way of a change of only some GPUs."""
    found: dict[str, tuple[SpecVersion, str]] = {}
    for name, member in members.items():
        case = member.case
        if case.assessed is None or case.assessed.disruption is not DisruptionClass.CHANGED_GPUS:
            continue
        look = looks.get(name)
        if case.node.fence is None and (why := (look.widened if look is not None else "") or case.unplaced):
            found[name] = case.assessed.policy.version, why
    return found


def judge_nodes(
    snapshot: ClusterSnapshot,
    *,
    owners: Mapping[str, str],
    terms: Mapping[str, PolicyTargets],
    followed: Mapping[str, PolicyTargets | None],
    now: datetime,
    memo: Memo,
    failed: dict[str, Exception],
) -> dict[str, Member]:
    """Return the nodes that concern us, sorted by name; those in `failed`, to which this adds, are Blocked."""
    stack, settings, old_views, unserved = snapshot.stack, snapshot.settings, snapshot.old_views, snapshot.unserved
    others = snapshot.agent_troubles.get(ALL_OTHERS)
    troubles = {name: snapshot.agent_troubles.get(name, others) for name in followed.keys() - snapshot.agents}
    owned = {name: terms.get(owners[name]) for name in followed}
    claimed, seen = snapshot.claims.keys(), snapshot.memory.seen_since
    widened = {
        name: why
        for name, (version, why) in snapshot.memory.widened.items()
        if (its := owned.get(name)) is not None and its.policy.version == version
    }
    actuator = find_actuator(stack)
    pods = {program: snapshot.operands.get(program, {}) for program in Program}

    def find_case(name: str) -> NodeCase:
        owner = owned.get(name)
        return NodeCase(
            node=snapshot.nodes[name],
            gpunode=snapshot.gpunodes.get(name),
            owner=owner.policy if owner is not None else None,
            work=snapshot.work.get(name),
            agent_ready=name in snapshot.agents,
            agent_trouble=troubles.get(name),
            operands={program: by_node[name] for program, by_node in pods.items() if name in by_node},
            mig_failure=snapshot.mig_failures.get(name, ""),
            claimed=name in claimed,
            seen_since=seen.get(name, {}),
            actuator=actuator,
            stack=stack,
            settings=settings,
            now=now,
            old_views=old_views,
            unserved=unserved,
            widened=widened.get(name, ""),
        )

    nodes = snapshot.nodes, snapshot.gpunodes, snapshot.work, snapshot.agents, snapshot.mig_failures
    columns: list[Column] = [*nodes, troubles, owned, claimed, seen, widened, followed, *pods.values()]
    judged = memo.table(
        lambda name: judge_case(find_case(name), followed[name]),
        followed,
        columns=columns,
        shared=[stack, settings, old_views, unserved, actuator],
        key=judge_case,
        lasts=keeps_verdict,
        failed=failed,
    )
    members = {name: one for name, one in judged.items() if one is not None}
    if not failed:
        return members
    for name, error in failed.items():
        node = snapshot.nodes[name]
        owner = owners.get(name, node.labels.get(LABEL_POLICY, ""))
        members[name] = find_member(find_case(name), not_judged(node, owner, error))
    return dict(sorted(members.items()))


def find_models(gpunodes: Iterable[GPUNodeView | None]) -> dict[str, GpuView]:
    """Return, by product, one GPU of each card model, with the profiles that most nodes report for it.

    NVIDIA's well-known names mean the same on every node, so no single report decides.
    """
    reports = (gpunode.observed for gpunode in gpunodes if gpunode is not None)
    kinds: Counter[Hardware] = Counter(report.hardware for report in reports if report is not None)
    known: dict[tuple[str, int], GpuView] = {}
    counts: Counter[tuple[str, int]] = Counter()
    for hardware, nodes in kinds.items():
        # One node must not hide the others; `judge_case` shows its error (`not_judged`).
        with suppress(Exception):
            for gpu in hardware.models:
                known.setdefault(card := (gpu.product, id(gpu.profiles)), gpu)
                counts[card] += nodes
    votes: Counter[tuple[str, tuple[Profile, ...]]] = Counter()
    first: dict[tuple[str, tuple[Profile, ...]], GpuView] = {}
    for card, gpu in known.items():  # profiles are nearly always one object, and long to compare
        key = gpu.product, gpu.profiles
        votes[key] += counts[card]
        first.setdefault(key, gpu)
    models: dict[str, GpuView] = {}
    for key, _ in votes.most_common():
        models.setdefault(key[0], first[key])
    return models


class UnjudgedPolicyError(Exception):
    """The error about a policy, as it is recorded for each of its nodes."""

    def __init__(self, policy: str, error: Exception) -> None:
        self.finding = of_policy(policy, error)
        super().__init__(self.finding.message)


def of_policy(policy: str, error: Exception) -> Finding:
    return Finding(Reason.POLICY_NOT_JUDGED, f"policy {policy} cannot be evaluated: {explain_error(error)}")


def find_fault(error: Exception) -> Finding:
    if isinstance(error, UnjudgedPolicyError):
        return error.finding
    return Finding(Reason.NODE_NOT_JUDGED, explain_error(error))


def not_judged(node: NodeView, policy: str, error: Exception) -> Verdict:
    fence, why = node.fence, find_fault(error)
    return Verdict(
        node=node.name,
        policy=fence.policy if fence else policy,
        phase=Phase.BLOCKED,
        reason=why.reason,
        message=f"{why.message}; the node is left unchanged",
        disruption=fence.disruption if fence else DisruptionClass.NONE,
        wanted=fence.to_layout if fence else "",
        attempt=fence.attempt if fence else 0,
    )


def explain_error(error: Exception) -> str:
    """Return the error's type, text and place, such as `KeyError: 'a' (plan.py, plan_drain, line 80)`."""
    trace, place = error.__traceback__, "place unknown"
    while trace is not None:
        code = trace.tb_frame.f_code
        place = f"{code.co_filename.rpartition('/')[2]}, {code.co_name}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__}: {str(error)[:200]} ({place})"


Rules: TypeAlias = tuple[str, Drain | Finding]
"""A policy, and its spec.drain or why that is unknown."""


def with_rules(
    snapshot: ClusterSnapshot,
    followed: Mapping[str, PolicyTargets | None],
    owners: Mapping[str, str],
    failed: Mapping[str, Exception],
) -> ClusterSnapshot:
    """Return the snapshot with the drain rules of each gang member on a node that has other rules.

    A member's rules are those of its own node's policy. If they are unknown, the members there must stay
    (docs/adr/0039-a-wave-stays-within-its-policy.md).
    """
    if len(snapshot.policies) < 2 and not failed:
        return snapshot

    def find_rules(node: str) -> Rules | None:
        if (error := failed.get(node)) is not None:
            policy, why = owners.get(node, ""), find_fault(error)
        elif (terms := followed.get(node)) is not None:
            policy, spec = terms.policy.name, find_spec(terms.policy)
            if not isinstance(spec, Finding):
                return policy, spec.drain
            why = replace(spec, message=f"policy {policy} cannot be read: {spec.message}")
        else:
            return None
        message = f"The drain rules for the pod's node are unknown and may forbid evicting the pod: {why.message}"
        return policy, replace(why, message=message)

    ruled = {}
    for name, work in snapshot.work.items():
        own_rules = find_rules(name)
        views = [_with_rules(view, own_rules, find_rules) for view in work.gangs]
        if any(view is not before for view, before in zip(views, work.gangs, strict=True)):
            ruled[name] = replace(work, gangs=tuple(views))
    return replace(snapshot, work={**snapshot.work, **ruled}) if ruled else snapshot


def _with_rules(view: GangView, own: Rules | None, find_rules: Callable[[str], Rules | None]) -> GangView:
    found = {node: find_rules(node) for node in {member.node for member in view.members}}
    others = {node: rules for node, rules in found.items() if rules is not None and (own is None or rules[1] != own[1])}
    members = [
        replace(one, policy=others[one.node][0], rules=others[one.node][1]) if one.node in others else one
        for one in view.members
    ]
    return replace(view, members=tuple(members)) if others else view


def is_moot(verdict: Verdict) -> bool:
    """Whether an earlier failure no longer matters to the node."""
    return verdict.phase in (Phase.SYNCED, Phase.SKIPPED) and not verdict.actions


def calls_fail(verdict: Verdict) -> bool:
    return any(blocker.reason is Reason.CALL_FAILED for blocker in verdict.blockers)


RETRIED = "; the call is retried with increasing delays"


def show_failure(verdict: Verdict, failure: CallFailure, now: datetime, fence: Fence | None = None) -> Verdict:
    """Return the verdict with a lasting failure of its calls in it. While calls are suspended, it is no candidate."""
    suspended = failure.holds(now)
    # Much has to be proven again before some calls, so the next attempt may come this late.
    recent = now < failure.next_try + timedelta(seconds=LONGEST_WAIT)
    on_its_way = verdict.phase.in_flight and recent
    silent = not verdict.actions and not (suspended and verdict.candidate) and not on_its_way
    if silent or calls_fail(verdict) or verdict.reason is Reason.KIND_NOT_SERVED:  # the call is not made any more
        return verdict
    wake = verdict.wake
    if suspended:
        wake = min(wake, failure.next_try) if wake is not None else failure.next_try
    verdict = replace(verdict, wake=wake, candidate=verdict.candidate and not suspended)
    if not failure.lasts:
        return verdict
    phase = Phase.PENDING if verdict.starts else verdict.phase  # nothing has begun
    reason, message = Reason.CALL_FAILED, f"{failure.message}{RETRIED}"
    commands = verdict.commands if verdict.reason is Reason.CORDON_KEPT else ()
    if verdict.reason is Reason.CORDON_KEPT:
        message = f"{verdict.message}. This step waits for a call that keeps failing: {message}"
        reason = verdict.reason
    return replace(
        verdict,
        phase=Phase.FAILED if _is_late(verdict, fence, now) else phase,
        reason=reason,
        message=message,
        deadline=None if any(isinstance(action, Release) for action in verdict.actions) else verdict.deadline,
        blockers=(*verdict.blockers, Blocker(Reason.CALL_FAILED, message=failure.message)),
        stands=verdict.stands or failure.refused,
        commands=commands,
    )


def _is_late(verdict: Verdict, fence: Fence | None, now: datetime) -> bool:
    """Whether the deadline is over and a step past the PNR still has to be sent. A release is no such step."""
    if verdict.deadline is None or now < verdict.deadline:
        return False
    asks = fence is not None and fence.stage == "actuating"
    asks = asks and verdict.phase in (Phase.VERIFYING, Phase.VERIFYING_IDLE)
    for action in verdict.actions:
        if isinstance(action, RestartOperand) or (asks and isinstance(action, EnsureGPUNode)):
            return True
        if isinstance(action, UpdateFence | Actuate):
            written = action.node.fence
            if written is not None and written.stage == "actuating":
                return True
    return False


def _record_failure(verdict: Verdict, node: NodeView, now: datetime) -> Verdict:
    """Record the failure, if possible with a due PATCH (docs/adr/0044-what-was-seen-is-written-down.md)."""
    fence = node.fence
    if fence is None or fence.failed is not None:
        return verdict
    actions = tuple(
        replace(action, fence=replace(action.fence, failed=now))
        if isinstance(action, UpdateFence | Actuate)
        and action.fence.version == fence.version != action.fence.failed_version
        else action
        for action in verdict.actions
    )
    if any(isinstance(action, UpdateFence | Actuate) for action in actions):
        return verdict.then(*actions)
    return verdict.then(UpdateFence(node, replace(fence, failed=now)), *actions)


def find_uncertain_claims(snapshot: ClusterSnapshot, members: Mapping[str, Member], now: datetime) -> dict[str, Claim]:
    """Return the claims of nodes whose fence may exist although the call that wrote it failed."""
    failures, claims = snapshot.call_failures, snapshot.claims
    return {
        node: claims[node]
        for node in sorted(failures.keys() & members.keys() & claims.keys())
        if members[node].verdict.candidate and failures[node].holds(now) and not failures[node].lasts
    }


def find_late(failures: Mapping[str, CallFailure], members: dict[str, Member], now: datetime) -> dict[str, Member]:
    """Return all members, with new verdicts for nodes that a failing call has made late or stuck."""
    late = {}
    for node, failure in failures.items():
        if (member := members.get(node)) is None or member.verdict.phase is Phase.FAILED:
            continue
        verdict = show_failure(member.verdict, failure, now, member.node.fence)
        if verdict.phase is Phase.FAILED:
            late[node] = replace(member, verdict=_record_failure(verdict, member.node, now))
        elif verdict.phase.in_flight and failure.stuck:
            late[node] = replace(member, verdict=verdict)
    return {**members, **late} if late else members


def keep_back(
    verdicts: Mapping[str, Verdict], why: str, failure: CallFailure | None, now: datetime
) -> dict[str, Verdict]:
    """Return the verdicts with Pending ones for all nodes that would start. `failure` is that of the policies."""
    changed = dict(verdicts)
    for node, verdict in verdicts.items():
        if not verdict.starts:
            continue
        changed[node] = waits = replace(
            verdict,
            phase=Phase.PENDING,
            reason=Reason.PROGRESSING,
            message=f"{why}; until this is resolved, no node starts its change",
            actions=(),
            deadline=None,
            wake=now + timedelta(seconds=LONGEST_WAIT),
            commands=(),
        )
        if failure is not None and failure.lasts:
            blockers = (*verdict.blockers, Blocker(Reason.CALL_FAILED, message=failure.message))
            changed[node] = replace(waits, reason=Reason.CALL_FAILED, blockers=blockers)
    return changed


def show_failures(
    failures: Mapping[str, CallFailure], verdicts: Mapping[str, Verdict], now: datetime, ruled: Collection[str] = ()
) -> dict[str, Verdict]:
    """Return the verdicts with failures of calls in them, also of those that keep every fence from being written.

    `ruled` are the nodes whose DeviceTaintRule has to go: while it cannot be removed, no GPU pod starts there.
    """
    shown = dict(verdicts)
    for node in failures.keys() & verdicts.keys():
        shown[node] = show_failure(verdicts[node], failures[node], now)
    if failures.keys() - verdicts.keys():
        for node, verdict in shown.items():
            common = failures.get(CLAIMS) or failures.get(policy_subject(verdict.policy))
            if verdict.starts and common is not None:
                shown[node] = show_failure(verdict, common, now)
    if (rule := failures.get(TAINT_RULE)) is not None and rule.lasts:
        for node in ruled:
            known = shown.get(node)
            if known is not None and known.phase is Phase.SYNCED:
                message = f"the node's DeviceTaintRule still keeps GPU pods off it: {rule.message}"
                blockers = (*known.blockers, Blocker(Reason.CALL_FAILED, message=rule.message))
                shown[node] = replace(
                    known, phase=Phase.UNCORDONING, reason=Reason.CALL_FAILED, message=message, blockers=blockers
                )
    return shown
