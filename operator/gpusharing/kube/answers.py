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
from gpusharing.kube.raw import entries, part, text

MOST_SECONDS = 86400.0
"""The longest time to wait that is read from an answer; a longer one is cut to it."""


def error_of(request: ApiRequest, status: int, answer: object, retry_after: str | None = None) -> KubeError:
    """Return the error for an answer that is not a success, by its status and machine-readable parts. `answer` is the
    parsed body, `retry_after` the header."""
    message = text(answer, "message") or f"HTTP {status}"
    match status:
        case 401:
            return Unauthorized(
                f"the API server does not accept our credentials to {request.what}: {message}"
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
    """Return the error for an ERROR event of a watch, whose object is a Status. One without a code counts as 500."""
    code = part(status_object, "code")
    return error_of(request, code if isinstance(code, int) else 500, status_object)


HINT = "the chart grants what is needed when rbac.create is true"
"""What grants the operator the right that it lacks; see `Forbidden.hint`."""


def _forbidden(request: ApiRequest, answer: object, message: str) -> Forbidden:
    """Return Forbidden with the hint, or without it if the namespace is being deleted, because then no right is
    missing."""
    if "NamespaceTerminating" in _causes(answer):
        return Forbidden(message, namespace_terminating=True)
    return Forbidden(f"no right to {request.what}: {message}", hint=HINT, group=request.resource.group)


def _too_many(request: ApiRequest, answer: object, message: str, seconds: float | None) -> KubeError:
    """Return the error for a 429: EvictionBlocked if a PodDisruptionBudget is the cause, EvictionFailed for an
    eviction that a Status refuses without a time to wait, else Throttled.

    A request to all clients to slow down has a time, or is plain text (apiserver v0.36.3 pkg/server/filters,
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
    """Return the error for a 500 or 504 to an eviction. With a time to wait, the server only lost a race over the
    budget (E14): EvictionBlocked. A 500 without one will never succeed: EvictionFailed. Any other 504 is a call
    that failed: Unavailable.

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
    """Return the message of each cause in the details of a Status, by the cause's reason."""
    return {text(cause, "reason"): text(cause, "message") for cause in entries(answer, "details", "causes")}


def _seconds(answer: object, retry_after: str | None) -> float | None:
    """Return how many seconds the server asks to wait, at most MOST_SECONDS: the header's number, else that of the
    Status. None if neither has one; a date in the header is ignored."""
    if retry_after and retry_after.isdecimal():
        return min(float(retry_after), MOST_SECONDS)
    seconds = part(answer, "details", "retryAfterSeconds")
    return float(min(seconds, MOST_SECONDS)) if isinstance(seconds, int) and seconds > 0 else None
