/* care on the example model: the source where nothing is left out, every rule of ranks within the budget, refusals. */
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
static char scratch[] = "/tmp/kvfold-care-XXXXXX";

static int make_scratch(void **state) {
  (void)state;
  return !mkdtemp(scratch);
}
static int remove_scratch(void **state) {
  (void)state;
  return kf_remove_tree(scratch, NULL) != KF_OK;
}

static kf_status convert(const char *method, const char *src, const char *name, const char *cache, const kf_setting *settings,
                         int count, char dst[256], kf_error *e) {
  const char *files[] = {text};
  snprintf(dst, 256, "%s/%s", scratch, name);
  return kf_convert(src, dst,
                    &(kf_convert_options){.method = method,
                                          .cache = cache,
                                          .dtype = "f32",
                                          .settings = settings,
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

static void test_one_head_is_exact(void **state) {
  (void)state;
  char one[256], dst[256];
  kf_error e = {0};
  const kf_setting kv = {"kv_heads", "1"}, all[] = {{"rope_dim", "32"}, {"freqfold", "1"}};
  if (convert("kv-heads", books, "one", NULL, &kv, 1, one, &e) != KF_OK ||
      convert("care", one, "exact", "64", all, 2, dst, &e) != KF_OK)
    fail_msg("%s", e.message);
  double kl = divergence(one, dst);
  if (!(kl < 1e-7)) fail_msg("one head, nothing left out: KL %g", kl);
}

/* Ranks as recorded. */
static void read_ranks(const char *dst, int ranks[8]) {
  char path[KF_PATH];
  kf_error e = {0};
  json_t *config;
  assert_int_equal(kf_join(path, dst, "config.json", NULL), KF_OK);
  if (kf_json_read(path, &config, &e) != KF_OK) fail_msg("%s", e.message);
  json_t *list =
      json_object_get(json_object_get(json_object_get(json_object_get(config, "kvfold"), "recipe"), "chosen"), "ranks");
  assert_int_equal(json_array_size(list), 8);
  for (int i = 0; i < 8; i++) ranks[i] = (int)json_integer_value(json_array_get(list, (size_t)i));
  json_decref(config);
}

static void test_ranks_keep_the_budget(void **state) {
  (void)state;
  static const char *const policies[] = {"uniform", "dynamic", "progressive"};
  enum { CACHE = 96, ROPE = 16, UNIFORM = CACHE - ROPE };
  for (int p = 0; p < 3; p++) {
    const kf_setting set[] = {{"rope_dim", "16"}, {"freqfold", "2"}, {"rank_policy", policies[p]}, {"statistics", "source"}};
    char dst[256];
    int rank[8], sum = 0;
    kf_model_info info;
    kf_error e = {0};
    if (convert("care", books, policies[p], "96", set, 4, dst, &e) != KF_OK || kf_model_describe(dst, &info, &e) != KF_OK)
      fail_msg("%s", e.message);
    assert_int_equal(info.cache_elements_per_token, 8 * CACHE);
    read_ranks(dst, rank);
    for (int i = 0; i < 8; i++) {
      sum += rank[i];
      if (rank[i] < UNIFORM / 2 || rank[i] > 2 * UNIFORM) fail_msg("%s: layer %d has %d latents", policies[p], i, rank[i]);
      if (p == 0) assert_int_equal(rank[i], UNIFORM);
      if (p == 2 && i > 0 && rank[i] > rank[i - 1])
        fail_msg("progressive: layer %d has %d latents, the one before %d", i, rank[i], rank[i - 1]);
    }
    assert_int_equal(sum, 8 * UNIFORM);
    if (p) assert_true(rank[0] != UNIFORM || rank[7] != UNIFORM);
    double kl = divergence(books, dst);
    if (!(kl < 1)) fail_msg("%s: KL %g", policies[p], kl);
  }
}

static void test_refusals(void **state) {
  (void)state;
  char dst[256];
  kf_error e = {0};
  const kf_setting shrinkage = {"shrinkage", "2"}, policy = {"rank_policy", "fisher"};
  assert_int_equal(convert("care", books, "shrinkage", "96", &shrinkage, 1, dst, &e), KF_ERROR_USAGE);
  assert_non_null(strstr(e.message, "shrinkage=2"));
  assert_int_equal(convert("care", books, "policy", "96", &policy, 1, dst, &e), KF_ERROR_USAGE);
  assert_non_null(strstr(e.message, "known: uniform, dynamic, progressive"));
  assert_int_equal(convert("care", books, "tiny", "8", NULL, 0, dst, &e), KF_ERROR_INPUT);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_one_head_is_exact), cmocka_unit_test(test_ranks_keep_the_budget),
                                     cmocka_unit_test(test_refusals)};
  return cmocka_run_group_tests_name("care", tests, make_scratch, remove_scratch);
}
