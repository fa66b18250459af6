/* From logits to a token. */
#ifndef KF_MODEL_SAMPLING_H
#define KF_MODEL_SAMPLING_H

#include "model/model.h"

typedef struct kf_candidate {
  float logit;
  int32_t id;
} kf_candidate;

/* A token of the distribution that logits [n] (overwritten) have under o's temperature, then top-k, then top-p; r, of [0, 1),
 * says which. list: [n] work space. */
int32_t kf_sample_token(float *logits, int n, const kf_generate_options *o, double r, kf_candidate *list);

/* An end of text, by the configuration or by the tokenizer (NULL allowed). */
bool kf_token_ends(const kf_config *c, const kf_tokenizer *t, int32_t id);

#endif
