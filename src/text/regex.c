#include "text/regex.h"

#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "text/utf8.h"

struct kf_regex {
  pcre2_code *code;
  char file[256]; /* for messages */
};

/* White_Space: PCRE2's own \s has U+180E as well, Oniguruma's has not. */
#define SPACE "\\t-\\r\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"

/* Rewrites \s and \S; refuses nested classes and intersections, which PCRE2 would read as plain characters. */
static kf_status translate(const char *pattern, size_t bytes, const char *file, kf_buffer *to, kf_error *e) {
  bool in_class = false;
  for (size_t i = 0; i < bytes; i++) {
    const char *p = pattern + i;
    size_t left = bytes - i;
    if (*p == '\\' && left > 1) {
      i++;
      if (p[1] == 's') {
        KF_TRY(in_class ? kf_buffer_printf(to, e, "%s", SPACE) : kf_buffer_printf(to, e, "[%s]", SPACE));
      } else if (p[1] == 'S' && !in_class) {
        KF_TRY(kf_buffer_printf(to, e, "[^%s]", SPACE));
      } else {
        KF_TRY(kf_buffer_add(to, p, 2, e));
      }
      continue;
    }
    if (in_class && ((*p == '[' && (left < 2 || p[1] != ':')) || (left > 1 && p[0] == '&' && p[1] == '&')))
      return kf_fail(e, KF_ERROR_INPUT,
                     "%s: regular expression with a nested or intersected character class is not supported: %.*s", file,
                     (int)(bytes < 200 ? bytes : 200), pattern);
    if (!in_class && *p == '[') {
      in_class = true;
      size_t head = left > 1 && p[1] == '^' ? 2 : 1;
      if (left > head && p[head] == ']') head++; /* a bracket in first place stands for itself */
      KF_TRY(kf_buffer_add(to, p, head, e));
      i += head - 1;
      continue;
    }
    if (in_class && *p == '[') { /* [:alpha:] */
      size_t name = 2;
      while (name < left && p[name] != ']') name++;
      size_t whole = name < left ? name + 1 : left;
      KF_TRY(kf_buffer_add(to, p, whole, e));
      i += whole - 1;
      continue;
    }
    if (*p == ']') in_class = false;
    KF_TRY(kf_buffer_add(to, p, 1, e));
  }
  return KF_OK;
}

static kf_status compile(const char *pattern, size_t bytes, uint32_t options, const char *file, kf_regex **out, kf_error *e) {
  kf_regex *r;
  KF_NEW(r, 1, e);
  strncpy(r->file, file, sizeof r->file - 1);
  int code;
  PCRE2_SIZE offset;
  /* MULTILINE: ^ and $ match at every line, as in Ruby's syntax. */
  r->code = pcre2_compile((PCRE2_SPTR)pattern, bytes, PCRE2_UTF | options, &code, &offset, NULL);
  if (!r->code) {
    PCRE2_UCHAR why[128];
    pcre2_get_error_message(code, why, sizeof why);
    free(r);
    return kf_fail(e, KF_ERROR_INPUT, "%s: bad regular expression (%s at byte %zu): %.*s", file, (char *)why, (size_t)offset,
                   (int)(bytes < 200 ? bytes : 200), pattern);
  }
  pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE); /* where it fails the interpreter gives the same matches */
  *out = r;
  return KF_OK;
}

kf_status kf_regex_compile(const char *pattern, size_t bytes, const char *file, kf_regex **out, kf_error *e) {
  kf_buffer translated = {0};
  kf_status s = translate(pattern, bytes, file, &translated, e);
  if (s == KF_OK)
    s = compile(translated.data ? translated.data : "", translated.bytes, PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                file, out, e);
  kf_buffer_free(&translated);
  return s;
}

kf_status kf_regex_literal(const char *text, size_t bytes, const char *file, kf_regex **out, kf_error *e) {
  if (!bytes) return kf_fail(e, KF_ERROR_INPUT, "%s: an empty pattern to split at or to replace", file);
  return compile(text, bytes, PCRE2_LITERAL, file, out, e);
}

void kf_regex_free(kf_regex *r) {
  if (!r) return;
  pcre2_code_free(r->code);
  free(r);
}

kf_status kf_matcher_create(const kf_regex *r, kf_matcher *out, kf_error *e) {
  *out = (kf_matcher){.regex = r};
  out->match = pcre2_match_data_create_from_pattern(r->code, NULL);
  out->context = pcre2_match_context_create(NULL);
  if (!out->match || !out->context) {
    kf_matcher_free(out);
    return kf_fail(e, KF_ERROR_MEMORY, "%s: out of memory for a regular expression", r->file);
  }
  return KF_OK;
}

void kf_matcher_free(kf_matcher *m) {
  if (m->match) pcre2_match_data_free(m->match);
  if (m->context) pcre2_match_context_free(m->context);
  *m = (kf_matcher){0};
}

void kf_matcher_start(kf_matcher *m, const char *text, size_t bytes) {
  m->text = text, m->bytes = bytes, m->from = 0, m->matched_before = false;
  /* Enough to walk back over all of a long run once; a pattern that needs more is exponential. */
  uint64_t limit = 1000000 + 16 * (uint64_t)bytes;
  pcre2_set_match_limit(m->context, limit > UINT32_MAX ? UINT32_MAX : (uint32_t)limit);
}

kf_status kf_matcher_next(kf_matcher *m, bool *found, size_t *start, size_t *end, kf_error *e) {
  *found = false;
  while (m->from <= m->bytes) {
    PCRE2_SPTR subject = (PCRE2_SPTR)m->text;
    int rc = pcre2_match(m->regex->code, subject, m->bytes, m->from, PCRE2_NO_UTF_CHECK, m->match, m->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
      rc = pcre2_match(m->regex->code, subject, m->bytes, m->from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, m->match, m->context);
    if (rc == PCRE2_ERROR_NOMATCH) return KF_OK;
    if (rc < 0) {
      PCRE2_UCHAR why[128];
      pcre2_get_error_message(rc, why, sizeof why);
      return kf_fail(e, KF_ERROR_INPUT, "%s: a regular expression of the tokenizer fails on this text: %s", m->regex->file,
                     (char *)why);
    }
    const PCRE2_SIZE *o = pcre2_get_ovector_pointer(m->match);
    size_t a = o[0], b = o[1];
    if (a > b) b = a; /* \K in a lookahead can put the start behind the end */
    if (a == b && m->matched_before && m->last_end == b) {
      int32_t code;
      m->from += m->from < m->bytes ? (size_t)kf_utf8_next(m->text + m->from, m->bytes - m->from, &code) : 1;
      continue;
    }
    m->from = m->last_end = b;
    m->matched_before = true;
    *found = true, *start = a, *end = b;
    return KF_OK;
  }
  return KF_OK;
}
