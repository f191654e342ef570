"""The facts about one node that do not depend on the time, and its verdict. Both are pure functions of their arguments.

So that the memo (memo.py) can keep both, everything that changes from pass to pass is an argument here, as is the time.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

from gpusharing.planning.gpus.cards import Profile
from gpusharing.planning.snapshot.podviews import NodeWork
from gpusharing.planning.snapshot.stackviews import Operand, StackView
from gpusharing.planning.snapshot.views import (
    ClusterSnapshot,
    GPUNodeView,
    GpuView,
    NodeView,
    PlanSettings,
    PolicyView,
)
from gpusharing.planning.stack.acceptance import Terms
from gpusharing.planning.transition.judge import is_lasting, is_told_apart, judge
from gpusharing.planning.transition.members import Member, find_member
from gpusharing.planning.transition.verdict import NodeCase, find_health
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.assess import Assessment, assess


@value(eq=False)
class NodeFacts:
    """The facts about one node that do not depend on the time."""

    node: NodeView
    """The Node."""
    gpunode: GPUNodeView | None
    """Its GPUNode; None: there is none yet."""
    owner: PolicyView | None
    """The policy that owns the node by selectors."""
    policy: PolicyView | None
    """The policy that the node is compared with: that of its fence while there is one, else its owner."""
    assessment: Assessment | None
    """Against that policy; None when there is none."""
    models: tuple[GpuView, ...]
    """One GPU of each card model in the node."""
    health: Finding | None
    """The health of its GPUs; None while none was reported."""


@value
class Judged:
    """The verdict for one node before the pools choose."""

    member: Member | None
    """What its pool counts, including its verdict; None: the node does not concern us."""
    candidate: NodeCase | None
    """The case of a node that waits for its turn."""
    differs: bool
    """A Ready, unfenced node that somebody has seen to differ from its target."""
    lasts: bool
    """It gets the same verdict until something other than the time changes."""


class Surroundings(NamedTuple):
    """Everything that a case is made of besides the time. A tuple, because each pass makes and compares thousands."""

    known: NodeFacts
    """What does not depend on the time."""
    work: NodeWork | None
    """The pods that hold its GPUs; None: nobody has listed them."""
    agent_ready: bool
    """Whether an agent's pod is Ready on the node."""
    agent_trouble: Finding | None
    """Why the agent is not ready, where that is known."""
    mig_manager: Operand | None
    """Its pod on the node."""
    mig_failure: str
    """The last line of mig-manager's log after it failed; empty: none is known."""
    mps_daemon: Operand | None
    """The pod of the MPS control daemon on the node."""
    claimed: bool
    """It has a slot of the budget."""
    drifting_since: datetime | None
    """Since when this process has seen the node differ from its target; None: it has seen no difference."""
    at_work_since: datetime | None
    """Since when this process has seen a mig.config.state that says that mig-manager works; None: it has not."""
    old_views: str
    """See ClusterSnapshot."""
    stack: StackView
    """NVIDIA's components, and our ConfigMaps."""
    settings: PlanSettings
    """The operator's settings."""


def find_facts(
    node: NodeView, gpunode: GPUNodeView | None, owner: Terms | None, held: Terms | None, stack: StackView
) -> NodeFacts:
    """The facts about a node that `owner` owns and that is compared with the terms `held`."""
    observed = gpunode.observed if gpunode else None
    return NodeFacts(
        node=node,
        gpunode=gpunode,
        owner=owner.policy if owner else None,
        policy=held.policy if held else None,
        assessment=assess(node, gpunode, held.policy, held.targets, stack) if held else None,
        models=observed.hardware.models if observed else (),
        health=find_health(gpunode),
    )


def find_surroundings(
    snapshot: ClusterSnapshot, facts: Mapping[str, NodeFacts]
) -> Iterator[tuple[str, Surroundings]]:
    """What the cases of these nodes are made of, by name."""
    agents, claims, stack, settings = snapshot.agents, snapshot.claims, snapshot.stack, snapshot.settings
    trouble, work, mig_manager = snapshot.agent_troubles.of, snapshot.work.get, snapshot.mig_managers.get
    failure, mps_daemon = snapshot.mig_failures.get, snapshot.mps_daemons.get
    drifting, at_work = snapshot.memory.drifting_since.get, snapshot.at_work_since.get
    old_views = snapshot.old_views
    for name, known in facts.items():
        ready = name in agents
        found = Surroundings(
            known=known,
            work=work(name),
            agent_ready=ready,
            agent_trouble=None if ready else trouble(name),
            mig_manager=mig_manager(name),
            mig_failure=failure(name, ""),
            mps_daemon=mps_daemon(name),
            claimed=name in claims,
            drifting_since=drifting(name),
            at_work_since=at_work(name),
            old_views=old_views,
            stack=stack,
            settings=settings,
        )
        yield name, found


def case_of(given: Surroundings, now: datetime) -> NodeCase:
    """The case of one node at one moment.

    A LIST that was made for a smaller change says nothing about one that became a reboot meanwhile: nothing was looked
    up about pods without a GPU, such as their gangs.
    """
    known = given.known
    case = NodeCase(
        node=known.node,
        gpunode=known.gpunode,
        assessment=known.assessment,
        owner=known.owner.name if known.owner else "",
        work=given.work,
        agent_ready=given.agent_ready,
        agent_trouble=given.agent_trouble,
        operand=given.mig_manager,
        mig_failure=given.mig_failure,
        mps_daemon=given.mps_daemon,
        claimed=given.claimed,
        drifting_since=given.drifting_since,
        at_work_since=given.at_work_since,
        old_views=given.old_views,
        health=known.health,
        stack=given.stack,
        settings=given.settings,
        now=now,
    )
    unread = case.work is not None and case.scope.all_pods and not case.work.all_pods
    return replace(case, work=None) if unread else case


def judge_facts(given: Surroundings, *, now: datetime) -> Judged:
    """The verdict for the node at this moment, and whether it lasts."""
    case, known = case_of(given, now), given.known
    node = known.node
    concerned = (known.owner, known.policy) if node.fence is not None else ()
    verdict = judge(case, {policy.name: policy for policy in concerned if policy is not None})
    if verdict is None:
        return Judged(None, None, False, True)
    candidate = verdict.candidate
    return Judged(
        member=find_member(verdict, node, known.gpunode, known.policy, known.assessment),
        candidate=case if candidate else None,
        differs=node.fence is None
        and node.ready
        and (candidate or is_told_apart(case)),  # a candidate is, by its gates
        lasts=is_lasting(verdict, node),
    )


def find_models(facts: Iterable[NodeFacts]) -> dict[str, GpuView]:
    """One GPU of each card model in the cluster, with the profiles that most nodes report.

    NVIDIA's well-known names mean the same on every node, so no single report decides. In a tie the first counts.
    """
    said: dict[tuple[str, int], list[GpuView]] = {}
    for one in facts:
        for gpu in one.models:
            said.setdefault((gpu.product, id(gpu.profiles)), []).append(gpu)
    votes: Counter[tuple[str, tuple[Profile, ...]]] = Counter()
    first: dict[tuple[str, tuple[Profile, ...]], GpuView] = {}
    for (product, _), gpus in said.items():  # profiles are nearly always one object, and long to compare
        key = product, gpus[0].profiles
        votes[key] += len(gpus)
        first.setdefault(key, gpus[0])
    models: dict[str, GpuView] = {}
    for key, _ in votes.most_common():
        models.setdefault(key[0], first[key])
    return models
