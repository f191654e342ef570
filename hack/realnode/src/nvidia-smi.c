/* SIMULATED nvidia-smi that supports `-i UUID -c MODE` only, which is what mps-control-daemon runs. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

typedef int (*call_init)(void);
typedef int (*call_find)(const char *, void **);
typedef int (*call_set)(void *, unsigned);
struct mode { const char *name; unsigned number; };
static const struct mode modes[] = {{"DEFAULT", 0}, {"PROHIBITED", 2}, {"EXCLUSIVE_PROCESS", 3}};

int main(int count, char **arguments)
{
    void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW), *gpu = NULL;
    if (!library) { printf("NVIDIA-SMI (SIMULATED) could not find libnvidia-ml.so.1: %s\n", dlerror()); return 12; }
    if (count != 5 || strcmp(arguments[1], "-i") || strcmp(arguments[3], "-c")) {
        printf("NVIDIA-SMI (SIMULATED) supports `-i UUID -c MODE` only\n");
        return 2;
    }
    call_init init = (call_init)dlsym(library, "nvmlInit_v2");
    call_find find = (call_find)dlsym(library, "nvmlDeviceGetHandleByUUID");
    call_set set = (call_set)dlsym(library, "nvmlDeviceSetComputeMode");
    for (unsigned row = 0; row < sizeof modes / sizeof *modes; row++) {
        if (strcmp(arguments[4], modes[row].name)) continue;
        int why = init();
        if (!why) why = find(arguments[2], &gpu);
        if (!why) why = set(gpu, modes[row].number);
        if (why) printf("Failed to set compute mode for GPU %s: NVML error %d (SIMULATED)\n", arguments[2], why);
        return why;
    }
    printf("Invalid compute mode specified: %s (SIMULATED)\n", arguments[4]);
    return 2;
}
