"""Who may read the agent's metrics: the API server decides, and without its answer nobody may."""

import asyncio
import ctypes
import logging
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from tests.fakes.gpus import eventually
from tests.wording import lacks

from gpusharing.agent import access, certificate
from gpusharing.agent.access import ALLOWED, UNAUTHENTICATED, UNDECIDED, MetricsAccess, guarded
from gpusharing.agent.certificate import self_signed
from gpusharing.agent.main import probe
from gpusharing.kube.client import JSON, ApiRequest, KubeClient, WatchEvent
from gpusharing.kube.errors import Forbidden, KubeError
from gpusharing.kube.pageserver import Answer, PageServer

USER = {"username": "system:serviceaccount:monitoring:prometheus", "uid": "u-1", "groups": ["a", "b"]}
USERS: dict[str, JSON] = {"good": USER, "poor": {**USER, "username": "poor", "extra": {"node": ["gpu-1"]}}}


@dataclass
class Authority(KubeClient):
    """The API server's two reviews. Whoever is not called poor may read the metrics."""

    error: KubeError | None = None
    users: Mapping[str, JSON] = field(default_factory=lambda: dict(USERS))
    """The owner of each token that is valid."""
    let_go: asyncio.Event = field(default_factory=asyncio.Event)
    """Reviews of the token `slow` wait for this."""
    specs: list[tuple[str, JSON]] = field(default_factory=list)
    """Kind and spec of each review."""

    async def call(self, request: ApiRequest) -> JSON:
        assert request.verb == "create"
        assert request.body is not None
        spec = request.body["spec"]
        self.specs.append((request.resource.plural, spec))
        if self.error is not None:
            raise self.error
        if request.resource.plural == "subjectaccessreviews":
            return {"status": {"allowed": spec["user"] != "poor"}}
        if spec["token"] == "slow":
            await self.let_go.wait()
        user = self.users.get(spec["token"])
        return {"status": {"authenticated": user is not None, **({"user": user} if user else {})}}

    def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
        raise AssertionError(request.what)

    @property
    def tokens(self) -> list[str]:
        return [spec["token"] for kind, spec in self.specs if kind == "tokenreviews"]


@pytest.fixture
async def authority() -> Authority:
    return Authority()


async def decide(gate: MetricsAccess, authorization: str) -> access.Decision:
    return await asyncio.to_thread(gate.decide, authorization)


async def test_a_reader_is_reviewed_with_all_that_its_token_says(authority: Authority) -> None:
    gate = MetricsAccess(authority)
    assert await decide(gate, "Bearer good") is ALLOWED
    kind, spec = authority.specs[-1]
    assert kind == "subjectaccessreviews"
    assert spec == {
        "user": USER["username"],
        "uid": "u-1",
        "groups": ["a", "b"],
        "nonResourceAttributes": {"path": "/metrics", "verb": "get"},
    }
    answer = await decide(gate, "bearer  poor ")
    assert (answer[0], authority.specs[-1][1]["extra"]) == (403, {"node": ["gpu-1"]})
    assert not lacks(answer[1], "user poor", "/metrics", "ClusterRole gpusharing-metrics-reader")


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic Z29vZA==", "good"])
async def test_without_a_token_the_api_server_is_not_asked(authority: Authority, header: str) -> None:
    assert await decide(MetricsAccess(authority), header) is UNAUTHENTICATED
    assert authority.specs == []


async def test_an_answer_is_used_for_a_minute_whatever_it_is(authority: Authority) -> None:
    now = 0.0
    gate = MetricsAccess(authority, lambda: now)
    for seconds in (0.0, 30.0, 59.0):
        now = seconds
        assert await decide(gate, "Bearer good") is ALLOWED
        assert await decide(gate, "Bearer unknown") is UNAUTHENTICATED
    assert authority.tokens == ["good", "unknown"]
    now = 60.0
    authority.users = {}
    assert await decide(gate, "Bearer good") is UNAUTHENTICATED, "the token was revoked"


async def test_many_tokens_do_not_fill_the_memory(authority: Authority) -> None:
    gate = MetricsAccess(authority)
    tokens = [f"guess-{number}" for number in range(access.MOST_REMEMBERED + 1)]
    for token in tokens:
        assert await decide(gate, f"Bearer {token}") is UNAUTHENTICATED
    asked = len(authority.tokens)
    assert await decide(gate, f"Bearer {tokens[-1]}") is UNAUTHENTICATED
    assert len(authority.tokens) == asked
    await decide(gate, f"Bearer {tokens[0]}")
    assert len(authority.tokens) == asked + 1, "the oldest answer made room"


async def test_made_up_tokens_do_not_displace_a_reader(authority: Authority) -> None:
    gate = MetricsAccess(authority)
    assert await decide(gate, "Bearer good") is ALLOWED
    for number in range(access.MOST_REMEMBERED + 1):
        assert await decide(gate, f"Bearer guess-{number}") is UNAUTHENTICATED
    asked = len(authority.tokens)
    assert await decide(gate, "Bearer good") is ALLOWED
    assert len(authority.tokens) == asked


async def test_while_the_api_server_refuses_nobody_reads_and_the_log_says_why_once(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    authority.error = Forbidden("cannot create tokenreviews")
    gate = MetricsAccess(authority)
    with caplog.at_level(logging.WARNING, access.__name__):
        for _ in range(2):
            assert await decide(gate, "Bearer good") is UNDECIDED
    (line,) = caplog.records
    assert line.__dict__["error"] == "cannot create tokenreviews"
    assert not lacks(line.message, "nobody may")
    authority.error = None
    assert await decide(gate, "Bearer good") is ALLOWED, "what could not be decided is not cached"


async def test_a_flood_of_tokens_waits_in_few_places_and_keeps_no_known_reader_out(authority: Authority) -> None:
    gate = MetricsAccess(authority)
    assert await decide(gate, "Bearer good") is ALLOWED
    waiting = [asyncio.create_task(decide(gate, "Bearer slow")) for _ in range(access.MOST_WAITING + 1)]
    ended, waiting_still = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result() for task in ended] == [UNDECIDED], "the others wait for the first of them"
    assert await decide(gate, "Bearer good") is ALLOWED
    authority.let_go.set()
    assert {await task for task in waiting_still} == {UNAUTHENTICATED}
    assert authority.tokens == ["good", "slow"], "the others take the answer of the first"


async def test_a_user_without_a_name_is_nobody(authority: Authority) -> None:
    authority.users = {"good": {"uid": "u-1"}}
    assert await decide(MetricsAccess(authority), "Bearer good") is UNAUTHENTICATED
    assert [kind for kind, _ in authority.specs] == ["tokenreviews"]


async def test_a_slow_api_server_is_named_in_the_log(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, access.__name__):
        assert await decide(MetricsAccess(authority), "Bearer slow") is UNDECIDED
    assert [line.__dict__["error"] for line in caplog.records] == ["the API server gave no answer in time"]


def test_the_limits_are_those_that_the_pages_and_the_servers_deadline_allow() -> None:
    """A minute for a revoked token (docs/explanation/security.md); two reviews within a connection's ten seconds."""
    limits = (access.REMEMBERED_SECONDS, access.MOST_REMEMBERED, access.PATIENCE, access.MOST_WAITING)
    assert limits == (60.0, 32, 3.0, 4)


def test_what_openssl_reports_as_a_failure_makes_no_certificate() -> None:
    with pytest.raises(ssl.SSLError, match="OpenSSL failed in X509_get_pubkey"):
        certificate._call(certificate._Pointer, "X509_get_pubkey", None)
    for answer in (b"0", b"-1"):
        with pytest.raises(ssl.SSLError, match="OpenSSL failed in atoi"):
            certificate._call(ctypes.c_int, "atoi", answer)
    assert certificate._call(ctypes.c_int, "atoi", b"1") == 1


async def test_a_thread_that_outlives_the_event_loop_lets_nobody_in(authority: Authority) -> None:
    gates: list[MetricsAccess] = []

    async def open_gate() -> None:
        gates.append(MetricsAccess(authority))

    await asyncio.to_thread(asyncio.run, open_gate())
    assert await decide(gates[0], "Bearer good") is UNDECIDED


# --- the server -------------------------------------------------------------------------------------------


@pytest.fixture
async def port(authority: Authority) -> AsyncIterator[int]:
    """Where the agent's server listens, with TLS and an empty page of metrics."""
    metrics = guarded(lambda _: Answer(200, b""), MetricsAccess(authority).decide)
    pages = {"/healthz": probe(str), "/readyz": probe(str), "/metrics": metrics}
    server = PageServer(("127.0.0.1", 0), pages, tls=self_signed("gpusharing-agent"))
    server.start()
    yield server.port
    await asyncio.to_thread(server.stop)


def unverified() -> ssl.SSLContext:
    """As a kubelet and a Prometheus with insecure_skip_verify connect."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def get(url: str, authorization: str = "") -> tuple[int, str, str | None]:
    request = urllib.request.Request(url, headers={"Authorization": authorization} if authorization else {})
    try:
        with urllib.request.urlopen(request, context=unverified()) as answer:
            return answer.status, answer.read().decode(), answer.headers["WWW-Authenticate"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers["WWW-Authenticate"]


async def test_probes_need_no_token_and_metrics_one_that_may_read_them(authority: Authority, port: int) -> None:
    base = f"https://127.0.0.1:{port}"
    for path in ("/healthz", "/readyz"):
        assert await asyncio.to_thread(get, base + path) == (200, "ok\n", None)
    assert authority.specs == []
    for token, expected in (("good", (200, "", None)), ("unknown", (401, f"{UNAUTHENTICATED[1]}\n", "Bearer"))):
        assert await asyncio.to_thread(get, f"{base}/metrics", f"Bearer {token}") == expected
    assert await asyncio.to_thread(get, f"{base}/metrics") == (401, f"{UNAUTHENTICATED[1]}\n", "Bearer")
    assert (await asyncio.to_thread(get, f"{base}/metrics?a", "Bearer poor"))[0] == 403


async def test_clients_that_begin_no_handshake_keep_no_probe_out(port: int) -> None:
    with ExitStack() as stack:
        address = "127.0.0.1", port
        silent = [stack.enter_context(socket.create_connection(address, timeout=5)) for _ in range(40)]
        assert await asyncio.to_thread(get, f"https://127.0.0.1:{port}/healthz") == (200, "ok\n", None)
        assert await asyncio.to_thread(silent[0].recv, 1) == b"", "the oldest made room"


async def test_plain_http_is_not_served_and_ends_no_thread_with_a_traceback(
    port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OSError):
        await asyncio.to_thread(get, f"http://127.0.0.1:{port}/healthz")
    assert await asyncio.to_thread(get, f"https://127.0.0.1:{port}/healthz") == (200, "ok\n", None)
    await eventually(lambda: not any("process_request" in one.name for one in threading.enumerate()))
    assert capsys.readouterr().err == ""


async def test_each_process_has_a_self_signed_certificate_of_its_own_for_ten_years(port: int) -> None:
    pem = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))
    probes = x509.load_pem_x509_certificate(pem.encode())
    probes.verify_directly_issued_by(probes)
    (name,) = probes.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert name.value == "gpusharing-agent"
    days = probes.not_valid_after_utc - probes.not_valid_before_utc
    assert days.days == 3650
    assert probes.serial_number != x509.load_der_x509_certificate(_another()).serial_number


def _another() -> bytes:
    server, client = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = self_signed("gpusharing-agent").wrap_bio(client, server, server_side=True)
    ours = unverified().wrap_bio(server, client)
    for side in (ours, theirs, ours):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    der = ours.getpeercert(binary_form=True)
    assert der is not None
    return der
