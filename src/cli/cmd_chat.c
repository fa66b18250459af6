/* kvfold chat: a conversation through the model's chat template; the cache goes on from answer to answer. */
#include "sampling.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct arguments {
  cli_common common;
  cli_sampling sampling;
  const char *system;
} arguments;

static const arguments defaults = {.sampling = {.max_new_tokens = 0, .temperature = 1, .top_p = 1}};

static const cli_option options[] = {
    {"system", "TEXT", CLI_TEXT, offsetof(arguments, system), 0, 0, "the system message"},
    CLI_SAMPLING_OPTIONS(arguments, "0"),
    CLI_COMPUTE_OPTIONS,
    CLI_DEVICE_OPTION,
    CLI_JSON_OPTION,
    CLI_END_OPTION,
};

typedef struct chat {
  const arguments *arguments;
  kf_batch *batch;
  const kf_tokenizer *tokenizer;
  json_t *messages;
  kf_ids held; /* the tokens in the cache */
} chat;

static void reset(chat *c) {
  json_array_clear(c->messages);
  if (c->arguments->system)
    json_array_append_new(c->messages, json_pack("{s:s, s:s}", "role", "system", "content", c->arguments->system));
}

static kf_status render(const chat *c, kf_ids *out, kf_error *e) {
  kf_text text = {0};
  char *json = json_dumps(c->messages, 0);
  kf_status s = kf_chat_render(c->tokenizer, json, true, &text, e);
  free(json);
  if (s == KF_OK) s = kf_tokenizer_encode(c->tokenizer, text.data, text.bytes, KF_ENCODE_PLAIN, out, e);
  kf_text_free(&text);
  return s;
}

/* How many tokens of the prompt stand in the cache already; the cache is emptied when it holds something else. */
static size_t reuse(chat *c, const kf_ids *prompt) {
  size_t n = c->held.count;
  if (n < prompt->count && (!n || !memcmp(c->held.data, prompt->data, n * sizeof *prompt->data))) return n;
  kf_batch_reset(c->batch, 0);
  return 0;
}

/* What the cache holds now: the prompt and those new tokens that were fed. */
static void remember(chat *c, kf_ids *prompt, const kf_ids *fresh) {
  kf_ids_free(&c->held);
  size_t all = prompt->count + fresh->count, held = (size_t)kf_batch_tokens(c->batch, 0);
  int32_t *more = realloc(prompt->data, all * sizeof *more);
  if (!more || held > all) {
    kf_batch_reset(c->batch, 0);
    if (more) prompt->data = more;
    return;
  }
  if (fresh->count) memcpy(more + prompt->count, fresh->data, fresh->count * sizeof *more);
  c->held = (kf_ids){more, held};
  *prompt = (kf_ids){0};
}

static void on_text(void *user, const char *piece, size_t bytes) {
  (void)user;
  fwrite(piece, 1, bytes, stdout);
  fflush(stdout);
}

static int print(const chat *c, const kf_generation *g, size_t prompt_tokens, size_t reused) {
  if (!c->arguments->common.json) {
    putchar('\n');
    return CLI_OK;
  }
  json_t *o = json_object();
  cli_set_text(o, "text", g->text.data, g->text.bytes);
  cli_set_ids(o, "ids", g->ids.data, g->ids.count);
  json_object_set_new(o, "prompt_tokens", json_integer((json_int_t)prompt_tokens));
  json_object_set_new(o, "reused_tokens", json_integer((json_int_t)reused));
  cli_set_real(o, "prefill_tokens_per_second", g->prefill_tokens_per_second);
  cli_set_real(o, "decode_tokens_per_second", g->decode_tokens_per_second);
  json_object_set_new(o, "cache_bytes", json_integer(g->cache_bytes));
  int code = cli_print_json(o);
  fflush(stdout);
  return code;
}

static int answer(chat *c, const char *line, size_t bytes) {
  kf_error e = {0};
  kf_ids prompt = {0};
  kf_generation g = {0};
  kf_generate_options o = cli_generate_options(&c->arguments->sampling);
  json_t *content = json_stringn(line, bytes);
  if (!content) return cli_say(CLI_FAILED, "the message is not UTF-8");
  json_array_append_new(c->messages, json_pack("{s:s, s:o}", "role", "user", "content", content));
  if (!c->arguments->common.json) o.on_text = on_text;
  kf_status s = render(c, &prompt, &e);
  size_t reused = s == KF_OK ? reuse(c, &prompt) : 0, tokens = prompt.count;
  if (s == KF_OK) s = kf_batch_generate(c->batch, 0, c->tokenizer, prompt.data + reused, prompt.count - reused, &o, &g, &e);
  int code = CLI_FAILED;
  if (s == KF_OK) {
    json_array_append_new(c->messages, json_pack("{s:s, s:o}", "role", "assistant", "content",
                                                 json_stringn(g.text.data ? g.text.data : "", g.text.bytes)));
    remember(c, &prompt, &g.ids);
    code = print(c, &g, tokens, reused);
  } else {
    cli_fail(&e);
  }
  kf_generation_free(&g);
  kf_ids_free(&prompt);
  return code;
}

static int converse(chat *c) {
  char *line = NULL;
  size_t capacity = 0;
  int code = CLI_OK;
  bool person = isatty(STDIN_FILENO) && !c->arguments->common.json;
  reset(c);
  if (person) fputs("/reset begins anew, /exit or end of input leaves\n", stderr);
  while (code == CLI_OK) {
    if (person) fputs("> ", stderr);
    ssize_t n = getline(&line, &capacity, stdin);
    if (n < 0) break;
    while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r')) line[--n] = 0;
    if (!strcmp(line, "/exit")) break;
    if (!strcmp(line, "/reset"))
      reset(c);
    else if (n > 0)
      code = answer(c, line, (size_t)n);
  }
  free(line);
  return code;
}

static int run(void *p) {
  arguments *a = p;
  kf_error e = {0};
  kf_model *m = NULL;
  kf_tokenizer *t = NULL;
  chat c = {.arguments = a};
  cli_reporter reporter;
  if (!cli_check_sampling(&a->sampling)) return CLI_USAGE;
  kf_hooks hooks = cli_hooks(&reporter);
  kf_status s = cli_open(a->common.operand[0], &a->common, &hooks, &m, &t, &e);
  if (s == KF_OK) s = kf_batch_create(m, 1, &c.batch, &e);
  cli_report_end(&reporter, s == KF_OK);
  c.tokenizer = t;
  c.messages = json_array();
  int code = s == KF_OK ? converse(&c) : cli_fail(&e);
  json_decref(c.messages);
  kf_ids_free(&c.held);
  kf_batch_free(c.batch);
  kf_tokenizer_close(t);
  kf_model_close(m);
  return code;
}

const cli_command cli_chat = {
    .name = "chat",
    .summary = "talk with a model through its chat template",
    .operands = "MODEL",
    .least_operands = 1,
    .most_operands = 1,
    .options = options,
    .bytes = sizeof(arguments),
    .defaults = &defaults,
    .run = run,
    .description =
        "Reads messages from standard input, one a line, and streams the answers. The conversation is rendered through "
        "the model's own chat template; what the cache holds already is not computed again. /reset begins anew, /exit "
        "or the end of the input leaves.",
    .keys = "one object a line and answer:\n"
            "text, ids                   the answer and its tokens; it ends before EOS\n"
            "prompt_tokens               tokens of the whole conversation so far\n"
            "reused_tokens               of these, found in the cache\n"
            "prefill_tokens_per_second, decode_tokens_per_second\n"
            "cache_bytes                 what the rows in the cache take",
    .examples = "kvfold chat SmolLM2-135M-Instruct.Q4_1.gguf --greedy\n"
                "kvfold chat SmolLM2-135M-Instruct.Q4_1.gguf --system \"Answer in one sentence.\" --temperature 0.7\n"
                "echo \"What is the capital of France?\" | kvfold chat MODEL --greedy --json",
};
