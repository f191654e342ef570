"""The meaning of the API server's answers: HTTP status and Status object become an error of `errors.py`.

Only machine-readable parts decide (code, reason, details.causes); the prose is passed on, never parsed (docs/design/drain.md#e11).
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
"""The longest wait in seconds that is accepted from an answer; a longer one is cut to this."""
HINT = "the chart grants this right if rbac.create is true"
"""How the operator gets a right that it lacks; see `Forbidden.hint`."""


def error_of(request: ApiRequest, status: int, answer: object, retry_after: str | None = None) -> KubeError:
    """Return the error for an answer that is not a success, from its parsed body and its Retry-After header."""
    message = text(answer, "message") or f"HTTP {status}"
    causes = {text(cause, "reason"): text(cause, "message") for cause in entries(answer, "details", "causes")}
    seconds, evicts = _seconds(answer, retry_after), request.subresource == EVICTION
    match status:
        case 401:
            return Unauthorized(
                f"cannot {request.what}, because the API server rejected the credentials: {message}"
            )
        case 403 if "NamespaceTerminating" in causes:
            return Forbidden(message, namespace_terminating=True)
        case 403:
            # The refusal by a ValidatingAdmissionPolicy is no lack of a right.
            hint = "" if "ValidatingAdmissionPolicy" in message else HINT
            return Forbidden(
                f"not allowed to {request.what}: {message}", hint=hint, group=request.resource.group
            )
        case 404:
            return NotFound(message)
        case 409 if request.verb == "create" and text(answer, "reason") == "AlreadyExists":
            return AlreadyExists(message)
        case 409:
            return Conflict(message)
        case 410:
            return Expired(message, text(answer, "metadata", "continue"))
        case 429 if "DisruptionBudget" in causes:
            return EvictionBlocked(causes["DisruptionBudget"] or message, seconds)
        # A request to all clients to slow down names a time to wait, or is plain text (apiserver v0.36.3
        # pkg/server/filters, maxinflight.go and priority-and-fairness.go). A Status without a time is an answer about
        # this pod (E11): KubeVirt's webhook refuses this way while it moves a machine.
        case 429 if evicts and seconds is None and text(answer, "kind") == "Status":
            return EvictionFailed(message)
        case 429:
            return Throttled(message, seconds)
        # The server lost a race over the budget (E14) if it names a time to wait: NewTimeoutError of apimachinery is
        # 504, reason Timeout, retryAfterSeconds 10 (kubernetes v1.36.3 pkg/registry/core/pod/storage/eviction.go).
        case 500 if evicts:
            return EvictionFailed(message) if seconds is None else EvictionBlocked(message, seconds)
        case 504 if evicts and seconds is not None and text(answer, "reason") == "Timeout":
            return EvictionBlocked(message, seconds)
        case _ if 400 <= status < 500 and status != 408:
            return Invalid(message)
    return Unavailable(f"the API server cannot {request.what}: {message}")


def error_of_event(request: ApiRequest, status_object: object) -> KubeError:
    code = part(status_object, "code")
    return error_of(request, code if isinstance(code, int) else 500, status_object)


def _seconds(answer: object, retry_after: str | None) -> float | None:
    if retry_after and retry_after.isdecimal():  # not a date
        return min(float(retry_after), MOST_SECONDS)
    seconds = whole(answer, "details", "retryAfterSeconds")
    return float(min(seconds, MOST_SECONDS)) if seconds > 0 else None
