/* What the optimiser does to all parameters at once. */
#include "device/cuda/parts.h"

KF_KERNEL(adamw, kf_cuda_adamw, a) {
  const kf_adamw *o = &a.o;
  KF_EACH_THREAD(i, a.n) {
    float g = a.gradient[i] * o->scale, w = a.w[i];
    float first = o->beta1 * a.first[i] + (1 - o->beta1) * g, second = o->beta2 * a.second[i] + (1 - o->beta2) * g * g;
    a.first[i] = first;
    a.second[i] = second;
    a.w[i] = w - o->rate * (first / o->correction1 / (sqrtf(second / o->correction2) + o->eps) + o->decay * w);
  }
}

cudaError_t kf_cuda_launch_adamw(cudaStream_t stream, const kf_cuda_adamw *job) {
  KF_LAUNCH(adamw, kf_cuda_blocks_of_threads(job->n), KF_CUDA_THREADS, stream, *job);
  return cudaGetLastError();
}

KF_KERNEL(squares, kf_cuda_squares, a) {
  double sum = 0;
  KF_EACH_THREAD(i, a.n) sum += (double)a.x[i] * a.x[i];
  sum = kf_cuda_sum(sum);
  if (threadIdx.x == 0) a.part[blockIdx.x] = sum;
}

int kf_cuda_squares_parts(int64_t n) {
  unsigned blocks = kf_cuda_blocks_of_threads(n);
  return blocks < KF_CUDA_PARTS ? (int)blocks : KF_CUDA_PARTS;
}

cudaError_t kf_cuda_launch_squares(cudaStream_t stream, const kf_cuda_squares *job) {
  KF_LAUNCH(squares, (unsigned)kf_cuda_squares_parts(job->n), KF_CUDA_THREADS, stream, *job);
  return cudaGetLastError();
}
