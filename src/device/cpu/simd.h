/* One vector of f32 (vf) under the widest instruction set that the including file is compiled for: the kernels in
 * kernels_f32.h are written once in it. Arithmetic is + - * / of the compiler's own vector types.
 * Loads and stores with `n` touch n < VL numbers; what is not loaded is zero. */
#ifndef KF_CPU_SIMD_H
#define KF_CPU_SIMD_H

#include <math.h>
#include <string.h>

#include "tensor/dtype.h"

#if defined(__AVX512F__)
#include <immintrin.h>
typedef __m512 vf;
enum { VL = 16, TILE_ROWS = 6, TILE_VECTORS = 4 };

static inline vf vf_load(const float *p) {
  return _mm512_loadu_ps(p);
}
static inline void vf_store(float *p, vf a) {
  _mm512_storeu_ps(p, a);
}
static inline __mmask16 vf_mask(int n) {
  return (__mmask16)((1u << n) - 1);
}
static inline vf vf_load_n(const float *p, int n) {
  return _mm512_maskz_loadu_ps(vf_mask(n), p);
}
static inline void vf_store_n(float *p, vf a, int n) {
  _mm512_mask_storeu_ps(p, vf_mask(n), a);
}
static inline vf vf_set(float a) {
  return _mm512_set1_ps(a);
}
static inline vf vf_fma(vf a, vf b, vf c) {
  return _mm512_fmadd_ps(a, b, c);
}
static inline vf vf_max(vf a, vf b) {
  return _mm512_max_ps(a, b);
}
static inline vf vf_min(vf a, vf b) {
  return _mm512_min_ps(a, b);
}
static inline vf vf_abs(vf a) {
  return _mm512_abs_ps(a);
}
static inline vf vf_floor(vf a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
static inline vf vf_scale2(vf a, vf n) {
  return _mm512_scalef_ps(a, n);
}
static inline float vf_sum(vf a) {
  return _mm512_reduce_add_ps(a);
}
static inline float vf_most(vf a) {
  return _mm512_reduce_max_ps(a);
}
static inline bool vf_any_above(vf a, float limit) {
  return _mm512_cmp_ps_mask(a, vf_set(limit), _CMP_GT_OQ) != 0;
}
static inline vf vf_load_bf16(const uint16_t *p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p)), 16));
}
static inline void vf_store_bf16(uint16_t *p, vf a) {
  __m512i u = _mm512_castps_si512(a);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
  __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, nan, u, _mm512_set1_epi32(0x400000));
  _mm256_storeu_si256((void *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}

#else

#if defined(__AVX2__)
#include <immintrin.h>
typedef __m256 vf;
enum { VL = 8, TILE_ROWS = 6, TILE_VECTORS = 2 };

static inline vf vf_load(const float *p) {
  return _mm256_loadu_ps(p);
}
static inline void vf_store(float *p, vf a) {
  _mm256_storeu_ps(p, a);
}
static inline vf vf_set(float a) {
  return _mm256_set1_ps(a);
}
static inline vf vf_fma(vf a, vf b, vf c) {
  return _mm256_fmadd_ps(a, b, c);
}
static inline vf vf_max(vf a, vf b) {
  return _mm256_max_ps(a, b);
}
static inline vf vf_min(vf a, vf b) {
  return _mm256_min_ps(a, b);
}
static inline vf vf_abs(vf a) {
  return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}
static inline vf vf_floor(vf a) {
  return _mm256_floor_ps(a);
}
/* a x 2^n, n a whole number in [-126, 127]; 0 below. */
static inline vf vf_scale2(vf a, vf n) {
  vf clamped = _mm256_min_ps(_mm256_max_ps(n, _mm256_set1_ps(-127)), _mm256_set1_ps(127));
  __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(clamped), _mm256_set1_epi32(127)), 23);
  return a * _mm256_castsi256_ps(power);
}
static inline vf vf_load_bf16(const uint16_t *p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p)), 16));
}

#else /* four numbers, which every compiler maps to SSE, NEON, ... */
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vf_bits __attribute__((vector_size(16)));
enum { VL = 4, TILE_ROWS = 4, TILE_VECTORS = 2 };

static inline vf vf_load(const float *p) {
  vf a;
  memcpy(&a, p, sizeof a);
  return a;
}
static inline void vf_store(float *p, vf a) {
  memcpy(p, &a, sizeof a);
}
static inline vf vf_set(float a) {
  return (vf){a, a, a, a};
}
static inline vf vf_select(vf_bits yes, vf a, vf b) {
  return (vf)((yes & (vf_bits)a) | (~yes & (vf_bits)b));
}
static inline vf vf_fma(vf a, vf b, vf c) {
  return a * b + c;
}
static inline vf vf_max(vf a, vf b) {
  return vf_select((vf_bits)(a > b), a, b);
}
static inline vf vf_min(vf a, vf b) {
  return vf_select((vf_bits)(a < b), a, b);
}
static inline vf vf_abs(vf a) {
  return (vf)((vf_bits)a & 0x7fffffff);
}
/* The whole number below (a whole number may give the one below it), for |a| < 2^22; larger ones are clamped. */
static inline vf vf_floor(vf a) {
  vf magic = vf_set(12582912.0f); /* 1.5 x 2^23 */
  return (vf_min(vf_max(a, vf_set(-4e6f)), vf_set(4e6f)) - vf_set(0.5f) + magic) - magic;
}
static inline vf vf_scale2(vf a, vf n) {
  vf clamped = vf_min(vf_max(n, vf_set(-127)), vf_set(127));
  vf_bits power = ((vf_bits)(clamped + vf_set(12582912.0f)) - 0x4b400000 + 127) << 23;
  return a * (vf)power;
}
static inline vf vf_load_bf16(const uint16_t *p) {
  return (vf){kf_bf16_to_f32(p[0]), kf_bf16_to_f32(p[1]), kf_bf16_to_f32(p[2]), kf_bf16_to_f32(p[3])};
}
#endif

static inline vf vf_load_n(const float *p, int n) {
  float part[VL] = {0};
  memcpy(part, p, (size_t)n * sizeof *p);
  return vf_load(part);
}
static inline void vf_store_n(float *p, vf a, int n) {
  float part[VL];
  vf_store(part, a);
  memcpy(p, part, (size_t)n * sizeof *p);
}
static inline float vf_sum(vf a) {
  float part[VL], sum = 0;
  vf_store(part, a);
  for (int i = 0; i < VL; i++) sum += part[i];
  return sum;
}
static inline float vf_most(vf a) {
  float part[VL];
  vf_store(part, a);
  float most = part[0];
  for (int i = 1; i < VL; i++) most = part[i] > most ? part[i] : most;
  return most;
}
static inline bool vf_any_above(vf a, float limit) {
  return vf_most(a) > limit;
}
static inline void vf_store_bf16(uint16_t *p, vf a) {
  float part[VL];
  vf_store(part, a);
  for (int i = 0; i < VL; i++) p[i] = kf_f32_to_bf16(part[i]);
}
#endif

static inline vf vf_load_bf16_n(const uint16_t *p, int n) {
  uint16_t part[VL] = {0};
  memcpy(part, p, (size_t)n * sizeof *p);
  return vf_load_bf16(part);
}
static inline void vf_store_bf16_n(uint16_t *p, vf a, int n) {
  uint16_t part[VL];
  vf_store_bf16(part, a);
  memcpy(p, part, (size_t)n * sizeof *p);
}

/* 2^f, 0 <= f <= 1: minimax polynomial that is 1 at 0, relative error below 1e-7. */
static inline vf vf_exp2_fraction(vf f) {
  vf p = vf_fma(vf_set(1.8671302e-3f), f, vf_set(9.0170300e-3f));
  p = vf_fma(p, f, vf_set(5.5799913e-2f));
  p = vf_fma(p, f, vf_set(2.4016445e-1f));
  p = vf_fma(p, f, vf_set(6.9315131e-1f));
  return vf_fma(p, f, vf_set(1));
}

/* 2^x, x finite; 0 for very small x. */
static inline vf vf_exp2(vf x) {
#if defined(__AVX512F__)
  return _mm512_scalef_ps(vf_exp2_fraction(_mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)), x);
#else
  x = vf_max(x, vf_set(-200));
  vf n = vf_floor(x);
  return vf_scale2(vf_exp2_fraction(x - n), n);
#endif
}

/* e^x by Cody and Waite's reduction, so that large |x| keeps its accuracy. */
static inline vf vf_exp(vf x) {
  x = vf_min(vf_max(x, vf_set(-120)), vf_set(88));
  vf n = vf_floor(x * vf_set(1.44269504f));
  vf r = vf_fma(n, vf_set(2.12194440e-4f), vf_fma(n, vf_set(-0.693359375f), x));
  return vf_scale2(vf_exp2_fraction(r * vf_set(1.44269504f)), n);
}

#endif
