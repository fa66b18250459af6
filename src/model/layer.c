/* The forward pass of one layer: chunks of tokens go through norm, attention and MLP; the residual stream is x itself. */
#include <stdlib.h>

#include "model/run.h"

static kf_status positions(kf_run *r, const kf_span *spans, int count, int64_t *rows, int64_t *longest, kf_error *e) {
  *rows = *longest = 0;
  for (int i = 0; i < count; i++) *rows += spans[i].count;
  if (*rows > r->positions) {
    r->device->release(r->device, r->position);
    r->positions = 0;
    KF_DEVICE_NEW(r->device, r->position, *rows, e);
    r->positions = *rows;
  }
  for (int i = 0; i < count; i++) {
    int64_t past = kf_sequence_length(spans[i].sequence);
    if (past + spans[i].count > INT32_MAX) return kf_fail(e, KF_ERROR_INPUT, "a sequence of more than 2^31 tokens");
    for (int64_t t = 0; t < spans[i].count; t++) r->position[spans[i].offset + t] = (int32_t)(past + t);
    if (past + spans[i].count > *longest) *longest = past + spans[i].count;
  }
  return KF_OK;
}

/* The parts of the spans that fall into rows [first, first + m). `all`: outputs of all tokens are wanted. */
static int cut(const kf_span *spans, int count, int64_t first, int64_t m, bool all, kf_piece *out) {
  int pieces = 0;
  for (int i = 0; i < count; i++) {
    int64_t from = spans[i].offset > first ? spans[i].offset : first;
    int64_t to = spans[i].offset + spans[i].count < first + m ? spans[i].offset + spans[i].count : first + m;
    if (from >= to) continue;
    int64_t wanted = all || !spans[i].wanted ? spans[i].count : spans[i].wanted;
    int64_t query = spans[i].offset + spans[i].count - wanted;
    out[pieces++] = (kf_piece){.span = &spans[i],
                               .row = from - first,
                               .count = to - from,
                               .past = kf_sequence_length(spans[i].sequence) + from - spans[i].offset,
                               .wanted = wanted,
                               .queries = query < from ? to - from
                                          : query < to ? to - query
                                                       : 0};
  }
  return pieces;
}

static kf_status mlp(kf_run *r, const kf_layer *l, float *x, int64_t m, kf_error *e) {
  kf_device *d = r->device;
  int64_t f = l->config->intermediate;
  float *gate_up;
  KF_TRY(kf_run_slot(r, KF_SLOT_GATE_UP, m * 2 * f, &gate_up, e));
  d->norm_linear(d, gate_up, x, l->post_norm, r->config->eps, l->gate_up, m);
  d->swiglu_linear(d, x, gate_up, l->down, m);
  return KF_OK;
}

/* From the heads' output on, the wanted rows alone, as many adjacent ones at a time as there are. */
static kf_status finish_rows(const kf_chunk *c, float *x, const float *out, kf_error *e) {
  kf_device *d = c->run->device;
  const kf_attention_config *a = &c->layer->config->attention;
  for (int i = 0; i < c->pieces;) {
    int64_t first = kf_piece_query(&c->piece[i]), end = first;
    for (; i < c->pieces && kf_piece_query(&c->piece[i]) == end; i++) end += c->piece[i].queries;
    if (first == end) {
      i++;
      continue;
    }
    float *rows = x + first * c->run->config->hidden;
    d->linear(d, rows, out + first * a->heads * a->d_v, c->layer->o, end - first, true);
    KF_TRY(mlp(c->run, c->layer, rows, end - first, e));
  }
  return KF_OK;
}

static kf_status chunk_forward(const kf_chunk *c, float *x, kf_error *e) {
  kf_run *r = c->run;
  kf_device *d = r->device;
  const kf_attention_config *a = &c->layer->config->attention;
  int64_t hidden = r->config->hidden;
  float *h, *out;
  KF_TRY(kf_run_slot(r, KF_SLOT_NORMED, c->m * hidden, &h, e));
  KF_TRY(kf_run_slot(r, KF_SLOT_OUT, c->m * a->heads * a->d_v, &out, e));
  d->rmsnorm(d, h, x, c->layer->input_norm, c->m, hidden, r->config->eps);
  kf_chunk full = *c;
  full.h = h;
  KF_TRY(a->kind == KF_LATENT ? kf_latent_forward(&full, out, e) : kf_grouped_forward(&full, out, e));
  if (c->watch && c->watch->attended) {
    d->wait(d);
    c->watch->attended(c->watch->user, c->index, c->m, x, out);
  }
  return finish_rows(c, x, out, e);
}

static kf_status forward(kf_run *r, const kf_layer *l, int index, float *x, const kf_span *spans, int count,
                         const kf_watch *watch, kf_error *e) {
  int64_t rows, longest;
  const kf_rope_table *table;
  kf_piece *piece = NULL;
  kf_status s = KF_OK;
  KF_TRY(positions(r, spans, count, &rows, &longest, e));
  KF_TRY(kf_run_rope(r, &l->config->attention.rope, longest, &table, e));
  for (int i = 0; i < count; i++)
    KF_TRY(kf_sequence_reserve(spans[i].sequence, index, kf_sequence_length(spans[i].sequence) + spans[i].count, e));
  KF_NEW(piece, count + 1, e);
  for (int64_t first = 0; first < rows && s == KF_OK; first += KF_CHUNK) {
    int64_t m = rows - first < KF_CHUNK ? rows - first : KF_CHUNK;
    kf_chunk c = {.run = r,
                  .layer = l,
                  .index = index,
                  .m = m,
                  .position = r->position + first,
                  .table = table,
                  .piece = piece,
                  .pieces = cut(spans, count, first, m, index + 1 < r->config->layers, piece),
                  .watch = watch};
    s = chunk_forward(&c, x + first * r->config->hidden, e);
  }
  free(piece);
  return s == KF_OK ? kf_device_check(r->device, e) : s;
}

/* Frequencies that depend on a sequence's length are its own: such sequences go one by one. */
kf_status kf_layer_forward(kf_run *r, const kf_layer *l, int index, float *x, const kf_span *spans, int count,
                           const kf_watch *watch, kf_error *e) {
  kf_rope_type type = l->config->attention.rope.type;
  if (count == 1 || (type != KF_ROPE_DYNAMIC && type != KF_ROPE_LONGROPE)) return forward(r, l, index, x, spans, count, watch, e);
  for (int i = 0; i < count; i++) {
    kf_span one = {spans[i].sequence, 0, spans[i].count, spans[i].wanted};
    KF_TRY(forward(r, l, index, x + spans[i].offset * r->config->hidden, &one, 1, watch, e));
  }
  return KF_OK;
}
