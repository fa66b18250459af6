/* kvfold export: a converted model for engines that know nothing of kvfold. */
#include "options.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

typedef struct arguments {
  cli_common common;
  const char *format, *dtype, *source;
  int pad;
  bool f16_latents;
} arguments;

static const cli_option options[] = {
    {"format", "deepseek-v3|gguf", CLI_TEXT, offsetof(arguments, format), 0, 0,
     "a Hugging Face directory or a GGUF file; default: gguf when OUT ends in .gguf, else deepseek-v3"},
    {"dtype", "f32|bf16|f16|q8_0", CLI_TEXT, offsetof(arguments, dtype), 0, 0,
     "of the weights written; default: the model's. f16 and q8_0 in a GGUF only"},
    {"pad", "N", CLI_INT, offsetof(arguments, pad), 0, 1 << 20,
     "fill the latents up with zeros to N, and the RoPE key to 64: 256 or 512 for vLLM's kernels; default 0: neither"},
    {"source", "MODEL.gguf", CLI_TEXT, offsetof(arguments, source), 0, 0,
     "the GGUF that DIR was converted from: what the conversion left alone is copied as it is stored there; in a GGUF only"},
    {"f16-latents", NULL, CLI_FLAG, offsetof(arguments, f16_latents), 0, 0,
     "the latents in the basis that loses least in llama.cpp's default cache and attention on a CPU; runs the model for 2560 "
     "tokens"},
    CLI_JSON_OPTION,
    CLI_END_OPTION,
};

static int print(const char *path, bool json, const kf_export_result *r) {
  if (!json) {
    printf("%-12s %s as %s, %s\n", "wrote", path, r->format, r->dtype);
    printf("%-12s %" PRId64 " tensors, %" PRId64 " bytes\n", "weights", r->tensors, r->bytes);
    return CLI_OK;
  }
  json_t *o = json_object();
  cli_set_text(o, "path", path, strlen(path));
  cli_set_text(o, "format", r->format, strlen(r->format));
  cli_set_text(o, "dtype", r->dtype, strlen(r->dtype));
  json_object_set_new(o, "tensors", json_integer(r->tensors));
  json_object_set_new(o, "bytes", json_integer(r->bytes));
  json_object_set_new(o, "copied", json_integer(r->copied));
  return cli_print_json(o);
}

static int run(void *p) {
  arguments *a = p;
  kf_error e = {0};
  kf_export_result r = {0};
  cli_reporter reporter;
  kf_export_options o = {.format = a->format,
                         .dtype = a->dtype,
                         .pad = a->pad,
                         .source = a->source,
                         .f16_latents = a->f16_latents,
                         .hooks = cli_hooks(&reporter)};
  kf_status s = kf_export(a->common.operand[0], a->common.operand[1], &o, &r, &e);
  cli_report_end(&reporter, s == KF_OK);
  return s == KF_OK ? print(a->common.operand[1], a->common.json, &r) : cli_fail(&e);
}

const cli_command cli_export = {
    .name = "export",
    .summary = "write a converted model for other engines",
    .operands = "DIR OUT",
    .least_operands = 2,
    .most_operands = 2,
    .options = options,
    .bytes = sizeof(arguments),
    .run = run,
    .description =
        "Writes DIR, a model that kvfold converted, as a directory that loads as DeepseekV3ForCausalLM without custom "
        "code, or as a GGUF file of architecture deepseek2. DeepSeek's norm of the latents is neutralised by scaling, so "
        "that the outputs are the model's own. OUT must not exist. A model can be exported when all its layers share one "
        "RoPE key (fold, x-ecomla, transmla, care) and it has no biases, q/k norms or sliding "
        "windows; anything else is refused with the reason.",
    .keys = "path, format, dtype  strings\n"
            "tensors, bytes       of the weights\n"
            "copied               of the tensors, from --source as they are stored",
    .examples = "kvfold export books-mla books-deepseek --format deepseek-v3 --dtype bf16\n"
                "kvfold export books-mla books.gguf --dtype f16\n"
                "kvfold export smollm2-mla smollm2.gguf --dtype q8_0 --source SmolLM2-135M.Q4_1.gguf",
};
