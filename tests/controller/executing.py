"""An executor on a FakeCluster with one node and one pod, and what it is told about."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hack.sim.fakecluster import FakeCluster
from tests.build import at, make_fence, make_snapshot, make_stack
from tests.kube.objects import node, pod

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.controller.execute import Executor, Outcome
from gpusharing.kube.client import NODES, PODS, KubeClient
from gpusharing.kube.convert import node_view
from gpusharing.kube.fence import record_text
from gpusharing.kube.sources import Sources
from gpusharing.kube.sourcesettings import SourceSettings
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.actions import Action, Evict, FenceNode
from gpusharing.planning.snapshot.memory import PassMemory
from gpusharing.planning.snapshot.nvidia import StackView
from gpusharing.planning.snapshot.records import Claim, Consent, FailedNode
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.reasons import Reason


@dataclass
class Claims:
    """The Lease; raises what it is given."""

    error: Exception | None = None
    seconds: float = 0.0
    """How long each write takes."""
    written: list[Mapping[str, Claim]] = field(default_factory=list)

    async def set_claims(
        self, claims: Mapping[str, Claim], failed_nodes: Mapping[str, FailedNode], consents: Mapping[str, Consent]
    ) -> None:
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        self.written.append(claims)


@dataclass
class Executing:
    """An executor on a FakeCluster with the node gpu-07 and a pod on it."""

    cluster: FakeCluster = field(default_factory=FakeCluster)
    claims: Claims = field(default_factory=Claims)
    seconds: float = 0.0
    fenced: bool = False
    """Whether gpu-07 is in the middle of a change: refused evictions are remembered only then."""
    told: list[tuple[str, str]] = field(default_factory=list)
    stack: StackView = field(default_factory=make_stack)
    through: Callable[[KubeClient], KubeClient] = lambda client: client
    """What stands between the executor and the cluster."""

    def __post_init__(self) -> None:
        self.sources = Sources(self.cluster.client("sources"), SourceSettings(), lambda: None)
        self.add_node("gpu-07", {names.ANNOTATION_FENCE: record_text(make_fence())} if self.fenced else {})
        uid = self.cluster.add(PODS, pod())["metadata"]["uid"]
        self.eviction = Evict("gpu-07", "team-a", "llm-0", uid)
        self.executor = Executor(
            self.through(self.cluster.client("operator")),
            self.sources,
            self.claims.set_claims,
            now=lambda: at(self.seconds),
            jitter=lambda: 0.0,
            on_action=lambda action, result: self.told.append((type(action).__name__, result)),
        )

    def add_node(self, name: str, annotations: Mapping[str, str] | None = None) -> None:
        marks = {"annotations": dict(annotations or {})}
        self.sources.nodes.accept(self.cluster.add(NODES, node(name, metadata=marks)))

    async def read_policies(self) -> None:
        """The sources know the policies as they are now."""
        self.sources.policies.touch()
        await self.sources.policies.refresh()

    def view(self, name: str = "gpu-07") -> NodeView:
        """A Node as the planner would see it now."""
        return node_view(self.cluster.get(NODES, name))

    def fence(self, name: str = "gpu-07", policy: str = "pool-b") -> FenceNode:
        view = self.view(name)
        return FenceNode(view, make_fence(node_uid=view.uid, policy=policy), cordon=True, labels={})

    async def run(self, *actions: Action, shared: tuple[Action, ...] = ()) -> Outcome:
        return await self.run_all({"gpu-07": actions}, shared)

    async def run_all(self, actions: Mapping[str, tuple[Action, ...]], shared: tuple[Action, ...] = ()) -> Outcome:
        snapshot = make_snapshot(self.sources.node_views().values(), stack=self.stack)
        return await self.executor.execute(plan_of(actions, shared), snapshot)

    def failures(self) -> dict[str, str]:
        return {subject: failure.message for subject, failure in self.executor.calls.failures.items()}

    def patches(self) -> int:
        return sum(write.call.resource == NODES for write in self.cluster.writes)


def plan_of(actions: Mapping[str, tuple[Action, ...]], shared: tuple[Action, ...] = ()) -> RolloutPlan:
    verdicts = {
        name: Verdict(name, "pool-b", Phase.DRAINING, Reason.PODS_LEAVING, "", actions=row)
        for name, row in actions.items()
    }
    return RolloutPlan(
        verdicts, pools={}, objections={}, shared=shared, targets={}, memory=PassMemory(), wake_at=None,
    )  # fmt: skip
