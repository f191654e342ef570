"""What a container may see of SIMULATED GPUs: NVML tells less to one without rights, and a driver drops processes.

The facts, after nvml.h and the trackers of NVIDIA's container toolkit and device plugin: on a GPU with MIG on, memory
is refused to a container without rights; instances and placements take read access to mig/config; a MIG device is seen
by who may open it, so not one that was created after the container; processes of other PID namespaces are not in the
lists at all.
"""

from dataclasses import dataclass, replace

from gpusharing.agent.library import GPU, UNKNOWN_PROCESS, Model


@dataclass(frozen=True, slots=True)
class Container:
    """The rights of the container that reads."""

    mig: bool = True
    """Read access to mig/config, and CAP_SYS_ADMIN: what `privileged` gives."""
    host_pid: bool = True
    devices: frozenset[str] = frozenset()
    """UUIDs of the MIG devices that it may open without rights: those that were there when it started."""


ALL_RIGHTS = Container()


def gpu_as_seen(gpu: GPU, container: Container) -> GPU:
    """What the agent makes of the answers to such a container."""
    if gpu.access != "Ok":
        return gpu
    if not container.mig and gpu.mig_mode != "NotSupported":
        gpu = replace(gpu, instances_withheld=True)
    if not container.mig and gpu.mig_mode == "Enabled":
        seen = container.devices
        gpu = replace(
            gpu,
            instances=tuple(replace(i, start=-1, size=0) for i in gpu.instances if i.uuid in seen),
            processes=(UNKNOWN_PROCESS, *(p for p in gpu.processes if p.device in seen)),
        )
    return gpu if container.host_pid else replace(gpu, processes=(UNKNOWN_PROCESS,))


def model_as_seen(model: Model, container: Container, *, mig: bool) -> Model:
    """`mig`: MIG is on, on the GPU that stands for the model."""
    if container.mig or not model.mig_capable:
        return model
    profiles = tuple(replace(profile, starts=(), size=0) for profile in model.profiles)
    return replace(model, profiles=profiles, memory_mib=None if mig else model.memory_mib)
