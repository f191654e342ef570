"""Faults F3 to F12 of docs/design/faults.md, a slow server, and one with a wrong clock. Each begins with one write.

Except for `EventsSwallowed` they show what a real API server can show: a competing change is a write that it accepted,
a watch is late as a whole, and an old list is one that it sent before. `FaultProxy.arm` kills the client.
"""

import asyncio
import json
import math
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import Literal

from hack.faultproxy.calls import Incoming, OpenWatch, PlayedRefusal, ProxiedAnswer, collection_of, object_of

Scope = Literal["one", "all"]
Forward = Callable[[], Awaitable[ProxiedAnswer | None]]
"""A function that forwards the call and returns the answer, or None if the client gets no answer."""
GONE = PlayedRefusal(410, "too old resource version", "Expired")
BROKEN = PlayedRefusal(500, "etcdserver: leader changed", "InternalError")
HEAL_SECONDS = 1.0
"""Seconds until a watch that swallowed events ends. Only the list that follows shows what the watch withheld."""

AGAIN_SECONDS = 2.5
"""Seconds within which the client retries after a failure, with the short waits of the tests."""
ARRIVES_SECONDS = 0.2
"""Seconds within which an answer has reached its client's socket."""


@dataclass
class Fault:
    """Something that goes wrong from write `at` on, for calls about its object (`one`) or for all."""

    at: int
    scope: Scope
    times: int = 3
    """The largest number of calls or events that it hits."""
    hits: int = 0
    began: float | None = None
    """When it began, in the event loop's time, or None if it has not begun."""
    target: str = ""
    """The path of the object of its write; empty until it has begun."""
    last: float = 0.0
    """When it last hit a call, in the event loop's time."""
    early = True
    """Whether it begins when its write is sent, and not when the write has been answered."""

    def watch_for(self, call: Incoming, *, answered: bool) -> bool:
        """Begin the fault if this is its write, and return whether it begins."""
        if self.began is not None or not 0 < self.at <= call.mark or answered is self.early:
            return False
        self.began, self.target = asyncio.get_running_loop().time(), object_of(call.path)
        self.begin()
        return True

    def begin(self) -> None:
        """Called when the fault begins."""

    def concerns(self, call: Incoming) -> bool:
        """Whether the fault has begun, has hits left, and hits this call."""
        if self.began is None or self.hits >= self.times:
            return False
        return self.scope == "all" or object_of(call.path) == self.target

    def over_at(self) -> float:
        """Return when the fault has no further effect: the client has repeated its call by then."""
        return self.last + AGAIN_SECONDS

    def hit(self) -> None:
        self.hits += 1
        self.last = asyncio.get_running_loop().time()

    async def around(self, call: Incoming, forward: Forward) -> ProxiedAnswer | None:
        """Handle a call that is not a watch, and return its answer, or None if the client gets no answer."""
        return await forward()

    def headers(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        return headers

    async def opening(self, call: Incoming) -> None:
        """Called for a new watch before the server is called."""

    async def line(self, stream: OpenWatch, line: bytes, came: float) -> bytes:
        """Return what the client gets for a line of a watch: the line, or an empty one if it is swallowed."""
        return line

    def ends(self, stream: OpenWatch) -> bytes:
        """Return the last line to send if a watch must end now, or an empty line if it continues."""
        return b""


class AnswerLost(Fault):
    """F3: the server carries out the write, but its answer is lost."""

    async def around(self, call: Incoming, forward: Forward) -> ProxiedAnswer | None:
        if not (call.is_write and self.concerns(call)):
            return await forward()
        self.hit()
        await forward()
        return None


class RequestLost(Fault):
    """F4: the write never reaches the server."""

    async def around(self, call: Incoming, forward: Forward) -> ProxiedAnswer | None:
        if not (call.is_write and self.concerns(call)):
            return await forward()
        self.hit()
        return None


@dataclass
class Competitor(Fault):
    """F5: another client writes to the object just before our write."""

    write: Callable[[str], None] = lambda path: None

    async def around(self, call: Incoming, forward: Forward) -> ProxiedAnswer | None:
        if call.is_write and call.method != "POST" and self.concerns(call):
            self.hit()
            await asyncio.to_thread(self.write, object_of(call.path))
        return await forward()


@dataclass
class RefusedCalls(Fault):
    """F6 and F7: the server refuses calls, reads included."""

    answers: tuple[PlayedRefusal, ...] = (PlayedRefusal(503),)

    async def around(self, call: Incoming, forward: Forward) -> ProxiedAnswer | None:
        if not self.concerns(call):
            return await forward()
        self.hit()
        return self.answers[(self.at + self.hits) % len(self.answers)].answer()


@dataclass
class RandomRefusals(RefusedCalls):
    """Refuses a random share of calls, the same in each run with the same order of calls."""

    share: float = 0.05
    _dice: random.Random = field(default_factory=lambda: random.Random(1))

    def concerns(self, call: Incoming) -> bool:
        return self._dice.random() < self.share


@dataclass
class HeldWrite(Fault):
    """F8 and other delays: a write is held until `act` has returned, and is then forwarded."""

    act: Callable[[], None] = lambda: None
    then: Callable[[], None] = lambda: None
    """Called when the answer has arrived: a frozen process that is woken here finds it before its timers."""
    times: int = 1

    async def around(self, call: Incoming, forward: Forward) -> ProxiedAnswer | None:
        if not (call.is_write and self.concerns(call)):
            return await forward()
        self.hits += 1
        self.last = math.inf  # the fault is not over before `then`
        try:
            await asyncio.to_thread(self.act)
            return await forward()
        finally:
            asyncio.get_running_loop().call_later(ARRIVES_SECONDS, self._let_go)

    def _let_go(self) -> None:
        self.then()
        self.last = asyncio.get_running_loop().time()


@dataclass
class Slow(Fault):
    """Delays calls. With `at=0` that begins with the first call."""

    seconds: float = 1.0
    times: int = 10**9

    async def around(self, call: Incoming, forward: Forward) -> ProxiedAnswer | None:
        if self.at == 0 or self.concerns(call):
            self.hits += 1
            await asyncio.sleep(self.seconds)
        return await forward()

    async def opening(self, call: Incoming) -> None:
        if self.at == 0 or self.began is not None:
            await asyncio.sleep(self.seconds)


@dataclass
class DateShifted(Fault):
    """The Date of every answer is shifted by `seconds`. With `at=0` that begins with the first answer."""

    seconds: float = 3600.0

    def headers(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        if (self.at and self.began is None) or "Date" not in headers:
            return headers
        self.hits += 1
        then = parsedate_to_datetime(headers["Date"]) + timedelta(seconds=self.seconds)
        return {**headers, "Date": format_datetime(then, usegmt=True)}


class WatchFault(Fault):
    early = False

    def on_watch(self, stream: OpenWatch) -> bool:
        if self.began is None:
            return False
        return self.scope == "all" or collection_of(stream.path) == collection_of(self.target)

    def on_open_watch(self, stream: OpenWatch) -> bool:
        return self.began is not None and stream.opened < self.began and self.on_watch(stream)


@dataclass
class WatchLate(WatchFault):
    """F9: for a while every line of a watch arrives late, with the order unchanged, so the client's view is stale."""

    seconds: float = 5.0
    lasts: float = 3.0
    """Lines that arrive within this many seconds after the fault began are late."""

    def over_at(self) -> float:
        return 0.0 if self.began is None else self.began + self.lasts + self.seconds

    async def line(self, stream: OpenWatch, line: bytes, came: float) -> bytes:
        if self.began is not None and self.on_watch(stream) and 0 <= came - self.began < self.lasts:
            self.hits += 1
            await asyncio.sleep(came + self.seconds - asyncio.get_running_loop().time())
        return line


@dataclass
class WatchEnds(WatchFault):
    """F10: the open watches end with an ERROR event: 410 because the history is gone, or 500."""

    error: PlayedRefusal = GONE

    def ends(self, stream: OpenWatch) -> bytes:
        if not self.on_open_watch(stream):
            return b""
        self.hits += 1
        return error_line(self.error)


@dataclass
class EventsSwallowed(WatchFault):
    """F11: up to `times` events are lost, and the list that follows shows them. No server does that."""

    _swallowed: set[OpenWatch] = field(default_factory=set)

    def over_at(self) -> float:
        return 0.0 if self.began is None else self.began + HEAL_SECONDS + 0.5

    async def line(self, stream: OpenWatch, line: bytes, came: float) -> bytes:
        """Swallow at most `times` events of objects (no bookmarks or errors) within HEAL_SECONDS."""
        if self.hits >= self.times or not self.on_watch(stream) or self._is_over():
            return line
        event = json.loads(line)
        if event["type"] not in ("ADDED", "MODIFIED", "DELETED"):
            return line
        if self.scope == "one" and event["object"]["metadata"]["name"] != self.target.rpartition("/")[2]:
            return line
        self.hits += 1
        self._swallowed.add(stream)
        return b""

    def ends(self, stream: OpenWatch) -> bytes:
        if stream not in self._swallowed or not self._is_over():
            return b""
        self._swallowed.discard(stream)
        return error_line(GONE)

    def _is_over(self) -> bool:
        return self.began is not None and asyncio.get_running_loop().time() - self.began > HEAL_SECONDS


@dataclass
class OldList(WatchFault):
    """F12: watches end with 410, and the list that follows is the first one that the server sent in this run.

    An API server that lags behind behaves like this. Lists of one node's pods, on which the point of no return
    depends, are never old: they request the newest state, and an API server returns it (docs/design/drain.md#p1).
    """

    _lists: dict[tuple[str, str], ProxiedAnswer] = field(default_factory=dict)
    _owed: set[tuple[str, str]] = field(default_factory=set)

    async def around(self, call: Incoming, forward: Forward) -> ProxiedAnswer | None:
        """Answer a list with the first answer to it; never lists of one node's pods or without `limit`."""
        key = call.path, call.query
        if call.method != "GET" or "limit=" not in call.query or "spec.nodeName" in call.query:
            return await forward()
        if key in self._owed:
            self._owed.discard(key)
            self.hits += 1
            return self._lists[key]
        answer = await forward()
        if answer is not None and answer.status == 200 and self.began is None:
            self._lists.setdefault(key, answer)
        return answer

    def begin(self) -> None:
        """Make the next list of each recorded collection of the object's kind, or of all, an old one."""
        kind = collection_of(self.target)
        self._owed = {key for key in self._lists if self.scope == "all" or collection_of(key[0]) == kind}

    def ends(self, stream: OpenWatch) -> bytes:
        return error_line(GONE) if self.on_open_watch(stream) and self._lists else b""


def error_line(status: PlayedRefusal) -> bytes:
    """Return the line of an ERROR event, with which an API server ends a watch."""
    return json.dumps({"type": "ERROR", "object": status.object}).encode() + b"\n"
