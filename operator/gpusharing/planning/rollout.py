"""The front door of the planner: snapshot and time in, a verdict for every node and the next actions out. Pure.

What holds after every action and from every interrupted prefix (tests/planning/test_invariants.py):

  (a) nodes away because of us never exceed the policy's allowance or the operator-wide cap
  (b) no point of no return while a pod that counts is on the node
  (c) no eviction of DaemonSet, mirror, finished or terminating pods, none of one pod twice
  (d) no uncordon of a cordon that is not ours
  (e) a settled cluster gives an empty plan
  (f) carrying out the plan reaches a fixpoint
  (g) the order of the input does not matter
  (h) a malformed budget moves nothing

Verdicts are memoised on the identity of their inputs: a pass costs what changed, not what exists.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from gpusharing.api.names import LABEL_POLICY, Phase
from gpusharing.planning.actions import Action, SetClaims, WriteConfig
from gpusharing.planning.gpus.health import Diagnosis
from gpusharing.planning.pools.common import Common
from gpusharing.planning.pools.pool import Pool, is_unavailable, select
from gpusharing.planning.pools.slots import find_resumed, plan_finalizers
from gpusharing.planning.proof.assess import Assessed, Assessment, Unobserved, assess
from gpusharing.planning.proof.verify import served
from gpusharing.planning.snapshot.looks import Look
from gpusharing.planning.snapshot.records import Claim
from gpusharing.planning.snapshot.stackviews import StackView
from gpusharing.planning.snapshot.views import ClusterSnapshot, GPUNodeView, GpuView, NodeView, PolicyView
from gpusharing.planning.stack.acceptance import find_objection
from gpusharing.planning.stack.pointers import plan_pointers
from gpusharing.planning.wanted.configmaps import plan_config
from gpusharing.planning.wanted.ownership import Owners
from gpusharing.planning.wanted.target import Targets, Wish, find_wish
from gpusharing.planning.way.callverdicts import Failing
from gpusharing.planning.way.guard import not_judged
from gpusharing.planning.way.judge import is_static, is_told_apart, judge
from gpusharing.planning.way.requests import with_gpunode
from gpusharing.planning.way.verdict import NodeCase, Verdict, find_health
from gpusharing.planning.words.findings import Finding
from gpusharing.planning.words.reasons import Reason


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """What one pass decided."""

    verdicts: Mapping[str, Verdict]
    """By node, in name order."""
    pools: Mapping[str, Pool]
    """By policy."""
    objections: Mapping[str, Finding]
    """By policy: why it is not accepted."""
    shared: tuple[Action, ...]
    """First, in this order: configuration, finalizers, claims. Fences of this pass need the claims to succeed."""
    targets: Mapping[str, Mapping[str, int]]
    """By owned node: the allocatable GPU resources predicted for it."""
    wants_pods: frozenset[str]
    """Nodes whose pods the next pass needs."""
    differing: frozenset[str]
    """Ready, unfenced nodes that differ from their target; the caller remembers since when."""
    wake_at: datetime | None
    """Look again then at the latest."""
    looks: Mapping[str, Look] = field(default_factory=dict)
    """What was found at nodes that their pods block; the caller puts it into the next snapshot."""


@dataclass(slots=True)
class _Known:
    """What was concluded about a node, and from which inputs (compared by identity)."""

    node: NodeView
    gpunode: GPUNodeView | None
    owners: Owners
    stack: StackView
    driver: PolicyView | None
    owner: str
    assessment: Assessment | None
    models: tuple[GpuView, ...]
    """One GPU of each card model in the node."""
    health: Diagnosis | None
    away: bool
    """Counts as unavailable."""
    verdict: Verdict | None = None
    """Set when the answer does not depend on time, claims or agents."""
    circumstances: tuple[object, ...] = ()
    """What else the answer below depends on: time is not among it."""
    judged: Verdict | None = None
    """The answer in these circumstances; None when it depends on time or is to be acted on."""


@dataclass(slots=True)
class Memo:
    """Conclusions that stay valid while their inputs are the same objects. One per planner; start with an empty one."""

    policies: tuple[PolicyView, ...] | None = None
    owners: Owners = field(default_factory=lambda: Owners(()))
    targets: dict[str, Targets] = field(default_factory=dict)
    """By policy."""
    known: dict[str, _Known] = field(default_factory=dict)
    latest: datetime | None = None
    """The time of the last pass. An answer lasts while time goes on; a clock that was set back asks anew."""
    config_settled: tuple[object, ...] = ()
    """The inputs for which the ConfigMaps were found to be right."""


def plan_rollout(snapshot: ClusterSnapshot, now: datetime, memo: Memo | None = None) -> RolloutPlan:
    """Decide about every node. Equal snapshots and times give equal plans, whatever the memo holds."""
    return _Pass(snapshot, now, memo if memo is not None else Memo()).run()


class _Pass:
    """One run over all nodes; holds what the steps share."""

    def __init__(self, snapshot: ClusterSnapshot, now: datetime, memo: Memo) -> None:
        self.snapshot, self.now, self.memo = snapshot, now, memo
        if memo.policies is not snapshot.policies:
            memo.policies, owners = snapshot.policies, Owners(snapshot.policies)
            if owners.rules != memo.owners.rules:
                memo.owners = owners
        self.policies = {policy.name: policy for policy in snapshot.policies}
        self.objections = {
            policy.name: objection
            for policy in snapshot.policies
            if (objection := find_objection(policy, snapshot.stack, snapshot.settings)) is not None
        }
        self.pools = {policy.name: Pool(policy) for policy in snapshot.policies}
        self.verdicts: dict[str, Verdict] = {}
        self.differing: set[str] = set()
        self.looks: dict[str, Look] = {}
        self.models: dict[str, GpuView] = {}
        self.fences = {name: node for name, node in snapshot.nodes.items() if node.fence is not None}
        self.yielded = {
            name for name, node in self.fences.items() if node.fence and node.fence.stage == "yielded"
        }
        """Left to somebody else: nothing happens on them, and nothing waits for them but their pool."""
        self.failing = Failing(snapshot.call_failures, snapshot.claims, now)
        self.kept: dict[str, Claim] = {}
        """Claims without a fence that stay."""

    def run(self) -> RolloutPlan:
        """Judge every node, then choose who starts, then what is written once for all."""
        for name in self.memo.known.keys() - self.snapshot.nodes.keys():
            del self.memo.known[name]
        if self.memo.latest is not None and self.now < self.memo.latest:
            for known in self.memo.known.values():
                known.judged = None
        self.memo.latest = self.now
        nodes = [self.snapshot.nodes[name] for name in sorted(self.snapshot.nodes)]
        # In two rounds: a processor that does one thing many times over needs a tenth less time for the whole.
        for node, found in zip(nodes, [self._look_up(node) for node in nodes], strict=True):
            self._guarded(node, found)
        resumed = find_resumed(self.snapshot.claims, self.snapshot.nodes, self.verdicts, self.now)
        self.kept = resumed | self.failing.kept
        shared = self._shared(self._select() | self.kept)
        self.failing.name(self.verdicts)
        verdicts = self.verdicts
        return RolloutPlan(
            verdicts=verdicts,
            pools=self.pools,
            objections=self.objections,
            shared=shared,
            targets={
                name: known.assessment.target.resources
                for name, known in self.memo.known.items()
                if isinstance(known.assessment, Assessed)
            },
            wants_pods=frozenset(name for name, verdict in verdicts.items() if verdict.wants_pods),
            differing=frozenset(self.differing),
            looks=self.looks,
            wake_at=min((v.wake for v in verdicts.values() if v.wake is not None), default=None),
        )

    # --- one node ----------------------------------------------------------------------------------------

    def _look_up(self, node: NodeView) -> _Known | Exception:
        try:
            return self._know(node)
        except Exception as error:  # noqa: BLE001 - shown on the node by `_guarded`
            return error

    def _guarded(self, node: NodeView, known: _Known | Exception) -> None:
        try:
            if isinstance(known, Exception):
                raise known
            self._judge(node, known)
        except Exception as error:  # noqa: BLE001 - whatever one node holds, the others are judged (guard.py)
            last = self.memo.known.pop(node.name, None)
            verdict = not_judged(node, last.owner if last else node.labels.get(LABEL_POLICY, ""), error)
            self.verdicts[node.name] = verdict
            if (pool := self.pools.get(verdict.policy)) is not None:
                pool.count(verdict, used=is_unavailable(node) or node.name in self.snapshot.claims)

    def _judge(self, node: NodeView, known: _Known) -> None:
        for gpu in known.models:
            self.models.setdefault(gpu.product, gpu)
        owner = known.owner
        if node.fence is not None:
            owner = node.fence.policy if node.fence.policy in self.policies else owner
        pool = self.pools.get(owner)
        verdict = known.verdict
        if verdict is None:
            case = self._case(known)
            verdict = self._answer(case, known)
            if verdict is None:
                return
            if pool is not None and verdict.candidate and not self.failing.holds(node.name):
                pool.candidates.append(case)
            if node.fence is None and _differs(known.assessment):
                if node.ready and (verdict.candidate or is_told_apart(case)):  # a candidate is, by its gates
                    self.differing.add(node.name)
            elif is_static(verdict, node):
                known.verdict = verdict
        self.verdicts[node.name] = verdict
        if pool is not None:
            pool.count(verdict, used=known.away or self._holds_slot(verdict))

    def _answer(self, case: NodeCase, known: _Known) -> Verdict | None:
        """What `judge` says. A node that waits for its turn hears the same until something around it changes."""
        if case.node.fence is not None:
            return judge(case, self.policies)
        circumstances = (
            case.work,
            case.agent_ready,
            case.agent_trouble,
            case.operand,
            case.mig_failure,
            case.mps_daemon,
            case.claimed,
            case.drifting_since,
            case.at_work_since,
            case.settings,
        )
        if known.judged is not None and known.circumstances == circumstances:
            return known.judged
        verdict = judge(case, self.policies)
        lasts = verdict is not None and verdict.wake is None and not verdict.actions
        known.circumstances, known.judged = circumstances, verdict if lasts else None
        return verdict

    def _holds_slot(self, verdict: Verdict) -> bool:
        """A claim without a fence: a change was about to begin, unless it waits or has just ended in proof."""
        if verdict.node in self.failing.kept:
            return True
        ended = verdict.candidate or verdict.phase is Phase.SYNCED
        return verdict.node in self.snapshot.claims and not ended

    def _know(self, node: NodeView) -> _Known:
        """Owner and assessment of a node, taken from the memo as far as the inputs are the same objects."""
        snapshot, memo = self.snapshot, self.memo
        gpunode = snapshot.gpunodes.get(node.name)
        known = memo.known.get(node.name)
        same = known is not None and known.node is node and known.gpunode is gpunode
        if known is not None and same and known.owners is memo.owners:
            owner = known.owner
        else:
            chosen = memo.owners.owner(node)
            owner = chosen.name if chosen else ""
        driver = self.policies.get(owner)
        if node.fence is not None:
            driver = self.policies.get(node.fence.policy, driver)
        if (
            known is not None
            and same
            and known.driver is driver
            and known.owner == owner
            and known.stack is snapshot.stack
        ):
            known.owners = memo.owners
            return known
        assessment = None
        if driver is not None:
            assessment = assess(node, gpunode, driver, self._terms(driver), snapshot.stack)
        observed = gpunode.observed if gpunode else None
        models = tuple({gpu.product: gpu for gpu in observed.gpus}.values()) if observed else ()
        health, away = find_health(gpunode), is_unavailable(node)
        known = _Known(
            node, gpunode, memo.owners, snapshot.stack, driver, owner, assessment, models, health, away
        )
        memo.known[node.name] = known
        return known

    def _terms(self, policy: PolicyView) -> Finding | Targets:
        """Why the policy is not accepted, or its targets; one without a spec never is."""
        terms = self.objections.get(policy.name) or self._targets(policy)
        return terms or Finding(Reason.INVALID_SPEC, "the spec cannot be read")

    def _targets(self, policy: PolicyView) -> Targets | None:
        if policy.spec is None:
            return None
        known = self.memo.targets.get(policy.name)
        if known is None or known.policy is not policy:
            wish = find_wish(policy.name, policy.spec)
            known = self.memo.targets[policy.name] = Targets(policy, wish, self.snapshot.stack)
        elif known.stack is not self.snapshot.stack:
            known = self.memo.targets[policy.name] = Targets(policy, known.wish, self.snapshot.stack)
        return known

    def _wish(self, policy: PolicyView) -> Wish | None:
        targets = self._targets(policy)
        return targets.wish if targets else None

    def _case(self, known: _Known) -> NodeCase:
        snapshot, name = self.snapshot, known.node.name
        return NodeCase(
            node=known.node,
            gpunode=known.gpunode,
            assessment=known.assessment,
            owner=known.owner,
            work=snapshot.work.get(name),
            agent_ready=name in snapshot.agents,
            agent_trouble=None if name in snapshot.agents else snapshot.agent_troubles.of(name),
            operand=snapshot.mig_managers.get(name),
            mig_failure=snapshot.mig_failures.get(name, ""),
            mps_daemon=snapshot.mps_daemons.get(name),
            claimed=name in snapshot.claims,
            drifting_since=snapshot.drifting_since.get(name),
            at_work_since=snapshot.at_work_since.get(name),
            health=known.health,
            stack=snapshot.stack,
            settings=snapshot.settings,
            now=self.now,
        )

    # --- all nodes together --------------------------------------------------------------------------------

    def _select(self) -> dict[str, Claim]:
        """Let every pool choose its next nodes within its allowance and the operator-wide cap."""
        claims: dict[str, Claim] = {}
        waiting = [pool for _, pool in sorted(self.pools.items()) if pool.candidates]
        if not waiting:
            return claims
        cases = [(case, p.policy) for p in waiting if p.limit > p.used for case in p.candidates]
        common = Common.of(self.snapshot, self.now, self._offered(), cases)
        for name in sorted(self.fences.keys() - self.yielded):
            if (look := common.add_in_flight(self.snapshot, self.verdicts[name], self.now)) is not None:
                self.looks[name] = look
        for pool in waiting:
            taken = len(self.fences) - len(self.yielded) + len(self.kept) + len(claims)
            selection = select(pool, self.snapshot.settings.max_in_flight - taken, common)
            claims |= selection.claims
            self.looks |= selection.looks
            for case in pool.candidates:
                name, verdict = case.node.name, selection.verdicts[case.node.name]
                # Nearly every candidate's agent has nothing to be asked, and `judge` has found that out.
                self.verdicts[name] = with_gpunode(verdict, case) if self.verdicts[name].actions else verdict
        return claims

    def _offered(self) -> frozenset[str]:
        """GPU resource names that some node still offers after all planned changes."""
        offered: set[str] = set()
        for known in self.memo.known.values():
            found = known.assessment
            offered.update(found.target.resources if isinstance(found, Assessed) else served(known.node))
        return frozenset(offered)

    def _shared(self, selected: Mapping[str, Claim]) -> tuple[Action, ...]:
        """Configuration, finalizers and claims: written once, before anything that needs them."""
        actions: list[Action] = []
        if (config := self._config()) is not None:
            actions.append(config)
        claims = {name: self._claim_of(node) for name, node in self.fences.items()} | dict(selected)
        actions += plan_finalizers(self.pools, claims.values(), self.fences.values(), self.verdicts)
        if claims != dict(self.snapshot.claims):
            actions.append(SetClaims(claims))
        pointers = plan_pointers(self.snapshot.stack, self.snapshot.settings, quiet=not claims)
        return tuple(actions) if pointers is None else (*actions, pointers)

    def _claim_of(self, node: NodeView) -> Claim:
        assert node.fence is not None, "only fenced nodes"
        return Claim(node.uid, node.fence.policy, node.fence.op)

    def _config(self) -> WriteConfig | None:
        offers = frozenset((product, gpu.profiles) for product, gpu in self.models.items())
        plugins = {
            known.assessment.target.plugin_key: known.assessment.target.plugin
            for known in self.memo.known.values()
            if isinstance(known.assessment, Assessed)
        }
        inputs = (self.snapshot.policies, self.snapshot.stack, offers, plugins)
        settled = self.memo.config_settled
        if settled and settled[0] is inputs[0] and settled[1] is inputs[1] and settled[2:] == inputs[2:]:
            return None
        nodes = self.snapshot.nodes.values()
        change, retained = plan_config(
            self.snapshot.policies, nodes, self.models, plugins, self.snapshot.stack, wish_of=self._wish
        )
        if change is None and not retained:
            self.memo.config_settled = inputs
        return change


def _differs(found: Assessment | None) -> bool:
    """The node is not, or not known to be, as its target says."""
    return isinstance(found, Unobserved) or (isinstance(found, Assessed) and found.mismatch is not None)
