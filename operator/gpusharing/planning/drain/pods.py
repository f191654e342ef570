"""Which pods must leave a node, and what forbids to evict one of them?

Specification: docs/design/drain.md, rows P and G, and for rules, marks on pods and jobs P17, P19 and T9 to T12.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from gpusharing.api import names
from gpusharing.api.names import LABEL_DEPLOY_PREFIX, LABEL_HOSTNAME, RESOURCE_GPU, DisruptionClass, is_gpu_resource
from gpusharing.api.policy import Drain, DrainRule, Selector
from gpusharing.api.rules import NEVER
from gpusharing.api.selectors import selects
from gpusharing.api.times import parse_duration, to_rfc3339
from gpusharing.planning.snapshot.nvidia import StackView
from gpusharing.planning.snapshot.podviews import Holder, NodeWork, Part, PodView, Scope
from gpusharing.planning.snapshot.records import CLOCK_ERROR
from gpusharing.planning.snapshot.views import GPUNodeView, NodeView, PlanSettings
from gpusharing.planning.vocabulary.findings import Blocker, Finding, merge
from gpusharing.planning.vocabulary.lengths import cut
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value

JOB_KINDS = frozenset(
    {
        ("batch", "Job"),
        ("batch.volcano.sh", "Job"),
        ("argoproj.io", "Workflow"),
        *(("kubeflow.org", kind) for kind in ("PyTorchJob", "TFJob", "MPIJob", "XGBoostJob", "PaddleJob", "JAXJob")),
    }
)
"""API group and kind of controllers whose pods end by themselves. A JobSet's and a TrainJob's pods belong to Jobs."""
RAY_ORIGIN = "ray.io/originated-from-crd"
"""The label on a RayCluster's pods that says what the cluster serves, such as RayJob for a single job."""

Tier = tuple[int, bool]
"""The order of the pod's rule, and whether it has one of the cluster's own priority classes, which go last."""


def find_rule(pod: PodView, options: Drain) -> tuple[str, DrainRule, bool] | None:
    """Return the first rule that matches the pod or may match it: its path, the rule, and whether it certainly does.

    That is unknown if the labels of the pod's namespace cannot be read.
    """
    for index, rule in enumerate(options.rules):
        if not selects(rule.pod_selector, pod.labels):
            continue
        known = pod.namespace_labels is not None or is_empty(rule.namespace_selector)
        if not known or selects(rule.namespace_selector, pod.namespace_labels or {}):
            return f"spec.drain.rules[{index}]", rule, known
    return None


def asks_for_namespaces(options: Drain) -> bool:
    return any(not is_empty(rule.namespace_selector) for rule in options.rules)


def is_empty(selector: Selector) -> bool:
    return not selector.match_labels and not selector.match_expressions


def is_job(pod: PodView) -> bool:
    """Whether the pod runs to an end and its controller does too (T12)."""
    if pod.restarts or pod.owner is None:
        return False
    group = pod.owner.api_version.partition("/")[0]
    return (group, pod.owner.kind) in JOB_KINDS or pod.labels.get(RAY_ORIGIN) == "RayJob"


def patience(pod: PodView, options: Drain) -> timedelta | None:
    """Return how long after the cordon the drain waits for a pod that ends by itself; None for as long as it runs."""
    ruled = find_rule(pod, options)
    text = (ruled[1].timeout if ruled is not None else None) or options.jobs.timeout
    return None if text == NEVER else parse_duration(text)


def tier_of(pod: PodView, options: Drain) -> Tier:
    """Return the pod's tier (T9, T10); all pods of a lower tier are gone before the next tier begins."""
    match find_rule(pod, options):
        case (_, rule, True):
            return rule.order, pod.system
        case _:
            return 0, pod.system


# --- marks on pods -------------------------------------------------------------------------------------
# Each asks that the pod not be disturbed, until it expires (docs/design/drain.md#p17, P18). A value that cannot be read
# counts as a valid mark: whoever set it wanted to protect the pod.

SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"
KARPENTER = "karpenter.sh/do-not-disrupt"
CAPI_DRAIN = "cluster.x-k8s.io/drain"
LABEL_MARKS = (CAPI_DRAIN,)
ANNOTATION_MARKS = (names.ANNOTATION_DO_NOT_DISRUPT, KARPENTER, SAFE_TO_EVICT)
_CAPI_TEXTS = {
    "skip": ", but a pod that has to leave cannot be skipped",
    "wait-completed": ", so the drain waits until the pod has ended",
}
MAX_VALUE = 40
"""The most characters of a mark's value that a message quotes."""
_GO_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def find_protection(pod: PodView, now: datetime | None) -> Finding | None:
    """Return the mark that protects the pod longest (DO_NOT_DISRUPT), or None if none protects it.

    If `now` is None, a mark with a duration never expires. The marks of a pod that has finished or is leaving do not
    count, so do not ask for it.
    """
    found = [mark for key, written in pod.marks if (mark := _read_mark(pod, key, written, now)) is not None]
    never = datetime.max.replace(tzinfo=UTC)
    return max(found, key=lambda mark: (mark.until or never, mark.message), default=None)


def _read_mark(pod: PodView, key: str, written: str, now: datetime | None) -> Finding | None:
    quoted = f'"{cut(" ".join(written.split()), MAX_VALUE)}"'

    def protects(text: str = "", until: datetime | None = None) -> Finding:
        kind = "Label" if key in LABEL_MARKS else "Annotation"
        return Finding(Reason.DO_NOT_DISRUPT, f"{kind} {key} is {quoted}{text}", until)

    setting = written.strip().lower()
    if key == SAFE_TO_EVICT:
        return protects() if setting == "false" else None
    if key == CAPI_DRAIN:
        text = _CAPI_TEXTS.get(written.lower())
        return protects(text) if text is not None else None
    if key not in ANNOTATION_MARKS or setting == "false":
        return None
    if setting == "true" or now is None:
        return protects()
    if (seconds := _seconds(written.strip())) is None:
        example = "for example 15m or 1h30m, so it protects the pod until someone removes it"
        return protects(f", which is not a valid duration, {example}")
    if pod.started is None:
        return protects(", counted from the start of the pod, which has not started yet")
    try:
        until = pod.started + timedelta(seconds=seconds)
    except OverflowError:
        return protects()
    return protects(f", which protects the pod until {to_rfc3339(until)}", until) if until > now else None


def _seconds(text: str) -> float | None:
    """Read a duration as Go's time.ParseDuration does; None if it is not a duration or has a sign."""
    if text == "0":
        return 0.0
    parts = _GO_DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


# KAI-Scheduler keeps each GPU that it divides with a reservation pod, which asks for one nvidia.com/gpu and has no
# controller. The pods that share the GPU ask for none. All have its group as a label. KAI deletes the reservation pod
# after the last of them. If it goes first, KAI deletes the running pods of the group, whatever their budgets say
# (kai-scheduler/KAI-Scheduler v0.17.0, pkg/common/constants/constants.go, GPUGroup, and syncForPods of
# pkg/binder/binding/resourcereservation/resource_reservation.go). Run:ai's own scheduler uses the same label.
LABELS = frozenset({"runai-gpu-group", "kai-gpu-group"})
"""The labels that name a GPU's group in KAI-Scheduler.

A pod with fractions of several GPUs has a label `LABEL/GROUP` for each of them (v0.17.0, MultiGpuGroupLabelPrefix). The
second name is the one that KAI's maintainers announced (NVIDIA/KAI-Scheduler#464).
"""


def gpu_groups(labels: Mapping[str, str]) -> frozenset[str]:
    """Return the KAI-Scheduler groups of the GPUs that a pod with these labels reserves or shares."""
    return frozenset(value for key, value in labels.items() if key.partition("/")[0] in LABELS and value)


def is_reservation(pod: PodView) -> bool:
    """Whether KAI-Scheduler reserves a GPU for a group with this pod.

    No other pod of a group requests a whole GPU, because KAI gives no fraction to a pod that does.
    """
    return pod.owner is None and RESOURCE_GPU in pod.resources and bool(gpu_groups(pod.labels))


def scope_of(
    node: NodeView | None,
    settings: PlanSettings,
    stack: StackView,
    disruption: DisruptionClass | None = None,
    *,
    gpunode: GPUNodeView | None = None,
    gpus: Iterable[int] = (),
) -> Scope:
    """Return what a drain of `node` must empty and must not touch, for a change of class `disruption`.

    If the class is not known yet, it is that of the fence or, without a fence, Reboot if mig-manager may reboot nodes.
    `gpus` are those that a change without a fence empties. The caller sets `now`.
    """
    fence = node.fence if node is not None else None
    if disruption is None and fence is not None:
        disruption = fence.disruption
    part = None
    if disruption is DisruptionClass.CHANGED_GPUS:
        observed = gpunode.observed if gpunode is not None else None
        # Before the cordon, pods came and went, so a report counts from the first request of the change on.
        tells = observed is not None and (fence is None or observed.request_id.startswith(f"{fence.op}:"))
        holders = observed.holders if observed is not None and tells else None
        emptied = frozenset(fence.gpus if fence is not None else gpus)
        part = Part(emptied, holders) if emptied else None
    return Scope(
        settings.gpu_operator_namespace,
        all_pods=stack.with_reboot if disruption is None else disruption is DisruptionClass.REBOOT,
        part=part,
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
    """Return the GPU resources that the pod requests, sorted (G1); nvidia.com/gpu for a fraction from KAI (G10)."""
    requested = sorted(name for name, count in pod.resources.items() if count > 0 and is_gpu_resource(name))
    return tuple(requested) if requested or not gpu_groups(pod.labels) else (RESOURCE_GPU,)


def holds_gpu(pod: PodView) -> bool:
    """Whether the pod holds a GPU while it runs, whatever its phase (G1-G6, G10). An unreadable claim counts."""
    return pod.dra != "none" or bool(gpu_resources(pod))


def has_finished(pod: PodView) -> bool:
    return pod.phase in ("Succeeded", "Failed")


def by_ref(pod: PodView) -> tuple[str, str]:
    return pod.ref, pod.uid


@value
class Classified:
    """The pods that must leave a node, each in one of two lists, sorted by `namespace/name`."""

    holders: tuple[PodView, ...]
    """Pods that have to leave and can be evicted, now or after a wait. Some may already be terminating."""
    waited: frozenset[str]
    """The uids of the holders that end by themselves: the drain waits for them before it evicts them."""
    blocked: tuple[PodView, ...]
    """Pods that would have to leave but must not be evicted, or cannot be."""
    blockers: tuple[Blocker, ...]

    @property
    def must_leave(self) -> tuple[PodView, ...]:
        """The pods that must be gone before the node is changed, even if they must not be evicted."""
        return (*self.holders, *self.blocked)


def classify(pods: Iterable[PodView], options: Drain, scope: Scope) -> Classified:
    decided = [(pod, _decide(pod, options, scope)) for pod in sorted(find_leaving(pods, scope), key=by_ref)]
    return Classified(
        holders=tuple(pod for pod, decision in decided if not isinstance(decision, Blocker)),
        waited=frozenset(pod.uid for pod, decision in decided if decision == "wait"),
        blocked=tuple(pod for pod, decision in decided if isinstance(decision, Blocker)),
        blockers=merge(decision for _, decision in decided if isinstance(decision, Blocker)),
    )


def find_leaving(pods: Iterable[PodView], scope: Scope) -> list[PodView]:
    """Return the pods that must be gone before the change, whatever forbids to evict them."""
    counted = [pod for pod in pods if not _is_ignored(pod, scope)]
    # KAI deletes the reservation of a GPU when the pods that share it are gone (G10).
    shared = {group for pod in counted if not is_reservation(pod) for group in gpu_groups(pod.labels)}
    return [pod for pod in counted if not is_reservation(pod) or shared.isdisjoint(gpu_groups(pod.labels))]


def is_idle(pods: Iterable[PodView], scope: Scope) -> bool:
    return not find_leaving(pods, scope)


def count_staying(pods: Iterable[PodView], scope: Scope) -> int:
    return sum(scope.part is not None and scope.part.takes(pod.uid) is False for pod in pods if not has_finished(pod))


REPORTED_WITHIN = timedelta(seconds=90)
"""How long a change waits for the agent, which reads every 30 s, to report which pod holds which GPU."""


def find_unplaced(pods: Iterable[PodView], scope: Scope, holders: tuple[Holder, ...] | None) -> str:
    """Return why these pods need a change of the whole node, or an empty string. `scope` is that of such a change."""
    leaving = sorted(find_leaving(pods, scope), key=by_ref)
    if holders is None and not leaving:
        return "no pod holds a GPU, so nobody has to stay"
    for pod in leaving:
        if pod.tolerates_cordon:
            return f"pod {pod.ref} tolerates the cordon, so its successor may get any GPU"
        if pod.dra != "none" or gpu_groups(pod.labels):
            return f"pod {pod.ref} does not hold its GPU through the device plugin alone"
        if pod.init_gpus:
            return f"an init container of pod {pod.ref} asks for a GPU, and the kubelet does not tell which one it got"
    return ""


def find_unreported(pods: Iterable[PodView], scope: Scope, holders: tuple[Holder, ...] | None) -> str:
    """Return what the agent has yet to report, of these pods and of others, before only some GPUs can be emptied."""
    if holders is None:
        return "the agent does not report which pods hold which GPUs"
    if odd := next((one for one in holders if not (one.uid and one.gpus)), None):
        return f"the agent cannot tell which pod {odd.ref} is, or which GPU it holds"
    known = {one.uid for one in holders}
    missing = sorted(pod.ref for pod in find_leaving(pods, scope) if pod.uid not in known)
    return f"the agent does not report which GPU pod {missing[0]} holds" if missing else ""


def _is_daemon(pod: PodView) -> bool:
    """Whether a DaemonSet would start the pod again at once (P3, P5, P6)."""
    owner = pod.owner
    if owner is None or owner.exists is False:
        return False
    return owner.kind == "DaemonSet" and owner.api_version.startswith("apps/")


def _is_ignored(pod: PodView, scope: Scope) -> bool:
    if has_finished(pod) or (scope.part is not None and scope.part.takes(pod.uid) is False):
        return True
    if pod.mirror:
        return not holds_gpu(pod)
    if _is_daemon(pod):
        # NVIDIA's own. mig-manager itself removes pods that select this label (docs/design/nvidia.md#a3).
        deployed = f"{LABEL_DEPLOY_PREFIX}client" in pod.node_selector
        return deployed or pod.namespace == scope.operator_namespace or not holds_gpu(pod)
    return not (scope.all_pods or holds_gpu(pod))


def _decide(pod: PodView, options: Drain, scope: Scope) -> Literal["hold", "wait"] | Blocker:
    """Decide about a pod that must leave by the first rule that applies to it (docs/design/drain.md#p2)."""

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
    if scope.part is not None and scope.part.takes(pod.uid) is None:  # it may be on a GPU that does not change
        return block(Reason.HOLDER_UNKNOWN)
    if pod.ref == scope.own_pod:  # after its own eviction the node would stay cordoned until a successor takes over
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
            how = "" if pod.tolerates_cordon else ", which it does not tolerate: its template sets spec.nodeName"
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
                Reason.UNMANAGED, "KAI-Scheduler reserves a GPU with this pod, but no pod of its group is on the node"
            )
        return block(Reason.UNMANAGED, f"Its {named} no longer exists" if orphaned else "")
    if options.local_storage == "Block" and pod.local_files:
        return block(Reason.LOCAL_STORAGE)
    return "wait" if is_job(pod) else "hold"


def _came_back(pod: PodView, scope: Scope) -> bool:
    """Whether a controller started the pod on the node after the cordon (P15).

    A pod that does not tolerate the cordon may have been bound before. If the clocks cannot tell, it is evicted once.
    """
    if scope.cordoned_at is None or pod.created is None:
        return False
    rounded = timedelta(seconds=1)  # the API server truncates creationTimestamp to whole seconds
    late = CLOCK_ERROR if pod.tolerates_cordon else max(CLOCK_ERROR, scope.settle - rounded)
    return pod.created - scope.cordoned_at > late


KEPT = 32
"""The most LISTs that are remembered for one node."""


def looked(before: NodeWork | None, now: NodeWork, gpunode: GPUNodeView | None) -> NodeWork:
    """Return `now`, a LIST just made, with what the earlier LIST `before` of this process had found."""
    if before is not None:
        now = replace(now, quiet_for=before.quiet_for, quiet_since=before.quiet_since)
    if now.error or not is_idle(now.pods, now.scope):
        return now
    # Scopes are compared and not times: pods could still come before the cordon, and the clock that stamped it may have
    # been ahead of ours.
    if before is None or not before.empty_lists or before.scope != now.scope:
        stood = gpunode.request_id if gpunode is not None else ""
        return replace(now, empty_lists=(now.listed_at,), stood=stood)
    return replace(now, empty_lists=(*before.empty_lists, now.listed_at)[-KEPT:], stood=before.stood)


def heard(work: NodeWork, gpunode: GPUNodeView | None, now: datetime) -> NodeWork:
    """Return `work` with the time since which the agent has kept NVML closed for the current request."""
    answer = gpunode.answer if gpunode is not None else None
    if gpunode is None or answer is None or not answer.quiet:
        return work if not work.quiet_for else replace(work, quiet_for="", quiet_since=None)
    if work.quiet_for == gpunode.request_id:
        return work
    return replace(work, quiet_for=gpunode.request_id, quiet_since=now)
