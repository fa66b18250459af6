#include "linalg/linalg.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/random.h"

static double *random_matrix(int64_t m, int64_t n, uint64_t seed) {
  kf_random r;
  kf_random_seed(&r, seed);
  double *a = kf_alloc((size_t)(m * n), sizeof *a, NULL);
  assert_non_null(a);
  for (int64_t i = 0; i < m * n; i++) a[i] = kf_random_normal(&r);
  return a;
}

/* rows of v [r, n] are orthonormal */
static void assert_orthonormal(const double *v, int64_t r, int64_t n) {
  for (int64_t i = 0; i < r; i++)
    for (int64_t j = 0; j <= i; j++) {
      double dot = 0;
      for (int64_t k = 0; k < n; k++) dot += v[i * n + k] * v[j * n + k];
      assert_true(fabs(dot - (i == j)) < 1e-12);
    }
}

static void svd_rebuilds(int64_t m, int64_t n) {
  int64_t k = m < n ? m : n;
  double *a = random_matrix(m, n, 7), *u = kf_alloc((size_t)(m * k), 8, NULL), *vt = kf_alloc((size_t)(k * n), 8, NULL);
  double *s = kf_alloc((size_t)k, 8, NULL), *back = kf_alloc((size_t)(m * n), 8, NULL);
  assert_int_equal(kf_svd(a, m, n, k, u, s, vt, NULL), KF_OK);
  assert_orthonormal(vt, k, n);
  for (int64_t j = 1; j < k; j++) assert_true(s[j] <= s[j - 1] && s[j] >= 0);
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < k; j++) u[i * k + j] *= s[j];
  kf_gemm(false, false, m, n, k, 1, u, vt, 0, back);
  for (int64_t i = 0; i < m * n; i++) assert_true(fabs(back[i] - a[i]) < 1e-12);

  double *u2 = kf_alloc((size_t)(m * 2), 8, NULL), *vt2 = kf_alloc((size_t)(2 * n), 8, NULL);
  assert_int_equal(kf_svd(a, m, n, 2, u2, s, vt2, NULL), KF_OK);
  assert_memory_equal(vt2, vt, (size_t)(2 * n) * 8);
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < 2; j++) assert_true(fabs(u2[i * 2 + j] * s[j] - u[i * k + j]) < 1e-14 * s[0]);
  free(a), free(u), free(vt), free(s), free(back), free(u2), free(vt2);
}

static void test_svd(void **state) {
  (void)state;
  svd_rebuilds(13, 7);
  svd_rebuilds(7, 13);
  svd_rebuilds(40, 40);
}

static void test_eigh_of_gram_gives_the_squared_singular_values(void **state) {
  (void)state;
  enum { M = 11, N = 6 };
  double *a = random_matrix(M, N, 3), g[N * N], w[N], s[N], vt[N * N], h[M * M], wide[M];
  kf_gram(true, M, N, a, g);
  assert_int_equal(kf_eigh(g, N, w, NULL), KF_OK);
  assert_int_equal(kf_svd(a, M, N, N, NULL, s, vt, NULL), KF_OK);
  assert_orthonormal(g, N, N);
  for (int i = 0; i < N; i++) assert_true(fabs(sqrt(w[i]) - s[i]) < 1e-12);
  for (int i = 0; i < N * N; i++) assert_true(fabs(g[i] - vt[i]) < 1e-10); // signs are fixed in both
  kf_gram(false, M, N, a, h);
  assert_true(h[1] == h[M]);
  assert_int_equal(kf_eigh(h, M, wide, NULL), KF_OK);
  for (int i = 0; i < M; i++) assert_true(fabs(wide[i] - (i < N ? w[i] : 0)) < 1e-11);
  free(a);
}

static void test_gemm_transposes(void **state) {
  (void)state;
  const double a[] = {1, 2, 3, 4, 5, 6}, b[] = {1, 0, 2, 1, 1, 3}; // [2, 3], [3, 2]
  const double at[] = {1, 4, 2, 5, 3, 6}, bt[] = {1, 2, 1, 0, 1, 3}, want[] = {8, 11, 20, 23};
  double c[4];
  for (int t = 0; t < 4; t++) {
    memset(c, 0, sizeof c);
    kf_gemm(t & 1, t & 2, 2, 2, 3, 1, t & 1 ? at : a, t & 2 ? bt : b, 0, c);
    assert_memory_equal(c, want, sizeof c);
  }
  kf_gemm(false, false, 2, 2, 3, 2, a, b, -1, c);
  assert_memory_equal(c, want, sizeof c);
}

static void test_refusals(void **state) {
  (void)state;
  double a[4] = {1, NAN, 0, 1}, s[2], w[2];
  kf_error e;
  assert_int_equal(kf_svd(a, 2, 2, 2, NULL, s, NULL, &e), KF_ERROR_INPUT);
  assert_non_null(strstr(e.message, "not finite"));
  assert_int_equal(kf_eigh(a, 2, w, &e), KF_ERROR_INPUT);
  a[1] = 0;
  assert_int_equal(kf_svd(a, 2, 2, 3, NULL, s, NULL, &e), KF_ERROR_INPUT);
  assert_non_null(strstr(e.message, "rank 3"));
  assert_int_equal(kf_eigh(a, 0, w, &e), KF_ERROR_INPUT);
}

/* The f32 product against the fp64 one, all transpositions, odd shapes, outside and inside a parallel region. */
static void test_gemm_f32(void **state) {
  (void)state;
  static const int64_t shape[][3] = {{1, 1, 1}, {3, 5, 7}, {17, 1, 33}, {64, 96, 31}, {129, 65, 257}};
  for (int c = 0; c < 40; c++) {
    const int64_t *d = shape[c % 5], m = d[0], n = d[1], k = d[2];
    bool ta = c / 5 & 1, tb = c / 10 & 1, nested = c / 20 & 1;
    double *a = random_matrix(m, k, 2 * (uint64_t)c), *b = random_matrix(k, n, 2 * (uint64_t)c + 1);
    double *want = malloc((size_t)(m * n) * sizeof *want), worst = 0;
    float *a32 = malloc((size_t)(m * k) * sizeof *a32), *b32 = malloc((size_t)(k * n) * sizeof *b32);
    float *got = malloc((size_t)(m * n) * sizeof *got);
    for (int64_t i = 0; i < m * k; i++) a[i] = a32[i] = (float)a[i];
    for (int64_t i = 0; i < k * n; i++) b[i] = b32[i] = (float)b[i];
    kf_gemm(ta, tb, m, n, k, 1, a, b, 0, want);
#pragma omp parallel num_threads(2) if (nested)
#pragma omp single
    kf_gemm_f32(ta, tb, m, n, k, a32, b32, got);
    for (int64_t i = 0; i < m * n; i++) worst = fmax(worst, fabs(want[i] - (double)got[i]));
    if (!(worst < 1e-6 * (double)k + 1e-6)) fail_msg("%d x %d x %d: off by %g", (int)m, (int)n, (int)k, worst);
    free(a), free(b), free(want), free(a32), free(b32), free(got);
  }
}

/* What is missing is set once; what the user has set stays. */
static void test_environment(void **state) {
  (void)state;
  unsetenv("GOMP_SPINCOUNT");
  unsetenv("OMP_WAIT_POLICY");
  assert_true(kf_environment());
  assert_string_equal(getenv("GOMP_SPINCOUNT"), "10000");
  assert_false(kf_environment());
  unsetenv("GOMP_SPINCOUNT");
  setenv("OMP_WAIT_POLICY", "passive", 1);
  setenv("OPENBLAS_CORETYPE", "Haswell", 1);
  assert_false(kf_environment());
  assert_null(getenv("GOMP_SPINCOUNT"));
  assert_string_equal(getenv("OPENBLAS_CORETYPE"), "Haswell");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_svd),
      cmocka_unit_test(test_eigh_of_gram_gives_the_squared_singular_values),
      cmocka_unit_test(test_gemm_transposes),
      cmocka_unit_test(test_gemm_f32),
      cmocka_unit_test(test_refusals),
      cmocka_unit_test(test_environment),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
