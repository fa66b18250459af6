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

/* y[t, h, 0..n) = x[t, h, 0..k) w^T for w [n, k], or x w for w [k, n]; x and w of the compute type. */
typedef struct product {
  const void *x, *w;
  float *y;
  int64_t m, n, k, x_row, x_head, y_row, y_head; /* strides in numbers */
  int heads;
  bool transposed, add;
} product;

static void multiply(kf_cuda *c, const product *p) {
  const float one = 1, beta = p->add ? 1 : 0;
  cudaDataType_t type = c->device.compute == KF_BF16 ? CUDA_R_16BF : CUDA_R_32F;
  cublasStatus_t status =
      cublasGemmStridedBatchedEx_64(c->blas, p->transposed ? CUBLAS_OP_T : CUBLAS_OP_N, CUBLAS_OP_N, p->n, p->m, p->k, &one, p->w,
                                    type, p->transposed ? p->k : p->n, 0, p->x, type, p->x_row, p->x_head, &beta, p->y,
                                    CUDA_R_32F, p->y_row, p->y_head, p->heads, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
  if (status != CUBLAS_STATUS_SUCCESS && c->device.error.status == KF_OK)
    kf_fail(&c->device.error, KF_ERROR_IO, "cuBLAS failed on a product of %lld x %lld x %lld: %s", (long long)p->m,
            (long long)p->n, (long long)p->k, cublasGetStatusString(status));
}

/* Room for n numbers of the compute type that a product is to read; NULL when there are none, and after a failure. */
static void *input_space(kf_cuda *c, int64_t n) {
  if (n < 1 || c->device.error.status != KF_OK) return NULL;
  return kf_cuda_scratch(c, KF_CUDA_INPUT, (size_t)n * element(c));
}

/* x in the compute type; NULL as above. */
static const void *convert(kf_cuda *c, const float *x, int64_t n) {
  if (c->device.compute == KF_F32) return n < 1 || c->device.error.status != KF_OK ? NULL : x;
  kf_cuda_round job = {input_space(c, n), x, n};
  return job.to && kf_cuda_ok(c, kf_cuda_launch_round(c->stream, &job)) ? job.to : NULL;
}

/* y = input W^T + bias; with add, y += that. input: [m, k] of the compute type, or NULL: nothing is done. */
static void product_of(kf_cuda *c, float *y, const void *input, const kf_weight *w, int64_t m, bool add) {
  if (!input) return;
  kf_cuda_bias bias = {.y = y, .bias = w->bias, .m = m, .row_stride = w->n, .n = w->n, .heads = 1, .add = add};
  if (w->bias) kf_cuda_ok(c, kf_cuda_launch_bias(c->stream, &bias));
  multiply(c, &(product){.x = input,
                         .w = w->data,
                         .y = y,
                         .m = m,
                         .n = w->n,
                         .k = w->k,
                         .x_row = w->k,
                         .y_row = w->n,
                         .heads = 1,
                         .transposed = true,
                         .add = add || w->bias});
}

static void linear(kf_device *d, float *y, const float *x, const kf_weight *w, int64_t m, bool add) {
  kf_cuda *c = kf_cuda_of(d);
  product_of(c, y, convert(c, x, m * w->k), w, m, add);
}

static void norm_linear(kf_device *d, float *y, const float *x, const float *norm, float eps, const kf_weight *w, int64_t m) {
  kf_cuda *c = kf_cuda_of(d);
  kf_cuda_norm job = {.y = input_space(c, m * w->k),
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
  kf_cuda_swiglu job = {.y = input_space(c, m * w->k), .bf16 = d->compute == KF_BF16, .gate_up = gate_up, .m = m, .f = w->k};
  if (job.y && kf_cuda_ok(c, kf_cuda_launch_swiglu(c->stream, &job))) product_of(c, y, job.y, w, m, true);
}

static const void *row_of(const kf_cuda *c, const kf_weight *w, int64_t row) {
  return (const char *)w->data + (size_t)(row * w->k) * element(c);
}

static void head_transposed(kf_device *d, float *y, const float *x, int64_t m, int heads, int x_stride, const kf_weight *w,
                            const kf_head_rows *rows, int kv_heads) {
  kf_cuda *c = kf_cuda_of(d);
  const char *input = convert(c, x, m * heads * x_stride);
  int64_t group = heads / kv_heads;
  for (int g = 0; input && g < kv_heads; g++) {
    product p = {.x = input + (size_t)(g * group * x_stride) * element(c),
                 .w = row_of(c, w, rows[g].first),
                 .y = y + g * group * w->k,
                 .m = m,
                 .n = w->k,
                 .k = rows[g].count,
                 .x_row = (int64_t)heads * x_stride,
                 .x_head = x_stride,
                 .y_row = heads * w->k,
                 .y_head = w->k,
                 .heads = (int)group};
    size_t pitch = (size_t)p.y_row * sizeof *y;
    if (p.k)
      multiply(c, &p);
    else /* a head without such rows: the sum of nothing */
      kf_cuda_ok(c, cudaMemset2DAsync(p.y, pitch, 0, (size_t)(group * w->k) * sizeof *y, (size_t)m, c->stream));
  }
}

static void head_times(kf_device *d, float *y, int y_stride, const float *x, int64_t m, int heads, const kf_weight *w,
                       const kf_head_rows *rows, int kv_heads, const float *bias) {
  kf_cuda *c = kf_cuda_of(d);
  const char *input = convert(c, x, m * heads * w->k);
  int64_t group = heads / kv_heads;
  for (int g = 0; input && g < kv_heads; g++) {
    if (!rows[g].count) continue;
    product p = {.x = input + (size_t)(g * group * w->k) * element(c),
                 .w = row_of(c, w, rows[g].first),
                 .y = y + g * group * y_stride,
                 .m = m,
                 .n = rows[g].count,
                 .k = w->k,
                 .x_row = heads * w->k,
                 .x_head = w->k,
                 .y_row = (int64_t)heads * y_stride,
                 .y_head = y_stride,
                 .heads = (int)group,
                 .transposed = true,
                 .add = bias != NULL};
    kf_cuda_bias first = {.y = p.y,
                          .bias = bias ? bias + rows[g].first : NULL,
                          .m = m,
                          .row_stride = p.y_row,
                          .head_stride = y_stride,
                          .n = p.n,
                          .heads = p.heads};
    if (bias) kf_cuda_ok(c, kf_cuda_launch_bias(c->stream, &first));
    multiply(c, &p);
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
