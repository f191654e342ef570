"""What is the plan of a pass? A pure function from a snapshot and the time to verdicts and actions.

Every per-node question goes through the memo, so the cost of a pass depends on what changed and not on the size of the
cluster. `RolloutPlan` lists the invariants.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import field, replace
from datetime import datetime, timedelta
from functools import partial

from gpusharing.api.names import Phase
from gpusharing.planning.drain.evictions import with_evicted
from gpusharing.planning.drain.stranded import Afterwards
from gpusharing.planning.pools.afterwards import find_afterwards, find_previews, is_skipped
from gpusharing.planning.pools.choice import choose, count_vain
from gpusharing.planning.pools.holds import find_ended, find_stop, let_start, with_records
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.pools.waves import hold_together
from gpusharing.planning.pools.writes import find_forgotten, find_resumed, find_space, share
from gpusharing.planning.snapshot.actions import Action, WriteConfig, WriteRules
from gpusharing.planning.snapshot.memo import Memo
from gpusharing.planning.snapshot.memory import POLICIES, PassMemory, remember_seen
from gpusharing.planning.snapshot.records import Consent, FailedNode
from gpusharing.planning.snapshot.views import ClusterSnapshot, GpuView
from gpusharing.planning.stack.acceptance import find_targets, request_of, with_effects
from gpusharing.planning.stack.drastack import is_complete
from gpusharing.planning.stack.effects import after
from gpusharing.planning.stack.pointers import find_held
from gpusharing.planning.transition.cases import (
    Member,
    UnjudgedPolicyError,
    find_late,
    find_models,
    find_uncertain_claims,
    find_widened,
    judge_nodes,
    keep_back,
    of_policy,
    show_failures,
    with_rules,
)
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.commands import Change, Effect
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Passes, Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.actuators import find_actuator
from gpusharing.planning.wanted.objects import plan_classes, plan_config
from gpusharing.planning.wanted.ownership import Owners, find_coming, find_contenders
from gpusharing.planning.wanted.target import PolicyTargets, Request, Target


@value
class RolloutPlan:
    """The decisions of one pass.

    These invariants hold after every action, even if the operator is interrupted at any point
    (tests/planning/test_invariants.py):

      (a) the nodes that we make unavailable never exceed the policy's allowance or the operator-wide cap
      (b) no node passes the point of no return while a pod that has to leave is still on it
      (c) DaemonSet, mirror, finished and terminating pods are never evicted, no pod is evicted twice, and no pod of a gang
          is evicted while another member must stay
      (d) a cordon that is not ours is never lifted
      (e) a settled cluster gives an empty plan
      (f) carrying out the plan reaches a fixpoint
      (g) the order of the input does not matter
      (h) a policy with a malformed budget starts no node
      (i) labels and marks that somebody else has set are neither overwritten nor removed
      (k) a node is not cordoned if a pod on it, or a member of such a pod's gang, must not be evicted
      (l) no node starts before a plan of this revision that includes the node was approved
      (m) no node starts outside the windows, or when too little of the window is left
      (n) apart from the canaries, no node starts until all canaries are proven and have served for long enough
      (o) no node starts after maxFailures nodes have failed
      (p) no pod is evicted while a paused policy holds its changes
      (q) a gang starts as a whole if the budget has room for it
      (r) a wave is returned to service as a whole
      (s) a policy that resets its nodes forgets none of them before all have whole GPUs
      (t) no pod is deleted by force too early, without the right to do so, or on a node that would not become empty
          anyway
      (u) a node is rolled back only to the layout last proven on it, and is not changed again by itself
      (v) a node that NVIDIA's DRA driver serves is released only once its present devices are published and can be
          requested, and no DeviceClass is removed that a node needs or that is not ours
    """

    verdicts: Mapping[str, Verdict]
    pools: Mapping[str, Pool]
    objections: Mapping[str, Finding]
    """Why policies are not accepted, by policy."""
    shared: tuple[Action, ...]
    """The writes that serve all nodes. They come before those of the verdicts, because fences need the claims."""
    targets: Mapping[str, Mapping[str, int]]
    """The GPU resources that each node will have, as counts by resource name; skipped nodes are left out."""
    memory: PassMemory
    """What the caller must pass into the next snapshot."""
    wake_at: datetime | None
    """The latest time for the next pass, or None if only an event can change anything."""
    coming: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By policy, or empty for nodes that none owns: the nodes that another policy is still changing."""
    held: tuple[Effect, ...] = ()
    """What nodes would lose by the operator's own write to ClusterPolicy, which waits for that."""
    afterwards: Afterwards = field(default_factory=lambda: Afterwards(tuple), compare=False)


def plan_rollout(snapshot: ClusterSnapshot, now: datetime, memo: Memo | None = None) -> RolloutPlan:
    """Return the plan for this pass.

    `memo` has the answers of earlier passes and is updated; equal snapshots and times give equal plans.
    """
    memo = Memo() if memo is None else memo
    memo.begin(now)
    # An error about one policy or one node does not stop the others.
    failed: dict[str, Exception] = {}
    unread: dict[str, Exception] = {}
    wishes = memo.each(request_of, ((one.name, (one,)) for one in snapshot.policies), failed=unread)
    owners = own(snapshot, memo, failed)
    snapshot = with_effects(snapshot, memo, failed, unread, partial(foresee, now=now, memo=memo))
    stack, settings = snapshot.stack, snapshot.settings
    offers = ((one.name, (one, wishes[one.name], stack, settings)) for one in snapshot.policies if one.name in wishes)
    terms = memo.each(find_targets, offers, failed=unread)
    followed = follow(snapshot, owners, terms, failed=failed, unread=unread)
    snapshot = with_evicted(with_rules(snapshot, followed, owners, failed), now)
    found = judge_nodes(snapshot, owners=owners, terms=terms, followed=followed, now=now, memo=memo, failed=failed)
    models = memo.ask(find_models, tuple(map(snapshot.gpunodes.get, followed)))
    failures, uncertain_claims = snapshot.call_failures, find_uncertain_claims(snapshot, found, now)
    members = find_late(failures, found, now)
    members = members | hold_together(members, snapshot, now)
    ended = find_ended(members, snapshot.fences)
    pools, failed_nodes, consents = _pools(snapshot, members | ended, uncertain_claims, now, memo)
    if ended:  # what the policies hold depends on how these nodes count, and the other way round
        members = members | let_start(ended, members, pools)
        pools, failed_nodes, consents = _pools(snapshot, members, uncertain_claims, now, memo)
    verdicts = {name: member.verdict for name, member in members.items()}
    kept_claims = find_resumed(snapshot.claims, snapshot.nodes, verdicts, now) | uncertain_claims
    reserved = len(kept_claims)
    afterwards = find_afterwards(snapshot, members, pools, reserved=reserved)
    space = find_space(snapshot, kept_claims, failed_nodes, consents)
    choice, crowd_known = choose(snapshot, now, pools, members, afterwards, reserved=reserved, space=space, memo=memo)
    old = snapshot.old_views and f"the data about {snapshot.old_views} is out of date"
    # A pass for another reason must not put off the moment at which the shared looks are free again.
    poll = timedelta(seconds=settings.poll)
    free = max((one.at + poll for one in choice.looks.values() if one.at + poll > now), default=now + poll)
    dues = (look.due(settings.poll) for _, look, _ in choice.standing.values())
    looked = min((due if due > now else free for due in dues), default=None)
    if why := snapshot.policies_error or old:
        kept_back = keep_back(choice.verdicts, why, failures.get(POLICIES), now)
        choice = replace(choice, verdicts=kept_back, claims={})
    verdicts |= choice.verdicts
    verdicts |= find_forgotten(pools, verdicts, snapshot.nodes, find_actuator(stack))
    previews, wants_pods, wake = find_previews(pools, verdicts, snapshot, afterwards, now)
    assessments = ((name, one.case.assessed) for name, one in members.items())
    targets = {name: assessed.target for name, assessed in assessments if assessed is not None}
    config = configure(snapshot, targets.values(), models, wishes, memo)
    by_dra = is_complete(stack, settings)
    classes = plan_classes(snapshot, targets.values()) if by_dra else None
    unfenced = {**choice.claims, **kept_claims}
    shared = share(
        snapshot, config, unfenced, pools, verdicts, failed_nodes=failed_nodes, consents=consents, classes=classes
    )
    ruled = {rule.node for one in shared if isinstance(one, WriteRules) for rule in one.remove}
    verdicts = show_failures(failures, verdicts, now, ruled)
    vain = count_vain(pools, verdicts, choice.looks, snapshot) if crowd_known else {}
    return RolloutPlan(
        verdicts=verdicts,
        pools=pools,
        objections=_object(terms, unread, pools),
        shared=shared,
        targets={name: one.resources for name, one in targets.items() if not is_skipped(snapshot.nodes[name])},
        memory=PassMemory(
            wants_pods=wants_pods.union(name for name, one in verdicts.items() if one.wants_pods),
            proving=frozenset(
                name
                for name, one in verdicts.items()
                if one.phase is Phase.VERIFYING_IDLE and one.reason is Reason.SETTLING
            ),
            seen_since=remember_seen(snapshot.memory, {name: one.seen for name, one in members.items()}, now),
            looks=choice.looks,
            previews=previews,
            widened=find_widened(members, choice.looks),
            evicted=snapshot.memory.evicted,
            vain_passes=vain,
        ),
        held=find_held(stack, settings),
        afterwards=afterwards,
        coming=find_coming(owners, snapshot.fences),
        wake_at=_wake(verdicts, pools, wake, looked),
    )


def foresee(change: Change, snapshot: ClusterSnapshot, *, now: datetime, memo: Memo | None = None) -> dict[str, str]:
    """Return by node what its own change would wait for after that of the installation; empty if it would begin."""
    plan = plan_rollout(after(change, snapshot), now, memo and memo.inner(change))
    stops = {name: find_stop(pool) for name, pool in plan.pools.items()}
    return {name: _find_wait(one, stops.get(one.policy)) for name, one in plan.verdicts.items()}


def _find_wait(verdict: Verdict, stop: Finding | None) -> str:
    if verdict.phase.in_flight or verdict.phase is Phase.SYNCED:
        return ""
    begins = verdict.candidate or verdict.reason.passes is Passes.SOON
    if begins and not verdict.stands:  # what the policy waits for may show only once the configuration is there
        return f"its change would wait: {stop.reason}" if stop is not None else ""
    return f"its change would wait: {verdict.reason}"


def _object(
    terms: Mapping[str, PolicyTargets], unread: Mapping[str, Exception], pools: Mapping[str, Pool]
) -> dict[str, Finding]:
    found = {name: one.request for name, one in terms.items() if isinstance(one.request, Finding)}
    found |= {name: of_policy(name, error) for name, error in unread.items()}
    found |= {name: one.oversize for name, one in pools.items() if name not in found and one.oversize is not None}
    closed = ((name, pool.hours.closed) for name, pool in pools.items() if name not in found)
    return found | {name: why for name, why in closed if why is not None and why.reason is Reason.POLICY_NOT_JUDGED}


def _wake(verdicts: Mapping[str, Verdict], pools: Mapping[str, Pool], *others: datetime | None) -> datetime | None:
    moments = [*others]
    moments += [verdict.wake for verdict in verdicts.values()]
    moments += [pool.hours.change for pool in pools.values()]
    return min((moment for moment in moments if moment is not None), default=None)


# --- which policy each node follows ------------------------------------------------------------------------


def own(snapshot: ClusterSnapshot, memo: Memo, failed: dict[str, Exception]) -> dict[str, str]:
    """Return the policy that owns each node, sorted by node, or empty. Nodes that cannot be judged are in `failed`."""
    nodes = snapshot.nodes
    owners = memo.ask(Owners, memo.same("contenders", find_contenders(snapshot.policies)))
    return memo.table(
        lambda name: owners.owner(nodes[name]),
        sorted(nodes),
        columns=[nodes],
        shared=[owners],
        key=Owners.owner,
        failed=failed,
    )


def follow(
    snapshot: ClusterSnapshot,
    owners: Mapping[str, str],
    terms: Mapping[str, PolicyTargets],
    *,
    failed: dict[str, Exception],
    unread: Mapping[str, Exception],
) -> dict[str, PolicyTargets | None]:
    """Return the terms that each node is compared with: those of the policy that its fence names, else of its owner.

    A node whose policy is in `unread` is in `failed` instead.
    """
    fences = {name: fence for name, fence in snapshot.fences.items() if name in owners}
    followed = {name: terms.get(owner) for name, owner in owners.items()}
    followed |= {name: terms.get(fence.policy, followed[name]) for name, fence in fences.items()}
    for name in followed.keys() if unread else ():
        policies = {owners[name], fences[name].policy if name in fences else ""}
        if broken := unread.keys() & policies:
            failed[name] = UnjudgedPolicyError(min(broken), unread[min(broken)])
    return {name: one for name, one in followed.items() if name not in failed} if unread else followed


# --- count ----------------------------------------------------------------------------------------------------


def _pools(
    snapshot: ClusterSnapshot,
    members: Mapping[str, Member],
    uncertain_claims: Collection[str],
    now: datetime,
    memo: Memo,
) -> tuple[dict[str, Pool], dict[str, FailedNode], dict[str, Consent]]:
    nodes: dict[str, list[Member]] = {policy.name: [] for policy in snapshot.policies}
    joining = defaultdict[str, list[Member]](list)
    for member in members.values():
        if (pool := nodes.get(member.policy)) is not None:
            pool.append(member)
        if member.heir:
            joining[member.heir].append(member)
    claimed, failed = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    for name in snapshot.claims.keys() & members.keys():
        verdict = members[name].verdict
        over = verdict.candidate or verdict.phase is Phase.SYNCED
        if not over or name in uncertain_claims:  # the claim still holds its slot
            claimed[members[name].policy].add(name)
    for name in snapshot.call_failures.keys() & members.keys():
        if snapshot.call_failures[name].holds(now):
            failed[members[name].policy].add(name)
    rows = {
        one.name: (one, tuple(nodes[one.name]), claimed[one.name], failed[one.name], tuple(joining[one.name]))
        for one in snapshot.policies
    }
    pools = {name: pool.with_hours(now) for name, pool in memo.each(Pool.of, rows.items()).items()}
    return with_records(pools, snapshot)


# --- shared ----------------------------------------------------------------------------------------------------


def configure(
    snapshot: ClusterSnapshot,
    targets: Iterable[Target],
    models: Mapping[str, GpuView],
    wishes: Mapping[str, Request | Finding],
    memo: Memo,
) -> WriteConfig | None:
    """Return the write that brings our ConfigMaps up to date, or None if none is needed or one is somebody else's."""
    requests = memo.same("requests", tuple(one for one in wishes.values() if isinstance(one, Request)))
    plugins = memo.same("plugins", {target.plugin_key: target.plugin for target in targets if target.plugin_key})
    # Nodes decide only which entries stay that nothing else asks for. Without such entries the answer lasts whatever
    # the nodes are, so they are not compared.
    question = partial(plan_config, nodes=snapshot.nodes.values(), gpunodes=snapshot.gpunodes)
    known = (requests, memo.same("models", models), plugins, snapshot.stack)
    return memo.ask(question, *known, lasts=lambda found: found == (None, False))[0]
