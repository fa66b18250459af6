#include "convert/companions.h"

#include "base/file.h"

kf_status kf_tokenizer_beside(const kf_weights *w, const char *path, kf_tokenizer **out, kf_error *e) {
  const kf_gguf *g = kf_source_gguf(w->source);
  return g ? kf_tokenizer_from_gguf(g, out, e) : kf_tokenizer_from_directory(path, out, e);
}

/* generation_config.json of a model that came as GGUF. */
static kf_status write_generation_config(const kf_config *c, const char *directory, kf_error *e) {
  char path[KF_PATH];
  json_t *o = json_pack("{s:b}", "_from_model_config", 1), *eos = json_array();
  if (c->bos >= 0) json_object_set_new(o, "bos_token_id", json_integer(c->bos));
  for (int i = 0; i < c->eos_count; i++) json_array_append_new(eos, json_integer(c->eos[i]));
  if (c->eos_count == 1) json_object_set(o, "eos_token_id", json_array_get(eos, 0));
  if (c->eos_count > 1) json_object_set(o, "eos_token_id", eos);
  json_decref(eos);
  kf_status s = o ? kf_join(path, directory, "generation_config.json", e) : kf_fail(e, KF_ERROR_MEMORY, "out of memory");
  if (s == KF_OK) s = kf_json_write(path, o, e);
  json_decref(o);
  return s;
}

kf_status kf_companions_write(const kf_weights *w, const char *path, const char *directory, kf_error *e) {
  static const char *const names[] = {
      "tokenizer.json",      "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json",
      "chat_template.jinja", "chat_template.json",    "tokenizer.model",         "vocab.json",        "merges.txt"};
  if (kf_source_gguf(w->source)) {
    kf_tokenizer *t;
    KF_TRY(kf_tokenizer_beside(w, path, &t, e));
    kf_status s = kf_tokenizer_write(t, directory, e);
    kf_tokenizer_close(t);
    return s == KF_OK ? write_generation_config(w->config, directory, e) : s;
  }
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    char from[KF_PATH], to[KF_PATH];
    KF_TRY(kf_join(from, path, names[i], e));
    KF_TRY(kf_join(to, directory, names[i], e));
    if (kf_is_file(from)) KF_TRY(kf_copy_file(from, to, e));
  }
  return KF_OK;
}
