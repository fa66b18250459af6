/* DST while it is written: the directory DST.partial, locked against a second writer, from which an interrupted
 * conversion goes on.
 *
 * The work is a row of units (the embedding, each layer, the rest). A shard holds whole units and is closed at the first
 * end of a unit where it has shard_bytes. After each closed shard "progress.json" says what is done, together with a
 * fingerprint of everything that decides the result; another fingerprint starts from nothing. */
#ifndef KF_CONVERT_WRITE_H
#define KF_CONVERT_WRITE_H

#include "base/file.h"
#include "base/json.h"
#include "model/weights.h"

typedef struct kf_output kf_output;

/* fingerprint is borrowed while the output lives. Errors: DST exists; DST.partial is at work elsewhere, or not ours. */
kf_status kf_output_open(const char *dst, const json_t *fingerprint, kf_dtype dtype, int64_t shard_bytes, const kf_hooks *hooks,
                         kf_output **out, kf_error *e);
const char *kf_output_path(const kf_output *o); /* DST.partial */
/* Units that an earlier run has finished, and what it recorded of them (a list, null where nothing was). */
int kf_output_units(const kf_output *o);
const json_t *kf_output_records(const kf_output *o);

/* One tensor of the unit at work, f32 data. Errors: a number that f16 cannot hold. */
kf_status kf_output_add(kf_output *o, const char *name, int dims, const int64_t *shape, const float *data, kf_error *e);
/* A tensor of the source as it is, in the output's dtype. columns 1: a vector. */
kf_status kf_output_copy(kf_output *o, const kf_weights *w, const char *name, int64_t rows, int64_t columns, kf_error *e);
/* The unit is complete; record (a reference is taken; NULL: nothing) is kept with it. */
kf_status kf_output_end_unit(kf_output *o, json_t *record, kf_error *e);

/* Closes the last shard and gives shards and index their final names. */
kf_status kf_output_seal(kf_output *o, kf_error *e);
/* Puts DST.partial in place of DST. Nothing can be added to it any more. */
kf_status kf_output_publish(kf_output *o, kf_error *e);
/* Frees o. Unless published, DST.partial is kept for a later run, or removed. */
void kf_output_close(kf_output *o, bool keep);

#endif
