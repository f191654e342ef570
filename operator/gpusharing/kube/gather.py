"""reads → one frozen ClusterSnapshot. Inputs that did not change keep their identity, for the planner's memo."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import structlog

from gpusharing.api.names import DisruptionClass
from gpusharing.kube.actuatorlog import ActuatorLogs
from gpusharing.kube.client import DAEMON_SETS, JSON, PDBS, PODS, RESOURCE_CLAIMS, KubeClient, Resource
from gpusharing.kube.convert_pods import ClaimUse, claim_names, claim_use, pdb_view, pod_view
from gpusharing.kube.errors import Forbidden, KubeError, NotFound, Unauthorized, Unavailable
from gpusharing.kube.sources import MIG_MANAGER, MPS_DAEMON, NODE_CONFIG_SUFFIX, PodPlace, Sources
from gpusharing.kube.written import MIG_KEY, OurConfigMaps
from gpusharing.planning import migfile
from gpusharing.planning.holders import Scope, holds_gpu, is_idle
from gpusharing.planning.target import is_gpu_resource
from gpusharing.planning.views import (
    Claim,
    ClusterSnapshot,
    EvictionMemory,
    NodeWork,
    Operand,
    PdbView,
    PodView,
    Settings,
    StackView,
)

log = structlog.get_logger()

OWNER_TTL = timedelta(seconds=30)


@dataclass(slots=True)
class Gatherer:
    """Builds snapshots; remembers only what saves reads or keeps identity."""

    client: KubeClient
    sources: Sources
    settings: Settings
    admin_mig_map: str = ""
    evictions: Mapping[str, Mapping[str, EvictionMemory]] = field(default_factory=dict)
    """The executor's memory of refused evictions, by node and pod UID."""
    work: dict[str, NodeWork] = field(default_factory=dict)
    write_error: str = ""
    """Why the executor's last write of our ConfigMaps was refused."""
    drifting_since: dict[str, datetime] = field(default_factory=dict)
    pending: dict[str, int] = field(default_factory=dict)
    _ready_since: dict[str, datetime] = field(default_factory=dict)
    """By UID of a mig-manager pod on a fenced node."""
    _logs: ActuatorLogs = field(init=False)
    _config_maps: OurConfigMaps = field(default_factory=OurConfigMaps)
    _stack: StackView | None = None
    _owners: dict[tuple[str, str], tuple[datetime, bool | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._logs = ActuatorLogs(self.client)

    async def snapshot(
        self, wants_pods: frozenset[str], claims: Mapping[str, Claim], now: datetime
    ) -> ClusterSnapshot:
        """Everything a plan depends on. Raises Unavailable or Unauthorized; other trouble is part of the answer."""
        policies = await self.sources.policies.refresh()
        await self._list_pods(wants_pods, now)
        sources = self.sources
        mig_managers = self._mig_managers(now)
        failures = await self._logs.read(sources.nodes.items, mig_managers, now)
        return ClusterSnapshot(
            nodes=sources.node_views(),
            gpunodes=dict(sources.gpunodes.items),
            policies=policies,
            stack=self._stack_view(now),
            agents=frozenset(pod.node for pod in sources.agents.items.values() if pod.operand.ready),
            mig_managers=mig_managers,
            mig_failures=failures,
            mps_daemons=_by_node(sources.operands.items.values(), MPS_DAEMON),
            claims=claims,
            work=dict(self.work),
            pending=dict(self.pending),
            drifting_since=dict(self.drifting_since),
            settings=self.settings,
        )

    def remember_differing(self, differing: frozenset[str], now: datetime) -> None:
        """Since when each node differs from its target, as this process has seen it."""
        for name in self.drifting_since.keys() - differing:
            del self.drifting_since[name]
        for name in differing - self.drifting_since.keys():
            self.drifting_since[name] = now

    def forget_pods(self) -> None:
        """An answer of the server was lost: only a new LIST tells whether a pod was evicted."""
        self.work.clear()

    def _mig_managers(self, now: datetime) -> dict[str, Operand]:
        """The mig-manager pods; of those on fenced nodes also since when they are Ready."""
        found = _by_node(self.sources.operands.items.values(), MIG_MANAGER)
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
        admin = maps.get(self.admin_mig_map) if self.admin_mig_map else None
        cluster_policies = self.sources.cluster_policies.items
        cluster_policy = cluster_policies[min(cluster_policies)] if cluster_policies else None
        view = StackView(
            cluster_policy=cluster_policy,
            gpu_cluster=bool(self.sources.gpu_clusters.items),
            plugin_configs=ours.plugin.data,
            mig_file=ours.mig.data.get(MIG_KEY, ""),
            written=ours.written(now),
            admin_mig_file=admin.data.get(MIG_KEY, "") if admin else "",
            generated_mig_files={
                name.removesuffix(NODE_CONFIG_SUFFIX): config_map.data.get(MIG_KEY, "")
                for name, config_map in maps.items()
                if name.endswith(NODE_CONFIG_SUFFIX)
            },
            plugin_map_exists=bool(ours.plugin.uid),
            serves_our_mig_file=cluster_policy is not None
            and cluster_policy.mig_config_name == settings.mig_config_map,
            marked=ours.marked,
            write_error=self.write_error,
            foreign_map=settings.plugin_config_map
            if ours.is_foreign(ours.plugin)
            else settings.mig_config_map
            if ours.is_foreign(ours.mig)
            else "",
            seen_plugin_configs=ours.seen_plugin_configs,
            seen_mig_entries=ours.seen_mig_entries,
        )
        if self._stack != view:
            self._tell(self._stack, view)
            self._stack = view
        assert self._stack is not None, "set a line above"
        return self._stack

    def _tell(self, before: StackView | None, now: StackView) -> None:
        problem = migfile.read_admin(now.admin_mig_file).problem
        if problem and (before is None or before.admin_mig_file != now.admin_mig_file):
            log.warning(
                "entries of the admin's ConfigMap are left out", configmap=self.admin_mig_map, why=problem
            )

    # --- pods of nodes in work -------------------------------------------------------------------------------

    async def _list_pods(self, wanted: frozenset[str], now: datetime) -> None:
        """List the pods of each wanted node whose last list is old enough; forget the others."""
        for name in self.work.keys() - wanted:
            del self.work[name]
        age = timedelta(seconds=min(self.settings.poll, self.settings.idle))
        due = [
            name for name in sorted(wanted) if name not in self.work or now - self.work[name].listed_at >= age
        ]
        if due:
            lists = await asyncio.gather(*(self._pods_of(node, now) for node in due))
            guarded = any(
                holds_gpu(pod) or self._scope(node).all_pods
                for node, (pods, _) in zip(due, lists, strict=True)
                for pod in pods
            )
            pdbs = await self._pdbs(guarded)
            for node, (pods, error) in zip(due, lists, strict=True):
                self.work[node] = self._work(node, pods, pdbs, error, now)
        for node, work in self.work.items():
            memories = self.evictions.get(node, {})
            if work.evictions != memories:
                self.work[node] = replace(work, evictions=dict(memories))

    def _work(
        self, node: str, pods: tuple[PodView, ...], pdbs: tuple[PdbView, ...], error: str, now: datetime
    ) -> NodeWork:
        before = self.work.get(node)
        idle = not error and is_idle(pods, self._scope(node))
        since = before.empty_since if before else None
        view = self.sources.nodes.items.get(node)
        if since is None or (view is not None and view.fence is not None and since <= view.fence.since):
            since = now  # before the cordon pods could still come: what was seen then proves nothing
        return NodeWork(pods, pdbs, now, since if idle else None, dict(self.evictions.get(node, {})), error)

    def _scope(self, node: str) -> Scope:
        """Before the fence names its class, every change may become a reboot where mig-manager runs WITH_REBOOT."""
        view = self.sources.nodes.items.get(node)
        if view is not None and view.fence is not None:
            reboots = view.fence.disruption is DisruptionClass.REBOOT
        else:
            reboots = any(policy.with_reboot for policy in self.sources.cluster_policies.items.values())
        return Scope(self.settings.gpu_operator_namespace, all_pods=reboots)

    async def _pods_of(self, node: str, now: datetime) -> tuple[tuple[PodView, ...], str]:
        try:
            selector = f"spec.nodeName={node}"
            raws = [
                raw async for page in self.client.pages(PODS, field_selector=selector) for raw in page.items
            ]
            views = [pod_view(raw, await self._claims(raw)) for raw in raws]
            scope = self._scope(node)
            return tuple([await self._with_owner(view, scope, now) for view in views]), ""
        except (Unauthorized, Unavailable):
            raise
        except KubeError as error:
            return (), f"the pods of the node cannot be listed: {error}"

    async def _pdbs(self, needed: bool) -> tuple[PdbView, ...]:
        if not needed:
            return ()
        return tuple([pdb_view(raw) async for page in self.client.pages(PDBS) for raw in page.items])

    async def _claims(self, raw: JSON) -> dict[str, ClaimUse]:
        """What the ResourceClaims of a pod are used for; one that cannot be read counts as a GPU (drain.md G5)."""
        namespace = raw["metadata"]["namespace"]
        uses: dict[str, ClaimUse] = {}
        for name in claim_names(raw):
            if name is not None:
                found = await self._get(RESOURCE_CLAIMS, name, namespace)
                uses[f"{namespace}/{name}"] = claim_use(found) if found else "unresolved"
        return uses

    async def _with_owner(self, pod: PodView, scope: Scope, now: datetime) -> PodView:
        """Look up whether the DaemonSet of a pod that is to leave still exists (drain.md P3, P5)."""
        owner = pod.owner
        if owner is None or owner.kind != "DaemonSet" or not owner.api_version.startswith("apps/"):
            return pod
        if not (scope.all_pods or holds_gpu(pod)):
            return pod
        key = (pod.namespace, owner.name)
        known = self._owners.get(key)
        if known is None or now - known[0] > OWNER_TTL:
            known = (now, await self._exists(DAEMON_SETS, owner.name, pod.namespace))
            self._owners[key] = known
        return replace(pod, owner=replace(owner, exists=known[1]))

    async def _exists(self, resource: Resource, name: str, namespace: str) -> bool | None:
        try:
            await self.client.get(resource, name, namespace=namespace)
        except NotFound:
            return False
        except Forbidden:
            return None
        return True

    async def _get(self, resource: Resource, name: str, namespace: str) -> JSON | None:
        try:
            return await self.client.get(resource, name, namespace=namespace)
        except (NotFound, Forbidden):
            return None

    # --- pods that wait ------------------------------------------------------------------------------------

    async def count_pending(self) -> None:
        """GPU resource name to Pending pods without a node that ask for it."""
        counts: dict[str, int] = {}
        selector = "spec.nodeName=,status.phase=Pending"
        async for page in self.client.pages(PODS, field_selector=selector):
            for raw in page.items:
                for name in pod_view(raw, {}).resources:
                    if is_gpu_resource(name):
                        counts[name] = counts.get(name, 0) + 1
        self.pending = counts


def _by_node(pods: Iterable[PodPlace], app: str) -> dict[str, Operand]:
    """One pod per node; a Ready one wins over one that is going."""
    found: dict[str, Operand] = {}
    for pod in pods:
        if pod.app == app and pod.node and (pod.node not in found or pod.operand.ready):
            found[pod.node] = pod.operand
    return found
