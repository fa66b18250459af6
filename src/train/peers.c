#include "train/peers.h"

#include <stdlib.h>

#include "base/memory.h"

enum { SUMS = 16 }; /* that are made at a time */

struct kf_peers {
  int rank, count;
  bool failed; /* agreed on: nothing is exchanged any more */
  kf_error error;
  double *sum; /* [count, SUMS] */
};

int kf_peers_rank(const kf_peers *p) {
  return p ? p->rank : 0;
}

int kf_peers_count(const kf_peers *p) {
  return p ? p->count : 1;
}

/* As Open MPI's launcher tells, or that of MPICH and its descendants. */
static int started(void) {
  const char *open_mpi = getenv("OMPI_COMM_WORLD_SIZE"), *pmi = getenv("PMI_SIZE");
  return open_mpi ? atoi(open_mpi) : pmi ? atoi(pmi) : 1;
}

#ifdef KF_MPI

#include <mpi.h>
#include <sched.h>
#include <stdio.h>
#include <time.h>

enum { MOST = 1 << 28 }; /* numbers of a message: MPI counts in int */

/* A rank may write a checkpoint while the others wait: they leave the processor to those that work. */
static void finish(MPI_Request *r, int n) {
  struct timespec nap = {.tv_nsec = 20000};
  int done = 0;
  for (int tries = 0; MPI_Testall(n, r, &done, MPI_STATUSES_IGNORE), !done; tries++) {
    if (tries < 100) {
      sched_yield();
      continue;
    }
    nanosleep(&nap, NULL);
    if (nap.tv_nsec < 1000000) nap.tv_nsec += nap.tv_nsec / 4;
  }
}

static kf_status join(kf_peers *p, int expected, kf_error *e) {
  int threads;
  MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &threads);
  MPI_Comm_rank(MPI_COMM_WORLD, &p->rank);
  MPI_Comm_size(MPI_COMM_WORLD, &p->count);
  if (p->count == expected) return KF_OK;
  MPI_Finalize();
  return kf_fail(e, KF_ERROR_USAGE,
                 "started as one of %d processes, which do not find one another: this mpirun is not of the MPI that kvfold was "
                 "built with",
                 expected);
}

/* What the others are to say of this one's failure. */
static void tell(kf_peers *p, kf_status s, const kf_error *e) {
  const char *why = e ? e->message : "failed";
  if (p->rank == 0)
    kf_fail(&p->error, s, "%s", why);
  else
    kf_fail(&p->error, s, "process %d: %s", p->rank, why);
}

kf_status kf_peers_agree(kf_peers *p, kf_status s, kf_error *e) {
  if (!p) return s;
  if (!p->failed) {
    MPI_Request wait;
    int mine = s == KF_OK ? p->count : p->rank, least;
    MPI_Iallreduce(&mine, &least, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD, &wait);
    finish(&wait, 1);
    if (least == p->count) return KF_OK;
    p->failed = true;
    if (least == p->rank) tell(p, s, e);
    MPI_Ibcast(&p->error, sizeof p->error, MPI_BYTE, least, MPI_COMM_WORLD, &wait);
    finish(&wait, 1);
  }
  if (e) *e = p->error;
  return p->error.status;
}

void kf_peers_leave(kf_peers *p, bool failed) {
  if (!p) return;
  kf_error e = {.message = "ended early"};
  kf_peers_agree(p, failed ? KF_ERROR_INPUT : KF_OK, &e);
  MPI_Finalize();
  free(p->sum);
  free(p);
}

void kf_peers_sum(kf_peers *p, double *x, int n) {
  if (!p) return;
  MPI_Request wait;
  MPI_Iallgather(x, n, MPI_DOUBLE, p->sum, n, MPI_DOUBLE, MPI_COMM_WORLD, &wait);
  finish(&wait, 1);
  for (int i = 0; i < n; i++) {
    x[i] = 0;
    for (int rank = 0; rank < p->count; rank++) x[i] += p->sum[rank * n + i];
  }
}

int64_t kf_peers_least(kf_peers *p, int64_t number) {
  if (!p) return number;
  int64_t least;
  MPI_Request wait;
  MPI_Iallreduce(&number, &least, 1, MPI_INT64_T, MPI_MIN, MPI_COMM_WORLD, &wait);
  finish(&wait, 1);
  return least;
}

void kf_peers_shift(kf_peers *p, const float *send, int64_t n, float *receive, int64_t m) {
  MPI_Request wait[2];
  int next = (p->rank + 1) % p->count, before = (p->rank + p->count - 1) % p->count;
  MPI_Irecv(receive, (int)m, MPI_FLOAT, before, 0, MPI_COMM_WORLD, &wait[0]);
  MPI_Isend(send, (int)n, MPI_FLOAT, next, 0, MPI_COMM_WORLD, &wait[1]);
  finish(wait, 2);
}

void kf_peers_send(kf_peers *p, const float *data, int64_t n, int to) {
  MPI_Request wait;
  (void)p;
  for (int64_t at = 0; at < n; at += MOST) {
    MPI_Isend(data + at, (int)(n - at < MOST ? n - at : MOST), MPI_FLOAT, to, 0, MPI_COMM_WORLD, &wait);
    finish(&wait, 1);
  }
}

void kf_peers_receive(kf_peers *p, float *data, int64_t n, int from) {
  MPI_Request wait;
  (void)p;
  for (int64_t at = 0; at < n; at += MOST) {
    MPI_Irecv(data + at, (int)(n - at < MOST ? n - at : MOST), MPI_FLOAT, from, 0, MPI_COMM_WORLD, &wait);
    finish(&wait, 1);
  }
}

#else

static kf_status join(kf_peers *p, int expected, kf_error *e) {
  (void)p;
  return kf_fail(e, KF_ERROR_USAGE, "started as one of %d processes, but this kvfold was built without MPI", expected);
}

kf_status kf_peers_agree(kf_peers *p, kf_status s, kf_error *e) {
  (void)p, (void)e;
  return s;
}

void kf_peers_leave(kf_peers *p, bool failed) {
  (void)p, (void)failed;
}

void kf_peers_sum(kf_peers *p, double *x, int n) {
  (void)p, (void)x, (void)n;
}

int64_t kf_peers_least(kf_peers *p, int64_t number) {
  (void)p;
  return number;
}

void kf_peers_shift(kf_peers *p, const float *send, int64_t n, float *receive, int64_t m) {
  (void)p, (void)send, (void)n, (void)receive, (void)m;
}

void kf_peers_send(kf_peers *p, const float *data, int64_t n, int to) {
  (void)p, (void)data, (void)n, (void)to;
}

void kf_peers_receive(kf_peers *p, float *data, int64_t n, int from) {
  (void)p, (void)data, (void)n, (void)from;
}

#endif

kf_status kf_peers_join(kf_peers **out, kf_error *e) {
  int count = started();
  *out = NULL;
  if (count < 2) return KF_OK;
  kf_peers *p;
  KF_NEW(p, 1, e);
  kf_status s = (p->sum = kf_alloc((size_t)count * SUMS, sizeof *p->sum, e)) ? join(p, count, e) : KF_ERROR_MEMORY;
  if (s == KF_OK) {
    *out = p;
    return s;
  }
  free(p->sum);
  free(p);
  return s;
}
