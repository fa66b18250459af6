/* Plain references of the training operations. */
#include <math.h>
#include <stdlib.h>

#include "device/reference.h"

void kf_reference_matrix_backward(float *dx, float *dw, float *dbias, const float *dy, const float *x, const float *w, int64_t m,
                                  int64_t n, int64_t k, bool add) {
  for (int64_t i = 0; dx && i < m; i++) {
    for (int64_t l = 0; l < k; l++) {
      double sum = add ? dx[i * k + l] : 0;
      for (int64_t j = 0; j < n; j++) sum += (double)dy[i * n + j] * w[j * k + l];
      dx[i * k + l] = (float)sum;
    }
  }
  for (int64_t j = 0; j < n; j++) {
    double bias = 0;
    for (int64_t i = 0; i < m; i++) bias += dy[i * n + j];
    if (dbias) dbias[j] = (float)(dbias[j] + bias);
    for (int64_t l = 0; dw && l < k; l++) {
      double sum = dw[j * k + l];
      for (int64_t i = 0; i < m; i++) sum += (double)dy[i * n + j] * x[i * k + l];
      dw[j * k + l] = (float)sum;
    }
  }
}

void kf_reference_rmsnorm_backward(float *dx, float *dw, const float *dy, const float *x, const float *w, int64_t m, int64_t n,
                                   float eps, bool add) {
  for (int64_t i = 0; i < m; i++) {
    double squares = 0, back = 0;
    for (int64_t j = 0; j < n; j++) {
      squares += (double)x[i * n + j] * x[i * n + j];
      back += (double)dy[i * n + j] * w[j] * x[i * n + j];
    }
    double inverse = 1 / sqrt(squares / (double)n + eps);
    back *= inverse * inverse * inverse / (double)n;
    for (int64_t j = 0; j < n; j++) {
      double dy_j = dy[i * n + j];
      if (dw) dw[j] = (float)(dw[j] + dy_j * x[i * n + j] * inverse);
      dx[i * n + j] = (float)((add ? dx[i * n + j] : 0) + inverse * w[j] * dy_j - x[i * n + j] * back);
    }
  }
}

void kf_reference_head_norm_backward(float *dx, int64_t dx_stride, float *dw, const float *x, int64_t x_stride, int64_t m,
                                     int heads, int n, const float *w, int w_heads, float eps) {
  for (int64_t i = 0; i < m; i++) {
    for (int h = 0; h < heads; h++) {
      int64_t row = (int64_t)(h / (heads / w_heads)) * n;
      float *to = dx + i * dx_stride + (int64_t)h * n;
      kf_reference_rmsnorm_backward(to, dw ? dw + row : NULL, to, x + i * x_stride + (int64_t)h * n, w + row, 1, n, eps, false);
    }
  }
}

/* Probabilities of query t of one head over keys *first .. t; returns the log-sum-exp. */
static double probabilities(const kf_attention_shape *s, const kf_attention_pass *a, int64_t t, int head, double *p,
                            int64_t *first) {
  int g = head / (s->heads / s->kv_heads);
  double most = -INFINITY, sum = 0;
  *first = s->window > 0 && t >= s->window ? t - s->window + 1 : 0;
  for (int64_t key = *first; key <= t; key++) {
    double score = 0;
    for (int j = 0; j < s->d_qk; j++)
      score += (double)a->q[t * a->q_stride + (int64_t)head * s->d_qk + j] * a->k[key * a->k_stride + (int64_t)g * s->d_qk + j];
    p[key] = score * s->scale;
    most = fmax(most, p[key]);
  }
  for (int64_t key = *first; key <= t; key++) sum += p[key] = exp(p[key] - most);
  for (int64_t key = *first; key <= t; key++) p[key] /= sum;
  return most + log(sum);
}

kf_status kf_reference_attention_forward(const kf_attention_shape *s, const kf_attention_pass *a, kf_error *e) {
  double *p;
  int64_t first;
  KF_NEW(p, a->m, e);
  for (int64_t t = 0; t < a->m; t++) {
    for (int h = 0; h < s->heads; h++) {
      a->lse[t * s->heads + h] = (float)probabilities(s, a, t, h, p, &first);
      for (int j = 0; j < s->d_v; j++) {
        double sum = 0;
        for (int64_t key = first; key <= t; key++)
          sum += p[key] * a->v[key * a->v_stride + (int64_t)(h / (s->heads / s->kv_heads)) * s->d_v + j];
        a->out[(t * s->heads + h) * s->d_v + j] = (float)sum;
      }
    }
  }
  free(p);
  return KF_OK;
}

/* Sums of one backward in fp64: dq, dk, dv with rows of all heads side by side. */
typedef struct sums {
  double *p, *dp, *dq, *dk, *dv;
} sums;

static void backward_row(const kf_attention_shape *s, const kf_attention_pass *a, int64_t t, int h, sums *z) {
  int64_t first, g = h / (s->heads / s->kv_heads), q_width = (int64_t)s->heads * s->d_qk,
                 k_width = (int64_t)s->kv_heads * s->d_qk, v_width = (int64_t)s->kv_heads * s->d_v;
  const float *d_out = a->d_out + (t * s->heads + h) * s->d_v;
  double delta = 0;
  probabilities(s, a, t, h, z->p, &first);
  for (int64_t key = first; key <= t; key++) {
    z->dp[key] = 0;
    for (int j = 0; j < s->d_v; j++) {
      z->dp[key] += (double)d_out[j] * a->v[key * a->v_stride + g * s->d_v + j];
      z->dv[key * v_width + g * s->d_v + j] += z->p[key] * d_out[j];
    }
    delta += z->p[key] * z->dp[key];
  }
  for (int64_t key = first; key <= t; key++) {
    double ds = s->scale * z->p[key] * (z->dp[key] - delta);
    for (int j = 0; j < s->d_qk; j++) {
      z->dq[t * q_width + (int64_t)h * s->d_qk + j] += ds * a->k[key * a->k_stride + g * s->d_qk + j];
      z->dk[key * k_width + g * s->d_qk + j] += ds * a->q[t * a->q_stride + (int64_t)h * s->d_qk + j];
    }
  }
}

static void write_back(float *to, int64_t stride, const double *from, int64_t m, int64_t n) {
  for (int64_t t = 0; t < m; t++)
    for (int64_t j = 0; j < n; j++) to[t * stride + j] = (float)from[t * n + j];
}

kf_status kf_reference_attention_backward(const kf_attention_shape *s, const kf_attention_pass *a, kf_error *e) {
  int64_t q_width = (int64_t)s->heads * s->d_qk, k_width = (int64_t)s->kv_heads * s->d_qk,
          v_width = (int64_t)s->kv_heads * s->d_v;
  double *memory;
  KF_NEW(memory, a->m * (2 + q_width + k_width + v_width), e);
  sums z = {.p = memory, .dp = memory + a->m, .dq = memory + 2 * a->m};
  z.dk = z.dq + a->m * q_width;
  z.dv = z.dk + a->m * k_width;
  for (int64_t t = 0; t < a->m; t++)
    for (int h = 0; h < s->heads; h++) backward_row(s, a, t, h, &z);
  write_back(a->dq, a->q_stride, z.dq, a->m, q_width);
  write_back(a->dk, a->k_stride, z.dk, a->m, k_width);
  write_back(a->dv, a->v_stride, z.dv, a->m, v_width);
  free(memory);
  return KF_OK;
}

void kf_reference_swiglu_backward(float *d_gate_up, const float *dy, const float *gate_up, int64_t m, int64_t f) {
  for (int64_t i = 0; i < m; i++) {
    for (int64_t j = 0; j < f; j++) {
      double gate = gate_up[i * 2 * f + j], up = gate_up[i * 2 * f + f + j], d = dy[i * f + j], s = 1 / (1 + exp(-gate));
      d_gate_up[i * 2 * f + j] = (float)(d * up * s * (1 + gate * (1 - s)));
      d_gate_up[i * 2 * f + f + j] = (float)(d * gate * s);
    }
  }
}

/* log softmax(x / temperature) */
static void log_softmax(double *to, const float *x, double temperature, int64_t v) {
  double most = -INFINITY, sum = 0;
  for (int64_t j = 0; j < v; j++) most = fmax(most, x[j] / temperature);
  for (int64_t j = 0; j < v; j++) sum += exp(x[j] / temperature - most);
  for (int64_t j = 0; j < v; j++) to[j] = x[j] / temperature - most - log(sum);
}

/* D of log-probabilities p and q, and its gradient by q's logits. */
static double divergence_of(kf_divergence kind, const double *p, const double *q, double *gradient, int64_t v) {
  double first = 0, second = 0;
  for (int64_t j = 0; j < v; j++) {
    double mean = kind == KF_JENSEN_SHANNON ? log((exp(p[j]) + exp(q[j])) / 2) : 0;
    first += kind == KF_REVERSE_KL ? exp(q[j]) * (q[j] - p[j]) : exp(p[j]) * (p[j] - (kind == KF_FORWARD_KL ? q[j] : mean));
    if (kind == KF_JENSEN_SHANNON) second += exp(q[j]) * (q[j] - mean);
    gradient[j] = kind == KF_FORWARD_KL ? exp(q[j]) - exp(p[j]) : q[j] - (kind == KF_REVERSE_KL ? p[j] : mean);
  }
  for (int64_t j = 0; kind != KF_FORWARD_KL && j < v; j++)
    gradient[j] = exp(q[j]) * (kind == KF_REVERSE_KL ? gradient[j] - first : (gradient[j] - second) / 2);
  return kind == KF_JENSEN_SHANNON ? (first + second) / 2 : first;
}

kf_status kf_reference_softmax_loss(const kf_softmax_loss *l, float *logits, const float *teacher, const int32_t *target,
                                    const float *weight, int64_t m, int64_t v, double *nll, double *divergence, kf_error *e) {
  double *p;
  KF_NEW(p, 4 * v, e);
  double *q = p + v, *plain = q + v, *gradient = plain + v;
  for (int64_t i = 0; i < m; i++) {
    float *x = logits + i * v;
    bool distils = teacher && l->kl != 0;
    log_softmax(plain, x, 1, v);
    nll[i] = weight[i] != 0 ? -plain[target[i]] : 0;
    divergence[i] = 0;
    if (distils) {
      log_softmax(q, x, l->temperature, v);
      log_softmax(p, teacher + i * v, l->temperature, v);
      double d = divergence_of(l->divergence, p, q, gradient, v);
      divergence[i] = weight[i] != 0 ? d : 0;
    }
    for (int64_t j = 0; j < v; j++)
      x[j] = (float)(weight[i] *
                     (l->ce * (exp(plain[j]) - (j == target[i])) + (distils ? l->kl * l->temperature * gradient[j] : 0)));
  }
  free(p);
  return KF_OK;
}

void kf_reference_adamw(const kf_adamw *o, float *w, float *first, float *second, const float *gradient, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    double g = (double)gradient[i] * o->scale, a = o->beta1 * (double)first[i] + (1 - (double)o->beta1) * g,
           b = o->beta2 * (double)second[i] + (1 - (double)o->beta2) * g * g;
    first[i] = (float)a;
    second[i] = (float)b;
    w[i] = (float)(w[i] - o->rate * (a / o->correction1 / (sqrt(b / o->correction2) + o->eps) + o->decay * (double)w[i]));
  }
}
