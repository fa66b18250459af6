#include "tensor/dtype.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tensor/safetensors.h"

static void names_and_sizes(void **state) {
  (void)state;
  kf_dtype t;
  size_t bytes;
  for (int i = 0; i < KF_DTYPES; i++) {
    assert_true(kf_dtype_parse(kf_dtype_name((kf_dtype)i), &t));
    assert_int_equal(t, i);
  }
  assert_true(kf_dtype_parse("BF16", &t) && t == KF_BF16);
  assert_true(kf_dtype_parse("Q4_K", &t) && t == KF_Q4_K);
  assert_false(kf_dtype_parse("f8_e4m3", &t));
  assert_true(kf_dtype_bytes(KF_Q4_1, 64, &bytes) && bytes == 40);
  assert_true(kf_dtype_bytes(KF_Q6_K, 512, &bytes) && bytes == 420);
  assert_false(kf_dtype_bytes(KF_Q4_1, 33, &bytes));
  assert_false(kf_dtype_bytes(KF_F32, -1, &bytes));
  assert_false(kf_dtype_bytes(KF_F64, INT64_MAX, &bytes));
  assert_true(kf_dtype_is_float(KF_F64) && kf_dtype_is_float(KF_Q5_K) && !kf_dtype_is_float(KF_I64) &&
              !kf_dtype_is_float(KF_BOOL));
}

/* What the standard says a half is. */
static double half_value(uint16_t h) {
  int exponent = h >> 10 & 31, fraction = h & 1023;
  double v = exponent == 31 ? (fraction ? NAN : INFINITY)
             : exponent     ? ldexp(1024 + fraction, exponent - 25)
                            : ldexp(fraction, -24);
  return h & 0x8000 ? -v : v;
}

static void every_half(void **state) {
  (void)state;
  for (uint32_t h = 0; h < 65536; h++) {
    uint16_t in = (uint16_t)h, back;
    float f;
    kf_to_f32(KF_F16, &in, &f, 1);
    if (isnan(half_value(in))) {
      assert_true(isnan(f));
      kf_from_f32(KF_F16, &f, &back, 1);
      assert_true(isnan(half_value(back)));
      continue;
    }
    assert_true(f == (float)half_value(in) && (signbit(f) != 0) == in >> 15);
    kf_from_f32(KF_F16, &f, &back, 1);
    assert_int_equal(back, in);
  }
}

/* Between neighbours: half way goes to the even one, a hair to either side to the nearer. */
static void halves_round_to_nearest_even(void **state) {
  (void)state;
  for (uint16_t h = 0; h < 0x7bff; h++) {
    float middle = (float)((half_value(h) + half_value((uint16_t)(h + 1))) / 2);
    float in[3] = {nextafterf(middle, 0), middle, nextafterf(middle, INFINITY)};
    uint16_t out[3];
    kf_from_f32(KF_F16, in, out, 3);
    assert_int_equal(out[0], h);
    assert_int_equal(out[1], h % 2 ? h + 1 : h);
    assert_int_equal(out[2], h + 1);
  }
  float limits[4] = {65519.996f, 65520, -1e30f, 1e-30f};
  uint16_t out[4];
  kf_from_f32(KF_F16, limits, out, 4);
  assert_int_equal(out[0], 0x7bff);
  assert_int_equal(out[1], 0x7c00);
  assert_int_equal(out[2], 0xfc00);
  assert_int_equal(out[3], 0);
}

static void bf16_rounds_to_nearest_even(void **state) {
  (void)state;
  union {
    uint32_t u;
    float f;
  } v;
  const uint32_t in[] = {0x3f800000, 0x3f808000, 0x3f818000, 0x3f808001, 0x7f7fffff, 0x7f800000, 0x7f800001, 0x80000001};
  const uint16_t expected[] = {0x3f80, 0x3f80, 0x3f82, 0x3f81, 0x7f80, 0x7f80, 0x7fc0, 0x8000};
  for (size_t i = 0; i < sizeof in / sizeof *in; i++) {
    uint16_t out;
    v.u = in[i];
    kf_from_f32(KF_BF16, &v.f, &out, 1);
    assert_int_equal(out, expected[i]);
  }
}

static void any_address(void **state) {
  (void)state;
  enum { N = 37 };
  uint8_t bytes[8 * N + 1];
  float values[N], back[N];
  for (int i = 0; i < N; i++) values[i] = (float)(i - 18) / 4;
  const kf_dtype types[] = {KF_F32, KF_F16, KF_BF16};
  for (int t = 0; t < 3; t++) {
    kf_from_f32(types[t], values, bytes + 1, N);
    kf_to_f32(types[t], bytes + 1, back, N);
    assert_memory_equal(values, back, sizeof values);
  }
  for (int i = 0; i < N; i++) memcpy(bytes + 1 + 8 * i, &(double){values[i]}, 8);
  kf_to_f32(KF_F64, bytes + 1, back, N);
  assert_memory_equal(values, back, sizeof values);
}

static void blocks_as_ggml(void **state) {
  (void)state;
  kf_error e = {0};
  kf_safetensors *golden;
  if (kf_safetensors_open(KVFOLD_SOURCE_DIR "/tests/fixtures/quants/quants.safetensors", &golden, &e) != KF_OK)
    fail_msg("%s", e.message);
  for (int t = KF_Q4_0; t < KF_DTYPES; t++) {
    char name[32];
    snprintf(name, sizeof name, "%s.blocks", kf_dtype_name((kf_dtype)t));
    const kf_view *blocks = kf_safetensors_find(golden, name);
    snprintf(name, sizeof name, "%s.values", kf_dtype_name((kf_dtype)t));
    const kf_view *values = kf_safetensors_find(golden, name);
    assert_non_null(blocks);
    assert_non_null(values);
    assert_int_equal(values->shape[1], kf_dtype_block((kf_dtype)t));
    assert_int_equal(blocks->shape[1], kf_dtype_block_bytes((kf_dtype)t));
    size_t n = values->bytes / 4;
    float *got = calloc(n, 4), *expected = calloc(n, 4);
    memcpy(expected, values->data, values->bytes);
    kf_to_f32((kf_dtype)t, blocks->data, got, n);
    for (size_t i = 0; i < n; i++)
      if (fabsf(got[i] - expected[i]) > 1e-6f * fabsf(expected[i]) + 1e-9f)
        fail_msg("%s: number %zu is %g, expected %g", kf_dtype_name((kf_dtype)t), i, got[i], expected[i]);
    free(got);
    free(expected);
  }
  kf_safetensors_close(golden);
}

/* A block of Q8_0: the error is at most half a step, the largest number is its own, and what cannot be held is found. */
static void q8_0_rounds(void **state) {
  (void)state;
  enum { N = 32 * 33 };
  float x[N], y[N];
  uint8_t packed[N / 32 * 34];
  uint32_t seed = 1;
  for (int i = 0; i < N; i++) {
    seed = seed * 1664525u + 1013904223u;
    x[i] = ((float)(seed >> 8) / (1 << 24) - 0.5f) * (float)ldexp(1, i / 32 - 12); /* blocks from 2^-12 to 2^20 */
  }
  memset(x, 0, 32 * sizeof *x);
  kf_from_f32(KF_Q8_0, x, packed, N);
  kf_to_f32(KF_Q8_0, packed, y, N);
  for (int b = 0; b < N / 32; b++) {
    float most = 0;
    for (int j = 0; j < 32; j++) most = fmaxf(most, fabsf(x[32 * b + j]));
    float slack = most * 0x1p-11f + 127 * 0x1p-25f; /* of d in half precision */
    for (int j = 0; j < 32; j++) {
      float difference = fabsf(x[32 * b + j] - y[32 * b + j]);
      if (!(difference <= most / 254 + slack))
        fail_msg("block %d: %g becomes %g", b, (double)x[32 * b + j], (double)y[32 * b + j]);
    }
  }
  float limits[3] = {127 * 65504.0f, INFINITY, NAN};
  assert_null(kf_beyond(KF_Q8_0, limits, 1));
  assert_ptr_equal(kf_beyond(KF_Q8_0, limits, 3), limits + 1);
  assert_ptr_equal(kf_beyond(KF_Q8_0, limits + 2, 1), limits + 2);
  assert_null(kf_beyond(KF_F16, limits + 1, 2));
  assert_ptr_equal(kf_beyond(KF_F16, limits, 3), limits);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(q8_0_rounds),
      cmocka_unit_test(names_and_sizes),
      cmocka_unit_test(every_half),
      cmocka_unit_test(halves_round_to_nearest_even),
      cmocka_unit_test(bf16_rounds_to_nearest_even),
      cmocka_unit_test(any_address),
      cmocka_unit_test(blocks_as_ggml),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
