"""The meaning of the API server's answers: HTTP status and Status object become an error of `errors.py`.

Only machine-readable parts decide (code, reason, details.causes); the prose is passed on, never parsed
(docs/design/drain.md#e11).
"""

from gpusharing.kube.client import EVICTION, ApiRequest
from gpusharing.kube.errors import (
    AlreadyExists,
    Conflict,
    EvictionBlocked,
    EvictionFailed,
    Expired,
    Forbidden,
    Invalid,
    KubeError,
    NotFound,
    Throttled,
    Unauthorized,
    Unavailable,
)
from gpusharing.kube.raw import entries, part, text, whole

MOST_SECONDS = 86400.0
"""The longest wait that is accepted from an answer, in seconds. A longer one is shortened to this."""


def error_of(request: ApiRequest, status: int, answer: object, retry_after: str | None = None) -> KubeError:
    """Return the error for an answer that is not a success, chosen by its HTTP status and machine-readable parts.
    Nothing is raised. A 401, 404 or 410 becomes Unauthorized, NotFound or Expired, which has the token for the rest of
    the list if the answer names one. A 403 becomes Forbidden (`_forbidden`). A 409 becomes AlreadyExists if it answers
    a create and its reason says so, else Conflict. A 429 can mean three things (`_too_many`). A 4xx other than 408 that
    has no error class of its own becomes Invalid. Every other status becomes Unavailable, except a 500 or 504 to an
    eviction (`_eviction_error`). `answer` is the parsed body, whose `message` is part of the error's text ("HTTP" and
    the status if it has none), and `retry_after` is the value of the Retry-After header, or None without one."""
    message = text(answer, "message") or f"HTTP {status}"
    match status:
        case 401:
            return Unauthorized(
                f"cannot {request.what}, because the API server rejected the credentials: {message}"
            )
        case 403:
            return _forbidden(request, answer, message)
        case 404:
            return NotFound(message)
        case 409 if request.verb == "create" and text(answer, "reason") == "AlreadyExists":
            return AlreadyExists(message)
        case 409:
            return Conflict(message)
        case 410:
            return Expired(message, text(answer, "metadata", "continue"))
        case 429:
            return _too_many(request, answer, message, _seconds(answer, retry_after))
        case 500 | 504 if request.subresource == EVICTION:
            return _eviction_error(request, status, answer, message, retry_after)
        case _ if 400 <= status < 500 and status != 408:
            return Invalid(message)
    return Unavailable(f"the API server cannot {request.what}: {message}")


def error_of_event(request: ApiRequest, status_object: object) -> KubeError:
    """Return the error for an ERROR event of a watch, whose object is a Status: the error of an answer with that code,
    such as Expired for 410. A Status without a whole number as its code counts as a 500, which becomes Unavailable. The
    error is returned, not raised."""
    code = part(status_object, "code")
    return error_of(request, code if isinstance(code, int) else 500, status_object)


HINT = "the chart grants this right if rbac.create is true"
"""Tells people how the operator gets a right that it lacks; see `Forbidden.hint`."""


def _forbidden(request: ApiRequest, answer: object, message: str) -> Forbidden:
    """Return the error for a 403, with a hint on how to grant the missing right. No right is missing, and the hint is
    empty, if a ValidatingAdmissionPolicy refused the request (`message` contains that word), or if the namespace is
    being deleted (the answer has the cause NamespaceTerminating); only in the latter case `namespace_terminating` is
    True."""
    if "NamespaceTerminating" in _causes(answer):
        return Forbidden(message, namespace_terminating=True)
    hint = "" if "ValidatingAdmissionPolicy" in message else HINT
    return Forbidden(f"not allowed to {request.what}: {message}", hint=hint, group=request.resource.group)


def _too_many(request: ApiRequest, answer: object, message: str, seconds: float | None) -> KubeError:
    """Return the error for a 429: EvictionBlocked if the answer has the cause DisruptionBudget, with the message of
    that cause if there is one, EvictionFailed if a Status refuses an eviction without naming a time to wait, else
    Throttled. `seconds` is the wait that the server asks for, or None.

    A request to all clients to slow down names a time to wait, or is plain text (apiserver v0.36.3 pkg/server/filters,
    maxinflight.go and priority-and-fairness.go). A Status without a time is an answer about this pod (E11): KubeVirt's
    webhook refuses this way while it moves a machine.
    """
    causes = _causes(answer)
    if "DisruptionBudget" in causes:
        return EvictionBlocked(causes["DisruptionBudget"] or message, seconds)
    if request.subresource == EVICTION and seconds is None and text(answer, "kind") == "Status":
        return EvictionFailed(message)
    return Throttled(message, seconds)


def _eviction_error(
    request: ApiRequest, status: int, answer: object, message: str, retry_after: str | None
) -> KubeError:
    """Return the error for a 500 or 504 to an eviction. EvictionBlocked if the answer names a time to wait, because
    the server then only lost a race over the budget (E14); for a 504 the reason must also be Timeout. EvictionFailed
    for a 500 without a time, because it will never succeed. Unavailable for any other 504, which is a call that
    failed.

    The race ends as NewTimeoutError of apimachinery: 504, reason Timeout, retryAfterSeconds 10 (kubernetes v1.36.3
    pkg/registry/core/pod/storage/eviction.go).
    """
    seconds = _seconds(answer, retry_after)
    if status == 500:
        return EvictionFailed(message) if seconds is None else EvictionBlocked(message, seconds)
    if seconds is not None and text(answer, "reason") == "Timeout":
        return EvictionBlocked(message, seconds)
    return Unavailable(f"the API server cannot {request.what}: {message}")


def _causes(answer: object) -> dict[str, str]:
    """Return the causes in the details of a Status as a mapping from each cause's reason to its message; empty if it
    has none. Of several causes with one reason the last counts, and a cause without a reason has the key ""."""
    return {text(cause, "reason"): text(cause, "message") for cause in entries(answer, "details", "causes")}


def _seconds(answer: object, retry_after: str | None) -> float | None:
    """Return how many seconds the server asks us to wait, at most MOST_SECONDS: the whole number in the Retry-After
    header, which may be 0, or, without one, a positive `details.retryAfterSeconds` in the Status. None if there is
    neither; a date in the header is ignored."""
    if retry_after and retry_after.isdecimal():
        return min(float(retry_after), MOST_SECONDS)
    seconds = whole(answer, "details", "retryAfterSeconds")
    return float(min(seconds, MOST_SECONDS)) if seconds > 0 else None
