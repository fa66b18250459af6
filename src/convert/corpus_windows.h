/* Calibration text as token ids, and as windows of embeddings. */
#ifndef KF_CONVERT_CORPUS_WINDOWS_H
#define KF_CONVERT_CORPUS_WINDOWS_H

#include "model/model.h"

typedef struct kf_corpus {
  kf_ids ids;
  int32_t bos;      /* goes in front of every window; -1: none does */
  const char *name; /* of the text, in messages */
} kf_corpus;

/* The first `tokens` tokens of the files, joined by newlines. Errors: a file that cannot be read, less than two tokens. */
kf_status kf_corpus_read(const kf_tokenizer *t, const char *const *files, int count, int64_t tokens, kf_corpus *out, kf_error *e);

enum { KF_SAMPLE_WINDOW = 512 };
/* Text that the model at a located path writes itself (model/self_samples.h): `tokens` tokens (whole windows, rounded up) in
 * windows of KF_SAMPLE_WINDOW or its context. The whole model is in memory meanwhile. t: its tokenizer; o: compute, threads,
 * hooks. */
kf_status kf_corpus_sample(const char *path, const kf_tokenizer *t, const kf_convert_options *o, int64_t tokens, kf_corpus *out,
                           kf_error *e);
kf_corpus kf_corpus_own(const kf_tokenizer *t); /* the same without a token */
void kf_corpus_free(kf_corpus *c);

/* Consecutive whole windows of `window` tokens, BOS included: ids [windows, window], and their embeddings x [windows, window,
 * hidden]; both freed with free(), on errors too. Errors: too little text for `least` windows. */
kf_status kf_corpus_windows(const kf_corpus *c, const kf_weights *w, int64_t window, int least, int32_t **ids, float **x,
                            int *windows, kf_error *e);

#endif
