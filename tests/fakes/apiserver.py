"""FakeCluster behind HTTP on loopback, for what brings its own client: kopf, the operator as a process. SIMULATED."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from hack.sim.fakecluster import FakeClient, FakeCluster
from tests.fakes.serving import serving

from gpusharing.kube import client as kinds
from gpusharing.kube.client import JSON, LOG, VERSION, ApiRequest, Resource
from gpusharing.kube.errors import (
    AlreadyExists,
    Conflict,
    EvictionBlocked,
    Expired,
    Forbidden,
    Invalid,
    KubeError,
    NotFound,
)

KINDS = tuple(value for value in vars(kinds).values() if isinstance(value, Resource))
"""What we use, and what kopf looks for before it follows anything."""
VERBS = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}
CODES: dict[type[KubeError], tuple[int, str]] = {
    AlreadyExists: (409, "AlreadyExists"),
    Conflict: (409, "Conflict"),
    EvictionBlocked: (429, "TooManyRequests"),
    Expired: (410, "Expired"),
    Forbidden: (403, "Forbidden"),
    Invalid: (422, "Invalid"),
    NotFound: (404, "NotFound"),
}


@dataclass
class Gate:
    """Requests wait here before the server takes them up."""

    came: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class FakeServer:
    """The server; `asked` is every request as (method, path, user agent)."""

    cluster: FakeCluster = field(default_factory=FakeCluster)
    url: str = ""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    absent: set[Resource] = field(default_factory=set)
    garbled: set[Resource] = field(default_factory=set)
    """Kinds whose lists hold what no API server sends, an object without metadata, and whose watches do not begin."""
    gates: dict[tuple[str, Resource], Gate] = field(default_factory=dict)
    """By method and kind of requests that wait."""
    date: str = ""
    """What it says that the time is; empty: the real one."""
    connections: dict[int, set[Resource]] = field(default_factory=dict)
    """What was asked over each connection, by the port at its other end."""
    _watches: dict[web.StreamResponse, Resource] = field(default_factory=dict)
    _opened: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def writes(self) -> list[tuple[str, str, str]]:
        return [asked for asked in self.asked if asked[0] != "GET"]

    async def watched(self, resource: Resource) -> list[web.StreamResponse]:
        while not (found := [response for response, kind in self._watches.items() if kind == resource]):
            self._opened.clear()
            await self._opened.wait()
        return found

    async def break_watches(self, resource: Resource, code: int) -> int:
        """End the watches of a kind with an ERROR event, when there are any; how many there were."""
        broken = await self.watched(resource)
        status = {"kind": "Status", "status": "Failure", "code": code, "message": "etcd has no leader"}
        for response in broken:
            del self._watches[response]
            await response.write(_line({"type": "ERROR", "object": status}))
        self.cluster.close_watches()
        return len(broken)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        agent = request.headers.get("User-Agent", "")
        self.asked.append((request.method, request.path, agent))
        served = [kind for kind in KINDS if kind not in self.absent]
        asked = await _understood(request, served)
        if asked is None:
            return _discovery(request.path, served)
        peer = request.transport.get_extra_info("peername") if request.transport else None
        self.connections.setdefault(peer[1] if peer else 0, set()).add(asked.resource)
        client = self.cluster.client(agent)
        if gate := self.gates.get((request.method, asked.resource)):
            gate.came.set()
            await gate.opened.wait()
        if asked.resource in self.garbled:
            return web.json_response({"metadata": {"resourceVersion": "1"}, "items": [{}]})
        try:
            if asked.verb == "watch":
                return await self._watch(request, client, asked)
            answer = await client.call(asked)
        except KubeError as error:
            code, reason = CODES[type(error)]
            ending = isinstance(error, Forbidden) and error.namespace_terminating
            return _status(code, reason, str(error), *["NamespaceTerminating"] * ending)
        if asked.subresource == LOG:
            return web.Response(text=answer[LOG])
        if asked.verb == "list":
            answer |= {"apiVersion": asked.resource.api_version, "kind": "List"}
        return web.json_response(answer)

    async def _watch(self, request: web.Request, client: FakeClient, asked: ApiRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        try:
            await response.prepare(request)
            self._watches[response] = asked.resource
            self._opened.set()
            async for event in client.stream(asked):
                await response.write(_line({"type": event.type, "object": event.object}))
        except Expired as error:
            gone = {"kind": "Status", "status": "Failure", "code": 410, "message": str(error)}
            await response.write(_line({"type": "ERROR", "object": gone}))
        except ConnectionError:
            pass  # the client has gone
        finally:
            self._watches.pop(response, None)
        return response


async def _understood(request: web.Request, served: list[Resource]) -> ApiRequest | None:
    """What a request asks for, or None if it is not about a kind that is served."""
    for resource in served:
        head = resource.path().removesuffix(resource.plural)
        if not request.path.startswith(head):
            continue
        parts = request.path.removeprefix(head).split("/")
        namespace = parts[1] if parts[0] == "namespaces" and len(parts) > 2 else None
        parts = parts[2:] if namespace else parts
        if parts[0] == resource.plural:
            name, subresource = (*parts[1:], "", "")[:2]
            query, body = dict(request.query), await request.text()
            verb = VERBS.get(request.method) or ("get" if name or resource == VERSION else "list")
            return ApiRequest(
                "watch" if verb == "list" and query.get("watch") == "true" else verb,
                resource,
                subresource or None,
                namespace,
                name,
                query,
                json.loads(body) if body else None,
            )
    return None


def _discovery(path: str, served: list[Resource]) -> web.Response:
    """/api, /apis and what is below them; every other path is unknown."""
    if path == "/api":
        return web.json_response({"versions": ["v1"]})
    if path == "/apis":
        groups = sorted({(kind.group, kind.version) for kind in served if kind.group})
        rows = [
            {"name": group, "versions": [{"version": version}], "preferredVersion": {"version": version}}
            for group, version in groups
        ]
        return web.json_response({"groups": rows})
    here = [kind for kind in served if kind.path().removesuffix(f"/{kind.plural}") == path]
    kinds_here: list[JSON] = [
        {
            "name": kind.plural,
            "singularName": kind.plural[:-1],
            "kind": kind.plural,
            "namespaced": kind.namespaced,
            "verbs": ["get", "list", "watch", "patch"],
        }
        for kind in here
    ]
    return web.json_response({"resources": kinds_here}) if here else _status(404, "NotFound", f"no {path}")


def _status(code: int, reason: str, message: str, *causes: str) -> web.Response:
    body = {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}
    body["details"] = {"causes": [{"reason": cause} for cause in causes]}
    return web.json_response(body, status=code)


def _line(event: JSON) -> bytes:
    return json.dumps(event).encode() + b"\n"


@asynccontextmanager
async def fake_server(tls: ssl.SSLContext | None = None) -> AsyncIterator[FakeServer]:
    fake = FakeServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", fake.handle)

    async def dated(_: web.Request, response: web.StreamResponse) -> None:
        if fake.date:
            response.headers["Date"] = fake.date

    app.on_response_prepare.append(dated)
    async with serving(app, identity=tls) as fake.url:
        try:
            yield fake
        finally:
            fake.cluster.close_watches()
