/* The fold method: statistics, choice of variant on held-out calibration text, and conversion layer by layer. */
#ifndef KF_CONVERT_FOLD_H
#define KF_CONVERT_FOLD_H

#include "convert/fold_stream.h"

typedef struct kf_fold kf_fold;

/* Cuts the calibration text into windows (four of five to calibrate on, the fifth to choose by), runs them through the source once, converts
 * every layer in each variant that the settings leave open, and keeps the one whose next-token distribution is nearest
 * (KL on the windows held out). scratch: a file for the statistics, removed by kf_fold_free. */
kf_status kf_fold_create(const kf_plan *p, const kf_tokenizer *t, const kf_convert_options *o, int64_t tokens,
                         const char *scratch, kf_fold **out, kf_error *e);
void kf_fold_free(kf_fold *f);
/* The layers in order: what replaces the attention of each, output projection included when it was refitted. */
kf_status kf_fold_next(kf_fold *f, int layer, kf_mapped *out, kf_error *e);
/* What was chosen, into the recipe: {"rope_pairs", "selection", "candidates": [...]}. */
json_t *kf_fold_record(const kf_fold *f);

#endif
