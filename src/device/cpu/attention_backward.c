/* Attention of whole sequences and its backward, flash style: probabilities exist for 64 keys by 64 queries at a time and
 * are made again from the saved log-sum-exp (Dao et al. 2022, algorithm 4). A task is one head of one sequence; what it packs
 * is linear in the sequence's length.
 *
 * The backward works on transposed blocks, keys by queries, so that P^T and dS^T come out as rows:
 *   S^T = K Q^T,  P^T = e^(scale S^T - lse),  dP^T = V dO^T,  dS^T = scale P^T (dP^T - delta),  delta = sum dO O,
 *   dV += P^T dO,  dK += dS^T Q,  dQ^T += K^T dS^T. */
#include <math.h>
#include <omp.h>
#include <string.h>

#include "device/cpu/cpu.h"

enum { BLOCK = KF_PANEL, SQUARE = BLOCK * BLOCK, LANES = 16 /* parts that softmax() may keep a sum in */ };

/* Memory of one task, handed out piece by piece; counted only when base is NULL. */
typedef struct room {
  char *base;
  size_t used;
} room;

static void *take(room *r, size_t bytes) {
  void *p = r->base ? r->base + r->used : NULL;
  r->used += (bytes + 63) / 64 * 64;
  return p;
}

/* One matrix [m, n] of a head, as its rows stand in a wider one. */
typedef struct head_rows {
  const float *x;
  int64_t m, n, stride;
} head_rows;

static int64_t blocks_of(int64_t n) {
  return (n + BLOCK - 1) / BLOCK;
}

/* Panels whose outputs are 64 rows each: [blocks, n rounded to 2, 64]. */
static size_t key_elements(int64_t m, int64_t n) {
  return (size_t)(blocks_of(m) * kf_round_up(n, 2) * BLOCK);
}

static void pack_keys(const kf_tile_kernels *tile, char *to, const head_rows *h) {
  const void *rows[BLOCK];
  for (int64_t first = 0; first < h->m; first += BLOCK) {
    for (int64_t i = 0; i < BLOCK; i++) rows[i] = h->x + kf_least(first + i, h->m - 1) * h->stride;
    kf_slice slice = {rows, KF_F32, 0, h->n};
    tile->pack_keys(to, &slice);
    to += key_elements(1, h->n) * kf_element(tile->type);
  }
}

/* Panels whose inner dimension is 64 rows and whose outputs are the columns: [blocks, blocks of n, 64, 64]. */
static size_t value_elements(int64_t m, int64_t n) {
  return (size_t)(blocks_of(m) * blocks_of(n) * SQUARE);
}

static void pack_values(const kf_tile_kernels *tile, char *to, const head_rows *h) {
  const void *rows[BLOCK];
  for (int64_t first = 0; first < h->m; first += BLOCK) {
    int64_t count = kf_least(BLOCK, h->m - first);
    for (int64_t i = 0; i < count; i++) rows[i] = h->x + (first + i) * h->stride;
    for (int64_t column = 0; column < h->n; column += BLOCK) {
      kf_slice slice = {rows, KF_F32, column, kf_least(BLOCK, h->n - column)};
      tile->pack_values(to, &slice, (int)count);
      to += SQUARE * kf_element(tile->type);
    }
  }
}

/* Rows first .. first + count in the compute type, n rounded to 2. */
static void convert_rows(const kf_tile_kernels *tile, char *to, const head_rows *h, int64_t first, int64_t count) {
  int64_t padded = kf_round_up(h->n, 2);
  for (int64_t i = 0; i < count; i++)
    tile->convert(to + (size_t)(i * padded) * kf_element(tile->type), h->x + (first + i) * h->stride, h->n, padded);
}

/* c [rows, n] (columns rounded to 64) = alpha c + a [rows, 64] x one block of packed values. */
static void multiply_values(const kf_tile_kernels *tile, float *c, const void *a, const char *panels, int64_t inner, int64_t rows,
                            int64_t n, const float *alpha) {
  int64_t width = blocks_of(n) * BLOCK;
  for (int64_t column = 0; column < n; column += BLOCK, panels += SQUARE * kf_element(tile->type))
    tile->multiply(c + column, width, a, BLOCK, panels, inner, rows, (int)kf_least(BLOCK, n - column), alpha, NULL);
}

static head_rows query_rows(const kf_attention_shape *s, const kf_attention_pass *p, int head) {
  return (head_rows){p->q + (int64_t)head * s->d_qk, p->m, s->d_qk, p->q_stride};
}
static head_rows key_rows(const kf_attention_shape *s, const kf_attention_pass *p, int head) {
  return (head_rows){p->k + (int64_t)(head / (s->heads / s->kv_heads)) * s->d_qk, p->m, s->d_qk, p->k_stride};
}
static head_rows value_rows(const kf_attention_shape *s, const kf_attention_pass *p, int head) {
  return (head_rows){p->v + (int64_t)(head / (s->heads / s->kv_heads)) * s->d_v, p->m, s->d_v, p->v_stride};
}

static int64_t first_visible(const kf_attention_shape *s, int64_t position) {
  return s->window > 0 && position >= s->window ? position - s->window + 1 : 0;
}

/* ---------------------------------------------------------------------------------------------- forward */

typedef struct forward_work {
  char *keys, *values, *q, *p;
  float *s, *out;
  float maximum[BLOCK], sum[BLOCK][LANES], alpha[BLOCK];
} forward_work;

static size_t forward_room(const kf_tile_kernels *tile, const kf_attention_shape *s, int64_t m, char *base, forward_work *w) {
  room r = {base, 0};
  size_t element = kf_element(tile->type);
  w->keys = take(&r, key_elements(m, s->d_qk) * element);
  w->values = take(&r, value_elements(m, s->d_v) * element);
  w->q = take(&r, (size_t)(BLOCK * kf_round_up(s->d_qk, 2)) * element);
  w->p = take(&r, SQUARE * element);
  w->s = take(&r, SQUARE * sizeof(float));
  w->out = take(&r, value_elements(1, s->d_v) * sizeof(float));
  return r.used;
}

/* Queries first .. first + n against the keys of one block: probabilities in w->p, factors of earlier sums in w->alpha. */
static void softmax_block(const kf_tile_kernels *tile, const kf_attention_shape *s, forward_work *w, int64_t first, int64_t n,
                          int64_t key) {
  const float log2e = 1.44269504f;
  for (int64_t r = 0; r < n; r++) {
    int low = (int)kf_most(0, first_visible(s, first + r) - key), high = (int)kf_least(BLOCK, first + r + 1 - key);
    char *p = w->p + (size_t)(r * BLOCK) * kf_element(tile->type);
    w->alpha[r] = 1;
    if (low < high)
      w->alpha[r] = tile->softmax(w->s + r * BLOCK, BLOCK, low, high, NULL, s->scale * log2e, &w->maximum[r], w->sum[r], p);
    else
      memset(p, 0, BLOCK * kf_element(tile->type));
  }
}

static void forward_block(const kf_tile_kernels *tile, const kf_attention_shape *s, const kf_attention_pass *p, int head,
                          forward_work *w, int64_t first) {
  int64_t n = kf_least(BLOCK, p->m - first), inner = kf_round_up(s->d_qk, 2), width = blocks_of(s->d_v) * BLOCK;
  size_t key_bytes = key_elements(1, s->d_qk) * kf_element(tile->type),
         value_bytes = value_elements(1, s->d_v) * kf_element(tile->type);
  head_rows q = query_rows(s, p, head);
  convert_rows(tile, w->q, &q, first, n);
  memset(w->out, 0, (size_t)(BLOCK * width) * sizeof *w->out);
  memset(w->sum, 0, sizeof w->sum);
  for (int64_t r = 0; r < n; r++) w->maximum[r] = -INFINITY;
  for (int64_t b = first_visible(s, first) / BLOCK; b * BLOCK < first + n; b++) {
    tile->multiply(w->s, BLOCK, w->q, inner, w->keys + (size_t)b * key_bytes, s->d_qk, n, BLOCK, NULL, NULL);
    softmax_block(tile, s, w, first, n, b * BLOCK);
    multiply_values(tile, w->out, w->p, w->values + (size_t)b * value_bytes, kf_least(BLOCK, p->m - b * BLOCK), n, s->d_v,
                    w->alpha);
  }
  for (int64_t r = 0; r < n; r++) {
    int64_t row = (first + r) * s->heads + head;
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += w->sum[r][i];
    for (int j = 0; j < s->d_v; j++) p->out[row * s->d_v + j] = w->out[r * width + j] / sum;
    p->lse[row] = (w->maximum[r] + log2f(sum)) * 0.693147181f;
  }
}

static void forward_task(const kf_tile_kernels *tile, const kf_attention_shape *s, const kf_attention_pass *p, int head,
                         char *memory) {
  forward_work w;
  forward_room(tile, s, p->m, memory, &w);
  head_rows k = key_rows(s, p, head), v = value_rows(s, p, head);
  pack_keys(tile, w.keys, &k);
  pack_values(tile, w.values, &v);
  for (int64_t first = 0; first < p->m; first += BLOCK) forward_block(tile, s, p, head, &w, first);
}

static int64_t longest(const kf_attention_pass *sequences, int count) {
  int64_t m = 0;
  for (int i = 0; i < count; i++) m = kf_most(m, sequences[i].m);
  return m;
}

static void attention_forward(kf_device *d, const kf_attention_shape *s, const kf_attention_pass *sequences, int count) {
  kf_cpu *c = kf_cpu_of(d);
  forward_work w;
  size_t bytes = forward_room(c->tile, s, longest(sequences, count), NULL, &w);
  char *memory = kf_scratch(c, KF_SCRATCH_THREADS, bytes * (size_t)d->threads);
  if (!memory) return;
#pragma omp parallel for schedule(dynamic, 1) num_threads(d->threads)
  for (int64_t t = 0; t < (int64_t)count * s->heads; t++)
    forward_task(c->tile, s, &sequences[t / s->heads], (int)(t % s->heads), memory + bytes * (size_t)omp_get_thread_num());
}

/* ---------------------------------------------------------------------------------------------- backward */

typedef struct backward_work {
  char *q_keys, *q_values, *out_keys, *out_values; /* of the whole sequence; out: of its gradient */
  float *lse, *delta, *dq;                         /* [m rounded]; dq [d_qk, m rounded], transposed */
  char *k, *k_transposed, *v, *p, *ds, *ds_panel;  /* of one block of keys; [keys, queries] */
  float *s, *dp, *dk, *dv, *ones;
} backward_work;

static size_t backward_room(const kf_tile_kernels *tile, const kf_attention_shape *s, int64_t m, char *base, backward_work *w) {
  room r = {base, 0};
  size_t element = kf_element(tile->type), rows = (size_t)(blocks_of(m) * BLOCK);
  w->q_keys = take(&r, key_elements(m, s->d_qk) * element);
  w->q_values = take(&r, value_elements(m, s->d_qk) * element);
  w->out_keys = take(&r, key_elements(m, s->d_v) * element);
  w->out_values = take(&r, value_elements(m, s->d_v) * element);
  w->lse = take(&r, rows * sizeof(float));
  w->delta = take(&r, rows * sizeof(float));
  w->dq = take(&r, rows * (size_t)s->d_qk * sizeof(float));
  w->k = take(&r, (size_t)(BLOCK * kf_round_up(s->d_qk, 2)) * element);
  w->k_transposed = take(&r, (size_t)(BLOCK * s->d_qk) * element);
  w->v = take(&r, (size_t)(BLOCK * kf_round_up(s->d_v, 2)) * element);
  w->p = take(&r, SQUARE * element);
  w->ds = take(&r, SQUARE * element);
  w->ds_panel = take(&r, SQUARE * element);
  w->s = take(&r, SQUARE * sizeof(float));
  w->dp = take(&r, SQUARE * sizeof(float));
  w->dk = take(&r, value_elements(1, s->d_qk) * sizeof(float));
  w->dv = take(&r, value_elements(1, s->d_v) * sizeof(float));
  w->ones = take(&r, (size_t)kf_most(BLOCK, s->d_qk) * sizeof(float));
  return r.used;
}

static void prepare(const kf_cpu *c, const kf_attention_shape *s, const kf_attention_pass *p, int head, backward_work *w) {
  int64_t rows = blocks_of(p->m) * BLOCK, stride = (int64_t)s->heads * s->d_v;
  head_rows q = query_rows(s, p, head), out = {p->d_out + (int64_t)head * s->d_v, p->m, s->d_v, stride};
  pack_keys(c->tile, w->q_keys, &q);
  pack_values(c->tile, w->q_values, &q);
  pack_keys(c->tile, w->out_keys, &out);
  pack_values(c->tile, w->out_values, &out);
  for (int64_t t = 0; t < rows; t++) {
    w->lse[t] = t < p->m ? p->lse[t * s->heads + head] : 0;
    w->delta[t] = t < p->m ? c->backward->dot(out.x + t * stride, p->out + t * stride + (int64_t)head * s->d_v, s->d_v) : 0;
  }
  memset(w->dq, 0, (size_t)(rows * s->d_qk) * sizeof *w->dq);
  for (int64_t i = 0; i < kf_most(BLOCK, s->d_qk); i++) w->ones[i] = 1;
}

/* Keys first .. first + n as rows, and [d_qk, 64] turned round; values as rows. */
static void load_keys(const kf_tile_kernels *tile, const kf_attention_shape *s, const kf_attention_pass *p, int head,
                      backward_work *w, int64_t first, int64_t n) {
  head_rows k = key_rows(s, p, head), v = value_rows(s, p, head);
  convert_rows(tile, w->k, &k, first, n);
  convert_rows(tile, w->v, &v, first, n);
  for (int64_t j = 0; j < s->d_qk; j++) {
    float column[BLOCK] = {0};
    for (int64_t i = 0; i < n; i++) column[i] = k.x[(first + i) * k.stride + j];
    tile->convert(w->k_transposed + (size_t)(j * BLOCK) * kf_element(tile->type), column, BLOCK, BLOCK);
  }
}

/* P^T and dS^T of n keys from `key` on and the queries from `query` on. */
static void probabilities(const kf_cpu *c, const kf_attention_shape *s, const kf_attention_pass *p, backward_work *w, int64_t key,
                          int64_t n, int64_t query) {
  const kf_tile_kernels *tile = c->tile;
  size_t element = kf_element(tile->type), block = (size_t)(query / BLOCK);
  int64_t most = kf_least(BLOCK, p->m - query);
  tile->multiply(w->s, BLOCK, w->k, kf_round_up(s->d_qk, 2), w->q_keys + block * key_elements(1, s->d_qk) * element, s->d_qk, n,
                 BLOCK, NULL, NULL);
  tile->multiply(w->dp, BLOCK, w->v, kf_round_up(s->d_v, 2), w->out_keys + block * key_elements(1, s->d_v) * element, s->d_v, n,
                 BLOCK, NULL, NULL);
  for (int64_t r = 0; r < n; r++) {
    int64_t low = kf_most(0, key + r - query), high = s->window > 0 ? kf_least(most, key + r + s->window - query) : most;
    low = kf_least(low, BLOCK);
    c->backward->scores(w->s + r * BLOCK, w->dp + r * BLOCK, w->lse + query, w->delta + query, s->scale, (int)low,
                        (int)kf_most(low, high));
    tile->convert(w->p + (size_t)(r * BLOCK) * element, w->s + r * BLOCK, BLOCK, BLOCK);
    tile->convert(w->ds + (size_t)(r * BLOCK) * element, w->dp + r * BLOCK, BLOCK, BLOCK);
  }
}

/* One block of keys against all queries that see it. */
static void backward_block(const kf_cpu *c, const kf_attention_shape *s, const kf_attention_pass *p, backward_work *w,
                           int64_t key, int64_t n) {
  const kf_tile_kernels *tile = c->tile;
  size_t element = kf_element(tile->type);
  int64_t rows = blocks_of(p->m) * BLOCK, end = s->window > 0 ? kf_least(p->m, key + n - 1 + s->window) : p->m;
  memset(w->dk, 0, value_elements(1, s->d_qk) * sizeof *w->dk);
  memset(w->dv, 0, value_elements(1, s->d_v) * sizeof *w->dv);
  for (int64_t query = key; query < end; query += BLOCK) {
    int64_t queries = kf_least(BLOCK, p->m - query);
    size_t block = (size_t)(query / BLOCK);
    probabilities(c, s, p, w, key, n, query);
    multiply_values(tile, w->dv, w->p, w->out_values + block * value_elements(1, s->d_v) * element, queries, n, s->d_v, w->ones);
    multiply_values(tile, w->dk, w->ds, w->q_values + block * value_elements(1, s->d_qk) * element, queries, n, s->d_qk, w->ones);
    const void *pointers[BLOCK];
    for (int64_t i = 0; i < n; i++) pointers[i] = w->ds + (size_t)(i * BLOCK) * element;
    kf_slice slice = {pointers, tile->type, 0, BLOCK};
    tile->pack_values(w->ds_panel, &slice, (int)n);
    tile->multiply(w->dq + query, rows, w->k_transposed, BLOCK, w->ds_panel, n, s->d_qk, BLOCK, w->ones, NULL);
  }
}

/* part: [m, d_qk + d_v], the head's own share of dk and dv. */
static void backward_task(const kf_cpu *c, const kf_attention_shape *s, const kf_attention_pass *p, int head, char *memory,
                          float *part) {
  backward_work w;
  backward_room(c->tile, s, p->m, memory, &w);
  prepare(c, s, p, head, &w);
  int64_t rows = blocks_of(p->m) * BLOCK, width = s->d_qk + s->d_v;
  for (int64_t key = 0; key < p->m; key += BLOCK) {
    int64_t n = kf_least(BLOCK, p->m - key);
    load_keys(c->tile, s, p, head, &w, key, n);
    backward_block(c, s, p, &w, key, n);
    for (int64_t i = 0; i < n; i++) {
      memcpy(part + (key + i) * width, w.dk + i * blocks_of(s->d_qk) * BLOCK, (size_t)s->d_qk * sizeof *part);
      memcpy(part + (key + i) * width + s->d_qk, w.dv + i * blocks_of(s->d_v) * BLOCK, (size_t)s->d_v * sizeof *part);
    }
  }
  for (int64_t t = 0; t < p->m; t++)
    for (int64_t j = 0; j < s->d_qk; j++) p->dq[t * p->q_stride + (int64_t)head * s->d_qk + j] = w.dq[j * rows + t];
}

/* The query heads of a KV head added up in their order. part: [heads, m, d_qk + d_v]. */
static void add_heads(const kf_cpu *c, const kf_attention_shape *s, const kf_attention_pass *p, const float *part) {
  int64_t width = s->d_qk + s->d_v, group = s->heads / s->kv_heads;
#pragma omp parallel for num_threads(kf_threads_for(c, (double)(p->m * s->heads * width)))
  for (int64_t t = 0; t < p->m; t++) {
    for (int64_t g = 0; g < s->kv_heads; g++) {
      float *dk = p->dk + t * p->k_stride + g * s->d_qk, *dv = p->dv + t * p->v_stride + g * s->d_v;
      for (int64_t h = g * group; h < (g + 1) * group; h++) {
        const float *from = part + (h * p->m + t) * width;
        for (int j = 0; j < s->d_qk; j++) dk[j] = (h == g * group ? 0 : dk[j]) + from[j];
        for (int j = 0; j < s->d_v; j++) dv[j] = (h == g * group ? 0 : dv[j]) + from[s->d_qk + j];
      }
    }
  }
}

static void attention_backward(kf_device *d, const kf_attention_shape *s, const kf_attention_pass *sequences, int count) {
  kf_cpu *c = kf_cpu_of(d);
  backward_work w;
  size_t bytes = backward_room(c->tile, s, longest(sequences, count), NULL, &w), width = (size_t)(s->d_qk + s->d_v);
  int64_t tokens = 0;
  for (int i = 0; i < count; i++) tokens += sequences[i].m;
  char *memory = kf_scratch(c, KF_SCRATCH_THREADS, bytes * (size_t)d->threads);
  float *part = kf_scratch(c, KF_SCRATCH_PARTS, (size_t)(tokens * s->heads) * width * sizeof *part);
  int64_t *start = kf_scratch(c, KF_SCRATCH_TASKS, (size_t)count * sizeof *start);
  if (!memory || !part || !start) return;
  for (int i = 0; i < count; i++) start[i] = i ? start[i - 1] + sequences[i - 1].m : 0;
#pragma omp parallel for schedule(dynamic, 1) num_threads(d->threads)
  for (int64_t t = 0; t < (int64_t)count * s->heads; t++) {
    const kf_attention_pass *p = &sequences[t / s->heads];
    int64_t head = t % s->heads, row = start[t / s->heads] * s->heads + head * p->m;
    backward_task(c, s, p, (int)head, memory + bytes * (size_t)omp_get_thread_num(), part + row * (int64_t)width);
  }
  for (int i = 0; i < count; i++) add_heads(c, s, &sequences[i], part + start[i] * s->heads * (int64_t)width);
}

void kf_cpu_attention_backward_table(kf_device *d) {
  d->attention_forward = attention_forward;
  d->attention_backward = attention_backward;
}
