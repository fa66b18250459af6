/* Products with trained matrices: three layouts of one plain copy of the weights, all through oneDNN. */
#include <string.h>

#include "device/cpu/cpu.h"

static void round_to(kf_device *d, void *to, const float *from, int64_t n) {
  enum { PIECE = 1 << 14 };
  const kf_cpu *c = kf_cpu_of(d);
  if (d->compute == KF_F32) {
    memcpy(to, from, (size_t)n * sizeof *from);
    return;
  }
#pragma omp parallel for num_threads(kf_threads_for(c, (double)n))
  for (int64_t i = 0; i < n; i += PIECE) c->vector->to_bf16((uint16_t *)to + i, from + i, kf_least(PIECE, n - i));
}

/* Activations in the compute type: x itself in f32. NULL: no memory, the device says so. */
static const void *input(kf_device *d, kf_scratch_slot slot, const float *x, int64_t n) {
  if (d->compute == KF_F32) return x;
  void *to = kf_scratch(kf_cpu_of(d), slot, (size_t)n * sizeof(uint16_t));
  if (to) round_to(d, to, x, n);
  return to;
}

static void matrix(kf_device *d, float *y, const float *x, const kf_matrix *w, int64_t m, bool add) {
  kf_onednn_shape shape = {.m = m, .n = w->n, .k = w->k, .type = d->compute, .bias = w->bias != NULL, .add = add};
  if (m < 1 || d->error.status != KF_OK) return;
  const void *in = input(d, KF_SCRATCH_INPUT, x, m * w->k);
  if (in) kf_onednn_linear(kf_cpu_of(d)->onednn, &shape, y, in, w->w, w->bias, &d->error);
}

static void add_rows(const kf_cpu *c, float *sum, const float *x, int64_t m, int64_t n) {
  enum { COLUMNS = 64 };
#pragma omp parallel for num_threads(kf_threads_for(c, (double)(m * n)))
  for (int64_t j = 0; j < n; j += COLUMNS) {
    int64_t end = kf_least(n, j + COLUMNS);
    for (int64_t i = 0; i < m; i++)
      for (int64_t l = j; l < end; l++) sum[l] += x[i * n + l];
  }
}

static void matrix_backward(kf_device *d, float *dx, float *dw, float *dbias, const float *dy, const float *x, const kf_matrix *w,
                            int64_t m, bool add) {
  kf_cpu *c = kf_cpu_of(d);
  if (m < 1 || d->error.status != KF_OK) return;
  if (dbias) add_rows(c, dbias, dy, m, w->n);
  const void *out = dx || dw ? input(d, KF_SCRATCH_GRADIENT, dy, m * w->n) : NULL;
  if (dx && out) {
    kf_onednn_shape shape = {.m = m, .n = w->k, .k = w->n, .type = d->compute, .add = add, .weights_transposed = true};
    kf_onednn_linear(c->onednn, &shape, dx, out, w->w, NULL, &d->error);
  }
  const void *in = dw && out ? input(d, KF_SCRATCH_INPUT, x, m * w->k) : NULL;
  if (in && d->error.status == KF_OK) {
    kf_onednn_shape shape = {
        .m = w->n, .n = w->k, .k = m, .type = d->compute, .add = true, .source_transposed = true, .weights_transposed = true};
    kf_onednn_linear(c->onednn, &shape, dw, out, in, NULL, &d->error);
  }
}

void kf_cpu_matrix_table(kf_device *d) {
  d->round = round_to;
  d->matrix = matrix;
  d->matrix_backward = matrix_backward;
}
