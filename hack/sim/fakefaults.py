"""What can go wrong with a call to FakeCluster, and the log of the writes that reached it.

A fault may hit every call of a verb, a kind, or one single object, once or for ever:

    cluster.faults.fail("evict", PODS, Unavailable("502"), namespace="team", name="job-1", times=EVER)
    cluster.faults.fail("list", PODS, SILENCE, selector="spec.nodeName=gpu-1", times=EVER)
"""

import asyncio
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Literal, TypedDict, Unpack

from gpusharing.kube.client import JSON, Resource
from gpusharing.kube.errors import KubeError, Unavailable
from gpusharing.kube.http import Limits

EVER: Final = math.inf
"""For `times`: until the fault is lifted."""


class Silence(Enum):
    """The type of SILENCE."""

    SILENCE = "no answer"


SILENCE: Final = Silence.SILENCE
"""Instead of an error: no answer at all, until the deadline of the caller."""


class Crash(BaseException):
    """The process dies here. No `except Exception` catches it, as nothing catches kill -9."""


@dataclass(frozen=True)
class Call:
    """One call as the server sees it. The verb of an eviction is `evict`."""

    identity: str
    verb: str
    resource: Resource
    namespace: str | None = None
    name: str = ""
    subresource: str | None = None
    body: JSON | None = None
    selector: str = ""
    """Label and field selector of a list or watch, as one text."""

    @property
    def path(self) -> str:
        """URL path of the object."""
        return self.resource.path(self.namespace, self.name, self.subresource)


@dataclass
class Write:
    """A write that reached the server. `number` counts the writes of its identity from 1."""

    number: int
    call: Call
    resource_version: str = ""
    """Version of the object afterwards, empty when it was refused or is gone."""
    error: KubeError | None = None
    """Why the server refused it."""


Hook = Callable[[Write, Literal["before", "after"]], None]
"""Told before a write is applied and after it was; may raise Crash."""


class CallMatch(TypedDict, total=False):
    """Which calls of a verb and a kind a fault hits; see CallFault."""

    identity: str | None
    namespace: str | None
    name: str | None
    subresource: str | None
    selector: str | None


@dataclass
class CallFault:
    """What the next `times` matching calls get instead of, or (`after`) on top of, being carried out."""

    verb: str
    resource: Resource | None
    error: BaseException | Silence
    times: float
    after: bool = False
    identity: str | None = None
    namespace: str | None = None
    name: str | None = None
    subresource: str | None = None
    """None matches all; the empty text only the object itself."""
    selector: str | None = None
    """Part of the selector of a list or watch."""
    hits: int = 0
    """Calls that got it."""

    def lift(self) -> None:
        """From now on no call gets it."""
        self.times = 0

    def matches(self, call: Call) -> bool:
        """Whether this call gets it."""
        return (
            self.times > 0
            and call.verb == self.verb
            and self.resource in (None, call.resource)
            and self.identity in (None, call.identity)
            and self.namespace in (None, call.namespace or "")
            and self.name in (None, call.name)
            and self.subresource in (None, call.subresource or "")
            and (self.selector is None or self.selector in call.selector)
        )


@dataclass
class Faults:
    """Scripted faults and the write log of one FakeCluster."""

    on_write: Hook | None = None
    writes: list[Write] = field(default_factory=list)
    calls: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    _faults: list[CallFault] = field(default_factory=list)
    _numbers: Counter[str] = field(default_factory=Counter)

    limits: Limits = field(default_factory=Limits)
    """The deadlines of the callers."""

    def fail(
        self,
        verb: str,
        resource: Resource | None,
        error: BaseException | Silence,
        *,
        times: float = 1,
        after: bool = False,
        **match: Unpack[CallMatch],
    ) -> CallFault:
        """Let the next matching calls raise `error`, or hear nothing; what is None or not given matches everything.

        With `after` the write is applied and the answer lost. A list has no name: its `selector` tells the node; one
        of all namespaces has the `namespace` "".
        """
        fault = CallFault(verb, resource, error, times, after, **match)
        self._faults.append(fault)
        return fault

    def crash(self, identity: str, *, before: int | None = None, after: int | None = None) -> None:
        """Raise Crash before, or after, the k-th write of an identity (from 1, over the life of the cluster)."""

        def hook(write: Write, when: Literal["before", "after"]) -> None:
            if write.call.identity == identity and write.number == (before if when == "before" else after):
                raise Crash(f"{when} write {write.number}: {write.call.verb} {write.call.path}")

        self.on_write = hook

    async def read(self, call: Call) -> None:
        """Count a read, or raise what was scripted for it."""
        self.calls[call.identity, call.verb, call.resource.plural] += 1
        await self._raise(call, after=False)

    async def write(self, call: Call, apply: Callable[[], JSON | None]) -> JSON | None:
        """Carry out a write between the hooks and faults, and log it when it reached the server."""
        self.calls[call.identity, call.verb, call.resource.plural] += 1
        await self._raise(call, after=False)
        result = self._carry_out(call, apply)
        await self._raise(call, after=True)
        return result

    def _carry_out(self, call: Call, apply: Callable[[], JSON | None]) -> JSON | None:
        self._numbers[call.identity] += 1
        write = Write(self._numbers[call.identity], call)
        if self.on_write:
            self.on_write(write, "before")
        self.writes.append(write)
        try:
            result = apply()
        except KubeError as error:
            write.error = error
            raise
        if result is not None:
            write.resource_version = result["metadata"]["resourceVersion"]
        if self.on_write:
            self.on_write(write, "after")
        return result

    async def _raise(self, call: Call, *, after: bool) -> None:
        for fault in self._faults:
            if fault.after is after and fault.matches(call):
                fault.times -= 1
                fault.hits += 1
                if isinstance(fault.error, Silence):
                    await self._say_nothing(call)
                else:
                    raise fault.error.with_traceback(None)  # it would grow with every call

    async def _say_nothing(self, call: Call) -> None:
        """What HttpClient makes of a server that does not answer."""
        seconds = self.limits.inactivity if call.verb == "watch" else self.limits.total
        await asyncio.sleep(seconds)
        raise Unavailable(f"cannot {call.verb} {call.path}: no answer within {seconds:.0f} s")
