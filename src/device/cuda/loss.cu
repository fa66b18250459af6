/* Sums over rows of logits, a block a row. Exponentials in f32, sums in fp64. */
#include "device/cuda/parts.h"

typedef struct peak {
  float value;
  int64_t at;
} peak;

/* The larger; of equals the first. */
static inline __device__ peak larger(peak a, peak b) {
  return b.value > a.value || (b.value == a.value && b.at < a.at) ? b : a;
}

/* The largest over the threads of a block, in every one of them. */
static __device__ peak largest(peak x) {
  __shared__ peak part[KF_CUDA_THREADS];
  unsigned t = threadIdx.x;
  part[t] = x;
  __syncthreads();
  for (unsigned half = KF_CUDA_THREADS / 2; half > 0; half /= 2) {
    if (t < half) part[t] = larger(part[t], part[t + half]);
    __syncthreads();
  }
  x = part[0];
  __syncthreads();
  return x;
}

static __device__ peak most_of(const float *x, int64_t n) {
  peak p = {-INFINITY, 0};
  for (int64_t j = threadIdx.x; j < n; j += blockDim.x) {
    peak here = {x[j], j};
    p = larger(p, here);
  }
  return largest(p);
}

static __device__ double sum_exp(const float *x, float most, int64_t n) {
  double sum = 0;
  for (int64_t j = threadIdx.x; j < n; j += blockDim.x) sum += (double)expf(x[j] - most);
  return kf_cuda_sum(sum);
}

KF_KERNEL(cross_entropy, kf_cuda_loss, a) {
  KF_EACH_BLOCK(i, a.m) {
    const float *x = a.logits + i * a.v;
    peak most = most_of(x, a.v);
    double sum = sum_exp(x, most.value, a.v);
    if (threadIdx.x == 0) {
      a.best[i] = (int32_t)most.at;
      a.nll[i] = log(sum) + ((double)most.value - (double)x[a.target[i]]);
    }
  }
}

cudaError_t kf_cuda_launch_cross_entropy(cudaStream_t stream, const kf_cuda_loss *job) {
  KF_LAUNCH(cross_entropy, kf_cuda_blocks(job->m), KF_CUDA_THREADS, stream, *job);
  return cudaGetLastError();
}

/* KL = sum of p (r - x) - log Z_r + log Z_x, p = e^r / Z_r. */
KF_KERNEL(divergence, kf_cuda_loss, a) {
  KF_EACH_BLOCK(i, a.m) {
    const float *r = a.reference + i * a.v, *x = a.logits + i * a.v;
    float r_most = most_of(r, a.v).value, x_most = most_of(x, a.v).value;
    double r_sum = sum_exp(r, r_most, a.v), x_sum = sum_exp(x, x_most, a.v), mean = 0;
    peak gap = {0, 0};
    for (int64_t j = threadIdx.x; j < a.v; j += blockDim.x) {
      peak here = {fabsf(r[j] - x[j]), j};
      gap = larger(gap, here);
      mean += (double)expf(r[j] - r_most) * ((double)r[j] - (double)x[j]);
    }
    mean = kf_cuda_sum(mean) / r_sum;
    gap = largest(gap);
    if (threadIdx.x == 0) {
      a.kl[i] = mean - (log(r_sum) + (double)r_most) + (log(x_sum) + (double)x_most);
      a.difference[i] = (double)gap.value;
    }
  }
}

cudaError_t kf_cuda_launch_divergence(cudaStream_t stream, const kf_cuda_loss *job) {
  KF_LAUNCH(divergence, kf_cuda_blocks(job->m), KF_CUDA_THREADS, stream, *job);
  return cudaGetLastError();
}
