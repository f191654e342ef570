"""The GPUNode of this node: found or created, and its status as observed."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from gpusharing.agent.library import GPU, Model, Reading
from gpusharing.agent.podresources import Holdings
from gpusharing.agent.processes import MPS_CONTROL, MPS_SERVER
from gpusharing.api.gpunode import (
    MAX_PARTIAL,
    MAX_PROGRAMS,
    GPUStatus,
    ModelStatus,
    Observed,
    PartialInstance,
    Request,
)
from gpusharing.api.records import from_wire, to_wire
from gpusharing.kube.client import GPUNODES, JSON, KubeClient
from gpusharing.kube.raw import newer, part, section, text
from gpusharing.kube.reflector import Reflector
from gpusharing.planning.gpus.texts import (
    read_compute_modes,
    read_indexes,
    read_programs,
    write_compute_modes,
    write_indexes,
    write_mig,
    write_profiles,
    write_programs,
)

log = logging.getLogger(__name__)

LIST_AGAIN = 3600.0
"""Seconds between two lists. They are rare, because the watch reports everything and there may be 5,000 agents."""
REMEMBERED = 8
"""How many deleted objects with our name are remembered, so that late events about them are ignored."""


class OwnNode:
    """Follows one GPUNode by name. It may not exist yet, because the operator creates it."""

    def __init__(self, name: str, api: KubeClient, on_change: Callable[[], None]) -> None:
        self.name = name
        self._on_change = on_change
        self._request: tuple[str, Any] | None = None
        self._restores = 0
        self._cache: Reflector[JSON] = Reflector(
            api,
            GPUNODES,
            lambda raw: raw,
            on_change=self._changed,
            on_error=self._log_state,
            relist_after=LIST_AGAIN,
            remembered=REMEMBERED,
            restores=lambda: self._restores,
            field_selector=f"metadata.name={name}",
        )
        self.follow = self._cache.run
        """Keeps `node` current until canceled; retries with a back-off while the server is away."""

    @property
    def node(self) -> JSON | None:
        """The newest known version of the GPUNode, or None while there is none."""
        return self._cache.items.get(self.name)

    @property
    def error(self) -> str:
        """Why the API server is not followed now; empty if it is."""
        if self._cache.error is not None:
            return str(self._cache.error)
        return "" if self._cache.synced.is_set() else "the agent has not reached the API server yet"

    @property
    def doubted(self) -> bool:
        """Whether the server's last list was older than a state that it had shown before."""
        return self._cache.doubted

    def take(self, node: JSON | None, before: JSON) -> None:
        """Store the answer to our write to `before`, or drop the object. A lower version shows a restored store."""
        if node is None:
            self._cache.drop(self.name)
            return
        if newer(*(text(one, "metadata", "resourceVersion") for one in (before, node))):
            self._restores += 1
        self._cache.accept(node)

    def _changed(self, _: str) -> None:
        before, node = self._request, self.node
        self._request = None if node is None else (text(node, "metadata", "uid"), part(node, "spec", "request"))
        if self._request != before:
            self._on_change()

    def _log_state(self, error: str) -> None:
        if error:
            log.warning("cannot watch the GPUNode", extra={"error": error})
        else:
            log.info("following GPUNode", extra={"gpunode": self.name})


def request_of(node: JSON) -> Request:
    """Return the request of a GPUNode, or an empty one."""
    return from_wire(Request, section(node, "spec", "request"))


class Observation(Observed):
    """The content of `status.observed`. A change returns a new object, or the same one if nothing is different."""

    __slots__ = ()

    @classmethod
    def of(cls, node: JSON) -> "Observation":
        """Return the observation in a GPUNode, of this process or an earlier one."""
        known = from_wire(cls, section(node, "status", "observed"))
        # A report of another form says less here than was read, and to write what is left might be refused.
        return known if known.patch(node) is None else from_wire(cls, {})

    @classmethod
    def after(
        cls, request: Request, reading: Reading, *, simulated: bool, last: "Observation | None" = None
    ) -> "Observation":
        """Return the answer to a request, from a reading that began after the request was seen.

        A GPU that NVML cannot communicate with keeps what `last` knew about it and its model, unless the other GPUs
        show that indices have shifted: then nobody knows which one it is.
        """
        known = last.gpus if last and not _has_shifted(last.gpus, reading.gpus) else ()
        kept = {gpu.index for gpu in reading.gpus if gpu.access != "Ok" and known}
        gpus = [
            replace(known[gpu.index], access=gpu.access, xid=gpu.xid, error=gpu.error)
            if gpu.index in kept
            else gpu_status(gpu)
            for gpu in reading.gpus
        ]
        told = read_compute_modes(last.compute_modes) if last else {}
        modes = [told.get(gpu.index, "Default") if gpu.index in kept else gpu.compute_mode for gpu in reading.gpus]
        members = {
            model.product: {gpu.index for gpu in reading.gpus if gpu.product == model.product and gpu.index not in kept}
            for model in reading.models
        }
        models = {model.product: model_status(model) for model in reading.models}
        for model in last.models if last else ():
            members.setdefault(model.product, set()).update(read_indexes(model.gpus) & kept)
            models.setdefault(model.product, model)
        uses = [(process.name, gpu.index) for gpu in reading.gpus for process in gpu.processes]
        if last:
            uses += [(name, index) for name, indexes in read_programs(last.programs) for index in indexes & kept]
        return cls(
            request_id=request.id,
            quiet=request.quiet,
            simulated=simulated,
            error="",
            driver_version=reading.driver_version,
            models=tuple(
                replace(model, gpus=write_indexes(members[name])) for name, model in models.items() if members[name]
            ),
            gpus=tuple(gpus),
            compute_modes=write_compute_modes(modes),
            programs=_programs(uses),
        )

    def again(self, request: Request) -> "Observation":
        """Return the same GPUs as the answer to `request`, for a reading that found nothing new."""
        if (self.request_id, self.quiet, self.error) == (request.id, request.quiet, ""):
            return self
        return replace(self, request_id=request.id, quiet=request.quiet, error="")

    def failing(self, error: str, *, simulated: bool) -> "Observation":
        """Return the same GPUs and request id with an error; not `quiet`, as the library may still be open."""
        return replace(self, error=error, quiet=False, simulated=simulated)

    def held_by(self, holdings: Holdings | None, holders: str | None = None) -> "Observation":
        allocated, pods = (None, None) if holdings is None else (holdings.allocated, holdings.pods)
        if (self.allocated, self.pods, self.holders) == (allocated, pods, holders):
            return self
        return replace(self, allocated=allocated, pods=pods, holders=holders)

    def keeps_closed(self, request: Request) -> bool:
        """Whether the library has to stay closed: the request asks for quiet, and is answered, maybe by an earlier process."""
        return request.quiet and self.quiet and self.request_id == request.id

    def patch(self, node: JSON) -> JSON | None:
        """Return the merge patch of `node`'s status, with null for what is gone; None if it has all of it."""
        (known,) = to_wire((self,))
        wanted: JSON = dict.fromkeys(to_wire(self)) | known
        present = section(node, "status", "observed")
        if _same(present, wanted):
            return None
        if self.allocated is None:
            return {"status": {"observed": wanted}}
        gone = dict.fromkeys(sorted(section(present, "allocated").keys() - self.allocated.keys()))
        return {"status": {"observed": {**wanted, "allocated": {**self.allocated, **gone}}}}


def model_status(model: Model) -> ModelStatus:
    in_guest = (model.mig_mode_change, model.virtualization) == ("Reset", "PassThrough")
    return ModelStatus(model.product, "", write_profiles(model.profiles), in_guest)


def gpu_status(gpu: GPU) -> GPUStatus:
    (pending, failed), action = gpu.remapped_rows or (False, False), gpu.recovery_action
    return GPUStatus(
        uuid=gpu.uuid,
        mig=write_mig(gpu.mig_mode, [(one.profile, one.uuid) for one in gpu.instances if one.parts is None]),
        partial_instances=tuple(
            PartialInstance(one.id, one.profile, tuple(name for name, _ in one.parts[:MAX_PARTIAL]))
            for one in gpu.instances
            if one.parts is not None
        )[:MAX_PARTIAL],
        mig_pending=gpu.mig_mode_pending != gpu.mig_mode,
        ecc_errors=bool(gpu.ecc_uncorrected),
        remap_pending=pending,
        remap_failed=failed,
        access=gpu.access,
        recovery_action=None if action == "None" else action,
        xid=gpu.xid if action is None else None,
        error=gpu.error,
        instances_withheld=gpu.instances_withheld,
    )


def _programs(uses: Iterable[tuple[str, int]]) -> str:
    by_name: defaultdict[str, set[int]] = defaultdict(set)
    for name, index in uses:
        by_name[name].add(index)
    # Whether a GPU is idle depends on MPS's daemons, so no other program may crowd them out.
    names = sorted(filter(None, by_name), key=lambda name: (name not in (MPS_SERVER, MPS_CONTROL), name))[
        : MAX_PROGRAMS - 1
    ]
    rest = set().union(*(indexes for name, indexes in by_name.items() if name not in names))
    return write_programs([*((name, by_name[name]) for name in names), *([("", rest)] if rest else [])])


def _has_shifted(before: Sequence[GPUStatus], now: Sequence[GPU]) -> bool:
    """Whether an index may mean another GPU than before, because a GPU came or went."""
    return len(before) != len(now) or any(
        old.uuid and gpu.uuid and old.uuid != gpu.uuid for old, gpu in zip(before, now, strict=True)
    )


def _same(present: Any, wanted: Any) -> bool:
    """Whether two JSON values are equal. An absent key equals null, because the API server may drop null fields."""
    if present == wanted:
        return True
    if isinstance(present, dict) and isinstance(wanted, dict):
        return all(_same(present.get(key), wanted.get(key)) for key in present.keys() | wanted.keys())
    if isinstance(present, list) and isinstance(wanted, list):
        return len(present) == len(wanted) and all(map(_same, present, wanted))
    return False
