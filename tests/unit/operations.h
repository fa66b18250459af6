/* What the tests of a device's operations share: the device at hand, and random numbers in its memory. */
#ifndef KF_TEST_OPERATIONS_H
#define KF_TEST_OPERATIONS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/random.h"
#include "device/cpu/cpu.h"

static kf_device *device;
static kf_random dice;

static int below(int n) {
  return (int)(kf_random_u64(&dice) % (uint64_t)n);
}
static int between(int low, int high) {
  return low + below(high - low + 1);
}

/* Memory that operations may be given. */
static void *memory(int64_t count, size_t size) {
  kf_error e = {0};
  void *p = device->alloc(device, (size_t)count, size, &e);
  if (!p) fail_msg("%s", e.message);
  return p;
}
static void drop(const void *p) {
  device->release(device, (void *)(uintptr_t)p);
}

static float *numbers(int64_t n) {
  float *x = memory(n + 1, sizeof *x);
  for (int64_t i = 0; i < n; i++) x[i] = (float)kf_random_normal(&dice);
  return x;
}
/* As the device multiplies them: inputs rounded once, so that only the order of sums differs. */
static float *rounded(int64_t n) {
  float *x = numbers(n);
  for (int64_t i = 0; i < n && device->compute == KF_BF16; i++) x[i] = kf_bf16_to_f32(kf_f32_to_bf16(x[i]));
  return x;
}
static float *copy(const float *x, int64_t n) {
  float *y = memory(n + 1, sizeof *y);
  memcpy(y, x, (size_t)n * sizeof *y);
  return y;
}

static void check_device(void) {
  kf_error e = {0};
  if (kf_device_check(device, &e) != KF_OK) fail_msg("%s", e.message);
}

/* Runs the tests on a device that was opened, which is closed. */
static int run_on_device(const struct CMUnitTest *tests, size_t count, uint64_t seed) {
  printf("device %s %s, %d threads\n", device->isa, device->compute == KF_BF16 ? "bf16" : "f32", device->threads);
  kf_random_seed(&dice, seed);
  int failed = _cmocka_run_group_tests(device->isa, tests, count, NULL, NULL);
  kf_device_close(device);
  return failed;
}

static int run_isa(const struct CMUnitTest *tests, size_t count, kf_isa isa, kf_compute compute, int threads) {
  kf_error e = {0};
  if (isa > kf_isa_best()) {
    printf("SKIP: this CPU does not have instruction set %d\n", (int)isa);
    return 0;
  }
  if (kf_device_open_isa(isa, compute, threads, &device, &e) != KF_OK) {
    printf("%s\n", e.message);
    return 1;
  }
  return run_on_device(tests, count, 20 + (uint64_t)isa);
}

static void no_gpu(void **state) {
  print_message("SKIP: operations of the CUDA device: %s\n", (const char *)*state);
  skip();
}

static int run_cuda(const struct CMUnitTest *tests, size_t count, bool needed) {
  kf_error e = {0};
  if (kf_device_open(KF_DEVICE_CUDA, KF_COMPUTE_F32, 0, &device, &e) != KF_OK) {
    const struct CMUnitTest none[] = {cmocka_unit_test_prestate(no_gpu, e.message)};
    return cmocka_run_group_tests_name("cuda", none, NULL, NULL) + needed;
  }
  int failed = run_on_device(tests, count, 30);
  if (kf_device_open(KF_DEVICE_CUDA, KF_COMPUTE_BF16, 0, &device, &e) != KF_OK) return 1;
  return failed + run_on_device(tests, count, 31);
}

/* On the GPU, when there is one; without the argument "cuda" then on every instruction set of this CPU. */
static int run_everywhere(const struct CMUnitTest *tests, size_t count, int argc, char **argv) {
  bool cuda_only = argc > 1 && strcmp(argv[1], "cuda") == 0;
  int failed = run_cuda(tests, count, cuda_only);
  if (cuda_only) return failed ? 1 : 0;
  failed += run_isa(tests, count, KF_ISA_PORTABLE, KF_COMPUTE_F32, 2);
  failed += run_isa(tests, count, KF_ISA_AVX2, KF_COMPUTE_F32, 2);
  failed += run_isa(tests, count, KF_ISA_AVX512, KF_COMPUTE_F32, 2);
  failed += run_isa(tests, count, KF_ISA_AVX512_BF16, KF_COMPUTE_F32, 1);
  failed += run_isa(tests, count, KF_ISA_AVX512_BF16, KF_COMPUTE_AUTO, 1);
  failed += run_isa(tests, count, KF_ISA_AVX512_BF16, KF_COMPUTE_AUTO, 3);
  return failed ? 1 : 0;
}

#endif
