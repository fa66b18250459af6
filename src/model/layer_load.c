/* Reads one layer's weights and packs them for the device. */
#include <stdlib.h>
#include <string.h>

#include "model/layer.h"

/* Several matrices of the same width stacked, with their biases. */
typedef struct stack {
  float *weight, *bias; /* [rows, columns], [rows] or NULL */
  int64_t rows, columns;
} stack;

typedef struct loader {
  const kf_weights *w;
  const kf_config *c;
  kf_device *d;
  int index;
  kf_error *e;
} loader;

static void stack_free(stack *s) {
  free(s->weight);
  free(s->bias);
  *s = (stack){0};
}

/* Appends "model.layers.N.NAME" (.weight and, if asked, .bias). */
static kf_status stack_add(const loader *l, stack *s, const char *name, int64_t rows, int64_t columns, bool bias) {
  float *more = NULL;
  KF_TRY(kf_weights_readf(l->w, rows, columns, &more, l->e, "model.layers.%d.%s.weight", l->index, name));
  if (!s->weight) {
    s->weight = more;
  } else {
    float *both = kf_alloc((size_t)(s->rows + rows) * (size_t)columns, sizeof *both, l->e);
    if (both) {
      memcpy(both, s->weight, (size_t)s->rows * (size_t)columns * sizeof *both);
      memcpy(both + s->rows * columns, more, (size_t)rows * (size_t)columns * sizeof *both);
    }
    free(more);
    free(s->weight);
    if (!(s->weight = both)) return KF_ERROR_MEMORY;
  }
  if (bias || s->bias) {
    float *all = kf_alloc((size_t)(s->rows + rows), sizeof *all, l->e), *own = NULL;
    kf_status status = all ? KF_OK : KF_ERROR_MEMORY;
    if (status == KF_OK && bias) status = kf_weights_readf(l->w, rows, 1, &own, l->e, "model.layers.%d.%s.bias", l->index, name);
    if (status == KF_OK && s->bias) memcpy(all, s->bias, (size_t)s->rows * sizeof *all);
    if (status == KF_OK && own) memcpy(all + s->rows, own, (size_t)rows * sizeof *all);
    free(own);
    free(s->bias);
    s->bias = all;
    KF_TRY(status);
  }
  s->rows += rows;
  s->columns = columns;
  return KF_OK;
}

static kf_status stack_pack(const loader *l, stack *s, kf_weight **out) {
  kf_status status = l->d->pack(l->d, s->weight, s->bias, s->rows, s->columns, out, l->e);
  stack_free(s);
  return status;
}

static kf_status load_matrix(const loader *l, const char *name, int64_t rows, int64_t columns, bool bias, kf_weight **out) {
  stack s = {0};
  kf_status status = stack_add(l, &s, name, rows, columns, bias);
  if (status == KF_OK) status = stack_pack(l, &s, out);
  stack_free(&s);
  return status;
}

/* "model.layers.N.NAME.weight" in the device's memory. */
static kf_status load_vector(const loader *l, const char *name, int64_t rows, int64_t columns, float **out) {
  float *read = NULL;
  KF_TRY(kf_weights_readf(l->w, rows, columns, &read, l->e, "model.layers.%d.%s.weight", l->index, name));
  kf_status status = kf_device_numbers(l->d, read, rows * columns, out, l->e);
  free(read);
  return status;
}

/* DeepSeek's rope rows (2i, 2i + 1) become (i, pairs + i); a bias is a matrix of one column. */
static kf_status deinterleave(float *rows, int pairs, int64_t columns, kf_error *e) {
  if (!rows || !pairs) return KF_OK;
  float *copy;
  KF_NEW(copy, 2 * (int64_t)pairs * columns, e);
  memcpy(copy, rows, 2 * (size_t)pairs * (size_t)columns * sizeof *copy);
  for (int i = 0; i < pairs; i++) {
    memcpy(rows + i * columns, copy + 2 * i * columns, (size_t)columns * sizeof *copy);
    memcpy(rows + (pairs + i) * columns, copy + (2 * i + 1) * columns, (size_t)columns * sizeof *copy);
  }
  free(copy);
  return KF_OK;
}

static kf_status load_query(const loader *l, const kf_attention_config *a, kf_layer *out) {
  int64_t rows = (int64_t)a->heads * a->d_qk, columns = a->q_rank ? a->q_rank : l->c->hidden;
  if (a->q_rank) KF_TRY(load_matrix(l, "self_attn.q_a_proj", a->q_rank, l->c->hidden, a->q_a_bias, &out->q_a));
  if (a->q_a_norm) KF_TRY(load_vector(l, "self_attn.q_a_layernorm", a->q_rank, 1, &out->q_a_norm));
  stack s = {0};
  kf_status status = stack_add(l, &s, a->q_rank ? "self_attn.q_b_proj" : "self_attn.q_proj", rows, columns, a->q_bias);
  int group = a->heads / a->kv_heads;
  for (int h = 0; a->rope_interleaved && h < a->heads && status == KF_OK; h++) {
    int nope = kf_attention_nope(a, h / group), pairs = (a->d_qk - nope) / 2;
    status = deinterleave(s.weight + ((int64_t)h * a->d_qk + nope) * columns, pairs, columns, l->e);
    if (status == KF_OK && s.bias) status = deinterleave(s.bias + (int64_t)h * a->d_qk + nope, pairs, 1, l->e);
  }
  if (status == KF_OK) status = stack_pack(l, &s, &out->q);
  stack_free(&s);
  return status;
}

static kf_status load_kv_a(const loader *l, const kf_attention_config *a, kf_layer *out) {
  char name[64] = "self_attn.";
  strcat(name, kf_weights_kv_a(l->c));
  stack s = {0};
  kf_status status = stack_add(l, &s, name, a->rank + kf_attention_rope_width(a), l->c->hidden, a->kv_a_bias);
  int64_t row = a->rank;
  for (int g = 0; a->rope_interleaved && g < a->rope_heads && status == KF_OK; g++) {
    status = deinterleave(s.weight + row * l->c->hidden, a->rope_pairs[g], l->c->hidden, l->e);
    if (status == KF_OK && s.bias) status = deinterleave(s.bias + row, a->rope_pairs[g], 1, l->e);
    row += 2 * a->rope_pairs[g];
  }
  if (status == KF_OK) status = stack_pack(l, &s, &out->kv_a);
  stack_free(&s);
  if (status == KF_OK && a->kv_a_norm) status = load_vector(l, "self_attn.kv_a_layernorm", a->rank, 1, &out->kv_a_norm);
  return status;
}

kf_status kf_layer_head_rows(kf_layer *l, kf_error *e) {
  const kf_attention_config *a = &l->config->attention;
  int64_t row = 0;
  KF_NEW(l->key_rows, a->kv_heads, e);
  KF_NEW(l->value_rows, a->kv_heads, e);
  for (int g = 0; g < a->kv_heads; g++) {
    l->key_rows[g] = (kf_head_rows){row, kf_attention_nope(a, g)};
    row += l->key_rows[g].count;
    l->value_rows[g] = (kf_head_rows){row, a->d_v};
    row += a->d_v;
  }
  return KF_OK;
}

static kf_status load_kv_b(const loader *l, const kf_attention_config *a, kf_layer *out) {
  KF_TRY(kf_layer_head_rows(out, l->e));
  stack s = {0};
  kf_status status = stack_add(l, &s, "self_attn.kv_b_proj", kf_attention_kv_b_rows(a), a->rank, a->kv_b_bias);
  if (status == KF_OK) status = l->d->plain(l->d, s.weight, s.rows, s.columns, &out->kv_b_plain, l->e);
  if (status == KF_OK) status = l->d->pack(l->d, s.weight, s.bias, s.rows, s.columns, &out->kv_b, l->e);
  if (status == KF_OK && s.bias) status = kf_device_numbers(l->d, s.bias, s.rows, &out->kv_b_bias, l->e);
  stack_free(&s);
  return status;
}

static kf_status load_attention(const loader *l, const kf_attention_config *a, kf_layer *out) {
  int64_t norm_rows = a->kind == KF_LATENT ? a->kv_heads : a->d_qk, norm_columns = a->kind == KF_LATENT ? a->d_qk : 1;
  if (a->qk_norm) {
    KF_TRY(load_vector(l, "self_attn.q_norm", norm_rows, norm_columns, &out->q_norm));
    KF_TRY(load_vector(l, "self_attn.k_norm", norm_rows, norm_columns, &out->k_norm));
  }
  if (a->kind == KF_LATENT) {
    KF_TRY(load_query(l, a, out));
    KF_TRY(load_kv_a(l, a, out));
    return load_kv_b(l, a, out);
  }
  stack s = {0};
  kf_status status = stack_add(l, &s, "self_attn.q_proj", (int64_t)a->heads * a->d_qk, l->c->hidden, a->q_bias);
  if (status == KF_OK) status = stack_add(l, &s, "self_attn.k_proj", (int64_t)a->kv_heads * a->d_qk, l->c->hidden, a->k_bias);
  if (status == KF_OK) status = stack_add(l, &s, "self_attn.v_proj", (int64_t)a->kv_heads * a->d_v, l->c->hidden, a->v_bias);
  if (status == KF_OK) status = stack_pack(l, &s, &out->q);
  stack_free(&s);
  return status;
}

static kf_status load_mlp(const loader *l, kf_layer *out) {
  int64_t f = out->config->intermediate;
  bool bias = out->config->mlp_bias;
  stack s = {0};
  kf_status status = stack_add(l, &s, "mlp.gate_proj", f, l->c->hidden, bias);
  if (status == KF_OK) status = stack_add(l, &s, "mlp.up_proj", f, l->c->hidden, bias);
  if (status == KF_OK) status = stack_pack(l, &s, &out->gate_up);
  stack_free(&s);
  KF_TRY(status);
  return load_matrix(l, "mlp.down_proj", l->c->hidden, f, bias, &out->down);
}

static kf_status load_all(const loader *l, kf_layer *out) {
  const kf_attention_config *a = &out->config->attention;
  KF_TRY(load_vector(l, "input_layernorm", l->c->hidden, 1, &out->input_norm));
  KF_TRY(load_vector(l, "post_attention_layernorm", l->c->hidden, 1, &out->post_norm));
  KF_TRY(load_attention(l, a, out));
  KF_TRY(load_matrix(l, "self_attn.o_proj", l->c->hidden, (int64_t)a->heads * a->d_v, a->o_bias, &out->o));
  return load_mlp(l, out);
}

kf_status kf_layer_load(const kf_weights *w, int index, kf_device *d, kf_layer *out, kf_error *e) {
  loader l = {w, w->config, d, index, e};
  *out = (kf_layer){.config = &w->config->layer[index]};
  kf_status s = load_all(&l, out);
  if (s != KF_OK) kf_layer_free(out, d);
  return s;
}

void kf_layer_free(kf_layer *l, kf_device *d) {
  float *vectors[] = {l->input_norm, l->post_norm, l->q_norm, l->k_norm, l->q_a_norm, l->kv_a_norm, l->kv_b_bias};
  kf_weight *weights[] = {l->q, l->q_a, l->kv_a, l->kv_b, l->kv_b_plain, l->o, l->gate_up, l->down};
  for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) d->release(d, vectors[i]);
  for (size_t i = 0; i < sizeof weights / sizeof *weights; i++)
    if (weights[i]) d->weight_free(d, weights[i]);
  free(l->key_rows);
  free(l->value_rows);
  *l = (kf_layer){0};
}

int64_t kf_layer_weight_bytes(const kf_layer *l, const kf_device *d) {
  const kf_weight *weights[] = {l->q, l->q_a, l->kv_a, l->kv_b_plain, l->o, l->gate_up, l->down};
  int64_t sum = 0;
  for (size_t i = 0; i < sizeof weights / sizeof *weights; i++)
    if (weights[i]) sum += (int64_t)d->weight_bytes(weights[i]);
  return sum;
}
