"""`python -m hack.bench.divide` creates seven MIG instances on every GPU of a SIMULATED machine, through the machine's
library."""

import pynvml

INSTANCES = 7


def main() -> None:
    """Turn MIG on for each GPU and create INSTANCES GPU instances there, with one compute instance in each."""
    pynvml.nvmlInit()
    for index in range(pynvml.nvmlDeviceGetCount()):
        gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
        pynvml.nvmlDeviceSetMigMode(gpu, pynvml.NVML_DEVICE_MIG_ENABLE)
        profile = pynvml.nvmlDeviceGetGpuInstanceProfileInfo(gpu, pynvml.NVML_GPU_INSTANCE_PROFILE_1_SLICE)
        for _ in range(INSTANCES):
            instance = pynvml.nvmlDeviceCreateGpuInstance(gpu, profile.id)
            whole = pynvml.nvmlGpuInstanceGetComputeInstanceProfileInfo(
                instance,
                pynvml.NVML_COMPUTE_INSTANCE_PROFILE_1_SLICE,
                pynvml.NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED,
            )
            pynvml.nvmlGpuInstanceCreateComputeInstance(instance, whole.id)
    pynvml.nvmlShutdown()


if __name__ == "__main__":
    main()
