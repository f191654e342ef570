"""A fleet as the planner sees it, made of views: whole H100s, proven as such, under some policies."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from gpusharing.api import names
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning.gpus.cards import Card, find_card
from gpusharing.planning.snapshot.records import Verified
from gpusharing.planning.snapshot.stackviews import ClusterPolicyView, Operand, StackView
from gpusharing.planning.snapshot.views import (
    ClusterSnapshot,
    GPUNodeView,
    GpuView,
    Hardware,
    NodeView,
    ObservedView,
    PlanSettings,
    PolicyView,
)
from gpusharing.planning.wanted.configmaps import plan_config
from gpusharing.planning.wanted.migfile import parse as parse_mig_file
from gpusharing.planning.wanted.target import Target, Targets, find_wish
from hack.cluster.nodes import LABEL_POOL, gpu_labels

PRODUCT = "NVIDIA H100 80GB HBM3"
GPUS, POLICIES = 8, 50
NOW = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)
SETTINGS = PlanSettings()


def fleet(count: int, **spec: object) -> ClusterSnapshot:
    """So many nodes, which were made under policies of mode Full; the policies want `spec` now."""
    policies = [_policy(index, **spec) for index in range(POLICIES)]
    before = [_policy(index, mode="Full") for index in range(POLICIES)]
    nodes = [_node(index, before[index % POLICIES]) for index in range(count)]
    return ClusterSnapshot(
        nodes={node.name: node for node in nodes},
        gpunodes={node.name: _gpunode(node.name) for node in nodes},
        policies=tuple(policies),
        stack=_stack(policies),
        agents=frozenset(node.name for node in nodes),
        mig_managers={node.name: _mig_manager(node.name) for node in nodes},
        claims={},
        work={},
    )


def card() -> Card:
    """What our table says of the GPUs of the fleet."""
    card = find_card(PRODUCT)
    assert card is not None, "in the table"
    return card


def _policy(index: int, **spec: object) -> PolicyView:
    """One of the policies, for a pool of its own."""
    name = f"pool-{index:02}"
    wire = {"nodeSelector": {"matchLabels": {LABEL_POOL: name}}, **spec}
    return PolicyView(
        name=name,
        uid=f"uid-{name}",
        generation=1,
        created="2026-11-01T00:00:00Z",
        deleting=False,
        finalizer=False,
        force_release=False,
        spec=GPUSharingPolicySpec.model_validate(wire),
    )


def _node(index: int, owner: PolicyView) -> NodeView:
    """A node that `owner`, a Full policy, has adopted."""
    assert owner.spec is not None, "valid"
    wish = find_wish(owner.name, owner.spec)
    (plugin_key,) = wish.plugins
    ours = {
        LABEL_POOL: owner.name,
        names.LABEL_POLICY: owner.name,
        names.LABEL_MODE: "full",
        names.LABEL_PLUGIN_CONFIG: plugin_key,
    }
    name = f"gpu-{index:04}"
    return NodeView(
        name=name,
        uid=f"uid-{name}",
        labels={**gpu_labels(card(), PRODUCT, GPUS), **ours},
        resources={names.RESOURCE_GPU: GPUS},
        ready=True,
        unschedulable=False,
        deleting=False,
        fence=None,
        fence_error="",
        deferred=None,
        verified=Verified(owner.name, wish.mig_config, plugin_key),
        hold_cordon=False,
        retry="",
        foreign="",
    )


def _gpu(index: int) -> GpuView:
    row = card()
    return GpuView(
        index=index,
        product=PRODUCT,
        mig_capable=bool(row.profiles),
        mig_enabled=False,
        mig_pending=False,
        compute_mode="Default",
        layout=None,
        profiles=row.profiles,
        processes=(),
    )


def _gpunode(name: str) -> GPUNodeView:
    """The report of a node's agent."""
    report = ObservedView(
        request_id="",
        quiet=False,
        error="",
        gpus=tuple(_gpu(index) for index in range(GPUS)),
        allocated={},
        pods=0,
    )
    return GPUNodeView(name, f"uid-gpunode-{name}", request_id="", quiet=False, observed=report)


def _mig_manager(node: str) -> Operand:
    return Operand("gpu-operator", f"nvidia-mig-manager-{node}", f"uid-mig-{node}", ready=True)


def _stack(policies: list[PolicyView]) -> StackView:
    """NVIDIA's stack, with what the policies need in our ConfigMaps since yesterday."""
    cluster_policy = ClusterPolicyView(SETTINGS.plugin_config_map, "", SETTINGS.mig_config_map)
    empty = StackView(
        cluster_policy=cluster_policy,
        gpu_cluster=False,
        plugin_configs={},
        mig_file="",
        written={},
        serves_our_mig_file=True,
    )
    gpu, plugins = _gpu(0), {}
    for policy in policies:
        assert policy.spec is not None, "valid"
        targets = Targets(policy, find_wish(policy.name, policy.spec), empty)
        target = targets.find("gpu-0000", Hardware.of((gpu,)))
        assert isinstance(target, Target), "an H100 can do what the bench asks for"
        plugins[target.plugin_key] = target.plugin
    change, _ = plan_config(policies, (), {PRODUCT: gpu}, plugins, empty)
    assert change is not None, "an empty stack lacks everything"
    keys = [*change.plugin_configs, *parse_mig_file(change.mig_file)]
    written = dict.fromkeys(keys, NOW - timedelta(days=1))
    return replace(empty, plugin_configs=change.plugin_configs, mig_file=change.mig_file, written=written)
