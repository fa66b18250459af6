#include "tensor/source.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"

typedef struct {
  const char *path;
  kf_safetensors *file;
} shard;

struct kf_source {
  kf_arena arena;
  const char *path;
  kf_gguf *gguf;
  shard *shards; // [shard_count]
  int shard_count;
  const kf_view **view; // [count] in the files' order
  const kf_view **name; // [count] sorted
  int count;
};

static kf_status open_shard(kf_source *s, const char *name, kf_error *e) {
  char path[KF_PATH];
  KF_TRY(kf_join(path, s->path, name, e));
  shard *one = &s->shards[s->shard_count];
  one->path = kf_arena_string(&s->arena, path, strlen(path), e);
  if (!one->path) return KF_ERROR_MEMORY;
  KF_TRY(kf_safetensors_open(one->path, &one->file, e));
  s->shard_count++;
  return KF_OK;
}

/* A shard is a plain file name beside the index: nothing outside the directory is opened. */
static bool is_file_name(const char *name) {
  return name && *name && !strchr(name, '/') && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

/* Opens every shard that weight_map (tensor: file) names, once, and checks that each tensor is where it says.
 * opened: file -> its number. */
static kf_status open_mapped(kf_source *s, const char *index, const json_t *map, json_t *opened, kf_error *e) {
  const char *tensor;
  const json_t *value;
  KF_NEW(s->shards, json_object_size(map), e);
  json_object_foreach((json_t *)map, tensor, value) {
    const char *file = json_string_value(value);
    if (!is_file_name(file))
      return kf_fail(e, KF_ERROR_INPUT, "%s: tensor \"%.100s\" is mapped to no plain file name", index, tensor);
    if (!json_object_get(opened, file)) {
      json_object_set_new(opened, file, json_integer(s->shard_count));
      KF_TRY(open_shard(s, file, e));
    }
    const shard *one = &s->shards[json_integer_value(json_object_get(opened, file))];
    if (!kf_safetensors_find(one->file, tensor))
      return kf_fail(e, KF_ERROR_INPUT, "%s: tensor \"%.100s\" is not in %s", index, tensor, file);
  }
  return KF_OK;
}

static kf_status open_index(kf_source *s, const char *index, kf_error *e) {
  json_t *json = NULL, *opened = NULL;
  KF_TRY(kf_json_read(index, &json, e));
  const json_t *map = json_object_get(json, "weight_map");
  kf_status status;
  if (!json_is_object(map) || json_object_size(map) == 0)
    status = kf_fail(e, KF_ERROR_INPUT, "%s has no weight_map", index);
  else if (!(opened = json_object()))
    status = kf_fail(e, KF_ERROR_MEMORY, "out of memory while reading %s", index);
  else
    status = open_mapped(s, index, map, opened, e);
  json_decref(opened);
  json_decref(json);
  return status;
}

static kf_status open_directory(kf_source *s, kf_error *e) {
  char path[KF_PATH];
  KF_TRY(kf_join(path, s->path, "model.safetensors", e));
  if (kf_exists(path)) {
    KF_NEW(s->shards, 1, e);
    return open_shard(s, "model.safetensors", e);
  }
  KF_TRY(kf_join(path, s->path, "model.safetensors.index.json", e));
  if (kf_exists(path)) return open_index(s, path, e);
  return kf_fail(e, KF_ERROR_INPUT, "%s holds neither model.safetensors nor model.safetensors.index.json", s->path);
}

static kf_status index_views(kf_source *s, kf_error *e) {
  int64_t total = s->gguf ? kf_gguf_count(s->gguf) : 0;
  for (int i = 0; i < s->shard_count; i++) total += kf_safetensors_count(s->shards[i].file);
  if (total > INT32_MAX) return kf_fail(e, KF_ERROR_INPUT, "%s holds %lld tensors", s->path, (long long)total);
  KF_NEW(s->view, total, e);
  KF_NEW(s->name, total, e);
  for (int i = 0; s->gguf && i < kf_gguf_count(s->gguf); i++) s->view[s->count++] = kf_gguf_at(s->gguf, i);
  for (int i = 0; i < s->shard_count; i++)
    for (int k = 0; k < kf_safetensors_count(s->shards[i].file); k++)
      s->view[s->count++] = kf_safetensors_at(s->shards[i].file, k);
  if (s->count) memcpy(s->name, s->view, (size_t)s->count * sizeof *s->name);
  kf_view_sort(s->name, s->count);
  const char *twice = kf_view_duplicate(s->name, s->count);
  return twice ? kf_fail(e, KF_ERROR_INPUT, "%s: two shards hold the tensor \"%.100s\"", s->path, twice) : KF_OK;
}

kf_status kf_source_open(const char *path, kf_source **out, kf_error *e) {
  *out = NULL;
  kf_source *s;
  KF_NEW(s, 1, e);
  kf_status status = KF_OK;
  s->path = kf_arena_string(&s->arena, path, strlen(path), e);
  if (!s->path)
    status = KF_ERROR_MEMORY;
  else if (kf_is_directory(path))
    status = open_directory(s, e);
  else
    status = kf_gguf_open(path, &s->gguf, e);
  if (status == KF_OK) status = index_views(s, e);
  if (status != KF_OK)
    kf_source_close(s);
  else
    *out = s;
  return status;
}

void kf_source_close(kf_source *s) {
  if (!s) return;
  for (int i = 0; i < s->shard_count; i++) kf_safetensors_close(s->shards[i].file);
  kf_gguf_close(s->gguf);
  free(s->shards);
  free(s->view);
  free(s->name);
  kf_arena_free(&s->arena);
  free(s);
}

const char *kf_source_path(const kf_source *s) {
  return s->path;
}

const kf_gguf *kf_source_gguf(const kf_source *s) {
  return s->gguf;
}

int kf_source_count(const kf_source *s) {
  return s->count;
}

const kf_view *kf_source_at(const kf_source *s, int i) {
  return i >= 0 && i < s->count ? s->view[i] : NULL;
}

const kf_view *kf_source_find(const kf_source *s, const char *name) {
  return kf_view_find(s->name, s->count, name);
}

const char *kf_source_file(const kf_source *s, const kf_view *v) {
  for (int i = 0; i < s->shard_count; i++)
    if (kf_safetensors_find(s->shards[i].file, v->name) == v) return s->shards[i].path;
  return s->path;
}

kf_status kf_source_rows(const kf_source *s, const kf_view *v, int64_t row, int64_t rows, float *to, kf_error *e) {
  const char *file = kf_source_file(s, v);
  if (!kf_dtype_is_float(v->dtype))
    return kf_fail(e, KF_ERROR_INPUT, "%s: tensor \"%.100s\" is %s, expected numbers with a fraction", file, v->name,
                   kf_dtype_name(v->dtype));
  if (v->dims != 1 && v->dims != 2)
    return kf_fail(e, KF_ERROR_INPUT, "%s: tensor \"%.100s\" has %d dimensions, expected 1 or 2", file, v->name, v->dims);
  if (row < 0 || rows < 0 || row > v->shape[0] || rows > v->shape[0] - row)
    return kf_fail(e, KF_ERROR_INPUT, "%s: rows %lld to %lld of tensor \"%.100s\" were asked for, it has %lld", file,
                   (long long)row, (long long)row + rows, v->name, (long long)v->shape[0]);
  int64_t columns = v->dims == 2 ? v->shape[1] : 1;
  size_t skip = 0, bytes = 0;
  if (!kf_dtype_bytes(v->dtype, row * columns, &skip) || !kf_dtype_bytes(v->dtype, rows * columns, &bytes))
    return kf_fail(e, KF_ERROR_INPUT, "%s: tensor \"%.100s\" is %s and cannot be cut at %lld", file, v->name,
                   kf_dtype_name(v->dtype), (long long)row);
  kf_to_f32(v->dtype, v->data + skip, to, (size_t)(rows * columns));
  return KF_OK;
}

void kf_source_done(const kf_source *s, const kf_view *v) {
  (void)s;
  kf_map_done(&(kf_map){v->data, v->bytes}, 0, v->bytes);
}
