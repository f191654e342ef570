"""Where a person types, and a stand-in for the API server that is reached from there: it serves lists and watches, and refuses as told."""

import gc
import io
import json
import os
import pty
import select
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hack.generate import ROOT
from tests.cli.schema import check
from tests.fakes.web import WebServer

from kubectl_gpusharing.main import run
from kubectl_gpusharing.shell.troubles import DONE, FAILED

JSON = dict[str, Any]
POLICIES = "/apis/gpusharing.dev/v1alpha1/gpusharingpolicies"
GPUNODES = "/apis/gpusharing.dev/v1alpha1/gpunodes"
PROGRAM = (sys.executable, "-m", "kubectl_gpusharing")
SECONDS = 60.0
"""Patience with the program, for a machine that does other things too."""


@dataclass
class Served:
    """SIMULATED: lists by path, and refusals (HTTP status, Status.message) by path; all else is not found."""

    lists: dict[str, list[JSON]] = field(default_factory=dict)
    objects: dict[str, JSON] = field(default_factory=dict)
    """Single objects by path."""
    texts: dict[str, str] = field(default_factory=dict)
    """Pages that are no JSON, by path."""
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    """By path, or by `VERB path`."""
    refuses_all: tuple[int, str] | None = None
    happened: dict[str, list[JSON]] = field(default_factory=dict)
    """Events by path, in their order."""
    news: threading.Condition = field(default_factory=threading.Condition)
    """Something happened, or the day is over."""
    over: bool = False
    """The day is over: watches end."""
    version: int = 1
    hung_up: int = 0
    asked: list[str] = field(default_factory=list)
    """`VERB path` of every call."""
    queries: dict[str, str] = field(default_factory=dict)
    """The query of the last call, by path."""

    def hang_up(self) -> None:
        """End the watches that are under way; others may begin."""
        with self.news:
            self.hung_up += 1
            self.news.notify_all()

    def answer(self, verb: str, path: str, query: str = "") -> tuple[int, JSON | str]:
        """What the server says: an object, or a page that is none."""
        self.queries[path] = query
        self.asked.append(f"{verb} {path}")
        refusal = self.refusals.get(f"{verb} {path}", self.refusals.get(path, self.refuses_all))
        if refusal is not None:
            code, message = refusal
            return code, {"kind": "Status", "status": "Failure", "code": code, "message": message}
        if path in self.texts:
            return 200, self.texts[path]
        if path in self.objects:
            return 200, self.objects[path]
        if path in self.lists:
            with self.news:
                version = {"resourceVersion": str(self.version)}
                items = [_identified(one) for one in self.lists[path]]
                return 200, {"kind": "List", "metadata": version, "items": items}
        return 404, {"kind": "Status", "status": "Failure", "code": 404, "message": "not found"}

    def modify(self, path: str, raw: JSON) -> None:
        """Somebody writes this object over the one of its name: whoever looks is told."""
        with self.news:
            self.version += 1
            now = _identified({**raw, "metadata": {**raw["metadata"], "resourceVersion": str(self.version)}})
            name = now["metadata"]["name"]
            self.lists[path] = [now if one["metadata"]["name"] == name else one for one in self.lists[path]]
            self.happened.setdefault(path, []).append({"type": "MODIFIED", "object": now})
            self.news.notify_all()

    def end(self) -> None:
        with self.news:
            self.over = True
            self.news.notify_all()

    def events(self, path: str, since: int, times: int) -> Iterable[JSON]:
        """What happens after this resourceVersion, until the day is over or all are hung up on once more."""
        while fresh := self._next(path, since, times):
            yield from fresh
            since = _version(fresh[-1])

    def _next(self, path: str, since: int, times: int) -> list[JSON]:
        def ends() -> bool:
            return self.over or self.hung_up != times

        with self.news:
            self.news.wait_for(lambda: ends() or self._after(path, since), SECONDS)
            return [] if ends() else self._after(path, since)

    def _after(self, path: str, since: int) -> list[JSON]:
        return [event for event in self.happened.get(path, ()) if _version(event) > since]


def _identified(raw: JSON) -> JSON:
    metadata = raw["metadata"]
    return {**raw, "metadata": {"uid": f"uid-{metadata['name']}", "resourceVersion": "1", **metadata}}


def _version(event: JSON) -> int:
    return int(event["object"]["metadata"]["resourceVersion"])


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str


@dataclass
class Desk:
    folder: Path
    server: Served = field(default_factory=Served)
    url: str = ""

    def __post_init__(self) -> None:
        self.kubeconfig = self.folder / "kubeconfig"

    def environment(self, **more: str) -> dict[str, str]:
        """Of the program: no cluster but ours, and no terminal of a certain size."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        path = os.pathsep.join((str(ROOT / "operator"), str(ROOT)))
        plain = {"HOME": str(self.folder), "PYTHONPATH": path, "PYTHONUTF8": "1"}
        return {**kept, **plain, "KUBECONFIG": str(self.kubeconfig), **more}

    def type(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Said:
        """Carry out one command line on pipes, in this process: to start Python costs six times as much."""
        said = self.call(lambda: run(arguments), environment)
        if "json" in arguments:
            check(said.out)
        return said

    def call(self, program: Callable[[], int | None], environment: Mapping[str, str] | None = None) -> Said:
        """Let a program of ours run here as if it were a process of its own."""
        out, err = _pipe("surrogateescape"), _pipe("backslashreplace")
        collects = gc.isenabled()
        with pytest.MonkeyPatch.context() as patch, Path(os.devnull).open() as nothing:
            for name in os.environ:
                patch.delenv(name)
            for name, value in self.environment(**(environment or {})).items():
                patch.setenv(name, value)
            patch.chdir(self.folder)
            for name, stream in (("stdin", nothing), ("stdout", out), ("stderr", err), ("__stdout__", out)):
                patch.setattr(sys, name, stream)
            try:
                status = program() or DONE
            except SystemExit as ended:
                status = int(ended.code or DONE)
            finally:
                if collects:
                    gc.enable()
        return Said(status, _read(out), _read(err))

    def start(self, *arguments: str, typed: str = "") -> Said:
        """Carry out one command line on pipes as a person does: in a process of its own."""
        done = subprocess.run(
            [*PROGRAM, *arguments],
            env=self.environment(),
            cwd=self.folder,
            input=typed,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def write_clusters(self, **urls: str) -> None:
        """A context for each of these names, which leads to its address. The first is the current one."""
        self.write_kubeconfig("", tuple(urls))
        told = json.loads(self.kubeconfig.read_text())
        told["clusters"] = [{"name": name, "cluster": {"server": url}} for name, url in urls.items()]
        for one in told["contexts"]:
            one["context"]["cluster"] = one["name"]
        self.kubeconfig.write_text(json.dumps(told))

    def write_kubeconfig(self, url: str, contexts: Sequence[str] = ("desk",)) -> None:
        told = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": contexts[0],
            "clusters": [{"name": "here", "cluster": {"server": url}}],
            "users": [{"name": "me", "user": {"token": "secret-token"}}],
            "contexts": [{"name": name, "context": {"cluster": "here", "user": "me"}} for name in contexts],
        }
        self.kubeconfig.write_text(json.dumps(told))


def _pipe(errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), "utf-8", errors, write_through=True)


def _read(pipe: io.TextIOWrapper) -> str:
    pipe.seek(0)
    return pipe.read()


def _handler(desk: Desk) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send(*desk.server.answer(self.command, urlsplit(self.path).path))

        do_PATCH = do_POST

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            if "watch=" in url.query:
                self.watch(url.path, int(parse_qs(url.query)["resourceVersion"][0]))
                return
            self.send(*desk.server.answer("GET", url.path, url.query))

        def send(self, code: int, body: JSON | str) -> None:
            data = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def watch(self, path: str, since: int) -> None:
            """A bookmark, as a server sends one each minute, and a line for each event, while somebody looks."""
            times = desk.server.hung_up  # before it is known that somebody watches, who may be hung up on at once
            code, body = desk.server.answer("WATCH", path)
            if code != 200:
                self.send(code, body)
                return
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.close_connection = True
            bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(since)}}}
            self.wfile.write(json.dumps(bookmark).encode() + b"\n")
            for event in desk.server.events(path, since, times):
                self.wfile.write(json.dumps(event).encode() + b"\n")

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    return Handler


@contextmanager
def desk_at(folder: Path) -> Iterator[Desk]:
    desk = Desk(folder)
    server = WebServer(("127.0.0.1", 0), _handler(desk))
    with server.running():
        desk.url = f"http://127.0.0.1:{server.server_port}"
        desk.write_kubeconfig(desk.url)
        try:
            yield desk
        finally:
            desk.server.end()


def wrong(desk: Desk, *arguments: str) -> str:
    """The one sentence of a command that fails: no traceback, nothing on standard output."""
    said = desk.type(*arguments)
    assert (said.status, said.out) == (FAILED, "")
    assert "Traceback" not in said.err
    assert said.err.count("\n") == 1
    return said.err


# --- on a terminal --------------------------------------------------------------------------------

WIDTH, HEIGHT = 80, 24
END = "no such word"
"""`read_until` reads to the end of the program."""


@contextmanager
def terminal(desk: Desk, *arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The program on a terminal of 80 columns, and where to read what is on it."""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (HEIGHT, WIDTH))
    told = desk.environment(TERM="xterm-256color", **environment)
    with subprocess.Popen([*PROGRAM, *arguments], env=told, stdout=its, stderr=its, stdin=its) as process:
        os.close(its)
        try:
            yield process, ours
        finally:
            process.kill()
            os.close(ours)


def read_until(screen: int, word: str) -> str:
    """What was written until this word came, or until the program ended; a program that falls silent is an error."""
    seen = b""
    while word.encode() not in seen:
        ready, _, _ = select.select([screen], [], [], SECONDS)
        assert ready, f"nothing more for {SECONDS} s after {seen.decode()[-500:]!r}"
        try:
            piece = os.read(screen, 65536)
        except OSError:  # EIO: the other side is closed
            piece = b""
        if not piece:
            break
        seen += piece
    return seen.decode(errors="ignore")  # the last piece may end within a character


def answer(screen: int, text: str) -> None:
    os.write(screen, f"{text}\n".encode())
