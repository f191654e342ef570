"""The command blocks of the pages, and the marker above each that says whether and where a test runs it.

<!-- runs: cluster -->                 a test runs it, in the order of the page, on the stand-in of that name
<!-- runs: tutorial, 5 s -->           the same; it is ended after 5 s, as you would with Ctrl-C
<!-- runs: tutorial, until Failed -->  the same; it is ended when it has said this word
<!-- runs: tutorial, beside -->        the same; it goes on in a second shell until the page ends
<!-- not run: why -->                  no test runs it, and why
"""

import os
import re
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hack.cluster.process import wait_until
from hack.generate import ROOT

STAND_INS = ("cluster", "tutorial", "migration")
SHELLS = ("sh", "bash", "shell", "console")
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)\n(?P<text>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL
)
_MARKER = re.compile(
    r"<!-- (?:runs: (?P<where>\w+)(?:, (?P<how>beside|\d+ s|until \w+))?|not run: (?P<why>.+)) -->$"
)


@dataclass(frozen=True)
class Block:
    """One block of commands."""

    page: str
    line: int
    language: str
    text: str
    where: str = ""
    """The stand-in that it runs on; empty: none."""
    how: str = ""
    """`beside`, `5 s`, `until Failed`, or empty: it must end by itself with status 0."""
    why: str = ""
    """Why it is not run."""

    @property
    def id(self) -> str:
        """Page and line."""
        return f"{self.page}:{self.line}"


def blocks(page: str, text: str) -> list[Block]:
    """The blocks of a page in their order; one without a marker has neither `where` nor `why`."""
    found = []
    for fence in _FENCE.finditer(text):
        if fence["language"] not in SHELLS:
            continue
        before = text[: fence.start()].rstrip("\n").rpartition("\n")[2]
        marker = _MARKER.search(before)
        where, how, why = (marker[key] or "" for key in ("where", "how", "why")) if marker else ("", "", "")
        indent = len(fence["indent"])
        body = "\n".join(line[indent:] for line in fence["text"].splitlines())
        line = text.count("\n", 0, fence.start()) + 1
        found.append(Block(page, line, fence["language"], body, where, how, why))
    return found


def page(name: str) -> list[Block]:
    """The blocks of a page by its name below the root."""
    return blocks(name, (ROOT / name).read_text())


@dataclass
class Shell:
    """A person's shell at the root of the checkout: variables that one block exports are there for the next."""

    environment: Mapping[str, str]
    folder: Path
    beside: list[subprocess.Popen[str]] = field(default_factory=list)
    lines_beside: list[int] = field(default_factory=list)
    """Where their blocks stand."""

    def run(self, block: Block, seconds: float = 300.0) -> None:
        """Run a block as its marker says.

        Raises:
            AssertionError: it ended with another status than 0; the text is what it said.
        """
        variables = self.folder / "variables"
        script = f"set -euo pipefail\n[ ! -f {variables} ] || . {variables}\n{block.text}\nexport -p >{variables}\n"
        log = self.folder / f"{block.line}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                ["bash", "-c", script],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            if block.how == "beside":
                self.beside.append(process)
                self.lines_beside.append(block.line)
                return
            status = end_of(process, block, log, seconds)
        told = f"{block.id} ended with {status}:\n{block.text}\n--\n{log.read_text()[-4000:]}"
        assert status == 0, told + self._beside_told()

    def _beside_told(self) -> str:
        """What the programs beside said last: why somebody waited in vain stands there."""
        logs = (self.folder / f"{line}.log" for line in self.lines_beside)
        return "".join(f"\n-- {log.name}, beside it\n{log.read_text()[-12000:]}" for log in logs)

    def end(self) -> None:
        """Ctrl-C in the second shell."""
        for process in self.beside:
            stop(process)


def end_of(process: subprocess.Popen[str], block: Block, log: Path, seconds: float) -> int:
    """Its exit status; 0 as well when it was ended where its marker says so, -1 when it did not end in `seconds`."""
    word = block.how.removeprefix("until ") if block.how.startswith("until ") else ""
    after = float(block.how.removesuffix(" s")) if block.how.endswith(" s") else seconds
    try:
        wait_until(
            lambda: process.poll() is not None or bool(word and word in log.read_text()), after, block.id
        )
    except TimeoutError:
        stop(process)
        return 0 if after != seconds else -1
    if process.poll() is None:
        stop(process)
        return 0
    return process.wait()


def stop(process: subprocess.Popen[str]) -> None:
    """Ctrl-C, and if that does not end it, kill; its children too."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                continue
