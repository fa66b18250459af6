/* Text for evaluation, calibration and training: plain or JSON lines, either of them under Zstandard. */
#include "text/corpus.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "base/file.h"
#include "text/utf8.h"

enum { CHUNK = 1 << 18 };

typedef struct corpus {
  const char *path;
  bool lines;     /* JSONL */
  int64_t line;   /* of JSONL: that is being read, from 1 */
  kf_buffer part; /* of JSONL: the line so far */
  bool joined;    /* a text was added before */
  kf_buffer text;
  kf_record_visit visit; /* of JSONL: takes the lines in place of `text`; NULL: none */
  void *user;
  bool skip; /* lines that are not JSON objects */
  int64_t skipped;
} corpus;

static bool ends_with(const char *s, const char *tail) {
  size_t n = strlen(s), t = strlen(tail);
  return n >= t && !strcmp(s + n - t, tail);
}

static kf_status visit_line(corpus *c, const char *line, size_t bytes, kf_error *e) {
  json_error_t why;
  json_t *o = json_loadb(line, bytes, JSON_ALLOW_NUL, &why);
  kf_status s = KF_OK;
  if (json_is_object(o))
    s = c->visit(c->user, &(kf_record){c->path, c->line, o, NULL, 0}, e);
  else if (c->skip)
    c->skipped++;
  else
    s = kf_fail(e, KF_ERROR_INPUT, "%s:%lld: not a JSON object%s%s", c->path, (long long)c->line, o ? "" : ": ",
                o ? "" : why.text);
  json_decref(o);
  return s;
}

static kf_status take_line(corpus *c, const char *line, size_t bytes, kf_error *e) {
  c->line++;
  if (strspn(line, " \t\r") >= bytes) return KF_OK;
  if (c->visit) return visit_line(c, line, bytes, e);
  json_error_t why;
  json_t *o = json_loadb(line, bytes, JSON_ALLOW_NUL, &why);
  const json_t *text = json_object_get(o, "text");
  kf_status s = KF_OK;
  if (!o)
    s = kf_fail(e, KF_ERROR_INPUT, "%s:%lld: not a JSON object: %s", c->path, (long long)c->line, why.text);
  else if (!json_is_string(text))
    s = kf_fail(e, KF_ERROR_INPUT, "%s:%lld: no string \"text\"", c->path, (long long)c->line);
  if (s == KF_OK && c->joined) s = kf_buffer_add(&c->text, "\n", 1, e);
  if (s == KF_OK) s = kf_buffer_add(&c->text, json_string_value(text), json_string_length(text), e);
  c->joined = true;
  json_decref(o);
  return s;
}

static kf_status take(corpus *c, const char *data, size_t bytes, kf_error *e) {
  if (!c->lines) return kf_buffer_add(&c->text, data, bytes, e);
  while (bytes) {
    const char *newline = memchr(data, '\n', bytes);
    size_t n = newline ? (size_t)(newline - data) : bytes;
    KF_TRY(kf_buffer_add(&c->part, data, n, e));
    if (!newline) break;
    KF_TRY(take_line(c, c->part.data, c->part.bytes, e));
    c->part.bytes = 0;
    data += n + 1, bytes -= n + 1;
  }
  return KF_OK;
}

/* CR LF and CR become LF, as text files are read elsewhere. Strings inside JSON are left as they are. */
static void unify_newlines(kf_buffer *b) {
  size_t to = 0;
  for (size_t i = 0; i < b->bytes; i++) {
    bool cr = b->data[i] == '\r';
    b->data[to++] = cr ? '\n' : b->data[i];
    if (cr && i + 1 < b->bytes && b->data[i + 1] == '\n') i++;
  }
  b->bytes = to;
  b->data[to] = 0;
}

static kf_status finish(corpus *c, kf_error *e) {
  if (c->part.bytes) KF_TRY(take_line(c, c->part.data, c->part.bytes, e));
  KF_TRY(kf_buffer_add(&c->text, "", 0, e));
  if (!c->lines) unify_newlines(&c->text);
  size_t valid = kf_utf8_valid(c->text.data, c->text.bytes);
  if (valid == c->text.bytes) return KF_OK;
  int64_t line = 1;
  for (size_t i = 0; i < valid; i++) line += c->text.data[i] == '\n';
  return kf_fail(e, KF_ERROR_INPUT, "%s:%lld: not UTF-8: byte 0x%02x at offset %zu", c->path, (long long)line,
                 (uint8_t)c->text.data[valid], valid);
}

static kf_status read_plain(corpus *c, FILE *f, char *in, kf_error *e) {
  size_t n;
  while ((n = fread(in, 1, CHUNK, f))) KF_TRY(take(c, in, n, e));
  return KF_OK;
}

static kf_status read_zstd(corpus *c, FILE *f, char *in, char *out, ZSTD_DStream *z, kf_error *e) {
  size_t n, rest = 0;
  while ((n = fread(in, 1, CHUNK, f))) {
    ZSTD_inBuffer from = {in, n, 0};
    bool full = false; /* a full output may have left more inside */
    while (from.pos < from.size || full) {
      ZSTD_outBuffer to = {out, CHUNK, 0};
      rest = ZSTD_decompressStream(z, &to, &from);
      if (ZSTD_isError(rest)) return kf_fail(e, KF_ERROR_INPUT, "%s: bad Zstandard data: %s", c->path, ZSTD_getErrorName(rest));
      KF_TRY(take(c, out, to.pos, e));
      full = to.pos == to.size && rest;
    }
  }
  return rest && !ferror(f) ? kf_fail(e, KF_ERROR_INPUT, "%s: the Zstandard data ends early", c->path) : KF_OK;
}

static kf_status read_stream(corpus *c, FILE *f, bool compressed, kf_error *e) {
  char *in = kf_alloc(CHUNK, 2, e);
  ZSTD_DStream *z = compressed && in ? ZSTD_createDStream() : NULL;
  kf_status s = KF_ERROR_MEMORY;
  if (in && compressed && !z) s = kf_fail(e, KF_ERROR_MEMORY, "%s: out of memory", c->path);
  if (in && (z || !compressed)) s = compressed ? read_zstd(c, f, in, in + CHUNK, z, e) : read_plain(c, f, in, e);
  if (s == KF_OK && ferror(f)) s = kf_fail(e, KF_ERROR_INPUT, "%s cannot be read: %s", c->path, strerror(errno));
  ZSTD_freeDStream(z);
  free(in);
  return s;
}

/* Reads all of the path that c names. */
static kf_status read_path(corpus *c, kf_error *e) {
  FILE *f = fopen(c->path, "rb");
  if (!f) return kf_fail(e, KF_ERROR_INPUT, "%s cannot be read: %s", c->path, strerror(errno));
  kf_status s = read_stream(c, f, ends_with(c->path, ".zst"), e);
  fclose(f);
  if (s == KF_OK) s = finish(c, e);
  kf_buffer_free(&c->part);
  if (s != KF_OK) kf_buffer_free(&c->text);
  return s;
}

static bool is_lines(const char *path) {
  return ends_with(path, ".jsonl") || ends_with(path, ".jsonl.zst");
}

kf_status kf_text_read(const char *path, kf_text *out, kf_error *e) {
  corpus c = {.path = path, .lines = is_lines(path)};
  KF_TRY(read_path(&c, e));
  *out = (kf_text){c.text.data, c.text.bytes};
  return KF_OK;
}

static kf_status visit_array(corpus *c, kf_error *e) {
  json_error_t why;
  json_t *list = json_loadb(c->text.data, c->text.bytes, JSON_ALLOW_NUL, &why), *o;
  kf_status s = KF_OK;
  size_t i;
  if (!json_is_array(list))
    s = kf_fail(e, KF_ERROR_INPUT, "%s:%d: not a JSON array of objects%s%s", c->path, list ? 1 : why.line, list ? "" : ": ",
                list ? "" : why.text);
  json_array_foreach(list, i, o) {
    if (s != KF_OK) break;
    if (json_is_object(o))
      s = c->visit(c->user, &(kf_record){c->path, (int64_t)i + 1, o, NULL, 0}, e);
    else if (c->skip)
      c->skipped++;
    else
      s = kf_fail(e, KF_ERROR_INPUT, "%s: element %zu is not a JSON object", c->path, i + 1);
  }
  json_decref(list);
  return s;
}

kf_status kf_records_read(const char *path, bool skip, kf_record_visit visit, void *user, int64_t *skipped, kf_error *e) {
  corpus c = {.path = path, .lines = is_lines(path), .visit = visit, .user = user, .skip = skip};
  KF_TRY(read_path(&c, e));
  kf_status s = KF_OK;
  if (ends_with(path, ".json") || ends_with(path, ".json.zst"))
    s = visit_array(&c, e);
  else if (!c.lines)
    s = visit(user, &(kf_record){path, 1, NULL, c.text.data, c.text.bytes}, e);
  kf_buffer_free(&c.text);
  *skipped = c.skipped;
  return s;
}
