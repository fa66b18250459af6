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

#endif
