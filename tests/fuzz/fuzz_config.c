/* Any JSON as config.json: refused with a sentence, or a description whose tables can be read. */
#include <stdlib.h>

#include "model/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_layers(const kf_config *c) {
  for (int i = 0; i < c->layers; i++) {
    const kf_attention_config *a = &c->layer[i].attention;
    kf_attention_cache_elements(a);
    int pairs = 0;
    for (int h = 0; h < a->rope_heads; h++) pairs += a->rope_pairs[h];
    for (int k = 0; k < pairs; k++)
      if (a->rope_index[k] < 0 || a->rope_index[k] >= a->rope.dim / 2) abort();
    if (kf_attention_rope_width(a) != 2 * pairs) abort();
    if (i > 0 || a->rope.dim <= 0 || a->rope.dim > 4096) continue; // the tables of one layer are enough
    double *frequency = calloc((size_t)a->rope.dim / 2 + 1, sizeof *frequency), factor;
    kf_rope_frequencies(&a->rope, c->context, frequency, &factor);
    free(frequency);
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  kf_error e = {0};
  json_t *json;
  if (kf_json_parse("fuzz", (const char *)data, size, &json, &e) != KF_OK) {
    if (!e.message[0]) abort();
    return 0;
  }
  kf_config c = {0};
  e.message[0] = 0;
  if (kf_config_from_json("fuzz", json, NULL, &c, &e) != KF_OK) {
    if (!e.message[0]) abort();
  } else {
    read_layers(&c);
  }
  kf_config_free(&c);
  json_decref(json);
  return 0;
}
