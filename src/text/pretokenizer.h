/* Cutting text into words before BPE: the "pre_tokenizer" of a tokenizer.json. */
#ifndef KF_TEXT_PRETOKENIZER_H
#define KF_TEXT_PRETOKENIZER_H

#include <jansson.h>

#include "text/regex.h"

typedef struct kf_pretokenizer kf_pretokenizer;

/* spec may be NULL or null: a pre-tokenizer that gives the text as one word. */
kf_status kf_pretokenizer_read(const json_t *spec, const char *file, kf_pretokenizer **out, kf_error *e);
void kf_pretokenizer_free(kf_pretokenizer *p);

/* One run over a text: words go to the sink one by one, in order; nothing is gathered. */
typedef kf_status (*kf_word_sink)(void *user, const char *word, size_t bytes, kf_error *e);
typedef struct kf_pretokenizer_work kf_pretokenizer_work;
kf_status kf_pretokenizer_work_create(const kf_pretokenizer *p, kf_word_sink sink, void *user, kf_pretokenizer_work **out,
                                      kf_error *e);
void kf_pretokenizer_work_free(kf_pretokenizer_work *w);
/* first: the text stands at the very start of what is tokenised (Metaspace's prepend_scheme "first"). */
kf_status kf_pretokenizer_run(kf_pretokenizer_work *w, const char *text, size_t bytes, bool first, kf_error *e);

/* The alphabet of byte-level tokenizers (GPT-2): the character that stands for a byte, and back (-1: none). */
int32_t kf_byte_to_char(uint8_t byte);
int kf_char_to_byte(int32_t code);

#endif
