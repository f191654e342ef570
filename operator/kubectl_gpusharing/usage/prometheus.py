"""What does a Prometheus answer to a query?

It is asked by its HTTP API (https://prometheus.io/docs/prometheus/latest/querying/api). Any answer other than data is
raised as a `Trouble`.
"""

import asyncio
import errno
import json
import math
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from sys import intern

from gpusharing.kube.aio import aiohttp
from gpusharing.kube.client import JSON
from gpusharing.kube.raw import section
from kubectl_gpusharing.shell.drawing import printable
from kubectl_gpusharing.shell.troubles import Trouble, error_text

MOST_CHARACTERS = 300
"""How many characters of a message from another program are shown."""
PORT_FORWARD = (
    "To reach one inside a cluster: kubectl -n monitoring port-forward svc/prometheus-operated 9090, then"
    " --prometheus http://127.0.0.1:9090"
)
PLAIN_TO_TLS = re.compile(r"HTTP request (?:was sent )?to (?:an )?HTTPS (?:server|port)")
"""Matches what a TLS port answers to plain HTTP (Go net/http/server.go at 1.24, status 400, or nginx, an HTML page)."""
WANTS_CLIENT = "ALERT_CERTIFICATE_REQUIRED"
"""OpenSSL's name for the TLS 1.3 alert of a server to which we showed no certificate (RFC 8446, 6.2)."""
NO_FLAG = (
    "this plugin cannot present a client certificate, so use a port that does not require one, for example with"
    " --service NAMESPACE/NAME:PORT, or a proxy that presents one"
)
OTHER_NAME, EXPIRED, NOT_YET_VALID, UNKNOWN_AUTHORITY = (62, 64), (10,), (9,), (2, 18, 19, 20, 21)
"""X509_V_ERR_... of OpenSSL 3.0.19 (include/openssl/x509_vfy.h); OTHER_NAME: the certificate is for another name."""


SECONDS = 150.0
"""How long to wait for one answer. Prometheus itself gives up after 2 min (--query.timeout)."""
MOST_BYTES = 256 * 2**20
"""The largest answer that is read, in bytes: enough for about a million series."""
PARALLEL = 4
"""How many queries may run at the same time."""
CLOCKS = (1e9, 4e9)
"""The earliest and latest time that a server's clock may show, in seconds since 1970: 2001 and 2096."""
NARROW_QUERY = "narrow the query with --match, or use a --window shorter than a day, for example 6h"
TOO_MUCH = re.compile(r"too many|exceed|\blimit\b")
"""Matches the errors of programs that limit queries.

They are `query processing would load too many samples` (Prometheus promql/engine.go at d15adb9), `the query hit the max
number of series limit` (Cortex pkg/util/limiter/query_limiter.go at a8c6358), `the query exceeded the maximum number of
series` (Mimir pkg/util/limiter/errors.go at 10cab1c), and `exceeded series limit` (Mimir
pkg/storegateway/series_refs.go at 01ddd0e).
"""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of a Prometheus, and how to log in there."""

    url: str
    """The base URL, without `/api/v1`."""
    where: str
    authorization: str = ""
    tls: ssl.SSLContext | None = None
    tls_server_name: str | None = None
    """The host name expected in the server's certificate; None for the one in the URL."""
    proxy: str | None = None
    through: str = ""
    """The cluster whose API server passes queries on; empty if Prometheus is queried directly."""
    renew: Callable[[], Awaitable["Endpoint"]] | None = None
    """Logs in again after that API server answered 401, and returns the new endpoint. Raises Trouble."""
    remark: str = ""
    """A remark about how this endpoint was chosen; empty if the user named it."""


@dataclass(frozen=True, slots=True)
class Response:
    """The response of a server that may be a Prometheus, or the API server before it."""

    status: int
    kind: str
    """The content type."""
    beginning: str
    """The first characters of the body."""
    data: JSON
    """The JSON object in the body; empty if there is none."""

    @property
    def of_api_server(self) -> bool:
        """Whether the API server itself answered, with apimachinery's metav1.Status, and not the Service behind it."""
        return self.data.get("kind") == "Status"


def without_data(response: Response, endpoint: Endpoint) -> Trouble:
    """Return the Trouble for a response other than data."""
    where, through, status, data = endpoint.where, endpoint.through, response.status, response.data
    message = one_line(data.get("error") or data.get("message"))
    words = f": {message}" if message else ""
    if status in (401, 403):
        if not through:
            remedy = "pass a token that it accepts: --token-file FILE"
        elif not response.of_api_server:
            remedy = (
                "it requires its own login, which the API server does not pass on: use --prometheus URL and"
                " --token-file FILE"
            )
        elif status == 401:
            remedy = f"the credentials for {through} have expired or were rejected: log in again"
        else:
            remedy = "you need permission to get services/proxy there, or pass --prometheus URL"
        return Trouble(f"{where} denies access (HTTP {status}{words}): {remedy}")
    if "errorType" in data and (status >= 400 or data.get("status") == "error"):
        error = data.get("error")
        too_much = data["errorType"] in ("timeout", "canceled") or TOO_MUCH.search(str(error))
        return Trouble(f"{where} cannot answer the query: {one_line(error)}{f'; {NARROW_QUERY}' if too_much else ''}")
    if status == 400 and PLAIN_TO_TLS.search(response.beginning):
        secure = f"--prometheus {where.replace('http:', 'https:', 1)}"
        remedy = "--service NAMESPACE/https:NAME:PORT" if through else secure
        return Trouble(f"{where} expects TLS but was queried without it: use {remedy}")
    line = one_line(next(iter(response.beginning.splitlines()), "")) if response.kind == "text/plain" else ""
    return not_a_prometheus(f"HTTP {status}{words or (line and f': {line}')}", where)


def not_a_prometheus(what: str, where: str) -> Trouble:
    """Return the Trouble for a server that is not a Prometheus; `what` is a clause about its response."""
    return Trouble(
        f"{where} does not respond like a Prometheus ({what}). Pass the address that serves"
        " /api/v1/query, for example http://127.0.0.1:9090"
    )


def unreachable(error: Exception, where: str, through: str) -> Trouble:
    """Return the Trouble for a query that got no response; `through` is that of the `Endpoint`."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        untrusted = error.certificate_error
        code = untrusted.verify_code if isinstance(untrusted, ssl.SSLCertVerificationError) else 0
        host = f"tls-server-name for {through} in the kubeconfig" if through else "the host in --prometheus"
        authority = "Pass the certificate of the authority that signed it: --ca-file FILE"
        if through:
            authority = f"It was not signed by the certificate-authority that the kubeconfig sets for {through}"
        remedies = {
            OTHER_NAME: f"It was issued for another name: set {host} to a name that it contains",
            EXPIRED: "It has expired: have it renewed on the server, or correct the clock here",
            NOT_YET_VALID: "It is not valid yet: correct the clock here, or on the machine that issued it",
            UNKNOWN_AUTHORITY: authority,
        }
        remedy = next((text for codes, text in remedies.items() if code in codes), "Replace the server's certificate")
        return Trouble(f"the certificate of {where} is not trusted: {error_text(untrusted)}. {remedy}")
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


def one_line(text: object) -> str:
    return printable(" ".join(str(text or "").split())[:MOST_CHARACTERS].rstrip(". "))


@dataclass(frozen=True, slots=True)
class Series:
    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]
    """Pairs of a time, in seconds since 1970, and a value, oldest first."""

    @property
    def value(self) -> float:
        return self.points[-1][1]

    @property
    def node(self) -> str:
        return self.label("node")

    @property
    def pod(self) -> tuple[str, str] | None:
        """The namespace and name of the pod that the labels name."""
        # Prometheus renames an exporter's labels so without honorLabels (scrape_config, honor_labels).
        for prefix in ("exported_", ""):
            if name := self.label(f"{prefix}pod"):
                return self.label(f"{prefix}namespace"), name
        return None

    def label(self, name: str) -> str:
        """Return the value of a label; empty if it is missing."""
        return self.labels.get(name, "")

    def exported(self, name: str) -> str:
        """Return the value of a label, whether or not Prometheus renamed it to exported_...; empty if it is missing."""
        return self.labels.get(f"exported_{name}") or self.label(name)

    def changed(self, value: float, **labels: str) -> "Series":
        """Return a series with this value at the time of the last one, and these labels besides or instead."""
        return Series({**self.labels, **labels} if labels else self.labels, ((self.points[-1][0], value),))


@dataclass(slots=True)
class Prometheus:
    """A client of one Prometheus. All methods raise Trouble if a query fails."""

    session: aiohttp.ClientSession
    endpoint: Endpoint
    """The endpoint that is queried; it is replaced when credentials are renewed."""
    warnings: set[str] = field(default_factory=set)
    """The warnings in all answers so far. An answer with a warning is incomplete."""
    _renewing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while credentials are renewed, so that only one of several refused queries does so."""

    async def now(self) -> float:
        """Return the time by the server's clock, in seconds since 1970. Raises Trouble outside of CLOCKS."""
        answer = await self.instant("vector(time())", None)
        if len(answer) != 1:
            raise not_a_prometheus("it returned no time", self.endpoint.where)
        first, last = CLOCKS
        if not first <= answer[0].value <= last:
            when = "before 2001" if answer[0].value < first else "after 2096"
            raise Trouble(
                f"the clock on {self.endpoint.where} is set to a time {when}, which cannot be right: correct it, or use"
                " another Prometheus, for example with --prometheus http://127.0.0.1:9090"
            )
        return answer[0].value

    async def instant(self, query: str, at: float | None) -> list[Series]:
        """Return the series of `query` at a time, or now by the server's clock, without values that are not finite."""
        parameters = {"query": query} | ({} if at is None else {"time": f"{at:.3f}"})
        answer = await self._result("query", parameters, "vector")
        return [series for series in answer if series.points and math.isfinite(series.value)]

    async def between(
        self, query: str, start: float, end: float, step: float, *, whole: tuple[float, float] | None = None
    ) -> list[Series]:
        """Return the series of `between_all` without values that are not finite; a series may then have no points.

        A proxy in front of Prometheus may move start and end to multiples of the step (Mimir's
        pkg/frontend/querymiddleware/step_align.go at 0c388a4, Thanos' query frontend), so values half a step
        outside are left out. `whole` is the time of several queries: what one loses is in the answer before.
        """
        begin, last = whole or (start, end)
        begin, last = begin - step / 2, last + step / 2
        answer: list[Series] = []
        for series in await self.between_all(query, start, end, step):
            points = (point for point in series.points if begin < point[0] < last and math.isfinite(point[1]))
            answer.append(Series(series.labels, tuple(points)))
        return answer

    async def between_all(self, query: str, start: float, end: float, step: float) -> list[Series]:
        """Return the series of `query` with a value every `step` seconds, infinite and NaN included."""
        parameters = {"query": query, "start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step:.3f}"}
        return await self._result("query_range", parameters, "matrix")

    async def _result(self, path: str, parameters: Mapping[str, str], wanted: str) -> list[Series]:
        endpoint = self.endpoint
        response = await self._call(endpoint, path, parameters)
        if response.status == 401 and response.of_api_server and endpoint.renew is not None:
            async with self._renewing:
                if self.endpoint is endpoint:
                    self.endpoint = await endpoint.renew()
            response = await self._call(self.endpoint, path, parameters)
        data = response.data
        if response.status >= 400 or data.get("status") != "success":
            raise without_data(response, self.endpoint)
        try:
            if data["data"]["resultType"] != wanted:
                raise TypeError(f"a {data['data']['resultType']} instead of a {wanted}")
            self.warnings.update(printable(str(item)) for item in data.get("warnings") or ())
            # Many series have the same labels, and a bill holds a hundred thousand series.
            return [
                Series(
                    {intern(printable(name)): intern(printable(text)) for name, text in raw["metric"].items()},
                    tuple(
                        (float(at), float(value))
                        for at, value in (raw["values"] if "values" in raw else [raw["value"]])
                    ),
                )
                for raw in data["data"]["result"]
            ]
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            what = f"its response has no valid result: {error_text(error)}"
            raise not_a_prometheus(what, self.endpoint.where) from error

    async def _call(self, endpoint: Endpoint, path: str, parameters: Mapping[str, str]) -> Response:
        headers = {"Authorization": endpoint.authorization} if endpoint.authorization else {}
        try:
            async with self.session.get(
                f"{endpoint.url}/api/v1/{path}",
                params=parameters,
                headers=headers,
                ssl=endpoint.tls or True,
                server_hostname=endpoint.tls_server_name,
                proxy=endpoint.proxy,
                # A redirect could send our credentials to another server.
                allow_redirects=False,
            ) as response:
                body = bytearray()
                async for part in response.content.iter_any():
                    body += part
                    if len(body) > MOST_BYTES:
                        size = f"a response from {endpoint.where} is larger than {MOST_BYTES >> 20} MiB"
                        raise Trouble(f"{size}: narrow the query with --match")
        except TimeoutError as error:
            raise Trouble(f"{endpoint.where} did not respond within {SECONDS:g} s: {NARROW_QUERY}") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise unreachable(error, endpoint.where, endpoint.through) from error
        try:
            data = section(json.loads(body))
        except (ValueError, RecursionError):
            data = {}
        beginning = body[:4096].decode(errors="replace").strip()
        return Response(response.status, response.content_type, beginning, data)


@asynccontextmanager
async def prometheus_at(endpoint: Endpoint) -> AsyncIterator[Prometheus]:
    limits = aiohttp.ClientTimeout(total=SECONDS, sock_connect=10.0)
    connector = aiohttp.TCPConnector(limit=PARALLEL)
    async with aiohttp.ClientSession(connector=connector, timeout=limits) as session:
        yield Prometheus(session, endpoint)


def nodes_of(answer: Iterable[Series]) -> frozenset[str]:
    """Return the names of the nodes in an answer; an empty one stands for series without the label `node`."""
    return frozenset(series.node for series in answer)
