#include "convert/fold_layer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "convert/projections.h"
#include "linalg/linalg.h"

/* ---------------------------------------------------------------------------------------------- source */

/* Projection `name` as [rows, inputs]. */
static kf_status read_projection(const kf_weights *w, int layer, const char *name, bool bias, int64_t rows, int64_t inputs,
                                 float **out, kf_error *e) {
  int64_t d = w->config->hidden;
  float *weight = NULL, *offset = NULL;
  kf_status s;
  KF_NEW(*out, rows * inputs, e);
  KF_GO(kf_weights_readf(w, rows, d, &weight, e, "model.layers.%d.self_attn.%s.weight", layer, name));
  if (bias) KF_GO(kf_weights_readf(w, rows, 1, &offset, e, "model.layers.%d.self_attn.%s.bias", layer, name));
  for (int64_t r = 0; r < rows; r++) {
    memcpy(*out + r * inputs, weight + r * d, (size_t)d * sizeof **out);
    if (inputs > d) (*out)[r * inputs + d] = bias ? offset[r] : 0;
  }
done:
  free(weight);
  free(offset);
  return s;
}

kf_status kf_fold_source_read(const kf_weights *w, int layer, int64_t window, kf_fold_source *out, kf_error *e) {
  const kf_attention_config *a = &w->config->layer[layer].attention;
  int64_t hidden = w->config->hidden, d = kf_attention_inputs(a, (int)hidden), n = a->d_qk, half = n / 2, keys = a->kv_heads * n;
  double gain;
  kf_status s;
  *out = (kf_fold_source){.a = a, .hidden = (int)hidden, .inputs = (int)d, .eps = w->config->eps};
  KF_GO(read_projection(w, layer, "q_proj", a->q_bias, a->heads * n, d, &out->q, e));
  KF_GO(read_projection(w, layer, "k_proj", a->k_bias, keys, d, &out->k, e));
  KF_GO(read_projection(w, layer, "v_proj", a->v_bias, (int64_t)a->kv_heads * a->d_v, d, &out->v, e));
  KF_GO(kf_weights_readf(w, hidden, (int64_t)a->heads * a->d_v, &out->o, e, "model.layers.%d.self_attn.o_proj.weight", layer));
  if (a->o_bias) KF_GO(kf_weights_readf(w, hidden, 1, &out->o_bias, e, "model.layers.%d.self_attn.o_proj.bias", layer));
  if (a->qk_norm) {
    KF_GO(kf_weights_readf(w, n, 1, &out->q_norm, e, "model.layers.%d.self_attn.q_norm.weight", layer));
    KF_GO(kf_weights_readf(w, n, 1, &out->k_norm, e, "model.layers.%d.self_attn.k_norm.weight", layer));
  }
  out->zk = kf_alloc((size_t)(a->kv_heads * half * d), sizeof *out->zk, e);
  out->theta = kf_alloc((size_t)half, sizeof *out->theta, e);
  if (!out->zk || !out->theta) KF_GO(KF_ERROR_MEMORY);
  if (a->rope_pairs[0]) kf_rope_frequencies(&a->rope, window, out->theta, &gain);
done:
  if (s != KF_OK) kf_fold_source_free(out);
  return s;
}

/* Heads of `from` [heads n, d], times the norm's weights and each its factor. */
static kf_status stand_in(const float *from, const float *norm, const double *factor, int64_t heads, int64_t n, int64_t d,
                          float **out, kf_error *e) {
  KF_NEW(*out, heads * n * d, e);
  for (int64_t r = 0; r < heads * n; r++)
    for (int64_t i = 0; i < d; i++) (*out)[r * d + i] = (float)(factor[r / n] * norm[r % n] * from[r * d + i]);
  return KF_OK;
}

/* The factors that make |x - factor z|^2 least, x normalised; of a KV head, over its query heads. */
static kf_status replace_norms(kf_fold_source *s, const double *norms, kf_error *e) {
  const kf_attention_config *a = s->a;
  int group = a->heads / a->kv_heads;
  double *factor;
  KF_NEW(factor, a->heads, e);
  for (int h = 0; h < a->heads; h++) factor[h] = norms[4 * h] / fmax(norms[4 * h + 1], 1e-300);
  kf_status status = stand_in(s->q, s->q_norm, factor, a->heads, a->d_qk, s->inputs, &s->q_line, e);
  for (int g = 0; g < a->kv_heads; g++) {
    double with = 0, own = 0;
    for (int h = g * group; h < (g + 1) * group; h++) {
      with += norms[4 * h + 2];
      own += norms[4 * h + 3];
    }
    factor[g] = with / fmax(own, 1e-300);
  }
  if (status == KF_OK) status = stand_in(s->k, s->k_norm, factor, a->kv_heads, a->d_qk, s->inputs, &s->k_line, e);
  free(factor);
  return status;
}

kf_status kf_fold_source_settle(kf_fold_source *s, const kf_attention_statistics *statistics, kf_error *e) {
  int64_t n = s->a->d_qk, half = n / 2, d = s->inputs;
  s->q_line = s->q;
  s->k_line = s->k;
  if (s->q_norm) {
    s->q_line = s->k_line = NULL;
    KF_TRY(replace_norms(s, statistics->norms, e));
  }
  for (int64_t g = 0; g < s->a->kv_heads; g++)
    for (int64_t f = 0; f < half; f++)
      for (int64_t i = 0; i < d; i++)
        s->zk[(g * half + f) * d + i] = CMPLX(s->k_line[(g * n + f) * d + i], s->k_line[(g * n + half + f) * d + i]);
  return KF_OK;
}

void kf_fold_source_free(kf_fold_source *s) {
  if (s->q_line != s->q) free(s->q_line);
  if (s->k_line != s->k) free(s->k_line);
  free(s->q_norm);
  free(s->k_norm);
  free(s->q);
  free(s->k);
  free(s->v);
  free(s->o);
  free(s->o_bias);
  free(s->zk);
  free(s->theta);
  *s = (kf_fold_source){0};
}

/* ---------------------------------------------------------------------------------------------- the latents */

typedef struct work {
  const kf_fold_source *source;
  const kf_attention_statistics *s;
  const kf_rope_problem *p;
  const kf_channels *c;
  int64_t hidden, d, n, rank; /* d: inputs; head width, latents */
  double key_weight;
  kf_arena arena;
  double *nope;                     /* [heads n, d] position-free keys of each query head */
  double *key_c, *value_c, *common; /* [d, d] moments of keys and of values, normalised; their mixture */
  double *metric;                   /* [d, d] squared output error of a change of the keys' and values' inputs */
  double *down;                     /* [rank, d] */
} work;

static double *numbers(work *w, int64_t count, kf_error *e) {
  return kf_arena_alloc(&w->arena, (size_t)count, sizeof(double), e);
}

static double trace(const double *a, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += a[i * n + i];
  return sum;
}

/* tr(A B) of symmetric matrices */
static double inner(const double *a, const double *b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n * n; i++) sum += a[i] * b[i];
  return sum;
}

/* Kn[h, f] = m_hf Zk[g, f] - sum_j beta_gfj m_h,f(j) u_j; rows re, then im. */
static kf_status make_nope(work *w, kf_error *e) {
  const kf_rope_problem *p = w->p;
  int F = p->pairs, J = w->c->count, group = p->heads / p->kv_heads;
  if (!(w->nope = numbers(w, p->heads * w->n * w->d, e))) return KF_ERROR_MEMORY;
#pragma omp parallel for
  for (int row = 0; row < p->heads * F; row++) {
    int h = row / F, f = row % F, g = h / group;
    double *re = w->nope + ((int64_t)h * w->n + f) * w->d, *im = re + F * w->d;
    double complex mean = p->mean[h * F + f];
    const double complex *key = p->zk + ((int64_t)g * F + f) * w->d;
    for (int64_t i = 0; i < w->d; i++) {
      double complex z = mean * key[i];
      re[i] = creal(z);
      im[i] = cimag(z);
    }
    for (int j = 0; j < J; j++) {
      double complex factor = w->c->beta[((int64_t)h * F + f) * J + j] * p->mean[h * F + w->c->frequency[j]];
      const double complex *u = w->c->u + (int64_t)j * w->d;
      if (factor == 0) continue;
      for (int64_t i = 0; i < w->d; i++) {
        double complex z = factor * u[i];
        re[i] -= creal(z);
        im[i] -= cimag(z);
      }
    }
  }
  return KF_OK;
}

/* G_K = 1/n sum_h Kbar_h^T Sw_h Kbar_h (Sw per token) */
static kf_status key_metric(work *w, double *out, kf_error *e) {
  double *through = numbers(w, w->n * w->d, e);
  if (!through) return KF_ERROR_MEMORY;
  double scale = 1 / ((double)w->s->tokens * (double)w->n);
  for (int h = 0; h < w->s->heads; h++) {
    const double *nope = w->nope + h * w->n * w->d;
    kf_gemm(false, false, w->n, w->d, w->n, scale, w->s->query + h * w->n * w->n, nope, 0, through);
    kf_gemm(true, false, w->d, w->d, w->n, 1, nope, through, h ? 1 : 0, out);
  }
  return KF_OK;
}

/* G_V = sum_hh' Ov_hh' A_h^T A_h', A_h = W_o,h W_v,g: through B [kv_heads d_v, kv_heads d_v], the sums over a group's heads. */
static kf_status value_metric(work *w, double *out, kf_error *e) {
  const kf_attention_config *a = w->source->a;
  int64_t dv = a->d_v, wide = a->heads * dv, narrow = a->kv_heads * dv, group = a->heads / a->kv_heads;
  double *o = numbers(w, w->hidden * wide, e), *gram = numbers(w, wide * wide, e), *b = numbers(w, narrow * narrow, e);
  double *v = numbers(w, narrow * w->d, e), *through = numbers(w, narrow * w->d, e);
  if (!o || !gram || !b || !v || !through) return KF_ERROR_MEMORY;
  for (int64_t i = 0; i < w->hidden * wide; i++) o[i] = w->source->o[i];
  for (int64_t i = 0; i < narrow * w->d; i++) v[i] = w->source->v[i];
  kf_gram(true, w->hidden, wide, o, gram);
  for (int64_t i = 0; i < wide; i++)
    for (int64_t j = 0; j < wide; j++) {
      int64_t h = i / dv, other = j / dv;
      double share = w->s->overlap[h * a->heads + other] / (double)w->s->tokens;
      b[(h / group * dv + i % dv) * narrow + other / group * dv + j % dv] += share * gram[i * wide + j];
    }
  kf_gemm(false, false, narrow, w->d, narrow, 1, b, v, 0, through);
  kf_gemm(true, false, w->d, w->d, narrow, 1, v, through, 0, out);
  return KF_OK;
}

static kf_status make_metric(work *w, kf_error *e) {
  int64_t size = w->d * w->d;
  double *key_g = numbers(w, size, e), *value_g = numbers(w, size, e);
  w->key_c = numbers(w, size, e);
  w->value_c = numbers(w, size, e);
  w->common = numbers(w, size, e);
  w->metric = numbers(w, size, e);
  if (!key_g || !value_g || !w->key_c || !w->value_c || !w->common || !w->metric) return KF_ERROR_MEMORY;
  double heads = (double)w->s->heads * (double)w->s->tokens;
  for (int64_t i = 0; i < size; i++) {
    w->key_c[i] = w->s->key_moment[i] / w->s->weight;
    w->value_c[i] = w->s->value_moment[i] / heads;
  }
  KF_TRY(key_metric(w, key_g, e));
  KF_TRY(value_metric(w, value_g, e));
  for (int64_t i = 0; i < size; i++) key_g[i] *= w->key_weight;
  double key = inner(key_g, w->key_c, w->d), value = inner(value_g, w->value_c, w->d), key_size = trace(w->key_c, w->d),
         value_size = trace(w->value_c, w->d);
  for (int64_t i = 0; i < size; i++) {
    w->common[i] = (key * w->key_c[i] / key_size + value * w->value_c[i] / value_size) / (key + value);
    w->metric[i] = key_size * key_g[i] + value_size * value_g[i];
  }
  return KF_OK;
}

/* W_d = Y^T C^(-1/2), Y the leading eigenvectors of C^(1/2) G C^(1/2). */
static kf_status make_down(work *w, kf_error *e) {
  int64_t d = w->d, size = d * d;
  double *value = numbers(w, d, e), *root = numbers(w, size, e), *through = numbers(w, size, e), *scaled = numbers(w, size, e);
  w->down = numbers(w, w->rank * d, e);
  if (!value || !root || !through || !scaled || !w->down) return KF_ERROR_MEMORY;
  double *vectors = w->common; /* its rows become eigenvectors; the mixture is not needed again */
  KF_TRY(kf_eigh(vectors, d, value, e));
  for (int64_t k = 0; k < d; k++) value[k] = sqrt(fmax(value[k], 1e-9 * value[0]));
  for (int64_t k = 0; k < d; k++)
    for (int64_t i = 0; i < d; i++) scaled[k * d + i] = value[k] * vectors[k * d + i];
  kf_gemm(true, false, d, d, d, 1, vectors, scaled, 0, root);
  kf_gemm(false, false, d, d, d, 1, root, w->metric, 0, through);
  kf_gemm(false, false, d, d, d, 1, through, root, 0, w->metric);
  for (int64_t i = 0; i < d; i++)
    for (int64_t j = 0; j < i; j++)
      w->metric[i * d + j] = w->metric[j * d + i] = (w->metric[i * d + j] + w->metric[j * d + i]) / 2;
  for (int64_t k = 0; k < d; k++)
    for (int64_t i = 0; i < d; i++) scaled[k * d + i] = vectors[k * d + i] / value[k];
  kf_gemm(true, false, d, d, d, 1, vectors, scaled, 0, root); /* now C^(-1/2) */
  double *top = through;
  KF_TRY(kf_eigh(w->metric, d, top, e));
  kf_gemm(false, false, w->rank, d, d, 1, w->metric, root, 0, w->down);
  return KF_OK;
}

/* to [rows, rank] = from [rows, d] U, U = C W_d^T (W_d C W_d^T)^-1: the best prediction of x from the latents. */
static kf_status predict(work *w, const double *moment, const double *from, int64_t rows, double *to, kf_error *e) {
  int64_t r = w->rank, d = w->d;
  double *through = numbers(w, r * d, e), *small = numbers(w, r * r, e), *transposed = numbers(w, r * d, e);
  if (!through || !small || !transposed) return KF_ERROR_MEMORY;
  kf_gemm(false, false, r, d, d, 1, w->down, moment, 0, through);
  kf_gemm(false, true, r, r, d, 1, through, w->down, 0, small);
  double ridge = 1e-10 * trace(small, r) / (double)r;
  for (int64_t i = 0; i < r; i++) small[i * r + i] += ridge;
  KF_TRY(kf_solve_positive(small, r, d, through, e)); /* U^T */
  kf_gemm(false, true, rows, r, d, 1, from, through, 0, to);
  return KF_OK;
}

/* ---------------------------------------------------------------------------------------------- the layer */

/* Per query head: the plain query, then Re and Im of B_hj = sum_f conj(beta_gfj) Zq[h, f]. */
static kf_status place_query(work *w, kf_mapped *out, kf_error *e) {
  int F = w->p->pairs, J = w->c->count;
  int64_t rows = w->p->heads * (w->n + 2 * J);
  double *to = numbers(w, rows * w->d, e);
  if (!to) return KF_ERROR_MEMORY;
  for (int h = 0; h < w->p->heads; h++) {
    const float *q = w->source->q_line + h * w->n * w->d;
    double *head = to + h * (w->n + 2 * J) * w->d;
    for (int64_t i = 0; i < w->n * w->d; i++) head[i] = q[i];
    for (int j = 0; j < J; j++)
      for (int64_t i = 0; i < w->d; i++) {
        double complex sum = 0;
        for (int f = 0; f < F; f++)
          sum += conj(w->c->beta[((int64_t)h * F + f) * J + j]) * CMPLX(q[f * w->d + i], q[(F + f) * w->d + i]);
        head[(w->n + j) * w->d + i] = creal(sum);
        head[(w->n + J + j) * w->d + i] = cimag(sum);
      }
  }
  return kf_mapped_affine(out, "q_proj.weight", "q_proj.bias", out->attention.q_bias, to, rows, w->hidden, w->d, e);
}

/* The latents, then Re and Im of the rotated channels. */
static kf_status place_kv_a(work *w, kf_mapped *out, kf_error *e) {
  int J = w->c->count;
  int64_t rows = w->rank + 2 * J;
  double *to = numbers(w, rows * w->d, e);
  if (!to) return KF_ERROR_MEMORY;
  memcpy(to, w->down, (size_t)(w->rank * w->d) * sizeof *to);
  for (int j = 0; j < J; j++)
    for (int64_t i = 0; i < w->d; i++) {
      double complex u = w->c->u[j * w->d + i];
      to[(w->rank + j) * w->d + i] = creal(u);
      to[(w->rank + J + j) * w->d + i] = cimag(u);
    }
  return kf_mapped_affine(out, "kv_a_proj.weight", "kv_a_proj.bias", out->attention.kv_a_bias, to, rows, w->hidden, w->d, e);
}

static kf_status place_kv_b(work *w, kf_mapped *out, kf_error *e) {
  const kf_attention_config *a = w->source->a;
  int64_t n = w->n, dv = a->d_v, r = w->rank, narrow = a->kv_heads * dv;
  double *key = numbers(w, a->heads * n * r, e), *v = numbers(w, narrow * w->d, e), *value = numbers(w, narrow * r, e);
  float *to = kf_mapped_add(out, "kv_b_proj.weight", a->heads * (n + dv), r, e);
  if (!key || !v || !value || !to) return KF_ERROR_MEMORY;
  for (int64_t i = 0; i < narrow * w->d; i++) v[i] = w->source->v[i];
  KF_TRY(predict(w, w->key_c, w->nope, a->heads * n, key, e));
  KF_TRY(predict(w, w->value_c, v, narrow, value, e));
  for (int h = 0; h < a->heads; h++) {
    const double *own = value + h / (a->heads / a->kv_heads) * dv * r;
    for (int64_t i = 0; i < n * r; i++) *to++ = (float)key[h * n * r + i];
    for (int64_t i = 0; i < dv * r; i++) *to++ = (float)own[i];
  }
  return KF_OK;
}

static void describe(const work *w, kf_mapped *out) {
  kf_attention_config *b = &out->attention;
  *b = *w->source->a;
  b->kind = KF_LATENT;
  b->qk_norm = false;
  b->kv_heads = b->heads;
  b->d_qk = (int)w->n + 2 * w->c->count;
  b->rope_heads = 1;
  b->rope_pairs = out->rope_pairs;
  b->rope_index = out->rope_index;
  b->rank = (int)w->rank;
  b->q_bias = b->kv_a_bias = w->d > w->hidden;
  b->latent_eps = 1e-6f;
}

static kf_status assemble(work *w, kf_mapped *out, kf_error *e) {
  int J = w->c->count;
  KF_NEW(out->rope_pairs, 1, e);
  KF_NEW(out->rope_index, J, e);
  out->rope_pairs[0] = J;
  memcpy(out->rope_index, w->c->frequency, (size_t)J * sizeof *out->rope_index);
  describe(w, out);
  KF_TRY(make_nope(w, e));
  KF_TRY(make_metric(w, e));
  KF_TRY(make_down(w, e));
  KF_TRY(place_query(w, out, e));
  KF_TRY(place_kv_a(w, out, e));
  return place_kv_b(w, out, e);
}

kf_status kf_fold_layer_map(const kf_fold_source *source, const kf_attention_statistics *s, const kf_rope_problem *p,
                            const kf_channels *c, int64_t elements, double key_weight, kf_mapped *out, kf_error *e) {
  work w = {.source = source,
            .s = s,
            .p = p,
            .c = c,
            .hidden = source->hidden,
            .d = source->inputs,
            .n = source->a->d_qk,
            .rank = elements - 2 * c->count,
            .key_weight = key_weight};
  *out = (kf_mapped){0};
  if (w.rank > w.d) w.rank = w.d;
  kf_status status = assemble(&w, out, e);
  kf_arena_free(&w.arena);
  if (status != KF_OK) kf_mapped_free(out);
  return status;
}

/* ---------------------------------------------------------------------------------------------- its projections */

static kf_mapped_tensor *tensor(const kf_mapped *m, const char *name, const char *part) {
  char full[64];
  snprintf(full, sizeof full, "%s.%s", name, part);
  for (int i = 0; i < m->tensors; i++)
    if (strcmp(m->tensor[i].name, full) == 0) return (kf_mapped_tensor *)(uintptr_t)&m->tensor[i];
  return NULL;
}

kf_status kf_fold_projection(const kf_fold_source *source, const kf_mapped *m, const char *name, float **out, kf_error *e) {
  const kf_mapped_tensor *w = tensor(m, name, "weight"), *b = tensor(m, name, "bias");
  int64_t rows = w->shape[0], d = source->hidden, width = source->inputs;
  KF_NEW(*out, rows * width, e);
  for (int64_t r = 0; r < rows; r++) {
    memcpy(*out + r * width, w->data + r * d, (size_t)d * sizeof **out);
    if (b) (*out)[r * width + d] = b->data[r];
  }
  return KF_OK;
}

void kf_fold_set_projection(const kf_fold_source *source, kf_mapped *m, const char *name, const float *from) {
  kf_mapped_tensor *w = tensor(m, name, "weight"), *b = tensor(m, name, "bias");
  int64_t d = source->hidden, width = source->inputs;
  for (int64_t r = 0; r < w->shape[0]; r++) {
    memcpy(w->data + r * d, from + r * width, (size_t)d * sizeof *from);
    if (b) b->data[r] = from[r * width + d];
  }
}
