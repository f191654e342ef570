"""`recommend` and a real Prometheus with a SIMULATED past: every way in which dcgm-exporter and our agent are scraped, and what goes wrong (kubectl_gpusharing/usage/recommend.py, kubectl_gpusharing/usage/histories.py, kubectl_gpusharing/usage/queries.py, kubectl_gpusharing/usage/workloads.py)."""

import csv
import io
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack.generate import ROOT
from hack.sim.dcgmexporter import SetUp
from tests.cli.asking import Answered, alone
from tests.cli.gpuhistory import EVERY, GIB, Card, Fleet, PodRun, daily, flat, openmetrics, steady
from tests.cli.history import Gauge, History, prometheus_with
from tests.cli.history import openmetrics as gauges_of
from tests.wording import lacks

from gpusharing.api.validation import validate_policy
from kubectl_gpusharing.shell.troubles import CHANGES, DONE, Trouble

pytestmark = pytest.mark.tools

BEGIN, UNTIL = datetime(2026, 10, 1, tzinfo=UTC), "2026-10-05"
DAYS = 4
SHORT = 30
"""Hours of the clusters in which something is otherwise, by their end."""
GOLDEN = ROOT / "tests/cli/goldens/recommend.txt"
HASHES = ("x2k4p", "bcdfg", "7vzx9", "qwrt6")


def deployed(namespace: str, name: str, count: int, use: Any, **more: Any) -> list[PodRun]:
    return [
        PodRun((namespace, f"{name}-6b8f9c7d5-{HASHES[index]}"), use, owner=("Deployment", name), **more)
        for index in range(count)
    ]


def pool() -> Iterator[Card]:
    """Two nodes with four whole GPUs each: what a team has before anybody looked."""
    runs = [
        *deployed("team-a", "llm-7b", 3, daily(9 * GIB, 15 * GIB, 0.11)),
        *deployed("team-a", "embedder", 2, steady(4.2 * GIB, 0.06)),
        *deployed("team-b", "llm-13b", 2, steady(27.9 * GIB, 0.24)),
    ]
    vllm = PodRun(("team-c", "vllm-70b-0"), flat(72 * GIB, 0.1), owner=("StatefulSet", "vllm-70b"))
    for index, run in enumerate([*runs, vllm]):
        yield Card(f"GPU-main-{index}", f"gpu-{index // 4}", [run])


def one(cluster: str, *runs: PodRun, **more: Any) -> Card:
    return Card(f"GPU-{cluster}-{more.pop('index', 0)}", "gpu-1", runs, **more)


def fleet(cluster: str, *cards: Card, hours: float = SHORT, **more: Any) -> Fleet:
    labels = {"cluster": cluster, **more.pop("labels", {})}
    begin = datetime.fromtimestamp(BEGIN.timestamp() + DAYS * 86400 - hours * 3600, UTC)
    return Fleet(begin, hours, cards, labels=labels, **more)


def rough() -> Iterator[Fleet]:
    runs = deployed("team-a", "llm", 2, steady(6 * GIB, 0.05))
    idle = one("honoured", index=1)
    yield fleet("honoured", one("honoured", runs[0]), idle, setup=SetUp(honor_labels=True))
    yield fleet("old", one("old", runs[0]), setup=SetUp(old_namespace=True, hostname="hostname"))
    yield fleet(
        "mig", one("mig", runs[0], profile="2g.20gb", instance="3"), one("mig", profile="1g.10gb", instance="9")
    )
    shared = one("shared", *runs, total=True)
    yield fleet("shared", shared, one("shared", *deployed("team-b", "own", 1, steady(9 * GIB, 0.1)), index=1))
    yield fleet("agent", one("agent", *runs, total=True), agent=True)
    yield fleet("agentonly", one("agentonly", *runs), agent=True, exporter=False)
    yield fleet("gaps", one("gaps", runs[0]), unseen=((2.0, 5.0), (10.0, 11.0)))
    for replica in ("a", "b"):
        yield fleet("double", one("double", runs[0]), labels={"replica": replica})
    yield fleet("nameless", one("nameless", runs[0]), owners=False)
    yield fleet("hostless", *(one("hostless", run, index=index) for index, run in enumerate(runs)), named=False)
    yield fleet("quiet", one("quiet", runs[0]), activity=False)
    yield fleet("stranger", one("stranger", runs[0], model="NVIDIA X1000"))
    yield fleet("young", one("young", runs[0]), hours=6)
    vllm = PodRun(("team-c", "vllm-0"), flat(72 * GIB, 0.1), owner=("StatefulSet", "vllm"), memory="15Gi")
    wrong = PodRun(("team-c", "other-0"), steady(6 * GIB, 0.1), owner=("StatefulSet", "other"), memory="much")
    yield fleet("said", one("said", vllm), one("said", wrong, index=1))
    for name in ("replaced agent", "replaced state metrics"):
        yield fleet(name, one(name, runs[0]))
    moved = (replace(one("moved", run, index=index), node=f"gpu-{index}") for index, run in enumerate(runs))
    yield fleet("moved", *moved)
    yield fleet("unsaid", one("unsaid", replace(vllm, memory="")))
    for name, node in (("mixed", "gpu-2"), ("beside", "gpu-1")):
        other = one(name, runs[1], model="NVIDIA A30", index=1)
        yield fleet(name, one(name, runs[0]), replace(other, node=node))
    yield fleet("nobody", one("nobody"))
    new = [
        PodRun(("team-a", "llm-5b4c3d2f1-zzzzz"), steady(6 * GIB, 0.05), (20.02, 99), ("Deployment", "llm")),
        PodRun(("team-a", "gone-0"), steady(6 * GIB, 0.05), (0, 4), ("StatefulSet", "gone")),
        PodRun(("team-a", "night-1"), steady(6 * GIB, 0.05), (1, 3), ("CronJob", "night")),
    ]
    old = deployed("team-a", "llm", 1, steady(6 * GIB, 0.05), hours=(0, 20.3))
    yield fleet("update", *(one("update", run, index=index) for index, run in enumerate([*old, *new])))


PEAKS = {"batch": (0, 10 / 60, 40 / 60), "scaled": (2, 9 + 5 / 60, 9 + 55 / 60), "spikes": (2, 9, 9.25)}
"""How many pods there are always, and when there are more; a CronJob each hour, and Deployments each day."""
MOST = {"batch": 6, "scaled": 8, "spikes": 8}


def peaking(name: str) -> Fleet:
    """A workload whose pods are the most between full hours, each on a GPU of its own, with a whole one beside."""
    always, begin, end = PEAKS[name]
    kind, period = ("CronJob", 1) if name == "batch" else ("Deployment", 24)
    use = steady(14 * GIB, 0.12)
    cards = []
    for index in range(8):
        times = [(0.0, 1e9)] if index < always else []
        if not times and index < MOST[name]:
            times = [(turn + begin, turn + end) for turn in range(0, DAYS * 24, period)]
        runs = [PodRun(("a", f"{name}-{turn}-{index}"), use, each, (kind, name)) for turn, each in enumerate(times)]
        cards.append(one(name, *runs, index=index))
    return fleet(name, *cards, hours=DAYS * 24)


def changed() -> History:
    """Reports of a node whose GPU was shared by four until hour 25, by pods that were replaced at hour 24; and of two nodes, one of which got another pool label at hour 22."""
    agent = {"cluster": "replaced agent", "node": "gpu-1", "uuid": "GPU-x", "resource": "nvidia.com/gpu"}
    exporter = {"cluster": "replaced state metrics", "node": "gpu-1", "resource": "nvidia_com_gpu"}
    gauges = [
        Gauge(metric, {**labels, "instance": instance}, value, hours, every=EVERY)
        for metric, labels in (("gpusharing_device_slices", agent), ("kube_node_status_allocatable", exporter))
        for instance, value, hours in (("old", "4", (0, 24)), ("new", "4", (24.1, 25)), ("new", "1", (25.1, SHORT)))
    ]
    for node, pool, hours in (("0", "a", (0, SHORT)), ("1", "a", (0, 22)), ("1", "b", (22.1, SHORT))):
        labels = {"cluster": "moved", "node": f"gpu-{node}", "label_gpusharing_dev_pool": pool}
        gauges.append(Gauge("kube_node_labels", labels, "1", hours, every=EVERY))
    return History(fleet("").begin, SHORT, [], gauges)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    fleets = [fleet("east", *pool(), hours=DAYS * 24), *rough(), *map(peaking, PEAKS)]
    texts = [*openmetrics(fleets), *gauges_of([changed()])]
    with prometheus_with(tmp_path_factory.mktemp("past"), texts) as url:
        yield url


def ask(url: str, *more: str, cluster: str = "east", window: str = "", until: str = UNTIL) -> Answered:
    chosen = ("--match", f'cluster="{cluster}"', "--prometheus", url, "--until", until)
    return alone("recommend", *chosen, "--window", window or ("4d" if cluster == "east" else f"{SHORT}h"), *more)


def workloads(told: Answered) -> dict[str, Any]:
    return {row["name"]: row for row in told.data["workloads"]}


def test_the_whole_screen(prometheus: str) -> None:
    told = ask(prometheus, "-v")
    if os.environ.get("GOLDEN") == "write":
        GOLDEN.write_text(told.out)
    assert told.out == GOLDEN.read_text()
    assert told.status == DONE


def test_the_page_shows_the_beginning_of_the_recommendation() -> None:
    page = (ROOT / "docs/how-to/recommend.md").read_text()
    assert "\n".join(GOLDEN.read_text().splitlines()[:7]) in page


@pytest.mark.parametrize("goal", ["cost", "performance"])
def test_the_policy_that_is_written_is_one(prometheus: str, tmp_path: Path, goal: str) -> None:
    name = str(tmp_path / "pool.yaml")
    told = ask(prometheus, "--goal", goal, "--write", name)
    assert not lacks(told.out, f"kubectl gpusharing plan -f {name}")
    policy = yaml.safe_load(Path(name).read_text())
    assert not isinstance(validate_policy(policy), tuple)
    assert policy["spec"]["rollout"] == {"approval": "Manual"}
    assert policy["spec"]["nodeSelector"] == {"matchLabels": {"gpusharing.dev/pool": "pool"}}
    assert policy == ask(prometheus, "--goal", goal, "-o", "json").data["policy"]
    with pytest.raises(Trouble, match="the file already exists"):
        ask(prometheus, "--write", name)


def test_workloads_have_the_same_rows_in_csv_and_json(prometheus: str) -> None:
    rows = list(csv.DictReader(io.StringIO(ask(prometheus, "-o", "csv").out)))
    told = ask(prometheus, "-o", "json").data["workloads"]
    assert [(row["workload"], row["advice"]) for row in rows] == [(row["name"], row["advice"] or "") for row in told]
    assert {row["partial"] for row in rows} == {"no"}


# --- the ways in which it is told --------------------------------------------------------------------------------


@pytest.mark.parametrize("cluster", ["honoured", "old", "double", "agentonly"])
def test_a_workload_is_found_however_prometheus_scrapes(prometheus: str, cluster: str) -> None:
    told = ask(prometheus, "-o", "json", cluster=cluster)
    assert told.status == DONE
    found = workloads(told)
    assert set(found) == {"llm"}, "the exporter's own pod holds no GPU"
    assert found["llm"]["kind"] == "deployment"
    assert found["llm"]["pods"] == (2 if cluster == "agentonly" else 1)
    assert found["llm"]["peakBytes"] == pytest.approx(6 * 2**30, rel=0.06)
    assert found["llm"]["advice"] == "1g.10gb"
    assert told.data["gpus"] == (2 if cluster == "honoured" else 1)


def test_activity_of_an_instance_counts_as_its_part_of_the_card(prometheus: str) -> None:
    found = workloads(ask(prometheus, "-o", "json", cluster="mig"))["llm"]
    assert found["now"] == "2g.20gb"
    assert found["active"] == pytest.approx(0.05 * 2 / 7, rel=0.06)


def test_what_pods_of_a_shared_gpu_take_is_not_guessed_from_the_whole(prometheus: str) -> None:
    told = ask(prometheus, "-o", "json", cluster="shared")
    found = workloads(told)
    assert (found["llm"]["now"], found["llm"]["peakBytes"], found["llm"]["advice"]) == ("shared GPU", None, None)
    assert found["own"]["advice"] == "1g.20gb"
    assert any("1 workload shared GPUs for which dcgm-exporter" in one for one in told.data["remarks"])


@pytest.mark.parametrize("cluster", ["replaced agent", "replaced state metrics"])
def test_a_gpu_that_is_whole_again_is_not_taken_for_the_share_that_a_replaced_pod_reported(
    prometheus: str, cluster: str
) -> None:
    assert workloads(ask(prometheus, "-o", "json", cluster=cluster))["llm"]["now"] == "full GPU"


@pytest.mark.parametrize("pool", ["a", "b"])
def test_a_node_that_got_another_label_in_the_last_day_is_in_its_new_pool_only(prometheus: str, pool: str) -> None:
    told = ask(prometheus, "-l", f"gpusharing.dev/pool={pool}", "-o", "json", cluster="moved")
    assert told.data["nodes"] == 1


@pytest.mark.parametrize("name", PEAKS)
def test_peaks_are_compared_with_peaks_whatever_the_minute(prometheus: str, name: str) -> None:
    answers = [
        ask(prometheus, "-o", "json", cluster=name, window="3d", until=f"2026-10-04T{time}Z")
        for time in ("12:00:00", "12:07:00", "12:20:00", "12:59:59", "13:00:00")
    ]
    for told in answers:
        (found,) = told.data["workloads"]
        assert (found["pods"], found["advice"]) == (MOST[name], "1g.20gb")
        assert told.data["recommendation"]["gpus"] == 2
        assert told.data["recommendation"]["saving"]["gpus"] == MOST[name] - 2
    first, *others, _ = (told.data for told in answers)
    assert all(other == first for other in others)


def test_our_agent_tells_the_pods_of_a_shared_gpu_apart(prometheus: str) -> None:
    told = ask(prometheus, "-o", "json", cluster="agent")
    found = workloads(told)["llm"]
    assert (found["now"], found["pods"]) == ("1/2 GPU", 2)
    assert told.data["simulated"], "the agent says so"
    assert found["peakBytes"] == pytest.approx(6 * 2**30, rel=0.06)
    assert told.data["recommendation"]["worstCoLocationBytes"] == pytest.approx(12 * 2**30, rel=0.06)


def test_what_an_owner_says_wins_and_what_cannot_be_read_is_told(prometheus: str) -> None:
    told = ask(prometheus, "-o", "json", cluster="said")
    found = workloads(told)
    assert (found["vllm"]["advice"], found["vllm"]["needBytes"]) == ("1g.20gb", 15 * 2**30)
    assert not lacks(str(told.data["remarks"]), "gpusharing.dev/gpu-memory", "team-c/other-0", "'much'")
    assert found["other"]["advice"] == "1g.10gb"


# --- what goes wrong -----------------------------------------------------------------------------------------------


def test_gaps_make_the_answer_a_part(prometheus: str) -> None:
    told = ask(prometheus, "-o", "json", cluster="gaps")
    assert told.status == CHANGES
    (missing,) = told.data["missing"]
    assert "in 2 gaps" in missing
    assert "usage during that time is unknown" in missing
    assert workloads(told)["llm"]["samples"] < SHORT


def test_who_reserves_memory_keeps_its_size_and_its_owner_is_asked(prometheus: str) -> None:
    told = ask(prometheus, "-o", "json", cluster="unsaid")
    assert told.status == DONE
    found = workloads(told)["vllm"]
    assert (found["advice"], found["needBytes"], found["confidence"]) == ("1 GPU", None, "none")
    assert found["doubts"] == ["LIKELY PREALLOCATED"]
    assert told.data["recommendation"]["saving"]["gpus"] == 0
    assert any(text.startswith("Ask the owners of team-c/vllm") for text in told.data["next"])


def test_without_kube_state_metrics_workloads_go_by_their_pods(prometheus: str) -> None:
    told = ask(prometheus, "-o", "json", cluster="nameless")
    assert workloads(told)["llm"]["kind"] == "pods"
    assert told.data["remarks"][0].startswith("the owner of 1 pod is unknown")


def test_without_names_of_nodes_all_gpus_are_alike(prometheus: str) -> None:
    told = ask(prometheus, "-o", "json", cluster="hostless")
    (layout,) = told.data["recommendation"]["layouts"]
    assert layout["gpusOfEachNode"] == "all"
    assert "each counts as a separate node" in told.data["remarks"][0]


def test_without_activity_memory_decides_and_that_is_said(prometheus: str) -> None:
    told = ask(prometheus, "-o", "json", cluster="quiet")
    assert workloads(told)["llm"]["doubts"] == ["activity unknown"]
    assert "DCGM_FI_PROF_GR_ENGINE_ACTIVE" in told.data["remarks"][0]


def test_a_card_that_nobody_knows_has_needs_of_pods_and_no_layout(prometheus: str) -> None:
    told = ask(prometheus, "-o", "json", cluster="stranger")
    assert told.status == CHANGES
    assert told.data["recommendation"] is None
    assert not lacks(told.data["missing"][0], "layouts", "NVIDIA X1000", "unknown")
    with pytest.raises(Trouble, match="there is no layout to write, because the possible layouts of NVIDIA X1000"):
        ask(prometheus, "--write", "/nowhere/pool.yaml", cluster="stranger")


REFUSED = {
    "young": "24 hourly peaks over 24 h are needed; of 1 workload, team-a/llm has the most, with \\d over \\d h\\. "
    "Try again later, or use a longer --window",
    "nobody": "no pod used a GPU of all nodes in Prometheus during this window",
    "nowhere": r"has no GPU metrics in this window.*dcgmExporter\.serviceMonitor\.enabled=true",
}


@pytest.mark.parametrize("cluster", REFUSED)
def test_too_little_history_use_or_metrics_are_refused_with_what_there_is_and_what_it_takes(
    prometheus: str, cluster: str
) -> None:
    with pytest.raises(Trouble, match=REFUSED[cluster]):
        ask(prometheus, cluster=cluster)


def test_gpus_of_several_models_are_not_mixed(prometheus: str) -> None:
    with pytest.raises(Trouble, match=r"1 NVIDIA-A30, 1 NVIDIA-H100-80GB-HBM3\).*--card NVIDIA-A30"):
        ask(prometheus, cluster="mixed")
    assert ask(prometheus, "--card", "h100-80gb", "-o", "json", cluster="mixed").data["gpus"] == 1
    with pytest.raises(Trouble, match="has no data on GPUs of model t4 of all"):
        ask(prometheus, "--card", "t4", cluster="mixed")
    with pytest.raises(Trouble, match=r"\(gpu-1\) also has GPUs of another model \(NVIDIA-A30\)"):
        ask(prometheus, "--card", "h100-80gb", cluster="beside")


def test_gpus_of_several_clusters_are_not_mixed(prometheus: str) -> None:
    with pytest.raises(Trouble, match=r"several clusters \(agent, agentonly"):
        alone("recommend", "--prometheus", prometheus, "--until", UNTIL, "--window", "1d")


def test_an_update_counts_no_pod_twice_and_what_is_gone_is_left_out(prometheus: str) -> None:
    told = ask(prometheus, "-o", "json", cluster="update")
    assert told.status == DONE
    found = workloads(told)
    assert found["llm"]["pods"] == 1
    assert found["night"]["kind"] == "cronjob"
    assert "gone" not in found
    assert any("team-a/gone" in one and "left out" in one for one in told.data["remarks"])
