/* The trainer: one loop for all objectives. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "convert/companions.h"
#include "train/cached_teacher.h"
#include "train/training.h"

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---------------------------------------------------------------------------------------------- what a run is made of */

static kf_status choose_dtype(kf_training *t, kf_error *e) {
  const char *asked = t->set.dtype;
  t->dtype = kf_weights_dtype(&t->weights);
  if (!asked && t->dtype == KF_F64) t->dtype = KF_F32;
  if (!asked && kf_dtype_block(t->dtype) > 1) t->dtype = KF_BF16;
  if (!asked || (kf_dtype_parse(asked, &t->dtype) && (t->dtype == KF_F32 || t->dtype == KF_F16 || t->dtype == KF_BF16)))
    return KF_OK;
  return kf_fail(e, KF_ERROR_USAGE, "dtype '%.40s' cannot be written (known: f32, bf16, f16)", asked);
}

static kf_status open_frozen(kf_training *t, kf_error *e) {
  const kf_objective *objective = t->run.objective;
  const char *name = t->set.teacher ? t->set.teacher : objective->reference ? t->student : NULL;
  if (!name) return KF_OK;
  kf_model_options o = {.device = t->set.device, .compute = t->set.compute, .threads = t->set.threads, .hooks = t->set.hooks};
  if (t->set.teacher_cache)
    return kf_cached_teacher_open(&(kf_cached_options){.directory = t->set.teacher_cache,
                                                       .teacher = name,
                                                       .model = o,
                                                       .device = t->device,
                                                       .top = t->set.teacher_top,
                                                       .vocabulary = t->config.vocabulary,
                                                       .temperature = (float)t->set.temperature},
                                  &t->run.cached, e);
  KF_TRY(kf_model_open(name, &o, &t->run.frozen.model, e));
  const kf_config *c = &t->run.frozen.model->config;
  if (c->vocabulary != t->config.vocabulary)
    return kf_fail(e, KF_ERROR_INPUT, "the student has %d tokens in its vocabulary, the teacher %d", t->config.vocabulary,
                   c->vocabulary);
  if (strcmp(objective->name, "align") == 0 && (c->layers != t->config.layers || c->hidden != t->config.hidden))
    return kf_fail(e, KF_ERROR_INPUT,
                   "layers can be aligned only with as many of the same width: the student has %d of %d, the teacher %d of %d",
                   t->config.layers, t->config.hidden, c->layers, c->hidden);
  return KF_OK;
}

static kf_status check_ids(const kf_training *t, const kf_token_file *f, int number, kf_error *e) {
  for (int64_t i = 0; i < f->tokens; i++)
    if (f->ids[i] < 0 || f->ids[i] >= t->config.vocabulary)
      return kf_fail(e, KF_ERROR_INPUT, "%s: the tokenizer gives token %d, the model's vocabulary ends at %d",
                     t->set.data[number], (int)f->ids[i], t->config.vocabulary - 1);
  return KF_OK;
}

static kf_status open_data(kf_training *t, kf_error *e) {
  const kf_train_options *s = &t->set;
  kf_token_options o = {.pairs = t->run.objective->pairs,
                        .learnt = s->answers ? KF_LEARN_ANSWERS : KF_LEARN_ALL,
                        .skip = s->skip_bad,
                        .cache = s->data_cache,
                        .hooks = &s->hooks};
  kf_token_file *files;
  int opened = 0;
  for (int i = 0; s->weights && i < s->data_count; i++)
    if (!(s->weights[i] > 0)) return kf_fail(e, KF_ERROR_USAGE, "the weight of %s is not above 0", s->data[i]);
  KF_NEW(files, s->data_count, e);
  kf_status status = KF_OK;
  for (; opened < s->data_count && status == KF_OK; opened += status == KF_OK) {
    status = kf_token_file_open(s->data[opened], t->tokenizer, &o, &files[opened], e);
    if (status == KF_OK && (status = check_ids(t, &files[opened], opened, e)) != KF_OK) kf_token_file_close(&files[opened]);
  }
  if (status == KF_OK) status = kf_mix_create(files, s->weights, s->data_count, o.pairs, s->isolated, s->seed, &t->mix, e);
  for (int i = 0; status != KF_OK && i < opened; i++) kf_token_file_close(&files[i]);
  free(files);
  return status;
}

/* Rank 0 fills the cache, the others read it. */
static kf_status open_data_in_turn(kf_training *t, kf_error *e) {
  bool first = kf_peers_rank(t->set.peers) == 0;
  KF_TRY(kf_peers_agree(t->set.peers, first ? open_data(t, e) : KF_OK, e));
  return first ? KF_OK : open_data(t, e);
}

static kf_status prepare(kf_training *t, const char *student, kf_error *e) {
  KF_TRY(kf_locate(student, t->student, e));
  KF_TRY(kf_model_read(t->student, &t->config, &t->weights, e));
  t->weights.config = &t->config;
  KF_TRY(kf_training_settings(t, e));
  KF_TRY(choose_dtype(t, e));
  if (kf_exists(t->out)) return kf_fail(e, KF_ERROR_IO, "%s exists", t->out);
  KF_TRY(kf_device_open(t->set.device, t->set.compute, t->set.threads, &t->device, e));
  t->run.device = t->device;
  KF_TRY(kf_parameters_create(&t->config, t->run.device, &t->parameters, e));
  KF_TRY(kf_parameters_choose(t->parameters, t->set.train, t->set.train_count, t->set.freeze, t->set.freeze_count, e));
  KF_TRY(kf_shards_create(t->set.peers, t->parameters, &t->shards, e));
  KF_TRY(kf_network_create(&t->config, t->run.device, t->parameters, &t->network, e));
  t->run.network = t->network;
  t->result.trained_parameters = kf_parameters_trained(t->parameters);
  KF_TRY(kf_tokenizer_beside(&t->weights, t->student, &t->tokenizer, e));
  KF_TRY(open_data_in_turn(t, e));
  KF_TRY(open_frozen(t, e));
  KF_TRY(kf_parameters_load(t->parameters, &t->weights, e));
  KF_TRY(kf_window_create(t->device, (int64_t)t->micro * t->set.length * (t->mix.pairs ? 2 : 1), &t->window, e));
  return kf_training_fingerprint(t, e);
}

/* ---------------------------------------------------------------------------------------------- a step */

static void draw(kf_training *t, int count) {
  kf_window *w = &t->window;
  w->count = w->sequences = 0;
  for (int i = 0; i < count; i++) {
    if (t->mix.pairs)
      kf_mix_pair(&t->mix, t->set.length, w);
    else
      kf_mix_window(&t->mix, t->set.length, w);
  }
}

/* Every rank draws all sequences, so that the position in the data is the same everywhere, and learns from its share of them. */
static kf_status accumulate(kf_training *t, kf_totals *totals, int64_t *tokens, kf_error *e) {
  int rank = kf_peers_rank(t->set.peers);
  kf_parameters_zero_gradient(t->parameters);
  for (int i = 0; i < rank * t->share; i++) draw(t, 1);
  for (int done = 0; done < t->share;) {
    int n = t->share - done < t->micro ? t->share - done : t->micro;
    draw(t, n);
    KF_TRY(t->run.objective->run(&t->run, &t->window, totals, e));
    *tokens += t->window.count;
    done += n;
  }
  for (int i = (rank + 1) * t->share; i < t->set.batch; i++) draw(t, 1);
  return kf_device_check(t->run.device, e);
}

/* Totals, tokens and the gradient, own part, become sums over the ranks; *squares: of the whole gradient. */
static kf_status sum_up(kf_training *t, kf_totals *totals, int64_t *tokens, double *squares, kf_error *e) {
  kf_shards_reduce(&t->shards);
  double all[] = {totals->loss,
                  totals->nll,
                  totals->divergence,
                  totals->correct,
                  totals->count,
                  (double)*tokens,
                  kf_parameters_gradient_squares(t->parameters)};
  kf_peers_sum(t->set.peers, all, sizeof all / sizeof *all);
  *totals = (kf_totals){all[0], all[1], all[2], all[3], all[4]};
  *tokens = (int64_t)all[5];
  *squares = all[6];
  return kf_device_check(t->run.device, e);
}

static kf_status not_finite(const kf_training *t, double loss, kf_error *e) {
  int64_t broken = kf_peers_least(t->set.peers, kf_parameters_broken(t->parameters));
  return kf_fail(e, KF_ERROR_INPUT, "step %lld: the loss is %g and the gradient of %s is not finite; %s%s",
                 (long long)t->step + 1, loss, broken < t->parameters->count ? t->parameters->item[broken].name : "no tensor",
                 kf_is_file(t->checkpoint) ? "the last checkpoint stays: " : "no checkpoint was made yet in ",
                 kf_is_file(t->checkpoint) ? t->checkpoint : t->directory);
}

static kf_status update(kf_training *t, double rate, double scale, kf_error *e) {
  const kf_train_options *s = &t->set;
  double step = (double)(t->step + 1);
  kf_parameters_step(t->parameters, &(kf_adamw){.rate = (float)rate,
                                                .beta1 = (float)s->beta1,
                                                .beta2 = (float)s->beta2,
                                                .eps = (float)s->eps,
                                                .decay = (float)s->weight_decay,
                                                .scale = (float)scale,
                                                .correction1 = (float)(1 - pow(s->beta1, step)),
                                                .correction2 = (float)(1 - pow(s->beta2, step))});
  kf_shards_gather(&t->shards);
  kf_parameters_round(t->parameters);
  return kf_device_check(t->run.device, e);
}

/* Gradients are sums: what they are divided by goes into the optimiser's factor, and so does clipping. */
static kf_status do_step(kf_training *t, kf_train_step *out, kf_error *e) {
  const kf_train_options *s = &t->set;
  double start = now(), squares;
  kf_totals sum = {0};
  int64_t tokens = 0;
  KF_TRY(kf_peers_agree(s->peers, accumulate(t, &sum, &tokens, e), e));
  KF_TRY(kf_peers_agree(s->peers, sum_up(t, &sum, &tokens, &squares, e), e));
  double learnt = sum.count > 0 ? sum.count : 1, divisor = s->by_sequence ? s->batch : learnt;
  double norm = sqrt(squares) / divisor, rate = s->rate * kf_schedule_at(&t->schedule, t->step);
  if (!isfinite(sum.loss) || !isfinite(norm)) return not_finite(t, sum.loss / divisor, e);
  double clip = s->clip > 0 && norm > s->clip ? s->clip / norm : 1;
  KF_TRY(kf_peers_agree(s->peers, update(t, rate, clip / divisor, e), e));
  t->step++;
  t->tokens += tokens;
  *out = (kf_train_step){.step = t->step,
                         .steps = s->steps,
                         .tokens = t->tokens,
                         .loss = sum.loss / divisor,
                         .nll = sum.nll / learnt,
                         .divergence = sum.divergence / learnt,
                         .correct = sum.correct / learnt,
                         .rate = rate,
                         .gradient_norm = norm,
                         .tokens_per_second = (double)tokens / (now() - start)};
  return KF_OK;
}

/* Means of the first and the last tenth of the steps [from, steps). */
static void follow_loss(kf_training *t, int64_t from, const kf_train_step *s) {
  int64_t tenth = (t->set.steps - from + 9) / 10;
  if (s->step <= from + tenth) t->result.first_loss += s->loss / (double)tenth;
  if (s->step > t->set.steps - tenth) t->result.last_loss += s->loss / (double)tenth;
}

static kf_status loop(kf_training *t, kf_error *e) {
  const kf_train_options *s = &t->set;
  int64_t from = t->step, tokens = t->tokens;
  double start = now();
  while (t->step < s->steps) {
    kf_train_step done;
    KF_TRY(kf_progress(&s->hooks, "training", (double)t->step, (double)s->steps, e));
    KF_TRY(do_step(t, &done, e));
    KF_TRY(kf_training_note(t, &done, e));
    follow_loss(t, from, &done);
    if (s->on_step) s->on_step(s->user, &done);
    if (t->step % s->save_every == 0 || t->step == s->steps) KF_TRY(kf_training_save(t, e));
  }
  t->result.steps = t->step;
  t->result.tokens = t->tokens;
  t->result.seconds = now() - start;
  t->result.tokens_per_second = t->step > from ? (double)(t->tokens - tokens) / t->result.seconds : 0;
  return kf_progress(&s->hooks, "training", (double)t->step, (double)s->steps, e);
}

/* Ranks that were given different settings would learn something that nobody asked for. */
static kf_status same_settings(const kf_training *t, kf_error *e) {
  char *text = json_dumps(t->fingerprint, JSON_COMPACT | JSON_SORT_KEYS);
  uint64_t hash = 0xcbf29ce484222325; /* FNV-1a */
  for (const char *c = text; c && *c; c++) hash = (hash ^ (uint8_t)*c) * 0x100000001b3;
  free(text);
  int64_t number = (int64_t)(hash >> 1), least = kf_peers_least(t->set.peers, number),
          most = -kf_peers_least(t->set.peers, -number);
  return least == most ? KF_OK : kf_fail(e, KF_ERROR_USAGE, "the processes of this run were given different settings or data");
}

static kf_status run(kf_training *t, const char *student, kf_error *e) {
  KF_TRY(kf_peers_agree(t->o->peers, prepare(t, student, e), e)); /* before anything is written */
  KF_TRY(same_settings(t, e));
  KF_TRY(kf_training_directory(t, e));
  KF_TRY(loop(t, e));
  return kf_training_publish(t, e);
}

kf_status kf_train(const char *student, const char *out_path, const kf_train_options *o, kf_train_result *out, kf_error *e) {
  kf_training *t;
  KF_NEW(t, 1, e);
  t->o = o;
  t->out = out_path;
  t->log = t->lock = -1;
  kf_status s = kf_peers_agree(o->peers, run(t, student, e), e);
  if (s == KF_OK && out) *out = t->result;
  if (t->log >= 0) close(t->log);
  if (t->lock >= 0) close(t->lock);
  kf_objective_run_free(&t->run);
  kf_window_free(&t->window);
  kf_mix_free(&t->mix);
  kf_network_free(t->network);
  kf_shards_free(&t->shards);
  kf_parameters_free(t->parameters);
  kf_device_close(t->device);
  kf_tokenizer_close(t->tokenizer);
  kf_weights_close(&t->weights);
  kf_config_free(&t->config);
  json_decref(t->fingerprint);
  free(t);
  return s;
}

const char *kf_objective_name(int index) {
  const kf_objective *o = kf_objective_at(index);
  return o ? o->name : NULL;
}

const char *kf_objective_help(int index) {
  const kf_objective *o = kf_objective_at(index);
  return o ? o->help : NULL;
}
