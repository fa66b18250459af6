/* Windows of training tokens from several sources: packed, shuffled, mixed by weight; the same for the same seed, and from any
 * position that was noted. */
#ifndef KF_TRAIN_BATCHES_H
#define KF_TRAIN_BATCHES_H

#include "base/json.h"
#include "train/network.h"
#include "train/token_file.h"

typedef struct kf_source_position {
  int64_t epoch, index, offset; /* document order[index] of that epoch, from its token `offset` on */
  int64_t drawn;                /* windows, or pairs, so far */
} kf_source_position;

typedef struct kf_mix_source {
  kf_token_file file;
  double weight; /* share of the windows */
  kf_source_position at;
  int64_t *order; /* [documents, or pairs] of this epoch */
} kf_mix_source;

typedef struct kf_mix {
  kf_mix_source *source;
  int count;
  bool pairs;
  bool isolated; /* documents do not attend to one another; else a window is one sequence */
  uint64_t seed;
} kf_mix;

/* One step's worth: tokens with their targets and sequences. weight 1: counts in the loss, 0: does not. */
typedef struct kf_window {
  kf_device *device;
  int32_t *ids, *target; /* [count], room for what it was created with, in the device's memory */
  float *weight;
  kf_extent *sequence; /* [sequences] */
  int64_t count;
  int sequences;
} kf_window;

/* The device is borrowed. */
kf_status kf_window_create(kf_device *d, int64_t capacity, kf_window *out, kf_error *e);
void kf_window_free(kf_window *w);

/* Takes `files` [count] over when it succeeds. weights NULL: by their tokens. Errors: nothing but one-token documents. */
kf_status kf_mix_create(const kf_token_file *files, const double *weights, int count, bool pairs, bool isolated, uint64_t seed,
                        kf_mix *out, kf_error *e);
void kf_mix_free(kf_mix *m);

/* Appends a window of `length` tokens. A token is a target once an epoch. */
void kf_mix_window(kf_mix *m, int64_t length, kf_window *w);
/* Appends a pair: two sequences, the chosen and the rejected, each of at most `length` tokens (the end is cut off). */
void kf_mix_pair(kf_mix *m, int64_t length, kf_window *w);

/* Positions of all sources, and back. */
json_t *kf_mix_state(const kf_mix *m);
kf_status kf_mix_restore(kf_mix *m, const json_t *state, kf_error *e);

#endif
