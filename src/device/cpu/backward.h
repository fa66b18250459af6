/* Row kernels of the backward operations that differ by instruction set: one table each, as in kernels.h. */
#ifndef KF_CPU_BACKWARD_H
#define KF_CPU_BACKWARD_H

#include "device/device.h"

/* Two rows of logits and what is known of them: log q = factor x - x_lse, log p = factor r - r_lse. */
typedef struct kf_row_pair {
  const float *x, *r; /* student, teacher; [n] */
  float factor;       /* 1 / temperature */
  double x_lse, r_lse;
  int64_t n;
} kf_row_pair;

typedef struct kf_backward_kernels {
  /* y (+)= inverse w dy - x inverse^3 / n sum(dy w x); dw (NULL: not wanted) += dy x inverse. y may be dy. */
  void (*norm)(float *y, float *dw, const float *dy, const float *x, const float *w, float inverse, int64_t n, bool add);
  void (*swiglu_forward)(float *y, const float *gate, const float *up, int64_t n);
  void (*swiglu)(float *d_gate, float *d_up, const float *dy, const float *gate, const float *up, int64_t n);
  /* One key against 64 queries: p = e^(scale s - lse) in s, p (dp - delta) scale in dp; both 0 outside [low, high). */
  void (*scores)(float *s, float *dp, const float *lse, const float *delta, float scale, int low, int high);
  float (*dot)(const float *x, const float *y, int64_t n);
  double (*sum_exp)(const float *x, float most, float factor, int64_t n); /* of e^(factor (x - most)) */
  /* x = a e^(x - lse). */
  void (*softmax)(float *x, float a, float lse, int64_t n);
  /* KL(p || q), KL(q || p), or KL(p || m) with KL(q || m) in *other. */
  double (*divergence)(kf_divergence kind, const kf_row_pair *rows, double *other);
  /* y = a softmax(x) + b x gradient of the divergence by log q; `divergence` and other as that function gave them. y may be x. */
  void (*gradient)(kf_divergence kind, const kf_row_pair *rows, float *y, float a, float lse, float b, double divergence,
                   double other);
  void (*adamw)(const kf_adamw *o, float *w, float *first, float *second, const float *gradient, int64_t n);
} kf_backward_kernels;

extern const kf_backward_kernels kf_backward_portable;
#if defined(__x86_64__)
extern const kf_backward_kernels kf_backward_avx2, kf_backward_avx512;
#endif

#endif
