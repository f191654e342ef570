"""How hourly answers add up to the past of a workload (kubectl_gpusharing/usage/workloads.py, kubectl_gpusharing/usage/histories.py)."""

from collections.abc import Sequence
from math import isnan

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.wording import lacks

from gpusharing.planning.gpus.cards import find_card
from kubectl_gpusharing.shell.troubles import Trouble
from kubectl_gpusharing.usage.histories import add_gpus, find_pool
from kubectl_gpusharing.usage.needs import History
from kubectl_gpusharing.usage.prometheus import Series
from kubectl_gpusharing.usage.queries import ANNOTATION
from kubectl_gpusharing.usage.windows import Answers
from kubectl_gpusharing.usage.workloads import Fold, Record

HOURS = 100
LABELS = {"UUID": "GPU-1", "modelName": "NVIDIA H100 80GB HBM3", "Hostname": "gpu-1", "namespace": "a"}


def series(pod: str, values: dict[int, float], **labels: str) -> Series:
    return Series({**LABELS, "pod": pod, **labels}, tuple((3600.0 * hour, value) for hour, value in values.items()))


def part(
    used: Sequence[Series], live: Sequence[Series], own: Sequence[Series] = (), **others: Sequence[Series]
) -> Answers:
    info = Series({"uuid": "MIG-1", "gpu_uuid": "GPU-1", "instance_id": "7"}, ((0.0, 1.0),))
    told = {"used": used, "live": live, "own": own, "devices": [info], **others}
    return Answers(list, {name: [*answer] for name, answer in told.items()})


def folded(found: Answers) -> Fold:
    fold = Fold(3600.0 * (HOURS - 1), HOURS)
    fold.add(found)
    return fold


def histories(fold: Fold) -> tuple[History, ...]:
    return find_pool(fold, "the pool").histories


def test_a_pod_that_two_scrape_with_different_labels_shares_its_gpu_with_nobody() -> None:
    hours = dict.fromkeys(range(HOURS), 6144.0)
    twice = [series("llm", hours), series("llm", hours, node="gpu-1")]
    (record,) = folded(part(twice, twice)).records.values()
    assert not record.shared
    assert not any(map(isnan, record.memory))
    assert set(record.pods) == {1}


def test_two_pods_that_are_told_the_same_share_their_gpu() -> None:
    hours = dict.fromkeys(range(HOURS), 6144.0)
    both = [series("llm", hours), series("chat", hours)]
    assert all(record.shared for record in folded(part(both, both)).records.values())


@pytest.mark.parametrize(("other", "of_device"), [("GPU-1", True), ("GPU-2", False)], ids=["the same GPU", "another"])
def test_activity_is_of_the_whole_device_where_memory_alone_is_split_by_pods(other: str, *, of_device: bool) -> None:
    rows = [("llm", 6144.0, "GPU-1"), ("chat", 1024.0, other)]
    used = [series(pod, dict.fromkeys(range(HOURS), mib), UUID=gpu) for pod, mib, gpu in rows]
    busy = [series(pod, dict.fromkeys(range(HOURS), 0.5), UUID=gpu) for pod, _, gpu in rows]
    found = histories(folded(part(used, used, active=busy)))
    assert {(one.of_device, len(one.memory), len(one.activity or ())) for one in found} == {(of_device, HOURS, HOURS)}


@pytest.mark.parametrize(("other", "of_device"), [("GPU-1", True), ("GPU-2", False)], ids=["the same GPU", "another"])
def test_the_agents_activity_of_a_pod_goes_before_that_of_its_whole_device(other: str, *, of_device: bool) -> None:
    """Where it tells none, of a pod or in an hour, dcgm-exporter's counts, and is said to be an estimate."""
    every, since = range(HOURS), HOURS // 2
    rows = [("llm", 6144.0, "GPU-1"), ("late", 2048.0, "GPU-1"), ("chat", 1024.0, other)]
    used = [series(pod, dict.fromkeys(every, mib), UUID=gpu) for pod, mib, gpu in rows]
    busy = [series(pod, dict.fromkeys(every, 0.9), UUID=gpu) for pod, _, gpu in rows]
    own = [
        series("llm", dict.fromkeys(every, 0.2), uuid="GPU-1"),
        series("late", dict.fromkeys(range(since, HOURS), 0.4), uuid="GPU-1"),
    ]
    found = {
        one.workload.name: ([round(value, 3) for _, value in one.activity or ()], one.of_device)
        for one in histories(folded(part(used, used, active=busy, sm=own)))
    }
    assert found == {
        "llm": ([0.2] * HOURS, False),
        "late": ([0.9] * since + [0.4] * (HOURS - since), True),
        "chat": ([0.9] * HOURS, of_device),
    }


def test_who_is_never_there_at_the_end_of_an_hour_was_there() -> None:
    used = [series("train", dict.fromkeys(range(HOURS), 6144.0))]
    (found,) = histories(folded(part(used, [])))
    assert (len(found.memory), found.pods) == (HOURS, 1)


def test_an_agent_tells_who_is_never_there_at_the_end_of_an_hour() -> None:
    used = [series("", dict.fromkeys(range(HOURS), 0.0))]
    own = [series("train", dict.fromkeys(range(HOURS), 6e9), uuid="GPU-1", node="gpu-1")]
    (found,) = histories(folded(part(used, [], own)))
    assert len(found.memory) == HOURS


def test_memory_that_an_agent_reports_of_no_pod_is_nobodys() -> None:
    nameless = Series({"node": "gpu-1", "uuid": "GPU-1"}, ((0.0, 6144.0),))
    assert folded(part((), (), [nameless])).records == {}


@pytest.mark.parametrize("blank", [-1.0, 2147483632.0, 9223372036854775792.0])
def test_what_dcgm_does_not_know_is_no_memory(blank: float) -> None:
    hours = dict.fromkeys(range(HOURS), 6144.0) | {50: blank}
    found = [series("llm", hours)]
    (record,) = folded(part(found, found)).records.values()
    assert isnan(record.memory[50])
    assert max(value for value in record.memory if not isnan(value)) == 6144 * 2**20


def test_pods_of_mig_devices_share_no_gpu_where_agents_alone_tell() -> None:
    hours = dict.fromkeys(range(HOURS), 1.0)
    used = [series("", dict.fromkeys(range(HOURS), 0.0))]
    held = [
        series(pod, hours, uuid=uuid, node="gpu-1", profile="1g.10gb")
        for pod, uuid in (("llm", "MIG-1"), ("chat", "GPU-1"))
    ]
    fold = folded(part(used, [], slices=held))
    seen = find_pool(fold, "the pool")
    assert fold.gpus["GPU-1"].divided == HOURS - 1
    assert not seen.occupied


@pytest.mark.parametrize(
    ("before", "at_the_end", "pods"),
    [
        (2, (9, 9, 9), 9),  # grown since
        (2, (2, 2, 4), 2),  # an update
        (2, (2, 4, 2), 2),  # one just now
        (9, (2, 2, 2), 9),  # the most that there were
    ],
)
def test_pods_of_today_are_needed_today(before: int, at_the_end: tuple[int, ...], pods: int) -> None:
    counts = [before] * 300 + list(at_the_end)
    fold = Fold(3600.0 * (len(counts) - 1), len(counts))
    hours = dict.fromkeys(range(len(counts)), 6144.0)
    live = [
        series(f"llm-{index}", {hour: 6144.0 for hour in hours if index < counts[hour]}, UUID=f"GPU-{index}")
        for index in range(max(counts))
    ]
    fold.add(part(live, live))
    (found,) = histories(fold)
    assert found.pods == pods


MINUTES = st.integers(0, 5 * 60 - 1)
RUNS = st.lists(
    st.tuples(st.integers(0, 3), st.lists(MINUTES, min_size=2, max_size=2, unique=True).map(sorted)), max_size=8
)
"""Pods of one workload, each with its GPU, and the first and the last minute in which it is seen there."""


@given(RUNS)
def test_the_most_at_once_are_those_of_the_busiest_minute(runs: list[tuple[int, list[int]]]) -> None:
    answers: dict[str, list[Series]] = {"first": [], "last": [], "used": [], "live": []}
    for number, (index, (begin, end)) in enumerate(runs):
        hours = range(begin // 60, end // 60 + 1)
        first = {hour: 60.0 * max(begin, 60 * hour) for hour in hours}
        last = {hour: 60.0 * min(end, 60 * hour + 59) for hour in hours}
        for name, values in (("first", first), ("last", last), ("used", dict.fromkeys(hours, 6144.0))):
            points = {hour + 1: value for hour, value in values.items()}  # asked for at the end of the hour
            answers[name].append(series(f"llm-{number}", points, UUID=f"GPU-{index}"))
    fold = Fold(3600.0 * 5, 5)
    fold.add(Answers(list, answers))
    there = [[(pod, run[0]) for pod, run in enumerate(runs) if run[1][0] <= at <= run[1][1]] for at in range(5 * 60)]
    pods, gpus = ([*map(len, there)], [len({each for _, each in pairs}) for pairs in there])
    record = next(iter(fold.records.values()), Record.of(5))
    assert [*record.pods] == [max(pods[60 * hour : 60 * hour + 60]) for hour in range(5)]
    assert [*fold.held] == [max(gpus[60 * hour : 60 * hour + 60]) for hour in range(5)]
    for uuid, gpu in fold.gpus.items():
        held = [sum(f"GPU-{each}" == uuid for _, each in pairs) for pairs in there]
        assert sum(gpu.holders.values()) == max(held[60 * gpu.held_at : 60 * gpu.held_at + 60])


def test_a_pod_that_nobody_scraped_held_a_gpu() -> None:
    used = [series("", dict.fromkeys(range(HOURS), 0.0))]
    peaks = [series("", {7: 1.0, 8: 0.0}, uuid="GPU-1", node="gpu-1")]
    fold = folded(part(used, [], peaks=peaks))
    assert [hour for hour, count in enumerate(fold.held) if count] == [7]


def test_pods_that_come_and_go_between_full_hours_share_a_replicated_gpu() -> None:
    """dcgm-exporter reports to each what all of them take, at whatever minute."""
    hours = dict.fromkeys(range(HOURS), 6144.0)
    fold = Fold(3600.0 * (HOURS - 1), HOURS, replicas={"gpu-1": 4})
    fold.add(part([series("llm", hours)], []))
    (record,) = fold.records.values()
    assert record.shared == HOURS


DAYS_AGO, NOW = range(50), range(50, HOURS)


def lived(pod: str, hours: range, *gpus: int) -> list[Series]:
    return [series(pod, dict.fromkeys(hours, 6144.0), UUID=f"GPU-{gpu}") for gpu in gpus]


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        ({"llm-0": 40 << 30, "llm-1": 15 << 30}, 15 << 30),
        ({"llm-0": 15 << 30, "llm-1": 40 << 30}, 40 << 30),
        ({"llm-0": 40 << 30}, None),
        ({"llm-1": 15 << 30, "llm-2": 18 << 30}, 18 << 30),
    ],
    ids=["less than before", "more", "taken away", "of two of now the larger"],
)
@pytest.mark.parametrize("at_hours", [True, False], ids=["at the ends of hours", "between them"])
def test_what_the_pods_of_now_say_counts(declared: dict[str, int], told: int | None, *, at_hours: bool) -> None:
    used = [*lived("llm-0", DAYS_AGO, 1), *lived("llm-1", NOW, 1), *lived("llm-2", NOW, 2)]
    texts = [
        Series({"namespace": "a", "pod": pod, ANNOTATION: str(size)}, ((0.0, 1.0),)) for pod, size in declared.items()
    ]
    (found,) = histories(folded(part(used, used if at_hours else [], annotated=texts)))
    assert found.declared == told


@pytest.mark.parametrize(("since", "gpus", "now"), [(50, (1, 2, 3, 4), 1), (HOURS - 10, (1, 2), 2)])
def test_pods_of_before_an_update_that_held_several_gpus_count_for_a_day(
    since: int, gpus: tuple[int, ...], now: int
) -> None:
    used = [*lived("llm-0", range(since), *gpus), *lived("llm-1", range(since, HOURS), 1)]
    (found,) = histories(folded(part(used, used)))
    assert found.holds.devices == now


def beside(hours: int, **labels: str) -> Fold:
    """An H100 that a pod has, and a GPU of another model that was seen in the first hours; only H100s are asked for."""
    used = [series("llm", dict.fromkeys(range(HOURS), 6144.0))]
    used.append(series("", dict.fromkeys(range(hours), 0.0), UUID="GPU-2", modelName="NVIDIA A30", **labels))
    fold = Fold(3600.0 * (HOURS - 1), HOURS, card=find_card("NVIDIA H100 80GB HBM3"))
    fold.add(part(used, []))
    return fold


def test_a_card_beside_another_model_on_its_node_gets_no_layout() -> None:
    with pytest.raises(Trouble, match=r"1 node of the pool \(gpu-1\) also has GPUs of another model \(NVIDIA"):
        find_pool(beside(HOURS), "the pool")


@pytest.mark.parametrize("usage", [beside(HOURS, Hostname="gpu-2"), beside(HOURS - 30)], ids=["far", "gone"])
def test_another_model_elsewhere_or_before_is_no_hindrance(usage: Fold) -> None:
    assert find_pool(usage, "the pool").nodes == (1,)


# --- nodes that come and go --------------------------------------------------------------------------------------


def replaced(at: int) -> Fold:
    """Two GPUs of a node that was replaced by another with two at this hour, each held by a pod all the time."""
    rows = [
        series(f"llm-{number}", dict.fromkeys(hours, 6144.0), UUID=f"GPU-{node}-{number}", Hostname=node)
        for node, hours in (("old", range(at)), ("new", range(at, HOURS)))
        for number in range(2)
    ]
    return folded(part(rows, rows))


@pytest.mark.parametrize(
    ("ago", "nodes", "named"),
    [(1, (2, 2), False), (2, (2,), True), (5, (2,), True), (23, (2,), True), (24, (2,), False)],
)
def test_a_node_that_was_replaced_today_counts_once(ago: int, nodes: tuple[int, ...], *, named: bool) -> None:
    seen = find_pool(replaced(HOURS - ago), "the pool")
    assert (seen.nodes, seen.used) == (nodes, 2)
    assert [one.workload.name for one in seen.histories] == ["llm"]
    assert [one for one in seen.remarks if one.startswith(f"2 GPUs of old (not seen for {ago} h) are")] == (
        [one for one in seen.remarks if "not counted" in one]
    )
    assert any("not counted" in one for one in seen.remarks) == named


def test_when_an_agent_reported_a_gpu_last_counts() -> None:
    fold = Fold(3600.0 * (HOURS - 1), HOURS)
    told = {"GPU-1": 0, "GPU-2": 3599, "GPU-3": 3600, "GPU-4": 80_000, "GPU-5": -30}
    info = [
        Series({"node": "gpu-1", "uuid": uuid, "product": LABELS["modelName"]}, ((0.0, fold.end - ago),))
        for uuid, ago in told.items()
    ]
    add_gpus(fold, info)
    assert [HOURS - 1 - fold.gpus[uuid].last for uuid in told] == [0, 0, 1, 22, 0]


@pytest.mark.parametrize("there", [True, False], ids=["its node is there", "its node is gone"])
def test_a_cron_job_counts_whether_the_node_of_its_last_run_is_there_or_not(*, there: bool) -> None:
    job = {"namespace": "a", "pod": "train-1-x", "owner_kind": "CronJob", "owner_name": "train"}
    elsewhere = {"UUID": "GPU-9", "Hostname": "gpu-9"}
    used = [
        series("llm", dict.fromkeys(range(HOURS), 6144.0)),
        series("train-1-x", dict.fromkeys(range(20, 60), 30_000.0), **elsewhere),
        *([series("", dict.fromkeys(range(HOURS), 0.0), **elsewhere)] if there else []),
    ]
    seen = find_pool(folded(part(used, used, pods=[Series(job, ((0.0, 1.0),))])), "the pool")
    assert [one.workload.name for one in seen.histories] == ["train", "llm"]
    assert seen.nodes == ((1, 1) if there else (1,))


def test_what_ran_on_a_node_that_is_gone_is_named() -> None:
    used = [
        series("llm", dict.fromkeys(range(HOURS), 6144.0)),
        series("chat", dict.fromkeys(range(60), 6144.0), UUID="GPU-9", Hostname="gpu-9"),
    ]
    seen = find_pool(folded(part(used, used)), "the pool")
    assert not lacks(seen.remarks[-1], "1 workload", "left out", "a/chat")


def test_a_workload_of_another_model_that_is_gone_is_none_of_the_pools() -> None:
    used = [
        series("llm", dict.fromkeys(range(HOURS), 6144.0)),
        series("chat", dict.fromkeys(range(60), 6144.0), UUID="GPU-9", modelName="NVIDIA A30", Hostname="gpu-9"),
    ]
    seen = find_pool(folded(part(used, used)), "the pool")
    assert not any("left out" in one for one in seen.remarks)


@pytest.mark.parametrize("chosen", [frozenset({"new"}), frozenset({"new", "old"}), None])
def test_history_of_nodes_that_were_replaced_counts_or_is_said_to_be_left_out(chosen: frozenset[str] | None) -> None:
    rows = [
        series(name, dict.fromkeys(hours, mib), UUID=f"GPU-{node}", Hostname=node)
        for name, node, hours, mib in (
            ("llm-0", "old", range(90), 30_000.0),
            ("llm-1", "new", range(90, HOURS), 6144.0),
            ("chat-0", "other", range(HOURS), 6144.0),  # another pool's, which is there
        )
    ]
    fold = Fold(3600.0 * (HOURS - 1), HOURS, nodes=chosen)
    fold.add(part(rows, rows))
    seen = find_pool(fold, "the pool")
    told = [one for one in seen.remarks if one.startswith("the history of 1 node with GPUs (old) is left out")]
    assert bool(told) == (chosen == frozenset({"new"}))
    (history,) = (one for one in seen.histories if one.workload.name == "llm")
    assert len(history.memory) == (10 if told else HOURS)
