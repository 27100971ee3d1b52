/* Vectors of floats as wide as the processor's registers, from and to float32 and bfloat16, and what is computed on them.

   Everything is written with GCC's and clang's vector extensions, so that one text serves all processors. The file is
   compiled once for each level of instructions (see build.py); LEVEL names it, and NAME() tells the functions apart. */

#ifndef LLAMAFARM_VECTOR_H
#define LLAMAFARM_VECTOR_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

#define INLINE static inline __attribute__((always_inline))
#define JOIN_(name, level) llamafarm_##name##_##level
#define JOIN(name, level) JOIN_(name, level)
#define NAME(name) JOIN(name, LEVEL)
#define EXPORT __attribute__((visibility("default")))

typedef ptrdiff_t size;
typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t bits __attribute__((vector_size(LANES * 4)));
typedef uint16_t halves __attribute__((vector_size(LANES * 2)));
typedef float vec_at __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint32_t bits_at __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint16_t halves_at __attribute__((vector_size(LANES * 2), aligned(2), may_alias));

INLINE vec all(float x) { return x - (vec){0}; }

INLINE vec pick(ints where, vec yes, vec no) { return (vec)((where & (ints)yes) | (~where & (ints)no)); }

/* larger: a NaN in x is passed over. at_most, at_least: NaN stays NaN (of x86's instructions, the second operand is the
   result wherever one is NaN). */
#if defined(__AVX512F__)
INLINE vec larger(vec x, vec most) { return (vec)_mm512_max_ps((__m512)x, (__m512)most); }
INLINE vec at_most(vec x, float most) { return (vec)_mm512_min_ps(_mm512_set1_ps(most), (__m512)x); }
INLINE vec at_least(vec x, float least) { return (vec)_mm512_max_ps(_mm512_set1_ps(least), (__m512)x); }
INLINE bits widened(halves x) { return (bits)_mm512_cvtepu16_epi32((__m256i)x); }
INLINE halves narrowed(bits x) { return (halves)_mm512_cvtepi32_epi16((__m512i)x); }
#else
#if defined(__AVX2__)
INLINE vec larger(vec x, vec most) { return (vec)_mm256_max_ps((__m256)x, (__m256)most); }
INLINE vec at_most(vec x, float most) { return (vec)_mm256_min_ps(_mm256_set1_ps(most), (__m256)x); }
INLINE vec at_least(vec x, float least) { return (vec)_mm256_max_ps(_mm256_set1_ps(least), (__m256)x); }
#else
INLINE vec larger(vec x, vec most) { return pick(x > most, x, most); }
INLINE vec at_most(vec x, float most) { return pick(x > all(most), all(most), x); }
INLINE vec at_least(vec x, float least) { return pick(x < all(least), all(least), x); }
#endif
INLINE bits widened(halves x) { return __builtin_convertvector(x, bits); }
INLINE halves narrowed(bits x) { return __builtin_convertvector(x, halves); }
#endif

/* To bfloat16, to nearest, ties to even; NaN stays NaN. */
#if defined(__AVX512BF16__)
INLINE halves to_half(vec x) { return (halves)_mm512_cvtneps_pbh((__m512)x); }
#else
INLINE halves to_half(vec x) {
  bits b = (bits)x;
  bits nearest = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
  ints nan = x != x;
  return narrowed(((bits)nan & 0x7fc0) | (~(bits)nan & nearest));
}
#endif

INLINE vec from_half(halves x) { return (vec)(widened(x) << 16); }

INLINE vec rounded(vec x) { return from_half(to_half(x)); }

INLINE float one_from_half(uint16_t x) {
  uint32_t wide = (uint32_t)x << 16;
  float result;
  memcpy(&result, &wide, 4);
  return result;
}

INLINE vec load(const void *from, size at, int half) {
  if (half) return from_half(*(const halves_at *)((const uint16_t *)from + at));
  return *(const vec_at *)((const float *)from + at);
}

INLINE void store(void *to, size at, int half, vec x) {
  if (half)
    *(halves_at *)((uint16_t *)to + at) = to_half(x);
  else
    *(vec_at *)((float *)to + at) = x;
}

/* The first `count` of a vector; `fill` in the rest. */
INLINE vec load_some(const void *from, size at, int half, size count, float fill) {
  float parts[LANES];
  for (size i = 0; i < LANES; i++) {
    parts[i] = fill;
    if (i < count) parts[i] = half ? one_from_half(((const uint16_t *)from)[at + i]) : ((const float *)from)[at + i];
  }
  return *(const vec_at *)parts;
}

INLINE void store_some(void *to, size at, int half, size count, vec x) {
  if (half) {
    uint16_t parts[LANES];
    store(parts, 0, 1, x);
    memcpy((uint16_t *)to + at, parts, (size_t)count * 2);
  } else {
    memcpy((float *)to + at, &x, (size_t)count * 4);
  }
}

INLINE vec take(const void *from, size at, int half, size left, float fill) {
  return left >= LANES ? load(from, at, half) : load_some(from, at, half, left, fill);
}

INLINE void put(void *to, size at, int half, size left, vec x) {
  if (left >= LANES)
    store(to, at, half, x);
  else
    store_some(to, at, half, left, x);
}

INLINE float sum_of(vec x) {
  float total = 0;
  for (int width = LANES / 2; width >= 1; width /= 2)
    for (int i = 0; i < width; i++) x[i] += x[i + width];
  total = x[0];
  return total;
}

INLINE float largest_of(vec x) {
  float most = x[0];
  for (int i = 1; i < LANES; i++) most = x[i] > most ? x[i] : most;
  return most;
}

/* Where the bits of a mask are set x, else 0. The mask's lowest bit is that of entry 0; `at`, a multiple of LANES, is
   the first entry's. */
INLINE vec kept(vec x, const uint8_t *mask, size at) {
  uint32_t word = 0;
  memcpy(&word, mask + at / 8, (LANES + 7) / 8);
#if defined(__AVX512F__)
  return (vec)_mm512_maskz_mov_ps((__mmask16)word, (__m512)x);
#else
  bits one;
  for (int i = 0; i < LANES; i++) one[i] = 1u << i;
  return (vec)((bits)x & (bits)((((word >> at % 8) - (bits){0}) & one) == one));
#endif
}

/* exp(x) for x up to 88 (more is taken as 88); below -87 it is 0; NaN stays NaN. The largest error over all
   float32 in between is below one unit in the last place (1.2 on processors without fused multiplication).

   With n the integer nearest to x / log 2, exp(x) = 2^n exp(r), |r| <= log(2) / 2, and exp(r) by its series to r^7. */
INLINE vec exponential(vec x) {
  ints tiny = x < all(-87.0f);
  x = at_least(at_most(x, 88.0f), -87.0f);
  vec shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: its last bits are the integer */
  vec n = shifted - 12582912.0f;
  vec r = x - n * 0.693145752f; /* log 2 in two parts, the first with zeros at its end */
  r = r - n * 1.42860677e-6f;
  vec y = all(1.0f / 5040);
  y = y * r + 1.0f / 720;
  y = y * r + 1.0f / 120;
  y = y * r + 1.0f / 24;
  y = y * r + 1.0f / 6;
  y = y * r + 0.5f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  vec power = (vec)(((ints)shifted + 127) << 23);
  y = y * power;
  return pick(tiny, all(0), y);
}

/* Work in parts: `work(of, part)` for each of `parts`, on up to `threads` threads; no part knows which thread it is on. */
typedef void (*Work)(const void *of, size part);
void llamafarm_share(Work work, const void *of, size parts, int threads);

/* Memory of this thread that is used again; NULL where the system gives none. */
float *llamafarm_scratch(size count);

#endif
