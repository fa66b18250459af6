/* Tokens back to text: the "decoder" of a tokenizer.json, one token at a time. */
#ifndef KF_TEXT_DETOKENIZER_H
#define KF_TEXT_DETOKENIZER_H

#include <jansson.h>

#include "base/memory.h"

enum { KF_DECODER_STAGES = 16 };

typedef struct kf_detokenizer kf_detokenizer;

/* spec may be NULL or null: tokens are joined by spaces, as Hugging Face does then. */
kf_status kf_detokenizer_read(const json_t *spec, const char *file, kf_detokenizer **out, kf_error *e);
void kf_detokenizer_free(kf_detokenizer *d);

/* The state of one decoding; kf_detokenizing_free() what was started. */
typedef struct kf_detokenizing {
  const kf_detokenizer *how;
  bool whole;        /* hold a run of byte tokens back until it ends: a run that is not UTF-8 then gives one U+FFFD a byte */
  bool begun;        /* a token was seen */
  bool meta_begun;   /* Metaspace saw one */
  kf_buffer pending; /* bytes that are no complete text yet */
  int strip_left;    /* characters that may still be stripped from the start of the fused text */
  kf_buffer work[KF_DECODER_STAGES];
} kf_detokenizing;
void kf_detokenizing_start(kf_detokenizing *d, const kf_detokenizer *how, bool whole);
/* Appends what is complete to out. */
kf_status kf_detokenizing_push(kf_detokenizing *d, const char *token, size_t bytes, kf_buffer *out, kf_error *e);
kf_status kf_detokenizing_finish(kf_detokenizing *d, kf_buffer *out, kf_error *e);
void kf_detokenizing_free(kf_detokenizing *d);

#endif
