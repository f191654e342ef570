"""`free --usage`: who uses this shared GPU right now, from the agents or from Prometheus (usage/read/present.py)."""

import json
from typing import Any

import pytest
from tests.cli.desk import Desk, Said
from tests.cli.test_free import NODES, PODS, SHARED, container, node, pod

from gpusharing.cli.shell.troubles import CHANGES, DONE, FAILED

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
    """The pod of the agent on a node."""
    raw = pod(
        f"gpusharing-agent/{name}",
        on,
        {"name": "agent", "ports": [{"name": "metrics", "containerPort": 8080}]},
    )
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
    """What `free --usage` prints."""
    return desk.type("free", "--usage", *words)


TABLE = """\
SIMULATED: gpu-1 has no real GPUs, and the numbers about it here come from a simulator.
POD            NODE   RESOURCE               REQUESTED  WAITING  GPU  MEMORY  OF      SM
team-b/waits          nvidia.com/gpu.shared  0          1
team-a/llm-0   gpu-1  nvidia.com/gpu.shared  1          0        0    30.0Gi  80.0Gi  62%
team-b/hidden  gpu-1  nvidia.com/gpu.shared  1          0        0         ?  80.0Gi    ?
team-b/ranker  gpu-1  nvidia.com/gpu.shared  1          0        0     5.0Gi  80.0Gi    ?

To see why a pod is waiting: kubectl gpusharing why team-b/waits

memory and SM use are from the agents, read a moment ago.
"""


def test_the_agents_say_who_uses_a_shared_gpu_right_now(shared: Desk) -> None:
    said = use(shared)
    assert (said.status, said.err) == (DONE, "")
    assert said.out == TABLE


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
    assert (
        "PARTIAL: memory and SM use are unknown: you are not allowed to query the agents: not allowed to get pods/proxy"
        in text
    )
    assert "Prometheus could not be used instead: no Service in context desk looks like a Prometheus" in text
    assert "team-a/llm-0 gpu-1 nvidia.com/gpu.shared 1 0 ? ? ? ?" in text


PROMETHEUS = "/api/v1/namespaces/monitoring/services/prometheus:9090/proxy/api/v1/query"


def known(desk: Desk, **values: str) -> None:
    """The agent may not be asked, and Prometheus has these metrics of team-a/llm-0, with the labels that it renames."""
    labels = {
        "exported_namespace": "team-a",
        "exported_pod": "llm-0",
        "node": "gpu-1",
        "gpu": "0",
        "uuid": "GPU-1",
    }
    series: list[JSON] = [
        {"metric": {"__name__": f"gpusharing_{name}", **labels}, "value": [1_790_000_000, value]}
        for name, value in values.items()
    ]
    desk.server.texts = {}
    desk.server.refusals = {AGENT: (403, "pods is forbidden")}
    answer = {"status": "success", "data": {"resultType": "vector", "result": series}}
    desk.server.objects = {PROMETHEUS: answer}


def test_without_the_right_prometheus_answers(shared: Desk) -> None:
    known(shared, pod_slices="1", pod_memory_used_bytes=str(7 * GIB), pod_sm_ratio="0.5")
    said = use(shared, "--service", "monitoring/prometheus:9090", "-o", "json")
    assert (said.status, said.err) == (DONE, "")
    data = json.loads(said.out)
    (row,) = (row for row in data["rows"] if row["pod"] == "team-a/llm-0")
    assert (row["memoryBytes"], row["smRatio"]) == (7 * GIB, 0.5)
    assert "as last scraped, because you are not allowed to query the agents" in data["notes"][0]


def test_a_prometheus_that_scrapes_no_agent_is_named(shared: Desk) -> None:
    known(shared)
    said = use(shared, "--service", "monitoring/prometheus:9090")
    assert said.status == CHANGES
    assert "has no gpusharing_pod_slices series, and you are not allowed to query the agents" in " ".join(
        said.out.split()
    )


def test_an_agent_that_does_not_answer_is_named(shared: Desk) -> None:
    shared.server.texts = {}
    shared.server.refusals = {AGENT: (503, "no route to host")}
    shared.server.lists[SERVICES] = []
    text = " ".join(use(shared).out.split())
    assert (
        "the agent on gpu-1 did not respond: the API server cannot get pods/proxy/metrics: no route to host"
        in text
    )


def test_agents_that_report_no_pods_are_named(shared: Desk) -> None:
    shared.server.texts = {AGENT: "other_metric 1\n"}
    shared.server.lists[SERVICES] = []
    said = use(shared)
    assert said.status == CHANGES
    assert "PARTIAL: memory and SM use are unknown: the agents report no pods." in said.out


def test_of_two_agents_the_one_that_answers_counts(shared: Desk) -> None:
    shared.server.lists[NODES].append(node("gpu-2"))
    shared.server.lists[PODS] += [agent("agent-2", "gpu-2"), pod("team-c/far", "gpu-2", container(gpu=1))]
    shared.server.lists[SERVICES] = []
    text = " ".join(use(shared).out.split())
    assert "PARTIAL: memory and SM use of some pods are unknown: the agent on gpu-2 did not respond" in text
    assert "team-a/llm-0 gpu-1 nvidia.com/gpu.shared 1 0 0 30.0Gi 80.0Gi 62%" in text


def test_of_very_many_nodes_prometheus_is_asked_at_once(shared: Desk) -> None:
    for number in range(2, 103):
        shared.server.lists[NODES].append(node(f"gpu-{number}"))
        shared.server.lists[PODS] += [
            agent(f"agent-{number}", f"gpu-{number}"),
            pod(f"team-c/p-{number}", f"gpu-{number}", container(gpu=1)),
        ]
    known(shared, pod_slices="1", pod_memory_used_bytes=str(GIB))
    said = use(shared, "--service", "monitoring/prometheus:9090")
    assert "because 102 agents are too many to query one by one" in " ".join(said.out.split())
    assert [call for call in shared.server.asked if "/pods/" in call] == []


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (
            ("--usage", "--by", "node"),
            "--usage shows what each pod uses: leave out --by node, or write --by pod",
        ),
        (
            ("--service", "a/b:1"),
            "--service only works with --usage: add --usage, or leave out --service",
        ),
    ],
)
def test_flags_that_do_not_fit_are_refused_before_anything_is_read(
    shared: Desk, words: tuple[str, ...], answer: str
) -> None:
    said = shared.type("free", *words)
    assert (said.status, said.out, said.err) == (FAILED, "", f"error: {answer}\n")
    assert shared.server.asked == []
