"""What helm renders from the chart, without a cluster."""

import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.chart.charts import CHART, IMAGE, NAMESPACE, ROOT, VALUE_SETS, Helm, Manifest, find
from tests.chart.rbac import USERS

from gpusharing.agent.main import parse
from gpusharing.api.rules import DURATION, LABEL_KEY
from gpusharing.controller.settings import Settings, default_text, from_environment
from gpusharing.planning.snapshot.views import PlanSettings

CLUSTER_SCOPED = {
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "FlowSchema",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionPolicyBinding",
    "Namespace",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
}


@pytest.fixture(params=VALUE_SETS, ids=lambda path: path.stem)
def values(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture
def pods(helm: Helm, values: Path) -> list[Manifest]:
    """The templates of pods, and the pod of `helm test`."""
    objects = helm.applied("-f", str(values))
    found = [one for one in objects if one["kind"] == "Pod"]
    assert found
    return found + [one["spec"]["template"] for one in objects if one["kind"] in ("Deployment", "DaemonSet")]


def test_helm_lint_finds_nothing(helm: Helm, values: Path) -> None:
    helm.must("lint", "--strict", str(CHART), "-f", str(values))


class UniqueKeys(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = Counter(key.value for key, _ in node.value)
        assert keys.total() == len(keys), keys
        return super().construct_mapping(node, deep)


def test_no_label_of_yours_is_beside_one_of_the_chart_with_the_same_key(helm: Helm, values: Path) -> None:
    yours = ("--set", r"commonLabels.app\.kubernetes\.io/name=mine,crds.enabled=false")
    text = helm.must("template", "gpusharing", str(CHART), *IMAGE, "-f", str(values), *yours)
    for one in filter(None, yaml.load_all(text, UniqueKeys)):
        assert one["metadata"]["labels"].get("app.kubernetes.io/name") != "mine"


def test_every_namespaced_object_names_its_namespace(helm: Helm, values: Path) -> None:
    for one in helm.applied("-f", str(values)):
        assert ("namespace" in one["metadata"]) == (one["kind"] not in CLUSTER_SCOPED), one["metadata"]["name"]


@pytest.mark.parametrize(
    ("release", "agent", "nvidia"),
    [
        ("gpusharing", "gpusharing", "gpu-operator"),
        ("gpu-operator", "gpusharing-agent", "gpu-operator"),
        ("gpusharing", "gpu-operator", "gpu-operator"),
        ("gpu-operator", "gpu-operator", "gpu-operator"),
        ("default", "gpusharing-agent", "gpu-operator"),
        ("gpusharing", "default", "gpu-operator"),
        ("gpusharing", "gpusharing-agent", "default"),
        ("default", "default", "default"),
        ("kube-system", "kube-system", "kube-system"),
    ],
)
def test_no_object_is_rendered_twice_whichever_namespaces_are_the_same(
    helm: Helm, values: Path, release: str, agent: str, nvidia: str
) -> None:
    # Helm 4 lets the second object of a name overwrite the first; Helm 3 fails. The later -n wins.
    names = ("--set", f"agent.namespace={agent},agent.createNamespace=false,gpuOperator.namespace={nvidia}")
    objects = helm.applied("-f", str(values), "-n", release, *names, "--set", "gpuOperator.repairMps=true")
    counts = Counter(
        (one["apiVersion"].split("/")[0], one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"])
        for one in objects
    )
    assert {name for name, count in counts.items() if count > 1} == set()
    assert {space for _, kind, space, _ in counts if kind in ("Deployment", "DaemonSet")} == {release, agent}


def test_every_container_runs_one_of_our_programs(pods: list[Manifest]) -> None:
    """Images differ in what else they have: there is no `python` in ours from Debian's packages."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for pod in pods:
        assert [one["name"] for one in pod["spec"]["containers"] if one["command"][0] not in scripts] == []


def test_every_pod_may_run_where_each_node_waits_behind_the_start_up_taint(pods: list[Manifest]) -> None:
    """The operator alone would take it off, and `helm test` alone says why it stays."""
    for pod in pods:
        keys = [one.get("key") for one in pod["spec"].get("tolerations", ())]
        assert "gpusharing.dev/unproven" in keys, pod["metadata"]


def test_where_everything_is_denied_each_pod_reaches_the_api_server_by_its_own_network_policy(
    helm: Helm, values: Path
) -> None:
    objects = helm.applied("-f", str(values), "--set", "networkPolicy.enabled=true")
    policies = [one for one in objects if one["kind"] == "NetworkPolicy"]
    pods = [one for one in objects if one["kind"] == "Pod"]
    for owner in (one for one in objects if one["kind"] in ("Deployment", "DaemonSet")):
        pods.append(owner["spec"]["template"] | {"kind": owner["metadata"]["namespace"]})
    for pod in pods:
        namespace = pod["metadata"].get("namespace", pod["kind"])
        (rules,) = [
            one["spec"]
            for one in policies
            if one["metadata"]["namespace"] == namespace
            and one["spec"]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        ]
        assert {port["port"] for port in rules["egress"][0]["ports"]} == {443, 6443}


def test_the_defaults_are_those_of_the_operators_settings(helm: Helm) -> None:
    deployment = find(helm.template(), "Deployment", "gpusharing-operator")
    environ = {one["name"]: one.get("value") for one in pod_containers(deployment)[0]["env"]}
    settings = PlanSettings()
    assert environ["GPUSHARING_GPU_OPERATOR_NAMESPACE"] == settings.gpu_operator_namespace
    assert environ["GPUSHARING_PLUGIN_CONFIG_MAP"] == settings.plugin_config_map
    assert environ["GPUSHARING_MIG_CONFIG_MAP"] == settings.mig_config_map
    assert environ["GPUSHARING_MAX_IN_FLIGHT"] == str(settings.max_in_flight)
    assert environ["GPUSHARING_CONFIG_PROPAGATION"] == default_text(settings.config_propagation)
    assert environ["GPUSHARING_PROTECTED_NAMESPACES"] == default_text(settings.protected_namespaces)
    assert environ["GPUSHARING_REFUSE_UNSAFE_DRIVERS"] == default_text(settings.refuse_unsafe_drivers)
    assert environ["GPUSHARING_GUARD"] == settings.guard
    assert environ["GPUSHARING_UNSAFE_DRIVERS"] == default_text(settings.unsafe_drivers)
    assert environ["GPUSHARING_AGENT_NAMESPACE"] == Settings().agent_namespace
    assert settings.namespace == NAMESPACE


def test_the_operator_knows_every_variable_that_the_chart_sets(helm: Helm, values: Path) -> None:
    deployment = find(helm.template("-f", str(values)), "Deployment", "gpusharing-operator")
    environ = {one["name"]: one.get("value", NAMESPACE) for one in pod_containers(deployment)[0]["env"]}
    settings = from_environment(environ)
    assert settings.namespace == NAMESPACE
    assert settings.lease_name == USERS["operator"], "the Role names the Lease"


def test_the_agent_starts_with_what_the_chart_sets(helm: Helm, values: Path) -> None:
    agent = find(helm.template("-f", str(values)), "DaemonSet", "gpusharing-agent")
    environ = {one["name"]: one.get("value", "gpu-01") for one in pod_containers(agent)[0]["env"]}
    options = parse([], environ)
    assert options.node_name == "gpu-01"
    assert options.metrics_addr[1] == pod_containers(agent)[0]["ports"][0]["containerPort"]
    assert options.pod_resources_socket.parent == Path(pod_containers(agent)[0]["volumeMounts"][0]["mountPath"])


def test_the_chart_has_the_version_of_the_distribution() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert project is not None
    assert chart["appVersion"] == project[1]


def test_the_schema_and_the_operator_call_the_same_a_key_and_a_duration() -> None:
    definitions = json.loads((CHART / "values.schema.json").read_text())["definitions"]
    assert definitions["key"]["pattern"] == LABEL_KEY
    assert definitions["duration"]["pattern"] == DURATION


def test_the_schema_knows_exactly_the_values() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(schema["properties"]) == set(values)
    for key, part in schema["properties"].items():
        if "properties" in part:
            assert set(part["properties"]) == set(values[key]), key


def unrequired(schema: Manifest, part: Manifest, values: Manifest, *path: str) -> Iterator[tuple[str, bool]]:
    """The values that the schema lets be missing, by their path, and whether each is a list or a map without keys of ours."""
    for key in values.keys() & part.get("properties", {}).keys():
        one = part["properties"][key]
        kind = one.get("$ref", "").rpartition("/")[2]
        found = schema["definitions"].get(kind, one)
        ours = kind in ("", "serviceAccount", "monitor") and "properties" in found and key != "global"
        if key not in part.get("required", ()):
            yield ".".join((*path, key)), found.get("type") in ("array", "object") and not ours
        if ours:
            yield from unrequired(schema, found, values[key], *path, key)


def test_a_value_is_refused_by_name_where_it_is_missing_unless_that_means_none(helm: Helm) -> None:
    """With `helm upgrade --reuse-values` each value that an older chart did not have is missing, as after `=null`."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    found = dict(unrequired(schema, schema, values))
    assert [path for path, may_be_empty in found.items() if not may_be_empty] == []
    assert helm.template("--set", ",".join(f"{path}=null" for path in sorted(found)))
    assert "missing property 'enabled'" in helm.refusal("--set", "uninstallCheck.enabled=null")


def test_the_flow_schema_covers_every_call_for_the_lease_that_the_role_allows(helm: Helm) -> None:
    objects = helm.template()
    (rule,) = find(objects, "FlowSchema", "gpusharing-operator-lease")["spec"]["rules"]
    rules = [
        row
        for one in objects
        if one["kind"] == "Role" and one["metadata"]["namespace"] == NAMESPACE
        for row in one["rules"]
        if "leases" in row["resources"]
    ]
    assert rules
    assert set(rule["resourceRules"][0]["verbs"]) == {verb for row in rules for verb in row["verbs"]}


def pod_containers(workload: Manifest) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = workload["spec"]["template"]["spec"]["containers"]
    return found
