#include "convert/record.h"

#include <string.h>

/* Sets a member, and remembers in *ok that one failed. */
static void put(json_t *o, const char *key, json_t *value, bool *ok) {
  if (json_object_set_new(o, key, value) != 0) *ok = false;
}

static json_t *list_of(const double *values, int count) {
  json_t *list = json_array();
  for (int i = 0; i < count; i++) json_array_append_new(list, json_real(values[i]));
  return list;
}

/* As Hugging Face writes "rope_scaling": null for none. */
static json_t *scaling_record(const kf_rope *r, bool *ok) {
  if (r->type == KF_ROPE_DEFAULT) return json_null();
  json_t *o = json_object();
  put(o, "rope_type", json_string(kf_rope_type_name(r->type)), ok);
  put(o, "factor", json_real(r->factor), ok);
  put(o, "original_max_position_embeddings", json_integer(r->original_context), ok);
  if (r->type == KF_ROPE_LLAMA3) {
    put(o, "low_freq_factor", json_real(r->low_freq_factor), ok);
    put(o, "high_freq_factor", json_real(r->high_freq_factor), ok);
  }
  if (r->type == KF_ROPE_YARN) {
    put(o, "beta_fast", json_real(r->beta_fast), ok);
    put(o, "beta_slow", json_real(r->beta_slow), ok);
    put(o, "mscale", json_real(r->mscale), ok);
    put(o, "mscale_all_dim", json_real(r->mscale_all_dim), ok);
    put(o, "truncate", json_boolean(r->truncate), ok);
  }
  if (r->type == KF_ROPE_LONGROPE) {
    put(o, "short_factor", list_of(r->short_factor, r->dim / 2), ok);
    put(o, "long_factor", list_of(r->long_factor, r->dim / 2), ok);
  }
  if (r->attention_factor != 0) put(o, "attention_factor", json_real(r->attention_factor), ok);
  return o;
}

static void put_latent(json_t *o, const kf_attention_config *a, bool *ok) {
  json_t *pairs = json_array(), *index = json_array(), *rope = json_object();
  int sum = 0;
  for (int g = 0; g < a->rope_heads; g++) {
    json_array_append_new(pairs, json_integer(a->rope_pairs[g]));
    sum += a->rope_pairs[g];
  }
  for (int i = 0; i < sum; i++) json_array_append_new(index, json_integer(a->rope_index[i]));
  put(rope, "dim", json_integer(a->rope.dim), ok);
  put(rope, "theta", json_real(a->rope.theta), ok);
  put(rope, "rope_scaling", scaling_record(&a->rope, ok), ok);
  put(o, "kv_lora_rank", json_integer(a->rank), ok);
  put(o, "q_lora_rank", json_integer(a->q_rank), ok);
  put(o, "rope_heads", json_integer(a->rope_heads), ok);
  put(o, "rope_pairs", pairs, ok);
  put(o, "rope_index", index, ok);
  put(o, "rope", rope, ok);
  put(o, "scale", json_real(a->scale), ok);
  put(o, "latent_norm", json_boolean(a->kv_a_norm), ok);
  put(o, "latent_eps", json_real(a->kv_a_norm ? 1e-6 : 0), ok);
  put(o, "q_bias", json_boolean(a->q_bias), ok);
  put(o, "kv_a_bias", json_boolean(a->kv_a_bias), ok);
  put(o, "kv_b_bias", json_boolean(a->kv_b_bias), ok);
}

json_t *kf_layer_record(const kf_attention_config *a) {
  bool ok = true;
  json_t *o = json_object();
  put(o, "attention", json_string(a->kind == KF_LATENT ? "latent" : "grouped"), &ok);
  put(o, "kv_heads", json_integer(a->kv_heads), &ok);
  put(o, "qk_head_dim", json_integer(a->d_qk), &ok);
  put(o, "v_head_dim", json_integer(a->d_v), &ok);
  if (a->kind == KF_LATENT) put_latent(o, a, &ok);
  put(o, "o_bias", json_boolean(a->o_bias), &ok);
  put(o, "qk_norm", json_boolean(a->qk_norm), &ok);
  if (ok) return o;
  json_decref(o);
  return NULL;
}

/* What Hugging Face calls it; both names where the source has the new one. */
static void put_dtype(json_t *o, kf_dtype dtype, bool *ok) {
  const char *name = dtype == KF_F32 ? "float32" : dtype == KF_F16 ? "float16" : "bfloat16";
  if (json_object_get(o, "dtype")) put(o, "dtype", json_string(name), ok);
  if (!json_object_get(o, "dtype") || json_object_get(o, "torch_dtype")) put(o, "torch_dtype", json_string(name), ok);
}

kf_status kf_config_record(const kf_config *source, const char *method, const json_t *recipe, const json_t *layers, int kv_heads,
                           kf_dtype dtype, json_t **out, kf_error *e) {
  bool ok = true;
  json_t *o = json_deep_copy(source->json);
  put_dtype(o, dtype, &ok);
  put(o, "tie_word_embeddings", json_boolean(source->tied), &ok);
  if (kv_heads) put(o, "num_key_value_heads", json_integer(kv_heads), &ok);
  if (layers || kv_heads) {
    json_t *ours = json_object();
    put(ours, "format", json_integer(1), &ok);
    put(ours, "version", json_string(KF_VERSION), &ok);
    put(ours, "source_model_type", json_string(source->family), &ok);
    put(ours, "method", json_string(method), &ok);
    put(ours, "recipe", json_deep_copy(recipe), &ok);
    put(o, "kvfold", ours, &ok);
    if (layers) {
      put(ours, "layers", json_deep_copy(layers), &ok);
      put(o, "model_type", json_string("kvfold"), &ok);
      put(o, "architectures", json_pack("[s]", "KvfoldForCausalLM"), &ok);
      json_object_del(o, "auto_map");
    }
  }
  if (!ok) {
    json_decref(o);
    return kf_fail(e, KF_ERROR_MEMORY, "out of memory while describing the model");
  }
  *out = o;
  return KF_OK;
}
