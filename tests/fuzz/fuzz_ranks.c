/* Any bytes as a rank file: refused with a sentence, or every number can be used. Input that begins with '{' is a header up
 * to its last '}' and data behind it. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "convert/ranks.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void use(kf_ranks *r) {
  size_t rows = (size_t)r->layers * (size_t)r->heads;
  int32_t *order = malloc((size_t)r->half * sizeof *order);
  for (size_t row = 0; row < rows; row++) {
    kf_ranks_order(r->score + row * (size_t)r->half, r->half, order);
    for (int i = 0; i < r->half; i++)
      if (!isfinite(r->score[row * (size_t)r->half + (size_t)order[i]])) abort();
  }
  free(order);
  kf_error e = {0};
  if (r->heads % 2 == 0 && kf_ranks_fit(r, "fuzz", r->layers, r->heads, r->heads / 2, r->half, &e) != KF_OK && !e.message[0])
    abort();
}

static void parse(const uint8_t *data, size_t size) {
  kf_error e = {0};
  kf_safetensors *s;
  kf_ranks r;
  if (kf_safetensors_parse("fuzz", data, size, &s, &e) != KF_OK) return;
  if (kf_ranks_from("fuzz", s, &r, &e) == KF_OK)
    use(&r);
  else if (!e.message[0] || r.score)
    abort();
  kf_ranks_free(&r);
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
