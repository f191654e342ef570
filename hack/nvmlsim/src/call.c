/* The frame of every call: it checks initialization, takes the lock, resolves the handle, and applies injected faults,
 * lost GPUs and rights. */
#include <string.h>

#include "sim.h"

#define HANG_POLL_MS 20

/* "nvmlDeviceGetCount_v2" and "nvmlDeviceGetCount" name the same call. */
static size_t base_length(const char *function)
{
    size_t length = strlen(function);
    if (length > 3 && function[length - 3] == '_' && function[length - 2] == 'v')
        return length - 3;
    return length;
}

static int fault_matches(const struct sim_fault *fault, const char *function, const struct call *call)
{
    size_t length = base_length(function);
    if (fault->kind == SIM_FAULT_NONE || fault->remaining == 0)
        return 0;
    if (fault->gpu >= 0 && (call->gpu == NULL || call->gpu_index != (uint32_t)fault->gpu))
        return 0;
    return length == base_length(fault->function) && strncmp(fault->function, function, length) == 0;
}

static struct sim_fault *fault_find(struct call *call, const char *function)
{
    for (uint32_t i = 0; i < call->state->fault_count && i < SIM_MAX_FAULTS; i++)
        if (fault_matches(&call->state->faults[i], function, call))
            return &call->state->faults[i];
    return NULL;
}

/* Wait, without the lock, until the fault is cleared. UNKNOWN if the file cannot be locked again. */
static nvmlReturn_t hang(struct call *call, const char *function)
{
    struct sim_fault *fault = fault_find(call, function);
    while (fault != NULL && fault->kind == SIM_FAULT_HANG) {
        state_unlock();
        sleep_ms(HANG_POLL_MS);
        call->state = state_lock();
        call->locked = call->state != NULL;
        if (!call->locked)
            return NVML_ERROR_UNKNOWN;
        fault = fault_find(call, function);
    }
    return NVML_SUCCESS;
}

/* The result that an injected fault gives the call; SUCCESS when there is none, or it still lets calls pass. */
static nvmlReturn_t fault_strike(struct call *call, const char *function)
{
    struct sim_fault *fault = fault_find(call, function);
    if (fault == NULL)
        return NVML_SUCCESS;
    if (fault->skip > 0) {
        fault->skip--;
        return NVML_SUCCESS;
    }
    fault->hits++;
    if (fault->kind == SIM_FAULT_HANG)
        return hang(call, function);
    if (fault->remaining > 0)
        fault->remaining--;
    return (nvmlReturn_t)fault->result;
}

/* The first half of a call: check that NVML is initialized, and take the lock. */
nvmlReturn_t call_open(struct call *call)
{
    memset(call, 0, sizeof(*call));
    if (!state_is_open())
        return NVML_ERROR_UNINITIALIZED;
    call->state = state_lock();
    call->locked = call->state != NULL;
    return call->locked ? NVML_SUCCESS : NVML_ERROR_UNKNOWN;
}

/* Make this GPU the target of the call, which was found by something other than a handle. */
void call_about(struct call *call, uint32_t gpu)
{
    call->gpu = &call->state->gpus[gpu];
    call->gpu_index = gpu;
}

/* The second half: injected fault, lost GPU, rights. `resolved` is the result of the search for the GPU. */
nvmlReturn_t call_check(struct call *call, const char *function, nvmlReturn_t resolved)
{
    nvmlReturn_t result = fault_strike(call, function);
    if (result != NVML_SUCCESS || resolved != NVML_SUCCESS)
        return result != NVML_SUCCESS ? result : resolved;
    if (call->gpu != NULL && call->gpu->lost)
        return NVML_ERROR_GPU_IS_LOST;
    return call_permitted(call, function) ? NVML_SUCCESS : NVML_ERROR_NO_PERMISSION;
}

/* Begin a call on a handle of one of these kinds, or on none (0). Every result must be passed to call_end. */
nvmlReturn_t call_begin(struct call *call, const char *function, const struct handle *target, unsigned int kinds)
{
    nvmlReturn_t result = call_open(call);
    if (result != NVML_SUCCESS)
        return result;
    return call_check(call, function, kinds == 0 ? NVML_SUCCESS : handle_resolve(call, target, kinds));
}

/* Release the lock, if the call holds it, and return `result`. */
nvmlReturn_t call_end(struct call *call, nvmlReturn_t result)
{
    if (call->locked)
        state_unlock();
    return result;
}

nvmlReturn_t copy_text(char *target, unsigned int length, const char *text)
{
    if (target == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (strlen(text) >= length)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(target, text);
    return NVML_SUCCESS;
}

nvmlReturn_t copy_number(unsigned int *target, unsigned int value)
{
    if (target == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *target = value;
    return NVML_SUCCESS;
}
