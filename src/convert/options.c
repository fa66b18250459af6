/* Options of kf_convert into checked values: method, budget and settings. */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "convert/plan.h"

/* ---------------------------------------------------------------------------------------------- near words */

/* Levenshtein distance, of words up to 63 letters. */
static int distance(const char *a, const char *b) {
  int row[64], m = (int)strnlen(a, 63), n = (int)strnlen(b, 63);
  for (int j = 0; j <= n; j++) row[j] = j;
  for (int i = 1; i <= m; i++) {
    int corner = row[0];
    row[0] = i;
    for (int j = 1; j <= n; j++) {
      int above = row[j], best = corner + (a[i - 1] != b[j - 1]);
      if (above + 1 < best) best = above + 1;
      if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
      row[j] = best;
      corner = above;
    }
  }
  return row[n];
}

/* "unknown KIND 'word'; did you mean 'x'? (known: a, b, c)"; words come from at(0), at(1), ... until NULL. */
static kf_status unknown(const char *what, const char *word, const char *(*at)(const void *, int), const void *list,
                         kf_error *e) {
  char known[384] = "";
  const char *near = NULL, *w;
  int length = (int)strnlen(word, 63), best = length / 2 < 3 ? length / 2 + 1 : 4; /* a near word shares half its letters */
  size_t n = 0;
  for (int i = 0; (w = at(list, i)); i++) {
    int d = distance(word, w);
    if (d < best) best = d, near = w;
    if (n < sizeof known) n += (size_t)snprintf(known + n, sizeof known - n, i ? ", %s" : "%s", w);
  }
  if (near) return kf_fail(e, KF_ERROR_USAGE, "unknown %s '%.60s'; did you mean '%s'? (known: %s)", what, word, near, known);
  return kf_fail(e, KF_ERROR_USAGE, "unknown %s '%.60s' (known: %s)", what, word, *known ? known : "none");
}

static const char *method_word(const void *list, int i) {
  (void)list;
  return kf_method_name(i);
}

static const char *key_word(const void *list, int i) {
  const kf_method *m = list;
  return m->keys ? m->keys[i].name : NULL;
}

static const char *choice_word(const void *list, int i) {
  return ((const char *const *)list)[i];
}

/* ---------------------------------------------------------------------------------------------- values */

static bool parse_number(const char *text, double *out) {
  char *end;
  if (!*text || isspace((unsigned char)*text)) return false;
  errno = 0;
  *out = strtod(text, &end);
  return !*end && !errno && isfinite(*out);
}

static kf_status parse_value(const kf_key *k, const char *text, kf_value *v, kf_error *e) {
  v->text = text;
  v->choice = -1;
  for (int i = 0; k->choices && k->choices[i]; i++)
    if (strcmp(k->choices[i], text) == 0) v->choice = i;
  if (v->choice >= 0) return KF_OK;
  if (k->takes & KF_TAKES_TEXT) return *text ? KF_OK : kf_fail(e, KF_ERROR_USAGE, "%s needs a value", k->name);
  if (!(k->takes & (KF_TAKES_INTEGER | KF_TAKES_REAL))) {
    char what[64];
    snprintf(what, sizeof what, "value of %s", k->name);
    return unknown(what, text, choice_word, k->choices, e);
  }
  bool whole = !(k->takes & KF_TAKES_REAL);
  if (!parse_number(text, &v->real) || v->real < k->low || v->real > k->high || (whole && v->real != floor(v->real)))
    return kf_fail(e, KF_ERROR_USAGE, "%s=%.60s: expected %s from %.15g to %.15g%s%s", k->name, text,
                   whole ? "a whole number" : "a number", k->low, k->high, k->choices ? " or " : "",
                   k->choices ? k->choices[0] : "");
  v->integer = (int64_t)v->real;
  return KF_OK;
}

static kf_status parse_settings(const kf_convert_options *o, kf_plan *p, kf_error *e) {
  const kf_key *keys = p->method->keys;
  for (int k = 0; keys && keys[k].name; k++) {
    p->value[k].choice = -1;
    if (keys[k].fallback) KF_TRY(parse_value(&keys[k], keys[k].fallback, &p->value[k], e));
  }
  for (int i = 0; i < o->setting_count; i++) {
    const kf_setting *s = &o->settings[i];
    int k = 0;
    while (keys && keys[k].name && strcmp(keys[k].name, s->key) != 0) k++;
    if (!keys || !keys[k].name) {
      char what[64];
      snprintf(what, sizeof what, "key of method %s", p->method->name);
      return unknown(what, s->key, key_word, p->method, e);
    }
    if (p->value[k].given) return kf_fail(e, KF_ERROR_USAGE, "%s is set twice", s->key);
    KF_TRY(parse_value(&keys[k], s->value, &p->value[k], e));
    p->value[k].given = true;
  }
  return KF_OK;
}

static kf_status parse_budget(const char *text, kf_budget *b, kf_error *e) {
  char number[64];
  double value;
  size_t n = strlen(text);
  bool percent = n > 1 && text[n - 1] == '%';
  snprintf(number, sizeof number, "%.*s", (int)(percent ? n - 1 : n), text);
  if (n >= sizeof number || !parse_number(number, &value) || value <= 0 || value > 1e9 || (!percent && value != floor(value)))
    return kf_fail(e, KF_ERROR_USAGE,
                   "cache budget '%.60s': expected elements per token and layer (192) or a part of the source's (50%%)", text);
  *b = (kf_budget){.given = true, .elements = percent ? 0 : (int64_t)value, .percent = percent ? value : 0};
  return KF_OK;
}

kf_status kf_plan_options(const kf_convert_options *o, kf_plan *p, kf_error *e) {
  const char *method = o->method ? o->method : "fold";
  *p = (kf_plan){.o = o, .has_calibration = o->calibration_count > 0, .hooks = &o->hooks};
  for (int i = 0; kf_method_at(i); i++)
    if (strcmp(kf_method_name(i), method) == 0) p->method = kf_method_at(i);
  if (!p->method) return unknown("method", method, method_word, NULL, e);
  if (o->calibration_tokens < 0) return kf_fail(e, KF_ERROR_USAGE, "calibration tokens cannot be negative");
  if (o->shard_bytes < 0) return kf_fail(e, KF_ERROR_USAGE, "shard bytes cannot be negative");
  if (o->threads < 0) return kf_fail(e, KF_ERROR_USAGE, "threads cannot be negative");
  if (o->cache && !p->method->resolve) return kf_fail(e, KF_ERROR_USAGE, "method %s has no cache budget", p->method->name);
  if (o->cache) KF_TRY(parse_budget(o->cache, &p->budget, e));
  return parse_settings(o, p, e);
}

/* ---------------------------------------------------------------------------------------------- against a model */

int64_t kf_plan_budget(const kf_plan *p, int layer) {
  int64_t source = kf_attention_cache_elements(&p->source->layer[layer].attention);
  if (!p->budget.given) return source / 2;
  return p->budget.elements ? p->budget.elements : (int64_t)floor((double)source * p->budget.percent / 100 + 1e-9);
}

bool kf_plan_rotates(const kf_plan *p, int layer) {
  return p->source->layer[layer].attention.rope_pairs[0] > 0;
}

static kf_status mark_layers(kf_plan *p, const char *text, long from, long to, kf_error *e) {
  if (from < 0 || to < from || to >= p->source->layers)
    return kf_fail(e, KF_ERROR_INPUT, "layers=%.60s: the model has layers 0 to %d", text, p->source->layers - 1);
  for (long i = from; i <= to; i++) p->convert[i] = true;
  return KF_OK;
}

kf_status kf_plan_layers(kf_plan *p, const char *text, kf_error *e) {
  if (strcmp(text, "all") == 0) return mark_layers(p, text, 0, p->source->layers - 1, e);
  for (const char *c = text;;) {
    char *end;
    if (!isdigit((unsigned char)*c)) break;
    long from = strtol(c, &end, 10), to = from;
    if (*end == '-') {
      if (!isdigit((unsigned char)end[1])) break;
      to = strtol(end + 1, &end, 10);
    }
    KF_TRY(mark_layers(p, text, from, to, e));
    if (!*end) return KF_OK;
    if (*end != ',') break;
    c = end + 1;
  }
  return kf_fail(e, KF_ERROR_USAGE, "layers=%.60s: expected all, or a list such as 0,2,4-7", text);
}

kf_status kf_plan_record(kf_plan *p, int key, const int *per_layer, kf_error *e) {
  const int *one = NULL;
  bool equal = true;
  json_t *list = json_array(), *value = list;
  for (int i = 0; i < p->source->layers; i++) {
    json_array_append_new(list, p->convert[i] ? json_integer(per_layer[i]) : json_null());
    if (!p->convert[i]) continue;
    if (one) equal = equal && *one == per_layer[i];
    one = &per_layer[i];
  }
  if (equal && one) {
    value = json_integer(*one);
    json_decref(list);
  }
  if (json_object_set_new(p->settings, p->method->keys[key].name, value) != 0)
    return kf_fail(e, KF_ERROR_MEMORY, "out of memory");
  return KF_OK;
}

/* What the method did not record is recorded as it was given, or as the table has it. */
static kf_status record_rest(kf_plan *p, kf_error *e) {
  const kf_key *keys = p->method->keys;
  for (int k = 0; keys && keys[k].name; k++) {
    const kf_value *v = &p->value[k];
    if (json_object_get(p->settings, keys[k].name)) continue;
    json_t *value = !v->text                                          ? json_null()
                    : v->choice >= 0 || keys[k].takes & KF_TAKES_TEXT ? json_string(v->text)
                    : keys[k].takes & KF_TAKES_REAL                   ? json_real(v->real)
                                                                      : json_integer(v->integer);
    if (json_object_set_new(p->settings, keys[k].name, value) != 0)
      return kf_fail(e, KF_ERROR_INPUT, "%s=%.60s cannot be recorded: it is not UTF-8", keys[k].name, v->text);
  }
  return KF_OK;
}

/* Only grouped attention that rotates whole heads, or not at all, can be converted. */
static kf_status check_source(const kf_plan *p, kf_error *e) {
  for (int i = 0; i < p->source->layers; i++) {
    const kf_attention_config *a = &p->source->layer[i].attention;
    if (a->kind == KF_LATENT)
      return kf_fail(e, KF_ERROR_INPUT,
                     "layer %d of %s already has latent attention (method %s); convert the original model instead", i,
                     kf_source_path(p->weights->source), *p->source->method ? p->source->method : p->source->family);
    if (a->d_qk != a->d_v || a->d_qk % 2 || (a->rope_pairs[0] != 0 && a->rope_pairs[0] != a->d_qk / 2))
      return kf_fail(e, KF_ERROR_INPUT, "layer %d: heads of %d and %d numbers with %d rotated pairs cannot be converted", i,
                     a->d_qk, a->d_v, a->rope_pairs[0]);
  }
  return KF_OK;
}

kf_status kf_plan_resolve(kf_plan *p, const kf_config *source, const kf_weights *weights, const kf_hooks *hooks, kf_error *e) {
  p->source = source;
  p->weights = weights;
  p->hooks = hooks;
  p->settings = json_object();
  p->convert = kf_arena_alloc(&p->arena, (size_t)source->layers, sizeof *p->convert, e);
  p->rank = kf_arena_alloc(&p->arena, (size_t)source->layers, sizeof *p->rank, e);
  p->q_rank = kf_arena_alloc(&p->arena, (size_t)source->layers, sizeof *p->q_rank, e);
  if (!p->settings || !p->convert || !p->rank || !p->q_rank) return kf_fail(e, KF_ERROR_MEMORY, "out of memory");
  if (p->method->resolve) {
    KF_TRY(check_source(p, e));
    KF_TRY(p->method->resolve(p, e));
  }
  if (p->has_calibration && !p->needs_text) kf_note(hooks, "the calibration text is not used: no setting asks for scores");
  return record_rest(p, e);
}

void kf_plan_free(kf_plan *p) {
  if (!p) return;
  kf_arena_free(&p->arena);
  kf_ranks_free(&p->ranks);
  json_decref(p->settings);
  *p = (kf_plan){0};
}

/* ---------------------------------------------------------------------------------------------- results */

float *kf_mapped_add(kf_mapped *m, const char *name, int64_t rows, int64_t columns, kf_error *e) {
  kf_mapped_tensor *t = &m->tensor[m->tensors];
  *t = (kf_mapped_tensor){.name = name, .dims = columns ? 2 : 1, .shape = {rows, columns}};
  t->data = kf_alloc((size_t)rows * (size_t)(columns ? columns : 1), sizeof *t->data, e);
  if (t->data) m->tensors++;
  return t->data;
}

void kf_mapped_drop(kf_mapped *m) {
  for (int i = 0; i < m->tensors; i++) free(m->tensor[i].data);
  m->tensors = 0;
}

void kf_mapped_free(kf_mapped *m) {
  if (!m) return;
  kf_mapped_drop(m);
  free(m->rope_pairs);
  free(m->rope_index);
  free(m->lists);
  *m = (kf_mapped){0};
}
