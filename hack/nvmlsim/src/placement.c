/* Placements of GPU instances: the possible ones, and the one that the driver would choose. */
#include "sim.h"

struct sim_profile *profile_by_index(struct sim_gpu *gpu, uint32_t index)
{
    for (uint32_t i = 0; i < gpu->profile_count; i++)
        if (gpu->profiles[i].index == index)
            return &gpu->profiles[i];
    return NULL;
}

struct sim_profile *profile_by_id(struct sim_gpu *gpu, uint32_t id)
{
    for (uint32_t i = 0; i < gpu->profile_count; i++)
        if (gpu->profiles[i].id == id)
            return &gpu->profiles[i];
    return NULL;
}

static int overlap(uint32_t start, uint32_t size, uint32_t other_start, uint32_t other_size)
{
    return start < other_start + other_size && other_start < start + size;
}

static int units_free(const struct sim_gpu *gpu, uint32_t start, uint32_t size)
{
    for (int i = 0; i < SIM_MAX_GPU_INSTANCES; i++) {
        const struct sim_gpu_instance *instance = &gpu->instances[i];
        if (instance->used && overlap(start, size, instance->start, gpu->profiles[instance->profile].size))
            return 0;
    }
    return 1;
}

static uint32_t count_of(const struct sim_gpu *gpu, const struct sim_profile *profile)
{
    uint32_t count = 0;
    for (int i = 0; i < SIM_MAX_GPU_INSTANCES; i++)
        if (gpu->instances[i].used && &gpu->profiles[gpu->instances[i].profile] == profile)
            count++;
    return count;
}

/*
 * A card has one set of media engines, so at most one +me instance. An instance with all media engines
 * leaves room for those without media engines only (API reference, NVML_GPU_INSTANCE_PROFILE_*_ALL_ME).
 */
static int media_agree(const struct sim_gpu *gpu, const struct sim_profile *profile)
{
    for (int i = 0; i < SIM_MAX_GPU_INSTANCES; i++) {
        if (!gpu->instances[i].used)
            continue;
        uint32_t other = gpu->profiles[gpu->instances[i].profile].media;
        if (profile->media == SIM_MEDIA_EXTENSIONS && other == SIM_MEDIA_EXTENSIONS)
            return 0;
        if (profile->media == SIM_MEDIA_ALL && other != SIM_MEDIA_NONE)
            return 0;
        if (other == SIM_MEDIA_ALL && profile->media != SIM_MEDIA_NONE)
            return 0;
    }
    return 1;
}

int placement_possible(const struct sim_profile *profile, uint32_t start)
{
    for (uint32_t s = 0; s < profile->start_count; s++)
        if (profile->starts[s] == start)
            return 1;
    return 0;
}

int placement_free(const struct sim_gpu *gpu, const struct sim_profile *profile, uint32_t start)
{
    return count_of(gpu, profile) < profile->instance_count && media_agree(gpu, profile) &&
           units_free(gpu, start, profile->size);
}

/* The number of free places, over all profiles, that an instance here would block. */
static uint32_t damage(const struct sim_gpu *gpu, uint32_t start, uint32_t size)
{
    uint32_t lost = 0;
    for (uint32_t p = 0; p < gpu->profile_count; p++) {
        const struct sim_profile *other = &gpu->profiles[p];
        for (uint32_t s = 0; s < other->start_count; s++)
            if (overlap(start, size, other->starts[s], other->size) && units_free(gpu, other->starts[s], other->size))
                lost++;
    }
    return lost;
}

/*
 * Choose the place that blocks the fewest others, and the lowest of equal ones; 0 if none is free. A guess: it gives
 * the orders printed in
 * NVIDIA's MIG user guide (seven 1g: units 6, 4, 5, 0, 1, 2, 3; two 3g: 4, 0; 1g 2g 4g: 6, 4, 0).
 */
int placement_choose(const struct sim_gpu *gpu, const struct sim_profile *profile, uint32_t *start)
{
    uint32_t least = UINT32_MAX;
    for (uint32_t s = 0; s < profile->start_count; s++) {
        uint32_t candidate = profile->starts[s];
        if (!placement_free(gpu, profile, candidate))
            continue;
        uint32_t lost = damage(gpu, candidate, profile->size);
        if (lost < least) {
            least = lost;
            *start = candidate;
        }
    }
    return least != UINT32_MAX;
}

/* How many more instances of this profile fit. Its places never overlap each other. */
uint32_t placement_capacity(const struct sim_gpu *gpu, const struct sim_profile *profile)
{
    uint32_t room = 0, left = profile->instance_count - count_of(gpu, profile);
    for (uint32_t s = 0; s < profile->start_count; s++)
        if (placement_free(gpu, profile, profile->starts[s]))
            room++;
    return room < left ? room : left;
}
