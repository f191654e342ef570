"""The request to the agent, the observation that answers it, and the patch that writes it to the server."""

from dataclasses import replace
from typing import Any

from gpusharing.agent.library import Reading
from gpusharing.agent.podresources import Holdings
from gpusharing.api.gpunode import GPU, Observed, Request
from gpusharing.api.records import from_wire, to_wire
from gpusharing.kube.client import JSON
from gpusharing.kube.raw import section


def request_of(node: JSON) -> Request:
    """Return the request of a GPUNode. If the GPUNode has none, the request has an empty id and does not ask for
    quiet."""
    return from_wire(Request, section(node, "spec", "request"))


class Observation(Observed):
    """The content of `status.observed`, with the agent's operations on it. Each of them returns a new value or
    `self`."""

    __slots__ = ()

    @classmethod
    def of(cls, node: JSON) -> "Observation":
        """Return the observation that a GPUNode holds, from this process or an earlier one. Fields that it does not
        have, or that have the wrong type, get their default or empty value."""
        return from_wire(cls, section(node, "status", "observed"))

    @classmethod
    def after(
        cls, request: Request, reading: Reading, *, simulated: bool, last: "Observation | None" = None
    ) -> "Observation":
        """Return the answer to a request, from a reading that began after the request was seen. A GPU that NVML cannot
        communicate with keeps what `last` knew about it and its model. The holdings of pods are unknown in the
        result, until `held_by` adds them."""
        known = {gpu.index: gpu for gpu in last.gpus} if last else {}
        gpus = tuple(_with_the_past(gpu, known) for gpu in reading.gpus)
        named, met = {gpu.product for gpu in gpus}, {model.product for model in reading.models}
        past = tuple(model for model in last.models if model.product in named - met) if last else ()
        return cls(
            request_id=request.id,
            quiet=request.quiet,
            simulated=simulated,
            error="",
            driver_version=reading.driver_version,
            models=reading.models + past,
            gpus=gpus,
        )

    def again(self, request: Request) -> "Observation":
        """Return the same GPUs as the answer to `request`, for a reading that found nothing new. Returns `self` if
        that changes nothing."""
        if (self.request_id, self.quiet, self.error) == (request.id, request.quiet, ""):
            return self
        return replace(self, request_id=request.id, quiet=request.quiet, error="")

    def failing(self, error: str, *, simulated: bool) -> "Observation":
        """Return the same GPUs and the same request id with an error, as a new value. Nothing new was read, so no
        newer request is echoed, and `quiet` is False, because the library may still be open."""
        return replace(self, error=error, quiet=False, simulated=simulated)

    def held_by(self, holdings: Holdings | None) -> "Observation":
        """Return the same GPUs with these holdings, which are unknown if `holdings` is None. Returns `self` if nothing
        changes."""
        allocated, pods = (None, None) if holdings is None else (holdings.allocated, holdings.pods)
        if (self.allocated, self.pods) == (allocated, pods):
            return self
        return replace(self, allocated=allocated, pods=pods)

    def keeps_closed(self, request: Request) -> bool:
        """Whether the library has to stay closed, because `request` asks for quiet and this observation already
        answers it, perhaps from a previous process."""
        return request.quiet and self.quiet and self.request_id == request.id

    def patch(self, node: JSON) -> JSON | None:
        """Return the JSON merge patch for the status subresource of `node` with every key of this observation, or None
        if the server already has all of it. Error counts that differ but are above zero on both sides count as equal
        (`_same`).

        A merge patch keeps map keys that it does not name, so resource names that have disappeared are set to null.
        """
        wanted: JSON = to_wire(self)
        present = section(node, "status", "observed")
        if _same(present, wanted):
            return None
        if self.allocated is None:
            return {"status": {"observed": wanted}}
        gone = dict.fromkeys(sorted(section(present, "allocated").keys() - self.allocated.keys()))
        return {"status": {"observed": {**wanted, "allocated": {**self.allocated, **gone}}}}


def _with_the_past(gpu: GPU, known: dict[int, GPU]) -> GPU:
    """Return the GPU if it can be read or is not in `known`, the earlier GPUs by index. Otherwise return the earlier
    GPU with the current access, XID and error."""
    if gpu.access == "Ok" or gpu.index not in known:
        return gpu
    return replace(known[gpu.index], access=gpu.access, xid=gpu.xid, error=gpu.error)


_COUNTS = frozenset({"eccUncorrected", "correctable", "uncorrectable"})
"""JSON keys of error counts. The GPUNode reports whether there are errors; the metrics report how many."""


def _same(present: Any, wanted: Any) -> bool:
    """Whether two JSON values are equal. An absent key equals null, because the API server may drop null fields when
    it stores an object. Error counts (_COUNTS) are equal if both are zero, both positive or both unknown."""
    if present == wanted:
        return True
    if isinstance(present, dict) and isinstance(wanted, dict):
        return all(
            (_errors if key in _COUNTS else _same)(present.get(key), wanted.get(key))
            for key in present.keys() | wanted.keys()
        )
    if isinstance(present, list) and isinstance(wanted, list):
        return len(present) == len(wanted) and all(map(_same, present, wanted))
    return False


def _errors(present: Any, wanted: Any) -> bool:
    """Whether two counts are both zero, both above zero, or both unknown."""
    return (present is None, bool(present)) == (wanted is None, bool(wanted))
