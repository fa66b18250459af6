/* Added tokens: spellings that are found in a text before it is tokenised. */
#ifndef KF_TEXT_ADDED_H
#define KF_TEXT_ADDED_H

#include "base/memory.h"

typedef struct kf_added {
  const char *content; /* owned by someone else */
  size_t bytes;
  int32_t id;
  bool special;
  bool lstrip, rstrip; /* the white space around belongs to it */
  bool single_word;    /* only where no word character touches it */
  bool normalized;     /* looked for in the normalised text */
} kf_added;

/* A set of them, ready to be searched for. spellings[i]: how tokens[i] stands in the text. */
typedef struct kf_added_set kf_added_set;
kf_status kf_added_set_create(const kf_added *tokens, const char *const *spellings, const size_t *bytes, int count,
                              kf_added_set **out, kf_error *e);
void kf_added_set_free(kf_added_set *s);

/* A stretch of text: an added token, or (token NULL) what lies between. */
typedef struct kf_stretch {
  const kf_added *token;
  size_t start, end;
} kf_stretch;
/* The token at or after *from (leftmost, then longest) with its white space; false: none. *from moves behind its spelling.
 * taken: the end of the stretch before, into which no white space is taken back. */
bool kf_added_next(const kf_added_set *s, const char *text, size_t bytes, size_t *from, size_t taken, kf_stretch *out);

#endif
