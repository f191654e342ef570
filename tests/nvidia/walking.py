"""A pool on NVIDIA's programs goes from mode to mode while pods compute, and what a user must see at each stop."""

from collections.abc import Sequence
from functools import partial

from hack.nvidia.loop import POLICY, NvidiaLoop, Stop, is_cordoned


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
            loop.wait(partial(_is_synced, loop, node), f"the GPUNode of {node} to be Synced, {stop.text}")
        all_nodes = len(loop.nodes)
        assert loop.api.get(POLICY)["status"]["summary"]["nodes"] == f"{all_nodes}/{all_nodes}", stop.text
        assert sorted(loop.evicted()[-len(working) :] if working else []) == sorted(working), stop.text
        offered = min(stop.served)


def _is_synced(loop: NvidiaLoop, node: str) -> bool:
    return loop.transition(node).get("phase") == "Synced"
