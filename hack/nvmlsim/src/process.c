/* Who computes on a GPU, how much, and under which compute mode. */
#include "sim.h"

enum kind { COMPUTE, MPS, GRAPHICS };

static enum kind kind_of(const struct sim_process *process)
{
    return process->graphics ? GRAPHICS : process->mps ? MPS : COMPUTE;
}

static int belongs(const struct call *call, const struct sim_process *process, enum kind wanted)
{
    if (!process->used || process->gpu != call->gpu_index || kind_of(process) != wanted)
        return 0;
    return !call->is_mig || (process->gpu_instance == (int32_t)call->gi->id &&
                             process->compute_instance == (int32_t)call->ci->id);
}

static nvmlReturn_t list(struct call *call, enum kind wanted, unsigned int *count, nvmlProcessInfo_t *infos)
{
    unsigned int found = 0, room = *count;
    uint64_t caller = caller_pid_namespace(call->state);
    for (int i = 0; i < SIM_MAX_PROCESSES; i++) {
        const struct sim_process *process = &call->state->processes[i];
        if (!belongs(call, process, wanted) || !process_visible(caller, process))
            continue;
        if (infos != NULL && found < room)
            infos[found] = (nvmlProcessInfo_t){process->pid, process->memory_mib * MIB,
                                               (unsigned int)process->gpu_instance,
                                               (unsigned int)process->compute_instance};
        found++;
    }
    *count = found;
    return found > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
                                                         nvmlProcessInfo_t *infos)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU | HANDLE_MIG);
    if (result == NVML_SUCCESS)
        result = count == NULL ? NVML_ERROR_INVALID_ARGUMENT : list(&call, COMPUTE, count, infos);
    return call_end(&call, result);
}

ALIAS("nvmlDeviceGetComputeRunningProcesses_v3")
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *infos);

API nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
                                                            nvmlProcessInfo_t *infos)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU | HANDLE_MIG);
    if (result == NVML_SUCCESS)
        result = count == NULL ? NVML_ERROR_INVALID_ARGUMENT : list(&call, MPS, count, infos);
    return call_end(&call, result);
}

API nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
                                                          nvmlProcessInfo_t *infos)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU | HANDLE_MIG);
    if (result == NVML_SUCCESS)
        result = count == NULL ? NVML_ERROR_INVALID_ARGUMENT : list(&call, GRAPHICS, count, infos);
    return call_end(&call, result);
}

API nvmlReturn_t nvmlDeviceGetComputeMode(nvmlDevice_t device, unsigned int *mode)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU);
    if (result == NVML_SUCCESS)
        result = copy_number(mode, call.gpu->compute_mode);
    return call_end(&call, result);
}

API nvmlReturn_t nvmlDeviceSetComputeMode(nvmlDevice_t device, unsigned int mode)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU);
    if (result == NVML_SUCCESS && (mode >= NVML_COMPUTEMODE_COUNT || mode == 1))
        result = mode == 1 ? NVML_ERROR_NOT_SUPPORTED : NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS && mig_enabled(call.gpu) && mode != 0)
        result = NVML_ERROR_NOT_SUPPORTED;
    if (result == NVML_SUCCESS)
        call.gpu->compute_mode = mode;
    return call_end(&call, result);
}

/* Not on a GPU with MIG on. */
API nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *utilization)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU);
    if (result == NVML_SUCCESS && mig_enabled(call.gpu))
        result = NVML_ERROR_NOT_SUPPORTED;
    if (result == NVML_SUCCESS && utilization == NULL)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS)
        *utilization = (nvmlUtilization_t){call.gpu->utilization, call.gpu->utilization / 2};
    return call_end(&call, result);
}

API nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, unsigned int sensor, unsigned int *degrees)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU);
    if (result == NVML_SUCCESS)
        result = sensor != 0 ? NVML_ERROR_INVALID_ARGUMENT : copy_number(degrees, call.gpu->temperature);
    return call_end(&call, result);
}

API nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *milliwatts)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU);
    if (result == NVML_SUCCESS)
        result = copy_number(milliwatts, call.gpu->power_mw);
    return call_end(&call, result);
}
