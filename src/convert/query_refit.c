#include "convert/query_refit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "linalg/linalg.h"

enum { STEPS = 8, BLOCK = 128 /* queries whose scores are formed together */ };
static const double input_ridge = 1e-3, key_ridge = 1e-3; /* of the preconditioner, of the mean of a diagonal */
static const double f32_noise = 1e-5;                     /* of sums of products, which a difference of two is left with */

typedef struct layer_data {
  const kf_fold_source *source;
  const kf_attention_probe *probe;
  const kf_refit_windows *x;
  const int32_t *frequency;      /* [J] */
  int64_t m, d, n, pairs, width; /* window, hidden, nope rows, J, n + 2 J */
  int64_t rank;
  float *kv;         /* [windows m, rank + 2 J] latents and rotated rope keys of the converted stream */
  const float *kv_b; /* of the mapped layer */
  float *q, *kv_a;   /* likewise, as [rows, d] */
  double *inverse;   /* [d, d] of the second moment of the converted input */
} layer_data;

/* One head at work. A pair of vectors [width, d] holds the windows fitted on, then those held out. */
typedef struct head_data {
  const layer_data *l;
  int head;
  float *a;                                  /* [windows, m, m] the source's probabilities */
  float *key;                                /* [windows m, width] scaled keys: nope, then rotated rope */
  float *y, *g, *score;                      /* [m, width] twice, [BLOCK, m] */
  float *flat;                               /* [width, d] */
  double *key_inverse;                       /* [width, width] */
  double *theta, *residual;                  /* [width, d], pair */
  double *target, *image;                    /* pairs: b, H theta */
  double *direction, *conditioned, *through; /* [width, d] twice, pair */
  double *best;                              /* [width, d] */
} head_data;

/* ---------------------------------------------------------------------------------------------- rotations */

/* Rope columns of rows [rows, width] of tokens 0, 1, ..., turned by sign times their position. */
static void turn(const layer_data *l, int64_t first, int64_t rows, int64_t stride, float *x, float sign) {
  int64_t half = l->n / 2;
  for (int64_t t = 0; t < rows; t++)
    for (int64_t j = 0; j < l->pairs; j++) {
      int64_t at = (first + t) * half + l->frequency[j];
      float c = l->probe->cos[at], s = sign * l->probe->sin[at], *re = x + t * stride + j, *im = re + l->pairs, old = *re;
      *re = old * c - *im * s;
      *im = *im * c + old * s;
    }
}

/* All pairs of a source head, in place. */
static void turn_source(const layer_data *l, int64_t rows, float *x) {
  int64_t half = l->n / 2;
  for (int64_t t = 0; t < rows; t++)
    for (int64_t j = 0; j < half; j++) {
      float c = l->probe->cos[t * half + j], s = l->probe->sin[t * half + j], *re = x + t * l->n + j, *im = re + half, old = *re;
      *re = old * c - *im * s;
      *im = *im * c + old * s;
    }
}

/* ---------------------------------------------------------------------------------------------- the objective */

/* score[i] becomes a (score - its mean under a), rows t .. t + rows of a window. */
static void centre(const head_data *h, const float *a, int64_t first, int64_t rows) {
  int64_t m = h->l->m, end = first + rows;
  for (int64_t t = first; t < end; t++) {
    float *score = h->score + (t - first) * end, mean = 0;
    const float *p = a + t * m;
    for (int64_t s = 0; s <= t; s++) mean += p[s] * score[s];
    for (int64_t s = 0; s < end; s++) score[s] = p[s] * (score[s] - mean); /* p is 0 where t does not look */
  }
}

/* out += sum_t R_t^T (sum_s a (score - mean) key_s) x_t^T of one window, the scores being those of queries y (rotated), or of
 * the source (source_q, source_k: its rotated rows). */
static void add_window(head_data *h, int w, const float *source_q, const float *source_k, double *out) {
  const layer_data *l = h->l;
  int64_t m = l->m, width = l->width;
  const float *x = l->x->converted + w * m * l->d, *key = h->key + w * m * width, *a = h->a + w * m * m;
  for (int64_t first = 0; first < m; first += BLOCK) {
    int64_t rows = m - first < BLOCK ? m - first : BLOCK, end = first + rows;
    if (source_q)
      kf_gemm_f32(false, true, rows, end, l->n, source_q + first * l->n, source_k, h->score);
    else
      kf_gemm_f32(false, true, rows, end, width, h->y + first * width, key, h->score);
    centre(h, a, first, rows);
    kf_gemm_f32(false, false, rows, width, end, h->score, key, h->g + first * width);
  }
  turn(l, 0, m, width, h->g + l->n, -1);
  kf_gemm_f32(true, false, width, l->d, m, h->g, x, h->flat);
  for (int64_t i = 0; i < width * l->d; i++) out[i] += h->flat[i];
}

/* out = H v, a pair, v [width, d]. */
static void apply(head_data *h, const double *v, float *scratch, double *out) {
  const layer_data *l = h->l;
  int64_t size = l->width * l->d;
  for (int64_t i = 0; i < size; i++) scratch[i] = (float)v[i];
  memset(out, 0, 2 * (size_t)size * sizeof *out);
  for (int w = 0; w < l->x->windows; w++) {
    kf_gemm_f32(false, true, l->m, l->width, l->d, l->x->converted + w * l->m * l->d, scratch, h->y);
    turn(l, 0, l->m, l->width, h->y + l->n, 1);
    add_window(h, w, NULL, NULL, out + (w < l->x->fit ? 0 : size));
  }
}

static double dot(const double *a, const double *b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}

/* ---------------------------------------------------------------------------------------------- what is given */

/* Row t of scores into probabilities, zero where the query does not look. window: 0: all earlier keys. */
static void softmax(float *row, int64_t t, int64_t m, int64_t window) {
  int64_t first = window && t >= window ? t - window + 1 : 0;
  float top = row[first], sum = 0;
  for (int64_t s = first; s <= t; s++) top = row[s] > top ? row[s] : top;
  for (int64_t s = first; s <= t; s++) sum += row[s] = expf(row[s] - top);
  for (int64_t s = 0; s < m; s++) row[s] = s >= first && s <= t ? row[s] / sum : 0;
}

/* The source's probabilities and b = the normal equations' right side. */
static void take_source(head_data *h, float *q, float *k) {
  const layer_data *l = h->l;
  const kf_attention_config *a = l->source->a;
  int64_t m = l->m, n = l->n, group = a->heads / a->kv_heads, size = l->width * l->d;
  for (int w = 0; w < l->x->windows; w++) {
    const float *x = l->x->source + w * m * l->d;
    float *p = h->a + w * m * m;
    kf_gemm_f32(false, true, m, n, l->d, x, l->source->q + h->head * n * l->d, q);
    kf_gemm_f32(false, true, m, n, l->d, x, l->source->k + h->head / group * n * l->d, k);
    if (l->source->q_norm) kf_head_rows_norm(m, (int)n, l->source->q_norm, l->source->eps, q, NULL);
    if (l->source->k_norm) kf_head_rows_norm(m, (int)n, l->source->k_norm, l->source->eps, k, NULL);
    for (int64_t i = 0; i < m * n; i++) q[i] *= a->scale;
    turn_source(l, m, q);
    turn_source(l, m, k);
    kf_gemm_f32(false, true, m, m, n, q, k, p);
    for (int64_t t = 0; t < m; t++) softmax(p + t * m, t, m, a->window);
    add_window(h, w, q, k, h->target + (w < l->x->fit ? 0 : size));
  }
}

static void take_keys(head_data *h) {
  const layer_data *l = h->l;
  int64_t rows = l->x->windows * l->m, row = l->rank + 2 * l->pairs, width = l->width;
  const float *k = l->kv_b + h->head * (l->n + l->source->a->d_v) * l->rank;
  float scale = l->source->a->scale;
  for (int64_t t = 0; t < rows; t += l->m) {
    for (int64_t i = 0; i < l->m; i++) memcpy(h->y + i * l->rank, l->kv + (t + i) * row, (size_t)l->rank * sizeof *h->y);
    kf_gemm_f32(false, true, l->m, l->n, l->rank, h->y, k, h->g);
    for (int64_t i = 0; i < l->m; i++) {
      float *to = h->key + (t + i) * width;
      for (int64_t j = 0; j < l->n; j++) to[j] = scale * h->g[i * l->n + j];
      for (int64_t j = 0; j < 2 * l->pairs; j++) to[l->n + j] = scale * l->kv[(t + i) * row + l->rank + j];
    }
  }
}

/* to [m, width] = keys less their mean over the window, each times its factor. */
static void centred_keys(const float *key, const float *mean, const float *factor, int64_t m, int64_t width, float *to) {
  for (int64_t s = 0; s < m; s++)
    for (int64_t i = 0; i < width; i++) to[s * width + i] = sqrtf(factor[s]) * (key[s * width + i] - mean[i]);
}

/* moment += sign g^T g for g [m, width] */
static void add_moment(head_data *h, double sign, double *moment) {
  int64_t width = h->l->width;
  kf_gemm_f32(true, false, width, width, h->l->m, h->g, h->g, h->flat);
  for (int64_t i = 0; i < width * width; i++) moment[i] += sign * h->flat[i];
}

/* moment [width, width] = sum over queries of the keys' covariance under a, which no shift of the keys changes: they are taken
 * from their mean, which may be large. Returns the mean over the first n of what stood there before the subtraction. */
static double key_covariance(head_data *h, double *moment) {
  const layer_data *l = h->l;
  int64_t m = l->m, n = l->n, width = l->width;
  double size = 0;
  memset(moment, 0, (size_t)(width * width) * sizeof *moment);
  for (int w = 0; w < l->x->fit; w++) {
    const float *a = h->a + w * m * m, *key = h->key + w * m * width;
    float *mean = h->score, *seen = h->y; /* borrowed */
    memset(mean, 0, (size_t)width * sizeof *mean);
    memset(seen, 0, (size_t)m * sizeof *seen);
    for (int64_t s = 0; s < m; s++)
      for (int64_t i = 0; i < width; i++) mean[i] += key[s * width + i] / (float)m;
    for (int64_t t = 0; t < m; t++)
      for (int64_t s = 0; s <= t; s++) seen[s] += a[t * m + s];
    centred_keys(key, mean, seen, m, width, h->g);
    add_moment(h, 1, moment);
    for (int64_t i = 0; i < n; i++) size += h->flat[i * width + i] / (double)n;
    kf_gemm_f32(false, false, m, width, m, a, key, h->g);
    for (int64_t t = 0; t < m; t++)
      for (int64_t i = 0; i < width; i++) h->g[t * width + i] -= mean[i];
    add_moment(h, -1, moment);
  }
  return size;
}

/* Inverse of the mean over queries of the keys' covariance under a: the nope block whole, one number a rope pair, so that it
 * commutes with rotations. */
static kf_status condition_keys(head_data *h, double *moment, kf_error *e) {
  const layer_data *l = h->l;
  int64_t n = l->n, width = l->width;
  double size = key_covariance(h, moment), mean = 0, *block = h->direction; /* borrowed */
  for (int64_t i = 0; i < n; i++) mean += moment[i * width + i] / (double)n;
  double ridge = key_ridge * mean + f32_noise * size + 1e-30;
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < n; j++) {
      block[i * n + j] = moment[i * width + j] + (i == j ? ridge : 0);
      h->through[i * n + j] = i == j;
    }
  KF_TRY(kf_solve_positive(block, n, n, h->through, e));
  memset(h->key_inverse, 0, (size_t)(width * width) * sizeof *h->key_inverse);
  for (int64_t i = 0; i < n; i++) memcpy(h->key_inverse + i * width, h->through + i * n, (size_t)n * sizeof(double));
  for (int64_t j = 0; j < l->pairs; j++) {
    int64_t re = n + j, im = re + l->pairs;
    double energy = (moment[re * width + re] + moment[im * width + im]) / 2 + ridge;
    h->key_inverse[re * width + re] = h->key_inverse[im * width + im] = 1 / energy;
  }
  return KF_OK;
}

/* ---------------------------------------------------------------------------------------------- conjugate gradients */

static void precondition(head_data *h, const double *r, double *to) {
  const layer_data *l = h->l;
  kf_gemm(false, false, l->width, l->d, l->d, 1, r, l->inverse, 0, h->through);
  kf_gemm(false, false, l->width, l->d, l->width, 1, h->key_inverse, h->through, 0, to);
}

/* Twice the objective less its constant, on the held-out windows. */
static double held_out(const head_data *h) {
  int64_t size = h->l->width * h->l->d;
  return dot(h->theta, h->image + size, size) - 2 * dot(h->theta, h->target + size, size);
}

static kf_status solve(head_data *h, float *scratch, kf_error *e) {
  int64_t size = h->l->width * h->l->d;
  apply(h, h->theta, scratch, h->image);
  for (int64_t i = 0; i < size; i++) h->residual[i] = h->target[i] - h->image[i];
  precondition(h, h->residual, h->conditioned);
  memcpy(h->direction, h->conditioned, (size_t)size * sizeof *h->direction);
  memcpy(h->best, h->theta, (size_t)size * sizeof *h->best);
  double along = dot(h->residual, h->conditioned, size), least = held_out(h);
  for (int step = 0; step < STEPS && along > 0; step++) {
    apply(h, h->direction, scratch, h->through);
    double curvature = dot(h->direction, h->through, size), length = along / curvature;
    if (!(curvature > 0)) break;
    for (int64_t i = 0; i < size; i++) {
      h->theta[i] += length * h->direction[i];
      h->residual[i] -= length * h->through[i];
    }
    for (int64_t i = 0; i < 2 * size; i++) h->image[i] += length * h->through[i];
    double now = held_out(h);
    if (!isfinite(now)) return kf_fail(e, KF_ERROR_INPUT, "head %d: its scores are not finite", h->head);
    if (!(now < least)) break;
    least = now;
    memcpy(h->best, h->theta, (size_t)size * sizeof *h->best);
    precondition(h, h->residual, h->conditioned);
    double next = dot(h->residual, h->conditioned, size);
    for (int64_t i = 0; i < size; i++) h->direction[i] = h->conditioned[i] + next / along * h->direction[i];
    along = next;
  }
  return KF_OK;
}

static kf_status refit_head(head_data *h, kf_error *e) {
  const layer_data *l = h->l;
  int64_t m = l->m, size = l->width * l->d, windows = l->x->windows, wide = l->width > l->rank ? l->width : l->rank;
  kf_arena arena = {0};
  kf_status s = KF_ERROR_MEMORY;
  struct {
    double **to;
    int64_t count;
  } wide_parts[] = {{&h->theta, size},       {&h->residual, size},  {&h->target, 2 * size},
                    {&h->image, 2 * size},   {&h->direction, size}, {&h->conditioned, size},
                    {&h->through, 2 * size}, {&h->best, size},      {&h->key_inverse, l->width * l->width}};
  struct {
    float **to;
    int64_t count;
  } parts[] = {{&h->a, windows * m * m}, {&h->key, windows * m * l->width},     {&h->y, m * wide}, {&h->g, m * wide},
               {&h->score, BLOCK * m},   {&h->flat, size + l->width * l->width}};
  for (size_t i = 0; i < sizeof wide_parts / sizeof *wide_parts; i++)
    if (!(*wide_parts[i].to = kf_arena_alloc(&arena, (size_t)wide_parts[i].count, sizeof(double), e))) goto done;
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
    if (!(*parts[i].to = kf_arena_alloc(&arena, (size_t)parts[i].count, sizeof(float), e))) goto done;
  float *scratch = kf_arena_alloc(&arena, (size_t)(size + 2 * m * l->n), sizeof *scratch, e);
  if (!scratch) goto done;
  float *rows = l->q + h->head * size;
  for (int64_t i = 0; i < size; i++) h->theta[i] = rows[i];
  take_keys(h);
  take_source(h, scratch + size, scratch + size + m * l->n);
  KF_GO(condition_keys(h, h->conditioned, e));
  KF_GO(solve(h, scratch, e));
  for (int64_t i = 0; i < size; i++) rows[i] = (float)h->best[i];
done:
  kf_arena_free(&arena);
  return s;
}

/* ---------------------------------------------------------------------------------------------- the layer */

static kf_status input_inverse(layer_data *l, kf_arena *arena, kf_error *e) {
  int64_t d = l->d, m = l->m;
  double *moment = kf_arena_alloc(arena, (size_t)(d * d), sizeof *moment, e), mean = 0;
  float *part = kf_arena_alloc(arena, (size_t)(d * d), sizeof *part, e);
  l->inverse = kf_arena_alloc(arena, (size_t)(d * d), sizeof *l->inverse, e);
  if (!moment || !part || !l->inverse) return KF_ERROR_MEMORY;
  for (int w = 0; w < l->x->fit; w++) {
    const float *x = l->x->converted + w * m * d;
    kf_gemm_f32(true, false, d, d, m, x, x, part);
    for (int64_t i = 0; i < d * d; i++) moment[i] += part[i];
  }
  for (int64_t i = 0; i < d; i++) mean += moment[i * d + i] / (double)d;
  for (int64_t i = 0; i < d; i++) {
    moment[i * d + i] += input_ridge * mean;
    l->inverse[i * d + i] = 1;
  }
  return kf_solve_positive(moment, d, d, l->inverse, e);
}

static const kf_mapped_tensor *find(const kf_mapped *m, const char *name) {
  for (int i = 0; i < m->tensors; i++)
    if (strcmp(m->tensor[i].name, name) == 0) return &m->tensor[i];
  return NULL;
}

static kf_status refit_heads(layer_data *l, int threads, kf_arena *arena, kf_error *e) {
  int heads = l->source->a->heads;
  kf_error *errors = kf_arena_alloc(arena, (size_t)heads, sizeof *errors, e);
  if (!errors) return KF_ERROR_MEMORY;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int h = 0; h < heads; h++) {
    head_data data = {.l = l, .head = h};
    refit_head(&data, &errors[h]);
  }
  for (int h = 0; h < heads; h++)
    if (errors[h].status != KF_OK) return kf_fail(e, errors[h].status, "%s", errors[h].message);
  return KF_OK;
}

kf_status kf_query_refit(const kf_fold_source *source, const kf_attention_probe *probe, const kf_refit_windows *x, int threads,
                         kf_mapped *layer, kf_error *e) {
  const kf_attention_config *b = &layer->attention;
  kf_arena arena = {0};
  layer_data l = {.source = source,
                  .probe = probe,
                  .x = x,
                  .frequency = b->rope_index,
                  .m = x->window,
                  .d = source->inputs,
                  .n = source->a->d_qk,
                  .pairs = b->rope_pairs[0],
                  .rank = b->rank,
                  .kv_b = find(layer, "kv_b_proj.weight")->data};
  int64_t row = l.rank + 2 * l.pairs;
  l.width = l.n + 2 * l.pairs;
  kf_status s;
  KF_GO(kf_fold_projection(source, layer, "q_proj", &l.q, e));
  KF_GO(kf_fold_projection(source, layer, "kv_a_proj", &l.kv_a, e));
  if (!(l.kv = kf_arena_alloc(&arena, (size_t)(x->windows * l.m * row), sizeof *l.kv, e))) KF_GO(KF_ERROR_MEMORY);
  kf_gemm_f32(false, true, x->windows * l.m, row, l.d, x->converted, l.kv_a, l.kv);
  for (int w = 0; w < x->windows; w++) turn(&l, 0, l.m, row, l.kv + w * l.m * row + l.rank, 1);
  KF_GO(input_inverse(&l, &arena, e));
  KF_GO(refit_heads(&l, threads, &arena, e));
  kf_fold_set_projection(source, layer, "q_proj", l.q);
done:
  kf_arena_free(&arena);
  free(l.q), free(l.kv_a);
  return s;
}
