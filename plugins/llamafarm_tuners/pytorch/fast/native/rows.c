/* What is computed row by row: softmax with the loss, RMSNorm, gated activations. All arithmetic is in float32; rows
   are float32 or, where `half` says so, bfloat16. */

#include "vector.h"

#define TOGETHER 16384 /* numbers that are one part of the work, about */

static size rows_of(size rows, size columns) {
  size each = TOGETHER / (columns > 0 ? columns : 1);
  if (each < 1) each = 1;
  return each < rows ? each : (rows > 0 ? rows : 1);
}

#define RUN(function, of, half, rows, each, threads) \
  llamafarm_share((half) ? function##_half : function##_whole, of, ((rows) + (each)-1) / (each), threads)

/* softmax(row) - onehot(wanted) in place of the row, and the row's -log softmax(row)[wanted]. */

typedef struct {
  void *logits;
  size rows, columns, each;
  const int64_t *wanted;
  double *losses;
} Head;

INLINE void head_row(const Head *of, size row, int half) {
  size columns = of->columns, target = (size)of->wanted[row];
  void *x = half ? (void *)((uint16_t *)of->logits + row * columns) : (void *)((float *)of->logits + row * columns);
  vec most = all(-INFINITY), second = most;
  size i = 0;
  for (; i + 2 * LANES <= columns; i += 2 * LANES) {
    most = larger(load(x, i, half), most);
    second = larger(load(x, i + LANES, half), second);
  }
  for (; i < columns; i += LANES) most = larger(take(x, i, half, columns - i, -INFINITY), most);
  float top = largest_of(larger(most, second));
  vec sum = all(0), other = all(0);
  i = 0;
  for (; i + 2 * LANES <= columns; i += 2 * LANES) {
    sum += exponential(load(x, i, half) - top);
    other += exponential(load(x, i + LANES, half) - top);
  }
  for (; i < columns; i += LANES) sum += exponential(take(x, i, half, columns - i, -INFINITY) - top);
  float total = sum_of(sum + other);
  float own = half ? one_from_half(((uint16_t *)x)[target]) : ((float *)x)[target];
  of->losses[row] = log((double)total) - ((double)own - (double)top);
  float share = 1.0f / total;
  float error = exponential(all(own - top))[0] * share - 1.0f;
  i = 0;
  for (; i + LANES <= columns; i += LANES) store(x, i, half, exponential(load(x, i, half) - top) * share);
  for (; i < columns; i += LANES)
    store_some(x, i, half, columns - i, exponential(load_some(x, i, half, columns - i, 0) - top) * share);
  store_some(x, target, half, 1, all(error));
}

#define PARTS(name, type, row)                                                              \
  static void name##_half(const void *of, size part) {                                      \
    const type *it = of;                                                                    \
    for (size i = part * it->each; i < it->rows && i < (part + 1) * it->each; i++) row(it, i, 1); \
  }                                                                                         \
  static void name##_whole(const void *of, size part) {                                     \
    const type *it = of;                                                                    \
    for (size i = part * it->each; i < it->rows && i < (part + 1) * it->each; i++) row(it, i, 0); \
  }

PARTS(head, Head, head_row)

/* Returns 1, and does nothing, if some `wanted` is no column. */
EXPORT int NAME(head)(void *logits, int half, size rows, size columns, const int64_t *wanted, double *losses,
                      int threads) {
  for (size i = 0; i < rows; i++)
    if (wanted[i] < 0 || wanted[i] >= columns) return 1;
  Head of = {logits, rows, columns, rows_of(rows, columns), wanted, losses};
  RUN(head, &of, half, rows, of.each, threads);
  return 0;
}

/* RMSNorm: x * factor * weight, factor = 1 / sqrt(mean(x^2) + eps). A weight in bfloat16 (`weight_half`, though it is
   given in float32) multiplies in bfloat16. */

typedef struct {
  const void *x, *gradient;
  const float *weight;
  float *factors;
  void *out;
  size rows, columns, each;
  float eps;
  int weight_half, known;
} Norm;

INLINE const void *at(const void *x, size row, size columns, int half) {
  return half ? (const void *)((const uint16_t *)x + row * columns) : (const void *)((const float *)x + row * columns);
}

INLINE void norm_row(const Norm *of, size row, int half) {
  size columns = of->columns;
  const void *x = at(of->x, row, columns, half);
  void *out = (void *)at(of->out, row, columns, half);
  if (!of->known) {
    vec sum = all(0);
    for (size i = 0; i < columns; i += LANES) {
      vec part = take(x, i, half, columns - i, 0);
      sum += part * part;
    }
    of->factors[row] = 1.0f / sqrtf(sum_of(sum) / (float)columns + of->eps);
  }
  float factor = of->factors[row];
  for (size i = 0; i < columns; i += LANES) {
    vec normed = take(x, i, half, columns - i, 0) * factor, weight = take(of->weight, i, 0, columns - i, 0);
    put(out, i, half, columns - i, of->weight_half ? rounded(rounded(normed) * weight) : normed * weight);
  }
}

PARTS(norm, Norm, norm_row)

/* `known`: the factors are given. */
EXPORT void NAME(norm)(const void *x, int half, size rows, size columns, const float *weight, int weight_half,
                       float eps, int known, float *factors, void *out, int threads) {
  Norm of = {x, NULL, weight, factors, out, rows, columns, rows_of(rows, columns), eps, weight_half, known};
  RUN(norm, &of, half, rows, of.each, threads);
}

/* With n = x * factor and h = gradient * weight: (h - n * mean(h n)) * factor. `out` may be `gradient`. */
INLINE void norm_back_row(const Norm *of, size row, int half) {
  size columns = of->columns;
  const void *x = at(of->x, row, columns, half), *gradient = at(of->gradient, row, columns, half);
  void *out = (void *)at(of->out, row, columns, half);
  float factor = of->factors[row];
  vec sum = all(0);
  for (size i = 0; i < columns; i += LANES) {
    vec inner = take(gradient, i, half, columns - i, 0) * take(of->weight, i, 0, columns - i, 0);
    sum += inner * (take(x, i, half, columns - i, 0) * factor);
  }
  float mean = sum_of(sum) / (float)columns;
  for (size i = 0; i < columns; i += LANES) {
    vec inner = take(gradient, i, half, columns - i, 0) * take(of->weight, i, 0, columns - i, 0);
    vec normed = take(x, i, half, columns - i, 0) * factor;
    put(out, i, half, columns - i, (inner - normed * mean) * factor);
  }
}

PARTS(norm_back, Norm, norm_back_row)

EXPORT void NAME(norm_back)(const void *x, const void *gradient, int half, size rows, size columns,
                            const float *weight, const float *factors, void *out, int threads) {
  Norm of = {x, gradient, weight, (float *)factors, out, rows, columns, rows_of(rows, columns), 0, 0, 1};
  RUN(norm_back, &of, half, rows, of.each, threads);
}

/* activation(gate) * up, gate and up side by side in a row. Both activations are x sigmoid(z(x)): z = x for SiLU, and
   for GELU with tanh z = 2 sqrt(2 / pi) (x + 0.044715 x^3), as 1 + tanh(u) = 2 sigmoid(2 u). */

typedef struct {
  const void *both, *gradient;
  void *out;
  size rows, columns, each;
  int gelu;
} Gated;

INLINE vec sigmoid(vec x) { return pick(x < all(-87.0f), all(0), 1.0f / (1.0f + exponential(-x))); }

INLINE void gated_row(const Gated *of, size row, int half) {
  size n = of->columns;
  const void *gate = at(of->both, 2 * row, n, half), *up = at(of->both, 2 * row + 1, n, half);
  void *out = (void *)at(of->out, row, n, half);
  for (size i = 0; i < n; i += LANES) {
    vec x = take(gate, i, half, n - i, 0);
    vec z = of->gelu ? 1.59576912f * (x + 0.044715f * x * x * x) : x;
    put(out, i, half, n - i, x * sigmoid(z) * take(up, i, half, n - i, 0));
  }
}

PARTS(gated, Gated, gated_row)

EXPORT void NAME(gated)(const void *both, int half, size rows, size columns, int gelu, void *out, int threads) {
  Gated of = {both, NULL, out, rows, columns, rows_of(rows, columns), gelu};
  RUN(gated, &of, half, rows, of.each, threads);
}

/* The gradients of gate and up, side by side, from that of the product. */
INLINE void gated_back_row(const Gated *of, size row, int half) {
  size n = of->columns;
  const void *gate = at(of->both, 2 * row, n, half), *up = at(of->both, 2 * row + 1, n, half);
  const void *gradient = at(of->gradient, row, n, half);
  void *of_gate = (void *)at(of->out, 2 * row, n, half), *of_up = (void *)at(of->out, 2 * row + 1, n, half);
  for (size i = 0; i < n; i += LANES) {
    vec x = take(gate, i, half, n - i, 0), g = take(gradient, i, half, n - i, 0);
    vec z = of->gelu ? 1.59576912f * (x + 0.044715f * x * x * x) : x;
    vec slope_z = of->gelu ? 1.59576912f * (1.0f + 0.134145f * x * x) : all(1.0f);
    vec share = sigmoid(z), active = x * share;
    vec slope = share + active * (1.0f - share) * slope_z;
    put(of_up, i, half, n - i, g * active);
    put(of_gate, i, half, n - i, g * take(up, i, half, n - i, 0) * slope);
  }
}

PARTS(gated_back, Gated, gated_back_row)

EXPORT void NAME(gated_back)(const void *both, const void *gradient, int half, size rows, size columns, int gelu,
                             void *out, int threads) {
  Gated of = {both, gradient, out, rows, columns, rows_of(rows, columns), gelu};
  RUN(gated_back, &of, half, rows, of.each, threads);
}
