#include "convert/calibrator.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "convert/fold_stream.h"
#include "linalg/linalg.h"

/* ---------------------------------------------------------------------------------------------- beginning and end */

static kf_status begin(kf_calibrator *c, const kf_plan *p, const kf_corpus *corpus, kf_error *e) {
  int windows;
  KF_TRY(kf_device_open_cpu(p->o->compute, p->o->threads, &c->device, e));
  KF_TRY(kf_run_create(c->device, c->config, &c->run, e));
  KF_TRY(kf_corpus_windows(corpus, c->weights, c->window, 5, &c->ids, &c->start, &windows, e));
  c->held_out = windows / 5;
  c->fitted = windows - c->held_out;
  return KF_OK;
}

kf_status kf_calibrator_create(const kf_plan *p, const kf_corpus *corpus, kf_calibrator **out, kf_error *e) {
  kf_calibrator *c;
  KF_NEW(c, 1, e);
  c->config = p->source;
  c->weights = p->weights;
  c->window = c->config->context < KF_FOLD_WINDOW ? c->config->context : KF_FOLD_WINDOW;
  c->index = -1;
  kf_status s = begin(c, p, corpus, e);
  if (s != KF_OK)
    kf_calibrator_free(c);
  else
    *out = c;
  return s;
}

static void unload(kf_calibrator *c) {
  if (c->index >= 0) kf_layer_free(&c->layer, c->device);
  c->index = -1;
}

void kf_calibrator_free(kf_calibrator *c) {
  if (!c) return;
  unload(c);
  kf_run_free(c->run);
  kf_device_close(c->device);
  free(c->ids);
  free(c->start);
  free(c);
}

kf_status kf_calibrator_begin(const kf_calibrator *c, bool held_out, float **x, kf_error *e) {
  int64_t each = c->window * c->config->hidden, count = (held_out ? c->held_out : c->fitted) * each;
  KF_NEW(*x, count, e);
  memcpy(*x, c->start + (held_out ? c->fitted * each : 0), (size_t)count * sizeof **x);
  return KF_OK;
}

kf_status kf_calibrator_load(kf_calibrator *c, int index, kf_error *e) {
  if (c->index == index) return KF_OK;
  unload(c);
  KF_TRY(kf_layer_load(c->weights, index, c->device, &c->layer, e));
  c->index = index;
  return KF_OK;
}

/* ---------------------------------------------------------------------------------------------- moments */

/* [RMSNorm(x); 1] of m tokens, in fp64. to: [m, hidden + 1] */
static void normed_input(const kf_calibrator *c, const float *x, int64_t m, double *to) {
  int64_t d = c->config->hidden;
  for (int64_t t = 0; t < m; t++, x += d, to += d + 1) {
    double square = 0;
    for (int64_t i = 0; i < d; i++) square += (double)x[i] * x[i];
    double scale = 1 / sqrt(square / (double)d + (double)c->config->eps);
    for (int64_t i = 0; i < d; i++) to[i] = scale * x[i] * c->layer.input_norm[i];
    to[d] = 1;
  }
}

kf_status kf_calibrator_moment(const kf_calibrator *c, const float *x, double *moment, kf_error *e) {
  int64_t d = c->config->hidden, w = d + 1, m = c->window;
  double *input, trace = 0;
  KF_NEW(input, m * w, e);
  for (int i = 0; i < c->fitted; i++) {
    normed_input(c, x + i * m * d, m, input);
    kf_gemm(true, false, w, w, m, 1 / (double)(c->fitted * m), input, input, i ? 1 : 0, moment);
  }
  free(input);
  for (int64_t i = 0; i < d; i++) trace += moment[i * w + i];
  if (isfinite(trace) && trace > 0) return KF_OK;
  return kf_fail(e, KF_ERROR_INPUT, "layer %d: its input gives no finite statistics", c->index);
}

/* ---------------------------------------------------------------------------------------------- a layer at work */

static const kf_mapped_tensor *tensor(const kf_mapped *m, const char *name) {
  for (int i = 0; i < m->tensors; i++)
    if (strcmp(m->tensor[i].name, name) == 0) return &m->tensor[i];
  return NULL;
}

static kf_status pack(kf_device *d, const kf_mapped *m, const char *name, const char *bias, kf_weight **out, kf_error *e) {
  const kf_mapped_tensor *t = tensor(m, name), *b = tensor(m, bias);
  return d->pack(d, t->data, b ? b->data : NULL, t->shape[0], t->shape[1], out, e);
}

/* The loaded layer with its attention replaced; norms, output projection and MLP are its own. */
static kf_status dress(kf_calibrator *c, const kf_layer_config *config, const kf_mapped *m, kf_layer *out, kf_error *e) {
  const kf_layer *l = &c->layer;
  const kf_mapped_tensor *kv_b = tensor(m, "kv_b_proj.weight");
  *out = (kf_layer){.config = config,
                    .input_norm = l->input_norm,
                    .post_norm = l->post_norm,
                    .o = l->o,
                    .gate_up = l->gate_up,
                    .down = l->down};
  KF_TRY(pack(c->device, m, "q_proj.weight", "q_proj.bias", &out->q, e));
  KF_TRY(pack(c->device, m, "kv_a_proj.weight", "kv_a_proj.bias", &out->kv_a, e));
  KF_TRY(pack(c->device, m, "kv_b_proj.weight", "kv_b_proj.bias", &out->kv_b, e));
  KF_TRY(c->device->plain(c->device, kv_b->data, kv_b->shape[0], kv_b->shape[1], &out->kv_b_plain, e));
  return kf_layer_head_rows(out, e);
}

static void undress(kf_calibrator *c, kf_layer *l) {
  kf_weight *own[] = {l->q, l->kv_a, l->kv_b, l->kv_b_plain};
  for (size_t i = 0; i < sizeof own / sizeof *own; i++)
    if (own[i]) c->device->weight_free(c->device, own[i]);
  free(l->key_rows);
  free(l->value_rows);
}

kf_status kf_calibrator_forward(kf_calibrator *c, bool held_out, const kf_mapped *mapped, float *x, kf_error *e) {
  kf_stream stream = {.config = c->config, .windows = held_out ? c->held_out : c->fitted, .window = c->window, .x = x};
  if (!mapped) return kf_stream_forward(c->device, c->run, &c->layer, c->index, &stream, NULL, e);
  kf_config student = *c->config;
  kf_layer_config *layers;
  kf_layer layer;
  KF_NEW(layers, c->config->layers, e);
  memcpy(layers, c->config->layer, (size_t)c->config->layers * sizeof *layers);
  layers[c->index].attention = mapped->attention;
  student.layer = layers;
  stream.config = &student;
  kf_status s = dress(c, &layers[c->index], mapped, &layer, e);
  if (s == KF_OK) s = kf_stream_forward(c->device, c->run, &layer, c->index, &stream, NULL, e);
  undress(c, &layer);
  free(layers);
  return s;
}

kf_status kf_calibrator_judge(kf_calibrator *c, const float *reference, float *const *x, int count, kf_nearness *out,
                              kf_error *e) {
  return kf_nearness_judge(c->weights, c->device, c->ids + c->fitted * c->window, c->held_out, c->window, reference, x, count,
                           out, e);
}
