#include "text/pretokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "text/normalizer.h"
#include "text/utf8.h"

typedef enum behavior { ISOLATED, REMOVED, CONTIGUOUS, MERGED_WITH_PREVIOUS, MERGED_WITH_NEXT } behavior;

/* Every kind of pre-tokenizer is a chain of these. */
typedef enum stage_kind {
  STAGE_SPLIT,  /* cut at the matches of a regex */
  STAGE_PREFIX, /* a space in front of what has none */
  STAGE_BYTES,  /* bytes to the characters of the byte-level alphabet */
  STAGE_META,   /* spaces to a replacement character, one in front by the scheme */
} stage_kind;

typedef enum scheme { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER } scheme;

typedef struct stage {
  stage_kind kind;
  kf_regex *regex;
  behavior behavior;
  bool invert;
  char replacement[8];
  scheme scheme;
} stage;

enum { MOST_STAGES = 64 };

struct kf_pretokenizer {
  stage stages[MOST_STAGES];
  int count;
};

/* GPT-2's words: openai/gpt-2 encoder.py. */
static const char gpt2_words[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
static const char word_characters[] = "[\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}\\x{200c}\\x{200d}]+"
                                      "|[^\\s\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}\\x{200c}\\x{200d}]+";
static const char punctuation[] = "[\\p{P}$+<=>\\^`|~]";

int32_t kf_byte_to_char(uint8_t b) {
  if ((b >= 33 && b <= 126) || (b >= 161 && b != 173)) return b;
  if (b <= 32) return 256 + b;
  return b == 173 ? 323 : 256 + 33 + (b - 127); /* 127..160 */
}

int kf_char_to_byte(int32_t c) {
  if (c < 256) return (c >= 33 && c <= 126) || (c >= 161 && c != 173) ? c : -1;
  if (c <= 256 + 32) return c - 256;
  if (c < 323) return c - 289 + 127;
  return c == 323 ? 173 : -1;
}

/* ------------------------------------------------------------------------------------------------ reading */

static kf_status add_stage(kf_pretokenizer *p, stage_kind kind, const char *file, stage **out, kf_error *e) {
  if (p->count == MOST_STAGES) return kf_fail(e, KF_ERROR_INPUT, "%s: more than %d pre-tokenizers", file, MOST_STAGES);
  *out = &p->stages[p->count++];
  (*out)->kind = kind;
  return KF_OK;
}

static kf_status add_split(kf_pretokenizer *p, const char *pattern, behavior how, const char *file, kf_error *e) {
  stage *s = NULL;
  KF_TRY(add_stage(p, STAGE_SPLIT, file, &s, e));
  s->behavior = how;
  return kf_regex_compile(pattern, strlen(pattern), file, &s->regex, e);
}

static kf_status read_behavior(const json_t *spec, const char *file, behavior *out, kf_error *e) {
  static const char *const names[][2] = {{"Isolated", "isolated"},
                                         {"Removed", "removed"},
                                         {"Contiguous", "contiguous"},
                                         {"MergedWithPrevious", "merged_with_previous"},
                                         {"MergedWithNext", "merged_with_next"}};
  const char *name;
  KF_TRY(kf_json_string(spec, file, "behavior", "Isolated", &name, e));
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (!strcmp(name, names[i][0]) || !strcmp(name, names[i][1])) {
      *out = (behavior)i;
      return KF_OK;
    }
  return kf_fail(e, KF_ERROR_INPUT, "%s: split behavior \"%.60s\" is not supported", file, name);
}

static kf_status read_byte_level(kf_pretokenizer *p, const json_t *spec, const char *file, kf_error *e) {
  bool prefix, regex;
  stage *s = NULL;
  KF_TRY(kf_json_bool(spec, file, "add_prefix_space", true, &prefix, e));
  KF_TRY(kf_json_bool(spec, file, "use_regex", true, &regex, e));
  if (prefix) KF_TRY(add_stage(p, STAGE_PREFIX, file, &s, e));
  if (regex) KF_TRY(add_split(p, gpt2_words, ISOLATED, file, e));
  return add_stage(p, STAGE_BYTES, file, &s, e);
}

static kf_status read_split(kf_pretokenizer *p, const json_t *spec, const char *file, kf_error *e) {
  stage *s = NULL;
  KF_TRY(add_stage(p, STAGE_SPLIT, file, &s, e));
  KF_TRY(read_behavior(spec, file, &s->behavior, e));
  KF_TRY(kf_json_bool(spec, file, "invert", false, &s->invert, e));
  return kf_pattern_read(json_object_get(spec, "pattern"), file, &s->regex, e);
}

static kf_status read_digits(kf_pretokenizer *p, const json_t *spec, const char *file, kf_error *e) {
  bool single;
  KF_TRY(kf_json_bool(spec, file, "individual_digits", false, &single, e));
  return add_split(p, "\\p{N}", single ? ISOLATED : CONTIGUOUS, file, e);
}

static kf_status read_punctuation(kf_pretokenizer *p, const json_t *spec, const char *file, kf_error *e) {
  behavior how;
  KF_TRY(read_behavior(spec, file, &how, e));
  return add_split(p, punctuation, how, file, e);
}

static kf_status read_whitespace(kf_pretokenizer *p, const json_t *spec, const char *file, kf_error *e) {
  (void)spec;
  KF_TRY(add_split(p, word_characters, REMOVED, file, e));
  p->stages[p->count - 1].invert = true;
  return KF_OK;
}

static kf_status read_whitespace_split(kf_pretokenizer *p, const json_t *spec, const char *file, kf_error *e) {
  (void)spec;
  return add_split(p, "\\s", REMOVED, file, e);
}

static kf_status read_metaspace(kf_pretokenizer *p, const json_t *spec, const char *file, kf_error *e) {
  const char *replacement, *name;
  bool prefix, split;
  KF_TRY(kf_json_string(spec, file, "replacement", "\xe2\x96\x81", &replacement, e));
  KF_TRY(kf_json_bool(spec, file, "add_prefix_space", true, &prefix, e));
  KF_TRY(kf_json_string(spec, file, "prepend_scheme", prefix ? "always" : "never", &name, e));
  KF_TRY(kf_json_bool(spec, file, "split", true, &split, e));
  int32_t code;
  if (!*replacement || kf_utf8_next(replacement, strlen(replacement), &code) != (int)strlen(replacement))
    return kf_fail(e, KF_ERROR_INPUT, "%s: Metaspace's replacement \"%.60s\" is not one character", file, replacement);
  stage *s = NULL;
  KF_TRY(add_stage(p, STAGE_META, file, &s, e));
  strncpy(s->replacement, replacement, sizeof s->replacement - 1);
  if (!strcmp(name, "always"))
    s->scheme = PREPEND_ALWAYS;
  else if (!strcmp(name, "first"))
    s->scheme = PREPEND_FIRST;
  else if (!strcmp(name, "never"))
    s->scheme = PREPEND_NEVER;
  else
    return kf_fail(e, KF_ERROR_INPUT, "%s: Metaspace's prepend_scheme \"%.60s\" is not supported", file, name);
  if (!split) return KF_OK;
  KF_TRY(add_stage(p, STAGE_SPLIT, file, &s, e));
  s->behavior = MERGED_WITH_NEXT;
  return kf_regex_literal(replacement, strlen(replacement), file, &s->regex, e);
}

static kf_status read_stages(kf_pretokenizer *p, const json_t *spec, const char *file, int depth, kf_error *e) {
  static const struct {
    const char *type;
    kf_status (*read)(kf_pretokenizer *p, const json_t *spec, const char *file, kf_error *e);
  } known[] = {
      {"ByteLevel", read_byte_level},    {"Split", read_split},           {"Digits", read_digits},
      {"Punctuation", read_punctuation}, {"Whitespace", read_whitespace}, {"WhitespaceSplit", read_whitespace_split},
      {"Metaspace", read_metaspace},
  };
  const char *type;
  KF_TRY(kf_json_string(spec, file, "type", "", &type, e));
  const json_t *list = json_object_get(spec, "pretokenizers");
  if (!strcmp(type, "Sequence") && json_is_array(list) && depth < 8) {
    for (size_t i = 0; i < json_array_size(list); i++) KF_TRY(read_stages(p, json_array_get(list, i), file, depth + 1, e));
    return KF_OK;
  }
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (!strcmp(type, known[i].type)) return known[i].read(p, spec, file, e);
  return kf_fail(e, KF_ERROR_INPUT, "%s: pre-tokenizer \"%.60s\" is not supported", file, type);
}

kf_status kf_pretokenizer_read(const json_t *spec, const char *file, kf_pretokenizer **out, kf_error *e) {
  kf_pretokenizer *p;
  if (spec && !json_is_null(spec) && !json_is_object(spec))
    return kf_fail(e, KF_ERROR_INPUT, "%s: the pre_tokenizer is not an object", file);
  KF_NEW(p, 1, e);
  kf_status s = json_is_object(spec) ? read_stages(p, spec, file, 0, e) : KF_OK;
  if (s == KF_OK)
    *out = p;
  else
    kf_pretokenizer_free(p);
  return s;
}

void kf_pretokenizer_free(kf_pretokenizer *p) {
  if (!p) return;
  for (int i = 0; i < p->count; i++) kf_regex_free(p->stages[i].regex);
  free(p);
}

/* ------------------------------------------------------------------------------------------------ running */

struct kf_pretokenizer_work {
  const kf_pretokenizer *pre;
  kf_word_sink sink;
  void *user;
  kf_matcher matchers[MOST_STAGES]; /* of the stages that split */
  kf_buffer buffers[MOST_STAGES];   /* of the stages that rewrite */
};

kf_status kf_pretokenizer_work_create(const kf_pretokenizer *p, kf_word_sink sink, void *user, kf_pretokenizer_work **out,
                                      kf_error *e) {
  kf_pretokenizer_work *w;
  KF_NEW(w, 1, e);
  w->pre = p, w->sink = sink, w->user = user;
  kf_status s = KF_OK;
  for (int i = 0; i < p->count && s == KF_OK; i++)
    if (p->stages[i].regex) s = kf_matcher_create(p->stages[i].regex, &w->matchers[i], e);
  if (s == KF_OK)
    *out = w;
  else
    kf_pretokenizer_work_free(w);
  return s;
}

void kf_pretokenizer_work_free(kf_pretokenizer_work *w) {
  if (!w) return;
  for (int i = 0; i < w->pre->count; i++) {
    kf_matcher_free(&w->matchers[i]);
    kf_buffer_free(&w->buffers[i]);
  }
  free(w);
}

static kf_status run_stage(kf_pretokenizer_work *w, int i, const char *text, size_t bytes, bool first, kf_error *e);

/* The part of a split that has been seen and may still grow. */
typedef struct part {
  size_t start, end;
  bool match, grown, there;
} part;

typedef struct split {
  kf_pretokenizer_work *work;
  int stage;
  const char *text;
  bool first;
  part held;
} split;

static kf_status emit(split *s, kf_error *e) {
  part p = s->held;
  const stage *how = &s->work->pre->stages[s->stage];
  s->held.there = false;
  if (!p.there || p.start == p.end || (how->behavior == REMOVED && p.match)) return KF_OK;
  return run_stage(s->work, s->stage + 1, s->text + p.start, p.end - p.start, s->first && p.start == 0, e);
}

static kf_status take(split *s, size_t start, size_t end, bool match, kf_error *e) {
  const stage *how = &s->work->pre->stages[s->stage];
  part *h = &s->held;
  match ^= how->invert;
  bool join = h->there && ((how->behavior == CONTIGUOUS && h->match == match) ||
                           (how->behavior == MERGED_WITH_PREVIOUS && match && !h->match) ||
                           (how->behavior == MERGED_WITH_NEXT && !match && h->match && !h->grown));
  if (join) {
    h->end = end, h->match = match, h->grown = true;
    return KF_OK;
  }
  KF_TRY(emit(s, e));
  *h = (part){start, end, match, false, true};
  return KF_OK;
}

static kf_status run_split(kf_pretokenizer_work *w, int i, const char *text, size_t bytes, bool first, kf_error *e) {
  split s = {.work = w, .stage = i, .text = text, .first = first};
  kf_matcher *m = &w->matchers[i];
  kf_matcher_start(m, text, bytes);
  size_t done = 0, start, end;
  for (;;) {
    bool found;
    KF_TRY(kf_matcher_next(m, &found, &start, &end, e));
    if (!found) break;
    if (start < done) start = done; /* \K can move a start back */
    if (end < start) end = start;
    if (start > done) KF_TRY(take(&s, done, start, false, e));
    KF_TRY(take(&s, start, end, true, e));
    done = end;
  }
  if (done < bytes) KF_TRY(take(&s, done, bytes, false, e));
  return emit(&s, e);
}

static kf_status run_prefix(kf_pretokenizer_work *w, int i, const char *text, size_t bytes, bool first, kf_error *e) {
  if (*text == ' ') return run_stage(w, i + 1, text, bytes, first, e);
  kf_buffer *b = &w->buffers[i];
  b->bytes = 0;
  KF_TRY(kf_buffer_add(b, " ", 1, e));
  KF_TRY(kf_buffer_add(b, text, bytes, e));
  return run_stage(w, i + 1, b->data, b->bytes, first, e);
}

static kf_status run_bytes(kf_pretokenizer_work *w, int i, const char *text, size_t bytes, bool first, kf_error *e) {
  kf_buffer *b = &w->buffers[i];
  b->bytes = 0;
  for (size_t at = 0; at < bytes;) {
    char piece[512];
    size_t n = 0;
    for (; at < bytes && n + 2 <= sizeof piece; at++) n += (size_t)kf_utf8_put(kf_byte_to_char((uint8_t)text[at]), piece + n);
    KF_TRY(kf_buffer_add(b, piece, n, e));
  }
  return run_stage(w, i + 1, b->data, b->bytes, first, e);
}

static kf_status run_meta(kf_pretokenizer_work *w, int i, const char *text, size_t bytes, bool first, kf_error *e) {
  const stage *s = &w->pre->stages[i];
  kf_buffer *b = &w->buffers[i];
  size_t n = strlen(s->replacement);
  b->bytes = 0;
  bool has = *text == ' ' || (bytes >= n && !memcmp(text, s->replacement, n));
  if (!has && (s->scheme == PREPEND_ALWAYS || (s->scheme == PREPEND_FIRST && first)))
    KF_TRY(kf_buffer_add(b, s->replacement, n, e));
  for (size_t at = 0; at < bytes;) {
    const char *space = memchr(text + at, ' ', bytes - at);
    size_t end = space ? (size_t)(space - text) : bytes;
    KF_TRY(kf_buffer_add(b, text + at, end - at, e));
    if (space) KF_TRY(kf_buffer_add(b, s->replacement, n, e));
    at = end + 1;
  }
  return run_stage(w, i + 1, b->data, b->bytes, first, e);
}

static kf_status run_stage(kf_pretokenizer_work *w, int i, const char *text, size_t bytes, bool first, kf_error *e) {
  if (i == w->pre->count) return w->sink(w->user, text, bytes, e);
  switch (w->pre->stages[i].kind) {
  case STAGE_SPLIT: return run_split(w, i, text, bytes, first, e);
  case STAGE_PREFIX: return run_prefix(w, i, text, bytes, first, e);
  case STAGE_BYTES: return run_bytes(w, i, text, bytes, first, e);
  case STAGE_META: return run_meta(w, i, text, bytes, first, e);
  }
  return KF_OK;
}

kf_status kf_pretokenizer_run(kf_pretokenizer_work *w, const char *text, size_t bytes, bool first, kf_error *e) {
  return bytes ? run_stage(w, 0, text, bytes, first, e) : KF_OK;
}
