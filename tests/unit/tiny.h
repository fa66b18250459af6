/* A model of a few thousand numbers on disk, with the tokenizer of examples/books-7m: for tests that train. */
#ifndef KF_TEST_TINY_H
#define KF_TEST_TINY_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "model/model.h"

typedef struct tiny_tensors {
  kf_safetensors_writer *writer;
  kf_random random;
  double scale;
  const char *poisoned; /* tensor whose first number is NaN; NULL: none */
} tiny_tensors;

static kf_status tiny_add(void *user, const char *name, int64_t rows, int64_t columns, kf_error *e) {
  tiny_tensors *t = user;
  float *data = malloc((size_t)(rows * columns) * sizeof *data);
  bool norm = strstr(name, "norm") != NULL;
  if (!data) return kf_fail(e, KF_ERROR_MEMORY, "out of memory");
  for (int64_t i = 0; i < rows * columns; i++) data[i] = (float)((norm ? 1 : 0) + t->scale * kf_random_normal(&t->random));
  if (t->poisoned && strcmp(t->poisoned, name) == 0) data[0] = NAN;
  int64_t shape[2] = {rows, columns};
  kf_status s = kf_safetensors_add(t->writer, name, KF_F32, columns == 1 ? 1 : 2, shape, data, e);
  free(data);
  return s;
}

static kf_status tiny_write_by(const char *directory, json_t *config,
                               kf_status (*add)(void *, const char *, int64_t, int64_t, kf_error *), tiny_tensors *t,
                               kf_error *e) {
  static const char *const files[] = {"tokenizer.json", "tokenizer_config.json"};
  char path[KF_PATH], from[KF_PATH];
  kf_config c;
  KF_TRY(kf_make_directory(directory, e));
  for (int i = 0; i < 2; i++) {
    snprintf(from, sizeof from, "%s/examples/books-7m/%s", KVFOLD_SOURCE_DIR, files[i]);
    KF_TRY(kf_join(path, directory, files[i], e));
    KF_TRY(kf_copy_file(from, path, e));
  }
  KF_TRY(kf_join(path, directory, "config.json", e));
  KF_TRY(kf_json_write(path, config, e));
  KF_TRY(kf_config_from_json(path, config, NULL, &c, e));
  KF_TRY(kf_join(path, directory, "model.safetensors", e));
  KF_TRY(kf_safetensors_create(path, &t->writer, e));
  kf_status s = kf_weights_each(&c, add, t, e);
  kf_config_free(&c);
  if (s == KF_OK) return kf_safetensors_finish(t->writer, e);
  kf_safetensors_abandon(t->writer);
  return s;
}

static inline kf_status tiny_write(const char *directory, json_t *config, tiny_tensors *t, kf_error *e) {
  return tiny_write_by(directory, config, tiny_add, t, e);
}

/* 2 layers of width 16, 4 heads over 2, 4096 tokens. */
static inline json_t *tiny_config(bool attention_bias) {
  return json_pack("{s:s,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:f,s:f,s:b,s:b,s:s}", "model_type", "llama", "hidden_size", 16,
                   "num_attention_heads", 4, "num_key_value_heads", 2, "head_dim", 4, "num_hidden_layers", 2, "intermediate_size",
                   24, "vocab_size", 4096, "max_position_embeddings", 64, "rms_norm_eps", 1e-5, "rope_theta", 1e4,
                   "tie_word_embeddings", 1, "attention_bias", attention_bias, "torch_dtype", "float32");
}

static inline kf_status tiny_model(const char *directory, uint64_t seed, double scale, const char *poisoned, kf_error *e) {
  tiny_tensors t = {.scale = scale, .poisoned = poisoned};
  kf_random_seed(&t.random, seed);
  json_t *o = tiny_config(false);
  kf_status s = tiny_write(directory, o, &t, e);
  json_decref(o);
  return s;
}

#endif
