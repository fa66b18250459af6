/* Kernels on rows of activations and caches. */
#include "device/cuda/parts.h"

/* A block a head of a row. */
KF_KERNEL(norm, kf_cuda_norm, a) {
  KF_EACH_BLOCK(i, a.m * a.heads) {
    int64_t h = i % a.heads, at = i / a.heads * a.stride + h * a.n;
    const float *x = a.x + at, *w = a.w + h / (a.heads / a.w_heads) * a.n;
    double sum = 0;
    for (int64_t j = threadIdx.x; j < a.n; j += blockDim.x) sum += (double)x[j] * x[j];
    float scale = (float)(1 / sqrt(kf_cuda_sum(sum) / (double)a.n + a.eps));
    for (int64_t j = threadIdx.x; j < a.n; j += blockDim.x) kf_cuda_set(a.y, a.bf16, at + j, x[j] * scale * w[j]);
  }
}

cudaError_t kf_cuda_launch_norm(cudaStream_t stream, const kf_cuda_norm *job) {
  KF_LAUNCH(norm, kf_cuda_blocks(job->m * job->heads), KF_CUDA_THREADS, stream, *job);
  return cudaGetLastError();
}

enum { ROPE_THREADS = 64 };

/* A block a run of columns of a row, a thread a pair. */
KF_KERNEL(rope, kf_cuda_rope, a) {
  KF_EACH_BLOCK(i, a.m * a.block_count) {
    int64_t t = i / a.block_count;
    const kf_cuda_block *b = &a.blocks[i % a.block_count];
    float *first = a.x + t * a.stride + b->offset, *second = first + b->pairs;
    for (int j = (int)threadIdx.x; j < b->pairs; j += ROPE_THREADS) {
      int64_t at = (int64_t)a.position[t] * a.table_pairs + (b->index < 0 ? j : a.indices[b->index + j]);
      float c = a.cos[at], s = a.reverse ? -a.sin[at] : a.sin[at], u = first[j], v = second[j];
      first[j] = u * c - v * s;
      second[j] = v * c + u * s;
    }
  }
}

cudaError_t kf_cuda_launch_rope(cudaStream_t stream, const kf_cuda_rope *job) {
  KF_LAUNCH(rope, kf_cuda_blocks(job->m * job->block_count), ROPE_THREADS, stream, *job);
  return cudaGetLastError();
}

KF_KERNEL(copy, kf_cuda_copy, a) {
  KF_EACH_THREAD(i, a.m * a.n) {
    float *y = a.y + i / a.n * a.y_stride + i % a.n, x = a.x[i / a.n * a.x_stride + i % a.n];
    *y = a.add ? *y + x : x;
  }
}

cudaError_t kf_cuda_launch_copy(cudaStream_t stream, const kf_cuda_copy *job) {
  KF_LAUNCH(copy, kf_cuda_blocks_of_threads(job->m * job->n), KF_CUDA_THREADS, stream, *job);
  return cudaGetLastError();
}

KF_KERNEL(store, kf_cuda_slice, a) {
  KF_EACH_THREAD(i, a.m * a.n) {
    int64_t t = i / a.n, j = i % a.n;
    kf_cuda_set(kf_cuda_row(&a.rows, a.at + t), a.rows.bf16, a.column + j, a.x[t * a.stride + j]);
  }
}

cudaError_t kf_cuda_launch_store(cudaStream_t stream, const kf_cuda_slice *job) {
  KF_LAUNCH(store, kf_cuda_blocks_of_threads(job->m * job->n), KF_CUDA_THREADS, stream, *job);
  return cudaGetLastError();
}

KF_KERNEL(fetch, kf_cuda_slice, a) {
  KF_EACH_THREAD(i, a.m * a.n) {
    int64_t t = i / a.n, j = i % a.n;
    a.x[t * a.stride + j] = kf_cuda_get(kf_cuda_row(&a.rows, a.at + t), a.rows.bf16, a.column + j);
  }
}

cudaError_t kf_cuda_launch_fetch(cudaStream_t stream, const kf_cuda_slice *job) {
  KF_LAUNCH(fetch, kf_cuda_blocks_of_threads(job->m * job->n), KF_CUDA_THREADS, stream, *job);
  return cudaGetLastError();
}

KF_KERNEL(swiglu, kf_cuda_swiglu, a) {
  KF_EACH_THREAD(i, a.m * a.f) {
    int64_t at = i / a.f * 2 * a.f + i % a.f;
    float gate = a.gate_up[at];
    kf_cuda_set(a.y, a.bf16, i, gate / (1 + expf(-gate)) * a.gate_up[at + a.f]);
  }
}

cudaError_t kf_cuda_launch_swiglu(cudaStream_t stream, const kf_cuda_swiglu *job) {
  KF_LAUNCH(swiglu, kf_cuda_blocks_of_threads(job->m * job->f), KF_CUDA_THREADS, stream, *job);
  return cudaGetLastError();
}

KF_KERNEL(round_bf16, kf_cuda_round, a) {
  KF_EACH_THREAD(i, a.n) a.to[i] = kf_cuda_to_bf16(a.from[i]);
}

cudaError_t kf_cuda_launch_round(cudaStream_t stream, const kf_cuda_round *job) {
  KF_LAUNCH(round_bf16, kf_cuda_blocks_of_threads(job->n), KF_CUDA_THREADS, stream, *job);
  return cudaGetLastError();
}

KF_KERNEL(put_bias, kf_cuda_bias, a) {
  KF_EACH_THREAD(i, a.m * a.heads * a.n) {
    int64_t j = i % a.n, h = i / a.n % a.heads, t = i / a.n / a.heads;
    float *y = a.y + t * a.row_stride + h * a.head_stride + j;
    *y = a.add ? *y + a.bias[j] : a.bias[j];
  }
}

cudaError_t kf_cuda_launch_bias(cudaStream_t stream, const kf_cuda_bias *job) {
  KF_LAUNCH(put_bias, kf_cuda_blocks_of_threads(job->m * job->heads * job->n), KF_CUDA_THREADS, stream, *job);
  return cudaGetLastError();
}
