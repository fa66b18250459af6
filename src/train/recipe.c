/* A recipe of a training run: the fields of kf_train_options as YAML. */
#include <cyaml/cyaml.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

typedef struct document {
  char *objective, *schedule, *dtype, *match;
  char **data, **train, **freeze;
  unsigned data_count, train_count, freeze_count, weight_count;
  double *weights;
  int64_t steps, tokens, save_every;
  int length, batch, micro;
  uint64_t seed;
  double rate, warmup, decay, beta1, beta2, eps, weight_decay, clip, ce_weight, kl_weight, temperature, dpo_beta, label_smoothing;
  bool answers, isolated, skip_bad, by_sequence;
} document;

struct kf_train_recipe {
  document *document;
  char complaint[160]; /* the last thing that libcyaml said */
};

static const cyaml_schema_value_t text = {CYAML_VALUE_STRING(CYAML_FLAG_POINTER, char *, 1, 4096)};
static const cyaml_schema_value_t number = {CYAML_VALUE_FLOAT(CYAML_FLAG_DEFAULT, double)};

#define TEXT(name) CYAML_FIELD_STRING_PTR(#name, CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, document, name, 1, 64)
#define TEXTS(name, count) \
  CYAML_FIELD_SEQUENCE_COUNT(#name, CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, document, name, count, &text, 1, CYAML_UNLIMITED)
#define WHOLE(name) CYAML_FIELD_INT(#name, CYAML_FLAG_OPTIONAL, document, name)
#define REAL(name) CYAML_FIELD_FLOAT(#name, CYAML_FLAG_OPTIONAL, document, name)
#define FLAG(name) CYAML_FIELD_BOOL(#name, CYAML_FLAG_OPTIONAL, document, name)

static const cyaml_schema_field_t fields[] = {
    TEXT(objective),
    TEXT(schedule),
    TEXT(dtype),
    TEXT(match),
    TEXTS(data, data_count),
    TEXTS(train, train_count),
    TEXTS(freeze, freeze_count),
    CYAML_FIELD_SEQUENCE_COUNT("weights", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, document, weights, weight_count, &number, 1,
                               CYAML_UNLIMITED),
    WHOLE(steps),
    WHOLE(tokens),
    WHOLE(save_every),
    WHOLE(length),
    WHOLE(batch),
    WHOLE(micro),
    CYAML_FIELD_UINT("seed", CYAML_FLAG_OPTIONAL, document, seed),
    REAL(rate),
    REAL(warmup),
    REAL(decay),
    REAL(beta1),
    REAL(beta2),
    REAL(eps),
    REAL(weight_decay),
    REAL(clip),
    REAL(ce_weight),
    REAL(kl_weight),
    REAL(temperature),
    REAL(dpo_beta),
    REAL(label_smoothing),
    FLAG(answers),
    FLAG(isolated),
    FLAG(skip_bad),
    FLAG(by_sequence),
    CYAML_FIELD_END,
};

static void listen(cyaml_log_t level, void *user, const char *format, va_list args) {
  kf_train_recipe *r = user;
  char line[sizeof r->complaint];
  if (level < CYAML_LOG_ERROR) return;
  vsnprintf(line, sizeof line, format, args);
  line[strcspn(line, "\n")] = 0;
  const char *said = strncmp(line, "Load: ", 6) == 0 ? line + 6 : line;
  if (!*r->complaint && strncmp(said, "Backtrace", 9) != 0) snprintf(r->complaint, sizeof r->complaint, "%s", said);
}

/* Levenshtein's distance. */
static int distance(const char *a, const char *b) {
  enum { MOST = 64 };
  int row[MOST + 1], n = (int)strlen(b);
  if (n > MOST) return MOST;
  for (int j = 0; j <= n; j++) row[j] = j;
  for (int i = 1; a[i - 1]; i++) {
    int diagonal = row[0];
    row[0] = i;
    for (int j = 1; j <= n; j++) {
      int changed = diagonal + (a[i - 1] != b[j - 1]), least = row[j] < row[j - 1] ? row[j] + 1 : row[j - 1] + 1;
      diagonal = row[j];
      row[j] = changed < least ? changed : least;
    }
  }
  return row[n];
}

static kf_status unknown_key(const char *path, const char *complaint, kf_error *e) {
  const char *key = strrchr(complaint, ' '), *nearest = fields[0].key;
  key = key ? key + 1 : complaint;
  for (int i = 1; fields[i].key; i++)
    if (distance(key, fields[i].key) < distance(key, nearest)) nearest = fields[i].key;
  return kf_fail(e, KF_ERROR_USAGE, "%s: unknown key '%.60s' (nearest: %s)", path, key, nearest);
}

static kf_status load(kf_train_recipe *r, const char *path, const kf_text *file, kf_error *e) {
  const cyaml_schema_value_t top = {CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, document, fields)};
  const cyaml_config_t config = {
      .log_fn = listen, .log_ctx = r, .log_level = CYAML_LOG_ERROR, .mem_fn = cyaml_mem, .flags = CYAML_CFG_NO_ALIAS};
  cyaml_err_t err = cyaml_load_data((const uint8_t *)file->data, file->bytes, &config, &top, (cyaml_data_t **)&r->document, NULL);
  if (err == CYAML_OK) return r->document ? KF_OK : kf_fail(e, KF_ERROR_INPUT, "%s: the recipe is empty", path);
  r->document = NULL;
  if (err == CYAML_ERR_INVALID_KEY) return unknown_key(path, r->complaint, e);
  return kf_fail(e, err == CYAML_ERR_OOM ? KF_ERROR_MEMORY : KF_ERROR_INPUT, "%s: %s", path,
                 *r->complaint ? r->complaint : cyaml_strerror(err));
}

static void free_texts(char **list, unsigned count) {
  for (unsigned i = 0; i < count; i++) free(list[i]);
  free(list);
}

void kf_train_recipe_free(kf_train_recipe *r) {
  if (!r) return;
  document *d = r->document;
  if (d) {
    free(d->objective);
    free(d->schedule);
    free(d->dtype);
    free(d->match);
    free(d->weights);
    free_texts(d->data, d->data_count);
    free_texts(d->train, d->train_count);
    free_texts(d->freeze, d->freeze_count);
    free(d);
  }
  free(r);
}

static kf_train_options options_of(const document *d) {
  return (kf_train_options){.objective = d->objective,
                            .data = (const char *const *)d->data,
                            .data_count = (int)d->data_count,
                            .weights = d->weights,
                            .skip_bad = d->skip_bad,
                            .answers = d->answers,
                            .isolated = d->isolated,
                            .steps = d->steps,
                            .tokens = d->tokens,
                            .length = d->length,
                            .batch = d->batch,
                            .micro = d->micro,
                            .rate = d->rate,
                            .schedule = d->schedule,
                            .warmup = d->warmup,
                            .decay = d->decay,
                            .beta1 = d->beta1,
                            .beta2 = d->beta2,
                            .eps = d->eps,
                            .weight_decay = d->weight_decay,
                            .clip = d->clip,
                            .by_sequence = d->by_sequence,
                            .ce_weight = d->ce_weight,
                            .kl_weight = d->kl_weight,
                            .temperature = d->temperature,
                            .dpo_beta = d->dpo_beta,
                            .label_smoothing = d->label_smoothing,
                            .match = d->match,
                            .train = (const char *const *)d->train,
                            .train_count = (int)d->train_count,
                            .freeze = (const char *const *)d->freeze,
                            .freeze_count = (int)d->freeze_count,
                            .seed = d->seed,
                            .save_every = d->save_every,
                            .dtype = d->dtype};
}

kf_status kf_train_recipe_read(const char *path, kf_train_recipe **owner, kf_train_options *out, kf_error *e) {
  kf_train_recipe *r;
  kf_text file = {0};
  *owner = NULL;
  KF_NEW(r, 1, e);
  kf_status s = kf_read_file(path, 1 << 20, &file, e);
  if (s == KF_OK) s = load(r, path, &file, e);
  kf_text_free(&file);
  const document *d = r->document;
  if (s == KF_OK && d->weights && d->weight_count != d->data_count)
    s = kf_fail(e, KF_ERROR_INPUT, "%s: %u weights for %u data files", path, d->weight_count, d->data_count);
  if (s != KF_OK) {
    kf_train_recipe_free(r);
    return s;
  }
  *out = options_of(d);
  *owner = r;
  return KF_OK;
}
