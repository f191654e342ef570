"""What people see: kubectl's own output of a running scenario, compared with golden files.
GOLDEN=write writes them anew; read the difference before you commit it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hack.cluster.audit import AuditedRequest
from hack.cluster.nodes import LABEL_POOL
from tests.chart.cluster import create_account
from tests.integration.product import FULL, GPUNODES, H100, L40S, MIXED, POLICIES, SLICED, Pool, Product
from tests.integration.workloads import PODS, Workload, guard

# What was given up waits until it is told otherwise.
pytestmark = [pytest.mark.usefixtures("operator"), pytest.mark.operator(abort_backoff="3600s")]

GOLDEN = Path(__file__).with_name("golden")
MASKED_COLUMNS = {"AGE", "SINCE", "DEADLINE"}
MASKS = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"), "TIME"),
    (re.compile(r"\b\d\d:\d\d:\d\dZ"), "TIME"),
    (re.compile(r"(pool-b-on-pool-b-\d)-[a-z0-9]{5}\b"), r"\1-POD"),
    (re.compile(r"allows \d disruptions?: \d of \d pods are healthy"), "allows N disruptions: N of N pods are healthy"),
    (re.compile(r"(UID|Resource Version|Hash|Revision): +\S+"), r"\1: MASKED"),
    (re.compile(r"^( +\w+ +\w+ +)(<invalid>|\d\S*|\S+ \(x\d+ over \S+\))( +gpusharing)", re.M), r"\1AGE\3"),
)
BUDGET_SAYS = "evicted from pool-b-1 are being replaced: 1 of 2 pods are healthy, and 1 must be."
TOLD = {"DrainStarted", "LayoutVerified", "Reconfiguring"}
SCHEDULER_SAYS = "0/5 nodes are available: 2 node(s) were unschedulable, 3 node(s) didn't match"


@pytest.fixture(scope="module")
def scenario(product: Product, operator: object) -> Iterator[Pool]:
    """Pool b: one node done, one in a drain that a budget blocks, one cordoned by a person; pools c and d: Synced."""
    with (
        product.pool(H100, H100, H100, name="pool-b") as pool,
        product.pool(H100, name="pool-c") as whole,
        product.pool(L40S, name="pool-d") as shared,
    ):
        whole.apply(FULL)
        shared.apply(SLICED)
        blocked = pool.nodes[1]
        spare = Workload(pool, whole.nodes[0], 0, app="pool-b")
        work = Workload(pool, blocked, 2)
        work.wait_running(2)
        guard(pool, "pool-b", 1, minAvailable=1)
        pool.cordon(pool.nodes[2])
        # The node whose drain is blocked would otherwise take the only slot, if its agent is the first to report.
        first = f"{GPUNODES}/{pool.nodes[0]}"
        pool.wait(
            lambda: product.exists(first) and "observed" in product.api.get(first).get("status", {}),
            "the agent of the first node to report",
        )
        pool.apply({**MIXED, "rollout": {"maxUnavailable": 2}})
        pool.wait_phase("Synced", "", pool.nodes[0])
        pool.wait_phase("Draining", "PDBInUse", blocked)
        pool.wait_phase("Blocked", "AlreadyCordoned", pool.nodes[2])
        whole.wait_synced()
        shared.wait_synced()
        pool.wait(lambda: pool.summary().get("used") == "1/8", "the count of used devices")
        report = f"{GPUNODES}/{blocked}"
        pool.wait(lambda: product.api.get(report)["status"]["observed"]["pods"] == 1, "the agent to see one pod less")
        for one in (pool, whole, shared):
            one.wait(lambda one=one: one.summary().get("pendingPods") == 1, "the count of waiting pods")
        wait_last_words(pool, blocked)
        yield pool
        spare.scale(1)


def wait_last_words(pool: Pool, blocked: str) -> None:
    """Until budget and scheduler say what they go on to say: their first words are of the moment before."""
    pool.wait(
        lambda: BUDGET_SAYS in pool.transition(blocked)["message"],
        "the budget's last words",
        lambda: pool.transition(blocked),
    )
    pool.wait(lambda: BUDGET_SAYS in pool.summary().get("message", ""), "them in the policy's summary")
    pool.wait(lambda: SCHEDULER_SAYS in scheduler_says(pool), "the scheduler's", lambda: scheduler_says(pool))
    pool.wait(lambda: {reason for reason, _ in pool.events()} >= TOLD, "the Events", pool.events)


def scheduler_says(pool: Pool) -> str:
    waiting = pool.api.list(PODS, labelSelector=f"app={pool.name}", fieldSelector="status.phase=Pending")
    return " ".join(row.get("message", "") for pod in waiting for row in pod["status"].get("conditions", []))


def masked(text: str) -> str:
    """Without what differs from run to run; columns keep their order, not their width."""
    lines = text.splitlines()
    if lines and lines[0].startswith("NAME "):
        return "\n".join(_table(lines)) + "\n"
    for pattern, mask in MASKS:
        text = pattern.sub(mask, text)
    body, head, events = text.partition("Events:\n")
    # Two nodes move at once, so the order of their events is no one's promise.
    rows = sorted(re.sub(r" {2,}", "  ", line) for line in events.splitlines()[2:])
    return "\n".join(line.rstrip() for line in [*body.splitlines(), head.strip(), *rows]) + "\n"


def _table(lines: list[str]) -> Iterator[str]:
    header = [(match.group(), match.start()) for match in re.finditer(r"\S+", lines[0])]
    ends = [start for _, start in header[1:]] + [10_000]
    rows = [[line[start:end].strip() for (_, start), end in zip(header, ends, strict=True)] for line in lines]
    for row in rows[1:]:
        for index, (name, _) in enumerate(header):
            if name in MASKED_COLUMNS and row[index]:
                row[index] = name.lower()
            for pattern, mask in MASKS:
                row[index] = pattern.sub(mask, row[index])
    widths = [max(len(row[index]) for row in rows) for index in range(len(header))]
    for row in rows:
        yield "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


OUTPUTS: dict[str, tuple[str, ...]] = {
    "get-gsp": ("get", "gsp"),
    "get-gsp-wide": ("get", "gsp", "-o", "wide"),
    "get-gpun": ("get", "gpun"),
    "get-gpun-wide": ("get", "gpun", "-o", "wide"),
    "describe-gsp": ("describe", "gsp", "pool-b"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_kubectl_shows_what_the_golden_file_says(product: Product, scenario: Pool, name: str) -> None:
    assert scenario.name == "pool-b"
    compare(name, masked(product.plane.kubectl(*OUTPUTS[name])))


def compare(name: str, seen: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(seen)
    assert seen == path.read_text()


# --- kubectl gpusharing ------------------------------------------------------------------------------------------

PLANNER = "gpusharing-planner"
PLUGIN: dict[str, tuple[str, ...]] = {
    "plugin-status": ("status",),
    "plugin-status-wide": ("status", "pool-b", "-o", "wide"),
    "plugin-plan": ("plan", "pool-b"),
    "plugin-why-node": ("why", "pool-b-1"),
    "plugin-why-done": ("why", "pool-b-0"),
    "plugin-doctor": ("doctor",),
}
LASTS = "takes about AGE to AGE"
PLUGIN_MASKS = (
    # Hashes first: one that reads 123456d would be taken for a length of time.
    (re.compile(r"\bpool-([b-e])-[0-9a-f]{7}\b"), r"pool-\1-HASH"),
    (re.compile(r"\bplan [0-9a-f]{7}\b"), "plan HASH"),
    (re.compile(r"(pool-[be]\.)[0-9a-f]{11}"), r"\1MOMENT"),
    (re.compile(r"retry\":\"\w+"), 'retry":"MOMENT'),
    (re.compile(r"(approve\":\")[0-9a-f]{7}\b"), r"\1HASH"),
    (re.compile(r"\b\d+[smhd](\d+[smhd])?\b( ago)?"), "AGE"),
    # One end of the range or both, and where the line breaks: as long as the past changes of this run took.
    (
        re.compile(r"\s+This\s+takes\s+about[^,]*,\s+(?:\w+\s+)+windows\."),
        f"\n  This {LASTS}, judging by past changes and the windows.",
    ),
    (re.compile(r"takes about AGE( to AGE)?;"), f"{LASTS};"),
    (re.compile(r"(?<=\S) {2,}"), "  "),
    # Phases that pass quickly are not in every history; the last one is. A drain may begin before it meets a budget.
    (re.compile(r"(ENTERED {2}PHASE {2}REASON\n)(?:AGE .*\n)*(AGE {2}\w+ {2})\w+\n"), r"\1\2REASON\n"),
)


def account(product: Product, name: str, *roles: str) -> Path:
    """The kubeconfig of somebody new with these ClusterRoles in the whole cluster, and nothing else."""
    create_account(product.api, name, *roles)
    return product.plane.service_account_kubeconfig("default", name)


@pytest.fixture(scope="module")
def person(product: Product) -> Path:
    """Somebody who may what docs/reference/cli.md names for `plan`."""
    return account(product, "person", "view", PLANNER)


def plugin(kubeconfig: Path, *arguments: str, stdin: str | None = None, errors: bool = True) -> str:
    """What `kubectl gpusharing` says on both streams (without `errors`: on standard output), and its exit status."""
    command = [sys.executable, "-m", "kubectl_gpusharing", *arguments]
    told = {**os.environ, "KUBECONFIG": str(kubeconfig), "PYTHONUTF8": "1"}
    done = subprocess.run(command, env=told, input=stdin, capture_output=True, text=True, timeout=120, check=False)
    return f"{done.stdout}{done.stderr if errors else ''}exit status {done.returncode}\n"


@dataclass(frozen=True)
class Typed:
    answers: Mapping[str, str]
    """What was said, by the name in PLUGIN."""
    requests: Sequence[AuditedRequest]


@pytest.fixture(scope="module")
def typed(product: Product, scenario: Pool, person: Path) -> Typed:
    since = product.mark()
    answers = {name: plugin(person, *arguments) for name, arguments in PLUGIN.items()}
    return Typed(answers, product.requests(since, "system:serviceaccount:default:person"))


@pytest.mark.parametrize("name", PLUGIN)
def test_the_plugin_says_what_the_golden_file_says(typed: Typed, name: str) -> None:
    same_as_golden(name, typed.answers[name])


def same_as_golden(name: str, seen: str) -> None:
    for pattern, mask in (*MASKS, *PLUGIN_MASKS):
        seen = pattern.sub(mask, seen)
    compare(name, seen)


def test_the_plugin_says_why_a_pod_waits(product: Product, scenario: Pool, person: Path) -> None:
    """It asks for what its node offers no more, and the budget of another pod keeps the others of its kind."""
    waiting = product.api.list(PODS, fieldSelector="status.phase=Pending")
    name = next(pod["metadata"]["name"] for pod in waiting if pod["metadata"]["name"].startswith("pool-b-on-"))
    same_as_golden("plugin-why-pod", plugin(person, "why", f"default/{name}"))


def lodger(product: Product, name: str, *roles: str) -> Path:
    """The kubeconfig of somebody with `view` in the namespace default alone, and with these ClusterRoles everywhere."""
    kubeconfig = account(product, name, *roles)
    view_in(product, "default", name)
    return kubeconfig


def view_in(product: Product, namespace: str, name: str) -> None:
    """Give an account of this namespace the built-in role `view` there, and nowhere else."""
    binding = {
        "metadata": {"name": f"{name}-view"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
    }
    product.api.create(f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings", binding)


@pytest.fixture(scope="module")
def lodgers(product: Product) -> Mapping[str, Path]:
    """With the rights of a namespace, and with those to what the operator publishes too."""
    return {"namespace": lodger(product, "lodger"), "viewer": lodger(product, "lodger-who-looks", "gpusharing-viewer")}


@pytest.mark.parametrize("who", ["namespace", "viewer"])
def test_the_plugin_says_why_a_pod_waits_to_somebody_of_its_namespace(
    product: Product, scenario: Pool, lodgers: Mapping[str, Path], who: str
) -> None:
    """What the pod says or, with the role for published objects, what these say; and what more rights would add."""
    waiting = product.api.list(PODS, fieldSelector="status.phase=Pending")
    names = (pod["metadata"]["name"] for pod in waiting)
    name = next(name for name in names if name.startswith("pool-b-on-"))
    same_as_golden(f"plugin-why-pod-{who}", plugin(lodgers[who], "why", f"pod/{name}"))
    refused = plugin(lodgers[who], "why", "no/pool-b-1")
    assert ("you lack a permission" in refused) is (who == "namespace")
    assert ("No proof to show: the right to list nodes" in refused) is (who == "viewer")


def test_the_plugin_explains_a_policy_by_its_worst_node(scenario: Pool, person: Path) -> None:
    said = plugin(person, "why", f"gsp/{scenario.name}")
    assert f"\n{scenario.nodes[2]}  {scenario.name}  Blocked: AlreadyCordoned" in said
    assert said.startswith(f"{scenario.name}  MIG 2x3g.40gb  Draining")


def test_kubectl_selects_policies_by_mode_and_nodes_by_policy_and_phase(product: Product, scenario: Pool) -> None:
    """By selectableFields; the API server refuses a selector of any other field."""

    def names(kind: str, selector: str) -> set[str]:
        shown = product.plane.kubectl("get", kind, "--field-selector", selector, "-o", "name")
        return {line.partition("/")[2] for line in shown.split()}

    modes = ("MIG", "Full", "TimeSlicing", "MPS")
    assert [names("gsp", f"spec.mode={mode}") for mode in modes] == [{"pool-b"}, {"pool-c"}, {"pool-d"}, set()]
    mine = "status.transition.policy=pool-b"
    assert names("gpun", mine) == set(scenario.nodes)
    assert names("gpun", f"{mine},status.transition.phase=Blocked") == {scenario.nodes[2]}


def test_kubectl_describe_shows_cordon_and_release_on_the_node(product: Product, scenario: Pool) -> None:
    done, drains, _ = scenario.nodes
    change = "the change to 2x3g.40gb under policy pool-b"
    cordoned, released = (f"the operator has cordoned the node for {change}", f"released the node after {change}")
    scenario.wait(lambda: "NodeReleased" in product.plane.kubectl("describe", "node", done), "the last Event")
    told = product.plane.kubectl("describe", "node", done).partition("Events:")[2]
    assert re.search(rf"Normal +NodeCordoned .*gpusharing.dev/operator +{cordoned}", told)
    assert re.search(rf"Normal +NodeReleased .*{released}; it accepts pods again", told)
    told = product.plane.kubectl("describe", "node", drains).partition("Events:")[2]
    assert ("NodeCordoned" in told, "NodeReleased" in told) == (True, False)


def test_the_plugin_shows_the_events_of_a_policy_inline(scenario: Pool, person: Path) -> None:
    said = plugin(person, "status", scenario.name, "--events")
    assert re.search(r"\n  \d+\w+ ago LayoutVerified: pool-b-0: 2x3g.40gb proven\n", said)
    assert re.search(r"\n  \d+\w+ ago DrainStarted: pool-b-1: 2 GPU pods will be evicted", said)
    assert "PodEvictionBlocked" not in said
    assert said.endswith("exit status 0\n")


def test_the_plugin_says_what_an_edit_in_a_file_would_do(
    product: Product, scenario: Pool, person: Path, tmp_path: Path
) -> None:
    """As `kubectl get gsp pool-c -o yaml`, edited by hand, would be applied. Nothing of it reaches the server."""
    path = f"{POLICIES}/pool-c"
    before = product.api.get(path)
    edit = {key: before[key] for key in ("apiVersion", "kind")} | {"metadata": {"name": "pool-c"}}
    file = tmp_path / "pool-c.yaml"
    file.write_text(json.dumps({**edit, "spec": {**before["spec"], **SLICED}}))
    same_as_golden("plugin-plan-file", plugin(person, "plan", "-f", str(file)))
    assert product.api.get(path)["metadata"]["generation"] == before["metadata"]["generation"]
    assert scenario.name == "pool-b"


def manifest(name: str, pool: str, spec: Mapping[str, object]) -> str:
    selector = {"nodeSelector": {"matchLabels": {LABEL_POOL: pool}}}
    api, kind = "gpusharing.dev/v1alpha1", "GPUSharingPolicy"
    return json.dumps({"apiVersion": api, "kind": kind, "metadata": {"name": name}, "spec": {**selector, **spec}})


def test_a_policy_in_a_folder_differs_from_the_stored_one_by_the_servers_defaults_and_nothing_is_planned(
    scenario: Pool, person: Path, tmp_path: Path
) -> None:
    assert scenario.name == "pool-b"
    (tmp_path / "policy.yaml").write_text(manifest("pool-c", "pool-c", FULL))
    (tmp_path / "other.yaml").write_text("kind: Service\nmetadata: {name: beside}\n---\n")
    said = plugin(person, "plan", "-f", str(tmp_path), "--fail-on", "evictions,shortfall")
    assert said.startswith("Nothing to do: 1 node has what the policies ask for."), said
    assert said.endswith("exit status 0\n"), said
    assert "Service/beside is ignored" in " ".join(said.split())


def test_the_plugin_packs_a_bundle_without_gaps_but_for_what_nobody_granted(
    scenario: Pool, person: Path, tmp_path: Path
) -> None:
    shown = plugin(person, "support-bundle", str(tmp_path / "shown.tar.gz"))
    # Of each kind of pod one gap is enough: a plane has more of them while other pools are there.
    for pattern, mask in ((str(tmp_path), "FOLDER"), (r"-\w{5}:", "-POD:"), (r"\d+ files", "N files")):
        shown = re.sub(pattern, mask, shown)
    gaps = re.split(r"(?=^Not included|^exit)", shown, flags=re.M)
    # Pods of nodes that an earlier module removed stay for a minute, until the garbage collector of pods comes.
    gaps = [one for one in gaps if not re.search(r"not\s+found|more\s+pods\s+of", one)]
    same_as_golden("plugin-support-bundle", "".join(dict.fromkeys(gaps)))
    said = plugin(person, "support-bundle", str(tmp_path / "bundle.tar.gz"), "-o", "json")
    told = json.loads(said.rpartition("exit status 0")[0])
    assert {"policies.json", "gpunodes.json", "nodes.json", "clusterpolicies.json"} <= set(told["files"])
    assert [gap for gap in told["gaps"] if not gap.startswith("log of ")] == []


def test_the_plugin_asks_for_no_right_that_the_page_does_not_name(typed: Typed) -> None:
    refused = {(one.verb, one.resource) for one in typed.requests if one.status == 403}
    assert refused == {("create", "subjectaccessreviews"), ("get", "runtimeclasses")}, "doctor says so"


def test_the_category_gpu_shows_both_kinds(product: Product, scenario: Pool) -> None:
    shown = product.plane.kubectl("get", "gpu", "-o", "name").split()
    assert f"gpusharingpolicy.gpusharing.dev/{scenario.name}" in shown
    assert {f"gpunode.gpusharing.dev/{node}" for node in scenario.nodes} <= set(shown)


def test_of_the_planners_role_nothing_is_granted_that_no_verb_of_the_plugin_asks_for(
    product: Product, typed: Typed
) -> None:
    role = product.api.get(f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{PLANNER}")
    granted = {
        (group, resource) for rule in role["rules"] for group in rule["apiGroups"] for resource in rule["resources"]
    }
    asked = {(one.group, one.resource) for one in typed.requests}
    # A right to claims is needed where a pod has one, and no pod of the scenario does; one to slices with a DRA driver.
    of_dra = ("resourceclaims", "resourceslices", "deviceclasses", "devicetaintrules")
    assert granted - asked == {("resource.k8s.io", kind) for kind in of_dra}


def test_without_the_planners_role_plan_says_which_rights_are_missing_and_status_does_without(
    product: Product, scenario: Pool
) -> None:
    viewer = account(product, "viewer", "view")
    assert plugin(viewer, "status", "pool-b").endswith("exit status 0\n")
    same_as_golden("plugin-plan-without-rights", plugin(viewer, "plan", "pool-b"))


# --- last: what makes more pools and pods that wait ----------------------------------------------------------


def test_the_plugin_steers_a_rollout_with_the_editors_rights(product: Product, scenario: Pool) -> None:
    editor = account(product, "steerer", "view", "gpusharing-editor")
    with product.pool(H100, name="pool-e") as pool:
        pool.serve(FULL)
        pool.apply({**MIXED, "rollout": {"approval": "Manual"}})
        pool.wait_phase("Pending", "ApprovalNeeded")
        for verb in ("pause", "resume", "approve"):
            pool.wait(lambda: bool(pool.condition("Ready")), "the operator to look at it")
            same_as_golden(f"plugin-{verb}-done", plugin(editor, verb, "pool-e", "--yes"))
            assert product.api.get(pool.path)["spec"]["rollout"].get("paused", False) is (verb == "pause")
        pool.wait_synced()
    assert scenario.name == "pool-b"


def test_the_plugin_steers_a_node_with_the_rights_that_the_page_names(product: Product, scenario: Pool) -> None:
    rule = {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "patch"]}
    role = {"metadata": {"name": "node-steerer"}, "rules": [rule]}
    product.api.create("/apis/rbac.authorization.k8s.io/v1/clusterroles", role)
    editor = account(product, "helmsman", "view", "node-steerer")
    with product.pool(H100, name="pool-e") as pool:
        node = pool.nodes[0]

        def steer(golden: str, *verb: str) -> None:
            same_as_golden(f"plugin-{golden}", plugin(editor, *verb, node, "--yes"))

        work = Workload(pool, node, 2)
        work.wait_running(2)
        guard(pool, "pool-e", 1, minAvailable=1)
        pool.apply(MIXED)
        pool.wait_phase("Draining", "PDBInUse")
        steer("skip-done", "skip")
        assert pool.node(node)["spec"]["unschedulable"], "what is in flight goes on"
        steer("abort-done", "abort")
        pool.wait_phase("Skipped", "SkipLabel")
        assert "unschedulable" not in pool.node(node)["spec"]
        steer("skip-undone", "skip", "--undo")
        pool.wait_phase("Pending", "Deferred")
        steer("retry-done", "retry")
        pool.wait_phase("Draining", "PDBInUse")
        work.scale(0)
        pool.wait_synced()
    assert scenario.name == "pool-b"


@pytest.mark.parametrize(("kind", "typed"), [("Deployment", "deploy"), ("Job", "job")])
def test_a_workload_that_names_a_resource_wrongly_learns_the_right_one(
    product: Product, scenario: Pool, lodgers: Mapping[str, Path], kind: str, typed: str
) -> None:
    """By the API server's own controllers: the scheduler's word is there before it is asked."""
    resources = {"limits": {"nvidia.com/mig-3g.40g": "1"}}
    container = {"name": "main", "image": "registry.example/main", "resources": resources}
    labels = {"matchLabels": {"app": "slip"}}
    restarts = {"restartPolicy": "Always" if kind == "Deployment" else "Never"}
    template = {"metadata": {"labels": labels["matchLabels"]}, "spec": {"containers": [container], **restarts}}
    group = "apps" if kind == "Deployment" else "batch"
    spec = {"template": template, **({"selector": labels} if kind == "Deployment" else {})}
    manifest = {"apiVersion": f"{group}/v1", "kind": kind, "metadata": {"name": "slip"}, "spec": spec}
    path = f"/apis/{group}/v1/namespaces/default/{typed if typed == 'job' else 'deployment'}s"
    product.api.create(path, manifest)
    try:
        scenario.wait(
            lambda: any(
                "Insufficient nvidia.com/mig-3g.40g" in row.get("message", "")
                for pod in product.api.list(PODS, labelSelector="app=slip")
                for row in pod["status"].get("conditions", [])
            ),
            "the scheduler's word",
        )
        said = " ".join(plugin(lodgers["viewer"], "why", f"{typed}/slip").split())
    finally:
        product.remove(f"{path}/slip")
    assert said.startswith(f"{path.rpartition('/')[2]}/slip: 1 pod, 1 of them without a node SIMULATED: ")
    assert "It is unknown whether this pod can start, because it is unknown what pool-b-1" in said
    assert "Did you mean nvidia.com/mig-3g.40gb? 4 are known to be free." in said
    assert said.endswith("exit status 0")


def waiting_pods(product: Product, space: str, pods: Sequence[tuple[str, dict[str, str]]]) -> list[str]:
    """Pods in a new namespace that ask for one of a resource, with these annotations, and wait for ever; their paths."""
    product.api.create("/api/v1/namespaces", {"metadata": {"name": space}})
    path = f"/api/v1/namespaces/{space}/pods"
    for number, (resource, annotations) in enumerate(pods):
        container = {"name": "main", "image": "r.example/main", "resources": {"limits": {resource: "1"}}}
        spec = {"containers": [container], "nodeSelector": {"nobody": "has-it"}}
        product.api.create(path, {"metadata": {"name": f"pod-{number}", "annotations": annotations}, "spec": spec})
    return [f"{path}/pod-{number}" for number in range(len(pods))]


def test_the_plugin_advises_by_the_pods_of_a_namespace(product: Product, person: Path) -> None:
    profiles = ("3g.40gb", "1g.10gb", "1g.10gb")  # they name instances
    paths = waiting_pods(product, "advised", [(f"nvidia.com/mig-{profile}", {}) for profile in profiles])
    try:
        said = plugin(person, "advise", "-n", "advised", "--card", "h100-80gb")
    finally:
        product.remove(*paths)
    same_as_golden("plugin-advise-namespace", said)


def test_the_plugin_advises_by_the_memory_that_pods_declare(product: Product, person: Path) -> None:
    sizes = ("24Gi", "24Gi", "9Gi", "9Gi", "9Gi")
    pods = [("nvidia.com/gpu", {"gpusharing.dev/gpu-memory": size}) for size in sizes]
    paths = waiting_pods(product, "declared", pods)
    try:
        words = "advise -n declared --bill --card h100-80gb --price 3.20 -o json"
        told = json.loads(plugin(person, *words.split(), errors=False).removesuffix("exit status 0\n"))
    finally:
        product.remove(*paths)
    assert (told["mode"], told["layout"], told["gpus"]) == ("MIG", {"3g.40gb": 1, "1g.10gb": 4}, 2)
    assert told["saving"] == {"gpus": 3, "perMonth": 7008.0, "currency": "USD"}
    stored = product.api.create(f"{POLICIES}?dryRun=All", told["policy"])
    assert stored["spec"]["mig"]["layouts"][0]["profiles"] == told["layout"]
