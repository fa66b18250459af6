#include "convert/statistics.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WINDOW = 1024, BATCH = 4 /* windows that run together */ };

struct kf_calibration {
  const kf_config *config;
  const kf_weights *weights;
  kf_device *device;
  kf_run *run;
  int64_t tokens;
  float *x; /* [tokens, hidden] what the next layer takes */
  int windows;
  kf_sequence **sequence; /* [windows] */
  int64_t *offset;        /* [windows + 1] first token of each */
  int next;               /* layer that x goes into */
  /* of the layer before it, the last that was run */
  const kf_layer *layer;
  double *q, *k; /* [heads, half], [kv_heads, half] sums of lengths */
};

/* ---------------------------------------------------------------------------------------------- tokens */

/* Windows of at most the context, each behind a BOS where the tokenizer puts one; x = their embeddings. */
static kf_status cut_windows(kf_calibration *c, const kf_corpus *corpus, kf_error *e) {
  int bos = corpus->bos >= 0;
  int64_t window = c->config->context < WINDOW ? c->config->context : WINDOW, body = window - bos > 0 ? window - bos : 1;
  int64_t count = (int64_t)corpus->ids.count;
  const kf_view *embedding;
  int32_t *row = NULL;
  c->windows = (int)((count + body - 1) / body);
  c->tokens = count + (int64_t)c->windows * bos;
  KF_TRY(kf_weights_embedding(c->weights, &embedding, e));
  KF_NEW(c->offset, c->windows + 1, e);
  KF_NEW(c->sequence, c->windows, e);
  KF_NEW(c->x, c->tokens * c->config->hidden, e);
  KF_NEW(row, c->tokens, e);
  int64_t at = 0;
  kf_status s = KF_OK;
  for (int i = 0; s == KF_OK && i < c->windows; i++) {
    c->offset[i] = at;
    if (bos) row[at++] = corpus->bos;
    for (int64_t j = i * body; j < count && j < (i + 1) * body; j++) row[at++] = corpus->ids.data[j];
    s = kf_sequence_create(c->config, c->device, &c->sequence[i], e);
  }
  c->offset[c->windows] = at;
  if (s == KF_OK) s = kf_embed(c->weights, embedding, row, c->tokens, c->x, e);
  free(row);
  return s;
}

kf_status kf_calibration_create(const kf_plan *p, const kf_corpus *corpus, kf_calibration **out, kf_error *e) {
  kf_calibration *c;
  kf_status s;
  *out = NULL;
  KF_NEW(c, 1, e);
  c->config = p->source;
  c->weights = p->weights;
  KF_GO(kf_device_open_cpu(p->o->compute, p->o->threads, &c->device, e));
  KF_GO(kf_run_create(c->device, c->config, &c->run, e));
  KF_GO(cut_windows(c, corpus, e));
  c->q = kf_alloc((size_t)c->config->heads * (size_t)c->config->head_dim / 2, sizeof *c->q, e);
  c->k = kf_alloc((size_t)c->config->kv_heads * (size_t)c->config->head_dim / 2, sizeof *c->k, e);
  if (!c->q || !c->k) s = KF_ERROR_MEMORY;
done:
  if (s != KF_OK)
    kf_calibration_free(c);
  else
    *out = c;
  return s;
}

void kf_calibration_free(kf_calibration *c) {
  if (!c) return;
  for (int i = 0; c->sequence && i < c->windows; i++) kf_sequence_free(c->sequence[i]);
  kf_run_free(c->run);
  kf_device_close(c->device);
  free(c->sequence);
  free(c->offset);
  free(c->x);
  free(c->q);
  free(c->k);
  free(c);
}

/* ---------------------------------------------------------------------------------------------- lengths */

/* Adds the lengths of the pairs of one head of one token; gain: the norm's weight, or NULL. */
static void add_lengths(const float *x, int d, const float *gain, float eps, double *sum) {
  double scale = 1;
  if (gain) {
    double square = 0;
    for (int j = 0; j < d; j++) square += (double)x[j] * x[j];
    scale = 1 / sqrt(square / d + eps);
  }
  for (int k = 0; k < d / 2; k++) {
    double a = x[k], b = x[k + d / 2];
    if (gain) a *= scale * gain[k], b *= scale * gain[k + d / 2];
    sum[k] += sqrt(a * a + b * b);
  }
}

static void seen(void *user, int layer, int64_t m, const float *input, const float *q, int64_t q_stride, const float *k,
                 int64_t k_stride) {
  kf_calibration *c = user;
  const kf_attention_config *a = &c->config->layer[layer].attention;
  int d = a->d_qk;
  (void)input;
  for (int64_t t = 0; t < m; t++) {
    for (int h = 0; h < a->heads; h++)
      add_lengths(q + t * q_stride + (int64_t)h * d, d, a->qk_norm ? c->layer->q_norm : NULL, c->config->eps,
                  c->q + (int64_t)h * d / 2);
    for (int g = 0; g < a->kv_heads; g++)
      add_lengths(k + t * k_stride + (int64_t)g * d, d, a->qk_norm ? c->layer->k_norm : NULL, c->config->eps,
                  c->k + (int64_t)g * d / 2);
  }
}

static kf_status run_layer(kf_calibration *c, int index, kf_error *e) {
  const kf_watch watch = {.seen = seen, .user = c};
  for (int first = 0; first < c->windows; first += BATCH) {
    kf_span spans[BATCH];
    int count = 0;
    for (int i = first; i < c->windows && count < BATCH; i++, count++) {
      KF_TRY(kf_sequence_reserve(c->sequence[i], index, c->offset[i + 1] - c->offset[i], e));
      spans[count] = (kf_span){c->sequence[i], c->offset[i] - c->offset[first], c->offset[i + 1] - c->offset[i], 0};
    }
    KF_TRY(kf_layer_forward(c->run, c->layer, index, c->x + c->offset[first] * c->config->hidden, spans, count, &watch, e));
    for (int i = 0; i < count; i++) kf_sequence_drop(spans[i].sequence, index);
  }
  return kf_device_check(c->device, e);
}

static kf_status next_layer(kf_calibration *c, kf_error *e) {
  const kf_attention_config *a = &c->config->layer[c->next].attention;
  kf_layer loaded = {0};
  memset(c->q, 0, (size_t)a->heads * (size_t)a->d_qk / 2 * sizeof *c->q);
  memset(c->k, 0, (size_t)a->kv_heads * (size_t)a->d_qk / 2 * sizeof *c->k);
  KF_TRY(kf_layer_load(c->weights, c->next, c->device, &loaded, e));
  c->layer = &loaded;
  kf_status s = run_layer(c, c->next, e);
  c->layer = NULL;
  kf_layer_free(&loaded, c->device);
  c->next++;
  return s;
}

kf_status kf_calibration_layer(kf_calibration *c, int layer, bool product, double *scores, kf_error *e) {
  const kf_attention_config *a = &c->config->layer[layer].attention;
  int half = a->d_qk / 2, group = a->heads / a->kv_heads;
  while (c->next <= layer) KF_TRY(next_layer(c, e));
  double n = (double)c->tokens;
  for (int g = 0; g < a->kv_heads; g++)
    for (int k = 0; k < half; k++) {
      double key = c->k[g * half + k] / n, sum = 0;
      for (int h = g * group; h < (g + 1) * group; h++) {
        double query = c->q[h * half + k] / n;
        sum += product ? query * key : query + key;
      }
      scores[g * half + k] = sum;
    }
  return KF_OK;
}
