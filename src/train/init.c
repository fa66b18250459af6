/* A model with random weights, for training from nothing. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "convert/companions.h"
#include "convert/record.h"
#include "convert/write.h"
#include "model/model.h"

typedef struct initialiser {
  kf_output *output;
  kf_random dice;
  double deviation;
  int64_t parameters;
} initialiser;

/* As Transformers' models begin: norms are 1, biases 0, matrices normal. */
static kf_status add(void *user, const char *name, int64_t rows, int64_t columns, kf_error *e) {
  initialiser *n = user;
  bool norm = strstr(name, "norm") != NULL, bias = strstr(name, ".bias") != NULL;
  float *data;
  KF_NEW(data, rows * columns, e);
  for (int64_t i = 0; i < rows * columns; i++) data[i] = norm ? 1 : bias ? 0 : (float)(n->deviation * kf_random_normal(&n->dice));
  kf_status s = kf_output_add(n->output, name, columns == 1 ? 1 : 2, (const int64_t[]){rows, columns}, data, e);
  free(data);
  n->parameters += rows * columns;
  return s;
}

static kf_status read_config(const char *path, json_t **json, kf_config *c, kf_error *e) {
  char file[KF_PATH];
  const char *from = path;
  if (kf_is_directory(path)) {
    KF_TRY(kf_join(file, path, "config.json", e));
    from = file;
  }
  KF_TRY(kf_json_read(from, json, e));
  kf_status s = kf_config_from_json(from, *json, NULL, c, e);
  if (s != KF_OK) json_decref(*json);
  return s;
}

/* The companions of another model, whose tokenizer must fit. */
static kf_status add_tokenizer(const char *tokenizer, const kf_config *c, const char *directory, kf_error *e) {
  char path[KF_PATH];
  kf_config other;
  kf_weights w;
  kf_tokenizer *t = NULL;
  KF_TRY(kf_locate(tokenizer, path, e));
  KF_TRY(kf_model_read(path, &other, &w, e));
  w.config = &other;
  kf_status s = kf_tokenizer_beside(&w, path, &t, e);
  if (s == KF_OK && kf_tokenizer_size(t) > c->vocabulary)
    s = kf_fail(e, KF_ERROR_INPUT, "the tokenizer of %s has %d tokens, the configuration's vocabulary %d", tokenizer,
                kf_tokenizer_size(t), c->vocabulary);
  if (s == KF_OK) s = kf_companions_write(&w, path, directory, e);
  kf_tokenizer_close(t);
  kf_weights_close(&w);
  kf_config_free(&other);
  return s;
}

static kf_status fill(initialiser *n, const kf_config *c, const kf_init_options *o, kf_dtype dtype, kf_error *e) {
  char path[KF_PATH];
  json_t *config;
  KF_TRY(kf_weights_each(c, add, n, e));
  KF_TRY(kf_output_end_unit(n->output, NULL, e));
  KF_TRY(kf_output_seal(n->output, e));
  if (o->tokenizer) KF_TRY(add_tokenizer(o->tokenizer, c, kf_output_path(n->output), e));
  KF_TRY(kf_config_record(c, "", NULL, NULL, 0, dtype, &config, e));
  kf_status s = kf_join(path, kf_output_path(n->output), "config.json", e);
  if (s == KF_OK) s = kf_json_write(path, config, e);
  json_decref(config);
  return s == KF_OK ? kf_output_publish(n->output, e) : s;
}

kf_status kf_init(const char *config, const char *dst, const kf_init_options *o, int64_t *parameters, kf_error *e) {
  kf_dtype dtype = KF_F32;
  kf_config c;
  json_t *json, *nothing;
  initialiser n = {0};
  if (o->dtype && !(kf_dtype_parse(o->dtype, &dtype) && (dtype == KF_F32 || dtype == KF_BF16 || dtype == KF_F16)))
    return kf_fail(e, KF_ERROR_USAGE, "dtype '%.40s' cannot be written (known: f32, bf16, f16)", o->dtype);
  KF_TRY(read_config(config, &json, &c, e));
  kf_random_seed(&n.dice, o->seed);
  nothing = json_object();
  kf_status s = nothing ? kf_json_real(json, config, "initializer_range", 0.02, 0, 10, &n.deviation, e)
                        : kf_fail(e, KF_ERROR_MEMORY, "out of memory");
  if (s == KF_OK) s = kf_output_open(dst, nothing, dtype, INT64_MAX, &o->hooks, &n.output, e);
  if (s == KF_OK) s = fill(&n, &c, o, dtype, e);
  kf_output_close(n.output, false);
  json_decref(nothing);
  kf_config_free(&c);
  json_decref(json);
  if (s == KF_OK && parameters) *parameters = n.parameters;
  return s;
}
