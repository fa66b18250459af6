/* The part of the online softmax that is the same in every compute type. */
#ifndef KF_CPU_SOFTMAX_H
#define KF_CPU_SOFTMAX_H

#include "device/cpu/simd.h"

/* Hides keys outside [low, high), applies the factors, raises *maximum (in units of log2) and rescales *sum.
 * *shift is what is to be subtracted from scaled scores. Returns the factor of earlier sums. */
static inline float softmax_begin(float *s, int count, int low, int high, const float *factor, float scale, float *maximum,
                                  float *sum, float *shift) {
  for (int i = 0; factor && i < count; i += VL) vf_store(s + i, vf_load(s + i) * vf_load(factor + i));
  for (int i = 0; i < low; i++) s[i] = -INFINITY;
  for (int i = high > 0 ? high : 0; i < count; i++) s[i] = -INFINITY;
  vf top = vf_load(s);
  for (int i = VL; i < count; i += VL) top = vf_max(top, vf_load(s + i));
  float old = *maximum, now = vf_most(top) * scale;
  if (now < old) now = old;
  /* Nothing visible yet: shift by 0, so that all probabilities become 0 and not NaN. */
  *shift = now == -INFINITY ? 0 : now;
  *maximum = now;
  float alpha = now == old ? 1 : exp2f(old - now);
  *sum *= alpha;
  return alpha;
}

#endif
