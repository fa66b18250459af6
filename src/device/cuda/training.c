/* What training needs beside: what is left to do on the CPU before a launch, and attention with its backward, whose products
 * are cuBLAS's: scores of a chunk of queries at a time stand in the GPU's memory, which so is linear in the context. */
#include "device/cuda/cuda.h"

/* ------------------------------------------------------------------------------------------------ products */

static void round_to(kf_device *d, void *to, const float *from, int64_t n) {
  kf_cuda *c = kf_cuda_of(d);
  kf_cuda_round job = {to, from, n};
  if (kf_cuda_idle(d, n)) return;
  kf_cuda_ok(c, d->compute == KF_BF16 ? kf_cuda_launch_round(c->stream, &job)
                                      : cudaMemcpyAsync(to, from, (size_t)n * sizeof *from, cudaMemcpyDefault, c->stream));
}

static void matrix(kf_device *d, float *y, const float *x, const kf_matrix *w, int64_t m, bool add) {
  kf_cuda *c = kf_cuda_of(d);
  kf_cuda_linear(c, y, kf_cuda_input(c, KF_CUDA_INPUT, x, m * w->k), w->w, w->bias, m, w->n, w->k, add);
}

static void sum_rows(kf_cuda *c, float *sum, const float *x, int64_t m, int64_t n) {
  kf_cuda_sums job = {sum, kf_cuda_scratch(c, KF_CUDA_WORK, (size_t)kf_cuda_sums_work(m, n) * sizeof(float)), x, m, n};
  if (job.work) kf_cuda_ok(c, kf_cuda_launch_sums(c->stream, &job));
}

static void matrix_backward(kf_device *d, float *dx, float *dw, float *dbias, const float *dy, const float *x, const kf_matrix *w,
                            int64_t m, bool add) {
  kf_cuda *c = kf_cuda_of(d);
  if (kf_cuda_idle(d, m)) return;
  if (dbias) sum_rows(c, dbias, dy, m, w->n);
  const void *out = dx || dw ? kf_cuda_input(c, KF_CUDA_GRADIENT, dy, m * w->n) : NULL;
  const void *in = dw && out ? kf_cuda_input(c, KF_CUDA_INPUT, x, m * w->k) : NULL;
  kf_cuda_product p = {.a = out, .type = kf_cuda_type(c), .a_row = w->n, .b_row = w->k, .c_row = w->k, .n = w->k, .heads = 1};
  if (dx && out) {
    p.b = w->w, p.c = dx, p.m = m, p.k = w->n, p.add = add;
    kf_cuda_multiply(c, &p);
  }
  if (in) {
    p.b = in, p.c = dw, p.m = w->n, p.k = m, p.add = p.a_transposed = true;
    kf_cuda_multiply(c, &p);
  }
}

/* ------------------------------------------------------------------------------------------------ rows */

static void norm_backward(kf_cuda *c, kf_cuda_norm_backward *job) {
  if (kf_cuda_idle(&c->device, job->m * job->heads * job->n)) return;
  job->work = kf_cuda_scratch(c, KF_CUDA_WORK, (size_t)kf_cuda_norm_work(job) * sizeof *job->work);
  if (job->work) kf_cuda_ok(c, kf_cuda_launch_norm_backward(c->stream, job));
}

static void rmsnorm_backward(kf_device *d, float *dx, float *dw, const float *dy, const float *x, const float *w, int64_t m,
                             int64_t n, float eps, bool add) {
  kf_cuda_norm_backward job = {.dx = dx,
                               .dw = dw,
                               .dy = dy,
                               .x = x,
                               .w = w,
                               .m = m,
                               .dx_stride = n,
                               .dy_stride = n,
                               .x_stride = n,
                               .n = n,
                               .heads = 1,
                               .w_heads = 1,
                               .eps = eps,
                               .add = add};
  norm_backward(kf_cuda_of(d), &job);
}

static void head_norm_backward(kf_device *d, float *dx, int64_t dx_stride, float *dw, const float *x, int64_t x_stride, int64_t m,
                               int heads, int n, const float *w, int w_heads, float eps) {
  kf_cuda_norm_backward job = {.dx = dx,
                               .dw = dw,
                               .dy = dx,
                               .x = x,
                               .w = w,
                               .m = m,
                               .dx_stride = dx_stride,
                               .dy_stride = dx_stride,
                               .x_stride = x_stride,
                               .n = n,
                               .heads = heads,
                               .w_heads = w_heads,
                               .eps = eps};
  norm_backward(kf_cuda_of(d), &job);
}

static void swiglu_forward(kf_device *d, float *y, const float *gate_up, int64_t m, int64_t f) {
  kf_cuda *c = kf_cuda_of(d);
  kf_cuda_swiglu job = {.y = y, .gate_up = gate_up, .m = m, .f = f};
  if (!kf_cuda_idle(d, m * f)) kf_cuda_ok(c, kf_cuda_launch_swiglu(c->stream, &job));
}

static void swiglu_backward(kf_device *d, float *d_gate_up, const float *dy, const float *gate_up, int64_t m, int64_t f) {
  kf_cuda *c = kf_cuda_of(d);
  kf_cuda_swiglu_backward job = {d_gate_up, dy, gate_up, m, f};
  if (!kf_cuda_idle(d, m * f)) kf_cuda_ok(c, kf_cuda_launch_swiglu_backward(c->stream, &job));
}

static void gather(kf_device *d, float *y, const float *table, const int32_t *ids, int64_t m, int64_t n) {
  kf_cuda *c = kf_cuda_of(d);
  kf_cuda_embedding job = {y, (float *)(uintptr_t)table, ids, m, n};
  if (!kf_cuda_idle(d, m * n)) kf_cuda_ok(c, kf_cuda_launch_gather(c->stream, &job));
}

static void scatter_add(kf_device *d, float *d_table, const float *dy, const int32_t *ids, int64_t m, int64_t n) {
  kf_cuda *c = kf_cuda_of(d);
  kf_cuda_embedding job = {(float *)(uintptr_t)dy, d_table, ids, m, n};
  if (!kf_cuda_idle(d, m * n)) kf_cuda_ok(c, kf_cuda_launch_scatter_add(c->stream, &job));
}

/* ------------------------------------------------------------------------------------------------ attention */

enum { SCORE_BYTES = 256 << 20, MOST_QUERIES = 512 }; /* of a chunk */

/* A chunk of one sequence's queries and the keys that they see. */
typedef struct chunk {
  kf_cuda *c;
  const kf_attention_shape *s;
  const kf_attention_pass *a;
  kf_cuda_scores scores;
  int64_t group;
} chunk;

/* A matrix of heads: that of query head 0, or KV head 0, then strides between tokens and between KV heads; `each`: between the
 * query heads of one KV head, 0 for keys and values. */
typedef struct operand {
  const float *data;
  int64_t row, head, each;
} operand;

static operand queries_of(const chunk *k, const float *q) {
  return (operand){q + k->scores.first * k->a->q_stride, k->a->q_stride, k->group * k->s->d_qk, k->s->d_qk};
}
static operand keys_of(const chunk *k, const float *key) {
  return (operand){key + k->scores.from * k->a->k_stride, k->a->k_stride, k->s->d_qk, 0};
}
static operand values_of(const chunk *k, const float *v) {
  return (operand){v + k->scores.from * k->a->v_stride, k->a->v_stride, k->s->d_v, 0};
}
static operand outputs_of(const chunk *k, const float *out) {
  int64_t wide = (int64_t)k->s->heads * k->s->d_v;
  return (operand){out + k->scores.first * wide, wide, k->group * k->s->d_v, k->s->d_v};
}
static operand scores_of(const chunk *k, const float *score) {
  int64_t each = k->scores.queries * k->scores.keys;
  return (operand){score, k->scores.keys, k->group * each, each};
}

/* Every query head's product, those of the same place within their KV heads at once. */
static void multiply(const chunk *k, operand to, operand a, operand b, const kf_cuda_product *shape) {
  for (int64_t i = 0; i < k->group; i++) {
    kf_cuda_product p = *shape;
    p.a = a.data + i * a.each, p.b = b.data + i * b.each, p.c = (float *)(uintptr_t)to.data + i * to.each;
    p.a_row = a.row, p.b_row = b.row, p.c_row = to.row;
    p.a_head = a.head, p.b_head = b.head, p.c_head = to.head;
    p.heads = k->s->kv_heads;
    p.type = CUDA_R_32F;
    kf_cuda_multiply(k->c, &p);
  }
}

static void forward(chunk *k) {
  int64_t queries = k->scores.queries, keys = k->scores.keys;
  operand score = scores_of(k, k->scores.score);
  multiply(k, score, queries_of(k, k->a->q), keys_of(k, k->a->k),
           &(kf_cuda_product){.m = queries, .n = keys, .k = k->s->d_qk, .b_transposed = true});
  kf_cuda_ok(k->c, kf_cuda_launch_scores(k->c->stream, &k->scores));
  multiply(k, outputs_of(k, k->a->out), score, values_of(k, k->a->v),
           &(kf_cuda_product){.m = queries, .n = k->s->d_v, .k = keys});
}

static void backward(chunk *k) {
  int64_t queries = k->scores.queries, keys = k->scores.keys;
  operand score = scores_of(k, k->scores.score), gradient = scores_of(k, k->scores.gradient);
  operand q = queries_of(k, k->a->q), d_out = outputs_of(k, k->a->d_out);
  multiply(k, score, q, keys_of(k, k->a->k), &(kf_cuda_product){.m = queries, .n = keys, .k = k->s->d_qk, .b_transposed = true});
  multiply(k, gradient, d_out, values_of(k, k->a->v),
           &(kf_cuda_product){.m = queries, .n = keys, .k = k->s->d_v, .b_transposed = true});
  kf_cuda_ok(k->c, kf_cuda_launch_scores(k->c->stream, &k->scores));
  multiply(k, values_of(k, k->a->dv), score, d_out,
           &(kf_cuda_product){.m = keys, .n = k->s->d_v, .k = queries, .a_transposed = true, .add = true});
  multiply(k, queries_of(k, k->a->dq), gradient, keys_of(k, k->a->k),
           &(kf_cuda_product){.m = queries, .n = k->s->d_qk, .k = keys});
  multiply(k, keys_of(k, k->a->dk), gradient, q,
           &(kf_cuda_product){.m = keys, .n = k->s->d_qk, .k = queries, .a_transposed = true, .add = true});
}

static void clear(kf_cuda *c, float *x, int64_t stride, int64_t m, int64_t n) {
  size_t pitch = (size_t)stride * sizeof *x;
  kf_cuda_ok(c, cudaMemset2DAsync(x, pitch, 0, (size_t)n * sizeof *x, (size_t)m, c->stream));
}

static void attend(kf_cuda *c, const kf_attention_shape *s, const kf_attention_pass *a, bool back) {
  int64_t most = SCORE_BYTES / (int64_t)sizeof(float) / (s->heads * a->m), row = a->m * s->heads;
  most = most < 1 ? 1 : most < MOST_QUERIES ? most : MOST_QUERIES;
  if (most > a->m) most = a->m;
  chunk k = {c, s, a, {.lse = a->lse, .heads = s->heads, .window = s->window, .scale = s->scale}, s->heads / s->kv_heads};
  k.scores.score = kf_cuda_scratch(c, KF_CUDA_SCORE, (size_t)(most * row) * sizeof(float));
  if (back) k.scores.gradient = kf_cuda_scratch(c, KF_CUDA_SCORE_GRADIENT, (size_t)(most * row) * sizeof(float));
  if (back) clear(c, a->dk, a->k_stride, a->m, (int64_t)s->kv_heads * s->d_qk);
  if (back) clear(c, a->dv, a->v_stride, a->m, (int64_t)s->kv_heads * s->d_v);
  for (int64_t first = 0; first < a->m && !kf_cuda_idle(&c->device, 1); first += most) {
    k.scores.first = first;
    k.scores.queries = a->m - first < most ? a->m - first : most;
    k.scores.from = s->window > 0 && first >= s->window ? first - s->window + 1 : 0;
    k.scores.keys = first + k.scores.queries - k.scores.from;
    if (back)
      backward(&k);
    else
      forward(&k);
  }
}

static void attention_forward(kf_device *d, const kf_attention_shape *shape, const kf_attention_pass *sequences, int count) {
  for (int i = 0; i < count; i++)
    if (!kf_cuda_idle(d, sequences[i].m)) attend(kf_cuda_of(d), shape, &sequences[i], false);
}

static void attention_backward(kf_device *d, const kf_attention_shape *shape, const kf_attention_pass *sequences, int count) {
  for (int i = 0; i < count; i++)
    if (!kf_cuda_idle(d, sequences[i].m)) attend(kf_cuda_of(d), shape, &sequences[i], true);
}

/* ------------------------------------------------------------------------------------------------ loss and optimiser */

static void softmax_loss(kf_device *d, const kf_softmax_loss *l, float *logits, const float *teacher, const int32_t *target,
                         const float *weight, int64_t m, int64_t v, double *nll, double *divergence) {
  kf_cuda *c = kf_cuda_of(d);
  kf_cuda_softmax_loss job = {*l, logits, teacher, weight, target, m, v, nll, divergence};
  if (!kf_cuda_idle(d, m * v)) kf_cuda_ok(c, kf_cuda_launch_softmax_loss(c->stream, &job));
}

static void adamw(kf_device *d, const kf_adamw *o, float *w, float *first, float *second, const float *gradient, int64_t n) {
  kf_cuda *c = kf_cuda_of(d);
  kf_cuda_adamw job = {*o, w, first, second, gradient, n};
  if (!kf_cuda_idle(d, n)) kf_cuda_ok(c, kf_cuda_launch_adamw(c->stream, &job));
}

static double sum_squares(kf_device *d, const float *x, int64_t n) {
  kf_cuda *c = kf_cuda_of(d);
  double part[KF_CUDA_PARTS], sum = 0;
  int parts = kf_cuda_squares_parts(n);
  if (kf_cuda_idle(d, n)) return 0;
  kf_cuda_squares job = {kf_cuda_scratch(c, KF_CUDA_WORK, sizeof part), x, n};
  if (!job.part || !kf_cuda_ok(c, kf_cuda_launch_squares(c->stream, &job))) return 0;
  if (!kf_cuda_ok(c, cudaMemcpyAsync(part, job.part, (size_t)parts * sizeof *part, cudaMemcpyDefault, c->stream))) return 0;
  d->wait(d);
  for (int i = 0; i < parts; i++) sum += part[i];
  return sum;
}

void kf_cuda_training_table(kf_device *d) {
  d->round = round_to;
  d->matrix = matrix;
  d->matrix_backward = matrix_backward;
  d->rmsnorm_backward = rmsnorm_backward;
  d->head_norm_backward = head_norm_backward;
  d->attention_forward = attention_forward;
  d->attention_backward = attention_backward;
  d->swiglu_forward = swiglu_forward;
  d->swiglu_backward = swiglu_backward;
  d->gather = gather;
  d->scatter_add = scatter_add;
  d->softmax_loss = softmax_loss;
  d->adamw = adamw;
  d->sum_squares = sum_squares;
}
