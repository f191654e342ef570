"""`plan` on a SIMULATED cluster with the shipped operator beside it, and the client that only looks and writes nothing, whatever it is told (kubectl_gpusharing/changing/plan.py, kubectl_gpusharing/live/cluster.py, kubectl_gpusharing/live/files.py, report/proposal.py)."""

import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import EVER
from hack.sim.workloads import SimWorkload
from tests.cli.asking import ME, ask, install, operated, writes, written
from tests.embedded.scene import FULL, MIXED, SINGLE, SLICED, at_once, gpu_pod, nodes, open_scene, pdb, policy
from tests.fakes.virtualtime import virtually
from tests.wording import lacks

from gpusharing.kube.client import (
    CLUSTER_POLICIES,
    CONFIG_MAPS,
    DEPLOYMENTS,
    GPUNODES,
    JSON,
    LEASES,
    NODES,
    PODS,
    POLICIES,
    Resource,
)
from gpusharing.kube.errors import Forbidden
from gpusharing.kube.lists import list_of
from kubectl_gpusharing.changing.plan import Outcome
from kubectl_gpusharing.live.cluster import LAST_APPLIED, Onlooker, applied, read_installed
from kubectl_gpusharing.shell.troubles import CHANGES, DONE, Trouble

READS = """\
Changes: No node will change now. Blocked: gpu-1, gpu-2 (PDBNeverAllows).
SIMULATED: gpu-1, gpu-2 have no real GPUs, and the numbers about them here come from a simulator.

pool-b  1x full -> 2x3g.40gb  0 of 2 nodes will change
Accepted: 2 nodes can serve 2x3g.40gb
disruption class Reset; 1 node at a time; no time windows; plan HASH
  NODE   CLASS  NOW      AFTER      PODS  BUDGETS      WHEN
  gpu-1  Reset  1x full  2x3g.40gb  2     default/llm  Blocked: PDBNeverAllows
  gpu-2  Reset  1x full  2x3g.40gb  1     default/llm  Blocked: PDBNeverAllows
  pods on nodes that may stay blocked: default/llm-POD, default/llm-POD, default/llm-POD
  nvidia.com/gpu: 4 -> 0 if the blocked nodes changed too
    3 pods here request it (default/llm-POD, default/llm-POD, default/llm-POD); no node would advertise it
      any more
  on the same 4 GPUs with 320 GB of memory: 4 NVIDIA H100 80GB HBM3
  Hint: spec.mig.strategy: single would keep the name nvidia.com/gpu, and no manifest would have to change.
! PDBNeverAllows default/llm: Pods default/llm-POD, default/llm-POD, default/llm-POD. The budget allows
  0 disruptions: 3 of 3 pods are healthy, and 3 must be. Remedy: Scale the workload up, or set the
  PodDisruptionBudget's maxUnavailable to at least 1 and remove its minAvailable (null in a patch), because
  the API server accepts only one of the two.
! StrandedPods: Pods default/llm-POD, default/llm-POD, default/llm-POD. No node would advertise
  nvidia.com/gpu. Remedy: Change the pod's request, let its node affinity accept both the old and the new
  value of the label (operator In), keep enough of the requested devices on other nodes, or set
  drain.strandedPods to Allow.

This is only a plan. Nothing was changed.
"""
JOB = {"apiVersion": "batch/v1", "kind": "Job", "name": "train-0", "uid": "job", "controller": True}
REFUSED_SPEC = {"mode": "TimeSlicing", "timeSlicing": {"replicas": 1}}
SEVEN = {"mode": "MIG", "mig": {"layouts": [{"profiles": {"1g.20gb": 7}}]}}


def masked(text: str) -> str:
    """Without random names, the order that comes of them, and where lines break."""
    text = " ".join(re.sub(r"llm-[a-z0-9]{5}", "llm-POD", re.sub(r"plan \w{7}", "plan HASH", text)).split())
    rows = sorted(re.findall(r"gpu-\d Reset.*?PDBNeverAllows", text))
    return re.sub(r"gpu-\d Reset.*PDBNeverAllows(?= pods)", "; ".join(re.sub("gpu-.", "gpu", r) for r in rows), text)


@virtually
async def test_a_gang_that_would_be_interrupted_is_named_once_and_with_each_of_its_nodes(tmp_path: Path) -> None:
    gang = "JobSet default/train, 2 pods (1 on gpu-1, 1 on gpu-2)"
    async with operated(3, serving=FULL) as scene:
        for number, node_name in enumerate(("gpu-1", "gpu-2")):
            metadata = {"labels": {"jobset.sigs.k8s.io/jobset-name": "train"}, "ownerReferences": [JOB]}
            scene.e.cluster.add(PODS, gpu_pod(f"rank-{number}", node_name, metadata=metadata))
        file = written(tmp_path, policy(SLICED))
        told = await ask(scene.e.cluster, "plan", "-f", file)
        data = await ask(scene.e.cluster, "plan", "-o", "json", "-f", file)
    assert told.out.count(f"  gang that would be interrupted: {gang}\n") == told.out.count("gang that") == 1
    (pool,) = data.data["policies"]
    found = {one["name"]: one["gangs"] for one in pool["nodes"]}
    assert found == {"gpu-1": [gang], "gpu-2": [gang], "gpu-3": []}


@virtually
async def test_a_settled_pool_and_a_file_that_says_what_is_there_already_change_nothing(tmp_path: Path) -> None:
    """Defaults that only the server writes down are no difference."""
    async with operated(2, serving=FULL) as scene:
        told = await ask(scene.e.cluster, "plan")
        same = await ask(scene.e.cluster, "plan", "-f", written(tmp_path, policy(FULL)))
    assert (told.status, same.status) == (DONE, DONE)
    assert told.out.startswith("Nothing to do: 2 nodes ")
    assert "\nSIMULATED: gpu-1, gpu-2 " in told.out
    assert "\npool-b  nothing to change\nAccepted: 2 nodes " in told.out
    assert told.out.endswith("Nothing was changed.\n")
    assert same.out.startswith("Nothing to do: 2 nodes have what the policies ask for.")


@virtually
async def test_the_hash_that_is_told_before_an_edit_is_the_one_to_approve(tmp_path: Path) -> None:
    async with operated(3, serving=FULL) as scene:
        edit = policy(MIXED, rollout=at_once(1, approval="Manual"))
        told = await ask(scene.e.cluster, "plan", "-o", "json", "-f", written(tmp_path, edit))
        scene.e.apply(edit)
        await scene.reason("gpu-1", "ApprovalNeeded")
        shown = scene.e.policy("pool-b")["status"]["plan"]
    assert told.data["simulated"] == ["gpu-1", "gpu-2", "gpu-3"]
    (pool,) = told.data["policies"]
    assert {one["reason"] for one in pool["nodes"]} == {"ApprovalNeeded"}
    for field in ("hash", "disruption", "capacityBefore", "capacityAfter"):
        assert pool[field] == shown[field]


@virtually
async def test_what_somebody_else_set_stays_in_a_plan_as_it_does_for_kubectl_apply(tmp_path: Path) -> None:
    async with operated(2, serving=FULL) as scene:
        others = {"drain": {"strandedPods": "Allow"}, "rollout": {"paused": True}}
        scene.e.cluster.patch(POLICIES, "pool-b", {"spec": others})
        told = await ask(scene.e.cluster, "plan", "-o", "json", "-f", written(tmp_path, edit := policy(MIXED)))
        scene.e.apply(edit)
        await scene.reason("gpu-1", "Paused")
        shown = scene.e.policy("pool-b")
    assert shown["spec"]["drain"] == others["drain"]
    (pool,) = told.data["policies"]
    assert {one["reason"] for one in pool["nodes"]} == {"Paused"}
    assert pool["hash"] == shown["status"]["plan"]["hash"]


OWNED: JSON = {"f:spec": {"f:mode": {}, "f:drain": {"f:timeout": {}, ".": {}}, "f:rollout": {"f:order": {}}}}
SHARED: JSON = {"f:spec": {"f:drain": {"f:timeout": {}}, "f:rollout": {"f:order": {}}}}
ANNOTATED: JSON = {"f:metadata": {"f:annotations": {f"f:{LAST_APPLIED}": {}}}}
BEFORE = {"mode": "MIG", "drain": {"timeout": "1h"}, "rollout": {"order": "Name"}}
LAST: dict[str, tuple[JSON, bool]] = {
    "kubectl apply": ({"annotations": {LAST_APPLIED: json.dumps({"spec": BEFORE})}}, True),
    "server-side apply": ({"managedFields": [{"manager": "flux", "operation": "Apply", "fieldsV1": OWNED}]}, True),
    "kubectl edit": ({"managedFields": [{"manager": "k", "operation": "Update", "fieldsV1": OWNED}]}, False),
    "server-side apply, after kubectl apply": (
        {"annotations": {LAST_APPLIED: "{}"}, "managedFields": [{"operation": "Apply", "fieldsV1": OWNED}]},
        True,
    ),
    "server-side apply of somebody else": (
        {"managedFields": [{"operation": "Apply", "fieldsV1": {"f:spec": {"f:rollout": {"f:order": {}}}}}]},
        False,
    ),
    "server-side apply of a subresource": (
        {"managedFields": [{"operation": "Apply", "subresource": "status", "fieldsV1": OWNED}]},
        False,
    ),
    "server-side apply of fields that somebody else applied too": (
        {"managedFields": [{"operation": "Apply", "fieldsV1": OWNED}, {"operation": "Apply", "fieldsV1": SHARED}]},
        False,
    ),
    "kubectl apply, after server-side apply": (
        {
            "annotations": {LAST_APPLIED: json.dumps({"spec": {"mode": "MIG"}})},
            "managedFields": [
                {"operation": "Apply", "fieldsV1": OWNED, "time": "2026-11-01T00:00:00Z"},
                {"operation": "Update", "fieldsV1": ANNOTATED, "time": "2026-11-02T00:00:00Z"},
            ],
        },
        False,
    ),
    "kubectl apply --server-side, which keeps the annotation": (
        {
            "annotations": {LAST_APPLIED: json.dumps({"spec": {"mode": "MIG"}})},
            "managedFields": [
                {"operation": "Apply", "fieldsV1": OWNED, "time": "2026-11-01T00:00:00Z"},
                {"operation": "Apply", "fieldsV1": ANNOTATED, "time": "2026-11-02T00:00:00Z"},
            ],
        },
        True,
    ),
    "an annotation that is damaged": ({"annotations": {LAST_APPLIED: "{"}}, False),
    "an annotation of brackets": ({"annotations": {LAST_APPLIED: "[" * 100_000}}, False),
    "nobody": ({}, False),
}


@pytest.mark.parametrize("by", LAST)
def test_what_the_last_apply_set_and_this_one_does_not_is_removed(by: str) -> None:
    metadata, removed = LAST[by]
    spec = {"mode": "MIG", "drain": {"timeout": "1h", "jobs": {}}, "rollout": {"order": "Name"}, "priority": 3}
    after = applied({"metadata": {"name": "p", **metadata}, "spec": spec}, {"spec": {"mode": "Full", "drain": {}}})
    left = {"mode": "Full", "drain": {"jobs": {}}, "priority": 3}
    kept = {**spec, "mode": "Full"}
    assert after["spec"] == (left if removed else kept)


SELECTED: dict[str, tuple[JSON, JSON]] = {
    "by label": ({"f:matchLabels": {"f:pool": {}}}, {"matchLabels": {"zone": "x", "tier": "gold"}}),
    "as a whole": ({}, {"matchLabels": {"tier": "gold"}}),
}


@pytest.mark.parametrize(("owned", "stored"), SELECTED.values(), ids=SELECTED)
def test_a_selector_that_the_server_owns_as_one_value_is_replaced_as_one(owned: JSON, stored: JSON) -> None:
    fields = {"f:spec": {"f:mode": {}, "f:nodeSelector": owned}}
    live = {"metadata": {"name": "p", "managedFields": [{"operation": "Apply", "fieldsV1": fields}]}}
    spec = {"mode": "Full", "nodeSelector": {"matchLabels": {"pool": "b", "zone": "x"}}}
    after = applied(
        {**live, "spec": spec}, {"spec": {"mode": "Full", "nodeSelector": {"matchLabels": {"tier": "gold"}}}}
    )
    assert after["spec"]["nodeSelector"] == stored


@virtually
async def test_of_several_ways_in_which_a_policy_was_applied_the_one_that_is_assumed_is_noted(tmp_path: Path) -> None:
    async with operated(1, serving=FULL) as scene:
        flux = {"manager": "flux", "operation": "Apply", "fieldsV1": OWNED}
        person = {"manager": "person", "operation": "Apply", "fieldsV1": SHARED}
        notes = {}
        for also, managers in (("", [flux, person]), (json.dumps({"spec": {"mode": "Full"}}), [flux])):
            metadata = {"annotations": {LAST_APPLIED: also or None}, "managedFields": managers}
            scene.e.cluster.patch(POLICIES, "pool-b", {"metadata": metadata})
            told = await ask(scene.e.cluster, "plan", "-f", written(tmp_path, policy(FULL)), "-o", "json")
            notes[bool(also)] = [note for note in told.data["notes"] if "applied" in note]
    assert notes[False] == []
    assert len(notes[True]) == 1
    assert not lacks(notes[True][0], "policy pool-b", "follows the server-side apply of manager flux", "kubectl apply")


@virtually
async def test_the_hash_of_a_policy_that_is_not_there_yet_is_not_known(tmp_path: Path) -> None:
    """It goes by the object's UID, which the server gives."""
    async with operated(1) as scene:
        told = await ask(scene.e.cluster, "plan", "-o", "json", "-f", written(tmp_path, policy(MIXED)))
    (pool,) = told.data["policies"]
    assert (told.status, pool["hash"], len(pool["nodes"])) == (CHANGES, "", 1)


@virtually
async def test_the_node_that_is_to_go_first_goes_first(tmp_path: Path) -> None:
    async with operated(4, serving=FULL) as scene:
        edit = policy(MIXED)
        told = await ask(scene.e.cluster, "plan", "-o", "json", "-f", written(tmp_path, edit))
        scene.e.apply(edit)
        begun = await scene.any_fenced()
    (pool,) = told.data["policies"]
    assert [one["name"] for one in pool["nodes"] if one["starts"]] == [begun]
    assert pool["nodes"][0]["name"] == begun


@virtually
async def test_the_plan_of_an_edit_reads_like_this(tmp_path: Path) -> None:
    workload, budget = SimWorkload("llm", 3), pdb("llm", "llm", minAvailable=3)
    async with operated(2, workloads=[workload], budgets=[budget], serving=FULL) as scene:
        await scene.running("llm", 3)
        told = await ask(scene.e.cluster, "plan", "-f", written(tmp_path, policy(MIXED)))
    assert told.status == CHANGES
    assert masked(told.out) == masked(READS)


@virtually
async def test_one_node_changes_and_a_plan_writes_nothing(tmp_path: Path) -> None:
    async with operated(1, serving=FULL) as scene:
        same = await ask(scene.e.cluster, "plan", "-f", written(tmp_path, policy(FULL)))
        told = await ask(scene.e.cluster, "plan", "-f", written(tmp_path, policy(MIXED)))
        assert writes(scene.e.cluster) == []
    assert same.out.startswith("Nothing to do: 1 node has what the policies ask for.")
    assert told.status == CHANGES
    assert told.out.startswith("Changes: 1 node will change and 0 pods will be evicted.")
    assert "pool-b  1x full -> 2x3g.40gb  1 of 1 node will change\n" in told.out
    assert "the first node starts to change 2m later" in told.out


TWO_PROFILES = {"mode": "MIG", "mig": {"layouts": [{"profiles": {"3g.40gb": 1, "1g.10gb": 4}}]}}
NAMED = [
    ("one profile and somebody who asks", MIXED, 1, True),
    ("one profile and nobody who asks", MIXED, 0, False),
    ("two profiles", TWO_PROFILES, 1, False),
    ("strategy single already", SINGLE, 1, False),
]


@pytest.mark.parametrize(("spec", "pods", "told"), [row[1:] for row in NAMED], ids=[row[0] for row in NAMED])
@virtually
async def test_strategy_single_is_hinted_at_where_it_would_save_edits(
    tmp_path: Path, spec: dict[str, Any], pods: int, told: bool
) -> None:
    async with operated(1, workloads=[SimWorkload("llm", pods)], serving=FULL) as scene:
        await scene.running("llm", pods)
        found = await ask(scene.e.cluster, "plan", "-o", "json", "-f", written(tmp_path, policy(spec)))
    assert found.data["policies"][0]["singleKeepsName"] is told


MISSPELT = {"mode": "MIG", "mig": {"layouts": [{"profile": {"3g.40gb": 2}}]}}
REFUSED = {
    "a layout that does not fit": (SEVEN, "gpu-1 GPU 0", "nearest legal layout: 4x1g.20gb"),
    "a value that the server would refuse": (REFUSED_SPEC, "spec.timeSlicing.replicas", "timeSlicing.replicas"),
    "a misspelt field": (
        MISSPELT,
        "spec.mig.layouts[0].profile: there is no such field; did you mean profiles",
        "layouts[0].profile",
    ),
}


@pytest.mark.parametrize(("spec", "why", "once"), REFUSED.values(), ids=REFUSED)
@virtually
async def test_what_cannot_be_is_refused_with_the_field_and_the_nearest_that_can_once(
    tmp_path: Path, spec: dict[str, Any], why: str, once: str
) -> None:
    async with operated(1, serving=FULL) as scene:
        told = await ask(scene.e.cluster, "plan", "-f", written(tmp_path, policy(spec)))
    assert told.status == Outcome.CANNOT
    text = " ".join(told.out.split())
    assert text.startswith(f"Cannot: pool-b: {why}")
    assert text.count(once) == 1


@virtually
async def test_of_many_refused_policies_each_is_explained_once(tmp_path: Path) -> None:
    async with operated(1) as scene:
        bad = [policy(REFUSED_SPEC, f"p{number}") for number in range(4)]
        told = await ask(scene.e.cluster, "plan", "-f", written(tmp_path, *bad))
    assert " ".join(told.out.split()).count("spec.timeSlicing.replicas") == 4


@virtually
async def test_several_policies_of_one_file_are_planned_together_and_other_objects_are_named(tmp_path: Path) -> None:
    async with operated(1, serving=FULL) as scene:
        other = policy(SLICED, "pool-x", "nowhere")
        service = {"kind": "Service", "apiVersion": "v1", "metadata": {"name": "s"}}
        file = written(tmp_path, policy(MIXED), other, service)
        told = await ask(scene.e.cluster, "plan", "-f", file)
        one = await ask(scene.e.cluster, "plan", "pool-x", "-f", file)
    assert told.status == CHANGES
    assert "pool-x  nothing to change" in told.out
    assert "Service/s is ignored" in " ".join(told.out.split()), "a long path of the file breaks the line anywhere"
    assert (one.status, "pool-b" in one.out) == (DONE, False)


@virtually
async def test_of_json_objects_that_follow_each_other_each_is_planned(tmp_path: Path) -> None:
    """As `jq '.items[]'` prints them, and as `kubectl apply` reads them."""
    path = tmp_path / "stream.json"
    path.write_text("\n".join(json.dumps(one) for one in (policy(SLICED, "pool-x", "nowhere"), policy(MIXED))))
    async with operated(1, serving=FULL) as scene:
        told = await ask(scene.e.cluster, "plan", "-f", str(path))
    assert told.status == CHANGES
    assert "pool-x  nothing to change" in told.out


@virtually
async def test_a_closed_window_and_the_next_opening_are_told(tmp_path: Path) -> None:
    async with operated(1, serving=FULL) as scene:
        windows = [{"schedule": "0 0 29 2 *", "duration": "6h"}]
        edit = policy(MIXED, rollout={"windows": windows})
        told = await ask(scene.e.cluster, "plan", "-f", written(tmp_path, edit))
    assert told.status == CHANGES
    assert "windows: 2028-02-29T00:00:00Z to 2028-02-29T06:00:00Z" in told.out
    assert "WindowClosed" in told.out
    assert "the first node starts" not in told.out


BERLIN = {"schedule": "0 22 * * *", "duration": "6h", "timeZone": "Europe/Berlinn"}
NEVER_OPEN = {
    "too short": ({"windows": [{"schedule": "0 22 * * *", "duration": "1m"}]}, "WindowTooShort", "lengthen a window"),
    "a wrong zone": ({"windows": [BERLIN]}, "InvalidWindow", '"Europe/Berlinn"'),
    "a wrong zone and a large canary": (
        {"windows": [BERLIN], "canary": {"nodes": 5}}, "InvalidWindow", '"Europe/Berlinn"'),
}  # fmt: skip


@pytest.mark.parametrize(("rollout", "reason", "words"), NEVER_OPEN.values(), ids=NEVER_OPEN)
@virtually
async def test_windows_that_no_change_can_use_are_not_told_as_none(
    tmp_path: Path, rollout: JSON, reason: str, words: str
) -> None:
    async with operated(2, serving=FULL) as scene:
        told = await ask(scene.e.cluster, "plan", "-f", written(tmp_path, policy(MIXED, rollout=rollout)))
    said = " ".join(told.out.split())
    assert not lacks(said, f"no window can be used ({reason})", words)
    assert said.count(words) == 1
    assert "no time windows" not in said


FORBIDDEN = [
    (NODES, "nodes"),
    (CLUSTER_POLICIES, "clusterpolicies"),
    (CONFIG_MAPS, "configmaps"),
    (GPUNODES, "gpunodes"),
]


@pytest.mark.parametrize(("resource", "name"), FORBIDDEN, ids=[name for _, name in FORBIDDEN])
@virtually
async def test_a_right_that_a_plan_needs_is_named(resource: Resource, name: str) -> None:
    async with operated(1) as scene:
        refusal = Forbidden(f'User "me" cannot list resource "{name}"')
        scene.e.cluster.faults.fail("list", resource, refusal, times=EVER, identity=ME)
        with pytest.raises(Trouble, match=f'cannot list resource "{name}"'):
            await ask(scene.e.cluster, "plan")


@virtually
async def test_without_a_right_to_the_operators_deployment_a_plan_says_what_it_assumes() -> None:
    async with operated(1, serving=FULL) as scene:
        refusal = Forbidden('User "me" cannot list resource "deployments"')
        scene.e.cluster.faults.fail("list", DEPLOYMENTS, refusal, times=EVER, identity=ME)
        told = await ask(scene.e.cluster, "plan")
    assert told.status == DONE
    assert not lacks(told.out, "Note", "default settings", "could not be read")


@virtually
async def test_a_lease_that_cannot_be_read_or_is_damaged_is_told_with_a_plan() -> None:
    """Failures of deleted nodes are on the Lease alone: a plan may call a node startable that the operator halts."""
    said = (
        "Note: the operator's Lease could not be used, so only changes that are recorded on Nodes are counted, and"
        " failures on deleted nodes and approved plans are unknown: "
    )
    async with operated(1, serving=FULL) as scene:
        fault = scene.e.cluster.faults.fail("get", LEASES, Forbidden("no right"), times=EVER, identity=ME)
        forbidden = await ask(scene.e.cluster, "plan")
        fault.lift()
        spoiled = {"gpusharing.dev/claims": '{"v":1,"claims":{},"failedNodes":{"u9":7}}'}
        change: JSON = {"metadata": {"annotations": spoiled}}
        scene.e.cluster.patch(LEASES, "gpusharing-operator", change, "gpusharing")
        damaged = await ask(scene.e.cluster, "plan")
    assert f"{said}no right" in " ".join(forbidden.out.split())
    why = "annotation gpusharing.dev/claims: the failure of the Node with UID u9: it is 7, not an object"
    assert said + why in " ".join(damaged.out.split())


@pytest.mark.parametrize(
    ("holder", "own"),
    [("operator-b-1a2b3c4d", "operator-b"), ("laptop-1a2b3c4d", "operator-a"), (None, "operator-a")],
    ids=["a pod", "a process outside of the cluster", "nobody"],
)
async def test_of_two_pods_the_one_that_leads_is_the_operators_own(holder: str | None, own: str) -> None:
    cluster = FakeCluster()
    install(cluster)
    labels = {"app.kubernetes.io/name": "gpusharing-operator"}
    for name in ("operator-b", "operator-a"):
        cluster.add(PODS, {"metadata": {"name": name, "namespace": "gpusharing", "labels": labels}})
    metadata = {"name": "gpusharing-operator", "namespace": "gpusharing"}
    cluster.add(LEASES, {"metadata": metadata, "spec": {"holderIdentity": holder}})
    installed = await read_installed(cluster.client("me"))
    assert installed.settings.pod_name == own


@virtually
async def test_the_settings_of_the_operator_that_is_installed_count(tmp_path: Path) -> None:
    settings = {"GPUSHARING_MAX_IN_FLIGHT": "0", "GPUSHARING_IDLE": "soon"}
    async with operated(1, serving=FULL, settings=settings) as scene:
        told = await ask(scene.e.cluster, "plan", "-f", written(tmp_path, policy(MIXED)))
    assert "defaults: idle" in told.out
    assert "Pending: BudgetFull" in told.out


@virtually
async def test_a_canary_larger_than_the_pool_is_told_before_it_is_applied_with_the_pods_it_would_keep(
    tmp_path: Path,
) -> None:
    async with operated(2, workloads=[SimWorkload("llm", 1)], serving=FULL) as scene:
        await scene.running("llm", 1)
        edited = policy({**MIXED, "rollout": {"canary": {"nodes": 3}}})
        told = await ask(scene.e.cluster, "plan", "-f", written(tmp_path, edited))
    assert told.out.count("Blocked: CanaryTooLarge") == 2
    said = " ".join(told.out.split())
    assert not lacks(said, "spec.rollout.canary.nodes is 3", "2 nodes")
    assert "blocked: default/llm-" in said


BAD_FILES = {
    "no such file": ("", "cannot be read"),
    "no YAML": ("{{", "cannot be read"),
    "nothing in it": ("\n", "there is no GPUSharingPolicy in"),
    "a text": ("hello", "a document is not an object but of type str"),
    "another kind only": ("kind: Pod\n", "there is no GPUSharingPolicy in"),
    "another version": ("kind: GPUSharingPolicy\napiVersion: gpusharing.dev/v9\n", "this plugin knows gpusharing.dev"),
    "broken JSON after an object": ('{"kind": "Service"}\n{"kind": "GPUSharingPolicy"', "cannot be read"),
    "a name of the wrong form": (
        "kind: GPUSharingPolicy\napiVersion: gpusharing.dev/v1alpha1\nmetadata: {name: Pool_B}\n",
        "policy.yaml: metadata.name Pool_B: use a-z",
    ),
    "no name": ("kind: GPUSharingPolicy\napiVersion: gpusharing.dev/v1alpha1\n", "has no metadata.name"),
}


@pytest.mark.parametrize("name", BAD_FILES)
@virtually
async def test_a_file_that_is_no_policy_is_refused_because(tmp_path: Path, name: str) -> None:
    content, why = BAD_FILES[name]
    path = tmp_path / "policy.yaml"
    if content:
        path.write_text(content)
    async with open_scene(*nodes(1)) as scene:
        with pytest.raises(Trouble, match=why):
            await ask(scene.e.cluster, "plan", "-f", str(path))


@virtually
async def test_more_than_four_turns_are_noted_with_the_plan_and_change_no_verdict(tmp_path: Path) -> None:
    told = {}
    async with operated(1, serving=FULL) as scene:
        for replicas in (4, 8):
            edit = written(tmp_path, policy({"mode": "TimeSlicing", "timeSlicing": {"replicas": replicas}}))
            told[replicas] = await ask(scene.e.cluster, "plan", "-f", edit, "-o", "json")
    turns = "policy pool-b: 8 pods would take turns on each GPU; beyond about 4, the turns of the others make each wait long"
    assert told[8].data["notes"] == [*told[4].data["notes"], f"{turns} (docs/design/hardware.md#turns)"]
    assert told[8].status == told[4].status


@virtually
async def test_a_plan_for_many_mps_clients_says_how_little_is_left_for_each(tmp_path: Path) -> None:
    """NVIDIA/k8s-device-plugin#647: what a client may use is a part of the card, and too small for most programs."""
    async with open_scene(*nodes(1, product="Tesla T4")) as scene:
        install(scene.e.cluster)
        await scene.serve(FULL)
        edit = policy({"mode": "MPS", "mps": {"replicas": 40}})
        told = await ask(scene.e.cluster, "plan", "-f", written(tmp_path, edit))
        data = await ask(scene.e.cluster, "plan", "-o", "json", "-f", written(tmp_path, edit))
        other = await ask(scene.e.cluster, "plan", "-o", "json", "-f", written(tmp_path, policy(SLICED)))
    assert not lacks(told.out, "Tesla T4", "0.37 GiB", "2 %")
    assert data.data["policies"][0]["clientMemoryGiB"] == {"Tesla T4": 0.375}
    assert data.data["policies"][0]["clientThreadsPercent"] == 2
    assert other.data["policies"][0]["clientMemoryGiB"] == {}
    assert other.data["policies"][0]["clientThreadsPercent"] == 0


@pytest.mark.parametrize("spec", [SLICED, MIXED], ids=["time-slicing", "MIG"])
@virtually
async def test_the_nodes_pods_and_devices_of_a_plan_are_those_that_change(tmp_path: Path, spec: dict[str, Any]) -> None:
    edit = policy({**spec, "drain": {"strandedPods": "Allow"}})
    async with operated(4, workloads=[SimWorkload("llm", 4)], serving=FULL) as scene:
        await scene.running("llm", 4)
        there = {f"{pod['metadata']['namespace']}/{pod['metadata']['name']}" for pod in scene.pods("llm")}
        told = await ask(scene.e.cluster, "plan", "-o", "json", "-f", written(tmp_path, edit))
        scene.e.apply(edit)
        begun = await scene.any_fenced()
        waiting = {
            f"gpu-{number}": await scene.reason(f"gpu-{number}", "BudgetFull", 60)
            for number in range(1, 5)
            if f"gpu-{number}" != begun
        }
        now = await ask(scene.e.cluster, "plan", "-o", "json")
        await scene.ready()
        evicted = scene.evicted()
        offers = Counter[str]()
        for node in scene.e.cluster.objects(NODES):
            found = {
                key: count for key, count in node["status"]["allocatable"].items() if key.startswith("nvidia.com/")
            }
            offers.update({key: int(count) for key, count in found.items() if count != "0"})
    (pool,), verdict = told.data["policies"], told.data["verdict"]
    named = {pod for one in pool["nodes"] for pod in one["pods"]}
    assert {one["name"] for one in pool["nodes"]} == {"gpu-1", "gpu-2", "gpu-3", "gpu-4"}
    assert (verdict["nodes"], verdict["blocked"], named) == (4, [], there)
    assert {name.rpartition("/")[2] for name in there} <= {*evicted}
    assert len(evicted) == verdict["pods"] or (not verdict["podsComplete"] and len(evicted) > verdict["pods"])
    assert pool["capacityAfter"] == offers
    shown = {one["name"]: one["reason"] for one in now.data["policies"][0]["nodes"] if one["phase"] == "Pending"}
    assert shown == {name: waiting[name]["reason"] for name in shown}
    assert len(shown) == 3


@virtually
async def test_a_node_whose_calls_the_operator_sees_refused_is_not_promised() -> None:
    async with operated(1, serving=FULL) as scene:
        scene.e.cluster.faults.fail("patch", NODES, Forbidden("not allowed"), times=EVER, identity="operator")
        scene.apply(SLICED)
        await scene.reason("gpu-1", "CallFailed")
        told = await ask(scene.e.cluster, "plan", "-o", "json")
    (node,) = told.data["policies"][0]["nodes"]
    assert (told.data["verdict"]["nodes"], told.data["verdict"]["blocked"]) == (0, ["gpu-1"])
    assert node["reason"] == "CallFailed"
    assert "not allowed" in node["message"]


# --- who only looks ---------------------------------------------------------------------------------------------

Call = Callable[[Onlooker], Awaitable[object]]
WRITES: dict[str, tuple[Call, str]] = {
    "create": (lambda client: client.create(NODES, {"metadata": {"name": "n"}}), "create nodes n"),
    "patch": (lambda client: client.patch(NODES, "n", {"spec": {"unschedulable": True}}), "patch nodes n"),
    "delete": (lambda client: client.delete(NODES, "n", uid="u"), "delete nodes n"),
    "evict": (lambda client: client.evict("default", "pod", "u"), "create pods default/pod"),
}


@pytest.mark.parametrize(("write", "told"), WRITES.values(), ids=WRITES.keys())
async def test_a_write_never_leaves(write: Call, told: str) -> None:
    cluster = FakeCluster()
    cluster.add(NODES, {"metadata": {"name": "n"}})
    before = len(cluster.writes)
    with pytest.raises(RuntimeError, match=f"a read-only client was asked to {told}$"):
        await write(Onlooker(cluster.client("person")))
    assert len(cluster.writes) == before


async def test_what_is_there_is_seen() -> None:
    cluster = FakeCluster()
    cluster.add(NODES, {"metadata": {"name": "n"}})
    client = Onlooker(cluster.client("person"))
    assert (await client.get(NODES, "n"))["metadata"]["name"] == "n"
    assert len(await list_of(client, NODES)) == 1
    assert await client.version() == cluster.version


async def test_a_policy_exported_while_it_was_deleted_is_shown_as_the_server_would_create_it() -> None:
    spec = {"nodeSelector": {"matchLabels": {"a": "b"}}, "mode": "Full"}
    served = {
        "uid": "u",
        "creationTimestamp": "2024-01-01T00:00:00Z",
        "deletionTimestamp": "2024-01-02T00:00:00Z",
        "finalizers": ["gpusharing.dev/in-flight"],
        "generation": 7,
    }
    exported = {"metadata": {"name": "p", "annotations": {"a": "b"}, **served}, "spec": spec, "status": {"nodes": 1}}
    listed = await list_of(Onlooker(FakeCluster().client("person"), [exported]), POLICIES)
    metadata = {"name": "p", "annotations": {"a": "b"}, "generation": 1, "resourceVersion": "0"}
    assert listed == [{"metadata": metadata, "spec": spec}]
