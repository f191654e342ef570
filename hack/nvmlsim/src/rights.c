/*
 * The rights of the calling process, and what it may see. Like the driver, it examines the process at every call:
 * effective capabilities, user and PID namespace, and which files can be opened. The table is in ../rights.py.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sim.h"

struct rule {
    const char *function;
    enum right needed;
    int only_whole_mig_gpu; /* else always */
};
#include "rights_table.h"

/* For unit tests: the right named by NVMLSIM_PRIVILEGE=none|monitor|config|root, or -1 if it is not set. */
static int given_right(void)
{
    static const char *const names[] = {"none", "monitor", "config", "root"};
    const char *given = getenv("NVMLSIM_PRIVILEGE");
    if (given == NULL || *given == '\0')
        return -1;
    for (int level = RIGHT_NONE; level <= RIGHT_ADMIN; level++)
        if (strcmp(given, names[level]) == 0)
            return level;
    return RIGHT_NONE;
}

static uint64_t inode_of(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 ? (uint64_t)status.st_ino : 0;
}

static int is_admin(const struct sim_state *state)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {{0}};
    if (syscall(SYS_capget, &header, data) != 0 || !(data[0].effective & (1u << CAP_SYS_ADMIN)))
        return 0;
    return state->user_namespace == 0 || inode_of("/proc/self/ns/user") == state->user_namespace;
}

static int opens(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

static int has_capability(const struct sim_state *state, const char *name)
{
    char path[SIM_PATH + 64];
    if (state->capabilities[0] == '\0')
        return 0;
    snprintf(path, sizeof(path), "%s/%s", state->capabilities, name);
    return opens(path);
}

int has_right(const struct sim_state *state, enum right needed)
{
    int given = given_right();
    if (given >= 0)
        return given >= (int)needed;
    if (needed == RIGHT_NONE || is_admin(state))
        return 1;
    return needed != RIGHT_ADMIN && has_capability(state, needed == RIGHT_CONFIG ? "mig/config" : "mig/monitor");
}

int call_permitted(const struct call *call, const char *function)
{
    int whole_mig_gpu = call->gpu != NULL && !call->is_mig && mig_enabled(call->gpu);
    for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++)
        if (strcmp(rules[i].function, function) == 0 && (whole_mig_gpu || !rules[i].only_whole_mig_gpu))
            return has_right(call->state, rules[i].needed);
    return 1;
}

/*
 * A container sees the MIG devices whose capability files it can open. Without a stand-in for these files it sees those
 * that existed when the program began, because the container toolkit adds them when a container starts.
 */
int instance_visible(const struct sim_state *state, uint32_t gpu, uint32_t gi, uint32_t ci)
{
    const struct sim_gpu_instance *instance = &state->gpus[gpu].instances[gi];
    uint32_t minor = state->gpus[gpu].minor, gi_id = instance->id, ci_id = instance->compute[ci].id;
    char access[64], inner[64];
    if (has_right(state, RIGHT_ADMIN))
        return 1;
    if (state->capabilities[0] == '\0')
        return was_there_at_start(gpu, gi_id, ci_id);
    snprintf(access, sizeof(access), "gpu%u/mig/gi%u/access", minor, gi_id);
    snprintf(inner, sizeof(inner), "gpu%u/mig/gi%u/ci%u/access", minor, gi_id, ci_id);
    return has_capability(state, access) && has_capability(state, inner);
}

enum device device_state(const struct sim_state *state, uint32_t gpu)
{
    char path[SIM_PATH + 32];
    if (state->devices[0] == '\0')
        return DEVICE_OPEN;
    snprintf(path, sizeof(path), "%s/nvidia%u", state->devices, state->gpus[gpu].minor);
    if (opens(path))
        return DEVICE_OPEN;
    return errno == ENOENT ? DEVICE_ABSENT : DEVICE_CLOSED;
}

/* The inode of the caller's PID namespace; 0 for the machine's own, which sees every process. */
uint64_t caller_pid_namespace(const struct sim_state *state)
{
    uint64_t own = inode_of("/proc/self/ns/pid");
    return state->pid_namespace == 0 || own == state->pid_namespace ? 0 : own | (own == 0);
}

/* Processes of other PID namespaces are left out, not listed without a name (os_find_ns_pid in NVIDIA's modules). */
int process_visible(uint64_t caller_namespace, const struct sim_process *process)
{
    return caller_namespace == 0 || process->pid_namespace == caller_namespace;
}
