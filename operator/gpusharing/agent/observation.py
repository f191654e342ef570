"""The request to the agent, the observation that answers it, and the patch that writes it to the server."""

from dataclasses import replace
from typing import Any

from gpusharing.agent.library import Reading
from gpusharing.agent.podresources import Holdings
from gpusharing.api.gpunode import Observed, Request
from gpusharing.api.records import from_wire, to_wire
from gpusharing.kube.client import JSON
from gpusharing.kube.raw import section


def request_of(node: JSON) -> Request:
    """Return the request of a GPUNode; one without a request has an empty id and does not ask for quiet."""
    return from_wire(Request, section(node, "spec", "request"))


class Observation(Observed):
    """The content of `status.observed`, with the agent's operations on it. Each returns a new value, or `self` if nothing changes."""

    __slots__ = ()

    @classmethod
    def of(cls, node: JSON) -> "Observation":
        """Return the observation that a GPUNode holds, from this process or an earlier one."""
        return from_wire(cls, section(node, "status", "observed"))

    @classmethod
    def after(
        cls, request: Request, reading: Reading, *, simulated: bool, last: "Observation | None" = None
    ) -> "Observation":
        """Return the answer to a request, from a reading that began after the request was seen.

        A GPU that NVML cannot communicate with keeps what `last` knew about it and its model.
        """
        known = {gpu.index: gpu for gpu in last.gpus} if last else {}
        gpus = tuple(
            gpu
            if gpu.access == "Ok" or gpu.index not in known
            else replace(known[gpu.index], access=gpu.access, xid=gpu.xid, error=gpu.error)
            for gpu in reading.gpus
        )
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
        """Return the same GPUs as the answer to `request`, for a reading that found nothing new."""
        if (self.request_id, self.quiet, self.error) == (request.id, request.quiet, ""):
            return self
        return replace(self, request_id=request.id, quiet=request.quiet, error="")

    def failing(self, error: str, *, simulated: bool) -> "Observation":
        """Return the same GPUs and request id with an error; not `quiet`, because the library may still be open."""
        return replace(self, error=error, quiet=False, simulated=simulated)

    def held_by(self, holdings: Holdings | None) -> "Observation":
        """Return the same GPUs with these holdings, which are unknown if None."""
        allocated, pods = (None, None) if holdings is None else (holdings.allocated, holdings.pods)
        if (self.allocated, self.pods) == (allocated, pods):
            return self
        return replace(self, allocated=allocated, pods=pods)

    def keeps_closed(self, request: Request) -> bool:
        """Whether the library has to stay closed: `request` asks for quiet, and this already answers it, perhaps from a previous process."""
        return request.quiet and self.quiet and self.request_id == request.id

    def patch(self, node: JSON) -> JSON | None:
        """Return the merge patch of `node`'s status with every key of this observation, or None if the server already has all of it.

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


_COUNTS = frozenset({"eccUncorrected", "correctable", "uncorrectable"})
"""JSON keys of error counts. The GPUNode reports whether there are errors; the metrics report how many."""


def _same(present: Any, wanted: Any) -> bool:
    """Whether two JSON values are equal. An absent key equals null, because the API server may drop null fields."""
    if present == wanted:
        return True
    if isinstance(present, dict) and isinstance(wanted, dict):
        pairs = ((key, present.get(key), wanted.get(key)) for key in present.keys() | wanted.keys())
        return all(
            (one is None, bool(one)) == (other is None, bool(other)) if key in _COUNTS else _same(one, other)
            for key, one, other in pairs
        )
    if isinstance(present, list) and isinstance(wanted, list):
        return len(present) == len(wanted) and all(map(_same, present, wanted))
    return False
