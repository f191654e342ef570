"""The chart grants what the golden table says, and nothing else."""

import pytest
import yaml
from hack.generate import ROOT
from tests.chart.charts import Helm
from tests.chart.rbac import USERS, RoleGrant, golden, granted

NAMESPACES = {"gpusharing": "own", "gpusharing-agent": "agent", "gpu-operator": "gpu-operator"}


def rendered(helm: Helm, *arguments: str) -> frozenset[RoleGrant]:
    return granted(helm.applied(*arguments), NAMESPACES)


def test_the_roles_are_those_of_the_golden_table(helm: Helm) -> None:
    found, wanted = rendered(helm), golden()
    assert sorted(found - wanted) == [], "granted, but not in rbac.yaml"
    assert sorted(wanted - found) == [], "in rbac.yaml, but not granted"


MORE = {
    "gpuOperator.configure": {("clusterpolicies", "patch")},
    "gpuOperator.repairMps": {("daemonsets", "patch")},
    "forceDelete": {("pods", "delete")},
    "dra.deviceTaints": {("devicetaintrules", "create"), ("replicasets", "patch")},
}


@pytest.mark.parametrize("value", MORE)
def test_a_value_that_asks_for_more_gets_that_and_nothing_else(helm: Helm, value: str) -> None:
    found, wanted = rendered(helm, "--set", f"{value}=true"), golden(value)
    assert sorted(found ^ wanted) == []
    assert {(one.resource, one.verb) for one in wanted - golden()} == MORE[value]


def test_every_binding_has_the_name_of_its_role(helm: Helm) -> None:
    more = ",".join(f"{value}=true" for value in (*MORE, "openshift.createSCC"))
    bindings = [one for one in helm.applied("--set", more) if one["kind"].endswith("RoleBinding")]
    assert bindings
    assert [one["metadata"]["name"] for one in bindings] == [one["roleRef"]["name"] for one in bindings]


def test_no_grant_is_wide(helm: Helm) -> None:
    never = {"secrets", "serviceaccounts", "clusterroles", "roles", "rolebindings", "clusterrolebindings"}
    for grant in rendered(helm):
        assert "*" not in (grant.group, grant.resource, grant.subresource, grant.verb)
        assert grant.resource not in never
        assert grant.verb not in ("update", "deletecollection", "impersonate", "escalate", "bind")


@pytest.mark.parametrize("secure", [True, False])
def test_the_agent_reaches_nothing_but_gpunodes_and_asks_who_reads_its_metrics(helm: Helm, secure: bool) -> None:
    reviews = {("tokenreviews", "create"), ("subjectaccessreviews", "create")} if secure else set()
    grants = rendered(helm, "--set", f"agent.secureMetrics={str(secure).lower()}")
    found = {(one.resource, one.verb) for one in grants if one.subject == "agent"}
    assert found == {("gpunodes", verb) for verb in ("list", "watch", "patch")} | reviews


def readers(helm: Helm, *arguments: str) -> list[str]:
    """Who is bound to the role that lets somebody read the agents' metrics."""
    objects = helm.template(*arguments)
    bindings = [one for one in objects if one["metadata"]["name"] == "gpusharing-metrics-reader"]
    subjects = [who for one in bindings for who in one.get("subjects", ())]
    return [f"{who['namespace']}/{who['name']}" for who in subjects]


def test_nobody_may_read_the_agents_metrics_but_who_is_named_and_the_account_of_the_monitors(helm: Helm) -> None:
    assert readers(helm) == []
    named = "monitoring.readers={monitoring/prometheus-k8s,other/scraper.v1}"
    assert readers(helm, "--set", named) == ["monitoring/prometheus-k8s", "other/scraper.v1"]
    for monitor in ("podMonitor", "serviceMonitor"):
        value = f"monitoring.{monitor}.enabled=true"
        assert readers(helm, "--set", value) == ["gpusharing-agent/gpusharing-metrics-reader"]
        assert readers(helm, "--set", f"{value},agent.secureMetrics=false") == []


def test_the_number_of_grants_stays_small(helm: Helm) -> None:
    """The aim of docs/design/faults.md#rbac, two more for the DaemonSets of the plain stack, two for agents' Warnings, one for the labels of namespaces, two for what NVIDIA's DRA driver publishes, five for DeviceClasses, four for DeviceTaintRules, and one for the ConfigMap that stops the operator."""
    count = {subject: sum(grant.subject == subject for grant in rendered(helm)) for subject in USERS}
    assert count["operator"] <= 57
    assert count["agent"] <= 6


def test_only_the_chosen_configmaps_may_be_patched(helm: Helm) -> None:
    own = ("--set", "gpuOperator.pluginConfigMap=plugin,gpuOperator.migConfigMap=mig")
    patches = [grant for grant in rendered(helm, *own) if (grant.resource, grant.verb) == ("configmaps", "patch")]
    assert [grant.names for grant in patches] == [("mig", "plugin")]


def test_without_rbac_no_role_is_left(helm: Helm) -> None:
    kinds = {one["kind"] for one in helm.applied("--set", "rbac.create=false")}
    assert not kinds & {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"}
    assert "ValidatingAdmissionPolicy" in kinds, "the admission policies do not depend on who grants the roles"


def test_the_account_of_helm_test_only_reads(helm: Helm) -> None:
    writes = {
        (grant.resource, grant.verb)
        for grant in rendered(helm)
        if grant.subject == "checks" and grant.verb not in ("get", "list")
    }
    assert writes == {("subjectaccessreviews", "create")}


MIG_MANAGERS = {
    ("ClusterRole", "", "nodes", "get list patch watch"),
    ("ClusterRole", "", "pods", "list"),
    ("Role", "", "pods", "delete"),
}
"""What deploy/mig-manager/rbac.yaml grants: kind, API group, resource and verbs of each rule."""


def test_mig_manager_beside_the_plain_chart_gets_what_it_calls_and_nothing_else() -> None:
    """tests/nvidia/test_plain_chart.py lets the real mig-manager act with these rights."""
    documents = list(yaml.safe_load_all((ROOT / "deploy" / "mig-manager" / "rbac.yaml").read_text()))
    roles = [one for one in documents if "rules" in one]
    assert {
        (role["kind"], group, resource, " ".join(sorted(rule["verbs"])))
        for role in roles
        for rule in role["rules"]
        for group in rule.pop("apiGroups")
        for resource in rule.pop("resources")
    } == MIG_MANAGERS
    assert {key for role in roles for rule in role["rules"] for key in rule} == {"verbs"}
    bindings = [one for one in documents if "roleRef" in one]
    refs = [(one["kind"], one["roleRef"]["kind"], one["roleRef"]["name"]) for one in bindings]
    name = "nvidia-mig-manager"
    assert refs == [("ClusterRoleBinding", "ClusterRole", name), ("RoleBinding", "Role", name)]
    assert [one["subjects"] for one in bindings] == [[{"kind": "ServiceAccount", "name": name}]] * 2
    assert len(documents) == len(roles) + len(bindings) + 1
