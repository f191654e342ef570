"""`free --usage`: who uses this shared GPU right now, from the agents or from Prometheus (kubectl_gpusharing/usage/free.py)."""

import json
from typing import Any

import pytest
from tests.cli.desk import END, Desk, Said, read_until, terminal
from tests.cli.test_free import NODES, PODS, SHARED, container, node, pod
from tests.wording import lacks

from kubectl_gpusharing.shell.troubles import CHANGES, DONE, FAILED

JSON = dict[str, Any]
SERVICES = "/api/v1/services"
GIB = 2**30
DEVICE = 'gpu="0",uuid="GPU-1",profile=""'
PAGE = f"""\
# HELP gpusharing_pod_slices Slices of a device that are allocated to a pod.
# TYPE gpusharing_pod_slices gauge
gpusharing_pod_slices{{namespace="team-a",pod="llm-0",{DEVICE},resource="{SHARED}"}} 1.0
gpusharing_pod_slices{{namespace="team-b",pod="ranker",{DEVICE},resource="{SHARED}"}} 1.0
gpusharing_pod_slices{{namespace="team-b",pod="hidden",{DEVICE},resource="{SHARED}"}} 1.0
gpusharing_pod_memory_used_bytes{{namespace="team-a",pod="llm-0",{DEVICE}}} {30 * GIB:.10e}
gpusharing_pod_memory_used_bytes{{namespace="team-b",pod="ranker",{DEVICE}}} {5 * GIB}
gpusharing_pod_sm_ratio{{namespace="team-a",pod="llm-0",{DEVICE}}} 0.62
gpusharing_device_memory_bytes{{{DEVICE}}} {80 * GIB}
gpusharing_agent_simulated 1.0
other_metric{{uuid="GPU-1"}} NaN
"""
AGENT = "/api/v1/namespaces/gpusharing-agent/pods/agent-1:8080/proxy/metrics"


def agent(name: str, on: str) -> JSON:
    raw = pod(f"gpusharing-agent/{name}", on, {"name": "agent", "ports": [{"name": "metrics", "containerPort": 8080}]})
    raw["metadata"]["labels"] = {"app.kubernetes.io/name": "gpusharing-agent"}
    return raw


@pytest.fixture
def shared(desk: Desk) -> Desk:
    """One shared GPU with three pods, one of which the agent cannot see into, and an agent that answers."""
    desk.server.lists = {
        NODES: [node("gpu-1", allocatable={SHARED: "4"})],
        PODS: [
            agent("agent-1", "gpu-1"),
            pod("team-a/llm-0", "gpu-1", container(shared=1)),
            pod("team-b/hidden", "gpu-1", container(shared=1)),
            pod("team-b/ranker", "gpu-1", container(shared=1)),
            pod("team-b/waits", "", container(shared=1)),
        ],
    }
    desk.server.texts = {AGENT: PAGE}
    return desk


def use(desk: Desk, *words: str) -> Said:
    return desk.type("free", "--usage", *words)


TABLE = """\
SIMULATED: gpu-1 has no real GPUs, and the numbers about it here come from a simulator.
POD            NODE   RESOURCE               HELD  WAITING  GPU  MEMORY  OF      SM
team-b/waits          nvidia.com/gpu.shared  0     1
team-a/llm-0   gpu-1  nvidia.com/gpu.shared  1     0        0    30.0Gi  80.0Gi  62%
team-b/hidden  gpu-1  nvidia.com/gpu.shared  1     0        0         ?  80.0Gi    ?
team-b/ranker  gpu-1  nvidia.com/gpu.shared  1     0        0     5.0Gi  80.0Gi    ?

To see why a pod is waiting: kubectl gpusharing why team-b/waits

memory and SM use are from the agents, read a moment ago.
"""


def test_agents_that_need_a_token_are_not_asked_and_the_answer_says_so(shared: Desk) -> None:
    """The API server removes the token of a user before its proxy passes the request on."""
    (container,) = shared.server.lists[PODS][0]["spec"]["containers"]
    container["env"] = [{"name": "METRICS_SECURE", "value": "true"}]
    shared.server.texts = {}
    shared.server.lists[SERVICES] = []
    said = use(shared)
    assert said.status == CHANGES
    assert not lacks(said.out, "unknown", "gpu-1", "token", "Prometheus")
    assert f"GET {AGENT}" not in shared.server.asked
    known(shared, pod_slices="1", pod_memory_used_bytes=str(7 * GIB), pod_sm_ratio="0.5")
    said = use(shared, "--service", "monitoring/prometheus:9090", "-n", "team-a", "-o", "json")
    assert said.status == DONE
    assert not lacks(json.loads(said.out)["notes"][0], "last scraped", "gpu-1", "token")


def test_the_agents_say_who_uses_a_shared_gpu_right_now(shared: Desk) -> None:
    said = use(shared)
    assert (said.status, said.err) == (DONE, "")
    assert said.out == TABLE


def test_each_number_has_its_name_where_there_is_no_room_for_a_table(shared: Desk) -> None:
    with terminal(shared, "free", "--usage", "--no-color") as (_, screen):
        text = " ".join(read_until(screen, END).split())
    assert (
        "team-a/llm-0, gpu-1, nvidia.com/gpu.shared, held 1, waiting 0, gpu 0, memory 30.0Gi, of 80.0Gi, sm 62%" in text
    )


def test_programs_get_bytes_and_ratios_and_null_for_what_is_unknown(shared: Desk) -> None:
    data = json.loads(use(shared, "-o", "json", "-n", "team-a").out)
    (row,) = data["rows"]
    assert row == {
        "pod": "team-a/llm-0",
        "node": "gpu-1",
        "resource": SHARED,
        "requested": 1,
        "waiting": 0,
        "gpu": 0,
        "profile": "",
        "memoryBytes": 30 * GIB,
        "deviceMemoryBytes": 80 * GIB,
        "smRatio": 0.62,
    }
    header, *lines = use(shared, "-o", "csv").out.splitlines()
    assert header == "pod,node,resource,requested,waiting,gpu,profile,memoryBytes,deviceMemoryBytes,smRatio"
    assert f"team-b/hidden,gpu-1,{SHARED},1,0,0,,,{80 * GIB}," in lines
    shared.server.lists[PODS] = []
    assert use(shared, "-o", "csv").out == f"{header}\n"


def test_only_the_agents_beside_the_pods_of_the_answer_are_asked(shared: Desk) -> None:
    shared.server.lists[NODES].append(node("gpu-2"))
    shared.server.lists[PODS].append(agent("agent-2", "gpu-2"))
    use(shared)
    assert [call for call in shared.server.asked if "/proxy" in call] == [f"GET {AGENT}"]


def test_without_the_right_and_without_prometheus_a_sentence_says_what_is_missing(shared: Desk) -> None:
    shared.server.texts = {}
    shared.server.refusals = {AGENT: (403, "pods is forbidden")}
    shared.server.lists[SERVICES] = []
    said = use(shared)
    assert (said.status, said.err) == (CHANGES, "")
    text = " ".join(said.out.split())
    assert not lacks(text, "PARTIAL", "gpu-1", "get pods/proxy")
    assert not lacks(text, "no Service", "context desk")
    assert "team-a/llm-0 gpu-1 nvidia.com/gpu.shared 1 0 ? ? ? ?" in text


PROMETHEUS = "/api/v1/namespaces/monitoring/services/prometheus:9090/proxy/api/v1/query"


def second(desk: Desk) -> None:
    desk.server.lists[NODES].append(node("gpu-2"))
    desk.server.lists[PODS] += [agent("agent-2", "gpu-2"), pod("team-c/far", "gpu-2", container(gpu=1))]


def stored(desk: Desk, *samples: tuple[str, str, str, str]) -> None:
    """What Prometheus has: metric, pod, node and value of each series, with the labels that it renames."""
    series: list[JSON] = []
    for metric, ref, on, value in samples:
        namespace, _, name = ref.partition("/")
        labels = {"exported_namespace": namespace, "exported_pod": name, "node": on, "uuid": f"GPU-of-{on}"}
        labels |= {"__name__": f"gpusharing_{metric}", "gpu": "0"}
        series.append({"metric": labels, "value": [1_790_000_000, value]})
    answer = {"status": "success", "data": {"resultType": "vector", "result": series}}
    desk.server.objects = {PROMETHEUS: answer}


def known(desk: Desk, **values: str) -> None:
    """The agent may not be asked, and Prometheus has these metrics of team-a/llm-0."""
    desk.server.texts = {}
    desk.server.refusals = {AGENT: (403, "pods is forbidden")}
    stored(desk, *((metric, "team-a/llm-0", "gpu-1", value) for metric, value in values.items()))


def test_without_the_right_prometheus_answers(shared: Desk) -> None:
    known(shared, pod_slices="1", pod_memory_used_bytes=str(7 * GIB), pod_sm_ratio="0.5")
    said = use(shared, "--service", "monitoring/prometheus:9090", "-n", "team-a", "-o", "json")
    assert (said.status, said.err) == (DONE, "")
    data = json.loads(said.out)
    (row,) = (row for row in data["rows"] if row["pod"] == "team-a/llm-0")
    assert (row["memoryBytes"], row["smRatio"]) == (7 * GIB, 0.5)
    assert not lacks(data["notes"][0], "last scraped", "gpu-1")


def test_a_prometheus_that_scrapes_no_agent_is_named(shared: Desk) -> None:
    known(shared)
    said = use(shared, "--service", "monitoring/prometheus:9090")
    assert said.status == CHANGES
    lacks = "has no series gpusharing_pod_slices of pods on gpu-1, and you may not ask the agent on gpu-1"
    assert lacks in " ".join(said.out.split())


def test_an_agent_that_does_not_answer_is_named(shared: Desk) -> None:
    shared.server.texts = {}
    shared.server.refusals = {AGENT: (503, "no route to host")}
    shared.server.lists[SERVICES] = []
    text = " ".join(use(shared).out.split())
    assert not lacks(text, "agent on gpu-1", "no route to host")


def test_agents_that_report_no_pods_are_named(shared: Desk) -> None:
    shared.server.texts = {AGENT: "other_metric 1\n"}
    shared.server.lists[SERVICES] = []
    said = use(shared)
    assert said.status == CHANGES
    assert not lacks(said.out, "PARTIAL", "gpu-1", "no pods")


def test_of_two_agents_the_one_that_answers_counts(shared: Desk) -> None:
    second(shared)
    shared.server.lists[SERVICES] = []
    text = " ".join(use(shared).out.split())
    assert not lacks(text, "PARTIAL", "some pods", "gpu-2")
    assert "team-a/llm-0 gpu-1 nvidia.com/gpu.shared 1 0 0 30.0Gi 80.0Gi 62%" in text


def test_prometheus_adds_what_silent_agents_did_not_say_and_replaces_nothing(shared: Desk) -> None:
    second(shared)
    stored(
        shared,
        ("pod_memory_used_bytes", "team-a/llm-0", "gpu-1", "1"),
        ("pod_memory_used_bytes", "team-c/far", "gpu-1", "2"),
        ("pod_memory_used_bytes", "team-c/far", "gpu-2", str(9 * GIB)),
        ("agent_simulated", "", "gpu-9", "1"),
    )
    said = use(shared, "--service", "monitoring/prometheus:9090", "-o", "json")
    data = json.loads(said.out)
    used = {row["pod"]: row["memoryBytes"] for row in data["rows"]}
    assert (used["team-a/llm-0"], used["team-c/far"]) == (30 * GIB, 9 * GIB)
    assert [row["gpu"] for row in data["rows"] if row["pod"] == "team-c/far"] == [0]
    assert (said.status, data["unknown"], data["simulated"]) == (DONE, [], ["gpu-1"])
    assert not lacks(data["notes"][0], "agents")
    assert not lacks(data["notes"][1], "other pods", "Service monitoring/prometheus:9090")


def test_without_series_of_the_silent_agents_the_other_answers_stay(shared: Desk) -> None:
    second(shared)
    stored(shared, ("pod_memory_used_bytes", "team-a/llm-0", "gpu-1", "1"))
    said = use(shared, "--service", "monitoring/prometheus:9090")
    text = " ".join(said.out.split())
    assert said.status == CHANGES
    assert "team-a/llm-0 gpu-1 nvidia.com/gpu.shared 1 0 0 30.0Gi 80.0Gi 62%" in text
    assert not lacks(
        text, "PARTIAL", "some pods", "Service monitoring/prometheus:9090", "gpusharing_pod_slices", "gpu-2"
    )


def test_a_node_without_an_agent_is_named_beside_one_that_answers(shared: Desk) -> None:
    shared.server.lists[NODES].append(node("gpu-2"))
    shared.server.lists[PODS].append(pod("team-c/far", "gpu-2", container(gpu=1)))
    shared.server.lists[SERVICES] = []
    said = use(shared)
    assert said.status == CHANGES
    assert not lacks(said.out, "(gpusharing-agent)", "gpu-2")


def test_different_reasons_are_all_given(shared: Desk) -> None:
    second(shared)
    shared.server.refusals = {AGENT: (403, "pods is forbidden")}
    shared.server.lists[SERVICES] = []
    text = " ".join(use(shared).out.split())
    assert not lacks(text, "agent on gpu-1", "not allowed")
    assert "the agent on gpu-2 did not respond" in text


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "1e999", "-1", "many"])
def test_a_sample_that_is_no_number_of_bytes_is_unknown(shared: Desk, value: str) -> None:
    wrong = PAGE.replace(str(5 * GIB), value).replace(str(80 * GIB), value).replace("0.62", value)
    shared.server.texts = {AGENT: wrong}
    said = use(shared, "-o", "json")
    assert (said.status, said.err) == (DONE, "")
    rows = {row["pod"]: row for row in json.loads(said.out)["rows"]}
    assert [rows["team-b/ranker"][name] for name in ("gpu", "memoryBytes")] == [0, None]
    assert rows["team-a/llm-0"]["memoryBytes"] == 30 * GIB
    assert (rows["team-a/llm-0"]["deviceMemoryBytes"], rows["team-a/llm-0"]["smRatio"]) == (None, None)


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1"])
def test_a_value_in_prometheus_that_is_no_number_is_unknown(shared: Desk, value: str) -> None:
    known(shared, pod_slices="1", pod_memory_used_bytes=value, pod_sm_ratio=value)
    said = use(shared, "--service", "monitoring/prometheus:9090", "-n", "team-a", "-o", "json")
    (row,) = json.loads(said.out)["rows"]
    assert (said.status, row["gpu"], row["memoryBytes"], row["smRatio"]) == (DONE, 0, None, None)


def test_each_device_is_shown_once_with_the_resource_that_it_is_held_as(shared: Desk) -> None:
    mig = "nvidia.com/mig-1g.10gb"
    both = {"name": "main", "resources": {"limits": {SHARED: "1", mig: "1"}}}
    shared.server.lists[PODS] = [agent("agent-1", "gpu-1"), pod("team-a/two", "gpu-1", both)]
    of = 'namespace="team-a",pod="two",gpu="0"'
    shared.server.texts = {
        AGENT: f'gpusharing_pod_memory_used_bytes{{{of},uuid="MIG-1"}} 7\n'
        f'gpusharing_pod_slices{{{of},uuid="MIG-1",resource="{mig}"}} 1.0\n'
        f'gpusharing_pod_slices{{{of},uuid="GPU-2",resource="{SHARED}"}} 1.0\n'
        f'gpusharing_pod_memory_used_bytes{{{of},uuid="GPU-3"}} 9\n'
    }
    rows = json.loads(use(shared, "-o", "json").out)["rows"]
    found = sorted((row["resource"], row["memoryBytes"] or 0) for row in rows)
    assert found == [(SHARED, 0), (SHARED, 9), (mig, 7)]


def test_of_very_many_nodes_prometheus_is_asked_at_once(shared: Desk) -> None:
    for number in range(2, 103):
        shared.server.lists[NODES].append(node(f"gpu-{number}"))
        shared.server.lists[PODS] += [
            agent(f"agent-{number}", f"gpu-{number}"),
            pod(f"team-c/p-{number}", f"gpu-{number}", container(gpu=1)),
        ]
    known(shared, pod_slices="1", pod_memory_used_bytes=str(GIB))
    said = use(shared, "--service", "monitoring/prometheus:9090")
    assert not lacks(said.out, "102")
    assert [call for call in shared.server.asked if "/pods/" in call] == []


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("--usage", "--by", "node"), "--usage shows what each pod uses: leave out --by node, or write --by pod"),
        (("--service", "a/b:1"), "--service only works with --usage: add --usage, or leave out --service"),
    ],
)
def test_flags_that_do_not_fit_are_refused_before_anything_is_read(
    shared: Desk, words: tuple[str, ...], answer: str
) -> None:
    said = shared.type("free", *words)
    assert (said.status, said.out, said.err) == (FAILED, "", f"error: {answer}\n")
    assert shared.server.asked == []
