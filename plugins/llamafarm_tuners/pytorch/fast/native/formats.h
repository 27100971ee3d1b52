/* Includes TEXT once for each format of a product's two sides, whose sums are float32: `float`, and `half`, bfloat16,
   where the processor multiplies pairs of it (AVX512_BF16).

   TEXT counts in units of 32 bits: one float, or two neighbours in bfloat16, which one instruction multiplies with two
   others and adds to a float. UNIT is how many numbers one has; MADD(sum, x, y) does that for a vector of units. */

#define NAMED(name) FORMATTED(name, FORMAT)
#define FORMATTED(name, format) FORMATTED_(name, format)
#define FORMATTED_(name, format) name##_##format

#define FORMAT float
#define UNIT 1
#define MADD(sum, x, y) ((sum) + (vec)(x) * (vec)(y))
#include TEXT
#undef FORMAT
#undef UNIT
#undef MADD

#if defined(__AVX512BF16__)
#define FORMAT half
#define UNIT 2
#define MADD(sum, x, y) ((vec)_mm512_dpbf16_ps((__m512)(sum), (__m512bh)(x), (__m512bh)(y)))
#include TEXT
#define CHOOSE(name, half) ((half) ? name##_half : name##_float)
#else
#define CHOOSE(name, half) name##_float
#endif
