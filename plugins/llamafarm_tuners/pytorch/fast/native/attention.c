/* Causal attention within documents, from q, k, v as a layer's product leaves them: heads are normed, turned by their
   position and scaled while they are read, and their gradients turned back while they are written. The formulas are
   those of _attend.py.

   One part of the work is one key head of one document, with all query heads that share it; so each gradient is
   written by one thread, and nothing depends on how many there are. Some queries at a time are multiplied with the
   keys up to the last of them. Products are of ROWS rows with up to COLUMNS vectors. */

#include "vector.h"

#define ROWS 6
#define COLUMNS (LANES == 8 ? 2 : 4)
#define PANEL (COLUMNS * LANES)
#define SCORES 65536 /* scores at a time, about: with their gradients they fit into the second cache */
#define MOST_ROWS 96

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

static size up(size count, size unit) { return (count + unit - 1) / unit * unit; }

INLINE void *row_of(const Place *place, size head, size token) {
  size at = head * place->head + token * place->token;
  return place->half ? (void *)((uint16_t *)place->data + at) : (void *)((float *)place->data + at);
}

INLINE void copy_in(const void *from, int half, size count, float *to) {
  for (size i = 0; i < count; i += LANES) put(to, i, 0, count - i, take(from, i, half, count - i, 0));
}

/* Turn the pairs (i, i + pairs) by the angles of the token; sign -1 turns back. */
INLINE void turn(float *x, const Attention *of, size token, float sign) {
  size pairs = of->pairs, i = 0;
  const float *cos = of->cos + token * pairs, *sin = of->sin + token * pairs;
  for (; i + LANES <= pairs; i += LANES) {
    vec first = load(x, i, 0), second = load(x, i + pairs, 0), c = load(cos, i, 0), s = load(sin, i, 0) * sign;
    store(x, i, 0, first * c - second * s);
    store(x, i + pairs, 0, second * c + first * s);
  }
  for (; i < pairs; i++) {
    float first = x[i], second = x[i + pairs], s = sin[i] * sign;
    x[i] = first * cos[i] - second * s;
    x[i + pairs] = second * cos[i] + first * s;
  }
}

INLINE float factor_of(const float *x, size count, float eps) {
  vec sum = all(0);
  for (size i = 0; i < count; i += LANES) {
    vec part = take(x, i, 0, count - i, 0);
    sum += part * part;
  }
  return 1.0f / sqrtf(sum_of(sum) / (float)count + eps);
}

/* One head of q or k as it enters the scores, but for their scale. */
static void read_head(const Attention *of, const Place *place, const float *weight, float eps, size head, size token,
                      float *to) {
  size count = of->size;
  if (place->half)
    copy_in(row_of(place, head, token), 1, count, to);
  else
    copy_in(row_of(place, head, token), 0, count, to);
  if (weight) {
    float factor = factor_of(to, count, eps);
    for (size i = 0; i < count; i += LANES) {
      vec x = take(to, i, 0, count - i, 0) * factor, w = take(weight, i, 0, count - i, 0);
      x = of->weight_half ? rounded(rounded(x) * w) : x * w;
      put(to, i, 0, count - i, place->half ? rounded(x) : x);
    }
  }
  turn(to, of, token, 1.0f);
}

/* The way back: the gradient in `x` (which is lost) of what read_head gave, times `scale`, goes where `to` says. */
static void write_head(const Attention *of, const Place *from, const Place *to, const float *weight, float eps,
                       size head, size token, float *x, float scale) {
  size count = of->size;
  turn(x, of, token, -1.0f);
  if (weight) {
    float raw[count];
    if (from->half)
      copy_in(row_of(from, head, token), 1, count, raw);
    else
      copy_in(row_of(from, head, token), 0, count, raw);
    float factor = factor_of(raw, count, eps), sum = 0;
    for (size i = 0; i < count; i++) {
      x[i] *= weight[i];
      raw[i] *= factor;
      sum += x[i] * raw[i];
    }
    float mean = sum / (float)count;
    for (size i = 0; i < count; i++) x[i] = (x[i] - raw[i] * mean) * factor;
  }
  void *row = row_of(to, head, token);
  for (size i = 0; i < count; i += LANES) {
    vec part = take(x, i, 0, count - i, 0) * scale;
    if (to->half)
      put(row, i, 1, count - i, part);
    else
      put(row, i, 0, count - i, part);
  }
}

/* c (ROWS, vectors) = a b, or more by it. An entry of a is a[row * a_row + step * a_step]. */
INLINE void tile(int vectors, size depth, const float *a, size a_row, size a_step, const float *b, size b_step,
                 float *c, size c_row, int add) {
  vec sums[ROWS][4];
#pragma GCC unroll 6
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) sums[r][v] = add ? load(c + r * c_row, v * LANES, 0) : all(0);
  for (size step = 0; step < depth; step++) {
    vec right[4];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) right[v] = load(b + step * b_step, v * LANES, 0);
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++) {
      float left = a[r * a_row + step * a_step];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; v++) sums[r][v] += left * right[v];
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) store(c + r * c_row, v * LANES, 0, sums[r][v]);
}

/* ROWS rows of a product with `columns` (a multiple of LANES) columns; b in panels of PANEL columns. */
static void product(size columns, size depth, const float *a, size a_row, size a_step, const float *b, size b_step,
                    size b_panel, float *c, size c_row, int add) {
  for (; columns > 0; columns -= PANEL, b += b_panel, c += PANEL) {
    size vectors = columns < PANEL ? columns / LANES : COLUMNS;
    if (vectors == 4)
      tile(4, depth, a, a_row, a_step, b, b_step, c, c_row, add);
    else if (vectors == 3)
      tile(3, depth, a, a_row, a_step, b, b_step, c, c_row, add);
    else if (vectors == 2)
      tile(2, depth, a, a_row, a_step, b, b_step, c, c_row, add);
    else
      tile(1, depth, a, a_row, a_step, b, b_step, c, c_row, add);
  }
}

/* What one part of the work has at hand; rows of k and v are filled up with zeros. */
typedef struct {
  size head, start, length, share;       /* key head; first token and number of tokens; query heads of the key head */
  size size, wide, filled, columns, rows; /* of a row of k, of v; tokens, and of a row of scores; queries at a time */
  float *k, *v, *k_across, *v_across, *q, *given, *scores, *of_scores, *of_k, *of_v, *result;
} Piece;

static float *next(float **memory, size count) {
  float *here = *memory;
  *memory += up(count, 16);
  return here;
}

static Piece piece_of(const Attention *of, size part, int back) {
  size document = part / of->keys;
  Piece p = {.head = part % of->keys, .start = of->bounds[document], .share = of->heads / of->keys};
  p.length = of->bounds[document + 1] - p.start;
  p.size = up(of->size, LANES);
  p.wide = up(of->wide, LANES);
  p.filled = up(p.length, ROWS);
  p.columns = up(p.length, PANEL) + 16; /* beside a power of two, rows would push one another out of the cache */
  p.rows = SCORES / p.columns / ROWS * ROWS;
  p.rows = p.rows < 2 * ROWS ? 2 * ROWS : p.rows > MOST_ROWS ? MOST_ROWS : p.rows;
  if (p.rows > p.filled) p.rows = p.filled;
  size across = up(p.length, PANEL), widest = p.size > p.wide ? p.size : p.wide;
  size many = p.filled * (p.size + p.wide) * (back ? 2 : 1) + across * (p.size + (back ? p.wide : 0)) +
              p.rows * (p.size + (back ? p.wide : 0) + p.columns * (back ? 2 : 1) + widest) + 16 * 16;
  float *memory = llamafarm_scratch(many);
  if (!memory) {
    __atomic_store_n(&((Attention *)of)->refused, 1, __ATOMIC_RELAXED);
    p.length = 0;
    return p;
  }
  p.k = next(&memory, p.filled * p.size);
  p.v = next(&memory, p.filled * p.wide);
  p.k_across = next(&memory, across * p.size);
  p.q = next(&memory, p.rows * p.size);
  p.scores = next(&memory, p.rows * p.columns);
  p.result = next(&memory, p.rows * widest);
  if (back) {
    p.v_across = next(&memory, across * p.wide);
    p.given = next(&memory, p.rows * p.wide);
    p.of_scores = next(&memory, p.rows * p.columns);
    p.of_k = next(&memory, p.filled * p.size);
    p.of_v = next(&memory, p.filled * p.wide);
  }
  return p;
}

/* (tokens, size) to panels of (size, PANEL) tokens, zeros where there is none. */
static void across(const float *from, size tokens, size row, size count, float *to) {
  for (size panel = 0; panel < tokens; panel += PANEL, to += PANEL * row) {
    size here = tokens - panel < PANEL ? tokens - panel : PANEL;
    if (here < PANEL) memset(to, 0, (size_t)(PANEL * row) * sizeof(float));
    for (size first = 0; first < count; first += 16) {
      size last = first + 16 < count ? first + 16 : count;
      for (size token = 0; token < here; token++)
        for (size i = first; i < last; i++) to[i * PANEL + token] = from[(panel + token) * row + i];
    }
  }
}

static void read_keys(const Attention *of, Piece *p) {
  memset(p->k, 0, (size_t)(p->filled * p->size) * sizeof(float));
  memset(p->v, 0, (size_t)(p->filled * p->wide) * sizeof(float));
  for (size i = 0; i < p->length; i++) {
    read_head(of, &of->k, of->k_weight, of->k_eps, p->head, p->start + i, p->k + i * p->size);
    copy_in(row_of(&of->v, p->head, p->start + i), of->v.half, of->wide, p->v + i * p->wide);
  }
  across(p->k, p->length, p->size, of->size, p->k_across);
}

/* `rows` queries from `first` on, scaled; zeros up to `filled`. */
static void read_queries(const Attention *of, Piece *p, size head, size first, size rows, size filled) {
  memset(p->q, 0, (size_t)(filled * p->size) * sizeof(float));
  for (size i = 0; i < rows; i++) {
    float *row = p->q + i * p->size;
    read_head(of, &of->q, of->q_weight, of->q_eps, head, p->start + first + i, row);
    for (size j = 0; j < p->size; j += LANES) store(row, j, 0, load(row, j, 0) * of->scale);
  }
}

static size seen_by(const Piece *p, size query) { return query < p->length ? query : p->length; }

/* Rows of scores, or of a product like it, for the keys that some row sees. */
static void scores(const Attention *of, const Piece *p, size first, size filled, int of_values) {
  for (size r = 0; r < filled; r += ROWS) {
    size columns = up(seen_by(p, first + r + ROWS), LANES);
    if (of_values)
      product(columns, of->wide, p->given + r * p->wide, p->wide, 1, p->v_across, PANEL, PANEL * p->wide,
              p->of_scores + r * p->columns, p->columns, 0);
    else
      product(columns, of->size, p->q + r * p->size, p->size, 1, p->k_across, PANEL, PANEL * p->size,
              p->scores + r * p->columns, p->columns, 0);
  }
}

static void zeros(float *row, size from, size to) {
  if (to > from) memset(row + from, 0, (size_t)(to - from) * sizeof(float));
}

/* exp(score - largest) in place, and log of their sum; the sum is returned. */
static float weigh(float *row, size seen, float *total) {
  vec most = all(-INFINITY), sum = all(0);
  for (size i = 0; i < seen; i += LANES) most = larger(take(row, i, 0, seen - i, -INFINITY), most);
  float top = largest_of(most);
  for (size i = 0; i < seen; i += LANES) {
    vec x = exponential(take(row, i, 0, seen - i, -INFINITY) - top);
    put(row, i, 0, seen - i, x);
    sum += x;
  }
  float whole = sum_of(sum);
  *total = logf(whole) + top;
  return whole;
}

static void forward(const void *given, size part) {
  const Attention *of = given;
  Piece piece = piece_of(of, part, 0), *p = &piece;
  if (!p->length) return;
  read_keys(of, p);
  for (size head = p->head * p->share; head < (p->head + 1) * p->share; head++)
    for (size first = 0; first < p->length; first += p->rows) {
      size rows = p->length - first < p->rows ? p->length - first : p->rows, filled = up(rows, ROWS);
      read_queries(of, p, head, first, rows, filled);
      scores(of, p, first, filled, 0);
      for (size r = 0; r < filled; r += ROWS) {
        size depth = seen_by(p, first + r + ROWS);
        float sums[ROWS];
        for (size i = r; i < r + ROWS; i++) {
          float *row = p->scores + i * p->columns, unused;
          float *total = i < rows ? of->totals + head * of->tokens + p->start + first + i : &unused;
          size seen = seen_by(p, first + i + 1);
          sums[i - r] = weigh(row, seen, total);
          zeros(row, seen, depth);
        }
        product(p->wide, depth, p->scores + r * p->columns, p->columns, 1, p->v, p->wide, PANEL, p->result, p->wide, 0);
        for (size i = r; i < r + ROWS && i < rows; i++) {
          void *out = row_of(&of->out, head, p->start + first + i);
          float share = 1.0f / sums[i - r], *from = p->result + (i - r) * p->wide;
          for (size j = 0; j < of->wide; j += LANES)
            if (of->out.half)
              put(out, j, 1, of->wide - j, load(from, j, 0) * share);
            else
              put(out, j, 0, of->wide - j, load(from, j, 0) * share);
        }
      }
    }
}

/* Scores and the gradients of weights become weights and the gradients of scores. */
static void weigh_back(float *row, float *of_row, size seen, float total) {
  vec sum = all(0);
  for (size i = 0; i < seen; i += LANES) {
    vec weight = exponential(take(row, i, 0, seen - i, -INFINITY) - total), x = take(of_row, i, 0, seen - i, 0);
    put(row, i, 0, seen - i, weight);
    sum += weight * x;
  }
  float mean = sum_of(sum);
  for (size i = 0; i < seen; i += LANES)
    put(of_row, i, 0, seen - i, take(row, i, 0, seen - i, 0) * (take(of_row, i, 0, seen - i, 0) - mean));
}

/* The gradients of keys and values from some queries: products with the weights, and their gradients, on their side. */
static void add_to_keys(const Piece *p, size first, size filled) {
  size last = seen_by(p, first + filled);
  for (size key = 0; key < last; key += ROWS) {
    size begin = key > first ? (key - first) : 0, depth = filled - begin, at = begin * p->columns + key;
    product(p->wide, depth, p->scores + at, 1, p->columns, p->given + begin * p->wide, p->wide, PANEL,
            p->of_v + key * p->wide, p->wide, 1);
    product(p->size, depth, p->of_scores + at, 1, p->columns, p->q + begin * p->size, p->size, PANEL,
            p->of_k + key * p->size, p->size, 1);
  }
}

static void backward(const void *given, size part) {
  const Attention *of = given;
  Piece piece = piece_of(of, part, 1), *p = &piece;
  if (!p->length) return;
  read_keys(of, p);
  across(p->v, p->length, p->wide, of->wide, p->v_across);
  memset(p->of_k, 0, (size_t)(p->filled * p->size) * sizeof(float));
  memset(p->of_v, 0, (size_t)(p->filled * p->wide) * sizeof(float));
  for (size head = p->head * p->share; head < (p->head + 1) * p->share; head++)
    for (size first = 0; first < p->length; first += p->rows) {
      size rows = p->length - first < p->rows ? p->length - first : p->rows, filled = up(rows, ROWS);
      size last = up(seen_by(p, first + filled), ROWS);
      read_queries(of, p, head, first, rows, filled);
      memset(p->given, 0, (size_t)(filled * p->wide) * sizeof(float));
      for (size i = 0; i < rows; i++)
        copy_in(row_of(&of->out, head, p->start + first + i), of->out.half, of->wide, p->given + i * p->wide);
      scores(of, p, first, filled, 0);
      scores(of, p, first, filled, 1);
      for (size i = 0; i < filled; i++) {
        size seen = i < rows ? first + i + 1 : 0;
        float *row = p->scores + i * p->columns, *of_row = p->of_scores + i * p->columns;
        if (seen) weigh_back(row, of_row, seen, of->totals[head * of->tokens + p->start + first + i]);
        zeros(row, seen, last);
        zeros(of_row, seen, last);
      }
      add_to_keys(p, first, filled);
      for (size r = 0; r < filled; r += ROWS)
        product(p->size, seen_by(p, first + r + ROWS), p->of_scores + r * p->columns, p->columns, 1, p->k, p->size,
                PANEL, p->result + r * p->size, p->size, 0);
      for (size i = 0; i < rows; i++)
        write_head(of, &of->q, &of->of_q, of->q_weight, of->q_eps, head, p->start + first + i,
                   p->result + i * p->size, of->scale);
    }
  for (size i = 0; i < p->length; i++) {
    write_head(of, &of->k, &of->of_k, of->k_weight, of->k_eps, p->head, p->start + i, p->of_k + i * p->size, 1.0f);
    void *row = row_of(&of->of_v, p->head, p->start + i);
    for (size j = 0; j < of->wide; j += LANES)
      put(row, j, of->of_v.half, of->wide - j, load(p->of_v + i * p->wide, j, 0));
  }
}

EXPORT void NAME(attend)(const Attention *of) {
  llamafarm_share(forward, of, of->documents * of->keys, of->threads);
}

/* `out` is its gradient here. */
EXPORT void NAME(attend_back)(const Attention *of) {
  llamafarm_share(backward, of, of->documents * of->keys, of->threads);
}
