/* Nearness of several converted models to one source, against plain sums in fp64. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "convert/nearness.h"
#include "tiny.h"

enum { WINDOWS = 5, WINDOW = 37, TOKENS = WINDOWS * WINDOW, D = 16, V = 4096, CANDIDATES = 3 }; /* more rows than a block has */

static char scratch[] = "/tmp/kvfold-nearness-XXXXXX";
static kf_config config;
static kf_weights weights;
static kf_device *device;
static float *norm, *embedding; /* the final norm; [V, D], the head too */

static int open_model(void **state) {
  (void)state;
  kf_error e = {0};
  char model[KF_PATH];
  if (!mkdtemp(scratch) || kf_join(model, scratch, "model", &e)) return 1;
  return tiny_model(model, 3, 0.6, NULL, &e) || kf_config_from_directory(model, &config, &e) ||
         kf_weights_open(model, &config, &weights, &e) || kf_device_open_cpu(KF_COMPUTE_F32, 2, &device, &e) ||
         kf_weights_read(&weights, "model.norm.weight", D, 1, &norm, &e) ||
         kf_weights_read(&weights, "model.embed_tokens.weight", V, D, &embedding, &e);
}

static int close_model(void **state) {
  (void)state;
  free(norm), free(embedding);
  kf_device_close(device);
  kf_weights_close(&weights);
  kf_config_free(&config);
  return kf_remove_tree(scratch, NULL) != KF_OK;
}

/* Log-probabilities [V] of what follows a last hidden state x [D]. */
static void log_probabilities(const float *x, double *out) {
  double square = 0, sum = 0;
  for (int i = 0; i < D; i++) square += (double)x[i] * x[i];
  for (int v = 0; v < V; v++) {
    out[v] = 0;
    for (int i = 0; i < D; i++) out[v] += embedding[v * D + i] * (x[i] / sqrt(square / D + config.eps) * norm[i]);
    sum += exp(out[v]);
  }
  for (int v = 0; v < V; v++) out[v] -= log(sum);
}

static kf_nearness plain(const int32_t *ids, const float *source, const float *converted) {
  static double p[V], q[V];
  double kl = 0, difference = 0;
  for (int t = 0; t < TOKENS; t++) {
    if (t % WINDOW == WINDOW - 1) continue; /* the next token is of another window */
    log_probabilities(source + t * D, p);
    log_probabilities(converted + t * D, q);
    for (int v = 0; v < V; v++) kl += exp(p[v]) * (p[v] - q[v]);
    difference += p[ids[t + 1]] - q[ids[t + 1]];
  }
  int predicted = WINDOWS * (WINDOW - 1);
  return (kf_nearness){kl / predicted, exp(difference / predicted)};
}

static void test_candidates(void **state) {
  (void)state;
  static const double size[CANDIDATES] = {0.5, 0, 0.1};
  static int32_t ids[TOKENS];
  static float source[TOKENS * D], stream[CANDIDATES][TOKENS * D];
  float *converted[CANDIDATES];
  kf_nearness got[CANDIDATES];
  kf_random r;
  kf_error e = {0};
  kf_random_seed(&r, 11);
  for (int i = 0; i < TOKENS; i++) ids[i] = (int32_t)(kf_random_uniform(&r) * V);
  for (int i = 0; i < TOKENS * D; i++) source[i] = (float)kf_random_normal(&r);
  for (int c = 0; c < CANDIDATES; c++) {
    converted[c] = stream[c];
    for (int i = 0; i < TOKENS * D; i++) stream[c][i] = source[i] + (float)(size[c] * kf_random_normal(&r));
  }
  if (kf_nearness_judge(&weights, device, ids, WINDOWS, WINDOW, source, converted, CANDIDATES, got, &e) != KF_OK)
    fail_msg("%s", e.message);
  for (int c = 0; c < CANDIDATES; c++) {
    kf_nearness expected = plain(ids, source, stream[c]);
    if (!(fabs(got[c].kl - expected.kl) <= 1e-4 * expected.kl + 1e-6 &&
          fabs(got[c].perplexity_ratio - expected.perplexity_ratio) <= 1e-4 * expected.perplexity_ratio))
      fail_msg("candidate %d: KL %g, expected %g; ratio %g, expected %g", c, got[c].kl, expected.kl, got[c].perplexity_ratio,
               expected.perplexity_ratio);
  }
  assert_true(got[1].kl < got[2].kl && got[2].kl < got[0].kl);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_candidates)};
  return cmocka_run_group_tests_name("nearness", tests, open_model, close_model);
}
