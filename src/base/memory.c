#include "base/memory.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void *kf_alloc_raw(size_t count, size_t size, kf_error *e) {
  size_t bytes;
  if (__builtin_mul_overflow(count, size, &bytes) || bytes > (size_t)1 << 46) {
    kf_fail(e, KF_ERROR_MEMORY, "cannot allocate %zu x %zu bytes", count, size);
    return NULL;
  }
  bytes = (bytes + 63) / 64 * 64;
  void *p = aligned_alloc(64, bytes ? bytes : 64);
  if (!p) {
    kf_fail(e, KF_ERROR_MEMORY, "out of memory: %zu bytes refused", bytes);
    return NULL;
  }
  return p;
}

void *kf_alloc(size_t count, size_t size, kf_error *e) {
  void *p = kf_alloc_raw(count, size, e);
  return p ? memset(p, 0, count * size) : NULL;
}

static kf_status reserve(kf_buffer *b, size_t more, kf_error *e) {
  size_t need;
  if (__builtin_add_overflow(b->bytes, more, &need) || need >= SIZE_MAX / 2)
    return kf_fail(e, KF_ERROR_MEMORY, "out of memory: a buffer of %zu + %zu bytes", b->bytes, more);
  if (need + 1 <= b->capacity) return KF_OK;
  size_t capacity = b->capacity ? b->capacity : 256;
  while (capacity < need + 1) capacity *= 2;
  char *data = realloc(b->data, capacity);
  if (!data) return kf_fail(e, KF_ERROR_MEMORY, "out of memory: %zu bytes refused", capacity);
  b->data = data;
  b->capacity = capacity;
  return KF_OK;
}

kf_status kf_buffer_add(kf_buffer *b, const void *data, size_t bytes, kf_error *e) {
  KF_TRY(reserve(b, bytes, e));
  if (bytes) memcpy(b->data + b->bytes, data, bytes);
  b->bytes += bytes;
  b->data[b->bytes] = 0;
  return KF_OK;
}

kf_status kf_buffer_printf(kf_buffer *b, kf_error *e, const char *format, ...) {
  va_list args;
  va_start(args, format);
  int n = vsnprintf(NULL, 0, format, args);
  va_end(args);
  if (n < 0) return kf_fail(e, KF_ERROR_MEMORY, "text cannot be formatted");
  KF_TRY(reserve(b, (size_t)n, e));
  va_start(args, format);
  vsnprintf(b->data + b->bytes, (size_t)n + 1, format, args);
  va_end(args);
  b->bytes += (size_t)n;
  return KF_OK;
}

void kf_buffer_free(kf_buffer *b) {
  if (!b) return;
  free(b->data);
  *b = (kf_buffer){0};
}

struct kf_arena_block {
  struct kf_arena_block *next;
  size_t used, capacity;
  _Alignas(16) char data[];
};

void *kf_arena_alloc(kf_arena *a, size_t count, size_t size, kf_error *e) {
  size_t bytes;
  if (__builtin_mul_overflow(count, size, &bytes) || bytes > SIZE_MAX / 4) {
    kf_fail(e, KF_ERROR_MEMORY, "cannot allocate %zu x %zu bytes", count, size);
    return NULL;
  }
  bytes = (bytes + 15) / 16 * 16;
  struct kf_arena_block *b = a->head;
  if (!b || b->capacity - b->used < bytes) {
    size_t capacity = bytes > 65536 ? bytes : 65536;
    b = calloc(1, sizeof *b + capacity);
    if (!b) {
      kf_fail(e, KF_ERROR_MEMORY, "out of memory: %zu bytes refused", capacity);
      return NULL;
    }
    b->capacity = capacity;
    b->next = a->head;
    a->head = b;
  }
  void *p = b->data + b->used;
  b->used += bytes;
  return p;
}

char *kf_arena_string(kf_arena *a, const char *text, size_t bytes, kf_error *e) {
  char *s = kf_arena_alloc(a, bytes + 1, 1, e);
  if (s && bytes) memcpy(s, text, bytes);
  return s;
}

void kf_arena_free(kf_arena *a) {
  for (struct kf_arena_block *b = a->head, *next; b; b = next) {
    next = b->next;
    free(b);
  }
  a->head = NULL;
}

void kf_text_free(kf_text *t) {
  if (!t) return;
  free(t->data);
  *t = (kf_text){0};
}

void kf_ids_free(kf_ids *ids) {
  if (!ids) return;
  free(ids->data);
  *ids = (kf_ids){0};
}

const char *kf_version(void) {
  return KF_VERSION;
}
