"""The articles' fleet of 80 GPUs and clusters in which something goes wrong, as a SIMULATED past of a Prometheus."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

from tests.cli.history import Gauge, History, Node, Stretch

from gpusharing.planning.gpus.cards import shares

BEGIN, UNTIL = datetime(2026, 10, 1, tzinfo=UTC), "2026-10-08"
HOURS = 168
SHORT = 48
"""Hours of the clusters in which something goes wrong."""
H100, CARD = {"1g.20gb": (1, 2), "3g.40gb": (3, 4), "2g.20gb": (2, 2)}, (7, 8)
SMALL, MIDDLE, OLD = (f"nvidia.com/mig-{name}" for name in ("1g.20gb", "3g.40gb", "2g.20gb"))
SHARED, WHOLE = "nvidia.com/gpu.shared", "nvidia.com/gpu"


def part(profile: str, count: int) -> Fraction:
    """The share of one instance in a layout of so many alike."""
    return shares([H100[profile]] * count, CARD)[0]


def split(counts: dict[tuple[str, str], int], resource: str, all_: int, share: Fraction) -> dict[str, Any]:
    """Slices that namespaces hold, and the idle rest, in GPUs."""
    held = {key: count * share for key, count in counts.items()}
    return {"held": held, "idle": {resource: (all_ - sum(counts.values())) * share}}


def fleet() -> Iterator[Node]:
    """The second article's pools A to D, with layouts that the cards have: an H100 holds 4 of 1g.20gb, not 7."""
    one = part("1g.20gb", 4)
    for number, (a, b) in enumerate([(15, 10), (15, 9), (15, 9), (15, 9)]):
        stands = split({("team-a", SMALL): a, ("team-b", SMALL): b}, SMALL, 32, one)
        yield Node(f"gpu-a-{number}", "pool-a", 8, [Stretch((0, HOURS), **stands)], slices={SMALL: 1})
    half = part("3g.40gb", 2)
    steady = split({("team-b", MIDDLE): 9}, MIDDLE, 16, half)
    for number in (1, 2):
        yield Node(f"gpu-b-{number}", "pool-b", 8, [Stretch((0, HOURS), **steady)], slices={MIDDLE: 1})
    # Divided anew on the third day, in two hours.
    third = part("2g.20gb", 3)
    before = split({("team-c", OLD): 24}, OLD, 24, third)
    after = split({("team-b", MIDDLE): 9}, MIDDLE, 16, half)
    stretches = [
        Stretch((0, 48), **before, stranded=8 - 24 * third),
        Stretch((48, 50), transition=Fraction(8)),
        Stretch((50, HOURS), **after),
    ]
    yield Node("gpu-b-3", "pool-b", 8, stretches, slices={MIDDLE: 1, OLD: 1})
    for number in (1, 2):
        all_ = split({("research", WHOLE): 8}, WHOLE, 8, Fraction(1))
        yield Node(f"gpu-c-{number}", "pool-c", 8, [Stretch((0, HOURS), **all_)], slices={WHOLE: 1})
    quarters = split({("dev", SHARED): 21}, SHARED, 32, Fraction(1, 4))
    card = "NVIDIA A100-SXM4-80GB"
    yield Node("gpu-d-1", "pool-d", 8, [Stretch((0, HOURS), **quarters)], card, slices={SHARED: 4})


def priced(cluster: str) -> Iterator[Gauge]:
    """Policies A and B have a price, OpenCost knows the nodes of C, and the chart the card of D."""
    where = {"cluster": cluster}
    for policy in ("pool-a", "pool-b", "pool-c"):
        labels = {**where, "policy": policy, "currency": "USD"}
        yield Gauge("gpusharing_policy_gpu_hourly_price", labels, "3.2")
    for node, price in (("gpu-c-1", "2.95"), ("gpu-c-2", "2.95"), ("gpu-d-1", "0")):
        yield Gauge("node_gpu_hourly_cost", {**where, "node": node, "instance_type": "x"}, price)
    card = {"product": "NVIDIA-A100-SXM4-80GB", "currency": "USD"}
    yield Gauge("gpusharing:product_gpu_hourly_price", {**where, **card}, "1.1")
    for namespace, team in (("team-a", "red"), ("team-b", "blue"), ("dev", "red")):
        labels = {**where, "namespace": namespace, "label_team": team}
        yield Gauge("kube_namespace_labels", labels, "1", hours=(0, 100 if namespace == "dev" else HOURS))


def whole(name: str, cluster: str, **more: Any) -> Node:
    held = {("team-a", WHOLE): Fraction(1)}
    labels = {"cluster": cluster, **more.pop("labels", {})}
    stands = more.pop("stretches", [Stretch((0, SHORT), held)])
    return Node(name, "pool-x", 1, stands, slices={WHOLE: 1}, labels=labels, **more)


def rough() -> Iterator[Node]:
    yield whole("gpu-1", "restarts", restarts=(10.0, 30.02, 30.5))
    yield whole("gpu-1", "gaps", unseen=((10.0, 20.0), (30.0, 31.0)))
    yield whole("gpu-1", "young", unseen=((0.0, 20.0),))
    yield whole("gpu-1", "gone", unseen=((20.0, 999.0),))
    yield whole("gpu-1", "unpriced")
    yield whole("gpu-1", "negative")
    yield whole("gpu-1", "mixed")
    yield Node(
        "gpu-2", "pool-y", 1, [Stretch((0, SHORT), {("team-a", WHOLE): Fraction(1)})], labels={"cluster": "mixed"}
    )
    for replica in ("a", "b"):
        yield whole("gpu-1", "double", labels={"replica": replica})
    # For some hours of a day another Prometheus scraped the agents too.
    yield whole("gpu-1", "passing")
    yield whole("gpu-1", "passing", labels={"replica": "b"}, unseen=((0.0, 2.0), (20.0, 999.0)))
    # Somebody installed the agent a second time, in another namespace.
    for namespace in ("first", "second"):
        yield whole("gpu-1", "installed", labels={"namespace": namespace})
    # One Prometheus scrapes them twice.
    for job in ("agents", "pods"):
        yield whole("gpu-1", "jobs", labels={"job": job}, simulated=1)
    # One of two nodes was not scraped over midnight.
    yield whole("gpu-1", "unseen")
    yield whole("gpu-2", "unseen", unseen=((18.0, 30.0),))
    yield whole("gpu-1", "leaders")
    yield whole("gpu-1", "handed")
    yield whole("gpu-1", "rivals")
    yield whole("gpu-1", "late")
    yield whole("gpu-1", "two", labels={"zone": "a"})
    yield whole("gpu-2", "two", labels={"zone": "b"})
    yield whole("gpu-1", "teams", labels={"zone": "a"})
    yield whole("gpu-2", "teams", labels={"zone": "b"})
    # The agent's pod was replaced: another series, which begins with 0.
    half = SHORT // 2
    held = {("team-a", WHOLE): Fraction(1)}
    yield whole("gpu-1", "replaced", stretches=[Stretch((0, half), held)], unseen=((half, 999.0),))
    successor = {"instance": "10.0.0.2:8080"}
    yield whole("gpu-1", "replaced", stretches=[Stretch((half, SHORT), held)], unseen=((0, half),), labels=successor)


def midnights() -> Iterator[Node]:
    """A GPU that is used on the first day, and not on the second."""
    used, idle = (Stretch((0, 24), {("team-a", WHOLE): Fraction(1)}), Stretch((24, SHORT), idle={WHOLE: Fraction(1)}))
    for cluster in ("midnight", "after-midnight"):
        yield whole("gpu-1", cluster, stretches=[used, idle])


def other_prices() -> Iterator[Gauge]:
    name = "gpusharing_policy_gpu_hourly_price"
    dollars = {"policy": "pool-x", "currency": "USD"}
    for cluster in ("restarts", "gaps", "young", "gone", "mixed", "replaced", "passing", "unseen"):
        yield Gauge(name, {"cluster": cluster, **dollars}, "2")
    for replica in ("a", "b"):
        yield Gauge(name, {"cluster": "double", "replica": replica, **dollars}, "2")
    yield Gauge(name, {"cluster": "jobs", "job": "operator", **dollars}, "2")
    # The operator was replaced, with another price, for the last of 24 hours.
    yield Gauge(name, {"cluster": "leaders", "instance": "1", **dollars}, "2", hours=(0, 46))
    yield Gauge(name, {"cluster": "leaders", "instance": "2", **dollars}, "26", hours=(47, SHORT))
    # Another was replaced, and both told a price for a moment; in a third cluster two did for hours, before noon.
    yield Gauge(name, {"cluster": "handed", "instance": "1", **dollars}, "2", hours=(0, 20))
    yield Gauge(name, {"cluster": "handed", "instance": "2", **dollars}, "4", hours=(20, SHORT))
    yield Gauge(name, {"cluster": "rivals", "instance": "1", **dollars}, "2")
    yield Gauge(name, {"cluster": "rivals", "instance": "2", **dollars}, "4", hours=(3, 6))
    # The price changed at midnight; the second operator was scraped a moment later.
    for cluster, old, new in (("midnight", 23, 24.0), ("after-midnight", 24, 24.02)):
        yield Gauge(name, {"cluster": cluster, **dollars}, "2", hours=(0, old))
        yield Gauge(name, {"cluster": cluster, **dollars}, "4", hours=(new, SHORT))
    labelled = {"cluster": "late", "namespace": "team-a", "label_team": "red"}
    yield Gauge("kube_namespace_labels", labelled, "1", hours=(30, SHORT))
    for zone, price in (("a", "2"), ("b", "4")):
        yield Gauge(name, {"cluster": "two", "zone": zone, **dollars}, price)
    for value, hours in (("0", (0, 10)), ("3", (11, SHORT))):
        yield Gauge("node_gpu_hourly_cost", {"cluster": "late", "node": "gpu-1"}, value, hours)
    for zone, team, namespace in (("a", "red", "namespace"), ("b", "blue", "exported_namespace")):
        yield Gauge(name, {"cluster": "teams", "zone": zone, **dollars}, "2")
        told = {"cluster": "teams", "zone": zone, "namespace": "monitoring", "label_team": team}
        yield Gauge("kube_namespace_labels", {**told, namespace: "team-a"}, "1")
    yield Gauge(name, {"cluster": "mixed", "policy": "pool-y", "currency": "EUR"}, "1")
    yield Gauge("node_gpu_hourly_cost", {"cluster": "negative", "node": "gpu-1"}, "-1")


def past() -> list[History]:
    nodes = [replace(one, labels={"cluster": "east"}) for one in fleet()]
    return [
        History(BEGIN, HOURS, nodes, list(priced("east"))),
        History(BEGIN, SHORT, [*rough(), *midnights()], list(other_prices())),
    ]
