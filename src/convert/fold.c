/* fold: statistics, choice of variant on held-out calibration text, and conversion layer by layer (docs/METHODS.md). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "convert/fold_stream.h"
#include "linalg/linalg.h"

enum { CANDIDATES = 12 };
static const double ridges[] = {1e-3, 1e-2, 1e-1, 1}; /* of the output projection's refit, of the mean of the diagonal */

typedef struct candidate {
  bool greedy;
  int pairs;
  double kl;
  kf_student student;
} candidate;

typedef struct kf_fold {
  const kf_plan *p;
  const kf_config *config;
  const kf_weights *weights;
  const kf_convert_options *o;
  kf_device *device;
  kf_run *run;
  int threads;
  int64_t elements; /* numbers a token and layer */
  bool refit;
  kf_stream all, fit, tune; /* the source's hidden states: all windows, the first of which are fitted on, the last chosen by */
  float *start;             /* embeddings of all windows */
  candidate candidate[CANDIDATES];
  int candidates, best;
  FILE *store; /* statistics, layer by layer */
  char scratch[KF_PATH];
  int next;           /* layer whose statistics the store gives next */
  kf_student student; /* of the chosen variant, over the calibration windows */
} kf_fold;

/* ---------------------------------------------------------------------------------------------- statistics of a layer */

typedef struct collector {
  kf_attention_statistics *statistics;
  const kf_attention_probe *probe;
  int threads;
  kf_status status;
  kf_error *e;
} collector;

static void seen(void *user, int layer, int64_t m, const float *input, const float *q, int64_t q_stride, const float *k,
                 int64_t k_stride) {
  collector *c = user;
  const kf_attention_statistics *s = c->statistics;
  (void)layer, (void)k_stride;
  if (c->status == KF_OK)
    c->status = kf_attention_statistics_add(c->statistics, c->probe, m, input, q, k, k + (int64_t)s->kv_heads * s->d_qk, q_stride,
                                            c->threads, c->e);
}

/* Runs the calibration windows through the source's layer. */
static kf_status collect(kf_fold *f, const kf_fold_source *source, const kf_layer *layer, int index, kf_attention_statistics *out,
                         kf_error *e) {
  kf_attention_probe probe;
  KF_TRY(kf_attention_statistics_create(source->a, f->config->hidden, f->fit.window, out, e));
  KF_TRY(kf_attention_probe_create(source->a, f->config->hidden, f->fit.window, source->o, &probe, e));
  collector c = {out, &probe, f->threads, KF_OK, e};
  kf_status s = kf_stream_forward(f->device, f->run, layer, index, &f->fit, &(kf_watch){.seen = seen, .user = &c}, e);
  kf_attention_probe_free(&probe);
  if (s == KF_OK) s = c.status;
  if (s == KF_OK && !(out->weight > 0 && isfinite(out->weight)))
    s = kf_fail(e, KF_ERROR_INPUT, "layer %d: its attention gives no finite statistics", index);
  return s;
}

static kf_status move_statistics(kf_fold *f, kf_attention_statistics *s, bool write, kf_error *e) {
  int64_t d = s->hidden, n = s->d_qk;
  struct {
    void *data;
    size_t bytes;
  } parts[] = {{&s->tokens, sizeof s->tokens},
               {&s->weight, sizeof s->weight},
               {s->distance, (size_t)(s->heads * s->window) * sizeof(double)},
               {s->query, (size_t)(s->heads * n * n) * sizeof(double)},
               {s->key_moment, (size_t)(d * d) * sizeof(double)},
               {s->value_moment, (size_t)(d * d) * sizeof(double)},
               {s->overlap, (size_t)(s->heads * s->heads) * sizeof(double)}};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
    if ((write ? fwrite(parts[i].data, 1, parts[i].bytes, f->store) : fread(parts[i].data, 1, parts[i].bytes, f->store)) !=
        parts[i].bytes)
      return kf_fail_errno(e, "%s: cannot %s the statistics", f->scratch, write ? "write" : "read");
  return KF_OK;
}

/* ---------------------------------------------------------------------------------------------- one layer in one variant */

static kf_status make_channels(const kf_rope_problem *p, const kf_channels *fold, bool greedy, int pairs, kf_channels *out,
                               kf_error *e) {
  return greedy ? kf_channels_greedy(p, pairs, out, e) : kf_channels_prefix(p, fold, pairs, out, e);
}

static int pairs_at(const kf_fold *f, int layer, int pairs) {
  return kf_plan_rotates(f->p, layer) ? pairs : 0;
}

/* The candidate's layer, run over its stream of tuning windows. */
static kf_status try_candidate(kf_fold *f, candidate *c, int index, const kf_fold_source *source,
                               const kf_attention_statistics *s, const kf_rope_problem *p, const kf_channels *fold,
                               const kf_layer *teacher, kf_error *e) {
  kf_channels channels;
  kf_mapped *mapped = &c->student.mapped[index];
  kf_layer layer;
  KF_TRY(make_channels(p, fold, c->greedy, pairs_at(f, index, c->pairs), &channels, e));
  kf_status status = kf_fold_layer_map(source, s, p, &channels, f->elements, mapped, e);
  kf_channels_free(&channels);
  KF_TRY(status);
  c->student.layer[index].attention = mapped->attention;
  status = kf_layer_mapped(f->device, teacher, &c->student.layer[index], mapped, &layer, e);
  kf_mapped_drop(mapped);
  KF_TRY(status);
  c->student.stream.config = &c->student.config;
  status = kf_stream_forward(f->device, f->run, &layer, index, &c->student.stream, NULL, e);
  kf_layer_mapped_free(&layer, teacher, f->device);
  return status;
}

static int most_pairs(const kf_fold *f) {
  int most = 0;
  for (int i = 0; i < f->candidates; i++)
    if (!f->candidate[i].greedy && f->candidate[i].pairs > most) most = f->candidate[i].pairs;
  return most;
}

static kf_status try_layer(kf_fold *f, int index, kf_error *e) {
  kf_layer teacher;
  kf_fold_source source;
  kf_attention_statistics statistics = {0};
  kf_rope_problem problem = {0};
  kf_channels fold = {0};
  kf_status s;
  KF_TRY(kf_layer_load(f->weights, index, f->device, &teacher, e));
  KF_GO(kf_fold_source_read(f->weights, index, f->fit.window, &source, e));
  KF_GO(collect(f, &source, &teacher, index, &statistics, e));
  KF_GO(move_statistics(f, &statistics, true, e));
  if (f->candidates > 1) {
    KF_GO(kf_stream_forward(f->device, f->run, &teacher, index, &f->tune, NULL, e));
    KF_GO(kf_rope_problem_create(&statistics, source.zk, source.theta, &problem, e));
    if (most_pairs(f)) KF_GO(kf_channels_fold(&problem, pairs_at(f, index, most_pairs(f)), NULL, f->threads, &fold, e));
    for (int i = 0; i < f->candidates; i++)
      KF_GO(try_candidate(f, &f->candidate[i], index, &source, &statistics, &problem, &fold, &teacher, e));
  }
done:
  kf_channels_free(&fold);
  kf_rope_problem_free(&problem);
  kf_attention_statistics_free(&statistics);
  kf_fold_source_free(&source);
  kf_layer_free(&teacher, f->device);
  return s;
}

/* ---------------------------------------------------------------------------------------------- the choice */

typedef struct head {
  float *norm, *rows, *reference, *logits;
  double *kl, *difference;
  kf_weight *weight;
} head;

enum { ROWS = 128 };

static kf_status head_create(kf_fold *f, head *h, kf_error *e) {
  const kf_config *c = f->config;
  KF_TRY(kf_head_load(f->weights, f->device, &h->norm, &h->weight, e));
  KF_NEW(h->rows, ROWS * c->hidden, e);
  KF_NEW(h->reference, (size_t)ROWS * (size_t)c->vocabulary, e);
  KF_NEW(h->logits, (size_t)ROWS * (size_t)c->vocabulary, e);
  KF_NEW(h->kl, ROWS, e);
  KF_NEW(h->difference, ROWS, e);
  return KF_OK;
}

static void head_free(kf_fold *f, head *h) {
  if (h->norm) f->device->release(f->device, h->norm);
  void *own[] = {h->rows, h->reference, h->logits, h->kl, h->difference};
  for (size_t i = 0; i < sizeof own / sizeof *own; i++) free(own[i]);
  if (h->weight) f->device->weight_free(f->device, h->weight);
}

static void project(kf_fold *f, const head *h, const float *x, int64_t rows, float *logits) {
  kf_device *d = f->device;
  d->rmsnorm(d, h->rows, x, h->norm, rows, f->config->hidden, f->config->eps);
  d->linear(d, logits, h->rows, h->weight, rows, false);
}

static kf_status judge(kf_fold *f, kf_error *e) {
  int64_t total = f->tune.windows * f->tune.window;
  head h = {0};
  kf_status s = head_create(f, &h, e);
  for (int64_t at = 0; at < total && s == KF_OK; at += ROWS) {
    int64_t rows = total - at < ROWS ? total - at : ROWS;
    project(f, &h, f->tune.x + at * f->config->hidden, rows, h.reference);
    for (int i = 0; i < f->candidates; i++) {
      project(f, &h, f->candidate[i].student.stream.x + at * f->config->hidden, rows, h.logits);
      f->device->divergence(f->device, h.reference, h.logits, rows, f->config->vocabulary, h.kl, h.difference);
      for (int64_t r = 0; r < rows; r++) f->candidate[i].kl += h.kl[r] / (double)total;
    }
    s = kf_device_check(f->device, e);
  }
  head_free(f, &h);
  KF_TRY(s);
  for (int i = 0; i < f->candidates; i++) {
    if (f->candidate[i].kl < f->candidate[f->best].kl) f->best = i;
    kf_note(&f->o->hooks, "%s selection, %d pairs: KL %.4f on held-out calibration text",
            f->candidate[i].greedy ? "greedy" : "fold", f->candidate[i].pairs, f->candidate[i].kl);
  }
  return KF_OK;
}

static const char *const selections[] = {"auto", "fold", "greedy", NULL};
static const char *const refits[] = {"none", "output", NULL};

const kf_key kf_fold_keys[] = {
    [KF_FOLD_ROPE_PAIRS] = {"rope_pairs", KF_TAKES_INTEGER, NULL, 1, 65536, NULL},
    [KF_FOLD_SELECTION] = {"selection", KF_TAKES_CHOICE, selections, 0, 0, "auto"},
    [KF_FOLD_REFIT] = {"refit", KF_TAKES_CHOICE, refits, 0, 0, "output"},
    {NULL, 0, NULL, 0, 0, NULL},
};

kf_status kf_fold_resolve(kf_plan *p, kf_error *e) {
  if (!p->has_calibration) return kf_fail(e, KF_ERROR_USAGE, "fold looks at calibration text: give --calibration FILE");
  p->needs_text = true;
  KF_TRY(kf_plan_layers(p, "all", e));
  for (int i = 0; i < p->source->layers; i++) {
    const kf_attention_config *a = &p->source->layer[i].attention;
    if (a->qk_norm)
      return kf_fail(e, KF_ERROR_INPUT, "layer %d has q/k norms, which fold cannot carry; mha2mla and x-ecomla can", i);
    if (a->q_bias || a->k_bias || a->v_bias)
      return kf_fail(e, KF_ERROR_INPUT, "layer %d has biases, which fold cannot carry; mha2mla and x-ecomla can", i);
  }
  if (kf_plan_budget(p, 0) < 3)
    return kf_fail(e, KF_ERROR_INPUT, "a budget of %lld elements a token is too small", (long long)kf_plan_budget(p, 0));
  return KF_OK;
}

/* rope_pairs and selection as given, else pairs around a sixth to a tenth of the budget in both selections. */
static void list_candidates(kf_fold *f) {
  static const double parts[] = {1.0 / 24, 1.0 / 12, 1.0 / 8};
  const kf_value *pairs = &f->p->value[KF_FOLD_ROPE_PAIRS], *selection = &f->p->value[KF_FOLD_SELECTION];
  for (int kind = 0; kind < 2; kind++) {
    if (selection->choice != KF_FOLD_AUTO && (selection->choice == KF_FOLD_GREEDY) != (kind == 1)) continue;
    int last = 0;
    for (int i = 0; i < 3; i++) {
      int J = pairs->given && pairs->choice < 0 ? (int)pairs->integer : (int)lround(parts[i] * (double)f->elements);
      int most = f->config->kv_heads * f->config->head_dim / 2;
      J = J < 1 ? 1 : J > most ? most : J;
      if (J == last || 2 * J >= f->elements) continue;
      f->candidate[f->candidates++] = (candidate){.greedy = kind == 1, .pairs = last = J};
    }
  }
}

static kf_status choose(kf_fold *f, kf_error *e) {
  list_candidates(f);
  if (!f->candidates)
    return kf_fail(e, KF_ERROR_INPUT, "a budget of %lld elements leaves no room for rotated pairs and latents",
                   (long long)f->elements);
  for (int i = 0; i < f->candidates && f->candidates > 1; i++)
    KF_TRY(kf_student_create(f->config, f->elements, &f->tune, &f->candidate[i].student, e));
  for (int i = 0; i < f->config->layers; i++) {
    KF_TRY(kf_progress(&f->o->hooks, "calibrating", i, f->config->layers, e));
    KF_TRY(try_layer(f, i, e));
  }
  if (f->candidates > 1) KF_TRY(judge(f, e));
  for (int i = 0; i < f->candidates; i++) kf_student_free(&f->candidate[i].student);
  return KF_OK;
}

/* ---------------------------------------------------------------------------------------------- the chosen variant */

typedef struct target {
  float *x;
  int64_t hidden;
} target; /* [window, hidden] the residual before the attention joins, then its outputs */

static void keep_window(void *user, int layer, int64_t m, const float *x, const float *out) {
  (void)layer;
  target *t = user;
  memcpy(t[0].x, x, (size_t)(m * t[0].hidden) * sizeof *x);
  memcpy(t[1].x, out, (size_t)(m * t[1].hidden) * sizeof *out);
}

typedef struct normal {
  int64_t wide, d;      /* heads x d_v, hidden */
  double *gram, *cross; /* [wide, wide] Phi^T Phi; [wide, d] Phi^T (Y - Phi W_o^T) */
} normal;

/* Adds one window. o: [d, wide]; memory: f32 work space. */
static void add_normal(normal *n, int64_t m, const float *o, const target *teacher, const target *student, float *target_rows,
                       float *own, float *gram, float *cross) {
  kf_gemm_f32(false, true, m, n->d, n->wide, teacher[1].x, o, target_rows);
  kf_gemm_f32(false, true, m, n->d, n->wide, student[1].x, o, own);
  for (int64_t i = 0; i < m * n->d; i++) target_rows[i] += teacher[0].x[i] - student[0].x[i] - own[i];
  kf_gemm_f32(true, false, n->wide, n->wide, m, student[1].x, student[1].x, gram);
  kf_gemm_f32(true, false, n->wide, n->d, m, student[1].x, target_rows, cross);
  for (int64_t i = 0; i < n->wide * n->wide; i++) n->gram[i] += gram[i];
  for (int64_t i = 0; i < n->wide * n->d; i++) n->cross[i] += cross[i];
}

/* Squared error that a change D^T [d, wide] of the projection adds to that of n's windows: tr D^T (G D - 2 C). */
static double added_error(const normal *n, const double *change, double *through) {
  double sum = 0;
  kf_gemm(false, false, n->wide, n->d, n->wide, 1, n->gram, change, 0, through);
  for (int64_t i = 0; i < n->wide * n->d; i++) sum += change[i] * (through[i] - 2 * n->cross[i]);
  return sum;
}

/* The change that the windows fitted on ask for, at the ridge that serves the held-out windows best; zero when none does. */
static kf_status solve_refit(const normal *fit, const normal *held, double *best, kf_arena *arena, kf_error *e) {
  int64_t wide = fit->wide, d = fit->d;
  double *gram = kf_arena_alloc(arena, (size_t)(wide * wide), sizeof *gram, e),
         *change = kf_arena_alloc(arena, (size_t)(wide * d), sizeof *change, e);
  double *through = kf_arena_alloc(arena, (size_t)(wide * d), sizeof *through, e), trace = 0, least = 0;
  if (!gram || !change || !through) return KF_ERROR_MEMORY;
  for (int64_t i = 0; i < wide; i++) trace += fit->gram[i * wide + i];
  for (size_t r = 0; r < sizeof ridges / sizeof *ridges; r++) {
    memcpy(gram, fit->gram, (size_t)(wide * wide) * sizeof *gram);
    memcpy(change, fit->cross, (size_t)(wide * d) * sizeof *change);
    for (int64_t i = 0; i < wide; i++) gram[i * wide + i] += ridges[r] * trace / (double)wide;
    KF_TRY(kf_solve_positive(gram, wide, d, change, e));
    double error = added_error(held, change, through);
    if (!(error < least)) continue;
    least = error;
    memcpy(best, change, (size_t)(wide * d) * sizeof *best);
  }
  return KF_OK;
}

/* W_o' = W_o + (Y - Phi W_o^T)^T Phi (Phi^T Phi + ridge)^-1: the student's attention makes up for the drift of its stream too. */
static kf_status refit_output(kf_fold *f, int index, const kf_fold_source *source, const kf_layer *teacher, const kf_layer *layer,
                              kf_mapped *out, kf_error *e) {
  int64_t d = f->config->hidden, wide = (int64_t)source->a->heads * source->a->d_v, m = f->all.window;
  normal n[2] = {{.wide = wide, .d = d}, {.wide = wide, .d = d}}; /* fitted on, held out */
  kf_arena arena = {0};
  kf_status s = KF_OK;
  float *memory = kf_arena_alloc(&arena, (size_t)(m * (5 * d + 2 * wide) + wide * (wide + d)), sizeof *memory, e);
  double *change = kf_arena_alloc(&arena, (size_t)(wide * d), sizeof *change, e);
  for (int i = 0; i < 2; i++) {
    n[i].gram = kf_arena_alloc(&arena, (size_t)(wide * wide), sizeof(double), e);
    n[i].cross = kf_arena_alloc(&arena, (size_t)(wide * d), sizeof(double), e);
    if (!n[i].gram || !n[i].cross || !memory || !change) s = KF_ERROR_MEMORY;
  }
  if (s != KF_OK) goto done;
  target theirs[2] = {{memory, d}, {memory + m * d, wide}},
         ours[2] = {{memory + m * (d + wide), d}, {memory + m * (2 * d + wide), wide}};
  float *rows = memory + 2 * m * (d + wide), *own = rows + m * d, *keep = own + m * d, *gram = keep + m * d,
        *cross = gram + wide * wide;
  for (int w = 0; w < f->all.windows; w++) {
    kf_stream one = f->all, mine = f->student.stream;
    one.windows = mine.windows = 1;
    one.x = f->all.x + w * m * d;
    mine.x = keep;
    memcpy(keep, f->student.stream.x + w * m * d, (size_t)(m * d) * sizeof *keep);
    KF_GO(kf_stream_forward(f->device, f->run, teacher, index, &one, &(kf_watch){.attended = keep_window, .user = theirs}, e));
    KF_GO(kf_stream_forward(f->device, f->run, layer, index, &mine, &(kf_watch){.attended = keep_window, .user = ours}, e));
    add_normal(&n[w >= f->fit.windows], m, source->o, theirs, ours, rows, own, gram, cross);
  }
  KF_GO(solve_refit(&n[0], &n[1], change, &arena, e));
  float *o = kf_mapped_add(out, "o_proj.weight", d, wide, e);
  if (!o) KF_GO(KF_ERROR_MEMORY);
  for (int64_t i = 0; i < d; i++)
    for (int64_t j = 0; j < wide; j++) o[i * wide + j] = (float)(source->o[i * wide + j] + change[j * d + i]);
done:
  kf_arena_free(&arena);
  return s;
}

/* The refit, and both streams through the layer. */
static kf_status refit(kf_fold *f, int index, const kf_fold_source *source, const kf_layer *teacher, kf_mapped *out,
                       kf_error *e) {
  const kf_layer_config *config = &f->student.layer[index];
  kf_layer layer;
  f->student.layer[index].attention = out->attention;
  kf_status s = kf_layer_mapped(f->device, teacher, config, out, &layer, e);
  if (s == KF_OK) {
    s = refit_output(f, index, source, teacher, &layer, out, e);
    kf_layer_mapped_free(&layer, teacher, f->device);
  }
  if (s == KF_OK) s = kf_layer_mapped(f->device, teacher, config, out, &layer, e);
  if (s == KF_OK) {
    s = kf_stream_forward(f->device, f->run, &layer, index, &f->student.stream, NULL, e);
    kf_layer_mapped_free(&layer, teacher, f->device);
  }
  kf_student_forget(&f->student, index, f->elements); /* the lists of `out` are the caller's */
  return s;
}

static kf_status map_layer(kf_fold *f, int index, kf_mapped *out, kf_error *e) {
  const candidate *c = &f->candidate[f->best];
  kf_fold_source source = {0};
  kf_attention_statistics statistics = {0};
  kf_rope_problem problem = {0};
  kf_channels fold = {0}, channels = {0};
  kf_layer teacher = {0};
  int pairs = pairs_at(f, index, c->pairs);
  kf_status s;
  *out = (kf_mapped){0};
  KF_GO(kf_fold_source_read(f->weights, index, f->fit.window, &source, e));
  KF_GO(kf_attention_statistics_create(source.a, f->config->hidden, f->fit.window, &statistics, e));
  KF_GO(move_statistics(f, &statistics, false, e));
  KF_GO(kf_rope_problem_create(&statistics, source.zk, source.theta, &problem, e));
  if (!c->greedy) KF_GO(kf_channels_fold(&problem, pairs, NULL, f->threads, &fold, e));
  KF_GO(make_channels(&problem, &fold, c->greedy, pairs, &channels, e));
  KF_GO(kf_fold_layer_map(&source, &statistics, &problem, &channels, f->elements, out, e));
  if (f->refit) {
    KF_GO(kf_layer_load(f->weights, index, f->device, &teacher, e));
    KF_GO(refit(f, index, &source, &teacher, out, e));
  }
done:
  kf_channels_free(&channels);
  kf_channels_free(&fold);
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

static kf_status begin(kf_fold *f, const kf_corpus *corpus, kf_error *e) {
  int64_t hidden = f->config->hidden;
  KF_TRY(kf_device_open_cpu(f->o->compute, f->o->threads, &f->device, e));
  f->threads = f->device->threads;
  KF_TRY(kf_run_create(f->device, f->config, &f->run, e));
  f->all.config = f->config;
  f->all.window = f->config->context < KF_FOLD_WINDOW ? f->config->context : KF_FOLD_WINDOW;
  KF_TRY(kf_corpus_windows(corpus, f->weights, f->all.window, &f->all.x, &f->all.windows, e));
  size_t bytes = (size_t)(f->all.windows * f->all.window * hidden) * sizeof *f->all.x;
  KF_NEW(f->start, bytes / sizeof *f->start, e);
  memcpy(f->start, f->all.x, bytes);
  f->fit = f->tune = f->all; /* one memory: the windows held out are the last */
  f->tune.windows = f->all.windows / 5;
  f->fit.windows = f->all.windows - f->tune.windows;
  f->tune.x += f->fit.windows * f->fit.window * hidden;
  if (!(f->store = fopen(f->scratch, "w+b"))) return kf_fail_errno(e, "%s: cannot be written", f->scratch);
  KF_TRY(choose(f, e));
  rewind(f->store);
  memcpy(f->all.x, f->start, bytes); /* both streams start again for the refits */
  return f->refit ? kf_student_create(f->config, f->elements, &f->all, &f->student, e) : KF_OK;
}

kf_status kf_fold_open(const kf_plan *p, const kf_corpus *corpus, const char *scratch, void **session, kf_error *e) {
  kf_fold *f;
  KF_NEW(f, 1, e);
  f->p = p;
  f->config = p->source;
  f->weights = p->weights;
  f->o = p->o;
  f->elements = kf_plan_budget(p, 0);
  f->refit = p->value[KF_FOLD_REFIT].choice == 1;
  snprintf(f->scratch, sizeof f->scratch, "%s", scratch);
  kf_status s = begin(f, corpus, e);
  if (s == KF_OK) f->student.stream.config = &f->student.config;
  if (s != KF_OK)
    kf_fold_close(f);
  else
    *session = f;
  return s;
}

void kf_fold_close(void *session) {
  kf_fold *f = session;
  if (!f) return;
  for (int i = 0; i < f->candidates; i++) kf_student_free(&f->candidate[i].student);
  kf_student_free(&f->student);
  if (f->store) fclose(f->store);
  unlink(f->scratch);
  free(f->all.x);
  free(f->start);
  kf_run_free(f->run);
  kf_device_close(f->device);
  free(f);
}

json_t *kf_fold_record(const void *session) {
  const kf_fold *f = session;
  json_t *tried = json_array();
  for (int i = 0; i < f->candidates; i++)
    json_array_append_new(tried, json_pack("{s:s,s:i,s:f}", "selection", f->candidate[i].greedy ? "greedy" : "fold", "rope_pairs",
                                           f->candidate[i].pairs, "kl", f->candidate[i].kl));
  const candidate *c = &f->candidate[f->best];
  return json_pack("{s:s,s:i,s:o}", "selection", c->greedy ? "greedy" : "fold", "rope_pairs", c->pairs, "tried", tried);
}
