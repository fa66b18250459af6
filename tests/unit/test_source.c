#include "tensor/source.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char root[] = "/tmp/kvfold-test-source-XXXXXX";

static void directory_of(char out[KF_PATH], const char *name) {
  kf_error e;
  assert_int_equal(kf_join(out, root, name, &e), KF_OK);
  assert_int_equal(kf_make_directory(out, &e), KF_OK);
}

/* A file of [2, 3] tensors 0, 1, 2, ... named by the words of `names`. */
static void put_shard(const char *directory, const char *file, const char *names) {
  char path[KF_PATH], words[256];
  kf_error e;
  kf_safetensors_writer *w;
  snprintf(words, sizeof words, "%s", names);
  assert_int_equal(kf_join(path, directory, file, &e), KF_OK);
  assert_int_equal(kf_safetensors_create(path, &w, &e), KF_OK);
  const float data[6] = {0, 1, 2, 3, 4, 5};
  for (char *rest, *word = strtok_r(words, " ", &rest); word; word = strtok_r(NULL, " ", &rest))
    assert_int_equal(kf_safetensors_add(w, word, KF_BF16, 2, (const int64_t[]){2, 3}, data, &e), KF_OK);
  assert_int_equal(kf_safetensors_finish(w, &e), KF_OK);
}

static void put_text(const char *directory, const char *file, const char *text) {
  char path[KF_PATH];
  kf_error e;
  assert_int_equal(kf_join(path, directory, file, &e), KF_OK);
  assert_int_equal(kf_write_file(path, text, strlen(text), &e), KF_OK);
}

static void refused(const char *directory, const char *says) {
  kf_error e = {0};
  kf_source *s;
  kf_status status = kf_source_open(directory, &s, &e);
  if (status == KF_OK || s || !strstr(e.message, says)) fail_msg("\"%s\" lacks \"%s\"", e.message, says);
}

static void sharded(void **state) {
  (void)state;
  char d[KF_PATH];
  kf_error e;
  kf_source *s;
  directory_of(d, "sharded");
  put_shard(d, "one.safetensors", "b d");
  put_shard(d, "two.safetensors", "a c extra");
  put_text(d, "model.safetensors.index.json",
           "{\"metadata\":{\"total_size\":48},\"weight_map\":{\"a\":\"two.safetensors\",\"b\":\"one.safetensors\","
           "\"c\":\"two.safetensors\",\"d\":\"one.safetensors\"}}");
  if (kf_source_open(d, &s, &e) != KF_OK) fail_msg("%s", e.message);
  assert_string_equal(kf_source_path(s), d);
  assert_null(kf_source_gguf(s));
  assert_int_equal(kf_source_count(s), 5);
  assert_null(kf_source_at(s, 5));
  assert_null(kf_source_find(s, "e"));
  const kf_view *a = kf_source_find(s, "a"), *b = kf_source_find(s, "b");
  assert_non_null(strstr(kf_source_file(s, a), "/two.safetensors"));
  assert_non_null(strstr(kf_source_file(s, b), "/one.safetensors"));
  float out[6];
  assert_int_equal(kf_source_rows(s, a, 0, 2, out, &e), KF_OK);
  assert_true(out[0] == 0 && out[5] == 5);
  kf_source_done(s, a);
  assert_int_equal(kf_source_rows(s, a, 1, 1, out, &e), KF_OK);
  assert_true(out[0] == 3 && out[2] == 5);
  assert_int_equal(kf_source_rows(s, a, 2, 0, out, &e), KF_OK);
  assert_int_equal(kf_source_rows(s, a, 1, 2, out, &e), KF_ERROR_INPUT);
  assert_non_null(strstr(e.message, "rows 1 to 3 of tensor \"a\" were asked for, it has 2"));
  assert_int_equal(kf_source_rows(s, a, -1, 1, out, &e), KF_ERROR_INPUT);
  kf_source_close(s);
}

static void one_file_of_many_types(void **state) {
  (void)state;
  char d[KF_PATH], path[KF_PATH];
  kf_error e;
  kf_source *s;
  kf_safetensors_writer *w;
  directory_of(d, "types");
  assert_int_equal(kf_join(path, d, "model.safetensors", &e), KF_OK);
  assert_int_equal(kf_safetensors_create(path, &w, &e), KF_OK);
  const float data[4] = {1, 2, 3, 4};
  const kf_view ids = {.name = "ids", .dtype = KF_I32, .dims = 1, .shape = {1}, .data = (const uint8_t *)"abcd", .bytes = 4};
  assert_int_equal(kf_safetensors_add(w, "cube", KF_F32, 3, (const int64_t[]){1, 2, 2}, data, &e), KF_OK);
  assert_int_equal(kf_safetensors_add(w, "vector", KF_F16, 1, (const int64_t[]){4}, data, &e), KF_OK);
  assert_int_equal(kf_safetensors_add_raw(w, &ids, &e), KF_OK);
  assert_int_equal(kf_safetensors_finish(w, &e), KF_OK);
  if (kf_source_open(d, &s, &e) != KF_OK) fail_msg("%s", e.message);
  float out[4];
  assert_int_equal(kf_source_rows(s, kf_source_find(s, "vector"), 1, 3, out, &e), KF_OK);
  assert_true(out[0] == 2 && out[2] == 4);
  assert_int_equal(kf_source_rows(s, kf_source_find(s, "cube"), 0, 1, out, &e), KF_ERROR_INPUT);
  assert_non_null(strstr(e.message, "\"cube\" has 3 dimensions"));
  assert_int_equal(kf_source_rows(s, kf_source_find(s, "ids"), 0, 1, out, &e), KF_ERROR_INPUT);
  assert_non_null(strstr(e.message, "\"ids\" is i32"));
  kf_source_close(s);
}

static void broken_directories(void **state) {
  (void)state;
  char d[KF_PATH], path[KF_PATH];
  directory_of(d, "broken");
  refused(d, "holds neither model.safetensors nor");
  put_shard(d, "one.safetensors", "a b");
  put_shard(d, "two.safetensors", "b c");
  static const struct {
    const char *index, *says;
  } bad[] = {
      {"{", "not valid JSON"},
      {"{\"weight_map\":[]}", "has no weight_map"},
      {"{\"weight_map\":{}}", "has no weight_map"},
      {"{\"weight_map\":{\"a\":7}}", "\"a\" is mapped to no plain file name"},
      {"{\"weight_map\":{\"a\":\"../one.safetensors\"}}", "\"a\" is mapped to no plain file name"},
      {"{\"weight_map\":{\"a\":\"three.safetensors\"}}", "three.safetensors"},
      {"{\"weight_map\":{\"c\":\"one.safetensors\"}}", "\"c\" is not in one.safetensors"},
      {"{\"weight_map\":{\"a\":\"one.safetensors\",\"c\":\"two.safetensors\"}}", "two shards hold the tensor \"b\""},
  };
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    put_text(d, "model.safetensors.index.json", bad[i].index);
    refused(d, bad[i].says);
  }
  assert_int_equal(kf_join(path, d, "nowhere.gguf", NULL), KF_OK);
  refused(path, "No such file");
}

/* Two blocks of q8_0 a row: rows come out whole, a vector can only be cut between blocks. */
static void quantised(void **state) {
  (void)state;
  char d[KF_PATH], path[KF_PATH];
  kf_error e;
  kf_source *s;
  kf_buffer b = {0};
  directory_of(d, "quantised");
  assert_int_equal(kf_join(path, d, "m.gguf", &e), KF_OK);
  kf_buffer_add(&b, "GGUF\3\0\0\0\2\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24, &e);
  kf_buffer_add(&b, "\1\0\0\0\0\0\0\0m\2\0\0\0\x40\0\0\0\0\0\0\0\3\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\0\0\0\0", 41, &e);
  kf_buffer_add(&b, "\1\0\0\0\0\0\0\0v\1\0\0\0\x40\0\0\0\0\0\0\0\x08\0\0\0\xe0\0\0\0\0\0\0\0", 33, &e);
  while (b.bytes % 32) kf_buffer_add(&b, "", 1, &e);
  uint8_t block[34] = {0, 0x3c}; // scale 1
  for (int i = 0; i < 8; i++) {  // m has blocks 0 to 5, v 6 and 7, 224 bytes behind the start of m
    if (i == 6)
      for (int k = 0; k < 224 - 6 * 34; k++) kf_buffer_add(&b, "", 1, &e);
    memset(block + 2, i, 32);
    kf_buffer_add(&b, block, sizeof block, &e);
  }
  assert_int_equal(kf_write_file(path, b.data, b.bytes, &e), KF_OK);
  kf_buffer_free(&b);
  if (kf_source_open(path, &s, &e) != KF_OK) fail_msg("%s", e.message);
  assert_non_null(kf_source_gguf(s));
  assert_string_equal(kf_source_file(s, kf_source_find(s, "m")), path);
  float out[128];
  assert_int_equal(kf_source_rows(s, kf_source_find(s, "m"), 1, 2, out, &e), KF_OK);
  assert_true(out[0] == 2 && out[32] == 3 && out[64] == 4 && out[127] == 5);
  assert_int_equal(kf_source_rows(s, kf_source_find(s, "v"), 32, 32, out, &e), KF_OK);
  assert_true(out[0] == 7 && out[31] == 7);
  assert_int_equal(kf_source_rows(s, kf_source_find(s, "v"), 16, 32, out, &e), KF_ERROR_INPUT);
  assert_non_null(strstr(e.message, "\"v\" is q8_0 and cannot be cut at 16"));
  kf_source_close(s);
}

/* Pages of a tensor that is done with leave the process. */
static void resident_memory(void **state) {
  (void)state;
  char d[KF_PATH], path[KF_PATH];
  kf_error e;
  kf_source *s;
  enum { ROWS = 4096, COLUMNS = 1024 }; // 16 MiB
  directory_of(d, "large");
  assert_int_equal(kf_join(path, d, "model.safetensors", &e), KF_OK);
  float *data = kf_alloc((size_t)ROWS * COLUMNS, sizeof *data, &e);
  for (int i = 0; i < ROWS * COLUMNS; i++) data[i] = (float)i;
  assert_int_equal(kf_write_tensor(path, "w", data, ROWS, COLUMNS, &e), KF_OK);
  if (kf_source_open(d, &s, &e) != KF_OK) fail_msg("%s", e.message);
  const kf_view *w = kf_source_find(s, "w");
  long before, read_all, after, size;
  long *const resident[] = {&before, &read_all, &after};
  for (int i = 0; i < 3; i++) {
    if (i == 1) assert_int_equal(kf_source_rows(s, w, 0, ROWS, data, &e), KF_OK);
    if (i == 2) kf_source_done(s, w);
    FILE *f = fopen("/proc/self/statm", "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%ld %ld", &size, resident[i]), 2);
    fclose(f);
  }
  long pages = (long)ROWS * COLUMNS * 4 / sysconf(_SC_PAGESIZE);
  assert_true(read_all - before > pages / 2);
  assert_true(after - before < pages / 4);
  assert_true(data[ROWS * COLUMNS - 1] == (float)(ROWS * COLUMNS - 1));
  kf_source_close(s);
  free(data);
}

static int begin(void **state) {
  (void)state;
  return mkdtemp(root) ? 0 : -1;
}

static int end(void **state) {
  (void)state;
  return kf_remove_tree(root, NULL) == KF_OK ? 0 : -1;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(sharded),   cmocka_unit_test(one_file_of_many_types), cmocka_unit_test(broken_directories),
      cmocka_unit_test(quantised), cmocka_unit_test(resident_memory),
  };
  return cmocka_run_group_tests(tests, begin, end);
}
