/* The CUDA device: the first GPU, one stream. Numbers stand in managed memory, which both processors see; weights in the
 * GPU's own. Products go through cuBLAS, all else through the kernels beside this file. */
#ifndef KF_CUDA_CUDA_H
#define KF_CUDA_CUDA_H

#include "device/cuda/kernels.h"

#include <cublas_v2.h>

/* compute AUTO: bf16. Errors: no GPU, one before compute capability 8.0, one that cannot share memory with a CPU at work. */
kf_status kf_device_open_cuda(kf_compute compute, int threads, kf_device **out, kf_error *e);

/* Memory of the GPU that an operation needs while it runs; it only grows, and the order of the stream guards it. */
typedef enum kf_cuda_slot {
  KF_CUDA_INPUT,    /* what a product reads, in the compute type */
  KF_CUDA_GRADIENT, /* likewise, of a product's result */
  KF_CUDA_WORK,     /* of the kernel at hand */
  KF_CUDA_SCORE,    /* of attention, as the next */
  KF_CUDA_SCORE_GRADIENT,
  KF_CUDA_PARCEL,
  KF_CUDA_SLOTS
} kf_cuda_slot;

typedef struct kf_cuda {
  kf_device device; /* first: a kf_device is cast to its kf_cuda */
  char isa[16];
  cudaStream_t stream;
  cublasHandle_t blas;
  struct {
    void *data;
    size_t bytes;
  } scratch[KF_CUDA_SLOTS];
  char *parcel; /* the CPU's side of KF_CUDA_PARCEL */
  size_t parcel_bytes, parcel_used;
} kf_cuda;

struct kf_weight {
  int64_t n, k;
  void *data;  /* [n, k] of the compute type, on the GPU */
  float *bias; /* [n] on the GPU, or NULL */
  size_t bytes;
};

static inline kf_cuda *kf_cuda_of(kf_device *d) {
  return (kf_cuda *)d;
}

/* True when the call succeeded; else the failure becomes the device's, unless it has an earlier one. */
bool kf_cuda_ok(kf_cuda *c, cudaError_t error);
/* Whether there is nothing to launch: no numbers, or an error before. */
static inline bool kf_cuda_idle(const kf_device *d, int64_t numbers) {
  return numbers < 1 || d->error.status != KF_OK;
}
/* At least `bytes` of the GPU's memory; NULL (and the device's error set) when there is none. */
void *kf_cuda_scratch(kf_cuda *c, kf_cuda_slot slot, size_t bytes);

/* What describes an operation's numbers, gathered on the CPU and sent to the GPU in one piece before the launch. Parcels lie
 * one behind the other until all have been read: a copy may be as late as the stream. */
typedef struct kf_cuda_parcel {
  char *host, *gpu;
  size_t used;
} kf_cuda_parcel;
/* Room a piece of so many bytes takes. */
static inline size_t kf_cuda_room(size_t bytes) {
  return (bytes + 15) / 16 * 16;
}
/* False (and the device's error set) when memory for so many bytes is refused, or the device has failed before. */
bool kf_cuda_parcel_open(kf_cuda *c, size_t bytes, kf_cuda_parcel *out);
/* Adds a piece; gives the address it will have on the GPU. */
const void *kf_cuda_put(kf_cuda_parcel *p, const void *from, size_t bytes);
bool kf_cuda_send(kf_cuda *c, const kf_cuda_parcel *p);

/* c [m, n] = A B, row-major; with add, += that. A is [m, k], or with a_transposed stored as [k, m]; B likewise [k, n] or [n, k].
 * A batch of `heads` products, whose operands stand *_head numbers apart. */
typedef struct kf_cuda_product {
  const void *a, *b; /* of `type`, f32 or bf16 */
  float *c;
  cudaDataType_t type;
  int64_t m, n, k, a_row, b_row, c_row, a_head, b_head, c_head;
  int heads;
  bool a_transposed, b_transposed, add;
} kf_cuda_product;
void kf_cuda_multiply(kf_cuda *c, const kf_cuda_product *p);
/* The type that products of weights read. */
cudaDataType_t kf_cuda_type(const kf_cuda *c);
/* x [n] in that type, rounded into the slot if need be; NULL when n < 1, and after a failure. */
const void *kf_cuda_input(kf_cuda *c, kf_cuda_slot slot, const float *x, int64_t n);
/* y [m, n] = input W^T + bias (or NULL), w [n, k]; with add, y += that. input [m, k] of the compute type; NULL: nothing. */
void kf_cuda_linear(kf_cuda *c, float *y, const void *input, const void *w, const float *bias, int64_t m, int64_t n, int64_t k,
                    bool add);

/* One function a group of operations fills its entries of the table. */
void kf_cuda_linear_table(kf_device *d);
void kf_cuda_rows_table(kf_device *d);
void kf_cuda_attention_table(kf_device *d);
void kf_cuda_training_table(kf_device *d);

#endif
