#include "tensor/safetensors.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char root[] = "/tmp/kvfold-test-safetensors-XXXXXX";

static void path_of(char path[KF_PATH], const char *name) {
  snprintf(path, KF_PATH, "%s/%s", root, name);
}

static void round_trip(void **state) {
  (void)state;
  kf_error e;
  char path[KF_PATH], temporary[KF_PATH];
  path_of(path, "a.safetensors");
  path_of(temporary, "a.safetensors.tmp");
  enum { ROWS = 301, COLUMNS = 307 }; // more than the writer converts at a time
  float *data = kf_alloc(ROWS * COLUMNS, sizeof *data, &e);
  for (int i = 0; i < ROWS * COLUMNS; i++) data[i] = (float)(i % 256) / 8;
  kf_safetensors_writer *w;
  const int64_t matrix[] = {ROWS, COLUMNS}, vector[] = {3}, none[] = {0, 5};
  assert_int_equal(kf_safetensors_create(path, &w, &e), KF_OK);
  assert_int_equal(kf_safetensors_add(w, "m.bf16", KF_BF16, 2, matrix, data, &e), KF_OK);
  assert_int_equal(kf_safetensors_add(w, "m.f16", KF_F16, 2, matrix, data, &e), KF_OK);
  assert_int_equal(kf_safetensors_add(w, "v.f32", KF_F32, 1, vector, data, &e), KF_OK);
  assert_int_equal(kf_safetensors_add(w, "empty", KF_F32, 2, none, data, &e), KF_OK);
  assert_int_equal(kf_safetensors_add(w, "scalar", KF_F32, 0, NULL, data + 8, &e), KF_OK);
  int64_t bytes = 2 * 2 * ROWS * COLUMNS + 12 + 4;
  assert_int_equal(kf_safetensors_written(w), bytes);
  kf_view raw = {
      .name = "raw", .dtype = KF_I64, .dims = 1, .shape = {2}, .data = (const uint8_t *)(const int64_t[]){5, -6}, .bytes = 16};
  assert_int_equal(kf_safetensors_add_raw(w, &raw, &e), KF_OK);
  assert_int_equal(kf_safetensors_add(w, "v.f32", KF_F32, 1, vector, data, &e), KF_ERROR_INPUT);
  assert_non_null(strstr(e.message, "\"v.f32\" is written twice"));
  assert_int_equal(kf_safetensors_add(w, "q", KF_Q4_0, 1, vector, data, &e), KF_ERROR_INPUT);
  assert_int_equal(kf_safetensors_add(w, "i", KF_I32, 1, vector, data, &e), KF_ERROR_INPUT);
  assert_false(kf_exists(path));
  assert_int_equal(kf_safetensors_finish(w, &e), KF_OK);
  assert_false(kf_exists(temporary));

  kf_safetensors *s;
  if (kf_safetensors_open(path, &s, &e) != KF_OK) fail_msg("%s", e.message);
  assert_int_equal(kf_safetensors_count(s), 6);
  assert_string_equal(kf_safetensors_metadata(s, "format"), "pt");
  assert_null(kf_safetensors_metadata(s, "other"));
  assert_string_equal(kf_safetensors_at(s, 0)->name, "m.bf16");
  assert_null(kf_safetensors_at(s, 6));
  assert_null(kf_safetensors_find(s, "m"));
  float *back = kf_alloc(ROWS * COLUMNS, sizeof *back, &e);
  static const char *const names[] = {"m.bf16", "m.f16"};
  for (int i = 0; i < 2; i++) {
    const kf_view *v = kf_safetensors_find(s, names[i]);
    assert_non_null(v);
    assert_int_equal(v->dims, 2);
    assert_int_equal(v->shape[1], COLUMNS);
    kf_to_f32(v->dtype, v->data, back, ROWS * COLUMNS);
    assert_memory_equal(back, data, ROWS * COLUMNS * sizeof *data);
  }
  assert_int_equal((uintptr_t)kf_safetensors_at(s, 0)->data % 8, 0);
  assert_memory_equal(kf_safetensors_find(s, "v.f32")->data, data, 12);
  assert_int_equal(kf_safetensors_find(s, "empty")->bytes, 0);
  assert_int_equal(kf_safetensors_find(s, "scalar")->dims, 0);
  assert_memory_equal(kf_safetensors_find(s, "raw")->data, raw.data, 16);
  kf_safetensors_close(s);
  free(data);
  free(back);
}

/* A header that outgrows the room reserved for it moves the data. */
static void many_tensors(void **state) {
  (void)state;
  enum { COUNT = 3000 };
  kf_error e;
  char path[KF_PATH], name[100];
  path_of(path, "many.safetensors");
  kf_safetensors_writer *w;
  assert_int_equal(kf_safetensors_create(path, &w, &e), KF_OK);
  float values[64];
  for (int i = 0; i < COUNT; i++) {
    for (int k = 0; k < 64; k++) values[k] = (float)(i * 64 + k);
    snprintf(name, sizeof name, "model.layers.%d.self_attn.a_rather_long_name.weight", i);
    assert_int_equal(kf_safetensors_add(w, name, KF_F32, 2, (const int64_t[]){8, 8}, values, &e), KF_OK);
  }
  assert_int_equal(kf_safetensors_finish(w, &e), KF_OK);
  kf_safetensors *s;
  if (kf_safetensors_open(path, &s, &e) != KF_OK) fail_msg("%s", e.message);
  for (int i = 0; i < COUNT; i++) {
    snprintf(name, sizeof name, "model.layers.%d.self_attn.a_rather_long_name.weight", i);
    const kf_view *v = kf_safetensors_find(s, name);
    assert_ptr_equal(v, kf_safetensors_at(s, i));
    for (int k = 0; k < 64; k++) values[k] = (float)(i * 64 + k);
    assert_memory_equal(v->data, values, sizeof values);
  }
  kf_safetensors_close(s);
}

static void one_tensor(void **state) {
  (void)state;
  kf_error e;
  char path[KF_PATH];
  path_of(path, "logits.safetensors");
  const float data[6] = {1, 2, 3, 4, 5, 6};
  assert_int_equal(kf_write_tensor(path, "logits", data, 2, 3, &e), KF_OK);
  kf_safetensors *s;
  assert_int_equal(kf_safetensors_open(path, &s, &e), KF_OK);
  const kf_view *v = kf_safetensors_find(s, "logits");
  assert_non_null(v);
  assert_int_equal(v->shape[0], 2);
  assert_int_equal(v->shape[1], 3);
  assert_memory_equal(v->data, data, sizeof data);
  kf_safetensors_close(s);
  assert_int_equal(kf_write_tensor("/nonexistent/x", "logits", data, 2, 3, &e), KF_ERROR_IO);
  assert_int_equal(kf_write_tensor(path, "logits", data, -2, 3, &e), KF_ERROR_INPUT);
}

static void full_disk_and_abandon(void **state) {
  (void)state;
  kf_error e;
  char path[KF_PATH], temporary[KF_PATH];
  path_of(path, "full.safetensors");
  path_of(temporary, "full.safetensors.tmp");
  assert_int_equal(symlink("/dev/full", temporary), 0);
  kf_safetensors_writer *w;
  assert_int_equal(kf_safetensors_create(path, &w, &e), KF_OK);
  const float data[2] = {1, 2};
  assert_int_equal(kf_safetensors_add(w, "a", KF_F32, 1, (const int64_t[]){2}, data, &e), KF_ERROR_IO);
  assert_non_null(strstr(e.message, "full.safetensors: No space left"));
  kf_safetensors_abandon(w);
  assert_false(kf_exists(path));
  assert_false(kf_exists(temporary));

  assert_int_equal(symlink("/dev/full", temporary), 0);
  assert_int_equal(kf_safetensors_create(path, &w, &e), KF_OK);
  assert_int_equal(kf_safetensors_finish(w, &e), KF_ERROR_IO);
  assert_false(kf_exists(path));
  assert_false(kf_exists(temporary));
  kf_safetensors_abandon(NULL);

  // A tensor that could not be written whole is never sealed by a header.
  const kf_view lies = {.name = "a", .dtype = KF_F32, .dims = 1, .shape = {3}, .data = (const uint8_t *)data, .bytes = 8};
  assert_int_equal(kf_safetensors_create(path, &w, &e), KF_OK);
  assert_int_equal(kf_safetensors_add_raw(w, &lies, &e), KF_ERROR_INPUT);
  assert_non_null(strstr(e.message, "\"a\" has 8 bytes, its shape needs 12"));
  assert_int_equal(kf_safetensors_finish(w, &e), KF_ERROR_INPUT);
  assert_false(kf_exists(path));
  assert_false(kf_exists(temporary));
}

/* header and `bytes` zero bytes of data; length < 0: the header's own. */
static size_t build(uint8_t *to, const char *header, int64_t length, size_t bytes) {
  size_t n = strlen(header);
  uint64_t l = length < 0 ? n : (uint64_t)length;
  for (int i = 0; i < 8; i++) to[i] = (uint8_t)(l >> 8 * i);
  memcpy(to + 8, header, n);
  memset(to + 8 + n, 0, bytes);
  return 8 + n + bytes;
}

#define T(dtype, shape, begin, end) "{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" #begin "," #end "]}"

static void malformed(void **state) {
  (void)state;
  static const struct {
    const char *header;
    int64_t length;
    size_t bytes;
    const char *says;
  } bad[] = {
      {"{}", INT64_MAX, 0, "a header of 9223372036854775807 bytes does not fit"},
      {"{}", 3, 0, "a header of 3 bytes does not fit in the file of 10"},
      {"", 0, 4, "not valid JSON"},
      {"{\"a\":" T("F32", "1", 0, 4), -1, 4, "not valid JSON"},
      {"[]", -1, 0, "not a JSON object"},
      {"{}", -1, 1, "end at byte 0 of the data, but the file holds 1"},
      {"{\"a\":" T("F32", "1", 0, 4) "}", -1, 3, "\"a\" ends at byte 4 of the data, but the file holds 3"},
      {"{\"a\":" T("F32", "1", 0, 4) "}", -1, 5, "end at byte 4"},
      {"{\"a\":" T("F32", "2", 0, 4) "}", -1, 4, "\"a\" has 4 bytes, not the size of its shape"},
      {"{\"a\":" T("F16", "3", 0, 5) "}", -1, 5, "\"a\" has 5 bytes"},
      {"{\"a\":" T("F32", "2", 0, 8) ",\"b\":" T("F32", "1", 4, 8) "}", -1, 8, "\"b\" overlaps tensor \"a\""},
      {"{\"a\":" T("F32", "1", 0, 4) ",\"b\":" T("F32", "1", 8, 12) "}", -1, 12, "\"b\" begins at byte 8 of the data, but 4"},
      {"{\"a\":" T("F32", "1", 4, 8) "}", -1, 8, "\"a\" begins at byte 4"},
      {"{\"a\":" T("F32", "1", 4, 0) "}", -1, 4, "\"a\" has data_offsets 4 to 0"},
      {"{\"a\":" T("F32", "1", -4, 0) "}", -1, 4, "\"a\" has data_offsets -4"},
      {"{\"a\":" T("F32", "1", 0, 4) ",\"a\":" T("F32", "1", 4, 8) "}", -1, 8, "duplicate object key"},
      {"{\"a\":" T("F32", "1,1,1,1,1", 0, 4) "}", -1, 4, "\"a\" has 5 dimensions"},
      {"{\"a\":" T("F32", "-1", 0, 4) "}", -1, 4, "\"a\" has a dimension 0"},
      {"{\"a\":" T("F32", "1.5", 0, 4) "}", -1, 4, "\"a\" has a dimension 0"},
      {"{\"a\":" T("F32", "4294967296,4294967296", 0, 4) "}", -1, 4, "\"a\" has a shape that overflows"},
      {"{\"a\":" T("F32", "4611686018427387904", 0, 0) "}", -1, 0, "\"a\" has 0 bytes"},
      {"{\"a\":" T("F32", "99999999999999999999", 0, 4) "}", -1, 4, "not valid JSON"},
      {"{\"a\":" T("F8_E4M3", "4", 0, 4) "}", -1, 4, "\"a\" is F8_E4M3, a type that is not read"},
      {"{\"a\":" T("Q4_0", "32", 0, 18) "}", -1, 18, "\"a\" is Q4_0, a type that is not read"},
      {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", -1, 4, "\"a\" has no dtype"},
      {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", -1, 4, "\"a\" has no shape"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", -1, 4, "\"a\" has no data_offsets"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", -1, 4, "\"a\" has no data_offsets"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,\"4\"]}}", -1, 4, "\"a\" has no data_offsets"},
      {"{\"a\":7}", -1, 4, "\"a\" has no dtype"},
  };
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    // An allocation of the exact size lets the sanitizer see a read behind the end.
    uint8_t scratch[1024];
    size_t n = build(scratch, bad[i].header, bad[i].length, bad[i].bytes);
    uint8_t *file = malloc(n);
    memcpy(file, scratch, n);
    kf_safetensors *s;
    kf_error e = {0};
    kf_status status = kf_safetensors_parse("bad.safetensors", file, n, &s, &e);
    if (status != KF_ERROR_INPUT || !strstr(e.message, bad[i].says) || strncmp(e.message, "bad.safetensors", 15) != 0 || s)
      fail_msg("case %zu: status %d, \"%s\" lacks \"%s\"", i, status, e.message, bad[i].says);
    free(file);
  }
  kf_safetensors *s;
  kf_error e;
  assert_int_equal(kf_safetensors_parse("short", "1234567", 7, &s, &e), KF_ERROR_INPUT);
  assert_int_equal(kf_safetensors_parse("empty", NULL, 0, &s, &e), KF_ERROR_INPUT);
  assert_int_equal(kf_safetensors_open("/nonexistent.safetensors", &s, &e), KF_ERROR_IO);
}

static void allowed(void **state) {
  (void)state;
  static const char *const headers[] = {
      "{}   ",
      "{\"__metadata__\":{\"format\":\"pt\"},\"b\":" T("F32", "1", 4, 8) ",\"a\":" T("F32", "1", 0, 4) "}",
      "{\"a\":" T("U8", "3", 0, 3) ",\"b\":" T("F32", "1", 3, 7) ",\"z\":" T("F32", "0", 3, 3) "}",
  };
  static const size_t bytes[] = {0, 8, 7};
  static const int counts[] = {0, 2, 3};
  for (size_t i = 0; i < 3; i++) {
    uint8_t file[1024];
    kf_safetensors *s;
    kf_error e;
    if (kf_safetensors_parse("ok", file, build(file, headers[i], -1, bytes[i]), &s, &e) != KF_OK) fail_msg("%s", e.message);
    assert_int_equal(kf_safetensors_count(s), counts[i]);
    if (counts[i]) assert_string_equal(kf_safetensors_at(s, 0)->name, "a");
    if (counts[i]) assert_non_null(kf_safetensors_find(s, "b"));
    kf_safetensors_close(s);
  }
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
      cmocka_unit_test(round_trip), cmocka_unit_test(many_tensors),
      cmocka_unit_test(one_tensor), cmocka_unit_test(full_disk_and_abandon),
      cmocka_unit_test(malformed),  cmocka_unit_test(allowed),
  };
  return cmocka_run_group_tests(tests, begin, end);
}
