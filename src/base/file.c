#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Opens a regular file for reading and gives its size. */
static kf_status open_regular(const char *path, int *fd, size_t *bytes, kf_error *e) {
  *fd = open(path, O_RDONLY | O_CLOEXEC);
  if (*fd < 0) return kf_fail_errno(e, "cannot open %s", path);
  struct stat st;
  kf_status s = KF_OK;
  if (fstat(*fd, &st) != 0)
    s = kf_fail_errno(e, "cannot read %s", path);
  else if (!S_ISREG(st.st_mode))
    s = kf_fail(e, KF_ERROR_INPUT, "%s is not a regular file", path);
  if (s != KF_OK)
    close(*fd);
  else
    *bytes = (size_t)st.st_size;
  return s;
}

kf_status kf_map_open(const char *path, kf_map *out, kf_error *e) {
  *out = (kf_map){0};
  int fd;
  size_t bytes = 0;
  KF_TRY(open_regular(path, &fd, &bytes, e));
  if (bytes) {
    void *p = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED) {
      kf_fail_errno(e, "cannot map %s", path);
      close(fd);
      return KF_ERROR_IO;
    }
    *out = (kf_map){p, bytes};
  }
  close(fd);
  return KF_OK;
}

void kf_map_close(kf_map *m) {
  if (m && m->data) munmap((void *)m->data, m->bytes);
  if (m) *m = (kf_map){0};
}

void kf_map_done(const kf_map *m, size_t offset, size_t bytes) {
  if (!m->data || offset > m->bytes || bytes > m->bytes - offset) return;
  uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), start = (uintptr_t)m->data + offset;
  // Only whole pages inside the range: a neighbour may be in use on the rest.
  uintptr_t first = (start + page - 1) / page * page, end = (start + bytes) / page * page;
  if (end > first) madvise((void *)(m->data + (first - (uintptr_t)m->data)), end - first, MADV_DONTNEED);
}

bool kf_is_file(const char *path) {
  struct stat st;
  return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

bool kf_is_directory(const char *path) {
  struct stat st;
  return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

bool kf_exists(const char *path) {
  struct stat st;
  return lstat(path, &st) == 0;
}

static kf_status read_all(const char *path, int fd, char *to, size_t bytes, kf_error *e) {
  for (size_t done = 0; done < bytes;) {
    ssize_t n = read(fd, to + done, bytes - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return kf_fail_errno(e, "cannot read %s", path);
    if (n == 0) return kf_fail(e, KF_ERROR_INPUT, "%s ends after %zu of its %zu bytes", path, done, bytes);
    done += (size_t)n;
  }
  return KF_OK;
}

kf_status kf_read_file(const char *path, size_t max_bytes, kf_text *out, kf_error *e) {
  *out = (kf_text){0};
  int fd;
  size_t bytes = 0;
  KF_TRY(open_regular(path, &fd, &bytes, e));
  kf_status s = KF_OK;
  char *data = NULL;
  if (bytes > max_bytes)
    s = kf_fail(e, KF_ERROR_INPUT, "%s has %zu bytes, more than the %zu that are read", path, bytes, max_bytes);
  else if (!(data = kf_alloc(bytes + 1, 1, e)))
    s = KF_ERROR_MEMORY;
  else
    s = read_all(path, fd, data, bytes, e);
  close(fd);
  if (s != KF_OK)
    free(data);
  else
    *out = (kf_text){data, bytes};
  return s;
}

kf_status kf_replace_begin(const char *path, kf_replacement *r, kf_error *e) {
  snprintf(r->path, sizeof r->path, "%s", path);
  if (snprintf(r->temporary, sizeof r->temporary, "%s.tmp", path) >= (int)sizeof r->temporary)
    return kf_fail(e, KF_ERROR_INPUT, "a path of %zu bytes is too long", strlen(path));
  r->fd = open(r->temporary, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  return r->fd < 0 ? kf_fail_errno(e, "cannot create %s", r->temporary) : KF_OK;
}

kf_status kf_replace_add(kf_replacement *r, const void *data, size_t bytes, kf_error *e) {
  const char *p = data;
  while (bytes) {
    ssize_t n = write(r->fd, p, bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return kf_fail_errno(e, "cannot write %s", r->path);
    p += n;
    bytes -= (size_t)n;
  }
  return KF_OK;
}

kf_status kf_replace_end(kf_replacement *r, kf_status s, kf_error *e) {
  if (s == KF_OK && fsync(r->fd) != 0) s = kf_fail_errno(e, "cannot write %s", r->path);
  if (close(r->fd) != 0 && s == KF_OK) s = kf_fail_errno(e, "cannot write %s", r->path);
  if (s == KF_OK && rename(r->temporary, r->path) != 0) s = kf_fail_errno(e, "cannot write %s", r->path);
  if (s != KF_OK) {
    unlink(r->temporary);
    return s;
  }
  char directory[KF_PATH];
  snprintf(directory, sizeof directory, "%s", r->path);
  char *slash = strrchr(directory, '/');
  if (!slash) return kf_sync_directory(".", e);
  slash[slash == directory] = 0;
  return kf_sync_directory(directory, e);
}

kf_status kf_write_file(const char *path, const void *data, size_t bytes, kf_error *e) {
  kf_replacement r;
  KF_TRY(kf_replace_begin(path, &r, e));
  return kf_replace_end(&r, kf_replace_add(&r, data, bytes, e), e);
}

kf_status kf_copy_file(const char *from, const char *to, kf_error *e) {
  enum { CHUNK = 1 << 16 };
  char chunk[CHUNK];
  int fd;
  size_t bytes = 0;
  KF_TRY(open_regular(from, &fd, &bytes, e));
  kf_replacement r;
  kf_status s = kf_replace_begin(to, &r, e);
  if (s == KF_OK) {
    for (size_t done = 0; s == KF_OK && done < bytes; done += CHUNK) {
      size_t n = bytes - done < CHUNK ? bytes - done : CHUNK;
      s = read_all(from, fd, chunk, n, e);
      if (s == KF_OK) s = kf_replace_add(&r, chunk, n, e);
    }
    s = kf_replace_end(&r, s, e);
  }
  close(fd);
  return s;
}

kf_status kf_make_directory(const char *path, kf_error *e) {
  if (mkdir(path, 0777) == 0) return KF_OK;
  int why = errno;
  if (why == EEXIST && kf_is_directory(path)) return KF_OK;
  errno = why;
  return kf_fail_errno(e, "cannot create the directory %s", path);
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at) {
  (void)st, (void)kind, (void)at;
  return remove(path);
}

kf_status kf_remove_tree(const char *path, kf_error *e) {
  if (!kf_exists(path)) return KF_OK;
  if (nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS) != 0) return kf_fail_errno(e, "cannot remove %s", path);
  return KF_OK;
}

kf_status kf_sync_directory(const char *path, kf_error *e) {
  int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return kf_fail_errno(e, "cannot open the directory %s", path);
  // Some file systems cannot sync a directory and say EINVAL; there is nothing to lose on them.
  kf_status s = fsync(fd) != 0 && errno != EINVAL ? kf_fail_errno(e, "cannot write the directory %s", path) : KF_OK;
  close(fd);
  return s;
}

kf_status kf_join(char out[KF_PATH], const char *directory, const char *name, kf_error *e) {
  size_t n = strlen(directory);
  const char *slash = n && directory[n - 1] == '/' ? "" : "/";
  if (snprintf(out, KF_PATH, "%s%s%s", directory, slash, name) >= KF_PATH)
    return kf_fail(e, KF_ERROR_INPUT, "the path of %.100s in a directory is longer than %d bytes", name, KF_PATH - 1);
  return KF_OK;
}
