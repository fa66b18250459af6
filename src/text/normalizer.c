#include "text/normalizer.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/json.h"
#include "text/utf8.h"

typedef enum step_kind { STEP_PREPEND, STEP_REPLACE, STEP_UNICODE, STEP_LOWERCASE, STEP_STRIP, STEP_STRIP_ACCENTS } step_kind;

typedef struct step {
  step_kind kind;
  kf_regex *regex;  /* REPLACE with a regular expression or a string */
  const char *text; /* PREPEND, REPLACE: in the arena */
  size_t bytes;
  utf8proc_option_t form;       /* UNICODE */
  bool strip_left, strip_right; /* STRIP */
} step;

enum { MOST_STEPS = 64 };

struct kf_normalizer {
  kf_arena arena;
  step steps[MOST_STEPS];
  int count;
};

/* ------------------------------------------------------------------------------------------------ reading */

kf_status kf_pattern_read(const json_t *pattern, const char *file, kf_regex **out, kf_error *e) {
  const json_t *text = json_object_get(pattern, "String"), *regex = json_object_get(pattern, "Regex");
  if (json_is_string(text)) return kf_regex_literal(json_string_value(text), json_string_length(text), file, out, e);
  if (json_is_string(regex)) return kf_regex_compile(json_string_value(regex), json_string_length(regex), file, out, e);
  return kf_fail(e, KF_ERROR_INPUT, "%s: a pattern is neither {\"String\": ...} nor {\"Regex\": ...}", file);
}

static kf_status keep_text(kf_normalizer *n, step *s, const json_t *spec, const char *key, const char *file, kf_error *e) {
  const json_t *value = json_object_get(spec, key);
  if (!json_is_string(value)) return kf_fail(e, KF_ERROR_INPUT, "%s: a normalizer has no \"%s\"", file, key);
  s->bytes = json_string_length(value);
  s->text = kf_arena_string(&n->arena, json_string_value(value), s->bytes, e);
  return s->text ? KF_OK : KF_ERROR_MEMORY;
}

static kf_status read_steps(kf_normalizer *n, const json_t *spec, const char *file, int depth, kf_error *e);

static kf_status read_sequence(kf_normalizer *n, const json_t *list, const char *file, int depth, kf_error *e) {
  if (!json_is_array(list) || depth > 8) return kf_fail(e, KF_ERROR_INPUT, "%s: a Sequence without a list of normalizers", file);
  for (size_t i = 0; i < json_array_size(list); i++) KF_TRY(read_steps(n, json_array_get(list, i), file, depth + 1, e));
  return KF_OK;
}

static kf_status read_steps(kf_normalizer *n, const json_t *spec, const char *file, int depth, kf_error *e) {
  static const struct {
    const char *type;
    step_kind kind;
    int form;
  } known[] = {
      {"Prepend", STEP_PREPEND, 0},
      {"Replace", STEP_REPLACE, 0},
      {"NFC", STEP_UNICODE, UTF8PROC_STABLE | UTF8PROC_COMPOSE},
      {"NFD", STEP_UNICODE, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE},
      {"NFKC", STEP_UNICODE, UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT},
      {"NFKD", STEP_UNICODE, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT},
      {"Lowercase", STEP_LOWERCASE, 0},
      {"Strip", STEP_STRIP, 0},
      {"StripAccents", STEP_STRIP_ACCENTS, 0},
  };
  const char *type;
  KF_TRY(kf_json_string(spec, file, "type", "", &type, e));
  if (!strcmp(type, "Sequence")) return read_sequence(n, json_object_get(spec, "normalizers"), file, depth, e);
  size_t k = 0;
  while (k < sizeof known / sizeof *known && strcmp(known[k].type, type) != 0) k++;
  if (k == sizeof known / sizeof *known)
    return kf_fail(e, KF_ERROR_INPUT, "%s: normalizer \"%.60s\" is not supported", file, type);
  if (n->count == MOST_STEPS) return kf_fail(e, KF_ERROR_INPUT, "%s: more than %d normalizers", file, MOST_STEPS);
  step *s = &n->steps[n->count++];
  s->kind = known[k].kind, s->form = (utf8proc_option_t)known[k].form;
  if (s->kind == STEP_PREPEND) return keep_text(n, s, spec, "prepend", file, e);
  if (s->kind == STEP_REPLACE) {
    KF_TRY(keep_text(n, s, spec, "content", file, e));
    return kf_pattern_read(json_object_get(spec, "pattern"), file, &s->regex, e);
  }
  if (s->kind != STEP_STRIP) return KF_OK;
  KF_TRY(kf_json_bool(spec, file, "strip_left", true, &s->strip_left, e));
  return kf_json_bool(spec, file, "strip_right", true, &s->strip_right, e);
}

kf_status kf_normalizer_read(const json_t *spec, const char *file, kf_normalizer **out, kf_error *e) {
  *out = NULL;
  if (!spec || json_is_null(spec)) return KF_OK;
  if (!json_is_object(spec)) return kf_fail(e, KF_ERROR_INPUT, "%s: the normalizer is not an object", file);
  kf_normalizer *n;
  KF_NEW(n, 1, e);
  kf_status s = read_steps(n, spec, file, 0, e);
  if (s == KF_OK)
    *out = n;
  else
    kf_normalizer_free(n);
  return s;
}

void kf_normalizer_free(kf_normalizer *n) {
  if (!n) return;
  for (int i = 0; i < n->count; i++) kf_regex_free(n->steps[i].regex);
  kf_arena_free(&n->arena);
  free(n);
}

/* ------------------------------------------------------------------------------------------------ running */

kf_status kf_replace_all(const kf_regex *r, const char *text, size_t bytes, const char *with, size_t with_bytes, kf_buffer *out,
                         kf_error *e) {
  kf_matcher m;
  KF_TRY(kf_matcher_create(r, &m, e));
  kf_matcher_start(&m, text, bytes);
  size_t done = 0, start, end;
  bool found;
  kf_status s;
  for (;;) {
    KF_GO(kf_matcher_next(&m, &found, &start, &end, e));
    if (!found) break;
    KF_GO(kf_buffer_add(out, text + done, start - done, e));
    KF_GO(kf_buffer_add(out, with, with_bytes, e));
    done = end;
  }
  s = kf_buffer_add(out, text + done, bytes - done, e);
done:
  kf_matcher_free(&m);
  return s;
}

/* Canonical ordering of one run of combining marks: stable by class. A counting sort, since marks can be piled up without
 * end. */
static kf_status order_marks(int32_t *marks, size_t count, kf_error *e) {
  size_t at[257] = {0};
  if (count < 2) return KF_OK;
  int32_t *sorted;
  KF_NEW(sorted, count, e);
  for (size_t i = 0; i < count; i++) at[utf8proc_get_property(marks[i])->combining_class % 256 + 1]++;
  for (int c = 0; c < 256; c++) at[c + 1] += at[c];
  for (size_t i = 0; i < count; i++) sorted[at[utf8proc_get_property(marks[i])->combining_class % 256]++] = marks[i];
  memcpy(marks, sorted, count * sizeof *marks);
  free(sorted);
  return KF_OK;
}

/* A stretch of text at whose start nothing combines with what was before. */
static kf_status to_form(const char *text, size_t bytes, utf8proc_option_t form, kf_buffer *out, kf_error *e) {
  kf_buffer codes = {0};
  kf_status s = KF_OK;
  for (size_t i = 0; i < bytes;) {
    int32_t code, parts[64];
    int boundary = 0;
    i += (size_t)kf_utf8_next(text + i, bytes - i, &code);
    utf8proc_ssize_t count = utf8proc_decompose_char(code, parts, 64, form, &boundary);
    if (count < 0 || count > 64) s = kf_fail(e, KF_ERROR_INPUT, "cannot normalise U+%04X", (unsigned)code);
    if (s != KF_OK) goto done;
    KF_GO(kf_buffer_add(&codes, parts, (size_t)count * sizeof *parts, e));
  }
  int32_t *list = (int32_t *)codes.data;
  size_t count = codes.bytes / sizeof *list;
  for (size_t i = 0, j; i < count; i = j + 1) {
    for (j = i; j < count && utf8proc_get_property(list[j])->combining_class; j++) {}
    KF_GO(order_marks(list + i, j - i, e));
  }
  utf8proc_ssize_t kept = utf8proc_normalize_utf32(list, (utf8proc_ssize_t)count, form);
  for (utf8proc_ssize_t i = 0; i < kept; i++) {
    char bytes_of[4];
    KF_GO(kf_buffer_add(out, bytes_of, (size_t)kf_utf8_put(list[i], bytes_of), e));
  }
done:
  kf_buffer_free(&codes);
  return s;
}

/* ASCII is normal in every form; what follows it may combine with its last character. */
static kf_status unicode_form(const char *text, size_t bytes, utf8proc_option_t form, kf_buffer *out, kf_error *e) {
  for (size_t i = 0; i < bytes;) {
    size_t ascii = i;
    while (ascii < bytes && (uint8_t)text[ascii] < 0x80) ascii++;
    if (ascii < bytes && ascii > i) ascii--;
    KF_TRY(kf_buffer_add(out, text + i, ascii - i, e));
    if (ascii == bytes) break;
    size_t end = ascii + 1;
    while (end < bytes && (uint8_t)text[end] >= 0x80) end++;
    KF_TRY(to_form(text + ascii, end - ascii, form, out, e));
    i = end;
  }
  return KF_OK;
}

static kf_status lowercase(const char *text, size_t bytes, kf_buffer *out, kf_error *e) {
  for (size_t i = 0; i < bytes;) {
    int32_t code;
    char small[4];
    i += (size_t)kf_utf8_next(text + i, bytes - i, &code);
    if (code == 0x130) /* the only letter whose lower case has two code points */
      KF_TRY(kf_buffer_add(out, "i\xcc\x87", 3, e));
    else
      KF_TRY(kf_buffer_add(out, small, (size_t)kf_utf8_put(utf8proc_tolower(code), small), e));
  }
  return KF_OK;
}

static kf_status strip(const step *s, const char *text, size_t bytes, kf_buffer *out, kf_error *e) {
  size_t start = 0, end = 0;
  bool text_seen = false;
  for (size_t i = 0; i < bytes;) {
    int32_t code;
    size_t length = (size_t)kf_utf8_next(text + i, bytes - i, &code);
    if (!kf_utf8_is_space(code)) {
      if (!text_seen) start = i;
      text_seen = true;
      end = i + length;
    }
    i += length;
  }
  if (!text_seen && (s->strip_left || s->strip_right)) return KF_OK;
  if (!s->strip_left) start = 0;
  if (!s->strip_right) end = bytes;
  return kf_buffer_add(out, text + start, end - start, e);
}

static kf_status strip_accents(const char *text, size_t bytes, kf_buffer *out, kf_error *e) {
  for (size_t i = 0; i < bytes;) {
    int32_t code;
    size_t length = (size_t)kf_utf8_next(text + i, bytes - i, &code);
    if (utf8proc_category(code) != UTF8PROC_CATEGORY_MN) KF_TRY(kf_buffer_add(out, text + i, length, e));
    i += length;
  }
  return KF_OK;
}

static kf_status run_step(const step *s, const char *text, size_t bytes, kf_buffer *out, kf_error *e) {
  switch (s->kind) {
  case STEP_PREPEND:
    if (bytes) KF_TRY(kf_buffer_add(out, s->text, s->bytes, e));
    return kf_buffer_add(out, text, bytes, e);
  case STEP_REPLACE: return kf_replace_all(s->regex, text, bytes, s->text, s->bytes, out, e);
  case STEP_UNICODE: return unicode_form(text, bytes, s->form, out, e);
  case STEP_LOWERCASE: return lowercase(text, bytes, out, e);
  case STEP_STRIP: return strip(s, text, bytes, out, e);
  case STEP_STRIP_ACCENTS: return strip_accents(text, bytes, out, e);
  }
  return KF_OK;
}

kf_status kf_normalizer_run(const kf_normalizer *n, const char *text, size_t bytes, kf_buffer *out, kf_error *e) {
  if (!n || !n->count) return kf_buffer_add(out, text, bytes, e);
  kf_buffer from = {0}, to = {0};
  kf_status s = KF_OK;
  for (int i = 0; i < n->count; i++) {
    const char *source = i ? from.data : text;
    size_t length = i ? from.bytes : bytes;
    bool last = i == n->count - 1;
    to.bytes = 0;
    KF_GO(run_step(&n->steps[i], source ? source : "", length, last ? out : &to, e));
    /* A file could multiply the text without end, step by step. */
    if (to.bytes > bytes * 64 + 65536) {
      s = kf_fail(e, KF_ERROR_INPUT, "the tokenizer's normalizer makes %zu bytes of %zu", to.bytes, bytes);
      goto done;
    }
    kf_buffer swap = from;
    from = to, to = swap;
  }
done:
  kf_buffer_free(&from);
  kf_buffer_free(&to);
  return s;
}
