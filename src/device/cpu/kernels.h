/* The kernels that differ by instruction set: one table each, chosen when the device is opened.
 *
 * Products work on panels. A panel holds 64 outputs side by side: step s of the inner dimension is 64 f32, or 64 pairs
 * of bf16 (elements 2s and 2s + 1 of each output): the layout that oneDNN calls BA16a64b (BA16a64b2a in bf16), so that
 * packed weights serve both. Inner dimensions are padded with zeros to a whole step.
 */
#ifndef KF_CPU_KERNELS_H
#define KF_CPU_KERNELS_H

#include "device/device.h"

enum {
  KF_PANEL = 64,        /* outputs of a panel */
  KF_TILE = 256,        /* keys of one step of the flash loop: two panels */
  KF_FEW_ROWS = 12,     /* rows that weigh() takes */
  KF_ROW_GROUP = 6,     /* rows that multiply() likes best */
  KF_SOFTMAX_KEYS = 32, /* softmax() takes a multiple of so many */
  KF_LANES = 16,        /* parts of a sum that is added up at the end */
};

typedef struct kf_vector_kernels {
  float (*sum_squares)(const float *x, int64_t n);
  void (*scale)(float *y, const float *x, const float *w, float factor, int64_t n); /* y = x * factor * w */
  void (*rotate)(float *first, float *second, const float *cos, const float *sin, int n);
  void (*swiglu)(float *y, const float *gate, const float *up, int64_t n);
  void (*to_bf16)(uint16_t *y, const float *x, int64_t n);
  void (*from_bf16)(float *y, const uint16_t *x, int64_t n);
  float (*most)(const float *x, int64_t n);
  double (*sum_exp)(const float *x, float most, int64_t n); /* of e^(x - most) */
  /* sum of e^(r - r_most) (r - x); *difference: max |r - x| */
  double (*divergence)(const float *r, float r_most, const float *x, int64_t n, double *difference);
  /* y[j] (+)= x . w[j, :] + bias[j]; w: [n, k] rows. x: [m, k], y: [m, y_stride]. Small m. */
  void (*dot_rows)(float *y, int64_t y_stride, const float *x, int64_t m, const float *w, int64_t n, int64_t k, const float *bias,
                   bool add);
} kf_vector_kernels;

/* Columns column .. column + n of some rows. */
typedef struct kf_slice {
  const void *const *rows;
  kf_dtype type;
  int64_t column, n;
} kf_slice;

/* Memory that is read soon: products that have the time fetch one line of it a step and move `at` on. */
typedef struct kf_ahead {
  const char *at, *end;
} kf_ahead;

/* How many of n steps have a line to fetch, from *from on. */
static inline int64_t kf_fetch_ahead(kf_ahead *ahead, int64_t n, const char **from) {
  *from = ahead ? ahead->at : NULL;
  if (!ahead || ahead->at >= ahead->end) return 0;
  int64_t lines = (ahead->end - ahead->at + 63) / 64;
  if (n > lines) n = lines;
  ahead->at += 64 * n;
  return n;
}

/* Products in one compute type. `element` is that type's; leading dimensions count elements. */
typedef struct kf_tile_kernels {
  kf_dtype type;
  int step; /* inner elements of one step: 1 or 2 */
  /* y = x in the compute type, padded with zeros to `padded`. */
  void (*convert)(void *y, const float *x, int64_t n, int64_t padded);
  /* Panel whose outputs are 64 rows (keys) and whose inner dimension is the slice's columns. */
  void (*pack_keys)(void *panel, const kf_slice *s);
  /* Panel whose outputs are the slice's columns (64 at most, the rest zero) and whose inner dimension is `count` rows. */
  void (*pack_values)(void *panel, const kf_slice *s, int count);
  /* c[r][0 .. columns) = alpha[r] * c[r] + sum over `inner` of a[r] x panel; alpha NULL: without the first term.
   * Columns are rounded up to 16; c has room for 64. `ahead` may be NULL. */
  void (*multiply)(float *c, int64_t ldc, const void *a, int64_t lda, const void *panel, int64_t inner, int64_t rows, int columns,
                   const float *alpha, kf_ahead *ahead);
  /* The same with the slice's columns of `count` rows (even) as they stand in memory for a panel, without packing them
   * first: for n <= KF_FEW_ROWS rows of a. c has room for a multiple of 64 columns. */
  void (*weigh)(float *c, int64_t ldc, const void *a, int64_t lda, const kf_slice *s, int count, int n, const float *alpha,
                kf_ahead *ahead);
  /* One row of the online softmax. s: scores of `count` keys (a multiple of KF_SOFTMAX_KEYS), those outside [low, high) invisible, low < high;
   * factor (NULL: 1) multiplies the scores, `scale` (with log2 e in it) too. p = 2^(s - maximum) in the compute type.
   * Updates *maximum and sum [KF_LANES] and returns what earlier sums must be multiplied by. */
  float (*softmax)(float *s, int count, int low, int high, const float *factor, float scale, float *maximum, float *sum, void *p);
} kf_tile_kernels;

extern const kf_vector_kernels kf_vector_portable;
extern const kf_tile_kernels kf_tile_portable;
#if defined(__x86_64__)
extern const kf_vector_kernels kf_vector_avx2, kf_vector_avx512;
extern const kf_tile_kernels kf_tile_avx2, kf_tile_avx512, kf_tile_avx512bf16;
#endif

#endif
