/* Compute instances: parts of a GPU instance's compute slices. Their profile ids are the enum indexes. */
#include <stdio.h>
#include <string.h>

#include "sim.h"

/*
 * The slices of a compute instance profile, or 0 if the GPU instance does not support it. A part is at most half of its
 * GPU instance, rounded up (go-nvlib's rule, and the guide's -lcip tables); the whole is always supported.
 */
static uint32_t offered(const struct sim_gpu_instance *gi, const struct sim_gpu *gpu, uint32_t profile)
{
    uint32_t total = gpu->profiles[gi->profile].slices;
    uint32_t slices = profile < NVML_COMPUTE_INSTANCE_PROFILE_COUNT ? compute_slices[profile] : 0;
    return slices == total || (slices <= total && slices * 2 <= total + 1) ? slices : 0;
}

static uint32_t profile_of_slices(uint32_t slices)
{
    uint32_t profile = 0;
    while (compute_slices[profile] != slices)
        profile++;
    return profile;
}

static int slices_free(const struct sim_gpu_instance *gi, uint32_t start, uint32_t size)
{
    for (int c = 0; c < SIM_MAX_COMPUTE_INSTANCES; c++) {
        const struct sim_compute_instance *ci = &gi->compute[c];
        if (ci->used && start < ci->start + ci->slices && ci->start < start + size)
            return 0;
    }
    return 1;
}

/* The distance of places: they are multiples of the size, but 3 of 7 slices start at 0 or 4. */
static uint32_t step_of(uint32_t size)
{
    return size == 3 ? 4 : size;
}

static uint32_t capacity(const struct sim_gpu_instance *gi, uint32_t total, uint32_t size, int only_free)
{
    uint32_t room = 0;
    for (uint32_t start = 0; start + size <= total; start += step_of(size))
        if (!only_free || slices_free(gi, start, size))
            room++;
    return room;
}

static nvmlReturn_t describe(struct call *call, unsigned int profile, unsigned int engine,
                             nvmlComputeInstanceProfileInfo_t *info)
{
    if (profile >= NVML_COMPUTE_INSTANCE_PROFILE_COUNT || engine >= NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_COUNT)
        return NVML_ERROR_INVALID_ARGUMENT;
    uint32_t size = offered(call->gi, call->gpu, profile);
    if (size == 0)
        return NVML_ERROR_NOT_SUPPORTED;
    const struct sim_profile *p = &call->gpu->profiles[call->gi->profile];
    *info = (nvmlComputeInstanceProfileInfo_t){profile, size, capacity(call->gi, p->slices, size, 0),
                                               p->sm_count * size / p->slices, p->copy_engines, p->decoders,
                                               p->encoders, p->jpegs, p->ofas};
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlGpuInstanceGetComputeInstanceProfileInfo(nvmlGpuInstance_t handle, unsigned int profile,
                                                              unsigned int engine,
                                                              nvmlComputeInstanceProfileInfo_t *info)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, handle, HANDLE_GI);
    if (result == NVML_SUCCESS)
        result = info == NULL ? NVML_ERROR_INVALID_ARGUMENT : describe(&call, profile, engine, info);
    return call_end(&call, result);
}

static nvmlReturn_t describe_versioned(struct call *call, unsigned int profile, unsigned int engine,
                                       nvmlComputeInstanceProfileInfo_v3_t *info)
{
    int third = info != NULL && info->version == STRUCT_VERSION(nvmlComputeInstanceProfileInfo_v3_t, 3);
    int second = info != NULL && info->version == STRUCT_VERSION(nvmlComputeInstanceProfileInfo_v2_t, 2);
    if (!third && !second)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = describe(call, profile, engine, &info->info);
    if (result != NVML_SUCCESS)
        return result;
    const struct sim_profile *p = &call->gpu->profiles[call->gi->profile];
    const char *plain = p->name + (strncmp(p->name, "MIG ", 4) == 0 ? 4 : 0);
    if (info->info.sliceCount == p->slices)
        snprintf(info->name, sizeof(info->name), "MIG %.80s", plain);
    else
        snprintf(info->name, sizeof(info->name), "MIG %uc.%.80s", info->info.sliceCount, plain);
    if (third)
        info->capabilities = (p->capabilities >> 1) & 1u;
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlGpuInstanceGetComputeInstanceProfileInfoV(nvmlGpuInstance_t handle, unsigned int profile,
                                                               unsigned int engine,
                                                               nvmlComputeInstanceProfileInfo_v3_t *info)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, handle, HANDLE_GI);
    if (result == NVML_SUCCESS)
        result = describe_versioned(&call, profile, engine, info);
    return call_end(&call, result);
}

API nvmlReturn_t nvmlGpuInstanceGetComputeInstanceRemainingCapacity(nvmlGpuInstance_t handle, unsigned int id,
                                                                    unsigned int *count)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, handle, HANDLE_GI);
    if (result != NVML_SUCCESS)
        return call_end(&call, result);
    uint32_t size = offered(call.gi, call.gpu, id);
    if (size == 0)
        return call_end(&call, NVML_ERROR_NOT_SUPPORTED);
    uint32_t total = call.gpu->profiles[call.gi->profile].slices;
    return call_end(&call, copy_number(count, capacity(call.gi, total, size, 1)));
}

API nvmlReturn_t nvmlGpuInstanceGetComputeInstancePossiblePlacements(nvmlGpuInstance_t handle, unsigned int id,
                                                                     nvmlPlacement_t *placements, unsigned int *count)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, handle, HANDLE_GI);
    if (result != NVML_SUCCESS)
        return call_end(&call, result);
    uint32_t size = offered(call.gi, call.gpu, id), total = call.gpu->profiles[call.gi->profile].slices, found = 0;
    if (count == NULL || size == 0)
        return call_end(&call, count == NULL ? NVML_ERROR_INVALID_ARGUMENT : NVML_ERROR_NOT_SUPPORTED);
    for (uint32_t start = 0; start + size <= total; start += step_of(size), found++)
        if (placements != NULL)
            placements[found] = (nvmlPlacement_t){start, size};
    *count = found;
    return call_end(&call, NVML_SUCCESS);
}

/* Real MIG UUIDs have the form of name-based (version 5) ones, so the same place on the same GPU has the same UUID. */
static void write_uuid(const struct sim_gpu *gpu, uint32_t gi, uint32_t ci, char *uuid)
{
    uint64_t hash[2] = {0xCBF29CE484222325ULL, 0x9AE16A3B2F90404FULL};
    char seed[SIM_TEXT + 32];
    snprintf(seed, sizeof(seed), "%s/%u/%u", gpu->uuid, gi, ci);
    for (const char *c = seed; *c != '\0'; c++)
        for (int i = 0; i < 2; i++)
            hash[i] = (hash[i] ^ (unsigned char)*c) * (0x100000001B3ULL + 2 * (uint64_t)i);
    for (int i = 0; i < 2; i++) /* the finisher of MurmurHash3: one changed bit changes half of them */
        hash[i] = (hash[i] ^ hash[i] >> 33) * 0xFF51AFD7ED558CCDULL, hash[i] ^= hash[i] >> 33;
    snprintf(uuid, SIM_TEXT, "MIG-%08x-%04x-5%03x-%04x-%012llx", (unsigned int)(hash[0] >> 32),
             (unsigned int)(hash[0] >> 16) & 0xFFFFu, (unsigned int)hash[0] & 0xFFFu,
             0x8000u | ((unsigned int)(hash[1] >> 48) & 0x3FFFu), (unsigned long long)hash[1] & 0xFFFFFFFFFFFFULL);
}

/* The lowest id that no compute instance of this GPU instance has. */
static uint32_t lowest_id(const struct sim_gpu_instance *gi)
{
    uint32_t id = 0;
    for (int c = 0; c < SIM_MAX_COMPUTE_INSTANCES; c++)
        if (gi->compute[c].used && gi->compute[c].id == id) {
            id++;
            c = -1;
        }
    return id;
}

static int index_taken(const struct sim_gpu *gpu, uint32_t index)
{
    for (int i = 0; i < SIM_MAX_GPU_INSTANCES; i++)
        for (int c = 0; gpu->instances[i].used && c < SIM_MAX_COMPUTE_INSTANCES; c++)
            if (gpu->instances[i].compute[c].used && gpu->instances[i].compute[c].mig_index == index)
                return 1;
    return 0;
}

static nvmlReturn_t create(struct call *call, uint32_t start, uint32_t size, nvmlComputeInstance_t *handle)
{
    uint32_t slot = 0, mig_index = 0;
    while (slot < SIM_MAX_COMPUTE_INSTANCES && call->gi->compute[slot].used)
        slot++;
    while (index_taken(call->gpu, mig_index))
        mig_index++;
    if (slot == SIM_MAX_COMPUTE_INSTANCES || mig_index >= call->gpu->max_mig_devices)
        return NVML_ERROR_INSUFFICIENT_RESOURCES;
    struct sim_compute_instance *ci = &call->gi->compute[slot];
    memset(ci, 0, sizeof(*ci));
    ci->id = lowest_id(call->gi);
    ci->slices = size;
    ci->start = start;
    ci->mig_index = mig_index;
    ci->serial = ++call->state->next_serial;
    write_uuid(call->gpu, call->gi->id, ci->id, ci->uuid);
    ci->used = 1;
    *handle = handle_of(call->state, HANDLE_CI, call->gpu_index, call->gi_slot, slot);
    event_post(call, EVENT_MIG_CONFIG_CHANGE, 0, call->gi->id, ci->id);
    return NVML_SUCCESS;
}

static nvmlReturn_t create_checked(struct call *call, unsigned int id, const nvmlPlacement_t *wanted,
                                   nvmlComputeInstance_t *handle)
{
    uint32_t size = offered(call->gi, call->gpu, id), total = call->gpu->profiles[call->gi->profile].slices;
    if (handle == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (size == 0)
        return NVML_ERROR_NOT_SUPPORTED;
    if (wanted != NULL && (wanted->size != size || wanted->start % step_of(size) != 0 || wanted->start + size > total))
        return NVML_ERROR_INVALID_ARGUMENT;
    for (uint32_t start = 0; start + size <= total; start += step_of(size))
        if ((wanted == NULL || wanted->start == start) && slices_free(call->gi, start, size))
            return create(call, start, size, handle);
    return NVML_ERROR_INSUFFICIENT_RESOURCES;
}

API nvmlReturn_t nvmlGpuInstanceCreateComputeInstance(nvmlGpuInstance_t gpu_instance, unsigned int id,
                                                      nvmlComputeInstance_t *handle)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, gpu_instance, HANDLE_GI);
    if (result == NVML_SUCCESS)
        result = create_checked(&call, id, NULL, handle);
    return call_end(&call, result);
}

API nvmlReturn_t nvmlGpuInstanceCreateComputeInstanceWithPlacement(nvmlGpuInstance_t gpu_instance, unsigned int id,
                                                                   const nvmlPlacement_t *placement,
                                                                   nvmlComputeInstance_t *handle)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, gpu_instance, HANDLE_GI);
    if (result == NVML_SUCCESS)
        result = placement == NULL ? NVML_ERROR_INVALID_ARGUMENT : create_checked(&call, id, placement, handle);
    return call_end(&call, result);
}

API nvmlReturn_t nvmlComputeInstanceDestroy(nvmlComputeInstance_t handle)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, handle, HANDLE_CI);
    if (result == NVML_SUCCESS &&
        (gpu_has_process(call.state, call.gpu_index, (int32_t)call.gi->id, (int32_t)call.ci->id) ||
         state_migs_open(call.state, call.gpu_index)))
        result = NVML_ERROR_IN_USE;
    if (result == NVML_SUCCESS) {
        call.ci->used = 0;
        event_post(&call, EVENT_MIG_CONFIG_CHANGE, 0, call.gi->id, call.ci->id);
    }
    return call_end(&call, result);
}

API nvmlReturn_t nvmlGpuInstanceGetComputeInstances(nvmlGpuInstance_t gpu_instance, unsigned int id,
                                                    nvmlComputeInstance_t *handles, unsigned int *count)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, gpu_instance, HANDLE_GI);
    if (result != NVML_SUCCESS)
        return call_end(&call, result);
    uint32_t size = offered(call.gi, call.gpu, id), found = 0;
    if (handles == NULL || count == NULL || size == 0)
        return call_end(&call, size == 0 ? NVML_ERROR_NOT_SUPPORTED : NVML_ERROR_INVALID_ARGUMENT);
    for (uint32_t slot = 0; slot < SIM_MAX_COMPUTE_INSTANCES; slot++)
        if (call.gi->compute[slot].used && call.gi->compute[slot].slices == size)
            handles[found++] = handle_of(call.state, HANDLE_CI, call.gpu_index, call.gi_slot, slot);
    *count = found;
    return call_end(&call, NVML_SUCCESS);
}

API nvmlReturn_t nvmlGpuInstanceGetComputeInstanceById(nvmlGpuInstance_t gpu_instance, unsigned int id,
                                                       nvmlComputeInstance_t *handle)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, gpu_instance, HANDLE_GI);
    if (result != NVML_SUCCESS)
        return call_end(&call, result);
    if (handle == NULL)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    for (uint32_t slot = 0; slot < SIM_MAX_COMPUTE_INSTANCES; slot++)
        if (call.gi->compute[slot].used && call.gi->compute[slot].id == id) {
            *handle = handle_of(call.state, HANDLE_CI, call.gpu_index, call.gi_slot, slot);
            return call_end(&call, NVML_SUCCESS);
        }
    return call_end(&call, NVML_ERROR_NOT_FOUND);
}

API nvmlReturn_t nvmlComputeInstanceGetInfo_v2(nvmlComputeInstance_t handle, nvmlComputeInstanceInfo_t *info)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, handle, HANDLE_CI);
    if (result == NVML_SUCCESS && info == NULL)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS)
        *info = (nvmlComputeInstanceInfo_t){handle_of(call.state, HANDLE_GPU, call.gpu_index, 0, 0),
                                            handle_of(call.state, HANDLE_GI, call.gpu_index, call.gi_slot, 0),
                                            call.ci->id, profile_of_slices(call.ci->slices),
                                            {call.ci->start, call.ci->slices}};
    return call_end(&call, result);
}

ALIAS("nvmlComputeInstanceGetInfo_v2")
nvmlReturn_t nvmlComputeInstanceGetInfo(nvmlComputeInstance_t handle, nvmlComputeInstanceInfo_t *info);
