"""What can go wrong with a call to FakeCluster, and the log of the writes that reached it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from gpusharing.kube.client import JSON, Resource
from gpusharing.kube.errors import KubeError


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


@dataclass
class Fault:
    """What the next `times` matching calls get instead of, or (`after`) on top of, being carried out."""

    verb: str
    resource: Resource | None
    error: BaseException
    times: int
    after: bool
    identity: str | None

    def matches(self, call: Call) -> bool:
        """Whether this call gets it."""
        return (
            self.times > 0
            and call.verb == self.verb
            and self.resource in (None, call.resource)
            and self.identity in (None, call.identity)
        )


@dataclass
class Faults:
    """Scripted faults and the write log of one FakeCluster."""

    on_write: Hook | None = None
    writes: list[Write] = field(default_factory=list)
    calls: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    _faults: list[Fault] = field(default_factory=list)
    _numbers: Counter[str] = field(default_factory=Counter)

    def fail(
        self,
        verb: str,
        resource: Resource | None,
        error: BaseException,
        *,
        times: int = 1,
        after: bool = False,
        identity: str | None = None,
    ) -> None:
        """Let the next matching calls raise `error`; with `after` the write is applied and the answer lost."""
        self._faults.append(Fault(verb, resource, error, times, after, identity))

    def crash(self, identity: str, *, before: int | None = None, after: int | None = None) -> None:
        """Raise Crash before, or after, the k-th write of an identity (from 1, over the life of the cluster)."""

        def hook(write: Write, when: Literal["before", "after"]) -> None:
            if write.call.identity == identity and write.number == (before if when == "before" else after):
                raise Crash(f"{when} write {write.number}: {write.call.verb} {write.call.path}")

        self.on_write = hook

    def read(self, call: Call) -> None:
        """Count a read, or raise what was scripted for it."""
        self.calls[call.identity, call.verb, call.resource.plural] += 1
        self._raise(call, after=False)

    def write(self, call: Call, apply: Callable[[], JSON | None]) -> JSON | None:
        """Carry out a write between the hooks and faults, and log it when it reached the server."""
        self.calls[call.identity, call.verb, call.resource.plural] += 1
        self._raise(call, after=False)
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
        self._raise(call, after=True)
        return result

    def _raise(self, call: Call, *, after: bool) -> None:
        for fault in self._faults:
            if fault.after is after and fault.matches(call):
                fault.times -= 1
                raise fault.error
