/* What is the same on every processor: which level of instructions there is, threads, and memory. The threads are those
   of PyTorch's own OpenMP, so that there are never two sets of them. */

#include "vector.h"

#ifndef SOURCES
#define SOURCES ""
#endif

typedef void (*Parallel)(void (*body)(void *), void *data, unsigned threads, unsigned flags);

EXPORT const char llamafarm_sources[] = SOURCES; /* a digest of what this was compiled from */

/* The level of instructions that this processor has: 4 or 3 of x86-64, 5 where it multiplies pairs of bfloat16 besides,
   8 of ARM, 0 where none of them. */
EXPORT int llamafarm_level(void) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  int three = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
              __builtin_cpu_supports("bmi2");
  int four = three && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
  return four && __builtin_cpu_supports("avx512bf16") ? 5 : four ? 4 : three ? 3 : 0;
#else
  return 8;
#endif
}

static Parallel parallel; /* GOMP_parallel of the library that PyTorch has loaded; without it there is one thread */

EXPORT void llamafarm_use_threads(void *gomp_parallel) { parallel = (Parallel)gomp_parallel; }

typedef struct {
  Work work;
  const void *of;
  size parts, next;
} Shared;

static void body(void *data) {
  Shared *shared = data;
  for (;;) {
    size part = __atomic_fetch_add(&shared->next, 1, __ATOMIC_RELAXED);
    if (part >= shared->parts) return;
    shared->work(shared->of, part);
  }
}

void llamafarm_share(Work work, const void *of, size parts, int threads) {
  Shared shared = {work, of, parts, 0};
  if (parts < threads) threads = (int)parts;
  if (threads > 1 && parallel)
    parallel(body, &shared, (unsigned)threads, 0);
  else
    body(&shared);
}

float *llamafarm_scratch(size count) {
  static _Thread_local float *memory;
  static _Thread_local size has;
  if (count > has) {
    void *found = NULL;
    free(memory);
    has = posix_memalign(&found, 64, (size_t)count * sizeof(float)) ? 0 : count;
    memory = has ? found : NULL;
  }
  return memory;
}
