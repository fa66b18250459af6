/* Values of the template language: memory, text, lists, dictionaries, truth, equality, order, iteration. */
#include "text/jinja_impl.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <utf8proc.h>

/* ------------------------------------------------------------------------------------------------ limits */

kf_status kf_j_fail(kf_jinja *j, const char *format, ...) {
  char why[400];
  va_list args;
  va_start(args, format);
  vsnprintf(why, sizeof why, format, args);
  va_end(args);
  return kf_fail(j->e, KF_ERROR_INPUT, "chat template, line %d: %s", j->line, why);
}

kf_status kf_j_spend(kf_jinja *j, size_t bytes) {
  j->steps += 1 + (int64_t)(bytes / 16);
  return j->steps > KF_JINJA_STEPS ? kf_j_fail(j, "the template takes more than %d steps", KF_JINJA_STEPS) : KF_OK;
}

kf_status kf_j_alloc(kf_jinja *j, size_t count, size_t size, void *out) {
  size_t bytes;
  if (__builtin_mul_overflow(count, size, &bytes) || bytes > KF_JINJA_MEMORY - j->memory)
    return kf_j_fail(j, "the template needs more than %d bytes of memory", KF_JINJA_MEMORY);
  void *p = kf_arena_alloc(&j->arena, count, size, j->e);
  if (!p) return KF_ERROR_MEMORY;
  j->memory += bytes;
  memcpy(out, &p, sizeof p);
  return KF_OK;
}

kf_status kf_j_enter(kf_jinja *j) {
  if (j->depth >= KF_JINJA_DEPTH) return kf_j_fail(j, "nested deeper than %d", KF_JINJA_DEPTH);
  j->depth++;
  return KF_OK;
}

/* ------------------------------------------------------------------------------------------------ text */

kf_status kf_j_add(kf_jinja *j, kf_j_builder *b, const char *data, size_t bytes) {
  KF_TRY(kf_j_spend(j, bytes));
  if (b == j->out && (j->output += bytes) > KF_JINJA_OUTPUT)
    return kf_j_fail(j, "the template writes more than %d bytes", KF_JINJA_OUTPUT);
  if (bytes >= b->capacity - b->bytes) { // one byte stays for the NUL
    if (bytes > KF_JINJA_MEMORY) return kf_j_fail(j, "the template needs more than %d bytes of memory", KF_JINJA_MEMORY);
    size_t capacity = b->capacity ? b->capacity * 2 : 64;
    while (capacity <= b->bytes + bytes) capacity *= 2;
    char *grown;
    KF_TRY(kf_j_alloc(j, capacity, 1, &grown));
    if (b->bytes) memcpy(grown, b->data, b->bytes);
    b->data = grown;
    b->capacity = capacity;
  }
  if (bytes) memcpy(b->data + b->bytes, data, bytes);
  b->bytes += bytes;
  b->data[b->bytes] = 0;
  return KF_OK;
}

kf_status kf_j_add_char(kf_jinja *j, kf_j_builder *b, int32_t code) {
  char utf8[4];
  utf8proc_ssize_t n = utf8proc_encode_char(code, (utf8proc_uint8_t *)utf8);
  return kf_j_add(j, b, utf8, (size_t)n);
}

kf_status kf_j_add_format(kf_jinja *j, kf_j_builder *b, const char *format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  int n = vsnprintf(text, sizeof text, format, args);
  va_end(args);
  if (n < 0 || (size_t)n >= sizeof text) return kf_j_fail(j, "a formatted value is too long");
  return kf_j_add(j, b, text, (size_t)n);
}

kf_status kf_j_text(kf_jinja *j, const char *data, size_t bytes, kf_j_value *out) {
  kf_j_string *s;
  KF_TRY(kf_j_alloc(j, 1, sizeof *s, &s));
  *s = (kf_j_string){.data = data, .bytes = bytes, .chars = kf_j_chars(data, bytes)};
  *out = (kf_j_value){.kind = KF_J_STRING, .string = s};
  return kf_j_spend(j, bytes);
}

kf_status kf_j_built(kf_jinja *j, const kf_j_builder *b, kf_j_value *out) {
  return kf_j_text(j, b->data ? b->data : "", b->bytes, out);
}

kf_status kf_j_undefined(kf_jinja *j, kf_j_value *out, const char *format, ...) {
  char why[160];
  va_list args;
  va_start(args, format);
  vsnprintf(why, sizeof why, format, args);
  va_end(args);
  kf_j_builder b = {0};
  KF_TRY(kf_j_add(j, &b, why, strlen(why)));
  KF_TRY(kf_j_built(j, &b, out));
  out->kind = KF_J_UNDEFINED;
  return KF_OK;
}

/* ------------------------------------------------------------------------------------------------ containers */

/* Room for one more element of `size` bytes in an array that grows in the arena. */
static kf_status grow(kf_jinja *j, void *items, size_t count, size_t *capacity, size_t size) {
  if (count < *capacity) return KF_OK;
  void *old, *grown;
  memcpy(&old, items, sizeof old);
  size_t more = *capacity ? *capacity * 2 : 4;
  KF_TRY(kf_j_alloc(j, more, size, &grown));
  if (count) memcpy(grown, old, count * size);
  memcpy(items, &grown, sizeof grown);
  *capacity = more;
  return KF_OK;
}

kf_status kf_j_push(kf_jinja *j, kf_j_list *list, kf_j_value v) {
  KF_TRY(kf_j_spend(j, 0));
  KF_TRY(grow(j, &list->items, list->count, &list->capacity, sizeof *list->items));
  list->items[list->count++] = v;
  return KF_OK;
}

kf_status kf_j_new_list(kf_jinja *j, kf_j_kind kind, kf_j_value *out) {
  out->kind = kind;
  return kf_j_alloc(j, 1, sizeof *out->list, &out->list);
}

kf_status kf_j_new_dict(kf_jinja *j, kf_j_kind kind, kf_j_value *out) {
  out->kind = kind;
  return kf_j_alloc(j, 1, sizeof *out->dict, &out->dict);
}

static kf_status locate(kf_jinja *j, const kf_j_dict *d, kf_j_value key, size_t *at) {
  for (*at = 0; *at < d->count; ++*at) {
    bool same;
    KF_TRY(kf_j_equal(j, d->pairs[*at].key, key, &same));
    if (same) return KF_OK;
  }
  return KF_OK;
}

kf_status kf_j_put(kf_jinja *j, kf_j_dict *d, kf_j_value key, kf_j_value value) {
  size_t at;
  if (key.kind == KF_J_LIST || key.kind == KF_J_DICT) return kf_j_fail(j, "a %s cannot be a key", kf_j_type(key));
  KF_TRY(locate(j, d, key, &at));
  if (at == d->count) {
    KF_TRY(grow(j, &d->pairs, d->count, &d->capacity, sizeof *d->pairs));
    d->pairs[d->count++].key = key;
  }
  d->pairs[at].value = value;
  return KF_OK;
}

kf_status kf_j_find(kf_jinja *j, const kf_j_dict *d, kf_j_value key, kf_j_value *out) {
  size_t at;
  KF_TRY(locate(j, d, key, &at));
  *out = at < d->count ? d->pairs[at].value : (kf_j_value){.kind = KF_J_MISSING};
  return KF_OK;
}

static kf_status json_container(kf_jinja *j, const json_t *json, kf_j_value *out) {
  if (json_is_array(json)) {
    KF_TRY(kf_j_new_list(j, KF_J_LIST, out));
    for (size_t i = 0; i < json_array_size(json); i++) {
      kf_j_value item;
      KF_TRY(kf_j_from_json(j, json_array_get(json, i), &item));
      KF_TRY(kf_j_push(j, out->list, item));
    }
    return KF_OK;
  }
  KF_TRY(kf_j_new_dict(j, KF_J_DICT, out));
  kf_j_dict *d = out->dict;
  d->capacity = json_object_size(json);
  KF_TRY(kf_j_alloc(j, d->capacity, sizeof *d->pairs, &d->pairs));
  for (void *at = json_object_iter((json_t *)json); at; at = json_object_iter_next((json_t *)json, at)) {
    kf_j_pair *pair = &d->pairs[d->count++]; // JSON keys are unique already
    const char *key = json_object_iter_key(at);
    KF_TRY(kf_j_text(j, key, strlen(key), &pair->key));
    KF_TRY(kf_j_from_json(j, json_object_iter_value(at), &pair->value));
  }
  return KF_OK;
}

kf_status kf_j_from_json(kf_jinja *j, const json_t *json, kf_j_value *out) {
  switch (json_typeof(json)) {
  case JSON_NULL: *out = kf_j_none(); return KF_OK;
  case JSON_TRUE:
  case JSON_FALSE: *out = kf_j_bool(json_is_true(json)); return KF_OK;
  case JSON_INTEGER: *out = kf_j_int(json_integer_value(json)); return KF_OK;
  case JSON_REAL: *out = kf_j_real(json_real_value(json)); return KF_OK;
  case JSON_STRING: return kf_j_text(j, json_string_value(json), json_string_length(json), out);
  default: break;
  }
  KF_TRY(kf_j_enter(j));
  KF_TRY(json_container(j, json, out));
  j->depth--;
  return KF_OK;
}

/* ------------------------------------------------------------------------------------------------ questions */

const char *kf_j_type(kf_j_value v) {
  static const char *const names[] = {
      [KF_J_MISSING] = "missing",   [KF_J_UNDEFINED] = "Undefined", [KF_J_NONE] = "NoneType", [KF_J_BOOL] = "bool",
      [KF_J_INT] = "int",           [KF_J_FLOAT] = "float",         [KF_J_STRING] = "str",    [KF_J_LIST] = "list",
      [KF_J_TUPLE] = "tuple",       [KF_J_GENERATOR] = "generator", [KF_J_VIEW] = "view",     [KF_J_RANGE] = "range",
      [KF_J_DICT] = "dict",         [KF_J_NAMESPACE] = "Namespace", [KF_J_LOOP] = "loop",     [KF_J_MACRO] = "macro",
      [KF_J_FUNCTION] = "function",
  };
  return names[v.kind];
}

kf_status kf_j_defined(kf_jinja *j, kf_j_value v) {
  return v.kind == KF_J_UNDEFINED ? kf_j_fail(j, "%s", v.string->data) : KF_OK;
}

bool kf_j_truth(kf_j_value v) {
  switch (v.kind) {
  case KF_J_MISSING:
  case KF_J_UNDEFINED:
  case KF_J_NONE: return false;
  case KF_J_BOOL:
  case KF_J_INT: return v.integer != 0;
  case KF_J_FLOAT: return v.real != 0;
  case KF_J_STRING: return v.string->bytes != 0;
  case KF_J_LIST:
  case KF_J_TUPLE:
  case KF_J_VIEW: return v.list->count != 0;
  case KF_J_RANGE: return v.range->count != 0;
  case KF_J_DICT: return v.dict->count != 0;
  default: return true;
  }
}

static kf_status equal_items(kf_jinja *j, const kf_j_list *a, const kf_j_list *b, bool *out) {
  *out = a->count == b->count;
  for (size_t i = 0; *out && i < a->count; i++) KF_TRY(kf_j_equal(j, a->items[i], b->items[i], out));
  return KF_OK;
}

static kf_status equal_dicts(kf_jinja *j, const kf_j_dict *a, const kf_j_dict *b, bool *out) {
  *out = a->count == b->count;
  for (size_t i = 0; *out && i < a->count; i++) {
    kf_j_value other;
    KF_TRY(kf_j_find(j, b, a->pairs[i].key, &other));
    *out = other.kind != KF_J_MISSING;
    if (*out) KF_TRY(kf_j_equal(j, a->pairs[i].value, other, out));
  }
  return KF_OK;
}

kf_status kf_j_equal(kf_jinja *j, kf_j_value a, kf_j_value b, bool *out) {
  KF_TRY(kf_j_spend(j, a.kind == KF_J_STRING ? a.string->bytes : 0));
  if (kf_j_whole(a) && kf_j_whole(b)) return *out = a.integer == b.integer, KF_OK;
  if (kf_j_number(a) && kf_j_number(b)) return *out = kf_j_as_real(a) == kf_j_as_real(b), KF_OK;
  *out = a.kind == b.kind;
  if (!*out || a.kind == KF_J_NONE || a.kind == KF_J_UNDEFINED) return KF_OK;
  if (a.kind == KF_J_STRING) {
    *out = a.string->bytes == b.string->bytes && memcmp(a.string->data, b.string->data, a.string->bytes) == 0;
    return KF_OK;
  }
  if (a.kind == KF_J_RANGE) {
    *out = a.range->count == b.range->count && a.range->start == b.range->start && a.range->step == b.range->step;
    return KF_OK;
  }
  if (a.kind != KF_J_LIST && a.kind != KF_J_TUPLE && a.kind != KF_J_DICT) return *out = a.list == b.list, KF_OK;
  KF_TRY(kf_j_enter(j));
  KF_TRY(a.kind == KF_J_DICT ? equal_dicts(j, a.dict, b.dict, out) : equal_items(j, a.list, b.list, out));
  j->depth--;
  return KF_OK;
}

static kf_status order_items(kf_jinja *j, const kf_j_list *a, const kf_j_list *b, int *out) {
  for (size_t i = 0; i < a->count && i < b->count; i++) {
    bool same;
    KF_TRY(kf_j_equal(j, a->items[i], b->items[i], &same));
    if (!same) return kf_j_order(j, a->items[i], b->items[i], out);
  }
  *out = (a->count > b->count) - (a->count < b->count);
  return KF_OK;
}

kf_status kf_j_order(kf_jinja *j, kf_j_value a, kf_j_value b, int *out) {
  KF_TRY(kf_j_spend(j, a.kind == KF_J_STRING ? a.string->bytes : 0));
  if (kf_j_whole(a) && kf_j_whole(b)) return *out = (a.integer > b.integer) - (a.integer < b.integer), KF_OK;
  if (kf_j_number(a) && kf_j_number(b)) {
    *out = (kf_j_as_real(a) > kf_j_as_real(b)) - (kf_j_as_real(a) < kf_j_as_real(b));
    return KF_OK;
  }
  if (a.kind == KF_J_STRING && b.kind == KF_J_STRING) { // the order of UTF-8 bytes is that of code points
    size_t n = a.string->bytes < b.string->bytes ? a.string->bytes : b.string->bytes;
    *out = memcmp(a.string->data, b.string->data, n);
    if (!*out) *out = (a.string->bytes > b.string->bytes) - (a.string->bytes < b.string->bytes);
    return KF_OK;
  }
  KF_TRY(kf_j_defined(j, a));
  KF_TRY(kf_j_defined(j, b));
  if (a.kind != b.kind || (a.kind != KF_J_LIST && a.kind != KF_J_TUPLE))
    return kf_j_fail(j, "%s and %s cannot be ordered", kf_j_type(a), kf_j_type(b));
  KF_TRY(kf_j_enter(j));
  KF_TRY(order_items(j, a.list, b.list, out));
  j->depth--;
  return KF_OK;
}

/* ------------------------------------------------------------------------------------------------ iteration */

static kf_status characters(kf_jinja *j, const kf_j_string *s, kf_j_list *out) {
  for (const char *at = s->data, *end = s->data + s->bytes; at < end;) {
    const char *start = at;
    kf_j_next(&at, end);
    kf_j_builder b = {0};
    kf_j_value one;
    KF_TRY(kf_j_add(j, &b, start, (size_t)(at - start)));
    KF_TRY(kf_j_built(j, &b, &one));
    KF_TRY(kf_j_push(j, out, one));
  }
  return KF_OK;
}

kf_status kf_j_items(kf_jinja *j, kf_j_value v, kf_j_list *out) {
  *out = (kf_j_list){0};
  switch (v.kind) {
  case KF_J_UNDEFINED: return KF_OK;
  case KF_J_STRING: return characters(j, v.string, out);
  case KF_J_LIST:
  case KF_J_TUPLE:
  case KF_J_VIEW: *out = (kf_j_list){.items = v.list->items, .count = v.list->count}; return KF_OK;
  case KF_J_GENERATOR:
    *out = (kf_j_list){.items = v.list->items, .count = v.list->count};
    v.list->count = 0;
    return KF_OK;
  case KF_J_RANGE:
    for (size_t i = 0; i < v.range->count; i++) KF_TRY(kf_j_push(j, out, kf_j_int(v.range->start + (int64_t)i * v.range->step)));
    return KF_OK;
  case KF_J_DICT:
    for (size_t i = 0; i < v.dict->count; i++) KF_TRY(kf_j_push(j, out, v.dict->pairs[i].key));
    return KF_OK;
  default: return kf_j_fail(j, "'%s' object is not iterable", kf_j_type(v));
  }
}

kf_status kf_j_length(kf_jinja *j, kf_j_value v, int64_t *out) {
  switch (v.kind) {
  case KF_J_UNDEFINED: *out = 0; return KF_OK;
  case KF_J_STRING: *out = (int64_t)v.string->chars; return KF_OK;
  case KF_J_LIST:
  case KF_J_TUPLE:
  case KF_J_VIEW: *out = (int64_t)v.list->count; return KF_OK;
  case KF_J_RANGE: *out = (int64_t)v.range->count; return KF_OK;
  case KF_J_DICT: *out = (int64_t)v.dict->count; return KF_OK;
  default: return kf_j_fail(j, "object of type '%s' has no length", kf_j_type(v));
  }
}

kf_status kf_j_contains(kf_jinja *j, kf_j_value whole, kf_j_value part, bool *out) {
  if (whole.kind == KF_J_STRING) {
    if (part.kind != KF_J_STRING) return kf_j_fail(j, "'in' a string needs a string, not %s", kf_j_type(part));
    KF_TRY(kf_j_spend(j, whole.string->bytes));
    *out = memmem(whole.string->data, whole.string->bytes, part.string->data, part.string->bytes) != NULL;
    return KF_OK;
  }
  if (whole.kind == KF_J_DICT) {
    kf_j_value found;
    KF_TRY(kf_j_find(j, whole.dict, part, &found));
    *out = found.kind != KF_J_MISSING;
    return KF_OK;
  }
  kf_j_list items;
  KF_TRY(kf_j_items(j, whole, &items));
  *out = false;
  for (size_t i = 0; !*out && i < items.count; i++) KF_TRY(kf_j_equal(j, items.items[i], part, out));
  return KF_OK;
}
