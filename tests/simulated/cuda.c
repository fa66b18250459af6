/* A GPU on the CPU. Nothing runs before the stream is waited for, as late as a real one may be; fresh memory holds NaN. The
 * threads of a block take turns on stacks of their own, from one barrier to the next, by turns from the first and the last. */
#include <setjmp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include "device/cuda/launch.h"
#include <cublas_v2.h>

enum { MOST_THREADS = 256, WARP = 32, STACK = 64 << 10 };

kf_simulated_index threadIdx, blockIdx, blockDim, gridDim;

/* ------------------------------------------------------------------------------------------------ threads */

typedef struct barrier {
  unsigned arrived, generation;
} barrier;

static struct {
  ucontext_t start;
  jmp_buf at;
  bool begun, ended;
} thread[MOST_THREADS];
static jmp_buf scheduler;
static ucontext_t never;
static void (*body)(const void *job);
static const void *argument;
static unsigned running;
static barrier block_barrier, warp_barrier[MOST_THREADS / WARP];
static float exchanged[MOST_THREADS];

static void yield(void) {
  if (!_setjmp(thread[threadIdx.x].at)) _longjmp(scheduler, 1);
}

static void stop(const char *why) {
  fprintf(stderr, "simulated GPU: %s\n", why);
  abort();
}

static void thread_main(void) {
  for (;;) {
    body(argument);
    if (block_barrier.arrived) stop("a thread ended while others of its block wait at a barrier");
    thread[threadIdx.x].ended = true;
    running--;
    yield();
  }
}

__attribute__((noinline)) static void resume(unsigned t) {
  threadIdx.x = t;
  if (_setjmp(scheduler)) return;
  if (thread[t].begun) _longjmp(thread[t].at, 1);
  thread[t].begun = true;
  if (getcontext(&thread[t].start)) stop("no context");
  thread[t].start.uc_stack.ss_sp = malloc(STACK);
  if (!thread[t].start.uc_stack.ss_sp) stop("out of memory");
  thread[t].start.uc_stack.ss_size = STACK;
  makecontext(&thread[t].start, thread_main, 0);
  swapcontext(&never, &thread[t].start);
}

static void wait_at(barrier *b, unsigned threads) {
  unsigned mine = b->generation;
  if (++b->arrived == threads) {
    b->arrived = 0;
    b->generation++;
  }
  while (b->generation == mine) yield();
}

void __syncthreads(void) {
  if (running != blockDim.x) stop("a thread waits at a barrier after others of its block have ended");
  wait_at(&block_barrier, blockDim.x);
}

float __shfl_xor_sync(unsigned mask, float x, int step) {
  unsigned t = threadIdx.x;
  if (mask != 0xffffffffu) stop("a shuffle of a part of a warp");
  exchanged[t] = x;
  wait_at(&warp_barrier[t / WARP], WARP);
  x = exchanged[t ^ (unsigned)step];
  wait_at(&warp_barrier[t / WARP], WARP);
  return x;
}

static void run_block(void) {
  running = blockDim.x;
  for (unsigned t = 0; t < blockDim.x; t++) thread[t].ended = false;
  for (unsigned round = 0; running; round++)
    for (unsigned i = 0; i < blockDim.x; i++) {
      unsigned t = round % 2 ? blockDim.x - 1 - i : i;
      if (!thread[t].ended) resume(t);
    }
}

/* ------------------------------------------------------------------------------------------------ the stream */

typedef struct entry {
  void (*run)(const struct entry *e);
  void (*thread)(const void *job);
  unsigned blocks, threads;
  void *job;
} entry;

static entry *queue;
static size_t queued, capacity;

static void append(entry e, const void *job, size_t bytes) {
  if (queued == capacity) {
    capacity = 2 * capacity + 64;
    queue = realloc(queue, capacity * sizeof *queue);
    if (!queue) stop("out of memory");
  }
  e.job = malloc(bytes + 1);
  if (!e.job) stop("out of memory");
  memcpy(e.job, job, bytes);
  queue[queued++] = e;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  (void)stream;
  for (size_t i = 0; i < queued; i++) {
    queue[i].run(&queue[i]);
    free(queue[i].job);
  }
  free(queue);
  queue = NULL;
  queued = capacity = 0;
  return cudaSuccess;
}

static void run_kernel(const entry *e) {
  body = e->thread;
  argument = e->job;
  blockDim.x = e->threads;
  gridDim.x = e->blocks;
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++) run_block();
}

void kf_simulate(void (*kernel)(const void *job), unsigned blocks, unsigned threads, const void *job, size_t bytes) {
  if (!blocks || threads > MOST_THREADS || threads % WARP) stop("a launch without blocks, or of an odd number of threads");
  append((entry){run_kernel, kernel, blocks, threads, NULL}, job, bytes);
}

/* ------------------------------------------------------------------------------------------------ memory */

cudaError_t cudaMallocManaged(void **p, size_t bytes, unsigned flags) {
  (void)flags;
  if (!(*p = malloc(bytes))) return cudaErrorMemoryAllocation;
  memset(*p, 0xff, bytes);
  return cudaSuccess;
}

cudaError_t cudaMalloc(void **p, size_t bytes) {
  return cudaMallocManaged(p, bytes, cudaMemAttachGlobal);
}

cudaError_t cudaFree(void *p) {
  cudaStreamSynchronize(NULL);
  free(p);
  return cudaSuccess;
}

typedef struct copy {
  void *to;
  const void *from;
  size_t bytes;
} copy;

static void run_copy(const entry *e) {
  const copy *c = e->job;
  memcpy(c->to, c->from, c->bytes);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, cudaStream_t stream) {
  (void)kind, (void)stream;
  append((entry){.run = run_copy}, &(copy){to, from, bytes}, sizeof(copy));
  return cudaSuccess;
}

typedef struct area {
  char *to;
  size_t pitch, width, height;
  int value;
} area;

static void run_area(const entry *e) {
  const area *a = e->job;
  for (size_t i = 0; i < a->height; i++) memset(a->to + i * a->pitch, a->value, a->width);
}

cudaError_t cudaMemset2DAsync(void *to, size_t pitch, int value, size_t width, size_t height, cudaStream_t stream) {
  (void)stream;
  area a = {to, pitch, width, height, value};
  append((entry){.run = run_area}, &a, sizeof a);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
  return cudaMemset2DAsync(to, bytes, value, bytes, 1, stream);
}

/* ------------------------------------------------------------------------------------------------ the device */

cudaError_t cudaGetDeviceCount(int *count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, int attribute, int device) {
  (void)device;
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9 : attribute == cudaDevAttrConcurrentManagedAccess;
  return cudaSuccess;
}

cudaError_t cudaGetLastError(void) {
  return cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory" : "no error";
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
  (void)flags;
  *stream = (cudaStream_t)&queue;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return cudaStreamSynchronize(stream);
}

/* ------------------------------------------------------------------------------------------------ products */

typedef struct product {
  cublasOperation_t op_a, op_b;
  int64_t m, n, k, lda, ldb, ldc, batch;
  long long stride_a, stride_b, stride_c;
  const char *a, *b;
  float *c, beta;
  bool bf16;
} product;

static float number(const char *data, bool bf16, int64_t at) {
  return bf16 ? __uint_as_float((unsigned)((const uint16_t *)(const void *)data)[at] << 16)
              : ((const float *)(const void *)data)[at];
}

/* Column-major: c[i + j ldc] = sum over l of op(a)[i, l] op(b)[l, j] + beta c. */
static void run_product(const entry *e) {
  const product *p = e->job;
  for (int64_t t = 0; t < p->batch; t++)
    for (int64_t j = 0; j < p->n; j++)
      for (int64_t i = 0; i < p->m; i++) {
        double sum = 0;
        for (int64_t l = 0; l < p->k; l++)
          sum += (double)number(p->a, p->bf16, t * p->stride_a + (p->op_a == CUBLAS_OP_T ? l + i * p->lda : i + l * p->lda)) *
                 (double)number(p->b, p->bf16, t * p->stride_b + (p->op_b == CUBLAS_OP_T ? j + l * p->ldb : l + j * p->ldb));
        float *c = p->c + t * p->stride_c + i + j * p->ldc;
        *c = (float)(p->beta != 0 ? sum + (double)(p->beta * *c) : sum);
      }
}

cublasStatus_t cublasGemmStridedBatchedEx_64(cublasHandle_t blas, cublasOperation_t op_a, cublasOperation_t op_b, int64_t m,
                                             int64_t n, int64_t k, const void *alpha, const void *a, cudaDataType_t a_type,
                                             int64_t lda, long long stride_a, const void *b, cudaDataType_t b_type, int64_t ldb,
                                             long long stride_b, const void *beta, void *c, cudaDataType_t c_type, int64_t ldc,
                                             long long stride_c, int64_t batch, int compute, int algorithm) {
  (void)blas;
  bool fits = m > 0 && n > 0 && k > 0 && batch > 0 && lda >= (op_a == CUBLAS_OP_T ? k : m) &&
              ldb >= (op_b == CUBLAS_OP_T ? n : k) && ldc >= m;
  if (!fits || a_type != b_type || c_type != CUDA_R_32F || *(const float *)alpha != 1 || compute != CUBLAS_COMPUTE_32F ||
      algorithm != CUBLAS_GEMM_DEFAULT)
    return CUBLAS_STATUS_INVALID_VALUE;
  product p = {op_a,
               op_b,
               m,
               n,
               k,
               lda,
               ldb,
               ldc,
               batch,
               stride_a,
               stride_b,
               stride_c,
               a,
               b,
               c,
               *(const float *)beta,
               a_type == CUDA_R_16BF};
  append((entry){.run = run_product}, &p, sizeof p);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasCreate(cublasHandle_t *blas) {
  *blas = (cublasHandle_t)&queue;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDestroy(cublasHandle_t blas) {
  (void)blas;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetStream(cublasHandle_t blas, cudaStream_t stream) {
  (void)blas, (void)stream;
  return CUBLAS_STATUS_SUCCESS;
}

const char *cublasGetStatusString(cublasStatus_t status) {
  return status == CUBLAS_STATUS_SUCCESS ? "success" : "invalid value";
}
