#include "model/self_samples.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/file.h"
#include "base/json.h"
#include "base/random.h"
#include "model/sampling.h"

enum { TOGETHER = 32, DEFAULT_LENGTH = 512 }; /* documents that are written side by side */

typedef struct document {
  int32_t *ids; /* [length] */
  int64_t count;
  int32_t last; /* the token that is fed next */
  bool open;
} document;

typedef struct writer {
  kf_model *model;
  const kf_tokenizer *tokenizer;
  const kf_self_options *o;
  kf_self_visit visit;
  void *user;
  kf_batch *batch;
  document document[TOGETHER];
  int64_t begun, ended;
  int32_t bos, *ids;  /* ids: [TOGETHER, length] */
  float *logits;      /* [TOGETHER, vocabulary] */
  kf_candidate *list; /* [TOGETHER, vocabulary] */
  kf_random random;
} writer;

static int32_t even(writer *w) {
  return (int32_t)(kf_random_u64(&w->random) % (uint64_t)w->model->config.vocabulary);
}

static void begin(writer *w, int sequence) {
  document *d = &w->document[sequence];
  kf_batch_reset(w->batch, sequence);
  d->open = true;
  d->count = 0;
  d->last = w->bos >= 0 ? w->bos : even(w);
  if (w->bos < 0) d->ids[d->count++] = d->last;
  w->begun++;
}

static kf_status take(writer *w, document *d, int32_t id, kf_error *e) {
  const kf_config *c = &w->model->config;
  bool over = !w->o->goes_on && kf_token_ends(c, w->tokenizer, id);
  if (w->o->goes_on && kf_token_ends(c, NULL, d->last)) id = even(w); /* a new text begins */
  if (!over) d->ids[d->count++] = d->last = id;
  if (!over && d->count < w->o->length) return KF_OK;
  d->open = false;
  w->ended++;
  return w->visit(w->user, d->ids, d->count, e);
}

static kf_status tell(const writer *w, kf_error *e) {
  double done = (double)w->ended * (double)w->o->length;
  for (int i = 0; i < TOGETHER; i++) done += w->document[i].open ? (double)w->document[i].count : 0;
  return kf_progress(w->o->hooks, "sampling", done, (double)w->o->documents * (double)w->o->length, e);
}

/* One token of every open document. */
static kf_status advance(writer *w, kf_error *e) {
  kf_feed feed[TOGETHER];
  int32_t id[TOGETHER];
  double part[TOGETHER];
  int count = 0, vocabulary = w->model->config.vocabulary;
  for (int i = 0; i < TOGETHER; i++) {
    if (!w->document[i].open && w->begun < w->o->documents) begin(w, i);
    if (w->document[i].open) feed[count++] = (kf_feed){i, &w->document[i].last, 1};
  }
  KF_TRY(kf_batch_step(w->batch, feed, count, w->logits, e));
  for (int i = 0; i < count; i++) part[i] = kf_random_uniform(&w->random);
#pragma omp parallel for
  for (int i = 0; i < count; i++)
    id[i] = kf_sample_token(w->logits + (int64_t)i * vocabulary, vocabulary, &w->o->sampling, part[i],
                            w->list + (int64_t)i * vocabulary);
  for (int i = 0; i < count; i++) KF_TRY(take(w, &w->document[feed[i].sequence], id[i], e));
  return tell(w, e);
}

static kf_status write_all(writer *w, kf_error *e) {
  int64_t numbers = (int64_t)TOGETHER * w->model->config.vocabulary;
  if (w->o->length < 2) return kf_fail(e, KF_ERROR_INPUT, "documents of less than two tokens cannot be sampled");
  kf_random_seed(&w->random, w->o->sampling.seed);
  KF_TRY(kf_batch_create(w->model, TOGETHER, &w->batch, e));
  KF_NEW(w->logits, numbers, e);
  KF_NEW(w->list, numbers, e);
  KF_NEW(w->ids, TOGETHER * w->o->length, e);
  for (int i = 0; i < TOGETHER; i++) w->document[i].ids = w->ids + i * w->o->length;
  while (w->ended < w->o->documents) KF_TRY(advance(w, e));
  return KF_OK;
}

kf_status kf_self_samples(kf_model *m, const kf_tokenizer *t, const kf_self_options *o, kf_self_visit visit, void *user,
                          kf_error *e) {
  writer w = {.model = m, .tokenizer = t, .o = o, .visit = visit, .user = user};
  w.bos = kf_tokenizer_adds_bos(t) ? kf_tokenizer_bos(t) : -1;
  kf_status s = write_all(&w, e);
  kf_batch_free(w.batch);
  free(w.logits);
  free(w.list);
  free(w.ids);
  return s;
}

/* ---------------------------------------------------------------------------------------------- as a file */

typedef struct lines {
  const kf_tokenizer *tokenizer;
  kf_replacement file;
  int64_t tokens;
} lines;

static kf_status write_line(void *user, const int32_t *ids, int64_t count, kf_error *e) {
  lines *l = user;
  kf_text text = {0};
  KF_TRY(kf_tokenizer_decode(l->tokenizer, ids, (size_t)count, true, &text, e));
  json_t *o = json_pack("{s:o}", "text", json_stringn(text.data, text.bytes));
  char *line = o ? json_dumps(o, 0) : NULL;
  kf_status s = line ? kf_replace_add(&l->file, line, strlen(line), e) : kf_fail(e, KF_ERROR_MEMORY, "out of memory");
  if (s == KF_OK) s = kf_replace_add(&l->file, "\n", 1, e);
  l->tokens += count;
  free(line);
  json_decref(o);
  kf_text_free(&text);
  return s;
}

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

kf_status kf_sample_documents(kf_model *m, const kf_tokenizer *t, const char *path, const kf_sample_options *o,
                              kf_sample_result *out, kf_error *e) {
  int64_t context = m->config.context, bos = kf_tokenizer_adds_bos(t);
  int64_t length = o->length ? o->length : (context < DEFAULT_LENGTH ? context : DEFAULT_LENGTH);
  kf_self_options self = {.documents = o->documents, .length = length - bos, .hooks = &o->hooks};
  self.sampling = (kf_generate_options){
      .temperature = o->temperature > 0 ? o->temperature : 1, .top_p = o->top_p, .top_k = o->top_k, .seed = o->seed};
  lines l = {.tokenizer = t};
  double start = seconds();
  if (o->documents < 1) return kf_fail(e, KF_ERROR_USAGE, "no documents are asked for");
  if (length > context)
    return kf_fail(e, KF_ERROR_INPUT, "documents of %lld tokens are longer than the model's context of %lld", (long long)length,
                   (long long)context);
  KF_TRY(kf_replace_begin(path, &l.file, e));
  KF_TRY(kf_replace_end(&l.file, kf_self_samples(m, t, &self, write_line, &l, e), e));
  if (out) *out = (kf_sample_result){o->documents, l.tokens, seconds() - start};
  return KF_OK;
}
