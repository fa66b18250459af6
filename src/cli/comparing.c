#include "comparing.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char cli_comparing_keys[] =
    "verdict               string: the paragraph at the top of the page\n"
    "text                  path, tokens, window, windows, predicted, bos, position_edges\n"
    "source, models        the source, and a list of the models: name, path, method, attention, dtype, parameters,\n"
    "                      cache_elements_per_token, cache_bytes_per_token, cache_bytes_at, nll, perplexity,\n"
    "                      perplexity_by_position, layers, needles, engines, recipe; models also cache_part,\n"
    "                      perplexity_ratio, kl, top1_agreement, max_logit_difference, conversion_seconds\n"
    "spectra               singular values of each source layer's key and value projections, stacked\n"
    "failed                list of conversions that failed: name, method, cache, sentence\n"
    "version, compute      strings\n"
    "seconds               wall time";

static bool parse_numbers(const char *option, const char *text, double low, double high, kf_ids *out) {
  *out = (kf_ids){0};
  if (!(out->data = malloc((strlen(text) / 2 + 1) * sizeof *out->data))) return cli_say(CLI_FAILED, "out of memory") == CLI_OK;
  for (const char *p = text;;) {
    char *end = NULL;
    errno = 0;
    long n = strtol(p, &end, 10);
    if (end == p || errno || (*end && *end != ',') || (double)n < low || (double)n > high)
      return cli_say(CLI_USAGE, "--%s takes numbers from %.0f to %.0f separated by commas, not '%s'", option, low, high, text) ==
             CLI_OK;
    out->data[out->count++] = (int32_t)n;
    if (!*end) return true;
    p = end + 1;
  }
}

bool cli_compare_options(const cli_common *common, const cli_comparing *c, const kf_hooks *hooks, kf_ids *contexts,
                         kf_ids *depths, kf_compare_options *out) {
  static const int none[1];
  *out =
      (kf_compare_options){.eval = {.window = c->window, .max_windows = c->max_windows, .bos = (kf_bos)c->bos, .hooks = *hooks},
                           .compute = (kf_compute)common->compute,
                           .threads = common->threads};
  *contexts = *depths = (kf_ids){0};
  if (c->contexts && strcmp(c->contexts, "none") == 0) {
    out->needle_contexts = none;
  } else if (c->contexts) {
    if (!parse_numbers("needle-contexts", c->contexts, 1, 1e8, contexts)) return false;
    out->needle_contexts = contexts->data;
    out->needle_context_count = (int)contexts->count;
  }
  if (!c->depths) return true;
  if (!parse_numbers("needle-depths", c->depths, 0, 100, depths)) return false;
  out->needle_depths = depths->data;
  out->needle_depth_count = (int)depths->count;
  return true;
}

bool cli_check_report(const cli_comparing *c) {
  if (!c->report) return true;
  char *directory = strdup(c->report);
  if (!directory) return cli_say(CLI_FAILED, "out of memory") == CLI_OK;
  char *slash = strrchr(directory, '/');
  if (slash) slash[slash == directory] = 0;
  bool writable = access(slash ? directory : ".", W_OK) == 0;
  if (!writable) cli_say(CLI_FAILED, "cannot write %s: %s", c->report, strerror(errno));
  free(directory);
  return writable;
}

/* ------------------------------------------------------------------------------------------------ output */

static double real(const json_t *o, const char *key) {
  return json_number_value(json_object_get(o, key));
}

static const char *text(const json_t *o, const char *key) {
  const char *s = json_string_value(json_object_get(o, key));
  return s ? s : "";
}

static void print_model(const json_t *m, double part) {
  int found = 0;
  size_t i;
  json_t *n;
  json_array_foreach(json_object_get(m, "needles"), i, n) found += json_is_true(json_object_get(n, "found"));
  printf("%-28s %10.0f %7.1f%% %10.3f", text(m, "name"), real(m, "cache_bytes_per_token"), 100 * part, real(m, "perplexity"));
  if (json_object_get(m, "kl"))
    printf(" %8.3f %8.4f %7.1f%%", real(m, "perplexity_ratio"), real(m, "kl"), 100 * real(m, "top1_agreement"));
  else
    printf(" %8s %8s %8s", "-", "-", "-");
  if (json_array_size(json_object_get(m, "needles")))
    printf(" %5d/%zu\n", found, json_array_size(json_object_get(m, "needles")));
  else
    printf(" %7s\n", "-");
}

static void print_table(const json_t *o) {
  size_t i;
  json_t *m;
  printf("%-28s %10s %8s %10s %8s %8s %8s %7s\n", "model", "bytes/token", "of it", "perplexity", "ratio", "KL", "top-1",
         "needles");
  print_model(json_object_get(o, "source"), 1);
  json_array_foreach(json_object_get(o, "models"), i, m) print_model(m, real(m, "cache_part"));
  json_array_foreach(json_object_get(o, "failed"), i, m) printf("%-28s failed: %s\n", text(m, "name"), text(m, "sentence"));
  printf("\n%s\n", text(o, "verdict"));
}

static int print(const cli_common *common, const cli_comparing *c, const kf_text *json) {
  if (common->json) {
    fwrite(json->data, 1, json->bytes, stdout);
    putchar('\n');
    return CLI_OK;
  }
  json_t *o = json_loadb(json->data, json->bytes, 0, NULL);
  print_table(o);
  json_decref(o);
  if (c->report) printf("\nwrote %s\n", c->report);
  return CLI_OK;
}

int cli_print_comparison(const cli_common *common, const cli_comparing *c, kf_text *json) {
  kf_error e = {0};
  cli_reporter reporter;
  kf_hooks hooks = cli_hooks(&reporter);
  kf_status s = c->report ? kf_report_write(c->report, json->data, json->bytes, &hooks, &e) : KF_OK;
  cli_report_end(&reporter, s == KF_OK);
  int code = s == KF_OK ? print(common, c, json) : cli_fail(&e);
  kf_text_free(json);
  return code;
}
