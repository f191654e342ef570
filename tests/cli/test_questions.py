"""kubectl_gpusharing/shell/terminal.py: who is told of Ctrl-C while a question stands. At a terminal: test_commandline.py."""

import asyncio
import signal
from contextlib import redirect_stderr
from io import StringIO

from kubectl_gpusharing.shell.terminal import ask_line


class Screen(StringIO):
    """A terminal that knows what Ctrl-C would have done in the moment of each write."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[object] = []

    def write(self, text: str) -> int:
        self.told.append(signal.getsignal(signal.SIGINT))
        return super().write(text)


def test_ctrl_c_ends_a_question_from_the_moment_in_which_it_can_be_read() -> None:
    """asyncio's own handler would go on waiting for the answer."""
    screen = Screen()

    async def main() -> str:
        with redirect_stderr(screen):
            return ask_line("Which card?", StringIO("h100-80gb\n"))

    assert asyncio.run(main()) == "h100-80gb"
    assert screen.getvalue() == "Which card? "
    assert set(screen.told) == {signal.default_int_handler}


def test_afterwards_ctrl_c_does_what_it_did_before() -> None:
    before = signal.getsignal(signal.SIGINT)
    with redirect_stderr(StringIO()):
        assert ask_line("Continue?", StringIO("YES\n")) == "YES"
    assert signal.getsignal(signal.SIGINT) is before
