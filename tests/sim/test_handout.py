"""Which SIMULATED device a pod is given, and what it takes of it (hack/sim/handout.py, agentpages.py)."""

import urllib.error
import urllib.request
from types import SimpleNamespace
from typing import Any

import pytest
from hack.sim.agentpages import STEP, AgentPages, Lapse
from hack.sim.gpu import SimulatedGPUs
from hack.sim.handout import Handout, advertised_ids
from hack.sim.nodeobject import NodeObject
from hack.sim.pods import ANNOTATION_MEMORY, PodBook
from tests.fakes.gpus import FixedPods, OneNode

from gpusharing.agent.loop import AgentLoop

H100 = "NVIDIA H100 80GB HBM3"
SHARED = "nvidia.com/gpu.shared"


def pod(name: str, resource: str = SHARED, memory: str = "", phase: str = "Running") -> dict[str, Any]:
    annotations = {ANNOTATION_MEMORY: memory} if memory else {}
    limits = {"limits": {resource: "1"}}
    return {
        "metadata": {"name": name, "namespace": "team", "uid": f"uid-{name}", "annotations": annotations},
        "spec": {"nodeName": "gpu-01", "containers": [{"name": "main", "resources": limits}]},
        "status": {"phase": phase},
    }


def kubelet(gpus: SimulatedGPUs, allocatable: dict[str, str]) -> tuple[PodBook, Handout]:
    book, raw = PodBook(), {"metadata": {"name": "gpu-01"}, "status": {"allocatable": allocatable}}
    return book, Handout(book, NodeObject(SimpleNamespace(), raw, lambda *_: None), gpus)  # type: ignore[arg-type]  # the cluster is asked for writes only


async def test_replicas_of_different_gpus_go_first_and_a_pod_keeps_what_it_was_given() -> None:
    gpus = SimulatedGPUs("gpu-01", [H100, H100])
    first, second = (gpu.uuid for gpu in gpus.look())
    book, given = kubelet(gpus, {SHARED: "4", "cpu": "8"})
    for name in ("a", "b", "c"):
        book.take(pod(name), gone=False)
    found = await given.read()
    assert [held.devices for held in found.by_pod] == [(f"{first}::0",), (f"{second}::0",), (f"{first}::1",)]
    assert found.allocatable is not None
    assert len(found.allocatable) == 4
    assert (found.allocated, found.pods) == ({SHARED: 3}, 3)
    book.take(pod("a"), gone=True)
    book.take(pod("d"), gone=False)
    held = {one.pod: one.devices[0] for one in (await given.read()).by_pod}
    assert held == {"b": f"{second}::0", "c": f"{first}::1", "d": f"{first}::0"}


def test_a_lost_gpu_has_no_id_and_the_healthy_one_is_not_shared_for_it() -> None:
    gpus = SimulatedGPUs("gpu-01", [H100, H100])
    healthy = gpus.look()[1].uuid
    gpus.lose(0)
    assert advertised_ids(gpus.look(), {"nvidia.com/gpu": 2}) == {"nvidia.com/gpu": [healthy]}


async def test_a_pod_that_comes_while_the_plugin_offers_nothing_is_given_its_device_afterwards() -> None:
    gpus, allocatable = SimulatedGPUs("gpu-01", [H100]), {SHARED: "0"}
    book, given = kubelet(gpus, allocatable)
    book.take(pod("early"), gone=False)
    assert [held.devices for held in (await given.read()).by_pod] == [()]
    allocatable[SHARED] = "2"
    assert [held.devices for held in (await given.read()).by_pod] == [(f"{gpus.look()[0].uuid}::0",)]


async def test_a_pod_takes_the_memory_that_its_annotation_says_as_long_as_it_runs() -> None:
    gpus = SimulatedGPUs("gpu-01", [H100])
    book, given = kubelet(gpus, {SHARED: "2"})
    book.take(pod("greedy", memory="50"), gone=False)
    book.take(pod("modest"), gone=False)
    await given.read()
    use = gpus.read().use
    assert use is not None
    assert [(one.pod and one.pod.name, one.memory) for one in use.processes] == [("greedy", 50 * 1024**3)]
    book.take(pod("greedy", phase="Succeeded"), gone=False)
    await given.read()
    assert gpus.look()[0].processes == ()
    assert gpus.uses == {}


def test_what_is_offered_goes_by_the_names_of_the_plugin() -> None:
    gpus = SimulatedGPUs("gpu-01", [H100, H100])
    gpus.set_mig_mode(0, on=True)
    for _ in range(2):
        gpus.create(0, "3g.40gb")
    seen = gpus.look()
    halves, whole = [instance.uuid for instance in seen[0].instances], seen[1].uuid
    mixed = {"nvidia.com/gpu": 1, "nvidia.com/mig-3g.40gb": 2, "nvidia.com/mig-1g.10gb": 0}
    assert advertised_ids(seen, mixed) == {"nvidia.com/gpu": [whole], "nvidia.com/mig-3g.40gb": halves}
    assert advertised_ids(seen[:1], {"nvidia.com/gpu": 2}) == {"nvidia.com/gpu": halves}, "strategy single"
    assert advertised_ids(seen, {"nvidia.com/mig-1g.10gb": 7}) == {}, "of a layout that is gone"


def test_the_page_of_an_agent_is_there_as_long_as_it_runs() -> None:
    agent = AgentLoop("gpu-01", OneNode().client, SimulatedGPUs("gpu-01", [H100]), FixedPods())
    pages = AgentPages(0)

    def asked(path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{pages.port}/{path}") as answer:
            return str(answer.read().decode())

    try:
        pages.show("gpu-01", agent)
        assert "gpusharing_agent_ready 0.0" in asked("gpu-01/metrics")
        asked("gpu-01/lost")
        with pytest.raises(urllib.error.HTTPError, match="503") as lost:
            asked("gpu-01/metrics")
        lost.value.close()
        asked("gpu-01/found")
        assert "gpusharing_agent_ready 0.0" in asked("gpu-01/metrics")
        pages.hide("gpu-01")
        for path in ("gpu-01/metrics", "gpu-02/metrics", "metrics"):
            with pytest.raises(urllib.error.HTTPError, match="404") as refused:
                asked(path)
            refused.value.close()
    finally:
        pages.close()


def test_a_step_waits_for_every_agent_and_for_whoever_looks() -> None:
    lapse = Lapse()
    begin = lapse.at
    one, other = lapse.join("one"), lapse.join("other")
    assert (one(), one()) == (begin, begin), "a turn alone is not enough, however often"
    lapse.record_scrape("one")
    lapse.record_scrape("other")
    assert lapse.at == begin, "one agent has not turned"
    assert other() == begin + STEP
    lapse.record_scrape("one")
    lapse.record_scrape("other")
    assert lapse.at == begin + STEP


def test_an_agent_that_has_ended_is_not_waited_for() -> None:
    lapse = Lapse()
    begin = lapse.at
    one, _ = lapse.join("one"), lapse.join("other")
    one()
    lapse.record_scrape("one")
    lapse.leave("other")
    assert lapse.at == begin + STEP
    lapse.leave("one")
    lapse.record_scrape("one")
    assert lapse.at == begin + STEP, "with nobody there it stands"


def test_it_never_tells_a_time_to_come() -> None:
    lapse = Lapse()
    clock = lapse.join("one")
    begin = clock()
    for _ in range(120):
        clock()
        lapse.record_scrape("one")
    assert lapse.at >= begin + 100 * STEP
    assert lapse.at < begin + 6 * 3600
