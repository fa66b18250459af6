/* Rows of caches: writing and reading them. */
#include <string.h>

#include "device/cpu/cpu.h"

static void store(kf_device *d, const kf_rows *rows, int64_t at, int64_t m, int64_t column, int64_t n, const float *x,
                  int64_t stride) {
  const kf_cpu *c = kf_cpu_of(d);
#pragma omp parallel for num_threads(kf_threads_for(c, (double)(m * n)))
  for (int64_t i = 0; i < m; i++) {
    void *row = kf_row(rows, at + i);
    if (rows->dtype == KF_BF16)
      c->vector->to_bf16((uint16_t *)row + column, x + i * stride, n);
    else
      memcpy((float *)row + column, x + i * stride, (size_t)n * sizeof *x);
  }
}

static void fetch(kf_device *d, float *y, int64_t stride, const kf_rows *rows, int64_t at, int64_t m, int64_t column, int64_t n) {
  const kf_cpu *c = kf_cpu_of(d);
#pragma omp parallel for num_threads(kf_threads_for(c, (double)(m * n)))
  for (int64_t i = 0; i < m; i++) {
    const void *row = kf_row(rows, at + i);
    if (rows->dtype == KF_BF16)
      c->vector->from_bf16(y + i * stride, (const uint16_t *)row + column, n);
    else
      memcpy(y + i * stride, (const float *)row + column, (size_t)n * sizeof *y);
  }
}

void kf_cpu_rows_table(kf_device *d) {
  d->store = store;
  d->fetch = fetch;
}
