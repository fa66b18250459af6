/* MHA2MLA: partial RoPE with the kept pairs of each KV head, and an SVD of [W_k without them; W_v].
 *
 * Kept pairs index the source's own table of frequencies. A converted head is [nope | rope]: its other rows ascending, then
 * the first rows of the kept pairs, then their second rows. Everything but the SVD is a permutation of the source's rows. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "convert/factor.h"
#include "convert/statistics.h"

enum { ROPE_POLICY, ROPE_PAIRS, RANK, SVD, RANKS_FILE, SCORE, LAYERS, SINGULAR_VALUES };
enum { SVD_JOINT, SVD_SPLIT, SVD_K_ONLY, SVD_V_ONLY, SVD_NONE };
enum { SCORE_PRODUCT, SCORE_SUM };

static const char *const policies[] = {"high",     "low",           "uniform", "2-norm",
                                       "high-low", "2-norm-global", NULL}; /* as kf_rope_policy */
static const char *const svds[] = {"joint", "split", "k-only", "v-only", "none", NULL};
static const char *const scores_of[] = {"product", "sum", NULL};
static const char *const placements[] = {"up", "down", "split", NULL}; /* as kf_placement */

const kf_key kf_mha2mla_keys[] = {
    [ROPE_POLICY] = {"rope_policy", KF_TAKES_CHOICE, policies, 0, 0, NULL},
    [ROPE_PAIRS] = {"rope_pairs", KF_TAKES_INTEGER, NULL, 0, 65536, NULL},
    [RANK] = {"rank", KF_TAKES_INTEGER, NULL, 1, 1e9, NULL},
    [SVD] = {"svd", KF_TAKES_CHOICE, svds, 0, 0, "joint"},
    [RANKS_FILE] = {"ranks_file", KF_TAKES_TEXT, NULL, 0, 0, NULL},
    [SCORE] = {"score", KF_TAKES_CHOICE, scores_of, 0, 0, "product"},
    [LAYERS] = {"layers", KF_TAKES_TEXT, NULL, 0, 0, "all"},
    [SINGULAR_VALUES] = {"singular_values", KF_TAKES_CHOICE, placements, 0, 0, "up"},
    {NULL, 0, NULL, 0, 0, NULL},
};

/* ---------------------------------------------------------------------------------------------- settings */

static bool uses_norms(kf_rope_policy policy) {
  return policy == KF_ROPE_2NORM || policy == KF_ROPE_2NORM_GLOBAL;
}

static kf_status resolve_policy(kf_plan *p, kf_error *e) {
  const kf_config *c = p->source;
  const char *file = p->value[RANKS_FILE].text;
  int half = c->head_dim / 2;
  p->policy = p->value[ROPE_POLICY].given  ? (kf_rope_policy)p->value[ROPE_POLICY].choice
              : p->has_calibration || file ? KF_ROPE_2NORM
                                           : KF_ROPE_HIGH;
  json_object_set_new(p->settings, "rope_policy", json_string(policies[p->policy]));
  if (file) {
    KF_TRY(kf_ranks_read(file, &p->ranks, e));
    KF_TRY(kf_ranks_fit(&p->ranks, file, c->layers, c->heads, c->kv_heads, half, e));
    if (p->policy == KF_ROPE_2NORM_GLOBAL && !p->ranks.scored)
      return kf_fail(e, KF_ERROR_INPUT, "%s: ranks cannot be compared between heads; 2-norm-global needs scores", file);
    if (!uses_norms(p->policy)) kf_note(p->hooks, "ranks_file is not used by rope_policy=%s", policies[p->policy]);
    if (p->value[SCORE].given) kf_note(p->hooks, "score has no effect: the scores are those of %s", file);
  } else if (uses_norms(p->policy)) {
    if (!p->has_calibration)
      return kf_fail(e, KF_ERROR_INPUT, "rope_policy=%s needs calibration text or ranks_file", policies[p->policy]);
    p->needs_text = true;
  }
  return KF_OK;
}

/* Rows of kv_b and how few and how many latents its svd form can have. */
typedef struct limits {
  int64_t k, v, least, most;
} limits;

static limits layer_limits(const kf_plan *p, int layer) {
  const kf_attention_config *a = &p->source->layer[layer].attention;
  int64_t hidden = p->source->hidden, pairs = kf_plan_rotates(p, layer) ? p->pairs : 0;
  limits l = {.k = a->kv_heads * (a->d_qk - 2 * pairs), .v = (int64_t)a->kv_heads * a->d_v};
  int64_t both = l.k + l.v, k_full = l.k < hidden ? l.k : hidden, v_full = l.v < hidden ? l.v : hidden;
  switch (p->value[SVD].choice) {
  case SVD_JOINT: l.least = 1, l.most = both < hidden ? both : hidden; break;
  case SVD_SPLIT: l.least = 1, l.most = k_full + v_full; break;
  case SVD_K_ONLY: l.least = l.v + (l.k > 0), l.most = l.v + k_full; break;
  case SVD_V_ONLY: l.least = l.k + 1, l.most = l.k + v_full; break;
  default: l.least = l.most = both;
  }
  return l;
}

/* What a layer leaves in the cache besides the latents. */
static int64_t other_elements(const kf_plan *p, int layer) {
  const kf_attention_config *a = &p->source->layer[layer].attention;
  return (kf_plan_rotates(p, layer) ? 2ll * a->kv_heads * p->pairs : 0) + (a->qk_norm ? a->kv_heads : 0);
}

static kf_status resolve_rank(kf_plan *p, int layer, bool *clamped, kf_error *e) {
  limits l = layer_limits(p, layer);
  const char *svd = svds[p->value[SVD].choice];
  long long budget = kf_plan_budget(p, layer), other = other_elements(p, layer);
  if (p->value[RANK].given) {
    int64_t rank = p->value[RANK].integer;
    if (rank < l.least || rank > l.most)
      return kf_fail(e, KF_ERROR_INPUT, "rank=%lld: layer %d with svd=%s can have %lld to %lld latents", (long long)rank, layer,
                     svd, (long long)l.least, (long long)l.most);
    p->rank[layer] = (int)rank;
    return KF_OK;
  }
  if (p->value[SVD].choice == SVD_NONE && !p->budget.given) budget = l.most + other;
  if (budget - other < l.least)
    return kf_fail(e, KF_ERROR_INPUT,
                   "a budget of %lld elements a token is too small for layer %d: %lld go to %d rope pairs a KV head%s, and "
                   "svd=%s needs %lld more",
                   budget, layer, other, p->pairs, p->source->layer[layer].attention.qk_norm ? " and its norms" : "", svd,
                   (long long)l.least);
  *clamped = *clamped || budget - other > l.most;
  p->rank[layer] = (int)(budget - other > l.most ? l.most : budget - other);
  return KF_OK;
}

kf_status kf_mha2mla_resolve(kf_plan *p, kf_error *e) {
  const kf_config *c = p->source;
  int half = c->head_dim / 2;
  int fallback = c->head_dim / 16 > 1 ? c->head_dim / 16 : 1;
  int64_t pairs = p->value[ROPE_PAIRS].given ? p->value[ROPE_PAIRS].integer : fallback;
  if (pairs > half)
    return kf_fail(e, KF_ERROR_INPUT, "rope_pairs=%lld: a head of %d numbers has %d pairs", (long long)pairs, c->head_dim, half);
  p->pairs = (int)pairs;
  json_object_set_new(p->settings, "rope_pairs", json_integer(p->pairs));
  KF_TRY(resolve_policy(p, e));
  KF_TRY(kf_plan_layers(p, p->value[LAYERS].text, e));
  if (p->budget.given && p->value[RANK].given) return kf_fail(e, KF_ERROR_USAGE, "give a cache budget or rank, not both");
  if (!p->budget.given && !p->value[RANK].given && p->value[SVD].choice != SVD_NONE)
    kf_note(p->hooks, "no cache budget or rank was given: half of the source's cache is used");
  bool clamped = false;
  for (int i = 0; i < c->layers; i++)
    if (p->convert[i]) KF_TRY(resolve_rank(p, i, &clamped, e));
  if (clamped) kf_note(p->hooks, "the cache budget is above what some layers can use; their latents are at full width");
  return kf_plan_record(p, RANK, p->rank, e);
}

/* ---------------------------------------------------------------------------------------------- one layer */

/* order [kv_heads, d_qk]: row of the source's head that becomes each row of the converted head. */
static void order_rows(const kf_attention_config *a, int half, const int *pairs, const int32_t *index, int *order) {
  for (int g = 0; g < a->kv_heads; g++) {
    int *o = order + (size_t)g * a->d_qk, n = 0, next = 0;
    for (int row = 0; row < a->d_qk; row++) {
      bool kept = false;
      for (int j = 0; j < pairs[g]; j++) kept = kept || row % half == index[j];
      if (!kept) o[n++] = row;
    }
    for (next = 0; next < pairs[g]; next++) o[n++] = index[next];
    for (next = 0; next < pairs[g]; next++) o[n++] = index[next] + half;
    index += pairs[g];
  }
}

typedef struct work {
  const kf_plan *p;
  const kf_attention_config *a;
  int layer, half;
  int64_t hidden;
  int *order;       /* [kv_heads, d_qk] */
  float *q, *k, *v; /* [heads d_qk, hidden], [kv_heads d_qk, hidden], [kv_heads d_v, hidden] */
  float *q_bias, *k_bias, *v_bias;
  double *stack; /* [rows of kv_b, hidden]: per KV head its nope key rows, then its value rows */
  int64_t rows;
  int64_t *row_list; /* [rows] */
} work;

static kf_status read_source(work *w, kf_error *e) {
  const kf_attention_config *a = w->a;
  const kf_weights *s = w->p->weights;
  int64_t q = (int64_t)a->heads * a->d_qk, k = (int64_t)a->kv_heads * a->d_qk, v = (int64_t)a->kv_heads * a->d_v;
  int i = w->layer;
  KF_TRY(kf_weights_readf(s, k, w->hidden, &w->k, e, "model.layers.%d.self_attn.k_proj.weight", i));
  KF_TRY(kf_weights_readf(s, v, w->hidden, &w->v, e, "model.layers.%d.self_attn.v_proj.weight", i));
  if (a->q_bias) KF_TRY(kf_weights_readf(s, q, 1, &w->q_bias, e, "model.layers.%d.self_attn.q_proj.bias", i));
  if (a->k_bias) KF_TRY(kf_weights_readf(s, k, 1, &w->k_bias, e, "model.layers.%d.self_attn.k_proj.bias", i));
  if (a->v_bias) KF_TRY(kf_weights_readf(s, v, 1, &w->v_bias, e, "model.layers.%d.self_attn.v_proj.bias", i));
  return KF_OK;
}

static void widen(double *to, const float *from, int64_t n) {
  for (int64_t i = 0; i < n; i++) to[i] = from[i];
}

static kf_status stack_rows(work *w, const int *pairs, float *kv_b_bias, kf_error *e) {
  const kf_attention_config *a = w->a;
  KF_NEW(w->stack, w->rows * w->hidden, e);
  int64_t at = 0;
  for (int g = 0; g < a->kv_heads; g++) {
    for (int j = 0; j < a->d_qk - 2 * pairs[g]; j++, at++) {
      int64_t row = (int64_t)g * a->d_qk + w->order[g * a->d_qk + j];
      widen(w->stack + at * w->hidden, w->k + row * w->hidden, w->hidden);
      if (kv_b_bias && w->k_bias) kv_b_bias[at] = w->k_bias[row];
    }
    for (int j = 0; j < a->d_v; j++, at++) {
      int64_t row = (int64_t)g * a->d_v + j;
      widen(w->stack + at * w->hidden, w->v + row * w->hidden, w->hidden);
      if (kv_b_bias && w->v_bias) kv_b_bias[at] = w->v_bias[row];
    }
  }
  return KF_OK;
}

/* Rows of the stack that are keys (or values) into row_list; their number. */
static int64_t list_rows(work *w, const int *pairs, bool keys, bool values) {
  int64_t n = 0, at = 0;
  for (int g = 0; g < w->a->kv_heads; g++) {
    for (int j = 0; j < w->a->d_qk - 2 * pairs[g]; j++, at++)
      if (keys) w->row_list[n++] = at;
    for (int j = 0; j < w->a->d_v; j++, at++)
      if (values) w->row_list[n++] = at;
  }
  return n;
}

/* Latents first .. first+count-1 carry `rows` listed rows of the stack: factored, or as they are when full. */
static kf_status fill_latents(work *w, int64_t rows, int64_t first, int64_t count, bool full, float *kv_a, float *kv_b, int rank,
                              kf_error *e) {
  int64_t hidden = w->hidden;
  if (count == 0 || rows == 0) return KF_OK;
  if (full) {
    for (int64_t i = 0; i < rows; i++) {
      kv_b[w->row_list[i] * rank + first + i] = 1;
      for (int64_t c = 0; c < hidden; c++) kv_a[(first + i) * hidden + c] = (float)w->stack[w->row_list[i] * hidden + c];
    }
    return KF_OK;
  }
  kf_basis basis = {0};
  kf_status s = KF_ERROR_MEMORY;
  double *part = w->stack, *gathered = NULL, *up = NULL, *down = NULL;
  if (rows != w->rows) {
    if (!(part = gathered = kf_alloc((size_t)(rows * hidden), sizeof *gathered, e))) goto done;
    for (int64_t i = 0; i < rows; i++)
      memcpy(part + i * hidden, w->stack + w->row_list[i] * hidden, (size_t)hidden * sizeof *part);
  }
  KF_GO(kf_basis_create(part, rows, hidden, &basis, e));
  up = kf_alloc((size_t)(rows * count), sizeof *up, e);
  down = kf_alloc((size_t)(count * hidden), sizeof *down, e);
  s = up && down ? KF_OK : KF_ERROR_MEMORY;
  if (s == KF_OK) s = kf_basis_factor(&basis, part, count, (kf_placement)w->p->value[SINGULAR_VALUES].choice, up, down, e);
  for (int64_t i = 0; s == KF_OK && i < rows; i++)
    for (int64_t j = 0; j < count; j++) kv_b[w->row_list[i] * rank + first + j] = (float)up[i * count + j];
  for (int64_t i = 0; s == KF_OK && i < count * hidden; i++) kv_a[first * hidden + i] = (float)down[i];
done:
  kf_basis_free(&basis);
  free(gathered);
  free(up);
  free(down);
  return s;
}

static kf_status factor_latents(work *w, const int *pairs, int rank, float *kv_a, float *kv_b, kf_error *e) {
  int svd = w->p->value[SVD].choice;
  if (svd == SVD_JOINT) return fill_latents(w, list_rows(w, pairs, true, true), 0, rank, false, kv_a, kv_b, rank, e);
  int64_t k = list_rows(w, pairs, true, false), v = w->rows - k;
  int64_t k_most = k < w->hidden ? k : w->hidden, v_most = v < w->hidden ? v : w->hidden;
  int64_t k_rank = svd == SVD_K_ONLY ? rank - v : k;
  if (svd == SVD_SPLIT) { /* half each; what one side cannot use goes to the other */
    k_rank = rank / 2 < k_most ? rank / 2 : k_most;
    if (rank - k_rank > v_most) k_rank = rank - v_most;
  }
  bool k_full = svd == SVD_V_ONLY || svd == SVD_NONE, v_full = svd == SVD_K_ONLY || svd == SVD_NONE;
  KF_TRY(fill_latents(w, k, 0, k_rank, k_full, kv_a, kv_b, rank, e));
  v = list_rows(w, pairs, false, true);
  return fill_latents(w, v, k_rank, rank - k_rank, v_full, kv_a, kv_b, rank, e);
}

/* Rope keys of every KV head behind the latents, their biases with them. */
static void place_rope_keys(const work *w, const int *pairs, int rank, float *kv_a, float *kv_a_bias) {
  int64_t at = rank;
  for (int g = 0; g < w->a->kv_heads; g++)
    for (int j = w->a->d_qk - 2 * pairs[g]; j < w->a->d_qk; j++, at++) {
      int64_t row = (int64_t)g * w->a->d_qk + w->order[g * w->a->d_qk + j];
      memcpy(kv_a + at * w->hidden, w->k + row * w->hidden, (size_t)w->hidden * sizeof *kv_a);
      if (kv_a_bias) kv_a_bias[at] = w->k_bias[row];
    }
}

static kf_status place_queries(work *w, kf_mapped *out, kf_error *e) {
  const kf_attention_config *a = w->a;
  int64_t rows = (int64_t)a->heads * a->d_qk;
  KF_TRY(kf_weights_readf(w->p->weights, rows, w->hidden, &w->q, e, "model.layers.%d.self_attn.q_proj.weight", w->layer));
  float *q = kf_mapped_add(out, "q_proj.weight", rows, w->hidden, e);
  float *bias = q && a->q_bias ? kf_mapped_add(out, "q_proj.bias", rows, 0, e) : NULL;
  if (!q || (a->q_bias && !bias)) return KF_ERROR_MEMORY;
  for (int h = 0; h < a->heads; h++)
    for (int j = 0; j < a->d_qk; j++) {
      int64_t to = (int64_t)h * a->d_qk + j, from = (int64_t)h * a->d_qk + w->order[h / (a->heads / a->kv_heads) * a->d_qk + j];
      memcpy(q + to * w->hidden, w->q + from * w->hidden, (size_t)w->hidden * sizeof *q);
      if (bias) bias[to] = w->q_bias[from];
    }
  return KF_OK;
}

/* The per-head norms' weights in the order of each KV head's rows. */
static kf_status place_norm(const work *w, const char *name, kf_mapped *out, kf_error *e) {
  const kf_attention_config *a = w->a;
  float *from = NULL, *to = kf_mapped_add(out, name, a->kv_heads, a->d_qk, e);
  if (!to) return KF_ERROR_MEMORY;
  KF_TRY(kf_weights_readf(w->p->weights, a->d_qk, 1, &from, e, "model.layers.%d.self_attn.%s", w->layer, name));
  for (int i = 0; i < a->kv_heads * a->d_qk; i++) to[i] = from[w->order[i]];
  free(from);
  return KF_OK;
}

static kf_status assemble(work *w, const double *scores, kf_mapped *out, kf_error *e) {
  const kf_attention_config *a = w->a;
  kf_attention_config *b = &out->attention;
  int r = kf_plan_rotates(w->p, w->layer) ? w->p->pairs : 0, rank = w->p->rank[w->layer];
  KF_NEW(out->rope_pairs, a->kv_heads, e);
  KF_NEW(out->rope_index, a->kv_heads * r, e);
  KF_NEW(w->order, a->kv_heads * a->d_qk, e);
  if (w->p->ranks.layers) scores = w->p->ranks.score + (size_t)w->layer * a->kv_heads * w->half;
  KF_TRY(kf_rope_select(w->p->policy, a->kv_heads, w->half, r, scores, out->rope_pairs, out->rope_index, e));
  order_rows(a, w->half, out->rope_pairs, out->rope_index, w->order);
  *b = *a;
  b->kind = KF_LATENT;
  b->rope_heads = a->kv_heads;
  b->rope_pairs = out->rope_pairs;
  b->rope_index = out->rope_index;
  b->rank = rank;
  b->kv_a_bias = a->k_bias && r > 0;
  b->kv_b_bias = a->k_bias || a->v_bias;
  int64_t width = 2ll * a->kv_heads * r;
  w->rows = (int64_t)a->kv_heads * (a->d_qk + a->d_v) - width;
  KF_NEW(w->row_list, w->rows, e);
  KF_TRY(read_source(w, e));
  KF_TRY(place_queries(w, out, e));
  free(w->q);
  w->q = NULL;
  float *kv_a = kf_mapped_add(out, "kv_a_proj.weight", rank + width, w->hidden, e);
  float *kv_b = kv_a ? kf_mapped_add(out, "kv_b_proj.weight", w->rows, rank, e) : NULL;
  float *kv_a_bias = kv_b && b->kv_a_bias ? kf_mapped_add(out, "kv_a_proj.bias", rank + width, 0, e) : NULL;
  float *kv_b_bias = kv_b && b->kv_b_bias ? kf_mapped_add(out, "kv_b_proj.bias", w->rows, 0, e) : NULL;
  if (!kv_b || (b->kv_a_bias && !kv_a_bias) || (b->kv_b_bias && !kv_b_bias)) return KF_ERROR_MEMORY;
  KF_TRY(stack_rows(w, out->rope_pairs, kv_b_bias, e));
  place_rope_keys(w, out->rope_pairs, rank, kv_a, kv_a_bias);
  KF_TRY(factor_latents(w, out->rope_pairs, rank, kv_a, kv_b, e));
  if (!a->qk_norm) return KF_OK;
  KF_TRY(place_norm(w, "q_norm.weight", out, e));
  return place_norm(w, "k_norm.weight", out, e);
}

kf_status kf_mha2mla_open(const kf_plan *p, const kf_corpus *corpus, void **session, kf_error *e) {
  kf_calibration *c = NULL;
  kf_status s = kf_calibration_create(p, corpus, &c, e);
  *session = c;
  return s;
}

void kf_mha2mla_close(void *session) {
  kf_calibration_free(session);
}

kf_status kf_mha2mla_map(const kf_plan *p, void *session, int layer, kf_mapped *out, kf_error *e) {
  const kf_attention_config *a = &p->source->layer[layer].attention;
  work w = {.p = p, .a = a, .layer = layer, .half = a->d_qk / 2, .hidden = p->source->hidden};
  *out = (kf_mapped){0};
  double *scores = NULL;
  if (session) {
    KF_NEW(scores, a->kv_heads * w.half, e);
    kf_status s = kf_calibration_layer(session, layer, p->value[SCORE].choice == SCORE_PRODUCT, scores, e);
    if (s != KF_OK) {
      free(scores);
      return s;
    }
  }
  kf_status s = assemble(&w, scores, out, e);
  free(scores);
  float *const owned[] = {w.q, w.k, w.v, w.q_bias, w.k_bias, w.v_bias};
  for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free(owned[i]);
  free(w.order);
  free(w.stack);
  free(w.row_list);
  if (s != KF_OK) kf_mapped_free(out);
  return s;
}
