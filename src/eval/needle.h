/* Needle in a haystack: a sentence that holds a random number stands somewhere in a text; at the end the number is asked for. */
#ifndef KF_EVAL_NEEDLE_H
#define KF_EVAL_NEEDLE_H

#include "model/model.h"

typedef struct kf_needle {
  int context;    /* tokens that the model reads in all: BOS, text, needle, question and answer */
  int depth;      /* place of the needle in the text, per cent: 0 begins it, 100 ends it */
  double logprob; /* mean log-probability of the right number's tokens, each after those before it, nats */
  bool found;     /* whether greedy continuation of the question is the number */
} kf_needle;

/* Fills logprob and found. haystack: tokens of a text, at least `context` of them; bos: -1 for none. The number follows from
 * context and depth alone. Errors: a context that is too short for the question, or longer than the haystack. */
kf_status kf_needle_run(kf_model *m, const kf_tokenizer *t, const kf_ids *haystack, int32_t bos, kf_needle *needle, kf_error *e);

#endif
