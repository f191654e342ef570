"""Test objects: plain functions with keyword defaults, so that a test states only what it is about. The default world: one policy `pool-b` that wants 2x3g.40gb, one node `gpu-07` with one H100, all as in `NOW`."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from tests.configs import plugins_of

from gpusharing.api import names
from gpusharing.api.gpunode import PartialInstance
from gpusharing.api.names import DisruptionClass
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.kube.convert import find_zones
from gpusharing.planning.drain.pods import scope_of
from gpusharing.planning.gpus.cards import find_card
from gpusharing.planning.gpus.geometry import Layout, normalize
from gpusharing.planning.snapshot.actions import WriteConfig
from gpusharing.planning.snapshot.nvidia import MIG_MANAGER_SWITCH, ClusterPolicyView, Operand, Program, StackView
from gpusharing.planning.snapshot.podviews import EvictionMemory, NodeWork, Owner, PdbView, PodView, Scope
from gpusharing.planning.snapshot.records import UNRECORDED, Claim, Deferred, Fence, Verified
from gpusharing.planning.snapshot.views import (
    ClusterSnapshot,
    GPUNodeView,
    GpuView,
    NodeView,
    ObservedView,
    PlanSettings,
    PolicyView,
)
from gpusharing.planning.stack.effects import START_MIG_MANAGER
from gpusharing.planning.stack.pointers import mig_pointer, plugin_pointer
from gpusharing.planning.vocabulary.commands import Change, Effect, Loss
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.migfile import parse as parse_mig_file
from gpusharing.planning.wanted.objects import plan_config
from gpusharing.planning.wanted.target import Request, find_request

NOW = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)
H100 = "NVIDIA H100 80GB HBM3"
POOL_LABELS = {"gpusharing.dev/pool": "b"}
SETTINGS = PlanSettings()
DEFAULT_CLUSTER_POLICY = ClusterPolicyView(SETTINGS.plugin_config_map, "", SETTINGS.mig_config_map)
NO_MIG_MANAGER: dict[str, bool | str] = {"migManager.enabled": False}
"""Switches of a ClusterPolicy, or of NVIDIA's device-plugin chart, without mig-manager."""

REPLICA_SET = Owner(api_version="apps/v1", kind="ReplicaSet", name="llm", exists=True)
DAEMON_SET = Owner(api_version="apps/v1", kind="DaemonSet", name="exporter", exists=True)
JOB = Owner(api_version="batch/v1", kind="Job", name="train", exists=True)


def at(seconds: float) -> datetime:
    """`NOW` and so many seconds."""
    return NOW + timedelta(seconds=seconds)


def make_pod(
    name: str = "llm-0",
    *,
    namespace: str = "team-a",
    uid: str | None = None,
    phase: str = "Running",
    labels: Mapping[str, str] | None = None,
    owner: Owner | None = REPLICA_SET,
    mirror: bool = False,
    resources: Mapping[str, int] | None = None,
    dra: Literal["none", "gpu", "unresolved"] = "none",
    node_selector: Mapping[str, str] | None = None,
    deleted_at: datetime | None = None,
    ready: bool = True,
    finalizers: tuple[str, ...] = (),
    started: datetime | None = NOW,
    marks: Mapping[str, str] | None = None,
    **more: Any,
) -> PodView:
    """A running pod of a ReplicaSet that holds one GPU, none with `resources={}`; `more` are fields of its view."""
    return PodView(
        namespace=namespace,
        name=name,
        uid=uid if uid is not None else f"uid-{namespace}-{name}",
        phase=phase,
        labels={"app": "llm"} if labels is None else labels,
        owner=owner,
        mirror=mirror,
        resources={"nvidia.com/gpu": 1} if resources is None else resources,
        dra=dra,
        node_selector=node_selector or {},
        deleted_at=deleted_at,
        ready=ready,
        finalizers=finalizers,
        started=started,
        marks=tuple(sorted((marks or {}).items())),
        **more,
    )


def make_pdb(
    name: str = "llm",
    *,
    namespace: str = "team-a",
    match_labels: Mapping[str, str] | None = None,
    match_expressions: tuple[tuple[str, str, tuple[str, ...]], ...] = (),
    selects_all: bool = False,
    allowed: int = 1,
    expected: int = 3,
    desired: int = 2,
    current: int = 3,
    always_allow_unhealthy: bool = False,
) -> PdbView:
    """A PodDisruptionBudget over `app: llm` with three healthy pods of which one may go."""
    return PdbView(
        namespace=namespace,
        name=name,
        match_labels={"app": "llm"} if match_labels is None else match_labels,
        match_expressions=match_expressions,
        selects_all=selects_all,
        disruptions_allowed=allowed,
        expected_pods=expected,
        desired_healthy=desired,
        current_healthy=current,
        always_allow_unhealthy=always_allow_unhealthy,
    )


def make_work(
    *pods: PodView,
    pdbs: Sequence[PdbView] = (),
    listed_at: datetime = NOW,
    empty_since: datetime | None = None,
    evictions: Mapping[str, EvictionMemory] | None = None,
    error: str = "",
    **fields: Any,
) -> NodeWork:
    """The pods of a node in work; those of the LISTs that found it empty were made since the agent closed NVML."""
    if empty_since is not None:
        lists = tuple(sorted({empty_since, listed_at}))
        fields = {"empty_lists": lists, "quiet_since": empty_since - timedelta(seconds=1), **fields}
    return NodeWork(pods=pods, pdbs=tuple(pdbs), listed_at=listed_at, evictions=evictions or {}, error=error, **fields)


def empty_since(work: NodeWork) -> datetime | None:
    """When the first of the LISTs was made that show the node empty, or None if the last one does not."""
    return work.empty_lists[0] if work.empty_lists else None


def make_scope(settings: PlanSettings | None = None, **fields: Any) -> Scope:
    """What the drain of a node without a fence must empty and must not touch; `fields` are set on it."""
    return replace(scope_of(None, settings or PlanSettings(), make_stack()), **fields)


def make_memory(
    reason: Reason = Reason.PDB,
    message: str = "",
    *,
    next_try: datetime | None = None,
    since: datetime = NOW,
    tries: int = 1,
) -> EvictionMemory:
    """An eviction that was refused long ago, to be tried again in 5 s."""
    return EvictionMemory(reason, message, next_try if next_try is not None else at(5), since, at(-600), tries)


def make_node(
    name: str = "gpu-07",
    *,
    uid: str | None = None,
    labels: Mapping[str, str] | None = None,
    resources: Mapping[str, int] | None = None,
    ready: bool = True,
    unschedulable: bool = False,
    deleting: bool = False,
    fence: Fence | None = None,
    fence_error: str = "",
    deferred: Deferred | None = None,
    verified: Verified | None = None,
    hold_cordon: bool = False,
    retry: str = "",
    foreign: str = "",
    gated: bool = False,
) -> NodeView:
    """A ready node of pool b that offers one whole GPU. `labels` come on top; `gated`: the start-up taint is on."""
    return NodeView(
        name=name,
        uid=uid if uid is not None else f"uid-{name}",
        labels={**POOL_LABELS, **(labels or {})},
        resources={"nvidia.com/gpu": 1} if resources is None else resources,
        ready=ready,
        unschedulable=unschedulable,
        deleting=deleting,
        fence=fence,
        fence_error=fence_error,
        deferred=deferred,
        verified=verified,
        hold_cordon=hold_cordon,
        retry=retry,
        foreign=foreign,
        gate="[]" if gated else None,
    )


def make_gpu(
    index: int = 0,
    *,
    product: str = H100,
    layout: Layout | None = None,
    mig_pending: bool = False,
    compute_mode: str = "Default",
    processes: tuple[str, ...] = (),
) -> GpuView:
    """One GPU as our card table knows it; MIG is on when it has a layout. ValueError for an unknown card."""
    card = find_card(product)
    if card is None:
        raise ValueError(f"no card {product!r} in planning/gpus/cards.py")
    return GpuView(
        index=index,
        product=product,
        mig_capable=bool(card.profiles),
        mig_enabled=layout is not None,
        mig_pending=mig_pending,
        compute_mode=compute_mode,
        layout=layout,
        profiles=card.profiles,
        processes=processes,
    )


def make_partial(*partial: PartialInstance, layout: Mapping[str, int], index: int = 0) -> GpuView:
    """One GPU with whole instances and others, as a report of both is read."""
    parts = Counter(name for one in partial for name in one.contents)
    return replace(make_gpu(index, layout=normalize(parts + Counter(layout))), partial=partial)


def make_gpunode(
    name: str = "gpu-07",
    *,
    gpus: Sequence[GpuView] | None = None,
    request_id: str = "",
    answered: str | None = None,
    quiet: bool = False,
    quiet_echoed: bool | None = None,
    error: str = "",
    allocated: Mapping[str, int] | None = None,
    pods: int = 0,
    holdings_known: bool = True,
    observed: bool = True,
) -> GPUNodeView:
    """A GPUNode whose agent has answered the last request; `observed=False` for one that never reported."""
    report = ObservedView(
        request_id=request_id if answered is None else answered,
        quiet=quiet if quiet_echoed is None else quiet_echoed,
        error=error,
        gpus=tuple(gpus) if gpus is not None else (make_gpu(),),
        allocated=(allocated or {}) if holdings_known else None,
        pods=pods if holdings_known else None,
    )
    return GPUNodeView(
        name=name, uid=f"uid-gpunode-{name}", request_id=request_id, quiet=quiet, observed=report if observed else None
    )


def make_spec(mode: str = "MIG", **fields: Any) -> GPUSharingPolicySpec:
    """A spec as a user writes it (camelCase), over pool b. MIG wants 2x3g.40gb, time-slicing and MPS 4 shares."""
    wire: dict[str, Any] = {"nodeSelector": {"matchLabels": POOL_LABELS}, "mode": mode}
    if mode == "MIG":
        wire["mig"] = {"layouts": [{"profiles": {"3g.40gb": 2}}]}
    if mode == "TimeSlicing":
        wire["timeSlicing"] = {"replicas": 4}
    if mode == "MPS":
        wire["mps"] = {"replicas": 4}
    return GPUSharingPolicySpec.model_validate({**wire, **fields})


def make_policy(
    name: str = "pool-b",
    mode: str = "MIG",
    *,
    uid: str | None = None,
    generation: int = 1,
    created: str = "2026-11-01T00:00:00Z",
    deleting: bool = False,
    finalizer: bool = False,
    force_release: bool = False,
    **fields: Any,
) -> PolicyView:
    """A policy; further keywords are fields of its spec as on the wire: `rollout={"paused": True}`."""
    spec = make_spec(mode, **fields)
    return PolicyView(
        name=name,
        uid=uid if uid is not None else f"uid-{name}",
        generation=generation,
        created=created,
        deleting=deleting,
        finalizer=finalizer,
        force_release=force_release,
        spec=spec,
        zones=find_zones(spec),
    )


def ask_anew(policy: PolicyView) -> PolicyView:
    """The policy after an edit that gives it another revision and changes nothing on its nodes."""
    assert policy.spec is not None
    spec = policy.spec.model_copy(update={"priority": policy.spec.priority + 1})
    return replace(policy, spec=spec, generation=policy.generation + 1)


def make_cluster_policy(
    plugin_config_name: str = SETTINGS.plugin_config_map,
    *,
    mig_strategy: str = "",
    mig_config_name: str = SETTINGS.mig_config_map,
    with_reboot: bool = False,
    **more: Any,
) -> ClusterPolicyView:
    """A ClusterPolicy that points at both of our ConfigMaps and overrides nothing."""
    return ClusterPolicyView(
        plugin_config_name=plugin_config_name,
        mig_strategy=mig_strategy,
        mig_config_name=mig_config_name,
        with_reboot=with_reboot,
        plain=None,
        **more,
    )


def wishes_of(policies: Iterable[PolicyView]) -> list[Request]:
    """What these policies ask for, without those whose spec cannot be read."""
    return [find_request(one.name, one.spec) for one in policies if one.spec is not None]


_configs: dict[str, WriteConfig] = {}
"""By its arguments, what `make_stack` has computed: to write its YAML takes milliseconds."""


def make_stack(
    *policies: PolicyView,
    cluster_policy: ClusterPolicyView | None = DEFAULT_CLUSTER_POLICY,
    models: Sequence[GpuView] | None = None,
    written_at: datetime | None = None,
    **fields: Any,
) -> StackView:
    """NVIDIA's stack with the configuration of these policies in place, long since unless `written_at` says when."""
    ours = cluster_policy is not None and cluster_policy.mig_config_name == SETTINGS.mig_config_map
    empty = StackView(
        cluster_policy=cluster_policy,
        gpu_cluster=False,
        plugin_configs={},
        mig_file="",
        written={},
        serves_our_mig_file=ours,
    )
    cards = {gpu.product: gpu for gpu in (models if models is not None else (make_gpu(),))}
    key = repr((policies, cards, cluster_policy))
    change = _configs.get(key)
    if change is None:
        change, _ = plan_config(wishes_of(policies), cards, plugins_of(policies, cards.values(), empty), empty)
        assert change is not None, "an empty stack lacks everything"
        _configs[key] = change
    keys = [*change.plugin_configs, *parse_mig_file(change.mig_file)]
    written = dict.fromkeys(keys, written_at or at(-86400))
    known = {"plugin_configs": dict(change.plugin_configs), "mig_file": change.mig_file, "written": written}
    return replace(empty, **{**known, **fields})


def make_start(node: str = "gpu-1", why: str = "why", config: str = "", *, known: bool = True) -> Effect:
    """What a start of mig-manager does to a node, which its label with the value `config` prevents."""
    return Effect(node, Loss.GPUS, why, config and f"nvidia.com/mig.config={config}", known)


def make_effects(
    *,
    starts: Sequence[Effect] = (),
    unplugged: Mapping[str, str] | None = None,
    unresolved: Mapping[str, str] | None = None,
) -> Mapping[Change, tuple[Effect, ...]]:
    """Effects of the changes that messages ask for; the mappings have the entries that Nodes name and we lack."""
    found = tuple(Effect(node, Loss.DEVICES, "why", missing=entry) for node, entry in (unplugged or {}).items())
    lacking = tuple(Effect(node, Loss.GPUS, "", missing=entry) for node, entry in (unresolved or {}).items())
    effects = defaultdict[Change, tuple[Effect, ...]](tuple)
    for default in ("", "kept"):
        policy = make_cluster_policy(plugin_default=default)
        plugin, mig = plugin_pointer(policy, SETTINGS, ()).change, mig_pointer(policy, SETTINGS).change
        effects[plugin] = found
        effects[Change(fields=plugin.fields + mig.fields)] = (*found, *lacking, *starts)
    effects[mig] = (*lacking, *starts)
    effects[START_MIG_MANAGER] = effects[Change(fields=((MIG_MANAGER_SWITCH, True),))] = tuple(starts)
    return effects


def make_operand(node: str = "gpu-07", *, serial: int = 0, ready: bool = True) -> Operand:
    """The mig-manager pod of a node; a restart gives it the next serial."""
    return Operand("gpu-operator", f"nvidia-mig-manager-{node}", f"uid-mig-{node}-{serial}", ready)


def make_claim(node_uid: str = "uid-gpu-07", *, policy: str = "pool-b", op: str = "op-1") -> Claim:
    return Claim(node_uid, policy, op)


def make_fence(
    stage: Literal["fenced", "actuating", "yielded"] = "fenced",
    *,
    policy: str = "pool-b",
    node_uid: str = "uid-gpu-07",
    disruption: DisruptionClass = DisruptionClass.GPU_PODS,
    since: datetime = NOW,
    **fields: Any,
) -> Fence:
    """Our record of a change of gpu-07 that began now; `make_case` fills in the version of its policy."""
    known: dict[str, Any] = {
        "op": "op-1",
        "version": UNRECORDED,
        "prior_unschedulable": False,
        "added": (names.LABEL_UPGRADE_SKIP,),
        "to_layout": "2x3g.40gb",
        "step": 1,
        "steps": 1,
        "attempt": 1,
        "stage_since": since,
        "deadline": since + timedelta(minutes=15),
        "from_mode": "full",
    }
    return Fence(
        policy=policy, node_uid=node_uid, disruption=disruption, stage=stage, since=since, **{**known, **fields}
    )


def make_snapshot(
    nodes: Iterable[NodeView] = (),
    policies: Iterable[PolicyView] = (),
    *,
    gpunodes: Iterable[GPUNodeView] | None = None,
    stack: StackView | None = None,
    agents: Iterable[str] | None = None,
    mig_managers: Mapping[str, Operand] | None = None,
    **fields: Any,
) -> ClusterSnapshot:
    """A cluster; unless said otherwise every node has a GPUNode, a Ready agent and a Ready mig-manager."""
    by_name = {node.name: node for node in nodes}
    kept = tuple(sorted(policies, key=lambda policy: policy.name))
    reports = [make_gpunode(name) for name in by_name] if gpunodes is None else gpunodes
    known: dict[str, Any] = {"claims": {}, "work": {}}
    return ClusterSnapshot(
        nodes=by_name,
        gpunodes={gpunode.name: gpunode for gpunode in reports},
        policies=kept,
        stack=stack if stack is not None else make_stack(*kept),
        agents=frozenset(by_name if agents is None else agents),
        operands={
            Program.MIG_MANAGER: {name: make_operand(name) for name in by_name}
            if mig_managers is None
            else mig_managers
        },
        **{**known, **fields},
    )
