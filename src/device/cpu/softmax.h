/* The part of the online softmax that is the same in every compute type. */
#ifndef KF_CPU_SOFTMAX_H
#define KF_CPU_SOFTMAX_H

#include "device/cpu/simd.h"

/* Hides keys outside [low, high), applies the factors, raises *maximum (in units of log2) and rescales *sum.
 * Returns the factor of earlier sums; *maximum is then what is to be subtracted from scaled scores. */
static inline float softmax_begin(float *s, int count, int low, int high, const float *factor, float scale, float *maximum,
                                  float *sum) {
  const float hidden = -1e30f; /* finite: its 2^x is 0 without a special case */
  for (int i = 0; factor && i < count; i += VL) vf_store(s + i, vf_load(s + i) * vf_load(factor + i));
  for (int i = 0; i < low; i++) s[i] = hidden;
  for (int i = high; i < count; i++) s[i] = hidden;
  vf a = vf_load(s), b = vf_load(s + VL);
  for (int i = 2 * VL; i < count; i += 2 * VL) {
    a = vf_max(a, vf_load(s + i));
    b = vf_max(b, vf_load(s + i + VL));
  }
  float old = *maximum, now = vf_most(vf_max(a, b)) * scale;
  if (now <= old) return 1;
  float alpha = old == -INFINITY ? 0 : exp2f(old - now);
  *maximum = now;
  *sum *= alpha;
  return alpha;
}

#endif
