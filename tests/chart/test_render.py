"""What helm renders from the chart, without a cluster."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from syrupy.assertion import SnapshotAssertion
from tests.chart.charts import CHART, NAMESPACE, ROOT, VALUE_SETS, Helm, Manifest, find
from tests.chart.rbac import USERS

from gpusharing.agent.main import parse
from gpusharing.api.rules import LABEL_KEY
from gpusharing.controller.settings import from_environment
from gpusharing.planning.views import Settings

CLUSTER_SCOPED = {
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "Namespace",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
}


@pytest.fixture(params=VALUE_SETS, ids=lambda path: path.stem)
def values(request: pytest.FixtureRequest) -> Path:
    """One of the value sets in ci/."""
    path: Path = request.param
    return path


def pod_templates(objects: list[Manifest]) -> Iterator[Manifest]:
    return (one["spec"]["template"] for one in objects if one["kind"] in ("Deployment", "DaemonSet"))


def test_helm_lint_finds_nothing(helm: Helm, values: Path) -> None:
    done = helm.run("lint", "--strict", str(CHART), "-f", str(values))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_objects_are_those_of_the_snapshot(helm: Helm, values: Path, snapshot: SnapshotAssertion) -> None:
    objects = helm.template("-f", str(values))
    ours = [one for one in objects if one["kind"] != "CustomResourceDefinition"]  # checked by `make gen`
    assert yaml.safe_dump_all(ours, sort_keys=False, width=110) == snapshot


def test_every_namespaced_object_names_its_namespace(helm: Helm, values: Path) -> None:
    for one in helm.template("-f", str(values)):
        assert ("namespace" in one["metadata"]) == (one["kind"] not in CLUSTER_SCOPED), one["metadata"][
            "name"
        ]


def test_no_environment_variable_is_set_twice(helm: Helm, values: Path) -> None:
    """helm 4 applies on the server, where a second entry of the same name is an error."""
    for template in pod_templates(helm.template("-f", str(values))):
        for container in template["spec"]["containers"]:
            names = [one["name"] for one in container["env"]]
            assert sorted(names) == sorted(set(names))
            assert all("value" in one or "valueFrom" in one for one in container["env"])


def test_the_selectors_match_the_pods(helm: Helm, values: Path) -> None:
    for one in helm.template("-f", str(values)):
        if one["kind"] in ("Deployment", "DaemonSet"):
            selector = one["spec"]["selector"]["matchLabels"]
            assert selector.items() <= one["spec"]["template"]["metadata"]["labels"].items()


def test_the_defaults_are_those_of_the_operators_settings(helm: Helm) -> None:
    deployment = find(helm.template(), "Deployment", "gpusharing-operator")
    environ = {one["name"]: one.get("value") for one in pod_containers(deployment)[0]["env"]}
    settings = Settings()
    assert environ["GPUSHARING_GPU_OPERATOR_NAMESPACE"] == settings.gpu_operator_namespace
    assert environ["GPUSHARING_PLUGIN_CONFIG_MAP"] == settings.plugin_config_map
    assert environ["GPUSHARING_MIG_CONFIG_MAP"] == settings.mig_config_map
    assert environ["GPUSHARING_MAX_IN_FLIGHT"] == str(settings.max_in_flight)
    assert environ["GPUSHARING_CONFIG_PROPAGATION"] == str(int(settings.config_propagation))
    assert settings.namespace == NAMESPACE


def test_the_operator_knows_every_variable_that_the_chart_sets(helm: Helm, values: Path) -> None:
    deployment = find(helm.template("-f", str(values)), "Deployment", "gpusharing-operator")
    environ = {one["name"]: one.get("value", NAMESPACE) for one in pod_containers(deployment)[0]["env"]}
    settings = from_environment(environ)
    assert settings.plan.namespace == NAMESPACE
    assert settings.lease_name == USERS["operator"], "the Role names the Lease"


def test_the_agent_starts_with_what_the_chart_sets(helm: Helm, values: Path) -> None:
    agent = find(helm.template("-f", str(values)), "DaemonSet", "gpusharing-agent")
    environ = {one["name"]: one.get("value", "gpu-01") for one in pod_containers(agent)[0]["env"]}
    options = parse([], environ)
    assert options.node_name == "gpu-01"
    assert options.metrics_addr[1] == pod_containers(agent)[0]["ports"][0]["containerPort"]
    assert options.pod_resources_socket.parent == Path(
        pod_containers(agent)[0]["volumeMounts"][0]["mountPath"]
    )


def test_the_agent_has_the_node_name_and_no_capability(helm: Helm) -> None:
    container = pod_containers(find(helm.template(), "DaemonSet", "gpusharing-agent"))[0]
    node_name = {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
    assert node_name in container["env"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert [mount["readOnly"] for mount in container["volumeMounts"]] == [True]


def test_the_image_is_the_digest_when_there_is_one(helm: Helm) -> None:
    digest = "sha256:" + "0" * 64
    objects = helm.template("--set", f"image.repository=example.test/x,image.tag=v1,image.digest={digest}")
    images = {template["spec"]["containers"][0]["image"] for template in pod_templates(objects)}
    assert images == {f"example.test/x@{digest}"}


def test_the_chart_has_the_version_of_the_distribution() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert project is not None
    assert chart["appVersion"] == project[1]


REFUSED = {
    "operator.replica=1": "at '/operator': additional properties 'replica' not allowed",
    "operator.replicas=2": "at '/operator/replicas': maximum: got 2, want 1",
    "agnet.hostPID=true": "additional properties 'agnet' not allowed",
    "agent.hostPID=maybe": "at '/agent/hostPID': got string, want boolean",
    "agent.maxUnavailable=0": "at '/agent/maxUnavailable'",
    "agent.maxUnavailable=1000a%": "at '/agent/maxUnavailable'",
    "image.digest=latest": "at '/image/digest': 'latest' does not match pattern",
    "operator.maintenanceKeys[0]=a=b": "at '/operator/maintenanceKeys/0': 'a=b' does not match pattern",
    "operator.maintenanceKeys=maintenance": "at '/operator/maintenanceKeys': got string, want array",
    "operator.log.level=loud": "at '/operator/log/level': value must be one of 'debug'",
    "gpuOperator.namespace=Not_A_Name": "at '/gpuOperator/namespace': 'Not_A_Name' does not match pattern",
    "agent.tolerations[0].opertor=Exists": "at '/agent/tolerations/0': additional properties 'opertor'",
    "agent.createNamespace=true": "agent.createNamespace needs agent.namespace",
}


@pytest.mark.parametrize("value", REFUSED)
def test_a_wrong_value_is_refused_by_name(helm: Helm, value: str) -> None:
    assert REFUSED[value] in helm.refusal("--set", value)


def test_the_schema_and_the_operator_call_the_same_a_key() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema["definitions"]["key"]["pattern"] == LABEL_KEY


def test_the_schema_knows_exactly_the_values() -> None:
    """A value without a schema entry would be refused, an entry without a value is not documented."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(schema["properties"]) - {"global"} == set(values)
    for key, part in schema["properties"].items():
        if part.get("additionalProperties") is False:
            assert set(part["properties"]) == set(values[key]), key


def test_crds_can_be_left_to_others_and_are_kept_on_uninstall(helm: Helm) -> None:
    kept = [one for one in helm.template() if one["kind"] == "CustomResourceDefinition"]
    assert [one["metadata"]["annotations"] for one in kept] == [{"helm.sh/resource-policy": "keep"}] * 2
    kinds = {one["kind"] for one in helm.template("--set", "crds.install=false")}
    assert "CustomResourceDefinition" not in kinds


def pod_containers(workload: Manifest) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = workload["spec"]["template"]["spec"]["containers"]
    return found
