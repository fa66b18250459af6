#include "model/model.h"
#include "model/run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

kf_status kf_model_read(const char *path, kf_config *config, kf_weights *weights, kf_error *e) {
  kf_gguf *g = NULL;
  kf_status s;
  *config = (kf_config){0};
  if (weights) *weights = (kf_weights){0};
  if (kf_is_directory(path)) {
    KF_GO(kf_config_from_directory(path, config, e));
  } else {
    KF_GO(kf_gguf_open(path, &g, e));
    KF_GO(kf_config_from_gguf(g, config, e));
  }
  if (!weights) goto done;
  KF_GO(kf_weights_open(path, config, weights, e));
  KF_GO(kf_weights_check(weights, e));
done:
  kf_gguf_close(g);
  if (s != KF_OK) {
    if (weights) kf_weights_close(weights);
    kf_config_free(config);
  }
  return s;
}

static void put(char *to, size_t size, const char *text) {
  snprintf(to, size, "%s", text);
}

void kf_model_summarise(const char *path, const kf_config *c, const kf_weights *w, kf_model_info *out) {
  *out = (kf_model_info){.layers = c->layers,
                         .hidden = c->hidden,
                         .heads = c->heads,
                         .kv_heads = c->kv_heads,
                         .head_dim = c->head_dim,
                         .intermediate = c->intermediate,
                         .vocabulary = c->vocabulary,
                         .context = c->context,
                         .tied = c->tied,
                         .parameters = kf_weights_parameters(w)};
  int latent = 0;
  for (int i = 0; i < c->layers; i++) {
    out->cache_elements_per_token += kf_attention_cache_elements(&c->layer[i].attention);
    latent += c->layer[i].attention.kind == KF_LATENT;
  }
  out->cache_bytes_per_token = 2 * out->cache_elements_per_token;
  put(out->path, sizeof out->path, path);
  put(out->family, sizeof out->family, c->family);
  put(out->method, sizeof out->method, c->method);
  put(out->attention, sizeof out->attention, latent == 0 ? "grouped" : latent == c->layers ? "latent" : "hybrid");
  put(out->dtype, sizeof out->dtype, kf_dtype_name(kf_weights_dtype(w)));
  put(out->compute, sizeof out->compute, kf_cpu_auto_compute());
  put(out->rope, sizeof out->rope, kf_rope_type_name(c->layer[0].attention.rope.type));
}

/* Locates and reads MODEL; the caller closes both. */
static kf_status locate_and_read(const char *model, char path[KF_PATH], kf_config *c, kf_weights *w, kf_error *e) {
  KF_TRY(kf_locate(model, path, e));
  return kf_model_read(path, c, w, e);
}

kf_status kf_model_describe(const char *model, kf_model_info *out, kf_error *e) {
  char path[KF_PATH];
  kf_config c;
  kf_weights w;
  KF_TRY(locate_and_read(model, path, &c, &w, e));
  kf_model_summarise(path, &c, &w, out);
  kf_weights_close(&w);
  kf_config_free(&c);
  return KF_OK;
}

static json_t *describe_layer(const kf_layer_config *l) {
  const kf_attention_config *a = &l->attention;
  json_t *pairs = json_array();
  for (int g = 0; g < a->rope_heads; g++) json_array_append_new(pairs, json_integer(a->rope_pairs[g]));
  json_t *o = json_pack("{s:s,s:i,s:i,s:i,s:i,s:o,s:I,s:I}", "attention", a->kind == KF_LATENT ? "latent" : "grouped", "heads",
                        a->heads, "kv_heads", a->kv_heads, "qk_head_dim", a->d_qk, "v_head_dim", a->d_v, "rope_pairs", pairs,
                        "window", (json_int_t)a->window, "cache_elements", (json_int_t)kf_attention_cache_elements(a));
  if (a->kind == KF_LATENT) {
    json_object_set_new(o, "kv_lora_rank", json_integer(a->rank));
    json_object_set_new(o, "q_lora_rank", json_integer(a->q_rank));
    json_object_set_new(o, "rope_heads", json_integer(a->rope_heads));
  }
  return o;
}

kf_status kf_model_describe_layers(const char *model, kf_text *json, kf_error *e) {
  char path[KF_PATH];
  kf_config c;
  KF_TRY(kf_locate(model, path, e));
  KF_TRY(kf_model_read(path, &c, NULL, e));
  json_t *o = json_object(), *layers = json_array(), *recipe = json_object_get(json_object_get(c.json, "kvfold"), "recipe");
  for (int i = 0; i < c.layers; i++) json_array_append_new(layers, describe_layer(&c.layer[i]));
  json_object_set_new(o, "layers", layers);
  json_object_set(o, "recipe", recipe ? recipe : json_null());
  char *text = json_dumps(o, JSON_COMPACT);
  json_decref(o);
  kf_config_free(&c);
  if (!text) return kf_fail(e, KF_ERROR_MEMORY, "out of memory");
  *json = (kf_text){text, strlen(text)};
  return KF_OK;
}

kf_status kf_head_load(const kf_weights *w, kf_device *d, float **norm, kf_weight **head, kf_error *e) {
  const kf_config *c = w->config;
  const kf_view *embedding;
  float *vector = NULL, *rows = NULL;
  kf_status s = kf_weights_read(w, "model.norm.weight", c->hidden, 1, &vector, e);
  if (s == KF_OK) s = kf_device_numbers(d, vector, c->hidden, norm, e);
  if (s == KF_OK && !c->tied) s = kf_weights_read(w, "lm_head.weight", c->vocabulary, c->hidden, &rows, e);
  if (s == KF_OK && c->tied) s = kf_weights_embedding(w, &embedding, e);
  if (s == KF_OK && c->tied) {
    rows = kf_alloc((size_t)c->vocabulary * (size_t)c->hidden, sizeof *rows, e);
    s = rows ? kf_source_rows(w->source, embedding, 0, c->vocabulary, rows, e) : KF_ERROR_MEMORY;
  }
  if (s == KF_OK) s = d->pack(d, rows, NULL, c->vocabulary, c->hidden, head, e);
  free(vector);
  free(rows);
  return s;
}

static kf_status load(kf_model *m, const char *model, const kf_model_options *o, kf_error *e) {
  char path[KF_PATH];
  KF_TRY(locate_and_read(model, path, &m->config, &m->weights, e));
  m->weights.config = &m->config;
  kf_model_summarise(path, &m->config, &m->weights, &m->info);
  KF_TRY(kf_device_open(o->device, o->compute, o->threads, &m->device, e));
  KF_TRY(kf_run_create(m->device, &m->config, &m->run, e));
  KF_NEW(m->layer, m->config.layers, e);
  for (int i = 0; i < m->config.layers; i++) {
    KF_TRY(kf_layer_load(&m->weights, i, m->device, &m->layer[i], e));
    KF_TRY(kf_progress(&o->hooks, "loading", i + 1, m->config.layers + 1, e));
  }
  KF_TRY(kf_weights_embedding(&m->weights, &m->embedding, e));
  KF_TRY(kf_head_load(&m->weights, m->device, &m->norm, &m->head, e));
  return kf_progress(&o->hooks, "loading", m->config.layers + 1, m->config.layers + 1, e);
}

kf_status kf_model_open(const char *model, const kf_model_options *options, kf_model **out, kf_error *e) {
  kf_model_options defaults = {0};
  kf_model *m;
  KF_NEW(m, 1, e);
  kf_status s = load(m, model, options ? options : &defaults, e);
  if (s != KF_OK)
    kf_model_close(m);
  else
    *out = m;
  return s;
}

void kf_model_close(kf_model *m) {
  if (!m) return;
  for (int i = 0; m->layer && i < m->config.layers; i++) kf_layer_free(&m->layer[i], m->device);
  free(m->layer);
  if (m->norm) m->device->release(m->device, m->norm);
  if (m->head) m->device->weight_free(m->device, m->head);
  kf_run_free(m->run);
  kf_device_close(m->device);
  kf_weights_close(&m->weights);
  kf_config_free(&m->config);
  free(m);
}

const kf_model_info *kf_model_get_info(const kf_model *m) {
  return &m->info;
}

kf_compute kf_model_compute(const kf_model *m) {
  return m->device->compute == KF_BF16 ? KF_COMPUTE_BF16 : KF_COMPUTE_F32;
}

const char *kf_model_device(const kf_model *m) {
  return m->device->name;
}

kf_status kf_embed(const kf_weights *w, const kf_view *embedding, const int32_t *ids, int64_t count, float *x, kf_error *e) {
  for (int64_t i = 0; i < count; i++) {
    if (ids[i] < 0 || ids[i] >= w->config->vocabulary)
      return kf_fail(e, KF_ERROR_INPUT, "token %d is outside the vocabulary of %d", (int)ids[i], w->config->vocabulary);
    KF_TRY(kf_weights_row(w, embedding, ids[i], x + i * w->config->hidden, e));
  }
  return KF_OK;
}

kf_status kf_model_forward(kf_model *m, float *x, const kf_span *spans, int count, kf_error *e) {
  for (int i = 0; i < m->config.layers; i++) KF_TRY(kf_layer_forward(m->run, &m->layer[i], i, x, spans, count, NULL, e));
  for (int i = 0; i < count; i++) kf_sequence_advance(spans[i].sequence, spans[i].count);
  return KF_OK;
}

kf_status kf_model_logits(kf_model *m, const float *x, int64_t rows, float *logits, kf_error *e) {
  kf_device *d = m->device;
  float *h;
  KF_TRY(kf_run_slot(m->run, KF_SLOT_NORMED, rows * m->config.hidden, &h, e));
  d->rmsnorm(d, h, x, m->norm, rows, m->config.hidden, m->config.eps);
  d->linear(d, logits, h, m->head, rows, false);
  return kf_device_check(d, e);
}
