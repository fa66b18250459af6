#include "convert/write.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static const char progress_name[] = "progress.json", lock_name[] = "lock";

struct kf_output {
  char dst[KF_PATH], partial[KF_PATH];
  int lock;
  kf_dtype dtype;
  int64_t shard_bytes;
  const json_t *fingerprint;
  json_t *shards;  /* [{"file", "bytes", "data", "tensors": [names]}] closed ones */
  json_t *records; /* one a finished unit */
  json_t *names;   /* tensors of the shard at work */
  int resumed;     /* units of an earlier run */
  kf_safetensors_writer *writer;
  bool published;
};

const char *kf_output_path(const kf_output *o) {
  return o->partial;
}
int kf_output_units(const kf_output *o) {
  return o->resumed;
}
const json_t *kf_output_records(const kf_output *o) {
  return o->records;
}

/* ---------------------------------------------------------------------------------------------- DST.partial */

/* A directory of ours holds the lock file, or nothing (just made). */
static kf_status check_ours(const char *partial, kf_error *e) {
  char path[KF_PATH];
  KF_TRY(kf_join(path, partial, lock_name, e));
  if (kf_is_file(path)) return KF_OK;
  DIR *d = opendir(partial);
  if (!d) return kf_fail_errno(e, "cannot open %s", partial);
  bool empty = true;
  for (struct dirent *f; (f = readdir(d));) empty = empty && (strcmp(f->d_name, ".") == 0 || strcmp(f->d_name, "..") == 0);
  closedir(d);
  return empty ? KF_OK : kf_fail(e, KF_ERROR_IO, "%s is there and is not an unfinished conversion; move it away", partial);
}

static kf_status take_lock(kf_output *o, kf_error *e) {
  char path[KF_PATH];
  struct stat held, there;
  KF_TRY(kf_join(path, o->partial, lock_name, e));
  o->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (o->lock < 0) return kf_fail_errno(e, "cannot write %s", path);
  /* The other writer may have finished, and moved the directory, between open and flock. */
  if (flock(o->lock, LOCK_EX | LOCK_NB) != 0 || fstat(o->lock, &held) != 0 || stat(path, &there) != 0 ||
      held.st_ino != there.st_ino) {
    close(o->lock);
    o->lock = -1;
    return kf_fail(e, KF_ERROR_IO, "another conversion is writing %s", o->partial);
  }
  return KF_OK;
}

static kf_status write_progress(const kf_output *o, kf_error *e) {
  char path[KF_PATH];
  KF_TRY(kf_join(path, o->partial, progress_name, e));
  json_t *p = json_pack("{s:O,s:O,s:O}", "fingerprint", o->fingerprint, "shards", o->shards, "records", o->records);
  if (!p) return kf_fail(e, KF_ERROR_MEMORY, "out of memory");
  kf_status s = kf_json_write(path, p, e);
  json_decref(p);
  return s;
}

/* Every shard that progress.json names must be there, whole. */
static bool shards_are_whole(const kf_output *o, const json_t *shards) {
  size_t i;
  json_t *shard;
  json_array_foreach(shards, i, shard) {
    char path[KF_PATH];
    struct stat st;
    const char *file = json_string_value(json_object_get(shard, "file"));
    if (!file || strchr(file, '/') || kf_join(path, o->partial, file, NULL) != KF_OK || stat(path, &st) != 0 ||
        st.st_size != (off_t)json_integer_value(json_object_get(shard, "bytes")) ||
        !json_is_array(json_object_get(shard, "tensors")))
      return false;
  }
  return json_is_array(shards);
}

static bool is_shard(const json_t *shards, const char *file) {
  size_t i;
  json_t *shard;
  json_array_foreach(shards, i, shard) if (strcmp(json_string_value(json_object_get(shard, "file")), file) == 0) return true;
  return false;
}

/* Removes what is neither ours to keep nor a finished shard: the rest of an earlier run. */
static kf_status sweep(const kf_output *o, kf_error *e) {
  DIR *d = opendir(o->partial);
  if (!d) return kf_fail_errno(e, "cannot open %s", o->partial);
  kf_status s = KF_OK;
  for (struct dirent *f; s == KF_OK && (f = readdir(d));) {
    char path[KF_PATH];
    if (strcmp(f->d_name, ".") == 0 || strcmp(f->d_name, "..") == 0 || strcmp(f->d_name, lock_name) == 0 ||
        is_shard(o->shards, f->d_name))
      continue;
    s = kf_join(path, o->partial, f->d_name, e);
    if (s == KF_OK && unlink(path) != 0) s = kf_fail_errno(e, "cannot remove %s", path);
  }
  closedir(d);
  return s;
}

/* Takes over what an earlier run with the same fingerprint finished; anything else in the directory goes. */
static kf_status resume(kf_output *o, const kf_hooks *hooks, kf_error *e) {
  char path[KF_PATH];
  json_t *progress = NULL;
  KF_TRY(kf_join(path, o->partial, progress_name, e));
  if (kf_is_file(path) && kf_json_read(path, &progress, NULL) == KF_OK &&
      json_equal(json_object_get(progress, "fingerprint"), o->fingerprint) &&
      shards_are_whole(o, json_object_get(progress, "shards")) && json_is_array(json_object_get(progress, "records"))) {
    json_decref(o->shards);
    json_decref(o->records);
    o->shards = json_incref(json_object_get(progress, "shards"));
    o->records = json_incref(json_object_get(progress, "records"));
    o->resumed = (int)json_array_size(o->records);
    if (o->resumed) kf_note(hooks, "going on with %s: %zu shards are done", o->partial, json_array_size(o->shards));
  } else if (kf_is_file(path)) {
    kf_note(hooks, "%s is of another conversion, or incomplete, and is written anew", o->partial);
  }
  json_decref(progress);
  KF_TRY(sweep(o, e));
  return write_progress(o, e);
}

kf_status kf_output_open(const char *dst, const json_t *fingerprint, kf_dtype dtype, int64_t shard_bytes, const kf_hooks *hooks,
                         kf_output **out, kf_error *e) {
  kf_output *o;
  *out = NULL;
  size_t n = strlen(dst);
  while (n > 1 && dst[n - 1] == '/') n--;
  if (n == 0 || n > KF_PATH - 16) return kf_fail(e, KF_ERROR_IO, "DST '%.80s' is not a path that can be written", dst);
  KF_NEW(o, 1, e);
  o->lock = -1;
  o->dtype = dtype;
  o->shard_bytes = shard_bytes ? shard_bytes : INT64_C(1) << 30;
  o->fingerprint = fingerprint;
  o->shards = json_array();
  o->records = json_array();
  o->names = json_array();
  snprintf(o->dst, sizeof o->dst, "%.*s", (int)n, dst);
  snprintf(o->partial, sizeof o->partial, "%.*s.partial", (int)n, dst);
  kf_status s = o->shards && o->records && o->names ? KF_OK : kf_fail(e, KF_ERROR_MEMORY, "out of memory");
  if (s == KF_OK && kf_exists(o->dst)) s = kf_fail(e, KF_ERROR_IO, "%s exists", o->dst);
  if (s == KF_OK) s = kf_make_directory(o->partial, e);
  if (s == KF_OK) s = check_ours(o->partial, e);
  if (s == KF_OK) s = take_lock(o, e);
  if (s == KF_OK) s = resume(o, hooks, e);
  if (s != KF_OK)
    kf_output_close(o, o->lock < 0 || o->resumed > 0);
  else
    *out = o;
  return s;
}

/* ---------------------------------------------------------------------------------------------- tensors */

static void shard_name(char name[64], size_t number, size_t of) {
  if (of == 0)
    snprintf(name, 64, "model-%05zu.safetensors", number);
  else if (of == 1)
    snprintf(name, 64, "model.safetensors");
  else
    snprintf(name, 64, "model-%05zu-of-%05zu.safetensors", number, of);
}

static kf_status open_shard(kf_output *o, kf_error *e) {
  char name[64], path[KF_PATH];
  if (o->writer) return KF_OK;
  shard_name(name, json_array_size(o->shards) + 1, 0);
  KF_TRY(kf_join(path, o->partial, name, e));
  return kf_safetensors_create(path, &o->writer, e);
}

static kf_status close_shard(kf_output *o, kf_error *e) {
  char name[64], path[KF_PATH];
  struct stat st;
  if (!o->writer) return KF_OK;
  kf_safetensors_writer *w = o->writer;
  json_int_t data = kf_safetensors_written(w);
  o->writer = NULL;
  KF_TRY(kf_safetensors_finish(w, e));
  shard_name(name, json_array_size(o->shards) + 1, 0);
  KF_TRY(kf_join(path, o->partial, name, e));
  if (stat(path, &st) != 0) return kf_fail_errno(e, "cannot read %s", path);
  json_t *shard =
      json_pack("{s:s,s:I,s:I,s:O}", "file", name, "bytes", (json_int_t)st.st_size, "data", data, "tensors", o->names);
  if (!shard || json_array_append_new(o->shards, shard) != 0) return kf_fail(e, KF_ERROR_MEMORY, "out of memory");
  json_decref(o->names);
  if (!(o->names = json_array())) return kf_fail(e, KF_ERROR_MEMORY, "out of memory");
  return KF_OK;
}

kf_status kf_output_add(kf_output *o, const char *name, int dims, const int64_t *shape, const float *data, kf_error *e) {
  int64_t n = shape[0] * (dims == 2 ? shape[1] : 1);
  for (int64_t i = 0; o->dtype == KF_F16 && i < n; i++)
    if (fabsf(data[i]) >= 65520 && isfinite(data[i]))
      return kf_fail(e, KF_ERROR_INPUT, "tensor %s holds %g, which f16 cannot; write bf16 or f32", name, (double)data[i]);
  KF_TRY(open_shard(o, e));
  if (json_array_append_new(o->names, json_string(name)) != 0) return kf_fail(e, KF_ERROR_MEMORY, "out of memory");
  return kf_safetensors_add(o->writer, name, o->dtype, dims, shape, data, e);
}

kf_status kf_output_copy(kf_output *o, const kf_weights *w, const char *name, int64_t rows, int64_t columns, kf_error *e) {
  const kf_view *v = kf_source_gguf(w->source) ? NULL : kf_source_find(w->source, name);
  if (v && v->dtype == o->dtype) { /* as it is, from the map */
    KF_TRY(open_shard(o, e));
    if (json_array_append_new(o->names, json_string(name)) != 0) return kf_fail(e, KF_ERROR_MEMORY, "out of memory");
    kf_status s = kf_safetensors_add_raw(o->writer, v, e);
    kf_source_done(w->source, v);
    return s;
  }
  float *data;
  KF_TRY(kf_weights_read(w, name, rows, columns, &data, e));
  int dims = v ? v->dims : columns == 1 ? 1 : 2;
  kf_status s = kf_output_add(o, name, dims, (const int64_t[]){rows, columns}, data, e);
  free(data);
  return s;
}

kf_status kf_output_end_unit(kf_output *o, json_t *record, kf_error *e) {
  if (json_array_append_new(o->records, record ? json_incref(record) : json_null()) != 0)
    return kf_fail(e, KF_ERROR_MEMORY, "out of memory");
  if (!o->writer || kf_safetensors_written(o->writer) < o->shard_bytes) return KF_OK;
  KF_TRY(close_shard(o, e));
  return write_progress(o, e);
}

/* ---------------------------------------------------------------------------------------------- the end */

static kf_status write_index(const kf_output *o, kf_error *e) {
  char path[KF_PATH], name[64];
  json_t *map = json_object(), *shard, *tensor;
  size_t i, j, count = json_array_size(o->shards);
  json_int_t total = 0;
  json_array_foreach(o->shards, i, shard) {
    shard_name(name, i + 1, count);
    total += json_integer_value(json_object_get(shard, "data"));
    json_array_foreach(json_object_get(shard, "tensors"), j, tensor)
        json_object_set_new(map, json_string_value(tensor), json_string(name));
  }
  json_t *index = json_pack("{s:{s:I},s:o}", "metadata", "total_size", total, "weight_map", map);
  if (!index) return kf_fail(e, KF_ERROR_MEMORY, "out of memory");
  kf_status s = kf_join(path, o->partial, "model.safetensors.index.json", e);
  if (s == KF_OK) s = kf_json_write(path, index, e);
  json_decref(index);
  return s;
}

kf_status kf_output_seal(kf_output *o, kf_error *e) {
  char to[64], a[KF_PATH], b[KF_PATH];
  size_t i;
  json_t *shard;
  KF_TRY(close_shard(o, e));
  size_t count = json_array_size(o->shards);
  json_array_foreach(o->shards, i, shard) {
    shard_name(to, i + 1, count);
    KF_TRY(kf_join(a, o->partial, json_string_value(json_object_get(shard, "file")), e));
    KF_TRY(kf_join(b, o->partial, to, e));
    if (rename(a, b) != 0) return kf_fail_errno(e, "cannot rename %s", a);
    json_object_set_new(shard, "file", json_string(to));
  }
  KF_TRY(write_progress(o, e));
  return count > 1 ? write_index(o, e) : KF_OK;
}

kf_status kf_output_publish(kf_output *o, kf_error *e) {
  char path[KF_PATH];
  if (kf_exists(o->dst)) return kf_fail(e, KF_ERROR_IO, "%s exists", o->dst);
  for (int i = 0; i < 2; i++) { /* the lock last: without it the directory is no longer known as ours */
    KF_TRY(kf_join(path, o->partial, i ? lock_name : progress_name, e));
    if (unlink(path) != 0) return kf_fail_errno(e, "cannot remove %s", path);
  }
  KF_TRY(kf_sync_directory(o->partial, e));
  if (rename(o->partial, o->dst) != 0) return kf_fail_errno(e, "cannot rename %s to %s", o->partial, o->dst);
  o->published = true;
  snprintf(path, sizeof path, "%s", o->dst);
  char *slash = strrchr(path, '/');
  if (slash) slash[slash == path] = 0;
  return kf_sync_directory(slash ? path : ".", e);
}

void kf_output_close(kf_output *o, bool keep) {
  if (!o) return;
  kf_safetensors_abandon(o->writer);
  if (!o->published && !keep) kf_remove_tree(o->partial, NULL);
  if (o->lock >= 0) close(o->lock);
  json_decref(o->shards);
  json_decref(o->records);
  json_decref(o->names);
  free(o);
}
