/* What a model is: one description for all families, read from config.json or GGUF metadata. */
#ifndef KF_MODEL_CONFIG_H
#define KF_MODEL_CONFIG_H

#include "base/json.h"
#include "tensor/source.h"

typedef enum kf_rope_type {
  KF_ROPE_DEFAULT,
  KF_ROPE_LINEAR,
  KF_ROPE_DYNAMIC,
  KF_ROPE_LLAMA3,
  KF_ROPE_YARN,
  KF_ROPE_LONGROPE
} kf_rope_type;

/* Frequencies of a rotation over `dim` numbers (dim / 2 pairs): theta and its scaling, as Hugging Face computes them. */
typedef struct kf_rope {
  kf_rope_type type;
  int dim;
  double theta;
  /* 0: not given */
  double factor, low_freq_factor, high_freq_factor, beta_fast, beta_slow, mscale, mscale_all_dim, attention_factor;
  int64_t original_context, context;        /* of the scaling; of the model */
  bool truncate;                            /* yarn: bounds rounded to whole pairs (default) */
  const double *short_factor, *long_factor; /* [dim / 2] longrope */
} kf_rope;

typedef enum kf_attention_kind { KF_GROUPED, KF_LATENT } kf_attention_kind;

/* One attention layer. Per head, q and k are [nope | rope], rope rows half-split: pair i is (i, i + pairs). */
typedef struct kf_attention_config {
  kf_attention_kind kind;
  int heads, kv_heads; /* kv_heads: heads of the (expanded) keys and values; a latent layer may have one a query head */
  int d_qk, d_v;       /* per head: nope + rope; values */
  float scale;         /* of the scores: usually d_qk^-1/2 */
  int64_t window;      /* 0: none */
  kf_rope rope;        /* the table of frequencies that pairs index into */
  bool q_bias, k_bias, v_bias, o_bias; /* grouped; a latent layer: kv_a_bias, kv_b_bias below */
  bool qk_norm;                        /* RMSNorm of each q and k head before the rotation */
  /* grouped: rope_heads = kv_heads, every head rotates all d_qk, or nothing (NoPE layer: rope_pairs all 0) */
  int rope_heads;            /* 1: shared rope key; else kv_heads */
  bool rope_interleaved;     /* stored rope rows are pairs (2i, 2i + 1): DeepSeek's layout, turned to half-split on loading */
  const int *rope_pairs;     /* [rope_heads] pairs kept */
  const int32_t *rope_index; /* the pairs of head 0, then of head 1, ...: columns of the table, [sum rope_pairs] */
  int rank;                  /* latent: kv_lora_rank */
  int q_rank;                /* 0: full query */
  bool kv_a_norm, q_a_norm;  /* RMSNorm on the latents */
  float latent_eps;
  bool q_a_bias, kv_a_bias, kv_b_bias;
} kf_attention_config;

typedef struct kf_layer_config {
  kf_attention_config attention;
  int intermediate;
  bool mlp_bias;
} kf_layer_config;

typedef struct kf_config {
  kf_arena arena; /* owns everything below */
  char family[32], method[32];
  int layers, hidden, heads, kv_heads, head_dim, intermediate, vocabulary;
  int64_t context;
  float eps;
  bool tied;
  int32_t bos;     /* -1: none */
  int32_t eos[16]; /* generation_config.json's, else config.json's */
  int eos_count;
  const kf_layer_config *layer; /* [layers] */
  json_t *json;                 /* config.json as read; for a GGUF the equivalent Hugging Face object; owned */
} kf_config;

/* directory: config.json (and generation_config.json). */
kf_status kf_config_from_directory(const char *directory, kf_config *out, kf_error *e);
/* llama, qwen2, qwen3 architectures. */
kf_status kf_config_from_gguf(const kf_gguf *g, kf_config *out, kf_error *e);
/* json (borrowed) named `file` in messages; generation may be NULL. */
kf_status kf_config_from_json(const char *file, json_t *json, json_t *generation, kf_config *out, kf_error *e);
void kf_config_free(kf_config *c);

/* Numbers that one token leaves in one layer's cache. */
int64_t kf_attention_cache_elements(const kf_attention_config *a);
int kf_attention_rope_width(const kf_attention_config *a); /* 2 x sum of rope_pairs */

/* Nope rows of KV head g, and rows of kv_b: every head's nope rows and values. */
int kf_attention_nope(const kf_attention_config *a, int g);
int kf_attention_kv_b_rows(const kf_attention_config *a);

/* Frequencies [dim / 2] (rounded to f32 as Hugging Face does) for a sequence of `length` tokens, and the factor on cos and sin. */
void kf_rope_frequencies(const kf_rope *r, int64_t length, double *frequency, double *attention_factor);
const char *kf_rope_type_name(kf_rope_type t);
/* Reads "rope_theta", "rope_scaling"/"rope_parameters" of a config object into out (dim given). Memory from arena. */
kf_status kf_rope_from_json(const char *file, const json_t *config, int dim, int64_t context, kf_arena *arena, kf_rope *out,
                            kf_error *e);

#endif
