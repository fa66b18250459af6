/* Grouped attention (MHA, GQA): one matrix product gives [q | k | v]; K and V go to the cache. */
#include <stdlib.h>

#include "model/run.h"

static kf_status rotate(const kf_chunk *c, float *qkv, int64_t width, kf_error *e) {
  const kf_attention_config *a = &c->layer->config->attention;
  if (!a->rope_pairs[0]) return KF_OK; /* a NoPE layer */
  int count = a->heads + a->kv_heads;
  kf_rope_block *blocks;
  KF_NEW(blocks, count, e);
  for (int h = 0; h < count; h++) blocks[h] = (kf_rope_block){.offset = h * a->d_qk, .pairs = a->d_qk / 2};
  kf_device *d = c->run->device;
  d->rope(d, qkv, c->m, width, blocks, count, c->table->cos, c->table->sin, a->rope.dim / 2, c->position, false);
  free(blocks);
  return KF_OK;
}

kf_status kf_grouped_forward(const kf_chunk *c, float *out, kf_error *e) {
  const kf_attention_config *a = &c->layer->config->attention;
  kf_device *d = c->run->device;
  int64_t q_width = (int64_t)a->heads * a->d_qk, row = kf_attention_cache_elements(a), width = q_width + row;
  float *qkv;
  kf_attention *sequence;
  KF_TRY(kf_run_slot(c->run, KF_SLOT_QKV, c->m * width, &qkv, e));
  d->linear(d, qkv, c->h, c->layer->q, c->m, false);
  if (c->watch && c->watch->seen) {
    d->wait(d);
    c->watch->seen(c->watch->user, c->index, c->m, c->h, qkv, width, qkv + q_width, width);
  }
  if (a->qk_norm) {
    d->head_norm(d, qkv, c->m, width, a->heads, a->d_qk, c->layer->q_norm, 1, c->run->config->eps);
    d->head_norm(d, qkv + q_width, c->m, width, a->kv_heads, a->d_qk, c->layer->k_norm, 1, c->run->config->eps);
  }
  KF_TRY(rotate(c, qkv, width, e));

  KF_NEW(sequence, c->pieces, e);
  for (int i = 0; i < c->pieces; i++) {
    const kf_piece *p = &c->piece[i];
    int64_t query = kf_piece_query(p);
    sequence[i] = (kf_attention){.q = qkv + query * width,
                                 .q_stride = width,
                                 .out = out + query * a->heads * a->d_v,
                                 .rows = kf_sequence_rows(p->span->sequence, c->index),
                                 .m = p->queries,
                                 .past = p->past + query - p->row};
    d->store(d, &sequence[i].rows, p->past, p->count, 0, row, qkv + p->row * width + q_width, width);
  }
  kf_attention_shape shape = {
      .heads = a->heads, .kv_heads = a->kv_heads, .d_qk = a->d_qk, .d_v = a->d_v, .scale = a->scale, .window = a->window};
  d->attention(d, &shape, sequence, c->pieces);
  free(sequence);
  return KF_OK;
}
