/* The ggml block quantisations, as ggml defines them: a block of 32 or 256 numbers with its scales in front (q6_k: behind). */
#ifndef KF_TENSOR_QUANT_H
#define KF_TENSOR_QUANT_H

#include "tensor/dtype.h"

/* n: a multiple of the type's block; t: Q4_0 .. Q6_K. */
void kf_dequantise(kf_dtype t, const uint8_t *from, float *to, size_t n);

/* IEEE half precision, subnormals, infinities and NaN included. */
static inline float kf_f16_to_f32(uint16_t h) {
  union {
    uint32_t u;
    float f;
  } v;
  uint32_t rest = (uint32_t)(h & 0x7fff) << 13, exponent = h & 0x7c00, sign = (uint32_t)(h & 0x8000) << 16;
  union {
    uint32_t u;
    float f;
  } small = {rest + (113u << 23)}; // 2^-14 (1 + fraction); subnormals have no leading one
  small.f -= 0x1p-14f;
  v.u = exponent == 0 ? small.u : rest + (exponent == 0x7c00 ? 224u << 23 : 112u << 23);
  v.u |= sign;
  return v.f;
}

#endif
