/* kvfold logits: the raw output of a model for one sequence, as a safetensors file. */
#include "options.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct arguments {
  cli_common common;
  const char *tokens, *text, *out;
} arguments;

static const cli_option options[] = {
    {"tokens", "ID,ID,...", CLI_TEXT, offsetof(arguments, tokens), 0, 0, "the sequence, as ids"},
    {"text", "TEXT", CLI_TEXT, offsetof(arguments, text), 0, 0, "the sequence, as text (BOS by the tokenizer's own rule)"},
    {"out", "FILE", CLI_TEXT, offsetof(arguments, out), 0, 0, "the safetensors file to write"},
    CLI_COMPUTE_OPTIONS,
    CLI_DEVICE_OPTION,
    CLI_JSON_OPTION,
    CLI_END_OPTION,
};

static kf_status write_logits(const arguments *a, kf_model *m, const kf_ids *ids, int64_t vocabulary, kf_error *e) {
  float *logits = calloc(ids->count, (size_t)vocabulary * sizeof *logits);
  if (!logits) {
    snprintf(e->message, sizeof e->message, "out of memory for the logits of %zu tokens", ids->count);
    return e->status = KF_ERROR_MEMORY;
  }
  kf_status s = kf_logits(m, ids->data, ids->count, logits, e);
  if (s == KF_OK) s = kf_write_tensor(a->out, "logits", logits, (int64_t)ids->count, vocabulary, e);
  free(logits);
  return s;
}

static int compute(const arguments *a, const kf_ids *ids, kf_model *m) {
  kf_error e = {0};
  int64_t vocabulary = kf_model_get_info(m)->vocabulary;
  if (write_logits(a, m, ids, vocabulary, &e) != KF_OK) return cli_fail(&e);
  if (!a->common.json) return cli_say(CLI_OK, "wrote logits [%zu, %" PRId64 "] to %s", ids->count, vocabulary, a->out);
  json_t *o = json_object();
  json_object_set_new(o, "tokens", json_integer((json_int_t)ids->count));
  json_object_set_new(o, "vocabulary", json_integer(vocabulary));
  cli_set_text(o, "out", a->out, strlen(a->out));
  return cli_print_json(o);
}

static int run(void *p) {
  arguments *a = p;
  kf_error e = {0};
  kf_ids ids = {0};
  kf_model *m = NULL;
  kf_tokenizer *t = NULL;
  cli_reporter reporter;
  if (!a->out) return cli_say(CLI_USAGE, "logits needs --out FILE");
  if (!a->tokens == !a->text) return cli_say(CLI_USAGE, "logits needs either --tokens or --text");
  if (a->tokens && !cli_parse_ids(a->tokens, &ids)) return CLI_USAGE;
  kf_hooks hooks = cli_hooks(&reporter);
  kf_status s = cli_open(a->common.operand[0], &a->common, &hooks, &m, a->text ? &t : NULL, &e);
  if (s == KF_OK && a->text) s = kf_tokenizer_encode(t, a->text, strlen(a->text), KF_ENCODE_SPECIAL, &ids, &e);
  cli_report_end(&reporter, s == KF_OK);
  int code = s != KF_OK ? cli_fail(&e) : ids.count == 0 ? cli_say(CLI_FAILED, "there are no tokens to run") : compute(a, &ids, m);
  kf_ids_free(&ids);
  kf_tokenizer_close(t);
  kf_model_close(m);
  return code;
}

const cli_command cli_logits = {
    .name = "logits",
    .summary = "write the logits of a token sequence to a file",
    .operands = "MODEL",
    .least_operands = 1,
    .most_operands = 1,
    .options = options,
    .bytes = sizeof(arguments),
    .run = run,
    .description = "Runs the model over one sequence and writes one f32 tensor named \"logits\" of shape [tokens, vocabulary]: "
                   "row i holds the logits after tokens 0..i. For comparing models with each other and with other programs.",
    .keys = "tokens, vocabulary  the shape\n"
            "out                 the file that was written",
    .examples = "kvfold logits examples/books-7m --tokens 403,407,261 --out logits.safetensors\n"
                "kvfold logits examples/books-7m --text \"Once upon a time\" --out logits.safetensors --compute f32",
};
