/* The learning rate over a run, as a part of its peak. */
#ifndef KF_TRAIN_SCHEDULE_H
#define KF_TRAIN_SCHEDULE_H

#include "base/error.h"

typedef enum kf_schedule_kind {
  KF_SCHEDULE_COSINE, /* half a cosine to 0 */
  KF_SCHEDULE_LINEAR, /* to 0 */
  KF_SCHEDULE_CONSTANT,
  KF_SCHEDULE_WSD,         /* constant, then linearly to 0 over the last `decay` steps: warmup-stable-decay */
  KF_SCHEDULE_INVERSE_SQRT /* constant, then 1 - sqrt(part of the decay done): MHA2MLA's */
} kf_schedule_kind;

/* All begin with `warmup` steps that rise linearly, the first at 1 / warmup. */
typedef struct kf_schedule {
  kf_schedule_kind kind;
  int64_t steps, warmup, decay;
} kf_schedule;

/* "cosine", "linear", "constant", "wsd", "1-sqrt". Errors: KF_ERROR_USAGE. */
kf_status kf_schedule_parse(const char *name, kf_schedule_kind *out, kf_error *e);
/* Of step 0 .. steps - 1. */
double kf_schedule_at(const kf_schedule *s, int64_t step);

#endif
