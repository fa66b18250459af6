/* The sampling options that generate and chat share. */
#ifndef KF_CLI_SAMPLING_H
#define KF_CLI_SAMPLING_H

#include "options.h"

typedef struct cli_sampling {
  int max_new_tokens, top_k;
  bool greedy;
  float temperature, top_p;
  uint64_t seed;
} cli_sampling;

/* `arguments` has a member `sampling`. */
/* clang-format off */
#define CLI_SAMPLING_OPTIONS(arguments, most)                                                                              \
  {"max-new-tokens", "N", CLI_INT, offsetof(arguments, sampling.max_new_tokens), 0, 1e9,                                   \
   "new tokens at most; 0: up to the model's context; default: " most},                                                    \
  {"greedy", NULL, CLI_FLAG, offsetof(arguments, sampling.greedy), 0, 0, "always take the likeliest token"},               \
  {"temperature", "T", CLI_REAL, offsetof(arguments, sampling.temperature), 0, 1000,                                       \
   "divide the logits by T before sampling; default 1; 0 is --greedy"},                                                    \
  {"top-p", "P", CLI_REAL, offsetof(arguments, sampling.top_p), 1e-6, 1,                                                   \
   "sample from the likeliest tokens whose probabilities reach P; default 1: off"},                                        \
  {"top-k", "K", CLI_INT, offsetof(arguments, sampling.top_k), 0, 1e9,                                                     \
   "sample from the K likeliest tokens; default 0: off"},                                                                  \
  {"seed", "S", CLI_SEED, offsetof(arguments, sampling.seed), 0, 0, "of the random numbers; default 0"}
/* clang-format on */

bool cli_check_sampling(const cli_sampling *s); /* false: told on stderr */
kf_generate_options cli_generate_options(const cli_sampling *s);

#endif
