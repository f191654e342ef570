"""Which pods on a node hold a GPU, and which of these may be evicted. FILTERS decide, one kind of pod after another.

Specification: docs/design/drain.md, rows P and G.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from gpusharing.api import names
from gpusharing.api.names import LABEL_DEPLOY_PREFIX, RESOURCE_GPU, DisruptionClass, is_gpu_resource
from gpusharing.api.policy import Drain
from gpusharing.planning.drain.rules import Protection, find_protection, find_rule, is_job
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


def gpu_groups(labels: Mapping[str, str]) -> frozenset[str]:
    """Return the KAI-Scheduler groups of the GPUs that a pod with these labels reserves or has a fraction of. Empty
    for a pod that does not use KAI."""
    return frozenset(value for key, value in labels.items() if key.partition("/")[0] in LABELS and value)


def is_reservation(pod: PodView) -> bool:
    """Whether this is a pod with which KAI-Scheduler reserves a GPU for a group. Such a pod requests nvidia.com/gpu,
    has the label of a group, and has no owner.

    No other pod of a group requests a whole GPU, because KAI gives no fraction to a pod that does.
    """
    return pod.owner is None and RESOURCE_GPU in pod.resources and bool(gpu_groups(pod.labels))


_DEPLOY_CLIENT = f"{LABEL_DEPLOY_PREFIX}client"
NO_OPTIONS = Drain()
"""The options of a policy make no difference to which pods must leave, only to whether they may be evicted."""
_ROUNDED = timedelta(seconds=1)
"""The API server truncates creationTimestamp to whole seconds."""


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
    reboots = stack.with_reboot if disruption is None else disruption is DisruptionClass.REBOOT
    return Scope(
        settings.gpu_operator_namespace,
        all_pods=reboots,
        protected=frozenset(settings.protected_namespaces),
        own_pod=f"{settings.namespace}/{settings.pod_name}" if settings.pod_name else "",
        cordoned_at=node.closed_since if node is not None else None,
        settle=timedelta(seconds=settings.settle),
        forces=settings.force_delete,
        node=node.name if node is not None else "",
        evicts_claims=stack.by_dra,
        silent=node is not None and not node.ready,
    )


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
    """Why the pods in `blocked` are blocked."""

    @property
    def must_leave(self) -> tuple[PodView, ...]:
        """The pods that must be gone before the node is changed, even if they must not be evicted."""
        return (*self.holders, *self.blocked)


def gpu_resources(pod: PodView) -> tuple[str, ...]:
    """Return the GPU resource names that the pod requests, sorted; other names under nvidia.com/ are not GPUs (G1).
    GPU resources are those whose names begin with nvidia.com/gpu or nvidia.com/mig-. For a pod that requests none but
    has the label of a GPU group from KAI-Scheduler, return just nvidia.com/gpu (G10)."""
    requested = sorted(name for name, count in pod.resources.items() if count > 0 and is_gpu_resource(name))
    return tuple(requested) if requested or not gpu_groups(pod.labels) else (RESOURCE_GPU,)


def holds_gpu(pod: PodView) -> bool:
    """Whether the pod holds a GPU while it runs, through a resource request, a ResourceClaim for a GPU (G1-G6) or a
    fraction from KAI (G10). A ResourceClaim that cannot be read counts. The phase is not checked, so this is also true
    of a finished pod."""
    return pod.dra != "none" or bool(gpu_resources(pod))


def has_finished(pod: PodView) -> bool:
    """Whether the pod has succeeded or failed, so that it no longer holds a GPU although its object still exists
    (P11)."""
    return pod.phase in ("Succeeded", "Failed")


def classify(pods: Iterable[PodView], options: Drain, scope: Scope) -> Classified:
    """Return the pods of a node, sorted into lists by what the drain does with them, and the blockers of those that
    must stay. The first of `FILTERS` that applies to a pod decides. A pod to which no filter applies holds a GPU (or
    `scope.all_pods` is set) and can be evicted. `scope.gpu_groups` is ignored and computed from `pods`."""
    holders, ignored, blocked, blockers = [], [], [], []
    waited = set()
    pods = sorted(pods, key=by_ref)
    # A pod that the drain ignores never leaves, so the reservation of its GPU must.
    sharing = (
        pod for pod in pods if not is_reservation(pod) and not _is_ignored(_filter_of(pod, NO_OPTIONS, scope))
    )
    scope = replace(scope, gpu_groups=frozenset(group for pod in sharing for group in gpu_groups(pod.labels)))
    for pod in pods:
        match = _filter_of(pod, options, scope)
        if match is None or match.decision == "hold":
            holders.append(pod)
        elif match.decision == "wait":
            holders.append(pod)
            waited.add(pod.uid)
        elif match.decision == "ignore":
            ignored.append(pod)
        else:
            blocked.append(pod)
            message = match.particulars(pod, options, scope)
            until = match.until(pod, options, scope)
            blockers.append(Blocker(match.decision, (pod.ref,), message=message, until=until))
    return Classified(tuple(holders), frozenset(waited), tuple(ignored), tuple(blocked), merge(blockers))


def is_idle(pods: Iterable[PodView], scope: Scope) -> bool:
    """Whether none of these pods must be gone before the node is changed."""
    return not classify(pods, NO_OPTIONS, scope).must_leave


def _filter_of(pod: PodView, options: Drain, scope: Scope) -> "PodFilter | None":
    """Return the first filter that applies to the pod, or None if none does."""
    return next((pod_filter for pod_filter in FILTERS if pod_filter.applies(pod, options, scope)), None)


def _is_ignored(match: "PodFilter | None") -> bool:
    """Whether the drain leaves a pod alone to which this filter applies."""
    return match is not None and match.decision == "ignore"


def by_ref(pod: PodView) -> tuple[str, str]:
    """Sort key: `namespace/name`, then uid."""
    return pod.ref, pod.uid


# --- the filters, in order -------------------------------------------------------------------------------


Decision: TypeAlias = Literal["ignore", "hold", "wait"] | Reason
"""What the drain does with a pod. `ignore`: leave it alone, because it holds no GPU or others end it. `hold`: the pod
has to leave and can be evicted. `wait`: the pod has to leave and should end by itself. A Reason: the pod would have to
leave and is not evicted, for this reason."""


@value
class PodFilter:
    """One kind of pod, and the decision about such pods."""

    applies: Callable[[PodView, Drain, Scope], bool]
    """Whether the pod is of this kind; if not, the next filter decides."""
    decision: Decision
    """What is decided about such a pod."""
    particulars: Callable[[PodView, Drain, Scope], str] = lambda pod, options, scope: ""
    """Returns what the blocker says about this pod in addition to the reason; empty if there is nothing to add."""
    until: Callable[[PodView, Drain, Scope], datetime | None] = lambda pod, options, scope: None
    """Returns when time alone ends the block, or None if it does not."""


def _finished(pod: PodView, options: Drain, scope: Scope) -> bool:
    """Whether the pod has finished. It then holds no device and is left in place for its logs (P11). `options` and
    `scope` are ignored."""
    return has_finished(pod)


def _static_without_gpu(pod: PodView, options: Drain, scope: Scope) -> bool:
    """Whether this is the mirror of a static pod without a GPU. `options` and `scope` are ignored."""
    return pod.mirror and not holds_gpu(pod)


def _static(pod: PodView, options: Drain, scope: Scope) -> bool:
    """Whether this is the mirror of a static pod. Deleting the mirror does not stop the static pod behind it (P7).
    `options` and `scope` are ignored."""
    return pod.mirror


def _harmless_daemon(pod: PodView, options: Drain, scope: Scope) -> bool:
    """Whether this is a pod of a DaemonSet that is not known to be gone, and has no GPU or is NVIDIA's own (P3).
    NVIDIA's own pods are in the GPU Operator's namespace or select nodes by gpu.deploy.client; mig-manager itself
    removes pods of the second kind (docs/design/nvidia.md#a3). `options` is ignored."""
    if not _daemon(pod, options, scope):
        return False
    nvidias = pod.namespace == scope.operator_namespace or _DEPLOY_CLIENT in pod.node_selector
    return nvidias or not holds_gpu(pod)


def _daemon(pod: PodView, options: Drain, scope: Scope) -> bool:
    """Whether a DaemonSet would start the pod again at once (P3, P5, P6): the pod's owner is a DaemonSet of the API
    group apps that is not known to be gone. A pod whose DaemonSet is gone is treated like any other pod. `options` and
    `scope` are ignored."""
    owner = pod.owner
    is_daemon_set = owner is not None and owner.kind == "DaemonSet" and owner.api_version.startswith("apps/")
    return is_daemon_set and not _lost_owner(pod)


def _its_daemon_set(pod: PodView, options: Drain, scope: Scope) -> str:
    """Return a sentence that names the pod's DaemonSet. `options` and `scope` are ignored."""
    return f"Its DaemonSet is {pod.namespace}/{pod.owner.name if pod.owner else ''}"


def _without_gpu(pod: PodView, options: Drain, scope: Scope) -> bool:
    """Whether the pod does not matter because it holds no GPU (G1-G6). Before a reboot, every pod matters. `options` is
    ignored."""
    return not (scope.all_pods or holds_gpu(pod))


def _shared_out(pod: PodView, options: Drain, scope: Scope) -> bool:
    """Whether this is KAI's reservation pod of a GPU that other pods on the node still share. The drain deals with
    those pods, and KAI deletes the reservation when they are gone (G10). `options` is ignored."""
    return is_reservation(pod) and not scope.gpu_groups.isdisjoint(gpu_groups(pod.labels))


def _terminating(pod: PodView, options: Drain, scope: Scope) -> bool:
    """Whether the pod is already being deleted. Rules against evicting it no longer matter, but it still holds its GPU
    (P14). `options` and `scope` are ignored."""
    return pod.deleted_at is not None


def _own_pod(pod: PodView, options: Drain, scope: Scope) -> bool:
    """Whether this is the operator's own pod. If it evicted itself, the node would stay cordoned until a successor
    takes over. `options` is ignored."""
    return pod.ref == scope.own_pod


def _protected(pod: PodView, options: Drain, scope: Scope) -> bool:
    """Whether the pod is in a protected namespace. The chart's admission policy would refuse its eviction, because it
    sees the Eviction and not the pod (kubernetes#110169). `options` is ignored."""
    return pod.namespace in scope.protected


def _resource_claim(pod: PodView, options: Drain, scope: Scope) -> bool:
    """Whether a DRA driver, and not the device plugin, manages a GPU of the pod, or a ResourceClaim of the pod cannot
    be read (G3-G5). False for a claim that was read if the drain evicts its holders (`scope.evicts_claims`). `options`
    is ignored."""
    return pod.dra != "none" and not (scope.evicts_claims and pod.dra == "gpu")


def _unread_claim(pod: PodView, options: Drain, scope: Scope) -> str:
    """Return a sentence that says that the pod's ResourceClaim could not be read, or an empty string if it could. The
    pod must have a ResourceClaim. `options` and `scope` are ignored."""
    return "" if pod.dra == "gpu" else "Its ResourceClaim cannot be read"


def _pinned_here(pod: PodView, options: Drain, scope: Scope) -> bool:
    """Whether the pod would come back to the node after every eviction (P15): it tolerates the cordon, its node
    selector has the label kubernetes.io/hostname, and a controller would start it again. `options` and `scope` are
    ignored."""
    return pod.tolerates_cordon and _is_restarted(pod) and names.LABEL_HOSTNAME in pod.node_selector


def _pin(pod: PodView, options: Drain, scope: Scope) -> str:
    """Return a sentence that names the owner that pins the pod to the node. `options` and `scope` are ignored."""
    return f"Its {_owner(pod)} pins it to this node"


def _came_back(pod: PodView, options: Drain, scope: Scope) -> bool:
    """Whether the pod's controller started it on the node after the cordon, so that it would come back after every
    eviction (P15). False if the node is not cordoned or the pod's creation time is unknown.

    A pod that does not tolerate the cordon gets onto the node only if the scheduler was already binding it when the
    cordon was set, so such a pod is allowed more time: it counts only if it was created later than CLOCK_ERROR after
    the cordon and later than `scope.settle`, less a second, after it. For a pod that tolerates the cordon, CLOCK_ERROR
    alone is the limit. `options` is ignored. If the clocks cannot tell whether the pod or the cordon came first, the
    pod is evicted once instead of blocking the drain for nothing.
    """
    since, created = scope.cordoned_at, pod.created
    if since is None or created is None or not _is_restarted(pod):
        return False
    late = CLOCK_ERROR if pod.tolerates_cordon else max(CLOCK_ERROR, scope.settle - _ROUNDED)
    return created - since > late


def _start(pod: PodView, options: Drain, scope: Scope) -> str:
    """Return a sentence that names the owner that started the pod after the cordon. If the pod does not tolerate the
    cordon, the sentence also says how that was possible. `options` and `scope` are ignored."""
    message = f"Its {_owner(pod)} started it here after the cordon"
    return (
        message
        if pod.tolerates_cordon
        else f"{message}, which it does not tolerate: its template sets spec.nodeName"
    )


def _marked(pod: PodView, options: Drain, scope: Scope) -> bool:
    """Whether the pod itself has an annotation or label that asks not to disturb it (P17, P18), and the policy does not
    ignore such requests (`_protection`)."""
    return _protection(pod, options, scope) is not None


def _mark(pod: PodView, options: Drain, scope: Scope) -> str:
    """Return the annotation or label that asks not to disturb the pod, in words. Empty if there is none, or if the
    policy ignores such requests."""
    protection = _protection(pod, options, scope)
    return protection.text if protection is not None else ""


def _mark_ends(pod: PodView, options: Drain, scope: Scope) -> datetime | None:
    """Return when the last of the annotations and labels that ask not to disturb the pod expires. None if there is
    none, if the policy ignores such requests, or if one does not expire; under `protectedPods: Block` none does."""
    protection = _protection(pod, options, scope)
    return protection.until if protection is not None else None


def _protection(pod: PodView, options: Drain, scope: Scope) -> Protection | None:
    """Return the longest protection that an annotation or label gives the pod. None if none protects it, if the policy
    ignores such requests, or if the pod is a KAI reservation pod. A request with a duration expires, unless the policy
    says Block or `scope.now` is None."""
    if (
        options.protected_pods == "Ignore" or not pod.marks or is_reservation(pod)
    ):  # KAI's own mark, for Karpenter
        return None
    return find_protection(pod, None if options.protected_pods == "Block" else scope.now)


def _undecided(pod: PodView, options: Drain, scope: Scope) -> bool:
    """Whether it is unknown which rule applies to the pod, because the labels of its namespace cannot be read (P19).
    Such a pod is left alone. `scope` is ignored."""
    ruled = find_rule(pod, options)
    return ruled is not None and not ruled.known


def _rule_blocks(pod: PodView, options: Drain, scope: Scope) -> bool:
    """Whether the pod's rule says Block. `scope` is ignored."""
    return _rule_says(pod, options, "Block")


def _rule_waits(pod: PodView, options: Drain, scope: Scope) -> bool:
    """Whether the pod's rule says WaitCompleted. `scope` is ignored."""
    return _rule_says(pod, options, "WaitCompleted")


def _rule_evicts(pod: PodView, options: Drain, scope: Scope) -> bool:
    """Whether the pod's rule says Evict. `scope` is ignored."""
    return _rule_says(pod, options, "Evict")


def _rule_says(pod: PodView, options: Drain, behavior: str) -> bool:
    """Whether the pod's rule has this behavior. True also if it is unknown whether that rule matches, because
    `_undecided` has already caught such pods."""
    ruled = find_rule(pod, options)
    return ruled is not None and ruled.rule.behavior == behavior


def _rule(pod: PodView, options: Drain, scope: Scope) -> str:
    """Return a clause that names the rule that decides about the pod, and the rule's behavior, such as
    `spec.drain.rules[0] has behavior Block`, or one that says that the rule needs the labels of the pod's namespace.
    Empty if no rule matches. `scope` is ignored."""
    ruled = find_rule(pod, options)
    if ruled is None:
        return ""
    if not ruled.known:
        return f"{ruled.place}.namespaceSelector needs the labels of namespace {pod.namespace}, which cannot be read"
    return f"{ruled.place} has behavior {ruled.rule.behavior}"


def _job(pod: PodView, options: Drain, scope: Scope) -> bool:
    """Whether the pod belongs to a job that ends by itself, so that waiting for it loses no work (T12). `options` and
    `scope` are ignored."""
    return is_job(pod)


def _unmanaged(pod: PodView, options: Drain, scope: Scope) -> bool:
    """Whether no controller would start the pod again, and the policy does not allow such pods to be evicted (P9, P5).

    A KAI reservation pod is treated as unmanaged only until the node is cordoned. After that, the drain empties the
    pod's group and evicts the pod too, because KAI v0.17.0 forgets the reservation pod if the pods of the group had
    fractions of several GPUs (G10, GetGpuGroups).
    """
    left_over = scope.cordoned_at is not None and is_reservation(pod)
    return options.unmanaged_pods != "Evict" and not left_over and (pod.owner is None or _lost_owner(pod))


def _local_files(pod: PodView, options: Drain, scope: Scope) -> bool:
    """Whether the pod keeps files on the node's disk, which an eviction would delete, and the policy says Block for
    such pods (P8). `scope` is ignored."""
    return options.local_storage == "Block" and pod.local_files


def _lost(pod: PodView, options: Drain, scope: Scope) -> str:
    """Return a sentence that says why no controller would start the pod again. Empty for a pod that never had a
    controller; but a KAI reservation pod, which never has one, gets a sentence that says what it is. `options` and
    `scope` are ignored."""
    if is_reservation(pod):
        return "KAI-Scheduler reserves a GPU with this pod, but no pod of its group is on the node"
    return f"Its {_owner(pod)} no longer exists" if pod.owner else ""


def _is_restarted(pod: PodView) -> bool:
    """Whether a controller would start the pod again once it is evicted: the pod has an owner that is not known to be
    gone."""
    return pod.owner is not None and not _lost_owner(pod)


def _lost_owner(pod: PodView) -> bool:
    """Whether the pod's owner is known to be gone. False if the pod has no owner, or if it is unknown whether the
    owner exists."""
    return pod.owner is not None and pod.owner.exists is False


def _owner(pod: PodView) -> str:
    """Return the kind and name of the pod's owner; empty without one."""
    return f"{pod.owner.kind} {pod.owner.name}" if pod.owner else ""


FILTERS: tuple[PodFilter, ...] = (
    PodFilter(_finished, "ignore"),
    PodFilter(_static_without_gpu, "ignore"),
    PodFilter(_static, Reason.STATIC_GPU_POD),
    PodFilter(_harmless_daemon, "ignore"),
    PodFilter(_daemon, Reason.GPU_DAEMON_SET, _its_daemon_set),
    PodFilter(_without_gpu, "ignore"),
    PodFilter(_shared_out, "ignore"),
    PodFilter(_terminating, "hold"),
    PodFilter(_own_pod, Reason.OWN_POD),
    PodFilter(_protected, Reason.PROTECTED_NAMESPACE),
    PodFilter(_resource_claim, Reason.DRA_CLAIM, _unread_claim),
    PodFilter(_pinned_here, Reason.TOLERATES_CORDON, _pin),
    PodFilter(_came_back, Reason.TOLERATES_CORDON, _start),
    PodFilter(_marked, Reason.DO_NOT_DISRUPT, _mark, _mark_ends),
    PodFilter(_undecided, Reason.NAMESPACE_UNREADABLE, _rule),
    PodFilter(_rule_blocks, Reason.RULE_BLOCKS, _rule),
    PodFilter(_rule_waits, "wait"),
    PodFilter(_rule_evicts, "hold"),
    PodFilter(_unmanaged, Reason.UNMANAGED, _lost),
    PodFilter(_local_files, Reason.LOCAL_STORAGE),
    PodFilter(_job, "wait"),
)
"""The first match wins (P2). A pod that matches no filter has to leave and can be evicted."""
