/* The ggml block quantisations, as ggml defines them: a block of 32 or 256 numbers with its scales in front (q6_k: behind). */
#ifndef KF_TENSOR_QUANT_H
#define KF_TENSOR_QUANT_H

#include "tensor/dtype.h"

/* n: a multiple of the type's block; t: Q4_0 .. Q6_K. */
void kf_dequantise(kf_dtype t, const uint8_t *from, float *to, size_t n);
/* n: a multiple of 32; finite numbers of at most 127 x 65504. */
void kf_quantise_q8_0(const float *from, uint8_t *to, size_t n);

/* IEEE half precision, subnormals, infinities and NaN included; masks instead of branches, so that loops vectorise. */
static inline float kf_f16_to_f32(uint16_t h) {
  union {
    uint32_t u;
    float f;
  } v, small;
  uint32_t rest = (uint32_t)(h & 0x7fff) << 13, exponent = h & 0x7c00, sign = (uint32_t)(h & 0x8000) << 16;
  uint32_t is_small = -(uint32_t)(exponent == 0), is_special = -(uint32_t)(exponent == 0x7c00);
  small.u = rest + (113u << 23); // 2^-14 (1 + fraction); subnormals have no leading one
  small.f -= 0x1p-14f;
  v.u = rest + (112u << 23) + (is_special & 112u << 23);
  v.u ^= ((v.u ^ small.u) & is_small) | sign;
  return v.f;
}

#endif
