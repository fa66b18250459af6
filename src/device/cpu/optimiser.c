/* What the optimiser does to all parameters at once. */
#include "device/cpu/cpu.h"

enum { PIECE = 1 << 14 }; /* numbers of one task: sums do not depend on how tasks fall to threads */

static void adamw(kf_device *d, const kf_adamw *o, float *w, float *first, float *second, const float *gradient, int64_t n) {
  const kf_cpu *c = kf_cpu_of(d);
#pragma omp parallel for num_threads(kf_threads_for(c, (double)n))
  for (int64_t i = 0; i < n; i += PIECE)
    c->backward->adamw(o, w + i, first + i, second + i, gradient + i, kf_least(PIECE, n - i));
}

static double sum_squares(kf_device *d, const float *x, int64_t n) {
  kf_cpu *c = kf_cpu_of(d);
  int64_t pieces = (n + PIECE - 1) / PIECE;
  double *part = kf_scratch(c, KF_SCRATCH_PARTS, (size_t)pieces * sizeof *part), sum = 0;
  if (!part) return 0;
#pragma omp parallel for num_threads(kf_threads_for(c, (double)n))
  for (int64_t p = 0; p < pieces; p++) part[p] = (double)c->vector->sum_squares(x + p * PIECE, kf_least(PIECE, n - p * PIECE));
  for (int64_t p = 0; p < pieces; p++) sum += part[p];
  return sum;
}

void kf_cpu_optimiser_table(kf_device *d) {
  d->adamw = adamw;
  d->sum_squares = sum_squares;
}
