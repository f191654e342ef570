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
"""Doors at which these calls must have failed. One webhook may refuse every eviction while the server is well."""
LONGEST_HOLD = 60.0
"""The longest hold in seconds; a longer Retry-After is cut to this."""
FORGET_AFTER = 600.0
"""Seconds after the end of an object's hold, until its earlier refusals are forgotten if no further call was refused.
"""
SEVERAL = 3
"""How many objects must be refused at one door, without an answer in between, before the whole door is held. A server
that refuses every fifth call at random seldom does that."""
FIRST_HOLD = 1.0
"""Seconds to wait after a 429 without a Retry-After. The wait doubles with each further one."""

Door = tuple[bool, str, str]
"""Whether the calls only publish something for people (see `PublishingClient`), their verb, and their kind."""


@dataclass(frozen=True, slots=True)
class CallTarget:
    """The verb of a call, and the object that the call is about."""

    verb: str
    """The verb of RBAC, for example patch."""
    kind: str
    """Kind and subresource, as `ApiRequest.kind` writes them."""
    name: str
    """Namespace and name, or selectors of a list, as `ApiRequest.full_name` writes them."""
    published: bool
    """Whether the call only publishes something for people (see `PublishingClient`)."""

    @property
    def door(self) -> Door:
        """Return the door of the call: whether the call only publishes, its verb, and its kind (see the module
        docstring)."""
        return self.published, self.verb, self.kind

    @property
    def subject(self) -> str:
        """Return the name by which failures are counted: a Node, its GPUNode and the list of its pods are one subject;
        a list of all objects of a kind is another, named by the kind. Any other object is named as in `name`."""
        return self.name.removeprefix("spec.nodeName=") or self.kind


@dataclass(slots=True)
class Reachability:
    """Distinguishes a failed call from a server that is away. The only place that raises ServerAway."""

    successes: int = 0
    """How many answers have come so far. The failure of a call that began before the last of them says nothing about
    the present."""
    failed: dict[CallTarget, str] = field(default_factory=dict)
    """The calls that have failed since the last answer, each with its error message."""

    def answered(self) -> None:
        """Count an answer of the server in `successes`, and forget the failures recorded before."""
        self.successes += 1
        self.failed.clear()

    def failing(self, target: CallTarget, began: int, error: Unavailable) -> None:
        """Record that a call about `target` failed with `error`. `began` is the value of `successes` when the call
        began; if an answer has come since, the failure is ignored. Raises ServerAway if, since the last answer, calls
        in the same flow (those that decisions depend on, or those that only publish) have failed for at least
        AWAY_OBJECTS subjects and at least AWAY_DOORS combinations of verb and kind."""
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
    """Which calls are not sent after a 429, and until when. All moments are by the loop's clock. A door stands for all
    calls with one verb on one kind in one of two flows: calls that decisions depend on, and calls that only publish."""

    clock: Callable[[], float] = loop_time
    doors: dict[Door, float] = field(default_factory=dict)
    """When the last hold of each door ends, or ended, by the clock."""
    objects: dict[CallTarget, float] = field(default_factory=dict)
    """When the hold of each object at its door ends, or ended, by the clock."""
    tries: dict[CallTarget, int] = field(default_factory=dict)
    """How many refusals each object has had in a row."""
    refused: dict[Door, set[CallTarget]] = field(default_factory=dict)
    """The objects that were refused at each door since its last answer."""

    def left(self, target: CallTarget | None = None) -> float:
        """Return the seconds until a call about `target` may be sent, or any call at all if `target` is None; 0 or
        less, down to minus infinity, if it may be sent now. A call waits for the hold of its door and that of its
        object at this door, whichever ends later.

        All calls wait while a door of Nodes, in either flow, and a door of another kind, in the flow that decisions
        depend on, are held at the same time.
        """
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
        """Return when the first of the present holds of single objects ends, or None if there is none. Holds of whole
        doors are ignored, and so are those of calls that only publish statuses or Events. `now` is the present time of
        day; the result is a time of day, too."""
        lasts = [until - self.clock() for target, until in self.objects.items() if not target.published]
        return min((now + timedelta(seconds=left) for left in lasts if left > 0), default=None)

    def answered(self, target: CallTarget) -> None:
        """Record that the server carried out the call, or refused it because of its contents. The hold of this object
        at this door ends, its count of refusals is reset, and the set of refused objects at the door is emptied. A hold
        of the whole door continues."""
        self.refused.pop(target.door, None)
        if target in self.tries:
            del self.tries[target]
            self.objects.pop(target, None)

    def throttled(self, target: CallTarget, retry_after: float | None) -> None:
        """Record that a call about `target` was answered with 429, and hold back further calls.

        The object waits at its door for `retry_after` seconds; if that is None, for FIRST_HOLD, doubled with each
        further refusal of the object. The wait is at least FIRST_HOLD and at most LONGEST_HOLD. Once SEVERAL objects
        have been refused at one door without an answer there in between, all calls through that door wait until this
        object's wait or an earlier hold of the door ends, whichever is later. Other doors stay open. Refusals older
        than FORGET_AFTER are forgotten.
        """
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
        """Forget the refusals of each object whose last hold ended more than FORGET_AFTER seconds ago; the object may
        no longer exist."""
        now = self.clock()
        for target in [target for target, until in self.objects.items() if until + FORGET_AFTER < now]:
            del self.objects[target]
            self.tries.pop(target, None)
            self.refused.get(target.door, set()).discard(target)


class Fanout(PassingClient):
    """A KubeClient in front of another one. Its calls may also raise HeldBack and ServerAway.

    A watch is not counted among the calls under way and is never held back; its events count as answers.
    """

    def __init__(self, client: KubeClient, *, parallel: int = 16) -> None:
        """Put the fan-out in front of `client`. `parallel` is how many calls may be under way at once; watches do not
        count."""
        super().__init__(client)
        self._slots = asyncio.Semaphore(parallel)
        self.reachability = Reachability()
        self.holds = Holds()

    async def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
        """Yield the events of a watch, each of which counts as an answer from the server. Errors of the watch are
        raised unchanged and do not count as failures."""
        async with aclosing(self.client.stream(request)) as events:
            async for event in events:
                self.reachability.answered()
                yield event

    async def call(self, request: ApiRequest) -> JSON:
        """Send a request in the flow that decisions depend on; see `send`."""
        return await self.send(request, published=False)

    async def send(self, request: ApiRequest, *, published: bool) -> JSON:
        """Wait until fewer than `parallel` calls are under way, without a limit of time, then send the request and
        return the answer. `published` says whether the call only publishes something for people. The result is recorded
        in `reachability` and `holds`, where it may hold back or release other calls. Every answer of the server, a
        refusal included, makes `reachability` forget the failures recorded before.

        Raises HeldBack, without sending anything, while the call is on hold, and ServerAway in place of Unavailable if
        so many calls have failed that the server counts as away. Other KubeErrors of the underlying client are recorded
        and raised unchanged. Any other exception, such as LeaseLost, is raised without being recorded.
        """
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
        """Record that the server answered the call. The server counts as reachable, and the hold of this object at
        the call's door ends. A hold of the whole door continues (`Holds.answered`)."""
        self.reachability.answered()
        self.holds.answered(target)


class PublishingClient(PassingClient):
    """A client for calls that only publish something for people: statuses and Events.

    They share the limit of calls under way with all other calls, and their answers show that the server can be reached.
    Watches go to the client behind the Fanout unchanged, and their events are not counted. Refusals and failures of
    these calls neither hold back the calls that decisions depend on, nor end a pass.
    """

    def __init__(self, fanout: Fanout) -> None:
        """Send calls to the client behind `fanout`, and share its limit of calls under way."""
        super().__init__(fanout.client)
        self._fanout = fanout

    async def call(self, request: ApiRequest) -> JSON:
        """Send a request through the Fanout, in the flow that only publishes. Raises what `Fanout.send` raises,
        HeldBack and ServerAway among them; ServerAway counts only failures of this flow."""
        return await self._fanout.send(request, published=True)
