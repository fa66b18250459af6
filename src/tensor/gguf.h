/* GGUF (versions 2 and 3, little-endian), mapped read-only. Sizes, counts, types, offsets and overlaps are checked. */
#ifndef KF_TENSOR_GGUF_H
#define KF_TENSOR_GGUF_H

#include "base/file.h"
#include "tensor/view.h"

typedef struct kf_gguf kf_gguf;

kf_status kf_gguf_open(const char *path, kf_gguf **out, kf_error *e);
kf_status kf_gguf_parse(const char *name, const void *data, size_t bytes, kf_gguf **out, kf_error *e);
void kf_gguf_close(kf_gguf *g);
const char *kf_gguf_path(const kf_gguf *g);

int kf_gguf_count(const kf_gguf *g);
const kf_view *kf_gguf_at(const kf_gguf *g, int i);
const kf_view *kf_gguf_find(const kf_gguf *g, const char *name);

/* Metadata. A missing key leaves *out alone and is KF_OK; a key of another type is an error that names it.
 * Any integer or boolean type is read as an integer; integers and floats as a real. */
bool kf_gguf_has(const kf_gguf *g, const char *key);
kf_status kf_gguf_int(const kf_gguf *g, const char *key, int64_t *out, kf_error *e);
kf_status kf_gguf_real(const kf_gguf *g, const char *key, double *out, kf_error *e);
kf_status kf_gguf_string(const kf_gguf *g, const char *key, const char **out, kf_error *e); /* lives as long as g */
/* Arrays: the count (0 when missing), then one element at a time. */
int64_t kf_gguf_array(const kf_gguf *g, const char *key);
/* A copy that ends with NUL; NULL: not strings. */
const char *kf_gguf_array_string(const kf_gguf *g, const char *key, int64_t i, size_t *bytes);
bool kf_gguf_array_real(const kf_gguf *g, const char *key, int64_t i, double *out);
bool kf_gguf_array_int(const kf_gguf *g, const char *key, int64_t i, int64_t *out);

/* The code of a type in the table of tensors; false: it has none. */
bool kf_gguf_code(kf_dtype t, uint32_t *out);

/* Streaming writer (version 3). In this order: keys, declarations of all tensors, then their numbers in the order of the
 * declarations. `path` appears (by rename from path.tmp) only when finish succeeds. */
typedef struct kf_gguf_writer kf_gguf_writer;
kf_status kf_gguf_create(const char *path, kf_gguf_writer **out, kf_error *e);
kf_status kf_gguf_put_u32(kf_gguf_writer *w, const char *key, uint32_t value, kf_error *e);
kf_status kf_gguf_put_f32(kf_gguf_writer *w, const char *key, float value, kf_error *e);
kf_status kf_gguf_put_bool(kf_gguf_writer *w, const char *key, bool value, kf_error *e);
kf_status kf_gguf_put_string(kf_gguf_writer *w, const char *key, const char *value, kf_error *e);
kf_status kf_gguf_put_strings(kf_gguf_writer *w, const char *key, const char *const *values, size_t count, kf_error *e);
kf_status kf_gguf_put_i32s(kf_gguf_writer *w, const char *key, const int32_t *values, size_t count, kf_error *e);
kf_status kf_gguf_put_f32s(kf_gguf_writer *w, const char *key, const float *values, size_t count, kf_error *e);
/* shape: row-major, slowest first, as in kf_view. dtype: any floating type of ggml;
 * blocks lie along the last dimension. */
kf_status kf_gguf_declare(kf_gguf_writer *w, const char *name, kf_dtype dtype, int dims, const int64_t *shape, kf_error *e);
/* The next tensor, from f32, declared as F32, F16, BF16 or Q8_0. Errors: none was declared; a number that the type cannot hold. */
kf_status kf_gguf_add(kf_gguf_writer *w, const float *data, kf_error *e);
/* The next tensor as v holds it. Errors: it was declared otherwise. */
kf_status kf_gguf_add_raw(kf_gguf_writer *w, const kf_view *v, kf_error *e);
kf_status kf_gguf_finish(kf_gguf_writer *w, kf_error *e); /* frees w whatever happens. Errors: a declared tensor was not added */
void kf_gguf_abandon(kf_gguf_writer *w);                  /* removes path.tmp; NULL allowed */

#endif
