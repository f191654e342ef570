"""F3 to F12 of docs/design/faults.md, each from one write on: at the object of that write, or at everything.

A fault begins when its write is sent, or where it concerns what is read when that write was answered. It ends by
itself.
Nothing here invents what an API server cannot show: what competes is a write that the server took, a watch is late as a
whole and never per object, and a list from the past is one that the server gave. Killing is `FaultProxy.arm`.
"""

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import Literal

from hack.faultproxy.calls import Incoming, OpenWatch, PlayedRefusal, ProxiedAnswer, collection_of, object_of

Scope = Literal["one", "all"]
Forward = Callable[[], Awaitable[ProxiedAnswer | None]]
"""Asks the server; None: the client hears nothing."""
GONE = PlayedRefusal(410, "too old resource version", "Expired")
BROKEN = PlayedRefusal(500, "etcdserver: leader changed", "InternalError")
HEAL_SECONDS = 1.0
"""Until a watch that swallowed events ends: what it kept back only the list after it can tell."""

AGAIN_SECONDS = 2.5
"""After a failure the next try comes within this time, in the tests' quick settings."""
ARRIVES_SECONDS = 0.2
"""Within this time an answer is in its client's socket."""


@dataclass
class Fault:
    """What begins at the write number `at` of those aimed at; `one`: at calls about its object, `all`: at all calls."""

    at: int
    scope: Scope
    times: int = 3
    """Calls, or events, that it takes."""
    hits: int = 0
    """Those that it took."""
    began: float | None = None
    """Loop time."""
    target: str = ""
    """Path of the object of that write."""
    last: float = 0.0
    """Loop time of the last call that it took."""
    early = True
    """It begins when the write is sent; else when it was answered."""

    def watch_for(self, call: Incoming, *, answered: bool) -> bool:
        """Begin, if this is the write, or the next one where its number was nobody's; tells whether it did.

        Of two writes that are on their way at once both have the lower number.
        """
        if self.began is not None or not 0 < self.at <= call.mark or answered is self.early:
            return False
        self.began, self.target = asyncio.get_running_loop().time(), object_of(call.path)
        self.begin()
        return True

    def begin(self) -> None:
        """What happens in that moment."""

    def concerns(self, call: Incoming) -> bool:
        """Whether a call is hit, by its object and while hits are left."""
        if self.began is None or self.hits >= self.times:
            return False
        return self.scope == "all" or object_of(call.path) == self.target

    def over_at(self) -> float:
        """Loop time, which is that of time.monotonic(), from which nothing more comes of it: the call was repeated."""
        return self.last + AGAIN_SECONDS

    def hit(self) -> None:
        """One call more."""
        self.hits += 1
        self.last = asyncio.get_running_loop().time()

    async def around(self, call: Incoming, forward: Forward) -> ProxiedAnswer | None:
        """One call that is no watch."""
        return await forward()

    def headers(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Those of an answer of the server, a watch's as well."""
        return headers

    async def opening(self, call: Incoming) -> None:
        """A new watch, before the server is asked."""

    async def line(self, stream: OpenWatch, line: bytes, came: float) -> bytes:
        """One line of a watch, which came at that moment; empty: swallowed."""
        return line

    def ends(self, stream: OpenWatch) -> bytes:
        """The last line of a watch that is to end now; empty while it goes on."""
        return b""


class AnswerLost(Fault):
    """F3: the write is done, its answer gets lost."""

    async def around(self, call: Incoming, forward: Forward) -> ProxiedAnswer | None:
        """See Fault."""
        if not (call.is_write and self.concerns(call)):
            return await forward()
        self.hit()
        await forward()
        return None


class RequestLost(Fault):
    """F4: the write never comes to the server."""

    async def around(self, call: Incoming, forward: Forward) -> ProxiedAnswer | None:
        """See Fault."""
        if not (call.is_write and self.concerns(call)):
            return await forward()
        self.hit()
        return None


@dataclass
class Competitor(Fault):
    """F5: somebody else writes to the object in the moment before; whether that is a 409 the server decides."""

    write: Callable[[str], None] = lambda path: None
    """Writes to the object of that path; blocks; runs in a thread."""

    async def around(self, call: Incoming, forward: Forward) -> ProxiedAnswer | None:
        """See Fault."""
        if call.is_write and call.method != "POST" and self.concerns(call):
            self.hit()
            await asyncio.to_thread(self.write, object_of(call.path))
        return await forward()


@dataclass
class RefusedCalls(Fault):
    """F6 and F7: the server refuses, in turn with each of these; reads as well, when it is everything."""

    answers: tuple[PlayedRefusal, ...] = (PlayedRefusal(503),)

    async def around(self, call: Incoming, forward: Forward) -> ProxiedAnswer | None:
        """See Fault."""
        if not self.concerns(call):
            return await forward()
        self.hit()
        return self.answers[(self.at + self.hits) % len(self.answers)].answer()


@dataclass
class HeldWrite(Fault):
    """F8, and whatever else takes its time: the write waits until `act` has returned, then it is forwarded."""

    act: Callable[[], None] = lambda: None
    """Blocks; runs in a thread."""
    then: Callable[[], None] = lambda: None
    """Called when the answer has arrived: who was frozen finds it there when it wakes, before its own timers run."""
    times: int = 1

    async def around(self, call: Incoming, forward: Forward) -> ProxiedAnswer | None:
        """See Fault."""
        if not (call.is_write and self.concerns(call)):
            return await forward()
        self.hits += 1
        self.last = math.inf  # it is not over before `then`
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
    """Every call and every new watch takes that much longer; from the first on with `at=0`."""

    seconds: float = 1.0
    times: int = 10**9

    async def around(self, call: Incoming, forward: Forward) -> ProxiedAnswer | None:
        """See Fault."""
        if self.at == 0 or self.concerns(call):
            self.hits += 1
            await asyncio.sleep(self.seconds)
        return await forward()

    async def opening(self, call: Incoming) -> None:
        """See Fault."""
        if self.at == 0 or self.began is not None:
            await asyncio.sleep(self.seconds)


@dataclass
class DateShifted(Fault):
    """The server's clock was set: every answer bears another Date; from the first on with `at=0`."""

    seconds: float = 3600.0

    def headers(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """See Fault."""
        if (self.at and self.began is None) or "Date" not in headers:
            return headers
        self.hits += 1
        then = parsedate_to_datetime(headers["Date"]) + timedelta(seconds=self.seconds)
        return {**headers, "Date": format_datetime(then, usegmt=True)}


class WatchFault(Fault):
    """What befalls watches; `one`: those of the kind of the object."""

    early = False

    def on_watch(self, stream: OpenWatch) -> bool:
        """Whether this stream is hit."""
        if self.began is None:
            return False
        return self.scope == "all" or collection_of(stream.path) == collection_of(self.target)

    def on_open_watch(self, stream: OpenWatch) -> bool:
        """Whether it is hit and was open when the fault began."""
        return self.began is not None and stream.opened < self.began and self.on_watch(stream)


@dataclass
class WatchLate(WatchFault):
    """F9: for a while every line comes late, in its order: the view is stale."""

    seconds: float = 5.0
    lasts: float = 3.0
    """Lines are late that came within this time since the beginning."""

    def over_at(self) -> float:
        """See Fault."""
        return 0.0 if self.began is None else self.began + self.lasts + self.seconds

    async def line(self, stream: OpenWatch, line: bytes, came: float) -> bytes:
        """See Fault."""
        if self.began is not None and self.on_watch(stream) and 0 <= came - self.began < self.lasts:
            self.hits += 1
            await asyncio.sleep(came + self.seconds - asyncio.get_running_loop().time())
        return line


@dataclass
class WatchEnds(WatchFault):
    """F10: the open streams end with an ERROR: 410, the history is gone, or 500."""

    error: PlayedRefusal = GONE

    def ends(self, stream: OpenWatch) -> bytes:
        """See Fault."""
        if not self.on_open_watch(stream):
            return b""
        self.hits += 1
        return error_line(self.error)


@dataclass
class EventsSwallowed(WatchFault):
    """F11: up to `times` events never come; then the watch ends, and the list that follows heals it.

    `one`: only those about the object. No server does that: it is a cache of a client that missed something.
    """

    _swallowed: set[OpenWatch] = field(default_factory=set)

    def over_at(self) -> float:
        """See Fault."""
        return 0.0 if self.began is None else self.began + HEAL_SECONDS + 0.5

    async def line(self, stream: OpenWatch, line: bytes, came: float) -> bytes:
        """See Fault."""
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
        """See Fault."""
        if stream not in self._swallowed or not self._is_over():
            return b""
        self._swallowed.discard(stream)
        return error_line(GONE)

    def _is_over(self) -> bool:
        return self.began is not None and asyncio.get_running_loop().time() - self.began > HEAL_SECONDS


@dataclass
class OldList(WatchFault):
    """F12: watches end in 410, and the list that follows is the first one that the server gave in this run.

    As from an API server that lags behind. Lists of one node's pods, on which the point of no return rests, are not
    old: they ask for the newest state, and an API server gives it (docs/design/drain.md#p1).
    """

    _lists: dict[tuple[str, str], ProxiedAnswer] = field(default_factory=dict)
    _owed: set[tuple[str, str]] = field(default_factory=set)

    async def around(self, call: Incoming, forward: Forward) -> ProxiedAnswer | None:
        """See Fault."""
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
        """See Fault."""
        kind = collection_of(self.target)
        self._owed = {key for key in self._lists if self.scope == "all" or collection_of(key[0]) == kind}

    def ends(self, stream: OpenWatch) -> bytes:
        """See Fault."""
        return error_line(GONE) if self.on_open_watch(stream) and self._lists else b""


def error_line(status: PlayedRefusal) -> bytes:
    """The event with which an API server ends a watch that it cannot go on with."""
    return json.dumps({"type": "ERROR", "object": status.object}).encode() + b"\n"
