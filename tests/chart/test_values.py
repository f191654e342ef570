"""What each value does, as users of cert-manager's and CloudNativePG's charts know it. Without a cluster."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.chart.charts import CHART, NAMESPACE, Helm, Manifest, find

from gpusharing.agent.loop import LoopSettings
from gpusharing.agent.main import parse
from gpusharing.checks.__main__ import place_of
from gpusharing.cli.pricing import PRODUCT_METRIC
from gpusharing.planning.stack.installationviews import AGENT, OPERATOR

PARTS = {
    "operator": ("Deployment", "gpusharing-operator"),
    "agent": ("DaemonSet", "gpusharing-agent"),
}


def pod(objects: list[Manifest], part: str) -> dict[str, Any]:
    """The pod's spec of a part."""
    spec: dict[str, Any] = find(objects, *PARTS[part])["spec"]["template"]["spec"]
    return spec


def container(objects: list[Manifest], part: str) -> dict[str, Any]:
    """The one container of a part."""
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


IMAGES = {
    "image.repository=r.test/x": "r.test/x:0.1.0",
    "image.registry=r.test/team,image.repository=x": "r.test/team/x:0.1.0",
    "image.registry=r.test,image.repository=": "r.test/gpu-sharing-operator:0.1.0",
    "global.imageRegistry=mirror.test/,image.registry=r.test,image.repository=x,image.tag=v2": "mirror.test/x:v2",
    "image.repository=x,image.tag=v2,image.digest=sha256:" + "0" * 64: "x@sha256:" + "0" * 64,
}


@pytest.mark.parametrize("value", IMAGES)
def test_one_image_for_every_container(helm: Helm, value: str) -> None:
    objects = helm.template("--set", value)
    jobs = [one["spec"]["template"]["spec"]["containers"] for one in objects if one["kind"] == "Job"]
    assert jobs, "the hook"
    images = {one["image"] for found in jobs for one in found}
    assert images | {container(objects, part)["image"] for part in PARTS} == {IMAGES[value]}


def test_without_an_image_helm_says_how_to_get_one_and_renders_nothing(helm: Helm) -> None:
    done = helm.run("template", "gpusharing", str(CHART), "-n", NAMESPACE)
    assert done.returncode != 0
    assert done.stdout == ""
    assert "build the image (deploy/Dockerfile), push it where your nodes can pull it" in done.stderr
    assert "--set image.repository=REGISTRY/gpu-sharing-operator" in done.stderr


@pytest.mark.parametrize(
    ("version", "accepted"), [("1.29.9", False), ("1.30.0", True), ("1.36.0-gke.100", True)]
)
def test_an_api_server_older_than_1_30_is_refused(helm: Helm, version: str, accepted: bool) -> None:
    if accepted:
        assert helm.template("--kube-version", version)
    else:
        wanted = f"chart requires kubeVersion: >=1.30.0-0 which is incompatible with Kubernetes v{version}"
        assert wanted in helm.refusal("--kube-version", version)


@pytest.mark.parametrize("part", PARTS)
def test_variables_volumes_and_mounts_are_added_to_the_charts_own(helm: Helm, part: str) -> None:
    before = helm.template()
    after = helm.template(
        "--set-json",
        f'{part}.extraEnv=[{{"name":"HTTPS_PROXY","value":"http://proxy.test"}}],'
        f'{part}.extraVolumes=[{{"name":"ca","configMap":{{"name":"ca"}}}}],'
        f'{part}.extraVolumeMounts=[{{"name":"ca","mountPath":"/ca"}}]',
    )
    for where, name in (("env", "HTTPS_PROXY"), ("volumeMounts", "ca")):
        own, now = container(before, part)[where], container(after, part)[where]
        assert now[:-1] == own
        assert now[-1]["name"] == name
    assert pod(after, part)["volumes"] == [
        *pod(before, part)["volumes"],
        {"name": "ca", "configMap": {"name": "ca"}},
    ]


@pytest.mark.parametrize("part", PARTS)
def test_an_entry_that_stands_twice_among_the_extra_ones_is_refused(helm: Helm, part: str) -> None:
    twice = f"{part}.extraEnv[0].name=A,{part}.extraEnv[1].name=A"
    assert f"{part}.extraEnv: A is set by the chart; the entry would be there twice" in helm.refusal(
        "--set", twice
    )


@pytest.mark.parametrize("part", PARTS)
def test_security_contexts_are_merged_and_a_null_takes_a_key_away(helm: Helm, part: str) -> None:
    set_ = (
        f"{part}.securityContext.seLinuxOptions.type=spc_t,{part}.securityContext.runAsUser=null,"
        f"{part}.containerSecurityContext.seLinuxOptions.level=s0"
    )
    before, after = helm.template(), helm.template("--set", set_)
    own = dict(pod(before, part)["securityContext"])
    del own["runAsUser"]
    assert pod(after, part)["securityContext"] == {**own, "seLinuxOptions": {"type": "spc_t"}}
    assert container(after, part)["securityContext"] == {
        **container(before, part)["securityContext"],
        "seLinuxOptions": {"level": "s0"},
    }


def test_the_container_context_cannot_undo_what_privileged_says(helm: Helm) -> None:
    objects = helm.template(
        "--set-json",
        'agent.privileged=false,agent.containerSecurityContext={"allowPrivilegeEscalation":true}',
    )
    assert container(objects, "agent")["securityContext"]["allowPrivilegeEscalation"] is False


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
    without = helm.template("--set", f"{set_},{part}.serviceAccount.create=false")
    left = {one["metadata"]["name"] for one in without if one["kind"] == "ServiceAccount"}
    (kept,) = (name for key, (_, name) in PARTS.items() if key != part)
    assert left == {kept, "gpusharing-checks", "gpusharing-rollback-check"}


def test_affinity_and_spread_reach_the_pods(helm: Helm) -> None:
    rule = '{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[]}}}'
    spread = '[{"maxSkew":1,"topologyKey":"zone","whenUnsatisfiable":"ScheduleAnyway"}]'
    objects = helm.template(
        "--set-json", f"agent.affinity={rule},operator.topologySpreadConstraints={spread}"
    )
    assert "nodeAffinity" in pod(objects, "agent")["affinity"]
    assert pod(objects, "operator")["topologySpreadConstraints"][0]["maxSkew"] == 1


def test_new_agents_replace_old_ones_as_told(helm: Helm) -> None:
    strategies = [
        find(helm.template("--set", value), *PARTS["agent"])["spec"]["updateStrategy"]
        for value in (
            "agent.updateStrategy.type=OnDelete",
            "agent.updateStrategy.rollingUpdate.maxUnavailable=3",
        )
    ]
    assert strategies == [
        {"type": "OnDelete"},
        {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 3}},
    ]
    operator = find(helm.template(), *PARTS["operator"])["spec"]
    assert operator["strategy"] == {"type": "Recreate"}, "never two at a time"


@pytest.mark.parametrize(
    ("value", "seconds"), [("agent.interval=30", LoopSettings().hung_after), ("agent.hungAfter=90", 90.0)]
)
def test_hung_after_reaches_the_agent(helm: Helm, value: str, seconds: float) -> None:
    environ = {
        one["name"]: one.get("value", "n") for one in container(helm.template("--set", value), "agent")["env"]
    }
    assert parse([], environ).hung_after == seconds


def test_labels_of_all_objects_and_pods(helm: Helm) -> None:
    values = (
        "commonLabels.team=gpu,commonLabels.app\\.kubernetes\\.io/instance=mine,"
        "operator.podLabels.app\\.kubernetes\\.io/name=mine"
    )
    for one in helm.template("--set", values):
        assert one["metadata"]["labels"]["team"] == "gpu", one["metadata"]["name"]
        assert one["metadata"]["labels"]["app.kubernetes.io/instance"] == "gpusharing", "what selects stays"
        if one["kind"] in ("Deployment", "DaemonSet"):
            labels = one["spec"]["template"]["metadata"]["labels"]
            assert labels["team"] == "gpu"
            assert labels["app.kubernetes.io/name"] == one["metadata"]["name"]


QUOTAS = {
    "rbac.create=true": {
        ("gpusharing", "system-cluster-critical"),
        ("gpusharing-agent", "system-node-critical"),
    },
    "operator.priorityClassName=": {("gpusharing-agent", "system-node-critical")},
    "agent.priorityClassName=our-own": {("gpusharing", "system-cluster-critical")},
    "agent.namespace=kube-system,agent.createNamespace=false": {("gpusharing", "system-cluster-critical")},
    "agent.namespace=,agent.createNamespace=false": {
        ("gpusharing", "system-cluster-critical"),
        ("gpusharing", "system-node-critical"),
    },
    "priorityClassQuota=false": set(),
}


@pytest.mark.parametrize("value", QUOTAS)
def test_where_critical_pods_run_a_quota_lets_them_in_and_never_in_kube_system(
    helm: Helm, value: str
) -> None:
    found = set()
    for one in helm.template("--set", value):
        if one["kind"] == "ResourceQuota":
            assert one["spec"]["hard"] == {"pods": "1G"}, "it must not limit anything"
            (scope,) = one["spec"]["scopeSelector"]["matchExpressions"]
            found |= {(one["metadata"]["namespace"], name) for name in scope["values"]}
    assert found == QUOTAS[value]


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """A chart that has ours as a dependency with a condition."""
    chart = tmp_path / "parent"
    shutil.copytree(CHART, chart / "charts" / "gpu-sharing-operator")
    dependency = {
        "name": "gpu-sharing-operator",
        "version": "0.1.0",
        "condition": "gpu-sharing-operator.enabled",
    }
    about = {"apiVersion": "v2", "name": "parent", "version": "1.0.0", "dependencies": [dependency]}
    (chart / "Chart.yaml").write_text(yaml.safe_dump(about))
    return chart


def test_a_parent_chart_switches_ours_on_and_off_and_shares_its_registry(helm: Helm, parent: Path) -> None:
    on = helm.run(
        "template",
        "big",
        str(parent),
        "-n",
        NAMESPACE,
        "--set",
        "global.imageRegistry=mirror.test,global.other=1",
    )
    assert on.returncode == 0, on.stderr
    assert "image: mirror.test/gpu-sharing-operator:0.1.0" in on.stdout
    off = helm.run(
        "template", "big", str(parent), "-n", NAMESPACE, "--set", "gpu-sharing-operator.enabled=false"
    )
    assert (off.returncode, off.stdout.strip()) == (0, ""), off.stderr


def test_the_operator_may_write_just_the_marks_for_neighbours_that_it_is_told(helm: Helm) -> None:
    def listed(*options: str) -> str:
        rules = find(helm.template(*options), "ValidatingAdmissionPolicy", "gpusharing-operator-node-fields")
        (found,) = (row["expression"] for row in rules["spec"]["variables"] if row["name"] == "foreignLabels")
        return str(found).partition("!(key in [")[2].partition("])")[0].replace("'", "").replace("\n", "")

    ours = listed()
    more = listed(
        "--set-json", 'operator.neighbourLabels={"repair.example.com/hands-off":"true","watchdog":"off"}'
    )
    assert more == f"{ours}, repair.example.com/hands-off, watchdog"
    assert ours.endswith("remediation.medik8s.io/exclude-from-remediation")


def test_helm_test_asks_for_the_accounts_that_the_pods_have(helm: Helm) -> None:
    objects = helm.template(
        "--set", "operator.serviceAccount.name=a,agent.serviceAccount.name=b,agent.namespace=agents"
    )
    environ = {
        one["name"]: one["value"]
        for one in find(objects, "Pod", "gpusharing-checks")["spec"]["containers"][0]["env"]
    }
    place = place_of(environ)
    assert (place.account(OPERATOR), place.account(AGENT)) == ("gpusharing/a", "agents/b")
