/* kf_eval against the protocol computed the long way: every window through kf_logits, every sum in double. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "kvfold/kvfold.h"

#define BOOKS KVFOLD_SOURCE_DIR "/examples/books-7m"
enum { VOCABULARY = 4096 };

typedef struct state {
  kf_model *model, *reference; /* the reference: the same model at half the cache */
  kf_tokenizer *tokenizer;
  kf_text text;
  kf_ids ids;
  char scratch[64];
} state;

static void succeeds(kf_status s, const kf_error *e) {
  if (s != KF_OK) fail_msg("%s", e->message);
}

static void near(double got, double want, double room) {
  if (!(fabs(got - want) <= room)) fail_msg("%.9g, expected %.9g within %.3g", got, want, room);
}

static int open_all(void **out) {
  static state st;
  kf_error e = {0};
  char converted[96];
  kf_model_options f32 = {.compute = KF_COMPUTE_F32, .threads = 2};
  kf_convert_options half = {.method = "x-ecomla", .cache = "50%", .compute = KF_COMPUTE_F32};
  kf_convert_result result;
  snprintf(st.scratch, sizeof st.scratch, "/tmp/kvfold-test-eval-XXXXXX");
  assert_non_null(mkdtemp(st.scratch));
  snprintf(converted, sizeof converted, "%s/half", st.scratch);
  succeeds(kf_convert(BOOKS, converted, &half, &result, &e), &e);
  succeeds(kf_model_open(BOOKS, &f32, &st.model, &e), &e);
  succeeds(kf_model_open(converted, &f32, &st.reference, &e), &e);
  succeeds(kf_tokenizer_open(BOOKS, &st.tokenizer, &e), &e);
  succeeds(kf_text_read(BOOKS "/held-out.txt", &st.text, &e), &e);
  st.text.bytes = 1400;
  succeeds(kf_tokenizer_encode(st.tokenizer, st.text.data, st.text.bytes, KF_ENCODE_PLAIN, &st.ids, &e), &e);
  assert_in_range(st.ids.count, 200, 1400);
  *out = &st;
  return 0;
}

static int close_all(void **p) {
  state *st = *p;
  char command[128];
  kf_model_close(st->model);
  kf_model_close(st->reference);
  kf_tokenizer_close(st->tokenizer);
  kf_text_free(&st->text);
  kf_ids_free(&st->ids);
  snprintf(command, sizeof command, "rm -r %s", st->scratch);
  return system(command);
}

/* log of the softmax's denominator */
static double log_sum(const float *x) {
  double largest = -INFINITY, sum = 0;
  for (int i = 0; i < VOCABULARY; i++) largest = fmax(largest, x[i]);
  for (int i = 0; i < VOCABULARY; i++) sum += exp(x[i] - largest);
  return largest + log(sum);
}

static int best(const float *x) {
  int b = 0;
  for (int i = 1; i < VOCABULARY; i++)
    if (x[i] > x[b]) b = i;
  return b;
}

/* Adds one predicted position to sums that are divided at the end. */
static void add_position(kf_eval_result *r, const float *model, const float *reference, int32_t target) {
  double zm = log_sum(model), zr = log_sum(reference);
  r->tokens++;
  r->nll += zm - model[target];
  r->reference_nll += zr - reference[target];
  r->top1_agreement += best(model) == best(reference);
  for (int i = 0; i < VOCABULARY; i++) {
    double log_reference = reference[i] - zr, log_model = model[i] - zm;
    r->kl += exp(log_reference) * (log_reference - log_model);
    r->max_logit_difference = fmax(r->max_logit_difference, fabs((double)reference[i] - model[i]));
  }
}

static kf_eval_result long_way(const state *st, int window, int stride, int max_windows, bool bos) {
  kf_error e = {0};
  kf_eval_result r = {0};
  int length = window + bos;
  float *model = malloc((size_t)length * VOCABULARY * sizeof *model),
        *reference = malloc((size_t)length * VOCABULARY * sizeof *model);
  int32_t *input = malloc((size_t)length * sizeof *input);
  for (int start = 0; start + window <= (int)st->ids.count && (!max_windows || r.windows < max_windows);
       start += stride, r.windows++) {
    input[0] = kf_tokenizer_bos(st->tokenizer);
    memcpy(input + bos, st->ids.data + start, (size_t)window * sizeof *input);
    succeeds(kf_logits(st->model, input, (size_t)length, model, &e), &e);
    succeeds(kf_logits(st->reference, input, (size_t)length, reference, &e), &e);
    for (int i = 0; i < window; i++) {
      bool counts = (i > 0 || bos) && (start == 0 || i >= window - stride);
      size_t row = (size_t)(i + bos - 1) * VOCABULARY;
      if (counts) add_position(&r, model + row, reference + row, st->ids.data[start + i]);
    }
  }
  free(input);
  free(reference);
  free(model);
  double n = (double)r.tokens;
  r.nll /= n, r.reference_nll /= n, r.kl /= n, r.top1_agreement /= n;
  return r;
}

static void compare(const state *st, int window, int stride, int max_windows, bool bos) {
  kf_error e = {0};
  kf_eval_result got, want = long_way(st, window, stride ? stride : window, max_windows, bos);
  kf_eval_options o = {.window = window, .stride = stride, .max_windows = max_windows, .bos = bos ? KF_BOS_YES : KF_BOS_NO};
  succeeds(kf_eval(st->model, st->reference, st->tokenizer, st->text.data, st->text.bytes, &o, &got, &e), &e);
  assert_int_equal(got.tokens, want.tokens);
  assert_int_equal(got.windows, want.windows);
  assert_true(got.has_reference);
  near(got.nll, want.nll, 2e-5);
  near(got.perplexity, exp(got.nll), 1e-9 * got.perplexity);
  near(got.reference_nll, want.reference_nll, 2e-5);
  near(got.kl, want.kl, 2e-5);
  near(got.top1_agreement, want.top1_agreement, 1.5 / (double)want.tokens);
  near(got.max_logit_difference, want.max_logit_difference, 1e-3);
}

static void test_consecutive_windows(void **p) {
  compare(*p, 32, 0, 0, false);
  compare(*p, 32, 0, 0, true);
  compare(*p, 33, 33, 3, true);
}

static void test_stride(void **p) {
  compare(*p, 48, 16, 5, false);
  compare(*p, 48, 16, 5, true);
  compare(*p, 40, 39, 0, false);
  compare(*p, 32, 1, 7, true);
}

static void test_one_token_windows_with_bos(void **p) {
  compare(*p, 1, 1, 20, true);
}

static void test_one_window_of_everything(void **p) {
  const state *st = *p;
  compare(st, (int)st->ids.count, 0, 0, false);
}

static void test_without_reference(void **p) {
  const state *st = *p;
  kf_error e = {0};
  kf_eval_result r;
  kf_eval_options o = {.window = 32, .max_windows = 2, .bos = KF_BOS_NO};
  succeeds(kf_eval(st->model, NULL, st->tokenizer, st->text.data, st->text.bytes, &o, &r, &e), &e);
  assert_int_equal(r.tokens, 62);
  assert_false(r.has_reference);
}

/* AUTO follows the tokenizer: this one adds no BOS by itself when kf_tokenizer_adds_bos() says so. */
static void test_bos_auto(void **p) {
  const state *st = *p;
  kf_error e = {0};
  kf_eval_result r;
  kf_eval_options o = {.window = 32, .max_windows = 2};
  succeeds(kf_eval(st->model, NULL, st->tokenizer, st->text.data, st->text.bytes, &o, &r, &e), &e);
  assert_int_equal(r.tokens, kf_tokenizer_adds_bos(st->tokenizer) ? 64 : 62);
}

static void refused(const state *st, kf_model *reference, kf_eval_options o, kf_status status, const char *word) {
  kf_error e = {0};
  kf_eval_result r;
  assert_int_equal(kf_eval(st->model, reference, st->tokenizer, st->text.data, st->text.bytes, &o, &r, &e), status);
  assert_non_null(strstr(e.message, word));
}

static int stop_at_once(void *user, const char *what, double done, double total) {
  (void)user, (void)what, (void)done, (void)total;
  return 1;
}

static void test_refusals(void **p) {
  state *st = *p;
  kf_error e = {0};
  kf_model *other;
  refused(st, NULL, (kf_eval_options){.window = 100000}, KF_ERROR_INPUT, "fewer than one window");
  refused(st, NULL, (kf_eval_options){.window = 32, .stride = 33}, KF_ERROR_USAGE, "stride");
  refused(st, NULL, (kf_eval_options){.window = 1, .bos = KF_BOS_NO}, KF_ERROR_USAGE, "predicts nothing");
  refused(st, NULL, (kf_eval_options){.window = -1}, KF_ERROR_USAGE, "negative");
  refused(st, NULL, (kf_eval_options){.window = 32, .hooks.progress = stop_at_once}, KF_ERROR_CANCELLED, "");
  succeeds(kf_model_open(KVFOLD_SOURCE_DIR "/tests/fixtures/families/llama1", NULL, &other, &e), &e);
  refused(st, other, (kf_eval_options){.window = 32}, KF_ERROR_INPUT, "vocabulary");
  kf_model_close(other);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_consecutive_windows),
      cmocka_unit_test(test_stride),
      cmocka_unit_test(test_one_token_windows_with_bos),
      cmocka_unit_test(test_one_window_of_everything),
      cmocka_unit_test(test_without_reference),
      cmocka_unit_test(test_bos_auto),
      cmocka_unit_test(test_refusals),
  };
  return cmocka_run_group_tests(tests, open_all, close_all);
}
