/* Inside of kf_train: one run, its directory and what it is made of. */
#ifndef KF_TRAIN_TRAINING_H
#define KF_TRAIN_TRAINING_H

#include "train/checkpoint.h"
#include "train/objective.h"
#include "train/schedule.h"
#include "train/shards.h"

typedef struct kf_training {
  const kf_train_options *o;
  kf_train_options set; /* o with every default resolved */
  const char *out;
  char student[KF_PATH], directory[KF_PATH], checkpoint[KF_PATH], log_path[KF_PATH];
  kf_config config;
  kf_weights weights;
  kf_dtype dtype;
  kf_tokenizer *tokenizer;
  kf_device *device;
  kf_parameters *parameters;
  kf_shards shards;
  kf_network *network;
  kf_objective_run run;
  kf_mix mix;
  kf_window window;
  kf_schedule schedule;
  json_t *fingerprint; /* all that decides the result */
  int share, micro;    /* sequences (pairs) of a step that this rank has; of those, in memory at a time */
  int64_t step, tokens;
  int log, lock; /* file descriptors; -1: none */
  kf_train_result result;
} kf_training;

/* Fills set, schedule and run.objective from the options and the model. */
kf_status kf_training_settings(kf_training *t, kf_error *e);
kf_status kf_training_fingerprint(kf_training *t, kf_error *e);
/* OUT.run: made, or taken over for a resumption; the log is open and ends where the checkpoint was made. */
kf_status kf_training_directory(kf_training *t, kf_error *e);
/* Of several ranks all call it. */
kf_status kf_training_save(kf_training *t, kf_error *e);
/* One line of the log: rank 0's. */
kf_status kf_training_note(kf_training *t, const kf_train_step *s, kf_error *e);
/* Writes OUT and removes OUT.run: rank 0 does. */
kf_status kf_training_publish(kf_training *t, kf_error *e);

#endif
