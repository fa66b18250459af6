/* kvfold info: what a model is and what its cache costs. */
#include "options.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

typedef struct arguments {
  cli_common common;
  bool layers;
} arguments;

static const cli_option options[] = {
    {"layers", NULL, CLI_FLAG, offsetof(arguments, layers), 0, 0,
     "also list every layer (kind, ranks, rope pairs, cache elements) and the recipe of a converted model"},
    CLI_JSON_OPTION,
    CLI_END_OPTION,
};

static void print_bytes(const char *label, double bytes) {
  static const char *const unit[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  int u = 0;
  while (bytes >= 1024 && u < 4) {
    bytes /= 1024;
    u++;
  }
  printf("%-22s %.*f %s\n", label, u ? 1 : 0, bytes, unit[u]);
}

static void print_text(const kf_model_info *i) {
  printf("%-22s %s\n", "model", i->path);
  printf("%-22s %s\n", "family", i->family);
  if (*i->method) printf("%-22s %s\n", "converted by", i->method);
  printf("%-22s %" PRId64 "\n", "parameters", i->parameters);
  printf("%-22s %d\n%-22s %d\n", "layers", i->layers, "hidden", i->hidden);
  printf("%-22s %d query, %d key/value, of %d\n", "heads", i->heads, i->kv_heads, i->head_dim);
  printf("%-22s %d\n%-22s %d%s\n", "intermediate", i->intermediate, "vocabulary", i->vocabulary, i->tied ? " (head tied)" : "");
  printf("%-22s %" PRId64 " tokens, rope %s\n", "context", i->context, i->rope);
  printf("%-22s %s\n%-22s %s\n", "weights", i->dtype, "computes here in", i->compute);
  printf("%-22s %s\n", "attention", i->attention);
  printf("%-22s %" PRId64 " elements, %" PRId64 " bytes in bf16\n", "cache of one token", i->cache_elements_per_token,
         i->cache_bytes_per_token);
  print_bytes("cache at 4k tokens", 4096.0 * (double)i->cache_bytes_per_token);
  print_bytes("cache at 32k tokens", 32768.0 * (double)i->cache_bytes_per_token);
  print_bytes("cache at 128k tokens", 131072.0 * (double)i->cache_bytes_per_token);
}

static json_t *info_json(const kf_model_info *i) {
  json_t *o = json_object();
  cli_set_text(o, "path", i->path, strlen(i->path));
  cli_set_text(o, "family", i->family, strlen(i->family));
  cli_set_text(o, "method", i->method, strlen(i->method));
  cli_set_text(o, "dtype", i->dtype, strlen(i->dtype));
  cli_set_text(o, "compute", i->compute, strlen(i->compute));
  cli_set_text(o, "rope", i->rope, strlen(i->rope));
  json_object_set_new(o, "parameters", json_integer(i->parameters));
  json_object_set_new(o, "layers", json_integer(i->layers));
  json_object_set_new(o, "hidden", json_integer(i->hidden));
  json_object_set_new(o, "heads", json_integer(i->heads));
  json_object_set_new(o, "kv_heads", json_integer(i->kv_heads));
  json_object_set_new(o, "head_dim", json_integer(i->head_dim));
  json_object_set_new(o, "intermediate", json_integer(i->intermediate));
  json_object_set_new(o, "vocabulary", json_integer(i->vocabulary));
  json_object_set_new(o, "tied", json_boolean(i->tied));
  json_object_set_new(o, "context", json_integer(i->context));
  cli_set_text(o, "attention", i->attention, strlen(i->attention));
  json_object_set_new(o, "cache_elements_per_token", json_integer(i->cache_elements_per_token));
  json_object_set_new(o, "cache_bytes_per_token", json_integer(i->cache_bytes_per_token));
  return o;
}

static int number(const json_t *o, const char *key) {
  return (int)json_integer_value(json_object_get(o, key));
}

/* "-" where the number means nothing. */
static void print_optional(const json_t *o, const char *key) {
  if (number(o, key))
    printf(" %7d", number(o, key));
  else
    printf(" %7s", "-");
}

static void print_layer(size_t index, const json_t *layer) {
  const json_t *pairs = json_object_get(layer, "rope_pairs");
  printf("%5zu %-9s %8d %6d %6d", index, json_string_value(json_object_get(layer, "attention")), number(layer, "kv_heads"),
         number(layer, "qk_head_dim"), number(layer, "v_head_dim"));
  print_optional(layer, "kv_lora_rank");
  print_optional(layer, "q_lora_rank");
  print_optional(layer, "window");
  printf(" %6d  ", number(layer, "cache_elements"));
  bool equal = true;
  for (size_t g = 1; g < json_array_size(pairs); g++)
    equal = equal && json_equal(json_array_get(pairs, g), json_array_get(pairs, 0));
  if (equal)
    printf("%zu x %d\n", json_array_size(pairs), (int)json_integer_value(json_array_get(pairs, 0)));
  else
    json_dumpf(pairs, stdout, JSON_COMPACT), putchar('\n');
}

/* One layer a line; then the recipe that made them, if one did. */
static void print_layers(const json_t *detail) {
  size_t index;
  json_t *layer, *recipe = json_object_get(detail, "recipe");
  printf("\nlayer attention KV heads qk dim  v dim latents  q rank  window  cache  rope pairs\n");
  json_array_foreach(json_object_get(detail, "layers"), index, layer) print_layer(index, layer);
  if (!json_is_object(recipe)) return;
  printf("\nrecipe ");
  json_dumpf(recipe, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(15));
  putchar('\n');
}

static int run(void *p) {
  arguments *a = p;
  kf_error e = {0};
  kf_model_info info;
  kf_text text = {0};
  const char *model = a->common.operand[0];
  if (kf_model_describe(model, &info, &e) != KF_OK) return cli_fail(&e);
  if (a->layers && kf_model_describe_layers(model, &text, &e) != KF_OK) return cli_fail(&e);
  json_t *detail = text.data ? json_loadb(text.data, text.bytes, 0, NULL) : NULL;
  kf_text_free(&text);
  int code = CLI_OK;
  if (a->common.json) {
    json_t *o = info_json(&info);
    if (detail) json_object_set(o, "detail", detail);
    code = cli_print_json(o);
  } else {
    print_text(&info);
    if (detail) print_layers(detail);
  }
  json_decref(detail);
  return code;
}

const cli_command cli_info = {
    .name = "info",
    .summary = "describe a model and what its cache costs",
    .operands = "MODEL",
    .least_operands = 1,
    .most_operands = 1,
    .options = options,
    .bytes = sizeof(arguments),
    .run = run,
    .description = "Reads the configuration and the table of tensors, not the weights, and prints the architecture, the size of "
                   "the KV cache of one token (elements over all layers; bytes in bf16) and at 4k, 32k and 128k tokens, and the "
                   "type that this machine will multiply in.",
    .keys = "path, family, method     strings; method is \"\" unless kvfold converted the model\n"
            "dtype, compute, rope     strings: of the stored weights; what auto computes in here; RoPE scaling\n"
            "parameters               numbers in the checkpoint, a tied head counted once\n"
            "layers, hidden, heads, kv_heads, head_dim, intermediate, vocabulary, context\n"
            "tied                     true when embedding and head share their weights\n"
            "attention                grouped, latent or hybrid\n"
            "cache_elements_per_token summed over layers\n"
            "cache_bytes_per_token    the same in bf16\n"
            "detail                   with --layers: every layer and the recipe",
    .examples = "kvfold info examples/books-7m\n"
                "kvfold info SmolLM2-135M-Instruct.Q4_1.gguf --json\n"
                "kvfold info HuggingFaceTB/SmolLM2-135M --layers",
};
