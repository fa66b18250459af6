#include "tensor/gguf.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { U8, I8, U16, I16, U32, I32, F32, BOOLEAN, STRING, ARRAY, U64, I64, F64 };

/* ------------------------------------------------------------------------------------------------ writing bytes */

static void put(kf_buffer *b, const void *data, size_t bytes) {
  assert_int_equal(kf_buffer_add(b, data, bytes, NULL), KF_OK);
}
static void put32(kf_buffer *b, uint32_t x) {
  put(b, &x, 4);
}
static void put64(kf_buffer *b, uint64_t x) {
  put(b, &x, 8);
}
static void put_text(kf_buffer *b, const char *s) {
  put64(b, strlen(s));
  put(b, s, strlen(s));
}
static void head(kf_buffer *b, uint32_t version, uint64_t tensors, uint64_t keys) {
  put(b, "GGUF", 4);
  put32(b, version);
  put64(b, tensors);
  put64(b, keys);
}
static void key(kf_buffer *b, const char *name, uint32_t type) {
  put_text(b, name);
  put32(b, type);
}
static void key32(kf_buffer *b, const char *name, uint32_t type, uint32_t x) {
  key(b, name, type);
  put32(b, x);
}
static void array(kf_buffer *b, const char *name, uint32_t type, uint64_t count) {
  key(b, name, ARRAY);
  put32(b, type);
  put64(b, count);
}
static void tensor(kf_buffer *b, const char *name, int dims, const uint64_t *size, uint32_t type, uint64_t offset) {
  put_text(b, name);
  put32(b, (uint32_t)dims);
  for (int i = 0; i < dims; i++) put64(b, size[i]);
  put32(b, type);
  put64(b, offset);
}
static void pad(kf_buffer *b, size_t alignment) {
  while (b->bytes % alignment) put(b, "", 1);
}
static void zeros(kf_buffer *b, size_t bytes) {
  while (bytes--) put(b, "", 1);
}

#define SIZE(...)                                               \
  (sizeof((uint64_t[]){__VA_ARGS__}) / 8), (const uint64_t[]) { \
    __VA_ARGS__                                                 \
  }

/* ------------------------------------------------------------------------------------------------ reading */

static kf_gguf *parse(const kf_buffer *b) {
  kf_gguf *g;
  kf_error e;
  if (kf_gguf_parse("t.gguf", b->data, b->bytes, &g, &e) != KF_OK) fail_msg("%s", e.message);
  return g;
}

static void metadata(void **state) {
  (void)state;
  kf_buffer b = {0};
  head(&b, 3, 0, 9);
  key32(&b, "u32", U32, 4000000000u);
  key32(&b, "f32", F32, 0x3fc00000);
  key(&b, "flag", BOOLEAN), put(&b, "\1", 1);
  key(&b, "i8", I8), put(&b, "\xfe", 1);
  key(&b, "huge", U64), put64(&b, UINT64_MAX);
  key(&b, "name", STRING), put_text(&b, "na\xc3\xafve");
  array(&b, "tokens", STRING, 3), put_text(&b, "a"), put_text(&b, ""), put64(&b, 3), put(&b, "x\0y", 3);
  array(&b, "scores", F32, 2), put32(&b, 0xbf800000), put32(&b, 0x40000000);
  array(&b, "none", I32, 0);
  kf_gguf *g = parse(&b);
  kf_error e;
  int64_t i = -1;
  double r = -1;
  const char *s = NULL;
  assert_int_equal(kf_gguf_int(g, "u32", &i, &e), KF_OK);
  assert_int_equal(i, 4000000000);
  assert_int_equal(kf_gguf_int(g, "absent", &i, &e), KF_OK);
  assert_int_equal(i, 4000000000);
  assert_int_equal(kf_gguf_int(g, "flag", &i, &e), KF_OK);
  assert_int_equal(i, 1);
  assert_int_equal(kf_gguf_int(g, "i8", &i, &e), KF_OK);
  assert_int_equal(i, -2);
  assert_int_equal(kf_gguf_real(g, "f32", &r, &e), KF_OK);
  assert_true(r == 1.5);
  assert_int_equal(kf_gguf_real(g, "i8", &r, &e), KF_OK);
  assert_true(r == -2);
  assert_int_equal(kf_gguf_string(g, "name", &s, &e), KF_OK);
  assert_string_equal(s, "na\xc3\xafve");
  assert_int_equal(kf_gguf_int(g, "f32", &i, &e), KF_ERROR_INPUT);
  assert_non_null(strstr(e.message, "t.gguf: the key \"f32\" is not an integer"));
  assert_int_equal(kf_gguf_int(g, "huge", &i, &e), KF_ERROR_INPUT);
  assert_int_equal(kf_gguf_int(g, "scores", &i, &e), KF_ERROR_INPUT);
  assert_int_equal(kf_gguf_real(g, "name", &r, &e), KF_ERROR_INPUT);
  assert_int_equal(kf_gguf_string(g, "u32", &s, &e), KF_ERROR_INPUT);
  assert_int_equal(kf_gguf_string(g, "tokens", &s, &e), KF_ERROR_INPUT);
  assert_true(kf_gguf_has(g, "none") && !kf_gguf_has(g, "nothing"));

  size_t bytes;
  assert_int_equal(kf_gguf_array(g, "tokens"), 3);
  assert_int_equal(kf_gguf_array(g, "none"), 0);
  assert_int_equal(kf_gguf_array(g, "name"), 0);
  assert_string_equal(kf_gguf_array_string(g, "tokens", 0, &bytes), "a");
  assert_int_equal(bytes, 1);
  assert_string_equal(kf_gguf_array_string(g, "tokens", 1, &bytes), "");
  assert_memory_equal(kf_gguf_array_string(g, "tokens", 2, &bytes), "x\0y", 4);
  assert_int_equal(bytes, 3);
  assert_null(kf_gguf_array_string(g, "tokens", 3, &bytes));
  assert_null(kf_gguf_array_string(g, "tokens", -1, &bytes));
  assert_null(kf_gguf_array_string(g, "scores", 0, &bytes));
  assert_true(kf_gguf_array_real(g, "scores", 0, &r) && r == -1);
  assert_false(kf_gguf_array_real(g, "scores", 2, &r));
  assert_false(kf_gguf_array_real(g, "tokens", 0, &r));
  assert_false(kf_gguf_array_int(g, "scores", 0, &i));
  kf_gguf_close(g);
  kf_buffer_free(&b);
}

static void tensors(void **state) {
  (void)state;
  for (uint32_t version = 2; version <= 3; version++) {
    kf_buffer b = {0};
    head(&b, version, 2, 1);
    key32(&b, "general.alignment", U32, 64);
    tensor(&b, "w", SIZE(32, 2), 2, 64); // Q4_0
    tensor(&b, "v", SIZE(3), 0, 0);
    pad(&b, 64);
    size_t begin = b.bytes;
    put(&b, (const float[]){1, 2, 3}, 12);
    pad(&b, 64);
    zeros(&b, 36);
    kf_gguf *g = parse(&b);
    assert_int_equal(kf_gguf_count(g), 2);
    assert_string_equal(kf_gguf_at(g, 0)->name, "w");
    assert_null(kf_gguf_at(g, 2));
    assert_null(kf_gguf_find(g, "x"));
    const kf_view *w = kf_gguf_find(g, "w"), *v = kf_gguf_find(g, "v");
    assert_true(w->dtype == KF_Q4_0 && w->dims == 2 && w->shape[0] == 2 && w->shape[1] == 32 && w->bytes == 36);
    assert_ptr_equal(w->data, b.data + begin + 64);
    assert_memory_equal(v->data, ((const float[]){1, 2, 3}), 12);
    kf_gguf_close(g);
    kf_buffer_free(&b);
  }
}

/* ------------------------------------------------------------------------------------------------ malformed */

static void not_gguf(kf_buffer *b) {
  put(b, "GGML", 4), zeros(b, 20);
}
static void version_1(kf_buffer *b) {
  head(b, 1, 0, 0);
}
static void version_4(kf_buffer *b) {
  head(b, 4, 0, 0);
}
static void big_endian(kf_buffer *b) {
  head(b, 0x03000000, 0, 0);
}
static void short_head(kf_buffer *b) {
  head(b, 3, 0, 0), b->bytes = 20;
}
static void many_tensors(kf_buffer *b) {
  head(b, 3, 1ull << 60, 0);
}
static void many_keys(kf_buffer *b) {
  head(b, 3, 0, UINT64_MAX);
}
static void long_key(kf_buffer *b) {
  head(b, 3, 0, 1), put64(b, UINT64_MAX), zeros(b, 20);
}
static void empty_key(kf_buffer *b) {
  head(b, 3, 0, 1), key32(b, "", U32, 1);
}
static void nul_key(kf_buffer *b) {
  head(b, 3, 0, 1), put64(b, 2), put(b, "a\0", 2), put32(b, U32), put32(b, 1);
}
static void key_type(kf_buffer *b) {
  head(b, 3, 0, 1), key32(b, "k", 13, 0);
}
static void key_twice(kf_buffer *b) {
  head(b, 3, 0, 2), key32(b, "k", U32, 0), key32(b, "k", U32, 0);
}
static void nested(kf_buffer *b) {
  head(b, 3, 0, 1), array(b, "k", ARRAY, 1), zeros(b, 16);
}
static void long_array(kf_buffer *b) {
  head(b, 3, 0, 1), array(b, "k", U64, 1ull << 61), zeros(b, 16);
}
static void long_strings(kf_buffer *b) {
  head(b, 3, 0, 1), array(b, "k", STRING, 1ull << 40), zeros(b, 16);
}
static void short_strings(kf_buffer *b) {
  head(b, 3, 0, 1), array(b, "k", STRING, 2), put_text(b, "a"), put64(b, 9), zeros(b, 8);
}
static void short_value(kf_buffer *b) {
  head(b, 3, 0, 1), key(b, "key", U64), zeros(b, 4);
}
static void alignment_0(kf_buffer *b) {
  head(b, 3, 0, 1), key32(b, "general.alignment", U32, 0);
}
static void alignment_48(kf_buffer *b) {
  head(b, 3, 0, 1), key32(b, "general.alignment", U32, 48);
}
static void alignment_text(kf_buffer *b) {
  head(b, 3, 0, 1), key(b, "general.alignment", STRING), put_text(b, "32");
}
static void split(kf_buffer *b) {
  head(b, 3, 0, 1), key(b, "split.count", U16), put(b, "\2", 2);
}
static void five_dims(kf_buffer *b) {
  head(b, 3, 1, 0), tensor(b, "w", SIZE(1, 1, 1, 1, 1), 0, 0), zeros(b, 64);
}
static void shape_overflow(kf_buffer *b) {
  head(b, 3, 1, 0), tensor(b, "w", SIZE(1ull << 40, 1ull << 40), 0, 0), zeros(b, 64);
}
static void shape_negative(kf_buffer *b) {
  head(b, 3, 1, 0), tensor(b, "w", SIZE(1ull << 63), 0, 0), zeros(b, 64);
}
static void bytes_overflow(kf_buffer *b) {
  head(b, 3, 1, 0), tensor(b, "w", SIZE(INT64_MAX), 0, 0), zeros(b, 64);
}
static void iq4(kf_buffer *b) {
  head(b, 3, 1, 0), tensor(b, "blk.0.w", SIZE(256), 20, 0), zeros(b, 512);
}
static void unknown_type(kf_buffer *b) {
  head(b, 3, 1, 0), tensor(b, "w", SIZE(256), 99, 0), zeros(b, 512);
}
static void broken_row(kf_buffer *b) {
  head(b, 3, 1, 0), tensor(b, "w", SIZE(16, 2), 2, 0), zeros(b, 512);
}
static void misaligned(kf_buffer *b) {
  head(b, 3, 1, 0), tensor(b, "w", SIZE(4), 0, 8), zeros(b, 512);
}
static void outside(kf_buffer *b) {
  head(b, 3, 1, 0), tensor(b, "w", SIZE(16), 0, 32), pad(b, 32), zeros(b, 95);
}
static void far_outside(kf_buffer *b) {
  head(b, 3, 1, 0), tensor(b, "w", SIZE(4), 0, UINT64_MAX - 31), pad(b, 32), zeros(b, 64);
}
static void no_data(kf_buffer *b) {
  head(b, 3, 1, 0), tensor(b, "w", SIZE(4), 0, 0);
}
static void overlap(kf_buffer *b) {
  head(b, 3, 3, 0);
  tensor(b, "late", SIZE(4), 0, 32), tensor(b, "first", SIZE(16), 0, 0), tensor(b, "empty", SIZE(0), 0, 32);
  pad(b, 32), zeros(b, 64);
}
static void name_twice(kf_buffer *b) {
  head(b, 3, 2, 0);
  tensor(b, "w", SIZE(4), 0, 0), tensor(b, "w", SIZE(4), 0, 32);
  pad(b, 32), zeros(b, 64);
}

static void malformed(void **state) {
  (void)state;
  static const struct {
    void (*build)(kf_buffer *);
    const char *says;
  } bad[] = {
      {not_gguf, "not a GGUF file"},
      {version_1, "GGUF version 1"},
      {version_4, "GGUF version 4"},
      {big_endian, "big-endian"},
      {short_head, "truncated"},
      {many_tensors, "1152921504606846976 tensors are more"},
      {many_keys, "18446744073709551615 metadata keys are more"},
      {long_key, "a string of 18446744073709551615 bytes"},
      {empty_key, "is empty or holds a NUL"},
      {nul_key, "is empty or holds a NUL"},
      {key_type, "key \"k\" has the unknown type 13"},
      {key_twice, "the key \"k\" stands twice"},
      {nested, "key \"k\" is an array of arrays"},
      {long_array, "key \"k\" has 2305843009213693952 elements"},
      {long_strings, "key \"k\" has 1099511627776 strings"},
      {short_strings, "a string of 9 bytes"},
      {short_value, "key \"key\" has 1 elements"},
      {alignment_0, "general.alignment is 0"},
      {alignment_48, "general.alignment is 48, expected a power of two"},
      {alignment_text, "\"general.alignment\" is not an integer"},
      {split, "one of 2 parts of a split GGUF; merge them first"},
      {five_dims, "\"w\" has 5 dimensions"},
      {shape_overflow, "\"w\" has a shape that overflows"},
      {shape_negative, "\"w\" has a shape that overflows"},
      {bytes_overflow, "\"w\""},
      {iq4, "\"blk.0.w\" is IQ4_NL, a type that is not read"},
      {unknown_type, "\"w\" has the unknown type 99"},
      {broken_row, "\"w\" has rows of 16, no multiple of the 32 that Q4_0 needs"},
      {misaligned, "\"w\" stands at 8, not a multiple of the alignment 32"},
      {outside, "\"w\" needs 64 bytes at 32 of the data, but the file holds 95"},
      {far_outside, "\"w\" needs 16 bytes at 18446744073709551584"},
      {no_data, "\"w\" needs 16 bytes"},
      {overlap, "\"late\" overlaps tensor \"first\""},
      {name_twice, "the tensor \"w\" stands twice"},
  };
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    kf_buffer b = {0};
    bad[i].build(&b);
    // An allocation of the exact size lets the sanitizer see a read behind the end.
    char *file = malloc(b.bytes);
    memcpy(file, b.data, b.bytes);
    kf_gguf *g;
    kf_error e = {0};
    kf_status s = kf_gguf_parse("bad.gguf", file, b.bytes, &g, &e);
    if (s != KF_ERROR_INPUT || g || !strstr(e.message, bad[i].says) || strncmp(e.message, "bad.gguf", 8) != 0)
      fail_msg("case %zu: status %d, \"%s\" lacks \"%s\"", i, s, e.message, bad[i].says);
    free(file);
    kf_buffer_free(&b);
  }
}

/* ------------------------------------------------------------------------------------------------ a real file */

static void smollm2(void **state) {
  (void)state;
  char path[KF_PATH];
  const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
  bool given = cache && *cache;
  snprintf(path, sizeof path, "%s%s/kvfold/SmolLM2-135M-Instruct.Q4_1.gguf",
           given  ? cache
           : home ? home
                  : "",
           given ? "" : "/.cache");
  if (!kf_is_file(path)) {
    print_message("SKIP: %s is not there\n", path);
    skip();
  }
  kf_gguf *g;
  kf_error e;
  if (kf_gguf_open(path, &g, &e) != KF_OK) fail_msg("%s", e.message);
  int64_t layers = 0, i = -1;
  double eps = 0;
  const char *architecture = "";
  assert_int_equal(kf_gguf_string(g, "general.architecture", &architecture, &e), KF_OK);
  assert_string_equal(architecture, "llama");
  assert_int_equal(kf_gguf_int(g, "llama.block_count", &layers, &e), KF_OK);
  assert_int_equal(layers, 30);
  assert_int_equal(kf_gguf_real(g, "llama.attention.layer_norm_rms_epsilon", &eps, &e), KF_OK);
  assert_true(fabs(eps - 1e-5) < 1e-10);
  assert_int_equal(kf_gguf_array(g, "tokenizer.ggml.tokens"), 49152);
  assert_string_equal(kf_gguf_array_string(g, "tokenizer.ggml.tokens", 1, NULL), "<|im_start|>");
  assert_true(kf_gguf_array_int(g, "tokenizer.ggml.token_type", 1, &i) && i == 3);
  const kf_view *w = kf_gguf_find(g, "blk.29.ffn_down.weight");
  assert_non_null(w);
  assert_int_equal(w->shape[0], 576);
  assert_int_equal(w->shape[1], 1536);
  float row[1536], sum = 0;
  kf_to_f32(w->dtype, w->data, row, 1536);
  for (int k = 0; k < 1536; k++) sum += row[k] * row[k];
  assert_true(sum > 0.1f && sum < 1000);
  kf_gguf_close(g);
}

int main(void) {
  const struct CMUnitTest all[] = {
      cmocka_unit_test(metadata),
      cmocka_unit_test(tensors),
      cmocka_unit_test(malformed),
      cmocka_unit_test(smollm2),
  };
  return cmocka_run_group_tests(all, NULL, NULL);
}
