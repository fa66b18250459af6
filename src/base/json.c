#include "base/json.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

enum { MAX_JSON_BYTES = 512 << 20 };

/* Python writes integers of any size (a tokenizer's model_max_length is 10^30 when there is no limit); Jansson refuses
 * those above 64 bits. Writes the text with ".0" behind every integer of 19 digits or more outside strings. */
static kf_status integers_to_reals(const char *text, size_t bytes, kf_buffer *out, kf_error *e) {
  bool in_string = false;
  size_t kept = 0;
  for (size_t i = 0; i < bytes; i++) {
    if (in_string) {
      if (text[i] == '\\')
        i++;
      else if (text[i] == '"')
        in_string = false;
    } else if (text[i] == '"') {
      in_string = true;
    } else if (isdigit((unsigned char)text[i])) {
      size_t end = i;
      bool digits_only = true;
      for (; end < bytes && (isalnum((unsigned char)text[end]) || text[end] == '.' || text[end] == '+' || text[end] == '-');
           end++)
        digits_only = digits_only && isdigit((unsigned char)text[end]);
      if (digits_only && end - i >= 19) {
        KF_TRY(kf_buffer_add(out, text + kept, end - kept, e));
        KF_TRY(kf_buffer_add(out, ".0", 2, e));
        kept = end;
      }
      i = end - 1;
    }
  }
  return kf_buffer_add(out, text + kept, bytes - kept, e);
}

kf_status kf_json_parse(const char *what, const char *text, size_t bytes, json_t **out, kf_error *e) {
  *out = NULL;
  json_error_t why;
  json_t *value = json_loadb(text, bytes, JSON_ALLOW_NUL, &why);
  if (!value && json_error_code(&why) == json_error_numeric_overflow) {
    kf_buffer repaired = {0};
    kf_status s = kf_buffer_add(&repaired, "", 0, e);
    if (s == KF_OK) s = integers_to_reals(text, bytes, &repaired, e);
    if (s == KF_OK) value = json_loadb(repaired.data, repaired.bytes, JSON_ALLOW_NUL, &why);
    kf_buffer_free(&repaired);
    KF_TRY(s);
  }
  if (!value) return kf_fail(e, KF_ERROR_INPUT, "%s is not valid JSON: line %d: %s", what, why.line, why.text);
  if (!json_is_object(value)) {
    json_decref(value);
    return kf_fail(e, KF_ERROR_INPUT, "%s does not hold a JSON object", what);
  }
  *out = value;
  return KF_OK;
}

kf_status kf_json_read(const char *path, json_t **out, kf_error *e) {
  *out = NULL;
  kf_text text;
  KF_TRY(kf_read_file(path, MAX_JSON_BYTES, &text, e));
  kf_status s = kf_json_parse(path, text.data, text.bytes, out, e);
  kf_text_free(&text);
  return s;
}

kf_status kf_json_write(const char *path, const json_t *value, kf_error *e) {
  char *text = json_dumps(value, JSON_INDENT(2) | JSON_REAL_PRECISION(15) | JSON_ENCODE_ANY);
  if (!text) return kf_fail(e, KF_ERROR_MEMORY, "%s cannot be written as JSON", path);
  size_t bytes = strlen(text);
  text[bytes] = '\n'; // takes the place of the NUL, which is not written
  kf_status s = kf_write_file(path, text, bytes + 1, e);
  free(text);
  return s;
}

/* The member, NULL when it is missing or null. */
static const json_t *member(const json_t *o, const char *key) {
  const json_t *v = json_object_get(o, key);
  return json_is_null(v) ? NULL : v;
}

static kf_status wrong(const json_t *v, const char *file, const char *key, kf_error *e, const char *expected) {
  char *found = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(6));
  kf_fail(e, KF_ERROR_INPUT, "%s: \"%s\" is %.80s, expected %s", file, key, found ? found : "unreadable", expected);
  free(found);
  return KF_ERROR_INPUT;
}

kf_status kf_json_int(const json_t *o, const char *file, const char *key, int64_t fallback, int64_t low, int64_t high,
                      int64_t *out, kf_error *e) {
  const json_t *v = member(o, key);
  *out = fallback;
  if (!v) return KF_OK;
  double real = json_real_value(v);
  bool whole = json_is_real(v) && real == floor(real) && fabs(real) < 0x1p63;
  int64_t value = json_is_integer(v) ? json_integer_value(v) : whole ? (int64_t)real : 0;
  if ((!json_is_integer(v) && !whole) || value < low || value > high) {
    char expected[96];
    snprintf(expected, sizeof expected, "a whole number from %lld to %lld", (long long)low, (long long)high);
    return wrong(v, file, key, e, expected);
  }
  *out = value;
  return KF_OK;
}

kf_status kf_json_real(const json_t *o, const char *file, const char *key, double fallback, double low, double high, double *out,
                       kf_error *e) {
  const json_t *v = member(o, key);
  *out = fallback;
  if (!v) return KF_OK;
  double value = json_number_value(v);
  if (!json_is_number(v) || value < low || value > high) {
    char expected[96];
    snprintf(expected, sizeof expected, "a number from %g to %g", low, high);
    return wrong(v, file, key, e, expected);
  }
  *out = value;
  return KF_OK;
}

kf_status kf_json_bool(const json_t *o, const char *file, const char *key, bool fallback, bool *out, kf_error *e) {
  const json_t *v = member(o, key);
  *out = v ? json_is_true(v) : fallback;
  return v && !json_is_boolean(v) ? wrong(v, file, key, e, "true or false") : KF_OK;
}

kf_status kf_json_string(const json_t *o, const char *file, const char *key, const char *fallback, const char **out,
                         kf_error *e) {
  const json_t *v = member(o, key);
  *out = v ? json_string_value(v) : fallback;
  if (v && (!json_is_string(v) || strlen(*out) != json_string_length(v))) return wrong(v, file, key, e, "a string");
  return KF_OK;
}
