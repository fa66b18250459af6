/* What can be done with values: attributes, items, slices, methods of dictionaries and lists, arithmetic. */
#include "text/jinja_impl.h"

#include <math.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------ methods */

static kf_status dict_get(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  KF_TRY(kf_j_find(j, self.dict, a->items[0], out));
  if (out->kind == KF_J_MISSING) *out = a->items[1].kind == KF_J_MISSING ? kf_j_none() : a->items[1];
  return KF_OK;
}

static kf_status dict_view(kf_jinja *j, kf_j_value self, const char *view, kf_j_value *out) {
  KF_TRY(kf_j_new_list(j, KF_J_VIEW, out));
  out->list->view = view;
  for (size_t i = 0; i < self.dict->count; i++) {
    kf_j_pair pair = self.dict->pairs[i];
    kf_j_value v = view[0] == 'k' ? pair.key : pair.value;
    if (view[0] == 'i') {
      KF_TRY(kf_j_new_list(j, KF_J_TUPLE, &v));
      KF_TRY(kf_j_push(j, v.list, pair.key));
      KF_TRY(kf_j_push(j, v.list, pair.value));
    }
    KF_TRY(kf_j_push(j, out->list, v));
  }
  return KF_OK;
}

static kf_status dict_items(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)a;
  return dict_view(j, self, "items", out);
}

static kf_status dict_keys(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)a;
  return dict_view(j, self, "keys", out);
}

static kf_status dict_values(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)a;
  return dict_view(j, self, "values", out);
}

static kf_status itself(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)j, (void)a;
  *out = self; // containers never change, so a copy is the same
  return KF_OK;
}

static kf_status list_count(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  int64_t n = 0;
  for (size_t i = 0; i < self.list->count; i++) {
    bool same;
    KF_TRY(kf_j_equal(j, self.list->items[i], a->items[0], &same));
    n += same;
  }
  *out = kf_j_int(n);
  return KF_OK;
}

static kf_status list_index(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  for (size_t i = 0; i < self.list->count; i++) {
    bool same;
    KF_TRY(kf_j_equal(j, self.list->items[i], a->items[0], &same));
    if (same) return *out = kf_j_int((int64_t)i), KF_OK;
  }
  return kf_j_fail(j, "the value is not in the list");
}

static kf_status loop_cycle(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  if (!a->count) return kf_j_fail(j, "cycle needs a value");
  *out = a->items[self.loop->index % a->count];
  return KF_OK;
}

static kf_status loop_changed(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  kf_j_value now;
  bool same;
  KF_TRY(kf_j_new_list(j, KF_J_TUPLE, &now));
  *now.list = (kf_j_list){.items = a->items, .count = a->count};
  KF_TRY(kf_j_equal(j, self.loop->changed, now, &same));
  self.loop->changed = now;
  *out = kf_j_bool(!same);
  return KF_OK;
}

static const kf_j_function dict_methods[] = {
    {"get", "key default", dict_get}, {"items", "", dict_items}, {"keys", "", dict_keys},
    {"values", "", dict_values},      {"copy", "", itself},      {NULL, NULL, NULL},
};
static const kf_j_function list_methods[] = {
    {"count", "value", list_count}, {"index", "value", list_index}, {"copy", "", itself}, {NULL, NULL, NULL}};
static const kf_j_function loop_methods[] = {{"cycle", NULL, loop_cycle}, {"changed", NULL, loop_changed}, {NULL, NULL, NULL}};
static const char *const list_unsafe[] = {"append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove", NULL};
static const char *const dict_unsafe[] = {"clear", "pop", "popitem", "setdefault", "update", NULL};

static bool listed(const char *const *names, const char *name) {
  for (; *names; names++)
    if (strcmp(*names, name) == 0) return true;
  return false;
}

static kf_status bind(kf_jinja *j, const kf_j_function *f, kf_j_value self, kf_j_value *out) {
  kf_j_bound *b;
  KF_TRY(kf_j_alloc(j, 1, sizeof *b, &b));
  *b = (kf_j_bound){.function = f, .self = self};
  *out = (kf_j_value){.kind = KF_J_FUNCTION, .function = b};
  return KF_OK;
}

/* ------------------------------------------------------------------------------------------------ attributes */

static kf_status loop_attribute(kf_jinja *j, const kf_j_loop *l, const char *name, kf_j_value *out) {
  int64_t index = (int64_t)l->index, count = (int64_t)l->items.count;
  const struct {
    const char *name;
    kf_j_value value;
  } all[] = {
      {"index", kf_j_int(index + 1)},
      {"index0", kf_j_int(index)},
      {"revindex", kf_j_int(count - index)},
      {"revindex0", kf_j_int(count - index - 1)},
      {"first", kf_j_bool(index == 0)},
      {"last", kf_j_bool(index == count - 1)},
      {"length", kf_j_int(count)},
      {"depth", kf_j_int(1)},
      {"depth0", kf_j_int(0)},
  };
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    if (strcmp(all[i].name, name) == 0) return *out = all[i].value, KF_OK;
  if (strcmp(name, "previtem") == 0) {
    if (!index) return kf_j_undefined(j, out, "there is no previous item");
    *out = l->items.items[index - 1];
  } else if (strcmp(name, "nextitem") == 0) {
    if (index == count - 1) return kf_j_undefined(j, out, "there is no next item");
    *out = l->items.items[index + 1];
  }
  return KF_OK;
}

/* What Python's getattr gives; *out stays KF_J_MISSING where it would raise AttributeError. */
static kf_status own_attribute(kf_jinja *j, kf_j_value object, const kf_j_string *name, kf_j_value *out) {
  const kf_j_function *table = NULL;
  const char *const *unsafe = (const char *const[]){NULL};
  *out = (kf_j_value){.kind = KF_J_MISSING};
  switch (object.kind) {
  case KF_J_STRING: table = kf_j_string_methods; break;
  case KF_J_DICT: table = dict_methods, unsafe = dict_unsafe; break;
  case KF_J_LIST: table = list_methods, unsafe = list_unsafe; break;
  case KF_J_TUPLE: table = list_methods; break;
  case KF_J_LOOP: table = loop_methods; break;
  case KF_J_NAMESPACE: return kf_j_find(j, object.dict, (kf_j_value){.kind = KF_J_STRING, .string = name}, out);
  default: return KF_OK;
  }
  if (listed(unsafe, name->data))
    return kf_j_undefined(j, out, "access to attribute '%s' of '%s' object is unsafe", name->data, kf_j_type(object));
  const kf_j_function *method = kf_j_lookup(table, name->data);
  if (method) return bind(j, method, object, out);
  return object.kind == KF_J_LOOP ? loop_attribute(j, object.loop, name->data, out) : KF_OK;
}

static int64_t wrap_index(int64_t i, size_t count) {
  return i < 0 ? i + (int64_t)count : i;
}

/* What Python's object[key] gives; *out stays KF_J_MISSING where it would raise. */
static kf_status own_item(kf_jinja *j, kf_j_value object, kf_j_value key, kf_j_value *out) {
  *out = (kf_j_value){.kind = KF_J_MISSING};
  if (object.kind == KF_J_DICT) return kf_j_find(j, object.dict, key, out);
  if (!kf_j_whole(key)) return KF_OK;
  if (object.kind == KF_J_LIST || object.kind == KF_J_TUPLE) {
    int64_t i = wrap_index(key.integer, object.list->count);
    if (i >= 0 && i < (int64_t)object.list->count) *out = object.list->items[i];
  } else if (object.kind == KF_J_RANGE) {
    int64_t i = wrap_index(key.integer, object.range->count);
    if (i >= 0 && i < (int64_t)object.range->count) *out = kf_j_int(object.range->start + i * object.range->step);
  } else if (object.kind == KF_J_STRING) {
    int64_t i = wrap_index(key.integer, object.string->chars);
    if (i < 0 || i >= (int64_t)object.string->chars) return KF_OK;
    KF_TRY(kf_j_spend(j, object.string->bytes));
    size_t from = kf_j_offset(object.string, (size_t)i), to = kf_j_offset(object.string, (size_t)i + 1);
    kf_j_builder b = {0};
    KF_TRY(kf_j_add(j, &b, object.string->data + from, to - from));
    return kf_j_built(j, &b, out);
  }
  return KF_OK;
}

static const char *described(kf_j_value v) {
  return v.kind == KF_J_NONE ? "None" : kf_j_type(v);
}

kf_status kf_j_attribute(kf_jinja *j, kf_j_value object, const kf_j_string *name, kf_j_value *out) {
  KF_TRY(kf_j_defined(j, object));
  KF_TRY(own_attribute(j, object, name, out));
  if (out->kind == KF_J_MISSING) KF_TRY(own_item(j, object, (kf_j_value){.kind = KF_J_STRING, .string = name}, out));
  if (out->kind != KF_J_MISSING) return KF_OK;
  return kf_j_undefined(j, out, "'%s' has no attribute '%s'", described(object), name->data);
}

kf_status kf_j_item(kf_jinja *j, kf_j_value object, kf_j_value key, kf_j_value *out) {
  KF_TRY(kf_j_defined(j, object));
  KF_TRY(own_item(j, object, key, out));
  if (out->kind == KF_J_MISSING && key.kind == KF_J_STRING) KF_TRY(own_attribute(j, object, key.string, out));
  if (out->kind != KF_J_MISSING) return KF_OK;
  if (key.kind == KF_J_STRING) return kf_j_undefined(j, out, "'%s' has no attribute '%s'", described(object), key.string->data);
  if (kf_j_whole(key)) return kf_j_undefined(j, out, "'%s' has no element %lld", described(object), (long long)key.integer);
  return kf_j_undefined(j, out, "'%s' has no such element", described(object));
}

/* ------------------------------------------------------------------------------------------------ slices */

static kf_status slice_bound(kf_jinja *j, kf_j_value v, int64_t fallback, int64_t *out) {
  *out = fallback;
  if (v.kind == KF_J_NONE) return KF_OK;
  KF_TRY(kf_j_defined(j, v));
  if (!kf_j_whole(v)) return kf_j_fail(j, "a slice needs integers, not %s", kf_j_type(v));
  *out = v.integer;
  return KF_OK;
}

static int64_t clamp(int64_t i, int64_t low, int64_t high) {
  return i < low ? low : i > high ? high : i;
}

static kf_status slice_string(kf_jinja *j, const kf_j_string *s, int64_t start, int64_t stop, int64_t step, kf_j_value *out) {
  kf_j_builder b = {0};
  KF_TRY(kf_j_spend(j, s->bytes));
  if (step == 1) {
    size_t from = kf_j_offset(s, (size_t)start), to = kf_j_offset(s, (size_t)(stop > start ? stop : start));
    KF_TRY(kf_j_add(j, &b, s->data + from, to - from));
    return kf_j_built(j, &b, out);
  }
  kf_j_list all;
  KF_TRY(kf_j_items(j, (kf_j_value){.kind = KF_J_STRING, .string = s}, &all));
  for (int64_t i = start; step > 0 ? i < stop : i > stop; i += step)
    KF_TRY(kf_j_add(j, &b, all.items[i].string->data, all.items[i].string->bytes));
  return kf_j_built(j, &b, out);
}

kf_status kf_j_slice(kf_jinja *j, kf_j_value object, const kf_j_value bounds[3], kf_j_value *out) {
  KF_TRY(kf_j_defined(j, object));
  bool text = object.kind == KF_J_STRING;
  if (!text && object.kind != KF_J_LIST && object.kind != KF_J_TUPLE && object.kind != KF_J_RANGE)
    return kf_j_fail(j, "'%s' object cannot be sliced", kf_j_type(object));
  int64_t count, start, stop, step;
  KF_TRY(kf_j_length(j, object, &count));
  KF_TRY(slice_bound(j, bounds[2], 1, &step));
  if (!step) return kf_j_fail(j, "slice step cannot be zero");
  step = clamp(step, -count - 1, count + 1);
  int64_t low = step > 0 ? 0 : -1, high = step > 0 ? count : count - 1; // where a walk starts or stops
  KF_TRY(slice_bound(j, bounds[0], step > 0 ? 0 : count - 1, &start));
  KF_TRY(slice_bound(j, bounds[1], step > 0 ? count : -count - 1, &stop));
  start = clamp(start < 0 ? start + count : start, low, high);
  stop = clamp(stop < 0 ? stop + count : stop, low, high);
  if (text) return slice_string(j, object.string, start, stop, step, out);
  kf_j_list all;
  KF_TRY(kf_j_items(j, object, &all));
  KF_TRY(kf_j_new_list(j, object.kind == KF_J_TUPLE ? KF_J_TUPLE : KF_J_LIST, out));
  for (int64_t i = start; step > 0 ? i < stop : i > stop; i += step) KF_TRY(kf_j_push(j, out->list, all.items[i]));
  return KF_OK;
}

/* ------------------------------------------------------------------------------------------------ arithmetic */

static kf_status overflow(kf_jinja *j) {
  return kf_j_fail(j, "an integer does not fit in 64 bits");
}

static kf_status integer_power(kf_jinja *j, int64_t base, int64_t exponent, kf_j_value *out) {
  int64_t r = 1;
  for (; exponent; exponent >>= 1) {
    if ((exponent & 1) && __builtin_mul_overflow(r, base, &r)) return overflow(j);
    if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) return overflow(j);
  }
  *out = kf_j_int(r);
  return KF_OK;
}

static kf_status integers(kf_jinja *j, int op, int64_t a, int64_t b, kf_j_value *out) {
  int64_t r = 0;
  bool bad = false;
  switch (op) {
  case '+': bad = __builtin_add_overflow(a, b, &r); break;
  case '-': bad = __builtin_sub_overflow(a, b, &r); break;
  case '*': bad = __builtin_mul_overflow(a, b, &r); break;
  case KF_OP('/', '/'):
    if (b == -1) {
      bad = __builtin_sub_overflow(0, a, &r);
    } else {
      r = a / b - (a % b != 0 && (a < 0) != (b < 0)); // Python rounds down
    }
    break;
  default: // %
    r = b == -1 ? 0 : a % b;
    if (r && (r < 0) != (b < 0)) r += b;
  }
  *out = kf_j_int(r);
  return bad ? overflow(j) : KF_OK;
}

/* Python's: the remainder has the divisor's sign, and the quotient follows from it. */
static double remainder_down(double a, double b) {
  double r = fmod(a, b);
  if (r == 0) return copysign(0, b);
  return (r < 0) != (b < 0) ? r + b : r;
}

static double divide_down(double a, double b) {
  double r = fmod(a, b), quotient = (a - r) / b;
  if (r != 0 && (r < 0) != (b < 0)) quotient -= 1;
  if (quotient == 0) return copysign(0, a / b);
  double whole = floor(quotient);
  return quotient - whole > 0.5 ? whole + 1 : whole;
}

static kf_status reals(kf_jinja *j, int op, double a, double b, kf_j_value *out) {
  double r = 0;
  switch (op) {
  case '+': r = a + b; break;
  case '-': r = a - b; break;
  case '*': r = a * b; break;
  case '/': r = a / b; break;
  case '%': r = remainder_down(a, b); break;
  case KF_OP('/', '/'): r = divide_down(a, b); break;
  default:
    r = pow(a, b);
    if (!isfinite(r) && isfinite(a) && isfinite(b)) return kf_j_fail(j, "the power has no finite real value");
  }
  *out = kf_j_real(r);
  return KF_OK;
}

static kf_status numbers(kf_jinja *j, int op, kf_j_value a, kf_j_value b, kf_j_value *out) {
  bool divides = op == '/' || op == '%' || op == KF_OP('/', '/');
  if (divides && kf_j_as_real(b) == 0) return kf_j_fail(j, "division by zero");
  if (!kf_j_whole(a) || !kf_j_whole(b) || op == '/') return reals(j, op, kf_j_as_real(a), kf_j_as_real(b), out);
  if (op != KF_OP('*', '*')) return integers(j, op, a.integer, b.integer, out);
  return b.integer < 0 ? reals(j, op, kf_j_as_real(a), kf_j_as_real(b), out) : integer_power(j, a.integer, b.integer, out);
}

static kf_status repeat(kf_jinja *j, kf_j_value v, int64_t times, kf_j_value *out) {
  if (v.kind == KF_J_STRING) {
    kf_j_builder b = {0};
    for (int64_t i = 0; v.string->bytes && i < times; i++) KF_TRY(kf_j_add(j, &b, v.string->data, v.string->bytes));
    return kf_j_built(j, &b, out);
  }
  KF_TRY(kf_j_new_list(j, v.kind, out));
  for (int64_t i = 0; v.list->count && i < times; i++)
    for (size_t k = 0; k < v.list->count; k++) KF_TRY(kf_j_push(j, out->list, v.list->items[k]));
  return KF_OK;
}

static kf_status concatenate(kf_jinja *j, kf_j_value a, kf_j_value b, kf_j_value *out) {
  if (a.kind == KF_J_STRING) {
    kf_j_builder text = {0};
    KF_TRY(kf_j_add(j, &text, a.string->data, a.string->bytes));
    KF_TRY(kf_j_add(j, &text, b.string->data, b.string->bytes));
    return kf_j_built(j, &text, out);
  }
  KF_TRY(kf_j_new_list(j, a.kind, out));
  for (size_t i = 0; i < a.list->count; i++) KF_TRY(kf_j_push(j, out->list, a.list->items[i]));
  for (size_t i = 0; i < b.list->count; i++) KF_TRY(kf_j_push(j, out->list, b.list->items[i]));
  return KF_OK;
}

static bool sequence(kf_j_value v) {
  return v.kind == KF_J_STRING || v.kind == KF_J_LIST || v.kind == KF_J_TUPLE;
}

kf_status kf_j_binary(kf_jinja *j, int op, kf_j_value a, kf_j_value b, kf_j_value *out) {
  KF_TRY(kf_j_defined(j, a));
  if (op == '%' && a.kind == KF_J_STRING) return kf_j_format(j, a.string, b, out);
  KF_TRY(kf_j_defined(j, b));
  if (kf_j_number(a) && kf_j_number(b)) return numbers(j, op, a, b, out);
  if (op == '+' && a.kind == b.kind && sequence(a)) return concatenate(j, a, b, out);
  if (op == '*' && sequence(a) && kf_j_whole(b)) return repeat(j, a, b.integer, out);
  if (op == '*' && sequence(b) && kf_j_whole(a)) return repeat(j, b, a.integer, out);
  return kf_j_fail(j, "unsupported operands for %c%s: %s and %s", op & 0xff, op >> 8 ? (const char[]){(char)(op >> 8), 0} : "",
                   kf_j_type(a), kf_j_type(b));
}

kf_status kf_j_negate(kf_jinja *j, kf_j_value v, kf_j_value *out) {
  KF_TRY(kf_j_defined(j, v));
  if (v.kind == KF_J_FLOAT) return *out = kf_j_real(-v.real), KF_OK;
  if (!kf_j_whole(v)) return kf_j_fail(j, "a %s cannot be negated", kf_j_type(v));
  return integers(j, '-', 0, v.integer, out);
}
