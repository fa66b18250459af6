/* Files that say how much each rotary pair of each head matters, in safetensors:
 *   ranks      uint8 or int64 [layers, heads, d_h]: 0 = keep first; the second half of a row repeats the first
 *   qk_tensor  (or scores) f32 [layers, heads, d_h / 2]: higher = keep first */
#ifndef KF_CONVERT_RANKS_H
#define KF_CONVERT_RANKS_H

#include "tensor/safetensors.h"

typedef struct kf_ranks {
  int layers, heads, half;
  bool scored;   /* real scores, which may be compared between heads and added up; else minus the rank */
  double *score; /* [layers, heads, half]: higher = keep first */
} kf_ranks;

/* When a file holds both tensors the scores are taken. Errors: neither tensor, a wrong type or shape, a row of ranks
 * that is no permutation, a score that is not finite. */
kf_status kf_ranks_read(const char *path, kf_ranks *out, kf_error *e);
kf_status kf_ranks_from(const char *name, const kf_safetensors *file, kf_ranks *out, kf_error *e);
/* Makes them fit a model: scores of query heads are added up over each group of heads / kv_heads. Errors: other
 * numbers of layers, heads or pairs; ranks (not scores) of query heads. */
kf_status kf_ranks_fit(kf_ranks *r, const char *path, int layers, int heads, int kv_heads, int half, kf_error *e);
void kf_ranks_free(kf_ranks *r);

/* order: [n] the indices of scores, highest first, equal ones in their own order. */
void kf_ranks_order(const double *scores, int n, int32_t *order);

#endif
