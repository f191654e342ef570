"""Which Prometheus to query: the one at the address in `--prometheus`, for which no cluster is contacted, or a Service,
through the API server.

A Service requires the right `get services/proxy`, and without `--service`, which names it, also `list services` in all
namespaces: then the only one that looks like a Prometheus is queried.
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
"""Labels of the Services of common installations: kube-prometheus-stack, the Prometheus Operator, Prometheus' own
chart, Rancher, Thanos. The first set that any Service has decides, because several Services may lead to the same
Prometheus."""
NAME = "--service monitoring/prometheus-operated:9090, or --prometheus http://127.0.0.1:9090"


async def find_endpoint(session: Session | None, typed: Namespace) -> Endpoint:
    """Return how to reach the Prometheus at the address in `--prometheus` or, with a `session`, a Prometheus in its
    cluster: the Service that `--service` names or, without that flag, the only Service that looks like one. Raises
    Trouble for --service without a `session`, for --token-file or --ca-file with one, if a flag cannot be used, if a
    file cannot be read (`place_of`), if the login fails, or if not exactly one such Service is found (`find_place`)."""
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
    """Return how to reach the Service `named` (see `_path_of` for its form) or, if `named` is empty, the only Service
    in any namespace that looks like a Prometheus (see `_one_of`), with a remark that it was found so. Raises Trouble if
    there is no API server, if `named` has another form, if the login fails, or if the Services cannot be listed or not
    exactly one is found. Whether the Service `named` exists is not checked."""
    if session.login is None:
        raise Trouble("there is no API server through which a Service can be reached: pass --prometheus URL")
    if not named:
        try:
            services = await session.all(SERVICES)
        except Trouble as trouble:
            raise Trouble(f"{trouble}. To skip the search, pass {NAME}") from trouble
    path = _path_of(named or _name(_one_of(services, session.where)))
    return await _place(session.login, session.where, path, chosen=not named)


async def _place(login: Login, cluster: str, path: str, *, chosen: bool) -> Endpoint:
    """Return how to reach the Service at `path` (see `_path_of`) through the API server of `cluster`, with the current
    credentials. With `chosen`, the result has a remark that the Service was found by its labels. Raises Trouble if the
    login fails."""
    where = f"Service {path.replace('/services/', '/')} of {cluster}"
    with explained(cluster):
        access, token = await login.access(), await login.token()

    async def renew() -> Endpoint:
        """Log in again and return the new endpoint. Raises Trouble if that fails."""
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
    """Convert the value of `--service` to the path of that Service below /api/v1/namespaces, such as
    `monitoring/services/prometheus-operated:9090`. Raises Trouble if the value does not have the form
    NAMESPACE/NAME:PORT, where `:PORT` may be missing and `http:` or `https:` may precede NAME. Each of the three is up
    to 63 lower-case letters, digits and dashes; PORT may be a name or a number, and its range is not checked. With such
    a scheme but no port, the path ends with a colon."""
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


def _one_of(services: list[JSON], where: str) -> JSON:
    """Return the only Service that has all labels of the first set in LABELS that any Service has; later sets are then
    not tried. Raises Trouble if several Services have that set (it names at most five of them), or if no Service has
    any set."""
    for labels in LABELS:
        matches = [raw for raw in services if labels.items() <= section(raw, "metadata", "labels").items()]
        if len(matches) == 1:
            return matches[0]
        if matches:
            names = ", ".join(sorted(map(_name, matches))[:5])
            raise Trouble(
                f"{where} has several Services that look like a Prometheus: {names}. Choose one:"
                f" --service {_name(matches[0])}"
            )
    raise Trouble(f"no Service in {where} looks like a Prometheus. Pass {NAME}")


def _name(raw: JSON) -> str:
    """Return NAMESPACE/NAME:PORT of a Service. PORT is the number of the port that probably serves HTTP: the first
    port, in the order of the Service, that is named http-web, web, http or http-query, or else the first port. Return
    NAMESPACE/NAME if the Service has no ports, or if that port has no number."""
    ports = entries(raw, "spec", "ports")
    usual = [port for port in ports if text(port, "name") in ("http-web", "web", "http", "http-query")]
    number = whole(next(iter([*usual, *ports]), {}), "port")
    name = f"{text(raw, 'metadata', 'namespace')}/{text(raw, 'metadata', 'name')}"
    return f"{name}:{number}" if number else name
