"""The program as a person starts it: flags, exit statuses, sentences (kubectl_gpusharing/main.py, kubectl_gpusharing/shell/running.py, kubectl_gpusharing/shell/session.py, kubectl_gpusharing/shell/terminal.py, kubectl_gpusharing/shell/arguments.py, kubectl_gpusharing/pools/status.py, kubectl_gpusharing/__main__.py). A watch: test_watch.py."""

import asyncio
import json
import os
import resource
import signal
import subprocess
from contextlib import redirect_stderr
from importlib.metadata import version
from io import StringIO

import pytest
import yaml
from hack.generate import ROOT
from tests.cli.desk import END, GPUNODES, POLICIES, PROGRAM, SECONDS, Desk, read_until, terminal, wrong
from tests.cli.objects import policy

from gpusharing.api.nearest import nearest
from kubectl_gpusharing.shell.arguments import VERBS, parse
from kubectl_gpusharing.shell.running import carry_out
from kubectl_gpusharing.shell.session import Session
from kubectl_gpusharing.shell.terminal import ask_line
from kubectl_gpusharing.shell.troubles import CHANGES, DONE, FAILED, INTERRUPTED, PIPE_CLOSED

HELP_STARTS = 4
"""What --help costs at most, in starts of a Python that reads a command line: half of it is those imports."""
START = "import argparse, dataclasses"
RUNS = 5
HEAVY = ("kubernetes", "aiohttp", "pydantic", "rich", "yaml", "asyncio", "gpusharing.planning")


def test_status_on_a_pipe_tells_the_pools_without_colours_and_with_no_more_than_the_viewers_rights(desk: Desk) -> None:
    said = desk.type("status")
    assert (said.status, said.err) == (DONE, "")
    assert "pool-b  MIG 2x3g.40gb  Draining" in said.out
    assert "\x1b" not in said.out
    assert {call.split()[1] for call in desk.server.asked} == {POLICIES, GPUNODES}


def test_status_of_one_policy_leaves_the_others_out(desk: Desk) -> None:
    said = desk.type("status", "pool-c")
    assert "pool-c" in said.out
    assert "pool-b" not in said.out


def test_json_and_yaml_hold_the_same_and_flags_may_stand_before_the_verb(desk: Desk) -> None:
    as_json, as_yaml = desk.type("-o", "json", "status"), desk.type("status", "-o", "yaml")
    assert json.loads(as_json.out)["pools"]
    assert json.loads(as_json.out) == yaml.safe_load(as_yaml.out)


def test_verbs_without_a_table_ask_several_contexts_one_after_the_other(desk: Desk) -> None:
    desk.write_kubeconfig(desk.url, ("east", "west"))
    desk.server.objects[f"{POLICIES}/pool-b"] = policy("pool-b")
    said = desk.type("pause", "pool-b", "--dry-run", "--contexts", "east,west")
    assert said.status == DONE
    assert said.out.index("context east") < said.out.index("context west")


def test_an_error_in_one_of_several_contexts_is_not_hidden_by_changes_in_another(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Plan:
        async def run(self, session: Session, *_: object) -> int:
            return {"east": FAILED, "west": CHANGES}[session.name]

    desk.write_kubeconfig(desk.url, ("east", "west"))
    monkeypatch.setenv("KUBECONFIG", str(desk.kubeconfig))
    assert carry_out(Plan(), parse(["plan", "--contexts", "west,east"])) == FAILED


# --- what goes wrong ---------------------------------------------------------------------------------------------


def test_a_kubeconfig_that_is_none_is_named(desk: Desk) -> None:
    desk.kubeconfig.write_text("{{{")
    assert f"kubeconfig {desk.kubeconfig} cannot be read" in wrong(desk, "status")


def test_a_context_that_is_not_there_is_named(desk: Desk) -> None:
    desk.write_kubeconfig(desk.url, ("east", "west"))
    assert "no context wets in kubeconfig" in wrong(desk, "status", "--context", "wets")
    assert "did you mean: west" in wrong(desk, "status", "--context", "wets")


def test_of_several_kubeconfigs_the_first_says_which_context_is_the_current_one(desk: Desk) -> None:
    """As for kubectl; the official client takes the last."""
    desk.write_kubeconfig(desk.url, ("west",))
    other = desk.kubeconfig.rename(desk.folder / "other")
    desk.write_kubeconfig(desk.url, ("east",))
    both = {"KUBECONFIG": f"{desk.kubeconfig}{os.pathsep}{other}"}
    assert json.loads(desk.type("status", "-o", "json", environment=both).out)["context"] == "east"


def test_a_kubeconfig_without_a_current_context_asks_for_one(desk: Desk) -> None:
    told = json.loads(desk.kubeconfig.read_text())
    desk.kubeconfig.write_text(json.dumps({**told, "current-context": ""}))
    assert "Choose one of these with --context: desk" in wrong(desk, "status")


def test_a_server_that_does_not_answer_is_named(desk: Desk) -> None:
    desk.write_kubeconfig("http://127.0.0.1:9")
    assert "does not respond" in wrong(desk, "status")


def test_a_login_program_that_fails_is_told_in_one_sentence(desk: Desk) -> None:
    told = json.loads(desk.kubeconfig.read_text())
    plugin = {"command": "/bin/sh", "args": ["-c", "echo session is over >&2; exit 1"]}
    told["users"][0]["user"] = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", **plugin}}
    desk.kubeconfig.write_text(json.dumps(told))
    assert "session is over. Log in again" in wrong(desk, "status")


def test_a_right_that_is_missing_is_named(desk: Desk) -> None:
    told = 'gpunodes.gpusharing.dev is forbidden: User "me" cannot list resource "gpunodes"'
    desk.server.refusals = {GPUNODES: (403, told)}
    assert 'cannot list resource "gpunodes"' in wrong(desk, "status")


STARTED = {
    "an answer": ("status",),
    "an answer as data": ("layouts", "h100-80gb", "-o", "json"),
    "an error": ("status", "pol-b"),
    "a mistake": ("stauts",),
    "its version": ("--version",),
    "help": ("plan", "--help"),
}


@pytest.mark.parametrize("name", STARTED)
def test_the_program_that_a_person_starts_says_the_same(desk: Desk, name: str) -> None:
    said = desk.start(*STARTED[name])
    assert said == desk.type(*STARTED[name])
    assert said.out + said.err


PIPED: dict[str, tuple[str, ...]] = {
    "status": ("status",),
    "status as data": ("status", "-o", "json"),
    "status as a page": ("status", "-o", "html"),
    "a watch": ("status", "--watch"),
    "doctor": ("doctor",),
    "layouts": ("layouts", "h100-80gb"),
    "advise": ("advise", "--card", "l40s", "--memory", "4Gi"),
    "--help": ("--help",),
    "--help of a verb": ("plan", "--help"),
    "--version": ("--version",),
}


@pytest.mark.parametrize("name", PIPED)
def test_a_reader_that_goes_away_is_no_error_of_ours(desk: Desk, name: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # before the program starts: a watch writes once, and then only news
    with subprocess.Popen(
        [*PROGRAM, *PIPED[name]], env=desk.environment(), stdout=writer, stderr=subprocess.PIPE, text=True
    ) as process:
        os.close(writer)
        assert process.stderr is not None
        complaint = process.stderr.read()
        assert process.wait() == PIPE_CLOSED
    assert complaint == ""


# --- at a terminal ----------------------------------------------------------------------------------------------


def test_a_terminal_gets_colours(desk: Desk) -> None:
    with terminal(desk, "status") as (_, screen):
        assert "\x1b[32m" in read_until(screen, "pool-c  ")


@pytest.mark.parametrize(("arguments", "environment"), [(("--no-color",), {}), ((), {"NO_COLOR": "1"})])
def test_colours_can_be_had_none(desk: Desk, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    with terminal(desk, "status", *arguments, **environment) as (process, screen):
        assert "\x1b" not in read_until(screen, END)
        assert process.wait(SECONDS) == DONE


def test_ctrl_c_at_a_question_writes_nothing(desk: Desk) -> None:
    asked = policy("pool-b")
    asked["spec"]["rollout"]["approval"] = "Manual"
    asked["status"]["plan"] = {"hash": "4a38df3", "disruption": "Reset", "nodeCount": 1, "pods": 2}
    desk.server.objects = {f"{POLICIES}/pool-b": asked}
    with terminal(desk, "approve", "pool-b") as (process, screen):
        assert "This may evict pods" in read_until(screen, "[y/N]")
        process.send_signal(signal.SIGINT)
        rest = read_until(screen, END)
        assert process.wait(SECONDS) == INTERRUPTED
    assert "Traceback" not in rest
    assert {call.split()[0] for call in desk.server.asked} == {"GET"}


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


def test_the_version_is_told_without_a_cluster(desk: Desk) -> None:
    desk.kubeconfig.unlink()
    said = desk.type("--version")
    assert (said.status, said.err) == (DONE, "")
    assert said.out == f"kubectl gpusharing {version('gpu-sharing-operator')}\n"


# --- what it costs ----------------------------------------------------------------------------------------------


def cost(desk: Desk, *command: str) -> float:
    """CPU seconds of the cheapest of several runs: what else the machine does makes single ones dear."""

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    costs = []
    for _ in range(RUNS):
        before = spent()
        subprocess.run(command, env=desk.environment(), check=True, stdout=subprocess.DEVNULL)
        costs.append(spent() - before)
    return min(costs)


def test_help_comes_at_once(desk: Desk) -> None:
    said = desk.type("--help")
    assert said.status == DONE
    assert all(verb in said.out for verb in VERBS)
    assert cost(desk, *PROGRAM, "--help") < HELP_STARTS * cost(desk, PROGRAM[0], "-c", START)


@pytest.mark.parametrize("module", HEAVY)
def test_help_does_without(desk: Desk, module: str) -> None:
    code = (
        "import sys\nfrom kubectl_gpusharing.shell.arguments import parse\n"
        "try: parse(['--help'])\nexcept SystemExit: pass\n"
        f"sys.exit({module!r} in sys.modules)"
    )
    done = subprocess.run([PROGRAM[0], "-c", code], env=desk.environment(), check=False, stdout=subprocess.DEVNULL)
    assert done.returncode == 0


def test_the_reference_page_has_every_verb() -> None:
    page = (ROOT / "docs/reference/cli.md").read_text()
    lacking = [verb for verb in VERBS if f"\n## {verb}\n" not in page]
    assert lacking == [], "docs/reference/cli.md needs a section for each verb"


def test_every_verb_is_on_a_how_to_page() -> None:
    pages = " ".join(path.read_text() for path in (ROOT / "docs/how-to").glob("*.md"))
    lacking = [verb for verb in VERBS if f"kubectl gpusharing {verb} " not in pages]
    assert lacking == [], "a page of docs/how-to needs to show each verb with an argument or flag"


def test_the_nearest_names_are_the_likest_ones() -> None:
    assert nearest("gpu-7", ["gpu-07", "gpu-70", "cpu-1"])[0] in ("gpu-07", "gpu-70")
    assert nearest("zebra", ["gpu-07"]) == []
