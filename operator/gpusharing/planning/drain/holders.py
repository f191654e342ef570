"""Which pods of a node hold a GPU, and which of those may be evicted: an ordered list of small filters.

Specification: docs/design/drain.md, rows P and G.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

from gpusharing.api import names
from gpusharing.api.names import LABEL_DEPLOY_PREFIX, is_gpu_resource
from gpusharing.api.policy import Drain
from gpusharing.planning.snapshot.podviews import PodView
from gpusharing.planning.snapshot.views import PlanSettings
from gpusharing.planning.words.blockers import Blocker, merge
from gpusharing.planning.words.reasons import Reason

_DEPLOY_CLIENT = f"{LABEL_DEPLOY_PREFIX}client"


Decision: TypeAlias = Literal["ignore", "hold"] | Blocker
"""It holds no GPU; it holds one and can be evicted; or it holds one and this keeps it."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What a drain has to empty."""

    operator_namespace: str
    """Where NVIDIA's own DaemonSets run."""
    all_pods: bool = False
    """Class Reboot: every pod ends with the node, so every pod must leave before."""
    protected: frozenset[str] = frozenset()
    """Namespaces in which nothing is evicted."""
    own_pod: str = ""
    """Our own pod, `namespace/name`; empty where we run in none."""
    cordoned_at: datetime | None = None
    """When we cordoned the node; None: we did not."""


def scope_of(settings: PlanSettings, *, all_pods: bool = False, cordoned_at: datetime | None = None) -> Scope:
    """What a drain of this operator has to empty, and what it must not touch."""
    own = f"{settings.namespace}/{settings.pod_name}" if settings.pod_name else ""
    protected = frozenset(settings.protected_namespaces)
    return Scope(settings.gpu_operator_namespace, all_pods, protected, own, cordoned_at)


PodFilter: TypeAlias = Callable[[PodView, Drain, Scope], Decision | None]
"""(pod, options, scope) → a decision, or None: the next filter decides."""


@dataclass(frozen=True, slots=True)
class Classified:
    """The pods of a node, each in exactly one place, sorted by `namespace/name`."""

    holders: tuple[PodView, ...]
    """Hold a GPU and must leave; some may be terminating already."""
    ignored: tuple[PodView, ...]
    """Hold no GPU, or are NVIDIA's own."""
    blocked: tuple[PodView, ...]
    """Hold a GPU and must not or cannot be evicted."""
    blockers: tuple[Blocker, ...]
    """Why those are blocked."""


def gpu_resources(pod: PodView) -> tuple[str, ...]:
    """The GPU resource names that the pod asks for, sorted; other names under nvidia.com/ are not GPUs (G1)."""
    return tuple(sorted(name for name, count in pod.resources.items() if count > 0 and is_gpu_resource(name)))


def holds_gpu(pod: PodView) -> bool:
    """Whether the pod, while it lives, holds a GPU: by a container's request or by a claim (G1-G6)."""
    return pod.dra != "none" or bool(gpu_resources(pod))


def classify(pods: Iterable[PodView], options: Drain, scope: Scope) -> Classified:
    """Sort the pods of a node by `FILTERS`."""
    holders, ignored, blocked, blockers = [], [], [], []
    for pod in sorted(pods, key=by_ref):
        decision = _decide(pod, options, scope)
        if isinstance(decision, Blocker):
            blocked.append(pod)
            blockers.append(decision)
        elif decision == "hold":
            holders.append(pod)
        else:
            ignored.append(pod)
    return Classified(tuple(holders), tuple(ignored), tuple(blocked), merge(blockers))


def is_idle(pods: Iterable[PodView], scope: Scope) -> bool:
    """Whether no pod is left that must be gone before a change; no option makes a difference to that."""
    found = classify(pods, Drain(), scope)
    return not found.holders and not found.blocked


def by_ref(pod: PodView) -> tuple[str, str]:
    """Sort key: `namespace/name`, then uid."""
    return pod.ref, pod.uid


# --- the filters, in order -------------------------------------------------------------------------------


def _finished(pod: PodView, options: Drain, scope: Scope) -> Decision | None:
    """P11: a finished pod holds no device; it is left for its logs."""
    return "ignore" if pod.phase in ("Succeeded", "Failed") else None


def _static(pod: PodView, options: Drain, scope: Scope) -> Decision | None:
    """P7: deleting a mirror pod does not stop the static pod behind it."""
    if not pod.mirror:
        return None
    return _block(Reason.STATIC_GPU_POD, pod) if holds_gpu(pod) else "ignore"


def _daemon_set(pod: PodView, options: Drain, scope: Scope) -> Decision | None:
    """P3, P5, P6: a DaemonSet pod comes straight back. One whose DaemonSet is gone is like any other pod."""
    owner = pod.owner
    if owner is None or owner.kind != "DaemonSet" or not owner.api_version.startswith("apps/"):
        return None
    if owner.exists is False:
        return None
    # mig-manager itself removes the pods that select gpu.deploy.client (docs/design/nvidia.md#a3).
    if not holds_gpu(pod) or pod.namespace == scope.operator_namespace or _DEPLOY_CLIENT in pod.node_selector:
        return "ignore"
    return _block(Reason.GPU_DAEMON_SET, pod, f"Its DaemonSet is {pod.namespace}/{owner.name}")


def _without_gpu(pod: PodView, options: Drain, scope: Scope) -> Decision | None:
    """G1-G6: only pods that hold a GPU are looked at any further, unless the node is about to reboot."""
    return None if scope.all_pods or holds_gpu(pod) else "ignore"


def _terminating(pod: PodView, options: Drain, scope: Scope) -> Decision | None:
    """P14: it is leaving already, so no rule against evicting it matters; it still holds its GPU."""
    return "hold" if pod.deleted_at is not None else None


def _own_pod(pod: PodView, options: Drain, scope: Scope) -> Decision | None:
    """Whoever evicts itself leaves a cordoned node behind until its successor has taken over."""
    return _block(Reason.OWN_POD, pod) if pod.ref == scope.own_pod else None


def _protected(pod: PodView, options: Drain, scope: Scope) -> Decision | None:
    """The chart's admission policy would refuse the eviction: it sees the Eviction, not the pod (kubernetes#110169)."""
    return _block(Reason.PROTECTED_NAMESPACE, pod) if pod.namespace in scope.protected else None


def _tolerates_cordon(pod: PodView, options: Drain, scope: Scope) -> Decision | None:
    """P15: it would come back for ever. It did already, or its node selector leaves it no other node."""
    owner = pod.owner
    if not pod.tolerates_cordon or owner is None or owner.exists is False:
        return None
    which = f"{owner.kind} {owner.name}"
    if names.LABEL_HOSTNAME in pod.node_selector:
        return _block(Reason.TOLERATES_CORDON, pod, f"Its {which} pins it to this node")
    if scope.cordoned_at is not None and pod.created is not None and pod.created > scope.cordoned_at:
        return _block(Reason.TOLERATES_CORDON, pod, f"Its {which} started it here after the cordon")
    return None


def _resource_claim(pod: PodView, options: Drain, scope: Scope) -> Decision | None:
    """G3-G5: the DRA driver manages that GPU, not the device plugin."""
    if pod.dra == "none":
        return None
    return _block(Reason.DRA_CLAIM, pod, "" if pod.dra == "gpu" else "Its ResourceClaim cannot be read")


def _unmanaged(pod: PodView, options: Drain, scope: Scope) -> Decision | None:
    """P9, P5: nothing would start the pod again."""
    if pod.owner is not None and pod.owner.exists is not False:
        return None
    if options.unmanaged_pods == "Evict":
        return None
    gone = f"Its {pod.owner.kind} {pod.owner.name} no longer exists" if pod.owner else ""
    return _block(Reason.UNMANAGED, pod, gone)


FILTERS: tuple[PodFilter, ...] = (
    _finished,
    _static,
    _daemon_set,
    _without_gpu,
    _terminating,
    _own_pod,
    _protected,
    _resource_claim,
    _tolerates_cordon,
    _unmanaged,
)
"""The first that decides is final (P2); a pod that none decides about holds a GPU and can be evicted."""


def _decide(pod: PodView, options: Drain, scope: Scope) -> Decision:
    for pod_filter in FILTERS:
        if (decision := pod_filter(pod, options, scope)) is not None:
            return decision
    return "hold"


def _block(reason: Reason, pod: PodView, message: str = "") -> Blocker:
    return Blocker(reason, (pod.ref,), message=message)
