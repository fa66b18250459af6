/* One weight source: the tensors of a directory (model.safetensors, or every shard of model.safetensors.index.json) or of
 * a GGUF file, by the names that stand in the file. */
#ifndef KF_TENSOR_SOURCE_H
#define KF_TENSOR_SOURCE_H

#include "tensor/gguf.h"
#include "tensor/safetensors.h"

typedef struct kf_source kf_source;

/* path: a directory or a .gguf file (already located). An index that names a shard or tensor which is not there, or two
 * shards with the same tensor, is an error. */
kf_status kf_source_open(const char *path, kf_source **out, kf_error *e);
void kf_source_close(kf_source *s);
const char *kf_source_path(const kf_source *s);
const kf_gguf *kf_source_gguf(const kf_source *s); /* NULL for a directory */
int kf_source_count(const kf_source *s);
const kf_view *kf_source_at(const kf_source *s, int i);
const kf_view *kf_source_find(const kf_source *s, const char *name);
/* The file that holds a tensor, for messages. */
const char *kf_source_file(const kf_source *s, const kf_view *v);
/* Rows [row, row + rows) of a 1-d (one column) or 2-d tensor as f32: to [rows, columns]. Checks type and range. */
kf_status kf_source_rows(const kf_source *s, const kf_view *v, int64_t row, int64_t rows, float *to, kf_error *e);
/* Lets the system drop a tensor's pages. */
void kf_source_done(const kf_source *s, const kf_view *v);

#endif
