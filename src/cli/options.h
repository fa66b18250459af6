/* The command's own small parts: a table of sub-commands, a table of options each, messages, JSON and the progress bar. */
#ifndef KF_CLI_OPTIONS_H
#define KF_CLI_OPTIONS_H

#include <jansson.h>

#include "kvfold/kvfold.h"

enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2 }; /* exit codes */

typedef enum cli_kind {
  CLI_FLAG,   /* bool */
  CLI_TEXT,   /* const char * */
  CLI_INT,    /* int */
  CLI_LONG,   /* int64_t */
  CLI_SEED,   /* uint64_t */
  CLI_REAL,   /* float */
  CLI_DOUBLE, /* double */
  CLI_CHOICE, /* int: index in `value`, names separated by | */
  CLI_LIST,   /* cli_list: may be repeated, and takes further words once all operands are there */
} cli_kind;

typedef struct cli_list {
  const char **item;
  int count;
} cli_list;

typedef struct cli_option {
  const char *name;  /* without the dashes; NULL ends a table */
  const char *value; /* what stands for the value in the help: "N", "FILE", "auto|f32|bf16" */
  cli_kind kind;
  size_t offset;    /* of the target in the command's argument struct */
  double low, high; /* numbers: allowed range */
  const char *help;
} cli_option;

enum { CLI_OPERANDS = 64 }; /* of one command, at most */

/* Every argument struct begins with this one. */
typedef struct cli_common {
  const char *operand[CLI_OPERANDS];
  int operands;
  bool json;
  int compute; /* kf_compute */
  int threads;
  int device; /* kf_device_kind */
  kf_peers *peers;
} cli_common;

/* Rows that most tables share. */
#define CLI_JSON_OPTION \
  { "json", NULL, CLI_FLAG, offsetof(cli_common, json), 0, 0, "print one JSON object on stdout and nothing else there" }
/* clang-format off */
#define CLI_COMPUTE_OPTIONS                                                                                  \
  {"compute", "auto|f32|bf16", CLI_CHOICE, offsetof(cli_common, compute), 0, 0,                              \
   "what matrices are multiplied in; auto (default): bf16 where it is multiplied natively, else f32"},       \
  {"threads", "N", CLI_INT, offsetof(cli_common, threads), 0, 4096,                                          \
   "threads; 0 (default): all that the process may use"}
/* clang-format on */
#define CLI_DEVICE_OPTION                                                                                     \
  {                                                                                                           \
    "device", "auto|cpu|cuda", CLI_CHOICE, offsetof(cli_common, device), 0, 0,                                \
        "where the model runs; auto (default): the CPU; cuda: the first GPU, when kvfold was built with CUDA" \
  }
#define CLI_END_OPTION \
  { NULL, NULL, CLI_FLAG, 0, 0, 0, NULL }

typedef struct cli_command {
  const char *name, *summary;
  const char *operands; /* "MODEL [TEXT]" */
  int least_operands, most_operands;
  const cli_option *options;
  size_t bytes;                                         /* of the argument struct */
  const void *defaults;                                 /* one such struct, or NULL: zeros */
  int (*run)(void *arguments);                          /* gives the exit code */
  bool together;                                        /* several processes may run it as one, under mpirun */
  const char *description, *settings, *keys, *examples; /* of the help; settings may be NULL */
} cli_command;

extern const cli_command cli_info, cli_tokenize, cli_logits, cli_eval, cli_generate, cli_chat, cli_convert, cli_export,
    cli_compare, cli_sweep, cli_finetune, cli_distill, cli_align, cli_dpo, cli_plot, cli_init;

/* Fills the argument struct, which holds the defaults. False: wrong usage, told on stderr. Lists are freed by cli_free_lists. */
bool cli_parse(const cli_command *c, int argc, char **argv, void *arguments);
void cli_free_lists(const cli_command *c, void *arguments);
void cli_help(const cli_command *c); /* on stdout, in the order of a man page */

/* One line "kvfold: SENTENCE" on stderr; gives `code` back. */
int cli_say(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The same for an error of the library: 2 for unknown methods, keys and values, else 1. */
int cli_fail(const kf_error *e);

/* Notes and the progress bar: notes are told at the end of what succeeds, the bar only on a terminal. */
typedef struct cli_reporter {
  bool terminal, drawn;
  double started, last; /* seconds */
  const char *what;
  char **note;
  int notes;
} cli_reporter;
kf_hooks cli_hooks(cli_reporter *r);
/* SIGINT, SIGTERM and SIGHUP make the progress hook ask for an end: for work that has to clean up. */
void cli_stop_on_signals(void);
void cli_clear(cli_reporter *r);                       /* takes the bar away */
void cli_report_end(cli_reporter *r, bool tell_notes); /* and frees */
double cli_seconds(void);                              /* a clock */

/* JSON: numbers that are not finite become null. Both take `value`'s ownership or copy. */
void cli_set_real(json_t *o, const char *key, double value);
void cli_set_text(json_t *o, const char *key, const char *text, size_t bytes);
void cli_set_ids(json_t *o, const char *key, const int32_t *ids, size_t count);
int cli_print_json(json_t *o); /* frees o; gives the exit code */

/* "1,2 3" to ids. False: told on stderr. */
bool cli_parse_ids(const char *text, kf_ids *out);
/* --set KEY=VALUE ... split into settings [count]; owned [count] holds the copies, freed by the caller. False: told on stderr. */
bool cli_split_settings(const cli_list *list, kf_setting *setting, char **owned);
/* All of standard input. */
kf_status cli_read_stdin(kf_text *out, kf_error *e);

/* Opens model and tokenizer (NULL when not wanted) with the common options. */
kf_status cli_open(const char *model, const cli_common *c, const kf_hooks *hooks, kf_model **m, kf_tokenizer **t, kf_error *e);

#endif
