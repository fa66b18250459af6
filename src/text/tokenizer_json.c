/* Reading tokenizer.json. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "text/tokenizer_impl.h"

kf_status kf_tokenizer_add(kf_tokenizer *t, kf_added token, kf_error *e) {
  if (!token.bytes) return KF_OK;
  for (int i = 0; i < t->added_count; i++) {
    kf_added *have = &t->added[i];
    if (have->bytes != token.bytes || memcmp(have->content, token.content, token.bytes) != 0) continue;
    have->lstrip = token.lstrip, have->rstrip = token.rstrip, have->single_word = token.single_word;
    have->special |= token.special;
    return KF_OK;
  }
  int32_t known = kf_vocab_find(&t->vocab, token.content, token.bytes);
  if (known >= 0) token.id = known;
  if (token.id < 0) token.id = t->vocab.size;
  KF_TRY(kf_vocab_add(&t->vocab, token.content, token.bytes, token.id, t->file, e));
  token.content = t->vocab.pieces[token.id].text;
  if (t->added_count == t->added_room) {
    int room = t->added_room ? t->added_room * 2 : 64;
    kf_added *added;
    KF_NEW(added, room, e);
    if (t->added_count) memcpy(added, t->added, (size_t)t->added_count * sizeof *added);
    free(t->added);
    t->added = added, t->added_room = room;
  }
  t->added[t->added_count++] = token;
  return KF_OK;
}

static kf_status read_added(kf_tokenizer *t, const json_t *list, kf_error *e) {
  if (!list || json_is_null(list)) return KF_OK;
  if (!json_is_array(list) || json_array_size(list) > 1 << 17)
    return kf_fail(e, KF_ERROR_INPUT, "%s: added_tokens is not a list", t->file);
  for (size_t i = 0; i < json_array_size(list); i++) {
    const json_t *o = json_array_get(list, i), *content = json_object_get(o, "content");
    kf_added a = {.content = json_string_value(content), .bytes = json_string_length(content)};
    int64_t id;
    if (!a.content) return kf_fail(e, KF_ERROR_INPUT, "%s: added token %zu has no content", t->file, i);
    KF_TRY(kf_json_int(o, t->file, "id", -1, 0, KF_VOCAB_IDS - 1, &id, e));
    KF_TRY(kf_json_bool(o, t->file, "special", false, &a.special, e));
    KF_TRY(kf_json_bool(o, t->file, "lstrip", false, &a.lstrip, e));
    KF_TRY(kf_json_bool(o, t->file, "rstrip", false, &a.rstrip, e));
    KF_TRY(kf_json_bool(o, t->file, "single_word", false, &a.single_word, e));
    KF_TRY(kf_json_bool(o, t->file, "normalized", !a.special, &a.normalized, e));
    a.id = (int32_t)id;
    KF_TRY(kf_tokenizer_add(t, a, e));
  }
  return KF_OK;
}

/* ------------------------------------------------------------------------------------------------ post-processor */

static kf_status add_affix(kf_tokenizer *t, int32_t *list, int *count, const json_t *ids, kf_error *e) {
  for (size_t i = 0; i < json_array_size(ids); i++) {
    const json_t *id = json_array_get(ids, i);
    json_int_t value = json_integer_value(id);
    if (!json_is_integer(id) || value < 0 || value >= t->vocab.size || *count == KF_AFFIX)
      return kf_fail(e, KF_ERROR_INPUT,
                     "%s: a special token of the post_processor is not in the vocabulary, or there are more than %d", t->file,
                     KF_AFFIX);
    list[(*count)++] = (int32_t)value;
  }
  return KF_OK;
}

static kf_status read_template(kf_tokenizer *t, const json_t *post, kf_error *e) {
  const json_t *single = json_object_get(post, "single"), *tokens = json_object_get(post, "special_tokens");
  bool after = false;
  if (!json_is_array(single)) return kf_fail(e, KF_ERROR_INPUT, "%s: a TemplateProcessing without \"single\"", t->file);
  for (size_t i = 0; i < json_array_size(single); i++) {
    const json_t *part = json_array_get(single, i), *token = json_object_get(part, "SpecialToken");
    if (json_object_get(part, "Sequence")) after = true;
    if (!token) continue;
    const json_t *name = json_object_get(token, "id");
    const json_t *ids = json_object_get(json_string_value(name) ? json_object_get(tokens, json_string_value(name)) : NULL, "ids");
    if (!json_array_size(ids)) return kf_fail(e, KF_ERROR_INPUT, "%s: a TemplateProcessing names a token without ids", t->file);
    KF_TRY(after ? add_affix(t, t->suffix, &t->suffix_count, ids, e) : add_affix(t, t->prefix, &t->prefix_count, ids, e));
  }
  return KF_OK;
}

static kf_status read_post_processor(kf_tokenizer *t, const json_t *post, int depth, kf_error *e) {
  if (!post || json_is_null(post)) return KF_OK;
  const char *type;
  KF_TRY(kf_json_string(post, t->file, "type", "", &type, e));
  const json_t *list = json_object_get(post, "processors");
  if (!strcmp(type, "Sequence") && json_is_array(list) && depth < 8) {
    for (size_t i = 0; i < json_array_size(list); i++) KF_TRY(read_post_processor(t, json_array_get(list, i), depth + 1, e));
    return KF_OK;
  }
  if (!strcmp(type, "ByteLevel")) return KF_OK; /* trims offsets, which we do not give */
  if (!strcmp(type, "TemplateProcessing")) return read_template(t, post, e);
  return kf_fail(e, KF_ERROR_INPUT, "%s: post-processor \"%.60s\" is not supported", t->file, type);
}

/* ------------------------------------------------------------------------------------------------ all of it */

/* A ByteLevel pre-tokenizer takes add_prefix_space from tokenizer_config.json (default false), as Hugging Face's fast
 * tokenizers do when they are loaded. */
static kf_status read_pretokenizer(kf_tokenizer *t, const json_t *spec, const json_t *config, kf_error *e) {
  const char *type = json_string_value(json_object_get(spec, "type"));
  if (!config || !type || strcmp(type, "ByteLevel") != 0) return kf_pretokenizer_read(spec, t->file, &t->pretokenizer, e);
  json_t *changed = json_copy((json_t *)spec);
  if (!changed ||
      json_object_set_new(changed, "add_prefix_space", json_boolean(json_is_true(json_object_get(config, "add_prefix_space"))))) {
    json_decref(changed);
    return kf_fail(e, KF_ERROR_MEMORY, "%s: out of memory", t->file);
  }
  kf_status s = kf_pretokenizer_read(changed, t->file, &t->pretokenizer, e);
  json_decref(changed);
  return s;
}

/* The added tokens of one sort, as they stand in the text that is searched. */
static kf_status index_added(kf_tokenizer *t, bool normalized, kf_added_set **out, kf_error *e) {
  kf_added *tokens = NULL;
  const char **spellings = NULL;
  size_t *bytes = NULL;
  kf_status s = KF_ERROR_MEMORY;
  int count = 0;
  size_t room = (size_t)t->added_count;
  kf_buffer text = {0};
  if (!(tokens = kf_alloc(room, sizeof *tokens, e)) || !(spellings = kf_alloc(room, sizeof *spellings, e)) ||
      !(bytes = kf_alloc(room, sizeof *bytes, e)))
    goto done;
  for (int i = 0; i < t->added_count; i++) {
    const kf_added *a = &t->added[i];
    if (a->normalized != normalized) continue;
    tokens[count] = *a, spellings[count] = a->content, bytes[count] = a->bytes;
    if (normalized && t->normalizer) {
      text.bytes = 0;
      KF_GO(kf_normalizer_run(t->normalizer, a->content, a->bytes, &text, e));
      spellings[count] = kf_arena_string(&t->arena, text.data ? text.data : "", text.bytes, e);
      bytes[count] = text.bytes;
      if (!spellings[count]) {
        s = KF_ERROR_MEMORY;
        goto done;
      }
    }
    count++;
  }
  s = count ? kf_added_set_create(tokens, spellings, bytes, count, out, e) : KF_OK;
done:
  kf_buffer_free(&text);
  free(tokens);
  free(spellings);
  free(bytes);
  return s;
}

static kf_status build(kf_tokenizer *t, const json_t *j, const json_t *config, kf_error *e) {
  KF_TRY(kf_bpe_read(json_object_get(j, "model"), t->file, &t->vocab, &t->bpe, e));
  KF_TRY(kf_normalizer_read(json_object_get(j, "normalizer"), t->file, &t->normalizer, e));
  KF_TRY(read_pretokenizer(t, json_object_get(j, "pre_tokenizer"), config, e));
  KF_TRY(kf_detokenizer_read(json_object_get(j, "decoder"), t->file, &t->detokenizer, e));
  KF_TRY(read_added(t, json_object_get(j, "added_tokens"), e));
  KF_TRY(read_post_processor(t, json_object_get(j, "post_processor"), 0, e));
  if (config) KF_TRY(kf_tokenizer_configure(t, config, e));
  if (!t->vocab.size) return kf_fail(e, KF_ERROR_INPUT, "%s: an empty vocabulary", t->file);
  KF_TRY(index_added(t, false, &t->raw, e));
  KF_TRY(index_added(t, true, &t->normalized, e));
  t->is_special = kf_arena_alloc(&t->arena, (size_t)t->vocab.size, 1, e);
  if (!t->is_special) return KF_ERROR_MEMORY;
  for (int i = 0; i < t->added_count; i++) t->is_special[t->added[i].id] |= t->added[i].special;
  return KF_OK;
}

kf_status kf_tokenizer_build(const char *file, const json_t *tokenizer, const json_t *config, kf_tokenizer **out, kf_error *e) {
  kf_tokenizer *t;
  KF_NEW(t, 1, e);
  strncpy(t->file, file, sizeof t->file - 1);
  kf_status s = build(t, tokenizer, config, e);
  if (s == KF_OK)
    *out = t;
  else
    kf_tokenizer_close(t);
  return s;
}
