/* Sums over rows of logits. Exponentials in f32, sums in fp64. */
#include <math.h>

#include "device/cpu/cpu.h"

static int32_t first_equal(const float *x, float value, int64_t n) {
  for (int64_t j = 0; j < n; j++) {
    if (x[j] == value) return (int32_t)j;
  }
  return 0;
}

static void cross_entropy(kf_device *d, const float *logits, const int32_t *target, int64_t m, int64_t v, double *nll,
                          int32_t *best) {
  const kf_cpu *c = kf_cpu_of(d);
#pragma omp parallel for num_threads(kf_threads_for(c, (double)(m * v)))
  for (int64_t i = 0; i < m; i++) {
    const float *x = logits + i * v;
    float most = c->vector->most(x, v);
    best[i] = first_equal(x, most, v);
    nll[i] = log(c->vector->sum_exp(x, most, v)) + ((double)most - (double)x[target[i]]);
  }
}

/* KL = sum of p (r - x) - log Z_r + log Z_x, p = e^r / Z_r. */
static void divergence(kf_device *d, const float *reference, const float *logits, int64_t m, int64_t v, double *kl,
                       double *difference) {
  const kf_cpu *c = kf_cpu_of(d);
#pragma omp parallel for num_threads(kf_threads_for(c, (double)(m * v)))
  for (int64_t i = 0; i < m; i++) {
    const float *r = reference + i * v, *x = logits + i * v;
    float r_most = c->vector->most(r, v), x_most = c->vector->most(x, v);
    double r_sum = c->vector->sum_exp(r, r_most, v), x_sum = c->vector->sum_exp(x, x_most, v);
    double mean = c->vector->divergence(r, r_most, x, v, &difference[i]) / r_sum;
    kl[i] = mean - (log(r_sum) + (double)r_most) + (log(x_sum) + (double)x_most);
  }
}

void kf_cpu_loss_table(kf_device *d) {
  d->cross_entropy = cross_entropy;
  d->divergence = divergence;
}
