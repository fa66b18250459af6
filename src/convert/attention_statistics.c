#include "convert/attention_statistics.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "linalg/linalg.h"

/* ---------------------------------------------------------------------------------------------- memory */

kf_status kf_attention_statistics_create(const kf_attention_config *a, int hidden, int64_t window, kf_attention_statistics *out,
                                         kf_error *e) {
  int64_t inputs = kf_attention_inputs(a, hidden);
  *out = (kf_attention_statistics){.heads = a->heads,
                                   .kv_heads = a->kv_heads,
                                   .d_qk = a->d_qk,
                                   .d_v = a->d_v,
                                   .hidden = hidden,
                                   .inputs = (int)inputs,
                                   .window = window};
  struct {
    double **to;
    int64_t count;
  } parts[] = {{&out->distance, a->heads * window},           {&out->query, (int64_t)a->heads * a->d_qk * a->d_qk},
               {&out->key_moment, inputs * inputs},           {&out->value_moment, inputs * inputs},
               {&out->overlap, (int64_t)a->heads * a->heads}, {&out->norms, (int64_t)a->heads * 4}};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
    if (!(*parts[i].to = kf_alloc((size_t)parts[i].count, sizeof(double), e))) {
      kf_attention_statistics_free(out);
      return KF_ERROR_MEMORY;
    }
  return KF_OK;
}

void kf_attention_statistics_free(kf_attention_statistics *s) {
  double *parts[] = {s->distance, s->query, s->key_moment, s->value_moment, s->overlap, s->norms};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) free(parts[i]);
  *s = (kf_attention_statistics){0};
}

/* L [n, n] with L L^T = W^T W, W the n columns of o that belong to a head: from the eigenvectors, so that it may be singular. */
static kf_status output_factor(const float *o, int hidden, int64_t columns, int64_t first, int n, float *factor, kf_error *e) {
  double *w = kf_alloc((size_t)hidden * (size_t)n, sizeof *w, e), *g = kf_alloc((size_t)n * (size_t)n, sizeof *g, e);
  double *value = kf_alloc((size_t)n, sizeof *value, e);
  kf_status s = w && g && value ? KF_OK : KF_ERROR_MEMORY;
  if (s == KF_OK) {
    for (int i = 0; i < hidden; i++)
      for (int j = 0; j < n; j++) w[(int64_t)i * n + j] = o[i * columns + first + j];
    kf_gram(true, hidden, n, w, g);
    s = kf_eigh(g, n, value, e);
  }
  for (int j = 0; s == KF_OK && j < n; j++)
    for (int i = 0; i < n; i++) factor[(int64_t)i * n + j] = (float)(g[(int64_t)j * n + i] * sqrt(fmax(value[j], 0)));
  free(w);
  free(g);
  free(value);
  return s;
}

kf_status kf_attention_probe_create(const kf_attention_config *a, int hidden, int64_t window, const float *o, const float *q_norm,
                                    const float *k_norm, float eps, kf_attention_probe *out, kf_error *e) {
  int half = a->d_qk / 2, rotates = a->rope_pairs[0] > 0;
  double *f = NULL, gain;
  kf_status s = KF_OK;
  *out = (kf_attention_probe){.a = a, .window = window, .q_norm = q_norm, .k_norm = k_norm, .eps = eps};
  out->cos = kf_alloc((size_t)(window * half), sizeof(float), e);
  out->sin = kf_alloc((size_t)(window * half), sizeof(float), e);
  out->factor = kf_alloc((size_t)a->heads * (size_t)a->d_v * (size_t)a->d_v, sizeof(float), e);
  f = kf_alloc((size_t)half, sizeof *f, e);
  if (!out->cos || !out->sin || !out->factor || !f) s = KF_ERROR_MEMORY;
  if (s == KF_OK) {
    kf_rope_frequencies(&a->rope, window, f, &gain);
    for (int64_t t = 0; t < window; t++)
      for (int i = 0; i < half; i++) {
        out->cos[t * half + i] = rotates ? (float)(gain * cos((double)t * f[i])) : 1;
        out->sin[t * half + i] = rotates ? (float)(gain * sin((double)t * f[i])) : 0;
      }
  }
  for (int h = 0; h < a->heads && s == KF_OK; h++)
    s = output_factor(o, hidden, (int64_t)a->heads * a->d_v, (int64_t)h * a->d_v, a->d_v,
                      out->factor + (int64_t)h * a->d_v * a->d_v, e);
  free(f);
  if (s != KF_OK) kf_attention_probe_free(out);
  return s;
}

void kf_attention_probe_free(kf_attention_probe *p) {
  free(p->cos);
  free(p->sin);
  free(p->factor);
  *p = (kf_attention_probe){0};
}

/* ---------------------------------------------------------------------------------------------- one head of one window */

typedef struct head_work {
  float *q, *plain, *k, *v, *o, *vl, *ol; /* [m, d]: rotated and plain query, rotated key, values, output, both times L */
  float *w, *dot;                         /* [m, m] scores, then a2^2; (L^T o) . (L^T v) */
  float *row, *size, *own;                /* [m] sum_s w, |L^T v|^2, |L^T o|^2 */
  float *q_inverse, *k_inverse;           /* [m] 1 / rms of what the norms took */
  double *distance, *key, *value;         /* [m], [m], [m]: this head's part */
} head_work;

static size_t head_floats(const kf_attention_statistics *s, int64_t m) {
  return (size_t)m * (3 * (size_t)s->d_qk + 4 * (size_t)s->d_v + 2 * (size_t)m + 5);
}

static void carve(const kf_attention_statistics *s, int64_t m, float *memory, double *sums, head_work *w) {
  float **part[] = {&w->q, &w->plain, &w->k,   &w->v,    &w->o,   &w->vl,        &w->ol,
                    &w->w, &w->dot,   &w->row, &w->size, &w->own, &w->q_inverse, &w->k_inverse};
  int64_t size[] = {s->d_qk, s->d_qk, s->d_qk, s->d_v, s->d_v, s->d_v, s->d_v, m, m, 1, 1, 1, 1, 1};
  for (int i = 0; i < 14; i++) {
    *part[i] = memory;
    memory += m * size[i];
  }
  w->distance = sums;
  w->key = sums + m;
  w->value = sums + 2 * m;
}

static void gather(const float *from, int64_t stride, int64_t m, int d, float *to) {
  for (int64_t t = 0; t < m; t++) memcpy(to + t * d, from + t * stride, (size_t)d * sizeof *to);
}

static void rotate(const kf_attention_probe *p, int64_t m, int d, float scale, const float *from, float *to) {
  int half = d / 2;
  for (int64_t t = 0; t < m; t++)
    for (int i = 0; i < half; i++) {
      float c = p->cos[t * half + i] * scale, s = p->sin[t * half + i] * scale, re = from[t * d + i], im = from[t * d + half + i];
      to[t * d + i] = re * c - im * s;
      to[t * d + half + i] = im * c + re * s;
    }
}

/* Row t of scores into a (probabilities, zero beyond t) and back into itself as a2^2. */
static void soften(float *score, int64_t t, int64_t first, int64_t m, float *a) {
  float top = score[first];
  for (int64_t s = first; s <= t; s++) top = fmaxf(top, score[s]);
  float sum = 0, soft = 0;
  for (int64_t s = first; s <= t; s++) {
    float root = expf(0.5f * (score[s] - top));
    score[s] = root;
    a[s] = root * root;
    soft += root;
    sum += root * root;
  }
  for (int64_t s = 0; s < m; s++) {
    bool seen = s >= first && s <= t;
    a[s] = seen ? a[s] / sum : 0;
    score[s] = seen ? score[s] / soft * (score[s] / soft) : 0;
  }
}

static void squares(const float *x, int64_t m, int d, float *to) {
  for (int64_t t = 0; t < m; t++) {
    float sum = 0;
    for (int i = 0; i < d; i++) sum += x[t * d + i] * x[t * d + i];
    to[t] = sum;
  }
}

/* row[t] sum_s w, and the sums over distances and over keys, of w = a2^2 |L^T (v - o)|^2 = a2^2 (|L^T v|^2 - 2 (L^T v).(L^T o) + |L^T o|^2). */
static void weigh(head_work *w, int64_t m, const float *a) {
  for (int64_t t = 0; t < m; t++) {
    const float *soft = w->w + t * m, *dot = w->dot + t * m;
    float own = w->own[t], sum = 0;
    for (int64_t i = 0; i <= t; i++) {
      float weight = soft[i] * fmaxf(w->size[i] - 2 * dot[i] + own, 0);
      sum += weight;
      w->distance[t - i] += weight;
      w->key[i] += weight;
      w->value[i] += a[t * m + i];
    }
    w->row[t] = sum;
  }
}

void kf_head_rows_norm(int64_t m, int d, const float *weight, float eps, float *x, float *inverse) {
  for (int64_t t = 0; t < m; t++) {
    float square = 0;
    for (int i = 0; i < d; i++) square += x[t * d + i] * x[t * d + i];
    float scale = 1 / sqrtf(square / (float)d + eps);
    for (int i = 0; i < d; i++) x[t * d + i] *= scale * weight[i];
    if (inverse) inverse[t] = scale;
  }
}

/* sum[0] += weight x.z, sum[1] += weight |z|^2, x = inverse z. */
static void add_norm(int d, const float *x, double inverse, double weight, double *sum) {
  double square = 0;
  for (int i = 0; i < d; i++) square += (double)x[i] * x[i];
  sum[0] += weight * square / inverse;
  sum[1] += weight * square / inverse / inverse;
}

/* a: [m, m] receives the head's probabilities. */
static void one_head(kf_attention_statistics *s, const kf_attention_probe *p, int h, int64_t m, const float *q, const float *k,
                     const float *v, int64_t stride, head_work *w, float *a) {
  int g = h / (s->heads / s->kv_heads), n = s->d_qk, dv = s->d_v;
  gather(q + (int64_t)h * n, stride, m, n, w->plain);
  gather(k + (int64_t)g * n, stride, m, n, w->ol); /* borrowed: d_v numbers a row are as many as d_qk here */
  gather(v + (int64_t)g * dv, stride, m, dv, w->v);
  if (p->q_norm) kf_head_rows_norm(m, n, p->q_norm, p->eps, w->plain, w->q_inverse);
  if (p->k_norm) kf_head_rows_norm(m, n, p->k_norm, p->eps, w->ol, w->k_inverse);
  rotate(p, m, n, p->a->scale, w->plain, w->q);
  rotate(p, m, n, 1, w->ol, w->k);
  kf_gemm_f32(false, true, m, m, n, w->q, w->k, w->w);
  for (int64_t t = 0; t < m; t++) {
    int64_t first = p->a->window && t >= p->a->window ? t - p->a->window + 1 : 0;
    soften(w->w + t * m, t, first, m, a + t * m);
  }
  const float *factor = p->factor + (int64_t)h * dv * dv;
  kf_gemm_f32(false, false, m, dv, m, a, w->v, w->o);
  kf_gemm_f32(false, false, m, dv, dv, w->v, factor, w->vl);
  kf_gemm_f32(false, false, m, dv, dv, w->o, factor, w->ol);
  kf_gemm_f32(false, true, m, m, dv, w->ol, w->vl, w->dot);
  squares(w->vl, m, dv, w->size);
  squares(w->ol, m, dv, w->own);
  memset(w->distance, 0, 3 * (size_t)m * sizeof *w->distance);
  weigh(w, m, a);
  double *moment = s->query + (int64_t)h * n * n;
  for (int64_t t = 0; t < m; t++)
    for (int i = 0; i < n; i++) w->q[t * n + i] = sqrtf(w->row[t]) * w->plain[t * n + i];
  kf_gemm_f32(true, false, n, n, m, w->q, w->q, w->dot);
  for (int i = 0; i < n * n; i++) moment[i] += w->dot[i];
  for (int64_t t = 0; t < m; t++) s->distance[h * s->window + t] += w->distance[t];
  for (int64_t t = 0; t < m && p->q_norm; t++) add_norm(n, w->plain + t * n, w->q_inverse[t], w->row[t], s->norms + 4 * h);
  for (int64_t t = 0; t < m && p->k_norm; t++) add_norm(n, w->k + t * n, w->k_inverse[t], w->key[t], s->norms + 4 * h + 2);
}

/* moment += sum_t weight[t] x_t x_t^T; x: [m, hidden], of d inputs */
static void add_moment(const float *x, int64_t hidden, const double *weight, int64_t m, int64_t d, float *scaled, float *product,
                       double *moment) {
  for (int64_t t = 0; t < m; t++) {
    float root = (float)sqrt(weight[t]);
    for (int64_t i = 0; i < d; i++) scaled[t * d + i] = root * (i < hidden ? x[t * hidden + i] : 1);
  }
  kf_gemm_f32(true, false, d, d, m, scaled, scaled, product);
  for (int64_t i = 0; i < d * d; i++) moment[i] += product[i];
}

kf_status kf_attention_statistics_add(kf_attention_statistics *s, const kf_attention_probe *p, int64_t m, const float *x,
                                      const float *q, const float *k, const float *v, int64_t stride, int threads, kf_error *e) {
  int64_t d = s->inputs;
  size_t each = head_floats(s, m), side = (size_t)(d * d + m * d);
  float *memory = kf_alloc(each * (size_t)threads, sizeof *memory, e),
        *a = kf_alloc((size_t)s->heads * (size_t)(m * m), sizeof *a, e);
  float *moment = kf_alloc(side, sizeof *moment, e), *overlap = kf_alloc((size_t)s->heads * (size_t)s->heads, sizeof *overlap, e);
  double *sums = kf_alloc((size_t)s->heads * 3 * (size_t)m, sizeof *sums, e);
  kf_status status = memory && a && moment && overlap && sums ? KF_OK : KF_ERROR_MEMORY;
  if (status == KF_OK) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int slot = 0; slot < threads; slot++)
      for (int h = slot; h < s->heads; h += threads) {
        head_work w;
        carve(s, m, memory + each * (size_t)slot, sums + (int64_t)h * 3 * m, &w);
        one_head(s, p, h, m, q, k, v, stride, &w, a + h * m * m);
      }
    kf_gemm_f32(false, true, s->heads, s->heads, m * m, a, a, overlap);
    for (int i = 0; i < s->heads * s->heads; i++) s->overlap[i] += overlap[i];
    double *key = sums + m, *value = sums + 2 * m; /* of head 0; the others are added to it */
    for (int h = 1; h < s->heads; h++)
      for (int64_t t = 0; t < m; t++) {
        key[t] += sums[(int64_t)h * 3 * m + m + t];
        value[t] += sums[(int64_t)h * 3 * m + 2 * m + t];
      }
    for (int64_t t = 0; t < m; t++) s->weight += key[t];
    add_moment(x, s->hidden, key, m, d, moment + d * d, moment, s->key_moment);
    add_moment(x, s->hidden, value, m, d, moment + d * d, moment, s->value_moment);
    s->tokens += m;
  }
  free(memory);
  free(a);
  free(moment);
  free(overlap);
  free(sums);
  return status;
}
