"""Values whose names and defaults our programs must agree with, and a chart that has ours as a dependency."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack.agentfields import NeededRight
from tests.chart.charts import CHART, NAMESPACE, VERSION, Helm, Manifest, find

from gpusharing.agent.loop import LoopSettings
from gpusharing.agent.main import parse
from gpusharing.checks.__main__ import place_of
from gpusharing.planning.stack.installationviews import AGENT, OPERATOR
from kubectl_gpusharing.usage.bills import PRODUCT_METRIC

PARTS = {"operator": ("Deployment", "gpusharing-operator"), "agent": ("DaemonSet", "gpusharing-agent")}


def pod(objects: list[Manifest], part: str) -> dict[str, Any]:
    spec: dict[str, Any] = find(objects, *PARTS[part])["spec"]["template"]["spec"]
    return spec


def container(objects: list[Manifest], part: str) -> dict[str, Any]:
    (found,) = pod(objects, part)["containers"]
    return dict(found)


def test_a_price_for_a_card_is_a_series_of_prometheus(helm: Helm) -> None:
    told = (
        "--set",
        "monitoring.prometheusRule.enabled=true,monitoring.currency=EUR",
        "--set-string",
        "monitoring.gpuHourlyPrices.NVIDIA H100 80GB HBM3=3.20",
    )
    groups = find(helm.template(*told), "PrometheusRule", "gpusharing")["spec"]["groups"]
    (rule,) = next(group["rules"] for group in groups if group["name"] == "gpusharing-prices")
    assert rule == {
        "record": PRODUCT_METRIC,
        "expr": "vector(3.20)",
        "labels": {"product": "NVIDIA H100 80GB HBM3", "currency": "EUR"},
    }


@pytest.mark.parametrize(("version", "accepted"), [("1.29.9", False), ("1.30.0", True), ("1.36.0-gke.100", True)])
def test_an_api_server_older_than_1_30_is_refused(helm: Helm, version: str, accepted: bool) -> None:
    if accepted:
        assert helm.template("--kube-version", version)
    else:
        wanted = f"chart requires kubeVersion: >=1.30.0-0 which is incompatible with Kubernetes v{version}"
        assert wanted in helm.refusal("--kube-version", version)


@pytest.mark.parametrize("command", ["template", "lint"])
def test_all_values_that_do_not_exist_are_named_before_anything_else_is_missing(helm: Helm, command: str) -> None:
    place = ("gpusharing", str(CHART)) if command == "template" else (str(CHART),)
    done = helm.run(command, *place, "--set", "image.repositry=x,operator.replica=1")
    assert done.returncode == 1, done.stdout
    said = (done.stdout + done.stderr).replace("\\n", "\n")
    assert "image.repositry is not a value of this chart: did you mean image.repository?\n" in said
    assert "operator.replica is not a value of this chart: did you mean operator.replicaCount?" in said
    assert "image.repository is needed" not in said


@pytest.mark.parametrize("part", PARTS)
def test_an_account_of_another_name_is_named_wherever_the_account_is_meant(helm: Helm, part: str) -> None:
    set_ = f"{part}.serviceAccount.name=other,{part}.serviceAccount.annotations.a=b"
    own = PARTS[part][1]
    objects = helm.template("--set", set_)
    namespace = find(objects, *PARTS[part])["metadata"]["namespace"]
    account = find(objects, "ServiceAccount", "other")
    assert account["metadata"]["namespace"] == namespace
    assert account["metadata"]["annotations"] == {"a": "b"}
    assert pod(objects, part)["serviceAccountName"] == "other"
    subjects = [subject for one in objects for subject in one.get("subjects", ())]
    assert own not in {subject["name"] for subject in subjects}
    assert "other" in {subject["name"] for subject in subjects}
    text = yaml.safe_dump_all(one for one in objects if one["kind"] != "CustomResourceDefinition")
    assert f"system:serviceaccount:{namespace}:other" in text
    assert f"system:serviceaccount:{namespace}:{own}" not in text
    without = helm.applied("--set", f"{set_},{part}.serviceAccount.create=false")
    left = {one["metadata"]["name"] for one in without if one["kind"] == "ServiceAccount"}
    (kept,) = (name for key, (_, name) in PARTS.items() if key != part)
    assert left == {kept, "gpusharing-checks"}


def test_by_default_a_reading_is_hung_when_the_agent_itself_would_say_so(helm: Helm) -> None:
    environ = {one["name"]: one.get("value", "n") for one in container(helm.template(), "agent")["env"]}
    assert parse([], environ).hung_after == LoopSettings().hung_after


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    chart = tmp_path / "parent"
    shutil.copytree(CHART, chart / "charts" / "gpu-sharing-operator")
    dependency = {"name": "gpu-sharing-operator", "version": VERSION, "condition": "gpu-sharing-operator.enabled"}
    about = {"apiVersion": "v2", "name": "parent", "version": "1.0.0", "dependencies": [dependency]}
    (chart / "Chart.yaml").write_text(yaml.safe_dump(about))
    return chart


def test_a_parent_chart_switches_ours_on_and_off_and_shares_its_registry(helm: Helm, parent: Path) -> None:
    words = ("template", "big", str(parent), "-n", NAMESPACE, "--set")
    on = helm.must(*words, "global.imageRegistry=mirror.test,global.other=1")
    assert f"image: mirror.test/gpu-sharing-operator:{VERSION}" in on
    assert helm.must(*words, "gpu-sharing-operator.enabled=false").strip() == ""


def test_helm_test_asks_for_the_accounts_that_the_pods_have(helm: Helm) -> None:
    objects = helm.applied("--set", "operator.serviceAccount.name=a,agent.serviceAccount.name=b,agent.namespace=agents")
    environ = {
        one["name"]: one["value"] for one in find(objects, "Pod", "gpusharing-checks")["spec"]["containers"][0]["env"]
    }
    place = place_of(environ)
    assert (place.account(OPERATOR), place.account(AGENT)) == ("gpusharing/a", "agents/b")


def rights(pod: dict[str, Any]) -> set[NeededRight]:
    """What a pod can do, by what the container runtime and the kernel look at."""
    (container,) = pod["containers"]
    environ = {one["name"]: one.get("value") for one in container["env"]}
    found = {NeededRight.NOTHING}
    driver = (environ.get("NVIDIA_VISIBLE_DEVICES"), environ.get("NVIDIA_DRIVER_CAPABILITIES"))
    if driver == ("all", "utility"):
        found.add(NeededRight.DRIVER)
    if container["securityContext"].get("privileged"):
        found.add(NeededRight.MIG_CONFIG)
    if pod.get("hostPID"):
        found.add(NeededRight.HOST_PID)
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    if "/var/lib/kubelet/pod-resources" in mounts and pod["securityContext"]["runAsUser"] == 0:
        found.add(NeededRight.POD_RESOURCES)
    if "/var/log/pods" in mounts and environ.get("POD_LOGS") == "/var/log/pods":
        found.add(NeededRight.POD_LOGS)
    return found


GIVEN = {
    "agent.interval=30s": set(NeededRight),
    "agent.privileged=false": {*NeededRight} - {NeededRight.MIG_CONFIG, NeededRight.POD_LOGS},
    "agent.podLogsPath=": {*NeededRight} - {NeededRight.POD_LOGS},
}


@pytest.mark.parametrize(("value", "given"), GIVEN.items(), ids=GIVEN)
def test_each_right_comes_with_its_value(helm: Helm, value: str, given: set[NeededRight]) -> None:
    """hack/agentfields.py says what the fields of its reports need."""
    assert rights(pod(helm.template("--set", value), "agent")) == given


def test_one_right_alone_is_said_to_come_with_the_agents_privileges() -> None:
    assert [need for need in NeededRight if "`agent.privileged:" in need.chart] == [NeededRight.MIG_CONFIG]
