/* MIG devices: one per compute instance, a handle that can stand for a GPU in some calls. */
#include "sim.h"

API nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned int *is_mig)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU | HANDLE_MIG);
    if (result == NVML_SUCCESS)
        result = copy_number(is_mig, (unsigned int)call.is_mig);
    return call_end(&call, result);
}

API nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, unsigned int *id)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_MIG);
    if (result == NVML_SUCCESS)
        result = copy_number(id, call.gi->id);
    return call_end(&call, result);
}

API nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t device, unsigned int *id)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_MIG);
    if (result == NVML_SUCCESS)
        result = copy_number(id, call.ci->id);
    return call_end(&call, result);
}

/* Zero when MIG is off or the card has none. */
API nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *count)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU);
    if (result == NVML_SUCCESS)
        result = copy_number(count, mig_enabled(call.gpu) ? call.gpu->max_mig_devices : 0);
    return call_end(&call, result);
}

static nvmlReturn_t find(struct call *call, unsigned int index, nvmlDevice_t *mig)
{
    if (!mig_enabled(call->gpu))
        return NVML_ERROR_NOT_SUPPORTED;
    if (mig == NULL || index >= call->gpu->max_mig_devices)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (uint32_t i = 0; i < SIM_MAX_GPU_INSTANCES; i++)
        for (uint32_t c = 0; call->gpu->instances[i].used && c < SIM_MAX_COMPUTE_INSTANCES; c++)
            if (call->gpu->instances[i].compute[c].used && call->gpu->instances[i].compute[c].mig_index == index &&
                instance_visible(call->state, call->gpu_index, i, c)) {
                *mig = handle_of(call->state, HANDLE_MIG, call->gpu_index, i, c);
                state_open_mig(call->state, call->gpu_index);
                return NVML_SUCCESS;
            }
    return NVML_ERROR_NOT_FOUND;
}

API nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index, nvmlDevice_t *mig)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU);
    if (result == NVML_SUCCESS)
        result = find(&call, index, mig);
    return call_end(&call, result);
}

API nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t mig, nvmlDevice_t *device)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, mig, HANDLE_MIG);
    if (result == NVML_SUCCESS && device == NULL)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS)
        *device = handle_of(call.state, HANDLE_GPU, call.gpu_index, 0, 0);
    return call_end(&call, result);
}

/* For MIG devices only. */
API nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t mig, nvmlDeviceAttributes_t *attributes)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, mig, HANDLE_GPU | HANDLE_MIG);
    if (result == NVML_SUCCESS && (attributes == NULL || !call.is_mig))
        result = attributes == NULL ? NVML_ERROR_INVALID_ARGUMENT : NVML_ERROR_NOT_SUPPORTED;
    if (result == NVML_SUCCESS) {
        const struct sim_profile *p = &call.gpu->profiles[call.gi->profile];
        *attributes = (nvmlDeviceAttributes_t){p->sm_count * call.ci->slices / p->slices, p->copy_engines, p->decoders,
                                               p->encoders, p->jpegs, p->ofas, p->slices, call.ci->slices,
                                               p->memory_mib};
    }
    return call_end(&call, result);
}

ALIAS("nvmlDeviceGetAttributes_v2")
nvmlReturn_t nvmlDeviceGetAttributes(nvmlDevice_t mig, nvmlDeviceAttributes_t *attributes);
