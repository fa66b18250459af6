/* The kernels of backward.h, written once in simd.h's vectors and included by one file an instruction set. Loops without
 * vf are those that the compiler turns into vectors by itself. */
#include "device/cpu/backward.h"
#include "device/cpu/simd.h"

/* Sums stay in f32 for so many numbers only, then go to fp64. */
enum { CHUNK = 256 };

static inline vf load_tail(const float *x, int64_t left) {
  return left >= VL ? vf_load(x) : vf_load_n(x, (int)left);
}

static inline void store_tail(float *y, vf a, int64_t left) {
  if (left >= VL)
    vf_store(y, a);
  else
    vf_store_n(y, a, (int)left);
}

static float dot(const float *x, const float *y, int64_t n) {
  vf sum = vf_set(0);
  for (int64_t i = 0; i < n; i += VL) sum = vf_fma(load_tail(x + i, n - i), load_tail(y + i, n - i), sum);
  return vf_sum(sum);
}

static void norm(float *y, float *dw, const float *dy, const float *x, const float *w, float inverse, int64_t n, bool add) {
  vf sum = vf_set(0);
  for (int64_t i = 0; i < n; i += VL)
    sum = vf_fma(load_tail(dy + i, n - i) * load_tail(w + i, n - i), load_tail(x + i, n - i), sum);
  float back = vf_sum(sum) * inverse * inverse * inverse / (float)n;
  for (int64_t i = 0; dw && i < n; i++) dw[i] += dy[i] * x[i] * inverse;
  if (add)
    for (int64_t i = 0; i < n; i++) y[i] += inverse * w[i] * dy[i] - x[i] * back;
  else
    for (int64_t i = 0; i < n; i++) y[i] = inverse * w[i] * dy[i] - x[i] * back;
}

static void swiglu_forward(float *y, const float *gate, const float *up, int64_t n) {
  for (int64_t i = 0; i < n; i += VL) {
    vf g = load_tail(gate + i, n - i);
    store_tail(y + i, g / (vf_set(1) + vf_exp(vf_set(0) - g)) * load_tail(up + i, n - i), n - i);
  }
}

static void swiglu(float *d_gate, float *d_up, const float *dy, const float *gate, const float *up, int64_t n) {
  for (int64_t i = 0; i < n; i += VL) {
    vf g = load_tail(gate + i, n - i), u = load_tail(up + i, n - i), d = load_tail(dy + i, n - i);
    vf s = vf_set(1) / (vf_set(1) + vf_exp(vf_set(0) - g));
    store_tail(d_up + i, d * g * s, n - i);
    store_tail(d_gate + i, d * u * s * vf_fma(g, vf_set(1) - s, vf_set(1)), n - i);
  }
}

static void scores(float *s, float *dp, const float *lse, const float *delta, float scale, int low, int high) {
  for (int i = 0; i < 64; i += VL) {
    vf p = vf_exp(vf_load(s + i) * vf_set(scale) - vf_load(lse + i));
    vf_store(s + i, p);
    vf_store(dp + i, p * (vf_load(dp + i) - vf_load(delta + i)) * vf_set(scale));
  }
  for (int i = 0; i < low; i++) s[i] = dp[i] = 0;
  for (int i = high; i < 64; i++) s[i] = dp[i] = 0;
}

static double sum_exp(const float *x, float most, float factor, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i += CHUNK) {
    int64_t end = n - i < CHUNK ? n : i + CHUNK, j = i;
    vf a = vf_set(0);
    for (; j + VL <= end; j += VL) a = a + vf_exp((vf_load(x + j) - vf_set(most)) * vf_set(factor));
    sum += (double)vf_sum(a);
    for (; j < end; j++) sum += exp(((double)x[j] - (double)most) * (double)factor);
  }
  return sum;
}

static void softmax(float *x, float a, float lse, int64_t n) {
  for (int64_t i = 0; i < n; i += VL) store_tail(x + i, vf_set(a) * vf_exp(load_tail(x + i, n - i) - vf_set(lse)), n - i);
}

static inline vf vf_log(vf a) {
  float part[VL];
  vf_store(part, a);
  for (int i = 0; i < VL; i++) part[i] = logf(part[i]);
  return vf_load(part);
}

/* log((p + q) / 2) of log p and log q. */
static inline vf log_mean(vf p, vf q) {
  return vf_max(p, q) + vf_log((vf_set(1) + vf_exp(vf_set(0) - vf_abs(p - q))) * vf_set(0.5f));
}

/* Log-probabilities of VL numbers; beyond the row both are so small that nothing comes of them. */
static inline void log_both(const kf_row_pair *rows, int64_t i, vf *p, vf *q) {
  int64_t left = rows->n - i;
  float tail_x[VL], tail_r[VL];
  const float *x = rows->x + i, *r = rows->r + i;
  if (left < VL) {
    for (int j = 0; j < VL; j++) {
      tail_x[j] = j < left ? x[j] : ((float)rows->x_lse - 1000) / rows->factor;
      tail_r[j] = j < left ? r[j] : ((float)rows->r_lse - 1000) / rows->factor;
    }
    x = tail_x, r = tail_r;
  }
  *q = vf_load(x) * vf_set(rows->factor) - vf_set((float)rows->x_lse);
  *p = vf_load(r) * vf_set(rows->factor) - vf_set((float)rows->r_lse);
}

static double divergence(kf_divergence kind, const kf_row_pair *rows, double *other) {
  double sum = 0, second = 0;
  for (int64_t i = 0; i < rows->n; i += CHUNK) {
    int64_t end = rows->n - i < CHUNK ? rows->n : i + CHUNK;
    vf a = vf_set(0), b = vf_set(0);
    for (int64_t j = i; j < end; j += VL) {
      vf p, q;
      log_both(rows, j, &p, &q);
      if (kind == KF_JENSEN_SHANNON) {
        vf mean = log_mean(p, q);
        a = vf_fma(vf_exp(p), p - mean, a);
        b = vf_fma(vf_exp(q), q - mean, b);
      } else {
        a = kind == KF_FORWARD_KL ? vf_fma(vf_exp(p), p - q, a) : vf_fma(vf_exp(q), q - p, a);
      }
    }
    sum += (double)vf_sum(a);
    second += (double)vf_sum(b);
  }
  *other = second;
  return sum;
}

/* By log q's logits: forward q - p; reverse q (log q - log p - D); Jensen-Shannon q (log q - log m - KL(q || m)) / 2. */
static void gradient(kf_divergence kind, const kf_row_pair *rows, float *y, float a, float lse, float b, double divergence,
                     double other) {
  for (int64_t i = 0; i < rows->n; i += VL) {
    int64_t left = rows->n - i;
    vf p, q, g, x = load_tail(rows->x + i, left);
    log_both(rows, i, &p, &q);
    if (kind == KF_FORWARD_KL)
      g = vf_exp(q) - vf_exp(p);
    else if (kind == KF_REVERSE_KL)
      g = vf_exp(q) * (q - p - vf_set((float)divergence));
    else
      g = vf_set(0.5f) * vf_exp(q) * (q - log_mean(p, q) - vf_set((float)other));
    g = g * vf_set(b);
    if (a != 0) g = vf_fma(vf_set(a), vf_exp(x - vf_set(lse)), g);
    store_tail(y + i, g, left);
  }
}

static void adamw(const kf_adamw *o, float *restrict w, float *restrict first, float *restrict second,
                  const float *restrict gradient_, int64_t n) {
  float size = o->rate / o->correction1, root = 1 / sqrtf(o->correction2), keep = 1 - o->rate * o->decay;
  for (int64_t i = 0; i < n; i++) {
    float g = gradient_[i] * o->scale;
    first[i] = o->beta1 * first[i] + (1 - o->beta1) * g;
    second[i] = o->beta2 * second[i] + (1 - o->beta2) * g * g;
    w[i] = keep * w[i] - size * first[i] / (sqrtf(second[i]) * root + o->eps);
  }
}

#define KF_BACKWARD_KERNELS \
  { norm, swiglu_forward, swiglu, scores, dot, sum_exp, softmax, divergence, gradient, adamw }
