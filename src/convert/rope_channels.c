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

static void query_moments(const kf_attention_statistics *s, kf_rope_problem *p) {
  int F = p->pairs, n = 2 * F;
  for (int64_t row = 0; row < p->heads * F; row++) {
    const double *re = s->query + (row / F * n + row % F) * n, *im = re + (int64_t)F * n; /* moments with re f, with im f */
    for (int i = 0; i < F; i++) p->query[row * F + i] = CMPLX(re[i] + im[F + i], re[F + i] - im[i]) / (double)s->tokens;
  }
}

/* E e^{-i angle D} of D evenly over [0, length) */
static cplx even_rotation(double angle, int64_t length) {
  cplx step = CMPLX(cos(angle), -sin(angle));
  double whole = angle * (double)length;
  return cabs(1 - step) < 1e-12 ? 1 : (1 - CMPLX(cos(whole), -sin(whole))) / ((1 - step) * (double)length);
}

/* E e^{-i angle D} over a head's distances as calibration text has them, `distance` [window] with sum 1, and a part that lies
 * evenly over contexts of every octave beyond the window, up to the reach: without it coefficients grow that cancel near and go
 * wild where no weight is, and one far token with a wild score takes all attention. */
static cplx rotation(const kf_rope_problem *p, const double *distance, double angle) {
  cplx near = 0, even = 0;
  int octaves = 0;
  for (int64_t t = 0; t < p->window; t++) near += distance[t] * CMPLX(cos(angle * (double)t), -sin(angle * (double)t));
  for (int64_t length = p->reach; length > p->window; length /= 2, octaves++) even += even_rotation(angle, length);
  return octaves ? 0.98 * near + 0.02 / octaves * even : near;
}

/* mean: [F] E e_f; gram: [F, F] E[(e_f - m_f) conj(e_f' - m_f')], e_f = e^{-i theta_f D} */
static void moments(const kf_rope_problem *p, const double *theta, const double *distance, cplx *mean, cplx *gram) {
  int F = p->pairs;
  for (int f = 0; f < F; f++) mean[f] = rotation(p, distance, theta[f]);
  for (int f = 0; f < F; f++)
    for (int i = 0; i < F; i++) gram[f * F + i] = rotation(p, distance, theta[f] - theta[i]) - mean[f] * conj(mean[i]);
}

static kf_status rotations(const kf_attention_statistics *s, const double *theta, kf_rope_problem *p, kf_error *e) {
  int F = p->pairs;
  double *own = kf_alloc((size_t)(p->heads * p->window), sizeof *own, e);
  if (!own) return KF_ERROR_MEMORY;
#pragma omp parallel for
  for (int h = 0; h < p->heads; h++) {
    double sum = 0, *mine = own + h * p->window;
    for (int64_t t = 0; t < p->window; t++) sum += s->distance[h * s->window + t];
    for (int64_t t = 0; t < p->window; t++) mine[t] = sum > 0 ? s->distance[h * s->window + t] / sum : t == 0;
    moments(p, theta, mine, p->mean + h * F, p->gram + h * F * F);
  }
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
  out->query = kf_alloc((size_t)(s->heads * F * F), sizeof *out->query, e);
  out->gram = kf_alloc((size_t)(s->heads * F * F), sizeof *out->gram, e);
  out->moment = kf_alloc((size_t)(n * n), sizeof *out->moment, e);
  kf_status status = out->mean && out->query && out->gram && out->moment ? KF_OK : KF_ERROR_MEMORY;
  if (status == KF_OK) {
    query_moments(s, out);
    status = rotations(s, theta, out, e);
  }
  if (status == KF_OK) status = key_moment(s, out, e);
  if (status != KF_OK) kf_rope_problem_free(out);
  return status;
}

void kf_rope_problem_free(kf_rope_problem *p) {
  free(p->mean);
  free(p->query);
  free(p->gram);
  free(p->moment);
  *p = (kf_rope_problem){0};
}

/* ---------------------------------------------------------------------------------------------- channels */

static kf_status channels_create(const kf_rope_problem *p, int count, kf_channels *out, kf_error *e) {
  *out = (kf_channels){.count = count};
  out->frequency = kf_alloc((size_t)count, sizeof *out->frequency, e);
  out->u = kf_alloc((size_t)count * (size_t)p->hidden, sizeof *out->u, e);
  out->t = kf_alloc((size_t)count * (size_t)p->kv_heads * (size_t)p->pairs, sizeof *out->t, e);
  out->beta = kf_alloc((size_t)p->heads * (size_t)p->pairs * (size_t)count, sizeof *out->beta, e);
  if (out->frequency && out->u && out->t && out->beta) return KF_OK;
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

/* E |p_j|^2, and the same of what queries ask of it, over heads: B_hj = sum_f conj(beta_hfj) q_hf. */
static double key_energy(const kf_rope_problem *p, const kf_channels *c, int64_t j) {
  int64_t n = (int64_t)p->kv_heads * p->pairs;
  const cplx *t = c->t + j * n;
  double sum = 0;
  for (int64_t r = 0; r < n; r++)
    for (int64_t o = 0; o < n; o++) sum += creal(t[r] * p->moment[r * n + o] * conj(t[o]));
  return sum;
}

static double query_energy(const kf_rope_problem *p, const kf_channels *c, int64_t j) {
  int F = p->pairs;
  double sum = 0;
  for (int64_t row = 0; row < p->heads * F; row++)
    for (int o = 0; o < F; o++)
      sum += creal(c->beta[row * c->count + j] * p->query[row * F + o] * conj(c->beta[(row / F * F + o) * c->count + j]));
  return sum / p->heads;
}

/* u_j = t_j Zk. A channel's scale is free between key and query: both get the same energy, so that 16 bits hold either. */
static void place(const kf_rope_problem *p, kf_channels *c) {
  int64_t n = (int64_t)p->kv_heads * p->pairs;
#pragma omp parallel for
  for (int64_t j = 0; j < c->count; j++) {
    double key = key_energy(p, c, j), query = query_energy(p, c, j), scale = key > 0 && query > 0 ? pow(query / key, 0.25) : 1;
    cplx *u = c->u + j * p->hidden;
    memset(u, 0, (size_t)p->hidden * sizeof *u);
    for (int64_t row = 0; row < p->heads * p->pairs; row++) c->beta[row * c->count + j] /= scale;
    for (int64_t r = 0; r < n; r++) {
      cplx factor = c->t[j * n + r] *= scale;
      for (int i = 0; i < p->hidden && factor != 0; i++) u[i] += factor * p->zk[r * p->hidden + i];
    }
  }
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
        sum += creal(p->query[((int64_t)h * F + f) * F + f]) * fmax(1 - size * size, 0);
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
      out->t[((int64_t)j * G + g) * F + f] = conj(y[g]) * D;
      for (int h = g * group; h < (g + 1) * group; h++) out->beta[((int64_t)h * F + f) * count + j] = y[g] / D;
    }
  }
  if (s == KF_OK) place(p, out);
  free(vectors);
  free(lost);
  free(value);
  free(list);
  if (s != KF_OK) kf_channels_free(out);
  return s;
}

/* ---------------------------------------------------------------------------------------------- fold */

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

/* The normal equations over rotations and calibration keys: with P = E[p p^H] and the query head's Gram of rotations,
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
    fit_pair(p, c, P, cross, r, p->gram + h * F * F, a, b);
    memcpy(c->beta + row * c->count, b, (size_t)c->count * sizeof *b);
  }
}

/* The channels that serve these betas best. With the betas fixed the loss is quadratic in t, and E[z z^H] stands on both sides:
 * sum_j A_ij t_j = B_i, A_ij = sum_hf b_hfi beta_hfj gram_h[th_j, th_i], B_i,gf = sum_h b_hfi gram_h[f, th_i], the sum over g's
 * heads, and b_hfi = sum_f' E[conj(q_hf) q_hf'] conj(beta_hf'i). */
static void move_channels(const kf_rope_problem *p, cplx *a, kf_channels *c) {
  int F = p->pairs, J = c->count, group = p->heads / p->kv_heads;
  int64_t n = (int64_t)p->kv_heads * F;
  memset(a, 0, (size_t)(J * J) * sizeof *a);
  memset(c->t, 0, (size_t)(J * n) * sizeof *c->t);
  for (int64_t row = 0; row < p->heads * F; row++) {
    int64_t h = row / F, f = row % F;
    const cplx *beta = c->beta + row * J, *gram = p->gram + h * F * F, *query = p->query + row * F;
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

kf_status kf_channels_fit(const kf_rope_problem *p, kf_channels *c, kf_error *e) {
  static const int sweeps = 20;
  int64_t n = (int64_t)p->kv_heads * p->pairs, J = c->count;
  cplx *cross = kf_alloc((size_t)(n * J), sizeof *cross, e), *P = kf_alloc((size_t)(J * J), sizeof *P, e);
  cplx *a = kf_alloc((size_t)(J * J), sizeof *a, e), *b = kf_alloc((size_t)J, sizeof *b, e);
  kf_status s = cross && P && a && b ? KF_OK : KF_ERROR_MEMORY;
  for (int sweep = 0; sweep <= sweeps && s == KF_OK; sweep++) {
    if (sweep) move_channels(p, a, c);
    channel_moments(p, c, cross, P);
    fit_betas(p, cross, P, a, b, c);
  }
  if (s == KF_OK) place(p, c);
  free(cross);
  free(P);
  free(a);
  free(b);
  return s;
}
