/* What a conversion changes in each layer. */
#ifndef KF_EVAL_LAYER_ERROR_H
#define KF_EVAL_LAYER_ERROR_H

#include "model/model.h"

/* Means over tokens of |student - teacher| / |teacher|, Euclidean norms of a token's vector: every token weighs the same,
 * whatever its size (the first tokens of a text have activations a thousand times as large as all others). */
typedef struct kf_layer_error {
  double attention;  /* output of the attention block (after o_proj), the layer fed with the teacher's hidden states */
  double residual;   /* residual stream behind that layer, fed with the same */
  double cumulative; /* residual stream behind the layer when the student runs on its own */
} kf_layer_error;

/* input: [sequences, length] tokens, each sequence from an empty cache; out: [layers]. Both models have the same layers and
 * hidden size, else KF_ERROR_INPUT. Memory: five times [sequences x length, hidden]. */
kf_status kf_layer_errors(kf_model *teacher, kf_model *student, const int32_t *input, int sequences, int64_t length,
                          const kf_hooks *hooks, kf_layer_error *out, kf_error *e);

#endif
