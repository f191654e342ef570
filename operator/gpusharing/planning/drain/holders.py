"""Which pods on a node hold a GPU, and which of these may be evicted (docs/design/drain.md, rows P and G)."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Literal

from gpusharing.api.names import (
    LABEL_DEPLOY_PREFIX,
    LABEL_HOSTNAME,
    RESOURCE_GPU,
    DisruptionClass,
    is_gpu_resource,
)
from gpusharing.api.policy import Drain
from gpusharing.planning.drain.rules import find_protection, find_rule, is_job
from gpusharing.planning.snapshot.podviews import PodView, Scope
from gpusharing.planning.snapshot.records import CLOCK_ERROR
from gpusharing.planning.snapshot.stackviews import StackView
from gpusharing.planning.snapshot.views import NodeView, PlanSettings
from gpusharing.planning.vocabulary.blockers import Blocker, merge
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value

# KAI-Scheduler keeps each GPU that it divides with a reservation pod, which asks for one nvidia.com/gpu and has no
# controller. The pods that share the GPU ask for none. All have its group as a label. KAI deletes the reservation pod
# after the last of them. If it goes first, KAI deletes the running pods of the group, whatever their budgets say
# (kai-scheduler/KAI-Scheduler v0.17.0, pkg/common/constants/constants.go, GPUGroup, and syncForPods of
# pkg/binder/binding/resourcereservation/resource_reservation.go). Run:ai's own scheduler uses the same label.
LABELS = frozenset({"runai-gpu-group", "kai-gpu-group"})
"""The labels that name a GPU's group in KAI-Scheduler. A pod with fractions of several GPUs has a label `LABEL/GROUP`
for each of them (v0.17.0, MultiGpuGroupLabelPrefix). The second name is the one that KAI's maintainers announced
(NVIDIA/KAI-Scheduler#464)."""
NO_OPTIONS = Drain()
"""A policy's options make no difference to which pods must leave, only to whether they may be evicted."""


def gpu_groups(labels: Mapping[str, str]) -> frozenset[str]:
    """Return the KAI-Scheduler groups of the GPUs that a pod with these labels reserves or has a fraction of."""
    return frozenset(value for key, value in labels.items() if key.partition("/")[0] in LABELS and value)


def is_reservation(pod: PodView) -> bool:
    """Whether this is a pod with which KAI-Scheduler reserves a GPU for a group.

    No other pod of a group requests a whole GPU, because KAI gives no fraction to a pod that does.
    """
    return pod.owner is None and RESOURCE_GPU in pod.resources and bool(gpu_groups(pod.labels))


def scope_of(
    node: NodeView | None, settings: PlanSettings, stack: StackView, disruption: DisruptionClass | None = None
) -> Scope:
    """Return what a drain of `node` must empty and what it must not touch, for a change of class `disruption`.

    None means that the class is not known yet: it is that of the fence or, without a fence, Reboot if mig-manager may
    reboot nodes. `node` is None if the Node is not known. The caller sets `now`.
    """
    fence = node.fence if node is not None else None
    if disruption is None and fence is not None:
        disruption = fence.disruption
    return Scope(
        settings.gpu_operator_namespace,
        all_pods=stack.with_reboot if disruption is None else disruption is DisruptionClass.REBOOT,
        protected=frozenset(settings.protected_namespaces),
        own_pod=f"{settings.namespace}/{settings.pod_name}" if settings.pod_name else "",
        cordoned_at=node.closed_since if node is not None else None,
        settle=timedelta(seconds=settings.settle),
        forces=settings.force_delete,
        node=node.name if node is not None else "",
        evicts_claims=stack.by_dra,
        silent=node is not None and not node.ready,
    )


def gpu_resources(pod: PodView) -> tuple[str, ...]:
    """Return the GPU resource names that the pod requests, sorted (G1); a fraction from KAI counts as nvidia.com/gpu (G10)."""
    requested = sorted(name for name, count in pod.resources.items() if count > 0 and is_gpu_resource(name))
    return tuple(requested) if requested or not gpu_groups(pod.labels) else (RESOURCE_GPU,)


def holds_gpu(pod: PodView) -> bool:
    """Whether the pod holds a GPU while it runs (G1-G6, G10); the phase is not checked. An unreadable claim counts."""
    return pod.dra != "none" or bool(gpu_resources(pod))


def has_finished(pod: PodView) -> bool:
    """Whether the pod no longer holds a GPU although its object still exists (P11)."""
    return pod.phase in ("Succeeded", "Failed")


def by_ref(pod: PodView) -> tuple[str, str]:
    return pod.ref, pod.uid


@value
class Classified:
    """The pods of a node, each in exactly one of three lists, sorted by `namespace/name`."""

    holders: tuple[PodView, ...]
    """Pods that have to leave and can be evicted, now or after a wait. Some may already be terminating."""
    waited: frozenset[str]
    """The uids of the holders that end by themselves: the drain waits for them before it evicts them."""
    ignored: tuple[PodView, ...]
    """Pods that hold no GPU, are NVIDIA's own, or reserve a GPU for other pods on the node."""
    blocked: tuple[PodView, ...]
    """Pods that would have to leave but must not be evicted, or cannot be."""
    blockers: tuple[Blocker, ...]

    @property
    def must_leave(self) -> tuple[PodView, ...]:
        """The pods that must be gone before the node is changed, even if they must not be evicted."""
        return (*self.holders, *self.blocked)


def classify(pods: Iterable[PodView], options: Drain, scope: Scope) -> Classified:
    """Sort the pods of a node by what the drain does with them."""
    pods = sorted(pods, key=by_ref)
    # KAI deletes the reservation of a GPU when the pods that share it are gone (G10).
    sharing = (pod for pod in pods if not is_reservation(pod) and not _is_ignored(pod, scope))
    shared = {group for pod in sharing for group in gpu_groups(pod.labels)}

    def ignores(pod: PodView) -> bool:
        left_to_kai = is_reservation(pod) and not shared.isdisjoint(gpu_groups(pod.labels))
        return left_to_kai or _is_ignored(pod, scope)

    decided = [(pod, _decide(pod, options, scope)) for pod in pods if not ignores(pod)]
    return Classified(
        holders=tuple(pod for pod, decision in decided if not isinstance(decision, Blocker)),
        waited=frozenset(pod.uid for pod, decision in decided if decision == "wait"),
        ignored=tuple(filter(ignores, pods)),
        blocked=tuple(pod for pod, decision in decided if isinstance(decision, Blocker)),
        blockers=merge(decision for _, decision in decided if isinstance(decision, Blocker)),
    )


def is_idle(pods: Iterable[PodView], scope: Scope) -> bool:
    return not classify(pods, NO_OPTIONS, scope).must_leave


def _is_daemon(pod: PodView) -> bool:
    """Whether a DaemonSet would start the pod again at once (P3, P5, P6)."""
    owner = pod.owner
    if owner is None or owner.exists is False:
        return False
    return owner.kind == "DaemonSet" and owner.api_version.startswith("apps/")


def _is_ignored(pod: PodView, scope: Scope) -> bool:
    if has_finished(pod):
        return True
    if pod.mirror:
        return not holds_gpu(pod)
    if _is_daemon(pod):
        # NVIDIA's own. mig-manager itself removes pods that select this label (docs/design/nvidia.md#a3).
        deployed = f"{LABEL_DEPLOY_PREFIX}client" in pod.node_selector
        return deployed or pod.namespace == scope.operator_namespace or not holds_gpu(pod)
    return not (scope.all_pods or holds_gpu(pod))


def _decide(pod: PodView, options: Drain, scope: Scope) -> Literal["hold", "wait"] | Blocker:
    """The first rule that applies to a pod that must leave decides about it (docs/design/drain.md#p2)."""

    def block(reason: Reason, message: str = "", until: datetime | None = None) -> Blocker:
        return Blocker(reason, (pod.ref,), message=message, until=until)

    owner = pod.owner
    named = f"{owner.kind} {owner.name}" if owner else ""
    orphaned = owner is not None and owner.exists is False
    if pod.mirror:
        return block(Reason.STATIC_GPU_POD)  # deleting the mirror does not stop the static pod behind it (P7)
    if owner is not None and _is_daemon(pod):
        return block(Reason.GPU_DAEMON_SET, f"Its DaemonSet is {pod.namespace}/{owner.name}")
    if pod.deleted_at is not None:
        return "hold"  # rules against evicting it no longer matter, but it still holds its GPU (P14)
    if (
        pod.ref == scope.own_pod
    ):  # after its own eviction the node would stay cordoned until a successor takes over
        return block(Reason.OWN_POD)
    if pod.namespace in scope.protected:
        # The chart's admission policy would refuse it: it sees the Eviction and not the pod (kubernetes#110169).
        return block(Reason.PROTECTED_NAMESPACE)
    if pod.dra != "none" and not (scope.evicts_claims and pod.dra == "gpu"):
        return block(Reason.DRA_CLAIM, "" if pod.dra == "gpu" else "Its ResourceClaim cannot be read")
    if owner is not None and not orphaned:  # a controller would start it again (P15)
        if pod.tolerates_cordon and LABEL_HOSTNAME in pod.node_selector:
            return block(Reason.TOLERATES_CORDON, f"Its {named} pins it to this node")
        if _came_back(pod, scope):
            started = f"Its {named} started it here after the cordon"
            how = (
                ""
                if pod.tolerates_cordon
                else ", which it does not tolerate: its template sets spec.nodeName"
            )
            return block(Reason.TOLERATES_CORDON, f"{started}{how}")
    if options.protected_pods != "Ignore" and not is_reservation(pod):  # KAI marks these, for Karpenter
        mark = find_protection(pod, None if options.protected_pods == "Block" else scope.now)
        if mark is not None:
            return block(mark.reason, mark.message, mark.until)
    if (ruled := find_rule(pod, options)) is not None:
        place, rule, known = ruled
        if not known:
            needs = f"needs the labels of namespace {pod.namespace}, which cannot be read"
            return block(Reason.NAMESPACE_UNREADABLE, f"{place}.namespaceSelector {needs}")
        if rule.behavior == "Block":
            return block(Reason.RULE_BLOCKS, f"{place} has behavior Block")
        return "wait" if rule.behavior == "WaitCompleted" else "hold"
    # KAI v0.17.0 forgets a reservation pod if the pods of its group had fractions of several GPUs (G10, GetGpuGroups).
    left_over = scope.cordoned_at is not None and is_reservation(pod)
    if options.unmanaged_pods != "Evict" and not left_over and (owner is None or orphaned):
        if is_reservation(pod):
            return block(
                Reason.UNMANAGED,
                "KAI-Scheduler reserves a GPU with this pod, but no pod of its group is on the node",
            )
        return block(Reason.UNMANAGED, f"Its {named} no longer exists" if orphaned else "")
    if options.local_storage == "Block" and pod.local_files:
        return block(Reason.LOCAL_STORAGE)
    return "wait" if is_job(pod) else "hold"


def _came_back(pod: PodView, scope: Scope) -> bool:
    """Whether a controller started the pod on the node after the cordon (P15).

    A pod that does not tolerate the cordon may also have been bound already when the cordon was set. If the clocks
    cannot tell which came first, the pod is evicted once instead of blocking the drain for nothing.
    """
    if scope.cordoned_at is None or pod.created is None:
        return False
    rounded = timedelta(seconds=1)  # the API server truncates creationTimestamp to whole seconds
    late = CLOCK_ERROR if pod.tolerates_cordon else max(CLOCK_ERROR, scope.settle - rounded)
    return pod.created - scope.cordoned_at > late
