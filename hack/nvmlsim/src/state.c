/* The state file: every process maps it, and a record lock guards it (and a mutex between threads). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
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
static int own_slot;
/* CPU time at the start of the present call, and of calls that are not in the file yet. Under the mutex. */
static uint64_t call_began, unwritten_ns;

/* The driver and the MIG devices that this program's container got when it began. Later ones are for new programs. */
struct birth {
    char driver_version[SIM_TEXT];
    uint32_t access_epoch;
    uint32_t count;
    struct {
        uint32_t gpu, gi, ci;
    } instances[SIM_MAX_GPUS * SIM_MAX_GPU_INSTANCES * SIM_MAX_COMPUTE_INSTANCES];
};
static struct birth birth;

void sleep_ms(long milliseconds)
{
    struct timespec pause = {milliseconds / 1000, (milliseconds % 1000) * 1000000};
    nanosleep(&pause, NULL);
}

static uint64_t thread_cpu_ns(void)
{
    struct timespec used;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    return (uint64_t)used.tv_sec * 1000000000u + (uint64_t)used.tv_nsec;
}

/*
 * Record locks belong to the process: a fork does not inherit them, and they end when the process dies. The first byte
 * guards the file. Each client locks the byte of its slot after it: a pid means nothing in another PID namespace.
 */
static int record_lock(short type)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_len = 1};
    int result;
    do
        result = fcntl(file, F_SETLKW, &lock);
    while (result == -1 && errno == EINTR);
    return result;
}

/* Take the lock. Fails also if the file is shorter than its mapping: access beyond its end would kill the program. */
static int take_record_lock(void)
{
    struct stat status;
    if (record_lock(F_WRLCK) != 0) {
        fprintf(stderr, "nvmlsim (SIMULATED NVML): cannot lock %s: %s\n", mapped_path, strerror(errno));
        return 0;
    }
    if (fstat(file, &status) == 0 && status.st_size >= (off_t)sizeof(struct sim_state))
        return 1;
    fprintf(stderr, "nvmlsim (SIMULATED NVML): %s was cut short; create it again\n", mapped_path);
    record_lock(F_UNLCK);
    return 0;
}

static nvmlReturn_t map_file(const char *path)
{
    struct stat status;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) != 0 || status.st_size < (off_t)sizeof(struct sim_state)) {
        fprintf(stderr, "nvmlsim (SIMULATED NVML): NVMLSIM_STATE=%s is not a state file of this version\n", path);
        if (fd >= 0)
            close(fd);
        return NVML_ERROR_DRIVER_NOT_LOADED;
    }
    void *memory = mmap(NULL, sizeof(struct sim_state), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) {
        close(fd);
        return NVML_ERROR_MEMORY;
    }
    /* An earlier mapping stays, because a thread that hangs on purpose may still read it. */
    file = fd;
    mapped = memory;
    attached = 0; /* not to this one yet */
    snprintf(mapped_path, sizeof(mapped_path), "%s", path);
    return NVML_SUCCESS;
}

static int is_readable(void)
{
    return mapped->magic == SIM_MAGIC && mapped->size == sizeof(struct sim_state) &&
           mapped->layout_hash == SIM_LAYOUT_HASH;
}

static void remember_birth(void)
{
    birth = (struct birth){.access_epoch = mapped->access_epoch};
    memcpy(birth.driver_version, mapped->driver_version, sizeof(birth.driver_version));
    for (uint32_t g = 0; g < mapped->gpu_count; g++)
        for (uint32_t i = 0; i < SIM_MAX_GPU_INSTANCES; i++)
            for (uint32_t c = 0; mapped->gpus[g].instances[i].used && c < SIM_MAX_COMPUTE_INSTANCES; c++)
                if (mapped->gpus[g].instances[i].compute[c].used) {
                    birth.instances[birth.count].gpu = g;
                    birth.instances[birth.count].gi = mapped->gpus[g].instances[i].id;
                    birth.instances[birth.count++].ci = mapped->gpus[g].instances[i].compute[c].id;
                }
}

/* Whether the MIG device existed when this program first opened the file; instances by id. */
int was_there_at_start(uint32_t gpu, uint32_t gi, uint32_t ci)
{
    for (uint32_t i = 0; i < birth.count; i++)
        if (birth.instances[i].gpu == gpu && birth.instances[i].gi == gi && birth.instances[i].ci == ci)
            return 1;
    return 0;
}

/* Whether this program can still use the driver. Under the lock. */
static nvmlReturn_t driver_answers(void)
{
    if (!mapped->driver_loaded)
        return NVML_ERROR_DRIVER_NOT_LOADED;
    if (strcmp(birth.driver_version, mapped->driver_version) != 0)
        return NVML_ERROR_LIB_RM_VERSION_MISMATCH;
    return birth.access_epoch == mapped->access_epoch ? NVML_SUCCESS : NVML_ERROR_UNKNOWN;
}

/* Map the file if needed and check it. Under the mutex; takes the record lock meanwhile. */
static nvmlReturn_t open_locked(void)
{
    int is_new = 0;
    const char *path = getenv("NVMLSIM_STATE");
    if (path == NULL || *path == '\0') {
        fprintf(stderr, "nvmlsim (SIMULATED NVML): NVMLSIM_STATE is not set; see hack/nvmlsim/README.md\n");
        return NVML_ERROR_DRIVER_NOT_LOADED;
    }
    if (mapped == NULL || strcmp(path, mapped_path) != 0) {
        nvmlReturn_t result = map_file(path);
        if (result != NVML_SUCCESS)
            return result;
        is_new = 1;
    }
    if (!take_record_lock())
        return NVML_ERROR_UNKNOWN;
    nvmlReturn_t result = NVML_ERROR_DRIVER_NOT_LOADED;
    if (is_readable()) {
        state_bound(mapped);
        if (is_new)
            remember_birth();
        result = driver_answers();
    } else {
        fprintf(stderr, "nvmlsim (SIMULATED NVML): %s was made by another version; create it again\n", path);
        mapped_path[0] = '\0'; /* open it anew next time */
    }
    record_lock(F_UNLCK);
    return result;
}

nvmlReturn_t state_open(void)
{
    pthread_mutex_lock(&mutex);
    call_began = thread_cpu_ns();
    nvmlReturn_t result = open_locked();
    if (result == NVML_SUCCESS)
        opened++;
    unwritten_ns += thread_cpu_ns() - call_began;
    pthread_mutex_unlock(&mutex);
    return result;
}

static struct flock slot_lock(short type, int slot)
{
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = SIM_CLIENT_LOCKS + slot, .l_len = 1};
}

static void detach(void)
{
    struct flock lock = slot_lock(F_UNLCK, own_slot);
    mapped->clients[own_slot] = 0;
    fcntl(file, F_SETLK, &lock);
    attached = 0;
}

nvmlReturn_t state_close(void)
{
    if (state_lock() == NULL)
        return NVML_ERROR_UNKNOWN;
    if (opened > 0 && --opened == 0 && attached == getpid())
        detach();
    state_unlock();
    return NVML_SUCCESS;
}

int state_is_open(void)
{
    return __atomic_load_n(&opened, __ATOMIC_ACQUIRE) > 0;
}

/* The locked state. NULL, without any lock, when the file is missing, cut short, or cannot be locked. */
struct sim_state *state_lock(void)
{
    pthread_mutex_lock(&mutex);
    call_began = thread_cpu_ns();
    if (mapped == NULL || !take_record_lock()) {
        pthread_mutex_unlock(&mutex);
        return NULL;
    }
    if (!is_readable()) {
        state_unlock();
        return NULL;
    }
    state_bound(mapped);
    mapped->calls++;
    mapped->call_ns += unwritten_ns;
    unwritten_ns = 0;
    return mapped;
}

void state_unlock(void)
{
    record_lock(F_UNLCK);
    unwritten_ns += thread_cpu_ns() - call_began; /* the file is unlocked now, so the next call writes it */
    pthread_mutex_unlock(&mutex);
}

const struct sim_state *state_peek(void)
{
    return mapped;
}

/* Whether another process holds the lock of this slot. Not for our own slot: a process does not see its own locks. */
static int is_held(int slot)
{
    struct flock lock = slot_lock(F_WRLCK, slot);
    return fcntl(file, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

/* Attach the process to the GPUs, when it takes its first handle: from then on it holds them open. */
void state_attach(struct sim_state *state)
{
    pid_t self = getpid();
    if (attached == self)
        return;
    for (int i = 0; i < SIM_MAX_CLIENTS; i++) {
        struct flock lock = slot_lock(F_WRLCK, i);
        if (fcntl(file, F_SETLK, &lock) != 0)
            continue;
        state->clients[i] = (uint32_t)self;
        state->client_migs[i] = 0;
        attached = self;
        own_slot = i;
        return;
    }
}

/* The number of other processes that are attached, or that have opened a MIG device of one of these GPUs.
 * Frees the slots of those that have died. */
static int count_others(struct sim_state *state, uint32_t gpus)
{
    int others = 0;
    for (int i = 0; i < SIM_MAX_CLIENTS; i++) {
        if (state->clients[i] == 0 || (attached == getpid() && i == own_slot))
            continue;
        if (!is_held(i))
            state->clients[i] = 0;
        else if (gpus == 0 || (state->client_migs[i] & gpus) != 0)
            others++;
    }
    return others;
}

int state_other_clients(struct sim_state *state)
{
    return count_others(state, 0);
}

/* Note that this process has opened a MIG device of the GPU. */
void state_open_mig(struct sim_state *state, uint32_t gpu)
{
    if (attached == getpid())
        state->client_migs[own_slot] |= 1u << gpu;
}

int state_migs_open(struct sim_state *state, uint32_t gpu)
{
    return state->clients_block && count_others(state, 1u << gpu) > 0;
}
