/* Any bytes as a safetensors file: refused with a sentence, or every tensor lies inside them. Input that begins with '{' is
 * a header up to its last '}' and data behind it: its length is put in front, so that headers may change their size. */
#include <stdlib.h>
#include <string.h>

#include "tensor/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void parse(const uint8_t *data, size_t size) {
  kf_error e = {0};
  kf_safetensors *s;
  if (kf_safetensors_parse("fuzz", data, size, &s, &e) != KF_OK) {
    if (!e.message[0] || s) abort();
    return;
  }
  volatile uint8_t sum = 0; // keeps the reads
  for (int i = 0; i < kf_safetensors_count(s); i++) {
    const kf_view *v = kf_safetensors_at(s, i);
    if (kf_safetensors_find(s, v->name) != v) abort();
    for (size_t k = 0; k < v->bytes; k++) sum ^= v->data[k];
  }
  (void)sum;
  kf_safetensors_metadata(s, "format");
  kf_safetensors_close(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  const uint8_t *end = size && data[0] == '{' ? memrchr(data, '}', size) : NULL;
  if (!end) {
    parse(data, size);
    return 0;
  }
  uint8_t *file = malloc(size + 8);
  uint64_t length = (uint64_t)(end - data) + 1;
  memcpy(file, &length, 8);
  memcpy(file + 8, data, size);
  parse(file, size + 8);
  free(file);
  return 0;
}
