/* fold, second half: one converted layer from the statistics and the rotated channels (docs/METHODS.md). */
#ifndef KF_CONVERT_FOLD_LAYER_H
#define KF_CONVERT_FOLD_LAYER_H

#include "convert/plan.h"
#include "convert/rope_channels.h"

/* The source's attention weights of one layer, f32. */
typedef struct kf_fold_source {
  const kf_attention_config *a;
  int hidden, inputs;     /* inputs: kf_attention_inputs(); the last column of q, k and v is then the bias */
  float *q, *k, *v, *o;   /* [heads d, inputs], [kv_heads d, inputs] twice, [hidden, heads d_v] */
  float *o_bias;          /* [hidden] or NULL */
  float *q_norm, *k_norm; /* [d] weights of the heads' norms, or NULL */
  float eps;
  /* Once settled: the queries and keys that a layer without norms can have, q and k themselves where the source has none. */
  float *q_line, *k_line;
  double complex *zk; /* [kv_heads d / 2, inputs] of k_line */
  double *theta;      /* [d / 2]; zeros in a layer that does not rotate */
} kf_fold_source;
kf_status kf_fold_source_read(const kf_weights *w, int layer, int64_t window, kf_fold_source *out, kf_error *e);
/* In place of a norm, which no linear layer has, each head is scaled by its weights and the factor that serves the scores best on
 * the calibration text: what it loses is what the sizes of a head's queries and keys vary from token to token. */
kf_status kf_fold_source_settle(kf_fold_source *s, const kf_attention_statistics *statistics, kf_error *e);
void kf_fold_source_free(kf_fold_source *s);

/* Converts at a budget of `elements` numbers a token: 2 J rope numbers, the rest latents. key_weight: what an error of the keys
 * counts against one of the values; 1: both as the output errors to which each leads, taken as small and independent. */
kf_status kf_fold_layer_map(const kf_fold_source *source, const kf_attention_statistics *s, const kf_rope_problem *p,
                            const kf_channels *c, int64_t elements, double key_weight, kf_mapped *out, kf_error *e);

/* q_proj or kv_a_proj of a layer so mapped as [rows, inputs], freed by the caller; and back. */
kf_status kf_fold_projection(const kf_fold_source *source, const kf_mapped *m, const char *name, float **out, kf_error *e);
void kf_fold_set_projection(const kf_fold_source *source, kf_mapped *m, const char *name, const float *from);

#endif
