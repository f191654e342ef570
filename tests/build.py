"""Test objects: plain functions with keyword defaults, so that a test states only what it is about.

The default world: one policy `pool-b` that wants 2x3g.40gb, one node `gpu-07` with one H100, all as in `NOW`.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning.cards import find_card
from gpusharing.planning.geometry import Layout
from gpusharing.planning.views import (
    Deferred,
    EvictionMemory,
    Fence,
    GPUNodeView,
    GpuView,
    NodeView,
    NodeWork,
    ObservedView,
    Owner,
    PdbView,
    PodView,
    PolicyView,
    Verified,
)

NOW = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)
H100 = "NVIDIA H100 80GB HBM3"
POOL_LABELS = {"gpusharing.dev/pool": "b"}

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
) -> PodView:
    """A running pod of a ReplicaSet that holds one GPU. Pass `resources={}` for one that holds none."""
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
) -> NodeWork:
    """The pods of a node in work."""
    return NodeWork(
        pods=pods,
        pdbs=tuple(pdbs),
        listed_at=listed_at,
        empty_since=empty_since,
        evictions=evictions or {},
        error=error,
    )


def make_memory(
    reason: str = "PDB",
    message: str = "",
    *,
    next_try: datetime | None = None,
    since: datetime = NOW,
    tries: int = 1,
) -> EvictionMemory:
    """A refused eviction, to be tried again in 5 s."""
    return EvictionMemory(reason, message, next_try if next_try is not None else at(5), since, tries)


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
) -> NodeView:
    """A ready node of pool b that offers one whole GPU. `labels` come on top of the pool label."""
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
    )


def make_gpu(
    index: int = 0,
    *,
    uuid: str | None = None,
    product: str = H100,
    layout: Layout | None = None,
    mig_pending: bool = False,
    compute_mode: str = "Default",
    processes: tuple[str, ...] = (),
) -> GpuView:
    """One GPU as our card table knows it; MIG is on when it has a layout. ValueError for an unknown card."""
    card = find_card(product)
    if card is None:
        raise ValueError(f"no card {product!r} in planning/cards.py")
    return GpuView(
        index=index,
        uuid=uuid if uuid is not None else f"GPU-{index:08x}",
        product=product,
        memory_mib=card.memory_mib or card.memory_gb * 1024,
        mig_capable=bool(card.profiles),
        mig_enabled=layout is not None,
        mig_pending=mig_pending,
        reset_for_mode=card.mig_mode_needs_reset,
        compute_mode=compute_mode,
        layout=layout,
        profiles=card.profiles,
        processes=processes,
    )


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
    policy: str = "pool-b",
    layout: str = "",
    observed: bool = True,
) -> GPUNodeView:
    """A GPUNode whose agent has answered the last request; `observed=False` for one that never reported."""
    report = ObservedView(
        request_id=request_id if answered is None else answered,
        quiet=quiet if quiet_echoed is None else quiet_echoed,
        error=error,
        gpus=tuple(gpus) if gpus is not None else (make_gpu(),),
        allocated=allocated or {},
        pods=pods,
    )
    return GPUNodeView(
        name=name,
        uid=f"uid-gpunode-{name}",
        request_id=request_id,
        quiet=quiet,
        policy=policy,
        layout=layout,
        observed=report if observed else None,
    )


def make_spec(mode: str = "MIG", **fields: Any) -> GPUSharingPolicySpec:
    """A spec as a user writes it (camelCase), over pool b. MIG wants 2x3g.40gb, time-slicing 4 shares."""
    wire: dict[str, Any] = {"nodeSelector": {"matchLabels": POOL_LABELS}, "mode": mode}
    if mode == "MIG":
        wire["mig"] = {"layouts": [{"devices": "all", "profiles": {"3g.40gb": 2}}]}
    if mode == "TimeSlicing":
        wire["timeSlicing"] = {"replicas": 4}
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
    return PolicyView(
        name=name,
        uid=uid if uid is not None else f"uid-{name}",
        generation=generation,
        created=created,
        deleting=deleting,
        finalizer=finalizer,
        force_release=force_release,
        spec=make_spec(mode, **fields),
    )
