/* The state of a run in one file, which is put in place by one rename: masters and moments of what is trained, and what the
 * caller notes as JSON (step, data position, fingerprint). */
#ifndef KF_TRAIN_CHECKPOINT_H
#define KF_TRAIN_CHECKPOINT_H

#include "base/json.h"
#include "train/shards.h"

/* All ranks call it, rank 0 writes; the file is the same however many they are. */
kf_status kf_checkpoint_write(const char *path, const kf_shards *s, const json_t *state, kf_error *e);
/* What was noted; a new reference. Errors: not there, not a checkpoint. */
kf_status kf_checkpoint_state(const char *path, json_t **state, kf_error *e);
/* Masters of what is trained, which must be what the file holds, and moments of the own part; rounds. */
kf_status kf_checkpoint_read(const char *path, kf_parameters *p, kf_error *e);

#endif
