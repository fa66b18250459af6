/* Backward of the operations on rows of activations. Sums over rows go by parts, which are added in their order. */
#include "device/cuda/parts.h"

enum { ROWS = 32 }; /* of a part */

static int64_t parts_of(int64_t m) {
  return (m + ROWS - 1) / ROWS;
}

/* ------------------------------------------------------------------------------------------------ sums over rows */

int64_t kf_cuda_sums_work(int64_t m, int64_t n) {
  return parts_of(m) * n;
}

/* work [parts, n]: sums of ROWS rows each. */
KF_KERNEL(sum_parts, kf_cuda_sums, a) {
  KF_EACH_THREAD(i, (a.m + ROWS - 1) / ROWS * a.n) {
    int64_t first = i / a.n * ROWS, end = first + ROWS < a.m ? first + ROWS : a.m;
    float sum = 0;
    for (int64_t t = first; t < end; t++) sum += a.x[t * a.n + i % a.n];
    a.work[i] = sum;
  }
}

KF_KERNEL(add_parts, kf_cuda_sums, a) {
  KF_EACH_THREAD(j, a.n) {
    double sum = 0;
    for (int64_t p = 0; p < (a.m + ROWS - 1) / ROWS; p++) sum += (double)a.work[p * a.n + j];
    a.sum[j] += (float)sum;
  }
}

cudaError_t kf_cuda_launch_sums(cudaStream_t stream, const kf_cuda_sums *job) {
  KF_LAUNCH(sum_parts, kf_cuda_blocks_of_threads(parts_of(job->m) * job->n), KF_CUDA_THREADS, stream, *job);
  KF_LAUNCH(add_parts, kf_cuda_blocks_of_threads(job->n), KF_CUDA_THREADS, stream, *job);
  return cudaGetLastError();
}

/* ------------------------------------------------------------------------------------------------ norms */

/* Of every head: 1 / rms, and what its x is taken times; then the parts of dw. */
int64_t kf_cuda_norm_work(const kf_cuda_norm_backward *job) {
  return 2 * job->m * job->heads + kf_cuda_sums_work(job->m, job->w_heads * job->n);
}

static inline __device__ const float *weights_of(const kf_cuda_norm_backward *a, int64_t head) {
  return a->w + head / (a->heads / a->w_heads) * a->n;
}

KF_KERNEL(norm_rows, kf_cuda_norm_backward, a) {
  KF_EACH_BLOCK(i, a.m * a.heads) {
    int64_t t = i / a.heads, h = i % a.heads;
    const float *x = a.x + t * a.x_stride + h * a.n, *dy = a.dy + t * a.dy_stride + h * a.n, *w = weights_of(&a, h);
    double squares = 0, back = 0;
    for (int64_t j = threadIdx.x; j < a.n; j += blockDim.x) {
      squares += (double)x[j] * x[j];
      back += (double)dy[j] * w[j] * x[j];
    }
    double inverse = 1 / sqrt(kf_cuda_sum(squares) / (double)a.n + a.eps);
    back = kf_cuda_sum(back) * inverse * inverse * inverse / (double)a.n;
    if (threadIdx.x == 0) {
      a.work[2 * i] = (float)inverse;
      a.work[2 * i + 1] = (float)back;
    }
  }
}

KF_KERNEL(norm_weight_parts, kf_cuda_norm_backward, a) {
  int64_t columns = a.w_heads * a.n, group = a.heads / a.w_heads;
  float *part = a.work + 2 * a.m * a.heads;
  KF_EACH_THREAD(i, (a.m + ROWS - 1) / ROWS * columns) {
    int64_t first = i / columns * ROWS, end = first + ROWS < a.m ? first + ROWS : a.m, column = i % columns;
    float sum = 0;
    for (int64_t t = first; t < end; t++) {
      for (int64_t h = column / a.n * group; h < (column / a.n + 1) * group; h++) {
        int64_t at = h * a.n + column % a.n;
        sum += a.dy[t * a.dy_stride + at] * a.x[t * a.x_stride + at] * a.work[2 * (t * a.heads + h)];
      }
    }
    part[i] = sum;
  }
}

KF_KERNEL(norm_inputs, kf_cuda_norm_backward, a) {
  int64_t width = a.heads * a.n;
  KF_EACH_THREAD(i, a.m * width) {
    int64_t t = i / width, at = i % width, row = 2 * (t * a.heads + at / a.n);
    float *to = a.dx + t * a.dx_stride + at, w = weights_of(&a, at / a.n)[at % a.n];
    float gradient = a.work[row] * w * a.dy[t * a.dy_stride + at] - a.x[t * a.x_stride + at] * a.work[row + 1];
    *to = a.add ? *to + gradient : gradient;
  }
}

cudaError_t kf_cuda_launch_norm_backward(cudaStream_t stream, const kf_cuda_norm_backward *job) {
  kf_cuda_sums sums = {job->dw, job->work + 2 * job->m * job->heads, NULL, job->m, job->w_heads * job->n};
  KF_LAUNCH(norm_rows, kf_cuda_blocks(job->m * job->heads), KF_CUDA_THREADS, stream, *job);
  if (job->dw) {
    KF_LAUNCH(norm_weight_parts, kf_cuda_blocks_of_threads(parts_of(sums.m) * sums.n), KF_CUDA_THREADS, stream, *job);
    KF_LAUNCH(add_parts, kf_cuda_blocks_of_threads(sums.n), KF_CUDA_THREADS, stream, sums);
  }
  KF_LAUNCH(norm_inputs, kf_cuda_blocks_of_threads(job->m * job->heads * job->n), KF_CUDA_THREADS, stream, *job);
  return cudaGetLastError();
}

/* ------------------------------------------------------------------------------------------------ activation */

KF_KERNEL(swiglu_backward, kf_cuda_swiglu_backward, a) {
  KF_EACH_THREAD(i, a.m * a.f) {
    int64_t at = i / a.f * 2 * a.f + i % a.f;
    float gate = a.gate_up[at], up = a.gate_up[at + a.f], d = a.dy[i], s = 1 / (1 + expf(-gate));
    a.d_gate_up[at] = d * up * s * (1 + gate * (1 - s));
    a.d_gate_up[at + a.f] = d * gate * s;
  }
}

cudaError_t kf_cuda_launch_swiglu_backward(cudaStream_t stream, const kf_cuda_swiglu_backward *job) {
  KF_LAUNCH(swiglu_backward, kf_cuda_blocks_of_threads(job->m * job->f), KF_CUDA_THREADS, stream, *job);
  return cudaGetLastError();
}

/* ------------------------------------------------------------------------------------------------ embedding */

KF_KERNEL(gather, kf_cuda_embedding, a) {
  KF_EACH_THREAD(i, a.m * a.n) a.rows[i] = a.table[a.ids[i / a.n] * a.n + i % a.n];
}

cudaError_t kf_cuda_launch_gather(cudaStream_t stream, const kf_cuda_embedding *job) {
  KF_LAUNCH(gather, kf_cuda_blocks_of_threads(job->m * job->n), KF_CUDA_THREADS, stream, *job);
  return cudaGetLastError();
}

enum { CLASSES = 64 };

/* A block has some columns of the rows of the table whose number is `mine` modulo CLASSES: a number has one thread, which adds in
 * the order of the rows. */
KF_KERNEL(scatter_add, kf_cuda_embedding, a) {
  KF_EACH_BLOCK(i, (a.n + KF_CUDA_THREADS - 1) / KF_CUDA_THREADS * CLASSES) {
    int64_t column = i / CLASSES * KF_CUDA_THREADS + threadIdx.x, mine = i % CLASSES;
    for (int64_t t = 0; column < a.n && t < a.m; t++)
      if (a.ids[t] % CLASSES == mine) a.table[a.ids[t] * a.n + column] += a.rows[t * a.n + column];
  }
}

cudaError_t kf_cuda_launch_scatter_add(cudaStream_t stream, const kf_cuda_embedding *job) {
  KF_LAUNCH(scatter_add, kf_cuda_blocks((job->n + KF_CUDA_THREADS - 1) / KF_CUDA_THREADS * CLASSES), KF_CUDA_THREADS, stream,
            *job);
  return cudaGetLastError();
}

/* ------------------------------------------------------------------------------------------------ attention */

static inline __device__ bool visible(const kf_cuda_scores *a, int64_t query, int64_t key) {
  int64_t gap = a->first + query - (a->from + key);
  return gap >= 0 && (a->window <= 0 || gap < a->window);
}

static __device__ void probabilities(const kf_cuda_scores *a, int64_t query, float *score, float *lse) {
  float most = -INFINITY;
  double sum = 0;
  for (int64_t key = threadIdx.x; key < a->keys; key += blockDim.x)
    if (visible(a, query, key)) most = fmaxf(most, score[key] * a->scale);
  most = kf_cuda_most(most);
  for (int64_t key = threadIdx.x; key < a->keys; key += blockDim.x) {
    score[key] = visible(a, query, key) ? expf(score[key] * a->scale - most) : 0;
    sum += (double)score[key];
  }
  sum = kf_cuda_sum(sum);
  for (int64_t key = threadIdx.x; key < a->keys; key += blockDim.x) score[key] = (float)((double)score[key] / sum);
  if (threadIdx.x == 0) *lse = most + (float)log(sum);
}

static __device__ void score_gradient(const kf_cuda_scores *a, int64_t query, float *score, float *gradient, float lse) {
  double sum = 0;
  for (int64_t key = threadIdx.x; key < a->keys; key += blockDim.x) {
    score[key] = visible(a, query, key) ? expf(score[key] * a->scale - lse) : 0;
    sum += (double)score[key] * gradient[key];
  }
  float mean = (float)kf_cuda_sum(sum);
  for (int64_t key = threadIdx.x; key < a->keys; key += blockDim.x)
    gradient[key] = score[key] * (gradient[key] - mean) * a->scale;
}

KF_KERNEL(scores, kf_cuda_scores, a) {
  KF_EACH_BLOCK(i, a.heads * a.queries) {
    int64_t query = i % a.queries, head = i / a.queries;
    float *lse = a.lse + (a.first + query) * a.heads + head;
    if (a.gradient)
      score_gradient(&a, query, a.score + i * a.keys, a.gradient + i * a.keys, *lse);
    else
      probabilities(&a, query, a.score + i * a.keys, lse);
  }
}

cudaError_t kf_cuda_launch_scores(cudaStream_t stream, const kf_cuda_scores *job) {
  KF_LAUNCH(scores, kf_cuda_blocks(job->heads * job->queries), KF_CUDA_THREADS, stream, *job);
  return cudaGetLastError();
}
