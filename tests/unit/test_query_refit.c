/* The query refit against plain sums in fp64: it lowers what it says it lowers, and leaves exact scores alone. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/random.h"
#include "convert/query_refit.h"

enum { WINDOWS = 5, FIT = 4, M = 37, D = 20, HEADS = 4, KV_HEADS = 2, N = 6, PAIRS = 2, RANK = 7, WIDTH = N + 2 * PAIRS };

static const int pairs[1] = {PAIRS};
static const int every[KV_HEADS] = {N / 2, N / 2};
static const int32_t index_of[PAIRS] = {0, 2};
static const double theta = 100;

typedef struct setup {
  kf_attention_config a;
  kf_fold_source source;
  kf_attention_probe probe;
  kf_mapped layer;
  float *x, *y; /* [WINDOWS M, D] in the source, in the converted model */
} setup;

static float *random_numbers(kf_random *r, int64_t n, double size) {
  float *x = malloc((size_t)n * sizeof *x);
  assert_non_null(x);
  for (int64_t i = 0; i < n; i++) x[i] = (float)(size * kf_random_normal(r));
  return x;
}

static void add(kf_mapped *m, const char *name, int64_t rows, int64_t columns, const float *data) {
  float *to = kf_mapped_add(m, name, rows, columns, NULL);
  assert_non_null(to);
  memcpy(to, data, (size_t)(rows * columns) * sizeof *to);
}

static void make(setup *s, int64_t window) {
  kf_random r;
  kf_error e = {0};
  kf_random_seed(&r, 7);
  s->a = (kf_attention_config){.kind = KF_GROUPED,
                               .heads = HEADS,
                               .kv_heads = KV_HEADS,
                               .d_qk = N,
                               .d_v = N,
                               .window = window,
                               .scale = 0.4f,
                               .rope = {.dim = N, .theta = theta},
                               .rope_heads = KV_HEADS,
                               .rope_pairs = every};
  s->source = (kf_fold_source){.a = &s->a,
                               .hidden = D,
                               .inputs = D,
                               .q = random_numbers(&r, HEADS * N * D, 0.5),
                               .k = random_numbers(&r, KV_HEADS * N * D, 0.5),
                               .v = random_numbers(&r, KV_HEADS * N * D, 0.5),
                               .o = random_numbers(&r, D * HEADS * N, 0.5)};
  s->x = random_numbers(&r, WINDOWS * M * D, 1);
  s->y = random_numbers(&r, WINDOWS * M * D, 0.2);
  for (int i = 0; i < WINDOWS * M * D; i++) s->y[i] += s->x[i];
  assert_int_equal(kf_attention_probe_create(&s->a, D, M, s->source.o, NULL, NULL, 0, &s->probe, &e), KF_OK);
  s->layer = (kf_mapped){0};
  s->layer.attention = (kf_attention_config){.kind = KF_LATENT,
                                             .heads = HEADS,
                                             .kv_heads = HEADS,
                                             .d_qk = WIDTH,
                                             .d_v = N,
                                             .rank = RANK,
                                             .rope_heads = 1,
                                             .rope_pairs = pairs,
                                             .rope_index = index_of};
  float *q = random_numbers(&r, HEADS * WIDTH * D, 0.3), *kv_a = random_numbers(&r, (RANK + 2 * PAIRS) * D, 0.3);
  float *kv_b = random_numbers(&r, HEADS * 2 * N * RANK, 0.3);
  add(&s->layer, "q_proj.weight", HEADS * WIDTH, D, q);
  add(&s->layer, "kv_a_proj.weight", RANK + 2 * PAIRS, D, kv_a);
  add(&s->layer, "kv_b_proj.weight", HEADS * 2 * N, RANK, kv_b);
  free(q), free(kv_a), free(kv_b);
}

static void drop(setup *s) {
  kf_mapped_drop(&s->layer);
  kf_attention_probe_free(&s->probe);
  kf_fold_source_free(&s->source);
  free(s->x);
  free(s->y);
}

static double dot(const float *w, const float *x, int n) {
  double sum = 0;
  for (int i = 0; i < n; i++) sum += (double)w[i] * x[i];
  return sum;
}

/* Pair j of a vector whose pairs are (j, j + half), turned by position times the frequency of source pair f. */
static void turn(double *v, int j, int half, int f, int position) {
  double angle = position * pow(theta, -2.0 * f / N), re = v[j], im = v[j + half];
  v[j] = re * cos(angle) - im * sin(angle);
  v[j + half] = im * cos(angle) + re * sin(angle);
}

static void normalise(double *x, const float *weight, double eps) {
  double square = 0;
  for (int i = 0; i < N && weight; i++) square += x[i] * x[i] / N;
  for (int i = 0; i < N && weight; i++) x[i] *= weight[i] / sqrt(square + eps);
}

static double source_score(const setup *s, int h, const float *xt, int t, const float *xs, int at) {
  double q[N], k[N], sum = 0;
  for (int i = 0; i < N; i++) {
    q[i] = dot(s->source.q + (h * N + i) * D, xt, D);
    k[i] = dot(s->source.k + (h / (HEADS / KV_HEADS) * N + i) * D, xs, D);
  }
  normalise(q, s->source.q_norm, s->source.eps);
  normalise(k, s->source.k_norm, s->source.eps);
  for (int j = 0; j < N / 2; j++) turn(q, j, N / 2, j, t), turn(k, j, N / 2, j, at);
  for (int i = 0; i < N; i++) sum += q[i] * k[i];
  return sum * s->a.scale;
}

static double converted_score(const setup *s, int h, const float *xt, int t, const float *xs, int at) {
  const float *w = s->layer.tensor[0].data + h * WIDTH * D, *a = s->layer.tensor[1].data, *b = s->layer.tensor[2].data;
  double q[WIDTH], k[WIDTH] = {0}, sum = 0;
  for (int i = 0; i < WIDTH; i++) q[i] = dot(w + i * D, xt, D);
  for (int i = 0; i < N; i++)
    for (int r = 0; r < RANK; r++) k[i] += b[(h * 2 * N + i) * RANK + r] * dot(a + r * D, xs, D);
  for (int i = 0; i < 2 * PAIRS; i++) k[N + i] = dot(a + (RANK + i) * D, xs, D);
  for (int j = 0; j < PAIRS; j++) turn(q + N, j, PAIRS, index_of[j], t), turn(k + N, j, PAIRS, index_of[j], at);
  for (int i = 0; i < WIDTH; i++) sum += q[i] * k[i];
  return sum * s->a.scale;
}

/* sum_t sum_s a (e - mean e)^2 over the windows from first to end. */
static double objective(const setup *s, int first, int end) {
  double total = 0;
  for (int w = first; w < end; w++)
    for (int h = 0; h < HEADS; h++)
      for (int t = 0; t < M; t++) {
        const float *x = s->x + w * M * D, *y = s->y + w * M * D;
        double weight[M], error[M], sum = 0, mean = 0;
        int from = s->a.window && t >= s->a.window ? t - (int)s->a.window + 1 : 0;
        for (int i = from; i <= t; i++) {
          double score = source_score(s, h, x + t * D, t, x + i * D, i);
          sum += weight[i] = exp(score);
          error[i] = score - converted_score(s, h, y + t * D, t, y + i * D, i);
        }
        for (int i = from; i <= t; i++) mean += weight[i] / sum * error[i];
        for (int i = from; i <= t; i++) total += weight[i] / sum * (error[i] - mean) * (error[i] - mean);
      }
  return total;
}

static void test_lowers(void **state) {
  (void)state;
  for (int kind = 0; kind < 3; kind++) { /* plain, a sliding window, q/k norms */
    setup s;
    kf_error e = {0};
    kf_random r;
    make(&s, kind == 1 ? 11 : 0);
    kf_random_seed(&r, 3);
    if (kind == 2) s.source.q_norm = random_numbers(&r, N, 1), s.source.k_norm = random_numbers(&r, N, 1), s.source.eps = 0.1f;
    kf_refit_windows x = {WINDOWS, FIT, M, s.x, s.y};
    double fitted = objective(&s, 0, FIT), held_out = objective(&s, FIT, WINDOWS);
    if (kf_query_refit(&s.source, &s.probe, &x, 2, &s.layer, &e) != KF_OK) fail_msg("%s", e.message);
    double fitted_after = objective(&s, 0, FIT), held_out_after = objective(&s, FIT, WINDOWS);
    if (!(fitted_after < 0.7 * fitted && held_out_after < 0.7 * held_out))
      fail_msg("kind %d: fitted on %g to %g, held out %g to %g", kind, fitted, fitted_after, held_out, held_out_after);
    drop(&s);
  }
}

/* Held-out windows that no change serves: the queries stay what they were. */
static void test_keeps(void **state) {
  (void)state;
  setup s;
  kf_error e = {0};
  make(&s, 0);
  float *before = malloc((size_t)(HEADS * WIDTH * D) * sizeof *before);
  memcpy(before, s.layer.tensor[0].data, (size_t)(HEADS * WIDTH * D) * sizeof *before);
  for (int i = FIT * M * D; i < WINDOWS * M * D; i++) s.x[i] = s.y[i] = 0; /* all scores are 0, and exact already */
  kf_refit_windows x = {WINDOWS, FIT, M, s.x, s.y};
  assert_int_equal(kf_query_refit(&s.source, &s.probe, &x, 1, &s.layer, &e), KF_OK);
  assert_memory_equal(before, s.layer.tensor[0].data, (size_t)(HEADS * WIDTH * D) * sizeof *before);
  free(before);
  drop(&s);
}

/* Keys of fewer dimensions than numbers, or none, and inputs that are all the same: the keys' covariance is singular. */
static void test_singular_keys(void **state) {
  (void)state;
  enum { FLAT, ZERO, CONSTANT, CASES };
  for (int kind = 0; kind < CASES; kind++) {
    setup s;
    kf_error e = {0};
    make(&s, 0);
    float *kv_a = s.layer.tensor[1].data, *kv_b = s.layer.tensor[2].data;
    for (int h = 0; h < HEADS && kind != CONSTANT; h++)
      for (int i = 0; i < N * RANK; i++) kv_b[h * 2 * N * RANK + i] = kind == ZERO ? 0 : kv_b[h * 2 * N * RANK + i % RANK];
    for (int i = 0; i < 2 * PAIRS * D && kind == ZERO; i++) kv_a[RANK * D + i] = 0;
    for (int i = 0; i < WINDOWS * M * D && kind == CONSTANT; i++) s.y[i] = 30 * s.y[i % D];
    kf_refit_windows x = {WINDOWS, FIT, M, s.x, s.y};
    double before = objective(&s, 0, WINDOWS);
    if (kf_query_refit(&s.source, &s.probe, &x, 2, &s.layer, &e) != KF_OK) fail_msg("case %d: %s", kind, e.message);
    for (int i = 0; i < HEADS * WIDTH * D; i++) assert_true(isfinite(s.layer.tensor[0].data[i]));
    double after = objective(&s, 0, WINDOWS);
    if (!(after <= 1.001 * before)) fail_msg("case %d: %g to %g", kind, before, after);
    drop(&s);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_lowers), cmocka_unit_test(test_keeps),
                                     cmocka_unit_test(test_singular_keys)};
  return cmocka_run_group_tests_name("query_refit", tests, NULL, NULL);
}
