"""What Prometheus is asked for a bill, as PromQL, and for which stretches of time. Pure."""

from dataclasses import dataclass

from gpusharing.cli.shell.troubles import Trouble
from gpusharing.usage.prometheus.matchers import (
    OF_TARGETS,
    braced,
    labels_of,
    of_others,
    simulated_query,
    state_label,
)
from gpusharing.usage.prometheus.windows import LOOKBACK
from gpusharing.usage.read.pricing import OPENCOST_METRIC, POLICY_METRIC, PRODUCT_METRIC

POINTS = "5m"
"""Between the points of a subquery."""
NAMESPACE, POLICY, EXPORTED = "namespace", "policy", "exported_namespace"
GPUS = "gpusharing_gpu_seconds_total"
OF_PARTS = frozenset((NAMESPACE, EXPORTED, "resource", "gpu", "uuid", "profile", "product", "currency"))
"""Labels that some series of a bill have and others lack: of those that match, the parts would not add up. (What holds
no slice has no tenant; `namespace` is the agent's there, or absent.)"""
_PRICES = (
    (OPENCOST_METRIC, "node", " != 0"),
    (POLICY_METRIC, f"{POLICY}, currency", ""),
    (PRODUCT_METRIC, "product, currency", ""),
)
"""Each with the labels of a price, and which values count: OpenCost writes 0 for a price it does not know."""


@dataclass(frozen=True, slots=True)
class MeterQuery:
    """What is asked for."""

    start: float
    """Seconds since 1970."""
    end: float
    """Seconds since 1970."""
    by: str = NAMESPACE
    """NAMESPACE, POLICY, or a label of namespaces."""
    selector: str = ""
    """Matchers, without braces: those of OF_TARGETS for the agents' series, that of POLICY for series that have it, the
    others for every series."""
    currency: str = "USD"
    """Of OpenCost's prices."""


def label_of(by: str) -> str:
    """How kube-state-metrics calls a label of namespaces; empty: none is asked for."""
    return "" if by in (NAMESPACE, POLICY) else state_label(by)


def refuse_parts(selector: str) -> None:
    """Raises Trouble for matchers that only a part of a bill can have."""
    for label in labels_of(selector):
        if label in OF_PARTS:
            raise Trouble(
                f"--selector {selector}: only some series of a bill have the label {label}, so the parts would not add"
                " up. Select by policy, node, job, or a label that your Prometheus adds, such as"
                ' cluster="east"; every tenant and resource has its own row anyway'
            )


def queries_of(wish: MeterQuery, seconds: int) -> list[str]:
    """What is asked of one stretch; `metered` takes the answers apart in this order."""
    span = f"[{seconds}s]"
    chosen = braced(wish.selector)
    of_devices = braced(of_others(wish.selector, frozenset({POLICY})))
    counters = f"{GPUS}{chosen}"

    def grown(name: str, *labels: str) -> str:
        return f"sum by (node, {', '.join(labels)}) (increase({name}{chosen}{span}))"

    queries = [
        grown("gpusharing_slice_seconds_total", POLICY, NAMESPACE, EXPORTED, "resource"),
        grown("gpusharing_idle_slice_seconds_total", POLICY, "resource"),
        grown("gpusharing_stranded_slice_seconds_total", POLICY),
        grown("gpusharing_transition_slice_seconds_total", POLICY),
        grown(GPUS, POLICY),
        f"min by (node, {POLICY}) (min_over_time({counters}{span}))",
        f"max by (node, {POLICY}) (max_over_time({counters}{span}))",
        f"max by (node, resource) (max_over_time(gpusharing_device_slices{of_devices}{span}))",
        *_prices(wish, seconds),
        f"max by (node, product) (max_over_time(gpusharing_agent_gpu_info{of_devices}{span}))",
        _twice(counters, seconds),
        simulated_query(wish.selector, seconds),
    ]
    if label := label_of(wish.by):
        matchers = ",".join(filter(None, (_others(wish), f'{label}!=""')))
        # When each label was last seen: a namespace may have gone, or have changed hands.
        last = f"timestamp(kube_namespace_labels{{{matchers}}})[{seconds}s:{POINTS}]"
        queries.append(f"max by ({NAMESPACE}, {EXPORTED}, {label}) (max_over_time({last}))")
        queries.append(_rival_labels(f"kube_namespace_labels{{{matchers}}}", label, seconds))
    return queries


def _rival_labels(told: str, label: str, seconds: int) -> str:
    """Namespaces that had several values of the label at a time, as those of one name in several clusters."""
    # Whoever does not honour labels has the name in another one.
    named = f'label_replace({told}, "{NAMESPACE}", "$1", "{EXPORTED}", "(.+)")'
    values = f"count by ({NAMESPACE}) (group by ({NAMESPACE}, {label}) ({named})) > 1"
    return f"count_over_time(({values})[{seconds}s:{POINTS}]) > {_moments(seconds)}"


def _prices(wish: MeterQuery, seconds: int) -> list[str]:
    """The price of each kind, and last where there were two of a kind at a time."""
    points = f"[{seconds}s:{POINTS}]"
    of_policies, others = braced(of_others(wish.selector)), braced(_others(wish))
    prices = [
        (f"{name}{of_policies if name == POLICY_METRIC else others}{known}", labels)
        for name, labels, known in _PRICES
    ]
    # First the mean of series and then that over time: who tells a price may restart, and that gives the hours before
    # and after no other weight.
    means = (f"avg_over_time((avg by ({labels}) ({told})){points})" for told, labels in prices)
    rivals = (
        f"count_over_time((max by ({labels}) ({told}) > min by ({labels}) ({told})){points}) > {_moments(seconds)}"
        for told, labels in prices
    )
    return [*means, " or ".join(rivals)]


def _moments(seconds: int) -> int:
    """For how many points of a subquery two may differ: a successor is there beside its predecessor for a moment, at
    most for the 5 min in which nobody knows better."""
    return min(2, seconds // 600)


def _twice(counters: str, seconds: int) -> str:
    """All series of nodes that were metered twice at a time. An agent that is gone may still be seen for LOOKBACK
    beside its successor, so each further series may be there beside another for as long."""
    # Not all have the usual look-back: of what is older, no series counts as being there.
    fresh = f"count by (node, {POLICY}) (timestamp({counters}) > time() - {LOOKBACK:g}) > 1"
    minutes = f"count_over_time(({fresh})[{seconds}s:1m])"
    series = f"count by (node, {POLICY}) (count_over_time({counters}[{seconds}s]))"
    return (
        f"max_over_time({counters}[{seconds}s]) and on (node, {POLICY})"
        f" ({minutes} > {LOOKBACK / 60:g} * ({series} - 1))"
    )


def _others(wish: MeterQuery) -> str:
    """The matchers that apply to series that name neither who was scraped nor a policy."""
    return of_others(wish.selector, OF_TARGETS | {POLICY})
