/* Values as text: Python's str() and repr(), JSON as Hugging Face's tojson writes it, and the % operator. */
#include "text/jinja_impl.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* ------------------------------------------------------------------------------------------------ str and repr */

/* The shortest digits that read back as f, laid out as Python does. */
static void real_text(double f, char out[40]) {
  if (!isfinite(f)) {
    snprintf(out, 40, "%s", isnan(f) ? "nan" : f < 0 ? "-inf" : "inf");
    return;
  }
  int precision = 0;
  do snprintf(out, 40, "%.*e", precision, f);
  while (strtod(out, NULL) != f && ++precision < 17);
  int exponent = atoi(strchr(out, 'e') + 1);
  if (exponent < -4 || exponent >= 16) return;
  int decimals = precision - exponent;
  snprintf(out, 40, decimals > 0 ? "%.*f" : "%.*f.0", decimals > 0 ? decimals : 0, f);
}

static bool printable(int32_t code) {
  switch (utf8proc_category(code)) {
  case UTF8PROC_CATEGORY_CC:
  case UTF8PROC_CATEGORY_CF:
  case UTF8PROC_CATEGORY_CS:
  case UTF8PROC_CATEGORY_CO:
  case UTF8PROC_CATEGORY_CN:
  case UTF8PROC_CATEGORY_ZL:
  case UTF8PROC_CATEGORY_ZP: return false;
  case UTF8PROC_CATEGORY_ZS: return code == ' ';
  default: return true;
  }
}

static kf_status repr_string(kf_jinja *j, kf_j_builder *b, const kf_j_string *s) {
  bool doubled = memchr(s->data, '\'', s->bytes) && !memchr(s->data, '"', s->bytes);
  char quote = doubled ? '"' : '\'';
  KF_TRY(kf_j_add(j, b, &quote, 1));
  for (const char *at = s->data, *end = at + s->bytes; at < end;) {
    int32_t c = kf_j_next(&at, end);
    if (c == '\\' || c == quote) {
      KF_TRY(kf_j_add_format(j, b, "\\%c", (char)c));
    } else if (c == '\n' || c == '\r' || c == '\t') {
      KF_TRY(kf_j_add(j, b, c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t", 2));
    } else if (printable(c)) {
      KF_TRY(kf_j_add_char(j, b, c));
    } else {
      KF_TRY(kf_j_add_format(j, b, c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x", (unsigned)c));
    }
  }
  return kf_j_add(j, b, &quote, 1);
}

static kf_status repr_items(kf_jinja *j, kf_j_builder *b, const kf_j_list *l, const char *open, const char *close) {
  KF_TRY(kf_j_add(j, b, open, strlen(open)));
  for (size_t i = 0; i < l->count; i++) {
    if (i) KF_TRY(kf_j_add(j, b, ", ", 2));
    KF_TRY(kf_j_repr(j, b, l->items[i]));
  }
  return kf_j_add(j, b, close, strlen(close));
}

static kf_status repr_dict(kf_jinja *j, kf_j_builder *b, const kf_j_dict *d) {
  KF_TRY(kf_j_add(j, b, "{", 1));
  for (size_t i = 0; i < d->count; i++) {
    if (i) KF_TRY(kf_j_add(j, b, ", ", 2));
    KF_TRY(kf_j_repr(j, b, d->pairs[i].key));
    KF_TRY(kf_j_add(j, b, ": ", 2));
    KF_TRY(kf_j_repr(j, b, d->pairs[i].value));
  }
  return kf_j_add(j, b, "}", 1);
}

static kf_status repr_range(kf_jinja *j, kf_j_builder *b, const kf_j_range *r) {
  KF_TRY(kf_j_add_format(j, b, "range(%lld, %lld", (long long)r->start, (long long)r->stop));
  return r->step == 1 ? kf_j_add(j, b, ")", 1) : kf_j_add_format(j, b, ", %lld)", (long long)r->step);
}

static kf_status repr_container(kf_jinja *j, kf_j_builder *b, kf_j_value v) {
  switch (v.kind) {
  case KF_J_LIST: return repr_items(j, b, v.list, "[", "]");
  case KF_J_TUPLE: return repr_items(j, b, v.list, "(", v.list->count == 1 ? ",)" : ")");
  case KF_J_VIEW: KF_TRY(kf_j_add_format(j, b, "dict_%s", v.list->view)); return repr_items(j, b, v.list, "([", "])");
  case KF_J_DICT: return repr_dict(j, b, v.dict);
  case KF_J_NAMESPACE:
    KF_TRY(kf_j_add(j, b, "<Namespace ", 11));
    KF_TRY(repr_dict(j, b, v.dict));
    return kf_j_add(j, b, ">", 1);
  case KF_J_LOOP: return kf_j_add_format(j, b, "<LoopContext %zu/%zu>", v.loop->index + 1, v.loop->items.count);
  case KF_J_RANGE: return repr_range(j, b, v.range);
  default: return kf_j_add_format(j, b, "<%s>", kf_j_type(v));
  }
}

kf_status kf_j_repr(kf_jinja *j, kf_j_builder *b, kf_j_value v) {
  char text[40];
  switch (v.kind) {
  case KF_J_UNDEFINED: return kf_j_add(j, b, "Undefined", 9);
  case KF_J_NONE: return kf_j_add(j, b, "None", 4);
  case KF_J_BOOL: return v.integer ? kf_j_add(j, b, "True", 4) : kf_j_add(j, b, "False", 5);
  case KF_J_INT: return kf_j_add_format(j, b, "%lld", (long long)v.integer);
  case KF_J_FLOAT: real_text(v.real, text); return kf_j_add(j, b, text, strlen(text));
  case KF_J_STRING: return repr_string(j, b, v.string);
  default: break;
  }
  KF_TRY(kf_j_enter(j));
  KF_TRY(repr_container(j, b, v));
  j->depth--;
  return KF_OK;
}

kf_status kf_j_print(kf_jinja *j, kf_j_builder *b, kf_j_value v) {
  if (v.kind == KF_J_UNDEFINED) return KF_OK;
  return v.kind == KF_J_STRING ? kf_j_add(j, b, v.string->data, v.string->bytes) : kf_j_repr(j, b, v);
}

kf_status kf_j_string_of(kf_jinja *j, kf_j_value v, kf_j_value *out) {
  if (v.kind == KF_J_STRING) return *out = v, KF_OK;
  kf_j_builder b = {0};
  KF_TRY(kf_j_print(j, &b, v));
  return kf_j_built(j, &b, out);
}

/* ------------------------------------------------------------------------------------------------ JSON */

typedef struct json_style {
  bool ascii, sort, lines;
  const kf_j_string *indent;     /* one level, when lines */
  const kf_j_string *item, *key; /* separators */
} json_style;

static kf_status json_value(kf_jinja *j, kf_j_builder *b, const json_style *style, kf_j_value v, int level);

static kf_status json_char(kf_jinja *j, kf_j_builder *b, bool ascii, int32_t c) {
  static const char codes[] = "\"\\\n\r\t\f\b", letters[] = "\"\\nrtfb";
  const char *simple = c ? strchr(codes, c < 0x80 ? c : 1) : NULL;
  if (simple) return kf_j_add_format(j, b, "\\%c", letters[simple - codes]);
  if (c >= 0x10000 && ascii)
    return kf_j_add_format(j, b, "\\u%04x\\u%04x", 0xd800 + ((unsigned)(c - 0x10000) >> 10), 0xdc00 + ((unsigned)c & 0x3ff));
  if (c < 0x20 || (ascii && c > 0x7e)) return kf_j_add_format(j, b, "\\u%04x", (unsigned)c);
  return kf_j_add_char(j, b, c);
}

static kf_status json_string_text(kf_jinja *j, kf_j_builder *b, const json_style *style, const kf_j_string *s) {
  KF_TRY(kf_j_add(j, b, "\"", 1));
  for (const char *at = s->data, *end = at + s->bytes; at < end;) KF_TRY(json_char(j, b, style->ascii, kf_j_next(&at, end)));
  return kf_j_add(j, b, "\"", 1);
}

static kf_status json_newline(kf_jinja *j, kf_j_builder *b, const json_style *style, int level) {
  if (!style->lines) return KF_OK;
  KF_TRY(kf_j_add(j, b, "\n", 1));
  for (int i = 0; i < level; i++) KF_TRY(kf_j_add(j, b, style->indent->data, style->indent->bytes));
  return KF_OK;
}

static kf_status json_list(kf_jinja *j, kf_j_builder *b, const json_style *style, const kf_j_list *l, int level) {
  KF_TRY(kf_j_add(j, b, "[", 1));
  for (size_t i = 0; i < l->count; i++) {
    if (i) KF_TRY(kf_j_add(j, b, style->item->data, style->item->bytes));
    KF_TRY(json_newline(j, b, style, level + 1));
    KF_TRY(json_value(j, b, style, l->items[i], level + 1));
  }
  if (l->count) KF_TRY(json_newline(j, b, style, level));
  return kf_j_add(j, b, "]", 1);
}

static kf_status sort_keys(kf_jinja *j, const kf_j_dict *d, kf_j_dict *out) {
  *out = (kf_j_dict){.count = d->count, .capacity = d->count};
  KF_TRY(kf_j_alloc(j, d->count, sizeof *out->pairs, &out->pairs));
  for (size_t i = 0; i < d->count; i++) { // insertion: dictionaries here are a handful of keys
    size_t at = i;
    for (; at; at--) {
      int order;
      KF_TRY(kf_j_order(j, d->pairs[i].key, out->pairs[at - 1].key, &order));
      if (order >= 0) break;
      out->pairs[at] = out->pairs[at - 1];
    }
    out->pairs[at] = d->pairs[i];
  }
  return KF_OK;
}

static kf_status json_key(kf_jinja *j, kf_j_builder *b, const json_style *style, kf_j_value key) {
  if (key.kind == KF_J_STRING) return json_string_text(j, b, style, key.string);
  if (!kf_j_number(key) && key.kind != KF_J_NONE) return kf_j_fail(j, "a %s cannot be a key in JSON", kf_j_type(key));
  KF_TRY(kf_j_add(j, b, "\"", 1));
  KF_TRY(json_value(j, b, style, key, 0));
  return kf_j_add(j, b, "\"", 1);
}

static kf_status json_dict(kf_jinja *j, kf_j_builder *b, const json_style *style, const kf_j_dict *d, int level) {
  kf_j_dict sorted;
  if (style->sort) {
    KF_TRY(sort_keys(j, d, &sorted));
    d = &sorted;
  }
  KF_TRY(kf_j_add(j, b, "{", 1));
  for (size_t i = 0; i < d->count; i++) {
    if (i) KF_TRY(kf_j_add(j, b, style->item->data, style->item->bytes));
    KF_TRY(json_newline(j, b, style, level + 1));
    KF_TRY(json_key(j, b, style, d->pairs[i].key));
    KF_TRY(kf_j_add(j, b, style->key->data, style->key->bytes));
    KF_TRY(json_value(j, b, style, d->pairs[i].value, level + 1));
  }
  if (d->count) KF_TRY(json_newline(j, b, style, level));
  return kf_j_add(j, b, "}", 1);
}

static kf_status json_value(kf_jinja *j, kf_j_builder *b, const json_style *style, kf_j_value v, int level) {
  switch (v.kind) {
  case KF_J_NONE: return kf_j_add(j, b, "null", 4);
  case KF_J_BOOL: return v.integer ? kf_j_add(j, b, "true", 4) : kf_j_add(j, b, "false", 5);
  case KF_J_FLOAT:
    if (isnan(v.real)) return kf_j_add(j, b, "NaN", 3);
    if (isinf(v.real)) return v.real < 0 ? kf_j_add(j, b, "-Infinity", 9) : kf_j_add(j, b, "Infinity", 8);
    return kf_j_repr(j, b, v);
  case KF_J_INT: return kf_j_repr(j, b, v);
  case KF_J_STRING: return json_string_text(j, b, style, v.string);
  case KF_J_LIST:
  case KF_J_TUPLE:
  case KF_J_DICT: break;
  default: return kf_j_fail(j, "a value of type %s cannot be written as JSON", kf_j_type(v));
  }
  KF_TRY(kf_j_enter(j));
  KF_TRY(v.kind == KF_J_DICT ? json_dict(j, b, style, v.dict, level) : json_list(j, b, style, v.list, level));
  j->depth--;
  return KF_OK;
}

/* indent: a number of spaces, or the text itself. */
static kf_status json_indent(kf_jinja *j, kf_j_value indent, json_style *style, kf_j_value *text) {
  style->lines = indent.kind != KF_J_MISSING && indent.kind != KF_J_NONE;
  if (!style->lines) return KF_OK;
  if (indent.kind == KF_J_STRING) {
    *text = indent;
  } else {
    if (!kf_j_whole(indent) || indent.integer > 100) return kf_j_fail(j, "tojson: indent is neither text nor a number up to 100");
    kf_j_builder b = {0};
    for (int64_t i = 0; i < indent.integer; i++) KF_TRY(kf_j_add(j, &b, " ", 1));
    KF_TRY(kf_j_built(j, &b, text));
  }
  style->indent = text->string;
  return KF_OK;
}

kf_status kf_j_json(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  static const kf_j_string comma = {",", 1, 1}, comma_space = {", ", 2, 2}, colon = {": ", 2, 2};
  json_style style = {.ascii = kf_j_truth(a->items[0]), .sort = kf_j_truth(a->items[3]), .key = &colon};
  kf_j_value indent, separators = a->items[2];
  KF_TRY(json_indent(j, a->items[1], &style, &indent));
  style.item = style.lines ? &comma : &comma_space;
  if (separators.kind == KF_J_LIST || separators.kind == KF_J_TUPLE) {
    const kf_j_list *l = separators.list;
    if (l->count != 2 || l->items[0].kind != KF_J_STRING || l->items[1].kind != KF_J_STRING)
      return kf_j_fail(j, "tojson: separators are two strings");
    style.item = l->items[0].string;
    style.key = l->items[1].string;
  } else if (separators.kind != KF_J_MISSING && separators.kind != KF_J_NONE) {
    return kf_j_fail(j, "tojson: separators are two strings");
  }
  kf_j_builder b = {0};
  KF_TRY(json_value(j, &b, &style, self, 0));
  return kf_j_built(j, &b, out);
}

/* ------------------------------------------------------------------------------------------------ % */

typedef struct spec {
  char flags[6];
  int width, precision;
  char conversion;
} spec;

static kf_status read_number(kf_jinja *j, const char **p, int *out) {
  for (*out = 0; isdigit((unsigned char)**p); ++*p)
    if ((*out = *out * 10 + (**p - '0')) > 200) return kf_j_fail(j, "a format is wider than 200");
  return KF_OK;
}

static kf_status read_spec(kf_jinja *j, const char **p, spec *s) {
  *s = (spec){.precision = -1};
  for (size_t n = 0; **p && strchr("-+ 0#", **p) && n + 1 < sizeof s->flags; ++*p) s->flags[n++] = **p;
  KF_TRY(read_number(j, p, &s->width));
  if (**p == '.') {
    ++*p;
    KF_TRY(read_number(j, p, &s->precision));
  }
  s->conversion = **p;
  if (s->conversion) ++*p;
  return KF_OK;
}

static kf_status format_text(kf_jinja *j, kf_j_builder *b, const spec *s, kf_j_value v) {
  kf_j_builder text = {0};
  KF_TRY(s->conversion == 'r' ? kf_j_repr(j, &text, v) : kf_j_print(j, &text, v));
  kf_j_value value;
  KF_TRY(kf_j_built(j, &text, &value));
  const kf_j_string *t = value.string;
  size_t chars = s->precision >= 0 && (size_t)s->precision < t->chars ? (size_t)s->precision : t->chars;
  size_t pad = (size_t)s->width > chars ? (size_t)s->width - chars : 0;
  bool left = strchr(s->flags, '-') != NULL;
  for (size_t i = 0; !left && i < pad; i++) KF_TRY(kf_j_add(j, b, " ", 1));
  KF_TRY(kf_j_add(j, b, t->data, kf_j_offset(t, chars)));
  for (size_t i = 0; left && i < pad; i++) KF_TRY(kf_j_add(j, b, " ", 1));
  return KF_OK;
}

static kf_status format_one(kf_jinja *j, kf_j_builder *b, const spec *s, kf_j_value v) {
  if (s->conversion == 's' || s->conversion == 'r') return format_text(j, b, s, v);
  bool whole = s->conversion && strchr("dixXo", s->conversion);
  if (!whole && !(s->conversion && strchr("feEgG", s->conversion)))
    return kf_j_fail(j, "the format %%%c is not supported", s->conversion);
  if (!kf_j_number(v)) return kf_j_fail(j, "the format %%%c needs a number, not %s", s->conversion, kf_j_type(v));
  char format[24], text[640];
  int n;
  if (whole) {
    if (v.kind == KF_J_FLOAT && !(fabs(v.real) < 9e18)) return kf_j_fail(j, "%g is no integer", v.real);
    long long value = v.kind == KF_J_FLOAT ? (long long)v.real : (long long)v.integer;
    snprintf(format, sizeof format, "%%%s*.*ll%c", s->flags, s->conversion);
    n = snprintf(text, sizeof text, format, s->width, s->precision, value);
  } else {
    snprintf(format, sizeof format, "%%%s*.*%c", s->flags, s->conversion);
    n = snprintf(text, sizeof text, format, s->width, s->precision, kf_j_as_real(v));
  }
  return kf_j_add(j, b, text, (size_t)n);
}

kf_status kf_j_format(kf_jinja *j, const kf_j_string *format, kf_j_value arguments, kf_j_value *out) {
  kf_j_list all = {.items = &arguments, .count = 1};
  if (arguments.kind == KF_J_TUPLE) all = *arguments.list;
  kf_j_builder b = {0};
  size_t used = 0;
  for (const char *p = format->data, *end = p + format->bytes; p < end;) {
    const char *run = p;
    while (p < end && *p != '%') p++;
    KF_TRY(kf_j_add(j, &b, run, (size_t)(p - run)));
    if (p == end) break;
    spec s;
    p++;
    KF_TRY(read_spec(j, &p, &s));
    if (s.conversion == '%') {
      KF_TRY(kf_j_add(j, &b, "%", 1));
      continue;
    }
    if (used == all.count) return kf_j_fail(j, "not enough values for the format");
    KF_TRY(format_one(j, &b, &s, all.items[used++]));
  }
  if (used < all.count) return kf_j_fail(j, "more values than the format takes");
  return kf_j_built(j, &b, out);
}
