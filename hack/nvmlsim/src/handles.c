/* Handles: static objects, one per slot of the state. One that outlives its instance no longer resolves. */
#include "sim.h"

struct handle {
    uint32_t kind, gpu, gi, ci;
    uint64_t serial; /* of the instance when the handle was given out */
};

static struct handle gpus[SIM_MAX_GPUS];
static struct handle gis[SIM_MAX_GPUS][SIM_MAX_GPU_INSTANCES];
static struct handle cis[SIM_MAX_GPUS][SIM_MAX_GPU_INSTANCES][SIM_MAX_COMPUTE_INSTANCES];
static struct handle migs[SIM_MAX_GPUS][SIM_MAX_GPU_INSTANCES][SIM_MAX_COMPUTE_INSTANCES];

static int within(const void *pointer, const void *array, size_t size)
{
    uintptr_t address = (uintptr_t)pointer, base = (uintptr_t)array;
    return address >= base && address < base + size && (address - base) % sizeof(struct handle) == 0;
}

static int is_ours(const struct handle *handle)
{
    return within(handle, gpus, sizeof(gpus)) || within(handle, gis, sizeof(gis)) ||
           within(handle, cis, sizeof(cis)) || within(handle, migs, sizeof(migs));
}

/* The handle of a GPU, or of an instance in these slots, valid for as long as that instance exists. */
struct handle *handle_of(const struct sim_state *state, enum handle_kind kind, uint32_t gpu, uint32_t gi, uint32_t ci)
{
    const struct sim_gpu_instance *instance = &state->gpus[gpu].instances[gi];
    struct handle *handle;
    uint64_t serial = 0;
    if (kind == HANDLE_GPU) {
        handle = &gpus[gpu];
    } else if (kind == HANDLE_GI) {
        handle = &gis[gpu][gi];
        serial = instance->serial;
    } else {
        handle = kind == HANDLE_CI ? &cis[gpu][gi][ci] : &migs[gpu][gi][ci];
        serial = instance->compute[ci].serial;
    }
    *handle = (struct handle){.kind = kind, .gpu = gpu, .gi = gi, .ci = ci, .serial = serial};
    return handle;
}

/* Set the target of the call from its handle. INVALID_ARGUMENT when the handle is unknown or its instance is gone. */
nvmlReturn_t handle_resolve(struct call *call, const struct handle *handle, unsigned int kinds)
{
    if (handle == NULL || !is_ours(handle) || !(handle->kind & kinds) || handle->gpu >= call->state->gpu_count)
        return NVML_ERROR_INVALID_ARGUMENT;
    struct sim_gpu *gpu = &call->state->gpus[handle->gpu];
    if (handle->kind != HANDLE_GPU) {
        struct sim_gpu_instance *gi = &gpu->instances[handle->gi];
        struct sim_compute_instance *ci = &gi->compute[handle->ci];
        int is_gi = handle->kind == HANDLE_GI;
        if (!gi->used || (!is_gi && !ci->used) || handle->serial != (is_gi ? gi->serial : ci->serial))
            return NVML_ERROR_INVALID_ARGUMENT;
        call->gi = gi;
        call->gi_slot = handle->gi;
        call->ci = is_gi ? NULL : ci;
        call->ci_slot = handle->ci;
    }
    call->gpu = gpu;
    call->gpu_index = handle->gpu;
    call->is_mig = handle->kind == HANDLE_MIG;
    return NVML_SUCCESS;
}
