/* What kernels share. */
#ifndef KF_CUDA_PARTS_H
#define KF_CUDA_PARTS_H

#include "device/cuda/kernels.h"
#include "device/cuda/launch.h"

#include <math.h>

enum { KF_CUDA_THREADS = 256 }; /* of a block, unless a kernel says otherwise */

/* Any number of items over the blocks of a grid, or over its threads. */
#define KF_EACH_BLOCK(i, n) for (int64_t i = blockIdx.x; i < (n); i += gridDim.x)
#define KF_EACH_THREAD(i, n) \
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += (int64_t)gridDim.x * blockDim.x)

static inline unsigned kf_cuda_blocks(int64_t n) {
  return (unsigned)(n < 1 << 20 ? n : 1 << 20);
}
static inline unsigned kf_cuda_blocks_of_threads(int64_t n) {
  return kf_cuda_blocks((n + KF_CUDA_THREADS - 1) / KF_CUDA_THREADS);
}

static inline __device__ float kf_cuda_from_bf16(uint16_t h) {
  return __uint_as_float((unsigned)h << 16);
}
static inline __device__ uint16_t kf_cuda_to_bf16(float f) {
  unsigned u = __float_as_uint(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(u >> 16 | 0x40); /* NaN */
  return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* Row of a token; its numbers are f32 or bf16. */
static inline __device__ void *kf_cuda_row(const kf_cuda_rows *rows, int64_t token) {
  char *page = (char *)rows->pages[token / rows->page_tokens - rows->first_page];
  return page + token % rows->page_tokens * rows->columns * (rows->bf16 ? 2 : 4);
}
static inline __device__ float kf_cuda_get(const void *row, bool bf16, int64_t column) {
  return bf16 ? kf_cuda_from_bf16(((const uint16_t *)row)[column]) : ((const float *)row)[column];
}
static inline __device__ void kf_cuda_set(void *row, bool bf16, int64_t column, float x) {
  if (bf16)
    ((uint16_t *)row)[column] = kf_cuda_to_bf16(x);
  else
    ((float *)row)[column] = x;
}

/* `name`: all threads of a block of KF_CUDA_THREADS put in a value; every one gets what `join` makes of all. */
#define KF_CUDA_REDUCTION(name, type, join)                          \
  static inline __device__ type name(type x) {                       \
    __shared__ type part[KF_CUDA_THREADS];                           \
    unsigned t = threadIdx.x;                                        \
    part[t] = x;                                                     \
    __syncthreads();                                                 \
    for (unsigned half = KF_CUDA_THREADS / 2; half > 0; half /= 2) { \
      if (t < half) part[t] = join(part[t], part[t + half]);         \
      __syncthreads();                                               \
    }                                                                \
    x = part[0];                                                     \
    __syncthreads();                                                 \
    return x;                                                        \
  }

static inline __device__ double kf_cuda_add(double a, double b) {
  return a + b;
}
KF_CUDA_REDUCTION(kf_cuda_sum, double, kf_cuda_add)
KF_CUDA_REDUCTION(kf_cuda_most, float, fmaxf)

#endif
