/* kvfold compare: what conversions of one source lost, side by side, as a page. */
#include "comparing.h"

#include <stdlib.h>

typedef struct arguments {
  cli_common common;
  cli_comparing comparing;
} arguments;

static const cli_option options[] = {
    CLI_COMPARING_OPTIONS(arguments),
    CLI_COMPUTE_OPTIONS,
    CLI_JSON_OPTION,
    CLI_END_OPTION,
};

static int run(void *p) {
  arguments *a = p;
  kf_error e = {0};
  kf_compare_options o;
  kf_ids contexts, depths;
  kf_text json = {0};
  cli_reporter reporter;
  if (!a->comparing.text) return cli_say(CLI_USAGE, "compare needs --text FILE");
  if (!cli_check_report(&a->comparing)) return CLI_FAILED;
  kf_hooks hooks = cli_hooks(&reporter);
  int code = CLI_USAGE;
  if (cli_compare_options(&a->common, &a->comparing, &hooks, &contexts, &depths, &o)) {
    kf_status s =
        kf_compare(a->common.operand[0], a->common.operand + 1, a->common.operands - 1, a->comparing.text, &o, &json, &e);
    cli_report_end(&reporter, s == KF_OK);
    code = s == KF_OK ? cli_print_comparison(&a->common, &a->comparing, &json) : cli_fail(&e);
  }
  kf_ids_free(&contexts);
  kf_ids_free(&depths);
  return code;
}

const cli_command cli_compare = {
    .name = "compare",
    .summary = "measure what conversions lost, side by side, as a page",
    .operands = "SRC DST... --text FILE",
    .least_operands = 2,
    .most_operands = CLI_OPERANDS,
    .options = options,
    .bytes = sizeof(arguments),
    .run = run,
    .description =
        "Measures SRC and every DST on the same text: perplexity (also by position), divergence from SRC, the error of each "
        "layer, numbers hidden in the text and asked for, the size of the cache, which engines load it, the ranks and rotated "
        "pairs that were chosen beside the singular values of SRC. --report writes it all on one HTML page. Windows and BOS are "
        "as of eval. Text that a DST was calibrated on is refused.",
    .keys = cli_comparing_keys,
    .examples = "kvfold compare examples/books-7m books-mla --text examples/books-7m/held-out.txt --report books.html\n"
                "kvfold compare SRC mla-50 mla-25 --text held-out.txt --window 8192 --max-windows 4 --report long.html\n"
                "kvfold compare SRC DST --text held-out.txt --needle-contexts none --json",
};
