#include "train/cached_teacher.h"

#include <glob.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "model/sampling.h"
#include "train/teacher_file.h"

enum { CHUNK = 64 }; /* rows of teacher logits in memory */

/* A row's predictions in the file. */
typedef struct row {
  const int32_t *id;  /* [top] */
  const float *log_p; /* [top] */
  float rest;
} row;

struct kf_cached_teacher {
  kf_cached_options o;
  kf_teacher_file *file;
  kf_frozen frozen;   /* model NULL: it was not needed yet */
  float *logits;      /* [CHUNK, vocabulary] */
  kf_candidate *list; /* [CHUNK, top] */
  row *row;           /* [rows] of a micro-batch, as what follows */
  int32_t *outside, *best;
  double *lse;
  int64_t rows;
};

/* ---------------------------------------------------------------------------------------------- what it is made from */

static void add_file(const char *path, json_int_t *bytes, json_int_t *modified) {
  struct stat st;
  if (stat(path, &st) != 0) return;
  json_int_t time = (json_int_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
  *bytes += st.st_size;
  if (time > *modified) *modified = time;
}

/* Weights are told apart by their sizes and times. */
static json_t *made_from(const kf_cached_options *o, const char *path) {
  char real[PATH_MAX], pattern[KF_PATH + 32];
  json_int_t bytes = 0, modified = 0;
  glob_t weights = {0};
  snprintf(pattern, sizeof pattern, "%s/*.safetensors", path);
  if (!kf_is_directory(path))
    add_file(path, &bytes, &modified);
  else if (glob(pattern, 0, NULL, &weights) == 0)
    for (size_t i = 0; i < weights.gl_pathc; i++) add_file(weights.gl_pathv[i], &bytes, &modified);
  globfree(&weights);
  return json_pack("{s:i,s:s,s:I,s:I,s:s,s:i,s:i,s:f}", "format", 1, "teacher", realpath(path, real) ? real : path, "bytes",
                   bytes, "modified", modified, "compute", o->device->compute == KF_BF16 ? "bf16" : "f32", "vocabulary",
                   o->vocabulary, "top", o->top, "temperature", (double)o->temperature);
}

static kf_status check_vocabulary(const kf_cached_options *o, const char *path, kf_error *e) {
  kf_config c;
  KF_TRY(kf_model_read(path, &c, NULL, e));
  int vocabulary = c.vocabulary;
  kf_config_free(&c);
  return vocabulary == o->vocabulary ? KF_OK
                                     : kf_fail(e, KF_ERROR_INPUT, "the student has %d tokens in its vocabulary, the teacher %d",
                                               o->vocabulary, vocabulary);
}

static kf_status open_all(kf_cached_teacher *c, kf_error *e) {
  char path[KF_PATH];
  KF_TRY(kf_locate(c->o.teacher, path, e));
  KF_TRY(check_vocabulary(&c->o, path, e));
  json_t *origin = made_from(&c->o, path);
  if (!origin) return kf_fail(e, KF_ERROR_INPUT, "the teacher's path is not UTF-8");
  kf_status s = kf_teacher_file_open(c->o.directory, origin, c->o.top, &c->file, e);
  json_decref(origin);
  return s;
}

kf_status kf_cached_teacher_open(const kf_cached_options *o, kf_cached_teacher **out, kf_error *e) {
  kf_cached_teacher *c;
  KF_NEW(c, 1, e);
  c->o = *o;
  if (c->o.top > o->vocabulary) c->o.top = o->vocabulary;
  kf_status s = open_all(c, e);
  if (s == KF_OK)
    *out = c;
  else
    kf_cached_teacher_free(c);
  return s;
}

static void free_rows(kf_cached_teacher *c) {
  kf_device *d = c->o.device;
  free(c->row);
  d->release(d, c->outside), d->release(d, c->best), d->release(d, c->lse);
  c->row = NULL, c->outside = c->best = NULL, c->lse = NULL, c->rows = 0;
}

void kf_cached_teacher_free(kf_cached_teacher *c) {
  if (!c) return;
  kf_teacher_file_close(c->file);
  if (c->logits) c->frozen.model->device->release(c->frozen.model->device, c->logits);
  kf_frozen_free(&c->frozen);
  free_rows(c);
  free(c->list);
  free(c);
}

bool kf_cached_teacher_ran(const kf_cached_teacher *c) {
  return c->frozen.model != NULL;
}

const kf_teacher_file *kf_cached_teacher_file(const kf_cached_teacher *c) {
  return c->file;
}

/* ---------------------------------------------------------------------------------------------- making */

static int by_id(const void *a, const void *b) {
  const kf_candidate *x = a, *y = b;
  return (x->id > y->id) - (x->id < y->id);
}

/* Restores the heap, whose smallest logit is its root, below i. */
static void sift(kf_candidate *heap, int n, int i) {
  kf_candidate moved = heap[i];
  for (int child; (child = 2 * i + 1) < n; i = child) {
    if (child + 1 < n && heap[child + 1].logit < heap[child].logit) child++;
    if (heap[child].logit >= moved.logit) break;
    heap[i] = heap[child];
  }
  heap[i] = moved;
}

/* The likeliest of one row of logits by their ids, and what is left to all others. heap: [top] work space. */
static void keep_row(const kf_cached_options *o, const float *logits, kf_candidate *heap, int32_t *id, float *log_p,
                     float *rest) {
  int top = o->top, from = 0;
  float most = -INFINITY;
  double kept = 0, others = 0, t = (double)o->temperature;
  for (int i = 0; i < top; i++) heap[i] = (kf_candidate){logits[i], i};
  for (int i = top / 2 - 1; i >= 0; i--) sift(heap, top, i);
  for (int i = top; i < o->vocabulary; i++) {
    if (logits[i] <= heap->logit) continue;
    *heap = (kf_candidate){logits[i], i};
    sift(heap, top, 0);
  }
  qsort(heap, (size_t)top, sizeof *heap, by_id);
  for (int k = 0; k < top; k++) most = fmaxf(most, heap[k].logit);
  for (int k = 0; k <= top; k++) {
    int to = k < top ? heap[k].id : o->vocabulary;
    for (int i = from; i < to; i++) others += (double)expf((logits[i] - most) / o->temperature);
    if (k < top) kept += exp(((double)heap[k].logit - (double)most) / t);
    from = to + 1;
  }
  double lse = log(kept + others);
  for (int k = 0; k < top; k++) {
    id[k] = heap[k].id;
    log_p[k] = (float)(((double)heap[k].logit - (double)most) / t - lse);
  }
  *rest = (float)fmax(log(others) - lse, -80); /* of nothing: too small to count, but a number */
}

static kf_status start_teacher(kf_cached_teacher *c, kf_error *e) {
  if (c->frozen.model) return KF_OK;
  kf_note(&c->o.model.hooks, "%s lacks predictions for some of the data: the teacher makes them", kf_teacher_file_path(c->file));
  KF_TRY(kf_model_open(c->o.teacher, &c->o.model, &c->frozen.model, e));
  KF_DEVICE_NEW(c->frozen.model->device, c->logits, (int64_t)CHUNK * c->o.vocabulary, e);
  KF_NEW(c->list, (int64_t)CHUNK * c->o.top, e);
  return KF_OK;
}

static kf_status fill(kf_cached_teacher *c, int64_t count, float *rest, int32_t *id, float *log_p, kf_error *e) {
  const int64_t top = c->o.top, n = c->o.vocabulary;
  for (int64_t at = 0; at < count; at += CHUNK) {
    int64_t m = count - at < CHUNK ? count - at : CHUNK;
    KF_TRY(kf_model_logits(c->frozen.model, c->frozen.x + at * c->frozen.model->config.hidden, m, c->logits, e));
    KF_TRY(kf_device_check(c->frozen.model->device, e));
#pragma omp parallel for
    for (int64_t i = 0; i < m; i++)
      keep_row(&c->o, c->logits + i * n, c->list + i * top, id + (at + i) * top, log_p + (at + i) * top, rest + at + i);
  }
  return KF_OK;
}

static kf_status make(kf_cached_teacher *c, const kf_window *sequence, kf_error *e) {
  int64_t count = sequence->count, list = count * c->o.top;
  kf_predictions p;
  float *numbers;
  int32_t *id = NULL;
  KF_TRY(start_teacher(c, e));
  KF_TRY(kf_frozen_forward(&c->frozen, sequence, e));
  KF_NEW(numbers, count + list, e);
  p = (kf_predictions){numbers, id = kf_alloc((size_t)list, sizeof *id, e), numbers + count};
  kf_status s = id ? fill(c, count, numbers, id, numbers + count, e) : KF_ERROR_MEMORY;
  if (s == KF_OK) s = kf_teacher_file_add(c->file, sequence->ids, count, &p, e);
  free(numbers), free(id);
  return s;
}

/* ---------------------------------------------------------------------------------------------- using */

static kf_status room(kf_cached_teacher *c, int64_t rows, kf_error *e) {
  if (rows <= c->rows) return KF_OK;
  free_rows(c);
  KF_NEW(c->row, rows, e);
  KF_DEVICE_NEW(c->o.device, c->outside, rows, e);
  KF_DEVICE_NEW(c->o.device, c->best, rows, e);
  KF_DEVICE_NEW(c->o.device, c->lse, rows, e);
  c->rows = rows;
  return KF_OK;
}

/* The smallest id that is not one of the ascending `id`. */
static int32_t first_outside(const int32_t *id, int top) {
  int32_t i = 0;
  while (i < top && id[i] == i) i++;
  return i;
}

kf_status kf_cached_teacher_prepare(kf_cached_teacher *c, const kf_window *w, kf_error *e) {
  const int top = c->o.top;
  kf_predictions p;
  KF_TRY(room(c, w->count, e));
  for (int i = 0; i < w->sequences; i++) {
    kf_extent whole = {0, w->sequence[i].count};
    kf_window alone = {.ids = w->ids + w->sequence[i].first, .sequence = &whole, .count = whole.count, .sequences = 1};
    if (!kf_teacher_file_find(c->file, alone.ids, alone.count, &p)) KF_TRY(make(c, &alone, e));
  }
  for (int i = 0; i < w->sequences; i++) { /* all are there, and the file is not mapped anew */
    const kf_extent *s = &w->sequence[i];
    if (!kf_teacher_file_find(c->file, w->ids + s->first, s->count, &p))
      return kf_fail(e, KF_ERROR_IO, "%s cannot be read back", kf_teacher_file_path(c->file));
    for (int64_t k = 0; k < s->count; k++) {
      c->row[s->first + k] = (row){p.id + k * top, p.log_p + k * top, p.rest[k]};
      c->outside[s->first + k] = first_outside(p.id + k * top, top);
    }
  }
  return KF_OK;
}

kf_status kf_cached_teacher_logits(void *cached, int64_t first, int64_t m, const float *student, float *logits, kf_error *e) {
  kf_cached_teacher *c = cached;
  kf_device *d = c->o.device;
  const int64_t n = c->o.vocabulary;
  const float t = c->o.temperature;
  const int top = c->o.top;
  const bool all = top == n;
  KF_TRY(kf_device_check(d, e));
  if (!all) { /* log of the sum of e^(x / T) outside S */
#pragma omp parallel for
    for (int64_t i = 0; i < m; i++) {
      float *to = logits + i * n;
      for (int64_t j = 0; j < n; j++) to[j] = student[i * n + j] / t;
      for (int k = 0; k < top; k++) to[c->row[first + i].id[k]] = -1e30f;
    }
    d->cross_entropy(d, logits, c->outside + first, m, n, c->lse + first, c->best + first);
    KF_TRY(kf_device_check(d, e));
  }
#pragma omp parallel for
  for (int64_t i = 0; i < m; i++) {
    const row *r = &c->row[first + i];
    const float *x = student + i * n;
    float *to = logits + i * n;
    double lse = all ? 0 : c->lse[first + i] + (double)to[c->outside[first + i]];
    float shift = (float)((double)t * ((double)r->rest - lse));
    for (int64_t j = 0; !all && j < n; j++) to[j] = x[j] + shift;
    for (int k = 0; k < top; k++) to[r->id[k]] = t * r->log_p[k];
  }
  return KF_OK;
}
