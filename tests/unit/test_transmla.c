/* transmla on the example model: exact where nothing is lost, deterministic, within its budget, choosing by held-out text. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/json.h"
#include "kvfold/kvfold.h"

static const char books[] = KVFOLD_SOURCE_DIR "/examples/books-7m";
static const char text[] = KVFOLD_SOURCE_DIR "/examples/books-7m/held-out.txt";
static char scratch[] = "/tmp/kvfold-transmla-XXXXXX";

static int make_scratch(void **state) {
  (void)state;
  return !mkdtemp(scratch);
}
static int remove_scratch(void **state) {
  (void)state;
  return kf_remove_tree(scratch, NULL) != KF_OK;
}

/* settings: "key", "value", ..., NULL */
static kf_status convert(const char *method, const char *src, const char *name, const char *cache, const char *const *settings,
                         char dst[256], kf_error *e) {
  const char *files[] = {text};
  kf_setting list[6];
  int count = 0;
  for (; settings && settings[2 * count]; count++) list[count] = (kf_setting){settings[2 * count], settings[2 * count + 1]};
  snprintf(dst, 256, "%s/%s", scratch, name);
  return kf_convert(src, dst,
                    &(kf_convert_options){.method = method,
                                          .cache = cache,
                                          .dtype = "f32",
                                          .settings = list,
                                          .setting_count = count,
                                          .calibration = files,
                                          .calibration_count = 1,
                                          .calibration_tokens = 2560,
                                          .compute = KF_COMPUTE_F32},
                    NULL, e);
}

static double divergence(const char *source_path, const char *converted) {
  kf_model_options f32 = {.compute = KF_COMPUTE_F32};
  kf_eval_options o = {.window = 128, .max_windows = 4, .bos = KF_BOS_NO};
  kf_eval_result r;
  kf_error e = {0};
  kf_model *source, *m;
  kf_tokenizer *t;
  kf_text read;
  if (kf_model_open(source_path, &f32, &source, &e) || kf_model_open(converted, &f32, &m, &e) ||
      kf_tokenizer_open(books, &t, &e) || kf_text_read(text, &read, &e) ||
      kf_eval(m, source, t, read.data, read.bytes, &o, &r, &e))
    fail_msg("%s", e.message);
  kf_text_free(&read);
  kf_tokenizer_close(t);
  kf_model_close(m);
  kf_model_close(source);
  return r.kl;
}

/* One KV head, all its pairs rotated, the values whole: the source itself. More than one loses rotations, at any rank. */
static void test_one_head_is_exact(void **state) {
  (void)state;
  char one[256], dst[256];
  kf_error e = {0};
  const char *const kv[] = {"kv_heads", "1", NULL}, *const all[] = {"rope_dim", "32", "freqfold", "1", NULL};
  if (convert("kv-heads", books, "one", NULL, kv, one, &e) != KF_OK ||
      convert("transmla", one, "exact", "64", all, dst, &e) != KF_OK)
    fail_msg("%s", e.message);
  double kl = divergence(one, dst);
  if (!(kl < 1e-7)) fail_msg("one head, nothing left out: KL %g", kl);
}

static void test_budget_and_variants(void **state) {
  (void)state;
  static const char *const sets[][5] = {{"rope_dim", "32", "freqfold", "1", NULL}, {"rope_dim", "16", "freqfold", "2", NULL}};
  static const char *const variants[][7] = {{"rope_dim", "32", "freqfold", "1", "variant", "code", NULL},
                                            {"rope_dim", "32", "freqfold", "1", "statistics", "source", NULL}};
  char dst[256], name[24];
  double kl[4];
  kf_model_info info;
  kf_error e = {0};
  for (int i = 0; i < 4; i++) {
    snprintf(name, sizeof name, "half-%d", i);
    if (convert("transmla", books, name, "128", i < 2 ? sets[i] : variants[i - 2], dst, &e) != KF_OK ||
        kf_model_describe(dst, &info, &e) != KF_OK)
      fail_msg("%s", e.message);
    assert_int_equal(info.cache_elements_per_token, 8 * 128);
    assert_string_equal(info.method, "transmla");
    kl[i] = divergence(books, dst);
  }
  if (!(kl[0] < 0.35 && kl[0] < kl[1])) fail_msg("KL with all frequencies %g, with every second %g", kl[0], kl[1]);
  for (int i = 2; i < 4; i++) /* the same method but for small things: near, and not the same */
    if (!(fabs(kl[i] - kl[0]) < 0.3 * kl[0] && kl[i] != kl[0])) fail_msg("variant %d: KL %g, fixed %g", i, kl[i], kl[0]);
}

static void test_choice_and_determinism(void **state) {
  (void)state;
  char a[256], b[256], path[KF_PATH], other[KF_PATH];
  kf_error e = {0};
  kf_text one, two;
  json_t *config;
  const char *const set[] = {"rope_dim", "16", NULL};
  if (convert("transmla", books, "auto-a", "96", set, a, &e) != KF_OK ||
      convert("transmla", books, "auto-b", "96", set, b, &e) != KF_OK)
    fail_msg("%s", e.message);
  assert_int_equal(kf_join(path, a, "model.safetensors", NULL), KF_OK);
  assert_int_equal(kf_join(other, b, "model.safetensors", NULL), KF_OK);
  assert_true(kf_read_file(path, 1 << 28, &one, NULL) == KF_OK && kf_read_file(other, 1 << 28, &two, NULL) == KF_OK);
  assert_true(one.bytes == two.bytes && memcmp(one.data, two.data, one.bytes) == 0);
  kf_text_free(&one);
  kf_text_free(&two);
  assert_int_equal(kf_join(path, a, "config.json", NULL), KF_OK);
  assert_int_equal(kf_json_read(path, &config, &e), KF_OK);
  json_t *chosen = json_object_get(json_object_get(json_object_get(config, "kvfold"), "recipe"), "chosen"), *tried, *best = NULL;
  size_t i;
  assert_int_equal(json_array_size(json_object_get(chosen, "tried")), 3);
  json_array_foreach(json_object_get(chosen, "tried"), i, tried) {
    assert_true(json_number_value(json_object_get(tried, "kl")) > 0);
    if (!best || json_number_value(json_object_get(tried, "kl")) < json_number_value(json_object_get(best, "kl"))) best = tried;
  }
  assert_true(json_equal(json_object_get(chosen, "freqfold"), json_object_get(best, "freqfold")));
  json_decref(config);
}

static void refused(const char *src, const char *cache, const char *const *settings, kf_status status, const char *sentence) {
  char dst[256];
  kf_error e = {0};
  assert_int_equal(convert("transmla", src, "refused", cache, settings, dst, &e), status);
  if (!strstr(e.message, sentence)) fail_msg("'%s' does not say '%s'", e.message, sentence);
  assert_false(kf_exists(dst));
}

static void test_refusals(void **state) {
  (void)state;
  refused(books, "128", (const char *const[]){"rope_dim", "6", NULL}, KF_ERROR_INPUT, "divides the 32 numbers");
  refused(books, "128", (const char *const[]){"freqfold", "3", NULL}, KF_ERROR_INPUT, "does not divide the 16 frequencies");
  refused(books, "128", (const char *const[]){"rope_dim", "8", "freqfold", "2", NULL}, KF_ERROR_INPUT, "not a multiple of 4");
  refused(books, "8", NULL, KF_ERROR_INPUT, "too small");
  refused(books, "32", (const char *const[]){"rope_dim", "32", NULL}, KF_ERROR_INPUT, "32 go to the RoPE key");
  refused(books, "128", (const char *const[]){"variant", "papr", NULL}, KF_ERROR_USAGE, "unknown value of variant");
  refused(KVFOLD_SOURCE_DIR "/tests/fixtures/families/qwen3", "50%", NULL, KF_ERROR_INPUT, "q/k norms");
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_one_head_is_exact), cmocka_unit_test(test_budget_and_variants),
                                     cmocka_unit_test(test_choice_and_determinism), cmocka_unit_test(test_refusals)};
  return cmocka_run_group_tests_name("transmla", tests, make_scratch, remove_scratch);
}
