/* Number formats: plain ones and the ggml block quantisations, and their conversions to and from f32. */
#ifndef KF_TENSOR_DTYPE_H
#define KF_TENSOR_DTYPE_H

#include "base/error.h"

/* clang-format off */
typedef enum kf_dtype {
  KF_F32, KF_F16, KF_BF16, KF_F64, KF_I64, KF_I32, KF_I16, KF_I8, KF_U8, KF_BOOL, /* safetensors' plain types */
  KF_Q4_0, KF_Q4_1, KF_Q5_0, KF_Q5_1, KF_Q8_0, KF_Q4_K, KF_Q5_K, KF_Q6_K,         /* ggml blocks, along a row */
  KF_DTYPES
} kf_dtype;
/* clang-format on */

const char *kf_dtype_name(kf_dtype t);                /* "f32", "bf16", "q4_k", ... */
bool kf_dtype_parse(const char *name, kf_dtype *out); /* the same names, case ignored */
int kf_dtype_block(kf_dtype t);                       /* elements a block: 1, 32 or 256 */
int kf_dtype_block_bytes(kf_dtype t);
bool kf_dtype_is_float(kf_dtype t); /* f32, f16, bf16, f64 or a block quantisation */
/* Bytes of `count` elements, a multiple of the block; false on overflow or a broken block. */
bool kf_dtype_bytes(kf_dtype t, int64_t count, size_t *out);

/* n: a multiple of the block. Any floating type. */
void kf_to_f32(kf_dtype t, const void *from, float *to, size_t n);
/* F32, F16 and BF16: to nearest even, NaN kept; Q8_0: whole blocks of numbers that it can hold. */
void kf_from_f32(kf_dtype t, const float *from, void *to, size_t n);
/* The first of n numbers that becomes infinite in the type, or that Q8_0 cannot hold; NULL: none. */
const float *kf_beyond(kf_dtype t, const float *from, size_t n);

static inline float kf_bf16_to_f32(uint16_t h) {
  union {
    uint32_t u;
    float f;
  } v = {(uint32_t)h << 16};
  return v.f;
}
static inline uint16_t kf_f32_to_bf16(float f) {
  union {
    float f;
    uint32_t u;
  } v = {f};
  if ((v.u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(v.u >> 16 | 0x40);
  return (uint16_t)((v.u + 0x7fff + (v.u >> 16 & 1)) >> 16);
}

#endif
