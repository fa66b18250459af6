#include "device/cuda/cuda.h"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
  LEAST_MAJOR = 8,         /* compute capability: bf16 products */
  LEAST_PARCELS = 1 << 20, /* bytes of parcels between two waits, at least */
};

static kf_status check_gpu(int *major, int *minor, kf_error *e) {
  int count = 0, shared = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count < 1) error = cudaErrorNoDevice;
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(major, cudaDevAttrComputeCapabilityMajor, 0);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(minor, cudaDevAttrComputeCapabilityMinor, 0);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&shared, cudaDevAttrConcurrentManagedAccess, 0);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return kf_fail(e, KF_ERROR_INPUT, "this machine has no GPU that CUDA can use: %s", cudaGetErrorString(error));
  }
  if (*major < LEAST_MAJOR)
    return kf_fail(e, KF_ERROR_INPUT, "the GPU has compute capability %d.%d, expected %d.0 or later", *major, *minor,
                   LEAST_MAJOR);
  if (!shared) return kf_fail(e, KF_ERROR_INPUT, "the GPU cannot share memory with the CPU while both are at work");
  return KF_OK;
}

bool kf_cuda_ok(kf_cuda *c, cudaError_t error) {
  if (error == cudaSuccess) return true;
  cudaGetLastError();
  if (c->device.error.status == KF_OK)
    kf_fail(&c->device.error, error == cudaErrorMemoryAllocation ? KF_ERROR_MEMORY : KF_ERROR_IO, "the GPU failed: %s",
            cudaGetErrorString(error));
  return false;
}

/* ------------------------------------------------------------------------------------------------ memory */

static void *cuda_alloc(kf_device *d, size_t count, size_t size, kf_error *e) {
  (void)d;
  size_t bytes;
  void *p = NULL;
  if (__builtin_mul_overflow(count, size, &bytes)) {
    kf_fail(e, KF_ERROR_MEMORY, "cannot allocate %zu x %zu bytes", count, size);
    return NULL;
  }
  cudaError_t error = cudaMallocManaged(&p, bytes ? bytes : 1, cudaMemAttachGlobal);
  if (error == cudaSuccess) return p;
  cudaGetLastError();
  kf_fail(e, KF_ERROR_MEMORY, "%zu bytes of memory shared with the GPU were refused: %s", bytes, cudaGetErrorString(error));
  return NULL;
}

static void cuda_wait(kf_device *d) {
  kf_cuda *c = kf_cuda_of(d);
  kf_cuda_ok(c, cudaStreamSynchronize(c->stream));
  c->parcel_used = 0;
}

static void cuda_release(kf_device *d, void *p) {
  if (!p) return;
  cuda_wait(d);
  cudaFree(p);
}

void *kf_cuda_scratch(kf_cuda *c, kf_cuda_slot slot, size_t bytes) {
  if (c->scratch[slot].bytes >= bytes) return c->scratch[slot].data;
  cuda_wait(&c->device);
  cudaFree(c->scratch[slot].data);
  c->scratch[slot].data = NULL;
  c->scratch[slot].bytes = 0;
  if (!kf_cuda_ok(c, cudaMalloc(&c->scratch[slot].data, bytes + bytes / 4))) return NULL;
  c->scratch[slot].bytes = bytes + bytes / 4;
  return c->scratch[slot].data;
}

bool kf_cuda_parcel_open(kf_cuda *c, size_t bytes, kf_cuda_parcel *out) {
  if (c->device.error.status != KF_OK) return false;
  if (bytes > c->parcel_bytes - c->parcel_used) cuda_wait(&c->device);
  if (bytes > c->parcel_bytes) {
    free(c->parcel);
    c->parcel_bytes = bytes + LEAST_PARCELS;
    if (!(c->parcel = kf_alloc(c->parcel_bytes, 1, &c->device.error))) c->parcel_bytes = 0;
  }
  char *gpu = kf_cuda_scratch(c, KF_CUDA_PARCEL, c->parcel_bytes);
  if (!c->parcel || !gpu) return false;
  *out = (kf_cuda_parcel){.host = c->parcel + c->parcel_used, .gpu = gpu + c->parcel_used};
  c->parcel_used += kf_cuda_room(bytes);
  return true;
}

const void *kf_cuda_put(kf_cuda_parcel *p, const void *from, size_t bytes) {
  size_t at = p->used;
  memcpy(p->host + at, from, bytes);
  p->used += kf_cuda_room(bytes);
  return p->gpu + at;
}

bool kf_cuda_send(kf_cuda *c, const kf_cuda_parcel *p) {
  return kf_cuda_ok(c, cudaMemcpyAsync(p->gpu, p->host, p->used, cudaMemcpyHostToDevice, c->stream));
}

/* ------------------------------------------------------------------------------------------------ opening */

static void cuda_close(kf_device *d) {
  kf_cuda *c = kf_cuda_of(d);
  if (c->stream) cudaStreamSynchronize(c->stream);
  for (int i = 0; i < KF_CUDA_SLOTS; i++) cudaFree(c->scratch[i].data);
  if (c->blas) cublasDestroy(c->blas);
  if (c->stream) cudaStreamDestroy(c->stream);
  free(c->parcel);
  free(c);
}

static kf_status start(kf_cuda *c, kf_error *e) {
  cudaError_t error = cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking);
  if (error != cudaSuccess) return kf_fail(e, KF_ERROR_IO, "the GPU cannot be opened: %s", cudaGetErrorString(error));
  cublasStatus_t status = cublasCreate(&c->blas);
  if (status == CUBLAS_STATUS_SUCCESS) status = cublasSetStream(c->blas, c->stream);
  if (status != CUBLAS_STATUS_SUCCESS) return kf_fail(e, KF_ERROR_IO, "cuBLAS cannot start: %s", cublasGetStatusString(status));
  return KF_OK;
}

kf_status kf_device_open_cuda(kf_compute compute, int threads, kf_device **out, kf_error *e) {
  int major, minor;
  kf_cuda *c;
  KF_TRY(check_gpu(&major, &minor, e));
  KF_NEW(c, 1, e);
  snprintf(c->isa, sizeof c->isa, "sm_%d%d", major, minor);
  c->device.name = "cuda";
  c->device.isa = c->isa;
  c->device.compute = compute == KF_COMPUTE_F32 ? KF_F32 : KF_BF16;
  c->device.threads = threads > 0 ? threads : omp_get_num_procs();
  c->device.alloc = cuda_alloc;
  c->device.release = cuda_release;
  c->device.wait = cuda_wait;
  c->device.close = cuda_close;
  kf_cuda_linear_table(&c->device);
  kf_cuda_rows_table(&c->device);
  kf_cuda_attention_table(&c->device);
  kf_cuda_training_table(&c->device);
  kf_status s = start(c, e);
  if (s != KF_OK)
    cuda_close(&c->device);
  else
    *out = &c->device;
  return s;
}
