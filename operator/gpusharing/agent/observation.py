"""Question and answer: the request, the observation, and the patch that writes it to the server."""

from dataclasses import field, fields, is_dataclass, replace
from typing import Any

from gpusharing.agent.library import Reading
from gpusharing.agent.podresources import Holdings
from gpusharing.kube.client import JSON
from gpusharing.kube.raw import entries, part, section, text, whole
from gpusharing.planning.vocabulary.values import value

_SPELT_OTHERWISE = {"request_id": "requestID", "memory_gb": "memoryGB", "memory_mib": "memoryMiB"}
"""Wire names that are not the plain camel case of ours (api/gpunode.py)."""
_NAMES: dict[type[object], tuple[tuple[str, str], ...]] = {}


@value
class AgentRequest:
    """What the operator asks in `spec.request`; see api.gpunode.Request."""

    id: str = ""
    """Echoed in the observation that answers it; empty: nothing was asked yet."""
    quiet: bool = False
    """Whether NVML is to be read once more, closed, and kept closed."""

    @classmethod
    def of(cls, node: JSON) -> "AgentRequest":
        """The request of a GPUNode; without one, nothing in particular is asked."""
        return cls(text(node, "spec", "request", "id"), part(node, "spec", "request", "quiet") is True)


@value
class Observation:
    """`status.observed`; see api.gpunode.Observed. GPUs and models are kept as they go over the wire."""

    request_id: str = ""
    """The request that this observation answers: it was read after that request arrived."""
    quiet: bool = False
    """Whether NVML is closed at the operator's request; `gpus` is then the last reading."""
    simulated: bool = False
    """Whether the GPUs are SIMULATED."""
    error: str = ""
    """What keeps the agent from reading NVML; empty: nothing does."""
    driver_version: str = ""
    """Empty when unknown."""
    models: list[JSON] = field(default_factory=list)
    """The card models, each an ObservedModel."""
    gpus: list[JSON] = field(default_factory=list)
    """The GPUs by index, each an ObservedGPU."""
    allocated: dict[str, int] | None = None
    """None: unknown."""
    pods: int | None = None
    """How many pods hold a device; None: unknown."""

    @classmethod
    def of(cls, node: JSON) -> "Observation":
        """What the server holds, from this process or the one before; nothing known where there is nothing."""
        observed = section(node, "status", "observed")
        return cls(
            request_id=text(observed, "requestID"),
            quiet=part(observed, "quiet") is True,
            simulated=part(observed, "simulated") is True,
            error=text(observed, "error"),
            driver_version=text(observed, "driverVersion"),
            models=entries(observed, "models"),
            gpus=entries(observed, "gpus"),
            allocated=_counts(observed),
            pods=whole(observed, "pods") if isinstance(part(observed, "pods"), int) else None,
        )

    @classmethod
    def after(
        cls, request: AgentRequest, reading: Reading, *, simulated: bool, last: "Observation | None" = None
    ) -> "Observation":
        """The answer to a request, by a reading that began after it. A GPU that NVML cannot talk to keeps what `last`
        knew about it."""
        known = {gpu.get("index"): gpu for gpu in last.gpus} if last else {}
        gpus = [_with_the_past(wire(gpu), known) for gpu in reading.gpus]
        models = [wire(model) for model in reading.models]
        named, met = {gpu["product"] for gpu in gpus}, {model["product"] for model in models}
        past = [model for model in last.models if model.get("product") in named - met] if last else []
        return cls(
            request_id=request.id,
            quiet=request.quiet,
            simulated=simulated,
            driver_version=reading.driver_version,
            models=models + past,
            gpus=gpus,
        )

    def again(self, request: AgentRequest) -> "Observation":
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

    def keeps_closed(self, request: AgentRequest) -> bool:
        """The library stays closed: quiet is requested and was answered, maybe by the process before this one."""
        return request.quiet and self.quiet and self.request_id == request.id

    def patch(self, node: JSON) -> JSON | None:
        """JSON merge patch for the status subresource, every key present; None when the server has it already.

        A merge patch keeps map keys that it does not name, so resource names that disappeared are set to null.
        """
        wanted: JSON = wire(self)
        present = section(node, "status", "observed")
        if _same(present, wanted):
            return None
        if self.allocated is None:
            return {"status": {"observed": wanted}}
        gone = dict.fromkeys(sorted(section(present, "allocated").keys() - self.allocated.keys()))
        return {"status": {"observed": {**wanted, "allocated": {**self.allocated, **gone}}}}


def _with_the_past(gpu: JSON, known: dict[Any, JSON]) -> JSON:
    if gpu["access"] == "Ok" or gpu["index"] not in known:
        return gpu
    now = {key: gpu[key] for key in ("access", "xid", "error")}
    return {**known[gpu["index"]], **now}


def _counts(observed: JSON) -> dict[str, int] | None:
    return section(observed, "allocated") if isinstance(part(observed, "allocated"), dict) else None


def wire(given: Any) -> Any:
    """JSON of our dataclasses, field names in the spelling of the wire."""
    if names := _names(type(given)):
        return {key: wire(getattr(given, name)) for name, key in names}
    if isinstance(given, tuple | list):
        return [wire(item) for item in given]
    return given


def _names(kind: type[object]) -> tuple[tuple[str, str], ...]:
    """Field names of a dataclass with their spelling on the wire; empty for other types."""
    known = _NAMES.get(kind)
    if known is None:
        own = fields(kind) if is_dataclass(kind) else ()
        known = _NAMES[kind] = tuple((each.name, _wire_name(each.name)) for each in own)
    return known


def _wire_name(name: str) -> str:
    head, *tail = name.split("_")
    return _SPELT_OTHERWISE.get(name) or head + "".join(word.capitalize() for word in tail)


_COUNTS = frozenset({"eccUncorrected", "correctable", "uncorrectable"})
"""Wire names of counts of errors. That there are errors is reported; how many is left to the metrics."""


def _same(present: Any, wanted: Any) -> bool:
    """The API server may drop null fields when it stores an object; absent and null mean the same to us."""
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
