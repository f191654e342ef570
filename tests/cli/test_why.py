"""`why` on a SIMULATED cluster with the shipped operator beside it (kubectl_gpusharing/diagnosis/why.py, kubectl_gpusharing/diagnosis/pod.py, report/proposal.py)."""

import asyncio
import re
from datetime import UTC, timedelta
from importlib.metadata import version
from typing import Any

import pytest
from hack.sim.fakefaults import EVER
from hack.sim.workloads import SimWorkload
from tests.cli.asking import ME, ask, operated
from tests.cli.objects import gpunode
from tests.cli.test_whypod import blocked
from tests.embedded.scene import FULL, MIXED, at_once, gpu_pod, node, pdb
from tests.fakes.virtualtime import virtual_now, virtually
from tests.wording import lacks

from gpusharing.kube.client import (
    DAEMON_SETS,
    DEPLOYMENTS,
    JSON,
    NODES,
    PODS,
    POLICIES,
    REPLICA_SETS,
    ApiRequest,
    PassingClient,
)
from gpusharing.kube.errors import Forbidden
from kubectl_gpusharing.diagnosis.why import NodeAnswer, _next_look
from kubectl_gpusharing.live.cluster import OPERATOR
from kubectl_gpusharing.pools.fleet import NodeStatus, read_node
from kubectl_gpusharing.shell.arguments import Arguments, parse
from kubectl_gpusharing.shell.session import SPELLINGS, find_subject
from kubectl_gpusharing.shell.troubles import DONE, Trouble

STATEFUL_SETS, JOBS = (kind for kind in SPELLINGS if kind.plural in ("statefulsets", "jobs"))


def masked(text: str) -> str:
    """Without random names, hashes, lengths of time, and how wide these make a column."""
    text = re.sub(r"llm-[a-z0-9]{5}\b", "llm-POD", text)
    text = re.sub(r"pool-b-[0-9a-f]{7}", "pool-b-HASH", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "TIME", text)
    return re.sub(r"(?<=\S) {2,}", "  ", re.sub(r"\b\d+[smh](\d+s)?\b", "AGE", text))


DRAINING = """\
SIMULATED: gpu-1 has no real GPUs, and the numbers about it here come from a simulator.
gpu-1  pool-b  Draining: PDB  since AGE, until TIME
1 GPU pod left to go; PDB default/llm: Pod default/llm-POD. The budget allows 0 disruptions: 1 of 2 pods are
healthy, and 1 must be. Server: "The disruption budget llm needs 1 healthy pods and has 1 currently". Remedy:
Get the unready pods running again or allow their eviction (unhealthyPodEvictionPolicy: AlwaysAllow), scale
the workload up, or let the PodDisruptionBudget allow more disruptions.
1x full -> 2x3g.40gb; disruption class Reset; step 1/1, attempt 1; cordoned by the operator

PROOF             SAYS                     SHOULD SAY
+ agent          reads 2 GPUs             reads GPUs
x NVML           1x full                  2x3g.40gb
x mig-manager    all-disabled (success)   pool-b-HASH (success)
+ operands       none paused              none paused
x device plugin  not set                  pool-b-HASH
x GFD labels     differ                   as configured
x allocatable    2 nvidia.com/gpu         4 nvidia.com/mig-3g.40gb
GFD labels: label nvidia.com/mig.strategy is absent, but should be mixed

What blocks it
  PDB default/llm: Pod default/llm-POD. The budget allows 0 disruptions: 1 of 2 pods are healthy, and 1 must
    be. Server: "The disruption budget llm needs 1 healthy pods and has 1 currently". Remedy: Get the unready
    pods running again or allow their eviction (unhealthyPodEvictionPolicy: AlwaysAllow), scale the workload
    up, or let the PodDisruptionBudget allow more disruptions.

ENTERED    PHASE     REASON
AGE ago  Skipped   Unowned
AGE ago   Synced    Synced
AGE ago   Pending   ConfigPropagating
AGE ago     Cordoned  Settling
AGE ago     Draining  PDBInUse
"""


@virtually
async def test_a_node_in_a_drain_shows_verdict_proofs_blockers_and_history() -> None:
    workload, budget = SimWorkload("llm", 2, node_selector={}), pdb("llm", "llm", minAvailable=1)
    async with operated(1, workloads=[workload], budgets=[budget], serving=FULL) as scene:
        await scene.running("llm", 2)
        scene.apply(MIXED, drain={"strandedPods": "Allow"})
        await scene.reason("gpu-1", "PDB")
        told = await ask(scene.e.cluster, "why", "gpu-1")
    assert told.status == DONE
    assert masked(told.out) == masked(DRAINING)


@virtually
async def test_a_node_that_is_done_has_every_source_agree() -> None:
    async with operated(1, serving=MIXED) as scene:
        told = await ask(scene.e.cluster, "why", "gpu-1", "-o", "json")
    assert told.data["phase"] == "Synced"
    assert len(told.data["proofs"]) == 7
    assert all(one["agrees"] for one in told.data["proofs"])
    assert told.data["simulated"] == ["gpu-1"]


@virtually
async def test_a_source_that_disagrees_says_what_it_should_say() -> None:
    async with operated(1, serving=MIXED) as scene:
        scene.person("gpu-1", {"metadata": {"labels": {"nvidia.com/mig-3g.40gb.count": "9"}}})
        told = await ask(scene.e.cluster, "why", "gpu-1", "-o", "json")
        bare = await ask(scene.e.cluster, "why", "gpu-1", "--no-headers")
    assert (bare.status, "SOURCE" in bare.out) == (DONE, False), bare.out
    assert not lacks(bare.out, "nvidia.com/mig-3g.40gb.count is 9", "4")
    wrong = {one["source"]: one["message"] for one in told.data["proofs"] if not one["agrees"]}
    assert [*wrong] == ["GFD labels"]
    assert not lacks(wrong["GFD labels"], "nvidia.com/mig-3g.40gb.count is 9", "4")


@virtually
async def test_without_the_right_to_nodes_the_published_state_is_told_and_what_more_rights_would_add() -> None:
    async with operated(1, serving=FULL) as scene:
        refusal = Forbidden('User "me" cannot list resource "nodes"')
        scene.e.cluster.faults.fail("list", NODES, refusal, times=EVER, identity=ME)
        told = await ask(scene.e.cluster, "why", "gpu-1")
    assert told.out.startswith("SIMULATED: gpu-1 has no real GPUs")
    assert "\ngpu-1  pool-b  Synced: Synced" in told.out
    assert not lacks(told.out, "No proof", "list nodes")


@pytest.mark.parametrize("typed", ["why gpu-1", "why pod/old", "plan", "doctor"])
@virtually
async def test_an_operator_of_another_version_is_told_in_the_answer_to(typed: str) -> None:
    words = typed.split()
    async with operated(1, serving=FULL) as scene:
        scene.e.cluster.add(PODS, pending("old"))
        same = await ask(scene.e.cluster, *words)
        label = {"metadata": {"labels": {"app.kubernetes.io/version": "9.9.9"}}}
        scene.e.cluster.patch(DEPLOYMENTS, OPERATOR, label, "gpusharing")
        told = await ask(scene.e.cluster, *words)
        data = await ask(scene.e.cluster, *words, "-o", "json")
    note = f"the operator is version 9.9.9 and this plugin is version {version('gpu-sharing-operator')}: their"
    assert f"Note: {note}" in " ".join(told.out.split())
    assert [one.startswith(note) for one in data.data["notes"]] == [True]
    assert "is version" not in same.out


@virtually
async def test_a_node_of_no_policy_is_said_to_be_none_of_ours() -> None:
    async with operated(1) as scene:
        scene.e.cluster.add(NODES, node("spare-1", pool="other"))
        told = await ask(scene.e.cluster, "why", "spare-1")
    assert told.out.startswith("spare-1  no policy  Skipped: Unowned\n")


# --- pods ------------------------------------------------------------------------------------------------------


@virtually
async def test_a_pod_that_asks_for_what_the_pool_no_longer_offers_is_told_what_is_offered() -> None:
    async with operated(1, serving=MIXED) as scene:
        await scene.e.until(lambda: True, "", 1)
        scene.e.cluster.add(PODS, pending("old"))
        told = await ask(scene.e.cluster, "why", "pod/old")
        bare = await ask(scene.e.cluster, "why", "pod/old", "--no-headers")
    assert bare.status == DONE
    text = " ".join(told.out.split())
    assert "default/old Pending requests 1 nvidia.com/gpu" in text
    assert "Scheduler: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu." in text
    assert "Advertised once the changes are done: nvidia.com/mig-3g.40gb" in text
    assert not lacks(text, "No node advertises nvidia.com/gpu", "none will")


@virtually
async def test_what_only_other_nodes_offer_is_no_advice_for_a_pod_with_a_node_selector() -> None:
    async with operated(1) as scene:
        scene.e.cluster.add(NODES, node("other-1", pool="other"))
        await scene.serve(MIXED)
        raw = pending("old")
        raw["spec"] |= {"nodeSelector": {"gpusharing.dev/pool": "b"}}
        scene.e.cluster.add(PODS, raw)
        told = await ask(scene.e.cluster, "why", "pod/old", "-o", "json")
    assert told.data["others"] == ["nvidia.com/mig-3g.40gb"]


@virtually
async def test_a_pod_that_waits_for_a_change_is_told_which_pool_will_serve_it_and_what_that_waits_for() -> None:
    async with blocked() as scene:
        scene.e.cluster.add(PODS, pending("new", "nvidia.com/mig-3g.40gb"))
        told = await ask(scene.e.cluster, "why", "default/new", "-o", "json")
    (service,) = told.data["services"]
    assert (service["pool"], service["now"], service["after"]) == ("pool-b", 0, 4)
    assert not lacks(service["but"], "Blocked", "gpu-1")


@virtually
async def test_a_pod_that_selects_the_mode_to_come_has_only_to_wait() -> None:
    """The operator writes the label itself, with the release (docs/how-to/choose-a-mode.md)."""
    async with blocked() as scene:
        raw = pending("new", "nvidia.com/mig-3g.40gb")
        raw["spec"] |= {"nodeSelector": {"gpusharing.dev/mode": "mig"}}
        scene.e.cluster.add(PODS, raw)
        told = await ask(scene.e.cluster, "why", "default/new", "-o", "json")
    (service,) = told.data["services"]
    assert (service["now"], service["after"], service["kept"]) == (0, 4, [])
    assert service["but"].startswith("only once the changes are done; ")
    assert not lacks(told.data["conclusion"], "node gpu-1", "once the changes are done")


@virtually
async def test_a_pod_that_finds_everything_held_is_told_so() -> None:
    async with operated(1, workloads=[SimWorkload("llm", 2)], serving=FULL) as scene:
        await scene.running("llm", 2)
        await scene.e.until(lambda: scene.e.gpunode("gpu-1")["status"]["observed"].get("pods") == 2, "a report", 120)
        scene.e.cluster.add(PODS, pending("third"))
        told = await ask(scene.e.cluster, "why", "pod/third", "-n", "default", "-o", "json")
    (service,) = told.data["services"]
    assert (service["now"], service["free"], service["but"]) == (2, 0, "other pods use all of them")


@virtually
async def test_a_pod_with_a_node_points_at_the_node() -> None:
    async with operated(1, workloads=[SimWorkload("llm", 1)], serving=FULL) as scene:
        await scene.running("llm", 1)
        name = scene.pods("llm")[0]["metadata"]["name"]
        told = await ask(scene.e.cluster, "why", f"pod/default/{name}")
    assert not lacks(told.out, "node gpu-1", "not changing")


def pending(name: str, resource: str = "nvidia.com/gpu") -> dict[str, Any]:
    raw = gpu_pod(name, "")
    raw["spec"] = {"containers": [{"name": "main", "resources": {"limits": {resource: "1"}}}]}
    said = f"0/1 nodes are available: 1 Insufficient {resource}."
    raw["status"] = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": said}]}
    return raw


SUBJECTS = {
    "gpu-07": (NODES, "gpu-07"),
    "no/gpu-07": (NODES, "gpu-07"),
    "node/gpu-07": (NODES, "gpu-07"),
    "gpunode.gpusharing.dev/gpu-07": (NODES, "gpu-07"),
    "po/llm-0": (PODS, "llm-0", "mine"),
    "pod/llm-0": (PODS, "llm-0", "mine"),
    "team-a/llm-0": (PODS, "llm-0", "team-a"),
    "pod/team-a/llm-0": (PODS, "llm-0", "team-a"),
    "deploy/llm": (DEPLOYMENTS, "llm", "mine"),
    "deployment.apps/llm": (DEPLOYMENTS, "llm", "mine"),
    "Deployment/team-a/llm": (DEPLOYMENTS, "llm", "team-a"),
    "ds/llm": (DAEMON_SETS, "llm", "mine"),
    "rs/team-a/llm-5d4": (REPLICA_SETS, "llm-5d4", "team-a"),
    "job/train": (JOBS, "train", "mine"),
    "job.batch/train": (JOBS, "train", "mine"),
    "sts/llm": (STATEFUL_SETS, "llm", "mine"),
    "gsp/pool-b": (POLICIES, "pool-b"),
    "gpusharingpolicies/pool-b": (POLICIES, "pool-b"),
}


@pytest.mark.parametrize("word", SUBJECTS)
def test_a_subject_is_spelled_as_kubectl_spells_kinds(word: str) -> None:
    kind, name, *namespace = SUBJECTS[word]
    assert find_subject(word, "mine")[: 2 + len(namespace)] == (kind, name, *namespace)


@pytest.mark.parametrize(
    "words", ["pod llm-0 llm-1", "Pods llm-0 llm-1", "pod/llm-0 pod/llm-1 pod/llm-0", "pod.v1/llm-0 pod.v1/llm-1"]
)
def test_several_subjects_may_follow_their_kind_as_for_kubectl(words: str) -> None:
    typed = parse(["why", *words.split()])
    assert typed.verb == "why"
    found = [find_subject(one.subjects[0], "mine") for one in typed.each()]
    assert found == [(PODS, "llm-0", "mine"), (PODS, "llm-1", "mine")]


NAMED = {
    "status node/gpu-1 gsp/pool-b gpu-1": ("policies", ["gpu-1", "pool-b"]),
    "status no gpu-1 gpu-2": ("policies", ["gpu-1", "gpu-2"]),
    "plan gpusharingpolicy.gpusharing.dev/pool-b": ("policies", ["pool-b"]),
    "retry gpunode.gpusharing.dev/gpu-1 node/gpu-2": ("names", ["gpu-1", "gpu-2"]),
    "skip node": ("names", ["node"]),
    "pause gsp/pool-b gsp/pool-b": ("names", ["pool-b"]),
}


@pytest.mark.parametrize("line", NAMED)
def test_every_verb_takes_names_as_kubectl_and_o_name_write_them(line: str) -> None:
    flag, names = NAMED[line]
    assert [*getattr(parse(line.split()), flag)] == names


@pytest.mark.parametrize(
    "line", ["retry gsp/pool-b", "pause node/gpu-1", "status pod/llm-0", "plan pool-b/", "skip a/b/c"]
)
def test_a_name_of_another_kind_is_refused(line: str) -> None:
    with pytest.raises(
        Trouble,
        match=f"^{line.split()[1]} is no (POLICY|NODE|POLICY.NODE): write its name, .*(gsp/pool-a|node/gpu-07)$",
    ):
        parse(line.split())


def test_a_node_that_is_named_like_a_kind_is_a_node() -> None:
    (typed,) = Arguments(verb="why", subjects=("pod",)).each()
    assert typed.subjects == ("pod",)


@virtually
async def test_a_bare_name_is_a_node_or_else_a_policy_and_of_both_the_other_is_named() -> None:
    async with operated(1, serving=FULL) as scene:
        assert (await ask(scene.e.cluster, "why", "pool-b", "-o", "json")).data["name"] == "pool-b"
        scene.e.cluster.add(POLICIES, {"metadata": {"name": "gpu-1"}, "spec": {"mode": "Full", "priority": -1}})
        both = (await ask(scene.e.cluster, "why", "gpu-1", "-o", "json")).data
    assert both["node"] == "gpu-1"
    assert any("kubectl gpusharing why gsp/gpu-1" in note for note in both["notes"])


@pytest.mark.parametrize("word", ["a/b/c", "pod/", "no/team-a/gpu-07", "gsp/a/b", "pod/a/b/c"])
def test_a_subject_that_is_none_is_refused_with_what_may_be_written(word: str) -> None:
    with pytest.raises(Trouble, match="names nothing that can be explained: write NODE, KIND/NAME or NAMESPACE/NAME"):
        find_subject(word, "mine")


@virtually
async def test_a_policy_is_explained_by_its_most_urgent_node() -> None:
    async with operated(2, serving=FULL) as scene:
        done = await ask(scene.e.cluster, "why", "gsp/pool-b", "-o", "json")
        scene.cordon("gpu-2")
        scene.apply(MIXED)
        await scene.reason("gpu-2", "AlreadyCordoned")
        await scene.e.until(
            lambda: scene.e.gpunode("gpu-1")["status"]["transition"]["phase"] == "Synced", "gpu-1", 3600
        )
        told = await ask(scene.e.cluster, "why", "gsp/pool-b")
        data = await ask(scene.e.cluster, "why", "gsp/pool-b", "-o", "json")
    assert (done.data["status"], done.data["worst"]) == ("Synced", None)
    assert told.out.startswith("pool-b  MIG 2x3g.40gb  Blocked")
    assert "\ngpu-2  pool-b  Blocked: AlreadyCordoned" in told.out
    assert (data.data["name"], data.data["worst"]["node"]) == ("pool-b", "gpu-2")


@virtually
async def test_waiting_and_work_are_told_apart_as_in_plan() -> None:
    async with operated(2, serving=FULL) as scene:
        await scene.serve(MIXED, rollout=at_once(2))
        opens = (virtual_now() + timedelta(hours=3)).astimezone(UTC)
        windows = [{"schedule": f"{opens.minute} {opens.hour} * * *", "duration": "2h"}]
        scene.apply(FULL, rollout=at_once(2, windows=windows))
        await scene.reason("gpu-1", "WindowClosed")
        told = [await ask(scene.e.cluster, "why", name) for name in ("gpu-1", "gpu-2")]
        data = (await ask(scene.e.cluster, "why", "gpu-2", "-o", "json")).data["course"]
        planned = (await ask(scene.e.cluster, "plan", "-o", "json")).data["verdict"]
        scene.apply(FULL, rollout=at_once(2, windows=windows, approval="Manual"))
        await scene.reason("gpu-1", "ApprovalNeeded")
        held = await ask(scene.e.cluster, "why", "gpu-1", "-o", "json")
    texts = [" ".join(one.out.split()) for one in told]
    waits = (
        r": the first change may start in (3h|2h\d\dm), then this takes about \d+[ms].*, judging by past changes and"
    )
    assert all(re.search(rf"Expected( with the 1 node before it)?{waits}", text) for text in texts), texts
    assert sum("with the 1 node before it" in text for text in texts) == 1
    assert timedelta(hours=2, minutes=58) < timedelta(seconds=data["secondsToStart"]) <= timedelta(hours=3)
    assert data["secondsToStart"] < data["secondsAtLeast"] <= data["secondsAtMost"] < data["secondsToStart"] + 1800
    assert data["secondsAtMost"] == pytest.approx(planned["secondsAtMost"], abs=4)
    assert set(held.data["course"].values()) == {None}


class Slow(PassingClient):
    async def call(self, request: ApiRequest) -> JSON:
        await asyncio.sleep(0.1)
        return await self.client.call(request)


@virtually
async def test_a_node_that_may_start_waits_for_no_minute_while_the_cluster_is_read() -> None:
    async with operated(1, serving=FULL) as scene:
        await scene.serve(MIXED)
        scene.apply({"mode": "MIG", "mig": {"layouts": [{"profiles": {"1g.10gb": 7}}]}})
        await scene.reason("gpu-1", "ConfigPropagating")
        told = await ask(scene.e.cluster, "why", "gpu-1", client=Slow(scene.e.cluster.client(ME)))
    assert "Expected: this takes about" in told.out


@virtually
async def test_a_node_that_pods_block_says_when_they_are_looked_at_next() -> None:
    async with operated(1, serving=FULL) as scene:
        scene.e.cluster.add(PODS, gpu_pod("alone", "gpu-1"))
        scene.apply(MIXED, drain={"strandedPods": "Allow"})
        await scene.reason("gpu-1", "Unmanaged")
        told = await ask(scene.e.cluster, "why", "gpu-1", "-o", "json")
        scene.e.cluster.delete(PODS, "alone", "default")
        await scene.ready()
        done = await ask(scene.e.cluster, "why", "gpu-1", "-o", "json")
    (note,) = told.data["notes"]
    assert not lacks(note, "1m", "kubectl gpusharing retry gpu-1")
    assert done.data["notes"] == []


def test_where_more_nodes_are_blocked_than_a_minute_has_looks_for_it_takes_longer() -> None:
    node = read_node(gpunode("gpu-1", "Blocked", "Unmanaged", blockers=["Unmanaged: Pod team-a/notebook"]))
    assert "again within 1m," in _next_look(node, 60 * 5.0)[0]
    assert "again within 10m," in _next_look(node, 600 * 5.0)[0]


def test_a_reason_that_an_operator_of_another_version_gave_has_no_remedy() -> None:
    known, unknown = (NodeAnswer(NodeStatus(reason=word)).remedy for word in ("PDB", "pdb"))
    assert known.startswith("Get the unready pods running again")
    assert unknown == ""
