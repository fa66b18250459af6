/* Cache sizes, ranks and parameter counts against the figures of the papers, for models of their shapes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "convert/plan.h"
#include "convert/record.h"

typedef struct shape {
  int hidden, layers, heads, kv_heads, head_dim, intermediate, vocabulary;
  bool tied;
} shape;
static const shape smollm_135m = {576, 30, 9, 3, 64, 1536, 49152, true};
static const shape smollm_360m = {960, 32, 15, 5, 64, 2560, 49152, true};
static const shape smollm_1b7 = {2048, 24, 32, 32, 64, 8192, 49152, true};
static const shape llama2_7b = {4096, 32, 32, 32, 128, 11008, 32000, false};
static const shape llama32_1b = {2048, 16, 32, 8, 64, 8192, 128256, true};
static const shape llama32_3b = {3072, 28, 24, 8, 128, 8192, 128256, true};
static const shape llama31_8b = {4096, 32, 32, 8, 128, 14336, 128256, false};

static json_t *describe(const shape *s) {
  return json_pack("{s:s,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:b,s:i,s:f}", "model_type", "llama", "hidden_size", s->hidden,
                   "num_hidden_layers", s->layers, "num_attention_heads", s->heads, "num_key_value_heads", s->kv_heads,
                   "head_dim", s->head_dim, "intermediate_size", s->intermediate, "vocab_size", s->vocabulary,
                   "tie_word_embeddings", s->tied, "max_position_embeddings", 2048, "rms_norm_eps", 1e-5);
}

static void parse(json_t *json, kf_config *out) {
  kf_error e = {0};
  if (kf_config_from_json("config.json", json, NULL, out, &e) != KF_OK) fail_msg("%s", e.message);
  json_decref(json);
}

static void resolve(const kf_config *c, const char *method, const char *cache, const kf_setting *settings, int count,
                    kf_plan *p) {
  kf_error e = {0};
  kf_convert_options o = {.method = method, .cache = cache, .settings = settings, .setting_count = count};
  if (kf_plan_options(&o, p, &e) != KF_OK || kf_plan_resolve(p, c, NULL, NULL, &e) != KF_OK) fail_msg("%s", e.message);
}

static kf_status count_one(void *user, const char *name, int64_t rows, int64_t columns, kf_error *e) {
  (void)name, (void)e;
  *(int64_t *)user += rows * columns;
  return KF_OK;
}

/* The model that a plan for MHA2MLA leads to, as it would be read back: its numbers, and one layer's cache. */
static int64_t converted_parameters(const shape *s, const kf_plan *p, int64_t *cache) {
  kf_config c, converted;
  parse(describe(s), &c);
  int pairs[64];
  int32_t index[64 * 64];
  assert_int_equal(kf_rope_select(KF_ROPE_HIGH, s->kv_heads, s->head_dim / 2, p->pairs, NULL, pairs, index, NULL), KF_OK);
  json_t *layers = json_array(), *recipe = json_object(), *json;
  for (int i = 0; i < s->layers; i++) {
    kf_attention_config a = c.layer[i].attention;
    a.kind = KF_LATENT;
    a.rank = p->rank[i];
    a.rope_pairs = pairs;
    a.rope_index = index;
    json_array_append_new(layers, kf_layer_record(&a));
  }
  assert_int_equal(kf_config_record(&c, "mha2mla", recipe, layers, 0, KF_BF16, &json, NULL), KF_OK);
  json_decref(layers);
  json_decref(recipe);
  parse(json, &converted);
  *cache = kf_attention_cache_elements(&converted.layer[0].attention);
  int64_t sum = 0;
  assert_int_equal(kf_weights_each(&converted, count_one, &sum, NULL), KF_OK);
  kf_config_free(&converted);
  kf_config_free(&c);
  return sum;
}

/* MHA2MLA, table 4: d_kv latents a KV head, d_h / 16 pairs. The paper leaves out one of the two embeddings of Llama-2. */
static void test_mha2mla_parameters(void **state) {
  (void)state;
  static const struct {
    const shape *s;
    int d_kv;
    double millions, digits;
  } rows[] = {
      {&smollm_135m, 32, 130.99, 0.005}, {&smollm_135m, 16, 129.64, 0.005}, {&smollm_135m, 8, 128.97, 0.005},
      {&smollm_360m, 32, 351.38, 0.005}, {&smollm_360m, 16, 347.38, 0.005}, {&smollm_360m, 8, 345.4, 0.05},
      {&smollm_1b7, 32, 1667, 0.5},      {&smollm_1b7, 16, 1595, 0.5},      {&smollm_1b7, 8, 1559, 0.5},
      {&llama2_7b, 64, 6370, 5},         {&llama2_7b, 32, 5990, 5},         {&llama2_7b, 16, 5790, 5},
  };
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    const shape *s = rows[i].s;
    char rank[16];
    kf_config c;
    kf_plan p;
    int64_t cache;
    parse(describe(s), &c);
    snprintf(rank, sizeof rank, "%d", s->kv_heads * rows[i].d_kv);
    resolve(&c, "mha2mla", NULL, &(kf_setting){"rank", rank}, 1, &p);
    int64_t left_out = s->tied ? 0 : (int64_t)s->vocabulary * s->hidden;
    double millions = (double)(converted_parameters(s, &p, &cache) - left_out) / 1e6;
    if (!(fabs(millions - rows[i].millions) <= rows[i].digits * 1.01))
      fail_msg("row %zu: %g million, not %g", i, millions, rows[i].millions);
    assert_int_equal(cache, s->kv_heads * (s->head_dim / 8 + rows[i].d_kv));
    /* the same rank from the budget: kept = (d_r + d_kv) / (2 d_h) */
    char budget[32];
    snprintf(budget, sizeof budget, "%.10g%%", 100.0 * (s->head_dim / 8 + rows[i].d_kv) / (2 * s->head_dim));
    kf_plan q;
    resolve(&c, "mha2mla", budget, NULL, 0, &q);
    assert_int_equal(q.rank[0], p.rank[0]);
    kf_plan_free(&q);
    kf_plan_free(&p);
    kf_config_free(&c);
  }
}

/* X-EcoMLA: r_kv + d_r elements a token and layer, of 2 n_kv d_h; r_kv from a budget. */
static void test_xecomla_cache(void **state) {
  (void)state;
  static const struct {
    const shape *s;
    const char *budget;
    int elements, kv_rank;
  } rows[] = {
      {&llama32_1b, "53.125%", 544, 512}, {&llama32_1b, "28.125%", 288, 256}, {&llama32_1b, "15.625%", 160, 128},
      {&llama32_1b, "9.375%", 96, 64},    {&llama32_1b, "80", 80, 48},        {&llama32_3b, "880", 880, 816},
      {&llama32_3b, "25%", 512, 448},     {&llama31_8b, "9.375%", 192, 128},  {&llama31_8b, "320", 320, 256},
      {&smollm_1b7, "12.5%", 512, 480},   {&smollm_1b7, "50%", 2048, 2016},   {&smollm_135m, "50%", 192, 160},
      {&smollm_135m, "12.5%", 48, 16},    {&smollm_360m, "50%", 320, 288},    {&smollm_360m, "12.5%", 80, 48},
  };
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    kf_config c;
    kf_plan p;
    parse(describe(rows[i].s), &c);
    resolve(&c, "x-ecomla", rows[i].budget, NULL, 0, &p);
    assert_int_equal(p.rank[0], rows[i].kv_rank);
    assert_int_equal(p.rank[0] + p.rope, rows[i].elements);
    kf_plan_free(&p);
    kf_config_free(&c);
  }
}

/* Section 1.2 of the reference: the query rank that leaves Llama-3.2-1B as large as it was. */
static void test_parity(void **state) {
  (void)state;
  static const struct {
    const char *kv_rank;
    int q_rank;
  } rows[] = {{"512", 880}, {"256", 1200}, {"128", 1360}, {"64", 1440}, {"48", 1460}};
  kf_config c;
  parse(describe(&llama32_1b), &c);
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    kf_plan p;
    const kf_setting settings[] = {{"kv_rank", rows[i].kv_rank}, {"q_rank", "parity"}};
    resolve(&c, "x-ecomla", NULL, settings, 2, &p);
    assert_int_equal(p.q_rank[0], rows[i].q_rank);
    kf_plan_free(&p);
  }
  kf_config_free(&c);
}

static void test_defaults_and_clamps(void **state) {
  (void)state;
  kf_config c;
  kf_plan p;
  parse(describe(&smollm_135m), &c);
  resolve(&c, "mha2mla", NULL, NULL, 0, &p); /* half of 384, 4 pairs in each of 3 heads */
  assert_int_equal(p.pairs, 4);
  assert_int_equal(p.rank[0], 192 - 24);
  assert_string_equal(json_string_value(json_object_get(p.settings, "rope_policy")), "high");
  assert_int_equal(json_integer_value(json_object_get(p.settings, "rank")), 168);
  kf_plan_free(&p);
  resolve(&c, "mha2mla", "1000%", NULL, 0, &p); /* all rows: 3 x (56 + 64) of hidden 576 */
  assert_int_equal(p.rank[29], 360);
  kf_plan_free(&p);
  resolve(&c, "x-ecomla", "500", (const kf_setting[]){{"layers", "1,28-29"}}, 1, &p);
  assert_int_equal(p.rank[28], 384);
  assert_true(p.convert[1] && p.convert[28] && p.convert[29] && !p.convert[0] && !p.convert[2]);
  kf_plan_free(&p);
  kf_config_free(&c);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_mha2mla_parameters),
      cmocka_unit_test(test_xecomla_cache),
      cmocka_unit_test(test_parity),
      cmocka_unit_test(test_defaults_and_clamps),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
