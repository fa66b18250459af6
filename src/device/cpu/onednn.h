/* The only door to oneDNN (2.6 and 3.x): y [m, n] f32 (+)= x [m, k] W^T + bias. */
#ifndef KF_CPU_ONEDNN_H
#define KF_CPU_ONEDNN_H

#include "device/device.h"

typedef struct kf_onednn kf_onednn;

typedef struct kf_onednn_shape {
  int64_t m, n, k;
  kf_dtype type; /* of x and W: KF_F32, KF_BF16 */
  bool panels;   /* W in panels of 64 outputs (kernels.h), else rows [n, k] */
  bool bias, add;
  bool source_transposed;  /* x stands as [k, m] */
  bool weights_transposed; /* W stands as [k, n], not in panels */
} kf_onednn_shape;

kf_status kf_onednn_open(int threads, kf_onednn **out, kf_error *e);
void kf_onednn_close(kf_onednn *o); /* NULL allowed */
/* Creates what a shape needs on its first use and keeps it. */
kf_status kf_onednn_linear(kf_onednn *o, const kf_onednn_shape *shape, float *y, const void *x, const void *w, const float *bias,
                           kf_error *e);

#endif
