/* Finding GPUs and what they are. */
#include <stdio.h>
#include <string.h>

#include "sim.h"

API nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, NULL, 0);
    if (result == NVML_SUCCESS)
        result = copy_number(count, call.state->gpu_count);
    return call_end(&call, result);
}

ALIAS("nvmlDeviceGetCount_v2") nvmlReturn_t nvmlDeviceGetCount(unsigned int *count);

static nvmlReturn_t give(struct call *call, uint32_t index, nvmlDevice_t *device)
{
    if (call->state->gpus[index].lost)
        return NVML_ERROR_GPU_IS_LOST;
    state_attach(call->state);
    *device = handle_of(call->state, HANDLE_GPU, index, 0, 0);
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, NULL, 0);
    if (result == NVML_SUCCESS)
        result = device == NULL || index >= call.state->gpu_count ? NVML_ERROR_INVALID_ARGUMENT
                                                                  : give(&call, index, device);
    return call_end(&call, result);
}

ALIAS("nvmlDeviceGetHandleByIndex_v2") nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t *device);

static nvmlReturn_t find_by_uuid(struct call *call, const char *uuid, nvmlDevice_t *device)
{
    for (uint32_t g = 0; g < call->state->gpu_count; g++) {
        const struct sim_gpu *gpu = &call->state->gpus[g];
        if (strcmp(gpu->uuid, uuid) == 0)
            return give(call, g, device);
        for (uint32_t i = 0; i < SIM_MAX_GPU_INSTANCES; i++)
            for (uint32_t c = 0; gpu->instances[i].used && c < SIM_MAX_COMPUTE_INSTANCES; c++)
                if (gpu->instances[i].compute[c].used && strcmp(gpu->instances[i].compute[c].uuid, uuid) == 0) {
                    state_attach(call->state);
                    *device = handle_of(call->state, HANDLE_MIG, g, i, c);
                    return NVML_SUCCESS;
                }
    }
    return NVML_ERROR_NOT_FOUND;
}

API nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, NULL, 0);
    if (result == NVML_SUCCESS)
        result = uuid == NULL || device == NULL ? NVML_ERROR_INVALID_ARGUMENT : find_by_uuid(&call, uuid, device);
    return call_end(&call, result);
}

static nvmlReturn_t find_by_bus(struct call *call, const char *text, nvmlDevice_t *device)
{
    unsigned int domain, bus, slot;
    if (sscanf(text, "%x:%x:%x", &domain, &bus, &slot) != 3)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (uint32_t g = 0; g < call->state->gpu_count; g++)
        if (domain == 0 && slot == 0 && call->state->gpus[g].pci_bus == bus)
            return give(call, g, device);
    return NVML_ERROR_NOT_FOUND;
}

API nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlDevice_t *device)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, NULL, 0);
    if (result == NVML_SUCCESS)
        result = bus_id == NULL || device == NULL ? NVML_ERROR_INVALID_ARGUMENT : find_by_bus(&call, bus_id, device);
    return call_end(&call, result);
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
        result = copy_number(index, call.is_mig ? call.ci->mig_index : call.gpu_index);
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
