/* kvfold generate: continue a prompt, or write documents to train on. */
#include "sampling.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

typedef struct arguments {
  cli_common common;
  cli_sampling sampling;
  const char *prompt, *prompt_file, *out;
  int64_t dataset;
  int length;
} arguments;

static const arguments defaults = {.sampling = {.max_new_tokens = 128, .temperature = 1, .top_p = 1}};

static const cli_option options[] = {
    {"prompt", "TEXT", CLI_TEXT, offsetof(arguments, prompt), 0, 0, "what to continue"},
    {"prompt-file", "FILE", CLI_TEXT, offsetof(arguments, prompt_file), 0, 0, "the same from a file"},
    {"dataset", "N", CLI_LONG, offsetof(arguments, dataset), 1, 1e12,
     "in place of continuing a prompt write N documents of the model's own, to train on where there is no data"},
    {"out", "FILE.jsonl", CLI_TEXT, offsetof(arguments, out), 0, 0, "with --dataset: the file to write, one \"text\" a line"},
    {"length", "N", CLI_INT, offsetof(arguments, length), 2, 1 << 24,
     "with --dataset: tokens of a document at most; default 512, the context at most"},
    CLI_SAMPLING_OPTIONS(arguments, "128"),
    CLI_COMPUTE_OPTIONS,
    CLI_DEVICE_OPTION,
    CLI_JSON_OPTION,
    CLI_END_OPTION,
};

/* The prompt, once: a run that fails leaves stdout empty. */
static void show_prompt(kf_text *prompt) {
  fwrite(prompt->data, 1, prompt->bytes, stdout);
  prompt->bytes = 0;
}

static void on_text(void *user, const char *piece, size_t bytes) {
  show_prompt(user);
  fwrite(piece, 1, bytes, stdout);
  fflush(stdout);
}

static int print(const arguments *a, kf_text *unseen, const kf_generation *g, size_t prompt_tokens) {
  if (!a->common.json) {
    show_prompt(unseen);
    putchar('\n');
    fflush(stdout);
    return cli_say(CLI_OK, "%zu prompt tokens at %.1f/s, %zu new tokens at %.1f/s, cache %" PRId64 " bytes", prompt_tokens,
                   g->prefill_tokens_per_second, g->ids.count, g->decode_tokens_per_second, g->cache_bytes);
  }
  json_t *o = json_object();
  cli_set_text(o, "text", g->text.data, g->text.bytes);
  cli_set_ids(o, "ids", g->ids.data, g->ids.count);
  json_object_set_new(o, "prompt_tokens", json_integer((json_int_t)prompt_tokens));
  cli_set_real(o, "prefill_tokens_per_second", g->prefill_tokens_per_second);
  cli_set_real(o, "decode_tokens_per_second", g->decode_tokens_per_second);
  json_object_set_new(o, "cache_bytes", json_integer(g->cache_bytes));
  return cli_print_json(o);
}

static int generate(const arguments *a, const kf_text *prompt, kf_model *m, const kf_tokenizer *t) {
  kf_error e = {0};
  kf_ids ids = {0};
  kf_generation g = {0};
  kf_generate_options o = cli_generate_options(&a->sampling);
  kf_text unseen = *prompt;
  if (!a->common.json) {
    o.on_text = on_text;
    o.continues = true;
    o.user = &unseen;
  }
  kf_status s = kf_tokenizer_encode(t, prompt->data, prompt->bytes, KF_ENCODE_SPECIAL, &ids, &e);
  if (s == KF_OK) s = kf_generate(m, t, ids.data, ids.count, &o, &g, &e);
  int code = s == KF_OK ? print(a, &unseen, &g, ids.count) : cli_fail(&e);
  int64_t context = kf_model_get_info(m)->context;
  if (code == CLI_OK && (int64_t)(ids.count + g.ids.count) > context)
    cli_say(CLI_OK, "prompt and new tokens are beyond the model's context of %" PRId64 " tokens", context);
  kf_generation_free(&g);
  kf_ids_free(&ids);
  return code;
}

/* ------------------------------------------------------------------------------------------------ a dataset */

static int print_dataset(const arguments *a, const kf_sample_result *r) {
  if (!a->common.json) {
    printf("%-12s %s\n%-12s %" PRId64 " of %" PRId64 " tokens\n%-12s %.1f s, %.0f tokens/s\n", "wrote", a->out, "documents",
           r->documents, r->tokens, "time", r->seconds, (double)r->tokens / r->seconds);
    return CLI_OK;
  }
  json_t *o = json_object();
  cli_set_text(o, "path", a->out, strlen(a->out));
  json_object_set_new(o, "documents", json_integer(r->documents));
  json_object_set_new(o, "tokens", json_integer(r->tokens));
  cli_set_real(o, "seconds", r->seconds);
  return cli_print_json(o);
}

/* Training knows JSON lines by the file's name. */
static bool check_dataset(const arguments *a) {
  const cli_sampling *s = &a->sampling;
  const char *end = a->out ? strrchr(a->out, '.') : NULL;
  if (a->prompt || a->prompt_file || s->greedy || s->temperature == 0 || s->max_new_tokens != defaults.sampling.max_new_tokens)
    cli_say(CLI_USAGE, "--dataset excludes --prompt, --prompt-file, --max-new-tokens, --greedy and --temperature 0");
  else if (!end || strcmp(end, ".jsonl") != 0)
    cli_say(CLI_USAGE, "--dataset needs --out FILE.jsonl");
  else
    return true;
  return false;
}

static int write_dataset(const arguments *a) {
  kf_error e = {0};
  kf_model *m = NULL;
  kf_tokenizer *t = NULL;
  kf_sample_result r;
  cli_reporter reporter;
  const cli_sampling *s = &a->sampling;
  if (!check_dataset(a)) return CLI_USAGE;
  cli_stop_on_signals(); /* the unfinished file is removed */
  kf_sample_options o = {a->dataset, a->length, s->temperature, s->top_p, s->top_k, s->seed, cli_hooks(&reporter)};
  kf_status status = cli_open(a->common.operand[0], &a->common, &o.hooks, &m, &t, &e);
  if (status == KF_OK) status = kf_sample_documents(m, t, a->out, &o, &r, &e);
  cli_report_end(&reporter, status == KF_OK);
  kf_tokenizer_close(t);
  kf_model_close(m);
  return status == KF_OK ? print_dataset(a, &r) : cli_fail(&e);
}

static int run(void *p) {
  arguments *a = p;
  kf_error e = {0};
  kf_model *m = NULL;
  kf_tokenizer *t = NULL;
  kf_text owned = {0}, prompt;
  cli_reporter reporter;
  if (a->dataset) return write_dataset(a);
  if (a->out || a->length) return cli_say(CLI_USAGE, "--out and --length go with --dataset");
  if (!a->prompt == !a->prompt_file) return cli_say(CLI_USAGE, "generate needs either --prompt or --prompt-file, or --dataset");
  if (!cli_check_sampling(&a->sampling)) return CLI_USAGE;
  kf_hooks hooks = cli_hooks(&reporter);
  kf_status s = a->prompt_file ? kf_text_read(a->prompt_file, &owned, &e) : KF_OK;
  prompt = a->prompt ? (kf_text){(char *)a->prompt, strlen(a->prompt)} : owned;
  if (s == KF_OK) s = cli_open(a->common.operand[0], &a->common, &hooks, &m, &t, &e);
  cli_report_end(&reporter, s == KF_OK);
  int code = s == KF_OK ? generate(a, &prompt, m, t) : cli_fail(&e);
  kf_text_free(&owned);
  kf_tokenizer_close(t);
  kf_model_close(m);
  return code;
}

const cli_command cli_generate = {
    .name = "generate",
    .summary = "continue a prompt, or write documents to train on",
    .operands = "MODEL (--prompt TEXT | --dataset N --out FILE.jsonl)",
    .least_operands = 1,
    .most_operands = 1,
    .options = options,
    .bytes = sizeof(arguments),
    .defaults = &defaults,
    .run = run,
    .description = "Tokenises the prompt (special tokens by the tokenizer's own rule) and appends tokens until EOS or the limit. "
                   "Without --json the text streams to stdout after the prompt, and one line of "
                   "statistics goes to stderr. Without --greedy tokens are sampled; the same seed gives the same text. "
                   "--dataset writes documents that the model samples from its own distribution, many at a time, as JSON lines "
                   "that distill and finetune take as --data: healing needs no text from elsewhere.",
    .keys = "text                        the new text, special tokens left out\n"
            "ids                         the new tokens; generation ends before EOS\n"
            "prompt_tokens               tokens of the prompt\n"
            "prefill_tokens_per_second, decode_tokens_per_second\n"
            "cache_bytes                 what the rows in the cache take at the end\n"
            "with --dataset instead: path, documents, tokens (sampled), seconds",
    .examples = "kvfold generate examples/books-7m --prompt \"It was a dark night\" --greedy --max-new-tokens 64\n"
                "kvfold generate examples/books-7m --prompt-file prompt.txt --temperature 0.8 --top-p 0.95 --seed 7 --json\n"
                "kvfold generate examples/books-7m --dataset 1000 --length 256 --out own.jsonl",
};
