/* kvfold: the command, a thin caller of libkvfold. */
#include "options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const cli_command *const commands[] = {&cli_info,    &cli_tokenize, &cli_logits,  &cli_eval,  &cli_generate, &cli_chat,
                                              &cli_convert, &cli_export,   &cli_compare, &cli_sweep, &cli_finetune, &cli_distill,
                                              &cli_align,   &cli_dpo,      &cli_plot,    &cli_init,  NULL};

static const cli_command *find_command(const char *name) {
  for (const cli_command *const *c = commands; *c; c++)
    if (!strcmp((*c)->name, name)) return *c;
  return NULL;
}

static void print_overview(void) {
  printf("kvfold %s: turn a pre-trained Transformer's attention into Multi-head Latent Attention\n\n"
         "usage: kvfold COMMAND [ARGUMENTS]     kvfold help COMMAND     kvfold --version\n\n",
         kf_version());
  for (const cli_command *const *c = commands; *c; c++) printf("  %-10s %s\n", (*c)->name, (*c)->summary);
  printf("\nMODEL is a directory in the Hugging Face layout, a .gguf file, or the name of a repository in the local\n"
         "Hugging Face cache (org/name or org/name@revision). Nothing is ever fetched.\n");
}

static int unknown_command(const char *name) {
  return cli_say(CLI_USAGE, "unknown command '%s'; see kvfold --help", name);
}

static int help(int argc, char **argv) {
  if (argc < 1) {
    print_overview();
    return CLI_OK;
  }
  const cli_command *c = find_command(argv[0]);
  if (!c) return unknown_command(argv[0]);
  cli_help(c);
  return CLI_OK;
}

static bool asks_help(int argc, char **argv) {
  for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++)
    if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) return true;
  return false;
}

static int run_with(const cli_command *c, kf_peers *peers, int argc, char **argv) {
  cli_common *arguments = calloc(1, c->bytes);
  if (!arguments) return cli_say(CLI_FAILED, "out of memory");
  if (c->defaults) memcpy(arguments, c->defaults, c->bytes);
  arguments->peers = peers;
  int code = cli_parse(c, argc, argv, arguments) ? c->run(arguments) : CLI_USAGE;
  cli_free_lists(c, arguments);
  free(arguments);
  return code;
}

/* Of processes that run as one, rank 0 alone is heard: what another has to say the library tells it. */
static bool speaks(const kf_peers *peers) {
  return kf_peers_rank(peers) == 0 || (freopen("/dev/null", "w", stdout) && freopen("/dev/null", "w", stderr));
}

static int run(const cli_command *c, int argc, char **argv) {
  if (asks_help(argc, argv)) {
    cli_help(c);
    return CLI_OK;
  }
  kf_peers *peers = NULL;
  kf_error e = {0};
  if (c->together && kf_peers_join(&peers, &e) != KF_OK) return cli_fail(&e);
  int code = speaks(peers) ? run_with(c, peers, argc, argv) : CLI_FAILED;
  kf_peers_leave(peers, code != CLI_OK);
  return code;
}

static int dispatch(int argc, char **argv) {
  if (argc < 2) return cli_say(CLI_USAGE, "no command given; see kvfold --help");
  if (!strcmp(argv[1], "--version")) {
    printf("kvfold %s\n", kf_version());
    return CLI_OK;
  }
  if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) return help(argc - 2, argv + 2);
  const cli_command *c = find_command(argv[1]);
  return c ? run(c, argc - 2, argv + 2) : unknown_command(argv[1]);
}

/* Some libraries read their environment before main (docs/PERFORMANCE.md): where it lacks something the process begins once more. */
static void begin_again(char **argv) {
  char self[4096];
  ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
  if (length < 0 || !kf_environment()) return;
  self[length] = 0;
  execv(self, argv);
}

int main(int argc, char **argv) {
  begin_again(argv);
  int code = dispatch(argc, argv);
  if (fflush(stdout) || ferror(stdout)) return code ? code : cli_say(CLI_FAILED, "cannot write to standard output");
  return code;
}
