/* Any bytes as a GGUF file: refused with a sentence, or every tensor decodes and every key reads. */
#include <stdlib.h>

#include "tensor/gguf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_tensor(const kf_view *v) {
  float out[256];
  size_t block = (size_t)kf_dtype_block(v->dtype), bytes = (size_t)kf_dtype_block_bytes(v->dtype);
  if (!kf_dtype_is_float(v->dtype)) return;
  for (size_t at = 0; at < v->bytes; at += bytes) kf_to_f32(v->dtype, v->data + at, out, block);
}

static void read_key(const kf_gguf *g, const char *key) {
  int64_t i = 0;
  double r = 0;
  const char *s = "";
  size_t bytes;
  kf_gguf_int(g, key, &i, NULL);
  kf_gguf_real(g, key, &r, NULL);
  kf_gguf_string(g, key, &s, NULL);
  int64_t count = kf_gguf_array(g, key);
  for (int64_t k = 0; k < count; k++) {
    kf_gguf_array_int(g, key, k, &i);
    kf_gguf_array_real(g, key, k, &r);
    s = kf_gguf_array_string(g, key, k, &bytes);
    if (s && s[bytes]) abort();
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const char *const keys[] = {"general.architecture", "general.alignment", "tokenizer.ggml.tokens",
                                     "tokenizer.ggml.scores", "k"};
  kf_error e = {0};
  kf_gguf *g;
  if (kf_gguf_parse("fuzz", data, size, &g, &e) != KF_OK) {
    if (!e.message[0] || g) abort();
    return 0;
  }
  for (int i = 0; i < kf_gguf_count(g); i++) {
    const kf_view *v = kf_gguf_at(g, i);
    if (kf_gguf_find(g, v->name) != v) abort();
    read_tensor(v);
  }
  for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) read_key(g, keys[i]);
  kf_gguf_close(g);
  return 0;
}
