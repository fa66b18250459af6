/* From a directory or from memory, and back to a directory. */
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "text/tokenizer_impl.h"

enum { MOST_BYTES = 512 << 20 };

static kf_status read_optional(const char *directory, const char *name, json_t **out, kf_error *e) {
  char path[KF_PATH];
  *out = NULL;
  KF_TRY(kf_join(path, directory, name, e));
  return kf_is_file(path) ? kf_json_read(path, out, e) : KF_OK;
}

/* Without added_tokens_decoder a configuration is an old one, and special_tokens_map.json speaks before it. */
static kf_status take_special_tokens_map(const char *directory, json_t *config, kf_error *e) {
  json_t *map;
  if (json_object_get(config, "added_tokens_decoder")) return KF_OK;
  KF_TRY(read_optional(directory, "special_tokens_map.json", &map, e));
  int failed = map ? json_object_update(config, map) : 0;
  json_decref(map);
  return failed ? kf_fail(e, KF_ERROR_MEMORY, "%s: out of memory", directory) : KF_OK;
}

static kf_status take_chat_template(const char *directory, json_t *config, kf_error *e) {
  char path[KF_PATH];
  kf_text text;
  KF_TRY(kf_join(path, directory, "chat_template.jinja", e));
  if (!kf_is_file(path)) return KF_OK;
  KF_TRY(kf_read_file(path, MOST_BYTES, &text, e));
  int failed = json_object_set_new(config, "chat_template", json_stringn(text.data, text.bytes));
  kf_text_free(&text);
  return failed ? kf_fail(e, KF_ERROR_INPUT, "%s is not UTF-8", path) : KF_OK;
}

/* The class that Hugging Face takes when the configuration names none: by the model. */
static kf_status take_class(const char *directory, json_t *config, kf_error *e) {
  static const char *const by_model[][2] = {{"llama", "LlamaTokenizer"},       {"mistral", "LlamaTokenizer"},
                                            {"deepseek_v2", "LlamaTokenizer"}, {"deepseek_v3", "LlamaTokenizer"},
                                            {"qwen2", "Qwen2Tokenizer"},       {"qwen3", "Qwen2Tokenizer"},
                                            {"gpt2", "GPT2Tokenizer"}};
  json_t *model;
  if (json_is_string(json_object_get(config, "tokenizer_class"))) return KF_OK;
  KF_TRY(read_optional(directory, "config.json", &model, e));
  const char *type = json_string_value(json_object_get(model, "model_type"));
  const json_t *named = json_object_get(model, "tokenizer_class");
  const char *name = json_string_value(named);
  for (size_t i = 0; type && !name && i < sizeof by_model / sizeof *by_model; i++)
    if (!strcmp(type, by_model[i][0])) name = by_model[i][1];
  int failed = name ? json_object_set_new(config, "tokenizer_class", json_string(name)) : 0;
  json_decref(model);
  return failed ? kf_fail(e, KF_ERROR_MEMORY, "%s: out of memory", directory) : KF_OK;
}

static kf_status read_config(const char *directory, json_t **out, kf_error *e) {
  KF_TRY(read_optional(directory, "tokenizer_config.json", out, e));
  if (!*out && !(*out = json_object())) return kf_fail(e, KF_ERROR_MEMORY, "%s: out of memory", directory);
  KF_TRY(take_special_tokens_map(directory, *out, e));
  KF_TRY(take_chat_template(directory, *out, e));
  return take_class(directory, *out, e);
}

static kf_status dump(const json_t *value, kf_text *out, kf_error *e) {
  out->data = json_dumps(value, JSON_INDENT(2));
  out->bytes = out->data ? strlen(out->data) : 0;
  return out->data ? KF_OK : kf_fail(e, KF_ERROR_MEMORY, "out of memory for a tokenizer's JSON");
}

kf_status kf_tokenizer_from_directory(const char *directory, kf_tokenizer **out, kf_error *e) {
  char path[KF_PATH];
  kf_text text = {0};
  json_t *tokenizer = NULL, *config = NULL;
  kf_status s;
  KF_TRY(kf_join(path, directory, "tokenizer.json", e));
  KF_GO(kf_read_file(path, MOST_BYTES, &text, e));
  KF_GO(kf_json_parse(path, text.data, text.bytes, &tokenizer, e));
  KF_GO(read_config(directory, &config, e));
  KF_GO(kf_tokenizer_build(path, tokenizer, config, out, e));
  (*out)->source = text;
  text = (kf_text){0};
  s = dump(config, &(*out)->config, e);
  if (s != KF_OK) kf_tokenizer_close(*out);
done:
  kf_text_free(&text);
  json_decref(tokenizer);
  json_decref(config);
  return s;
}

static kf_status copy_text(const char *data, size_t bytes, kf_text *out, kf_error *e) {
  kf_buffer b = {0};
  KF_TRY(kf_buffer_add(&b, data, bytes, e));
  *out = (kf_text){b.data, b.bytes};
  return KF_OK;
}

kf_status kf_tokenizer_parse(const char *name, const char *json, size_t bytes, const char *config, size_t config_bytes,
                             kf_tokenizer **out, kf_error *e) {
  json_t *tokenizer = NULL, *settings = NULL;
  kf_status s;
  KF_GO(kf_json_parse(name, json, bytes, &tokenizer, e));
  if (config) KF_GO(kf_json_parse(name, config, config_bytes, &settings, e));
  KF_GO(kf_tokenizer_build(name, tokenizer, settings, out, e));
  s = copy_text(json, bytes, &(*out)->source, e);
  if (s == KF_OK && config) s = copy_text(config, config_bytes, &(*out)->config, e);
  if (s != KF_OK) kf_tokenizer_close(*out);
done:
  json_decref(tokenizer);
  json_decref(settings);
  return s;
}

kf_status kf_tokenizer_write(const kf_tokenizer *t, const char *directory, kf_error *e) {
  char path[KF_PATH];
  KF_TRY(kf_join(path, directory, "tokenizer.json", e));
  KF_TRY(kf_write_file(path, t->source.data, t->source.bytes, e));
  if (!t->config.bytes) return KF_OK;
  KF_TRY(kf_join(path, directory, "tokenizer_config.json", e));
  return kf_write_file(path, t->config.data, t->config.bytes, e);
}

uint64_t kf_tokenizer_hash(const kf_tokenizer *t) {
  return kf_hash(kf_hash(KF_HASH, t->source.data, t->source.bytes), t->config.data, t->config.bytes);
}
