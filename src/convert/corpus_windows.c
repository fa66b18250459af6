#include "convert/corpus_windows.h"

#include <stdlib.h>

#include "text/tokenizer.h"

kf_status kf_corpus_read(const kf_tokenizer *t, const char *const *files, int count, int64_t tokens, kf_corpus *out,
                         kf_error *e) {
  kf_buffer text = {0};
  kf_status s = KF_OK;
  *out = (kf_corpus){.bos = kf_tokenizer_adds_bos(t) ? kf_tokenizer_bos(t) : -1, .name = files[0]};
  /* No vocabulary spells a token in more than a few hundred bytes on average: what is beyond is not tokenised. */
  for (int i = 0; s == KF_OK && i < count && (int64_t)text.bytes < tokens * 64; i++) {
    kf_text part = {0};
    s = kf_text_read(files[i], &part, e);
    if (s == KF_OK) s = kf_buffer_add(&text, part.data, part.bytes, e);
    if (s == KF_OK) s = kf_buffer_add(&text, "\n", 1, e);
    kf_text_free(&part);
  }
  size_t bytes = text.bytes < (size_t)tokens * 64 ? text.bytes : (size_t)tokens * 64;
  while (bytes < text.bytes && bytes > 0 && ((unsigned char)text.data[bytes] & 0xc0) == 0x80) bytes--;
  if (s == KF_OK) s = kf_tokenizer_encode(t, text.data, bytes, KF_ENCODE_PLAIN, &out->ids, e);
  kf_buffer_free(&text);
  if (s == KF_OK && (int64_t)out->ids.count > tokens) out->ids.count = (size_t)tokens;
  if (s == KF_OK && out->ids.count < 2) {
    kf_corpus_free(out);
    s = kf_fail(e, KF_ERROR_INPUT, "%s: the calibration text has less than two tokens", files[0]);
  }
  return s;
}

void kf_corpus_free(kf_corpus *c) {
  kf_ids_free(&c->ids);
}

kf_status kf_corpus_windows(const kf_corpus *c, const kf_weights *w, int64_t window, float **x, int *windows, kf_error *e) {
  int bos = c->bos >= 0;
  int64_t body = window - bos, hidden = w->config->hidden, count = (int64_t)c->ids.count;
  const kf_view *embedding;
  kf_status s = KF_OK;
  *windows = body > 0 ? (int)(count / body) : 0;
  if (*windows < 5)
    return kf_fail(e, KF_ERROR_INPUT, "%s: %lld tokens of calibration text are too few; at least %lld are needed", c->name,
                   (long long)count, (long long)(5 * body));
  KF_TRY(kf_weights_embedding(w, &embedding, e));
  KF_NEW(*x, *windows * window * hidden, e);
  for (int i = 0; i < *windows && s == KF_OK; i++) {
    float *to = *x + i * window * hidden;
    if (bos) s = kf_embed(w, embedding, &c->bos, 1, to, e);
    if (s == KF_OK) s = kf_embed(w, embedding, c->ids.data + i * body, body, to + bos * hidden, e);
  }
  if (s == KF_OK) return KF_OK;
  free(*x);
  *x = NULL;
  return s;
}
