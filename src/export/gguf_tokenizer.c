/* tokenizer.json into tokenizer.ggml.*: byte-level BPE as "gpt2", SentencePiece-like BPE as "llama". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "export/export.h"

enum { TYPE_NORMAL = 1, TYPE_UNKNOWN, TYPE_CONTROL, TYPE_USER_DEFINED, TYPE_UNUSED, TYPE_BYTE };

/* ------------------------------------------------------------------------------------------------ pre-tokenizer */

#define CONTRACTION "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define REST " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define LLAMA3 CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|" REST
#define QWEN2 CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|" REST

/* What llama.cpp cuts by under a name: the expressions, one a line. */
static const struct {
  const char *splits, *name;
  int ignores_merges; /* -1: either */
} pre_rules[] = {
    {GPT2 "\n", "gpt-2", -1},  {"\\p{N}\n" GPT2 "\n", "smollm", -1}, {LLAMA3 "\n", "llama-bpe", 1}, {LLAMA3 "\n", "smaug-bpe", 0},
    {QWEN2 "\n", "qwen2", -1},
};

/* Appends the expressions that one pre-tokenizer, or each of a sequence, cuts by. */
static kf_status collect_splits(const json_t *pre, kf_buffer *b, kf_error *e) {
  const char *type = json_string_value(json_object_get(pre, "type"));
  const json_t *list = json_object_get(pre, "pretokenizers"), *regex = json_object_get(pre, "use_regex");
  const char *pattern = json_string_value(json_object_get(json_object_get(pre, "pattern"), "Regex"));
  for (size_t i = 0; i < json_array_size(list); i++) KF_TRY(collect_splits(json_array_get(list, i), b, e));
  if (!type || list) return KF_OK;
  if (strcmp(type, "ByteLevel") == 0) pattern = regex && !json_is_true(regex) ? NULL : GPT2;
  if (strcmp(type, "Digits") == 0) pattern = json_is_true(json_object_get(pre, "individual_digits")) ? "\\p{N}" : "\\p{N}+";
  return pattern ? kf_buffer_printf(b, e, "%s\n", pattern) : KF_OK;
}

const char *kf_export_pre(const json_t *tokenizer) {
  kf_buffer splits = {0};
  const char *name = NULL;
  int ignores = json_is_true(json_object_get(json_object_get(tokenizer, "model"), "ignore_merges"));
  if (collect_splits(json_object_get(tokenizer, "pre_tokenizer"), &splits, NULL) == KF_OK && splits.data)
    for (size_t i = 0; i < sizeof pre_rules / sizeof *pre_rules && !name; i++)
      if (strcmp(splits.data, pre_rules[i].splits) == 0 &&
          (pre_rules[i].ignores_merges < 0 || pre_rules[i].ignores_merges == ignores))
        name = pre_rules[i].name;
  kf_buffer_free(&splits);
  return name;
}

/* ------------------------------------------------------------------------------------------------ vocabulary */

typedef struct reader {
  kf_tokenizer *t;
  json_t *json;
  const json_t *model; /* of json */
  kf_arena arena;
  kf_gguf_writer *w;
  int count; /* rows of the embedding */
  const char **token;
  int32_t *type;
  bool sentencepiece;
  const kf_hooks *hooks;
} reader;

static int find_token(const reader *r, const char *text) {
  for (int i = 0; text && i < r->count; i++)
    if (strcmp(r->token[i], text) == 0) return i;
  return -1;
}

static int32_t type_of(const reader *r, int id, const char *unknown) {
  unsigned byte;
  char end;
  const char *text = r->token[id];
  if (r->sentencepiece && unknown && strcmp(text, unknown) == 0) return TYPE_UNKNOWN;
  if (r->sentencepiece && strlen(text) == 6 && sscanf(text, "<0x%02X%c", &byte, &end) == 2 && end == '>') return TYPE_BYTE;
  return TYPE_NORMAL;
}

/* Rows of the embedding that no token has are named and never made, as llama.cpp's own converter does. */
static kf_status fill_tokens(reader *r, kf_error *e) {
  const char *unknown = json_string_value(json_object_get(r->model, "unk_token"));
  for (int i = 0; i < r->count; i++) {
    char spare[32];
    const char *piece = i < kf_tokenizer_size(r->t) ? kf_tokenizer_piece(r->t, i) : "";
    bool missing = !*piece;
    snprintf(spare, sizeof spare, "[PAD%d]", i);
    if (missing) piece = spare;
    if (!(r->token[i] = kf_arena_string(&r->arena, piece, strlen(piece), e))) return KF_ERROR_MEMORY;
    r->type[i] = missing ? TYPE_UNUSED : type_of(r, i, unknown);
  }
  return KF_OK;
}

static void mark_added(reader *r) {
  size_t i;
  json_t *added;
  json_array_foreach(json_object_get(r->json, "added_tokens"), i, added) {
    json_int_t id = json_integer_value(json_object_get(added, "id"));
    if (id < 0 || id >= r->count || r->type[id] == TYPE_UNKNOWN) continue;
    r->type[id] = json_is_true(json_object_get(added, "special")) ? TYPE_CONTROL : TYPE_USER_DEFINED;
  }
}

static kf_status read_tokens(reader *r, kf_error *e) {
  if (kf_tokenizer_size(r->t) > r->count)
    return kf_fail(e, KF_ERROR_INPUT, "the tokenizer has %d tokens, but the embedding %d rows", kf_tokenizer_size(r->t),
                   r->count);
  KF_NEW(r->token, r->count, e);
  KF_NEW(r->type, r->count, e);
  KF_TRY(fill_tokens(r, e));
  mark_added(r);
  return KF_OK;
}

/* One merge is "a b" or ["a", "b"]. */
static kf_status merge_text(reader *r, const json_t *merge, const char **out, kf_error *e) {
  const char *a = json_string_value(json_array_get(merge, 0)), *b = json_string_value(json_array_get(merge, 1));
  if ((*out = json_string_value(merge))) return KF_OK;
  if (!a || !b) return kf_fail(e, KF_ERROR_INPUT, "tokenizer.json: a merge is not a pair of strings");
  size_t left = strlen(a), right = strlen(b);
  char *text = kf_arena_alloc(&r->arena, left + right + 2, 1, e);
  if (!text) return KF_ERROR_MEMORY;
  memcpy(text, a, left);
  text[left] = ' ';
  memcpy(text + left + 1, b, right);
  *out = text;
  return KF_OK;
}

static kf_status put_merges(reader *r, kf_error *e) {
  const json_t *merges = json_object_get(r->model, "merges");
  size_t count = json_array_size(merges);
  const char **text;
  kf_status s = KF_OK;
  KF_NEW(text, count + 1, e);
  for (size_t i = 0; i < count && s == KF_OK; i++) s = merge_text(r, json_array_get(merges, i), &text[i], e);
  if (s == KF_OK) s = kf_gguf_put_strings(r->w, "tokenizer.ggml.merges", text, count, e);
  free(text);
  return s;
}

/* SentencePiece merges whatever two neighbours spell the token of the highest score: a token's score is the place of the first
 * merge that makes it, and a token that no merge makes has the lowest. */
static kf_status put_scores(reader *r, kf_error *e) {
  const json_t *merges = json_object_get(r->model, "merges"), *vocabulary = json_object_get(r->model, "vocab");
  size_t count = json_array_size(merges);
  float *score;
  kf_status s = KF_OK;
  KF_NEW(score, r->count, e);
  for (int i = 0; i < r->count; i++) score[i] = r->type[i] == TYPE_NORMAL ? -(float)count - 1 : 0;
  for (size_t i = count; i-- > 0 && s == KF_OK;) {
    const char *text;
    char joined[1024];
    if ((s = merge_text(r, json_array_get(merges, i), &text, e)) != KF_OK) break;
    const char *space = strchr(text, ' ');
    snprintf(joined, sizeof joined, "%.*s%s", space ? (int)(space - text) : 0, text, space ? space + 1 : "");
    const json_t *id = json_object_get(vocabulary, joined);
    if (json_is_integer(id) && json_integer_value(id) >= 0 && json_integer_value(id) < r->count)
      score[json_integer_value(id)] = -(float)i;
  }
  if (s == KF_OK) s = kf_gguf_put_f32s(r->w, "tokenizer.ggml.scores", score, (size_t)r->count, e);
  free(score);
  return s;
}

/* ------------------------------------------------------------------------------------------------ keys */

/* Whether the tokenizer puts a space in front of a text: asked of itself. */
static kf_status put_space_prefix(const reader *r, kf_error *e) {
  kf_ids ids;
  KF_TRY(kf_tokenizer_encode(r->t, "a", 1, KF_ENCODE_PLAIN, &ids, e));
  bool prefix = ids.count && strncmp(kf_tokenizer_piece(r->t, ids.data[0]), "\xe2\x96\x81", 3) == 0;
  kf_ids_free(&ids);
  return kf_gguf_put_bool(r->w, "tokenizer.ggml.add_space_prefix", prefix, e);
}

static kf_status put_id(const reader *r, const char *key, int id, kf_error *e) {
  return id >= 0 ? kf_gguf_put_u32(r->w, key, (uint32_t)id, e) : KF_OK;
}

static kf_status put_specials(const reader *r, kf_error *e) {
  const char *template = kf_tokenizer_chat_template(r->t);
  KF_TRY(put_id(r, "tokenizer.ggml.bos_token_id", kf_tokenizer_bos(r->t), e));
  KF_TRY(put_id(r, "tokenizer.ggml.eos_token_id", kf_tokenizer_eos(r->t), e));
  KF_TRY(put_id(r, "tokenizer.ggml.unknown_token_id", find_token(r, kf_tokenizer_special(r->t, "unk_token")), e));
  KF_TRY(put_id(r, "tokenizer.ggml.padding_token_id", find_token(r, kf_tokenizer_special(r->t, "pad_token")), e));
  KF_TRY(kf_gguf_put_bool(r->w, "tokenizer.ggml.add_bos_token", kf_tokenizer_adds_bos(r->t), e));
  KF_TRY(kf_gguf_put_bool(r->w, "tokenizer.ggml.add_eos_token", kf_tokenizer_adds_eos(r->t), e));
  return template ? kf_gguf_put_string(r->w, "tokenizer.chat_template", template, e) : KF_OK;
}

static kf_status put_kind(reader *r, kf_error *e) {
  const char *pre = kf_export_pre(r->json);
  KF_TRY(kf_gguf_put_string(r->w, "tokenizer.ggml.model", r->sentencepiece ? "llama" : "gpt2", e));
  if (r->sentencepiece) return kf_gguf_put_string(r->w, "tokenizer.ggml.pre", "default", e);
  if (!pre)
    kf_note(
        r->hooks,
        "the tokenizer cuts text in a way that GGUF has no name for: 'default' is written, and some text becomes other tokens");
  return kf_gguf_put_string(r->w, "tokenizer.ggml.pre", pre ? pre : "default", e);
}

static kf_status put_all(reader *r, kf_error *e) {
  const char *type = json_string_value(json_object_get(r->model, "type"));
  if (!type || strcmp(type, "BPE") != 0)
    return kf_fail(e, KF_ERROR_INPUT, "tokenizer.json: a model of type '%.40s' is not exported (BPE is)", type ? type : "");
  r->sentencepiece = json_is_true(json_object_get(r->model, "byte_fallback"));
  KF_TRY(read_tokens(r, e));
  KF_TRY(put_kind(r, e));
  KF_TRY(kf_gguf_put_strings(r->w, "tokenizer.ggml.tokens", r->token, (size_t)r->count, e));
  KF_TRY(kf_gguf_put_i32s(r->w, "tokenizer.ggml.token_type", r->type, (size_t)r->count, e));
  KF_TRY(r->sentencepiece ? put_scores(r, e) : put_merges(r, e));
  if (r->sentencepiece) KF_TRY(put_space_prefix(r, e));
  return put_specials(r, e);
}

kf_status kf_export_tokenizer(const char *directory, int vocabulary, const kf_hooks *hooks, kf_gguf_writer *w, kf_error *e) {
  reader r = {.w = w, .count = vocabulary, .hooks = hooks};
  char path[KF_PATH];
  kf_status s;
  KF_GO(kf_join(path, directory, "tokenizer.json", e));
  KF_GO(kf_json_read(path, &r.json, e));
  KF_GO(kf_tokenizer_from_directory(directory, &r.t, e));
  r.model = json_object_get(r.json, "model");
  KF_GO(put_all(&r, e));
done:
  kf_tokenizer_close(r.t);
  json_decref(r.json);
  kf_arena_free(&r.arena);
  free(r.token);
  free(r.type);
  return s;
}
