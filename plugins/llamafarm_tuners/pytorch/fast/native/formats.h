/* Includes TEXT once for each format of a product's two sides, whose sums are float32: `float`, and `half`, bfloat16,
   where the processor multiplies pairs of it (AVX512_BF16).

   TEXT counts in units of 32 bits: one float, or two neighbours in bfloat16, which one instruction multiplies with two
   others and adds to a float. UNIT is how many numbers one has; MADD(sum, x, y) does that for a vector of units;
   `keep` stores a vector in the format. */

typedef uint32_t bits_at __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

#define NAMED(name) FORMATTED(name, FORMAT)
#define FORMATTED(name, format) FORMATTED_(name, format)
#define FORMATTED_(name, format) name##_##format

#define FORMAT float
#define UNIT 1
#define TARGET
#define MADD(sum, x, y) ((sum) + (vec)(x) * (vec)(y))
INLINE void keep_float(void *to, size at, vec x) { store(to, at, 0, x); }
#include TEXT
#undef FORMAT
#undef UNIT
#undef TARGET
#undef MADD

#if defined(__AVX512F__)
#define PAIRS __builtin_cpu_supports("avx512bf16")
#define FORMAT half
#define UNIT 2
#define TARGET __attribute__((target("avx512bf16")))
#define MADD(sum, x, y) ((vec)_mm512_dpbf16_ps((__m512)(sum), (__m512bh)(x), (__m512bh)(y)))
TARGET INLINE halves nearest(vec x) { return (halves)_mm512_cvtneps_pbh((__m512)x); }
TARGET INLINE void keep_half(void *to, size at, vec x) { *(halves_at *)((uint16_t *)to + at) = nearest(x); }
#include TEXT
#define CHOOSE(name, half) ((half) ? name##_half : name##_float)
#else
#define PAIRS 0
#define CHOOSE(name, half) name##_float
#endif
