#include "sampling.h"

bool cli_check_sampling(const cli_sampling *s) {
  if (!s->greedy || (s->temperature == 1 && s->top_p == 1 && s->top_k == 0)) return true;
  cli_say(CLI_USAGE, "--greedy excludes --temperature, --top-p and --top-k");
  return false;
}

kf_generate_options cli_generate_options(const cli_sampling *s) {
  return (kf_generate_options){.max_new_tokens = s->max_new_tokens,
                               .greedy = s->greedy || s->temperature == 0,
                               .temperature = s->temperature > 0 ? s->temperature : 1,
                               .top_p = s->top_p,
                               .top_k = s->top_k,
                               .seed = s->seed,
                               .skip_special = true};
}
