#include "convert/corpus_windows.h"

#include <stdlib.h>

#include "text/tokenizer.h"

kf_status kf_corpus_ids(const kf_tokenizer *t, const kf_convert_options *o, int64_t most, kf_ids *out, kf_error *e) {
  kf_buffer text = {0};
  kf_status s = KF_OK;
  *out = (kf_ids){0};
  /* No vocabulary spells a token in more than a few hundred bytes on average: what is beyond is not tokenised. */
  for (int i = 0; s == KF_OK && i < o->calibration_count && (int64_t)text.bytes < most * 64; i++) {
    kf_text part = {0};
    s = kf_text_read(o->calibration[i], &part, e);
    if (s == KF_OK) s = kf_buffer_add(&text, part.data, part.bytes, e);
    if (s == KF_OK) s = kf_buffer_add(&text, "\n", 1, e);
    kf_text_free(&part);
  }
  size_t bytes = text.bytes < (size_t)most * 64 ? text.bytes : (size_t)most * 64;
  while (bytes < text.bytes && bytes > 0 && ((unsigned char)text.data[bytes] & 0xc0) == 0x80) bytes--;
  if (s == KF_OK) s = kf_tokenizer_encode(t, text.data, bytes, KF_ENCODE_PLAIN, out, e);
  kf_buffer_free(&text);
  if (s == KF_OK && (int64_t)out->count < 2) {
    kf_ids_free(out);
    s = kf_fail(e, KF_ERROR_INPUT, "%s: the calibration text has less than two tokens", o->calibration[0]);
  }
  return s;
}

kf_status kf_corpus_windows(const kf_weights *w, const kf_tokenizer *t, const kf_convert_options *o, int64_t tokens,
                            int64_t window, float **x, int *windows, kf_error *e) {
  int bos = kf_tokenizer_adds_bos(t) && kf_tokenizer_bos(t) >= 0;
  int64_t body = window - bos, hidden = w->config->hidden;
  const kf_view *embedding;
  kf_ids ids;
  KF_TRY(kf_weights_embedding(w, &embedding, e));
  KF_TRY(kf_corpus_ids(t, o, tokens, &ids, e));
  int64_t count = (int64_t)ids.count < tokens ? (int64_t)ids.count : tokens;
  *windows = (int)(count / body);
  kf_status s = KF_OK;
  if (*windows < 5)
    s = kf_fail(e, KF_ERROR_INPUT, "%s: %lld tokens of calibration text are too few; at least %lld are needed", o->calibration[0],
                (long long)count, (long long)(5 * body));
  if (s == KF_OK && !(*x = kf_alloc((size_t)(*windows * window * hidden), sizeof **x, e))) s = KF_ERROR_MEMORY;
  for (int i = 0; i < *windows && s == KF_OK; i++) {
    float *to = *x + i * window * hidden;
    int32_t first = kf_tokenizer_bos(t);
    if (bos) s = kf_embed(w, embedding, &first, 1, to, e);
    if (s == KF_OK) s = kf_embed(w, embedding, ids.data + i * body, body, to + bos * hidden, e);
    if (s != KF_OK) {
      free(*x);
      *x = NULL;
    }
  }
  kf_ids_free(&ids);
  return s;
}
