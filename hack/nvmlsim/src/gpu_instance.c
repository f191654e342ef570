/* GPU instances: create, find, describe, destroy. */
#include <string.h>

#include "sim.h"

/* Begin a call on instances. NOT_SUPPORTED while MIG is off. */
static nvmlReturn_t begin(struct call *call, const char *function, nvmlDevice_t device)
{
    nvmlReturn_t result = call_begin(call, function, device, HANDLE_GPU);
    return result == NVML_SUCCESS && !mig_enabled(call->gpu) ? NVML_ERROR_NOT_SUPPORTED : result;
}

/*
 * Ids count the places like a binary tree: a whole GPU is 0, its halves 1 and 2, its quarters 3 to 6, its eighths
 * 7 to 14. This is how the MIG user guide's listings number them (4g at 0: 1, 2g at 4: 5, 1g at 6: 13).
 */
static uint32_t instance_id(const struct sim_gpu *gpu, const struct sim_profile *profile, uint32_t start)
{
    return gpu->units / profile->size - 1 + start / profile->size;
}

static nvmlReturn_t create(struct call *call, const struct sim_profile *profile, uint32_t start,
                           nvmlGpuInstance_t *handle)
{
    for (uint32_t slot = 0; slot < SIM_MAX_GPU_INSTANCES; slot++) {
        struct sim_gpu_instance *instance = &call->gpu->instances[slot];
        if (instance->used)
            continue;
        memset(instance, 0, sizeof(*instance));
        instance->id = instance_id(call->gpu, profile, start);
        instance->profile = (uint32_t)(profile - call->gpu->profiles);
        instance->start = start;
        instance->serial = ++call->state->next_serial;
        instance->used = 1; /* last: a process that dies before this leaves a free slot */
        *handle = handle_of(call->state, HANDLE_GI, call->gpu_index, slot, 0);
        event_post(call, EVENT_MIG_CONFIG_CHANGE, 0, instance->id, NO_INSTANCE);
        return NVML_SUCCESS;
    }
    return NVML_ERROR_INSUFFICIENT_RESOURCES;
}

API nvmlReturn_t nvmlDeviceCreateGpuInstance(nvmlDevice_t device, unsigned int id, nvmlGpuInstance_t *handle)
{
    struct call call;
    uint32_t start = 0;
    nvmlReturn_t result = begin(&call, __func__, device);
    if (result != NVML_SUCCESS)
        return call_end(&call, result);
    const struct sim_profile *profile = profile_by_id(call.gpu, id);
    if (handle == NULL || profile == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    if (!placement_choose(call.gpu, profile, &start))
        return call_end(&call, NVML_ERROR_INSUFFICIENT_RESOURCES);
    return call_end(&call, create(&call, profile, start, handle));
}

API nvmlReturn_t nvmlDeviceCreateGpuInstanceWithPlacement(nvmlDevice_t device, unsigned int id,
                                                          const nvmlPlacement_t *placement, nvmlGpuInstance_t *handle)
{
    struct call call;
    nvmlReturn_t result = begin(&call, __func__, device);
    if (result != NVML_SUCCESS)
        return call_end(&call, result);
    const struct sim_profile *profile = profile_by_id(call.gpu, id);
    if (handle == NULL || profile == NULL || placement == NULL || placement->size != profile->size ||
        !placement_possible(profile, placement->start))
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    if (!placement_free(call.gpu, profile, placement->start))
        return call_end(&call, NVML_ERROR_INSUFFICIENT_RESOURCES);
    return call_end(&call, create(&call, profile, placement->start, handle));
}

API nvmlReturn_t nvmlGpuInstanceDestroy(nvmlGpuInstance_t handle)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, handle, HANDLE_GI);
    if (result == NVML_SUCCESS && (gpu_has_process(call.state, call.gpu_index, (int32_t)call.gi->id, -1) ||
                                   state_migs_open(call.state, call.gpu_index)))
        result = NVML_ERROR_IN_USE;
    for (int c = 0; result == NVML_SUCCESS && c < SIM_MAX_COMPUTE_INSTANCES; c++)
        if (call.gi->compute[c].used)
            result = NVML_ERROR_IN_USE;
    if (result == NVML_SUCCESS) {
        call.gi->used = 0;
        event_post(&call, EVENT_MIG_CONFIG_CHANGE, 0, call.gi->id, NO_INSTANCE);
    }
    return call_end(&call, result);
}

/* `count` is only written: the caller's array is as large as the profile's instance count, by contract. */
API nvmlReturn_t nvmlDeviceGetGpuInstances(nvmlDevice_t device, unsigned int id, nvmlGpuInstance_t *handles,
                                           unsigned int *count)
{
    struct call call;
    nvmlReturn_t result = begin(&call, __func__, device);
    if (result != NVML_SUCCESS)
        return call_end(&call, result);
    const struct sim_profile *profile = profile_by_id(call.gpu, id);
    if (handles == NULL || count == NULL || profile == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    unsigned int found = 0;
    for (uint32_t slot = 0; slot < SIM_MAX_GPU_INSTANCES && found < profile->instance_count; slot++)
        if (call.gpu->instances[slot].used && &call.gpu->profiles[call.gpu->instances[slot].profile] == profile)
            handles[found++] = handle_of(call.state, HANDLE_GI, call.gpu_index, slot, 0);
    *count = found;
    return call_end(&call, NVML_SUCCESS);
}

API nvmlReturn_t nvmlDeviceGetGpuInstanceById(nvmlDevice_t device, unsigned int id, nvmlGpuInstance_t *handle)
{
    struct call call;
    nvmlReturn_t result = begin(&call, __func__, device);
    if (result != NVML_SUCCESS)
        return call_end(&call, result);
    if (handle == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    for (uint32_t slot = 0; slot < SIM_MAX_GPU_INSTANCES; slot++)
        if (call.gpu->instances[slot].used && call.gpu->instances[slot].id == id) {
            *handle = handle_of(call.state, HANDLE_GI, call.gpu_index, slot, 0);
            return call_end(&call, NVML_SUCCESS);
        }
    return call_end(&call, NVML_ERROR_NOT_FOUND);
}

API nvmlReturn_t nvmlGpuInstanceGetInfo(nvmlGpuInstance_t handle, nvmlGpuInstanceInfo_t *info)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, handle, HANDLE_GI);
    if (result == NVML_SUCCESS && info == NULL)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS) {
        const struct sim_profile *profile = &call.gpu->profiles[call.gi->profile];
        *info = (nvmlGpuInstanceInfo_t){handle_of(call.state, HANDLE_GPU, call.gpu_index, 0, 0), call.gi->id,
                                        profile->id, {call.gi->start, profile->size}};
    }
    return call_end(&call, result);
}
