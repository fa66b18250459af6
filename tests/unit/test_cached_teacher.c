/* A teacher kept as its likeliest tokens: the loss is the formula of cached_teacher.h, with all tokens kept the plain divergence; a
 * prediction is made once; and files that do not fit are refused. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tiny.h"
#include "train/cached_teacher.h"
#include "train/teacher_file.h"

enum { V = 4096, ROWS = 18 };

static char directory[64] = "/tmp/kvfold-cached-XXXXXX";
static char teacher[128];
static kf_device *device;

static void must(kf_status s, const kf_error *e) {
  if (s != KF_OK) fail_msg("%s", e->message);
}

static kf_cached_options options(const char *name, int top, float temperature) {
  static char path[KF_PATH];
  snprintf(path, sizeof path, "%s/%s", directory, name);
  return (kf_cached_options){.directory = path,
                             .teacher = teacher,
                             .model = {.compute = KF_COMPUTE_F32, .threads = 1},
                             .device = device,
                             .top = top,
                             .vocabulary = V,
                             .temperature = temperature};
}

static kf_cached_teacher *open_cached(const char *name, int top, float temperature) {
  kf_cached_options o = options(name, top, temperature);
  kf_cached_teacher *c = NULL;
  kf_error e = {0};
  must(kf_cached_teacher_open(&o, &c, &e), &e);
  return c;
}

/* Two sequences, in either order. */
static kf_window make_window(bool turned) {
  kf_window w;
  kf_error e = {0};
  must(kf_window_create(device, ROWS, &w, &e), &e);
  for (int s = 0; s < 2; s++) {
    bool first = (s == 0) != turned;
    w.sequence[w.sequences++] = (kf_extent){w.count, first ? 11 : 7};
    for (int i = 0; i < (first ? 11 : 7); i++, w.count++) {
      w.ids[w.count] = (i * 37 + first * 900 + 11) % V;
      w.target[w.count] = (i * 53 + 7) % V;
      w.weight[w.count] = 1;
    }
  }
  return w;
}

static float *student_logits(void) {
  kf_random dice;
  float *x = malloc((size_t)ROWS * V * sizeof *x);
  kf_random_seed(&dice, 8);
  for (int64_t i = 0; i < (int64_t)ROWS * V; i++) x[i] = (float)(2 * kf_random_normal(&dice));
  return x;
}

/* The formula, of one row. */
static double lumped(const kf_predictions *p, int64_t at, int top, const float *x, double t, int64_t moved, double by) {
  double all = 0, outside = 0, d = 0, rest = exp((double)p->rest[at]);
  bool *in = calloc(V, sizeof *in);
  for (int k = 0; k < top; k++) in[p->id[at * top + k]] = true;
  for (int64_t j = 0; j < V; j++) {
    double q = exp(((double)x[j] + (j == moved ? by : 0)) / t);
    all += q;
    outside += in[j] ? 0 : q;
  }
  for (int k = 0; k < top; k++) {
    int64_t j = p->id[at * top + k];
    double log_p = p->log_p[at * top + k];
    d += exp(log_p) * (log_p - (((double)x[j] + (j == moved ? by : 0)) / t - log(all)));
  }
  if (top < V) d += rest * ((double)p->rest[at] - log(outside / all));
  free(in);
  return d;
}

static void formula(void **state) {
  (void)state;
  enum { TOP = 5 };
  const double t = 1.5, step = 1e-4;
  const kf_softmax_loss loss = {.kl = 1, .temperature = 1.5f, .divergence = KF_FORWARD_KL};
  kf_error e = {0};
  kf_cached_teacher *c = open_cached("formula", TOP, 1.5f);
  kf_window w = make_window(false);
  float *x = student_logits(), *g = student_logits(), *row = malloc((size_t)ROWS * V * sizeof *row);
  double nll[ROWS], d[ROWS];
  must(kf_cached_teacher_prepare(c, &w, &e), &e);
  must(kf_cached_teacher_logits(c, 0, ROWS, x, row, &e), &e);
  device->softmax_loss(device, &loss, g, row, w.target, w.weight, ROWS, V, nll, d);
  must(kf_device_check(device, &e), &e);
  kf_predictions p;
  for (int s = 0; s < 2; s++) {
    const kf_extent *q = &w.sequence[s];
    assert_true(kf_teacher_file_find(kf_cached_teacher_file(c), w.ids + q->first, q->count, &p));
    for (int64_t i = 0; i < q->count; i++) {
      int64_t at = q->first + i, looked[] = {p.id[i * TOP], p.id[i * TOP + TOP - 1], (p.id[i * TOP] + 1) % V, 77, V - 1};
      double want = lumped(&p, i, TOP, x + at * V, t, -1, 0), sum = 0;
      if (!(fabs(d[at] - want) < 1e-5 * (1 + want))) fail_msg("row %d: %.9g, by the formula %.9g", (int)at, d[at], want);
      for (size_t k = 0; k < sizeof looked / sizeof *looked; k++) {
        double slope =
            t * t * (lumped(&p, i, TOP, x + at * V, t, looked[k], step) - lumped(&p, i, TOP, x + at * V, t, looked[k], -step)) /
            (2 * step);
        if (!(fabs(slope - (double)g[at * V + looked[k]]) < 1e-6 + 1e-4 * fabs(slope)))
          fail_msg("row %d, logit %d: %.9g, by differences %.9g", (int)at, (int)looked[k], (double)g[at * V + looked[k]], slope);
      }
      for (int k = 0; k < TOP; k++) sum += exp((double)p.log_p[i * TOP + k]);
      assert_true(fabs(sum + exp((double)p.rest[i]) - 1) < 1e-5 && p.rest[i] < 0);
    }
  }
  free(x), free(g), free(row);
  kf_window_free(&w);
  kf_cached_teacher_free(c);
}

/* All tokens kept: the row is the teacher's own. */
static void whole(void **state) {
  (void)state;
  kf_error e = {0};
  kf_cached_teacher *c = open_cached("whole", 2 * V, 1);
  kf_frozen f = {0};
  kf_window w = make_window(false);
  float *x = student_logits(), *row = malloc((size_t)ROWS * V * sizeof *row), *own = malloc((size_t)ROWS * V * sizeof *own);
  double kl[ROWS], difference[ROWS];
  must(kf_model_open(teacher, &(kf_model_options){.compute = KF_COMPUTE_F32, .threads = 1}, &f.model, &e), &e);
  must(kf_frozen_forward(&f, &w, &e), &e);
  must(kf_model_logits(f.model, f.x, ROWS, own, &e), &e);
  must(kf_cached_teacher_prepare(c, &w, &e), &e);
  must(kf_cached_teacher_logits(c, 0, ROWS, x, row, &e), &e);
  device->divergence(device, own, row, ROWS, V, kl, difference);
  must(kf_device_check(device, &e), &e);
  for (int i = 0; i < ROWS; i++) {
    double shift = (double)own[i * V] - (double)row[i * V];
    assert_true(fabs(kl[i]) < 1e-6);
    for (int j = 0; j < V; j++) assert_true(fabs((double)own[i * V + j] - (double)row[i * V + j] - shift) < 1e-5);
  }
  free(x), free(row), free(own);
  kf_frozen_free(&f);
  kf_window_free(&w);
  kf_cached_teacher_free(c);
}

/* Sequences are found again, in another order too, and the teacher does not run for them. */
static void once(void **state) {
  (void)state;
  kf_error e = {0};
  kf_window w = make_window(false), turned = make_window(true);
  kf_cached_teacher *c = open_cached("once", 3, 1), *beside = open_cached("once", 3, 1);
  must(kf_cached_teacher_prepare(c, &w, &e), &e);
  assert_true(kf_cached_teacher_ran(c));
  must(kf_cached_teacher_prepare(beside, &w, &e), &e); /* what another process added is not kept twice */
  kf_cached_teacher_free(beside);
  kf_cached_teacher_free(c);
  c = open_cached("once", 3, 1);
  must(kf_cached_teacher_prepare(c, &turned, &e), &e);
  assert_false(kf_cached_teacher_ran(c));
  turned.ids[0]++;
  must(kf_cached_teacher_prepare(c, &turned, &e), &e);
  assert_true(kf_cached_teacher_ran(c));
  kf_cached_teacher_free(c);
  char path[KF_PATH];
  kf_text file;
  snprintf(path, sizeof path, "%s/once/teacher.predictions", directory);
  must(kf_read_file(path, 1 << 20, &file, &e), &e);
  assert_int_equal(file.bytes, 4096 + 3 * 16 + (11 + 7 + 7) * 8 * (3 + 1));
  kf_text_free(&file);
  kf_window_free(&w), kf_window_free(&turned);
}

static void refused(const kf_cached_options *o, const char *says) {
  kf_cached_teacher *c = NULL;
  kf_error e = {0};
  assert_int_equal(kf_cached_teacher_open(o, &c, &e), KF_ERROR_INPUT);
  if (!strstr(e.message, says)) fail_msg("'%s' does not say '%s'", e.message, says);
}

static void misfits(void **state) {
  (void)state;
  kf_error e = {0};
  kf_window w = make_window(false);
  kf_cached_teacher *c = open_cached("misfits", 3, 1);
  must(kf_cached_teacher_prepare(c, &w, &e), &e);
  kf_cached_teacher_free(c);
  kf_cached_options o = options("misfits", 4, 1);
  refused(&o, "top was 3, not 4");
  o.top = 3, o.temperature = 2;
  refused(&o, "temperature was 1.0, not 2.0");
  o.temperature = 1, o.teacher = "examples/books-7m";
  refused(&o, "teacher was");
  o.vocabulary = 7;
  refused(&o, "the student has 7 tokens");
  /* What a killed process left is cut off, its sequence is made again. */
  o = options("misfits", 3, 1);
  char path[KF_PATH];
  snprintf(path, sizeof path, "%s/misfits/teacher.predictions", directory);
  assert_int_equal(truncate(path, 4096 + 16 + 11 * 8 * 4 + 100), 0);
  c = open_cached("misfits", 3, 1);
  must(kf_cached_teacher_prepare(c, &w, &e), &e);
  assert_true(kf_cached_teacher_ran(c));
  kf_cached_teacher_free(c);
  c = open_cached("misfits", 3, 1);
  must(kf_cached_teacher_prepare(c, &w, &e), &e);
  assert_false(kf_cached_teacher_ran(c));
  kf_cached_teacher_free(c);
  FILE *f = fopen(path, "r+");
  fseek(f, 4096 + 16, SEEK_SET); /* an id of the first sequence */
  fputc('!', f);
  fclose(f);
  refused(&o, "damaged at byte 4096");
  kf_window_free(&w);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(formula), cmocka_unit_test(whole), cmocka_unit_test(once),
                                     cmocka_unit_test(misfits)};
  kf_error e = {0};
  if (!mkdtemp(directory)) return 1;
  snprintf(teacher, sizeof teacher, "%s/teacher", directory);
  if (tiny_model(teacher, 2, 0.25, NULL, &e) != KF_OK || kf_device_open_cpu(KF_COMPUTE_F32, 1, &device, &e) != KF_OK)
    return printf("%s\n", e.message), 1;
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  kf_device_close(device);
  kf_remove_tree(directory, NULL);
  return failed;
}
