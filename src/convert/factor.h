/* Low-rank factors of a matrix in fp64, by the eigenvectors of its smaller Gram matrix.
 *
 * With the orthonormal rows q_1, q_2, ... of the smaller side (left or right singular vectors, by descending singular
 * value) the factors are projections: A ~ (A V_r^T) V_r or U_r (U_r^T A). A product of this form is exact to rounding when
 * all vectors are kept, whatever the spectrum; when some are dropped, squaring the condition number can mix directions
 * whose singular values are below 1e-8 of the largest, an error below the rounding of f32 weights. */
#ifndef KF_CONVERT_FACTOR_H
#define KF_CONVERT_FACTOR_H

#include "base/memory.h"

/* Where the singular values go: into the up-projection, the down-projection, or their roots into both. */
typedef enum kf_placement { KF_PLACE_UP, KF_PLACE_DOWN, KF_PLACE_SPLIT } kf_placement;

typedef struct kf_basis {
  int64_t rows, columns, count; /* of A; min(rows, columns) */
  bool left;                    /* rows <= columns: `vectors` are left singular vectors */
  double *vectors;              /* [count, count], one a row */
  double *energy;               /* [count] squared singular values, descending, not negative */
} kf_basis;

/* a: [rows, columns]. Errors: a number that is not finite; memory. */
kf_status kf_basis_create(const double *a, int64_t rows, int64_t columns, kf_basis *out, kf_error *e);
void kf_basis_free(kf_basis *b);

/* a ~ up down, the best of that rank (<= count). up: [rows, rank]; down: [rank, columns]. */
kf_status kf_basis_factor(const kf_basis *b, const double *a, int64_t rank, kf_placement placement, double *up, double *down,
                          kf_error *e);

/* The rank that keeps a part of the energy. paper: the least R with sum_{j<=R} s_j^2 >= part x total. code: the number of
 * R with that sum <= part x total, at least 1, rounded up to a multiple of 8 (X-EcoMLA's compute_svd). At most count. */
int64_t kf_energy_rank(const kf_basis *b, double part, bool paper);

#endif
