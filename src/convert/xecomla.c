/* X-EcoMLA: one SVD of [W_k; W_v] for the latents, one RoPE key that all heads share, the query full or low-rank.
 *
 * Of each head of the source the first `nope` rows stay without rotation and the last `rope` rows rotate, as pairs
 * (2k, 2k+1) with frequencies theta^(-2k / rope); in a converted head they stand half-split: even rows, then odd rows. The
 * shared key is the mean of the KV heads' last rows. The source's KV heads are not repeated before the SVD: the
 * products are the same, the matrix is heads / kv_heads times smaller.
 * A model with q/k norms keeps them over the nope + rope rows of a head: their mean square is that of the kept rows only,
 * and of the shared key, which is an approximation like the rest of this method. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "convert/factor.h"
#include "convert/plan.h"

enum {
  KV_RANK,
  Q_RANK,
  ROPE_DIM,
  NOPE_DIM,
  KV_ENERGY,
  Q_ENERGY,
  LAYERS,
  LATENT_NORM,
  SINGULAR_VALUES,
  ROPE_SCALING,
  VARIANT,
  KV_B
};
enum { Q_FULL, Q_PARITY };
enum { VARIANT_CODE, VARIANT_PAPER };
enum { SCALING_BASE, SCALING_YARN };
enum { KV_B_KV, KV_B_QUERY };

static const char *const q_ranks[] = {"full", "parity", NULL};
static const char *const booleans[] = {"false", "true", NULL};
static const char *const placements[] = {"up", "down", "split", NULL}; /* as kf_placement */
static const char *const scalings[] = {"base", "yarn", NULL};
static const char *const variants[] = {"code", "paper", NULL};
static const char *const kv_bs[] = {"kv", "query", NULL};

const kf_key kf_xecomla_keys[] = {
    [KV_RANK] = {"kv_rank", KF_TAKES_INTEGER, NULL, 1, 1e9, NULL},
    [Q_RANK] = {"q_rank", KF_TAKES_CHOICE | KF_TAKES_INTEGER, q_ranks, 1, 1e9, "full"},
    [ROPE_DIM] = {"rope_dim", KF_TAKES_INTEGER, NULL, 0, 65536, NULL},
    [NOPE_DIM] = {"nope_dim", KF_TAKES_INTEGER, NULL, 0, 65536, NULL},
    [KV_ENERGY] = {"kv_energy", KF_TAKES_REAL, NULL, 1e-6, 1, NULL},
    [Q_ENERGY] = {"q_energy", KF_TAKES_REAL, NULL, 1e-6, 1, NULL},
    [LAYERS] = {"layers", KF_TAKES_TEXT, NULL, 0, 0, "all"},
    [LATENT_NORM] = {"latent_norm", KF_TAKES_CHOICE, booleans, 0, 0, "false"},
    [SINGULAR_VALUES] = {"singular_values", KF_TAKES_CHOICE, placements, 0, 0, NULL},
    [ROPE_SCALING] = {"rope_scaling", KF_TAKES_CHOICE, scalings, 0, 0, "base"},
    [VARIANT] = {"variant", KF_TAKES_CHOICE, variants, 0, 0, "code"},
    [KV_B] = {"kv_b", KF_TAKES_CHOICE, kv_bs, 0, 0, "kv"},
    {NULL, 0, NULL, 0, 0, NULL},
};

/* ---------------------------------------------------------------------------------------------- settings */

static kf_placement placement(const kf_plan *p) {
  if (p->value[SINGULAR_VALUES].given) return (kf_placement)p->value[SINGULAR_VALUES].choice;
  return p->value[VARIANT].choice == VARIANT_CODE ? KF_PLACE_DOWN : KF_PLACE_UP;
}

/* Rows of a head in a layer: one that does not rotate in the source keeps all of them as they are. */
static int rope_rows(const kf_plan *p, int layer) {
  return kf_plan_rotates(p, layer) ? p->rope : 0;
}
static int nope_rows(const kf_plan *p, int layer) {
  return kf_plan_rotates(p, layer) ? p->nope : p->source->layer[layer].attention.d_qk;
}

static int latent_heads(const kf_plan *p, int layer) {
  const kf_attention_config *a = &p->source->layer[layer].attention;
  return p->value[KV_B].choice == KV_B_QUERY ? a->heads : a->kv_heads;
}

/* The code leaves the first and the last layer at the fixed ranks when ranks go by energy; the paper does not. */
static bool by_energy(const kf_plan *p, int key, int layer) {
  if (!p->value[key].given) return false;
  return p->value[VARIANT].choice == VARIANT_PAPER || (layer > 0 && layer < p->source->layers - 1);
}

static int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

static kf_status resolve_kv_rank(kf_plan *p, int layer, bool *clamped, kf_error *e) {
  const kf_attention_config *a = &p->source->layer[layer].attention;
  int64_t most = smaller((int64_t)a->kv_heads * (a->d_qk + a->d_v), p->source->hidden);
  long long other = rope_rows(p, layer) + (a->qk_norm ? latent_heads(p, layer) : 0);
  int64_t rank = p->value[KV_RANK].given ? p->value[KV_RANK].integer : kf_plan_budget(p, layer) - other;
  if (by_energy(p, KV_ENERGY, layer)) return KF_OK;
  if (rank < 1)
    return kf_fail(e, KF_ERROR_INPUT, "a budget of %lld elements a token is too small for layer %d: %lld go to the RoPE key%s",
                   (long long)kf_plan_budget(p, layer), layer, other, a->qk_norm ? " and the norms" : "");
  if (p->value[KV_RANK].given && rank > most)
    return kf_fail(e, KF_ERROR_INPUT, "kv_rank=%lld: layer %d has at most %lld latents (%d KV heads, hidden %d)", (long long)rank,
                   layer, (long long)most, a->kv_heads, p->source->hidden);
  *clamped = *clamped || rank > most;
  p->rank[layer] = (int)smaller(rank, most);
  return KF_OK;
}

/* The query rank at which the layer has as many numbers as before (X-EcoMLA's r_q, kv_b counted per query head). */
static int64_t parity(const kf_plan *p, int layer, int64_t rank) {
  const kf_attention_config *a = &p->source->layer[layer].attention;
  int64_t d = p->source->hidden, nope = nope_rows(p, layer), rope = rope_rows(p, layer);
  int64_t base = d * a->heads * a->d_qk + 2 * d * a->kv_heads * a->d_qk;
  return (base - d * (rank + rope) - rank * a->heads * (nope + a->d_v)) / (d + a->heads * (nope + rope));
}

static kf_status resolve_q_rank(kf_plan *p, int layer, bool *clamped, kf_error *e) {
  const kf_attention_config *a = &p->source->layer[layer].attention;
  int64_t most = smaller((int64_t)a->heads * a->d_qk, p->source->hidden), rank = p->value[Q_RANK].integer;
  if (p->value[Q_RANK].choice == Q_FULL || by_energy(p, Q_ENERGY, layer)) return KF_OK;
  if (p->value[Q_RANK].choice == Q_PARITY) {
    if (by_energy(p, KV_ENERGY, layer)) return KF_OK; /* known once the layer's kv rank is */
    rank = parity(p, layer, p->rank[layer]);
    if (rank < 1)
      return kf_fail(e, KF_ERROR_INPUT, "q_rank=parity: layer %d has more numbers than before with any query rank", layer);
    *clamped = *clamped || rank > most;
    rank = smaller(rank, most);
  }
  if (rank > most)
    return kf_fail(e, KF_ERROR_INPUT, "q_rank=%lld: layer %d has a query of at most rank %lld", (long long)rank, layer,
                   (long long)most);
  p->q_rank[layer] = (int)rank;
  return KF_OK;
}

static kf_status resolve_dims(kf_plan *p, kf_error *e) {
  int d = p->source->head_dim;
  int64_t rope = p->value[ROPE_DIM].given ? p->value[ROPE_DIM].integer : d / 2;
  if (rope % 2) {
    if (p->value[ROPE_DIM].given)
      return kf_fail(e, KF_ERROR_INPUT, "rope_dim=%lld is odd; rotated numbers come in pairs", (long long)rope);
    rope--;
  }
  if (rope > d) return kf_fail(e, KF_ERROR_INPUT, "rope_dim=%lld: a head of the source has %d rows", (long long)rope, d);
  int64_t nope = p->value[NOPE_DIM].given ? p->value[NOPE_DIM].integer : d - rope;
  if (nope > d) return kf_fail(e, KF_ERROR_INPUT, "nope_dim=%lld: a head of the source has %d rows", (long long)nope, d);
  if (nope + rope < 1) return kf_fail(e, KF_ERROR_INPUT, "nope_dim and rope_dim are both 0: nothing is left of the keys");
  p->nope = (int)nope;
  p->rope = (int)rope;
  json_object_set_new(p->settings, "rope_dim", json_integer(rope));
  json_object_set_new(p->settings, "nope_dim", json_integer(nope));
  json_object_set_new(p->settings, "singular_values", json_string(placements[placement(p)]));
  return KF_OK;
}

kf_status kf_xecomla_resolve(kf_plan *p, kf_error *e) {
  const kf_config *c = p->source;
  bool clamped = false, q_clamped = false, fixed = false;
  KF_TRY(resolve_dims(p, e));
  KF_TRY(kf_plan_layers(p, p->value[LAYERS].text, e));
  if (p->budget.given && p->value[KV_RANK].given) return kf_fail(e, KF_ERROR_USAGE, "give a cache budget or kv_rank, not both");
  for (int i = 0; i < c->layers; i++) {
    if (!p->convert[i]) continue;
    fixed = fixed || !by_energy(p, KV_ENERGY, i);
    KF_TRY(resolve_kv_rank(p, i, &clamped, e));
    KF_TRY(resolve_q_rank(p, i, &q_clamped, e));
  }
  if (fixed && !p->budget.given && !p->value[KV_RANK].given)
    kf_note(p->hooks, "no cache budget or kv_rank was given: half of the source's cache is used");
  if (clamped) kf_note(p->hooks, "the cache budget is above what some layers can use; their latents are at full width");
  if (q_clamped) kf_note(p->hooks, "q_rank=parity is above the rank of the query; it is kept at full rank");
  if (p->value[ROPE_SCALING].choice == SCALING_YARN && c->layer[0].attention.rope.type == KF_ROPE_DEFAULT)
    kf_note(p->hooks, "rope_scaling=yarn changes nothing: the source's RoPE is not scaled");
  /* ranks by energy are in the layers of the written configuration */
  return p->value[KV_ENERGY].given ? KF_OK : kf_plan_record(p, KV_RANK, p->rank, e);
}

/* ---------------------------------------------------------------------------------------------- one layer */

typedef struct work {
  const kf_plan *p;
  const kf_attention_config *a;
  int layer, nope, rope, rank, q_rank, kv_heads;
  int64_t hidden;
  int *rows; /* [nope + rope] row of a source head that becomes each row of a converted one */
} work;

static kf_status read_tensor(const work *w, const char *name, int64_t rows, int64_t columns, float **out, kf_error *e) {
  return kf_weights_readf(w->p->weights, rows, columns, out, e, "model.layers.%d.self_attn.%s", w->layer, name);
}

static kf_status order_rows(work *w, kf_error *e) {
  KF_NEW(w->rows, w->nope + w->rope, e);
  for (int j = 0; j < w->nope; j++) w->rows[j] = j;
  for (int j = 0; j < w->rope; j++) {
    int half = w->rope / 2, row = j < half ? 2 * j : 2 * (j - half) + 1; /* pairs (2k, 2k+1) to half-split */
    w->rows[w->nope + j] = w->a->d_qk - w->rope + row;
  }
  return KF_OK;
}

/* Factors `a` at the layer's rank, or at the rank that the energy asks for. *rank: in, 0 when by energy; out. */
static kf_status factor(const work *w, const double *a, int64_t rows, int energy_key, int *rank, double **up, double **down,
                        kf_error *e) {
  kf_basis basis;
  KF_TRY(kf_basis_create(a, rows, w->hidden, &basis, e));
  if (by_energy(w->p, energy_key, w->layer))
    *rank = (int)kf_energy_rank(&basis, w->p->value[energy_key].real, w->p->value[VARIANT].choice == VARIANT_PAPER);
  *up = kf_alloc((size_t)(rows * *rank), sizeof **up, e);
  *down = kf_alloc((size_t)(*rank * w->hidden), sizeof **down, e);
  kf_status s = *up && *down ? kf_basis_factor(&basis, a, *rank, placement(w->p), *up, *down, e) : KF_ERROR_MEMORY;
  kf_basis_free(&basis);
  return s;
}

static double *widen(const float *from, int64_t n, double *to) {
  for (int64_t i = 0; i < n; i++) to[i] = from[i];
  return to;
}

/* Shared RoPE key: the mean over KV heads of the rotated rows of k (or of its bias; columns 1). to: [rope, columns] */
static void mean_rope_rows(const work *w, const float *k, int64_t columns, float *to) {
  for (int j = 0; j < w->rope; j++)
    for (int64_t c = 0; c < columns; c++) {
      double sum = 0;
      for (int g = 0; g < w->a->kv_heads; g++) sum += k[((int64_t)g * w->a->d_qk + w->rows[w->nope + j]) * columns + c];
      to[j * columns + c] = (float)(sum / w->a->kv_heads);
    }
}

/* kv_b [kv_heads, nope + d_v, rank] from the rows of up [kv_heads (d_qk + d_v), rank]: keys of all heads, then values. */
static void place_kv_b(const work *w, const double *up, float *to) {
  const kf_attention_config *a = w->a;
  int repeat = w->kv_heads / a->kv_heads;
  for (int h = 0; h < w->kv_heads; h++)
    for (int j = 0; j < w->nope + a->d_v; j++) {
      int64_t g = h / repeat;
      int64_t row = j < w->nope ? g * a->d_qk + j : (int64_t)a->kv_heads * a->d_qk + g * a->d_v + (j - w->nope);
      for (int r = 0; r < w->rank; r++) *to++ = (float)up[row * w->rank + r];
    }
}

static kf_status place_kv_biases(const work *w, kf_mapped *out, kf_error *e) {
  const kf_attention_config *a = w->a;
  float *k = NULL, *v = NULL, *to;
  kf_status s = KF_OK;
  if (a->k_bias) KF_GO(read_tensor(w, "k_proj.bias", (int64_t)a->kv_heads * a->d_qk, 1, &k, e));
  if (a->v_bias) KF_GO(read_tensor(w, "v_proj.bias", (int64_t)a->kv_heads * a->d_v, 1, &v, e));
  if (out->attention.kv_a_bias) {
    s = (to = kf_mapped_add(out, "kv_a_proj.bias", w->rank + w->rope, 0, e)) ? KF_OK : KF_ERROR_MEMORY;
    if (s != KF_OK) goto done;
    mean_rope_rows(w, k, 1, to + w->rank);
  }
  s = (to = kf_mapped_add(out, "kv_b_proj.bias", (int64_t)w->kv_heads * (w->nope + a->d_v), 0, e)) ? KF_OK : KF_ERROR_MEMORY;
  for (int h = 0; s == KF_OK && h < w->kv_heads; h++) {
    int g = h / (w->kv_heads / a->kv_heads);
    for (int j = 0; j < w->nope; j++, to++) *to = k ? k[g * a->d_qk + j] : 0;
    for (int j = 0; j < a->d_v; j++, to++) *to = v ? v[g * a->d_v + j] : 0;
  }
done:
  free(k);
  free(v);
  return s;
}

static kf_status map_kv(work *w, kf_mapped *out, kf_error *e) {
  const kf_attention_config *a = w->a;
  int64_t k_rows = (int64_t)a->kv_heads * a->d_qk, v_rows = (int64_t)a->kv_heads * a->d_v, h = w->hidden;
  float *k = NULL, *v = NULL;
  double *stack = NULL, *up = NULL, *down = NULL;
  kf_status s;
  KF_GO(read_tensor(w, "k_proj.weight", k_rows, h, &k, e));
  KF_GO(read_tensor(w, "v_proj.weight", v_rows, h, &v, e));
  s = (stack = kf_alloc((size_t)((k_rows + v_rows) * h), sizeof *stack, e)) ? KF_OK : KF_ERROR_MEMORY;
  if (s != KF_OK) goto done;
  widen(v, v_rows * h, widen(k, k_rows * h, stack) + k_rows * h);
  KF_GO(factor(w, stack, k_rows + v_rows, KV_ENERGY, &w->rank, &up, &down, e));
  float *kv_a = kf_mapped_add(out, "kv_a_proj.weight", w->rank + w->rope, h, e);
  float *kv_b = kv_a ? kf_mapped_add(out, "kv_b_proj.weight", (int64_t)w->kv_heads * (w->nope + a->d_v), w->rank, e) : NULL;
  s = kv_b ? KF_OK : KF_ERROR_MEMORY;
  if (s != KF_OK) goto done;
  for (int64_t i = 0; i < w->rank * h; i++) kv_a[i] = (float)down[i];
  mean_rope_rows(w, k, h, kv_a + w->rank * h);
  place_kv_b(w, up, kv_b);
  if (out->attention.kv_b_bias) s = place_kv_biases(w, out, e);
done:
  free(k);
  free(v);
  free(stack);
  free(up);
  free(down);
  return s;
}

/* The rows of each query head in the converted order. from: [heads d_qk, columns] f32; to: [heads (nope + rope), columns] */
static void slice_heads(const work *w, const float *from, int64_t columns, float *to) {
  int d = w->nope + w->rope;
  for (int h = 0; h < w->a->heads; h++)
    for (int j = 0; j < d; j++)
      memcpy(to + ((int64_t)h * d + j) * columns, from + ((int64_t)h * w->a->d_qk + w->rows[j]) * columns,
             (size_t)columns * sizeof *to);
}

static kf_status map_low_rank_query(work *w, const float *q, kf_mapped *out, kf_error *e) {
  const kf_attention_config *a = w->a;
  int64_t rows = (int64_t)a->heads * a->d_qk, d = w->nope + w->rope, h = w->hidden;
  double *wide = kf_alloc((size_t)(rows * h), sizeof *wide, e), *up = NULL, *down = NULL;
  if (!wide) return KF_ERROR_MEMORY;
  kf_status s = factor(w, widen(q, rows * h, wide), rows, Q_ENERGY, &w->q_rank, &up, &down, e);
  float *q_a = s == KF_OK ? kf_mapped_add(out, "q_a_proj.weight", w->q_rank, h, e) : NULL;
  float *q_b = q_a ? kf_mapped_add(out, "q_b_proj.weight", a->heads * d, w->q_rank, e) : NULL;
  if (s == KF_OK && !q_b) s = KF_ERROR_MEMORY;
  for (int64_t i = 0; s == KF_OK && i < w->q_rank * h; i++) q_a[i] = (float)down[i];
  for (int64_t i = 0; s == KF_OK && i < a->heads * d; i++) {
    int64_t row = i / d * a->d_qk + w->rows[i % d];
    for (int r = 0; r < w->q_rank; r++) q_b[i * w->q_rank + r] = (float)up[row * w->q_rank + r];
  }
  free(wide);
  free(up);
  free(down);
  return s;
}

static kf_status map_query(work *w, kf_mapped *out, kf_error *e) {
  const kf_attention_config *a = w->a;
  int64_t rows = (int64_t)a->heads * a->d_qk, kept = (int64_t)a->heads * (w->nope + w->rope);
  bool low = w->q_rank > 0 || by_energy(w->p, Q_ENERGY, w->layer);
  float *from = NULL, *to = NULL;
  kf_status s = read_tensor(w, "q_proj.weight", rows, w->hidden, &from, e);
  if (s == KF_OK && low) {
    s = map_low_rank_query(w, from, out, e);
  } else if (s == KF_OK) {
    s = (to = kf_mapped_add(out, "q_proj.weight", kept, w->hidden, e)) ? KF_OK : KF_ERROR_MEMORY;
    if (s == KF_OK) slice_heads(w, from, w->hidden, to);
  }
  free(from);
  if (s != KF_OK || !a->q_bias) return s;
  if (!(to = kf_mapped_add(out, low ? "q_b_proj.bias" : "q_proj.bias", kept, 0, e))) return KF_ERROR_MEMORY;
  KF_TRY(read_tensor(w, "q_proj.bias", rows, 1, &from, e));
  slice_heads(w, from, 1, to);
  free(from);
  return KF_OK;
}

static kf_status add_ones(kf_mapped *out, const char *name, int64_t n, kf_error *e) {
  float *to = kf_mapped_add(out, name, n, 0, e);
  if (!to) return KF_ERROR_MEMORY;
  for (int64_t i = 0; i < n; i++) to[i] = 1;
  return KF_OK;
}

static kf_status map_head_norm(const work *w, const char *name, kf_mapped *out, kf_error *e) {
  int d = w->nope + w->rope;
  float *from, *to = kf_mapped_add(out, name, w->kv_heads, d, e);
  if (!to) return KF_ERROR_MEMORY;
  KF_TRY(read_tensor(w, name, w->a->d_qk, 1, &from, e));
  for (int i = 0; i < w->kv_heads * d; i++) to[i] = from[w->rows[i % d]];
  free(from);
  return KF_OK;
}

/* The source's table for rope / 2 pairs. Lists of one factor a pair are read at the pair of the same frequency. */
static void resize_list(const double **list, int pairs, int source_pairs, double *to) {
  if (!*list) return;
  for (int k = 0; k < pairs; k++) to[k] = (*list)[(int64_t)k * source_pairs / pairs];
  *list = to;
}

static void shape_rope(const work *w, kf_rope *rope, double *lists) {
  int pairs = w->rope / 2, source_pairs = rope->dim / 2;
  if (pairs == 0) return;
  resize_list(&rope->short_factor, pairs, source_pairs, lists);
  resize_list(&rope->long_factor, pairs, source_pairs, lists + pairs);
  rope->dim = w->rope;
  if (w->p->value[ROPE_SCALING].choice != SCALING_YARN || rope->type == KF_ROPE_DEFAULT) return;
  *rope = (kf_rope){.type = KF_ROPE_YARN,
                    .dim = w->rope,
                    .theta = rope->theta,
                    .factor = rope->factor,
                    .beta_fast = 32,
                    .beta_slow = 1,
                    .mscale = 1,
                    .original_context = 4096,
                    .context = rope->context,
                    .truncate = true};
}

static kf_status assemble(work *w, kf_mapped *out, kf_error *e) {
  const kf_attention_config *a = w->a;
  kf_attention_config *b = &out->attention;
  bool latent_norm = w->p->value[LATENT_NORM].choice == 1;
  KF_TRY(order_rows(w, e));
  KF_NEW(out->rope_pairs, 1, e);
  KF_NEW(out->rope_index, w->rope / 2, e);
  KF_NEW(out->lists, 2 * (w->rope / 2), e);
  out->rope_pairs[0] = w->rope / 2;
  for (int k = 0; k < w->rope / 2; k++) out->rope_index[k] = k;
  *b = *a;
  b->kind = KF_LATENT;
  b->kv_heads = w->kv_heads;
  b->d_qk = w->nope + w->rope;
  b->scale = (float)(1 / sqrt(b->d_qk));
  b->rope_heads = 1;
  b->rope_pairs = out->rope_pairs;
  b->rope_index = out->rope_index;
  b->kv_a_bias = a->k_bias && w->rope > 0;
  b->kv_b_bias = a->k_bias || a->v_bias;
  b->kv_a_norm = latent_norm;
  b->latent_eps = 1e-6f;
  shape_rope(w, &b->rope, out->lists);
  KF_TRY(map_kv(w, out, e));
  b->rank = w->rank;
  if (w->p->value[Q_RANK].choice == Q_PARITY && !w->q_rank && !by_energy(w->p, Q_ENERGY, w->layer)) {
    w->q_rank = (int)smaller(parity(w->p, w->layer, w->rank), smaller((int64_t)a->heads * a->d_qk, w->hidden));
    if (w->q_rank < 1)
      return kf_fail(e, KF_ERROR_INPUT, "q_rank=parity: layer %d has more numbers than before with any query rank", w->layer);
  }
  KF_TRY(map_query(w, out, e));
  b->q_rank = w->q_rank;
  b->q_a_norm = latent_norm && w->q_rank > 0;
  if (b->kv_a_norm) KF_TRY(add_ones(out, "kv_a_layernorm.weight", w->rank, e));
  if (b->q_a_norm) KF_TRY(add_ones(out, "q_a_layernorm.weight", w->q_rank, e));
  if (!a->qk_norm) return KF_OK;
  KF_TRY(map_head_norm(w, "q_norm.weight", out, e));
  return map_head_norm(w, "k_norm.weight", out, e);
}

kf_status kf_xecomla_map(const kf_plan *p, void *session, int layer, kf_mapped *out, kf_error *e) {
  (void)session;
  work w = {.p = p,
            .a = &p->source->layer[layer].attention,
            .layer = layer,
            .nope = nope_rows(p, layer),
            .rope = rope_rows(p, layer),
            .rank = p->rank[layer],
            .q_rank = p->q_rank[layer],
            .kv_heads = latent_heads(p, layer),
            .hidden = p->source->hidden};
  *out = (kf_mapped){0};
  kf_status s = assemble(&w, out, e);
  free(w.rows);
  if (s != KF_OK) kf_mapped_free(out);
  return s;
}
