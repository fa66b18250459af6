#include "model/sampling.h"

#include <math.h>
#include <stdlib.h>

bool kf_token_ends(const kf_config *c, const kf_tokenizer *t, int32_t id) {
  for (int i = 0; i < c->eos_count; i++)
    if (c->eos[i] == id) return true;
  return t && kf_tokenizer_eos(t) == id;
}

static int descending(const void *a, const void *b) {
  const kf_candidate *x = a, *y = b;
  return x->logit != y->logit ? (x->logit < y->logit) - (x->logit > y->logit) : (x->id > y->id) - (x->id < y->id);
}

static int32_t argmax(const float *logits, int n) {
  int32_t best = 0;
  for (int32_t i = 1; i < n; i++)
    if (logits[i] > logits[best]) best = i;
  return best;
}

/* Moves the k largest to the front, in any order (quickselect). */
static void select_largest(kf_candidate *list, int n, int k) {
  for (int low = 0, high = n - 1; low < high;) {
    kf_candidate pivot = list[low + (high - low) / 2];
    int i = low, j = high;
    while (i <= j) {
      while (descending(&list[i], &pivot) < 0) i++;
      while (descending(&list[j], &pivot) > 0) j--;
      if (i > j) break;
      kf_candidate swap = list[i];
      list[i++] = list[j];
      list[j--] = swap;
    }
    if (k - 1 <= j)
      high = j;
    else if (k - 1 >= i)
      low = i;
    else
      break;
  }
}

/* Of the whole vocabulary: the id at which the sum of exp((logit - top) / T) passes its part r. */
static int32_t sample_all(float *logits, int n, float temperature, double r) {
  float top = logits[argmax(logits, n)];
  double sum = 0, passed = 0;
  for (int i = 0; i < n; i++) sum += logits[i] = expf((logits[i] - top) / temperature);
  for (int i = 0; i < n; i++)
    if ((passed += logits[i]) > r * sum) return i;
  return n - 1;
}

/* Hugging Face's order. */
static int32_t sample_best(const float *logits, int n, const kf_generate_options *o, double r, kf_candidate *list) {
  int kept = o->top_k > 0 && o->top_k < n ? o->top_k : n;
  float largest = logits[argmax(logits, n)] / o->temperature;
  for (int i = 0; i < n; i++) list[i] = (kf_candidate){logits[i] / o->temperature, i};
  if (kept < n) select_largest(list, n, kept);
  double sum = 0, below = 0, passed = 0;
  for (int i = 0; i < kept; i++) sum += exp((double)list[i].logit - largest);
  if (o->top_p > 0 && o->top_p < 1) {
    qsort(list, (size_t)kept, sizeof *list, descending);
    int i = 0;
    for (; i < kept && below < o->top_p * sum; i++) below += exp((double)list[i].logit - largest);
    kept = i;
    sum = below;
  }
  for (int i = 0; i < kept; i++)
    if ((passed += exp((double)list[i].logit - largest)) > r * sum) return list[i].id;
  return list[kept - 1].id;
}

int32_t kf_sample_token(float *logits, int n, const kf_generate_options *o, double r, kf_candidate *list) {
  if (o->greedy || o->temperature <= 0) return argmax(logits, n);
  bool all = (o->top_k <= 0 || o->top_k >= n) && (o->top_p <= 0 || o->top_p >= 1);
  return all ? sample_all(logits, n, o->temperature, r) : sample_best(logits, n, o, r, list);
}
