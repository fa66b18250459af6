#include "report/compare.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "eval/layer_error.h"
#include "report/describe.h"
#include "report/held_out.h"
#include "report/verdict.h"

enum { LAYER_TOKENS = 2048 }; /* that layers are compared on */

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ------------------------------------------------------------------------------------------------ needles */

static kf_status plan_needles(kf_comparison *c, kf_error *e) {
  static const int contexts[] = {512, 2048}, depths[] = {0, 25, 50, 75, 100};
  const kf_compare_options *o = c->options;
  bool given = o->needle_contexts != NULL;
  const int *context = given ? o->needle_contexts : contexts, *depth = o->needle_depths ? o->needle_depths : depths;
  int context_count = given ? o->needle_context_count : 2, depth_count = o->needle_depths ? o->needle_depth_count : 5;
  KF_NEW(c->needle, context_count * depth_count + 1, e);
  for (int i = 0; i < context_count; i++) {
    if (!given && (context[i] > c->source->config.context || context[i] > (int64_t)c->text.count)) continue;
    if (context[i] > c->source->config.context)
      kf_note(&o->eval.hooks, "needles in %d tokens are beyond the model's context of %lld", context[i],
              (long long)c->source->config.context);
    for (int k = 0; k < depth_count; k++) {
      if (depth[k] < 0 || depth[k] > 100) return kf_fail(e, KF_ERROR_USAGE, "a needle's depth is 0 to 100 %%, not %d", depth[k]);
      c->needle[c->needles++] = (kf_needle){.context = context[i], .depth = depth[k]};
    }
  }
  return KF_OK;
}

static kf_status run_needles(kf_comparison *c, kf_model *m, json_t *record, kf_error *e) {
  json_t *list = json_array();
  json_object_set_new(record, "needles", list);
  for (int i = 0; i < c->needles; i++) {
    KF_TRY(kf_progress(&c->eval.hooks, "needles", i, c->needles, e));
    kf_needle n = c->needle[i];
    KF_TRY(kf_needle_run(m, c->tokenizer, &c->text, c->bos, &n, e));
    json_array_append_new(list, json_pack("{s:i, s:i, s:o, s:b}", "context", n.context, "depth", n.depth, "logprob",
                                          kf_real(n.logprob), "found", n.found));
  }
  return kf_progress(&c->eval.hooks, "needles", c->needles, c->needles, e);
}

/* ------------------------------------------------------------------------------------------------ one model */

static void set_loss(json_t *record, double nll, const kf_positions *at) {
  json_t *list = json_array();
  for (int i = 0; i < KF_POSITION_BINS; i++)
    if (at->tokens[i]) json_array_append_new(list, kf_real(exp(at->nll[i] / (double)at->tokens[i])));
  json_object_set_new(record, "nll", kf_real(nll));
  json_object_set_new(record, "perplexity", kf_real(exp(nll)));
  json_object_set_new(record, "perplexity_by_position", list);
}

/* Where the bins begin, and the end of the last. */
static json_t *position_edges(const kf_positions *at, int64_t window) {
  json_t *edges = json_array();
  for (int i = 0; i < KF_POSITION_BINS; i++)
    if (at->tokens[i]) json_array_append_new(edges, json_integer(kf_position_start(i)));
  json_array_append_new(edges, json_integer(window));
  return edges;
}

static kf_status measure_loss(kf_comparison *c, kf_model *m, json_t *record, kf_error *e) {
  kf_eval_result r;
  kf_positions *at;
  KF_NEW(at, 2, e);
  kf_status s = kf_evaluate(m, c->source, c->tokenizer, &c->text, &c->eval, &c->kept, &at[0], &at[1], &r, e);
  if (s == KF_OK) {
    set_loss(record, r.nll, &at[0]);
    json_object_set_new(record, "perplexity_ratio", kf_real(exp(r.nll - r.reference_nll)));
    json_object_set_new(record, "kl", kf_real(r.kl));
    json_object_set_new(record, "top1_agreement", kf_real(r.top1_agreement));
    json_object_set_new(record, "max_logit_difference", kf_real(r.max_logit_difference));
    set_loss(c->source_record, r.reference_nll, &at[1]);
    json_object_set_new(c->text_record, "position_edges", position_edges(&at[1], c->eval.window));
    json_object_set_new(c->text_record, "predicted", json_integer(r.tokens));
    json_object_set_new(c->text_record, "windows", json_integer(r.windows));
  }
  free(at);
  return s;
}

/* The first windows of the text, as far as LAYER_TOKENS reaches. */
static kf_status measure_layers(kf_comparison *c, kf_model *m, json_t *record, kf_error *e) {
  int64_t bos = c->bos >= 0, window = c->eval.window < LAYER_TOKENS - bos ? c->eval.window : LAYER_TOKENS - bos,
          length = window + bos;
  int sequences = (int)(LAYER_TOKENS / length), layers = m->config.layers;
  if ((int64_t)c->text.count / window < sequences) sequences = (int)((int64_t)c->text.count / window);
  if (c->eval.max_windows && c->eval.max_windows < sequences) sequences = c->eval.max_windows;
  if (layers != c->source->config.layers || m->config.hidden != c->source->config.hidden) return KF_OK;
  int32_t *input;
  KF_NEW(input, sequences * length, e);
  kf_layer_error *error = kf_alloc((size_t)layers, sizeof *error, e);
  for (int i = 0; i < sequences; i++) {
    if (bos) input[i * length] = c->bos;
    memcpy(input + i * length + bos, c->text.data + i * window, (size_t)window * sizeof *input);
  }
  kf_status s = error ? kf_layer_errors(c->source, m, input, sequences, length, &c->eval.hooks, error, e) : KF_ERROR_MEMORY;
  for (int i = 0; s == KF_OK && i < layers; i++) {
    json_t *layer = json_array_get(json_object_get(record, "layers"), (size_t)i);
    json_object_set_new(layer, "attention_error", kf_real(error[i].attention));
    json_object_set_new(layer, "residual_error", kf_real(error[i].residual));
    json_object_set_new(layer, "cumulative_error", kf_real(error[i].cumulative));
  }
  free(input);
  free(error);
  return s;
}

static kf_status open_model(const kf_comparison *c, const char *name, kf_model **out, kf_error *e) {
  kf_model_options o = {.compute = c->options->compute, .threads = c->options->threads, .hooks = c->eval.hooks};
  return kf_model_open(name, &o, out, e);
}

kf_status kf_comparison_add(kf_comparison *c, const char *dst, const char *name, double seconds, kf_error *e) {
  kf_model *m;
  json_t *record = NULL;
  kf_status s;
  KF_TRY(open_model(c, dst, &m, e));
  KF_GO(kf_describe_model(m, name, &record, e));
  json_object_set_new(record, "cache_part",
                      kf_real((double)m->info.cache_bytes_per_token / (double)c->source->info.cache_bytes_per_token));
  json_object_set_new(record, "conversion_seconds", seconds > 0 ? kf_real(seconds) : json_null());
  KF_GO(measure_loss(c, m, record, e));
  KF_GO(measure_layers(c, m, record, e));
  KF_GO(run_needles(c, m, record, e));
  json_array_append(c->models, record);
done:
  json_decref(record);
  kf_model_close(m);
  return s;
}

/* ------------------------------------------------------------------------------------------------ the whole */

kf_status kf_comparison_begin(kf_comparison *c, const char *src, const char *text, const kf_compare_options *o, kf_error *e) {
  kf_text content;
  *c = (kf_comparison){.options = o, .eval = o->eval, .started = now(), .models = json_array()};
  KF_TRY(kf_text_read(text, &content, e));
  kf_status s = kf_tokenizer_open(src, &c->tokenizer, e);
  if (s == KF_OK) s = kf_tokenizer_encode(c->tokenizer, content.data, content.bytes, KF_ENCODE_PLAIN, &c->text, e);
  kf_text_free(&content);
  if (s != KF_OK) return s;
  KF_TRY(kf_eval_bos(c->tokenizer, o->eval.bos, &c->bos, e));
  KF_TRY(open_model(c, src, &c->source, e));
  c->eval.window = (int)kf_eval_window(c->source, &o->eval);
  if (c->eval.window < 1 || (int64_t)c->text.count < c->eval.window)
    return kf_fail(e, KF_ERROR_INPUT, "%s: the text has %zu tokens, fewer than one window of %lld", text, c->text.count,
                   (long long)c->eval.window);
  c->text_record = json_pack("{s:s, s:I, s:I, s:b}", "path", text, "tokens", (json_int_t)c->text.count, "window",
                             (json_int_t)c->eval.window, "bos", c->bos >= 0);
  if (!c->text_record) return kf_fail(e, KF_ERROR_INPUT, "%s: the path of the text is not UTF-8", text);
  KF_TRY(plan_needles(c, e));
  KF_TRY(kf_describe_model(c->source, kf_short_name(src), &c->source_record, e));
  KF_TRY(run_needles(c, c->source, c->source_record, e));
  return kf_describe_spectra(c->source, &c->eval.hooks, &c->spectra, e);
}

kf_status kf_comparison_end(kf_comparison *c, json_t *failed, kf_text *json, kf_error *e) {
  kf_buffer verdict = {0};
  json_t *o = json_pack("{s:s, s:s, s:s, s:O, s:O, s:O, s:O, s:o, s:o}", "version", KF_VERSION, "verdict", "", "compute",
                        kf_model_compute(c->source) == KF_COMPUTE_BF16 ? "bf16" : "f32", "text", c->text_record, "source",
                        c->source_record, "models", c->models, "spectra", c->spectra, "failed", failed ? failed : json_array(),
                        "seconds", kf_real(now() - c->started));
  if (!o) return kf_fail(e, KF_ERROR_MEMORY, "out of memory");
  kf_status s = kf_verdict(o, &verdict, e);
  if (s == KF_OK) json_object_set_new(o, "verdict", json_stringn(verdict.data, verdict.bytes));
  kf_buffer_free(&verdict);
  char *text = s == KF_OK ? json_dumps(o, JSON_REAL_PRECISION(7)) : NULL;
  json_decref(o);
  if (s == KF_OK && !text) return kf_fail(e, KF_ERROR_MEMORY, "out of memory");
  if (s == KF_OK) *json = (kf_text){text, strlen(text)};
  return s;
}

void kf_comparison_free(kf_comparison *c) {
  json_decref(c->text_record);
  json_decref(c->source_record);
  json_decref(c->models);
  json_decref(c->spectra);
  kf_model_close(c->source);
  kf_tokenizer_close(c->tokenizer);
  kf_ids_free(&c->text);
  free(c->kept.x);
  free(c->needle);
}

const char *kf_short_name(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash && slash[1] ? slash + 1 : path;
}

/* The last part of DST's path, or all of it where another DST ends alike. */
static const char *name_of(const char *const *dst, int count, int index) {
  for (int i = 0; i < count; i++)
    if (i != index && strcmp(kf_short_name(dst[i]), kf_short_name(dst[index])) == 0) return dst[index];
  return kf_short_name(dst[index]);
}

kf_status kf_compare(const char *src, const char *const *dst, int dst_count, const char *text, const kf_compare_options *o,
                     kf_text *json, kf_error *e) {
  static const kf_compare_options standard;
  kf_comparison c;
  if (!o) o = &standard;
  if (dst_count < 1) return kf_fail(e, KF_ERROR_USAGE, "no model to compare the source with");
  KF_TRY(kf_held_out_model(text, src, &o->eval.hooks, e));
  for (int i = 0; i < dst_count; i++) KF_TRY(kf_held_out_model(text, dst[i], &o->eval.hooks, e));
  kf_status s = kf_comparison_begin(&c, src, text, o, e);
  for (int i = 0; s == KF_OK && i < dst_count; i++) s = kf_comparison_add(&c, dst[i], name_of(dst, dst_count, i), 0, e);
  if (s == KF_OK) s = kf_comparison_end(&c, NULL, json, e);
  kf_comparison_free(&c);
  return s;
}
