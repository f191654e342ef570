"""The case of each node in one pass, and what follows from it: the comparison with its policy, and its verdict.

A pass makes cases only for the nodes about which something has changed since the last pass. The memo (memo.py) finds
these nodes and keeps the verdicts of the others.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import replace
from datetime import datetime

from gpusharing.planning.gpus.cards import Profile
from gpusharing.planning.snapshot.memo import Column
from gpusharing.planning.snapshot.stackviews import Program
from gpusharing.planning.snapshot.views import ClusterSnapshot, GPUNodeView, GpuView, Hardware
from gpusharing.planning.transition.judge import differs_from_target, judge
from gpusharing.planning.transition.members import Member, find_member, is_begun
from gpusharing.planning.transition.verdict import NodeCase
from gpusharing.planning.wanted.actuators.choice import find_actuator
from gpusharing.planning.wanted.assess import assess
from gpusharing.planning.wanted.target import PolicyTargets


class Cases:
    """What the cases of all nodes are made from. Each attribute is a mapping or a set with an entry per node, or one value for all, so that the memo can compare it with the last pass."""

    def __init__(
        self,
        snapshot: ClusterSnapshot,
        owners: Mapping[str, str],
        terms: Mapping[str, PolicyTargets],
        followed: Mapping[str, PolicyTargets | None],
    ) -> None:
        self.nodes, self.gpunodes, self.work = snapshot.nodes, snapshot.gpunodes, snapshot.work
        self.agents, troubles = snapshot.agents, snapshot.agent_troubles
        self.troubles = {name: troubles.of(name) for name in followed.keys() - snapshot.agents}
        self.mig_failures, self.claimed = snapshot.mig_failures, snapshot.claims.keys()
        self.drifting, self.at_work = snapshot.memory.drifting_since, snapshot.at_work_since
        self.stack, self.settings, self.old_views = snapshot.stack, snapshot.settings, snapshot.old_views
        self.owned = {name: terms.get(owners[name]) for name in followed}
        self.followed = followed
        self.actuator = find_actuator(snapshot.stack)
        self.operands = tuple(snapshot.operands.get(program, {}) for program in Program)
        rows = [one for one in vars(self).values() if isinstance(one, Mapping | AbstractSet)]
        self.shared = [
            one for one in vars(self).values() if not isinstance(one, Mapping | AbstractSet | tuple)
        ]
        self.columns: list[Column] = [*rows, *self.operands]

    def find(self, name: str, now: datetime) -> tuple[NodeCase, PolicyTargets | None]:
        """Return the arguments of `judge_case` for a node in `followed`; the terms are None if no policy drives it."""
        owner = self.owned[name]
        case = NodeCase(
            node=self.nodes[name],
            gpunode=self.gpunodes.get(name),
            owner=owner.policy if owner is not None else None,
            work=self.work.get(name),
            agent_ready=name in self.agents,
            agent_trouble=self.troubles.get(name),
            operands={
                program: pods[name]
                for program, pods in zip(Program, self.operands, strict=True)
                if name in pods
            },
            mig_failure=self.mig_failures.get(name, ""),
            claimed=name in self.claimed,
            drifting_since=self.drifting.get(name),
            at_work_since=self.at_work.get(name),
            actuator=self.actuator,
            stack=self.stack,
            settings=self.settings,
            now=now,
            old_views=self.old_views,
        )
        return case, self.followed[name]


def compare(case: NodeCase, terms: PolicyTargets | None) -> NodeCase:
    """Return the case with its assessment. Pods that were listed for a smaller change than the present reboot are dropped."""
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
    return find_member(verdict, node, case.gpunode, case, differs=differs)


def keeps_verdict(member: Member | None) -> bool:
    """Whether `judge_case` gives the same answer until something other than the time changes."""
    if member is None:
        return True
    return not is_begun(member.node) and member.verdict.wake is None and not member.verdict.actions


def find_models(gpunodes: Iterable[GPUNodeView | None]) -> dict[str, GpuView]:
    """Return, by product, one GPU of each card model, with the profiles that most nodes report for it."""
    reports = (gpunode.observed for gpunode in gpunodes if gpunode is not None)
    kinds: Counter[Hardware] = Counter(report.hardware for report in reports if report is not None)
    known: dict[tuple[str, int], GpuView] = {}
    counts: Counter[tuple[str, int]] = Counter()
    for hardware, nodes in kinds.items():
        # One node must not hide the others; `judge_case` shows its error (guard.py).
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
