/* Calibration text that the model writes itself. */
#ifndef KF_CONVERT_SELF_SAMPLES_H
#define KF_CONVERT_SELF_SAMPLES_H

#include "convert/corpus_windows.h"

enum { KF_SAMPLE_WINDOW = 512 };

/* `tokens` tokens (whole windows, rounded up) of the model at a located path, in windows of KF_SAMPLE_WINDOW or its context:
 * after BOS, or a token drawn evenly from the vocabulary where the tokenizer puts none, each is drawn from the model's own
 * distribution; after an end of text a window goes on with another such token. The same model, threads and compute give the
 * same text. The whole model is in memory meanwhile. t: its tokenizer; options: compute, threads, hooks. */
kf_status kf_corpus_sample(const char *path, const kf_tokenizer *t, const kf_convert_options *o, int64_t tokens, kf_corpus *out,
                           kf_error *e);

#endif
