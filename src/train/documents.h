/* Records of training data as documents of tokens. */
#ifndef KF_TRAIN_DOCUMENTS_H
#define KF_TRAIN_DOCUMENTS_H

#include "text/corpus.h"
#include "train/token_file.h"

/* Documents that grow in memory: int32 ids, one byte a token that says whether it is learnt, int64 ends. */
typedef struct kf_documents {
  const kf_tokenizer *tokenizer;
  const kf_token_options *options;
  kf_buffer ids, learnt, end;
  int64_t skipped;
} kf_documents;

/* Adds the document, or the pair, of one record; a kf_record_visit with a kf_documents. */
kf_status kf_documents_add(void *documents, const kf_record *r, kf_error *e);
void kf_documents_free(kf_documents *d);

#endif
