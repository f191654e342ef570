"""What a stolen token of the operator or of an agent may not bring about, on a real API server: one row for each effect, from which the requests of all verbs are made, with the account's rights and with every right. That a cluster admin may do the same shows that a request is a valid one."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import pytest
from hack.cluster.api import APPLY_PATCH, JSON, MERGE_PATCH, Api, ApiError, Object
from hack.cluster.process import wait_until
from hack.sim.manifests import daemon_set
from tests.chart.charts import NAMESPACE, ROOT
from tests.chart.cluster import AGENT_NAMESPACE, GPUNODES, NODES, OBSERVED, POLICIES, POLICY, SECONDS, Installed, mighty
from tests.minors import DEVICE_CLASSES, lacks, need

from gpusharing.api import names
from gpusharing.kube.dra import device_class
from gpusharing.planning.wanted.objects import wanted_class

WRITES = ("create", "update", "patch", "apply")
REMOVALS = ("delete", "deletecollection")
LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
MAPS = "/api/v1/namespaces/gpu-operator/configmaps"
CLASSES = "/apis/resource.k8s.io/v1/deviceclasses"
OPERANDS = "/api/v1/namespaces/gpu-operator/pods"
TENANT = "kube-public"
EVENTS = f"/apis/events.k8s.io/v1/namespaces/{TENANT}/events"
"""Events in a namespace that stands for one of tenants."""

PLAIN, GATED, THEIRS = "effects-plain", "effects-gated", "effects-theirs"
"""A Node without a label of GPU nodes, one with the start-up taint, and the name of objects of other people."""
MANAGER = "app=nvidia-mig-manager"


@dataclass(frozen=True)
class Request:
    verb: str
    method: str
    path: str
    body: Object | None = None
    kind: str = JSON

    def send(self, api: Api) -> Any:
        apply = {"fieldManager": "thief", "force": "true"} if self.kind == APPLY_PATCH else {}
        return api.request(self.method, self.path, self.body, self.kind, dryRun="All", **apply)


@dataclass(frozen=True)
class Written:
    """An object that would get what `forged` says, as a merge patch, or would be gone."""

    account: Literal["operator", "agent"]
    collection: str
    name: str
    forged: Object
    sub: str = ""
    removed: bool = False
    """Whether the effect also comes about when the object is deleted."""
    harmless: Mapping[str, str] = field(default_factory=dict)
    """Verbs of WRITES that do not lead to the effect, and why."""
    by_rbac: tuple[str, ...] = ()
    """Verbs that nothing but RBAC refuses: with a wider role the account could use them."""

    def requests(self, admin: Api) -> Iterator[Request]:
        now = find(admin, self.collection, self.name)
        name = now["metadata"]["name"]
        path = f"{self.collection}/{name}" + (f"/{self.sub}" if self.sub else "")
        partial = without_nulls(self.forged)
        identity = {"apiVersion": now["apiVersion"], "kind": now["kind"]}
        metadata = {**partial.get("metadata", {}), "name": name}
        made = {
            "create": Request("create", "POST", self.collection, merged(fresh(now), self.forged)),
            "update": Request("update", "PUT", path, merged(now, self.forged)),
            "patch": Request("patch", "PATCH", path, self.forged, MERGE_PATCH),
            "apply": Request("apply", "PATCH", path, {**partial, **identity, "metadata": metadata}, APPLY_PATCH),
        }
        yield from (made[verb] for verb in WRITES if verb not in self.harmless)
        if self.removed:
            yield Request("delete", "DELETE", path)
            yield Request("deletecollection", "DELETE", self.collection)


@dataclass(frozen=True)
class Ended:
    """A pod that would be ended with these options of a deletion."""

    account: Literal["operator", "agent"]
    collection: str
    name: str
    options: Callable[[str], Object]
    """The options, from the pod's UID."""
    by_rbac: tuple[str, ...] = ()

    def requests(self, admin: Api) -> Iterator[Request]:
        metadata = find(admin, self.collection, self.name)["metadata"]
        path, options = f"{self.collection}/{metadata['name']}", self.options(metadata["uid"])
        whole = {"apiVersion": "v1", "kind": "DeleteOptions", **options, "dryRun": ["All"]}
        yield Request("delete", "DELETE", path, whole)
        anyone = {key: value for key, value in whole.items() if key != "preconditions"}
        yield Request("deletecollection", "DELETE", self.collection, anyone)
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": metadata["name"]}}
        yield Request("evict", "POST", f"{path}/eviction", {**eviction, "deleteOptions": options})


def find(admin: Api, collection: str, name: str) -> Object:
    """The object of this name, or the first with this label, with its kind."""
    if "=" in name:
        name = admin.list(collection, labelSelector=name)[0]["metadata"]["name"]
    found: Object = admin.get(f"{collection}/{name}")
    return found


def fresh(raw: Object) -> Object:
    """A new object with another name and the same content."""
    kept = {key: raw["metadata"][key] for key in ("labels", "annotations") if key in raw["metadata"]}
    name = raw["metadata"]["name"]
    other = {key: value for key, value in copy.deepcopy(raw).items() if key not in ("metadata", "status")}
    return {**other, "metadata": {**kept, "name": f"{name}-2" if raw["kind"] != "DeviceClass" else name + ".me"}}


def merged(raw: Object, patch: Object) -> Object:
    found = copy.deepcopy(raw)
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        elif isinstance(value, dict):
            found[key] = merged(found.get(key) or {}, value)
        else:
            found[key] = value
    return found


def without_nulls(patch: Object) -> Object:
    """What of a merge patch server-side apply can say."""
    return {
        key: without_nulls(value) if isinstance(value, dict) else value
        for key, value in patch.items()
        if value is not None
    }


def record(policy: str = "pool-d", mig: str = "all-disabled", plugin: str = "pool-d-1") -> str:
    return f'{{"v":1,"policy":"{policy}","migConfig":"{mig}","pluginConfig":"{plugin}"}}'


def opened(verified: str | None, **labels: str | None) -> Object:
    """The start-up taint is gone, and this proof is there."""
    annotations = {names.ANNOTATION_VERIFIED: verified}
    return {"metadata": {"annotations": annotations, "labels": labels}, "spec": {"taints": []}}


def node(name: str, forged: Object) -> Written:
    return Written("operator", NODES, name, forged, by_rbac=("create",))


def gpunode(forged: Object, **more: Any) -> Written:
    return Written("operator", GPUNODES, "gpu-01", forged, **more)


def report(name: str, forged: Object, account: Literal["operator", "agent"] = "agent") -> Written:
    dropped = {"create": "the API server drops the status of a new object"}
    return Written(account, GPUNODES, name, {"status": forged}, sub="status", harmless=dropped)


def event(name: str, kind: str, **other: str) -> Object:
    """An Event as the operator writes it when it has evicted a pod, but for its object and the `other` fields."""
    return {
        "metadata": {"name": name},
        "eventTime": "2026-11-20T10:00:00.000000Z",
        "reportingController": "gpusharing.dev/operator",
        "reportingInstance": "operator-1",
        "action": "PodEvicted",
        "reason": "PodEvicted",
        "type": "Normal",
        "note": "a policy changes the GPUs of the node",
        "regarding": {"apiVersion": "v1", "kind": kind, "name": THEIRS, "namespace": TENANT},
        **other,
    }


FORGERIES = {
    one["metadata"]["name"]: one
    for one in (
        event("effects-secret", "Secret"),
        event("effects-scheduler", "Pod", reportingController="default-scheduler"),
        event("effects-pulled", "Pod", reason="Pulled", action="Pulled"),
    )
}
"""Events in the namespace of tenants that the operator does not write, by name."""


def told(name: str) -> Written:
    # Of an Event that exists, only metadata and the series may be changed.
    return Written("operator", EVENTS, name, {"metadata": {"labels": {"forged": "true"}}}, removed=True)


def fenced(*keys: str, **labels: str | None) -> Object:
    quoted = ",".join(f'"{key}"' for key in keys)
    return {
        "metadata": {
            "labels": labels,
            "annotations": {names.ANNOTATION_FENCE: f'{{"v":1,"priorUnschedulable":false,"added":[{quoted}]}}'},
        }
    }


OWNER = {"apiVersion": "v1", "kind": "ConfigMap", "name": "none", "uid": "1-2-3"}
EFFECTS: dict[str, Written | Ended] = {
    "mark a Node without a label of GPU nodes": node(
        PLAIN, {"metadata": {"labels": {names.LABEL_MODE: "full"}}, "spec": {"unschedulable": True}}
    ),
    "take the start-up taint off without a proof": node(GATED, opened(None)),
    "take the start-up taint off with an empty proof": node(GATED, opened("{}")),
    "take the start-up taint off with a proof of another policy": node(GATED, opened(record("pool-e"))),
    "take the start-up taint off with a proof of another MIG layout": node(GATED, opened(record(mig="other"))),
    "take the start-up taint off with a proof of another plugin configuration": node(
        GATED, opened(record(plugin="other"))
    ),
    "take the start-up taint off with a proof of what mig-manager has not done": node(
        GATED, opened(record(mig="asked"), **{names.LABEL_MIG_CONFIG: "asked", names.LABEL_MIG_STATE: None})
    ),
    "take the start-up taint off a Node that belongs to no policy": node(
        GATED, opened(record(""), **{names.LABEL_POLICY: None})
    ),
    "record in a fence a label that others set": node("gpu-01", fenced(names.LABEL_GPU_PRESENT)),
    "remove a label of others with a fence forged for it": node(
        "gpu-01", fenced(names.LABEL_GPU_PRODUCT, **{names.LABEL_GPU_PRODUCT: None})
    ),
    "write, create or delete the Lease of another program": Written(
        "operator", LEASES, THEIRS, {"spec": {"holderIdentity": "thief"}}, removed=True
    ),
    "report in an agent's place": report("gpu-01", {"observed": {**OBSERVED, "pods": 7}}, "operator"),
    "keep a GPUNode from being deleted": gpunode({"metadata": {"finalizers": ["example.test/x"]}}),
    "have a GPUNode collected as garbage, or delete it": gpunode(
        {"metadata": {"ownerReferences": [OWNER]}}, removed=True
    ),
    "have a node skipped in a person's name": gpunode({"metadata": {"annotations": {names.LABEL_SKIP: "true"}}}),
    "have a change given up in a person's name": gpunode({"metadata": {"annotations": {names.ANNOTATION_ABORT: "x"}}}),
    "let a DeviceClass of ours select other devices": Written(
        "operator", CLASSES, "gpusharing-mig-1g.10gb", {"spec": {"selectors": [{"cel": {"expression": "true"}}]}}
    ),
    "create, change or delete a policy": Written(
        "operator", POLICIES, THEIRS, {"spec": {"drain": {"strandedPods": "Allow"}}}, removed=True
    ),
    "create, change or delete another ConfigMap than our two": Written(
        "operator", MAPS, THEIRS, {"data": {"x": "y"}}, removed=True
    ),
    "write, change or delete an Event about a Secret of a tenant": told("effects-secret"),
    "write, change or delete an Event about a pod in another program's name": told("effects-scheduler"),
    "write, change or delete an Event about a pod that does not tell of its eviction": told("effects-pulled"),
    "end a pod by a deadline": Written(
        "operator", OPERANDS, MANAGER, {"spec": {"activeDeadlineSeconds": 1}}, by_rbac=WRITES
    ),
    "end a pod by its name alone": Ended("operator", OPERANDS, MANAGER, lambda _: {}),
    "cut a pod's grace period": Ended(
        "operator", OPERANDS, MANAGER, lambda uid: {"preconditions": {"uid": uid}, "gracePeriodSeconds": 0}
    ),
    "shorten a pod's grace period": Ended(
        "operator", OPERANDS, MANAGER, lambda uid: {"preconditions": {"uid": uid}, "gracePeriodSeconds": 29}
    ),
    "leave behind what a pod owns": Ended(
        "operator", OPERANDS, MANAGER, lambda uid: {"preconditions": {"uid": uid}, "propagationPolicy": "Orphan"}
    ),
    "report for another node": report("gpu-02", {"observed": OBSERVED}),
    "write the operator's part of a GPUNode": report("gpu-01", {"transition": {"phase": "Synced"}}),
    "ask in the operator's name, or delete a GPUNode": Written(
        "agent", GPUNODES, "gpu-01", {"spec": {"request": {"id": "9"}}}, removed=True
    ),
}
"""What each account may not bring about. The operator's Lease, its ConfigMaps and its classes may be written, and are judged field by field in tests of their own."""


GATE = {"key": names.TAINT_UNPROVEN, "effect": "NoSchedule"}


@pytest.fixture(scope="module")
def targets(installed: Installed) -> Iterator[None]:
    admin = installed.admin
    labels = {
        names.LABEL_GPU_PRESENT: "true",
        names.LABEL_POLICY: "pool-d",
        names.LABEL_MIG_CONFIG: "all-disabled",
        names.LABEL_MIG_STATE: "success",
        names.LABEL_PLUGIN_CONFIG: "pool-d-1",
    }
    objects: list[tuple[str, Object]] = [
        (NODES, {"metadata": {"name": PLAIN}}),
        (NODES, {"metadata": {"name": GATED, "labels": labels}, "spec": {"taints": [GATE]}}),
        (LEASES, {"metadata": {"name": THEIRS}, "spec": {"holderIdentity": "them"}}),
        (POLICIES, {**POLICY, "metadata": {"name": THEIRS}}),
        (MAPS, {"metadata": {"name": THEIRS}, "data": {}}),
        *((EVENTS, one) for one in FORGERIES.values()),
    ]
    if not lacks(DEVICE_CLASSES):
        objects.append((CLASSES, device_class(wanted_class("1g.10gb"))))
    for path, manifest in objects:
        admin.create(path, manifest)
    daemons = "/apis/apps/v1/namespaces/gpu-operator/daemonsets"
    daemon = daemon_set("effects-manager", "gpu-operator", {"app": "nvidia-mig-manager"}, {})
    daemon["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 30
    admin.create(daemons, daemon)
    wait_until(lambda: bool(admin.list(OPERANDS, labelSelector=MANAGER)), SECONDS, "a pod of mig-manager")
    yield
    admin.delete(f"{daemons}/effects-manager")
    for path, manifest in objects:
        admin.delete(f"{path}/{manifest['metadata']['name']}")


@pytest.fixture(scope="module")
def thieves(installed: Installed, targets: None) -> Iterator[dict[str, Api]]:
    with installed.operator() as operator, installed.agent(installed.node_a) as agent:
        yield {"operator": operator, "agent": agent}


@pytest.fixture(scope="module")
def mighty_thieves(installed: Installed, thieves: dict[str, Api]) -> Iterator[dict[str, Api]]:
    with (
        mighty(installed, thieves["operator"], "gpusharing-operator", NAMESPACE),
        mighty(installed, thieves["agent"], "gpusharing-agent", AGENT_NAMESPACE),
    ):
        yield thieves


def effect_of(what: str) -> Written | Ended:
    """The effect, which the test is skipped without if the server does not serve what it is done to."""
    effect = EFFECTS[what]
    if effect.collection == CLASSES:
        need(DEVICE_CLASSES, "DeviceClass in v1")
    return effect


def answers(admin: Api, api: Api, effect: Written | Ended) -> dict[str, str]:
    """What the server says to each request that it refuses as forbidden, by verb; empty where it would do it."""
    found = {}

    def answered(verb: str) -> bool:
        request = next(one for one in effect.requests(admin) if one.verb == verb)
        try:
            request.send(api)
        except ApiError as error:
            if error.status == 409:  # somebody has written the object since it was read
                return False
            if error.status != 403:
                raise
            found[verb] = error.message
            return True
        found[verb] = ""
        return True

    for request in effect.requests(admin):
        wait_until(partial(answered, request.verb), SECONDS, "an answer that is no conflict")
    return found


@pytest.mark.cluster
@pytest.mark.parametrize("what", EFFECTS)
def test_a_token_of_the_account_may_not(installed: Installed, thieves: dict[str, Api], what: str) -> None:
    effect = effect_of(what)
    assert set(answers(installed.admin, installed.admin, effect).values()) == {""}
    assert "" not in answers(installed.admin, thieves[effect.account], effect).values()


@pytest.mark.cluster
@pytest.mark.parametrize("what", EFFECTS)
def test_with_every_right_it_still_may_not(installed: Installed, mighty_thieves: dict[str, Api], what: str) -> None:
    effect = effect_of(what)
    found = answers(installed.admin, mighty_thieves[effect.account], effect)
    assert {verb for verb, said in found.items() if "ValidatingAdmissionPolicy" not in said} == {*effect.by_rbac}


@pytest.mark.cluster
def test_with_the_proof_that_the_labels_name_the_start_up_taint_goes(
    installed: Installed, thieves: dict[str, Api]
) -> None:
    for verified in (record(), record(mig="")):
        Request("patch", "PATCH", f"{NODES}/{GATED}", opened(verified), MERGE_PATCH).send(thieves["operator"])


def test_the_page_about_security_has_a_row_for_each_effect() -> None:
    page = (ROOT / "docs" / "explanation" / "security.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if re.match(r"\| (operator|agent) \|", line)]
    told = [(row[0], row[1]) for row in rows if len(row) == 3]
    assert told == [(effect.account, what) for what, effect in EFFECTS.items()]
