/* The flash loop that grouped and latent attention share: blocks of query rows against tiles of cached rows, online
 * softmax, memory independent of the context. */
#ifndef KF_CPU_FLASH_H
#define KF_CPU_FLASH_H

#include "device/cpu/cpu.h"

typedef struct kf_flash_sequence {
  kf_rows rows;
  int64_t m, past;
  const float *q, *q_rope; /* as in device.h; q_rope NULL for grouped attention */
  int64_t q_stride;        /* of a grouped query */
  float *out;              /* [m, heads, d_v] */
} kf_flash_sequence;

/* A group is a set of query heads that read the same columns. */
typedef struct kf_flash {
  int groups, heads; /* heads of one group; query head h of group g is number g * heads + h */
  int64_t d_k, d_v;
  int64_t value_column; /* group g: keys at g * d_k, values at value_column + g * d_v */
  float scale;
  int64_t window;
  const kf_latent_shape *latent; /* NULL for grouped attention: where the rope keys and factors stand */
  const kf_flash_sequence *sequences;
  int count;
} kf_flash;

void kf_flash_run(kf_cpu *c, const kf_flash *f);

#endif
