#include "model/run.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

kf_status kf_run_create(kf_device *d, const kf_config *c, kf_run **out, kf_error *e) {
  KF_NEW(*out, 1, e);
  (*out)->device = d;
  (*out)->config = c;
  return KF_OK;
}

void kf_run_free(kf_run *r) {
  if (!r) return;
  for (int i = 0; i < KF_SLOTS; i++) r->device->release(r->device, r->slot[i]);
  for (int i = 0; i < r->tables; i++) {
    r->device->release(r->device, r->table[i].cos);
    r->device->release(r->device, r->table[i].sin);
  }
  r->device->release(r->device, r->position);
  free(r);
}

void kf_run_set_form(kf_run *r, kf_latent_form form) {
  r->form = form;
}

kf_status kf_run_slot(kf_run *r, kf_slot slot, int64_t count, float **out, kf_error *e) {
  if ((size_t)count > r->capacity[slot]) {
    r->device->release(r->device, r->slot[slot]);
    r->capacity[slot] = 0;
    KF_DEVICE_NEW(r->device, r->slot[slot], count, e);
    r->capacity[slot] = (size_t)count;
  }
  *out = r->slot[slot];
  return KF_OK;
}

static bool same_rope(const kf_rope *a, const kf_rope *b) {
  if (a->type != b->type || a->dim != b->dim || a->theta != b->theta || a->context != b->context) return false;
  double fa[4096], fb[4096], ma, mb;
  if (a->type == KF_ROPE_DYNAMIC || a->type == KF_ROPE_LONGROPE || a->dim > 8192)
    return a->factor == b->factor && a->original_context == b->original_context && a->short_factor == b->short_factor;
  kf_rope_frequencies(a, a->context, fa, &ma);
  kf_rope_frequencies(b, b->context, fb, &mb);
  return ma == mb && memcmp(fa, fb, (size_t)a->dim / 2 * sizeof *fa) == 0;
}

/* Two lengths have the same frequencies unless the scaling depends on the length. */
static bool same_length(const kf_rope *r, int64_t a, int64_t b) {
  if (r->type == KF_ROPE_DYNAMIC) return (a <= r->context && b <= r->context) || a == b;
  if (r->type == KF_ROPE_LONGROPE) return (a > r->original_context) == (b > r->original_context);
  return true;
}

static kf_status fill(kf_device *d, kf_rope_table *t, int64_t length, kf_error *e) {
  int64_t pairs = t->rope.dim / 2, rows = length < 512 ? 512 : length + length / 2;
  double *f, factor;
  KF_NEW(f, pairs + 1, e);
  float *cosine = d->alloc(d, (size_t)(rows * pairs) + 1, sizeof *cosine, e),
        *sine = d->alloc(d, (size_t)(rows * pairs) + 1, sizeof *sine, e);
  if (!cosine || !sine) {
    free(f);
    d->release(d, cosine);
    d->release(d, sine);
    return KF_ERROR_MEMORY;
  }
  kf_rope_frequencies(&t->rope, length, f, &factor);
  for (int64_t p = 0; p < rows; p++)
    for (int64_t i = 0; i < pairs; i++) {
      float angle = (float)p * (float)f[i]; /* an f32 product, as Hugging Face forms it */
      cosine[p * pairs + i] = (float)(cos(angle) * factor);
      sine[p * pairs + i] = (float)(sin(angle) * factor);
    }
  free(f);
  d->release(d, t->cos);
  d->release(d, t->sin);
  t->cos = cosine;
  t->sin = sine;
  t->positions = rows;
  t->length = length;
  return KF_OK;
}

kf_status kf_run_rope(kf_run *r, const kf_rope *rope, int64_t length, const kf_rope_table **out, kf_error *e) {
  kf_rope_table *t = NULL;
  for (int i = 0; i < r->tables && !t; i++)
    if (same_rope(&r->table[i].rope, rope)) t = &r->table[i];
  if (!t) {
    if (r->tables == KF_TABLES) return kf_fail(e, KF_ERROR_INPUT, "more than %d different rotations in one model", KF_TABLES);
    t = &r->table[r->tables];
    *t = (kf_rope_table){.rope = *rope};
    KF_TRY(fill(r->device, t, length, e));
    r->tables++;
  }
  if (length > t->positions || !same_length(rope, t->length, length)) KF_TRY(fill(r->device, t, length, e));
  *out = t;
  return KF_OK;
}
