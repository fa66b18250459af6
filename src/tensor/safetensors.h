/* safetensors: one file mapped read-only, and a writer that streams.
 * Format: u64 little-endian header length, JSON header, data. Every offset, shape and length is checked against the
 * file: truncated, oversized, overlapping, mis-sized or mis-typed tensors are refused by name. */
#ifndef KF_TENSOR_SAFETENSORS_H
#define KF_TENSOR_SAFETENSORS_H

#include "base/file.h"
#include "tensor/view.h"

typedef struct kf_safetensors kf_safetensors;

kf_status kf_safetensors_open(const char *path, kf_safetensors **out, kf_error *e);
/* From memory that outlives it (fuzzing, tests); `name` stands in messages. */
kf_status kf_safetensors_parse(const char *name, const void *data, size_t bytes, kf_safetensors **out, kf_error *e);
void kf_safetensors_close(kf_safetensors *s);
int kf_safetensors_count(const kf_safetensors *s);
const kf_view *kf_safetensors_at(const kf_safetensors *s, int i); /* in the order of the data */
const kf_view *kf_safetensors_find(const kf_safetensors *s, const char *name);
const char *kf_safetensors_metadata(const kf_safetensors *s, const char *key); /* NULL: none */

/* Streaming writer: tensors are appended in any number; the header, whose room is reserved at the start, is written on
 * close. `path` appears (by rename from path.tmp) only when close succeeds. */
typedef struct kf_safetensors_writer kf_safetensors_writer;
kf_status kf_safetensors_create(const char *path, kf_safetensors_writer **out, kf_error *e);
/* data: f32 [product of shape], stored as dtype (F32, F16, BF16). */
kf_status kf_safetensors_add(kf_safetensors_writer *w, const char *name, kf_dtype dtype, int dims, const int64_t *shape,
                             const float *data, kf_error *e);
/* data already in dtype's own bytes. */
kf_status kf_safetensors_add_raw(kf_safetensors_writer *w, const kf_view *tensor, kf_error *e);
int64_t kf_safetensors_written(const kf_safetensors_writer *w);         /* data bytes so far */
kf_status kf_safetensors_finish(kf_safetensors_writer *w, kf_error *e); /* frees w whatever happens */
void kf_safetensors_abandon(kf_safetensors_writer *w);                  /* removes path.tmp; NULL allowed */

#endif
