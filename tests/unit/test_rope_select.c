/* Which pairs are kept: the paper's example, the published rank files, and ties. */
#include "convert/rope_select.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "convert/ranks.h"

static void check(kf_rope_policy policy, int heads, int half, int r, const double *scores, const int *pairs,
                  const int32_t *index) {
  int got_pairs[64];
  int32_t got[1024];
  assert_int_equal(kf_rope_select(policy, heads, half, r, scores, got_pairs, got, NULL), KF_OK);
  for (int g = 0; g < heads; g++) assert_int_equal(got_pairs[g], pairs ? pairs[g] : r);
  for (int i = 0; i < heads * r; i++) assert_int_equal(got[i], index[i]);
}

/* MHA2MLA, figure 2: heads of 8 numbers, 2 pairs kept. */
static void test_figure_2(void **state) {
  (void)state;
  check(KF_ROPE_HIGH, 1, 4, 2, NULL, NULL, (const int32_t[]){0, 1});
  check(KF_ROPE_LOW, 1, 4, 2, NULL, NULL, (const int32_t[]){2, 3});
  check(KF_ROPE_UNIFORM, 1, 4, 2, NULL, NULL, (const int32_t[]){0, 2});
  check(KF_ROPE_HIGH_LOW, 1, 4, 2, NULL, NULL, (const int32_t[]){0, 3});
}

static void test_other_counts(void **state) {
  (void)state;
  check(KF_ROPE_UNIFORM, 1, 32, 4, NULL, NULL, (const int32_t[]){0, 8, 16, 24});
  check(KF_ROPE_UNIFORM, 1, 8, 3, NULL, NULL, (const int32_t[]){0, 2, 5});
  check(KF_ROPE_HIGH_LOW, 2, 8, 3, NULL, NULL, (const int32_t[]){0, 1, 7, 0, 1, 7}); // the odd one is fast
  for (int p = KF_ROPE_HIGH; p <= KF_ROPE_2NORM_GLOBAL; p++) {
    const double scores[] = {4, 3, 2, 1};
    check((kf_rope_policy)p, 1, 4, 4, scores, NULL, (const int32_t[]){0, 1, 2, 3});
    check((kf_rope_policy)p, 1, 4, 0, scores, NULL, NULL);
  }
}

static void test_norms(void **state) {
  (void)state;
  const double scores[] = {1, 9, 3, 3, /* second head */ 8, 0, 7, 6};
  check(KF_ROPE_2NORM, 2, 4, 2, scores, NULL, (const int32_t[]){1, 2, 0, 2}); // of equal scores the lower pair
  check(KF_ROPE_2NORM_GLOBAL, 2, 4, 2, scores, (const int[]){1, 3}, (const int32_t[]){1, 0, 2, 3});
}

static bool read_published(const char *name, kf_ranks *out) {
  char path[4096];
  const char *data = getenv("KVFOLD_TEST_DATA");
  snprintf(path, sizeof path, "%s/mha2mla-ranks/%s.safetensors", data ? data : KVFOLD_SOURCE_DIR "/../shared/data", name);
  kf_error e = {0};
  FILE *f = fopen(path, "rb");
  if (!f) {
    printf("SKIP: %s is not here\n", path);
    return false;
  }
  fclose(f);
  if (kf_ranks_read(path, out, &e) != KF_OK) fail_msg("%s", e.message);
  return true;
}

static void check_layer(const kf_ranks *r, int layer, int heads, int pairs, const int32_t *index) {
  check(KF_ROPE_2NORM, heads, r->half, pairs, r->score + (size_t)layer * (size_t)r->heads * (size_t)r->half, NULL, index);
}

static void test_published_135m(void **state) {
  (void)state;
  kf_ranks r;
  if (!read_published("smollm1_135M-2_norm_rank", &r)) skip();
  check_layer(&r, 0, 3, 4, (const int32_t[]){17, 19, 22, 23, 0, 20, 21, 29, 4, 20, 21, 22});
  check_layer(&r, 29, 3, 4, (const int32_t[]){17, 23, 29, 31, 17, 22, 28, 29, 18, 24, 29, 30});
  kf_ranks_free(&r);
}

static void test_published_7b(void **state) {
  (void)state;
  kf_ranks r;
  if (!read_published("llama2_7B-2_norm_rank", &r)) skip();
  check_layer(&r, 0, 4, 8, (const int32_t[]){5,  14, 41, 43, 45, 47, 48, 49, 31, 40, 46, 49, 51, 53, 57, 59,
                                             47, 50, 52, 53, 54, 58, 61, 63, 41, 46, 48, 49, 50, 51, 52, 53});
  kf_ranks_free(&r);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_figure_2),       cmocka_unit_test(test_other_counts), cmocka_unit_test(test_norms),
      cmocka_unit_test(test_published_135m), cmocka_unit_test(test_published_7b),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
