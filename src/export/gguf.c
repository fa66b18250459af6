/* A GGUF file of architecture deepseek2, as llama.cpp and what is built on it load it. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "export/export.h"
#include "export/stock_basis.h"

typedef struct writer {
  kf_export_job *j;
  kf_stock stock;
  kf_gguf_writer *file;
  int64_t declared;
  const kf_view **copy; /* [tensors] what the source holds of each; NULL: it is written from numbers */
} writer;

/* ------------------------------------------------------------------------------------------------ the source's tensors */

/* Whether the model's tensor is what its own type makes of the source's. */
static kf_status same_numbers(const kf_export_job *j, const kf_view *source, const kf_view *mine, bool *same, kf_error *e) {
  int64_t rows = mine->shape[0], columns = mine->dims == 2 ? mine->shape[1] : 1;
  size_t row = (size_t)columns * (size_t)kf_dtype_block_bytes(mine->dtype);
  *same = source->dims == mine->dims && source->shape[0] == rows && (mine->dims == 1 || source->shape[1] == columns) &&
          mine->dtype <= KF_BF16;
  if (!*same) return KF_OK;
  float *from = kf_alloc((size_t)columns, sizeof *from, e);
  uint8_t *to = kf_alloc((size_t)columns, sizeof *from, e);
  kf_status s = from && to ? KF_OK : KF_ERROR_MEMORY;
  for (int64_t r = 0; s == KF_OK && *same && r < rows; r++) {
    s = kf_source_rows(j->source.source, source, r, 1, from, e);
    if (s != KF_OK) break;
    kf_from_f32(mine->dtype, from, to, (size_t)columns);
    *same = memcmp(to, mine->data + (size_t)r * row, row) == 0;
  }
  free(from);
  free(to);
  return s;
}

static kf_status find_copy(const writer *w, const kf_stock_tensor *t, const kf_view **out, kf_error *e) {
  char room[96];
  bool same = false;
  const char *name = w->j->source.source ? kf_stock_unchanged(&w->stock, t, room) : NULL;
  const kf_view *source = name ? kf_weights_view(&w->j->source, name) : NULL;
  const kf_view *mine = source ? kf_weights_view(&w->j->weights, name) : NULL;
  *out = NULL;
  if (!mine || mine->dims > 2) return KF_OK;
  KF_TRY(same_numbers(w->j, source, mine, &same, e));
  kf_source_done(w->j->source.source, source);
  kf_source_done(w->j->weights.source, mine);
  if (same) *out = source;
  return KF_OK;
}

/* ------------------------------------------------------------------------------------------------ tensors */

/* Latent rows of kv_a are small by design, below what f16 and Q8_0 hold, and the matrix is: it stays f32. */
static kf_dtype dtype_of(const writer *w, const kf_stock_tensor *t, const kf_view *copy) {
  if (copy) return copy->dtype;
  if (t->dims == 1 || t->kind == KF_STOCK_KV_A) return KF_F32;
  return t->shape[t->dims - 1] % kf_dtype_block(w->j->dtype) ? KF_F16 : w->j->dtype;
}

static kf_status count_tensor(void *user, const kf_stock_tensor *t, kf_error *e) {
  (void)t, (void)e;
  ++*(int64_t *)user;
  return KF_OK;
}

static kf_status declare_tensor(void *user, const kf_stock_tensor *t, kf_error *e) {
  writer *w = user;
  const kf_view **copy = &w->copy[w->declared++];
  KF_TRY(find_copy(w, t, copy, e));
  if (*copy) w->j->result.copied++;
  return kf_gguf_declare(w->file, t->name, dtype_of(w, t, *copy), t->dims, t->shape, e);
}

static kf_status write_tensor(void *user, const kf_stock_tensor *t, kf_error *e) {
  writer *w = user;
  float *data;
  const kf_view *copy = w->copy[w->j->result.tensors];
  KF_TRY(kf_export_count(w->j, t, dtype_of(w, t, copy), e));
  if (copy) return kf_gguf_add_raw(w->file, copy, e);
  KF_TRY(kf_stock_read(&w->stock, t, &data, e));
  kf_status s = kf_gguf_add(w->file, data, e);
  free(data);
  return s;
}

static kf_status write_tensors(writer *w, kf_error *e) {
  kf_status s;
  const kf_view **copy;
  KF_TRY(kf_stock_each(&w->stock, count_tensor, &w->j->all, e));
  KF_NEW(copy, w->j->all, e);
  w->copy = copy;
  KF_GO(kf_stock_each(&w->stock, declare_tensor, w, e));
  if (w->j->source.source && !w->j->result.copied) {
    s = kf_fail(e, KF_ERROR_INPUT, "%s was not converted from %s: no tensor of the two is the same", w->j->path,
                w->j->source_path);
    goto done;
  }
  KF_GO(kf_stock_each(&w->stock, write_tensor, w, e));
done:
  free(copy);
  return s;
}

/* ------------------------------------------------------------------------------------------------ keys */

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
  /* llama.cpp's file types */
  uint32_t type = w->j->dtype == KF_F32 ? 0 : w->j->dtype == KF_F16 ? 1 : w->j->dtype == KF_Q8_0 ? 7 : 32;
  KF_TRY(kf_gguf_put_string(w->file, "general.architecture", "deepseek2", e));
  KF_TRY(kf_gguf_put_string(w->file, "general.type", "model", e));
  KF_TRY(kf_gguf_put_string(w->file, "general.name", name, e));
  KF_TRY(kf_gguf_put_u32(w->file, "general.quantization_version", 2, e));
  return kf_gguf_put_u32(w->file, "general.file_type", type, e);
}

/* llama.cpp multiplies YaRN's cosine and sine by 1 + 0.1 ln factor, and attn_factor. */
static kf_status put_rope(const writer *w, kf_error *e) {
  const kf_rope *r = &w->stock.rope;
  KF_TRY(kf_gguf_put_f32(w->file, "deepseek2.rope.freq_base", (float)r->theta, e));
  if (r->type == KF_ROPE_DEFAULT) return KF_OK;
  KF_TRY(kf_gguf_put_string(w->file, "deepseek2.rope.scaling.type", kf_rope_type_name(r->type), e));
  KF_TRY(kf_gguf_put_f32(w->file, "deepseek2.rope.scaling.factor", (float)r->factor, e));
  if (r->type == KF_ROPE_LINEAR) return KF_OK;
  KF_TRY(kf_gguf_put_f32(w->file, "deepseek2.rope.scaling.attn_factor", (float)(1 / (1 + 0.1 * log(r->factor))), e));
  KF_TRY(kf_gguf_put_f32(w->file, "deepseek2.rope.scaling.yarn_beta_fast", (float)r->beta_fast, e));
  KF_TRY(kf_gguf_put_f32(w->file, "deepseek2.rope.scaling.yarn_beta_slow", (float)r->beta_slow, e));
  return kf_gguf_put_u32(w->file, "deepseek2.rope.scaling.original_context_length", (uint32_t)r->original_context, e);
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
      {"attention.key_length", s->rank + s->rope.dim},
      {"attention.value_length", s->rank},
      {"attention.key_length_mla", s->nope + s->rope.dim},
      {"attention.value_length_mla", s->v},
      {"rope.dimension_count", s->rope.dim},
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
  KF_TRY(put_rope(w, e));
  return kf_gguf_put_f32(w->file, "deepseek2.attention.layer_norm_rms_epsilon", (float)s->eps, e);
}

static kf_status write_file(writer *w, kf_error *e) {
  KF_TRY(put_general(w, e));
  KF_TRY(put_model(w, e));
  KF_TRY(kf_export_tokenizer(w->j->path, w->j->config.vocabulary, w->j->hooks, w->file, e));
  return write_tensors(w, e);
}

kf_status kf_export_gguf(kf_export_job *j, kf_error *e) {
  writer w = {.j = j};
  const kf_stock_target target = {.gguf = true, .pad = j->pad, .hooks = j->hooks};
  KF_TRY(kf_stock_plan(j->path, &j->config, &j->weights, &target, &w.stock, e));
  if (j->check) return KF_OK;
  if (j->f16_latents) KF_TRY(kf_stock_find_basis(j->path, j->hooks, &w.stock, e));
  kf_status s = kf_gguf_create(j->out, &w.file, e);
  if (s == KF_OK && (s = write_file(&w, e)) != KF_OK)
    kf_gguf_abandon(w.file);
  else if (s == KF_OK)
    s = kf_gguf_finish(w.file, e);
  kf_stock_free_basis(&w.stock);
  return s;
}
