"""The agent's API client (the Protocol of agent/api.py) against a TLS server that answers as an API server does."""

import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hack.cluster.certs import create_pki
from tests.fakes.gpus import eventually

from gpusharing.agent.credentials import Credentials
from gpusharing.agent.rest import RestClient
from gpusharing.kube import errors
from gpusharing.kube.client import GPUNODES, WatchEvent

PATH = "/apis/gpusharing.dev/v1alpha1/gpunodes"
MINE = "metadata.name=gpu-01"


class Server:
    """Records requests and gives the answers that were prepared."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, list[str]], dict[str, str], Any]] = []
        self.answers: list[tuple[int, Any]] = []
        self.events: list[Any] = []
        """What a watch sends before it ends, or stays open with `hold`."""
        self.hold = threading.Event()
        self.hold.set()
        self.watching = 0

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """A handler class that speaks for this server."""
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
                    line = json.dumps(event).encode() + b"\n"
                    self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                self.wfile.flush()
                server.watching += 1
                server.hold.wait(10)
                server.watching -= 1
                self.wfile.write(b"0\r\n\r\n")

        return Handler


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Certificates for loopback."""
    return create_pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def server(pki: Any) -> Iterator[tuple[Server, int]]:
    """A running server and its port."""
    answers = Server()
    listening = ThreadingHTTPServer(("127.0.0.1", 0), answers.handler())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.cert("serving"), pki.key("serving"))
    listening.socket = context.wrap_socket(listening.socket, server_side=True)
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
    thread.start()
    yield answers, listening.server_port
    answers.hold.set()
    listening.shutdown()
    listening.server_close()
    thread.join()


@pytest.fixture
def client(server: tuple[Server, int], pki: Any, tmp_path: Path) -> RestClient:
    """A client with a token file."""
    (tmp_path / "token").write_text("first\n")
    return RestClient(Credentials("127.0.0.1", server[1], pki.ca, tmp_path / "token"))


def status(code: int, message: str) -> tuple[int, Any]:
    """An answer as the API server refuses."""
    return code, {"kind": "Status", "code": code, "message": message}


async def watched(client: RestClient) -> list[WatchEvent]:
    """Everything that one watch sends."""
    return [event async for event in client.watch(GPUNODES, "7", field_selector=MINE)]


async def test_a_list_follows_the_pages_and_reads_the_token_each_time(
    client: RestClient, server: tuple[Server, int], tmp_path: Path
) -> None:
    api, _ = server
    api.answers = [
        (200, {"metadata": {"resourceVersion": "7", "continue": "more"}, "items": [{"a": 1}]}),
        (200, {"metadata": {"resourceVersion": "7"}, "items": None}),
    ]
    pages = []
    async for page in client.pages(GPUNODES, field_selector=MINE):
        pages.append(page)
        (tmp_path / "token").write_text("second\n")
    assert [(page.items, page.resource_version) for page in pages] == [([{"a": 1}], "7"), ([], "7")]
    assert [r[3]["Authorization"] for r in api.requests] == ["Bearer first", "Bearer second"]
    assert [r[2].get("continue") for r in api.requests] == [None, ["more"]]
    assert api.requests[0][:2] == ("GET", PATH)
    assert api.requests[0][2]["fieldSelector"] == [MINE]


async def test_a_patch_is_a_merge_patch_of_the_subresource(
    client: RestClient, server: tuple[Server, int]
) -> None:
    api, _ = server
    api.answers = [(200, {"kind": "GPUNode"})]
    body = {"status": {"observed": {"error": ""}}}
    assert await client.patch(GPUNODES, "gpu-01", body, subresource="status") == {"kind": "GPUNode"}
    method, path, _, headers, sent = api.requests[0]
    assert (method, path, sent) == ("PATCH", f"{PATH}/gpu-01/status", body)
    assert headers["Content-Type"] == "application/merge-patch+json"


async def test_a_watch_yields_events_until_the_server_ends_it(
    client: RestClient, server: tuple[Server, int]
) -> None:
    api, _ = server
    api.events = [{"type": "ADDED", "object": {"n": 1}}, {"type": "BOOKMARK", "object": {"n": 2}}]
    assert await watched(client) == [WatchEvent("ADDED", {"n": 1}), WatchEvent("BOOKMARK", {"n": 2})]
    query = api.requests[0][2]
    assert (query["resourceVersion"], query["allowWatchBookmarks"]) == (["7"], ["true"])


async def test_a_watch_that_nobody_reads_any_more_is_closed(
    client: RestClient, server: tuple[Server, int]
) -> None:
    api, _ = server
    api.events = [{"type": "ADDED", "object": {}}]
    api.hold.clear()
    before = threading.active_count()
    stream = client.watch(GPUNODES, "7", field_selector=MINE)
    assert (await anext(stream)).type == "ADDED"
    await eventually(lambda: api.watching == 1)
    await stream.aclose()  # type: ignore[attr-defined]  # an async generator, typed as an iterator
    api.hold.set()
    await eventually(lambda: threading.active_count() <= before)


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
    server[0].answers = [status(code, "gpunodes is forbidden: no")]
    with pytest.raises(error, match=f"{code}: gpunodes is forbidden: no"):
        await client.patch(GPUNODES, "gpu-01", {}, subresource="status")


async def test_a_server_that_is_away_or_another_one_is_unavailable(
    pki: Any, server: tuple[Server, int]
) -> None:
    away = RestClient(Credentials("127.0.0.1", 1, pki.ca, "token"))
    with pytest.raises(errors.Unavailable, match="refused"):
        await away.patch(GPUNODES, "gpu-01", {})
    with pytest.raises(errors.Unavailable, match="refused"):
        await watched(away)
    stranger = RestClient(
        Credentials("127.0.0.1", server[1], ssl.get_default_verify_paths().cafile or "", "t")
    )
    with pytest.raises(errors.Unavailable):
        await stranger.patch(GPUNODES, "gpu-01", {})
    assert server[0].requests == []


async def test_an_answer_that_is_no_json_is_unavailable(
    client: RestClient, server: tuple[Server, int]
) -> None:
    server[0].answers = [(502, "bad gateway")]
    with pytest.raises(errors.Unavailable, match="502"):
        await client.patch(GPUNODES, "gpu-01", {})
