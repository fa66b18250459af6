/* fold from inside: what its session keeps, shared by its three parts (fold.c the session, fold_choice.c the choice among
 * variants, fold_refit.c the refits against the source). docs/METHODS.md has the equations. */
#ifndef KF_CONVERT_FOLD_H
#define KF_CONVERT_FOLD_H

#include "convert/fold_stream.h"
#include "convert/nearness.h"
#include "convert/shared.h"

/* keys */
enum { KF_FOLD_ROPE_PAIRS, KF_FOLD_SELECTION, KF_FOLD_ROPE_TABLE, KF_FOLD_REFIT, KF_FOLD_WINDOW_KEY, KF_FOLD_CONTEXT };
enum { KF_FOLD_KEY_WEIGHT = KF_FOLD_CONTEXT + 1 };
enum { KF_FOLD_AUTO, KF_FOLD_FOLD, KF_FOLD_GREEDY }; /* selection */
enum { KF_FOLD_ANY, KF_FOLD_STOCK };                 /* rope_table */
enum { KF_FOLD_REFIT_NONE, KF_FOLD_REFIT_OUTPUT, KF_FOLD_REFIT_ALL };
enum { KF_FOLD_TABLES = 6, KF_FOLD_WEIGHTS = 2, KF_FOLD_CANDIDATES = KF_FOLD_TABLES + KF_FOLD_WEIGHTS };

typedef struct kf_fold_candidate {
  bool greedy;
  int pairs, stride; /* stride 0: any frequencies */
  double key_weight; /* of the keys' error against the values' */
  kf_nearness nearness;
  kf_student student;
} kf_fold_candidate;

typedef struct kf_fold {
  const kf_plan *p;
  const kf_config *config;
  const kf_weights *weights;
  kf_device *device;
  kf_run *run;
  int threads;
  int64_t elements;    /* numbers a token and layer */
  int64_t context;     /* tokens of the longest context that will be served */
  bool stock;          /* all layers rotate by the same table of frequencies 0, stride, 2 stride, ... of the source's */
  int refit, refitted; /* what is asked for; layers whose refitted queries were kept */
  kf_stream all, fit;  /* the source's hidden states: all windows, the first of which are fitted on */
  float *start;        /* embeddings of all windows */
  kf_stream tune;      /* the text that is not fitted on again, in longer windows: what is chosen by */
  int32_t *tune_ids;   /* [windows, window] */
  kf_fold_candidate candidate[KF_FOLD_CANDIDATES];
  int candidates, best;
  kf_shared store;     /* statistics, layer by layer */
  int next;            /* layer whose statistics the store gives next */
  kf_student student;  /* of the chosen variant, over the windows chosen by */
  kf_stream converted; /* its hidden states over all windows, which refits compare with the source's; x NULL: no refits */
} kf_fold;

/* Rotated pairs of a layer: none where the source does not rotate. */
int kf_fold_pairs(const kf_fold *f, int layer, int pairs);
int kf_fold_most_pairs(const kf_plan *p); /* that rope_table has */
/* Over distances as far as the layer sees within the context. */
kf_status kf_fold_problem(const kf_fold *f, const kf_fold_source *source, const kf_attention_statistics *s, kf_rope_problem *out,
                          kf_error *e);
kf_status kf_fold_channels(const kf_fold *f, const kf_rope_problem *p, int layer, const kf_fold_candidate *c, kf_channels *out,
                           kf_error *e);
/* Statistics of a layer to the store, or from a complete one, in the order of the layers. */
kf_status kf_fold_move_statistics(kf_fold *f, kf_attention_statistics *s, kf_error *e);

/* What is tried where the settings leave it open. Errors: a budget without room. */
kf_status kf_fold_list_candidates(kf_fold *f, kf_error *e);
/* Runs the source once over all windows: statistics into the store (unless it is complete), every candidate converted (without refit) and judged. The
 * best of them is then tried with other weights of its keys, unless the settings give one. */
kf_status kf_fold_choose(kf_fold *f, kf_error *e);
/* Nearness to the source of streams that went through all layers; converted: [tune.windows, tune.window, hidden]. */
kf_status kf_fold_judge(kf_fold *f, float *const *converted, int count, kf_nearness *out, kf_error *e);
/* Refits a mapped layer as the settings say, and brings the streams through it: the student's, and with refits the source's. */
kf_status kf_fold_refit(kf_fold *f, int layer, const kf_fold_source *source, const kf_layer *teacher, kf_mapped *mapped,
                        kf_error *e);

#endif
