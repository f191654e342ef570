"""The guard for tenants on a real API server with the real controllers and scheduler: which pods it changes or refuses, and what the operator makes of them.
A control plane of its own, because its namespaces and nodes would be in the way of others. JobSet's controller is not here: a Job with JobSet's labels stands in for the Jobs that it creates, and says so."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hack.cluster import install
from hack.cluster.api import Api, Object
from hack.cluster.controlplane import ControlPlane, Options
from hack.cluster.nodes import create_nodes, node_manifest, wait_nodes_ready
from hack.cluster.process import wait_until
from tests.chart.charts import NAMESPACE
from tests.chart.cluster import forbidden
from tests.integration.product import AGENT_ACCOUNT, FACTOR, H100, SECONDS, SLICED, Product
from tests.minors import MUTATING, MUTATING_IF_ASKED, lacks, need

from gpusharing.planning.drain.stranded import ADMITTED
from hack import launch

MODES = ("full", "mig", "mig-time-slicing", "mps", "time-slicing")
LEVELS = {level: list(modes) for level, modes in ADMITTED.items()}
"""The planner's table, which the chart's policies must follow."""
GPUS = 2
LABEL = "gpusharing.dev/isolation"
MODE = "gpusharing.dev/mode"
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
ADMISSION = "/apis/admissionregistration.k8s.io"
NAMES = {"hardware": "team-hardware", "memory": "team-memory", "hard": "team-wrong", "": "team-free"}
"""The namespaces, by the value of the label; the last one lacks it."""


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """The chart with the guard on, the namespaces, and a node of each mode and of none."""
    directory = tmp_path_factory.mktemp("isolation")
    beta = lacks(MUTATING) and not lacks(MUTATING_IF_ASKED)
    flags = ("--runtime-config=admissionregistration.k8s.io/v1beta1=true",) if beta else ()
    gate = "MutatingAdmissionPolicy=true" if beta else ""
    with ControlPlane(options=Options(audit=True, apiserver_flags=flags, feature_gates=gate)) as plane:
        install.install_gpu_operator(plane.api)
        chart(plane, "auto")
        for level, name in NAMES.items():
            labels = {LABEL: level} if level else {}
            plane.api.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
            wait_until(lambda n=name: accounts(plane.api, n), SECONDS, f"the account of {name}")  # type: ignore[misc]  # a default binds the loop's value
        names = create_nodes(plane.api, [node_manifest(f"on-{m}", gpus=GPUS, labels={MODE: m}) for m in MODES])
        names += create_nodes(plane.api, [node_manifest("on-nothing", gpus=GPUS)])
        wait_nodes_ready(plane.api, names)
        yield Product(plane, directory)


def chart(plane: ControlPlane, kind: str) -> None:
    """Install or upgrade the chart with the guard of this kind, and wait until the server enforces it."""
    values = f"operator.replicaCount=0,guard.enabled=true,guard.kind={kind}"
    launch.install_chart(plane.kubeconfig, "--set", values)


def adding(product: Product) -> list[str]:
    """The versions of the API in which the server has the policy that adds the requirement."""
    name = "mutatingadmissionpolicies/gpusharing-isolation"
    return [version for version in ("v1", "v1beta1") if product.exists(f"{ADMISSION}/{version}/{name}")]


def accounts(api: Api, namespace: str) -> bool:
    """Whether the namespace has the account without which no pod is created."""
    return any(
        one["metadata"]["name"] == "default" for one in api.list(f"/api/v1/namespaces/{namespace}/serviceaccounts")
    )


@pytest.fixture(scope="module")
def api(product: Product) -> Api:
    """As admin, once all policies of the guard are enforced; the server loads each by itself."""
    wait_until(lambda: refusal(product.api, "hard", spec()) != "", SECONDS, "the validating policy to be enforced")
    if not lacks(MUTATING_IF_ASKED):
        wait_until(lambda: terms(product.api, "hardware") != [], SECONDS, "the mutating policy to be enforced")
    return product.api


@pytest.fixture
def mutating() -> None:
    """The server serves MutatingAdmissionPolicy, so that the guard adds the requirement."""
    need(MUTATING_IF_ASKED, "MutatingAdmissionPolicy whose patch it can evaluate")


def spec(resource: str = "nvidia.com/gpu", count: str = "1", **more: Any) -> Object:
    return {"containers": [{"name": "main", "image": "x", "resources": {"limits": {resource: count}}}], **more}


def required(*alternatives: Object) -> Object:
    return {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": list(alternatives)}}}


def asked(api: Api, level: str, pod: Object) -> Object:
    """The spec of the pod as the server would store it."""
    path = f"/api/v1/namespaces/{NAMES[level]}/pods"
    manifest = {"metadata": {"name": "asked"}, "spec": pod}
    answer = json.loads(json.dumps(api.request("POST", path, manifest, dryRun="All", fieldValidation="Strict")))
    found: Object = answer["spec"]
    return found


def terms(api: Api, level: str, **more: Any) -> list[Object]:
    """The terms of the pod's required node affinity as the server would store them; empty while it refuses the pod."""
    if refusal(api, level, spec(**more)):
        return []
    affinity = asked(api, level, spec(**more)).get("affinity", {})
    found: list[Object] = affinity.get("nodeAffinity", {}).get(REQUIRED, {}).get("nodeSelectorTerms", [])
    return found


def refusal(api: Api, level: str, pod: Object) -> str:
    """Why the server refuses the pod; empty if it does not."""
    return forbidden(lambda: asked(api, level, pod))


def row(level: str) -> Object:
    return {"key": MODE, "operator": "In", "values": LEVELS[level]}


ZONE: Object = {"key": "zone", "operator": "In", "values": ["a"]}
NAMED: Object = {"key": "metadata.name", "operator": "In", "values": ["on-mps"]}
ONLY_MIG: Object = {"key": MODE, "operator": "In", "values": ["mig"]}
WIDER: Object = {"key": MODE, "operator": "In", "values": ["mig", "time-slicing"]}


def test_by_itself_the_chart_adds_where_the_server_can_and_otherwise_only_refuses(api: Api, product: Product) -> None:
    served = [] if lacks(MUTATING_IF_ASKED) else ["v1beta1"] if lacks(MUTATING) else ["v1"]
    assert adding(product) == served
    kind = "mutating" if served else "validating"
    deployment = api.get(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/gpusharing-operator")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert {"name": "GPUSHARING_GUARD", "value": kind} in container["env"]


# --- what is added -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("mutating")
@pytest.mark.parametrize("level", LEVELS)
def test_a_pod_without_affinity_gets_the_requirement(api: Api, level: str) -> None:
    assert terms(api, level) == [{"matchExpressions": [row(level)]}]


@pytest.mark.usefixtures("mutating")
def test_each_of_several_terms_gets_it_because_they_are_alternatives(api: Api) -> None:
    """An empty term matches no node; with a requirement it would match some."""
    given = required(
        {"matchExpressions": [ZONE]}, {"matchFields": [NAMED]}, {}, {"matchExpressions": [ONLY_MIG]},
        {"matchExpressions": [WIDER, ZONE]},
    )  # fmt: skip
    assert terms(api, "hardware", affinity=given) == [
        {"matchExpressions": [ZONE, row("hardware")]},
        {"matchExpressions": [row("hardware")], "matchFields": [NAMED]},
        {},
        {"matchExpressions": [ONLY_MIG]},
        {"matchExpressions": [WIDER, ZONE, row("hardware")]},
    ]


@pytest.mark.usefixtures("mutating")
def test_what_a_pod_only_prefers_stays_beside_it(api: Api) -> None:
    preferred = [{"weight": 1, "preference": {"matchExpressions": [ZONE]}}]
    given = {"podAffinity": {}, "nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
    stored = asked(api, "hardware", spec(affinity=given))["affinity"]
    assert stored["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] == preferred
    assert stored["nodeAffinity"][REQUIRED]["nodeSelectorTerms"] == [{"matchExpressions": [row("hardware")]}]
    assert "podAffinity" in stored


BY_CLASS = "deviceclass.resource.kubernetes.io/gpu.nvidia.com"
"""The extended resource of NVIDIA's DeviceClass; the scheduler makes a ResourceClaim of it."""
ALONE: dict[str, tuple[str, Object]] = {
    "requests no GPU": ("hardware", {"containers": [{"name": "main", "image": "x"}]}),
    "requests zero GPUs": ("hardware", spec(count="0")),
    "requests a network card of NVIDIA": ("hardware", spec("nvidia.com/hostdev")),
    "names a DeviceClass, as a ResourceClaim would": ("hardware", spec(BY_CLASS)),
    "selects an admitted mode already": ("hardware", spec(nodeSelector={MODE: "mig"})),
    "is in a namespace without the label": ("", spec()),
}  # fmt: skip


@pytest.mark.parametrize("what", ALONE)
def test_a_pod_is_left_as_it_is_if_it(api: Api, what: str) -> None:
    level, pod = ALONE[what]
    assert "affinity" not in asked(api, level, pod)


@pytest.mark.usefixtures("mutating")
def test_an_init_container_counts_too(api: Api) -> None:
    start = {"name": "start", "image": "x", "resources": {"limits": {"nvidia.com/mig-1g.10gb": "1"}}}
    pod = {"containers": [{"name": "main", "image": "x"}], "initContainers": [start]}
    stored = asked(api, "hardware", pod)
    assert stored["affinity"] == required({"matchExpressions": [row("hardware")]})


def test_a_value_that_is_no_level_refuses_each_gpu_pod_and_names_the_levels(api: Api) -> None:
    message = refusal(api, "hard", spec())
    assert "namespace team-wrong has the label gpusharing.dev/isolation=hard" in message
    assert "set the label to hardware (modes full and mig) or memory (full, mig and mps)" in message
    assert asked(api, "hard", {"containers": [{"name": "main", "image": "x"}]})


# --- where the pods run ------------------------------------------------------------------------------------

TEMPLATE: Object = {"metadata": {"labels": {"app": "work"}}, "spec": spec(terminationGracePeriodSeconds=1)}
ONCE: Object = {**TEMPLATE, "spec": {**TEMPLATE["spec"], "restartPolicy": "Never"}}
JOB_SET = {"jobset.sigs.k8s.io/jobset-name": "trainer", "jobset.sigs.k8s.io/replicatedjob-name": "workers"}
"""Labels of the Jobs and pods that JobSet's controller creates."""


def workload(kind: str, count: int) -> tuple[str, Object]:
    """Path under the namespace, and manifest, of a workload with `count` pods."""
    if kind == "Deployment":
        selector = {"matchLabels": {"app": "work"}}
        return "apps/v1", {"spec": {"replicas": count, "selector": selector, "template": TEMPLATE}}
    labels = JOB_SET if kind == "JobSet" else {}
    template = {**ONCE, "metadata": {"labels": {"app": "work", **labels}}}
    size = {"parallelism": count, "completions": count}
    return "batch/v1", {"metadata": {"labels": labels}, "spec": {**size, "template": template}}


@pytest.mark.usefixtures("mutating")
@pytest.mark.parametrize("kind", ["Deployment", "Job", "JobSet"])
def test_the_pods_run_on_admitted_nodes_only_and_one_too_many_waits(api: Api, kind: str) -> None:
    """All modes have GPUs free; kind JobSet is a Job with JobSet's labels."""
    path, manifest = workload(kind, 2 * GPUS + 1)
    plural = "deployments" if kind == "Deployment" else "jobs"
    collection = f"/apis/{path}/namespaces/team-hardware/{plural}"
    api.create(collection, {**manifest, "metadata": {**manifest.get("metadata", {}), "name": kind.lower()}})
    wait_placed(api, {"on-full": GPUS, "on-mig": GPUS, "": 1})
    api.delete(f"{collection}/{kind.lower()}", {"propagationPolicy": "Foreground"})
    wait_until(lambda: not pods(api), SECONDS, "the pods to be gone")


def pods(api: Api) -> list[Object]:
    return api.list("/api/v1/namespaces/team-hardware/pods")


def wait_placed(api: Api, expected: dict[str, int]) -> None:
    """Wait until the scheduler has judged all pods and each node has as many as expected; "" counts those that wait."""

    def placed() -> bool:
        found = pods(api)
        judged = [row for one in found for row in one["status"].get("conditions", [])]
        places = [one["spec"].get("nodeName", "") for one in found]
        everyone = sum(row["type"] == "PodScheduled" for row in judged) == sum(expected.values())
        return everyone and {place: places.count(place) for place in places} == expected

    wait_until(placed, SECONDS, f"pods on {expected}")


@pytest.mark.usefixtures("mutating")
def test_a_bare_pod_that_names_other_nodes_waits(api: Api) -> None:
    given = required({"matchFields": [{**NAMED, "values": ["on-time-slicing"]}]})
    manifest = {"metadata": {"name": "bare"}, "spec": spec(affinity=given)}
    api.create("/api/v1/namespaces/team-hardware/pods", manifest)
    wait_placed(api, {"": 1})
    api.delete("/api/v1/namespaces/team-hardware/pods/bare")


# --- what the operator makes of it -------------------------------------------------------------------------


@pytest.fixture
def simulated(product: Product) -> Iterator[None]:
    """The SIMULATED node software; it would decide itself what the nodes of the other tests advertise."""
    options = ("--agent-interval", "1", *AGENT_ACCOUNT)
    with launch.node_software(product.plane.kubeconfig, product.directory, FACTOR, *options):
        yield


@pytest.mark.usefixtures("mutating", "simulated")
def test_a_change_that_leaves_a_tenant_no_admitted_node_waits_and_says_why(api: Api, product: Product) -> None:
    """The pod was created before the namespace had the label, so that it has no requirement itself: its successor would have it."""
    namespace = "/api/v1/namespaces/team-late"
    api.create("/api/v1/namespaces", {"metadata": {"name": "team-late"}})
    wait_until(lambda: accounts(api, "team-late"), SECONDS, "the account")
    for mode in ("full", "mig"):
        api.delete(f"/api/v1/nodes/on-{mode}")
    with product.pool(H100) as pool, product.operator(guard="mutating"):
        pool.serve({"mode": "Full"})
        pod = spec(nodeSelector={"gpusharing.dev/pool": pool.name}, terminationGracePeriodSeconds=1)
        template = {"metadata": {"labels": {"app": "served"}}, "spec": pod}
        sets: Object = {"replicas": 1, "selector": {"matchLabels": {"app": "served"}}, "template": template}
        path = "/apis/apps/v1/namespaces/team-late/replicasets"
        pool.create(path, {"metadata": {"name": "served"}, "spec": sets})
        pool.wait(lambda: api.get(f"{path}/served")["status"].get("readyReplicas"), "the pod to run")
        api.merge_patch(namespace, {"metadata": {"labels": {LABEL: "hardware"}}})
        pool.apply({**SLICED, "drain": {"strandedPods": "Hold"}})
        message = pool.wait_phase("Blocked", "StrandedPods")
        assert "team-late/served-" in message
        assert f"requires {MODE} In full,mig" in message
        assert f"namespace team-late has the label {LABEL}=hardware" in message
        pool.apply({**SLICED, "drain": {"strandedPods": "Allow"}})
        pool.wait_synced()


# --- where nothing is added --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validating(api: Api, product: Product) -> Api:
    """The same server with the other kind of guard, which is the only one where MutatingAdmissionPolicy is not served."""
    if not lacks(MUTATING_IF_ASKED):
        chart(product.plane, "validating")
    wait_until(lambda: "must require" in refusal(api, "hardware", spec()), SECONDS, "the mutating policy to be gone")
    assert adding(product) == []
    return api


@pytest.mark.parametrize("level", LEVELS)
def test_a_pod_is_refused_with_lines_that_make_it_admissible(validating: Api, level: str) -> None:
    message = refusal(validating, level, spec())
    assert f"namespace {NAMES[level]} has the label {LABEL}={level}" in message
    lines = re.search(r"affinity: \{.*\}", message)
    assert lines, message
    added = yaml.safe_load(lines[0])
    assert refusal(validating, level, spec(**added)) == ""
    assert terms(validating, level, **added) == [{"matchExpressions": [row(level)]}]


def test_a_pod_with_one_term_that_is_open_is_told_about_each_term(validating: Api) -> None:
    given = required({"matchExpressions": [ONLY_MIG]}, {"matchExpressions": [ZONE]})
    message = refusal(validating, "hardware", spec(affinity=given))
    words = "Add to the matchExpressions of each of the nodeSelectorTerms, because these are alternatives: "
    assert words in message
    added = yaml.safe_load(message.partition(words)[2])
    both = required({"matchExpressions": [ONLY_MIG]}, {"matchExpressions": [ZONE, added]})
    assert refusal(validating, "hardware", spec(affinity=both)) == ""


REFUSED: dict[str, Object] = {
    "a wider choice": required({"matchExpressions": [WIDER]}),
    "another operator": required({"matchExpressions": [{"key": MODE, "operator": "Exists"}]}),
    "all modes but one": required({"matchExpressions": [{**ONLY_MIG, "operator": "NotIn", "values": ["mps"]}]}),
    "a node by its name": required({"matchFields": [NAMED]}),
    "only what it prefers": {
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 100, "preference": {"matchExpressions": [ONLY_MIG]}}
            ]
        }
    },
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_not_enough_to_require(validating: Api, what: str) -> None:
    assert "must require a node whose" in refusal(validating, "hardware", spec(affinity=REFUSED[what]))


def test_a_selected_mode_and_a_pod_without_gpus_are_admitted_and_a_wrong_level_is_not(validating: Api) -> None:
    assert refusal(validating, "hardware", spec(nodeSelector={MODE: "full"})) == ""
    assert "must require" in refusal(validating, "hardware", spec(nodeSelector={MODE: "mps"}))
    assert refusal(validating, "memory", spec(nodeSelector={MODE: "mps"})) == ""
    assert refusal(validating, "hardware", {"containers": [{"name": "main", "image": "x"}]}) == ""
    assert "which is not an isolation level" in refusal(validating, "hard", spec(nodeSelector={MODE: "mig"}))


def test_a_job_shows_the_lines_in_its_events(validating: Api) -> None:
    _, manifest = workload("Job", 1)
    path = "/apis/batch/v1/namespaces/team-memory/jobs"
    validating.create(path, {**manifest, "metadata": {"name": "refused"}})
    events = "/api/v1/namespaces/team-memory/events"

    def reported() -> bool:
        rows = validating.list(events, fieldSelector="involvedObject.name=refused,reason=FailedCreate")
        return any("values: [full, mig, mps]" in one["message"] for one in rows)

    wait_until(reported, SECONDS, "the Event of the Job")
