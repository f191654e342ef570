"""Rules of a policy about its pods, and pods that end by themselves (docs/design/drain.md#p19, T9-T12).

The first rule that matches a pod decides; if none does, it matters whether the pod is a job.
"""

from datetime import timedelta

from gpusharing.api.policy import Drain, DrainRule, Selector
from gpusharing.api.rules import NEVER
from gpusharing.api.selectors import selects
from gpusharing.api.validation import parse_duration
from gpusharing.planning.snapshot.podviews import PodView
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
"""Label on the pods of a RayCluster; RayJob if the cluster was made for one job."""

Tier = tuple[int, bool]
"""Which pods leave first: by the order of the rule, then pods of the cluster's own priority classes last."""


@value
class Ruled:
    """The rule that decides about a pod."""

    index: int
    """Its place in drain.rules."""
    rule: DrainRule
    """The rule itself."""
    known: bool
    """Whether it matches for certain; False: unknown, the labels of the pod's namespace cannot be read."""

    @property
    def place(self) -> str:
        """Its path in the policy."""
        return f"spec.drain.rules[{self.index}]"


def find_rule(pod: PodView, options: Drain) -> Ruled | None:
    """The first rule that matches the pod, or may match it; None: none does."""
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
    """Whether labels of namespaces decide about pods."""
    return any(not is_empty(rule.namespace_selector) for rule in options.rules)


def is_empty(selector: Selector) -> bool:
    """It matches everything."""
    return not selector.match_labels and not selector.match_expressions


def is_job(pod: PodView) -> bool:
    """T12: it ends by itself, and a controller that understands completion started it."""
    if pod.restarts or pod.owner is None:
        return False
    group = pod.owner.api_version.partition("/")[0]
    return (group, pod.owner.kind) in JOB_KINDS or pod.labels.get(RAY_ORIGIN) == "RayJob"


def patience(pod: PodView, options: Drain) -> timedelta | None:
    """How long after the cordon the drain waits for a pod that ends by itself; None: as long as it runs."""
    ruled = find_rule(pod, options)
    own = ruled.rule.timeout if ruled is not None else None
    return _wait(own or options.jobs.timeout)


def _wait(text: str) -> timedelta | None:
    return None if text == NEVER else parse_duration(text)


def tier_of(pod: PodView, options: Drain) -> Tier:
    """T9, T10: its turn; all pods of a lower tier are gone before the next tier begins."""
    ruled = find_rule(pod, options)
    return (ruled.rule.order if ruled is not None and ruled.known else 0, pod.system)
