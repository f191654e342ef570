"""Which Prometheus does the plugin query, and how?

The HTTP API (https://prometheus.io/docs/prometheus/latest/querying/api) is reached directly, at the address in
`--prometheus`, or as a Service through the API server. Any answer other than data is raised as a `Trouble`.
"""

import asyncio
import errno
import json
import math
import os
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from sys import intern
from urllib.parse import urlsplit

from gpusharing.kube.aio import aiohttp
from gpusharing.kube.client import JSON, Resource
from gpusharing.kube.errors import Unauthorized
from gpusharing.kube.login import Login, find_proxy
from gpusharing.kube.raw import entries, section, text, whole
from kubectl_gpusharing.shell.arguments import Arguments
from kubectl_gpusharing.shell.drawing import printable
from kubectl_gpusharing.shell.session import Session
from kubectl_gpusharing.shell.session import side_by_side as side_by_side
from kubectl_gpusharing.shell.troubles import Trouble, error_text, explained

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


def without_data(status: int, kind: str, beginning: str, data: JSON, endpoint: Endpoint) -> Trouble:
    """Return the Trouble for an answer other than data: its content type, the beginning of its body, and its JSON."""
    where, through, remedy = endpoint.where, endpoint.through, ""
    message = one_line(data.get("error") or data.get("message"))
    words = f": {message}" if message else ""
    if status in (401, 403):
        if not through:
            remedy = "pass a token that it accepts: --token-file FILE"
        elif data.get("kind") != "Status":  # not by the API server itself
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
    if status == 400 and PLAIN_TO_TLS.search(beginning):
        secure = f"--prometheus {where.replace('http:', 'https:', 1)}"
        remedy = "--service NAMESPACE/https:NAME:PORT" if through else secure
        return Trouble(f"{where} expects TLS but was queried without it: use {remedy}")
    line = one_line(next(iter(beginning.splitlines()), "")) if kind == "text/plain" else ""
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
        return self.labels.get("node", "")


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
        status, kind, beginning, data = await self._call(endpoint, path, parameters)
        # An answer of the API server itself, not of the Service behind it, is apimachinery's metav1.Status.
        if status == 401 and data.get("kind") == "Status" and endpoint.renew is not None:
            async with self._renewing:
                if self.endpoint is endpoint:
                    self.endpoint = await endpoint.renew()
            status, kind, beginning, data = await self._call(self.endpoint, path, parameters)
        if status >= 400 or data.get("status") != "success":
            raise without_data(status, kind, beginning, data, self.endpoint)
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

    async def _call(self, endpoint: Endpoint, path: str, parameters: Mapping[str, str]) -> tuple[int, str, str, JSON]:
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
        return response.status, response.content_type, body[:4096].decode(errors="replace").strip(), data


@asynccontextmanager
async def prometheus_at(endpoint: Endpoint) -> AsyncIterator[Prometheus]:
    limits = aiohttp.ClientTimeout(total=SECONDS, sock_connect=10.0)
    connector = aiohttp.TCPConnector(limit=PARALLEL)
    async with aiohttp.ClientSession(connector=connector, timeout=limits) as session:
        yield Prometheus(session, endpoint)


def endpoint_from_url(url: str, token_file: str, ca_file: str, environment: Mapping[str, str] = os.environ) -> Endpoint:
    """Return how to reach the Prometheus at `url`, through the proxy that `environment` names. Nothing is sent."""
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
    try:
        local = ip_address(parts.hostname or "").is_loopback
    except ValueError:
        local = parts.hostname == "localhost"
    if token_file and parts.scheme == "http" and not local:
        raise Trouble(
            f"--token-file: the token would be sent unencrypted to {url}: use https://, or a port-forward to 127.0.0.1"
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


def _text(name: str, flag: str) -> str:
    try:
        return Path(name).read_text().strip()
    except (OSError, ValueError) as error:
        raise Trouble(f"{flag} {name} cannot be read: {error_text(error)}") from error


def nodes_of(answer: Iterable[Series]) -> frozenset[str]:
    """Return the names of the nodes in an answer; an empty one stands for series without the label `node`."""
    return frozenset(series.node for series in answer)


SERVICES = Resource("", "v1", "services", namespaced=True)
LABELS = (
    {"app": "kube-prometheus-stack-prometheus"},  # kube-prometheus-stack
    {"operated-prometheus": "true"},  # the Prometheus Operator
    {"app": "prometheus", "component": "server"},  # Prometheus' own chart
    {"app": "prometheus-server"},  # manifests of common tutorials
    {"app": "rancher-monitoring-prometheus"},  # Rancher
    {"app.kubernetes.io/name": "prometheus", "app.kubernetes.io/component": "server"},  # Prometheus' own chart
    {"app.kubernetes.io/name": "thanos", "app.kubernetes.io/component": "query"},  # Thanos
    {"app.kubernetes.io/name": "thanos-query"},  # Thanos
)
"""Labels of the Services of common installations, in the order in which they are tried. The first set that any Service
has decides, because several Services may lead to the same Prometheus."""
FLAG_EXAMPLES = "--service monitoring/prometheus-operated:9090, or --prometheus http://127.0.0.1:9090"


async def find_endpoint(session: Session | None, typed: Arguments) -> Endpoint:
    """Return how to reach the Prometheus in `--prometheus` or, with a `session`, one in its cluster."""
    if session is None:
        if typed.service:
            raise Trouble("pass either --prometheus or --service, not both")
        return endpoint_from_url(typed.prometheus, typed.token_file, typed.ca_file)
    if typed.token_file or typed.ca_file:
        raise Trouble(
            "--token-file and --ca-file only work with --prometheus URL; a Service is reached with your kubeconfig"
        )
    return await find_service_endpoint(session, typed.service)


async def find_service_endpoint(session: Session, named: str) -> Endpoint:
    """Return how to reach the Service `named`, or else the only one that looks like a Prometheus.

    The user needs the right `get services/proxy`, and without `named` also `list services` in all namespaces. Whether
    `named` exists is not checked.
    """
    if session.login is None:
        raise Trouble("there is no API server through which a Service can be reached: pass --prometheus URL")
    if not named:
        try:
            services = await session.all(SERVICES)
        except Trouble as trouble:
            raise Trouble(f"{trouble}. To skip the search, pass {FLAG_EXAMPLES}") from trouble
        found = (
            [raw for raw in services if labels.items() <= section(raw, "metadata", "labels").items()]
            for labels in LABELS
        )
        matches = next(filter(None, found), [])
        if len(matches) > 1:
            names = ", ".join(sorted(map(_service_name, matches))[:5])
            raise Trouble(
                f"{session.where} has several Services that look like a Prometheus: {names}. Choose one:"
                f" --service {_service_name(matches[0])}"
            )
        if not matches:
            raise Trouble(f"no Service in {session.where} looks like a Prometheus. Pass {FLAG_EXAMPLES}")
    path = _service_path(named or _service_name(matches[0]))
    return await _service_endpoint(session.login, session.where, path, chosen=not named)


async def _service_endpoint(login: Login, cluster: str, path: str, *, chosen: bool) -> Endpoint:
    where = f"Service {path.replace('/services/', '/')} of {cluster}"
    with explained(cluster):
        access, token = await login.access(), await login.token()

    async def renew() -> Endpoint:
        with explained(cluster):
            await login.renew()
        return await _service_endpoint(login, cluster, path, chosen=chosen)

    return Endpoint(
        url=f"{access.server}/api/v1/namespaces/{path}/proxy",
        where=where,
        authorization=token or "",
        tls=access.tls,
        tls_server_name=access.tls_server_name,
        proxy=access.proxy,
        through=cluster,
        renew=renew,
        # Anyone who may create Services can label one like this, so a person should see which one was queried.
        remark=f"{where} was queried because its labels are those of a Prometheus; use --service to choose another"
        if chosen
        else "",
    )


def _service_path(flag: str) -> str:
    """Return the path below /api/v1/namespaces of the Service in `--service`."""
    name = "[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
    match = re.fullmatch(f"({name})/((?:https?:)?{name}(?::{name})?)", flag)
    if match is None:
        raise Trouble(
            f"--service {flag}: use NAMESPACE/NAME:PORT, for example monitoring/prometheus-operated:9090;"
            " for TLS, use NAMESPACE/https:NAME:PORT"
        )
    namespace, service = match.groups()
    # If there is a scheme, two colons are required (apimachinery v0.36.3, pkg/util/net/port_split.go).
    closed = f"{service}:" if service.startswith(("http:", "https:")) and service.count(":") == 1 else service
    return f"{namespace}/services/{closed}"


def _service_name(raw: JSON) -> str:
    """Return NAMESPACE/NAME:PORT of a Service, with the port that probably serves HTTP."""
    ports = entries(raw, "spec", "ports")
    usual = [port for port in ports if text(port, "name") in ("http-web", "web", "http", "http-query")]
    number = whole(next(iter([*usual, *ports]), {}), "port")
    name = f"{text(raw, 'metadata', 'namespace')}/{text(raw, 'metadata', 'name')}"
    return f"{name}:{number}" if number else name
