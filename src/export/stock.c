#include "export/stock.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "linalg/linalg.h"

/* w over the expected size of a layer's latents: a token's may be several times as large, and the norm is out of sight even then. */
static const double MARGIN = 4096;

/* ------------------------------------------------------------------------------------------------ the list */

static const struct {
  kf_stock_kind kind;
  const char *hf, *gguf; /* NULL: not there */
} rows[] = {
    {KF_STOCK_EMBEDDING, "model.embed_tokens.weight", "token_embd.weight"},
    {KF_STOCK_INPUT_NORM, "input_layernorm.weight", "attn_norm.weight"},
    {KF_STOCK_Q, "self_attn.q_proj.weight", "attn_q.weight"},
    {KF_STOCK_KV_A, "self_attn.kv_a_proj_with_mqa.weight", "attn_kv_a_mqa.weight"},
    {KF_STOCK_KV_A_NORM, "self_attn.kv_a_layernorm.weight", "attn_kv_a_norm.weight"},
    {KF_STOCK_KV_B, "self_attn.kv_b_proj.weight", NULL},
    {KF_STOCK_K_B, NULL, "attn_k_b.weight"},
    {KF_STOCK_V_B, NULL, "attn_v_b.weight"},
    {KF_STOCK_O, "self_attn.o_proj.weight", "attn_output.weight"},
    {KF_STOCK_POST_NORM, "post_attention_layernorm.weight", "ffn_norm.weight"},
    {KF_STOCK_GATE, "mlp.gate_proj.weight", "ffn_gate.weight"},
    {KF_STOCK_UP, "mlp.up_proj.weight", "ffn_up.weight"},
    {KF_STOCK_DOWN, "mlp.down_proj.weight", "ffn_down.weight"},
    {KF_STOCK_NORM, "model.norm.weight", "output_norm.weight"},
    {KF_STOCK_HEAD, "lm_head.weight", "output.weight"},
};
enum { ROWS = sizeof rows / sizeof *rows };

static bool in_layer(kf_stock_kind k) {
  return k >= KF_STOCK_INPUT_NORM;
}

static void set_shape(kf_stock_tensor *t, int dims, int64_t a, int64_t b, int64_t c) {
  t->dims = dims;
  t->shape[0] = a;
  t->shape[1] = b;
  t->shape[2] = c;
}

static void shape(const kf_stock *s, kf_stock_tensor *t) {
  const kf_config *c = s->config;
  int64_t d = c->hidden, h = c->heads;
  switch (t->kind) {
  case KF_STOCK_EMBEDDING:
  case KF_STOCK_HEAD: set_shape(t, 2, c->vocabulary, d, 1); break;
  case KF_STOCK_NORM:
  case KF_STOCK_INPUT_NORM:
  case KF_STOCK_POST_NORM: set_shape(t, 1, d, 1, 1); break;
  case KF_STOCK_Q: set_shape(t, 2, h * (s->nope + s->rope.dim), d, 1); break;
  case KF_STOCK_KV_A: set_shape(t, 2, s->rank + s->rope.dim, d, 1); break;
  case KF_STOCK_KV_A_NORM: set_shape(t, 1, s->rank, 1, 1); break;
  case KF_STOCK_KV_B: set_shape(t, 2, h * (s->nope + s->v), s->rank, 1); break;
  case KF_STOCK_K_B: set_shape(t, 3, h, s->rank, s->nope); break;
  case KF_STOCK_V_B: set_shape(t, 3, h, s->v, s->rank); break;
  case KF_STOCK_O: set_shape(t, 2, d, h * s->v, 1); break;
  case KF_STOCK_GATE:
  case KF_STOCK_UP: set_shape(t, 2, c->layer[t->layer].intermediate, d, 1); break;
  case KF_STOCK_DOWN: set_shape(t, 2, d, c->layer[t->layer].intermediate, 1); break;
  }
}

static kf_status visit_row(const kf_stock *s, int row, int layer, kf_stock_visit visit, void *user, kf_error *e) {
  kf_stock_tensor t = {.kind = rows[row].kind, .layer = layer};
  const char *name = s->gguf ? rows[row].gguf : rows[row].hf;
  if (!name || (t.kind == KF_STOCK_HEAD && !s->head)) return KF_OK;
  if (layer < 0)
    snprintf(t.name, sizeof t.name, "%s", name);
  else
    snprintf(t.name, sizeof t.name, s->gguf ? "blk.%d.%s" : "model.layers.%d.%s", layer, name);
  shape(s, &t);
  return visit(user, &t, e);
}

kf_status kf_stock_each(const kf_stock *s, kf_stock_visit visit, void *user, kf_error *e) {
  KF_TRY(visit_row(s, 0, -1, visit, user, e)); /* the embedding */
  for (int layer = 0; layer < s->config->layers; layer++)
    for (int row = 0; row < ROWS; row++)
      if (in_layer(rows[row].kind)) KF_TRY(visit_row(s, row, layer, visit, user, e));
  for (int row = 1; row < ROWS; row++)
    if (!in_layer(rows[row].kind)) KF_TRY(visit_row(s, row, -1, visit, user, e));
  return KF_OK;
}

/* ------------------------------------------------------------------------------------------------ attention */

typedef struct view {
  const kf_stock *s;
  const kf_attention_config *a;
  int layer, nope, pairs; /* of this layer */
  int64_t hidden;
} view;

static view look(const kf_stock *s, int layer) {
  const kf_attention_config *a = &s->config->layer[layer].attention;
  return (view){s, a, layer, kf_attention_nope(a, 0), a->rope_pairs[0], s->config->hidden};
}

static void scale_row(const float *from, double by, int64_t n, float *to) {
  for (int64_t i = 0; i < n; i++) to[i] = (float)(by * (double)from[i]);
}

/* Rope rows from half-split (pair i: i and i + pairs) to the table's slots, interleaved (slot j: 2 j and 2 j + 1). */
static void place_rope(const view *v, const float *from, double by, float *to) {
  for (int i = 0; i < v->pairs; i++) {
    int64_t slot = v->a->rope_index[i] / v->s->stride * v->s->spread;
    scale_row(from + i * v->hidden, by, v->hidden, to + 2 * slot * v->hidden);
    scale_row(from + (i + v->pairs) * v->hidden, by, v->hidden, to + (2 * slot + 1) * v->hidden);
  }
}

kf_status kf_stock_query(const kf_stock *stock, int layer, float **out, kf_error *e) {
  const kf_weights *w = stock->weights;
  const kf_attention_config *a = &stock->config->layer[layer].attention;
  int64_t rows = (int64_t)a->heads * a->d_qk, hidden = stock->config->hidden;
  if (!a->q_rank) return kf_weights_readf(w, rows, hidden, out, e, "model.layers.%d.self_attn.q_proj.weight", layer);
  float *down = NULL, *up = NULL, *full = kf_alloc((size_t)rows * (size_t)hidden, sizeof *full, e);
  kf_status s = full ? KF_OK : KF_ERROR_MEMORY;
  if (s == KF_OK) s = kf_weights_readf(w, a->q_rank, hidden, &down, e, "model.layers.%d.self_attn.q_a_proj.weight", layer);
  if (s == KF_OK) s = kf_weights_readf(w, rows, a->q_rank, &up, e, "model.layers.%d.self_attn.q_b_proj.weight", layer);
  if (s == KF_OK) kf_gemm_f32(false, false, rows, hidden, a->q_rank, up, down, full);
  free(down);
  free(up);
  if (s != KF_OK)
    free(full);
  else
    *out = full;
  return s;
}

/* to: zeroed [heads (nope + rope), hidden]. What the graph does not scale goes into the query. */
static kf_status make_q(const view *v, float *to, kf_error *e) {
  const kf_stock *s = v->s;
  float *q;
  double by = (double)v->a->scale * sqrt(s->nope + s->rope.dim) / s->score_gain;
  KF_TRY(kf_stock_query(s, v->layer, &q, e));
  for (int64_t h = 0; h < v->a->heads; h++) {
    const float *from = q + h * v->a->d_qk * v->hidden;
    float *head = to + h * (s->nope + s->rope.dim) * v->hidden;
    scale_row(from, by, v->nope * v->hidden, head);
    place_rope(v, from + v->nope * v->hidden, by * s->rope_gain, head + s->nope * v->hidden);
  }
  free(q);
  return KF_OK;
}

/* w of a neutralised norm: the margin times the power of two next to the latents' expected size, rms(c) for inputs x g with x of
 * independent numbers of size 1 and g the input norm's weight. kv_a: latent rows [rank, hidden] */
static kf_status neutral_weight(const view *v, const float *kv_a, double *out, kf_error *e) {
  float *g;
  double sum = 0;
  KF_TRY(kf_weights_readf(v->s->weights, v->hidden, 1, &g, e, "model.layers.%d.input_layernorm.weight", v->layer));
  for (int64_t l = 0; l < v->a->rank; l++)
    for (int64_t i = 0; i < v->hidden; i++) sum += pow((double)kv_a[l * v->hidden + i] * (double)g[i], 2);
  free(g);
  *out = MARGIN * (sum > 0 ? exp2(round(0.5 * log2(sum / v->s->rank))) : 1);
  return KF_OK;
}

/* x [rows, columns] becomes left x or x right in fp64, the other being NULL. */
static kf_status multiply(const double *left, const double *right, int64_t rows, int64_t columns, float *x, kf_error *e) {
  double *from = kf_alloc((size_t)(2 * rows * columns), sizeof *from, e), *to = from + rows * columns;
  if (!from) return KF_ERROR_MEMORY;
  for (int64_t i = 0; i < rows * columns; i++) from[i] = (double)x[i];
  kf_gemm(false, false, rows, columns, left ? rows : columns, 1, left ? left : from, left ? from : right, 0, to);
  for (int64_t i = 0; i < rows * columns; i++) x[i] = (float)to[i];
  free(from);
  return KF_OK;
}

static kf_status read_kv_a(const view *v, float **out, kf_error *e) {
  KF_TRY(kf_weights_readf(v->s->weights, v->a->rank + 2 * v->pairs, v->hidden, out, e, "model.layers.%d.self_attn.%s.weight",
                          v->layer, kf_weights_kv_a(v->s->config)));
  kf_status s = v->s->basis ? multiply(v->s->basis[v->layer].to, NULL, v->a->rank, v->hidden, *out, e) : KF_OK;
  if (s != KF_OK) free(*out);
  return s;
}

static kf_status read_kv_b(const view *v, float **out, kf_error *e) {
  int64_t rows = kf_attention_kv_b_rows(v->a);
  KF_TRY(kf_weights_readf(v->s->weights, rows, v->a->rank, out, e, "model.layers.%d.self_attn.kv_b_proj.weight", v->layer));
  kf_status s = v->s->basis ? multiply(NULL, v->s->basis[v->layer].from, rows, v->a->rank, *out, e) : KF_OK;
  if (s != KF_OK) free(*out);
  return s;
}

/* to: zeroed [rank + rope, hidden]. A real norm, over the layer's own rank and with its own eps, is what the norm over the
 * filled-up rank with the target's eps gives for latents scaled so. */
static kf_status make_kv_a(const view *v, float *to, kf_error *e) {
  const kf_stock *s = v->s;
  float *kv_a;
  double weight = 1;
  KF_TRY(read_kv_a(v, &kv_a, e));
  kf_status status = v->a->kv_a_norm ? KF_OK : neutral_weight(v, kv_a, &weight, e);
  double by = v->a->kv_a_norm ? sqrt(s->eps / (double)v->a->latent_eps * s->rank / v->a->rank) : sqrt(s->eps) / weight;
  if (status == KF_OK) {
    scale_row(kv_a, by, v->a->rank * v->hidden, to);
    place_rope(v, kv_a + v->a->rank * v->hidden, 1, to + s->rank * v->hidden);
  }
  free(kv_a);
  return status;
}

/* to: zeroed [rank] */
static kf_status make_kv_a_norm(const view *v, float *to, kf_error *e) {
  float *from;
  double weight = 1;
  if (v->a->kv_a_norm) {
    KF_TRY(kf_weights_readf(v->s->weights, v->a->rank, 1, &from, e, "model.layers.%d.self_attn.kv_a_layernorm.weight", v->layer));
    scale_row(from, sqrt((double)v->a->rank / v->s->rank), v->a->rank, to);
    free(from);
    return KF_OK;
  }
  KF_TRY(read_kv_a(v, &from, e));
  kf_status status = neutral_weight(v, from, &weight, e);
  for (int i = 0; i < v->s->rank; i++) to[i] = (float)weight;
  free(from);
  return status;
}

/* kv_b's rows, once a query head: all of them, the keys transposed, or the values. to: zeroed */
static kf_status make_kv_b(const view *v, kf_stock_kind kind, float *to, kf_error *e) {
  const kf_stock *s = v->s;
  const kf_attention_config *a = v->a;
  float *kv_b;
  KF_TRY(read_kv_b(v, &kv_b, e));
  for (int64_t h = 0; h < a->heads; h++) {
    const float *keys = kv_b + h / (a->heads / a->kv_heads) * (v->nope + s->v) * a->rank;
    for (int64_t i = 0; i < v->nope && kind != KF_STOCK_V_B; i++)
      for (int64_t l = 0; l < a->rank; l++)
        to[kind == KF_STOCK_K_B ? (h * s->rank + l) * s->nope + i : (h * (s->nope + s->v) + i) * s->rank + l] =
            keys[i * a->rank + l];
    for (int64_t i = 0; i < s->v && kind != KF_STOCK_K_B; i++) {
      int64_t row = kind == KF_STOCK_V_B ? h * s->v + i : h * (s->nope + s->v) + s->nope + i;
      memcpy(to + row * s->rank, keys + (v->nope + i) * a->rank, (size_t)a->rank * sizeof *to);
    }
  }
  free(kv_b);
  return KF_OK;
}

static kf_status make_attention(const kf_stock *s, const kf_stock_tensor *t, float **out, kf_error *e) {
  view v = look(s, t->layer);
  float *to = kf_alloc((size_t)t->shape[0] * (size_t)t->shape[1] * (size_t)t->shape[2], sizeof *to, e);
  if (!to) return KF_ERROR_MEMORY;
  kf_status status = t->kind == KF_STOCK_Q           ? make_q(&v, to, e)
                     : t->kind == KF_STOCK_KV_A      ? make_kv_a(&v, to, e)
                     : t->kind == KF_STOCK_KV_A_NORM ? make_kv_a_norm(&v, to, e)
                                                     : make_kv_b(&v, t->kind, to, e);
  if (status != KF_OK)
    free(to);
  else
    *out = to;
  return status;
}

/* ------------------------------------------------------------------------------------------------ the rest */

/* The converted model's name of a tensor that is only scaled, and by what. */
static const char *source_name(const kf_stock *s, const kf_stock_tensor *t, char name[96], double *by) {
  for (int i = 0; i < ROWS; i++) {
    if (rows[i].kind != t->kind) continue;
    if (in_layer(t->kind))
      snprintf(name, 96, "model.layers.%d.%s", t->layer, rows[i].hf);
    else
      snprintf(name, 96, "%s", rows[i].hf);
  }
  bool writes = t->kind == KF_STOCK_EMBEDDING || t->kind == KF_STOCK_O || t->kind == KF_STOCK_DOWN; /* to the residual stream */
  *by = writes ? s->stream : 1;
  return t->kind == KF_STOCK_HEAD && s->config->tied ? "model.embed_tokens.weight" : name;
}

static bool is_made(const kf_stock_tensor *t) {
  return t->kind >= KF_STOCK_Q && t->kind <= KF_STOCK_V_B;
}

const char *kf_stock_unchanged(const kf_stock *s, const kf_stock_tensor *t, char name[96]) {
  double by;
  const char *found = source_name(s, t, name, &by);
  return is_made(t) || by != 1 ? NULL : found;
}

kf_status kf_stock_read(const kf_stock *s, const kf_stock_tensor *t, float **out, kf_error *e) {
  char room[96];
  double by;
  if (is_made(t)) return make_attention(s, t, out, e);
  const char *name = source_name(s, t, room, &by);
  KF_TRY(kf_weights_read(s->weights, name, t->shape[0], t->shape[1], out, e));
  if (by != 1) scale_row(*out, by, t->shape[0] * t->shape[1], *out);
  return KF_OK;
}
