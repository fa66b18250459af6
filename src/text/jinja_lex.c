/* Cuts a template into tokens. Whitespace follows Jinja's lexer with trim_blocks and lstrip_blocks: the first newline
 * after a block or comment goes, and so does indentation in front of one; "-" strips all, "+" keeps all. */
#include "text/jinja_impl.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

typedef struct lexer {
  kf_jinja *j;
  const char *at, *end;
  int line;
  bool line_start; /* the last tag took the newline behind it */
  kf_j_token **tail;
} lexer;

static kf_status emit(lexer *l, kf_j_token_kind kind, kf_j_value value) {
  kf_j_token *t;
  KF_TRY(kf_j_alloc(l->j, 1, sizeof *t, &t));
  *t = (kf_j_token){.kind = kind, .line = l->line, .value = value};
  *l->tail = t;
  l->tail = &t->next;
  return KF_OK;
}

static kf_status emit_text(lexer *l, kf_j_token_kind kind, const char *data, size_t bytes) {
  char *copy;
  kf_j_value v;
  KF_TRY(kf_j_alloc(l->j, bytes + 1, 1, &copy));
  memcpy(copy, data, bytes);
  KF_TRY(kf_j_text(l->j, copy, bytes, &v));
  return emit(l, kind, v);
}

static void advance(lexer *l, const char *to) {
  for (; l->at < to; l->at++) l->line += *l->at == '\n';
}

static bool starts(const lexer *l, const char *at, const char *word) {
  size_t n = strlen(word);
  return (size_t)(l->end - at) >= n && memcmp(at, word, n) == 0;
}

static const char *skip_space(const char *at, const char *end) {
  for (const char *next = at; at < end; at = next)
    if (!kf_j_space(kf_j_next(&next, end))) break;
  return at;
}

/* Unix newlines, without the last one. */
static kf_status normalise(kf_jinja *j, const char *source, kf_j_string *out) {
  size_t n = strlen(source), bytes = 0;
  char *copy;
  KF_TRY(kf_j_alloc(j, n + 1, 1, &copy));
  for (size_t i = 0; i < n; i++) {
    if (source[i] == '\r' && source[i + 1] == '\n') continue;
    copy[bytes++] = source[i] == '\r' ? '\n' : source[i];
  }
  if (bytes && copy[bytes - 1] == '\n') bytes--;
  copy[bytes] = 0;
  for (size_t i = 0; i < bytes;) {
    int32_t code;
    utf8proc_ssize_t step = utf8proc_iterate((const utf8proc_uint8_t *)copy + i, (utf8proc_ssize_t)(bytes - i), &code);
    if (step < 1) return kf_j_fail(j, "the template is not UTF-8 at byte %zu", i);
    j->line += code == '\n';
    i += (size_t)step;
  }
  *out = (kf_j_string){.data = copy, .bytes = bytes};
  return KF_OK;
}

/* The text in front of a tag at `tag`, stripped as the sign behind the tag's opening says. */
static kf_status text_before(lexer *l, const char *tag, bool lstrip) {
  char sign = tag + 2 < l->end ? tag[2] : 0;
  const char *end = tag;
  if (sign == '-') {
    for (const char *p = end; p > l->at; end = p)
      if (!kf_j_space(kf_j_previous(l->at, &p))) break;
  } else if (sign != '+' && lstrip) {
    const char *line = tag;
    while (line > l->at && line[-1] != '\n') line--;
    if ((line > l->at || l->line_start) && skip_space(line, tag) == tag) end = line;
  }
  if (end > l->at) KF_TRY(emit_text(l, KF_T_TEXT, l->at, (size_t)(end - l->at)));
  advance(l, tag);
  return KF_OK;
}

/* Takes a closing delimiter ("%}", "#}", "}}") at `at` with its sign and the whitespace that goes with it. */
static bool closes(lexer *l, const char *at, const char *delimiter, bool trim, bool plus, const char **after) {
  bool minus = *at == '-' && starts(l, at + 1, delimiter);
  if (minus) {
    *after = skip_space(at + 3, l->end);
  } else if (plus && *at == '+' && starts(l, at + 1, delimiter)) {
    *after = at + 3;
  } else if (starts(l, at, delimiter)) {
    *after = at + 2;
    if (trim && *after < l->end && **after == '\n') ++*after;
  } else {
    return false;
  }
  return true;
}

static void close_tag(lexer *l, const char *after) {
  advance(l, after);
  l->line_start = after[-1] == '\n';
}

static kf_status comment(lexer *l) {
  const char *p = l->at + 2, *after;
  if (p < l->end && (*p == '-' || *p == '+')) p++;
  for (; p < l->end; p++)
    if (closes(l, p, "#}", true, true, &after)) return close_tag(l, after), KF_OK;
  l->j->line = l->line;
  return kf_j_fail(l->j, "a comment is not closed by #}");
}

/* Matches {%[-+]? word [-]?%} at `at`; NULL: something else. */
static const char *word_tag(lexer *l, const char *at, const char *word, bool trim) {
  const char *p = at + 2, *after;
  if (p < l->end && (*p == '-' || *p == '+')) p++;
  p = skip_space(p, l->end);
  if (!starts(l, p, word)) return NULL;
  p = skip_space(p + strlen(word), l->end);
  return p < l->end && closes(l, p, "%}", trim, trim, &after) ? after : NULL;
}

static kf_status raw(lexer *l, const char *body) {
  close_tag(l, body);
  for (const char *p = l->at; (p = memmem(p, (size_t)(l->end - p), "{%", 2)); p++) {
    const char *after = word_tag(l, p, "endraw", true);
    if (!after) continue;
    KF_TRY(text_before(l, p, true));
    close_tag(l, after);
    return KF_OK;
  }
  l->j->line = l->line;
  return kf_j_fail(l->j, "{%% raw %%} is not closed by {%% endraw %%}");
}

/* One escape of a Python string literal at p (behind the backslash). */
static kf_status escape(lexer *l, kf_j_builder *b, const char **p, const char *end) {
  static const char letters[] = "abfnrtv\\'\"", codes[] = "\a\b\f\n\r\t\v\\'\"";
  char c = *(*p)++;
  const char *simple = c ? strchr(letters, c) : NULL;
  if (simple) return kf_j_add(l->j, b, &codes[simple - letters], 1);
  if (c == '\n') return KF_OK;
  int digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
  int64_t code = 0;
  if (digits) {
    for (int i = 0; i < digits; i++, ++*p) {
      if (*p == end || !isxdigit((unsigned char)**p))
        return kf_j_fail(l->j, "a \\%c escape needs %d hexadecimal digits", c, digits);
      code = code * 16 + (isdigit((unsigned char)**p) ? **p - '0' : tolower((unsigned char)**p) - 'a' + 10);
    }
  } else if (c >= '0' && c <= '7') {
    code = c - '0';
    for (int i = 0; i < 2 && *p < end && **p >= '0' && **p <= '7'; i++) code = code * 8 + *(*p)++ - '0';
  } else {
    KF_TRY(kf_j_add(l->j, b, "\\", 1)); // Python keeps what it does not know
    return kf_j_add(l->j, b, &c, 1);
  }
  if (code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
    return kf_j_fail(l->j, "\\%c%llx is no character", c, (long long)code);
  return kf_j_add_char(l->j, b, (int32_t)code);
}

static kf_status string(lexer *l) {
  char quote = *l->at;
  const char *p = l->at + 1;
  kf_j_builder b = {0};
  l->j->line = l->line;
  while (p < l->end && *p != quote) {
    if (*p != '\\') {
      const char *run = p;
      while (p < l->end && *p != quote && *p != '\\') p++;
      KF_TRY(kf_j_add(l->j, &b, run, (size_t)(p - run)));
    } else {
      if (++p == l->end) break;
      KF_TRY(escape(l, &b, &p, l->end));
    }
  }
  if (p >= l->end) return kf_j_fail(l->j, "a string is not closed by %c", quote);
  kf_j_value v;
  KF_TRY(kf_j_built(l->j, &b, &v));
  KF_TRY(emit(l, KF_T_STRING, v));
  advance(l, p + 1);
  return KF_OK;
}

/* Digits with single underscores between them; returns their end. */
static const char *digits(const lexer *l, const char *p) {
  while (p < l->end && (isdigit((unsigned char)*p) || (*p == '_' && p + 1 < l->end && isdigit((unsigned char)p[1])))) p++;
  return p;
}

static kf_status number(lexer *l) {
  const char *p = digits(l, l->at);
  bool whole = true;
  if (p + 1 < l->end && *p == '.' && isdigit((unsigned char)p[1])) {
    p = digits(l, p + 1);
    whole = false;
  }
  if (p < l->end && (*p == 'e' || *p == 'E')) {
    const char *exponent = p + 1;
    if (exponent < l->end && (*exponent == '+' || *exponent == '-')) exponent++;
    if (exponent < l->end && isdigit((unsigned char)*exponent)) {
      p = digits(l, exponent);
      whole = false;
    }
  }
  l->j->line = l->line;
  char text[128];
  size_t n = 0;
  for (const char *c = l->at; c < p; c++) {
    if (n + 1 == sizeof text) return kf_j_fail(l->j, "a number is too long");
    if (*c != '_') text[n++] = *c;
  }
  text[n] = 0;
  errno = 0;
  kf_j_value v = whole ? kf_j_int(strtoll(text, NULL, 10)) : kf_j_real(strtod(text, NULL));
  if (whole && errno) return kf_j_fail(l->j, "the number %.40s is too large", text);
  if (whole && n > 1 && text[0] == '0' && v.integer) return kf_j_fail(l->j, "the number %.40s starts with 0", text);
  KF_TRY(emit(l, KF_T_NUMBER, v));
  advance(l, p);
  return KF_OK;
}

static bool name_char(char c) {
  return isalnum((unsigned char)c) || c == '_' || (unsigned char)c >= 0x80;
}

static kf_status operator_token(lexer *l) {
  static const char *const two[] = {"//", "**", "==", "!=", ">=", "<="};
  size_t n = 1;
  for (size_t i = 0; i < sizeof two / sizeof *two; i++)
    if (starts(l, l->at, two[i])) n = 2;
  if (n == 1 && !strchr("+-/*%~[](){}><=.:|,;", *l->at)) {
    l->j->line = l->line;
    return kf_j_fail(l->j, "unexpected character '%c'", *l->at);
  }
  kf_j_token *t;
  KF_TRY(kf_j_alloc(l->j, 1, sizeof *t, &t));
  *t = (kf_j_token){.kind = KF_T_OPERATOR, .line = l->line};
  memcpy(t->op, l->at, n);
  *l->tail = t;
  l->tail = &t->next;
  l->at += n;
  return KF_OK;
}

/* The inside of {{ }} or {% %}. Brackets must close before the tag can, so that {{ {'a': {}} }} works. */
static kf_status tag(lexer *l, bool block) {
  const char *delimiter = block ? "%}" : "}}", *after;
  char open[KF_JINJA_DEPTH];
  int depth = 0, line = l->line;
  KF_TRY(emit(l, block ? KF_T_BLOCK : KF_T_PRINT, kf_j_none()));
  l->at += 2;
  if (l->at < l->end && (*l->at == '-' || *l->at == '+')) l->at++;
  for (;;) {
    advance(l, skip_space(l->at, l->end));
    if (l->at == l->end) {
      l->j->line = line;
      return kf_j_fail(l->j, "%s is not closed by %s", block ? "{%" : "{{", delimiter);
    }
    if (!depth && closes(l, l->at, delimiter, block, block, &after)) break;
    char c = *l->at;
    if (c == '"' || c == '\'') {
      KF_TRY(string(l));
    } else if (isdigit((unsigned char)c)) {
      KF_TRY(number(l));
    } else if (name_char(c)) {
      const char *p = l->at;
      while (p < l->end && name_char(*p)) p++;
      KF_TRY(emit_text(l, KF_T_NAME, l->at, (size_t)(p - l->at)));
      l->at = p;
    } else {
      l->j->line = l->line;
      if (strchr("([{", c)) {
        if (depth == KF_JINJA_DEPTH) return kf_j_fail(l->j, "brackets nest deeper than %d", KF_JINJA_DEPTH);
        open[depth++] = c == '(' ? ')' : c == '[' ? ']' : '}';
      } else if (strchr(")]}", c) && (!depth || open[--depth] != c)) {
        return kf_j_fail(l->j, "unexpected '%c'", c);
      }
      KF_TRY(operator_token(l));
    }
  }
  KF_TRY(emit(l, block ? KF_T_BLOCK_END : KF_T_PRINT_END, kf_j_none()));
  close_tag(l, after);
  return KF_OK;
}

kf_status kf_j_lex(kf_jinja *j, const char *source, kf_j_token **out) {
  kf_j_string text = {0};
  KF_TRY(normalise(j, source, &text));
  lexer l = {.j = j, .at = text.data, .end = text.data + text.bytes, .line = 1, .line_start = true, .tail = out};
  for (const char *p = l.at; p < l.end;) {
    char kind = *p == '{' && p + 1 < l.end ? p[1] : 0;
    if (kind != '{' && kind != '%' && kind != '#') {
      p++;
      continue;
    }
    KF_TRY(text_before(&l, p, kind != '{'));
    const char *body = kind == '%' ? word_tag(&l, p, "raw", false) : NULL;
    if (body) {
      KF_TRY(raw(&l, body));
    } else if (kind == '#') {
      KF_TRY(comment(&l));
    } else {
      KF_TRY(tag(&l, kind == '%'));
    }
    p = l.at;
  }
  if (l.end > l.at) KF_TRY(emit_text(&l, KF_T_TEXT, l.at, (size_t)(l.end - l.at)));
  advance(&l, l.end);
  return emit(&l, KF_T_END, kf_j_none());
}
