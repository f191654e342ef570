/* The GPU instance profiles of a card: looked up by enum index, created and listed by profile id. */
#include <stdlib.h>
#include <string.h>

#include "sim.h"

/* Drivers up to R535 answer only while MIG is on (field 199 says whether a driver does so). */
static int can_query(const struct call *call)
{
    return call->gpu->mig_capable && (call->gpu->mig_current || atoi(call->state->driver_version) > 535);
}

static nvmlReturn_t find(struct call *call, const char *function, nvmlDevice_t device, unsigned int index, int by_id,
                         const struct sim_profile **profile)
{
    nvmlReturn_t result = call_begin(call, function, device, HANDLE_GPU);
    if (result != NVML_SUCCESS)
        return result;
    if (!by_id && index >= NVML_GPU_INSTANCE_PROFILE_COUNT)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (!can_query(call))
        return NVML_ERROR_NOT_SUPPORTED;
    *profile = by_id ? profile_by_id(call->gpu, index) : profile_by_index(call->gpu, index);
    return *profile == NULL ? NVML_ERROR_NOT_SUPPORTED : NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfo(nvmlDevice_t device, unsigned int index,
                                                     nvmlGpuInstanceProfileInfo_t *info)
{
    struct call call;
    const struct sim_profile *p = NULL;
    nvmlReturn_t result = find(&call, __func__, device, index, 0, &p);
    if (result == NVML_SUCCESS && info == NULL)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS)
        *info = (nvmlGpuInstanceProfileInfo_t){p->id, p->capabilities & 1u, p->slices, p->instance_count, p->sm_count,
                                               p->copy_engines, p->decoders, p->encoders, p->jpegs, p->ofas,
                                               p->memory_mib};
    return call_end(&call, result);
}

static void fill_v2(const struct sim_profile *p, nvmlGpuInstanceProfileInfo_v2_t *info)
{
    *info = (nvmlGpuInstanceProfileInfo_v2_t){.version = info->version, .id = p->id,
                                              .isP2pSupported = p->capabilities & 1u, .sliceCount = p->slices,
                                              .instanceCount = p->instance_count, .multiprocessorCount = p->sm_count,
                                              .copyEngineCount = p->copy_engines, .decoderCount = p->decoders,
                                              .encoderCount = p->encoders, .jpegCount = p->jpegs, .ofaCount = p->ofas,
                                              .memorySizeMB = p->memory_mib};
    strcpy(info->name, p->name);
}

static void fill_v3(const struct sim_profile *p, nvmlGpuInstanceProfileInfo_v3_t *info)
{
    *info = (nvmlGpuInstanceProfileInfo_v3_t){.version = info->version, .id = p->id, .sliceCount = p->slices,
                                              .instanceCount = p->instance_count, .multiprocessorCount = p->sm_count,
                                              .copyEngineCount = p->copy_engines, .decoderCount = p->decoders,
                                              .encoderCount = p->encoders, .jpegCount = p->jpegs, .ofaCount = p->ofas,
                                              .memorySizeMB = p->memory_mib, .capabilities = p->capabilities};
    strcpy(info->name, p->name);
}

static nvmlReturn_t fill_versioned(const struct sim_profile *p, nvmlGpuInstanceProfileInfo_v2_t *info)
{
    if (info == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (info->version == STRUCT_VERSION(nvmlGpuInstanceProfileInfo_v2_t, 2))
        fill_v2(p, info);
    else if (info->version == STRUCT_VERSION(nvmlGpuInstanceProfileInfo_v3_t, 3))
        fill_v3(p, (nvmlGpuInstanceProfileInfo_v3_t *)info);
    else
        return NVML_ERROR_INVALID_ARGUMENT;
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfoV(nvmlDevice_t device, unsigned int index,
                                                      nvmlGpuInstanceProfileInfo_v2_t *info)
{
    struct call call;
    const struct sim_profile *p = NULL;
    nvmlReturn_t result = find(&call, __func__, device, index, 0, &p);
    if (result == NVML_SUCCESS)
        result = fill_versioned(p, info);
    return call_end(&call, result);
}

API nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfoByIdV(nvmlDevice_t device, unsigned int id,
                                                          nvmlGpuInstanceProfileInfo_v2_t *info)
{
    struct call call;
    const struct sim_profile *p = NULL;
    nvmlReturn_t result = find(&call, __func__, device, id, 1, &p);
    if (result == NVML_SUCCESS)
        result = fill_versioned(p, info);
    return call_end(&call, result);
}

/* All places of a profile, free or not, whether MIG is on or off. */
API nvmlReturn_t nvmlDeviceGetGpuInstancePossiblePlacements_v2(nvmlDevice_t device, unsigned int id,
                                                               nvmlPlacement_t *placements, unsigned int *count)
{
    struct call call;
    const struct sim_profile *p = NULL;
    nvmlReturn_t result = find(&call, __func__, device, id, 1, &p);
    if (result == NVML_SUCCESS && count == NULL)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result != NVML_SUCCESS)
        return call_end(&call, result);
    for (uint32_t s = 0; placements != NULL && s < p->start_count; s++)
        placements[s] = (nvmlPlacement_t){p->starts[s], p->size};
    *count = p->start_count;
    return call_end(&call, NVML_SUCCESS);
}

ALIAS("nvmlDeviceGetGpuInstancePossiblePlacements_v2")
nvmlReturn_t nvmlDeviceGetGpuInstancePossiblePlacements(nvmlDevice_t device, unsigned int id,
                                                        nvmlPlacement_t *placements, unsigned int *count);

API nvmlReturn_t nvmlDeviceGetGpuInstanceRemainingCapacity(nvmlDevice_t device, unsigned int id, unsigned int *count)
{
    struct call call;
    const struct sim_profile *p = NULL;
    nvmlReturn_t result = find(&call, __func__, device, id, 1, &p);
    if (result == NVML_SUCCESS && !mig_enabled(call.gpu))
        result = NVML_ERROR_NOT_SUPPORTED;
    if (result == NVML_SUCCESS)
        result = copy_number(count, placement_capacity(call.gpu, p));
    return call_end(&call, result);
}
