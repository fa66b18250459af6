#include "base/json.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"

static json_t *parse(const char *text) {
  kf_error e;
  json_t *o;
  if (kf_json_parse("c.json", text, strlen(text), &o, &e) != KF_OK) fail_msg("%s", e.message);
  return o;
}

#define SAYS(call, text)                                                            \
  do {                                                                              \
    kf_error e = {0};                                                               \
    assert_int_equal(call, KF_ERROR_INPUT);                                         \
    if (!strstr(e.message, text)) fail_msg("\"%s\" lacks \"%s\"", e.message, text); \
  } while (0)

static void members(void **state) {
  (void)state;
  json_t *o = parse("{\"n\": 7, \"whole\": 3.0, \"part\": 3.5, \"big\": 1e300, \"s\": \"text\", \"t\": true, \"z\": null, "
                    "\"nul\": \"a\\u0000b\"}");
  kf_error e;
  int64_t i;
  double r;
  bool b;
  const char *s;
  assert_int_equal(kf_json_int(o, "c.json", "n", 1, 0, 9, &i, &e), KF_OK);
  assert_int_equal(i, 7);
  assert_int_equal(kf_json_int(o, "c.json", "whole", 1, 0, 9, &i, &e), KF_OK);
  assert_int_equal(i, 3);
  assert_int_equal(kf_json_int(o, "c.json", "z", 1, 2, 9, &i, &e), KF_OK);
  assert_int_equal(i, 1);
  assert_int_equal(kf_json_int(o, "c.json", "absent", -4, 0, 9, &i, &e), KF_OK);
  assert_int_equal(i, -4);
  assert_int_equal(kf_json_real(o, "c.json", "part", 0, 0, 9, &r, &e), KF_OK);
  assert_true(r == 3.5);
  assert_int_equal(kf_json_real(o, "c.json", "n", 0, 0, 9, &r, &e), KF_OK);
  assert_true(r == 7);
  assert_int_equal(kf_json_bool(o, "c.json", "t", false, &b, &e), KF_OK);
  assert_true(b);
  assert_int_equal(kf_json_bool(o, "c.json", "absent", true, &b, &e), KF_OK);
  assert_true(b);
  assert_int_equal(kf_json_string(o, "c.json", "s", NULL, &s, &e), KF_OK);
  assert_string_equal(s, "text");
  assert_int_equal(kf_json_string(o, "c.json", "z", NULL, &s, &e), KF_OK);
  assert_null(s);
  SAYS(kf_json_int(o, "c.json", "n", 1, 8, 9, &i, &e), "c.json: \"n\" is 7, expected a whole number from 8 to 9");
  SAYS(kf_json_int(o, "c.json", "part", 1, 0, 9, &i, &e), "\"part\" is 3.5");
  SAYS(kf_json_int(o, "c.json", "big", 1, 0, INT64_MAX, &i, &e), "\"big\"");
  SAYS(kf_json_int(o, "c.json", "s", 1, 0, 9, &i, &e), "\"s\" is \"text\"");
  SAYS(kf_json_int(o, "c.json", "t", 1, 0, 9, &i, &e), "\"t\" is true");
  SAYS(kf_json_real(o, "c.json", "big", 1, 0, 1e9, &r, &e), "expected a number from 0 to 1e+09");
  SAYS(kf_json_real(o, "c.json", "s", 1, 0, 9, &r, &e), "\"s\"");
  SAYS(kf_json_bool(o, "c.json", "n", true, &b, &e), "expected true or false");
  SAYS(kf_json_string(o, "c.json", "n", NULL, &s, &e), "expected a string");
  SAYS(kf_json_string(o, "c.json", "nul", NULL, &s, &e), "expected a string");
  json_decref(o);
}

/* transformers writes 10^30 for a tokenizer without a limit. */
static void integers_of_any_size(void **state) {
  (void)state;
  json_t *o = parse("{\"a\": 1000000000000000019884624838656, \"s\": \"\\\"99999999999999999999\", \"b\": "
                    "[-99999999999999999999, 1234567890123456789e0], \"n\": 12}");
  assert_true(json_real_value(json_object_get(o, "a")) == 1e30);
  assert_string_equal(json_string_value(json_object_get(o, "s")), "\"99999999999999999999");
  assert_true(json_real_value(json_array_get(json_object_get(o, "b"), 0)) == -1e20);
  assert_true(json_is_integer(json_object_get(o, "n")));
  json_decref(o);
}

static void what_is_refused(void **state) {
  (void)state;
  static const struct {
    const char *text, *says;
  } bad[] = {
      {"", "c.json is not valid JSON"},
      {"{\"a\": 1", "line 1"},
      {"{\n\"a\": x}", "line 2"},
      {"[1]", "does not hold a JSON object"},
      {"{\"a\": 1} tail", "not valid JSON"},
      {"{\"a\": \"\xff\"}", "not valid JSON"},
      {"{\"a\": 1e999}", "not valid JSON"},
  };
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    json_t *o;
    SAYS(kf_json_parse("c.json", bad[i].text, strlen(bad[i].text), &o, &e), bad[i].says);
    assert_null(o);
  }
}

static void files(void **state) {
  (void)state;
  char directory[] = "/tmp/kvfold-test-json-XXXXXX", path[KF_PATH];
  assert_non_null(mkdtemp(directory));
  kf_error e;
  assert_int_equal(kf_join(path, directory, "o.json", &e), KF_OK);
  json_t *o = parse("{\"z\": 1, \"a\": [0.1, 1e-5], \"t\": \"\xc3\xa9\"}"), *back;
  assert_int_equal(kf_json_write(path, o, &e), KF_OK);
  assert_int_equal(kf_json_read(path, &back, &e), KF_OK);
  assert_true(json_equal(o, back));
  kf_text text;
  assert_int_equal(kf_read_file(path, 1000, &text, &e), KF_OK);
  assert_memory_equal(text.data, "{\n  \"z\": 1", 10);
  assert_int_equal(text.data[text.bytes - 1], '\n');
  kf_text_free(&text);
  json_decref(o);
  json_decref(back);
  assert_int_equal(kf_remove_tree(directory, &e), KF_OK);
  assert_int_equal(kf_json_read(path, &back, &e), KF_ERROR_IO);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(members),
      cmocka_unit_test(integers_of_any_size),
      cmocka_unit_test(what_is_refused),
      cmocka_unit_test(files),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
