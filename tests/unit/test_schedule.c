#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "train/schedule.h"

static double at(const char *name, int64_t warmup, int64_t decay, int64_t step) {
  kf_schedule s = {.steps = 100, .warmup = warmup, .decay = decay};
  kf_error e = {0};
  assert_int_equal(kf_schedule_parse(name, &s.kind, &e), KF_OK);
  return kf_schedule_at(&s, step);
}

static void near(double got, double want) {
  if (!(fabs(got - want) < 1e-12)) fail_msg("%.15g, not %.15g", got, want);
}

static void values(void **state) {
  (void)state;
  static const char *const all[] = {"cosine", "linear", "constant", "wsd", "1-sqrt"};
  for (int i = 0; i < 5; i++) {
    near(at(all[i], 10, 20, 0), 0.1);
    near(at(all[i], 10, 20, 9), 1);
    near(at(all[i], 10, 20, 10), 1);
    near(at(all[i], 0, 20, 0), 1);
  }
  near(at("cosine", 10, 0, 55), 0.5);
  near(at("cosine", 0, 0, 50), 0.5);
  near(at("cosine", 0, 0, 99), (1 + cos(acos(-1) * 0.99)) / 2);
  near(at("linear", 10, 0, 55), 0.5);
  near(at("constant", 10, 0, 99), 1);
  near(at("wsd", 10, 20, 79), 1);
  near(at("wsd", 10, 20, 80), 1);
  near(at("wsd", 10, 20, 90), 0.5);
  near(at("1-sqrt", 10, 20, 80), 1);
  near(at("1-sqrt", 10, 20, 85), 0.5);
  near(at("1-sqrt", 10, 20, 99), 1 - sqrt(0.95));
  near(at("wsd", 60, 90, 80), 0.5); /* a decay longer than what the warm-up leaves */
}

static void errors(void **state) {
  (void)state;
  kf_schedule_kind kind;
  kf_error e = {0};
  assert_int_equal(kf_schedule_parse("cosin", &kind, &e), KF_ERROR_USAGE);
  assert_non_null(strstr(e.message, "cosin"));
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(values), cmocka_unit_test(errors)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
