/* Byte-pair merging (Sennrich et al. 2016) as Hugging Face's BPE model does it: of all neighbours that have a merge, the one
 * of lowest rank (leftmost of equals) is merged first, until none is left. O(n log n) in the length of a word. */
#ifndef KF_TEXT_BPE_H
#define KF_TEXT_BPE_H

#include <jansson.h>

#include "text/vocab.h"

typedef struct kf_bpe kf_bpe;

/* model: the "model" object of a tokenizer.json. Its vocabulary is added to v, which must outlive the result. */
kf_status kf_bpe_read(const json_t *model, const char *file, kf_vocab *v, kf_bpe **out, kf_error *e);
void kf_bpe_free(kf_bpe *b);

/* What one encoding needs: working memory, and the words seen lately. text_bytes sizes the memory of words. */
typedef struct kf_bpe_work kf_bpe_work;
kf_status kf_bpe_work_create(const kf_bpe *b, size_t text_bytes, kf_bpe_work **out, kf_error *e);
void kf_bpe_work_free(kf_bpe_work *w);
/* Appends the ids of one pre-tokenised word (valid UTF-8). */
kf_status kf_bpe_encode(kf_bpe_work *w, const char *word, size_t bytes, kf_error *e);
kf_status kf_bpe_add_id(kf_bpe_work *w, int32_t id, kf_error *e);
void kf_bpe_work_take(kf_bpe_work *w, kf_ids *out); /* hands out the ids gathered so far */

#endif
