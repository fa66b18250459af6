/* Rank files: the published ones against the published scores, and broken ones. */
#include "convert/ranks.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char *published(const char *name, char path[4096]) {
  const char *data = getenv("KVFOLD_TEST_DATA");
  snprintf(path, 4096, "%s/mha2mla-ranks/%s.safetensors", data ? data : KVFOLD_SOURCE_DIR "/../shared/data", name);
  return kf_is_file(path) ? path : NULL;
}

static bool read_pair(const char *scores, const char *ranks, kf_ranks *s, kf_ranks *r) {
  char path[4096];
  kf_error e = {0};
  if (!published(scores, path) || !published(ranks, path)) {
    printf("SKIP: %s is not here\n", path);
    return false;
  }
  if (kf_ranks_read(published(scores, path), s, &e) != KF_OK || kf_ranks_read(published(ranks, path), r, &e) != KF_OK)
    fail_msg("%s", e.message);
  assert_true(s->scored);
  assert_false(r->scored);
  return true;
}

/* Rows (layer, head) whose order by score is the published order. */
static int equal_rows(const kf_ranks *s, const kf_ranks *r) {
  int32_t order[256];
  int equal = 0;
  for (int row = 0; row < r->layers * r->heads; row++) {
    bool same = true;
    kf_ranks_order(s->score + (size_t)row * (size_t)s->half, s->half, order);
    for (int place = 0; place < s->half; place++)
      same = same && r->score[(size_t)row * (size_t)r->half + (size_t)order[place]] == -place;
    equal += same;
  }
  return equal;
}

static void test_scores_give_the_published_ranks(void **state) {
  (void)state;
  kf_ranks s, r;
  if (!read_pair("qk_tensor_135M_rank_k", "smollm1_135M-2_norm_rank", &s, &r)) skip();
  assert_int_equal(equal_rows(&s, &r), 90);
  kf_ranks_free(&s), kf_ranks_free(&r);
  assert_true(read_pair("qk_tensor_135M_rank_q", "smollm1_135M-2_norm_rank_q", &s, &r));
  assert_int_equal(equal_rows(&s, &r), 270);
  kf_ranks_free(&s), kf_ranks_free(&r);
}

static void test_query_heads_are_summed(void **state) {
  (void)state;
  kf_ranks q, k;
  kf_error e;
  char path[4096];
  if (!published("qk_tensor_135M_rank_q", path)) {
    printf("SKIP: %s is not here\n", path);
    skip();
  }
  assert_int_equal(kf_ranks_read(path, &q, NULL), KF_OK);
  assert_int_equal(kf_ranks_fit(&q, path, 30, 9, 3, 32, NULL), KF_OK);
  assert_int_equal(kf_ranks_read(published("qk_tensor_135M_rank_k", path), &k, NULL), KF_OK);
  for (int i = 0; i < 30 * 3 * 32; i++) assert_true(fabs(q.score[i] - k.score[i]) <= 2e-7 * k.score[i]);
  assert_true(fabs(k.score[0] - 2.7225) < 1e-4 && fabs(k.score[23] - 38.119) < 1e-3);
  kf_ranks_free(&q), kf_ranks_free(&k);
  /* v1's sums: the file of query heads adds up to that of KV heads */
  assert_int_equal(kf_ranks_read(published("qk_tensor_135M_dict", path), &q, NULL), KF_OK);
  assert_int_equal(kf_ranks_fit(&q, path, 30, 9, 3, 32, NULL), KF_OK);
  assert_int_equal(kf_ranks_read(published("qk_tensor_135M", path), &k, NULL), KF_OK);
  for (int i = 0; i < 30 * 3 * 32; i++)
    assert_true((float)q.score[i] == (float)k.score[i] || fabs(q.score[i] - k.score[i]) <= 2e-7 * k.score[i]);
  kf_ranks_free(&q), kf_ranks_free(&k);
  /* ranks of query heads say nothing about a group */
  assert_int_equal(kf_ranks_read(published("smollm1_135M-2_norm_rank_q", path), &q, NULL), KF_OK);
  assert_int_equal(kf_ranks_fit(&q, path, 30, 9, 3, 32, &e), KF_ERROR_INPUT);
  assert_non_null(strstr(e.message, "9 query heads"));
  assert_int_equal(kf_ranks_fit(&q, path, 30, 9, 9, 32, NULL), KF_OK);
  assert_int_equal(kf_ranks_fit(&q, path, 32, 9, 9, 32, &e), KF_ERROR_INPUT);
  kf_ranks_free(&q);
}

static void test_every_published_file_loads(void **state) {
  (void)state;
  static const struct {
    const char *name;
    int layers, heads, half;
  } files[] = {
      {"llama2_13B-2_norm_rank", 40, 40, 64},
      {"llama2_7B-2_norm_rank", 32, 32, 64},
      {"qwen1.5_0.5B-2_norm_rank", 24, 16, 32},
      {"qwen2_0.5B-2_norm_rank", 24, 2, 32},
      {"smollm1_1B7-2_norm_rank", 24, 32, 32},
      {"smollm1_360M-2_norm_rank", 32, 5, 32},
      {"qk_tensor_7B", 32, 32, 64},
      {"qk_tensor_3B", 28, 8, 64},
      {"135M_2norm_rank", 30, 3, 32},
  };
  char path[4096];
  if (!published(files[0].name, path)) {
    printf("SKIP: %s is not here\n", path);
    skip();
  }
  for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
    kf_ranks r;
    assert_int_equal(kf_ranks_read(published(files[i].name, path), &r, NULL), KF_OK);
    assert_int_equal(r.layers, files[i].layers);
    assert_int_equal(r.heads, files[i].heads);
    assert_int_equal(r.half, files[i].half);
    kf_ranks_free(&r);
  }
}

/* A file of one tensor, in memory. */
static kf_status parse(const char *name, const char *dtype, const char *shape, const void *data, size_t bytes, kf_error *e) {
  char file[1024];
  int n = snprintf(file + 8, 512, "{\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[0,%zu]}}", name, dtype, shape, bytes);
  while (n % 8) file[8 + n++] = ' ';
  memcpy(file, &(uint64_t){(uint64_t)n}, 8);
  memcpy(file + 8 + n, data, bytes);
  kf_safetensors *s;
  kf_ranks r;
  kf_status status = kf_safetensors_parse("ranks.safetensors", file, 8 + (size_t)n + bytes, &s, e);
  if (status != KF_OK) return status;
  status = kf_ranks_from("ranks.safetensors", s, &r, e);
  kf_ranks_free(&r);
  kf_safetensors_close(s);
  return status;
}

static void test_broken_files(void **state) {
  (void)state;
  kf_error e;
  const uint8_t good[] = {1, 0, 1, 0, 0, 1, 0, 1}, twice[] = {1, 1, 1, 1, 0, 1, 0, 1}, large[] = {1, 0, 1, 0, 0, 2, 0, 2};
  const uint8_t halves[] = {1, 0, 1, 0, 0, 1, 1, 0};
  const int64_t wide[] = {1, 0, 1, 0}, negative[] = {-1, 0, -1, 0};
  const float scores[] = {1, 2, 3, 4}, bad[] = {1, 2, NAN, 4};
  assert_int_equal(parse("ranks", "U8", "[1,2,4]", good, 8, &e), KF_OK);
  assert_int_equal(parse("ranks", "I64", "[1,1,4]", wide, 32, &e), KF_OK);
  assert_int_equal(parse("qk_tensor", "F32", "[1,2,2]", scores, 16, &e), KF_OK);
  assert_int_equal(parse("scores", "F32", "[2,1,2]", scores, 16, &e), KF_OK);
  assert_int_equal(parse("ranks", "U8", "[1,2,4]", twice, 8, &e), KF_ERROR_INPUT);
  assert_non_null(strstr(e.message, "head 0"));
  assert_int_equal(parse("ranks", "U8", "[1,2,4]", large, 8, &e), KF_ERROR_INPUT);
  assert_non_null(strstr(e.message, "head 1"));
  assert_int_equal(parse("ranks", "U8", "[1,2,4]", halves, 8, &e), KF_ERROR_INPUT);
  assert_int_equal(parse("ranks", "I64", "[1,1,4]", negative, 32, &e), KF_ERROR_INPUT);
  assert_int_equal(parse("ranks", "U8", "[2,4]", good, 8, &e), KF_ERROR_INPUT);
  assert_int_equal(parse("ranks", "F32", "[1,1,4]", scores, 16, &e), KF_ERROR_INPUT);
  assert_int_equal(parse("ranks", "U8", "[1,8,1]", good, 8, &e), KF_ERROR_INPUT);
  assert_int_equal(parse("scores", "U8", "[1,2,4]", good, 8, &e), KF_ERROR_INPUT);
  assert_int_equal(parse("scores", "F32", "[1,2,2]", bad, 16, &e), KF_ERROR_INPUT);
  assert_non_null(strstr(e.message, "not finite"));
  assert_int_equal(parse("other", "F32", "[1,2,2]", scores, 16, &e), KF_ERROR_INPUT);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_scores_give_the_published_ranks),
      cmocka_unit_test(test_query_heads_are_summed),
      cmocka_unit_test(test_every_published_file_loads),
      cmocka_unit_test(test_broken_files),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
