"""Which nodes `recommend` means, by the cluster or by what kube-state-metrics tells (kubectl_gpusharing/usage/scopes.py,
kubectl_gpusharing/usage/prometheus.py)."""

import json
from typing import Any

import pytest
import yaml
from tests.cli.asking import Answered, alone
from tests.cli.desk import JSON, POLICIES, Desk
from tests.cli.fakeprometheus import HOURS, Answer, FakePrometheus, vector
from tests.wording import lacks

from gpusharing.api.selectors import matches
from gpusharing.api.validation import validate_policy
from kubectl_gpusharing.shell.troubles import DONE, FAILED, Trouble
from kubectl_gpusharing.usage.scopes import rows_of, scope_of, whole_fleet

pytestmark = pytest.mark.usefixtures("used")

RECOMMEND = ("recommend", "--service", "mon/p:web", "--window", f"{HOURS}h")


def node(name: str, **labels: str) -> JSON:
    told = {"kubernetes.io/hostname": name, **labels}
    return {"metadata": {"name": name, "uid": name, "resourceVersion": "1", "labels": told}}


def behind(desk: Desk, fake: FakePrometheus, objects: dict[str, Any]) -> None:
    """The fake plays the API server of the kubeconfig too, which has these objects."""

    def instead(path: str) -> Answer | None:
        if path not in objects:
            return None
        return 200, "application/json", json.dumps(objects[path]).encode()

    fake.instead = instead
    desk.write_kubeconfig(fake.url)


def listed(*items: JSON) -> JSON:
    return {"kind": "List", "metadata": {"resourceVersion": "1"}, "items": items}


def served(*policies: JSON) -> dict[str, Any]:
    return {POLICIES: listed(*policies), **{f"{POLICIES}/{one['metadata']['name']}": one for one in policies}}


def test_nodes_are_chosen_in_the_cluster(desk: Desk, fake: FakePrometheus) -> None:
    behind(desk, fake, {"/api/v1/nodes": listed(node("gpu-1", zone="a"), node("gpu-2", zone="b"))})
    said = desk.type(*RECOMMEND, "-l", "zone in (a)", "-o", "json")
    assert (said.status, said.err) == (DONE, "")
    assert json.loads(said.out)["policy"]["spec"]["nodeSelector"] == {"matchLabels": {"zone": "a"}}
    assert not lacks(desk.type(*RECOMMEND, "--selector", "zone=b").err, "no data", "zone=b")
    assert "has the labels zone=c" in desk.type(*RECOMMEND, "-l", "zone=c").err


def test_the_policy_that_is_there_keeps_what_it_says_besides(desk: Desk, fake: FakePrometheus) -> None:
    spec = {
        "nodeSelector": {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]},
        "mode": "TimeSlicing",
        "timeSlicing": {"replicas": 4},
        "rollout": {"maxUnavailable": 2},
        "cost": {"gpuHourlyPrice": "3.20", "currency": "USD"},
    }
    old = {"gpusharing.dev/approve": "0123456789", "kubectl.kubernetes.io/last-applied-configuration": "{}"}
    kept = {"labels": {"owner": "team-b"}, "annotations": {"argocd.argoproj.io/sync-wave": "3"}}
    metadata = {**kept, "name": "pool-b", "uid": "1", "annotations": {**kept["annotations"], **old}}
    policy = {"metadata": metadata, "spec": spec}
    behind(desk, fake, {"/api/v1/nodes": listed(node("gpu-1", zone="a")), **served(policy)})
    said = desk.type(*RECOMMEND, "--policy", "pool-b", "--write", "new.yaml")
    assert (said.status, said.err) == (DONE, "")
    assert "policy pool-b: 1 GPU" in said.out
    written = yaml.safe_load((desk.folder / "new.yaml").read_text())
    assert not isinstance(validate_policy(written), tuple)
    assert written["metadata"] == {"name": "pool-b", **kept}
    assert written["spec"]["mode"] == "MIG"
    assert "timeSlicing" not in written["spec"]
    assert written["spec"]["rollout"] == {"maxUnavailable": 2, "approval": "Manual"}
    assert written["spec"]["cost"] == spec["cost"]


def test_a_policy_selects_no_nodes_with_gpus_of_another_model(desk: Desk, fake: FakePrometheus) -> None:
    policy = {"metadata": {"name": "pool-b"}, "spec": {"nodeSelector": {"matchLabels": {"zone": "a"}}}}
    nodes = listed(node("gpu-1", zone="a"), node("gpu-2", zone="a"))
    behind(desk, fake, {"/api/v1/nodes": nodes, **served(policy)})
    words = (*RECOMMEND, "-o", "json")
    found = json.loads(desk.type(*words, "-l", "zone=a", "--card", "h100-80gb").out)
    label = {"gpusharing.dev/pool": "pool-a-h100-80gb"}
    assert found["policy"]["spec"]["nodeSelector"] == {"matchLabels": label}
    assert any("kubectl label node NODE gpusharing.dev/pool=pool-a-h100-80gb" in step for step in found["next"])
    said = desk.type(*words, "--policy", "pool-b", "--card", "h100-80gb")
    assert not lacks(said.err, "one layout")
    whole = json.loads(desk.type(*words, "-l", "zone=a").out)
    assert whole["policy"]["spec"]["nodeSelector"] == {"matchLabels": {"zone": "a"}}
    assert any("the policy selects the 1 other, too" in one for one in whole["remarks"])


def pool(name: str, priority: int = 0) -> JSON:
    spec = {"nodeSelector": {"matchLabels": {"zone": "a"}}, "mode": "Full", "priority": priority}
    return {
        "metadata": {"name": name, "uid": name, "creationTimestamp": "2026-09-01T00:00:00Z"},
        "spec": spec,
    }


def test_nodes_of_another_policy_are_left_out_and_it_says_how_many(desk: Desk, fake: FakePrometheus) -> None:
    above = pool("pool-a", 10)
    above["spec"]["nodeSelector"]["matchLabels"]["rack"] = "1"
    nodes = [node("gpu-1", zone="a"), node("gpu-2", zone="a", rack="1")]
    behind(desk, fake, {"/api/v1/nodes": listed(*nodes), **served(above, pool("pool-b"))})
    words = (*RECOMMEND, "-o", "json")
    said = desk.type(*words, "--policy", "pool-b")
    assert (said.status, said.err) == (DONE, "")
    remark = "other policies (pool-a) own 1 of the 2 nodes that policy pool-b selects, and these are left out"
    assert remark in json.loads(said.out)["remarks"]
    assert not lacks(desk.type(*words, "--policy", "pool-a").err, "no data", "policy pool-a")


def test_a_policy_that_owns_no_node_gets_no_recommendation(desk: Desk, fake: FakePrometheus) -> None:
    mine = node("gpu-1", zone="a", **{"gpusharing.dev/policy": "pool-a"})
    behind(desk, fake, {"/api/v1/nodes": listed(mine), **served(pool("pool-a"), pool("pool-b"))})
    said = desk.type(*RECOMMEND, "--policy", "pool-b")
    assert (said.status, said.out) == (FAILED, "")
    assert not lacks(said.err, "(pool-a)", "policy pool-b")
    assert desk.type(*RECOMMEND, "--policy", "pool-a").status == DONE, "the owner keeps it"


# --- by kube-state-metrics ---


def of_metrics(fake: FakePrometheus, selector: str) -> Answered:
    """`recommend` of the nodes with these labels, without a cluster."""
    words = ("--prometheus", fake.url, "--window", f"{HOURS}h", "-l", selector, "-o", "json")
    return alone("recommend", *words)


@pytest.mark.parametrize("selector", ["zone!=b", "zone notin (b)", "!zone", "gpusharing.dev/pool=b,!zone"])
def test_a_negated_label_that_nobody_exports_matches_every_node_and_it_says_so(
    fake: FakePrometheus, selector: str
) -> None:
    (remark,) = (one for one in of_metrics(fake, selector).data["remarks"] if "label zone" in one)
    assert not lacks(remark, "label zone", "-l")
    assert "excludes no node: either" in remark
    assert "--metric-labels-allowlist=nodes=[" in remark


def test_a_negated_label_that_is_exported_needs_no_remark(fake: FakePrometheus) -> None:
    found = of_metrics(fake, "gpusharing.dev/pool!=a").data
    assert not any("no node in Prometheus" in one for one in found["remarks"])


@pytest.mark.parametrize("selector", ["gpusharing.dev/pool=b,zone=a", "zone,gpusharing.dev/pool!=a"])
def test_each_label_that_a_node_must_have_has_to_be_exported(fake: FakePrometheus, selector: str) -> None:
    with pytest.raises(Trouble, match=r"no node in Prometheus has the label zone\. .*nodes=\[.*zone"):
        of_metrics(fake, selector)


def test_a_label_with_capitals_is_found_as_kube_state_metrics_writes_it(fake: FakePrometheus) -> None:
    fake.answers["label_example_com_gpu_pool"] = vector(({"node": "gpu-1", "label_example_com_gpu_pool": "b"}, "1"))
    fake.answers["kube_node_labels"] = fake.answers.pop("kube_node_labels")  # it is asked for last
    found = of_metrics(fake, "example.com/gpuPool=b").data
    assert found["policy"]["spec"]["nodeSelector"] == {"matchLabels": {"example.com/gpuPool": "b"}}


def test_where_no_label_is_exported_nothing_is_taken_for_every_node(fake: FakePrometheus) -> None:
    fake.answers["kube_node_labels"] = vector()
    with pytest.raises(Trouble, match=r"no node in Prometheus has the label zone\. .*nodes=\[zone\]"):
        of_metrics(fake, "zone!=b")


# --- selectors ---


def test_a_selector_is_what_kubectl_takes() -> None:
    rows = rows_of("a=b, c==d,e!=f,g in (h, i),j notin (k),l,!m.n/o")
    labels = {"a": "b", "c": "d", "g": "i", "l": ""}
    assert matches(labels, {}, rows)
    for key, value in (("a", "x"), ("e", "f"), ("g", "x"), ("j", "k"), ("m.n/o", "")):
        assert not matches({**labels, key: value}, {}, rows)
    chosen = scope_of(rows, frozenset({"x"}), "...").selector
    assert chosen["matchLabels"] == {"a": "b", "c": "d"}
    assert chosen["matchExpressions"] == [
        {"key": "e", "operator": "NotIn", "values": ["f"]},
        {"key": "g", "operator": "In", "values": ["h", "i"]},
        {"key": "j", "operator": "NotIn", "values": ["k"]},
        {"key": "l", "operator": "Exists"},
        {"key": "m.n/o", "operator": "DoesNotExist"},
    ]


@pytest.mark.parametrize("selector", [",", "a b", "a=(b)", "a in b", "a=b;c", "=b", "a in ()"])
def test_a_selector_that_kubectl_would_not_take(selector: str) -> None:
    with pytest.raises(Trouble, match="is not a valid node selector"):
        rows_of(selector)


def test_a_label_that_a_change_of_mode_rewrites_chooses_no_pool() -> None:
    rows = rows_of("nvidia.com/gpu.product=NVIDIA-H100-80GB-HBM3")
    found = scope_of(rows, frozenset({"gpu-1"}), "...")
    assert found.unlabelled
    assert found.selector == {"matchLabels": {"gpusharing.dev/pool": "nvidia-h100-80gb-hbm3"}}
    assert whole_fleet("").name == "pool"
