/* Backward of the operations on rows of activations. */
#include <math.h>
#include <omp.h>
#include <string.h>

#include "device/cpu/cpu.h"

static float inverse_rms(const kf_cpu *c, const float *x, int64_t n, float eps) {
  return 1 / sqrtf(c->vector->sum_squares(x, n) / (float)n + eps);
}

/* One row of `width` sums a thread, added up in the order of the threads. NULL: no memory. */
static float *partial_sums(kf_cpu *c, int threads, int64_t width) {
  float *sums = kf_scratch(c, KF_SCRATCH_PARTS, (size_t)(threads * width) * sizeof *sums);
  return sums ? memset(sums, 0, (size_t)(threads * width) * sizeof *sums) : NULL;
}

static void add_partial(float *to, const float *sums, int threads, int64_t width) {
  for (int t = 0; t < threads; t++)
    for (int64_t j = 0; j < width; j++) to[j] += sums[t * width + j];
}

static void rmsnorm_backward(kf_device *d, float *dx, float *dw, const float *dy, const float *x, const float *w, int64_t m,
                             int64_t n, float eps, bool add) {
  kf_cpu *c = kf_cpu_of(d);
  int threads = kf_threads_for(c, (double)(m * n));
  float *sums = dw ? partial_sums(c, threads, n) : NULL;
  if (dw && !sums) return;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < m; i++) {
    float *mine = sums ? sums + omp_get_thread_num() * n : NULL;
    c->backward->norm(dx + i * n, mine, dy + i * n, x + i * n, w, inverse_rms(c, x + i * n, n, eps), n, add);
  }
  if (dw) add_partial(dw, sums, threads, n);
}

static void head_norm_backward(kf_device *d, float *dx, int64_t dx_stride, float *dw, const float *x, int64_t x_stride, int64_t m,
                               int heads, int n, const float *w, int w_heads, float eps) {
  kf_cpu *c = kf_cpu_of(d);
  int threads = kf_threads_for(c, (double)m * heads * n);
  int64_t width = (int64_t)w_heads * n;
  float *sums = dw ? partial_sums(c, threads, width) : NULL;
  if (dw && !sums) return;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < m; i++) {
    for (int h = 0; h < heads; h++) {
      int64_t row = (int64_t)(h / (heads / w_heads)) * n;
      const float *in = x + i * x_stride + (int64_t)h * n;
      float *to = dx + i * dx_stride + (int64_t)h * n;
      c->backward->norm(to, sums ? sums + omp_get_thread_num() * width + row : NULL, to, in, w + row, inverse_rms(c, in, n, eps),
                        n, false);
    }
  }
  if (dw) add_partial(dw, sums, threads, width);
}

static void swiglu_forward(kf_device *d, float *y, const float *gate_up, int64_t m, int64_t f) {
  const kf_cpu *c = kf_cpu_of(d);
#pragma omp parallel for num_threads(kf_threads_for(c, (double)(m * f) * 4))
  for (int64_t i = 0; i < m; i++) c->backward->swiglu_forward(y + i * f, gate_up + i * 2 * f, gate_up + i * 2 * f + f, f);
}

/* d_gate_up may be gate_up: the kernel reads both halves of a vector before it writes them. */
static void swiglu_backward(kf_device *d, float *d_gate_up, const float *dy, const float *gate_up, int64_t m, int64_t f) {
  const kf_cpu *c = kf_cpu_of(d);
#pragma omp parallel for num_threads(kf_threads_for(c, (double)(m * f) * 4))
  for (int64_t i = 0; i < m; i++) {
    const float *in = gate_up + i * 2 * f;
    float *to = d_gate_up + i * 2 * f;
    c->backward->swiglu(to, to + f, dy + i * f, in, in + f, f);
  }
}

static void gather(kf_device *d, float *y, const float *table, const int32_t *ids, int64_t m, int64_t n) {
  (void)d;
  for (int64_t i = 0; i < m; i++) memcpy(y + i * n, table + ids[i] * n, (size_t)n * sizeof *y);
}

/* In the order of the rows whatever the number of threads, each of which has its own columns. */
static void scatter_add(kf_device *d, float *d_table, const float *dy, const int32_t *ids, int64_t m, int64_t n) {
  enum { COLUMNS = 64 };
  const kf_cpu *c = kf_cpu_of(d);
#pragma omp parallel for num_threads(kf_threads_for(c, (double)(m * n)))
  for (int64_t j = 0; j < n; j += COLUMNS) {
    int64_t end = kf_least(n, j + COLUMNS);
    for (int64_t i = 0; i < m; i++) {
      float *to = d_table + ids[i] * n;
      for (int64_t l = j; l < end; l++) to[l] += dy[i * n + l];
    }
  }
}

void kf_cpu_elementwise_backward_table(kf_device *d) {
  d->rmsnorm_backward = rmsnorm_backward;
  d->head_norm_backward = head_norm_backward;
  d->swiglu_forward = swiglu_forward;
  d->swiglu_backward = swiglu_backward;
  d->gather = gather;
  d->scatter_add = scatter_add;
}
