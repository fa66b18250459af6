/* Whole runs of kf_train on a tiny model: what they write, and what becomes of those that end early. */
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "tiny.h"
#include "train/training.h"

static char directory[64] = "/tmp/kvfold-training-XXXXXX";
static char student[128], teacher[128], text[128], prefs[128], cache[128];

static kf_train_options base(const char *objective) {
  static const char *data[1];
  data[0] = strlen(objective) == 3 && strcmp(objective, "ce") != 0 ? prefs : text;
  return (kf_train_options){.objective = objective,
                            .data = data,
                            .data_count = 1,
                            .data_cache = cache,
                            .steps = 6,
                            .length = 24,
                            .batch = 4,
                            .micro = 3,
                            .rate = 0.02,
                            .schedule = "cosine",
                            .weight_decay = 0.01,
                            .save_every = 2,
                            .isolated = true,
                            .compute = KF_COMPUTE_F32,
                            .threads = 1};
}

static void out_path(char path[KF_PATH], const char *name) {
  snprintf(path, KF_PATH, "%s/%s", directory, name);
}

static kf_text read_in(const char *name, const char *file) {
  char path[KF_PATH];
  kf_text t = {0};
  kf_error e = {0};
  snprintf(path, sizeof path, "%s/%s/%s", directory, name, file);
  if (kf_read_file(path, 1 << 24, &t, &e) != KF_OK) fail_msg("%s", e.message);
  return t;
}

/* The log without what a clock says. */
static char *timeless(kf_text *t) {
  char *to = t->data;
  for (const char *p = t->data; *p;) {
    const char *end = strchr(p, '\n'), *clock = strstr(p, ", \"tokens_per_second\"");
    memmove(to, p, (size_t)(clock - p));
    to += clock - p;
    *to++ = '\n';
    p = end + 1;
  }
  *to = 0;
  return t->data;
}

static void same_runs(const char *a, const char *b) {
  kf_text x = read_in(a, "model.safetensors"), y = read_in(b, "model.safetensors");
  assert_int_equal(x.bytes, y.bytes);
  assert_memory_equal(x.data, y.data, x.bytes);
  kf_text_free(&x), kf_text_free(&y);
  x = read_in(a, "train.jsonl"), y = read_in(b, "train.jsonl");
  assert_string_equal(timeless(&x), timeless(&y));
  kf_text_free(&x), kf_text_free(&y);
}

typedef struct watcher {
  int64_t stop_at;
  double first, last, correct;
} watcher;

static void on_step(void *user, const kf_train_step *s) {
  watcher *w = user;
  if (s->step == 1) w->first = s->loss;
  w->last = s->loss;
  w->correct = s->correct;
}

static int stop(void *user, const char *what, double done, double total) {
  (void)total;
  const watcher *w = user;
  return strcmp(what, "training") == 0 && w->stop_at && done >= (double)w->stop_at;
}

static kf_status train(kf_train_options *o, const char *name, watcher *w, kf_error *e) {
  char path[KF_PATH];
  out_path(path, name);
  o->on_step = on_step;
  o->user = w;
  o->hooks = (kf_hooks){.progress = stop, .user = w};
  return kf_train(student, path, o, NULL, e);
}

/* A run that is stopped after step 3 goes on from the checkpoint of step 2, to the same bytes. */
static void resuming(void **state) {
  (void)state;
  static const char *const objectives[] = {"ce", "dpo", "forward-kl", "forward-kl"};
  for (int i = 0; i < 4; i++) {
    char whole[32], parts[32], path[KF_PATH], predictions[KF_PATH];
    kf_error e = {0};
    watcher w = {0};
    snprintf(whole, sizeof whole, "whole%d", i), snprintf(parts, sizeof parts, "parts%d", i);
    kf_train_options o = base(objectives[i]);
    if (i >= 2) o.teacher = teacher, o.teacher_cache = predictions, o.teacher_top = 9;
    out_path(predictions, "predictions");
    if (train(&o, whole, &w, &e) != KF_OK) fail_msg("%s", e.message);
    if (i == 2) out_path(predictions, "predictions of parts"); /* i == 3: the teacher runs no more */
    w.stop_at = 3;
    assert_int_equal(train(&o, parts, &w, &e), KF_ERROR_CANCELLED);
    w.stop_at = 0;
    out_path(path, parts);
    assert_false(kf_exists(path));
    assert_int_equal(train(&o, parts, &w, &e), KF_ERROR_IO); /* not without being asked */
    assert_non_null(strstr(e.message, "--resume"));
    o.resume = true;
    o.rate = 0.03;
    assert_int_equal(train(&o, parts, &w, &e), KF_ERROR_INPUT);
    assert_non_null(strstr(e.message, "rate"));
    o.rate = 0.02;
    if (train(&o, parts, &w, &e) != KF_OK) fail_msg("%s", e.message);
    same_runs(whole, parts);
    strcat(path, ".run");
    assert_false(kf_exists(path));
    assert_int_equal(train(&o, parts, &w, &e), KF_ERROR_IO);
    assert_non_null(strstr(e.message, "exists"));
  }
}

/* Predictions of the whole vocabulary are as good as the teacher itself. */
static void cached_teacher(void **state) {
  (void)state;
  char predictions[KF_PATH];
  double first[2], last[2];
  for (int i = 0; i < 2; i++) {
    kf_error e = {0};
    watcher w = {0};
    kf_train_options o = base("forward-kl");
    out_path(predictions, "all predictions");
    o.teacher = teacher, o.ce_weight = 0.2, o.temperature = 1.3;
    if (i) o.teacher_cache = predictions, o.teacher_top = 1 << 20;
    if (train(&o, i ? "by cache" : "by teacher", &w, &e) != KF_OK) fail_msg("%s", e.message);
    first[i] = w.first, last[i] = w.last;
  }
  assert_true(fabs(first[1] - first[0]) < 1e-5 * first[0] && fabs(last[1] - last[0]) < 1e-3 * last[0]);
}

/* Every objective brings its own loss down, and what it writes loads. */
static void learning(void **state) {
  (void)state;
  const struct {
    const char *objective;
    double rate, falls_to;
  } all[] = {{"ce", 0.05, 0.9},  {"forward-kl", 0.02, 0.9}, {"reverse-kl", 0.02, 0.95}, {"js", 0.02, 0.97},
             {"dpo", 0.01, 0.9}, {"ipo", 0.01, 0.99},       {"align", 0.02, 0.9}};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    kf_error e = {0};
    watcher w = {0};
    kf_train_options o = base(all[i].objective);
    o.rate = all[i].rate;
    o.steps = 12;
    o.teacher = strstr("forward-kl reverse-kl js align", all[i].objective) ? teacher : NULL;
    if (train(&o, all[i].objective, &w, &e) != KF_OK) fail_msg("%s", e.message);
    if (!(w.last < all[i].falls_to * w.first)) fail_msg("%s: loss from %g to %g", all[i].objective, w.first, w.last);
    if (strcmp(all[i].objective, "dpo") == 0) assert_true(w.correct == 1);
    kf_model *m = NULL;
    char path[KF_PATH];
    out_path(path, all[i].objective);
    assert_int_equal(kf_model_open(path, NULL, &m, &e), KF_OK);
    kf_model_close(m);
  }
}

static void refused(kf_train_options *o, const char *name, kf_status status, const char *says) {
  char path[KF_PATH];
  kf_error e = {0};
  watcher w = {0};
  kf_status s = train(o, name, &w, &e);
  if (s != status || !strstr(e.message, says)) fail_msg("status %d, '%s' does not say '%s'", (int)s, e.message, says);
  out_path(path, name);
  assert_false(kf_exists(path));
}

static void errors(void **state) {
  (void)state;
  kf_train_options o = base("ce");
  o.teacher = teacher;
  refused(&o, "no", KF_ERROR_USAGE, "takes no teacher");
  o = base("forward-kl");
  refused(&o, "no", KF_ERROR_USAGE, "needs a teacher");
  o.teacher = teacher;
  o.objective = "js", o.teacher_cache = cache;
  refused(&o, "no", KF_ERROR_USAGE, "serves forward-kl alone");
  o = base("forward-kl");
  o.teacher = KVFOLD_SOURCE_DIR "/../shared/data/models/stories260K";
  if (kf_exists(o.teacher)) refused(&o, "no", KF_ERROR_INPUT, "vocabulary");
  o = base("ce");
  o.tokens = 5;
  refused(&o, "no", KF_ERROR_USAGE, "either the steps or the tokens");
  o = base("ce");
  o.schedule = "flat";
  refused(&o, "no", KF_ERROR_USAGE, "flat");
  o = base("ce");
  o.dtype = "q8_0";
  refused(&o, "no", KF_ERROR_USAGE, "q8_0");
  o = base("align");
  o.teacher = teacher, o.match = "mlp";
  refused(&o, "no", KF_ERROR_USAGE, "unknown match 'mlp': layer, attention or both");
  o = base("ce");
  o.data_count = 0;
  refused(&o, "no", KF_ERROR_USAGE, "no data");
  o = base("ce");
  o.beta2 = 2;
  refused(&o, "no", KF_ERROR_USAGE, "beta2");
  o = base("ce");
  const char *freeze[] = {"*"};
  o.freeze = freeze, o.freeze_count = 1;
  refused(&o, "no", KF_ERROR_USAGE, "frozen");
}

/* A number that is not finite ends the run at its step, names a tensor, and spoils neither weights nor checkpoint. */
static void not_finite(void **state) {
  (void)state;
  char healthy[128], path[KF_PATH];
  kf_error e = {0};
  memcpy(healthy, student, sizeof healthy);
  snprintf(student, sizeof student, "%s/poisoned", directory);
  if (tiny_model(student, 1, 0.25, "model.layers.1.mlp.down_proj.weight", &e) != KF_OK) fail_msg("%s", e.message);
  kf_train_options o = base("ce");
  refused(&o, "nan", KF_ERROR_INPUT, "step 1: the loss is nan and the gradient of model.embed_tokens.weight is not finite");
  refused(&o, "nan", KF_ERROR_INPUT, "no checkpoint was made yet in ");
  memcpy(student, healthy, sizeof healthy);
  out_path(path, "nan.run/checkpoint.safetensors");
  assert_false(kf_exists(path));
}

/* Stops a run behind its checkpoint of step 2. */
static void stop_after_two(kf_train_options *o, const char *name, char checkpoint[KF_PATH]) {
  char file[64];
  kf_error e = {0};
  watcher w = {.stop_at = 3};
  assert_int_equal(train(o, name, &w, &e), KF_ERROR_CANCELLED);
  snprintf(file, sizeof file, "%s.run/checkpoint.safetensors", name);
  out_path(checkpoint, file);
  o->resume = true;
}

/* No room for a checkpoint: one sentence, the one before stays, and the run goes on from it when there is room. */
static void disk_full(void **state) {
  (void)state;
  char checkpoint[KF_PATH], path[KF_PATH + 8];
  struct rlimit before, little;
  kf_error e = {0};
  watcher w = {0};
  kf_train_options o = base("ce");
  if (train(&o, "roomy", &w, &e) != KF_OK) fail_msg("%s", e.message);
  stop_after_two(&o, "full", checkpoint);
  kf_text old = read_in("full.run", "checkpoint.safetensors");
  getrlimit(RLIMIT_FSIZE, &before);
  little = (struct rlimit){20000, before.rlim_max};
  signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &little);
  kf_status s = train(&o, "full", &w, &e);
  setrlimit(RLIMIT_FSIZE, &before);
  assert_int_equal(s, KF_ERROR_IO);
  if (!strstr(e.message, "cannot write") || !strstr(e.message, "checkpoint.safetensors: File too large"))
    fail_msg("%s", e.message);
  kf_text now = read_in("full.run", "checkpoint.safetensors");
  assert_int_equal(now.bytes, old.bytes);
  assert_memory_equal(now.data, old.data, old.bytes);
  snprintf(path, sizeof path, "%s.tmp", checkpoint);
  assert_false(kf_exists(path));
  if (train(&o, "full", &w, &e) != KF_OK) fail_msg("%s", e.message);
  same_runs("roomy", "full");
  kf_text_free(&old), kf_text_free(&now);
}

/* A number that spoils a run on its way. */
static void spoilt_later(void **state) {
  (void)state;
  char checkpoint[KF_PATH];
  kf_safetensors *f;
  kf_error e = {0};
  kf_train_options o = base("ce");
  stop_after_two(&o, "spoilt", checkpoint);
  assert_int_equal(kf_safetensors_open(checkpoint, &f, &e), KF_OK);
  const kf_view *v = kf_safetensors_find(f, "value.model.layers.1.mlp.down_proj.weight"), *first = kf_safetensors_at(f, 0);
  kf_text file = read_in("spoilt.run", "checkpoint.safetensors");
  FILE *out = fopen(checkpoint, "r+");
  int64_t data = 0; /* where the file's data begin */
  for (int i = 0; i < kf_safetensors_count(f); i++) data += (int64_t)kf_safetensors_at(f, i)->bytes;
  fseek(out, (long)((int64_t)file.bytes - data + ((const char *)v->data - (const char *)first->data)), SEEK_SET);
  fwrite(&(float){NAN}, sizeof(float), 1, out);
  fclose(out);
  kf_safetensors_close(f);
  kf_text_free(&file);
  refused(&o, "spoilt", KF_ERROR_INPUT, "step 3: the loss is nan and the gradient of model.embed_tokens.weight is not finite");
  refused(&o, "spoilt", KF_ERROR_INPUT, "the last checkpoint stays: ");
}

static kf_status write_data(kf_error *e) {
  static const char lines[] =
      "{\"text\": \"It was the best of times, it was the worst of times, it was the age of wisdom.\"}\n"
      "{\"text\": \"It was the age of foolishness, it was the epoch of belief, it was the epoch of incredulity.\"}\n"
      "{\"text\": \"It was the season of light, it was the season of darkness, it was the spring of hope.\"}\n";
  static const char answers[] = "{\"prompt\": \"The weather is \", \"chosen\": \"fine today\", \"rejected\": \"seven\"}\n"
                                "{\"prompt\": \"She said \", \"chosen\": \"good morning\", \"rejected\": \"of of of\"}\n";
  KF_TRY(kf_write_file(text, lines, strlen(lines), e));
  KF_TRY(kf_write_file(prefs, answers, strlen(answers), e));
  KF_TRY(tiny_model(student, 1, 0.25, NULL, e));
  return tiny_model(teacher, 2, 0.25, NULL, e);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(resuming),    cmocka_unit_test(cached_teacher), cmocka_unit_test(learning),
                                     cmocka_unit_test(errors),      cmocka_unit_test(not_finite),     cmocka_unit_test(disk_full),
                                     cmocka_unit_test(spoilt_later)};
  kf_error e = {0};
  if (!mkdtemp(directory)) return 1;
  snprintf(student, sizeof student, "%s/student", directory), snprintf(teacher, sizeof teacher, "%s/teacher", directory);
  snprintf(text, sizeof text, "%s/text.jsonl", directory), snprintf(prefs, sizeof prefs, "%s/prefs.jsonl", directory);
  snprintf(cache, sizeof cache, "%s/cache", directory);
  if (write_data(&e) != KF_OK) return printf("%s\n", e.message), 1;
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  kf_remove_tree(directory, NULL);
  return failed;
}
