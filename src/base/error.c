#include "base/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* One line without control characters: names from files may carry anything, a terminal's escapes too. */
static void write_line(char *to, size_t bytes, const char *format, va_list args) {
  vsnprintf(to, bytes, format, args);
  for (char *c = to; *c; c++)
    if ((unsigned char)*c < ' ' || *c == 0x7f) *c = ' ';
}

static void put(kf_error *e, kf_status status, const char *format, va_list args) {
  if (!e) return;
  e->status = status;
  write_line(e->message, sizeof e->message, format, args);
}

kf_status kf_fail(kf_error *e, kf_status status, const char *format, ...) {
  va_list args;
  va_start(args, format);
  put(e, status, format, args);
  va_end(args);
  return status;
}

kf_status kf_fail_errno(kf_error *e, const char *format, ...) {
  int why = errno;
  va_list args;
  va_start(args, format);
  put(e, KF_ERROR_IO, format, args);
  va_end(args);
  if (e) {
    size_t n = strlen(e->message);
    snprintf(e->message + n, sizeof e->message - n, ": %s", strerror(why));
  }
  return KF_ERROR_IO;
}

kf_status kf_progress(const kf_hooks *hooks, const char *what, double done, double total, kf_error *e) {
  if (hooks && hooks->progress && hooks->progress(hooks->user, what, done, total) != 0)
    return kf_fail(e, KF_ERROR_CANCELLED, "stopped while %s", what);
  return KF_OK;
}

void kf_note(const kf_hooks *hooks, const char *format, ...) {
  if (!hooks || !hooks->note) return;
  char line[512];
  va_list args;
  va_start(args, format);
  write_line(line, sizeof line, format, args);
  va_end(args);
  hooks->note(hooks->user, line);
}
