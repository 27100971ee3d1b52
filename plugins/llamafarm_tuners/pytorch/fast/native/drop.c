/* Dropout: which entries of rows are kept, as one bit each, and what is left of rows.

   Bits stand row by row without gaps, the first entry's in the lowest bit of the first byte; rows of a multiple of 32
   entries begin with a byte of their own. */

#include "vector.h"

#define STATE 624 /* words of the generator's state */
#define LAG 397
#define TURN 5 /* states that are kept one after the other: they fit into the first cache */
#define TOGETHER 16384 /* numbers that are one part of the work, about */

typedef uint64_t pairs __attribute__((vector_size(LANES * 4)));
typedef int64_t truths __attribute__((vector_size(LANES * 4)));

/* The state of PyTorch's generator on a CPU, as its `get_state` gives it. */
typedef struct {
  uint64_t seed;
  int32_t left, seeded; /* left: words that are not used yet, and one */
  uint64_t next, words[STATE];
} Generator;

/* Of a Mersenne twister (MT19937: Matsumoto and Nishimura, https://doi.org/10.1145/272991.272995) the words are one
   sequence, of which each follows from those STATE, STATE - 1 and STATE - LAG before it: many of them at once. */
INLINE void next_state(uint32_t *next) {
  for (size i = 0; i < STATE; i += LANES, next += LANES) {
    bits one = *(const bits_at *)(next - STATE), after = *(const bits_at *)(next - STATE + 1);
    bits y = (one & 0x80000000) | (after & 0x7fffffff);
    *(bits_at *)next = *(const bits_at *)(next - STATE + LAG) ^ (y >> 1) ^ (-(y & 1) & 0x9908b0df);
  }
}

INLINE bits tempered(bits y) {
  y ^= y >> 11;
  y ^= (y << 7) & 0x9d2c5680;
  y ^= (y << 15) & 0xefc60000;
  return y ^ (y >> 18);
}

/* One bit for each lane. */
INLINE uint32_t lanes_of(truths where) {
#if defined(__AVX512F__)
  return _mm512_movepi64_mask((__m512i)where);
#elif defined(__AVX2__)
  return (uint32_t)_mm256_movemask_pd((__m256d)where);
#else
  uint32_t found = 0;
  for (int i = 0; i < LANES / 2; i++) found |= (uint32_t)(where[i] & 1) << i;
  return found;
#endif
}

/* `count` times whether the next number of a generator is below `share`, as PyTorch's `bernoulli_` asks it; a multiple of
   8. A number is 53 bits of two words, the first of which is the higher, and counts as a fraction of 2^53. */
EXPORT void NAME(draw)(Generator *generator, size count, double share, uint8_t *out) {
  uint32_t words[(TURN + 1) * STATE];
  size at = STATE + 1 - generator->left, filled = STATE;
  truths below = (int64_t)ceil(share * 9007199254740992.0) - (truths){0};
  if (count == 0 || at < 1 || at > STATE) return;
  for (size i = 0; i < STATE; i++) words[i] = (uint32_t)generator->words[i];
  for (size done = 0; done < count; done += 8, at += 16) {
    while (at + 16 > filled) {
      if (filled == (TURN + 1) * STATE) {
        memcpy(words, words + TURN * STATE, STATE * sizeof *words);
        filled = STATE;
        at -= TURN * STATE;
      }
      next_state(words + filled);
      filled += STATE;
    }
    uint32_t eight = 0;
    for (size i = 0; i < 16; i += LANES) {
      pairs two = (pairs)tempered(*(const bits_at *)(words + at + i));
      truths number = (truths)((two >> 32 | two << 32) & 0x1fffffffffffff);
      eight |= lanes_of(number < below) << (i / 2);
    }
    *out++ = (uint8_t)eight;
  }
  const uint32_t *last = words + filled - STATE;
  for (size i = 0; i < STATE; i++) generator->words[i] = last[i];
  generator->next = (uint64_t)(at - (filled - STATE));
  generator->left = (int32_t)(STATE + 1 - (at - (filled - STATE)));
}

/* Bits of `count` bytes, each of which is 0 or 1; a multiple of 8. */
EXPORT void NAME(pack)(const uint8_t *given, size count, uint8_t *out) {
  for (size i = 0; i < count; i += 8) {
    uint64_t eight;
    memcpy(&eight, given + i, 8);
    out[i / 8] = (uint8_t)((eight * 0x0102040810204080) >> 56);
  }
}

typedef struct {
  const void *x;
  const uint8_t *mask;
  void *y;
  size rows, columns, each;
  int add;
} Drop;

INLINE void kept_row(const Drop *of, size row, int half) {
  size first = row * of->columns;
  for (size i = first; i < first + of->columns; i += LANES) {
    vec x = kept(load(of->x, i, half), of->mask, i);
    store(of->y, i, half, of->add ? load(of->y, i, half) + x : x);
  }
}

static void kept_half(const void *given, size part) {
  const Drop *of = given;
  for (size i = part * of->each; i < of->rows && i < (part + 1) * of->each; i++) kept_row(of, i, 1);
}

static void kept_whole(const void *given, size part) {
  const Drop *of = given;
  for (size i = part * of->each; i < of->rows && i < (part + 1) * of->each; i++) kept_row(of, i, 0);
}

/* x where its bits are set, and 0 elsewhere: into y, or added to it. Rows are a multiple of 32. */
EXPORT void NAME(kept)(const void *x, const uint8_t *mask, int half, size rows, size columns, void *y, int add,
                       int threads) {
  Drop of = {x, mask, y, rows, columns, TOGETHER / columns + 1, add};
  llamafarm_share(half ? kept_half : kept_whole, &of, (rows + of.each - 1) / of.each, threads);
}
