#include "report/describe.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "linalg/linalg.h"

json_t *kf_real(double x) {
  return isfinite(x) ? json_real(x) : json_null();
}

/* "rope": [wavelength in tokens, heads that keep it] of every frequency that the layer keeps, shortest first. */
static kf_status describe_rope(const kf_attention_config *a, int64_t context, json_t **out, kf_error *e) {
  int columns = a->rope.dim / 2;
  int64_t pairs = kf_attention_rope_width(a) / 2;
  double *frequency, factor;
  KF_NEW(frequency, columns + 1, e);
  int *heads = kf_alloc((size_t)columns + 1, sizeof *heads, e);
  *out = json_array();
  if (heads && pairs) {
    kf_rope_frequencies(&a->rope, context, frequency, &factor);
    for (int64_t i = 0; i < pairs; i++) heads[a->rope_index[i]]++;
    for (int i = 0; i < columns; i++)
      if (heads[i]) json_array_append_new(*out, json_pack("[o,i]", kf_real(2 * M_PI / frequency[i]), heads[i]));
  }
  free(frequency);
  free(heads);
  return heads ? KF_OK : KF_ERROR_MEMORY;
}

static kf_status describe_layers(const kf_config *c, json_t *to, kf_error *e) {
  for (int i = 0; i < c->layers; i++) {
    const kf_attention_config *a = &c->layer[i].attention;
    json_t *rope;
    KF_TRY(describe_rope(a, c->context, &rope, e));
    json_t *layer = json_pack("{s:s, s:I, s:o}", "attention", a->kind == KF_LATENT ? "latent" : "grouped", "cache_elements",
                              (json_int_t)kf_attention_cache_elements(a), "rope", rope);
    json_object_set_new(layer, "kv_lora_rank", a->kind == KF_LATENT ? json_integer(a->rank) : json_null());
    json_array_append_new(to, layer);
  }
  return KF_OK;
}

/* One format after the other is asked. A model that kvfold did not convert, or whose attention is grouped after it (kv-heads),
 * needs no export, and is not asked for. */
static kf_status describe_engines(const kf_model_info *info, json_t *to, kf_error *e) {
  static const char *const formats[] = {"deepseek-v3", "gguf"};
  bool grouped = strcmp(info->attention, "grouped") == 0;
  for (size_t i = 0; *info->method && !grouped && i < sizeof formats / sizeof *formats; i++) {
    kf_error why = {0};
    kf_export_options o = {.format = formats[i], .check = true};
    kf_status s = kf_export(info->path, NULL, &o, NULL, &why);
    size_t n = strlen(info->path);
    const char *reason =
        strncmp(why.message, info->path, n) == 0 && strncmp(why.message + n, ": ", 2) == 0 ? why.message + n + 2 : why.message;
    if (s == KF_ERROR_MEMORY) return kf_fail(e, s, "%s", why.message);
    json_array_append_new(
        to, json_pack("{s:s, s:b, s:s?}", "format", formats[i], "loads", s == KF_OK, "reason", s == KF_OK ? NULL : reason));
  }
  return KF_OK;
}

static json_t *cache_at(int64_t bytes_per_token) {
  return json_pack("{s:I, s:I, s:I}", "4096", (json_int_t)(4096 * bytes_per_token), "32768",
                   (json_int_t)(32768 * bytes_per_token), "131072", (json_int_t)(131072 * bytes_per_token));
}

kf_status kf_describe_model(const kf_model *m, const char *name, json_t **out, kf_error *e) {
  const kf_model_info *i = &m->info;
  const json_t *recipe = json_object_get(json_object_get(m->config.json, "kvfold"), "recipe");
  json_t *layers = json_array(), *engines = json_array();
  *out =
      json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:o, s:o, s:o}", "name", name, "path", i->path, "method", i->method,
                "attention", i->attention, "dtype", i->dtype, "parameters", (json_int_t)i->parameters, "cache_elements_per_token",
                (json_int_t)i->cache_elements_per_token, "cache_bytes_per_token", (json_int_t)i->cache_bytes_per_token,
                "cache_bytes_at", cache_at(i->cache_bytes_per_token), "layers", layers, "engines", engines);
  if (!*out) return kf_fail(e, KF_ERROR_INPUT, "%s: the name of the model is not UTF-8", name);
  json_object_set_new(*out, "recipe", recipe ? json_deep_copy(recipe) : json_null());
  kf_status s = describe_layers(&m->config, layers, e);
  return s == KF_OK ? describe_engines(i, engines, e) : s;
}

/* ------------------------------------------------------------------------------------------------ spectra */

/* Rows of k_proj and v_proj of a grouped layer, [rows, hidden] in fp64. */
static kf_status stack(const kf_model *m, int layer, int64_t keys, int64_t values, double *to, kf_error *e) {
  const char *const names[] = {"k_proj", "v_proj"};
  const int64_t rows[] = {keys, values};
  int64_t hidden = m->config.hidden;
  for (int i = 0; i < 2; i++) {
    float *w;
    KF_TRY(kf_weights_readf(&m->weights, rows[i], hidden, &w, e, "model.layers.%d.self_attn.%s.weight", layer, names[i]));
    for (int64_t k = 0; k < rows[i] * hidden; k++) *to++ = (double)w[k];
    free(w);
  }
  return KF_OK;
}

static kf_status describe_spectrum(const kf_model *m, int layer, json_t *to, kf_error *e) {
  const kf_attention_config *a = &m->config.layer[layer].attention;
  int64_t keys = (int64_t)a->kv_heads * a->d_qk, values = (int64_t)a->kv_heads * a->d_v, rows = keys + values;
  int64_t hidden = m->config.hidden, count = rows < hidden ? rows : hidden;
  double *w = kf_alloc((size_t)rows * (size_t)hidden, sizeof *w, e), *sigma = kf_alloc((size_t)count, sizeof *sigma, e);
  kf_status s = w && sigma ? stack(m, layer, keys, values, w, e) : KF_ERROR_MEMORY;
  if (s == KF_OK) s = kf_svd(w, rows, hidden, 1, NULL, sigma, NULL, e);
  for (int64_t i = 0; s == KF_OK && i < count; i++) json_array_append_new(to, kf_real(sigma[i]));
  free(w);
  free(sigma);
  return s;
}

kf_status kf_describe_spectra(const kf_model *m, const kf_hooks *hooks, json_t **out, kf_error *e) {
  *out = json_array();
  for (int i = 0; i < m->config.layers; i++) {
    bool grouped = m->config.layer[i].attention.kind == KF_GROUPED;
    json_t *values = grouped ? json_array() : json_null();
    json_array_append_new(*out, values);
    KF_TRY(kf_progress(hooks, "spectra", i, m->config.layers, e));
    if (grouped) KF_TRY(describe_spectrum(m, i, values, e));
  }
  return kf_progress(hooks, "spectra", m->config.layers, m->config.layers, e);
}
