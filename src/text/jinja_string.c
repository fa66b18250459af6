/* Methods of strings, in code points. */
#include "text/jinja_impl.h"

#include <ctype.h>
#include <string.h>
#include <utf8proc.h>

/* ------------------------------------------------------------------------------------------------ code points */

bool kf_j_space(int32_t c) {
  return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

int32_t kf_j_next(const char **at, const char *end) {
  if ((unsigned char)**at < 0x80) return *(*at)++;
  int32_t code;
  utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)*at, end - *at, &code);
  *at += n < 1 ? 1 : n;
  return n < 1 ? 0xfffd : code;
}

int32_t kf_j_previous(const char *start, const char **at) {
  const char *end = *at;
  do --*at;
  while (*at > start && ((unsigned char)**at & 0xc0) == 0x80);
  const char *next = *at;
  return kf_j_next(&next, end);
}

size_t kf_j_chars(const char *data, size_t bytes) {
  size_t n = 0;
  for (size_t i = 0; i < bytes; i++) n += ((unsigned char)data[i] & 0xc0) != 0x80;
  return n;
}

size_t kf_j_offset(const kf_j_string *s, size_t chars) {
  if (chars >= s->chars) return s->bytes;
  if (s->bytes == s->chars) return chars;
  size_t i = 0;
  for (; i < s->bytes; i++)
    if (((unsigned char)s->data[i] & 0xc0) != 0x80 && chars-- == 0) break;
  return i;
}

static kf_status part(kf_jinja *j, const char *from, const char *to, kf_j_value *out) {
  kf_j_builder b = {0};
  KF_TRY(kf_j_add(j, &b, from, (size_t)(to - from)));
  return kf_j_built(j, &b, out);
}

static bool given(kf_j_value v) {
  return v.kind != KF_J_MISSING && v.kind != KF_J_NONE;
}

static kf_status need_string(kf_jinja *j, kf_j_value v, const char *what) {
  KF_TRY(kf_j_defined(j, v));
  return v.kind == KF_J_STRING ? KF_OK : kf_j_fail(j, "%s needs a string, not %s", what, kf_j_type(v));
}

static kf_status need_whole(kf_jinja *j, kf_j_value v, int64_t fallback, int64_t *out) {
  *out = given(v) ? v.integer : fallback;
  return !given(v) || kf_j_whole(v) ? KF_OK : kf_j_fail(j, "expected an integer, found %s", kf_j_type(v));
}

/* ------------------------------------------------------------------------------------------------ strip */

static bool among(int32_t c, const kf_j_string *set) {
  if (!set) return kf_j_space(c);
  for (const char *at = set->data, *end = at + set->bytes; at < end;)
    if (kf_j_next(&at, end) == c) return true;
  return false;
}

static kf_status strip(kf_jinja *j, kf_j_value self, kf_j_value set, bool left, bool right, kf_j_value *out) {
  if (given(set)) KF_TRY(need_string(j, set, "strip"));
  const kf_j_string *s = self.string, *chars = given(set) ? set.string : NULL;
  const char *from = s->data, *to = s->data + s->bytes;
  for (const char *next = from; left && from < to; from = next) {
    KF_TRY(kf_j_spend(j, chars ? chars->bytes : 0));
    if (!among(kf_j_next(&next, to), chars)) break;
  }
  for (const char *next = to; right && from < to; to = next) {
    KF_TRY(kf_j_spend(j, chars ? chars->bytes : 0));
    if (!among(kf_j_previous(from, &next), chars)) break;
  }
  return part(j, from, to, out);
}

kf_status kf_j_strip(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  return strip(j, self, a->items[0], true, true, out);
}

static kf_status lstrip(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  return strip(j, self, a->items[0], true, false, out);
}

static kf_status rstrip(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  return strip(j, self, a->items[0], false, true, out);
}

static bool has_prefix(const kf_j_string *s, const kf_j_string *prefix) {
  return s->bytes >= prefix->bytes && memcmp(s->data, prefix->data, prefix->bytes) == 0;
}

static bool has_suffix(const kf_j_string *s, const kf_j_string *suffix) {
  return s->bytes >= suffix->bytes && memcmp(s->data + s->bytes - suffix->bytes, suffix->data, suffix->bytes) == 0;
}

static kf_status any_affix(kf_jinja *j, kf_j_value self, const kf_j_args *a,
                           bool (*has)(const kf_j_string *, const kf_j_string *), kf_j_value *out) {
  kf_j_list affixes = {.items = &a->items[0], .count = 1};
  if (a->items[0].kind == KF_J_TUPLE) affixes = *a->items[0].list;
  bool yes = false;
  for (size_t i = 0; i < affixes.count; i++) {
    KF_TRY(need_string(j, affixes.items[i], "startswith or endswith"));
    KF_TRY(kf_j_spend(j, affixes.items[i].string->bytes));
    yes = yes || has(self.string, affixes.items[i].string);
  }
  *out = kf_j_bool(yes);
  return KF_OK;
}

static kf_status starts_with(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  return any_affix(j, self, a, has_prefix, out);
}

static kf_status ends_with(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  return any_affix(j, self, a, has_suffix, out);
}

static kf_status remove_prefix(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  KF_TRY(need_string(j, a->items[0], "removeprefix"));
  const kf_j_string *s = self.string, *p = a->items[0].string;
  return part(j, s->data + (has_prefix(s, p) ? p->bytes : 0), s->data + s->bytes, out);
}

static kf_status remove_suffix(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  KF_TRY(need_string(j, a->items[0], "removesuffix"));
  const kf_j_string *s = self.string, *p = a->items[0].string;
  return part(j, s->data, s->data + s->bytes - (has_suffix(s, p) ? p->bytes : 0), out);
}

/* ------------------------------------------------------------------------------------------------ case */

typedef enum letter_case { UPPER, LOWER, TITLE, TITLE_WORDS, CAPITALIZE, SWAP } letter_case;

static bool cased(int32_t c) {
  utf8proc_category_t category = utf8proc_category(c);
  return category == UTF8PROC_CATEGORY_LU || category == UTF8PROC_CATEGORY_LL || category == UTF8PROC_CATEGORY_LT;
}

static bool word_gap(int32_t c) {
  return kf_j_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
}

static kf_status recase(kf_jinja *j, kf_j_value self, letter_case how, kf_j_value *out) {
  kf_j_builder b = {0};
  bool start = true; // of the string, or of a word
  for (const char *at = self.string->data, *end = at + self.string->bytes; at < end;) {
    int32_t c = kf_j_next(&at, end), changed;
    if (how == UPPER || (how == SWAP && utf8proc_category(c) == UTF8PROC_CATEGORY_LL)) {
      changed = utf8proc_toupper(c);
    } else {
      changed = start && how != LOWER && how != SWAP ? utf8proc_totitle(c) : utf8proc_tolower(c);
    }
    KF_TRY(kf_j_add_char(j, &b, changed));
    start = (how == TITLE && !cased(c)) || (how == TITLE_WORDS && word_gap(c));
  }
  return kf_j_built(j, &b, out);
}

kf_status kf_j_upper(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)a;
  return recase(j, self, UPPER, out);
}

kf_status kf_j_lower(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)a;
  return recase(j, self, LOWER, out);
}

kf_status kf_j_capitalize(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)a;
  return recase(j, self, CAPITALIZE, out);
}

static kf_status title(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)a;
  return recase(j, self, TITLE, out);
}

/* As the filter does it: words part only at spaces and at -({[<. */
kf_status kf_j_title_words(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)a;
  return recase(j, self, TITLE_WORDS, out);
}

static kf_status swap_case(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)a;
  return recase(j, self, SWAP, out);
}

/* ------------------------------------------------------------------------------------------------ kinds of characters */

static bool alpha(int32_t c) {
  utf8proc_category_t category = utf8proc_category(c);
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

static bool digit(int32_t c) {
  return utf8proc_category(c) == UTF8PROC_CATEGORY_ND;
}

static bool alnum(int32_t c) {
  utf8proc_category_t category = utf8proc_category(c);
  return alpha(c) || (category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO);
}

static kf_status all(kf_jinja *j, kf_j_value self, bool (*is)(int32_t), kf_j_value *out) {
  KF_TRY(kf_j_spend(j, self.string->bytes));
  bool yes = self.string->bytes > 0;
  for (const char *at = self.string->data, *end = at + self.string->bytes; yes && at < end;) yes = is(kf_j_next(&at, end));
  *out = kf_j_bool(yes);
  return KF_OK;
}

static kf_status is_alpha(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)a;
  return all(j, self, alpha, out);
}

static kf_status is_digit(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)a;
  return all(j, self, digit, out);
}

static kf_status is_alnum(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)a;
  return all(j, self, alnum, out);
}

static kf_status is_space(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)a;
  return all(j, self, kf_j_space, out);
}

/* Some letter has the case, and none the other. */
static kf_status has_case(kf_jinja *j, kf_j_value self, utf8proc_category_t wanted, kf_j_value *out) {
  KF_TRY(kf_j_spend(j, self.string->bytes));
  bool some = false, other = false;
  for (const char *at = self.string->data, *end = at + self.string->bytes; at < end;) {
    int32_t c = kf_j_next(&at, end);
    if (utf8proc_category(c) == wanted) {
      some = true;
    } else {
      other = other || cased(c);
    }
  }
  *out = kf_j_bool(some && !other);
  return KF_OK;
}

static kf_status is_upper(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)a;
  return has_case(j, self, UTF8PROC_CATEGORY_LU, out);
}

static kf_status is_lower(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)a;
  return has_case(j, self, UTF8PROC_CATEGORY_LL, out);
}

/* ------------------------------------------------------------------------------------------------ search */

static const char *last_match(const char *data, size_t bytes, const kf_j_string *what) {
  if (bytes < what->bytes) return NULL;
  for (size_t i = bytes - what->bytes + 1; i-- > 0;)
    if (memcmp(data + i, what->data, what->bytes) == 0) return data + i;
  return NULL;
}

static const char *first_match(const char *data, size_t bytes, const kf_j_string *what) {
  return memmem(data, bytes, what->data, what->bytes);
}

typedef const char *matcher(const char *data, size_t bytes, const kf_j_string *what);

/* Position in code points, -1: not there. */
static kf_status position(kf_jinja *j, kf_j_value self, const kf_j_args *a, matcher *match, int64_t *out) {
  KF_TRY(need_string(j, a->items[0], "find"));
  const kf_j_string *s = self.string, *what = a->items[0].string;
  int64_t from, to, n = (int64_t)s->chars;
  KF_TRY(need_whole(j, a->items[1], 0, &from));
  KF_TRY(need_whole(j, a->items[2], n, &to));
  if (from < 0 && (from += n) < 0) from = 0;
  if (to < 0 && (to += n) < 0) to = 0;
  if (to > n) to = n;
  *out = -1;
  if (from > to) return KF_OK;
  size_t start = kf_j_offset(s, (size_t)from), end = kf_j_offset(s, (size_t)to);
  KF_TRY(kf_j_spend(j, match == last_match ? s->bytes * (what->bytes + 1) : s->bytes));
  const char *at = match(s->data + start, end - start, what);
  if (at) *out = (int64_t)kf_j_chars(s->data, (size_t)(at - s->data));
  return KF_OK;
}

static kf_status find(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  *out = kf_j_int(0);
  return position(j, self, a, first_match, &out->integer);
}

static kf_status rfind(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  *out = kf_j_int(0);
  return position(j, self, a, last_match, &out->integer);
}

static kf_status index_of(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  KF_TRY(find(j, self, a, out));
  return out->integer < 0 ? kf_j_fail(j, "substring not found") : KF_OK;
}

static kf_status count(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  KF_TRY(need_string(j, a->items[0], "count"));
  const kf_j_string *s = self.string, *what = a->items[0].string;
  int64_t n = what->bytes ? 0 : (int64_t)s->chars + 1;
  KF_TRY(kf_j_spend(j, s->bytes * 4));
  for (const char *p = s->data, *end = p + s->bytes; what->bytes && (p = first_match(p, (size_t)(end - p), what));
       p += what->bytes)
    n++;
  *out = kf_j_int(n);
  return KF_OK;
}

kf_status kf_j_replace(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  KF_TRY(need_string(j, a->items[0], "replace"));
  KF_TRY(need_string(j, a->items[1], "replace"));
  const kf_j_string *s = self.string, *old = a->items[0].string, *new = a->items[1].string;
  int64_t most;
  KF_TRY(need_whole(j, a->items[2], -1, &most));
  kf_j_builder b = {0};
  const char *p = s->data, *end = p + s->bytes;
  for (; most; most--) {
    KF_TRY(kf_j_spend(j, 0));
    const char *hit = first_match(p, (size_t)(end - p), old);
    if (!hit) break;
    KF_TRY(kf_j_add(j, &b, p, (size_t)(hit - p)));
    KF_TRY(kf_j_add(j, &b, new->data, new->bytes));
    p = hit + old->bytes;
    if (old->bytes) continue;
    if (p == end) break;
    kf_j_next(&p, end); // an empty pattern matches in front of every character
    KF_TRY(kf_j_add(j, &b, hit, (size_t)(p - hit)));
  }
  KF_TRY(kf_j_add(j, &b, p, (size_t)(end - p)));
  return kf_j_built(j, &b, out);
}

/* ------------------------------------------------------------------------------------------------ split and join */

static kf_status push_part(kf_jinja *j, kf_j_list *l, const char *from, const char *to) {
  kf_j_value v;
  KF_TRY(part(j, from, to, &v));
  return kf_j_push(j, l, v);
}

static const char *skip(const char *p, const char *end, bool space) {
  for (const char *next = p; p < end; p = next)
    if (kf_j_space(kf_j_next(&next, end)) != space) break;
  return p;
}

static kf_status split_space(kf_jinja *j, const kf_j_string *s, int64_t most, kf_j_list *l) {
  const char *end = s->data + s->bytes, *p = skip(s->data, end, true);
  for (; p < end && most; most--) {
    const char *word = p;
    p = skip(p, end, false);
    KF_TRY(push_part(j, l, word, p));
    p = skip(p, end, true);
  }
  return p < end ? push_part(j, l, p, end) : KF_OK;
}

static kf_status split(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  int64_t most;
  KF_TRY(need_whole(j, a->items[1], -1, &most));
  KF_TRY(kf_j_new_list(j, KF_J_LIST, out));
  if (!given(a->items[0])) return split_space(j, self.string, most, out->list);
  KF_TRY(need_string(j, a->items[0], "split"));
  const kf_j_string *s = self.string, *by = a->items[0].string;
  if (!by->bytes) return kf_j_fail(j, "split by an empty string");
  const char *p = s->data, *end = p + s->bytes;
  for (const char *hit; most && (hit = first_match(p, (size_t)(end - p), by)); most--, p = hit + by->bytes)
    KF_TRY(push_part(j, out->list, p, hit));
  return push_part(j, out->list, p, end);
}

static kf_status rsplit(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  int64_t most;
  KF_TRY(need_whole(j, a->items[1], -1, &most));
  if (most < 0) return split(j, self, a, out);
  KF_TRY(need_string(j, a->items[0], "rsplit with a limit"));
  KF_TRY(kf_j_new_list(j, KF_J_LIST, out));
  const kf_j_string *s = self.string, *by = a->items[0].string;
  if (!by->bytes) return kf_j_fail(j, "rsplit by an empty string");
  KF_TRY(kf_j_spend(j, s->bytes * by->bytes));
  const char *end = s->data + s->bytes;
  kf_j_list *l = out->list;
  for (const char *hit; most && (hit = last_match(s->data, (size_t)(end - s->data), by)); most--, end = hit)
    KF_TRY(push_part(j, l, hit + by->bytes, end));
  KF_TRY(push_part(j, l, s->data, end));
  for (size_t i = 0; i < l->count / 2; i++) {
    kf_j_value swap = l->items[i];
    l->items[i] = l->items[l->count - 1 - i];
    l->items[l->count - 1 - i] = swap;
  }
  return KF_OK;
}

static kf_status split_lines(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  bool keep = kf_j_truth(a->items[0]);
  KF_TRY(kf_j_new_list(j, KF_J_LIST, out));
  const char *p = self.string->data, *end = p + self.string->bytes;
  while (p < end) {
    const char *line = p, *stop = end;
    while (p < end && stop == end) {
      const char *before = p;
      int32_t c = kf_j_next(&p, end);
      if (!((c >= 10 && c <= 13) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029)) continue;
      if (c == '\r' && p < end && *p == '\n') p++;
      stop = before;
    }
    KF_TRY(push_part(j, out->list, line, keep ? p : stop));
  }
  return KF_OK;
}

static kf_status join(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  kf_j_list items;
  KF_TRY(kf_j_items(j, a->items[0], &items));
  kf_j_builder b = {0};
  for (size_t i = 0; i < items.count; i++) {
    KF_TRY(need_string(j, items.items[i], "join"));
    if (i) KF_TRY(kf_j_add(j, &b, self.string->data, self.string->bytes));
    KF_TRY(kf_j_add(j, &b, items.items[i].string->data, items.items[i].string->bytes));
  }
  return kf_j_built(j, &b, out);
}

/* "{} {0} {name}": plain fields, no format specifications. */
static kf_status format(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  kf_j_builder b = {0};
  size_t automatic = 0;
  for (const char *p = self.string->data, *end = p + self.string->bytes; p < end; p++) {
    if ((*p == '{' || *p == '}') && p + 1 < end && p[1] == *p) {
      KF_TRY(kf_j_add(j, &b, p++, 1));
    } else if (*p != '{') {
      KF_TRY(kf_j_add(j, &b, p, 1));
    } else {
      const char *close = memchr(p, '}', (size_t)(end - p));
      kf_j_value name, value;
      if (!close) return kf_j_fail(j, "format: '{' is not closed");
      KF_TRY(part(j, p + 1, close, &name));
      const char *field = name.string->data;
      size_t at = *field ? 0 : automatic++;
      while (isdigit((unsigned char)*field) && at <= a->count) at = at * 10 + (size_t)(*field++ - '0');
      KF_TRY(kf_j_find(j, &a->named, name, &value));
      if (value.kind == KF_J_MISSING && !*field && at < a->count) value = a->items[at];
      if (value.kind == KF_J_MISSING) return kf_j_fail(j, "format: no value for {%.60s}", name.string->data);
      KF_TRY(kf_j_print(j, &b, value));
      p = close;
    }
  }
  return kf_j_built(j, &b, out);
}

const kf_j_function kf_j_string_methods[] = {
    {"strip", "chars", kf_j_strip},
    {"lstrip", "chars", lstrip},
    {"rstrip", "chars", rstrip},
    {"startswith", "prefix", starts_with},
    {"endswith", "suffix", ends_with},
    {"removeprefix", "prefix", remove_prefix},
    {"removesuffix", "suffix", remove_suffix},
    {"upper", "", kf_j_upper},
    {"lower", "", kf_j_lower},
    {"capitalize", "", kf_j_capitalize},
    {"title", "", title},
    {"swapcase", "", swap_case},
    {"isalpha", "", is_alpha},
    {"isdigit", "", is_digit},
    {"isalnum", "", is_alnum},
    {"isspace", "", is_space},
    {"isupper", "", is_upper},
    {"islower", "", is_lower},
    {"find", "sub start end", find},
    {"rfind", "sub start end", rfind},
    {"index", "sub start end", index_of},
    {"count", "sub", count},
    {"replace", "old new count", kf_j_replace},
    {"split", "sep maxsplit", split},
    {"rsplit", "sep maxsplit", rsplit},
    {"splitlines", "keepends", split_lines},
    {"join", "iterable", join},
    {"format", NULL, format},
    {NULL, NULL, NULL},
};
