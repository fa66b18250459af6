/* Losses of rows of logits, and their gradients in place. */
#include <math.h>
#include <string.h>

#include "device/cpu/cpu.h"

static double log_sum_exp(const kf_cpu *c, const float *x, float most, float factor, int64_t v) {
  return log(c->backward->sum_exp(x, most, factor, v)) + (double)most * (double)factor;
}

static void one_row(const kf_cpu *c, const kf_softmax_loss *l, float *x, const float *teacher, int32_t target, float weight,
                    int64_t v, double *nll, double *divergence) {
  float most = c->vector->most(x, v), factor = 1 / l->temperature;
  double lse = log_sum_exp(c, x, most, 1, v), other = 0;
  *nll = lse - (double)x[target];
  *divergence = 0;
  if (teacher && l->kl != 0) {
    kf_row_pair rows = {.x = x, .r = teacher, .factor = factor, .n = v};
    rows.x_lse = l->temperature == 1 ? lse : log_sum_exp(c, x, most, factor, v);
    rows.r_lse = log_sum_exp(c, teacher, c->vector->most(teacher, v), factor, v);
    double first = c->backward->divergence(l->divergence, &rows, &other);
    /* d (T^2 D) / d logit = T^2 / T x the gradient by log q's own logits. */
    c->backward->gradient(l->divergence, &rows, x, weight * l->ce, (float)lse, weight * l->kl * l->temperature, first, other);
    *divergence = l->divergence == KF_JENSEN_SHANNON ? (first + other) / 2 : first;
  } else {
    c->backward->softmax(x, weight * l->ce, (float)lse, v);
  }
  x[target] -= weight * l->ce;
}

static void softmax_loss(kf_device *d, const kf_softmax_loss *l, float *logits, const float *teacher, const int32_t *target,
                         const float *weight, int64_t m, int64_t v, double *nll, double *divergence) {
  const kf_cpu *c = kf_cpu_of(d);
#pragma omp parallel for num_threads(kf_threads_for(c, (double)(m * v)))
  for (int64_t i = 0; i < m; i++) {
    if (weight[i] != 0) {
      one_row(c, l, logits + i * v, teacher ? teacher + i * v : NULL, target[i], weight[i], v, &nll[i], &divergence[i]);
    } else {
      memset(logits + i * v, 0, (size_t)v * sizeof *logits);
      nll[i] = divergence[i] = 0;
    }
  }
}

void kf_cpu_loss_backward_table(kf_device *d) {
  d->softmax_loss = softmax_loss;
}
