"""Which Prometheus does the plugin query?

It is reached directly, at the address in `--prometheus`, or as a Service through the API server.
"""

import os
import re
import ssl
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from gpusharing.kube.client import JSON, Resource
from gpusharing.kube.errors import Unauthorized
from gpusharing.kube.login import Login, find_proxy
from gpusharing.kube.raw import entries, section, text, whole
from kubectl_gpusharing.shell.arguments import Arguments
from kubectl_gpusharing.shell.session import Session
from kubectl_gpusharing.shell.troubles import Trouble, error_text, explained
from kubectl_gpusharing.usage.prometheus import Endpoint

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
