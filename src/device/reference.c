#include "device/reference.h"

#include <math.h>
#include <stdlib.h>

void kf_reference_linear(float *y, const float *x, const float *w, const float *bias, int64_t m, int64_t n, int64_t k, bool add) {
  for (int64_t i = 0; i < m; i++) {
    for (int64_t j = 0; j < n; j++) {
      double sum = bias ? bias[j] : 0;
      for (int64_t l = 0; l < k; l++) sum += (double)x[i * k + l] * w[j * k + l];
      y[i * n + j] = (float)(add ? y[i * n + j] + sum : sum);
    }
  }
}

static double inverse_rms(const float *x, int64_t n, float eps) {
  double sum = 0;
  for (int64_t j = 0; j < n; j++) sum += (double)x[j] * x[j];
  return 1 / sqrt(sum / (double)n + eps);
}

void kf_reference_rmsnorm(float *y, const float *x, const float *w, int64_t m, int64_t n, float eps) {
  for (int64_t i = 0; i < m; i++) {
    double scale = inverse_rms(x + i * n, n, eps);
    for (int64_t j = 0; j < n; j++) y[i * n + j] = (float)(x[i * n + j] * scale * w[j]);
  }
}

kf_status kf_reference_norm_linear(float *y, const float *x, const float *norm, float eps, const float *w, const float *bias,
                                   int64_t m, int64_t n, int64_t k, kf_error *e) {
  float *h;
  KF_NEW(h, m * k, e);
  kf_reference_rmsnorm(h, x, norm, m, k, eps);
  kf_reference_linear(y, h, w, bias, m, n, k, false);
  free(h);
  return KF_OK;
}

kf_status kf_reference_swiglu_linear(float *y, const float *gate_up, const float *w, const float *bias, int64_t m, int64_t n,
                                     int64_t k, kf_error *e) {
  float *h;
  KF_NEW(h, m * k, e);
  for (int64_t i = 0; i < m; i++) {
    for (int64_t j = 0; j < k; j++) {
      double gate = gate_up[i * 2 * k + j];
      h[i * k + j] = (float)(gate / (1 + exp(-gate)) * gate_up[i * 2 * k + k + j]);
    }
  }
  kf_reference_linear(y, h, w, bias, m, n, k, true);
  free(h);
  return KF_OK;
}

void kf_reference_head_norm(float *x, int64_t m, int64_t stride, int heads, int n, const float *w, int w_heads, float eps) {
  for (int64_t i = 0; i < m; i++) {
    for (int h = 0; h < heads; h++) {
      float *row = x + i * stride + (int64_t)h * n;
      kf_reference_rmsnorm(row, row, w + (int64_t)(h / (heads / w_heads)) * n, 1, n, eps);
    }
  }
}

void kf_reference_rope(float *x, int64_t m, int64_t stride, const kf_rope_block *blocks, int block_count, const float *cos,
                       const float *sin, int table_pairs, const int32_t *position) {
  for (int64_t i = 0; i < m; i++) {
    for (int b = 0; b < block_count; b++) {
      float *first = x + i * stride + blocks[b].offset, *second = first + blocks[b].pairs;
      for (int j = 0; j < blocks[b].pairs; j++) {
        int64_t at = (int64_t)position[i] * table_pairs + (blocks[b].index ? blocks[b].index[j] : j);
        double c = cos[at], s = sin[at], u = first[j], v = second[j];
        first[j] = (float)(u * c - v * s);
        second[j] = (float)(v * c + u * s);
      }
    }
  }
}

static float get(const kf_rows *rows, int64_t token, int64_t column) {
  int64_t at = token % rows->page_tokens * rows->columns + column;
  const void *page = rows->pages[token / rows->page_tokens];
  return rows->dtype == KF_BF16 ? kf_bf16_to_f32(((const uint16_t *)page)[at]) : ((const float *)page)[at];
}

void kf_reference_store(const kf_rows *rows, int64_t at, int64_t m, int64_t column, int64_t n, const float *x, int64_t stride) {
  for (int64_t i = 0; i < m; i++) {
    for (int64_t j = 0; j < n; j++) {
      void *page = rows->pages[(at + i) / rows->page_tokens];
      int64_t to = (at + i) % rows->page_tokens * rows->columns + column + j;
      if (rows->dtype == KF_BF16)
        ((uint16_t *)page)[to] = kf_f32_to_bf16(x[i * stride + j]);
      else
        ((float *)page)[to] = x[i * stride + j];
    }
  }
}

void kf_reference_fetch(float *y, int64_t stride, const kf_rows *rows, int64_t at, int64_t m, int64_t column, int64_t n) {
  for (int64_t i = 0; i < m; i++) {
    for (int64_t j = 0; j < n; j++) y[i * stride + j] = get(rows, at + i, column + j);
  }
}

/* Scores of visible keys -> probabilities, in place. */
static void softmax(double *s, int64_t n) {
  double most = -INFINITY, sum = 0;
  for (int64_t i = 0; i < n; i++) most = fmax(most, s[i]);
  for (int64_t i = 0; i < n; i++) sum += s[i] = exp(s[i] - most);
  for (int64_t i = 0; i < n; i++) s[i] /= sum;
}

/* out[j] = sum over keys first .. first + n of p[key - first] x column + j of its row, j < width. */
static void weigh(float *out, const double *p, const kf_rows *rows, int64_t first, int64_t n, int64_t column, int width) {
  for (int j = 0; j < width; j++) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += p[i] * get(rows, first + i, column + j);
    out[j] = (float)sum;
  }
}

static int64_t first_visible(int64_t position, int64_t window) {
  return window > 0 && position >= window ? position - window + 1 : 0;
}

static double dot_row(const float *q, const kf_rows *rows, int64_t token, int64_t column, int n) {
  double sum = 0;
  for (int j = 0; j < n; j++) sum += (double)q[j] * get(rows, token, column + j);
  return sum;
}

kf_status kf_reference_attention(const kf_attention_shape *shape, const kf_attention *sequences, int count, kf_error *e) {
  int group = shape->heads / shape->kv_heads, d_qk = shape->d_qk, d_v = shape->d_v;
  for (int i = 0; i < count; i++) {
    const kf_attention *a = &sequences[i];
    double *p;
    KF_NEW(p, a->past + a->m, e);
    for (int64_t t = 0; t < a->m; t++) {
      for (int h = 0; h < shape->heads; h++) {
        int64_t first = first_visible(a->past + t, shape->window), n = a->past + t + 1 - first, at = t * shape->heads + h;
        for (int64_t key = 0; key < n; key++)
          p[key] =
              shape->scale * dot_row(a->q + t * a->q_stride + h * d_qk, &a->rows, first + key, (int64_t)(h / group) * d_qk, d_qk);
        softmax(p, n);
        weigh(a->out + at * d_v, p, &a->rows, first, n, (int64_t)shape->kv_heads * d_qk + (int64_t)(h / group) * d_v, d_v);
      }
    }
    free(p);
  }
  return KF_OK;
}

kf_status kf_reference_latent_attention(const kf_latent_shape *shape, const kf_latent_attention *sequences, int count,
                                        kf_error *e) {
  for (int i = 0; i < count; i++) {
    const kf_latent_attention *a = &sequences[i];
    double *p;
    KF_NEW(p, a->past + a->m, e);
    for (int64_t t = 0; t < a->m; t++) {
      for (int h = 0; h < shape->heads; h++) {
        int64_t first = first_visible(a->past + t, shape->window), n = a->past + t + 1 - first, at = t * shape->heads + h;
        int g = h / (shape->heads / shape->kv_heads);
        for (int64_t key = 0; key < n; key++) {
          double s = dot_row(a->q_latent + at * shape->rank, &a->rows, first + key, 0, shape->rank);
          s += dot_row(a->q_rope + at * shape->rope_stride, &a->rows, first + key, shape->rope_offset[g], shape->rope_width[g]);
          if (shape->inverse_rms >= 0) s *= get(&a->rows, first + key, shape->inverse_rms + g);
          p[key] = shape->scale * s;
        }
        softmax(p, n);
        weigh(a->out + at * shape->rank, p, &a->rows, first, n, 0, shape->rank);
      }
    }
    free(p);
  }
  return KF_OK;
}

void kf_reference_head_transposed(float *y, const float *x, int64_t m, int heads, int x_stride, const float *w, int rank,
                                  const kf_head_rows *rows, int kv_heads) {
  for (int64_t i = 0; i < m * heads; i++) {
    kf_head_rows r = rows[i % heads / (heads / kv_heads)];
    for (int c = 0; c < rank; c++) {
      double sum = 0;
      for (int64_t j = 0; j < r.count; j++) sum += (double)x[i * x_stride + j] * w[(r.first + j) * rank + c];
      y[i * rank + c] = (float)sum;
    }
  }
}

void kf_reference_head_times(float *y, int y_stride, const float *x, int64_t m, int heads, const float *w, int rank,
                             const kf_head_rows *rows, int kv_heads, const float *bias) {
  for (int64_t i = 0; i < m * heads; i++) {
    kf_head_rows r = rows[i % heads / (heads / kv_heads)];
    for (int64_t j = 0; j < r.count; j++) {
      double sum = bias ? bias[r.first + j] : 0;
      for (int c = 0; c < rank; c++) sum += (double)w[(r.first + j) * rank + c] * x[i * rank + c];
      y[i * y_stride + j] = (float)sum;
    }
  }
}

static double log_sum_exp(const float *x, int64_t n, int32_t *best) {
  *best = 0;
  for (int64_t j = 1; j < n; j++) {
    if (x[j] > x[*best]) *best = (int32_t)j;
  }
  double sum = 0;
  for (int64_t j = 0; j < n; j++) sum += exp((double)x[j] - x[*best]);
  return log(sum) + x[*best];
}

void kf_reference_cross_entropy(const float *logits, const int32_t *target, int64_t m, int64_t v, double *nll, int32_t *best) {
  for (int64_t i = 0; i < m; i++) nll[i] = log_sum_exp(logits + i * v, v, &best[i]) - logits[i * v + target[i]];
}

void kf_reference_divergence(const float *reference, const float *logits, int64_t m, int64_t v, double *kl, double *difference) {
  for (int64_t i = 0; i < m; i++) {
    const float *r = reference + i * v, *x = logits + i * v;
    int32_t best;
    double lr = log_sum_exp(r, v, &best), lx = log_sum_exp(x, v, &best);
    kl[i] = difference[i] = 0;
    for (int64_t j = 0; j < v; j++) {
      kl[i] += exp(r[j] - lr) * ((r[j] - lr) - (x[j] - lx));
      difference[i] = fmax(difference[i], fabs((double)r[j] - x[j]));
    }
  }
}
