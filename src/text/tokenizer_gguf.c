/* A GGUF's tokenizer, turned into the tokenizer.json and tokenizer_config.json that it amounts to. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "text/tokenizer_impl.h"

enum { TYPE_NORMAL = 1, TYPE_UNKNOWN = 2, TYPE_CONTROL = 3, TYPE_USER_DEFINED = 4, TYPE_BYTE = 6 };

/* ------------------------------------------------------------------------------------------------ pre-tokenizers */

#define CONTRACTION "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define REST " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define LLAMA3 CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|" REST
#define QWEN2 CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|" REST
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define TEKKEN                                                                                   \
  "[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+|[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER "*|\\p{N}" \
  "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define DEEPSEEK3                                                                                                                \
  "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*" \
  "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

/* What tokenizer.ggml.pre names: the regular expressions of the models' own tokenizer files, each splits what the one
 * before gave. */
typedef struct pre_rule {
  const char *names; /* between spaces */
  const char *splits[4];
  bool ignore_merges, add_bos, nfc;
} pre_rule;

static const pre_rule pre_rules[] = {
    {" default ", {"[\\p{P}$+<=>\\^~|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}, false, false, false},
    {" gpt-2 phi-2 mpt olmo jais trillion granite-docling roberta-bpe ", {GPT2}, false, false, false},
    {" smollm starcoder refact command-r codeshell exaone minerva-7b ", {"\\p{N}", GPT2}, false, false, false},
    {" llama-bpe llama3 llama-v3 falcon3 ", {LLAMA3}, true, true, false},
    {" dbrx smaug-bpe ", {LLAMA3}, false, false, false},
    {" qwen2 deepseek-r1-qwen stablelm2 ", {QWEN2}, false, false, true},
    {" tekken ", {TEKKEN}, true, true, false},
    {" deepseek-coder ",
     {"[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", "[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+|\\p{N}"},
     false,
     false,
     false},
    {" deepseek-v3 ",
     {"\\p{N}{1,3}", "[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{309f}\\x{30a0}-\\x{30ff}]+", DEEPSEEK3},
     false,
     false,
     false},
};

static const pre_rule *find_pre(const char *name) {
  char quoted[64];
  if (snprintf(quoted, sizeof quoted, " %s ", name) >= (int)sizeof quoted || strchr(name, ' ')) return NULL;
  for (size_t i = 0; i < sizeof pre_rules / sizeof *pre_rules; i++)
    if (strstr(pre_rules[i].names, quoted)) return &pre_rules[i];
  return NULL;
}

/* Jansson's builders give NULL when memory runs out; json_object_set_new and json_array_append_new then fail, and so does
 * the whole. */
static json_t *byte_level(void) {
  return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1, "use_regex", 0);
}

static json_t *pre_tokenizer(const pre_rule *rule) {
  json_t *list = json_array();
  for (int i = 0; i < 4 && rule->splits[i]; i++)
    json_array_append_new(list, json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split", "pattern", "Regex", rule->splits[i],
                                          "behavior", "Isolated", "invert", 0));
  json_array_append_new(list, byte_level());
  return json_pack("{s:s, s:o}", "type", "Sequence", "pretokenizers", list);
}

/* ------------------------------------------------------------------------------------------------ vocabulary */

typedef struct reader {
  const kf_gguf *g;
  const char *path;
  int64_t count;
  bool sentencepiece;
  const pre_rule *pre; /* NULL for SentencePiece */
  kf_vocab vocab;      /* what goes into model.vocab */
  json_t *ids, *merges, *added;
  bool has_bytes;
  int64_t bos, eos, pad, unk;
  int64_t add_bos, add_eos, add_space;
} reader;

static kf_status token_type(const reader *r, int64_t i, int64_t *out, kf_error *e) {
  *out = TYPE_NORMAL;
  if (!kf_gguf_has(r->g, "tokenizer.ggml.token_type")) return KF_OK;
  if (!kf_gguf_array_int(r->g, "tokenizer.ggml.token_type", i, out))
    return kf_fail(e, KF_ERROR_INPUT, "%s: tokenizer.ggml.token_type has no entry %lld", r->path, (long long)i);
  return KF_OK;
}

static const char *token_text(const reader *r, int64_t i, size_t *bytes) {
  return i >= 0 && i < r->count ? kf_gguf_array_string(r->g, "tokenizer.ggml.tokens", i, bytes) : NULL;
}

static json_t *added_token(int64_t id, json_t *content, bool special) {
  return json_pack("{s:I, s:o, s:b, s:b, s:b, s:b, s:b}", "id", (json_int_t)id, "content", content, "single_word", 0, "lstrip", 0,
                   "rstrip", 0, "normalized", 0, "special", (int)special);
}

/* Of a spelling that stands twice the first counts. */
static kf_status read_tokens(reader *r, kf_error *e) {
  for (int64_t i = 0; i < r->count; i++) {
    size_t bytes;
    int64_t type;
    const char *text = token_text(r, i, &bytes);
    if (!text) return kf_fail(e, KF_ERROR_INPUT, "%s: tokenizer.ggml.tokens is not a list of strings", r->path);
    KF_TRY(token_type(r, i, &type, e));
    if (!bytes || kf_vocab_find(&r->vocab, text, bytes) >= 0) continue;
    if (memchr(text, 0, bytes) || json_object_setn_new(r->ids, text, bytes, json_integer(i)))
      return kf_fail(e, KF_ERROR_INPUT, "%s: token %lld is not UTF-8 text", r->path, (long long)i);
    KF_TRY(kf_vocab_add(&r->vocab, text, bytes, i, r->path, e));
    r->has_bytes |= type == TYPE_BYTE;
    bool special = type == TYPE_CONTROL || type == TYPE_UNKNOWN;
    if ((special || type == TYPE_USER_DEFINED) &&
        json_array_append_new(r->added, added_token(i, json_stringn(text, bytes), special)))
      return kf_fail(e, KF_ERROR_MEMORY, "%s: out of memory", r->path);
  }
  return KF_OK;
}

static kf_status read_merges(reader *r, kf_error *e) {
  static const char key[] = "tokenizer.ggml.merges";
  int64_t count = kf_gguf_array(r->g, key);
  for (int64_t i = 0; i < count; i++) {
    size_t bytes;
    const char *text = kf_gguf_array_string(r->g, key, i, &bytes);
    const char *space = text && bytes > 1 ? memchr(text + 1, ' ', bytes - 1) : NULL;
    if (!space) return kf_fail(e, KF_ERROR_INPUT, "%s: %s %lld is not \"a b\"", r->path, key, (long long)i);
    size_t left = (size_t)(space - text);
    if (json_array_append_new(r->merges, json_pack("[s%, s%]", text, left, space + 1, bytes - left - 1)))
      return kf_fail(e, KF_ERROR_INPUT, "%s: %s %lld is not UTF-8", r->path, key, (long long)i);
  }
  return KF_OK;
}

/* SentencePiece has no list of merges: any two neighbours that spell a token merge, the best score first. Every way to cut a
 * token into two others is written as a merge, in the order that Hugging Face's converter gives them. */
typedef struct cut {
  double score;
  int32_t id, left_chars, right_chars;
  uint32_t left_bytes;
} cut;

static int by_score(const void *a, const void *b) {
  const cut *x = a, *y = b;
  if (x->score != y->score) return x->score > y->score ? -1 : 1;
  if (x->left_chars != y->left_chars) return y->left_chars - x->left_chars;
  if (x->right_chars != y->right_chars) return y->right_chars - x->right_chars;
  return (x->id > y->id) - (x->id < y->id);
}

static int32_t characters(const char *text, size_t bytes) {
  int32_t n = 0;
  for (size_t i = 0; i < bytes; i++) n += ((uint8_t)text[i] & 0xc0) != 0x80;
  return n;
}

static bool merges_into(const reader *r, int64_t id) {
  int64_t type;
  return id >= 0 && token_type(r, id, &type, NULL) == KF_OK && type == TYPE_NORMAL;
}

static kf_status cut_token(const reader *r, int32_t id, kf_buffer *cuts, kf_error *e) {
  const kf_piece *p = &r->vocab.pieces[id];
  cut c = {.id = id};
  if (!kf_gguf_array_real(r->g, "tokenizer.ggml.scores", id, &c.score) || c.score != c.score)
    return kf_fail(e, KF_ERROR_INPUT, "%s: tokenizer.ggml.scores has no number for token %d", r->path, id);
  int32_t all = characters(p->text, p->bytes);
  for (uint32_t at = 1; at < p->bytes; at++) {
    if (((uint8_t)p->text[at] & 0xc0) == 0x80) continue;
    c.left_chars++;
    if (!merges_into(r, kf_vocab_find(&r->vocab, p->text, at)) ||
        !merges_into(r, kf_vocab_find(&r->vocab, p->text + at, p->bytes - at)))
      continue;
    c.left_bytes = at, c.right_chars = all - c.left_chars;
    KF_TRY(kf_buffer_add(cuts, &c, sizeof c, e));
  }
  return KF_OK;
}

static kf_status derive_merges(reader *r, kf_error *e) {
  kf_buffer cuts = {0};
  kf_status s = KF_OK;
  for (int32_t id = 0; id < r->vocab.size; id++)
    if (r->vocab.pieces[id].text && merges_into(r, id)) KF_GO(cut_token(r, id, &cuts, e));
  size_t count = cuts.bytes / sizeof(cut);
  if (count) qsort(cuts.data, count, sizeof(cut), by_score);
  for (size_t i = 0; i < count; i++) {
    const cut *c = (const cut *)cuts.data + i;
    const kf_piece *p = &r->vocab.pieces[c->id];
    size_t left = c->left_bytes;
    if (json_array_append_new(r->merges, json_pack("[s%, s%]", p->text, left, p->text + left, p->bytes - left))) {
      s = kf_fail(e, KF_ERROR_MEMORY, "%s: out of memory", r->path);
      break;
    }
  }
done:
  kf_buffer_free(&cuts);
  return s;
}

/* ------------------------------------------------------------------------------------------------ the two files */

static json_t *spelling(const reader *r, int64_t id) {
  size_t bytes;
  const char *text = token_text(r, id, &bytes);
  return text ? json_stringn(text, bytes) : NULL;
}

static json_t *post_processor(const reader *r) {
  json_t *single = json_array(), *tokens = json_object();
  const struct { int64_t add, id; } ends[2] = {{r->add_bos, r->bos}, {r->add_eos, r->eos}};
  for (int k = 0; k < 2; k++) {
    size_t bytes;
    const char *text = token_text(r, ends[k].id, &bytes);
    if (ends[k].add && text) {
      json_array_append_new(single, json_pack("{s:{s:s, s:i}}", "SpecialToken", "id", text, "type_id", 0));
      json_object_set_new(tokens, text,
                          json_pack("{s:s, s:[I], s:[s]}", "id", text, "ids", (json_int_t)ends[k].id, "tokens", text));
    }
    if (!k) json_array_append_new(single, json_pack("{s:{s:s, s:i}}", "Sequence", "id", "A", "type_id", 0));
  }
  json_t *pair = json_deep_copy(single);
  json_array_append_new(pair, json_pack("{s:{s:s, s:i}}", "Sequence", "id", "B", "type_id", 1));
  return json_pack("{s:s, s:o, s:o, s:o}", "type", "TemplateProcessing", "single", single, "pair", pair, "special_tokens",
                   tokens);
}

static json_t *replace(const char *pattern, const char *content) {
  return json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace", "pattern", "String", pattern, "content", content);
}

static json_t *normalizer(const reader *r) {
  if (!r->sentencepiece) return r->pre->nfc ? json_pack("{s:s}", "type", "NFC") : json_null();
  if (!r->add_space) return replace(" ", "\xe2\x96\x81");
  return json_pack("{s:s, s:[{s:s, s:s}, o]}", "type", "Sequence", "normalizers", "type", "Prepend", "prepend", "\xe2\x96\x81",
                   replace(" ", "\xe2\x96\x81"));
}

static json_t *decoder(const reader *r) {
  if (!r->sentencepiece) return byte_level();
  json_t *list = json_pack("[o, {s:s}, {s:s}]", replace("\xe2\x96\x81", " "), "type", "ByteFallback", "type", "Fuse");
  if (r->add_space)
    json_array_append_new(list, json_pack("{s:s, s:s, s:i, s:i}", "type", "Strip", "content", " ", "start", 1, "stop", 0));
  return json_pack("{s:s, s:o}", "type", "Sequence", "decoders", list);
}

static json_t *tokenizer_json(const reader *r) {
  json_t *model = json_pack("{s:s, s:n, s:o*, s:n, s:n, s:b, s:b, s:b, s:O, s:O}", "type", "BPE", "dropout", "unk_token",
                            r->sentencepiece ? spelling(r, r->unk) : NULL, "continuing_subword_prefix", "end_of_word_suffix",
                            "fuse_unk", (int)r->sentencepiece, "byte_fallback", (int)r->has_bytes, "ignore_merges",
                            (int)(r->pre && r->pre->ignore_merges), "vocab", r->ids, "merges", r->merges);
  return json_pack("{s:s, s:n, s:n, s:O, s:o, s:o, s:o, s:o, s:o}", "version", "1.0", "truncation", "padding", "added_tokens",
                   r->added, "normalizer", normalizer(r), "pre_tokenizer", r->pre ? pre_tokenizer(r->pre) : json_null(),
                   "post_processor", post_processor(r), "decoder", decoder(r), "model", model);
}

static kf_status tokenizer_config(const reader *r, json_t **out, kf_error *e) {
  const char *template = NULL;
  KF_TRY(kf_gguf_string(r->g, "tokenizer.chat_template", &template, e));
  *out = json_pack("{s:s, s:b, s:b, s:b, s:o*, s:o*, s:o*, s:o*, s:s*}", "tokenizer_class", "PreTrainedTokenizerFast",
                   "clean_up_tokenization_spaces", 0, "add_bos_token", (int)r->add_bos, "add_eos_token", (int)r->add_eos,
                   "bos_token", spelling(r, r->bos), "eos_token", spelling(r, r->eos), "pad_token", spelling(r, r->pad),
                   "unk_token", spelling(r, r->unk), "chat_template", template);
  return *out ? KF_OK : kf_fail(e, KF_ERROR_INPUT, "%s: the chat template or a special token is not UTF-8", r->path);
}

static kf_status read_settings(reader *r, kf_error *e) {
  const char *model = "", *pre = "default";
  KF_TRY(kf_gguf_string(r->g, "tokenizer.ggml.model", &model, e));
  KF_TRY(kf_gguf_string(r->g, "tokenizer.ggml.pre", &pre, e));
  r->sentencepiece = !strcmp(model, "llama");
  if (!r->sentencepiece && strcmp(model, "gpt2") != 0)
    return kf_fail(e, KF_ERROR_INPUT, "%s: tokenizer.ggml.model is \"%.60s\", expected gpt2 or llama", r->path, model);
  if (!r->sentencepiece && !(r->pre = find_pre(pre)))
    return kf_fail(e, KF_ERROR_INPUT, "%s: the pre-tokenizer \"%.60s\" (tokenizer.ggml.pre) is not known", r->path, pre);
  r->count = kf_gguf_array(r->g, "tokenizer.ggml.tokens");
  if (!r->count) return kf_fail(e, KF_ERROR_INPUT, "%s: no tokenizer.ggml.tokens", r->path);
  r->bos = r->eos = r->pad = r->unk = -1;
  if (r->sentencepiece) r->unk = 0, r->bos = 1, r->eos = 2;
  r->add_bos = r->sentencepiece || r->pre->add_bos;
  r->add_space = r->sentencepiece;
  KF_TRY(kf_gguf_int(r->g, "tokenizer.ggml.bos_token_id", &r->bos, e));
  KF_TRY(kf_gguf_int(r->g, "tokenizer.ggml.eos_token_id", &r->eos, e));
  KF_TRY(kf_gguf_int(r->g, "tokenizer.ggml.padding_token_id", &r->pad, e));
  KF_TRY(kf_gguf_int(r->g, "tokenizer.ggml.unknown_token_id", &r->unk, e));
  KF_TRY(kf_gguf_int(r->g, "tokenizer.ggml.add_bos_token", &r->add_bos, e));
  KF_TRY(kf_gguf_int(r->g, "tokenizer.ggml.add_eos_token", &r->add_eos, e));
  return kf_gguf_int(r->g, "tokenizer.ggml.add_space_prefix", &r->add_space, e);
}

static kf_status dump(const json_t *value, size_t flags, kf_text *out, kf_error *e) {
  out->data = json_dumps(value, flags);
  out->bytes = out->data ? strlen(out->data) : 0;
  return out->data ? KF_OK : kf_fail(e, KF_ERROR_MEMORY, "out of memory for a tokenizer's JSON");
}

static kf_status assemble(reader *r, kf_tokenizer **out, kf_error *e) {
  json_t *tokenizer = NULL, *config = NULL;
  kf_tokenizer *t = NULL;
  kf_status s;
  KF_GO(read_settings(r, e));
  KF_GO(read_tokens(r, e));
  KF_GO(r->sentencepiece ? derive_merges(r, e) : read_merges(r, e));
  KF_GO(tokenizer_config(r, &config, e));
  if (!(tokenizer = tokenizer_json(r))) {
    s = kf_fail(e, KF_ERROR_INPUT, "%s: a special token of the tokenizer is not UTF-8", r->path);
    goto done;
  }
  KF_GO(kf_tokenizer_build(r->path, tokenizer, config, &t, e));
  KF_GO(dump(tokenizer, JSON_INDENT(1), &t->source, e));
  KF_GO(dump(config, JSON_INDENT(2), &t->config, e));
  *out = t;
done:
  if (s != KF_OK) kf_tokenizer_close(t);
  json_decref(tokenizer);
  json_decref(config);
  return s;
}

kf_status kf_tokenizer_from_gguf(const kf_gguf *g, kf_tokenizer **out, kf_error *e) {
  reader r = {.g = g, .path = kf_gguf_path(g), .ids = json_object(), .merges = json_array(), .added = json_array()};
  kf_status s = r.ids && r.merges && r.added ? assemble(&r, out, e) : kf_fail(e, KF_ERROR_MEMORY, "%s: out of memory", r.path);
  json_decref(r.ids);
  json_decref(r.merges);
  json_decref(r.added);
  kf_vocab_free(&r.vocab);
  return s;
}
