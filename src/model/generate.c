/* Generation. */
#include <stdlib.h>
#include <time.h>

#include "base/random.h"
#include "model/sampling.h"

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct output {
  const kf_generate_options *o;
  kf_buffer text;
} output;

static kf_status emit(output *out, kf_text *piece, kf_error *e) {
  kf_status s = kf_buffer_add(&out->text, piece->data, piece->bytes, e);
  if (s == KF_OK && piece->bytes && out->o->on_text) out->o->on_text(out->o->user, piece->data, piece->bytes);
  kf_text_free(piece);
  return s;
}

typedef struct generator {
  kf_batch *batch;
  int sequence;
  const kf_config *config;
  const kf_tokenizer *tokenizer;
  kf_decoder *decoder;
  float *logits;
  kf_candidate *list;
  kf_random random;
  output out;
} generator;

static kf_status feed(generator *g, const int32_t *ids, size_t count, kf_error *e) {
  return kf_batch_step(g->batch, &(kf_feed){g->sequence, ids, count}, 1, g->logits, e);
}

static kf_status decode_loop(generator *g, const kf_generate_options *o, size_t limit, kf_generation *out, kf_error *e) {
  double started = seconds();
  size_t steps = 0;
  while (out->ids.count < limit) {
    int32_t id = kf_sample_token(g->logits, g->config->vocabulary, o, kf_random_uniform(&g->random), g->list);
    if (kf_token_ends(g->config, g->tokenizer, id)) break;
    out->ids.data[out->ids.count++] = id;
    kf_text piece = {0};
    KF_TRY(kf_decoder_push(g->decoder, id, &piece, e));
    KF_TRY(emit(&g->out, &piece, e));
    if (out->ids.count == limit) break;
    KF_TRY(feed(g, &id, 1, e));
    steps++;
  }
  double took = seconds() - started;
  out->decode_tokens_per_second = took > 0 ? (double)steps / took : 0;
  kf_text piece = {0};
  KF_TRY(kf_decoder_finish(g->decoder, &piece, e));
  return emit(&g->out, &piece, e);
}

/* Brings the decoder to where the prompt ends. */
static kf_status read_prompt(generator *g, const int32_t *prompt, size_t count, kf_error *e) {
  for (size_t i = 0; i < count; i++) {
    kf_text piece;
    KF_TRY(kf_decoder_push(g->decoder, prompt[i], &piece, e));
    kf_text_free(&piece);
  }
  return KF_OK;
}

static kf_status run(generator *g, const int32_t *prompt, size_t count, const kf_generate_options *o, kf_generation *out,
                     kf_error *e) {
  int64_t room = g->config->context - kf_batch_tokens(g->batch, g->sequence) - (int64_t)count;
  size_t limit = (size_t)(o->max_new_tokens > 0 ? o->max_new_tokens : room);
  if (o->max_new_tokens <= 0 && room <= 0)
    return kf_fail(e, KF_ERROR_INPUT, "the model's context of %lld tokens has no room after %lld tokens",
                   (long long)g->config->context, (long long)(g->config->context - room));
  KF_TRY(kf_decoder_create(g->tokenizer, o->skip_special, &g->decoder, e));
  if (o->continues) KF_TRY(read_prompt(g, prompt, count, e));
  KF_NEW(g->logits, g->config->vocabulary, e);
  KF_NEW(g->list, g->config->vocabulary, e);
  KF_NEW(out->ids.data, limit + 1, e);
  kf_random_seed(&g->random, o->seed);
  double started = seconds();
  KF_TRY(feed(g, prompt, count, e));
  out->prefill_tokens_per_second = (double)count / (seconds() - started);
  KF_TRY(decode_loop(g, o, limit, out, e));
  out->cache_bytes = kf_batch_cache_bytes(g->batch);
  return KF_OK;
}

kf_status kf_batch_generate(kf_batch *b, int sequence, const kf_tokenizer *t, const int32_t *prompt, size_t count,
                            const kf_generate_options *o, kf_generation *out, kf_error *e) {
  *out = (kf_generation){0};
  if (!count) return kf_fail(e, KF_ERROR_INPUT, "the prompt has no tokens");
  generator g = {.batch = b, .sequence = sequence, .config = &kf_batch_model(b)->config, .tokenizer = t, .out.o = o};
  kf_status s = run(&g, prompt, count, o, out, e);
  kf_decoder_free(g.decoder);
  free(g.logits);
  free(g.list);
  if (s == KF_OK && !g.out.text.data) s = kf_buffer_add(&g.out.text, "", 0, e);
  out->text = (kf_text){g.out.text.data, g.out.text.bytes};
  if (s != KF_OK) kf_generation_free(out);
  return s;
}

kf_status kf_generate(kf_model *m, const kf_tokenizer *t, const int32_t *prompt, size_t count, const kf_generate_options *o,
                      kf_generation *out, kf_error *e) {
  kf_batch *b;
  *out = (kf_generation){0};
  KF_TRY(kf_batch_create(m, 1, &b, e));
  kf_status s = kf_batch_generate(b, 0, t, prompt, count, o, out, e);
  kf_batch_free(b);
  return s;
}

void kf_generation_free(kf_generation *g) {
  kf_text_free(&g->text);
  kf_ids_free(&g->ids);
}
