#include "convert/nearness.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/model.h"

typedef struct head {
  float *norm, *rows, *reference, *logits;
  double *kl, *difference, *nll, *own_nll;
  int32_t *target, *first;
  kf_weight *weight;
} head;

enum { ROWS = 128 };

static kf_status head_create(const kf_weights *w, kf_device *d, head *h, kf_error *e) {
  const kf_config *c = w->config;
  KF_TRY(kf_head_load(w, d, &h->norm, &h->weight, e));
  KF_NEW(h->rows, ROWS * c->hidden, e);
  KF_NEW(h->reference, (size_t)ROWS * (size_t)c->vocabulary, e);
  KF_NEW(h->logits, (size_t)ROWS * (size_t)c->vocabulary, e);
  KF_NEW(h->kl, ROWS, e);
  KF_NEW(h->difference, ROWS, e);
  KF_NEW(h->nll, ROWS, e);
  KF_NEW(h->own_nll, ROWS, e);
  KF_NEW(h->target, ROWS, e);
  KF_NEW(h->first, ROWS, e);
  return KF_OK;
}

static void head_free(kf_device *d, head *h) {
  if (h->norm) d->release(d, h->norm);
  void *own[] = {h->rows, h->reference, h->logits, h->kl, h->difference, h->nll, h->own_nll, h->target, h->first};
  for (size_t i = 0; i < sizeof own / sizeof *own; i++) free(own[i]);
  if (h->weight) d->weight_free(d, h->weight);
}

static void project(const kf_config *c, kf_device *d, const head *h, const float *x, int64_t rows, float *logits) {
  d->rmsnorm(d, h->rows, x, h->norm, rows, c->hidden, c->eps);
  d->linear(d, logits, h->rows, h->weight, rows, false);
}

/* Adds one block of rows; the last token of a window predicts nothing. */
static void add_rows(const kf_config *c, kf_device *d, const head *h, int64_t at, int64_t rows, int64_t window, const float *x,
                     kf_nearness *sum) {
  project(c, d, h, x + at * c->hidden, rows, h->logits);
  d->divergence(d, h->reference, h->logits, rows, c->vocabulary, h->kl, h->difference);
  d->cross_entropy(d, h->logits, h->target, rows, c->vocabulary, h->own_nll, h->first);
  for (int64_t r = 0; r < rows; r++) {
    if ((at + r + 1) % window == 0) continue;
    sum->kl += h->kl[r];
    sum->perplexity_ratio += h->own_nll[r] - h->nll[r];
  }
}

kf_status kf_nearness_judge(const kf_weights *w, kf_device *d, const int32_t *ids, int windows, int64_t window,
                            const float *source, float *const *converted, int count, kf_nearness *out, kf_error *e) {
  const kf_config *c = w->config;
  int64_t total = windows * window, predicted = windows * (window - 1);
  head h = {0};
  kf_status s = head_create(w, d, &h, e);
  memset(out, 0, (size_t)count * sizeof *out);
  for (int64_t at = 0; at < total && s == KF_OK; at += ROWS) {
    int64_t rows = total - at < ROWS ? total - at : ROWS;
    for (int64_t r = 0; r < rows; r++) h.target[r] = at + r + 1 < total ? ids[at + r + 1] : 0;
    project(c, d, &h, source + at * c->hidden, rows, h.reference);
    d->cross_entropy(d, h.reference, h.target, rows, c->vocabulary, h.nll, h.first);
    for (int i = 0; i < count; i++) add_rows(c, d, &h, at, rows, window, converted[i], &out[i]);
    s = kf_device_check(d, e);
  }
  head_free(d, &h);
  for (int i = 0; i < count; i++)
    out[i] = (kf_nearness){out[i].kl / (double)predicted, exp(out[i].perplexity_ratio / (double)predicted)};
  return s;
}
