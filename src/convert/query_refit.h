/* fold's query refit: what the queries of a converted layer ask of its keys, fitted to the source's scores.
 *
 * With S the source's scores on its own stream, a = softmax(S), and S' the converted layer's scores on the stream that the
 * converted layers before it give, the query rows theta_h of head h (nope, then rope) minimise
 *   sum_t sum_s a(t, s) (e(t, s) - sum_s' a(t, s') e(t, s'))^2,   e = S - S',
 * since a softmax does not see what is added to all scores of a query. S' is linear in theta_h: conjugate gradients on the
 * normal equations, from the closed form; the step that serves the held-out windows best is kept. */
#ifndef KF_CONVERT_QUERY_REFIT_H
#define KF_CONVERT_QUERY_REFIT_H

#include "convert/fold_layer.h"

typedef struct kf_refit_windows {
  int windows, fit; /* all; the first of them that are fitted on */
  int64_t window;   /* tokens of each */
  /* [windows, window, inputs] what the layer's projections see in the source and in the converted model */
  const float *source, *converted;
} kf_refit_windows;

/* Replaces q_proj.weight of a layer that kf_fold_layer_map made; heads whose held-out windows gain nothing keep theirs.
 * Errors: memory; numbers that are not finite. */
kf_status kf_query_refit(const kf_fold_source *source, const kf_attention_probe *probe, const kf_refit_windows *x, int threads,
                         kf_mapped *layer, kf_error *e);

#endif
