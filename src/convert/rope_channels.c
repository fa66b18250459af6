#include "convert/rope_channels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "linalg/linalg.h"

typedef double complex cplx;

/* ---------------------------------------------------------------------------------------------- the problem */

/* c [m, n] = a [m, k] b^H, b [n, k] */
static void product(int64_t m, int64_t n, int64_t k, const cplx *a, const cplx *b, cplx *c) {
#pragma omp parallel for
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) {
      double re = 0, im = 0;
      for (int64_t t = 0; t < k; t++) {
        re += creal(a[i * k + t]) * creal(b[j * k + t]) + cimag(a[i * k + t]) * cimag(b[j * k + t]);
        im += cimag(a[i * k + t]) * creal(b[j * k + t]) - creal(a[i * k + t]) * cimag(b[j * k + t]);
      }
      c[i * n + j] = CMPLX(re, im);
    }
}

/* E[z z^H] = Zk C Zk^H, C the normalised key moment (real, symmetric). */
static kf_status key_moment(const kf_attention_statistics *s, const kf_rope_problem *p, kf_error *e) {
  int64_t n = (int64_t)p->kv_heads * p->pairs, d = p->hidden;
  double *parts = kf_alloc(2 * (size_t)(n * d), sizeof *parts, e), *through = kf_alloc(2 * (size_t)(n * d), sizeof *through, e);
  cplx *left = kf_alloc((size_t)(n * d), sizeof *left, e);
  kf_status status = parts && through && left ? KF_OK : KF_ERROR_MEMORY;
  if (status == KF_OK) {
    for (int64_t i = 0; i < n * d; i++) {
      parts[i] = creal(p->zk[i]);
      parts[n * d + i] = cimag(p->zk[i]);
    }
    kf_gemm(false, false, 2 * n, d, d, 1 / s->weight, parts, s->key_moment, 0, through);
    for (int64_t i = 0; i < n * d; i++) left[i] = CMPLX(through[i], through[n * d + i]);
    product(n, n, d, left, p->zk, p->moment);
  }
  free(parts);
  free(through);
  free(left);
  return status;
}

static void energies(const kf_attention_statistics *s, kf_rope_problem *p) {
  int F = p->pairs, n = 2 * F;
  for (int h = 0; h < p->heads; h++)
    for (int f = 0; f < F; f++) {
      const double *re = s->query + ((int64_t)h * n + f) * n, *im = re + (int64_t)F * n; /* moments with re f, with im f */
      for (int i = 0; i < F; i++)
        p->query[((int64_t)h * F + f) * F + i] = CMPLX(re[i] + im[F + i], re[F + i] - im[i]) / (double)s->tokens;
      p->query_energy[h * F + f] = (re[f] + im[F + f]) / (double)s->tokens;
    }
}

/* E e^{-i angle D} of D evenly over [0, length) */
static cplx even_rotation(double angle, int64_t length) {
  cplx step = CMPLX(cos(angle), -sin(angle));
  double whole = angle * (double)length;
  return cabs(1 - step) < 1e-12 ? 1 : (1 - CMPLX(cos(whole), -sin(whole))) / ((1 - step) * (double)length);
}

/* E e^{-i angle D} over a head's distances as calibration text has them, `distance` [window] with sum 1, and a part that lies
 * evenly over contexts of every octave from the window to the reach: without it coefficients grow that cancel near and go wild
 * where no weight is, and one far token with a wild score takes all attention. */
static cplx rotation(const kf_rope_problem *p, const double *distance, double angle) {
  static const double far = 0.02;
  cplx near = 0, even = 0;
  int octaves = 0;
  for (int64_t t = 0; t < p->window; t++) near += distance[t] * CMPLX(cos(angle * (double)t), -sin(angle * (double)t));
  for (int64_t length = p->reach; length >= p->window || !octaves; length /= 2, octaves++) even += even_rotation(angle, length);
  return (1 - far) * near + far / octaves * even;
}

/* mean: [F] E e_f; gram: [F, F] E[(e_f - m_f) conj(e_f' - m_f')], e_f = e^{-i theta_f D} */
static void moments(const kf_rope_problem *p, const double *theta, const double *distance, cplx *mean, cplx *gram) {
  int F = p->pairs;
  for (int f = 0; f < F; f++) mean[f] = rotation(p, distance, theta[f]);
  for (int f = 0; f < F; f++)
    for (int i = 0; i < F; i++) gram[f * F + i] = rotation(p, distance, theta[f] - theta[i]) - mean[f] * conj(mean[i]);
}

static kf_status rotations(const kf_attention_statistics *s, const double *theta, kf_rope_problem *p, kf_error *e) {
  int group = p->heads / p->kv_heads, F = p->pairs;
  double *own = kf_alloc((size_t)(p->heads * p->window), sizeof *own, e);
  if (!own) return KF_ERROR_MEMORY;
#pragma omp parallel for
  for (int h = 0; h < p->heads; h++) {
    double sum = 0, *mine = own + h * p->window;
    for (int64_t t = 0; t < p->window; t++) sum += s->distance[h * s->window + t];
    for (int64_t t = 0; t < p->window; t++) mine[t] = sum > 0 ? s->distance[h * s->window + t] / sum : t == 0;
    moments(p, theta, mine, p->mean + h * F, p->head_gram + h * F * F);
  }
  for (int h = 0; h < p->heads; h++) {
    double energy = 0, total = 0;
    for (int f = 0; f < F; f++) energy += p->query_energy[h * F + f];
    for (int o = h / group * group; o < (h / group + 1) * group; o++)
      for (int f = 0; f < F; f++) total += p->query_energy[o * F + f];
    for (int i = 0; i < F * F; i++)
      p->gram[(int64_t)(h / group) * F * F + i] +=
          (total > 0 ? energy / total : 1.0 / group) * p->head_gram[(int64_t)h * F * F + i];
  }
  for (int g = 0; g < p->kv_heads; g++)
    for (int f = 0; f < F; f++) /* a frequency that never turns within the window */
      if (creal(p->gram[((int64_t)g * F + f) * F + f]) < 1e-12) p->gram[((int64_t)g * F + f) * F + f] = 1e-12;
  free(own);
  return KF_OK;
}

kf_status kf_rope_problem_create(const kf_attention_statistics *s, const cplx *zk, const double *theta, int64_t reach,
                                 kf_rope_problem *out, kf_error *e) {
  *out = (kf_rope_problem){.heads = s->heads,
                           .kv_heads = s->kv_heads,
                           .pairs = s->d_qk / 2,
                           .hidden = s->inputs,
                           .window = s->window,
                           .reach = reach,
                           .zk = zk};
  int64_t F = out->pairs, n = s->kv_heads * F;
  out->mean = kf_alloc((size_t)(s->heads * F), sizeof *out->mean, e);
  out->query_energy = kf_alloc((size_t)(s->heads * F), sizeof *out->query_energy, e);
  out->query = kf_alloc((size_t)(s->heads * F * F), sizeof *out->query, e);
  out->head_gram = kf_alloc((size_t)(s->heads * F * F), sizeof *out->head_gram, e);
  out->gram = kf_alloc((size_t)(s->kv_heads * F * F), sizeof *out->gram, e);
  out->moment = kf_alloc((size_t)(n * n), sizeof *out->moment, e);
  kf_status status =
      out->mean && out->query && out->query_energy && out->head_gram && out->gram && out->moment ? KF_OK : KF_ERROR_MEMORY;
  if (status == KF_OK) {
    energies(s, out);
    status = rotations(s, theta, out, e);
  }
  if (status == KF_OK) status = key_moment(s, out, e);
  if (status != KF_OK) kf_rope_problem_free(out);
  return status;
}

void kf_rope_problem_free(kf_rope_problem *p) {
  free(p->mean);
  free(p->query_energy);
  free(p->query);
  free(p->head_gram);
  free(p->gram);
  free(p->moment);
  *p = (kf_rope_problem){0};
}

/* ---------------------------------------------------------------------------------------------- channels */

static kf_status channels_create(const kf_rope_problem *p, int count, kf_channels *out, kf_error *e) {
  *out = (kf_channels){.count = count};
  out->frequency = kf_alloc((size_t)count, sizeof *out->frequency, e);
  out->u = kf_alloc((size_t)count * (size_t)p->hidden, sizeof *out->u, e);
  out->beta = kf_alloc((size_t)p->heads * (size_t)p->pairs * (size_t)count, sizeof *out->beta, e);
  if (out->frequency && out->u && out->beta) return KF_OK;
  kf_channels_free(out);
  return KF_ERROR_MEMORY;
}

void kf_channels_free(kf_channels *c) {
  free(c->frequency);
  free(c->u);
  free(c->beta);
  free(c->t);
  *c = (kf_channels){0};
}

typedef struct component {
  double value;
  int frequency, row;
} component;

static int strongest_first(const void *a, const void *b) {
  const component *x = a, *y = b;
  if (x->value != y->value) return (x->value < y->value) - (x->value > y->value);
  return x->frequency != y->frequency ? x->frequency - y->frequency : x->row - y->row;
}

/* For each frequency the eigenpairs of diag(D) E[k k^H] diag(D), D_g^2 = sum over the group of energy (1 - |m|^2). */
kf_status kf_channels_greedy(const kf_rope_problem *p, int count, const bool *allowed, kf_channels *out, kf_error *e) {
  int G = p->kv_heads, F = p->pairs, group = p->heads / G, found = 0;
  KF_TRY(channels_create(p, count, out, e));
  cplx *vectors = kf_alloc((size_t)F * (size_t)G * (size_t)G, sizeof *vectors, e);
  double *lost = kf_alloc((size_t)F * (size_t)G, sizeof *lost, e), *value = kf_alloc((size_t)G, sizeof *value, e);
  component *list = kf_alloc((size_t)F * (size_t)G, sizeof *list, e);
  kf_status s = vectors && lost && value && list ? KF_OK : KF_ERROR_MEMORY;
  for (int f = 0; f < F && s == KF_OK; f++) {
    cplx *m = vectors + (int64_t)f * G * G;
    for (int g = 0; g < G; g++) {
      double sum = 0;
      for (int h = g * group; h < (g + 1) * group; h++) {
        double size = cabs(p->mean[h * F + f]);
        sum += p->query_energy[h * F + f] * fmax(1 - size * size, 0);
      }
      lost[f * G + g] = sqrt(fmax(sum, 1e-30));
    }
    for (int a = 0; a < G; a++)
      for (int b = 0; b < G; b++)
        m[a * G + b] = lost[f * G + a] * p->moment[((int64_t)a * F + f) * G * F + (int64_t)b * F + f] * lost[f * G + b];
    s = kf_eigh_complex(m, G, value, e);
    for (int c = 0; c < (allowed ? allowed[f] : G) && s == KF_OK; c++) list[found++] = (component){value[c], f, c};
  }
  if (s == KF_OK) qsort(list, (size_t)found, sizeof *list, strongest_first);
  for (int j = 0; j < count && s == KF_OK; j++) {
    int f = list[j].frequency;
    const cplx *y = vectors + ((int64_t)f * G + list[j].row) * G;
    out->frequency[j] = f;
    for (int g = 0; g < G; g++) {
      double D = lost[f * G + g];
      const cplx *key = p->zk + ((int64_t)g * F + f) * p->hidden;
      for (int i = 0; i < p->hidden; i++) out->u[(int64_t)j * p->hidden + i] += conj(y[g]) * D * key[i];
      for (int h = g * group; h < (g + 1) * group; h++) out->beta[((int64_t)h * F + f) * count + j] = y[g] / D;
    }
  }
  free(vectors);
  free(lost);
  free(value);
  free(list);
  if (s != KF_OK) kf_channels_free(out);
  return s;
}

/* ---------------------------------------------------------------------------------------------- fold */

typedef struct pursuit {
  const kf_rope_problem *p;
  int64_t n;            /* G F */
  cplx *root, *inverse; /* [n, n] E[z z^H]^(1/2) and ^(-1/2) */
  cplx *overlap;        /* [F candidates, n, n] S: sum over f' of gram[f', candidate] R[f, f', :], row (g, f) */
  cplx *direction;      /* [F, n] the last best direction of each candidate */
  double *gain;         /* [F] */
  double *weight;       /* [G, F] sum of the group's query energies */
  bool *open;           /* [F] candidates that may be taken */
} pursuit;

/* Powers of E[z z^H] by its eigenvectors v (rows): sum w^x v v^H. */
static kf_status roots(pursuit *q, kf_error *e) {
  int64_t n = q->n;
  cplx *v = kf_alloc((size_t)(n * n), sizeof *v, e), *scaled = kf_alloc((size_t)(n * n), sizeof *scaled, e);
  double *w = kf_alloc((size_t)n, sizeof *w, e);
  kf_status s = v && scaled && w ? KF_OK : KF_ERROR_MEMORY;
  if (s == KF_OK) {
    memcpy(v, q->p->moment, (size_t)(n * n) * sizeof *v);
    s = kf_eigh_complex(v, n, w, e);
  }
  for (int which = 0; which < 2 && s == KF_OK; which++) {
    for (int64_t k = 0; k < n; k++) {
      double value = fmax(w[k], 1e-10 * w[0]), power = which ? 1 / sqrt(value) : sqrt(value);
      for (int64_t i = 0; i < n; i++) { /* transposed, so that product() sums over k */
        scaled[i * n + k] = power * v[k * n + i];
      }
    }
    cplx *transposed = which ? q->inverse : q->root, *by_row = kf_alloc((size_t)(n * n), sizeof *by_row, e);
    if (!by_row) s = KF_ERROR_MEMORY;
    for (int64_t i = 0; i < n * n && s == KF_OK; i++) by_row[i] = v[i % n * n + i / n];
    if (s == KF_OK) product(n, n, n, scaled, by_row, transposed);
    free(by_row);
  }
  free(v);
  free(scaled);
  free(w);
  return s;
}

/* Where power iteration begins: the last direction, which the channel taken since may have emptied, and the heaviest row. */
static void aim(pursuit *q, int c) {
  int64_t n = q->n, F = q->p->pairs, heaviest = 0;
  const cplx *S = q->overlap + (int64_t)c * n * n;
  cplx *v = q->direction + c * n;
  double most = 0;
  for (int64_t r = 0; r < n; r++) {
    double sum = 0, scale = q->weight[r] / creal(q->p->gram[(r / F * F + c) * F + c]);
    for (int64_t i = 0; i < n; i++) sum += creal(S[r * n + i]) * creal(S[r * n + i]) + cimag(S[r * n + i]) * cimag(S[r * n + i]);
    if (scale * sum > most) {
      most = scale * sum;
      heaviest = r;
      q->gain[c] = sqrt(sum);
    }
  }
  for (int64_t i = 0; i < n && most > 0; i++) v[i] += conj(S[heaviest * n + i]) / q->gain[c];
}

/* Top eigenpair of Y^H Y, Y rows (g, f) = sqrt(weight / gram[c, c]) S, by power iteration. */
static double strongest(pursuit *q, int c, int iterations, double tolerance, cplx *y) {
  int64_t n = q->n, F = q->p->pairs;
  cplx *v = q->direction + c * n, *next = y + n;
  const cplx *S = q->overlap + (int64_t)c * n * n;
  double value = 0;
  for (int it = 0; it < iterations; it++) {
    memset(next, 0, (size_t)n * sizeof *next);
    for (int64_t r = 0; r < n; r++) {
      double re = 0, im = 0, scale = q->weight[r] / creal(q->p->gram[(r / F * F + c) * F + c]);
      const double *s = (const double *)(S + r * n), *x = (const double *)v;
      double *to = (double *)next;
      for (int64_t i = 0; i < n; i++) {
        re += s[2 * i] * x[2 * i] - s[2 * i + 1] * x[2 * i + 1];
        im += s[2 * i] * x[2 * i + 1] + s[2 * i + 1] * x[2 * i];
      }
      re *= scale;
      im *= scale;
      for (int64_t i = 0; i < n; i++) { /* conj(s) (re + i im) */
        to[2 * i] += s[2 * i] * re + s[2 * i + 1] * im;
        to[2 * i + 1] += s[2 * i] * im - s[2 * i + 1] * re;
      }
    }
    double norm = 0;
    for (int64_t i = 0; i < n; i++) norm += creal(next[i]) * creal(next[i]) + cimag(next[i]) * cimag(next[i]);
    norm = sqrt(norm);
    if (!(norm > 0)) return 0;
    for (int64_t i = 0; i < n; i++) v[i] = next[i] / norm;
    bool settled = fabs(norm - value) < tolerance * norm;
    value = norm;
    if (settled) break;
  }
  return value;
}

static void start(pursuit *q) {
  const kf_rope_problem *p = q->p;
  int F = p->pairs, group = p->heads / p->kv_heads;
  for (int g = 0; g < p->kv_heads; g++)
    for (int f = 0; f < F; f++)
      for (int h = g * group; h < (g + 1) * group; h++) q->weight[g * F + f] += p->query_energy[h * F + f];
  for (int c = 0; c < F; c++)
    for (int64_t r = 0; r < q->n; r++) {
      cplx factor = p->gram[r * F + c]; /* row (g, f) of [G, F, F] */
      for (int64_t i = 0; i < q->n; i++) q->overlap[((int64_t)c * q->n + r) * q->n + i] = factor * q->root[r * q->n + i];
    }
}

/* R[., best, :] loses the part that the channel carries; the S of all candidates that are open follow. */
static void take(pursuit *q, int best, const cplx *u, int threads) {
  const kf_rope_problem *p = q->p;
  int F = p->pairs;
  int64_t n = q->n;
#pragma omp parallel for num_threads(threads)
  for (int64_t r = 0; r < n; r++) {
    const cplx *S = q->overlap + ((int64_t)best * n + r) * n, *gram = p->gram + r / F * F * F;
    cplx dot = 0;
    for (int64_t i = 0; i < n; i++) dot += S[i] * u[i];
    dot /= creal(gram[best * F + best]);
    for (int c = 0; c < F; c++) {
      if (!q->open[c]) continue;
      cplx factor = gram[best * F + c] * dot, *to = q->overlap + ((int64_t)c * n + r) * n;
      for (int64_t i = 0; i < n; i++) to[i] -= factor * conj(u[i]);
    }
  }
}

/* p_j = u^H C^(-1/2) z */
static void write_channel(const pursuit *q, int j, int frequency, const cplx *u, kf_channels *out) {
  const kf_rope_problem *p = q->p;
  int64_t n = q->n;
  out->frequency[j] = frequency;
  for (int64_t r = 0; r < n; r++) {
    cplx factor = 0;
    for (int64_t i = 0; i < n; i++) factor += conj(u[i]) * q->inverse[i * n + r];
    out->t[j * n + r] = factor;
    for (int i = 0; i < p->hidden; i++) out->u[(int64_t)j * p->hidden + i] += factor * p->zk[r * p->hidden + i];
  }
}

/* allowed: the frequencies that may be taken, at least `count`, each once; NULL: any, any number of times. */
static kf_status pursue(pursuit *q, int count, const bool *allowed, int threads, kf_channels *out, kf_error *e) {
  int64_t n = q->n, F = q->p->pairs;
  cplx *work;
  KF_NEW(work, 2 * n * F, e);
  start(q);
  for (int c = 0; c < F; c++) q->open[c] = !allowed || allowed[c];
  for (int j = 0; j < count; j++) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int c = 0; c < F; c++) {
      if (!q->open[c]) continue;
      aim(q, c);
      q->gain[c] = strongest(q, c, 40, 1e-5, work + 2 * n * c);
    }
    int best = 0;
    for (int c = 1; c < F; c++)
      if (q->open[c] && (!q->open[best] || q->gain[c] > q->gain[best])) best = c;
    strongest(q, best, 500, 1e-12, work);
    const cplx *u = q->direction + best * n;
    write_channel(q, j, best, u, out);
    take(q, best, u, threads);
    if (allowed) q->open[best] = false;
  }
  free(work);
  return KF_OK;
}

kf_status kf_channels_fold(const kf_rope_problem *p, int count, const bool *allowed, int threads, kf_channels *out, kf_error *e) {
  int64_t n = (int64_t)p->kv_heads * p->pairs;
  pursuit q = {.p = p, .n = n};
  KF_TRY(channels_create(p, count, out, e));
  q.root = kf_alloc((size_t)(n * n), sizeof *q.root, e);
  q.inverse = kf_alloc((size_t)(n * n), sizeof *q.inverse, e);
  q.overlap = kf_alloc((size_t)p->pairs * (size_t)(n * n), sizeof *q.overlap, e);
  q.direction = kf_alloc((size_t)p->pairs * (size_t)n, sizeof *q.direction, e);
  q.gain = kf_alloc((size_t)p->pairs, sizeof *q.gain, e);
  q.weight = kf_alloc((size_t)n, sizeof *q.weight, e);
  q.open = kf_alloc((size_t)p->pairs, sizeof *q.open, e);
  out->t = kf_alloc((size_t)count * (size_t)n, sizeof *out->t, e);
  kf_status s =
      q.root && q.inverse && q.overlap && q.direction && q.gain && q.weight && q.open && out->t ? roots(&q, e) : KF_ERROR_MEMORY;
  if (s == KF_OK) s = pursue(&q, count, allowed, threads, out, e);
  free(q.root);
  free(q.inverse);
  free(q.overlap);
  free(q.direction);
  free(q.gain);
  free(q.weight);
  free(q.open);
  if (s != KF_OK) kf_channels_free(out);
  return s;
}

/* ---------------------------------------------------------------------------------------------- betas */

/* Solves the Hermitian positive system a x = b in place, b [n, m] (Gauss with pivots on the diagonal; a is small). */
static void solve(int64_t n, int64_t m, cplx *a, cplx *b) {
  for (int64_t k = 0; k < n; k++)
    for (int64_t i = k + 1; i < n; i++) {
      cplx factor = a[i * n + k] / a[k * n + k];
      for (int64_t c = k; c < n; c++) a[i * n + c] -= factor * a[k * n + c];
      for (int64_t c = 0; c < m; c++) b[i * m + c] -= factor * b[k * m + c];
    }
  for (int64_t k = n - 1; k >= 0; k--)
    for (int64_t c = 0; c < m; c++) {
      for (int64_t i = k + 1; i < n; i++) b[k * m + c] -= a[k * n + i] * b[i * m + c];
      b[k * m + c] /= a[k * n + k];
    }
}

/* The normal equations over rotations and calibration keys: with P = E[p p^H] and Gram of the rotations of KV head g,
 * sum_j beta_j P_ji gram[th_j, th_i] = gram[f, th_i] E[k_gf conj(p_i)] for every i. The ridge, a part of the channel's own
 * energy, keeps pairs that hardly turn within a window from being taken many times over, against the latents: what is
 * left of such differences in a cache of 16 bits is noise. */
static void fit_pair(const kf_rope_problem *p, const kf_channels *c, const cplx *P, const cplx *cross, int64_t row,
                     const cplx *gram, cplx *a, cplx *b) {
  static const double ridge = 1e-4;
  int F = p->pairs, J = c->count;
  for (int i = 0; i < J; i++) {
    for (int j = 0; j < J; j++) a[i * J + j] = P[j * J + i] * gram[(int64_t)c->frequency[j] * F + c->frequency[i]];
    a[i * J + i] += ridge * creal(P[i * J + i]) + 1e-30;
    b[i] = gram[row % F * F + c->frequency[i]] * cross[row * J + i];
  }
  solve(J, 1, a, b);
}

/* The moments that betas are fitted by: cross [G F, J] E[z conj(p)], P [J, J] E[p p^H]. */
static void channel_moments(const kf_rope_problem *p, const kf_channels *c, cplx *cross, cplx *P) {
  int64_t n = (int64_t)p->kv_heads * p->pairs, J = c->count;
  product(n, J, n, p->moment, c->t, cross);
  for (int64_t i = 0; i < J; i++)
    for (int64_t j = 0; j < J; j++) {
      P[i * J + j] = 0;
      for (int64_t r = 0; r < n; r++) P[i * J + j] += c->t[i * n + r] * cross[r * J + j];
    }
}

/* Each query head's betas, fitted to all channels together. a [J, J], b [J]: room. */
static void fit_betas(const kf_rope_problem *p, const cplx *cross, const cplx *P, cplx *a, cplx *b, kf_channels *c) {
  int F = p->pairs, group = p->heads / p->kv_heads;
  for (int64_t row = 0; row < p->heads * F; row++) {
    int64_t h = row / F, r = h / group * F + row % F;
    fit_pair(p, c, P, cross, r, p->head_gram + h * F * F, a, b);
    memcpy(c->beta + row * c->count, b, (size_t)c->count * sizeof *b);
  }
}

/* The channels that serve these betas best. With the betas fixed the loss is quadratic in t, and E[z z^H] stands on both sides:
 * sum_j A_ij t_j = B_i, A_ij = sum_hf q_hf conj(beta_hfi) beta_hfj gram_h[th_j, th_i], B_i,gf = sum_h q_hf conj(beta_hfi) gram_h[f, th_i]. */
static void move_channels(const kf_rope_problem *p, cplx *a, kf_channels *c) {
  int F = p->pairs, J = c->count, group = p->heads / p->kv_heads;
  int64_t n = (int64_t)p->kv_heads * F;
  memset(a, 0, (size_t)(J * J) * sizeof *a);
  memset(c->t, 0, (size_t)(J * n) * sizeof *c->t);
  for (int64_t row = 0; row < p->heads * F; row++) {
    int64_t h = row / F, f = row % F;
    const cplx *beta = c->beta + row * J, *gram = p->head_gram + h * F * F;
    const cplx *query = p->query + row * F;
    for (int i = 0; i < J; i++) {
      int at = c->frequency[i];
      cplx own = 0;
      for (int o = 0; o < F; o++) own += query[o] * conj(c->beta[(h * F + o) * J + i]);
      c->t[i * n + h / group * F + f] += own * gram[f * F + at];
      for (int j = 0; j < J; j++) a[i * J + j] += own * beta[j] * gram[c->frequency[j] * F + at];
    }
  }
  for (int i = 0; i < J; i++) a[i * J + i] = a[i * J + i] * (1 + 1e-6) + 1e-30;
  solve(J, n, a, c->t);
}

kf_status kf_channels_prefix(const kf_rope_problem *p, const kf_channels *from, int count, kf_channels *out, kf_error *e) {
  static const int sweeps = 20;
  int64_t n = (int64_t)p->kv_heads * p->pairs, J = count;
  KF_TRY(channels_create(p, count, out, e));
  cplx *cross = kf_alloc((size_t)(n * J), sizeof *cross, e), *P = kf_alloc((size_t)(J * J), sizeof *P, e);
  cplx *a = kf_alloc((size_t)(J * J), sizeof *a, e), *b = kf_alloc((size_t)J, sizeof *b, e);
  out->t = kf_alloc((size_t)(J * n), sizeof *out->t, e);
  kf_status s = cross && P && a && b && out->t ? KF_OK : KF_ERROR_MEMORY;
  if (s == KF_OK) {
    memcpy(out->frequency, from->frequency, (size_t)J * sizeof *out->frequency);
    memcpy(out->t, from->t, (size_t)(J * n) * sizeof *out->t);
    for (int sweep = 0;; sweep++) {
      channel_moments(p, out, cross, P);
      fit_betas(p, cross, P, a, b, out);
      if (sweep == sweeps) break;
      move_channels(p, a, out);
    }
    for (int64_t j = 0; j < J; j++)
      for (int64_t r = 0; r < n; r++)
        for (int i = 0; i < p->hidden; i++) out->u[j * p->hidden + i] += out->t[j * n + r] * p->zk[r * p->hidden + i];
  }
  free(cross);
  free(P);
  free(a);
  free(b);
  if (s != KF_OK) kf_channels_free(out);
  return s;
}
