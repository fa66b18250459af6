/* Allocation with overflow checks and errors; growing byte buffers; an arena for what dies together. */
#ifndef KF_BASE_MEMORY_H
#define KF_BASE_MEMORY_H

#include "base/error.h"

/* Zeroed memory for count x size bytes, 64-byte aligned, freed with free(). NULL and e filled when it overflows or fails. */
void *kf_alloc(size_t count, size_t size, kf_error *e);
/* The same with undefined content: pages that are never touched cost nothing. */
void *kf_alloc_raw(size_t count, size_t size, kf_error *e);

/* Shorthand: KF_NEW(p, n, e) allocates n zeroed elements of p's type, or returns KF_ERROR_MEMORY from the function. */
#define KF_NEW(pointer, count, e)                                                               \
  do {                                                                                          \
    if (!((pointer) = kf_alloc((size_t)(count), sizeof *(pointer), e))) return KF_ERROR_MEMORY; \
  } while (0)

/* A byte string that grows; data is NUL-terminated once anything was added. */
typedef struct kf_buffer {
  char *data;
  size_t bytes, capacity;
} kf_buffer;
kf_status kf_buffer_add(kf_buffer *b, const void *data, size_t bytes, kf_error *e);
kf_status kf_buffer_printf(kf_buffer *b, kf_error *e, const char *format, ...) __attribute__((format(printf, 3, 4)));
void kf_buffer_free(kf_buffer *b);

/* Chained blocks, all freed at once. A zeroed arena is empty and ready. Memory is zeroed, 16-byte aligned. */
typedef struct kf_arena {
  struct kf_arena_block *head;
} kf_arena;
void *kf_arena_alloc(kf_arena *a, size_t count, size_t size, kf_error *e);
char *kf_arena_string(kf_arena *a, const char *text, size_t bytes, kf_error *e);
void kf_arena_free(kf_arena *a);

#endif
