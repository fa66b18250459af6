/* kvfold convert: a checkpoint in, a checkpoint with latent attention out. */
#include "options.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct arguments {
  cli_common common;
  const char *method, *cache, *dtype, *recipe, *format, *share;
  cli_list set, calibration;
  int64_t calibration_tokens;
} arguments;

static const cli_option options[] = {
    {"method", "NAME", CLI_TEXT, offsetof(arguments, method), 0, 0,
     "fold (default), mha2mla, x-ecomla, transmla, care, kv-heads, or none (only writes the model anew: GGUF to a directory, "
     "another "
     "dtype)"},
    {"cache", "N|P%", CLI_TEXT, offsetof(arguments, cache), 0, 0,
     "elements per token and layer, latent and all rope dimensions; P% of the source's, rounded down; default 50%"},
    {"set", "KEY=VALUE ...", CLI_LIST, offsetof(arguments, set), 0, 0, "a key of the method, below; may be repeated"},
    {"dtype", "f32|bf16|f16", CLI_TEXT, offsetof(arguments, dtype), 0, 0,
     "of the weights written; default: the source's, bf16 for a quantised one"},
    {"calibration", "FILE ...", CLI_LIST, offsetof(arguments, calibration), 0, 0,
     "text for methods that look at activations: plain, JSONL, or .zst of both; may be repeated; default: what the model itself "
     "writes"},
    {"calibration-tokens", "N", CLI_LONG, offsetof(arguments, calibration_tokens), 1, 1e12,
     "read at most N tokens of it; default 16384"},
    {"share", "DIR", CLI_TEXT, offsetof(arguments, share), 0, 0,
     "keep what SRC writes and statistics of it in DIR, where further conversions of SRC find them"},
    {"recipe", "FILE.yaml", CLI_TEXT, offsetof(arguments, recipe), 0, 0,
     "read method, cache, set, dtype, calibration and calibration-tokens from a file; options given here come before its own"},
    {"format", "deepseek-v3|gguf", CLI_TEXT, offsetof(arguments, format), 0, 0,
     "export the result in the same go, as export does; default: gguf when DST ends in .gguf, else kvfold's own directory"},
    CLI_COMPUTE_OPTIONS,
    CLI_JSON_OPTION,
    CLI_END_OPTION,
};

/* Appends the recipe's settings whose keys the command line does not give. */
static int add_recipe_settings(const kf_convert_options *recipe, kf_setting *setting, int count) {
  int given = count;
  for (int i = 0; i < recipe->setting_count; i++) {
    int k = 0;
    while (k < given && strcmp(setting[k].key, recipe->settings[i].key) != 0) k++;
    if (k == given) setting[count++] = recipe->settings[i];
  }
  return count;
}

static void override(const arguments *a, kf_convert_options *o) {
  if (a->method) o->method = a->method;
  if (a->cache) o->cache = a->cache;
  if (a->dtype) o->dtype = a->dtype;
  if (a->calibration.count) {
    o->calibration = a->calibration.item;
    o->calibration_count = a->calibration.count;
  }
  if (a->share) o->share = a->share;
  if (a->calibration_tokens) o->calibration_tokens = a->calibration_tokens;
  if (a->common.compute) o->compute = (kf_compute)a->common.compute;
  if (a->common.threads) o->threads = a->common.threads;
}

static int print(const arguments *a, const kf_convert_options *o, const kf_convert_result *r, const kf_export_result *x) {
  const char *dst = a->common.operand[1], *method = o->method ? o->method : "fold";
  double part = r->source_cache_elements ? (double)r->cache_elements / (double)r->source_cache_elements : 0;
  if (!a->common.json) {
    printf("%-12s %s by %s", "wrote", dst, method);
    if (x->tensors) printf(" as %s, %s, %" PRId64 " bytes of weights", x->format, x->dtype, x->bytes);
    printf("\n");
    printf("%-12s %" PRId64 " -> %" PRId64 " elements a token (%.1f%%)\n", "cache", r->source_cache_elements, r->cache_elements,
           100 * part);
    printf("%-12s %" PRId64 " -> %" PRId64 "\n", "parameters", r->source_parameters, r->parameters);
    printf("%-12s %d converted, %d kept", "layers", r->layers_converted, r->layers_kept);
    if (r->layers_resumed) printf(", %d of them from an earlier run", r->layers_resumed);
    printf("\n%-12s %.2f s\n", "time", r->seconds);
    if (r->held_out_tokens)
      printf("%-12s perplexity x %.3f, KL %.4f nats a token, on %" PRId64 " tokens of calibration text that were held out\n",
             "lost", r->held_out_perplexity_ratio, r->held_out_kl, r->held_out_tokens);
    if (x->tensors && strcmp(x->format, "gguf") == 0) printf("%-12s llama-server -m %s\n", "serve", dst);
    return CLI_OK;
  }
  json_t *j = json_object();
  cli_set_text(j, "path", dst, strlen(dst));
  cli_set_text(j, "method", method, strlen(method));
  if (x->tensors) cli_set_text(j, "format", x->format, strlen(x->format));
  json_object_set_new(j, "source_cache_elements_per_token", json_integer(r->source_cache_elements));
  json_object_set_new(j, "cache_elements_per_token", json_integer(r->cache_elements));
  json_object_set_new(j, "source_parameters", json_integer(r->source_parameters));
  json_object_set_new(j, "parameters", json_integer(r->parameters));
  json_object_set_new(j, "layers_converted", json_integer(r->layers_converted));
  json_object_set_new(j, "layers_kept", json_integer(r->layers_kept));
  json_object_set_new(j, "layers_resumed", json_integer(r->layers_resumed));
  if (r->held_out_tokens) {
    json_object_set_new(j, "held_out_tokens", json_integer(r->held_out_tokens));
    cli_set_real(j, "held_out_kl", r->held_out_kl);
    cli_set_real(j, "held_out_perplexity_ratio", r->held_out_perplexity_ratio);
  }
  cli_set_real(j, "seconds", r->seconds);
  return cli_print_json(j);
}

static int convert(const arguments *a, kf_convert_options *o, kf_setting *setting) {
  kf_error e = {0};
  kf_convert_result r = {0};
  kf_export_result x = {0};
  cli_reporter reporter;
  o->setting_count = add_recipe_settings(o, setting, a->set.count);
  o->settings = setting;
  override(a, o);
  o->hooks = cli_hooks(&reporter);
  const char *src = a->common.operand[0], *dst = a->common.operand[1], *end = strrchr(dst, '.');
  bool exports = a->format || (end && strcmp(end, ".gguf") == 0);
  kf_export_options target = {.format = a->format, .hooks = o->hooks};
  kf_status s = exports ? kf_convert_export(src, dst, o, &target, &r, &x, &e) : kf_convert(src, dst, o, &r, &e);
  cli_report_end(&reporter, s == KF_OK);
  return s == KF_OK ? print(a, o, &r, &x) : cli_fail(&e);
}

static int run(void *p) {
  arguments *a = p;
  kf_error e = {0};
  kf_recipe *recipe = NULL;
  kf_convert_options o = {0};
  if (a->recipe && kf_recipe_read(a->recipe, &recipe, &o, &e) != KF_OK) return cli_fail(&e);
  size_t settings = (size_t)(a->set.count + o.setting_count);
  kf_setting *setting = calloc(settings + 1, sizeof *setting);
  char **owned = calloc((size_t)a->set.count + 1, sizeof *owned);
  int code = CLI_USAGE;
  if (!setting || !owned)
    code = cli_say(CLI_FAILED, "out of memory");
  else if (cli_split_settings(&a->set, setting, owned))
    code = convert(a, &o, setting);
  for (int i = 0; owned && i < a->set.count; i++) free(owned[i]);
  free(owned);
  free(setting);
  kf_recipe_free(recipe);
  return code;
}

const cli_command cli_convert = {
    .name = "convert",
    .summary = "convert a model to Multi-head Latent Attention",
    .operands = "SRC DST",
    .least_operands = 2,
    .most_operands = 2,
    .options = options,
    .bytes = sizeof(arguments),
    .run = run,
    .description =
        "Reads SRC layer by layer and writes DST, a directory that info, eval, generate and chat load like any other. "
        "DST must not exist. Until all is written the work stands in DST.partial; the same command resumes there after "
        "an interruption. The same input gives the same bytes. A budget above what a layer can use is clamped, and "
        "said so; an explicit rank above it is an error.",
    .settings =
        "mha2mla keeps RoPE on a few pairs of each KV head and factors the rest of K with V; --cache N gives\n"
        "rank = N - 2 x KV heads x rope_pairs.\n"
        "  rope_policy=high|low|uniform|2-norm|high-low|2-norm-global   which pairs are kept; default 2-norm\n"
        "                    with calibration text or ranks_file, else high\n"
        "  rope_pairs=N      pairs kept per KV head; default max(1, head_dim / 16)\n"
        "  rank=N            the layer's whole latent width\n"
        "  svd=joint|split|k-only|v-only|none   default joint; split: half of rank each for K and V\n"
        "  ranks_file=FILE   2-norm ranks or scores from a safetensors file instead of calibration text\n"
        "  score=product|sum of the 2-norms: the paper's product (default), or the sum of its first version\n"
        "  layers=LIST       layers to convert: all (default) or a list such as 0,2,5-9\n"
        "  singular_values=up|down|split   where they go; default up\n\n"
        "x-ecomla has one RoPE key for all heads and factors K with V; --cache N gives kv_rank = N - rope_dim.\n"
        "  kv_rank=N         latent width\n"
        "  q_rank=N|full|parity   full (default): the query stays one matrix; parity: what keeps the parameter count\n"
        "  rope_dim=N        width of the shared RoPE key; default head_dim / 2\n"
        "  nope_dim=N        rows of each head without rotation; default head_dim - rope_dim\n"
        "  kv_energy=X, q_energy=X   ranks per layer by the part of the energy kept, up to 1\n"
        "  layers=LIST       layers to convert: all (default) or a list such as 0,2,5-9\n"
        "  latent_norm=false|true   RMSNorm on the latents; default false\n"
        "  singular_values=down|up|split   default by variant\n"
        "  rope_scaling=base|yarn   default base\n"
        "  kv_b=kv|query     one up-projection a KV head (default) or a query head\n"
        "  variant=code|paper   place of the singular values and rule of the energy ranks; default code\n\n"
        "transmla keeps RoPE on the strongest channels of the merged KV heads, one key for all heads,\n"
        "and puts the rest of K with V into one latent of N - rope_dim by PCA.\n"
        "  rope_dim=N|auto   width of the shared RoPE key; auto (default): head_dim, a half or a quarter of it\n"
        "  freqfold=N|auto   neighbouring frequencies taken for one; auto (default), as rope_dim: by held-out text\n"
        "  balance=X         size of the keys over that of the values before the PCA; default 1; 0: as they are\n"
        "  variant=fixed|code   code: as the authors' program, its slips included; default fixed\n"
        "  statistics=converted|source|partial   whose hidden states; default converted, with variant=code partial\n\n"
        "care: RoPE as in transmla, the latent by an SVD weighted with the covariance of the inputs.\n"
        "  rope_dim, freqfold, statistics=converted|source   as of transmla\n"
        "  shrinkage=X       of the covariance towards the identity; default 0.01\n"
        "  rank_policy=uniform|dynamic|progressive   latents of each layer; default uniform; their sum keeps the budget\n\n"
        "kv-heads merges KV heads, and the result is a grouped model like the source.\n"
        "  kv_heads=N        a divisor of the source's; instead of --cache, of which it takes 2 x head_dim each\n\n"
        "fold weighs rotated pairs and latents by the output error that leaving them out would cause on calibration text,\n"
        "and is made for use without training; --cache N holds 2 x rope_pairs and the latents.\n"
        "  rope_pairs=N      rotated pairs, shared by all heads; default: the best of several parts of the budget\n"
        "  rope_table=stock|any   stock (default): one table for all layers, which other engines can run;\n"
        "                    any: each layer chooses freely\n"
        "  selection=auto|fold|greedy   what a pair rotates: fold, a mix of neighbouring frequencies; greedy, its own\n"
        "                    frequency alone; default auto: the better of both\n"
        "  refit=all|output|none   fit queries and output projection (default), the latter alone, or neither, to the\n"
        "                    source, with the converted layers before them in place\n"
        "  window=N          tokens of a window that is fitted to; default 512\n"
        "  context=N         tokens of the longest context that will be served; default: the source's\n"
        "  key_weight=N      of the keys' error against the values'; default: the best of 1, 3, 9",
    .keys = "path, method                     strings\n"
            "source_cache_elements_per_token, cache_elements_per_token   summed over layers\n"
            "source_parameters, parameters\n"
            "layers_converted, layers_kept, layers_resumed\n"
            "seconds",
    .examples =
        "kvfold convert examples/books-7m books-mla --method x-ecomla --cache 50%\n"
        "kvfold convert examples/books-7m books-mla --method mha2mla --cache 128 --set rope_policy=high --set rope_pairs=2\n"
        "kvfold convert examples/books-7m books-mla --method fold --cache 25% --calibration text.jsonl.zst\n"
        "kvfold convert model.gguf model-mla.gguf\n"
        "kvfold convert model.gguf model-dir --method none --dtype bf16\n"
        "kvfold convert SRC DST --recipe recipe.yaml --cache 25%",
};
