#include "eval/layer_error.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* One of the two models at work on one stream of hidden states. */
typedef struct side {
  kf_model *model;
  kf_sequence *sequence;
  float *attention; /* [tokens, hidden] outputs of the attention block */
  int64_t seen;     /* rows of it that are filled */
} side;

typedef struct comparison {
  side teacher, student;
  int sequences;
  int64_t length, hidden;
  float *x, *isolated, *own; /* [tokens, hidden]: the teacher's stream, the student's layer on it, the student's stream */
} comparison;

static void attended(void *user, int layer, int64_t m, const float *x, const float *out) {
  side *s = user;
  kf_device *d = s->model->device;
  (void)x;
  d->linear(d, s->attention + s->seen * s->model->config.hidden, out, s->model->layer[layer].o, m, false);
  s->seen += m;
}

/* Runs a layer over all sequences of x in place; watched: its attention's outputs are kept. */
static kf_status run_layer(const comparison *c, side *s, int layer, float *x, bool watched, kf_error *e) {
  const kf_watch watch = {.attended = attended, .user = s};
  s->seen = 0;
  for (int i = 0; i < c->sequences; i++) {
    kf_span span = {s->sequence, 0, c->length, 0};
    KF_TRY(kf_layer_forward(s->model->run, &s->model->layer[layer], layer, x + i * c->length * c->hidden, &span, 1,
                            watched ? &watch : NULL, e));
  }
  return KF_OK;
}

static double mean_error(const float *got, const float *want, int64_t tokens, int64_t n) {
  double sum = 0;
  for (int64_t t = 0; t < tokens; t++) {
    double difference = 0, norm = 0;
    for (int64_t i = t * n; i < (t + 1) * n; i++) {
      difference += pow((double)got[i] - (double)want[i], 2);
      norm += pow((double)want[i], 2);
    }
    sum += norm > 0 ? sqrt(difference / norm) : difference > 0;
  }
  return sum / (double)tokens;
}

static kf_status compare_layer(comparison *c, int layer, kf_layer_error *out, kf_error *e) {
  int64_t tokens = c->sequences * c->length;
  memcpy(c->isolated, c->x, (size_t)(tokens * c->hidden) * sizeof *c->x);
  KF_TRY(run_layer(c, &c->teacher, layer, c->x, true, e));
  KF_TRY(run_layer(c, &c->student, layer, c->isolated, true, e));
  out->attention = mean_error(c->student.attention, c->teacher.attention, tokens, c->hidden);
  out->residual = mean_error(c->isolated, c->x, tokens, c->hidden);
  KF_TRY(run_layer(c, &c->student, layer, c->own, false, e));
  out->cumulative = mean_error(c->own, c->x, tokens, c->hidden);
  kf_sequence_drop(c->teacher.sequence, layer);
  kf_sequence_drop(c->student.sequence, layer);
  return KF_OK;
}

static kf_status side_open(side *s, kf_model *m, int64_t numbers, kf_error *e) {
  s->model = m;
  KF_DEVICE_NEW(m->device, s->attention, numbers, e);
  return kf_sequence_create(&m->config, m->device, &s->sequence, e);
}

static kf_status prepare(comparison *c, kf_model *teacher, kf_model *student, const int32_t *input, kf_error *e) {
  int64_t tokens = c->sequences * c->length;
  KF_DEVICE_NEW(teacher->device, c->x, tokens * c->hidden, e);
  KF_DEVICE_NEW(student->device, c->isolated, tokens * c->hidden, e);
  KF_DEVICE_NEW(student->device, c->own, tokens * c->hidden, e);
  KF_TRY(side_open(&c->teacher, teacher, tokens * c->hidden, e));
  KF_TRY(side_open(&c->student, student, tokens * c->hidden, e));
  KF_TRY(kf_embed(&teacher->weights, teacher->embedding, input, tokens, c->x, e));
  return kf_embed(&student->weights, student->embedding, input, tokens, c->own, e);
}

kf_status kf_layer_errors(kf_model *teacher, kf_model *student, const int32_t *input, int sequences, int64_t length,
                          const kf_hooks *hooks, kf_layer_error *out, kf_error *e) {
  comparison c = {.sequences = sequences, .length = length, .hidden = teacher->config.hidden};
  kf_status s;
  int layers = teacher->config.layers;
  if (student->config.layers != layers || student->config.hidden != c.hidden)
    return kf_fail(e, KF_ERROR_INPUT, "layers are compared one by one: %d of width %d against %d of width %d",
                   student->config.layers, student->config.hidden, layers, (int)c.hidden);
  KF_GO(prepare(&c, teacher, student, input, e));
  for (int i = 0; i < layers; i++) {
    KF_GO(kf_progress(hooks, "layers", i, layers, e));
    KF_GO(compare_layer(&c, i, &out[i], e));
  }
  s = kf_progress(hooks, "layers", layers, layers, e);
done:
  kf_sequence_free(c.teacher.sequence);
  kf_sequence_free(c.student.sequence);
  teacher->device->release(teacher->device, c.teacher.attention);
  teacher->device->release(teacher->device, c.x);
  float *numbers[] = {c.student.attention, c.isolated, c.own};
  for (int i = 0; i < 3; i++) student->device->release(student->device, numbers[i]);
  return s;
}
