/* Perplexity of a model over windows of a text, and its divergence from a reference. Protocol: docs/CLI.md. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "eval/evaluate.h"

enum {
  BATCH_TOKENS = 2048,    /* windows are run together up to this many tokens */
  LOGIT_BYTES = 48 << 20, /* logits in memory at a time, one model */
  DEFAULT_WINDOW = 2048,
};

/* How the text is cut. Row r of a window predicts input r + 1, so that the rows that count are `rows` of them from
 * `first_row` on; the first window of a text counts all it can. */
typedef struct plan {
  int64_t window, stride, windows;
  int bos; /* 1: BOS stands in front of every window */
  int32_t bos_id;
  int64_t length; /* tokens that one window feeds */
  int batch;      /* windows run together */
} plan;

static void counted_rows(const plan *p, int64_t window, int64_t *first, int64_t *rows) {
  int64_t token = window > 0 ? p->window - p->stride : 0; /* first token of the window that counts */
  if (token == 0 && !p->bos) token = 1;
  *first = token - 1 + p->bos;
  *rows = p->window - token;
}

/* One of the two models with its work space. */
typedef struct side {
  kf_model *model;
  kf_sequence **sequence; /* [batch] */
  kf_span *span;          /* [batch] */
  float *x;               /* [batch x length, hidden] */
  float *logits;          /* [chunk, vocabulary] */
  double *nll;            /* [chunk] */
  int32_t *best;          /* [chunk] */
} side;

typedef struct evaluation {
  plan plan;
  side model, reference; /* reference.model NULL: none */
  const kf_ids *text;
  int32_t *input;                        /* [batch x length] */
  int32_t *target;                       /* [batch x window] of the rows that count */
  int64_t *position;                     /* [batch x window] of those tokens in their windows */
  kf_positions *model_at, *reference_at; /* or NULL */
  kf_kept *kept;                         /* or NULL */
  int64_t chunk;                         /* rows of logits at a time */
  double *kl, *difference;               /* [chunk] */
  double sum_nll, sum_reference, sum_kl, largest;
  int64_t tokens, agreed;
} evaluation;

static void side_close(side *s, int batch) {
  for (int i = 0; s->sequence && i < batch; i++) kf_sequence_free(s->sequence[i]);
  free(s->sequence);
  free(s->span);
  void *numbers[] = {s->x, s->logits, s->nll, s->best};
  for (int i = 0; s->model && i < 4; i++) s->model->device->release(s->model->device, numbers[i]);
}

static kf_status side_open(side *s, kf_model *m, const plan *p, int64_t chunk, kf_error *e) {
  kf_device *d = m->device;
  s->model = m;
  KF_NEW(s->sequence, p->batch, e);
  for (int i = 0; i < p->batch; i++) KF_TRY(kf_sequence_create(&m->config, d, &s->sequence[i], e));
  KF_NEW(s->span, p->batch, e);
  KF_DEVICE_NEW(d, s->x, p->batch * p->length * m->config.hidden, e);
  KF_DEVICE_NEW(d, s->logits, chunk * m->config.vocabulary, e);
  KF_DEVICE_NEW(d, s->nll, chunk, e);
  KF_DEVICE_NEW(d, s->best, chunk, e);
  return KF_OK;
}

/* Hidden states of `windows` windows of input; those of rows that count end up one after another at the front of x. */
static kf_status side_forward(side *s, const evaluation *v, int64_t window, int windows, kf_error *e) {
  const plan *p = &v->plan;
  int64_t hidden = s->model->config.hidden, kept = 0;
  for (int i = 0; i < windows; i++) {
    kf_sequence_reset(s->sequence[i]);
    s->span[i] = (kf_span){s->sequence[i], i * p->length, p->length, 0};
  }
  KF_TRY(kf_embed(&s->model->weights, s->model->embedding, v->input, windows * p->length, s->x, e));
  KF_TRY(kf_model_forward(s->model, s->x, s->span, windows, e));
  for (int i = 0; i < windows; i++) {
    int64_t first, rows;
    counted_rows(p, window + i, &first, &rows);
    memmove(s->x + kept * hidden, s->x + (i * p->length + first) * hidden, (size_t)(rows * hidden) * sizeof *s->x);
    kept += rows;
  }
  return KF_OK;
}

static kf_status side_score(side *s, int64_t at, int64_t rows, const int32_t *target, kf_error *e) {
  kf_device *d = s->model->device;
  KF_TRY(kf_model_logits(s->model, s->x + at * s->model->config.hidden, rows, s->logits, e));
  d->cross_entropy(d, s->logits, target, rows, s->model->config.vocabulary, s->nll, s->best);
  return kf_device_check(d, e);
}

int kf_position_bin(int64_t position) {
  int bin = 0;
  while (kf_position_start(bin + 1) <= position) bin++;
  return bin;
}

int64_t kf_position_start(int bin) {
  return bin ? (int64_t)16 << bin : 0;
}

static void add_positions(kf_positions *to, const double *nll, const int64_t *position, int64_t rows) {
  if (!to) return;
  for (int64_t i = 0; i < rows; i++) {
    int bin = kf_position_bin(position[i]);
    to->nll[bin] += nll[i];
    to->tokens[bin]++;
  }
}

/* Scores `rows` hidden rows from row `at` on and adds them up. */
static kf_status score_chunk(evaluation *v, int64_t at, int64_t rows, kf_error *e) {
  KF_TRY(side_score(&v->model, at, rows, v->target + at, e));
  for (int64_t i = 0; i < rows; i++) v->sum_nll += v->model.nll[i];
  v->tokens += rows;
  add_positions(v->model_at, v->model.nll, v->position + at, rows);
  if (!v->reference.model) return KF_OK;
  KF_TRY(side_score(&v->reference, at, rows, v->target + at, e));
  add_positions(v->reference_at, v->reference.nll, v->position + at, rows);
  kf_device *d = v->model.model->device;
  d->divergence(d, v->reference.logits, v->model.logits, rows, v->model.model->config.vocabulary, v->kl, v->difference);
  KF_TRY(kf_device_check(d, e));
  for (int64_t i = 0; i < rows; i++) {
    v->sum_reference += v->reference.nll[i];
    v->sum_kl += v->kl[i];
    v->largest = fmax(v->largest, v->difference[i]);
    v->agreed += v->model.best[i] == v->reference.best[i];
  }
  return KF_OK;
}

/* The reference's hidden states of the next `rows` rows that count, in its x: those that were kept, or computed and kept. */
static kf_status reference_forward(evaluation *v, int64_t window, int windows, int64_t rows, kf_error *e) {
  side *s = &v->reference;
  kf_kept *k = v->kept;
  int64_t hidden = s->model->config.hidden, all = v->tokens + rows;
  size_t row_bytes = (size_t)hidden * sizeof(float);
  if (k && all <= k->rows) {
    memcpy(s->x, k->x + v->tokens * hidden, (size_t)rows * row_bytes);
    return KF_OK;
  }
  KF_TRY(side_forward(s, v, window, windows, e));
  if (!k || k->rows != v->tokens || (size_t)all * row_bytes > KF_KEPT_BYTES) return KF_OK;
  float *more = realloc(k->x, (size_t)all * row_bytes);
  if (!more) return KF_OK; /* it is only not kept */
  k->x = more;
  memcpy(k->x + k->rows * hidden, s->x, (size_t)rows * row_bytes);
  k->rows = all;
  return KF_OK;
}

static kf_status run_windows(evaluation *v, int64_t window, int windows, kf_error *e) {
  const plan *p = &v->plan;
  int64_t counted = 0;
  for (int i = 0; i < windows; i++) {
    int32_t *input = v->input + i * p->length;
    if (p->bos) input[0] = p->bos_id;
    memcpy(input + p->bos, v->text->data + (window + i) * p->stride, (size_t)p->window * sizeof *input);
    int64_t first, rows;
    counted_rows(p, window + i, &first, &rows);
    memcpy(v->target + counted, input + first + 1, (size_t)rows * sizeof *input);
    for (int64_t r = 0; r < rows; r++) v->position[counted + r] = first + 1 - p->bos + r;
    counted += rows;
  }
  KF_TRY(side_forward(&v->model, v, window, windows, e));
  if (v->reference.model) KF_TRY(reference_forward(v, window, windows, counted, e));
  for (int64_t at = 0; at < counted; at += v->chunk)
    KF_TRY(score_chunk(v, at, counted - at < v->chunk ? counted - at : v->chunk, e));
  return KF_OK;
}

static kf_status run_all(evaluation *v, const kf_hooks *hooks, kf_error *e) {
  const plan *p = &v->plan;
  for (int64_t w = 0; w < p->windows; w += p->batch) {
    KF_TRY(kf_progress(hooks, "evaluating", (double)w, (double)p->windows, e));
    KF_TRY(run_windows(v, w, p->windows - w < p->batch ? (int)(p->windows - w) : p->batch, e));
  }
  return kf_progress(hooks, "evaluating", (double)p->windows, (double)p->windows, e);
}

/* ------------------------------------------------------------------------------------------------ preparation */

kf_status kf_eval_bos(const kf_tokenizer *t, kf_bos bos, int32_t *out, kf_error *e) {
  *out = -1;
  if (bos == KF_BOS_NO || (bos == KF_BOS_AUTO && !kf_tokenizer_adds_bos(t))) return KF_OK;
  *out = kf_tokenizer_bos(t);
  return *out >= 0 ? KF_OK : kf_fail(e, KF_ERROR_INPUT, "the tokenizer has no BOS token to put in front of a window");
}

int64_t kf_eval_window(const kf_model *m, const kf_eval_options *o) {
  return o->window ? o->window : m->config.context < DEFAULT_WINDOW ? m->config.context : DEFAULT_WINDOW;
}

static kf_status make_plan(const kf_model *m, const kf_eval_options *o, const kf_ids *text, plan *p, kf_error *e) {
  int64_t context = m->config.context;
  if (o->window < 0 || o->stride < 0 || o->max_windows < 0)
    return kf_fail(e, KF_ERROR_USAGE, "window, stride and the number of windows cannot be negative");
  p->window = kf_eval_window(m, o);
  p->stride = o->stride ? o->stride : p->window;
  if (p->stride > p->window)
    return kf_fail(e, o->window ? KF_ERROR_USAGE : KF_ERROR_INPUT, "a stride of %d tokens is above the window of %d",
                   (int)p->stride, (int)p->window);
  if (p->window + p->bos < 2)
    return kf_fail(e, o->bos == KF_BOS_NO ? KF_ERROR_USAGE : KF_ERROR_INPUT, "a window of 1 token without BOS predicts nothing");
  if ((int64_t)text->count < p->window)
    return kf_fail(e, KF_ERROR_INPUT, "the text has %zu tokens, fewer than one window of %d", text->count, (int)p->window);
  p->windows = ((int64_t)text->count - p->window) / p->stride + 1;
  if (o->max_windows && o->max_windows < p->windows) p->windows = o->max_windows;
  p->length = p->window + p->bos;
  p->batch = (int)(p->length < BATCH_TOKENS ? BATCH_TOKENS / p->length : 1);
  if (p->batch > p->windows) p->batch = (int)p->windows;
  if (p->length > context)
    kf_note(&o->hooks, "a window feeds %d tokens, the model's context is %d", (int)p->length, (int)context);
  return KF_OK;
}

/* Operations on numbers of both read them where they are. */
static kf_status check_device(const kf_model *m, const kf_model *reference, kf_error *e) {
  const char *one = kf_model_device(m), *other = reference ? kf_model_device(reference) : one;
  if (strcmp(one, other) != 0)
    return kf_fail(e, KF_ERROR_INPUT, "the model runs on %s, the reference on %s: both must run on one device", one, other);
  return KF_OK;
}

static kf_status check_vocabulary(const kf_model *m, const kf_model *reference, const kf_ids *text, const plan *p, kf_error *e) {
  int vocabulary = m->config.vocabulary;
  if (reference && reference->config.vocabulary != vocabulary)
    return kf_fail(e, KF_ERROR_INPUT,
                   "the model has %d tokens in its vocabulary, the reference %d: their predictions cannot be compared",
                   vocabulary, reference->config.vocabulary);
  int32_t largest = p->bos ? p->bos_id : 0;
  for (size_t i = 0; i < text->count; i++) largest = text->data[i] > largest ? text->data[i] : largest;
  if (largest >= vocabulary)
    return kf_fail(e, KF_ERROR_INPUT, "the tokenizer gives token %d, the model's vocabulary ends at %d", (int)largest,
                   vocabulary - 1);
  return KF_OK;
}

static kf_status prepare(evaluation *v, kf_model *m, kf_model *reference, kf_error *e) {
  const plan *p = &v->plan;
  v->chunk = LOGIT_BYTES / (int64_t)sizeof(float) / m->config.vocabulary;
  v->chunk = v->chunk < 16 ? 16 : v->chunk > 512 ? 512 : v->chunk;
  KF_NEW(v->input, p->batch * p->length, e);
  KF_DEVICE_NEW(m->device, v->target, p->batch * p->window, e);
  KF_NEW(v->position, p->batch * p->window, e);
  KF_DEVICE_NEW(m->device, v->kl, v->chunk, e);
  KF_DEVICE_NEW(m->device, v->difference, v->chunk, e);
  KF_TRY(side_open(&v->model, m, p, v->chunk, e));
  return reference ? side_open(&v->reference, reference, p, v->chunk, e) : KF_OK;
}

static void finish(evaluation *v, kf_eval_result *out) {
  double n = (double)v->tokens;
  *out = (kf_eval_result){.tokens = v->tokens, .windows = v->plan.windows, .nll = v->sum_nll / n};
  out->perplexity = exp(out->nll);
  if (!v->reference.model) return;
  out->has_reference = true;
  out->reference_nll = v->sum_reference / n;
  out->kl = v->sum_kl / n;
  out->top1_agreement = (double)v->agreed / n;
  out->max_logit_difference = v->largest;
}

kf_status kf_evaluate(kf_model *m, kf_model *reference, const kf_tokenizer *t, const kf_ids *text, const kf_eval_options *o,
                      kf_kept *kept, kf_positions *model_at, kf_positions *reference_at, kf_eval_result *out, kf_error *e) {
  evaluation v = {.text = text, .kept = kept, .model_at = model_at, .reference_at = reference_at};
  kf_status s;
  if (model_at) *model_at = (kf_positions){0};
  if (reference_at) *reference_at = (kf_positions){0};
  KF_GO(kf_eval_bos(t, o->bos, &v.plan.bos_id, e));
  v.plan.bos = v.plan.bos_id >= 0;
  KF_GO(make_plan(m, o, text, &v.plan, e));
  KF_GO(check_device(m, reference, e));
  KF_GO(check_vocabulary(m, reference, text, &v.plan, e));
  KF_GO(prepare(&v, m, reference, e));
  KF_GO(run_all(&v, &o->hooks, e));
  finish(&v, out);
done:
  side_close(&v.model, v.plan.batch);
  side_close(&v.reference, v.plan.batch);
  free(v.input);
  free(v.position);
  void *numbers[] = {v.target, v.kl, v.difference};
  for (int i = 0; i < 3; i++) m->device->release(m->device, numbers[i]);
  return s;
}

kf_status kf_eval(kf_model *m, kf_model *reference, const kf_tokenizer *t, const char *text, size_t bytes,
                  const kf_eval_options *o, kf_eval_result *out, kf_error *e) {
  static const kf_eval_options standard;
  kf_ids ids;
  KF_TRY(kf_tokenizer_encode(t, text, bytes, KF_ENCODE_PLAIN, &ids, e));
  kf_status s = kf_evaluate(m, reference, t, &ids, o ? o : &standard, NULL, NULL, NULL, out, e);
  kf_ids_free(&ids);
  return s;
}
