/* Initialization and shutdown, error texts, and calls about the whole machine. */
#include <string.h>

#include "sim.h"

API nvmlReturn_t nvmlInitWithFlags(unsigned int flags)
{
    (void)flags;
    nvmlReturn_t result = state_open();
    struct call call;
    if (result != NVML_SUCCESS)
        return result;
    result = call_end(&call, call_begin(&call, "nvmlInit", NULL, 0));
    if (result != NVML_SUCCESS)
        state_close();
    return result;
}

API nvmlReturn_t nvmlInit_v2(void)
{
    return nvmlInitWithFlags(0);
}

ALIAS("nvmlInit_v2") nvmlReturn_t nvmlInit(void);

API nvmlReturn_t nvmlShutdown(void)
{
    if (!state_is_open())
        return NVML_ERROR_UNINITIALIZED;
    return state_close();
}

static const struct {
    nvmlReturn_t code;
    const char *text;
} errors[] = {
    {NVML_SUCCESS, "Success"},
    {NVML_ERROR_UNINITIALIZED, "Uninitialized"},
    {NVML_ERROR_INVALID_ARGUMENT, "Invalid Argument"},
    {NVML_ERROR_NOT_SUPPORTED, "Not Supported"},
    {NVML_ERROR_NO_PERMISSION, "Insufficient Permissions"},
    {NVML_ERROR_NOT_FOUND, "Not Found"},
    {NVML_ERROR_INSUFFICIENT_SIZE, "Insufficient Size"},
    {NVML_ERROR_INSUFFICIENT_POWER, "Insufficient External Power"},
    {NVML_ERROR_DRIVER_NOT_LOADED, "Driver Not Loaded"},
    {NVML_ERROR_TIMEOUT, "Timeout"},
    {NVML_ERROR_IRQ_ISSUE, "Interrupt Request Issue"},
    {NVML_ERROR_FUNCTION_NOT_FOUND, "Function Not Found"},
    {NVML_ERROR_GPU_IS_LOST, "GPU is lost"},
    {NVML_ERROR_RESET_REQUIRED, "GPU requires reset"},
    {NVML_ERROR_OPERATING_SYSTEM, "Blocked by the operating system"},
    {NVML_ERROR_LIB_RM_VERSION_MISMATCH, "Driver/library version mismatch"},
    {NVML_ERROR_IN_USE, "In use by another client"},
    {NVML_ERROR_MEMORY, "Insufficient Memory"},
    {NVML_ERROR_INSUFFICIENT_RESOURCES, "Insufficient Resources"},
    {NVML_ERROR_ARGUMENT_VERSION_MISMATCH, "Argument version mismatch"},
};

API const char *nvmlErrorString(nvmlReturn_t result)
{
    for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++)
        if (errors[i].code == result)
            return errors[i].text;
    return "Unknown Error";
}

API nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, NULL, 0);
    if (result == NVML_SUCCESS)
        result = copy_text(version, length, call.state->driver_version);
    return call_end(&call, result);
}

API nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, NULL, 0);
    if (result == NVML_SUCCESS)
        result = copy_text(version, length, call.state->nvml_version);
    return call_end(&call, result);
}

API nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, NULL, 0);
    if (result == NVML_SUCCESS)
        result = copy_number((unsigned int *)version, call.state->cuda_version);
    return call_end(&call, result);
}

ALIAS("nvmlSystemGetCudaDriverVersion_v2") nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version);

API nvmlReturn_t nvmlSystemGetProcessName(unsigned int pid, char *name, unsigned int length)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, NULL, 0);
    if (result != NVML_SUCCESS)
        return call_end(&call, result);
    uint64_t caller = caller_pid_namespace(call.state);
    result = NVML_ERROR_NOT_FOUND;
    for (int i = 0; i < SIM_MAX_PROCESSES; i++) {
        const struct sim_process *process = &call.state->processes[i];
        if (process->used && process->pid == pid && process->name[0] != '\0' && process_visible(caller, process))
            result = copy_text(name, length, process->name);
    }
    return call_end(&call, result);
}
