/* The one paragraph that a reader takes along. */
#ifndef KF_REPORT_VERDICT_H
#define KF_REPORT_VERDICT_H

#include "base/json.h"
#include "base/memory.h"

/* From the object of a comparison, all but "verdict" filled. */
kf_status kf_verdict(const json_t *comparison, kf_buffer *out, kf_error *e);

#endif
