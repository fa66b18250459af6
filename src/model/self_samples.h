/* Text that a model writes itself, many documents side by side. */
#ifndef KF_MODEL_SELF_SAMPLES_H
#define KF_MODEL_SELF_SAMPLES_H

#include "model/model.h"

typedef struct kf_self_options {
  int64_t documents, length; /* length: tokens of a document at most, two or more; BOS is not one of them */
  bool goes_on; /* an end of text is followed by another text, so that all documents have `length` tokens; else a document ends
                   before it */
  kf_generate_options sampling; /* temperature, top_p, top_k, seed */
  const kf_hooks *hooks;
} kf_self_options;

typedef kf_status (*kf_self_visit)(void *user, const int32_t *ids, int64_t count, kf_error *e);

/* Shows documents as they end; of equal lengths they come in order. Each starts from BOS, or with a token drawn evenly from the
 * vocabulary where t's rule adds none. The same model, options, threads and compute give the same documents. */
kf_status kf_self_samples(kf_model *m, const kf_tokenizer *t, const kf_self_options *o, kf_self_visit visit, void *user,
                          kf_error *e);

#endif
