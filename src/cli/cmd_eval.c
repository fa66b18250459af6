/* kvfold eval: perplexity, and divergence from a reference model. */
#include "options.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

typedef struct arguments {
  cli_common common;
  const char *text, *reference;
  int window, stride, max_windows, bos;
} arguments;

static const cli_option options[] = {
    {"text", "FILE", CLI_TEXT, offsetof(arguments, text), 0, 0,
     "required: plain text, JSONL (the \"text\" fields joined by a newline), or .zst of both"},
    {"window", "N", CLI_INT, offsetof(arguments, window), 1, 1e9,
     "tokens of a window; default: the model's context, 2048 at most"},
    {"stride", "N", CLI_INT, offsetof(arguments, stride), 1, 1e9,
     "distance of the windows, at most the window (default); below it only the last N tokens of a window count, all of the "
     "first"},
    {"max-windows", "N", CLI_INT, offsetof(arguments, max_windows), 1, 1e9, "stop after N windows"},
    {"bos", "auto|yes|no", CLI_CHOICE, offsetof(arguments, bos), 0, 0,
     "put BOS in front of every window; auto (default): the tokenizer's own rule"},
    {"reference", "MODEL", CLI_TEXT, offsetof(arguments, reference), 0, 0,
     "also measure how far MODEL is from this one, which has the same vocabulary"},
    CLI_COMPUTE_OPTIONS,
    CLI_DEVICE_OPTION,
    CLI_JSON_OPTION,
    CLI_END_OPTION,
};

static int print(const arguments *a, const kf_eval_result *r, double seconds) {
  if (!a->common.json) {
    printf("%-22s %" PRId64 " in %" PRId64 " windows\n", "tokens predicted", r->tokens, r->windows);
    printf("%-22s %.6f nats a token\n%-22s %.4f\n", "nll", r->nll, "perplexity", r->perplexity);
    if (r->has_reference) {
      printf("%-22s %.6f nats a token\n%-22s %.6g nats a token\n", "reference nll", r->reference_nll, "KL(reference || model)",
             r->kl);
      printf("%-22s %.4f\n%-22s %.6g\n", "top-1 agreement", r->top1_agreement, "max logit difference", r->max_logit_difference);
    }
    return CLI_OK;
  }
  json_t *o = json_object();
  json_object_set_new(o, "tokens", json_integer(r->tokens));
  json_object_set_new(o, "windows", json_integer(r->windows));
  cli_set_real(o, "nll", r->nll);
  cli_set_real(o, "perplexity", r->perplexity);
  if (r->has_reference) {
    cli_set_real(o, "reference_nll", r->reference_nll);
    cli_set_real(o, "kl", r->kl);
    cli_set_real(o, "top1_agreement", r->top1_agreement);
    cli_set_real(o, "max_logit_difference", r->max_logit_difference);
  }
  cli_set_real(o, "seconds", seconds);
  return cli_print_json(o);
}

static kf_status evaluate(const arguments *a, const kf_hooks *hooks, kf_eval_result *r, kf_error *e) {
  kf_model *m = NULL, *reference = NULL;
  kf_tokenizer *t = NULL;
  kf_text text = {0};
  kf_eval_options o = {
      .window = a->window, .stride = a->stride, .max_windows = a->max_windows, .bos = (kf_bos)a->bos, .hooks = *hooks};
  kf_status s = kf_text_read(a->text, &text, e);
  if (s == KF_OK) s = cli_open(a->common.operand[0], &a->common, hooks, &m, &t, e);
  if (s == KF_OK && a->reference) s = cli_open(a->reference, &a->common, hooks, &reference, NULL, e);
  if (s == KF_OK) s = kf_eval(m, reference, t, text.data, text.bytes, &o, r, e);
  kf_text_free(&text);
  kf_tokenizer_close(t);
  kf_model_close(reference);
  kf_model_close(m);
  return s;
}

static int run(void *p) {
  arguments *a = p;
  kf_error e = {0};
  kf_eval_result r = {0};
  cli_reporter reporter;
  if (!a->text) return cli_say(CLI_USAGE, "eval needs --text FILE");
  kf_hooks hooks = cli_hooks(&reporter);
  double started = cli_seconds();
  kf_status s = evaluate(a, &hooks, &r, &e);
  cli_report_end(&reporter, s == KF_OK);
  return s == KF_OK ? print(a, &r, cli_seconds() - started) : cli_fail(&e);
}

const cli_command cli_eval = {
    .name = "eval",
    .summary = "measure perplexity, and divergence from a reference model",
    .operands = "MODEL --text FILE",
    .least_operands = 1,
    .most_operands = 1,
    .options = options,
    .bytes = sizeof(arguments),
    .run = run,
    .description =
        "The file is tokenised once, without special tokens, and cut into consecutive windows of N tokens; a last "
        "shorter one is dropped. Inside a window token i is predicted from tokens 0..i-1 of the window, so a window "
        "predicts N-1 tokens, and N when BOS is put in front. Every figure is over exactly the tokens that nll counts.",
    .keys = "tokens                tokens predicted\n"
            "windows               windows evaluated\n"
            "nll                   mean negative log-likelihood, nats a token\n"
            "perplexity            exp(nll)\n"
            "seconds               wall time, loading included\n"
            "with --reference also:\n"
            "reference_nll         the reference's nll\n"
            "kl                    mean KL(reference || model) over the whole vocabulary, nats\n"
            "top1_agreement        part of the positions where both rank the same token first, 0 to 1\n"
            "max_logit_difference  largest absolute difference of two logits",
    .examples = "kvfold eval examples/books-7m --text examples/books-7m/held-out.txt --window 256\n"
                "kvfold eval books-mla --reference examples/books-7m --text examples/books-7m/held-out.txt --json",
};
