/* The GGUF writer: keys and tensor table grow in memory, and go to the file with the first tensor. */
#include <stdlib.h>
#include <string.h>

#include "tensor/gguf.h"

enum { CODE_U32 = 4, CODE_I32, CODE_F32, CODE_BOOL, CODE_STRING, CODE_ARRAY }; /* metadata types */
enum { ALIGNMENT = 32, CHUNK = 64 << 10 /* numbers converted at a time */ };

typedef struct declared {
  char *name;
  kf_dtype dtype;
  int64_t count;
  size_t bytes;
} declared;

struct kf_gguf_writer {
  kf_replacement file;
  kf_arena arena;
  kf_buffer keys, table;
  uint64_t key_count;
  declared *tensor;
  size_t count, room, added;
  uint64_t offset; /* of the next declared tensor in the data */
  uint8_t *chunk;  /* [CHUNK * 4] */
};

kf_status kf_gguf_create(const char *path, kf_gguf_writer **out, kf_error *e) {
  kf_gguf_writer *w;
  *out = NULL;
  KF_NEW(w, 1, e);
  w->chunk = kf_alloc(CHUNK, 4, e);
  kf_status s = w->chunk ? kf_replace_begin(path, &w->file, e) : KF_ERROR_MEMORY;
  if (s == KF_OK) {
    *out = w;
    return KF_OK;
  }
  free(w->chunk);
  free(w);
  return s;
}

/* ------------------------------------------------------------------------------------------------ keys */

static kf_status add_text(kf_buffer *b, const char *text, kf_error *e) {
  uint64_t bytes = strlen(text);
  KF_TRY(kf_buffer_add(b, &bytes, sizeof bytes, e));
  return kf_buffer_add(b, text, bytes, e);
}

static kf_status add_key(kf_gguf_writer *w, const char *key, uint32_t code, kf_error *e) {
  w->key_count++;
  KF_TRY(add_text(&w->keys, key, e));
  return kf_buffer_add(&w->keys, &code, sizeof code, e);
}

static kf_status add_array(kf_gguf_writer *w, const char *key, uint32_t code, uint64_t count, kf_error *e) {
  KF_TRY(add_key(w, key, CODE_ARRAY, e));
  KF_TRY(kf_buffer_add(&w->keys, &code, sizeof code, e));
  return kf_buffer_add(&w->keys, &count, sizeof count, e);
}

kf_status kf_gguf_put_u32(kf_gguf_writer *w, const char *key, uint32_t value, kf_error *e) {
  KF_TRY(add_key(w, key, CODE_U32, e));
  return kf_buffer_add(&w->keys, &value, sizeof value, e);
}

kf_status kf_gguf_put_f32(kf_gguf_writer *w, const char *key, float value, kf_error *e) {
  KF_TRY(add_key(w, key, CODE_F32, e));
  return kf_buffer_add(&w->keys, &value, sizeof value, e);
}

kf_status kf_gguf_put_bool(kf_gguf_writer *w, const char *key, bool value, kf_error *e) {
  uint8_t byte = value;
  KF_TRY(add_key(w, key, CODE_BOOL, e));
  return kf_buffer_add(&w->keys, &byte, 1, e);
}

kf_status kf_gguf_put_string(kf_gguf_writer *w, const char *key, const char *value, kf_error *e) {
  KF_TRY(add_key(w, key, CODE_STRING, e));
  return add_text(&w->keys, value, e);
}

kf_status kf_gguf_put_strings(kf_gguf_writer *w, const char *key, const char *const *values, size_t count, kf_error *e) {
  KF_TRY(add_array(w, key, CODE_STRING, count, e));
  for (size_t i = 0; i < count; i++) KF_TRY(add_text(&w->keys, values[i], e));
  return KF_OK;
}

kf_status kf_gguf_put_i32s(kf_gguf_writer *w, const char *key, const int32_t *values, size_t count, kf_error *e) {
  KF_TRY(add_array(w, key, CODE_I32, count, e));
  return kf_buffer_add(&w->keys, values, count * sizeof *values, e);
}

kf_status kf_gguf_put_f32s(kf_gguf_writer *w, const char *key, const float *values, size_t count, kf_error *e) {
  KF_TRY(add_array(w, key, CODE_F32, count, e));
  return kf_buffer_add(&w->keys, values, count * sizeof *values, e);
}

/* ------------------------------------------------------------------------------------------------ tensors */

static kf_status grow(kf_gguf_writer *w, kf_error *e) {
  if (w->count < w->room) return KF_OK;
  declared *more;
  KF_NEW(more, 2 * w->room + 64, e);
  if (w->count) memcpy(more, w->tensor, w->count * sizeof *more);
  free(w->tensor);
  w->tensor = more;
  w->room = 2 * w->room + 64;
  return KF_OK;
}

kf_status kf_gguf_declare(kf_gguf_writer *w, const char *name, kf_dtype dtype, int dims, const int64_t *shape, kf_error *e) {
  declared t = {.dtype = dtype, .count = 1};
  uint32_t rank = (uint32_t)dims, code;
  bool sized = !w->added && dims >= 1 && dims <= KF_MAX_DIMS && kf_gguf_code(dtype, &code);
  for (int i = 0; sized && i < dims; i++) sized = shape[i] > 0 && !__builtin_mul_overflow(t.count, shape[i], &t.count);
  sized = sized && shape[dims - 1] % kf_dtype_block(dtype) == 0; /* blocks lie along a row */
  if (!sized || !kf_dtype_bytes(dtype, t.count, &t.bytes))
    return kf_fail(e, KF_ERROR_INPUT, "%s: tensor \"%.100s\" has a type or shape that cannot be stored", w->file.path, name);
  KF_TRY(grow(w, e));
  if (!(t.name = kf_arena_string(&w->arena, name, strlen(name), e))) return KF_ERROR_MEMORY;
  KF_TRY(add_text(&w->table, name, e));
  KF_TRY(kf_buffer_add(&w->table, &rank, sizeof rank, e));
  for (int i = dims - 1; i >= 0; i--) KF_TRY(kf_buffer_add(&w->table, &(uint64_t){(uint64_t)shape[i]}, 8, e));
  KF_TRY(kf_buffer_add(&w->table, &code, sizeof code, e));
  KF_TRY(kf_buffer_add(&w->table, &w->offset, sizeof w->offset, e));
  w->offset += (t.bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  w->tensor[w->count++] = t;
  return KF_OK;
}

static kf_status pad(kf_gguf_writer *w, size_t bytes, kf_error *e) {
  static const uint8_t zeros[ALIGNMENT];
  return kf_replace_add(&w->file, zeros, (ALIGNMENT - bytes % ALIGNMENT) % ALIGNMENT, e);
}

static kf_status write_header(kf_gguf_writer *w, kf_error *e) {
  uint64_t counts[2] = {w->count, w->key_count};
  uint32_t version = 3;
  KF_TRY(kf_replace_add(&w->file, "GGUF", 4, e));
  KF_TRY(kf_replace_add(&w->file, &version, sizeof version, e));
  KF_TRY(kf_replace_add(&w->file, counts, sizeof counts, e));
  KF_TRY(kf_replace_add(&w->file, w->keys.data, w->keys.bytes, e));
  KF_TRY(kf_replace_add(&w->file, w->table.data, w->table.bytes, e));
  return pad(w, 24 + w->keys.bytes + w->table.bytes, e);
}

static kf_status next(kf_gguf_writer *w, const declared **out, kf_error *e) {
  if (w->added == w->count) return kf_fail(e, KF_ERROR_INPUT, "%s: more tensors are written than were declared", w->file.path);
  if (w->added == 0) KF_TRY(write_header(w, e));
  *out = &w->tensor[w->added++];
  return KF_OK;
}

kf_status kf_gguf_add(kf_gguf_writer *w, const float *data, kf_error *e) {
  const declared *t = NULL;
  KF_TRY(next(w, &t, e));
  if (t->dtype > KF_BF16 && t->dtype != KF_Q8_0)
    return kf_fail(e, KF_ERROR_INPUT, "tensor %s cannot be written as %s, only copied", t->name, kf_dtype_name(t->dtype));
  const float *beyond = kf_beyond(t->dtype, data, (size_t)t->count);
  if (beyond)
    return kf_fail(e, KF_ERROR_INPUT, "tensor %s holds %g, which %s cannot; write bf16 or f32", t->name, (double)*beyond,
                   kf_dtype_name(t->dtype));
  for (int64_t i = 0; i < t->count; i += CHUNK) {
    size_t n = (size_t)(t->count - i < CHUNK ? t->count - i : CHUNK), bytes;
    kf_from_f32(t->dtype, data + i, w->chunk, n);
    kf_dtype_bytes(t->dtype, (int64_t)n, &bytes);
    KF_TRY(kf_replace_add(&w->file, w->chunk, bytes, e));
  }
  return pad(w, t->bytes, e);
}

kf_status kf_gguf_add_raw(kf_gguf_writer *w, const kf_view *v, kf_error *e) {
  const declared *t = NULL;
  KF_TRY(next(w, &t, e));
  if (v->dtype != t->dtype || v->bytes != t->bytes)
    return kf_fail(e, KF_ERROR_INPUT, "%s: tensor \"%.100s\" is not as it was declared", w->file.path, t->name);
  KF_TRY(kf_replace_add(&w->file, v->data, v->bytes, e));
  return pad(w, t->bytes, e);
}

/* ------------------------------------------------------------------------------------------------ the end */

static kf_status end(kf_gguf_writer *w, kf_status s, kf_error *e) {
  s = kf_replace_end(&w->file, s, e);
  kf_arena_free(&w->arena);
  kf_buffer_free(&w->keys);
  kf_buffer_free(&w->table);
  free(w->tensor);
  free(w->chunk);
  free(w);
  return s;
}

kf_status kf_gguf_finish(kf_gguf_writer *w, kf_error *e) {
  kf_status s = w->count ? KF_OK : write_header(w, e);
  if (w->added != w->count)
    s = kf_fail(e, KF_ERROR_INPUT, "%s is not finished: tensor \"%.100s\" was not written", w->file.path,
                w->tensor[w->added].name);
  return end(w, s, e);
}

void kf_gguf_abandon(kf_gguf_writer *w) {
  if (w) end(w, KF_ERROR_CANCELLED, NULL);
}
