/* Causal attention within documents, from q, k, v as a layer's product leaves them: heads are normed and turned by their
   position while they are read, and their gradients turned back while they are written. The formulas are those of
   _attend.py. Products of bfloat16 are made of pairs of it where the processor has them, weights among them rounded to
   it, as are the gradients of scores; sums, exponentials and all else are float32.

   One part of the work is one key head of one document, with all query heads that share it; so each gradient is
   written by one thread, and nothing depends on how many there are. Some queries at a time are multiplied with the
   keys up to the last of them. */

#include "vector.h"

/* Where the heads of q, k or v (or of their gradients) are, in numbers. */
typedef struct {
  void *data;
  int64_t head, token;
  int32_t half;
} Place;

typedef struct {
  Place q, k, v, out, of_q, of_k, of_v;
  float *totals;          /* (heads, tokens): log of the sum of exponentials of a row of scores */
  const float *cos, *sin; /* (tokens, pairs) */
  const float *q_weight, *k_weight; /* of norms over heads; NULL: there are none */
  const int64_t *bounds;  /* of documents: one more than there are */
  int64_t documents, heads, keys, size, wide, pairs, tokens; /* wide: of a head of v */
  float scale, q_eps, k_eps;
  int32_t weight_half, threads;
  int32_t refused; /* becomes 1 if there was no memory to work in */
} Attention;

/* Heads that are read. */
typedef struct {
  const Place *place;
  const float *weight;
  float eps;
  size count;  /* of numbers */
  int turned;  /* by the position */
} Heads;

static size up(size count, size unit) { return (count + unit - 1) / unit * unit; }

static Heads queries_of(const Attention *of) { return (Heads){&of->q, of->q_weight, of->q_eps, of->size, 1}; }
static Heads keys_of(const Attention *of) { return (Heads){&of->k, of->k_weight, of->k_eps, of->size, 1}; }
static Heads values_of(const Attention *of) { return (Heads){&of->v, NULL, 0, of->wide, 0}; }
static Heads results_of(const Attention *of) { return (Heads){&of->out, NULL, 0, of->wide, 0}; }

INLINE void *row_of(const Place *place, size head, size token) {
  size at = head * place->head + token * place->token;
  return place->half ? (void *)((uint16_t *)place->data + at) : (void *)((float *)place->data + at);
}

INLINE void fetch_head(const Heads *heads, size head, size token) {
  const char *from = row_of(heads->place, head, token);
  size bytes = heads->count * (heads->place->half ? 2 : 4);
  for (size i = 0; i < bytes; i += 64) __builtin_prefetch(from + i);
}

/* x scale, the first `pairs` pairs (i, i + pairs) turned by the angles of the token; sign -1 turns back. */
INLINE void turned(const Attention *of, size count, size pairs, size token, float sign, const void *x, const int x_half,
                   float scale, void *to, const int to_half) {
  const float *cos = of->cos + token * pairs, *sin = of->sin + token * pairs;
  for (size i = 0; i < pairs; i += LANES) {
    size left = pairs - i;
    vec first = take(x, i, x_half, left, 0) * scale, second = take(x, i + pairs, x_half, left, 0) * scale;
    vec c = take(cos, i, 0, left, 0), s = take(sin, i, 0, left, 0) * sign;
    put(to, i, to_half, left, first * c - second * s);
    put(to, i + pairs, to_half, left, second * c + first * s);
  }
  for (size i = 2 * pairs; i < count; i += LANES)
    put(to, i, to_half, count - i, take(x, i, x_half, count - i, 0) * scale);
}

INLINE float factor_of(const float *x, size count, float eps) {
  vec sum = all(0);
  for (size i = 0; i < count; i += LANES) {
    vec part = take(x, i, 0, count - i, 0);
    sum += part * part;
  }
  return 1.0f / sqrtf(sum_of(sum) / (float)count + eps);
}

/* One head as it enters the products. */
static void read_head(const Attention *of, const Heads *heads, size head, size token, float *to) {
  const void *from = row_of(heads->place, head, token);
  size count = heads->count, pairs = heads->turned ? of->pairs : 0;
  int half = heads->place->half;
  if (heads->weight) {
    if (half)
      turned(of, count, 0, token, 1, from, 1, 1, to, 0);
    else
      turned(of, count, 0, token, 1, from, 0, 1, to, 0);
    float factor = factor_of(to, count, heads->eps);
    for (size i = 0; i < count; i += LANES) {
      vec x = take(to, i, 0, count - i, 0) * factor, w = take(heads->weight, i, 0, count - i, 0);
      x = of->weight_half ? rounded(rounded(x) * w) : x * w;
      put(to, i, 0, count - i, half ? rounded(x) : x);
    }
    from = to, half = 0;
  }
  if (half)
    turned(of, count, pairs, token, 1, from, 1, 1, to, 0);
  else
    turned(of, count, pairs, token, 1, from, 0, 1, to, 0);
}

/* The way back: the gradient in `x` (which is lost) of what read_head gave, times `scale`, goes where `to` says. */
static void write_head(const Attention *of, const Heads *heads, const Place *to, size head, size token, float *x,
                       float scale) {
  size count = heads->count, pairs = heads->turned ? of->pairs : 0;
  if (heads->weight) {
    const float *weight = heads->weight;
    float raw[count];
    turned(of, count, pairs, token, -1, x, 0, 1, x, 0);
    turned(of, count, 0, token, 1, row_of(heads->place, head, token), heads->place->half, 1, raw, 0);
    float factor = factor_of(raw, count, heads->eps), sum = 0;
    for (size i = 0; i < count; i++) {
      x[i] *= weight[i];
      raw[i] *= factor;
      sum += x[i] * raw[i];
    }
    float mean = sum / (float)count;
    for (size i = 0; i < count; i++) x[i] = (x[i] - raw[i] * mean) * factor;
    pairs = 0;
  }
  if (to->half)
    turned(of, count, pairs, token, -1, x, 0, scale, row_of(to, head, token), 1);
  else
    turned(of, count, pairs, token, -1, x, 0, scale, row_of(to, head, token), 0);
}

static float *next(float **memory, size count) {
  float *here = *memory;
  *memory += up(count, 16);
  return here;
}

/* Numbers from `seen` on are no scores. */
INLINE vec until(size seen, vec x, float fill) {
  ints lanes;
  for (int i = 0; i < LANES; i++) lanes[i] = i;
  return pick(lanes < (int32_t)seen, x, all(fill));
}

/* A square of LANES rows and columns with rows and columns exchanged; `broad` columns of `tall` rows, zeros in the rest. */
#if defined(__AVX512F__)
INLINE void turn_over(const uint32_t *from, size from_row, size tall, uint32_t *to, size to_row, size broad) {
  __m512i rows[16], lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  __mmask16 columns = (__mmask16)((1u << broad) - 1);
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++)
    rows[i] = i < tall ? _mm512_maskz_loadu_epi32(columns, from + i * from_row) : _mm512_setzero_si512();
#pragma GCC unroll 4
  for (int half = 8; half; half /= 2) { /* exchange quarters of squares, of halves of them, and so on */
    __m512i bit = _mm512_set1_epi32(half);
    __mmask16 right = _mm512_test_epi32_mask(lane, bit);
    __m512i first = _mm512_mask_add_epi32(lane, right, lane, _mm512_set1_epi32(16 - half));
    __m512i second = _mm512_mask_add_epi32(_mm512_add_epi32(lane, bit), right, lane, _mm512_set1_epi32(16));
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
      if (!(i & half)) {
        __m512i upper = rows[i], lower = rows[i + half];
        rows[i] = _mm512_permutex2var_epi32(upper, first, lower);
        rows[i + half] = _mm512_permutex2var_epi32(upper, second, lower);
      }
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++)
    if (i < broad) _mm512_storeu_si512(to + i * to_row, rows[i]);
}
#else
INLINE void turn_over(const uint32_t *from, size from_row, size tall, uint32_t *to, size to_row, size broad) {
  for (size row = 0; row < tall; row++)
    for (size column = 0; column < broad; column++) to[column * to_row + row] = from[row * from_row + column];
}
#endif

#define TEXT "attention.h"
#include "formats.h"

/* `out` is its gradient on the way back. */
EXPORT void NAME(attend)(const Attention *of) {
  llamafarm_share(CHOOSE(forward, of->q.half && PAIRS), of, of->documents * of->keys, of->threads);
}

EXPORT void NAME(attend_back)(const Attention *of) {
  llamafarm_share(CHOOSE(backward, of->q.half && PAIRS), of, of->documents * of->keys, of->threads);
}
