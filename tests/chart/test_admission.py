"""What operator and agent may and may not do on a real API server, with the chart's roles and admission policies."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from hack.cluster.api import MERGE_PATCH, Api, ApiError
from hack.cluster.process import wait_until
from tests.chart.charts import CHART, NAMESPACE
from tests.chart.cluster import (
    AGENT_NAMESPACE,
    BINDINGS,
    GPUNODES,
    NODES,
    OBSERVED,
    POLICIES,
    SECONDS,
    Call,
    Installed,
    attempt,
    denied,
    dry,
    mighty,
)
from tests.chart.rbac import USERS, RoleGrant, golden
from tests.chart.test_effects import record
from tests.minors import MUTATING, lacks

from gpusharing.api import names

pytestmark = pytest.mark.cluster

ADMISSION = "ValidatingAdmissionPolicy"
CONFIG_MAPS = "/api/v1/namespaces/gpu-operator/configmaps"
LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
FENCE = {"gpusharing.dev/fence": '{"op":"1","priorUnschedulable":false,"added":["nvidia.com/gpu-driver-upgrade.skip"]}'}
SCOPES = {"cluster": "", "own": NAMESPACE, "agent": AGENT_NAMESPACE}


@pytest.fixture(scope="module")
def agent(installed: Installed) -> Iterator[Api]:
    with installed.agent(installed.node_a) as api:
        yield api


@pytest.fixture
def mighty_agent(installed: Installed, agent: Api) -> Iterator[Api]:
    """The agent on node A after somebody granted it everything: only the admission policy is left."""
    with mighty(installed, agent, "gpusharing-agent", AGENT_NAMESPACE) as api:
        yield api


# --- the agent -------------------------------------------------------------------------------------------


def test_an_agent_reports_on_its_own_gpunode(installed: Installed, agent: Api) -> None:
    path = f"{GPUNODES}/{installed.node_a}"
    written = agent.merge_patch(f"{path}/status", {"status": {"observed": OBSERVED}})
    assert written["status"]["observed"]["requestID"] == "1"
    again = agent.merge_patch(f"{path}/status", {"status": {"observed": {**OBSERVED, "requestID": "2"}}})
    assert again["status"]["observed"]["requestID"] == "2"
    assert len(agent.list(GPUNODES, fieldSelector=f"metadata.name={installed.node_a}")) == 1


def test_an_agent_keeps_the_operators_transition_when_it_reports(
    installed: Installed, operator: Api, agent: Api
) -> None:
    path = f"{GPUNODES}/{installed.node_a}/status"
    operator.merge_patch(path, {"status": {"transition": {"phase": "Draining"}}})
    written = agent.merge_patch(path, {"status": {"observed": {**OBSERVED, "requestID": "3"}}})
    assert written["status"]["transition"]["phase"] == "Draining"


def test_an_agent_may_not_write_another_nodes_gpunode(installed: Installed, agent: Api) -> None:
    path = f"{GPUNODES}/{installed.node_b}/status"
    message = denied(lambda: agent.merge_patch(path, {"status": {"observed": OBSERVED}}))
    wanted = f"on node {installed.node_a} may only update the GPUNode {installed.node_a}, not {installed.node_b}"
    assert wanted in message


def test_an_agent_whose_token_names_no_node_may_write_nothing(installed: Installed) -> None:
    path = f"{GPUNODES}/{installed.node_a}/status"
    with installed.agent_of_no_node() as nobody:
        message = denied(lambda: nobody.merge_patch(path, {"status": {"observed": OBSERVED}}))
    assert "the agent's token names no node" in message


@pytest.mark.parametrize("part", [{"phase": "Synced"}, None], ids=["write", "remove"])
def test_an_agent_may_not_touch_the_operators_part_of_status(
    installed: Installed, operator: Api, agent: Api, part: object
) -> None:
    path = f"{GPUNODES}/{installed.node_a}/status"
    operator.merge_patch(path, {"status": {"transition": {"phase": "Draining"}}})
    message = denied(lambda: agent.merge_patch(path, {"status": {"transition": part}}))
    assert "not status.transition" in message


def test_an_agent_may_not_call_its_own_gpus_healthy(installed: Installed, operator: Api, agent: Api) -> None:
    path = f"{GPUNODES}/{installed.node_a}/status"
    row = {"type": "Healthy", "status": "False", "reason": "GPULost", "message": "GPU 0: fell off the bus"}
    row["lastTransitionTime"] = "2026-11-20T10:00:00Z"
    operator.merge_patch(path, {"status": {"conditions": [row]}})
    healthy = {**row, "status": "True", "reason": "NoTrouble"}
    message = denied(lambda: agent.merge_patch(path, {"status": {"conditions": [healthy]}}))
    assert "any other part of status" in message


AGENT_FORBIDDEN: dict[str, Call] = {
    "patch the spec of its GPUNode": ("PATCH", f"{GPUNODES}/{{a}}", {"spec": {"request": {"id": "9"}}}),
    "delete its GPUNode": ("DELETE", f"{GPUNODES}/{{a}}", None),
    "patch its Node": ("PATCH", f"{NODES}/{{a}}", {"metadata": {"labels": {"gpusharing.dev/mode": "mig"}}}),
    "read its Node": ("GET", f"{NODES}/{{a}}", None),
    "list pods": ("GET", "/api/v1/pods", None),
    "read secrets": ("GET", f"/api/v1/namespaces/{AGENT_NAMESPACE}/secrets", None),
    "patch a policy": ("PATCH", f"{POLICIES}/pool-d", {"spec": {"mode": "Full"}}),
}


@pytest.mark.parametrize("what", AGENT_FORBIDDEN)
def test_an_agent_may_not(installed: Installed, agent: Api, what: str) -> None:
    message = attempt(agent, AGENT_FORBIDDEN[what], installed.node_a)
    assert "gpusharing-agent" in message, "RBAC names who is refused"


MIGHTY_FORBIDDEN: dict[str, Call] = {
    "spec or metadata, when it patches the request": ("PATCH", f"{GPUNODES}/{{a}}", {"spec": {"request": {"id": "9"}}}),
    "spec or metadata, when it patches labels": ("PATCH", f"{GPUNODES}/{{a}}", {"metadata": {"labels": {"x": "y"}}}),
    "spec or metadata, when it patches finalizers": (
        "PATCH",
        f"{GPUNODES}/{{a}}",
        {"metadata": {"finalizers": ["gpusharing.dev/x"]}},
    ),
    "create or delete one, when it deletes": ("DELETE", f"{GPUNODES}/{{a}}", None),
    "create or delete one, when it creates": (
        "POST",
        GPUNODES,
        {"apiVersion": "gpusharing.dev/v1alpha1", "kind": "GPUNode", "metadata": {"name": "x"}, "spec": {}},
    ),
}


@pytest.mark.parametrize("what", MIGHTY_FORBIDDEN)
def test_an_agent_with_every_right_still_may_not_touch(installed: Installed, mighty_agent: Api, what: str) -> None:
    message = attempt(mighty_agent, MIGHTY_FORBIDDEN[what], installed.node_a)
    assert ADMISSION in message
    assert what.split(",")[0] in message


# --- the operator ----------------------------------------------------------------------------------------

STEPS: dict[str, dict[str, Any]] = {
    "fence with the cordon": {
        "metadata": {"annotations": FENCE, "labels": {"nvidia.com/gpu-driver-upgrade.skip": "true"}},
        "spec": {"unschedulable": True},
    },
    "write the labels of the point of no return": {
        "metadata": {
            "labels": {
                "nvidia.com/mig.config": "pool-b-3f9c2a1",
                "nvidia.com/mig.config.state": None,
                "nvidia.com/device-plugin.config": "pool-b-77aa001",
                "gpusharing.dev/mode": None,
            }
        }
    },
    "release": {
        "metadata": {
            "annotations": {"gpusharing.dev/fence": None},
            "labels": {"nvidia.com/gpu-driver-upgrade.skip": None, "gpusharing.dev/mode": "mig"},
        },
        "spec": {"unschedulable": None},
    },
}


def test_the_operator_takes_a_node_through_a_change(installed: Installed, operator: Api) -> None:
    path = f"{NODES}/{installed.node_b}"
    installed.admin.merge_patch(path, {"metadata": {"labels": {"nvidia.com/mig.config.state": "success"}}})
    try:
        for step in STEPS.values():
            wait_until(partial(took, operator, path, step), SECONDS, "the conditional patch to succeed")
        node = operator.get(path)
    finally:  # the notes of the chart say something else where a Node names an entry
        gone = dict.fromkeys(("nvidia.com/mig.config", "nvidia.com/device-plugin.config", "gpusharing.dev/mode"))
        installed.admin.merge_patch(path, {"metadata": {"labels": gone}})
    assert node["metadata"]["labels"]["nvidia.com/mig.config"] == "pool-b-3f9c2a1"
    assert "nvidia.com/mig.config.state" not in node["metadata"]["labels"]
    assert "gpusharing.dev/fence" not in node["metadata"].get("annotations", {})
    assert not node["spec"].get("unschedulable")


def took(api: Api, path: str, patch: dict[str, Any]) -> bool:
    """Patch the object as it is now; False when somebody was faster (here: the taint that follows a cordon)."""
    version = api.get(path)["metadata"]["resourceVersion"]
    try:
        api.merge_patch(path, {**patch, "metadata": {**patch["metadata"], "resourceVersion": version}})
    except ApiError as error:
        if error.status != 409:
            raise
        return False
    return True


GATE = {"key": "gpusharing.dev/unproven", "effect": "NoSchedule"}
DEDICATED = {"key": "dedicated", "value": "x", "effect": "NoSchedule"}
PROOF = {"gpusharing.dev/verified": record(policy="pool-d", mig=""), "gpusharing.dev/fence": None}
OPENING: dict[str, tuple[list[dict[str, str]], dict[str, Any], int, str]] = {
    "it, with the proof": ([DEDICATED], PROOF, 200, ""),
    "it, without a proof": ([DEDICATED], {}, 403, "may only be removed from a Node without a fence"),
    "it, while the fence stays": (
        [DEDICATED],
        {**PROOF, "gpusharing.dev/fence": '{"op":"1","priorUnschedulable":false,"added":[]}'},
        403,
        "may only be removed from a Node without a fence",
    ),
    "another one with it": ([], PROOF, 403, "may only remove the taint gpusharing.dev/unproven:NoSchedule"),
    "another one alone": ([GATE], PROOF, 403, "may only remove the taint gpusharing.dev/unproven:NoSchedule"),
    "it, and one comes": ([DEDICATED, {"key": "x", "effect": "NoExecute"}], PROOF, 403, "may add none"),
    "it, and another changes": ([{**DEDICATED, "value": "y"}], PROOF, 403, "may add none"),
}


@pytest.mark.parametrize("what", OPENING)
def test_of_two_taints_on_a_node_the_operator_may_remove_the_start_up_taint_with_a_proof(
    installed: Installed, operator: Api, what: str
) -> None:
    left, annotations, status, said = OPENING[what]
    path = f"{NODES}/{installed.node_a}"
    installed.admin.merge_patch(path, {"spec": {"taints": [DEDICATED, GATE]}})
    metadata = {"annotations": annotations, "labels": {names.LABEL_POLICY: "pool-d"}}
    body = {"metadata": metadata, "spec": {"taints": left}}
    try:
        if status == 200:
            assert dry(operator, path, body) == 200
        else:
            assert said in denied(lambda: operator.request("PATCH", path, body, MERGE_PATCH, dryRun="All"))
    finally:
        installed.admin.merge_patch(path, {"spec": {"taints": None}})


def test_the_operator_may_take_away_what_the_driver_upgrade_remembers_of_its_cordon(
    installed: Installed, operator: Api
) -> None:
    path, key = f"{NODES}/{installed.node_a}", names.ANNOTATION_UPGRADE_CORDONED
    fenced = {"gpusharing.dev/fence": '{"op":"1","priorUnschedulable":false,"added":[]}', key: "true"}
    installed.admin.merge_patch(path, {"metadata": {"annotations": fenced}, "spec": {"unschedulable": True}})
    gone: dict[str, Any] = {"metadata": {"annotations": {key: None}}}
    try:
        assert dry(operator, path, {**gone, "spec": {"unschedulable": None}}) == 200
        assert f"not {key}" in denied(lambda: operator.merge_patch(path, gone))
    finally:
        left = {"metadata": {"annotations": dict.fromkeys(fenced)}, "spec": {"unschedulable": None}}
        installed.admin.merge_patch(path, left)


OPERATOR_NODE_FORBIDDEN: dict[str, tuple[dict[str, Any], str]] = {
    "a label outside its list": (
        {"metadata": {"labels": {"node-restriction.kubernetes.io/team": "x"}}},
        "remove nvidia.com/mig.config.state, not node-restriction.kubernetes.io/team",
    ),
    "the removal of a label outside its list": (
        {"metadata": {"labels": {"nvidia.com/gpu.present": None}}},
        "not nvidia.com/gpu.present",
    ),
    "a state made up in mig-manager's place": (
        {"metadata": {"labels": {"nvidia.com/mig.config.state": "made-up"}}},
        "remove nvidia.com/mig.config.state, not nvidia.com/mig.config.state",
    ),
    "an annotation outside its prefix": (
        {"metadata": {"annotations": {"example.test/x": "y"}}},
        "if its fence records them, not example.test/x",
    ),
    "what the driver upgrade remembers, made up": (
        {"metadata": {"annotations": {names.ANNOTATION_UPGRADE_CORDONED: "true"}}},
        f"records them, not {names.ANNOTATION_UPGRADE_CORDONED}",
    ),
    "a taint": ({"spec": {"taints": [{"key": "dedicated", "effect": "NoSchedule"}]}}, "may add none"),
    "the start-up taint": (
        {"spec": {"taints": [{"key": "gpusharing.dev/unproven", "effect": "NoSchedule"}]}},
        "may add none",
    ),
    "the provider id": ({"spec": {"providerID": "made://up"}}, "only change unschedulable"),
    "a finalizer": ({"metadata": {"finalizers": ["gpusharing.dev/x"]}}, "may not change finalizers"),
}


@pytest.mark.parametrize("what", OPERATOR_NODE_FORBIDDEN)
def test_the_operator_may_not_patch_into_a_node(installed: Installed, operator: Api, what: str) -> None:
    patch, wanted = OPERATOR_NODE_FORBIDDEN[what]
    message = denied(lambda: operator.merge_patch(f"{NODES}/{installed.node_a}", patch))
    assert ADMISSION in message
    assert wanted in message


OPERATOR_FORBIDDEN: dict[str, Call] = {
    "delete a Node": ("DELETE", f"{NODES}/{{a}}", None),
    "patch the status of a Node": ("PATCH", f"{NODES}/{{a}}/status", {"status": {"capacity": {"cpu": "1"}}}),
    "read secrets": ("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets", None),
    "delete a pod past its budget": ("DELETE", "/api/v1/namespaces/default/pods/any", None),
    "delete a GPUNode": ("DELETE", f"{GPUNODES}/{{a}}", None),
    "create a policy": ("POST", POLICIES, {"metadata": {"name": "made-up"}}),
    "patch another ConfigMap": ("PATCH", f"{CONFIG_MAPS}/default-mig-parted-config", {"data": {"x": "y"}}),
    "delete its ConfigMap": ("DELETE", f"{CONFIG_MAPS}/gpusharing-device-plugin", None),
    "patch another Lease": ("PATCH", f"{LEASES}/another", {"spec": {"holderIdentity": "x"}}),
    "grant itself a role": ("POST", BINDINGS, {"metadata": {"name": "x"}}),
}


@pytest.mark.parametrize("what", OPERATOR_FORBIDDEN)
def test_the_operator_may_not(installed: Installed, operator: Api, what: str) -> None:
    message = attempt(operator, OPERATOR_FORBIDDEN[what], installed.node_a)
    assert "gpusharing-operator" in message, "RBAC names who is refused"


@pytest.mark.parametrize("subject", ["operator", "agent"])
def test_the_server_allows_every_grant_of_the_golden_table(installed: Installed, subject: str) -> None:
    refused = [grant for grant in sorted(golden()) if grant.subject == subject and not is_allowed(installed, grant)]
    assert refused == []


def is_allowed(installed: Installed, grant: RoleGrant) -> bool:
    """Whether the server's authorizer lets this subject do it, in the namespace and to the objects of the grant."""
    space = SCOPES.get(grant.scope, grant.scope)
    account_space = NAMESPACE if grant.subject == "operator" else AGENT_NAMESPACE
    user = f"system:serviceaccount:{account_space}:{USERS[grant.subject]}"
    attributes = {
        "group": grant.group,
        "resource": grant.resource,
        "subresource": grant.subresource,
        "verb": grant.verb,
        "namespace": space,
    }
    answers = []
    for name in grant.names or ("",):
        review = {"spec": {"user": user, "resourceAttributes": {**attributes, "name": name}}}
        answer = installed.admin.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
        answers.append(bool(answer["status"]["allowed"]))
    return all(answers)


def test_the_guard_is_rendered_in_the_form_that_this_server_serves_by_default(installed: Installed) -> None:
    told = installed.must("upgrade", str(CHART), "--set", "guard.enabled=true", "--dry-run=server")
    assert ("kind: MutatingAdmissionPolicy\n" in told) == (not lacks(MUTATING))
    assert ("WARNING: this cluster does not serve MutatingAdmissionPolicy" in told) == lacks(MUTATING)
