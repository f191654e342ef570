"""Who is billed for held GPU time: the namespace, the team that its label names, or its pods; and how much of it they used.

KAI-Scheduler and HAMi divide whole GPUs among pods by themselves. KAI holds each of these GPUs with a pod of its own. HAMi's device ids are not those of GPUs, so the meter counts its GPUs as stranded.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from itertools import chain
from math import inf

from gpusharing.api.names import RESOURCE_GPU
from gpusharing.planning.vocabulary.lengths import counted, some
from kubectl_gpusharing.shell.troubles import Trouble
from kubectl_gpusharing.usage.prometheus.client import PARALLEL, Prometheus, Series, side_by_side
from kubectl_gpusharing.usage.prometheus.matchers import labels_of, matcher_of
from kubectl_gpusharing.usage.prometheus.windows import batched
from kubectl_gpusharing.usage.read.pricing import CHOOSE
from kubectl_gpusharing.usage.read.queries import (
    EXPORTED,
    NAMESPACE,
    POD,
    POLICY,
    MeterQuery,
    label_of,
    use_query,
)
from kubectl_gpusharing.usage.read.series import Pod, exported_label, pod_of
from kubectl_gpusharing.usage.reckon.bills import Basis, Part

RESERVATIONS = frozenset(("kai-resource-reservation", "runai-reservation"))
"""The default namespaces of KAI-Scheduler's reservation pods (kai-scheduler/KAI-Scheduler v0.17.0, pkg/common/constants/constants.go; until v0.6 the second one, docs/migrationguides/v0.6.0)."""
FEWEST, MOST_LOOKS, NODES_AT_ONCE = 13, 37, 4_000
"""At how many moments of a window the use is read, so that about NODES_AT_ONCE nodes are read in all. FEWEST and MOST_LOOKS are prime, so that the moments lie at many times of day."""
OTHERS = "_others"
"""The namespace or policy under which the meter counts time that exceeds its bounds (gpusharing/agent/meter.py)."""
Used = Mapping[tuple[str, str, str], float]
"""Which part of the devices that a tenant held it used, by tenant (in a bill by policy, the policy), resource, and `memory` or `sm`; above 1 if pods used more than their part."""


@dataclass(frozen=True, slots=True)
class Teams:
    """Who is billed for the pods of each namespace on one day."""

    by: str
    """`MeterQuery.by`."""
    last: Mapping[str, str] = field(default_factory=dict)
    """The value of the label that was last seen for each namespace, which may have been deleted since."""
    rivals: Set[str] = frozenset()
    """Namespaces that had several values at the same time."""

    def tenant_of(self, pod: Pod) -> str:
        """Return who is billed for the time of a pod, whose name is empty if it is unknown; empty if nobody is known, and in a bill by policy."""
        namespace, name = pod
        if self.by == POLICY:
            return ""
        if self.by == POD:
            return f"{namespace}/{name or '(unknown)'}"
        if self.by == NAMESPACE or namespace == OTHERS:
            return namespace
        return "" if namespace in self.rivals else self.last.get(namespace, "")


def read_teams(answers: Mapping[str, Iterable[Series]], by: str) -> Teams:
    """Return who is billed, from the answers `labels` and `rival labels`. The value of the label that was seen last wins and, of several, the last by name."""
    label = label_of(by)
    ordered = sorted(answers["labels"], key=lambda series: (series.value, series.labels.get(label, "")))
    last = {exported_label(series, NAMESPACE): series.labels.get(label, "") for series in ordered}
    rivals = frozenset(exported_label(series, NAMESPACE) for series in answers["rival labels"])
    return Teams(by, last, rivals)


def describe_labels(days: int, rivals: Set[str], label: str, *, never: bool) -> Iterator[str]:
    """Yield a sentence about the days on which no namespace had the label although GPUs were held, and one about namespaces with several values. Raises Trouble if no namespace ever had it."""
    if days and never:
        raise Trouble(
            f"no namespace in Prometheus has the label {label}. kube-state-metrics exports only the"
            f" labels that a flag lists: --metric-labels-allowlist=namespaces=[{label}]. Otherwise use --by namespace"
        )
    if days:
        yield (
            f"on {counted(days, 'day')}, no namespace in Prometheus had the label {label}: usage on"
            f" {'those days' if days > 1 else 'that day'} is listed under (no {label})"
        )
    if rivals:
        several = len(rivals) > 1
        yield (
            f"{'namespaces' if several else 'namespace'} {some(sorted(rivals))} {'have' if several else 'has'} several"
            f" values of {label} at once, for example because {'they exist' if several else 'it exists'} in several"
            f" clusters, so {'their' if several else 'its'} usage is listed under (no {label}): {CHOOSE}"
        )


def divide(answers: Mapping[str, Iterable[Series]]) -> dict[str, list[Series]]:
    """Return the held and the stranded time of one stretch, divided among pods where possible: by slices, KAI-Scheduler's GPUs by used memory, and HAMi's by allocations, which then count as held."""
    slices, users = weigh(answers["slices"], "resource"), weigh(answers["users"])
    fractions, whole = weigh(answers["fractions"]), defaultdict[str, float](float)
    for series in answers[Part.STRANDED]:
        whole[series.node] += series.value
    held: list[Series] = []
    stranded: list[Series] = []
    for series in answers[Part.HELD]:
        namespace, resource = exported_label(series, NAMESPACE), series.labels.get("resource", "")
        if namespace in RESERVATIONS:
            weights, basis = users.get((series.node,), {}), {"basis": Basis.ESTIMATE}
        else:
            among, basis = slices.get((series.node, resource), {}), {}
            weights = {pod: each for pod, each in among.items() if pod[0] == namespace}
        held += _split(series, weights, sum(weights.values()), basis) or [series]
    for series in answers[Part.STRANDED]:
        weights = fractions.get((series.node,), {})
        most = max(sum(weights.values()), whole[series.node])
        parts = _split(series, weights, most, {"basis": Basis.RESERVED, "resource": RESOURCE_GPU})
        held += parts
        rest = series.value - sum(part.value for part in parts)
        stranded.append(Series(series.labels, ((series.points[-1][0], rest),)))
    return {Part.HELD: held, Part.STRANDED: stranded}


def weigh(answer: Iterable[Series], *labels: str) -> dict[tuple[str, ...], dict[Pod, float]]:
    """Return the values of an answer, summed by the node and these labels, and then by the pod."""
    weights: dict[tuple[str, ...], dict[Pod, float]] = {}
    for series in answer:
        pod = pod_of(series.labels)
        if pod is not None and 0 < series.value < inf:
            key = tuple(exported_label(series, label) for label in ("node", *labels))
            weights.setdefault(key, defaultdict(float))[pod] += series.value
    return weights


def _split(
    series: Series, weights: Mapping[Pod, float], whole: float, more: Mapping[str, str]
) -> list[Series]:
    labels, (at, value) = {**series.labels, **more, EXPORTED: ""}, series.points[-1]
    return [
        Series({**labels, NAMESPACE: namespace, "pod": name}, ((at, value * each / whole),))
        for (namespace, name), each in weights.items()
    ]


async def read_used(
    prometheus: Prometheus, query: MeterQuery, nodes: Mapping[str, str], teams: Teams
) -> Used:
    """Return which part of what it held each tenant used: the average over some moments of the window. `nodes` has the policy of each."""
    looks = min(MOST_LOOKS, max(FEWEST, NODES_AT_ONCE // max(1, len(nodes))))
    step = (query.end - query.start) / looks
    # The series of pods do not name the policy.
    promql = use_query(query, matcher_of(nodes) if POLICY in labels_of(query.selector) else "")
    sums = defaultdict[tuple[str, str, str], float](float)
    for batch in batched([query.start + step * (look + 0.5) for look in range(looks)], PARALLEL):
        answers = await side_by_side(*(prometheus.instant(promql, at) for at in batch))
        for series in chain.from_iterable(answers):
            pod = pod_of(series.labels) or (exported_label(series, NAMESPACE), "")
            tenant = teams.tenant_of(pod) or nodes.get(series.node, "")
            sums[tenant, series.labels.get("resource", ""), series.labels.get("what", "")] += series.value
    return {
        (tenant, resource, what): amount / held
        for (tenant, resource, what), amount in sums.items()
        if (held := sums.get((tenant, resource, f"{what} held"), 0.0)) > 0
    }
