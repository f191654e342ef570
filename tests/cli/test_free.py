"""`free`: who holds what and what is free, from Nodes and Pods, with whatever rights there are (kubectl_gpusharing/usage/free.py, kubectl_gpusharing/usage/holdings.py)."""

import asyncio
import csv
import io
import json
import re
from collections import Counter
from typing import Any

import pytest
import yaml
from tests.cli.asking import ask, operated
from tests.cli.desk import END, GPUNODES, POLICIES, Desk, Said, read_until, terminal
from tests.embedded.scene import MIXED
from tests.fakes.virtualtime import virtually
from tests.wording import lacks

from kubectl_gpusharing.shell.troubles import CHANGES, DONE, FAILED, Denied
from kubectl_gpusharing.usage.free import read_inventory

JSON = dict[str, Any]
NODES, PODS, TEAM_A = "/api/v1/nodes", "/api/v1/pods", "/api/v1/namespaces/team-a/pods"
GPU, SHARED, MIG = "nvidia.com/gpu", "nvidia.com/gpu.shared", "nvidia.com/mig-3g.40gb"
DENIED = 'pods is forbidden: User "ann" cannot list resource "pods" in API group "" at the cluster scope'


def node(name: str, *, ready: bool = True, policy: str = "", **more: Any) -> JSON:
    """A Node; `more` holds `allocatable`, `taints`, `unschedulable`, `annotations` and `labels`."""
    labels = {**({"gpusharing.dev/policy": policy} if policy else {}), **more.get("labels", {})}
    return {
        "metadata": {"name": name, "labels": labels, "annotations": more.get("annotations", {})},
        "spec": {"taints": more.get("taints", []), "unschedulable": more.get("unschedulable", False)},
        "status": {
            "allocatable": {"cpu": "64", **more.get("allocatable", {GPU: "8"})},
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


def container(**limits: int) -> JSON:
    names = {"gpu": GPU, "shared": SHARED, "mig": MIG}
    return {"name": "main", "resources": {"limits": {names[key]: str(n) for key, n in limits.items()}}}


def pod(name: str, on: str, *containers: JSON, phase: str = "Running", **spec: Any) -> JSON:
    """A pod `NAMESPACE/NAME` on a node; an empty one stands for a pod that waits."""
    namespace, _, own = name.partition("/")
    return {
        "metadata": {"namespace": namespace, "name": own, "creationTimestamp": "2026-11-20T09:00:00Z"},
        "spec": {"nodeName": on, "containers": list(containers), **spec},
        "status": {
            "phase": phase if on else "Pending",
            "conditions": [] if on else [{"type": "PodScheduled", "status": "False", "message": "0/4 fit"}],
        },
    }


def show(desk: Desk, *words: str) -> Said:
    return desk.type("free", *words)


def told(desk: Desk, *words: str) -> JSON:
    said = show(desk, *words, "-o", "json")
    assert said.err == ""
    data: JSON = json.loads(said.out)
    return data


def rows(desk: Desk, *words: str) -> dict[str, JSON]:
    """The rows by their first column, or by that and the resource where one name has several."""
    found = told(desk, *words)["rows"]
    return {"/".join(dict.fromkeys((next(iter(row.values())), row["resource"]))): row for row in found}


@pytest.fixture
def fleet(desk: Desk) -> Desk:
    """Four nodes of two policies: one is cordoned, one is being changed; team-a and team-b hold some, and wait."""
    desk.server.lists = {
        NODES: [
            node("gpu-1", policy="pool-a"),
            node("gpu-2", policy="pool-a", taints=[{"key": "team", "value": "b", "effect": "NoSchedule"}]),
            node("gpu-3", policy="pool-b", allocatable={MIG: "4"}, annotations={"gpusharing.dev/fence": "{}"}),
            node("gpu-4", allocatable={GPU: "2"}, unschedulable=True),
            node("cpu-1", allocatable={}),
        ],
        PODS: [
            pod("team-a/llm-0", "gpu-1", container(gpu=6)),
            pod("team-b/ranker", "gpu-2", container(gpu=3)),
            pod("team-b/slice", "gpu-3", container(mig=1)),
            pod("team-a/done", "gpu-1", container(gpu=2), phase="Succeeded"),
            pod("team-a/web", "cpu-1", container()),
            pod("team-a/big", "", container(gpu=8)),
        ],
    }
    return desk


def test_one_row_for_each_resource_says_what_fits_and_cordoned_and_fenced_nodes_are_shown_apart(fleet: Desk) -> None:
    data = told(fleet)
    found = {row["resource"]: row for row in data["rows"]}
    assert found[GPU] == {
        "resource": GPU,
        "device": None,
        "requested": 9,
        "allocatable": 18,
        "free": 7,
        "largest": 5,
        "closed": 2,
        "waiting": 8,
    }
    assert (found[MIG]["requested"], found[MIG]["free"], found[MIG]["closed"]) == (1, 0, 3)
    assert data["closed"] == [
        {"node": "gpu-3", "state": "the operator's change is unfinished", "unused": {MIG: 3}},
        {"node": "gpu-4", "state": "cordoned", "unused": {GPU: 2}},
    ]
    (note,) = data["notes"]
    assert not lacks(note, f"5 {GPU}", "team=b:NoSchedule")
    assert yaml.safe_load(show(fleet, "-o", "yaml").out) == data
    table = list(csv.reader(io.StringIO(show(fleet, "-o", "csv").out)))
    assert table[0] == ["resource", "device", "requested", "allocatable", "free", "largest", "closed", "waiting"]
    assert table[1] == [GPU, "", "9", "18", "7", "5", "2", "8"]


TABLE = """\
RESOURCE                HELD  TOTAL  FREE  LARGEST FIT  CLOSED  WAITING
nvidia.com/gpu          9     18     7     5            2       8
nvidia.com/mig-3g.40gb  1      4     0     0            3       0

CLOSED NODE  STATE                                NOT COUNTED AS FREE
gpu-3        the operator's change is unfinished  3 nvidia.com/mig-3g.40gb
gpu-4        cordoned                             2 nvidia.com/gpu

WAITING POD  REQUESTS          SINCE
team-a/big   8 nvidia.com/gpu  AGE
To see why a pod is waiting: kubectl gpusharing why team-a/big

5 nvidia.com/gpu of the free devices are only for pods that tolerate the taint team=b:NoSchedule.
"""


H100, A30 = "NVIDIA-H100-80GB-HBM3", "NVIDIA-A30"
SHARES = {"nvidia.com/gpu.product": f"{H100}-SHARED", "nvidia.com/gpu.replicas": "4"}
SINGLE = {"nvidia.com/gpu.product": f"{H100}-MIG-1g.10gb", "nvidia.com/gpu.replicas": "1"}


@pytest.fixture
def several(desk: Desk) -> Desk:
    """Nodes whose nvidia.com/gpu is a whole H100, a whole A30, a share of an H100, an instance of one, or unknown."""
    whole = [{"nvidia.com/gpu.product": product, "nvidia.com/gpu.replicas": "1"} for product in (H100, A30)]
    counts = {
        "h100": (whole[0], 8),
        "a30": (whole[1], 4),
        "shares": (SHARES, 32),
        "single": (SINGLE, 56),
        "new": ({}, 2),
    }
    desk.server.lists = {
        NODES: [
            node(name, policy="pool-a", labels=labels, allocatable={GPU: str(count)})
            for name, (labels, count) in counts.items()
        ],
        PODS: [
            pod("team-a/llm", "h100", container(gpu=3)),
            pod("team-a/small", "shares", container(gpu=1)),
            pod("team-a/big", "", container(gpu=8)),
        ],
    }
    return desk


@pytest.mark.parametrize("by", ["resource", "policy"])
def test_whole_gpus_shares_and_models_are_never_added(several: Desk, by: str) -> None:
    found = {
        row["device"]: (row["requested"], row["allocatable"], row["free"]) for row in told(several, "--by", by)["rows"]
    }
    waits = {"any": (0, 0, 0)} if by == "resource" else {}
    assert found == waits | {
        None: (0, 2, 2),
        "A30": (0, 4, 4),
        "H100-80GB-HBM3": (3, 8, 5),
        "H100-80GB-HBM3-MIG-1g.10gb": (0, 56, 56),
        "1/4 H100-80GB-HBM3": (1, 32, 31),
    }


def test_what_a_namespace_holds_is_not_added_either(several: Desk) -> None:
    found = told(several, "--by", "namespace")["rows"]
    assert {(row["device"], row["requested"], row["waiting"]) for row in found} == {
        ("1/4 H100-80GB-HBM3", 1, 0),
        ("H100-80GB-HBM3", 3, 0),
        ("any", 0, 8),
    }


@pytest.mark.parametrize("by", ["resource", "node", "policy", "namespace", "pod"])
def test_at_80_columns_nothing_is_cut_or_left_out(several: Desk, by: str) -> None:
    labels = {"nvidia.com/gpu.product": H100}
    several.server.lists[NODES] += [
        node("a-node-of-a-cloud.example.internal", allocatable={MIG: "7"}, labels=labels, unschedulable=True)
    ]
    with terminal(several, "free", "--by", by, "-n", "team-a") as (_, screen):
        narrow = re.sub(r"\x1b\[[\d;]*m", "", read_until(screen, END))
    assert max(map(len, narrow.splitlines())) <= 80
    assert ".." not in narrow
    values = {
        str(value) for row in told(several, "--by", by, "-n", "team-a")["rows"] for value in row.values() if value
    }
    assert {one for one in values if one not in narrow} <= {"any"}


def test_a_name_that_is_longer_than_the_line_is_not_cut_in_two(desk: Desk) -> None:
    ref = f"{'team-' * 12}a/{'model-' * 10}b"
    desk.server.lists = {PODS: [pod(ref, "", container(gpu=1))], NODES: [node("gpu-1")]}
    with terminal(desk, "free", "--no-color") as (_, screen):
        assert read_until(screen, END).count(ref) == 2, "in the list, and in the command that explains it"


@pytest.mark.parametrize("by", ["resource", "policy"])
@pytest.mark.parametrize("count", [3, 25])
def test_at_80_columns_what_is_closed_is_told_by_policy_and_device(desk: Desk, by: str, count: int) -> None:
    """Where the list of the nodes does not tell all of it, the sums do."""
    names = [f"gpu-{number}" for number in range(2 * count)]
    desk.server.lists = {
        PODS: [],
        NODES: [
            node(name, policy=f"pool-{number % 2}", labels={} if number % 2 else SHARES, unschedulable=True)
            for number, name in enumerate(names)
        ],
    }
    with terminal(desk, "free", "--by", by, "--no-color") as (_, screen):
        text = " ".join(read_until(screen, END).split())
    if count > 20:
        assert text.count(f"closed {8 * count}") == 2
    else:
        listed = [f"{name} {'pool-0 ' * (by == 'policy')}cordoned 8 {GPU} (1/4 {H100[7:]})" for name in names[::2]]
        assert not lacks(text, *listed)


def test_a_person_sees_a_table_what_is_closed_and_who_waits_and_neither_prometheus_nor_the_operator_is_asked(
    fleet: Desk,
) -> None:
    said = show(fleet)
    assert (said.status, said.err) == (DONE, "")
    assert re.sub(r"(?<=nvidia.com/gpu  )\d+d(?=\n)", "AGE", said.out) == TABLE
    assert sorted(fleet.server.asked) == [f"GET {NODES}", f"GET {PODS}"]
    assert "0/4 fit" in show(fleet, "-o", "wide").out, "what the scheduler said"


def test_by_node_each_row_has_policy_state_and_taints(fleet: Desk) -> None:
    found = rows(fleet, "--by", "node")
    assert list(found) == [f"gpu-1/{GPU}", f"gpu-2/{GPU}", f"gpu-3/{MIG}", f"gpu-4/{GPU}"]
    assert [row["free"] for row in found.values()] == [2, 5, 0, 0]
    assert [row["closed"] for row in found.values()] == [0, 0, 3, 2]
    assert [row["policy"] for row in found.values()] == ["pool-a", "pool-a", "pool-b", "no policy"]
    assert found[f"gpu-2/{GPU}"]["taints"] == "team=b:NoSchedule"
    assert found[f"gpu-4/{GPU}"]["state"] == "cordoned"


def test_by_policy_the_nodes_without_one_have_a_row(fleet: Desk) -> None:
    found = rows(fleet, "--by", "policy")
    assert {name: (row["requested"], row["free"], row["largest"]) for name, row in found.items()} == {
        f"no policy/{GPU}": (0, 0, 0),
        f"pool-a/{GPU}": (9, 7, 5),
        f"pool-b/{MIG}": (1, 0, 0),
    }


def test_by_namespace_and_by_pod_it_says_who_holds_and_who_waits(fleet: Desk) -> None:
    found = rows(fleet, "--by", "namespace")
    assert found[f"team-a/{GPU}"] == {
        "namespace": "team-a",
        "resource": GPU,
        "device": None,
        "pods": 1,
        "requested": 6,
        "waiting": 8,
    }
    assert found[f"team-b/{MIG}"]["pods"] == 1
    pods = rows(fleet, "--by", "pod")
    assert {name.partition(f"/{GPU}")[0]: row["node"] for name, row in pods.items() if GPU in name} == {
        "team-a/big": "",
        "team-a/llm-0": "gpu-1",
        "team-b/ranker": "gpu-2",
    }


@pytest.mark.parametrize("by", ["resource", "node", "policy", "namespace", "pod"])
def test_each_view_counts_the_same(fleet: Desk, by: str) -> None:
    held: Counter[str] = Counter()
    for row in told(fleet, "--by", by)["rows"]:
        held[row["resource"]] += row["requested"]
    assert held == {GPU: 9, MIG: 1}


def test_of_one_namespace_others_are_told_apart_and_free_stays_what_is_free(fleet: Desk) -> None:
    found = rows(fleet, "-n", "team-b")
    assert (found[GPU]["requested"], found[GPU]["others"], found[GPU]["free"]) == (3, 6, 7)
    assert found[GPU]["waiting"] == 0
    assert list(rows(fleet, "-n", "team-b", "--by", "namespace")) == [f"team-b/{GPU}", f"team-b/{MIG}"]


@pytest.mark.parametrize("by", ["resource", "node", "policy", "namespace", "pod"])
@pytest.mark.parametrize("words", [(), ("-n", "team-a")])
def test_csv_has_the_same_header_without_rows(fleet: Desk, by: str, words: tuple[str, ...]) -> None:
    full = show(fleet, "--by", by, *words, "-o", "csv").out.splitlines()
    fleet.server.lists = {NODES: [], PODS: []}
    assert show(fleet, "--by", by, *words, "-o", "csv").out == f"{full[0]}\n"
    assert ("others" in full[0]) == (bool(words) and by not in ("namespace", "pod"))
    assert len(full) > 1


@pytest.mark.parametrize("by", ["resource", "node", "policy", "namespace", "pod"])
@pytest.mark.parametrize("output", ["table", "wide", "json", "yaml", "csv"])
def test_odd_pods_and_nodes_do_no_harm_in_any_view(fleet: Desk, by: str, output: str) -> None:
    odd = {"name": "main", "resources": {"limits": {GPU: "-3", MIG: "1.5e3", SHARED: None}}}
    fleet.server.lists[PODS] += [
        pod("team-a/odd", "gpu-1", odd),
        pod("team-a/none", "gpu-1"),
        {"metadata": {"namespace": "team-a", "name": "bare"}, "spec": None, "status": None},
        {"metadata": {"namespace": "team-a", "name": "new"}, "spec": {"containers": [container(gpu=1)]}},
    ]
    fleet.server.lists[NODES] += [{"metadata": {"name": "bare"}}, node("odd", allocatable={GPU: "x", MIG: "-1"})]
    narrow = {"COLUMNS": "40"}
    said = fleet.type("free", "--by", by, "-n", "team-a", "-o", output, environment=narrow)
    assert (said.status, said.err) == (DONE, "")
    assert said.out


def test_reservation_pods_of_kai_are_named(fleet: Desk) -> None:
    reserve = pod("kai-resource-reservation/gpu-reservation-1", "gpu-1", container(gpu=1))
    fraction = pod("team-a/half", "gpu-1", container())
    owned = pod("team-a/owned", "gpu-1", container(gpu=1))
    owned["metadata"]["ownerReferences"] = [{"kind": "Job", "name": "owned", "controller": True}]
    for one in (reserve, fraction, owned):
        one["metadata"]["labels"] = {"runai-gpu-group": "group-1"}
    fleet.server.lists[PODS] += [reserve, fraction, owned]
    note = (
        "with kai-resource-reservation/gpu-reservation-1, KAI-Scheduler reserves GPUs for pods that request fractions,"
        " which may be in other namespaces; the GPUs count as held by the reservation, and the fractions are not"
        " counted here"
    )
    assert note in told(fleet)["notes"]
    assert rows(fleet, "-n", "team-a")[GPU]["others"] == 4


def test_a_selector_without_a_match_gets_a_sentence_and_counts_no_pod(fleet: Desk) -> None:
    fleet.server.lists[NODES] = []
    data = told(fleet, "-l", "gpusharing.dev/pool=none", "--by", "pod", "--usage")
    assert (data["rows"], data["waiting"], data["unknown"]) == ([], [], [])
    said = show(fleet, "-l", "gpusharing.dev/pool=none")
    nothing = "No node with these labels advertises a GPU resource, and no pod requests one.\n"
    assert (said.status, said.out) == (DONE, nothing)


EMPTY: dict[str, tuple[JSON, str]] = {
    "--by pod -n idle": ({GPU: "8"}, "No pod in namespace idle requests a GPU resource."),
    "--by node -n idle": ({}, "No node advertises a GPU resource."),
    "": ({}, "No node advertises a GPU resource, and no pod requests one."),
}


@pytest.mark.parametrize("typed", EMPTY)
def test_an_empty_answer_says_only_what_it_is_about(desk: Desk, typed: str) -> None:
    gpus, sentence = EMPTY[typed]
    desk.server.lists = {NODES: [node("gpu-1", allocatable=gpus)], PODS: []}
    said = show(desk, *typed.split())
    assert (said.status, said.out) == (DONE, f"{sentence}\n")


SIDECAR = {**container(gpu=1), "restartPolicy": "Always"}
HELD: dict[str, tuple[JSON, int]] = {
    "containers are added": (pod("t/p", "gpu-1", container(gpu=1), container(gpu=2)), 3),
    "an init container counts if it needs more": (
        pod("t/p", "gpu-1", container(gpu=1), initContainers=[container(gpu=4)]),
        4,
    ),
    "a sidecar counts beside the others": (pod("t/p", "gpu-1", container(gpu=2), initContainers=[SIDECAR]), 3),
    "overhead is added": (pod("t/p", "gpu-1", container(gpu=1), overhead={GPU: "1"}), 2),
    "a pod that is pulling its image holds its GPUs": (pod("t/p", "gpu-1", container(gpu=2), phase="Pending"), 2),
    "a failed pod holds nothing": (pod("t/p", "gpu-1", container(gpu=2), phase="Failed"), 0),
    "a pod that the kubelet lost still holds": (pod("t/p", "gpu-1", container(gpu=2), phase="Unknown"), 2),
    "a pod whose node is gone holds nothing": (pod("t/p", "gone", container(gpu=2)), 0),
}


@pytest.mark.parametrize("name", HELD)
def test_a_pod_holds_what_the_scheduler_counts(desk: Desk, name: str) -> None:
    raw, held = HELD[name]
    desk.server.lists = {NODES: [node("gpu-1")], PODS: [raw]}
    row = rows(desk)[GPU]
    assert (row["requested"], row["free"], row["largest"]) == (held, 8 - held, 8 - held)
    assert len(rows(desk, "--by", "pod")) == bool(held)


CLOSED = {
    "not Ready": node("gpu-1", ready=False),
    "cordoned": node("gpu-1", unschedulable=True),
    "its layout is not proven yet": node("gpu-1", taints=[{"key": "gpusharing.dev/unproven", "effect": "NoSchedule"}]),
    "the operator's change is unfinished, cordoned": node(
        "gpu-1", unschedulable=True, annotations={"gpusharing.dev/fence": "{}"}
    ),
}


@pytest.mark.parametrize("state", CLOSED)
def test_on_a_node_that_takes_no_pods_nothing_is_free(desk: Desk, state: str) -> None:
    desk.server.lists = {NODES: [CLOSED[state]], PODS: []}
    data = told(desk)
    assert [(row["free"], row["largest"], row["closed"]) for row in data["rows"]] == [(0, 0, 8)]
    assert data["closed"] == [{"node": "gpu-1", "state": state, "unused": {GPU: 8}}]


@virtually
async def test_a_node_whose_change_failed_is_not_said_to_be_changed_by_the_operator() -> None:
    async with operated(1) as scene:
        scene.e.software.inject("gpu-1", "failed")
        await scene.reach(MIXED, phase="Failed")
        await asyncio.sleep(300)  # until the device plugin is back
        said = await ask(scene.e.cluster, "free", "--by", "node", "-o", "json")
    assert {row["state"] for row in said.data["rows"]} == {"the operator's change is unfinished, cordoned"}


def test_under_mps_the_largest_request_of_a_container_is_one(desk: Desk) -> None:
    labels = {"nvidia.com/gpu.sharing-strategy": "mps"}
    desk.server.lists = {NODES: [node("gpu-1", labels=labels, allocatable={SHARED: "10"})], PODS: []}
    row = rows(desk)[SHARED]
    assert (row["free"], row["largest"]) == (10, 1)


TIME_SLICED = {"nvidia.com/gpu.sharing-strategy": "time-slicing"}
STRICT = {"spec": {"timeSlicing": {"replicas": 8, "failRequestsGreaterThanOne": True}}}


@pytest.mark.parametrize(
    ("policy", "spec", "largest"),
    [("pool-a", STRICT, 1), ("pool-a", {"spec": {"timeSlicing": {"replicas": 8}}}, 8), ("", STRICT, 8)],
    ids=["its policy says so", "its policy does not say so", "it has no policy"],
)
def test_with_time_slicing_the_largest_request_is_one_if(desk: Desk, policy: str, spec: JSON, largest: int) -> None:
    shared = node("gpu-1", policy=policy, labels=TIME_SLICED)
    desk.server.lists = {NODES: [shared], PODS: [], POLICIES: [{"metadata": {"name": "pool-a"}, **spec}]}
    assert rows(desk)[GPU]["largest"] == largest
    assert (f"GET {POLICIES}" in desk.server.asked) is bool(policy)


def test_if_the_policy_of_a_time_sliced_node_cannot_be_read_a_note_says_what_that_means(desk: Desk) -> None:
    shared = [node(name, policy="pool-a", labels=TIME_SLICED) for name in ("gpu-1", "gpu-2")]
    desk.server.lists = {NODES: shared, PODS: []}
    desk.server.refusals = {POLICIES: (403, "no")}
    assert (rows(desk)[GPU]["largest"], told(desk, "--by", "node")["notes"]) == (8, [])
    (note,) = told(desk)["notes"]
    assert not lacks(note, "may be 1", "time-sliced", "(pool-a)")


def test_more_held_than_allocatable_is_not_less_than_nothing(desk: Desk) -> None:
    """The device plugin is away, or another layout came."""
    shrunk = node("gpu-1", allocatable={GPU: "0"})
    desk.server.lists = {NODES: [shrunk, node("gpu-2")], PODS: [pod("t/p", "gpu-1", container(gpu=2))]}
    row = rows(desk)[GPU]
    assert (row["requested"], row["allocatable"], row["free"]) == (2, 8, 8)


def test_pods_with_resource_claims_are_named(desk: Desk) -> None:
    claimed = pod("t/p", "gpu-1", container(), resourceClaims=[{"name": "gpu"}])
    desk.server.lists = {NODES: [node("gpu-1")], PODS: [claimed]}
    (note,) = told(desk)["notes"]
    assert not lacks(note, "1 pod", "ResourceClaims")


def test_of_many_that_wait_the_oldest_are_shown(desk: Desk) -> None:
    waiting = [pod(f"t/p-{number:02}", "", container(gpu=1)) for number in range(25)]
    desk.server.lists = {NODES: [node("gpu-1")], PODS: waiting}
    said = show(desk)
    assert "t/p-19" in said.out
    assert "t/p-20" not in said.out
    assert "and 5 more; -o wide lists all" in said.out
    assert "t/p-24" in show(desk, "-o", "wide").out


# --- with fewer rights -----------------------------------------------------------------------------------------------


def own_pods_only(desk: Desk) -> None:
    held = desk.server.lists[PODS]
    desk.server.lists[TEAM_A] = [one for one in held if one["metadata"]["namespace"] == "team-a"]
    desk.server.refusals = {PODS: (403, DENIED)}


def test_who_may_not_list_all_pods_gets_those_of_a_namespace_and_why_free_is_unknown(fleet: Desk) -> None:
    own_pods_only(fleet)
    said = show(fleet, "-n", "team-a")
    assert (said.status, said.err) == (CHANGES, "")
    assert not lacks(said.out, "PARTIAL", "namespace team-a", "-n NAME")
    assert DENIED in " ".join(said.out.split())
    row = rows(fleet, "-n", "team-a")[GPU]
    assert (row["requested"], row["allocatable"], row["waiting"]) == (6, 18, 8)
    assert (row["free"], row["others"], row["largest"]) == (None, None, None)


def report(name: str, **allocated: int) -> JSON:
    """The GPUNode of an agent that says what pods hold of whole GPUs."""
    return {"metadata": {"name": name}, "status": {"observed": {"allocated": {GPU: allocated["gpu"]}}}}


def test_what_no_agent_reports_is_in_no_list_and_no_sum_as_0(fleet: Desk) -> None:
    own_pods_only(fleet)
    taints = [{"key": "team", "value": "b", "effect": "NoSchedule"}]
    fleet.server.lists[NODES].append(node("gpu-5", policy="pool-a", taints=taints))
    fleet.server.lists[GPUNODES] = [report("gpu-2", gpu=3)]
    found = told(fleet, "-n", "team-a")
    assert found["closed"] == [
        {"node": "gpu-3", "state": "the operator's change is unfinished", "unused": {MIG: None}},
        {"node": "gpu-4", "state": "cordoned", "unused": {GPU: None}},
    ]
    taint = "the taint team=b:NoSchedule"
    assert found["notes"] == [f"at least 5 {GPU} of the free devices are only for pods that tolerate {taint}"]
    assert re.search(rf"gpu-4 +cordoned +\? {GPU}\n", show(fleet, "-n", "team-a").out)


def test_who_sees_no_pods_is_not_told_that_all_are_of_others(fleet: Desk) -> None:
    fleet.server.refusals = {PODS: (403, DENIED), TEAM_A: (403, DENIED)}
    fleet.server.lists[GPUNODES] = [report("gpu-1", gpu=6)]
    row = rows(fleet, "-n", "team-a", "--by", "node")["gpu-1/nvidia.com/gpu"]
    assert (row["requested"], row["others"], row["free"]) == (None, None, 2)


class Revoked:
    """A session whose user loses the right to list all Pods and all Nodes after the first page."""

    namespace = "team-a"

    def __init__(self, pods: list[Any], nodes: list[Any]) -> None:
        self.pages = {NODES: nodes, PODS: pods}
        self.own = pods

    async def each_page(self, kind: Any, namespace: str | None = None, *_: str, **__: str) -> Any:
        """Yield a page, and raise Denied in place of a second one unless it is about a namespace."""
        yield self.own if namespace else self.pages[f"/api/v1/{kind.plural}"]
        if namespace is None:
            raise Denied(f"{kind.plural} is forbidden", [f"list {kind.plural}"])

    async def all(self, *_: Any) -> list[Any]:
        return []


def test_pods_on_a_page_before_the_right_was_lost_count_once(fleet: Desk) -> None:
    lists = fleet.server.lists
    own = [pod for pod in lists[PODS] if pod["metadata"]["namespace"] == "team-a"]
    found = asyncio.run(read_inventory(Revoked(own, lists[NODES]), "", ""))  # type: ignore[arg-type]  # all it calls
    names = [pod.name for pod in found.pods]
    assert sorted(names) == sorted(set(names))
    assert names
    assert found.stocks == {}, "a part of the nodes would look like all of them"
    assert (found.no_nodes, found.no_pods) == ("nodes is forbidden", "pods is forbidden")


def test_what_the_agents_report_as_allocated_stands_for_pods_that_may_not_be_read(fleet: Desk) -> None:
    own_pods_only(fleet)
    reports = {"gpu-1": {GPU: 7}, "gpu-2": {GPU: 3}, "gpu-3": {MIG: 1}, "gpu-4": {}}
    fleet.server.lists[GPUNODES] = [
        {"metadata": {"name": name}, "status": {"observed": {"allocated": held, "simulated": True}}}
        for name, held in reports.items()
    ]
    data = told(fleet, "-n", "team-a")
    (row,) = (row for row in data["rows"] if row["resource"] == GPU)
    assert (row["requested"], row["others"], row["free"], row["largest"]) == (6, 4, 6, 5)
    assert not lacks(data["unknown"][0], "agents", "allocated")
    assert data["simulated"] == sorted(reports)


def test_who_may_not_list_nodes_gets_what_pods_and_gpunodes_say_but_cannot_choose_nodes(fleet: Desk) -> None:
    fleet.server.refusals = {NODES: (403, "you may not list nodes")}
    fleet.server.lists[GPUNODES] = [
        {"metadata": {"name": "gpu-1"}, "status": {"transition": {"policy": "pool-a"}, "observed": {}}}
    ]
    row = rows(fleet)[GPU]
    assert (row["requested"], row["allocatable"], row["free"]) == (9, None, None)
    assert rows(fleet, "--by", "policy")[f"pool-a/{GPU}"]["requested"] == 6
    said = show(fleet)
    assert said.status == CHANGES
    assert not lacks(said.out, "PARTIAL", "permission")
    said = show(fleet, "-l", "gpusharing.dev/pool=a")
    assert said.status == FAILED
    assert not lacks(said.err, "-l gpusharing.dev/pool=a", "permission", "context desk")


def test_a_tenant_who_may_list_nothing_else_gets_their_own_pods_and_what_is_unknown_is_not_0(fleet: Desk) -> None:
    own_pods_only(fleet)
    fleet.server.refusals |= {NODES: (403, "you may not list nodes"), GPUNODES: (403, "nor gpunodes")}
    data = told(fleet, "-n", "team-a", "--by", "pod")
    assert [row["pod"] for row in data["rows"]] == ["team-a/big", "team-a/llm-0"]
    assert len(data["unknown"]) == 2
    fleet.server.lists[TEAM_A] = [pod("team-a/big", "", container(gpu=48))]
    (row,) = told(fleet, "-n", "team-a")["rows"]
    assert row["waiting"] == 48
    assert [row[name] for name in ("allocatable", "free", "largest", "closed", "others")] == [None] * 5
    cells = next(line for line in show(fleet, "-n", "team-a").out.splitlines() if line.startswith(GPU)).split()
    assert cells.count("?") == 5


def test_without_any_pods_the_nodes_say_what_is_allocatable(fleet: Desk) -> None:
    fleet.server.refusals = {PODS: (403, DENIED), "/api/v1/namespaces/default/pods": (403, DENIED)}
    said = show(fleet)
    assert said.status == CHANGES
    assert "no pods are counted" in said.out
    row = rows(fleet)[GPU]
    assert (row["requested"], row["allocatable"], row["free"], row["waiting"]) == (None, 18, None, None)


def test_an_error_that_is_no_missing_right_is_an_error(fleet: Desk) -> None:
    fleet.server.refusals = {PODS: (500, "etcd is away")}
    said = show(fleet)
    assert (said.status, said.out) == (FAILED, "")
    assert "etcd is away" in said.err
