"""Faults that hit calls to a FakeCluster, and the log of the writes that reached it.

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
"""A value for `times`: the fault lasts until it is lifted."""


class Silence(Enum):
    SILENCE = "no answer"


SILENCE: Final = Silence.SILENCE
"""A value for `error`: the server does not answer before the deadline of the caller."""


class Crash(BaseException):
    """The simulated death of the process. No `except Exception` catches it, as no program survives kill -9."""


@dataclass(frozen=True)
class Call:
    """One call as the server sees it. The verb is `evict` for an eviction, and `log` for reading a pod's log."""

    identity: str
    verb: str
    resource: Resource
    namespace: str | None = None
    name: str = ""
    subresource: str | None = None
    body: JSON | None = None
    selector: str = ""
    """Label and field selector of a list or watch, as one string; empty for other calls."""

    @property
    def path(self) -> str:
        return self.resource.path(self.namespace, self.name, self.subresource)


@dataclass
class Write:
    """A write that reached the server. `number` counts the writes of its identity from 1."""

    number: int
    call: Call
    resource_version: str = ""
    """The object's version after the write; empty when the write was refused, or was a deletion or an eviction."""
    error: KubeError | None = None
    """The error with which the server refused the write, or None."""


Hook = Callable[[Write, Literal["before", "after"]], None]
"""A function that is called before and after a write is applied. It may raise Crash."""


class CallMatch(TypedDict, total=False):
    """Conditions, in addition to verb and kind, for the calls that a fault hits; None matches everything."""

    identity: str | None
    namespace: str | None
    name: str | None
    subresource: str | None
    """Empty for the object itself."""
    selector: str | None
    """A string that the selector of the list or watch must contain."""


@dataclass
class CallFault:
    """An error for the next `times` matching calls. With `after` the call is carried out before the error is raised."""

    verb: str
    resource: Resource | None
    error: BaseException | Silence
    times: float
    after: bool
    match: CallMatch
    hits: int = 0

    def lift(self) -> None:
        self.times = 0

    def matches(self, call: Call) -> bool:
        return (
            self.times > 0
            and call.verb == self.verb
            and self.resource in (None, call.resource)
            and self.match.get("identity") in (None, call.identity)
            and self.match.get("namespace") in (None, call.namespace or "")
            and self.match.get("name") in (None, call.name)
            and self.match.get("subresource") in (None, call.subresource or "")
            and (self.match.get("selector") or "") in call.selector
        )


@dataclass
class Faults:
    on_write: Hook | None = None
    """Called before and after each write, or None."""
    writes: list[Write] = field(default_factory=list)
    """The writes that reached the server, including refused ones, in order."""
    calls: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    _faults: list[CallFault] = field(default_factory=list)
    _numbers: Counter[str] = field(default_factory=Counter)

    limits: Limits = field(default_factory=Limits)
    """The callers' deadlines, at which a call that gets SILENCE fails."""

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
        """Make the next `times` matching calls raise `error`, or get no answer if it is SILENCE. With `after` a write
        is applied first. A list has no name, so use `selector` for the lists of one node; a list of all namespaces has
        the `namespace` ""."""
        fault = CallFault(verb, resource, error, times, after, match)
        self._faults.append(fault)
        return fault

    def crash(self, identity: str, *, before: int | None = None, after: int | None = None) -> None:
        """Raise Crash before write number `before` of an identity, or after its write number `after`, counted from 1."""

        def hook(write: Write, when: Literal["before", "after"]) -> None:
            if write.call.identity == identity and write.number == (before if when == "before" else after):
                raise Crash(f"{when} write {write.number}: {write.call.verb} {write.call.path}")

        self.on_write = hook

    async def read(self, call: Call) -> None:
        self.calls[call.identity, call.verb, call.resource.plural] += 1
        await self._raise(call, after=False)

    async def write(self, call: Call, apply: Callable[[], JSON | None]) -> JSON | None:
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
                if not isinstance(fault.error, Silence):
                    raise fault.error.with_traceback(None)  # the traceback would grow with every call
                seconds = self.limits.inactivity if call.verb == "watch" else self.limits.total
                await asyncio.sleep(seconds)
                raise Unavailable(f"cannot {call.verb} {call.path}: no answer within {seconds:.0f} s")
