/* Text normalisation before tokenising: the "normalizer" of a tokenizer.json. */
#ifndef KF_TEXT_NORMALIZER_H
#define KF_TEXT_NORMALIZER_H

#include <jansson.h>

#include "text/regex.h"

typedef struct kf_normalizer kf_normalizer;

/* spec may be NULL or null: *out is NULL then, which normalises nothing. */
kf_status kf_normalizer_read(const json_t *spec, const char *file, kf_normalizer **out, kf_error *e);
void kf_normalizer_free(kf_normalizer *n);
/* Appends the normalised text (valid UTF-8) to out. */
kf_status kf_normalizer_run(const kf_normalizer *n, const char *text, size_t bytes, kf_buffer *out, kf_error *e);

/* {"String": ...} or {"Regex": ...} as it stands in normalizers, pre-tokenizers and decoders. */
kf_status kf_pattern_read(const json_t *pattern, const char *file, kf_regex **out, kf_error *e);
/* Appends text with every match of r replaced. */
kf_status kf_replace_all(const kf_regex *r, const char *text, size_t bytes, const char *with, size_t with_bytes, kf_buffer *out,
                         kf_error *e);

#endif
