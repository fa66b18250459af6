/* kvfold plot: how training runs went. */
#include "options.h"

#include <stdio.h>
#include <string.h>

typedef struct arguments {
  cli_common common;
  const char *out;
  int by;
} arguments;

static const cli_option options[] = {
    {"out", "FILE.svg|FILE.png", CLI_TEXT, offsetof(arguments, out), 0, 0,
     "what to draw; default: the first RUN's name with .svg"},
    {"by", "tokens|steps", CLI_CHOICE, offsetof(arguments, by), 0, 0, "what runs to the right; default tokens"},
    CLI_JSON_OPTION,
    CLI_END_OPTION,
};

static int run(void *p) {
  const arguments *a = p;
  kf_error e = {0};
  const char *first = a->common.operand[0];
  char beside[4096];
  int n = (int)strlen(first);
  while (n > 1 && first[n - 1] == '/') n--;
  if (snprintf(beside, sizeof beside, "%.*s.svg", n, first) >= (int)sizeof beside)
    return cli_say(CLI_FAILED, "a path of %d bytes is too long", n);
  const char *out = a->out ? a->out : beside;
  if (kf_plot_runs(a->common.operand, a->common.operands, out, a->by == 1, &e) != KF_OK) return cli_fail(&e);
  if (!a->common.json) {
    printf("%-12s %s\n", "wrote", out);
    return CLI_OK;
  }
  json_t *o = json_object();
  cli_set_text(o, "path", out, strlen(out));
  json_object_set_new(o, "runs", json_integer(a->common.operands));
  return cli_print_json(o);
}

const cli_command cli_plot = {
    .name = "plot",
    .summary = "draw how training runs went",
    .operands = "RUN...",
    .least_operands = 1,
    .most_operands = CLI_OPERANDS,
    .options = options,
    .bytes = sizeof(arguments),
    .run = run,
    .description =
        "Draws loss, learning rate and gradient norm of every RUN over tokens or steps on one picture, and held-out "
        "perplexities where the run had --eval. RUN is the directory that finetune, distill, align or dpo wrote, or "
        "its --out while it is at work, or a train.jsonl. gnuplot draws. Of more than 500 steps a point is the mean of "
        "its neighbours.",
    .keys = "path  string\n"
            "runs  how many were drawn",
    .examples = "kvfold plot healed\n"
                "kvfold plot healed aligned --out both.png --by steps",
};
