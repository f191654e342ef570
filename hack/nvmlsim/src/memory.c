/* Memory, its errors, and the recovery that the card asks for. */
#include <stdlib.h>

#include "sim.h"

#define RECOVERY_ACTION_SINCE_DRIVER 565

static void measure(const struct call *call, nvmlMemory_v2_t *memory)
{
    uint64_t total = call->gpu->memory_mib, reserved = call->gpu->reserved_mib, used = 0;
    if (call->is_mig) {
        total = call->gpu->profiles[call->gi->profile].memory_mib;
        reserved = 0;
    }
    for (int i = 0; i < SIM_MAX_PROCESSES; i++) {
        const struct sim_process *process = &call->state->processes[i];
        if (!process->used || process->gpu != call->gpu_index || process->memory_mib == MEMORY_UNKNOWN)
            continue;
        if (!call->is_mig || process->gpu_instance == (int32_t)call->gi->id)
            used += process->memory_mib;
    }
    memory->total = total * MIB;
    memory->reserved = reserved * MIB;
    memory->used = used * MIB;
    memory->free = (total > reserved + used ? total - reserved - used : 0) * MIB;
}

/* Version 1 counts the driver's reserved memory as used; version 2 reports it separately. */
API nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
    struct call call;
    nvmlMemory_v2_t full = {0};
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU | HANDLE_MIG);
    if (result == NVML_SUCCESS && memory == NULL)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS) {
        measure(&call, &full);
        *memory = (nvmlMemory_t){full.total, full.free, full.used + full.reserved};
    }
    return call_end(&call, result);
}

API nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU | HANDLE_MIG);
    if (result == NVML_SUCCESS && memory == NULL)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS && memory->version != STRUCT_VERSION(nvmlMemory_v2_t, 2))
        result = NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (result == NVML_SUCCESS)
        measure(&call, memory);
    return call_end(&call, result);
}

API nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU);
    if (result == NVML_SUCCESS && !call.gpu->ecc_supported)
        result = NVML_ERROR_NOT_SUPPORTED;
    if (result == NVML_SUCCESS)
        result = copy_number(current, call.gpu->ecc_current);
    if (result == NVML_SUCCESS)
        result = copy_number(pending, call.gpu->ecc_pending);
    return call_end(&call, result);
}

static nvmlReturn_t ecc_count(const struct call *call, unsigned int type, unsigned int counter,
                              unsigned long long *count)
{
    const struct sim_gpu *gpu = call->gpu;
    if (count == NULL || type > NVML_MEMORY_ERROR_TYPE_UNCORRECTED || counter > NVML_AGGREGATE_ECC)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (!gpu->ecc_supported || !gpu->ecc_current)
        return NVML_ERROR_NOT_SUPPORTED;
    if (call->is_mig && (type == NVML_MEMORY_ERROR_TYPE_CORRECTED || counter == NVML_AGGREGATE_ECC))
        return NVML_ERROR_NOT_SUPPORTED;
    if (type == NVML_MEMORY_ERROR_TYPE_CORRECTED)
        *count = counter == NVML_VOLATILE_ECC ? gpu->ecc_volatile_corrected : gpu->ecc_aggregate_corrected;
    else
        *count = counter == NVML_VOLATILE_ECC ? gpu->ecc_volatile_uncorrected : gpu->ecc_aggregate_uncorrected;
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, unsigned int type, unsigned int counter,
                                             unsigned long long *count)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU | HANDLE_MIG);
    if (result == NVML_SUCCESS)
        result = ecc_count(&call, type, counter, count);
    return call_end(&call, result);
}

static int has_instances(const struct sim_gpu *gpu)
{
    for (int i = 0; i < SIM_MAX_GPU_INSTANCES; i++)
        if (gpu->instances[i].used)
            return 1;
    return 0;
}

/* NOT_SUPPORTED while MIG instances exist; the fields 142 to 145 have the numbers then. */
API nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned int *corrected, unsigned int *uncorrected,
                                           unsigned int *pending, unsigned int *failed)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU);
    if (result == NVML_SUCCESS && (!call.gpu->remap_supported || has_instances(call.gpu)))
        result = NVML_ERROR_NOT_SUPPORTED;
    if (result == NVML_SUCCESS)
        result = copy_number(corrected, call.gpu->remapped_corrected);
    if (result == NVML_SUCCESS)
        result = copy_number(uncorrected, call.gpu->remapped_uncorrected);
    if (result == NVML_SUCCESS)
        result = copy_number(pending, call.gpu->remap_pending);
    if (result == NVML_SUCCESS)
        result = copy_number(failed, call.gpu->remap_failed);
    return call_end(&call, result);
}

static nvmlReturn_t field(const struct call *call, unsigned int id, unsigned int *value)
{
    const struct sim_gpu *gpu = call->gpu;
    int driver = atoi(call->state->driver_version);
    switch (id) {
    case NVML_FI_DEV_REMAPPED_COR:
        *value = gpu->remapped_corrected;
        return gpu->remap_supported ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
    case NVML_FI_DEV_REMAPPED_UNC:
        *value = gpu->remapped_uncorrected;
        return gpu->remap_supported ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
    case NVML_FI_DEV_REMAPPED_PENDING:
        *value = gpu->remap_pending;
        return gpu->remap_supported ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
    case NVML_FI_DEV_REMAPPED_FAILURE:
        *value = gpu->remap_failed;
        return gpu->remap_supported ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
    case NVML_FI_DEV_IS_RESETLESS_MIG_SUPPORTED:
        *value = gpu->mig_resetless;
        return NVML_SUCCESS;
    case NVML_FI_DEV_IS_MIG_MODE_INDEPENDENT_MIG_QUERY_CAPABLE:
        *value = gpu->mig_capable && driver > 535;
        return NVML_SUCCESS;
    case NVML_FI_DEV_GET_GPU_RECOVERY_ACTION:
        *value = gpu->recovery_action;
        return driver >= RECOVERY_ACTION_SINCE_DRIVER ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
    default:
        return NVML_ERROR_NOT_SUPPORTED;
    }
}

/* Each value carries its own return code; the call itself succeeds. */
API nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU);
    if (result == NVML_SUCCESS && (values == NULL || count < 1))
        result = NVML_ERROR_INVALID_ARGUMENT;
    for (int i = 0; result == NVML_SUCCESS && i < count; i++) {
        unsigned int value = 0;
        values[i].nvmlReturn = field(&call, values[i].fieldId, &value);
        values[i].valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
        values[i].timestamp = values[i].latencyUsec = 0;
        values[i].value.ullVal = value;
    }
    return call_end(&call, result);
}
