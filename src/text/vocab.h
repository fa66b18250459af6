/* A vocabulary: spelling <-> id. */
#ifndef KF_TEXT_VOCAB_H
#define KF_TEXT_VOCAB_H

#include "base/memory.h"

typedef struct kf_piece {
  const char *text; /* NUL-terminated; NULL: no token has this id */
  uint32_t bytes;
} kf_piece;

typedef struct kf_vocab {
  kf_arena arena;
  kf_piece *pieces; /* [size] */
  int32_t size, room;
  int32_t *slots; /* [mask + 1] open addressing; -1: free */
  uint32_t mask;
  int32_t count; /* spellings */
} kf_vocab;

enum { KF_VOCAB_IDS = 1 << 22 }; /* ids above are refused: no vocabulary has as many tokens */

/* Adds a spelling, or gives one that is there another id. file names the source in messages. */
kf_status kf_vocab_add(kf_vocab *v, const char *text, size_t bytes, int64_t id, const char *file, kf_error *e);
int32_t kf_vocab_find(const kf_vocab *v, const char *text, size_t bytes); /* -1: not there */
void kf_vocab_free(kf_vocab *v);

#endif
