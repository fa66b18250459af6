/* Calibration text as token ids, and as windows of embeddings. */
#ifndef KF_CONVERT_CORPUS_WINDOWS_H
#define KF_CONVERT_CORPUS_WINDOWS_H

#include "model/model.h"

/* The first `most` tokens or so of the calibration files, joined by newlines. Errors: a file that cannot be read, less than two tokens. */
kf_status kf_corpus_ids(const kf_tokenizer *t, const kf_convert_options *o, int64_t most, kf_ids *out, kf_error *e);
/* Consecutive whole windows, each behind a BOS where the tokenizer puts one. x: [windows, window, hidden], freed with free().
 * Errors: as above, and too little text for five windows. */
kf_status kf_corpus_windows(const kf_weights *w, const kf_tokenizer *t, const kf_convert_options *o, int64_t tokens,
                            int64_t window, float **x, int *windows, kf_error *e);

#endif
