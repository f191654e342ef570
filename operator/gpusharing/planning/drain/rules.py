"""A policy's rules about pods, marks on pods, and which pods end by themselves (docs/design/drain.md#p17, P19, T9-T12)."""

import re
from datetime import UTC, datetime, timedelta

from gpusharing.api import names
from gpusharing.api.policy import Drain, DrainRule, Selector
from gpusharing.api.rules import NEVER
from gpusharing.api.selectors import selects
from gpusharing.api.times import to_rfc3339
from gpusharing.api.validation import parse_duration
from gpusharing.planning.snapshot.podviews import PodView
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import cut
from gpusharing.planning.vocabulary.reasons import Reason

JOB_KINDS = frozenset(
    {
        ("batch", "Job"),
        ("batch.volcano.sh", "Job"),
        ("argoproj.io", "Workflow"),
        *(
            ("kubeflow.org", kind)
            for kind in ("PyTorchJob", "TFJob", "MPIJob", "XGBoostJob", "PaddleJob", "JAXJob")
        ),
    }
)
"""API group and kind of controllers whose pods end by themselves. A JobSet's and a TrainJob's pods belong to Jobs."""
RAY_ORIGIN = "ray.io/originated-from-crd"
"""The label on a RayCluster's pods that says what the cluster was made for, such as RayJob for a single job."""

Tier = tuple[int, bool]
"""The order of the pod's rule, then whether the pod has one of the cluster's own priority classes, which go last."""


def find_rule(pod: PodView, options: Drain) -> tuple[str, DrainRule, bool] | None:
    """Return the first rule that matches the pod or may match it: its path in the policy, the rule, and whether it certainly matches, which is unknown if the labels of the pod's namespace cannot be read."""
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
    """Return how long after the cordon the drain waits for a pod that ends by itself, or None for as long as it runs."""
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

    If `now` is None, a mark with a duration never expires. Must not be called for a pod that has finished or is
    leaving, because its marks no longer count.
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
