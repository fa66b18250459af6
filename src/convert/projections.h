/* The query, key and value projections of one source layer in fp64, biases included. */
#ifndef KF_CONVERT_PROJECTIONS_H
#define KF_CONVERT_PROJECTIONS_H

#include "convert/plan.h"

typedef struct kf_projections {
  const kf_attention_config *a;
  int64_t width;     /* hidden + 1: the last column is the bias, zeros where there is none */
  double *q, *k, *v; /* [heads d_qk, width], [kv_heads d_qk, width], [kv_heads d_v, width] */
} kf_projections;

kf_status kf_projections_read(const kf_weights *w, int layer, kf_projections *out, kf_error *e);
void kf_projections_free(kf_projections *p);

/* Refuses layers with q/k norms, which no mix of heads commutes with. */
kf_status kf_projections_check(const kf_plan *p, kf_error *e);

/* out [rows, rows] = a moment a^T for a [rows, width]: the second moment of what a gives. */
kf_status kf_projected_moment(const double *a, int64_t rows, int64_t width, const double *moment, double *out, kf_error *e);

/* Adds weight [rows, hidden] and, with a bias, bias [rows] from an affine map [rows, width], whose column `hidden` is the bias. */
kf_status kf_mapped_affine(kf_mapped *m, const char *weight, const char *bias, bool has_bias, const double *from, int64_t rows,
                           int64_t hidden, int64_t width, kf_error *e);

#endif
