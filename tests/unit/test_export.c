/* Exports of the example model: what is exported computes what was converted, what cannot be exported says why, and a GGUF
 * holds the directory's tensors and the model's own tokenizer. Stock engines themselves: bench/interop.py. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/json.h"
#include "export/export.h"
#include "export/stock_basis.h"
#include "linalg/linalg.h"

static const char books[] = KVFOLD_SOURCE_DIR "/examples/books-7m";
static char scratch[] = "/tmp/kvfold-export-XXXXXX";
static const kf_export_options directory = {.format = "deepseek-v3", .dtype = "f32"}, file = {.format = "gguf", .dtype = "f32"};

enum { TOKENS = 40 };

static int make_scratch(void **state) {
  (void)state;
  return mkdtemp(scratch) == NULL;
}

static int remove_scratch(void **state) {
  (void)state;
  return kf_remove_tree(scratch, NULL) != KF_OK;
}

static const char *in_scratch(const char *name) {
  static char path[4][256];
  static int turn;
  turn = (turn + 1) % 4;
  snprintf(path[turn], sizeof path[0], "%s/%s", scratch, name);
  return path[turn];
}

/* settings: KEY, VALUE, ..., NULL */
static void convert(const char *src, const char *name, const char *method, const char *const *settings) {
  kf_error e = {0};
  kf_setting list[8];
  kf_convert_options o = {.method = method, .cache = "50%", .dtype = "f32", .settings = list};
  const char *text[] = {KVFOLD_SOURCE_DIR "/examples/books-7m/held-out.txt"};
  for (int i = 0; settings && settings[i]; i += 2) list[o.setting_count++] = (kf_setting){settings[i], settings[i + 1]};
  if (strcmp(method, "x-ecomla") != 0 && strcmp(method, "mha2mla") != 0) {
    o.calibration = text;
    o.calibration_count = 1;
    o.calibration_tokens = 2560;
  }
  kf_remove_tree(in_scratch(name), NULL);
  if (kf_convert(src, in_scratch(name), &o, NULL, &e) != KF_OK) fail_msg("%s", e.message);
}

static void export(const char *from, const char *to, const kf_export_options *o) {
  kf_error e = {0};
  kf_remove_tree(in_scratch(to), NULL);
  if (kf_export(in_scratch(from), in_scratch(to), o, NULL, &e) != KF_OK) fail_msg("%s", e.message);
}

static float *logits_of(const char *name, size_t *count) {
  kf_error e = {0};
  kf_model *m;
  kf_model_options o = {.compute = KF_COMPUTE_F32};
  int32_t ids[TOKENS];
  if (kf_model_open(in_scratch(name), &o, &m, &e) != KF_OK) fail_msg("%s", e.message);
  int vocabulary = kf_model_get_info(m)->vocabulary;
  for (int i = 0; i < TOKENS; i++) ids[i] = (i * 7919 + 13) % vocabulary;
  *count = (size_t)TOKENS * (size_t)vocabulary;
  float *logits = malloc(*count * sizeof *logits);
  assert_non_null(logits);
  if (kf_logits(m, ids, TOKENS, logits, &e) != KF_OK) fail_msg("%s", e.message);
  kf_model_close(m);
  return logits;
}

/* |a - b| / |a| of the logits */
static double difference(const char *a, const char *b) {
  size_t count, other;
  float *x = logits_of(a, &count), *y = logits_of(b, &other);
  assert_int_equal(count, other);
  double error = 0, size = 0;
  for (size_t i = 0; i < count; i++) {
    error += pow((double)x[i] - (double)y[i], 2);
    size += pow((double)x[i], 2);
  }
  free(x);
  free(y);
  return sqrt(error / size);
}

static json_t *read_config(const char *name) {
  char path[KF_PATH];
  kf_error e = {0};
  json_t *config;
  snprintf(path, sizeof path, "%s/config.json", in_scratch(name));
  if (kf_json_read(path, &config, &e) != KF_OK) fail_msg("%s", e.message);
  return config;
}

static void write_config(const char *name, json_t *config) {
  char path[KF_PATH];
  snprintf(path, sizeof path, "%s/config.json", in_scratch(name));
  assert_int_equal(kf_json_write(path, config, NULL), KF_OK);
  json_decref(config);
}

static json_t *layer_of(json_t *config, int layer) {
  return json_array_get(json_object_get(json_object_get(config, "kvfold"), "layers"), (size_t)layer);
}

static int64_t config_int(const char *name, const char *key) {
  json_t *config = read_config(name);
  int64_t value = json_integer_value(json_object_get(config, key));
  json_decref(config);
  return value;
}

/* ------------------------------------------------------------------------------------------------ directory */

static void test_directory(void **state) {
  (void)state;
  static const char *const settings[][5] = {
      {NULL},
      {"kv_energy", "0.9", NULL},                        /* ranks that differ from layer to layer */
      {"latent_norm", "true", "kv_energy", "0.9", NULL}, /* a real norm, over the filled-up rank */
      {"q_rank", "100", "rope_dim", "8", NULL},          /* multiplied out */
      {"kv_b", "query", "singular_values", "up", NULL},
  };
  for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
    convert(books, "source", "x-ecomla", settings[i]);
    export("source", "deepseek", &directory);
    double d = difference("source", "deepseek");
    if (!(d < 1e-5)) fail_msg("settings %zu: the exported model's logits differ by %g", i, d);
  }
  json_t *config = read_config("deepseek");
  assert_string_equal(json_string_value(json_object_get(config, "model_type")), "deepseek_v3");
  assert_null(json_object_get(config, "auto_map"));
  assert_null(json_object_get(config, "kvfold"));
  assert_true(json_real_value(json_object_get(config, "rms_norm_eps")) == 1e-6);
  json_decref(config);
  assert_false(kf_exists(in_scratch("deepseek.partial")));
}

/* One shared RoPE key at every second frequency, ranks of its own in every layer. */
static void test_peers(void **state) {
  (void)state;
  convert(books, "source", "care", (const char *[]){"rope_dim", "16", "freqfold", "4", "rank_policy", "progressive", NULL});
  export("source", "deepseek", &directory);
  double d = difference("source", "deepseek");
  if (!(d < 1e-5)) fail_msg("the exported model's logits differ by %g", d);
}

/* Pairs of a larger table: every second frequency makes a table of its own, others need the whole one, with unused slots. */
static void test_table(void **state) {
  (void)state;
  convert(books, "table", "x-ecomla", NULL); /* 8 pairs of a table of 8 */
  for (int odd = 0; odd < 2; odd++) {
    json_t *config = read_config("table");
    for (int layer = 0; layer < 8; layer++) {
      json_t *l = layer_of(config, layer), *index = json_array();
      for (int k = 0; k < 8; k++) json_array_append_new(index, json_integer(2 * k));
      if (odd && layer == 3) json_array_set_new(index, 2, json_integer(5));
      json_object_set_new(l, "rope_index", index);
      json_object_set_new(json_object_get(l, "rope"), "dim", json_integer(32));
    }
    write_config("table", config);
    export("table", "table-out", &directory);
    assert_int_equal(config_int("table-out", "qk_rope_head_dim"), odd ? 30 : 16); /* up to pair 14, or every second */
    double d = difference("table", "table-out");
    if (!(d < 1e-5)) fail_msg("odd %d: the exported model's logits differ by %g", odd, d);
  }
}

/* ------------------------------------------------------------------------------------------------ GGUF */

static kf_gguf *open_gguf(const char *name) {
  kf_error e = {0};
  kf_gguf *g;
  if (kf_gguf_open(in_scratch(name), &g, &e) != KF_OK) fail_msg("%s", e.message);
  return g;
}

static int64_t gguf_int(const kf_gguf *g, const char *key) {
  int64_t value = -1;
  assert_int_equal(kf_gguf_int(g, key, &value, NULL), KF_OK);
  return value;
}

static float *numbers(const kf_view *v, int64_t *count) {
  assert_non_null(v);
  *count = 1;
  for (int i = 0; i < v->dims; i++) *count *= v->shape[i];
  float *to = malloc((size_t)*count * sizeof *to);
  assert_non_null(to);
  kf_to_f32(v->dtype, v->data, to, (size_t)*count);
  return to;
}

/* Keys transposed and values of every head are kv_b of the directory. */
static void check_up_projections(const kf_gguf *g, const kf_source *hf) {
  enum { HEADS = 8, NOPE = 16, V = 32 };
  int64_t rank = gguf_int(g, "deepseek2.attention.kv_lora_rank"), count;
  float *k = numbers(kf_gguf_find(g, "blk.2.attn_k_b.weight"), &count),
        *v = numbers(kf_gguf_find(g, "blk.2.attn_v_b.weight"), &count);
  float *kv = numbers(kf_source_find(hf, "model.layers.2.self_attn.kv_b_proj.weight"), &count);
  assert_int_equal(count, HEADS * (NOPE + V) * rank);
  for (int64_t h = 0; h < HEADS; h++)
    for (int64_t l = 0; l < rank; l++) {
      for (int64_t i = 0; i < NOPE; i++) assert_true(k[(h * rank + l) * NOPE + i] == kv[(h * (NOPE + V) + i) * rank + l]);
      for (int64_t i = 0; i < V; i++) assert_true(v[(h * V + i) * rank + l] == kv[(h * (NOPE + V) + NOPE + i) * rank + l]);
    }
  free(k);
  free(v);
  free(kv);
}

static void test_gguf(void **state) {
  (void)state;
  kf_error e = {0};
  kf_source *hf;
  kf_export_result r;
  convert(books, "source", "x-ecomla", NULL);
  export("source", "deepseek", &directory);
  if (kf_export(in_scratch("source"), in_scratch("model.gguf"), &(kf_export_options){.dtype = "f32"}, &r, &e) != KF_OK)
    fail_msg("%s", e.message);
  assert_string_equal(r.format, "gguf"); /* by the name */
  kf_gguf *g = open_gguf("model.gguf");
  assert_int_equal(kf_source_open(in_scratch("deepseek"), &hf, &e), KF_OK);
  assert_int_equal(kf_gguf_count(g), r.tensors);
  assert_int_equal(r.tensors, 8 * 11 + 2); /* the head is the embedding's */
  assert_int_equal(gguf_int(g, "deepseek2.attention.q_lora_rank"), 0);
  assert_int_equal(gguf_int(g, "deepseek2.attention.key_length_mla"), 32);
  assert_int_equal(gguf_int(g, "deepseek2.rope.dimension_count"), 16);
  check_up_projections(g, hf);
  int64_t count;
  float *embedding = numbers(kf_gguf_find(g, "token_embd.weight"), &count);
  float *head = numbers(kf_source_find(hf, "lm_head.weight"), &count);
  assert_memory_equal(embedding, head, (size_t)count * sizeof *head); /* the source's eps: nothing is rescaled */
  free(embedding);
  free(head);
  kf_source_close(hf);
  kf_gguf_close(g);
}

/* Small files: matrices in the type, or f16 where a row is no whole number of blocks; kv_a in f32, below the range of both. */
static void test_small(void **state) {
  (void)state;
  convert(books, "source", "x-ecomla", (const char *[]){"rope_dim", "8", NULL}); /* 24 nope rows: no block of attn_k_b */
  export("source", "whole.gguf", &file);
  for (int i = 0; i < 2; i++) {
    const kf_export_options o = {.format = "gguf", .dtype = i ? "q8_0" : "f16"};
    export("source", "small.gguf", &o);
    kf_gguf *whole = open_gguf("whole.gguf"), *small = open_gguf("small.gguf");
    static const char *const tensors[] = {"blk.5.attn_q.weight", "blk.5.attn_k_b.weight", "blk.5.attn_kv_a_mqa.weight",
                                          "blk.5.attn_norm.weight", "token_embd.weight"};
    const kf_dtype matrix = i ? KF_Q8_0 : KF_F16, expected[] = {matrix, KF_F16, KF_F32, KF_F32, matrix};
    for (int t = 0; t < 5; t++) {
      int64_t count;
      double size = 0, error = 0;
      assert_int_equal(kf_gguf_find(small, tensors[t])->dtype, expected[t]);
      float *x = numbers(kf_gguf_find(whole, tensors[t]), &count), *y = numbers(kf_gguf_find(small, tensors[t]), &count);
      for (int64_t k = 0; k < count; k++) error += pow((double)y[k] - (double)x[k], 2), size += (double)x[k] * (double)x[k];
      if (!(sqrt(error / size) <= (expected[t] == KF_F32 ? 0 : expected[t] == KF_F16 ? 1e-3 : 1e-2)))
        fail_msg("%s loses %g in %s", tensors[t], sqrt(error / size), o.dtype);
      free(x);
      free(y);
    }
    kf_gguf_close(whole);
    kf_gguf_close(small);
  }
}

/* Padded to what kernels take, the model is the same. */
static void test_pad(void **state) {
  (void)state;
  static const char *const settings[][5] = {{NULL}, {"rope_dim", "8", "latent_norm", "true", NULL}};
  const kf_export_options padded = {.format = "deepseek-v3", .dtype = "f32", .pad = 256};
  for (int i = 0; i < 2; i++) {
    convert(books, "source", "x-ecomla", settings[i]);
    export("source", "padded", &padded);
    assert_int_equal(config_int("padded", "kv_lora_rank"), 256);
    assert_int_equal(config_int("padded", "qk_rope_head_dim"), 64);
    double d = difference("source", "padded");
    if (!(d < 1e-5)) fail_msg("settings %d: the padded model's logits differ by %g", i, d);
  }
}

/* ------------------------------------------------------------------------------------------------ f16 latents */

enum { N = 12 };

static double diagonals(const double *m, const double *g) {
  double sum = 0;
  for (int i = 0; i < N; i++) sum += m[i * N + i] * g[i * N + i];
  return sum;
}

/* The second moment of `samples` vectors near a mean of this size. */
static void near_mean(double mean, int samples, int seed, double *out) {
  memset(out, 0, N * N * sizeof *out);
  for (int s = 0; s < samples; s++) {
    double x[N];
    for (int i = 0; i < N; i++) x[i] = mean * cos(i + 1) + (double)((s * 131 + i * 71 + seed) * 7919 % 1009) / 1009 - 0.5;
    for (int i = 0; i < N * N; i++) out[i] += x[i / N] * x[i % N] / samples;
  }
}

/* Both moments come out with one trace and even diagonals, from which the cost is least; R^-1 is one. */
static void test_least_roundoff(void **state) {
  (void)state;
  kf_error e = {0};
  kf_stock_basis b;
  double m[N * N], g[N * N], m0[N * N], g0[N * N], half[N * N], m1[N * N], g1[N * N];
  near_mean(3, 60, 1, m0);
  near_mean(0, 60, 5, g0);
  memcpy(m, m0, sizeof m);
  memcpy(g, g0, sizeof g);
  assert_int_equal(kf_least_roundoff(m, g, N, &b, &e), KF_OK);
  kf_gemm(false, false, N, N, N, 1, b.to, b.from, 0, half);
  for (int i = 0; i < N * N; i++) assert_true(fabs(half[i] - (i % (N + 1) == 0)) < 1e-9);
  kf_gemm(false, false, N, N, N, 1, b.to, m0, 0, half);
  kf_gemm(false, true, N, N, N, 1, half, b.to, 0, m1);
  kf_gemm(true, false, N, N, N, 1, b.from, g0, 0, half);
  kf_gemm(false, false, N, N, N, 1, half, b.from, 0, g1);
  double trace = 0, other = 0;
  for (int i = 0; i < N; i++) trace += m1[i * N + i], other += g1[i * N + i];
  assert_true(fabs(trace - other) < 1e-9 * trace);
  double cost = diagonals(m1, g1), least = trace * trace / N;
  if (!(cost < 1.2 * least && cost < 0.5 * diagonals(m0, g0)))
    fail_msg("the cost is %g, the least %g, before %g", cost, least, diagonals(m0, g0));
  free(b.to);
  free(b.from);

  memset(m, 0, sizeof m);
  memset(g, 0, sizeof g);
  assert_int_equal(kf_least_roundoff(m, g, N, &b, &e), KF_OK);
  for (int i = 0; i < N * N; i++) assert_true(isfinite(b.to[i]) && isfinite(b.from[i]));
  free(b.to);
  free(b.from);
}

/* Another basis, the same model; ranks differ from layer to layer. */
static void test_f16_latents(void **state) {
  (void)state;
  const kf_export_options turned = {.format = "deepseek-v3", .dtype = "f32", .f16_latents = true};
  convert(books, "source", "x-ecomla", (const char *[]){"kv_energy", "0.9", "q_rank", "100", NULL});
  export("source", "plain", &directory);
  export("source", "turned", &turned);
  double d = difference("source", "turned");
  if (!(d < 1e-5)) fail_msg("the exported model's logits differ by %g", d);
  kf_error e = {0};
  kf_source *a, *b;
  int64_t count;
  assert_int_equal(kf_source_open(in_scratch("plain"), &a, &e), KF_OK);
  assert_int_equal(kf_source_open(in_scratch("turned"), &b, &e), KF_OK);
  float *x = numbers(kf_source_find(a, "model.layers.3.self_attn.kv_b_proj.weight"), &count),
        *y = numbers(kf_source_find(b, "model.layers.3.self_attn.kv_b_proj.weight"), &count);
  assert_memory_not_equal(x, y, (size_t)count * sizeof *x);
  free(x);
  free(y);
  kf_source_close(a);
  kf_source_close(b);
}

/* ------------------------------------------------------------------------------------------------ RoPE scaling */

/* Gives every layer of the model "source" this scaling (stolen) of a table of `dim`. */
static void scale_rope(json_t *scaling, int dim) {
  json_t *config = read_config("source");
  for (int layer = 0; layer < 8; layer++) {
    json_t *rope = json_object_get(layer_of(config, layer), "rope");
    json_object_set(rope, "rope_scaling", scaling);
    json_object_set_new(rope, "dim", json_integer(dim));
  }
  json_decref(scaling);
  write_config("source", config);
}

static void keep_note(void *user, const char *sentence) {
  strncat(user, sentence, 511 - strlen(user));
}

/* YaRN is the graph's own, its factor on cosine and sine goes into the query; llama3's scaling differs where the ramp is. */
static void test_rope_scaling(void **state) {
  (void)state;
  char notes[512] = "";
  const kf_export_options noting = {.format = "deepseek-v3", .dtype = "f32", .hooks = {.note = keep_note, .user = notes}};
  convert(books, "source", "x-ecomla", NULL);
  scale_rope(json_pack("{s:s, s:f, s:i, s:f, s:f}", "rope_type", "yarn", "factor", 4.0, "original_max_position_embeddings", 128,
                       "beta_fast", 8.0, "attention_factor", 1.3),
             16);
  export("source", "yarn", &noting);
  double d = difference("source", "yarn");
  if (!(d < 1e-5)) fail_msg("yarn: the exported model's logits differ by %g", d);
  assert_string_equal(notes, "");

  /* 8B's: 3 of 64 pairs of a table for 128 numbers at factor 8 would be in the ramp; here the largest ratio is that of 1 pair */
  scale_rope(json_pack("{s:s, s:f, s:f, s:f, s:i}", "rope_type", "llama3", "factor", 8.0, "low_freq_factor", 1.0,
                       "high_freq_factor", 4.0, "original_max_position_embeddings", 128),
             16);
  export("source", "llama3", &noting);
  if (!strstr(notes, "'llama3' is written as YaRN: 1 of 8 frequencies differ, by a factor of 1.32 at most"))
    fail_msg("the note is '%s'", notes);
  json_t *config = read_config("llama3");
  const json_t *scaling = json_object_get(config, "rope_scaling");
  assert_string_equal(json_string_value(json_object_get(scaling, "rope_type")), "yarn");
  assert_true(json_number_value(json_object_get(scaling, "beta_fast")) == 4);
  json_decref(config);
  assert_true(difference("source", "llama3") < 0.5);

  scale_rope(json_pack("{s:s, s:f}", "rope_type", "linear", "factor", 2.0), 16);
  export("source", "linear.gguf", &file);
  kf_gguf *g = open_gguf("linear.gguf");
  const char *type = "";
  assert_int_equal(kf_gguf_string(g, "deepseek2.rope.scaling.type", &type, NULL), KF_OK);
  assert_string_equal(type, "linear");
  kf_gguf_close(g);
}

/* ------------------------------------------------------------------------------------------------ source */

static void put_source_keys(kf_gguf_writer *w) {
  kf_error e = {0};
  static const struct {
    const char *key;
    uint32_t value;
  } keys[] = {{"llama.block_count", 8},           {"llama.context_length", 512},     {"llama.embedding_length", 256},
              {"llama.feed_forward_length", 704}, {"llama.attention.head_count", 8}, {"llama.attention.head_count_kv", 4},
              {"llama.rope.dimension_count", 32}, {"llama.vocab_size", 4096}};
  kf_gguf_put_string(w, "general.architecture", "llama", &e);
  for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) kf_gguf_put_u32(w, keys[i].key, keys[i].value, &e);
  kf_gguf_put_f32(w, "llama.rope.freq_base", 10000, &e);
  kf_gguf_put_f32(w, "llama.attention.layer_norm_rms_epsilon", 1e-5f, &e);
  if (kf_export_tokenizer(books, 4096, NULL, w, &e) != KF_OK) fail_msg("%s", e.message);
}

/* Declares a tensor of the example, or writes its numbers plus `shift`: matrices in Q8_0. */
static void put_source_tensor(kf_gguf_writer *w, const kf_view *v, const char *name, bool declare, float shift) {
  kf_error e = {0};
  int64_t count;
  assert_non_null(v);
  if (declare) {
    if (kf_gguf_declare(w, name, v->dims == 1 ? KF_F32 : KF_Q8_0, v->dims, v->shape, &e) != KF_OK) fail_msg("%s", e.message);
    return;
  }
  float *data = numbers(v, &count);
  for (int64_t i = 0; i < count; i++) data[i] += shift;
  if (kf_gguf_add(w, data, &e) != KF_OK) fail_msg("%s", e.message);
  free(data);
}

/* The example as a quantised GGUF of architecture llama (its q and k rows in an order that does not matter here). */
static void write_source(const char *name, float shift) {
  kf_error e = {0};
  kf_source *hf;
  kf_gguf_writer *w;
  static const char *const tensors[][2] = {
      {"input_layernorm", "attn_norm"}, {"self_attn.q_proj", "attn_q"},      {"self_attn.k_proj", "attn_k"},
      {"self_attn.v_proj", "attn_v"},   {"self_attn.o_proj", "attn_output"}, {"post_attention_layernorm", "ffn_norm"},
      {"mlp.gate_proj", "ffn_gate"},    {"mlp.up_proj", "ffn_up"},           {"mlp.down_proj", "ffn_down"}};
  assert_int_equal(kf_source_open(books, &hf, &e), KF_OK);
  assert_int_equal(kf_gguf_create(in_scratch(name), &w, &e), KF_OK);
  put_source_keys(w);
  for (int declare = 1; declare >= 0; declare--) {
    put_source_tensor(w, kf_source_find(hf, "model.embed_tokens.weight"), "token_embd.weight", declare, shift);
    put_source_tensor(w, kf_source_find(hf, "model.norm.weight"), "output_norm.weight", declare, shift);
    for (int layer = 0; layer < 8; layer++)
      for (size_t t = 0; t < sizeof tensors / sizeof *tensors; t++) {
        char from[128], to[128];
        snprintf(from, sizeof from, "model.layers.%d.%s.weight", layer, tensors[t][0]);
        snprintf(to, sizeof to, "blk.%d.%s.weight", layer, tensors[t][1]);
        put_source_tensor(w, kf_source_find(hf, from), to, declare, shift);
      }
  }
  if (kf_gguf_finish(w, &e) != KF_OK) fail_msg("%s", e.message);
  kf_source_close(hf);
}

/* The text is cut as by the model's own tokenizer. */
static void check_tokenizer(const char *model, const char *gguf) {
  static const char text[] = "Once upon a time, in 1984, they'd  said:\n\n\t\"It's \xc3\xa9t\xc3\xa9!\" 12345 "
                             "\xe4\xbd\xa0\xe5\xa5\xbd <|end_of_text|></s> ";
  kf_error e = {0};
  kf_tokenizer *a, *b;
  kf_ids x, y;
  kf_gguf *g = open_gguf(gguf);
  if (kf_tokenizer_open(in_scratch(model), &a, &e) || kf_tokenizer_from_gguf(g, &b, &e) ||
      kf_tokenizer_encode(a, text, sizeof text - 1, KF_ENCODE_SPECIAL, &x, &e) ||
      kf_tokenizer_encode(b, text, sizeof text - 1, KF_ENCODE_SPECIAL, &y, &e))
    fail_msg("%s", e.message);
  assert_int_equal(x.count, y.count);
  assert_memory_equal(x.data, y.data, x.count * sizeof *x.data);
  assert_int_equal(kf_tokenizer_bos(a), kf_tokenizer_bos(b));
  assert_int_equal(kf_tokenizer_eos(a), kf_tokenizer_eos(b));
  const char *template = kf_tokenizer_chat_template(a);
  assert_string_equal(template ? template : "", kf_tokenizer_chat_template(b) ? kf_tokenizer_chat_template(b) : "");
  kf_ids_free(&x);
  kf_ids_free(&y);
  kf_tokenizer_close(a);
  kf_tokenizer_close(b);
  kf_gguf_close(g);
}

static void test_tokenizer(void **state) {
  (void)state;
  convert(books, "source", "x-ecomla", NULL);
  export("source", "tokenizer.gguf", &file);
  check_tokenizer("source", "tokenizer.gguf");
}

/* SentencePiece: the scores are made from the merges. */
static void test_sentencepiece(void **state) {
  (void)state;
  const char *data = getenv("KVFOLD_TEST_DATA");
  char path[512];
  snprintf(path, sizeof path, "%s/models/stories3M", data ? data : KVFOLD_SOURCE_DIR "/../shared/data");
  if (!kf_exists(path)) {
    printf("SKIP: %s is not there\n", path);
    skip();
  }
  convert(path, "stories", "x-ecomla", NULL);
  export("stories", "stories.gguf", &file);
  kf_gguf *g = open_gguf("stories.gguf");
  const char *model = "";
  assert_int_equal(kf_gguf_string(g, "tokenizer.ggml.model", &model, NULL), KF_OK);
  assert_string_equal(model, "llama");
  kf_gguf_close(g);
  check_tokenizer("stories", "stories.gguf");
}

static const char *pre_of(const char *pre_tokenizer, bool ignore_merges) {
  char text[1024];
  json_t *o;
  snprintf(text, sizeof text, "{\"pre_tokenizer\": %s, \"model\": {\"ignore_merges\": %s}}", pre_tokenizer,
           ignore_merges ? "true" : "false");
  assert_int_equal(kf_json_parse("test", text, strlen(text), &o, NULL), KF_OK);
  const char *name = kf_export_pre(o);
  json_decref(o);
  return name;
}

static void test_pre(void **state) {
  (void)state;
#define LLAMA3                                                                                   \
  "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": {\"Regex\": " \
  "\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| "       \
  "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*"                                                      \
  "|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"}}, {\"type\": \"ByteLevel\", \"use_regex\": false}]}"
  assert_string_equal(pre_of("{\"type\": \"ByteLevel\", \"use_regex\": true}", false), "gpt-2");
  assert_string_equal(pre_of("{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Digits\", \"individual_digits\": true}, "
                             "{\"type\": \"ByteLevel\", \"use_regex\": true}]}",
                             false),
                      "smollm");
  assert_string_equal(pre_of(LLAMA3, true), "llama-bpe");
  assert_string_equal(pre_of(LLAMA3, false), "smaug-bpe");
  assert_null(pre_of("{\"type\": \"Split\", \"pattern\": {\"Regex\": \"a+\"}}", false));
  assert_null(pre_of("null", false));
}

/* The writer alone: keys, odd sizes and types come back. */
static void test_writer(void **state) {
  (void)state;
  kf_error e = {0};
  kf_gguf_writer *w;
  static const float data[15] = {0, 1, -2, 0.5f, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13};
  static const char *const words[] = {"", "a b", "\xc3\xa9"};
  assert_int_equal(kf_gguf_create(in_scratch("w.gguf"), &w, &e), KF_OK);
  assert_int_equal(kf_gguf_put_string(w, "general.architecture", "test", &e), KF_OK);
  assert_int_equal(kf_gguf_put_strings(w, "words", words, 3, &e), KF_OK);
  assert_int_equal(kf_gguf_put_f32(w, "real", 0.25f, &e), KF_OK);
  assert_int_equal(kf_gguf_put_bool(w, "yes", true, &e), KF_OK);
  assert_int_equal(kf_gguf_put_i32s(w, "ids", (int32_t[]){-7, 9}, 2, &e), KF_OK);
  assert_int_equal(kf_gguf_declare(w, "three", KF_F16, 3, (int64_t[]){1, 3, 5}, &e), KF_OK);
  assert_int_equal(kf_gguf_declare(w, "one", KF_F32, 1, (int64_t[]){7}, &e), KF_OK);
  assert_int_equal(kf_gguf_declare(w, "none", KF_U8, 1, (int64_t[]){32}, &e), KF_ERROR_INPUT);
  assert_int_equal(kf_gguf_declare(w, "none", KF_Q8_0, 2, (int64_t[]){32, 16}, &e), KF_ERROR_INPUT); /* blocks end with a row */
  assert_int_equal(kf_gguf_add(w, data, &e), KF_OK);
  assert_int_equal(kf_gguf_declare(w, "late", KF_F32, 1, (int64_t[]){7}, &e), KF_ERROR_INPUT);
  assert_int_equal(kf_gguf_add(w, data, &e), KF_OK);
  assert_int_equal(kf_gguf_add(w, data, &e), KF_ERROR_INPUT);
  assert_false(kf_exists(in_scratch("w.gguf")));
  assert_int_equal(kf_gguf_finish(w, &e), KF_OK);
  kf_gguf *g = open_gguf("w.gguf");
  const kf_view *three = kf_gguf_find(g, "three");
  int64_t count, id = 0;
  size_t bytes;
  double real = 0;
  assert_int_equal(three->shape[0] * 100 + three->shape[1] * 10 + three->shape[2], 135);
  float *back = numbers(three, &count);
  assert_memory_equal(back, data, sizeof data);
  free(back);
  back = numbers(kf_gguf_find(g, "one"), &count);
  assert_memory_equal(back, data, 7 * sizeof *data);
  free(back);
  assert_string_equal(kf_gguf_array_string(g, "words", 2, &bytes), "\xc3\xa9");
  assert_int_equal(kf_gguf_real(g, "real", &real, &e), KF_OK);
  assert_true(real == 0.25);
  assert_int_equal(gguf_int(g, "yes"), 1);
  assert_true(kf_gguf_array_int(g, "ids", 0, &id) && id == -7);
  kf_gguf_close(g);

  assert_int_equal(kf_gguf_create(in_scratch("w2.gguf"), &w, &e), KF_OK);
  assert_int_equal(kf_gguf_declare(w, "one", KF_F16, 1, (int64_t[]){1}, &e), KF_OK);
  assert_int_equal(kf_gguf_add(w, (float[]){1e6f}, &e), KF_ERROR_INPUT);
  kf_gguf_abandon(w);
  assert_int_equal(kf_gguf_create(in_scratch("w2.gguf"), &w, &e), KF_OK);
  assert_int_equal(kf_gguf_declare(w, "one", KF_Q4_1, 1, (int64_t[]){32}, &e), KF_OK);
  assert_int_equal(kf_gguf_add(w, (float[32]){0}, &e), KF_ERROR_INPUT); /* numbers are not written as Q4_1 */
  kf_gguf_abandon(w);
  assert_int_equal(kf_gguf_create(in_scratch("w2.gguf"), &w, &e), KF_OK);
  assert_int_equal(kf_gguf_declare(w, "one", KF_Q8_0, 1, (int64_t[]){32}, &e), KF_OK);
  assert_int_equal(kf_gguf_add_raw(w, &(kf_view){.dtype = KF_Q8_0, .bytes = 33}, &e), KF_ERROR_INPUT);
  kf_gguf_abandon(w);
  assert_int_equal(kf_gguf_create(in_scratch("w2.gguf"), &w, &e), KF_OK);
  assert_int_equal(kf_gguf_declare(w, "one", KF_F32, 1, (int64_t[]){1}, &e), KF_OK);
  assert_int_equal(kf_gguf_finish(w, &e), KF_ERROR_INPUT);
  assert_false(kf_exists(in_scratch("w2.gguf")) || kf_exists(in_scratch("w2.gguf.tmp")));
}

/* ------------------------------------------------------------------------------------------------ refusals */

/* model: a path, or a name in scratch */
static void refuse(const char *model, const char *out, kf_export_options o, kf_status status, const char *says) {
  kf_error e = {0};
  assert_int_equal(kf_export(*model == '/' ? model : in_scratch(model), in_scratch(out), &o, NULL, &e), status);
  if (!strstr(e.message, says)) fail_msg("'%s' does not say '%s'", e.message, says);
}

/* What the conversion left alone is copied byte for byte, whatever type the model was written in; the rest is not. */
static void test_source(void **state) {
  (void)state;
  kf_error e = {0};
  kf_export_result r;
  write_source("source.gguf", 0);
  write_source("other.gguf", 1);
  for (int i = 0; i < 2; i++) {
    kf_convert_options c = {.method = "x-ecomla", .cache = "50%", .dtype = i ? "bf16" : "f32"};
    kf_export_options o = {.format = "gguf", .dtype = "f16", .source = in_scratch("source.gguf")};
    kf_remove_tree(in_scratch("model"), NULL);
    kf_remove_tree(in_scratch("copied.gguf"), NULL);
    if (kf_convert(in_scratch("source.gguf"), in_scratch("model"), &c, NULL, &e) ||
        kf_export(in_scratch("model"), in_scratch("copied.gguf"), &o, &r, &e))
      fail_msg("%s", e.message);
    assert_int_equal(r.copied, 8 * 6 + 2);
    kf_gguf *from = open_gguf("source.gguf"), *to = open_gguf("copied.gguf");
    static const char *const kept[] = {"token_embd.weight", "blk.3.ffn_down.weight", "blk.7.attn_output.weight",
                                       "output_norm.weight"};
    for (int t = 0; t < 4; t++) {
      const kf_view *a = kf_gguf_find(from, kept[t]), *b = kf_gguf_find(to, kept[t]);
      assert_int_equal(a->dtype, b->dtype);
      assert_int_equal(a->bytes, b->bytes);
      assert_memory_equal(a->data, b->data, a->bytes);
    }
    assert_int_equal(kf_gguf_find(to, "blk.3.attn_q.weight")->dtype, KF_F16);
    kf_gguf_close(from);
    kf_gguf_close(to);
  }
  refuse("model", "no", (kf_export_options){.format = "gguf", .source = in_scratch("other.gguf")}, KF_ERROR_INPUT,
         "no tensor of the two is the same");
  refuse("model", "no", (kf_export_options){.format = "gguf", .source = books}, KF_ERROR_INPUT, "is not a GGUF file");
  refuse("model", "no", (kf_export_options){.format = "deepseek-v3", .source = in_scratch("source.gguf")}, KF_ERROR_USAGE,
         "into a GGUF file only");
  assert_false(kf_exists(in_scratch("no")) || kf_exists(in_scratch("no.tmp")));
}

/* One key of layer 3 of the model "source", for the time of one refusal in both formats. */
static void refuse_layer(const char *key, json_t *value, const char *says) {
  json_t *config = read_config("source"), *before = json_deep_copy(config);
  json_object_set_new(layer_of(config, 3), key, value);
  write_config("source", config);
  for (int i = 0; i < 2; i++) refuse("source", "no", i ? file : directory, KF_ERROR_INPUT, says);
  assert_false(kf_exists(in_scratch("no")) || kf_exists(in_scratch("no.partial")) || kf_exists(in_scratch("no.tmp")));
  write_config("source", before);
}

static void test_refusals(void **state) {
  (void)state;
  convert(books, "source", "mha2mla", NULL);
  refuse("source", "no", file, KF_ERROR_INPUT, "a RoPE key for each head");
  convert(books, "source", "x-ecomla", (const char *[]){"layers", "0-2,4-7", NULL});
  refuse("source", "no", directory, KF_ERROR_INPUT, "layer 3 keeps grouped attention");
  convert(books, "source", "x-ecomla", NULL);
  refuse(books, "no", directory, KF_ERROR_INPUT, "is not a model that kvfold converted");
  refuse("source", "no", (kf_export_options){.format = "onnx"}, KF_ERROR_USAGE, "known: deepseek-v3, gguf");
  refuse("source", "no", (kf_export_options){.dtype = "q4_0"}, KF_ERROR_USAGE, "known: f32, bf16, f16, q8_0");
  refuse("source", "no", (kf_export_options){.dtype = "f16"}, KF_ERROR_INPUT, "f16 as --format gguf");
  refuse("source", "no", (kf_export_options){.format = "deepseek-v3", .dtype = "q8_0"}, KF_ERROR_INPUT, "q8_0 as --format gguf");
  refuse("source", "no", (kf_export_options){.pad = 16}, KF_ERROR_USAGE, "--pad 16 is below the model's");
  refuse("source", "no", (kf_export_options){.pad = -1}, KF_ERROR_USAGE, "pad -1");
  refuse("source", "source", directory, KF_ERROR_IO, "exists");
  convert(books, "normed", "x-ecomla", (const char *[]){"latent_norm", "true", NULL});
  refuse("normed", "no", (kf_export_options){.format = "gguf", .f16_latents = true}, KF_ERROR_INPUT,
         "layer 0 normalises its latents");
  refuse_layer("rope_index", json_pack("[i,i,i,i,i,i,i,i]", 0, 1, 2, 3, 4, 5, 6, 6),
               "layer 3 rotates two pairs by the same frequency");
  refuse_layer("rope", json_pack("{s:i, s:f, s:n}", "dim", 16, "theta", 5000.0, "rope_scaling"),
               "layer 3 rotates by another table");
  scale_rope(json_pack("{s:s, s:f}", "rope_type", "dynamic", "factor", 2.0), 16);
  refuse("source", "no", file, KF_ERROR_INPUT, "layer 0 has RoPE scaling of type 'dynamic'");
  scale_rope(json_pack("{s:s, s:f}", "rope_type", "linear", "factor", 2.0), 16);
  refuse("source", "no", directory, KF_ERROR_INPUT, "--format gguf expresses it");
  scale_rope(json_pack("{s:s, s:f, s:i}", "rope_type", "yarn", "factor", 2.0, "original_max_position_embeddings", 256), 24);
  refuse("source", "no", (kf_export_options){.pad = 512}, KF_ERROR_INPUT,
         "have 32 rotated pairs, and the model's frequencies make a table of 12");
  scale_rope(json_null(), 16);
  json_t *config = read_config("source");
  json_object_set_new(json_object_get(config, "kvfold"), "source_model_type", json_string("mistral"));
  json_object_set_new(config, "sliding_window", json_integer(128));
  write_config("source", config);
  refuse("source", "no", file, KF_ERROR_INPUT, "layer 0 sees a sliding window of 128 tokens");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_directory),    cmocka_unit_test(test_peers),
      cmocka_unit_test(test_table),        cmocka_unit_test(test_gguf),
      cmocka_unit_test(test_small),        cmocka_unit_test(test_pad),
      cmocka_unit_test(test_rope_scaling), cmocka_unit_test(test_source),
      cmocka_unit_test(test_tokenizer),    cmocka_unit_test(test_sentencepiece),
      cmocka_unit_test(test_pre),          cmocka_unit_test(test_writer),
      cmocka_unit_test(test_refusals),     cmocka_unit_test(test_least_roundoff),
      cmocka_unit_test(test_f16_latents),
  };
  return cmocka_run_group_tests_name("export", tests, make_scratch, remove_scratch);
}
