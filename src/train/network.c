#include "train/network.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train/network_impl.h"

/* ---------------------------------------------------------------------------------------------- memory */

static kf_status keep(kf_network *n, kf_kept *k, int64_t count, float **out, kf_error *e) {
  kf_device *d = n->device;
  if (count > k->capacity || !k->data) {
    d->release(d, k->data);
    *k = (kf_kept){0};
    KF_DEVICE_NEW(d, k->data, count, e);
    k->capacity = count;
  }
  *out = k->data;
  return KF_OK;
}

kf_status kf_work_take(kf_network *n, kf_work slot, int64_t count, float **out, kf_error *e) {
  return keep(n, &n->work[slot], count, out, e);
}

/* ---------------------------------------------------------------------------------------------- parameters of a layer */

typedef struct binder {
  kf_network *n;
  int layer; /* -1: the model's own */
  kf_error *e;
} binder;

static const kf_parameter *lookup(const binder *b, const char *name) {
  char full[256];
  if (b->layer < 0) return kf_parameters_find(b->n->parameters, name);
  snprintf(full, sizeof full, "model.layers.%d.%s", b->layer, name);
  return kf_parameters_find(b->n->parameters, full);
}

static void bind_vector(const binder *b, const char *name, kf_trained_vector *out) {
  const kf_parameter *p = lookup(b, name);
  *out = (kf_trained_vector){0};
  if (!p) return;
  out->w = b->n->parameters->value + p->at;
  if (p->trained) out->dw = b->n->parameters->gradient + p->at;
}

/* One matrix of the rows of several that stand one after another. A gradient is wanted when one of them is trained. */
static kf_status bind_stack(const binder *b, const char *const *names, int count, kf_trained_matrix *out) {
  kf_parameters *all = b->n->parameters;
  char name[128];
  int biases = 0;
  *out = (kf_trained_matrix){0};
  for (int i = 0; i < count; i++) {
    snprintf(name, sizeof name, "%s.weight", names[i]);
    const kf_parameter *w = lookup(b, name);
    if (!w) return kf_fail(b->e, KF_ERROR_INPUT, "layer %d has no %s to train", b->layer, name);
    if (i == 0) out->matrix = (kf_matrix){.k = w->columns};
    if (i == 0) out->matrix.w = (char *)all->compute + (size_t)w->at * (b->n->device->compute == KF_BF16 ? 2 : 4);
    if (w->trained && !out->dw) out->dw = all->gradient + w->at - out->matrix.n * w->columns;
    snprintf(name, sizeof name, "%s.bias", names[i]);
    const kf_parameter *bias = lookup(b, name);
    if (bias && !biases) out->matrix.bias = all->value + bias->at;
    if (bias && bias->trained && !out->dbias) out->dbias = all->gradient + bias->at - out->matrix.n;
    biases += bias != NULL;
    out->matrix.n += w->rows;
  }
  if (biases && biases != count)
    return kf_fail(b->e, KF_ERROR_INPUT, "layer %d has a bias on some of q, k and v only, which cannot be trained", b->layer);
  return KF_OK;
}

static kf_status bind_matrix(const binder *b, const char *name, kf_trained_matrix *out) {
  return bind_stack(b, &name, 1, out);
}

static kf_status bind_latent(const binder *b, kf_block *out) {
  const kf_attention_config *a = &out->config->attention;
  char kv_a[64];
  if (a->rope_interleaved)
    return kf_fail(b->e, KF_ERROR_INPUT, "layer %d keeps its rope rows interleaved, as DeepSeek does, which cannot be trained",
                   b->layer);
  snprintf(kv_a, sizeof kv_a, "self_attn.%s", kf_weights_kv_a(b->n->config));
  if (a->q_rank) KF_TRY(bind_matrix(b, "self_attn.q_a_proj", &out->q_a));
  KF_TRY(bind_matrix(b, a->q_rank ? "self_attn.q_b_proj" : "self_attn.q_proj", &out->q));
  KF_TRY(bind_matrix(b, kv_a, &out->kv_a));
  return bind_matrix(b, "self_attn.kv_b_proj", &out->kv_b);
}

static kf_status bind_block(const binder *b, kf_block *out) {
  static const char *const qkv[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"};
  static const char *const gate_up[] = {"mlp.gate_proj", "mlp.up_proj"};
  const struct {
    const char *name;
    kf_trained_vector *to;
  } vectors[] = {{"input_layernorm.weight", &out->input_norm},       {"post_attention_layernorm.weight", &out->post_norm},
                 {"self_attn.q_norm.weight", &out->q_norm},          {"self_attn.k_norm.weight", &out->k_norm},
                 {"self_attn.q_a_layernorm.weight", &out->q_a_norm}, {"self_attn.kv_a_layernorm.weight", &out->kv_a_norm}};
  out->config = &b->n->config->layer[b->layer];
  for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) bind_vector(b, vectors[i].name, vectors[i].to);
  KF_TRY(out->config->attention.kind == KF_LATENT ? bind_latent(b, out) : bind_stack(b, qkv, 3, &out->q));
  KF_TRY(bind_matrix(b, "self_attn.o_proj", &out->o));
  KF_TRY(bind_stack(b, gate_up, 2, &out->gate_up));
  return bind_matrix(b, "mlp.down_proj", &out->down);
}

kf_status kf_network_bind(kf_network *n, kf_error *e) {
  binder b = {n, 0, e};
  for (; b.layer < n->config->layers; b.layer++) KF_TRY(bind_block(&b, &n->block[b.layer]));
  b.layer = -1;
  KF_TRY(bind_matrix(&b, "model.embed_tokens", &n->embedding));
  bind_vector(&b, "model.norm.weight", &n->norm);
  return bind_matrix(&b, n->config->tied ? "model.embed_tokens" : "lm_head", &n->head);
}

kf_status kf_network_create(const kf_config *c, kf_device *d, kf_parameters *p, kf_network **out, kf_error *e) {
  kf_network *n;
  if (!d->matrix_backward) return kf_fail(e, KF_ERROR_INPUT, "the device %s does not train: use the CPU", d->name);
  KF_NEW(n, 1, e);
  n->device = d;
  n->config = c;
  n->parameters = p;
  kf_status s = kf_run_create(d, c, &n->run, e);
  if (s == KF_OK) s = (n->block = kf_alloc((size_t)c->layers, sizeof *n->block, e)) ? KF_OK : KF_ERROR_MEMORY;
  if (s == KF_OK) s = (n->saved = kf_alloc((size_t)c->layers, sizeof *n->saved, e)) ? KF_OK : KF_ERROR_MEMORY;
  if (s == KF_OK) s = kf_network_bind(n, e);
  if (s != KF_OK)
    kf_network_free(n);
  else
    *out = n;
  return s;
}

void kf_network_free(kf_network *n) {
  if (!n) return;
  kf_device *d = n->device;
  for (int i = 0; i < KF_WORKS; i++) d->release(d, n->work[i].data);
  for (int i = 0; n->saved && i < n->config->layers; i++) {
    d->release(d, n->saved[i].x.data);
    d->release(d, n->saved[i].out.data);
    d->release(d, n->saved[i].lse.data);
  }
  free(n->saved);
  free(n->block);
  d->release(d, n->position);
  free(n->placed);
  kf_run_free(n->run);
  free(n);
}

/* ---------------------------------------------------------------------------------------------- rotation */

/* Positions of the tokens within their sequences, which all layers share. */
static kf_status place(kf_network *n, const kf_tokens *t, kf_error *e) {
  kf_device *d = n->device;
  size_t bytes = (size_t)t->sequences * sizeof *n->placed;
  if (t->sequences == n->sequences && memcmp(n->placed, t->sequence, bytes) == 0) return KF_OK;
  free(n->placed);
  n->sequences = 0;
  KF_NEW(n->placed, t->sequences, e);
  d->release(d, n->position);
  n->position = NULL;
  KF_DEVICE_NEW(d, n->position, t->count, e);
  for (int i = 0; i < t->sequences; i++)
    for (int64_t j = 0; j < t->sequence[i].count; j++) n->position[t->sequence[i].first + j] = (int32_t)j;
  memcpy(n->placed, t->sequence, bytes);
  n->sequences = t->sequences;
  return KF_OK;
}

static kf_status rotate_rows(kf_network *n, const kf_attention_config *a, float *x, int64_t first, int64_t m, int64_t length,
                             int64_t stride, const kf_rope_block *blocks, int count, bool backward, kf_error *e) {
  const kf_rope_table *table;
  KF_TRY(kf_run_rope(n->run, &a->rope, length, &table, e));
  n->device->rope(n->device, x + first * stride, m, stride, blocks, count, table->cos, table->sin, a->rope.dim / 2,
                  n->position + first, backward);
  return KF_OK;
}

/* Frequencies that depend on a sequence's length are its own. */
kf_status kf_network_rotate(kf_network *n, const kf_tokens *t, const kf_attention_config *a, float *x, int64_t stride,
                            const kf_rope_block *blocks, int count, bool backward, kf_error *e) {
  bool own = a->rope.type == KF_ROPE_DYNAMIC || a->rope.type == KF_ROPE_LONGROPE;
  int64_t longest = 0;
  for (int i = 0; i < t->sequences; i++) {
    const kf_extent *s = &t->sequence[i];
    longest = s->count > longest ? s->count : longest;
    if (own) KF_TRY(rotate_rows(n, a, x, s->first, s->count, s->count, stride, blocks, count, backward, e));
  }
  return own ? KF_OK : rotate_rows(n, a, x, 0, t->count, longest, stride, blocks, count, backward, e);
}

/* ---------------------------------------------------------------------------------------------- a layer */

static kf_attention_shape shape_of(const kf_attention_config *a) {
  return (kf_attention_shape){
      .heads = a->heads, .kv_heads = a->kv_heads, .d_qk = a->d_qk, .d_v = a->d_v, .scale = a->scale, .window = a->window};
}

/* The passes of all sequences; g and d_out NULL for a forward. Freed by the caller. */
static kf_status make_passes(const kf_attention_config *a, const kf_tokens *t, const kf_projected *p, const kf_saved *saved,
                             const kf_projected *g, const float *d_out, kf_attention_pass **out, kf_error *e) {
  int64_t wide = (int64_t)a->heads * a->d_v;
  KF_NEW(*out, t->sequences, e);
  for (int i = 0; i < t->sequences; i++) {
    int64_t first = t->sequence[i].first;
    (*out)[i] = (kf_attention_pass){.m = t->sequence[i].count,
                                    .q = p->q + first * p->q_stride,
                                    .k = p->k + first * p->k_stride,
                                    .v = p->v + first * p->v_stride,
                                    .q_stride = p->q_stride,
                                    .k_stride = p->k_stride,
                                    .v_stride = p->v_stride,
                                    .out = saved->out.data + first * wide,
                                    .lse = saved->lse.data + first * a->heads};
    if (!g) continue;
    (*out)[i].d_out = d_out + first * wide;
    (*out)[i].dq = g->q + first * g->q_stride;
    (*out)[i].dk = g->k + first * g->k_stride;
    (*out)[i].dv = g->v + first * g->v_stride;
  }
  return KF_OK;
}

/* act [m, intermediate] of x [m, hidden]; the normed input and gate_up stay in their slots. */
static kf_status mlp_hidden(kf_network *n, const kf_block *b, const float *x, int64_t m, float **act, kf_error *e) {
  kf_device *d = n->device;
  int64_t hidden = n->config->hidden, f = b->config->intermediate;
  float *h, *gate_up;
  KF_TRY(kf_work_take(n, KF_WORK_MLP, m * hidden, &h, e));
  KF_TRY(kf_work_take(n, KF_WORK_GATE_UP, m * 2 * f, &gate_up, e));
  KF_TRY(kf_work_take(n, KF_WORK_ACT, m * f, act, e));
  d->rmsnorm(d, h, x, b->post_norm.w, m, hidden, n->config->eps);
  d->matrix(d, gate_up, h, &b->gate_up.matrix, m, false);
  d->swiglu_forward(d, *act, gate_up, m, f);
  return KF_OK;
}

kf_status kf_network_layer(kf_network *n, int layer, const kf_tokens *t, float *x, kf_error *e) {
  const kf_block *b = &n->block[layer];
  const kf_attention_config *a = &b->config->attention;
  kf_device *d = n->device;
  kf_saved *saved = &n->saved[layer];
  kf_attention_shape shape = shape_of(a);
  int64_t m = t->count, hidden = n->config->hidden;
  kf_projected p;
  kf_attention_pass *passes;
  float *kept, *h, *out, *lse, *act;
  KF_TRY(place(n, t, e));
  KF_TRY(keep(n, &saved->x, m * hidden, &kept, e));
  KF_TRY(keep(n, &saved->out, m * a->heads * a->d_v, &out, e));
  KF_TRY(keep(n, &saved->lse, m * a->heads, &lse, e));
  KF_TRY(kf_work_take(n, KF_WORK_H, m * hidden, &h, e));
  d->copy(d, kept, hidden, x, hidden, m, hidden, false);
  d->rmsnorm(d, h, x, b->input_norm.w, m, hidden, n->config->eps);
  KF_TRY(kf_project(n, b, t, h, &p, e));
  KF_TRY(make_passes(a, t, &p, saved, NULL, NULL, &passes, e));
  d->attention_forward(d, &shape, passes, t->sequences);
  free(passes);
  d->matrix(d, x, out, &b->o.matrix, m, true);
  KF_TRY(mlp_hidden(n, b, x, m, &act, e));
  d->matrix(d, x, act, &b->down.matrix, m, true);
  return kf_device_check(d, e);
}

static void back(kf_network *n, float *dx, const float *dy, const float *x, const kf_trained_matrix *w, int64_t m) {
  n->device->matrix_backward(n->device, dx, w->dw, w->dbias, dy, x, &w->matrix, m, false);
}

/* middle: the residual stream between attention and MLP. */
static kf_status mlp_backward(kf_network *n, const kf_block *b, const float *middle, int64_t m, float *dx, kf_error *e) {
  kf_device *d = n->device;
  int64_t hidden = n->config->hidden, f = b->config->intermediate;
  float *act, *d_act, *dh, *gate_up;
  KF_TRY(mlp_hidden(n, b, middle, m, &act, e));
  KF_TRY(kf_work_take(n, KF_WORK_D_ACT, m * f, &d_act, e));
  KF_TRY(kf_work_take(n, KF_WORK_D_H, m * hidden, &dh, e));
  gate_up = n->work[KF_WORK_GATE_UP].data;
  back(n, d_act, dx, act, &b->down, m);
  d->swiglu_backward(d, gate_up, d_act, gate_up, m, f);
  back(n, dh, gate_up, n->work[KF_WORK_MLP].data, &b->gate_up, m);
  d->rmsnorm_backward(d, dx, b->post_norm.dw, dh, middle, b->post_norm.w, m, hidden, n->config->eps, true);
  return KF_OK;
}

static kf_status attention_backward(kf_network *n, const kf_block *b, const kf_tokens *t, const kf_saved *saved, const float *h,
                                    const kf_projected *p, float *dx, kf_error *e) {
  const kf_attention_config *a = &b->config->attention;
  kf_device *d = n->device;
  kf_attention_shape shape = shape_of(a);
  int64_t m = t->count, hidden = n->config->hidden;
  float *d_out, *dh;
  kf_projected g;
  kf_attention_pass *passes;
  KF_TRY(kf_work_take(n, KF_WORK_D_OUT, m * a->heads * a->d_v, &d_out, e));
  KF_TRY(kf_work_take(n, KF_WORK_D_H, m * hidden, &dh, e));
  KF_TRY(kf_project_room(n, b, m, &g, e));
  back(n, d_out, dx, saved->out.data, &b->o, m);
  KF_TRY(make_passes(a, t, p, saved, &g, d_out, &passes, e));
  d->attention_backward(d, &shape, passes, t->sequences);
  free(passes);
  KF_TRY(kf_project_backward(n, b, t, h, &g, dh, e));
  d->rmsnorm_backward(d, dx, b->input_norm.dw, dh, saved->x.data, b->input_norm.w, m, hidden, n->config->eps, true);
  return KF_OK;
}

void kf_network_middle(kf_network *n, int layer, const kf_tokens *t, float *middle) {
  const kf_saved *saved = &n->saved[layer];
  int64_t hidden = n->config->hidden;
  n->device->copy(n->device, middle, hidden, saved->x.data, hidden, t->count, hidden, false);
  n->device->matrix(n->device, middle, saved->out.data, &n->block[layer].o.matrix, t->count, true);
}

kf_status kf_network_layer_backward(kf_network *n, int layer, const kf_tokens *t, float *dx, const float *d_middle, kf_error *e) {
  const kf_block *b = &n->block[layer];
  const kf_saved *saved = &n->saved[layer];
  kf_device *d = n->device;
  int64_t m = t->count, hidden = n->config->hidden;
  kf_projected p;
  float *h, *middle;
  KF_TRY(place(n, t, e));
  KF_TRY(kf_work_take(n, KF_WORK_H, m * hidden, &h, e));
  KF_TRY(kf_work_take(n, KF_WORK_MIDDLE, m * hidden, &middle, e));
  kf_network_middle(n, layer, t, middle);
  KF_TRY(mlp_backward(n, b, middle, m, dx, e));
  if (d_middle) d->copy(d, dx, hidden, d_middle, hidden, m, hidden, true);
  d->rmsnorm(d, h, saved->x.data, b->input_norm.w, m, hidden, n->config->eps);
  KF_TRY(kf_project(n, b, t, h, &p, e));
  KF_TRY(attention_backward(n, b, t, saved, h, &p, dx, e));
  return kf_device_check(d, e);
}

/* ---------------------------------------------------------------------------------------------- the whole */

static kf_status check_ids(const kf_network *n, const kf_tokens *t, kf_error *e) {
  for (int64_t i = 0; i < t->count; i++)
    if (t->ids[i] < 0 || t->ids[i] >= n->config->vocabulary)
      return kf_fail(e, KF_ERROR_INPUT, "token %d is outside the vocabulary of %d", (int)t->ids[i], n->config->vocabulary);
  return KF_OK;
}

kf_status kf_network_forward(kf_network *n, const kf_tokens *t, float **hidden, kf_error *e) {
  kf_device *d = n->device;
  int64_t width = n->config->hidden;
  const kf_parameter *embedding = kf_parameters_find(n->parameters, "model.embed_tokens.weight");
  KF_TRY(check_ids(n, t, e));
  KF_TRY(kf_work_take(n, KF_WORK_X, t->count * width, hidden, e));
  d->gather(d, *hidden, n->parameters->value + embedding->at, t->ids, t->count, width);
  for (int i = 0; i < n->config->layers; i++) KF_TRY(kf_network_layer(n, i, t, *hidden, e));
  return KF_OK;
}

kf_status kf_network_backward(kf_network *n, const kf_tokens *t, float *d_hidden, kf_error *e) {
  kf_device *d = n->device;
  for (int i = n->config->layers - 1; i >= 0; i--) KF_TRY(kf_network_layer_backward(n, i, t, d_hidden, NULL, e));
  if (n->embedding.dw) d->scatter_add(d, n->embedding.dw, d_hidden, t->ids, t->count, n->config->hidden);
  return kf_device_check(d, e);
}
