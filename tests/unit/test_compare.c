/* kf_compare, kf_sweep and kf_report_write on examples/books-7m and conversions of it made here. */
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

#include "base/file.h"
#include "base/random.h"
#include "eval/layer_error.h"
#include "eval/needle.h"
#include "report/compare.h"

#define BOOKS KVFOLD_SOURCE_DIR "/examples/books-7m"
#define TEXT BOOKS "/held-out.txt"

static char scratch[64], same[96], half[96], pairs[96];

static void succeeds(kf_status s, const kf_error *e) {
  if (s != KF_OK) fail_msg("%s", e->message);
}

static void near(double got, double want, double room) {
  if (!(fabs(got - want) <= room)) fail_msg("%.9g, expected %.9g within %.3g", got, want, room);
}

static void convert(const char *method, const char *cache, const char *dst) {
  kf_error e = {0};
  kf_convert_result r;
  kf_convert_options o = {.method = method, .cache = cache, .compute = KF_COMPUTE_F32};
  succeeds(kf_convert(BOOKS, dst, &o, &r, &e), &e);
}

static int make_models(void **p) {
  (void)p;
  snprintf(scratch, sizeof scratch, "/tmp/kvfold-test-compare-XXXXXX");
  assert_non_null(mkdtemp(scratch));
  snprintf(same, sizeof same, "%s/same", scratch);
  snprintf(half, sizeof half, "%s/half", scratch);
  snprintf(pairs, sizeof pairs, "%s/pairs", scratch);
  convert("none", NULL, same);
  convert("x-ecomla", "50%", half);
  convert("mha2mla", "50%", pairs);
  return 0;
}

static int remove_models(void **p) {
  (void)p;
  return kf_remove_tree(scratch, NULL) != KF_OK;
}

static kf_compare_options small_options(void) {
  static const int contexts[] = {128}, depths[] = {0, 100};
  return (kf_compare_options){.eval = {.window = 128, .max_windows = 2},
                              .needle_contexts = contexts,
                              .needle_context_count = 1,
                              .needle_depths = depths,
                              .needle_depth_count = 2,
                              .compute = KF_COMPUTE_F32,
                              .threads = 2};
}

static json_t *parse(kf_text *text) {
  json_t *o = json_loadb(text->data, text->bytes, 0, NULL);
  assert_non_null(o);
  kf_text_free(text);
  return o;
}

static json_t *compare(const char *const *dst, int count) {
  kf_error e = {0};
  kf_text json = {0};
  kf_compare_options o = small_options();
  succeeds(kf_compare(BOOKS, dst, count, TEXT, &o, &json, &e), &e);
  return parse(&json);
}

static double number(const json_t *o, const char *key) {
  const json_t *value = json_object_get(o, key);
  if (!json_is_number(value)) fail_msg("%s is no number", key);
  return json_number_value(value);
}

static const json_t *layer(const json_t *model, size_t i) {
  return json_array_get(json_object_get(model, "layers"), i);
}

/* ------------------------------------------------------------------------------------------------ figures */

static void identical_model_loses_nothing(void **p) {
  (void)p;
  const char *const dst[] = {same};
  json_t *o = compare(dst, 1);
  const json_t *m = json_array_get(json_object_get(o, "models"), 0), *source = json_object_get(o, "source");
  near(number(m, "kl"), 0, 1e-12);
  near(number(m, "perplexity_ratio"), 1, 1e-12);
  near(number(m, "top1_agreement"), 1, 0);
  near(number(m, "cache_part"), 1, 0);
  near(number(m, "nll"), number(source, "nll"), 0);
  for (size_t i = 0; i < 8; i++) {
    near(number(layer(m, i), "attention_error"), 0, 0);
    near(number(layer(m, i), "residual_error"), 0, 0);
    near(number(layer(m, i), "cumulative_error"), 0, 0);
  }
  assert_true(json_equal(json_object_get(m, "needles"), json_object_get(source, "needles")));
  assert_true(json_equal(json_object_get(m, "perplexity_by_position"), json_object_get(source, "perplexity_by_position")));
  json_decref(o);
}

/* The object against kf_eval, kf_model_describe and what the methods promise. */
static void figures_are_those_of_eval_and_info(void **p) {
  (void)p;
  const char *const dst[] = {half, pairs};
  json_t *o = compare(dst, 2);
  kf_error e = {0};
  kf_model *model[2];
  kf_tokenizer *t;
  kf_text text;
  kf_eval_result r;
  kf_compare_options options = small_options();
  const kf_model_options f32 = {.compute = KF_COMPUTE_F32, .threads = 2};
  succeeds(kf_text_read(TEXT, &text, &e), &e);
  succeeds(kf_tokenizer_open(BOOKS, &t, &e), &e);
  succeeds(kf_model_open(BOOKS, &f32, &model[0], &e), &e);
  for (size_t i = 0; i < 2; i++) {
    const json_t *m = json_array_get(json_object_get(o, "models"), i);
    succeeds(kf_model_open(dst[i], &f32, &model[1], &e), &e);
    succeeds(kf_eval(model[1], model[0], t, text.data, text.bytes, &options.eval, &r, &e), &e);
    near(number(m, "nll"), r.nll, 1e-6);
    near(number(m, "kl"), r.kl, 1e-6);
    near(number(json_object_get(o, "source"), "nll"), r.reference_nll, 1e-6);
    near(number(m, "cache_bytes_per_token"), (double)kf_model_get_info(model[1])->cache_bytes_per_token, 0);
    near(number(json_object_get(m, "cache_bytes_at"), "32768"), 32768.0 * number(m, "cache_bytes_per_token"), 0);
    kf_model_close(model[1]);
  }
  kf_model_close(model[0]);
  kf_tokenizer_close(t);
  kf_text_free(&text);
  json_decref(o);
}

/* The mean over all places is the whole's. */
static void positions_add_up(void **p) {
  (void)p;
  const char *const dst[] = {half};
  json_t *o = compare(dst, 1);
  const json_t *m = json_array_get(json_object_get(o, "models"), 0), *text = json_object_get(o, "text"),
               *edges = json_object_get(text, "position_edges"), *by = json_object_get(m, "perplexity_by_position");
  double sum = 0, all = 0;
  assert_int_equal(json_array_size(by), 3); /* 0, 32, 64 to 127 */
  for (size_t i = 0; i < json_array_size(by); i++) {
    double from = json_number_value(json_array_get(edges, i)), to = json_number_value(json_array_get(edges, i + 1));
    /* two windows; without BOS the first token is not predicted */
    double tokens = 2 * (to - from - (i == 0 && !json_is_true(json_object_get(text, "bos"))));
    sum += tokens * log(json_number_value(json_array_get(by, i)));
    all += tokens;
  }
  near(all, number(text, "predicted"), 0);
  near(sum / all, number(m, "nll"), 1e-6);
  json_decref(o);
}

static void layers_tell_ranks_and_rope(void **p) {
  (void)p;
  const char *const dst[] = {half, pairs};
  json_t *o = compare(dst, 2);
  const json_t *source = layer(json_object_get(o, "source"), 3), *m = layer(json_array_get(json_object_get(o, "models"), 1), 3);
  const json_t *values = json_array_get(json_object_get(o, "spectra"), 3);
  assert_int_equal(json_array_size(json_object_get(source, "rope")), 16);
  assert_int_equal(json_array_size(json_object_get(m, "rope")), 2); /* head_dim / 16 pairs of each of 4 heads */
  near(json_number_value(json_array_get(json_array_get(json_object_get(m, "rope"), 0), 0)), 2 * M_PI, 1e-5);
  near(json_number_value(json_array_get(json_array_get(json_object_get(m, "rope"), 0), 1)), 4, 0);
  near(number(m, "kv_lora_rank"), 128 - 2 * 2 * 4, 0);
  assert_int_equal(json_array_size(values), 256); /* [2 x 4 x 32, 256] */
  for (size_t i = 1; i < 256; i++)
    assert_true(json_number_value(json_array_get(values, i)) <= json_number_value(json_array_get(values, i - 1)));
  assert_true(number(m, "attention_error") > 0.01 && number(m, "attention_error") < 2);
  assert_true(number(m, "cumulative_error") > number(m, "residual_error"));
  json_decref(o);
}

static void engines_are_those_of_export(void **p) {
  (void)p;
  const char *const dst[] = {half, pairs};
  json_t *o = compare(dst, 2);
  for (size_t i = 0; i < 2; i++) {
    const json_t *engines = json_object_get(json_array_get(json_object_get(o, "models"), i), "engines");
    assert_int_equal(json_array_size(engines), 2);
    for (size_t k = 0; k < 2; k++) {
      char out[96];
      kf_error e = {0};
      const json_t *engine = json_array_get(engines, k);
      kf_export_options options = {.format = json_string_value(json_object_get(engine, "format"))};
      snprintf(out, sizeof out, "%s/export-%zu-%zu", scratch, i, k);
      bool exported = kf_export(dst[i], out, &options, NULL, &e) == KF_OK;
      assert_int_equal(exported, json_is_true(json_object_get(engine, "loads")));
      if (!exported) assert_non_null(strstr(e.message, json_string_value(json_object_get(engine, "reason"))));
    }
  }
  json_decref(o);
}

/* What loads the source loads a model that is still grouped: nothing is said of an export. */
static void grouped_needs_no_engine(void **p) {
  (void)p;
  char heads[96];
  const char *const dst[] = {heads}, *const files[] = {KVFOLD_SOURCE_DIR "/docs/METHODS.md"}; /* any text */
  kf_convert_options options = {
      .method = "kv-heads", .cache = "50%", .calibration = files, .calibration_count = 1, .calibration_tokens = 2560};
  kf_error e = {0};
  snprintf(heads, sizeof heads, "%s/heads", scratch);
  succeeds(kf_convert(BOOKS, heads, &options, NULL, &e), &e);
  json_t *o = compare(dst, 1);
  assert_int_equal(json_array_size(json_object_get(json_array_get(json_object_get(o, "models"), 0), "engines")), 0);
  assert_null(strstr(json_string_value(json_object_get(o, "verdict")), "engine"));
  json_decref(o);
}

/* ------------------------------------------------------------------------------------------------ layers, the plain way */

typedef struct plain {
  const kf_model *model;
  float *out; /* [tokens, hidden] */
  int64_t tokens;
} plain;

static void gather(void *user, int index, int64_t m, const float *x, const float *out) {
  plain *w = user;
  (void)x;
  w->model->device->linear(w->model->device, w->out + w->tokens * w->model->config.hidden, out, w->model->layer[index].o, m,
                           false);
  w->tokens += m;
}

/* Layer 0's errors from two calls of kf_layer_forward and sums in a straight line. */
static void first_layer_by_hand(void **p) {
  (void)p;
  enum { TOKENS = 37, HIDDEN = 256 };
  kf_error e = {0};
  kf_model *model[2];
  kf_layer_error error[8];
  int32_t ids[TOKENS];
  float x[2][TOKENS * HIDDEN], out[2][TOKENS * HIDDEN];
  const kf_model_options f32 = {.compute = KF_COMPUTE_F32, .threads = 2};
  for (int i = 0; i < TOKENS; i++) ids[i] = 300 + 7 * i;
  for (int i = 0; i < 2; i++) {
    kf_sequence *sequence;
    succeeds(kf_model_open(i ? half : BOOKS, &f32, &model[i], &e), &e);
    plain w = {model[i], out[i], 0};
    kf_watch watch = {.attended = gather, .user = &w};
    succeeds(kf_embed(&model[i]->weights, model[i]->embedding, ids, TOKENS, x[i], &e), &e);
    succeeds(kf_sequence_create(&model[i]->config, model[i]->device, &sequence, &e), &e);
    succeeds(kf_layer_forward(model[i]->run, &model[i]->layer[0], 0, x[i], &(kf_span){sequence, 0, TOKENS, 0}, 1, &watch, &e),
             &e);
    kf_sequence_free(sequence);
  }
  double attention = 0, residual = 0;
  for (int t = 0; t < TOKENS; t++) {
    double a = 0, b = 0, c = 0, d = 0;
    for (int i = t * HIDDEN; i < (t + 1) * HIDDEN; i++) {
      a += pow((double)out[1][i] - (double)out[0][i], 2);
      b += pow((double)out[0][i], 2);
      c += pow((double)x[1][i] - (double)x[0][i], 2);
      d += pow((double)x[0][i], 2);
    }
    attention += sqrt(a / b) / TOKENS;
    residual += sqrt(c / d) / TOKENS;
  }
  succeeds(kf_layer_errors(model[0], model[1], ids, 1, TOKENS, NULL, error, &e), &e);
  near(error[0].attention, attention, 1e-9);
  near(error[0].residual, residual, 1e-9);
  near(error[0].cumulative, residual, 1e-9); /* both streams begin alike */
  assert_true(error[5].cumulative > error[5].residual);
  kf_model_close(model[0]);
  kf_model_close(model[1]);
}

/* ------------------------------------------------------------------------------------------------ needles */

/* The text of the test in tokens, put together here; gives the mean log-probability of the number by kf_logits. */
static double needle_by_hand(kf_model *m, const kf_tokenizer *t, const kf_ids *straw, int context, int depth, bool *found) {
  static const char asked[] = "\n\nThe secret number of the lighthouse is";
  char text[3][128];
  int32_t input[256];
  kf_ids part[3];
  kf_error e = {0};
  kf_random random;
  kf_random_seed(&random, (uint64_t)context * 101 + (uint64_t)depth);
  int number = 10000 + (int)(kf_random_u64(&random) % 90000), n = 0, vocabulary = kf_model_get_info(m)->vocabulary;
  snprintf(text[0], sizeof text[0], "%s %d.\n\n", asked, number);
  snprintf(text[1], sizeof text[1], "%s %d", asked, number);
  snprintf(text[2], sizeof text[2], "%s", asked);
  for (int i = 0; i < 3; i++) succeeds(kf_tokenizer_encode(t, text[i], strlen(text[i]), KF_ENCODE_PLAIN, &part[i], &e), &e);
  int rest = context - (int)(part[0].count + part[1].count), answer = context - (int)(part[1].count - part[2].count);
  for (int i = 0; i < rest; i++) {
    for (size_t k = 0; i == rest * depth / 100 && k < part[0].count; k++) input[n++] = part[0].data[k];
    input[n++] = straw->data[i];
  }
  for (size_t k = 0; k < part[1].count; k++) input[n++] = part[1].data[k];
  assert_int_equal(n, context);
  float *logits = malloc((size_t)context * (size_t)vocabulary * sizeof *logits);
  succeeds(kf_logits(m, input, (size_t)context, logits, &e), &e);
  double sum = 0;
  *found = true;
  for (int i = answer; i < context; i++) {
    const float *row = logits + (size_t)(i - 1) * (size_t)vocabulary;
    double all = 0;
    for (int v = 0; v < vocabulary; v++) {
      all += exp((double)row[v]);
      *found = *found && row[v] <= row[input[i]];
    }
    sum += row[input[i]] - log(all);
  }
  free(logits);
  for (int i = 0; i < 3; i++) kf_ids_free(&part[i]);
  return sum / (context - answer);
}

static void needle_is_what_the_logits_say(void **p) {
  (void)p;
  kf_error e = {0};
  kf_model *m;
  kf_tokenizer *t;
  kf_text text;
  kf_ids ids;
  const kf_model_options f32 = {.compute = KF_COMPUTE_F32, .threads = 2};
  succeeds(kf_text_read(TEXT, &text, &e), &e);
  succeeds(kf_tokenizer_open(BOOKS, &t, &e), &e);
  succeeds(kf_tokenizer_encode(t, text.data, 4000, KF_ENCODE_PLAIN, &ids, &e), &e);
  succeeds(kf_model_open(BOOKS, &f32, &m, &e), &e);
  for (int depth = 0; depth < 100; depth += 40) {
    kf_needle n = {.context = 160, .depth = depth};
    bool found;
    double want = needle_by_hand(m, t, &ids, 160, depth, &found);
    succeeds(kf_needle_run(m, t, &ids, -1, &n, &e), &e);
    near(n.logprob, want, 1e-4);
    assert_int_equal(n.found, found);
  }
  kf_needle short_one = {.context = 12}, long_one = {.context = 100000};
  assert_int_equal(kf_needle_run(m, t, &ids, -1, &short_one, &e), KF_ERROR_INPUT);
  assert_int_equal(kf_needle_run(m, t, &ids, -1, &long_one, &e), KF_ERROR_INPUT);
  kf_model_close(m);
  kf_tokenizer_close(t);
  kf_text_free(&text);
  kf_ids_free(&ids);
}

/* ------------------------------------------------------------------------------------------------ refusals, sweep, page */

static void calibration_text_is_refused(void **p) {
  (void)p;
  char calibrated[96], copy[96], link[96];
  kf_error e = {0};
  kf_text json = {0};
  kf_convert_result r;
  kf_compare_options o = small_options();
  snprintf(calibrated, sizeof calibrated, "%s/calibrated", scratch);
  snprintf(copy, sizeof copy, "%s/copy.txt", scratch);
  snprintf(link, sizeof link, "%s/link.txt", scratch);
  succeeds(kf_copy_file(TEXT, copy, &e), &e);
  assert_int_equal(symlink(copy, link), 0);
  const char *const files[] = {copy}, *const dst[] = {half, calibrated};
  kf_convert_options convert_options = {
      .method = "mha2mla", .cache = "50%", .calibration = files, .calibration_count = 1, .calibration_tokens = 512};
  succeeds(kf_convert(BOOKS, calibrated, &convert_options, &r, &e), &e);
  const char *const texts[] = {copy, link, TEXT}; /* the file, another name, another file of the same bytes */
  for (int i = 0; i < 3; i++) {
    assert_int_equal(kf_compare(BOOKS, dst, 2, texts[i], &o, &json, &e), KF_ERROR_INPUT);
    assert_non_null(strstr(e.message, "calibrated"));
  }
}

static void sweep_goes_on_after_a_failure(void **p) {
  (void)p;
  const char *const methods[] = {"x-ecomla", "mha2mla"}, *const caches[] = {"50%", "1"};
  const kf_setting settings[] = {{"mha2mla.rope_pairs", "4"}};
  kf_error e = {0};
  kf_text json = {0};
  kf_sweep_options o = {.methods = methods,
                        .method_count = 2,
                        .caches = caches,
                        .cache_count = 2,
                        .convert = {.settings = settings, .setting_count = 1},
                        .compare = small_options(),
                        .scratch = scratch};
  succeeds(kf_sweep(BOOKS, TEXT, &o, &json, &e), &e);
  json_t *all = parse(&json);
  const json_t *models = json_object_get(all, "models");
  assert_int_equal(json_array_size(models), 2);
  assert_int_equal(json_array_size(json_object_get(all, "failed")), 2);
  assert_string_equal(json_string_value(json_object_get(json_array_get(models, 1), "name")), "mha2mla 50%");
  near(json_number_value(json_array_get(json_array_get(json_object_get(layer(json_array_get(models, 1), 0), "rope"), 3), 1)), 4,
       0); /* four pairs of each head, and x-ecomla, which has no such key, was not asked for it */
  json_decref(all);
  o.caches = caches + 1;
  o.cache_count = 1;
  assert_int_equal(kf_sweep(BOOKS, TEXT, &o, &json, &e), KF_ERROR_INPUT);
  char pattern[128];
  snprintf(pattern, sizeof pattern, "ls -d %s/kvfold-sweep-* >/dev/null 2>&1", scratch);
  assert_int_not_equal(system(pattern), 0); /* nothing stays */
  const char *const unknown[] = {"magic"};
  o.methods = unknown;
  o.method_count = 1;
  assert_int_equal(kf_sweep(BOOKS, TEXT, &o, &json, &e), KF_ERROR_USAGE);
}

/* Names that would be markup in HTML or a command in gnuplot stay names; an object without members gives a page too. */
static void page_escapes_names(void **p) {
  (void)p;
  static const char *const objects[] = {
      "{}", "{\"source\": {\"name\": \"<script>alert(1)</script>\", \"cache_bytes_per_token\": 100},"
            " \"models\": [{\"name\": \"x' ; system('touch PWNED') # `touch PWNED`\", \"method\": \"'`touch PWNED`\","
            " \"cache_bytes_per_token\": 50, \"cache_part\": 0.5, \"perplexity_ratio\": 1.5, \"kl\": 0.1,"
            " \"layers\": [{\"attention_error\": 0.5}, {\"attention_error\": null}]}]}"};
  for (int i = 0; i < 2; i++) {
    char path[96];
    kf_error e = {0};
    kf_text page;
    snprintf(path, sizeof path, "%s/page.html", scratch);
    succeeds(kf_report_write(path, objects[i], strlen(objects[i]), NULL, &e), &e);
    succeeds(kf_read_file(path, 1 << 24, &page, &e), &e);
    assert_null(strstr(page.data, "<script>"));
    assert_non_null(strstr(page.data, "</html>"));
    assert_false(kf_exists("PWNED"));
    kf_text_free(&page);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(identical_model_loses_nothing),
      cmocka_unit_test(figures_are_those_of_eval_and_info),
      cmocka_unit_test(positions_add_up),
      cmocka_unit_test(layers_tell_ranks_and_rope),
      cmocka_unit_test(engines_are_those_of_export),
      cmocka_unit_test(grouped_needs_no_engine),
      cmocka_unit_test(first_layer_by_hand),
      cmocka_unit_test(needle_is_what_the_logits_say),
      cmocka_unit_test(calibration_text_is_refused),
      cmocka_unit_test(sweep_goes_on_after_a_failure),
      cmocka_unit_test(page_escapes_names),
  };
  return cmocka_run_group_tests(tests, make_models, remove_models);
}
