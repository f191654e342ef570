"""Which rule keeps a pod from a node (kubectl_gpusharing/diagnosis/pod.py), and what `why` says of it (kubectl_gpusharing/diagnosis/pod.py)."""

from typing import Any

import pytest
from tests.cli.asking import Answered, ask, operated
from tests.embedded.scene import FULL
from tests.fakes.virtualtime import virtually
from tests.wording import lacks

from gpusharing.api.names import TAINT_UNPROVEN
from gpusharing.kube.client import NODES, PODS
from gpusharing.kube.convert import node_view
from gpusharing.kube.pods import pod_view
from gpusharing.planning.drain.placement import needs_of
from gpusharing.planning.pools.afterwards import find_present_offer
from kubectl_gpusharing.diagnosis.pod import BARE, find_overlooked, find_rule

JSON = dict[str, Any]
NODE = {"metadata": {"name": "gpu-1", "labels": {"zone": "east", "rank": "7", "empty": ""}}}
AFFINITY, WANTS = "the pod's spec.affinity.nodeAffinity requires", "the pod's spec.nodeSelector requires"


def find_obstacle(pod: JSON, node: JSON) -> str:
    containers = [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}]
    needs = needs_of(pod_view({"spec": {**pod.get("spec", {}), "containers": containers}}, {}))
    found = find_rule(needs, find_present_offer(node_view(node), BARE))
    return "" if found is None else found.text


def affine(*terms: JSON) -> JSON:
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}
    return {"spec": {"affinity": {"nodeAffinity": required}}}


def row(key: str, operator: str, *values: str) -> JSON:
    return {"key": key, "operator": operator, "values": list(values)}


def labels(*rows: JSON) -> JSON:
    return {"matchExpressions": list(rows)}


def names(*rows: JSON) -> JSON:
    return {"matchFields": list(rows)}


def tainted(*taints: JSON) -> JSON:
    return {**NODE, "spec": {"taints": list(taints)}}


# --- node selector and affinity ------------------------------------------------------------------------------

MEETS = {
    "no rule": {"spec": {}},
    "its node selector": {"spec": {"nodeSelector": {"zone": "east", "empty": ""}}},
    "In": affine(labels(row("zone", "In", "west", "east"))),
    "NotIn": affine(labels(row("zone", "NotIn", "west"))),
    "NotIn of a label that is not there": affine(labels(row("none", "NotIn", "west"))),
    "Exists": affine(labels(row("empty", "Exists"))),
    "DoesNotExist": affine(labels(row("none", "DoesNotExist"))),
    "Gt": affine(labels(row("rank", "Gt", "6"))),
    "Gt of what is below zero": affine(labels(row("rank", "Gt", "-1"))),
    "Lt": affine(labels(row("rank", "Lt", "8"))),
    "its name": affine(names(row("metadata.name", "In", "gpu-1"))),
    "not the name of another": affine(names(row("metadata.name", "NotIn", "gpu-2"))),
    "one term of two": affine(labels(row("zone", "In", "west")), labels(row("rank", "Exists"))),
    "both rows of a term": affine({**labels(row("rank", "Exists")), **names(row("metadata.name", "In", "gpu-1"))}),
    "affinity that is only preferred": {
        "spec": {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{}]}}}
    },
}
FAILS = {
    "its node selector": ({"spec": {"nodeSelector": {"zone": "west"}}}, f"{WANTS} zone=west"),
    "a label that is not there": ({"spec": {"nodeSelector": {"none": ""}}}, f"{WANTS} none="),
    "In": (affine(labels(row("zone", "In", "west", "north"))), f"{AFFINITY} zone In west,north"),
    "In of a label that is not there": (affine(labels(row("none", "In", "a"))), f"{AFFINITY} none In a"),
    "NotIn": (affine(labels(row("zone", "NotIn", "east"))), f"{AFFINITY} zone NotIn east"),
    "Exists": (affine(labels(row("none", "Exists"))), f"{AFFINITY} none Exists"),
    "DoesNotExist": (affine(labels(row("zone", "DoesNotExist"))), f"{AFFINITY} zone DoesNotExist"),
    "Gt of its own": (affine(labels(row("rank", "Gt", "7"))), f"{AFFINITY} rank Gt 7"),
    "Gt of no number": (affine(labels(row("zone", "Gt", "1"))), f"{AFFINITY} zone Gt 1"),
    "Gt of no label": (affine(labels(row("none", "Gt", "1"))), f"{AFFINITY} none Gt 1"),
    "Lt of its own": (affine(labels(row("rank", "Lt", "7"))), f"{AFFINITY} rank Lt 7"),
    "its name, asked for as a label": (
        affine(labels(row("metadata.name", "In", "gpu-1"))),
        f"{AFFINITY} metadata.name In gpu-1",
    ),
    "another name": (affine(names(row("metadata.name", "In", "gpu-2"))), f"{AFFINITY} metadata.name In gpu-2"),
    "one of two rows of a term": (
        affine(labels(row("rank", "Exists"), row("zone", "In", "west"))),
        f"{AFFINITY} zone In west",
    ),
    "both terms": (
        affine(labels(row("zone", "In", "west")), labels(row("none", "Exists"))),
        f"{AFFINITY} zone In west or none Exists",
    ),
    "a term without a row": (affine({}), f"{AFFINITY} something that no node has"),
    "no term at all": (affine(), f"{AFFINITY} something that no node has"),
    "an operator that nobody knows": (affine(labels(row("zone", "Odd", "a"))), f"{AFFINITY} zone Odd a"),
}


@pytest.mark.parametrize(
    ("pod", "told"), [*FAILS.values(), *((one, "") for one in MEETS.values())], ids=[*FAILS, *MEETS]
)
def test_a_node_is_closed_or_open_by(pod: JSON, told: str) -> None:
    assert find_obstacle(pod, NODE) == told


# --- taints --------------------------------------------------------------------------------------------------

GPU = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
PREFERS = {**GPU, "effect": "PreferNoSchedule"}
TOLERATES = {
    "all taints": {"operator": "Exists"},
    "the key": {"key": "nvidia.com/gpu", "operator": "Exists"},
    "key and effect": {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
    "the value, by what is meant without an operator": {"key": "nvidia.com/gpu", "value": "present"},
    "the value": {"key": "nvidia.com/gpu", "operator": "Equal", "value": "present"},
}
SUFFERS = {
    "nothing": None,
    "another key": {"key": "other", "operator": "Exists"},
    "another effect": {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoExecute"},
    "another value": {"key": "nvidia.com/gpu", "value": "absent"},
    "no value": {"key": "nvidia.com/gpu", "operator": "Equal"},
    "an operator that nobody knows": {"key": "nvidia.com/gpu", "operator": "Odd", "value": "present"},
    "a number, of what is none": {"key": "nvidia.com/gpu", "operator": "Gt", "value": "1"},
}


def pod(toleration: JSON | None) -> JSON:
    return {"spec": {"tolerations": [] if toleration is None else [toleration]}}


@pytest.mark.parametrize("toleration", [*SUFFERS.values(), *TOLERATES.values()], ids=[*SUFFERS, *TOLERATES])
def test_a_taint_keeps_a_pod_away_unless_it_tolerates(toleration: JSON | None) -> None:
    said = "the pod does not tolerate the taint nvidia.com/gpu=present:NoSchedule"
    assert find_obstacle(pod(toleration), tainted(GPU)) == ("" if toleration in TOLERATES.values() else said)


@pytest.mark.parametrize(("operator", "open_"), [("Gt", False), ("Lt", True)])
def test_a_toleration_may_compare_numbers(operator: str, *, open_: bool) -> None:
    taint = {"key": "risk", "value": "3", "effect": "NoExecute"}
    found = find_obstacle(pod({"key": "risk", "operator": operator, "value": "5"}), tainted(taint))
    assert found == "" if open_ else not lacks(found, "risk=3:NoExecute")


def test_each_taint_has_to_be_tolerated_and_one_without_a_value_is_written_so() -> None:
    other = {"key": "node.kubernetes.io/out-of-service", "effect": "NoSchedule"}
    found = find_obstacle(pod(TOLERATES["the key"]), tainted(GPU, other))
    assert not lacks(found, "node.kubernetes.io/out-of-service:NoSchedule")


CONDITIONS = "unschedulable not-ready unreachable disk-pressure memory-pressure pid-pressure network-unavailable"
PASSING = [
    TAINT_UNPROVEN,
    *(f"node.kubernetes.io/{condition}" for condition in CONDITIONS.split()),
    "node.cloudprovider.kubernetes.io/uninitialized",
]


@pytest.mark.parametrize("taint", [*({"key": key, "effect": "NoSchedule"} for key in PASSING), PREFERS], ids=str)
def test_a_taint_that_goes_by_itself_or_only_prefers_others_is_no_rule(taint: JSON) -> None:
    assert find_obstacle({}, tainted(taint)) == ""


# --- what other pods and volumes decide ----------------------------------------------------------------------


def test_rules_that_go_by_other_pods_and_volumes_are_named_as_not_looked_at() -> None:
    required = {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone"}]}
    spec = {
        "affinity": {"podAffinity": required, "podAntiAffinity": required},
        "topologySpreadConstraints": [{"whenUnsatisfiable": "DoNotSchedule"}],
    }
    assert find_overlooked({"spec": spec}) == (
        "spec.affinity.podAffinity",
        "spec.affinity.podAntiAffinity",
        "spec.topologySpreadConstraints",
    )
    lax = {"topologySpreadConstraints": [{"whenUnsatisfiable": "ScheduleAnyway"}]}
    assert find_overlooked({"spec": lax}) == ()
    volumes = [{"emptyDir": {}}, {"ephemeral": {}}, {"persistentVolumeClaim": {"claimName": "models"}}]
    ports = [{"ports": [{"containerPort": 80}]}, {"ports": [{"containerPort": 80, "hostPort": 80}]}]
    assert find_overlooked({"spec": {"volumes": volumes, "containers": ports}}) == (
        "spec.volumes[].persistentVolumeClaim",
        "spec.volumes[].ephemeral",
        "spec.containers[].ports[].hostPort",
    )
    assert find_overlooked({"spec": {"volumes": volumes[:1], "containers": ports[:1]}}) == ()
    spec = {"resourceClaims": [{"name": "gpu"}], "schedulerName": "hami-scheduler"}
    assert find_overlooked({"spec": spec}) == ("spec.resourceClaims", "spec.schedulerName")
    assert find_overlooked({"spec": {"schedulerName": "default-scheduler"}}) == ()
    assert find_overlooked({}) == ()


# --- `why` ---------------------------------------------------------------------------------------------------


def pending(name: str, **spec: Any) -> JSON:
    container = {"name": "main", "resources": {"limits": {"nvidia.com/gpu": "1"}}}
    return {
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"containers": [container], **spec},
        "status": {"phase": "Pending"},
    }


async def asked(count: int, taint: list[JSON], **spec: Any) -> tuple[Answered, Any]:
    """As text and as data, of a pool whose last node has these taints."""
    async with operated(count, serving=FULL) as scene:
        scene.e.cluster.patch(NODES, f"gpu-{count}", {"spec": {"taints": taint}})
        scene.e.cluster.add(PODS, pending("llm", **spec))
        told = await ask(scene.e.cluster, "why", "pod/llm")
        data = await ask(scene.e.cluster, "why", "pod/llm", "-o", "json")
    return told, data.data


@virtually
async def test_a_pool_whose_taint_a_pod_does_not_tolerate_names_the_taint() -> None:
    told, data = await asked(1, [GPU])
    (service,) = data["services"]
    said = "the pod does not tolerate the taint nvidia.com/gpu=present:NoSchedule"
    assert (service["now"], service["after"], service["but"]) == (0, 0, said)
    assert service["kept"] == [f"gpu-1: {said}"]
    text = " ".join(told.out.split())
    assert not lacks(text, "No node", "nvidia.com/gpu")
    assert "not looked at" not in text


@virtually
async def test_a_pool_of_which_one_node_is_closed_counts_the_others_and_names_the_rule() -> None:
    told, data = await asked(2, [GPU])
    (service,) = data["services"]
    assert (service["now"], service["after"], service["but"]) == (2, 2, "")
    text = " ".join(told.out.split())
    assert not lacks(text, "pool-b", "gpu-2", "nvidia.com/gpu=present:NoSchedule")


@virtually
async def test_each_rule_is_told_with_the_nodes_that_it_closes() -> None:
    wanted = affine(names(row("metadata.name", "In", "gpu-2")))["spec"]["affinity"]
    _, data = await asked(2, [GPU], affinity=wanted)
    (service,) = data["services"]
    closed = "gpu-1: the pod's spec.affinity.nodeAffinity requires metadata.name In gpu-2"
    tainted, *rest = service["kept"]
    assert rest == [closed]
    assert not lacks(tainted, "gpu-2", "nvidia.com/gpu=present:NoSchedule")
    assert service["but"] == "; ".join(service["kept"])


@virtually
async def test_what_goes_by_other_pods_is_noted() -> None:
    apart = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "z"}]}}
    told, data = await asked(1, [], affinity=apart)
    (note,) = data["notes"]
    assert not lacks(note, "spec.affinity.podAntiAffinity")
    assert f"Note: {note}" in " ".join(told.out.split())


@virtually
async def test_gpus_that_are_simulated_are_said_to_be_where_a_pod_waits() -> None:
    told, data = await asked(1, [])
    assert told.out.startswith("SIMULATED: gpu-1 has no real GPUs")
    assert data["simulated"] == ["gpu-1"]
