/* kf_eval over tokens, with what a report wants beyond its means. */
#ifndef KF_EVAL_EVALUATE_H
#define KF_EVAL_EVALUATE_H

#include "model/model.h"

/* Losses by the place of the predicted token in its window: bin 0 holds places below 32, bin i those of [2^(i+4), 2^(i+5)). */
enum { KF_POSITION_BINS = 27 };
typedef struct kf_positions {
  double nll[KF_POSITION_BINS]; /* sums, nats */
  int64_t tokens[KF_POSITION_BINS];
} kf_positions;
int kf_position_bin(int64_t position);
int64_t kf_position_start(int bin); /* first place of a bin */

/* What stands in front of a window: the BOS token, or -1 for none. Errors: BOS asked of a tokenizer that has none. */
kf_status kf_eval_bos(const kf_tokenizer *t, kf_bos bos, int32_t *out, kf_error *e);
/* Tokens of a window: the option, or the default for the model. */
int64_t kf_eval_window(const kf_model *m, const kf_eval_options *o);

/* The reference's last hidden states, kept from one evaluation for the next by the same text and options: as many of the first
 * rows as fit into KF_KEPT_BYTES. A zeroed one is empty; x is freed by the caller. */
enum { KF_KEPT_BYTES = 256 << 20 };
typedef struct kf_kept {
  float *x; /* [rows, hidden] */
  int64_t rows;
} kf_kept;

/* kf_eval() of a tokenised text. model_at, reference_at: filled unless NULL; kept: used and added to unless NULL. */
kf_status kf_evaluate(kf_model *m, kf_model *reference, const kf_tokenizer *t, const kf_ids *text, const kf_eval_options *o,
                      kf_kept *kept, kf_positions *model_at, kf_positions *reference_at, kf_eval_result *out, kf_error *e);

#endif
