/* Calibration text on its way through a model, one layer in memory at a time: for methods that ask what an attention layer takes
 * in, and how far a converted model has come from its source.
 *
 * Queries, keys and values are affine in a layer's normed input x, so one second moment serves them all: with x' = [x; 1] and
 * W' = [W | bias], E[k k^T] = W_k' E[x' x'^T] W_k'^T. */
#ifndef KF_CONVERT_CALIBRATOR_H
#define KF_CONVERT_CALIBRATOR_H

#include "convert/nearness.h"
#include "convert/plan.h"
#include "model/layer.h"

typedef struct kf_calibrator {
  const kf_config *config;
  const kf_weights *weights;
  kf_device *device;
  kf_run *run;
  int64_t window;       /* tokens */
  int fitted, held_out; /* windows: the first four fifths are fitted on, the last are for choices */
  int32_t *ids;         /* [fitted + held_out, window] */
  float *start;         /* [fitted + held_out, window, hidden] embeddings */
  int index;            /* of the layer that is loaded; -1: none */
  kf_layer layer;
} kf_calibrator;

/* p and corpus are borrowed. Errors: too little text for five windows; memory. */
kf_status kf_calibrator_create(const kf_plan *p, const kf_corpus *corpus, kf_calibrator **out, kf_error *e);
void kf_calibrator_free(kf_calibrator *c);

/* Hidden states before layer 0, freed with free(): of the windows fitted on, or of those held out. */
kf_status kf_calibrator_begin(const kf_calibrator *c, bool held_out, float **x, kf_error *e);
/* Loads a layer of the source in place of the one before. */
kf_status kf_calibrator_load(kf_calibrator *c, int index, kf_error *e);
/* moment [hidden + 1, hidden + 1] = mean over the tokens fitted on of x' x'^T for the loaded layer. Errors: not finite. */
kf_status kf_calibrator_moment(const kf_calibrator *c, const float *x, double *moment, kf_error *e);
/* Runs x through the loaded layer; mapped: a latent layer that takes the place of its attention, or NULL. */
kf_status kf_calibrator_forward(kf_calibrator *c, bool held_out, const kf_mapped *mapped, float *x, kf_error *e);
/* Of `count` models' last hidden states over the windows held out; reference: the source's. */
kf_status kf_calibrator_judge(kf_calibrator *c, const float *reference, float *const *x, int count, kf_nearness *out,
                              kf_error *e);

#endif
