/* ZeRO-1: the numbers that are trained are dealt out to the ranks in equal parts. A rank has the optimiser's moments of its own
 * part and updates it; gradients and weights are whole everywhere, and pass from rank to rank in a ring. Rajbhandari et al.,
 * arXiv:1910.02054. */
#ifndef KF_TRAIN_SHARDS_H
#define KF_TRAIN_SHARDS_H

#include "train/parameters.h"
#include "train/peers.h"

typedef struct kf_shards {
  kf_peers *peers; /* borrowed; NULL: one rank, whose part is everything */
  kf_parameters *parameters;
  float *send, *receive; /* a chunk each */
  float *whole;          /* rank 0: room for the largest trained tensor */
} kf_shards;

/* Part `rank` of `count` of so many numbers: none is longer than another by more than one. */
kf_shard kf_shard_of(int64_t numbers, int rank, int count);

/* After kf_parameters_choose(); sets the parameters' own part. */
kf_status kf_shards_create(kf_peers *peers, kf_parameters *p, kf_shards *out, kf_error *e);
void kf_shards_free(kf_shards *s);

/* All ranks call these together. */
void kf_shards_reduce(const kf_shards *s); /* gradients: a rank's own part becomes the sum over the ranks */
void kf_shards_gather(const kf_shards *s); /* weights: each part is taken from the rank that updated it */
/* On rank 0 the whole of a tensor of `array` (a moment), valid until the next call; NULL on the others. */
const float *kf_shards_collect(const kf_shards *s, const float *array, const kf_parameter *item);

#endif
