"""The steps of the demo, in their order. Every step checks what it shows. Terms: docs/design/glossary.md#fence"""

import asyncio
import json
from collections import Counter
from contextlib import nullcontext

from gpusharing.api.names import RESOURCE_GPU, ConditionType
from gpusharing.kube.client import GPUNODES, JSON, NODES, PDBS, PODS
from gpusharing.kube.lists import list_of
from hack.demo import fleet
from hack.demo.columns import FLEET, POOLS, events_about, find, places
from hack.demo.demo import Demo, holds_gpu_of, is_cordoned, is_ready
from hack.demo.record import Recorder
from hack.demo.screen import DemoFailed
from hack.demo.stage import ApplyRefused, Stage

MIG_20, MIG_40, MIG_10 = (f"nvidia.com/mig-{name}" for name in ("1g.20gb", "3g.40gb", "1g.10gb"))
POOL_B = ("gpu-b-1", "gpu-b-2", "gpu-b-3")
NAMES = tuple(f"pool-{pool}" for pool, *_ in fleet.POOLS)


async def play(demo: Demo) -> None:
    """Play the story, and record pool-b if `demo.record_to` is set. Raises DemoFailed at the first check that fails."""
    await fleet_appears(demo)
    await pools_are_declared(demo)
    await teams_move_in(demo)
    await wrong_policies_are_refused(demo)
    before = len(await demo.stage.writes())
    recorder = Recorder(demo.stage)
    await plan_comes_first(demo)

    async def held() -> bool:
        return all([(await demo.place(node)).get("phase") == "Pending" for node in POOL_B])

    async def counted() -> bool:  # the operator counts pods without a node now and then
        return bool((await demo.policy("pool-b"))[1].get("summary", {}).get("pendingPods") == 0)

    await demo.until("the nodes of pool-b to show the pause", held)
    if demo.record_to is not None:
        await demo.until("pool-b to report that no pod is pending", counted, 30.0)
    async with recorder.following("pool-b") if demo.record_to else nullcontext():
        await budget_blocks(demo, recorder)
        await operator_dies(demo)
        await owner_gives_way(demo)
        await look_back(demo, before)
        if demo.record_to is not None:
            await demo.until("pool-b to report that no pod is pending", counted, 30.0)
    if demo.record_to:
        await asyncio.to_thread(recorder.write, demo.record_to)


async def fleet_appears(demo: Demo, seconds: float = 15.0) -> None:
    """Print the table of the nodes, once the SIMULATED device plugins have registered the fleet's GPUs."""
    screen = demo.screen

    async def registered() -> bool:
        nodes = await list_of(demo.stage.client, NODES)
        return sum(int(node["status"]["allocatable"][RESOURCE_GPU]) for node in nodes) == fleet.GPUS

    what = f"the nodes to serve {fleet.GPUS} whole GPUs"
    await demo.until(what, registered, seconds)
    screen.heading(f"1. The fleet: {fleet.GPUS} GPUs, none shared")
    await demo.show(FLEET)
    # The Nodes were created with their GPUs. A SIMULATED plugin that starts later registers them anew, after a moment without.
    await demo.until(what, registered, seconds)
    screen.check(f"{len(fleet.nodes())} nodes serve {fleet.GPUS} whole GPUs", await registered())


async def pools_are_declared(demo: Demo) -> None:
    """Start the operator, apply one policy per pool, and wait while the operator changes the idle nodes."""
    screen = demo.screen
    screen.heading("2. One GPUSharingPolicy per pool says what its GPUs are for")
    await demo.stage.start_operator()
    for pool, *_ in fleet.POOLS:
        await demo.apply(fleet.example(pool), f"kubectl apply -f examples/pool-{pool}.yaml")

    async def half_way() -> bool:
        done, total = await demo.nodes_done("pool-a")
        return 0 < done < total

    await demo.until("pool-a half way", half_way)
    screen.say(
        "The operator changes one idle node per pool at a time with mig-manager and the device plugin, and counts "
        "a node only after the hardware has proven the change:"
    )
    await demo.show(POOLS)
    await demo.ready(*NAMES)
    await demo.show(POOLS)
    for pool, *_, count in fleet.POOLS:
        done, total = await demo.nodes_done(f"pool-{pool}")
        screen.check(f"pool-{pool}: {done} of {total} nodes are verified and schedulable", done == total == count)
    expected = {"a": {MIG_20: 128}, "b": {MIG_40: 48}, "c": {RESOURCE_GPU: 16}, "d": {RESOURCE_GPU: 32}}
    for pool, resources in expected.items():
        (name, number), served = next(iter(resources.items())), await demo.served(pool)
        screen.check(f"pool-{pool} serves {number} {name} and nothing else", served == resources)


async def teams_move_in(demo: Demo) -> None:
    screen = demo.screen
    screen.heading("3. The teams move in")
    await demo.stage.client.create(PDBS, fleet.BUDGET, namespace="team-b")
    for workload in fleet.WORKLOADS:
        await demo.stage.deploy(workload)
    for workload in (*fleet.WORKLOADS, fleet.RANKER):
        if workload is fleet.RANKER:  # last, so that its node is the fullest
            await demo.stage.deploy(workload)
        await demo.running(workload.name, workload.replicas)
    screen.say(
        f"team-b's ranker has its disk in zone-1, where only {fleet.RANKER_NODE} is, and a PodDisruptionBudget: "
        "2 of its 3 pods must be ready at any time."
    )
    used = {"pool-a": "97/128", "pool-b": "15/48", "pool-c": "16/16", "pool-d": "21/32"}

    for name, text in used.items():
        await demo.used(name, text)
    await demo.show(POOLS)
    pods = await demo.pods("ranker")
    where = {pod["spec"]["nodeName"] for pod in pods}
    screen.check(f"the 3 ranker pods run on {fleet.RANKER_NODE}", where == {fleet.RANKER_NODE})


async def wrong_policies_are_refused(demo: Demo) -> None:
    """Show one policy that the API server refuses, and one that the operator refuses because of the card."""
    screen = demo.screen
    screen.heading("4. A policy that cannot work is refused, and no node is touched")
    bad = fleet.example("d")
    bad["spec"]["timeSlicing"]["replicas"] = 1
    screen.command("kubectl apply -f pool-d.yaml     # with timeSlicing.replicas: 1")
    refusal = await _refusal(demo.stage, bad)
    screen.output(refusal)
    screen.check("the API server refuses it, and the answer names the field", "spec.timeSlicing.replicas" in refusal)

    before, pods = len(await demo.stage.writes()), {p["metadata"]["uid"] for p in await demo.pods("llm-7b")}
    screen.say("An 80 GB H100 has seven compute slices. Why not seven instances of 1g.20gb, as some articles suggest?")
    await demo.apply(fleet.with_layout("a", {"1g.20gb": 7}), "kubectl apply -f pool-a.yaml     # with 1g.20gb: 7")

    async def answered() -> bool:
        return bool(await demo.condition("pool-a", ConditionType.ACCEPTED))

    await demo.until("an answer about pool-a", answered)
    condition = await demo.condition("pool-a", ConditionType.ACCEPTED)
    screen.output(f"Accepted: {condition['status']} ({condition['reason']})\n{condition['message']}")
    screen.check("the policy is not accepted", condition["status"] == "False")
    screen.check("the answer names a layout that fits the card", "4x1g.20gb" in condition["message"])
    await demo.apply(fleet.example("a"), "kubectl apply -f examples/pool-a.yaml")
    await demo.ready("pool-a")
    screen.check("no Node was written to meanwhile", await demo.writes("nodes", before) == [])
    after = {pod["metadata"]["uid"] for pod in await demo.pods("llm-7b")}
    screen.check("team-a's 97 pods are the same as before", after == pods)


async def _refusal(stage: Stage, manifest: JSON) -> str:
    try:
        answer = await stage.apply(manifest)
    except ApplyRefused as error:
        return str(error)
    raise DemoFailed(f"the API server should have refused the policy, but answered: {answer}")


async def plan_comes_first(demo: Demo) -> None:
    screen = demo.screen
    screen.heading("5. The plan before the change")
    screen.say(
        "team-b wants small instances too: one half of each card stays 3g.40gb, the other becomes four 1g.10gb. "
        "With rollout.paused the operator only says what it would do:"
    )
    paused = fleet.with_layout("b", fleet.TARGET, paused=True)
    await demo.apply(paused, "kubectl apply -f pool-b.yaml     # 3g.40gb: 1, 1g.10gb: 4, paused: true")
    before = len(await demo.stage.writes())

    async def planned() -> bool:
        return find((await demo.policy("pool-b"))[1], ".plan") is not None

    await demo.until("a plan for pool-b", planned)
    plan = (await demo.policy("pool-b"))[1]["plan"]
    screen.say("status.plan:")
    shown = {
        key: ", ".join(it) if isinstance(it, list) else json.dumps(it).replace('"', "") for key, it in plan.items()
    }
    screen.output("\n".join(f"{key}: {text}" for key, text in shown.items()))
    screen.check("the plan names the three nodes", plan["nodes"] == list(POOL_B))
    screen.check(
        "its class is GPUPods: pods with a GPU must leave, and no GPU is reset", plan["disruption"] == "GPUPods"
    )
    screen.check("15 pods on these nodes hold a GPU", plan["pods"] == 15)
    screen.check("the pool has 48 instances of 3g.40gb now", plan["capacityBefore"] == {MIG_40: 48})
    screen.check("it will have 24 of 3g.40gb and 96 of 1g.10gb", plan["capacityAfter"] == {MIG_40: 24, MIG_10: 96})
    screen.check("no Node has been written to yet", await demo.writes("nodes", before) == [])


async def budget_blocks(demo: Demo, recorder: Recorder) -> None:
    screen = demo.screen
    screen.heading("6. The change begins; a PodDisruptionBudget stops it")
    change = fleet.with_layout("b", fleet.TARGET, paused=False)
    await demo.apply(change, "kubectl apply -f pool-b.yaml     # paused: false")

    async def blocked() -> bool:
        place = await demo.place(fleet.RANKER_NODE)
        return place.get("phase") == "Draining" and bool(place.get("culprit"))

    await demo.until("the drain of gpu-b-1 is blocked", blocked, 30.0)

    async def alone() -> bool:
        place = await demo.place(fleet.RANKER_NODE)
        pods = [pod for pod in await list_of(demo.stage.client, PODS) if holds_gpu_of(pod, fleet.RANKER_NODE)]
        observed = find(await demo.stage.client.get(GPUNODES, fleet.RANKER_NODE), ".status.observed.pods")
        return len(pods) == 2 and observed == 2 and bool(place.get("reason") == "PDBInUse")

    async def up_to_date() -> bool:
        summary = (await demo.policy("pool-b"))[1].get("summary", {})
        words = ("2 GPU pods left to go", "2 of 3 pods are healthy")
        return summary.get("pendingPods") == 1 and all(word in summary.get("message", "") for word in words)

    await demo.until("only the ranker's two pods left on gpu-b-1", alone)
    await demo.used("pool-b", "14/96")
    await demo.show(POOLS)
    await demo.show(places(*POOL_B))
    if demo.record_to is not None:
        await demo.until("pool-b to report what blocks it", up_to_date)
        await recorder.keep_fleet()
    place = await demo.place(fleet.RANKER_NODE)
    screen.output("\n".join(place["blockers"]))
    screen.check("the message names the budget and a pod", "PDBInUse team-b/ranker: Pod" in place["blockers"][0])
    screen.check(f"CULPRIT names a pod of the ranker: {place['culprit']}", "team-b/ranker-" in place["culprit"])
    done, total = await demo.nodes_done("pool-b")
    screen.check(f"the other nodes do not wait: {done} of {total} are done", (done, total) == (2, 3))
    ranker = await demo.pods("ranker")
    ready = sum(is_ready(pod) for pod in ranker)
    screen.check("2 of the 3 ranker pods are still ready, as their budget demands", ready == 2)


async def operator_dies(demo: Demo) -> None:
    screen = demo.screen
    screen.heading("7. The operator is killed in the middle of the drain")
    fence = await demo.fence(fleet.RANKER_NODE)
    screen.check("the Node carries the record of the change, in the stage fenced", fence.get("stage") == "fenced")
    screen.command("kill -9 <operator>")
    screen.output(await demo.stage.kill_operator())
    before, holder = len(await demo.stage.writes()), await demo.leader()
    await asyncio.sleep(0.5)
    screen.check("without an operator, nothing is written", len(await demo.stage.writes()) == before)
    node = await demo.stage.client.get(NODES, fleet.RANKER_NODE)
    screen.check(f"{fleet.RANKER_NODE} stays cordoned meanwhile", is_cordoned(node))
    await demo.stage.start_operator()

    async def leads() -> bool:
        return await demo.leader() not in ("", holder)

    await demo.until("the new operator to lead", leads)
    await demo.show(places(*POOL_B))
    again = await demo.fence(fleet.RANKER_NODE)
    same = (again.get("op"), again.get("deadline")) == (fence["op"], fence["deadline"])
    screen.check("a new process continues the same change with the same deadline", same)


async def owner_gives_way(demo: Demo) -> None:
    screen = demo.screen
    screen.heading("8. The owner of the budget gives way")
    screen.command('kubectl -n team-b patch pdb ranker --type merge -p \'{"spec": {"minAvailable": 0}}\'')
    await demo.stage.client.patch(PDBS, "ranker", {"spec": {"minAvailable": 0}}, namespace="team-b")
    await demo.ready("pool-b", seconds=60.0)
    await demo.running("ranker", 3)
    where = {pod["spec"]["nodeName"] for pod in await demo.pods("ranker")}
    screen.check("the ranker is back on its node and runs in new instances", where == {fleet.RANKER_NODE})
    served = await demo.served("b")
    screen.check("pool-b serves 24 instances of 3g.40gb and 96 of 1g.10gb", served == {MIG_40: 24, MIG_10: 96})


async def look_back(demo: Demo, since: int) -> None:
    screen = demo.screen
    screen.heading("9. Looking back")

    await demo.used("pool-b", "15/120")
    await demo.show(POOLS)
    await demo.show(events_about("pool-b"))
    rows = [await demo.condition(name, ConditionType.READY) for name in NAMES]
    screen.check("all four pools are Ready", all(row["status"] == "True" for row in rows))
    nodes = await list_of(demo.stage.client, NODES)
    left = [node["metadata"]["name"] for node in nodes if is_cordoned(node)]
    fenced = [node["metadata"]["name"] for node in nodes if await demo.fence(node["metadata"]["name"])]
    screen.check("no node is left cordoned or fenced", not left and not fenced)
    evicted = Counter(write.name for write in await demo.writes("pods/eviction", since))
    screen.check(
        f"{len(evicted)} pods were evicted, and none of them twice, in spite of the kill",
        bool(evicted) and max(evicted.values()) == 1,
    )
    written = (await demo.stage.writes())[since:]
    screen.say("What the operator wrote for the three nodes of pool-b, not counting its Lease:")
    kinds = Counter(write.resource for write in written)
    screen.output("\n".join(f"{number:4} {kind}" for kind, number in kinds.most_common()))
    by_node = Counter(write.name for write in written if write.resource == "nodes")
    screen.check(
        "each Node of pool-b was written to 3 times (fence, point of no return, release), and no other Node",
        by_node == dict.fromkeys(POOL_B, 3),
    )
