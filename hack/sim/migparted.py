"""SIMULATED nvidia-mig-parted: asserts and applies one configuration on the GPUs of a node (docs/design/nvidia.md#a8).

What is not atomic there is not atomic here: GPUs before a failure are new, the one that failed is MIG-on and empty,
those after it are old.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

from gpusharing.agent.library import GPU
from gpusharing.planning.gpus.geometry import Layout
from hack.sim.gpu import DriverRefusal, NoFreePlace, NotSupported, SimulatedGPUs
from hack.sim.migfile import Entry, covers_all, present, targets

_MOST_ORDERINGS = 200
"""Orderings of profiles tried on one GPU: the real one tries all, and no legal layout needs that many here."""


class ApplyError(Exception):
    """mig-parted ended with an error."""


def mode_applied(items: Sequence[Entry], gpus: Sequence[GPU]) -> bool:
    """`assert --mode-only`: every GPU is covered and in the mode wanted."""
    wanted = targets(items, gpus)
    return covers_all(items, gpus) and all((t is not None) == _mig(gpu) for gpu, t in wanted)


def applied(items: Sequence[Entry], gpus: Sequence[GPU]) -> bool:
    """`assert`: every GPU is covered and is exactly as wanted."""
    return covers_all(items, gpus) and all(present(gpu) == target for gpu, target in targets(items, gpus))


def apply_mode(items: Sequence[Entry], gpus: Sequence[GPU], driver: SimulatedGPUs) -> None:
    """`apply --mode-only`: when one mode is wrong, clear every MIG GPU selected, set the modes, reset all if needed.

    Raises:
        ApplyError: something is in use. Modes that are pending stay pending.
    """
    wanted = [(gpu, t) for gpu, t in targets(items, gpus) if gpu.mig_mode != "NotSupported"]
    if all((target is not None) == _mig(gpu) == _mig_pending(gpu) for gpu, target in wanted):
        return
    try:
        for gpu, _ in wanted:
            if _mig(gpu):
                driver.destroy_all(gpu.index)
        outcomes = [driver.set_mig_mode(gpu.index, target is not None) for gpu, target in wanted]
        if "Pending" in outcomes:
            driver.reset()
    except DriverRefusal as refusal:
        raise ApplyError(f"error setting MIG mode: {refusal}") from None


def apply_layout(
    items: Sequence[Entry], gpus: Sequence[GPU], driver: SimulatedGPUs, *, empty_on_unknown: bool
) -> None:
    """`apply` once the modes are right: clear and rebuild each GPU that differs, GPU by GPU.

    `empty_on_unknown`: mig-parted 0.13.1's trap, a profile that the card lacks leaves the GPU empty without an error.

    Raises:
        ApplyError: an instance is in use, or no ordering of the profiles fits.
    """
    for gpu, target in targets(items, gpus):
        if target is not None and present(gpu) != target:
            _rebuild(gpu.index, target, driver, empty_on_unknown=empty_on_unknown)


def _rebuild(index: int, layout: Layout, driver: SimulatedGPUs, *, empty_on_unknown: bool) -> None:
    try:
        driver.destroy_all(index)
        for ordering in _orderings(layout):
            try:
                for profile in ordering:
                    driver.create(index, profile)
            except NoFreePlace:
                driver.destroy_all(index)
                continue
            return
    except NotSupported as unknown:
        driver.destroy_all(index)
        if not empty_on_unknown:
            raise ApplyError(f"error creating MIG device: {unknown}") from None
        return
    except DriverRefusal as refusal:
        raise ApplyError(f"error clearing MIG devices: {refusal}") from None
    raise ApplyError(f"GPU {index}: all orderings failed")


def _orderings(layout: Layout) -> Iterator[tuple[str, ...]]:
    """Distinct orderings of the instances, large first at the start."""
    return islice(_arrange(dict(layout)), _MOST_ORDERINGS)


def _arrange(counts: dict[str, int]) -> Iterator[tuple[str, ...]]:
    left = [name for name, count in counts.items() if count]
    if not left:
        yield ()
    for name in left:
        for rest in _arrange({**counts, name: counts[name] - 1}):
            yield (name, *rest)


def _mig(gpu: GPU) -> bool:
    return gpu.mig_mode == "Enabled"


def _mig_pending(gpu: GPU) -> bool:
    return gpu.mig_mode_pending == "Enabled"
