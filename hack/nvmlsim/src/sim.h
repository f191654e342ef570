/* Declarations shared by the files of the simulator. Every answer is SIMULATED: see ../README.md. */
#pragma once
#include "nvml_abi.h"
#include "state_layout.h"

#define API __attribute__((visibility("default")))
#define ALIAS(name) __attribute__((visibility("default"), alias(name)))
#define NO_INSTANCE 0xFFFFFFFFu
#define MIB (1024ULL * 1024ULL)
#define MEMORY_UNKNOWN UINT64_MAX /* of a process: the driver does not report it */
#define MAX_SLICES 8u
#define MAX_UNITS 64u

/* handles.c: a handle is the address of a static object, never a small number (Go's runtime rejects those). */
enum handle_kind { HANDLE_GPU = 1, HANDLE_MIG = 2, HANDLE_GI = 4, HANDLE_CI = 8 };
struct call;
nvmlReturn_t handle_resolve(struct call *call, const struct handle *handle, unsigned int kinds);
struct handle *handle_of(const struct sim_state *state, enum handle_kind kind, uint32_t gpu, uint32_t gi, uint32_t ci);

/* state.c: the shared file. `state_lock` returns NULL when the file cannot be locked: the call must fail. */
nvmlReturn_t state_open(void);
nvmlReturn_t state_close(void);
int state_is_open(void);
struct sim_state *state_lock(void);
void state_unlock(void);
void state_attach(struct sim_state *state);
int state_other_clients(struct sim_state *state);
void state_open_mig(struct sim_state *state, uint32_t gpu);
int state_migs_open(struct sim_state *state, uint32_t gpu);
const struct sim_state *state_peek(void);
int was_there_at_start(uint32_t gpu, uint32_t gi, uint32_t ci);
void sleep_ms(long milliseconds);

/* bounds.c */
void state_bound(struct sim_state *state);

/* call.c: one call of the interface, from the check of its handle to the release of the lock. */
struct call {
    struct sim_state *state;
    struct sim_gpu *gpu;
    struct sim_gpu_instance *gi;
    struct sim_compute_instance *ci;
    uint32_t gpu_index, gi_slot, ci_slot;
    int is_mig;
    int locked;
};
nvmlReturn_t call_begin(struct call *call, const char *function, const struct handle *target, unsigned int kinds);
nvmlReturn_t call_open(struct call *call);
void call_about(struct call *call, uint32_t gpu);
nvmlReturn_t call_check(struct call *call, const char *function, nvmlReturn_t resolved);
nvmlReturn_t call_end(struct call *call, nvmlReturn_t result);

/* rights.c: the rights of the calling process, and what it may see. */
enum right { RIGHT_NONE, RIGHT_MONITOR, RIGHT_CONFIG, RIGHT_ADMIN };
enum device { DEVICE_OPEN, DEVICE_CLOSED, DEVICE_ABSENT };
int has_right(const struct sim_state *state, enum right needed);
int call_permitted(const struct call *call, const char *function);
int instance_visible(const struct sim_state *state, uint32_t gpu, uint32_t gi, uint32_t ci);
enum device device_state(const struct sim_state *state, uint32_t gpu);
uint64_t caller_pid_namespace(const struct sim_state *state);
int process_visible(uint64_t caller_namespace, const struct sim_process *process);

nvmlReturn_t copy_text(char *target, unsigned int length, const char *text);
nvmlReturn_t copy_number(unsigned int *target, unsigned int value);

/* events.c */
void event_post(struct call *call, uint64_t type, uint64_t data, uint32_t gi, uint32_t ci);

/* placement.c */
struct sim_profile *profile_by_index(struct sim_gpu *gpu, uint32_t index);
struct sim_profile *profile_by_id(struct sim_gpu *gpu, uint32_t id);
int placement_possible(const struct sim_profile *profile, uint32_t start);
int placement_free(const struct sim_gpu *gpu, const struct sim_profile *profile, uint32_t start);
int placement_choose(const struct sim_gpu *gpu, const struct sim_profile *profile, uint32_t *start);
uint32_t placement_capacity(const struct sim_gpu *gpu, const struct sim_profile *profile);

/* machine.c */
extern const uint32_t compute_slices[NVML_COMPUTE_INSTANCE_PROFILE_COUNT];
int compute_size_known(uint32_t slices);
int mig_enabled(const struct sim_gpu *gpu);
int gpu_has_process(const struct sim_state *state, uint32_t gpu, int32_t gi, int32_t ci);
