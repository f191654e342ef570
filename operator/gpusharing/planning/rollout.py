"""The entry point of the planner: a pure function from a snapshot and the time to a verdict for every node and the
next actions.

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
  (l) no node starts before a plan of this generation that includes the node was approved
  (m) no node starts outside the windows, or when too little of the window is left
  (n) apart from the canaries, no node starts until all canaries are proven and have served for long enough
  (o) no node starts after maxFailures nodes have failed
  (p) no pod is evicted while a paused policy holds its changes
  (q) a gang starts as a whole if the budget has room for it
  (r) a wave is returned to service as a whole
  (s) a policy that resets its nodes forgets none of them before all have whole GPUs
  (t) no pod is deleted by force too early, without the right to do so, or on a node that would not become empty anyway
  (u) a node is rolled back only to the layout last proven on it, and is not changed again by itself
  (v) a node that NVIDIA's DRA driver serves is released only once its present devices are published and can be
      requested, and no DeviceClass is removed that a node needs or that is not ours

The decision is made in this order: which policy owns each node (own); what the policy offers it (agree, follow); what
its target is, whether the node matches it, and how far its change has come (judge_case); which nodes begin now
(choose); and what is written once for all nodes (share). Every per-node question goes through the memo, which caches
the answers without interpreting them, so the cost of a pass depends on what changed and not on the size of the
cluster.

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#claim, docs/design/glossary.md#slot,
docs/design/glossary.md#gang, docs/design/glossary.md#wave, docs/design/glossary.md#point-of-no-return.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import field, replace
from datetime import datetime
from functools import partial

from gpusharing.api.names import LABEL_POLICY, Phase
from gpusharing.planning.drain.stranded import Afterwards
from gpusharing.planning.pools.afterwards import find_afterwards, is_skipped
from gpusharing.planning.pools.choice import choose, count_vain
from gpusharing.planning.pools.failures import count_failures, find_gone
from gpusharing.planning.pools.forgetting import find_forgotten
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.pools.previews import Previews, find_previews
from gpusharing.planning.pools.slots import fences_of, find_resumed, share
from gpusharing.planning.pools.waves import hold_together
from gpusharing.planning.snapshot.actions import Action, WriteConfig
from gpusharing.planning.snapshot.looks import Look, PassMemory
from gpusharing.planning.snapshot.memo import Memo
from gpusharing.planning.snapshot.stackviews import StackView
from gpusharing.planning.snapshot.views import ClusterSnapshot, GPUNodeView, GpuView, NodeView, PolicyView
from gpusharing.planning.stack.acceptance import Terms, find_terms, wish_of
from gpusharing.planning.stack.drastack import is_complete
from gpusharing.planning.stack.migstrategy import find_strategy_users, wants_other_strategy
from gpusharing.planning.transition.callverdicts import Failing
from gpusharing.planning.transition.cases import Cases, find_models, judge_case, keeps_verdict
from gpusharing.planning.transition.gangrules import with_rules
from gpusharing.planning.transition.guard import UnjudgedPolicyError, not_judged, of_policy
from gpusharing.planning.transition.members import Member, find_member
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.actuators.choice import find_actuator
from gpusharing.planning.wanted.configmaps import plan_config
from gpusharing.planning.wanted.draobjects import plan_classes
from gpusharing.planning.wanted.ownership import Owners, find_coming, find_contenders
from gpusharing.planning.wanted.pluginconfig import PluginConfig
from gpusharing.planning.wanted.target import Target, Wish


@value
class RolloutPlan:
    """The decisions of one pass."""

    verdicts: Mapping[str, Verdict]
    """The verdicts by node, in the order of the names."""
    pools: Mapping[str, Pool]
    """The nodes of each policy together, by policy."""
    objections: Mapping[str, Finding]
    """Why policies are not accepted, by policy; accepted ones are left out."""
    shared: tuple[Action, ...]
    """The writes that serve all nodes, in this order: configuration, finalizers, claims, NVIDIA's objects,
    DeviceClasses, DeviceTaintRules. They are made before the writes of the verdicts, because the fences of this pass
    need the claims."""
    targets: Mapping[str, Mapping[str, int]]
    """For each node, the allocatable GPU resources that it will have, as counts by resource name. Nodes without a
    target and skipped nodes are left out."""
    memory: PassMemory
    """What the caller must pass into the next snapshot."""
    wake_at: datetime | None
    """The latest time for the next pass, or None if only an event can change anything."""
    coming: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By policy: the nodes that it owns but that another policy is still changing. The owner gets each node when that
    change ends."""
    afterwards: Afterwards = field(default_factory=lambda: Afterwards(tuple), compare=False)
    """The cluster as it will be when all planned changes are done, which shows which pods could not run then. This is
    derived from the snapshot, so comparisons of plans ignore it."""


@value
class Known:
    """What is known of each policy and each node by itself, before any node is chosen to start."""

    snapshot: ClusterSnapshot
    """The snapshot of this pass, with the rules of other policies for members of gangs."""
    wishes: Mapping[str, Wish | Finding]
    """By policy: what the policy requests, or the reason why its spec is refused."""
    terms: Mapping[str, Terms]
    """What each policy offers its nodes, by policy."""
    unread: Mapping[str, Exception]
    """The errors of the policies that cannot be judged, by policy."""
    owners: Mapping[str, str]
    """The policy that owns each node, by node; an empty string if none does."""
    members: dict[str, Member]
    """The nodes as their pools count them, by node and sorted by name. Nodes that do not concern us are left out."""
    models: Mapping[str, GpuView]
    """One GPU of each card model, by product name. The reports of nodes that cannot be judged count too."""


def plan_rollout(snapshot: ClusterSnapshot, now: datetime, memo: Memo | None = None) -> RolloutPlan:
    """Return the plan for this pass: a verdict for every node that concerns us, the writes that serve all nodes, and
    what the next pass needs. No node starts while the policies cannot be listed or the data is out of date.

    `memo` has the answers of earlier passes and is updated; without a memo, everything is computed. Equal snapshots
    and times give equal plans.
    """
    memo = Memo() if memo is None else memo
    memo.begin(now)
    known = find_known(snapshot, now, memo)
    snapshot, found = known.snapshot, known.members
    failing = Failing.of(snapshot, found, now)
    members = _in_waves(snapshot, failing.find_late(found), now)
    verdicts = {name: member.verdict for name, member in members.items()}
    counted = _pools(snapshot, members, failing, memo)
    pools = {name: pool.with_hours(now) for name, pool in counted.items()}
    gone = find_gone(snapshot.claims, snapshot.nodes)
    failed_nodes = count_failures(pools.values(), snapshot.failed_nodes, gone)
    kept_claims = find_resumed(snapshot.claims, snapshot.nodes, verdicts, now) | failing.uncertain_claims
    afterwards = find_afterwards(snapshot, members)
    choice, crowd_known = choose(
        snapshot, now, pools, verdicts, afterwards, reserved=len(kept_claims), memo=memo
    )
    old = snapshot.old_views and f"the data about {snapshot.old_views} is out of date"
    if why := snapshot.policies_error or old:
        choice = replace(choice, verdicts=failing.keep_back(choice.verdicts, why), claims={})
    verdicts |= choice.verdicts
    verdicts |= find_forgotten(pools, verdicts, snapshot.nodes, find_actuator(snapshot.stack))
    previews = find_previews(pools, verdicts, snapshot, afterwards, now)
    targets = {name: one.target for name, one in members.items() if one.target is not None}
    config = configure(snapshot, targets.values(), known.models, known.wishes, memo)
    by_dra = is_complete(snapshot.stack, snapshot.settings)
    classes = plan_classes(snapshot, targets.values()) if by_dra else None
    unfenced = {**choice.claims, **kept_claims}
    shared = share(snapshot, config, unfenced, pools, verdicts, failed_nodes=failed_nodes, classes=classes)
    failing.name(verdicts)
    vain = count_vain(pools, verdicts, choice.looks, snapshot) if crowd_known else {}
    return RolloutPlan(
        verdicts=verdicts,
        pools=pools,
        objections=_object(known.terms, known.unread, pools),
        shared=shared,
        targets={
            name: one.resources for name, one in targets.items() if not is_skipped(snapshot.nodes[name])
        },
        memory=_remember(snapshot, members, verdicts, choice.looks, vain, previews, now),
        afterwards=afterwards,
        coming=find_coming(known.owners, fences_of(snapshot)),
        wake_at=_wake(verdicts, pools, previews, now),
    )


def _remember(
    snapshot: ClusterSnapshot,
    members: Mapping[str, Member],
    verdicts: Mapping[str, Verdict],
    looks: Mapping[str, Look],
    vain_passes: Mapping[str, int],
    previews: Previews,
    now: datetime,
) -> PassMemory:
    """Return what the next pass needs to know of this one: the nodes whose pods must be listed, the nodes whose proof
    of idleness lacks only the second LIST, and since when each node has been seen to differ from its target. The
    looks, the previews and the numbers of passes without progress are stored as they are."""
    proving = [verdict for verdict in verdicts.values() if verdict.phase is Phase.VERIFYING_IDLE]
    since = snapshot.memory.drifting_since
    return PassMemory(
        wants_pods=previews.wants_pods.union(
            verdict.node for verdict in verdicts.values() if verdict.wants_pods
        ),
        proving=frozenset(verdict.node for verdict in proving if verdict.reason is Reason.SETTLING),
        drifting_since={name: since.get(name, now) for name, member in members.items() if member.differs},
        looks=looks,
        previews=previews.known,
        vain_passes=vain_passes,
    )


def _object(
    terms: Mapping[str, Terms], unread: Mapping[str, Exception], pools: Mapping[str, Pool]
) -> dict[str, Finding]:
    """Return why policies are not accepted, by policy; accepted ones are left out. `unread` has the errors of policies
    that cannot be judged, and `pools` may show that a policy's windows cannot be computed. Windows that are closed,
    invalid or too short are no objection."""
    found = {name: one.targets for name, one in terms.items() if isinstance(one.targets, Finding)}
    found |= {name: of_policy(name, error) for name, error in unread.items()}
    closed = ((name, pool.hours.closed) for name, pool in pools.items() if name not in found)
    return found | {
        name: why for name, why in closed if why is not None and why.reason is Reason.POLICY_NOT_JUDGED
    }


def _wake(
    verdicts: Mapping[str, Verdict], pools: Mapping[str, Pool], previews: Previews, now: datetime
) -> datetime | None:
    """Return the next moment at which the passing of time alone may change anything, or None if there is none: the
    earliest wake of any verdict or preview, or the next time at which any policy's windows may allow something else,
    even if no node waits for that. The moment may have passed already; `now` is not used."""
    moments = [verdict.wake for verdict in verdicts.values() if verdict.wake is not None]
    changes = (previews.wake, *(pool.hours.change for pool in pools.values()))
    return min([*moments, *(change for change in changes if change is not None)], default=None)


def find_known(snapshot: ClusterSnapshot, now: datetime, memo: Memo) -> Known:
    """Return what is known of every policy and every node by itself: the node's owner, what the node gets, and its
    verdict. An error about one policy or node does not stop the others. The error of a policy is recorded in
    `Known.unread`. A node that cannot be judged, whether the error is its own or its policy's, gets a member whose
    verdict says so."""
    failed: dict[str, Exception] = {}
    unread: dict[str, Exception] = {}
    wishes = memo.each(wish_of, ((one.name, (one,)) for one in snapshot.policies), failed=unread)
    owners = own(snapshot, memo, failed)
    snapshot = _with_strategy_users(snapshot, owners, memo, unread)
    terms = agree(snapshot, wishes, memo, unread)
    followed = follow(snapshot, owners, terms, failed=failed, unread=unread)
    snapshot = with_rules(snapshot, followed, owners, failed)
    cases = Cases(snapshot, owners, terms, followed)
    members = memo.table(
        lambda name: judge_case(*cases.find(name, now)),
        followed,
        columns=cases.columns,
        shared=cases.shared,
        key=judge_case,
        lasts=keeps_verdict,
        failed=failed,
    )
    return Known(
        snapshot=snapshot,
        wishes=wishes,
        terms=terms,
        unread=unread,
        owners=owners,
        members=_with_failed(members, snapshot, owners, failed),
        models=memo.ask(find_models, tuple(map(snapshot.gpunodes.get, followed))),
    )


# --- own and agree ------------------------------------------------------------------------------------------


def own(snapshot: ClusterSnapshot, memo: Memo, failed: dict[str, Exception]) -> dict[str, str]:
    """Return the name of the policy that owns each node, by node and sorted by node name; an empty string if no policy
    owns it. A node whose owner cannot be determined is left out, and its error is added to `failed`."""
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


def _with_strategy_users(
    snapshot: ClusterSnapshot, owners: Mapping[str, str], memo: Memo, unread: dict[str, Exception]
) -> ClusterSnapshot:
    """Return the snapshot with `StackView.strategy_users` if a policy wants another MIG strategy than the cluster's. A
    policy of which that cannot be told counts as wanting none, and its error is added to `unread`."""
    stack = snapshot.stack
    fixed = stack.cluster_policy.mig_strategy if stack.cluster_policy is not None else ""
    if not fixed:
        return snapshot
    named = {policy.name: policy for policy in snapshot.policies if policy.name not in unread}
    asked = ((name, (policy, fixed)) for name, policy in named.items())
    wanting = memo.each(wants_other_strategy, asked, failed=unread)
    if not any(wanting.values()):
        return snapshot
    policies = [named[name] for name in wanting]
    users = find_strategy_users(stack, snapshot.nodes, snapshot.gpunodes, owners, policies)
    return replace(snapshot, stack=memo.same("stack", replace(stack, strategy_users=users)))


def agree(
    snapshot: ClusterSnapshot,
    wishes: Mapping[str, Wish | Finding],
    memo: Memo,
    unread: dict[str, Exception],
) -> dict[str, Terms]:
    """Return the terms of every policy that has an entry in `wishes`, by policy. The terms say what the policy offers
    its nodes. If the terms cannot be computed, the policy is left out, and its error is added to `unread`."""
    stack, settings = snapshot.stack, snapshot.settings
    readable = (policy for policy in snapshot.policies if policy.name in wishes)
    rows = ((policy.name, (policy, wishes[policy.name], stack, settings)) for policy in readable)
    return memo.each(find_terms, rows, failed=unread)


def follow(
    snapshot: ClusterSnapshot,
    owners: Mapping[str, str],
    terms: Mapping[str, Terms],
    *,
    failed: dict[str, Exception],
    unread: Mapping[str, Exception],
) -> dict[str, Terms | None]:
    """Return the terms that each node is compared with, by node. These are the terms of the policy that the node's
    fence names or, if that policy has none, of the node's owner. None if neither has terms.

    Nodes in `failed` are left out. So are nodes whose owner, or whose fence's policy, is in `unread`. For each such
    node, an UnjudgedPolicyError with the policy's error is added to `failed`.
    """
    fences = {name: fence for name, fence in fences_of(snapshot).items() if name in owners}
    followed = {name: terms.get(owner) for name, owner in owners.items()}
    followed |= {name: terms.get(fence.policy, followed[name]) for name, fence in fences.items()}
    for name in followed.keys() if unread else ():
        policies = {owners[name], fences[name].policy if name in fences else ""}
        if broken := unread.keys() & policies:
            failed[name] = UnjudgedPolicyError(min(broken), unread[min(broken)])
    return {name: one for name, one in followed.items() if name not in failed} if unread else followed


def _with_failed(
    judged: Mapping[str, Member | None],
    snapshot: ClusterSnapshot,
    owners: Mapping[str, str],
    failed: Mapping[str, Exception],
) -> dict[str, Member]:
    """Return the judged members and a member for each node in `failed`, sorted by node name. The verdict of a failed
    node says why the node cannot be judged; if its owner is unknown, the verdict names the policy from the node's
    policy label. Nodes whose judgment is None do not concern us and are left out."""
    members = {name: one for name, one in judged.items() if one is not None}
    if not failed:
        return members
    for name, error in failed.items():
        node = snapshot.nodes[name]
        owner = owners.get(name, node.labels.get(LABEL_POLICY, ""))
        members[name] = find_member(not_judged(node, owner, error), node, snapshot.gpunodes.get(name))
    return dict(sorted(members.items()))


# --- count ----------------------------------------------------------------------------------------------------


def _in_waves(snapshot: ClusterSnapshot, members: dict[str, Member], now: datetime) -> dict[str, Member]:
    """Return a copy of `members` in which a node that is proven, but must wait for other nodes of its wave, has a new
    verdict that makes it wait (`hold_together`). All other members are the same objects."""
    verdicts = {name: member.verdict for name, member in members.items()}
    held = hold_together(verdicts, fences_of(snapshot), snapshot.nodes, snapshot.policies, now)
    return members | {name: replace(members[name], verdict=verdict) for name, verdict in held.items()}


def _pools(
    snapshot: ClusterSnapshot, members: Mapping[str, Member], failing: Failing, memo: Memo
) -> dict[str, Pool]:
    """Return the pool of every policy, by policy. In a pool, a node with a claim that still holds its slot counts as
    unavailable, and a node whose calls are suspended after a failure is not a candidate. A node that is about to join
    another pool takes a slot there too. Members whose policy no longer exists are in no pool."""
    nodes: dict[str, list[Member]] = {policy.name: [] for policy in snapshot.policies}
    joining = defaultdict[str, list[Member]](list)
    for member in members.values():
        if (pool := nodes.get(member.policy)) is not None:
            pool.append(member)
        if member.heir:
            joining[member.heir].append(member)
    claims = {
        name
        for name in snapshot.claims.keys() & members.keys()
        if _holds_slot(members[name].verdict, failing)
    }
    claimed = _by_policy(claims, members)
    failed = _by_policy(filter(failing.holds, failing.failures), members)
    none = frozenset[str]()
    rows = (
        (
            name,
            (one, tuple(nodes[name]), claimed.get(name, none), failed.get(name, none), tuple(joining[name])),
        )
        for name, one in ((one.name, one) for one in snapshot.policies)
    )
    return memo.each(Pool.of, rows)


def _by_policy(names: Iterable[str], members: Mapping[str, Member]) -> dict[str, set[str]]:
    """Return the names, grouped by the policy whose budget counts the node. Names that are not in `members` are
    dropped."""
    by_policy: dict[str, set[str]] = {}
    for name in names:
        if (member := members.get(name)) is not None:
            by_policy.setdefault(member.policy, set()).add(name)
    return by_policy


def _holds_slot(verdict: Verdict, failing: Failing) -> bool:
    """Whether a node with a claim still holds its slot. False if the node is a candidate again or is proven, unless a
    failed call may have written its fence nevertheless."""
    return verdict.node in failing.uncertain_claims or not (
        verdict.candidate or verdict.phase is Phase.SYNCED
    )


# --- shared ----------------------------------------------------------------------------------------------------


def configure(
    snapshot: ClusterSnapshot,
    targets: Iterable[Target],
    models: Mapping[str, GpuView],
    wishes: Mapping[str, Wish | Finding],
    memo: Memo,
) -> WriteConfig | None:
    """Return the action that brings our ConfigMaps up to date with the wishes of all policies and the plugin
    configurations of `targets`. A policy with a Finding in `wishes` adds nothing. None if the ConfigMaps are up to
    date, or if somebody else's ConfigMap has the name of one of ours. The answer is cached in `memo` once nothing is
    left to write or to remove."""
    plugins = {target.plugin_key: target.plugin for target in targets if target.plugin_key}
    question = partial(_configure, nodes=snapshot.nodes, gpunodes=snapshot.gpunodes)
    wishes, models = memo.same("wishes", wishes), memo.same("models", models)
    known = (snapshot.policies, wishes, models, memo.same("plugins", plugins), snapshot.stack)
    return memo.ask(question, *known, lasts=lambda found: found == (None, False))[0]


def _configure(
    policies: tuple[PolicyView, ...],
    wishes: Mapping[str, Wish | Finding],
    models: Mapping[str, GpuView],
    plugins: Mapping[str, PluginConfig],
    stack: StackView,
    *,
    nodes: Mapping[str, NodeView],
    gpunodes: Mapping[str, GPUNodeView],
) -> tuple[WriteConfig | None, bool]:
    """Plan the ConfigMaps for the policies with a Wish in `wishes`, in the order of `policies`. Return the action that
    writes them, or None if none is needed, and whether they hold entries that no policy, card or file of the admin
    needs. Returns (None, False) if somebody else's ConfigMap with entries has one of our names."""
    readable = [found for one in policies if isinstance(found := wishes.get(one.name), Wish)]
    return plan_config(readable, nodes.values(), models, plugins, stack, gpunodes=gpunodes)
