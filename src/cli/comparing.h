/* What compare and sweep share: how models are measured, and what is told of it. */
#ifndef KF_CLI_COMPARING_H
#define KF_CLI_COMPARING_H

#include "options.h"

typedef struct cli_comparing {
  const char *text, *report, *contexts, *depths;
  int window, max_windows, bos;
} cli_comparing;

/* `arguments` has a member `comparing`. */
/* clang-format off */
#define CLI_COMPARING_OPTIONS(arguments)                                                                                    \
  {"text", "FILE", CLI_TEXT, offsetof(arguments, comparing.text), 0, 0,                                                     \
   "required: text that no model was calibrated on; plain, JSONL, or .zst of both"},                                        \
  {"report", "OUT.html", CLI_TEXT, offsetof(arguments, comparing.report), 0, 0,                                             \
   "write one self-contained page; its plots are drawn by gnuplot, where there is one"},                                    \
  {"window", "N", CLI_INT, offsetof(arguments, comparing.window), 1, 1e9,                                                   \
   "tokens of a window, as of eval; perplexity by position reaches this far"},                                              \
  {"max-windows", "N", CLI_INT, offsetof(arguments, comparing.max_windows), 1, 1e9, "stop after N windows"},                \
  {"bos", "auto|yes|no", CLI_CHOICE, offsetof(arguments, comparing.bos), 0, 0, "as of eval"},                               \
  {"needle-contexts", "N,...|none", CLI_TEXT, offsetof(arguments, comparing.contexts), 0, 0,                                \
   "hide a number in so many tokens of the text; default: 512,2048, as far as model and text reach"},                       \
  {"needle-depths", "P,...", CLI_TEXT, offsetof(arguments, comparing.depths), 0, 0,                                         \
   "at so many per cent of it; default 0,25,50,75,100"}
/* clang-format on */

/* The keys of --json, for the help. */
extern const char cli_comparing_keys[];

/* Fills the options; *contexts and *depths, which they point into, are the caller's. False: told on stderr. */
bool cli_compare_options(const cli_common *common, const cli_comparing *c, const kf_hooks *hooks, kf_ids *contexts,
                         kf_ids *depths, kf_compare_options *out);
/* Whether the page can be written where it is wanted, asked before the work begins. False: told on stderr. */
bool cli_check_report(const cli_comparing *c);
/* Writes the page, prints the JSON or a table, frees json; gives the exit code. */
int cli_print_comparison(const cli_common *common, const cli_comparing *c, kf_text *json);

#endif
