"""helm install, upgrade and uninstall on a real API server."""

import re
import subprocess
import textwrap
from collections.abc import Iterator

import pytest
from hack.cluster.api import Api, Object, selector
from hack.cluster.kubeconfig import service_account_token
from hack.cluster.process import wait_until
from tests.chart.charts import CHART, IMAGE, NAMESPACE, ROOT
from tests.chart.cluster import AGENT_NAMESPACE, GPUNODES, NODES, POLICIES, POLICY, SECONDS, Installed, denied, is_there

from gpusharing.api import names

pytestmark = pytest.mark.cluster

ADMISSION = "/apis/admissionregistration.k8s.io/v1"
ROLES = "/apis/rbac.authorization.k8s.io/v1/clusterroles"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
REMOVED = (
    f"{ROLES}/gpusharing-operator",
    f"{ROLES}/gpusharing-viewer",
    f"{ADMISSION}/validatingadmissionpolicies/gpusharing-agent-own-node",
    f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/gpusharing-operator",
    f"/apis/apps/v1/namespaces/{AGENT_NAMESPACE}/daemonsets/gpusharing-agent",
)
RUNNING = {
    "gpusharing-operator": (NAMESPACE, "restricted", 2),
    "gpusharing-agent": (AGENT_NAMESPACE, "privileged", 2),
}


@pytest.fixture(scope="module", autouse=True)
def policy(installed: Installed) -> Object:
    return installed.admin.create(POLICIES, POLICY)


@pytest.fixture
def pointers(installed: Installed) -> Iterator[None]:
    yield
    say(installed, *OURS, None)


@pytest.mark.parametrize("name", RUNNING)
def test_pod_security_lets_the_pods_be_created(installed: Installed, name: str) -> None:
    """kwok plays the kubelet."""
    namespace, level, count = RUNNING[name]
    labels = installed.admin.get(f"/api/v1/namespaces/{namespace}")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == level
    path = f"/api/v1/namespaces/{namespace}/pods"

    def running() -> bool:
        pods = installed.admin.list(path, labelSelector=selector({"app.kubernetes.io/name": name}))
        return [pod["status"].get("phase") for pod in pods] == ["Running"] * count

    wait_until(running, SECONDS, f"{count} pods of {name}")


def test_no_admission_policy_has_a_type_error(installed: Installed) -> None:
    def checked() -> bool:
        found = installed.admin.list(f"{ADMISSION}/validatingadmissionpolicies")
        ours = [one for one in found if one["metadata"]["name"].startswith("gpusharing-")]
        return bool(ours) and all("typeChecking" in one.get("status", {}) for one in ours)

    wait_until(checked, SECONDS, "the controller to check the expressions")
    for policy in installed.admin.list(f"{ADMISSION}/validatingadmissionpolicies"):
        assert policy["status"]["typeChecking"].get("expressionWarnings", []) == []


def test_the_api_server_puts_the_operators_lease_calls_into_their_own_priority_level(installed: Installed) -> None:
    flows = "/apis/flowcontrol.apiserver.k8s.io/v1"
    uid = installed.admin.get(f"{flows}/flowschemas/gpusharing-operator-lease")["metadata"]["uid"]
    level = installed.admin.get(f"{flows}/prioritylevelconfigurations/leader-election")["metadata"]["uid"]
    lease = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/gpusharing-operator"
    with installed.operator() as operator:
        wait_until(lambda: classified(operator, lease) == (uid, level), SECONDS, "the Lease's calls to be sorted")
        assert classified(operator, NODES)[0] not in ("", uid)
    with installed.admin.as_token(service_account_token(installed.admin, NAMESPACE, "default")) as another:
        assert classified(another, lease)[0] not in ("", uid)


def classified(api: Api, path: str) -> tuple[str, str]:
    """UIDs of the FlowSchema and the priority level under which the API server put a GET, whatever it answered."""
    with api._connection() as connection:
        connection.request("GET", path, None, api._headers)
        answer = connection.getresponse()
        answer.read()
    found = (answer.headers.get(f"X-Kubernetes-PF-{kind}-UID", "") for kind in ("FlowSchema", "PriorityLevel"))
    return (next(found), next(found))


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("gpuOperator.namespace=nowhere", "namespace nowhere does not exist: install the NVIDIA GPU Operator first"),
        ("agent.namespace=nowhere,agent.createNamespace=false", "namespace nowhere (agent.namespace) does not exist"),
        (
            "monitoring.prometheusRule.enabled=true",
            "need the Prometheus Operator, and this cluster does not serve its API monitoring.coreos.com/v1",
        ),
        ("openshift.createSCC=true", "this cluster does not serve security.openshift.io/v1"),
    ],
    ids=["no GPU Operator", "no agent namespace", "no Prometheus Operator", "no OpenShift"],
)
def test_what_the_cluster_lacks_is_named_before_anything_is_written(
    installed: Installed, value: str, wanted: str
) -> None:
    done = installed.run_helm("upgrade", str(CHART), "--set", value)
    assert done.returncode != 0
    assert wanted in done.stderr


def install_second(installed: Installed, *options: str) -> "subprocess.CompletedProcess[str]":
    """Install the chart once more, as another release in another namespace."""
    words = ("install", "second", str(CHART), "-n", "default", *IMAGE, *options)
    return installed.helm.run(*words, environ={"KUBECONFIG": str(installed.plane.kubeconfig)})


@pytest.mark.parametrize(
    ("marked", "words"),
    [
        (
            True,
            f"release gpusharing in namespace {NAMESPACE} is already this cluster's gpu-sharing-operator, and a cluster"
            f" can have only one: run helm upgrade gpusharing -n {NAMESPACE} instead",
        ),
        (False, f"an operator is already installed in namespace {NAMESPACE}"),
    ],
    ids=["of helm", "of kubectl"],
)
def test_a_second_operator_in_another_namespace_is_refused_beside_one(
    installed: Installed, marked: bool, words: str
) -> None:
    """Without helm's annotation on an object of the first operator, the account in the ClusterRoleBinding counts."""
    path = f"{ADMISSION}/validatingadmissionpolicies/gpusharing-agent-own-node"
    mark = "meta.helm.sh/release-name"
    before = installed.admin.get(path)["metadata"]["annotations"][mark]
    if not marked:
        installed.admin.merge_patch(path, {"metadata": {"annotations": {mark: None}}})
    try:
        done = install_second(installed, "--take-ownership")
    finally:
        installed.admin.merge_patch(path, {"metadata": {"annotations": {mark: before}}})
    assert done.returncode != 0
    assert words in done.stderr
    assert "a cluster can have only one" in done.stderr
    assert not is_there(installed.admin, "/apis/apps/v1/namespaces/default/deployments/gpusharing-operator")


def test_an_upgrade_changes_the_release_and_keeps_policies_and_gpunodes(installed: Installed, policy: Object) -> None:
    before = installed.admin.get(f"{GPUNODES}/{installed.node_a}")["metadata"]["uid"]
    installed.must("upgrade", str(CHART), "--set", "operator.maxInFlight=7")
    deployment = installed.admin.get(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/gpusharing-operator")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert {"name": "GPUSHARING_MAX_IN_FLIGHT", "value": "7"} in container["env"]
    assert installed.admin.get(f"{POLICIES}/pool-d")["metadata"]["uid"] == policy["metadata"]["uid"]
    assert installed.admin.get(f"{GPUNODES}/{installed.node_a}")["metadata"]["uid"] == before


AGENTS = f"/api/v1/namespaces/{AGENT_NAMESPACE}"
OWN = ("--set", "agent.createNamespace=false")


@pytest.fixture
def secret(installed: Installed) -> Iterator[str]:
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "of-others"}}
    installed.admin.create(f"{AGENTS}/secrets", body)
    yield f"{AGENTS}/secrets/of-others"
    installed.admin.delete(f"{AGENTS}/secrets/of-others")


def test_an_upgrade_that_no_longer_creates_the_agents_namespace_leaves_it_with_all_that_is_in_it(
    installed: Installed, secret: str
) -> None:
    installed.must("upgrade", str(CHART), *OWN)
    assert "deletionTimestamp" not in installed.admin.get(AGENTS)["metadata"]
    assert is_there(installed.admin, secret)
    installed.must("upgrade", str(CHART))  # it takes the namespace back


def test_an_upgrade_that_would_delete_what_an_earlier_chart_created_is_refused_with_the_way_out(
    installed: Installed, secret: str
) -> None:
    gone = {"helm.sh/resource-policy": None}
    installed.admin.merge_patch(AGENTS, {"metadata": {"annotations": gone}})
    refused = installed.run_helm("upgrade", str(CHART), *OWN)
    assert f"would delete namespace {AGENT_NAMESPACE} with all that is in it" in refused.stderr
    command = re.search(r"first run: kubectl (annotate namespace \S+ \S+=keep)", refused.stderr)
    assert command is not None
    installed.plane.kubectl(*command[1].split())
    installed.must("upgrade", str(CHART), *OWN)
    assert is_there(installed.admin, secret)
    installed.must("upgrade", str(CHART))


THEIRS = {
    "crds.enabled=false": [f"{CRDS}/gpusharingpolicies.gpusharing.dev", f"{CRDS}/gpunodes.gpusharing.dev"],
    "operator.serviceAccount.create=false,operator.serviceAccount.name=gpusharing-operator": [
        f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/gpusharing-operator"
    ],
}
"""Values that expect something from somebody else, and what the release has created of it."""


@pytest.mark.parametrize("values", THEIRS)
def test_an_upgrade_that_would_delete_what_its_values_expect_is_refused_with_the_way_out(
    installed: Installed, values: str
) -> None:
    installed.must("upgrade", str(CHART), "--set", "crds.keep=false")
    before = [installed.admin.get(path)["metadata"]["uid"] for path in THEIRS[values]]
    for path in THEIRS[values]:
        refused = installed.run_helm("upgrade", str(CHART), "--set", values)
        assert f"this upgrade would delete {path.split('/')[-2].removesuffix('s')} {path.split('/')[-1]}" in (
            refused.stderr
        )
        command = re.search(r"first run: kubectl (annotate .*)", refused.stderr)
        assert command is not None
        installed.plane.kubectl(*command[1].split())
    installed.must("upgrade", str(CHART), "--set", values)
    assert [installed.admin.get(path)["metadata"]["uid"] for path in THEIRS[values]] == before
    installed.must("upgrade", str(CHART))  # it takes them back


def test_uninstalling_keeps_the_agents_namespace_and_another_release_is_refused_it_by_name(
    installed: Installed, secret: str
) -> None:
    done = installed.run_helm("uninstall", "--wait")
    assert f"[Namespace] {AGENT_NAMESPACE}" in done.stdout + done.stderr
    assert is_there(installed.admin, secret)
    other = install_second(installed)
    assert other.returncode != 0
    assert AGENT_NAMESPACE in other.stderr or "gpunodes.gpusharing.dev" in other.stderr
    installed.must("install", str(CHART))
    installed.wait_enforced()
    assert is_there(installed.admin, secret)


def test_uninstalling_keeps_crds_policies_and_gpunodes_and_installing_takes_them_over(
    installed: Installed, policy: Object
) -> None:
    installed.must("uninstall", "--wait")
    for path in REMOVED:
        assert not is_there(installed.admin, path)
    assert is_there(installed.admin, f"{CRDS}/gpunodes.gpusharing.dev")
    assert is_there(installed.admin, f"{GPUNODES}/{installed.node_a}")
    notes = installed.must("install", str(CHART))
    installed.wait_enforced()
    assert all(is_there(installed.admin, path) for path in REMOVED)
    assert installed.admin.get(f"{POLICIES}/pool-d")["metadata"]["uid"] == policy["metadata"]["uid"]
    assert "WARNING" not in notes, "the server serves ClusterPolicy"


def test_the_commands_in_the_notes_work(installed: Installed, pointers: None) -> None:
    say(installed, None, None, None)
    notes = notes_with(installed)
    patch = re.search(r"kubectl patch clusterpolicy cluster-policy --type merge -p \\\s+'(\{.+\})'", notes)
    manifest = re.search(r"<<EOF\n(.+?)\n\s*EOF", notes, re.DOTALL)
    assert patch is not None
    assert manifest is not None
    installed.plane.kubectl("patch", "clusterpolicy", "cluster-policy", "--type", "merge", "-p", patch[1])
    spec = installed.admin.get("/apis/nvidia.com/v1/clusterpolicies/cluster-policy")["spec"]
    assert spec["devicePlugin"]["config"]["name"] == "gpusharing-device-plugin"
    assert not spec["migManager"]["config"].get("name"), "its restart could change GPUs; helm test has the command"
    assert "helm test (below) then prints the command, after those that label such nodes" in notes
    text = textwrap.dedent(manifest[1])
    installed.plane.kubectl("apply", "--dry-run=server", "-f", "-", stdin=text)


def notes_with(installed: Installed, *arguments: str) -> str:
    return installed.must("upgrade", str(CHART), "--dry-run=server", *arguments).partition("NOTES:")[2]


CLUSTER_POLICIES = "/apis/nvidia.com/v1/clusterpolicies"


def say(installed: Installed, plugin: str | None, mig: str | None, strategy: str | None) -> None:
    """Make ClusterPolicy say this; None: nothing."""
    spec = {
        "devicePlugin": {"config": {"name": plugin}},
        "migManager": {"config": {"name": mig}},
        "mig": {"strategy": strategy},
    }
    installed.admin.merge_patch(f"{CLUSTER_POLICIES}/cluster-policy", {"spec": spec})


OURS = ("gpusharing-device-plugin", "gpusharing-mig-parted")
ASKED = "kubectl patch clusterpolicy"
WARNING = "lose their GPUs when the pointer moves"
STATES: dict[str, tuple[tuple[str | None, str | None, str | None], tuple[str, ...], bool]] = {
    "nothing": (
        (None, None, None),
        (
            "devicePlugin.config.name: not set\n",
            "migManager.config.name: not set\n",
            "mig.strategy: not set, so each policy decides\n",
            '"devicePlugin":{"config"',
            "mig-parted\n\n2. ",
        ),
        True,
    ),
    "something foreign": (
        ("theirs", OURS[1], None),
        (
            "devicePlugin.config.name: theirs, which is not this operator's ConfigMap",
            "Nodes whose labels name entries of theirs lose their GPUs",
            "migManager.config.name: gpusharing-mig-parted, as required\n",
            "helm test (below) says what comes first",
        ),
        False,
    ),
    "a strategy beside our pointers": (
        (*OURS, "single"),
        ("nothing to do", "mig.strategy is single for every node", "would lose their MIG devices"),
        False,
    ),
    "all that it must": ((*OURS, None), ("nothing to do",), False),
}


@pytest.mark.parametrize("state", STATES)
def test_the_notes_tell_what_clusterpolicy_says_and_the_command_where_one_is_left_when_it_says(
    installed: Installed, pointers: None, state: str
) -> None:
    values, words, left = STATES[state]
    say(installed, *values)
    notes = notes_with(installed)
    for word in words:
        assert word in notes
    assert (ASKED in notes) == left
    assert (WARNING in notes) == (values[0] == "theirs")


@pytest.mark.parametrize("strategy", [None, "single"], ids=["no strategy", "a strategy"])
def test_what_the_operator_configures_needs_no_command(
    installed: Installed, pointers: None, strategy: str | None
) -> None:
    say(installed, None, None, strategy)
    notes = notes_with(installed, "--set", "gpuOperator.configure=true")
    assert ASKED not in notes
    assert ("would lose their MIG devices" in notes) == (strategy is not None)
    assert "reason=PointersSet" in notes
    assert "mig-parted\n\n2. " in notes, "one empty line between the steps"


def test_the_notes_do_not_warn_of_a_configmap_whose_entries_are_merged(installed: Installed, pointers: None) -> None:
    say(installed, "theirs", None, None)
    assert WARNING not in notes_with(installed, "--set", "gpuOperator.adminPluginConfigMap=theirs")


def test_the_notes_print_no_command_that_takes_the_gpus_of_nodes_that_name_entries(
    installed: Installed, pointers: None
) -> None:
    """A device plugin does not start once its Node names what our ConfigMap does not have."""
    say(installed, None, None, None)
    assert ASKED in notes_with(installed)
    node = f"{NODES}/{installed.admin.list(NODES)[0]['metadata']['name']}"
    label = names.LABEL_PLUGIN_CONFIG
    installed.admin.merge_patch(node, {"metadata": {"labels": {label: "theirs"}}})
    try:
        assert ASKED not in notes_with(installed)
    finally:
        installed.admin.merge_patch(node, {"metadata": {"labels": {label: None}}})


NAMES = ("cluster-policy", "gpu-cluster-policy")


@pytest.fixture
def second(installed: Installed) -> Iterator[str]:
    first = installed.admin.get(f"{CLUSTER_POLICIES}/{NAMES[0]}")
    installed.admin.create(CLUSTER_POLICIES, {**first, "metadata": {"name": NAMES[1]}})
    state = first["status"]["state"]
    yield NAMES[1]
    installed.admin.delete(f"{CLUSTER_POLICIES}/{NAMES[1]}")
    installed.admin.merge_patch(f"{CLUSTER_POLICIES}/{NAMES[0]}/status", {"status": {"state": state}})


@pytest.mark.parametrize("ignored", NAMES)
def test_of_two_clusterpolicies_the_notes_name_the_one_that_is_not_ignored(
    installed: Installed, pointers: None, second: str, ignored: str
) -> None:
    """One of two the GPU Operator marks so; which comes first by its name says nothing."""
    say(installed, None, None, None)
    for name in NAMES:
        state = "ignored" if name == ignored else "ready"
        installed.admin.merge_patch(f"{CLUSTER_POLICIES}/{name}/status", {"status": {"state": state}})
    (counts,) = set(NAMES) - {ignored}
    installed.admin.merge_patch(
        f"{CLUSTER_POLICIES}/{counts}", {"spec": {"devicePlugin": {"config": {"name": "of-this-one"}}}}
    )
    notes = notes_with(installed)
    assert re.findall(r"ClusterPolicy (\S+) currently says", notes) == [counts]
    assert "devicePlugin.config.name: of-this-one" in notes


def test_the_agents_pod_would_not_pass_restricted_which_is_why_it_has_a_namespace_of_its_own(
    installed: Installed,
) -> None:
    daemon = installed.admin.get(f"/apis/apps/v1/namespaces/{AGENT_NAMESPACE}/daemonsets/gpusharing-agent")
    pod = {**daemon["spec"]["template"], "metadata": {"name": "checked"}}
    pod["spec"]["serviceAccountName"] = "default"  # its own is in its own namespace
    path = f"/api/v1/namespaces/{NAMESPACE}/pods"
    message = denied(lambda: installed.admin.request("POST", path, pod, dryRun="All", fieldValidation="Strict"))
    assert 'violates PodSecurity "restricted' in message
    for right in ("host namespaces", "privileged", "hostPath"):
        assert right in message


@pytest.mark.parametrize("source", ["the notes", "docs/how-to/install.md"])
def test_the_command_that_enforces_restricted_works(installed: Installed, source: str) -> None:
    text = (installed.run_helm("status").stdout if source == "the notes" else (ROOT / source).read_text()).replace(
        "\\\n", " "
    )
    command = re.search(r"kubectl label .*namespace \S+ pod-security.kubernetes.io/enforce=restricted", text)
    assert command is not None
    words = command[0].split()[1:]
    assert NAMESPACE in words
    installed.plane.kubectl(*words, "--overwrite")


def test_viewers_of_the_cluster_may_read_and_admins_write_only_by_choice(installed: Installed) -> None:
    def verbs(role: str) -> set[str]:
        rules = installed.admin.get(f"{ROLES}/{role}")["rules"] or []
        return {verb for rule in rules if "gpusharingpolicies" in rule.get("resources", ()) for verb in rule["verbs"]}

    reads = {"get", "list", "watch"}
    wait_until(lambda: verbs("admin") == reads, SECONDS, "the roles to be aggregated")
    assert verbs("view") == verbs("edit") == reads
    installed.must("upgrade", str(CHART), "--set", "rbac.aggregateToAdmin=true")
    wait_until(lambda: "create" in verbs("admin"), SECONDS, "the roles to be aggregated")
    assert verbs("view") == verbs("edit") == reads
