#include "linalg/linalg.h"

#include <cblas.h>
#include <dnnl.h>
#include <lapacke.h>
#include <limits.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

static kf_status check_finite(const double *a, int64_t count, const char *what, kf_error *e) {
  for (int64_t i = 0; i < count; i++)
    if (!isfinite(a[i])) return kf_fail(e, KF_ERROR_INPUT, "the matrix to %s holds a number that is not finite", what);
  return KF_OK;
}

/* Small problems lose more at the barriers between threads than they gain: they run on one. The choice depends on the
 * shape alone, so that results do not. Returns the number to go back to. */
static int begin(double flops) {
  if (omp_in_parallel()) return 0; /* it runs on the calling thread by itself, and the number is the whole process's */
  int before = openblas_get_num_threads();
  if (flops < 1e10) openblas_set_num_threads(1);
  return before;
}

static void end(int before) {
  if (before) openblas_set_num_threads(before);
}

/* LAPACK counts in int; its work arrays take a few times m x n elements. */
static kf_status check_shape(int64_t m, int64_t n, kf_error *e) {
  if (m < 1 || n < 1 || m > INT_MAX / 2 || n > INT_MAX / 2)
    return kf_fail(e, KF_ERROR_INPUT, "cannot factorise a matrix of %lld x %lld", (long long)m, (long long)n);
  return KF_OK;
}

/* Whether the entry of largest magnitude (the first of equals) is negative. */
static bool is_negative(const double *v, int64_t n) {
  int64_t best = 0;
  for (int64_t i = 1; i < n; i++)
    if (fabs(v[i]) > fabs(v[best])) best = i;
  return v[best] < 0;
}

/* A row-major [m, n] matrix is A^T to LAPACK, which counts by columns: A^T = V diag(s) U^T. Its "U" comes back as V by
 * columns, our rows of V^T; its "V^T" as U^T by columns, our U by rows. */
kf_status kf_svd(const double *a, int64_t m, int64_t n, int64_t r, double *u, double *s, double *vt, kf_error *e) {
  KF_TRY(check_shape(m, n, e));
  KF_TRY(check_finite(a, m * n, "decompose", e));
  int64_t k = m < n ? m : n;
  if (r < 0 || r > k)
    return kf_fail(e, KF_ERROR_INPUT, "rank %lld asked of a matrix of %lld x %lld", (long long)r, (long long)m, (long long)n);
  kf_status status = KF_ERROR_MEMORY;
  double *copy = kf_alloc((size_t)(m * n), sizeof *copy, e);
  double *v = kf_alloc((size_t)(k * n), sizeof *v, e);
  double *full = kf_alloc((size_t)(m * k), sizeof *full, e);
  if (!copy || !v || !full) goto done;
  memcpy(copy, a, (size_t)(m * n) * sizeof *copy);
  int threads = begin(6.0 * (double)m * (double)n * (double)k);
  lapack_int info = LAPACKE_dgesdd(LAPACK_COL_MAJOR, 'S', (lapack_int)n, (lapack_int)m, copy, (lapack_int)n, s, v, (lapack_int)n,
                                   full, (lapack_int)k);
  end(threads);
  if (info) {
    status =
        kf_fail(e, info == LAPACK_WORK_MEMORY_ERROR ? KF_ERROR_MEMORY : KF_ERROR_INPUT,
                "the singular values of a %lld x %lld matrix were not found (dgesdd %d)", (long long)m, (long long)n, (int)info);
    goto done;
  }
  for (int64_t j = 0; j < r; j++) {
    double sign = is_negative(v + j * n, n) ? -1 : 1;
    if (vt)
      for (int64_t i = 0; i < n; i++) vt[j * n + i] = sign * v[j * n + i];
    if (u)
      for (int64_t i = 0; i < m; i++) u[i * r + j] = sign * full[i * k + j];
  }
  status = KF_OK;
done:
  free(copy);
  free(v);
  free(full);
  return status;
}

kf_status kf_eigh(double *a, int64_t n, double *w, kf_error *e) {
  KF_TRY(check_shape(n, n, e));
  KF_TRY(check_finite(a, n * n, "diagonalise", e));
  int threads = begin(9.0 * (double)n * (double)n * (double)n);
  lapack_int info = LAPACKE_dsyevd(LAPACK_COL_MAJOR, 'V', 'L', (lapack_int)n, a, (lapack_int)n, w);
  end(threads);
  if (info)
    return kf_fail(e, info == LAPACK_WORK_MEMORY_ERROR ? KF_ERROR_MEMORY : KF_ERROR_INPUT,
                   "the eigenvalues of a %lld x %lld matrix were not found (dsyevd %d)", (long long)n, (long long)n, (int)info);
  for (int64_t i = 0, j = n - 1; i < j; i++, j--) { // ascending to descending
    double t = w[i];
    w[i] = w[j];
    w[j] = t;
    for (int64_t c = 0; c < n; c++) {
      t = a[i * n + c];
      a[i * n + c] = a[j * n + c];
      a[j * n + c] = t;
    }
  }
  for (int64_t i = 0; i < n; i++)
    if (is_negative(a + i * n, n))
      for (int64_t c = 0; c < n; c++) a[i * n + c] = -a[i * n + c];
  return KF_OK;
}

void kf_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, double alpha, const double *a, const double *b,
             double beta, double *c) {
  if (m < 1 || n < 1) return;
  int threads = begin(2.0 * (double)m * (double)n * (double)k);
  cblas_dgemm(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans, transpose_b ? CblasTrans : CblasNoTrans, (blasint)m,
              (blasint)n, (blasint)k, alpha, a, (blasint)(transpose_a ? m : k), b, (blasint)(transpose_b ? k : n), beta, c,
              (blasint)n);
  end(threads);
}

/* oneDNN's, which has AVX-512 where OpenBLAS may not; inside a parallel region it takes one thread by itself. */
void kf_gemm_f32(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const float *a, const float *b, float *c) {
  if (m < 1 || n < 1) return;
  int before = omp_get_max_threads(), nested = omp_in_parallel();
  if (!nested) omp_set_num_threads(openblas_get_num_threads()); /* kf_linalg_threads */
  dnnl_status_t done = dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', m, n, k, 1, a, transpose_a ? m : k, b,
                                  transpose_b ? k : n, 0, c, n);
  if (!nested) omp_set_num_threads(before);
  if (done != dnnl_success)
    cblas_sgemm(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans, transpose_b ? CblasTrans : CblasNoTrans, (blasint)m,
                (blasint)n, (blasint)k, 1, a, (blasint)(transpose_a ? m : k), b, (blasint)(transpose_b ? k : n), 0, c,
                (blasint)n);
}

void kf_gram(bool columns, int64_t m, int64_t n, const double *a, double *g) {
  int64_t size = columns ? n : m;
  int threads = begin((double)m * (double)n * (double)size);
  cblas_dsyrk(CblasRowMajor, CblasLower, columns ? CblasTrans : CblasNoTrans, (blasint)size, (blasint)(columns ? m : n), 1.0, a,
              (blasint)n, 0.0, g, (blasint)size);
  end(threads);
  for (int64_t i = 0; i < size; i++)
    for (int64_t j = i + 1; j < size; j++) g[i * size + j] = g[j * size + i];
}

int kf_linalg_threads(int threads) {
  int before = openblas_get_num_threads();
  if (threads > 0) openblas_set_num_threads(threads);
  return before;
}
