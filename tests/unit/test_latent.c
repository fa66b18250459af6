/* The one latent attention against an independent fp64 forward pass written from the equations, for every variation that
 * the description allows: shared or per-head rope keys, ragged pairs, low-rank queries, biases, q/k norms, latent norms,
 * windows, KV heads or query heads in kv_b; expanded, absorbed, and prefill continued by decoding. With the argument "cuda" on
 * the GPU. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/random.h"
#include "model/model.h"

enum { HIDDEN = 24, HEADS = 4, FF = 20, VOCAB = 31, TOKENS = 23, DIM = 8 };

typedef struct variant {
  const char *name;
  int kv_heads, rope_heads, d_qk, d_v, rank, q_rank, pairs[HEADS], window;
  bool q_bias, kv_a_bias, kv_b_bias, o_bias, qk_norm, latent_norm;
} variant;

static const variant variants[] = {
    {"per-head rope keys", 2, 2, 8, 8, 10, 0, {2, 2}, 0, 0, 0, 0, 0, 0, 0},
    {"shared rope key", 2, 1, 6, 5, 7, 0, {1}, 0, 0, 0, 0, 0, 0, 0},
    {"a KV head a query head", 4, 1, 7, 8, 9, 0, {2}, 0, 0, 0, 0, 0, 0, 0},
    {"ragged pairs", 2, 2, 8, 8, 11, 0, {3, 0}, 0, 0, 0, 0, 0, 0, 0},
    {"no rope at all", 2, 2, 8, 8, 11, 0, {0, 0}, 0, 0, 0, 0, 0, 0, 0},
    {"everything rotated", 2, 2, 8, 6, 5, 0, {4, 4}, 0, 0, 0, 0, 0, 0, 0},
    {"low-rank query", 2, 1, 8, 8, 10, 9, {2}, 0, 0, 0, 0, 0, 0, 0},
    {"biases", 2, 2, 8, 8, 10, 0, {1, 2}, 0, 1, 1, 1, 1, 0, 0},
    {"window", 2, 2, 8, 8, 10, 0, {2, 1}, 5, 0, 0, 0, 0, 0, 0},
    {"q and k norms", 2, 2, 8, 8, 10, 0, {2, 1}, 0, 0, 0, 0, 0, 1, 0},
    {"norms, shared rope key", 2, 1, 8, 8, 10, 0, {2}, 0, 0, 0, 0, 0, 1, 0},
    {"norms and biases", 2, 2, 8, 8, 10, 0, {2, 1}, 0, 1, 1, 1, 0, 1, 0},
    {"latent norms", 2, 1, 8, 8, 10, 9, {2}, 0, 0, 0, 0, 0, 0, 1},
};

static kf_device_kind device = KF_DEVICE_CPU;

/* ---------------------------------------------------------------------------------------------- a model on disk */

typedef struct tensors {
  kf_safetensors_writer *writer;
  kf_random random;
} tensors;

static kf_status add_random(void *user, const char *name, int64_t rows, int64_t columns, kf_error *e) {
  tensors *t = user;
  float *data = malloc((size_t)(rows * columns) * sizeof *data);
  bool norm = strstr(name, "norm") != NULL;
  for (int64_t i = 0; i < rows * columns; i++)
    data[i] = (float)(norm ? 1 + 0.3 * kf_random_normal(&t->random) : 0.3 * kf_random_normal(&t->random));
  int64_t shape[2] = {rows, columns};
  kf_status s = kf_safetensors_add(t->writer, name, KF_F32, columns == 1 ? 1 : 2, shape, data, e);
  free(data);
  return s;
}

static json_t *layer_json(const variant *v) {
  static const int32_t spread[] = {3, 0, 2, 1}; /* kept frequencies, out of order */
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

static void make_model(const char *directory, const variant *v) {
  char path[KF_PATH];
  kf_error e = {0};
  json_t *o =
      json_pack("{s:s,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:f,s:b,s:i,s:b,s:{s:i,s:s,s:s,s:[o,o]}}", "model_type", "kvfold",
                "hidden_size", HIDDEN, "num_attention_heads", HEADS, "num_key_value_heads", 2, "head_dim", 8, "num_hidden_layers",
                2, "intermediate_size", FF, "vocab_size", VOCAB, "max_position_embeddings", 64, "rms_norm_eps", 1e-5,
                "tie_word_embeddings", 0, "sliding_window", v->window ? v->window : 1000, "use_sliding_window", 1, "kvfold",
                "format", 1, "source_model_type", "mistral", "method", "test", "layers", layer_json(v), layer_json(v));
  snprintf(path, sizeof path, "%s/config.json", directory);
  assert_int_equal(kf_json_write(path, o, &e), KF_OK);
  kf_config c;
  if (kf_config_from_json(path, o, NULL, &c, &e) != KF_OK) fail_msg("%s", e.message);
  tensors t = {0};
  kf_random_seed(&t.random, 7);
  snprintf(path, sizeof path, "%s/model.safetensors", directory);
  assert_int_equal(kf_safetensors_create(path, &t.writer, &e), KF_OK);
  assert_int_equal(kf_weights_each(&c, add_random, &t, &e), KF_OK);
  assert_int_equal(kf_safetensors_finish(t.writer, &e), KF_OK);
  kf_config_free(&c);
  json_decref(o);
}

/* ---------------------------------------------------------------------------------------------- the equations, in fp64 */

typedef struct oracle {
  const kf_weights *w;
  const variant *v;
  const kf_attention_config *a;
  int layer;
} oracle;

/* Weight by name; a bias that is not there is zeros. */
static float *get(const oracle *o, const char *name, int64_t rows, int64_t columns) {
  char full[320];
  float *data = NULL;
  kf_error e;
  int prefix = o->layer < 0 ? 0 : snprintf(full, sizeof full, "model.layers.%d.", o->layer);
  snprintf(full + prefix, sizeof full - (size_t)prefix, "%.255s", name);
  if (!kf_weights_has(o->w, full)) return calloc((size_t)(rows * columns), sizeof *data);
  assert_int_equal(kf_weights_read(o->w, full, rows, columns, &data, &e), KF_OK);
  return data;
}

/* y [n] = W x + b for one token */
static void apply(const oracle *o, const char *name, int64_t n, int64_t k, const double *x, double *y) {
  char full[256];
  snprintf(full, sizeof full, "%s.weight", name);
  float *w = get(o, full, n, k);
  snprintf(full, sizeof full, "%s.bias", name);
  float *b = get(o, full, n, 1);
  for (int64_t i = 0; i < n; i++) {
    y[i] = b[i];
    for (int64_t j = 0; j < k; j++) y[i] += (double)w[i * k + j] * x[j];
  }
  free(w);
  free(b);
}

static void rms(double *x, int n, const float *w, double eps) {
  double sum = 0;
  for (int i = 0; i < n; i++) sum += x[i] * x[i];
  for (int i = 0; i < n; i++) x[i] = x[i] / sqrt(sum / n + eps) * w[i];
}

static void rotate(const oracle *o, int g, double *x, int position) {
  int pairs = o->v->pairs[o->v->rope_heads == 1 ? 0 : g];
  const int32_t *index = o->a->rope_index + (o->v->rope_heads == 1 ? 0 : g ? o->v->pairs[0] : 0);
  for (int i = 0; i < pairs; i++) {
    double angle = position * pow(100, -2.0 * index[i] / DIM), re = x[i], im = x[pairs + i];
    x[i] = re * cos(angle) - im * sin(angle);
    x[pairs + i] = im * cos(angle) + re * sin(angle);
  }
}

static void attention(const oracle *o, double h[TOKENS][HIDDEN], double out[TOKENS][HIDDEN]) {
  const variant *v = o->v;
  static double q[TOKENS][HEADS][16], k[TOKENS][HEADS][16], value[TOKENS][HEADS][16];
  int rope_width = kf_attention_rope_width(o->a), rows = kf_attention_kv_b_rows(o->a);
  float *q_norm = get(o, "self_attn.q_norm.weight", v->kv_heads, v->d_qk),
        *k_norm = get(o, "self_attn.k_norm.weight", v->kv_heads, v->d_qk);
  float *kv_norm = get(o, "self_attn.kv_a_layernorm.weight", v->rank, 1);
  float *qa_norm = v->q_rank ? get(o, "self_attn.q_a_layernorm.weight", v->q_rank, 1) : NULL;
  for (int t = 0; t < TOKENS; t++) {
    double low[64], row[64], kv[128], flat[HEADS * 16];
    if (v->q_rank) {
      apply(o, "self_attn.q_a_proj", v->q_rank, HIDDEN, h[t], low);
      if (v->latent_norm) rms(low, v->q_rank, qa_norm, 1e-6);
      apply(o, "self_attn.q_b_proj", HEADS * v->d_qk, v->q_rank, low, flat);
    } else {
      apply(o, "self_attn.q_proj", HEADS * v->d_qk, HIDDEN, h[t], flat);
    }
    apply(o, "self_attn.kv_a_proj", v->rank + rope_width, HIDDEN, h[t], row);
    if (v->latent_norm) rms(row, v->rank, kv_norm, 1e-6);
    apply(o, "self_attn.kv_b_proj", rows, v->rank, row, kv);
    double *key = kv, *rope = row + v->rank;
    for (int g = 0; g < v->kv_heads; g++) {
      int nope = kf_attention_nope(o->a, g), group = HEADS / v->kv_heads;
      memcpy(k[t][g], key, (size_t)nope * sizeof(double));
      memcpy(k[t][g] + nope, rope, (size_t)(v->d_qk - nope) * sizeof(double));
      memcpy(value[t][g], key + nope, (size_t)v->d_v * sizeof(double));
      key += nope + v->d_v;
      if (v->rope_heads > 1) rope += v->d_qk - nope;
      if (v->rope_heads == 1)
        memcpy(k_norm + g * v->d_qk + nope, k_norm + nope,
               (size_t)(v->d_qk - nope) * sizeof(float)); /* one rope key, one weight */
      if (v->qk_norm) rms(k[t][g], v->d_qk, k_norm + g * v->d_qk, 1e-5);
      rotate(o, g, k[t][g] + nope, t);
      for (int i = g * group; i < (g + 1) * group; i++) {
        memcpy(q[t][i], flat + i * v->d_qk, (size_t)v->d_qk * sizeof(double));
        if (v->qk_norm) rms(q[t][i], v->d_qk, q_norm + g * v->d_qk, 1e-5);
        rotate(o, g, q[t][i] + nope, t);
      }
    }
  }
  for (int t = 0; t < TOKENS; t++) {
    double heads[HEADS * 16] = {0};
    for (int i = 0; i < HEADS; i++) {
      int g = i / (HEADS / v->kv_heads), first = v->window && t >= v->window ? t - v->window + 1 : 0;
      double p[TOKENS], sum = 0;
      for (int s = first; s <= t; s++) {
        double dot = 0;
        for (int j = 0; j < v->d_qk; j++) dot += q[t][i][j] * k[s][g][j];
        sum += p[s] = exp(dot / sqrt(v->d_qk));
      }
      for (int s = first; s <= t; s++)
        for (int j = 0; j < v->d_v; j++) heads[i * v->d_v + j] += p[s] / sum * value[s][g][j];
    }
    apply(o, "self_attn.o_proj", HIDDEN, HEADS * v->d_v, heads, out[t]);
  }
  free(q_norm);
  free(k_norm);
  free(kv_norm);
  free(qa_norm);
}

static void forward(const kf_model *m, const variant *v, const int32_t *ids, double logits[TOKENS][VOCAB]) {
  static double x[TOKENS][HIDDEN], h[TOKENS][HIDDEN], y[TOKENS][HIDDEN];
  oracle o = {&m->weights, v, NULL, -1};
  float *embedding = get(&o, "model.embed_tokens.weight", VOCAB, HIDDEN), *norm;
  for (int t = 0; t < TOKENS; t++)
    for (int i = 0; i < HIDDEN; i++) x[t][i] = embedding[ids[t] * HIDDEN + i];
  free(embedding);
  for (o.layer = 0; o.layer < 2; o.layer++) {
    o.a = &m->config.layer[o.layer].attention;
    norm = get(&o, "input_layernorm.weight", HIDDEN, 1);
    memcpy(h, x, sizeof h);
    for (int t = 0; t < TOKENS; t++) rms(h[t], HIDDEN, norm, 1e-5);
    free(norm);
    attention(&o, h, y);
    norm = get(&o, "post_attention_layernorm.weight", HIDDEN, 1);
    for (int t = 0; t < TOKENS; t++) {
      double gate[FF], up[FF], down[HIDDEN];
      for (int i = 0; i < HIDDEN; i++) h[t][i] = x[t][i] += y[t][i];
      rms(h[t], HIDDEN, norm, 1e-5);
      apply(&o, "mlp.gate_proj", FF, HIDDEN, h[t], gate);
      apply(&o, "mlp.up_proj", FF, HIDDEN, h[t], up);
      for (int i = 0; i < FF; i++) gate[i] *= up[i] / (1 + exp(-gate[i]));
      apply(&o, "mlp.down_proj", HIDDEN, FF, gate, down);
      for (int i = 0; i < HIDDEN; i++) x[t][i] += down[i];
    }
    free(norm);
  }
  o.layer = -1;
  norm = get(&o, "model.norm.weight", HIDDEN, 1);
  for (int t = 0; t < TOKENS; t++) {
    rms(x[t], HIDDEN, norm, 1e-5);
    apply(&o, "lm_head", VOCAB, HIDDEN, x[t], logits[t]);
  }
  free(norm);
}

/* ---------------------------------------------------------------------------------------------- the tests */

static void assert_close(const char *name, const char *form, const float *got, const double *want, int n) {
  double worst = 0, largest = 0;
  for (int i = 0; i < n; i++) {
    worst = isnan(got[i]) ? INFINITY : fmax(worst, fabs(got[i] - want[i]));
    largest = fmax(largest, fabs(want[i]));
  }
  if (worst > 1e-5 * largest) fail_msg("%s, %s: off by %.3g of %.3g", name, form, worst, largest);
}

/* Steps of several sequences that reach over chunks (of 512 tokens): only the last token of each goes through the whole last
 * layer, and must come out as among the logits of all tokens. The first and third sequence go on in a second step. */
static void try_chunks(kf_model *m, const char *name, const char *form) {
  enum { SEQUENCES = 4, LONG = 460 };
  static const int counts[2][SEQUENCES] = {{300, 420, 1, 70}, {20, 0, 400, 0}};
  static int32_t ids[LONG];
  static float step[SEQUENCES][VOCAB], all[LONG][VOCAB];
  kf_batch *b = NULL;
  kf_error e = {0};
  for (int i = 0; i < LONG; i++) ids[i] = (i * i + 3 * i) % VOCAB;
  assert_int_equal(kf_batch_create(m, SEQUENCES, &b, &e), KF_OK);
  for (int round = 0; round < 2; round++) {
    kf_feed feeds[SEQUENCES];
    int count = 0;
    for (int s = 0; s < SEQUENCES; s++)
      if (counts[round][s]) feeds[count++] = (kf_feed){s, ids + s + kf_batch_tokens(b, s), (size_t)counts[round][s]};
    assert_int_equal(kf_batch_step(b, feeds, count, step[0], &e), KF_OK);
    for (int i = 0; i < count; i++) {
      int s = feeds[i].sequence;
      int64_t length = kf_batch_tokens(b, s);
      double want[VOCAB];
      assert_int_equal(kf_logits(m, ids + s, (size_t)length, all[0], &e), KF_OK);
      for (int j = 0; j < VOCAB; j++) want[j] = all[length - 1][j];
      assert_close(name, form, step[i], want, VOCAB);
    }
  }
  kf_batch_free(b);
}

static void run_variant(const variant *v) {
  char directory[] = "/tmp/kvfold-latent-XXXXXX";
  assert_non_null(mkdtemp(directory));
  make_model(directory, v);
  kf_error e = {0};
  kf_model *m = NULL;
  kf_model_options options = {.compute = KF_COMPUTE_F32, .threads = 2, .device = device};
  if (kf_model_open(directory, &options, &m, &e) != KF_OK) fail_msg("%s: %s", v->name, e.message);
  int32_t ids[TOKENS];
  for (int i = 0; i < TOKENS; i++) ids[i] = (i * 17 + 5) % VOCAB;
  static double want[TOKENS][VOCAB];
  static float got[TOKENS][VOCAB];
  forward(m, v, ids, want);
  static const struct {
    const char *name;
    kf_latent_form form;
  } forms[] = {{"expanded", KF_FORM_EXPANDED}, {"absorbed", KF_FORM_ABSORBED}, {"auto", KF_FORM_AUTO}};
  for (int f = 0; f < 3; f++) {
    kf_run_set_form(m->run, forms[f].form);
    assert_int_equal(kf_logits(m, ids, TOKENS, got[0], &e), KF_OK);
    assert_close(v->name, forms[f].name, got[0], want[0], TOKENS * VOCAB);
    kf_batch *b = NULL; /* 9 tokens at once, 6 more, then one at a time */
    assert_int_equal(kf_batch_create(m, 1, &b, &e), KF_OK);
    for (int at = 0, step; at < TOKENS; at += step) {
      step = at == 0 ? 9 : at == 9 ? 6 : 1;
      assert_int_equal(kf_batch_step(b, &(kf_feed){0, ids + at, (size_t)step}, 1, got[0], &e), KF_OK);
      assert_close(v->name, forms[f].name, got[0], want[at + step - 1], VOCAB);
    }
    int64_t row = v->rank + kf_attention_rope_width(&m->config.layer[0].attention) + (v->qk_norm ? v->kv_heads : 0);
    assert_int_equal(kf_batch_cache_bytes(b), 2 * 4 * TOKENS * row); /* the latent row and nothing else */
    kf_batch_free(b);
    if (device == KF_DEVICE_CPU) try_chunks(m, v->name, forms[f].name); /* minutes on a simulated GPU */
  }
  kf_model_close(m);
  assert_int_equal(kf_remove_tree(directory, &e), KF_OK);
}

static void test_variants(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) run_variant(&variants[i]);
}

int main(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], "cuda") == 0) device = KF_DEVICE_CUDA;
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_variants)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
