/* Every objective on a tiny model: its gradient against differences of its own loss, and what it must be at the start. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tiny.h"
#include "train/cached_teacher.h"

static char directory[64] = "/tmp/kvfold-objective-XXXXXX";

static kf_device_kind kind = KF_DEVICE_CPU;

typedef struct bench {
  kf_config config;
  kf_weights weights;
  kf_device *device;
  kf_parameters *parameters;
  kf_network *network;
  kf_objective_run run;
  kf_window window;
} bench;

static void must(kf_status s, const kf_error *e) {
  if (s != KF_OK) fail_msg("%s", e->message);
}

/* The student in directory/a, the frozen model in directory/`frozen` (NULL: none). */
static void open_bench(bench *b, const char *objective, const char *frozen) {
  char path[KF_PATH];
  kf_error e = {0};
  *b = (bench){0};
  snprintf(path, sizeof path, "%s/a", directory);
  must(kf_model_read(path, &b->config, &b->weights, &e), &e);
  b->weights.config = &b->config;
  must(kf_device_open(kind, KF_COMPUTE_F32, 1, &b->device, &e), &e);
  must(kf_parameters_create(&b->config, b->device, &b->parameters, &e), &e);
  must(kf_parameters_load(b->parameters, &b->weights, &e), &e);
  must(kf_network_create(&b->config, b->device, b->parameters, &b->network, &e), &e);
  must(kf_objective_find(objective, &b->run.objective, &e), &e);
  b->run.settings = (kf_objective_settings){.ce = 0.3f, .kl = 0.7f, .temperature = 1.5f, .beta = 0.4, .smoothing = 0.1};
  b->run.network = b->network, b->run.device = b->device;
  snprintf(path, sizeof path, "%s/%s", directory, frozen ? frozen : "");
  kf_model_options o = {.device = kind, .compute = KF_COMPUTE_F32, .threads = 1};
  if (frozen) must(kf_model_open(path, &o, &b->run.frozen.model, &e), &e);
  must(kf_window_create(b->device, 64, &b->window, &e), &e);
  static const int64_t lengths[] = {9, 5, 7, 11};
  for (int s = 0; s < 4; s++) {
    b->window.sequence[b->window.sequences++] = (kf_extent){b->window.count, lengths[s]};
    for (int64_t i = 0; i < lengths[s]; i++, b->window.count++) {
      b->window.ids[b->window.count] = (int32_t)((b->window.count * 37 + 11) % 4096);
      b->window.target[b->window.count] = (int32_t)((b->window.count * 53 + 7) % 4096);
      b->window.weight[b->window.count] = i > 1;
    }
  }
}

/* The same frozen model, kept as its six likeliest tokens of each row. */
static void cache_teacher(bench *b) {
  static char cache[KF_PATH], teacher[KF_PATH];
  kf_error e = {0};
  snprintf(cache, sizeof cache, "%s/cache", directory), snprintf(teacher, sizeof teacher, "%s/b", directory);
  kf_cached_options o = {.directory = cache,
                         .teacher = teacher,
                         .model = {.device = kind, .compute = KF_COMPUTE_F32, .threads = 1},
                         .device = b->device,
                         .top = 6,
                         .vocabulary = b->config.vocabulary,
                         .temperature = b->run.settings.temperature};
  must(kf_cached_teacher_open(&o, &b->run.cached, &e), &e);
}

static void close_bench(bench *b) {
  kf_window_free(&b->window);
  kf_objective_run_free(&b->run);
  kf_network_free(b->network);
  kf_parameters_free(b->parameters);
  kf_device_close(b->device);
  kf_weights_close(&b->weights);
  kf_config_free(&b->config);
}

static kf_totals evaluate(bench *b) {
  kf_totals t = {0};
  kf_error e = {0};
  kf_parameters_zero_gradient(b->parameters);
  must(b->run.objective->run(&b->run, &b->window, &t, &e), &e);
  return t;
}

static void gradients(void **state) {
  (void)state;
  static const struct {
    const char *name;
    int count; /* what the loss is a sum over */
    bool cached;
    kf_match match;
  } all[] = {{"ce", 24, false, KF_MATCH_LAYER},        {"forward-kl", 24, false, KF_MATCH_LAYER},
             {"forward-kl", 24, true, KF_MATCH_LAYER}, {"reverse-kl", 24, false, KF_MATCH_LAYER},
             {"js", 24, false, KF_MATCH_LAYER},        {"dpo", 2, false, KF_MATCH_LAYER},
             {"ipo", 2, false, KF_MATCH_LAYER},        {"align", 2, false, KF_MATCH_LAYER},
             {"align", 2, false, KF_MATCH_ATTENTION},  {"align", 2, false, KF_MATCH_BOTH}};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    bench b;
    kf_random dice;
    const double step = 4e-3;
    kf_random_seed(&dice, 5);
    open_bench(&b, all[i].name, i ? "b" : NULL);
    b.run.settings.match = all[i].match;
    if (all[i].cached) cache_teacher(&b);
    int64_t n = b.parameters->total;
    float *start = malloc((size_t)n * sizeof *start), *along = malloc((size_t)n * sizeof *along);
    memcpy(start, b.parameters->value, (size_t)n * sizeof *start);
    double got = 0, terms = 0, loss[2];
    kf_totals t = evaluate(&b);
    assert_true(isfinite(t.loss) && t.count == all[i].count);
    /* along the gradient itself, disturbed: the derivative is then far above the rounding of the loss */
    double norm = sqrt(kf_parameters_gradient_squares(b.parameters));
    for (int64_t j = 0; j < n; j++) {
      along[j] = (float)(b.parameters->gradient[j] / norm * (1 + 0.5 * kf_random_normal(&dice)));
      got += (double)along[j] * (double)b.parameters->gradient[j];
      terms += fabs((double)along[j] * (double)b.parameters->gradient[j]);
    }
    for (int side = 0; side < 2; side++) {
      for (int64_t j = 0; j < n; j++) b.parameters->value[j] = start[j] + (float)(side ? -step : step) * along[j];
      loss[side] = evaluate(&b).loss;
    }
    double want = (loss[0] - loss[1]) / (2 * step);
    if (!(fabs(got - want) <= 2e-3 * terms)) fail_msg("%s %d: %.7g, by differences %.7g", all[i].name, (int)i, got, want);
    free(start), free(along);
    close_bench(&b);
  }
}

/* Against itself a model has nothing to learn, and preferences are even. */
static void at_the_start(void **state) {
  (void)state;
  static const char *const names[] = {"forward-kl", "reverse-kl", "js", "align"};
  bench b;
  for (size_t i = 0; i < 4; i++) {
    open_bench(&b, names[i], "a");
    b.run.settings.ce = 0;
    b.run.settings.match = KF_MATCH_BOTH;
    kf_totals t = evaluate(&b);
    assert_true(fabs(t.loss) < 1e-4 && fabs(t.divergence) < 1e-4);
    assert_true(kf_parameters_gradient_squares(b.parameters) < 1e-6);
    close_bench(&b);
  }
  open_bench(&b, "dpo", "a");
  kf_totals t = evaluate(&b);
  assert_true(fabs(t.loss / 2 - log(2)) < 1e-4);
  close_bench(&b);
  open_bench(&b, "ipo", "a");
  t = evaluate(&b);
  assert_true(fabs(t.loss / 2 - pow(1 / (2 * 0.4), 2)) < 1e-3);
  close_bench(&b);
}

/* Steps down the gradient of each layer's own error bring that error down; where attention alone is matched, no MLP moves. */
static void aligning(void **state) {
  (void)state;
  for (kf_match match = KF_MATCH_LAYER; match <= KF_MATCH_BOTH; match++) {
    bench b;
    open_bench(&b, "align", "b");
    b.run.settings.match = match;
    double first = 0, last = 0;
    const kf_parameter *mlp = kf_parameters_find(b.parameters, "model.layers.0.mlp.down_proj.weight");
    float before = b.parameters->value[mlp->at];
    for (int i = 0; i < 30; i++) {
      last = evaluate(&b).loss;
      if (i == 0) first = last;
      kf_parameters_step(b.parameters, &(kf_adamw){.rate = 0.02f,
                                                   .beta1 = 0.9f,
                                                   .beta2 = 0.95f,
                                                   .eps = 1e-8f,
                                                   .scale = 1,
                                                   .correction1 = (float)(1 - pow(0.9, i + 1)),
                                                   .correction2 = (float)(1 - pow(0.95, i + 1))});
      kf_parameters_round(b.parameters);
    }
    if (!(last < 0.5 * first)) fail_msg("match %d: from %g to %g", (int)match, first, last);
    assert_int_equal(b.parameters->value[mlp->at] == before, match == KF_MATCH_ATTENTION);
    close_bench(&b);
  }
}

static void names(void **state) {
  (void)state;
  const kf_objective *o;
  kf_error e = {0};
  for (int i = 0; kf_objective_at(i); i++) {
    assert_int_equal(kf_objective_find(kf_objective_at(i)->name, &o, &e), KF_OK);
    assert_ptr_equal(o, kf_objective_at(i));
  }
  assert_int_equal(kf_objective_find("nonsense", &o, &e), KF_ERROR_USAGE);
}

int main(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], "cuda") == 0) kind = KF_DEVICE_CUDA;
  const struct CMUnitTest tests[] = {cmocka_unit_test(gradients), cmocka_unit_test(at_the_start), cmocka_unit_test(aligning),
                                     cmocka_unit_test(names)};
  char path[KF_PATH];
  kf_error e = {0};
  if (!mkdtemp(directory)) return 1;
  for (int i = 0; i < 2; i++) {
    snprintf(path, sizeof path, "%s/%c", directory, 'a' + i);
    if (tiny_model(path, 1 + (uint64_t)i, 0.25, NULL, &e) != KF_OK) return printf("%s\n", e.message), 1;
  }
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  kf_remove_tree(directory, NULL);
  return failed;
}
