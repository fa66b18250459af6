/* The options of a run with their defaults, and the fingerprint that a resumption must share. */
#include <math.h>
#include <string.h>
#include <sys/stat.h>

#include "train/training.h"

enum { DEFAULT_LENGTH = 1024, DEFAULT_BATCH = 8, MICRO_TOKENS = 4096, DEFAULT_SAVE = 100, DEFAULT_TOP = 64 };

static double either(double given, double otherwise) {
  return given != 0 ? given : otherwise;
}

/* Steps, or a part of all of them. */
static int64_t steps_of(double given, int64_t steps) {
  return given < 1 ? llround(given * (double)steps) : llround(given);
}

static kf_status check_numbers(const kf_train_options *s, kf_error *e) {
  const struct {
    const char *name;
    double value, low, high;
  } numbers[] = {{"learning rate", s->rate, 0, 1e3},
                 {"warmup", s->warmup, 0, 1e12},
                 {"decay", s->decay, 0, 1e12},
                 {"beta1", s->beta1, 0, 0.999999},
                 {"beta2", s->beta2, 0, 0.999999},
                 {"eps", s->eps, 0, 1},
                 {"weight decay", s->weight_decay, 0, 1e3},
                 {"temperature", s->temperature, 1e-3, 1e3},
                 {"kl weight", s->kl_weight, 0, 1e6},
                 {"ce weight", s->ce_weight, 0, 1e6},
                 {"beta", s->dpo_beta, 1e-9, 1e6},
                 {"label smoothing", s->label_smoothing, 0, 0.5},
                 {"batch", s->batch, 1, 1 << 20},
                 {"length", s->length, 1, 1 << 24},
                 {"micro", s->micro, 1, 1 << 20}};
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
    if (!(numbers[i].value >= numbers[i].low && numbers[i].value <= numbers[i].high))
      return kf_fail(e, KF_ERROR_USAGE, "%s %.15g is not between %.15g and %.15g", numbers[i].name, numbers[i].value,
                     numbers[i].low, numbers[i].high);
  return KF_OK;
}

static kf_status choose_length(kf_training *t, kf_error *e) {
  kf_train_options *s = &t->set;
  if (s->steps < 0 || s->tokens < 0 || (s->steps > 0) == (s->tokens > 0))
    return kf_fail(e, KF_ERROR_USAGE, "either the steps or the tokens of a run must be given");
  int64_t step = (int64_t)s->batch * s->length;
  if (!s->steps) s->steps = (s->tokens + step - 1) / step;
  return KF_OK;
}

/* Sequences of a step over the ranks. What align minimises is measured over a micro-batch, so its micro-batches must stay. */
static kf_status deal_out(kf_training *t, kf_error *e) {
  kf_train_options *s = &t->set;
  int ranks = kf_peers_count(s->peers);
  if (s->batch % ranks)
    return kf_fail(e, KF_ERROR_USAGE, "a batch of %d cannot be split evenly over %d processes", s->batch, ranks);
  t->share = s->batch / ranks;
  t->micro = s->micro < t->share ? s->micro : t->share;
  if (ranks > 1 && strcmp(s->objective, "align") == 0 && t->share % s->micro)
    return kf_fail(e, KF_ERROR_USAGE,
                   "align takes a layer's error over a micro-batch: --micro must divide the %d sequences of a "
                   "process, which %d does not",
                   t->share, s->micro);
  if (kf_peers_rank(s->peers) == 0) return KF_OK;
  s->hooks.note = NULL; /* rank 0 speaks for all */
  s->on_step = NULL;
  return KF_OK;
}

kf_status kf_training_settings(kf_training *t, kf_error *e) {
  kf_train_options *s = &t->set;
  const kf_objective *objective;
  *s = *t->o;
  if (!s->objective) s->objective = "ce";
  KF_TRY(kf_objective_find(s->objective, &objective, e));
  t->run.objective = objective;
  if (objective->teacher && !s->teacher) return kf_fail(e, KF_ERROR_USAGE, "objective %s needs a teacher", objective->name);
  if (!objective->teacher && !objective->reference && s->teacher)
    return kf_fail(e, KF_ERROR_USAGE, "objective %s takes no teacher", objective->name);
  if (s->teacher_cache && !objective->cached)
    return kf_fail(e, KF_ERROR_USAGE,
                   "a teacher cache serves forward-kl alone: objective %s needs the teacher's whole prediction", objective->name);
  if (!s->teacher_cache) s->teacher_top = 0;
  if (s->teacher_cache && !s->teacher_top) s->teacher_top = DEFAULT_TOP;
  if (s->data_count < 1) return kf_fail(e, KF_ERROR_USAGE, "no data is given to train on");
  if (!s->length) s->length = (int)(t->config.context < DEFAULT_LENGTH ? t->config.context : DEFAULT_LENGTH);
  if (!s->batch) s->batch = DEFAULT_BATCH;
  int row = s->length * (objective->pairs ? 2 : 1);
  if (!s->micro) s->micro = row < MICRO_TOKENS ? MICRO_TOKENS / row : 1;
  if (s->micro > s->batch) s->micro = s->batch;
  s->rate = either(s->rate, objective->rate);
  s->beta1 = either(s->beta1, 0.9);
  s->beta2 = either(s->beta2, 0.95);
  s->eps = either(s->eps, 1e-8);
  s->clip = either(s->clip, 1);
  s->decay = either(s->decay, 0.1);
  s->kl_weight = either(s->kl_weight, 1);
  s->temperature = either(s->temperature, 1);
  s->dpo_beta = either(s->dpo_beta, 0.1);
  if (!s->save_every) s->save_every = DEFAULT_SAVE;
  if (!s->schedule) s->schedule = "cosine";
  if (!s->match) s->match = "layer";
  KF_TRY(check_numbers(s, e));
  KF_TRY(deal_out(t, e));
  KF_TRY(choose_length(t, e));
  KF_TRY(kf_schedule_parse(s->schedule, &t->schedule.kind, e));
  t->schedule.steps = s->steps;
  t->schedule.warmup = steps_of(s->warmup, s->steps);
  t->schedule.decay = steps_of(s->decay, s->steps);
  if (t->schedule.warmup > s->steps) t->schedule.warmup = s->steps;
  t->run.settings = (kf_objective_settings){(float)s->ce_weight, (float)s->kl_weight, (float)s->temperature,
                                            s->dpo_beta,         s->label_smoothing,  KF_MATCH_LAYER};
  KF_TRY(kf_match_parse(s->match, &t->run.settings.match, e));
  if (s->length > t->config.context)
    kf_note(&s->hooks, "sequences of %d tokens are longer than the model's context of %d", s->length, (int)t->config.context);
  return KF_OK;
}

/* ---------------------------------------------------------------------------------------------- fingerprint */

static json_t *texts(const char *const *list, int count) {
  json_t *out = json_array();
  for (int i = 0; i < count; i++) json_array_append_new(out, json_string(list[i]));
  return out;
}

static json_t *files(const char *const *list, int count) {
  json_t *out = json_array();
  struct stat st;
  for (int i = 0; i < count; i++) {
    bool there = stat(list[i], &st) == 0;
    json_array_append_new(out, json_pack("{s:s,s:I,s:I}", "path", list[i], "bytes", there ? (json_int_t)st.st_size : -1,
                                         "modified", there ? (json_int_t)st.st_mtim.tv_sec : -1));
  }
  return out;
}

kf_status kf_training_fingerprint(kf_training *t, kf_error *e) {
  const kf_train_options *s = &t->set;
  json_t *f = json_object(), *weights = json_array();
  for (int i = 0; s->weights && i < s->data_count; i++) json_array_append_new(weights, json_real(s->weights[i]));
  const struct {
    const char *key;
    json_t *value;
  } all[] = {{"version", json_string(KF_VERSION)},
             {"student", json_string(t->student)},
             {"objective", json_string(s->objective)},
             {"teacher", s->teacher ? json_string(s->teacher) : json_null()},
             {"teacher_top", json_integer(s->teacher_top)},
             {"data", files(s->data, s->data_count)},
             {"weights", weights},
             {"skip_bad", json_boolean(s->skip_bad)},
             {"answers", json_boolean(s->answers)},
             {"isolated", json_boolean(s->isolated)},
             {"steps", json_integer(s->steps)},
             {"length", json_integer(s->length)},
             {"batch", json_integer(s->batch)},
             {"micro", json_integer(s->micro)},
             {"rate", json_real(s->rate)},
             {"schedule", json_string(s->schedule)},
             {"warmup", json_integer(t->schedule.warmup)},
             {"decay", json_integer(t->schedule.decay)},
             {"beta1", json_real(s->beta1)},
             {"beta2", json_real(s->beta2)},
             {"eps", json_real(s->eps)},
             {"weight_decay", json_real(s->weight_decay)},
             {"clip", json_real(s->clip)},
             {"by_sequence", json_boolean(s->by_sequence)},
             {"ce_weight", json_real(s->ce_weight)},
             {"kl_weight", json_real(s->kl_weight)},
             {"temperature", json_real(s->temperature)},
             {"dpo_beta", json_real(s->dpo_beta)},
             {"label_smoothing", json_real(s->label_smoothing)},
             {"match", json_string(s->match)},
             {"train", texts(s->train, s->train_count)},
             {"freeze", texts(s->freeze, s->freeze_count)},
             {"seed", json_integer((json_int_t)s->seed)},
             {"device", json_string(t->run.device->name)},
             {"compute", json_string(t->run.device->compute == KF_BF16 ? "bf16" : "f32")}};
  bool bad = !f;
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    if (json_object_set_new(f, all[i].key, all[i].value) != 0) bad = true;
  t->fingerprint = f;
  return bad ? kf_fail(e, KF_ERROR_INPUT, "a path or name of the run is not UTF-8") : KF_OK;
}
