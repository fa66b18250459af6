/* Plain references of the device table: simple loops, fp64 sums, f32 (or bf16) in memory. They are what the fast
 * operations are compared with; arguments are those of device.h, less the device. */
#ifndef KF_DEVICE_REFERENCE_H
#define KF_DEVICE_REFERENCE_H

#include "device/device.h"

/* w: [n, k] */
void kf_reference_linear(float *y, const float *x, const float *w, const float *bias, int64_t m, int64_t n, int64_t k, bool add);
/* norm: [k] */
kf_status kf_reference_norm_linear(float *y, const float *x, const float *norm, float eps, const float *w, const float *bias,
                                   int64_t m, int64_t n, int64_t k, kf_error *e);
kf_status kf_reference_swiglu_linear(float *y, const float *gate_up, const float *w, const float *bias, int64_t m, int64_t n,
                                     int64_t k, kf_error *e);
void kf_reference_rmsnorm(float *y, const float *x, const float *w, int64_t m, int64_t n, float eps);
void kf_reference_head_norm(float *x, int64_t m, int64_t stride, int heads, int n, const float *w, int w_heads, float eps);
void kf_reference_rope(float *x, int64_t m, int64_t stride, const kf_rope_block *blocks, int block_count, const float *cos,
                       const float *sin, int table_pairs, const int32_t *position);
void kf_reference_store(const kf_rows *rows, int64_t at, int64_t m, int64_t column, int64_t n, const float *x, int64_t stride);
void kf_reference_fetch(float *y, int64_t stride, const kf_rows *rows, int64_t at, int64_t m, int64_t column, int64_t n);
kf_status kf_reference_attention(const kf_attention_shape *shape, const kf_attention *sequences, int count, kf_error *e);
kf_status kf_reference_latent_attention(const kf_latent_shape *shape, const kf_latent_attention *sequences, int count,
                                        kf_error *e);
/* w: [*, rank] */
void kf_reference_head_transposed(float *y, const float *x, int64_t m, int heads, int x_stride, const float *w, int rank,
                                  const kf_head_rows *rows, int kv_heads);
void kf_reference_head_times(float *y, int y_stride, const float *x, int64_t m, int heads, const float *w, int rank,
                             const kf_head_rows *rows, int kv_heads, const float *bias);
void kf_reference_cross_entropy(const float *logits, const int32_t *target, int64_t m, int64_t v, double *nll, int32_t *best);
void kf_reference_divergence(const float *reference, const float *logits, int64_t m, int64_t v, double *kl, double *difference);

#endif
