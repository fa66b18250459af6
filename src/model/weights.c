#include "model/weights.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME = 256 };

kf_status kf_weights_open(const char *path, const kf_config *config, kf_weights *out, kf_error *e) {
  *out = (kf_weights){.config = config};
  return kf_source_open(path, &out->source, e);
}

void kf_weights_close(kf_weights *w) {
  if (!w) return;
  kf_source_close(w->source);
  *w = (kf_weights){0};
}

const char *kf_weights_kv_a(const kf_config *c) {
  return strncmp(c->family, "deepseek", 8) == 0 ? "kv_a_proj_with_mqa" : "kv_a_proj";
}

/* ---------------------------------------------------------------------------------------------- names in a GGUF */

static const struct {
  const char *hf, *gguf;
} names[] = {
    {"model.embed_tokens", "token_embd"},
    {"model.norm", "output_norm"},
    {"lm_head", "output"},
    {"input_layernorm", "attn_norm"},
    {"post_attention_layernorm", "ffn_norm"},
    {"self_attn.q_proj", "attn_q"},
    {"self_attn.k_proj", "attn_k"},
    {"self_attn.v_proj", "attn_v"},
    {"self_attn.o_proj", "attn_output"},
    {"self_attn.q_norm", "attn_q_norm"},
    {"self_attn.k_norm", "attn_k_norm"},
    {"mlp.gate_proj", "ffn_gate"},
    {"mlp.up_proj", "ffn_up"},
    {"mlp.down_proj", "ffn_down"},
};

/* "model.layers.3.mlp.up_proj.weight" -> "blk.3.ffn_up.weight"; false when GGUF has no such tensor. */
static bool gguf_name(const char *hf, char out[NAME]) {
  int layer = -1, used = 0;
  const char *rest = sscanf(hf, "model.layers.%d.%n", &layer, &used) == 1 && used ? hf + used : hf;
  const char *suffix = strrchr(rest, '.'); /* ".weight" or ".bias" */
  if (!suffix) return false;
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    if (strlen(names[i].hf) != (size_t)(suffix - rest) || strncmp(names[i].hf, rest, (size_t)(suffix - rest)) != 0) continue;
    if (rest == hf)
      snprintf(out, NAME, "%s%s", names[i].gguf, suffix);
    else
      snprintf(out, NAME, "blk.%d.%s%s", layer, names[i].gguf, suffix);
    return true;
  }
  return false;
}

static const kf_view *find(const kf_weights *w, const char *name) {
  char other[NAME];
  if (!kf_source_gguf(w->source)) return kf_source_find(w->source, name);
  return gguf_name(name, other) ? kf_source_find(w->source, other) : NULL;
}

/* Heads whose rows llama.cpp's converter interleaved (llama architecture, q and k), else 0. */
static int permuted_heads(const kf_weights *w, const char *name) {
  if (!kf_source_gguf(w->source) || strcmp(w->config->family, "llama") != 0) return 0;
  if (strstr(name, ".q_proj.")) return w->config->heads;
  if (strstr(name, ".k_proj.")) return w->config->kv_heads;
  return 0;
}

/* ---------------------------------------------------------------------------------------------- reading */

bool kf_weights_has(const kf_weights *w, const char *name) {
  return find(w, name) != NULL;
}

const kf_view *kf_weights_view(const kf_weights *w, const char *name) {
  return permuted_heads(w, name) ? NULL : find(w, name);
}

static kf_status check_shape(const kf_weights *w, const char *name, const kf_view *v, int64_t rows, int64_t columns,
                             kf_error *e) {
  if (!v) return kf_fail(e, KF_ERROR_INPUT, "%s: tensor %s is missing", kf_source_path(w->source), name);
  bool vector = v->dims == 1;
  int64_t r = v->dims ? v->shape[0] : 0, c = v->dims == 2 ? v->shape[1] : 1;
  if (v->dims > 2 || v->dims < 1 || r != rows || c != columns) {
    char found[96] = "";
    for (int i = 0, n = 0; i < v->dims && n < 80; i++)
      n += snprintf(found + n, sizeof found - (size_t)n, i ? " x %lld" : "%lld", (long long)v->shape[i]);
    return kf_fail(e, KF_ERROR_INPUT, "%s: tensor %s is [%s], but config.json makes it [%lld%s%.0lld]",
                   kf_source_file(w->source, v), v->name, found, (long long)rows, columns == 1 && vector ? "" : " x ",
                   columns == 1 && vector ? 0LL : (long long)columns);
  }
  if (!kf_dtype_is_float(v->dtype))
    return kf_fail(e, KF_ERROR_INPUT, "%s: tensor %s has type %s, expected floating-point weights", kf_source_file(w->source, v),
                   v->name, kf_dtype_name(v->dtype));
  return KF_OK;
}

kf_status kf_weights_read(const kf_weights *w, const char *name, int64_t rows, int64_t columns, float **out, kf_error *e) {
  const kf_view *v = find(w, name);
  KF_TRY(check_shape(w, name, v, rows, columns, e));
  float *data = kf_alloc((size_t)rows * (size_t)columns, sizeof *data, e);
  if (!data) return KF_ERROR_MEMORY;
  int heads = permuted_heads(w, name);
  kf_status s = KF_OK;
  if (!heads) {
    s = kf_source_rows(w->source, v, 0, rows, data, e);
  } else {
    int64_t d = rows / heads; /* stored row h d + 2 j + half is row h d + half d / 2 + j */
    float *stored = kf_alloc((size_t)rows * (size_t)columns, sizeof *stored, e);
    s = stored ? kf_source_rows(w->source, v, 0, rows, stored, e) : KF_ERROR_MEMORY;
    for (int64_t r = 0; s == KF_OK && r < rows; r++) {
      int64_t h = r / d, i = r % d, from = h * d + 2 * (i % (d / 2)) + i / (d / 2);
      memcpy(data + r * columns, stored + from * columns, (size_t)columns * sizeof *data);
    }
    free(stored);
  }
  kf_source_done(w->source, v);
  if (s != KF_OK)
    free(data);
  else
    *out = data;
  return s;
}

kf_status kf_weights_readf(const kf_weights *w, int64_t rows, int64_t columns, float **out, kf_error *e, const char *format,
                           ...) {
  char name[NAME];
  va_list args;
  va_start(args, format);
  vsnprintf(name, sizeof name, format, args);
  va_end(args);
  return kf_weights_read(w, name, rows, columns, out, e);
}

kf_status kf_weights_row(const kf_weights *w, const kf_view *v, int64_t row, float *to, kf_error *e) {
  return kf_source_rows(w->source, v, row, 1, to, e);
}

kf_status kf_weights_embedding(const kf_weights *w, const kf_view **out, kf_error *e) {
  const char *name = "model.embed_tokens.weight";
  const kf_view *v = find(w, name);
  if (!v && w->config->tied) v = find(w, "lm_head.weight");
  KF_TRY(check_shape(w, name, v, w->config->vocabulary, w->config->hidden, e));
  *out = v;
  return KF_OK;
}

kf_dtype kf_weights_dtype(const kf_weights *w) {
  size_t bytes[KF_DTYPES] = {0};
  int best = KF_F32;
  for (int i = 0; i < kf_source_count(w->source); i++)
    bytes[kf_source_at(w->source, i)->dtype] += kf_source_at(w->source, i)->bytes;
  for (int t = 0; t < KF_DTYPES; t++)
    if (bytes[t] > bytes[best]) best = t;
  return (kf_dtype)best;
}

/* ---------------------------------------------------------------------------------------------- what must be there */

typedef struct visitor {
  kf_weights_visit visit;
  void *user;
  int layer;
  kf_error *e;
} visitor;

static kf_status say(const visitor *v, const char *name, int64_t rows, int64_t columns) {
  char full[NAME];
  if (v->layer < 0) return v->visit(v->user, name, rows, columns, v->e);
  snprintf(full, sizeof full, "model.layers.%d.%s", v->layer, name);
  return v->visit(v->user, full, rows, columns, v->e);
}

static kf_status matrix(const visitor *v, const char *name, int64_t rows, int64_t columns, bool bias) {
  char full[128];
  snprintf(full, sizeof full, "%s.weight", name);
  KF_TRY(say(v, full, rows, columns));
  snprintf(full, sizeof full, "%s.bias", name);
  return bias ? say(v, full, rows, 1) : KF_OK;
}

static kf_status each_latent(const visitor *v, const kf_config *c, const kf_attention_config *a) {
  char kv_a[64];
  snprintf(kv_a, sizeof kv_a, "self_attn.%s", kf_weights_kv_a(c));
  int64_t q = (int64_t)a->heads * a->d_qk;
  if (a->q_rank) {
    KF_TRY(matrix(v, "self_attn.q_a_proj", a->q_rank, c->hidden, a->q_a_bias));
    if (a->q_a_norm) KF_TRY(say(v, "self_attn.q_a_layernorm.weight", a->q_rank, 1));
    KF_TRY(matrix(v, "self_attn.q_b_proj", q, a->q_rank, a->q_bias));
  } else {
    KF_TRY(matrix(v, "self_attn.q_proj", q, c->hidden, a->q_bias));
  }
  KF_TRY(matrix(v, kv_a, a->rank + kf_attention_rope_width(a), c->hidden, a->kv_a_bias));
  if (a->kv_a_norm) KF_TRY(say(v, "self_attn.kv_a_layernorm.weight", a->rank, 1));
  KF_TRY(matrix(v, "self_attn.kv_b_proj", kf_attention_kv_b_rows(a), a->rank, a->kv_b_bias));
  if (a->qk_norm) {
    KF_TRY(say(v, "self_attn.q_norm.weight", a->kv_heads, a->d_qk));
    KF_TRY(say(v, "self_attn.k_norm.weight", a->kv_heads, a->d_qk));
  }
  return KF_OK;
}

static kf_status each_grouped(const visitor *v, const kf_config *c, const kf_attention_config *a) {
  KF_TRY(matrix(v, "self_attn.q_proj", (int64_t)a->heads * a->d_qk, c->hidden, a->q_bias));
  KF_TRY(matrix(v, "self_attn.k_proj", (int64_t)a->kv_heads * a->d_qk, c->hidden, a->k_bias));
  KF_TRY(matrix(v, "self_attn.v_proj", (int64_t)a->kv_heads * a->d_v, c->hidden, a->v_bias));
  if (a->qk_norm) {
    KF_TRY(say(v, "self_attn.q_norm.weight", a->d_qk, 1));
    KF_TRY(say(v, "self_attn.k_norm.weight", a->d_qk, 1));
  }
  return KF_OK;
}

kf_status kf_weights_each(const kf_config *c, kf_weights_visit visit, void *user, kf_error *e) {
  visitor v = {visit, user, -1, e};
  KF_TRY(say(&v, "model.embed_tokens.weight", c->vocabulary, c->hidden));
  for (v.layer = 0; v.layer < c->layers; v.layer++) {
    const kf_layer_config *l = &c->layer[v.layer];
    const kf_attention_config *a = &l->attention;
    KF_TRY(say(&v, "input_layernorm.weight", c->hidden, 1));
    KF_TRY(a->kind == KF_LATENT ? each_latent(&v, c, a) : each_grouped(&v, c, a));
    KF_TRY(matrix(&v, "self_attn.o_proj", c->hidden, (int64_t)a->heads * a->d_v, a->o_bias));
    KF_TRY(say(&v, "post_attention_layernorm.weight", c->hidden, 1));
    KF_TRY(matrix(&v, "mlp.gate_proj", l->intermediate, c->hidden, l->mlp_bias));
    KF_TRY(matrix(&v, "mlp.up_proj", l->intermediate, c->hidden, l->mlp_bias));
    KF_TRY(matrix(&v, "mlp.down_proj", c->hidden, l->intermediate, l->mlp_bias));
  }
  v.layer = -1;
  KF_TRY(say(&v, "model.norm.weight", c->hidden, 1));
  return c->tied ? KF_OK : say(&v, "lm_head.weight", c->vocabulary, c->hidden);
}

static kf_status check_one(void *user, const char *name, int64_t rows, int64_t columns, kf_error *e) {
  const kf_weights *w = user;
  const kf_view *v = find(w, name);
  if (!v && w->config->tied && strcmp(name, "model.embed_tokens.weight") == 0) v = find(w, "lm_head.weight");
  return check_shape(w, name, v, rows, columns, e);
}

kf_status kf_weights_check(const kf_weights *w, kf_error *e) {
  return kf_weights_each(w->config, check_one, (void *)w, e);
}

static kf_status count_one(void *user, const char *name, int64_t rows, int64_t columns, kf_error *e) {
  (void)name, (void)e;
  *(int64_t *)user += rows * columns;
  return KF_OK;
}

int64_t kf_weights_parameters(const kf_weights *w) {
  int64_t sum = 0;
  kf_weights_each(w->config, count_one, &sum, NULL);
  return sum;
}
