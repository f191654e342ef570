"""Every change on real parts: the shipped operator and agent, NVIDIA's mig-manager, device plugin, GFD, MPS daemon.
SIMULATED: the GPUs, the kubelets (kwok and the registration stub) and Node Feature Discovery."""

from collections.abc import Iterator, Sequence

import pytest
from hack.nvidia.loop import FULL, HALVES, POLICY, SINGLE, WALK, NvidiaLoop, Stop, is_cordoned, mig_state
from tests.nvidia.conftest import short_loop
from tests.nvidia.mignode import create_pod, undeletable

from gpusharing.api import names

pytestmark = [pytest.mark.nvidia, pytest.mark.cluster]


@pytest.fixture(scope="module")
def loop(nvidia_programs: None) -> Iterator[NvidiaLoop]:
    with short_loop("one", "two") as made:
        yield made


def walk_through(loop: NvidiaLoop, stops: Sequence[Stop]) -> None:
    """Bring the pool to each stop with a pod on every node, and check policy, GPUNodes, Nodes and GPUs there."""
    offered = ""
    for stop in stops:
        working = [loop.run_pod(node, offered) for node in loop.nodes if offered]
        loop.bring(**stop.spec)
        for node in loop.nodes:
            assert loop.served(node) == stop.served, stop.text
            assert not is_cordoned(loop, node), stop.text
            assert loop.nodes[node].simulator.show()["processes"] == [], stop.text
            synced = lambda node=node: loop.transition(node).get("phase") == "Synced"  # noqa: E731 - a condition
            loop.wait(synced, f"the GPUNode of {node} to be Synced, {stop.text}")
        all_nodes = len(loop.nodes)
        assert loop.api.get(POLICY)["status"]["summary"]["nodes"] == f"{all_nodes}/{all_nodes}", stop.text
        assert sorted(loop.evicted()[-len(working) :] if working else []) == sorted(working), stop.text
        offered = min(stop.served)


def reset(loop: NvidiaLoop) -> None:
    """Delete a policy that says Reset, and check that the nodes serve whole GPUs without our labels."""
    loop.bring(**HALVES, deletionPolicy="Reset")
    loop.wait(lambda: bool(loop.api.get(POLICY)["metadata"].get("finalizers")), "the finalizer")
    loop.api.delete(POLICY)
    loop.wait(lambda: not loop.api.list(POLICY.rpartition("/")[0]), "the policy to go")
    for node in loop.nodes:
        ours = {names.LABEL_POLICY, names.LABEL_MODE, names.LABEL_PLUGIN_CONFIG}
        assert not ours & loop.labels(node).keys()
        assert loop.profiles(node) == [[], []]
        loop.wait(lambda node=node: loop.served(node) == {"nvidia.com/gpu": 2}, f"{node} to serve whole GPUs")
        assert not is_cordoned(loop, node)


def test_an_agent_that_is_not_privileged_keeps_its_node_out_of_mig(nvidia_programs: None) -> None:
    with short_loop("one", chart=("--set", "agent.privileged=false")) as loop:
        loop.bring(**FULL)
        before = mig_state(loop, "one")
        loop.apply(**HALVES)
        loop.wait(lambda: loop.transition("one").get("reason") == "AgentLacksRights", "the lack to be told")
        assert not is_cordoned(loop, "one")
        assert (loop.profiles("one"), mig_state(loop, "one")) == ([[], []], before)
        assert loop.served("one") == {"nvidia.com/gpu": 2}


def test_each_change_is_proven_by_five_real_sources_after_a_drain(loop: NvidiaLoop) -> None:
    walk_through(loop, WALK)


def test_a_mig_manager_that_is_killed_in_the_middle_goes_on(loop: NvidiaLoop) -> None:
    loop.bring(**FULL)
    loop.nodes["one"].simulator.inject("nvmlDeviceCreateGpuInstance", "hang")  # so that it is in the middle
    loop.apply(**HALVES)
    loop.wait(lambda: mig_state(loop, "one") == "pending", "mig-manager to begin")
    loop.nodes["one"].kill("nvidia-mig-manager")
    loop.nodes["one"].simulator.clear_faults()
    loop.wait_ready()
    assert loop.profiles("one") == [["3g.40gb"] * 2] * 2


def test_a_failure_that_leaves_operands_paused_is_cured_by_a_restart(loop: NvidiaLoop) -> None:
    loop.bring(**HALVES)  # a full success before: then a failure of the same process forgets the operands
    before = len(loop.events("ActuatorRestarted"))
    loop.nodes["one"].simulator.inject("nvmlDeviceCreateGpuInstance", "UNKNOWN", count=1)
    loop.bring(**SINGLE)
    assert len(loop.events("ActuatorRestarted")) > before, "once, where the new one is up in time"
    assert loop.profiles("one") == [["1g.10gb"] * 7] * 2


def test_what_nvidias_mig_parted_says_of_a_gpu_that_fails_midway_is_shown_and_the_node_stays_fenced(
    loop: NvidiaLoop,
) -> None:
    loop.bring(**SINGLE)
    loop.nodes["two"].simulator.inject("nvmlDeviceCreateGpuInstance", "UNKNOWN", gpu=1)
    loop.apply(**HALVES)
    loop.wait(lambda: loop.transition("two").get("phase") == "Failed", "two to be given up")
    now = loop.transition("two")
    assert now["reason"] == "ActuatorFailed"
    assert "Error creating GPU instance for '3g.40gb': ERROR_UNKNOWN" in now["message"]
    assert "all orderings failed. The node stays cordoned" in now["message"], "mig-parted's own last line"
    assert is_cordoned(loop, "two")
    loop.wait(lambda: not is_cordoned(loop, "one"), "the other node to be done")
    loop.nodes["two"].simulator.clear_faults()
    loop.plane.kubectl("annotate", "node", "two", "--overwrite", "gpusharing.dev/retry=again")
    loop.wait_ready()
    assert loop.profiles("two") == [["3g.40gb"] * 2] * 2


def test_a_mig_manager_that_stays_pending_for_ever_is_cured_by_a_restart(loop: NvidiaLoop) -> None:
    before = len(loop.events("ActuatorRestarted"))
    with undeletable(loop.api, create_pod(loop.api, "one", "nvidia-operator-validator")):
        loop.bring(**SINGLE)
    assert len(loop.events("ActuatorRestarted")) > before, "once, where the new one is up in time"
    assert loop.profiles("one") == [["1g.10gb"] * 7] * 2


def test_a_policy_that_is_deleted_with_reset_leaves_whole_gpus_that_are_served_without_our_labels(
    loop: NvidiaLoop,
) -> None:
    """The last one of the file: its policy is gone then. NVIDIA's device plugin goes by ClusterPolicy's default."""
    reset(loop)
