/* Attention of one key head of a document. This text is included once for each format, see formats.h.

   A side of a product is `flat`, where the units of a row are neighbours in it, or `deep`, where those of a column are
   neighbours: a row of units for UNIT rows. In float32 both are the same. Products are of ROWS rows with up to COLUMNS
   vectors. */

#ifndef ROWS
#define ROWS 6 /* a multiple of any UNIT */
#define COLUMNS (LANES == 8 ? 2 : 4)
#define PANEL (COLUMNS * LANES)
#define SCORES 65536 /* scores at a time, about: with their gradients they fit into the second cache */
#define MOST_ROWS 96
#define AHEAD 8 /* heads that are fetched before they are read: rows are far apart, so that no processor foresees them */
#endif

/* c (ROWS, vectors) = a b, or more by it. A unit of a is a[row * a_row + step * a_step]. */
TARGET INLINE void NAMED(tile)(const int vectors, size depth, const uint32_t *a, size a_row, size a_step,
                               const uint32_t *b, size b_step, float *c, size c_row, const int add) {
  vec sums[ROWS][4];
#pragma GCC unroll 6
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) sums[r][v] = add ? load(c + r * c_row, v * LANES, 0) : all(0);
  for (size step = 0; step < depth; step++) {
    bits right[4];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) right[v] = *(const bits_at *)(b + step * b_step + v * LANES);
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++) {
      bits left = a[r * a_row + step * a_step] - (bits){0};
#pragma GCC unroll 4
      for (int v = 0; v < vectors; v++) sums[r][v] = MADD(sums[r][v], left, right[v]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) store(c + r * c_row, v * LANES, 0, sums[r][v]);
}

/* ROWS rows of a product with `columns` (a multiple of LANES) columns; b in panels of PANEL columns. */
TARGET static void NAMED(product)(size columns, size depth, const uint32_t *a, size a_row, size a_step,
                                  const uint32_t *b, size b_step, size b_panel, float *c, size c_row, int add) {
  for (; columns > 0; columns -= PANEL, b += b_panel, c += PANEL) {
    size vectors = columns < PANEL ? columns / LANES : COLUMNS;
    if (vectors == 4)
      NAMED(tile)(4, depth, a, a_row, a_step, b, b_step, c, c_row, add);
    else if (vectors == 3)
      NAMED(tile)(3, depth, a, a_row, a_step, b, b_step, c, c_row, add);
    else if (vectors == 2)
      NAMED(tile)(2, depth, a, a_row, a_step, b, b_step, c, c_row, add);
    else
      NAMED(tile)(1, depth, a, a_row, a_step, b, b_step, c, c_row, add);
  }
}

/* What one part of the work has at hand. */
typedef struct {
  size head, start, length, share; /* key head; first token and number of tokens; query heads of the key head */
  size size, wide;                 /* numbers of a head of k and of v, filled up */
  size filled, columns, rows;      /* tokens filled up; numbers of a row of scores; queries at a time */
  uint32_t *k, *v, *q, *given;     /* deep; filled up with zeros */
  uint32_t *q_flat, *given_flat;
  uint32_t *k_across, *v_across;   /* panels of (units of a head, PANEL tokens) */
  float *scores, *of_scores, *of_k, *of_v, *result;
  float *read;                     /* UNIT heads */
  uint32_t *flat;                  /* all keys' or values' */
} NAMED(Piece);

TARGET static NAMED(Piece) NAMED(piece_of)(const Attention *of, size part, const int back) {
  size document = part / of->keys;
  NAMED(Piece) p = {.head = part % of->keys, .start = of->bounds[document], .share = of->heads / of->keys};
  p.length = of->bounds[document + 1] - p.start;
  p.size = up(of->size, LANES);
  p.wide = up(of->wide, LANES);
  p.filled = up(p.length, ROWS);
  p.columns = up(p.length, PANEL) + 16; /* beside a power of two, rows would push one another out of the cache */
  p.rows = SCORES / p.columns / ROWS * ROWS;
  p.rows = p.rows < 2 * ROWS ? 2 * ROWS : p.rows > MOST_ROWS ? MOST_ROWS : p.rows;
  if (p.rows > p.filled) p.rows = p.filled;
  size across = up(p.length, PANEL) / UNIT, widest = p.size > p.wide ? p.size : p.wide, both = back ? 2 : 1;
  size units = p.filled / UNIT * (p.size + p.wide) + across * (p.size + (back ? p.wide : 0)) +
               p.rows * both / UNIT * (p.size + p.wide) + (UNIT == 1 ? 0 : p.filled * widest / UNIT);
  size numbers = (UNIT + p.rows) * widest + p.rows * p.columns * both + (back ? p.filled * (p.size + p.wide) : 0);
  float *memory = llamafarm_scratch(units + numbers + 16 * 16);
  if (!memory) {
    __atomic_store_n(&((Attention *)of)->refused, 1, __ATOMIC_RELAXED);
    p.length = 0;
    return p;
  }
#define UNITS(count) ((uint32_t *)next(&memory, (count) / UNIT))
  p.k = UNITS(p.filled * p.size);
  p.v = UNITS(p.filled * p.wide);
  p.k_across = UNITS(across * UNIT * p.size);
  p.q_flat = p.q = UNITS(p.rows * p.size);
  p.scores = next(&memory, p.rows * p.columns);
  p.result = next(&memory, p.rows * widest);
  p.read = next(&memory, UNIT * widest);
  if (back) {
    p.v_across = UNITS(across * UNIT * p.wide);
    p.given_flat = p.given = UNITS(p.rows * p.wide);
    p.of_scores = next(&memory, p.rows * p.columns);
    p.of_k = next(&memory, p.filled * p.size);
    p.of_v = next(&memory, p.filled * p.wide);
  }
  if (UNIT == 2) {
    p.flat = UNITS(p.filled * widest);
    if (back) p.q = UNITS(p.rows * p.size), p.given = UNITS(p.rows * p.wide);
  }
#undef UNITS
  return p;
}

/* UNIT rows of numbers as units. */
TARGET INLINE void NAMED(pack)(const float *rows, size count, uint32_t *flat, uint32_t *deep) {
  for (size i = 0; i < count; i += LANES) {
#if UNIT == 2
    halves first = nearest(load(rows, i, 0)), second = nearest(load(rows + count, i, 0));
    *(halves_at *)((uint16_t *)flat + i) = first;
    *(halves_at *)((uint16_t *)flat + count + i) = second;
    if (deep) *(bits_at *)(deep + i) = widened(first) | widened(second) << 16;
#else
    store(deep, i, 0, load(rows, i, 0));
#endif
  }
}

/* `count` heads from token `first` on; zeros up to `filled`. */
TARGET static void NAMED(read)(const Attention *of, const NAMED(Piece) *p, Heads heads, size head, size first, size count,
                               size filled, uint32_t *flat, uint32_t *deep) {
  size row = up(heads.count, LANES);
  memset(p->read, 0, (size_t)(UNIT * row) * sizeof(float));
  for (size i = 0; i < filled; i += UNIT) {
    for (size j = 0; j < UNIT; j++) {
      float *to = p->read + j * row;
      if (i + j + AHEAD < count) fetch_head(&heads, head, first + i + j + AHEAD);
      if (i + j < count)
        read_head(of, &heads, head, first + i + j, to);
      else
        memset(to, 0, (size_t)row * sizeof(float));
    }
    NAMED(pack)(p->read, row, flat + i * row / UNIT, deep ? deep + i * row / UNIT : NULL);
  }
}

/* Flat rows to panels of (units of a row, PANEL tokens); what has no token is never seen. */
TARGET static void NAMED(across)(const uint32_t *from, size tokens, size row, uint32_t *to) {
  row /= UNIT;
  for (size panel = 0; panel < tokens; panel += PANEL, to += PANEL * row) {
    size here = tokens - panel < PANEL ? tokens - panel : PANEL;
    if (here < PANEL) memset(to, 0, (size_t)(PANEL * row) * sizeof(float));
    for (size token = 0; token < here; token += LANES)
      for (size unit = 0; unit < row; unit += LANES) {
        size tall = here - token < LANES ? here - token : LANES, broad = row - unit < LANES ? row - unit : LANES;
        turn_over(from + (panel + token) * row + unit, row, tall, to + unit * PANEL + token, PANEL, broad);
      }
  }
}

TARGET static void NAMED(read_keys)(const Attention *of, const NAMED(Piece) *p, const int back) {
  uint32_t *flat = UNIT == 1 ? p->v : p->flat;
  NAMED(read)(of, p, values_of(of), p->head, p->start, p->length, p->filled, flat, p->v);
  if (back) NAMED(across)(flat, p->length, p->wide, p->v_across);
  flat = UNIT == 1 ? p->k : p->flat;
  NAMED(read)(of, p, keys_of(of), p->head, p->start, p->length, p->filled, flat, p->k);
  NAMED(across)(flat, p->length, p->size, p->k_across);
}

INLINE size NAMED(seen_by)(const NAMED(Piece) *p, size query) { return query < p->length ? query : p->length; }

/* Rows of scores (but for their scale), or of a product like it, for the keys that some row sees. */
TARGET static void NAMED(scores)(const NAMED(Piece) *p, size first, size filled, const uint32_t *flat, size count,
                                 const uint32_t *across, float *to) {
  size row = up(count, LANES) / UNIT, depth = up(count, UNIT) / UNIT;
  for (size r = 0; r < filled; r += ROWS)
    NAMED(product)(up(NAMED(seen_by)(p, first + r + ROWS), LANES), depth, flat + r * row, row, 1, across, PANEL, PANEL * row,
                   to + r * p->columns, p->columns, 0);
}

/* exp(score - largest) as flat units in place, zeros up to `depth`, and log of their sum; the sum is returned. */
TARGET INLINE float NAMED(weigh)(float *row, size seen, size depth, float scale, float *total) {
  vec most = all(-INFINITY), sum = all(0);
  size i = 0;
  for (; i + LANES <= seen; i += LANES) most = larger(load(row, i, 0), most);
  if (i < seen) {
    vec last = until(seen - i, load(row, i, 0), -INFINITY);
    store(row, i, 0, last);
    most = larger(last, most);
  }
  float top = largest_of(most) * scale;
  for (i = 0; i < seen; i += LANES) {
    vec x = exponential(load(row, i, 0) * scale - top);
    NAMED(keep)(row, i, x);
    sum += x;
  }
  for (; i < depth; i += LANES) NAMED(keep)(row, i, all(0));
  float whole = sum_of(sum);
  *total = logf(whole) + top;
  return whole;
}

TARGET static void NAMED(forward)(const void *given, size part) {
  const Attention *of = given;
  NAMED(Piece) piece = NAMED(piece_of)(of, part, 0), *p = &piece;
  if (!p->length) return;
  NAMED(read_keys)(of, p, 0);
  for (size head = p->head * p->share; head < (p->head + 1) * p->share; head++)
    for (size first = 0; first < p->length; first += p->rows) {
      size rows = p->length - first < p->rows ? p->length - first : p->rows, filled = up(rows, ROWS);
      NAMED(read)(of, p, queries_of(of), head, p->start + first, rows, filled, p->q_flat, UNIT == 1 ? p->q : NULL);
      NAMED(scores)(p, first, filled, p->q_flat, of->size, p->k_across, p->scores);
      for (size r = 0; r < filled; r += ROWS) {
        size depth = up(NAMED(seen_by)(p, first + r + ROWS), UNIT);
        float sums[ROWS];
        for (size i = r; i < r + ROWS; i++) {
          float unused, *total = i < rows ? of->totals + head * of->tokens + p->start + first + i : &unused;
          sums[i - r] = NAMED(weigh)(p->scores + i * p->columns, NAMED(seen_by)(p, first + i + 1), depth, of->scale, total);
        }
        NAMED(product)(p->wide, depth / UNIT, (const uint32_t *)(p->scores + r * p->columns), p->columns, 1, p->v, p->wide,
                       PANEL, p->result, p->wide, 0);
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

/* Scores become weights, which are zero from `seen` to `last` as the gradients of weights are; returns the sum of the
   weights times their gradients. */
TARGET INLINE float NAMED(weigh_back)(float *row, float *of_row, size seen, size last, float scale, float total) {
  vec sum = all(0);
  size i = 0;
  for (; i + LANES <= seen; i += LANES) {
    vec weight = exponential(load(row, i, 0) * scale - total);
    store(row, i, 0, weight);
    sum += weight * load(of_row, i, 0);
  }
  if (i < seen) {
    vec weight = exponential(until(seen - i, load(row, i, 0), -INFINITY) * scale - total);
    vec x = until(seen - i, load(of_row, i, 0), 0);
    store(row, i, 0, weight);
    store(of_row, i, 0, x);
    sum += weight * x;
    i += LANES;
  }
  for (; i < last; i += LANES) {
    store(row, i, 0, all(0));
    store(of_row, i, 0, all(0));
  }
  return sum_of(sum);
}

/* For UNIT rows, weights and the gradients of weights to what products take: weights as deep units in their place; the
   gradients of scores as flat units in their place, and as deep ones after the weights. */
TARGET INLINE void NAMED(pack_back)(const NAMED(Piece) *p, float *row, float *of_row, const float *means, size last) {
  for (size i = 0; i < last; i += LANES) {
    vec weight = load(row, i, 0), of_score = weight * (load(of_row, i, 0) - means[0]);
#if UNIT == 2
    vec second = load(row + p->columns, i, 0), of_second = second * (load(of_row + p->columns, i, 0) - means[1]);
    halves one = nearest(of_score), other = nearest(of_second);
    *(halves_at *)((uint16_t *)of_row + i) = one;
    *(halves_at *)((uint16_t *)(of_row + p->columns) + i) = other;
    *(bits_at *)((uint32_t *)row + i) = widened(nearest(weight)) | widened(nearest(second)) << 16;
    *(bits_at *)((uint32_t *)row + p->columns + i) = widened(one) | widened(other) << 16;
#else
    store(of_row, i, 0, of_score);
#endif
  }
}

/* The gradients of keys and values from some queries: products with the weights, and their gradients, on their side. */
TARGET static void NAMED(add_to_keys)(const NAMED(Piece) *p, size first, size filled) {
  size last = NAMED(seen_by)(p, first + filled), step = UNIT * p->columns;
  const uint32_t *weights = (const uint32_t *)p->scores;
  const uint32_t *of_scores = UNIT == 1 ? (const uint32_t *)p->of_scores : weights + p->columns;
  for (size key = 0; key < last; key += ROWS) {
    size begin = key > first ? (key - first) / UNIT : 0, depth = filled / UNIT - begin, at = begin * step + key;
    NAMED(product)(p->wide, depth, weights + at, 1, step, p->given + begin * p->wide, p->wide, PANEL,
                   p->of_v + key * p->wide, p->wide, 1);
    NAMED(product)(p->size, depth, of_scores + at, 1, step, p->q + begin * p->size, p->size, PANEL,
                   p->of_k + key * p->size, p->size, 1);
  }
}

TARGET static void NAMED(backward)(const void *call, size part) {
  const Attention *of = call;
  NAMED(Piece) piece = NAMED(piece_of)(of, part, 1), *p = &piece;
  if (!p->length) return;
  Heads queries = queries_of(of), keys = keys_of(of), values = values_of(of);
  NAMED(read_keys)(of, p, 1);
  memset(p->of_k, 0, (size_t)(p->filled * p->size) * sizeof(float));
  memset(p->of_v, 0, (size_t)(p->filled * p->wide) * sizeof(float));
  for (size head = p->head * p->share; head < (p->head + 1) * p->share; head++)
    for (size first = 0; first < p->length; first += p->rows) {
      size rows = p->length - first < p->rows ? p->length - first : p->rows, filled = up(rows, ROWS);
      size last = up(NAMED(seen_by)(p, first + filled), ROWS);
      NAMED(read)(of, p, queries, head, p->start + first, rows, filled, p->q_flat, p->q);
      NAMED(read)(of, p, results_of(of), head, p->start + first, rows, filled, p->given_flat, p->given);
      NAMED(scores)(p, first, filled, p->q_flat, of->size, p->k_across, p->scores);
      NAMED(scores)(p, first, filled, p->given_flat, of->wide, p->v_across, p->of_scores);
      for (size i = 0; i < filled; i += UNIT) {
        float means[UNIT], *row = p->scores + i * p->columns, *of_row = p->of_scores + i * p->columns;
        for (size j = 0; j < UNIT; j++) {
          size seen = i + j < rows ? first + i + j + 1 : 0, at = j * p->columns;
          float total = seen ? of->totals[head * of->tokens + p->start + first + i + j] : 0;
          means[j] = NAMED(weigh_back)(row + at, of_row + at, seen, last, of->scale, total);
        }
        NAMED(pack_back)(p, row, of_row, means, last);
      }
      NAMED(add_to_keys)(p, first, filled);
      for (size r = 0; r < filled; r += ROWS)
        NAMED(product)(p->size, up(NAMED(seen_by)(p, first + r + ROWS), UNIT) / UNIT,
                       (const uint32_t *)(p->of_scores + r * p->columns), p->columns, 1, p->k, p->size, PANEL,
                       p->result + r * p->size, p->size, 0);
      for (size i = 0; i < rows; i++)
        write_head(of, &queries, &of->of_q, head, p->start + first + i, p->result + i * p->size, of->scale);
    }
  for (size i = 0; i < p->length; i++) {
    write_head(of, &keys, &of->of_k, p->head, p->start + i, p->of_k + i * p->size, of->scale);
    write_head(of, &values, &of->of_v, p->head, p->start + i, p->of_v + i * p->wide, 1.0f);
  }
}
