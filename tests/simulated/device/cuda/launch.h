/* In place of src/device/cuda/launch.h: kernels are compiled as C and run on the CPU, so that their indices and barriers can
 * be tested without a GPU. */
#ifndef KF_CUDA_LAUNCH_H
#define KF_CUDA_LAUNCH_H

#include <stddef.h>
#include <string.h>

#define __device__
#define __shared__ static

typedef struct kf_simulated_index {
  unsigned x;
} kf_simulated_index;
extern kf_simulated_index threadIdx, blockIdx, blockDim, gridDim;

void __syncthreads(void); /* aborts when threads of a block end while others wait */
float __shfl_xor_sync(unsigned mask, float x, int step);

static inline float __uint_as_float(unsigned u) {
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}
static inline unsigned __float_as_uint(float f) {
  unsigned u;
  memcpy(&u, &f, sizeof u);
  return u;
}

/* Appends a launch to the stream; it runs when the stream is waited for. job is copied. */
void kf_simulate(void (*thread)(const void *job), unsigned blocks, unsigned threads, const void *job, size_t bytes);

#define KF_KERNEL(name, type, argument)        \
  static void name(const type argument);       \
  static void name##_thread(const void *job) { \
    name(*(const type *)job);                  \
  }                                            \
  static void name(const type argument)
#define KF_LAUNCH(name, blocks, threads, stream, job) \
  ((void)(stream), kf_simulate(name##_thread, blocks, threads, &(job), sizeof(job)))

#endif
