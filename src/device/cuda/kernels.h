/* The kernels: what each is given, and one function a launch. All pointers are readable by the GPU; m, n, ... are at least 1.
 * A launch returns before its kernel has run. */
#ifndef KF_CUDA_KERNELS_H
#define KF_CUDA_KERNELS_H

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "device/device.h"

/* kf_rows with the list of pages on the GPU, from first_page on. */
typedef struct kf_cuda_rows {
  void *const *pages;
  int64_t first_page, page_tokens, columns;
  bool bf16;
} kf_cuda_rows;

/* All norms: head h of row t is x[t * stride + h * n ..]. */
typedef struct kf_cuda_norm {
  void *y;
  bool bf16;          /* y's type, else f32 */
  const float *x, *w; /* w: [w_heads, n] */
  int64_t m, stride, n;
  int heads, w_heads;
  float eps;
} kf_cuda_norm;
cudaError_t kf_cuda_launch_norm(cudaStream_t stream, const kf_cuda_norm *job);

typedef struct kf_cuda_block {
  int offset, pairs, index; /* index: where its columns of the table begin in `indices`; -1: 0 .. pairs-1 */
} kf_cuda_block;

typedef struct kf_cuda_rope {
  float *x;
  int64_t m, stride;
  const kf_cuda_block *blocks;
  int block_count, table_pairs;
  const int32_t *indices, *position;
  const float *cos, *sin;
  bool reverse;
} kf_cuda_rope;
cudaError_t kf_cuda_launch_rope(cudaStream_t stream, const kf_cuda_rope *job);

typedef struct kf_cuda_copy {
  float *y;
  const float *x;
  int64_t y_stride, x_stride, m, n;
  bool add;
} kf_cuda_copy;
cudaError_t kf_cuda_launch_copy(cudaStream_t stream, const kf_cuda_copy *job);

/* Rows at .. at + m, columns column .. column + n, and a matrix x of that shape. */
typedef struct kf_cuda_slice {
  kf_cuda_rows rows;
  int64_t at, m, column, n;
  float *x;
  int64_t stride;
} kf_cuda_slice;
cudaError_t kf_cuda_launch_store(cudaStream_t stream, const kf_cuda_slice *job);
cudaError_t kf_cuda_launch_fetch(cudaStream_t stream, const kf_cuda_slice *job);

typedef struct kf_cuda_swiglu {
  void *y;
  bool bf16; /* y's type, else f32 */
  const float *gate_up;
  int64_t m, f;
} kf_cuda_swiglu;
cudaError_t kf_cuda_launch_swiglu(cudaStream_t stream, const kf_cuda_swiglu *job);

typedef struct kf_cuda_round {
  uint16_t *to; /* bf16, rounded to nearest even */
  const float *from;
  int64_t n;
} kf_cuda_round;
cudaError_t kf_cuda_launch_round(cudaStream_t stream, const kf_cuda_round *job);

/* y[t * row_stride + h * head_stride + j] = bias[j], or += with add. */
typedef struct kf_cuda_bias {
  float *y;
  const float *bias;
  int64_t m, row_stride, head_stride, n;
  int heads;
  bool add;
} kf_cuda_bias;
cudaError_t kf_cuda_launch_bias(cudaStream_t stream, const kf_cuda_bias *job);

/* One sequence of an attention. Its query rows are (token, head of the group), heads fastest; a tile is some of them. */
typedef struct kf_cuda_sequence {
  const float *q; /* m rows [groups x heads, q_columns], q_stride numbers apart */
  int64_t q_stride;
  const float *q_rope; /* [m, groups x heads, rope_stride] or NULL */
  float *out;          /* [m, groups x heads, d_v] */
  kf_cuda_rows rows;
  int64_t m, past, tiles; /* tiles: of one group */
} kf_cuda_sequence;

/* Both attentions. Group g reads key columns g * d_k .. and value columns value_column + g * d_v .. of a row.
 * Grouped: a group is a KV head, q_columns = d_k. Latent: one group; behind its q_columns = rank latent columns a key has the
 * rope keys of all KV heads, of which a query head meets those of its own. */
typedef struct kf_cuda_attention {
  const kf_cuda_sequence *sequences;
  int64_t tiles; /* of one group, all sequences */
  int groups, heads;
  int64_t d_k, d_v, q_columns, value_column, window;
  float scale;
  const int *rope_offset, *rope_width; /* latent: [kv_heads] */
  int kv_heads, rope_stride;
  int inverse_rms; /* column; -1: none */
} kf_cuda_attention;
int64_t kf_cuda_tiles(int64_t rows); /* tiles of so many query rows */
cudaError_t kf_cuda_launch_attention(cudaStream_t stream, const kf_cuda_attention *job);

typedef struct kf_cuda_loss {
  const float *reference, *logits; /* [m, v]; reference: divergence only */
  const int32_t *target;
  int64_t m, v;
  double *nll, *kl, *difference;
  int32_t *best;
} kf_cuda_loss;
cudaError_t kf_cuda_launch_cross_entropy(cudaStream_t stream, const kf_cuda_loss *job);
cudaError_t kf_cuda_launch_divergence(cudaStream_t stream, const kf_cuda_loss *job);

/* ---- training */

/* All norms' backward: row t's head h of dy, x and dx is n numbers at t * its stride + h * n. The gradient of w is summed up in
 * two steps, so that it does not depend on the order in which blocks run. */
typedef struct kf_cuda_norm_backward {
  float *dx, *dw; /* dx may be dy; dw [w_heads, n], +=; NULL: not wanted */
  const float *dy, *x, *w;
  int64_t m, dx_stride, dy_stride, x_stride, n;
  int heads, w_heads;
  float eps;
  bool add;
  float *work; /* kf_cuda_norm_work() numbers */
} kf_cuda_norm_backward;
int64_t kf_cuda_norm_work(const kf_cuda_norm_backward *job);
cudaError_t kf_cuda_launch_norm_backward(cudaStream_t stream, const kf_cuda_norm_backward *job);

/* sum [n] += the rows of x [m, n]; work: kf_cuda_sums_work() numbers. */
typedef struct kf_cuda_sums {
  float *sum, *work;
  const float *x;
  int64_t m, n;
} kf_cuda_sums;
int64_t kf_cuda_sums_work(int64_t m, int64_t n);
cudaError_t kf_cuda_launch_sums(cudaStream_t stream, const kf_cuda_sums *job);

typedef struct kf_cuda_swiglu_backward {
  float *d_gate_up; /* may be gate_up */
  const float *dy, *gate_up;
  int64_t m, f;
} kf_cuda_swiglu_backward;
cudaError_t kf_cuda_launch_swiglu_backward(cudaStream_t stream, const kf_cuda_swiglu_backward *job);

/* rows [m, n] and rows `ids` of table. */
typedef struct kf_cuda_embedding {
  float *rows, *table;
  const int32_t *ids;
  int64_t m, n;
} kf_cuda_embedding;
cudaError_t kf_cuda_launch_gather(cudaStream_t stream, const kf_cuda_embedding *job);
cudaError_t kf_cuda_launch_scatter_add(cudaStream_t stream, const kf_cuda_embedding *job);

/* Of one sequence, all heads: `queries` queries from position `first` on meet `keys` keys from position `from` on.
 * score [heads, queries, keys] becomes the probabilities. */
typedef struct kf_cuda_scores {
  float *score;
  float *lse;      /* [tokens, heads]; written, or by the backward read */
  float *gradient; /* [heads, queries, keys] of probabilities: becomes that of the scores; NULL: the forward */
  int64_t heads, queries, first, keys, from, window;
  float scale;
} kf_cuda_scores;
cudaError_t kf_cuda_launch_scores(cudaStream_t stream, const kf_cuda_scores *job);

typedef struct kf_cuda_softmax_loss {
  kf_softmax_loss loss;
  float *logits;
  const float *teacher, *weight;
  const int32_t *target;
  int64_t m, v;
  double *nll, *divergence;
} kf_cuda_softmax_loss;
cudaError_t kf_cuda_launch_softmax_loss(cudaStream_t stream, const kf_cuda_softmax_loss *job);

typedef struct kf_cuda_adamw {
  kf_adamw o;
  float *w, *first, *second;
  const float *gradient;
  int64_t n;
} kf_cuda_adamw;
cudaError_t kf_cuda_launch_adamw(cudaStream_t stream, const kf_cuda_adamw *job);

enum { KF_CUDA_PARTS = 256 };
/* part [kf_cuda_squares_parts(n)]: their sum is that of the squares. */
typedef struct kf_cuda_squares {
  double *part;
  const float *x;
  int64_t n;
} kf_cuda_squares;
int kf_cuda_squares_parts(int64_t n);
cudaError_t kf_cuda_launch_squares(cudaStream_t stream, const kf_cuda_squares *job);

#ifdef __cplusplus
}
#endif
#endif
