#include "convert/corpus_windows.h"

#include <stdlib.h>
#include <string.h>

#include "model/self_samples.h"
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

static kf_status add_ids(void *user, const int32_t *ids, int64_t count, kf_error *e) {
  return kf_buffer_add(user, ids, (size_t)count * sizeof *ids, e);
}

kf_corpus kf_corpus_own(const kf_tokenizer *t) {
  return (kf_corpus){.bos = kf_tokenizer_adds_bos(t) ? kf_tokenizer_bos(t) : -1, .name = "the model's own text"};
}

kf_status kf_corpus_sample(const char *path, const kf_tokenizer *t, const kf_convert_options *o, int64_t tokens, kf_corpus *out,
                           kf_error *e) {
  kf_model *m;
  kf_buffer ids = {0};
  *out = kf_corpus_own(t);
  KF_TRY(kf_model_open(path, &(kf_model_options){.compute = o->compute, .threads = o->threads}, &m, e));
  int64_t window = m->config.context < KF_SAMPLE_WINDOW ? m->config.context : KF_SAMPLE_WINDOW, body = window - (out->bos >= 0);
  kf_self_options self = {.length = body, .goes_on = true, .sampling.temperature = 1, .hooks = &o->hooks};
  self.documents = body > 0 ? (tokens + body - 1) / body : 0;
  kf_status s = kf_self_samples(m, t, &self, add_ids, &ids, e);
  kf_model_close(m);
  if (s == KF_OK)
    out->ids = (kf_ids){(int32_t *)(void *)ids.data, ids.bytes / sizeof(int32_t)};
  else
    kf_buffer_free(&ids);
  return s;
}

void kf_corpus_free(kf_corpus *c) {
  kf_ids_free(&c->ids);
}

static kf_status cut(const kf_corpus *c, int64_t window, int least, int32_t **ids, int *windows, kf_error *e) {
  int64_t bos = c->bos >= 0, body = window - bos, count = (int64_t)c->ids.count;
  *windows = body > 0 ? (int)(count / body) : 0;
  if (*windows < least)
    return kf_fail(e, KF_ERROR_INPUT, "%s: %lld tokens of calibration text are too few; at least %lld are needed", c->name,
                   (long long)count, (long long)(least * body));
  KF_NEW(*ids, *windows * window, e);
  for (int i = 0; i < *windows; i++) {
    if (bos) (*ids)[i * window] = c->bos;
    memcpy(*ids + i * window + bos, c->ids.data + i * body, (size_t)body * sizeof **ids);
  }
  return KF_OK;
}

kf_status kf_corpus_windows(const kf_corpus *c, const kf_weights *w, int64_t window, int least, int32_t **ids, float **x,
                            int *windows, kf_error *e) {
  const kf_view *embedding;
  KF_TRY(cut(c, window, least, ids, windows, e));
  KF_TRY(kf_weights_embedding(w, &embedding, e));
  KF_NEW(*x, *windows * window * w->config->hidden, e);
  return kf_embed(w, embedding, *ids, *windows * window, *x, e);
}
