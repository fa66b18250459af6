#include "text/utf8.h"

#include <string.h>

/* How many bytes a lead byte announces and the range of the byte after it (which excludes overlong forms, surrogates and
 * what lies above U+10FFFF). 0: not a lead byte. */
static int lead(uint8_t b, uint8_t *low, uint8_t *high) {
  *low = 0x80, *high = 0xbf;
  if (b >= 0xc2 && b <= 0xdf) return 2;
  if (b >= 0xe0 && b <= 0xef) {
    if (b == 0xe0) *low = 0xa0;
    if (b == 0xed) *high = 0x9f;
    return 3;
  }
  if (b >= 0xf0 && b <= 0xf4) {
    if (b == 0xf0) *low = 0x90;
    if (b == 0xf4) *high = 0x8f;
    return 4;
  }
  return 0;
}

int kf_utf8_next(const char *s, size_t n, int32_t *code) {
  const uint8_t *b = (const uint8_t *)s;
  if (b[0] < 0x80) {
    *code = b[0];
    return 1;
  }
  uint8_t low, high;
  int length = lead(b[0], &low, &high);
  *code = KF_UTF8_BAD;
  if (!length) return 1;
  int32_t c = b[0] & (0x7f >> length);
  for (int i = 1; i < length; i++) {
    if ((size_t)i >= n) {
      *code = KF_UTF8_CUT;
      return i;
    }
    if (b[i] < low || b[i] > high) return i;
    c = c << 6 | (b[i] & 0x3f);
    low = 0x80, high = 0xbf;
  }
  *code = c;
  return length;
}

size_t kf_utf8_valid(const char *s, size_t n) {
  size_t i = 0;
  while (i < n) {
    uint64_t word;
    if (n - i >= sizeof word) {
      memcpy(&word, s + i, sizeof word);
      if (!(word & 0x8080808080808080u)) {
        i += sizeof word;
        continue;
      }
    }
    int32_t code;
    int length = kf_utf8_next(s + i, n - i, &code);
    if (code >= KF_UTF8_CUT) return i;
    i += (size_t)length;
  }
  return n;
}

int kf_utf8_put(int32_t code, char out[4]) {
  if (code < 0x80) {
    out[0] = (char)code;
    return 1;
  }
  int length = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
  for (int i = length - 1; i > 0; i--, code >>= 6) out[i] = (char)(0x80 | (code & 0x3f));
  static const uint8_t mark[] = {0, 0, 0xc0, 0xe0, 0xf0};
  out[0] = (char)(mark[length] | code);
  return length;
}

kf_status kf_utf8_repair(kf_buffer *to, const char *s, size_t n, bool last, size_t *used, kf_error *e) {
  size_t i = 0;
  while (i < n) {
    size_t good = kf_utf8_valid(s + i, n - i);
    if (good) KF_TRY(kf_buffer_add(to, s + i, good, e));
    i += good;
    if (i == n) break;
    int32_t code;
    int length = kf_utf8_next(s + i, n - i, &code);
    if (code == KF_UTF8_CUT && !last) break;
    KF_TRY(kf_buffer_add(to, "\xef\xbf\xbd", 3, e));
    i += (size_t)length;
  }
  *used = i;
  return KF_OK;
}

bool kf_utf8_is_space(int32_t c) {
  return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) ||
         c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}
