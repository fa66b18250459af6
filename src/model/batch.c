/* Sequences that share a model's weights: kf_batch, and the logits of one sequence. */
#include <stdlib.h>
#include <string.h>

#include "model/model.h"
#include "model/run.h"

struct kf_batch {
  kf_model *model;
  int sequences;
  kf_sequence **sequence;
};

kf_status kf_batch_create(kf_model *m, int sequences, kf_batch **out, kf_error *e) {
  if (sequences < 1) return kf_fail(e, KF_ERROR_INPUT, "a batch of %d sequences", sequences);
  kf_batch *b;
  KF_NEW(b, 1, e);
  b->model = m;
  kf_status s = (b->sequence = kf_alloc((size_t)sequences, sizeof *b->sequence, e)) ? KF_OK : KF_ERROR_MEMORY;
  for (; s == KF_OK && b->sequences < sequences; b->sequences += s == KF_OK)
    s = kf_sequence_create(&m->config, m->device, &b->sequence[b->sequences], e);
  if (s != KF_OK)
    kf_batch_free(b);
  else
    *out = b;
  return s;
}

void kf_batch_free(kf_batch *b) {
  if (!b) return;
  for (int i = 0; i < b->sequences; i++) kf_sequence_free(b->sequence[i]);
  free(b->sequence);
  free(b);
}

kf_model *kf_batch_model(const kf_batch *b) {
  return b->model;
}

void kf_batch_reset(kf_batch *b, int sequence) {
  if (sequence >= 0 && sequence < b->sequences) kf_sequence_reset(b->sequence[sequence]);
}

int64_t kf_batch_tokens(const kf_batch *b, int sequence) {
  return sequence >= 0 && sequence < b->sequences ? kf_sequence_length(b->sequence[sequence]) : 0;
}

int64_t kf_batch_cache_bytes(const kf_batch *b) {
  int64_t sum = 0;
  for (int i = 0; i < b->sequences; i++) sum += kf_sequence_bytes(b->sequence[i]);
  return sum;
}

/* Logits of some hidden states in the caller's memory. */
static kf_status logits_to(kf_model *m, const float *x, int64_t rows, float *to, kf_error *e) {
  float *logits;
  KF_TRY(kf_run_slot(m->run, KF_SLOT_LOGITS, rows * m->config.vocabulary, &logits, e));
  KF_TRY(kf_model_logits(m, x, rows, logits, e));
  memcpy(to, logits, (size_t)(rows * m->config.vocabulary) * sizeof *to);
  return KF_OK;
}

static kf_status step(kf_batch *b, const kf_feed *feeds, int count, int64_t rows, kf_span *spans, float *logits, kf_error *e) {
  kf_model *m = b->model;
  int64_t hidden = m->config.hidden, row = 0;
  float *x, *last;
  KF_TRY(kf_run_slot(m->run, KF_SLOT_INPUT, rows * hidden, &x, e));
  KF_TRY(kf_run_slot(m->run, KF_SLOT_LAST, count * hidden, &last, e));
  for (int i = 0; i < count; i++) {
    spans[i] = (kf_span){b->sequence[feeds[i].sequence], row, (int64_t)feeds[i].count, 1};
    KF_TRY(kf_embed(&m->weights, m->embedding, feeds[i].ids, (int64_t)feeds[i].count, x + row * hidden, e));
    row += (int64_t)feeds[i].count;
  }
  KF_TRY(kf_model_forward(m, x, spans, count, e));
  for (int i = 0; i < count; i++)
    memcpy(last + i * hidden, x + (spans[i].offset + spans[i].count - 1) * hidden, (size_t)hidden * sizeof *x);
  return logits_to(m, last, count, logits, e);
}

kf_status kf_batch_step(kf_batch *b, const kf_feed *feeds, int count, float *logits, kf_error *e) {
  int64_t rows = 0;
  for (int i = 0; i < count; i++) {
    if (feeds[i].sequence < 0 || feeds[i].sequence >= b->sequences || feeds[i].count < 1)
      return kf_fail(e, KF_ERROR_INPUT, "feed %d names sequence %d of %d with %zu tokens", i, feeds[i].sequence, b->sequences,
                     feeds[i].count);
    for (int j = 0; j < i; j++)
      if (feeds[j].sequence == feeds[i].sequence)
        return kf_fail(e, KF_ERROR_INPUT, "sequence %d is fed twice in one step", feeds[i].sequence);
    rows += (int64_t)feeds[i].count;
  }
  if (count < 1) return kf_fail(e, KF_ERROR_INPUT, "a step without feeds");
  kf_span *spans;
  KF_NEW(spans, count, e);
  kf_status s = step(b, feeds, count, rows, spans, logits, e);
  free(spans);
  return s;
}

kf_status kf_logits(kf_model *m, const int32_t *ids, size_t count, float *out, kf_error *e) {
  enum { ROWS = 128 };
  int64_t hidden = m->config.hidden, n = (int64_t)count;
  kf_sequence *sequence = NULL;
  float *x = NULL;
  kf_status s = KF_OK;
  if (!n) return kf_fail(e, KF_ERROR_INPUT, "no tokens to compute logits of");
  KF_GO(kf_sequence_create(&m->config, m->device, &sequence, e));
  KF_GO(kf_run_slot(m->run, KF_SLOT_INPUT, n * hidden, &x, e));
  KF_GO(kf_embed(&m->weights, m->embedding, ids, n, x, e));
  KF_GO(kf_model_forward(m, x, &(kf_span){sequence, 0, n, 0}, 1, e));
  for (int64_t i = 0; i < n; i += ROWS)
    KF_GO(logits_to(m, x + i * hidden, n - i < ROWS ? n - i : ROWS, out + i * m->config.vocabulary, e));
done:
  kf_sequence_free(sequence);
  return s;
}
