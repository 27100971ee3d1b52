/* An adapter's products: x A' and g B, what they add to y and to the gradient of x, and the gradients of A and B. One side
   of each is as narrow as the adapter's rank, for which general libraries are not made. Arithmetic is in float32; in
   bfloat16 where the processor multiplies pairs of it (AVX512_BF16). No result depends on the number of threads. */

#include "vector.h"

#define PART 64 /* rows that are one part of the work; a multiple of ROWS */
#define WIDE 256 /* columns that are one part of `across` */
#define MOST 64 /* ranks: WIDEST_RANK in _low.py */
#define SPAN 512 /* units of a row of which dropped ones are left out at a time: eight rows fit into the first cache */
#define DEEP 64 /* units of rows that are packed at a time: with 2 vectors each, they fit into the first cache */

typedef uint32_t bits_at __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

/* `Narrow` in _kernels.py. The narrow matrix, or in `across` what takes its place: (rank, wide). The mask is one of wide
   rows, see drop.c; NULL: nothing is dropped. */
typedef struct {
  const void *x;
  void *y;
  const float *matrix;
  float *out;
  uint32_t *packed;
  const uint8_t *mask;
  int64_t rows, rank, wide, x_row, y_row, m_row, m_column;
  float scale;
  int32_t half, rest, threads;
} Narrow;

static inline uint32_t float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

static inline uint32_t one_to_half(float x) {
  uint32_t bits = float_bits(x);
  return x != x ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

/* Units of 32 bits, of one float or of two neighbours in bfloat16, of which dropped ones become 0. */
INLINE bits kept_float(bits x, const uint8_t *mask, size at) { return (bits)kept((vec)x, mask, at); }

#define FORMAT float
#define UNIT 1
#define TARGET
#define MADD(sum, x, y) ((sum) + (vec)(x) * (vec)(y))
INLINE void keep_float(void *to, size at, vec x) { store(to, at, 0, x); }
#include "lowrank.h"
#undef FORMAT
#undef UNIT
#undef TARGET
#undef MADD

#if defined(__AVX512F__)
#define PAIRS __builtin_cpu_supports("avx512bf16")
INLINE bits kept_half(bits x, const uint8_t *mask, size at) {
  uint32_t word;
  memcpy(&word, mask + at / 8, 4);
  return (bits)_mm512_maskz_mov_epi16((__mmask32)word, (__m512i)x);
}
#define FORMAT half
#define UNIT 2
#define TARGET __attribute__((target("avx512bf16")))
#define MADD(sum, x, y) ((vec)_mm512_dpbf16_ps((__m512)(sum), (__m512bh)(x), (__m512bh)(y)))
TARGET INLINE void keep_half(void *to, size at, vec x) {
  *(halves_at *)((uint16_t *)to + at) = (halves)_mm512_cvtneps_pbh((__m512)x);
}
#include "lowrank.h"
#define CHOOSE(name, of) ((of)->half ? name##_half : name##_float)
#else
#define PAIRS 0
#define CHOOSE(name, of) name##_float
#endif

/* Whether there are products of bfloat16. */
EXPORT int NAME(has_pairs)(void) { return PAIRS != 0; }

EXPORT void NAME(down)(const Narrow *of) {
  CHOOSE(pack_down, of)(of);
  llamafarm_share(CHOOSE(down, of), of, (of->rows + PART - 1) / PART, of->threads);
}

EXPORT void NAME(up)(const Narrow *of) {
  CHOOSE(pack_up, of)(of);
  llamafarm_share(CHOOSE(up, of), of, (of->rows + PART - 1) / PART, of->threads);
}

EXPORT void NAME(across)(const Narrow *of) {
  CHOOSE(pack_across, of)(of);
  llamafarm_share(CHOOSE(across, of), of, (of->wide + WIDE - 1) / WIDE, of->threads);
}
