#include "tensor/quant.h"

#include <math.h>
#include <string.h>

static float half(const uint8_t *p) {
  uint16_t h;
  memcpy(&h, p, 2);
  return kf_f16_to_f32(h);
}

/* Blocks of 32. A byte holds numbers j (low nibble) and j + 16 (high nibble). */

static void q4_0(const uint8_t *b, float *y) { // d, 16 x 2 nibbles: d (q - 8)
  float d = half(b);
  for (int j = 0; j < 16; j++) {
    y[j] = (float)((b[2 + j] & 15) - 8) * d;
    y[j + 16] = (float)((b[2 + j] >> 4) - 8) * d;
  }
}

static void q4_1(const uint8_t *b, float *y) { // d, m, nibbles: d q + m
  float d = half(b), m = half(b + 2);
  for (int j = 0; j < 16; j++) {
    y[j] = (float)(b[4 + j] & 15) * d + m;
    y[j + 16] = (float)(b[4 + j] >> 4) * d + m;
  }
}

static void q5_0(const uint8_t *b, float *y) { // d, 32 fifth bits, nibbles: d (q - 16)
  float d = half(b);
  uint32_t high;
  memcpy(&high, b + 2, 4);
  for (int j = 0; j < 16; j++) {
    y[j] = (float)((int)((b[6 + j] & 15) | (high >> j & 1) << 4) - 16) * d;
    y[j + 16] = (float)((int)((b[6 + j] >> 4) | (high >> (j + 16) & 1) << 4) - 16) * d;
  }
}

static void q5_1(const uint8_t *b, float *y) { // d, m, 32 fifth bits, nibbles: d q + m
  float d = half(b), m = half(b + 2);
  uint32_t high;
  memcpy(&high, b + 4, 4);
  for (int j = 0; j < 16; j++) {
    y[j] = (float)((b[8 + j] & 15) | (high >> j & 1) << 4) * d + m;
    y[j + 16] = (float)((b[8 + j] >> 4) | (high >> (j + 16) & 1) << 4) * d + m;
  }
}

static void q8_0(const uint8_t *b, float *y) { // d, 32 signed bytes
  float d = half(b);
  for (int j = 0; j < 32; j++) y[j] = (float)(int8_t)b[2 + j] * d;
}

/* Blocks of 256 in 8 groups of 32, each with a 6-bit scale and minimum packed in 12 bytes. */

static void group_scale(const uint8_t *s, int group, float d, float dmin, float *scale, float *minimum) {
  int q, m;
  if (group < 4) {
    q = s[group] & 63;
    m = s[group + 4] & 63;
  } else {
    q = (s[group + 4] & 15) | s[group - 4] >> 6 << 4;
    m = s[group + 4] >> 4 | s[group] >> 6 << 4;
  }
  *scale = d * (float)q;
  *minimum = dmin * (float)m;
}

static void q4_k(const uint8_t *b, float *y) { // d, dmin, 12 bytes of scales, nibbles
  float d = half(b), dmin = half(b + 2), scale, minimum;
  for (int group = 0; group < 8; group++, y += 32) {
    const uint8_t *q = b + 16 + group / 2 * 32;
    int shift = group % 2 * 4;
    group_scale(b + 4, group, d, dmin, &scale, &minimum);
    for (int j = 0; j < 32; j++) y[j] = scale * (float)(q[j] >> shift & 15) - minimum;
  }
}

static void q5_k(const uint8_t *b, float *y) { // d, dmin, 12 bytes of scales, 32 x 8 fifth bits, nibbles
  float d = half(b), dmin = half(b + 2), scale, minimum;
  const uint8_t *high = b + 16;
  for (int group = 0; group < 8; group++, y += 32) {
    const uint8_t *q = b + 48 + group / 2 * 32;
    int shift = group % 2 * 4;
    group_scale(b + 4, group, d, dmin, &scale, &minimum);
    for (int j = 0; j < 32; j++) y[j] = scale * (float)((q[j] >> shift & 15) | (high[j] >> group & 1) << 4) - minimum;
  }
}

static void q6_k(const uint8_t *b, float *y) { // 128 bytes of low nibbles, 64 of high pairs, 16 signed scales, d
  float d = half(b + 208);
  for (int half_group = 0; half_group < 16; half_group++, y += 16) {
    int side = half_group / 8, part = half_group / 2 % 4, from = half_group % 2 * 16;
    const uint8_t *low = b + side * 64 + part % 2 * 32 + from, *high = b + 128 + side * 32 + from;
    float scale = d * (float)(int8_t)b[192 + half_group];
    int low_shift = part / 2 * 4, high_shift = part * 2;
    for (int j = 0; j < 16; j++) y[j] = scale * (float)(((low[j] >> low_shift & 15) | (high[j] >> high_shift & 3) << 4) - 32);
  }
}

void kf_dequantise(kf_dtype t, const uint8_t *from, float *to, size_t n) {
  static void (*const one[KF_DTYPES])(const uint8_t *, float *) = {
      [KF_Q4_0] = q4_0, [KF_Q4_1] = q4_1, [KF_Q5_0] = q5_0, [KF_Q5_1] = q5_1,
      [KF_Q8_0] = q8_0, [KF_Q4_K] = q4_k, [KF_Q5_K] = q5_k, [KF_Q6_K] = q6_k,
  };
  size_t block = (size_t)kf_dtype_block(t), bytes = (size_t)kf_dtype_block_bytes(t);
  for (size_t i = 0; i < n; i += block, from += bytes) one[t](from, to + i);
}

/* As ggml's reference: d = max |x| / 127, rounded to half; numbers are divided by the unrounded one. */
void kf_quantise_q8_0(const float *from, uint8_t *to, size_t n) {
  for (size_t i = 0; i < n; i += 32, from += 32, to += 34) {
    float most = 0;
    for (int j = 0; j < 32; j++) most = fmaxf(most, fabsf(from[j]));
    float d = most / 127, inverse = d != 0 ? 1 / d : 0;
    kf_from_f32(KF_F16, &d, to, 1);
    for (int j = 0; j < 32; j++) to[2 + j] = (uint8_t)(int8_t)roundf(from[j] * inverse);
  }
}
