#include "tensor/gguf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The format's own codes of metadata types. */
enum { U8, I8, U16, I16, U32, I32, F32, BOOLEAN, STRING, ARRAY, U64, I64, F64, META_TYPES };
static const size_t meta_bytes[META_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

typedef struct {
  const char *key;
  uint32_t type; // of the value, or of the elements when is_array
  bool is_array;
  uint64_t count;      // elements; 1 for a scalar
  const uint8_t *data; // numbers as they stand in the file
  char *text;          // strings: NUL-terminated copies, one behind the other
  size_t *start;       // [count + 1] where each begins in text
} value;

struct kf_gguf {
  kf_map map; // empty for memory that is not ours
  kf_arena arena;
  const char *path;
  value *meta; // [meta_count] sorted by key
  int meta_count;
  kf_view *view; // [count] in the file's order
  const kf_view **name;
  int count;
};

typedef struct {
  const char *file;
  const uint8_t *data;
  size_t bytes, at;
  kf_arena *arena;
  kf_error *e;
} cursor;

#define REFUSE(c, ...) kf_fail((c)->e, KF_ERROR_INPUT, __VA_ARGS__)

/* ggml's tensor types by their code; those without a dtype are known by name only. */
static const struct {
  const char *name;
  int dtype;
} ggml_types[] = {
    {"F32", KF_F32},    {"F16", KF_F16},    {"Q4_0", KF_Q4_0},  {"Q4_1", KF_Q4_1}, {"Q4_2", -1},    {"Q4_3", -1},
    {"Q5_0", KF_Q5_0},  {"Q5_1", KF_Q5_1},  {"Q8_0", KF_Q8_0},  {"Q8_1", -1},      {"Q2_K", -1},    {"Q3_K", -1},
    {"Q4_K", KF_Q4_K},  {"Q5_K", KF_Q5_K},  {"Q6_K", KF_Q6_K},  {"Q8_K", -1},      {"IQ2_XXS", -1}, {"IQ2_XS", -1},
    {"IQ3_XXS", -1},    {"IQ1_S", -1},      {"IQ4_NL", -1},     {"IQ3_S", -1},     {"IQ2_S", -1},   {"IQ4_XS", -1},
    {"I8", KF_I8},      {"I16", KF_I16},    {"I32", KF_I32},    {"I64", KF_I64},   {"F64", KF_F64}, {"IQ1_M", -1},
    {"BF16", KF_BF16},  {"Q4_0_4_4", -1},   {"Q4_0_4_8", -1},   {"Q4_0_8_8", -1},  {"TQ1_0", -1},   {"TQ2_0", -1},
    {"IQ4_NL_4_4", -1}, {"IQ4_NL_4_8", -1}, {"IQ4_NL_8_8", -1}, {"MXFP4", -1},
};
enum { GGML_TYPES = sizeof ggml_types / sizeof *ggml_types };

bool kf_gguf_code(kf_dtype t, uint32_t *out) {
  for (uint32_t i = 0; i < GGML_TYPES; i++)
    if (ggml_types[i].dtype == (int)t) {
      *out = i;
      return true;
    }
  return false;
}

/* ------------------------------------------------------------------------------------------------ reading */

static kf_status take(cursor *c, size_t bytes, const uint8_t **out) {
  if (bytes > c->bytes - c->at)
    return REFUSE(c, "%s is truncated: %zu bytes at %zu do not fit in the file of %zu", c->file, bytes, c->at, c->bytes);
  *out = c->data + c->at;
  c->at += bytes;
  return KF_OK;
}

static kf_status take_u32(cursor *c, uint32_t *out) {
  const uint8_t *p = NULL;
  KF_TRY(take(c, sizeof *out, &p));
  memcpy(out, p, sizeof *out);
  return KF_OK;
}

static kf_status take_u64(cursor *c, uint64_t *out) {
  const uint8_t *p = NULL;
  KF_TRY(take(c, sizeof *out, &p));
  memcpy(out, p, sizeof *out);
  return KF_OK;
}

static kf_status take_text(cursor *c, const uint8_t **data, size_t *bytes) {
  uint64_t length = 0;
  KF_TRY(take_u64(c, &length));
  if (length > c->bytes - c->at)
    return REFUSE(c, "%s is truncated: a string of %llu bytes at %zu does not fit in the file of %zu", c->file,
                  (unsigned long long)length, c->at, c->bytes);
  *bytes = (size_t)length;
  return take(c, *bytes, data);
}

static kf_status take_name(cursor *c, const char *what, const char **out) {
  const uint8_t *data = NULL;
  size_t bytes = 0;
  KF_TRY(take_text(c, &data, &bytes));
  if (bytes == 0 || memchr(data, 0, bytes))
    return REFUSE(c, "%s: the name of a %s before byte %zu is empty or holds a NUL", c->file, what, c->at);
  *out = kf_arena_string(c->arena, (const char *)data, bytes, c->e);
  return *out ? KF_OK : KF_ERROR_MEMORY;
}

/* count strings, copied so that each ends in NUL. The first pass only measures. */
static kf_status take_strings(cursor *c, value *v) {
  const uint8_t *data = NULL;
  size_t bytes = 0, total = 0, begin = c->at;
  if (v->count > (c->bytes - c->at) / 8)
    return REFUSE(c, "%s: key \"%.100s\" has %llu strings, more than the file can hold", c->file, v->key,
                  (unsigned long long)v->count);
  for (uint64_t i = 0; i < v->count; i++) {
    KF_TRY(take_text(c, &data, &bytes));
    total += bytes + 1;
  }
  v->text = kf_arena_alloc(c->arena, total, 1, c->e);
  v->start = kf_arena_alloc(c->arena, v->count + 1, sizeof *v->start, c->e);
  if (!v->text || !v->start) return KF_ERROR_MEMORY;
  c->at = begin;
  for (uint64_t i = 0; i < v->count; i++) {
    KF_TRY(take_text(c, &data, &bytes));
    if (bytes) memcpy(v->text + v->start[i], data, bytes);
    v->start[i + 1] = v->start[i] + bytes + 1;
  }
  return KF_OK;
}

static kf_status take_value(cursor *c, value *v) {
  v->count = 1;
  KF_TRY(take_name(c, "metadata key", &v->key));
  KF_TRY(take_u32(c, &v->type));
  if (v->type == ARRAY) {
    v->is_array = true;
    KF_TRY(take_u32(c, &v->type));
    KF_TRY(take_u64(c, &v->count));
    if (v->type == ARRAY) return REFUSE(c, "%s: key \"%.100s\" is an array of arrays, which is not read", c->file, v->key);
  }
  if (v->type >= META_TYPES) return REFUSE(c, "%s: key \"%.100s\" has the unknown type %u", c->file, v->key, v->type);
  if (v->type == STRING) return take_strings(c, v);
  if (v->count > (c->bytes - c->at) / meta_bytes[v->type])
    return REFUSE(c, "%s: key \"%.100s\" has %llu elements, more than the file can hold", c->file, v->key,
                  (unsigned long long)v->count);
  return take(c, (size_t)v->count * meta_bytes[v->type], &v->data);
}

static int by_key(const void *a, const void *b) {
  return strcmp(((const value *)a)->key, ((const value *)b)->key);
}

static kf_status read_metadata(cursor *c, kf_gguf *g, uint64_t count) {
  enum { SMALLEST = 8 + 1 + 4 + 1 }; // a key of one byte and a value of one
  if (count > (c->bytes - c->at) / SMALLEST || count > INT32_MAX)
    return REFUSE(c, "%s: %llu metadata keys are more than the file can hold", c->file, (unsigned long long)count);
  KF_NEW(g->meta, count, c->e);
  for (; g->meta_count < (int)count; g->meta_count++) KF_TRY(take_value(c, &g->meta[g->meta_count]));
  qsort(g->meta, (size_t)count, sizeof *g->meta, by_key);
  for (int i = 1; i < g->meta_count; i++)
    if (strcmp(g->meta[i - 1].key, g->meta[i].key) == 0)
      return REFUSE(c, "%s: the key \"%.100s\" stands twice", c->file, g->meta[i].key);
  return KF_OK;
}

/* The entry of one tensor; its data is set once it is known where the data begin. */
static kf_status take_tensor(cursor *c, kf_view *out, uint64_t *offset) {
  uint32_t dims = 0, type = 0;
  int64_t count = 1;
  KF_TRY(take_name(c, "tensor", &out->name));
  KF_TRY(take_u32(c, &dims));
  if (dims > KF_MAX_DIMS)
    return REFUSE(c, "%s: tensor \"%.100s\" has %u dimensions, more than %d", c->file, out->name, dims, KF_MAX_DIMS);
  out->dims = (int)dims;
  for (int i = out->dims - 1; i >= 0; i--) {
    uint64_t size = 0;
    KF_TRY(take_u64(c, &size));
    if (size > INT64_MAX || __builtin_mul_overflow(count, (int64_t)size, &count))
      return REFUSE(c, "%s: tensor \"%.100s\" has a shape that overflows", c->file, out->name);
    out->shape[i] = (int64_t)size;
  }
  KF_TRY(take_u32(c, &type));
  KF_TRY(take_u64(c, offset));
  if (type >= GGML_TYPES) return REFUSE(c, "%s: tensor \"%.100s\" has the unknown type %u", c->file, out->name, type);
  if (ggml_types[type].dtype < 0)
    return REFUSE(c,
                  "%s: tensor \"%.100s\" is %s, a type that is not read (use F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, "
                  "Q5_K or Q6_K)",
                  c->file, out->name, ggml_types[type].name);
  out->dtype = (kf_dtype)ggml_types[type].dtype;
  int64_t row = dims ? out->shape[dims - 1] : 1;
  if (row % kf_dtype_block(out->dtype) != 0 || !kf_dtype_bytes(out->dtype, count, &out->bytes))
    return REFUSE(c, "%s: tensor \"%.100s\" has rows of %lld, no multiple of the %d that %s needs", c->file, out->name,
                  (long long)row, kf_dtype_block(out->dtype), ggml_types[type].name);
  return KF_OK;
}

static int by_data(const void *a, const void *b) {
  const kf_view *const *x = a, *const *y = b;
  if ((*x)->data != (*y)->data) return (*x)->data < (*y)->data ? -1 : 1;
  return (*x)->bytes < (*y)->bytes ? -1 : (*x)->bytes > (*y)->bytes;
}

static kf_status read_tensors(cursor *c, kf_gguf *g, uint64_t count, uint64_t alignment) {
  enum { SMALLEST = 8 + 1 + 4 + 4 + 8 }; // a name of one byte, no dimension
  if (count > (c->bytes - c->at) / SMALLEST || count > INT32_MAX)
    return REFUSE(c, "%s: %llu tensors are more than the file can hold", c->file, (unsigned long long)count);
  KF_NEW(g->view, count, c->e);
  KF_NEW(g->name, count, c->e);
  uint64_t *offset = kf_arena_alloc(c->arena, count, sizeof *offset, c->e);
  if (!offset) return KF_ERROR_MEMORY;
  for (uint64_t i = 0; i < count; i++) KF_TRY(take_tensor(c, &g->view[i], &offset[i]));
  size_t begin = (c->at + alignment - 1) / alignment * alignment;
  for (uint64_t i = 0; i < count; i++) {
    kf_view *v = &g->view[i];
    if (offset[i] % alignment != 0)
      return REFUSE(c, "%s: tensor \"%.100s\" stands at %llu, not a multiple of the alignment %llu", c->file, v->name,
                    (unsigned long long)offset[i], (unsigned long long)alignment);
    if (begin > c->bytes || offset[i] > c->bytes - begin || v->bytes > c->bytes - begin - offset[i])
      return REFUSE(c, "%s is truncated: tensor \"%.100s\" needs %zu bytes at %llu of the data, but the file holds %zu", c->file,
                    v->name, v->bytes, (unsigned long long)offset[i], begin > c->bytes ? 0 : c->bytes - begin);
    v->data = c->data + begin + offset[i];
    g->name[i] = v;
  }
  g->count = (int)count;
  qsort(g->name, (size_t)count, sizeof *g->name, by_data);
  const kf_view *last = NULL; // the one that holds bytes
  for (int i = 0; i < g->count; i++) {
    const kf_view *v = g->name[i];
    if (v->bytes == 0) continue;
    if (last && last->data + last->bytes > v->data)
      return REFUSE(c, "%s: tensor \"%.100s\" overlaps tensor \"%.100s\"", c->file, v->name, last->name);
    last = v;
  }
  kf_view_sort(g->name, g->count);
  const char *twice = kf_view_duplicate(g->name, g->count);
  return twice ? REFUSE(c, "%s: the tensor \"%.100s\" stands twice", c->file, twice) : KF_OK;
}

static kf_status check_version(cursor *c) {
  const uint8_t *magic = NULL;
  uint32_t version = 0;
  if (c->bytes < 4 || memcmp(c->data, "GGUF", 4) != 0) return REFUSE(c, "%s is not a GGUF file", c->file);
  KF_TRY(take(c, 4, &magic));
  KF_TRY(take_u32(c, &version));
  if (version == 2 || version == 3) return KF_OK;
  if (version != 0 && (version & 0xffff) == 0) return REFUSE(c, "%s is a big-endian GGUF, which is not read", c->file);
  return REFUSE(c, "%s is GGUF version %u; versions 2 and 3 are read", c->file, version);
}

static kf_status fill(kf_gguf *g, cursor *c) {
  uint64_t tensors = 0, keys = 0;
  int64_t alignment = 32, parts = 1;
  g->path = kf_arena_string(c->arena, c->file, strlen(c->file), c->e);
  if (!g->path) return KF_ERROR_MEMORY;
  KF_TRY(check_version(c));
  KF_TRY(take_u64(c, &tensors));
  KF_TRY(take_u64(c, &keys));
  KF_TRY(read_metadata(c, g, keys));
  KF_TRY(kf_gguf_int(g, "split.count", &parts, c->e));
  if (parts > 1)
    return REFUSE(c, "%s is one of %lld parts of a split GGUF; merge them first: llama-gguf-split --merge FIRST_PART OUT.gguf",
                  c->file, (long long)parts);
  KF_TRY(kf_gguf_int(g, "general.alignment", &alignment, c->e));
  if (alignment < 1 || alignment > 1 << 30 || (alignment & (alignment - 1)) != 0)
    return REFUSE(c, "%s: general.alignment is %lld, expected a power of two", c->file, (long long)alignment);
  return read_tensors(c, g, tensors, (uint64_t)alignment);
}

kf_status kf_gguf_parse(const char *name, const void *data, size_t bytes, kf_gguf **out, kf_error *e) {
  *out = NULL;
  kf_gguf *g;
  KF_NEW(g, 1, e);
  cursor c = {name, data, bytes, 0, &g->arena, e};
  kf_status s = fill(g, &c);
  if (s != KF_OK)
    kf_gguf_close(g);
  else
    *out = g;
  return s;
}

kf_status kf_gguf_open(const char *path, kf_gguf **out, kf_error *e) {
  *out = NULL;
  kf_map map;
  KF_TRY(kf_map_open(path, &map, e));
  kf_status s = kf_gguf_parse(path, map.data, map.bytes, out, e);
  if (s != KF_OK)
    kf_map_close(&map);
  else
    (*out)->map = map;
  return s;
}

void kf_gguf_close(kf_gguf *g) {
  if (!g) return;
  kf_arena_free(&g->arena);
  free(g->meta);
  free(g->view);
  free(g->name);
  kf_map_close(&g->map);
  free(g);
}

const char *kf_gguf_path(const kf_gguf *g) {
  return g->path;
}

int kf_gguf_count(const kf_gguf *g) {
  return g->count;
}

const kf_view *kf_gguf_at(const kf_gguf *g, int i) {
  return i >= 0 && i < g->count ? &g->view[i] : NULL;
}

const kf_view *kf_gguf_find(const kf_gguf *g, const char *name) {
  return kf_view_find(g->name, g->count, name);
}

/* ------------------------------------------------------------------------------------------------ metadata */

static const value *find(const kf_gguf *g, const char *key) {
  value wanted = {.key = key};
  return g->meta_count ? bsearch(&wanted, g->meta, (size_t)g->meta_count, sizeof wanted, by_key) : NULL;
}

/* Element i as an integer; false for floats, strings and what exceeds 63 bits. */
static bool as_int(const value *v, int64_t i, int64_t *out) {
  union {
    uint8_t u8;
    int8_t i8;
    uint16_t u16;
    int16_t i16;
    uint32_t u32;
    int32_t i32;
    uint64_t u64;
    int64_t i64;
  } x;
  if (v->type == STRING || v->type == F32 || v->type == F64) return false;
  memcpy(&x, v->data + (size_t)i * meta_bytes[v->type], meta_bytes[v->type]);
  switch (v->type) {
  case U8: *out = x.u8; break;
  case BOOLEAN: *out = x.u8 != 0; break;
  case I8: *out = x.i8; break;
  case U16: *out = x.u16; break;
  case I16: *out = x.i16; break;
  case U32: *out = x.u32; break;
  case I32: *out = x.i32; break;
  case I64: *out = x.i64; break;
  default: *out = x.i64; return x.u64 <= INT64_MAX;
  }
  return true;
}

static bool as_real(const value *v, int64_t i, double *out) {
  int64_t whole;
  if (v->type == F64) {
    memcpy(out, v->data + 8 * (size_t)i, 8);
  } else if (v->type == F32) {
    float f;
    memcpy(&f, v->data + 4 * (size_t)i, 4);
    *out = f;
  } else {
    if (!as_int(v, i, &whole)) return false;
    *out = (double)whole;
  }
  return true;
}

static const value *element(const kf_gguf *g, const char *key, int64_t i) {
  const value *v = find(g, key);
  return v && v->is_array && i >= 0 && (uint64_t)i < v->count ? v : NULL;
}

bool kf_gguf_has(const kf_gguf *g, const char *key) {
  return find(g, key) != NULL;
}

kf_status kf_gguf_int(const kf_gguf *g, const char *key, int64_t *out, kf_error *e) {
  const value *v = find(g, key);
  int64_t found;
  if (!v) return KF_OK;
  if (v->is_array || !as_int(v, 0, &found))
    return kf_fail(e, KF_ERROR_INPUT, "%s: the key \"%s\" is not an integer", g->path, key);
  *out = found;
  return KF_OK;
}

kf_status kf_gguf_real(const kf_gguf *g, const char *key, double *out, kf_error *e) {
  const value *v = find(g, key);
  double found;
  if (!v) return KF_OK;
  if (v->is_array || !as_real(v, 0, &found))
    return kf_fail(e, KF_ERROR_INPUT, "%s: the key \"%s\" is not a number", g->path, key);
  *out = found;
  return KF_OK;
}

kf_status kf_gguf_string(const kf_gguf *g, const char *key, const char **out, kf_error *e) {
  const value *v = find(g, key);
  if (!v) return KF_OK;
  if (v->is_array || v->type != STRING) return kf_fail(e, KF_ERROR_INPUT, "%s: the key \"%s\" is not a string", g->path, key);
  *out = v->text;
  return KF_OK;
}

int64_t kf_gguf_array(const kf_gguf *g, const char *key) {
  const value *v = find(g, key);
  return v && v->is_array ? (int64_t)v->count : 0;
}

const char *kf_gguf_array_string(const kf_gguf *g, const char *key, int64_t i, size_t *bytes) {
  const value *v = element(g, key, i);
  if (!v || v->type != STRING) return NULL;
  if (bytes) *bytes = v->start[i + 1] - v->start[i] - 1;
  return v->text + v->start[i];
}

bool kf_gguf_array_real(const kf_gguf *g, const char *key, int64_t i, double *out) {
  const value *v = element(g, key, i);
  return v && as_real(v, i, out);
}

bool kf_gguf_array_int(const kf_gguf *g, const char *key, int64_t i, int64_t *out) {
  const value *v = element(g, key, i);
  return v && as_int(v, i, out);
}
