/* A GGUF file's metadata as the Hugging Face configuration that it was made from. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/config.h"

static kf_status need_int(const kf_gguf *g, const char *arch, const char *key, int64_t *out, kf_error *e) {
  char name[128];
  snprintf(name, sizeof name, "%s.%s", arch, key);
  if (!kf_gguf_has(g, name)) return kf_fail(e, KF_ERROR_INPUT, "%s: metadata key %s is missing", kf_gguf_path(g), name);
  return kf_gguf_int(g, name, out, e);
}

static kf_status want_int(const kf_gguf *g, const char *arch, const char *key, int64_t *out, kf_error *e) {
  char name[128];
  snprintf(name, sizeof name, "%s.%s", arch, key);
  return kf_gguf_int(g, name, out, e);
}

/* llama.cpp stores llama3 scaling as a tensor of divisors; the configuration's numbers are read off it and checked. */
static kf_status infer_llama3(const kf_gguf *g, const kf_view *v, int dim, double theta, int64_t context, json_t *config,
                              kf_error *e) {
  float divisor[2048];
  if (v->dims != 1 || v->shape[0] != dim / 2 || dim / 2 > 2048 || v->dtype != KF_F32)
    return kf_fail(e, KF_ERROR_INPUT, "%s: rope_freqs.weight must be %d f32 numbers", kf_gguf_path(g), dim / 2);
  kf_to_f32(v->dtype, v->data, divisor, (size_t)dim / 2);
  double factor = 1;
  for (int i = 0; i < dim / 2; i++) factor = fmax(factor, divisor[i]);
  kf_rope plain = {.type = KF_ROPE_DEFAULT, .dim = dim, .theta = theta, .context = context};
  kf_rope scaled = {.type = KF_ROPE_LLAMA3,
                    .dim = dim,
                    .theta = theta,
                    .context = context,
                    .factor = factor,
                    .low_freq_factor = 1,
                    .high_freq_factor = 4,
                    .original_context = 8192};
  double f0[2048], f1[2048], unused;
  kf_rope_frequencies(&plain, context, f0, &unused);
  kf_rope_frequencies(&scaled, context, f1, &unused);
  for (int i = 0; i < dim / 2; i++)
    if (fabs(f0[i] / f1[i] - divisor[i]) > 1e-3 * divisor[i])
      return kf_fail(e, KF_ERROR_INPUT, "%s: rope_freqs.weight[%d] is %g, which is no llama3 scaling (expected %g)",
                     kf_gguf_path(g), i, divisor[i], f0[i] / f1[i]);
  json_object_set_new(config, "rope_scaling",
                      json_pack("{s:s,s:f,s:f,s:f,s:i}", "rope_type", "llama3", "factor", factor, "low_freq_factor", 1.0,
                                "high_freq_factor", 4.0, "original_max_position_embeddings", 8192));
  return KF_OK;
}

static kf_status read_rope(const kf_gguf *g, const char *arch, int64_t dim, int64_t context, json_t *config, kf_error *e) {
  char name[128];
  double theta = 10000, factor = 1;
  const char *type = "none";
  snprintf(name, sizeof name, "%s.rope.freq_base", arch);
  KF_TRY(kf_gguf_real(g, name, &theta, e));
  json_object_set_new(config, "rope_theta", json_real(theta));
  snprintf(name, sizeof name, "%s.rope.scaling.type", arch);
  KF_TRY(kf_gguf_string(g, name, &type, e));
  snprintf(name, sizeof name, "%s.rope.scaling.factor", arch);
  KF_TRY(kf_gguf_real(g, name, &factor, e));
  const kf_view *divisors = kf_gguf_find(g, "rope_freqs.weight");
  if (divisors) return infer_llama3(g, divisors, (int)dim, theta, context, config, e);
  if (strcmp(type, "none") == 0 || strcmp(type, "") == 0) return KF_OK;
  int64_t original = 0;
  KF_TRY(want_int(g, arch, "rope.scaling.original_context_length", &original, e));
  json_t *scaling =
      json_pack("{s:s,s:f}", "rope_type", type, "factor", factor); /* linear, yarn; others are refused by name later */
  if (original > 0) json_object_set_new(scaling, "original_max_position_embeddings", json_integer(original));
  json_object_set_new(config, "rope_scaling", scaling);
  return KF_OK;
}

static kf_status describe(const kf_gguf *g, const char *arch, json_t *o, kf_error *e) {
  static const struct {
    const char *gguf, *hf;
  } keys[] = {
      {"block_count", "num_hidden_layers"},
      {"context_length", "max_position_embeddings"},
      {"embedding_length", "hidden_size"},
      {"feed_forward_length", "intermediate_size"},
      {"attention.head_count", "num_attention_heads"},
  };
  int64_t value[5], kv, dim, rotated, token = -1;
  for (int i = 0; i < 5; i++) {
    KF_TRY(need_int(g, arch, keys[i].gguf, &value[i], e));
    json_object_set_new(o, keys[i].hf, json_integer(value[i]));
  }
  kv = value[4];
  if (value[4] < 1 || value[2] < 1)
    return kf_fail(e, KF_ERROR_INPUT, "%s: %s.attention.head_count must be positive", kf_gguf_path(g), arch);
  KF_TRY(want_int(g, arch, "attention.head_count_kv", &kv, e));
  json_object_set_new(o, "num_key_value_heads", json_integer(kv));
  dim = value[2] / value[4];
  KF_TRY(want_int(g, arch, "attention.key_length", &dim, e));
  rotated = dim;
  KF_TRY(want_int(g, arch, "rope.dimension_count", &rotated, e));
  if (rotated != dim)
    return kf_fail(e, KF_ERROR_INPUT, "%s: %s.rope.dimension_count is %d of %d numbers a head; partial rotation is not supported",
                   kf_gguf_path(g), arch, (int)rotated, (int)dim);
  json_object_set_new(o, "head_dim", json_integer(dim));
  double eps = 1e-5;
  char name[128];
  snprintf(name, sizeof name, "%s.attention.layer_norm_rms_epsilon", arch);
  KF_TRY(kf_gguf_real(g, name, &eps, e));
  /* Stored as f32: 1e-5 comes back as 9.99999974e-06; write the short number that rounds to it. */
  char text[32];
  snprintf(text, sizeof text, "%.6g", eps);
  double shorter;
  if (sscanf(text, "%lf", &shorter) == 1 && (float)shorter == (float)eps) eps = shorter;
  json_object_set_new(o, "rms_norm_eps", json_real(eps));
  const kf_view *embedding = kf_gguf_find(g, "token_embd.weight");
  if (!embedding || embedding->dims != 2)
    return kf_fail(e, KF_ERROR_INPUT, "%s: tensor token_embd.weight is missing", kf_gguf_path(g));
  json_object_set_new(o, "vocab_size", json_integer(embedding->shape[0]));
  json_object_set_new(o, "tie_word_embeddings", json_boolean(!kf_gguf_find(g, "output.weight")));
  if (dim > 4096 || dim < 2)
    return kf_fail(e, KF_ERROR_INPUT, "%s: heads of %d numbers are not supported", kf_gguf_path(g), (int)dim);
  KF_TRY(read_rope(g, arch, dim, value[1], o, e));
  KF_TRY(kf_gguf_int(g, "tokenizer.ggml.bos_token_id", &token, e));
  if (token >= 0) json_object_set_new(o, "bos_token_id", json_integer(token));
  token = -1;
  KF_TRY(kf_gguf_int(g, "tokenizer.ggml.eos_token_id", &token, e));
  if (token >= 0) json_object_set_new(o, "eos_token_id", json_integer(token));
  return KF_OK;
}

kf_status kf_config_from_gguf(const kf_gguf *g, kf_config *out, kf_error *e) {
  static const struct {
    const char *arch, *type, *architecture;
  } known[] = {
      {"llama", "llama", "LlamaForCausalLM"}, {"qwen2", "qwen2", "Qwen2ForCausalLM"}, {"qwen3", "qwen3", "Qwen3ForCausalLM"}};
  const char *arch = "";
  KF_TRY(kf_gguf_string(g, "general.architecture", &arch, e));
  for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
    if (strcmp(known[i].arch, arch) != 0) continue;
    bool bias = strcmp(arch, "llama") == 0 && kf_gguf_find(g, "blk.0.attn_q.bias");
    json_t *o = json_pack("{s:[s],s:s,s:s,s:b}", "architectures", known[i].architecture, "model_type", known[i].type,
                          "hidden_act", "silu", "attention_bias", bias);
    if (!o) return kf_fail(e, KF_ERROR_MEMORY, "out of memory");
    kf_status s = describe(g, arch, o, e);
    if (s == KF_OK) s = kf_config_from_json(kf_gguf_path(g), o, NULL, out, e);
    json_decref(o);
    return s;
  }
  return kf_fail(e, KF_ERROR_INPUT, "%s: architecture '%s' is not supported (known: llama, qwen2, qwen3)", kf_gguf_path(g), arch);
}
