"""Whose series they are, whose pods, and how a need is drawn (kubectl_gpusharing/usage/workloads.py, kubectl_gpusharing/usage/queries.py, kubectl_gpusharing/usage/recommend.py)."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest
from hack.sim.dcgmexporter import DCGMValues, SetUp, samples

from gpusharing.planning.gpus.cards import find_card
from kubectl_gpusharing.shell.drawing import PrintOptions
from kubectl_gpusharing.usage.needs import History, Holding, Sample, Workload
from kubectl_gpusharing.usage.prometheus import Series
from kubectl_gpusharing.usage.queries import hourly, latest, most_series, of_state_metrics, ownership, usage_count
from kubectl_gpusharing.usage.recommend import now_of, sparkline
from kubectl_gpusharing.usage.workloads import (
    DeviceLabels,
    devices_of,
    owner_of,
    part_of_card,
    read_agent,
    read_dcgm,
    read_owners,
)

EXPORTER = frozenset({("gpu-operator", "dcgm-exporter-x")})
SETUPS = [
    SetUp(old, host, honor) for old in (False, True) for host in ("Hostname", "hostname") for honor in (False, True)
]


def series(labels: Mapping[str, str]) -> Series:
    return Series(labels, ((0.0, 1.0),))


@pytest.mark.parametrize("setup", SETUPS, ids=str)
@pytest.mark.parametrize("known", [EXPORTER, frozenset()])
def test_a_device_and_its_holder_are_read_from_every_set_of_labels(
    setup: SetUp, known: frozenset[tuple[str, str]]
) -> None:
    held = DCGMValues(0, "GPU-a", 0.5, 100, "1g.10gb", "7", ("team-a", "llm-0"))
    for _, labels, _ in samples([held], setup):
        told = read_dcgm(series(labels), known)
        assert told == DeviceLabels(("GPU-a", "7"), ("team-a", "llm-0"), "1g.10gb", "gpu-01", "SIMULATED")
    for _, labels, _ in samples([DCGMValues(1, "GPU-b", 0, 0)], setup):
        assert read_dcgm(series(labels), known).pod is None, "the exporter's own pod"


def test_the_agents_devices_are_those_of_dcgm() -> None:
    info = {"uuid": "MIG-1", "gpu_uuid": "GPU-a", "instance_id": "7"}
    devices = devices_of([series(info)])
    labels = {"uuid": "MIG-1", "profile": "1g.10gb", "node": "gpu-01", "namespace": "team-a", "pod": "llm-0"}
    told = DeviceLabels(("GPU-a", "7"), ("team-a", "llm-0"), "1g.10gb", "gpu-01")
    assert read_agent(series(labels), devices) == told
    renamed = {**labels, "exported_namespace": "team-b", "exported_pod": "x"}
    assert read_agent(series(renamed), devices).pod == ("team-b", "x")
    assert read_agent(series({**labels, "uuid": "GPU-b"}), devices).device == ("GPU-b", "")


@pytest.mark.parametrize(
    ("pod", "workload"),
    [
        ("llm-6b8f9c7d5-x2k4p", ("pods", "llm")),
        ("llm-7b-6b8f9c7d5-x2k4p", ("pods", "llm-7b")),
        ("llm-x2k4p", ("pods", "llm")),
        ("vllm-70b-0", ("pods", "vllm-70b")),
        ("notebook", ("pods", "notebook")),
        ("train-model", ("pods", "train-model")),
        ("0", ("pods", "0")),
    ],
)
def test_without_owners_the_generated_part_of_a_name_is_left_out(pod: str, workload: tuple[str, str]) -> None:
    assert owner_of(("team-a", pod), {}) == workload


def test_owners_are_followed_to_what_people_wrote() -> None:
    def owner(kind: str, name: str, **labels: str) -> Series:
        return series({"namespace": "team-a", "owner_kind": kind, "owner_name": name, **labels})

    owners = read_owners(
        [
            owner("ReplicaSet", "llm-1", pod="a"),
            owner("ReplicaSet", "bare-1", pod="b"),
            owner("Job", "night-1", pod="c"),
            owner("StatefulSet", "vllm", pod="d"),
            owner("<none>", "<none>", pod="e"),
            owner("RayCluster", "ray", pod="own", exported_pod="f", exported_namespace="team-b"),
        ],
        [owner("Deployment", "llm", replicaset="llm-1"), owner("<none>", "<none>", replicaset="bare-1")],
        [owner("CronJob", "night", job_name="night-1")],
    )
    found = {pod: owner_of(("team-a", pod), owners) for pod in "abcde"}
    assert found == {
        "a": ("deployment", "llm"),
        "b": ("replicaset", "bare-1"),
        "c": ("cronjob", "night"),
        "d": ("statefulset", "vllm"),
        "e": ("pod", "e"),
    }
    assert owner_of(("team-b", "f"), owners) == ("raycluster", "ray")


def test_what_chooses_devices_chooses_no_series_of_others() -> None:
    selector = 'cluster="east",modelName="x",UUID!="y",job="dcgm"'
    assert of_state_metrics(selector) == 'cluster="east"'
    assert all(selector in query for query in hourly(selector, 60).values())
    owners = ownership(selector, 86400)["pods"]
    assert 'kube_pod_owner{cluster="east"}[86400s]' in owners
    assert not any("GPU_UTIL" in query for query in hourly("", 60).values())


def test_no_counter_is_asked_for_so_no_reset_of_one_misleads() -> None:
    asked = (
        *hourly("", 60).values(),
        *ownership("", 86400).values(),
        *latest(""),
        usage_count(""),
        most_series("", 86400),
    )
    assert [query for query in asked if re.search(r"_total\b|\b(i?rate|increase|resets)\(", query)] == []


def test_the_part_of_a_card() -> None:
    h100, a30 = find_card("NVIDIA H100 80GB HBM3"), find_card("NVIDIA A30")
    assert part_of_card(h100, "3g.40gb") == (Fraction(1, 2), Fraction(3, 7))
    assert part_of_card(a30, "1g.6gb") == (Fraction(1, 4), Fraction(1, 4))
    assert part_of_card(a30, "9g.6gb") is None
    assert part_of_card(find_card("NVIDIA L4"), "1g.6gb") is None
    assert part_of_card(find_card("NVIDIA X1000"), "1g.10gb") is None


def test_an_instance_of_a_card_that_shares_the_cpus_memory_has_an_unknown_part_of_it() -> None:
    thor = find_card("NVIDIA Thor")
    assert thor is not None
    for profile in thor.profiles:
        memory, compute = part_of_card(thor, profile.name) or (0, 0)
        assert (memory, 0 < compute <= 1) == (None, True)


@pytest.mark.parametrize(
    ("holds", "told"),
    [
        (Holding(), "full GPU"),
        (Holding(devices=2), "2 GPUs"),
        (Holding(share=Fraction(1, 4)), "1/4 GPU"),
        (Holding(share=None), "shared GPU"),
        (Holding("nvidia.com/mig-1g.20gb", 1, Fraction(1, 4)), "1g.20gb"),
        (Holding("nvidia.com/mig-1g.20gb", 2, Fraction(1, 4)), "2x 1g.20gb"),
        (Holding("nvidia.com/gpu.shared", 2, Fraction(1, 4)), "2x 1/4 GPU"),
    ],
)
def test_what_a_pod_holds_now(holds: Holding, told: str) -> None:
    assert now_of(History(Workload("a", "pod", "b"), 1, holds, ())) == told


def at(hour: int, value: float) -> Sample:
    return (datetime(2026, 10, 1, tzinfo=UTC) + timedelta(hours=hour), value)


def test_a_sparkline_has_a_blank_where_nothing_is_known() -> None:
    rising = [at(hour, hour) for hour in (0, 1, 2, 5, 6, 7)]
    assert sparkline(rising, 7, PrintOptions()) == "▁▂▃  ▆▇█"
    assert sparkline(rising, 7, PrintOptions(glyphs=False)) == "_.-  *%#"
    assert sparkline([at(0, 0.0)], 0, PrintOptions()) == "▁"
    assert len(sparkline([at(hour, 1) for hour in range(336)], 1, PrintOptions())) == 48
    assert sparkline([at(0, 1e-320), at(1, 5.0)], 1e-320, PrintOptions()) == "██", "so small that 1 / top is infinite"
