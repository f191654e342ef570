/* The state file: mapped shared by every process, guarded by a record lock (and a mutex between threads). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "sim.h"

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct sim_state *mapped;
static char mapped_path[4096];
static int file = -1;
static int opened;
static pid_t attached;

void sleep_ms(long milliseconds)
{
    struct timespec pause = {milliseconds / 1000, (milliseconds % 1000) * 1000000};
    nanosleep(&pause, NULL);
}

/* Record locks belong to the process: they are not inherited by a fork and go when the process dies. */
static int record_lock(short type)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET};
    int result;
    do
        result = fcntl(file, F_SETLKW, &lock);
    while (result == -1 && errno == EINTR);
    return result;
}

static nvmlReturn_t map_file(const char *path)
{
    struct stat status;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) != 0 || status.st_size < (off_t)sizeof(struct sim_state)) {
        fprintf(stderr, "nvmlsim (SIMULATED NVML): NVMLSIM_STATE=%s is no state file of this version\n", path);
        if (fd >= 0)
            close(fd);
        return NVML_ERROR_DRIVER_NOT_LOADED;
    }
    void *memory = mmap(NULL, sizeof(struct sim_state), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) {
        close(fd);
        return NVML_ERROR_MEMORY;
    }
    /* An earlier mapping stays: a thread that hangs on purpose may still look at it. */
    file = fd;
    mapped = memory;
    snprintf(mapped_path, sizeof(mapped_path), "%s", path);
    return NVML_SUCCESS;
}

static nvmlReturn_t open_locked(void)
{
    const char *path = getenv("NVMLSIM_STATE");
    if (path == NULL || *path == '\0') {
        fprintf(stderr, "nvmlsim (SIMULATED NVML): NVMLSIM_STATE is not set; see python -m hack.nvmlsim env\n");
        return NVML_ERROR_DRIVER_NOT_LOADED;
    }
    if (mapped == NULL || strcmp(path, mapped_path) != 0) {
        nvmlReturn_t result = map_file(path);
        if (result != NVML_SUCCESS)
            return result;
    }
    if (mapped->magic != SIM_MAGIC || mapped->size != sizeof(struct sim_state)) {
        fprintf(stderr, "nvmlsim (SIMULATED NVML): %s was made by another version; create it again\n", path);
        return NVML_ERROR_DRIVER_NOT_LOADED;
    }
    return mapped->driver_loaded ? NVML_SUCCESS : NVML_ERROR_DRIVER_NOT_LOADED;
}

nvmlReturn_t state_open(void)
{
    pthread_mutex_lock(&mutex);
    nvmlReturn_t result = open_locked();
    if (result == NVML_SUCCESS)
        opened++;
    pthread_mutex_unlock(&mutex);
    return result;
}

static void detach(void)
{
    for (int i = 0; i < SIM_MAX_CLIENTS; i++)
        if (mapped->clients[i] == (uint32_t)attached)
            mapped->clients[i] = 0;
    attached = 0;
}

void state_close(void)
{
    struct sim_state *state = state_lock();
    if (opened > 0 && --opened == 0 && state != NULL && attached == getpid())
        detach();
    state_unlock();
}

int state_is_open(void)
{
    return __atomic_load_n(&opened, __ATOMIC_ACQUIRE) > 0;
}

struct sim_state *state_lock(void)
{
    pthread_mutex_lock(&mutex);
    if (mapped != NULL)
        record_lock(F_WRLCK);
    return mapped;
}

void state_unlock(void)
{
    if (mapped != NULL)
        record_lock(F_UNLCK);
    pthread_mutex_unlock(&mutex);
}

const struct sim_state *state_peek(void)
{
    return mapped;
}

static int is_dead(uint32_t pid)
{
    return kill((pid_t)pid, 0) == -1 && errno == ESRCH;
}

/* The first handle that a process takes attaches it to the GPUs: from then on it holds them open. */
void state_attach(struct sim_state *state)
{
    pid_t self = getpid();
    if (attached == self)
        return;
    for (int i = 0; i < SIM_MAX_CLIENTS; i++)
        if (state->clients[i] == 0 || is_dead(state->clients[i])) {
            state->clients[i] = (uint32_t)self;
            attached = self;
            return;
        }
}

int state_other_clients(struct sim_state *state)
{
    int others = 0;
    for (int i = 0; i < SIM_MAX_CLIENTS; i++) {
        if (state->clients[i] == 0 || state->clients[i] == (uint32_t)getpid())
            continue;
        if (is_dead(state->clients[i]))
            state->clients[i] = 0;
        else
            others++;
    }
    return others;
}
