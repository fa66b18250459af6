#if defined(__x86_64__)
#include "device/cpu/kernels.h"
#include "device/cpu/simd.h"
#include "device/cpu/softmax.h"
#include "device/cpu/transpose_avx512.h"

typedef __m512i pairs; /* 16 pairs of bf16 */

static inline pairs to_pairs(vf low, vf high) {
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

/* 2 x 16 elements of a row from `column` on, those at n and beyond zero. */
static inline pairs load_pairs(const void *row, kf_dtype from, int64_t column, int64_t n) {
  __mmask32 mask = n >= 32 ? 0xffffffffu : (__mmask32)((1ull << n) - 1);
  if (from == KF_BF16) return _mm512_maskz_loadu_epi16(mask, (const uint16_t *)row + column);
  const float *x = (const float *)row + column;
  return to_pairs(_mm512_maskz_loadu_ps((__mmask16)mask, x), _mm512_maskz_loadu_ps((__mmask16)(mask >> 16), x + 16));
}

static void convert(void *y, const float *x, int64_t n, int64_t padded) {
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) _mm512_storeu_si512((uint16_t *)y + i, load_pairs(x, KF_F32, i, 32));
  for (; i < padded; i += 32) {
    __mmask32 mask = padded - i >= 32 ? 0xffffffffu : (__mmask32)((1ull << (padded - i)) - 1);
    _mm512_mask_storeu_epi16((uint16_t *)y + i, mask, load_pairs(x, KF_F32, i, n > i ? n - i : 0));
  }
}

/* Elements l .. l + 32 of row i of a slice, with zeros after its end. `whole`: they are bf16 and none is after it. */
static inline __attribute__((always_inline)) pairs load_slice(const kf_slice *s, int i, int64_t l, const bool whole) {
  int64_t at = s->column + l;
  if (whole) return _mm512_loadu_si512((const uint16_t *)s->rows[i] + at);
  return load_pairs(s->rows[i], s->type, at, s->n - l);
}

static inline bool is_whole(const kf_slice *s, int64_t l) {
  return s->type == KF_BF16 && s->n - l >= 32;
}

static inline __attribute__((always_inline)) void pack_block(uint32_t *to, const kf_slice *s, int key, int64_t l,
                                                             const bool whole) {
  __m512i block[16];
  int64_t steps = s->n - l < 32 ? (s->n - l + 1) / 2 : 16;
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) block[i] = load_slice(s, key + i, l, whole);
  transpose16(block);
  if (whole) steps = 16;
#pragma GCC unroll 16
  for (int i = 0; i < steps; i++) _mm512_storeu_si512(to + (int64_t)i * KF_PANEL, block[i]);
}

static void pack_keys(void *panel, const kf_slice *s) {
  for (int key = 0; key < KF_PANEL; key += 16) {
    for (int64_t l = 0; l < s->n; l += 32) {
      uint32_t *to = (uint32_t *)panel + l / 2 * KF_PANEL + key;
      if (is_whole(s, l))
        pack_block(to, s, key, l, true);
      else
        pack_block(to, s, key, l, false);
    }
  }
}

/* Words of a and b interleaved: a0 b0 a1 b1 ... */
static inline void interleave(pairs a, pairs b, pairs *low, pairs *high) {
  const __m512i lo = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4,
                                      35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i hi = _mm512_add_epi16(lo, _mm512_set1_epi16(16));
  *low = _mm512_permutex2var_epi16(a, lo, b);
  *high = _mm512_permutex2var_epi16(a, hi, b);
}

static inline __attribute__((always_inline)) void pack_pairs(uint32_t *to, const kf_slice *s, int count, int64_t l,
                                                             const bool whole) {
  for (int i = 0; i + 1 < count; i += 2, to += KF_PANEL) {
    pairs low, high;
    interleave(load_slice(s, i, l, whole), load_slice(s, i + 1, l, whole), &low, &high);
    _mm512_storeu_si512(to, low);
    _mm512_storeu_si512(to + 16, high);
  }
  if (count % 2 == 0) return;
  pairs low, high;
  interleave(load_slice(s, count - 1, l, whole), _mm512_setzero_si512(), &low, &high);
  _mm512_storeu_si512(to, low);
  _mm512_storeu_si512(to + 16, high);
}

static void pack_values(void *panel, const kf_slice *s, int count) {
  for (int64_t l = 0; l < KF_PANEL; l += 32) {
    if (is_whole(s, l))
      pack_pairs((uint32_t *)panel + l, s, count, l, true);
    else if (l < s->n)
      pack_pairs((uint32_t *)panel + l, s, count, l, false);
    else
      for (int i = 0; i < count; i += 2) memset((uint32_t *)panel + l + i / 2 * KF_PANEL, 0, 32 * sizeof(uint32_t));
  }
}

static inline __attribute__((always_inline)) void tile(float *c, int64_t ldc, const uint16_t *a, int64_t lda,
                                                       const uint32_t *panel, int64_t steps, const float *alpha, kf_ahead *ahead,
                                                       const int R, const int V) {
  vf sum[KF_ROW_GROUP][4];
#pragma GCC unroll 6
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) {
      sum[r][v] = vf_set(0);
      if (alpha) sum[r][v] = vf_load(c + r * ldc + v * VL) * vf_set(alpha[r]);
    }
  }
  const char *from;
  int64_t fetch = kf_fetch_ahead(ahead, steps, &from);
  for (int64_t l = 0; l < steps; l++) {
    if (l < fetch) __builtin_prefetch(from + 64 * l, 0, 2);
    __m512bh b[4];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) b[v] = (__m512bh)_mm512_loadu_si512(panel + l * KF_PANEL + v * VL);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
      int32_t pair;
      memcpy(&pair, a + r * lda + 2 * l, sizeof pair);
      __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], x, b[v]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) vf_store(c + r * ldc + v * VL, sum[r][v]);
  }
}

static inline __attribute__((always_inline)) void tile_columns(float *c, int64_t ldc, const uint16_t *a, int64_t lda,
                                                               const uint32_t *panel, int64_t steps, const float *alpha,
                                                               kf_ahead *ahead, const int R, int columns) {
  switch ((columns + 15) / 16) {
  case 1: tile(c, ldc, a, lda, panel, steps, alpha, ahead, R, 1); break;
  case 2: tile(c, ldc, a, lda, panel, steps, alpha, ahead, R, 2); break;
  case 3: tile(c, ldc, a, lda, panel, steps, alpha, ahead, R, 3); break;
  default: tile(c, ldc, a, lda, panel, steps, alpha, ahead, R, 4);
  }
}

/* Rows in groups as equal as can be: small groups leave the multipliers waiting. */
static void multiply(float *c, int64_t ldc, const void *a, int64_t lda, const void *panel, int64_t inner, int64_t rows,
                     int columns, const float *alpha, kf_ahead *ahead) {
  int64_t steps = (inner + 1) / 2, groups = (rows + KF_ROW_GROUP - 1) / KF_ROW_GROUP;
  for (int64_t g = 0, r = 0; g < groups; g++) {
    int64_t end = rows * (g + 1) / groups;
    float *to = c + r * ldc;
    const uint16_t *from = (const uint16_t *)a + r * lda;
    const float *factors = alpha ? alpha + r : NULL;
    switch (end - r) {
    case 1: tile_columns(to, ldc, from, lda, panel, steps, factors, ahead, 1, columns); break;
    case 2: tile_columns(to, ldc, from, lda, panel, steps, factors, ahead, 2, columns); break;
    case 3: tile_columns(to, ldc, from, lda, panel, steps, factors, ahead, 3, columns); break;
    case 4: tile_columns(to, ldc, from, lda, panel, steps, factors, ahead, 4, columns); break;
    case 5: tile_columns(to, ldc, from, lda, panel, steps, factors, ahead, 5, columns); break;
    default: tile_columns(to, ldc, from, lda, panel, steps, factors, ahead, 6, columns);
    }
    r = end;
  }
}

/* R rows x 32 columns from l on. */
static inline __attribute__((always_inline)) void weigh_columns(float *c, int64_t ldc, const uint16_t *a, int64_t lda,
                                                                const kf_slice *s, int count, int64_t l, const float *alpha,
                                                                kf_ahead *ahead, const int R, const bool whole) {
  vf sum[KF_FEW_ROWS][2];
#pragma GCC unroll 12
  for (int r = 0; r < R; r++) {
    sum[r][0] = vf_load(c + r * ldc + l) * vf_set(alpha[r]);
    sum[r][1] = vf_load(c + r * ldc + l + VL) * vf_set(alpha[r]);
  }
  const char *from;
  int64_t fetch = kf_fetch_ahead(ahead, count / 2, &from);
  for (int i = 0; i < count; i += 2) {
    if (i / 2 < fetch) __builtin_prefetch(from + 32 * i, 0, 2);
    pairs low, high;
    interleave(load_slice(s, i, l, whole), load_slice(s, i + 1, l, whole), &low, &high);
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
      int32_t pair;
      memcpy(&pair, a + r * lda + i, sizeof pair);
      __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
      sum[r][0] = _mm512_dpbf16_ps(sum[r][0], x, (__m512bh)low);
      sum[r][1] = _mm512_dpbf16_ps(sum[r][1], x, (__m512bh)high);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; r++) {
    vf_store(c + r * ldc + l, sum[r][0]);
    vf_store(c + r * ldc + l + VL, sum[r][1]);
  }
}

static inline __attribute__((always_inline)) void weigh_rows(float *c, int64_t ldc, const uint16_t *a, int64_t lda,
                                                             const kf_slice *s, int count, const float *alpha, kf_ahead *ahead,
                                                             const int R) {
  for (int64_t l = 0; l < s->n; l += 32) {
    if (is_whole(s, l))
      weigh_columns(c, ldc, a, lda, s, count, l, alpha, ahead, R, true);
    else
      weigh_columns(c, ldc, a, lda, s, count, l, alpha, ahead, R, false);
  }
}

static void weigh(float *c, int64_t ldc, const void *a, int64_t lda, const kf_slice *s, int count, int n, const float *alpha,
                  kf_ahead *ahead) {
  switch (n) {
  case 1: weigh_rows(c, ldc, a, lda, s, count, alpha, ahead, 1); break;
  case 2: weigh_rows(c, ldc, a, lda, s, count, alpha, ahead, 2); break;
  case 3: weigh_rows(c, ldc, a, lda, s, count, alpha, ahead, 3); break;
  case 4: weigh_rows(c, ldc, a, lda, s, count, alpha, ahead, 4); break;
  case 5: weigh_rows(c, ldc, a, lda, s, count, alpha, ahead, 5); break;
  case 6: weigh_rows(c, ldc, a, lda, s, count, alpha, ahead, 6); break;
  case 7: weigh_rows(c, ldc, a, lda, s, count, alpha, ahead, 7); break;
  case 8: weigh_rows(c, ldc, a, lda, s, count, alpha, ahead, 8); break;
  case 9: weigh_rows(c, ldc, a, lda, s, count, alpha, ahead, 9); break;
  case 10: weigh_rows(c, ldc, a, lda, s, count, alpha, ahead, 10); break;
  case 11: weigh_rows(c, ldc, a, lda, s, count, alpha, ahead, 11); break;
  default: weigh_rows(c, ldc, a, lda, s, count, alpha, ahead, 12);
  }
}

/* 2^x, relative error below 1.1e-4: a fraction of what rounding it to bf16 adds. */
static inline vf exp2_short(vf x) {
  vf n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = x - n;
  vf p = vf_fma(vf_set(5.500895e-2f), f, vf_set(2.4221101e-1f));
  p = vf_fma(p, f, vf_set(6.9328293e-1f));
  return _mm512_scalef_ps(vf_fma(p, f, vf_set(1)), n);
}

static float softmax(float *s, int count, int low, int high, const float *factor, float scale, float *maximum, float *sum,
                     void *p) {
  float alpha = softmax_begin(s, count, low, high, factor, scale, maximum);
  vf top = vf_set(-*maximum), total[2] = {vf_set(0), vf_set(0)};
  for (int i = 0; i < count; i += 32) {
    vf a = exp2_short(vf_fma(vf_load(s + i), vf_set(scale), top));
    vf b = exp2_short(vf_fma(vf_load(s + i + 16), vf_set(scale), top));
    total[0] = total[0] + a;
    total[1] = total[1] + b;
    _mm512_storeu_si512((uint16_t *)p + i, to_pairs(a, b));
  }
  softmax_add(sum, alpha, total[0] + total[1]);
  return alpha;
}

const kf_tile_kernels kf_tile_avx512bf16 = {KF_BF16, 2, convert, pack_keys, pack_values, multiply, weigh, softmax};
#else
typedef int kf_not_x86;
#endif
