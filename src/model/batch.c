/* Sequences that share a model's weights: kf_batch, and the logits of one sequence. */
#include <stdlib.h>
#include <string.h>

#include "model/model.h"

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
    s = kf_sequence_create(&m->config, m->device->compute, &b->sequence[b->sequences], e);
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

static kf_status step(kf_batch *b, const kf_feed *feeds, int count, float *x, float *last, kf_span *spans, float *logits,
                      kf_error *e) {
  kf_model *m = b->model;
  int64_t hidden = m->config.hidden, row = 0;
  for (int i = 0; i < count; i++) {
    spans[i] = (kf_span){b->sequence[feeds[i].sequence], row, (int64_t)feeds[i].count, 1};
    KF_TRY(kf_embed(&m->weights, m->embedding, feeds[i].ids, (int64_t)feeds[i].count, x + row * hidden, e));
    row += (int64_t)feeds[i].count;
  }
  KF_TRY(kf_model_forward(m, x, spans, count, e));
  for (int i = 0; i < count; i++)
    memcpy(last + i * hidden, x + (spans[i].offset + spans[i].count - 1) * hidden, (size_t)hidden * sizeof *x);
  return kf_model_logits(m, last, count, logits, e);
}

kf_status kf_batch_step(kf_batch *b, const kf_feed *feeds, int count, float *logits, kf_error *e) {
  int64_t rows = 0, hidden = b->model->config.hidden;
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
  float *x = kf_alloc((size_t)(rows * hidden), sizeof *x, e), *last = kf_alloc((size_t)count * (size_t)hidden, sizeof *last, e);
  kf_span *spans = kf_alloc((size_t)count, sizeof *spans, e);
  kf_status s = x && last && spans ? step(b, feeds, count, x, last, spans, logits, e) : KF_ERROR_MEMORY;
  free(x);
  free(last);
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
  KF_GO(kf_sequence_create(&m->config, m->device->compute, &sequence, e));
  KF_GO((x = kf_alloc((size_t)(n * hidden), sizeof *x, e)) ? KF_OK : KF_ERROR_MEMORY);
  KF_GO(kf_embed(&m->weights, m->embedding, ids, n, x, e));
  KF_GO(kf_model_forward(m, x, &(kf_span){sequence, 0, n, 0}, 1, e));
  for (int64_t i = 0; i < n; i += ROWS)
    KF_GO(kf_model_logits(m, x + i * hidden, n - i < ROWS ? n - i : ROWS, out + i * m->config.vocabulary, e));
done:
  kf_sequence_free(sequence);
  free(x);
  return s;
}
