"""Nodes as the simulated software leaves them, and the NodeCase of one node, for tests of single planner modules."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, TypeVar

from tests.build import H100, NOW, SETTINGS, make_gpu, make_operand, make_policy, make_stack, make_work
from tests.configs import target_for
from tests.planning.machines import NodeMachine
from tests.planning.world import World

from gpusharing.api.names import Phase
from gpusharing.planning.pools.holds import agree
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.snapshot.memory import DRIFTS, WITHDRAWN
from gpusharing.planning.snapshot.nvidia import Operand, Program, StackView
from gpusharing.planning.snapshot.podviews import NodeWork
from gpusharing.planning.snapshot.records import UNRECORDED, Consent, Deferred, Fence, Verified
from gpusharing.planning.snapshot.views import GPUNodeView, GpuView, NodeView, PolicyView
from gpusharing.planning.stack.acceptance import find_targets, request_of
from gpusharing.planning.transition.cases import Member, find_member
from gpusharing.planning.transition.gates import find_gate
from gpusharing.planning.transition.judge import judge
from gpusharing.planning.transition.requests import last_event
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.wanted.actuators import LABELS
from gpusharing.planning.wanted.assess import Assessed, Assessment, assess
from gpusharing.planning.wanted.target import Target

FULL, SLICED = make_policy(mode="Full"), make_policy(mode="TimeSlicing")
MPS = make_policy(mode="MPS")
MIXED = make_policy()
MIG_SLICED = make_policy(timeSlicing={"replicas": 2})
SINGLE = make_policy(mig={"strategy": "single", "config": "all-1g.10gb"})
NODE, T4 = "gpu-07", "Tesla T4"
OPERAND = make_operand()


Written = TypeVar("Written", Fence, Deferred)

_worlds: dict[tuple[str, tuple[str, ...]], World] = {}


class SeenSince(Mapping[tuple[str, str], datetime]):
    """This process has seen every trace since that moment, and the others as they say."""

    def __init__(self, moment: datetime, others: Mapping[tuple[str, str], datetime] = MappingProxyType({})) -> None:
        self._moment, self._others = moment, others

    def __getitem__(self, key: tuple[str, str]) -> datetime:
        return self._others[key] if key in (DRIFTS, WITHDRAWN) else self._moment

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(())

    def __len__(self) -> int:
        return 0


def world_of(policy: PolicyView, products: tuple[str, ...] = (H100,)) -> World:
    """A world at rest: gpu-07, brought to this policy by the planner and the simulated software. Do not change it."""
    known = _worlds.get((repr(policy), products))
    if known is None:
        known = _worlds[repr(policy), products] = World()
        known.add_node("gpu-07", NodeMachine("gpu-07", products))
        known.set_policy(policy)
        known.settle()
    return known


def copy_of(policy: PolicyView, products: tuple[str, ...] = (H100,)) -> World:
    return world_of(policy, products).copy()


def pair_of(policy: PolicyView, *gpus: GpuView) -> tuple[str, str]:
    """mig.config and device-plugin.config of a node with these GPUs (one H100 unless given) under a policy."""
    found = gpus or (make_gpu(),)
    target = target_for(policy, found, make_stack(policy, models=found))
    assert isinstance(target, Target), target
    return target.mig_config, target.plugin_key


def proof_of(policy: PolicyView, corrected: str = "", retry: str = "") -> Verified:
    target = target_for(policy, (make_gpu(),), make_stack(policy, models=(make_gpu(),)))
    assert isinstance(target, Target), target
    pair = target.mig_config, target.plugin_key
    return Verified(policy.name, *pair, corrected, retry, layout=target.text, gpus=1)


def make_case(
    policy: PolicyView | None = FULL,
    *,
    was: PolicyView = FULL,
    products: tuple[str, ...] = (H100,),
    fence: Fence | None = None,
    labels: Mapping[str, str | None] | None = None,
    node: dict[str, Any] | None = None,
    gpunode: dict[str, Any] | GPUNodeView | None = None,
    work: NodeWork | None = None,
    owner: PolicyView | str | None = None,
    agent_ready: bool = True,
    operand: Operand | None = OPERAND,
    mps_daemon: Operand | None = None,
    claimed: bool = False,
    drifting_since: datetime | None = None,
    withdrawn_since: datetime | None = None,
    seen_since: datetime | None = None,
    stack: StackView | None = None,
    now: datetime = NOW,
) -> NodeCase:
    """gpu-07, at rest under `was`, now judged against `policy`, which owns it unless `owner` names another policy or is empty; `node`, `labels`, `gpunode` change its views."""
    since = {DRIFTS: drifting_since, WITHDRAWN: withdrawn_since}
    others = {what: moment for what, moment in since.items() if moment is not None}
    world = world_of(was, products)
    policies = [known for known in (was, policy) if known is not None]
    stack = stack or make_stack(*policies, models=world.machines["gpu-07"].gpus())
    fence = None if fence is None else of_policy(fence, policy)
    view = replace(world.nodes["gpu-07"], uid="uid-gpu-07", fence=fence, **(node or {}))
    if view.deferred is not None:
        view = replace(view, deferred=of_policy(view.deferred, policy))
    kept = {key: value for key, value in {**view.labels, **(labels or {})}.items() if value is not None}
    view = replace(view, labels=kept)
    report = gpunode if isinstance(gpunode, GPUNodeView) else replace(world.gpunodes["gpu-07"], **(gpunode or {}))
    case = NodeCase(
        node=view,
        gpunode=report,
        assessment=None if policy is None else judge_node(view, report, policy, stack),
        owner=owner_of(policy, owner),
        work=work,
        agent_ready=agent_ready,
        operands=operands_of(operand, mps_daemon),
        claimed=claimed,
        seen_since=others if seen_since is None else SeenSince(seen_since, others),
        mig_failure="",
        agent_trouble=None,
        actuator=LABELS,
        stack=stack,
        settings=SETTINGS,
        now=now,
    )
    return case if fence is None else named_event(case)


def of_policy(record: Written, policy: PolicyView | None) -> Written:
    """The record with the version of the policy where it names none."""
    if policy is None or record.version != UNRECORDED:
        return record
    return replace(record, version=policy.version)


def operands_of(mig_manager: Operand | None, mps_daemon: Operand | None) -> dict[Program, Operand]:
    pods = {Program.MIG_MANAGER: mig_manager, Program.MPS_DAEMON: mps_daemon}
    return {program: pod for program, pod in pods.items() if pod is not None}


def owner_of(policy: PolicyView | None, owner: PolicyView | str | None) -> PolicyView | None:
    """The policy that owns the node: `policy` if `owner` is None, none if that is empty."""
    if isinstance(owner, str):
        return make_policy(owner) if owner else None
    return policy if owner is None else owner


EVENT = "event"
"""Stands in a request for the word of the last event, which `make_case` puts there."""


NO_SCOPE = make_work().scope


def named_event(case: NodeCase) -> NodeCase:
    """The same case with the last event in the requests to the agent and in what it echoes, and LISTs made for its scope unless they name another."""

    def named(request: str) -> str:
        return request.replace(f":{EVENT}:", f":{last_event(case)}:")

    report, found, work = case.gpunode, case.assessment, case.work
    if work is not None:
        scope = case.scope if work.scope == NO_SCOPE else work.scope
        work = replace(work, scope=scope, stood=named(work.stood))
    if report is not None:
        seen = report.observed
        seen = replace(seen, request_id=named(seen.request_id)) if seen is not None else None
        report = replace(report, request_id=named(report.request_id), observed=seen)
        if isinstance(found, Assessed) and seen is not None:
            found = replace(found, observed=seen)
    return replace(case, gpunode=report, assessment=found, work=work)


def judge_node(view: NodeView, report: GPUNodeView, policy: PolicyView, stack: StackView) -> Assessment:
    targets = find_targets(policy, request_of(policy), stack, SETTINGS)
    return assess(view, report, targets, actuator=LABELS)


def case_of(node: NodeView, gpunode: GPUNodeView | None = None) -> NodeCase:
    """The case of a node that has not been compared with any policy."""
    return NodeCase(
        node=node,
        gpunode=gpunode,
        owner=None,
        work=None,
        agent_ready=True,
        operands={},
        claimed=False,
        seen_since={},
        mig_failure="",
        agent_trouble=None,
        actuator=LABELS,
        stack=make_stack(),
        settings=SETTINGS,
        now=NOW,
    )


def make_member(node: NodeView, verdict: Verdict, case: NodeCase | None = None) -> Member:
    """A node as a pool counts it."""
    return find_member(replace(case, node=node) if case is not None else case_of(node), verdict)


def agreed(pool: Pool) -> Consent:
    consent = agree(pool)
    assert consent is not None
    return consent


def assessed_of(case: NodeCase) -> Assessed:
    assert isinstance(case.assessment, Assessed), case.assessment
    return case.assessment


def quiet_report(
    case_policy: PolicyView, request: str = f"op-1:quiet:{EVENT}:9999999999", **fields: Any
) -> GPUNodeView:
    """The GPUNode of gpu-07 at rest under a policy, whose agent has closed NVML for this request."""
    last = world_of(case_policy).gpunodes["gpu-07"]
    assert last.observed is not None, "a world at rest is observed"
    observed = replace(last.observed, **{"request_id": request, "quiet": True, **fields})
    return replace(last, request_id=request, quiet=True, observed=observed)


def edited(policy: PolicyView, **fields: object) -> PolicyView:
    """The policy with some fields of its spec replaced; what they strand may be evicted."""
    assert policy.spec is not None
    drain = policy.spec.drain.model_copy(update={"stranded_pods": "Allow"})
    return replace(policy, spec=policy.spec.model_copy(update={"drain": drain, **fields}))


def wrote(world: World, *kinds: type) -> list[str]:
    """The names of the actions done, in order; of these kinds only when some are given."""
    return [type(action).__name__ for action in world.done if not kinds or isinstance(action, kinds)]


def judged(case: NodeCase) -> Verdict:
    verdict = judge(case)
    assert verdict is not None
    return verdict


def closed_gate(case: NodeCase) -> Finding:
    """What keeps a change of the node from beginning."""
    gate = find_gate(case, assessed_of(case))
    assert gate is not None
    return gate


def verdict_of(world: World, node: str = NODE) -> Verdict:
    return world.plan().verdicts[node]


def pass_time(
    world: World, turns: int, *, seconds: float = 1, until: Callable[[World], bool] = lambda world: False
) -> None:
    """Let everybody act once in so many seconds, at most until something is the case."""
    for _ in range(turns):
        if until(world):
            return
        for name in world.nodes:
            world.act(name)
        world.step()
        world.now += timedelta(seconds=seconds)


def run_until(world: World, phase: Phase, rounds: int = 300, node: str = NODE) -> Verdict:
    for _ in range(rounds):
        for name in world.nodes:
            world.act(name)
        verdict = world.step().verdicts[node]
        if verdict.phase is phase:
            return verdict
        world.now += timedelta(seconds=1)
    raise AssertionError(f"{node} never was {phase}: {verdict}")


def pool_of(size: int, policy: PolicyView = FULL) -> World:
    world = World()
    for number in range(size):
        world.add_node(f"n{number}")
    world.set_policy(policy)
    world.settle()
    return world
