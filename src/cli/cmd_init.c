/* kvfold init: a model with random weights. */
#include "options.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

typedef struct arguments {
  cli_common common;
  const char *tokenizer, *dtype;
  uint64_t seed;
} arguments;

static const cli_option options[] = {
    {"tokenizer", "MODEL", CLI_TEXT, offsetof(arguments, tokenizer), 0, 0,
     "take along the tokenizer and chat template of this model; training needs one"},
    {"dtype", "f32|bf16|f16", CLI_TEXT, offsetof(arguments, dtype), 0, 0, "of the weights written; default f32"},
    {"seed", "S", CLI_SEED, offsetof(arguments, seed), 0, 0, "of the weights; default 0"},
    CLI_JSON_OPTION,
    CLI_END_OPTION,
};

static int run(void *p) {
  const arguments *a = p;
  kf_error e = {0};
  int64_t parameters = 0;
  cli_reporter reporter;
  kf_init_options o = {.tokenizer = a->tokenizer, .dtype = a->dtype, .seed = a->seed, .hooks = cli_hooks(&reporter)};
  const char *dst = a->common.operand[1];
  kf_status s = kf_init(a->common.operand[0], dst, &o, &parameters, &e);
  cli_report_end(&reporter, s == KF_OK);
  if (s != KF_OK) return cli_fail(&e);
  if (!a->common.json) {
    printf("%-12s %s\n%-12s %" PRId64 "\n", "wrote", dst, "parameters", parameters);
    return CLI_OK;
  }
  json_t *j = json_object();
  cli_set_text(j, "path", dst, strlen(dst));
  json_object_set_new(j, "parameters", json_integer(parameters));
  return cli_print_json(j);
}

const cli_command cli_init = {
    .name = "init",
    .summary = "make a model with random weights",
    .operands = "CONFIG DST",
    .least_operands = 2,
    .most_operands = 2,
    .options = options,
    .bytes = sizeof(arguments),
    .run = run,
    .description = "Writes DST, a model of the configuration CONFIG (a config.json, or a directory that has one) with random "
                   "weights, to be trained from nothing by finetune or distill. DST must not exist.",
    .keys = "path        string\n"
            "parameters  numbers in the model",
    .examples = "kvfold init config.json small --tokenizer examples/books-7m\n"
                "kvfold distill small --teacher examples/books-7m --data text.jsonl.zst --out trained --tokens 5000000",
};
