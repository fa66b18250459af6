/* Speed of a model through the public interface, as one JSON line.
 *
 *   bench_run_model MODEL PROMPT NEW REPEAT THREADS
 *
 * Feeds PROMPT tokens at once, then NEW tokens one at a time, REPEAT times over; prints the best of each:
 *   prefill_tokens_per_second, decode_tokens_per_second (0 when NEW is 0), cache_bytes (after the last token),
 *   weight_bytes (of the checkpoint in the compute type that one token reads), compute. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kvfold/kvfold.h"

typedef struct figures {
  double prefill, decode; /* tokens per second */
  int64_t cache_bytes;
} figures;

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The tokens that every program is fed (bench/peers.py has the same). */
static int32_t *make_ids(int count, int vocabulary) {
  int32_t *ids = malloc(((size_t)count + 1) * sizeof *ids);
  if (!ids) return NULL;
  for (int64_t i = 0; i < count; i++) ids[i] = (int32_t)(5 + (i * 7919 + 13) % (vocabulary - 10));
  return ids;
}

static kf_status one_pass(kf_batch *b, const int32_t *ids, int prompt, int new, float *logits, figures *best, kf_error *e) {
  kf_batch_reset(b, 0);
  double start = seconds();
  kf_feed feed = {.ids = ids, .count = (size_t)prompt};
  kf_status s = kf_batch_step(b, &feed, 1, logits, e);
  double middle = seconds();
  for (int i = 0; s == KF_OK && i < new; i++) {
    feed = (kf_feed){.ids = ids + prompt + i, .count = 1};
    s = kf_batch_step(b, &feed, 1, logits, e);
  }
  double prefill = prompt / (middle - start), decode = new / (seconds() - middle);
  if (prefill > best->prefill) best->prefill = prefill;
  if (decode > best->decode) best->decode = decode;
  best->cache_bytes = kf_batch_cache_bytes(b);
  return s;
}

static kf_status measure(kf_model *m, int prompt, int new, int repeat, figures *best, kf_error *e) {
  int vocabulary = kf_model_get_info(m)->vocabulary;
  int32_t *ids = make_ids(prompt + new, vocabulary);
  float *logits = malloc((size_t)vocabulary * sizeof *logits);
  kf_batch *b = NULL;
  kf_status s = ids && logits ? kf_batch_create(m, 1, &b, e) : KF_ERROR_MEMORY;
  for (int r = 0; s == KF_OK && r < repeat; r++) s = one_pass(b, ids, prompt, new, logits, best, e);
  kf_batch_free(b);
  free(logits);
  free(ids);
  return s;
}

static void print_figures(const kf_model *m, const figures *f) {
  const kf_model_info *info = kf_model_get_info(m);
  bool bf16 = kf_model_compute(m) == KF_COMPUTE_BF16;
  int64_t embedding = info->tied ? 0 : (int64_t)info->vocabulary * info->hidden; /* a table of which one row is read */
  printf("{\"prefill_tokens_per_second\": %.3f, \"decode_tokens_per_second\": %.3f, \"cache_bytes\": %lld, "
         "\"weight_bytes\": %lld, \"compute\": \"%s\"}\n",
         f->prefill, f->decode, (long long)f->cache_bytes, (long long)(info->parameters - embedding) * (bf16 ? 2 : 4),
         bf16 ? "bf16" : "f32");
}

int main(int argc, char **argv) {
  if (argc != 6) {
    fprintf(stderr, "usage: bench_run_model MODEL PROMPT NEW REPEAT THREADS\n");
    return 2;
  }
  kf_error e = {0};
  kf_model *m = NULL;
  figures best = {0};
  const kf_model_options options = {.threads = atoi(argv[5])};
  kf_status s = kf_model_open(argv[1], &options, &m, &e);
  if (s == KF_OK) s = measure(m, atoi(argv[2]), atoi(argv[3]), atoi(argv[4]), &best, &e);
  if (s == KF_OK)
    print_figures(m, &best);
  else
    fprintf(stderr, "bench_run_model: %s\n", e.message);
  kf_model_close(m);
  return s == KF_OK ? 0 : 1;
}
