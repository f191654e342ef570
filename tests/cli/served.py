"""`ui` as a program, and what it serves."""

import json
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urljoin
from urllib.request import urlopen

from tests.cli.desk import PROGRAM, SECONDS
from tests.cli.test_page import Read


@dataclass
class Browsed:
    process: subprocess.Popen[str]
    url: str

    def read(self, query: str = "") -> Read:
        with urlopen(urljoin(self.url, query), timeout=SECONDS) as answer:
            return Read(answer.read().decode())

    def end(self) -> tuple[int, str]:
        """Press Ctrl-C: the exit status, and what was said on standard error."""
        self.process.send_signal(signal.SIGINT)
        _, errors = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, errors


@contextmanager
def serving(environment: Mapping[str, str], *flags: str) -> Iterator[Browsed]:
    command = [*PROGRAM, "ui", "-o", "json", *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:  # type: ignore[call-overload]  # pipes
        try:
            assert process.stdout is not None
            written = ""
            while not written.endswith("}\n"):
                line = process.stdout.readline()
                assert line, process.communicate()
                written += line
            yield Browsed(process, json.loads(written)["url"])
        finally:
            process.kill()
