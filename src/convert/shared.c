#include "convert/shared.h"

#include <inttypes.h>
#include <unistd.h>

#include "base/hash.h"

static uint64_t key_of(const kf_plan *p, const int32_t *ids, int64_t count, int64_t number) {
  int64_t numbers[] = {count, number, (int64_t)p->o->compute, p->o->threads};
  uint64_t key = kf_hash(kf_hash(p->source_hash, KF_VERSION, sizeof KF_VERSION), numbers, sizeof numbers);
  return ids ? kf_hash(key, ids, (size_t)count * sizeof *ids) : key;
}

kf_status kf_shared_open(const kf_plan *p, const char *kind, const int32_t *ids, int64_t count, int64_t number, kf_shared *out,
                         kf_error *e) {
  char name[80];
  *out = (kf_shared){0};
  if (p->o->share) {
    snprintf(name, sizeof name, "%.30s-%016" PRIx64, kind, key_of(p, ids, count, number));
    KF_TRY(kf_make_directory(p->o->share, e));
    KF_TRY(kf_join(out->path, p->o->share, name, e));
    out->file = fopen(out->path, "rb");
    if ((out->complete = out->file)) return KF_OK;
  }
  snprintf(name, sizeof name, "%.30s-%ld.partial", kind, (long)getpid());
  KF_TRY(kf_join(out->where, p->o->share ? p->o->share : p->scratch, name, e));
  if ((out->file = fopen(out->where, "w+b"))) return KF_OK;
  kf_status s = kf_fail_errno(e, "%s: cannot be written", out->where);
  *out = (kf_shared){0};
  return s;
}

kf_status kf_shared_move(kf_shared *s, void *data, size_t bytes, kf_error *e) {
  if ((s->complete ? fread(data, 1, bytes, s->file) : fwrite(data, 1, bytes, s->file)) == bytes) return KF_OK;
  if (s->complete && feof(s->file)) return kf_fail(e, KF_ERROR_INPUT, "%s: the file ends too early; remove it", s->path);
  return kf_fail_errno(e, "%s: cannot %s the statistics", s->complete ? s->path : s->where, s->complete ? "read" : "write");
}

kf_status kf_shared_complete(kf_shared *s, kf_error *e) {
  if (!s->complete) {
    if (fflush(s->file) || (*s->path && rename(s->where, s->path))) return kf_fail_errno(e, "%s: cannot be written", s->where);
    s->complete = true;
  }
  rewind(s->file);
  return KF_OK;
}

void kf_shared_close(kf_shared *s) {
  if (s->file) fclose(s->file);
  if (*s->where && !(s->complete && *s->path)) unlink(s->where);
  *s = (kf_shared){0};
}
