/* Chat templates against Hugging Face's own rendering (tests/fixtures/chat, from tools/golden/make_chats.py), and what a
 * broken or hostile template must end in: one error sentence, soon. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "text/jinja.h"

#define FIXTURES KVFOLD_SOURCE_DIR "/tests/fixtures/chat"

/* "@TODAY(%d %B %Y)@" in what is expected stands for the day the test runs. */
static char *with_today(const char *text) {
  kf_buffer b = {0};
  const char *mark;
  while ((mark = strstr(text, "@TODAY("))) {
    const char *end = strstr(mark, ")@");
    char format[64] = {0}, today[128];
    time_t now = time(NULL);
    struct tm local;
    assert_non_null(end);
    memcpy(format, mark + 7, (size_t)(end - mark - 7));
    size_t n = strftime(today, sizeof today, format, localtime_r(&now, &local));
    assert_int_equal(kf_buffer_add(&b, text, (size_t)(mark - text), NULL), KF_OK);
    assert_int_equal(kf_buffer_add(&b, today, n, NULL), KF_OK);
    text = end + 2;
  }
  assert_int_equal(kf_buffer_add(&b, text, strlen(text), NULL), KF_OK);
  return b.data;
}

/* Hugging Face refused: so must we, with the message of raise_exception() where it has one. */
static bool error_agrees(const char *template, const char *theirs, const char *ours) {
  return !strstr(template, "raise_exception") || strstr(ours, theirs) || !strstr(template, theirs);
}

/* 1 when the case fails, said on stderr. */
static int run_case(const char *file, const char *template, const json_t *variables, const json_t *test) {
  kf_text out;
  kf_error e = {0};
  const char *error = json_string_value(json_object_get(test, "error"));
  char *expected = error ? NULL : with_today(json_string_value(json_object_get(test, "expected")));
  kf_status s = kf_jinja_render(template, variables, &out, &e);
  bool good = error ? s == KF_ERROR_INPUT && strstr(e.message, "line ") && error_agrees(template, error, e.message)
                    : s == KF_OK && strlen(expected) == out.bytes && memcmp(expected, out.data, out.bytes) == 0;
  if (!good) {
    const char *title = json_string_value(json_object_get(test, "title"));
    fprintf(stderr, "%s: %s\n  expected %s: %s\n  found    %s: %s\n", file, title ? title : template, error ? "error" : "text",
            error ? error : expected, s == KF_OK ? "text" : "error", s == KF_OK ? out.data : e.message);
  }
  free(expected);
  kf_text_free(&out);
  return !good;
}

static int run_file(const char *name, int *cases) {
  char path[1024];
  int failed = 0;
  json_error_t why;
  snprintf(path, sizeof path, "%s/%s", FIXTURES, name);
  json_t *file = json_load_file(path, JSON_ALLOW_NUL, &why), *test;
  if (!file) fail_msg("%s: %s", path, why.text);
  size_t i;
  json_array_foreach(json_object_get(file, "cases"), i, test) {
    const json_t *template = json_object_get(file, "template"), *variables = json_object_get(file, "variables");
    if (!template) template = json_object_get(test, "template");
    if (!variables) variables = json_object_get(test, "variables");
    failed += run_case(name, json_string_value(template), variables, test);
    ++*cases;
  }
  json_decref(file);
  return failed;
}

static void renders_as_hugging_face(void **state) {
  (void)state;
  int files = 0, cases = 0, failed = 0;
  DIR *dir = opendir(FIXTURES);
  assert_non_null(dir);
  for (struct dirent *entry; (entry = readdir(dir));) {
    if (!strstr(entry->d_name, ".json")) continue;
    failed += run_file(entry->d_name, &cases);
    files++;
  }
  closedir(dir);
  printf("%d templates and features, %d renderings, %d differ\n", files, cases, failed);
  assert_true(files >= 26 && cases >= 500);
  assert_int_equal(failed, 0);
}

/* The template must end in an error that has the words. */
static void refused(const char *template, const char *words) {
  kf_text out;
  kf_error e = {0};
  json_t *variables = json_pack("{s:[i,i]}", "l", 1, 2);
  assert_int_equal(kf_jinja_render(template, variables, &out, &e), KF_ERROR_INPUT);
  json_decref(variables);
  assert_null(out.data);
  if (!strstr(e.message, words)) fail_msg("expected '%s' in: %s", words, e.message);
}

static void errors_name_the_line(void **state) {
  (void)state;
  refused("a\n\n{% if true %}\nb\n", "line 3: the block {% if %} is not closed by {% endif %}");
  refused("{% for x in l %}\n{% if x %}\n{% endif %}", "line 1: the block {% for %} is not closed by {% endfor %}");
  refused("{% if l %}\n{% for x in l %}\n{% endif %}", "line 3");
  refused("\n{{ l | frobnicate }}", "line 2: no filter named 'frobnicate'");
  refused("{{ l is frobnicate }}", "line 1: no test named 'frobnicate'");
  refused("\n\n{% frobnicate %}", "line 3: expected a tag that is supported here, found 'frobnicate'");
  refused("x\n{{ nothing.at.all }}", "line 2: 'nothing' is undefined");
  refused("{{ l.none.at }}", "'list' has no attribute 'none'");
  refused("{{ l.append(3) }}", "access to attribute 'append' of 'list' object is unsafe");
  refused("\n{{ raise_exception('Roles must alternate') }}", "line 2: Roles must alternate");
  refused("{{ l(*l) }}", "unpacking is not supported");
  refused("{{ 99999999999999999999 }}", "too large");
  refused("{{ 9223372036854775807 + 1 }}", "64 bits");
  refused("{{ -9223372036854775807 - 2 }}", "64 bits");
  refused("{{ '\xff' }}", "not UTF-8");
}

static void hostile_templates_end(void **state) {
  (void)state;
  refused("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}", "more than");
  refused("{% for a in range(100000) %}{{ 'x' * 10000 }}{% endfor %}", "more than");
  refused("{{ 'x' * 9223372036854775807 }}", "more than");
  refused("{{ [0] * 9223372036854775807 }}", "more than");
  refused("{% set ns = namespace(s='xxxxxxxx') %}{% for a in range(90) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}", "more than");
  refused("{% set ns = namespace(l=[1]) %}{% for a in range(90) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
          "more than");
  refused("{% set ns = namespace(l=[1]) %}{% for a in range(9000) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l == [ns.l] }}",
          "deeper than");
  refused("{% set ns = namespace(l=[1]) %}{% for a in range(9000) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l | tojson }}",
          "deeper than");
  refused("{% set ns = namespace() %}{% set ns.me = ns %}{{ ns }}", "deeper than");
  refused("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "deeper than");
  refused("{{ 'a'.rfind('a' * 1000000) }}{{ ('a' * 1000000).rfind('b' ~ 'a' * 500000) }}", "more than");
}

static void deep_syntax_ends(void **state) {
  (void)state;
  static const struct {
    const char *open, *close;
  } nests[] = {{"(", ")"}, {"[", "]"},           {"{1:", "}"}, {"-", ""},        {"not ", ""},
               {"1+", ""}, {"1 if 1 else ", ""}, {"l[", "]"},  {"l|first(", ")"}};
  for (size_t i = 0; i < sizeof nests / sizeof *nests; i++) {
    kf_buffer b = {0};
    kf_buffer_printf(&b, NULL, "{{ ");
    for (int k = 0; k < 100000; k++) kf_buffer_printf(&b, NULL, "%s", nests[i].open);
    kf_buffer_printf(&b, NULL, "1");
    for (int k = 0; k < 100000; k++) kf_buffer_printf(&b, NULL, "%s", nests[i].close);
    kf_buffer_printf(&b, NULL, " }}");
    refused(b.data, "deeper than");
    kf_buffer_free(&b);
  }
  kf_buffer b = {0};
  for (int k = 0; k < 100000; k++) kf_buffer_printf(&b, NULL, "{%% if 1 %%}");
  refused(b.data, "deeper than");
  kf_buffer_free(&b);
}

static void variables_must_be_an_object(void **state) {
  (void)state;
  kf_text out;
  kf_error e = {0};
  json_t *list = json_array();
  assert_int_equal(kf_jinja_render("x", list, &out, &e), KF_ERROR_INPUT);
  json_decref(list);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(renders_as_hugging_face),     cmocka_unit_test(errors_name_the_line),
      cmocka_unit_test(hostile_templates_end),       cmocka_unit_test(deep_syntax_ends),
      cmocka_unit_test(variables_must_be_an_object),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
