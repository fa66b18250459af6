/* A picture of training runs from their logs. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "report/plot.h"
#include "text/corpus.h"

enum { COLUMNS = 4, POINTS = 500, WIDTH = 800, PANEL = 240, KEY_ROW = 20 };

typedef struct point {
  double of[COLUMNS]; /* place on the x axis, then a number for each panel */
} point;

typedef struct track {
  const char *column[COLUMNS]; /* keys of a line; [0]: of the x axis; NULL: no more */
  kf_buffer points;
} track;

typedef struct panel {
  const char *label, *data; /* data: prefix of the gnuplot datablocks */
  int column;
  const char *with;
} panel;

static const panel panels[] = {{"loss", "s", 1, "lines"},
                               {"learning rate", "s", 2, "lines"},
                               {"gradient norm", "s", 3, "lines"},
                               {"held-out perplexity", "h", 1, "linespoints pt 7 ps 0.8"}};
enum { PANELS = sizeof panels / sizeof *panels };

/* ---------------------------------------------------------------------------------------------- logs */

static kf_status take_line(void *user, const kf_record *r, kf_error *e) {
  track *t = user;
  point p = {{0}};
  for (int i = 0; i < COLUMNS && t->column[i]; i++) {
    const json_t *value = json_object_get(r->object, t->column[i]);
    if (!json_is_number(value))
      return kf_fail(e, KF_ERROR_INPUT, "%s:%lld: no number \"%s\"", r->path, (long long)r->line, t->column[i]);
    p.of[i] = json_number_value(value);
  }
  return kf_buffer_add(&t->points, &p, sizeof p, e);
}

static kf_status read_track(const char *path, track *t, kf_error *e) {
  int64_t skipped;
  return kf_records_read(path, false, take_line, t, &skipped, e);
}

/* RUN is what a run wrote, what it has written so far (RUN.run), or a log itself. */
static kf_status find_logs(const char *run, char log[KF_PATH], char held_out[KF_PATH], kf_error *e) {
  static const char *const tails[] = {"/train.jsonl", ".run/train.jsonl", ""};
  int n = (int)strlen(run);
  while (n > 1 && run[n - 1] == '/') n--;
  snprintf(held_out, KF_PATH, "%.*s/held-out.jsonl", n, run);
  for (size_t i = 0; i < sizeof tails / sizeof *tails; i++)
    if (snprintf(log, KF_PATH, "%.*s%s", n, run, tails[i]) < KF_PATH && kf_is_file(log)) break;
  const char *end = strrchr(log, '.');
  if (kf_is_file(log) && end && strcmp(end, ".jsonl") == 0) return KF_OK;
  return kf_fail(e, KF_ERROR_INPUT, "%s is not a training run: it has no train.jsonl", run);
}

/* ---------------------------------------------------------------------------------------------- script */

/* Of many points each that is drawn is the mean of its neighbours. */
static kf_status add_block(kf_buffer *script, const char *data, int run, const kf_buffer *points, kf_error *e) {
  const point *p = (const point *)(const void *)points->data;
  size_t count = points->bytes / sizeof *p, drawn = count < POINTS ? count : POINTS;
  KF_TRY(kf_buffer_printf(script, e, "$%s%d << EOD\n", data, run));
  for (size_t i = 0; i < drawn; i++) {
    size_t from = i * count / drawn, to = (i + 1) * count / drawn;
    for (int c = 0; c < COLUMNS; c++) {
      double sum = 0;
      for (size_t k = from; k < to; k++) sum += p[k].of[c];
      KF_TRY(kf_buffer_printf(script, e, "%.9g%c", sum / (double)(to - from), c + 1 < COLUMNS ? ' ' : '\n'));
    }
  }
  return kf_buffer_printf(script, e, "EOD\n");
}

/* From the smallest to the largest number of a column, above what a linear axis shows well. */
static bool spans(const kf_buffer *points, int count, int column) {
  double low = INFINITY, high = 0;
  for (int i = 0; i < count; i++) {
    const point *p = (const point *)(const void *)points[i].data;
    for (size_t k = 0; k < points[i].bytes / sizeof *p; k++) {
      low = fmin(low, p[k].of[column]);
      high = fmax(high, p[k].of[column]);
    }
  }
  return low > 0 && high > 20 * low;
}

static kf_status add_panel(kf_buffer *script, const panel *p, const kf_buffer *points, const char *const *runs, int count,
                           const char *x, kf_error *e) {
  bool first = p == panels;
  const char *separator = "plot";
  KF_TRY(kf_buffer_printf(script, e, "%s\n%s logscale y\nset ylabel '%s'\nset xlabel '%s'\n",
                          first ? "set key above left maxcols 2" : "unset key",
                          p->column != 2 && spans(points, count, p->column) ? "set" : "unset", p->label, x));
  for (int i = 0; i < count; i++) {
    if (!points[i].bytes) continue;
    KF_TRY(kf_buffer_printf(script, e, "%s $%s%d using 1:%d with %s lc rgb '%s' dt %d lw 1.5 title ", separator, p->data, i,
                            p->column + 1, p->with, kf_plot_colour((size_t)i), 1 + i / 6 % 5));
    KF_TRY(kf_plot_quote(script, runs[i], e));
    separator = ",";
  }
  return kf_buffer_printf(script, e, "\n");
}

static bool any(const kf_buffer *points, int count) {
  for (int i = 0; i < count; i++)
    if (points[i].bytes) return true;
  return false;
}

static kf_status write_script(const kf_buffer *steps, const kf_buffer *held_out, const char *const *runs, int count,
                              bool by_steps, bool png, kf_buffer *script, kf_error *e) {
  int drawn = PANELS - !any(held_out, count);
  KF_TRY(kf_buffer_printf(script, e,
                          "set terminal %s size %d,%d font 'sans-serif,12' noenhanced\nset encoding utf8\n"
                          "set multiplot layout %d,1\nset grid lc rgb '#dddddd' lt 1\nset border 3 lc rgb '#555555'\n"
                          "set tics nomirror\nset lmargin 12\nset format x '%%.0s%%c'\nset xrange [0:*]\n",
                          png ? "pngcairo" : "svg", WIDTH, PANEL * drawn + KEY_ROW * (count + 1) / 2, drawn));
  for (int i = 0; i < count; i++) {
    KF_TRY(add_block(script, "s", i, &steps[i], e));
    if (held_out[i].bytes) KF_TRY(add_block(script, "h", i, &held_out[i], e));
  }
  for (int k = 0; k < drawn; k++)
    KF_TRY(add_panel(script, &panels[k], *panels[k].data == 's' ? steps : held_out, runs, count,
                     k + 1 < drawn ? ""
                     : by_steps    ? "steps"
                                   : "tokens",
                     e));
  return kf_buffer_printf(script, e, "unset multiplot\n");
}

/* ---------------------------------------------------------------------------------------------- the picture */

static kf_status read_run(const char *run, bool by_steps, kf_buffer *steps, kf_buffer *held_out, kf_error *e) {
  char log[KF_PATH], other[KF_PATH];
  const char *x = by_steps ? "step" : "tokens";
  track step = {.column = {x, "loss", "rate", "gradient_norm"}}, held = {.column = {x, "perplexity"}};
  KF_TRY(find_logs(run, log, other, e));
  kf_status s = read_track(log, &step, e);
  if (s == KF_OK && !step.points.bytes) s = kf_fail(e, KF_ERROR_INPUT, "%s is empty: the run has made no step yet", log);
  if (s == KF_OK && kf_is_file(other)) s = read_track(other, &held, e);
  *steps = step.points;
  *held_out = held.points;
  return s;
}

kf_status kf_plot_runs(const char *const *runs, int count, const char *path, bool by_steps, kf_error *e) {
  enum { MOST = 64 };
  kf_buffer steps[MOST] = {{0}}, held_out[MOST] = {{0}}, script = {0}, drawing = {0};
  const char *end = strrchr(path, '.');
  bool png = end && strcmp(end, ".png") == 0;
  if (!png && !(end && strcmp(end, ".svg") == 0)) return kf_fail(e, KF_ERROR_USAGE, "%s ends neither in .svg nor in .png", path);
  if (count < 1 || count > MOST) return kf_fail(e, KF_ERROR_USAGE, "%d runs cannot be drawn on one picture", count);
  kf_status s = KF_OK;
  for (int i = 0; i < count && s == KF_OK; i++) s = read_run(runs[i], by_steps, &steps[i], &held_out[i], e);
  if (s == KF_OK) s = write_script(steps, held_out, runs, count, by_steps, png, &script, e);
  if (s == KF_OK) s = kf_plot_draw(&script, &drawing, e);
  if (s == KF_OK) s = kf_write_file(path, drawing.data, drawing.bytes, e);
  for (int i = 0; i < count; i++) kf_buffer_free(&steps[i]), kf_buffer_free(&held_out[i]);
  kf_buffer_free(&script);
  kf_buffer_free(&drawing);
  return s;
}
