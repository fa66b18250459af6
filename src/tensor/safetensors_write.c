/* The streaming writer. Data is written behind room for a header of ROOM bytes; a header that outgrows it (thousands of
 * tensors) makes the data move once, on finish. The room that is left is filled with spaces, as the format allows. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tensor/safetensors.h"

enum { ROOM = 64 << 10, CHUNK = 64 << 10 /* numbers converted at a time */ };

struct kf_safetensors_writer {
  kf_replacement file;
  json_t *header;
  int64_t written, entered; // data bytes: so far, and of the tensors in the header
  uint8_t *chunk;           // [CHUNK * 4]
};

static kf_status write_at(kf_safetensors_writer *w, const void *data, size_t bytes, int64_t offset, kf_error *e) {
  const char *p = data;
  while (bytes) {
    ssize_t n = pwrite(w->file.fd, p, bytes, offset);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return kf_fail_errno(e, "cannot write %s", w->file.path);
    p += n;
    offset += n;
    bytes -= (size_t)n;
  }
  return KF_OK;
}

static void release(kf_safetensors_writer *w) {
  json_decref(w->header);
  free(w->chunk);
  free(w);
}

kf_status kf_safetensors_create(const char *path, kf_safetensors_writer **out, kf_error *e) {
  *out = NULL;
  kf_safetensors_writer *w;
  KF_NEW(w, 1, e);
  // Transformers loads only files whose metadata names a framework.
  w->header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
  w->chunk = kf_alloc(CHUNK, 4, e);
  if (!w->header || !w->chunk) {
    release(w);
    return kf_fail(e, KF_ERROR_MEMORY, "out of memory while creating %s", path);
  }
  kf_status s = kf_replace_begin(path, &w->file, e);
  if (s != KF_OK) {
    release(w);
    return s;
  }
  *out = w;
  return KF_OK;
}

/* Enters a tensor that will be written next. */
static kf_status enter(kf_safetensors_writer *w, const char *name, kf_dtype dtype, int dims, const int64_t *shape, int64_t *count,
                       kf_error *e) {
  size_t bytes;
  *count = 1;
  bool sized = dims >= 0 && dims <= KF_MAX_DIMS && dtype <= KF_BOOL;
  for (int i = 0; sized && i < dims; i++) sized = shape[i] >= 0 && !__builtin_mul_overflow(*count, shape[i], count);
  if (!sized || !kf_dtype_bytes(dtype, *count, &bytes) || bytes > (size_t)INT64_MAX - (size_t)w->written)
    return kf_fail(e, KF_ERROR_INPUT, "%s: tensor \"%.100s\" has a type or shape that cannot be stored", w->file.path, name);
  if (json_object_get(w->header, name))
    return kf_fail(e, KF_ERROR_INPUT, "%s: tensor \"%.100s\" is written twice", w->file.path, name);
  char type[16] = "";
  for (int i = 0; i < 15 && kf_dtype_name(dtype)[i]; i++) type[i] = (char)toupper((unsigned char)kf_dtype_name(dtype)[i]);
  json_t *sizes = json_array();
  for (int i = 0; i < dims; i++) json_array_append_new(sizes, json_integer(shape[i]));
  json_t *entry = json_pack("{s:s, s:o, s:[I, I]}", "dtype", type, "shape", sizes, "data_offsets", (json_int_t)w->written,
                            (json_int_t)w->written + (json_int_t)bytes);
  if (json_object_set_new(w->header, name, entry) != 0)
    return kf_fail(e, KF_ERROR_INPUT, "%s: the name of tensor \"%.100s\" cannot be stored", w->file.path, name);
  w->entered = w->written + (int64_t)bytes;
  return KF_OK;
}

static kf_status append(kf_safetensors_writer *w, const void *data, size_t bytes, kf_error *e) {
  KF_TRY(write_at(w, data, bytes, 8 + ROOM + w->written, e));
  w->written += (int64_t)bytes;
  return KF_OK;
}

kf_status kf_safetensors_add(kf_safetensors_writer *w, const char *name, kf_dtype dtype, int dims, const int64_t *shape,
                             const float *data, kf_error *e) {
  if (dtype > KF_BF16)
    return kf_fail(e, KF_ERROR_INPUT, "%s: tensor \"%.100s\" cannot be stored as %s", w->file.path, name, kf_dtype_name(dtype));
  int64_t count = 0;
  KF_TRY(enter(w, name, dtype, dims, shape, &count, e));
  for (int64_t i = 0; i < count; i += CHUNK) {
    size_t n = (size_t)(count - i < CHUNK ? count - i : CHUNK);
    kf_from_f32(dtype, data + i, w->chunk, n);
    KF_TRY(append(w, w->chunk, n * (size_t)kf_dtype_block_bytes(dtype), e));
  }
  return KF_OK;
}

kf_status kf_safetensors_add_raw(kf_safetensors_writer *w, const kf_view *tensor, kf_error *e) {
  int64_t count = 0;
  size_t bytes = 0;
  KF_TRY(enter(w, tensor->name, tensor->dtype, tensor->dims, tensor->shape, &count, e));
  if (!kf_dtype_bytes(tensor->dtype, count, &bytes) || bytes != tensor->bytes)
    return kf_fail(e, KF_ERROR_INPUT, "%s: tensor \"%.100s\" has %zu bytes, its shape needs %zu", w->file.path, tensor->name,
                   tensor->bytes, bytes);
  return append(w, tensor->data, bytes, e);
}

int64_t kf_safetensors_written(const kf_safetensors_writer *w) {
  return w->written;
}

/* Moves the data `by` bytes towards the end, last piece first. */
static kf_status move_data(kf_safetensors_writer *w, int64_t by, kf_error *e) {
  for (int64_t left = w->written; left > 0;) {
    size_t n = left < CHUNK * 4 ? (size_t)left : CHUNK * 4;
    int64_t from = 8 + ROOM + left - (int64_t)n;
    for (size_t done = 0; done < n;) {
      ssize_t got = pread(w->file.fd, w->chunk + done, n - done, from + (int64_t)done);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return kf_fail_errno(e, "cannot read back %s", w->file.path);
      done += (size_t)got;
    }
    KF_TRY(write_at(w, w->chunk, n, from + by, e));
    left -= (int64_t)n;
  }
  return KF_OK;
}

static kf_status write_header(kf_safetensors_writer *w, kf_error *e) {
  char *text = json_dumps(w->header, JSON_COMPACT);
  if (!text) return kf_fail(e, KF_ERROR_MEMORY, "out of memory for the header of %s", w->file.path);
  size_t bytes = strlen(text), room = bytes <= ROOM ? ROOM : (bytes + 4095) / 4096 * 4096;
  char *header = kf_alloc(8 + room, 1, e);
  kf_status s = header ? KF_OK : KF_ERROR_MEMORY;
  if (s == KF_OK && room > ROOM) s = move_data(w, (int64_t)room - ROOM, e);
  if (s == KF_OK) {
    for (int i = 0; i < 8; i++) header[i] = (char)(room >> 8 * i);
    memset(header + 8, ' ', room);
    memcpy(header + 8, text, bytes);
    s = write_at(w, header, 8 + room, 0, e);
  }
  free(header);
  free(text);
  return s;
}

kf_status kf_safetensors_finish(kf_safetensors_writer *w, kf_error *e) {
  kf_status s;
  if (w->entered != w->written)
    s = kf_fail(e, KF_ERROR_INPUT, "%s is not finished: a tensor was only written in part", w->file.path);
  else
    s = write_header(w, e);
  s = kf_replace_end(&w->file, s, e);
  release(w);
  return s;
}

void kf_safetensors_abandon(kf_safetensors_writer *w) {
  if (!w) return;
  kf_replace_end(&w->file, KF_ERROR_CANCELLED, NULL);
  release(w);
}

kf_status kf_write_tensor(const char *path, const char *name, const float *data, int64_t rows, int64_t columns, kf_error *e) {
  kf_safetensors_writer *w;
  KF_TRY(kf_safetensors_create(path, &w, e));
  kf_status s = kf_safetensors_add(w, name, KF_F32, 2, (int64_t[]){rows, columns}, data, e);
  if (s == KF_OK) return kf_safetensors_finish(w, e);
  kf_safetensors_abandon(w);
  return s;
}
