/* tokenizer_config.json: special tokens, the chat template, and the post-processor that some tokenizer classes build. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "text/tokenizer_impl.h"

/* What Hugging Face's tokenizer classes assume of tokens that the configuration does not name. */
typedef struct class_rule {
  const char *name;
  bool builds_template; /* BOS and EOS by add_bos_token (default true) and add_eos_token, whatever tokenizer.json says */
  const char *bos, *eos, *pad, *unk;
} class_rule;

static const class_rule classes[] = {
    {"LlamaTokenizer", true, "<s>", "</s>", NULL, "<unk>"},
    {"CodeLlamaTokenizer", true, "<s>", "</s>", NULL, "<unk>"},
    {"GemmaTokenizer", true, "<bos>", "<eos>", "<pad>", "<unk>"},
    {"GPT2Tokenizer", false, "<|endoftext|>", "<|endoftext|>", NULL, "<|endoftext|>"},
    {"Qwen2Tokenizer", false, NULL, "<|endoftext|>", "<|endoftext|>", "<|endoftext|>"},
};

static const class_rule *find_class(const json_t *config) {
  const char *name = json_string_value(json_object_get(config, "tokenizer_class"));
  for (size_t i = 0; name && i < sizeof classes / sizeof *classes; i++) {
    size_t n = strlen(classes[i].name);
    if (!strncmp(name, classes[i].name, n) && (!name[n] || !strcmp(name + n, "Fast"))) return &classes[i];
  }
  return NULL;
}

/* A token in a configuration is a string or an object with "content". */
static const json_t *token_text(const json_t *value) {
  const json_t *text = json_is_object(value) ? json_object_get(value, "content") : value;
  return json_is_string(text) ? text : NULL;
}

static kf_status read_token(kf_tokenizer *t, const json_t *value, kf_added *out, kf_error *e) {
  const json_t *text = token_text(value);
  *out = (kf_added){.content = json_string_value(text), .bytes = json_string_length(text), .id = -1, .special = true};
  if (!json_is_object(value)) return KF_OK;
  KF_TRY(kf_json_bool(value, t->file, "lstrip", false, &out->lstrip, e));
  KF_TRY(kf_json_bool(value, t->file, "rstrip", false, &out->rstrip, e));
  KF_TRY(kf_json_bool(value, t->file, "single_word", false, &out->single_word, e));
  return kf_json_bool(value, t->file, "normalized", false, &out->normalized, e);
}

static bool is_added(const kf_tokenizer *t, const json_t *text) {
  for (int i = 0; i < t->added_count; i++)
    if (t->added[i].bytes == json_string_length(text) && !memcmp(t->added[i].content, json_string_value(text), t->added[i].bytes))
      return true;
  return false;
}

/* A special token that is no added token yet becomes one. */
static kf_status add_special(kf_tokenizer *t, const json_t *value, kf_error *e) {
  kf_added a;
  const json_t *text = token_text(value);
  if (!text || is_added(t, text)) return KF_OK;
  KF_TRY(read_token(t, value, &a, e));
  return kf_tokenizer_add(t, a, e);
}

static bool names_special(const json_t *config, const json_t *text) {
  static const char *const keys[] = {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"};
  for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
    if (json_equal(token_text(json_object_get(config, keys[i])), text)) return true;
  const json_t *more = json_object_get(config, "additional_special_tokens");
  for (size_t i = 0; i < json_array_size(more); i++)
    if (json_equal(token_text(json_array_get(more, i)), text)) return true;
  return false;
}

static kf_status read_added_tokens_decoder(kf_tokenizer *t, const json_t *config, kf_error *e) {
  const char *id;
  json_t *value;
  json_object_foreach(json_object_get(config, "added_tokens_decoder"), id, value) {
    kf_added a;
    if (!json_is_object(value) || !token_text(value))
      return kf_fail(e, KF_ERROR_INPUT, "%s: added_tokens_decoder.%.20s has no content", t->file, id);
    KF_TRY(read_token(t, value, &a, e));
    KF_TRY(kf_json_bool(value, t->file, "special", false, &a.special, e));
    a.special |= names_special(config, token_text(value));
    KF_TRY(kf_json_bool(value, t->file, "normalized", !a.special, &a.normalized, e));
    KF_TRY(kf_tokenizer_add(t, a, e));
  }
  return KF_OK;
}

static kf_status read_specials(kf_tokenizer *t, const json_t *config, const class_rule *rule, kf_error *e) {
  static const char *const keys[KF_SPECIALS] = {"bos_token", "eos_token", "pad_token", "unk_token"};
  const char *const assumed[KF_SPECIALS] = {rule ? rule->bos : NULL, rule ? rule->eos : NULL, rule ? rule->pad : NULL,
                                            rule ? rule->unk : NULL};
  for (int k = 0; k < KF_SPECIALS; k++) {
    const json_t *value = json_object_get(config, keys[k]), *text = token_text(value);
    const char *spelling = text ? json_string_value(text) : value ? NULL : assumed[k];
    if (!spelling || (!text && kf_vocab_find(&t->vocab, spelling, strlen(spelling)) < 0)) continue;
    if (!(t->special[k] = kf_arena_string(&t->arena, spelling, strlen(spelling), e))) return KF_ERROR_MEMORY;
    KF_TRY(add_special(t, value, e));
  }
  static const char *const others[] = {"sep_token", "cls_token", "mask_token"};
  for (int k = 0; k < 3; k++) KF_TRY(add_special(t, json_object_get(config, others[k]), e));
  const json_t *more = json_object_get(config, "additional_special_tokens");
  for (size_t i = 0; i < json_array_size(more); i++) KF_TRY(add_special(t, json_array_get(more, i), e));
  return KF_OK;
}

static kf_status build_template(kf_tokenizer *t, const json_t *config, kf_error *e) {
  bool bos, eos;
  KF_TRY(kf_json_bool(config, t->file, "add_bos_token", true, &bos, e));
  KF_TRY(kf_json_bool(config, t->file, "add_eos_token", false, &eos, e));
  int32_t bos_id = kf_tokenizer_special_id(t, KF_SPECIAL_BOS), eos_id = kf_tokenizer_special_id(t, KF_SPECIAL_EOS);
  bool asked = json_is_true(json_object_get(config, "add_bos_token"));
  if (bos && bos_id < 0 && !asked) return KF_OK; /* not really of this class: tokenizer.json's own rule stays */
  if (bos && bos_id < 0) return kf_fail(e, KF_ERROR_INPUT, "%s: add_bos_token without a bos_token", t->file);
  if (eos && eos_id < 0) return kf_fail(e, KF_ERROR_INPUT, "%s: add_eos_token without an eos_token", t->file);
  t->prefix_count = t->suffix_count = 0;
  if (bos) t->prefix[t->prefix_count++] = bos_id;
  if (eos) t->suffix[t->suffix_count++] = eos_id;
  return KF_OK;
}

/* A string, or a list of named templates of which "default" is ours. */
static kf_status read_chat_template(kf_tokenizer *t, const json_t *value, kf_error *e) {
  const json_t *source = json_is_string(value) ? value : NULL;
  for (size_t i = 0; i < json_array_size(value); i++) {
    const json_t *entry = json_array_get(value, i);
    const char *name = json_string_value(json_object_get(entry, "name"));
    if (name && !strcmp(name, "default")) source = json_object_get(entry, "template");
  }
  if (!json_is_string(source)) return KF_OK;
  t->chat_template = kf_arena_string(&t->arena, json_string_value(source), json_string_length(source), e);
  return t->chat_template ? KF_OK : KF_ERROR_MEMORY;
}

kf_status kf_tokenizer_configure(kf_tokenizer *t, const json_t *config, kf_error *e) {
  const class_rule *rule = find_class(config);
  KF_TRY(read_added_tokens_decoder(t, config, e));
  KF_TRY(read_specials(t, config, rule, e));
  if (rule && rule->builds_template) KF_TRY(build_template(t, config, e));
  return read_chat_template(t, json_object_get(config, "chat_template"), e);
}
