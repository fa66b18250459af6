#include "train/parameters.h"

#include <fnmatch.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct enumeration {
  kf_parameters *p;
  bool matrices, counting;
} enumeration;

static kf_status add(void *user, const char *name, int64_t rows, int64_t columns, kf_error *e) {
  enumeration *n = user;
  kf_parameters *p = n->p;
  if (!n->counting && (columns > 1) != n->matrices) return KF_OK;
  if (!n->counting) {
    kf_parameter *item = &p->item[p->count];
    *item = (kf_parameter){.rows = rows, .columns = columns, .at = p->total, .trained = true};
    item->decays = columns > 1 && !strstr(name, "norm");
    if (!(item->name = kf_arena_string(&p->arena, name, strlen(name), e))) return KF_ERROR_MEMORY;
    p->total += rows * columns;
  }
  p->count++;
  return KF_OK;
}

static kf_status enumerate(kf_parameters *p, const kf_config *c, kf_error *e) {
  enumeration n = {.p = p, .counting = true};
  KF_TRY(kf_weights_each(c, add, &n, e));
  KF_NEW(p->item, p->count, e);
  p->count = 0;
  n = (enumeration){.p = p, .matrices = true};
  KF_TRY(kf_weights_each(c, add, &n, e));
  p->matrices = p->total;
  n.matrices = false;
  return kf_weights_each(c, add, &n, e);
}

static kf_status allocate(kf_parameters *p, kf_error *e) {
  KF_DEVICE_NEW(p->device, p->value, p->total, e);
  KF_DEVICE_NEW(p->device, p->gradient, p->total, e);
  KF_DEVICE_NEW(p->device, p->first, p->total, e);
  KF_DEVICE_NEW(p->device, p->second, p->total, e);
  p->compute = p->value;
  if (p->device->compute == KF_F32) return KF_OK;
  p->compute = p->device->alloc(p->device, (size_t)p->matrices, sizeof(uint16_t), e);
  return p->compute ? KF_OK : KF_ERROR_MEMORY;
}

kf_status kf_parameters_create(const kf_config *c, kf_device *d, kf_parameters **out, kf_error *e) {
  kf_parameters *p;
  KF_NEW(p, 1, e);
  p->device = d;
  kf_status s = enumerate(p, c, e);
  if (s == KF_OK) s = allocate(p, e);
  if (s == KF_OK) s = kf_parameters_choose(p, NULL, 0, NULL, 0, e);
  if (s != KF_OK)
    kf_parameters_free(p);
  else
    *out = p;
  return s;
}

void kf_parameters_free(kf_parameters *p) {
  if (!p) return;
  kf_device *d = p->device;
  if (p->compute != p->value) d->release(d, p->compute);
  d->release(d, p->value);
  d->release(d, p->gradient);
  d->release(d, p->first);
  d->release(d, p->second);
  free(p->item);
  kf_arena_free(&p->arena);
  free(p);
}

const kf_parameter *kf_parameters_find(const kf_parameters *p, const char *name) {
  for (int i = 0; i < p->count; i++)
    if (strcmp(p->item[i].name, name) == 0) return &p->item[i];
  return NULL;
}

static void reset_moments(kf_parameters *p) {
  for (int i = 0; i < p->count; i++) {
    kf_stretch own = kf_parameters_piece(&p->item[i], p->own);
    if (!own.count) continue;
    p->device->zero(p->device, p->first + own.at, own.count);
    p->device->zero(p->device, p->second + own.at, own.count);
  }
}

kf_status kf_parameters_load(kf_parameters *p, const kf_weights *w, kf_error *e) {
  for (int i = 0; i < p->count; i++) {
    const kf_parameter *item = &p->item[i];
    const kf_view *embedding;
    float *data;
    if (strcmp(item->name, "model.embed_tokens.weight") == 0) { /* a tied one may be stored as lm_head only */
      KF_TRY(kf_weights_embedding(w, &embedding, e));
      KF_TRY(kf_source_rows(w->source, embedding, 0, item->rows, p->value + item->at, e));
      kf_source_done(w->source, embedding);
      continue;
    }
    KF_TRY(kf_weights_read(w, item->name, item->rows, item->columns, &data, e));
    memcpy(p->value + item->at, data, (size_t)(item->rows * item->columns) * sizeof *data);
    free(data);
  }
  reset_moments(p);
  kf_parameters_round(p);
  return kf_device_check(p->device, e);
}

/* ---------------------------------------------------------------------------------------------- what is trained */

static bool matches(const char *name, const char *pattern) {
  char anywhere[512];
  snprintf(anywhere, sizeof anywhere, "*%s*", pattern);
  return fnmatch(anywhere, name, 0) == 0;
}

/* Everything that is trained is this process's own until it is dealt out. */
static void number(kf_parameters *p) {
  p->own = (kf_shard){0};
  for (int i = 0; i < p->count; i++) {
    p->item[i].order = p->own.to;
    if (p->item[i].trained) p->own.to += p->item[i].rows * p->item[i].columns;
  }
}

static kf_status mark(kf_parameters *p, const char *pattern, bool trained, kf_error *e) {
  int found = 0;
  for (int i = 0; i < p->count; i++) {
    if (!matches(p->item[i].name, pattern)) continue;
    p->item[i].trained = trained;
    found++;
  }
  return found ? KF_OK : kf_fail(e, KF_ERROR_USAGE, "no tensor's name matches '%.80s'", pattern);
}

kf_status kf_parameters_choose(kf_parameters *p, const char *const *train, int train_count, const char *const *freeze,
                               int freeze_count, kf_error *e) {
  for (int i = 0; i < p->count; i++) p->item[i].trained = train_count == 0;
  for (int i = 0; i < train_count; i++) KF_TRY(mark(p, train[i], true, e));
  for (int i = 0; i < freeze_count; i++) KF_TRY(mark(p, freeze[i], false, e));
  number(p);
  return kf_parameters_trained(p) ? KF_OK : kf_fail(e, KF_ERROR_USAGE, "every tensor is frozen: nothing is left to train");
}

int64_t kf_parameters_trained(const kf_parameters *p) {
  int64_t sum = 0;
  for (int i = 0; i < p->count; i++)
    if (p->item[i].trained) sum += p->item[i].rows * p->item[i].columns;
  return sum;
}

/* ---------------------------------------------------------------------------------------------- a step */

void kf_parameters_round(kf_parameters *p) {
  if (p->compute != p->value) p->device->round(p->device, p->compute, p->value, p->matrices);
}

void kf_parameters_zero_gradient(kf_parameters *p) {
  for (int i = 0; i < p->count; i++) {
    const kf_parameter *item = &p->item[i];
    if (item->trained) p->device->zero(p->device, p->gradient + item->at, item->rows * item->columns);
  }
}

kf_stretch kf_parameters_piece(const kf_parameter *item, kf_shard s) {
  int64_t from = s.from - item->order, to = s.to - item->order, n = item->trained ? item->rows * item->columns : 0;
  if (from < 0) from = 0;
  if (to > n) to = n;
  return from < to ? (kf_stretch){item->at + from, to - from} : (kf_stretch){item->at, 0};
}

static double squares(const kf_parameters *p, int i) {
  kf_stretch own = kf_parameters_piece(&p->item[i], p->own);
  return own.count ? p->device->sum_squares(p->device, p->gradient + own.at, own.count) : 0;
}

double kf_parameters_gradient_squares(const kf_parameters *p) {
  double sum = 0;
  for (int i = 0; i < p->count; i++) sum += squares(p, i);
  return sum;
}

int kf_parameters_broken(const kf_parameters *p) {
  int i = 0;
  while (i < p->count && isfinite(squares(p, i))) i++;
  return i;
}

void kf_parameters_step(kf_parameters *p, const kf_adamw *o) {
  for (int i = 0; i < p->count; i++) {
    kf_stretch own = kf_parameters_piece(&p->item[i], p->own);
    kf_adamw mine = *o;
    if (!p->item[i].decays) mine.decay = 0;
    if (own.count)
      p->device->adamw(p->device, &mine, p->value + own.at, p->first + own.at, p->second + own.at, p->gradient + own.at,
                       own.count);
  }
}
