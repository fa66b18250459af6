/* Weights and products. cuBLAS takes any shape and alignment; matrices are its column-major ones transposed. */
#include <stdlib.h>

#include "device/cuda/cuda.h"

enum { PIECE = 1 << 22 }; /* numbers of a weight that are rounded at a time */

static size_t element(const kf_cuda *c) {
  return c->device.compute == KF_BF16 ? 2 : 4;
}

/* ------------------------------------------------------------------------------------------------ weights */

static void weight_free(kf_device *d, kf_weight *w) {
  if (!w) return;
  d->wait(d);
  cudaFree(w->data);
  cudaFree(w->bias);
  free(w);
}

static size_t weight_bytes(const kf_weight *w) {
  return w->bytes;
}

static bool send(kf_cuda *c, void *to, const float *from, int64_t n) {
  return kf_cuda_ok(c, cudaMemcpyAsync(to, from, (size_t)n * sizeof *from, cudaMemcpyDefault, c->stream));
}

static bool send_rounded(kf_cuda *c, uint16_t *to, const float *from, int64_t n) {
  float *piece = kf_cuda_scratch(c, KF_CUDA_INPUT, (size_t)(n < PIECE ? n : PIECE) * sizeof *piece);
  if (!piece) return false;
  for (int64_t at = 0; at < n; at += PIECE) {
    kf_cuda_round job = {to + at, piece, n - at < PIECE ? n - at : PIECE};
    if (!send(c, piece, from + at, job.n) || !kf_cuda_ok(c, kf_cuda_launch_round(c->stream, &job))) return false;
  }
  return true;
}

static void fill(kf_cuda *c, kf_weight *w, const float *from, const float *bias) {
  size_t count = (size_t)(w->n * w->k), bytes = count * element(c);
  if (!kf_cuda_ok(c, cudaMalloc(&w->data, bytes ? bytes : 1))) return;
  if (count &&
      !(c->device.compute == KF_BF16 ? send_rounded(c, w->data, from, (int64_t)count) : send(c, w->data, from, (int64_t)count)))
    return;
  w->bytes = bytes;
  if (!bias) return;
  void *data = NULL;
  if (!kf_cuda_ok(c, cudaMalloc(&data, (size_t)w->n * sizeof *bias))) return;
  w->bias = data;
  w->bytes += (size_t)w->n * sizeof *bias;
  send(c, w->bias, bias, w->n);
}

static kf_status pack(kf_device *d, const float *w, const float *bias, int64_t n, int64_t k, kf_weight **out, kf_error *e) {
  kf_weight *packed;
  KF_TRY(kf_device_check(d, e));
  KF_NEW(packed, 1, e);
  packed->n = n;
  packed->k = k;
  fill(kf_cuda_of(d), packed, w, bias);
  kf_status s = kf_device_check(d, e);
  if (s != KF_OK)
    weight_free(d, packed);
  else
    *out = packed;
  return s;
}

static kf_status plain(kf_device *d, const float *w, int64_t n, int64_t k, kf_weight **out, kf_error *e) {
  return pack(d, w, NULL, n, k, out, e);
}

/* ------------------------------------------------------------------------------------------------ products */

cudaDataType_t kf_cuda_type(const kf_cuda *c) {
  return c->device.compute == KF_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

/* C^T = B^T A^T, column-major. */
void kf_cuda_multiply(kf_cuda *c, const kf_cuda_product *p) {
  const float one = 1, beta = p->add ? 1 : 0;
  if (c->device.error.status != KF_OK) return;
  cublasStatus_t status = cublasGemmStridedBatchedEx_64(
      c->blas, p->b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N, p->a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N, p->n, p->m, p->k, &one,
      p->b, p->type, p->b_row, p->b_head, p->a, p->type, p->a_row, p->a_head, &beta, p->c, CUDA_R_32F, p->c_row, p->c_head,
      p->heads, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
  if (status != CUBLAS_STATUS_SUCCESS)
    kf_fail(&c->device.error, KF_ERROR_IO, "cuBLAS failed on a product of %lld x %lld x %lld: %s", (long long)p->m,
            (long long)p->n, (long long)p->k, cublasGetStatusString(status));
}

/* Room for n numbers of the compute type that a product is to read; NULL when there are none, and after a failure. */
static void *input_space(kf_cuda *c, kf_cuda_slot slot, int64_t n) {
  if (n < 1 || c->device.error.status != KF_OK) return NULL;
  return kf_cuda_scratch(c, slot, (size_t)n * element(c));
}

const void *kf_cuda_input(kf_cuda *c, kf_cuda_slot slot, const float *x, int64_t n) {
  if (c->device.compute == KF_F32) return n < 1 || c->device.error.status != KF_OK ? NULL : x;
  kf_cuda_round job = {input_space(c, slot, n), x, n};
  return job.to && kf_cuda_ok(c, kf_cuda_launch_round(c->stream, &job)) ? job.to : NULL;
}

void kf_cuda_linear(kf_cuda *c, float *y, const void *input, const void *w, const float *bias, int64_t m, int64_t n, int64_t k,
                    bool add) {
  if (!input) return;
  kf_cuda_bias first = {.y = y, .bias = bias, .m = m, .row_stride = n, .n = n, .heads = 1, .add = add};
  if (bias) kf_cuda_ok(c, kf_cuda_launch_bias(c->stream, &first));
  kf_cuda_multiply(c, &(kf_cuda_product){.a = input,
                                         .b = w,
                                         .c = y,
                                         .type = kf_cuda_type(c),
                                         .m = m,
                                         .n = n,
                                         .k = k,
                                         .a_row = k,
                                         .b_row = k,
                                         .c_row = n,
                                         .heads = 1,
                                         .b_transposed = true,
                                         .add = add || bias});
}

static void product_of(kf_cuda *c, float *y, const void *input, const kf_weight *w, int64_t m, bool add) {
  kf_cuda_linear(c, y, input, w->data, w->bias, m, w->n, w->k, add);
}

static void linear(kf_device *d, float *y, const float *x, const kf_weight *w, int64_t m, bool add) {
  kf_cuda *c = kf_cuda_of(d);
  product_of(c, y, kf_cuda_input(c, KF_CUDA_INPUT, x, m * w->k), w, m, add);
}

static void norm_linear(kf_device *d, float *y, const float *x, const float *norm, float eps, const kf_weight *w, int64_t m) {
  kf_cuda *c = kf_cuda_of(d);
  kf_cuda_norm job = {.y = input_space(c, KF_CUDA_INPUT, m * w->k),
                      .bf16 = d->compute == KF_BF16,
                      .x = x,
                      .w = norm,
                      .m = m,
                      .stride = w->k,
                      .n = w->k,
                      .heads = 1,
                      .w_heads = 1,
                      .eps = eps};
  if (job.y && kf_cuda_ok(c, kf_cuda_launch_norm(c->stream, &job))) product_of(c, y, job.y, w, m, false);
}

static void swiglu_linear(kf_device *d, float *y, const float *gate_up, const kf_weight *w, int64_t m) {
  kf_cuda *c = kf_cuda_of(d);
  kf_cuda_swiglu job = {
      .y = input_space(c, KF_CUDA_INPUT, m * w->k), .bf16 = d->compute == KF_BF16, .gate_up = gate_up, .m = m, .f = w->k};
  if (job.y && kf_cuda_ok(c, kf_cuda_launch_swiglu(c->stream, &job))) product_of(c, y, job.y, w, m, true);
}

static const void *row_of(const kf_cuda *c, const kf_weight *w, int64_t row) {
  return (const char *)w->data + (size_t)(row * w->k) * element(c);
}

static void head_transposed(kf_device *d, float *y, const float *x, int64_t m, int heads, int x_stride, const kf_weight *w,
                            const kf_head_rows *rows, int kv_heads) {
  kf_cuda *c = kf_cuda_of(d);
  const char *input = kf_cuda_input(c, KF_CUDA_INPUT, x, m * heads * x_stride);
  int64_t group = heads / kv_heads;
  for (int g = 0; input && g < kv_heads; g++) {
    kf_cuda_product p = {.a = input + (size_t)(g * group * x_stride) * element(c),
                         .b = row_of(c, w, rows[g].first),
                         .c = y + g * group * w->k,
                         .type = kf_cuda_type(c),
                         .m = m,
                         .n = w->k,
                         .k = rows[g].count,
                         .a_row = (int64_t)heads * x_stride,
                         .a_head = x_stride,
                         .b_row = w->k,
                         .c_row = heads * w->k,
                         .c_head = w->k,
                         .heads = (int)group};
    size_t pitch = (size_t)p.c_row * sizeof *y;
    if (p.k)
      kf_cuda_multiply(c, &p);
    else /* a head without such rows: the sum of nothing */
      kf_cuda_ok(c, cudaMemset2DAsync(p.c, pitch, 0, (size_t)(group * w->k) * sizeof *y, (size_t)m, c->stream));
  }
}

static void head_times(kf_device *d, float *y, int y_stride, const float *x, int64_t m, int heads, const kf_weight *w,
                       const kf_head_rows *rows, int kv_heads, const float *bias) {
  kf_cuda *c = kf_cuda_of(d);
  const char *input = kf_cuda_input(c, KF_CUDA_INPUT, x, m * heads * w->k);
  int64_t group = heads / kv_heads;
  for (int g = 0; input && g < kv_heads; g++) {
    if (!rows[g].count) continue;
    kf_cuda_product p = {.a = input + (size_t)(g * group * w->k) * element(c),
                         .b = row_of(c, w, rows[g].first),
                         .c = y + g * group * y_stride,
                         .type = kf_cuda_type(c),
                         .m = m,
                         .n = rows[g].count,
                         .k = w->k,
                         .a_row = heads * w->k,
                         .a_head = w->k,
                         .b_row = w->k,
                         .c_row = (int64_t)heads * y_stride,
                         .c_head = y_stride,
                         .heads = (int)group,
                         .b_transposed = true,
                         .add = bias != NULL};
    kf_cuda_bias first = {.y = p.c,
                          .bias = bias ? bias + rows[g].first : NULL,
                          .m = m,
                          .row_stride = p.c_row,
                          .head_stride = y_stride,
                          .n = p.n,
                          .heads = p.heads};
    if (bias) kf_cuda_ok(c, kf_cuda_launch_bias(c->stream, &first));
    kf_cuda_multiply(c, &p);
  }
}

void kf_cuda_linear_table(kf_device *d) {
  d->pack = pack;
  d->plain = plain;
  d->weight_free = weight_free;
  d->weight_bytes = weight_bytes;
  d->linear = linear;
  d->norm_linear = norm_linear;
  d->swiglu_linear = swiglu_linear;
  d->head_transposed = head_transposed;
  d->head_times = head_times;
}
