"""Values of the chart that are set, changed and rolled back in the middle of a change: what the operator has set on a Node it may take away again, and each change comes to its end."""

import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hack.cluster.api import JSON, MERGE_PATCH, Api, ApiError, Object
from hack.cluster.controlplane import ControlPlane, Options
from hack.cluster.process import wait_until
from tests.build import make_fence, make_node
from tests.chart.charts import CHART, Helm
from tests.chart.cluster import NODES, SECONDS, Installed, forbidden, set_up
from tests.minors import DEVICE_CLASSES, DEVICE_TAINT_RULES, lacks, need

from gpusharing.api import names
from gpusharing.kube.dra import rule_for
from gpusharing.kube.fence import NodePatch, patch_for
from gpusharing.planning.snapshot.actions import Actuate, FenceNode, Release, UpdateFence
from gpusharing.planning.snapshot.records import Fence, Verified
from gpusharing.planning.transition.fencing import marks_for, unmarked

pytestmark = pytest.mark.cluster

RULES = "/apis/resource.k8s.io/v1beta2/devicetaintrules"
MAPS = "/api/v1/namespaces/gpu-operator/configmaps"
PODS = "/api/v1/namespaces/default/pods"
MPS = "nvidia-device-plugin-mps-control-daemon"
HANDS_OFF = "repair.example.com/hands-off"
OTHER_LABEL = "example.com/gpu"
TAINTS = "dra.deviceTaints"
ATOMIC = ("--atomic" if os.environ.get("HELM") == "helm3" else "--rollback-on-failure", "--timeout", "45s")
PHASES = ("fenced", "draining", "actuating", "failed", "yielded")


@dataclass(frozen=True)
class Changing:
    """A Node, and the steps of a change that the operator writes to it with the product's own patches."""

    admin: Api
    operator: Api
    name: str

    @property
    def raw(self) -> Object:
        found: Object = self.admin.get(f"{NODES}/{self.name}")
        return found

    def begin(self, phase: str, *marks: str) -> Fence:
        """Bring the Node to a phase; `marks` are further labels for other controllers, as KEY=VALUE."""
        raw = self.raw
        view = make_node(self.name, uid=raw["metadata"]["uid"], labels=raw["metadata"]["labels"])
        labels, annotations = marks_for(view, marks)
        fence = make_fence(node_uid=view.uid, added=(*labels, *annotations))
        self.patch(FenceNode(view, fence, True, {**labels, names.LABEL_MODE: None}, annotations))
        if phase == "draining":
            fence = replace(fence, retry="again")
            self.patch(UpdateFence(view, fence))
        if phase in ("actuating", "failed"):
            fence = replace(fence, stage="actuating", target_mig_config="pool-b-1")
            self.patch(Actuate(view, fence, {names.LABEL_MIG_CONFIG: "pool-b-1", names.LABEL_MIG_STATE: None}))
        if phase == "failed":
            fence = replace(fence, failed=fence.since)
            self.patch(UpdateFence(view, fence))
        if phase == "yielded":
            removed = unmarked(fence, view)
            fence = replace(fence, stage="yielded", added=())
            self.patch(UpdateFence(view, fence, labels=removed[0], annotations=removed[1]))
        return fence

    def end(self, fence: Fence) -> Object:
        raw = self.raw
        view = make_node(self.name, uid=raw["metadata"]["uid"], labels=raw["metadata"]["labels"])
        fence = replace(fence, attempt=2)
        self.patch(UpdateFence(view, fence))
        labels, annotations = unmarked(fence, view)
        proof = Verified("pool-b", "pool-b-1", "", layout="1g.10gb", gpus=1)
        labels = {**labels, names.LABEL_MODE: "mig", names.LABEL_POLICY: "pool-b"}
        self.patch(Release(view, True, labels, proof, annotations))
        return self.raw

    def patch(self, action: NodePatch) -> None:
        """Write it as the operator; once more if somebody else wrote in between, as the controller does that taints a cordoned Node."""

        def written() -> bool:
            body = patch_for(action, self.raw["metadata"]["resourceVersion"])
            try:
                self.operator.merge_patch(f"{NODES}/{self.name}", body)
            except ApiError as error:
                if error.status != 409:
                    raise
                return False
            return True

        wait_until(written, SECONDS, "a patch without a conflict")


def try_out(api: Api, method: str, path: str, body: Object | None = None, kind: str = JSON) -> bool:
    return not forbidden(lambda: api.request(method, path, body, kind, dryRun="All"))


def marks(operator: Api) -> bool:
    return try_out(operator, "PATCH", f"{NODES}/probe", {"metadata": {"labels": {HANDS_OFF: "true"}}}, MERGE_PATCH)


def deletes_pods(operator: Api) -> bool:
    uid = operator.list(PODS, fieldSelector="metadata.name=probe")[0]["metadata"]["uid"]
    return try_out(operator, "DELETE", f"{PODS}/probe", {"preconditions": {"uid": uid}})


def evicts(operator: Api) -> bool:
    uid = operator.list(PODS, fieldSelector="metadata.name=probe")[0]["metadata"]["uid"]
    options = {"preconditions": {"uid": uid}}
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "probe"}, "deleteOptions": options}
    return try_out(operator, "POST", f"{PODS}/probe/eviction", body)


def writes_map(name: str) -> Callable[[Api], bool]:
    return lambda operator: try_out(operator, "POST", MAPS, {"metadata": {"name": name}})


def writes_a_flag(operator: Api) -> bool:
    data = {"a": "version: v1\nflags:\n  own: x\n"}
    return try_out(operator, "POST", MAPS, {"metadata": {"name": "gpusharing-device-plugin"}, "data": data})


def patches(operator: Api, group: str, resource: str, name: str) -> bool:
    attributes = {"group": group, "resource": resource, "verb": "patch", "name": name, "namespace": "gpu-operator"}
    review = {"spec": {"resourceAttributes": attributes}}
    answer = operator.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
    return bool(answer["status"]["allowed"])


VALUES: dict[str, tuple[tuple[str, ...], Callable[[Api], bool], bool]] = {
    "operator.neighborLabels": (
        ("--set-string", r"operator.neighborLabels.repair\.example\.com/hands-off=true"),
        marks,
        True,
    ),
    "admission.nodeLabels": (
        (
            "--set",
            f"admission.nodeLabels={{{OTHER_LABEL}}}",
            "--set-string",
            r"agent.nodeSelector.example\.com/gpu=true",
        ),
        lambda api: try_out(api, "PATCH", f"{NODES}/other", {"spec": {"unschedulable": True}}, MERGE_PATCH),
        True,
    ),
    "admission.pluginFields": (("--set", "admission.pluginFields={own}"), writes_a_flag, True),
    TAINTS: (("--set", "dra.deviceTaints=true"), lambda api: try_out(api, "POST", RULES, rule_for("probe")), True),
    "forceDelete": (("--set", "forceDelete=true"), deletes_pods, True),
    "operator.protectedNamespaces": (("--set", "operator.protectedNamespaces={default}"), evicts, False),
    "gpuOperator.pluginConfigMap": (("--set", "gpuOperator.pluginConfigMap=mine"), writes_map("mine"), True),
    "gpuOperator.migConfigMap": (("--set", "gpuOperator.migConfigMap=my-layouts"), writes_map("my-layouts"), True),
    "gpuOperator.configure": (
        ("--set", "gpuOperator.configure=true"),
        lambda api: patches(api, "nvidia.com", "clusterpolicies", "any"),
        True,
    ),
    "gpuOperator.repairMps": (
        ("--set", "gpuOperator.repairMps=true"),
        lambda api: patches(api, "apps", "daemonsets", MPS),
        True,
    ),
}
"""Each value with which a rule about the operator changes: helm's arguments, what the operator may do under one of the two settings only, and whether that is the one of the arguments."""


@pytest.fixture(scope="module")
def site(helm: Helm) -> Iterator[Installed]:
    """A control plane of its own, which serves DeviceTaintRules if its minor has them, with the chart."""
    flags = ("--runtime-config=resource.k8s.io/v1beta2=true",)
    ruled = Options(apiserver_flags=flags, feature_gates="DRADeviceTaintRules=true")
    with ControlPlane(options=Options() if lacks(DEVICE_TAINT_RULES) else ruled) as plane:
        installed = set_up(plane, helm)
        present = {names.LABEL_GPU_PRESENT: "true", OTHER_LABEL: "true"}
        plane.api.create(NODES, {"metadata": {"name": "probe", "labels": present}})
        plane.api.create(NODES, {"metadata": {"name": "other", "labels": {OTHER_LABEL: "true"}}})
        spec = {"nodeName": "probe", "containers": [{"name": "main", "image": "x"}]}
        plane.api.create(PODS, {"metadata": {"name": "probe"}, "spec": spec})
        yield installed


@pytest.fixture(scope="module")
def operator(site: Installed) -> Iterator[Api]:
    with site.operator() as api:
        yield api


SERIAL = itertools.count()
Begun = list[tuple[Changing, Fence]]


def begin_in_each_phase(site: Installed, operator: Api, *marks: str, label: str = names.LABEL_GPU_PRESENT) -> Begun:
    labels = {label: "true", names.LABEL_MODE: "full", names.LABEL_MIG_STATE: "success"}
    begun = []
    for phase in PHASES:
        node = Changing(site.admin, operator, f"node-{next(SERIAL)}")
        site.admin.create(NODES, {"metadata": {"name": node.name, "labels": labels}})
        begun.append((node, node.begin(phase, *marks)))
    return begun


def end(begun: Begun) -> None:
    """Bring each change to its end, after which nothing of it is left on its Node, and delete the Node: it has no kubelet, so a later `helm upgrade --wait` would wait for the agent's pod there until the Node counts as lost."""
    for node, fence in begun:
        raw = node.end(fence)
        assert not raw["spec"].get("unschedulable")
        assert not {*fence.added, names.LABEL_UPGRADE_SKIP, HANDS_OFF} & raw["metadata"]["labels"].keys()
        assert names.ANNOTATION_FENCE not in raw["metadata"]["annotations"]
        node.admin.delete(f"{NODES}/{node.name}")


def last_revision(site: Installed) -> tuple[str, str]:
    (row,) = json.loads(site.must("history", "--max", "1", "--output", "json"))
    return str(row["revision"]), row["status"]


@pytest.mark.parametrize("value", VALUES)
def test_a_change_comes_to_its_end_when_in_the_middle_of_it_a_value_is_set_or_rolled_back(
    site: Installed, operator: Api, value: str
) -> None:
    if value == TAINTS:
        need(DEVICE_TAINT_RULES, "DeviceTaintRule in v1beta2")
    arguments, probe, is_on = VALUES[value]

    def turn(on: bool, verb: str, *more: str) -> None:
        site.must(verb, *more)
        wait_until(lambda: probe(operator) == (on == is_on), SECONDS, f"{value} to have changed")

    revision = last_revision(site)[0]
    begun = begin_in_each_phase(site, operator)
    turn(True, "upgrade", str(CHART), *arguments)
    end(begun)
    begun = begin_in_each_phase(
        site,
        operator,
        *([f"{HANDS_OFF}=true"] if value == "operator.neighborLabels" else []),
        label=OTHER_LABEL if value == "admission.nodeLabels" else names.LABEL_GPU_PRESENT,
    )
    rule = rule_for(begun[0][0].name)
    if value == TAINTS:
        operator.create(RULES, rule)
    turn(False, "rollback", revision)
    end(begun)
    if value == TAINTS:
        operator.delete(f"{RULES}/{rule['metadata']['name']}")


def test_device_taints_are_refused_where_the_server_lacks_what_their_test_needs(site: Installed) -> None:
    before = last_revision(site)
    done = site.run_helm("upgrade", str(CHART), *VALUES[TAINTS][0], "--dry-run=server")
    assert (done.returncode != 0) == lacks(DEVICE_CLASSES), done.stderr
    assert ("dra.deviceTaints needs Kubernetes 1.36" in done.stderr) == lacks(DEVICE_CLASSES), done.stderr
    assert last_revision(site) == before


def test_a_change_ends_although_its_fence_is_written_with_other_spaces(site: Installed, operator: Api) -> None:
    """A person, or another version of the operator, may write the same JSON otherwise."""
    node = Changing(site.admin, operator, f"node-{next(SERIAL)}")
    labels = {names.LABEL_GPU_PRESENT: "true", names.LABEL_MODE: "full", names.LABEL_MIG_STATE: "success"}
    site.admin.create(NODES, {"metadata": {"name": node.name, "labels": labels}})
    fence = node.begin("fenced")
    record = json.loads(node.raw["metadata"]["annotations"][names.ANNOTATION_FENCE])
    written = {names.ANNOTATION_FENCE: json.dumps({"ofANewerVersion": {"kept": True}, **record}, indent=1)}
    site.admin.merge_patch(f"{NODES}/{node.name}", {"metadata": {"annotations": written}})
    end([(node, fence)])


def test_a_change_comes_to_its_end_when_helm_itself_rolls_an_upgrade_back(site: Installed, operator: Api) -> None:
    """`--rollback-on-failure`, which Helm 3 calls `--atomic`: each change begins under the values of the revision that fails, because no node takes its pods."""
    refused = {TAINTS} if lacks(DEVICE_CLASSES) else set()
    every = [word for value in VALUES if value not in refused for word in VALUES[value][0]]
    before, _ = last_revision(site)
    with ThreadPoolExecutor(1) as pool:
        failing = pool.submit(
            site.run_helm, "upgrade", str(CHART), *every, *("--set", "operator.nodeSelector.none=such"), *ATOMIC
        )
        wait_until(lambda: marks(operator), SECONDS, "the values of the failing revision to count")
        begun = begin_in_each_phase(site, operator, f"{HANDS_OFF}=true", label=OTHER_LABEL)
        done = failing.result()
    assert done.returncode != 0
    assert "rolled back" in done.stderr, done.stderr
    assert last_revision(site) == (str(int(before) + 2), "deployed")
    wait_until(lambda: not marks(operator), SECONDS, "the values before to count again")
    end(begun)


def test_a_change_comes_to_its_end_after_an_upgrade_that_reuses_the_values(site: Installed, operator: Api) -> None:
    site.must("upgrade", str(CHART), *VALUES["operator.neighborLabels"][0])
    wait_until(lambda: marks(operator), SECONDS, "the value to count")
    begun = begin_in_each_phase(site, operator, f"{HANDS_OFF}=true")
    site.must("upgrade", str(CHART), "--reuse-values", "--set", "operator.maxInFlight=7")
    assert marks(operator), "the value is kept"
    end(begun)


def test_reused_values_of_an_older_chart_are_refused_by_name_and_nothing_is_written(
    site: Installed, operator: Api, tmp_path: Path
) -> None:
    """With `--reuse-values` Helm leaves out the defaults of the new chart, so a check that is new would be off."""
    older = shutil.copytree(CHART, tmp_path / CHART.name)
    (older / "templates" / "uninstall-check.yaml").unlink()
    for name, separator in (("values.yaml", "\nuninstallCheck:"), ("values.schema.json", '"uninstallCheck", ')):
        before, found, after = (older / name).read_text().partition(separator)
        assert found
        (older / name).write_text(before + (after if name.endswith("json") else after[after.index("\n\n") :]))
    site.must("upgrade", str(older))
    revision = last_revision(site)
    begun = begin_in_each_phase(site, operator)
    done = site.run_helm("upgrade", str(CHART), "--reuse-values")
    assert done.returncode != 0
    assert "missing property 'uninstallCheck'" in done.stderr, done.stderr
    assert last_revision(site) == revision
    site.must("upgrade", str(CHART), "--reset-then-reuse-values")
    end(begun)


def test_every_value_with_which_a_rule_about_the_operator_changes_is_tried() -> None:
    found = set()
    for path in (CHART / "templates").glob("*.yaml"):
        if path.name.startswith(("admission-operator", "rbac-operator", "rbac-force")) or path.name in EXTRAS:
            text = path.read_text()
            found |= set(re.findall(r"\.Values\.([A-Za-z.]+)", text))
    assert found - NO_RULE == set(VALUES)


EXTRAS = ("device-taints.yaml", "configure.yaml", "repair-mps.yaml")
"""Further templates with rights of the operator."""
NO_RULE = {"rbac.create", "image.pullPolicy", "gpuOperator.namespace"}
"""Values there with which no rule changes; with another namespace the stack itself is another one."""


def test_an_installation_that_helm_takes_back_is_repaired_as_the_refusal_says(site: Installed, operator: Api) -> None:
    begun = begin_in_each_phase(site, operator)
    site.must("uninstall", "--no-hooks", "--wait")
    failing = ("--set", "operator.nodeSelector.none=such", ATOMIC[0], "--timeout", "15s")
    done = site.run_helm("install", str(CHART), *failing)
    assert done.returncode != 0
    assert "NOT UNINSTALLED: node " in done.stderr, done.stderr
    assert "To keep the operator: helm rollback gpusharing REVISION" in done.stderr
    for verb, argument in (("rollback", last_revision(site)[0]), ("upgrade", str(CHART))):
        site.must(verb, argument)
    site.wait_enforced()
    with site.operator() as api:
        end([(replace(node, operator=api), fence) for node, fence in begun])
