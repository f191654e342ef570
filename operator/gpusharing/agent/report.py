"""From what was read to what is written: the observation, and the patch that puts it on the server."""

from typing import Any

from pydantic import ValidationError

from gpusharing.agent.podresources import Holdings
from gpusharing.agent.reader import Answer
from gpusharing.api.gpunode import Observed, Request
from gpusharing.kube.client import JSON

NOTHING_KNOWN = Observed(
    request_id="",
    quiet=False,
    simulated=False,
    error="",
    driver_version="",
    models=(),
    gpus=(),
    allocated={},
    pods=0,
)


def request_of(node: JSON) -> Request:
    """What the operator asks in `spec.request` of a GPUNode; the default asks nothing in particular."""
    return Request.model_validate(node.get("spec", {}).get("request") or {})


def observed_of(node: JSON) -> Observed:
    """What the server holds in `status.observed`; nothing known when absent or of another version of us."""
    try:
        return Observed.model_validate(node.get("status", {}).get("observed") or {})
    except ValidationError:
        return NOTHING_KNOWN


def keeps_closed(request: Request, last: Observed) -> bool:
    """The library stays closed: quiet is asked for and was answered, maybe by the process before us."""
    return request.quiet and last.quiet and last.request_id == request.id


def report(answer: Answer, last: Observed, *, simulated: bool) -> Observed:
    """The observation that follows from an answer.

    An error keeps the last known GPUs and the request they answered: nothing new was read, so no newer
    request is echoed, and a library that may still be open is not called quiet.
    """
    if answer.reading is None:
        return last.model_copy(update={"error": answer.error, "quiet": False, "simulated": simulated})
    return Observed(
        request_id=answer.request.id,
        quiet=answer.request.quiet,
        simulated=simulated,
        error="",
        driver_version=answer.reading.driver_version,
        models=answer.reading.models,
        gpus=answer.reading.gpus,
        allocated={},
        pods=0,
    )


def with_holdings(observed: Observed, holdings: Holdings) -> Observed:
    """The same observation with who holds devices now."""
    return observed.model_copy(update={"allocated": holdings.allocated, "pods": holdings.pods})


def status_patch(observed: Observed, node: JSON) -> JSON | None:
    """JSON merge patch for the status subresource, every key present; None when the server has it already.

    A merge patch keeps map keys that it does not name, so resource names that are gone are named with null.
    """
    wanted: dict[str, Any] = observed.model_dump(mode="json", by_alias=True)
    present: dict[str, Any] = node.get("status", {}).get("observed") or {}
    if _without_nulls(present) == _without_nulls(wanted):
        return None
    gone = dict.fromkeys(sorted(set(present.get("allocated") or {}) - set(wanted["allocated"])))
    return {"status": {"observed": {**wanted, "allocated": {**wanted["allocated"], **gone}}}}


def _without_nulls(value: Any) -> Any:
    """The API server may drop null fields when it stores an object; absent and null mean the same to us."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
