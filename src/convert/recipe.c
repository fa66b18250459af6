/* A recipe file: the options of kf_convert as YAML. The keys below `set` are those of every method in the table; whether
 * the chosen method has them is checked when it converts. */
#include <cyaml/cyaml.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "convert/plan.h"

enum { MAX_SET = 2 * KF_MAX_KEYS };

typedef struct document {
  char *method, *cache, *dtype;
  char **set; /* [keys of the union], NULL where absent */
  char **calibration;
  unsigned calibration_count;
  int64_t calibration_tokens, shard_bytes;
} document;

struct kf_recipe {
  cyaml_schema_field_t set_fields[MAX_SET + 1];
  cyaml_schema_value_t set_schema;
  document *document;
  kf_setting settings[MAX_SET];
  int keys;
  char complaint[160]; /* the last thing that libcyaml said */
};

static const cyaml_schema_value_t text_schema = {CYAML_VALUE_STRING(CYAML_FLAG_POINTER, char *, 1, 4096)};

/* Every key of every method once, as a field of strings. */
static void collect_keys(kf_recipe *r) {
  for (int m = 0; kf_method_at(m); m++) {
    const kf_key *keys = kf_method_at(m)->keys;
    for (; keys && keys->name && r->keys < MAX_SET; keys++) {
      int i = 0;
      while (i < r->keys && strcmp(r->set_fields[i].key, keys->name) != 0) i++;
      if (i < r->keys) continue;
      r->set_fields[r->keys++] =
          (cyaml_schema_field_t){.key = keys->name, .data_offset = (uint32_t)((size_t)i * sizeof(char *)), .value = text_schema};
      r->set_fields[i].value.flags |= CYAML_FLAG_OPTIONAL;
    }
  }
}

static void listen(cyaml_log_t level, void *user, const char *format, va_list args) {
  kf_recipe *r = user;
  char line[sizeof r->complaint];
  if (level < CYAML_LOG_ERROR) return;
  vsnprintf(line, sizeof line, format, args);
  line[strcspn(line, "\n")] = 0;
  const char *said = strncmp(line, "Load: ", 6) == 0 ? line + 6 : line;
  if (!*r->complaint && strncmp(said, "Backtrace", 9) != 0) snprintf(r->complaint, sizeof r->complaint, "%s", said);
}

static kf_status load(kf_recipe *r, const char *path, const kf_text *text, kf_error *e) {
  const cyaml_schema_field_t fields[] = {
      CYAML_FIELD_STRING_PTR("method", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, document, method, 1, 64),
      CYAML_FIELD_STRING_PTR("cache", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, document, cache, 1, 64),
      CYAML_FIELD_STRING_PTR("dtype", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, document, dtype, 1, 64),
      {.key = "set", .data_offset = offsetof(document, set), .value = r->set_schema},
      CYAML_FIELD_SEQUENCE("calibration", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, document, calibration, &text_schema, 1,
                           CYAML_UNLIMITED),
      CYAML_FIELD_INT("calibration_tokens", CYAML_FLAG_OPTIONAL, document, calibration_tokens),
      CYAML_FIELD_INT("calibration-tokens", CYAML_FLAG_OPTIONAL, document, calibration_tokens),
      CYAML_FIELD_INT("shard_bytes", CYAML_FLAG_OPTIONAL, document, shard_bytes),
      CYAML_FIELD_END,
  };
  const cyaml_schema_value_t top = {CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, document, fields)};
  const cyaml_config_t config = {
      .log_fn = listen, .log_ctx = r, .log_level = CYAML_LOG_ERROR, .mem_fn = cyaml_mem, .flags = CYAML_CFG_NO_ALIAS};
  cyaml_err_t err = cyaml_load_data((const uint8_t *)text->data, text->bytes, &config, &top, (cyaml_data_t **)&r->document, NULL);
  if (err == CYAML_OK) return r->document ? KF_OK : kf_fail(e, KF_ERROR_INPUT, "%s: the recipe is empty", path);
  r->document = NULL;
  return kf_fail(e,
                 err == CYAML_ERR_OOM           ? KF_ERROR_MEMORY
                 : err == CYAML_ERR_INVALID_KEY ? KF_ERROR_USAGE
                                                : KF_ERROR_INPUT,
                 "%s: %s", path, *r->complaint ? r->complaint : cyaml_strerror(err));
}

static void free_document(document *d, int keys) {
  if (!d) return;
  free(d->method);
  free(d->cache);
  free(d->dtype);
  for (int i = 0; d->set && i < keys; i++) free(d->set[i]);
  free(d->set);
  for (unsigned i = 0; i < d->calibration_count; i++) free(d->calibration[i]);
  free(d->calibration);
  free(d);
}

kf_status kf_recipe_read(const char *path, kf_recipe **owner, kf_convert_options *out, kf_error *e) {
  kf_recipe *r;
  kf_text text = {0};
  *owner = NULL;
  KF_NEW(r, 1, e);
  collect_keys(r);
  r->set_schema = (cyaml_schema_value_t){.type = CYAML_MAPPING,
                                         .flags = CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL,
                                         .data_size = (uint32_t)((size_t)r->keys * sizeof(char *)),
                                         .mapping.fields = r->set_fields};
  kf_status s = kf_read_file(path, 1 << 20, &text, e);
  if (s == KF_OK) s = load(r, path, &text, e);
  kf_text_free(&text);
  if (s != KF_OK) {
    kf_recipe_free(r);
    return s;
  }
  const document *d = r->document;
  *out = (kf_convert_options){.method = d->method,
                              .cache = d->cache,
                              .dtype = d->dtype,
                              .settings = r->settings,
                              .calibration = (const char *const *)d->calibration,
                              .calibration_count = (int)d->calibration_count,
                              .calibration_tokens = d->calibration_tokens,
                              .shard_bytes = d->shard_bytes};
  for (int i = 0; d->set && i < r->keys; i++)
    if (d->set[i]) r->settings[out->setting_count++] = (kf_setting){r->set_fields[i].key, d->set[i]};
  *owner = r;
  return KF_OK;
}

void kf_recipe_free(kf_recipe *r) {
  if (!r) return;
  free_document(r->document, r->keys);
  free(r);
}
