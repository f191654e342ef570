"""A golden scenario with something that happens at one write, for every write: the way there is played only once.
Until then each of these runs is the run in which nothing happens. So that one is played, the process is forked at each write, and it happens in the child, which plays on to the end and hands its Run over; the parent waits for it and goes on undisturbed. `test_crash.py` compares with runs that were played from the beginning."""

import asyncio
import gc
import os
import pickle
import traceback
import warnings
from dataclasses import dataclass, field
from typing import BinaryIO, NoReturn

from hack.sim.mortal import Disturbance, MortalClient, When
from tests.embedded.crashes import CrashRun, Happening, play
from tests.embedded.goldens import Golden
from tests.embedded.scene import Scene
from tests.fakes.virtualtime import VirtualLoop

from gpusharing.kube.client import Resource


@dataclass(frozen=True)
class Writes:
    """The writes of the first operator at which it happens: every `step`-th from `first` on, counted from 1."""

    when: When
    first: int = 1
    step: int = 1


@dataclass
class _Forks:
    """What the process knows of its children, and a child of its parent."""

    runs: dict[int, CrashRun | str] = field(default_factory=dict)
    """By the write at which it happened; a text: what the run failed of."""
    parent: BinaryIO | None = None
    """Takes the result of the child that this process is."""

    def fork(self, write: int) -> bool:
        """Whether this process goes on as the child, in which it happens at that write."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.finish_threads()  # a child has none but the one that forks
        reader, writer = os.pipe()
        if (pid := _fork()) == 0:
            os.close(reader)
            self.parent = os.fdopen(writer, "wb")
            asyncio._set_running_loop(loop)  # asyncio forgets it in a child, or takes it for the parent's
            return True
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            told = pipe.read()
        _, status = os.waitpid(pid, 0)
        self.runs[write] = pickle.loads(told) if told else f"the child ended with status {status}"
        return False

    def hand_over(self, result: CrashRun | str) -> NoReturn:
        """The end of a child: nothing of pytest's may run in it."""
        assert self.parent is not None
        try:
            with self.parent as pipe:
                pickle.dump(result, pipe)
        finally:
            os._exit(0)


def play_all(golden: Golden, writes: Writes, happening: Happening) -> tuple[CrashRun, dict[int, CrashRun | str]]:
    """The run in which nothing happens, and those in which it does, by the write; a text where one failed."""
    forks = _Forks()

    def prepare(scene: Scene, client: MortalClient) -> None:
        if scene.e.operators == 1:
            _happen_in_children(client, writes, happening(scene, client), forks)

    try:
        run = play(golden, prepare)
    except BaseException:
        if forks.parent is None:
            raise
        forks.hand_over(traceback.format_exc())
    if forks.parent is not None:
        forks.hand_over(run)
    return run, forks.runs


def _happen_in_children(client: MortalClient, writes: Writes, happens: Disturbance, forks: _Forks) -> None:
    def arm(write: int) -> None:
        def reached(resource: Resource, name: str) -> None:
            if forks.fork(write):
                happens(resource, name)
            else:
                arm(write + writes.step)

        client.disturb(write, writes.when, reached)

    arm(writes.first)


def _fork() -> int:
    gc.freeze()  # in the child for good: collecting garbage would copy all of the parent's memory
    with warnings.catch_warnings():
        # Python warns of other threads that may hold locks (a worker of pytest-xdist has one). The child takes none
        # that it shares with them: it computes, writes to one pipe and ends by _exit.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid != 0:
        gc.unfreeze()
    return pid
