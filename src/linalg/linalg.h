/* Dense fp64 factorisations over LAPACKE, with shape checks. All matrices are row-major and contiguous. Deterministic for
 * a given number of threads: signs are fixed so that the entry of largest magnitude of each right singular vector
 * (eigenvector) is positive. Errors: KF_ERROR_INPUT on NaN or no convergence, KF_ERROR_MEMORY. */
#ifndef KF_LINALG_LINALG_H
#define KF_LINALG_LINALG_H

#include <complex.h>

#include "base/memory.h"

#ifndef CMPLX /* glibc defines it for gcc alone */
#define CMPLX(re, im) ((double)(re) + _Complex_I * (double)(im))
#endif

/* A = U diag(s) V^T truncated to the r leading triplets, r <= min(m, n).
 * a: [m, n], kept. u: [m, r] or NULL; s: [min(m, n)] all singular values, descending; vt: [r, n] or NULL. */
kf_status kf_svd(const double *a, int64_t m, int64_t n, int64_t r, double *u, double *s, double *vt, kf_error *e);

/* Symmetric eigenproblem: a [n, n] is replaced by eigenvectors in its ROWS, w [n] descending. */
kf_status kf_eigh(double *a, int64_t n, double *w, kf_error *e);

/* c [m, n] = alpha * op(a) op(b) + beta * c; op(a) is [m, k]. */
void kf_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, double alpha, const double *a, const double *b,
             double beta, double *c);

/* c [m, n] = op(a) op(b) in f32; may be called from inside a parallel region, where it runs on the calling thread. */
void kf_gemm_f32(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const float *a, const float *b, float *c);

/* Hermitian eigenproblem: a [n, n] is replaced by A's eigenvectors in its ROWS (A v = w v with v = row), w [n] descending.
 * The entry of largest magnitude of each is real and positive. */
kf_status kf_eigh_complex(double complex *a, int64_t n, double *w, kf_error *e);

/* Solves a x = b for a symmetric positive definite a [n, n] (destroyed); b [n, m] becomes x. */
kf_status kf_solve_positive(double *a, int64_t n, int64_t m, double *b, kf_error *e);

/* Gram matrix of a [m, n]: g [m, m] = a a^T, or with `columns` g [n, n] = a^T a. Both triangles are filled. */
void kf_gram(bool columns, int64_t m, int64_t n, const double *a, double *g);

/* Threads of the library below (it keeps the number for the whole process); 0 leaves it alone. Returns the one before. */
int kf_linalg_threads(int threads);

#endif
