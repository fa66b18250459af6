/* config.json of every family into one description. A family is a row of a table; what rows cannot say (windows, NoPE
 * layers, latent layers) is read from the configuration's own keys. */
#include "model/config.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct kf_family {
  const char *type; /* model_type */
  bool qkv_bias;    /* q, k and v always have biases */
  bool bias_key;    /* "attention_bias" says so for q, k, v and o (a latent layer: q_a, kv_a and o) */
  bool qk_norm;
  bool latent; /* DeepSeek's attention */
  bool mscale; /* yarn's mscale_all_dim multiplies the softmax scale */
  enum { NO_WINDOW, ALWAYS_WINDOW, OPTIONAL_WINDOW } window;
  int head_dim; /* when not given; 0: hidden / heads */
  bool tied;    /* when not given */
} kf_family;

static const kf_family families[] = {
    {"llama", .bias_key = true},
    {"mistral", .window = ALWAYS_WINDOW},
    {"qwen2", .qkv_bias = true, .window = OPTIONAL_WINDOW},
    {"qwen3", .bias_key = true, .qk_norm = true, .window = OPTIONAL_WINDOW, .head_dim = 128},
    {"smollm3", .bias_key = true, .window = OPTIONAL_WINDOW, .tied = true},
    {"deepseek_v2", .bias_key = true, .latent = true},
    {"deepseek_v3", .bias_key = true, .latent = true, .mscale = true},
};

enum { MAX_LAYERS = 1024, MAX_HEADS = 4096, MAX_WIDTH = 1 << 20 };

static kf_status find_family(const char *file, const char *type, const kf_family **out, kf_error *e) {
  for (size_t i = 0; i < sizeof families / sizeof *families; i++)
    if (strcmp(families[i].type, type) == 0) {
      *out = &families[i];
      return KF_OK;
    }
  return kf_fail(
      e, KF_ERROR_INPUT,
      "%s: model_type '%s' is not supported (known: llama, mistral, qwen2, qwen3, smollm3, deepseek_v2, deepseek_v3, kvfold)",
      file, type);
}

static kf_status read_int(const json_t *o, const char *file, const char *key, int64_t fallback, int64_t high, int *out,
                          kf_error *e) {
  int64_t v;
  KF_TRY(kf_json_int(o, file, key, fallback, 1, high, &v, e));
  if (v < 1) return kf_fail(e, KF_ERROR_INPUT, "%s: %s is missing", file, key);
  *out = (int)v;
  return KF_OK;
}

static kf_status read_sizes(const char *file, const json_t *o, const kf_family *f, kf_config *c, kf_error *e) {
  int64_t v;
  double eps;
  KF_TRY(read_int(o, file, "num_hidden_layers", 0, MAX_LAYERS, &c->layers, e));
  KF_TRY(read_int(o, file, "hidden_size", 0, MAX_WIDTH, &c->hidden, e));
  KF_TRY(read_int(o, file, "num_attention_heads", 0, MAX_HEADS, &c->heads, e));
  KF_TRY(read_int(o, file, "num_key_value_heads", c->heads, MAX_HEADS, &c->kv_heads, e));
  KF_TRY(read_int(o, file, "intermediate_size", 0, MAX_WIDTH, &c->intermediate, e));
  KF_TRY(read_int(o, file, "vocab_size", 0, 1 << 24, &c->vocabulary, e));
  KF_TRY(kf_json_int(o, file, "max_position_embeddings", 2048, 1, INT64_C(1) << 40, &c->context, e));
  KF_TRY(kf_json_real(o, file, "rms_norm_eps", 1e-6, 0, 1, &eps, e));
  c->eps = (float)eps;
  KF_TRY(kf_json_bool(o, file, "tie_word_embeddings", f->tied, &c->tied, e));
  int fallback = f->head_dim ? f->head_dim : c->hidden / c->heads;
  KF_TRY(read_int(o, file, "head_dim", fallback, 4096, &c->head_dim, e));
  if (c->heads % c->kv_heads)
    return kf_fail(e, KF_ERROR_INPUT, "%s: num_attention_heads %d is not a multiple of num_key_value_heads %d", file, c->heads,
                   c->kv_heads);
  if (!f->latent && c->head_dim % 2)
    return kf_fail(e, KF_ERROR_INPUT, "%s: head_dim %d is odd, and RoPE turns pairs", file, c->head_dim);
  const char *act;
  KF_TRY(kf_json_string(o, file, "hidden_act", "silu", &act, e));
  if (strcmp(act, "silu") != 0 && strcmp(act, "swish") != 0)
    return kf_fail(e, KF_ERROR_INPUT, "%s: hidden_act '%s' is not supported (silu is)", file, act);
  double partial;
  KF_TRY(kf_json_real(o, file, "partial_rotary_factor", 1, 0, 1, &partial, e));
  if (partial != 1) return kf_fail(e, KF_ERROR_INPUT, "%s: partial_rotary_factor %g is not supported", file, partial);
  KF_TRY(kf_json_int(o, file, "bos_token_id", -1, -1, c->vocabulary, &v, e));
  c->bos = (int32_t)v;
  return KF_OK;
}

/* eos_token_id: a number, a list, or nothing. */
static kf_status read_eos(const char *file, const json_t *o, kf_config *c, kf_error *e) {
  const json_t *v = json_object_get(o, "eos_token_id");
  if (!v || json_is_null(v)) return KF_OK;
  size_t n = json_is_array(v) ? json_array_size(v) : 1;
  if (n > sizeof c->eos / sizeof *c->eos)
    return kf_fail(e, KF_ERROR_INPUT, "%s: eos_token_id lists %zu tokens, 16 at most", file, n);
  c->eos_count = 0;
  for (size_t i = 0; i < n; i++) {
    const json_t *id = json_is_array(v) ? json_array_get(v, i) : v;
    if (!json_is_integer(id)) return kf_fail(e, KF_ERROR_INPUT, "%s: eos_token_id must be a number or a list of numbers", file);
    if (json_integer_value(id) >= 0 && json_integer_value(id) <= INT32_MAX)
      c->eos[c->eos_count++] = (int32_t)json_integer_value(id);
  }
  return KF_OK;
}

/* The sliding window of a layer (0: none), by the family's rule or by "layer_types". */
static kf_status read_window(const char *file, const json_t *o, const kf_family *f, int layer, bool nope, int64_t *out,
                             kf_error *e) {
  *out = 0;
  if (f->window == NO_WINDOW) return KF_OK;
  int64_t window, from;
  bool use;
  KF_TRY(kf_json_int(o, file, "sliding_window", 0, 1, INT64_C(1) << 40, &window, e));
  KF_TRY(kf_json_bool(o, file, "use_sliding_window", f->window == ALWAYS_WINDOW, &use, e));
  KF_TRY(kf_json_int(o, file, "max_window_layers", 28, 0, INT64_C(1) << 30, &from, e));
  if (!window || !use) return KF_OK;
  const char *kind = json_string_value(json_array_get(json_object_get(o, "layer_types"), (size_t)layer));
  bool slides = kind                              ? strcmp(kind, "sliding_attention") == 0
                : f->window == ALWAYS_WINDOW      ? true
                : strcmp(f->type, "smollm3") == 0 ? nope
                                                  : layer >= from;
  if (slides) *out = window;
  return KF_OK;
}

/* SmolLM3: "no_rope_layers"[i] is 1 where RoPE IS used; else every no_rope_layer_interval-th layer has none. */
static kf_status has_rope(const char *file, const json_t *o, const kf_family *f, int layer, bool *out, kf_error *e) {
  *out = true;
  if (strcmp(f->type, "smollm3") != 0) return KF_OK;
  const json_t *list = json_object_get(o, "no_rope_layers");
  int64_t interval;
  KF_TRY(kf_json_int(o, file, "no_rope_layer_interval", 4, 1, INT64_C(1) << 30, &interval, e));
  if (!list || json_is_null(list)) {
    *out = (layer + 1) % interval != 0;
    return KF_OK;
  }
  const json_t *v = json_array_get(list, (size_t)layer);
  if (!json_is_integer(v)) return kf_fail(e, KF_ERROR_INPUT, "%s: no_rope_layers must list 0 or 1 for each layer", file);
  *out = json_integer_value(v) != 0;
  return KF_OK;
}

/* Every rope head keeps pairs 0 .. pairs-1. */
static kf_status keep_first(kf_arena *arena, kf_attention_config *a, int rope_heads, int pairs, kf_error *e) {
  int *count = kf_arena_alloc(arena, (size_t)rope_heads, sizeof *count, e);
  int32_t *index = kf_arena_alloc(arena, (size_t)rope_heads * (size_t)pairs, sizeof *index, e);
  if (!count || !index) return KF_ERROR_MEMORY;
  for (int g = 0; g < rope_heads; g++) {
    count[g] = pairs;
    for (int i = 0; i < pairs; i++) index[g * pairs + i] = i;
  }
  a->rope_heads = rope_heads;
  a->rope_pairs = count;
  a->rope_index = index;
  return KF_OK;
}

static kf_status read_grouped(const char *file, const json_t *o, const kf_family *f, int layer, kf_config *c,
                              kf_attention_config *a, kf_error *e) {
  bool bias = false, rope = true;
  if (f->bias_key) KF_TRY(kf_json_bool(o, file, "attention_bias", false, &bias, e));
  KF_TRY(has_rope(file, o, f, layer, &rope, e));
  *a = (kf_attention_config){
      .kind = KF_GROUPED,
      .heads = c->heads,
      .kv_heads = c->kv_heads,
      .d_qk = c->head_dim,
      .d_v = c->head_dim,
      .scale = (float)(1 / sqrt(c->head_dim)),
      .qk_norm = f->qk_norm,
      .o_bias = bias,
      .q_bias = bias || f->qkv_bias,
      .k_bias = bias || f->qkv_bias,
      .v_bias = bias || f->qkv_bias,
  };
  KF_TRY(read_window(file, o, f, layer, !rope, &a->window, e));
  KF_TRY(kf_rope_from_json(file, o, c->head_dim, c->context, &c->arena, &a->rope, e));
  return keep_first(&c->arena, a, a->kv_heads, rope ? c->head_dim / 2 : 0, e);
}

static kf_status read_deepseek(const char *file, const json_t *o, const kf_family *f, kf_config *c, kf_attention_config *a,
                               kf_error *e) {
  int nope = 0, rope = 0;
  int64_t dense, v;
  KF_TRY(kf_json_int(o, file, "first_k_dense_replace", 0, 0, 1 << 20, &dense, e));
  const json_t *experts = json_object_get(o, "n_routed_experts");
  if (dense < c->layers && experts && !json_is_null(experts))
    return kf_fail(e, KF_ERROR_INPUT, "%s: layers from %d on are mixtures of experts; only dense ones are supported", file,
                   (int)dense);
  *a = (kf_attention_config){.kind = KF_LATENT, .heads = c->heads, .kv_heads = c->heads, .kv_a_norm = true, .latent_eps = 1e-6f};
  KF_TRY(read_int(o, file, "kv_lora_rank", 0, MAX_WIDTH, &a->rank, e));
  KF_TRY(read_int(o, file, "qk_nope_head_dim", 0, 4096, &nope, e));
  KF_TRY(read_int(o, file, "qk_rope_head_dim", 0, 4096, &rope, e));
  KF_TRY(read_int(o, file, "v_head_dim", 0, 4096, &a->d_v, e));
  KF_TRY(kf_json_int(o, file, "q_lora_rank", 0, 0, MAX_WIDTH, &v, e));
  a->q_rank = (int)v;
  a->q_a_norm = a->q_rank > 0;
  a->d_qk = nope + rope;
  KF_TRY(kf_json_bool(o, file, "rope_interleave", true, &a->rope_interleaved, e));
  bool bias;
  KF_TRY(kf_json_bool(o, file, "attention_bias", false, &bias, e));
  a->q_a_bias = bias && a->q_rank;
  a->kv_a_bias = a->o_bias = bias;
  KF_TRY(kf_rope_from_json(file, o, rope, c->context, &c->arena, &a->rope, e));
  double scale = 1 / sqrt(a->d_qk);
  if (f->mscale && a->rope.type != KF_ROPE_DEFAULT && a->rope.mscale_all_dim != 0 && a->rope.factor > 1)
    scale *= pow(0.1 * a->rope.mscale_all_dim * log(a->rope.factor) + 1, 2);
  a->scale = (float)scale;
  return keep_first(&c->arena, a, 1, rope / 2, e);
}

/* One element of kvfold.layers (docs/FORMAT.md) over the grouped layer it was made from. */
static kf_status read_converted(const char *file, const json_t *o, int layer, kf_config *c, kf_attention_config *a, kf_error *e) {
  const char *kind;
  if (!json_is_object(o)) return kf_fail(e, KF_ERROR_INPUT, "%s: kvfold.layers[%d] is not an object", file, layer);
  KF_TRY(kf_json_string(o, file, "attention", "", &kind, e));
  if (strcmp(kind, "grouped") == 0) return KF_OK;
  if (strcmp(kind, "latent") != 0)
    return kf_fail(e, KF_ERROR_INPUT, "%s: kvfold.layers[%d].attention is '%s', expected 'latent' or 'grouped'", file, layer,
                   kind);
  kf_attention_config n = {.kind = KF_LATENT, .heads = c->heads, .window = a->window};
  int64_t v;
  double real;
  KF_TRY(read_int(o, file, "kv_heads", 0, MAX_HEADS, &n.kv_heads, e));
  KF_TRY(read_int(o, file, "qk_head_dim", 0, 8192, &n.d_qk, e));
  KF_TRY(read_int(o, file, "v_head_dim", 0, 8192, &n.d_v, e));
  KF_TRY(read_int(o, file, "kv_lora_rank", 0, MAX_WIDTH, &n.rank, e));
  KF_TRY(read_int(o, file, "rope_heads", 0, MAX_HEADS, &n.rope_heads, e));
  KF_TRY(kf_json_int(o, file, "q_lora_rank", 0, 0, MAX_WIDTH, &v, e));
  n.q_rank = (int)v;
  if (c->heads % n.kv_heads || (n.rope_heads != 1 && n.rope_heads != n.kv_heads))
    return kf_fail(e, KF_ERROR_INPUT, "%s: kvfold.layers[%d] has %d KV heads and %d rope heads for %d heads", file, layer,
                   n.kv_heads, n.rope_heads, c->heads);
  KF_TRY(kf_json_real(o, file, "scale", 1 / sqrt(n.d_qk), 1e-12, 1e12, &real, e));
  n.scale = (float)real;
  KF_TRY(kf_json_bool(o, file, "latent_norm", false, &n.kv_a_norm, e));
  n.q_a_norm = n.kv_a_norm && n.q_rank;
  KF_TRY(kf_json_real(o, file, "latent_eps", 1e-6, 0, 1, &real, e));
  n.latent_eps = (float)real;
  KF_TRY(kf_json_bool(o, file, "q_bias", false, &n.q_bias, e));
  KF_TRY(kf_json_bool(o, file, "kv_a_bias", false, &n.kv_a_bias, e));
  KF_TRY(kf_json_bool(o, file, "kv_b_bias", false, &n.kv_b_bias, e));
  KF_TRY(kf_json_bool(o, file, "o_bias", false, &n.o_bias, e));
  KF_TRY(kf_json_bool(o, file, "qk_norm", false, &n.qk_norm, e));

  const json_t *rope = json_object_get(o, "rope"), *pairs = json_object_get(o, "rope_pairs"),
               *index = json_object_get(o, "rope_index");
  if (!json_is_object(rope)) return kf_fail(e, KF_ERROR_INPUT, "%s: kvfold.layers[%d].rope is missing", file, layer);
  KF_TRY(kf_json_int(rope, file, "dim", 0, 0, 8192, &v, e));
  json_t *merged = json_pack("{s:f}", "rope_theta", json_number_value(json_object_get(rope, "theta")));
  if (!merged) return kf_fail(e, KF_ERROR_MEMORY, "%s: out of memory", file);
  if (json_object_get(rope, "rope_scaling")) json_object_set(merged, "rope_scaling", json_object_get(rope, "rope_scaling"));
  json_t *original = json_object_get(c->json, "original_max_position_embeddings");
  if (original) json_object_set(merged, "original_max_position_embeddings", original);
  kf_status s = kf_rope_from_json(file, merged, (int)v, c->context, &c->arena, &n.rope, e);
  json_decref(merged);
  KF_TRY(s);
  int *count = kf_arena_alloc(&c->arena, (size_t)n.rope_heads, sizeof *count, e);
  int32_t *list = kf_arena_alloc(&c->arena, json_array_size(index) + 1, sizeof *list, e);
  if (!count || !list) return KF_ERROR_MEMORY;
  int64_t sum = 0;
  for (int g = 0; g < n.rope_heads; g++) {
    const json_t *p = json_array_get(pairs, (size_t)g);
    if (!json_is_integer(p) || json_integer_value(p) < 0 || 2 * json_integer_value(p) > n.d_qk)
      return kf_fail(e, KF_ERROR_INPUT, "%s: kvfold.layers[%d].rope_pairs[%d] is not between 0 and %d", file, layer, g,
                     n.d_qk / 2);
    sum += count[g] = (int)json_integer_value(p);
  }
  if ((int64_t)json_array_size(index) != sum || (int64_t)json_array_size(pairs) != n.rope_heads)
    return kf_fail(e, KF_ERROR_INPUT, "%s: kvfold.layers[%d] lists %zu rope_index for %d pairs", file, layer,
                   json_array_size(index), (int)sum);
  for (int64_t i = 0; i < sum; i++) {
    const json_t *p = json_array_get(index, (size_t)i);
    if (!json_is_integer(p) || json_integer_value(p) < 0 || json_integer_value(p) >= n.rope.dim / 2)
      return kf_fail(e, KF_ERROR_INPUT, "%s: kvfold.layers[%d].rope_index[%d] is not a pair of %d", file, layer, (int)i,
                     n.rope.dim / 2);
    list[i] = (int32_t)json_integer_value(p);
  }
  n.rope_pairs = count;
  n.rope_index = list;
  *a = n;
  return KF_OK;
}

static kf_status read_layers(const char *file, const json_t *o, const kf_family *f, const json_t *converted, kf_config *c,
                             kf_error *e) {
  kf_layer_config *layer = kf_arena_alloc(&c->arena, (size_t)c->layers, sizeof *layer, e);
  if (!layer) return KF_ERROR_MEMORY;
  c->layer = layer;
  for (int i = 0; i < c->layers; i++) {
    layer[i].intermediate = c->intermediate;
    KF_TRY(kf_json_bool(o, file, "mlp_bias", false, &layer[i].mlp_bias, e));
    KF_TRY(f->latent ? read_deepseek(file, o, f, c, &layer[i].attention, e)
                     : read_grouped(file, o, f, i, c, &layer[i].attention, e));
    if (converted) KF_TRY(read_converted(file, json_array_get(converted, (size_t)i), i, c, &layer[i].attention, e));
  }
  return KF_OK;
}

kf_status kf_config_from_json(const char *file, json_t *o, json_t *generation, kf_config *out, kf_error *e) {
  kf_config c = {.json = json_incref(o)};
  const kf_family *family = NULL;
  const json_t *ours = json_object_get(o, "kvfold"), *converted = NULL;
  const char *type, *method = "";
  kf_status s;
  KF_GO(kf_json_string(o, file, "model_type", "", &type, e));
  bool latent = strcmp(type, "kvfold") == 0;
  if (latent) {
    int64_t format;
    if (!json_is_object(ours))
      KF_GO(kf_fail(e, KF_ERROR_INPUT, "%s: model_type is kvfold, but there is no \"kvfold\" object", file));
    KF_GO(kf_json_int(ours, file, "format", 0, 0, 1 << 20, &format, e));
    if (format != 1)
      KF_GO(kf_fail(e, KF_ERROR_INPUT, "%s: kvfold.format %d is not known to this version (it reads 1)", file, (int)format));
    KF_GO(kf_json_string(ours, file, "source_model_type", "", &type, e));
    converted = json_object_get(ours, "layers");
  }
  if (json_is_object(ours)) KF_GO(kf_json_string(ours, file, "method", "", &method, e)); /* also of one that stayed grouped */
  KF_GO(find_family(file, type, &family, e));
  strncpy(c.family, family->type, sizeof c.family - 1);
  strncpy(c.method, method, sizeof c.method - 1);
  KF_GO(read_sizes(file, o, family, &c, e));
  if (latent && (!json_is_array(converted) || json_array_size(converted) != (size_t)c.layers))
    KF_GO(kf_fail(e, KF_ERROR_INPUT, "%s: kvfold.layers must describe %d layers", file, c.layers));
  KF_GO(read_eos(file, o, &c, e));
  if (generation) KF_GO(read_eos("generation_config.json", generation, &c, e));
  KF_GO(read_layers(file, o, family, converted, &c, e));
done:
  if (s != KF_OK)
    kf_config_free(&c);
  else
    *out = c;
  return s;
}

kf_status kf_config_from_directory(const char *directory, kf_config *out, kf_error *e) {
  char path[KF_PATH];
  json_t *config = NULL, *generation = NULL;
  kf_status s;
  KF_TRY(kf_join(path, directory, "generation_config.json", e));
  if (kf_is_file(path)) KF_TRY(kf_json_read(path, &generation, e));
  KF_GO(kf_join(path, directory, "config.json", e));
  KF_GO(kf_json_read(path, &config, e));
  KF_GO(kf_config_from_json(path, config, generation, out, e));
done:
  json_decref(config);
  json_decref(generation);
  return s;
}

void kf_config_free(kf_config *c) {
  if (!c) return;
  kf_arena_free(&c->arena);
  json_decref(c->json);
  *c = (kf_config){0};
}

int kf_attention_rope_width(const kf_attention_config *a) {
  int width = 0;
  for (int g = 0; g < a->rope_heads; g++) width += 2 * a->rope_pairs[g];
  return width;
}

int64_t kf_attention_cache_elements(const kf_attention_config *a) {
  if (a->kind == KF_GROUPED) return (int64_t)a->kv_heads * (a->d_qk + a->d_v);
  return (int64_t)a->rank + kf_attention_rope_width(a) + (a->qk_norm ? a->kv_heads : 0);
}

int kf_attention_nope(const kf_attention_config *a, int g) {
  return a->d_qk - 2 * a->rope_pairs[a->rope_heads == 1 ? 0 : g];
}

int kf_attention_kv_b_rows(const kf_attention_config *a) {
  int rows = 0;
  for (int g = 0; g < a->kv_heads; g++) rows += kf_attention_nope(a, g) + a->d_v;
  return rows;
}
