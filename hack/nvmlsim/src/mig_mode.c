/* MIG mode. Ampere needs a reset to change it, Hopper and later do not; either refuses while the GPU is held. */
#include "sim.h"

static int has_instances(const struct sim_gpu *gpu)
{
    for (int i = 0; i < SIM_MAX_GPU_INSTANCES; i++)
        if (gpu->instances[i].used)
            return 1;
    return 0;
}

/* Whether a process or a client holds the GPU. */
static int held(struct call *call)
{
    return call->gpu->busy || gpu_has_process(call->state, call->gpu_index, -1, -1) ||
           (call->state->clients_block && state_other_clients(call->state) > 0);
}

/* Change the mode if possible, and return the status of the activation. */
static nvmlReturn_t activate(struct call *call, unsigned int mode)
{
    struct sim_gpu *gpu = call->gpu;
    if (gpu->mig_current == mode) {
        gpu->mig_pending = mode;
        return NVML_SUCCESS;
    }
    if (mode == 0 && has_instances(gpu))
        return NVML_ERROR_IN_USE;
    if (!gpu->mig_resetless)
        gpu->mig_pending = mode; /* stays until a reset, even if the change fails now */
    if (held(call))
        return NVML_ERROR_IN_USE;
    if (!gpu->mig_resetless && (gpu->passthrough || gpu->explicit_reset))
        return NVML_ERROR_RESET_REQUIRED;
    gpu->mig_current = gpu->mig_pending = mode;
    event_post(call, EVENT_MIG_CONFIG_CHANGE, 0, NO_INSTANCE, NO_INSTANCE);
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceSetMigMode(nvmlDevice_t device, unsigned int mode, nvmlReturn_t *activation)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU);
    if (result != NVML_SUCCESS)
        return call_end(&call, result);
    if (activation == NULL || mode > 1)
        return call_end(&call, NVML_ERROR_INVALID_ARGUMENT);
    if (!call.gpu->mig_capable)
        return call_end(&call, NVML_ERROR_NOT_SUPPORTED);
    *activation = activate(&call, mode);
    return call_end(&call, NVML_SUCCESS);
}

API nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU);
    if (result == NVML_SUCCESS && !call.gpu->mig_capable)
        result = NVML_ERROR_NOT_SUPPORTED;
    if (result == NVML_SUCCESS)
        result = copy_number(current, call.gpu->mig_current);
    if (result == NVML_SUCCESS)
        result = copy_number(pending, call.gpu->mig_pending);
    return call_end(&call, result);
}
