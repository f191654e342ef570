"""Fanout: all calls of the operator pass through here, except those of its Lease.

It bounds how many are under way at once, waits as long as the API server asks us to, and decides whether one call
failed or the server is away (docs/adr/0060-the-scope-of-a-refusal.md). It neither retries nor sleeps: a call that has
to wait is refused with HeldBack, and its caller decides again when the time has come.

Calls belong to one of two flows: those that decisions depend on, and those that only publish something for people. A
door is one verb on one kind in one flow.

Terms: docs/design/glossary.md#hold, docs/design/glossary.md#pass.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from gpusharing.kube.client import JSON, NODES, ApiRequest, KubeClient, PassingClient, WatchEvent
from gpusharing.kube.clock import loop_time
from gpusharing.kube.errors import HeldBack, KubeError, ServerAway, Throttled, Unavailable

AWAY_OBJECTS = 3
"""Different objects about which calls must fail, without one answer in between, before the server counts as away."""
AWAY_DOORS = 2
"""Doors at which these calls must have failed."""
LONGEST_HOLD = 60.0
"""The longest hold in seconds; a longer Retry-After is cut to this."""
FORGET_AFTER = 600.0
"""Seconds after the end of an object's hold, until its earlier refusals are forgotten if no further call was refused."""
SEVERAL = 3
"""How many objects must be refused at one door, without an answer in between, before the whole door is held."""
FIRST_HOLD = 1.0
"""Seconds to wait after a 429 without a Retry-After."""

Door = tuple[bool, str, str]
"""Whether the calls only publish something for people (see `PublishingClient`), their verb, and their kind."""


@dataclass(frozen=True, slots=True)
class CallTarget:
    """The verb of a call, and the object that the call is about."""

    verb: str
    kind: str
    """Kind and subresource, as `ApiRequest.kind` writes them."""
    name: str
    """Namespace and name, or selectors of a list, as `ApiRequest.full_name` writes them."""
    published: bool
    """Whether the call only publishes something for people (see `PublishingClient`)."""

    @property
    def door(self) -> Door:
        """Return the door of the call: whether the call only publishes, its verb, and its kind (see the module docstring)."""
        return self.published, self.verb, self.kind

    @property
    def subject(self) -> str:
        """Return the name by which failures are counted: a Node, its GPUNode and the list of its pods are one subject; a list of all objects of a kind is another, named by the kind."""
        return self.name.removeprefix("spec.nodeName=") or self.kind


@dataclass(slots=True)
class Reachability:
    """Distinguishes a failed call from a server that is away."""

    successes: int = 0
    failed: dict[CallTarget, str] = field(default_factory=dict)

    def answered(self) -> None:
        """Count an answer of the server in `successes`, and forget the failures recorded before."""
        self.successes += 1
        self.failed.clear()

    def failing(self, target: CallTarget, began: int, error: Unavailable) -> None:
        """Record that a call about `target` failed with `error`."""
        if began != self.successes:
            return
        self.failed[target] = str(error)
        alike = [other for other in self.failed if other.published == target.published]
        subjects = {other.subject for other in alike}
        doors = {other.door for other in alike}
        if len(subjects) >= AWAY_OBJECTS and len(doors) >= AWAY_DOORS:
            raise ServerAway(f"the API server is unavailable: {error}") from error


@dataclass(slots=True)
class Holds:
    """Which calls are not sent after a 429, and until when."""

    clock: Callable[[], float] = loop_time
    doors: dict[Door, float] = field(default_factory=dict)
    objects: dict[CallTarget, float] = field(default_factory=dict)
    tries: dict[CallTarget, int] = field(default_factory=dict)
    refused: dict[Door, set[CallTarget]] = field(default_factory=dict)

    def left(self, target: CallTarget | None = None) -> float:
        """Return the seconds until a call about `target` may be sent, or any call at all if `target` is None; 0 or less, down to minus infinity, if it may be sent now."""
        never = float("-inf")
        of_nodes, others = never, never
        for (published, _, kind), held_until in self.doors.items():
            if kind == NODES.plural:
                of_nodes = max(of_nodes, held_until)
            elif not published:
                others = max(others, held_until)
        until = min(of_nodes, others)
        if target is not None:
            until = max(until, self.doors.get(target.door, until), self.objects.get(target, until))
        return until - self.clock()

    def ends(self, now: datetime) -> datetime | None:
        """Return when the first of the present holds of single objects ends, or None if there is none."""
        lasts = [until - self.clock() for target, until in self.objects.items() if not target.published]
        return min((now + timedelta(seconds=left) for left in lasts if left > 0), default=None)

    def answered(self, target: CallTarget) -> None:
        """Record that the server carried out the call, or refused it because of its contents."""
        self.refused.pop(target.door, None)
        if target in self.tries:
            del self.tries[target]
            self.objects.pop(target, None)

    def throttled(self, target: CallTarget, retry_after: float | None) -> None:
        """Record that a call about `target` was answered with 429, and hold back further calls."""
        self._forget_old()
        count = self.tries[target] = self.tries.get(target, 0) + 1
        wait = FIRST_HOLD * 2.0 ** min(count - 1, 6) if retry_after is None else max(retry_after, FIRST_HOLD)
        wait = min(wait, LONGEST_HOLD)
        until = self.objects[target] = self.clock() + wait
        refused = self.refused.setdefault(target.door, set())
        refused.add(target)
        if len(refused) >= SEVERAL:
            self.doors[target.door] = max(until, self.doors.get(target.door, until))

    def _forget_old(self) -> None:
        now = self.clock()
        for target in [target for target, until in self.objects.items() if until + FORGET_AFTER < now]:
            del self.objects[target]
            self.tries.pop(target, None)
            self.refused.get(target.door, set()).discard(target)


class Fanout(PassingClient):
    """A KubeClient in front of another one."""

    def __init__(self, client: KubeClient, *, parallel: int = 16) -> None:
        super().__init__(client)
        self._slots = asyncio.Semaphore(parallel)
        self.reachability = Reachability()
        self.holds = Holds()

    async def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
        """Yield the events of a watch, each of which counts as an answer from the server."""
        async with aclosing(self.client.stream(request)) as events:
            async for event in events:
                self.reachability.answered()
                yield event

    async def call(self, request: ApiRequest) -> JSON:
        """Send a request in the flow that decisions depend on; see `send`."""
        return await self.send(request, published=False)

    async def send(self, request: ApiRequest, *, published: bool) -> JSON:
        """Wait until fewer than `parallel` calls are under way, without a limit of time, then send the request and return the answer."""
        target = CallTarget(request.verb, request.kind, request.full_name, published)
        async with self._slots:
            if (left := self.holds.left(target)) > 0:
                raise HeldBack(
                    f"not sent, because the API server asked the operator to wait for another {left:.0f} s",
                    left,
                )
            began = self.reachability.successes
            try:
                answer = await self.client.call(request)
            except Unavailable as error:
                self.reachability.failing(target, began, error)
                raise
            except Throttled as error:
                self.holds.throttled(target, error.retry_after)
                self.reachability.failed.clear()
                raise
            except KubeError:
                self._answered(target)
                raise
            self._answered(target)
            return answer

    def _answered(self, target: CallTarget) -> None:
        self.reachability.answered()
        self.holds.answered(target)


class PublishingClient(PassingClient):
    """A client for calls that only publish something for people: statuses and Events."""

    def __init__(self, fanout: Fanout) -> None:
        super().__init__(fanout.client)
        self._fanout = fanout

    async def call(self, request: ApiRequest) -> JSON:
        """Send a request through the Fanout, in the flow that only publishes."""
        return await self._fanout.send(request, published=True)
