/* A directory that Hugging Face Transformers and its kin load as DeepseekV3ForCausalLM, without code of ours. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "convert/write.h"
#include "export/export.h"
#include "export/stock_basis.h"
#include "model/model.h"

/* Transformers gives the norm of the latents this eps whatever the configuration says; other engines give it the
 * configuration's. With one eps everywhere the file means the same to all of them. */
static const double EPS = 1e-6;

typedef struct writer {
  kf_export_job *j;
  kf_stock stock;
  kf_output *output;
  int unit; /* layer + 1 of the tensors at work */
} writer;

static kf_status write_tensor(void *user, const kf_stock_tensor *t, kf_error *e) {
  writer *w = user;
  float *data;
  if (t->layer + 1 != w->unit) KF_TRY(kf_output_end_unit(w->output, NULL, e)); /* where a shard may end */
  w->unit = t->layer + 1;
  KF_TRY(kf_export_count(w->j, t, w->j->dtype, e));
  KF_TRY(kf_stock_read(&w->stock, t, &data, e));
  kf_status s = kf_output_add(w->output, t->name, t->dims, t->shape, data, e);
  free(data);
  return s;
}

static kf_status count_tensor(void *user, const kf_stock_tensor *t, kf_error *e) {
  (void)t, (void)e;
  ++*(int64_t *)user;
  return KF_OK;
}

/* ------------------------------------------------------------------------------------------------ configuration */

static json_t *token_ids(const int32_t *ids, int count) {
  if (count == 0) return json_null();
  if (count == 1) return json_integer(ids[0]);
  json_t *list = json_array();
  for (int i = 0; i < count; i++) json_array_append_new(list, json_integer(ids[i]));
  return list;
}

/* Loaders differ in the key that names the type, and in whether attention_factor or mscale is what they look at. */
static json_t *rope_scaling(const kf_rope *r) {
  if (r->type == KF_ROPE_DEFAULT) return json_null();
  return json_pack("{s:s, s:s, s:f, s:I, s:f, s:f, s:i, s:i, s:f}", "type", kf_rope_type_name(r->type), "rope_type",
                   kf_rope_type_name(r->type), "factor", r->factor, "original_max_position_embeddings",
                   (json_int_t)r->original_context, "beta_fast", r->beta_fast, "beta_slow", r->beta_slow, "mscale", 0,
                   "mscale_all_dim", 0, "attention_factor", 1.0);
}

/* Every layer is dense; the keys of experts are there because loaders ask for them. */
static json_t *describe(const kf_stock *s, kf_dtype dtype) {
  const kf_config *c = s->config;
  int inner = c->layer[0].intermediate;
  json_t *o = json_pack("{s:[s], s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:I}", "architectures", "DeepseekV3ForCausalLM",
                        "model_type", "deepseek_v3", "hidden_act", "silu", "hidden_size", c->hidden, "intermediate_size", inner,
                        "num_hidden_layers", c->layers, "num_attention_heads", c->heads, "num_key_value_heads", c->heads,
                        "vocab_size", c->vocabulary, "max_position_embeddings", (json_int_t)c->context);
  json_t *attention = json_pack("{s:n, s:i, s:i, s:i, s:i, s:i, s:b, s:b, s:f, s:o, s:f, s:b}", "q_lora_rank", "kv_lora_rank",
                                s->rank, "qk_nope_head_dim", s->nope, "qk_rope_head_dim", s->rope.dim, "v_head_dim", s->v,
                                "head_dim", s->rope.dim, "attention_bias", 0, "rope_interleave", 1, "rope_theta", s->rope.theta,
                                "rope_scaling", rope_scaling(&s->rope), "rms_norm_eps", s->eps, "tie_word_embeddings", 0);
  json_t *experts = json_pack("{s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:s, s:s, s:b}", "first_k_dense_replace", c->layers,
                              "n_routed_experts", 1, "n_shared_experts", 1, "num_experts_per_tok", 1, "n_group", 1, "topk_group",
                              1, "moe_intermediate_size", inner, "moe_layer_freq", 1, "routed_scaling_factor", 1.0,
                              "scoring_func", "sigmoid", "topk_method", "noaux_tc", "norm_topk_prob", 1);
  json_t *rest =
      json_pack("{s:o, s:o, s:b, s:s}", "bos_token_id", token_ids(&c->bos, c->bos >= 0), "eos_token_id",
                token_ids(c->eos, c->eos_count), "use_cache", 1, "torch_dtype", dtype == KF_F32 ? "float32" : "bfloat16");
  bool bad = !o || !attention || !experts || !rest || json_object_update(o, attention) || json_object_update(o, experts) ||
             json_object_update(o, rest);
  json_decref(attention);
  json_decref(experts);
  json_decref(rest);
  if (!bad) return o;
  json_decref(o);
  return NULL;
}

static kf_status write_config(const writer *w, kf_error *e) {
  char path[KF_PATH];
  json_t *config = describe(&w->stock, w->j->dtype);
  if (!config) return kf_fail(e, KF_ERROR_MEMORY, "out of memory while describing the model");
  kf_status s = kf_join(path, kf_output_path(w->output), "config.json", e);
  if (s == KF_OK) s = kf_json_write(path, config, e);
  json_decref(config);
  return s;
}

static kf_status copy_companions(const writer *w, kf_error *e) {
  static const char *const names[] = {
      "tokenizer.json",      "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json",
      "chat_template.jinja", "chat_template.json",    "tokenizer.model",         "vocab.json",        "merges.txt"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    char from[KF_PATH], to[KF_PATH];
    KF_TRY(kf_join(from, w->j->path, names[i], e));
    KF_TRY(kf_join(to, kf_output_path(w->output), names[i], e));
    if (kf_is_file(from)) KF_TRY(kf_copy_file(from, to, e));
  }
  return KF_OK;
}

/* Reads the result back: what does not load is not published. */
static kf_status check_result(const writer *w, kf_error *e) {
  kf_config c;
  kf_weights weights;
  KF_TRY(kf_model_read(kf_output_path(w->output), &c, &weights, e));
  kf_weights_close(&weights);
  kf_config_free(&c);
  return KF_OK;
}

static kf_status write_all(writer *w, kf_error *e) {
  KF_TRY(kf_stock_each(&w->stock, count_tensor, &w->j->all, e));
  KF_TRY(kf_stock_each(&w->stock, write_tensor, w, e));
  KF_TRY(kf_output_seal(w->output, e));
  KF_TRY(copy_companions(w, e));
  KF_TRY(write_config(w, e));
  KF_TRY(check_result(w, e));
  return kf_output_publish(w->output, e);
}

kf_status kf_export_deepseek(kf_export_job *j, kf_error *e) {
  writer w = {.j = j};
  struct timespec now;
  const kf_stock_target target = {.eps = EPS, .pad = j->pad, .hooks = j->hooks};
  KF_TRY(kf_stock_plan(j->path, &j->config, &j->weights, &target, &w.stock, e));
  if (j->check) return KF_OK;
  clock_gettime(CLOCK_REALTIME, &now);
  /* an export is quick and never resumed: the time makes its fingerprint that of no other */
  json_t *fingerprint =
      json_pack("{s:s, s:I, s:I}", "export", j->path, "started", (json_int_t)now.tv_sec, "nanoseconds", (json_int_t)now.tv_nsec);
  if (!fingerprint) return kf_fail(e, KF_ERROR_INPUT, "the path of the model is not UTF-8");
  kf_status s = j->f16_latents ? kf_stock_find_basis(j->path, j->hooks, &w.stock, e) : KF_OK;
  if (s == KF_OK) s = kf_output_open(j->out, fingerprint, j->dtype, 0, j->hooks, &w.output, e);
  if (s == KF_OK) {
    s = write_all(&w, e);
    kf_output_close(w.output, false);
  }
  kf_stock_free_basis(&w.stock);
  json_decref(fingerprint);
  return s;
}
