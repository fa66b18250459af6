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

/* The parts of the spans that fall into rows [first, first + m). */
static int cut(const kf_span *spans, int count, int64_t first, int64_t m, kf_piece *out) {
  int pieces = 0;
  for (int i = 0; i < count; i++) {
    int64_t from = spans[i].offset > first ? spans[i].offset : first;
    int64_t to = spans[i].offset + spans[i].count < first + m ? spans[i].offset + spans[i].count : first + m;
    if (from >= to) continue;
    out[pieces++] =
        (kf_piece){&spans[i], from - first, to - from, kf_sequence_length(spans[i].sequence) + from - spans[i].offset};
  }
  return pieces;
}

static kf_status mlp(kf_run *r, const kf_layer *l, float *x, int64_t m, kf_error *e) {
  kf_device *d = r->device;
  int64_t hidden = r->config->hidden, f = l->config->intermediate;
  float *h, *gate_up, *act;
  KF_TRY(kf_run_slot(r, KF_SLOT_NORMED, m * hidden, &h, e));
  KF_TRY(kf_run_slot(r, KF_SLOT_GATE_UP, m * 2 * f, &gate_up, e));
  KF_TRY(kf_run_slot(r, KF_SLOT_ACT, m * f, &act, e));
  d->rmsnorm(d, h, x, l->post_norm, m, hidden, r->config->eps);
  d->linear(d, gate_up, h, l->gate_up, m, false);
  d->swiglu(d, act, gate_up, m, f);
  d->linear(d, x, act, l->down, m, true);
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
  d->linear(d, x, out, c->layer->o, c->m, true);
  return mlp(r, c->layer, x, c->m, e);
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
                  .pieces = cut(spans, count, first, m, piece),
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
    kf_span one = {spans[i].sequence, 0, spans[i].count};
    KF_TRY(forward(r, l, index, x + spans[i].offset * r->config->hidden, &one, 1, watch, e));
  }
  return KF_OK;
}
