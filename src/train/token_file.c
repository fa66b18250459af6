#include "train/token_file.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "train/documents.h"

static uint64_t hash(uint64_t h, const void *data, size_t bytes) {
  for (size_t i = 0; i < bytes; i++) h = (h ^ ((const uint8_t *)data)[i]) * 0x100000001b3u; /* FNV-1a */
  return h;
}

static const uint64_t hash_start = 0xcbf29ce484222325u;

/* ---------------------------------------------------------------------------------------------- what it was made from */

static kf_status describe(const char *path, const kf_tokenizer *t, const kf_token_options *o, char **out, kf_error *e) {
  struct stat st;
  char real[PATH_MAX], tokenizer[32];
  if (stat(path, &st) != 0 || !realpath(path, real))
    return kf_fail(e, KF_ERROR_INPUT, "%s cannot be read: %s", path, strerror(errno));
  snprintf(tokenizer, sizeof tokenizer, "%016llx", (unsigned long long)kf_tokenizer_hash(t));
  json_t *j = json_pack("{s:i,s:s,s:I,s:I,s:I,s:s,s:b,s:i,s:b}", "format", 1, "path", real, "bytes", (json_int_t)st.st_size,
                        "seconds", (json_int_t)st.st_mtim.tv_sec, "nanoseconds", (json_int_t)st.st_mtim.tv_nsec, "tokenizer",
                        tokenizer, "pairs", o->pairs, "learnt", o->learnt, "skip", o->skip);
  *out = j ? json_dumps(j, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
  json_decref(j);
  return *out ? KF_OK : kf_fail(e, KF_ERROR_MEMORY, "out of memory");
}

static kf_status make_directories(char *path, kf_error *e) {
  for (char *p = path + 1; *p; p++) {
    if (*p != '/') continue;
    *p = 0;
    kf_status s = kf_make_directory(path, e);
    *p = '/';
    KF_TRY(s);
  }
  return kf_make_directory(path, e);
}

/* The file's name in the cache says what it was made from, so that runs with other data do not displace it. */
static kf_status cache_path(const kf_token_options *o, const char *made_from, char out[KF_PATH], kf_error *e) {
  char directory[KF_PATH], name[64];
  const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
  int n;
  if (o->cache)
    n = snprintf(directory, sizeof directory, "%s", o->cache);
  else if (cache && *cache)
    n = snprintf(directory, sizeof directory, "%s/kvfold/tokens", cache);
  else
    n = snprintf(directory, sizeof directory, "%s/.cache/kvfold/tokens", home ? home : ".");
  if (n >= (int)sizeof directory) return kf_fail(e, KF_ERROR_INPUT, "the path of the cache directory is too long");
  KF_TRY(make_directories(directory, e));
  snprintf(name, sizeof name, "%016llx.safetensors", (unsigned long long)hash(hash_start, made_from, strlen(made_from)));
  return kf_join(out, directory, name, e);
}

/* ---------------------------------------------------------------------------------------------- writing */

static kf_status add(kf_safetensors_writer *w, const char *name, kf_dtype dtype, size_t element, const void *data, size_t bytes,
                     kf_error *e) {
  kf_view v = {.name = name, .dtype = dtype, .dims = 1, .shape = {(int64_t)(bytes / element)}, .data = data, .bytes = bytes};
  return kf_safetensors_add_raw(w, &v, e);
}

static kf_status write_file(const char *path, const kf_documents *d, const char *made_from, kf_error *e) {
  kf_safetensors_writer *w;
  KF_TRY(kf_safetensors_create(path, &w, e));
  kf_status s = add(w, "end", KF_I64, 8, d->end.data, d->end.bytes, e);
  if (s == KF_OK) s = add(w, "ids", KF_I32, 4, d->ids.data, d->ids.bytes, e);
  if (s == KF_OK) s = add(w, "learnt", KF_U8, 1, d->learnt.data, d->learnt.bytes, e);
  if (s == KF_OK) s = add(w, "made_from", KF_U8, 1, made_from, strlen(made_from), e);
  if (s == KF_OK) return kf_safetensors_finish(w, e);
  kf_safetensors_abandon(w);
  return s;
}

static kf_status tokenise(const char *path, const kf_tokenizer *t, const kf_token_options *o, const char *to,
                          const char *made_from, kf_error *e) {
  kf_documents d = {.tokenizer = t, .options = o};
  int64_t skipped = 0;
  KF_TRY(kf_progress(o->hooks, "tokenising", 0, 1, e));
  kf_status s = kf_records_read(path, o->skip, kf_documents_add, &d, &skipped, e);
  if (s == KF_OK && d.end.bytes == 0) s = kf_fail(e, KF_ERROR_INPUT, "%s holds nothing to train on", path);
  if (s == KF_OK && skipped + d.skipped)
    kf_note(o->hooks, "%s: %lld records that cannot be used were skipped", path, (long long)(skipped + d.skipped));
  if (s == KF_OK) s = write_file(to, &d, made_from, e);
  kf_documents_free(&d);
  return s == KF_OK ? kf_progress(o->hooks, "tokenising", 1, 1, e) : s;
}

/* ---------------------------------------------------------------------------------------------- reading */

static const kf_view *view_of(const kf_safetensors *s, const char *name, kf_dtype dtype) {
  const kf_view *v = kf_safetensors_find(s, name);
  return v && v->dtype == dtype && v->dims == 1 && (uintptr_t)v->data % 8 == 0 ? v : NULL;
}

/* Ends must rise to the number of tokens. */
static bool read_views(kf_token_file *f, const char *made_from) {
  const kf_view *end = view_of(f->file, "end", KF_I64), *ids = view_of(f->file, "ids", KF_I32);
  const kf_view *learnt = kf_safetensors_find(f->file, "learnt"), *made = kf_safetensors_find(f->file, "made_from");
  if (!end || !ids || !learnt || !made || learnt->dtype != KF_U8 || learnt->bytes * 4 != ids->bytes) return false;
  if (made->bytes != strlen(made_from) || memcmp(made->data, made_from, made->bytes) != 0) return false;
  f->end = (const int64_t *)(const void *)end->data;
  f->ids = (const int32_t *)(const void *)ids->data;
  f->learnt = learnt->data;
  f->tokens = ids->shape[0];
  f->documents = end->shape[0];
  int64_t last = 0;
  for (int64_t i = 0; i < f->documents; i++) {
    if (f->end[i] < last) return false;
    last = f->end[i];
  }
  return f->documents > 0 && last == f->tokens;
}

/* False: there is no such file, or it is of something else. */
static bool read_file(const char *path, const char *made_from, kf_token_file *out) {
  *out = (kf_token_file){0};
  if (!kf_is_file(path) || kf_safetensors_open(path, &out->file, NULL) != KF_OK) return false;
  if (read_views(out, made_from)) return true;
  kf_token_file_close(out);
  return false;
}

void kf_token_file_close(kf_token_file *f) {
  kf_safetensors_close(f->file);
  *f = (kf_token_file){0};
}

kf_status kf_token_file_open(const char *path, const kf_tokenizer *t, const kf_token_options *o, kf_token_file *out,
                             kf_error *e) {
  char file[KF_PATH];
  char *made_from = NULL;
  KF_TRY(describe(path, t, o, &made_from, e));
  kf_status s = cache_path(o, made_from, file, e);
  if (s == KF_OK && !read_file(file, made_from, out)) {
    s = tokenise(path, t, o, file, made_from, e);
    if (s == KF_OK && !read_file(file, made_from, out)) s = kf_fail(e, KF_ERROR_IO, "%s cannot be read back", file);
  }
  free(made_from);
  return s;
}
