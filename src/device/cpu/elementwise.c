/* Operations on rows of activations. */
#include <math.h>

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

static void rotate_indexed(float *first, const kf_rope_block *block, const float *cos, const float *sin) {
  float *second = first + block->pairs;
  for (int j = 0; j < block->pairs; j++) {
    float c = cos[block->index[j]], s = sin[block->index[j]], u = first[j], v = second[j];
    first[j] = u * c - v * s;
    second[j] = v * c + u * s;
  }
}

static void rope(kf_device *d, float *x, int64_t m, int64_t stride, const kf_rope_block *blocks, int block_count,
                 const float *cos, const float *sin, int table_pairs, const int32_t *position) {
  const kf_cpu *c = kf_cpu_of(d);
#pragma omp parallel for num_threads(kf_threads_for(c, (double)(m * stride)))
  for (int64_t i = 0; i < m; i++) {
    int64_t at = (int64_t)position[i] * table_pairs;
    for (int b = 0; b < block_count; b++) {
      float *first = x + i * stride + blocks[b].offset;
      if (blocks[b].index)
        rotate_indexed(first, &blocks[b], cos + at, sin + at);
      else
        c->vector->rotate(first, first + blocks[b].pairs, cos + at, sin + at, blocks[b].pairs);
    }
  }
}

void kf_cpu_elementwise_table(kf_device *d) {
  d->rmsnorm = rmsnorm;
  d->head_norm = head_norm;
  d->rope = rope;
}
