"""Read the objects that `planning/stack/installation.py` checks.

Nothing in the cluster is changed, and what cannot be read becomes part of the answer.
"""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from gpusharing.kube.agentpods import agent_pod, has_secure_metrics
from gpusharing.kube.client import (
    ACCESS_REVIEWS,
    CLUSTER_POLICIES,
    CONFIG_MAPS,
    DAEMON_SETS,
    DEPLOYMENTS,
    GPU_CLUSTERS,
    GPUNODES,
    JSON,
    LEASES,
    NAMESPACES,
    NODES,
    PODS,
    POLICIES,
    KubeClient,
    Resource,
)
from gpusharing.kube.clock import wall_time
from gpusharing.kube.convert import cluster_policy_view, gpunode_view, node_view, policy_view
from gpusharing.kube.daemonsets import daemon_set_view
from gpusharing.kube.errors import KubeError, NotFound, Unauthorized, Unavailable
from gpusharing.kube.lease import leader_of
from gpusharing.kube.lists import list_of, pages_of
from gpusharing.kube.raw import entries, has_condition, part, section, text, texts, whole
from gpusharing.kube.sources import arch_of, config_map_view
from gpusharing.kube.stackreader import stack_view
from gpusharing.planning.rollout import foresee
from gpusharing.planning.snapshot.agents import find_troubles
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView
from gpusharing.planning.stack import installationviews
from gpusharing.planning.stack.installationviews import (
    AGENT,
    OPERATOR,
    AgentsState,
    Installation,
    Place,
    Right,
)
from gpusharing.planning.stack.nodesymptoms import PluginEntries
from gpusharing.planning.stack.plugins import has_system_plugin

RUNTIME_CLASSES = Resource("node.k8s.io", "v1", "runtimeclasses")


@dataclass(slots=True)
class _Reader:
    """Reads an installation, and records what could not be read; raises Unauthorized and Unavailable."""

    client: KubeClient
    place: Place
    unread: dict[str, str] = field(default_factory=dict)
    """Why objects could not be read, by the full name of their kind."""
    not_served: set[str] = field(default_factory=set)
    """Our own kinds that the API server does not have."""

    @contextmanager
    def _recording(self, resource: Resource) -> Iterator[None]:
        try:
            yield
        except (Unauthorized, Unavailable):
            raise
        except KubeError as error:
            self.unread[resource.full_name] = str(error)

    async def items(self, resource: Resource, namespace: str | None = None, labels: str = "") -> list[JSON]:
        with self._recording(resource):
            try:
                return await list_of(self.client, resource, namespace=namespace, label_selector=labels)
            except NotFound:
                if resource in (POLICIES, GPUNODES):
                    self.not_served.add(resource.full_name)
        return []

    async def read(self, resource: Resource, name: str, namespace: str | None = None) -> JSON | None:
        """Return one object, or None if it does not exist, its kind is not served, or it cannot be read."""
        with self._recording(resource), suppress(NotFound):
            return await self.client.get(resource, name, namespace=namespace)
        return None

    async def pods(self, namespace: str, name: str) -> list[JSON]:
        return await self.items(PODS, namespace, f"app.kubernetes.io/name={name}")

    async def nodes(self) -> dict[str, tuple[NodeView, str, bool]]:
        """Return each Node's view, kubelet version, and whether its system has a device plugin; empty if unreadable."""
        rows: dict[str, tuple[NodeView, str, bool]] = {}
        with self._recording(NODES):
            async for page in pages_of(self.client, NODES):
                for raw in page.items:
                    view, info = node_view(raw), section(raw, "status", "nodeInfo")
                    system = has_system_plugin(text(info, "osImage"))
                    rows[view.name] = view, text(info, "kubeletVersion"), system
        return {} if NODES.full_name in self.unread else rows

    async def leader(self) -> str | None:
        """Return who holds the Lease (`leader_of`); None if it cannot be read, also if the server does not answer."""
        try:
            lease = await self.read(LEASES, OPERATOR, self.place.namespace)
        except Unavailable as error:
            self.unread[LEASES.full_name] = str(error)
            return None
        if LEASES.full_name in self.unread:
            return None
        return "" if lease is None else leader_of(lease)

    async def agents(self) -> AgentsState | None:
        where = self.place.agent_namespace
        raw = await self.read(DAEMON_SETS, AGENT, where)
        if raw is None:
            return None
        template = section(raw, "spec", "template", "spec")
        runtime_class = text(template, "runtimeClassName")
        exists = None  # unknown, or no RuntimeClass is needed
        if runtime_class:
            exists = await self.read(RUNTIME_CLASSES, runtime_class) is not None
            if RUNTIME_CLASSES.full_name in self.unread:
                exists = None
        namespace = await self.read(NAMESPACES, where)
        return AgentsState(
            selector=texts(template.get("nodeSelector")),
            runtime_class=runtime_class,
            runtime_class_exists=exists,
            enforced=text(namespace, "metadata", "labels", "pod-security.kubernetes.io/enforce"),
            secure_metrics=has_secure_metrics(template),
        )

    async def rights(self, *, secure_metrics: bool) -> Mapping[str, Mapping[Right, bool | str]]:
        """Return whether operator and agent have each right that they need, also for features that are on."""
        place = self.place
        optional = (
            (installationviews.CONFIGURE, place.configure_gpu_operator),
            (installationviews.REPAIR_MPS, place.repair_mps),
            (installationviews.FORCE_DELETE, place.force_delete),
            (installationviews.DEVICE_TAINTS, place.device_taints),
        )
        operators = [*installationviews.OPERATOR_RIGHTS, *(right for rows, on in optional if on for right in rows)]
        agents = installationviews.AGENT_RIGHTS + (installationviews.SECURE_METRICS if secure_metrics else ())
        needed = {OPERATOR: operators, AGENT: agents}
        async with asyncio.TaskGroup() as group:
            tasks = {
                subject: {right: group.create_task(self._right(subject, right)) for right in rights}
                for subject, rights in needed.items()
            }
        return {who: {right: task.result() for right, task in asked.items()} for who, asked in tasks.items()}

    async def _right(self, subject: str, right: Right) -> bool | str:
        place = self.place
        spaces = {"own": place.namespace, "agent": place.agent_namespace, "gpu-operator": place.gpu_operator_namespace}
        attributes = {
            "verb": right.verb,
            "group": right.group,
            "resource": right.resource,
            "subresource": right.subresource,
            "namespace": spaces.get(right.scope, ""),  # without one, the right must hold in the whole cluster
            "name": right.name.format(
                lease=OPERATOR, plugin_config_map=place.plugin_config_map, mig_config_map=place.mig_config_map
            ),
        }
        user = "system:serviceaccount:" + place.account(subject).replace("/", ":")
        groups = ["system:serviceaccounts", "system:authenticated"]
        body = {
            "apiVersion": ACCESS_REVIEWS.api_version,
            "kind": "SubjectAccessReview",
            "spec": {"user": user, "groups": groups, "resourceAttributes": attributes},
        }
        try:
            answer = await self.client.create(ACCESS_REVIEWS, body)
        except KubeError as error:
            return str(error)
        return part(answer, "status", "allowed") is True


async def gather_installation(client: KubeClient, place: Place) -> Installation:
    """Read what an installation consists of; raises Unauthorized, or Unavailable if the server does not answer."""
    reader = _Reader(client, place)
    policies = await reader.items(POLICIES)
    deployment = await reader.read(DEPLOYMENTS, OPERATOR, place.namespace)
    cluster_policies = [*map(cluster_policy_view, await reader.items(CLUSTER_POLICIES))]
    gpu_clusters = await reader.items(GPU_CLUSTERS)
    sets = [*map(daemon_set_view, await reader.items(DAEMON_SETS, place.gpu_operator_namespace))]
    config_maps = {
        name: config_map_view(raw)
        for name in (place.plugin_config_map, place.mig_config_map)
        if (raw := await reader.read(CONFIG_MAPS, name, place.gpu_operator_namespace)) is not None
    }
    gpunodes = {view.name: view for view in map(gpunode_view, await reader.items(GPUNODES))}
    agents = await reader.agents()
    agent_pods = [*map(agent_pod, await reader.pods(place.agent_namespace, AGENT))] if agents is not None else []
    operator_pods = dict(map(_pod, await reader.pods(place.namespace, OPERATOR)))
    replicas = None if deployment is None else whole(deployment, "spec", "replicas")
    partly_ready = len(set(map(bool, operator_pods.values()))) > 1
    rights_held = await reader.rights(secure_metrics=agents is not None and agents.secure_metrics)
    rows = await reader.nodes()
    nodes = {name: node for name, (node, _, _) in rows.items()}
    leader = await reader.leader() if replicas == 0 or partly_ready else None
    unknown = agents is None or PODS.full_name in reader.unread
    snapshot = ClusterSnapshot(
        nodes=nodes,
        gpunodes=gpunodes,
        policies=tuple(map(policy_view, policies)),
        policies_error=reader.unread.get(POLICIES.full_name, ""),
        stack=stack_view(cluster_policies, sets, config_maps, place, gpu_cluster=bool(gpu_clusters)),
        agents=frozenset(gpunodes) if unknown else frozenset(pod.node for pod in agent_pods if pod.ready),
        agent_troubles=find_troubles(agent_pods, (), arch_of(nodes)),
        settings=place,
    )
    return Installation(
        snapshot,
        place=place,
        unread=dict(reader.unread),
        not_served=frozenset(reader.not_served),
        rights=rights_held,
        operator_replicas=replicas,
        leader=leader,
        operator_pods=operator_pods,
        agents=agents,
        kubelets={name: kubelet for name, (_, kubelet, _) in rows.items()},
        system_plugins=frozenset(name for name, (_, _, system) in rows.items() if system),
        ignored_policies=tuple(sorted(one.name for one in cluster_policies if one.ignored)),
        foresee=partial(foresee, now=wall_time()),
    )


def _pod(raw: JSON) -> tuple[str, str]:
    ready = has_condition(raw, "Ready") and part(raw, "metadata", "deletionTimestamp") is None
    return text(raw, "metadata", "name"), "" if ready else next(_problems(raw), "") or "not Ready"


def _problems(raw: JSON) -> Iterator[str]:
    statuses = entries(raw, "status", "initContainerStatuses") + entries(raw, "status", "containerStatuses")
    for status in statuses:
        if waiting := section(status, "state", "waiting"):
            message = text(waiting, "message")
            yield text(waiting, "reason") + (f": {message[:120]}" if message else "")
    for condition in entries(raw, "status", "conditions"):
        if condition.get("status") == "False" and condition.get("message"):
            yield f"{text(condition, 'reason')}: {text(condition, 'message')[:160]}"


async def read_entries(client: KubeClient, config_map: str, namespace: str, *, search: bool) -> PluginEntries:
    """Return the ConfigMap of this name; if it does not exist, `search` adds the other namespaces that have one."""
    if not config_map:
        return PluginEntries(config_map, namespace, None)
    with suppress(NotFound):
        data = texts(section(await client.get(CONFIG_MAPS, config_map, namespace=namespace), "data"))
        return PluginEntries(config_map, namespace, data)
    found: list[JSON] = []
    try:
        found = await list_of(client, CONFIG_MAPS, field_selector=f"metadata.name={config_map}") if search else []
    except (Unauthorized, Unavailable):
        raise
    except KubeError:
        pass  # they cannot be listed
    elsewhere = tuple(sorted(text(raw, "metadata", "namespace") for raw in found))
    return PluginEntries(config_map, namespace, None, elsewhere)
