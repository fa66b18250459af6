/* What the graph can express of a converted model, and the one geometry of its layers. */
#include <math.h>
#include <stdlib.h>

#include "export/stock.h"

enum { PADDED_PAIRS = 32 }; /* a rope key of 64, which kernels with latents of 256 and 512 are made for */

#define KVFOLD_CAN "kvfold runs a converted directory as it is (kvfold generate)"

/* ------------------------------------------------------------------------------------------------ one layer */

static kf_status check_norms(const char *path, const kf_config *c, int layer, kf_error *e) {
  if (!c->layer[layer].attention.qk_norm) return KF_OK;
  return kf_fail(e, KF_ERROR_INPUT,
                 "%s: layer %d normalises the heads of queries and keys, which DeepSeek's graph does not; fold does without, "
                 "and " KVFOLD_CAN,
                 path, layer);
}

/* What every conversion leaves in a layer. */
static kf_status check_traits(const char *path, const kf_config *c, int layer, kf_error *e) {
  const kf_attention_config *a = &c->layer[layer].attention;
  if (a->q_bias || a->k_bias || a->v_bias || a->q_a_bias || a->kv_a_bias || a->kv_b_bias || a->o_bias || c->layer[layer].mlp_bias)
    return kf_fail(
        e, KF_ERROR_INPUT,
        "%s: layer %d has biases, which DeepSeek's graph does not have (Transformers' has some, but not these); " KVFOLD_CAN,
        path, layer);
  if (a->window && a->window < c->context)
    return kf_fail(e, KF_ERROR_INPUT,
                   "%s: layer %d sees a sliding window of %lld tokens, which DeepSeek's graph does not have; " KVFOLD_CAN, path,
                   layer, (long long)a->window);
  return KF_OK;
}

static kf_status check_layer(const char *path, const kf_config *c, int layer, kf_error *e) {
  const kf_attention_config *a = &c->layer[layer].attention;
  if (a->kind != KF_LATENT)
    return kf_fail(e, KF_ERROR_INPUT,
                   "%s: layer %d keeps grouped attention, and DeepSeek's graph has latents in every layer; convert all layers, "
                   "or " KVFOLD_CAN,
                   path, layer);
  if (a->rope_heads != 1)
    return kf_fail(e, KF_ERROR_INPUT,
                   "%s: layer %d has a RoPE key for each head (%s), and DeepSeek's graph shares one; convert with a method that "
                   "shares it (x-ecomla, fold), or " KVFOLD_CAN,
                   path, layer, c->method);
  KF_TRY(check_norms(path, c, layer, e));
  KF_TRY(check_traits(path, c, layer, e));
  if (a->q_a_norm)
    return kf_fail(e, KF_ERROR_INPUT,
                   "%s: layer %d normalises a low-rank query, which is not exported; convert with q_rank=full, or " KVFOLD_CAN,
                   path, layer);
  return KF_OK;
}

/* ------------------------------------------------------------------------------------------------ rotation */

static bool same_table(const kf_rope *a, const kf_rope *b) {
  return a->type == b->type && a->dim == b->dim && a->theta == b->theta && a->factor == b->factor &&
         a->low_freq_factor == b->low_freq_factor && a->high_freq_factor == b->high_freq_factor && a->beta_fast == b->beta_fast &&
         a->beta_slow == b->beta_slow && a->original_context == b->original_context && a->mscale == b->mscale &&
         a->mscale_all_dim == b->mscale_all_dim && a->attention_factor == b->attention_factor && a->truncate == b->truncate;
}

static kf_status check_scaling(const char *path, const kf_rope *r, bool gguf, int layer, kf_error *e) {
  if (r->type == KF_ROPE_LINEAR && !gguf)
    return kf_fail(
        e, KF_ERROR_INPUT,
        "%s: layer %d has RoPE scaling of type 'linear', which vLLM and SGLang take for YaRN in DeepSeek's graph; --format "
        "gguf expresses it, and " KVFOLD_CAN,
        path, layer);
  if (r->type == KF_ROPE_DYNAMIC || r->type == KF_ROPE_LONGROPE)
    return kf_fail(
        e, KF_ERROR_INPUT,
        "%s: layer %d has RoPE scaling of type '%s', which stock engines do not apply in DeepSeek's graph; " KVFOLD_CAN, path,
        layer, kf_rope_type_name(r->type));
  return KF_OK;
}

kf_status kf_stock_check_source(const char *path, const kf_config *c, bool norms_stay, bool gguf, kf_error *e) {
  for (int i = 0; i < c->layers; i++) {
    if (norms_stay) KF_TRY(check_norms(path, c, i, e));
    KF_TRY(check_traits(path, c, i, e));
    KF_TRY(check_scaling(path, &c->layer[i].attention.rope, gguf, i, e));
  }
  return KF_OK;
}

static int common_divisor(int a, int b) {
  while (b) {
    int rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

/* One layer's pairs against the table of those before it, *first (NULL: none of them rotates). */
static kf_status join_table(const char *path, const kf_config *c, int layer, const kf_rope **first, kf_stock *s, kf_error *e) {
  const kf_attention_config *a = &c->layer[layer].attention;
  if (!a->rope_pairs[0]) return KF_OK;
  KF_TRY(check_scaling(path, &a->rope, s->gguf, layer, e));
  if (!*first) {
    *first = &a->rope;
    s->stride = a->rope.dim / 2;
  }
  if (!same_table(&a->rope, *first))
    return kf_fail(e, KF_ERROR_INPUT,
                   "%s: layer %d rotates by another table of frequencies than the layers before it, and DeepSeek's graph has "
                   "one; " KVFOLD_CAN,
                   path, layer);
  for (int i = 0; i < a->rope_pairs[0]; i++) {
    s->stride = common_divisor(s->stride, a->rope_index[i]);
    if (a->rope_index[i] > s->last) s->last = a->rope_index[i];
    for (int k = 0; k < i; k++)
      if (a->rope_index[k] == a->rope_index[i])
        return kf_fail(
            e, KF_ERROR_INPUT,
            "%s: layer %d rotates two pairs by the same frequency (pair %d of the source), and DeepSeek's graph has each once; "
            "convert with x-ecomla or with fewer rope_pairs, or " KVFOLD_CAN,
            path, layer, (int)a->rope_index[i]);
  }
  return KF_OK;
}

/* The source's table over `dim` numbers, as the engines know it. llama3's scaling is YaRN's with its ends at the same numbers of
 * turns, and a ramp over the pairs in place of one over the wavelengths. */
static kf_rope engines_table(const kf_rope *from, int dim) {
  kf_rope to = *from;
  to.dim = dim;
  if (from->type == KF_ROPE_LLAMA3) {
    to.type = KF_ROPE_YARN;
    to.beta_fast = from->high_freq_factor;
    to.beta_slow = from->low_freq_factor;
  }
  to.mscale = to.mscale_all_dim = 0;
  to.attention_factor = 1; /* q's rope rows take it */
  to.truncate = true;
  return to;
}

/* What the engines' table does to the frequencies in use, and the source's factor on cosine and sine. */
static kf_status compare_tables(const kf_rope *from, const kf_hooks *hooks, kf_stock *s, kf_error *e) {
  int pairs = from->dim / 2, differ = 0, all = 0;
  double factor, one, worst = 1;
  double *source = kf_alloc((size_t)pairs + (size_t)s->rope.dim / 2, sizeof *source, e);
  if (!source) return KF_ERROR_MEMORY;
  double *target = source + pairs;
  kf_rope_frequencies(&s->rope, 0, target, &one);
  kf_rope_frequencies(from, 0, source, &factor);
  for (int k = 0; k <= s->last; k += s->stride, all++) {
    double ratio = source[k] / target[k / s->stride * s->spread];
    if (fabs(ratio - 1) > 1e-5) differ++;
    worst = fmax(worst, fmax(ratio, 1 / ratio));
  }
  free(source);
  s->rope_gain = factor * factor;
  if (differ)
    kf_note(hooks,
            "RoPE scaling of type '%s' is written as YaRN: %d of %d frequencies differ, by a factor of %.2f at most, and the "
            "outputs by what that does",
            kf_rope_type_name(from->type), differ, all, worst);
  return KF_OK;
}

static void note_betas(const kf_stock *s, const kf_hooks *hooks) {
  if (s->gguf && s->rope.type == KF_ROPE_YARN && (s->rope.beta_fast != 32 || s->rope.beta_slow != 1))
    kf_note(
        hooks,
        "llama.cpp does not read the ends of YaRN's ramp from a deepseek2 file: give it --yarn-beta-fast %g --yarn-beta-slow %g",
        s->rope.beta_fast, s->rope.beta_slow);
}

/* The shortest table that has all layers' frequencies, or the 32 of the padded shapes. from: the layers'; NULL: none rotates. */
static kf_status settle_table(const char *path, const kf_rope *from, const kf_stock_target *t, kf_stock *s, kf_error *e) {
  static const kf_rope none = {.dim = 2, .theta = 10000};
  if (!from) from = &none;
  /* theta^(-k / F) at k = 0, stride, 2 stride, ... is a table of any length by itself, with another theta; a scaled one has to
   * keep its theta, which the ramp of the scaling depends on */
  bool whole = (from->type != KF_ROPE_DEFAULT && from->type != KF_ROPE_LINEAR) ||
               (t->pad && PADDED_PAIRS % (from->dim / 2 / s->stride) == 0);
  int slots = whole ? from->dim / 2 / s->stride : s->last / s->stride + 1, width = t->pad ? PADDED_PAIRS : slots;
  if (whole ? width % slots : width < slots)
    return kf_fail(e, KF_ERROR_INPUT,
                   "%s: the padded shapes have %d rotated pairs, and the model's frequencies make a table of %d; export it "
                   "without --pad, or convert with fewer rope_pairs",
                   path, width, slots);
  s->spread = whole ? width / slots : 1;
  s->rope = engines_table(from, 2 * width);
  if (!whole) s->rope.theta = pow(from->theta, 2.0 * width * s->stride / from->dim);
  /* llama.cpp's deepseek2 undoes a factor of YaRN's also where the scaling is linear and has none */
  s->score_gain = from->type == KF_ROPE_LINEAR ? pow(1 + 0.1 * log(from->factor), 2) : 1;
  note_betas(s, t->hooks);
  return compare_tables(from, t->hooks, s, e);
}

/* ------------------------------------------------------------------------------------------------ the plan */

kf_status kf_stock_plan(const char *path, const kf_config *c, const kf_weights *w, const kf_stock_target *t, kf_stock *out,
                        kf_error *e) {
  kf_stock s = {.config = c, .weights = w, .gguf = t->gguf, .stride = 1, .eps = t->eps != 0 ? t->eps : (double)c->eps};
  const kf_rope *table = NULL;
  if (!*c->method) return kf_fail(e, KF_ERROR_INPUT, "%s is not a model that kvfold converted (kvfold convert makes one)", path);
  s.head = !t->gguf || !c->tied;
  s.stream = sqrt(s.eps / (double)c->eps);
  s.v = c->layer[0].attention.d_v;
  for (int i = 0; i < c->layers; i++) {
    const kf_attention_config *a = &c->layer[i].attention;
    KF_TRY(check_layer(path, c, i, e));
    KF_TRY(join_table(path, c, i, &table, &s, e));
    if (a->d_v != s.v || c->layer[i].intermediate != c->layer[0].intermediate)
      return kf_fail(e, KF_ERROR_INPUT,
                     "%s: layers 0 and %d have different widths, and DeepSeek's graph has one for all; " KVFOLD_CAN, path, i);
    if (a->rank > s.rank) s.rank = a->rank;
    if (kf_attention_nope(a, 0) > s.nope) s.nope = kf_attention_nope(a, 0);
  }
  if (t->pad && t->pad < s.rank) return kf_fail(e, KF_ERROR_USAGE, "--pad %d is below the model's %d latents", t->pad, s.rank);
  if (t->pad) s.rank = t->pad;
  if (s.nope == 0) s.nope = 1; /* no engine takes none: a row of zeros */
  KF_TRY(settle_table(path, table, t, &s, e));
  *out = s;
  return KF_OK;
}
