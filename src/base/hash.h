/* FNV-1a, to tell contents apart: start with KF_HASH, or go on from an earlier value. */
#ifndef KF_BASE_HASH_H
#define KF_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

#define KF_HASH 0xcbf29ce484222325u

static inline uint64_t kf_hash(uint64_t hash, const void *data, size_t bytes) {
  const uint8_t *p = data;
  for (size_t i = 0; i < bytes; i++) hash = (hash ^ p[i]) * 0x100000001b3u;
  return hash;
}

#endif
