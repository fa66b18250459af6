/* UTF-8: one code point at a time, with the "maximal subpart" rule for what is broken (Unicode 3.9, as Rust and Python do). */
#ifndef KF_TEXT_UTF8_H
#define KF_TEXT_UTF8_H

#include "base/memory.h"

enum {
  KF_UTF8_BAD = 0x7fffffff, /* bytes that no continuation can repair */
  KF_UTF8_CUT = 0x7ffffffe, /* the bytes end inside a sequence that is valid so far */
};

/* Length of what stands at s[0..n), n > 0, and its code point (or one of the two above) in *code. */
int kf_utf8_next(const char *s, size_t n, int32_t *code);
/* Bytes of the longest valid prefix. */
size_t kf_utf8_valid(const char *s, size_t n);
int kf_utf8_put(int32_t code, char out[4]);
/* Appends s with U+FFFD for every broken part. Unless `last`, a cut sequence at the end stays; *used says what was taken. */
kf_status kf_utf8_repair(kf_buffer *to, const char *s, size_t n, bool last, size_t *used, kf_error *e);
/* White_Space of the Unicode standard. */
bool kf_utf8_is_space(int32_t code);

#endif
