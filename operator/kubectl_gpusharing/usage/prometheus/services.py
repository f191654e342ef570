"""Which Prometheus to query: the one at the address in `--prometheus`, for which no cluster is contacted, or a Service, through the API server.

A Service requires the right `get services/proxy`, and without `--service`, which names it, also `list services` in all namespaces.
"""

import re
from argparse import Namespace

from gpusharing.kube.client import JSON, Resource
from gpusharing.kube.login import Login
from gpusharing.kube.raw import entries, section, text, whole
from kubectl_gpusharing.shell.session import Session
from kubectl_gpusharing.shell.troubles import Trouble, explained
from kubectl_gpusharing.usage.prometheus.client import Endpoint, place_of

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
"""Labels of the Services of common installations: kube-prometheus-stack, the Prometheus Operator, Prometheus' own chart, Rancher, Thanos. The first set that any Service has decides, because several Services may lead to the same Prometheus."""
NAME = "--service monitoring/prometheus-operated:9090, or --prometheus http://127.0.0.1:9090"


async def find_endpoint(session: Session | None, typed: Namespace) -> Endpoint:
    """Return how to reach the Prometheus in `--prometheus` or, with a `session`, the one that `--service` names in its cluster or else the only one there."""
    if session is None:
        if typed.service:
            raise Trouble("pass either --prometheus or --service, not both")
        return place_of(typed.prometheus, typed.token_file, typed.ca_file)
    if typed.token_file or typed.ca_file:
        raise Trouble(
            "--token-file and --ca-file only work with --prometheus URL; a Service is reached with your kubeconfig"
        )
    return await find_place(session, typed.service)


async def find_place(session: Session, named: str) -> Endpoint:
    """Return how to reach the Service `named`, or else the only Service in any namespace that looks like a Prometheus. Whether `named` exists is not checked."""
    if session.login is None:
        raise Trouble("there is no API server through which a Service can be reached: pass --prometheus URL")
    if not named:
        try:
            services = await session.all(SERVICES)
        except Trouble as trouble:
            raise Trouble(f"{trouble}. To skip the search, pass {NAME}") from trouble
        found = (
            [raw for raw in services if labels.items() <= section(raw, "metadata", "labels").items()]
            for labels in LABELS
        )
        matches = next(filter(None, found), [])
        if len(matches) > 1:
            names = ", ".join(sorted(map(_name, matches))[:5])
            raise Trouble(
                f"{session.where} has several Services that look like a Prometheus: {names}. Choose one:"
                f" --service {_name(matches[0])}"
            )
        if not matches:
            raise Trouble(f"no Service in {session.where} looks like a Prometheus. Pass {NAME}")
    path = _path_of(named or _name(matches[0]))
    return await _place(session.login, session.where, path, chosen=not named)


async def _place(login: Login, cluster: str, path: str, *, chosen: bool) -> Endpoint:
    where = f"Service {path.replace('/services/', '/')} of {cluster}"
    with explained(cluster):
        access, token = await login.access(), await login.token()

    async def renew() -> Endpoint:
        with explained(cluster):
            await login.renew()
        return await _place(login, cluster, path, chosen=chosen)

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


def _path_of(flag: str) -> str:
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


def _name(raw: JSON) -> str:
    ports = entries(raw, "spec", "ports")
    usual = [port for port in ports if text(port, "name") in ("http-web", "web", "http", "http-query")]
    number = whole(next(iter([*usual, *ports]), {}), "port")
    name = f"{text(raw, 'metadata', 'namespace')}/{text(raw, 'metadata', 'name')}"
    return f"{name}:{number}" if number else name
