/* The backward operations: each plain reference against finite differences in fp64, each instruction set's version against
 * the reference, on random shapes. */
#include <math.h>

#include "device/reference.h"
#include "operations.h"

/* Numbers of which a gradient is what is added. */
static float *zeros(int64_t n) {
  float *x = memory(n + 1, sizeof *x);
  return memset(x, 0, (size_t)n * sizeof *x);
}

/* Largest difference against the size of what is expected, or of the terms that cancel in it. */
static void compare_terms(const char *what, const float *got, const float *want, int64_t n, double tolerance, double terms) {
  double worst = 0, size = terms;
  for (int64_t i = 0; i < n; i++) {
    assert_true(isfinite(got[i]));
    worst = fmax(worst, fabs((double)got[i] - want[i]));
    size = fmax(size, fabs((double)want[i]));
  }
  if (worst > tolerance * size) fail_msg("%s (%s): off by %.3g of %.3g", what, device->isa, worst, size);
}
static void compare(const char *what, const float *got, const float *want, int64_t n, double tolerance) {
  compare_terms(what, got, want, n, tolerance, 1e-6);
}

/* ------------------------------------------------------------------------------------------------ finite differences */

/* A function of some fp64 inputs whose derivative along a direction is compared with the gradient's product with it. */
typedef double (*scalar)(const void *shape, double *const *x);
enum { MOST_INPUTS = 4 };

static void differences(const char *what, scalar f, const void *shape, int inputs, float *const *x, float *const *gradient,
                        const int64_t *n) {
  double *at[MOST_INPUTS], *along[MOST_INPUTS];
  const double step = 1e-5;
  for (int i = 0; i < inputs; i++) {
    at[i] = malloc((size_t)n[i] * sizeof **at);
    along[i] = malloc((size_t)n[i] * sizeof **along);
    for (int64_t j = 0; j < n[i]; j++) at[i][j] = x[i][j];
  }
  for (int i = 0; i < inputs; i++) {
    for (int round = 0; round < 3; round++) {
      double want, got = 0, size = 0;
      for (int64_t j = 0; j < n[i]; j++) {
        along[i][j] = kf_random_normal(&dice);
        got += along[i][j] * gradient[i][j];
        size += fabs(along[i][j] * gradient[i][j]);
        at[i][j] = x[i][j] + step * along[i][j];
      }
      want = f(shape, at);
      for (int64_t j = 0; j < n[i]; j++) at[i][j] = x[i][j] - step * along[i][j];
      want = (want - f(shape, at)) / (2 * step);
      for (int64_t j = 0; j < n[i]; j++) at[i][j] = x[i][j];
      if (!(fabs(got - want) <= 1e-6 * (size + 1e-3))) fail_msg("%s, input %d: %.9g, by differences %.9g", what, i, got, want);
    }
  }
  for (int i = 0; i < inputs; i++) free(at[i]), free(along[i]);
}

/* Sum of dy y, whose gradient by x is the backward of dy. */
typedef struct norm_shape {
  int m, heads, w_heads, n;
  const float *dy;
} norm_shape;

static double norm_forward(const void *shape, double *const *x) {
  const norm_shape *s = shape;
  double sum = 0;
  for (int i = 0; i < s->m * s->heads; i++) {
    const double *row = x[0] + i * s->n, *w = x[1] + i % s->heads / (s->heads / s->w_heads) * s->n;
    double squares = 0;
    for (int j = 0; j < s->n; j++) squares += row[j] * row[j];
    for (int j = 0; j < s->n; j++) sum += s->dy[i * s->n + j] * row[j] / sqrt(squares / s->n + (double)1e-5f) * w[j];
  }
  return sum;
}

/* The largest of the two terms of dx, which cancel where a row has few numbers. */
static double norm_terms(const norm_shape *s, const float *x, const float *w) {
  double terms = 0;
  for (int i = 0; i < s->m * s->heads; i++) {
    const float *row = x + i * s->n, *weight = w + i % s->heads / (s->heads / s->w_heads) * s->n;
    double squares = 0;
    for (int j = 0; j < s->n; j++) squares += (double)row[j] * row[j];
    for (int j = 0; j < s->n; j++)
      terms = fmax(terms, fabs((double)weight[j] * s->dy[i * s->n + j]) / sqrt(squares / s->n + (double)1e-5f));
  }
  return terms;
}

static void norms(void **state) {
  (void)state;
  for (int round = 0; round < 12; round++) {
    norm_shape s = {.m = between(1, round % 2 ? 200 : 5), .w_heads = between(1, 3), .n = between(1, 90)};
    s.heads = s.w_heads * between(1, 3);
    int64_t width = (int64_t)s.heads * s.n, all = s.m * width, weights = (int64_t)s.w_heads * s.n, stride = width + below(4);
    float *x = numbers(all), *w = numbers(weights), *dy = numbers(all), *dw = zeros(weights), *dx = copy(dy, all);
    s.dy = dy;
    kf_reference_head_norm_backward(dx, width, dw, x, width, s.m, s.heads, s.n, w, s.w_heads, 1e-5f);
    if (s.m < 6) differences("head norm", norm_forward, &s, 2, (float *[]){x, w}, (float *[]){dx, dw}, (int64_t[]){all, weights});
    float *ours = numbers(s.m * stride), *dw_ours = numbers(weights), *dw_start = copy(dw_ours, weights);
    for (int i = 0; i < s.m; i++) memcpy(ours + i * stride, dy + i * width, (size_t)width * sizeof *dy);
    device->head_norm_backward(device, ours, stride, dw_ours, x, width, s.m, s.heads, s.n, w, s.w_heads, 1e-5f);
    check_device();
    for (int i = 0; i < s.m; i++) memmove(ours + i * width, ours + i * stride, (size_t)width * sizeof *dy);
    for (int64_t i = 0; i < weights; i++) dw_ours[i] -= dw_start[i];
    compare_terms("head_norm_backward dx", ours, dx, all, 3e-6, norm_terms(&s, x, w));
    compare("head_norm_backward dw", dw_ours, dw, weights, 1e-5);

    /* rmsnorm: one head; with and without adding, in place, weights frozen. */
    float *y = numbers(all), *expected = copy(y, all), *dw_y = zeros(width), *dw_expected = zeros(width), *wide = numbers(width);
    kf_reference_rmsnorm_backward(expected, dw_expected, dy, x, wide, s.m, width, 1e-5f, round % 2);
    if (!(round % 2)) memcpy(y, dy, (size_t)all * sizeof *y);
    device->rmsnorm_backward(device, y, round % 3 ? dw_y : NULL, round % 2 ? dy : y, x, wide, s.m, width, 1e-5f, round % 2);
    check_device();
    compare("rmsnorm_backward dx", y, expected, all, 3e-6);
    if (round % 3) compare("rmsnorm_backward dw", dw_y, dw_expected, width, 1e-5);
    drop(x), drop(w), drop(dy), drop(dw), drop(dx), drop(ours), drop(dw_ours), drop(dw_start);
    drop(y), drop(expected), drop(dw_y), drop(dw_expected), drop(wide);
  }
}

typedef struct rope_shape {
  int m, pairs, width, table;
  const kf_rope_block *block;
  const float *cos, *sin, *dy;
  const int32_t *position;
} rope_shape;

static double rope_forward(const void *shape, double *const *x) {
  const rope_shape *s = shape;
  double sum = 0;
  for (int i = 0; i < s->m; i++) {
    const double *row = x[0] + i * s->width, *first = row + s->block->offset, *second = first + s->block->pairs;
    const float *dy = s->dy + i * s->width;
    for (int j = 0; j < s->width; j++)
      if (j < s->block->offset || j >= s->block->offset + 2 * s->block->pairs) sum += dy[j] * row[j];
    for (int j = 0; j < s->block->pairs; j++) {
      int at = s->position[i] * s->table + s->block->index[j];
      sum += dy[s->block->offset + j] * (first[j] * s->cos[at] - second[j] * s->sin[at]);
      sum += dy[s->block->offset + s->block->pairs + j] * (second[j] * s->cos[at] + first[j] * s->sin[at]);
    }
  }
  return sum;
}

/* The backward of a rotation is the rotation the other way round. */
static void rope(void **state) {
  (void)state;
  static const int32_t index[] = {3, 0, 2};
  int32_t *position = memory(5, sizeof *position);
  memcpy(position, (const int32_t[]){4, 0, 7, 7, 2}, 5 * sizeof *position);
  kf_rope_block block = {.offset = 2, .pairs = 3, .index = index};
  float *c = numbers(8 * 4), *s = numbers(8 * 4), *x = numbers(5 * 9), *dy = numbers(5 * 9), *dx = copy(dy, 5 * 9);
  device->rope(device, dx, 5, 9, &block, 1, c, s, 4, position, true);
  check_device();
  rope_shape shape = {.m = 5, .width = 9, .table = 4, .block = &block, .cos = c, .sin = s, .dy = dy, .position = position};
  differences("rope", rope_forward, &shape, 1, &x, &dx, (int64_t[]){5 * 9});
  drop(c), drop(s), drop(x), drop(dy), drop(dx), drop(position);
}

typedef struct swiglu_shape {
  int m, f;
  const float *dy;
} swiglu_shape;

static double swiglu_forward(const void *shape, double *const *x) {
  const swiglu_shape *s = shape;
  double sum = 0;
  for (int i = 0; i < s->m; i++)
    for (int j = 0; j < s->f; j++) {
      double gate = x[0][i * 2 * s->f + j];
      sum += s->dy[i * s->f + j] * gate / (1 + exp(-gate)) * x[0][i * 2 * s->f + s->f + j];
    }
  return sum;
}

static void swiglu(void **state) {
  (void)state;
  for (int round = 0; round < 6; round++) {
    swiglu_shape s = {.m = between(1, round % 2 ? 60 : 4), .f = between(1, 130)};
    int64_t n = (int64_t)s.m * s.f;
    float *x = numbers(2 * n), *dy = numbers(n), *dx = numbers(2 * n);
    for (int64_t i = 0; i < 2 * n; i++) x[i] *= 4;
    s.dy = dy;
    kf_reference_swiglu_backward(dx, dy, x, s.m, s.f);
    if (s.m < 5) differences("swiglu", swiglu_forward, &s, 1, &x, &dx, (int64_t[]){2 * n});
    float *y = numbers(n), *expected = numbers(n);
    device->swiglu_forward(device, y, x, s.m, s.f);
    check_device();
    for (int64_t i = 0; i < n; i++) {
      double gate = (double)x[i / s.f * 2 * s.f + i % s.f], up = (double)x[i / s.f * 2 * s.f + s.f + i % s.f];
      expected[i] = (float)(gate / (1 + exp(-gate)) * up);
    }
    compare("swiglu_forward", y, expected, n, 3e-6);
    drop(y), drop(expected);
    x[0] = -150;
    kf_reference_swiglu_backward(dx, dy, x, s.m, s.f);
    device->swiglu_backward(device, x, dy, x, s.m, s.f);
    check_device();
    compare("swiglu_backward", x, dx, 2 * n, 3e-6);
    drop(x), drop(dy), drop(dx);
  }
}

/* ------------------------------------------------------------------------------------------------ products */

typedef struct matrix_shape {
  int m, n, k;
  const float *dy;
} matrix_shape;

static double matrix_forward(const void *shape, double *const *x) {
  const matrix_shape *s = shape;
  double sum = 0;
  for (int i = 0; i < s->m; i++)
    for (int j = 0; j < s->n; j++) {
      double y = x[2][j];
      for (int l = 0; l < s->k; l++) y += x[0][i * s->k + l] * x[1][j * s->k + l];
      sum += s->dy[i * s->n + j] * y;
    }
  return sum;
}

static void matrices(void **state) {
  (void)state;
  for (int round = 0; round < 14; round++) {
    int most = round % 2 ? 300 : 12;
    matrix_shape s = {.m = between(1, most), .n = between(1, most), .k = between(1, most)};
    int64_t in = (int64_t)s.m * s.k, out = (int64_t)s.m * s.n, weights = (int64_t)s.n * s.k;
    float *x = rounded(in), *w = rounded(weights), *dy = rounded(out), *bias = numbers(s.n);
    float *dx = numbers(in), *dw = numbers(weights), *db = numbers(s.n), *dx_ours = copy(dx, in), *dw_ours = copy(dw, weights),
          *db_ours = copy(db, s.n), *y = numbers(out), *y_ours = copy(y, out);
    void *packed = memory(weights, 4);
    device->round(device, packed, w, weights);
    kf_matrix matrix = {packed, round % 3 ? bias : NULL, s.n, s.k};
    device->matrix(device, y_ours, x, &matrix, s.m, round % 2);
    kf_reference_linear(y, x, w, matrix.bias, s.m, s.n, s.k, round % 2);
    check_device();
    compare("matrix", y_ours, y, out, 1e-5);
    device->matrix_backward(device, dx_ours, dw_ours, db_ours, dy, x, &matrix, s.m, round % 2);
    kf_reference_matrix_backward(dx, dw, db, dy, x, w, s.m, s.n, s.k, round % 2);
    check_device();
    compare("matrix_backward dx", dx_ours, dx, in, 1e-5);
    compare("matrix_backward dw", dw_ours, dw, weights, 1e-5);
    compare("matrix_backward dbias", db_ours, db, s.n, 1e-5);
    if (most < 20) {
      s.dy = dy;
      memset(dw, 0, (size_t)weights * sizeof *dw), memset(db, 0, (size_t)s.n * sizeof *db);
      kf_reference_matrix_backward(dx, dw, db, dy, x, w, s.m, s.n, s.k, false);
      differences("matrix", matrix_forward, &s, 3, (float *[]){x, w, bias}, (float *[]){dx, dw, db},
                  (int64_t[]){in, weights, s.n});
    }
    memcpy(dx_ours, dx, (size_t)in * sizeof *dx); /* each of the three may be left out */
    device->matrix_backward(device, NULL, NULL, NULL, dy, x, &matrix, s.m, false);
    device->matrix_backward(device, dx_ours, NULL, NULL, dy, x, &matrix, s.m, false);
    kf_reference_matrix_backward(dx, NULL, NULL, dy, x, w, s.m, s.n, s.k, false);
    check_device();
    compare("matrix_backward, dx alone", dx_ours, dx, in, 1e-5);
    drop(x), drop(w), drop(dy), drop(bias), drop(dx), drop(dw), drop(db), drop(dx_ours), drop(dw_ours), drop(db_ours), drop(y);
    drop(y_ours), drop(packed);
  }
}

static void embedding(void **state) {
  (void)state;
  int32_t *ids = memory(5, sizeof *ids);
  memcpy(ids, (const int32_t[]){3, 0, 3, 6, 3}, 5 * sizeof *ids);
  float *table = numbers(7 * 70), *y = numbers(5 * 70), *expected = copy(table, 7 * 70);
  for (int i = 0; i < 5; i++)
    for (int j = 0; j < 70; j++) expected[ids[i] * 70 + j] += y[i * 70 + j];
  device->scatter_add(device, table, y, ids, 5, 70);
  check_device();
  compare("scatter_add", table, expected, 7 * 70, 1e-6);
  device->gather(device, y, table, ids, 5, 70);
  check_device();
  for (int i = 0; i < 5; i++) assert_memory_equal(y + i * 70, table + ids[i] * 70, 70 * sizeof *y);
  drop(table), drop(y), drop(expected), drop(ids);
}

/* ------------------------------------------------------------------------------------------------ attention */

typedef struct attention_case {
  kf_attention_shape shape;
  int64_t m;
  const float *d_out;
} attention_case;

static double attention_forward(const void *shape, double *const *x) {
  const attention_case *c = shape;
  const kf_attention_shape *s = &c->shape;
  double sum = 0, *p = malloc((size_t)c->m * sizeof *p);
  for (int64_t t = 0; t < c->m; t++)
    for (int h = 0; h < s->heads; h++) {
      int g = h / (s->heads / s->kv_heads);
      int64_t first = s->window && t >= s->window ? t - s->window + 1 : 0;
      double total = 0;
      for (int64_t key = first; key <= t; key++) {
        double score = 0;
        for (int j = 0; j < s->d_qk; j++)
          score += x[0][(t * s->heads + h) * s->d_qk + j] * x[1][(key * s->kv_heads + g) * s->d_qk + j];
        total += p[key] = exp(score * (double)s->scale);
      }
      for (int64_t key = first; key <= t; key++)
        for (int j = 0; j < s->d_v; j++)
          sum += c->d_out[(t * s->heads + h) * s->d_v + j] * p[key] / total * x[2][(key * s->kv_heads + g) * s->d_v + j];
    }
  free(p);
  return sum;
}

static kf_attention_pass make_pass(const kf_attention_shape *s, int64_t m, int extra) {
  kf_attention_pass p = {.m = m,
                         .q_stride = (int64_t)s->heads * s->d_qk + extra,
                         .k_stride = (int64_t)s->kv_heads * s->d_qk + extra,
                         .v_stride = (int64_t)s->kv_heads * s->d_v + extra};
  p.q = rounded(m * p.q_stride), p.k = rounded(m * p.k_stride), p.v = rounded(m * p.v_stride);
  p.out = numbers(m * s->heads * s->d_v), p.lse = numbers(m * s->heads), p.d_out = rounded(m * s->heads * s->d_v);
  p.dq = numbers(m * p.q_stride), p.dk = numbers(m * p.k_stride), p.dv = numbers(m * p.v_stride);
  return p;
}

static void free_pass(kf_attention_pass *p) {
  drop(p->q), drop(p->k), drop(p->v);
  drop(p->d_out);
  drop(p->out), drop(p->lse), drop(p->dq), drop(p->dk), drop(p->dv);
}

/* bf16: probabilities and their gradients are rounded before they are multiplied. */
static double attention_tolerance(void) {
  return device->compute == KF_BF16 ? 1.5e-2 : 2e-5;
}

static void try_attention(const kf_attention_shape *s, const int64_t *m, int count) {
  enum { MOST = 3 };
  kf_attention_pass ours[MOST] = {0}, theirs[MOST] = {0};
  kf_error e = {0};
  for (int i = 0; i < count; i++) {
    int64_t wide = m[i] * s->heads;
    theirs[i] = ours[i] = make_pass(s, m[i], below(4));
    theirs[i].out = copy(ours[i].out, wide * s->d_v), theirs[i].lse = copy(ours[i].lse, wide);
    theirs[i].dq = copy(ours[i].dq, m[i] * ours[i].q_stride), theirs[i].dk = copy(ours[i].dk, m[i] * ours[i].k_stride);
    theirs[i].dv = copy(ours[i].dv, m[i] * ours[i].v_stride);
  }
  device->attention_forward(device, s, ours, count);
  device->attention_backward(device, s, ours, count);
  check_device();
  for (int i = 0; i < count; i++) {
    assert_int_equal(kf_reference_attention_forward(s, &theirs[i], &e), KF_OK);
    assert_int_equal(kf_reference_attention_backward(s, &theirs[i], &e), KF_OK);
    compare("attention out", ours[i].out, theirs[i].out, m[i] * s->heads * s->d_v, attention_tolerance());
    /* in bf16 an exponential may be off by 1.1e-4 of itself, a fraction of what its rounding adds */
    compare_terms("attention lse", ours[i].lse, theirs[i].lse, m[i] * s->heads, device->compute == KF_BF16 ? 1.1e-4 : 2e-6, 1);
    compare_terms("attention dq", ours[i].dq, theirs[i].dq, m[i] * ours[i].q_stride, attention_tolerance(), 0.1);
    compare_terms("attention dk", ours[i].dk, theirs[i].dk, m[i] * ours[i].k_stride, attention_tolerance(), 0.1);
    compare_terms("attention dv", ours[i].dv, theirs[i].dv, m[i] * ours[i].v_stride, attention_tolerance(), 0.1);
    drop(theirs[i].out), drop(theirs[i].lse), drop(theirs[i].dq), drop(theirs[i].dk), drop(theirs[i].dv);
    free_pass(&ours[i]);
  }
}

static void attention(void **state) {
  (void)state;
  static const int64_t lengths[] = {1, 2, 7, 63, 64, 65, 130, 200};
  for (int round = 0; round < 16; round++) {
    int kv_heads = between(1, 3);
    kf_attention_shape s = {
        .heads = kv_heads * between(1, 3), .kv_heads = kv_heads, .d_qk = between(1, 90), .d_v = between(1, 90)};
    if (round % 3 == 0) s.d_qk = s.d_v = 64;
    s.scale = 1 / sqrtf((float)s.d_qk);
    if (round % 4 == 3) s.window = between(1, 150);
    int64_t m[3] = {lengths[below(8)], lengths[below(8)], lengths[below(8)]};
    try_attention(&s, m, between(1, 3));
  }
}

static void attention_differences(void **state) {
  (void)state;
  kf_error e = {0};
  for (int round = 0; round < 6; round++) {
    attention_case c = {.shape = {.heads = round % 2 ? 4 : 3, .kv_heads = round % 2 ? 2 : 1, .d_qk = 5, .d_v = 3, .scale = 0.4f},
                        .m = between(1, 12)};
    if (round % 3 == 2) c.shape.window = between(1, 6);
    kf_attention_pass p = make_pass(&c.shape, c.m, 0);
    assert_int_equal(kf_reference_attention_forward(&c.shape, &p, &e), KF_OK);
    assert_int_equal(kf_reference_attention_backward(&c.shape, &p, &e), KF_OK);
    c.d_out = p.d_out;
    float *inputs[] = {(float *)(uintptr_t)p.q, (float *)(uintptr_t)p.k, (float *)(uintptr_t)p.v};
    differences("attention", attention_forward, &c, 3, inputs, (float *[]){p.dq, p.dk, p.dv},
                (int64_t[]){c.m * p.q_stride, c.m * p.k_stride, c.m * p.v_stride});
    free_pass(&p);
  }
}

/* ------------------------------------------------------------------------------------------------ losses */

typedef struct loss_case {
  kf_softmax_loss loss;
  int64_t m, v;
  const float *teacher, *weight;
  const int32_t *target;
} loss_case;

static double log_sum(const double *x, double t, int64_t v) {
  double sum = 0;
  for (int64_t j = 0; j < v; j++) sum += exp(x[j] / t);
  return log(sum);
}

static double loss_forward(const void *shape, double *const *logits) {
  const loss_case *c = shape;
  double total = 0, t = (double)c->loss.temperature, *r = malloc((size_t)c->v * sizeof *r);
  for (int64_t i = 0; i < c->m; i++) {
    const double *x = logits[0] + i * c->v;
    double d = 0, nll = log_sum(x, 1, c->v) - x[c->target[i]], zq = log_sum(x, t, c->v);
    for (int64_t j = 0; j < c->v; j++) r[j] = c->teacher[i * c->v + j];
    double zp = log_sum(r, t, c->v);
    for (int64_t j = 0; j < c->v; j++) {
      double q = exp(x[j] / t - zq), p = exp(r[j] / t - zp), mean = (p + q) / 2;
      switch (c->loss.divergence) {
      case KF_FORWARD_KL: d += p * log(p / q); break;
      case KF_REVERSE_KL: d += q * log(q / p); break;
      default: d += 0.5 * p * log(p / mean) + 0.5 * q * log(q / mean);
      }
    }
    total += (double)c->weight[i] * ((double)c->loss.ce * nll + (double)c->loss.kl * t * t * d);
  }
  free(r);
  return total;
}

static void losses(void **state) {
  (void)state;
  for (int round = 0; round < 30; round++) {
    loss_case c = {.loss = {.ce = round % 4 ? 0.3f : 0,
                            .kl = round % 5 ? 0.8f : 0,
                            .temperature = round % 3 ? 1 : 1.7f,
                            .divergence = (kf_divergence)(round / 2 % 3)},
                   .m = between(1, 6),
                   .v = round % 2 ? between(2, 40) : between(100, 3000)};
    int64_t n = c.m * c.v;
    float *x = numbers(n), *teacher = numbers(n), *weight = numbers(c.m), *ours, *start;
    int32_t *target = memory(c.m, sizeof *target);
    double nll[6], d[6], *nll_ours = memory(c.m, sizeof *nll), *d_ours = memory(c.m, sizeof *d);
    kf_error e = {0};
    for (int64_t i = 0; i < n; i++) x[i] = teacher[i] * 3 + x[i];
    for (int64_t i = 0; i < n; i++) teacher[i] *= 3;
    for (int64_t i = 0; i < c.m; i++) target[i] = below((int)c.v);
    if (c.m > 2) weight[1] = 0;
    c.teacher = teacher, c.target = target, c.weight = weight;
    start = copy(x, n), ours = copy(x, n);
    assert_int_equal(kf_reference_softmax_loss(&c.loss, x, teacher, target, weight, c.m, c.v, nll, d, &e), KF_OK);
    if (c.v <= 40) differences("softmax loss", loss_forward, &c, 1, &start, &x, &n);
    const float *given = c.loss.kl == 0 && round % 2 ? NULL : teacher;
    device->softmax_loss(device, &c.loss, ours, given, target, weight, c.m, c.v, nll_ours, d_ours);
    check_device();
    compare_terms("softmax_loss", ours, x, n, 5e-6, 0.1);
    for (int64_t i = 0; i < c.m; i++) {
      assert_true(fabs(nll[i] - nll_ours[i]) <= 2e-6 * (1 + fabs(nll[i])));
      assert_true(fabs(d[i] - d_ours[i]) <= 3e-6 * (1 + fabs(d[i])));
    }
    drop(x), drop(teacher), drop(weight), drop(ours), drop(start), drop(target), drop(nll_ours), drop(d_ours);
  }
}

/* ------------------------------------------------------------------------------------------------ the optimiser */

static void optimiser(void **state) {
  (void)state;
  for (int round = 0; round < 4; round++) {
    int64_t n = round ? between(1, 50000) : 3;
    kf_adamw o = {.rate = 0.01f,
                  .beta1 = 0.9f,
                  .beta2 = 0.95f,
                  .eps = 1e-8f,
                  .decay = 0.1f,
                  .scale = 0.5f,
                  .correction1 = 1 - 0.9f,
                  .correction2 = 1 - 0.95f};
    float *w = numbers(n), *first = numbers(n), *second = numbers(n), *g = numbers(n);
    for (int64_t i = 0; i < n; i++) second[i] *= second[i];
    float *w2 = copy(w, n), *first2 = copy(first, n), *second2 = copy(second, n);
    device->adamw(device, &o, w, first, second, g, n);
    kf_reference_adamw(&o, w2, first2, second2, g, n);
    check_device();
    compare("adamw w", w, w2, n, 2e-6);
    compare("adamw first", first, first2, n, 1e-6);
    compare("adamw second", second, second2, n, 1e-6);
    double sum = 0, ours = device->sum_squares(device, g, n);
    for (int64_t i = 0; i < n; i++) sum += (double)g[i] * g[i];
    check_device();
    assert_true(fabs(sum - ours) <= 2e-6 * sum);
    drop(w), drop(first), drop(second), drop(g), drop(w2), drop(first2), drop(second2);
  }
}

int main(int argc, char **argv) {
  static const struct CMUnitTest tests[] = {
      cmocka_unit_test(norms),
      cmocka_unit_test(rope),
      cmocka_unit_test(swiglu),
      cmocka_unit_test(matrices),
      cmocka_unit_test(embedding),
      cmocka_unit_test(attention),
      cmocka_unit_test(attention_differences),
      cmocka_unit_test(losses),
      cmocka_unit_test(optimiser),
  };
  return run_everywhere(tests, sizeof tests / sizeof *tests, argc, argv);
}
