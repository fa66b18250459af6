#include "text/added.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "text/utf8.h"

typedef struct spelling {
  const char *text; /* in the arena */
  size_t bytes;
  kf_added token;
} spelling;

struct kf_added_set {
  kf_arena arena;
  spelling *list; /* [count], in the order of bytes */
  int count;
  int first[257]; /* list[first[b] .. first[b + 1]) start with byte b */
};

static int by_bytes(const void *a, const void *b) {
  const spelling *x = a, *y = b;
  int order = memcmp(x->text, y->text, x->bytes < y->bytes ? x->bytes : y->bytes);
  return order ? order : (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static kf_status fill(kf_added_set *s, const kf_added *tokens, const char *const *spellings, const size_t *bytes, int count,
                      kf_error *e) {
  KF_NEW(s->list, count, e);
  for (int i = 0; i < count; i++) {
    if (!bytes[i]) continue; /* normalised to nothing: never found */
    spelling *p = &s->list[s->count++];
    p->token = tokens[i], p->bytes = bytes[i];
    if (!(p->text = kf_arena_string(&s->arena, spellings[i], bytes[i], e))) return KF_ERROR_MEMORY;
  }
  qsort(s->list, (size_t)s->count, sizeof *s->list, by_bytes);
  for (int i = 0; i < s->count; i++) s->first[(uint8_t)s->list[i].text[0] + 1]++;
  for (int b = 0; b < 256; b++) s->first[b + 1] += s->first[b];
  return KF_OK;
}

kf_status kf_added_set_create(const kf_added *tokens, const char *const *spellings, const size_t *bytes, int count,
                              kf_added_set **out, kf_error *e) {
  kf_added_set *s;
  KF_NEW(s, 1, e);
  kf_status status = fill(s, tokens, spellings, bytes, count, e);
  if (status == KF_OK)
    *out = s;
  else
    kf_added_set_free(s);
  return status;
}

void kf_added_set_free(kf_added_set *s) {
  if (!s) return;
  kf_arena_free(&s->arena);
  free(s->list);
  free(s);
}

/* First of list[low..high), which agree in their first `depth` bytes, whose byte at depth is >= b. */
static int lower_bound(const kf_added_set *s, int low, int high, size_t depth, int b) {
  while (low < high) {
    int middle = low + (high - low) / 2;
    const spelling *p = &s->list[middle];
    int have = p->bytes > depth ? (uint8_t)p->text[depth] : -1;
    if (have < b)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

/* The longest spelling that text starts with, NULL: none. */
static const spelling *longest(const kf_added_set *s, const char *text, size_t bytes) {
  int low = s->first[(uint8_t)text[0]], high = s->first[(uint8_t)text[0] + 1];
  const spelling *best = NULL;
  for (size_t depth = 1; low < high; depth++) {
    if (s->list[low].bytes == depth) best = &s->list[low];
    if (depth == bytes) break;
    int b = (uint8_t)text[depth];
    low = lower_bound(s, low, high, depth, b);
    high = lower_bound(s, low, high, depth, b + 1);
  }
  return best;
}

static size_t back(const char *text, size_t at) {
  while (at > 0 && ((uint8_t)text[--at] & 0xc0) == 0x80) {}
  return at;
}

static bool is_word(int32_t code) {
  if (code == 0x200c || code == 0x200d || (code >= 0x24b6 && code <= 0x24e9)) return true;
  switch (utf8proc_category(code)) {
  case UTF8PROC_CATEGORY_LU:
  case UTF8PROC_CATEGORY_LL:
  case UTF8PROC_CATEGORY_LT:
  case UTF8PROC_CATEGORY_LM:
  case UTF8PROC_CATEGORY_LO:
  case UTF8PROC_CATEGORY_MN:
  case UTF8PROC_CATEGORY_MC:
  case UTF8PROC_CATEGORY_ME:
  case UTF8PROC_CATEGORY_ND:
  case UTF8PROC_CATEGORY_NL:
  case UTF8PROC_CATEGORY_PC: return true;
  default: return false;
  }
}

static bool touches_word(const char *text, size_t bytes, size_t start, size_t end) {
  int32_t code;
  if (start > 0) {
    size_t at = back(text, start);
    kf_utf8_next(text + at, start - at, &code);
    if (is_word(code)) return true;
  }
  if (end == bytes) return false;
  kf_utf8_next(text + end, bytes - end, &code);
  return is_word(code);
}

static void widen(const kf_added *t, const char *text, size_t bytes, size_t taken, kf_stretch *out) {
  int32_t code;
  while (t->lstrip && out->start > taken) {
    size_t at = back(text, out->start);
    kf_utf8_next(text + at, out->start - at, &code);
    if (!kf_utf8_is_space(code)) break;
    out->start = at;
  }
  while (t->rstrip && out->end < bytes) {
    int length = kf_utf8_next(text + out->end, bytes - out->end, &code);
    if (!kf_utf8_is_space(code)) break;
    out->end += (size_t)length;
  }
}

bool kf_added_next(const kf_added_set *s, const char *text, size_t bytes, size_t *from, size_t taken, kf_stretch *out) {
  for (size_t i = *from; i < bytes; i++) {
    uint8_t b = (uint8_t)text[i];
    if (s->first[b] == s->first[b + 1]) continue;
    const spelling *p = longest(s, text + i, bytes - i);
    if (!p) continue;
    size_t end = i + p->bytes;
    if (p->token.single_word && touches_word(text, bytes, i, end)) {
      i = end - 1;
      continue;
    }
    *from = end;
    *out = (kf_stretch){&p->token, i, end};
    widen(&p->token, text, bytes, taken, out);
    return true;
  }
  return false;
}
