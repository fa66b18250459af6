/* Regular expressions of tokenizer files (Oniguruma's syntax, as Hugging Face's tokenizers use it) through PCRE2 with JIT. */
#ifndef KF_TEXT_REGEX_H
#define KF_TEXT_REGEX_H

#include "base/memory.h"

typedef struct kf_regex kf_regex;

/* file names the tokenizer in messages. Errors: a syntax error, or syntax that PCRE2 reads in another way. */
kf_status kf_regex_compile(const char *pattern, size_t bytes, const char *file, kf_regex **out, kf_error *e);
/* A regex that matches exactly this text. */
kf_status kf_regex_literal(const char *text, size_t bytes, const char *file, kf_regex **out, kf_error *e);
void kf_regex_free(kf_regex *r);

/* All matches of r in one subject (valid UTF-8), left to right. The scratch memory serves any number of subjects. */
typedef struct kf_matcher {
  const kf_regex *regex;
  void *match, *context; /* PCRE2's match data and match context */
  const char *text;
  size_t bytes, from, last_end;
  bool matched_before;
} kf_matcher;
kf_status kf_matcher_create(const kf_regex *r, kf_matcher *out, kf_error *e);
void kf_matcher_free(kf_matcher *m);
void kf_matcher_start(kf_matcher *m, const char *text, size_t bytes);
/* *found false: no further match. An empty match right after another match is passed over. */
kf_status kf_matcher_next(kf_matcher *m, bool *found, size_t *start, size_t *end, kf_error *e);

#endif
