/* kvfold finetune, distill, align, dpo: one trainer, four ways to say what it minimises. */
#include "options.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct arguments {
  cli_common common;
  const char *out, *teacher, *teacher_cache, *data_cache, *schedule, *dtype, *eval, *recipe;
  cli_list data, weights, train, freeze;
  int64_t steps, tokens, save_every;
  int length, batch, micro, teacher_top, match, divergence, loss, learn, eval_windows;
  double rate, warmup, decay, beta1, beta2, eps, weight_decay, clip, ce_weight, kl_weight, temperature, beta, smoothing;
  bool skip_bad, isolated, by_sequence, resume;
  uint64_t seed;
} arguments;

/* clang-format off */
#define DATA_OPTION(help) {"data", "FILE ...", CLI_LIST, offsetof(arguments, data), 0, 0, help}
#define TEXT_HELP "JSONL (\"text\", or \"messages\" or \"conversations\" through the chat template), a JSON array of such, " \
  "plain text, or .zst of each; may be repeated"
#define SHARED_OPTIONS \
  {"recipe", "FILE.yaml", CLI_TEXT, offsetof(arguments, recipe), 0, 0, \
   "read data, weights, tokens, length, batch, rate and the like from a file; options given here come before its own"}, \
  {"weights", "W ...", CLI_LIST, offsetof(arguments, weights), 0, 0, \
   "a number above 0 for each data file: their shares of the sequences; default: by their tokens"}, \
  {"out", "DIR", CLI_TEXT, offsetof(arguments, out), 0, 0, \
   "required: the directory to write, which must not exist; the run stands in DIR.run until it ends"}, \
  {"tokens", "N", CLI_LONG, offsetof(arguments, tokens), 1, 1e15, "train on N tokens; this or --steps is required"}, \
  {"steps", "N", CLI_LONG, offsetof(arguments, steps), 1, 1e12, "optimiser steps"}, \
  {"length", "N", CLI_INT, offsetof(arguments, length), 1, 1 << 24, "tokens of a sequence; default: the model's context, 1024 at most"}, \
  {"batch", "N", CLI_INT, offsetof(arguments, batch), 1, 1 << 20, "sequences (pairs) of a step; default 8"}, \
  {"micro", "N", CLI_INT, offsetof(arguments, micro), 1, 1 << 20, \
   "sequences (pairs) in memory at a time, the gradient is accumulated; default: as many as make 4096 tokens"}, \
  {"lr", "X", CLI_DOUBLE, offsetof(arguments, rate), 0, 1e3, "peak learning rate; default 1e-4 (align 1e-3, dpo 5e-7)"}, \
  {"schedule", "NAME", CLI_TEXT, offsetof(arguments, schedule), 0, 0, \
   "cosine (default), linear, constant, wsd (constant, then linear decay) or 1-sqrt (constant, then MHA2MLA's decay)"}, \
  {"warmup", "N", CLI_DOUBLE, offsetof(arguments, warmup), 0, 1e12, "steps that rise to the peak, or a part of all below 1; default 0"}, \
  {"decay", "N", CLI_DOUBLE, offsetof(arguments, decay), 0, 1e12, "steps of the decay of wsd and 1-sqrt, or a part below 1; default 0.1"}, \
  {"beta1", "X", CLI_DOUBLE, offsetof(arguments, beta1), 0, 1, "of AdamW; default 0.9"}, \
  {"beta2", "X", CLI_DOUBLE, offsetof(arguments, beta2), 0, 1, "of AdamW; default 0.95"}, \
  {"eps", "X", CLI_DOUBLE, offsetof(arguments, eps), 0, 1, "of AdamW; default 1e-8"}, \
  {"weight-decay", "X", CLI_DOUBLE, offsetof(arguments, weight_decay), 0, 1e3, "of matrices, norms and biases have none; default 0"}, \
  {"clip", "X", CLI_DOUBLE, offsetof(arguments, clip), -1, 1e9, "largest norm of the gradient; default 1, -1: none"}, \
  {"train", "PATTERN ...", CLI_LIST, offsetof(arguments, train), 0, 0, \
   "train only tensors whose name a shell pattern is found in, such as self_attn; default: all"}, \
  {"freeze", "PATTERN ...", CLI_LIST, offsetof(arguments, freeze), 0, 0, "of these, leave out those that a pattern is found in"}, \
  {"isolate", NULL, CLI_FLAG, offsetof(arguments, isolated), 0, 0, "packed documents do not attend to one another"}, \
  {"skip-bad", NULL, CLI_FLAG, offsetof(arguments, skip_bad), 0, 0, "leave out records that cannot be used, in place of refusing them"}, \
  {"data-cache", "DIR", CLI_TEXT, offsetof(arguments, data_cache), 0, 0, \
   "where tokenised data is kept; default: kvfold/tokens below the user's cache directory"}, \
  {"seed", "S", CLI_SEED, offsetof(arguments, seed), 0, 0, "of the order of documents; default 0"}, \
  {"save-every", "N", CLI_LONG, offsetof(arguments, save_every), 1, 1e12, "steps between checkpoints; default 100"}, \
  {"resume", NULL, CLI_FLAG, offsetof(arguments, resume), 0, 0, "go on from the checkpoint in DIR.run, to the same bytes"}, \
  {"dtype", "f32|bf16|f16", CLI_TEXT, offsetof(arguments, dtype), 0, 0, "of the weights written; default: the student's"}, \
  {"eval", "FILE", CLI_TEXT, offsetof(arguments, eval), 0, 0, \
   "measure perplexity on this text before and after (and the teacher's), as kvfold eval does"}, \
  {"eval-windows", "N", CLI_INT, offsetof(arguments, eval_windows), 1, 1e9, "of that text use N windows; default 32"}, \
  CLI_COMPUTE_OPTIONS, CLI_DEVICE_OPTION, CLI_JSON_OPTION, CLI_END_OPTION
#define LEARN_OPTION {"learn", "all|answers", CLI_CHOICE, offsetof(arguments, learn), 0, 0, \
   "of conversations learn every token (default), or the assistant's answers alone"}
#define SUM_OPTION {"by-sequence", NULL, CLI_FLAG, offsetof(arguments, by_sequence), 0, 0, \
   "divide the loss by the sequences of a step, not by its tokens, as X-EcoMLA's code does"}

static const cli_option finetune_options[] = {DATA_OPTION(TEXT_HELP), LEARN_OPTION, SUM_OPTION, SHARED_OPTIONS};
static const cli_option distill_options[] = {
    {"teacher", "MODEL", CLI_TEXT, offsetof(arguments, teacher), 0, 0, "required: a model with the same vocabulary"},
    {"teacher-cache", "DIR", CLI_TEXT, offsetof(arguments, teacher_cache), 0, 0,
     "keep the teacher's predictions in DIR, and take them from there: what it has predicted once, for any student, order or number "
     "of epochs, the teacher does not run for again; forward-kl only"},
    {"teacher-top", "K", CLI_INT, offsetof(arguments, teacher_top), 1, 1 << 24,
     "with --teacher-cache: tokens kept of each prediction, all others count as one; default 64; 8 (K + 1) bytes a token of text"},
    DATA_OPTION(TEXT_HELP),
    {"divergence", "forward-kl|reverse-kl|js", CLI_CHOICE, offsetof(arguments, divergence), 0, 0,
     "KL(teacher || student) (default), KL(student || teacher), or Jensen-Shannon"},
    {"kl-weight", "X", CLI_DOUBLE, offsetof(arguments, kl_weight), 0, 1e6, "of the divergence in the loss; default 1"},
    {"ce-weight", "X", CLI_DOUBLE, offsetof(arguments, ce_weight), 0, 1e6, "of the cross-entropy with the text; default 0"},
    {"temperature", "T", CLI_DOUBLE, offsetof(arguments, temperature), 1e-3, 1e3,
     "both distributions are taken at it, the divergence counts T^2 times; default 1"},
    LEARN_OPTION, SUM_OPTION, SHARED_OPTIONS};
static const cli_option align_options[] = {
    {"teacher", "MODEL", CLI_TEXT, offsetof(arguments, teacher), 0, 0, "required: a model of the same layers and width"},
    DATA_OPTION(TEXT_HELP),
    {"match", "layer|attention|both", CLI_CHOICE, offsetof(arguments, match), 0, 0,
     "which output of a layer is matched: the layer's (default), that of its attention, or the sum of both errors"},
    SHARED_OPTIONS};
static const cli_option dpo_options[] = {
    {"prefs", "FILE ...", CLI_LIST, offsetof(arguments, data), 0, 0,
     "required: JSONL or a JSON array of \"prompt\" (or \"conversations\"), \"chosen\" and \"rejected\": texts or messages; may be repeated"},
    {"reference", "MODEL", CLI_TEXT, offsetof(arguments, teacher), 0, 0, "what to stay close to; default: MODEL as it starts"},
    {"loss", "sigmoid|ipo", CLI_CHOICE, offsetof(arguments, loss), 0, 0, "DPO's (default), or IPO's squared loss"},
    {"beta", "X", CLI_DOUBLE, offsetof(arguments, beta), 1e-9, 1e6, "default 0.1"},
    {"label-smoothing", "X", CLI_DOUBLE, offsetof(arguments, smoothing), 0, 0.5, "part of the pairs taken to be the wrong way round"},
    SHARED_OPTIONS};
/* clang-format on */

/* ------------------------------------------------------------------------------------------------ progress */

typedef struct live {
  cli_reporter reporter;
  double told; /* seconds */
} live;

/* A line every few seconds, on a terminal only. */
static void on_step(void *user, const kf_train_step *s) {
  live *l = user;
  double now = cli_seconds();
  if (!l->reporter.terminal || (now - l->told < 5 && s->step < s->steps)) return;
  l->told = now;
  cli_clear(&l->reporter);
  fprintf(stderr, "step %" PRId64 "/%" PRId64 "  loss %.4f  nll %.4f  lr %.2e  gradient %.3g  %.0f tokens/s\n", s->step, s->steps,
          s->loss, s->nll, s->rate, s->gradient_norm, s->tokens_per_second);
}

/* ------------------------------------------------------------------------------------------------ held-out text */

typedef struct score {
  bool known;
  double perplexity;
} score;

static kf_status measure(const arguments *a, const char *model, const kf_hooks *hooks, score *out, kf_error *e) {
  kf_model *m = NULL;
  kf_tokenizer *t = NULL;
  kf_text text = {0};
  kf_eval_result r;
  kf_eval_options o = {.max_windows = a->eval_windows ? a->eval_windows : 32, .hooks = *hooks};
  if (!a->eval || !model || kf_peers_rank(a->common.peers) != 0) return KF_OK;
  kf_status s = kf_text_read(a->eval, &text, e);
  if (s == KF_OK) s = cli_open(model, &a->common, hooks, &m, &t, e);
  if (s == KF_OK) s = kf_eval(m, NULL, t, text.data, text.bytes, &o, &r, e);
  if (s == KF_OK) *out = (score){true, r.perplexity};
  kf_text_free(&text);
  kf_tokenizer_close(t);
  kf_model_close(m);
  return s;
}

/* For kvfold plot: perplexities by the tokens that came before. */
static int keep_scores(const arguments *a, const kf_train_result *r, const score *before, const score *after) {
  char path[4096];
  if (!before->known) return CLI_OK; /* as on every rank but 0 */
  FILE *f = snprintf(path, sizeof path, "%s/held-out.jsonl", a->out) < (int)sizeof path ? fopen(path, "w") : NULL;
  if (f)
    fprintf(f,
            "{\"step\": 0, \"tokens\": 0, \"perplexity\": %.9g}\n{\"step\": %" PRId64 ", \"tokens\": %" PRId64
            ", \"perplexity\": %.9g}\n",
            before->perplexity, r->steps, r->tokens, after->perplexity);
  bool bad = !f || ferror(f);
  if ((f && fclose(f)) || bad) return cli_say(CLI_FAILED, "%s cannot be written", path);
  return CLI_OK;
}

/* ------------------------------------------------------------------------------------------------ the run */

static bool parse_weights(const arguments *a, double *out) {
  for (int i = 0; i < a->weights.count; i++) {
    char *end = NULL;
    errno = 0;
    out[i] = strtod(a->weights.item[i], &end);
    if (errno || end == a->weights.item[i] || *end || !(out[i] > 0)) {
      cli_say(CLI_USAGE, "--weights takes numbers above 0, not '%s'", a->weights.item[i]);
      return false;
    }
  }
  if (a->weights.count == 0 || a->weights.count == a->data.count) return true;
  cli_say(CLI_USAGE, "%d weights for %d data files", a->weights.count, a->data.count);
  return false;
}

static kf_train_options options_of(const arguments *a, const char *objective, const double *weights) {
  static const char *const matches[] = {"layer", "attention", "both"};
  return (kf_train_options){.objective = objective,
                            .teacher = a->teacher,
                            .teacher_cache = a->teacher_cache,
                            .teacher_top = a->teacher_top,
                            .data = a->data.item,
                            .data_count = a->data.count,
                            .weights = a->weights.count ? weights : NULL,
                            .data_cache = a->data_cache,
                            .skip_bad = a->skip_bad,
                            .answers = a->learn == 1,
                            .isolated = a->isolated,
                            .steps = a->steps,
                            .tokens = a->tokens,
                            .length = a->length,
                            .batch = a->batch,
                            .micro = a->micro,
                            .rate = a->rate,
                            .schedule = a->schedule,
                            .warmup = a->warmup,
                            .decay = a->decay,
                            .beta1 = a->beta1,
                            .beta2 = a->beta2,
                            .eps = a->eps,
                            .weight_decay = a->weight_decay,
                            .clip = a->clip,
                            .by_sequence = a->by_sequence,
                            .ce_weight = a->ce_weight,
                            .kl_weight = a->kl_weight,
                            .temperature = a->temperature,
                            .dpo_beta = a->beta,
                            .label_smoothing = a->smoothing,
                            .match = a->match < 0 ? NULL : matches[a->match],
                            .train = a->train.item,
                            .train_count = a->train.count,
                            .freeze = a->freeze.item,
                            .freeze_count = a->freeze.count,
                            .seed = a->seed,
                            .save_every = a->save_every,
                            .resume = a->resume,
                            .dtype = a->dtype,
                            .device = (kf_device_kind)a->common.device,
                            .compute = (kf_compute)a->common.compute,
                            .threads = a->common.threads,
                            .peers = a->common.peers};
}

static int print(const arguments *a, const kf_train_result *r, const score *before, const score *after, const score *teacher) {
  const struct {
    const char *key;
    const score *s;
  } scores[] = {{"perplexity_before", before}, {"perplexity_after", after}, {"perplexity_teacher", teacher}};
  if (kf_peers_rank(a->common.peers) != 0) return CLI_OK;
  if (!a->common.json) {
    printf("%-12s %s\n", "wrote", a->out);
    printf("%-12s %" PRId64 " steps, %" PRId64 " tokens, %" PRId64 " parameters trained\n", "run", r->steps, r->tokens,
           r->trained_parameters);
    printf("%-12s %.4f -> %.4f\n", "loss", r->first_loss, r->last_loss);
    printf("%-12s %.1f s, %.0f tokens/s\n", "time", r->seconds, r->tokens_per_second);
    if (before->known) printf("%-12s %.4f -> %.4f", "perplexity", before->perplexity, after->perplexity);
    if (before->known && teacher->known) printf(", teacher %.4f", teacher->perplexity);
    if (before->known) printf("\n");
    return CLI_OK;
  }
  json_t *o = json_object();
  cli_set_text(o, "path", a->out, strlen(a->out));
  json_object_set_new(o, "steps", json_integer(r->steps));
  json_object_set_new(o, "tokens", json_integer(r->tokens));
  json_object_set_new(o, "trained_parameters", json_integer(r->trained_parameters));
  cli_set_real(o, "first_loss", r->first_loss);
  cli_set_real(o, "last_loss", r->last_loss);
  cli_set_real(o, "tokens_per_second", r->tokens_per_second);
  cli_set_real(o, "seconds", r->seconds);
  for (size_t i = 0; i < sizeof scores / sizeof *scores; i++)
    if (scores[i].s->known) cli_set_real(o, scores[i].key, scores[i].s->perplexity);
  return cli_print_json(o);
}

/* What the command line does not give is the recipe's. */
static void take_recipe(kf_train_options *o, const kf_train_options *r) {
  if (!o->data_count) {
    o->data = r->data;
    o->data_count = r->data_count;
    o->weights = r->weights;
  }
  if (!o->steps && !o->tokens) {
    o->steps = r->steps;
    o->tokens = r->tokens;
  }
  if (!o->train_count) {
    o->train = r->train;
    o->train_count = r->train_count;
  }
  if (!o->freeze_count) {
    o->freeze = r->freeze;
    o->freeze_count = r->freeze_count;
  }
  if (!o->schedule) o->schedule = r->schedule;
  if (!o->dtype) o->dtype = r->dtype;
  if (!o->match) o->match = r->match;
  if (!o->length) o->length = r->length;
  if (!o->batch) o->batch = r->batch;
  if (!o->micro) o->micro = r->micro;
  if (!o->seed) o->seed = r->seed;
  if (!o->save_every) o->save_every = r->save_every;
  double *mine[] = {&o->rate,        &o->warmup,       &o->decay,          &o->beta1,     &o->beta2,
                    &o->eps,         &o->weight_decay, &o->clip,           &o->ce_weight, &o->kl_weight,
                    &o->temperature, &o->dpo_beta,     &o->label_smoothing};
  const double theirs[] = {r->rate,        r->warmup,       r->decay,          r->beta1,     r->beta2,
                           r->eps,         r->weight_decay, r->clip,           r->ce_weight, r->kl_weight,
                           r->temperature, r->dpo_beta,     r->label_smoothing};
  for (size_t i = 0; i < sizeof mine / sizeof *mine; i++)
    if (*mine[i] == 0) *mine[i] = theirs[i];
  o->answers |= r->answers;
  o->isolated |= r->isolated;
  o->skip_bad |= r->skip_bad;
  o->by_sequence |= r->by_sequence;
}

static int train(const arguments *a, const char *objective, const double *weights, const kf_train_options *recipe) {
  kf_error e = {0};
  kf_train_result r = {0};
  live l = {.told = cli_seconds()};
  score before = {0}, after = {0}, teacher = {0};
  kf_train_options o = options_of(a, objective, weights);
  take_recipe(&o, recipe);
  if (a->teacher_top && !a->teacher_cache) return cli_say(CLI_USAGE, "--teacher-top goes with --teacher-cache DIR");
  if (!o.data_count) return cli_say(CLI_USAGE, "no data is given to train on");
  if (!o.steps == !o.tokens) return cli_say(CLI_USAGE, "either --tokens N or --steps N is needed");
  o.hooks = cli_hooks(&l.reporter);
  o.on_step = on_step;
  o.user = &l;
  kf_status s = measure(a, a->common.operand[0], &o.hooks, &before, &e);
  if (s == KF_OK) s = measure(a, a->teacher, &o.hooks, &teacher, &e);
  if (s == KF_OK) s = kf_train(a->common.operand[0], a->out, &o, &r, &e);
  if (s == KF_OK) s = measure(a, a->out, &o.hooks, &after, &e);
  s = kf_peers_agree(a->common.peers, s, &e);
  cli_report_end(&l.reporter, s == KF_OK);
  if (s != KF_OK) return cli_fail(&e);
  int code = keep_scores(a, &r, &before, &after);
  return code == CLI_OK ? print(a, &r, &before, &after, &teacher) : code;
}

/* The objectives that a command has; the first is its default. */
typedef struct kind {
  const char *command;
  bool teacher;
  const char *objective[4];
} kind;

static int with_recipe(const arguments *a, const kind *k, const char *objective, const kf_train_options *recipe) {
  int known = 0;
  for (int i = 0; recipe->objective && k->objective[i]; i++) known |= !strcmp(recipe->objective, k->objective[i]);
  if (recipe->objective && !known)
    return cli_say(CLI_USAGE, "%s is a recipe for objective %s, which %s does not have", a->recipe, recipe->objective,
                   k->command);
  double *weights = calloc((size_t)a->weights.count + 1, sizeof *weights);
  if (!weights) return cli_say(CLI_FAILED, "out of memory");
  if (!objective) objective = recipe->objective ? recipe->objective : k->objective[0];
  int code = parse_weights(a, weights) ? train(a, objective, weights, recipe) : CLI_USAGE;
  free(weights);
  return code;
}

/* objective NULL: not given, the recipe's or the command's default. */
static int run(const arguments *a, const kind *k, const char *objective) {
  kf_error e = {0};
  kf_train_options recipe = {0};
  kf_train_recipe *owner = NULL;
  if (!a->out) return cli_say(CLI_USAGE, "%s needs --out DIR", k->command);
  if (k->teacher && !a->teacher) return cli_say(CLI_USAGE, "%s needs --teacher MODEL", k->command);
  kf_status s = a->recipe ? kf_train_recipe_read(a->recipe, &owner, &recipe, &e) : KF_OK;
  if (kf_peers_agree(a->common.peers, s, &e) != KF_OK) {
    kf_train_recipe_free(owner);
    return cli_fail(&e);
  }
  int code = with_recipe(a, k, objective, &recipe);
  kf_train_recipe_free(owner);
  return code;
}

static const kind finetune = {"finetune", false, {"ce"}};
static const kind distill = {"distill", true, {"forward-kl", "reverse-kl", "js"}};
static const kind align = {"align", true, {"align"}};
static const kind dpo = {"dpo", false, {"dpo", "ipo"}};

static int run_finetune(void *p) {
  return run(p, &finetune, NULL);
}
static int run_distill(void *p) {
  int chosen = ((arguments *)p)->divergence;
  return run(p, &distill, chosen < 0 ? NULL : distill.objective[chosen]);
}
static int run_align(void *p) {
  return run(p, &align, NULL);
}
static int run_dpo(void *p) {
  int chosen = ((arguments *)p)->loss;
  return run(p, &dpo, chosen < 0 ? NULL : dpo.objective[chosen]);
}

/* ------------------------------------------------------------------------------------------------ help */

static const arguments defaults = {.divergence = -1, .loss = -1, .match = -1};

#define OUTPUT_TEXT                                                                                                  \
  " Writes a directory that loads and exports like any other. While it runs, DIR.run holds the last checkpoint and " \
  "train.jsonl, one object a step; a run that was killed goes on with --resume, to the same bytes. Started by "      \
  "mpirun -n N, N processes train together: each takes its part of every batch, which N must divide, and keeps its " \
  "part of the optimiser's state."
#define KEYS                                                                                        \
  "path                   string\n"                                                                 \
  "steps, tokens          of the whole run\n"                                                       \
  "trained_parameters     numbers that were trained\n"                                              \
  "first_loss, last_loss  means of the first and the last tenth of the steps that this call made\n" \
  "seconds, tokens_per_second   of the training itself\n"                                           \
  "with --eval also perplexity_before, perplexity_after, perplexity_teacher (where there is one)"

const cli_command cli_finetune = {
    .name = "finetune",
    .summary = "train a model on text",
    .operands = "MODEL --data FILE --out DIR",
    .least_operands = 1,
    .most_operands = 1,
    .options = finetune_options,
    .bytes = sizeof(arguments),
    .defaults = &defaults,
    .run = run_finetune,
    .together = true,
    .description = "Minimises the cross-entropy of the next token, a mean over the tokens of a step." OUTPUT_TEXT,
    .keys = KEYS,
    .examples = "kvfold finetune books-mla --data text.jsonl.zst --out healed --tokens 1000000\n"
                "kvfold finetune books-mla --data text.jsonl chat.jsonl --weights 3 1 --out healed --steps 500 --train self_attn",
};

const cli_command cli_distill = {
    .name = "distill",
    .summary = "train a model to predict as a teacher does",
    .operands = "STUDENT --teacher MODEL --data FILE --out DIR",
    .least_operands = 1,
    .most_operands = 1,
    .options = distill_options,
    .bytes = sizeof(arguments),
    .defaults = &defaults,
    .run = run_distill,
    .together = true,
    .description = "Minimises the divergence of the student's prediction of each token from the teacher's: what heals a "
                   "conversion, with the model it was made from, or a larger one, as the teacher." OUTPUT_TEXT,
    .keys = KEYS,
    .examples =
        "kvfold distill books-mla --teacher examples/books-7m --data text.jsonl.zst --out healed --tokens 1000000\n"
        "kvfold distill books-mla --teacher examples/books-7m --data text.jsonl.zst --out healed --tokens 100000 "
        "--eval examples/books-7m/held-out.txt\n"
        "kvfold distill books-mla --teacher examples/books-7m --data own.jsonl --out healed --tokens 1000000 --isolate "
        "--teacher-cache predictions\n"
        "mpirun -n 4 kvfold distill books-mla --teacher examples/books-7m --data text.jsonl.zst --out healed --tokens 1000000 "
        "--batch 8 --threads 1",
};

const cli_command cli_align = {
    .name = "align",
    .summary = "train each layer to do what the teacher's does",
    .operands = "STUDENT --teacher MODEL --data FILE --out DIR",
    .least_operands = 1,
    .most_operands = 1,
    .options = align_options,
    .bytes = sizeof(arguments),
    .defaults = &defaults,
    .run = run_align,
    .together = true,
    .description = "Each layer of the student takes the teacher's hidden state and is matched to the teacher's next one (squared "
                   "error, as a part of what the teacher's layer adds): layers learn independently, and no logits are "
                   "made. "
                   "--match attention or both matches what attention adds, which is all that a conversion changes." OUTPUT_TEXT,
    .keys = KEYS,
    .examples = "kvfold align books-mla --teacher examples/books-7m --data text.jsonl.zst --out aligned --tokens 100000\n"
                "kvfold align books-mla --teacher examples/books-7m --data text.jsonl.zst --out aligned --tokens 100000 "
                "--match both --train self_attn",
};

const cli_command cli_dpo = {
    .name = "dpo",
    .summary = "train a model on pairs of preferred and rejected answers",
    .operands = "MODEL --prefs FILE --out DIR",
    .least_operands = 1,
    .most_operands = 1,
    .options = dpo_options,
    .bytes = sizeof(arguments),
    .defaults = &defaults,
    .run = run_dpo,
    .together = true,
    .description = "Direct preference optimisation: raises the likelihood of chosen answers against rejected ones, relative to a "
                   "frozen reference. Answers longer than --length lose their end." OUTPUT_TEXT,
    .keys = KEYS,
    .examples = "kvfold dpo healed --prefs pairs.jsonl --out preferred --steps 200 --beta 0.01",
};
