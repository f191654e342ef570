"""reads → one frozen ClusterSnapshot. Inputs that did not change keep their identity, for the planner's memo."""

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import structlog

from gpusharing.api.names import LABEL_PLUGIN_CONFIG, DisruptionClass
from gpusharing.kube.actuatorlog import ActuatorLogs
from gpusharing.kube.budgets import KEPT_THROTTLED, Budgets
from gpusharing.kube.callmemory import CallMemory
from gpusharing.kube.client import PODS, KubeClient
from gpusharing.kube.clock import loop_time
from gpusharing.kube.crew import Crew
from gpusharing.kube.errors import HeldBack, KubeError, ServerAway, Throttled, Unauthorized, Unavailable
from gpusharing.kube.gangs import Gangs
from gpusharing.kube.paging import list_of
from gpusharing.kube.pending import PendingPods
from gpusharing.kube.podlookups import PodLookups
from gpusharing.kube.sources import (
    MIG_MANAGER,
    MPS_DAEMON,
    NO_MAPS,
    NODE_CONFIG_SUFFIX,
    AdminMaps,
    Sources,
    by_node,
)
from gpusharing.kube.written import MIG_KEY, OurConfigMaps
from gpusharing.planning.drain.holders import Scope, holds_gpu, scope_of
from gpusharing.planning.drain.rules import asks_for_namespaces
from gpusharing.planning.drain.sightings import heard, looked
from gpusharing.planning.snapshot.agents import AgentTroubles, find_troubles
from gpusharing.planning.snapshot.callfailures import CLUSTER_POLICY, POLICIES, CallFailure, failed_again
from gpusharing.planning.snapshot.passmemory import PassMemory
from gpusharing.planning.snapshot.podviews import GangView, NodeWork, PdbView, PodView
from gpusharing.planning.snapshot.records import Claim, FailedNode
from gpusharing.planning.snapshot.stackviews import ClusterPolicyView, Operand, StackView
from gpusharing.planning.snapshot.views import ClusterSnapshot, PlanSettings
from gpusharing.planning.transition.quiet import is_at_work
from gpusharing.planning.wanted import migfile

log = structlog.get_logger()

_POLICIES = "/policies"
"""The crew's key for the list of policies; no node has this name."""


@dataclass(frozen=True, slots=True)
class _Listed:
    """The pods of one node, or why they could not be listed, at the moment when the LIST began."""

    pods: tuple[PodView, ...]
    error: str
    at: datetime
    scope: Scope
    gangs: tuple[GangView, ...] = ()


@dataclass(slots=True)
class Gatherer:
    """Builds snapshots; remembers only what saves reads or keeps identity."""

    client: KubeClient
    sources: Sources
    settings: PlanSettings
    admin_maps: AdminMaps = NO_MAPS
    calls: CallMemory = field(default_factory=CallMemory)
    """What the executor remembers of its calls."""
    parallel: int = 16
    on_late: Callable[[], None] = lambda: None
    """Called when a LIST arrives for which no snapshot waited."""
    silent: bool = False
    """Log nothing: it is part of a program whose output is an answer."""
    work: dict[str, NodeWork] = field(default_factory=dict)
    pending: PendingPods = field(init=False)
    _at_work_since: dict[str, datetime] = field(default_factory=dict)
    _ready_since: dict[str, datetime] = field(default_factory=dict)
    """By UID of a mig-manager pod on a fenced node."""
    _logs: ActuatorLogs = field(init=False)
    _config_maps: OurConfigMaps = field(default_factory=OurConfigMaps)
    _stack: StackView | None = None
    _lookups: PodLookups = field(init=False)
    _budgets: Budgets = field(init=False)
    gangs: Gangs = field(init=False)
    crew: Crew = field(init=False)
    shared: Crew = field(init=False)
    """For reads that all nodes need: they must not wait until slow calls about single nodes free a worker."""
    _lists: dict[str, _Listed] = field(default_factory=dict)
    """LISTs that came since the last snapshot."""
    _policies_error: str = ""
    _listing: dict[str, CallFailure] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._logs, self._lookups = ActuatorLogs(self.client), PodLookups(self.client)
        self.crew, self.shared = Crew(self.parallel, self.on_late), Crew(2, self.on_late)
        self._budgets, self.gangs = Budgets(self.client, self.shared), Gangs(self.client)
        self.pending = PendingPods(self.client)

    async def snapshot(
        self,
        wanted: frozenset[str],
        memory: PassMemory,
        claims: Mapping[str, Claim],
        failed_nodes: Mapping[str, FailedNode],
        now: datetime,
    ) -> ClusterSnapshot:
        """Gather everything that a plan depends on. A failed call about one node is recorded in the snapshot.

        `wanted`: the nodes whose pods are listed. `memory`: what the last pass left. `claims` and `failed_nodes`: what
        the Lease says.

        A snapshot does not wait for a slow LIST: the node keeps what was seen before, with its age.

        Raises:
            KubeError: the policies cannot be listed, the server is away, or our credentials are no longer valid;
                also in a group.
        """
        began = loop_time()
        policies_error = await self._refresh_policies(now)
        self._hear(now, began)
        await self._list_pods(wanted, memory.proving, now, began)
        # The answer may have come while LISTs were under way; they do not count as made after it.
        self._hear(now, began)
        sources, mig_managers = self.sources, self._mig_managers(now)
        failures = await self._logs.read(sources.nodes.items, mig_managers, now, self.crew)
        return ClusterSnapshot(
            nodes=sources.node_views(),
            gpunodes=dict(sources.gpunodes.items),
            policies=sources.policies.views,
            policies_error=policies_error,
            stack=self._stack_view(now),
            agents=frozenset(pod.node for pod in sources.agents.items.values() if pod.ready),
            agent_troubles=self._agent_troubles(),
            mig_managers=mig_managers,
            mig_failures=failures,
            mps_daemons=by_node(sources.operands.items.values(), MPS_DAEMON),
            claims=claims,
            failed_nodes=failed_nodes,
            work=dict(self.work),
            pending=self.pending.pods,
            pending_devices=self.pending.devices,
            at_work_since=self._look_for_work(now),
            call_failures={**self.calls.failures, **self._listing},
            view_ages={name: source.age for name, source in sources.required.items()},
            memory=memory,
            settings=self.settings,
        )

    def _hear(self, now: datetime, began: float) -> None:
        """Note what the agents of the nodes in work have answered by now."""
        answers = self.sources.gpunodes.items
        for name, work in self.work.items():
            self.work[name] = heard(work, answers.get(name), _later(now, began))

    def _agent_troubles(self) -> AgentTroubles:
        pods, warnings = self.sources.agents.items, self.sources.agent_warnings.items
        return find_troubles(pods.values(), warnings.values(), self.sources.architecture)

    async def _refresh_policies(self, now: datetime) -> str:
        """Why the policies are older than this pass; empty when they are not.

        News about them after their LIST belongs to the next pass. Otherwise constant writes to a policy would keep
        every node from starting.
        """
        cache = self.sources.policies
        if cache.stale:
            self._policies_error = "the API server has not answered yet"

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

        await self.shared.each([_POLICIES] if cache.dirty else [], refresh)
        message = self._policies_error and f"the policies cannot be listed: {self._policies_error}"
        if message and not cache.listed:
            raise Unavailable(message)
        return message

    def _look_for_work(self, now: datetime) -> dict[str, datetime]:
        """Since when mig-manager works on each node, as seen by this process."""
        before, nodes = self._at_work_since, self.sources.nodes.items
        working = (name for name, node in nodes.items() if is_at_work(node))
        self._at_work_since = {name: before.get(name, now) for name in working}
        return dict(self._at_work_since)

    def forget_pods(self) -> None:
        """An answer of the server was lost: only a new LIST shows whether a pod was evicted."""
        self.work.clear()
        self._lists.clear()

    def _mig_managers(self, now: datetime) -> dict[str, Operand]:
        """The mig-manager pods; for those on fenced nodes also since when they are Ready."""
        found = by_node(self.sources.operands.items.values(), MIG_MANAGER)
        seen: dict[str, datetime] = {}
        for name, node in self.sources.nodes.items.items():
            operand = found.get(name)
            if node.fence is not None and operand is not None and operand.ready:
                seen[operand.uid] = self._ready_since.get(operand.uid, now)
                found[name] = replace(operand, ready_since=seen[operand.uid])
        self._ready_since = seen
        return found

    # --- NVIDIA's stack ------------------------------------------------------------------------------------

    def _stack_view(self, now: datetime) -> StackView:
        maps, settings = self.sources.config_maps.items, self.settings
        ours = self._config_maps
        ours.read(maps.get(settings.plugin_config_map), maps.get(settings.mig_config_map))
        admin, admin_plugin = maps.get(self.admin_maps.mig), maps.get(self.admin_maps.plugin)
        named = {self.admin_maps.plugin, self.admin_maps.mig} - {""}
        cluster_policy = self.sources.cluster_policy
        view = StackView(
            cluster_policy=cluster_policy,
            gpu_cluster=bool(self.sources.gpu_clusters.items),
            plugin_configs=ours.plugin.data,
            mig_file=ours.mig.data.get(MIG_KEY, ""),
            written=ours.written(now),
            admin_mig_file=admin.data.get(MIG_KEY, "") if admin else "",
            admin_plugin_configs=admin_plugin.data if admin_plugin else {},
            missing_entries=self._missing_entries(cluster_policy, ours.plugin.data),
            missing_maps=tuple(sorted(name for name in named if name not in maps)),
            generated_mig_files=self._generated_mig_files(),
            plugin_map_exists=bool(ours.plugin.uid),
            serves_our_mig_file=cluster_policy is not None
            and cluster_policy.mig_config_name == settings.mig_config_map,
            marked=ours.marked,
            write_error=self.calls.write_error,
            rival_policies=self.sources.rival_policies,
            finders=self.sources.finders,
            intolerant_agents=self.sources.intolerant_agents,
            pointer_error=self._pointer_error(),
            foreign_map=self._foreign_map(),
            seen_plugin_configs=ours.seen_plugin_configs,
            seen_mig_entries=ours.seen_mig_entries,
        )
        if self._stack != view:
            if not self.silent:
                self._tell(self._stack, view)
            self._stack = view
        assert self._stack is not None, "set a line above"
        return self._stack

    def _generated_mig_files(self) -> dict[str, str]:
        return {
            name.removesuffix(NODE_CONFIG_SUFFIX): config_map.data.get(MIG_KEY, "")
            for name, config_map in self.sources.config_maps.items.items()
            if name.endswith(NODE_CONFIG_SUFFIX)
        }

    def _missing_entries(self, policy: ClusterPolicyView | None, held: Collection[str]) -> tuple[str, ...]:
        if policy is None or policy.plugin_config_name == self.settings.plugin_config_map:
            return ()  # no pointer to move; a Node that names a missing entry is reported on its own
        told = {node.labels.get(LABEL_PLUGIN_CONFIG, "") for node in self.sources.nodes.items.values()}
        return tuple(sorted(told - {"", *held}))

    def _pointer_error(self) -> str:
        failure = self.calls.failures.get(CLUSTER_POLICY)
        return failure.message if failure is not None and failure.lasts else ""

    def _foreign_map(self) -> str:
        ours, settings = self._config_maps, self.settings
        if ours.is_foreign(ours.plugin):
            return settings.plugin_config_map
        return settings.mig_config_map if ours.is_foreign(ours.mig) else ""

    def _tell(self, before: StackView | None, now: StackView) -> None:
        for name in now.missing_maps:
            if before is None or name not in before.missing_maps:
                log.warning("the admin's ConfigMap is not there", configmap=name)
        problem = migfile.parse_admin(now.admin_mig_file).problem
        if problem and (before is None or before.admin_mig_file != now.admin_mig_file):
            log.warning(
                "entries of the admin's ConfigMap are left out", configmap=self.admin_maps.mig, why=problem
            )

    # --- pods of nodes in work -------------------------------------------------------------------------------

    async def _list_pods(
        self, wanted: frozenset[str], proving: frozenset[str], now: datetime, began: float
    ) -> None:
        """List the pods of each wanted node whose last list is old enough; forget the others."""
        for name in self.work.keys() - wanted:
            del self.work[name]

        async def read(node: str) -> None:
            self.calls.unsure.discard(node)
            at = _later(now, began)  # it may have waited for others, and must not be older than it is
            with suppress(Throttled):  # not sent, or refused: what was seen before stays valid, with its age
                scope, view = self._scope(node), self.sources.nodes.items.get(node)
                pods, error = await self._pods_of(node, scope, at)
                gangs = await self.gangs.find(pods, scope, at, anew=view is None or view.fence is None)
                self._lists[node] = _Listed(pods, error, at, scope, gangs)

        due = sorted(self._due(wanted, now), key=lambda name: self._urgency(name, proving))
        await self.crew.each(due, read)
        came, self._lists = self._lists, {}
        lists = {node: came[node] for node in sorted(came) if node in wanted}
        found = {node: listed for node, listed in lists.items() if listed.pods}
        guarded = {n for n, each in found.items() if each.scope.all_pods or any(map(holds_gpu, each.pods))}
        budgets = await self._budgets.find() if guarded else ()
        pdbs, trouble = ((), budgets) if isinstance(budgets, str) else (budgets or (), "")
        for node, listed in lists.items():
            if budgets is None and node in guarded:
                self._lists.setdefault(node, listed)  # what was seen stays valid until the budgets are known
                continue
            error = listed.error or (trouble if node in guarded else "")
            self.work[node] = self._work(node, listed, pdbs, error)
        for node, work in self.work.items():
            memories = self.calls.evictions.get(node, {})
            if work.evictions != memories:
                self.work[node] = replace(work, evictions=dict(memories))

    def _due(self, wanted: frozenset[str], now: datetime) -> list[str]:
        """Nodes whose pods have to be listed now."""
        age = timedelta(seconds=min(self.settings.poll, self.settings.idle))

        def is_due(name: str) -> bool:
            work = self.work.get(name)
            if work is None or name in self.calls.unsure or now - work.listed_at >= age:
                return True
            # The first of the two LISTs that prove a node idle is made as soon as the agent has answered.
            return work.quiet_since is not None and work.listed_at < work.quiet_since

        return [name for name in wanted if name not in self._lists and is_due(name)]

    def _urgency(self, name: str, proving: frozenset[str]) -> tuple[bool, float, str]:
        """On a slow server a round ends before its work is done, and the next one begins with the most urgent.

        These are the nodes whose agent has closed NVML: their proof grows old. Always in the same order, so that the
        first of them are proven if there is no time for all. Then the others, by how long ago they were looked at.
        """
        node, work = self.sources.nodes.items.get(name), self.work.get(name)
        if name in proving and node is not None and node.fence is not None:
            return False, node.fence.since.timestamp(), name
        return True, work.listed_at.timestamp() if work is not None else 0.0, name

    def _work(self, node: str, listed: _Listed, pdbs: tuple[PdbView, ...], error: str) -> NodeWork:
        evictions = dict(self.calls.evictions.get(node, {}))
        work = NodeWork(listed.pods, pdbs, listed.at, evictions=evictions, error=error, gangs=listed.gangs)
        return looked(self.work.get(node), work, self.sources.gpunodes.items.get(node), listed.scope)

    def _scope(self, node: str) -> Scope:
        """Before the fence names its class, every change may become a reboot where mig-manager runs WITH_REBOOT."""
        view = self.sources.nodes.items.get(node)
        if view is not None and view.fence is not None:
            reboots, since = view.fence.disruption is DisruptionClass.REBOOT, view.fence.since
        else:
            reboots = any(policy.with_reboot for policy in self.sources.cluster_policies.items.values())
            since = None
        return scope_of(self.settings, all_pods=reboots, cordoned_at=since)

    async def _pods_of(self, node: str, scope: Scope, now: datetime) -> tuple[tuple[PodView, ...], str]:
        try:
            raws = await list_of(self.client, PODS, field_selector=f"spec.nodeName={node}")
            namespaces = any(
                policy.spec is not None and asks_for_namespaces(policy.spec.drain)
                for policy in self.sources.policies.views
            )
            return await self._lookups.views(raws, scope, now, namespaces=namespaces), ""
        except (Unauthorized, ServerAway, HeldBack):
            raise
        except KubeError as error:
            before = self.work.get(node)
            if isinstance(error, Throttled) and before and now - before.listed_at < KEPT_THROTTLED:
                raise
            return (), f"the pods of the node cannot be listed: {error}"


def _later(now: datetime, began: float) -> datetime:
    """The present time, given that it was `now` at `began` of the loop's clock."""
    return now + timedelta(seconds=loop_time() - began)
