"""The agent's API client, a `KubeClient`, against a TLS server that answers as an API server does."""

import asyncio
import json
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hack.cluster.certs import create_pki
from hack.sim.readings import HANGING
from tests.fakes.apiserver import FakeServer, fake_server
from tests.fakes.gpus import eventually
from tests.fakes.login import AnonymousLogin
from tests.fakes.tls import Identity
from tests.fakes.virtualtime import virtual_now, virtually
from tests.fakes.web import WebServer
from tests.kube.contract import ObjectContract

from gpusharing.agent.rest import RestClient, _Exchange
from gpusharing.kube import errors
from gpusharing.kube.client import GPUNODES, MEDIK8S_MAINTENANCES, ApiRequest, KubeClient, Resource, WatchEvent
from gpusharing.kube.http import HttpClient
from gpusharing.kube.lists import pages_of
from gpusharing.kube.login import Access, ServiceAccountLogin
from gpusharing.kube.wire import MOST_BYTES_AGENT

PATH = "/apis/gpusharing.dev/v1alpha1/gpunodes"
MINE = "metadata.name=gpu-01"


class Server:
    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, list[str]], dict[str, str], Any]] = []
        self.answers: list[tuple[int, Any]] = []
        self.events: list[Any] = []
        """What a watch sends before it ends, or stays open with `hold`."""
        self.hold = threading.Event()
        self.hold.set()
        self.watching = 0

    def handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                query = self._record(None)
                if "watch" in query:
                    self._watch()
                else:
                    self._answer()

            def do_PATCH(self) -> None:
                self._record(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self._answer()

            def log_message(self, format: str, *args: object) -> None:
                pass

            def _record(self, body: Any) -> dict[str, list[str]]:
                url = urlsplit(self.path)
                query = parse_qs(url.query)
                server.requests.append((self.command, url.path, query, dict(self.headers), body))
                return query

            def _answer(self) -> None:
                status, body = server.answers.pop(0)
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def _watch(self) -> None:
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for event in server.events:
                    line = event if isinstance(event, bytes) else json.dumps(event).encode() + b"\n"
                    self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                self.wfile.flush()
                server.watching += 1
                server.hold.wait(60)
                server.watching -= 1
                self.wfile.write(b"0\r\n\r\n")

        return Handler


@contextmanager
def listening(answers: Server, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    server = WebServer(("127.0.0.1", 0), answers.handler())
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_port
    finally:
        answers.hold.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return create_pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def server(pki: Any) -> Iterator[tuple[Server, int]]:
    answers = Server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.cert("serving"), pki.key("serving"))
    with listening(answers, context) as port:
        yield answers, port


def login(port: int, folder: Path, authority: str) -> ServiceAccountLogin:
    (folder / "token").write_text("first\n")
    (folder / "ca.crt").write_text(authority)
    environment = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(port)}
    return ServiceAccountLogin(environment, folder)


@pytest.fixture
def client(server: tuple[Server, int], pki: Any, tmp_path: Path) -> RestClient:
    return RestClient(login(server[1], tmp_path, pki.ca.read_text()))


def status(code: int, message: str) -> tuple[int, Any]:
    return code, {"kind": "Status", "code": code, "message": message}


async def watched(client: RestClient) -> list[WatchEvent]:
    return [event async for event in client.watch(GPUNODES, "7", field_selector=MINE)]


def node(number: int) -> dict[str, Any]:
    return {"metadata": {"name": f"gpu-{number}", "resourceVersion": str(number)}}


async def test_a_list_follows_the_pages(client: RestClient, server: tuple[Server, int]) -> None:
    api, _ = server
    api.answers = [
        (200, {"metadata": {"resourceVersion": "7", "continue": "more"}, "items": [node(1)]}),
        (200, {"metadata": {"resourceVersion": "7"}, "items": None}),
    ]
    pages = [page async for page in pages_of(client, GPUNODES, field_selector=MINE)]
    assert [(page.items, page.resource_version) for page in pages] == [([node(1)], "7"), ([], "7")]
    assert [r[2].get("continue") for r in api.requests] == [None, ["more"]]
    assert api.requests[0][:2] == ("GET", PATH)
    assert api.requests[0][2]["fieldSelector"] == [MINE]


async def test_a_token_that_is_refused_is_read_again_and_the_call_made_once_more(
    client: RestClient, server: tuple[Server, int], tmp_path: Path
) -> None:
    api, _ = server
    api.answers = [(200, {}), status(401, "expired"), (200, {"kind": "GPUNode"})]
    await client.patch(GPUNODES, "gpu-01", {})
    (tmp_path / "token").write_text("second\n")
    assert await client.patch(GPUNODES, "gpu-01", {}) == {"kind": "GPUNode"}
    sent = [request[3]["Authorization"] for request in api.requests]
    assert sent == ["Bearer first", "Bearer first", "Bearer second"]


async def test_discovery_tells_whether_the_kind_is_installed(client: RestClient, server: tuple[Server, int]) -> None:
    api, _ = server
    api.answers = [(200, {"resources": [{"name": "gpunodes"}]}), (200, {"resources": []}), status(404, "no")]
    assert [await client.served(GPUNODES) for _ in range(3)] == [True, False, False]
    assert api.requests[0][1] == "/apis/gpusharing.dev/v1alpha1"


async def test_a_patch_is_a_merge_patch_of_the_subresource(client: RestClient, server: tuple[Server, int]) -> None:
    api, _ = server
    api.answers = [(200, {"kind": "GPUNode"})]
    body = {"status": {"observed": {"error": ""}}}
    assert await client.patch(GPUNODES, "gpu-01", body, subresource="status") == {"kind": "GPUNode"}
    method, path, _, headers, sent = api.requests[0]
    assert (method, path, sent) == ("PATCH", f"{PATH}/gpu-01/status", body)
    assert headers["Content-Type"] == "application/merge-patch+json"


async def test_a_watch_yields_events_until_the_server_ends_it(client: RestClient, server: tuple[Server, int]) -> None:
    api, _ = server
    api.events = [{"type": "ADDED", "object": node(1)}, {"type": "BOOKMARK", "object": node(2)}]
    assert await watched(client) == [WatchEvent("ADDED", node(1)), WatchEvent("BOOKMARK", node(2))]
    query = api.requests[0][2]
    assert (query["resourceVersion"], query["allowWatchBookmarks"]) == (["7"], ["true"])


async def test_a_watch_that_nobody_reads_any_more_is_closed(client: RestClient, server: tuple[Server, int]) -> None:
    api, _ = server
    api.events = [{"type": "ADDED", "object": node(1)}]
    api.hold.clear()
    before = threading.active_count()
    stream = client.watch(GPUNODES, "7", field_selector=MINE)
    assert (await anext(stream)).type == "ADDED"
    await eventually(lambda: api.watching == 1)
    await stream.aclose()
    api.hold.set()
    await eventually(lambda: threading.active_count() <= before)


async def test_an_answer_that_is_too_large_to_be_read_is_an_error(
    client: RestClient, server: tuple[Server, int]
) -> None:
    api, large = server[0], {"type": "ADDED", "object": {"metadata": {"name": "gpu-01", "x": "x" * MOST_BYTES_AGENT}}}
    api.answers.append((200, large))
    with pytest.raises(errors.TooLarge, match="the response is too large"):
        await client.get(GPUNODES, "gpu-01")
    api.events.append(large)
    with pytest.raises(errors.TooLarge, match=r"an object \(name gpu-01\) is too large"):
        await watched(client)


async def test_an_expired_watch_says_so(client: RestClient, server: tuple[Server, int]) -> None:
    gone = {"kind": "Status", "code": 410, "message": "too old resource version"}
    server[0].events = [{"type": "ERROR", "object": gone}]
    with pytest.raises(errors.Expired, match="too old"):
        await watched(client)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (400, errors.Invalid),
        (401, errors.Unauthorized),
        (403, errors.Forbidden),
        (404, errors.NotFound),
        (409, errors.Conflict),
        (410, errors.Expired),
        (422, errors.Invalid),
        (429, errors.Throttled),
        (500, errors.Unavailable),
        (503, errors.Unavailable),
    ],
)
async def test_a_refusal_is_named_by_what_to_do_next(
    client: RestClient, server: tuple[Server, int], code: int, error: type[errors.KubeError]
) -> None:
    server[0].answers = [status(code, "gpunodes is forbidden: no")] * 2
    with pytest.raises(error, match="gpunodes is forbidden: no"):
        await client.patch(GPUNODES, "gpu-01", {}, subresource="status")


async def test_a_server_that_is_away_or_another_one_is_unavailable(
    pki: Any, server: tuple[Server, int], tmp_path: Path
) -> None:
    folder = tmp_path
    away = RestClient(login(1, folder, pki.ca.read_text()))
    with pytest.raises(errors.Unavailable, match="refused"):
        await away.patch(GPUNODES, "gpu-01", {})
    with pytest.raises(errors.Unavailable, match="refused"):
        await watched(away)
    strange = create_pki(folder / "stranger")
    stranger = RestClient(login(server[1], folder, strange.ca.read_text()))
    with pytest.raises(errors.Unavailable, match="certificate"):
        await stranger.patch(GPUNODES, "gpu-01", {})
    assert server[0].requests == []


class Deaf(ssl.SSLContext):
    seconds: float | None = None
    """How long the server would have been waited for."""

    def wrap_socket(self, sock: Any, *args: Any, **kwargs: Any) -> Any:
        self.seconds = sock.gettimeout()
        raise ConnectionResetError


async def test_a_fault_without_a_text_is_told_by_its_kind_and_a_server_has_15_seconds_to_answer(
    server: tuple[Server, int],
) -> None:
    deaf = Deaf(ssl.PROTOCOL_TLS_CLIENT)
    client = RestClient(NamedLogin(f"https://127.0.0.1:{server[1]}", deaf))
    with pytest.raises(errors.Unavailable, match="ConnectionResetError"):
        await client.patch(GPUNODES, "gpu-01", {})
    assert deaf.seconds == 15.0


class Unencrypting(socket.socket):
    def do_handshake(self) -> None:
        """At once."""


class Unencrypted(ssl.SSLContext):
    """TLS that is none. Virtual time does not wait for the threads that connect with it."""

    def __init__(self, *_: Any) -> None:
        self.threads: list[threading.Thread] = []

    def wrap_socket(self, sock: Any, *args: Any, **kwargs: Any) -> Any:
        self.threads.append(threading.current_thread())
        HANGING.add(threading.current_thread())
        timeout = sock.gettimeout()
        plain = Unencrypting(fileno=sock.detach())
        plain.settimeout(timeout)
        return plain


@virtually
async def test_a_call_has_30_seconds_in_all_and_leaves_no_thread_behind() -> None:
    """A server that sends a byte now and then would keep each single step going for ever."""
    tls = Unencrypted(ssl.PROTOCOL_TLS_CLIENT)
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = RestClient(NamedLogin(f"https://127.0.0.1:{server.getsockname()[1]}", tls))
        begun = virtual_now()
        with pytest.raises(errors.Unavailable, match="TimeoutError"):
            await client.patch(GPUNODES, "gpu-01", {})
        assert (virtual_now() - begun).total_seconds() == 30.0
        (thread,) = tls.threads
        thread.join(10)
        assert not thread.is_alive()


async def test_an_address_without_a_host_is_a_server_that_cannot_be_reached() -> None:
    client = RestClient(NamedLogin("https://", Deaf(ssl.PROTOCOL_TLS_CLIENT)))
    with pytest.raises(errors.Unavailable, match="cannot patch"):
        await client.patch(GPUNODES, "gpu-01", {})


async def test_after_a_rotation_of_the_clusters_authority_the_agent_connects_again(
    client: RestClient, server: tuple[Server, int], pki: Any, tmp_path: Path
) -> None:
    api, _ = server
    api.answers = [(200, {})]
    (tmp_path / "ca.crt").write_text(create_pki(tmp_path / "old").ca.read_text())
    with pytest.raises(errors.Unavailable, match="certificate"):
        await client.patch(GPUNODES, "gpu-01", {})
    (tmp_path / "ca.crt").write_text(pki.ca.read_text())
    assert await client.patch(GPUNODES, "gpu-01", {}) == {}


class NamedLogin(AnonymousLogin):
    def __init__(self, server: str, tls: ssl.SSLContext, proxy: str | None = None) -> None:
        super().__init__(server)
        self.tls, self.proxy = tls, proxy

    async def access(self) -> Access:
        return Access(self.server, self.tls, self.proxy, tls_server_name="kubernetes")


async def test_the_server_is_called_by_the_name_that_a_kubeconfig_gives(tmp_path: Path) -> None:
    identity = Identity(tmp_path / "pki")
    trust = ssl.create_default_context(cadata=identity.authority)
    async with fake_server(identity.context()) as fake:
        fake.cluster.add(GPUNODES, {"metadata": {"name": "gpu-01"}})
        client = RestClient(NamedLogin(fake.url, trust))
        pages = [page async for page in pages_of(client, GPUNODES)]
        with pytest.raises(errors.Unauthorized, match="proxy-url"):
            await RestClient(NamedLogin(fake.url, trust, "http://proxy:1")).patch(GPUNODES, "gpu-01", {})
    assert len(pages[0].items) == 1
    assert set(identity.called) == {"kubernetes"}


async def test_a_server_behind_a_path_is_called_below_it_by_both_clients() -> None:
    """As a Rancher server, https://rancher.example.com/k8s/clusters/c-1."""
    api = Server()
    api.answers = [(200, {}), (200, {})]
    with listening(api) as port:
        login = AnonymousLogin(f"http://127.0.0.1:{port}/k8s/clusters/c-1")
        await RestClient(login).get(GPUNODES, "gpu-01")
        async with HttpClient(login) as client:
            await client.get(GPUNODES, "gpu-01")
    assert [request[1] for request in api.requests] == [f"/k8s/clusters/c-1{PATH}/gpu-01"] * 2


@pytest.mark.parametrize(
    ("server", "port"),
    [("http://gpu.example.com", 80), ("https://gpu.example.com", 443), ("http://gpu.example.com:8080", 8080)],
)
def test_a_server_without_a_port_is_called_at_that_of_its_scheme(server: str, port: int) -> None:
    tls = ssl.create_default_context() if server.startswith("https") else None
    exchange = _Exchange(ApiRequest("get", GPUNODES, name="gpu-01"), Access(server, tls), None)
    assert exchange.port == port


@pytest.mark.parametrize(
    "line",
    [b"\xff\xfe{\n", b"[" * 100_000 + b"\n", b'{"type": "ADDED"}\n', b'{"type": "ADDED", "object": 7}\n', b"7\n"],
)
async def test_whatever_a_watch_sends_the_one_who_follows_it_is_told(
    client: RestClient, server: tuple[Server, int], line: bytes
) -> None:
    server[0].events = [line]
    with pytest.raises(errors.Unavailable):
        await watched(client)


async def test_a_fault_of_our_own_in_the_watchs_thread_ends_the_one_who_follows_it(tmp_path: Path) -> None:
    """An agent whose watch has died is not Ready for ever: the process ends."""

    class NoText(AnonymousLogin):
        async def access(self) -> Access:
            return Access(7)  # type: ignore[arg-type]  # what must not happen

    async with asyncio.timeout(60):
        with pytest.raises(AttributeError):
            await watched(RestClient(NoText("")))


async def test_no_two_watches_of_a_fleet_end_together(client: RestClient, server: tuple[Server, int]) -> None:
    for _ in range(20):
        await watched(client)
    seconds = {int(request[2]["timeoutSeconds"][0]) for request in server[0].requests}
    assert 240 <= min(seconds) < max(seconds) <= 300
    assert len(seconds) > 5


async def test_an_answer_that_is_no_json_is_unavailable(client: RestClient, server: tuple[Server, int]) -> None:
    server[0].answers = [(502, "bad gateway")]
    with pytest.raises(errors.Unavailable, match="502"):
        await client.patch(GPUNODES, "gpu-01", {})


REQUEST = ApiRequest("patch", GPUNODES, "status", name="gpu-01", body={})
SECONDS = 5.0
"""The longest wait. The agent itself waits for 15 seconds at each step."""


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_write_that_was_given_up_before_it_had_a_connection_is_never_sent(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        tls = ssl.create_default_context() if scheme == "https" else None
        exchange = _Exchange(REQUEST, Access(f"{scheme}://{host}:{port}", tls), None)
        exchange.shut()
        with pytest.raises(ConnectionAbortedError):
            exchange.answer()
        connection, _ = server.accept()
        with connection:
            assert connection.recv(100) == b""


def test_a_write_that_was_given_up_during_the_tls_handshake_is_never_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor() as threads:
        host, port = server.getsockname()
        tls = ssl.create_default_context()
        exchange = _Exchange(REQUEST, Access(f"https://{host}:{port}", tls), None)
        call = threads.submit(exchange.answer)
        connection, _ = server.accept()
        with connection:
            connection.settimeout(SECONDS)
            assert connection.recv(1), "the handshake began"
            exchange.shut()
            while connection.recv(4096):
                pass  # the rest of the first message, and then the end
            assert isinstance(call.exception(SECONDS), OSError)


# --- its part of the contract, as the operator's client keeps it over the same SIMULATED server --------------------
# The operator's client keeps all of it over a real server, too: tests/kube/test_contract_cluster.py.


@dataclass
class ServerOnLoopback:
    """A FakeCluster behind HTTP."""

    fake: FakeServer
    client: KubeClient
    name: str = "team-a"
    missing: Resource = MEDIK8S_MAINTENANCES

    async def forget_history(self) -> None:
        self.fake.cluster.expire()

    async def terminate_namespace(self) -> None:
        self.fake.cluster.terminating_namespaces.add(self.name)


CLIENTS: dict[str, Callable[[str, HttpClient], KubeClient]] = {
    "the agent's client": lambda url, _: RestClient(AnonymousLogin(url)),
    "the operator's client": lambda _, operators: operators,
}


class TestClientsOfOneServer(ObjectContract):
    """Rung 1."""

    @pytest.fixture(params=CLIENTS.values(), ids=list(CLIENTS))
    async def server(self, request: pytest.FixtureRequest) -> AsyncIterator[ServerOnLoopback]:
        async with fake_server() as fake, HttpClient(AnonymousLogin(fake.url)) as operators:
            fake.absent.add(MEDIK8S_MAINTENANCES)
            yield ServerOnLoopback(fake, request.param(fake.url, operators))
