/* Files: read-only maps, whole reads, atomic writes, trees; and where a MODEL is. */
#ifndef KF_BASE_FILE_H
#define KF_BASE_FILE_H

#include "base/memory.h"

typedef struct kf_map {
  const uint8_t *data; /* NULL when the file is empty */
  size_t bytes;
} kf_map;
kf_status kf_map_open(const char *path, kf_map *out, kf_error *e);
void kf_map_close(kf_map *m);
/* Tells the system that a part of the map will not be read again soon (keeps resident memory small). */
void kf_map_done(const kf_map *m, size_t offset, size_t bytes);

bool kf_is_file(const char *path);
bool kf_is_directory(const char *path);
bool kf_exists(const char *path); /* anything at all, a dangling link too */

/* A whole file, NUL-terminated (data freed with kf_text_free); refused above max_bytes. */
kf_status kf_read_file(const char *path, size_t max_bytes, kf_text *out, kf_error *e);
/* Writes path.tmp, syncs, renames: path has either its old or its new content. */
kf_status kf_write_file(const char *path, const void *data, size_t bytes, kf_error *e);

/* The same in pieces: written to path.tmp, put in place by kf_replace_end when s is KF_OK, else removed. */
enum { KF_PATH = 4096 };
typedef struct kf_replacement {
  char path[KF_PATH], temporary[KF_PATH];
  int fd;
} kf_replacement;
kf_status kf_replace_begin(const char *path, kf_replacement *r, kf_error *e);
kf_status kf_replace_add(kf_replacement *r, const void *data, size_t bytes, kf_error *e);
kf_status kf_replace_end(kf_replacement *r, kf_status s, kf_error *e); /* returns s, or what putting in place came to */

kf_status kf_copy_file(const char *from, const char *to, kf_error *e);
kf_status kf_make_directory(const char *path, kf_error *e); /* fine when it is one already */
kf_status kf_remove_tree(const char *path, kf_error *e);    /* fine when it is not there */
kf_status kf_sync_directory(const char *path, kf_error *e);

/* "dir/name" in a buffer of kf_path size; an error when it does not fit. */
kf_status kf_join(char out[KF_PATH], const char *directory, const char *name, kf_error *e);

/* Resolves MODEL: an existing directory or .gguf file, else "org/name[@revision]" in the local Hugging Face cache
 * (HF_HUB_CACHE, HF_HOME/hub, XDG_CACHE_HOME/huggingface/hub, ~/.cache/huggingface/hub). A cached repository that holds
 * no config.json but exactly one .gguf file resolves to that file. Errors: not there, and how to get it. */
kf_status kf_locate(const char *model, char out[KF_PATH], kf_error *e);

#endif
