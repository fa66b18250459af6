/* What one layer's attention does with calibration text: the moments that fold is computed from (docs/METHODS.md).
 *
 * With a = softmax(S), a2 = softmax(S / 2), o_h(t) = sum_s a_h v(s) and W_o,h the head's columns of the output projection,
 *   w_h(t, s) = a2_h(t, s)^2 |W_o,h (v(s) - o_h(t))|^2
 * is the output error that an error of 1 in the score of key s for query t would cause; the tempering (2) keeps keys that
 * a wrong score would make competitive. q and k are what the scores are made of; where heads are normalised, z is what they are
 * before, times the norm's weights. x is the layer's normed input, with a 1 behind it where projections have biases; q and k
 * are taken before the rotation. */
#ifndef KF_CONVERT_ATTENTION_STATISTICS_H
#define KF_CONVERT_ATTENTION_STATISTICS_H

#include "model/config.h"

typedef struct kf_attention_statistics {
  int heads, kv_heads, d_qk, d_v, hidden, inputs;
  int64_t window, tokens; /* longest distance + 1; tokens seen */
  double weight;          /* sum of w over heads, queries and keys */
  double *distance;       /* [heads, window] sum of w at each t - s */
  double *query;          /* [heads, d_qk, d_qk] sum over t of (sum_s w) q q^T */
  double *key_moment;     /* [inputs, inputs] sum over heads and pairs of w x_s x_s^T */
  double *value_moment;   /* [inputs, inputs] sum of a x_s x_s^T */
  double *overlap;        /* [heads, heads] sum over pairs of a_h a_h' */
  double *norms;          /* [heads, 4] q/k norms: sums of (sum_s w) q.z and |z|^2, over keys of w k.z and |z|^2; else zero */
} kf_attention_statistics;

/* A layer's fixed data: the rotation of every position below window, and |W_o,h v| as |L^T v|. */
typedef struct kf_attention_probe {
  const kf_attention_config *a;
  int64_t window;
  float *cos, *sin;             /* [window, d_qk / 2] */
  float *factor;                /* [heads, d_v, d_v] L */
  const float *q_norm, *k_norm; /* [d_qk] weights, or NULL */
  float eps;
} kf_attention_probe;

/* Numbers that the projections see: the hidden state's, and with biases a constant 1. */
static inline int kf_attention_inputs(const kf_attention_config *a, int hidden) {
  return hidden + (a->q_bias || a->k_bias || a->v_bias);
}

kf_status kf_attention_statistics_create(const kf_attention_config *a, int hidden, int64_t window, kf_attention_statistics *out,
                                         kf_error *e);
void kf_attention_statistics_free(kf_attention_statistics *s);
/* RMSNorm of each of m rows, as the heads of queries and keys take it; inverse [m]: 1 / rms, or NULL. */
void kf_head_rows_norm(int64_t m, int d, const float *weight, float eps, float *x, float *inverse);
/* o: [hidden, heads x d_v]; q_norm and k_norm [d_qk] are borrowed, NULL where there is none */
kf_status kf_attention_probe_create(const kf_attention_config *a, int hidden, int64_t window, const float *o, const float *q_norm,
                                    const float *k_norm, float eps, kf_attention_probe *out, kf_error *e);
void kf_attention_probe_free(kf_attention_probe *p);

/* Adds one window that starts at position 0. x: [m, hidden]; q, k (before their norms), v: rows of `stride` numbers, heads side by
 * side. */
kf_status kf_attention_statistics_add(kf_attention_statistics *s, const kf_attention_probe *p, int64_t m, const float *x,
                                      const float *q, const float *k, const float *v, int64_t stride, int threads, kf_error *e);

#endif
