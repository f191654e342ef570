/* Events: a ring in the state file; every event set remembers how far it has read. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "sim.h"

#define WAIT_POLL_MS 10

struct event_set {
    uint64_t next;                     /* sequence of the first event not yet delivered */
    uint64_t wanted[SIM_MAX_GPUS]; /* types by GPU; 0 if not registered */
};

/* Append an event to the ring, which holds the last SIM_MAX_EVENTS. Called under the lock. */
void event_post(struct call *call, uint64_t type, uint64_t data, uint32_t gi, uint32_t ci)
{
    uint64_t sequence = call->state->event_count;
    call->state->events[sequence % SIM_MAX_EVENTS] =
        (struct sim_event){.sequence = sequence, .type = type, .data = data, .gpu = call->gpu_index,
                           .gpu_instance = gi, .compute_instance = ci};
    __atomic_store_n(&call->state->event_count, sequence + 1, __ATOMIC_RELEASE);
}

API nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *types)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU);
    if (result == NVML_SUCCESS && types == NULL)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS)
        *types = call.gpu->mig_capable ? EVENT_ALL : EVENT_ALL & ~EVENT_MIG_CONFIG_CHANGE;
    return call_end(&call, result);
}

API nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, NULL, 0);
    if (result == NVML_SUCCESS && set == NULL)
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result != NVML_SUCCESS)
        return call_end(&call, result);
    *set = calloc(1, sizeof(**set));
    if (*set == NULL)
        return call_end(&call, NVML_ERROR_MEMORY);
    (*set)->next = call.state->event_count;
    return call_end(&call, NVML_SUCCESS);
}

/* For whole GPUs only. */
API nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set)
{
    struct call call;
    nvmlReturn_t result = call_begin(&call, __func__, device, HANDLE_GPU);
    if (result == NVML_SUCCESS && (set == NULL || types == 0))
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS && (types & ~EVENT_ALL) != 0)
        result = NVML_ERROR_NOT_SUPPORTED;
    if (result == NVML_SUCCESS)
        set->wanted[call.gpu_index] |= types;
    return call_end(&call, result);
}

/* With MIG on, events of a single instance need the right to monitor it (nvml.h, nvmlEventSetWait_v2). */
static int hidden(const struct sim_state *state, const struct sim_event *event)
{
    return mig_enabled(&state->gpus[event->gpu]) && event->gpu_instance != NO_INSTANCE &&
           !has_right(state, RIGHT_MONITOR);
}

/* Write the next event of the set into `data`. Returns 0 if there is none; events that were overwritten are skipped. */
static int take(struct call *call, struct event_set *set, nvmlEventData_t *data)
{
    const struct sim_state *state = call->state;
    if (set->next + SIM_MAX_EVENTS < state->event_count)
        set->next = state->event_count - SIM_MAX_EVENTS;
    while (set->next < state->event_count) {
        const struct sim_event *event = &state->events[set->next++ % SIM_MAX_EVENTS];
        if (event->gpu >= state->gpu_count || !(set->wanted[event->gpu] & event->type) || hidden(state, event))
            continue;
        *data = (nvmlEventData_t){handle_of(state, HANDLE_GPU, event->gpu, 0, 0), event->type, event->data,
                                  event->gpu_instance, event->compute_instance};
        return 1;
    }
    return 0;
}

static long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static uint64_t posted(void)
{
    return __atomic_load_n(&state_peek()->event_count, __ATOMIC_ACQUIRE);
}

/* Polls the counter without the lock, and takes the lock only for new events. */
API nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms)
{
    struct call call;
    long deadline = now_ms() + (long)timeout_ms + 1; /* now_ms rounds down */
    nvmlReturn_t result = call_begin(&call, __func__, NULL, 0);
    if (result == NVML_SUCCESS && (set == NULL || data == NULL))
        result = NVML_ERROR_INVALID_ARGUMENT;
    while (result == NVML_SUCCESS && !take(&call, set, data)) {
        call_end(&call, NVML_SUCCESS);
        call.locked = 0;
        while (posted() == set->next && now_ms() < deadline)
            sleep_ms(WAIT_POLL_MS);
        if (posted() == set->next)
            return NVML_ERROR_TIMEOUT;
        call.state = state_lock();
        call.locked = call.state != NULL;
        if (!call.locked)
            return NVML_ERROR_UNKNOWN;
    }
    return call_end(&call, result);
}

ALIAS("nvmlEventSetWait_v2")
nvmlReturn_t nvmlEventSetWait(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms);

API nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set)
{
    if (!state_is_open())
        return NVML_ERROR_UNINITIALIZED;
    free(set);
    return NVML_SUCCESS;
}
