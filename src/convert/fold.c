/* fold: the settings, and the session that maps layer after layer in the chosen variant. */
#include "convert/fold.h"

#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------------------------------------- settings */

static const char *const selections[] = {"auto", "fold", "greedy", NULL};
static const char *const tables[] = {"any", "stock", NULL};
static const char *const refits[] = {"none", "output", "all", NULL};

const kf_key kf_fold_keys[] = {
    [KF_FOLD_ROPE_PAIRS] = {"rope_pairs", KF_TAKES_INTEGER, NULL, 1, 65536, NULL},
    [KF_FOLD_SELECTION] = {"selection", KF_TAKES_CHOICE, selections, 0, 0, "auto"},
    [KF_FOLD_ROPE_TABLE] = {"rope_table", KF_TAKES_CHOICE, tables, 0, 0, "stock"},
    [KF_FOLD_REFIT] = {"refit", KF_TAKES_CHOICE, refits, 0, 0, "all"},
    [KF_FOLD_WINDOW_KEY] = {"window", KF_TAKES_INTEGER, NULL, 16, 1 << 20, "512"},
    [KF_FOLD_CONTEXT] = {"context", KF_TAKES_INTEGER, NULL, 16, 1 << 30, NULL},
    [KF_FOLD_KEY_WEIGHT] = {"key_weight", KF_TAKES_REAL, NULL, 1e-3, 1e3, NULL},
    {NULL, 0, NULL, 0, 0, NULL},
};

kf_status kf_fold_resolve(kf_plan *p, kf_error *e) {
  p->needs_text = true;
  KF_TRY(kf_plan_layers(p, "all", e));
  if (kf_plan_budget(p, 0) < 3)
    return kf_fail(e, KF_ERROR_INPUT, "a budget of %lld elements a token is too small", (long long)kf_plan_budget(p, 0));
  const kf_value *context = &p->value[KF_FOLD_CONTEXT];
  if (context->given && context->integer > p->source->context)
    return kf_fail(e, KF_ERROR_USAGE, "context=%lld: the source's context is of %lld tokens", (long long)context->integer,
                   (long long)p->source->context);
  const kf_value *pairs = &p->value[KF_FOLD_ROPE_PAIRS];
  if (pairs->given && pairs->integer > kf_fold_most_pairs(p))
    return kf_fail(e, KF_ERROR_USAGE, "rope_pairs=%lld: at most %d with rope_table=%s", (long long)pairs->integer,
                   kf_fold_most_pairs(p), tables[p->value[KF_FOLD_ROPE_TABLE].choice]);
  return KF_OK;
}

int kf_fold_most_pairs(const kf_plan *p) {
  return (p->value[KF_FOLD_ROPE_TABLE].choice == KF_FOLD_STOCK ? 1 : p->source->kv_heads) * p->source->head_dim / 2;
}

int kf_fold_pairs(const kf_fold *f, int layer, int pairs) {
  return kf_plan_rotates(f->p, layer) ? pairs : 0;
}

/* ---------------------------------------------------------------------------------------------- the store */

kf_status kf_fold_move_statistics(kf_fold *f, kf_attention_statistics *s, kf_error *e) {
  int64_t d = s->inputs, n = s->d_qk;
  struct {
    void *data;
    size_t bytes;
  } parts[] = {{&s->tokens, sizeof s->tokens},
               {&s->weight, sizeof s->weight},
               {s->distance, (size_t)(s->heads * s->window) * sizeof(double)},
               {s->query, (size_t)(s->heads * n * n) * sizeof(double)},
               {s->key_moment, (size_t)(d * d) * sizeof(double)},
               {s->value_moment, (size_t)(d * d) * sizeof(double)},
               {s->overlap, (size_t)(s->heads * s->heads) * sizeof(double)},
               {s->norms, (size_t)s->heads * 4 * sizeof(double)}};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) KF_TRY(kf_shared_move(&f->store, parts[i].data, parts[i].bytes, e));
  return KF_OK;
}

/* ---------------------------------------------------------------------------------------------- layers */

kf_status kf_fold_problem(const kf_fold *f, const kf_fold_source *source, const kf_attention_statistics *s, kf_rope_problem *out,
                          kf_error *e) {
  int64_t slides = source->a->window;
  return kf_rope_problem_create(s, source->zk, source->theta, slides && slides < f->context ? slides : f->context, out, e);
}

kf_status kf_fold_channels(const kf_fold *f, const kf_rope_problem *p, int layer, const kf_fold_candidate *c, kf_channels *out,
                           kf_error *e) {
  bool *slots = NULL;
  if (c->stride) KF_NEW(slots, p->pairs, e);
  for (int i = 0; slots && i < c->pairs; i++) slots[i * c->stride] = true;
  kf_status s = kf_channels_greedy(p, kf_fold_pairs(f, layer, c->pairs), slots, out, e);
  free(slots);
  if (s == KF_OK && !c->greedy) s = kf_channels_fit(p, out, e);
  return s;
}

static kf_status map_layer(kf_fold *f, int index, kf_mapped *out, kf_error *e) {
  const kf_fold_candidate *c = &f->candidate[f->best];
  kf_fold_source source = {0};
  kf_attention_statistics statistics = {0};
  kf_rope_problem problem = {0};
  kf_channels channels = {0};
  kf_layer teacher = {0};
  kf_status s;
  *out = (kf_mapped){0};
  KF_GO(kf_fold_source_read(f->weights, index, f->fit.window, &source, e));
  KF_GO(kf_attention_statistics_create(source.a, f->config->hidden, f->fit.window, &statistics, e));
  KF_GO(kf_fold_move_statistics(f, &statistics, e));
  KF_GO(kf_fold_source_settle(&source, &statistics, e));
  KF_GO(kf_fold_problem(f, &source, &statistics, &problem, e));
  KF_GO(kf_fold_channels(f, &problem, index, c, &channels, e));
  KF_GO(kf_fold_layer_map(&source, &statistics, &problem, &channels, f->elements, c->key_weight, out, e));
  KF_GO(kf_layer_load(f->weights, index, f->device, &teacher, e));
  KF_GO(kf_fold_refit(f, index, &source, &teacher, out, e));
done:
  kf_channels_free(&channels);
  kf_rope_problem_free(&problem);
  kf_attention_statistics_free(&statistics);
  kf_fold_source_free(&source);
  kf_layer_free(&teacher, f->device);
  if (s != KF_OK) kf_mapped_free(out);
  return s;
}

/* Layers that an earlier run finished are done again: the streams go through them. */
kf_status kf_fold_map(const kf_plan *p, void *session, int layer, kf_mapped *out, kf_error *e) {
  kf_fold *f = session;
  (void)p;
  for (*out = (kf_mapped){0}; f->next <= layer; f->next++) {
    kf_mapped_free(out);
    KF_TRY(map_layer(f, f->next, out, e));
  }
  return KF_OK;
}

/* ---------------------------------------------------------------------------------------------- beginning and end */

/* The windows that are fitted on, with those held out behind them, and what is held out again, in windows to choose by: equal
 * parts of it, as few as the context allows. */
static kf_status cut_text(kf_fold *f, const kf_corpus *corpus, kf_error *e) {
  int64_t context = f->config->context, window = f->p->value[KF_FOLD_WINDOW_KEY].integer;
  int32_t *ids = NULL;
  f->all.config = f->tune.config = f->config;
  f->all.window = context < window ? context : window;
  kf_status s = kf_corpus_windows(corpus, f->weights, f->all.window, 5, &ids, &f->all.x, &f->all.windows, e);
  f->fit = f->all;
  f->fit.windows = f->all.windows - f->all.windows / 5;
  if (s == KF_OK) s = kf_shared_open(f->p, "fold", ids, f->fit.windows * f->fit.window, f->fit.window, &f->store, e);
  free(ids);
  KF_TRY(s);
  int64_t bos = corpus->bos >= 0, fitted = f->fit.windows * (f->fit.window - bos),
          rest = (int64_t)corpus->ids.count - fitted + bos;
  kf_corpus held_out = {{corpus->ids.data + fitted, (size_t)(rest - bos)}, corpus->bos, corpus->name};
  f->tune.window = rest / ((rest + f->context - 1) / f->context);
  return kf_corpus_windows(&held_out, f->weights, f->tune.window, 1, &f->tune_ids, &f->tune.x, &f->tune.windows, e);
}

static kf_status begin(kf_fold *f, const kf_corpus *corpus, kf_error *e) {
  KF_TRY(cut_text(f, corpus, e));
  KF_TRY(kf_fold_list_candidates(f, e));
  KF_TRY(kf_device_open_cpu(f->p->o->compute, f->p->o->threads, &f->device, e));
  f->threads = f->device->threads;
  KF_TRY(kf_run_create(f->device, f->config, &f->run, e));
  int64_t count = f->all.windows * f->all.window * f->config->hidden;
  KF_NEW(f->start, count, e);
  memcpy(f->start, f->all.x, (size_t)count * sizeof *f->start);
  KF_TRY(kf_student_create(f->config, f->elements, &f->tune, &f->student, e));
  f->student.stream.config = &f->student.config;
  KF_TRY(kf_fold_choose(f, e));
  if (f->refit == KF_FOLD_REFIT_NONE) return KF_OK;
  memcpy(f->all.x, f->start, (size_t)count * sizeof *f->start); /* the source starts again, the converted model beside it */
  f->converted = f->all;
  f->converted.x = f->start;
  f->converted.config = &f->student.config;
  f->start = NULL;
  return KF_OK;
}

kf_status kf_fold_open(const kf_plan *p, const kf_corpus *corpus, void **session, kf_error *e) {
  kf_fold *f;
  KF_NEW(f, 1, e);
  f->p = p;
  f->config = p->source;
  f->weights = p->weights;
  f->elements = kf_plan_budget(p, 0);
  f->context = p->value[KF_FOLD_CONTEXT].given ? p->value[KF_FOLD_CONTEXT].integer : f->config->context;
  f->stock = p->value[KF_FOLD_ROPE_TABLE].choice == KF_FOLD_STOCK;
  f->refit = p->value[KF_FOLD_REFIT].choice;
  kf_status s = begin(f, corpus, e);
  if (s != KF_OK)
    kf_fold_close(f);
  else
    *session = f;
  return s;
}

void kf_fold_close(void *session) {
  kf_fold *f = session;
  if (!f) return;
  for (int i = 0; i < KF_FOLD_CANDIDATES; i++) kf_student_free(&f->candidate[i].student);
  kf_student_free(&f->student);
  kf_shared_close(&f->store);
  free(f->tune_ids);
  free(f->tune.x);
  free(f->all.x);
  free(f->start);
  free(f->converted.x);
  kf_run_free(f->run);
  kf_device_close(f->device);
  free(f);
}

kf_status kf_fold_record(void *session, json_t **out, kf_error *e) {
  kf_fold *f = session;
  kf_mapped last;
  KF_TRY(kf_fold_map(f->p, f, f->config->layers - 1, &last, e)); /* where an earlier run had finished them */
  kf_mapped_free(&last);
  kf_nearness outcome;
  KF_TRY(kf_fold_judge(f, &f->student.stream.x, 1, &outcome, e));
  const kf_fold_candidate *c = &f->candidate[f->best];
  json_t *tried = json_array();
  for (int i = 0; i < f->candidates && f->candidates > 1; i++)
    json_array_append_new(tried, json_pack("{s:s,s:i,s:i,s:f,s:f}", "selection", f->candidate[i].greedy ? "greedy" : "fold",
                                           "rope_pairs", f->candidate[i].pairs, "rope_stride", f->candidate[i].stride,
                                           "key_weight", f->candidate[i].key_weight, "kl", f->candidate[i].nearness.kl));
  *out = json_pack("{s:s,s:i,s:i,s:f,s:i,s:o,s:{s:I,s:f,s:f}}", "selection", c->greedy ? "greedy" : "fold", "rope_pairs",
                   c->pairs, "rope_stride", c->stride, "key_weight", c->key_weight, "layers_with_refitted_queries", f->refitted,
                   "tried", tried, "held_out", "tokens", (json_int_t)(f->tune.windows * f->tune.window), "kl", outcome.kl,
                   "perplexity_ratio", outcome.perplexity_ratio);
  return *out ? KF_OK : kf_fail(e, KF_ERROR_MEMORY, "out of memory");
}
