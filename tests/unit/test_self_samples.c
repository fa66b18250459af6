/* Documents that a model samples: they come from its own distribution, also where one takes the place of another that ended. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/sampling.h"
#include "model/self_samples.h"

enum { DOCUMENTS = 70, LENGTH = 12 }; /* more than are written side by side */

typedef struct sample {
  int32_t ids[DOCUMENTS][LENGTH];
  int64_t count[DOCUMENTS];
  int documents;
} sample;

static kf_model *model;
static kf_tokenizer *tokenizer;

static kf_status collect(void *user, const int32_t *ids, int64_t count, kf_error *e) {
  sample *s = user;
  (void)e;
  memcpy(s->ids[s->documents], ids, (size_t)count * sizeof *ids);
  s->count[s->documents++] = count;
  return KF_OK;
}

static sample *draw(kf_self_options o) {
  sample *s = calloc(1, sizeof *s);
  kf_error e = {0};
  o.documents = DOCUMENTS, o.length = LENGTH;
  if (kf_self_samples(model, tokenizer, &o, collect, s, &e) != KF_OK) fail_msg("%s", e.message);
  assert_int_equal(s->documents, DOCUMENTS);
  return s;
}

/* Frequent tokens as ends of text, so that documents end all the time. */
static void frequent_ends(bool on) {
  static const char text[] = ", the. of and to a in";
  static kf_config before;
  kf_config *c = &model->config;
  kf_ids ids = {0};
  kf_error e = {0};
  if (on) {
    before = *c;
    assert_int_equal(kf_tokenizer_encode(tokenizer, text, strlen(text), KF_ENCODE_PLAIN, &ids, &e), KF_OK);
    c->eos_count = ids.count < 16 ? (int)ids.count : 16;
    memcpy(c->eos, ids.data, (size_t)c->eos_count * sizeof *c->eos);
    kf_ids_free(&ids);
  } else {
    *c = before;
  }
}

/* Negative log-likelihood of a token that does not end the text less the entropy that it was drawn with: 0 in the mean. */
static double surprise(const float *logits, int32_t id, int n) {
  double most = -INFINITY, sum = 0, mean = 0;
  for (int i = 0; i < n; i++) most = fmax(most, (double)logits[i]);
  for (int i = 0; i < n; i++) {
    double p = kf_token_ends(&model->config, tokenizer, i) ? 0 : exp((double)logits[i] - most);
    sum += p;
    mean += p * (double)logits[i];
  }
  return mean / sum - (double)logits[id];
}

static void own_distribution(void **state) {
  (void)state;
  int n = model->config.vocabulary;
  float *logits = malloc((size_t)(LENGTH + 1) * (size_t)n * sizeof *logits);
  kf_error e = {0};
  double sum = 0;
  int64_t tokens = 0, ended = 0;
  frequent_ends(true);
  sample *s = draw((kf_self_options){.sampling = {.temperature = 1, .seed = 3}});
  for (int i = 0; i < DOCUMENTS; i++) {
    int32_t ids[LENGTH + 1] = {kf_tokenizer_bos(tokenizer)};
    memcpy(ids + 1, s->ids[i], sizeof s->ids[i]);
    assert_int_equal(kf_logits(model, ids, (size_t)s->count[i] + 1, logits, &e), KF_OK);
    for (int64_t k = 0; k < s->count[i]; k++) {
      assert_false(kf_token_ends(&model->config, tokenizer, s->ids[i][k]));
      sum += surprise(logits + k * n, s->ids[i][k], n);
    }
    tokens += s->count[i];
    ended += s->count[i] < LENGTH;
  }
  frequent_ends(false);
  assert_true(ended > DOCUMENTS / 2 && tokens > DOCUMENTS);
  if (!(fabs(sum / (double)tokens) < 0.25)) fail_msg("mean surprise %g nats of %d tokens", sum / (double)tokens, (int)tokens);
  free(logits), free(s);
}

static void going_on(void **state) {
  (void)state;
  frequent_ends(true);
  sample *s = draw((kf_self_options){.goes_on = true, .sampling = {.temperature = 1}});
  frequent_ends(false);
  for (int i = 0; i < DOCUMENTS; i++) assert_int_equal(s->count[i], LENGTH);
  free(s);
}

/* The likeliest token each time is what generation without chance gives. */
static void top_one(void **state) {
  (void)state;
  int32_t bos = kf_tokenizer_bos(tokenizer);
  kf_generation g;
  kf_error e = {0};
  sample *s = draw((kf_self_options){.sampling = {.temperature = 1, .top_k = 1}});
  kf_generate_options o = {.greedy = true, .max_new_tokens = LENGTH};
  assert_int_equal(kf_generate(model, tokenizer, &bos, 1, &o, &g, &e), KF_OK);
  for (int i = 0; i < DOCUMENTS; i++) {
    assert_int_equal(s->count[i], g.ids.count);
    assert_memory_equal(s->ids[i], g.ids.data, g.ids.count * sizeof *g.ids.data);
  }
  kf_generation_free(&g), free(s);
}

static void seeds(void **state) {
  (void)state;
  sample *a = draw((kf_self_options){.sampling = {.temperature = 0.8f, .top_p = 0.9f, .seed = 1}}),
         *b = draw((kf_self_options){.sampling = {.temperature = 0.8f, .top_p = 0.9f, .seed = 1}}),
         *c = draw((kf_self_options){.sampling = {.temperature = 0.8f, .top_p = 0.9f, .seed = 2}});
  assert_memory_equal(a, b, sizeof *a);
  assert_memory_not_equal(a, c, sizeof *a);
  free(a), free(b), free(c);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(own_distribution), cmocka_unit_test(going_on), cmocka_unit_test(top_one),
                                     cmocka_unit_test(seeds)};
  const char *path = KVFOLD_SOURCE_DIR "/examples/books-7m";
  kf_error e = {0};
  kf_model_options o = {.compute = KF_COMPUTE_F32, .threads = 1};
  if (kf_model_open(path, &o, &model, &e) != KF_OK || kf_tokenizer_open(path, &tokenizer, &e) != KF_OK)
    return printf("%s\n", e.message), 1;
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  kf_tokenizer_close(tokenizer);
  kf_model_close(model);
  return failed;
}
