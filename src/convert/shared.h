/* What conversions of one source have in common, in a file: written once, then read as often as wanted. Where the options name a
 * directory to share (kf_convert_options.share) it stays there and is found again; else it is gone when closed. */
#ifndef KF_CONVERT_SHARED_H
#define KF_CONVERT_SHARED_H

#include <stdio.h>

#include "convert/plan.h"

typedef struct kf_shared {
  FILE *file;
  bool complete;       /* it is read, else written */
  char path[KF_PATH];  /* that it has when complete; empty: it does not stay */
  char where[KF_PATH]; /* while it is written */
} kf_shared;

/* kind: what it holds. ids: the tokens that it is made from, NULL: none; number: what else. The source's files, the version and the
 * numerics (compute, threads) count by themselves. */
kf_status kf_shared_open(const kf_plan *p, const char *kind, const int32_t *ids, int64_t count, int64_t number, kf_shared *out,
                         kf_error *e);
/* The next bytes, to or from the file. */
kf_status kf_shared_move(kf_shared *s, void *data, size_t bytes, kf_error *e);
/* All is written; nothing where it is complete already. Reading begins at the start. */
kf_status kf_shared_complete(kf_shared *s, kf_error *e);
void kf_shared_close(kf_shared *s); /* a zeroed one is allowed */

#endif
