"""The errors of calls to the API server, named by what the caller does next (not by HTTP code).

The class of an error says how far it reaches. A `CallFailed` concerns one call: this object, in this pass. Only
`ServerAway`, `Unauthorized` and `LeaseLost` (kube/lease.py) concern all calls and end a pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from traceback import extract_tb


@dataclass(repr=False)  # as of any exception: subclasses without fields add none
class KubeError(Exception):
    """A call to the API server failed, or was not sent. Errors of one class compare equal if their fields are equal."""

    message: str

    def __str__(self) -> str:
        return self.message


class CallFailed(KubeError):
    """One call failed, and others may succeed."""


class NotFound(CallFailed):
    """404: the object is gone, or its kind is not served; go on without it."""


class Conflict(CallFailed):
    """409: the object changed or is not the one that we expected; read again and decide again."""


class AlreadyExists(CallFailed):
    """409 on create: the object exists already; read it."""


@dataclass
class Expired(CallFailed):
    """410: the resourceVersion is too old to watch or list from; list again."""

    rest: str = ""
    """The token for the rest of an expired list as it is now; empty when the server gave none."""


class Invalid(CallFailed):
    """400, 422, and any other 4xx without an error of its own: the server refuses this; never repeat it unchanged."""


class Unauthorized(KubeError):
    """401: our credentials are no longer valid; end the pass and log in again."""


@dataclass
class Forbidden(CallFailed):
    """403: we lack a right; the message names verb and resource."""

    namespace_terminating: bool = False
    """Whether no right is missing: the namespace is being deleted."""
    hint: str = ""
    """What grants the right to the operator; useless for other programs."""
    group: str = ""
    """The API group of the request; empty for the core group and where it is unknown."""

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


@dataclass
class EvictionBlocked(CallFailed):
    """A budget refuses for now: 429 with cause DisruptionBudget (E5, E6), or a lost race with a time to wait (E14)."""

    retry_after: float | None = None
    """Seconds to wait; None when the server gave none, as is usual for a plain refusal by a budget."""


@dataclass
class Throttled(CallFailed):
    """429 for any other reason, usually API Priority and Fairness: slow down (docs/design/drain.md#e7)."""

    retry_after: float | None = None
    """Seconds to wait; None when the server gave none."""


@dataclass
class HeldBack(Throttled):
    """A call that was not sent at all, because the server asked us to wait; `retry_after` is never None."""


class Undone(CallFailed):
    """A write that was not sent, because others keep undoing what it writes (kube/sender.py)."""


class Unavailable(CallFailed):
    """5xx, 408, time-outs, broken connections: the call may have been carried out, and other calls may succeed."""


class TooLarge(CallFailed):
    """The answer is larger than what we read. It will be again until somebody makes the object smaller."""


@dataclass
class PageTooLarge(TooLarge):
    """A page of a list is larger than what we read; `fits` objects of the size seen so far would not be."""

    fits: int = 1


class ServerAway(KubeError):
    """Calls about different objects failed in a row (kube/fanout.py), and none succeeded in between: end the pass."""


class EvictionFailed(CallFailed):
    """500 on an eviction, as for two budgets on one pod (E8), or a 429 with a Status and no time to wait (E11)."""


REFUSALS = (Forbidden, Invalid, Undone)
"""Errors by which the call itself is refused, so that repeating it helps only when something else has changed."""


def describe_bug(error: BaseException) -> str:
    """Return the type, the message and the place of an error that nothing expects, in one line for people."""
    places = extract_tb(error.__traceback__)
    where = f" ({Path(places[-1].filename).name}:{places[-1].lineno})" if places else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}{where}"


@contextmanager
def one_error() -> Iterator[None]:
    """Raise the error that `first_of` chooses in place of a group of errors."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise first_of(group) from None


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
