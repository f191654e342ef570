"""`why` for a pod by somebody with few rights, and for the pods of a workload (kubectl_gpusharing/diagnosis/why.py, kubectl_gpusharing/diagnosis/pod.py). The nodes are SIMULATED and have two H100 each."""

from collections.abc import Iterable
from typing import Any

import pytest
from hack.sim.fakefaults import EVER
from tests.cli.asking import ME, ask, operated
from tests.cli.test_whypod import GPU, LARGE, MPS, SLICED, asking, blocked
from tests.embedded.scene import FULL, MIXED, SINGLE, Scene, gpu_pod
from tests.fakes.virtualtime import virtually
from tests.wording import lacks

from gpusharing.kube.client import CORE_EVENTS, DEPLOYMENTS, EVENTS, GPUNODES, NODES, PODS, POLICIES, Resource
from gpusharing.kube.errors import Forbidden
from kubectl_gpusharing.shell.session import SPELLINGS
from kubectl_gpusharing.shell.troubles import Trouble

JSON = dict[str, Any]
JOBS = next(kind for kind in SPELLINGS if kind.plural == "jobs")
NAMED: JSON = {"mode": "MIG", "mig": {"strategy": "mixed", "config": "all-3g.40gb"}}


def forbid(scene: Scene, *kinds: Resource) -> None:
    for kind in kinds:
        refusal = Forbidden(f'User "me" cannot list resource "{kind.plural}"')
        for verb in ("list", "get"):
            scene.e.cluster.faults.fail(verb, kind, refusal, times=EVER, identity=ME)


async def answer(scene: Scene, *raws: JSON, subject: str = "pod/llm") -> JSON:
    for raw in raws:
        scene.e.cluster.add(PODS, raw)
    data: JSON = (await ask(scene.e.cluster, "why", subject, "-o", "json")).data
    return data


# --- a pod that is gone ------------------------------------------------------------------------------------------


@virtually
async def test_of_an_evicted_pod_that_is_gone_its_event_says_who_evicted_it_and_why() -> None:
    async with operated(1, serving=FULL) as scene:
        scene.e.cluster.add(PODS, gpu_pod("train", "gpu-1"))
        scene.apply(MIXED, drain={"unmanagedPods": "Evict", "strandedPods": "Allow"})
        await scene.ready(seconds=3600)
        forbid(scene, NODES, GPUNODES, POLICIES, EVENTS)
        data = await answer(scene, subject="pod/train")
        shown = await ask(scene.e.cluster, "why", "default/train", width=200)
        with pytest.raises(Trouble, match="there is no pods/train-2 in namespace default"):
            await ask(scene.e.cluster, "why", "pod/train-2")
    said = "the GPU sharing operator evicted this pod from node gpu-1, because policy pool-b changes"
    assert said in data["conclusion"]
    assert (data["phase"], data["node"], data["asks"], data["notes"]) == ("Gone", "", {}, [])
    assert said in " ".join(shown.out.split())
    assert "no GPU" not in shown.out


@virtually
async def test_a_pod_that_is_gone_exists_no_more_for_somebody_who_may_not_read_its_events() -> None:
    async with operated(1) as scene:
        forbid(scene, CORE_EVENTS)
        with pytest.raises(Trouble, match="there is no pods/train in namespace default") as raised:
            await ask(scene.e.cluster, "why", "pod/train")
    assert str(raised.value).endswith("; the right to list events would tell whether the operator evicted it")


# --- a pod, with few rights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [MIXED, NAMED], ids=["layouts", "a well-known name"])
@virtually
async def test_without_the_right_to_nodes_gpunodes_say_what_is_free_on_proven_nodes(spec: JSON) -> None:
    async with operated(2, serving=spec) as scene:
        forbid(scene, NODES)
        data = await answer(scene, asking({LARGE: 1}))
    (service,) = data["services"]
    assert (service["pool"], service["now"], service["free"], service["after"]) == ("pool-b", 4, 4, 4)
    assert not lacks(data["conclusion"], "each of gpu-1, gpu-2", "enough free")
    assert data["scheduler"] == "0/2 nodes are available"
    assert data["simulated"] == ["gpu-1", "gpu-2"]
    assert [note.endswith("because you may not list nodes") for note in data["notes"]] == [True]


@virtually
async def test_what_pods_hold_by_the_agents_reports_is_not_free() -> None:
    async with operated(1, serving=SLICED) as scene:
        scene.e.cluster.add(PODS, gpu_pod("other", "gpu-1"))
        held = {"nvidia.com/gpu": 1}
        await scene.e.until(
            lambda: scene.e.gpunode("gpu-1")["status"]["observed"].get("allocated") == held, "a report", 120
        )
        forbid(scene, NODES)
        data = await answer(scene, asking({GPU: 8}))
    (service,) = data["services"]
    assert (service["now"], service["free"], service["but"]) == (8, 7, "other pods use 1 of 8")


@virtually
async def test_without_a_plan_too_no_container_gets_two_shares_of_mps() -> None:
    async with operated(1, serving=MPS) as scene:
        forbid(scene, NODES)
        data = await answer(scene, asking({GPU: 2}))
    (service,) = data["services"]
    mode = "policy pool-b has mode MPS, which implies failRequestsGreaterThanOne"
    rule = f"a container requests 2 {GPU}, but {mode}; request 1 in each container"
    assert (service["but"], data["conclusion"]) == (rule, f"kubelets would reject this pod: {rule}")


@virtually
async def test_a_node_that_is_not_proven_counts_once_its_change_is_done() -> None:
    async with blocked() as scene:
        forbid(scene, NODES)
        data = await answer(scene, asking({LARGE: 1}))
    (service,) = data["services"]
    assert (service["now"], service["after"]) == (None, 4), "its GPUNode does not say what it advertises meanwhile"
    assert not lacks(service["but"], "Blocked", "gpu-1")


@virtually
async def test_what_a_node_offers_in_the_middle_of_its_change_is_unknown_and_never_0() -> None:
    async with blocked() as scene:
        forbid(scene, NODES)
        data = await answer(scene, asking({GPU: 1}))
        text = (await ask(scene.e.cluster, "why", "pod/llm")).out
    assert "gpu-1" in data["conclusion"]
    assert "unknown" in data["conclusion"]
    assert [service["now"] for service in data["services"]] in ([], [None])
    assert " 0 " not in text
    assert ".." not in text


@virtually
async def test_a_pod_on_a_node_in_a_change_points_at_the_node() -> None:
    async with blocked() as scene:
        forbid(scene, NODES)
        data = await answer(scene, gpu_pod("llm", "gpu-1"))
    assert not lacks(data["conclusion"], "node gpu-1", "Blocked", "kubectl gpusharing why gpu-1")


BLIND = {
    "a pod that waits": (asking({GPU: 1}), "it is unknown which nodes have what this pod requests"),
    "a pod with a node": (gpu_pod("llm", "gpu-1"), "this pod is on node gpu-1"),
    "a pod that requests no GPU": (
        asking({}),
        "this pod requests no GPU resource, so it is not waiting for a GPU pool",
    ),
}


@pytest.mark.parametrize("pod", BLIND)
@virtually
async def test_a_user_of_a_namespace_alone_gets_what_the_pod_says_of(pod: str) -> None:
    raw, conclusion = BLIND[pod]
    async with operated(1, serving=FULL) as scene:
        forbid(scene, NODES, POLICIES, GPUNODES)
        data = await answer(scene, raw)
        text = await ask(scene.e.cluster, "why", "pod/llm")
    assert (data["conclusion"], data["services"]) == (conclusion, [])
    (note,) = data["notes"]
    assert all(kind in note.partition("you may not list ")[2] for kind in ("nodes", "gpunodes", "gpusharingpolicies"))
    assert f"Note: {note}" in " ".join(text.out.split())


@virtually
async def test_who_may_not_list_policies_alone_is_told_that_right_and_not_that_the_server_is_away() -> None:
    async with operated(1, serving=FULL) as scene:
        forbid(scene, POLICIES)
        data = await answer(scene, asking({GPU: 1}))
        node = await ask(scene.e.cluster, "why", "gpu-1", "-o", "json")
        with pytest.raises(Trouble, match='cannot list resource "gpusharingpolicies"') as raised:
            await ask(scene.e.cluster, "plan")
    assert [note.endswith("because you may not list gpusharingpolicies") for note in data["notes"]] == [True]
    assert node.data["unproven"] == "the right to list gpusharingpolicies would add a plan with its proofs"
    assert "does not respond" not in str(raised.value)


@virtually
async def test_a_pod_of_another_namespace_is_named_with_the_flag_that_was_forgotten() -> None:
    async with operated(1) as scene:
        raw = asking({GPU: 1})
        scene.e.cluster.add(PODS, {**raw, "metadata": {**raw["metadata"], "namespace": "team-a"}})
        with pytest.raises(Trouble, match=r"namespace default of context test.*there is one in team-a.*-n team-a"):
            await ask(scene.e.cluster, "why", "pod/llm")
        with pytest.raises(Trouble, match=r"no pods/other in namespace default .*choose another namespace with -n"):
            await ask(scene.e.cluster, "why", "pod", "other")


@virtually
async def test_the_names_in_an_answer_can_be_pasted() -> None:
    async with operated(2, serving=FULL) as scene:
        scene.e.cluster.add(PODS, asking({GPU: 1}))
        out = (await ask(scene.e.cluster, "why", "pod/llm")).out
    assert "gpu-1, gpu-2" in out
    assert "Gpu-" not in out


@virtually
async def test_who_may_not_read_the_pod_is_told_which_right_is_missing() -> None:
    async with operated(1) as scene:
        forbid(scene, PODS)
        with pytest.raises(Trouble, match='cannot list resource "pods"'):
            await ask(scene.e.cluster, "why", "pod/llm")


NEAREST = " Did you mean nvidia.com/mig-3g.40gb? 4 are known to be free. "
MEANT = {
    "a slip": ("nvidia.com/mig-3g.40g", NEAREST),
    "a smaller profile": ("nvidia.com/mig-2g.20gb", NEAREST),
    "a larger profile": ("nvidia.com/mig-7g.80gb", "policies. Request"),
    "whole GPUs": ("nvidia.com/gpu", "policies. Request"),
}


@pytest.mark.parametrize("rights", ["all rights", "few rights"])
@pytest.mark.parametrize("resource", MEANT)
@virtually
async def test_the_nearest_resource_that_fits_is_named_with_what_is_free_for(resource: str, rights: str) -> None:
    absent, suggestion = MEANT[resource]
    async with operated(1, serving=MIXED) as scene:
        forbid(scene, *([NODES] if rights == "few rights" else []))
        data = await answer(scene, asking({absent: 1}))
    assert not lacks(data["conclusion"], f"no node advertises {absent}", "none will")
    assert suggestion in data["conclusion"]


@virtually
async def test_a_resource_that_a_change_takes_away_is_not_suggested() -> None:
    async with operated(1, serving=MIXED) as scene:
        scene.apply(SINGLE, rollout={"paused": True})
        await scene.reason("gpu-1", "Paused")
        data = await answer(scene, asking({"nvidia.com/mig-2g.20gb": 1}))
    assert "no node advertises nvidia.com/mig-2g.20gb" in data["conclusion"]
    assert "Did you mean" not in data["conclusion"]


@virtually
async def test_what_is_free_is_unknown_while_no_kubelet_tells_what_pods_hold() -> None:
    async with operated(1, serving=MIXED) as scene:
        scene.e.software.silence_kubelet("gpu-1")
        await scene.e.until(lambda: "pods" not in scene.e.gpunode("gpu-1")["status"]["observed"], "a report", 120)
        meant = await answer(scene, asking({"nvidia.com/mig-3g.40g": 1}))
        scene.e.cluster.delete(PODS, "llm", "default")
        data = await answer(scene, asking({LARGE: 1}))
    assert "nvidia.com/mig-3g.40gb? It is unknown how many are free. " in meant["conclusion"]
    (service,) = data["services"]
    assert (service["now"], service["free"]) == (4, None)
    assert service["but"] == "it is unknown how many of them other pods hold"
    assert not lacks(data["conclusion"], "gpu-1 has what this pod requests", "unknown")
    assert "free" not in data["conclusion"]


# --- workloads ---------------------------------------------------------------------------------------------------


def workload(name: str, **status: Any) -> JSON:
    selector = {"matchLabels": {"app": name}, "matchExpressions": [{"key": "canary", "operator": "DoesNotExist"}]}
    return {"metadata": {"name": name, "namespace": "default"}, "spec": {"selector": selector}, "status": status}


def of_workload(raws: Iterable[JSON], app: str = "llm", **labels: str) -> list[JSON]:
    pods = []
    for number, raw in enumerate(raws):
        metadata = {"name": f"{app}-{number}", "namespace": "default", "labels": {"app": app, **labels}}
        pods.append({**raw, "metadata": metadata})
    return pods


@pytest.mark.parametrize(("kind", "subject"), [(DEPLOYMENTS, "deploy/llm"), (JOBS, "job/llm")])
@virtually
async def test_a_workload_answers_for_its_pods_by_one_that_waits(kind: Resource, subject: str) -> None:
    async with operated(1, serving=FULL) as scene:
        scene.e.cluster.add(kind, workload("llm"))
        other = of_workload([asking({GPU: 1})], app="other")
        canary = [{**asking({GPU: 1}), "metadata": {"name": "a-canary", "namespace": "default",
                                                    "labels": {"app": "llm", "canary": "1"}}}]  # fmt: skip
        pods = of_workload([gpu_pod("", "gpu-1"), asking({GPU: 9}), asking({GPU: 9})])
        data = await answer(scene, *pods, *other, *canary, subject=subject)
        text = await ask(scene.e.cluster, "why", subject)
    said = f"{kind.plural}/llm: 3 pods, 2 of them without a node"
    assert (data["workload"], data["pod"]) == (said, "default/llm-1")
    assert not lacks(data["conclusion"], "2 of the 9 nvidia.com/gpu")
    assert text.out.startswith(f"{said}\nSIMULATED")


@virtually
async def test_a_workload_whose_pods_all_have_nodes_answers_by_one_that_does_not_run() -> None:
    async with operated(1, serving=FULL) as scene:
        scene.e.cluster.add(DEPLOYMENTS, workload("llm"))
        failed = {**gpu_pod("", "gpu-1"), "status": {"phase": "Failed"}}
        data = await answer(scene, *of_workload([gpu_pod("", "gpu-1"), failed]), subject="deploy/llm")
    assert data["pod"] == "default/llm-1"
    assert not lacks(data["workload"], "deployments/llm", "2 pods", "0")
    assert data["conclusion"].startswith("this pod has failed")


@virtually
async def test_a_workload_without_pods_says_what_its_controller_says() -> None:
    quota = 'pods "llm-1" is forbidden: exceeded quota: gpus.'
    async with operated(1) as scene:
        condition = {"type": "ReplicaFailure", "status": "True", "message": quota}
        scene.e.cluster.add(DEPLOYMENTS, workload("llm", conditions=[condition]))
        with pytest.raises(Trouble, match="deployments/llm has no pods") as raised:
            await ask(scene.e.cluster, "why", "deploy/llm")
    assert str(raised.value) == f"deployments/llm has no pods. {quota.removesuffix('.')}"


@virtually
async def test_a_workload_that_does_not_exist_is_answered_with_the_nearest_name() -> None:
    async with operated(1) as scene:
        scene.e.cluster.add(DEPLOYMENTS, workload("llm"))
        with pytest.raises(
            Trouble, match="there is no deployments/lm in namespace default of context test; did you mean: llm"
        ):
            await ask(scene.e.cluster, "why", "deploy/lm")
