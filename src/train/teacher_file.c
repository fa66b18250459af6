#include "train/teacher_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { HEAD = 4096, FIRST_SLOTS = 1 << 12 }; /* HEAD: bytes, the JSON that says what it was made from, filled up with spaces */

/* In front of a sequence's ids, rest, id and log_p. */
typedef struct record {
  uint64_t hash;
  int64_t count;
} record;

typedef struct slot {
  uint64_t hash;
  size_t at; /* of the record; 0: free */
} slot;

struct kf_teacher_file {
  char path[KF_PATH];
  int fd, top;
  kf_map map;
  size_t end; /* bytes that are indexed */
  slot *slot; /* [slots] open addressing */
  size_t slots, used;
};

static uint64_t hash_of(const int32_t *ids, int64_t count) {
  uint64_t h = 0xcbf29ce484222325u;
  for (int64_t i = 0; i < count; i++) h = (h ^ (uint32_t)ids[i]) * 0x100000001b3u, h ^= h >> 29;
  return h;
}

static size_t bytes_of(const kf_teacher_file *f, int64_t count) {
  return sizeof(record) + (size_t)count * 8 * ((size_t)f->top + 1);
}

/* ---------------------------------------------------------------------------------------------- index */

static void put(kf_teacher_file *f, uint64_t hash, size_t at) {
  size_t i = hash & (f->slots - 1);
  while (f->slot[i].at) i = (i + 1) & (f->slots - 1);
  f->slot[i] = (slot){hash, at};
  f->used++;
}

static kf_status grow(kf_teacher_file *f, kf_error *e) {
  slot *old = f->slot;
  size_t count = f->slots;
  if (2 * (f->used + 1) <= f->slots) return KF_OK;
  f->slot = kf_alloc(count ? 2 * count : FIRST_SLOTS, sizeof *f->slot, e);
  if (!f->slot) {
    f->slot = old;
    return KF_ERROR_MEMORY;
  }
  f->slots = count ? 2 * count : FIRST_SLOTS;
  f->used = 0;
  for (size_t i = 0; i < count; i++)
    if (old[i].at) put(f, old[i].hash, old[i].at);
  free(old);
  return KF_OK;
}

static const record *record_at(const kf_teacher_file *f, size_t at) {
  return (const record *)(const void *)(f->map.data + at);
}

bool kf_teacher_file_find(const kf_teacher_file *f, const int32_t *ids, int64_t count, kf_predictions *out) {
  uint64_t hash = hash_of(ids, count);
  for (size_t i = hash & (f->slots - 1); f->slot[i].at; i = (i + 1) & (f->slots - 1)) {
    const record *r = record_at(f, f->slot[i].at);
    const int32_t *kept = (const int32_t *)(r + 1);
    if (f->slot[i].hash != hash || r->count != count || memcmp(kept, ids, (size_t)count * sizeof *ids) != 0) continue;
    out->rest = (const float *)(kept + count);
    out->id = kept + 2 * count;
    out->log_p = (const float *)(out->id + count * f->top);
    return true;
  }
  return false;
}

/* Indexes what was added since; the caller holds the lock. What is not whole was left by a process that died. */
static kf_status catch_up(kf_teacher_file *f, kf_error *e) {
  struct stat st;
  if (fstat(f->fd, &st) != 0) return kf_fail_errno(e, "cannot read %s", f->path);
  if ((size_t)st.st_size > f->map.bytes) {
    kf_map_close(&f->map);
    KF_TRY(kf_map_open(f->path, &f->map, e));
  }
  size_t size = f->map.bytes < (size_t)st.st_size ? f->map.bytes : (size_t)st.st_size;
  while (size - f->end >= sizeof(record)) {
    const record *r = record_at(f, f->end);
    int64_t most = (int64_t)((size - f->end) / (8 * ((size_t)f->top + 1)));
    if (r->count > most || (r->count > 0 && bytes_of(f, r->count) > size - f->end)) break;
    if (r->count < 1 || r->hash != hash_of((const int32_t *)(r + 1), r->count))
      return kf_fail(e, KF_ERROR_INPUT, "%s is damaged at byte %zu: remove it, it will be made anew", f->path, f->end);
    KF_TRY(grow(f, e));
    put(f, r->hash, f->end);
    f->end += bytes_of(f, r->count);
  }
  if (f->end < size && ftruncate(f->fd, (off_t)f->end) != 0) return kf_fail_errno(e, "cannot write %s", f->path);
  return lseek(f->fd, (off_t)f->end, SEEK_SET) < 0 ? kf_fail_errno(e, "cannot write %s", f->path) : KF_OK;
}

/* ---------------------------------------------------------------------------------------------- the file */

static kf_status write_all(kf_teacher_file *f, const void *data, size_t bytes, kf_error *e) {
  for (const char *p = data; bytes;) {
    ssize_t n = write(f->fd, p, bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return kf_fail_errno(e, "cannot write %s", f->path);
    p += n;
    bytes -= (size_t)n;
  }
  return KF_OK;
}

static kf_status locked(kf_teacher_file *f, kf_status (*work)(kf_teacher_file *f, const void *what, kf_error *e),
                        const void *what, kf_error *e) {
  if (flock(f->fd, LOCK_EX) != 0) return kf_fail_errno(e, "cannot lock %s", f->path);
  kf_status s = work(f, what, e);
  flock(f->fd, LOCK_UN);
  return s;
}

static kf_status begin_file(kf_teacher_file *f, const json_t *made_from, kf_error *e) {
  char head[HEAD];
  char *text = json_dumps(made_from, JSON_COMPACT);
  memset(head, ' ', sizeof head);
  head[HEAD - 1] = '\n';
  if (!text || strlen(text) >= HEAD) {
    free(text);
    return kf_fail(e, KF_ERROR_INPUT, "the teacher's path is too long for %s", f->path);
  }
  memcpy(head, text, strlen(text));
  free(text);
  return write_all(f, head, sizeof head, e);
}

/* The first key that differs, by name. */
static kf_status same_origin(const kf_teacher_file *f, const json_t *made_from, kf_error *e) {
  json_t *before, *value;
  const char *key;
  kf_status s = kf_json_parse(f->path, (const char *)f->map.data, HEAD, &before, e);
  if (s != KF_OK) return s;
  json_object_foreach((json_t *)(uintptr_t)made_from, key, value) {
    const json_t *old = json_object_get(before, key);
    if (s != KF_OK || json_equal(value, old)) continue;
    char *was = old ? json_dumps(old, JSON_ENCODE_ANY) : NULL, *is = json_dumps(value, JSON_ENCODE_ANY);
    s = kf_fail(e, KF_ERROR_INPUT, "%s holds other predictions: %s was %.150s, not %.150s; give another directory or remove it",
                f->path, key, was ? was : "absent", is ? is : "?");
    free(was), free(is);
  }
  json_decref(before);
  return s;
}

static kf_status start(kf_teacher_file *f, const void *made_from, kf_error *e) {
  struct stat st;
  if (fstat(f->fd, &st) != 0) return kf_fail_errno(e, "cannot read %s", f->path);
  if (st.st_size == 0) KF_TRY(begin_file(f, made_from, e));
  KF_TRY(kf_map_open(f->path, &f->map, e));
  if (f->map.bytes < HEAD) return kf_fail(e, KF_ERROR_INPUT, "%s is damaged at byte 0: remove it, it will be made anew", f->path);
  KF_TRY(same_origin(f, made_from, e));
  f->end = HEAD;
  KF_TRY(grow(f, e));
  return catch_up(f, e);
}

kf_status kf_teacher_file_open(const char *directory, const json_t *made_from, int top, kf_teacher_file **out, kf_error *e) {
  kf_teacher_file *f;
  KF_TRY(kf_make_directory(directory, e));
  KF_NEW(f, 1, e);
  f->top = top;
  kf_status s = kf_join(f->path, directory, "teacher.predictions", e);
  f->fd = s == KF_OK ? open(f->path, O_RDWR | O_CREAT | O_CLOEXEC, 0666) : -1;
  if (s == KF_OK && f->fd < 0) s = kf_fail_errno(e, "cannot create %s", f->path);
  if (s == KF_OK) s = locked(f, start, made_from, e);
  if (s == KF_OK)
    *out = f;
  else
    kf_teacher_file_close(f);
  return s;
}

void kf_teacher_file_close(kf_teacher_file *f) {
  if (!f) return;
  if (f->fd >= 0) close(f->fd);
  kf_map_close(&f->map);
  free(f->slot);
  free(f);
}

const char *kf_teacher_file_path(const kf_teacher_file *f) {
  return f->path;
}

typedef struct sequence {
  const int32_t *ids;
  int64_t count;
  const kf_predictions *predictions;
} sequence;

static kf_status append(kf_teacher_file *f, const void *what, kf_error *e) {
  const sequence *q = what;
  const kf_predictions *p = q->predictions;
  const record head = {hash_of(q->ids, q->count), q->count};
  size_t row = (size_t)q->count * 4, list = row * (size_t)f->top;
  kf_predictions other;
  KF_TRY(catch_up(f, e));
  if (kf_teacher_file_find(f, q->ids, q->count, &other)) return KF_OK; /* another process was faster */
  KF_TRY(write_all(f, &head, sizeof head, e));
  KF_TRY(write_all(f, q->ids, row, e));
  KF_TRY(write_all(f, p->rest, row, e));
  KF_TRY(write_all(f, p->id, list, e));
  KF_TRY(write_all(f, p->log_p, list, e));
  return catch_up(f, e);
}

kf_status kf_teacher_file_add(kf_teacher_file *f, const int32_t *ids, int64_t count, const kf_predictions *p, kf_error *e) {
  return locked(f, append, &(sequence){ids, count, p}, e);
}
