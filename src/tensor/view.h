/* A named tensor in mapped memory. */
#ifndef KF_TENSOR_VIEW_H
#define KF_TENSOR_VIEW_H

#include "tensor/dtype.h"

enum { KF_MAX_DIMS = 4 };

typedef struct kf_view {
  const char *name;
  kf_dtype dtype;
  int dims;
  int64_t shape[KF_MAX_DIMS]; /* row-major, slowest first (a GGUF's order is turned round) */
  const uint8_t *data;        /* may be unaligned */
  size_t bytes;
} kf_view;

/* An index by name: sorts pointers to views; finds in what was sorted, NULL when it is not there. */
void kf_view_sort(const kf_view **views, int count);
const kf_view *kf_view_find(const kf_view *const *views, int count, const char *name);
/* The first name that stands twice in a sorted index, or NULL. */
const char *kf_view_duplicate(const kf_view *const *views, int count);

#endif
