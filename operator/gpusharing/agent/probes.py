"""The server of /healthz, /readyz and /metrics, and who may read the metrics.

It runs in a thread that outlives a stuck event loop. It uses plain HTTP or TLS, with a certificate that the process
makes itself. With TLS, only those whom the API server allows may read /metrics.
"""

import _ssl
import asyncio
import base64
import ctypes
import hashlib
import logging
import os
import secrets
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any, TypeAlias

from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import CollectorRegistry

from gpusharing.kube.client import ACCESS_REVIEWS, JSON, TOKEN_REVIEWS, KubeClient, Resource
from gpusharing.kube.errors import KubeError
from gpusharing.kube.raw import part, section, text

log = logging.getLogger(__name__)

REMEMBERED_SECONDS = 60.0
"""How long an answer about a token is used. A revoked token is accepted for as long."""
MOST_REMEMBERED = 32
"""The most tokens whose answers are cached. The oldest refusal makes room for a new one, or else the oldest answer."""
PATIENCE = 3.0
"""Seconds for both reviews of a token together; the server ends a connection after ten."""
MOST_WAITING = 4
"""The most requests that wait for a review at a time, including the one whose token is being reviewed."""


Decision: TypeAlias = tuple[int, str]
"""Whether a request may read the metrics, as an HTTP status; and if not, why, and what to do."""
ALLOWED: Decision = 200, ""
UNAUTHENTICATED: Decision = 401, "send `Authorization: Bearer TOKEN` with a valid token that may get /metrics"
UNDECIDED: Decision = 503, "the API server could not be asked whether this token may read /metrics; try again"


class MetricsAccess:
    """Decides by the API server who may read the metrics. Safe to call from several threads.

    As for a kubelet, a TokenReview says whose token it is, and a SubjectAccessReview whether that user may get
    `/metrics`. One token is reviewed at a time and few requests wait for that, so a flood of tokens costs the API
    server one call at a time. A reader whose answer is cached does not wait, and refused tokens do not displace that
    answer.
    """

    def __init__(self, api: KubeClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._api, self._clock = api, clock
        self._loop = asyncio.get_running_loop()
        self._alone, self._places = threading.Lock(), threading.Semaphore(MOST_WAITING)
        self._decisions: dict[bytes, tuple[float, Decision]] = {}
        """When each answer was received, and the answer, by the hash of the token, oldest first."""
        self._error = ""

    def decide(self, authorization: str) -> Decision:
        """Decide about a request with this Authorization header.

        Blocks for up to PATIENCE for each review before this one; must not be called from the event loop.
        """
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            return UNAUTHENTICATED
        key = hashlib.sha256(token.encode()).digest()
        if (known := self._cached(key)) is not None:
            return known
        if not self._places.acquire(blocking=False):
            return UNDECIDED
        try:
            with self._alone:
                # Another request may have brought the answer about this token meanwhile.
                if (known := self._cached(key)) is not None:
                    return known
                decision = self._ask(token)
                if decision is not UNDECIDED:
                    self._decisions.pop(key, None)
                    self._decisions[key] = self._clock(), decision
                    if len(self._decisions) > MOST_REMEMBERED:  # made-up tokens displace no reader
                        refused = (old for old, (_, found) in self._decisions.items() if found is not ALLOWED)
                        del self._decisions[next(refused, next(iter(self._decisions)))]
                return decision
        finally:
            self._places.release()

    def _cached(self, key: bytes) -> Decision | None:
        received, decision = self._decisions.get(key, (0.0, None))
        return decision if self._clock() - received < REMEMBERED_SECONDS else None

    def _ask(self, token: str) -> Decision:
        review = self._review(token)
        try:
            future = asyncio.run_coroutine_threadsafe(review, self._loop)
        except RuntimeError:
            review.close()
            return UNDECIDED
        try:
            decision = future.result(PATIENCE)
        except (KubeError, TimeoutError, CancelledError) as error:
            future.cancel()
            why = str(error) or "the API server gave no answer in time"
            if why != self._error:
                log.warning("cannot check who reads the metrics, so nobody may", extra={"error": why})
            self._error = why
            return UNDECIDED
        self._error = ""
        return decision

    async def _review(self, token: str) -> Decision:
        answer = await self._create(TOKEN_REVIEWS, "TokenReview", {"token": token})
        user = section(answer, "user")
        name = text(user, "username")
        if part(answer, "authenticated") is not True or not name:
            return UNAUTHENTICATED
        spec: JSON = {key: user[key] for key in ("uid", "groups", "extra") if key in user}
        spec |= {"user": name, "nonResourceAttributes": {"path": "/metrics", "verb": "get"}}
        answer = await self._create(ACCESS_REVIEWS, "SubjectAccessReview", spec)
        if part(answer, "allowed") is True:
            return ALLOWED
        return (
            403,
            f"user {name} may not get /metrics: bind ClusterRole gpusharing-metrics-reader to that user",
        )

    async def _create(self, kind: Resource, name: str, spec: JSON) -> JSON:
        answer = await self._api.create(kind, {"apiVersion": kind.api_version, "kind": name, "spec": spec})
        return section(answer, "status")


MOST_CONNECTIONS = 16
"""The most connections at a time; the kubelet's probes and a few Prometheus servers need two or three."""
SECONDS = 10.0
"""The longest time for one connection, from its beginning to its end."""

_TEXT = "text/plain; charset=utf-8"
Probe = Callable[[], str]
"""Returns what is wrong, or an empty string if everything is fine."""


class ProbeServer(ThreadingTCPServer):
    """Serves the probes and metrics from `start` to `stop`.

    It listens from the beginning, at a free port if that is 0. A client with idle connections cannot block it: when
    there are too many connections, the oldest one is closed for a new one. ThreadingHTTPServer does not fit: it looks
    up its own name in DNS before it listens. `decide` gets the Authorization header of a request for the metrics.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self,
        address: tuple[str, int],
        alive: Probe,
        ready: Probe,
        metrics: CollectorRegistry,
        *,
        tls: ssl.SSLContext | None = None,
        decide: Callable[[str], Decision] = lambda _: ALLOWED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock, self._tls = clock, tls
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}
        """When each open connection began, oldest first. A socket is removed before it is closed."""
        super().__init__(address, _handler(alive, ready, metrics, decide))
        self._thread = threading.Thread(target=self.serve_forever, name="probes", daemon=True)

    @property
    def port(self) -> int:
        port: int = self.server_address[1]
        return port

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Accept no more connections and free the port; requests under way are not awaited.

        Waits forever without `start`.
        """
        self.shutdown()
        self.server_close()
        self._thread.join()

    def get_request(self) -> tuple[socket.socket, Any]:
        request, client = super().get_request()
        if self._tls is not None:
            # The handshake takes place in the connection's thread, so that a slow client holds up no other.
            request = self._tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        return request, client

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            while len(self._open) >= MOST_CONNECTIONS:
                self._end(next(iter(self._open)))
            self._open[request] = self._clock()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        late = self._clock() - SECONDS
        with self._lock:
            for request in [each for each, began in self._open.items() if began < late]:
                self._end(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # The client went away, its TLS handshake failed, or its connection was shut down.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def _end(self, request: socket.socket) -> None:
        """Shut a connection down, which makes its thread return. The caller holds the lock."""
        self._open.pop(request, None)
        # SSLSocket.shutdown would take the TLS state away from the thread that reads, so the plain socket's is used.
        with suppress(OSError):
            socket.socket.shutdown(request, socket.SHUT_RDWR)


def _handler(
    alive: Probe, ready: Probe, metrics: CollectorRegistry, decide: Callable[[str], Decision]
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            match self.path.partition("?")[0]:
                case "/healthz":
                    self._answer_probe(alive())
                case "/readyz":
                    self._answer_probe(ready())
                case "/metrics":
                    status, why_not = decide(self.headers.get("Authorization", ""))
                    if status == 200:
                        self._answer(200, CONTENT_TYPE_LATEST, generate_latest(metrics))
                    else:
                        self._answer(status, _TEXT, f"{why_not}\n".encode())
                case _:
                    self._answer(404, "text/plain", b"try /healthz, /readyz or /metrics\n")

        def log_message(self, format: str, *args: object) -> None:
            """Log no request, because probes come every few seconds."""

        def _answer_probe(self, why_not: str) -> None:
            self._answer(503 if why_not else 200, _TEXT, f"{why_not or 'ok'}\n".encode())

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            if status == 401:
                self.send_header("WWW-Authenticate", "Bearer")
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


DAYS_VALID = 3650  # each process makes a certificate of its own, so this need only outlast a process


class _Pointer(ctypes.c_void_p):
    """The address of one of OpenSSL's objects.

    ctypes turns a plain c_void_p into an int, and passes that on as 32 bits.
    """


def self_signed(name: str) -> ssl.SSLContext:
    """Return a context for a TLS server with a new P-256 key and a self-signed certificate for `name`.

    The common name has at most 64 characters. OpenSSL makes the certificate, which Python's `ssl` is linked with: `ssl`
    itself makes none, and the image has neither the library `cryptography` nor the program `openssl`. The key never
    leaves the memory of the process.

    Raises ssl.SSLError if OpenSSL fails, and AttributeError if Python is not linked with a shared library of OpenSSL
    3.0 or newer.
    """
    # OpenSSL's objects are never freed, because a process makes only one of each.
    key = _call(_Pointer, "EVP_PKEY_Q_keygen", None, None, b"EC", b"P-256")
    certificate = _call(_Pointer, "X509_new")
    for field, days in (("notBefore", 0), ("notAfter", DAYS_VALID)):
        moment = _call(_Pointer, f"X509_getm_{field}", certificate)
        _call(_Pointer, "X509_gmtime_adj", moment, ctypes.c_long(days * 24 * 3600))
    serial = _call(_Pointer, "X509_get_serialNumber", certificate)
    _call(ctypes.c_int, "ASN1_INTEGER_set_uint64", serial, ctypes.c_uint64(secrets.randbits(63)))
    _call(ctypes.c_int, "X509_set_version", certificate, ctypes.c_long(2))  # which means version 3
    subject, utf8 = _call(_Pointer, "X509_get_subject_name", certificate), 0x1000
    _call(ctypes.c_int, "X509_NAME_add_entry_by_txt", subject, b"CN", utf8, name.encode(), -1, -1, 0)
    _call(ctypes.c_int, "X509_set_issuer_name", certificate, subject)
    _call(ctypes.c_int, "X509_set_pubkey", certificate, key)
    _call(ctypes.c_int, "X509_sign", certificate, key, _call(_Pointer, "EVP_sha256"))
    encoded = base64.encodebytes(_encoded("i2d_PrivateKey", key)).decode()
    text = f"-----BEGIN EC PRIVATE KEY-----\n{encoded}-----END EC PRIVATE KEY-----\n"
    text += ssl.DER_cert_to_PEM_cert(_encoded("i2d_X509", certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    file = os.memfd_create("certificate")  # load_cert_chain takes only the path of a file
    try:
        os.write(file, text.encode())
        context.load_cert_chain(f"/proc/self/fd/{file}")
    finally:
        os.close(file)
    return context


def _encoded(name: str, source: _Pointer) -> bytes:
    buffer = ctypes.create_string_buffer(_call(ctypes.c_int, name, source, None))
    _call(ctypes.c_int, name, source, ctypes.byref(ctypes.cast(buffer, _Pointer)))
    return buffer.raw


def _call(kind: type, name: str, *arguments: object) -> Any:
    """Call a function of OpenSSL. Each of those used here reports a failure as NULL, zero or a negative number."""
    function = getattr(ctypes.CDLL(_ssl.__file__), name)
    function.restype = kind
    result = function(*arguments)
    if not result or (isinstance(result, int) and result < 0):
        raise ssl.SSLError(f"OpenSSL failed in {name}")
    return result
