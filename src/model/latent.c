/* Latent attention: the cache keeps [c_kv | rope keys] (and, with q/k norms, 1/rms of each key head).
 *
 * Expanded form: keys and values of all tokens are made from the latents (kv_b) and attended as grouped ones.
 * Absorbed form: the key part of kv_b moves into the query, the value part behind the attention, which then works on the
 * latents themselves:  s = (W_uk^T q_nope) . c + q_rope . k_rope,  o = W_uv (sum p c).
 *
 * With q/k norms k = k_raw / rms(k_raw) * w. The weight w goes into the rotated rope keys and the query's nope part, and
 * the factor 1/rms is kept beside the latents, so that both forms stay exact. A nope-key bias adds the same number to every
 * score of a query, so the absorbed form leaves it out; under a norm it would not be the same, and the expanded form is used. */
#include <math.h>
#include <stdlib.h>

#include "model/run.h"

typedef struct shape {
  const kf_attention_config *a;
  int64_t q_width, row, rope_width, kv_b_rows, kv_width; /* kv_width: expanded keys and values of one token */
  int factor;                                            /* column of the first 1/rms; -1: none */
} shape;

static shape measure(const kf_attention_config *a) {
  shape s = {.a = a,
             .q_width = (int64_t)a->heads * a->d_qk,
             .row = kf_attention_cache_elements(a),
             .rope_width = kf_attention_rope_width(a),
             .kv_b_rows = kf_attention_kv_b_rows(a),
             .kv_width = (int64_t)a->kv_heads * (a->d_qk + a->d_v),
             .factor = -1};
  if (a->qk_norm) s.factor = a->rank + (int)s.rope_width;
  return s;
}

/* Column of KV head g's rope keys in a cache row. */
static int rope_column(const kf_attention_config *a, int g) {
  int column = a->rank;
  if (a->rope_heads > 1)
    for (int i = 0; i < g; i++) column += 2 * a->rope_pairs[i];
  return column;
}

static int pairs_of(const kf_attention_config *a, int g) {
  return a->rope_pairs[a->rope_heads == 1 ? 0 : g];
}

static const int32_t *index_of(const kf_attention_config *a, int g) {
  const int32_t *index = a->rope_index;
  if (a->rope_heads > 1)
    for (int i = 0; i < g; i++) index += a->rope_pairs[i];
  return index;
}

static kf_status make_query(const kf_chunk *c, const shape *s, float *q, kf_error *e) {
  const kf_attention_config *a = s->a;
  kf_device *d = c->run->device;
  const float *in = c->h;
  if (a->q_rank) {
    float *low;
    KF_TRY(kf_run_slot(c->run, KF_SLOT_Q_A, c->m * a->q_rank, &low, e));
    d->linear(d, low, c->h, c->layer->q_a, c->m, false);
    if (a->q_a_norm) d->rmsnorm(d, low, low, c->layer->q_a_norm, c->m, a->q_rank, a->latent_eps);
    in = low;
  }
  d->linear(d, q, in, c->layer->q, c->m, false);
  if (a->qk_norm) d->head_norm(d, q, c->m, s->q_width, a->heads, a->d_qk, c->layer->q_norm, a->kv_heads, c->run->config->eps);
  kf_rope_block *blocks;
  KF_NEW(blocks, a->heads, e);
  for (int h = 0; h < a->heads; h++) {
    int g = h / (a->heads / a->kv_heads), pairs = pairs_of(a, g);
    blocks[h] = (kf_rope_block){h * a->d_qk + a->d_qk - 2 * pairs, pairs, index_of(a, g)};
  }
  d->rope(d, q, c->m, s->q_width, blocks, a->heads, c->table->cos, c->table->sin, a->rope.dim / 2, c->position, false);
  free(blocks);
  return KF_OK;
}

/* 1/rms of every raw key head into the row, and the norm's weight onto the raw rope keys. kv_b: [m, kv_b_rows]. */
static void norm_keys(const kf_chunk *c, const shape *s, float *row, const float *kv_b) {
  const kf_attention_config *a = s->a;
  c->run->device->wait(c->run->device);
  for (int64_t t = 0; t < c->m; t++) {
    float *r = row + t * s->row;
    for (int g = 0; g < a->kv_heads; g++) {
      const float *nope = kv_b + t * s->kv_b_rows + c->layer->key_rows[g].first, *rope = r + rope_column(a, g);
      double sum = 0;
      for (int i = 0; i < c->layer->key_rows[g].count; i++) sum += (double)nope[i] * nope[i];
      for (int i = 0; i < 2 * pairs_of(a, g); i++) sum += (double)rope[i] * rope[i];
      r[s->factor + g] = (float)(1 / sqrt(sum / a->d_qk + c->run->config->eps));
    }
    for (int g = 0; g < a->rope_heads; g++) {
      const float *weight = c->layer->k_norm + (int64_t)g * a->d_qk + kf_attention_nope(a, g);
      for (int i = 0; i < 2 * a->rope_pairs[g]; i++) r[rope_column(a, g) + i] *= weight[i];
    }
  }
}

/* The cache rows of the chunk's tokens: [c_kv | rotated rope keys | 1/rms]. */
static kf_status make_rows(const kf_chunk *c, const shape *s, float *row, kf_error *e) {
  const kf_attention_config *a = s->a;
  kf_device *d = c->run->device;
  int64_t width = a->rank + s->rope_width;
  if (width == s->row) {
    d->linear(d, row, c->h, c->layer->kv_a, c->m, false);
  } else {
    float *narrow;
    KF_TRY(kf_run_slot(c->run, KF_SLOT_STORE, c->m * width, &narrow, e));
    d->linear(d, narrow, c->h, c->layer->kv_a, c->m, false);
    d->copy(d, row, s->row, narrow, width, c->m, width, false);
  }
  if (a->kv_a_norm) d->head_norm(d, row, c->m, s->row, 1, a->rank, c->layer->kv_a_norm, 1, a->latent_eps);
  if (a->qk_norm) {
    float *latent, *kv_b;
    KF_TRY(kf_run_slot(c->run, KF_SLOT_STORE, c->m * a->rank, &latent, e));
    KF_TRY(kf_run_slot(c->run, KF_SLOT_KV_B, c->m * s->kv_b_rows, &kv_b, e));
    d->copy(d, latent, a->rank, row, s->row, c->m, a->rank, false);
    d->linear(d, kv_b, latent, c->layer->kv_b, c->m, false);
    norm_keys(c, s, row, kv_b);
  }
  kf_rope_block *blocks;
  KF_NEW(blocks, a->rope_heads, e);
  for (int g = 0; g < a->rope_heads; g++) blocks[g] = (kf_rope_block){rope_column(a, g), a->rope_pairs[g], index_of(a, g)};
  d->rope(d, row, c->m, s->row, blocks, a->rope_heads, c->table->cos, c->table->sin, a->rope.dim / 2, c->position, false);
  free(blocks);
  return KF_OK;
}

/* The norm of expanded keys: its weight onto the nope part (the rope keys have it already), 1/rms onto all. */
static void scale_keys(const kf_chunk *c, const shape *s, const float *row, int64_t m, float *kv) {
  const kf_attention_config *a = s->a;
  c->run->device->wait(c->run->device);
  for (int64_t t = 0; t < m; t++) {
    float *k = kv + t * s->kv_width;
    for (int g = 0; g < a->kv_heads; g++, k += a->d_qk) {
      const float *weight = c->layer->k_norm + (int64_t)g * a->d_qk;
      for (int64_t i = 0; i < c->layer->key_rows[g].count; i++) k[i] *= weight[i];
      for (int i = 0; i < a->d_qk; i++) k[i] *= row[t * s->row + s->factor + g];
    }
  }
}

/* Expanded keys and values [m, kv_width] of m cache rows. */
static kf_status expand(const kf_chunk *c, const shape *s, const float *row, int64_t m, float *kv, kf_error *e) {
  const kf_attention_config *a = s->a;
  kf_device *d = c->run->device;
  float *latent, *kv_b;
  KF_TRY(kf_run_slot(c->run, KF_SLOT_STORE, m * a->rank, &latent, e));
  KF_TRY(kf_run_slot(c->run, KF_SLOT_KV_B, m * s->kv_b_rows, &kv_b, e));
  d->copy(d, latent, a->rank, row, s->row, m, a->rank, false);
  d->linear(d, kv_b, latent, c->layer->kv_b, m, false);
  float *k = kv, *v = k + (int64_t)a->kv_heads * a->d_qk;
  for (int g = 0; g < a->kv_heads; g++, k += a->d_qk, v += a->d_v) {
    const kf_head_rows *key = &c->layer->key_rows[g], *value = &c->layer->value_rows[g];
    d->copy(d, k, s->kv_width, kv_b + key->first, s->kv_b_rows, m, key->count, false);
    d->copy(d, k + key->count, s->kv_width, row + rope_column(a, g), s->row, m, 2 * (int64_t)pairs_of(a, g), false);
    d->copy(d, v, s->kv_width, kv_b + value->first, s->kv_b_rows, m, a->d_v, false);
  }
  if (a->qk_norm) scale_keys(c, s, row, m, kv);
  return KF_OK;
}

/* Expands a piece's tokens, and at the start of its span those that were cached before, into one long page. */
static kf_status expanded_rows(const kf_chunk *c, const shape *s, const kf_piece *p, const float *row, kf_rows *out,
                               void *page[1], kf_error *e) {
  kf_device *d = c->run->device;
  int64_t total = kf_sequence_length(p->span->sequence) + p->span->count;
  float *kv, *store;
  bool first = p->past == kf_sequence_length(p->span->sequence);
  KF_TRY(kf_run_slot(c->run, KF_SLOT_EXPANDED, total * s->kv_width, &store, e)); /* bf16 rows take half of it */
  KF_TRY(kf_run_slot(c->run, KF_SLOT_QKV, KF_CHUNK * s->kv_width, &kv, e));
  page[0] = store;
  *out = (kf_rows){.pages = (void *const *)page, .page_tokens = (int)total, .columns = s->kv_width, .dtype = d->compute};
  if (first && p->past) {
    kf_rows cached = kf_sequence_rows(p->span->sequence, c->index);
    for (int64_t t = 0; t < p->past; t += KF_CHUNK) {
      int64_t m = p->past - t < KF_CHUNK ? p->past - t : KF_CHUNK;
      float *past;
      KF_TRY(kf_run_slot(c->run, KF_SLOT_PAST, KF_CHUNK * s->row, &past, e));
      d->fetch(d, past, s->row, &cached, t, m, 0, s->row);
      KF_TRY(expand(c, s, past, m, kv, e));
      d->store(d, out, t, m, 0, s->kv_width, kv, s->kv_width);
    }
  }
  KF_TRY(expand(c, s, row + p->row * s->row, p->count, kv, e));
  d->store(d, out, p->past, p->count, 0, s->kv_width, kv, s->kv_width);
  return KF_OK;
}

static kf_status attend_expanded(const kf_chunk *c, const shape *s, const kf_piece *p, const float *q, const float *row,
                                 float *out, kf_error *e) {
  const kf_attention_config *a = s->a;
  kf_device *d = c->run->device;
  void *page[1];
  int64_t query = kf_piece_query(p);
  kf_attention one = {.q = q + query * s->q_width,
                      .q_stride = s->q_width,
                      .out = out + query * a->heads * a->d_v,
                      .m = p->queries,
                      .past = p->past + query - p->row};
  KF_TRY(expanded_rows(c, s, p, row, &one.rows, page, e));
  kf_attention_shape shape = {
      .heads = a->heads, .kv_heads = a->kv_heads, .d_qk = a->d_qk, .d_v = a->d_v, .scale = a->scale, .window = a->window};
  d->attention(d, &shape, &one, 1);
  return KF_OK;
}

/* The weight of the keys' norm onto the nope part of the queries. */
static void scale_queries(const kf_chunk *c, const shape *s, const int *width, const kf_piece *p, float *q) {
  const kf_attention_config *a = s->a;
  c->run->device->wait(c->run->device);
  for (int64_t t = kf_piece_query(p); t < p->row + p->count; t++)
    for (int h = 0; h < a->heads; h++) {
      float *head = q + t * s->q_width + h * a->d_qk;
      int g = h / (a->heads / a->kv_heads);
      for (int j = 0; j < a->d_qk - width[g]; j++) head[j] *= c->layer->k_norm[(int64_t)g * a->d_qk + j];
    }
}

/* The pieces chosen by `absorbed` together; rows of the other pieces are left alone. */
static kf_status attend_absorbed(const kf_chunk *c, const shape *s, const bool *absorbed, float *q, float *out, kf_error *e) {
  const kf_attention_config *a = s->a;
  kf_device *d = c->run->device;
  int group = a->heads / a->kv_heads, stride = 2;
  for (int g = 0; g < a->kv_heads; g++) stride = 2 * pairs_of(a, g) > stride ? 2 * pairs_of(a, g) : stride;
  float *q_rope, *q_latent, *z;
  KF_TRY(kf_run_slot(c->run, KF_SLOT_ROPE, c->m * a->heads * stride, &q_rope, e));
  KF_TRY(kf_run_slot(c->run, KF_SLOT_LATENT, c->m * a->heads * a->rank, &q_latent, e));
  KF_TRY(kf_run_slot(c->run, KF_SLOT_CONTEXT, c->m * a->heads * a->rank, &z, e));
  kf_arena arena = {0};
  int *column = kf_arena_alloc(&arena, (size_t)a->kv_heads, sizeof *column, e);
  int *width = kf_arena_alloc(&arena, (size_t)a->kv_heads, sizeof *width, e);
  kf_latent_attention *sequence = kf_arena_alloc(&arena, (size_t)c->pieces, sizeof *sequence, e);
  if (!column || !width || !sequence) {
    kf_arena_free(&arena);
    return KF_ERROR_MEMORY;
  }
  for (int g = 0; g < a->kv_heads; g++) {
    column[g] = rope_column(a, g);
    width[g] = 2 * pairs_of(a, g);
  }
  int count = 0;
  for (int i = 0; i < c->pieces; i++) {
    const kf_piece *p = &c->piece[i];
    int64_t query = kf_piece_query(p);
    if (!absorbed[i]) continue;
    for (int h = 0; h < a->heads; h++) {
      int rope = width[h / group];
      d->copy(d, q_rope + (query * a->heads + h) * stride, (int64_t)a->heads * stride,
              q + query * s->q_width + (h + 1) * a->d_qk - rope, s->q_width, p->queries, rope, false);
    }
    if (a->qk_norm) scale_queries(c, s, width, p, q);
    d->head_transposed(d, q_latent + query * a->heads * a->rank, q + query * s->q_width, p->queries, a->heads, a->d_qk,
                       c->layer->kv_b_plain, c->layer->key_rows, a->kv_heads);
    sequence[count++] = (kf_latent_attention){.q_latent = q_latent + query * a->heads * a->rank,
                                              .q_rope = q_rope + query * a->heads * stride,
                                              .out = z + query * a->heads * a->rank,
                                              .m = p->queries,
                                              .past = p->past + query - p->row,
                                              .rows = kf_sequence_rows(p->span->sequence, c->index)};
  }
  kf_latent_shape shape = {.heads = a->heads,
                           .kv_heads = a->kv_heads,
                           .rank = a->rank,
                           .rope_stride = stride,
                           .rope_offset = column,
                           .rope_width = width,
                           .inverse_rms = s->factor,
                           .scale = a->scale,
                           .window = a->window};
  d->latent_attention(d, &shape, sequence, count);
  for (int i = 0; i < c->pieces; i++) {
    int64_t query = kf_piece_query(&c->piece[i]), queries = c->piece[i].queries;
    if (absorbed[i])
      d->head_times(d, out + query * a->heads * a->d_v, a->d_v, z + query * a->heads * a->rank, queries, a->heads,
                    c->layer->kv_b_plain, c->layer->value_rows, a->kv_heads, c->layer->kv_b_bias);
  }
  kf_arena_free(&arena);
  return KF_OK;
}

/* Absorbed costs 2 rank numbers a score instead of d_qk + d_v; expanded costs one pass of every cached token through kv_b. */
static bool prefers_absorbed(const kf_chunk *c, const shape *s, const kf_piece *p) {
  const kf_attention_config *a = s->a;
  if (a->qk_norm && a->kv_b_bias) return false;
  if (c->run->form != KF_FORM_AUTO) return c->run->form == KF_FORM_ABSORBED;
  int64_t extra = 2 * (int64_t)a->rank + 2 * pairs_of(a, 0) - a->d_qk - a->d_v;
  return p->wanted * a->heads * extra <= a->rank * s->kv_b_rows;
}

kf_status kf_latent_forward(const kf_chunk *c, float *out, kf_error *e) {
  shape s = measure(&c->layer->config->attention);
  kf_device *d = c->run->device;
  float *q, *row;
  bool *absorbed;
  int any = 0;
  KF_TRY(kf_run_slot(c->run, KF_SLOT_Q, c->m * s.q_width, &q, e));
  KF_TRY(kf_run_slot(c->run, KF_SLOT_ROW, c->m * s.row, &row, e));
  KF_TRY(make_query(c, &s, q, e));
  KF_TRY(make_rows(c, &s, row, e));
  KF_NEW(absorbed, c->pieces, e);
  kf_status status = KF_OK;
  for (int i = 0; i < c->pieces && status == KF_OK; i++) {
    const kf_piece *p = &c->piece[i];
    kf_rows cache = kf_sequence_rows(p->span->sequence, c->index);
    d->store(d, &cache, p->past, p->count, 0, s.row, row + p->row * s.row, s.row);
    absorbed[i] = prefers_absorbed(c, &s, p);
    any += absorbed[i];
    if (!absorbed[i]) status = attend_expanded(c, &s, p, q, row, out, e);
  }
  if (status == KF_OK && any) status = attend_absorbed(c, &s, absorbed, q, out, e);
  free(absorbed);
  return status;
}
