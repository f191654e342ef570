/* GPUs: finding and describing them. */
#include <stdio.h>
#include <string.h>

#include "sim.h"

enum { TOPOLOGY_INTERNAL = 0, TOPOLOGY_SYSTEM = 50 }; /* nvmlGpuTopologyLevel_t */

/* The number of GPUs that this container has. NVML's indexes count these only. */
static uint32_t visible_count(const struct sim_state *state)
{
    uint32_t count = 0;
    for (uint32_t g = 0; g < state->gpu_count; g++)
        count += device_state(state, g) != DEVICE_ABSENT;
    return count;
}

static uint32_t visible_index(const struct sim_state *state, uint32_t gpu)
{
    uint32_t index = 0;
    for (uint32_t g = 0; g < gpu; g++)
        index += device_state(state, g) != DEVICE_ABSENT;
    return index;
}

API nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, NULL, 0);
    if (result == NVML_SUCCESS)
        result = copy_number(count, visible_count(call.state));
    return call_end(&call, result);
}

ALIAS("nvmlDeviceGetCount_v2") nvmlReturn_t nvmlDeviceGetCount(unsigned int *count);

/* Return the device that a search found, if the container may open it. From then on the caller holds the GPUs. */
static nvmlReturn_t give(struct call *call, const char *function, nvmlReturn_t searched, nvmlDevice_t *device)
{
    nvmlReturn_t result = call_check(call, function, searched);
    if (result != NVML_SUCCESS)
        return call_end(call, result);
    if (device_state(call->state, call->gpu_index) != DEVICE_OPEN)
        return call_end(call, NVML_ERROR_NO_PERMISSION);
    state_attach(call->state);
    *device = handle_of(call->state, call->is_mig ? HANDLE_MIG : HANDLE_GPU, call->gpu_index, call->gi_slot,
                        call->ci_slot);
    return call_end(call, NVML_SUCCESS);
}

static nvmlReturn_t find_by_index(struct call *call, unsigned int index)
{
    for (uint32_t g = 0; g < call->state->gpu_count; g++)
        if (device_state(call->state, g) != DEVICE_ABSENT && index-- == 0) {
            call_about(call, g);
            return NVML_SUCCESS;
        }
    return NVML_ERROR_INVALID_ARGUMENT;
}

API nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
    struct call call;
    nvmlReturn_t result = call_open(&call);
    if (result != NVML_SUCCESS)
        return call_end(&call, result);
    return give(&call, __func__, device == NULL ? NVML_ERROR_INVALID_ARGUMENT : find_by_index(&call, index), device);
}

ALIAS("nvmlDeviceGetHandleByIndex_v2") nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t *device);

static int find_mig_by_uuid(struct call *call, uint32_t gpu, const char *uuid)
{
    const struct sim_gpu_instance *instances = call->state->gpus[gpu].instances;
    for (uint32_t i = 0; i < SIM_MAX_GPU_INSTANCES; i++)
        for (uint32_t c = 0; instances[i].used && c < SIM_MAX_COMPUTE_INSTANCES; c++)
            if (instances[i].compute[c].used && strcmp(instances[i].compute[c].uuid, uuid) == 0 &&
                instance_visible(call->state, gpu, i, c)) {
                call->is_mig = 1;
                call->gi_slot = i;
                call->ci_slot = c;
                return 1;
            }
    return 0;
}

static nvmlReturn_t find_by_uuid(struct call *call, const char *uuid)
{
    for (uint32_t g = 0; g < call->state->gpu_count; g++)
        if (device_state(call->state, g) != DEVICE_ABSENT &&
            (strcmp(call->state->gpus[g].uuid, uuid) == 0 || find_mig_by_uuid(call, g, uuid))) {
            call_about(call, g);
            return NVML_SUCCESS;
        }
    return NVML_ERROR_NOT_FOUND;
}

API nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    struct call call;
    nvmlReturn_t result = call_open(&call);
    if (result != NVML_SUCCESS)
        return call_end(&call, result);
    int given = uuid != NULL && device != NULL;
    return give(&call, __func__, given ? find_by_uuid(&call, uuid) : NVML_ERROR_INVALID_ARGUMENT, device);
}

static nvmlReturn_t find_by_bus(struct call *call, const char *text)
{
    unsigned int domain, bus, slot;
    if (sscanf(text, "%x:%x:%x", &domain, &bus, &slot) != 3)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (uint32_t g = 0; g < call->state->gpu_count; g++)
        if (domain == 0 && slot == 0 && call->state->gpus[g].pci_bus == bus &&
            device_state(call->state, g) != DEVICE_ABSENT) {
            call_about(call, g);
            return NVML_SUCCESS;
        }
    return NVML_ERROR_NOT_FOUND;
}

API nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlDevice_t *device)
{
    struct call call;
    nvmlReturn_t result = call_open(&call);
    if (result != NVML_SUCCESS)
        return call_end(&call, result);
    int given = bus_id != NULL && device != NULL;
    return give(&call, __func__, given ? find_by_bus(&call, bus_id) : NVML_ERROR_INVALID_ARGUMENT, device);
}

ALIAS("nvmlDeviceGetHandleByPciBusId_v2")
nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char *bus_id, nvmlDevice_t *device);

/* A MIG device is named "<GPU> MIG <profile>", with "Nc." in front where it is a part of its GPU instance. */
static nvmlReturn_t full_name(const struct call *call, char *name, unsigned int length)
{
    char text[2 * SIM_NAME + 32];
    if (!call->is_mig)
        return copy_text(name, length, call->gpu->name);
    const struct sim_profile *profile = &call->gpu->profiles[call->gi->profile];
    const char *plain = profile->name + (strncmp(profile->name, "MIG ", 4) == 0 ? 4 : 0);
    if (call->ci->slices == profile->slices)
        snprintf(text, sizeof(text), "%s MIG %s", call->gpu->name, plain);
    else
        snprintf(text, sizeof(text), "%s MIG %uc.%s", call->gpu->name, call->ci->slices, plain);
    return copy_text(name, length, text);
}

API nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU | HANDLE_MIG);
    if (result == NVML_SUCCESS)
        result = full_name(&call, name, length);
    return call_end(&call, result);
}

API nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU | HANDLE_MIG);
    if (result == NVML_SUCCESS)
        result = copy_text(uuid, length, call.is_mig ? call.ci->uuid : call.gpu->uuid);
    return call_end(&call, result);
}

API nvmlReturn_t nvmlDeviceGetSerial(nvmlDevice_t device, char *serial, unsigned int length)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU);
    if (result == NVML_SUCCESS)
        result = copy_text(serial, length, "SIMULATED");
    return call_end(&call, result);
}

API nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU | HANDLE_MIG);
    if (result == NVML_SUCCESS)
        result = copy_number(index, call.is_mig ? call.ci->mig_index : visible_index(call.state, call.gpu_index));
    return call_end(&call, result);
}

API nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned int *minor)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU | HANDLE_MIG);
    if (result == NVML_SUCCESS)
        result = copy_number(minor, call.gpu->minor);
    return call_end(&call, result);
}

/* How close two GPUs are: each is at a CPU of its own, without NVLink. The device plugin asks before it allocates. */
API nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t device, nvmlDevice_t other, unsigned int *level)
{
    struct call call, second;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU);
    if (result == NVML_SUCCESS) {
        second = call;
        result = handle_resolve(&second, other, HANDLE_GPU);
    }
    if (result == NVML_SUCCESS)
        result = copy_number(level, call.gpu_index == second.gpu_index ? TOPOLOGY_INTERNAL : TOPOLOGY_SYSTEM);
    return call_end(&call, result);
}

API nvmlReturn_t nvmlDeviceGetBrand(nvmlDevice_t device, unsigned int *brand)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU | HANDLE_MIG);
    if (result == NVML_SUCCESS)
        result = copy_number(brand, call.gpu->brand);
    return call_end(&call, result);
}

API nvmlReturn_t nvmlDeviceGetArchitecture(nvmlDevice_t device, unsigned int *architecture)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU | HANDLE_MIG);
    if (result == NVML_SUCCESS)
        result = copy_number(architecture, call.gpu->architecture);
    return call_end(&call, result);
}

API nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU | HANDLE_MIG);
    if (result == NVML_SUCCESS)
        result = copy_number((unsigned int *)major, call.gpu->cc_major);
    if (result == NVML_SUCCESS)
        result = copy_number((unsigned int *)minor, call.gpu->cc_minor);
    return call_end(&call, result);
}

API nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU | HANDLE_MIG);
    if (result == NVML_SUCCESS && pci == NULL)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result != NVML_SUCCESS)
        return call_end(&call, result);
    *pci = (nvmlPciInfo_t){.bus = call.gpu->pci_bus,
                           .pciDeviceId = call.gpu->pci_device_id,
                           .pciSubSystemId = call.gpu->pci_subsystem_id};
    snprintf(pci->busIdLegacy, sizeof(pci->busIdLegacy), "0000:%02X:00.0", call.gpu->pci_bus & 0xFFu);
    snprintf(pci->busId, sizeof(pci->busId), "00000000:%02X:00.0", call.gpu->pci_bus & 0xFFu);
    return call_end(&call, result);
}

ALIAS("nvmlDeviceGetPciInfo_v3") nvmlReturn_t nvmlDeviceGetPciInfo(nvmlDevice_t device, nvmlPciInfo_t *pci);
ALIAS("nvmlDeviceGetPciInfo_v3") nvmlReturn_t nvmlDeviceGetPciInfo_v2(nvmlDevice_t device, nvmlPciInfo_t *pci);

/* Always bare metal: NVML_GPU_VIRTUALIZATION_MODE_NONE. */
API nvmlReturn_t nvmlDeviceGetVirtualizationMode(nvmlDevice_t device, unsigned int *mode)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU);
    if (result == NVML_SUCCESS)
        result = copy_number(mode, 0);
    return call_end(&call, result);
}
