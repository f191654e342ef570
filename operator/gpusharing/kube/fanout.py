"""Fanout: all calls of the operator pass through here, except those of its Lease.

It bounds how many are under way at once, waits as long as the API server asks us to, and decides whether one call
failed or the server is away. It repeats nothing and does not sleep: a call that has to wait is refused with HeldBack,
and its caller decides again when the time has come.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from gpusharing.kube.answers import ApiRequest
from gpusharing.kube.client import KubeClient, Resource, WatchEvent
from gpusharing.kube.clock import loop_time
from gpusharing.kube.errors import HeldBack, KubeError, ServerAway, Throttled, Unavailable
from gpusharing.kube.passing import PassingClient

Answer = TypeVar("Answer")

AWAY_OBJECTS = 3
"""The server counts as away after calls about this many different objects failed, without one success in between ..."""
AWAY_DOORS = 2
"""... if these calls were of this many kinds. One webhook may refuse every eviction while the server is well."""
LONGEST_HOLD = 60.0
"""Seconds; the longest Retry-After that we follow."""
FORGOTTEN = 600.0
"""Seconds from the end of its wait until a refused object without further calls counts as new."""
FIRST_HOLD = 1.0
"""Seconds after a 429 without a Retry-After; doubles with each further one."""


@dataclass(frozen=True, slots=True)
class CallTarget:
    """What a call is about."""

    verb: str
    """As RBAC names it, for example patch."""
    kind: str
    """Plural with the subresource; for discovery, the group and version."""
    name: str
    """`namespace/name`, or the selector of a list."""

    @property
    def subject(self) -> str:
        """Node, GPUNode and pods of one node are one subject; a list of everything is a subject per kind."""
        return self.name.removeprefix("spec.nodeName=") or self.kind


@dataclass(slots=True)
class Reachability:
    """Distinguishes a failed call from a server that is away. The only place that raises ServerAway."""

    successes: int = 0
    """Answers so far; a call that began before the last of them says nothing about the present."""
    failed: dict[CallTarget, str] = field(default_factory=dict)
    """Calls that failed since the last answer, with the reasons."""

    def answered(self) -> None:
        """The server answered."""
        self.successes += 1
        self.failed.clear()

    def failing(self, target: CallTarget, began: int, error: Unavailable) -> None:
        """A call that began after `began` answers failed. Raises ServerAway if it was one failure too many."""
        if began != self.successes:
            return
        self.failed[target] = str(error)
        subjects = {seen.subject for seen in self.failed}
        doors = {(seen.verb, seen.kind) for seen in self.failed}
        if len(subjects) >= AWAY_OBJECTS and len(doors) >= AWAY_DOORS:
            raise ServerAway(f"the API server is unavailable: {error}") from error


@dataclass(slots=True)
class Holds:
    """Until when (by the loop's clock) nothing is sent: about one object, or at all."""

    clock: Callable[[], float] = loop_time
    everything: float = float("-inf")
    objects: dict[CallTarget, float] = field(default_factory=dict)
    tries: dict[CallTarget, int] = field(default_factory=dict)
    """Refusals in a row, by object."""
    refused: dict[CallTarget, int] = field(default_factory=dict)
    """Objects that were refused since the last answer."""

    def left(self, target: CallTarget | None = None) -> float:
        """Seconds still to wait; 0 or less when nothing has to."""
        until = self.everything
        if target is not None:
            until = max(until, self.objects.get(target, until))
        return until - self.clock()

    def answered(self, target: CallTarget) -> None:
        """The server carried out a call, or refused it because of its contents: it does not hold everybody back."""
        self.refused.clear()
        if target in self.tries:
            del self.tries[target]
            self.objects.pop(target, None)

    def throttled(self, target: CallTarget, retry_after: float | None, alone: bool) -> float:
        """A call was refused; returns the seconds to wait. If one object `alone` was refused, only it waits; after a
        second one, all wait."""
        count = self.tries[target] = self.tries.get(target, 0) + 1
        wait = FIRST_HOLD * 2.0 ** min(count - 1, 6) if retry_after is None else max(retry_after, FIRST_HOLD)
        wait = min(wait, LONGEST_HOLD)
        self._forget_old()
        self.objects[target] = self.clock() + wait
        if alone:
            self.refused = {target: count}
        else:
            self.refused[target] = count
            if len(self.refused) > 1:
                self.everything = max(self.everything, self.clock() + wait)
        return wait

    def _forget_old(self) -> None:
        """There are no more calls about an object that is gone."""
        now = self.clock()
        for target in [target for target, until in self.objects.items() if until + FORGOTTEN < now]:
            del self.objects[target]
            self.tries.pop(target, None)


class Fanout(PassingClient):
    """A KubeClient in front of another one. Calls also raise HeldBack and ServerAway.

    A watch takes no slot and is not held back; its events count as answers.
    """

    def __init__(self, client: KubeClient, *, parallel: int = 16) -> None:
        """`parallel`: calls under way at once; watches do not count."""
        super().__init__(client)
        self._slots = asyncio.Semaphore(parallel)
        self.reachability = Reachability()
        self.holds = Holds()

    def heard(self, resource: Resource, event: WatchEvent) -> bool:
        """See PassingClient."""
        self.reachability.answered()
        return True

    async def passing(self, request: ApiRequest, name: str, send: Callable[[], Awaitable[Answer]]) -> Answer:
        """Make one call in its slot, and note what its result says about the others."""
        target = CallTarget(request.verb, request.kind, name)
        async with self._slots:
            if (left := self.holds.left(target)) > 0:
                raise HeldBack(f"not sent for {left:.0f} s: the API server asked to wait", left)
            began = self.reachability.successes
            try:
                answer = await send()
            except Unavailable as error:
                self.reachability.failing(target, began, error)
                raise
            except Throttled as error:
                alone = began != self.reachability.successes
                self.holds.throttled(target, error.retry_after, alone)
                self.reachability.failed.clear()
                raise
            except (KubeError, StopAsyncIteration):
                self._answered(target)
                raise
            self._answered(target)
            return answer

    def _answered(self, target: CallTarget) -> None:
        self.reachability.answered()
        self.holds.answered(target)
