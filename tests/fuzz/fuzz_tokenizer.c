/* Any JSON as tokenizer.json: refused with a sentence, or a tokenizer that encodes and decodes; streaming gives UTF-8. */
#include <stdlib.h>

#include "text/tokenizer.h"
#include "text/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void stream(const kf_tokenizer *t, const kf_ids *ids) {
  kf_decoder *d;
  kf_text piece;
  if (kf_decoder_create(t, false, &d, NULL) != KF_OK) return;
  for (size_t i = 0; i < ids->count; i++) {
    if (kf_decoder_push(d, ids->data[i], &piece, NULL) != KF_OK) continue;
    if (kf_utf8_valid(piece.data, piece.bytes) != piece.bytes) abort();
    kf_text_free(&piece);
  }
  if (kf_decoder_finish(d, &piece, NULL) == KF_OK) kf_text_free(&piece);
  kf_decoder_free(d);
}

static void use(const kf_tokenizer *t, const char *text, size_t bytes) {
  kf_error e = {0};
  kf_ids ids;
  kf_text back;
  if (kf_tokenizer_encode(t, text, bytes, KF_ENCODE_SPECIAL, &ids, &e) != KF_OK) {
    if (!e.message[0]) abort();
    return;
  }
  for (size_t i = 0; i < ids.count; i++)
    if (ids.data[i] < 0 || ids.data[i] >= kf_tokenizer_size(t)) abort();
  if (kf_tokenizer_decode(t, ids.data, ids.count, true, &back, &e) == KF_OK) kf_text_free(&back);
  stream(t, &ids);
  kf_ids_free(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const char sentence[] = "Once  upon a t\xc3\xadme, <s>ab 12</s>\n\xe6\x97\xa5 <x> it's\t\xf0\x9f\x98\x80 aaaaaaab";
  const char *json = (const char *)data;
  kf_error e = {0};
  kf_tokenizer *t;
  /* As a whole, and once more as the configuration of a fixed tokenizer. */
  if (kf_tokenizer_parse("fuzz", json, size, NULL, 0, &t, &e) == KF_OK) {
    use(t, sentence, sizeof sentence - 1);
    use(t, json, kf_utf8_valid(json, size < 256 ? size : 256));
    kf_tokenizer_close(t);
  } else if (!e.message[0]) {
    abort();
  }
  static const char fixed[] = "{\"model\":{\"vocab\":{\"<s>\":0,\"a\":1,\"b\":2,\"ab\":3},\"merges\":[\"a b\"]},"
                              "\"added_tokens\":[{\"id\":0,\"content\":\"<s>\",\"special\":true}]}";
  if (kf_tokenizer_parse("fuzz", fixed, sizeof fixed - 1, json, size, &t, NULL) == KF_OK) {
    use(t, sentence, sizeof sentence - 1);
    kf_tokenizer_close(t);
  }
  return 0;
}
