"""A policy's rules about pods, and which pods end by themselves (docs/design/drain.md#p19, T9-T12).

The first rule that matches a pod decides; if none does, it matters whether the pod is a job.
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from gpusharing.api import names
from gpusharing.api.policy import Drain, DrainRule, Selector
from gpusharing.api.rules import NEVER
from gpusharing.api.selectors import selects
from gpusharing.api.times import to_rfc3339
from gpusharing.api.validation import parse_duration
from gpusharing.planning.snapshot.podviews import PodView
from gpusharing.planning.vocabulary.lengths import cut
from gpusharing.planning.vocabulary.values import value

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
"""The label on a RayCluster's pods that says what the cluster was made for; its value is RayJob if that is a single
job."""

Tier = tuple[int, bool]
"""Sort key that decides the order in which pods are drained: first the order of the pod's rule, then whether the pod
has one of the cluster's own priority classes, which go last."""


@value
class Ruled:
    """The rule that decides about a pod."""

    index: int
    """The position of the rule in spec.drain.rules, from 0."""
    rule: DrainRule
    """The rule itself."""
    known: bool
    """Whether the rule certainly matches. False if that is unknown, because the labels of the pod's namespace cannot
    be read."""

    @property
    def place(self) -> str:
        """The rule's path in the policy, such as `spec.drain.rules[0]`."""
        return f"spec.drain.rules[{self.index}]"


def find_rule(pod: PodView, options: Drain) -> Ruled | None:
    """Return the first rule that matches the pod or may match it, or None if none does. A rule that depends on the
    labels of the pod's namespace may match if these labels cannot be read."""
    for index, rule in enumerate(options.rules):
        if not selects(rule.pod_selector, pod.labels):
            continue
        if is_empty(rule.namespace_selector):
            return Ruled(index, rule, known=True)
        if pod.namespace_labels is None:
            return Ruled(index, rule, known=False)
        if selects(rule.namespace_selector, pod.namespace_labels):
            return Ruled(index, rule, known=True)
    return None


def asks_for_namespaces(options: Drain) -> bool:
    """Whether any rule selects pods by the labels of their namespace."""
    return any(not is_empty(rule.namespace_selector) for rule in options.rules)


def is_empty(selector: Selector) -> bool:
    """Whether the selector has no condition, so that it matches everything."""
    return not selector.match_labels and not selector.match_expressions


def is_job(pod: PodView) -> bool:
    """Whether the pod ends by itself: its restartPolicy is not Always, and it belongs to a controller of a kind in
    JOB_KINDS or to a RayJob (T12)."""
    if pod.restarts or pod.owner is None:
        return False
    group = pod.owner.api_version.partition("/")[0]
    return (group, pod.owner.kind) in JOB_KINDS or pod.labels.get(RAY_ORIGIN) == "RayJob"


def patience(pod: PodView, options: Drain) -> timedelta | None:
    """Return how long after the cordon the drain waits for a pod that ends by itself, or None if it waits for as long
    as the pod runs. The timeout of the rule that `find_rule` returns takes precedence over the timeout in
    spec.drain.jobs. Raises ValueError if the timeout is neither a duration nor `Never`."""
    ruled = find_rule(pod, options)
    text = (ruled.rule.timeout if ruled is not None else None) or options.jobs.timeout
    return None if text == NEVER else parse_duration(text)


def tier_of(pod: PodView, options: Drain) -> Tier:
    """Return the pod's tier (T9, T10); all pods of a lower tier are gone before the next tier begins. A tier has two
    parts: the order of the rule that certainly matches the pod, or 0 if no rule does, and whether the pod has one of
    the cluster's own priority classes, which go last."""
    ruled = find_rule(pod, options)
    return (ruled.rule.order if ruled is not None and ruled.known else 0, pod.system)


# --- marks on pods -------------------------------------------------------------------------------------
# Each asks that the pod not be disturbed, until it expires (docs/design/drain.md#p17, P18). A value that cannot be read
# counts as a valid mark: whoever set it wanted to protect the pod.


SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"
KARPENTER = "karpenter.sh/do-not-disrupt"
CAPI_DRAIN = "cluster.x-k8s.io/drain"
MAX_VALUE = 40
"""The most characters of a mark's value that a message quotes."""
_GO_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_NEVER = datetime.max.replace(tzinfo=UTC)


@value
class Protection:
    """Why a pod must not be disturbed."""

    text: str
    """The mark and its value, in words. The text does not change while the pod exists."""
    until: datetime | None
    """When the protection ends by itself, or None if it lasts until the mark or the pod is gone."""


def find_protection(pod: PodView, now: datetime | None) -> Protection | None:
    """Return the protection given by the annotation or label in `pod.marks` that protects the pod longest, or None if
    none protects it. Keys that are not in `_READERS` are ignored. If `now` is None, one with a duration protects the
    pod indefinitely.

    Must not be called for a pod that has finished or is leaving, because such requests no longer count.
    """
    readers = ((_READERS.get(key), key, value) for key, value in pod.marks)
    found = [reader(pod, key, value, now) for reader, key, value in readers if reader is not None]
    protections = [protection for protection in found if protection is not None]
    return max(
        protections, key=lambda protection: (protection.until or _NEVER, protection.text), default=None
    )


def _do_not_disrupt(pod: PodView, key: str, value: str, now: datetime | None) -> Protection | None:
    """Return the protection that an annotation gives if its value is `true` or a duration in Go's notation, counted
    from the pod's start. None if it is `false` or the duration is over; case and surrounding spaces of `true` and
    `false` do not matter. A value that cannot be read protects the pod indefinitely. So does a duration if `now` is
    None, if the pod has not started, or if it ends too late for a datetime."""
    text, setting = f"Annotation {key} is {_quoted(value)}", value.strip().lower()
    if setting == "false":
        return None
    if setting == "true" or now is None:
        return Protection(text, None)
    seconds = _seconds(value.strip())
    if seconds is None:
        problem = "is not a valid duration, for example 15m or 1h30m, so it protects the pod until someone removes it"
        return Protection(f"{text}, which {problem}", None)
    if pod.started is None:
        return Protection(f"{text}, counted from the start of the pod, which has not started yet", None)
    try:
        until = pod.started + timedelta(seconds=seconds)
    except OverflowError:
        return Protection(text, None)
    if until <= now:
        return None
    return Protection(f"{text}, which protects the pod until {to_rfc3339(until)}", until)


def _safe_to_evict(pod: PodView, key: str, value: str, now: datetime | None) -> Protection | None:
    """Return the protection that Cluster Autoscaler's annotation gives if its value is `false`, ignoring case and
    surrounding spaces, else None. The protection does not expire; `pod` and `now` are ignored."""
    text = f"Annotation {key} is {_quoted(value)}"
    return Protection(text, None) if value.strip().lower() == "false" else None


def _capi_drain(pod: PodView, key: str, value: str, now: datetime | None) -> Protection | None:
    """Return the protection that Cluster API's label gives if its value is `skip` or `wait-completed`, ignoring case,
    else None. A pod that holds a GPU cannot be skipped, so `skip` blocks the drain. The protection does not expire;
    `pod` and `now` are ignored."""
    text, setting = f"Label {key} is {_quoted(value)}", value.lower()
    if setting == "skip":
        return Protection(f"{text}, but a pod that has to leave cannot be skipped", None)
    waits = f"{text}, so the drain waits until the pod has ended"
    return Protection(waits, None) if setting == "wait-completed" else None


_READERS: Mapping[str, Callable[[PodView, str, str, datetime | None], Protection | None]] = {
    names.ANNOTATION_DO_NOT_DISRUPT: _do_not_disrupt,
    KARPENTER: _do_not_disrupt,
    SAFE_TO_EVICT: _safe_to_evict,
    CAPI_DRAIN: _capi_drain,
}
LABEL_MARKS = (CAPI_DRAIN,)
ANNOTATION_MARKS = tuple(key for key in _READERS if key not in LABEL_MARKS)


def _quoted(value: str) -> str:
    """Return the value in quotes, on one line and cut to MAX_VALUE characters."""
    return f'"{cut(" ".join(value.split()), MAX_VALUE)}"'


def _seconds(text: str) -> float | None:
    """Return the seconds of a duration as Go's time.ParseDuration reads it, or None if it is not a duration or has a
    sign."""
    if text == "0":
        return 0.0
    parts = _GO_DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)
