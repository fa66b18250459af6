#include "convert/rope_select.h"

#include <stdlib.h>
#include <string.h>

#include "convert/ranks.h"

/* One head by a rule of position: which of `half` pairs are kept. */
static bool is_kept(kf_rope_policy policy, int half, int r, int k) {
  switch (policy) {
  case KF_ROPE_HIGH: return k < r;
  case KF_ROPE_LOW: return k >= half - r;
  case KF_ROPE_HIGH_LOW: return k < (r + 1) / 2 || k >= half - r / 2;
  default: break;
  }
  for (int i = 0; i < r; i++)
    if ((int)((int64_t)i * half / r) == k) return true;
  return false;
}

/* Marks the `best` highest of n scores. */
static kf_status mark_best(const double *scores, int n, int best, bool *kept, kf_error *e) {
  int32_t *order;
  KF_NEW(order, n, e);
  kf_ranks_order(scores, n, order);
  for (int i = 0; i < best; i++) kept[order[i]] = true;
  free(order);
  return KF_OK;
}

kf_status kf_rope_select(kf_rope_policy policy, int heads, int half, int r, const double *scores, int *pairs, int32_t *index,
                         kf_error *e) {
  bool *kept;
  kf_status s = KF_OK;
  KF_NEW(kept, heads * half, e);
  if (policy == KF_ROPE_2NORM_GLOBAL) {
    s = mark_best(scores, heads * half, heads * r, kept, e);
  } else {
    for (int g = 0; s == KF_OK && g < heads; g++) {
      if (policy == KF_ROPE_2NORM)
        s = mark_best(scores + (size_t)g * half, half, r, kept + (size_t)g * half, e);
      else
        for (int k = 0; k < half; k++) kept[g * half + k] = is_kept(policy, half, r, k);
    }
  }
  for (int g = 0, at = 0; s == KF_OK && g < heads; g++) {
    pairs[g] = 0;
    for (int k = 0; k < half; k++)
      if (kept[g * half + k]) index[at++] = k, pairs[g]++;
  }
  free(kept);
  return s;
}
