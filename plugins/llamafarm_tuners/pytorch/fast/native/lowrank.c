/* An adapter's products: x A' and g B, what they add to y and to the gradient of x, and the gradients of A and B. One side
   of each is as narrow as the adapter's rank, for which general libraries are not made. Arithmetic is in float32; in
   bfloat16 where the processor multiplies pairs of it (AVX512_BF16). No result depends on the number of threads. */

#include "vector.h"

#define ROWS 8 /* of many that are multiplied at a time */
#define PART 64 /* rows that are one part of the work; a multiple of ROWS */
#define WIDE 256 /* columns that are one part of `across` */
#define MOST 64 /* ranks: WIDEST_RANK in _low.py */
#define SPAN 512 /* units of a row of which dropped ones are left out at a time: eight rows fit into the first cache */
#define DEEP 64 /* units of rows that are packed at a time: with 2 vectors each, they fit into the first cache */

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

#if defined(__AVX512BF16__)
INLINE bits kept_half(bits x, const uint8_t *mask, size at) {
  uint32_t word;
  memcpy(&word, mask + at / 8, 4);
  return (bits)_mm512_maskz_mov_epi16((__mmask32)word, (__m512i)x);
}
#endif

#define TEXT "lowrank.h"
#include "formats.h"

EXPORT void NAME(down)(const Narrow *of) {
  CHOOSE(pack_down, of->half)(of);
  llamafarm_share(CHOOSE(down, of->half), of, (of->rows + PART - 1) / PART, of->threads);
}

EXPORT void NAME(up)(const Narrow *of) {
  CHOOSE(pack_up, of->half)(of);
  llamafarm_share(CHOOSE(up, of->half), of, (of->rows + PART - 1) / PART, of->threads);
}

EXPORT void NAME(across)(const Narrow *of) {
  CHOOSE(pack_across, of->half)(of);
  llamafarm_share(CHOOSE(across, of->half), of, (of->wide + WIDE - 1) / WIDE, of->threads);
}
