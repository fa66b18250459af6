#include "base/memory.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void allocation(void **state) {
  (void)state;
  kf_error e = {0};
  assert_null(kf_alloc(SIZE_MAX / 2, 3, &e));
  assert_int_equal(e.status, KF_ERROR_MEMORY);
  assert_null(kf_alloc((size_t)1 << 47, 1, &e));
  assert_null(kf_alloc((size_t)1 << 47, 1, NULL));
  for (size_t n = 0; n < 200; n += 33) {
    uint8_t *p = kf_alloc(n, 1, &e);
    assert_int_equal((uintptr_t)p % 64, 0);
    for (size_t i = 0; i < n; i++) assert_int_equal(p[i], 0);
    free(p);
  }
}

static void buffers(void **state) {
  (void)state;
  kf_error e;
  kf_buffer b = {0};
  assert_int_equal(kf_buffer_add(&b, NULL, 0, &e), KF_OK);
  assert_string_equal(b.data, "");
  for (int i = 0; i < 1000; i++) assert_int_equal(kf_buffer_printf(&b, &e, "%d,", i % 10), KF_OK);
  assert_int_equal(b.bytes, 2000);
  assert_int_equal(strlen(b.data), 2000);
  assert_memory_equal(b.data + 1998, "9,", 3);
  assert_int_equal(kf_buffer_add(&b, "x", SIZE_MAX - 100, &e), KF_ERROR_MEMORY);
  kf_buffer_free(&b);
  assert_null(b.data);
}

static void arenas(void **state) {
  (void)state;
  kf_error e;
  kf_arena a = {0};
  for (size_t n = 1; n < 200000; n = n * 3 + 1) {
    uint8_t *p = kf_arena_alloc(&a, n, 1, &e);
    assert_int_equal((uintptr_t)p % 16, 0);
    for (size_t i = 0; i < n; i++) assert_int_equal(p[i], 0);
    memset(p, 0xff, n);
  }
  assert_string_equal(kf_arena_string(&a, "words", 4, &e), "word");
  assert_null(kf_arena_alloc(&a, SIZE_MAX / 2, 4, &e));
  kf_arena_free(&a);
  assert_null(a.head);
}

static void sentences(void **state) {
  (void)state;
  kf_error e;
  char name[2000];
  memset(name, 'n', sizeof name - 1);
  name[sizeof name - 1] = 0;
  assert_int_equal(kf_fail(&e, KF_ERROR_INPUT, "line\n%s", name), KF_ERROR_INPUT);
  assert_int_equal(strlen(e.message), sizeof e.message - 1);
  assert_null(strchr(e.message, '\n'));
  assert_int_equal(kf_fail(NULL, KF_ERROR_IO, "nobody listens"), KF_ERROR_IO);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(allocation),
      cmocka_unit_test(buffers),
      cmocka_unit_test(arenas),
      cmocka_unit_test(sentences),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
