/* The kernels of kernels.h in f32, written once in simd.h's vectors and included by one file an instruction set. */
#include "device/cpu/kernels.h"
#include "device/cpu/simd.h"

static float sum_squares(const float *x, int64_t n) {
  vf a = vf_set(0), b = vf_set(0);
  int64_t i = 0;
  for (; i + 2 * VL <= n; i += 2 * VL) {
    vf u = vf_load(x + i), v = vf_load(x + i + VL);
    a = vf_fma(u, u, a);
    b = vf_fma(v, v, b);
  }
  float sum = vf_sum(a + b);
  for (; i < n; i++) sum += x[i] * x[i];
  return sum;
}

static void scale(float *y, const float *x, const float *w, float factor, int64_t n) {
  int64_t i = 0;
  for (; i + VL <= n; i += VL) vf_store(y + i, vf_load(x + i) * vf_set(factor) * vf_load(w + i));
  for (; i < n; i++) y[i] = x[i] * factor * w[i];
}

static void rotate(float *first, float *second, const float *cos, const float *sin, int n) {
  int i = 0;
  for (; i + VL <= n; i += VL) {
    vf u = vf_load(first + i), v = vf_load(second + i), c = vf_load(cos + i), s = vf_load(sin + i);
    vf_store(first + i, u * c - v * s);
    vf_store(second + i, v * c + u * s);
  }
  for (; i < n; i++) {
    float u = first[i], v = second[i];
    first[i] = u * cos[i] - v * sin[i];
    second[i] = v * cos[i] + u * sin[i];
  }
}

static void swiglu(float *y, const float *gate, const float *up, int64_t n) {
  for (int64_t i = 0; i < n; i += VL) {
    int left = n - i < VL ? (int)(n - i) : VL;
    vf g = left < VL ? vf_load_n(gate + i, left) : vf_load(gate + i);
    vf u = left < VL ? vf_load_n(up + i, left) : vf_load(up + i);
    vf r = g / (vf_set(1) + vf_exp(vf_set(0) - g)) * u;
    if (left < VL)
      vf_store_n(y + i, r, left);
    else
      vf_store(y + i, r);
  }
}

static void to_bf16(uint16_t *y, const float *x, int64_t n) {
  int64_t i = 0;
  for (; i + VL <= n; i += VL) vf_store_bf16(y + i, vf_load(x + i));
  for (; i < n; i++) y[i] = kf_f32_to_bf16(x[i]);
}

static void from_bf16(float *y, const uint16_t *x, int64_t n) {
  int64_t i = 0;
  for (; i + VL <= n; i += VL) vf_store(y + i, vf_load_bf16(x + i));
  for (; i < n; i++) y[i] = kf_bf16_to_f32(x[i]);
}

static float most(const float *x, int64_t n) {
  vf a = vf_set(x[0]);
  int64_t i = 0;
  for (; i + VL <= n; i += VL) a = vf_max(a, vf_load(x + i));
  float r = vf_most(a);
  for (; i < n; i++) r = x[i] > r ? x[i] : r;
  return r;
}

/* Sums stay in f32 for 256 numbers only, then go to fp64. */
enum { CHUNK = 256 };

static double sum_exp(const float *x, float top, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i += CHUNK) {
    int64_t end = n - i < CHUNK ? n : i + CHUNK, j = i;
    vf a = vf_set(0);
    for (; j + VL <= end; j += VL) a = a + vf_exp(vf_load(x + j) - vf_set(top));
    sum += (double)vf_sum(a);
    for (; j < end; j++) sum += exp((double)x[j] - (double)top);
  }
  return sum;
}

static double divergence(const float *r, float r_top, const float *x, int64_t n, double *difference) {
  double sum = 0;
  vf far = vf_set(0);
  float far_tail = 0;
  for (int64_t i = 0; i < n; i += CHUNK) {
    int64_t end = n - i < CHUNK ? n : i + CHUNK, j = i;
    vf a = vf_set(0);
    for (; j + VL <= end; j += VL) {
      vf u = vf_load(r + j), gap = u - vf_load(x + j);
      a = vf_fma(vf_exp(u - vf_set(r_top)), gap, a);
      far = vf_max(far, vf_abs(gap));
    }
    sum += (double)vf_sum(a);
    for (; j < end; j++) {
      float gap = r[j] - x[j];
      sum += exp((double)r[j] - (double)r_top) * (double)gap;
      far_tail = fmaxf(far_tail, fabsf(gap));
    }
  }
  *difference = (double)fmaxf(vf_most(far), far_tail);
  return sum;
}

/* M rows of x at once against one row of w. */
static inline __attribute__((always_inline)) void dot_row(float *y, int64_t y_stride, const float *x, int64_t k, const float *w,
                                                          const int M, float bias, bool add) {
  vf sums[4][2];
  for (int i = 0; i < M; i++) sums[i][0] = sums[i][1] = vf_set(0);
  int64_t l = 0;
  for (; l + 2 * VL <= k; l += 2 * VL) {
    vf u = vf_load(w + l), v = vf_load(w + l + VL);
#pragma GCC unroll 4
    for (int i = 0; i < M; i++) {
      sums[i][0] = vf_fma(vf_load(x + i * k + l), u, sums[i][0]);
      sums[i][1] = vf_fma(vf_load(x + i * k + l + VL), v, sums[i][1]);
    }
  }
  for (int i = 0; i < M; i++) {
    float sum = vf_sum(sums[i][0] + sums[i][1]);
    for (int64_t j = l; j < k; j++) sum += x[i * k + j] * w[j];
    y[i * y_stride] = (add ? y[i * y_stride] : 0) + sum + bias;
  }
}

static void dot_rows(float *y, int64_t y_stride, const float *x, int64_t m, const float *w, int64_t n, int64_t k,
                     const float *bias, bool add) {
  for (int64_t j = 0; j < n; j++) {
    float b = bias ? bias[j] : 0;
    for (int64_t i = 0; i < m; i += 4) {
      float *to = y + i * y_stride + j;
      const float *from = x + i * k, *row = w + j * k;
      switch (m - i) {
      case 1: dot_row(to, y_stride, from, k, row, 1, b, add); break;
      case 2: dot_row(to, y_stride, from, k, row, 2, b, add); break;
      case 3: dot_row(to, y_stride, from, k, row, 3, b, add); break;
      default: dot_row(to, y_stride, from, k, row, 4, b, add);
      }
    }
  }
}

static void convert(void *y, const float *x, int64_t n, int64_t padded) {
  memcpy(y, x, (size_t)n * sizeof *x);
  if (padded > n) memset((float *)y + n, 0, (size_t)(padded - n) * sizeof *x);
}

/* Numbers l .. l + n (n <= VL) of row i of a slice. */
static inline vf load_slice(const kf_slice *s, int i, int64_t l, int n) {
  int64_t at = s->column + l;
  if (s->type == KF_BF16) {
    const uint16_t *x = (const uint16_t *)s->rows[i] + at;
    return n == VL ? vf_load_bf16(x) : vf_load_bf16_n(x, n);
  }
  const float *x = (const float *)s->rows[i] + at;
  return n == VL ? vf_load(x) : vf_load_n(x, n);
}

#if defined(__AVX512F__)
#include "device/cpu/transpose_avx512.h"

static void pack_keys(void *panel, const kf_slice *s) {
  for (int key = 0; key < KF_PANEL; key += 16) {
    for (int64_t l = 0; l < s->n; l += 16) {
      int width = s->n - l < 16 ? (int)(s->n - l) : 16;
      __m512i block[16];
      for (int i = 0; i < 16; i++) block[i] = _mm512_castps_si512(load_slice(s, key + i, l, width));
      transpose16(block);
      for (int i = 0; i < width; i++) _mm512_storeu_si512((float *)panel + (l + i) * KF_PANEL + key, block[i]);
    }
  }
}
#else
static void pack_keys(void *panel, const kf_slice *s) {
  float *to = panel;
  for (int key = 0; key < KF_PANEL; key++) {
    for (int64_t l = 0; l < s->n; l += VL) {
      int width = s->n - l < VL ? (int)(s->n - l) : VL;
      float part[VL];
      vf_store(part, load_slice(s, key, l, width));
      for (int i = 0; i < width; i++) to[(l + i) * KF_PANEL + key] = part[i];
    }
  }
}
#endif

static void pack_values(void *panel, const kf_slice *s, int count) {
  for (int i = 0; i < count; i++) {
    float *to = (float *)panel + (int64_t)i * KF_PANEL;
    for (int64_t l = 0; l < KF_PANEL; l += VL) {
      int width = s->n - l < VL ? (int)(s->n - l) : VL;
      vf_store(to + l, width > 0 ? load_slice(s, i, l, width) : vf_set(0));
    }
  }
}

enum { WEIGH_ROWS = 4 };

/* R rows x (V vectors) of c. */
static inline __attribute__((always_inline)) void tile(float *c, int64_t ldc, const float *a, int64_t lda, const float *panel,
                                                       int64_t inner, const float *alpha, kf_ahead *ahead, const int R,
                                                       const int V) {
  vf sum[TILE_ROWS][TILE_VECTORS];
#pragma GCC unroll 6
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) {
      sum[r][v] = vf_set(0);
      if (alpha) sum[r][v] = vf_load(c + r * ldc + v * VL) * vf_set(alpha[r]);
    }
  }
  const char *from;
  int64_t fetch = kf_fetch_ahead(ahead, inner, &from);
  for (int64_t l = 0; l < inner; l++) {
    if (l < fetch) __builtin_prefetch(from + 64 * l, 0, 2);
    vf b[TILE_VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) b[v] = vf_load(panel + l * KF_PANEL + v * VL);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
      vf x = vf_set(a[r * lda + l]);
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) sum[r][v] = vf_fma(x, b[v], sum[r][v]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) vf_store(c + r * ldc + v * VL, sum[r][v]);
  }
}

static void tile_rows(float *c, int64_t ldc, const float *a, int64_t lda, const float *panel, int64_t inner, const float *alpha,
                      kf_ahead *ahead, int64_t rows) {
  switch (rows) {
  case 1: tile(c, ldc, a, lda, panel, inner, alpha, ahead, 1, TILE_VECTORS); break;
  case 2: tile(c, ldc, a, lda, panel, inner, alpha, ahead, 2, TILE_VECTORS); break;
  case 3: tile(c, ldc, a, lda, panel, inner, alpha, ahead, 3, TILE_VECTORS); break;
  case 4: tile(c, ldc, a, lda, panel, inner, alpha, ahead, 4, TILE_VECTORS); break;
#if defined(__AVX2__)
  case 5: tile(c, ldc, a, lda, panel, inner, alpha, ahead, 5, TILE_VECTORS); break;
  default: tile(c, ldc, a, lda, panel, inner, alpha, ahead, 6, TILE_VECTORS);
#endif
  }
}

static void multiply(float *c, int64_t ldc, const void *a, int64_t lda, const void *panel, int64_t inner, int64_t rows,
                     int columns, const float *alpha, kf_ahead *ahead) {
  int64_t groups = (rows + TILE_ROWS - 1) / TILE_ROWS;
  for (int64_t g = 0, r = 0; g < groups; g++) {
    int64_t end = rows * (g + 1) / groups;
    for (int v = 0; v < columns; v += TILE_VECTORS * VL)
      tile_rows(c + r * ldc + v, ldc, (const float *)a + r * lda, lda, (const float *)panel + v, inner, alpha ? alpha + r : NULL,
                ahead, end - r);
    r = end;
  }
}

/* R rows x one vector of columns from l on. */
static inline __attribute__((always_inline)) void weigh_columns(float *c, int64_t ldc, const float *a, int64_t lda,
                                                                const kf_slice *s, int count, int64_t l, const float *alpha,
                                                                kf_ahead *ahead, const int R) {
  vf sum[WEIGH_ROWS];
  int width = s->n - l < VL ? (int)(s->n - l) : VL;
#pragma GCC unroll 12
  for (int r = 0; r < R; r++) sum[r] = vf_load(c + r * ldc + l) * vf_set(alpha[r]);
  const char *from;
  int64_t fetch = kf_fetch_ahead(ahead, count, &from);
  for (int i = 0; i < count; i++) {
    if (i < fetch) __builtin_prefetch(from + 64 * i, 0, 2);
    vf x = load_slice(s, i, l, width);
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) sum[r] = vf_fma(vf_set(a[r * lda + i]), x, sum[r]);
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; r++) vf_store(c + r * ldc + l, sum[r]);
}

static void weigh(float *c, int64_t ldc, const void *a, int64_t lda, const kf_slice *s, int count, int n, const float *alpha,
                  kf_ahead *ahead) {
  for (int r = 0; r < n; r += WEIGH_ROWS) {
    float *to = c + r * ldc;
    const float *p = (const float *)a + r * lda;
    for (int64_t l = 0; l < s->n; l += VL) {
      switch (n - r) {
      case 1: weigh_columns(to, ldc, p, lda, s, count, l, alpha + r, ahead, 1); break;
      case 2: weigh_columns(to, ldc, p, lda, s, count, l, alpha + r, ahead, 2); break;
      case 3: weigh_columns(to, ldc, p, lda, s, count, l, alpha + r, ahead, 3); break;
      default: weigh_columns(to, ldc, p, lda, s, count, l, alpha + r, ahead, WEIGH_ROWS);
      }
    }
  }
}

#include "device/cpu/softmax.h"

static float softmax(float *s, int count, int low, int high, const float *factor, float scale_, float *maximum, float *sum,
                     void *p) {
  float alpha = softmax_begin(s, count, low, high, factor, scale_, maximum);
  vf total = vf_set(0);
  for (int i = 0; i < count; i += VL) {
    vf e = vf_exp2(vf_fma(vf_load(s + i), vf_set(scale_), vf_set(-*maximum)));
    total = total + e;
    vf_store((float *)p + i, e);
  }
  softmax_add(sum, alpha, total);
  return alpha;
}

#define KF_VECTOR_KERNELS \
  { sum_squares, scale, rotate, swiglu, to_bf16, from_bf16, most, sum_exp, divergence, dot_rows }
#define KF_TILE_KERNELS \
  { KF_F32, 1, convert, pack_keys, pack_values, multiply, weigh, softmax }
