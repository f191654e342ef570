"""What may be typed for `recommend`, and what Prometheus or the cluster answer instead (kubectl_gpusharing/usage/recommend.py)."""

import csv
import io
from pathlib import Path

import pytest
import yaml
from tests.cli.asking import ME, Answered, alone, ask, operated, writes
from tests.cli.desk import JSON, Desk
from tests.cli.fakeprometheus import HOURS, LABELS, NOW, Answer, FakePrometheus, hourly, hours_of, success, vector
from tests.cli.objects import DECLARED, UNDECLARED
from tests.cli.test_poolnodes import RECOMMEND, behind, listed, node
from tests.embedded.scene import FULL
from tests.fakes.virtualtime import virtual_now, virtually
from tests.planning.histories import H100
from tests.wording import lacks

from gpusharing.planning.gpus.cards import memory_of
from kubectl_gpusharing.changing.plan import Planned, as_data
from kubectl_gpusharing.shell.arguments import parse
from kubectl_gpusharing.shell.drawing import PrintOptions, plain
from kubectl_gpusharing.shell.session import Session
from kubectl_gpusharing.shell.terminal import API
from kubectl_gpusharing.shell.troubles import CHANGES, DONE, Trouble
from kubectl_gpusharing.usage.needs import GIB
from kubectl_gpusharing.usage.recommend import BETA, describe_effect, find_effect
from kubectl_gpusharing.usage.scopes import rows_of, scope_of, whole_fleet

pytestmark = pytest.mark.usefixtures("used")


def told(fake: FakePrometheus, *more: str, stream: io.StringIO | None = None) -> Answered:
    words = ("recommend", "--prometheus", fake.url, "--window", f"{HOURS}h")
    return alone(*words, *more, stream=stream)


def test_a_pool_by_what_kube_state_metrics_tells_of_its_nodes(fake: FakePrometheus) -> None:
    found = told(fake, "-l", "gpusharing.dev/pool=b", "-o", "json").data
    assert found["policy"]["metadata"] == {"name": "pool-b"}
    assert found["policy"]["spec"]["nodeSelector"] == {"matchLabels": {"gpusharing.dev/pool": "b"}}
    assert found["next"] == []
    (workload,) = found["workloads"]
    assert (workload["namespace"], workload["kind"], workload["name"]) == ("team-a", "pods", "llm")
    assert workload["advice"] == "1g.10gb"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--window", "31d"), "--window 31d: .* 10m to 30d"),
        (("--until", "soon"), "--until soon: .* date"),
        (("--match", "east"), "--match east: use matchers"),
        (("-l", "a=b=c"), "-l a=b=c .* gpusharing.dev/pool=a"),
        (("-l", "a=b", "--policy", "x"), "pass either --policy or -l, not both"),
        (("--policy", "x"), "--policy .*: omit --prometheus"),
        (("-l", "zone=b"), r"--metric-labels-allowlist=nodes=\[zone\]"),
        (("-l", "gpusharing.dev/pool=a"), "no node .* labels gpusharing.dev/pool=a"),
        (("--card", "h1000"), "no card matches h1000"),
        (("--service", "a/b:1"), "not both"),
        (("--write", "/"), "--write /: the file already exists"),
        (("--write", "x" * 300), "--write x+: "),
        (("--write", "/nowhere/x.yaml"), "--write /nowhere/x.yaml: "),
    ],
)
def test_a_mistake_is_told_in_a_sentence(fake: FakePrometheus, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(Trouble, match=message):
        told(fake, *words)


def shared(*values: str) -> Answer:
    """The memory of pods of a workload that hold one GPU together, as dcgm-exporter splits it."""
    return success("matrix", [hours_of(value, pod=f"llm-{index}") for index, value in enumerate(values)])


@pytest.mark.parametrize(
    ("used", "why"),
    [
        (hourly("6144", modelName="NVIDIA X9000"), "the possible layouts of NVIDIA X9000 are unknown"),
        (shared("73728", "1024"), "no layout has room for any workload"),
    ],
    ids=["a card that nobody knows", "what the workload needs is unknown"],
)
def test_without_a_layout_there_is_the_answer_and_then_why_nothing_was_written(
    fake: FakePrometheus, tmp_path: Path, used: Answer, why: str
) -> None:
    fake.ranges["DCGM_FI_DEV_FB_USED"] = used
    name, stream = tmp_path / "pool.yaml", io.StringIO()
    with pytest.raises(Trouble, match=f"there is no layout to write, because {why}"):
        told(fake, "--write", str(name), stream=stream)
    assert stream.getvalue() == told(fake).out
    assert not name.exists()


def test_it_is_marked_beta_on_the_screen_in_the_help_and_in_the_file(
    fake: FakePrometheus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = tmp_path / "pool.yaml"
    assert f"\n{BETA}.\n" in told(fake, "--write", str(name)).out
    assert BETA in " ".join(name.read_text().replace("#", "").split())
    with pytest.raises(SystemExit):
        parse(("recommend", "--help"))
    assert "(beta)" in " ".join(capsys.readouterr().out.split())


def test_a_goal_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(("recommend", "--goal", "speed"))
    assert "use one of: cost, performance" in capsys.readouterr().err


def test_more_series_than_can_be_asked_for_are_refused(fake: FakePrometheus) -> None:
    fake.answers["max_over_time((count"] = vector(({}, "100001"))
    limit = "has 100,001 GPU series at one time, but this plugin reads at most 100,000 at once: select fewer, for example with"
    with pytest.raises(Trouble, match=f"{limit} --match 'cluster=\"east\"'"):
        told(fake)


def test_many_series_are_asked_for_in_shorter_stretches(fake: FakePrometheus) -> None:
    told(fake)
    few = len(fake.paths)
    fake.paths.clear()
    fake.answers["max_over_time((count"] = vector(({}, "100000"))
    assert told(fake).status == DONE
    assert len(fake.paths) > 2 * few


def test_a_warning_makes_a_recommendation_a_part(fake: FakePrometheus) -> None:
    fake.answers["kube_node_status_allocatable"] = vector(warnings=["store x is away"])
    found = told(fake)
    assert found.status == CHANGES
    assert "PARTIAL: Prometheus warns: store x is away." in found.out


def test_a_gpu_that_is_offered_several_times_is_shared_whoever_is_named(fake: FakePrometheus) -> None:
    offered = {"node": "gpu-1", "resource": "nvidia_com_gpu"}
    fake.answers["kube_node_status_allocatable"] = vector((offered, "4"))
    with pytest.raises(Trouble, match="too little history"):
        told(fake)


def test_what_was_scraped_cannot_steer_the_terminal(fake: FakePrometheus) -> None:
    fake.answers["kube_node_status_allocatable"] = vector(warnings=["x\x1b[2J"])
    assert "\x1b" not in told(fake, "-v").out


@pytest.mark.parametrize("size", UNDECLARED)
def test_an_annotation_that_means_no_memory_is_left_out(fake: FakePrometheus, size: str) -> None:
    labels = {"namespace": "team-a", "pod": LABELS["pod"], "annotation_gpusharing_dev_gpu_memory": size}
    fake.answers["kube_pod_annotations"] = vector((labels, "1"))
    assert not lacks(told(fake, "-o", "json").out, f"'{size}'", "15Gi")


@pytest.mark.parametrize("size", DECLARED)
def test_a_declared_memory_is_read_as_every_quantity_of_kubernetes(fake: FakePrometheus, size: str) -> None:
    labels = {"namespace": "team-a", "pod": LABELS["pod"], "annotation_gpusharing_dev_gpu_memory": size}
    fake.answers["kube_pod_annotations"] = vector((labels, "1"))
    assert told(fake, "-o", "json").data["workloads"][0]["needBytes"] == DECLARED[size]


def test_what_simulated_agents_told_says_so_also_in_the_file(fake: FakePrometheus, tmp_path: Path) -> None:
    fake.answers["gpusharing_agent_simulated"] = vector(({"node": "gpu-1"}, "1"), ({"node": "gpu-9"}, "1"))
    name = tmp_path / "pool.yaml"
    said = told(fake, "-l", "gpusharing.dev/pool=b", "--write", str(name)).out.splitlines()[1]
    assert said.startswith("SIMULATED: gpu-1 has no real GPUs")
    assert "# SIMULATED: gpu-1 has no real GPUs" in name.read_text()
    assert told(fake, "-l", "gpusharing.dev/pool=b", "-o", "json").data["simulated"] == ["gpu-1"]
    (row,) = csv.DictReader(io.StringIO(told(fake, "-o", "csv").out))
    assert row["simulated"] == "yes"


def test_where_sharing_takes_fewer_gpus_it_says_so_and_writes_the_layout_all_the_same(fake: FakePrometheus) -> None:
    """Twelve pods of 1 GiB, each on a GPU of its own: two GPUs with MIG, one with MPS."""

    def pods(value: str) -> Answer:
        names = ({"UUID": f"GPU-{one}", "pod": f"llm-6b8f9c7d5-x2k4{one}"} for one in "bcdfghjklmnp")
        return success("matrix", [hours_of(value, 24, **name) for name in names])

    fake.ranges["quantile_over_time(0.95, DCGM"] = pods("0.02")
    fake.ranges["DCGM_FI_DEV_FB_USED"] = pods("1024")
    text = " ".join(told(fake, "--window", "24h").out.split())
    assert not lacks(text, "MPS", "12 clients", "12 pods", "1 GPU", "2")
    found = told(fake, "--window", "24h", "-o", "json").data
    assert found["recommendation"]["shared"] == {
        "mode": "MPS",
        "replicas": 12,
        "pods": 12,
        "gpus": 1,
        "gpusByThisLayout": 2,
        "neededBytes": found["workloads"][0]["needBytes"],
        "thereBytes": round(memory_of(H100) * GIB / 12),
        "active": pytest.approx(0.02, rel=0.06),
    }
    assert found["policy"]["spec"]["mode"] == "MIG"


def test_activity_of_a_device_that_several_hold_is_said_to_be_the_devices(fake: FakePrometheus) -> None:
    def both(mine: str, other: str) -> Answer:
        return success("matrix", [hours_of(mine, pod="llm-0"), hours_of(other, pod="chat-0")])

    sentence = "activity is measured for the whole device, which other pods also used"
    assert sentence not in " ".join(told(fake, "-v").out.split())
    fake.ranges["quantile_over_time(0.95, DCGM"] = both("0.2", "0.2")
    fake.ranges["DCGM_FI_DEV_FB_USED"] = both("6144", "1024")
    assert sentence in " ".join(told(fake, "-v").out.split())
    assert all(one["activeOfDevice"] for one in told(fake, "-o", "json").data["workloads"])


def test_an_instance_whose_compute_is_full_is_said_to_hold_its_pods_back(fake: FakePrometheus) -> None:
    instance = {"GPU_I_PROFILE": "2g.20gb", "GPU_I_ID": "5"}
    fake.ranges["DCGM_FI_DEV_FB_USED"] = hourly("6144", **instance)
    doubt = "uses all the compute of its slice, so it may need more"
    for busy, held_back, advice in (("0.3", False, "1g.10gb"), ("0.97", True, "2g.20gb")):
        fake.ranges["quantile_over_time(0.95, DCGM"] = hourly(busy, **instance)
        said = " ".join(told(fake, "-v").out.split())
        assert (doubt in said) == held_back
        assert (not lacks(said, "100% of the hours", "2g.20gb", "29%")) == held_back
        (one,) = told(fake, "-o", "json").data["workloads"]
        assert (one["advice"], one["doubts"]) == (advice, [doubt] if held_back else [])


PRICES: dict[str, tuple[dict[str, Answer], tuple[str, ...], float | None, str | None]] = {
    "nobody knows": ({}, (), None, None),
    "a flag has": ({}, ("--price", "2.00EUR"), 1460.0, "EUR"),
    "OpenCost has": ({"node_gpu_hourly_cost": vector(({"node": "gpu-1"}, "3.0"))}, (), 2190.0, "USD"),
    "a policy has": (
        {
            "increase(gpusharing_gpu_seconds_total": vector(({"node": "gpu-1", "policy": "pool-b"}, "86400")),
            "gpusharing_policy_gpu_hourly_price": vector(({"policy": "pool-b", "currency": "CHF"}, "1.0")),
        },
        (),
        730.0,
        "CHF",
    ),
    "another node has": ({"node_gpu_hourly_cost": vector(({"node": "gpu-7"}, "3.0"))}, (), None, None),
}


@pytest.mark.parametrize("name", PRICES)
def test_what_is_saved_has_the_price_that(fake: FakePrometheus, name: str) -> None:
    answers, typed, month, currency = PRICES[name]
    for query, value in (("quantile_over_time(0.95, DCGM", "0.1"), ("DCGM_FI_DEV_FB_USED", "6144")):
        held = [hours_of(value, UUID=f"GPU-{one}", pod=f"llm-6b8f9c7d5-x2k4{one}") for one in "bc"]
        fake.ranges[query] = success("matrix", held)
    # No subject has two prices at one time. The first text that is in a query counts.
    fake.ranges = {"> min by": vector(), **answers, **fake.ranges}
    found = told(fake, *typed, "-o", "json").data
    assert (found["gpusInUse"], found["recommendation"]["gpus"]) == (2, 1)
    assert found["recommendation"]["saving"] == {"gpus": 1, "perMonth": month, "currency": currency}
    text = " ".join(told(fake, *typed).out.split())
    money = "That saves 1 GPU. To see that in money, pass --price."
    if month:
        money = f"That saves 1 GPU, about {currency} {float(month):,.2f} a month ("
    assert money in text


def test_recommend_is_advise_from_prometheus(fake: FakePrometheus) -> None:
    words = ("--prometheus", fake.url, "--window", f"{HOURS}h", "-v")
    said = {verb: alone(*verb.split(), *words).out for verb in ("recommend", "advise", "advise --from-prometheus")}
    assert len(set(said.values())) == 1
    assert "Layout: 7x1g.10gb on every GPU" in said["advise"]


def test_the_peak_is_shown_beside_what_99_of_100_hours_stay_at(fake: FakePrometheus) -> None:
    hours = [[NOW - 3600 * hour, "60000" if hour == HOURS - 1 else "6144"] for hour in reversed(range(HOURS))]
    fake.ranges["DCGM_FI_DEV_FB_USED"] = success("matrix", [{"metric": LABELS, "values": hours}])
    out = told(fake).out
    header, row = (next(line for line in out.splitlines() if word in line) for word in ("PEAK MEM", "llm"))
    assert row[header.index("PEAK MEM") :].startswith("58.6Gi")
    assert "99% MEM" in header
    (cells,) = csv.DictReader(io.StringIO(told(fake, "-o", "csv").out))
    assert float(cells["highest_bytes"]) == pytest.approx(60000 * 2**20)


@pytest.fixture
def written(fake: FakePrometheus, tmp_path: Path) -> str:
    name = str(tmp_path / "pool.yaml")
    assert told(fake, "-l", "gpusharing.dev/pool=b", "--write", name).status == DONE
    return name


@pytest.fixture
def proposed(written: str) -> JSON:
    found: JSON = yaml.safe_load(Path(written).read_text())
    return found


@virtually
async def test_the_operator_plans_what_was_written_and_waits_for_an_approval(written: str) -> None:
    async with operated(1, serving=FULL) as scene:
        plan = await ask(scene.e.cluster, "plan", "-f", written)
        assert plan.status == CHANGES
        assert "7x1g.10gb" in plan.out
        assert "Accepted" in plan.out


@virtually
async def test_its_plan_is_what_plan_tells_of_the_file_and_nothing_is_written(written: str, proposed: JSON) -> None:
    scope = scope_of(rows_of("gpusharing.dev/pool=b"), frozenset({"gpu-1"}), "gpusharing.dev/pool=b")
    async with operated(1, serving=FULL) as scene:
        plan = await ask(scene.e.cluster, "plan", "-f", written, "-o", "json")
        session = Session(scene.e.cluster.client(ME), "context test", now=virtual_now)
        effect = await find_effect(session, scope, proposed)
        assert writes(scene.e.cluster) == []
    assert isinstance(effect, Planned)
    assert plan.data == {"apiVersion": API, "kind": "Plan", **as_data(effect, "test")}
    text = plain(describe_effect(effect, PrintOptions()))
    assert "7x1g.10gb" in text
    assert "ApprovalNeeded" in text
    assert "- nvidia.com/gpu: 2 -> 0" in text


@virtually
async def test_what_keeps_a_plan_from_being_made_is_told_and_no_error(proposed: JSON) -> None:
    async with operated(1) as scene:
        session = Session(scene.e.cluster.client(ME), "context test", now=virtual_now)
        effect = await find_effect(session, whole_fleet(""), proposed)
        assert isinstance(effect, str)
        assert not lacks(effect, "no node", "selector label")


def test_with_an_address_of_prometheus_nothing_is_planned_and_it_says_so(fake: FakePrometheus) -> None:
    out = told(fake, "-l", "gpusharing.dev/pool=b").out
    assert not lacks(out, "plan is not shown", "--prometheus", "kubectl gpusharing plan -f FILE")
    found = told(fake, "-l", "gpusharing.dev/pool=b", "-o", "json").data
    assert found["plan"] is None
    assert found["notPlanned"].startswith("with --prometheus, the cluster is not contacted")


def test_without_the_operator_there_is_an_answer_and_no_plan(desk: Desk, fake: FakePrometheus) -> None:
    behind(desk, fake, {"/api/v1/nodes": listed(node("gpu-1", zone="a"))})
    said = desk.type(*RECOMMEND, "-l", "zone=a")
    assert (said.status, said.err) == (DONE, "")
    assert "Layout: 7x1g.10gb on every GPU" in said.out
    assert "Its plan is not shown: " in said.out
    assert "the operator is not installed" in said.out


def test_an_agent_also_tells_of_another_model_on_a_node(fake: FakePrometheus) -> None:
    infos = [("GPU-1", "NVIDIA H100 80GB HBM3"), ("GPU-2", "NVIDIA A30")]
    fake.answers["gpusharing_agent_gpu_info"] = vector(
        *(({"node": "gpu-1", "uuid": uuid, "product": product}, str(NOW)) for uuid, product in infos)
    )
    with pytest.raises(Trouble, match=r"also has GPUs of another model \(NVIDIA"):
        told(fake, "--card", "h100-80gb")
