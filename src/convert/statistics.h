/* Scores of rotary pairs from calibration text (MHA2MLA's 2-norm): the tokens pass through the model one layer at a time.
 *
 * With n_q[h, k] and n_k[g, k] the mean length over tokens of pair k of query head h and KV head g (before the rotation,
 * which keeps it; after the q/k norms where a model has them), the score of pair k in KV head g is the sum over its query
 * heads of n_q n_k (product, the paper) or n_q + n_k (sum, its first code). */
#ifndef KF_CONVERT_STATISTICS_H
#define KF_CONVERT_STATISTICS_H

#include "convert/plan.h"

typedef struct kf_calibration kf_calibration;

/* Cuts the text into windows, the last of which may be shorter. p and corpus are borrowed. Errors: memory. */
kf_status kf_calibration_create(const kf_plan *p, const kf_corpus *corpus, kf_calibration **out, kf_error *e);
void kf_calibration_free(kf_calibration *c);
/* Runs all tokens through the layers up to this one; layers must be asked for in ascending order. scores: [kv_heads, d_qk / 2]. */
kf_status kf_calibration_layer(kf_calibration *c, int layer, bool product, double *scores, kf_error *e);

#endif
