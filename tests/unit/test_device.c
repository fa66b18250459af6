/* Every fast operation against its plain reference, on random shapes, for each instruction set that this machine has, and on
 * its GPU. With the argument "cuda" on the GPU only, which then must be there. bench/bench_device.c times them. */
#include <math.h>
#include <time.h>

#include "device/reference.h"
#include "operations.h"

/* |a - b| <= tolerance x |size|; size NULL: the root mean square of b. */
static void compare_sized(const char *what, const float *a, const float *b, const float *size, int64_t n, double tolerance) {
  double square = 0, worst = 0;
  int64_t at = 0;
  for (int64_t i = 0; i < n; i++) square += (double)b[i] * b[i];
  double scale = sqrt(square / (double)(n > 0 ? n : 1));
  for (int64_t i = 0; i < n && !isnan(worst); i++) {
    double gap = fabs((double)a[i] - b[i]) / ((size ? fabs((double)size[i]) : scale) + 1e-30);
    if (!(gap <= worst)) {
      worst = gap;
      at = i;
    }
  }
  if (!(worst <= tolerance))
    fail_msg("%s (%s, %s): number %lld of %lld is %.9g, expected %.9g (%.3g of its size, allowed %.3g)", what, device->isa,
             device->compute == KF_BF16 ? "bf16" : "f32", (long long)at, (long long)n, (double)a[at], (double)b[at], worst,
             tolerance);
}
static void compare(const char *what, const float *a, const float *b, int64_t n, double tolerance) {
  compare_sized(what, a, b, NULL, n, tolerance);
}
/* Sums of k products in f32. */
static double sum_tolerance(int64_t k) {
  return 4e-7 * sqrt((double)k) + 1e-6;
}

/* ------------------------------------------------------------------------------------------------ products */

static void try_linear(int64_t m, int64_t n, int64_t k, bool biased, bool add) {
  float *x = rounded(m * k), *w = rounded(n * k), *bias = biased ? numbers(n) : NULL;
  float *y = numbers(m * n), *expected = copy(y, m * n);
  kf_weight *packed = NULL;
  kf_error e = {0};
  assert_int_equal(device->pack(device, w, bias, n, k, &packed, &e), KF_OK);
  assert_true(device->weight_bytes(packed) >= (size_t)(n * k) * kf_element(device->compute));
  device->linear(device, y, x, packed, m, add);
  check_device();
  kf_reference_linear(expected, x, w, bias, m, n, k, add);
  char name[96];
  snprintf(name, sizeof name, "linear m=%d n=%d k=%d bias=%d add=%d", (int)m, (int)n, (int)k, biased, add);
  compare(name, y, expected, m * n, sum_tolerance(k));
  device->weight_free(device, packed);
  drop(x), drop(w), drop(bias), drop(y), drop(expected);
}

static void linear(void **state) {
  (void)state;
  static const int rows[] = {1, 2, 3, 5, 6, 7, 12, 13, 16, 17, 33, 100};
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    try_linear(rows[i], 64, 32, false, false);
    try_linear(rows[i], between(1, 200), between(1, 300), i % 2, i % 3 == 0);
    try_linear(rows[i], between(1, 40), between(500, 1300), i % 2 == 0, i % 3 == 1);
  }
}

/* y = h W^T where h is made on the way and rounded to the compute type: in bf16 each of its numbers is off by 2^-8 of itself
 * at most. h: the same product with the identity for W. */
static void compare_made(const char *what, const float *y, const float *expected, float *h, const float *w, int64_t m, int64_t n,
                         int64_t k) {
  float *positive = copy(w, n * k), *size = numbers(m * n);
  for (int64_t i = 0; i < m * k; i++) h[i] = fabsf(h[i]);
  for (int64_t i = 0; i < n * k; i++) positive[i] = fabsf(w[i]);
  kf_reference_linear(size, h, positive, NULL, m, n, k, false);
  for (int64_t i = 0; i < m * n; i++) size[i] += fabsf(expected[i]);
  compare_sized(what, y, expected, size, m * n, device->compute == KF_BF16 ? 0x1p-8 : 4e-6);
  drop(positive), drop(size);
}

static void try_made_input(int64_t m, int64_t n, int64_t k, bool biased) {
  float *x = numbers(m * 2 * k), *w = rounded(n * k), *norm = numbers(k), *bias = biased ? numbers(n) : NULL;
  float *y = numbers(m * n), *expected = copy(y, m * n), *h = calloc((size_t)(m * k), sizeof *h);
  float *identity = calloc((size_t)(k * k), sizeof *identity);
  kf_weight *packed = NULL;
  kf_error e = {0};
  assert_true(h && identity);
  for (int64_t i = 0; i < k; i++) identity[i * k + i] = 1;
  for (int64_t i = 0; i < m * 2 * k; i++) x[i] *= 8;
  x[0] = -150;
  assert_int_equal(device->pack(device, w, bias, n, k, &packed, &e), KF_OK);
  device->swiglu_linear(device, y, x, packed, m);
  assert_int_equal(kf_reference_swiglu_linear(expected, x, w, bias, m, n, k, &e), KF_OK);
  assert_int_equal(kf_reference_swiglu_linear(h, x, identity, NULL, m, k, k, &e), KF_OK);
  check_device();
  compare_made("swiglu_linear", y, expected, h, w, m, n, k);
  device->norm_linear(device, y, x, norm, 1e-5f, packed, m);
  assert_int_equal(kf_reference_norm_linear(expected, x, norm, 1e-5f, w, bias, m, n, k, &e), KF_OK);
  assert_int_equal(kf_reference_norm_linear(h, x, norm, 1e-5f, identity, NULL, m, k, k, &e), KF_OK);
  check_device();
  compare_made("norm_linear", y, expected, h, w, m, n, k);
  device->weight_free(device, packed);
  drop(x), drop(w), drop(norm), drop(bias), drop(y), drop(expected);
  free(h), free(identity);
}

static void made_input(void **state) {
  (void)state;
  static const int rows[] = {1, 4, 5, 6, 7, 33, 100};
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) try_made_input(rows[i], between(1, 150), between(1, 300), i % 2);
}

typedef struct heads_case {
  int64_t m;
  int heads, kv_heads, rank, stride;
  kf_head_rows rows[8];
  float *w, *bias;
  int64_t w_rows;
  kf_weight *plain;
} heads_case;

static heads_case make_heads(void) {
  heads_case c = {.kv_heads = between(1, 4), .rank = between(1, 150)};
  static const int tokens[] = {1, 2, 3, 7, 50};
  c.m = tokens[below(5)];
  c.heads = c.kv_heads * between(1, 4);
  for (int g = 0; g < c.kv_heads; g++) {
    c.rows[g] = (kf_head_rows){c.w_rows + below(3), between(1, 90)};
    c.w_rows = c.rows[g].first + c.rows[g].count;
    if (c.rows[g].count > c.stride) c.stride = (int)c.rows[g].count;
  }
  c.stride += below(4);
  c.w = rounded(c.w_rows * c.rank);
  c.bias = numbers(c.w_rows);
  kf_error e;
  assert_int_equal(device->plain(device, c.w, c.w_rows, c.rank, &c.plain, &e), KF_OK);
  return c;
}

static void free_heads(heads_case *c) {
  device->weight_free(device, c->plain);
  drop(c->w), drop(c->bias);
}

static void heads(void **state) {
  (void)state;
  for (int round = 0; round < 12; round++) {
    heads_case c = make_heads();
    int64_t all = c.m * c.heads;
    float *x = rounded(all * c.stride), *y = numbers(all * c.rank), *expected = copy(y, all * c.rank);
    device->head_transposed(device, y, x, c.m, c.heads, c.stride, c.plain, c.rows, c.kv_heads);
    kf_reference_head_transposed(expected, x, c.m, c.heads, c.stride, c.w, c.rank, c.rows, c.kv_heads);
    check_device();
    compare("head_transposed", y, expected, all * c.rank, sum_tolerance(100));
    float *latent = rounded(all * c.rank), *v = numbers(all * c.stride), *v_expected = copy(v, all * c.stride);
    const float *bias = round % 2 ? c.bias : NULL;
    device->head_times(device, v, c.stride, latent, c.m, c.heads, c.plain, c.rows, c.kv_heads, bias);
    kf_reference_head_times(v_expected, c.stride, latent, c.m, c.heads, c.w, c.rank, c.rows, c.kv_heads, bias);
    check_device();
    compare("head_times", v, v_expected, all * c.stride, sum_tolerance(100));
    drop(x), drop(y), drop(expected), drop(latent), drop(v), drop(v_expected);
    free_heads(&c);
  }
}

/* A KV head may have no rows: all of its key is rotated. */
static void head_without_rows(void **state) {
  (void)state;
  enum { M = 3, HEADS = 4, RANK = 37, STRIDE = 5 };
  const kf_head_rows rows[2] = {{1, 0}, {2, STRIDE}};
  float *w = rounded((2 + STRIDE) * RANK), *x = rounded(M * HEADS * RANK), *y = numbers(M * HEADS * RANK),
        *expected = copy(y, M * HEADS * RANK);
  kf_weight *plain;
  kf_error e;
  assert_int_equal(device->plain(device, w, 2 + STRIDE, RANK, &plain, &e), KF_OK);
  device->head_times(device, y, STRIDE, x, M, HEADS, plain, rows, 2, w);
  kf_reference_head_times(expected, STRIDE, x, M, HEADS, w, RANK, rows, 2, w);
  check_device();
  compare("head_times", y, expected, M * HEADS * RANK, sum_tolerance(RANK));
  device->head_transposed(device, y, x, M, HEADS, STRIDE, plain, rows, 2);
  kf_reference_head_transposed(expected, x, M, HEADS, STRIDE, w, RANK, rows, 2);
  check_device();
  compare("head_transposed", y, expected, M * HEADS * RANK, sum_tolerance(STRIDE));
  device->weight_free(device, plain);
  drop(w), drop(x), drop(y), drop(expected);
}

/* ------------------------------------------------------------------------------------------------ caches, attention */

/* Pages filled with random numbers. */
static kf_rows make_rows(int64_t tokens, int page_tokens, int64_t columns, kf_dtype dtype) {
  int64_t count = (tokens + page_tokens - 1) / page_tokens;
  void **pages = calloc((size_t)count + 1, sizeof *pages);
  assert_non_null(pages);
  for (int64_t p = 0; p < count; p++) {
    float *x = rounded(page_tokens * columns);
    pages[p] = x;
    if (dtype != KF_BF16) continue;
    uint16_t *h = memory(page_tokens * columns, sizeof *h);
    for (int64_t i = 0; i < page_tokens * columns; i++) h[i] = kf_f32_to_bf16(x[i]);
    drop(x);
    pages[p] = h;
  }
  return (kf_rows){pages, page_tokens, columns, dtype};
}
static void free_rows(kf_rows *rows, int64_t tokens) {
  for (int64_t p = 0; p < (tokens + rows->page_tokens - 1) / rows->page_tokens; p++) drop(rows->pages[p]);
  free((void *)(uintptr_t)rows->pages);
}

static void store_fetch(void **state) {
  (void)state;
  for (int round = 0; round < 20; round++) {
    int64_t at = below(100), m = between(1, 150), n = between(1, 90), column = below(5), stride = n + below(7);
    kf_dtype dtype = round % 2 ? KF_BF16 : KF_F32;
    kf_rows ours = make_rows(at + m, round % 3 ? 64 : 7, column + n + below(3), dtype);
    float *x = numbers(m * stride), *y = numbers(m * stride), *expected = copy(y, m * stride);
    device->store(device, &ours, at, m, column, n, x, stride);
    check_device();
    kf_reference_fetch(expected, stride, &ours, at, m, column, n);
    device->fetch(device, y, stride, &ours, at, m, column, n);
    check_device();
    assert_memory_equal(y, expected, (size_t)(m * stride) * sizeof *y);
    kf_reference_store(&ours, at, m, column, n, x, stride);
    device->fetch(device, expected, stride, &ours, at, m, column, n);
    check_device();
    assert_memory_equal(y, expected, (size_t)(m * stride) * sizeof *y);
    drop(x), drop(y), drop(expected);
    free_rows(&ours, at + m);
  }
}

enum { MOST_SEQUENCES = 3 };

/* A score of size s is off by s x 2^-24, and its probability with it. bf16: probabilities are rounded before they weigh the
 * values. */
static double attention_tolerance(void) {
  return device->compute == KF_BF16 ? 1e-2 : 2e-5;
}

/* The same rows with |values|: attention over them gives sum p |v|, of which an output is off by a part as its probabilities are:
 * half a unit in the last place of bf16 (2^-8). */
static void make_positive(const kf_rows *rows, int64_t tokens, int64_t first, int64_t n) {
  for (int64_t t = 0; t < tokens; t++) {
    int64_t at = t % rows->page_tokens * rows->columns + first;
    void *page = rows->pages[t / rows->page_tokens];
    for (int64_t j = 0; j < n; j++) {
      if (rows->dtype == KF_BF16)
        ((uint16_t *)page)[at + j] &= 0x7fff;
      else
        ((float *)page)[at + j] = fabsf(((float *)page)[at + j]);
    }
  }
}

static void try_attention(const kf_attention_shape *shape, int count, const int64_t *m, const int64_t *past, kf_dtype dtype) {
  kf_attention ours[MOST_SEQUENCES] = {0}, theirs[MOST_SEQUENCES];
  for (int i = 0; i < count; i++) {
    int64_t columns = (int64_t)shape->kv_heads * (shape->d_qk + shape->d_v) + below(3), wide = (int64_t)shape->heads * shape->d_v;
    int64_t stride = (int64_t)shape->heads * shape->d_qk + (m[i] + past[i]) % 9;
    ours[i] = (kf_attention){.q = rounded(m[i] * stride),
                             .q_stride = stride,
                             .out = numbers(m[i] * wide),
                             .m = m[i],
                             .past = past[i],
                             .rows = make_rows(m[i] + past[i], 64, columns, dtype)};
    theirs[i] = ours[i];
    theirs[i].out = copy(ours[i].out, m[i] * wide);
  }
  kf_error e;
  device->attention(device, shape, ours, count);
  check_device();
  assert_int_equal(kf_reference_attention(shape, theirs, count, &e), KF_OK);
  for (int i = 0; i < count; i++) {
    char name[160];
    snprintf(name, sizeof name, "attention m=%d past=%d heads=%d/%d d=%d/%d window=%d", (int)m[i], (int)past[i], shape->heads,
             shape->kv_heads, shape->d_qk, shape->d_v, (int)shape->window);
    kf_attention sizes = theirs[i];
    sizes.out = numbers(m[i] * shape->heads * shape->d_v);
    make_positive(&sizes.rows, m[i] + past[i], (int64_t)shape->kv_heads * shape->d_qk, (int64_t)shape->kv_heads * shape->d_v);
    assert_int_equal(kf_reference_attention(shape, &sizes, 1, &e), KF_OK);
    compare_sized(name, ours[i].out, theirs[i].out, sizes.out, m[i] * shape->heads * shape->d_v,
                  device->compute == KF_BF16 ? 0x1p-8 : 1e-5);
    drop(ours[i].q), drop(ours[i].out), drop(theirs[i].out), drop(sizes.out);
    free_rows(&ours[i].rows, m[i] + past[i]);
  }
}

static void attention(void **state) {
  (void)state;
  static const int64_t rows[] = {1, 2, 3, 5, 7, 16, 33, 100, 200};
  for (int round = 0; round < 36; round++) {
    int kv_heads = between(1, 3);
    kf_attention_shape shape = {
        .heads = kv_heads * between(1, 4), .kv_heads = kv_heads, .d_qk = between(1, 100), .d_v = between(1, 100)};
    if (round % 3 == 0) shape.d_qk = shape.d_v = 64;
    shape.scale = 1 / sqrtf((float)shape.d_qk);
    if (round % 4 == 3) shape.window = between(1, 150);
    int count = between(1, MOST_SEQUENCES);
    int64_t m[MOST_SEQUENCES], past[MOST_SEQUENCES];
    for (int i = 0; i < count; i++) {
      m[i] = round % 2 ? rows[below(3)] : rows[below(9)];
      past[i] = below(3) ? below(round % 5 ? 300 : 900) : 0;
    }
    try_attention(&shape, count, m, past, device->compute);
    if (round % 6 == 0) try_attention(&shape, count, m, past, device->compute == KF_BF16 ? KF_F32 : KF_BF16);
  }
}

/* A step in which no sequence has a token. */
static void nothing_to_do(void **state) {
  (void)state;
  kf_attention_shape shape = {.heads = 2, .kv_heads = 1, .d_qk = 8, .d_v = 8, .scale = 1};
  float out = 7, q = 1;
  void *page = &q;
  kf_attention a = {.q = &q, .q_stride = 16, .out = &out, .rows = {&page, 64, 16, KF_F32}, .m = 0, .past = 5};
  device->attention(device, &shape, &a, 1);
  device->attention(device, &shape, &a, 0);
  device->rmsnorm(device, &out, &q, &q, 0, 1, 1e-5f);
  check_device();
  assert_true(out == 7);
}

static void latent_attention(void **state) {
  (void)state;
  static const int64_t rows[] = {1, 1, 2, 5, 33, 100};
  for (int round = 0; round < 24; round++) {
    int kv_heads = between(1, 3), offset[3], width[3];
    kf_latent_shape shape = {.heads = kv_heads * between(1, 4),
                             .kv_heads = kv_heads,
                             .rank = between(1, 160),
                             .rope_offset = offset,
                             .rope_width = width,
                             .inverse_rms = -1};
    int64_t columns = shape.rank;
    for (int g = 0; g < kv_heads; g++) {
      width[g] = round % 3 == 0 && g ? width[0] : 2 * between(0, 12);
      offset[g] = round % 3 == 0 ? shape.rank : (int)columns;
      columns = offset[g] + width[g];
      if (width[g] > shape.rope_stride) shape.rope_stride = width[g];
    }
    shape.rope_stride += below(3);
    shape.scale = 1 / sqrtf((float)(shape.rank + shape.rope_stride));
    if (round % 4 == 2) shape.inverse_rms = (int)columns;
    columns += kv_heads;
    if (round % 5 == 4) shape.window = between(1, 100);
    int64_t m = rows[below(6)], past = below(4) ? below(700) : 0;
    kf_latent_attention ours = {.q_latent = rounded(m * shape.heads * shape.rank),
                                .q_rope = rounded(m * shape.heads * shape.rope_stride + 1),
                                .out = numbers(m * shape.heads * shape.rank),
                                .rows = make_rows(m + past, 64, columns, device->compute),
                                .m = m,
                                .past = past};
    kf_latent_attention theirs = ours;
    theirs.out = copy(ours.out, m * shape.heads * shape.rank);
    kf_error e;
    device->latent_attention(device, &shape, &ours, 1);
    check_device();
    assert_int_equal(kf_reference_latent_attention(&shape, &theirs, 1, &e), KF_OK);
    compare("latent_attention", ours.out, theirs.out, m * shape.heads * shape.rank, attention_tolerance());
    drop(ours.q_latent), drop(ours.q_rope), drop(ours.out), drop(theirs.out);
    free_rows(&ours.rows, m + past);
  }
}

/* ------------------------------------------------------------------------------------------------ rows */

static void norms(void **state) {
  (void)state;
  static const int rows[] = {1, 3, 100};
  for (int round = 0; round < 12; round++) {
    int m = rows[round % 3], n = between(1, 700), w_heads = between(1, 3), h = w_heads * between(1, 3), d = between(1, 90);
    float *x = numbers((int64_t)m * n), *w = numbers(n), *y = copy(x, (int64_t)m * n), *expected = copy(x, (int64_t)m * n);
    device->rmsnorm(device, round % 2 ? y : expected, x, w, m, n, 1e-5f);
    kf_reference_rmsnorm(round % 2 ? expected : y, x, w, m, n, 1e-5f);
    check_device();
    compare_sized("rmsnorm", y, expected, expected, (int64_t)m * n, 1e-6);
    int64_t stride = (int64_t)h * d + below(5);
    float *q = numbers(m * stride), *q_expected = copy(q, m * stride), *qw = numbers((int64_t)w_heads * d);
    device->head_norm(device, q, m, stride, h, d, qw, w_heads, 1e-6f);
    kf_reference_head_norm(q_expected, m, stride, h, d, qw, w_heads, 1e-6f);
    check_device();
    compare_sized("head_norm", q, q_expected, q_expected, m * stride, 1e-6);
    drop(x), drop(w), drop(y), drop(expected), drop(q), drop(q_expected), drop(qw);
  }
}

static void rope(void **state) {
  (void)state;
  for (int round = 0; round < 12; round++) {
    int pairs = between(1, 40), m = between(1, 120), positions = 50, blocks = between(1, 6);
    int32_t index[40], *position = memory(m, sizeof *position);
    kf_rope_block block[6];
    int64_t stride = 0;
    for (int j = 0; j < 40; j++) index[j] = below(pairs);
    for (int i = 0; i < m; i++) position[i] = below(positions);
    for (int b = 0; b < blocks; b++) {
      block[b] = (kf_rope_block){(int)stride + below(3), between(1, pairs), b % 2 ? index : NULL};
      stride = block[b].offset + 2 * block[b].pairs;
    }
    float *x = numbers(m * stride), *expected = copy(x, m * stride), *c = numbers((int64_t)positions * pairs),
          *s = numbers((int64_t)positions * pairs), *negated = copy(s, (int64_t)positions * pairs);
    device->rope(device, x, m, stride, block, blocks, c, s, pairs, position, round % 4 == 3);
    for (int64_t i = 0; round % 4 == 3 && i < (int64_t)positions * pairs; i++) negated[i] = -s[i];
    kf_reference_rope(expected, m, stride, block, blocks, c, negated, pairs, position);
    check_device();
    compare("rope", x, expected, m * stride, 2e-6);
    drop(x), drop(expected), drop(c), drop(s), drop(negated), drop(position);
  }
}

static void copies(void **state) {
  (void)state;
  for (int round = 0; round < 8; round++) {
    int64_t m = between(1, 90), n = between(1, 70), y_stride = n + below(9), x_stride = n + below(9);
    float *x = numbers(m * x_stride), *y = numbers(m * y_stride), *expected = copy(y, m * y_stride);
    for (int64_t i = 0; i < m * n; i++) {
      float *to = expected + i / n * y_stride + i % n, from = x[i / n * x_stride + i % n];
      *to = round % 2 ? *to + from : from;
    }
    device->copy(device, y, y_stride, x, x_stride, m, n, round % 2);
    device->zero(device, x, m * n);
    check_device();
    assert_memory_equal(y, expected, (size_t)(m * y_stride) * sizeof *y);
    for (int64_t i = 0; i < m * n; i++) assert_true(x[i] == 0);
    drop(x), drop(y), drop(expected);
  }
}

static void losses(void **state) {
  (void)state;
  for (int round = 0; round < 8; round++) {
    int64_t m = between(1, 20), v = round ? between(1, 3000) : 49152;
    float *r = numbers(m * v), *x = copy(r, m * v);
    int32_t *target = memory(m, sizeof *target), *best = memory(m, sizeof *best), best_expected[20];
    double *nll = memory(m, sizeof *nll), *kl = memory(m, sizeof *kl), *gap = memory(m, sizeof *gap);
    double nll_expected[20], kl_expected[20], gap_expected[20];
    for (int64_t i = 0; i < m * v; i++) {
      r[i] *= 6;
      x[i] = r[i] + 0.3f * (float)kf_random_normal(&dice);
    }
    if (v > 2) x[v - 1] = x[v / 2] = 40; /* the first of equals wins */
    for (int64_t i = 0; i < m; i++) target[i] = below((int)v);
    device->cross_entropy(device, x, target, m, v, nll, best);
    kf_reference_cross_entropy(x, target, m, v, nll_expected, best_expected);
    device->divergence(device, r, x, m, v, kl, gap);
    kf_reference_divergence(r, x, m, v, kl_expected, gap_expected);
    check_device();
    for (int64_t i = 0; i < m; i++) {
      assert_int_equal(best[i], best_expected[i]);
      assert_true(fabs(nll[i] - nll_expected[i]) <= 1e-6 * (1 + fabs(nll_expected[i])));
      assert_true(fabs(kl[i] - kl_expected[i]) <= 1e-6 * (1 + fabs(kl_expected[i])));
      assert_true(fabs(gap[i] - gap_expected[i]) <= 1e-6 * (1 + gap_expected[i]));
    }
    drop(r), drop(x), drop(target), drop(best), drop(nll), drop(kl), drop(gap);
  }
}

/* ------------------------------------------------------------------------------------------------ the device */

static void determinism(void **state) {
  (void)state;
  kf_attention_shape shape = {.heads = 6, .kv_heads = 2, .d_qk = 64, .d_v = 48, .scale = 0.125f};
  int64_t past = 3000, n = shape.heads * shape.d_v;
  kf_rows rows = make_rows(past + 1, 64, 2 * (64 + 48), device->compute);
  kf_attention a = {.q = numbers(shape.heads * shape.d_qk),
                    .q_stride = shape.heads * shape.d_qk,
                    .out = numbers(n),
                    .rows = rows,
                    .m = 1,
                    .past = past};
  device->attention(device, &shape, &a, 1);
  check_device();
  float *first = copy(a.out, n);
  for (int i = 0; i < 5; i++) {
    device->attention(device, &shape, &a, 1);
    check_device();
    assert_memory_equal(first, a.out, (size_t)n * sizeof *first);
  }
  drop(a.q), drop(a.out), drop(first);
  free_rows(&rows, past + 1);
}

static void errors(void **state) {
  (void)state;
  kf_error e = {0};
  kf_device *d = NULL;
  if (kf_isa_best() != KF_ISA_AVX512_BF16) {
    assert_int_equal(kf_device_open_cpu(KF_COMPUTE_BF16, 0, &d, &e), KF_ERROR_INPUT);
    assert_string_equal(kf_cpu_auto_compute(), "f32");
  }
  assert_int_equal(kf_device_open_isa(KF_ISA_PORTABLE, KF_COMPUTE_BF16, 0, &d, &e), KF_ERROR_INPUT);
  assert_non_null(strstr(e.message, "bf16"));
  kf_fail(&device->error, KF_ERROR_MEMORY, "the first failure");
  assert_int_equal(kf_device_check(device, &e), KF_ERROR_MEMORY);
  assert_string_equal(e.message, "the first failure");
  assert_int_equal(kf_device_check(device, &e), KF_OK);
  kf_device_close(NULL);
}

int main(int argc, char **argv) {
  static const struct CMUnitTest tests[] = {
      cmocka_unit_test(linear),
      cmocka_unit_test(made_input),
      cmocka_unit_test(heads),
      cmocka_unit_test(head_without_rows),
      cmocka_unit_test(store_fetch),
      cmocka_unit_test(attention),
      cmocka_unit_test(latent_attention),
      cmocka_unit_test(nothing_to_do),
      cmocka_unit_test(norms),
      cmocka_unit_test(rope),
      cmocka_unit_test(copies),
      cmocka_unit_test(losses),
      cmocka_unit_test(determinism),
      cmocka_unit_test(errors),
  };
  return run_everywhere(tests, sizeof tests / sizeof *tests, argc, argv);
}
