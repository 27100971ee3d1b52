/* Products of many rows with an adapter's narrow matrix. This text is included once for each format, see formats.h. What
   is shared by rows is packed into vectors of units first. All loops hold 16 vectors of sums. */

#if UNIT == 2
#define UNIT_OF(first, second) (one_to_half(first) | (uint32_t)one_to_half(second) << 16)
#else
#define UNIT_OF(first, second) float_bits(first)
#endif

INLINE const uint32_t *NAMED(units)(const void *x, size at) {
  return (const uint32_t *)((const char *)x + at * (4 / UNIT));
}

INLINE bits NAMED(each)(const uint32_t *unit) {
  uint32_t one;
  memcpy(&one, unit, 4);
  return one - (bits){0};
}

/* down: out = scale * x M' of what is kept of x, M of (rank, wide). Each row of out has two vectors of sums for a block of LANES rows of M: one
   for M rounded and one for what rounding left of it, or, where that does not count, one for every other unit. */

static void NAMED(pack_down)(const Narrow *of) {
  uint32_t *to = of->packed;
  for (size block = 0; block < of->rank; block += LANES)
    for (size k = 0; k < of->wide; k += UNIT) {
      const float *m = of->matrix + block * of->m_row + k * of->m_column;
      size left = of->rank - block;
      for (size j = 0; j < LANES; j++) {
        float first = 0, second = 0;
        if (j < left) {
          first = m[j * of->m_row];
          if (UNIT == 2) second = m[j * of->m_row + of->m_column];
        }
        uint32_t unit = UNIT_OF(first, second);
        to[j] = unit;
        if (of->rest)
          to[LANES + j] = UNIT_OF(first - one_from_half((uint16_t)unit), second - one_from_half((uint16_t)(unit >> 16)));
      }
      to += of->rest ? 2 * LANES : LANES;
    }
}

/* `units` of rows of x from unit `from` on; `sums` has what came before, two for each block and row. */
INLINE void NAMED(down_span)(const Narrow *of, const uint32_t *const *x, const int rows, const int rest, size from,
                                    size units, vec (*sums)[2][ROWS]) {
  size turns = rest ? units : units / 2, each = rest ? 2 * LANES : LANES;
  for (size block = 0; block * LANES < of->rank; block++) {
    const uint32_t *m = of->packed + (block * (of->wide / UNIT) + from) * each;
    vec ones[ROWS], others[ROWS];
#pragma GCC unroll 8
    for (int t = 0; t < rows; t++) {
      ones[t] = from ? sums[block][0][t] : all(0);
      others[t] = from ? sums[block][1][t] : all(0);
    }
    for (size turn = 0; turn < turns; turn++, m += 2 * LANES) {
      bits one = *(const bits_at *)m, other = *(const bits_at *)(m + LANES);
#pragma GCC unroll 8
      for (int t = 0; t < rows; t++) {
        bits given = NAMED(each)(x[t] + (rest ? turn : 2 * turn));
        ones[t] = MADD(ones[t], given, one);
        others[t] = MADD(others[t], rest ? given : NAMED(each)(x[t] + 2 * turn + 1), other);
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < rows; t++) {
      sums[block][0][t] = ones[t];
      sums[block][1][t] = others[t];
    }
  }
}

INLINE void NAMED(down_rows)(const Narrow *of, size row, const int rows, const int rest) {
  size all_units = of->wide / UNIT, span = of->mask ? SPAN : all_units;
  vec sums[MOST / LANES][2][ROWS];
  uint32_t left[ROWS * SPAN];
  const uint32_t *x[ROWS];
  for (size from = 0; from < all_units; from += span) {
    size units = all_units - from < span ? all_units - from : span;
    for (int t = 0; t < rows; t++) {
      x[t] = NAMED(units)(of->x, (row + t) * of->x_row) + from;
      if (of->mask) {
        uint32_t *to = left + t * SPAN;
        for (size u = 0; u < units; u += LANES)
          *(bits_at *)(to + u) =
              NAMED(kept)(*(const bits_at *)(x[t] + u), of->mask, (row + t) * of->wide + (from + u) * UNIT);
        x[t] = to;
      }
    }
    NAMED(down_span)(of, x, rows, rest, from, units, sums);
  }
  for (size block = 0; block < of->rank; block += LANES)
    for (int t = 0; t < rows; t++) {
      vec *sum = &sums[block / LANES][0][t];
      put(of->y, (row + t) * of->y_row + block, UNIT == 2, of->rank - block, (sum[0] + sum[ROWS]) * of->scale);
    }
}

static void NAMED(down)(const void *given, size part) {
  const Narrow *of = given;
  size row = part * PART, end = row + PART < of->rows ? row + PART : of->rows;
  for (; row + ROWS <= end; row += ROWS)
    if (of->rest)
      NAMED(down_rows)(of, row, ROWS, 1);
    else
      NAMED(down_rows)(of, row, ROWS, 0);
  for (; row < end; row++)
    if (of->rest)
      NAMED(down_rows)(of, row, 1, 1);
    else
      NAMED(down_rows)(of, row, 1, 0);
}

/* up: y += scale * x M where y is kept, M of (rank, wide). Two vectors of a row of y at a time. */

static void NAMED(pack_up)(const Narrow *of) {
  uint32_t *to = of->packed;
  for (size at = 0; at < of->wide; at += LANES)
    for (size k = 0; k < of->rank; k += UNIT, to += LANES) {
      const float *m = of->matrix + k * of->m_row + at * of->m_column;
      for (size j = 0; j < LANES; j++) to[j] = UNIT_OF(m[j * of->m_column], m[j * of->m_column + of->m_row]);
    }
}

INLINE void NAMED(up_rows)(const Narrow *of, size row, const int rows) {
  size units = of->rank / UNIT;
  const uint32_t *x[ROWS];
#pragma GCC unroll 8
  for (int t = 0; t < rows; t++) x[t] = NAMED(units)(of->x, (row + t) * of->x_row);
  for (size at = 0; at < of->wide; at += 2 * LANES) {
    const uint32_t *m = of->packed + at * units, *n = m + units * LANES;
    vec sums[ROWS], others[ROWS];
#pragma GCC unroll 8
    for (int t = 0; t < rows; t++) sums[t] = others[t] = all(0);
    for (size u = 0; u < units; u++) {
      bits one = *(const bits_at *)(m + u * LANES), other = *(const bits_at *)(n + u * LANES);
#pragma GCC unroll 8
      for (int t = 0; t < rows; t++) {
        bits given = NAMED(each)(x[t] + u);
        sums[t] = MADD(sums[t], given, one);
        others[t] = MADD(others[t], given, other);
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < rows; t++) {
      size y = (row + t) * of->y_row + at, entry = (row + t) * of->wide + at;
      if (of->mask) {
        sums[t] = kept(sums[t], of->mask, entry);
        others[t] = kept(others[t], of->mask, entry + LANES);
      }
      store(of->y, y, UNIT == 2, load(of->y, y, UNIT == 2) + sums[t] * of->scale);
      store(of->y, y + LANES, UNIT == 2, load(of->y, y + LANES, UNIT == 2) + others[t] * of->scale);
    }
  }
}

static void NAMED(up)(const void *given, size part) {
  const Narrow *of = given;
  size row = part * PART, end = row + PART < of->rows ? row + PART : of->rows;
  for (; row + ROWS <= end; row += ROWS) NAMED(up_rows)(of, row, ROWS);
  for (; row < end; row++) NAMED(up_rows)(of, row, 1);
}

/* across: out = scale * x' y of what is kept of y, out of (rank, wide) in float32: sums over rows. Some rows of y are packed at a time. */

static void NAMED(pack_across)(const Narrow *of) {
  uint32_t *to = of->packed;
  for (size row = 0; row < of->rows; row += UNIT, to += of->rank)
    for (size j = 0; j < of->rank; j++) {
#if UNIT == 2
      const uint16_t *x = (const uint16_t *)of->x + row * of->x_row + j;
      to[j] = x[0] | (uint32_t)(row + 1 < of->rows ? x[of->x_row] : 0) << 16;
#else
      memcpy(to + j, (const float *)of->x + row * of->x_row + j, 4);
#endif
    }
}

INLINE void NAMED(across_ranks)(const Narrow *of, const uint32_t *y, size first, size units, size rank,
                                       const int ranks, float *out) {
  vec sums[ROWS], others[ROWS];
  const uint32_t *x = of->packed + first * of->rank + rank;
#pragma GCC unroll 8
  for (int j = 0; j < ranks; j++) sums[j] = load(out + j * 2 * LANES, 0, 0), others[j] = load(out + j * 2 * LANES, LANES, 0);
  for (size u = 0; u < units; u++, x += of->rank, y += 2 * LANES) {
    bits one = *(const bits_at *)y, other = *(const bits_at *)(y + LANES);
#pragma GCC unroll 8
    for (int j = 0; j < ranks; j++) {
      bits given = NAMED(each)(x + j);
      sums[j] = MADD(sums[j], given, one);
      others[j] = MADD(others[j], given, other);
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < ranks; j++) {
    store(out + j * 2 * LANES, 0, 0, sums[j]);
    store(out + j * 2 * LANES, LANES, 0, others[j]);
  }
}

/* A vector of a row of y in float32, what is dropped left out. */
INLINE bits NAMED(row_of)(const Narrow *of, size row, size at) {
  vec y = load(of->y, row * of->y_row + at, UNIT == 2);
  return (bits)(of->mask ? kept(y, of->mask, row * of->wide + at) : y);
}

/* `units` of rows of two vectors of y from `row` and `at` on. */
INLINE void NAMED(pack_rows)(const Narrow *of, size row, size at, size units, uint32_t *to) {
  for (size u = 0; u < units; u++, row += UNIT) {
    __builtin_prefetch(NAMED(units)(of->y, row * of->y_row + at + 2 * LANES), 0, 2);
    if (UNIT == 2) __builtin_prefetch(NAMED(units)(of->y, (row + 1) * of->y_row + at + 2 * LANES), 0, 2);
    for (size i = at; i < at + 2 * LANES; i += LANES, to += LANES) {
      bits unit = NAMED(row_of)(of, row, i);
      if (UNIT == 2) {
        unit >>= 16;
        if (row + 1 < of->rows) unit |= NAMED(row_of)(of, row + 1, i);
      }
      *(bits_at *)to = unit;
    }
  }
}

static void NAMED(across)(const void *given, size part) {
  const Narrow *of = given;
  uint32_t y[DEEP * 2 * LANES];
  size from = part * WIDE, width = of->wide - from < WIDE ? of->wide - from : WIDE;
  size units = (of->rows + UNIT - 1) / UNIT;
  float out[of->rank * width]; /* (pairs of vectors, rank, pair) */
  memset(out, 0, sizeof out);
  for (size first = 0; first < units; first += DEEP) {
    size some = units - first < DEEP ? units - first : DEEP;
    float *sums = out;
    for (size at = 0; at < width; at += 2 * LANES) {
      size rank = 0;
      NAMED(pack_rows)(of, first * UNIT, from + at, some, y);
      for (; rank + ROWS <= of->rank; rank += ROWS, sums += ROWS * 2 * LANES)
        NAMED(across_ranks)(of, y, first, some, rank, ROWS, sums);
      for (; rank < of->rank; rank++, sums += 2 * LANES) NAMED(across_ranks)(of, y, first, some, rank, 1, sums);
    }
  }
  const float *sum = out;
  for (size at = from; at < from + width; at += 2 * LANES)
    for (size rank = 0; rank < of->rank; rank++)
      for (size i = at; i < at + 2 * LANES; i++) of->out[rank * of->m_row + i * of->m_column] = *sum++ * of->scale;
}

#undef UNIT_OF
