#include "export/stock_basis.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "convert/calibrator.h"
#include "convert/projections.h"
#include "convert/corpus_windows.h"
#include "export/stock.h"
#include "linalg/linalg.h"

enum { TOKENS = 5 * KF_SAMPLE_WINDOW };
/* Attention averages over about so many keys: the mean of the latents stays, their spread shrinks. */
static const double KEYS = 10;

/* ------------------------------------------------------------------------------------------------ the basis */

/* out = H diag(a) U diag(b) V with H = cos + sin of 2 pi i j / n, over sqrt(n): orthogonal, and every row takes of all. */
static void compose(int64_t n, const double *a, const double *u, const double *b, const double *v, double *scratch, double *out) {
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < n; j++) scratch[i * n + j] = a[i] * u[i * n + j] * b[j];
  kf_gemm(false, false, n, n, n, 1, scratch, v, 0, out);
  memcpy(scratch, out, (size_t)(n * n) * sizeof *out);
  double *mix = scratch + n * n;
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < n; j++) {
      double angle = 2 * M_PI * (double)(i * j % n) / (double)n;
      mix[i * n + j] = (cos(angle) + sin(angle)) / sqrt((double)n);
    }
  kf_gemm(false, false, n, n, n, 1, mix, scratch, 0, out);
}

/* n descending values, not below a part of the first, to the power; ones where all are zero. */
static void raise(const double *from, int64_t n, double part, double power, double *to) {
  double least = from[0] > 0 ? part * from[0] : 1;
  for (int64_t i = 0; i < n; i++) to[i] = pow(fmax(from[i], least), power);
}

/* With M = V^T L V and L^1/2 V G V^T L^1/2 = U^T Theta^2 U: R = H Theta^1/2 U L^-1/2 V. */
kf_status kf_least_roundoff(double *m, double *g, int64_t n, kf_stock_basis *out, kf_error *e) {
  kf_arena arena = {0};
  kf_status s = KF_ERROR_MEMORY;
  double *lambda = kf_arena_alloc(&arena, (size_t)(4 * n), sizeof *lambda, e),
         *scratch = kf_arena_alloc(&arena, (size_t)(2 * n * n), sizeof *scratch, e);
  if (!lambda || !scratch) goto done;
  double *theta = lambda + n, *a = theta + n, *b = a + n;
  KF_GO(kf_eigh(m, n, lambda, e));
  KF_GO(kf_projected_moment(m, n, n, g, scratch, e));
  raise(lambda, n, 1e-6, 0.5, b);
  for (int64_t i = 0; i < n * n; i++) g[i] = b[i / n] * scratch[i] * b[i % n];
  KF_GO(kf_eigh(g, n, theta, e));
  raise(theta, n, 1e-8, -0.25, a);
  out->from = kf_alloc((size_t)(n * n), sizeof *out->from, e);
  out->to = kf_alloc((size_t)(n * n), sizeof *out->to, e);
  KF_GO(out->from && out->to ? KF_OK : KF_ERROR_MEMORY);
  compose(n, a, g, b, m, scratch, out->to);
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < n; j++) out->from[j * n + i] = out->to[i * n + j];
  for (int64_t i = 0; i < n; i++) a[i] = 1 / a[i], b[i] = 1 / b[i];
  compose(n, a, g, b, m, scratch, out->to);
done:
  kf_arena_free(&arena);
  return s;
}

/* ------------------------------------------------------------------------------------------------ one layer */

typedef struct layer {
  const kf_attention_config *a;
  int64_t nope, width; /* width: hidden + 1, of moments */
  float *q, *kv_a, *kv_b, *o;
  double *block, *inner, *scratch; /* with n the wider of nope and v: n rows of [x; 1] or of latents, [n, n], [n, rank] */
} layer;

static void copy_rows(const float *from, int64_t rows, int64_t columns, int64_t stride, double *to) {
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < columns; j++) to[i * stride + j] = (double)from[i * columns + j];
}

/* gain += B^T inner B for rows B [n, rank] of kv_b */
static void add_gain(const layer *l, const float *rows, int64_t n, double *gain) {
  int64_t r = l->a->rank;
  copy_rows(rows, n, r, r, l->block);
  kf_gemm(false, false, n, r, n, 1, l->inner, l->block, 0, l->scratch);
  kf_gemm(true, false, r, r, n, 1, l->block, l->scratch, 1, gain);
}

/* Squares of the scores that an error of a key gives, and of what an error of a value gives in the residual stream. */
static kf_status gains(const layer *l, const double *moment, double *key, double *value, kf_error *e) {
  const kf_attention_config *a = l->a;
  int64_t n = l->nope, v = a->d_v, hidden = l->width - 1;
  for (int64_t h = 0; h < a->heads; h++) {
    const float *up = l->kv_b + h / (a->heads / a->kv_heads) * (n + v) * a->rank;
    memset(l->block, 0, (size_t)(n * l->width) * sizeof *l->block);
    copy_rows(l->q + h * a->d_qk * hidden, n, hidden, l->width, l->block);
    KF_TRY(kf_projected_moment(l->block, n, l->width, moment, l->inner, e));
    add_gain(l, up, n, key);
    for (int64_t i = 0; i < hidden; i++)
      for (int64_t j = 0; j < v; j++) l->block[i * v + j] = (double)l->o[i * a->heads * v + h * v + j];
    kf_gram(true, hidden, v, l->block, l->inner);
    add_gain(l, up + n * a->rank, v, value);
  }
  return KF_OK;
}

/* What G costs for latents of moment m, tr(G M); 1 when it is nothing. */
static double cost(const double *g, const double *m, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n * n; i++) sum += g[i] * m[i];
  return sum > 0 ? sum : 1;
}

/* moment: of [x; 1] for the layer's normed inputs x; overwritten */
static kf_status layer_basis(const layer *l, double *moment, double *work, kf_stock_basis *out, kf_error *e) {
  int64_t r = l->a->rank, w = l->width;
  double *latent = work, *m = latent + r * w, *key = m + r * r, *value = key + r * r;
  memset(work, 0, (size_t)(r * w + 3 * r * r) * sizeof *work);
  KF_TRY(gains(l, moment, key, value, e));
  for (int64_t i = 0; i < w - 1; i++)
    for (int64_t j = 0; j < w - 1; j++)
      moment[i * w + j] = moment[i * w + j] / KEYS + moment[i * w + w - 1] * moment[j * w + w - 1];
  copy_rows(l->kv_a, r, w - 1, w, latent);
  KF_TRY(kf_projected_moment(latent, r, w, moment, m, e));
  double by_key = 1 / cost(key, m, r), by_value = 1 / cost(value, m, r);
  for (int64_t i = 0; i < r * r; i++) key[i] = by_key * key[i] + by_value * value[i];
  return kf_least_roundoff(m, key, r, out, e);
}

static kf_status read_layer(const kf_stock *s, int index, layer *l, kf_arena *arena, kf_error *e) {
  const kf_attention_config *a = l->a;
  const kf_weights *w = s->weights;
  int64_t hidden = s->config->hidden, most = l->nope > a->d_v ? l->nope : a->d_v, wide = most > a->rank ? most : a->rank;
  l->block = kf_arena_alloc(arena, (size_t)(most * (wide + l->width)), sizeof *l->block, e);
  l->inner = kf_arena_alloc(arena, (size_t)(most * most), sizeof *l->inner, e);
  l->scratch = kf_arena_alloc(arena, (size_t)(most * a->rank), sizeof *l->scratch, e);
  if (!l->block || !l->inner || !l->scratch) return KF_ERROR_MEMORY;
  KF_TRY(kf_stock_query(s, index, &l->q, e));
  KF_TRY(kf_weights_readf(w, a->rank + 2 * a->rope_pairs[0], hidden, &l->kv_a, e, "model.layers.%d.self_attn.%s.weight", index,
                          kf_weights_kv_a(s->config)));
  KF_TRY(
      kf_weights_readf(w, kf_attention_kv_b_rows(a), a->rank, &l->kv_b, e, "model.layers.%d.self_attn.kv_b_proj.weight", index));
  return kf_weights_readf(w, hidden, (int64_t)a->heads * a->d_v, &l->o, e, "model.layers.%d.self_attn.o_proj.weight", index);
}

static kf_status visit_layer(kf_stock *s, int index, double *moment, kf_error *e) {
  const kf_attention_config *a = &s->config->layer[index].attention;
  layer l = {.a = a, .nope = kf_attention_nope(a, 0), .width = s->config->hidden + 1};
  kf_arena arena = {0};
  kf_status status = read_layer(s, index, &l, &arena, e);
  if (status == KF_OK) {
    double *work = kf_arena_alloc(&arena, (size_t)(a->rank * (l.width + 3 * (int64_t)a->rank)), sizeof *work, e);
    status = work ? layer_basis(&l, moment, work, &s->basis[index], e) : KF_ERROR_MEMORY;
  }
  free(l.q);
  free(l.kv_a);
  free(l.kv_b);
  free(l.o);
  kf_arena_free(&arena);
  return status;
}

/* ------------------------------------------------------------------------------------------------ the model */

static kf_status visit_layers(kf_stock *s, kf_calibrator *c, const kf_hooks *hooks, kf_error *e) {
  int64_t w = s->config->hidden + 1;
  float *x;
  double *moment;
  KF_TRY(kf_calibrator_begin(c, false, &x, e));
  kf_status status = (moment = kf_alloc((size_t)(w * w), sizeof *moment, e)) ? KF_OK : KF_ERROR_MEMORY;
  for (int i = 0; status == KF_OK && i < s->config->layers; i++) {
    status = kf_progress(hooks, "looking at latents", i, s->config->layers, e);
    if (status == KF_OK) status = kf_calibrator_load(c, i, e);
    if (status == KF_OK) status = kf_calibrator_moment(c, x, moment, e);
    if (status == KF_OK) status = visit_layer(s, i, moment, e);
    if (status == KF_OK) status = kf_calibrator_forward(c, false, NULL, x, e);
  }
  free(x);
  free(moment);
  return status;
}

static kf_status sample(const char *path, const kf_convert_options *o, kf_corpus *out, kf_error *e) {
  kf_tokenizer *t;
  KF_TRY(kf_tokenizer_open(path, &t, e));
  kf_status status = kf_corpus_sample(path, t, o, TOKENS, out, e);
  kf_tokenizer_close(t);
  return status;
}

kf_status kf_stock_find_basis(const char *path, const kf_hooks *hooks, kf_stock *s, kf_error *e) {
  const kf_convert_options o = {.hooks = *hooks};
  const kf_plan plan = {.o = &o, .source = s->config, .weights = s->weights};
  kf_corpus corpus = {0};
  kf_calibrator *c;
  for (int i = 0; i < s->config->layers; i++)
    if (s->config->layer[i].attention.kv_a_norm)
      return kf_fail(e, KF_ERROR_INPUT,
                     "%s: layer %d normalises its latents, and a norm leaves them no other basis (--f16-latents)", path, i);
  KF_TRY(sample(path, &o, &corpus, e));
  kf_status status = kf_calibrator_create(&plan, &corpus, &c, e);
  kf_corpus_free(&corpus);
  KF_TRY(status);
  s->basis = kf_alloc((size_t)s->config->layers, sizeof *s->basis, e);
  status = s->basis ? visit_layers(s, c, hooks, e) : KF_ERROR_MEMORY;
  kf_calibrator_free(c);
  if (status != KF_OK) kf_stock_free_basis(s);
  return status;
}

void kf_stock_free_basis(kf_stock *s) {
  for (int i = 0; s->basis && i < s->config->layers; i++) {
    free(s->basis[i].to);
    free(s->basis[i].from);
  }
  free(s->basis);
  s->basis = NULL;
}
