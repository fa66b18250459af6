/* Which rotary pairs a key head keeps (MHA2MLA section 3.1). Pair k of a head of d_h numbers is rows k and k + d_h / 2;
 * pair 0 turns fastest. */
#ifndef KF_CONVERT_ROPE_SELECT_H
#define KF_CONVERT_ROPE_SELECT_H

#include "base/memory.h"

typedef enum kf_rope_policy {
  KF_ROPE_HIGH,         /* the r fastest */
  KF_ROPE_LOW,          /* the r slowest */
  KF_ROPE_UNIFORM,      /* floor(k half / r) */
  KF_ROPE_2NORM,        /* each head's r best scores */
  KF_ROPE_HIGH_LOW,     /* r / 2 slowest, the rest fastest */
  KF_ROPE_2NORM_GLOBAL, /* the heads x r best scores of the layer: heads may keep different numbers */
} kf_rope_policy;

/* scores: [heads, half], needed by the two norm policies; equal scores go to the lower pair. 0 <= r <= half.
 * pairs: [heads] counts; index: [heads * r] the pairs of head 0, ascending, then of head 1, ... */
kf_status kf_rope_select(kf_rope_policy policy, int heads, int half, int r, const double *scores, int *pairs, int32_t *index,
                         kf_error *e);

#endif
