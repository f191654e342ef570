"""Installations for tests: what an API server shows of a cluster, and what the reader makes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from tests.build import NOW

from gpusharing.kube.daemonsets import DaemonSetView
from gpusharing.kube.sources import ConfigMapView, arch_of
from gpusharing.kube.stackreader import stack_view
from gpusharing.planning.rollout import foresee
from gpusharing.planning.snapshot.agents import AgentPod, find_troubles
from gpusharing.planning.snapshot.nvidia import NO_DRA, ClusterPolicyView, DaemonSetState, DraView
from gpusharing.planning.snapshot.views import ClusterSnapshot, GPUNodeView, NodeView, PolicyView
from gpusharing.planning.stack.installation import find_symptoms
from gpusharing.planning.stack.installationviews import AgentsState, Installation, Place, Right, Symptom
from gpusharing.planning.wanted.migfile import MIG_KEY

DEFAULT = Place()


def make_map(data: Mapping[str, str], *, ours: bool = False) -> ConfigMapView:
    return ConfigMapView(data, {}, "uid", ours, ours)


def make_agent_pod(node: str, *, ready: bool = True, waiting: str = "") -> AgentPod:
    name = f"gpusharing-agent-{node}"
    return AgentPod("gpusharing-agent", name, node, ready, deleting=False, image="image", waiting=waiting)


@dataclass(frozen=True)
class Seen:
    """A cluster object by object, which `replace` changes in one of them."""

    place: Place = DEFAULT
    cluster_policies: tuple[ClusterPolicyView, ...] = ()
    plain: ClusterPolicyView | None = None
    gpu_cluster: bool = False
    finders: tuple[DaemonSetState, ...] = ()
    dra: DraView = NO_DRA
    config_maps: Mapping[str, ConfigMapView] = field(default_factory=dict)
    """Ours, and those that ClusterPolicy names instead; one of these without data may be missing."""
    nodes: tuple[NodeView, ...] = ()
    gpunodes: Mapping[str, GPUNodeView] = field(default_factory=dict)
    policies: tuple[PolicyView, ...] = ()
    agents: AgentsState | None = None
    agent_pods: tuple[AgentPod, ...] = ()
    unread: Mapping[str, str] = field(default_factory=dict)
    not_served: frozenset[str] = frozenset()
    rights: Mapping[str, Mapping[Right, bool | str]] = field(default_factory=dict)
    operator_replicas: int | None = None
    leader: str | None = None
    operator_pods: Mapping[str, str] = field(default_factory=dict)
    kubelets: Mapping[str, str] = field(default_factory=dict)
    system_plugins: frozenset[str] = frozenset()

    @property
    def snapshot(self) -> ClusterSnapshot:
        place, maps = self.place, self.config_maps
        sets = [DaemonSetView(mps_daemon=one.mps_daemon) for one in self.cluster_policies]
        stack = stack_view(self.cluster_policies, sets, maps, place, gpu_cluster=self.gpu_cluster)
        policy = stack.cluster_policy or self.plain
        stack = replace(
            stack,
            cluster_policy=policy,
            finders=self.finders,
            dra=self.dra,
            serves_our_mig_file=policy is not None and policy.mig_config_name == place.mig_config_map,
        )
        if policy is not None and policy.plugin_config_name in maps.keys() - {place.plugin_config_map}:
            theirs = maps[policy.plugin_config_name].data
            stack = replace(stack, named_keys=frozenset(theirs), admin_plugin_configs=theirs)
        if policy is not None and policy.mig_config_name in maps.keys() - {place.mig_config_map}:
            stack = replace(stack, admin_mig_file=maps[policy.mig_config_name].data.get(MIG_KEY, ""))
        nodes = {node.name: node for node in self.nodes}
        ready = frozenset(pod.node for pod in self.agent_pods if pod.ready)
        return ClusterSnapshot(
            nodes=nodes,
            gpunodes=self.gpunodes,
            policies=self.policies,
            policies_error=self.unread.get("gpusharingpolicies.gpusharing.dev", ""),
            stack=stack,
            agents=frozenset(self.gpunodes) if self.agents is None or "pods" in self.unread else ready,
            agent_troubles=find_troubles(self.agent_pods, (), arch_of(nodes)),
            settings=place,
        )

    @property
    def installation(self) -> Installation:
        ours = {self.place.plugin_config_map, self.place.mig_config_map}
        return Installation(
            self.snapshot,
            place=self.place,
            unread=self.unread,
            not_served=self.not_served,
            rights=self.rights,
            operator_replicas=self.operator_replicas,
            leader=self.leader,
            operator_pods=self.operator_pods,
            agents=self.agents,
            kubelets=self.kubelets,
            system_plugins=self.system_plugins,
            ignored_policies=tuple(sorted(one.name for one in self.cluster_policies if one.ignored)),
            foresee=partial(foresee, now=NOW),
            void_maps=frozenset(name for name, one in self.config_maps.items() if not one.data and name not in ours),
        )

    @property
    def symptoms(self) -> tuple[Symptom, ...]:
        return find_symptoms(self.installation)
