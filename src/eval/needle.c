#include "eval/needle.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"

/* The question is the needle up to its number, so that even a model that follows no instruction can answer by analogy. */
#define SENTENCE "\n\nThe secret number of the lighthouse is"

/* One case as tokens. */
typedef struct test {
  kf_device *device;
  kf_ids needle, question, asked; /* the whole sentence; it up to the number; the same with the number */
  int32_t *input;                 /* [context], the memory of the device */
  size_t answers;                 /* tokens of the number, the last of the input */
} test;

static void test_free(test *c) {
  kf_ids_free(&c->needle);
  kf_ids_free(&c->question);
  kf_ids_free(&c->asked);
  c->device->release(c->device, c->input);
}

static kf_status encode(const kf_tokenizer *t, const char *text, kf_ids *out, kf_error *e) {
  return kf_tokenizer_encode(t, text, strlen(text), KF_ENCODE_PLAIN, out, e);
}

/* The answer begins where the tokens of the question with and without it part. */
static kf_status write_sentences(test *c, const kf_tokenizer *t, const kf_needle *n, kf_error *e) {
  char text[128];
  kf_random random;
  kf_random_seed(&random, (uint64_t)n->context * 101 + (uint64_t)n->depth);
  unsigned number = 10000 + (unsigned)(kf_random_u64(&random) % 90000);
  KF_TRY(encode(t, SENTENCE, &c->question, e));
  snprintf(text, sizeof text, SENTENCE " %u", number);
  KF_TRY(encode(t, text, &c->asked, e));
  snprintf(text, sizeof text, SENTENCE " %u.\n\n", number);
  KF_TRY(encode(t, text, &c->needle, e));
  size_t common = 0;
  while (common < c->question.count && common < c->asked.count && c->question.data[common] == c->asked.data[common]) common++;
  c->answers = c->asked.count - common;
  return c->answers && common ? KF_OK : kf_fail(e, KF_ERROR_INPUT, "the tokenizer gives the needle's number no token of its own");
}

static size_t add(int32_t *to, size_t at, const int32_t *ids, size_t count) {
  memcpy(to + at, ids, count * sizeof *to);
  return at + count;
}

static kf_status write_input(test *c, const kf_ids *haystack, int32_t bos, const kf_needle *n, kf_error *e) {
  size_t rest = c->needle.count + c->asked.count + (bos >= 0), context = (size_t)n->context, at = 0;
  if (n->context < 0 || context <= rest)
    return kf_fail(e, KF_ERROR_INPUT, "a needle with its question takes %zu tokens, more than a context of %d has", rest,
                   n->context);
  size_t straw = context - rest, before = straw * (size_t)n->depth / 100;
  if (straw > haystack->count)
    return kf_fail(e, KF_ERROR_INPUT, "the text has %zu tokens, too few for a context of %d", haystack->count, n->context);
  KF_DEVICE_NEW(c->device, c->input, context, e);
  if (bos >= 0) at = add(c->input, at, &bos, 1);
  at = add(c->input, at, haystack->data, before);
  at = add(c->input, at, c->needle.data, c->needle.count);
  at = add(c->input, at, haystack->data + before, straw - before);
  add(c->input, at, c->asked.data, c->asked.count);
  return KF_OK;
}

/* logits of the rows that predict the answer, from the hidden states x [context, hidden] */
static kf_status score(kf_model *m, const test *c, const float *x, kf_needle *n, kf_error *e) {
  kf_device *d = m->device;
  int64_t rows = (int64_t)c->answers, first = n->context - rows;
  float *logits = d->alloc(d, (size_t)rows * (size_t)m->config.vocabulary, sizeof *logits, e);
  double *nll = d->alloc(d, (size_t)rows, sizeof *nll, e);
  int32_t *best = d->alloc(d, (size_t)rows, sizeof *best, e);
  kf_status s = logits && nll && best ? KF_OK : KF_ERROR_MEMORY;
  if (s == KF_OK) s = kf_model_logits(m, x + (first - 1) * m->config.hidden, rows, logits, e);
  if (s == KF_OK) {
    d->cross_entropy(d, logits, c->input + first, rows, m->config.vocabulary, nll, best);
    s = kf_device_check(d, e);
  }
  n->logprob = 0;
  n->found = true; /* greedy text is the number exactly if each of its tokens is the likeliest after those before it */
  for (int64_t i = 0; s == KF_OK && i < rows; i++) {
    n->logprob -= nll[i] / (double)rows;
    n->found = n->found && best[i] == c->input[first + i];
  }
  d->release(d, logits);
  d->release(d, nll);
  d->release(d, best);
  return s;
}

static kf_status run(kf_model *m, const test *c, kf_needle *n, kf_error *e) {
  kf_sequence *sequence;
  float *x;
  KF_DEVICE_NEW(m->device, x, (int64_t)n->context * m->config.hidden, e);
  kf_status s = kf_sequence_create(&m->config, m->device, &sequence, e);
  if (s == KF_OK) {
    s = kf_embed(&m->weights, m->embedding, c->input, n->context, x, e);
    if (s == KF_OK) s = kf_model_forward(m, x, &(kf_span){sequence, 0, n->context, 0}, 1, e);
    if (s == KF_OK) s = score(m, c, x, n, e);
    kf_sequence_free(sequence);
  }
  m->device->release(m->device, x);
  return s;
}

kf_status kf_needle_run(kf_model *m, const kf_tokenizer *t, const kf_ids *haystack, int32_t bos, kf_needle *needle, kf_error *e) {
  test c = {.device = m->device};
  kf_status s = write_sentences(&c, t, needle, e);
  if (s == KF_OK) s = write_input(&c, haystack, bos, needle, e);
  if (s == KF_OK) s = run(m, &c, needle, e);
  test_free(&c);
  return s;
}
