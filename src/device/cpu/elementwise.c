/* Operations on rows of activations. */
#include <math.h>
#include <string.h>

#include "device/cpu/cpu.h"

float kf_inverse_rms(const kf_cpu *c, const float *x, int64_t n, float eps) {
  return 1 / sqrtf(c->vector->sum_squares(x, n) / (float)n + eps);
}

static void rmsnorm(kf_device *d, float *y, const float *x, const float *w, int64_t m, int64_t n, float eps) {
  const kf_cpu *c = kf_cpu_of(d);
#pragma omp parallel for num_threads(kf_threads_for(c, (double)(m * n)))
  for (int64_t i = 0; i < m; i++) c->vector->scale(y + i * n, x + i * n, w, kf_inverse_rms(c, x + i * n, n, eps), n);
}

static void head_norm(kf_device *d, float *x, int64_t m, int64_t stride, int heads, int n, const float *w, int w_heads,
                      float eps) {
  const kf_cpu *c = kf_cpu_of(d);
  int group = heads / w_heads;
#pragma omp parallel for num_threads(kf_threads_for(c, (double)m *heads *n))
  for (int64_t i = 0; i < m; i++) {
    for (int h = 0; h < heads; h++) {
      float *row = x + i * stride + (int64_t)h * n;
      c->vector->scale(row, row, w + (int64_t)(h / group) * n, kf_inverse_rms(c, row, n, eps), n);
    }
  }
}

static void rotate_indexed(float *first, float *second, const kf_rope_block *block, const float *cos, const float *sin) {
  for (int j = 0; j < block->pairs; j++) {
    float c = cos[block->index[j]], s = sin[block->index[j]], u = first[j], v = second[j];
    first[j] = u * c - v * s;
    second[j] = v * c + u * s;
  }
}

static void rope(kf_device *d, float *x, int64_t m, int64_t stride, const kf_rope_block *blocks, int block_count,
                 const float *cos, const float *sin, int table_pairs, const int32_t *position, bool reverse) {
  const kf_cpu *c = kf_cpu_of(d);
#pragma omp parallel for num_threads(kf_threads_for(c, (double)(m * stride)))
  for (int64_t i = 0; i < m; i++) {
    int64_t at = (int64_t)position[i] * table_pairs;
    for (int b = 0; b < block_count; b++) {
      float *half[] = {x + i * stride + blocks[b].offset, x + i * stride + blocks[b].offset + blocks[b].pairs};
      float *first = half[reverse], *second = half[!reverse]; /* with its axes exchanged a rotation goes the other way */
      if (blocks[b].index)
        rotate_indexed(first, second, &blocks[b], cos + at, sin + at);
      else
        c->vector->rotate(first, second, cos + at, sin + at, blocks[b].pairs);
    }
  }
}

static void copy(kf_device *d, float *y, int64_t y_stride, const float *x, int64_t x_stride, int64_t m, int64_t n, bool add) {
#pragma omp parallel for num_threads(kf_threads_for(kf_cpu_of(d), (double)(m * n)))
  for (int64_t i = 0; i < m; i++) {
    float *to = y + i * y_stride;
    const float *from = x + i * x_stride;
    if (!add) memcpy(to, from, (size_t)n * sizeof *to);
    for (int64_t j = 0; add && j < n; j++) to[j] += from[j];
  }
}

static void zero(kf_device *d, float *x, int64_t n) {
  (void)d;
  memset(x, 0, (size_t)n * sizeof *x);
}

void kf_cpu_elementwise_table(kf_device *d) {
  d->copy = copy;
  d->zero = zero;
  d->rmsnorm = rmsnorm;
  d->head_norm = head_norm;
  d->rope = rope;
}
