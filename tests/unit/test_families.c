/* Every family against Hugging Face: the tiny models of tests/fixtures/families (written by tools/golden/make_families.py)
 * through the public interface. When the logits are off, the model is run layer by layer to say where that began. With the
 * argument "cuda" on the GPU. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "model/model.h"
#include "tensor/safetensors.h"

static const char *const FAMILIES = KVFOLD_SOURCE_DIR "/tests/fixtures/families";
static const double TOLERANCE = 1e-4; /* of the largest reference logit, in f32 */

enum { SEQUENCES = 3, STEPS = 4 };

static kf_device_kind device = KF_DEVICE_CPU;

/* One fixture: the open model and what Hugging Face computed. */
typedef struct family {
  const char *name;
  kf_model *model;
  kf_safetensors *expected;
  int32_t *tokens; /* [count] */
  size_t count;
  int vocabulary;
  const kf_view *logits; /* [count, vocabulary] */
} family;

/* ------------------------------------------------------------------------------------------------ helpers */

static void ok(kf_status s, const kf_error *e) {
  if (s != KF_OK) fail_msg("%s", e->message);
}

static float *floats(size_t count) {
  float *p = calloc(count ? count : 1, sizeof *p);
  assert_non_null(p);
  return p;
}

static const float *view_floats(const kf_view *v) {
  assert_non_null(v);
  assert_int_equal(v->dtype, KF_F32);
  assert_int_equal((uintptr_t)v->data % sizeof(float), 0);
  return (const float *)(const void *)v->data;
}

/* max |a - b| / max |b|; infinite when anything is not finite. */
static double relative_difference(const float *a, const float *b, size_t n) {
  double difference = 0, largest = 0;
  for (size_t i = 0; i < n; i++) {
    if (!isfinite(a[i])) return INFINITY;
    difference = fmax(difference, fabs((double)a[i] - b[i]));
    largest = fmax(largest, fabs(b[i]));
  }
  return difference / largest;
}

static void family_open(family *f, const char *name, kf_compute compute) {
  kf_error e = {0};
  char directory[KF_PATH], path[KF_PATH];
  *f = (family){.name = name};
  ok(kf_join(directory, FAMILIES, name, &e), &e);
  ok(kf_join(path, directory, "expected.safetensors", &e), &e);
  ok(kf_safetensors_open(path, &f->expected, &e), &e);
  ok(kf_join(path, directory, "model.gguf", &e), &e);
  kf_model_options options = {.compute = compute, .threads = 2, .device = device};
  ok(kf_model_open(kf_is_file(path) ? path : directory, &options, &f->model, &e), &e);
  f->vocabulary = kf_model_get_info(f->model)->vocabulary;

  const kf_view *tokens = kf_safetensors_find(f->expected, "tokens");
  assert_non_null(tokens);
  assert_int_equal(tokens->dtype, KF_I64);
  f->count = (size_t)tokens->shape[0];
  assert_non_null(f->tokens = calloc(f->count, sizeof *f->tokens));
  for (size_t i = 0; i < f->count; i++) {
    int64_t id;
    memcpy(&id, tokens->data + i * sizeof id, sizeof id);
    f->tokens[i] = (int32_t)id;
  }
  f->logits = kf_safetensors_find(f->expected, "logits");
  assert_non_null(f->logits);
  assert_int_equal(f->logits->shape[0], f->count);
  assert_int_equal(f->logits->shape[1], f->vocabulary);
}

static void family_close(family *f) {
  kf_model_close(f->model);
  kf_safetensors_close(f->expected);
  free(f->tokens);
}

/* ------------------------------------------------------------------------------------------------ the full forward */

/* Prints the first layer whose input or output is not what Hugging Face has. */
static void print_first_wrong_layer(family *f) {
  kf_error e = {0};
  kf_model *m = f->model;
  kf_sequence *sequence = NULL;
  int64_t count = (int64_t)f->count;
  size_t numbers = f->count * (size_t)m->config.hidden;
  float *x = m->device->alloc(m->device, numbers, sizeof *x, &e);
  assert_non_null(x);
  ok(kf_sequence_create(&m->config, m->device, &sequence, &e), &e);
  ok(kf_embed(&m->weights, m->embedding, f->tokens, count, x, &e), &e);
  const kf_span span = {.sequence = sequence, .offset = 0, .count = count};
  for (int i = 0; i <= m->config.layers; i++) {
    char name[32];
    snprintf(name, sizeof name, "hidden.%d", i);
    const float *want = view_floats(kf_safetensors_find(f->expected, name));
    double off = relative_difference(x, want, numbers);
    if (!(off <= TOLERANCE)) {
      if (i == 0)
        print_message("%s: the embedding is off by %.3g\n", f->name, off);
      else
        print_message("%s: layer %d is the first whose output is off, by %.3g\n", f->name, i - 1, off);
      goto done;
    }
    if (i < m->config.layers) ok(kf_layer_forward(m->run, &m->layer[i], i, x, &span, 1, NULL, &e), &e);
  }
  print_message("%s: every layer is right; the final norm or the head is off\n", f->name);
done:
  kf_sequence_free(sequence);
  m->device->release(m->device, x);
}

static void test_logits(void **state) {
  family f;
  kf_error e = {0};
  family_open(&f, *state, KF_COMPUTE_F32);
  size_t numbers = f.count * (size_t)f.vocabulary;
  float *logits = floats(numbers);
  ok(kf_logits(f.model, f.tokens, f.count, logits, &e), &e);
  double off = relative_difference(logits, view_floats(f.logits), numbers);
  if (!(off <= TOLERANCE)) {
    print_first_wrong_layer(&f);
    fail_msg("%s: logits are off by %.3g of the largest", f.name, off);
  }
  free(logits);
  family_close(&f);
}

/* bf16 keeps 8 bits: the logits of these wide random models stay near, and their order mostly. */
static void test_logits_bf16(void **state) {
  if (device == KF_DEVICE_CPU && strcmp(kf_cpu_auto_compute(), "bf16") != 0) {
    print_message("SKIP: this CPU does not multiply bf16 natively\n");
    skip();
  }
  family f;
  kf_error e = {0};
  family_open(&f, *state, KF_COMPUTE_BF16);
  assert_int_equal(kf_model_compute(f.model), KF_COMPUTE_BF16);
  size_t numbers = f.count * (size_t)f.vocabulary;
  float *logits = floats(numbers);
  ok(kf_logits(f.model, f.tokens, f.count, logits, &e), &e);
  const float *want = view_floats(f.logits);
  double square = 0, reference = 0;
  for (size_t i = 0; i < numbers; i++) {
    square += pow((double)logits[i] - want[i], 2);
    reference += pow(want[i], 2);
  }
  double off = sqrt(square / reference);
  if (!(off <= 0.05)) fail_msg("%s: bf16 logits are off by %.3g (rms)", f.name, off);
  free(logits);
  family_close(&f);
}

/* ------------------------------------------------------------------------------------------------ with a cache */

/* Token by token. Where RoPE depends on the length, Hugging Face's own steps are the reference. */
static void test_steps(void **state) {
  family f;
  kf_error e = {0};
  kf_batch *batch = NULL;
  family_open(&f, *state, KF_COMPUTE_F32);
  const kf_view *steps = kf_safetensors_find(f.expected, "step_logits");
  const float *want = view_floats(steps ? steps : f.logits);
  size_t v = (size_t)f.vocabulary;
  float *logits = floats(f.count * v);
  ok(kf_batch_create(f.model, 1, &batch, &e), &e);
  for (size_t t = 0; t < f.count; t++) {
    kf_feed feed = {.sequence = 0, .ids = f.tokens + t, .count = 1};
    ok(kf_batch_step(batch, &feed, 1, logits + t * v, &e), &e);
    assert_int_equal(kf_batch_tokens(batch, 0), t + 1);
  }
  for (size_t t = 0; t < f.count; t++) {
    double off = relative_difference(logits + t * v, want + t * v, v);
    if (!(off <= TOLERANCE)) fail_msg("%s: the logits of step %zu are off by %.3g of their largest", f.name, t, off);
  }
  kf_batch_free(batch);
  free(logits);
  family_close(&f);
}

/* Prompt of sequence s: tokens from s on, of a length of its own; then STEPS tokens one at a time. */
static size_t prompt_length(const family *f, int s) {
  const size_t length[SEQUENCES] = {f->count - STEPS - SEQUENCES, 1, f->count / 2};
  return length[s];
}

/* Feeds of one round for sequences [first, first + count): round 0 is the prompt. */
static void round_feeds(const family *f, int round, int first, int count, kf_feed *feeds) {
  for (int i = 0; i < count; i++) {
    int s = first + i;
    size_t prompt = prompt_length(f, s);
    const int32_t *start = f->tokens + s;
    feeds[i] = round ? (kf_feed){.sequence = i, .ids = start + prompt + round - 1, .count = 1}
                     : (kf_feed){.sequence = i, .ids = start, .count = prompt};
  }
}

/* logits: [STEPS + 1, count, vocabulary] */
static void run_rounds(const family *f, kf_batch *batch, int first, int count, float *logits) {
  kf_error e = {0};
  for (int round = 0; round <= STEPS; round++) {
    kf_feed feeds[SEQUENCES];
    round_feeds(f, round, first, count, feeds);
    ok(kf_batch_step(batch, feeds, count, logits + (size_t)(round * count) * (size_t)f->vocabulary, &e), &e);
  }
}

static void test_batch(void **state) {
  family f;
  kf_error e = {0};
  kf_batch *together = NULL;
  family_open(&f, *state, KF_COMPUTE_F32);
  size_t v = (size_t)f.vocabulary;
  float *all = floats((STEPS + 1) * SEQUENCES * v), *alone = floats((STEPS + 1) * v);
  ok(kf_batch_create(f.model, SEQUENCES, &together, &e), &e);
  assert_int_equal(kf_batch_cache_bytes(together), 0);
  run_rounds(&f, together, 0, SEQUENCES, all);
  int64_t rows = 0;
  for (int s = 0; s < SEQUENCES; s++) {
    kf_batch *single = NULL;
    ok(kf_batch_create(f.model, 1, &single, &e), &e);
    run_rounds(&f, single, s, 1, alone);
    for (int round = 0; round <= STEPS; round++) {
      double off = relative_difference(all + (size_t)(round * SEQUENCES + s) * v, alone + (size_t)round * v, v);
      if (!(off <= TOLERANCE)) fail_msg("%s: sequence %d, round %d is off by %.3g in company", f.name, s, round, off);
    }
    assert_int_equal(kf_batch_tokens(together, s), prompt_length(&f, s) + STEPS);
    rows += kf_batch_tokens(together, s);
    kf_batch_free(single);
  }
  /* f32 rows: four bytes a number, nothing else in the cache */
  assert_int_equal(kf_batch_cache_bytes(together), rows * kf_model_get_info(f.model)->cache_elements_per_token * 4);

  kf_batch_reset(together, 1); /* the last run above was of the last sequence: it must come out the same again */
  assert_int_equal(kf_batch_tokens(together, 1), 0);
  const kf_feed again = {.sequence = 1, .ids = f.tokens + SEQUENCES - 1, .count = prompt_length(&f, SEQUENCES - 1)};
  ok(kf_batch_step(together, &again, 1, all, &e), &e);
  assert_true(relative_difference(all, alone, v) <= TOLERANCE);
  kf_batch_free(together);
  free(all);
  free(alone);
  family_close(&f);
}

/* A step that reaches over chunks (of 512 tokens): only the last token of each sequence goes through the whole last layer, and
 * must come out as among the logits of all tokens. */
static void test_chunks(void **state) {
  enum { COUNT = 4, LONG = 430 };
  static const size_t counts[COUNT] = {300, 420, 1, 70};
  if (device == KF_DEVICE_CUDA) skip(); /* minutes on a simulated GPU */
  family f;
  kf_error e = {0};
  kf_batch *batch = NULL;
  family_open(&f, *state, KF_COMPUTE_F32);
  size_t v = (size_t)f.vocabulary;
  int32_t ids[LONG];
  kf_feed feeds[COUNT];
  float *last = floats(COUNT * v), *all = floats(LONG * v);
  for (int i = 0; i < LONG; i++) ids[i] = (i * i + 3 * i) % f.vocabulary;
  for (int s = 0; s < COUNT; s++) feeds[s] = (kf_feed){.sequence = s, .ids = ids + s, .count = counts[s]};
  ok(kf_batch_create(f.model, COUNT, &batch, &e), &e);
  ok(kf_batch_step(batch, feeds, COUNT, last, &e), &e);
  for (int s = 0; s < COUNT; s++) {
    ok(kf_logits(f.model, ids + s, counts[s], all, &e), &e);
    double off = relative_difference(last + (size_t)s * v, all + (counts[s] - 1) * v, v);
    if (!(off <= 1e-5)) fail_msg("%s: the last token of %zu is off by %.3g in company", f.name, counts[s], off);
  }
  kf_batch_free(batch);
  free(last);
  free(all);
  family_close(&f);
}

/* ------------------------------------------------------------------------------------------------ */

static int is_family(const struct dirent *entry) {
  return entry->d_name[0] != '.';
}

int main(int argc, char **argv) {
  static const struct {
    const char *what;
    CMUnitTestFunction run;
  } KINDS[] = {{"logits", test_logits},
               {"logits in bf16", test_logits_bf16},
               {"steps", test_steps},
               {"batch", test_batch},
               {"chunks", test_chunks}};
  enum { KIND_COUNT = sizeof KINDS / sizeof *KINDS };
  struct dirent **entries = NULL;
  if (argc > 1 && strcmp(argv[1], "cuda") == 0) device = KF_DEVICE_CUDA;
  int found = scandir(FAMILIES, &entries, is_family, alphasort);
  if (found <= 0) {
    fprintf(stderr, "%s: no fixtures\n", FAMILIES);
    return 1;
  }
  struct CMUnitTest *tests = calloc((size_t)found * KIND_COUNT, sizeof *tests);
  char(*names)[320] = calloc((size_t)found * KIND_COUNT, sizeof *names);
  if (!tests || !names) return 1;
  size_t count = 0;
  for (int i = 0; i < found; i++) {
    for (int k = 0; k < KIND_COUNT; k++, count++) {
      snprintf(names[count], sizeof names[count], "%s: %s", entries[i]->d_name, KINDS[k].what);
      tests[count] = (struct CMUnitTest){.name = names[count], .test_func = KINDS[k].run, .initial_state = entries[i]->d_name};
    }
  }
  int failures = _cmocka_run_group_tests("families", tests, count, NULL, NULL);
  for (int i = 0; i < found; i++) free(entries[i]);
  free(entries);
  free(names);
  free(tests);
  return failures;
}
