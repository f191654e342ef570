"""Query a Prometheus through its HTTP API, as https://prometheus.io/docs/prometheus/latest/querying/api describes it.

The server is reached directly at its address, or as a Service through the API server. Any answer other than data is
raised as a `Trouble`.
"""

import asyncio
import errno
import json
import math
import os
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from sys import intern
from typing import Any, TypeVar
from urllib.parse import urlsplit

from gpusharing.kube.aio import aiohttp
from gpusharing.kube.errors import Unauthorized, one_error
from gpusharing.kube.proxies import find_proxy
from gpusharing.kube.raw import section
from kubectl_gpusharing.shell.drawing import printable
from kubectl_gpusharing.shell.troubles import Trouble, error_text

T = TypeVar("T")
MOST_CHARACTERS = 300
"""How many characters of a message from another program are shown."""
PORT_FORWARD = (
    "To reach one inside a cluster: kubectl -n monitoring port-forward svc/prometheus-operated 9090, then"
    " --prometheus http://127.0.0.1:9090"
)
PLAIN_TO_TLS = re.compile(r"HTTP request (?:was sent )?to (?:an )?HTTPS (?:server|port)")
"""Matches `Client sent an HTTP request to an HTTPS server.` (Go net/http/server.go at 1.24, status 400) and `The plain
HTTP request was sent to HTTPS port` (nginx, in an HTML page)."""
WANTS_CLIENT = "ALERT_CERTIFICATE_REQUIRED"
"""OpenSSL's name for the TLS 1.3 alert that a server sends if we showed no certificate (RFC 8446, 6.2)."""
NO_FLAG = (
    "this plugin cannot present a client certificate, so use a port that does not require one, for example with"
    " --service NAMESPACE/NAME:PORT, or a proxy that presents one"
)
OTHER_NAME, OLD, EARLY, UNKNOWN_AUTHORITY = (62, 64), (10,), (9,), (2, 18, 19, 20, 21)
"""Codes of OpenSSL 3.0.19 for a certificate that was issued for another name, has expired, is not valid yet, or comes
from an unknown authority (include/openssl/x509_vfy.h, X509_V_ERR_...)."""


@dataclass(frozen=True, slots=True)
class WebAnswer:
    """An HTTP response, successful or not."""

    status: int
    """The HTTP status code."""
    data: Mapping[str, Any]
    """The decoded JSON; empty if the body is not a JSON object."""
    line: str
    """The first line of the body if its content type is text/plain; else empty."""
    wants_tls: bool
    """Whether the server complains that it received plain HTTP on a TLS port."""

    @property
    def of_api_server(self) -> bool:
        """Whether the API server itself answered (with apimachinery's metav1.Status) instead of passing on the
        response of a Service."""
        return self.data.get("kind") == "Status"

    @property
    def message(self) -> str:
        """The error message of the JSON body on one line (`one_line`), preceded by a colon and a space; empty if there
        is none. Prometheus puts it in `error`, which is preferred, and Kubernetes in `message`."""
        text = one_line(self.data.get("error") or self.data.get("message"))
        return f": {text}" if text else ""


def answer_of(status: int, kind: str, body: bytes | bytearray) -> WebAnswer:
    """Parse a response with this HTTP status, the content type `kind`, and this body. If the body is not a JSON object,
    `data` is empty; that is not an error. `line` is only filled for text/plain. `wants_tls` is only true for status
    400, if the text matches PLAIN_TO_TLS. Both are found in the first 4096 bytes of the body."""
    try:
        data = section(json.loads(body))
    except (ValueError, RecursionError):
        data = {}
    beginning = body[:4096].decode(errors="replace").strip()
    line = one_line(next(iter(beginning.splitlines()), "")) if kind == "text/plain" else ""
    return WebAnswer(status, data, line, bool(PLAIN_TO_TLS.search(beginning)) and status == 400)


def refused(answer: WebAnswer, where: str, through: str) -> Trouble:
    """Return the Trouble for HTTP 401 or 403. The remedy depends on who refused: the Prometheus, which needs a token
    (and therefore its own address, if it was queried through an API server), or the API server, which needs a new login
    (401) or permission for services/proxy (403). `where` names the Prometheus in the message (`Endpoint.where`).
    `through` is the cluster whose API server passed the query on; it is empty if Prometheus was queried directly."""
    if not through:
        remedy = "pass a token that it accepts: --token-file FILE"
    elif not answer.of_api_server:
        remedy = (
            "it requires its own login, which the API server does not pass on: use --prometheus URL and"
            " --token-file FILE"
        )
    elif answer.status == 401:
        remedy = f"the credentials for {through} have expired or were rejected: log in again"
    else:
        remedy = "you need permission to get services/proxy there, or pass --prometheus URL"
    return Trouble(f"{where} denies access (HTTP {answer.status}{answer.message}): {remedy}")


def without_data(answer: WebAnswer, where: str, through: str) -> Trouble:
    """Return the Trouble for a response that is not a successful one. For HTTP 401 and 403 it is that of `refused`. A
    response without an `errorType`, or with an HTTP status below 400 and another JSON status than `error`, did not come
    from a Prometheus. If the port expects TLS, the message then says so; otherwise it quotes the HTTP status with the
    message of the JSON body or, without one, the first line of a plain text. In all other cases, the message says why
    Prometheus could not evaluate the query, and adds how to ask for less (LESS) after a time-out, a cancellation or an
    error that matches TOO_MUCH. For `where` and `through` see `refused`."""
    data = answer.data
    if answer.status in (401, 403):
        return refused(answer, where, through)
    if "errorType" in data and (answer.status >= 400 or data.get("status") == "error"):
        error = data.get("error")
        too_much = data["errorType"] in ("timeout", "canceled") or TOO_MUCH.search(str(error))
        return Trouble(f"{where} cannot answer the query: {one_line(error)}{f'; {LESS}' if too_much else ''}")
    if answer.wants_tls:
        secure = f"--prometheus {where.replace('http:', 'https:', 1)}"
        remedy = "--service NAMESPACE/https:NAME:PORT" if through else secure
        return Trouble(f"{where} expects TLS but was queried without it: use {remedy}")
    words = answer.message or (f": {answer.line}" if answer.line else "")
    return stranger(f"HTTP {answer.status}{words}", where)


def stranger(what: str, where: str) -> Trouble:
    """Return the Trouble for a server that is not a Prometheus. `what` is a clause about its response, such as `HTTP
    404: not found`."""
    return Trouble(
        f"{where} does not respond like a Prometheus ({what}). Pass the address that serves"
        " /api/v1/query, for example http://127.0.0.1:9090"
    )


def unreachable(error: Exception, where: str, through: str) -> Trouble:
    """Return the Trouble for a query that got no response. The remedy depends on `error`: a certificate that is not
    trusted, a server that demands a client certificate, another failure of TLS, an invalid address, or anything else,
    which is described as no Prometheus responding. In the last case, if the server closed the connection to an https
    address, the message adds that it may require a client certificate. For `where` and `through` see `refused`."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return _untrusted(error.certificate_error, where, through)
    if WANTS_CLIENT in str(error):
        return Trouble(f"{where} requires client authentication: {NO_FLAG}")
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return Trouble(f"TLS with {where} failed: {error_text(error)}. Is it an http:// address?")
    if isinstance(error, aiohttp.InvalidURL):
        return Trouble(f"{where} is not a valid address; use one like http://127.0.0.1:9090")
    # The alert arrives after our handshake, and is lost if the server closes the connection before we read it.
    ended = isinstance(error, aiohttp.ServerDisconnectedError | ConnectionResetError)
    ended = ended or getattr(error, "errno", None) in (errno.ECONNRESET, errno.EPIPE)
    secure = where.startswith("https:")
    maybe = f"It may require client authentication: {NO_FLAG}. " if ended and secure else ""
    return Trouble(f"no Prometheus responds at {where}: {error_text(error)}. {maybe}{PORT_FORWARD}")


def _untrusted(error: Exception, where: str, through: str) -> Trouble:
    """Return the Trouble for a certificate that was rejected. OpenSSL's error code decides on the remedy: the
    certificate was issued for another name, has expired, is not valid yet, or comes from an unknown authority;
    otherwise, or if `error` has no code, it must be replaced. The first and the last of the four remedies also depend
    on `through`. For `where` and `through` see `refused`."""
    code = error.verify_code if isinstance(error, ssl.SSLCertVerificationError) else 0
    if code in OTHER_NAME:
        host = f"tls-server-name for {through} in the kubeconfig" if through else "the host in --prometheus"
        remedy = f"It was issued for another name: set {host} to a name that it contains"
    elif code in OLD:
        remedy = "It has expired: have it renewed on the server, or correct the clock here"
    elif code in EARLY:
        remedy = "It is not valid yet: correct the clock here, or on the machine that issued it"
    elif code in UNKNOWN_AUTHORITY and through:
        remedy = f"It was not signed by the certificate-authority that the kubeconfig sets for {through}"
    elif code in UNKNOWN_AUTHORITY:
        remedy = "Pass the certificate of the authority that signed it: --ca-file FILE"
    else:
        remedy = "Replace the server's certificate"
    return Trouble(f"the certificate of {where} is not trusted: {error_text(error)}. {remedy}")


def one_line(text: object) -> str:
    """Return a message of another program on one line: with single spaces between words, with ? in place of unprintable
    characters, cut to MOST_CHARACTERS, and then without periods and spaces at its end. None and other empty values
    become an empty string."""
    return printable(" ".join(str(text or "").split())[:MOST_CHARACTERS].rstrip(". "))


SECONDS = 150.0
"""How long to wait for one answer. Prometheus itself gives up after 2 min (--query.timeout)."""
MOST_BYTES = 256 * 2**20
"""The largest answer that is read, in bytes: enough for about a million series."""
PARALLEL = 4
"""How many queries may run at the same time."""
CLOCKS = (1e9, 4e9)
"""The earliest and the latest plausible time of a server's clock, in seconds since 1970: 2001 and 2096."""
LESS = "narrow the query with --selector, or use a --window shorter than a day, for example 6h"
TOO_MUCH = re.compile(r"too many|exceed|\blimit\b")
"""Matches the errors of programs that limit queries: `query processing would load too many samples` (Prometheus
promql/engine.go at d15adb9), `the query hit the max number of series limit` (Cortex
pkg/util/limiter/query_limiter.go at a8c6358), `the query exceeded the maximum number of series` (Mimir
pkg/util/limiter/errors.go at 10cab1c) and `exceeded series limit` (Mimir pkg/storegateway/series_refs.go at
01ddd0e)."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of a Prometheus, and how to log in there."""

    url: str
    """The base URL, without `/api/v1`."""
    where: str
    """The name of this endpoint in messages."""
    authorization: str = ""
    """The value of the Authorization header; empty if none is sent."""
    tls: ssl.SSLContext | None = None
    """The TLS context, or None for the default one of aiohttp."""
    tls_server_name: str | None = None
    """The host name that the server's certificate is checked against, or None for the host name in the URL."""
    proxy: str | None = None
    """The URL of the proxy to use, or None."""
    through: str = ""
    """The cluster whose API server passes queries on; empty if Prometheus is queried directly."""
    renew: Callable[[], Awaitable["Endpoint"]] | None = None
    """Logs in again after that API server answered 401, and returns the new endpoint. None if there are no credentials
    to renew. Raises Trouble."""
    remark: str = ""
    """A remark about how this endpoint was chosen; empty if the user named it."""


@dataclass(frozen=True, slots=True)
class Series:
    """One time series: its labels and its values."""

    labels: Mapping[str, str]
    """The labels of the series."""
    points: tuple[tuple[float, float], ...]
    """Pairs of a time, in seconds since 1970, and the value at that time; oldest first."""

    @property
    def value(self) -> float:
        """The newest value of the series, which must have at least one point."""
        return self.points[-1][1]

    @property
    def node(self) -> str:
        """The name of the node that the series is about; empty if it has no label `node`."""
        return self.labels.get("node", "")


@dataclass(slots=True)
class Prometheus:
    """A client of one Prometheus. All methods raise Trouble if a query fails."""

    session: aiohttp.ClientSession
    """The HTTP session, which is closed by `prometheus_at`."""
    place: Endpoint
    """The endpoint that is queried. It is replaced when credentials are renewed."""
    warnings: set[str] = field(default_factory=set)
    """The warnings in all answers so far. An answer with a warning is incomplete."""
    _renewing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while credentials are renewed, so that only one of several refused queries does so."""

    async def now(self) -> float:
        """Return the time by the clock of the Prometheus, which may differ from ours, in seconds since 1970. Raises
        Trouble if the query fails, if the answer is not a single series, or if that time is implausible (outside
        CLOCKS)."""
        answer = await self.instant("vector(time())", None)
        if len(answer) != 1:
            raise stranger("it returned no time", self.place.where)
        first, last = CLOCKS
        if not first <= answer[0].value <= last:
            when = "before 2001" if answer[0].value < first else "after 2096"
            raise Trouble(
                f"the clock on {self.place.where} is set to a time {when}, which cannot be right: correct it, or use"
                " another Prometheus, for example with --prometheus http://127.0.0.1:9090"
            )
        return answer[0].value

    async def instant(self, query: str, at: float | None) -> list[Series]:
        """Return the series that `query` yields at the time `at`, in seconds since 1970, or at the server's present
        time if `at` is None. Series whose value is not finite are left out. Raises Trouble if the query fails or
        its result cannot be read."""
        parameters = {"query": query} | ({} if at is None else {"time": f"{at:.3f}"})
        answer = await self._result("query", parameters, "vector")
        return [series for series in answer if series.points and math.isfinite(series.value)]

    async def between(
        self, query: str, start: float, end: float, step: float, *, whole: tuple[float, float] | None = None
    ) -> list[Series]:
        """Return the series of `between_all` without values that are not finite, which may leave a series without
        points. Raises Trouble if the query fails or its result cannot be read.

        Values at least half a step before `start` or after `end` are left out, because a proxy in front of Prometheus
        may move both to multiples of the step (Mimir's pkg/frontend/querymiddleware/step_align.go at 0c388a4, Thanos'
        query frontend). If several queries together cover a longer time, `whole` is its start and end, and takes the
        place of `start` and `end` in this check: a value that one of the queries loses is then in the answer to the
        query before it.
        """
        begin, last = whole or (start, end)
        begin, last = begin - step / 2, last + step / 2
        answer: list[Series] = []
        for series in await self.between_all(query, start, end, step):
            points = (point for point in series.points if begin < point[0] < last and math.isfinite(point[1]))
            answer.append(Series(series.labels, tuple(points)))
        return answer

    async def between_all(self, query: str, start: float, end: float, step: float) -> list[Series]:
        """Return the series that `query` yields from `start` to `end`, with a value every `step` seconds, including
        values that are infinite or not a number. Raises Trouble if the query fails or its result cannot be read."""
        parameters = {"query": query, "start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step:.3f}"}
        return await self._result("query_range", parameters, "matrix")

    async def _result(self, path: str, parameters: Mapping[str, str], kind: str) -> list[Series]:
        """Send a query to the API path `path` and return the series of its result. Warnings in the response are added
        to `warnings`. If an API server answered 401 and credentials can be renewed, renew them once for all concurrent
        queries that used them, store the new endpoint in `place`, and send the query again, as kube/http.py does. It is
        sent again only once. Raises Trouble if the response is not a successful one (`without_data`), whose HTTP status
        is below 400 and whose JSON says `success`, if the result cannot be read or its type is not `kind` (`vector` or
        `matrix`), if the login fails, and as `_call` does."""
        place = self.place
        answer = await self._call(place, path, parameters)
        if answer.status == 401 and answer.of_api_server and place.renew is not None:
            async with self._renewing:
                if self.place is place:
                    self.place = await place.renew()
            answer = await self._call(self.place, path, parameters)
        if answer.status >= 400 or answer.data.get("status") != "success":
            raise without_data(answer, self.place.where, self.place.through)
        try:
            data = answer.data["data"]
            if data["resultType"] != kind:
                raise TypeError(f"a {data['resultType']} instead of a {kind}")
            self.warnings.update(printable(str(item)) for item in answer.data.get("warnings") or ())
            return [_series(item) for item in data["result"]]
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            what = f"its response has no valid result: {error_text(error)}"
            raise stranger(what, self.place.where) from error

    async def _call(self, place: Endpoint, path: str, parameters: Mapping[str, str]) -> WebAnswer:
        """Send one GET request to `place`, with its Authorization header if it has one, without following redirects,
        and return the response even if its HTTP status is an error. Raises Trouble if there is no response within
        SECONDS, and as soon as more than MOST_BYTES of it have arrived."""
        headers = {"Authorization": place.authorization} if place.authorization else {}
        try:
            async with self.session.get(
                f"{place.url}/api/v1/{path}",
                params=parameters,
                headers=headers,
                ssl=place.tls or True,
                server_hostname=place.tls_server_name,
                proxy=place.proxy,
                # A redirect could send our credentials to another server.
                allow_redirects=False,
            ) as response:
                body = bytearray()
                async for part in response.content.iter_any():
                    body += part
                    if len(body) > MOST_BYTES:
                        size = f"a response from {place.where} is larger than {MOST_BYTES >> 20} MiB"
                        raise Trouble(f"{size}: narrow the query with --selector")
                return answer_of(response.status, response.content_type, body)
        except TimeoutError as error:
            raise Trouble(f"{place.where} did not respond within {SECONDS:g} s: {LESS}") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise unreachable(error, place.where, place.through) from error


@asynccontextmanager
async def prometheus_at(place: Endpoint) -> AsyncIterator[Prometheus]:
    """Yield a client for the Prometheus at `place`, and close its connections afterwards. It opens at most PARALLEL
    connections, and waits SECONDS for an answer, of which at most 10 s for a connection. Nothing is sent before the
    first query."""
    limits = aiohttp.ClientTimeout(total=SECONDS, sock_connect=10.0)
    connector = aiohttp.TCPConnector(limit=PARALLEL)
    async with aiohttp.ClientSession(connector=connector, timeout=limits) as session:
        yield Prometheus(session, place)


def place_of(
    url: str, token_file: str, ca_file: str, environment: Mapping[str, str] = os.environ
) -> Endpoint:
    """Return how to reach the Prometheus at `url`, with the token in `token_file` and the authorities in `ca_file`
    (both may be empty), through the proxy that `environment` names, if any. Without a file of authorities, an https
    address is checked against those of this machine. Nothing is sent. Raises Trouble if the address is no valid http or
    https URL or contains `@`, a query or a fragment, if a file cannot be read or has no token or no certificates, if
    the proxy cannot be used, or if the token would be sent by http to another machine."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if "@" in url:  # checked first, because the next message repeats what was typed
        raise Trouble(
            "--prometheus: do not put a password in the address, where others can see it: use --token-file FILE"
        )
    if not usable or parts.query or parts.fragment:
        raise Trouble(f"--prometheus {url} is not a valid address; use one like http://127.0.0.1:9090")
    if token_file and parts.scheme == "http" and not _is_this_machine(parts.hostname or ""):
        raise Trouble(
            f"--token-file: the token would be sent unencrypted to {url}: use https://, or a"
            " port-forward to 127.0.0.1"
        )
    authorization, trust = "", None
    if token_file:
        token = _text(token_file, "--token-file")
        if not token.isascii() or not token.isprintable() or not token or " " in token:
            raise Trouble(
                f"--token-file {token_file}: it does not contain a token; it must be one line with nothing but the"
                " token"
            )
        authorization = f"Bearer {token}"
    try:
        if parts.scheme == "https" or ca_file:  # without a file, the authorities of this machine
            trust = ssl.create_default_context(cadata=_text(ca_file, "--ca-file") if ca_file else None)
    except (ssl.SSLError, ValueError) as error:
        raise Trouble(f"--ca-file {ca_file}: it contains no PEM certificates: {error_text(error)}") from error
    try:
        proxy = find_proxy(url, None, environment)
    except Unauthorized as error:
        raise Trouble(error_text(error)) from error
    return Endpoint(url.rstrip("/"), url, authorization, trust, proxy=proxy)


def _is_this_machine(host: str) -> bool:
    """Whether a host name or address always refers to this machine: `localhost` or a loopback address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _text(name: str, flag: str) -> str:
    """Return the content of the file `name` without surrounding whitespace. Raises Trouble, which names `flag`, if it
    cannot be read or is not text."""
    try:
        return Path(name).read_text().strip()
    except (OSError, ValueError) as error:
        raise Trouble(f"{flag} {name} cannot be read: {error_text(error)}") from error


def _series(raw: Any) -> Series:
    """Convert the JSON of one series in a result: its `values` if it has any, or else its one `value`. Values that are
    infinite or not a number are kept. Unprintable characters of labels become ?. Raises KeyError, TypeError,
    AttributeError, ValueError or OverflowError if it does not have the expected form."""
    points = raw["values"] if "values" in raw else [raw["value"]]
    # Many series have the same labels, and a bill holds a hundred thousand series.
    labels = {intern(printable(name)): intern(printable(text)) for name, text in raw["metric"].items()}
    return Series(labels, tuple((float(at), float(value)) for at, value in points))


async def side_by_side(*queries: Coroutine[Any, Any, T]) -> list[T]:
    """Run queries concurrently and return their answers in the same order. If one raises Trouble or any other error,
    cancel the others, wait for them to end, and raise the first error."""
    with one_error():
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(query) for query in queries]
    return [task.result() for task in tasks]
