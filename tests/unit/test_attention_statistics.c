/* fold's statistics against their definition, in fp64 over all pairs of tokens. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/random.h"
#include "convert/attention_statistics.h"

enum { WINDOWS = 3, M = 23, D = 10, HEADS = 4, KV_HEADS = 2, N = 6, STRIDE = (HEADS + 2 * KV_HEADS) * N };

static const int every[KV_HEADS] = {N / 2, N / 2};
static const double theta = 50;
static const float eps = 0.05f;

typedef struct setup {
  kf_attention_config a;
  const float *q_norm, *k_norm;
  float x[WINDOWS * M * D], qkv[WINDOWS * M * STRIDE], o[D * HEADS * N];
} setup;

static void fill(kf_random *r, float *x, int n) {
  for (int i = 0; i < n; i++) x[i] = (float)kf_random_normal(r);
}

/* z: what stands before the norm, times its weights; x: behind it; turned: x at its position. */
typedef struct row {
  double z[N], x[N], turned[N];
} row;

static row read_row(const float *from, const float *weight, int t) {
  row r;
  double square = 0;
  for (int i = 0; i < N; i++) square += (double)from[i] * from[i] / N;
  for (int i = 0; i < N; i++) {
    r.z[i] = from[i] * (weight ? (double)weight[i] : 1);
    r.x[i] = r.z[i] / (weight ? sqrt(square + eps) : 1);
  }
  for (int i = 0; i < N / 2; i++) {
    double angle = t * pow(theta, -2.0 * i / N), c = cos(angle), s = sin(angle);
    r.turned[i] = r.x[i] * c - r.x[i + N / 2] * s;
    r.turned[i + N / 2] = r.x[i + N / 2] * c + r.x[i] * s;
  }
  return r;
}

static double dot(const double *a, const double *b) {
  double sum = 0;
  for (int i = 0; i < N; i++) sum += a[i] * b[i];
  return sum;
}

/* |W_o,h (v_s - o)|^2 */
static double output_error(const setup *s, int h, const float *v, const double *mean) {
  double sum = 0;
  for (int i = 0; i < D; i++) {
    double one = 0;
    for (int j = 0; j < N; j++) one += s->o[i * HEADS * N + h * N + j] * (v[j] - mean[j]);
    sum += one * one;
  }
  return sum;
}

/* One query of one head; a[M] receives its probabilities. */
static void add_query(const setup *s, const float *rows, const float *x, int h, int t, double *a, kf_attention_statistics *out) {
  int g = h / (HEADS / KV_HEADS), first = s->a.window && t >= s->a.window ? t - (int)s->a.window + 1 : 0;
  row q = read_row(rows + t * STRIDE + h * N, s->q_norm, t), k[M];
  double half[M], sum = 0, soft = 0, mean[N] = {0}, all = 0;
  for (int i = first; i <= t; i++) {
    k[i] = read_row(rows + i * STRIDE + (HEADS + g) * N, s->k_norm, i);
    double score = s->a.scale * dot(q.turned, k[i].turned);
    sum += a[i] = exp(score);
    soft += half[i] = exp(score / 2);
  }
  for (int i = first; i <= t; i++) {
    a[i] /= sum;
    for (int j = 0; j < N; j++) mean[j] += a[i] * rows[i * STRIDE + (HEADS + KV_HEADS + g) * N + j];
  }
  for (int i = first; i <= t; i++) {
    double w = half[i] * half[i] / soft / soft * output_error(s, h, rows + i * STRIDE + (HEADS + KV_HEADS + g) * N, mean);
    all += w;
    out->distance[h * out->window + t - i] += w;
    for (int c = 0; c < D * D; c++) {
      double product = (double)x[i * D + c / D] * x[i * D + c % D];
      out->key_moment[c] += w * product;
      out->value_moment[c] += a[i] * product;
    }
    if (s->k_norm) out->norms[4 * h + 2] += w * dot(k[i].x, k[i].z), out->norms[4 * h + 3] += w * dot(k[i].z, k[i].z);
  }
  out->weight += all;
  for (int c = 0; c < N * N; c++) out->query[h * N * N + c] += all * q.x[c / N] * q.x[c % N];
  if (s->q_norm) out->norms[4 * h] += all * dot(q.x, q.z), out->norms[4 * h + 1] += all * dot(q.z, q.z);
}

static void plain(const setup *s, kf_attention_statistics *out) {
  static double a[HEADS][M][M];
  for (int w = 0; w < WINDOWS; w++) {
    memset(a, 0, sizeof a);
    for (int h = 0; h < HEADS; h++)
      for (int t = 0; t < M; t++) add_query(s, s->qkv + w * M * STRIDE, s->x + w * M * D, h, t, a[h][t], out);
    for (int h = 0; h < HEADS; h++)
      for (int i = 0; i < HEADS; i++)
        for (int c = 0; c < M * M; c++) out->overlap[h * HEADS + i] += a[h][c / M][c % M] * a[i][c / M][c % M];
    out->tokens += M;
  }
}

static void near(const char *what, const double *got, const double *expected, int count) {
  double size = 0;
  for (int i = 0; i < count; i++) size = fmax(size, fabs(expected[i]));
  for (int i = 0; i < count; i++)
    if (!(fabs(got[i] - expected[i]) <= 1e-5 * size)) fail_msg("%s %d: %g, expected %g", what, i, got[i], expected[i]);
}

static void test_definition(void **state) {
  (void)state;
  for (int kind = 0; kind < 3; kind++) { /* plain, a sliding window, q/k norms */
    setup s = {.a = {.kind = KF_GROUPED, .heads = HEADS, .kv_heads = KV_HEADS, .d_qk = N, .d_v = N, .scale = 0.4f}};
    kf_attention_statistics got, expected;
    kf_attention_probe probe;
    kf_random r;
    float norms[2 * N];
    kf_random_seed(&r, 5);
    fill(&r, norms, 2 * N);
    fill(&r, s.x, WINDOWS * M * D);
    fill(&r, s.qkv, WINDOWS * M * STRIDE);
    fill(&r, s.o, D * HEADS * N);
    s.a.rope = (kf_rope){.dim = N, .theta = theta};
    s.a.rope_heads = KV_HEADS;
    s.a.rope_pairs = every;
    if (kind == 1) s.a.window = 9;
    if (kind == 2) s.q_norm = norms, s.k_norm = norms + N;
    assert_int_equal(kf_attention_statistics_create(&s.a, D, M, &got, NULL), KF_OK);
    assert_int_equal(kf_attention_statistics_create(&s.a, D, M, &expected, NULL), KF_OK);
    assert_int_equal(kf_attention_probe_create(&s.a, D, M, s.o, s.q_norm, s.k_norm, eps, &probe, NULL), KF_OK);
    for (int w = 0; w < WINDOWS; w++) {
      const float *q = s.qkv + w * M * STRIDE, *k = q + HEADS * N;
      assert_int_equal(kf_attention_statistics_add(&got, &probe, M, s.x + w * M * D, q, k, k + KV_HEADS * N, STRIDE, 2, NULL),
                       KF_OK);
    }
    plain(&s, &expected);
    assert_int_equal(got.tokens, expected.tokens);
    near("weight", &got.weight, &expected.weight, 1);
    near("distance", got.distance, expected.distance, HEADS * M);
    near("query", got.query, expected.query, HEADS * N * N);
    near("key moment", got.key_moment, expected.key_moment, D * D);
    near("value moment", got.value_moment, expected.value_moment, D * D);
    near("overlap", got.overlap, expected.overlap, HEADS * HEADS);
    near("norms", got.norms, expected.norms, HEADS * 4);
    kf_attention_probe_free(&probe);
    kf_attention_statistics_free(&got);
    kf_attention_statistics_free(&expected);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_definition)};
  return cmocka_run_group_tests_name("attention_statistics", tests, NULL, NULL);
}
