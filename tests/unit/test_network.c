/* A whole step, in f32: loss and every parameter's gradient against an independent fp64 forward pass written from the
 * equations and its finite differences, for grouped and latent attention in every variation that a configuration can say. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/random.h"
#include "model/model.h"
#include "train/network.h"

static kf_device_kind kind = KF_DEVICE_CPU;

enum { HIDDEN = 24, HEADS = 4, FF = 20, VOCAB = 31, TOKENS = 20, DIM = 8, WIDE = 16 };

typedef struct variant {
  const char *name;
  bool latent;
  int kv_heads, rope_heads, d_qk, d_v, rank, q_rank, pairs[HEADS], window;
  bool q_bias, kv_a_bias, kv_b_bias, o_bias, qk_norm, latent_norm, tied;
} variant;

static const variant variants[] = {
    {"grouped", false, 2, 0, 8, 8, 0, 0, {0}, 0, 0, 0, 0, 0, 0, 0, 1},
    {"grouped, biases", false, 2, 0, 8, 8, 0, 0, {0}, 0, 1, 0, 0, 0, 0, 0, 0},
    {"grouped, q and k norms", false, 2, 0, 8, 8, 0, 0, {0}, 0, 0, 0, 0, 0, 1, 0, 1},
    {"grouped, window", false, 1, 0, 8, 8, 0, 0, {0}, 5, 0, 0, 0, 0, 0, 0, 0},
    {"latent, per-head rope keys", true, 2, 2, 8, 8, 10, 0, {2, 2}, 0, 0, 0, 0, 0, 0, 0, 1},
    {"latent, shared rope key", true, 2, 1, 6, 5, 7, 0, {1}, 0, 0, 0, 0, 0, 0, 0, 0},
    {"latent, a KV head a query head", true, 4, 1, 7, 8, 9, 0, {2}, 0, 0, 0, 0, 0, 0, 0, 0},
    {"latent, ragged pairs, window", true, 2, 2, 8, 8, 11, 0, {3, 0}, 6, 0, 0, 0, 0, 0, 0, 0},
    {"latent, low-rank query, latent norms", true, 2, 1, 8, 8, 10, 9, {2}, 0, 0, 0, 0, 0, 0, 1, 0},
    {"latent, biases", true, 2, 2, 8, 8, 10, 0, {1, 2}, 0, 1, 1, 1, 1, 0, 0, 1},
    {"latent, norms and biases", true, 2, 2, 8, 8, 10, 0, {2, 1}, 0, 1, 1, 1, 0, 1, 0, 0},
    {"latent, norms, shared rope key", true, 2, 1, 8, 8, 10, 0, {2}, 0, 0, 0, 0, 0, 1, 0, 0},
};

static const kf_extent sequences[] = {{0, 13}, {13, 1}, {14, 6}};

static json_t *layer_json(const variant *v) {
  static const int32_t spread[] = {3, 0, 2, 1};
  json_t *pairs = json_array(), *index = json_array();
  for (int g = 0; g < v->rope_heads; g++) {
    json_array_append_new(pairs, json_integer(v->pairs[g]));
    for (int i = 0; i < v->pairs[g]; i++) json_array_append_new(index, json_integer(spread[(i + g) % 4]));
  }
  json_t *o =
      json_pack("{s:s,s:i,s:i,s:i,s:i,s:i,s:i,s:o,s:o,s:{s:i,s:f}}", "attention", "latent", "kv_heads", v->kv_heads,
                "qk_head_dim", v->d_qk, "v_head_dim", v->d_v, "kv_lora_rank", v->rank, "q_lora_rank", v->q_rank, "rope_heads",
                v->rope_heads, "rope_pairs", pairs, "rope_index", index, "rope", "dim", DIM, "theta", 100.0);
  const struct {
    const char *key;
    bool value;
  } flags[] = {{"q_bias", v->q_bias}, {"kv_a_bias", v->kv_a_bias}, {"kv_b_bias", v->kv_b_bias},
               {"o_bias", v->o_bias}, {"qk_norm", v->qk_norm},     {"latent_norm", v->latent_norm}};
  for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) json_object_set_new(o, flags[i].key, json_boolean(flags[i].value));
  return o;
}

static void make_config(const variant *v, kf_config *c, json_t **json) {
  const char *type = v->latent ? "kvfold" : v->qk_norm ? "qwen3" : v->q_bias ? "qwen2" : "mistral";
  *json = json_pack("{s:s,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:f,s:f,s:b,s:i,s:b}", "model_type", type, "hidden_size", HIDDEN,
                    "num_attention_heads", HEADS, "num_key_value_heads", v->latent ? 2 : v->kv_heads, "head_dim", 8,
                    "num_hidden_layers", 2, "intermediate_size", FF, "vocab_size", VOCAB, "max_position_embeddings", 64,
                    "rms_norm_eps", 1e-5, "rope_theta", 100.0, "tie_word_embeddings", v->tied, "sliding_window",
                    v->window ? v->window : 1000, "use_sliding_window", 1);
  if (v->latent)
    json_object_set_new(*json, "kvfold",
                        json_pack("{s:i,s:s,s:s,s:[o,o]}", "format", 1, "source_model_type", "mistral", "method", "test",
                                  "layers", layer_json(v), layer_json(v)));
  kf_error e = {0};
  if (kf_config_from_json("config.json", *json, NULL, c, &e) != KF_OK) fail_msg("%s: %s", v->name, e.message);
}

/* ---------------------------------------------------------------------------------------------- the equations, in fp64 */

typedef struct oracle {
  const kf_parameters *p;
  const double *value; /* laid out as the parameters */
  const variant *v;
  const kf_config *c;
  int layer;
} oracle;

/* NULL: the model has none of that name. */
static const double *get(const oracle *o, const char *name) {
  char full[256];
  int prefix = o->layer < 0 ? 0 : snprintf(full, sizeof full, "model.layers.%d.", o->layer);
  snprintf(full + prefix, sizeof full - (size_t)prefix, "%.200s", name);
  const kf_parameter *p = kf_parameters_find(o->p, full);
  return p ? o->value + p->at : NULL;
}

static void apply(const oracle *o, const char *name, int n, int k, const double *x, double *y) {
  char full[128];
  snprintf(full, sizeof full, "%s.weight", name);
  const double *w = get(o, full);
  snprintf(full, sizeof full, "%s.bias", name);
  const double *b = get(o, full);
  assert_non_null(w);
  for (int i = 0; i < n; i++) {
    y[i] = b ? b[i] : 0;
    for (int j = 0; j < k; j++) y[i] += w[i * k + j] * x[j];
  }
}

static void rms(double *x, int n, const double *w, double eps) {
  double sum = 0;
  for (int i = 0; i < n; i++) sum += x[i] * x[i];
  for (int i = 0; i < n; i++) x[i] = x[i] / sqrt(sum / n + eps) * w[i];
}

static void rotate(double *x, int pairs, const int32_t *index, int position) {
  for (int i = 0; i < pairs; i++) {
    double angle = position * pow(100, -2.0 * (index ? index[i] : i) / DIM), re = x[i], im = x[pairs + i];
    x[i] = re * cos(angle) - im * sin(angle);
    x[pairs + i] = im * cos(angle) + re * sin(angle);
  }
}

typedef struct heads {
  double q[TOKENS][HEADS][WIDE], k[TOKENS][HEADS][WIDE], v[TOKENS][HEADS][WIDE];
} heads;

static void grouped_heads(const oracle *o, const double *h, int position, double q[HEADS][WIDE], double k[HEADS][WIDE],
                          double v[HEADS][WIDE]) {
  double flat[64];
  const double *q_norm = get(o, "self_attn.q_norm.weight"), *k_norm = get(o, "self_attn.k_norm.weight");
  apply(o, "self_attn.q_proj", HEADS * 8, HIDDEN, h, flat);
  for (int i = 0; i < HEADS; i++) {
    memcpy(q[i], flat + i * 8, 8 * sizeof *flat);
    if (q_norm) rms(q[i], 8, q_norm, 1e-5);
    rotate(q[i], 4, NULL, position);
  }
  apply(o, "self_attn.k_proj", o->v->kv_heads * 8, HIDDEN, h, flat);
  for (int g = 0; g < o->v->kv_heads; g++) {
    memcpy(k[g], flat + g * 8, 8 * sizeof *flat);
    if (k_norm) rms(k[g], 8, k_norm, 1e-5);
    rotate(k[g], 4, NULL, position);
  }
  apply(o, "self_attn.v_proj", o->v->kv_heads * 8, HIDDEN, h, flat);
  for (int g = 0; g < o->v->kv_heads; g++) memcpy(v[g], flat + g * 8, 8 * sizeof *flat);
}

static void latent_heads(const oracle *o, const double *h, int position, double q[HEADS][WIDE], double k[HEADS][WIDE],
                         double v[HEADS][WIDE]) {
  const variant *t = o->v;
  const kf_attention_config *a = &o->c->layer[o->layer].attention;
  double low[64], row[64], kv[128], flat[HEADS * WIDE];
  const double *q_norm = get(o, "self_attn.q_norm.weight"), *k_norm = get(o, "self_attn.k_norm.weight");
  int rope_width = kf_attention_rope_width(a), group = HEADS / t->kv_heads;
  if (t->q_rank) {
    apply(o, "self_attn.q_a_proj", t->q_rank, HIDDEN, h, low);
    if (t->latent_norm) rms(low, t->q_rank, get(o, "self_attn.q_a_layernorm.weight"), 1e-6);
  }
  apply(o, t->q_rank ? "self_attn.q_b_proj" : "self_attn.q_proj", HEADS * t->d_qk, t->q_rank ? t->q_rank : HIDDEN,
        t->q_rank ? low : h, flat);
  apply(o, "self_attn.kv_a_proj", t->rank + rope_width, HIDDEN, h, row);
  if (t->latent_norm) rms(row, t->rank, get(o, "self_attn.kv_a_layernorm.weight"), 1e-6);
  apply(o, "self_attn.kv_b_proj", kf_attention_kv_b_rows(a), t->rank, row, kv);
  double *key = kv, *rope = row + t->rank;
  for (int g = 0; g < t->kv_heads; g++) {
    int own = t->rope_heads == 1 ? 0 : g, pairs = t->pairs[own], nope = t->d_qk - 2 * pairs;
    const int32_t *index = a->rope_index + (own ? t->pairs[0] : 0);
    double weight[WIDE] = {0};
    for (int j = 0; k_norm && j < t->d_qk; j++) weight[j] = k_norm[(j >= nope ? own : g) * t->d_qk + j];
    memcpy(k[g], key, (size_t)nope * sizeof *key);
    memcpy(k[g] + nope, rope, 2 * (size_t)pairs * sizeof *key);
    memcpy(v[g], key + nope, (size_t)t->d_v * sizeof *key);
    key += nope + t->d_v;
    if (t->rope_heads > 1) rope += 2 * pairs;
    if (k_norm) rms(k[g], t->d_qk, weight, 1e-5);
    rotate(k[g] + nope, pairs, index, position);
    for (int i = g * group; i < (g + 1) * group; i++) {
      memcpy(q[i], flat + i * t->d_qk, (size_t)t->d_qk * sizeof *key);
      if (q_norm) rms(q[i], t->d_qk, q_norm + g * t->d_qk, 1e-5);
      rotate(q[i] + nope, pairs, index, position);
    }
  }
}

static void attention(const oracle *o, double h[TOKENS][HIDDEN], double out[TOKENS][HIDDEN]) {
  static heads z;
  const variant *v = o->v;
  for (size_t s = 0; s < sizeof sequences / sizeof *sequences; s++) {
    int start = (int)sequences[s].first, end = start + (int)sequences[s].count;
    for (int t = start; t < end; t++) (v->latent ? latent_heads : grouped_heads)(o, h[t], t - start, z.q[t], z.k[t], z.v[t]);
    for (int t = start; t < end; t++) {
      double wide[HEADS * WIDE] = {0};
      for (int i = 0; i < HEADS; i++) {
        int g = i / (HEADS / v->kv_heads), first = v->window && t - start >= v->window ? t - v->window + 1 : start;
        double p[TOKENS], sum = 0;
        for (int key = first; key <= t; key++) {
          double dot = 0;
          for (int j = 0; j < v->d_qk; j++) dot += z.q[t][i][j] * z.k[key][g][j];
          sum += p[key] = exp(dot / sqrt(v->d_qk));
        }
        for (int key = first; key <= t; key++)
          for (int j = 0; j < v->d_v; j++) wide[i * v->d_v + j] += p[key] / sum * z.v[key][g][j];
      }
      apply(o, "self_attn.o_proj", HIDDEN, HEADS * v->d_v, wide, out[t]);
    }
  }
}

typedef struct problem {
  int32_t ids[TOKENS], target[TOKENS];
  float weight[TOKENS], teacher[TOKENS * VOCAB];
  kf_softmax_loss loss;
} problem;

static double log_sum(const double *x) {
  double sum = 0;
  for (int j = 0; j < VOCAB; j++) sum += exp(x[j]);
  return log(sum);
}

/* Weighted sum of 0.4 x cross-entropy and 0.6 x KL(teacher || model). */
static double loss_of(const oracle *base, const problem *q) {
  static double x[TOKENS][HIDDEN], h[TOKENS][HIDDEN], y[TOKENS][HIDDEN];
  oracle o = *base;
  o.layer = -1;
  const double *embedding = get(&o, "model.embed_tokens.weight");
  for (int t = 0; t < TOKENS; t++) memcpy(x[t], embedding + q->ids[t] * HIDDEN, sizeof x[t]);
  for (o.layer = 0; o.layer < 2; o.layer++) {
    memcpy(h, x, sizeof h);
    for (int t = 0; t < TOKENS; t++) rms(h[t], HIDDEN, get(&o, "input_layernorm.weight"), 1e-5);
    attention(&o, h, y);
    for (int t = 0; t < TOKENS; t++) {
      double gate[FF], up[FF], down[HIDDEN];
      for (int i = 0; i < HIDDEN; i++) h[t][i] = x[t][i] += y[t][i];
      rms(h[t], HIDDEN, get(&o, "post_attention_layernorm.weight"), 1e-5);
      apply(&o, "mlp.gate_proj", FF, HIDDEN, h[t], gate);
      apply(&o, "mlp.up_proj", FF, HIDDEN, h[t], up);
      for (int i = 0; i < FF; i++) gate[i] *= up[i] / (1 + exp(-gate[i]));
      apply(&o, "mlp.down_proj", HIDDEN, FF, gate, down);
      for (int i = 0; i < HIDDEN; i++) x[t][i] += down[i];
    }
  }
  o.layer = -1;
  double sum = 0;
  for (int t = 0; t < TOKENS; t++) {
    double logits[VOCAB], r[VOCAB], kl = 0;
    rms(x[t], HIDDEN, get(&o, "model.norm.weight"), 1e-5);
    apply(&o, o.v->tied ? "model.embed_tokens" : "lm_head", VOCAB, HIDDEN, x[t], logits);
    for (int j = 0; j < VOCAB; j++) r[j] = q->teacher[t * VOCAB + j];
    double zq = log_sum(logits), zp = log_sum(r);
    for (int j = 0; j < VOCAB; j++) kl += exp(r[j] - zp) * (r[j] - zp - logits[j] + zq);
    sum += (double)q->weight[t] * ((double)q->loss.ce * (zq - logits[q->target[t]]) + (double)q->loss.kl * kl);
  }
  return sum;
}

/* ---------------------------------------------------------------------------------------------- the tests */

static kf_status give_teacher(void *user, int64_t first, int64_t m, const float *student, float *logits, kf_error *e) {
  (void)student;
  (void)e;
  memcpy(logits, (const float *)user + first * VOCAB, (size_t)(m * VOCAB) * sizeof *logits);
  return KF_OK;
}

static void must(kf_status s, const kf_error *e) {
  if (s != KF_OK) fail_msg("%s", e->message);
}

/* A copy in the device's memory. */
static void *sent(kf_device *d, const void *from, size_t bytes) {
  kf_error e = {0};
  void *to = d->alloc(d, bytes, 1, &e);
  if (!to) fail_msg("%s", e.message);
  return memcpy(to, from, bytes);
}

static double step(kf_network *n, kf_parameters *p, const problem *q) {
  kf_error e = {0};
  kf_device *d = p->device;
  int32_t *ids = sent(d, q->ids, sizeof q->ids), *target = sent(d, q->target, sizeof q->target);
  float *weight = sent(d, q->weight, sizeof q->weight), *hidden;
  double none[TOKENS] = {0}, *nll = sent(d, none, sizeof none), *kl = sent(d, none, sizeof none), sum = 0;
  kf_tokens t = {ids, TOKENS, sequences, sizeof sequences / sizeof *sequences};
  kf_parameters_zero_gradient(p);
  must(kf_network_forward(n, &t, &hidden, &e), &e);
  must(kf_network_loss(n, &q->loss, hidden, TOKENS, target, weight, give_teacher, (void *)(uintptr_t)q->teacher, nll, kl, &e),
       &e);
  must(kf_network_backward(n, &t, hidden, &e), &e);
  for (int i = 0; i < TOKENS; i++) sum += (double)weight[i] * ((double)q->loss.ce * nll[i] + (double)q->loss.kl * kl[i]);
  void *own[] = {ids, target, weight, nll, kl};
  for (size_t i = 0; i < sizeof own / sizeof *own; i++) d->release(d, own[i]);
  return sum;
}

static void make_problem(problem *q, kf_random *r) {
  for (int i = 0; i < TOKENS; i++) {
    q->ids[i] = (i * 17 + 5) % VOCAB;
    q->target[i] = (i * 7 + 3) % VOCAB;
    q->weight[i] = i % 5 == 3 ? 0 : (float)(0.5 + kf_random_uniform(r));
  }
  for (int i = 0; i < TOKENS * VOCAB; i++) q->teacher[i] = (float)kf_random_normal(r);
  q->loss = (kf_softmax_loss){.ce = 0.4f, .kl = 0.6f, .temperature = 1};
}

static void randomise(kf_parameters *p, kf_random *r) {
  for (int i = 0; i < p->count; i++)
    for (int64_t j = 0; j < p->item[i].rows * p->item[i].columns; j++)
      p->value[p->item[i].at + j] = (float)((strstr(p->item[i].name, "norm") ? 1 : 0) + 0.3 * kf_random_normal(r));
  p->device->zero(p->device, p->first, p->total);
  p->device->zero(p->device, p->second, p->total);
  kf_parameters_round(p);
}

/* Along a random direction within each tensor. */
static void check_gradients(const oracle *o, const kf_parameters *p, const problem *q, double *value, kf_random *r) {
  const double size = 1e-5;
  double *along = malloc((size_t)p->total * sizeof *along);
  for (int i = 0; i < p->count; i++) {
    const kf_parameter *item = &p->item[i];
    double got = 0, terms = 0, want;
    for (int64_t j = item->at; j < item->at + item->rows * item->columns; j++) {
      along[j] = kf_random_normal(r);
      got += along[j] * p->gradient[j];
      terms += fabs(along[j] * p->gradient[j]);
      value[j] = p->value[j] + size * along[j];
    }
    want = loss_of(o, q);
    for (int64_t j = item->at; j < item->at + item->rows * item->columns; j++) value[j] = p->value[j] - size * along[j];
    want = (want - loss_of(o, q)) / (2 * size);
    for (int64_t j = item->at; j < item->at + item->rows * item->columns; j++) value[j] = p->value[j];
    assert_true(terms > 0);
    if (!(fabs(got - want) <= 1e-5 * terms))
      fail_msg("%s, %s: %.9g, by differences %.9g (terms %.3g)", o->v->name, item->name, got, want, terms);
  }
  free(along);
}

static void gradients(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) {
    kf_config c;
    json_t *json;
    kf_error e = {0};
    kf_device *d = NULL;
    kf_parameters *p = NULL;
    kf_network *n = NULL;
    kf_random r;
    problem q;
    kf_random_seed(&r, 3 + i);
    make_config(&variants[i], &c, &json);
    must(kf_device_open(kind, KF_COMPUTE_F32, 2, &d, &e), &e);
    must(kf_parameters_create(&c, d, &p, &e), &e);
    randomise(p, &r);
    make_problem(&q, &r);
    must(kf_network_create(&c, d, p, &n, &e), &e);
    double *value = malloc((size_t)p->total * sizeof *value);
    for (int64_t j = 0; j < p->total; j++) value[j] = p->value[j];
    oracle o = {p, value, &variants[i], &c, -1};
    double got = step(n, p, &q), want = loss_of(&o, &q);
    if (!(fabs(got - want) <= 1e-6 * fabs(want))) fail_msg("%s: loss %.9g, not %.9g", variants[i].name, got, want);
    check_gradients(&o, p, &q, value, &r);
    free(value);
    kf_network_free(n);
    kf_parameters_free(p);
    kf_device_close(d);
    kf_config_free(&c);
    json_decref(json);
  }
}

/* What is frozen keeps its values, and the others get the gradients that they have when everything is trained. */
static void freezing(void **state) {
  (void)state;
  kf_config c;
  json_t *json;
  kf_error e = {0};
  kf_device *d = NULL;
  kf_parameters *p = NULL;
  kf_network *n = NULL;
  kf_random r;
  problem q;
  kf_random_seed(&r, 9);
  make_config(&variants[4], &c, &json);
  must(kf_device_open(kind, KF_COMPUTE_F32, 1, &d, &e), &e);
  must(kf_parameters_create(&c, d, &p, &e), &e);
  randomise(p, &r);
  make_problem(&q, &r);
  must(kf_network_create(&c, d, p, &n, &e), &e);
  step(n, p, &q);
  float *all = malloc((size_t)p->total * sizeof *all), *before = malloc((size_t)p->total * sizeof *before);
  memcpy(all, p->gradient, (size_t)p->total * sizeof *all);
  memcpy(before, p->value, (size_t)p->total * sizeof *before);
  const char *train[] = {"self_attn", "norm.weight"}, *freeze[] = {"layers.1.*o_proj", "kv_b"};
  must(kf_parameters_choose(p, train, 2, freeze, 2, &e), &e);
  must(kf_network_bind(n, &e), &e);
  step(n, p, &q);
  kf_parameters_step(
      p, &(kf_adamw){
             .rate = 0.01f, .beta1 = 0.9f, .beta2 = 0.99f, .eps = 1e-8f, .scale = 1, .correction1 = 0.1f, .correction2 = 0.01f});
  assert_int_equal(kf_device_check(d, NULL), KF_OK);
  int trained = 0;
  for (int i = 0; i < p->count; i++) {
    const kf_parameter *item = &p->item[i];
    size_t bytes = (size_t)(item->rows * item->columns) * sizeof(float);
    assert_int_equal(memcmp(before + item->at, p->value + item->at, bytes) == 0, !item->trained);
    if (item->trained) assert_memory_equal(all + item->at, p->gradient + item->at, bytes);
    trained += item->trained;
    assert_int_equal(item->trained, (strstr(item->name, "self_attn") || strstr(item->name, "norm.weight")) &&
                                        !strstr(item->name, "layers.1.self_attn.o_proj") && !strstr(item->name, "kv_b"));
  }
  assert_true(trained > 3);
  const char *none[] = {"no_such_thing"}, *everything[] = {"*"};
  assert_int_equal(kf_parameters_choose(p, none, 1, NULL, 0, &e), KF_ERROR_USAGE);
  assert_non_null(strstr(e.message, "no_such_thing"));
  assert_int_equal(kf_parameters_choose(p, NULL, 0, everything, 1, &e), KF_ERROR_USAGE);
  free(all), free(before);
  kf_network_free(n);
  kf_parameters_free(p);
  kf_device_close(d);
  kf_config_free(&c);
  json_decref(json);
}

/* ---------------------------------------------------------------------------------------------- PyTorch's step */

static const float *fixture(const kf_safetensors *f, const char *prefix, const char *name, int64_t count) {
  char full[256];
  snprintf(full, sizeof full, "%s%s", prefix, name);
  const kf_view *v = kf_safetensors_find(f, full);
  if (!v || v->dtype != KF_F32 || (int64_t)v->bytes != 4 * count) fail_msg("no tensor %s of %d numbers", full, (int)count);
  float *data = malloc(v->bytes);
  return memcpy(data, v->data, v->bytes);
}

/* Largest difference against the tensor's largest number, or against `least` when that is above it. */
static void compare(const char *name, const char *tensor, const float *got, const float *want, int64_t n, double tolerance,
                    double least) {
  double worst = 0, size = least;
  for (int64_t i = 0; i < n; i++) {
    worst = fmax(worst, fabs((double)got[i] - (double)want[i]));
    size = fmax(size, fabs((double)want[i]));
  }
  if (!(worst <= tolerance * size)) fail_msg("%s, %s: off by %.3g of %.3g", name, tensor, worst, size);
  free((void *)(uintptr_t)want);
}

typedef struct golden_teacher {
  const float *logits; /* [tokens, vocabulary] */
  int64_t vocabulary;
} golden_teacher;

static kf_status give_golden(void *user, int64_t first, int64_t m, const float *student, float *logits, kf_error *e) {
  (void)student;
  const golden_teacher *t = user;
  (void)e;
  memcpy(logits, t->logits + first * t->vocabulary, (size_t)(m * t->vocabulary) * sizeof *logits);
  return KF_OK;
}

static void golden_step(const char *name, const kf_config *c, kf_parameters *p, kf_network *n, const kf_safetensors *f) {
  enum { MOST = 64 };
  const kf_view *tokens = kf_safetensors_find(f, "tokens");
  assert_non_null(tokens);
  int64_t m = tokens->shape[0];
  assert_true(m <= MOST);
  kf_device *d = p->device;
  const char none[MOST * sizeof(double)] = {0};
  int32_t *ids = sent(d, none, sizeof none), *target = sent(d, none, sizeof none);
  float *weight = sent(d, none, sizeof none), *hidden;
  double *nll = sent(d, none, sizeof none), *kl = sent(d, none, sizeof none), sum = 0;
  kf_error e = {0};
  for (int64_t i = 0; i < m; i++) ids[i] = (int32_t)((const int64_t *)(const void *)tokens->data)[i];
  for (int64_t i = 0; i + 1 < m; i++) target[i] = ids[i + 1], weight[i] = 1 / (float)(m - 1);
  kf_tokens t = {ids, m, &(kf_extent){0, m}, 1};
  kf_softmax_loss l = {.ce = 0.4f, .kl = 0.6f, .temperature = 1};
  const kf_view *teacher = kf_safetensors_find(f, "teacher");
  assert_true(teacher && (int64_t)teacher->bytes == 4 * m * c->vocabulary);
  kf_parameters_zero_gradient(p);
  must(kf_network_forward(n, &t, &hidden, &e), &e);
  golden_teacher given = {(const float *)(const void *)teacher->data, c->vocabulary};
  must(kf_network_loss(n, &l, hidden, m, target, weight, give_golden, &given, nll, kl, &e), &e);
  must(kf_network_backward(n, &t, hidden, &e), &e);
  for (int64_t i = 0; i < m; i++) sum += (double)weight[i] * (0.4 * nll[i] + 0.6 * kl[i]);
  void *own[] = {ids, target, weight, nll, kl};
  for (size_t i = 0; i < sizeof own / sizeof *own; i++) d->release(d, own[i]);
  compare(name, "loss", &(float){(float)sum}, fixture(f, "", "loss", 1), 1, 1e-5, 0);
  for (int i = 0; i < p->count; i++) {
    const kf_parameter *item = &p->item[i];
    compare(name, item->name, p->gradient + item->at, fixture(f, "gradient.", item->name, item->rows * item->columns),
            item->rows * item->columns, 1e-4, 1e-3);
  }
}

/* The rate is 1e-2: what the step itself comes to is compared to a hundredth. */
static void golden_update(const char *name, kf_parameters *p, const kf_safetensors *f) {
  double norm = sqrt(kf_parameters_gradient_squares(p));
  kf_parameters_step(p, &(kf_adamw){.rate = 1e-2f,
                                    .beta1 = 0.9f,
                                    .beta2 = 0.95f,
                                    .eps = 1e-8f,
                                    .decay = 0.1f,
                                    .scale = (float)(norm > 0.5 ? 0.5 / norm : 1),
                                    .correction1 = 1 - 0.9f,
                                    .correction2 = 1 - 0.95f});
  assert_int_equal(kf_device_check(p->device, NULL), KF_OK);
  for (int i = 0; i < p->count; i++) {
    const kf_parameter *item = &p->item[i];
    compare(name, item->name, p->value + item->at, fixture(f, "updated.", item->name, item->rows * item->columns),
            item->rows * item->columns, 1e-4, 1);
  }
}

/* One step of the families' tiny models against PyTorch and Transformers: tools/golden/make_training.py. */
static void golden(void **state) {
  (void)state;
  static const char *const names[] = {"llama2_gqa_tied", "llama_biases",     "llama3",
                                      "llama_linear",    "llama_dynamic",    "llama_longrope_short",
                                      "llama_yarn",      "mistral_window",   "qwen2_window_layers",
                                      "qwen3",           "smollm3_interval", "deepseek_v3_half_split"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    char path[KF_PATH];
    kf_config c;
    kf_weights w;
    kf_safetensors *f = NULL;
    kf_device *d = NULL;
    kf_parameters *p = NULL;
    kf_network *n = NULL;
    kf_error e = {0};
    snprintf(path, sizeof path, "%s/tests/fixtures/families/%s", KVFOLD_SOURCE_DIR, names[i]);
    must(kf_model_read(path, &c, &w, &e), &e);
    snprintf(path, sizeof path, "%s/tests/fixtures/training/%s.safetensors", KVFOLD_SOURCE_DIR, names[i]);
    must(kf_safetensors_open(path, &f, &e), &e);
    must(kf_device_open(kind, KF_COMPUTE_F32, 1, &d, &e), &e);
    must(kf_parameters_create(&c, d, &p, &e), &e);
    must(kf_parameters_load(p, &w, &e), &e);
    must(kf_network_create(&c, d, p, &n, &e), &e);
    golden_step(names[i], &c, p, n, f);
    if (kf_safetensors_find(f, "updated.model.norm.weight")) golden_update(names[i], p, f);
    kf_safetensors_close(f);
    kf_network_free(n);
    kf_parameters_free(p);
    kf_device_close(d);
    kf_weights_close(&w);
    kf_config_free(&c);
  }
}

/* A token outside the vocabulary, a device that does not train. */
static void errors(void **state) {
  (void)state;
  kf_config c;
  json_t *json;
  kf_error e = {0};
  kf_device *d = NULL;
  kf_parameters *p = NULL;
  kf_network *n = NULL;
  float *hidden;
  make_config(&variants[0], &c, &json);
  must(kf_device_open(kind, KF_COMPUTE_F32, 1, &d, &e), &e);
  must(kf_parameters_create(&c, d, &p, &e), &e);
  must(kf_network_create(&c, d, p, &n, &e), &e);
  int32_t ids[] = {0, VOCAB};
  kf_tokens t = {ids, 2, &(kf_extent){0, 2}, 1};
  assert_int_equal(kf_network_forward(n, &t, &hidden, &e), KF_ERROR_INPUT);
  kf_parameters_zero_gradient(p);
  assert_int_equal(kf_device_check(d, &e), KF_OK);
  p->gradient[p->item[2].at] = NAN;
  assert_int_equal(kf_parameters_broken(p), 2);
  kf_network_free(n);
  d->matrix_backward = NULL;
  assert_int_equal(kf_network_create(&c, d, p, &n, &e), KF_ERROR_INPUT);
  assert_non_null(strstr(e.message, "does not train"));
  kf_parameters_free(p);
  kf_device_close(d);
  kf_config_free(&c);
  json_decref(json);
}

int main(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], "cuda") == 0) kind = KF_DEVICE_CUDA;
  const struct CMUnitTest tests[] = {cmocka_unit_test(gradients), cmocka_unit_test(freezing), cmocka_unit_test(golden),
                                     cmocka_unit_test(errors)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
