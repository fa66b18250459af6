/* The end of the network: final norm, head and loss, a chunk of rows at a time. A chunk's logits are all there at once, so that
 * no product is made twice; what bounds memory is the number of rows. */
#include <stdlib.h>
#include <string.h>

#include "train/network_impl.h"

enum { LOGIT_BYTES = 48 << 20 }; /* of one chunk, student or teacher */

static int64_t chunk_rows(const kf_network *n, int64_t rows) {
  int64_t chunk = LOGIT_BYTES / (int64_t)sizeof(float) / n->config->vocabulary;
  chunk = chunk < 16 ? 16 : chunk > 1024 ? 1024 : chunk;
  return chunk < rows ? chunk : rows;
}

static bool any(const float *weight, int64_t m) {
  for (int64_t i = 0; i < m; i++)
    if (weight[i] != 0) return true;
  return false;
}

kf_status kf_network_loss(kf_network *n, const kf_softmax_loss *l, float *hidden, int64_t rows, const int32_t *target,
                          const float *weight, kf_teacher_logits teacher, void *user, double *nll, double *divergence,
                          kf_error *e) {
  kf_device *d = n->device;
  int64_t width = n->config->hidden, v = n->config->vocabulary, chunk = chunk_rows(n, rows);
  float *h, *dh, *logits, *reference = NULL;
  KF_TRY(kf_work_take(n, KF_WORK_H, chunk * width, &h, e));
  KF_TRY(kf_work_take(n, KF_WORK_D_H, chunk * width, &dh, e));
  KF_TRY(kf_work_take(n, KF_WORK_LOGITS, chunk * v, &logits, e));
  if (teacher) KF_TRY(kf_work_take(n, KF_WORK_TEACHER, chunk * v, &reference, e));
  for (int64_t at = 0; at < rows; at += chunk) {
    int64_t m = rows - at < chunk ? rows - at : chunk;
    float *x = hidden + at * width;
    if (!any(weight + at, m)) {
      d->zero(d, x, m * width);
      memset(nll + at, 0, (size_t)m * sizeof *nll);
      memset(divergence + at, 0, (size_t)m * sizeof *divergence);
      continue;
    }
    d->rmsnorm(d, h, x, n->norm.w, m, width, n->config->eps);
    d->matrix(d, logits, h, &n->head.matrix, m, false);
    if (teacher) KF_TRY(teacher(user, at, m, logits, reference, e));
    d->softmax_loss(d, l, logits, reference, target + at, weight + at, m, v, nll + at, divergence + at);
    d->matrix_backward(d, dh, n->head.dw, NULL, logits, h, &n->head.matrix, m, false);
    d->rmsnorm_backward(d, x, n->norm.dw, dh, x, n->norm.w, m, width, n->config->eps, false);
    KF_TRY(kf_device_check(d, e));
  }
  return KF_OK;
}

kf_status kf_network_score(kf_network *n, const float *hidden, int64_t rows, const int32_t *target, double *nll, kf_error *e) {
  kf_device *d = n->device;
  int64_t width = n->config->hidden, v = n->config->vocabulary, chunk = chunk_rows(n, rows);
  float *h, *logits;
  int32_t *best; /* not asked for */
  KF_TRY(kf_work_take(n, KF_WORK_H, chunk * width, &h, e));
  KF_TRY(kf_work_take(n, KF_WORK_LOGITS, chunk * v, &logits, e));
  KF_DEVICE_NEW(d, best, chunk, e);
  for (int64_t at = 0; at < rows; at += chunk) {
    int64_t m = rows - at < chunk ? rows - at : chunk;
    d->rmsnorm(d, h, hidden + at * width, n->norm.w, m, width, n->config->eps);
    d->matrix(d, logits, h, &n->head.matrix, m, false);
    d->cross_entropy(d, logits, target + at, m, v, nll + at, best);
  }
  d->release(d, best);
  return kf_device_check(d, e);
}
