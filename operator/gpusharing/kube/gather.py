"""Gather the snapshot of one pass: all that a plan depends on, in one frozen ClusterSnapshot.

Inputs that did not change stay the same objects, for the planner's memo.
"""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from gpusharing.api.names import LABEL_MIG_STATE
from gpusharing.kube.callmemory import CallMemory
from gpusharing.kube.client import KubeClient
from gpusharing.kube.clock import Backoff, loop_time
from gpusharing.kube.errors import KubeError, ServerAway, Unauthorized, Unavailable
from gpusharing.kube.fanout import Workers
from gpusharing.kube.nodepods import NodePods
from gpusharing.kube.podlists import Budgets
from gpusharing.kube.pods import count_pending
from gpusharing.kube.sources import Sources, by_node
from gpusharing.kube.stackreader import StackReader
from gpusharing.planning.snapshot.memory import POLICIES, CallFailure, PassMemory, failed_again
from gpusharing.planning.snapshot.nvidia import Operand, Program
from gpusharing.planning.snapshot.records import Claim, FailedNode
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView
from gpusharing.planning.wanted.actuators.choice import find_actuator

LINES = 200
"""How many lines of a log are read; after its first error, mig-parted writes fewer for eight GPUs."""
PATIENCE = 2.0
"""Seconds to wait for a log. The API server asks the kubelet, which may be gone, and the pass waits for the answer."""
RETRY = timedelta(seconds=30)
"""The wait until a log that gave no reason is read again; doubled each time."""
LONGEST = timedelta(minutes=10)
"""The longest wait between two reads, because a Failed node may wait for a person for weeks."""
MAX_TEXT = 400
"""The most characters of a reason."""
LOGGED = re.compile(r'level=(error|fatal) msg="((?:[^"\\]|\\.)*)"')


def failure_in(log: str) -> str:
    """Return the first error and the last line of the last run of mig-manager; empty without an error.

    The text has at most MAX_TEXT characters.
    """
    found = LOGGED.findall(log.rpartition("Updating to MIG config")[2])  # its first line of a run
    rows = [(level, text.replace('\\"', '"').replace("\\n", " ").strip()) for level, text in found]
    # mig-manager's own summary after mig-parted's last line adds nothing.
    rows = [row for row in rows if not row[1].startswith("Error: failed to apply MIG configuration")] or rows
    if not rows:
        return ""
    # The first error is the cause. The last fatal line sums up ("...: all orderings failed"); earlier ones come from
    # mig-parted's checks ("selected configuration not applied").
    cause = next((text for level, text in rows if level == "error"), "")
    return "; ".join(dict.fromkeys(filter(None, (cause, rows[-1][1]))))[:MAX_TEXT]


@dataclass(frozen=True, slots=True)
class _Known:
    """The last reading of a pod's log."""

    key: str
    """UID of the pod and number of the attempt, written `UID/attempt`."""
    text: str
    """The reason; empty if the log has none or could not be read."""
    pause: Backoff
    again: datetime
    """When to read the log again if there is no reason."""


@dataclass(slots=True)
class ActuatorLogs:
    """Reads the logs of mig-manager's pods, and remembers for each node why mig-manager fails there.

    Its labels do not say why (docs/design/nvidia.md#a3). Without the right to read logs, or with a kubelet that does
    not answer, only the reason is missing: the verdict points to the log instead.
    """

    client: KubeClient
    _known: dict[str, _Known] = field(default_factory=dict)

    async def read(
        self, nodes: Mapping[str, NodeView], pods: Mapping[str, Operand], now: datetime, workers: Workers
    ) -> dict[str, str]:
        """Return why mig-manager failed, as far as known, by name of each fenced node with the state `failed`.

        A log is read once per attempt, and again after a growing wait if it gave no reason. A slow read may end after
        this call; a later call then returns its reason.

        Raises:
            ExceptionGroup: with Unauthorized or ServerAway from a read, perhaps from one of an earlier call.
        """
        failed = {
            name: f"{pods[name].uid}/{node.fence.attempt}"
            for name, node in nodes.items()
            if node.fence is not None and name in pods and node.labels.get(LABEL_MIG_STATE) == "failed"
        }
        for name in self._known.keys() - failed.keys():
            del self._known[name]
        keys = {
            f"/log/{name}": name
            for name, key in failed.items()
            if (known := self._known.get(name)) is None or known.key != key or (not known.text and now >= known.again)
        }

        async def read(key: str) -> None:
            name = keys[key]
            reason = await self._read(pods[name])
            before = self._known.get(name)
            if before is not None and before.key == failed[name]:
                pause = before.pause
            else:
                pause = Backoff(RETRY.total_seconds(), LONGEST.total_seconds(), lambda: 1.0)
            again = now + timedelta(seconds=pause.after_failure())
            self._known[name] = _Known(failed[name], reason, pause, again)

        await workers.each(keys, read)
        return {name: known.text for name, known in self._known.items() if known.text}

    async def _read(self, pod: Operand) -> str:
        try:
            async with asyncio.timeout(PATIENCE):
                return failure_in(await self.client.log(pod.namespace, pod.name, LINES))
        except (Unauthorized, ServerAway):
            raise
        except (KubeError, TimeoutError):
            return ""


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
    """The workers for reads that all nodes need.

    Such a read must not wait until slow calls about single nodes free a worker."""
    pods: NodePods = field(init=False)
    pending: tuple[Mapping[str, int], Mapping[str, int]] = field(default_factory=lambda: ({}, {}))
    """The last count of Pending pods without a node, and of the devices that they request, by resource."""
    stack: StackReader = field(init=False)
    _logs: ActuatorLogs = field(init=False)
    _at_work_since: dict[str, datetime] = field(default_factory=dict)
    """Since when this process has seen mig-manager work on each node, by node name."""
    _ready_since: dict[str, datetime] = field(default_factory=dict)
    """Since when this process has seen each pod of a `Program` on a fenced node Ready, by UID of the pod."""
    _policies_error: str = ""
    """Why the policies may be out of date; empty if the last LIST succeeded."""
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
        """Count the Pending pods again, and return whether their number has changed.

        If that fails, the last count stays.
        """
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
        """Return everything that a plan depends on. A failed call about one node is recorded in the snapshot.

        The pods of those nodes in `wanted` that are due are listed. A slow LIST continues in the background; until it
        ends, the node keeps the result of its last one. `memory` comes from the last pass.

        Raises:
            Unavailable: no LIST of the policies has succeeded yet.
            ExceptionGroup: with Unauthorized or ServerAway.
        """
        began = loop_time()
        policies_error = await self._refresh_policies(now)
        await self.pods.look(wanted, memory.proving, now, began)
        sources, operands = self.sources, self._operands(now)
        failures = await self._logs.read(sources.nodes.items, operands[Program.MIG_MANAGER], now, self.workers)
        stack = self.stack.read(now)
        find_work = find_actuator(stack).find_work
        working = (name for name, node in sources.nodes.items.items() if find_work(node))
        self._at_work_since = {name: self._at_work_since.get(name, now) for name in working}
        return ClusterSnapshot(
            nodes=sources.node_views(),
            gpunodes=dict(sources.gpunodes.items),
            policies=sources.policies.views,
            policies_error=policies_error,
            stack=stack,
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
            at_work_since=dict(self._at_work_since),
            call_failures={**self.calls.failures, **self._listing},
            view_ages=sources.ages(),
            memory=memory,
            settings=sources.settings.plan,
        )

    async def _refresh_policies(self, now: datetime) -> str:
        cache = self.sources.policies
        if cache.stale:
            self._policies_error = "the API server has not responded yet"

        async def refresh(_: str) -> None:
            try:
                await cache.refresh()
                self._policies_error, self._listing = "", {}
            except (Unauthorized, ServerAway):
                raise
            except KubeError as error:
                self._policies_error = str(error)
                words = f"the policies cannot be listed: {error}"
                self._listing = {POLICIES: failed_again(self._listing.get(POLICIES), words, now, 0.0)}

        # An event that arrives after the LIST belongs to the next pass. Otherwise constant writes to a policy would
        # keep every node from starting. No node has the name of this key.
        await self.shared.each(["/policies"] if cache.dirty else [], refresh)
        message = self._policies_error and f"the policies cannot be listed: {self._policies_error}"
        if message and not cache.listed:
            raise Unavailable(message)
        return message

    def _operands(self, now: datetime) -> dict[Program, dict[str, Operand]]:
        """Return one pod of every program on each node.

        A Ready pod on a fenced node, and an MPS daemon that runs on any, also says since when: config-manager in the
        daemon's pod may crash meanwhile, so that the pod is Ready only now and then.
        """
        sources = self.sources
        places = [*sources.operands.items.values(), *sources.kubelet_plugins.items.values()]
        if not sources.cluster_policies.items:  # pods of NVIDIA's device-plugin chart
            places += sources.chart_pods.items.values()
        operands = {program: by_node(places, program) for program in Program}
        fenced = [name for name, node in sources.nodes.items.items() if node.fence is not None]
        ready_since: dict[str, datetime] = {}
        for program, pods in operands.items():
            mps = program is Program.MPS_DAEMON
            for name in [*pods] if mps else fenced:
                if (pod := pods.get(name)) is not None and (not pod.down if mps else pod.ready):
                    since = ready_since[pod.uid] = self._ready_since.get(pod.uid, now)
                    pods[name] = replace(pod, ready_since=since)
        self._ready_since = ready_since
        return operands
