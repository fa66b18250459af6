/* The filters behind `|`, and how every native function gets its arguments. */
#include "text/jinja_impl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------ arguments */

const kf_j_function *kf_j_lookup(const kf_j_function *table, const char *name) {
  for (; table->name; table++)
    if (strcmp(table->name, name) == 0) return table;
  return NULL;
}

/* Which of the names in params (parted by spaces) it is, -1: none. *count: how many there are. */
static int parameter(const char *params, const char *name, size_t *count) {
  int found = -1;
  *count = 0;
  for (const char *p = params; *p; ++*count) {
    size_t n = strcspn(p, " ");
    if (name && strlen(name) == n && strncmp(p, name, n) == 0) found = (int)*count;
    p += n + (p[n] == ' ');
  }
  return found;
}

kf_status kf_j_apply(kf_jinja *j, const kf_j_function *f, const char *what, kf_j_value self, const kf_j_args *a,
                     kf_j_value *out) {
  KF_TRY(kf_j_spend(j, 0));
  if (!f->params) return f->call(j, self, a, out);
  kf_j_value values[KF_J_PARAMS] = {{.kind = KF_J_MISSING}};
  size_t most;
  parameter(f->params, NULL, &most);
  if (a->count > most) return kf_j_fail(j, "%s '%s' takes at most %zu arguments, not %zu", what, f->name, most, a->count);
  for (size_t i = 0; i < a->count; i++) values[i] = a->items[i];
  for (size_t i = 0; i < a->named.count; i++) {
    const char *name = a->named.pairs[i].key.string->data;
    int at = parameter(f->params, name, &most);
    if (at < 0 || values[at].kind != KF_J_MISSING)
      return kf_j_fail(j, "%s '%s' has no argument '%.60s' to name", what, f->name, name);
    values[at] = a->named.pairs[i].value;
  }
  return f->call(j, self, &(kf_j_args){.items = values, .count = most}, out);
}

kf_status kf_j_filter(kf_jinja *j, const char *name, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  const kf_j_function *f = kf_j_lookup(kf_j_filters, name);
  return f ? kf_j_apply(j, f, "filter", self, a, out) : kf_j_fail(j, "no filter named '%.60s'", name);
}

static bool given(kf_j_value v) {
  return v.kind != KF_J_MISSING && v.kind != KF_J_NONE;
}

/* ------------------------------------------------------------------------------------------------ text */

/* A method of strings as a filter: the value becomes a string first. */
static kf_status as_string(kf_jinja *j, kf_j_value self, kf_j_call *method, const kf_j_args *a, kf_j_value *out) {
  kf_j_value text;
  KF_TRY(kf_j_string_of(j, self, &text));
  return method(j, text, a, out);
}

static kf_status trim(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  return as_string(j, self, kf_j_strip, a, out);
}

static kf_status upper(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  return as_string(j, self, kf_j_upper, a, out);
}

static kf_status lower(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  return as_string(j, self, kf_j_lower, a, out);
}

static kf_status capitalize(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  return as_string(j, self, kf_j_capitalize, a, out);
}

static kf_status replace(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  return as_string(j, self, kf_j_replace, a, out);
}

static kf_status string(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)a;
  return kf_j_string_of(j, self, out);
}

static kf_status title(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  return as_string(j, self, kf_j_title_words, a, out);
}

static kf_status escape(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  static const char *const entities[] = {['&'] = "&amp;", ['<'] = "&lt;", ['>'] = "&gt;", ['\''] = "&#39;", ['"'] = "&#34;"};
  (void)a;
  kf_j_value text;
  KF_TRY(kf_j_string_of(j, self, &text));
  kf_j_builder b = {0};
  for (size_t i = 0; i < text.string->bytes; i++) {
    unsigned char c = (unsigned char)text.string->data[i];
    const char *entity = c < sizeof entities / sizeof *entities ? entities[c] : NULL;
    KF_TRY(entity ? kf_j_add(j, &b, entity, strlen(entity)) : kf_j_add(j, &b, (const char *)&c, 1));
  }
  return kf_j_built(j, &b, out);
}

static kf_status indent_prefix(kf_jinja *j, kf_j_value width, kf_j_value *out) {
  if (width.kind == KF_J_STRING) return *out = width, KF_OK;
  kf_j_value four = kf_j_int(4), space;
  KF_TRY(kf_j_text(j, " ", 1, &space));
  return kf_j_binary(j, '*', space, given(width) ? width : four, out);
}

static kf_status indent(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  kf_j_value newline, prefix, lines;
  bool first = kf_j_truth(a->items[1]), blank = kf_j_truth(a->items[2]);
  KF_TRY(kf_j_text(j, "\n", 1, &newline));
  KF_TRY(kf_j_binary(j, '+', self, newline, &self)); // so that a last empty line counts
  KF_TRY(indent_prefix(j, a->items[0], &prefix));
  if (prefix.kind != KF_J_STRING) return kf_j_fail(j, "indent: the width is neither a number nor text");
  kf_j_value none = {.kind = KF_J_MISSING};
  KF_TRY(kf_j_lookup(kf_j_string_methods, "splitlines")->call(j, self, &(kf_j_args){.items = &none, .count = 1}, &lines));
  kf_j_builder b = {0};
  for (size_t i = 0; i < lines.list->count; i++) {
    const kf_j_string *line = lines.list->items[i].string;
    if (i) KF_TRY(kf_j_add(j, &b, "\n", 1));
    if (i ? blank || line->bytes : first) KF_TRY(kf_j_add(j, &b, prefix.string->data, prefix.string->bytes));
    KF_TRY(kf_j_add(j, &b, line->data, line->bytes));
  }
  return kf_j_built(j, &b, out);
}

static kf_status format(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  kf_j_value text, all;
  KF_TRY(kf_j_string_of(j, self, &text));
  KF_TRY(kf_j_new_list(j, KF_J_TUPLE, &all));
  *all.list = (kf_j_list){.items = a->items, .count = a->count};
  return kf_j_format(j, text.string, all, out);
}

/* ------------------------------------------------------------------------------------------------ numbers */

static bool parse_number(kf_j_value v, int base, bool whole, kf_j_value *out) {
  char *end;
  const char *text = v.string->data;
  *out = whole ? kf_j_int(strtoll(text, &end, base)) : kf_j_real(strtod(text, &end));
  if (end == text || (!whole && strpbrk(text, "xXpP("))) return false;
  while (*end && kf_j_space(*end)) end++;
  return end == text + v.string->bytes;
}

static kf_status to_float(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  KF_TRY(kf_j_defined(j, self));
  if (kf_j_number(self)) {
    *out = kf_j_real(kf_j_as_real(self));
  } else if (self.kind != KF_J_STRING || !parse_number(self, 10, false, out)) {
    *out = a->items[0].kind == KF_J_MISSING ? kf_j_real(0) : a->items[0];
  }
  return KF_OK;
}

static kf_status to_int(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  int base = kf_j_whole(a->items[1]) ? (int)a->items[1].integer : 10;
  if (base != 0 && (base < 2 || base > 36)) return kf_j_fail(j, "int: base %d is not between 2 and 36", base);
  if (self.kind == KF_J_STRING && parse_number(self, base, true, out)) return KF_OK;
  KF_TRY(kf_j_defined(j, self));
  if (kf_j_whole(self)) return *out = kf_j_int(self.integer), KF_OK;
  kf_j_value real = self;
  bool number = self.kind == KF_J_FLOAT || (self.kind == KF_J_STRING && parse_number(self, 10, false, &real));
  if (number && fabs(real.real) < 9.2e18) {
    *out = kf_j_int((int64_t)real.real);
  } else {
    *out = a->items[0].kind == KF_J_MISSING ? kf_j_int(0) : a->items[0];
  }
  return KF_OK;
}

static kf_status absolute(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)a;
  KF_TRY(kf_j_defined(j, self));
  if (!kf_j_number(self)) return kf_j_fail(j, "abs needs a number, not %s", kf_j_type(self));
  if (self.kind == KF_J_FLOAT) return *out = kf_j_real(fabs(self.real)), KF_OK;
  return self.integer < 0 ? kf_j_negate(j, self, out) : (*out = kf_j_int(self.integer), KF_OK);
}

static kf_status round_number(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  int64_t precision = kf_j_whole(a->items[0]) ? a->items[0].integer : 0;
  const char *method = a->items[1].kind == KF_J_STRING ? a->items[1].string->data : "common";
  KF_TRY(kf_j_defined(j, self));
  if (!kf_j_number(self)) return kf_j_fail(j, "round needs a number, not %s", kf_j_type(self));
  if (precision < 0 || precision > 20) return kf_j_fail(j, "round: precision %lld is not between 0 and 20", (long long)precision);
  double value = kf_j_as_real(self), scale = pow(10, (double)precision);
  if (strcmp(method, "common") == 0) {
    if (kf_j_whole(self)) return *out = kf_j_int(self.integer), KF_OK;
    char text[400]; // decimal text is rounded exactly, as Python does
    snprintf(text, sizeof text, "%.*f", (int)precision, value);
    *out = kf_j_real(strtod(text, NULL));
  } else if (strcmp(method, "ceil") == 0 || strcmp(method, "floor") == 0) {
    *out = kf_j_real((method[0] == 'c' ? ceil(value * scale) : floor(value * scale)) / scale);
  } else {
    return kf_j_fail(j, "round: method must be common, ceil or floor");
  }
  return KF_OK;
}

/* ------------------------------------------------------------------------------------------------ sequences */

static kf_status length(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)a;
  *out = kf_j_int(0);
  return kf_j_length(j, self, &out->integer);
}

static kf_status list(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)a;
  KF_TRY(kf_j_new_list(j, KF_J_LIST, out));
  KF_TRY(kf_j_items(j, self, out->list));
  out->list->capacity = 0; // never grows into what it shares
  return KF_OK;
}

static kf_status first(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)a;
  kf_j_list items;
  KF_TRY(kf_j_items(j, self, &items));
  if (!items.count) return kf_j_undefined(j, out, "no first item, the sequence is empty");
  *out = items.items[0];
  return KF_OK;
}

static kf_status last(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)a;
  kf_j_list items;
  KF_TRY(kf_j_items(j, self, &items));
  if (!items.count) return kf_j_undefined(j, out, "no last item, the sequence is empty");
  *out = items.items[items.count - 1];
  return KF_OK;
}

static kf_status reverse(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)a;
  if (self.kind == KF_J_STRING) return kf_j_slice(j, self, (const kf_j_value[3]){kf_j_none(), kf_j_none(), kf_j_int(-1)}, out);
  kf_j_list items;
  KF_TRY(kf_j_items(j, self, &items));
  KF_TRY(kf_j_new_list(j, KF_J_GENERATOR, out));
  for (size_t i = items.count; i-- > 0;) KF_TRY(kf_j_push(j, out->list, items.items[i]));
  return KF_OK;
}

/* item.a.b.0 of a dotted path, or item[path] of a number; MISSING as path: the item itself. */
static kf_status reach(kf_jinja *j, kf_j_value item, kf_j_value path, kf_j_value *out) {
  *out = item;
  if (!given(path)) return KF_OK;
  if (path.kind != KF_J_STRING) return kf_j_item(j, item, path, out);
  for (const char *p = path.string->data;; p++) {
    size_t n = strcspn(p, ".");
    kf_j_value key;
    kf_j_builder b = {0};
    KF_TRY(kf_j_add(j, &b, p, n));
    KF_TRY(kf_j_built(j, &b, &key));
    if (n && n < 10 && strspn(p, "0123456789") == n) key = kf_j_int(atoll(key.string->data));
    KF_TRY(kf_j_item(j, *out, key, out));
    p += n;
    if (!*p) return KF_OK;
  }
}

static kf_status join(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  kf_j_list items;
  kf_j_value by = a->items[0];
  kf_j_builder b = {0};
  KF_TRY(kf_j_items(j, self, &items));
  for (size_t i = 0; i < items.count; i++) {
    kf_j_value item;
    KF_TRY(reach(j, items.items[i], a->items[1], &item));
    if (i && by.kind != KF_J_MISSING) KF_TRY(kf_j_print(j, &b, by));
    KF_TRY(kf_j_print(j, &b, item));
  }
  return kf_j_built(j, &b, out);
}

static kf_status default_value(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  *out = self;
  if (self.kind != KF_J_UNDEFINED && !(kf_j_truth(a->items[1]) && !kf_j_truth(self))) return KF_OK;
  *out = a->items[0];
  return out->kind == KF_J_MISSING ? kf_j_text(j, "", 0, out) : KF_OK;
}

static kf_status items_of(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  if (self.kind == KF_J_UNDEFINED) return kf_j_new_list(j, KF_J_GENERATOR, out);
  if (self.kind != KF_J_DICT) return kf_j_fail(j, "items needs a mapping, not %s", kf_j_type(self));
  kf_j_value method;
  static const kf_j_string name = {.data = "items", .bytes = 5, .chars = 5};
  KF_TRY(kf_j_attribute(j, self, &name, &method));
  KF_TRY(method.function->function->call(j, self, a, out));
  out->kind = KF_J_GENERATOR;
  return KF_OK;
}

/* Strings compare without case unless asked. */
static kf_status sort_key(kf_jinja *j, kf_j_value item, kf_j_value path, bool sensitive, kf_j_value *out) {
  KF_TRY(reach(j, item, path, out));
  return out->kind == KF_J_STRING && !sensitive ? kf_j_lower(j, *out, NULL, out) : KF_OK;
}

static kf_status sorted(kf_jinja *j, const kf_j_list *items, kf_j_value path, bool sensitive, bool reversed, kf_j_value *out) {
  kf_j_list keys = {0};
  KF_TRY(kf_j_new_list(j, KF_J_LIST, out));
  for (size_t i = 0; i < items->count; i++) { // insertion, stable; the steps bound it
    kf_j_value key;
    KF_TRY(sort_key(j, items->items[i], path, sensitive, &key));
    KF_TRY(kf_j_push(j, out->list, items->items[i]));
    KF_TRY(kf_j_push(j, &keys, key));
    size_t at = i;
    for (; at; at--) {
      int order;
      KF_TRY(kf_j_order(j, key, keys.items[at - 1], &order));
      if (reversed ? order <= 0 : order >= 0) break;
      keys.items[at] = keys.items[at - 1];
      out->list->items[at] = out->list->items[at - 1];
    }
    keys.items[at] = key;
    out->list->items[at] = items->items[i];
  }
  return KF_OK;
}

static kf_status sort(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  kf_j_list items;
  KF_TRY(kf_j_items(j, self, &items));
  return sorted(j, &items, a->items[2], kf_j_truth(a->items[1]), kf_j_truth(a->items[0]), out);
}

static kf_status dict_sort(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  if (self.kind != KF_J_DICT) return kf_j_fail(j, "dictsort needs a mapping, not %s", kf_j_type(self));
  const char *by = a->items[1].kind == KF_J_STRING ? a->items[1].string->data : "key";
  if (strcmp(by, "key") != 0 && strcmp(by, "value") != 0) return kf_j_fail(j, "dictsort sorts by 'key' or 'value'");
  kf_j_value pairs;
  KF_TRY(items_of(j, self, a, &pairs));
  return sorted(j, pairs.list, kf_j_int(by[0] == 'v'), kf_j_truth(a->items[0]), kf_j_truth(a->items[2]), out);
}

static kf_status unique(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  kf_j_list items, keys = {0};
  KF_TRY(kf_j_items(j, self, &items));
  KF_TRY(kf_j_new_list(j, KF_J_GENERATOR, out));
  for (size_t i = 0; i < items.count; i++) {
    kf_j_value key;
    bool seen = false;
    KF_TRY(sort_key(j, items.items[i], a->items[1], kf_j_truth(a->items[0]), &key));
    for (size_t k = 0; !seen && k < keys.count; k++) KF_TRY(kf_j_equal(j, keys.items[k], key, &seen));
    if (seen) continue;
    KF_TRY(kf_j_push(j, &keys, key));
    KF_TRY(kf_j_push(j, out->list, items.items[i]));
  }
  return KF_OK;
}

static kf_status extreme(kf_jinja *j, kf_j_value self, const kf_j_args *a, int sign, kf_j_value *out) {
  kf_j_list items;
  kf_j_value best = {.kind = KF_J_MISSING};
  KF_TRY(kf_j_items(j, self, &items));
  if (!items.count) return kf_j_undefined(j, out, "no aggregated item, the sequence is empty");
  for (size_t i = 0; i < items.count; i++) {
    kf_j_value key;
    int order = 0;
    KF_TRY(sort_key(j, items.items[i], a->items[1], kf_j_truth(a->items[0]), &key));
    if (i) KF_TRY(kf_j_order(j, key, best, &order));
    if (i && order * sign <= 0) continue;
    best = key;
    *out = items.items[i];
  }
  return KF_OK;
}

static kf_status largest(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  return extreme(j, self, a, 1, out);
}

static kf_status smallest(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  return extreme(j, self, a, -1, out);
}

static kf_status sum(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  kf_j_list items;
  KF_TRY(kf_j_items(j, self, &items));
  *out = a->items[1].kind == KF_J_MISSING ? kf_j_int(0) : a->items[1];
  for (size_t i = 0; i < items.count; i++) {
    kf_j_value item;
    KF_TRY(reach(j, items.items[i], a->items[0], &item));
    KF_TRY(kf_j_binary(j, '+', *out, item, out));
  }
  return KF_OK;
}

/* ------------------------------------------------------------------------------------------------ map and select */

static kf_status named(kf_jinja *j, const kf_j_args *a, const char *name, kf_j_value *out) {
  kf_j_value key;
  KF_TRY(kf_j_text(j, name, strlen(name), &key));
  return kf_j_find(j, &a->named, key, out);
}

/* The arguments behind the first `skip`. */
static kf_j_args rest(const kf_j_args *a, size_t skip) {
  kf_j_args r = *a;
  r.items = a->count > skip ? a->items + skip : NULL;
  r.count = a->count > skip ? a->count - skip : 0;
  return r;
}

static kf_status map_one(kf_jinja *j, kf_j_value item, const kf_j_args *a, kf_j_value path, kf_j_value fallback,
                         kf_j_value *out) {
  if (path.kind != KF_J_MISSING) {
    KF_TRY(reach(j, item, path, out));
    if (out->kind == KF_J_UNDEFINED && fallback.kind != KF_J_MISSING) *out = fallback;
    return KF_OK;
  }
  if (!a->count || a->items[0].kind != KF_J_STRING) return kf_j_fail(j, "map needs the name of a filter, or attribute=");
  kf_j_args arguments = rest(a, 1);
  return kf_j_filter(j, a->items[0].string->data, item, &arguments, out);
}

static kf_status map(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  kf_j_list items;
  kf_j_value path, fallback;
  KF_TRY(named(j, a, "attribute", &path));
  KF_TRY(named(j, a, "default", &fallback));
  KF_TRY(kf_j_items(j, self, &items));
  KF_TRY(kf_j_new_list(j, KF_J_GENERATOR, out));
  for (size_t i = 0; i < items.count; i++) {
    kf_j_value mapped;
    KF_TRY(map_one(j, items.items[i], a, path, fallback, &mapped));
    KF_TRY(kf_j_push(j, out->list, mapped));
  }
  return KF_OK;
}

/* Keeps the items whose test (of the item, or of its attribute) answers `wanted`. */
static kf_status choose(kf_jinja *j, kf_j_value self, const kf_j_args *a, bool attribute, bool wanted, kf_j_value *out) {
  kf_j_list items;
  if (attribute && !a->count) return kf_j_fail(j, "selectattr and rejectattr need the name of an attribute");
  kf_j_value path = attribute ? a->items[0] : (kf_j_value){.kind = KF_J_MISSING};
  kf_j_args test = rest(a, attribute), arguments = rest(&test, 1);
  if (test.count && test.items[0].kind != KF_J_STRING) return kf_j_fail(j, "the name of a test must be a string");
  KF_TRY(kf_j_items(j, self, &items));
  KF_TRY(kf_j_new_list(j, KF_J_GENERATOR, out));
  for (size_t i = 0; i < items.count; i++) {
    kf_j_value v;
    KF_TRY(reach(j, items.items[i], path, &v));
    bool yes = kf_j_truth(v);
    if (test.count) KF_TRY(kf_j_test(j, test.items[0].string->data, v, &arguments, &yes));
    if (yes == wanted) KF_TRY(kf_j_push(j, out->list, items.items[i]));
  }
  return KF_OK;
}

static kf_status select_items(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  return choose(j, self, a, false, true, out);
}

static kf_status reject(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  return choose(j, self, a, false, false, out);
}

static kf_status select_attribute(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  return choose(j, self, a, true, true, out);
}

static kf_status reject_attribute(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  return choose(j, self, a, true, false, out);
}

const kf_j_function kf_j_filters[] = {
    {"abs", "", absolute},
    {"capitalize", "", capitalize},
    {"count", "", length},
    {"d", "default_value boolean", default_value},
    {"default", "default_value boolean", default_value},
    {"dictsort", "case_sensitive by reverse", dict_sort},
    {"e", "", escape},
    {"escape", "", escape},
    {"first", "", first},
    {"float", "default", to_float},
    {"format", NULL, format},
    {"indent", "width first blank", indent},
    {"int", "default base", to_int},
    {"items", "", items_of},
    {"join", "d attribute", join},
    {"last", "", last},
    {"length", "", length},
    {"list", "", list},
    {"lower", "", lower},
    {"map", NULL, map},
    {"max", "case_sensitive attribute", largest},
    {"min", "case_sensitive attribute", smallest},
    {"reject", NULL, reject},
    {"rejectattr", NULL, reject_attribute},
    {"replace", "old new count", replace},
    {"reverse", "", reverse},
    {"round", "precision method", round_number},
    {"safe", "", string},
    {"select", NULL, select_items},
    {"selectattr", NULL, select_attribute},
    {"sort", "reverse case_sensitive attribute", sort},
    {"string", "", string},
    {"sum", "attribute start", sum},
    {"title", "", title},
    {"tojson", "ensure_ascii indent separators sort_keys", kf_j_json},
    {"trim", "chars", trim},
    {"unique", "case_sensitive attribute", unique},
    {"upper", "", upper},
    {NULL, NULL, NULL},
};
