/* The processes on a GPU, their use of it, and its compute mode. */
#include <time.h>

#include "sim.h"

enum kind { COMPUTE, MPS, GRAPHICS };

static enum kind kind_of(const struct sim_process *process)
{
    return process->graphics ? GRAPHICS : process->mps ? MPS : COMPUTE;
}

/* A client of MPS is on the list of compute processes, too: nvidia-smi calls it M+C. */
static int is_of(const struct sim_process *process, enum kind wanted)
{
    return kind_of(process) == wanted || (wanted == COMPUTE && kind_of(process) == MPS);
}

static int belongs(const struct call *call, const struct sim_process *process, enum kind wanted)
{
    if (!process->used || process->gpu != call->gpu_index || !is_of(process, wanted))
        return 0;
    return !call->is_mig || (process->gpu_instance == (int32_t)call->gi->id &&
                             process->compute_instance == (int32_t)call->ci->id);
}

static unsigned long long process_memory(const struct sim_process *process)
{
    return process->memory_mib == MEMORY_UNKNOWN ? NVML_VALUE_NOT_AVAILABLE : process->memory_mib * MIB;
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
            infos[found] = (nvmlProcessInfo_t){process->pid, process_memory(process),
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

/* NOT_SUPPORTED on a GPU with MIG on. */
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

static nvmlReturn_t sample(const struct call *call, unsigned int *count, nvmlProcessUtilizationSample_t *samples,
                           unsigned long long since)
{
    struct timespec now;
    unsigned int found = 0, room = samples == NULL ? 0 : *count;
    uint64_t caller = caller_pid_namespace(call->state);
    clock_gettime(CLOCK_REALTIME, &now);
    unsigned long long stamp = (unsigned long long)now.tv_sec * 1000000 + (unsigned long long)now.tv_nsec / 1000;
    for (int i = 0; i < SIM_MAX_PROCESSES && stamp > since; i++) {
        const struct sim_process *process = &call->state->processes[i];
        if (!belongs(call, process, kind_of(process)) || !process_visible(caller, process) || !process->sm_percent)
            continue;
        if (found < room)
            samples[found] = (nvmlProcessUtilizationSample_t){process->pid, stamp, process->sm_percent, 0, 0, 0};
        found++;
    }
    *count = found;
    if (found == 0)
        return NVML_ERROR_NOT_FOUND;
    return found > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

/* One sample of each process that is not idle. NOT_SUPPORTED on a GPU with MIG on. */
API nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device, nvmlProcessUtilizationSample_t *samples,
                                                 unsigned int *count, unsigned long long since)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU);
    if (result == NVML_SUCCESS && mig_enabled(call.gpu))
        result = NVML_ERROR_NOT_SUPPORTED;
    if (result == NVML_SUCCESS)
        result = count == NULL ? NVML_ERROR_INVALID_ARGUMENT : sample(&call, count, samples, since);
    return call_end(&call, result);
}
