"""Question and answer: the request, the observation, and the patch that writes it to the server."""

from dataclasses import replace
from typing import Any

from gpusharing.agent.library import Reading
from gpusharing.agent.podresources import Holdings
from gpusharing.api.gpunode import GPU, Observed, Request
from gpusharing.api.records import from_wire, to_wire
from gpusharing.kube.client import JSON
from gpusharing.kube.raw import section


def requested(node: JSON) -> Request:
    """Return the request of a GPUNode; without one, nothing in particular is asked."""
    return from_wire(Request, section(node, "spec", "request"))


class Observation(Observed):
    """`status.observed`, and what the agent makes of it in its next turn."""

    __slots__ = ()

    @classmethod
    def of(cls, node: JSON) -> "Observation":
        """What the server holds, from this process or the one before; nothing known where there is nothing."""
        return from_wire(cls, section(node, "status", "observed"))

    @classmethod
    def after(
        cls, request: Request, reading: Reading, *, simulated: bool, last: "Observation | None" = None
    ) -> "Observation":
        """The answer to a request, by a reading that began after it. A GPU that NVML cannot talk to keeps what `last`
        knew about it."""
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
        """The answer to a request by a reading that found nothing new."""
        if (self.request_id, self.quiet, self.error) == (request.id, request.quiet, ""):
            return self
        return replace(self, request_id=request.id, quiet=request.quiet, error="")

    def failing(self, error: str, *, simulated: bool) -> "Observation":
        """The same GPUs and the same echo with an error: nothing new was read, so no newer request is echoed, and
        a library that may still be open is not called quiet."""
        return replace(self, error=error, quiet=False, simulated=simulated)

    def held_by(self, holdings: Holdings | None) -> "Observation":
        """The same GPUs with the current holdings; None: unknown."""
        allocated, pods = (None, None) if holdings is None else (holdings.allocated, holdings.pods)
        if (self.allocated, self.pods) == (allocated, pods):
            return self
        return replace(self, allocated=allocated, pods=pods)

    def keeps_closed(self, request: Request) -> bool:
        """The library stays closed: quiet is requested and was answered, maybe by the process before this one."""
        return request.quiet and self.quiet and self.request_id == request.id

    def patch(self, node: JSON) -> JSON | None:
        """JSON merge patch for the status subresource, every key present; None when the server has it already.

        A merge patch keeps map keys that it does not name, so resource names that disappeared are set to null.
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
    if gpu.access == "Ok" or gpu.index not in known:
        return gpu
    return replace(known[gpu.index], access=gpu.access, xid=gpu.xid, error=gpu.error)


_COUNTS = frozenset({"eccUncorrected", "correctable", "uncorrectable"})
"""Wire names of counts of errors. That there are errors is reported; how many is left to the metrics."""


def _same(present: Any, wanted: Any) -> bool:
    """Whether two JSON values are equal, where an absent key equals null, because the API server may drop null fields
    when it stores an object. Error counts (_COUNTS) are equal if both are zero, both positive or both unknown."""
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
    """Both zero, both above zero, or both unknown."""
    return (present is None, bool(present)) == (wanted is None, bool(wanted))
