"""A web server on loopback that answers what a test scripted, and remembers what it was asked."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from tests.fakes.login import AnonymousLogin
from tests.fakes.serving import serving

from gpusharing.kube.http import HttpClient, Limits, OnCall
from gpusharing.kube.login import Login

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class ArrivedRequest:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class Scripted:
    """The server; `answers` are used up in order, the last one stays."""

    url: str = ""
    answers: list[Answer] = field(default_factory=list)
    asked: list[ArrivedRequest] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Remember the request and give the next answer."""
        body = await request.text()
        self.asked.append(
            ArrivedRequest(
                request.method,
                request.path,
                dict(request.query),
                dict(request.headers),
                json.loads(body) if body else None,
            )
        )
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return await answer(request)


def status(code: int, reason: str = "", message: str = "", **details: Any) -> Answer:
    """A refusal with a Status object, as the API server sends it; `retry_after` becomes the header."""
    retry_after = details.pop("retry_after", None)
    body = {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}
    headers = {"Retry-After": str(retry_after)} if retry_after else {}

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response({**body, "details": details}, status=code, headers=headers)

    return answer


def found(body: Any) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response(body)

    return answer


def plain(code: int, text: str) -> Answer:
    """What something in front of the API server says."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=code, text=text)

    return answer


def stream(*chunks: bytes, then: Callable[[], Awaitable[object]] | None = None) -> Answer:
    """A watch that sends these bytes, then waits for `then`, then ends."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk)
        if then:
            await then()
        return response

    return answer


@asynccontextmanager
async def scripted(
    *answers: Answer,
    limits: Limits | None = None,
    on_call: OnCall = lambda _request, _status: None,
    login: Callable[[str], Login] = AnonymousLogin,
) -> AsyncIterator[tuple[Scripted, HttpClient]]:
    script = Scripted(answers=list(answers))
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", script.handle)
    async with (
        serving(app) as script.url,
        HttpClient(login(script.url), limits=limits, on_call=on_call) as client,
    ):
        yield script, client
