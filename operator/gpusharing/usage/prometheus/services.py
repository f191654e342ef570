"""A Prometheus inside the cluster, queried through the API server: the Service that is named, or the only likely
one.

It needs the right `get services/proxy`, and `list services` in all namespaces to find one.
"""

import re

from gpusharing.cli.shell.session import Session
from gpusharing.cli.shell.troubles import Trouble, sentence
from gpusharing.kube.client import JSON, Resource
from gpusharing.kube.errors import KubeError
from gpusharing.kube.login import Login
from gpusharing.kube.raw import entries, section, text, whole
from gpusharing.usage.prometheus.client import Endpoint

SERVICES = Resource("", "v1", "services", namespaced=True)
LABELS = (
    {"app": "kube-prometheus-stack-prometheus"},
    {"operated-prometheus": "true"},
    {"app": "prometheus", "component": "server"},
    {"app": "prometheus-server"},
    {"app": "rancher-monitoring-prometheus"},
    {"app.kubernetes.io/name": "prometheus", "app.kubernetes.io/component": "server"},
    {"app.kubernetes.io/name": "thanos", "app.kubernetes.io/component": "query"},
    {"app.kubernetes.io/name": "thanos-query"},
)
"""Labels of the Services of common installations: kube-prometheus-stack, the Prometheus Operator, Prometheus' own
chart, Rancher, Thanos. The first set that a Service has wins, as several Services may lead to one Prometheus."""


NAME = "--service monitoring/prometheus-operated:9090, or --prometheus http://127.0.0.1:9090"


async def find_place(session: Session, named: str) -> Endpoint:
    """Return how to reach the Service `named`, as NAMESPACE/NAME:PORT, or the only one that looks like a
    Prometheus. Raises Trouble."""
    if session.login is None:
        raise Trouble("there is no API server to go through: give --prometheus URL")
    path = _path_of(named or _name(_one_of(await _services(session), session.where)))
    try:
        return await _place(session.login, session.where, path, chosen=not named)
    except KubeError as error:
        raise Trouble(sentence(error, session.where)) from error


async def _place(login: Login, cluster: str, path: str, *, chosen: bool) -> Endpoint:
    """Return how to reach the Service at `path` with the current credentials. `chosen` adds the remark that nobody
    named it. Raises KubeError."""
    where = f"Service {path.replace('/services/', '/')} of {cluster}"
    access, token = await login.access(), await login.token()

    async def renew() -> Endpoint:
        """Log in again and return the new endpoint. Raises Trouble."""
        try:
            await login.renew()
            return await _place(login, cluster, path, chosen=chosen)
        except KubeError as error:
            raise Trouble(sentence(error, cluster)) from error

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
        remark=f"{where} was queried, because its labels are those of a Prometheus; use --service to name another"
        if chosen
        else "",
    )


async def _services(session: Session) -> list[JSON]:
    """Return all Services of the cluster. Raises Trouble that also says how to do without."""
    try:
        return await session.all(SERVICES)
    except Trouble as trouble:
        raise Trouble(f"{trouble}. To skip the search, name it: {NAME}") from trouble


def _path_of(flag: str) -> str:
    """Return the path of a Service below /api/v1/namespaces from the value of `--service`. Raises Trouble if it
    has another form."""
    name = "[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
    match = re.fullmatch(f"({name})/((?:https?:)?{name}(?::{name})?)", flag)
    if match is None:
        raise Trouble(
            f"--service {flag}: write NAMESPACE/NAME:PORT, such as monitoring/prometheus-operated:9090; with TLS"
            " NAMESPACE/https:NAME:PORT"
        )
    namespace, service = match.groups()
    # With a scheme there are always two colons (apimachinery v0.36.3, pkg/util/net/port_split.go).
    closed = f"{service}:" if service.startswith(("http:", "https:")) and service.count(":") == 1 else service
    return f"{namespace}/services/{closed}"


def _one_of(services: list[JSON], where: str) -> JSON:
    """Return the Service that looks like a Prometheus. Raises Trouble unless there is exactly one."""
    for labels in LABELS:
        matches = [raw for raw in services if labels.items() <= section(raw, "metadata", "labels").items()]
        if len(matches) == 1:
            return matches[0]
        if matches:
            names = ", ".join(sorted(map(_name, matches))[:5])
            raise Trouble(
                f"{where} has several Services that look like a Prometheus: {names}. Name one:"
                f" --service {_name(matches[0])}"
            )
    raise Trouble(f"no Service of {where} looks like a Prometheus. Name one: {NAME}")


def _name(raw: JSON) -> str:
    """Return NAMESPACE/NAME:PORT of a Service, or NAMESPACE/NAME if it has no port."""
    port = _port(raw)
    return f"{text(raw, 'metadata', 'namespace')}/{text(raw, 'metadata', 'name')}" + (
        f":{port}" if port else ""
    )


def _port(raw: JSON) -> str:
    """Return the port of a Service's web page: the first with a usual name, else the first; empty without ports."""
    ports = entries(raw, "spec", "ports")
    usual = [port for port in ports if text(port, "name") in ("http-web", "web", "http", "http-query")]
    return str(whole(next(iter([*usual, *ports]), {}), "port") or "")
