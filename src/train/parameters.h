/* All numbers of a model that is trained, in flat arrays of the device's memory: fp32 masters, gradients, the optimiser's moments, and the copy that
 * products read in the device's compute type.
 *
 * Matrices stand first, in the order of kf_weights_each(), then norms and biases in that order: so the rows of q, k and v, and
 * of gate and up, follow one another and are one matrix each. */
#ifndef KF_TRAIN_PARAMETERS_H
#define KF_TRAIN_PARAMETERS_H

#include "device/device.h"
#include "model/weights.h"

typedef struct kf_parameter {
  const char *name;
  int64_t rows, columns, at; /* at: first number in the arrays */
  int64_t order;             /* numbers before it that are trained */
  bool trained;
  bool decays; /* under weight decay: matrices, not norms and biases */
} kf_parameter;

/* Of the numbers that are trained, counted in the order of the items, those from `from` to before `to`. */
typedef struct kf_shard {
  int64_t from, to;
} kf_shard;

/* A part of the arrays without a gap. */
typedef struct kf_stretch {
  int64_t at, count;
} kf_stretch;

typedef struct kf_parameters {
  kf_arena arena; /* of the table */
  kf_parameter *item;
  int count;
  int64_t total, matrices; /* numbers in all; in matrices */
  float *value;            /* [total] */
  float *gradient;         /* [total]; pages of what is frozen are never touched */
  float *first, *second;   /* [total] moments of AdamW */
  void *compute;           /* [matrices] in the compute type; value itself in f32 */
  kf_device *device;       /* borrowed */
  kf_shard own;            /* whose moments are kept here and that a step updates: everything, unless there are several ranks */
} kf_parameters;

/* Every tensor of the configuration, their values undefined, all trained. */
kf_status kf_parameters_create(const kf_config *c, kf_device *d, kf_parameters **out, kf_error *e);
void kf_parameters_free(kf_parameters *p);
/* Values from a checkpoint; moments of the own part 0. */
kf_status kf_parameters_load(kf_parameters *p, const kf_weights *w, kf_error *e);
/* Trains what a pattern of `train` matches (all when there is none) and none of `freeze` does. A pattern is a shell's: "*" and
 * "?"; it is looked for anywhere in the name. Errors (KF_ERROR_USAGE): a pattern that matches nothing, nothing left to train. */
kf_status kf_parameters_choose(kf_parameters *p, const char *const *train, int train_count, const char *const *freeze,
                               int freeze_count, kf_error *e);
int64_t kf_parameters_trained(const kf_parameters *p); /* numbers */
/* What of an item lies in the shard; count 0: nothing. */
kf_stretch kf_parameters_piece(const kf_parameter *item, kf_shard s);
/* NULL when there is none of that name. */
const kf_parameter *kf_parameters_find(const kf_parameters *p, const char *name);

/* Brings the compute copy up to date with the masters. */
void kf_parameters_round(kf_parameters *p);
void kf_parameters_zero_gradient(kf_parameters *p);
/* Sum of squares, and the first tensor with a number that is not finite (count: there is none): both of the own part. */
double kf_parameters_gradient_squares(const kf_parameters *p);
int kf_parameters_broken(const kf_parameters *p);
/* One step of the own part; o->decay counts for matrices. The masters alone: kf_parameters_round() is to follow. */
void kf_parameters_step(kf_parameters *p, const kf_adamw *o);

#endif
