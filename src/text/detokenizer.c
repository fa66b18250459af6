#include "text/detokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "text/normalizer.h"
#include "text/pretokenizer.h"
#include "text/utf8.h"

typedef enum stage_kind { STAGE_BYTES, STAGE_REPLACE, STAGE_FALLBACK, STAGE_STRIP, STAGE_META, STAGE_JOIN } stage_kind;

typedef struct stage {
  stage_kind kind;
  bool fused;       /* tokens before it are one string */
  kf_regex *regex;  /* REPLACE */
  const char *text; /* REPLACE: what comes in; STRIP, META: the character that goes; in the arena */
  size_t bytes;
  int start, stop; /* STRIP */
  bool keep_first; /* META: prepend_scheme "never" */
} stage;

struct kf_detokenizer {
  kf_arena arena;
  stage stages[KF_DECODER_STAGES];
  int count;
  bool fused;
  int strip_left; /* of the stage that strips the fused text */
};

static const char replacement_character[] = "\xef\xbf\xbd";

/* ------------------------------------------------------------------------------------------------ reading */

static kf_status keep_text(kf_detokenizer *d, stage *s, const json_t *spec, const char *key, const char *fallback,
                           const char *file, kf_error *e) {
  const json_t *value = json_object_get(spec, key);
  if (!json_is_string(value) && !fallback) return kf_fail(e, KF_ERROR_INPUT, "%s: a decoder has no \"%s\"", file, key);
  const char *text = json_is_string(value) ? json_string_value(value) : fallback;
  s->bytes = json_is_string(value) ? json_string_length(value) : strlen(fallback);
  s->text = kf_arena_string(&d->arena, text, s->bytes, e);
  return s->text ? KF_OK : KF_ERROR_MEMORY;
}

static kf_status read_strip(kf_detokenizer *d, stage *s, const json_t *spec, const char *file, kf_error *e) {
  int64_t start, stop;
  KF_TRY(keep_text(d, s, spec, "content", NULL, file, e));
  KF_TRY(kf_json_int(spec, file, "start", 0, 0, 1 << 20, &start, e));
  KF_TRY(kf_json_int(spec, file, "stop", 0, 0, 1 << 20, &stop, e));
  if (!s->bytes || (s->fused && (stop || d->strip_left)))
    return kf_fail(e, KF_ERROR_INPUT, "%s: a Strip decoder that strips nothing, or the end of the text, is not supported", file);
  s->start = (int)start, s->stop = (int)stop;
  if (s->fused) d->strip_left = s->start;
  return KF_OK;
}

static kf_status read_replace(kf_detokenizer *d, stage *s, const json_t *spec, const char *file, kf_error *e) {
  const json_t *pattern = json_object_get(spec, "pattern"), *literal = json_object_get(pattern, "String");
  int32_t code;
  bool one = json_string_length(literal) &&
             (size_t)kf_utf8_next(json_string_value(literal), json_string_length(literal), &code) == json_string_length(literal);
  if (s->fused && !one) return kf_fail(e, KF_ERROR_INPUT, "%s: a Replace decoder of more than one character after Fuse", file);
  KF_TRY(keep_text(d, s, spec, "content", NULL, file, e));
  return kf_pattern_read(pattern, file, &s->regex, e);
}

static kf_status read_metaspace(kf_detokenizer *d, stage *s, const json_t *spec, const char *file, kf_error *e) {
  const char *name;
  bool prefix;
  KF_TRY(keep_text(d, s, spec, "replacement", "\xe2\x96\x81", file, e));
  KF_TRY(kf_json_bool(spec, file, "add_prefix_space", true, &prefix, e));
  KF_TRY(kf_json_string(spec, file, "prepend_scheme", prefix ? "always" : "never", &name, e));
  if (!s->bytes) return kf_fail(e, KF_ERROR_INPUT, "%s: a Metaspace decoder with an empty replacement", file);
  s->keep_first = !strcmp(name, "never");
  return KF_OK;
}

static kf_status read_stages(kf_detokenizer *d, const json_t *spec, const char *file, int depth, kf_error *e) {
  static const char *const known[] = {"ByteLevel", "Replace", "ByteFallback", "Strip", "Metaspace"};
  const char *type;
  KF_TRY(kf_json_string(spec, file, "type", "", &type, e));
  const json_t *list = json_object_get(spec, "decoders");
  if (!strcmp(type, "Sequence") && json_is_array(list) && depth < 8) {
    for (size_t i = 0; i < json_array_size(list); i++) KF_TRY(read_stages(d, json_array_get(list, i), file, depth + 1, e));
    return KF_OK;
  }
  if (!strcmp(type, "Fuse")) {
    d->fused = true;
    return KF_OK;
  }
  size_t kind = 0;
  while (kind < sizeof known / sizeof *known && strcmp(type, known[kind]) != 0) kind++;
  if (kind == sizeof known / sizeof *known)
    return kf_fail(e, KF_ERROR_INPUT, "%s: decoder \"%.60s\" is not supported", file, type);
  if (d->count == KF_DECODER_STAGES) return kf_fail(e, KF_ERROR_INPUT, "%s: more than %d decoders", file, KF_DECODER_STAGES);
  stage *s = &d->stages[d->count++];
  s->kind = (stage_kind)kind, s->fused = d->fused;
  if (s->kind == STAGE_REPLACE) return read_replace(d, s, spec, file, e);
  if (s->kind == STAGE_STRIP) return read_strip(d, s, spec, file, e);
  if (d->fused) return kf_fail(e, KF_ERROR_INPUT, "%s: decoder %s after Fuse is not supported", file, type);
  if (s->kind == STAGE_META) return read_metaspace(d, s, spec, file, e);
  for (int i = 0; i < d->count - 1; i++)
    if (d->stages[i].kind == STAGE_BYTES || d->stages[i].kind == STAGE_FALLBACK)
      return kf_fail(e, KF_ERROR_INPUT, "%s: two decoders that gather bytes are not supported", file);
  if (s->kind == STAGE_BYTES) d->fused = true;
  return KF_OK;
}

kf_status kf_detokenizer_read(const json_t *spec, const char *file, kf_detokenizer **out, kf_error *e) {
  kf_detokenizer *d;
  bool given = spec && !json_is_null(spec);
  if (given && !json_is_object(spec)) return kf_fail(e, KF_ERROR_INPUT, "%s: the decoder is not an object", file);
  KF_NEW(d, 1, e);
  kf_status s = given ? read_stages(d, spec, file, 0, e) : KF_OK;
  if (!given) d->stages[d->count++] = (stage){.kind = STAGE_JOIN};
  if (s == KF_OK)
    *out = d;
  else
    kf_detokenizer_free(d);
  return s;
}

void kf_detokenizer_free(kf_detokenizer *d) {
  if (!d) return;
  for (int i = 0; i < d->count; i++) kf_regex_free(d->stages[i].regex);
  kf_arena_free(&d->arena);
  free(d);
}

/* ------------------------------------------------------------------------------------------------ running */

void kf_detokenizing_start(kf_detokenizing *d, const kf_detokenizer *how, bool whole) {
  *d = (kf_detokenizing){.how = how, .whole = whole, .strip_left = how->strip_left};
}

void kf_detokenizing_free(kf_detokenizing *d) {
  kf_buffer_free(&d->pending);
  for (int i = 0; i < KF_DECODER_STAGES; i++) kf_buffer_free(&d->work[i]);
}

static kf_status run(kf_detokenizing *d, int i, const char *text, size_t bytes, kf_buffer *out, kf_error *e);

static void drop_pending(kf_detokenizing *d, size_t bytes) {
  memmove(d->pending.data, d->pending.data + bytes, d->pending.bytes - bytes);
  d->pending.bytes -= bytes;
}

/* Gives stage i + 1 the complete characters among the pending bytes, U+FFFD for what is broken. */
static kf_status flush_bytes(kf_detokenizing *d, int i, bool last, kf_buffer *out, kf_error *e) {
  kf_buffer *text = &d->work[i];
  size_t used = 0;
  text->bytes = 0;
  if (!d->pending.bytes) return KF_OK;
  KF_TRY(kf_utf8_repair(text, d->pending.data, d->pending.bytes, last, &used, e));
  drop_pending(d, used);
  return text->bytes ? run(d, i + 1, text->data, text->bytes, out, e) : KF_OK;
}

/* Characters outside of the byte alphabet make the whole token stand for itself. */
static kf_status run_bytes(kf_detokenizing *d, int i, const char *token, size_t bytes, kf_buffer *out, kf_error *e) {
  size_t before = d->pending.bytes;
  for (size_t at = 0; at < bytes;) {
    int32_t code;
    at += (size_t)kf_utf8_next(token + at, bytes - at, &code);
    int byte = kf_char_to_byte(code);
    if (byte < 0) {
      d->pending.bytes = before;
      KF_TRY(kf_buffer_add(&d->pending, token, bytes, e));
      break;
    }
    KF_TRY(kf_buffer_add(&d->pending, &(char){(char)byte}, 1, e));
  }
  return flush_bytes(d, i, false, out, e);
}

/* The end of a run of byte tokens. */
static kf_status flush_fallback(kf_detokenizing *d, int i, kf_buffer *out, kf_error *e) {
  size_t n = d->pending.bytes;
  if (!n) return KF_OK;
  kf_buffer *text = &d->work[i];
  text->bytes = 0;
  if (kf_utf8_valid(d->pending.data, n) == n)
    KF_TRY(kf_buffer_add(text, d->pending.data, n, e));
  else
    for (size_t k = 0; k < n; k++) KF_TRY(kf_buffer_add(text, replacement_character, 3, e));
  d->pending.bytes = 0;
  return run(d, i + 1, text->data, text->bytes, out, e);
}

/* While streaming, what is complete goes out at once. */
static kf_status advance_fallback(kf_detokenizing *d, int i, kf_buffer *out, kf_error *e) {
  kf_buffer *text = &d->work[i];
  text->bytes = 0;
  while (d->pending.bytes) {
    int32_t code;
    int length = kf_utf8_next(d->pending.data, d->pending.bytes, &code);
    if (code == KF_UTF8_CUT) break;
    if (code != KF_UTF8_BAD) KF_TRY(kf_buffer_add(text, d->pending.data, (size_t)length, e));
    for (int k = 0; k < length && code == KF_UTF8_BAD; k++) KF_TRY(kf_buffer_add(text, replacement_character, 3, e));
    drop_pending(d, (size_t)length);
  }
  return text->bytes ? run(d, i + 1, text->data, text->bytes, out, e) : KF_OK;
}

static int hex(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static int byte_of_token(const char *t, size_t bytes) {
  if (bytes != 6 || memcmp(t, "<0x", 3) != 0 || t[5] != '>' || hex(t[3]) < 0 || hex(t[4]) < 0) return -1;
  return hex(t[3]) * 16 + hex(t[4]);
}

static kf_status run_strip(kf_detokenizing *d, const stage *s, int i, const char *text, size_t bytes, kf_buffer *out,
                           kf_error *e) {
  int *left = s->fused ? &d->strip_left : &(int){s->start};
  while (*left > 0 && bytes) {
    if (bytes < s->bytes || memcmp(text, s->text, s->bytes) != 0) {
      *left = 0;
      break;
    }
    text += s->bytes, bytes -= s->bytes, --*left;
  }
  for (int k = 0; k < s->stop && bytes >= s->bytes && !memcmp(text + bytes - s->bytes, s->text, s->bytes); k++) bytes -= s->bytes;
  return run(d, i + 1, text, bytes, out, e);
}

static kf_status run_meta(kf_detokenizing *d, const stage *s, int i, const char *text, size_t bytes, kf_buffer *out,
                          kf_error *e) {
  bool drop = !d->meta_begun && !s->keep_first;
  kf_buffer *to = &d->work[i];
  to->bytes = 0;
  d->meta_begun = true;
  for (size_t at = 0; at < bytes;) {
    bool space = bytes - at >= s->bytes && !memcmp(text + at, s->text, s->bytes);
    if (!space) KF_TRY(kf_buffer_add(to, text + at, 1, e));
    if (space && !drop) KF_TRY(kf_buffer_add(to, " ", 1, e));
    at += space ? s->bytes : 1;
  }
  return run(d, i + 1, to->data ? to->data : "", to->bytes, out, e);
}

static kf_status run_replace(kf_detokenizing *d, const stage *s, int i, const char *text, size_t bytes, kf_buffer *out,
                             kf_error *e) {
  kf_buffer *to = &d->work[i];
  to->bytes = 0;
  KF_TRY(kf_replace_all(s->regex, text, bytes, s->text, s->bytes, to, e));
  return run(d, i + 1, to->data, to->bytes, out, e);
}

static kf_status run(kf_detokenizing *d, int i, const char *text, size_t bytes, kf_buffer *out, kf_error *e) {
  if (i == d->how->count) return kf_buffer_add(out, text, bytes, e);
  const stage *s = &d->how->stages[i];
  switch (s->kind) {
  case STAGE_BYTES: return run_bytes(d, i, text, bytes, out, e);
  case STAGE_REPLACE: return run_replace(d, s, i, text, bytes, out, e);
  case STAGE_STRIP: return run_strip(d, s, i, text, bytes, out, e);
  case STAGE_META: return run_meta(d, s, i, text, bytes, out, e);
  case STAGE_JOIN:
    if (d->begun) KF_TRY(kf_buffer_add(out, " ", 1, e));
    return kf_buffer_add(out, text, bytes, e);
  case STAGE_FALLBACK: break;
  }
  int byte = byte_of_token(text, bytes);
  if (byte < 0) {
    KF_TRY(flush_fallback(d, i, out, e));
    return run(d, i + 1, text, bytes, out, e);
  }
  KF_TRY(kf_buffer_add(&d->pending, &(char){(char)byte}, 1, e));
  return d->whole ? KF_OK : advance_fallback(d, i, out, e);
}

kf_status kf_detokenizing_push(kf_detokenizing *d, const char *token, size_t bytes, kf_buffer *out, kf_error *e) {
  KF_TRY(run(d, 0, token, bytes, out, e));
  d->begun = true;
  return KF_OK;
}

kf_status kf_detokenizing_finish(kf_detokenizing *d, kf_buffer *out, kf_error *e) {
  for (int i = 0; i < d->how->count; i++) {
    if (d->how->stages[i].kind == STAGE_BYTES) KF_TRY(flush_bytes(d, i, true, out, e));
    if (d->how->stages[i].kind == STAGE_FALLBACK) KF_TRY(flush_fallback(d, i, out, e));
  }
  return KF_OK;
}
