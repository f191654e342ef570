"""Gather the snapshot of one pass: all that a plan depends on, in one frozen ClusterSnapshot.

Inputs that did not change stay the same objects, for the planner's memo.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from gpusharing.kube.actuatorlogs import ActuatorLogs
from gpusharing.kube.callmemory import CallMemory
from gpusharing.kube.client import GPUNODES, JSON, PODS, KubeClient
from gpusharing.kube.clock import loop_time
from gpusharing.kube.daemonsets import by_node
from gpusharing.kube.errors import CallFailed, Unavailable
from gpusharing.kube.fanout import Workers
from gpusharing.kube.lists import pages_of
from gpusharing.kube.nodepods import Budgets, NodePods
from gpusharing.kube.pods import pod_requests
from gpusharing.kube.raw import part
from gpusharing.kube.sources import Sources
from gpusharing.kube.stackreader import StackReader
from gpusharing.planning.snapshot.memory import POLICIES, CallFailure, PassMemory, failed_again
from gpusharing.planning.snapshot.nvidia import Operand, Program
from gpusharing.planning.snapshot.records import Claim, FailedNode
from gpusharing.planning.snapshot.views import ClusterSnapshot


@dataclass(slots=True)
class Gatherer:
    """Builds snapshots, and remembers between them what saves reads and since when some states last."""

    client: KubeClient
    sources: Sources
    calls: CallMemory = field(default_factory=CallMemory)
    workers: Workers = field(default_factory=lambda: Workers(16))
    silent: bool = False
    """Whether to log nothing, because this is part of a command-line program."""
    shared: Workers = field(init=False)
    """The workers for reads that all nodes need, which must not wait for slow calls about single nodes."""
    pods: NodePods = field(init=False)
    pending: tuple[Mapping[str, int], Mapping[str, int]] = field(default_factory=lambda: ({}, {}))
    """The last count of Pending pods without a node, and of the devices that they request, by resource."""
    stack: StackReader = field(init=False)
    _logs: ActuatorLogs = field(init=False)
    _ready_since: dict[str, datetime] = field(default_factory=dict)
    """Since when this process has seen each pod of a `Program` on a fenced node Ready, by UID of the pod."""
    _listing: dict[str, CallFailure] = field(default_factory=dict)
    """The failure of the last LIST of the policies, under the subject POLICIES; empty if it succeeded."""

    def __post_init__(self) -> None:
        client, sources = self.client, self.sources
        self.shared = Workers(2, self.workers.on_late)
        self.stack = StackReader(sources, self.calls, self.silent)
        budgets = Budgets(client, self.shared)
        self.pods = NodePods(client, sources, self.calls, self.workers, budgets, self.stack)
        self._logs = ActuatorLogs(client)

    async def close(self) -> None:
        await self.workers.close()
        await self.shared.close()

    async def count_pending(self) -> bool:
        """Count the Pending pods again, and return whether their number has changed."""
        before, self.pending = self.pending, await count_pending(self.client)
        return before[0] != self.pending[0]

    async def snapshot(
        self,
        wanted: frozenset[str],
        memory: PassMemory,
        claims: Mapping[str, Claim],
        failed_nodes: Mapping[str, FailedNode],
        now: datetime,
    ) -> ClusterSnapshot:
        """Return everything that a plan depends on, with the pods of those nodes in `wanted` that are due.

        A slow LIST continues in the background. Raises Unavailable if no LIST of the policies has succeeded yet, and a
        group with Unauthorized or ServerAway.
        """
        began = loop_time()
        policies_error = await self._refresh_policies(now)
        await self.pods.look(wanted, memory.proving, now, began)
        sources, operands = self.sources, self._operands(now)
        failures = await self._logs.read(sources.nodes.items, operands[Program.MIG_MANAGER], now, self.workers)
        return ClusterSnapshot(
            nodes=sources.node_views(),
            gpunodes=dict(sources.gpunodes.items),
            unserved=GPUNODES.full_name if sources.gpunodes.gone else "",
            policies=sources.policies.views,
            policies_error=policies_error,
            stop=sources.stop(),
            stack=self.stack.read(now),
            agents=frozenset(pod.node for pod in sources.agents.items.values() if pod.ready),
            agent_troubles=sources.agent_troubles,
            operands=operands,
            mig_failures=failures,
            claims=claims,
            failed_nodes=failed_nodes,
            taint_rules=tuple(sorted(sources.rules.values(), key=lambda rule: rule.name)),
            work=dict(self.pods.work),
            pending=self.pending[0],
            pending_devices=self.pending[1],
            call_failures={**self.calls.failures, **self._listing},
            view_ages=sources.ages(),
            memory=memory,
            settings=sources.settings,
        )

    async def _refresh_policies(self, now: datetime) -> str:
        cache = self.sources.policies
        error = "the API server has not responded yet" if cache.stale else ""
        cause: CallFailed | None = None

        async def refresh(_: str) -> None:
            nonlocal error, cause
            try:
                await cache.refresh()
                error, self._listing = "", {}
            except CallFailed as failure:
                error, cause = str(failure), failure
                words = f"the policies cannot be listed: {error}"
                self._listing = {POLICIES: failed_again(self._listing.get(POLICIES), words, now, 0.0)}

        # An event that arrives after the LIST belongs to the next pass. Otherwise constant writes to a policy would
        # keep every node from starting. No node has the name of this key.
        await self.shared.each(["/policies"] if cache.dirty else [], refresh)
        message = error and f"the policies cannot be listed: {error}"
        if message and not cache.listed:
            raise Unavailable(message) from cause
        return message

    def _operands(self, now: datetime) -> dict[Program, dict[str, Operand]]:
        """Return one pod of every program on each node; of Ready ones on fenced nodes, or serving, since when."""
        sources = self.sources
        places = [*sources.operands.items.values(), *sources.kubelet_plugins.items.values()]
        if not sources.cluster_policies.items:  # pods of NVIDIA's device-plugin chart
            places += sources.chart_pods.items.values()
        operands = {program: by_node(places, program) for program in Program}
        fenced = [name for name, node in sources.nodes.items.items() if node.fence is not None]
        ready_since: dict[str, datetime] = {}
        for program, pods in operands.items():
            mps = program is Program.MPS_DAEMON
            for name in fenced if program is Program.MIG_MANAGER else [*pods]:
                if (pod := pods.get(name)) is not None and (not pod.down if mps else pod.ready):
                    since = ready_since[pod.uid] = self._ready_since.get(pod.uid, now)
                    pods[name] = replace(pod, ready_since=since)
        self._ready_since = ready_since
        return operands


async def count_pending(client: KubeClient) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Return how many Pending pods without a node request each GPU resource, and how many devices."""
    pods, devices = Counter[str](), Counter[str]()
    fields = "spec.nodeName=,status.phase=Pending"
    async for page in pages_of(client, PODS, keep=_requests_to_come, field_selector=fields):
        for requests in page.items:
            pods.update(requests.keys())
            devices.update(requests)
    return dict(pods), dict(devices)


def _requests_to_come(raw: JSON) -> Mapping[str, int]:
    return {} if part(raw, "metadata", "deletionTimestamp") else pod_requests(raw)
