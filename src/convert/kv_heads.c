#include "convert/kv_heads.h"

#include <complex.h>
#include <stdlib.h>
#include <string.h>

#include "convert/calibrator.h"
#include "linalg/linalg.h"

/* ---------------------------------------------------------------------------------------------- settings */

enum { KV_HEADS };

const kf_key kf_kv_heads_keys[] = {
    [KV_HEADS] = {"kv_heads", KF_TAKES_INTEGER, NULL, 1, 65536, NULL},
    {NULL, 0, NULL, 0, 0, NULL},
};

kf_status kf_kv_heads_resolve(kf_plan *p, kf_error *e) {
  const kf_config *c = p->source;
  const kf_value *given = &p->value[KV_HEADS];
  int64_t each = 2 * (int64_t)c->head_dim, wanted = given->given ? given->integer : kf_plan_budget(p, 0) / each;
  if (given->given && p->budget.given) return kf_fail(e, KF_ERROR_USAGE, "give a cache budget or kv_heads, not both");
  p->needs_text = true;
  KF_TRY(kf_plan_layers(p, "all", e));
  KF_TRY(kf_projections_check(p, e));
  if (given->given && (wanted > c->kv_heads || c->kv_heads % wanted))
    return kf_fail(e, KF_ERROR_INPUT, "kv_heads=%lld does not divide the source's %d KV heads", (long long)wanted, c->kv_heads);
  if (wanted < 1)
    return kf_fail(e, KF_ERROR_INPUT, "a budget of %lld elements a token is too small: one KV head takes %lld",
                   (long long)kf_plan_budget(p, 0), (long long)each);
  wanted = wanted < c->kv_heads ? wanted : c->kv_heads;
  while (c->kv_heads % wanted) wanted--;
  if (!given->given)
    kf_note(p->hooks, "%lld of %d KV heads are kept: %lld elements a token and layer", (long long)wanted, c->kv_heads,
            (long long)(wanted * each));
  p->kv_heads = (int)wanted;
  json_object_set_new(p->settings, "kv_heads", json_integer(wanted));
  return KF_OK;
}

/* ---------------------------------------------------------------------------------------------- one layer */

/* `heads` source heads of n numbers become one, for each of `groups` groups. */
typedef struct merge {
  int64_t heads, n, groups, width;
  double *expand; /* [groups, heads n, n]: old heads ~ expand new head */
} merge;

/* The leading n directions of each group's second moment. a: [groups heads n, width] */
static kf_status merge_freely(merge *m, const double *a, const double *moment, kf_error *e) {
  int64_t wide = m->heads * m->n;
  double *own = kf_alloc((size_t)(wide * wide), sizeof *own, e), *energy = kf_alloc((size_t)wide, sizeof *energy, e);
  kf_status s = own && energy ? KF_OK : KF_ERROR_MEMORY;
  for (int64_t g = 0; g < m->groups && s == KF_OK; g++) {
    s = kf_projected_moment(a + g * wide * m->width, wide, m->width, moment, own, e);
    if (s == KF_OK) s = kf_eigh(own, wide, energy, e);
    for (int64_t i = 0; i < wide && s == KF_OK; i++)
      for (int64_t j = 0; j < m->n; j++) m->expand[(g * wide + i) * m->n + j] = own[j * wide + i];
  }
  free(own);
  free(energy);
  return s;
}

/* E[k_f k_f^H] over a group's heads from the moment of the real rows. key: [heads n, heads n] */
static void pair_moment(const merge *m, const double *key, int64_t f, double complex *out) {
  int64_t half = m->n / 2, wide = m->heads * m->n;
  for (int64_t g = 0; g < m->heads; g++)
    for (int64_t h = 0; h < m->heads; h++) {
      int64_t re = g * m->n + f, im = re + half, other_re = h * m->n + f, other_im = other_re + half;
      out[g * m->heads + h] =
          CMPLX(key[re * wide + other_re] + key[im * wide + other_im], key[im * wide + other_re] - key[re * wide + other_im]);
    }
}

/* The leading complex direction of each group's pairs f, as real rows (re, im) of every head. */
static kf_status merge_pairs(merge *m, const double *k, const double *moment, kf_error *e) {
  int64_t wide = m->heads * m->n, half = m->n / 2, n = m->n;
  double *key = kf_alloc((size_t)(wide * wide), sizeof *key, e), *energy = kf_alloc((size_t)m->heads, sizeof *energy, e);
  double complex *own = kf_alloc((size_t)(m->heads * m->heads), sizeof *own, e);
  kf_status s = key && energy && own ? KF_OK : KF_ERROR_MEMORY;
  for (int64_t g = 0; g < m->groups && s == KF_OK; g++) {
    s = kf_projected_moment(k + g * wide * m->width, wide, m->width, moment, key, e);
    for (int64_t f = 0; f < half && s == KF_OK; f++) {
      pair_moment(m, key, f, own);
      s = kf_eigh_complex(own, m->heads, energy, e);
      for (int64_t h = 0; h < m->heads && s == KF_OK; h++) {
        double *re = m->expand + (g * wide + h * n + f) * n, *im = re + half * n;
        re[f] = im[half + f] = creal(own[h]);
        re[half + f] = -(im[f] = cimag(own[h]));
      }
    }
  }
  free(key);
  free(energy);
  free(own);
  return s;
}

static kf_status merge_create(merge *m, int64_t source_heads, int64_t groups, int64_t n, int64_t width, kf_error *e) {
  *m = (merge){.heads = source_heads / groups, .n = n, .groups = groups, .width = width};
  KF_NEW(m->expand, source_heads * n * n, e);
  return KF_OK;
}

/* The new heads: expand^T of the old ones (its columns are orthonormal). */
static kf_status map_merged(const merge *m, const double *a, const char *weight, const char *bias, bool has_bias, kf_mapped *out,
                            kf_error *e) {
  int64_t wide = m->heads * m->n;
  double *to;
  KF_NEW(to, m->groups * m->n * m->width, e);
  for (int64_t g = 0; g < m->groups; g++)
    kf_gemm(true, false, m->n, m->width, wide, 1, m->expand + g * wide * m->n, a + g * wide * m->width, 0,
            to + g * m->n * m->width);
  kf_status s = kf_mapped_affine(out, weight, bias, has_bias, to, m->groups * m->n, m->width - 1, m->width, e);
  free(to);
  return s;
}

/* q . k_g = q . (expand_g k') = (expand_g^T q) . k' */
static kf_status map_query(const merge *m, const kf_projections *p, kf_mapped *out, kf_error *e) {
  int64_t n = m->n, share = p->a->heads / p->a->kv_heads;
  double *to;
  KF_NEW(to, p->a->heads * n * p->width, e);
  for (int64_t h = 0; h < p->a->heads; h++)
    kf_gemm(true, false, n, p->width, n, 1, m->expand + h / share * n * n, p->q + h * n * p->width, 0, to + h * n * p->width);
  kf_status s =
      kf_mapped_affine(out, "q_proj.weight", "q_proj.bias", p->a->q_bias, to, p->a->heads * n, p->width - 1, p->width, e);
  free(to);
  return s;
}

/* W_o,h' = W_o,h expand_g. o: [hidden, heads n] */
static kf_status map_output(const merge *m, const kf_projections *p, const float *o, kf_mapped *out, kf_error *e) {
  int64_t n = m->n, hidden = p->width - 1, wide = p->a->heads * n, share = p->a->heads / p->a->kv_heads;
  double *block = kf_alloc((size_t)(2 * hidden * n), sizeof *block, e), *product = block ? block + hidden * n : NULL;
  float *to = block ? kf_mapped_add(out, "o_proj.weight", hidden, wide, e) : NULL;
  for (int64_t h = 0; to && h < p->a->heads; h++) {
    for (int64_t i = 0; i < hidden * n; i++) block[i] = o[i / n * wide + h * n + i % n];
    kf_gemm(false, false, hidden, n, n, 1, block, m->expand + h / share * n * n, 0, product);
    for (int64_t i = 0; i < hidden * n; i++) to[i / n * wide + h * n + i % n] = (float)product[i];
  }
  free(block);
  return to ? KF_OK : KF_ERROR_MEMORY;
}

static kf_status merge_layer(const kf_projections *p, const float *o, const double *moment, merge *key, merge *value,
                             kf_mapped *out, kf_error *e) {
  const kf_attention_config *a = p->a;
  KF_TRY(a->rope_pairs[0] ? merge_pairs(key, p->k, moment, e) : merge_freely(key, p->k, moment, e));
  KF_TRY(merge_freely(value, p->v, moment, e));
  KF_TRY(map_query(key, p, out, e));
  KF_TRY(map_merged(key, p->k, "k_proj.weight", "k_proj.bias", a->k_bias, out, e));
  KF_TRY(map_merged(value, p->v, "v_proj.weight", "v_proj.bias", a->v_bias, out, e));
  return map_output(value, p, o, out, e);
}

kf_status kf_kv_heads_merge(const kf_projections *p, const float *o, const double *moment, int kv_heads, kf_mapped *out,
                            kf_error *e) {
  const kf_attention_config *a = p->a;
  merge key = {0}, value = {0};
  *out = (kf_mapped){.attention = *a};
  out->attention.kv_heads = out->attention.rope_heads = kv_heads; /* all of a grouped layer's heads have the same pairs */
  kf_status s = merge_create(&key, a->kv_heads, kv_heads, a->d_qk, p->width, e);
  if (s == KF_OK) s = merge_create(&value, a->kv_heads, kv_heads, a->d_v, p->width, e);
  if (s == KF_OK) s = merge_layer(p, o, moment, &key, &value, out, e);
  free(key.expand);
  free(value.expand);
  if (s != KF_OK) kf_mapped_free(out);
  return s;
}

/* ---------------------------------------------------------------------------------------------- the session */

typedef struct session {
  kf_calibrator *c;
  float *x; /* hidden states that enter layer `next` */
  double *moment;
  int next;
} session;

void kf_kv_heads_close(void *opaque) {
  session *t = opaque;
  if (!t) return;
  kf_calibrator_free(t->c);
  free(t->x);
  free(t->moment);
  free(t);
}

kf_status kf_kv_heads_open(const kf_plan *p, const kf_corpus *corpus, void **out, kf_error *e) {
  int64_t width = p->source->hidden + 1;
  session *t;
  KF_NEW(t, 1, e);
  kf_status s = kf_calibrator_create(p, corpus, &t->c, e);
  if (s == KF_OK) s = kf_calibrator_begin(t->c, false, &t->x, e);
  if (s == KF_OK) s = (t->moment = kf_alloc((size_t)(width * width), sizeof *t->moment, e)) ? KF_OK : KF_ERROR_MEMORY;
  if (s != KF_OK)
    kf_kv_heads_close(t);
  else
    *out = t;
  return s;
}

kf_status kf_kv_heads_map(const kf_plan *p, void *opaque, int layer, kf_mapped *out, kf_error *e) {
  const kf_attention_config *a = &p->source->layer[layer].attention;
  session *t = opaque;
  kf_projections q = {0};
  float *o = NULL, *bias = NULL;
  kf_status s;
  *out = (kf_mapped){0};
  for (; t->next < layer; t->next++) {
    KF_TRY(kf_calibrator_load(t->c, t->next, e));
    KF_TRY(kf_calibrator_forward(t->c, false, NULL, t->x, e));
  }
  KF_TRY(kf_calibrator_load(t->c, layer, e));
  KF_TRY(kf_calibrator_moment(t->c, t->x, t->moment, e));
  KF_GO(kf_projections_read(p->weights, layer, &q, e));
  KF_GO(kf_weights_readf(p->weights, q.width - 1, (int64_t)a->heads * a->d_v, &o, e, "model.layers.%d.self_attn.o_proj.weight",
                         layer));
  KF_GO(kf_kv_heads_merge(&q, o, t->moment, p->kv_heads, out, e));
  if (a->o_bias) {
    KF_GO(kf_weights_readf(p->weights, q.width - 1, 1, &bias, e, "model.layers.%d.self_attn.o_proj.bias", layer));
    float *to = kf_mapped_add(out, "o_proj.bias", q.width - 1, 0, e);
    if (!to) KF_GO(KF_ERROR_MEMORY);
    memcpy(to, bias, (size_t)(q.width - 1) * sizeof *to);
  }
done:
  free(o);
  free(bias);
  kf_projections_free(&q);
  if (s != KF_OK) kf_mapped_free(out);
  return s;
}
