/* One layer in TransMLA's form (arXiv 2502.07864): all KV heads merged into one key, turned so that RoPE stays on a few of its
 * pairs, the rest and the values in one latent. CARE (arXiv 2603.17946) factors the same stack by another moment.
 *
 * RoRoPE: RoPE turns pair f of every KV head by the same angle, so an orthogonal mix of the heads' pairs f, the same for both
 * numbers of a pair, commutes with it; FreqFold takes `freqfold` neighbouring frequencies for one. The mix is the PCA of the
 * keys before the rotation. Of each group the strongest freqfold / collapse channels keep RoPE, collapse = d_qk / rope_dim, at
 * every collapse-th frequency; all others lose it. */
#ifndef KF_CONVERT_JOINT_LATENT_H
#define KF_CONVERT_JOINT_LATENT_H

#include "convert/projections.h"

typedef struct kf_joint_settings {
  int rope_dim, freqfold; /* numbers of the shared RoPE key; d_qk / rope_dim divides freqfold, which divides d_qk / 2 */
  double balance;         /* keys are scaled to `balance` times the values' mean size before the PCA; 0: left alone */
  double shrinkage;       /* part of the inputs' moment that is replaced by a multiple of the identity of the same trace */
  bool code;              /* as TransMLA's code: mix rounded to bf16, the values' size without their first rope_dim columns */
} kf_joint_settings;

typedef struct kf_joint {
  const kf_projections *p;
  int pairs;              /* that keep RoPE; 0 in a layer that does not rotate */
  int32_t *frequency;     /* [pairs] */
  double gain;            /* the rotation's factor on queries and keys, 1 in most models */
  int64_t merged;         /* kv_heads d_qk */
  double *turn;           /* [merged, merged] rows of the turned key: re of the pairs that keep RoPE, im, then the rest */
  int64_t keys, rows;     /* merged - 2 pairs; keys + kv_heads d_v */
  double *stack;          /* [rows, width] keys without RoPE, then values */
  double key_scale;       /* of the keys in the PCA */
  double *basis, *energy; /* [rows, rows] directions, one a row, strongest first; [rows] */
} kf_joint;

/* The latents that a layer can use. */
int kf_joint_most(const kf_attention_config *a, int64_t hidden, int rope_dim);

/* turn_moment, moment: [width, width] of the layer's input (kf_calibrator_moment), for the mix of heads and for the latents. */
kf_status kf_joint_create(const kf_projections *p, const double *turn_moment, const double *moment, const kf_joint_settings *s,
                          int64_t window, kf_joint *out, kf_error *e);
void kf_joint_free(kf_joint *j);
/* Energies of the keys [keys] and of the values [rows - keys] taken by themselves, descending. */
kf_status kf_joint_spectra(const kf_joint *j, const double *moment, double shrinkage, double *key, double *value, kf_error *e);
/* The converted layer with 1 <= rank <= rows latents. */
kf_status kf_joint_map(const kf_joint *j, int rank, kf_mapped *out, kf_error *e);

#endif
