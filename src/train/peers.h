/* What processes of one run say to one another: MPI behind a few calls, which do nothing for a process alone (peers NULL).
 * Sums are made in the order of the ranks, so that the same number of processes gives the same bits.
 *
 * A call that moves data stands right behind a kf_peers_agree() of the same ranks: none of them can be missing then. */
#ifndef KF_TRAIN_PEERS_H
#define KF_TRAIN_PEERS_H

#include "base/error.h"

int kf_peers_count(const kf_peers *p); /* 1: alone */
/* Every x [n], of 16 at most, becomes the sum over the ranks. */
void kf_peers_sum(kf_peers *p, double *x, int n);
/* The least of all ranks' numbers. */
int64_t kf_peers_least(kf_peers *p, int64_t number);
/* Sends n numbers to the next rank in the ring and receives m from the one before. */
void kf_peers_shift(kf_peers *p, const float *send, int64_t n, float *receive, int64_t m);
/* One rank to another; n is the same on both sides. */
void kf_peers_send(kf_peers *p, const float *data, int64_t n, int to);
void kf_peers_receive(kf_peers *p, float *data, int64_t n, int from);

#endif
