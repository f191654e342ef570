/* Another program may have written anything into the state file, so every lock clamps all counts and ends all texts. */
#include "sim.h"

static void most(uint32_t *value, uint32_t limit)
{
    if (*value > limit)
        *value = limit;
}

static void least(uint32_t *value, uint32_t limit)
{
    if (*value < limit)
        *value = limit;
}

#define END(text)                                                                                                     \
    do {                                                                                                              \
        if ((text)[sizeof(text) - 1] != '\0')                                                                         \
            (text)[sizeof(text) - 1] = '\0';                                                                          \
    } while (0)

static void bound_profile(struct sim_profile *profile, uint32_t units)
{
    END(profile->name);
    least(&profile->slices, 1);
    most(&profile->slices, MAX_SLICES);
    least(&profile->size, 1);
    most(&profile->size, units);
    most(&profile->instance_count, SIM_MAX_GPU_INSTANCES);
    most(&profile->start_count, SIM_MAX_STARTS);
}

/* Drop an instance, or a compute instance, that cannot exist on this GPU. */
static void bound_instance(const struct sim_gpu *gpu, struct sim_gpu_instance *instance)
{
    const struct sim_profile *profile = &gpu->profiles[instance->profile % SIM_MAX_PROFILES];
    if (instance->profile >= gpu->profile_count || instance->start > gpu->units ||
        profile->size > gpu->units - instance->start) {
        instance->used = 0;
        return;
    }
    for (int c = 0; c < SIM_MAX_COMPUTE_INSTANCES; c++) {
        struct sim_compute_instance *ci = &instance->compute[c];
        END(ci->uuid);
        if (ci->used && (!compute_size_known(ci->slices) || ci->slices > profile->slices ||
                         ci->start > profile->slices - ci->slices || ci->mig_index >= gpu->max_mig_devices))
            ci->used = 0;
    }
}

static void bound_gpu(struct sim_gpu *gpu)
{
    END(gpu->name);
    END(gpu->uuid);
    END(gpu->model);
    most(&gpu->profile_count, SIM_MAX_PROFILES);
    most(&gpu->max_mig_devices, SIM_MAX_GPU_INSTANCES * SIM_MAX_COMPUTE_INSTANCES);
    least(&gpu->units, 1);
    most(&gpu->units, MAX_UNITS);
    for (uint32_t p = 0; p < gpu->profile_count; p++)
        bound_profile(&gpu->profiles[p], gpu->units);
    for (int i = 0; i < SIM_MAX_GPU_INSTANCES; i++)
        if (gpu->instances[i].used)
            bound_instance(gpu, &gpu->instances[i]);
}

void state_bound(struct sim_state *state)
{
    END(state->driver_version);
    END(state->nvml_version);
    END(state->capabilities);
    END(state->devices);
    most(&state->gpu_count, SIM_MAX_GPUS);
    most(&state->fault_count, SIM_MAX_FAULTS);
    for (uint32_t g = 0; g < state->gpu_count; g++)
        bound_gpu(&state->gpus[g]);
    for (int i = 0; i < SIM_MAX_PROCESSES; i++)
        END(state->processes[i].name);
    for (uint32_t f = 0; f < state->fault_count; f++)
        END(state->faults[f].function);
}
