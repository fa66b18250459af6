#include "train/objective.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "train/cached_teacher.h"

/* ---------------------------------------------------------------------------------------------- the frozen model */

void kf_frozen_free(kf_frozen *f) {
  for (int i = 0; i < f->sequences; i++) kf_sequence_free(f->sequence[i]);
  free(f->sequence);
  free(f->span);
  if (f->model) f->model->device->release(f->model->device, f->x);
  kf_model_close(f->model);
  *f = (kf_frozen){0};
}

static kf_status more_sequences(kf_frozen *f, int count, kf_error *e) {
  if (count <= f->sequences) return KF_OK;
  kf_sequence **all;
  KF_NEW(all, count, e);
  if (f->sequences) memcpy(all, f->sequence, (size_t)f->sequences * sizeof *all);
  free(f->sequence);
  f->sequence = all;
  free(f->span);
  KF_NEW(f->span, count, e);
  for (; f->sequences < count; f->sequences++)
    KF_TRY(kf_sequence_create(&f->model->config, f->model->device, &f->sequence[f->sequences], e));
  return KF_OK;
}

/* Spans with empty caches, and embeddings in f->x. */
static kf_status frozen_begin(kf_frozen *f, const kf_window *w, kf_error *e) {
  kf_model *m = f->model;
  KF_TRY(more_sequences(f, w->sequences, e));
  if (w->count > f->capacity) {
    m->device->release(m->device, f->x);
    f->x = NULL, f->capacity = 0;
    KF_DEVICE_NEW(m->device, f->x, w->count * m->config.hidden, e);
    f->capacity = w->count;
  }
  for (int i = 0; i < w->sequences; i++) {
    kf_sequence_reset(f->sequence[i]);
    f->span[i] = (kf_span){.sequence = f->sequence[i], .offset = w->sequence[i].first, .count = w->sequence[i].count};
  }
  return kf_embed(&m->weights, m->embedding, w->ids, w->count, f->x, e);
}

kf_status kf_frozen_forward(kf_frozen *f, const kf_window *w, kf_error *e) {
  KF_TRY(frozen_begin(f, w, e));
  return kf_model_forward(f->model, f->x, f->span, w->sequences, e);
}

static kf_status frozen_logits(void *user, int64_t first, int64_t m, const float *student, float *logits, kf_error *e) {
  kf_frozen *f = user;
  (void)student;
  return kf_model_logits(f->model, f->x + first * f->model->config.hidden, m, logits, e);
}

/* ---------------------------------------------------------------------------------------------- rows */

static kf_tokens tokens_of(const kf_window *w) {
  return (kf_tokens){w->ids, w->count, w->sequence, w->sequences};
}

static void free_rows(kf_objective_run *r) {
  void *own[] = {r->nll, r->divergence, r->other, r->weight};
  for (size_t i = 0; r->device && i < sizeof own / sizeof *own; i++) r->device->release(r->device, own[i]);
  r->nll = r->divergence = r->other = NULL, r->weight = NULL, r->rows = 0;
}

static kf_status rows(kf_objective_run *r, int64_t count, kf_error *e) {
  if (count <= r->rows) return KF_OK;
  free_rows(r);
  KF_DEVICE_NEW(r->device, r->nll, count, e);
  KF_DEVICE_NEW(r->device, r->divergence, count, e);
  KF_DEVICE_NEW(r->device, r->other, count, e);
  KF_DEVICE_NEW(r->device, r->weight, count, e);
  r->rows = count;
  return KF_OK;
}

/* Cross-entropy, a divergence from the teacher, or both. */
static kf_status run_rows(kf_objective_run *r, const kf_window *w, kf_totals *totals, kf_error *e) {
  const kf_objective_settings *s = &r->settings;
  bool distils = r->objective->teacher;
  kf_softmax_loss loss = {.ce = distils ? s->ce : 1,
                          .kl = distils ? s->kl : 0,
                          .temperature = s->temperature,
                          .divergence = r->objective->divergence};
  kf_tokens t = tokens_of(w);
  kf_teacher_logits teacher = r->cached ? kf_cached_teacher_logits : distils ? frozen_logits : NULL;
  float *hidden;
  KF_TRY(rows(r, w->count, e));
  if (r->cached)
    KF_TRY(kf_cached_teacher_prepare(r->cached, w, e));
  else if (distils)
    KF_TRY(kf_frozen_forward(&r->frozen, w, e));
  KF_TRY(kf_network_forward(r->network, &t, &hidden, e));
  KF_TRY(kf_network_loss(r->network, &loss, hidden, w->count, w->target, w->weight, teacher,
                         r->cached ? (void *)r->cached : &r->frozen, r->nll, r->divergence, e));
  KF_TRY(kf_network_backward(r->network, &t, hidden, e));
  double nll = 0, divergence = 0, square = (double)s->temperature * (double)s->temperature;
  for (int64_t i = 0; i < w->count; i++) {
    nll += r->nll[i];
    divergence += r->divergence[i];
    totals->count += (double)w->weight[i];
  }
  totals->nll += nll;
  totals->divergence += divergence;
  totals->loss += (double)loss.ce * nll + (double)loss.kl * square * divergence;
  return KF_OK;
}

/* ---------------------------------------------------------------------------------------------- preferences */

/* -log likelihood of every row under the frozen model. logits [NLL_ROWS, vocabulary], best [NLL_ROWS]: work space. */
enum { NLL_ROWS = 128 };
static kf_status score_rows(kf_frozen *f, const kf_window *w, double *nll, float *logits, int32_t *best, kf_error *e) {
  kf_model *m = f->model;
  KF_TRY(kf_frozen_forward(f, w, e));
  for (int64_t at = 0; at < w->count; at += NLL_ROWS) {
    int64_t n = w->count - at < NLL_ROWS ? w->count - at : NLL_ROWS;
    KF_TRY(frozen_logits(f, at, n, NULL, logits, e));
    m->device->cross_entropy(m->device, logits, w->target + at, n, m->config.vocabulary, nll + at, best);
    KF_TRY(kf_device_check(m->device, e));
  }
  return KF_OK;
}

static kf_status reference_nll(kf_objective_run *r, const kf_window *w, double *nll, kf_error *e) {
  kf_device *d = r->frozen.model->device;
  float *logits = d->alloc(d, NLL_ROWS * (size_t)r->frozen.model->config.vocabulary, sizeof *logits, e);
  int32_t *best = logits ? d->alloc(d, NLL_ROWS, sizeof *best, e) : NULL;
  kf_status s = best ? score_rows(&r->frozen, w, nll, logits, best, e) : KF_ERROR_MEMORY;
  d->release(d, logits);
  d->release(d, best);
  return s;
}

/* Sum over learnt tokens of one sequence of reference's nll less the student's: log pi / pi_ref; IPO: the mean over tokens. */
static double log_ratio(const kf_objective_run *r, const kf_window *w, int sequence, double *tokens) {
  double sum = 0;
  *tokens = 0;
  for (int64_t i = w->sequence[sequence].first; i < w->sequence[sequence].first + w->sequence[sequence].count; i++) {
    if (w->weight[i] == 0) continue;
    sum += r->other[i] - r->nll[i];
    *tokens += 1;
  }
  return r->objective->identity && *tokens > 0 ? sum / *tokens : sum;
}

static double log_sigmoid(double x) {
  return x < 0 ? x - log1p(exp(x)) : -log1p(exp(-x));
}

/* Loss of a pair by the difference h of its log ratios, and its derivative. DPO (Rafailov et al. 2023, eq. 7; smoothing eps as
 * in cDPO): -(1 - eps) log s(beta h) - eps log s(-beta h). IPO (Azar et al. 2023, eq. 17): (h - 1 / (2 beta))^2. */
static double preference(const kf_objective_run *r, double h, double *slope) {
  double beta = r->settings.beta, eps = r->settings.smoothing, x = beta * h;
  if (r->objective->identity) {
    double gap = h - 1 / (2 * beta);
    *slope = 2 * gap;
    return gap * gap;
  }
  double up = exp(log_sigmoid(-x)), down = exp(log_sigmoid(x));
  *slope = -beta * ((1 - eps) * up - eps * down);
  return -(1 - eps) * log_sigmoid(x) - eps * log_sigmoid(-x);
}

/* Weights of the rows' -log likelihoods in the loss: its derivative by each of them. */
static void weigh_pair(kf_objective_run *r, const kf_window *w, int pair, kf_totals *totals) {
  double slope, tokens[2], ratio[2];
  for (int side = 0; side < 2; side++) ratio[side] = log_ratio(r, w, 2 * pair + side, &tokens[side]);
  totals->loss += preference(r, ratio[0] - ratio[1], &slope);
  totals->correct += ratio[0] > ratio[1];
  totals->count++;
  for (int side = 0; side < 2; side++) {
    const kf_extent *s = &w->sequence[2 * pair + side];
    double by_nll = (side ? slope : -slope) / (r->objective->identity && tokens[side] > 0 ? tokens[side] : 1);
    for (int64_t i = s->first; i < s->first + s->count; i++) r->weight[i] = w->weight[i] != 0 ? (float)by_nll : 0;
  }
}

/* The head is passed twice: how much a row counts is known only when its whole sequence has been scored. */
static kf_status run_pairs(kf_objective_run *r, const kf_window *w, kf_totals *totals, kf_error *e) {
  const kf_softmax_loss loss = {.ce = 1, .temperature = 1};
  kf_tokens t = tokens_of(w);
  float *hidden;
  KF_TRY(rows(r, w->count, e));
  KF_TRY(reference_nll(r, w, r->other, e));
  KF_TRY(kf_network_forward(r->network, &t, &hidden, e));
  KF_TRY(kf_network_score(r->network, hidden, w->count, w->target, r->nll, e));
  for (int64_t i = 0; i < w->count; i++) totals->nll += w->weight[i] != 0 ? r->nll[i] : 0;
  for (int i = 0; i < w->sequences / 2; i++) weigh_pair(r, w, i, totals);
  KF_TRY(kf_network_loss(r->network, &loss, hidden, w->count, w->target, r->weight, NULL, NULL, r->nll, r->divergence, e));
  return kf_network_backward(r->network, &t, hidden, e);
}

/* ---------------------------------------------------------------------------------------------- layers */

/* y becomes the gradient of |y - want|^2 / |want - x|^2, whose value is returned: the error as a part of what the layer does. */
static double layer_error(float *y, const float *want, const float *x, int64_t n) {
  double gap = 0, size = 1e-30;
  for (int64_t i = 0; i < n; i++) {
    double d = (double)y[i] - (double)want[i], change = (double)want[i] - (double)x[i];
    gap += d * d;
    size += change * change;
  }
  for (int64_t i = 0; i < n; i++) y[i] = (float)(2 * ((double)y[i] - (double)want[i]) / size);
  return gap / size;
}

enum { STATES = sizeof((kf_objective_run *)0)->state / sizeof *((kf_objective_run *)0)->state };

static void free_states(kf_objective_run *r) {
  for (int i = 0; r->device && i < STATES; i++) r->device->release(r->device, r->state[i]), r->state[i] = NULL;
  r->states = 0;
}

static kf_status states(kf_objective_run *r, int64_t n, kf_error *e) {
  if (n <= r->states) return KF_OK;
  free_states(r);
  for (int i = 0; i < STATES; i++) KF_DEVICE_NEW(r->device, r->state[i], n, e);
  r->states = n;
  return KF_OK;
}

/* The teacher's residual stream behind its attention, as its layer passes by. */
typedef struct follower {
  const kf_model *model;
  const float *x; /* where the stream begins */
  float *middle;
} follower;

static void attended(void *user, int layer, int64_t m, const float *x, const float *out) {
  const follower *f = user;
  kf_device *d = f->model->device;
  float *to = f->middle + (x - f->x);
  memcpy(to, x, (size_t)(m * f->model->config.hidden) * sizeof *x);
  d->linear(d, to, out, f->model->layer[layer].o, m, true);
}

/* Every student layer takes the teacher's hidden state and is matched to the teacher's next one, to what the teacher's attention
 * adds, or to both: layers learn independently. As both add to the same state, behind attention the two streams differ by what
 * their attentions do. */
static kf_status align_layer(kf_objective_run *r, const kf_window *w, const kf_tokens *t, int layer, int64_t n, kf_totals *totals,
                             kf_error *e) {
  kf_frozen *f = &r->frozen;
  kf_model *m = f->model;
  float *input = r->state[0], *output = r->state[1], *middle = r->state[2], *wanted = r->state[3];
  const kf_watch watch = {.attended = attended, .user = &(follower){m, f->x, wanted}};
  bool attention = r->settings.match != KF_MATCH_LAYER;
  memcpy(input, f->x, (size_t)n * sizeof *input);
  memcpy(output, f->x, (size_t)n * sizeof *output);
  KF_TRY(kf_layer_forward(m->run, &m->layer[layer], layer, f->x, f->span, w->sequences, attention ? &watch : NULL, e));
  KF_TRY(kf_network_layer(r->network, layer, t, output, e));
  if (r->settings.match != KF_MATCH_ATTENTION)
    totals->loss += layer_error(output, f->x, input, n);
  else
    memset(output, 0, (size_t)n * sizeof *output);
  if (attention) {
    kf_network_middle(r->network, layer, t, middle);
    KF_TRY(kf_device_check(r->device, e));
    totals->loss += layer_error(middle, wanted, input, n);
  }
  totals->count++;
  return kf_network_layer_backward(r->network, layer, t, output, attention ? middle : NULL, e);
}

static kf_status run_layers(kf_objective_run *r, const kf_window *w, kf_totals *totals, kf_error *e) {
  kf_frozen *f = &r->frozen;
  kf_tokens t = tokens_of(w);
  int64_t n = w->count * f->model->config.hidden;
  KF_TRY(states(r, n, e));
  KF_TRY(frozen_begin(f, w, e));
  for (int layer = 0; layer < f->model->config.layers; layer++) {
    KF_TRY(align_layer(r, w, &t, layer, n, totals, e));
    for (int i = 0; i < w->sequences; i++) kf_sequence_drop(f->sequence[i], layer);
  }
  return KF_OK;
}

void kf_objective_run_free(kf_objective_run *r) {
  kf_frozen_free(&r->frozen);
  kf_cached_teacher_free(r->cached);
  free_rows(r);
  free_states(r);
  *r = (kf_objective_run){0};
}

static const kf_objective table[] = {
    {.name = "ce", .help = "cross-entropy with the next token", .rate = 1e-4, .run = run_rows},
    {.name = "forward-kl",
     .help = "KL(teacher || student) of the next token",
     .teacher = true,
     .rate = 1e-4,
     .divergence = KF_FORWARD_KL,
     .cached = true,
     .run = run_rows},
    {.name = "reverse-kl",
     .help = "KL(student || teacher) of the next token",
     .teacher = true,
     .rate = 1e-4,
     .divergence = KF_REVERSE_KL,
     .run = run_rows},
    {.name = "js",
     .help = "Jensen-Shannon divergence of the next token",
     .teacher = true,
     .rate = 1e-4,
     .divergence = KF_JENSEN_SHANNON,
     .run = run_rows},
    {.name = "dpo", .help = "preferences, sigmoid loss", .reference = true, .pairs = true, .rate = 5e-7, .run = run_pairs},
    {.name = "ipo",
     .help = "preferences, squared loss of mean log-likelihoods",
     .reference = true,
     .pairs = true,
     .rate = 5e-7,
     .identity = true,
     .run = run_pairs},
    {.name = "align",
     .help = "each layer's output, or its attention's, with the teacher's",
     .teacher = true,
     .rate = 1e-3,
     .run = run_layers},
};

kf_status kf_match_parse(const char *name, kf_match *out, kf_error *e) {
  static const char *const names[] = {"layer", "attention", "both"};
  for (int i = 0; i < 3; i++) {
    if (strcmp(name, names[i]) != 0) continue;
    *out = (kf_match)i;
    return KF_OK;
  }
  return kf_fail(e, KF_ERROR_USAGE, "unknown match '%.40s': layer, attention or both", name);
}

const kf_objective *kf_objective_at(int index) {
  return index >= 0 && index < (int)(sizeof table / sizeof *table) ? &table[index] : NULL;
}

kf_status kf_objective_find(const char *name, const kf_objective **out, kf_error *e) {
  for (int i = 0; (*out = kf_objective_at(i)); i++)
    if (strcmp((*out)->name, name) == 0) return KF_OK;
  return kf_fail(e, KF_ERROR_USAGE, "unknown objective '%.40s': ce, forward-kl, reverse-kl, js, dpo, ipo or align", name);
}
