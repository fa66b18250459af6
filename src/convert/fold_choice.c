/* fold: one pass of the source over the calibration windows, and the choice among variants on the windows held out. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "convert/fold.h"

/* ---------------------------------------------------------------------------------------------- candidates */

/* Of the keys' error: what tables are tried with, and what the best of them is tried with then. */
static const double first_weight = 3, other_weights[KF_FOLD_WEIGHTS] = {1, 9};

static void add(kf_fold *f, bool greedy, int64_t pairs, int stride) {
  const kf_value *given = &f->p->value[KF_FOLD_ROPE_PAIRS], *selection = &f->p->value[KF_FOLD_SELECTION],
                 *weight = &f->p->value[KF_FOLD_KEY_WEIGHT];
  int F = f->config->head_dim / 2, most = kf_fold_most_pairs(f->p);
  int64_t J = given->given ? given->integer : pairs < 1 ? 1 : pairs > most ? most : pairs;
  kf_fold_candidate c = {
      .greedy = greedy, .pairs = (int)J, .stride = stride, .key_weight = weight->given ? weight->real : first_weight};
  if (f->candidates == KF_FOLD_TABLES || 2 * c.pairs >= f->elements || (int64_t)(c.pairs - 1) * stride >= F) return;
  if (selection->choice != KF_FOLD_AUTO && (selection->choice == KF_FOLD_GREEDY) != greedy) return;
  for (int i = 0; i < f->candidates; i++)
    if (f->candidate[i].greedy == greedy && f->candidate[i].pairs == c.pairs && f->candidate[i].stride == stride) return;
  f->candidate[f->candidates++] = c;
}

/* Pairs that turn by an angle or more within a context: the slower ones can do without a rotation. At least 1. */
static kf_status turning_pairs(const kf_fold *f, double angle, int *out, kf_error *e) {
  int F = f->config->head_dim / 2;
  double *frequency, gain;
  KF_NEW(frequency, F, e);
  for (int i = 0; i < f->config->layers; i++)
    if (kf_plan_rotates(f->p, i)) {
      kf_rope_frequencies(&f->config->layer[i].attention.rope, f->context, frequency, &gain);
      break;
    }
  *out = 0;
  for (int i = 0; i < F; i++) *out += frequency[i] * (double)f->context >= angle;
  free(frequency);
  *out = *out < 1 ? 1 : *out;
  return KF_OK;
}

/* A table reaches over the turning pairs, by half a turn, when its last is the slowest of them or slower still. Tried: the
 * numbers of pairs that strides 1, 2, 3, ... need for that, from a sixteenth of the budget (at stride 1: or fewer) to a quarter;
 * and at stride 1 all that turn by a radian, or by a tenth of one. A greedy channel serves its own frequency alone: tried with
 * all that turn, or the fastest, a quarter of the budget. */
static void add_tables(kf_fold *f, int turning, const int *more, int count) {
  int64_t budget = f->elements;
  add(f, true, 4 * turning <= budget ? turning : budget / 4, 1);
  for (int i = 0; i < count; i++)
    if (4 * more[i] <= budget) add(f, false, more[i], 1);
  for (int s = 1, before = 0; s <= turning; s++) {
    int pairs = (turning - 1 + s - 1) / s + 1;
    if (pairs != before && (4 * pairs <= budget || pairs <= 2) && (s == 1 || 16 * pairs >= budget)) add(f, false, pairs, s);
    before = pairs;
  }
}

/* The strides at which the given number of pairs just does not, and does, reach over the turning ones; greedy: the fastest. */
static void add_strides(kf_fold *f, int turning, int pairs) {
  int last = turning > 1 ? turning - 1 : 1, steps = pairs > 1 ? pairs - 1 : last;
  add(f, false, pairs, last / steps < 1 ? 1 : last / steps);
  add(f, false, pairs, (last + steps - 1) / steps);
  add(f, true, pairs, 1);
}

/* Any frequencies, any number of times: parts of the budget. */
static void add_selections(kf_fold *f) {
  add(f, false, f->elements / 8, 0);
  add(f, false, f->elements / 5, 0);
  add(f, true, f->elements / 5, 0);
}

kf_status kf_fold_list_candidates(kf_fold *f, kf_error *e) {
  const kf_value *pairs = &f->p->value[KF_FOLD_ROPE_PAIRS];
  int turning, more[2];
  KF_TRY(turning_pairs(f, M_PI, &turning, e));
  KF_TRY(turning_pairs(f, 1, &more[0], e));
  KF_TRY(turning_pairs(f, 0.1, &more[1], e));
  if (!f->stock) add_selections(f);
  if (pairs->given)
    add_strides(f, turning, (int)pairs->integer);
  else
    add_tables(f, turning, more, 2);
  if (f->candidates) return KF_OK;
  return kf_fail(e, KF_ERROR_INPUT, "a budget of %lld elements leaves no room for rotated pairs and latents",
                 (long long)f->elements);
}

/* ---------------------------------------------------------------------------------------------- one pass of the source */

typedef struct collector {
  kf_attention_statistics *statistics;
  const kf_attention_probe *probe;
  int threads;
  kf_status status;
  kf_error *e;
} collector;

static void seen(void *user, int layer, int64_t m, const float *input, const float *q, int64_t q_stride, const float *k,
                 int64_t k_stride) {
  collector *c = user;
  const kf_attention_statistics *s = c->statistics;
  (void)layer, (void)k_stride;
  if (c->status == KF_OK)
    c->status = kf_attention_statistics_add(c->statistics, c->probe, m, input, q, k, k + (int64_t)s->kv_heads * s->d_qk, q_stride,
                                            c->threads, c->e);
}

/* Runs the calibration windows through the source's layer. */
static kf_status collect(kf_fold *f, const kf_fold_source *source, const kf_layer *layer, int index, kf_attention_statistics *out,
                         kf_error *e) {
  kf_attention_probe probe;
  KF_TRY(kf_attention_statistics_create(source->a, f->config->hidden, f->fit.window, out, e));
  KF_TRY(kf_attention_probe_create(source->a, f->config->hidden, f->fit.window, source->o, source->q_norm, source->k_norm,
                                   f->config->eps, &probe, e));
  collector c = {out, &probe, f->threads, KF_OK, e};
  kf_status s = kf_stream_forward(f->device, f->run, layer, index, &f->fit, &(kf_watch){.seen = seen, .user = &c}, e);
  kf_attention_probe_free(&probe);
  if (s == KF_OK) s = c.status;
  if (s == KF_OK && !(out->weight > 0 && isfinite(out->weight)))
    s = kf_fail(e, KF_ERROR_INPUT, "layer %d: its attention gives no finite statistics", index);
  return s;
}

/* What a layer is converted from. */
typedef struct material {
  int index;
  kf_fold_source source;
  kf_attention_statistics statistics;
  kf_rope_problem problem;
} material;

static kf_status map_candidate(const kf_fold *f, kf_fold_candidate *c, const material *m, kf_error *e) {
  kf_channels channels;
  KF_TRY(kf_fold_channels(f, &m->problem, m->index, c, &channels, e));
  kf_status s = kf_fold_layer_map(&m->source, &m->statistics, &m->problem, &channels, f->elements, c->key_weight,
                                  &c->student.mapped[m->index], e);
  kf_channels_free(&channels);
  return s;
}

/* The layers of all candidates from `first` on at once: the factorisations are too small for several threads each. */
static kf_status map_candidates(kf_fold *f, int first, const material *m, kf_error *e) {
  kf_error why[KF_FOLD_CANDIDATES] = {0};
#pragma omp parallel for schedule(dynamic) num_threads(f->threads)
  for (int i = first; i < f->candidates; i++) map_candidate(f, &f->candidate[i], m, &why[i]);
  for (int i = first; i < f->candidates; i++)
    if (why[i].status != KF_OK) return kf_fail(e, why[i].status, "layer %d: %s", m->index, why[i].message);
  return KF_OK;
}

/* Runs the candidate's layer over its stream of held-out windows. */
static kf_status run_candidate(kf_fold *f, kf_fold_candidate *c, int index, const kf_layer *teacher, kf_error *e) {
  kf_mapped *mapped = &c->student.mapped[index];
  kf_layer layer;
  c->student.layer[index].attention = mapped->attention;
  kf_status s = kf_layer_mapped(f->device, teacher, &c->student.layer[index], mapped, &layer, e);
  kf_mapped_drop(mapped);
  KF_TRY(s);
  c->student.stream.config = &c->student.config;
  s = kf_stream_forward(f->device, f->run, &layer, index, &c->student.stream, NULL, e);
  kf_layer_mapped_free(&layer, teacher, f->device);
  return s;
}

/* The layer's statistics, from the store or into it. */
static kf_status study(kf_fold *f, const kf_layer *teacher, material *m, kf_error *e) {
  if (f->store.complete)
    KF_TRY(kf_attention_statistics_create(m->source.a, f->config->hidden, f->fit.window, &m->statistics, e));
  else
    KF_TRY(collect(f, &m->source, teacher, m->index, &m->statistics, e));
  return kf_fold_move_statistics(f, &m->statistics, e);
}

/* first 0: the source's stream of held-out windows goes through the layer too; else it is at its end. */
static kf_status try_layer(kf_fold *f, int index, int first, bool judged, kf_error *e) {
  kf_layer teacher;
  material m = {.index = index};
  kf_status s;
  KF_TRY(kf_layer_load(f->weights, index, f->device, &teacher, e));
  KF_GO(kf_fold_source_read(f->weights, index, f->fit.window, &m.source, e));
  KF_GO(study(f, &teacher, &m, e));
  KF_GO(kf_fold_source_settle(&m.source, &m.statistics, e));
  if (!first) KF_GO(kf_stream_forward(f->device, f->run, &teacher, index, &f->tune, NULL, e));
  if (judged) {
    KF_GO(kf_fold_problem(f, &m.source, &m.statistics, &m.problem, e));
    KF_GO(map_candidates(f, first, &m, e));
    for (int i = first; i < f->candidates; i++) KF_GO(run_candidate(f, &f->candidate[i], index, &teacher, e));
  }
done:
  kf_rope_problem_free(&m.problem);
  kf_attention_statistics_free(&m.statistics);
  kf_fold_source_free(&m.source);
  kf_layer_free(&teacher, f->device);
  return s;
}

/* ---------------------------------------------------------------------------------------------- the choice */

kf_status kf_fold_judge(kf_fold *f, float *const *converted, int count, kf_nearness *out, kf_error *e) {
  return kf_nearness_judge(f->weights, f->device, f->tune_ids, f->tune.windows, f->tune.window, f->tune.x, converted, count, out,
                           e);
}

static kf_status judge_candidates(kf_fold *f, int first, kf_error *e) {
  float *stream[KF_FOLD_CANDIDATES];
  kf_nearness nearness[KF_FOLD_CANDIDATES];
  int count = f->candidates - first;
  for (int i = 0; i < count; i++) stream[i] = f->candidate[first + i].student.stream.x;
  KF_TRY(kf_fold_judge(f, stream, count, nearness, e));
  for (int i = first; i < f->candidates; i++) {
    kf_fold_candidate *c = &f->candidate[i];
    c->nearness = nearness[i - first];
    if (c->nearness.kl < f->candidate[f->best].nearness.kl) f->best = i;
    char table[48] = "any frequencies";
    if (c->stride) snprintf(table, sizeof table, "stock table, stride %d", c->stride);
    kf_note(f->p->hooks, "%d rotated pairs, %s, %s selection, key weight %g: KL %.4f on %lld tokens held out, before refits",
            c->pairs, table, c->greedy ? "greedy" : "fold", c->key_weight, c->nearness.kl,
            (long long)(f->tune.windows * f->tune.window));
  }
  return KF_OK;
}

/* Brings the candidates from `first` on through all layers and judges them. */
static kf_status try_candidates(kf_fold *f, const char *what, int first, bool judged, kf_error *e) {
  for (int i = 0; i < f->config->layers; i++) {
    KF_TRY(kf_progress(f->p->hooks, what, i, f->config->layers, e));
    KF_TRY(try_layer(f, i, first, judged, e));
  }
  KF_TRY(kf_shared_complete(&f->store, e));
  return judged ? judge_candidates(f, first, e) : KF_OK;
}

static void add_weights(kf_fold *f) {
  const kf_fold_candidate *best = &f->candidate[f->best];
  for (int i = 0; i < KF_FOLD_WEIGHTS; i++) {
    kf_fold_candidate *c = &f->candidate[f->candidates++];
    c->greedy = best->greedy;
    c->pairs = best->pairs;
    c->stride = best->stride;
    c->key_weight = other_weights[i];
  }
}

kf_status kf_fold_choose(kf_fold *f, kf_error *e) {
  bool weigh = !f->p->value[KF_FOLD_KEY_WEIGHT].given, judged = weigh || f->candidates > 1;
  int first = f->candidates, all = first + (weigh ? KF_FOLD_WEIGHTS : 0);
  for (int i = 0; i < all && judged; i++) /* now, while the stream of held-out windows stands at its start */
    KF_TRY(kf_student_create(f->config, f->elements, &f->tune, &f->candidate[i].student, e));
  KF_TRY(try_candidates(f, "calibrating", 0, judged, e));
  if (weigh) {
    add_weights(f);
    KF_TRY(try_candidates(f, "weighing keys", first, true, e));
  }
  for (int i = 0; i < all; i++) kf_student_free(&f->candidate[i].student);
  return KF_OK;
}
