/* kvfold sweep: conversions by several methods at several cache sizes, compared on one page. */
#include "comparing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct arguments {
  cli_common common;
  cli_comparing comparing;
  const char *methods, *cache, *dtype, *out, *keep;
  cli_list set, calibration;
  int64_t calibration_tokens;
} arguments;

static const cli_option options[] = {
    {"methods", "NAME,...", CLI_TEXT, offsetof(arguments, methods), 0, 0, "required: methods of convert, separated by commas"},
    {"cache", "N|P%,...", CLI_TEXT, offsetof(arguments, cache), 0, 0,
     "cache sizes as of convert, separated by commas; default 50%,25%"},
    {"set", "[METHOD.]KEY=VALUE ...", CLI_LIST, offsetof(arguments, set), 0, 0,
     "a key of one method, or without METHOD of all; may be repeated"},
    {"dtype", "f32|bf16|f16", CLI_TEXT, offsetof(arguments, dtype), 0, 0, "of the weights written, as of convert"},
    {"calibration", "FILE ...", CLI_LIST, offsetof(arguments, calibration), 0, 0,
     "text for methods that look at activations; never that of --text"},
    {"calibration-tokens", "N", CLI_LONG, offsetof(arguments, calibration_tokens), 1, 1e12, "read at most N tokens of it"},
    {"out", "DIR", CLI_TEXT, offsetof(arguments, out), 0, 0,
     "where models are made, each removed once it is measured; default: beside the report"},
    {"keep", "DIR", CLI_TEXT, offsetof(arguments, keep), 0, 0, "make the models in DIR and keep them, as METHOD-CACHE"},
    CLI_COMPARING_OPTIONS(arguments),
    CLI_COMPUTE_OPTIONS,
    CLI_JSON_OPTION,
    CLI_END_OPTION,
};

/* Commas become ends of words; words [commas + 1]. */
static int split(char *list, const char **words) {
  int count = 0;
  for (char *word = strtok(list, ","); word; word = strtok(NULL, ",")) words[count++] = word;
  return count;
}

/* What sweep's options point into. */
typedef struct owned {
  char *methods, *caches, *directory;
  const char **method, **cache;
  kf_setting *setting;
  char **key;
  kf_ids contexts, depths;
} owned;

static void free_owned(owned *w, int settings) {
  for (int i = 0; w->key && i < settings; i++) free(w->key[i]);
  free(w->key);
  free(w->setting);
  free(w->method);
  free(w->cache);
  free(w->methods);
  free(w->caches);
  free(w->directory);
  kf_ids_free(&w->contexts);
  kf_ids_free(&w->depths);
}

static bool allocate(const arguments *a, owned *w) {
  w->methods = strdup(a->methods);
  w->caches = strdup(a->cache ? a->cache : "50%,25%");
  w->directory = strdup(a->out ? a->out : a->comparing.report ? a->comparing.report : ".");
  if (!w->methods || !w->caches || !w->directory) return false;
  w->method = calloc(strlen(w->methods) + 1, sizeof *w->method);
  w->cache = calloc(strlen(w->caches) + 1, sizeof *w->cache);
  w->setting = calloc((size_t)a->set.count + 1, sizeof *w->setting);
  w->key = calloc((size_t)a->set.count + 1, sizeof *w->key);
  return w->method && w->cache && w->setting && w->key;
}

static bool fill(const arguments *a, const kf_hooks *hooks, owned *w, kf_sweep_options *o) {
  if (!allocate(a, w)) return cli_say(CLI_FAILED, "out of memory") == CLI_OK;
  if (!cli_split_settings(&a->set, w->setting, w->key)) return false;
  *o = (kf_sweep_options){.methods = w->method, .caches = w->cache, .scratch = w->directory, .keep = a->keep};
  o->method_count = split(w->methods, w->method);
  o->cache_count = split(w->caches, w->cache);
  if (!a->out) { /* beside the report */
    char *slash = strrchr(w->directory, '/');
    if (slash) slash[slash == w->directory] = 0;
    if (!slash) o->scratch = ".";
  }
  o->convert = (kf_convert_options){.dtype = a->dtype,
                                    .settings = w->setting,
                                    .setting_count = a->set.count,
                                    .calibration = a->calibration.item,
                                    .calibration_count = a->calibration.count,
                                    .calibration_tokens = a->calibration_tokens,
                                    .compute = (kf_compute)a->common.compute,
                                    .threads = a->common.threads,
                                    .hooks = *hooks};
  return cli_compare_options(&a->common, &a->comparing, hooks, &w->contexts, &w->depths, &o->compare);
}

static int sweep(const arguments *a, owned *w) {
  kf_error e = {0};
  kf_sweep_options o;
  kf_text json = {0};
  cli_reporter reporter;
  kf_hooks hooks = cli_hooks(&reporter);
  if (!fill(a, &hooks, w, &o)) return CLI_USAGE;
  kf_status s = kf_sweep(a->common.operand[0], a->comparing.text, &o, &json, &e);
  cli_report_end(&reporter, s == KF_OK);
  return s == KF_OK ? cli_print_comparison(&a->common, &a->comparing, &json) : cli_fail(&e);
}

static int run(void *p) {
  arguments *a = p;
  owned w = {0};
  if (!a->methods) return cli_say(CLI_USAGE, "sweep needs --methods NAME,...");
  if (!a->comparing.text) return cli_say(CLI_USAGE, "sweep needs --text FILE");
  if (!a->comparing.report && !a->common.json) return cli_say(CLI_USAGE, "sweep needs --report OUT.html or --json");
  if (!cli_check_report(&a->comparing)) return CLI_FAILED;
  cli_stop_on_signals(); /* the models at work are removed */
  int code = sweep(a, &w);
  free_owned(&w, a->set.count);
  return code;
}

const cli_command cli_sweep = {
    .name = "sweep",
    .summary = "convert by several methods at several cache sizes, and compare",
    .operands = "SRC --methods NAME,... --text FILE",
    .least_operands = 1,
    .most_operands = 1,
    .options = options,
    .bytes = sizeof(arguments),
    .run = run,
    .description =
        "Converts SRC by every method at every cache size, one after another, and measures each as compare does; the source is "
        "opened and described once, and what the conversions have in common (text that SRC writes, statistics) is made once. No "
        "model stays unless --keep says where. A conversion that fails is listed with its reason, "
        "and the others go on; when all fail, so does the sweep.",
    .keys = cli_comparing_keys,
    .examples = "kvfold sweep examples/books-7m --methods mha2mla,x-ecomla --cache 75%,50%,25% \\\n"
                "    --text examples/books-7m/held-out.txt --window 256 --report books.html\n"
                "kvfold sweep SRC --methods fold,mha2mla --cache 50%,31.25% --calibration train.jsonl.zst \\\n"
                "    --set fold.refit=none --text held-out.txt --report sweep.html --keep models",
};
