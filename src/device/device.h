/* The device table: every tensor operation that the model needs. One folder per accelerator implements it.
 *
 * Conventions
 *   - Activations are f32, row-major; [m, n] has rows of n numbers one after another unless a stride is given. `m` counts
 *     tokens, of several sequences one after another.
 *   - Numbers that operations read or write (activations, pages of caches, vectors of weights, cos/sin, positions, targets,
 *     losses) stand in memory from alloc(), which the CPU sees too. What describes them (rows and their lists of pages,
 *     blocks and their indices, shapes, sequences, rows of heads) is the caller's own and is read before the operation returns.
 *   - An operation may return before it has run; they run in the order of the calls. The CPU reads what they write, and writes
 *     what they read, only after wait() or kf_device_check(). The forward pass waits at the end of a layer, after the logits,
 *     before a watcher, and where the CPU works on the numbers itself (q/k norms of latent layers).
 *   - compute is what matrix products multiply in (accumulation is f32): KF_F32 or KF_BF16. Packed weights, and the rows
 *     of caches, are of that type.
 *   - Operations do not fail one by one: the first failure stays in the device and is read with kf_device_check().
 *   - Every operation has a plain reference in device/reference.h and is compared with it in tests/unit/test_device.c.
 */
#ifndef KF_DEVICE_DEVICE_H
#define KF_DEVICE_DEVICE_H

#include "base/memory.h"
#include "tensor/dtype.h"

typedef struct kf_weight kf_weight; /* a matrix as the device wants it; opaque */

/* Rows of a cache: token t is at pages[t / page_tokens] + (t % page_tokens) * columns elements of `dtype`. */
typedef struct kf_rows {
  void *const *pages;
  int page_tokens;
  int64_t columns;
  kf_dtype dtype;
} kf_rows;

/* One run of adjacent columns that is rotated: pairs (x[offset + i], x[offset + pairs + i]), i < pairs (half-split). */
typedef struct kf_rope_block {
  int offset, pairs;
  const int32_t *index; /* [pairs] columns of the cos/sin table; NULL: 0 .. pairs-1 */
} kf_rope_block;

/* Grouped attention of one sequence: m queries at positions past .. past+m-1 over rows 0 .. past+m-1. */
typedef struct kf_attention {
  const float *q; /* m rows [heads, d_qk], q_stride numbers apart */
  int64_t q_stride;
  float *out;   /* [m, heads, d_v] */
  kf_rows rows; /* columns: kv_heads x d_qk keys, then kv_heads x d_v values (more may follow) */
  int64_t m, past;
} kf_attention;

typedef struct kf_attention_shape {
  int heads, kv_heads, d_qk, d_v; /* query head h reads KV head h / (heads / kv_heads) */
  float scale;
  int64_t window; /* 0: all earlier tokens; else position p sees p-window+1 .. p */
} kf_attention_shape;

/* Absorbed latent attention of one sequence, in the latent space. */
typedef struct kf_latent_attention {
  const float *q_latent; /* [m, heads, rank] */
  const float *q_rope;   /* [m, heads, rope_stride]; the first rope_width of the head's KV head are used */
  float *out;            /* [m, heads, rank]: sum over keys of probability x latent */
  kf_rows rows;          /* columns: rank latents, then rope keys, then (inverse_rms) one number a KV head */
  int64_t m, past;
} kf_latent_attention;

typedef struct kf_latent_shape {
  int heads, kv_heads, rank, rope_stride;
  const int *rope_offset; /* [kv_heads] column of that KV head's rope keys in a row (the same for all when shared) */
  const int *rope_width;  /* [kv_heads] */
  int inverse_rms;        /* column of the first factor; -1: none. The score of KV head g is multiplied by it. */
  float scale;
  int64_t window;
} kf_latent_shape;

/* Rows of a plain matrix that belong to one KV head. */
typedef struct kf_head_rows {
  int64_t first, count;
} kf_head_rows;

/* What training needs beside: a matrix that is trained, rows [n, k] in the compute type (f32: the masters themselves). */
typedef struct kf_matrix {
  const void *w;
  const float *bias; /* [n] f32 or NULL */
  int64_t n, k;
} kf_matrix;

/* Attention over one whole sequence: token t's queries at q + t * q_stride, [heads, d_qk], and so on. A gradient has the
 * strides of what it belongs to. */
typedef struct kf_attention_pass {
  int64_t m;
  const float *q, *k, *v; /* rows of [heads, d_qk], [kv_heads, d_qk], [kv_heads, d_v] */
  int64_t q_stride, k_stride, v_stride;
  float *out, *lse;    /* [m, heads, d_v]; [m, heads] log of the sum of e^score */
  const float *d_out;  /* [m, heads, d_v]; this and what follows: of the backward only */
  float *dq, *dk, *dv; /* overwritten */
} kf_attention_pass;

typedef enum kf_divergence { KF_FORWARD_KL, KF_REVERSE_KL, KF_JENSEN_SHANNON } kf_divergence;

/* Loss of a row: ce x cross-entropy + kl x T^2 D(p, q), p and q the softmax of the teacher's and the student's logits / T.
 * D: KL(p || q), KL(q || p), or (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2. T^2 keeps the size of the gradient. */
typedef struct kf_softmax_loss {
  float ce, kl, temperature;
  kf_divergence divergence;
} kf_softmax_loss;

/* One step of AdamW (Loshchilov and Hutter, decoupled decay): with g = scale x gradient,
 * first = b1 first + (1 - b1) g, second = b2 second + (1 - b2) g^2,
 * w -= rate (first / correction1 / (sqrt(second / correction2) + eps) + decay w), correction_i = 1 - b_i^step. */
typedef struct kf_adamw {
  float rate, beta1, beta2, eps, decay, scale, correction1, correction2;
} kf_adamw;

typedef struct kf_device kf_device;
struct kf_device {
  const char *name; /* "cpu", "cuda" */
  const char *isa;  /* "avx512_bf16", "avx512", "avx2", "portable"; the GPU's "sm_90" */
  kf_dtype compute;
  int threads;    /* of the CPU */
  kf_error error; /* the first failure */

  /* Memory of count x size bytes, 64-byte aligned, its content undefined; NULL and e filled when it overflows or is refused.
   * release waits first; NULL allowed. */
  void *(*alloc)(kf_device *d, size_t count, size_t size, kf_error *e);
  void (*release)(kf_device *d, void *p);
  void (*wait)(kf_device *d); /* until all operations have run */

  /* Weights. w: [n, k] f32, row-major, kept by the caller; bias [n] or NULL. pack is for linear(); plain keeps rows in
   * order, for head_times() and head_transposed(). */
  kf_status (*pack)(kf_device *d, const float *w, const float *bias, int64_t n, int64_t k, kf_weight **out, kf_error *e);
  kf_status (*plain)(kf_device *d, const float *w, int64_t n, int64_t k, kf_weight **out, kf_error *e);
  void (*weight_free)(kf_device *d, kf_weight *w); /* NULL allowed */
  size_t (*weight_bytes)(const kf_weight *w);

  /* y [m, n] = x [m, k] W^T + bias; with add, y += that. */
  void (*linear)(kf_device *d, float *y, const float *x, const kf_weight *w, int64_t m, bool add);
  /* y [m, n] = rmsnorm(x) W^T + bias; x: [m, k], norm: [k]. The rows between are in the compute type at once. */
  void (*norm_linear)(kf_device *d, float *y, const float *x, const float *norm, float eps, const kf_weight *w, int64_t m);
  /* y [m, n] += (silu(gate) * up) W^T + bias; gate_up: [m, 2k] gate first. */
  void (*swiglu_linear)(kf_device *d, float *y, const float *gate_up, const kf_weight *w, int64_t m);
  /* y = x / rms(x) * w, rms over n with eps inside the root. x, y: [m, n]; y may be x. */
  void (*rmsnorm)(kf_device *d, float *y, const float *x, const float *w, int64_t m, int64_t n, float eps);
  /* Per head, in place: x rows have `stride` numbers, heads x n of them used; w: [w_heads, n], head h takes row
   * h / (heads / w_heads). */
  void (*head_norm)(kf_device *d, float *x, int64_t m, int64_t stride, int heads, int n, const float *w, int w_heads, float eps);
  /* In place: row t of x (stride numbers) is rotated by cos/sin row position[t] of tables [positions, table_pairs]; with
   * reverse the other way round, which is the rotation's backward. */
  void (*rope)(kf_device *d, float *x, int64_t m, int64_t stride, const kf_rope_block *blocks, int block_count, const float *cos,
               const float *sin, int table_pairs, const int32_t *position, bool reverse);
  /* y [m, n] = x, rows of both at their own stride; with add, y += that. */
  void (*copy)(kf_device *d, float *y, int64_t y_stride, const float *x, int64_t x_stride, int64_t m, int64_t n, bool add);
  void (*zero)(kf_device *d, float *x, int64_t n);
  /* rows[at + i][column .. column + n) = x[i][0 .. n), x rows have `stride` numbers. */
  void (*store)(kf_device *d, const kf_rows *rows, int64_t at, int64_t m, int64_t column, int64_t n, const float *x,
                int64_t stride);
  /* The reverse: y[i][0 .. n) from rows at .. at + m. */
  void (*fetch)(kf_device *d, float *y, int64_t stride, const kf_rows *rows, int64_t at, int64_t m, int64_t column, int64_t n);
  /* Causal, flash style: memory does not grow with the context. */
  void (*attention)(kf_device *d, const kf_attention_shape *shape, const kf_attention *sequences, int count);
  void (*latent_attention)(kf_device *d, const kf_latent_shape *shape, const kf_latent_attention *sequences, int count);
  /* y[t, h, 0..rank) = sum_j x[t, h, j] W[rows[g].first + j, :], j < rows[g].count, g = h / (heads / kv_heads): q -> latent.
   * x: [m, heads, x_stride]; W plain [*, rank]. */
  void (*head_transposed)(kf_device *d, float *y, const float *x, int64_t m, int heads, int x_stride, const kf_weight *w,
                          const kf_head_rows *rows, int kv_heads);
  /* y[t, h, j] = W[rows[g].first + j, :] . x[t, h, :] + bias[rows[g].first + j]: latent -> value. y: [m, heads, y_stride],
   * x: [m, heads, rank]; bias may be NULL. */
  void (*head_times)(kf_device *d, float *y, int y_stride, const float *x, int64_t m, int heads, const kf_weight *w,
                     const kf_head_rows *rows, int kv_heads, const float *bias);
  /* Per row of logits [m, v]: nll[i] = logsumexp - logit[target[i]] in nats (fp64 sums); best[i] = argmax. */
  void (*cross_entropy)(kf_device *d, const float *logits, const int32_t *target, int64_t m, int64_t v, double *nll,
                        int32_t *best);
  /* Per row: kl[i] = KL(softmax(reference) || softmax(logits)), difference[i] = max |reference - logits|. */
  void (*divergence)(kf_device *d, const float *reference, const float *logits, int64_t m, int64_t v, double *kl,
                     double *difference);

  /* ---- training. All of these are NULL on a device that does not train. "+=": gradients are added to what is there. */
  /* to [n] in the compute type = from. */
  void (*round)(kf_device *d, void *to, const float *from, int64_t n);
  /* y [m, n] = x [m, k] W^T + bias; with add, y += that. */
  void (*matrix)(kf_device *d, float *y, const float *x, const kf_matrix *w, int64_t m, bool add);
  /* dx [m, k] = dy W (with add, +=), dw [n, k] += dy^T x, dbias [n] += sum of dy's rows; any of the three may be NULL. */
  void (*matrix_backward)(kf_device *d, float *dx, float *dw, float *dbias, const float *dy, const float *x, const kf_matrix *w,
                          int64_t m, bool add);
  /* dx = gradient (with add, +=), dw [n] += (NULL: not wanted). x: the input of rmsnorm(). dx may be dy or x. */
  void (*rmsnorm_backward)(kf_device *d, float *dx, float *dw, const float *dy, const float *x, const float *w, int64_t m,
                           int64_t n, float eps, bool add);
  /* dx, the gradient of head_norm()'s output, becomes that of its input x; both have rows of their own stride. dw as w, +=. */
  void (*head_norm_backward)(kf_device *d, float *dx, int64_t dx_stride, float *dw, const float *x, int64_t x_stride, int64_t m,
                             int heads, int n, const float *w, int w_heads, float eps);
  /* Causal, of whole sequences; the forward fills out and lse, the backward dq, dk and dv. Memory is linear in m. */
  void (*attention_forward)(kf_device *d, const kf_attention_shape *shape, const kf_attention_pass *sequences, int count);
  void (*attention_backward)(kf_device *d, const kf_attention_shape *shape, const kf_attention_pass *sequences, int count);
  /* y [m, f] = silu(gate) * up, gate_up: [m, 2f] gate first. */
  void (*swiglu_forward)(kf_device *d, float *y, const float *gate_up, int64_t m, int64_t f);
  /* d_gate_up [m, 2f] from dy [m, f]; it may be gate_up. */
  void (*swiglu_backward)(kf_device *d, float *d_gate_up, const float *dy, const float *gate_up, int64_t m, int64_t f);
  /* y [m, n] = rows ids[i] of table; the reverse: rows ids[i] of d_table += dy. */
  void (*gather)(kf_device *d, float *y, const float *table, const int32_t *ids, int64_t m, int64_t n);
  void (*scatter_add)(kf_device *d, float *d_table, const float *dy, const int32_t *ids, int64_t m, int64_t n);
  /* Logits [m, v] become weight[i] x the loss's gradient; nll and divergence [m] are those of the rows themselves, unweighted.
   * teacher [m, v] may be NULL when l->kl is 0 (divergence is then 0). A row of weight 0 is not looked at: all its numbers are 0. */
  void (*softmax_loss)(kf_device *d, const kf_softmax_loss *l, float *logits, const float *teacher, const int32_t *target,
                       const float *weight, int64_t m, int64_t v, double *nll, double *divergence);
  void (*adamw)(kf_device *d, const kf_adamw *o, float *w, float *first, float *second, const float *gradient, int64_t n);
  /* The same whatever the number of threads. */
  double (*sum_squares)(kf_device *d, const float *x, int64_t n);

  void (*close)(kf_device *d);
};

/* kind AUTO: the CPU. compute AUTO: bf16 when the device has native bf16 products, else f32. BF16 asked of a CPU without them,
 * or CUDA where there is none, is an error. threads 0: all that the process may use. */
kf_status kf_device_open(kf_device_kind kind, kf_compute compute, int threads, kf_device **out, kf_error *e);
kf_status kf_device_open_cpu(kf_compute compute, int threads, kf_device **out, kf_error *e);
void kf_device_close(kf_device *d); /* NULL allowed */
/* Waits; the first failure since the last check, cleared. */
kf_status kf_device_check(kf_device *d, kf_error *e);
/* What compute AUTO is on this CPU: "f32" or "bf16". */
const char *kf_cpu_auto_compute(void);

/* A copy of `count` numbers in the device's memory. */
kf_status kf_device_numbers(kf_device *d, const float *from, int64_t count, float **out, kf_error *e);

/* KF_NEW from a device's memory; the content is undefined. */
#define KF_DEVICE_NEW(device, pointer, count, e)                                                                   \
  do {                                                                                                             \
    if (!((pointer) = (device)->alloc((device), (size_t)(count), sizeof *(pointer), (e)))) return KF_ERROR_MEMORY; \
  } while (0)

#endif
