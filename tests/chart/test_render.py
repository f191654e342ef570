"""What helm renders from the chart, without a cluster."""

import json
import re
import tomllib
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
from gpusharing.controller.settings import Settings, default_text, from_environment
from gpusharing.kube.login import SERVICE_ACCOUNT
from gpusharing.planning.snapshot.views import PlanSettings

CLUSTER_SCOPED = {
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "FlowSchema",
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


def test_every_container_runs_one_of_our_programs(helm: Helm, values: Path) -> None:
    """Images differ in what else they have: there is no `python` in ours from Debian's packages."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    objects = helm.template("-f", str(values))
    pods = [one for one in objects if one["kind"] == "Pod"]
    jobs = [one["spec"]["template"] for one in objects if one["kind"] == "Job"]
    assert pods, "helm test"
    assert jobs, "helm uninstall"
    for pod in (*pod_templates(objects), *pods, *jobs):
        assert [one["name"] for one in pod["spec"]["containers"] if one["command"][0] not in scripts] == []


def test_every_pod_may_run_where_each_node_waits_behind_the_start_up_taint(helm: Helm, values: Path) -> None:
    """The operator alone would take it off, and `helm test` alone says why it stays."""
    objects = helm.template("-f", str(values))
    pods = [one for one in objects if one["kind"] == "Pod"]
    pods += [one["spec"]["template"] for one in objects if one["kind"] == "Job"]
    for pod in (*pod_templates(objects), *pods):
        keys = [one.get("key") for one in pod["spec"].get("tolerations", ())]
        assert "gpusharing.dev/unproven" in keys, pod["metadata"]


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
    settings = PlanSettings()
    assert environ["GPUSHARING_GPU_OPERATOR_NAMESPACE"] == settings.gpu_operator_namespace
    assert environ["GPUSHARING_PLUGIN_CONFIG_MAP"] == settings.plugin_config_map
    assert environ["GPUSHARING_MIG_CONFIG_MAP"] == settings.mig_config_map
    assert environ["GPUSHARING_MAX_IN_FLIGHT"] == str(settings.max_in_flight)
    assert environ["GPUSHARING_CONFIG_PROPAGATION"] == str(int(settings.config_propagation))
    assert environ["GPUSHARING_PROTECTED_NAMESPACES"] == default_text(settings.protected_namespaces)
    assert environ["GPUSHARING_REFUSE_UNSAFE_DRIVERS"] == default_text(settings.refuse_unsafe_drivers)
    assert environ["GPUSHARING_UNSAFE_DRIVERS"] == default_text(settings.unsafe_drivers)
    assert environ["GPUSHARING_AGENT_NAMESPACE"] == Settings().agent_namespace
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


def test_each_part_is_told_where_it_runs(helm: Helm) -> None:
    for kind, name, variable, path in (
        ("DaemonSet", "gpusharing-agent", "NODE_NAME", "spec.nodeName"),
        ("Deployment", "gpusharing-operator", "GPUSHARING_NAMESPACE", "metadata.namespace"),
        ("Deployment", "gpusharing-operator", "GPUSHARING_POD_NAME", "metadata.name"),
    ):
        container = pod_containers(find(helm.template(), kind, name))[0]
        assert {"name": variable, "valueFrom": {"fieldRef": {"fieldPath": path}}} in container["env"]


def test_the_lists_reach_the_operator_and_the_admission_policy(helm: Helm) -> None:
    objects = helm.template(
        "--set-json",
        'operator.protectedNamespaces=["kube-system","a"],operator.unsafeDrivers=["570","580.95.05"]',
    )
    environ = {
        one["name"]: one.get("value", "x")
        for one in pod_containers(find(objects, "Deployment", "gpusharing-operator"))[0]["env"]
    }
    plan = from_environment(environ).plan
    assert (plan.protected_namespaces, plan.unsafe_drivers) == (("kube-system", "a"), ("570", "580.95.05"))
    policy = find(objects, "ValidatingAdmissionPolicy", "gpusharing-operator-evictions")
    assert policy["spec"]["validations"][0]["expression"] == '!(request.namespace in ["kube-system","a"])'


def test_the_tokens_of_both_pods_live_for_an_hour(helm: Helm, values: Path) -> None:
    for template in pod_templates(helm.template("-f", str(values))):
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False, "that one lives for a year"
        (volume,) = [one for one in pod["volumes"] if "projected" in one]
        sources = {key: value for source in volume["projected"]["sources"] for key, value in source.items()}
        assert sources["serviceAccountToken"] == {"path": "token", "expirationSeconds": 3600}
        assert sources["configMap"]["name"] == "kube-root-ca.crt"
        (mount,) = [one for one in pod["containers"][0]["volumeMounts"] if one["name"] == volume["name"]]
        assert mount["mountPath"] == str(SERVICE_ACCOUNT)
        assert mount["readOnly"] is True


def test_agent_and_operator_live_in_namespaces_of_their_own_and_the_agents_is_created(helm: Helm) -> None:
    objects = helm.template()
    assert find(objects, "Deployment", "gpusharing-operator")["metadata"]["namespace"] == NAMESPACE
    space = find(objects, "DaemonSet", "gpusharing-agent")["metadata"]["namespace"]
    assert space != NAMESPACE
    labels = find(objects, "Namespace", space)["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "privileged"


def test_one_namespace_for_both_is_possible(helm: Helm) -> None:
    objects = helm.template("--set", "agent.namespace=,agent.createNamespace=false")
    assert find(objects, "DaemonSet", "gpusharing-agent")["metadata"]["namespace"] == NAMESPACE
    assert [one for one in objects if one["kind"] == "Namespace"] == []


@pytest.mark.parametrize(
    ("values_", "granted"),
    [
        (
            "rbac.create=true",
            {"gpusharing-viewer": {"view"}, "gpusharing-planner": set(), "gpusharing-editor": set()},
        ),
        ("rbac.aggregatePlanner=true", {"gpusharing-planner": {"view"}}),
        ("rbac.aggregateToAdmin=true", {"gpusharing-viewer": {"view"}, "gpusharing-editor": {"admin"}}),
        ("rbac.aggregate=false", {"gpusharing-viewer": set(), "gpusharing-editor": set()}),
    ],
    ids=["by default", "what a plan needs by choice", "admin by choice", "none"],
)
def test_built_in_roles_include_what_the_values_say_and_edit_never_policies(
    helm: Helm, values_: str, granted: dict[str, set[str]]
) -> None:
    objects = helm.template("--set", values_)
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    for role, names in granted.items():
        labels = find(objects, "ClusterRole", role)["metadata"]["labels"]
        assert {key.removeprefix(prefix) for key in labels if key.startswith(prefix)} == names


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
    "agent.hostPID=false": "agent.hostPID can no longer be set",
    "operator.protectedNamespaces[0]=kube_system": "at '/operator/protectedNamespaces/0': 'kube_system' does not match",
    "operator.unsafeDrivers[0]=R570": "at '/operator/unsafeDrivers/0': 'R570' does not match pattern",
    "operator.refuseUnsafeDrivers=no": "at '/operator/refuseUnsafeDrivers': got string, want boolean",
    "agent.updateStrategy.rollingUpdate.maxUnavailable=0": "at '/agent/updateStrategy/rollingUpdate",
    "agent.updateStrategy.rollingUpdate.maxUnavailable=1000a%": "at '/agent/updateStrategy/rollingUpdate",
    "agent.updateStrategy.type=Recreate": "at '/agent/updateStrategy/type': value must be one of 'RollingUpdate'",
    "agent.maxUnavailable=2": "agent.maxUnavailable has moved: agent.updateStrategy.rollingUpdate.maxUnavailable",
    "agent.hungAfter=0": "at '/agent/hungAfter': minimum: got 0, want 1",
    "podMonitor.enabled=true": "podMonitor has moved: monitoring.podMonitor",
    "monitoring.podMonitor.enabled=true,monitoring.serviceMonitor.enabled=true": "would scrape everything twice",
    "monitoring.prometheusRule.runbookUrl=docs": "at '/monitoring/prometheusRule/runbookUrl': 'docs' does not match",
    "monitoring.gpuHourlyPrices.H100=-3": "at '/monitoring/gpuHourlyPrices/H100': got number, want string",
    "monitoring.gpuHourlyPrices.H100=$3": "at '/monitoring/gpuHourlyPrices/H100': '$3' does not match",
    "monitoring.gpuHourlyPrices.H100=010": "at '/monitoring/gpuHourlyPrices/H100': '010' does not match",
    "monitoring.currency=dollars": "at '/monitoring/currency': 'dollars' does not match",
    "enabled=false": "enabled=false has no effect by itself",
    "image.repository=": "image.repository is needed: build the image (deploy/Dockerfile)",
    "image.repository=Registry:tag@": "at '/image/repository'",
    "operator.serviceAccount.create=false": "operator.serviceAccount.name is needed where create is false",
    "agent.serviceAccount.create=false": "agent.serviceAccount.name is needed where create is false",
    "operator.securityContext.privileged=true": "at '/operator/securityContext': additional properties 'privileged'",
    "agent.securityContext.seLinuxOptions.typ=spc_t": "at '/agent/securityContext/seLinuxOptions'",
    "operator.extraEnv[0].name=GPUSHARING_LISTEN": "operator.extraEnv: GPUSHARING_LISTEN is set by the chart",
    "agent.extraEnv[0].name=NODE_NAME": "agent.extraEnv: NODE_NAME is set by the chart",
    "agent.extraVolumes[0].name=pod-resources": "agent.extraVolumes: pod-resources is set by the chart",
    "operator.extraVolumes[0].name=service-account": "operator.extraVolumes: service-account is set by the chart",
    "operator.extraVolumeMounts[0].name=ca": "at '/operator/extraVolumeMounts/0': missing property 'mountPath'",
    "image.digest=latest": "at '/image/digest': 'latest' does not match pattern",
    "operator.maintenanceKeys[0]=a=b": "at '/operator/maintenanceKeys/0': 'a=b' does not match pattern",
    "operator.maintenanceKeys=maintenance": "at '/operator/maintenanceKeys': got string, want array",
    "operator.neighbourLabels.hands-off=a b": "at '/operator/neighbourLabels/hands-off': 'a b' does not match pattern",
    "operator.neighbourLabels[0]=hands-off": "at '/operator/neighbourLabels': got array, want object",
    "operator.log.level=loud": "at '/operator/log/level': value must be one of 'debug'",
    "gpuOperator.namespace=Not_A_Name": "at '/gpuOperator/namespace': 'Not_A_Name' does not match pattern",
    "agent.tolerations[0].opertor=Exists": "at '/agent/tolerations/0': additional properties 'opertor'",
    "gpuOperator.adminPluginConfigMap=gpusharing-device-plugin": "adminPluginConfigMap names the operator's own",
    "gpuOperator.adminMigConfigMap=gpusharing-device-plugin": "adminMigConfigMap names the operator's own",
    "agent.namespace=gpusharing": "agent.createNamespace needs an agent.namespace other than the release's",
    "agent.namespace=": "agent.createNamespace needs an agent.namespace other than the release's",
}


@pytest.mark.parametrize("value", REFUSED)
def test_a_wrong_value_is_refused_by_name(helm: Helm, value: str) -> None:
    assert REFUSED[value] in helm.refusal("--set", value)


def test_the_schema_and_the_operator_call_the_same_a_key() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema["definitions"]["key"]["pattern"] == LABEL_KEY


GONE = {"": {"podMonitor"}, "agent": {"hostPID", "maxUnavailable"}}
"""Values of earlier charts: without a schema entry helm would not get as far as the template that says why."""


def test_the_schema_knows_exactly_the_values() -> None:
    """A value without a schema entry would be refused, an entry without a value is not documented."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(schema["properties"]) - GONE[""] == set(values)
    for key, part in schema["properties"].items():
        if part.get("additionalProperties") is False:
            assert set(part["properties"]) - GONE.get(key, set()) == set(values[key]), key


def test_the_flow_schema_names_the_lease_and_the_account_that_the_operator_has(helm: Helm) -> None:
    objects = helm.template()
    spec = find(objects, "FlowSchema", "gpusharing-operator-lease")["spec"]
    assert spec["priorityLevelConfiguration"] == {"name": "leader-election"}
    (rule,) = spec["rules"]
    account = find(objects, "Deployment", "gpusharing-operator")["spec"]["template"]["spec"][
        "serviceAccountName"
    ]
    assert rule["subjects"][0]["serviceAccount"] == {"namespace": NAMESPACE, "name": account}
    role = next(
        one
        for one in objects
        if one["kind"] == "Role"
        and one["metadata"]["namespace"] == NAMESPACE
        and any("leases" in rule["resources"] for rule in one["rules"])
    )
    granted = {verb for rule in role["rules"] if "leases" in rule["resources"] for verb in rule["verbs"]}
    assert set(rule["resourceRules"][0]["verbs"]) == granted
    kinds = {one["kind"] for one in helm.template("--set", "operator.leaseFlowSchema=false")}
    assert "FlowSchema" not in kinds


def test_crds_can_be_left_to_others_and_are_kept_on_uninstall(helm: Helm) -> None:
    kept = [one for one in helm.template() if one["kind"] == "CustomResourceDefinition"]
    assert [one["metadata"]["annotations"] for one in kept] == [{"helm.sh/resource-policy": "keep"}] * 2
    kinds = {one["kind"] for one in helm.template("--set", "crds.install=false")}
    assert "CustomResourceDefinition" not in kinds


def pod_containers(workload: Manifest) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = workload["spec"]["template"]["spec"]["containers"]
    return found


def test_a_wrong_value_of_configure_is_named(helm: Helm) -> None:
    assert "configure" in helm.refusal("--set-string", "gpuOperator.configure=maybe")


def test_a_hook_whose_image_cannot_be_pulled_ends_before_helm_gives_up_and_leaves_its_pod_to_tell(
    helm: Helm,
) -> None:
    rendered = helm.template()
    names = ("gpusharing-uninstall-check", "gpusharing-rollback-check")
    jobs = [find(rendered, "Job", name)["spec"] for name in names]
    pods = [
        *(job["template"]["spec"] for job in jobs),
        find(rendered, "Pod", "gpusharing-checks")["spec"],
    ]
    helm_waits = 300  # helm's own --timeout
    assert all(pod["activeDeadlineSeconds"] < helm_waits for pod in pods)
    # A Job whose deadline passes deletes its pod.
    for pod, job in zip(pods, jobs, strict=False):
        assert pod["activeDeadlineSeconds"] < job["activeDeadlineSeconds"] < helm_waits
