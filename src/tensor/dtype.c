#include "tensor/dtype.h"

#include <math.h>
#include <string.h>
#include <strings.h>

#include "tensor/quant.h"

static const struct {
  const char *name;
  int block, bytes;
} types[KF_DTYPES] = {
    [KF_F32] = {"f32", 1, 4},       [KF_F16] = {"f16", 1, 2},       [KF_BF16] = {"bf16", 1, 2},   [KF_F64] = {"f64", 1, 8},
    [KF_I64] = {"i64", 1, 8},       [KF_I32] = {"i32", 1, 4},       [KF_I16] = {"i16", 1, 2},     [KF_I8] = {"i8", 1, 1},
    [KF_U8] = {"u8", 1, 1},         [KF_BOOL] = {"bool", 1, 1},     [KF_Q4_0] = {"q4_0", 32, 18}, [KF_Q4_1] = {"q4_1", 32, 20},
    [KF_Q5_0] = {"q5_0", 32, 22},   [KF_Q5_1] = {"q5_1", 32, 24},   [KF_Q8_0] = {"q8_0", 32, 34}, [KF_Q4_K] = {"q4_k", 256, 144},
    [KF_Q5_K] = {"q5_k", 256, 176}, [KF_Q6_K] = {"q6_k", 256, 210},
};

const char *kf_dtype_name(kf_dtype t) {
  return types[t].name;
}

bool kf_dtype_parse(const char *name, kf_dtype *out) {
  for (int t = 0; t < KF_DTYPES; t++)
    if (strcasecmp(name, types[t].name) == 0) {
      *out = (kf_dtype)t;
      return true;
    }
  return false;
}

int kf_dtype_block(kf_dtype t) {
  return types[t].block;
}

int kf_dtype_block_bytes(kf_dtype t) {
  return types[t].bytes;
}

bool kf_dtype_is_float(kf_dtype t) {
  return t <= KF_F64 || t >= KF_Q4_0;
}

bool kf_dtype_bytes(kf_dtype t, int64_t count, size_t *out) {
  return count >= 0 && count % types[t].block == 0 &&
         !__builtin_mul_overflow((size_t)(count / types[t].block), (size_t)types[t].bytes, out);
}

/* The loops below read and write by memcpy: mapped tensors may stand at any address. */

void kf_to_f32(kf_dtype t, const void *from, float *to, size_t n) {
  const uint8_t *p = from;
  switch (t) {
  case KF_F32:
    if (n) memcpy(to, p, n * 4);
    break;
  case KF_F16:
    for (size_t i = 0; i < n; i++) {
      uint16_t h;
      memcpy(&h, p + 2 * i, 2);
      to[i] = kf_f16_to_f32(h);
    }
    break;
  case KF_BF16:
    for (size_t i = 0; i < n; i++) {
      uint16_t h;
      memcpy(&h, p + 2 * i, 2);
      to[i] = kf_bf16_to_f32(h);
    }
    break;
  case KF_F64:
    for (size_t i = 0; i < n; i++) {
      double d;
      memcpy(&d, p + 8 * i, 8);
      to[i] = (float)d;
    }
    break;
  default:
    if (t >= KF_Q4_0) kf_dequantise(t, p, to, n);
  }
}

/* Masks instead of branches, so that the loop vectorises. */
static inline uint16_t f32_to_f16(float f) {
  union {
    float f;
    uint32_t u;
  } v = {f}, small;
  uint32_t sign = v.u >> 16 & 0x8000, a = v.u & 0x7fffffff;
  small.u = a;
  small.f += 0.5f; // lines the last subnormal bit of a half up with the last bit of a float, so that the sum rounds
  uint32_t subnormal = small.u - 0x3f000000, normal = (a - (112u << 23) + 0xfff + (a >> 13 & 1)) >> 13;
  uint32_t is_small = -(uint32_t)(a < 0x38800000);  // below 2^-14
  uint32_t is_large = -(uint32_t)(a >= 0x47800000); // from 2^16; what rounds up to it is infinity by itself
  uint32_t is_nan = -(uint32_t)(a > 0x7f800000);
  uint32_t h = (subnormal & is_small) | (normal & ~is_small & ~is_large) | (0x7c00 & is_large);
  h |= (0x0200 | (a >> 13 & 0x3ff)) & is_nan;
  return (uint16_t)(h | sign);
}

void kf_from_f32(kf_dtype t, const float *from, void *to, size_t n) {
  uint8_t *p = to;
  if (t == KF_F32 && n) memcpy(p, from, n * 4);
  if (t == KF_F16)
    for (size_t i = 0; i < n; i++) {
      uint16_t h = f32_to_f16(from[i]);
      memcpy(p + 2 * i, &h, 2);
    }
  if (t == KF_BF16)
    for (size_t i = 0; i < n; i++) {
      uint16_t h = kf_f32_to_bf16(from[i]);
      memcpy(p + 2 * i, &h, 2);
    }
  if (t == KF_Q8_0) kf_quantise_q8_0(from, p, n);
}

const float *kf_beyond(kf_dtype t, const float *from, size_t n) {
  for (size_t i = 0; t == KF_F16 && i < n; i++)
    if (fabsf(from[i]) >= 65520 && isfinite(from[i])) return from + i;
  for (size_t i = 0; t == KF_Q8_0 && i < n; i++)
    if (!(fabsf(from[i]) <= 127 * 65504.0f)) return from + i;
  return NULL;
}
