"""The shipped agent with fewer rights than the chart gives it, beside NVIDIA's programs: no change in the blind."""

import tempfile
from pathlib import Path

import pytest
from hack.nvidia.loop import FULL, HALVES, is_cordoned, mig_state, running_loop

pytestmark = [pytest.mark.nvidia, pytest.mark.cluster]


def test_an_agent_that_is_not_privileged_keeps_its_node_out_of_mig(nvidia_programs: None) -> None:
    powerless = ("--set", "agent.privileged=false")
    with (
        tempfile.TemporaryDirectory(prefix="gpusharing-") as folder,
        running_loop(Path(folder), "one", chart=powerless) as loop,
    ):
        loop.bring(**FULL)
        before = mig_state(loop, "one")
        loop.apply(**HALVES)
        loop.wait(lambda: loop.transition("one").get("reason") == "AgentLacksRights", "the lack to be told")
        assert not is_cordoned(loop, "one")
        assert (loop.profiles("one"), mig_state(loop, "one")) == ([[], []], before)
        assert loop.served("one") == {"nvidia.com/gpu": 2}
