#include <math.h>
#include <stdlib.h>
#include <string.h>

#define LAPACK_COMPLEX_STRUCTURE
#include <lapacke.h>

#include "linalg/linalg.h"

/* A row-major Hermitian matrix is its conjugate to LAPACK, whose eigenvectors (by columns: our rows) are conjugated. */
kf_status kf_eigh_complex(double complex *a, int64_t n, double *w, kf_error *e) {
  for (int64_t i = 0; i < n * n; i++)
    if (!isfinite(creal(a[i])) || !isfinite(cimag(a[i])))
      return kf_fail(e, KF_ERROR_INPUT, "the matrix to diagonalise holds a number that is not finite");
  lapack_int info = LAPACKE_zheevd(LAPACK_COL_MAJOR, 'V', 'L', (lapack_int)n, (lapack_complex_double *)a, (lapack_int)n, w);
  if (info)
    return kf_fail(e, info == LAPACK_WORK_MEMORY_ERROR ? KF_ERROR_MEMORY : KF_ERROR_INPUT,
                   "the eigenvalues of a %lld x %lld matrix were not found (zheevd %d)", (long long)n, (long long)n, (int)info);
  for (int64_t i = 0, j = n - 1; i < j; i++, j--) {
    double t = w[i];
    w[i] = w[j];
    w[j] = t;
    for (int64_t c = 0; c < n; c++) {
      double complex z = a[i * n + c];
      a[i * n + c] = a[j * n + c];
      a[j * n + c] = z;
    }
  }
  for (int64_t i = 0; i < n; i++) {
    int64_t best = 0;
    for (int64_t c = 1; c < n; c++)
      if (cabs(a[i * n + c]) > cabs(a[i * n + best])) best = c;
    double complex phase = cabs(a[i * n + best]) > 0 ? a[i * n + best] / cabs(a[i * n + best]) : 1;
    for (int64_t c = 0; c < n; c++) a[i * n + c] = conj(a[i * n + c] / phase);
  }
  return KF_OK;
}

kf_status kf_solve_positive(double *a, int64_t n, int64_t m, double *b, kf_error *e) {
  lapack_int info = LAPACKE_dposv(LAPACK_ROW_MAJOR, 'L', (lapack_int)n, (lapack_int)m, a, (lapack_int)n, b, (lapack_int)m);
  if (info)
    return kf_fail(e, info == LAPACK_TRANSPOSE_MEMORY_ERROR ? KF_ERROR_MEMORY : KF_ERROR_INPUT,
                   "a %lld x %lld system is singular (dposv %d)", (long long)n, (long long)n, (int)info);
  return KF_OK;
}
