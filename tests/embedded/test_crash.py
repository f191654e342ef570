"""kill -9 at every single write of the golden scenarios: another operator reaches the same end.
`guard.py` watches every run as well: no pod is evicted twice, no budget exceeded, no point of no return passed beside the rules."""

import dataclasses
from collections.abc import Iterable

import pytest
from _pytest.mark import ParameterSet
from hack.sim.mortal import MortalClient, When
from tests.embedded.crashes import (
    CrashRun,
    Happening,
    Writes,
    at_write,
    dies,
    dies_and_is_back,
    differences,
    play,
    play_all,
)
from tests.embedded.goldens import GOLDEN, Golden
from tests.embedded.scene import Scene

MOST_EXTRA = 2
"""Writes that a restart may cost beyond those of a run without one (issue point 10)."""
MOST_TOLD = 8
"""Mirrors, status and Events: a drain that lasts some seconds longer has more to tell. Nothing is decided from them."""
PARTS = 3
"""One test kills at every third write of a scenario: workers side by side share a long one."""
IN_CI = ("after", 2)
"""The one of KILLS that `.ci/run` takes of `make test-long`: a third of the writes, and the harder way, where their answers are lost."""

KILLS: list[tuple[When, int]] = [(when, part) for when in ("before", "after") for part in range(1, PARTS + 1)]
"""Before or after which write the operator is killed, and at which third of all writes."""

WIDEST = ("mig-manager fails and the node goes back to what it was", "pods that leave in every manner")
"""The two scenarios that `make test` kills after every write. Of all pairs this one runs most of the operator's code, 88 % of the lines that all scenarios together reach: MIG nodes pass the point of no return and are rolled back while both ConfigMaps change, and pods leave by eviction, by themselves and by force. `make test-long` plays the other kills, and CI a sixth of those of the other scenarios."""


def kills(names: Iterable[str], *short: str) -> list[ParameterSet]:
    """Return a parameter for each scenario and kill; all are marked `long` but those after a write of `short` ones."""
    return [
        pytest.param(
            name,
            when,
            part,
            id=f"{name}-{when}-{part}",
            marks=[
                *([] if name in short and when == "after" else [pytest.mark.long]),
                *([] if (when, part) == IN_CI else [pytest.mark.thorough]),
            ],
        )
        for name in names
        for when, part in KILLS
    ]


def complaints(base: CrashRun, run: CrashRun | str) -> list[str]:
    if isinstance(run, str):
        return [run]
    found = list(differences(base.end, run.end))
    if run.operators != 2:
        found.append(f"{run.operators} operators ran")
    if run.acting > base.acting + MOST_EXTRA:
        found.append(f"{run.acting} writes that act instead of {base.acting}")
    if run.writes.total() > base.writes.total() + MOST_TOLD:
        found.append(f"{run.writes.total()} writes instead of {base.writes.total()}")
    return found


def all_complaints(name: str, writes: Writes, death: Happening) -> str:
    """What is wrong with the runs whose operators die at these writes; every one of them was played."""
    base, runs = play_all(GOLDEN[name], writes, death)
    assert base.operators == 1
    assert base.sent >= 15, "a scenario worth killing"
    assert list(runs) == list(range(writes.first, base.sent + 1, writes.step))
    return "\n".join(
        f"killed {writes.when} write {write}: {line}" for write, run in runs.items() for line in complaints(base, run)
    )


@pytest.mark.parametrize(("name", "when", "part"), kills(GOLDEN, *WIDEST))
def test_an_operator_killed_at_any_write_is_replaced_by_one_that_reaches_the_same_end(
    name: str, when: When, part: int
) -> None:
    found = all_complaints(name, Writes(when, part, PARTS), dies)
    assert not found, found


@pytest.mark.parametrize(
    ("name", "when", "part"),
    kills(
        [
            "a policy on an idle node",
            "from MPS to MIG in two steps",
            "a drain that is given up at its time-out",
            "drift that is put right",
        ],
        "a policy on an idle node",
    ),
)
def test_an_operator_that_is_back_at_once_goes_on_where_it_was(name: str, when: When, part: int) -> None:
    found = all_complaints(name, Writes(when, part, PARTS), dies_and_is_back)
    assert not found, found


@pytest.mark.parametrize("name", ["a policy on an idle node", "another layout in the middle"])
def test_operators_that_live_for_two_writes_only_get_there_all_the_same(name: str) -> None:
    def prepare(scene: Scene, client: MortalClient) -> None:
        client.die_at(2, "after")

    base, run = play(GOLDEN[name]), play(GOLDEN[name], prepare)
    assert run.operators > base.acting / 2
    assert not list(differences(base.end, run.end))


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
