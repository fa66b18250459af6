/* The state of a run in one file, which is put in place by one rename: masters and moments of what is trained, and what the
 * caller notes as JSON (step, data position, fingerprint). */
#ifndef KF_TRAIN_CHECKPOINT_H
#define KF_TRAIN_CHECKPOINT_H

#include "base/json.h"
#include "train/parameters.h"

kf_status kf_checkpoint_write(const char *path, const kf_parameters *p, const json_t *state, kf_error *e);
/* What was noted; a new reference. Errors: not there, not a checkpoint. */
kf_status kf_checkpoint_state(const char *path, json_t **state, kf_error *e);
/* Masters and moments of what is trained, which must be what the file holds; rounds. */
kf_status kf_checkpoint_read(const char *path, kf_parameters *p, kf_error *e);

#endif
