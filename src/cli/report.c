/* Notes, the progress bar, JSON on stdout, and what several sub-commands share. */
#include "options.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

double cli_seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ------------------------------------------------------------------------------------------------ hooks */

enum { BAR = 28 };

static void draw(cli_reporter *r, const char *what, double done, double total, double elapsed) {
  double part = total > 0 ? fmin(done / total, 1) : 0;
  int full = (int)(part * BAR);
  fprintf(stderr, "\r\033[K%-14.40s [", what);
  for (int i = 0; i < BAR; i++) fputc(i < full ? '#' : '.', stderr);
  fprintf(stderr, "] %3.0f%%", 100 * part);
  if (part > 0.01 && elapsed > 1) {
    long left = lround(elapsed * (1 - part) / part);
    fprintf(stderr, "  %ld:%02ld left", left / 60, left % 60);
  }
  fflush(stderr);
  r->drawn = true;
}

static volatile sig_atomic_t interrupted;

static void interrupt(int number) {
  interrupted = number;
}

void cli_stop_on_signals(void) {
  const struct sigaction action = {.sa_handler = interrupt, .sa_flags = (int)SA_RESETHAND}; /* the second one kills */
  sigaction(SIGINT, &action, NULL);
  sigaction(SIGTERM, &action, NULL);
  sigaction(SIGHUP, &action, NULL);
}

static int on_progress(void *user, const char *what, double done, double total) {
  cli_reporter *r = user;
  if (interrupted) return 1;
  if (!r->terminal) return 0;
  double now = cli_seconds();
  if (!r->what || strcmp(r->what, what) != 0) {
    r->what = what;
    r->started = now;
    r->last = 0;
  }
  if (now - r->last < 0.1 && done < total) return 0;
  r->last = now;
  draw(r, what, done, total, now - r->started);
  return 0;
}

static void on_note(void *user, const char *sentence) {
  cli_reporter *r = user;
  for (int i = 0; i < r->notes; i++)
    if (!strcmp(r->note[i], sentence)) return;
  char **more = realloc(r->note, (size_t)(r->notes + 1) * sizeof *more);
  if (!more) return;
  r->note = more;
  if ((r->note[r->notes] = strdup(sentence))) r->notes++;
}

kf_hooks cli_hooks(cli_reporter *r) {
  *r = (cli_reporter){.terminal = isatty(STDERR_FILENO)};
  return (kf_hooks){.progress = on_progress, .note = on_note, .user = r};
}

void cli_clear(cli_reporter *r) {
  if (r->drawn) fputs("\r\033[K", stderr);
  r->drawn = false;
}

void cli_report_end(cli_reporter *r, bool tell_notes) {
  cli_clear(r);
  for (int i = 0; i < r->notes; i++) {
    if (tell_notes) cli_say(0, "%s", r->note[i]);
    free(r->note[i]);
  }
  free(r->note);
}

/* ------------------------------------------------------------------------------------------------ JSON */

void cli_set_real(json_t *o, const char *key, double value) {
  json_object_set_new(o, key, isfinite(value) ? json_real(value) : json_null());
}

void cli_set_text(json_t *o, const char *key, const char *text, size_t bytes) {
  json_object_set_new(o, key, json_stringn(text ? text : "", bytes));
}

void cli_set_ids(json_t *o, const char *key, const int32_t *ids, size_t count) {
  json_t *array = json_array();
  for (size_t i = 0; i < count; i++) json_array_append_new(array, json_integer(ids[i]));
  json_object_set_new(o, key, array);
}

int cli_print_json(json_t *o) {
  int bad = json_dumpf(o, stdout, 0);
  json_decref(o);
  putchar('\n');
  return bad ? cli_say(CLI_FAILED, "cannot write JSON to standard output") : CLI_OK;
}

/* ------------------------------------------------------------------------------------------------ input */

bool cli_parse_ids(const char *text, kf_ids *out) {
  *out = (kf_ids){0};
  size_t capacity = strlen(text) / 2 + 1;
  if (!(out->data = malloc(capacity * sizeof *out->data))) {
    cli_say(CLI_FAILED, "out of memory");
    return false;
  }
  for (const char *p = text + strspn(text, ", \t\r\n"); *p; p += strspn(p, ", \t\r\n")) {
    char *end = NULL;
    errno = 0;
    long id = strtol(p, &end, 10);
    if (end == p || errno || id < 0 || id > INT32_MAX || !strchr(", \t\r\n", *end)) {
      cli_say(CLI_USAGE, "'%.*s' is not a token id", (int)strcspn(p, ", \t\r\n"), p);
      kf_ids_free(out);
      return false;
    }
    out->data[out->count++] = (int32_t)id;
    p = end;
  }
  return true;
}

bool cli_split_settings(const cli_list *list, kf_setting *setting, char **owned) {
  for (int i = 0; i < list->count; i++) {
    const char *equals = strchr(list->item[i], '=');
    if (!equals || equals == list->item[i]) {
      cli_say(CLI_USAGE, "--set takes KEY=VALUE, not '%s'", list->item[i]);
      return false;
    }
    if (!(owned[i] = strdup(list->item[i]))) {
      cli_say(CLI_FAILED, "out of memory");
      return false;
    }
    owned[i][equals - list->item[i]] = 0;
    setting[i] = (kf_setting){owned[i], owned[i] + (equals - list->item[i]) + 1};
  }
  return true;
}

kf_status cli_read_stdin(kf_text *out, kf_error *e) {
  *out = (kf_text){0};
  size_t capacity = 0;
  for (;;) {
    if (out->bytes + 1 >= capacity) {
      char *more = realloc(out->data, capacity = capacity * 2 + 65536);
      if (!more) {
        kf_text_free(out);
        e->status = KF_ERROR_MEMORY;
        snprintf(e->message, sizeof e->message, "out of memory while reading standard input");
        return e->status;
      }
      out->data = more;
    }
    size_t n = fread(out->data + out->bytes, 1, capacity - out->bytes - 1, stdin);
    out->bytes += n;
    if (!n) break;
  }
  out->data[out->bytes] = 0;
  return KF_OK;
}

kf_status cli_open(const char *model, const cli_common *c, const kf_hooks *hooks, kf_model **m, kf_tokenizer **t, kf_error *e) {
  kf_model_options o = {
      .compute = (kf_compute)c->compute, .threads = c->threads, .hooks = *hooks, .device = (kf_device_kind)c->device};
  kf_status s = t ? kf_tokenizer_open(model, t, e) : KF_OK;
  return s == KF_OK && m ? kf_model_open(model, &o, m, e) : s;
}
