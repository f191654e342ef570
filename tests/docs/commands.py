"""The fences of the pages, and the markers above them that say what a test does with each.

Above a block of commands, which has the language sh, stands whether and where a test runs it:

<!-- runs: cluster -->                 a test runs it, in the order of the page, on the stand-in of that name
<!-- runs: tutorial, until Failed -->  the same; it is ended when it has said this word, as you would with Ctrl-C
<!-- runs: tutorial, beside -->        the same; it goes on in a second shell until the page ends
<!-- not run: why -->                  no test runs it, and why

Above an output, which is every fence that is neither sh nor one of INPUTS, stands what holds the page to it:

<!-- prints -->                        the block of commands above it prints this (tests/docs/outputs.py has the rule)
<!-- compared: tests/FILE.py -->       this test compares it with what a program printed
<!-- quoted: FILE -->                  it is a part of this file, which a test holds to what a program prints
<!-- not compared: why -->             nothing compares it, and why
"""

import os
import re
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from hack.cluster.process import end_group, wait_until
from hack.generate import ROOT
from tests.docs.outputs import Output

OWN_REGISTRY = "registry.example.test"
"""What a reader writes in place of REGISTRY. The chart refuses the placeholder itself."""
STAND_INS = ("cluster", "tutorial", "migration")
SHELLS = ("sh", "bash", "shell", "console")
INPUTS = ("yaml", "mermaid")
"""The languages of fences that no program printed and that are no commands: files, and drawings."""
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[^`\n]*)\n(?P<text>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
_COMMANDS = re.compile(r"runs: (?P<where>\w+)(?:, (?P<how>beside|until \w+))?|not run: (?P<why>.+)")
_OUTPUT = re.compile(r"prints|compared: (?P<test>\S+)|quoted: (?P<source>\S+)|not compared: (?P<why>.+)")


@dataclass(frozen=True)
class Fence:
    """One fenced block of a page, with the HTML comment above it; empty lines may stand between."""

    page: str
    line: int
    language: str
    text: str
    """The lines between the fences, without the indent of the item of a list that they belong to."""
    marker: str
    """The text of the comment, or empty if there is none."""

    @property
    def id(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_output(self) -> bool:
        return self.language not in (*SHELLS, *INPUTS)

    @property
    def held_by(self) -> re.Match[str] | None:
        return _OUTPUT.fullmatch(self.marker)

    @property
    def output(self) -> Output:
        return Output(self.page, self.line, self.text)


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str
    where: str = ""
    """The stand-in that the block runs on, or empty if no test runs it."""
    how: str = ""
    """`beside`, `until Failed`, or empty if the block must end by itself with status 0."""
    why: str = ""
    output: Output | None = None

    @property
    def id(self) -> str:
        return f"{self.page}:{self.line}"


def fences(page: str, text: str) -> list[Fence]:
    found = []
    for fence in _FENCE.finditer(text):
        before = text[: fence.start()].rstrip("\n").rpartition("\n")[2]
        marker = re.search(r"<!-- (.+) -->$", before)
        indent = len(fence["indent"])
        body = "\n".join(line[indent:] for line in fence["text"].splitlines())
        line = text.count("\n", 0, fence.start()) + 1
        found.append(Fence(page, line, fence["language"], body, marker[1] if marker else ""))
    return found


def blocks(page: str, text: str) -> list[Block]:
    """Each with the output that it prints; a block without a valid marker has neither `where` nor `why`."""
    found: list[Block] = []
    for fence in fences(page, text):
        if fence.language in SHELLS:
            marker = _COMMANDS.fullmatch(fence.marker)
            where, how, why = (marker[key] or "" for key in ("where", "how", "why")) if marker else ("", "", "")
            found.append(Block(page, fence.line, fence.language, fence.text, where, how, why))
        elif fence.marker == "prints":
            if not found or found[-1].output:
                raise ValueError(f"{fence.id}: no block of commands prints this")
            found[-1] = replace(found[-1], output=fence.output)
    return found


def page(name: str) -> list[Block]:
    return blocks(name, (ROOT / name).read_text())


@dataclass
class Shell:
    """Each block is a process of its own; variables that it exports are passed on to the next one."""

    environment: Mapping[str, str]
    folder: Path
    beside: list[subprocess.Popen[str]] = field(default_factory=list)
    lines_beside: list[int] = field(default_factory=list)
    """The lines of the page at which the blocks of `beside` stand, in the same order."""

    def run(self, block: Block, seconds: float = 300.0) -> None:
        """As its marker says; one of `beside` is only started: neither its status nor its output is checked."""
        variables = self.folder / "variables"
        text = block.text.replace("REGISTRY/", f"{OWN_REGISTRY}/")
        script = f"set -euo pipefail\n[ ! -f {variables} ] || . {variables}\n{text}\nexport -p >{variables}\n"
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
        assert status == 0, told + self._logs_beside()
        if block.output:
            block.output.assert_printed(log.read_text())

    def _logs_beside(self) -> str:
        """Which may explain why another block failed."""
        logs = (self.folder / f"{line}.log" for line in self.lines_beside)
        return "".join(f"\n-- {log.name}, beside it\n{log.read_text()[-12000:]}" for log in logs)

    def end(self) -> None:
        for process in self.beside:
            stop(process)


def end_of(process: subprocess.Popen[str], block: Block, log: Path, seconds: float) -> int:
    """Its status: 0 if it was stopped at its word, -1 if it came to no end or to one without the word."""
    word = block.how.removeprefix("until ") if block.how.startswith("until ") else ""
    try:
        wait_until(lambda: process.poll() is not None or bool(word and word in log.read_text()), seconds, block.id)
    except TimeoutError:
        stop(process)
        return -1
    if process.poll() is None:
        stop(process)
        return 0
    status = process.wait()
    return -1 if status == 0 and word not in log.read_text() else status


def stop(process: subprocess.Popen[str]) -> None:
    """As Ctrl-C does; whoever is left in the group is killed: a shell lets its background children ignore SIGINT."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                continue
    end_group(process)
