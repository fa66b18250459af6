/* The part of cuBLAS that src/device/cuda/ calls. */
#ifndef KF_SIMULATED_CUBLAS_V2_H
#define KF_SIMULATED_CUBLAS_V2_H

#include <cuda_runtime_api.h>
#include <stdint.h>

typedef enum cublasStatus_t { CUBLAS_STATUS_SUCCESS, CUBLAS_STATUS_INVALID_VALUE } cublasStatus_t;
typedef enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T } cublasOperation_t;
enum { CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT };
typedef struct kf_simulated_blas *cublasHandle_t;

cublasStatus_t cublasCreate(cublasHandle_t *blas);
cublasStatus_t cublasDestroy(cublasHandle_t blas);
cublasStatus_t cublasSetStream(cublasHandle_t blas, cudaStream_t stream);
const char *cublasGetStatusString(cublasStatus_t status);
cublasStatus_t cublasGemmStridedBatchedEx_64(cublasHandle_t blas, cublasOperation_t op_a, cublasOperation_t op_b, int64_t m,
                                             int64_t n, int64_t k, const void *alpha, const void *a, cudaDataType_t a_type,
                                             int64_t lda, long long stride_a, const void *b, cudaDataType_t b_type, int64_t ldb,
                                             long long stride_b, const void *beta, void *c, cudaDataType_t c_type, int64_t ldc,
                                             long long stride_c, int64_t batch, int compute, int algorithm);

#endif
