/* fold on the example model: nothing is lost when nothing is left out, the choice is made on held-out text, and at half the
 * cache it stays nearer to the source than the papers' methods do. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/file.h"
#include "kvfold/kvfold.h"
#include "tiny.h"

static const char books[] = KVFOLD_SOURCE_DIR "/examples/books-7m";
static char scratch[] = "/tmp/kvfold-fold-XXXXXX";
static char calibration[64], judged[64]; /* the first and the last part of the held-out text */

static int make_texts(void **state) {
  (void)state;
  kf_text text = {0};
  kf_error e = {0};
  char path[256];
  if (!mkdtemp(scratch)) return 1;
  snprintf(path, sizeof path, "%s/held-out.txt", books);
  snprintf(calibration, sizeof calibration, "%s/calibration.txt", scratch);
  snprintf(judged, sizeof judged, "%s/judged.txt", scratch);
  if (kf_read_file(path, 1 << 24, &text, &e) != KF_OK) return 1;
  size_t cut = text.bytes * 3 / 4;
  while (cut < text.bytes && text.data[cut] != '\n') cut++;
  if (kf_write_file(calibration, text.data, cut, &e) != KF_OK) return 1;
  if (kf_write_file(judged, text.data + cut, text.bytes - cut, &e) != KF_OK) return 1;
  kf_text_free(&text);
  return 0;
}

static int remove_texts(void **state) {
  (void)state;
  return kf_remove_tree(scratch, NULL) != KF_OK;
}

static kf_status convert_of(const char *source, const char *name, kf_convert_options o, char dst[256], kf_error *e) {
  const char *files[] = {calibration};
  snprintf(dst, 256, "%s/%s", scratch, name);
  o.dtype = "f32";
  o.compute = KF_COMPUTE_F32; /* exact results are expected, on processors with bf16 too */
  if (!o.method) o.method = "fold";
  if (strcmp(o.method, "fold") == 0) {
    o.calibration = files;
    o.calibration_count = 1;
  }
  return kf_convert(source, dst, &o, NULL, e);
}

static kf_status convert(const char *name, kf_convert_options o, char dst[256], kf_error *e) {
  return convert_of(books, name, o, dst, e);
}

/* KL(source || converted) on the judged text, in f32. */
static double divergence_of(const char *from, const char *converted, int window) {
  kf_model_options f32 = {.compute = KF_COMPUTE_F32};
  kf_eval_options o = {.window = window, .max_windows = 8, .bos = KF_BOS_NO};
  kf_eval_result r;
  kf_error e = {0};
  kf_model *source, *m;
  kf_tokenizer *t;
  kf_text text;
  if (kf_model_open(from, &f32, &source, &e) || kf_model_open(converted, &f32, &m, &e) || kf_tokenizer_open(books, &t, &e) ||
      kf_text_read(judged, &text, &e) || kf_eval(m, source, t, text.data, text.bytes, &o, &r, &e))
    fail_msg("%s", e.message);
  kf_text_free(&text);
  kf_tokenizer_close(t);
  kf_model_close(m);
  kf_model_close(source);
  return r.kl;
}

static double divergence(const char *converted) {
  return divergence_of(books, converted, 256);
}

/* Every channel of every KV head rotated, and as many latents as the hidden state has numbers: the source itself. */
static void test_complete(void **state) {
  (void)state;
  char dst[256];
  kf_error e = {0};
  const kf_setting all[] = {{"rope_pairs", "64"}, {"rope_table", "any"}, {"selection", "greedy"}, {"refit", "none"}};
  if (convert("complete", (kf_convert_options){.cache = "384", .settings = all, .setting_count = 4, .calibration_tokens = 4096},
              dst, &e) != KF_OK)
    fail_msg("%s", e.message);
  double kl = divergence(dst);
  if (!(kl < 1e-6)) fail_msg("a complete fold diverges by %g", kl);
}

/* Biases of q, k, v and o, as Qwen2's and Llama's: nothing is lost when nothing is left out, refitted or not. */
static void test_biases(void **state) {
  (void)state;
  static const char *const refits[] = {"none", "all"};
  char source[256], dst[256];
  kf_error e = {0};
  tiny_tensors t = {.scale = 0.3};
  kf_random_seed(&t.random, 11);
  json_t *o = tiny_config(true);
  snprintf(source, sizeof source, "%s/biased", scratch);
  if (tiny_write(source, o, &t, &e) != KF_OK) fail_msg("%s", e.message);
  json_decref(o);
  for (int i = 0; i < 2; i++) { /* 16 numbers and the constant as latents, all 2 x 2 pairs rotated */
    const kf_setting all[] = {{"rope_pairs", "4"}, {"rope_table", "any"}, {"selection", "greedy"}, {"refit", refits[i]}};
    kf_convert_options c = {.cache = "25", .settings = all, .setting_count = 4, .calibration_tokens = 1280};
    char name[32];
    snprintf(name, sizeof name, "biased-%d", i);
    if (convert_of(source, name, c, dst, &e) != KF_OK) fail_msg("%s", e.message);
    double kl = divergence_of(source, dst, 64);
    if (!(kl < 1e-6)) fail_msg("a complete fold of a model with biases, refit %s, diverges by %g", refits[i], kl);
  }
}

/* Projections that keep lengths, and no weights before them: then all heads are of one size, and their norms (Qwen3) are a factor. */
static kf_status add_orthogonal(void *user, const char *name, int64_t rows, int64_t columns, kf_error *e) {
  tiny_tensors *t = user;
  float data[16 * 16];
  int64_t shape[2] = {rows, columns};
  bool projects = strstr(name, "q_proj") || strstr(name, "k_proj");
  if (!projects && !strstr(name, "input_layernorm")) return tiny_add(user, name, rows, columns, e);
  assert_true(rows * columns <= 16 * 16);
  for (int64_t r = 0; r < rows; r++) { /* an input layer norm is a column of ones; a projection a Hadamard matrix with signs */
    float sign = kf_random_uniform(&t->random) < 0.5 ? -0.75f : 0.75f;
    for (int64_t i = 0; i < columns; i++)
      data[r * columns + i] = !projects ? 1 : __builtin_parity((unsigned)(r & i)) ? -sign : sign;
  }
  return kf_safetensors_add(t->writer, name, KF_F32, columns == 1 ? 1 : 2, shape, data, e);
}

static void test_norms(void **state) {
  (void)state;
  static const char *const refits[] = {"none", "all"};
  char source[256], dst[256];
  kf_error e = {0};
  tiny_tensors t = {.scale = 0.3};
  kf_random_seed(&t.random, 12);
  json_t *o = tiny_config(false);
  json_object_set_new(o, "model_type", json_string("qwen3"));
  json_object_set_new(o, "num_attention_heads", json_integer(1));
  json_object_set_new(o, "num_key_value_heads", json_integer(1));
  json_object_set_new(o, "head_dim", json_integer(16));
  snprintf(source, sizeof source, "%s/normed", scratch);
  if (tiny_write_by(source, o, add_orthogonal, &t, &e) != KF_OK) fail_msg("%s", e.message);
  json_decref(o);
  for (int i = 0; i < 2; i++) {
    const kf_setting all[] = {{"rope_pairs", "8"}, {"selection", "greedy"}, {"refit", refits[i]}};
    kf_convert_options c = {.cache = "32", .settings = all, .setting_count = 3, .calibration_tokens = 1280};
    char name[32];
    snprintf(name, sizeof name, "normed-%d", i);
    if (convert_of(source, name, c, dst, &e) != KF_OK) fail_msg("%s", e.message);
    double kl = divergence_of(source, dst, 64);
    if (!(kl < 1e-6)) fail_msg("a complete fold of a model with q/k norms, refit %s, diverges by %g", refits[i], kl);
  }
}

/* With one KV head a stock table has room for all of its pairs: greedy gives each its own slot, and nothing is lost. */
static void test_stock_table_of_one_head(void **state) {
  (void)state;
  char source[256], dst[256];
  kf_error e = {0};
  tiny_tensors t = {.scale = 0.3};
  kf_random_seed(&t.random, 12);
  json_t *o = tiny_config(false);
  json_object_set_new(o, "num_key_value_heads", json_integer(1));
  snprintf(source, sizeof source, "%s/one-head", scratch);
  if (tiny_write(source, o, &t, &e) != KF_OK) fail_msg("%s", e.message);
  json_decref(o);
  const kf_setting all[] = {{"rope_pairs", "2"}, {"selection", "greedy"}, {"refit", "none"}};
  kf_convert_options c = {.cache = "20", .settings = all, .setting_count = 3, .calibration_tokens = 1280};
  if (convert_of(source, "one-slot-each", c, dst, &e) != KF_OK) fail_msg("%s", e.message);
  double kl = divergence_of(source, dst, 64);
  if (!(kl < 1e-6)) fail_msg("a complete fold with a stock table diverges by %g", kl);
}

static void test_against_the_papers(void **state) {
  (void)state;
  char dst[256];
  kf_error e = {0};
  static const char *const methods[] = {"fold", "mha2mla", "x-ecomla"};
  double kl[3];
  for (int i = 0; i < 3; i++) {
    if (convert(methods[i], (kf_convert_options){.method = methods[i], .cache = "50%", .calibration_tokens = 3584}, dst, &e) !=
        KF_OK)
      fail_msg("%s", e.message);
    kl[i] = divergence(dst);
  }
  if (!(4 * kl[0] < kl[1] && 4 * kl[0] < kl[2])) fail_msg("KL: fold %g, mha2mla %g, x-ecomla %g", kl[0], kl[1], kl[2]);
}

/* The refits bring the model nearer to the source on text that nothing was fitted to. */
static void test_refits_help(void **state) {
  (void)state;
  static const char *const refits[] = {"none", "output", "all"};
  char dst[256];
  kf_error e = {0};
  double kl[3];
  for (int i = 0; i < 3; i++) {
    const kf_setting settings[] = {{"rope_pairs", "6"}, {"refit", refits[i]}};
    kf_convert_options o = {.cache = "25%", .settings = settings, .setting_count = 2, .calibration_tokens = 3584};
    if (convert(refits[i], o, dst, &e) != KF_OK) fail_msg("%s", e.message);
    kl[i] = divergence(dst);
  }
  if (!(kl[1] < kl[0] && kl[2] < kl[0])) fail_msg("KL without refit %g, with output %g, with all %g", kl[0], kl[1], kl[2]);
}

/* No method and no text: fold, on what the model writes itself, exported at once; what was lost is measured on what ten windows of
 * 128 leave of the three samples of 511 tokens, in one window with BOS. */
static void test_in_one_go(void **state) {
  (void)state;
  char out[256], between[280];
  kf_error e = {0};
  kf_convert_result r;
  kf_export_result x;
  snprintf(out, sizeof out, "%s/own.gguf", scratch);
  snprintf(between, sizeof between, "%s.converted", out);
  const kf_setting settings[] = {{"window", "128"}, {"rope_pairs", "8"}};
  kf_convert_options o = {.settings = settings, .setting_count = 2, .calibration_tokens = 1280};
  if (kf_convert_export(books, out, &o, NULL, &r, &x, &e) != KF_OK) fail_msg("%s", e.message);
  assert_true(kf_is_file(out));
  assert_false(kf_exists(between));
  assert_string_equal(x.format, "gguf");
  assert_int_equal(r.cache_elements, r.source_cache_elements / 2);
  assert_int_equal(r.held_out_tokens, 3 * 511 - 10 * 127 + 1);
  assert_true(r.held_out_kl > 0 && r.held_out_kl < 1 && r.held_out_perplexity_ratio > 0.5);
}

static void test_refusals(void **state) {
  (void)state;
  char dst[256];
  kf_error e = {0};
  assert_int_equal(convert("short", (kf_convert_options){.cache = "50%", .calibration_tokens = 600}, dst, &e), KF_ERROR_INPUT);
  assert_non_null(strstr(e.message, "too few"));
  assert_false(kf_exists(dst));
  assert_int_equal(convert("tiny", (kf_convert_options){.cache = "2"}, dst, &e), KF_ERROR_INPUT);
  const kf_setting far[] = {{"context", "513"}};
  assert_int_equal(convert("far", (kf_convert_options){.cache = "50%", .settings = far, .setting_count = 1}, dst, &e),
                   KF_ERROR_USAGE);
  assert_string_equal(e.message, "context=513: the source's context is of 512 tokens");
  const kf_setting many[] = {{"rope_pairs", "17"}};
  assert_int_equal(convert("many", (kf_convert_options){.cache = "50%", .settings = many, .setting_count = 1}, dst, &e),
                   KF_ERROR_USAGE);
  assert_string_equal(e.message, "rope_pairs=17: at most 16 with rope_table=stock");
}

/* The record of a conversion's choice; freed by the caller with the whole. */
static json_t *chosen(const char *converted, json_t **whole) {
  char path[320];
  snprintf(path, sizeof path, "%s/config.json", converted);
  assert_non_null(*whole = json_load_file(path, 0, NULL));
  return json_object_get(json_object_get(json_object_get(*whole, "kvfold"), "recipe"), "chosen");
}

/* Pairs and strides that were tried, in the order tried; returns how many. */
static int tried(const char *converted, int pairs[8], int strides[8]) {
  int count = 0;
  json_t *config, *list = json_object_get(chosen(converted, &config), "tried"), *one;
  size_t i;
  json_array_foreach(list, i, one) {
    assert_true(count < 8);
    pairs[count] = (int)json_integer_value(json_object_get(one, "rope_pairs"));
    strides[count++] = (int)json_integer_value(json_object_get(one, "rope_stride"));
  }
  json_decref(config);
  return count;
}

/* 9 of the model's 16 pairs make half a turn in 512 tokens (10000^(-f / 16) 512 >= pi up to f = 8). */
static void test_tables_reach_over_turning_pairs(void **state) {
  (void)state;
  char dst[256];
  kf_error e = {0};
  int pairs[8], strides[8];
  /* of 32 numbers 9 pairs would be more than a quarter */
  static const int wanted[][2] = {{8, 1}, {5, 2}, {4, 3}, {3, 4}, {2, 8}}; /* the first is greedy */
  const kf_setting given[] = {{"refit", "none"}, {"key_weight", "1"}, {"rope_pairs", "6"}};
  kf_convert_options o = {.cache = "12.5%", .settings = given, .setting_count = 2, .calibration_tokens = 2560};
  assert_int_equal(convert("tables", o, dst, &e), KF_OK);
  assert_int_equal(tried(dst, pairs, strides), 5);
  for (int i = 0; i < 5; i++) {
    assert_int_equal(pairs[i], wanted[i][0]);
    assert_int_equal(strides[i], wanted[i][1]);
  }
  o.cache = "50%"; /* room for those that turn by a radian, and for all that move; strides leave too few */
  assert_int_equal(convert("roomy", o, dst, &e), KF_OK);
  assert_int_equal(tried(dst, pairs, strides), 4);
  for (int i = 0; i < 4; i++) {
    assert_int_equal(pairs[i], ((int[]){9, 11, 15, 9})[i]);
    assert_int_equal(strides[i], 1);
  }
  o.cache = "12.5%";
  o.setting_count = 3;
  assert_int_equal(convert("given", o, dst, &e), KF_OK);
  assert_int_equal(tried(dst, pairs, strides), 3);
  for (int i = 0; i < 3; i++) {
    assert_int_equal(strides[i], i < 2 ? i + 1 : 1);
    assert_int_equal(pairs[i], 6);
  }
}

/* One table, three weights of its keys: the least divergence on held-out text is taken, and is what that weight alone gives. */
static void test_weighs_keys(void **state) {
  (void)state;
  static const double weights[] = {3, 1, 9};
  char dst[256], alone[256], number[32];
  kf_error e = {0};
  kf_setting given[] = {{"refit", "none"}, {"rope_pairs", "4"}, {"selection", "greedy"}, {"key_weight", number}};
  kf_convert_options o = {.cache = "25%", .settings = given, .setting_count = 3, .calibration_tokens = 2560};
  json_t *config, *record, *list, *one;
  size_t i;
  assert_int_equal(convert("weighed", o, dst, &e), KF_OK);
  record = chosen(dst, &config);
  list = json_object_get(record, "tried");
  assert_int_equal(json_array_size(list), 3);
  double least = INFINITY, best = 0, worst = 0;
  json_array_foreach(list, i, one) {
    double kl = json_real_value(json_object_get(one, "kl")), weight = json_real_value(json_object_get(one, "key_weight"));
    assert_true(weight == weights[i]);
    if (kl < least) best = weight;
    least = fmin(least, kl), worst = fmax(worst, kl);
  }
  assert_true(worst > least);
  assert_true(json_real_value(json_object_get(record, "key_weight")) == best);
  snprintf(number, sizeof number, "%g", best);
  json_decref(config);
  o.setting_count = 4;
  assert_int_equal(convert("weight-given", o, alone, &e), KF_OK);
  record = chosen(alone, &config);
  assert_int_equal(json_array_size(json_object_get(record, "tried")), 0);
  double kl = json_real_value(json_object_get(json_object_get(record, "held_out"), "kl"));
  json_decref(config);
  if (!(fabs(kl - least) < 1e-6)) fail_msg("KL %g with the weight given, %g where it was chosen", kl, least);
}

/* Fitted to windows of 64, served at 64 and at 256: what is made for short contexts is nearer in them and breaks down beyond. */
static void test_holds_as_far_as_the_context(void **state) {
  (void)state;
  static const char *const contexts[] = {"512", "64"};
  double near[2], far[2];
  for (int i = 0; i < 2; i++) {
    const kf_setting given[] = {
        {"refit", "none"}, {"rope_pairs", "8"}, {"selection", "fold"}, {"window", "64"}, {"context", contexts[i]}};
    kf_convert_options o = {.cache = "25%", .settings = given, .setting_count = 5, .calibration_tokens = 4096};
    char dst[256], name[32];
    kf_error e = {0};
    snprintf(name, sizeof name, "context-%s", contexts[i]);
    if (convert(name, o, dst, &e) != KF_OK) fail_msg("%s", e.message);
    near[i] = divergence_of(books, dst, 64);
    far[i] = divergence(dst);
  }
  if (!(near[1] < near[0] && 3 * far[0] < far[1]))
    fail_msg("for 512 tokens KL %g (64), %g (256); for 64 %g, %g", near[0], far[0], near[1], far[1]);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_complete),
                                     cmocka_unit_test(test_biases),
                                     cmocka_unit_test(test_norms),
                                     cmocka_unit_test(test_stock_table_of_one_head),
                                     cmocka_unit_test(test_against_the_papers),
                                     cmocka_unit_test(test_refits_help),
                                     cmocka_unit_test(test_in_one_go),
                                     cmocka_unit_test(test_tables_reach_over_turning_pairs),
                                     cmocka_unit_test(test_weighs_keys),
                                     cmocka_unit_test(test_holds_as_far_as_the_context),
                                     cmocka_unit_test(test_refusals)};
  return cmocka_run_group_tests_name("fold", tests, make_texts, remove_texts);
}
