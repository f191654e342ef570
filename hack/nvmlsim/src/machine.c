/* What the state says of a GPU, and which sizes exist. Calls nothing else: every file may use it. */
#include "sim.h"

/* Slices of the profiles 1, 2, 3, 4, 7, 8 and 6 SLICE; 0 for profiles that no simulated card supports. */
const uint32_t compute_slices[NVML_COMPUTE_INSTANCE_PROFILE_COUNT] = {1, 2, 3, 4, 7, 8, 6, 0, 0};

int mig_enabled(const struct sim_gpu *gpu)
{
    return gpu->mig_capable && gpu->mig_current;
}

int gpu_has_process(const struct sim_state *state, uint32_t gpu, int32_t gi, int32_t ci)
{
    for (int i = 0; i < SIM_MAX_PROCESSES; i++) {
        const struct sim_process *process = &state->processes[i];
        if (process->used && process->gpu == gpu && (gi < 0 || process->gpu_instance == gi) &&
            (ci < 0 || process->compute_instance == ci))
            return 1;
    }
    return 0;
}

int compute_size_known(uint32_t slices)
{
    for (int profile = 0; profile < NVML_COMPUTE_INSTANCE_PROFILE_COUNT; profile++)
        if (slices != 0 && compute_slices[profile] == slices)
            return 1;
    return 0;
}
