#include "tensor/safetensors.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_HEADER = 100000000 }; // the format's own limit

struct kf_safetensors {
  kf_map map; // empty for memory that is not ours
  json_t *header;
  kf_view *view;        // [count] in the order of the data; names belong to header
  const kf_view **name; // [count] sorted
  int count;
};

/* What one file's checks share. */
typedef struct {
  const char *file;
  const uint8_t *data;
  size_t bytes; // of data, behind the header
  kf_error *e;
} reader;

#define REFUSE(r, name, format, ...) \
  kf_fail((r)->e, KF_ERROR_INPUT, "%s: tensor \"%.100s\" " format, (r)->file, name, __VA_ARGS__)

static bool plain_dtype(const char *name, kf_dtype *out) {
  return kf_dtype_parse(name, out) && *out <= KF_BOOL;
}

static kf_status read_shape(const reader *r, const char *name, const json_t *shape, kf_view *out, int64_t *count) {
  if (!json_is_array(shape)) return REFUSE(r, name, "has no %s", "shape");
  if (json_array_size(shape) > KF_MAX_DIMS)
    return REFUSE(r, name, "has %zu dimensions, more than %d", json_array_size(shape), KF_MAX_DIMS);
  out->dims = (int)json_array_size(shape);
  *count = 1;
  for (int i = 0; i < out->dims; i++) {
    const json_t *size = json_array_get(shape, (size_t)i);
    if (!json_is_integer(size) || json_integer_value(size) < 0)
      return REFUSE(r, name, "has a dimension %d that is not a whole number", i);
    out->shape[i] = json_integer_value(size);
    if (__builtin_mul_overflow(*count, out->shape[i], count)) return REFUSE(r, name, "has a %s that overflows", "shape");
  }
  return KF_OK;
}

static kf_status read_tensor(const reader *r, const char *name, const json_t *entry, kf_view *out) {
  const char *dtype = json_string_value(json_object_get(entry, "dtype"));
  const json_t *offsets = json_object_get(entry, "data_offsets");
  const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
  int64_t count = 0;
  size_t expected = 0;
  out->name = name;
  if (!dtype) return REFUSE(r, name, "has no %s", "dtype");
  if (!plain_dtype(dtype, &out->dtype)) return REFUSE(r, name, "is %.20s, a type that is not read", dtype);
  KF_TRY(read_shape(r, name, json_object_get(entry, "shape"), out, &count));
  if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end))
    return REFUSE(r, name, "has no %s", "data_offsets of two whole numbers");
  json_int_t b = json_integer_value(begin), n = json_integer_value(end);
  if (b < 0 || n < b) return REFUSE(r, name, "has data_offsets %lld to %lld", (long long)b, (long long)n);
  if ((uint64_t)n > r->bytes)
    return REFUSE(r, name, "ends at byte %lld of the data, but the file holds %zu", (long long)n, r->bytes);
  out->bytes = (size_t)(n - b);
  out->data = r->data + b;
  if (!kf_dtype_bytes(out->dtype, count, &expected) || expected != out->bytes)
    return REFUSE(r, name, "has %zu bytes, not the size of its shape (%lld x %s)", out->bytes, (long long)count, dtype);
  return KF_OK;
}

static int by_data(const void *a, const void *b) {
  const kf_view *x = a, *y = b;
  if (x->data != y->data) return x->data < y->data ? -1 : 1;
  return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

/* The tensors must tile the data: no overlap, no hole, nothing behind the last. */
static kf_status check_tiling(const reader *r, const kf_view *view, int count) {
  size_t at = 0;
  for (int i = 0; i < count; i++) {
    size_t begin = (size_t)(view[i].data - r->data);
    if (begin < at) return REFUSE(r, view[i].name, "overlaps tensor \"%.100s\"", view[i - 1].name);
    if (begin > at) return REFUSE(r, view[i].name, "begins at byte %zu of the data, but %zu was expected", begin, at);
    at = begin + view[i].bytes;
  }
  if (at != r->bytes)
    return kf_fail(r->e, KF_ERROR_INPUT, "%s: the tensors end at byte %zu of the data, but the file holds %zu", r->file, at,
                   r->bytes);
  return KF_OK;
}

static kf_status read_header(const char *file, const uint8_t *data, size_t bytes, json_t **out, size_t *header, kf_error *e) {
  uint64_t length = 0;
  if (bytes < 8) return kf_fail(e, KF_ERROR_INPUT, "%s has %zu bytes, too few for a safetensors file", file, bytes);
  for (int i = 7; i >= 0; i--) length = length << 8 | data[i];
  if (length > bytes - 8)
    return kf_fail(e, KF_ERROR_INPUT, "%s: a header of %llu bytes does not fit in the file of %zu", file,
                   (unsigned long long)length, bytes);
  if (length > MAX_HEADER)
    return kf_fail(e, KF_ERROR_INPUT, "%s: a header of %llu bytes is above the format's limit of %d", file,
                   (unsigned long long)length, MAX_HEADER);
  json_error_t why;
  *header = (size_t)length;
  *out = json_loadb((const char *)data + 8, *header, JSON_REJECT_DUPLICATES, &why);
  if (!*out) return kf_fail(e, KF_ERROR_INPUT, "%s: the header is not valid JSON: %s", file, why.text);
  if (!json_is_object(*out)) return kf_fail(e, KF_ERROR_INPUT, "%s: the header is not a JSON object", file);
  return KF_OK;
}

static kf_status fill(kf_safetensors *s, const char *file, const uint8_t *data, size_t bytes, kf_error *e) {
  size_t header = 0;
  KF_TRY(read_header(file, data, bytes, &s->header, &header, e));
  reader r = {file, data + 8 + header, bytes - 8 - header, e};
  size_t entries = json_object_size(s->header);
  KF_NEW(s->view, entries, e);
  KF_NEW(s->name, entries, e);
  const char *name;
  json_t *entry;
  json_object_foreach(s->header, name, entry) {
    if (strcmp(name, "__metadata__") == 0) continue;
    KF_TRY(read_tensor(&r, name, entry, &s->view[s->count]));
    s->count++;
  }
  qsort(s->view, (size_t)s->count, sizeof *s->view, by_data);
  KF_TRY(check_tiling(&r, s->view, s->count));
  for (int i = 0; i < s->count; i++) s->name[i] = &s->view[i];
  kf_view_sort(s->name, s->count);
  return KF_OK;
}

kf_status kf_safetensors_parse(const char *name, const void *data, size_t bytes, kf_safetensors **out, kf_error *e) {
  *out = NULL;
  kf_safetensors *s;
  KF_NEW(s, 1, e);
  kf_status status = fill(s, name, data, bytes, e);
  if (status != KF_OK)
    kf_safetensors_close(s);
  else
    *out = s;
  return status;
}

kf_status kf_safetensors_open(const char *path, kf_safetensors **out, kf_error *e) {
  *out = NULL;
  kf_map map;
  KF_TRY(kf_map_open(path, &map, e));
  kf_status status = kf_safetensors_parse(path, map.data, map.bytes, out, e);
  if (status != KF_OK)
    kf_map_close(&map);
  else
    (*out)->map = map;
  return status;
}

void kf_safetensors_close(kf_safetensors *s) {
  if (!s) return;
  json_decref(s->header);
  free(s->view);
  free(s->name);
  kf_map_close(&s->map);
  free(s);
}

int kf_safetensors_count(const kf_safetensors *s) {
  return s->count;
}

const kf_view *kf_safetensors_at(const kf_safetensors *s, int i) {
  return i >= 0 && i < s->count ? &s->view[i] : NULL;
}

const kf_view *kf_safetensors_find(const kf_safetensors *s, const char *name) {
  return kf_view_find(s->name, s->count, name);
}

const char *kf_safetensors_metadata(const kf_safetensors *s, const char *key) {
  return json_string_value(json_object_get(json_object_get(s->header, "__metadata__"), key));
}
