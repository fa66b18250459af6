/* The tests behind `is`. Each answers with a boolean. */
#include "text/jinja_impl.h"

#include <string.h>

static bool one_of(kf_j_value v, unsigned kinds) {
  return (kinds >> v.kind & 1) != 0;
}

#define KINDS_ITERABLE                                                                                                      \
  (1u << KF_J_UNDEFINED | 1u << KF_J_STRING | 1u << KF_J_LIST | 1u << KF_J_TUPLE | 1u << KF_J_GENERATOR | 1u << KF_J_VIEW | \
   1u << KF_J_RANGE | 1u << KF_J_DICT | 1u << KF_J_LOOP)
#define KINDS_SEQUENCE \
  (1u << KF_J_UNDEFINED | 1u << KF_J_STRING | 1u << KF_J_LIST | 1u << KF_J_TUPLE | 1u << KF_J_RANGE | 1u << KF_J_DICT)

/* Tests that only look at the type of the value. */
#define KIND_TEST(name, kinds)                                                               \
  static kf_status name(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) { \
    (void)j, (void)a;                                                                        \
    *out = kf_j_bool(one_of(self, kinds));                                                   \
    return KF_OK;                                                                            \
  }
KIND_TEST(is_defined, ~(1u << KF_J_UNDEFINED))
KIND_TEST(is_undefined, 1u << KF_J_UNDEFINED)
KIND_TEST(is_none, 1u << KF_J_NONE)
KIND_TEST(is_string, 1u << KF_J_STRING)
KIND_TEST(is_mapping, 1u << KF_J_DICT)
KIND_TEST(is_number, 1u << KF_J_BOOL | 1u << KF_J_INT | 1u << KF_J_FLOAT)
KIND_TEST(is_integer, 1u << KF_J_INT)
KIND_TEST(is_float, 1u << KF_J_FLOAT)
KIND_TEST(is_boolean, 1u << KF_J_BOOL)
KIND_TEST(is_iterable, KINDS_ITERABLE)
KIND_TEST(is_sequence, KINDS_SEQUENCE)
KIND_TEST(is_callable, 1u << KF_J_FUNCTION | 1u << KF_J_MACRO | 1u << KF_J_LOOP | 1u << KF_J_UNDEFINED)

static kf_status is_true(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)j, (void)a;
  *out = kf_j_bool(self.kind == KF_J_BOOL && self.integer);
  return KF_OK;
}

static kf_status is_false(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)j, (void)a;
  *out = kf_j_bool(self.kind == KF_J_BOOL && !self.integer);
  return KF_OK;
}

/* ------------------------------------------------------------------------------------------------ comparisons */

static kf_status eq(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  bool same;
  KF_TRY(kf_j_equal(j, self, a->items[0], &same));
  *out = kf_j_bool(same);
  return KF_OK;
}

static kf_status ne(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  KF_TRY(eq(j, self, a, out));
  out->integer = !out->integer;
  return KF_OK;
}

static kf_status lt(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  int order;
  KF_TRY(kf_j_order(j, self, a->items[0], &order));
  *out = kf_j_bool(order < 0);
  return KF_OK;
}

static kf_status ge(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  KF_TRY(lt(j, self, a, out));
  out->integer = !out->integer;
  return KF_OK;
}

static kf_status gt(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  int order;
  KF_TRY(kf_j_order(j, self, a->items[0], &order));
  *out = kf_j_bool(order > 0);
  return KF_OK;
}

static kf_status le(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  KF_TRY(gt(j, self, a, out));
  out->integer = !out->integer;
  return KF_OK;
}

static kf_status is_in(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  bool yes;
  KF_TRY(kf_j_contains(j, a->items[0], self, &yes));
  *out = kf_j_bool(yes);
  return KF_OK;
}

static kf_status same_as(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  if (self.kind != a->items[0].kind) return *out = kf_j_bool(false), KF_OK;
  if (!one_of(self, 1u << KF_J_STRING | 1u << KF_J_NONE | 1u << KF_J_BOOL | 1u << KF_J_INT | 1u << KF_J_FLOAT)) {
    *out = kf_j_bool(self.list == a->items[0].list);
    return KF_OK;
  }
  return eq(j, self, a, out);
}

/* ------------------------------------------------------------------------------------------------ numbers, text */

static kf_status remainder_of(kf_jinja *j, kf_j_value self, kf_j_value by, int64_t wanted, kf_j_value *out) {
  kf_j_value rest;
  if (!kf_j_number(self)) return kf_j_fail(j, "a %s cannot be divided", kf_j_type(self));
  KF_TRY(kf_j_binary(j, '%', self, by, &rest));
  *out = kf_j_bool(kf_j_as_real(rest) == (double)wanted);
  return KF_OK;
}

static kf_status is_odd(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)a;
  return remainder_of(j, self, kf_j_int(2), 1, out);
}

static kf_status is_even(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)a;
  return remainder_of(j, self, kf_j_int(2), 0, out);
}

static kf_status divisible_by(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  return remainder_of(j, self, a->items[0], 0, out);
}

static kf_status string_method(kf_jinja *j, kf_j_value self, const char *name, const kf_j_args *a, kf_j_value *out) {
  kf_j_value text;
  KF_TRY(kf_j_string_of(j, self, &text));
  return kf_j_lookup(kf_j_string_methods, name)->call(j, text, a, out);
}

static kf_status is_lower(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  return string_method(j, self, "islower", a, out);
}

static kf_status is_upper(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  return string_method(j, self, "isupper", a, out);
}

static kf_status is_filter(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)j, (void)a;
  *out = kf_j_bool(self.kind == KF_J_STRING && kf_j_lookup(kf_j_filters, self.string->data));
  return KF_OK;
}

static kf_status is_test(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)j, (void)a;
  *out = kf_j_bool(self.kind == KF_J_STRING && kf_j_lookup(kf_j_tests, self.string->data));
  return KF_OK;
}

const kf_j_function kf_j_tests[] = {
    {"defined", "", is_defined},
    {"undefined", "", is_undefined},
    {"none", "", is_none},
    {"string", "", is_string},
    {"mapping", "", is_mapping},
    {"number", "", is_number},
    {"integer", "", is_integer},
    {"float", "", is_float},
    {"boolean", "", is_boolean},
    {"iterable", "", is_iterable},
    {"sequence", "", is_sequence},
    {"callable", "", is_callable},
    {"true", "", is_true},
    {"false", "", is_false},
    {"odd", "", is_odd},
    {"even", "", is_even},
    {"divisibleby", "num", divisible_by},
    {"lower", "", is_lower},
    {"upper", "", is_upper},
    {"filter", "", is_filter},
    {"test", "", is_test},
    {"in", "seq", is_in},
    {"sameas", "other", same_as},
    {"eq", "other", eq},
    {"equalto", "other", eq},
    {"==", "other", eq},
    {"ne", "other", ne},
    {"!=", "other", ne},
    {"lt", "other", lt},
    {"lessthan", "other", lt},
    {"<", "other", lt},
    {"le", "other", le},
    {"<=", "other", le},
    {"gt", "other", gt},
    {"greaterthan", "other", gt},
    {">", "other", gt},
    {"ge", "other", ge},
    {">=", "other", ge},
    {NULL, NULL, NULL},
};

kf_status kf_j_test(kf_jinja *j, const char *name, kf_j_value self, const kf_j_args *a, bool *out) {
  const kf_j_function *f = kf_j_lookup(kf_j_tests, name);
  if (!f) return kf_j_fail(j, "no test named '%.60s'", name);
  kf_j_value answer;
  KF_TRY(kf_j_apply(j, f, "test", self, a, &answer));
  *out = kf_j_truth(answer);
  return KF_OK;
}
