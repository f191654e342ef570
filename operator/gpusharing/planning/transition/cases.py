"""The case of each node in one pass, and what follows from it: the comparison with its policy, and its verdict.

A pass makes every case, and the memo (memo.py) asks about those that differ from the case of the last pass.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime

from gpusharing.planning.gpus.cards import Profile
from gpusharing.planning.snapshot.views import ClusterSnapshot, GPUNodeView, GpuView, Hardware
from gpusharing.planning.stack.acceptance import Terms
from gpusharing.planning.transition.judge import is_told_apart, judge
from gpusharing.planning.transition.members import Member, find_member, is_begun
from gpusharing.planning.transition.verdict import NodeCase
from gpusharing.planning.wanted.assess import assess


def find_cases(
    snapshot: ClusterSnapshot,
    owners: Mapping[str, str],
    terms: Mapping[str, Terms],
    followed: Mapping[str, Terms | None],
    now: datetime,
) -> Iterator[tuple[str, tuple[NodeCase, Terms | None]]]:
    """Yield each node in `followed` by name, with the arguments of `judge_case`: its case and its terms.

    `owners` has the policy that owns each node, `terms` those of each policy, and `followed` those that each node is
    compared with.
    """
    nodes, gpunode, agents, claims = snapshot.nodes, snapshot.gpunodes.get, snapshot.agents, snapshot.claims
    trouble, work, mig_manager = snapshot.agent_troubles.of, snapshot.work.get, snapshot.mig_managers.get
    failure, mps_daemon = snapshot.mig_failures.get, snapshot.mps_daemons.get
    drifting, at_work = snapshot.memory.drifting_since.get, snapshot.at_work_since.get
    stack, settings, old_views = snapshot.stack, snapshot.settings, snapshot.old_views
    for name, held in followed.items():
        ready, owner = name in agents, terms.get(owners[name])
        case = NodeCase(
            node=nodes[name],
            gpunode=gpunode(name),
            owner=owner.policy if owner is not None else None,
            work=work(name),
            agent_ready=ready,
            agent_trouble=None if ready else trouble(name),
            operand=mig_manager(name),
            mig_failure=failure(name, ""),
            mps_daemon=mps_daemon(name),
            claimed=name in claims,
            drifting_since=drifting(name),
            at_work_since=at_work(name),
            stack=stack,
            settings=settings,
            now=now,
            old_views=old_views,
        )
        yield name, (case, held)


def compare(case: NodeCase, terms: Terms | None) -> NodeCase:
    """Return the case with the node compared with the terms of a policy.

    A LIST that was made for a smaller change says nothing about one that became a reboot meanwhile, so it is left out:
    nothing was looked up about pods without a GPU, such as their gangs.
    """
    if terms is not None:
        found = assess(case.node, case.gpunode, terms.policy, terms.targets, case.stack)
        case = replace(case, assessment=found)
    unread = case.work is not None and case.scope.all_pods and not case.work.all_pods
    return replace(case, work=None) if unread else case


def judge_case(case: NodeCase, terms: Terms | None) -> Member | None:
    """Compare the node of a case with its terms and judge it; None if it does not concern us."""
    case = compare(case, terms)
    node, verdict = case.node, judge(case)
    if verdict is None:
        return None
    # The gates of a candidate have asked already whether it differs.
    differs = node.fence is None and node.ready and (verdict.candidate or is_told_apart(case))
    return find_member(verdict, node, case.gpunode, case, differs=differs)


def keeps_verdict(member: Member | None) -> bool:
    """Whether a node gets the same answer of `judge_case` until something other than the time changes."""
    if member is None:
        return True
    return not is_begun(member.node) and member.verdict.wake is None and not member.verdict.actions


def find_models(gpunodes: Iterable[GPUNodeView | None]) -> dict[str, GpuView]:
    """One GPU of each card model in these nodes, with the profiles that most of them report.

    NVIDIA's well-known names mean the same on every node, so no single report decides. In a tie the first counts. A
    report that makes the planner fail is left out; `judge_case` says so on its node.
    """
    reports = (one.observed for one in gpunodes if one is not None)
    kinds: Counter[Hardware] = Counter(one.hardware for one in reports if one is not None)
    known: dict[tuple[str, int], GpuView] = {}
    counts: Counter[tuple[str, int]] = Counter()
    for hardware, nodes in kinds.items():
        with suppress(Exception):  # whatever one node holds, the others are counted (guard.py)
            for gpu in hardware.models:
                known.setdefault(one := (gpu.product, id(gpu.profiles)), gpu)
                counts[one] += nodes
    votes: Counter[tuple[str, tuple[Profile, ...]]] = Counter()
    first: dict[tuple[str, tuple[Profile, ...]], GpuView] = {}
    for one, gpu in known.items():  # profiles are nearly always one object, and long to compare
        key = gpu.product, gpu.profiles
        votes[key] += counts[one]
        first.setdefault(key, gpu)
    models: dict[str, GpuView] = {}
    for key, _ in votes.most_common():
        models.setdefault(key[0], first[key])
    return models
