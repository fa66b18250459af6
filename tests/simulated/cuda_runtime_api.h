/* The part of CUDA's runtime that src/device/cuda/ calls, in the CPU's memory. */
#ifndef KF_SIMULATED_CUDA_RUNTIME_API_H
#define KF_SIMULATED_CUDA_RUNTIME_API_H

#include <stddef.h>

typedef enum cudaError_t { cudaSuccess, cudaErrorMemoryAllocation, cudaErrorNoDevice } cudaError_t;
typedef enum cudaDataType_t { CUDA_R_32F, CUDA_R_16BF } cudaDataType_t;
typedef struct kf_simulated_stream *cudaStream_t;
enum { cudaMemAttachGlobal, cudaStreamNonBlocking };
enum { cudaMemcpyHostToDevice, cudaMemcpyDefault };
enum { cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor, cudaDevAttrConcurrentManagedAccess };

cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaDeviceGetAttribute(int *value, int attribute, int device);
cudaError_t cudaGetLastError(void);
const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaMallocManaged(void **p, size_t bytes, unsigned flags);
cudaError_t cudaMalloc(void **p, size_t bytes);
cudaError_t cudaFree(void *p);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, cudaStream_t stream);
cudaError_t cudaMemset2DAsync(void *to, size_t pitch, int value, size_t width, size_t height, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamDestroy(cudaStream_t stream);

#endif
