#include "convert/self_samples.h"

#include <math.h>
#include <stdlib.h>

#include "base/random.h"

enum { TOGETHER = 32 }; /* windows that are written side by side */

typedef struct writer {
  kf_model *model;
  kf_batch *batch;
  const kf_hooks *hooks;
  int vocabulary;
  int32_t bos;
  int64_t body, windows; /* tokens of a window but its BOS */
  int32_t *ids;          /* [windows, body] */
  float *logits;         /* [TOGETHER, vocabulary] */
  kf_random random;
} writer;

static int32_t even(writer *w) {
  return (int32_t)(kf_random_u64(&w->random) % (uint64_t)w->vocabulary);
}

/* At temperature 1: the id at which the sum of exp(logit - top) passes its part r. */
static int32_t draw(float *logits, int n, double r) {
  float top = logits[0];
  double sum = 0, passed = 0;
  for (int i = 1; i < n; i++) top = logits[i] > top ? logits[i] : top;
  for (int i = 0; i < n; i++) sum += logits[i] = expf(logits[i] - top);
  for (int i = 0; i < n; i++)
    if ((passed += logits[i]) > r * sum) return i;
  return n - 1;
}

static bool ends(const kf_config *c, int32_t id) {
  for (int i = 0; i < c->eos_count; i++)
    if (c->eos[i] == id) return true;
  return false;
}

/* `count` windows from `first` on, token by token. */
static kf_status write_windows(writer *w, int64_t first, int count, kf_error *e) {
  kf_feed feed[TOGETHER];
  int32_t last[TOGETHER];
  double part[TOGETHER];
  for (int i = 0; i < count; i++) {
    kf_batch_reset(w->batch, i);
    last[i] = w->bos >= 0 ? w->bos : even(w);
    if (w->bos < 0) w->ids[(first + i) * w->body] = last[i];
  }
  for (int64_t at = w->bos < 0; at < w->body; at++) {
    KF_TRY(kf_progress(w->hooks, "sampling", (double)(first * w->body + at * count), (double)(w->windows * w->body), e));
    for (int i = 0; i < count; i++) feed[i] = (kf_feed){i, &last[i], 1};
    KF_TRY(kf_batch_step(w->batch, feed, count, w->logits, e));
    for (int i = 0; i < count; i++) part[i] = kf_random_uniform(&w->random);
#pragma omp parallel for
    for (int i = 0; i < count; i++)
      w->ids[(first + i) * w->body + at] = draw(w->logits + (int64_t)i * w->vocabulary, w->vocabulary, part[i]);
    for (int i = 0; i < count; i++) {
      int32_t *id = &w->ids[(first + i) * w->body + at];
      if (ends(&w->model->config, last[i])) *id = even(w); /* a new text begins */
      last[i] = *id;
    }
  }
  return KF_OK;
}

static kf_status write_all(writer *w, int64_t tokens, kf_corpus *out, kf_error *e) {
  const kf_config *c = &w->model->config;
  w->vocabulary = c->vocabulary;
  w->body = (c->context < KF_SAMPLE_WINDOW ? c->context : KF_SAMPLE_WINDOW) - (w->bos >= 0);
  w->windows = (tokens + w->body - 1) / w->body;
  kf_random_seed(&w->random, 0);
  KF_TRY(kf_batch_create(w->model, TOGETHER, &w->batch, e));
  KF_NEW(w->logits, (size_t)TOGETHER * (size_t)w->vocabulary, e);
  KF_NEW(w->ids, w->windows * w->body, e);
  out->ids = (kf_ids){w->ids, (size_t)(w->windows * w->body)};
  for (int64_t i = 0; i < w->windows; i += TOGETHER)
    KF_TRY(write_windows(w, i, (int)(w->windows - i < TOGETHER ? w->windows - i : TOGETHER), e));
  return KF_OK;
}

kf_status kf_corpus_sample(const char *path, const kf_tokenizer *t, const kf_convert_options *o, int64_t tokens, kf_corpus *out,
                           kf_error *e) {
  writer w = {.hooks = &o->hooks, .bos = kf_tokenizer_adds_bos(t) ? kf_tokenizer_bos(t) : -1};
  *out = (kf_corpus){.bos = w.bos, .name = "the model's own text"};
  KF_TRY(kf_model_open(path, &(kf_model_options){.compute = o->compute, .threads = o->threads}, &w.model, e));
  kf_status s = write_all(&w, tokens, out, e);
  kf_batch_free(w.batch);
  kf_model_close(w.model);
  free(w.logits);
  if (s != KF_OK) kf_corpus_free(out);
  return s;
}
