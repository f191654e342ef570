"""Clusters and login programs that hang delay no other cluster and not the end of the command (kubectl_gpusharing/shell/running.py, kube/background.py)."""

import asyncio
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from hack.cluster.process import pid_exists, wait_until
from tests.cli.desk import PROGRAM, SECONDS, Desk
from tests.cli.test_clusters import CREDENTIAL, asked, with_programs
from tests.fakes.web import WebServer
from tests.wording import lacks

from gpusharing.kube.background import run_command
from kubectl_gpusharing.shell import running as clusters
from kubectl_gpusharing.shell.arguments import Arguments
from kubectl_gpusharing.shell.completing import cluster_names
from kubectl_gpusharing.shell.documents import FailureData
from kubectl_gpusharing.shell.running import LOGINS, Answer, FleetVerb
from kubectl_gpusharing.shell.session import Session
from kubectl_gpusharing.shell.troubles import DONE

MANY = 2 * LOGINS
"""More clusters than may log in at once, and more than an event loop has threads by default."""
LATE = 20.0
"""Seconds after which a cluster is late where the others must be answered before."""


def sets(event: threading.Event) -> FleetVerb:
    async def ask(session: Session, _typed: Arguments) -> Any:
        if session.where == "context well":
            event.set()
        return Answer(DONE)

    return FleetVerb((), "", FailureData, ask)


# --- the server, and its name ------------------------------------------------------------------------------------


@contextmanager
def holding(until: threading.Event) -> Iterator[str]:
    """The address of a server that accepts connections, and answers only after the event."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            until.wait(SECONDS)
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = WebServer(("127.0.0.1", 0), Handler)
    with server.running():
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            until.set()


def test_a_cluster_is_answered_while_any_number_of_others_hang(desk: Desk) -> None:
    answered = threading.Event()
    with holding(answered) as url:
        desk.write_clusters(**{f"hung-{number}": url for number in range(MANY)}, well=desk.url)
        replies = asked(desk, verb=sets(answered), first=LATE)
    assert [reply.error for reply in replies if reply.error] == []


def test_a_cluster_has_its_whole_time_while_the_cpu_works_for_the_others(desk: Desk) -> None:
    """Four at once would each take four seconds of the two and a half. The wait for a place counts for none."""

    async def ask(_session: Session, _typed: Arguments) -> Any:
        for _ in range(10):
            time.sleep(0.1)  # noqa: ASYNC251 - the event loop is busy
            await asyncio.sleep(0)
        return Answer(DONE)

    names = [f"c{number}" for number in range(4)]
    desk.write_clusters(**dict.fromkeys(names, desk.url))
    typed = Arguments(verb="status", kubeconfig=str(desk.kubeconfig))
    verb = FleetVerb((), "", FailureData, ask, seconds=2.5)
    replies = run_command(clusters.ask_clusters(verb, typed, names, SECONDS, at_once=1))
    assert [reply.error for reply in replies] == [""] * 4


class Names:
    """SIMULATED: a resolver of the system that takes its time for names that begin with `hung`, and finds none of them. Each other name is that of this machine."""

    def __init__(self) -> None:
        self.looked = socket.getaddrinfo
        self.over = threading.Event()
        self.ended = 0
        self.daemons: list[bool] = []
        """For each lookup, whether Python may end while it lasts."""

    def __call__(self, host: str, *arguments: Any, **options: Any) -> Any:
        self.daemons.append(threading.current_thread().daemon)
        if not host.startswith("hung"):
            return self.looked("127.0.0.1", *arguments, **options)
        self.over.wait(LATE)
        self.ended += 1
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


@pytest.fixture
def names() -> Iterator[Names]:
    names = Names()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", names)
        yield names
    names.over.set()


def test_a_name_is_found_while_any_number_of_others_hang(desk: Desk, names: Names) -> None:
    hung = {f"hung-{number}": f"http://hung-{number}.test" for number in range(MANY)}
    desk.write_clusters(**hung, well=desk.url.replace("127.0.0.1", "well.test"))
    *others, well = asked(desk, verb=sets(names.over), first=LATE)
    assert not well.error
    assert {"name resolution" in reply.error for reply in others} == {True}


def test_a_command_ends_while_a_name_hangs(desk: Desk, names: Names) -> None:
    desk.write_clusters(east="http://hung.test")
    (reply,) = asked(desk)
    assert not lacks(reply.error, "context east", "0.5 s")
    assert (len(names.daemons), names.ended) == (1, 0)


NAMED = {
    "for a cluster": ("status",),
    "for several": ("status", "--contexts", "desk,desk"),
    "for a Prometheus": ("cost", "--prometheus", "http://well.test:9"),
    "for advice": ("advise", "--from-prometheus", "--prometheus", "http://well.test:9"),
}


@pytest.mark.parametrize("name", NAMED)
def test_python_need_not_wait_for_a_name(desk: Desk, names: Names, name: str) -> None:
    desk.write_kubeconfig("http://well.test:9")
    desk.type(*NAMED[name])
    assert set(names.daemons) == {True}


def test_python_need_not_wait_for_a_name_that_is_looked_up_for_a_completion(desk: Desk, names: Names) -> None:
    desk.write_kubeconfig("http://well.test:9")
    assert cluster_names("gpunodes", ["--kubeconfig", str(desk.kubeconfig)]) == []
    assert names.daemons == [True]


def test_many_clusters_need_more_open_files_than_a_process_has_by_default(desk: Desk) -> None:
    desk.write_clusters(**{f"east-{number}": desk.url for number in range(60)})
    done = subprocess.run(
        ["/bin/sh", "-c", 'ulimit -S -n 40; exec "$@"', "sh", *PROGRAM, "status", "--all-contexts"],
        env=desk.environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (DONE, "")


# --- login programs ----------------------------------------------------------------------------------------------


def test_login_programs_run_side_by_side(desk: Desk) -> None:
    desk.write_clusters(east=desk.url, west=desk.url)
    folder = desk.folder
    meet = "touch {0}/{1}; until [ -e {0}/{2} ]; do sleep 0.05; done; echo '{3}'"
    with_programs(
        desk, east=meet.format(folder, "east", "west", CREDENTIAL), west=meet.format(folder, "west", "east", CREDENTIAL)
    )
    assert [reply.error for reply in asked(desk, first=SECONDS)] == ["", ""]


def test_no_more_login_programs_run_at_once_than_fit_into_memory(desk: Desk) -> None:
    contexts = {f"c{number}": desk.url for number in range(LOGINS + 12)}
    desk.write_clusters(**contexts)
    begun, running, counts = desk.folder / "begun", desk.folder / "running", desk.folder / "counts"
    begun.mkdir()
    running.mkdir()
    script = "touch {0}/@ {1}/@; until [ `ls {1} | wc -l` -ge {2} ]; do sleep 0.1; done; ls {0} | wc -l >>{3}; rm {0}/@"
    script = f"{script.format(running, begun, LOGINS, counts)}; echo '{CREDENTIAL}'"
    with_programs(desk, **{name: script.replace("@", name) for name in contexts})
    replies = asked(desk, first=SECONDS)
    assert {reply.error for reply in replies} == {""}
    assert max(map(int, counts.read_text().split())) <= LOGINS


def test_a_login_program_that_does_not_end_is_killed_and_named(desk: Desk) -> None:
    desk.write_clusters(east=desk.url, waits=desk.url)
    pid = desk.folder / "pid"
    with_programs(desk, east=f"echo '{CREDENTIAL}'", waits=f"echo $$ >{pid}; exec sleep 1000")
    found = {reply.context: reply for reply in asked(desk, first=3.0)}
    assert not found["east"].error
    assert not lacks(found["waits"].error, "login program", "3 s", "context waits")
    wait_until(lambda: not pid_exists(int(pid.read_text())), SECONDS, "the end of the login program")


def test_what_a_login_program_has_started_holds_nothing_up_and_is_left_alone(desk: Desk) -> None:
    """It may be the browser in which to log in. Here it holds the pipes of the program open."""
    desk.write_clusters(waits=desk.url)
    pid, end = desk.folder / "pid", desk.folder / "end"
    with_programs(desk, waits=f"until [ -e {end} ]; do sleep 0.1; done & echo $! >{pid}; wait")
    (reply,) = asked(desk, first=3.0)
    assert "did not finish within 3 s" in reply.error
    child = int(pid.read_text())
    assert pid_exists(child)
    end.touch()
    wait_until(lambda: not pid_exists(child), SECONDS, "the end of what the login program has started")
