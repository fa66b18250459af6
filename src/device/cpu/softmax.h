/* The part of the online softmax that is the same in every compute type. */
#ifndef KF_CPU_SOFTMAX_H
#define KF_CPU_SOFTMAX_H

#include "device/cpu/kernels.h"
#include "device/cpu/simd.h"

/* Apart from the rest, which most rows go through alone. */
static __attribute__((noinline)) void softmax_mask(float *s, int count, int low, int high, const float *factor) {
  const float hidden = -1e30f; /* finite: its 2^x is 0 without a special case */
  for (int i = 0; factor && i < count; i += VL) vf_store(s + i, vf_load(s + i) * vf_load(factor + i));
  for (int i = 0; i < low; i++) s[i] = hidden;
  for (int i = high; i < count; i++) s[i] = hidden;
}

/* Hides keys outside [low, high), applies the factors and raises *maximum (in units of log2): what is then to be
 * subtracted from scaled scores. Returns the factor of earlier sums. */
static inline float softmax_begin(float *s, int count, int low, int high, const float *factor, float scale, float *maximum) {
  if (factor || low > 0 || high < count) softmax_mask(s, count, low, high, factor);
  vf a = vf_load(s), b = vf_load(s + VL);
  for (int i = 2 * VL; i < count; i += 2 * VL) {
    a = vf_max(a, vf_load(s + i));
    b = vf_max(b, vf_load(s + i + VL));
  }
  vf top = vf_max(a, b) * vf_set(scale);
  if (!vf_any_above(top, *maximum)) return 1; /* mostly, after the first tiles */
  float old = *maximum;
  *maximum = vf_most(top);
  return old == -INFINITY ? 0 : vf_exp2(vf_set(old - *maximum))[0];
}

/* sum: [KF_LANES] */
static inline void softmax_add(float *sum, float alpha, vf total) {
  vf_store(sum, vf_fma(vf_load(sum), vf_set(alpha), total));
}

#endif
