/* A GGUF file of architecture deepseek2, as llama.cpp and what is built on it load it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "export/export.h"

typedef struct writer {
  kf_export_job *j;
  kf_stock stock;
  kf_gguf_writer *file;
} writer;

static kf_status declare_tensor(void *user, const kf_stock_tensor *t, kf_error *e) {
  writer *w = user;
  w->j->all++;
  return kf_gguf_declare(w->file, t->name, kf_export_dtype(w->j, &w->stock, t), t->dims, t->shape, e);
}

static kf_status write_tensor(void *user, const kf_stock_tensor *t, kf_error *e) {
  writer *w = user;
  float *data;
  KF_TRY(kf_export_count(w->j, &w->stock, t, e));
  KF_TRY(kf_stock_read(&w->stock, t, &data, e));
  kf_status s = kf_gguf_add(w->file, data, e);
  free(data);
  return s;
}

/* The last part of the model's path, for people. */
static void model_name(const char *path, char out[256]) {
  size_t n = strlen(path);
  while (n > 1 && path[n - 1] == '/') n--;
  size_t from = n;
  while (from > 0 && path[from - 1] != '/') from--;
  snprintf(out, 256, "%.*s", (int)(n - from), path + from);
}

static kf_status put_general(const writer *w, kf_error *e) {
  char name[256];
  model_name(w->j->path, name);
  uint32_t type = w->j->dtype == KF_F32 ? 0 : w->j->dtype == KF_F16 ? 1 : 32; /* llama.cpp's file types */
  KF_TRY(kf_gguf_put_string(w->file, "general.architecture", "deepseek2", e));
  KF_TRY(kf_gguf_put_string(w->file, "general.type", "model", e));
  KF_TRY(kf_gguf_put_string(w->file, "general.name", name, e));
  return kf_gguf_put_u32(w->file, "general.file_type", type, e);
}

/* Attention works in the latent space: one KV head of rank + rope numbers, of which rank are the value; _mla are the widths of
 * a head. All layers are dense; the keys of experts are there because the loader asks for them. */
static kf_status put_model(const writer *w, kf_error *e) {
  const kf_stock *s = &w->stock;
  const kf_config *c = s->config;
  const struct {
    const char *key;
    int64_t value;
  } numbers[] = {
      {"block_count", c->layers},
      {"context_length", c->context},
      {"embedding_length", c->hidden},
      {"feed_forward_length", c->layer[0].intermediate},
      {"vocab_size", c->vocabulary},
      {"attention.head_count", c->heads},
      {"attention.head_count_kv", 1},
      {"attention.q_lora_rank", 0},
      {"attention.kv_lora_rank", s->rank},
      {"attention.key_length", s->rank + s->rope},
      {"attention.value_length", s->rank},
      {"attention.key_length_mla", s->nope + s->rope},
      {"attention.value_length_mla", s->v},
      {"rope.dimension_count", s->rope},
      {"leading_dense_block_count", c->layers},
      {"expert_feed_forward_length", c->layer[0].intermediate},
      {"expert_shared_count", 0},
      {"expert_count", 0},
  };
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
    char key[96];
    snprintf(key, sizeof key, "deepseek2.%s", numbers[i].key);
    KF_TRY(kf_gguf_put_u32(w->file, key, (uint32_t)numbers[i].value, e));
  }
  KF_TRY(kf_gguf_put_f32(w->file, "deepseek2.rope.freq_base", (float)s->theta, e));
  return kf_gguf_put_f32(w->file, "deepseek2.attention.layer_norm_rms_epsilon", (float)s->eps, e);
}

static kf_status write_file(writer *w, kf_error *e) {
  KF_TRY(put_general(w, e));
  KF_TRY(put_model(w, e));
  KF_TRY(kf_export_tokenizer(w->j->path, w->j->config.vocabulary, w->j->hooks, w->file, e));
  KF_TRY(kf_stock_each(&w->stock, declare_tensor, w, e));
  return kf_stock_each(&w->stock, write_tensor, w, e);
}

kf_status kf_export_gguf(kf_export_job *j, kf_error *e) {
  writer w = {.j = j};
  KF_TRY(kf_stock_plan(j->path, &j->config, &j->weights, true, 0, j->dtype, &w.stock, e));
  if (j->check) return KF_OK;
  KF_TRY(kf_gguf_create(j->out, &w.file, e));
  kf_status s = write_file(&w, e);
  if (s == KF_OK) return kf_gguf_finish(w.file, e);
  kf_gguf_abandon(w.file);
  return s;
}
