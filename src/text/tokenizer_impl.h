/* What the files of the tokenizer share. */
#ifndef KF_TEXT_TOKENIZER_IMPL_H
#define KF_TEXT_TOKENIZER_IMPL_H

#include <jansson.h>

#include "text/added.h"
#include "text/bpe.h"
#include "text/detokenizer.h"
#include "text/normalizer.h"
#include "text/pretokenizer.h"
#include "text/tokenizer.h"

enum { KF_AFFIX = 8 }; /* tokens that a post-processor may put on either side */

typedef enum kf_special_kind { KF_SPECIAL_BOS, KF_SPECIAL_EOS, KF_SPECIAL_PAD, KF_SPECIAL_UNK, KF_SPECIALS } kf_special_kind;

struct kf_tokenizer {
  char file[512]; /* for messages */
  kf_arena arena;
  kf_vocab vocab; /* added tokens included */
  kf_bpe *bpe;
  kf_normalizer *normalizer;
  kf_pretokenizer *pretokenizer;
  kf_detokenizer *detokenizer;
  kf_added *added; /* [added_count], contents in the arena */
  int added_count, added_room;
  kf_added_set *raw, *normalized;             /* looked for before and after normalising; NULL: none */
  int32_t prefix[KF_AFFIX], suffix[KF_AFFIX]; /* what "special" encoding puts around a text */
  int prefix_count, suffix_count;
  const char *special[KF_SPECIALS]; /* spellings, in the arena; NULL: none */
  const char *chat_template;        /* in the arena */
  uint8_t *is_special;              /* [vocab.size], in the arena */
  kf_text source, config;           /* tokenizer.json and tokenizer_config.json, for kf_tokenizer_write */
};

/* From parsed files; both are only read. config NULL: a tokenizer.json alone. */
kf_status kf_tokenizer_build(const char *file, const json_t *tokenizer, const json_t *config, kf_tokenizer **out, kf_error *e);

/* Adds or changes one added token. id < 0: the vocabulary's, or the next free one. */
kf_status kf_tokenizer_add(kf_tokenizer *t, kf_added token, kf_error *e);

/* Id of a special token that the configuration names, -1: none. */
int32_t kf_tokenizer_special_id(const kf_tokenizer *t, kf_special_kind k);

/* The settings of tokenizer_config.json: special tokens, chat template, the post-processor that some classes build. */
kf_status kf_tokenizer_configure(kf_tokenizer *t, const json_t *config, kf_error *e);

#endif
