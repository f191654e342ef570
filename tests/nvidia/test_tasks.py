"""The stand-in for the kubelet that runs NVIDIA's programs: hack/nvidia/tasks.py. Needs none of them."""

from dataclasses import dataclass

from hack.nvidia.tasks import RestartedTask


@dataclass
class Ending:
    """A program that ends when it is told to; until somebody cleans up after it, it is seen in /proc."""

    starts: int = 0
    running: bool = False
    seen: bool = False

    def start(self) -> None:
        self.starts += 1
        self.running = self.seen = True

    def alive(self) -> bool:
        return self.running

    def end(self) -> None:
        self.running = False

    def stop(self) -> None:
        self.running = self.seen = False

    kill = stop


def test_a_program_that_has_ended_is_not_seen_while_it_waits_for_its_next_start() -> None:
    """config-manager gives up at a process that it cannot read, and two that wait in turns would never come up."""
    program = Ending()
    container = RestartedTask(program)
    container.look()
    program.end()
    container.look()
    assert program.starts == 1, "not before the pause is over"
    assert not program.seen
