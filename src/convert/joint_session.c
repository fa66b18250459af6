#include "convert/joint_session.h"

#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------------------------------------- settings against a model */

static int rope_rows(const kf_plan *p, int layer, int rope_dim) {
  return kf_plan_rotates(p, layer) ? rope_dim : 0;
}

/* The least that a layer's budget leaves for latents. */
static int64_t least_latents(const kf_plan *p, int rope_dim) {
  int64_t least = INT64_MAX;
  for (int i = 0; i < p->source->layers; i++) {
    int64_t left = kf_plan_budget(p, i) - rope_rows(p, i, rope_dim);
    least = left < least ? left : least;
  }
  return least;
}

static kf_status check_rope(const kf_plan *p, int rope_dim, int freqfold, kf_error *e) {
  int d = p->source->head_dim;
  if (rope_dim && (rope_dim % 2 || d % rope_dim))
    return kf_fail(e, KF_ERROR_INPUT, "rope_dim=%d: expected an even number that divides the %d numbers of a head", rope_dim, d);
  if (freqfold && d / 2 % freqfold)
    return kf_fail(e, KF_ERROR_INPUT, "freqfold=%d does not divide the %d frequencies of a head", freqfold, d / 2);
  if (rope_dim && freqfold && freqfold % (d / rope_dim))
    return kf_fail(e, KF_ERROR_INPUT, "freqfold=%d is not a multiple of %d, which a rope_dim of %d asks for (a head has %d)",
                   freqfold, d / rope_dim, rope_dim, d);
  return KF_OK;
}

/* Widths to try: what is asked for; else a head's, half and a quarter of it, as far as latents have the larger part. */
static int list_rope_dims(const kf_plan *p, int asked, int dims[3]) {
  int count = 0, d = p->source->head_dim;
  if (asked) return dims[0] = asked, 1;
  for (int part = 1; part <= 4; part *= 2)
    if (d % (2 * part) == 0 && least_latents(p, d / part) >= d / part) dims[count++] = d / part;
  for (int part = 4; !count && part >= 1; part /= 2)
    if (d % (2 * part) == 0) dims[count++] = d / part;
  return count;
}

static int list_choices(const kf_plan *p, const kf_joint_settings *asked, kf_joint_choice *out) {
  int dims[3], count = 0, half = p->source->head_dim / 2, known = list_rope_dims(p, asked->rope_dim, dims);
  for (int i = 0; i < known; i++) {
    int collapse = p->source->head_dim / dims[i];
    for (int times = 1; times <= 4; times *= 2) {
      int fold = asked->freqfold ? asked->freqfold : collapse * times;
      if (fold % collapse == 0 && half % fold == 0 && (times == 1 || !asked->freqfold))
        out[count++] = (kf_joint_choice){.rope_dim = dims[i], .freqfold = fold};
    }
  }
  return count;
}

kf_status kf_joint_resolve(kf_plan *p, int rope_dim, int freqfold, kf_error *e) {
  const kf_value *rope = &p->value[rope_dim], *fold = &p->value[freqfold];
  int dims[3], asked = rope->choice < 0 ? (int)rope->integer : 0;
  kf_joint_choice choices[KF_JOINT_TRIED];
  kf_joint_settings s = {.rope_dim = asked, .freqfold = fold->choice < 0 ? (int)fold->integer : 0};
  p->needs_text = true;
  KF_TRY(kf_plan_layers(p, "all", e));
  KF_TRY(kf_projections_check(p, e));
  KF_TRY(check_rope(p, s.rope_dim, s.freqfold, e));
  int smallest = dims[list_rope_dims(p, asked, dims) - 1];
  if (least_latents(p, smallest) < 1)
    return kf_fail(e, KF_ERROR_INPUT, "a budget of %lld elements a token is too small: %d go to the RoPE key",
                   (long long)kf_plan_budget(p, 0), smallest);
  if (!list_choices(p, &s, choices))
    return kf_fail(e, KF_ERROR_INPUT, "freqfold=%d goes with no rope_dim that the budget leaves room for", s.freqfold);
  if (!p->budget.given) kf_note(p->hooks, "no cache budget was given: half of the source's cache is used");
  return KF_OK;
}

/* Latents of a layer: what the budget leaves, or all that it can use. */
static int rank_of(const kf_plan *p, int layer, int rope_dim) {
  int most = kf_joint_most(&p->source->layer[layer].attention, p->source->hidden, rope_dim);
  int64_t left = kf_plan_budget(p, layer) - rope_rows(p, layer, rope_dim);
  return left < most ? (int)left : most;
}

/* ---------------------------------------------------------------------------------------------- layers in the source's text */

/* The moment of layer `index`, which is loaded: of x, which goes on through it, or from an earlier survey. */
static kf_status survey_layer(kf_joint_session *j, float *x, kf_error *e) {
  int64_t width = j->p->source->hidden + 1;
  if (!j->moments.complete) {
    KF_TRY(kf_calibrator_moment(j->c, x, j->moment[0], e));
    KF_TRY(kf_calibrator_forward(j->c, false, NULL, x, e));
  }
  return j->moments.file ? kf_shared_move(&j->moments, j->moment[0], (size_t)(width * width) * sizeof(double), e) : KF_OK;
}

kf_status kf_joint_survey(kf_joint_session *j, kf_joint_visit visit, void *user, kf_error *e) {
  float *x = NULL;
  kf_status s = KF_OK;
  KF_TRY(kf_calibrator_begin(j->c, false, &x, e));
  for (int i = 0; i < j->p->source->layers; i++) {
    kf_projections p = {0};
    KF_GO(kf_progress(j->p->hooks, "calibrating", i, j->p->source->layers, e));
    KF_GO(kf_calibrator_load(j->c, i, e));
    KF_GO(survey_layer(j, x, e));
    KF_GO(kf_projections_read(j->p->weights, i, &p, e));
    s = visit(user, j, i, &p, j->moment[0], e);
    kf_projections_free(&p);
    if (s != KF_OK) goto done;
  }
  if (j->moments.file) s = kf_shared_complete(&j->moments, e);
done:
  free(x);
  return s;
}

/* ---------------------------------------------------------------------------------------------- the choice */

typedef struct trial {
  float *reference, *x[KF_JOINT_TRIED]; /* hidden states of the windows held out */
} trial;

/* Every candidate's layer, run over its stream of held-out windows. */
static kf_status try_layer(void *user, kf_joint_session *j, int layer, const kf_projections *p, const double *moment,
                           kf_error *e) {
  trial *t = user;
  for (int i = 0; i < j->count; i++) {
    kf_joint_settings settings = j->settings;
    kf_joint joint;
    kf_mapped mapped;
    settings.rope_dim = j->tried[i].rope_dim;
    settings.freqfold = j->tried[i].freqfold;
    KF_TRY(kf_joint_create(p, moment, moment, &settings, j->c->window, &joint, e));
    kf_status status = kf_joint_map(&joint, rank_of(j->p, layer, settings.rope_dim), &mapped, e);
    kf_joint_free(&joint);
    KF_TRY(status);
    status = kf_calibrator_forward(j->c, true, &mapped, t->x[i], e);
    kf_mapped_free(&mapped);
    KF_TRY(status);
  }
  return kf_calibrator_forward(j->c, true, NULL, t->reference, e);
}

static kf_status choose(kf_joint_session *j, kf_error *e) {
  trial t = {0};
  kf_nearness nearness[KF_JOINT_TRIED];
  kf_status s;
  KF_GO(kf_calibrator_begin(j->c, true, &t.reference, e));
  for (int i = 0; i < j->count; i++) KF_GO(kf_calibrator_begin(j->c, true, &t.x[i], e));
  KF_GO(kf_joint_survey(j, try_layer, &t, e));
  KF_GO(kf_calibrator_judge(j->c, t.reference, t.x, j->count, nearness, e));
  for (int i = 0; i < j->count; i++) {
    kf_joint_choice *one = &j->tried[i];
    one->kl = nearness[i].kl;
    if (one->kl < j->tried[j->best].kl) j->best = i;
    kf_note(j->p->hooks, "rope_dim %d, freqfold %d: KL %.4f on held-out calibration text", one->rope_dim, one->freqfold, one->kl);
  }
done:
  free(t.reference);
  for (int i = 0; i < j->count; i++) free(t.x[i]);
  return s;
}

/* ---------------------------------------------------------------------------------------------- beginning and end */

static kf_status open(kf_joint_session *j, const kf_corpus *corpus, kf_error *e) {
  int64_t width = j->p->source->hidden + 1;
  bool clamped = false;
  KF_TRY(kf_calibrator_create(j->p, corpus, &j->c, e));
  if (j->p->o->share)
    KF_TRY(kf_shared_open(j->p, "moments", j->c->ids, j->c->fitted * j->c->window, j->c->window, &j->moments, e));
  for (int i = 0; i < 2; i++) KF_NEW(j->moment[i], width * width, e);
  KF_NEW(j->rank, j->p->source->layers, e);
  j->count = list_choices(j->p, &j->settings, j->tried);
  if (j->count > 1) KF_TRY(choose(j, e));
  j->settings.rope_dim = j->tried[j->best].rope_dim;
  j->settings.freqfold = j->tried[j->best].freqfold;
  for (int i = 0; i < j->p->source->layers; i++) {
    j->rank[i] = rank_of(j->p, i, j->settings.rope_dim);
    clamped = clamped || j->rank[i] + rope_rows(j->p, i, j->settings.rope_dim) < kf_plan_budget(j->p, i);
  }
  if (clamped) kf_note(j->p->hooks, "the cache budget is above what some layers can use; their latents are at full width");
  if (j->statistics != KF_JOINT_CONVERTED) KF_TRY(kf_calibrator_begin(j->c, false, &j->source, e));
  return j->statistics != KF_JOINT_SOURCE ? kf_calibrator_begin(j->c, false, &j->student, e) : KF_OK;
}

kf_status kf_joint_open(const kf_plan *p, const kf_corpus *corpus, const kf_joint_settings *settings,
                        kf_joint_statistics statistics, kf_joint_session **out, kf_error *e) {
  kf_joint_session *j;
  KF_NEW(j, 1, e);
  j->p = p;
  j->settings = *settings;
  j->statistics = statistics;
  kf_status status = open(j, corpus, e);
  if (status != KF_OK)
    kf_joint_close(j);
  else
    *out = j;
  return status;
}

void kf_joint_close(void *session) {
  kf_joint_session *j = session;
  if (!j) return;
  kf_calibrator_free(j->c);
  kf_shared_close(&j->moments);
  free(j->rank);
  free(j->source);
  free(j->student);
  free(j->moment[0]);
  free(j->moment[1]);
  free(j);
}

kf_status kf_joint_record(void *session, json_t **out, kf_error *e) {
  const kf_joint_session *j = session;
  json_t *tried = json_array(), *ranks = json_array();
  for (int i = 0; i < j->count && j->count > 1; i++)
    json_array_append_new(tried, json_pack("{s:i,s:i,s:f}", "rope_dim", j->tried[i].rope_dim, "freqfold", j->tried[i].freqfold,
                                           "kl", j->tried[i].kl));
  for (int i = 0; i < j->p->source->layers; i++) json_array_append_new(ranks, json_integer(j->rank[i]));
  *out = json_pack("{s:i,s:i,s:o,s:o}", "rope_dim", j->settings.rope_dim, "freqfold", j->settings.freqfold, "ranks", ranks,
                   "tried", tried);
  return *out ? KF_OK : kf_fail(e, KF_ERROR_MEMORY, "out of memory");
}

/* ---------------------------------------------------------------------------------------------- layer by layer */

/* The student goes on through the converted layer, or in partial statistics through one that lost only its rotation. */
static kf_status advance(kf_joint_session *j, const kf_joint *joint, const kf_mapped *out, kf_error *e) {
  kf_mapped partial;
  if (j->source) KF_TRY(kf_calibrator_forward(j->c, false, NULL, j->source, e));
  if (!j->student) return KF_OK;
  if (j->statistics == KF_JOINT_CONVERTED) return kf_calibrator_forward(j->c, false, out, j->student, e);
  KF_TRY(kf_joint_map(joint, (int)joint->rows, &partial, e));
  kf_status status = kf_calibrator_forward(j->c, false, &partial, j->student, e);
  kf_mapped_free(&partial);
  return status;
}

static kf_status convert_layer(kf_joint_session *j, int layer, kf_mapped *out, kf_error *e) {
  kf_projections p = {0};
  kf_joint joint = {0};
  kf_status s;
  *out = (kf_mapped){0};
  KF_TRY(kf_calibrator_load(j->c, layer, e));
  if (j->source) KF_TRY(kf_calibrator_moment(j->c, j->source, j->moment[0], e));
  if (j->student) KF_TRY(kf_calibrator_moment(j->c, j->student, j->moment[1], e));
  KF_GO(kf_projections_read(j->p->weights, layer, &p, e));
  KF_GO(kf_joint_create(&p, j->moment[!j->source], j->moment[j->student != NULL], &j->settings, j->c->window, &joint, e));
  KF_GO(kf_joint_map(&joint, j->rank[layer], out, e));
  if (layer + 1 < j->p->source->layers) KF_GO(advance(j, &joint, out, e));
done:
  kf_joint_free(&joint);
  kf_projections_free(&p);
  if (s != KF_OK) kf_mapped_free(out);
  return s;
}

/* Layers that an earlier run finished are done again: the hidden states go through them. */
kf_status kf_joint_convert(const kf_plan *p, void *session, int layer, kf_mapped *out, kf_error *e) {
  kf_joint_session *j = session;
  (void)p;
  for (*out = (kf_mapped){0}; j->next <= layer; j->next++) {
    kf_mapped_free(out);
    KF_TRY(convert_layer(j, j->next, out, e));
  }
  return KF_OK;
}
