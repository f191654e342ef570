"""Faults that hit calls to a FakeCluster, and the log of the writes that reached it.

A fault may hit every call of a verb, of a kind, or of one single object, once or forever:

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
    """The type of SILENCE."""

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
        """The URL path of the object, with its subresource."""
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
    """Conditions, in addition to verb and kind, for the calls that a fault hits; see CallFault."""

    identity: str | None
    namespace: str | None
    name: str | None
    subresource: str | None
    selector: str | None


@dataclass
class CallFault:
    """An error for the next `times` matching calls. Such a call is not carried out, or, with `after`, carried out
    before the error is raised."""

    verb: str
    resource: Resource | None
    error: BaseException | Silence
    times: float
    after: bool = False
    identity: str | None = None
    namespace: str | None = None
    name: str | None = None
    subresource: str | None = None
    """The subresource; empty for the object itself. Here, as in the other conditions, None matches everything."""
    selector: str | None = None
    """A string that the selector of the list or watch must contain."""
    hits: int = 0
    """Number of calls that have got the error."""

    def lift(self) -> None:
        """End the fault, so that no further call gets it."""
        self.times = 0

    def matches(self, call: Call) -> bool:
        """Whether the fault hits this call: all of its conditions hold, and it has not been used up or lifted. `after`
        is not checked, and no hit is counted."""
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
    """Called before and after each write, or None."""
    writes: list[Write] = field(default_factory=list)
    """The writes that reached the server, including refused ones, in order."""
    calls: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Number of calls by identity, verb and plural."""
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
        """Make the next `times` calls with this verb, on this kind (any if `resource` is None), that match raise
        `error`, or get no answer if it is SILENCE. A condition in `match` that is None or not given matches everything.
        If several faults match a call, the one that was set first hits it. Returns the fault, which can be lifted.

        With `after` a write is applied first, so that only its answer is lost; such a fault hits no reads, and no
        writes that the server refuses. A list has no name, so use `selector` for the lists of one node. A list of all
        namespaces has the `namespace` ""."""
        fault = CallFault(verb, resource, error, times, after, **match)
        self._faults.append(fault)
        return fault

    def crash(self, identity: str, *, before: int | None = None, after: int | None = None) -> None:
        """Arrange that write number `before` of an identity raises Crash before it is applied, or write number `after`
        once it has succeeded. Each identity's writes are counted from 1 over the life of the cluster, without those
        that a fault keeps from the server. Replaces `on_write`."""

        def hook(write: Write, when: Literal["before", "after"]) -> None:
            """Raise Crash if this is the write and the moment to crash at."""
            if write.call.identity == identity and write.number == (before if when == "before" else after):
                raise Crash(f"{when} write {write.number}: {write.call.verb} {write.call.path}")

        self.on_write = hook

    async def read(self, call: Call) -> None:
        """Count a read (a get, list or watch, or a pod's log), and raise the fault scripted for it, if any. Reads are
        not logged."""
        self.calls[call.identity, call.verb, call.resource.plural] += 1
        await self._raise(call, after=False)

    async def write(self, call: Call, apply: Callable[[], JSON | None]) -> JSON | None:
        """Count a write, carry it out by calling `apply`, and return the result. A fault without `after` keeps the
        write from the server, and one with `after` strikes only if the server accepted the write. A write that
        reached the server is logged, even if the server refused it. Faults, `apply` and the hook may raise."""
        self.calls[call.identity, call.verb, call.resource.plural] += 1
        await self._raise(call, after=False)
        result = self._carry_out(call, apply)
        await self._raise(call, after=True)
        return result

    def _carry_out(self, call: Call, apply: Callable[[], JSON | None]) -> JSON | None:
        """Number and log the write, call `apply` and return its result. The write records the new version or the
        KubeError, which is raised again. The hook is called before the write is logged, and after it if it succeeded.
        """
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
        """Raise the error of the first fault, in the order in which they were set, that matches the call, and count the
        hit. A SILENCE waits for the caller's deadline and raises Unavailable. `after` selects the faults that strike
        after a write, otherwise only the others count. Does nothing if no fault matches."""
        for fault in self._faults:
            if fault.after is after and fault.matches(call):
                fault.times -= 1
                fault.hits += 1
                if isinstance(fault.error, Silence):
                    await self._say_nothing(call)
                else:
                    raise fault.error.with_traceback(None)  # the traceback would grow with every call

    async def _say_nothing(self, call: Call) -> None:
        """Wait for the caller's deadline in `limits` (`inactivity` for a watch, `total` for other calls), and raise
        the Unavailable that HttpClient raises if a server does not answer."""
        seconds = self.limits.inactivity if call.verb == "watch" else self.limits.total
        await asyncio.sleep(seconds)
        raise Unavailable(f"cannot {call.verb} {call.path}: no answer within {seconds:.0f} s")
