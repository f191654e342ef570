"""The guard finds what breaks the rules about pods, foreign marks and one PATCH of a Node: one that never barks guards nothing."""

import json
from typing import Any

import pytest
from hack.embedded import embedded
from tests.embedded.guard import PromiseGuard
from tests.embedded.scene import gpu_pod, node, policy
from tests.fakes.virtualtime import virtually
from tests.nodewrites import foreign_marks, step_of, wrong_in_change, wrong_in_write
from tests.podrules import must_leave, wrong_in_eviction

from gpusharing.kube.client import CLUSTER_POLICIES, JSON, PODS, POLICIES
from gpusharing.kube.errors import Conflict

DAEMON_SET: JSON = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "exporter", "controller": True}
GPU: JSON = {"name": "main", "resources": {"limits": {"nvidia.com/mig-1g.10gb": "1"}}}
CPU: JSON = {"name": "main"}
CLAIM: JSON = {"status": {"allocation": {"devices": {"results": [{"driver": "gpu.nvidia.com"}]}}}}
CLAIMS = {"default/gpu": CLAIM}
CLAIMING: JSON = {"containers": [CPU], "resourceClaims": [{"name": "a", "resourceClaimName": "gpu"}]}


def pod(**more: Any) -> JSON:
    """A pod that holds a GPU; `more` replaces parts of metadata and spec."""
    return gpu_pod("p", "gpu-1", **more)


def finished() -> JSON:
    return pod() | {"status": {"phase": "Succeeded"}}


HOLDERS = {
    "a plain pod": pod(),
    "an init container": pod(spec={"containers": [CPU], "initContainers": [GPU]}),
    "an ephemeral container": pod(spec={"containers": [CPU], "ephemeralContainers": [GPU]}),
    "a claim": pod(spec=CLAIMING),
    "a DaemonSet": pod(metadata={"ownerReferences": [DAEMON_SET]}),
    "a static pod": pod(metadata={"annotations": {"kubernetes.io/config.mirror": "x"}}),
    "a pod that leaves": pod(metadata={"deletionTimestamp": "2026-11-20T10:00:00Z"}),
}
NO_HOLDERS = {
    "a CPU pod": pod(spec={"containers": [CPU]}),
    "a finished pod": finished(),
    "a pod of NVIDIA's": pod(metadata={"namespace": "gpu-operator", "ownerReferences": [DAEMON_SET]}),
    "a pod that mig-manager removes": pod(
        metadata={"ownerReferences": [DAEMON_SET]}, spec={"nodeSelector": {"nvidia.com/gpu.deploy.client": "true"}}
    ),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_a_holder_of_every_kind_must_leave_before_the_point_of_no_return(name: str) -> None:
    assert must_leave(HOLDERS[name], CLAIMS, reboot=False)


@pytest.mark.parametrize("name", NO_HOLDERS)
def test_a_pod_without_a_gpu_may_stay(name: str) -> None:
    assert not must_leave(NO_HOLDERS[name], CLAIMS, reboot=False)


def test_before_a_reboot_every_pod_must_leave_but_finished_and_pinned_ones() -> None:
    must = [name for name, raw in NO_HOLDERS.items() if must_leave(raw, CLAIMS, reboot=True)]
    assert must == ["a CPU pod"]


@pytest.mark.parametrize("name", ["a claim", "a DaemonSet", "a static pod", "a pod that leaves"])
def test_some_holders_may_not_be_evicted(name: str) -> None:
    assert list(wrong_in_eviction(HOLDERS[name], CLAIMS, reboot=False))


@pytest.mark.parametrize("name", ["a plain pod", "an init container"])
def test_the_others_may(name: str) -> None:
    assert not list(wrong_in_eviction(HOLDERS[name], CLAIMS, reboot=False))


@pytest.mark.parametrize(
    "marked",
    [
        {"metadata": {"annotations": {"weave.works/kured-reboot-in-progress": "x"}}},
        {"metadata": {"labels": {"nvidia.com/gpu-driver-upgrade-state": "drain-required"}}},
        {"metadata": {"annotations": {"machineconfiguration.openshift.io/desiredDrain": "drain-1"}}},
        {"metadata": {}, "spec": {"taints": [{"key": "medik8s.io/drain", "effect": "NoSchedule"}]}},
        {"metadata": {}, "status": {"conditions": [{"type": "DrainInProgress", "status": "True"}]}},
    ],
)
def test_the_marks_of_other_controllers_are_known(marked: JSON) -> None:
    assert len(foreign_marks(marked)) == 1
    idle: JSON = {"metadata": {"labels": {"nvidia.com/gpu-driver-upgrade-state": "upgrade-done"}}}
    assert not foreign_marks(idle)


@virtually
async def test_an_eviction_and_a_restart_on_a_node_in_use_are_noticed() -> None:
    raw = node("gpu-1")
    fence = {"stage": "actuating", "disruption": "Reset", "policy": "p", "targetMigConfig": "x"}
    raw["metadata"]["annotations"] = {
        "gpusharing.dev/fence": json.dumps(fence | {"targetPluginConfig": "", "fromMode": ""})
    }
    async with embedded([raw], factor=1.0) as environment:
        guard = PromiseGuard(environment.cluster, environment.software)
        operator = environment.cluster.client("operator")
        environment.cluster.add(PODS, pod(metadata={"ownerReferences": [DAEMON_SET]}))
        held = environment.cluster.get(PODS, "p", "default")
        await operator.evict("default", "p", held["metadata"]["uid"])
        named = gpu_pod("nvidia-mig-manager-x", "gpu-1", metadata={"namespace": "gpu-operator"})
        uid = environment.cluster.add(PODS, named)["metadata"]["uid"]
        await operator.delete(PODS, "nvidia-mig-manager-x", namespace="gpu-operator", uid=uid)
    said = "\n".join(guard.wrong)
    assert "a DaemonSet brings it back" in said
    assert "evicted p from a schedulable node" in said
    assert "restarted nvidia-mig-manager-x on a schedulable node" in said
    assert "nvidia-mig-manager-x restarted with ['p'" in said


CLUSTER_POLICY = "cluster-policy"


def pointing(version: str, **blocks: str) -> JSON:
    return {
        "metadata": {"resourceVersion": version, "annotations": {"gpusharing.dev/configured": "x"}},
        "spec": {block: {"config": {"name": name}} for block, name in blocks.items()},
    }


@virtually
async def test_a_pointer_that_is_set_twice_or_taken_from_somebody_is_noticed() -> None:
    theirs: JSON = {
        "metadata": {"name": CLUSTER_POLICY},
        "spec": {"devicePlugin": {"config": {"name": ""}}, "migManager": {"config": {"name": "theirs"}}},
    }
    async with embedded([node("gpu-1")], factor=1.0, cluster_policy=theirs) as environment:
        guard = PromiseGuard(environment.cluster, environment.software, configures=True)
        operator = environment.cluster.client("operator")

        def version() -> str:
            found = environment.cluster.get(CLUSTER_POLICIES, CLUSTER_POLICY)
            return str(found["metadata"]["resourceVersion"])

        first = pointing(version(), devicePlugin="gpusharing-device-plugin")
        await operator.patch(CLUSTER_POLICIES, CLUSTER_POLICY, first)
        assert guard.wrong == []
        with pytest.raises(Conflict):
            await operator.patch(CLUSTER_POLICIES, CLUSTER_POLICY, first)
        assert guard.wrong == [], "the server refused it"
        environment.cluster.patch(
            CLUSTER_POLICIES, CLUSTER_POLICY, {"spec": {"devicePlugin": {"config": {"name": ""}}}}
        )
        again = pointing(version(), devicePlugin="gpusharing-device-plugin")
        await operator.patch(CLUSTER_POLICIES, CLUSTER_POLICY, again)
        taken = pointing(version(), migManager="gpusharing-mig-parted")
        await operator.patch(CLUSTER_POLICIES, CLUSTER_POLICY, taken)
    assert guard.wrong == ["devicePlugin pointed twice", "migManager pointed away from theirs"]


@virtually
async def test_a_spec_that_is_not_the_persons_any_more_is_noticed() -> None:
    async with embedded([node("gpu-1")], factor=1.0) as environment:
        guard = PromiseGuard(environment.cluster, environment.software)
        environment.apply(policy({"mode": "Full"}))
        operator = environment.cluster.client("operator")
        await operator.patch(POLICIES, "pool-b", {"metadata": {"finalizers": ["gpusharing.dev/release"]}})
        assert guard.wrong == []
        await operator.patch(POLICIES, "pool-b", {"spec": {"priority": 7}})
        await operator.patch(POLICIES, "pool-b", {"metadata": {"labels": {"a": "b"}}})
    said = "\n".join(guard.wrong)
    assert "wrote spec of a policy" in said
    assert "wrote ['labels'] of a policy's metadata" in said


MIG, STATE, PLUGIN = "nvidia.com/mig.config", "nvidia.com/mig.config.state", "nvidia.com/device-plugin.config"
MODE, FENCE, HOLD = "gpusharing.dev/mode", "gpusharing.dev/fence", "gpusharing.dev/hold-cordon"
SKIP = "gpusharing.dev/skip"
FENCED: JSON = {
    "stage": "fenced",
    "targetMigConfig": "",
    "targetPluginConfig": "",
    "priorUnschedulable": False,
    "fromMode": "full",
    "disruption": "Reset",
    "added": [],
}
ACTUATING = {**FENCED, "stage": "actuating", "targetMigConfig": "b", "targetPluginConfig": "k"}


def bare_node(fence: JSON | None = None, *, cordoned: bool = False, **labels: str) -> JSON:
    written = {MIG: "a", STATE: "success"} | {key.replace("state", STATE): text for key, text in labels.items()}
    raw: JSON = {"metadata": {"labels": written, "annotations": {}}, "spec": {"unschedulable": cordoned}}
    if fence is None:
        written[MODE] = "full"
    else:
        raw["metadata"]["annotations"][FENCE] = json.dumps(fence)
    return raw


def written(
    fence: JSON | None = None, labels: JSON | None = None, *, unschedulable: Any = ..., released: bool = False
) -> JSON:
    metadata: JSON = {"uid": "u", "resourceVersion": "7", "labels": labels or {}, "annotations": {}}
    if fence is not None or released:
        metadata["annotations"][FENCE] = None if released else json.dumps(fence)
    return {"metadata": metadata} | ({} if unschedulable is ... else {"spec": {"unschedulable": unschedulable}})


def unconditional(body: JSON) -> JSON:
    return {**body, "metadata": {key: value for key, value in body["metadata"].items() if key != "resourceVersion"}}


HELD = bare_node(FENCED, cordoned=True)
FENCING = written(FENCED, {MODE: None}, unschedulable=True)
PASSING = written(ACTUATING, {MIG: "b", STATE: None, PLUGIN: "k"})
RELEASING = written(released=True, labels={MODE: "mig"}, unschedulable=None)
GATE = {"key": "gpusharing.dev/unproven", "effect": "NoSchedule"}
THEIRS = {"key": "dedicated", "effect": "NoSchedule"}
VERIFIED, POLICY = "gpusharing.dev/verified", "gpusharing.dev/policy"


def tainted(raw: JSON, *taints: JSON) -> JSON:
    return {**raw, "spec": {**raw["spec"], "taints": list(taints)}}


PROOF: JSON = {"policy": "pool-b", "migConfig": "a", "pluginConfig": "k"}


def opening(body: JSON, taints: Any, proof: JSON | None = PROOF) -> JSON:
    """The write with a list of taints, and with the record of a proof."""
    record = {VERIFIED: json.dumps(proof)} if proof else {}
    written = {key: text for key, text in body["metadata"].items() if key != "labels"}
    labels = {**body["metadata"]["labels"], POLICY: "pool-b"}
    metadata = {**written, "labels": labels, "annotations": {**body["metadata"]["annotations"], **record}}
    return {"metadata": metadata, "spec": {**body.get("spec", {}), "taints": taints}}


WAITING = tainted(bare_node(ACTUATING, cordoned=True), THEIRS, GATE)
JOINED = tainted(bare_node(), GATE)
RIGHT = {
    "fence": (bare_node(), FENCING),
    "PNR": (HELD, PASSING),
    "update": (bare_node(ACTUATING), written({**ACTUATING, "attempt": 2}, unschedulable=True)),
    "release": (bare_node(ACTUATING, cordoned=True), RELEASING),
    "release ": (WAITING, opening(RELEASING, [THEIRS])),
    "marks ": (JOINED, opening(written(labels={MODE: "full"}), None)),
    "marks": (bare_node(), unconditional(written(labels={MODE: "full"}))),
    "marks  ": (HELD, written(labels={SKIP: "true"})),
}


@pytest.mark.parametrize(("step", "before", "body"), [(step, *pair) for step, pair in RIGHT.items()], ids=RIGHT)
def test_a_write_of_a_change_is_known_and_right(step: str, before: JSON, body: JSON) -> None:
    assert step_of(before, body) == step.strip()
    assert list(wrong_in_write(before, body)) == []


def test_a_run_that_is_repeated_writes_its_labels_as_the_first_did() -> None:
    owed = bare_node({**ACTUATING, "owed": "b k"}, cordoned=True)
    assert step_of(owed, PASSING) == "PNR"
    assert list(wrong_in_write(owed, PASSING)) == []


WRONG: dict[str, tuple[JSON, JSON, str]] = {
    "a request moved without resourceVersion": (bare_node(), unconditional(written(labels={SKIP: None})), "unconditional"),
    "a request moved with a step": (HELD, written(ACTUATING, {**PASSING["metadata"]["labels"], SKIP: None}),
                                    "moved a request together with"),
    "a fence without resourceVersion": (bare_node(), unconditional(FENCING), "unconditional"),
    "a PNR without resourceVersion": (HELD, unconditional(PASSING), "unconditional"),
    "a release without resourceVersion": (HELD, unconditional(RELEASING), "unconditional"),
    "a PNR that leaves the old state": (
        HELD, written(ACTUATING, {MIG: "b", PLUGIN: "k"}), "left the old mig.config.state behind"),
    "a state that goes without a new value": (
        HELD, written({**ACTUATING, "targetMigConfig": "a"}, {STATE: None, PLUGIN: "k"}), "without another mig.config"),
    "a state that goes with the same value": (
        HELD, written({**ACTUATING, "targetMigConfig": "a"}, {MIG: "a", STATE: None, PLUGIN: "k"}), "without another"),
    "a state made up": (HELD, written(ACTUATING, {MIG: "b", STATE: "success", PLUGIN: "k"}), "wrote mig.config.state"),
    "a state that goes while the node reboots": (bare_node(FENCED, state="rebooting"), PASSING, "while rebooting"),
    "a stage without its labels": (HELD, written(ACTUATING, {PLUGIN: "k"}), "left mig.config for another write"),
    "a stage without the plugin's label": (
        HELD, written(ACTUATING, {MIG: "b", STATE: None}), "left device-plugin.config for another write"),
    "labels without their stage": (HELD, written(labels={MIG: "b", STATE: None}), "a write that is no PNR"),
    "another entry in mid-change": (bare_node(ACTUATING, cordoned=True), written(ACTUATING, {PLUGIN: "x"}), "a write that is no PNR"),
    "labels with the fence": (bare_node(), written(FENCED, {PLUGIN: "k"}, unschedulable=True), "a write that is no PNR"),
    "a cordon in the PNR": (
        HELD, written(ACTUATING, {MIG: "b", STATE: None, PLUGIN: "k"}, unschedulable=True), "cordoned in the PNR write"),
    "an uncordon before the release": (HELD, written(FENCED, unschedulable=None), "uncordoned in the update write"),
    "an uncordon of somebody else's": (
        bare_node({**ACTUATING, "priorUnschedulable": True}), RELEASING, "a cordon that is not ours"),
    "an uncordon of nobody's fence": (bare_node(), RELEASING, "a cordon that is not ours"),
    "a finalizer": (bare_node(), {"metadata": {"uid": "u", "resourceVersion": "7", "finalizers": ["x"]}}, "finalizers"),
    "a taint": (bare_node(), {**FENCING, "spec": {"unschedulable": True, "taints": []}}, "taints"),
    "a start-up taint that goes without a proof": (
        WAITING, opening(RELEASING, [THEIRS], None), "without a proof"),
    "a start-up taint that goes with the proof of another policy": (
        WAITING, opening(RELEASING, [THEIRS], {**PROOF, "policy": "pool-c"}), "which the labels contradict"),
    "a start-up taint that goes with the proof of another layout": (
        WAITING, opening(RELEASING, [THEIRS], {**PROOF, "migConfig": "b"}), "which the labels contradict"),
    "a fence that records a label of somebody else": (
        bare_node(), written({**FENCED, "added": ["team"]}, {MODE: None}, unschedulable=True), "recorded team"),
    "a start-up taint that stays after a proof": (
        WAITING, {**opening(RELEASING, None), "spec": {"unschedulable": None}}, "the start-up taint stays"),
    "a start-up taint that takes another with it": (WAITING, opening(RELEASING, None), "became None"),
    "a taint that comes with the release": (WAITING, opening(RELEASING, [THEIRS, THEIRS]), "became"),
    "a start-up taint that goes without resourceVersion": (
        JOINED, unconditional(opening(written(labels={MODE: "full"}), None)), "an unconditional write"),
    "a start-up taint that goes before the release": (
        WAITING, opening(written({**ACTUATING, "attempt": 2}), [THEIRS]), "in the update write"),
    "a label of somebody else": (bare_node(), written(FENCED, {"team": "x"}, unschedulable=True), "labels"),
    "no uid": (bare_node(), {"metadata": {"resourceVersion": "7", "labels": {MODE: "full"}}}, "without the node's uid"),
}  # fmt: skip


@pytest.mark.parametrize(("before", "body", "said"), WRONG.values(), ids=WRONG.keys())
def test_a_write_that_breaks_a_rule_is_found(before: JSON, body: JSON, said: str) -> None:
    assert any(said in what for what in wrong_in_write(before, body)), list(wrong_in_write(before, body))


def test_a_held_cordon_may_not_be_lifted() -> None:
    held = bare_node(ACTUATING, cordoned=True)
    held["metadata"]["annotations"][HOLD] = "true"
    assert list(wrong_in_write(held, RELEASING)) == ["lifted a cordon that was to be held"]


CHANGES: dict[str, tuple[JSON, JSON, list[str]]] = {
    "fenced and cordoned": (bare_node(), HELD, []),
    "fenced and not cordoned": (
        bare_node(), bare_node(FENCED), ["fenced and not cordoned in one write, or cordoned beside a DeviceTaintRule"]),
    "fenced with a routing label": (
        HELD, bare_node(FENCED, cordoned=True, **{MODE: "full"}), ["fenced with a routing label"]),
    "released": (HELD, bare_node(), []),
    "released without a routing label": (
        HELD, {"metadata": {"labels": {}}, "spec": {}}, ["released without its routing label"]),
}  # fmt: skip


@pytest.mark.parametrize(("before", "after", "wrong"), CHANGES.values(), ids=CHANGES.keys())
def test_what_a_node_may_not_become_is_found(before: JSON, after: JSON, wrong: list[str]) -> None:
    assert list(wrong_in_change(before, after)) == wrong
