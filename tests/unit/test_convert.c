/* Conversions of the example model and of tiny models of every family: what must be equal is equal. */
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/json.h"
#include "base/random.h"
#include "model/model.h"

static const char books[] = KVFOLD_SOURCE_DIR "/examples/books-7m";
static char scratch[64];

enum { MOST_SETTINGS = 8, TOKENS = 48 };

/* "a=1", "b=2", NULL */
static kf_status convert_with(const char *src, const char *dst, kf_convert_options o, const char *const *settings,
                              kf_convert_result *r, kf_error *e) {
  kf_setting parsed[MOST_SETTINGS];
  char text[MOST_SETTINGS][256];
  for (int i = 0; settings && settings[i]; i++) {
    snprintf(text[i], sizeof text[i], "%s", settings[i]);
    char *equals = strchr(text[i], '=');
    assert_non_null(equals);
    *equals = 0;
    parsed[o.setting_count++] = (kf_setting){text[i], equals + 1};
  }
  o.settings = parsed;
  return kf_convert(src, dst, &o, r, e);
}

static const char *dst_path(const char *name) {
  static char path[2][256];
  static int turn;
  snprintf(path[turn ^= 1], sizeof path[0], "%s/%s", scratch, name);
  return path[turn];
}

static void convert(const char *src, const char *dst, const char *method, const char *cache, const char *const *settings) {
  kf_error e = {0};
  kf_convert_result r;
  kf_convert_options o = {.method = method, .cache = cache, .dtype = "f32"};
  kf_remove_tree(dst, NULL);
  if (convert_with(src, dst, o, settings, &r, &e) != KF_OK) fail_msg("%s", e.message);
}

/* Logits [TOKENS, vocabulary] of tokens that depend on nothing but the vocabulary. */
static float *logits_of(const char *model, kf_latent_form form, int *vocabulary) {
  kf_error e = {0};
  kf_model *m;
  kf_model_options o = {.compute = KF_COMPUTE_F32};
  if (kf_model_open(model, &o, &m, &e) != KF_OK) fail_msg("%s", e.message);
  kf_run_set_form(m->run, form);
  *vocabulary = kf_model_get_info(m)->vocabulary;
  kf_random r;
  kf_random_seed(&r, 11);
  int32_t ids[TOKENS];
  for (int i = 0; i < TOKENS; i++) ids[i] = (int32_t)(kf_random_u64(&r) % (uint64_t)*vocabulary);
  float *out = kf_alloc((size_t)TOKENS * (size_t)*vocabulary, sizeof *out, NULL);
  if (kf_logits(m, ids, TOKENS, out, &e) != KF_OK) fail_msg("%s", e.message);
  kf_model_close(m);
  return out;
}

/* Largest difference over the spread of the reference. */
static double difference(const float *a, const float *b, size_t n) {
  double most = 0, spread = 0;
  for (size_t i = 0; i < n; i++) {
    if (!isfinite(a[i]) || !isfinite(b[i])) return INFINITY;
    most = fmax(most, fabs((double)a[i] - b[i]));
    spread = fmax(spread, fabs((double)b[i]));
  }
  return most / spread;
}

static void assert_same_logits(const char *model, const float *want, double tolerance, const char *what) {
  const kf_latent_form forms[] = {KF_FORM_EXPANDED, KF_FORM_ABSORBED};
  for (int f = 0; f < 2; f++) {
    int v;
    float *got = logits_of(model, forms[f], &v);
    double d = difference(got, want, (size_t)TOKENS * (size_t)v);
    free(got);
    if (!(d < tolerance)) fail_msg("%s (%s): differs by %g of the largest logit", what, f ? "absorbed" : "expanded", d);
  }
}

/* Head dimension and what a full conversion needs of a model. */
static kf_model_info describe(const char *model) {
  kf_model_info info;
  kf_error e = {0};
  if (kf_model_describe(model, &info, &e) != KF_OK) fail_msg("%s", e.message);
  return info;
}

/* All pairs, all latents: every svd form and policy is the original. */
static void check_identity(const char *model) {
  static const char *const svds[] = {"joint", "split", "k-only", "v-only", "none"};
  static const char *const policies[] = {"high", "low", "uniform", "high-low"};
  int v;
  float *want = logits_of(model, KF_FORM_AUTO, &v);
  for (int i = 0; i < 5 + 4; i++) {
    char svd[64], policy[64], what[4352];
    kf_model_info info = describe(model);
    char pairs[64];
    snprintf(pairs, sizeof pairs, "rope_pairs=%d", info.head_dim / 2);
    snprintf(svd, sizeof svd, "svd=%s", i < 5 ? svds[i] : "joint");
    snprintf(policy, sizeof policy, "rope_policy=%s", i < 5 ? "high" : policies[i - 5]);
    snprintf(what, sizeof what, "%s, %s, %s", model, svd, policy);
    const char *dst = dst_path("identity");
    convert(model, dst, "mha2mla", "1000%", (const char *const[]){pairs, svd, policy, NULL});
    assert_same_logits(dst, want, 2e-5, what);
  }
  free(want);
}

/* Both methods at half the cache: the two forms agree. */
static void check_forms(const char *model) {
  static const char *const methods[] = {"mha2mla", "x-ecomla"};
  for (int i = 0; i < 2; i++) {
    char what[4352];
    int v;
    snprintf(what, sizeof what, "%s by %s", model, methods[i]);
    convert(model, dst_path("half"), methods[i], "60%", NULL);
    float *want = logits_of(dst_path("half"), KF_FORM_EXPANDED, &v);
    assert_same_logits(dst_path("half"), want, 2e-5, what);
    free(want);
  }
}

static void test_full_width_is_the_original(void **state) {
  (void)state;
  check_identity(books);
}

static void test_every_family_survives_conversion(void **state) {
  (void)state;
  const char *root = KVFOLD_SOURCE_DIR "/tests/fixtures/families";
  DIR *d = opendir(root);
  if (!d) {
    printf("SKIP: %s is not here\n", root);
    skip();
  }
  int done = 0;
  for (struct dirent *f; (f = readdir(d));) {
    char model[KF_PATH];
    kf_model_info info;
    if (f->d_name[0] == '.' || kf_join(model, root, f->d_name, NULL) != KF_OK || kf_model_describe(model, &info, NULL) != KF_OK ||
        strcmp(info.attention, "grouped") != 0)
      continue;
    check_identity(model);
    check_forms(model);
    done++;
  }
  closedir(d);
  assert_true(done > 0);
}

/* Not at full width, the two forms of latent attention still agree, and the budget is what info says. */
static void check_reduced(const char *method, const char *cache, const char *const *settings) {
  const char *dst = dst_path("reduced");
  int v;
  convert(books, dst, method, cache, settings);
  kf_model_info info = describe(dst);
  assert_string_equal(info.attention, "latent");
  assert_int_equal(info.cache_elements_per_token, 8 * atoi(cache));
  float *want = logits_of(dst, KF_FORM_EXPANDED, &v);
  assert_same_logits(dst, want, 2e-5, method);
  free(want);
}

static void test_forms_agree_and_budgets_hold(void **state) {
  (void)state;
  check_reduced("mha2mla", "128", NULL);
  check_reduced("mha2mla", "96", (const char *const[]){"svd=split", "rope_policy=uniform", "rope_pairs=3", NULL});
  check_reduced("mha2mla", "200", (const char *const[]){"svd=k-only", "rope_policy=low", NULL});
  check_reduced("mha2mla", "200", (const char *const[]){"svd=v-only", "rope_policy=high-low", NULL});
  check_reduced("mha2mla", "64", (const char *const[]){"rope_pairs=0", "singular_values=split", NULL});
  check_reduced("x-ecomla", "64", NULL);
  check_reduced("x-ecomla", "96", (const char *const[]){"q_rank=96", "kv_b=query", "variant=paper", "rope_dim=8", NULL});
  check_reduced("x-ecomla", "128", (const char *const[]){"latent_norm=true", "nope_dim=32", "rope_dim=32", "q_rank=64", NULL});
  check_reduced("x-ecomla", "40", (const char *const[]){"rope_dim=0", NULL});
}

/* Where the singular values go, and whether kv_b is repeated, changes nothing but the weights. */
static void test_gauges_agree(void **state) {
  (void)state;
  static const char *const gauges[] = {"singular_values=up", "singular_values=split", "singular_values=down", "kv_b=query",
                                       "variant=paper"};
  int v;
  convert(books, dst_path("gauge"), "x-ecomla", "96", (const char *const[]){"q_rank=100", NULL});
  float *want = logits_of(dst_path("gauge"), KF_FORM_EXPANDED, &v);
  for (int i = 0; i < 5; i++) {
    const char *dst = dst_path("gauge");
    convert(books, dst, "x-ecomla", "96", (const char *const[]){"q_rank=100", gauges[i], NULL});
    assert_same_logits(dst, want, 2e-5, gauges[i]);
  }
  free(want);
  convert(books, dst_path("gauge"), "mha2mla", "96", NULL);
  want = logits_of(dst_path("gauge"), KF_FORM_EXPANDED, &v);
  convert(books, dst_path("gauge"), "mha2mla", "96", (const char *const[]){"singular_values=down", NULL});
  assert_same_logits(dst_path("gauge"), want, 2e-5, "mha2mla singular_values=down");
  free(want);
}

/* ------------------------------------------------------------------------------------------------ files */

static bool same_file(const char *a, const char *b) {
  kf_text x = {0}, y = {0};
  bool same = kf_read_file(a, 1 << 28, &x, NULL) == KF_OK && kf_read_file(b, 1 << 28, &y, NULL) == KF_OK && x.bytes == y.bytes &&
              memcmp(x.data, y.data, x.bytes) == 0;
  kf_text_free(&x);
  kf_text_free(&y);
  return same;
}

static void assert_same_directory(const char *a, const char *b) {
  int count[2] = {0};
  for (int i = 0; i < 2; i++) {
    DIR *d = opendir(i ? b : a);
    assert_non_null(d);
    for (struct dirent *f; (f = readdir(d));) {
      char x[KF_PATH], y[KF_PATH];
      if (f->d_name[0] == '.') continue;
      count[i]++;
      assert_int_equal(kf_join(x, a, f->d_name, NULL), KF_OK);
      assert_int_equal(kf_join(y, b, f->d_name, NULL), KF_OK);
      if (!same_file(x, y)) fail_msg("%s differs", f->d_name);
    }
    closedir(d);
  }
  assert_int_equal(count[0], count[1]);
}

static int stop_after;
static int stop(void *user, const char *what, double done, double total) {
  (void)what, (void)total;
  *(int *)user += 1;
  return stop_after >= 0 && done >= stop_after;
}

/* Same bytes twice, and after a stop in the middle; shards of one layer each. */
static void test_resume_gives_the_same_bytes(void **state) {
  (void)state;
  int calls = 0;
  kf_error e = {0};
  kf_convert_result r;
  kf_convert_options o = {
      .method = "mha2mla", .cache = "50%", .shard_bytes = 1 << 20, .hooks = {.progress = stop, .user = &calls}};
  const char *a = dst_path("whole"), *b = dst_path("resumed");
  char partial[300];
  snprintf(partial, sizeof partial, "%s.partial", b);
  stop_after = -1;
  assert_int_equal(convert_with(books, a, o, NULL, &r, &e), KF_OK);
  assert_int_equal(r.layers_resumed, 0);
  assert_true(calls >= 9);
  assert_int_equal(r.cache_elements * 2, r.source_cache_elements);
  stop_after = 5;
  assert_int_equal(convert_with(books, b, o, NULL, &r, &e), KF_ERROR_CANCELLED);
  assert_false(kf_exists(b));
  assert_true(kf_is_directory(partial));
  stop_after = -1;
  if (convert_with(books, b, o, NULL, &r, &e) != KF_OK) fail_msg("%s", e.message);
  assert_true(r.layers_resumed >= 3 && r.layers_resumed < 8);
  assert_int_equal(r.layers_converted, 8);
  assert_false(kf_exists(partial));
  assert_same_directory(a, b);
  /* another recipe does not take over what was done */
  kf_remove_tree(b, NULL);
  stop_after = 5;
  assert_int_equal(convert_with(books, b, o, NULL, &r, &e), KF_ERROR_CANCELLED);
  stop_after = -1;
  o.cache = "40%";
  if (convert_with(books, b, o, NULL, &r, &e) != KF_OK) fail_msg("%s", e.message);
  assert_int_equal(r.layers_resumed, 0);
  kf_remove_tree(a, NULL);
  if (convert_with(books, a, o, NULL, &r, &e) != KF_OK) fail_msg("%s", e.message);
  assert_same_directory(a, b);
}

static void write_text(const char *path) {
  kf_buffer text = {0};
  for (int i = 0; i < 400; i++)
    kf_buffer_printf(&text, NULL, "The %d ships sailed out of the harbour before the storm came. ", i * 7919 % 1000);
  assert_int_equal(kf_write_file(path, text.data, text.bytes, NULL), KF_OK);
  kf_buffer_free(&text);
}

/* Scores by calibration: all policies that use them, and resuming in the middle of the pass. */
static void test_calibration(void **state) {
  (void)state;
  char text[300];
  int calls = 0, v;
  kf_error e = {0};
  kf_convert_result r;
  snprintf(text, sizeof text, "%s", dst_path("text.txt"));
  write_text(text);
  const char *const files[] = {text};
  kf_convert_options o = {.method = "mha2mla",
                          .cache = "96",
                          .dtype = "f32",
                          .calibration = files,
                          .calibration_count = 1,
                          .calibration_tokens = 1500,
                          .shard_bytes = 1 << 20,
                          .compute = KF_COMPUTE_F32,
                          .hooks = {.progress = stop, .user = &calls}};
  static const char *const policies[] = {"rope_policy=2-norm", "rope_policy=2-norm-global", "score=sum"};
  for (int i = 0; i < 3; i++) {
    char a[256], b[256];
    snprintf(a, sizeof a, "%s", dst_path("scored"));
    snprintf(b, sizeof b, "%s", dst_path("rescored"));
    kf_remove_tree(a, NULL);
    kf_remove_tree(b, NULL);
    const char *const settings[] = {policies[i], NULL};
    stop_after = -1;
    if (convert_with(books, a, o, settings, &r, &e) != KF_OK) fail_msg("%s", e.message);
    float *want = logits_of(a, KF_FORM_EXPANDED, &v); /* heads with unequal numbers of pairs among them */
    assert_same_logits(a, want, 2e-5, policies[i]);
    free(want);
    assert_int_equal(describe(a).cache_elements_per_token, 8 * 96);
    stop_after = 6;
    assert_int_equal(convert_with(books, b, o, settings, &r, &e), KF_ERROR_CANCELLED);
    stop_after = -1;
    if (convert_with(books, b, o, settings, &r, &e) != KF_OK) fail_msg("%s", e.message);
    assert_true(r.layers_resumed > 0);
    assert_same_directory(a, b);
  }
}

/* A model whose KV heads are repeated is the same model, and one SVD of its rows finds the same latents. */
static void test_repeated_heads_convert_to_the_same_model(void **state) {
  (void)state;
  const char *twin = dst_path("twin");
  char path[KF_PATH];
  kf_remove_tree(twin, NULL);
  assert_int_equal(kf_make_directory(twin, NULL), KF_OK);
  kf_config c;
  kf_weights w;
  assert_int_equal(kf_model_read(books, &c, &w, NULL), KF_OK);
  kf_safetensors_writer *out;
  snprintf(path, sizeof path, "%s/model.safetensors", twin);
  assert_int_equal(kf_safetensors_create(path, &out, NULL), KF_OK);
  int64_t d = c.head_dim, group = c.heads / c.kv_heads;
  for (int i = 0; i < kf_source_count(w.source); i++) {
    const kf_view *v = kf_source_at(w.source, i);
    if (!strstr(v->name, "k_proj") && !strstr(v->name, "v_proj")) {
      assert_int_equal(kf_safetensors_add_raw(out, v, NULL), KF_OK);
      continue;
    }
    float *from, *to = kf_alloc((size_t)(c.heads * d * c.hidden), sizeof *to, NULL);
    assert_int_equal(kf_weights_read(&w, v->name, c.kv_heads * d, c.hidden, &from, NULL), KF_OK);
    for (int h = 0; h < c.heads; h++)
      memcpy(to + h * d * c.hidden, from + h / group * d * c.hidden, (size_t)(d * c.hidden) * sizeof *to);
    assert_int_equal(kf_safetensors_add(out, v->name, v->dtype, 2, (const int64_t[]){c.heads * d, c.hidden}, to, NULL), KF_OK);
    free(from);
    free(to);
  }
  assert_int_equal(kf_safetensors_finish(out, NULL), KF_OK);
  json_object_set_new(c.json, "num_key_value_heads", json_integer(c.heads));
  snprintf(path, sizeof path, "%s/config.json", twin);
  assert_int_equal(kf_json_write(path, c.json, NULL), KF_OK);
  kf_weights_close(&w);
  kf_config_free(&c);

  int v;
  const char *const xecomla[] = {"kv_rank=80", "rope_dim=16", NULL};
  const char *a = dst_path("from-gqa");
  convert(books, a, "x-ecomla", NULL, xecomla);
  float *want = logits_of(a, KF_FORM_EXPANDED, &v);
  char copy[256];
  snprintf(copy, sizeof copy, "%s/twin", scratch);
  convert(copy, dst_path("from-mha"), "x-ecomla", NULL, xecomla);
  assert_same_logits(dst_path("from-mha"), want, 2e-5, "x-ecomla");
  free(want);
  const char *const mha2mla[] = {"rank=70", "rope_pairs=4", NULL};
  convert(books, dst_path("from-gqa"), "mha2mla", NULL, mha2mla);
  want = logits_of(dst_path("from-gqa"), KF_FORM_EXPANDED, &v);
  convert(copy, dst_path("from-mha"), "mha2mla", NULL, mha2mla);
  assert_same_logits(dst_path("from-mha"), want, 2e-5, "mha2mla");
  free(want);
}

static void test_none_and_hybrids(void **state) {
  (void)state;
  int v;
  float *want = logits_of(books, KF_FORM_AUTO, &v);
  convert(books, dst_path("none"), "none", NULL, NULL);
  assert_string_equal(describe(dst_path("none")).family, "llama");
  assert_string_equal(describe(dst_path("none")).dtype, "f32");
  assert_same_logits(dst_path("none"), want, 1e-7, "none");
  free(want);
  const char *hybrid = dst_path("hybrid");
  convert(books, hybrid, "x-ecomla", "64", (const char *const[]){"layers=0,2,4-5", NULL});
  kf_model_info info = describe(hybrid);
  assert_string_equal(info.attention, "hybrid");
  assert_int_equal(info.cache_elements_per_token, 4 * 64 + 4 * 256);
  want = logits_of(hybrid, KF_FORM_EXPANDED, &v);
  assert_same_logits(hybrid, want, 2e-5, "hybrid");
  /* a converted model is copied by none, and by nothing else */
  char source[256];
  snprintf(source, sizeof source, "%s", hybrid);
  convert(source, dst_path("again"), "none", NULL, NULL);
  assert_same_logits(dst_path("again"), want, 2e-5, "none of a hybrid");
  free(want);
  kf_error e;
  kf_convert_options o = {.method = "mha2mla", .cache = "64"};
  assert_int_equal(convert_with(source, dst_path("no"), o, NULL, NULL, &e), KF_ERROR_INPUT);
  assert_non_null(strstr(e.message, "already has latent attention"));
}

static void test_energy_ranks(void **state) {
  (void)state;
  const char *dst = dst_path("energy");
  kf_config c;
  convert(books, dst, "x-ecomla", "96", (const char *const[]){"kv_energy=0.9", "q_energy=0.9", NULL});
  assert_int_equal(kf_model_read(dst, &c, NULL, NULL), KF_OK);
  for (int i = 0; i < c.layers; i++) {
    const kf_attention_config *a = &c.layer[i].attention;
    bool end = i == 0 || i == c.layers - 1;
    if (end) assert_int_equal(a->rank, 80);
    if (end) assert_int_equal(a->q_rank, 0);
    if (!end) assert_true(a->rank % 8 == 0 && a->rank > 8 && a->rank < 256 && a->q_rank % 8 == 0 && a->q_rank > 8);
  }
  kf_config_free(&c);
  convert(books, dst, "x-ecomla", NULL, (const char *const[]){"kv_energy=1", "variant=paper", NULL});
  assert_int_equal(kf_model_read(dst, &c, NULL, NULL), KF_OK);
  for (int i = 0; i < c.layers; i++) assert_true(c.layer[i].attention.rank > 240); /* everything, but for rounding */
  kf_config_free(&c);
}

/* ------------------------------------------------------------------------------------------------ refusals */

static void refused(kf_status status, const char *method, const char *cache, const char *const *settings, const char *says) {
  kf_error e = {0};
  kf_convert_options o = {.method = method, .cache = cache};
  const char *dst = dst_path("refused");
  char partial[300];
  snprintf(partial, sizeof partial, "%s.partial", dst);
  assert_int_equal(convert_with(books, dst, o, settings, NULL, &e), status);
  if (!strstr(e.message, says)) fail_msg("'%s' does not say '%s'", e.message, says);
  assert_false(kf_exists(dst));
  assert_false(kf_exists(partial));
}

static void test_refusals(void **state) {
  (void)state;
#define SET(...) (const char *const[]){__VA_ARGS__, NULL}
  refused(KF_ERROR_USAGE, "mha2ml", "64", NULL, "did you mean 'mha2mla'");
  refused(KF_ERROR_USAGE, "mha2mla", "64", SET("rope_pair=2"), "did you mean 'rope_pairs'");
  refused(KF_ERROR_USAGE, "mha2mla", "64", SET("kv_rank=2"), "unknown key of method mha2mla 'kv_rank'");
  refused(KF_ERROR_USAGE, "mha2mla", "64", SET("rope_policy=hgih"), "did you mean 'high'");
  refused(KF_ERROR_USAGE, "mha2mla", "64", SET("rope_pairs=x"), "rope_pairs=x");
  refused(KF_ERROR_USAGE, "mha2mla", "64", SET("rope_pairs=2.5"), "whole number");
  refused(KF_ERROR_USAGE, "mha2mla", "64", SET("rope_pairs=2", "rope_pairs=3"), "twice");
  refused(KF_ERROR_USAGE, "mha2mla", "0", NULL, "cache budget '0'");
  refused(KF_ERROR_USAGE, "mha2mla", "half", NULL, "cache budget 'half'");
  refused(KF_ERROR_USAGE, "mha2mla", "64", SET("rank=8"), "not both");
  refused(KF_ERROR_USAGE, "none", "64", NULL, "no cache budget");
  refused(KF_ERROR_USAGE, "x-ecomla", "64", SET("kv_energy=2"), "kv_energy=2");
  refused(KF_ERROR_USAGE, "x-ecomla", "64", SET("layers=1-"), "layers=1-");
  refused(KF_ERROR_INPUT, "x-ecomla", "64", SET("layers=7-8"), "layers 0 to 7");
  refused(KF_ERROR_INPUT, "x-ecomla", "64", SET("rope_dim=7"), "odd");
  refused(KF_ERROR_INPUT, "x-ecomla", "64", SET("rope_dim=34"), "32 rows");
  refused(KF_ERROR_INPUT, "x-ecomla", "16", NULL, "too small for layer 0");
  refused(KF_ERROR_INPUT, "x-ecomla", NULL, SET("kv_rank=257"), "at most 256");
  refused(KF_ERROR_INPUT, "x-ecomla", "64", SET("q_rank=257"), "at most rank 256");
  refused(KF_ERROR_INPUT, "mha2mla", "16", NULL, "too small for layer 0");
  refused(KF_ERROR_INPUT, "mha2mla", NULL, SET("rank=300"), "1 to 240 latents");
  refused(KF_ERROR_INPUT, "mha2mla", "64", SET("rope_pairs=17"), "has 16 pairs");
  refused(KF_ERROR_INPUT, "mha2mla", "64", SET("svd=k-only"), "too small");
  refused(KF_ERROR_INPUT, "mha2mla", "64", SET("rope_policy=2-norm"), "needs calibration text");
  refused(KF_ERROR_IO, "mha2mla", "64", SET("ranks_file=/nowhere.safetensors"), "/nowhere.safetensors");
#undef SET
}

static void test_what_stands_is_left_alone(void **state) {
  (void)state;
  kf_error e;
  char partial[300];
  kf_convert_options o = {.method = "mha2mla", .cache = "64"};
  const char *dst = dst_path("mine");
  assert_int_equal(kf_write_file(dst, "x", 1, NULL), KF_OK);
  assert_int_equal(convert_with(books, dst, o, NULL, NULL, &e), KF_ERROR_IO);
  assert_non_null(strstr(e.message, "exists"));
  /* DST.partial that someone else made */
  dst = dst_path("other");
  snprintf(partial, sizeof partial, "%s.partial", dst);
  char file[400];
  snprintf(file, sizeof file, "%s/notes.txt", partial);
  assert_int_equal(kf_make_directory(partial, NULL), KF_OK);
  assert_int_equal(kf_write_file(file, "x", 1, NULL), KF_OK);
  assert_int_equal(convert_with(books, dst, o, NULL, NULL, &e), KF_ERROR_IO);
  assert_true(kf_is_file(file));
  /* a target that does not exist */
  assert_int_equal(convert_with(books, "/nowhere/at/all", o, NULL, NULL, &e), KF_ERROR_IO);
}

static int make_scratch(void **state) {
  (void)state;
  snprintf(scratch, sizeof scratch, "/tmp/kvfold-convert-XXXXXX");
  return mkdtemp(scratch) ? 0 : -1;
}

static int remove_scratch(void **state) {
  (void)state;
  return kf_remove_tree(scratch, NULL) == KF_OK ? 0 : -1;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_full_width_is_the_original),
      cmocka_unit_test(test_every_family_survives_conversion),
      cmocka_unit_test(test_forms_agree_and_budgets_hold),
      cmocka_unit_test(test_gauges_agree),
      cmocka_unit_test(test_resume_gives_the_same_bytes),
      cmocka_unit_test(test_calibration),
      cmocka_unit_test(test_repeated_heads_convert_to_the_same_model),
      cmocka_unit_test(test_none_and_hybrids),
      cmocka_unit_test(test_energy_ranks),
      cmocka_unit_test(test_refusals),
      cmocka_unit_test(test_what_stands_is_left_alone),
  };
  return cmocka_run_group_tests(tests, make_scratch, remove_scratch);
}
