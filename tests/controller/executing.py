"""An executor on a FakeCluster with one node and one pod, and what it is told about."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hack.sim.fakecluster import FakeCluster
from tests.build import at, make_fence, make_node, make_snapshot, make_stack
from tests.kube.objects import node, pod

from gpusharing.api.names import Phase
from gpusharing.controller.execute import Executor, Outcome
from gpusharing.kube.client import JSON, NODES, PODS
from gpusharing.kube.convert import node_view
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.actions import Action, Evict, FenceNode
from gpusharing.planning.snapshot.passmemory import PassMemory
from gpusharing.planning.snapshot.records import Claim, FailedNode
from gpusharing.planning.snapshot.stackviews import StackView
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.reasons import Reason


@dataclass
class Known:
    """A cache as a reflector would be, for Nodes, GPUNodes or ConfigMaps."""

    versions: dict[str, str] = field(default_factory=dict)

    def resource_version(self, name: str) -> str:
        return self.versions.get(name, "")

    def accept(self, raw: JSON) -> None:
        self.versions[raw["metadata"]["name"]] = raw["metadata"]["resourceVersion"]


@dataclass
class KnownPolicies:
    """Policies as last read."""

    metadata: JSON = field(default_factory=dict)

    def finalizers(self, policy: str) -> tuple[str, tuple[str, ...]]:
        return str(self.metadata.get("resourceVersion", "")), tuple(self.metadata.get("finalizers", ()))

    def accept(self, raw: JSON) -> None:
        self.metadata = raw["metadata"]


@dataclass
class Claims:
    """The Lease; raises what it is given."""

    error: Exception | None = None
    written: list[Mapping[str, Claim]] = field(default_factory=list)

    async def set_claims(self, claims: Mapping[str, Claim], failed_nodes: Mapping[str, FailedNode]) -> None:
        if self.error is not None:
            raise self.error
        self.written.append(claims)


@dataclass
class Executing:
    """An executor on a FakeCluster with the node gpu-07 and a pod on it."""

    cluster: FakeCluster = field(default_factory=FakeCluster)
    claims: Claims = field(default_factory=Claims)
    policies: KnownPolicies = field(default_factory=KnownPolicies)
    seconds: float = 0.0
    told: list[tuple[str, str]] = field(default_factory=list)
    stack: StackView = field(default_factory=make_stack)

    def __post_init__(self) -> None:
        self.nodes, self.gpunodes, self.config_maps = Known(), Known(), Known()
        self.add_node("gpu-07")
        uid = self.cluster.add(PODS, pod())["metadata"]["uid"]
        self.eviction = Evict("gpu-07", "team-a", "llm-0", uid)
        self.executor = Executor(
            self.cluster.client("operator"),
            self.nodes,
            self.gpunodes,
            self.policies,
            self.claims,
            now=lambda: at(self.seconds),
            jitter=lambda: 0.0,
            on_action=lambda action, result: self.told.append((type(action).__name__, result)),
        )

    def add_node(self, name: str) -> None:
        """A Node that the cache knows."""
        self.nodes.accept(self.cluster.add(NODES, node(name)))

    def view(self, name: str = "gpu-07") -> NodeView:
        """A Node as the planner would see it now."""
        return node_view(self.cluster.get(NODES, name))

    def fence(self, name: str = "gpu-07", policy: str = "pool-b") -> FenceNode:
        """Cordon and fence the node as it is now."""
        view = self.view(name)
        return FenceNode(view, make_fence(node_uid=view.uid, policy=policy), cordon=True, labels={})

    async def run(self, *actions: Action, shared: tuple[Action, ...] = ()) -> Outcome:
        """Carry out actions of gpu-07."""
        return await self.run_all({"gpu-07": actions}, shared)

    async def run_all(
        self, actions: Mapping[str, tuple[Action, ...]], shared: tuple[Action, ...] = ()
    ) -> Outcome:
        """Carry out actions of several nodes, all of them fenced as far as anybody remembers."""
        fenced = [make_node(name, fence=make_fence()) for name in actions]
        snapshot = make_snapshot(fenced, stack=self.stack)
        return await self.executor.execute(plan_of(actions, shared), snapshot)

    def patches(self) -> int:
        """Node patches sent."""
        return sum(write.call.resource == NODES for write in self.cluster.writes)


def plan_of(actions: Mapping[str, tuple[Action, ...]], shared: tuple[Action, ...] = ()) -> RolloutPlan:
    """A plan with nothing but actions."""
    verdicts = {
        name: Verdict(name, "pool-b", Phase.DRAINING, Reason.PODS_LEAVING, "", actions=row)
        for name, row in actions.items()
    }
    return RolloutPlan(
        verdicts, pools={}, objections={}, shared=shared, targets={}, memory=PassMemory(), wake_at=None,
    )  # fmt: skip
