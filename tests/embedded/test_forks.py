"""The runs of forks.py are those that are played from the beginning."""

import dataclasses

import pytest
from hack.sim.mortal import When
from tests.embedded.crashes import CrashRun, at_write, dies, play
from tests.embedded.forks import Writes, play_all
from tests.embedded.goldens import GOLDEN, Golden
from tests.embedded.scene import Scene

EVERY = 8
PODFUL = GOLDEN["a policy on nodes with pods that may and pods that may not be evicted"]


def facts(run: CrashRun | str) -> tuple[object, ...]:
    """What a run comes to and what was done in it.

    Tasks that end with a killed operator do so in an order by chance: two evictions that are sent at the same time may change places, and people are told once more or less.
    """
    assert isinstance(run, CrashRun), run
    acting = {kind: count for kind, count in run.writes.items() if not kind.startswith("tell ")}
    return run.end, run.operators, sorted(run.evicted), acting


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_forked_where_its_operator_dies_is_the_run_played_from_the_beginning(when: When) -> None:
    base, runs = play_all(PODFUL, Writes(when, EVERY, EVERY), dies)
    assert facts(base) == facts(play(PODFUL))
    assert len(runs) > 5
    for write, run in runs.items():
        replayed = play(PODFUL, at_write(write, when, dies))
        assert facts(run) == facts(replayed), f"killed {when} write {write}"


def test_a_run_that_fails_in_a_child_says_so_and_the_parent_goes_on() -> None:
    async def script(scene: Scene) -> None:
        await PODFUL.script(scene)
        assert scene.e.operators == 1, "this stage bears no death"

    golden: Golden = dataclasses.replace(PODFUL, script=script)
    base, runs = play_all(golden, Writes("after", 20, 20), dies)
    assert base.operators == 1
    assert len(runs) > 1
    assert list(runs) == list(range(20, base.sent + 1, 20))
    assert all(isinstance(run, str) and "this stage bears no death" in run for run in runs.values())
