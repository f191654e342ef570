"""SIMULATED GPUs in a wanted state, as plain functions."""

from hack.sim.gpu import SimulatedGPUs

from gpusharing.agent.library import Reading

H100 = "NVIDIA H100 80GB HBM3"
A100 = "NVIDIA A100-SXM4-40GB"
L40S = "NVIDIA L40S"


def make_gpus(*layouts: tuple[str, ...] | None, product: str = H100, node: str = "gpu-01") -> SimulatedGPUs:
    """One GPU per layout: None is MIG off, else the profiles of its instances, large first."""
    gpus = SimulatedGPUs(node, [product] * len(layouts))
    for index, layout in enumerate(layouts):
        if layout is not None:
            gpus.set_mig_mode(index, True)
            for profile in layout:
                gpus.create(index, profile)
    return gpus


def make_reading(*layouts: tuple[str, ...] | None, product: str = H100) -> Reading:
    return make_gpus(*layouts, product=product).read()


def layouts_of(gpus: SimulatedGPUs) -> list[tuple[str, ...] | None]:
    return [
        tuple(sorted(instance.profile for instance in gpu.instances)) if gpu.mig_mode == "Enabled" else None
        for gpu in gpus.read().gpus
    ]
