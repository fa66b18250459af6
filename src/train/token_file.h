/* Text tokenised once: a file that is mapped, and that knows what it was made from.
 *
 * A file of training text becomes documents: runs of token ids, each token marked whether it is learnt (a prompt is not).
 * Of preference pairs documents 2i and 2i + 1 are the chosen and the rejected text of pair i. */
#ifndef KF_TRAIN_TOKEN_FILE_H
#define KF_TRAIN_TOKEN_FILE_H

#include "tensor/safetensors.h"
#include "text/tokenizer.h"

typedef enum kf_learnt { KF_LEARN_ALL, KF_LEARN_ANSWERS } kf_learnt;

typedef struct kf_token_options {
  bool pairs;        /* records of prompt, chosen, rejected */
  kf_learnt learnt;  /* of messages: every token, or those of the assistant's messages */
  bool skip;         /* records that cannot be used are left out, with a note, in place of being errors */
  const char *cache; /* directory of these files; NULL: kvfold/tokens below the user's cache directory */
  const kf_hooks *hooks;
} kf_token_options;

typedef struct kf_token_file {
  kf_safetensors *file;
  const int32_t *ids;    /* [tokens] */
  const uint8_t *learnt; /* [tokens] */
  const int64_t *end;    /* [documents] first token behind each */
  int64_t tokens, documents;
} kf_token_file;

/* Tokenises path unless a file in the cache is of the same text, tokenizer and options. A record of text is BOS (where the
 * tokenizer's rule adds one), its tokens, EOS (where there is one); messages and conversations go through the chat template.
 * Errors: a record without usable fields (file, line), no chat template, an empty file. */
kf_status kf_token_file_open(const char *path, const kf_tokenizer *t, const kf_token_options *o, kf_token_file *out, kf_error *e);
void kf_token_file_close(kf_token_file *f);

static inline int64_t kf_document_start(const kf_token_file *f, int64_t document) {
  return document ? f->end[document - 1] : 0;
}

#endif
