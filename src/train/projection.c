/* From the normed input of a layer to the queries, keys and values that it attends with, and back. */
#include <stdlib.h>

#include "train/network_impl.h"

static void project(kf_network *n, float *y, const float *x, const kf_trained_matrix *w, int64_t m) {
  n->device->matrix(n->device, y, x, &w->matrix, m, false);
}

static void back(kf_network *n, float *dx, const float *dy, const float *x, const kf_trained_matrix *w, int64_t m, bool add) {
  n->device->matrix_backward(n->device, dx, w->dw, w->dbias, dy, x, &w->matrix, m, add);
}

static void copy(kf_network *n, float *to, int64_t to_stride, const float *from, int64_t from_stride, int64_t m,
                 int64_t columns) {
  n->device->copy(n->device, to, to_stride, from, from_stride, m, columns, false);
}

static void add(kf_network *n, float *to, int64_t to_stride, const float *from, int64_t from_stride, int64_t m, int64_t columns) {
  n->device->copy(n->device, to, to_stride, from, from_stride, m, columns, true);
}

/* ---------------------------------------------------------------------------------------------- grouped */

static int64_t grouped_width(const kf_attention_config *a) {
  return (int64_t)(a->heads + a->kv_heads) * a->d_qk + (int64_t)a->kv_heads * a->d_v;
}

static kf_projected grouped_parts(const kf_attention_config *a, float *qkv) {
  int64_t width = grouped_width(a);
  float *k = qkv + (int64_t)a->heads * a->d_qk;
  return (kf_projected){qkv, k, k + (int64_t)a->kv_heads * a->d_qk, width, width, width};
}

static kf_status rotate_grouped(kf_network *n, const kf_tokens *t, const kf_attention_config *a, float *qkv, bool backward,
                                kf_error *e) {
  kf_rope_block *blocks;
  int count = a->heads + a->kv_heads;
  if (!a->rope_pairs[0]) return KF_OK; /* a NoPE layer */
  KF_NEW(blocks, count, e);
  for (int h = 0; h < count; h++) blocks[h] = (kf_rope_block){.offset = h * a->d_qk, .pairs = a->d_qk / 2};
  kf_status s = kf_network_rotate(n, t, a, qkv, grouped_width(a), blocks, count, backward, e);
  free(blocks);
  return s;
}

static kf_status project_grouped(kf_network *n, const kf_block *b, const kf_tokens *t, const float *h, kf_projected *out,
                                 kf_error *e) {
  const kf_attention_config *a = &b->config->attention;
  kf_device *d = n->device;
  int64_t m = t->count, width = grouped_width(a);
  float *qkv, *raw, eps = n->config->eps;
  KF_TRY(kf_work_take(n, KF_WORK_QKV, m * width, &qkv, e));
  project(n, qkv, h, &b->q, m);
  *out = grouped_parts(a, qkv);
  if (a->qk_norm) {
    KF_TRY(kf_work_take(n, KF_WORK_RAW, m * width, &raw, e));
    copy(n, raw, width, qkv, width, m, width);
    d->head_norm(d, out->q, m, width, a->heads, a->d_qk, b->q_norm.w, 1, eps);
    d->head_norm(d, out->k, m, width, a->kv_heads, a->d_qk, b->k_norm.w, 1, eps);
  }
  return rotate_grouped(n, t, a, qkv, false, e);
}

static kf_status project_grouped_backward(kf_network *n, const kf_block *b, const kf_tokens *t, const float *h,
                                          const kf_projected *g, float *dh, kf_error *e) {
  const kf_attention_config *a = &b->config->attention;
  kf_device *d = n->device;
  int64_t m = t->count, width = grouped_width(a);
  float eps = n->config->eps;
  KF_TRY(rotate_grouped(n, t, a, g->q, true, e));
  if (a->qk_norm) {
    kf_projected raw = grouped_parts(a, n->work[KF_WORK_RAW].data);
    d->head_norm_backward(d, g->q, width, b->q_norm.dw, raw.q, width, m, a->heads, a->d_qk, b->q_norm.w, 1, eps);
    d->head_norm_backward(d, g->k, width, b->k_norm.dw, raw.k, width, m, a->kv_heads, a->d_qk, b->k_norm.w, 1, eps);
  }
  back(n, dh, g->q, h, &b->q, m, false);
  return KF_OK;
}

/* ---------------------------------------------------------------------------------------------- latent, expanded */

static int pairs_of(const kf_attention_config *a, int g) {
  return a->rope_pairs[a->rope_heads == 1 ? 0 : g];
}

static const int32_t *index_of(const kf_attention_config *a, int g) {
  const int32_t *index = a->rope_index;
  for (int i = 0; a->rope_heads > 1 && i < g; i++) index += a->rope_pairs[i];
  return index;
}

static int64_t kv_width(const kf_attention_config *a) {
  return (int64_t)a->kv_heads * (a->d_qk + a->d_v);
}

/* The ends of `heads` heads that stand side by side in rows of `stride`: the rotated part of each. */
static kf_status rotate_heads(kf_network *n, const kf_tokens *t, const kf_attention_config *a, float *x, int64_t stride,
                              int heads, bool backward, kf_error *e) {
  kf_rope_block *blocks;
  KF_NEW(blocks, heads, e);
  for (int h = 0; h < heads; h++) {
    int g = h / (heads / a->kv_heads), pairs = pairs_of(a, g);
    blocks[h] = (kf_rope_block){h * a->d_qk + a->d_qk - 2 * pairs, pairs, index_of(a, g)};
  }
  kf_status s = kf_network_rotate(n, t, a, x, stride, blocks, heads, backward, e);
  free(blocks);
  return s;
}

static kf_status latent_query(kf_network *n, const kf_block *b, const kf_tokens *t, const float *h, float **q, kf_error *e) {
  const kf_attention_config *a = &b->config->attention;
  kf_device *d = n->device;
  int64_t m = t->count, width = (int64_t)a->heads * a->d_qk;
  float *low_raw, *low, *raw;
  if (a->q_rank) {
    KF_TRY(kf_work_take(n, KF_WORK_LOW_RAW, m * a->q_rank, &low_raw, e));
    KF_TRY(kf_work_take(n, KF_WORK_LOW, m * a->q_rank, &low, e));
    project(n, low_raw, h, &b->q_a, m);
    if (a->q_a_norm)
      d->rmsnorm(d, low, low_raw, b->q_a_norm.w, m, a->q_rank, a->latent_eps);
    else
      copy(n, low, a->q_rank, low_raw, a->q_rank, m, a->q_rank);
    h = low;
  }
  KF_TRY(kf_work_take(n, KF_WORK_Q, m * width, q, e));
  project(n, *q, h, &b->q, m);
  if (a->qk_norm) {
    KF_TRY(kf_work_take(n, KF_WORK_Q_RAW, m * width, &raw, e));
    copy(n, raw, width, *q, width, m, width);
    d->head_norm(d, *q, m, width, a->heads, a->d_qk, b->q_norm.w, a->kv_heads, n->config->eps);
  }
  return rotate_heads(n, t, a, *q, width, a->heads, false, e);
}

static kf_status latent_query_backward(kf_network *n, const kf_block *b, const kf_tokens *t, const float *h, float *dq, float *dh,
                                       kf_error *e) {
  const kf_attention_config *a = &b->config->attention;
  kf_device *d = n->device;
  int64_t m = t->count, width = (int64_t)a->heads * a->d_qk;
  float *d_low;
  KF_TRY(rotate_heads(n, t, a, dq, width, a->heads, true, e));
  if (a->qk_norm)
    d->head_norm_backward(d, dq, width, b->q_norm.dw, n->work[KF_WORK_Q_RAW].data, width, m, a->heads, a->d_qk, b->q_norm.w,
                          a->kv_heads, n->config->eps);
  if (!a->q_rank) {
    back(n, dh, dq, h, &b->q, m, false);
    return KF_OK;
  }
  KF_TRY(kf_work_take(n, KF_WORK_D_LOW, m * a->q_rank, &d_low, e));
  back(n, d_low, dq, n->work[KF_WORK_LOW].data, &b->q, m, false);
  if (a->q_a_norm)
    d->rmsnorm_backward(d, d_low, b->q_a_norm.dw, d_low, n->work[KF_WORK_LOW_RAW].data, b->q_a_norm.w, m, a->q_rank,
                        a->latent_eps, false);
  back(n, dh, d_low, h, &b->q_a, m, false);
  return KF_OK;
}

/* The norm's weight for the whole key of each KV head, or its gradient added back: under a shared rope key the first head's
 * row counts for the rope columns of all. */
static kf_status key_norm(kf_network *n, const kf_block *b, float **w, kf_error *e) {
  const kf_attention_config *a = &b->config->attention;
  int64_t all = (int64_t)a->kv_heads * a->d_qk;
  KF_TRY(kf_work_take(n, KF_WORK_K_NORM, all, w, e));
  copy(n, *w, all, b->k_norm.w, all, 1, all);
  for (int g = 1; a->rope_heads == 1 && g < a->kv_heads; g++) {
    int nope = kf_attention_nope(a, g);
    copy(n, *w + (int64_t)g * a->d_qk + nope, all, b->k_norm.w + nope, all, 1, a->d_qk - nope);
  }
  return KF_OK;
}

static void key_norm_backward(kf_network *n, const kf_attention_config *a, float *to, const float *from) {
  int64_t all = (int64_t)a->kv_heads * a->d_qk;
  for (int g = 0; g < a->kv_heads; g++) {
    int64_t own = a->rope_heads == 1 && g > 0 ? kf_attention_nope(a, g) : a->d_qk, head = (int64_t)g * a->d_qk;
    add(n, to + head, all, from + head, all, 1, own);
    if (own < a->d_qk) add(n, to + own, all, from + head + own, all, 1, a->d_qk - own);
  }
}

/* Every KV head's [nope | rope] key and value from rows of kv_b and of [latent | rope keys]; or, backward, their gradients
 * added up where they came from (d_row's rope columns only). */
static void expand(kf_network *n, const kf_attention_config *a, float *kv, const float *kv_b, const float *row, int64_t m) {
  int64_t rows = kf_attention_kv_b_rows(a), width = a->rank + kf_attention_rope_width(a), stride = kv_width(a);
  float *k = kv, *v = k + (int64_t)a->kv_heads * a->d_qk;
  const float *rope = row + a->rank;
  for (int g = 0; g < a->kv_heads; g++, k += a->d_qk, v += a->d_v) {
    int nope = kf_attention_nope(a, g);
    copy(n, k, stride, kv_b, rows, m, nope);
    copy(n, k + nope, stride, rope, width, m, a->d_qk - nope);
    copy(n, v, stride, kv_b + nope, rows, m, a->d_v);
    kv_b += nope + a->d_v;
    if (a->rope_heads > 1) rope += a->d_qk - nope;
  }
}

static void expand_backward(kf_network *n, const kf_attention_config *a, const float *d_kv, float *d_kv_b, float *d_row,
                            int64_t m) {
  int64_t rows = kf_attention_kv_b_rows(a), width = a->rank + kf_attention_rope_width(a), stride = kv_width(a);
  const float *k = d_kv, *v = k + (int64_t)a->kv_heads * a->d_qk;
  float *rope = d_row + a->rank;
  for (int g = 0; g < a->kv_heads; g++, k += a->d_qk, v += a->d_v) {
    int nope = kf_attention_nope(a, g);
    copy(n, d_kv_b, rows, k, stride, m, nope);
    copy(n, d_kv_b + nope, rows, v, stride, m, a->d_v);
    (g == 0 || a->rope_heads > 1 ? copy : add)(n, rope, width, k + nope, stride, m, a->d_qk - nope);
    d_kv_b += nope + a->d_v;
    if (a->rope_heads > 1) rope += a->d_qk - nope;
  }
}

static kf_status project_latent(kf_network *n, const kf_block *b, const kf_tokens *t, const float *h, kf_projected *out,
                                kf_error *e) {
  const kf_attention_config *a = &b->config->attention;
  kf_device *d = n->device;
  int64_t m = t->count, width = a->rank + kf_attention_rope_width(a), stride = kv_width(a);
  float *q, *row, *latent, *kv_b, *kv, *raw, *norm;
  KF_TRY(latent_query(n, b, t, h, &q, e));
  KF_TRY(kf_work_take(n, KF_WORK_ROW, m * width, &row, e));
  KF_TRY(kf_work_take(n, KF_WORK_LATENT, m * a->rank, &latent, e));
  KF_TRY(kf_work_take(n, KF_WORK_KV_B, m * kf_attention_kv_b_rows(a), &kv_b, e));
  KF_TRY(kf_work_take(n, KF_WORK_KV, m * stride, &kv, e));
  project(n, row, h, &b->kv_a, m);
  copy(n, latent, a->rank, row, width, m, a->rank);
  if (a->kv_a_norm) d->rmsnorm(d, latent, latent, b->kv_a_norm.w, m, a->rank, a->latent_eps);
  project(n, kv_b, latent, &b->kv_b, m);
  expand(n, a, kv, kv_b, row, m);
  if (a->qk_norm) {
    KF_TRY(kf_work_take(n, KF_WORK_KV_RAW, m * stride, &raw, e));
    copy(n, raw, stride, kv, stride, m, stride);
    KF_TRY(key_norm(n, b, &norm, e));
    d->head_norm(d, kv, m, stride, a->kv_heads, a->d_qk, norm, a->kv_heads, n->config->eps);
  }
  *out = (kf_projected){q, kv, kv + (int64_t)a->kv_heads * a->d_qk, (int64_t)a->heads * a->d_qk, stride, stride};
  return rotate_heads(n, t, a, kv, stride, a->kv_heads, false, e);
}

static kf_status key_norm_gradient(kf_network *n, const kf_block *b, int64_t m, float *dk, kf_error *e) {
  const kf_attention_config *a = &b->config->attention;
  kf_device *d = n->device;
  int64_t weights = (int64_t)a->kv_heads * a->d_qk, stride = kv_width(a);
  float *dw = NULL;
  if (b->k_norm.dw) {
    KF_TRY(kf_work_take(n, KF_WORK_D_K_NORM, weights, &dw, e));
    d->zero(d, dw, weights);
  }
  d->head_norm_backward(d, dk, stride, dw, n->work[KF_WORK_KV_RAW].data, stride, m, a->kv_heads, a->d_qk,
                        n->work[KF_WORK_K_NORM].data, a->kv_heads, n->config->eps);
  if (dw) key_norm_backward(n, a, b->k_norm.dw, dw);
  return KF_OK;
}

static kf_status project_latent_backward(kf_network *n, const kf_block *b, const kf_tokens *t, const float *h,
                                         const kf_projected *g, float *dh, kf_error *e) {
  const kf_attention_config *a = &b->config->attention;
  kf_device *d = n->device;
  int64_t m = t->count, width = a->rank + kf_attention_rope_width(a);
  float *d_row, *d_latent, *d_kv_b, *latent;
  KF_TRY(latent_query_backward(n, b, t, h, g->q, dh, e));
  KF_TRY(kf_work_take(n, KF_WORK_D_ROW, m * width, &d_row, e));
  KF_TRY(kf_work_take(n, KF_WORK_D_LATENT, m * a->rank, &d_latent, e));
  KF_TRY(kf_work_take(n, KF_WORK_D_KV_B, m * kf_attention_kv_b_rows(a), &d_kv_b, e));
  KF_TRY(rotate_heads(n, t, a, g->k, g->k_stride, a->kv_heads, true, e));
  if (a->qk_norm) KF_TRY(key_norm_gradient(n, b, m, g->k, e));
  expand_backward(n, a, g->k, d_kv_b, d_row, m);
  latent = n->work[KF_WORK_LATENT].data;
  back(n, d_latent, d_kv_b, latent, &b->kv_b, m, false);
  if (a->kv_a_norm) { /* the norm's input is the row's own latent */
    copy(n, latent, a->rank, n->work[KF_WORK_ROW].data, width, m, a->rank);
    d->rmsnorm_backward(d, d_latent, b->kv_a_norm.dw, d_latent, latent, b->kv_a_norm.w, m, a->rank, a->latent_eps, false);
  }
  copy(n, d_row, width, d_latent, a->rank, m, a->rank);
  back(n, dh, d_row, h, &b->kv_a, m, true);
  return KF_OK;
}

/* ---------------------------------------------------------------------------------------------- either */

kf_status kf_project(kf_network *n, const kf_block *b, const kf_tokens *t, const float *h, kf_projected *out, kf_error *e) {
  return b->config->attention.kind == KF_LATENT ? project_latent(n, b, t, h, out, e) : project_grouped(n, b, t, h, out, e);
}

kf_status kf_project_room(kf_network *n, const kf_block *b, int64_t m, kf_projected *out, kf_error *e) {
  const kf_attention_config *a = &b->config->attention;
  float *q, *kv;
  if (a->kind != KF_LATENT) {
    KF_TRY(kf_work_take(n, KF_WORK_D_QKV, m * grouped_width(a), &q, e));
    *out = grouped_parts(a, q);
    return KF_OK;
  }
  KF_TRY(kf_work_take(n, KF_WORK_D_Q, m * a->heads * a->d_qk, &q, e));
  KF_TRY(kf_work_take(n, KF_WORK_D_KV, m * kv_width(a), &kv, e));
  *out = (kf_projected){q, kv, kv + (int64_t)a->kv_heads * a->d_qk, (int64_t)a->heads * a->d_qk, kv_width(a), kv_width(a)};
  return KF_OK;
}

kf_status kf_project_backward(kf_network *n, const kf_block *b, const kf_tokens *t, const float *h, const kf_projected *d,
                              float *dh, kf_error *e) {
  return b->config->attention.kind == KF_LATENT ? project_latent_backward(n, b, t, h, d, dh, e)
                                                : project_grouped_backward(n, b, t, h, d, dh, e);
}
