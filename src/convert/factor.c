#include "convert/factor.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "linalg/linalg.h"

kf_status kf_basis_create(const double *a, int64_t rows, int64_t columns, kf_basis *out, kf_error *e) {
  kf_basis b = {.rows = rows, .columns = columns, .left = rows <= columns, .count = rows <= columns ? rows : columns};
  b.vectors = kf_alloc((size_t)b.count * (size_t)b.count, sizeof *b.vectors, e);
  b.energy = kf_alloc((size_t)b.count, sizeof *b.energy, e);
  kf_status s = b.vectors && b.energy ? KF_OK : KF_ERROR_MEMORY;
  if (s == KF_OK) {
    kf_gram(!b.left, rows, columns, a, b.vectors);
    s = kf_eigh(b.vectors, b.count, b.energy, e);
  }
  for (int64_t i = 0; s == KF_OK && i < b.count; i++) b.energy[i] = fmax(b.energy[i], 0);
  if (s != KF_OK)
    kf_basis_free(&b);
  else
    *out = b;
  return s;
}

void kf_basis_free(kf_basis *b) {
  if (!b) return;
  free(b->vectors);
  free(b->energy);
  *b = (kf_basis){0};
}

/* Singular values as they stand in the factor that carries them: lengths of the rows of down or the columns of up. */
static void lengths(const kf_basis *b, int64_t rank, const double *up, const double *down, double *s) {
  for (int64_t j = 0; j < rank; j++) {
    double sum = 0;
    if (b->left)
      for (int64_t c = 0; c < b->columns; c++) sum += down[j * b->columns + c] * down[j * b->columns + c];
    else
      for (int64_t r = 0; r < b->rows; r++) sum += up[r * rank + j] * up[r * rank + j];
    s[j] = sqrt(sum);
  }
}

/* up holds U s^a, down s^(1-a) V^T with a = 0 (left) or 1; moves a to where it is wanted. Directions without a
 * singular value to speak of stay as they are: their product is nothing. */
static void place(const kf_basis *b, int64_t rank, kf_placement placement, const double *s, double *up, double *down) {
  double a = b->left ? 0 : 1, wanted = placement == KF_PLACE_UP ? 1 : placement == KF_PLACE_DOWN ? 0 : 0.5;
  if (a == wanted) return;
  for (int64_t j = 0; j < rank; j++) {
    if (!(s[j] > 1e-12 * s[0])) continue;
    double f = pow(s[j], wanted - a);
    for (int64_t r = 0; r < b->rows; r++) up[r * rank + j] *= f;
    for (int64_t c = 0; c < b->columns; c++) down[j * b->columns + c] /= f;
  }
}

kf_status kf_basis_factor(const kf_basis *b, const double *a, int64_t rank, kf_placement placement, double *up, double *down,
                          kf_error *e) {
  double *s;
  KF_NEW(s, rank, e);
  if (b->left) {
    for (int64_t r = 0; r < b->rows; r++)
      for (int64_t j = 0; j < rank; j++) up[r * rank + j] = b->vectors[j * b->count + r];
    kf_gemm(false, false, rank, b->columns, b->rows, 1, b->vectors, a, 0, down);
  } else {
    memcpy(down, b->vectors, (size_t)(rank * b->columns) * sizeof *down);
    kf_gemm(false, true, b->rows, rank, b->columns, 1, a, b->vectors, 0, up);
  }
  lengths(b, rank, up, down, s);
  place(b, rank, placement, s, up, down);
  free(s);
  return KF_OK;
}

int64_t kf_energy_rank(const kf_basis *b, double part, bool paper) {
  double total = 0, sum = 0;
  for (int64_t i = 0; i < b->count; i++) total += b->energy[i];
  int64_t rank = 0;
  for (; rank < b->count; rank++) {
    sum += b->energy[rank];
    if (paper ? sum >= part * total : sum > part * total) break;
  }
  if (paper) return rank < b->count ? rank + 1 : b->count;
  rank = ((rank < 1 ? 1 : rank) + 7) / 8 * 8;
  return rank < b->count ? rank : b->count;
}
