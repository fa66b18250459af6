/* What a step minimises: one row of a table an objective. */
#ifndef KF_TRAIN_OBJECTIVE_H
#define KF_TRAIN_OBJECTIVE_H

#include "model/model.h"
#include "train/batches.h"

/* What of a layer is aligned with the teacher's: its output, its attention's output, or both with equal weight. */
typedef enum kf_match { KF_MATCH_LAYER, KF_MATCH_ATTENTION, KF_MATCH_BOTH } kf_match;

/* Settings that objectives read; see kf_train_options. */
typedef struct kf_objective_settings {
  float ce, kl, temperature; /* weights of the two parts of a distillation */
  double beta, smoothing;    /* preferences */
  kf_match match;
} kf_objective_settings;

/* Sums over the micro-batches of a step. Gradients are those of `loss`; a step divides both by `count`. */
typedef struct kf_totals {
  double loss, nll, divergence; /* nll and divergence: of what is learnt, unweighted */
  double correct;               /* preferences: pairs in the right order */
  double count;                 /* learnt tokens; pairs; layers, once a micro-batch, when they are aligned */
} kf_totals;

/* A frozen model that runs beside the student: its sequences and hidden states. */
typedef struct kf_frozen {
  kf_model *model;
  kf_sequence **sequence; /* [sequences] grown on demand */
  kf_span *span;
  int sequences;
  float *x;
  int64_t capacity;
} kf_frozen;

void kf_frozen_free(kf_frozen *f); /* closes the model */
/* Hidden states of all sequences, in f->x. */
kf_status kf_frozen_forward(kf_frozen *f, const kf_window *w, kf_error *e);

typedef struct kf_cached_teacher kf_cached_teacher;

typedef struct kf_objective kf_objective;
typedef struct kf_objective_run {
  const kf_objective *objective;
  kf_objective_settings settings;
  kf_network *network;
  kf_device *device;
  kf_frozen frozen;                 /* teacher or reference; model NULL: none */
  kf_cached_teacher *cached;        /* in place of a teacher; NULL: none */
  double *nll, *divergence, *other; /* [rows] of a micro-batch */
  float *weight;                    /* [rows] */
  float *state[4];                  /* hidden states of one micro-batch, when layers are aligned */
  int64_t rows, states;
} kf_objective_run;

struct kf_objective {
  const char *name, *help;
  bool teacher;   /* needs one */
  bool reference; /* takes one; by default the student as it starts */
  bool pairs;
  double rate; /* default learning rate */
  kf_divergence divergence;
  bool cached;   /* the teacher may be kept as predictions */
  bool identity; /* preferences: IPO's squared loss */
  /* Loss and gradients of one micro-batch, added to the parameters' and to *totals. */
  kf_status (*run)(kf_objective_run *r, const kf_window *w, kf_totals *totals, kf_error *e);
};

const kf_objective *kf_objective_at(int index); /* NULL behind the last */
/* Errors: KF_ERROR_USAGE. */
kf_status kf_match_parse(const char *name, kf_match *out, kf_error *e);
kf_status kf_objective_find(const char *name, const kf_objective **out, kf_error *e);
void kf_objective_run_free(kf_objective_run *r);

#endif
