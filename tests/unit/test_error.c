/* What a message is: one line without control characters, whatever the names in it hold. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"

static void test_one_line(void **state) {
  (void)state;
  kf_error e = {0};
  assert_int_equal(kf_fail(&e, KF_ERROR_INPUT, "tensor \"%s\"", "a\nb\r\x1b[31m\x7f\x0b"), KF_ERROR_INPUT);
  assert_int_equal(e.status, KF_ERROR_INPUT);
  assert_string_equal(e.message, "tensor \"a b  [31m  \"");
  errno = ENOENT;
  assert_int_equal(kf_fail_errno(&e, "%s", "x\ty"), KF_ERROR_IO);
  assert_string_equal(e.message, "x y: No such file or directory");
}

static void hear(void *user, const char *sentence) {
  strcpy(user, sentence);
}

static void test_notes(void **state) {
  (void)state;
  char heard[64] = "";
  kf_note(&(kf_hooks){.note = hear, .user = heard}, "layer %d\nof %s", 3, "m\x01");
  assert_string_equal(heard, "layer 3 of m ");
  kf_note(NULL, "nobody listens");
  assert_int_equal(kf_fail(NULL, KF_ERROR_MEMORY, "nobody asks"), KF_ERROR_MEMORY);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_one_line), cmocka_unit_test(test_notes)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
